//! A matrix of packed weights times windows of a map: convolutions and linear layers.
//!
//! ```text
//! for blocks of channels (four at a time, then two, then one)
//!     for tiles of pixels
//!         sums[block][pixel] = bias
//!         for runs, for groups:  sums[block][pixel] += group of the pixel (broadcast) * group of the channels
//!         outputs in their order: pixels, and within one its blocks
//! ```

#![allow(unsafe_code, clippy::missing_safety_doc)]

use super::{Shape, Simd, Stage, clamped, load_stages};
use crate::kernels::Output;

/// A matrix of packed weights times windows of a map.
#[derive(Debug)]
pub struct Matrix<'a> {
    /// The map, with slack.
    pub map: &'a [u8],
    /// Windows: how many, in rows of how many.
    pub pixels: usize,
    #[allow(missing_docs)]
    pub width: usize,
    /// Bytes from one row of windows to the next, and from one window to the next.
    pub row_step: usize,
    #[allow(missing_docs)]
    pub pixel_step: usize,
    /// Runs of a window, bytes between them, activations in each.
    pub runs: usize,
    #[allow(missing_docs)]
    pub run_step: usize,
    #[allow(missing_docs)]
    pub run: usize,
    /// Blocks of [`Shape::block_bytes`].
    pub weights: &'a [u8],
    /// Output channels.
    pub n: usize,
    /// Whether any channel's sum is doubled first.
    pub doubles: bool,
    /// Bounds.
    pub to: Output,
    /// `[pixel, n]`.
    pub output: &'a mut [i8],
}

impl Matrix<'_> {
    /// Whether all windows lie in the map, and weights and outputs are as long as they must be.
    pub fn fits(&self, shape: Shape) -> bool {
        if self.pixels == 0 || self.width == 0 || self.n == 0 || self.runs == 0 || self.run == 0 {
            return false;
        }
        let last_row = (self.pixels - 1) / self.width;
        let last = last_row * self.row_step + (self.width - 1).min(self.pixels - 1) * self.pixel_step;
        let end = last + (self.runs - 1) * self.run_step + 4 * shape.groups(self.run);
        end <= self.map.len()
            && self.weights.len() == self.n.div_ceil(shape.lanes) * shape.block_bytes(self.runs, self.run)
            && self.output.len() == self.pixels * self.n
    }
}

/// See [`Matrix`]; false if a length is wrong.
///
/// # Safety
/// That of [`Simd`].
#[inline(always)]
pub unsafe fn matrix<S: Simd, const P1: usize, const P2: usize, const P4: usize>(
    m: &mut Matrix<'_>,
    shape: Shape,
) -> bool {
    if !m.fits(shape) {
        return false;
    }
    let mut channel = 0;
    while channel < m.n {
        // SAFETY: `fits`; `R` blocks from `channel` on are read only where as many begin before `n`, and channels below `n` written.
        unsafe {
            let left = m.n - channel;
            if m.pixels == 1 && left > 3 * S::LANES {
                single::<S, 4, 2>(m, shape, channel);
                channel += 4 * S::LANES;
            } else if m.pixels == 1 {
                single::<S, 1, 8>(m, shape, channel);
                channel += S::LANES;
            } else if left >= 4 * S::LANES {
                column::<S, 4, P4>(m, shape, channel);
                channel += 4 * S::LANES;
            } else if left >= 2 * S::LANES {
                column::<S, 2, P2>(m, shape, channel);
                channel += 2 * S::LANES;
            } else {
                column::<S, 1, P1>(m, shape, channel);
                channel += S::LANES;
            }
        }
    }
    true
}

