//! Fixed-point rescaling: the only rounding in the project.
//!
//! A real factor `M` is a pair `(multiplier, shift)` with `M = multiplier / 2^shift`. A product is rounded **once**, half up
//! (towards plus infinity): `round(x) = floor(x + 1/2)`. For `shift >= 33` that is the high word of the 32 x 32 product,
//! one addition and one shift; no second rounding ever happens.

/// Smallest and largest shift of a [`requantize`] factor.
pub const SHIFT_RANGE: core::ops::RangeInclusive<u8> = 1..=62;

/// Largest absolute multiplier of [`rescale_sum`].
pub const SUM_MULTIPLIER_MAX: i32 = 1 << 21;

/// Smallest and largest shift of [`rescale_sum`].
pub const SUM_SHIFT_RANGE: core::ops::RangeInclusive<u8> = 1..=30;

/// `floor(acc * multiplier / 2^shift + 1/2)`, for `shift` in [`SHIFT_RANGE`] (others are brought into it), saturated to 32 bits.
#[inline(always)]
pub fn requantize(acc: i32, multiplier: i32, shift: u8) -> i32 {
    let shift = shift.clamp(1, 62);
    let rounded = (acc as i64 * multiplier as i64 + (1i64 << (shift - 1))) >> shift;
    rounded.clamp(i32::MIN as i64, i32::MAX as i64) as i32
}

/// When the high word of a product is enough: `floor(acc * m / 2^s + 1/2) + z` is `(high(acc * m) + r) >> (s - 32)` with
/// `r = (2 * z + 1) << (s - 33)`, because the low word cannot carry. That needs `s >= 33` and an `r` below 2^30, as the high word is. A smaller
/// `s` is brought to 33 by doubling `acc` with saturation; where that saturates, a multiplier of at least 2^30 takes the result beyond any
/// int8, as without.
#[derive(Clone, Copy, Debug)]
pub struct HighWord {
    rounding: i32,
    largest_shift: u8,
}

impl HighWord {
    /// For outputs with this zero point.
    pub fn new(zero_point: i32) -> HighWord {
        let rounding = 2 * zero_point as i64 + 1;
        // The largest `t` with `|rounding| << t < 2^30` is two less than the zeros before it in 32 bits.
        let zeros = rounding.unsigned_abs().leading_zeros() as u8;
        HighWord { rounding: rounding as i32, largest_shift: if zeros < 34 { 0 } else { zeros - 1 } }
    }

    /// Whether no doubling is needed either.
    #[inline(always)]
    pub fn serves_shift(self, shift: u8) -> bool {
        (33..=self.largest_shift).contains(&shift)
    }

    /// `floor(acc * multiplier / 2^shift + 1/2) + zero_point`, for a shift that needs no doubling.
    #[inline(always)]
    pub fn rescale(self, acc: i32, multiplier: i32, shift: u8) -> i32 {
        let high = ((acc as i64 * multiplier as i64) >> 32) as i32;
        high.wrapping_add(self.rounding.wrapping_shl(shift as u32 - 33)).wrapping_shr(shift as u32 - 32)
    }

    /// Whether it is enough for a factor.
    #[inline(always)]
    pub fn serves(self, multiplier: i32, shift: u8) -> bool {
        let doubles = || (25..=32).contains(&shift) && (multiplier == 0 || multiplier.unsigned_abs() >= 1 << 30);
        self.serves_shift(shift) || doubles()
    }
}

/// `floor((lhs * lhs_multiplier + rhs * rhs_multiplier) / 2^shift + 1/2)` in 32 bits: `lhs` and `rhs` are differences of two int8, multipliers at most
/// [`SUM_MULTIPLIER_MAX`], so nothing overflows (out-of-range arguments wrap).
#[inline(always)]
pub fn rescale_sum(lhs: i32, lhs_multiplier: i32, rhs: i32, rhs_multiplier: i32, shift: u8) -> i32 {
    let shift = shift.clamp(1, 30);
    let sum = lhs.wrapping_mul(lhs_multiplier).wrapping_add(rhs.wrapping_mul(rhs_multiplier));
    sum.wrapping_add(1 << (shift - 1)) >> shift
}

/// `zero_point + q`, clamped to `min ..= max`, which must be ordered.
#[inline(always)]
pub fn saturate(q: i32, zero_point: i32, min: i8, max: i8) -> i8 {
    q.saturating_add(zero_point).max(min as i32).min(max as i32) as i8
}
