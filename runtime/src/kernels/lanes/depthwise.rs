//! Depthwise convolutions: a filter per channel, taps of neighbouring pixels interleaved into groups.

#![allow(unsafe_code, clippy::missing_safety_doc)]

use super::{Shape, Simd, clamped, load_stages};
use crate::kernels::Output;

/// A depthwise convolution over a map.
#[derive(Debug)]
pub struct Depthwise<'a> {
    /// The map, with slack.
    pub map: &'a [u8],
    /// Bytes of a row of the map, and from one tap to the next in a row.
    pub row: usize,
    #[allow(missing_docs)]
    pub pitch: usize,
    #[allow(missing_docs)]
    pub kernel_h: usize,
    #[allow(missing_docs)]
    pub kernel_w: usize,
    #[allow(missing_docs)]
    pub stride_h: usize,
    /// Rows of the output, elements of each.
    pub out_h: usize,
    #[allow(missing_docs)]
    pub out_row: usize,
    /// Vectors of channels; each has its own weights.
    pub vectors: usize,
    /// Positions in a row where a vector is computed, bytes of the map and elements of the output between them.
    pub positions: usize,
    #[allow(missing_docs)]
    pub map_step: usize,
    #[allow(missing_docs)]
    pub out_step: usize,
    /// Elements of the output that a position's vectors may fill.
    pub span: usize,
    /// Per vector: stages of its channels in the order of [`Shape::channel`], then for every kernel row and group four registers.
    pub weights: &'a [u8],
    /// Whether any channel's sum is doubled first.
    pub doubles: bool,
    /// Bounds.
    pub to: Output,
    /// `[out_h, out_row]`.
    pub output: &'a mut [i8],
}

impl Depthwise<'_> {
    /// Bytes of a vector's stages and weights.
    pub const fn vector_bytes(shape: Shape, kernel_h: usize, kernel_w: usize) -> usize {
        let taps = kernel_h * shape.padded_taps(kernel_w);
        Shape::stage_bytes(shape.vector()) + taps * shape.element() * shape.vector()
    }

    /// Whether all taps lie in the map, and weights and outputs are as long as they must be.
    pub fn fits(&self, shape: Shape) -> bool {
        if [self.kernel_h, self.kernel_w, self.out_h, self.vectors, self.positions].contains(&0) {
            return false;
        }
        let taps = shape.padded_taps(self.kernel_w);
        let last = ((self.out_h - 1) * self.stride_h + self.kernel_h - 1) * self.row
            + (self.positions - 1) * self.map_step
            + (taps - 1) * self.pitch
            + self.vectors * shape.vector() * shape.element();
        last <= self.map.len()
            && self.weights.len() == self.vectors * Depthwise::vector_bytes(shape, self.kernel_h, self.kernel_w)
            && self.output.len() == self.out_h * self.out_row
    }
}

/// Every register of a vector of channels gets the groups of its lanes by interleaving the taps, which are a pixel apart in the map; narrowing
/// restores the order of the channels. False if a length is wrong.
///
/// # Safety
/// That of [`Simd`].
#[inline(always)]
pub unsafe fn depthwise<S: Simd>(d: &mut Depthwise<'_>, shape: Shape) -> bool {
    if !d.fits(shape) {
        return false;
    }
    let groups = d.kernel_w.div_ceil(shape.depth());
    let vector_bytes = Depthwise::vector_bytes(shape, d.kernel_h, d.kernel_w);
    let element = shape.element();
    for vector in 0..d.vectors {
        // SAFETY: `fits` has compared the last element that is read of the map, the lengths of weights and output; an output is written for as many
        // bytes as are left of its row, at most.
        unsafe {
            let at = d.weights.as_ptr().add(vector * vector_bytes);
            let stages = load_stages::<S, 4>(at, 4 * S::LANES, shape.vector(), d.to.zero_point);
            let weights = at.add(Shape::stage_bytes(shape.vector()));
            let first = vector * shape.vector();
            for y in 0..d.out_h {
                let top = d.map.as_ptr().add(y * d.stride_h * d.row + first * element);
                let out = d.output.as_mut_ptr().cast::<u8>().add(y * d.out_row);
                for position in 0..d.positions {
                    // Where pixels lie side by side in a vector, the row ends the span.
                    let at = position * d.out_step + first;
                    let end = (position * d.out_step + d.span).min(d.out_row);
                    if at >= end {
                        continue;
                    }
                    let mut sums = [stages[0].bias, stages[1].bias, stages[2].bias, stages[3].bias];
                    let mut w = weights;
                    for ky in 0..d.kernel_h {
                        let mut tap = top.add(ky * d.row + position * d.map_step);
                        for _ in 0..groups {
                            let quads = interleaved::<S>(tap, d.pitch);
                            for r in 0..4 {
                                sums[r] = S::dot(sums[r], quads[r], S::load(w.add(4 * S::LANES * r)));
                            }
                            w = w.add(16 * S::LANES);
                            tap = tap.add(shape.depth() * d.pitch);
                        }
                    }
                    for r in 0..4 {
                        sums[r] = stages[r].rescale(sums[r], d.doubles);
                    }
                    let bytes = S::narrow(sums);
                    let bytes = clamped::<S>(if S::WIDE { S::in_channel_order(bytes) } else { bytes }, d.to);
                    if at + shape.vector() <= end {
                        S::store(bytes, out.add(at));
                    } else {
                        let mut buffer = [0u8; 64];
                        S::store(bytes, buffer.as_mut_ptr());
                        core::ptr::copy_nonoverlapping(buffer.as_ptr(), out.add(at), end - at);
                    }
                }
            }
        }
    }
    true
}

/// Groups of a vector of channels: the taps at `tap`, `pitch` bytes apart.
///
/// # Safety
/// [`Shape::depth`] taps of a vector of channels can be read.
#[inline(always)]
unsafe fn interleaved<S: Simd>(tap: *const u8, pitch: usize) -> [S::V; 4] {
    // SAFETY: by this function's contract.
    unsafe {
        if S::WIDE {
            let half = 4 * S::LANES;
            let (a, b) = (S::load(tap), S::load(tap.add(pitch)));
            let (c, d) = (S::load(tap.add(half)), S::load(tap.add(pitch + half)));
            [S::zip16::<false>(a, b), S::zip16::<true>(a, b), S::zip16::<false>(c, d), S::zip16::<true>(c, d)]
        } else {
            let (a, b) = (S::load(tap), S::load(tap.add(pitch)));
            let (c, d) = (S::load(tap.add(2 * pitch)), S::load(tap.add(3 * pitch)));
            let (low, high) = (S::zip8::<false>(a, b), S::zip8::<true>(a, b));
            let (next_low, next_high) = (S::zip8::<false>(c, d), S::zip8::<true>(c, d));
            [
                S::zip16::<false>(low, next_low),
                S::zip16::<true>(low, next_low),
                S::zip16::<false>(high, next_high),
                S::zip16::<true>(high, next_high),
            ]
        }
    }
}