/// `R` blocks of channels for all pixels, `P` at a time.
///
/// # Safety
/// [`Matrix::fits`], and `R` blocks begin at `channel`, all their channels inside of `n` unless `R` is 1.
#[inline(always)]
unsafe fn column<S: Simd, const R: usize, const P: usize>(m: &mut Matrix<'_>, shape: Shape, channel: usize) {
    // SAFETY: a window is read in `runs` runs of whole groups from its start, whose end `fits` has compared with the map; stages and groups
    // lie in the `R` blocks; outputs are written for pixels below `pixels` and channels below `n`.
    unsafe {
        let block_bytes = shape.block_bytes(m.runs, m.run);
        let blocks = m.weights.as_ptr().add(channel / S::LANES * block_bytes);
        let stages = load_stages::<S, R>(blocks, block_bytes, S::LANES, m.to.zero_point);
        let weights = blocks.add(Shape::stage_bytes(S::LANES));
        let groups = shape.groups(m.run);
        let map = m.map.as_ptr();
        let (mut x, mut row) = (0, 0);
        let mut first = 0;
        while first < m.pixels {
            let count = P.min(m.pixels - first);
            let mut start = map.add(row + x * m.pixel_step);
            let mut starts = [start; P];
            for p in 0..P {
                starts[p] = start;
                // Places beyond the last pixel compute it again.
                if p + 1 < count {
                    x += 1;
                    start = start.add(m.pixel_step);
                    if x == m.width {
                        (x, row) = (0, row + m.row_step);
                        start = map.add(row);
                    }
                }
            }
            x += 1;
            if x == m.width {
                (x, row) = (0, row + m.row_step);
            }
            let mut sums = [[stages[0].bias; P]; R];
            for r in 0..R {
                sums[r] = [stages[r].bias; P];
            }
            let mut w = weights;
            for run in 0..m.runs {
                let mut at = run * m.run_step;
                for _ in 0..groups {
                    let mut weight = [S::load(w); R];
                    for r in 1..R {
                        weight[r] = S::load(w.add(r * block_bytes));
                    }
                    for p in 0..P {
                        let activations = S::group(starts[p].add(at));
                        for r in 0..R {
                            sums[r][p] = S::dot(sums[r][p], activations, weight[r]);
                        }
                    }
                    w = w.add(4 * S::LANES);
                    at += 4;
                }
            }
            let sums = Registers::<S, R, P> { sums, stages, doubles: m.doubles };
            let out = m.output.as_mut_ptr().cast::<u8>().add(first * m.n + channel);
            let to = Destination { out, n: m.n, left: m.n - channel, to: m.to };
            if count == P {
                // Unrolled by hand, so that sums stay in registers.
                const { assert!((P * R).is_multiple_of(4) && P * R <= 24) };
                to.write_quad::<S, _, R>(0, P, P, &sums);
                if P * R > 4 {
                    to.write_quad::<S, _, R>(4 / R, P, P, &sums);
                }
                if P * R > 8 {
                    to.write_quad::<S, _, R>(8 / R, P, P, &sums);
                }
                if P * R > 12 {
                    to.write_quad::<S, _, R>(12 / R, P, P, &sums);
                }
                if P * R > 16 {
                    to.write_quad::<S, _, R>(16 / R, P, P, &sums);
                }
                if P * R > 20 {
                    to.write_quad::<S, _, R>(20 / R, P, P, &sums);
                }
            } else {
                to.write::<S, _, R>(P, count, &sums);
            }
            first += count;
        }
    }
}

/// Sums of some pixels times `R` blocks, rescaled one by one. (Methods, because closures are not inlined where their features are enabled.)
pub(in crate::kernels) trait Rescaled<S: Simd> {
    /// Outputs of 32 bits.
    ///
    /// # Safety
    /// That of [`Simd`].
    unsafe fn at(&self, pixel: usize, block: usize) -> S::V;
}

struct Registers<S: Simd, const R: usize, const P: usize> {
    sums: [[S::V; P]; R],
    stages: [Stage<S>; R],
    doubles: bool,
}

impl<S: Simd, const R: usize, const P: usize> Rescaled<S> for Registers<S, R, P> {
    #[inline(always)]
    unsafe fn at(&self, pixel: usize, block: usize) -> S::V {
        // SAFETY: by this function's contract.
        unsafe { self.stages[block].rescale(self.sums[block][pixel], self.doubles) }
    }
}

/// Where outputs go.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Destination {
    /// The first pixel's.
    pub out: *mut u8,
    /// From one pixel to the next.
    pub n: usize,
    /// Channels that are inside.
    pub left: usize,
    /// Bounds.
    pub to: Output,
}

impl Destination {
    /// Writes outputs of `R` blocks for the first `count` of `pixels`.
    ///
    /// # Safety
    /// That of [`Simd`]; outputs of `count` pixels can be written, as many as there are channels in the blocks or `left`.
    #[inline(always)]
    pub unsafe fn write<S: Simd, T: Rescaled<S>, const R: usize>(self, pixels: usize, count: usize, sums: &T) {
        for pixel in (0..count).step_by(4 / R) {
            // SAFETY: by this function's contract.
            unsafe { self.write_quad::<S, T, R>(pixel, pixels, count, sums) };
        }
    }

