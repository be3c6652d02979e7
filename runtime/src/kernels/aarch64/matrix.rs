//! A matrix times windows of a map: tiles of up to four blocks of four channels by some pixels stay in registers.

use super::stage::{Stage, narrow};
use crate::kernels::lanes::{Matrix, Shape};
use core::arch::aarch64::*;

/// How a set multiplies.
///
/// # Safety
/// Methods may use instructions that the machine must have.
pub unsafe trait Product: Copy {
    /// How it wants weights.
    const SHAPE: Shape;
    /// Four groups of activations.
    unsafe fn chunk(from: *const u8) -> int32x4_t;
    /// A chunk of which only the first group is used.
    unsafe fn group(from: *const u8) -> int32x4_t;
    /// Group `GROUP` of each block.
    #[inline(always)]
    unsafe fn weights<const GROUP: i32, const R: usize, const P: usize>(blocks: Blocks<R>) -> [int32x4_t; R] {
        // SAFETY: by this function's contract.
        unsafe { blocks.after(16 * GROUP as usize).load() }
    }
    /// `acc +` the products of group `GROUP` of a chunk.
    unsafe fn dot<const GROUP: i32>(acc: int32x4_t, chunk: int32x4_t, weights: int32x4_t) -> int32x4_t;

    /// [`Product::dot`] of all chunks and blocks.
    #[inline(always)]
    unsafe fn dots<const GROUP: i32, const R: usize, const P: usize>(
        sums: &mut [[int32x4_t; P]; R],
        chunks: &[int32x4_t; P],
        weights: [int32x4_t; R],
    ) {
        // SAFETY: by this function's contract.
        unsafe {
            for p in 0..P {
                for r in 0..R {
                    sums[r][p] = Self::dot::<GROUP>(sums[r][p], chunks[p], weights[r]);
                }
            }
        }
    }

    /// Adds the products of windows: by chunks, then by groups. For one window, two sums of each lane hide the latency.
    #[inline(always)]
    unsafe fn multiply<const R: usize, const P: usize>(sums: &mut [[int32x4_t; P]; R], windows: &Windows<R, P>) {
        // SAFETY: by this function's contract; a chunk is read only where four groups are left.
        unsafe {
            let mut blocks = windows.blocks;
            let mut odd = [[vdupq_n_s32(0); P]; R];
            for run in 0..windows.runs {
                let (mut at, mut left) = (run * windows.run_step, windows.groups);
                let mut chunks = [vdupq_n_s32(0); P];
                while left >= 4 {
                    for p in 0..P {
                        chunks[p] = Self::chunk(windows.starts[p].add(at));
                    }
                    add_group::<Self, 0, R, P>(sums, &chunks, blocks);
                    add_group::<Self, 1, R, P>(if P == 1 { &mut odd } else { sums }, &chunks, blocks);
                    add_group::<Self, 2, R, P>(sums, &chunks, blocks);
                    add_group::<Self, 3, R, P>(if P == 1 { &mut odd } else { sums }, &chunks, blocks);
                    (at, blocks, left) = (at + 16, blocks.after(64), left - 4);
                }
                while left > 0 {
                    for p in 0..P {
                        chunks[p] = Self::group(windows.starts[p].add(at));
                    }
                    add_group::<Self, 0, R, P>(sums, &chunks, blocks);
                    (at, blocks, left) = (at + 4, blocks.after(16), left - 1);
                }
            }
            if P == 1 {
                for r in 0..R {
                    sums[r][0] = vaddq_s32(sums[r][0], odd[r][0]);
                }
            }
        }
    }
}

/// `P` windows of `runs` runs, `run_step` bytes apart, of `groups` groups; as many of weights in each of `R` blocks.
pub struct Windows<const R: usize, const P: usize> {
    /// First bytes of the windows.
    pub starts: [*const u8; P],
    /// Runs of each.
    pub runs: usize,
    /// Bytes between them.
    pub run_step: usize,
    /// Groups of each.
    pub groups: usize,
    /// Their weights.
    pub blocks: Blocks<R>,
}

/// Weights in `R` blocks.
#[derive(Clone, Copy)]
pub struct Blocks<const R: usize>(pub [*const u8; R]);

impl<const R: usize> Blocks<R> {
    /// What follows `bytes` later.
    #[inline(always)]
    pub fn after(self, bytes: usize) -> Blocks<R> {
        Blocks(self.0.map(|at| at.wrapping_add(bytes)))
    }

    /// A vector of each block.
    ///
    /// # Safety
    /// They can be read.
    #[inline(always)]
    pub unsafe fn load(self) -> [int32x4_t; R] {
        // SAFETY: by this function's contract; NEON is enabled.
        self.0.map(|at| unsafe { vreinterpretq_s32_u8(vld1q_u8(at)) })
    }
}

/// Adds the products of one group of a chunk, whose weights begin at `blocks`.
///
/// # Safety
/// That of [`Product`], and the group's weights can be read.
#[inline(always)]
unsafe fn add_group<S: Product, const GROUP: i32, const R: usize, const P: usize>(
    sums: &mut [[int32x4_t; P]; R],
    chunks: &[int32x4_t; P],
    blocks: Blocks<R>,
) {
    // SAFETY: by this function's contract.
    unsafe { S::dots::<GROUP, R, P>(sums, chunks, S::weights::<GROUP, R, P>(blocks)) }
}

