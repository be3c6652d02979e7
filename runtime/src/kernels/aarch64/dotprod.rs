//! The dot product: `SDOT` adds four products of signed bytes to each of four sums; one of its operands may be one group of a register for all lanes, so
//! that activations need not be spread.

use super::matrix::Product;
use crate::kernels::lanes::Shape;
use core::arch::aarch64::*;
use core::arch::asm;

/// See [`Product`].
#[derive(Clone, Copy, Debug)]
pub struct DotProd;

// SAFETY: methods are called where the machine has the dot product; pointers are read as the trait says.
unsafe impl Product for DotProd {
    const SHAPE: Shape = super::SHAPE;

    #[inline(always)]
    unsafe fn group(from: *const u8) -> int32x4_t {
        // SAFETY: by the caller's contract.
        unsafe { vsetq_lane_s32::<0>(from.cast::<i32>().read_unaligned(), vdupq_n_s32(0)) }
    }

    #[inline(always)]
    unsafe fn chunk(from: *const u8) -> int32x4_t {
        // SAFETY: by the caller's contract.
        unsafe { vreinterpretq_s32_u8(vld1q_u8(from)) }
    }

    #[inline(always)]
    unsafe fn dot<const GROUP: i32>(mut acc: int32x4_t, chunk: int32x4_t, weights: int32x4_t) -> int32x4_t {
        // SAFETY: by the caller's contract.
        unsafe {
            asm!(".arch_extension dotprod", "sdot {acc:v}.4s, {w:v}.16b, {a:v}.4b[{group}]", acc = inout(vreg) acc,
                w = in(vreg) weights, a = in(vreg) chunk, group = const GROUP,
                options(pure, nomem, nostack, preserves_flags));
        }
        acc
    }
}