    /// Four vectors of outputs, those of `pixel` and what follows it.
    ///
    /// # Safety
    /// That of [`Destination::write`].
    #[inline(always)]
    unsafe fn write_quad<S: Simd, T: Rescaled<S>, const R: usize>(
        self,
        pixel: usize,
        pixels: usize,
        count: usize,
        sums: &T,
    ) {
        let part = R * S::LANES;
        // SAFETY: whole vectors are stored where their pixels lie together, else each pixel's part, at most `left`.
        unsafe {
            let mut quad = [sums.at(pixel, 0); 4];
            for i in 1..4 {
                quad[i] = sums.at((pixel + i / R).min(pixels - 1), i % R);
            }
            let bytes = clamped::<S>(S::in_order(S::narrow(quad)), self.to);
            let together = self.n == part || R == 4 && self.left >= part;
            if together && pixel + 4 / R <= count {
                S::store(bytes, self.out.add(pixel * self.n));
            } else {
                let mut buffer = [0u8; 64];
                S::store(bytes, buffer.as_mut_ptr());
                for j in 0..(4 / R).min(count - pixel) {
                    let from = buffer.as_ptr().add(j * part);
                    let to = self.out.add((pixel + j) * self.n);
                    if self.left >= part {
                        core::ptr::copy_nonoverlapping(from, to, part);
                    } else {
                        copy_short(from, to, self.left);
                    }
                }
            }
        }
    }
}

/// Copies at most 64 bytes, most often 8 to 15, without a call.
///
/// # Safety
/// `len` bytes can be read and written.
#[inline(always)]
unsafe fn copy_short(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: both halves, which may overlap, lie in `len` bytes.
    unsafe {
        match len {
            8..16 => {
                core::ptr::copy_nonoverlapping(from, to, 8);
                core::ptr::copy_nonoverlapping(from.add(len - 8), to.add(len - 8), 8);
            }
            _ => core::ptr::copy_nonoverlapping(from, to, len),
        }
    }
}

/// `R` blocks of channels for one pixel: weights are read once, so they set the pace; eight sums hide the latency.
///
/// # Safety
/// [`Matrix::fits`], and `R` blocks begin at `channel`; only the last may have channels beyond `n`.
#[inline(always)]
unsafe fn single<S: Simd, const R: usize, const UNROLL: usize>(m: &mut Matrix<'_>, shape: Shape, channel: usize) {
    // SAFETY: as in `column`.
    unsafe {
        let block_bytes = shape.block_bytes(m.runs, m.run);
        let block = m.weights.as_ptr().add(channel / S::LANES * block_bytes);
        let stages = load_stages::<S, R>(block, block_bytes, S::LANES, m.to.zero_point);
        let mut w = block.add(Shape::stage_bytes(S::LANES));
        let groups = shape.groups(m.run);
        let mut sums = [[S::splat(0); UNROLL]; R];
        for run in 0..m.runs {
            let mut at = m.map.as_ptr().add(run * m.run_step);
            let mut left = groups;
            while left >= UNROLL {
                for j in 0..UNROLL {
                    let activations = S::group(at.add(4 * j));
                    for r in 0..R {
                        let weights = S::load(w.add(r * block_bytes + 4 * S::LANES * j));
                        sums[r][j] = S::dot(sums[r][j], activations, weights);
                    }
                }
                (at, w, left) = (at.add(4 * UNROLL), w.add(4 * S::LANES * UNROLL), left - UNROLL);
            }
            while left > 0 {
                let activations = S::group(at);
                for r in 0..R {
                    sums[r][0] = S::dot(sums[r][0], activations, S::load(w.add(r * block_bytes)));
                }
                (at, w, left) = (at.add(4), w.add(4 * S::LANES), left - 1);
            }
        }
        let mut quad = [sums[0][0]; 4];
        for r in 0..R {
            let mut sum = stages[r].bias;
            for j in 0..UNROLL {
                sum = S::add(sum, sums[r][j]);
            }
            quad[r] = stages[r].rescale(sum, m.doubles);
        }
        let bytes = clamped::<S>(S::in_order(S::narrow(quad)), m.to);
        let out = m.output.as_mut_ptr().cast::<u8>().add(channel);
        let len = (R * S::LANES).min(m.n - channel);
        if len == 4 * S::LANES {
            S::store(bytes, out);
        } else {
            let mut buffer = [0u8; 64];
            S::store(bytes, buffer.as_mut_ptr());
            copy_short(buffer.as_ptr(), out, len);
        }
    }
}