/// See [`Matrix`]; false if a length is wrong. `P1`, `P2` and `P4` are the pixels at a time of one, two and four blocks.
///
/// # Safety
/// That of [`Product`].
pub unsafe fn matrix<S: Product, const P1: usize, const P2: usize, const P4: usize>(
    m: &mut Matrix<'_>,
    shape: Shape,
) -> bool {
    if !m.fits(shape) {
        return false;
    }
    // Windows that are equally far apart throughout are one row.
    if m.row_step == m.width * m.pixel_step {
        m.width = m.pixels;
    }
    let mut channel = 0;
    while channel < m.n {
        // SAFETY: `fits`; as many blocks begin at `channel` as there are channels left for.
        unsafe {
            let left = m.n - channel;
            let blocks = if left >= 16 { 4 } else { (left / 8 * 2).max(1) };
            match (blocks, m.pixels) {
                (4, 1) => column::<S, 4, 1>(m, shape, channel),
                (2, 1) => column::<S, 2, 1>(m, shape, channel),
                (1, 1) => column::<S, 1, 1>(m, shape, channel),
                (4, _) => column::<S, 4, P4>(m, shape, channel),
                (2, _) => column::<S, 2, P2>(m, shape, channel),
                _ => column::<S, 1, P1>(m, shape, channel),
            }
            channel += 4 * blocks;
        }
    }
    true
}

/// `R` blocks of channels for all pixels, `P` at a time.
///
/// # Safety
/// That of [`Product`], [`Matrix::fits`], and `R` blocks begin at `channel`, all their channels inside of `n` unless `R` is 1.
#[inline(always)]
unsafe fn column<S: Product, const R: usize, const P: usize>(m: &mut Matrix<'_>, shape: Shape, channel: usize) {
    let block_bytes = shape.block_bytes(m.runs, m.run);
    // SAFETY: a window is read in `runs` runs of whole groups from its start, whose end `fits` has compared with the map; stages and groups
    // lie in the `R` blocks; outputs are written for pixels below `pixels` and channels below `n`.
    unsafe {
        let block = m.weights.as_ptr().add(channel / 4 * block_bytes);
        let mut stages = [Stage::load(block, 4, m.to.zero_point); R];
        let mut blocks = Blocks([block.add(Shape::stage_bytes(4)); R]);
        for r in 1..R {
            stages[r] = Stage::load(block.add(r * block_bytes), 4, m.to.zero_point);
            blocks.0[r] = blocks.0[0].add(r * block_bytes);
        }
        let (mut x, mut row) = (0, m.map.as_ptr());
        let mut windows =
            Windows { starts: [row; P], runs: m.runs, run_step: m.run_step, groups: shape.groups(m.run), blocks };
        for first in (0..m.pixels).step_by(P) {
            let count = P.min(m.pixels - first);
            if count == P && x + P < m.width {
                for p in 0..P {
                    windows.starts[p] = row.add((x + p) * m.pixel_step);
                }
                x += P;
            } else {
                for p in 0..P {
                    // Places beyond the last pixel compute it again.
                    windows.starts[p] = row.add(x * m.pixel_step);
                    if first + p + 1 < m.pixels {
                        x += 1;
                        if x == m.width {
                            (x, row) = (0, row.add(m.row_step));
                        }
                    }
                }
            }
            let mut sums = [[vdupq_n_s32(0); P]; R];
            for r in 0..R {
                sums[r] = [stages[r].bias; P];
            }
            S::multiply(&mut sums, &windows);
            for r in 0..R {
                if m.doubles {
                    sums[r].iter_mut().for_each(|sum| *sum = stages[r].double(*sum));
                }
                sums[r].iter_mut().for_each(|sum| *sum = stages[r].rescale(*sum));
            }
            let out = m.output.as_mut_ptr().add(first * m.n + channel);
            write(&sums, m, count, m.n - channel, out);
        }
    }
}

/// Outputs of the first `count` pixels.
///
/// # Safety
/// They can be written at `out`, each with all channels of the blocks, or `left` if there is one block.
#[inline(always)]
unsafe fn write<const R: usize, const P: usize>(
    sums: &[[int32x4_t; P]; R],
    m: &Matrix<'_>,
    count: usize,
    left: usize,
    out: *mut i8,
) {
    for p in (0..P).step_by(4 / R) {
        let mut quad = [sums[0][p]; 4];
        for i in 0..4 {
            quad[i] = sums[i % R][(p + i / R).min(P - 1)];
        }
        let bytes = narrow(quad, m.to);
        // SAFETY: by this function's contract: pixels below `count`, each with the channels of its blocks or `left`.
        unsafe {
            let out = out.add(p * m.n);
            match R {
                4 if p < count => vst1q_s8(out, bytes),
                2 => {
                    let halves = vreinterpretq_s64_s8(bytes);
                    if p < count {
                        vst1q_lane_s64::<0>(out.cast(), halves);
                    }
                    if p + 1 < count {
                        vst1q_lane_s64::<1>(out.add(m.n).cast(), halves);
                    }
                }
                1 => {
                    let mut buffer = [0i8; 16];
                    vst1q_s8(buffer.as_mut_ptr(), bytes);
                    for i in 0..4.min(count.saturating_sub(p)) {
                        let (from, to) = (buffer.as_ptr().add(4 * i), out.add(i * m.n));
                        match left {
                            1 => to.write(*from),
                            2 => core::ptr::copy_nonoverlapping(from, to, 2),
                            3 => core::ptr::copy_nonoverlapping(from, to, 3),
                            _ => core::ptr::copy_nonoverlapping(from, to, 4),
                        }
                    }
                }
                _ => {}
            }
        }
    }
}
