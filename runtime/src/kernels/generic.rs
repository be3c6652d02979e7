//! The scalar truth: plain Rust whose loops a compiler vectorizes where it can.
//!
//! A convolution in `[h, w, c]` order is a sum of dot products over contiguous runs: for one kernel row, taps and channels lie
//! side by side in the input and in the weights. So [`Weights::dot`] is the heart of `conv`, `linear` and `conv_transpose`, and
//! [`Weights::accumulate`] (one product per channel) that of `depthwise`. Sums wrap at 32 bits, which defines their meaning for
//! hostile models; the host keeps real ones far from it.

use super::patch::{Patches, pair_index, pair_shift};
use super::{DepthwiseRow, Memory, Output, Sum};
use crate::fixed::saturate;
use crate::format::blocks::Blocks;
use crate::format::sparse::{DEPTH, Sparse};

/// Weights of one constant, read by element index.
pub trait Weights: Copy {
    /// `sum_i (input[i] - zero_point) * weight[start + i]`, wrapping.
    fn dot(self, start: usize, input: &[i8], zero_point: i16) -> i32;

    /// `acc[i] += (input[i] - zero_point) * weight[start + i]`, wrapping, over the shortest.
    fn accumulate(self, start: usize, input: &[i8], zero_point: i16, acc: &mut [i32]);

    /// Weight `index`; 0 beyond the end.
    fn get(self, index: usize) -> i8;

    /// All of them if they lie in bytes.
    fn as_bytes(&self) -> &[i8];
}

/// Weights of eight bits.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(pub &'a [i8]);

/// Weights of two to eight bits, element `i` in bits `i * bits ..` of a little-endian bit stream.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    /// The stream.
    pub bytes: &'a [u8],
    /// Width of one weight.
    pub bits: u8,
    /// Of asymmetric weights, else none.
    pub zero_points: &'a [i8],
    /// Consecutive weights that share a zero point; after the last zero point the first follows.
    pub run: usize,
}

/// Weights that [`Packed`] expands at a time, on the stack.
const TILE: usize = 64;

impl Weights for Bytes<'_> {
    #[inline(always)]
    fn dot(self, start: usize, input: &[i8], zero_point: i16) -> i32 {
        dot(self.0.get(start..).unwrap_or(&[]), input, zero_point)
    }

    #[inline(always)]
    fn accumulate(self, start: usize, input: &[i8], zero_point: i16, acc: &mut [i32]) {
        accumulate(self.0.get(start..).unwrap_or(&[]), input, zero_point, acc)
    }

    #[inline(always)]
    fn get(self, index: usize) -> i8 {
        self.0.get(index).copied().unwrap_or(0)
    }

    fn as_bytes(&self) -> &[i8] {
        self.0
    }
}

impl<'a> Packed<'a> {
    /// Symmetric weights.
    pub fn new(bytes: &'a [u8], bits: u8) -> Packed<'a> {
        Packed { bytes, bits, zero_points: &[], run: 1 }
    }

    /// Weight `index`; beyond the end 0, less a zero point.
    #[inline(always)]
    pub fn get(self, index: usize) -> i8 {
        self.stored(index).wrapping_sub(self.zero_point(index))
    }

    fn zero_point(self, index: usize) -> i8 {
        match (index.checked_div(self.run), self.zero_points.len()) {
            (_, 0) | (None, _) => 0,
            (Some(number), len) => self.zero_points.get(number % len).copied().unwrap_or(0),
        }
    }

    /// What is stored for weight `index`, sign-extended.
    #[inline(always)]
    fn stored(self, index: usize) -> i8 {
        let bits = (self.bits as usize).clamp(1, 8);
        let at = index * bits;
        let byte = |i: usize| self.bytes.get(i).copied().unwrap_or(0) as u16;
        let word = byte(at / 8) | byte(at / 8 + 1) << 8;
        ((word >> (at % 8)) as i8) << (8 - bits) >> (8 - bits)
    }

    #[inline(always)]
    fn tile(self, start: usize, len: usize) -> [i8; TILE] {
        let mut tile = [0; TILE];
        for (i, value) in tile.iter_mut().take(len).enumerate() {
            *value = self.stored(start + i);
        }
        if !self.zero_points.is_empty() {
            self.less_zero_points(start, tile.get_mut(..len).unwrap_or(&mut []));
        }
        tile
    }

    /// Takes the zero points of the weights from `start` on from what is stored.
    #[inline(never)]
    fn less_zero_points(self, start: usize, stored: &mut [i8]) {
        for (i, value) in stored.iter_mut().enumerate() {
            *value = value.wrapping_sub(self.zero_point(start + i));
        }
    }
}

impl Weights for Packed<'_> {
    fn dot(self, start: usize, input: &[i8], zero_point: i16) -> i32 {
        input.chunks(TILE).enumerate().fold(0i32, |acc, (i, chunk)| {
            acc.wrapping_add(dot(&self.tile(start + i * TILE, chunk.len()), chunk, zero_point))
        })
    }

