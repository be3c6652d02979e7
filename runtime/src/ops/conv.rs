//! Convolutions over `[h, w, c]` maps.

use super::Stage;
use crate::format::op;
use crate::kernels::generic::Weights;
use core::ops::Range;

/// One axis of a window: kernel taps that fall inside of the input.
#[derive(Clone, Copy)]
pub(crate) struct Axis {
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) dilation: usize,
    pub(crate) pad: usize,
    pub(crate) input: usize,
}

impl Axis {
    fn new(kernel: u16, stride: u16, dilation: u16, pad: u16, input: u16) -> Axis {
        Axis {
            kernel: kernel.into(),
            stride: stride.into(),
            dilation: dilation.into(),
            pad: pad.into(),
            input: input.into(),
        }
    }

    /// Rows and columns of a pool.
    pub(crate) fn of_pool(p: &op::Pool) -> (Axis, Axis) {
        (
            Axis::new(p.kernel_h, p.stride_h, p.dilation_h, p.pad_top, p.in_h),
            Axis::new(p.kernel_w, p.stride_w, p.dilation_w, p.pad_left, p.in_w),
        )
    }

    /// Taps `k` with `0 <= out * stride - pad + k * dilation < input`, and the input position of the first.
    #[inline(always)]
    pub(crate) fn taps(self, out: usize) -> (Range<usize>, usize) {
        let start = out * self.stride;
        let first = self.pad.saturating_sub(start).div_ceil(self.dilation);
        let room = (self.input + self.pad).saturating_sub(start);
        let end = room.div_ceil(self.dilation).min(self.kernel);
        (first.min(end)..end, (start + first * self.dilation).saturating_sub(self.pad))
    }
}

pub(super) fn axes(c: &op::Conv) -> (Axis, Axis) {
    (
        Axis::new(c.kernel_h, c.stride_h, c.dilation_h, c.pad_top, c.in_h),
        Axis::new(c.kernel_w, c.stride_w, c.dilation_w, c.pad_left, c.in_w),
    )
}

/// `output[y, x, oc]`: for every kernel row one dot product over contiguous taps and channels, or one per tap where groups or
/// dilation put gaps between them.
pub(super) fn conv<W: Weights>(c: &op::Conv, input: &[i8], weights: W, stage: &Stage<'_>, output: &mut [i8]) {
    let (rows, columns) = axes(c);
    let in_c = c.in_c as usize;
    let group_in = in_c / c.groups.max(1) as usize;
    let group_out = (c.out_c / c.groups.max(1)).max(1) as usize;
    let filter = rows.kernel * columns.kernel * group_in;
    let contiguous = c.groups == 1 && c.dilation_w == 1;
    let pixels = output.chunks_exact_mut(c.out_c.max(1) as usize);
    for (pixel, out) in pixels.enumerate() {
        let (y, x) = (pixel / c.out_w.max(1) as usize, pixel % c.out_w.max(1) as usize);
        let (row_taps, top) = rows.taps(y);
        let (column_taps, left) = columns.taps(x);
        for (oc, out) in out.iter_mut().enumerate() {
            let (bias, multiplier, shift) = stage.channels.get(oc);
            let first_channel = oc / group_out * group_in;
            let mut acc = bias;
            for (i, ky) in row_taps.clone().enumerate() {
                let row = (top + i * rows.dilation) * columns.input;
                let filter_row = oc * filter + ky * columns.kernel * group_in;
                if contiguous {
                    let start = (row + left) * in_c;
                    let run = input.get(start..start + column_taps.len() * in_c).unwrap_or(&[]);
                    acc =
                        acc.wrapping_add(weights.dot(filter_row + column_taps.start * in_c, run, stage.in_zero_point));
                } else {
                    for (j, kx) in column_taps.clone().enumerate() {
                        let start = (row + left + j * columns.dilation) * in_c + first_channel;
                        let run = input.get(start..start + group_in).unwrap_or(&[]);
                        acc = acc.wrapping_add(weights.dot(filter_row + kx * group_in, run, stage.in_zero_point));
                    }
                }
            }
            *out = stage.output.stage(acc, multiplier, shift);
        }
    }
}

/// Gathers: for output row `y`, tap `ky` reads input row `(y + pad_top - ky * dilation_h) / stride_h` where that is exact and inside.
pub(super) fn conv_transpose<W: Weights>(c: &op::Conv, input: &[i8], weights: W, stage: &Stage<'_>, output: &mut [i8]) {
    let (rows, columns) = axes(c);
    let in_c = c.in_c as usize;
    let group_in = in_c / c.groups.max(1) as usize;
    let group_out = (c.out_c / c.groups.max(1)).max(1) as usize;
    let source = |axis: Axis, out: usize, tap: usize| {
        let at = (out + axis.pad).checked_sub(tap * axis.dilation)?;
        (at % axis.stride == 0 && at / axis.stride < axis.input).then_some(at / axis.stride)
    };
    for (pixel, out) in output.chunks_exact_mut(c.out_c.max(1) as usize).enumerate() {
        let (y, x) = (pixel / c.out_w.max(1) as usize, pixel % c.out_w.max(1) as usize);
        for (oc, out) in out.iter_mut().enumerate() {
            let (bias, multiplier, shift) = stage.channels.get(oc);
            let first_channel = oc / group_out * group_in;
            let mut acc = bias;
            for ky in 0..rows.kernel {
                let Some(row) = source(rows, y, ky) else { continue };
                for kx in 0..columns.kernel {
                    let Some(column) = source(columns, x, kx) else { continue };
                    let start = (row * columns.input + column) * in_c + first_channel;
                    let run = input.get(start..start + group_in).unwrap_or(&[]);
                    let filter = ((oc * rows.kernel + ky) * columns.kernel + kx) * group_in;
                    acc = acc.wrapping_add(weights.dot(filter, run, stage.in_zero_point));
                }
            }
            *out = stage.output.stage(acc, multiplier, shift);
        }
    }
}
