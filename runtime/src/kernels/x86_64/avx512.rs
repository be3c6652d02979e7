//! AVX-512 with VNNI: sixteen sums in a register, `VPDPBUSD` adds four products of unsigned by signed bytes to each.

use crate::format::op;
use crate::format::tensor::Port;
use crate::kernels::lanes::{self, Shape, Simd};
use crate::kernels::{Memory, Sum};
use core::arch::x86_64::*;

/// The instructions, see [`Simd`].
#[derive(Clone, Copy, Debug)]
pub struct Avx512;

/// Of vectors.
pub const SHAPE: Shape = Shape::of::<Avx512>();

// SAFETY: methods are called below functions that enable the features.
unsafe impl Simd for Avx512 {
    type V = __m512i;
    const LANES: usize = 16;
    const WIDE: bool = false;
    const OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512i {
        // SAFETY: by the caller's contract.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store(v: __m512i, to: *mut u8) {
        // SAFETY: by the caller's contract.
        unsafe { _mm512_storeu_si512(to.cast(), v) }
    }
    #[inline(always)]
    unsafe fn group(from: *const u8) -> __m512i {
        // SAFETY: by the caller's contract.
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn splat(value: i32) -> __m512i {
        // SAFETY: the features are enabled, by the trait's contract; so in all methods.
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see `splat`.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn xor(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see `splat`.
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see `splat`.
        unsafe { _mm512_min_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see `splat`.
        unsafe { _mm512_max_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn shl(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see `splat`.
        unsafe { _mm512_sllv_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn sra(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see `splat`.
        unsafe { _mm512_srav_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn dot(acc: __m512i, activations: __m512i, weights: __m512i) -> __m512i {
        // SAFETY: see `splat`.
        unsafe { _mm512_dpbusd_epi32(acc, activations, weights) }
    }
    #[inline(always)]
    unsafe fn madd(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see `splat`.
        unsafe { _mm512_madd_epi16(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_high(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see `splat`. Odd lanes are moved down to be multiplied, the high words of even products moved up.
        unsafe {
            let even = _mm512_mul_epi32(a, b);
            let odd = _mm512_mul_epi32(_mm512_shuffle_epi32::<0xF5>(a), _mm512_shuffle_epi32::<0xF5>(b));
            _mm512_mask_shuffle_epi32::<0xF5>(odd, 0x5555, even)
        }
    }
    #[inline(always)]
    unsafe fn zip8<const HIGH: bool>(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see `splat`.
        unsafe { if HIGH { _mm512_unpackhi_epi8(a, b) } else { _mm512_unpacklo_epi8(a, b) } }
    }
    #[inline(always)]
    unsafe fn zip16<const HIGH: bool>(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see `splat`.
        unsafe { if HIGH { _mm512_unpackhi_epi16(a, b) } else { _mm512_unpacklo_epi16(a, b) } }
    }
    #[inline(always)]
    unsafe fn narrow([a, b, c, d]: [__m512i; 4]) -> __m512i {
        // SAFETY: see `splat`.
        unsafe { _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d)) }
    }
    #[inline(always)]
    unsafe fn in_order(v: __m512i) -> __m512i {
        // SAFETY: see `splat`.
        unsafe {
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_epi32(order, v)
        }
    }
    #[inline(always)]
    unsafe fn in_channel_order(v: __m512i) -> __m512i {
        v
    }
    #[inline(always)]
    unsafe fn clamp8(v: __m512i, min: i8, max: i8) -> __m512i {
        // SAFETY: see `splat`.
        unsafe { _mm512_min_epi8(_mm512_max_epi8(v, _mm512_set1_epi8(min)), _mm512_set1_epi8(max)) }
    }
}

functions!(Avx512, [12, 10, 6], "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni");
