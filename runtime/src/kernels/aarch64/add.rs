//! Additions, sixteen at a time: operands widened to 32 bits, multiplied and added as they stand; the zero point is added in 16 bits, saturating, which
//! changes nothing since it is far from their bounds ([`crate::format::tensor::Tensor::ZERO_POINTS`]).

use crate::kernels::{Memory, Sum};
use core::arch::aarch64::*;

const VECTOR: usize = 16;

/// See [`crate::kernels::generic::add`].
pub fn add(sum: &Sum, memory: Memory<'_>, rhs: &[i8]) {
    let (lhs, output, len): (*const i8, *mut i8, usize) = match memory {
        Memory::InPlace(data) => (data.as_ptr(), data.as_mut_ptr(), data.len().min(rhs.len())),
        Memory::Apart(lhs, output) => {
            let len = output.len().min(lhs.len()).min(rhs.len());
            (lhs.as_ptr(), output.as_mut_ptr(), len)
        }
    };
    let whole = len - len % VECTOR;
    // SAFETY: `len` elements of all three can be accessed; whole vectors below it, and the rest through buffers of a vector.
    unsafe {
        for at in (0..whole).step_by(VECTOR) {
            step(sum, lhs.add(at), rhs.as_ptr().add(at), output.add(at));
        }
        if whole < len {
            let mut buffers = [[0i8; VECTOR]; 3];
            core::ptr::copy_nonoverlapping(lhs.add(whole), buffers[0].as_mut_ptr(), len - whole);
            core::ptr::copy_nonoverlapping(rhs.as_ptr().add(whole), buffers[1].as_mut_ptr(), len - whole);
            let [a, b, c] = buffers.each_mut().map(|buffer| buffer.as_mut_ptr());
            step(sum, a, b, c);
            core::ptr::copy_nonoverlapping(c, output.add(whole), len - whole);
        }
    }
}

/// # Safety
/// A vector of bytes can be read at `lhs` and `rhs` and written at `out`.
#[inline(always)]
unsafe fn step(sum: &Sum, lhs: *const i8, rhs: *const i8, out: *mut i8) {
    // SAFETY: by this function's contract; NEON is enabled.
    unsafe {
        let (lhs, rhs) = (vld1q_s8(lhs), vld1q_s8(rhs));
        let low = eight(sum, vmovl_s8(vget_low_s8(lhs)), vmovl_s8(vget_low_s8(rhs)));
        let high = eight(sum, vmovl_high_s8(lhs), vmovl_high_s8(rhs));
        let bytes = vqmovn_high_s16(vqmovn_s16(low), high);
        vst1q_s8(out, vminq_s8(vmaxq_s8(bytes, vdupq_n_s8(sum.to.min)), vdupq_n_s8(sum.to.max)));
    }
}

/// # Safety
/// That of NEON.
#[inline(always)]
unsafe fn eight(sum: &Sum, lhs: int16x8_t, rhs: int16x8_t) -> int16x8_t {
    // SAFETY: NEON is enabled.
    unsafe {
        let four = |lhs: int32x4_t, rhs: int32x4_t| {
            let acc = vmlaq_n_s32(vdupq_n_s32(sum.constant), lhs, sum.lhs_multiplier);
            vshlq_s32(vmlaq_n_s32(acc, rhs, sum.rhs_multiplier), vdupq_n_s32(-(sum.shift as i32)))
        };
        let low = four(vmovl_s16(vget_low_s16(lhs)), vmovl_s16(vget_low_s16(rhs)));
        let high = four(vmovl_high_s16(lhs), vmovl_high_s16(rhs));
        vqaddq_s16(vqmovn_high_s32(vqmovn_s32(low), high), vdupq_n_s16(sum.to.zero_point as i16))
    }
}
