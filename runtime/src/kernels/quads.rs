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
//! off at the end. Products of weights of 4 or 2 bits are so short that eight of them fit 16 bits together, and are taken apart together.

use super::Output;
use crate::fixed::HighWord;
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
    let words: &[u32] = bytemuck::try_cast_slice(patches).unwrap_or(&[]);
    let served = match pixels {
        1 => blocks.bits() == 8 && patches.len() == blocks.padded_k(),
        2 => words.len() == blocks.padded_k(),
        _ => false,
    };
    if blocks.layout() != Layout::Quads || !served {
        return false;
    }
    let by = HighWord::new(to.zero_point);
    let offsets = [sums[0], sums[1]].map(|sum| sum.wrapping_mul(-1 << (blocks.bits() - 1)));
    for (first, block) in (0..blocks.n()).step_by(4).zip(blocks.blocks()) {
        let Some((head, weights)) = block.split_at_checked(Layout::Quads.stage_bytes()) else { return false };
        let rows = match (pixels, blocks.bits()) {
            (1, _) => one_pixel(weights, patches),
            (_, 8) => two_pixels(weights, words),
            (_, bits) => two_pixels_narrow(bits, weights, words),
        };
        for (lane, (row, sums)) in (first..blocks.n()).zip(rows).enumerate() {
            let word = |at: usize| head.get(at..at + 4).and_then(|w| w.try_into().ok()).map_or(0, i32::from_le_bytes);
            let (bias, multiplier, shift) =
                (word(4 * lane), word(16 + 4 * lane), head.get(32 + lane).map_or(1, |&s| s));
            for ((sum, offset), at) in sums.into_iter().zip(offsets).zip(at).take(pixels) {
                if let Some(out) = output.get_mut(at + row) {
                    let acc = bias.wrapping_add(offset).wrapping_add(sum as i32);
                    *out = if by.serves_shift(shift) {
                        by.rescale(acc, multiplier, shift).clamp(to.min as i32, to.max as i32) as i8
                    } else {
                        to.stage(acc, multiplier, shift)
                    };
                }
            }
        }
    }
    true
}

/// Sums of four rows and two pixels.
#[inline(never)]
fn two_pixels(weights: &[u8], words: &[u32]) -> [[u32; 2]; 4] {
    let (mut low, mut high) = ([0u32; 4], [0u32; 4]);
    for (quad, words) in weights.chunks_exact(16).zip(words.chunks_exact(4)) {
        for (k, &word) in words.iter().enumerate() {
            for row in 0..4 {
                let product = word.wrapping_mul(quad[4 * row + k] as u32);
                low[row] = low[row].wrapping_add(product);
                high[row] = high[row].wrapping_add(product >> 16);
            }
        }
    }
    core::array::from_fn(|row| [low[row].wrapping_sub(high[row] << 16), high[row]])
}

/// Sums of four rows and two pixels, of weights of 4 or 2 bits.
#[inline(never)]
fn two_pixels_narrow(bits: u8, weights: &[u8], words: &[u32]) -> [[u32; 2]; 4] {
    let (mut low, mut high) = ([0u32; 4], [0u32; 4]);
    let row_bytes = bits as usize;
    for (rows, words) in weights.chunks_exact(4 * row_bytes).zip(words.chunks_exact(8)) {
        for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
            let mut packed = bytes.iter().rev().fold(0u32, |packed, &byte| packed << 8 | byte as u32);
            let mut sum = 0u32;
            for &word in words {
                sum = sum.wrapping_add(word.wrapping_mul(packed & ((1 << bits) - 1)));
                packed >>= bits;
            }
            low[row] = low[row].wrapping_add(sum);
            high[row] = high[row].wrapping_add(sum >> 16);
        }
    }
    core::array::from_fn(|row| [low[row].wrapping_sub(high[row] << 16), high[row]])
}

/// Sums of four rows and one pixel, whose activations are bytes.
#[inline(never)]
fn one_pixel(weights: &[u8], patch: &[i8]) -> [[u32; 2]; 4] {
    let mut sums = [[0u32; 2]; 4];
    for (quad, patch) in weights.chunks_exact(16).zip(patch.chunks_exact(4)) {
        for (sum, weights) in sums.iter_mut().zip(quad.chunks_exact(4)) {
            for (&w, &q) in weights.iter().zip(patch) {
                sum[0] = sum[0].wrapping_add(w as u32 * q as u8 as u32);
            }
        }
    }
    sums
}