    fn accumulate(self, start: usize, input: &[i8], zero_point: i16, acc: &mut [i32]) {
        for (i, (input, acc)) in input.chunks(TILE).zip(acc.chunks_mut(TILE)).enumerate() {
            accumulate(&self.tile(start + i * TILE, input.len()), input, zero_point, acc);
        }
    }

    fn get(self, index: usize) -> i8 {
        Packed::get(self, index)
    }

    fn as_bytes(&self) -> &[i8] {
        &[]
    }
}

#[inline(always)]
fn dot(weights: &[i8], input: &[i8], zero_point: i16) -> i32 {
    weights.iter().zip(input).fold(0i32, |acc, (&w, &q)| acc.wrapping_add(product(w, q, zero_point)))
}

#[inline(always)]
fn accumulate(weights: &[i8], input: &[i8], zero_point: i16, acc: &mut [i32]) {
    for ((acc, &w), &q) in acc.iter_mut().zip(weights).zip(input) {
        *acc = acc.wrapping_add(product(w, q, zero_point));
    }
}

/// `(q - zero_point) * w`; both factors fit 16 bits, which is what vector units multiply fastest.
#[inline(always)]
fn product(w: i8, q: i8, zero_point: i16) -> i32 {
    (q as i16).wrapping_sub(zero_point) as i32 * w as i32
}

/// Matrix in blocks times patches: `output[at[pixel] + row] = stage(bias[row] + sum_k patch[pixel][k] * weight[row][k])`, wrapping.
pub fn matrix<const USES: u64>(
    blocks: &Blocks<'_>,
    patches: &Patches<'_, USES>,
    pixels: usize,
    to: Output,
    output: &mut [i8],
    at: [usize; 3],
) {
    for row in 0..blocks.n() {
        let (bias, multiplier, shift) = blocks.stage(row);
        for (pixel, at) in at.into_iter().take(pixels).enumerate() {
            let sum = (0..blocks.k())
                .fold(bias, |acc, k| acc.wrapping_add(blocks.weight(row, k).wrapping_mul(patches.get(pixel, k))));
            if let Some(out) = output.get_mut(at + row) {
                *out = to.stage(sum, multiplier, shift);
            }
        }
    }
}

/// Block-sparse matrix times patches: [`matrix`] over the blocks that are stored, the others are skipped.
pub fn sparse<const USES: u64>(
    sparse: &Sparse<'_>,
    patches: &Patches<'_, USES>,
    pixels: usize,
    to: Output,
    output: &mut [i8],
    at: [usize; 3],
) {
    for (first, band) in (0..sparse.n()).step_by(sparse.rows().max(1)).zip(sparse.bands()) {
        for row in 0..sparse.rows().min(sparse.n() - first) {
            let (bias, multiplier, shift) = band.stage(row);
            for (pixel, at) in at.into_iter().take(pixels).enumerate() {
                let sum = band.blocks().fold(bias, |acc, (block, weights)| {
                    let weights = weights.get(DEPTH * row..).and_then(<[u8]>::first_chunk).unwrap_or(&[0; DEPTH]);
                    let products = weights.iter().zip(patches.four(pixel, block));
                    products.fold(acc, |acc, (&w, q)| acc.wrapping_add(w as i8 as i32 * q as i32))
                });
                if let Some(out) = output.get_mut(at + first + row) {
                    *out = to.stage(sum, multiplier, shift);
                }
            }
        }
    }
}

/// Matrix in blocks times windows: `output[i * pitch + row] = stage(bias[row] + sum_k activations[i * step + k] * weight[row][k])`, wrapping.
pub fn windows(blocks: &Blocks<'_>, activations: &[i8], step: usize, pitch: usize, to: Output, output: &mut [i8]) {
    for (i, out) in output.chunks_mut(pitch.max(1)).enumerate() {
        let window = activations.get(i * step..).unwrap_or(&[]);
        for (row, out) in out.iter_mut().enumerate().take(blocks.n()) {
            let (bias, multiplier, shift) = blocks.stage(row);
            let taps = window.iter().take(blocks.k()).enumerate();
            let sum = taps.fold(bias, |acc, (k, &q)| acc.wrapping_add(blocks.weight(row, k).wrapping_mul(q as i32)));
            *out = to.stage(sum, multiplier, shift);
        }
    }
}

