//! NEON alone: `SMULL`, `SMLSL` and `SADALP` multiply sixteen bytes, exactly.
//!
//! Two products of bytes fit in 16 bits, but for `-128 * -128` twice. So the second is the one of the complement `!q`, between the same bounds, and is
//! subtracted: `a * v - !b * w = a * v + b * w + w`, between -32640 and 32640. The bias makes up for the last term ([`Shape::complements`]).
//!
//! A group of weights is `[two pairs][channel][two]`, a group of activations its two pairs (the second complemented), four times each.

use super::matrix::{Blocks, Product};
use crate::kernels::lanes::Shape;
use core::arch::aarch64::*;
use core::arch::asm;

/// See [`Product`].
#[derive(Clone, Copy, Debug)]
pub struct Neon;

/// Four groups with their second pairs complemented.
///
/// # Safety
/// That of [`Product`]; so in all functions.
#[inline(always)]
unsafe fn complement(chunk: int32x4_t) -> int32x4_t {
    // SAFETY: NEON is enabled.
    unsafe { veorq_s32(chunk, vdupq_n_s32(0xFFFF_0000u32 as i32)) }
}

/// Which bytes of a chunk are both pairs of group `GROUP` four times.
#[inline(always)]
unsafe fn pairs<const GROUP: i32>() -> uint8x16_t {
    const PAIRS: [u8; 16] = [0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3];
    // SAFETY: NEON is enabled, and an array of sixteen bytes is read.
    unsafe { vaddq_u8(vld1q_u8(PAIRS.as_ptr()), vdupq_n_u8(4 * GROUP as u8)) }
}

/// Four sums and the products of one group of a chunk by four of weights, step by step for all, so that none waits for the one before. (Not
/// `pure`, nor are the loads of weights: the compiler would prepare all groups first, in more registers than there are.)
#[inline(always)]
unsafe fn four(sums: &mut [int32x4_t; 4], chunk: int32x4_t, pairs: uint8x16_t, w: [int32x4_t; 4]) {
    // SAFETY: NEON is enabled.
    unsafe {
        asm!(
            "tbl {a:v}.16b, {{{chunk:v}.16b}}, {pairs:v}.16b",
            "smull {t0:v}.8h, {a:v}.8b, {w0:v}.8b",
            "smull {t1:v}.8h, {a:v}.8b, {w1:v}.8b",
            "smull {t2:v}.8h, {a:v}.8b, {w2:v}.8b",
            "smull {t3:v}.8h, {a:v}.8b, {w3:v}.8b",
            "smlsl2 {t0:v}.8h, {a:v}.16b, {w0:v}.16b",
            "smlsl2 {t1:v}.8h, {a:v}.16b, {w1:v}.16b",
            "smlsl2 {t2:v}.8h, {a:v}.16b, {w2:v}.16b",
            "smlsl2 {t3:v}.8h, {a:v}.16b, {w3:v}.16b",
            "sadalp {s0:v}.4s, {t0:v}.8h",
            "sadalp {s1:v}.4s, {t1:v}.8h",
            "sadalp {s2:v}.4s, {t2:v}.8h",
            "sadalp {s3:v}.4s, {t3:v}.8h",
            s0 = inout(vreg) sums[0], s1 = inout(vreg) sums[1], s2 = inout(vreg) sums[2], s3 = inout(vreg) sums[3],
            w0 = in(vreg) w[0], w1 = in(vreg) w[1], w2 = in(vreg) w[2], w3 = in(vreg) w[3],
            chunk = in(vreg) chunk, pairs = in(vreg) pairs, a = out(vreg) _,
            t0 = out(vreg) _, t1 = out(vreg) _, t2 = out(vreg) _, t3 = out(vreg) _,
            options(nomem, nostack, preserves_flags)
        );
    }
}

// SAFETY: NEON is enabled; pointers are read as the trait says.
unsafe impl Product for Neon {
    const SHAPE: Shape = Shape { row: 2, taps: 1, complements: true, ..super::SHAPE };

    #[inline(always)]
    unsafe fn chunk(from: *const u8) -> int32x4_t {
        // SAFETY: by the caller's contract.
        unsafe { complement(vreinterpretq_s32_u8(vld1q_u8(from))) }
    }

    #[inline(always)]
    unsafe fn group(from: *const u8) -> int32x4_t {
        // SAFETY: by the caller's contract.
        unsafe { complement(vsetq_lane_s32::<0>(from.cast::<i32>().read_unaligned(), vdupq_n_s32(0))) }
    }

    #[inline(always)]
    unsafe fn weights<const GROUP: i32, const R: usize, const P: usize>(blocks: Blocks<R>) -> [int32x4_t; R] {
        // SAFETY: by the caller's contract.
        unsafe {
            if P == 1 {
                return blocks.after(16 * GROUP as usize).load();
            }
            let mut weights = [vdupq_n_s32(0); R];
            for r in 0..R {
                asm!("ldr {w:q}, [{at}, {offset}]", w = out(vreg) weights[r], at = in(reg) blocks.0[r],
                    offset = const 16 * GROUP, options(readonly, nostack, preserves_flags));
            }
            weights
        }
    }

    #[inline(always)]
    unsafe fn dot<const GROUP: i32>(acc: int32x4_t, chunk: int32x4_t, weights: int32x4_t) -> int32x4_t {
        // SAFETY: NEON is enabled.
        unsafe {
            let a = vqtbl1q_s8(vreinterpretq_s8_s32(chunk), pairs::<GROUP>());
            let w = vreinterpretq_s8_s32(weights);
            vpadalq_s16(acc, vmlsl_high_s8(vmull_s8(vget_low_s8(a), vget_low_s8(w)), a, w))
        }
    }

    #[inline(always)]
    unsafe fn dots<const GROUP: i32, const R: usize, const P: usize>(
        sums: &mut [[int32x4_t; P]; R],
        chunks: &[int32x4_t; P],
        weights: [int32x4_t; R],
    ) {
        // SAFETY: by the caller's contract.
        unsafe {
            for p in 0..P {
                if R == 4 {
                    let mut quad = [sums[0][p], sums[1 % R][p], sums[2 % R][p], sums[3 % R][p]];
                    let weights = [weights[0], weights[1 % R], weights[2 % R], weights[3 % R]];
                    four(&mut quad, chunks[p], pairs::<GROUP>(), weights);
                    for r in 0..R {
                        sums[r][p] = quad[r % 4];
                    }
                } else {
                    for r in 0..R {
                        sums[r][p] = Self::dot::<GROUP>(sums[r][p], chunks[p], weights[r]);
                    }
                }
            }
        }
    }
}
