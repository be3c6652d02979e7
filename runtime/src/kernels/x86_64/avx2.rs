//! AVX2: eight sums in a register. Its byte multiplication saturates, so activations are widened to 16 bits and `VPMADDWD` multiplies pairs. With
//! AVX-VNNI, `VPDPBUSD` multiplies bytes as on AVX-512.

use crate::format::op;
use crate::format::tensor::Port;
use crate::kernels::lanes::{self, Simd};
use crate::kernels::{Memory, Sum};
use core::arch::x86_64::*;

/// The instructions of AVX2, or with `VNNI` those of AVX-VNNI; see [`Simd`].
#[derive(Clone, Copy, Debug)]
pub struct Avx2<const VNNI: bool>;

// SAFETY: methods are called below functions that enable the features.
unsafe impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type V = __m256i;
    const LANES: usize = 8;
    const WIDE: bool = !VNNI;
    const OFFSET: i32 = if VNNI { 128 } else { 0 };

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m256i {
        // SAFETY: by the caller's contract.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store(v: __m256i, to: *mut u8) {
        // SAFETY: by the caller's contract.
        unsafe { _mm256_storeu_si256(to.cast(), v) }
    }
    #[inline(always)]
    unsafe fn group(from: *const u8) -> __m256i {
        // SAFETY: by the caller's contract.
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn splat(value: i32) -> __m256i {
        // SAFETY: the features are enabled, by the trait's contract; so in all methods.
        unsafe { _mm256_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see `splat`.
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn xor(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see `splat`.
        unsafe { _mm256_xor_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see `splat`.
        unsafe { _mm256_min_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see `splat`.
        unsafe { _mm256_max_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn shl(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see `splat`.
        unsafe { _mm256_sllv_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn sra(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see `splat`.
        unsafe { _mm256_srav_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn dot(acc: __m256i, activations: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: see `splat`.
        unsafe {
            if VNNI {
                _mm256_dpbusd_avx_epi32(acc, activations, weights)
            } else {
                _mm256_add_epi32(acc, _mm256_madd_epi16(activations, weights))
            }
        }
    }
    #[inline(always)]
    unsafe fn madd(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see `splat`.
        unsafe { _mm256_madd_epi16(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_high(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see `splat`. Odd lanes are moved down to be multiplied, the high words of even products too.
        unsafe {
            let even = _mm256_mul_epi32(a, b);
            let odd = _mm256_mul_epi32(_mm256_shuffle_epi32::<0xF5>(a), _mm256_shuffle_epi32::<0xF5>(b));
            _mm256_blend_epi32::<0xAA>(_mm256_shuffle_epi32::<0xF5>(even), odd)
        }
    }
    #[inline(always)]
    unsafe fn zip8<const HIGH: bool>(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see `splat`.
        unsafe { if HIGH { _mm256_unpackhi_epi8(a, b) } else { _mm256_unpacklo_epi8(a, b) } }
    }
    #[inline(always)]
    unsafe fn zip16<const HIGH: bool>(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see `splat`.
        unsafe { if HIGH { _mm256_unpackhi_epi16(a, b) } else { _mm256_unpacklo_epi16(a, b) } }
    }
    #[inline(always)]
    unsafe fn narrow([a, b, c, d]: [__m256i; 4]) -> __m256i {
        // SAFETY: see `splat`.
        unsafe { _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d)) }
    }
    #[inline(always)]
    unsafe fn in_order(v: __m256i) -> __m256i {
        // SAFETY: see `splat`.
        unsafe { _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)) }
    }
    #[inline(always)]
    unsafe fn in_channel_order(v: __m256i) -> __m256i {
        // SAFETY: see `splat`.
        unsafe { _mm256_permute4x64_epi64::<0b11_01_10_00>(v) }
    }
    #[inline(always)]
    unsafe fn clamp8(v: __m256i, min: i8, max: i8) -> __m256i {
        // SAFETY: see `splat`.
        unsafe { _mm256_min_epi8(_mm256_max_epi8(v, _mm256_set1_epi8(min)), _mm256_set1_epi8(max)) }
    }
}

/// AVX2.
pub mod plain {
    use super::*;
    functions!(Avx2<false>, [8, 4, 2], "avx2");
}

/// AVX-VNNI.
pub mod vnni {
    use super::*;
    functions!(Avx2<true>, [8, 4, 2], "avx2,avxvnni");
}
