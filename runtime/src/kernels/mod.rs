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

/// One output row of a depthwise convolution, for [`depthwise_row`]. The borders of the ring's rows hold the input's zero point, which the
/// bias accounts for.
#[derive(Debug)]
pub struct DepthwiseRow<'a> {
    /// `kernel_h` rows of `row` elements, `[x, channel]`.
    pub ring: &'a [i8],
    /// Elements of a row of the ring.
    pub row: usize,
    /// Row of the ring that the filter's first row reads; the next ones follow, cyclically.
    pub first: usize,
    #[allow(missing_docs)]
    pub kernel_h: usize,
    #[allow(missing_docs)]
    pub kernel_w: usize,
    #[allow(missing_docs)]
    pub stride_w: usize,
    #[allow(missing_docs)]
    pub channels: usize,
    /// `[kernel_h, kernel_w, channel]`.
    pub weights: &'a [i8],
    /// Per channel, with the zero point folded in.
    pub bias: &'a [i32],
    /// Per channel.
    pub multiplier: &'a [i32],
    /// Per channel.
    pub shift: &'a [u8],
    /// Zero point and bounds.
    pub to: Output,
    /// `[x, channel]`.
    pub output: &'a mut [i8],
}

/// See [`generic::depthwise_row`].
pub fn depthwise_row(row: &mut DepthwiseRow<'_>) {
    generic::depthwise_row(row);
}
