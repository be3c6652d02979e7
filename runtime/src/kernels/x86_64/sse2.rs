//! SSE2, which every x86-64 has: four sums in a register, activations of 16 bits. What it lacks (signed high words, shifts by lane, 32-bit minimum) is made of
//! what it has.

use crate::format::op;
use crate::format::tensor::Port;
use crate::kernels::lanes::{self, Simd};
use crate::kernels::{Memory, Sum};
use core::arch::x86_64::*;

/// The instructions, see [`Simd`].
#[derive(Clone, Copy, Debug)]
pub struct Sse2;

/// Lane `LANE` of every shift count shifts all lanes; `shift` is one of the instructions that take one count.
macro_rules! by_lane {
    ($a:ident, $b:ident, $shift:ident) => {{
        let count = |v: __m128i| _mm_and_si128(v, _mm_set_epi64x(0, 0xFF));
        let first = $shift($a, count($b));
        let second = $shift($a, count(_mm_srli_si128::<4>($b)));
        let third = $shift($a, count(_mm_srli_si128::<8>($b)));
        let fourth = $shift($a, count(_mm_srli_si128::<12>($b)));
        let low = _mm_unpacklo_epi64(first, _mm_unpackhi_epi64(third, third));
        let high = _mm_unpacklo_epi64(second, _mm_unpackhi_epi64(fourth, fourth));
        let even = _mm_set1_epi64x(0xFFFF_FFFF);
        _mm_or_si128(_mm_and_si128(even, low), _mm_andnot_si128(even, high))
    }};
}

// SAFETY: every x86-64 has SSE2; pointers are read and written as the trait says.
unsafe impl Simd for Sse2 {
    type V = __m128i;
    const LANES: usize = 4;
    const WIDE: bool = true;
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m128i {
        // SAFETY: by the caller's contract.
        unsafe { _mm_loadu_si128(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store(v: __m128i, to: *mut u8) {
        // SAFETY: by the caller's contract.
        unsafe { _mm_storeu_si128(to.cast(), v) }
    }
    #[inline(always)]
    unsafe fn group(from: *const u8) -> __m128i {
        // SAFETY: by the caller's contract.
        unsafe { _mm_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn splat(value: i32) -> __m128i {
        // SAFETY: every x86-64 has SSE2; so in all methods.
        unsafe { _mm_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn add(a: __m128i, b: __m128i) -> __m128i {
        // SAFETY: see `splat`.
        unsafe { _mm_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn xor(a: __m128i, b: __m128i) -> __m128i {
        // SAFETY: see `splat`.
        unsafe { _mm_xor_si128(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m128i, b: __m128i) -> __m128i {
        // SAFETY: see `splat`.
        unsafe {
            let greater = _mm_cmpgt_epi32(a, b);
            _mm_or_si128(_mm_and_si128(greater, b), _mm_andnot_si128(greater, a))
        }
    }
    #[inline(always)]
    unsafe fn max(a: __m128i, b: __m128i) -> __m128i {
        // SAFETY: see `splat`.
        unsafe {
            let greater = _mm_cmpgt_epi32(a, b);
            _mm_or_si128(_mm_and_si128(greater, a), _mm_andnot_si128(greater, b))
        }
    }
    #[inline(always)]
    unsafe fn shl(a: __m128i, b: __m128i) -> __m128i {
        // SAFETY: see `splat`.
        unsafe { by_lane!(a, b, _mm_sll_epi32) }
    }
    #[inline(always)]
    unsafe fn sra(a: __m128i, b: __m128i) -> __m128i {
        // SAFETY: see `splat`.
        unsafe { by_lane!(a, b, _mm_sra_epi32) }
    }
    #[inline(always)]
    unsafe fn dot(acc: __m128i, activations: __m128i, weights: __m128i) -> __m128i {
        // SAFETY: see `splat`.
        unsafe { _mm_add_epi32(acc, _mm_madd_epi16(activations, weights)) }
    }
    #[inline(always)]
    unsafe fn madd(a: __m128i, b: __m128i) -> __m128i {
        // SAFETY: see `splat`.
        unsafe { _mm_madd_epi16(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_high(a: __m128i, b: __m128i) -> __m128i {
        // SAFETY: see `splat`. The signed high word is the unsigned one less `b` where `a` is negative and less `a` where `b` is.
        unsafe {
            let even = _mm_srli_epi64::<32>(_mm_mul_epu32(a, b));
            let odd = _mm_mul_epu32(_mm_srli_epi64::<32>(a), _mm_srli_epi64::<32>(b));
            let high = _mm_or_si128(even, _mm_and_si128(odd, _mm_set1_epi64x(0xFFFF_FFFF << 32)));
            let too_much =
                _mm_add_epi32(_mm_and_si128(_mm_srai_epi32::<31>(a), b), _mm_and_si128(_mm_srai_epi32::<31>(b), a));
            _mm_sub_epi32(high, too_much)
        }
    }
    #[inline(always)]
    unsafe fn zip8<const HIGH: bool>(a: __m128i, b: __m128i) -> __m128i {
        // SAFETY: see `splat`.
        unsafe { if HIGH { _mm_unpackhi_epi8(a, b) } else { _mm_unpacklo_epi8(a, b) } }
    }
    #[inline(always)]
    unsafe fn zip16<const HIGH: bool>(a: __m128i, b: __m128i) -> __m128i {
        // SAFETY: see `splat`.
        unsafe { if HIGH { _mm_unpackhi_epi16(a, b) } else { _mm_unpacklo_epi16(a, b) } }
    }
    #[inline(always)]
    unsafe fn narrow([a, b, c, d]: [__m128i; 4]) -> __m128i {
        // SAFETY: see `splat`.
        unsafe { _mm_packs_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d)) }
    }
    #[inline(always)]
    unsafe fn in_order(v: __m128i) -> __m128i {
        v
    }
    #[inline(always)]
    unsafe fn in_channel_order(v: __m128i) -> __m128i {
        v
    }
    #[inline(always)]
    unsafe fn clamp8(v: __m128i, min: i8, max: i8) -> __m128i {
        // SAFETY: see `splat`. Bytes are compared unsigned.
        unsafe {
            let sign = _mm_set1_epi8(i8::MIN);
            let (min, max) = (_mm_set1_epi8(min ^ i8::MIN), _mm_set1_epi8(max ^ i8::MIN));
            _mm_xor_si128(_mm_min_epu8(_mm_max_epu8(_mm_xor_si128(v, sign), min), max), sign)
        }
    }
}

functions!(Sse2, [8, 4, 2], "sse2");
