//! Inner loops. [`generic`] defines the meaning of every one; files of an instruction set stand beside it with the same names and the
//! same bytes. On a microcontroller the set is known when the crate is compiled, on a desktop it is looked up once.

#[cfg(pith_dsp)]
pub mod arm_dsp;
pub mod generic;
pub mod patch;

use crate::fixed::{requantize, saturate};

/// Zero point and bounds of an output.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Added after rescaling.
    pub zero_point: i32,
    /// Lowest value.
    pub min: i8,
    /// Highest value.
    pub max: i8,
}

impl Output {
    /// `acc` rescaled, moved and clamped.
    #[inline(always)]
    pub fn stage(self, acc: i32, multiplier: i32, shift: u8) -> i8 {
        saturate(requantize(acc, multiplier, shift), self.zero_point, self.min, self.max)
    }

    /// Whether the bounds are those of the type.
    pub fn is_full(self) -> bool {
        (self.min, self.max) == (i8::MIN, i8::MAX)
    }
}
