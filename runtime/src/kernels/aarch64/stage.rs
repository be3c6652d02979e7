//! The output stage of four channels: what [`crate::kernels::lanes::stage_words`] are for. `SQDMULH` gives the high word with one bit more, `SHADD` adds the
//! doubled addend and drops that bit. (A multiplier of `i32::MIN`, which `SQDMULH` would saturate, has no such stage.)

use crate::kernels::Output;
use core::arch::aarch64::*;

/// See the module.
#[derive(Clone, Copy)]
pub struct Stage {
    /// What sums begin with.
    pub bias: int32x4_t,
    multiplier: int32x4_t,
    /// Rounding and zero point, doubled.
    addend: int32x4_t,
    /// Negative: to the right.
    shift: int32x4_t,
    doublings: int32x4_t,
}

impl Stage {
    /// Of four channels out of `channels`.
    ///
    /// # Safety
    /// Arrays of `channels` words lie at `at`; four are read of each.
    #[inline(always)]
    pub unsafe fn load(at: *const u8, channels: usize, zero_point: i32) -> Stage {
        // SAFETY: by this function's contract; NEON is enabled, here and in all methods.
        unsafe {
            let words = |array: usize| vld1q_s32(at.add(4 * channels * array).cast());
            let shift = words(2);
            Stage {
                bias: words(0),
                multiplier: words(1),
                addend: vshlq_s32(vdupq_n_s32(2 * zero_point + 1), shift),
                shift: vnegq_s32(shift),
                doublings: words(3),
            }
        }
    }

    /// Doubles a sum; it saturates where the product leaves int8 anyway.
    #[inline(always)]
    pub fn double(&self, sum: int32x4_t) -> int32x4_t {
        // SAFETY: see `load`.
        unsafe {
            let back = vnegq_s32(self.doublings);
            let (low, high) = (vshlq_s32(vdupq_n_s32(i32::MIN), back), vshlq_s32(vdupq_n_s32(i32::MAX), back));
            vshlq_s32(vminq_s32(vmaxq_s32(sum, low), high), self.doublings)
        }
    }

    /// A sum, doubled if need be, to an output of 32 bits.
    #[inline(always)]
    pub fn rescale(&self, sum: int32x4_t) -> int32x4_t {
        // SAFETY: see `load`.
        unsafe { vshlq_s32(vhaddq_s32(vqdmulhq_s32(sum, self.multiplier), self.addend), self.shift) }
    }
}

/// Four vectors saturated to bytes and clamped.
#[inline(always)]
pub fn narrow([a, b, c, d]: [int32x4_t; 4], to: Output) -> int8x16_t {
    // SAFETY: see `Stage::load`.
    unsafe {
        let (low, high) = (vqmovn_high_s32(vqmovn_s32(a), b), vqmovn_high_s32(vqmovn_s32(c), d));
        let bytes = vqmovn_high_s16(vqmovn_s16(low), high);
        vminq_s8(vmaxq_s8(bytes, vdupq_n_s8(to.min)), vdupq_n_s8(to.max))
    }
}