/// `data[i] = data[i + by]`; the last `by` elements stay.
pub fn shift(data: &mut [i8], by: usize) {
    if by <= data.len() {
        data.copy_within(by.., 0);
    }
}

/// Copies runs of `len` elements apart: the `i`th goes to `to[i * step ..]`.
pub fn spread(from: &[i8], len: usize, to: &mut [i8], step: usize) {
    for (from, to) in from.chunks_exact(len.max(1)).zip(to.chunks_mut(step.max(1))) {
        to.iter_mut().zip(from).for_each(|(to, &q)| *to = q);
    }
}

/// Writes a run of activations into a patch of pairs and returns its sum.
pub fn expand(bits: u8, to: &mut [i16], pixels: usize, pixel: usize, k: usize, run: &[i8]) -> i32 {
    let mut sum = 0;
    for (k, &q) in (k..).zip(run) {
        if let Some(to) = to.get_mut(pair_index(pixels, pixel, k)) {
            *to = (q as i16) << pair_shift(bits, pixels, k);
        }
        sum += q as i32;
    }
    sum
}

/// Channels of a depthwise row that are accumulated together.
const LANES: usize = 32;

/// One row of a depthwise convolution: `output[x, c] = stage(bias[c] + sum ring[ky][x * stride_w + kx, c] * weight[ky, kx, c])`.
pub fn depthwise_row(r: &mut DepthwiseRow<'_>) {
    let DepthwiseRow { channels, kernel_h, kernel_w, .. } = *r;
    for x in 0..r.output.len() / channels.max(1) {
        for first in (0..channels).step_by(LANES) {
            let lanes = LANES.min(channels - first);
            let mut acc = [0i32; LANES];
            acc.iter_mut().zip(r.bias.get(first..).unwrap_or(&[])).for_each(|(acc, &bias)| *acc = bias);
            for ky in 0..kernel_h {
                let slot = (r.first + ky) % kernel_h * r.row;
                for kx in 0..kernel_w {
                    let at = slot + (x * r.stride_w + kx) * channels + first;
                    let run = r.ring.get(at..at + lanes).unwrap_or(&[]);
                    let tap = (ky * kernel_w + kx) * channels + first;
                    accumulate(r.weights.get(tap..tap + lanes).unwrap_or(&[]), run, 0, &mut acc);
                }
            }
            let out = r.output.get_mut(x * channels + first..).unwrap_or(&mut []);
            for (i, (out, &acc)) in out.iter_mut().zip(&acc).take(lanes).enumerate() {
                if let (Some(&multiplier), Some(&shift)) = (r.multiplier.get(first + i), r.shift.get(first + i)) {
                    *out = r.to.stage(acc, multiplier, shift);
                }
            }
        }
    }
}

/// Elements of two dense tensors, see [`Sum`].
#[inline(always)]
pub fn add(sum: &Sum, memory: Memory<'_>, rhs: &[i8]) {
    let one = |lhs: i8, rhs: i8| {
        let (lhs, rhs) = (lhs as i32, rhs as i32);
        let acc = lhs.wrapping_mul(sum.lhs_multiplier).wrapping_add(rhs.wrapping_mul(sum.rhs_multiplier));
        let q = acc.wrapping_add(sum.constant) >> sum.shift;
        saturate(q, sum.to.zero_point, sum.to.min, sum.to.max)
    };
    match memory {
        Memory::InPlace(data) => data.iter_mut().zip(rhs).for_each(|(out, &rhs)| *out = one(*out, rhs)),
        Memory::Apart(lhs, output) => {
            output.iter_mut().zip(lhs.iter().zip(rhs)).for_each(|(out, (&lhs, &rhs))| *out = one(lhs, rhs));
        }
    }
}

/// `out[i] = max(out[i], input[row * step + i])` over `rows` rows.
#[inline(always)]
pub fn max_rows(input: &[i8], step: usize, rows: usize, out: &mut [i8]) {
    for row in 0..rows {
        let row = input.get(row * step..).unwrap_or(&[]);
        out.iter_mut().zip(row).for_each(|(out, &q)| *out = (*out).max(q));
    }
}

/// `acc[i] += input[row * step + i]` over `rows` rows, wrapping.
#[inline(always)]
pub fn sum_rows(input: &[i8], step: usize, rows: usize, acc: &mut [i32]) {
    for row in 0..rows {
        let row = input.get(row * step..).unwrap_or(&[]);
        acc.iter_mut().zip(row).for_each(|(acc, &q)| *acc = acc.wrapping_add(q as i32));
    }
}
