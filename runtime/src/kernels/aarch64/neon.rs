//! NEON alone: `SMULL`, `SMLSL` and `SADALP` multiply sixteen bytes, exactly.
//!
//! Two products of bytes fit in 16 bits, but for `-128 * -128` twice. So the second is the one of the complement `!q`, between the same bounds, and is
//! subtracted: `a * v - !b * w = a * v + b * w + w`, between -32640 and 32640. The bias makes up for the last term ([`Shape::complements`]).
//!
//! A group of weights is `[two pairs][channel][two]`, a group of activations its two pairs (the second complemented), four times each.

use super::matrix::Product;
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

/// Both pairs of group `GROUP` four times.
#[inline(always)]
unsafe fn spread<const GROUP: i32>(chunk: int32x4_t) -> int32x4_t {
    const PAIRS: [u8; 16] = [0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3];
    // SAFETY: NEON is enabled, and an array of sixteen bytes is read.
    unsafe {
        let which = vaddq_u8(vld1q_u8(PAIRS.as_ptr()), vdupq_n_u8(4 * GROUP as u8));
        vreinterpretq_s32_s8(vqtbl1q_s8(vreinterpretq_s8_s32(chunk), which))
    }
}

/// Four sums and the products of four groups, step by step for all, so that none waits for the one before.
#[inline(always)]
unsafe fn four(mut sums: [int32x4_t; 4], a: [int32x4_t; 4], w: [int32x4_t; 4]) -> [int32x4_t; 4] {
    // SAFETY: NEON is enabled.
    unsafe {
        asm!(
            "smull {t0:v}.8h, {a0:v}.8b, {w0:v}.8b",
            "smull {t1:v}.8h, {a1:v}.8b, {w1:v}.8b",
            "smull {t2:v}.8h, {a2:v}.8b, {w2:v}.8b",
            "smull {t3:v}.8h, {a3:v}.8b, {w3:v}.8b",
            "smlsl2 {t0:v}.8h, {a0:v}.16b, {w0:v}.16b",
            "smlsl2 {t1:v}.8h, {a1:v}.16b, {w1:v}.16b",
            "smlsl2 {t2:v}.8h, {a2:v}.16b, {w2:v}.16b",
            "smlsl2 {t3:v}.8h, {a3:v}.16b, {w3:v}.16b",
            "sadalp {s0:v}.4s, {t0:v}.8h",
            "sadalp {s1:v}.4s, {t1:v}.8h",
            "sadalp {s2:v}.4s, {t2:v}.8h",
            "sadalp {s3:v}.4s, {t3:v}.8h",
            s0 = inout(vreg) sums[0], s1 = inout(vreg) sums[1], s2 = inout(vreg) sums[2], s3 = inout(vreg) sums[3],
            a0 = in(vreg) a[0], a1 = in(vreg) a[1], a2 = in(vreg) a[2], a3 = in(vreg) a[3],
            w0 = in(vreg) w[0], w1 = in(vreg) w[1], w2 = in(vreg) w[2], w3 = in(vreg) w[3],
            t0 = out(vreg) _, t1 = out(vreg) _, t2 = out(vreg) _, t3 = out(vreg) _,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
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
        unsafe { complement(vdupq_n_s32(from.cast::<i32>().read_unaligned())) }
    }

    #[inline(always)]
    unsafe fn dot<const GROUP: i32>(acc: int32x4_t, chunk: int32x4_t, weights: int32x4_t) -> int32x4_t {
        // SAFETY: NEON is enabled.
        unsafe {
            let (a, w) = (vreinterpretq_s8_s32(spread::<GROUP>(chunk)), vreinterpretq_s8_s32(weights));
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
            if !(R * P).is_multiple_of(4) {
                for (r, p) in (0..R * P).map(|i| (i % R, i / R)) {
                    sums[r][p] = Self::dot::<GROUP>(sums[r][p], chunks[p], weights[r]);
                }
                return;
            }
            for first in (0..R * P).step_by(4) {
                let (mut s, mut a, mut w) = ([sums[0][0]; 4], [chunks[0]; 4], [weights[0]; 4]);
                for i in 0..4 {
                    let (r, p) = ((first + i) % R, (first + i) / R);
                    (s[i], a[i], w[i]) = (sums[r][p], spread::<GROUP>(chunks[p]), weights[r]);
                }
                s = four(s, a, w);
                for i in 0..4 {
                    sums[(first + i) % R][(first + i) / R] = s[i];
                }
            }
        }
    }
}
