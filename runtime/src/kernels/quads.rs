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
    let mut put = |to: &mut u16, q: i8| {
        let p = q as u8 ^ 0x80;
        *to = p as u16;
        sum = sum.wrapping_add(p as i32);
    };
    // On Arm this is what serves where kernels do not, and should be short.
    let (fours, rest) = run.split_at(if cfg!(target_arch = "arm") { 0 } else { run.len() / 4 * 4 });
    for (&[a, b, c, d], to) in fours.as_chunks().0.iter().zip(to.chunks_mut(8)) {
        if let [at_a, _, at_b, _, at_c, _, at_d, ..] = to {
            put(at_a, a);
            put(at_b, b);
            put(at_c, c);
            put(at_d, d);
        }
    }
    let to = to.get_mut(2 * fours.len()..).unwrap_or(&mut []);
    to.iter_mut().step_by(2).zip(rest).for_each(|(to, &q)| put(to, q));
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
    let middle = 1i32 << (blocks.bits() - 1);
    for (first, block) in (0..blocks.n()).step_by(4).zip(blocks.blocks()) {
        let Some((head, weights)) = block.split_at_checked(Layout::Quads.stage_bytes()) else { return false };
        let Ok([b0, b1, b2, b3, m0, m1, m2, m3, shifts, zeros, ..]) = bytemuck::try_cast_slice(head) else {
            return false;
        };
        let (shifts, zeros) = (u32::to_le_bytes(*shifts), u32::to_le_bytes(*zeros));
        let rows = match (pixels, blocks.bits()) {
            (1, _) => one_pixel(weights, bytemuck::cast_slice(patches)),
            (_, 8) => two_pixels(weights, words),
            (_, bits) => two_pixels_narrow(bits, weights, words),
        };
        let stages = [(b0, m0), (b1, m1), (b2, m2), (b3, m3)];
        for (row, ((products, (bias, multiplier)), (&shift, &zero))) in
            (first..blocks.n()).zip(rows.iter().zip(&stages).zip(shifts.iter().zip(&zeros)))
        {
            let (bias, multiplier) = (u32::from_le(**bias) as i32, u32::from_le(**multiplier) as i32);
            let offset = middle + zero as i8 as i32;
            let mut put = |at: usize, products: u32, sum: i32| {
                if let Some(out) = output.get_mut(at + row) {
                    let acc = bias.wrapping_add(products as i32).wrapping_sub(sum.wrapping_mul(offset));
                    *out = stage(by, to, acc, multiplier, shift);
                }
            };
            put(at[0], products[0], sums[0]);
            if pixels == 2 {
                put(at[1], products[1], sums[1]);
            }
        }
    }
    true
}

/// As [`Output::stage`].
#[inline(always)]
fn stage(by: HighWord, to: Output, acc: i32, multiplier: i32, shift: u8) -> i8 {
    match by.serves_shift(shift) {
        true => by.rescale(acc, multiplier, shift).max(to.min as i32).min(to.max as i32) as i8,
        false => to.stage(acc, multiplier, shift),
    }
}

/// Adds four products of a row and two pixels. Loops of four are written out, since where code is dear the compiler leaves them rolled.
#[inline(always)]
fn add_two_pixels([low, high]: &mut [u32; 2], words: &[u32; 4], weights: [u8; 4]) {
    let mut add = |word: u32, weight: u8| {
        let product = word.wrapping_mul(weight as u32);
        *low = low.wrapping_add(product);
        *high = high.wrapping_add(product >> 16);
    };
    add(words[0], weights[0]);
    add(words[1], weights[1]);
    add(words[2], weights[2]);
    add(words[3], weights[3]);
}

/// Both pixels' sums.
#[inline(always)]
fn apart([low, high]: [u32; 2]) -> [u32; 2] {
    [low.wrapping_sub(high << 16), high]
}

/// Sums of four rows and two pixels.
#[inline(never)]
fn two_pixels(weights: &[u8], words: &[u32]) -> [[u32; 2]; 4] {
    let [mut a, mut b, mut c, mut d] = [[0; 2]; 4];
    for (quad, words) in weights.as_chunks().0.iter().zip(words.as_chunks().0) {
        let [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3]: [u8; 16] = *quad;
        add_two_pixels(&mut a, words, [a0, a1, a2, a3]);
        add_two_pixels(&mut b, words, [b0, b1, b2, b3]);
        add_two_pixels(&mut c, words, [c0, c1, c2, c3]);
        add_two_pixels(&mut d, words, [d0, d1, d2, d3]);
    }
    [apart(a), apart(b), apart(c), apart(d)]
}

