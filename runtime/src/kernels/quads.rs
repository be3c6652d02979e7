//! Cores without SIMD: two pixels in one word.
//!
//! An activation plus 128 has 8 bits, a weight plus 128 too, and their product 16. So a word `p0 | p1 << 16` times a weight holds both pixels'
//! products, and two sums per row keep them apart:
//!
//! ```text
//! low += word * w            high += (word * w) >> 16
//! pixel 1: high              pixel 0: low - (high << 16)        (wrapping)
//! ```
//!
//! Five operations for two products, load of the weight included, and half of the loads. What the weights' 128 adds, `128 * sum p`, is taken
//! off at the end.

use super::Output;
use crate::format::blocks::{Blocks, Layout};

/// Writes `q + 128` of a run into every other element of `to`, the first included; returns their sum.
pub fn expand(to: &mut [u16], run: &[i8]) -> i32 {
    let mut sum = 0i32;
    for (to, &q) in to.iter_mut().step_by(2).zip(run) {
        let p = q as u8 ^ 0x80;
        *to = p as u16;
        sum = sum.wrapping_add(p as i32);
    }
    sum
}

/// Writes `q + 128` of a run; returns their sum.
pub fn offset(to: &mut [u8], run: &[i8]) -> i32 {
    to.iter_mut().zip(run).fold(0, |sum, (to, &q)| {
        *to = q as u8 ^ 0x80;
        sum + *to as i32
    })
}

/// As [`super::generic::matrix`], for patches of one pixel or two whose activations sum to `sums`. False if a length is wrong.
pub fn matrix(
    blocks: &Blocks<'_>,
    patches: &[i8],
    pixels: usize,
    sums: [i32; 3],
    to: Output,
    output: &mut [i8],
    at: [usize; 3],
) -> bool {
    if blocks.layout() != Layout::Quads || patches.len() != blocks.padded_k() * pixels * pixels || pixels > 2 {
        return false;
    }
    // One pixel is a byte of its own.
    let word = |k: &[i8]| match *k {
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d].map(|q| q as u8)),
        [q] => q as u8 as u32,
        _ => 0,
    };
    let k_bytes = pixels * pixels;
    let (offsets, head) = (sums.map(|sum| sum.wrapping_mul(-128)), Layout::Quads.stage_bytes());
    for (first, block) in (0..blocks.n()).step_by(4).zip(blocks.blocks()) {
        let (mut low, mut high) = ([0u32; 4], [0u32; 4]);
        for (quad, words) in block.get(head..).unwrap_or(&[]).chunks_exact(16).zip(patches.chunks_exact(4 * k_bytes)) {
            for ((low, high), weights) in low.iter_mut().zip(&mut high).zip(quad.chunks_exact(4)) {
                for (&w, k) in weights.iter().zip(words.chunks_exact(k_bytes)) {
                    let product = word(k).wrapping_mul(w as u32);
                    *low = low.wrapping_add(product);
                    *high = high.wrapping_add(product >> 16);
                }
            }
        }
        for (row, (low, high)) in (first..blocks.n()).zip(low.into_iter().zip(high)) {
            let (bias, multiplier, shift) = blocks.stage(row);
            let sums = [low.wrapping_sub(high << 16), high];
            for ((sum, offset), at) in sums.into_iter().zip(offsets).zip(at).take(pixels) {
                let acc = bias.wrapping_add(offset).wrapping_add(sum as i32);
                if let Some(out) = output.get_mut(at + row) {
                    *out = to.stage(acc, multiplier, shift);
                }
            }
        }
    }
    true
}
