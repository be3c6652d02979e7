//! The matrix product: `SMMLA` adds the products of two windows and two channels, eight bytes of each, to a register of four sums. Beside the matrix
//! kernel all is as with the dot product.
//!
//! Weights are packed `[eight activations][channel][eight]`, so that two registers hold four channels. The sums `[channel]` of two windows become two
//! registers `[window][channel]`, of the first and of the last two channels, and back, by exchanging halves.

use super::dotprod::DotProd;
use super::matrix::{Blocks, Product, Windows};
use super::sdot;
use crate::kernels::lanes::Shape;
use core::arch::aarch64::*;
use core::arch::asm;

/// See [`Product`].
#[derive(Clone, Copy, Debug)]
pub struct I8mm;

/// `[first halves, second halves]`.
#[inline(always)]
unsafe fn halves(a: int32x4_t, b: int32x4_t) -> [int32x4_t; 2] {
    // SAFETY: NEON is enabled.
    unsafe {
        let (a, b) = (vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b));
        [vreinterpretq_s32_s64(vzip1q_s64(a, b)), vreinterpretq_s32_s64(vzip2q_s64(a, b))]
    }
}

/// `acc + windows * channels`.
///
/// # Safety
/// The machine has the matrix product.
#[inline(always)]
unsafe fn smmla(mut acc: int32x4_t, windows: int32x4_t, channels: int32x4_t) -> int32x4_t {
    // SAFETY: by this function's contract.
    unsafe {
        asm!(".arch_extension i8mm", "smmla {acc:v}.4s, {a:v}.16b, {w:v}.16b", acc = inout(vreg) acc,
            a = in(vreg) windows, w = in(vreg) channels, options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

/// Two windows exchange halves with two registers of sums, for all sums.
#[inline(always)]
unsafe fn exchange<const R: usize, const P: usize>(sums: &mut [[int32x4_t; P]; R]) {
    // SAFETY: NEON is enabled.
    unsafe {
        for r in 0..R {
            for p in (0..P).step_by(2) {
                [sums[r][p], sums[r][p + 1]] = halves(sums[r][p], sums[r][p + 1]);
            }
        }
    }
}

/// Adds the products of eight activations, of two windows each in `pairs`.
///
/// # Safety
/// The machine has the matrix product, and 32 bytes of weights can be read of every block.
#[inline(always)]
unsafe fn add_eight<const R: usize, const P: usize>(
    sums: &mut [[int32x4_t; P]; R],
    pairs: &[int32x4_t; P],
    blocks: Blocks<R>,
) {
    // SAFETY: by this function's contract.
    unsafe {
        for half in 0..2 {
            let weights = blocks.after(16 * half).load();
            for p in (0..P).step_by(2) {
                for r in 0..R {
                    sums[r][p + half] = smmla(sums[r][p + half], pairs[p], weights[r]);
                }
            }
        }
    }
}

/// `[first half twice, second half twice]`.
#[inline(always)]
unsafe fn halves_twice(v: int32x4_t) -> [int32x4_t; 2] {
    // SAFETY: NEON is enabled.
    unsafe { halves(v, v) }
}

/// Adds the products of eight activations, twice in `eight`.
///
/// # Safety
/// That of [`add_eight`].
#[inline(always)]
unsafe fn add_eight_of_one<const R: usize>(parts: &mut [[int32x4_t; 2]; R], eight: int32x4_t, blocks: Blocks<R>) {
    // SAFETY: by this function's contract.
    unsafe {
        for half in 0..2 {
            let weights = blocks.after(16 * half).load();
            for r in 0..R {
                parts[r][half] = sdot(parts[r][half], eight, weights[r]);
            }
        }
    }
}

/// One window by the dot product: sums of both halves of eight activations side by side, added at the end.
///
/// # Safety
/// That of [`Product`]; runs are whole groups of eight.
#[inline(always)]
unsafe fn multiply_one<const R: usize, const P: usize>(sums: &mut [[int32x4_t; P]; R], window: &Windows<R, P>) {
    // SAFETY: by this function's contract.
    unsafe {
        let mut blocks = window.blocks;
        let mut parts = [[vdupq_n_s32(0); 2]; R];
        for run in 0..window.runs {
            let (mut at, mut left) = (window.starts[0].add(run * window.run_step), window.groups);
            while left >= 4 {
                let [first, second] = halves_twice(I8mm::chunk(at));
                add_eight_of_one(&mut parts, first, blocks);
                add_eight_of_one(&mut parts, second, blocks.after(32));
                (at, blocks, left) = (at.add(16), blocks.after(64), left - 4);
            }
            if left > 0 {
                let eight = vreinterpretq_s32_s8(vcombine_s8(vld1_s8(at.cast()), vdup_n_s8(0)));
                add_eight_of_one(&mut parts, halves_twice(eight)[0], blocks);
                blocks = blocks.after(32);
            }
        }
        for r in 0..R {
            sums[r][0] = vaddq_s32(sums[r][0], vpaddq_s32(parts[r][0], parts[r][1]));
        }
    }
}

// SAFETY: methods are called where the machine has the dot and the matrix product; pointers are read as the trait says.
unsafe impl Product for I8mm {
    const SHAPE: Shape = Shape { row: 8, ..super::SHAPE };

    #[inline(always)]
    unsafe fn group(from: *const u8) -> int32x4_t {
        // SAFETY: by the caller's contract.
        unsafe { DotProd::group(from) }
    }

    #[inline(always)]
    unsafe fn chunk(from: *const u8) -> int32x4_t {
        // SAFETY: by the caller's contract.
        unsafe { DotProd::chunk(from) }
    }

    #[inline(always)]
    unsafe fn dot<const GROUP: i32>(acc: int32x4_t, chunk: int32x4_t, weights: int32x4_t) -> int32x4_t {
        // SAFETY: by the caller's contract.
        unsafe { DotProd::dot::<GROUP>(acc, chunk, weights) }
    }

    /// Sixteen activations of every window at a time, then eight.
    #[inline(always)]
    unsafe fn multiply<const R: usize, const P: usize>(sums: &mut [[int32x4_t; P]; R], windows: &Windows<R, P>) {
        // SAFETY: by the caller's contract; runs are whole groups of eight, and sixteen are read only where as many are left.
        unsafe {
            if P == 1 {
                return multiply_one(sums, windows);
            }
            exchange(sums);
            let mut blocks = windows.blocks;
            for run in 0..windows.runs {
                let (mut at, mut left) = (run * windows.run_step, windows.groups);
                while left >= 4 {
                    let (mut first, mut second) = ([vdupq_n_s32(0); P], [vdupq_n_s32(0); P]);
                    for p in (0..P).step_by(2) {
                        let (a, b) = (windows.starts[p].add(at), windows.starts[p + 1].add(at));
                        [first[p], second[p]] = halves(Self::chunk(a), Self::chunk(b));
                    }
                    add_eight(sums, &first, blocks);
                    add_eight(sums, &second, blocks.after(32));
                    (at, blocks, left) = (at + 16, blocks.after(64), left - 4);
                }
                if left > 0 {
                    let mut pairs = [vdupq_n_s32(0); P];
                    for p in (0..P).step_by(2) {
                        let (a, b) = (windows.starts[p].add(at), windows.starts[p + 1].add(at));
                        pairs[p] = vreinterpretq_s32_s8(vcombine_s8(vld1_s8(a.cast()), vld1_s8(b.cast())));
                    }
                    add_eight(sums, &pairs, blocks);
                    blocks = blocks.after(32);
                }
            }
            exchange(sums);
        }
    }
}