/// Sums of four rows and two pixels, of weights of 4 or 2 bits.
#[inline(never)]
fn two_pixels_narrow(bits: u8, weights: &[u8], words: &[u32]) -> [[u32; 2]; 4] {
    let mut sums = [[0u32; 2]; 4];
    let row_bytes = bits as usize;
    for (rows, words) in weights.chunks_exact(4 * row_bytes).zip(words.as_chunks().0) {
        for ([low, high], bytes) in sums.iter_mut().zip(rows.chunks_exact(row_bytes)) {
            let sum = eight_products(bits, bytes, words);
            *low = low.wrapping_add(sum);
            *high = high.wrapping_add(sum >> 16);
        }
    }
    [apart(sums[0]), apart(sums[1]), apart(sums[2]), apart(sums[3])]
}

/// Products of a row's eight weights and two pixels.
#[inline(always)]
fn eight_products(bits: u8, weights: &[u8], words: &[u32; 8]) -> u32 {
    let mut weights = match *weights {
        [a, b] => u32::from_le_bytes([a, b, 0, 0]),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
        _ => 0,
    };
    let mut sum = 0u32;
    let mut add = |word: u32| {
        sum = sum.wrapping_add(word.wrapping_mul(weights & ((1 << bits) - 1)));
        weights >>= bits;
    };
    add(words[0]);
    add(words[1]);
    add(words[2]);
    add(words[3]);
    add(words[4]);
    add(words[5]);
    add(words[6]);
    add(words[7]);
    sum
}

/// Adds four products of a row and one pixel.
#[inline(always)]
fn add_one_pixel(sum: &mut u32, patch: [u8; 4], weights: [u8; 4]) {
    let product = |k: usize| weights[k] as u32 * patch[k] as u32;
    *sum = sum.wrapping_add(product(0) + product(1) + product(2) + product(3));
}

/// Sums of four rows and one pixel, whose activations are bytes.
#[inline(never)]
fn one_pixel(weights: &[u8], patch: &[u8]) -> [[u32; 2]; 4] {
    let [mut a, mut b, mut c, mut d] = [0; 4];
    for (quad, &patch) in weights.as_chunks().0.iter().zip(patch.as_chunks().0) {
        let [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3]: [u8; 16] = *quad;
        add_one_pixel(&mut a, patch, [a0, a1, a2, a3]);
        add_one_pixel(&mut b, patch, [b0, b1, b2, b3]);
        add_one_pixel(&mut c, patch, [c0, c1, c2, c3]);
        add_one_pixel(&mut d, patch, [d0, d1, d2, d3]);
    }
    [[a, 0], [b, 0], [c, 0], [d, 0]]
}

/// Channels whose sums [`depthwise_row`] keeps in registers.
#[cfg(pith_riscv)]
const LANES: usize = 8;

/// As [`super::generic::depthwise_row`], some channels at a time; the last ones, where they are fewer, with those before them once more. False if a
/// length is wrong or all channels are fewer.
#[cfg(pith_riscv)]
pub fn depthwise_row(r: &mut super::DepthwiseRow<'_>) -> bool {
    fn some<T: Copy>(of: &[T], at: usize) -> Option<&[T; LANES]> {
        of.get(at..).and_then(<[T]>::first_chunk)
    }
    let super::DepthwiseRow { channels, kernel_h, kernel_w, .. } = *r;
    let Some(last) = channels.checked_sub(LANES) else { return false };
    let by = HighWord::new(r.to.zero_point);
    for (x, out) in r.output.chunks_exact_mut(channels).enumerate() {
        for first in (0..channels).step_by(LANES).map(|first| first.min(last)) {
            let Some(&(mut sums)) = some(r.bias, first) else { return false };
            let mut tap = first;
            for ky in 0..kernel_h {
                let mut at = (r.first + ky) % kernel_h * r.row + x * r.stride_w * channels + first;
                for _ in 0..kernel_w {
                    let (Some(q), Some(w)) = (some(r.ring, at), some(r.weights, tap)) else { return false };
                    let add = |k: usize| sums[k].wrapping_add(q[k] as i32 * w[k] as i32);
                    sums = [add(0), add(1), add(2), add(3), add(4), add(5), add(6), add(7)];
                    (at, tap) = (at + channels, tap + channels);
                }
            }
            let (Some(multipliers), Some(shifts)) = (some(r.multiplier, first), some(r.shift, first)) else {
                return false;
            };
            let factors = sums.iter().zip(multipliers).zip(shifts);
            for (out, ((&sum, &multiplier), &shift)) in out.iter_mut().skip(first).zip(factors) {
                *out = stage(by, r.to, sum, multiplier, shift);
            }
        }
    }
    true
}
