//! The matrix product: `SMMLA` adds the products of two windows and two channels, eight bytes of each, to a register of four sums. Beside the matrix
//! kernel all is as with the dot product.
//!
//! Weights are packed `[eight activations][channel][eight]`, so that two registers hold four channels. The sums `[channel]` of two windows become two
//! registers `[window][channel]`, of the first and of the last two channels, and back, by exchanging halves.

use super::dotprod::DotProd;
use super::matrix::{Product, Windows, load_blocks};
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
/// The machine has the matrix product, and 32 bytes of weights can be read of `R` blocks at `at`.
#[inline(always)]
unsafe fn add_eight<const R: usize, const P: usize>(
    sums: &mut [[int32x4_t; P]; R],
    pairs: &[int32x4_t; P],
    at: *const u8,
    block_bytes: usize,
) {
    // SAFETY: by this function's contract.
    unsafe {
        for half in 0..2 {
            let weights = load_blocks::<R>(at.add(16 * half), block_bytes);
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
unsafe fn add_eight_of_one<const R: usize>(
    parts: &mut [[int32x4_t; 2]; R],
    eight: int32x4_t,
    at: *const u8,
    block_bytes: usize,
) {
    // SAFETY: by this function's contract.
    unsafe {
        for half in 0..2 {
            let weights = load_blocks::<R>(at.add(16 * half), block_bytes);
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
unsafe fn multiply_one<const R: usize, const P: usize>(sums: &mut [[int32x4_t; P]; R], window: &Windows<P>) {
    // SAFETY: by this function's contract.
    unsafe {
        let mut w = window.weights;
        let mut parts = [[vdupq_n_s32(0); 2]; R];
        for run in 0..window.runs {
            let (mut at, mut left) = (window.starts[0].add(run * window.run_step), window.groups);
            while left >= 4 {
                let [first, second] = halves_twice(I8mm::chunk(at));
                add_eight_of_one(&mut parts, first, w, window.block_bytes);
                add_eight_of_one(&mut parts, second, w.add(32), window.block_bytes);
                (at, w, left) = (at.add(16), w.add(64), left - 4);
            }
            if left > 0 {
                let eight = vreinterpretq_s32_s8(vcombine_s8(vld1_s8(at.cast()), vdup_n_s8(0)));
                add_eight_of_one(&mut parts, halves_twice(eight)[0], w, window.block_bytes);
                w = w.add(32);
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
    unsafe fn multiply<const R: usize, const P: usize>(sums: &mut [[int32x4_t; P]; R], windows: &Windows<P>) {
        // SAFETY: by the caller's contract; runs are whole groups of eight, and sixteen are read only where as many are left.
        unsafe {
            if P == 1 {
                return multiply_one(sums, windows);
            }
            exchange(sums);
            let mut w = windows.weights;
            for run in 0..windows.runs {
                let (mut at, mut left) = (run * windows.run_step, windows.groups);
                while left >= 4 {
                    let (mut first, mut second) = ([vdupq_n_s32(0); P], [vdupq_n_s32(0); P]);
                    for p in (0..P).step_by(2) {
                        let (a, b) = (windows.starts[p].add(at), windows.starts[p + 1].add(at));
                        [first[p], second[p]] = halves(Self::chunk(a), Self::chunk(b));
                    }
                    add_eight(sums, &first, w, windows.block_bytes);
                    add_eight(sums, &second, w.add(32), windows.block_bytes);
                    (at, w, left) = (at + 16, w.add(64), left - 4);
                }
                if left > 0 {
                    let mut pairs = [vdupq_n_s32(0); P];
                    for p in (0..P).step_by(2) {
                        let (a, b) = (windows.starts[p].add(at), windows.starts[p + 1].add(at));
                        pairs[p] = vreinterpretq_s32_s8(vcombine_s8(vld1_s8(a.cast()), vld1_s8(b.cast())));
                    }
                    add_eight(sums, &pairs, w, windows.block_bytes);
                    w = w.add(32);
                }
            }
            exchange(sums);
        }
    }
}
