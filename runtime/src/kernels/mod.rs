//! Inner loops. [`generic`] defines the meaning of every one; files of an instruction set stand beside it with the same names and the
//! same bytes. On a microcontroller the set is known when the crate is compiled, on a desktop it is looked up once.

#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod aarch64;
#[cfg(pith_dsp)]
pub mod arm_dsp;
#[cfg(any(pith_v6m, pith_v7m))]
mod arm_quads;
#[cfg(pith_v6m)]
pub mod arm_v6m;
#[cfg(pith_v7m)]
pub mod arm_v7m;
pub mod generic;
#[cfg(pith_helium)]
pub mod helium;
#[cfg(pith_desktop)]
pub mod lanes;
pub mod patch;
pub mod quads;
mod windows;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use crate::fixed::{requantize, saturate};
use crate::format::op;
pub use windows::Windows;

/// Memory of an operator that may work in place.
#[derive(Debug)]
pub enum Memory<'a> {
    /// Output memory that holds the input.
    InPlace(&'a mut [i8]),
    /// Input and output apart.
    Apart(&'a [i8], &'a mut [i8]),
}

impl<'a> Memory<'a> {
    /// What is read.
    #[inline(always)]
    pub fn input(&self) -> &[i8] {
        match self {
            Memory::InPlace(data) => data,
            Memory::Apart(input, _) => input,
        }
    }

    /// What is written.
    #[inline(always)]
    pub fn output(&mut self) -> &mut [i8] {
        match self {
            Memory::InPlace(data) => data,
            Memory::Apart(_, output) => output,
        }
    }

    /// The same memory for a while.
    pub fn reborrow(&mut self) -> Memory<'_> {
        match self {
            Memory::InPlace(data) => Memory::InPlace(data),
            Memory::Apart(input, output) => Memory::Apart(input, output),
        }
    }

    /// Output memory that holds the input, copied if it was apart.
    pub fn in_place(self) -> &'a mut [i8] {
        match self {
            Memory::InPlace(data) => data,
            Memory::Apart(input, output) => {
                let len = input.len().min(output.len());
                if let (Some(to), Some(from)) = (output.get_mut(..len), input.get(..len)) {
                    to.copy_from_slice(from);
                }
                output
            }
        }
    }
}

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
    /// `acc` rescaled, moved and clamped. Where code is dear it stands once: kernels of an instruction set have their own.
    #[cfg_attr(target_os = "none", inline(never))]
    #[cfg_attr(not(target_os = "none"), inline(always))]
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
    #[cfg(pith_dsp)]
    arm_dsp::depthwise_row(row);
    #[cfg(pith_helium)]
    if helium::depthwise_row(row) {
        return;
    }
    #[cfg(pith_v6m)]
    if arm_v6m::depthwise_row(row) {
        return;
    }
    #[cfg(pith_v7m)]
    if arm_v7m::depthwise_row(row) {
        return;
    }
    #[cfg(pith_riscv)]
    if quads::depthwise_row(row) {
        return;
    }
    #[cfg(not(pith_dsp))]
    generic::depthwise_row(row);
}

/// The desktop kernels of a set, if this machine has it.
#[cfg(pith_desktop)]
pub fn table(isa: crate::Isa) -> Option<&'static lanes::Table> {
    #[cfg(target_arch = "x86_64")]
    return x86_64::table(isa);
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    return aarch64::table(isa);
    #[cfg(not(any(target_arch = "x86_64", all(target_arch = "aarch64", target_feature = "neon"))))]
    {
        let _ = isa;
        None
    }
}

/// Kernels of the simple operators: on a desktop those of a set that was looked up, elsewhere the ones that the crate was compiled with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Set {
    /// None: the generic ones.
    #[cfg(pith_desktop)]
    pub table: Option<&'static lanes::Table>,
}

impl Set {
    /// See [`generic::add`].
    #[inline(always)]
    pub fn add(self, sum: &Sum, memory: Memory<'_>, rhs: &[i8]) {
        #[cfg(pith_desktop)]
        if let Some(table) = self.table {
            return (table.add)(sum, memory, rhs);
        }
        add(sum, memory, rhs);
    }

    /// See [`generic::sum_rows`].
    #[inline(always)]
    pub fn sum_rows(self, input: &[i8], step: usize, rows: usize, acc: &mut [i32]) {
        #[cfg(pith_desktop)]
        if let Some(table) = self.table {
            return (table.sum_rows)(input, step, rows, acc);
        }
        sum_rows(input, step, rows, acc);
    }
}

/// An addition with everything that is constant taken together:
/// `saturate((lhs * lhs_multiplier + rhs * rhs_multiplier + constant) >> shift)`, wrapping, which is [`crate::fixed::rescale_sum`] of the differences to
/// the zero points.
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    /// Factor of the left operand.
    pub lhs_multiplier: i32,
    /// Factor of the right operand.
    pub rhs_multiplier: i32,
    /// Zero points and rounding.
    pub constant: i32,
    /// 1 to 30.
    pub shift: u32,
    /// Zero point and bounds.
    pub to: Output,
}

impl Sum {
    /// Of a record, with the zero points of both operands.
    pub fn new(b: &op::Binary, lhs_zero_point: i32, rhs_zero_point: i32, zero_point: i32) -> Sum {
        let shift = b.shift.clamp(1, 30) as u32;
        let constant = (1i32 << (shift - 1))
            .wrapping_sub(lhs_zero_point.wrapping_mul(b.lhs_multiplier))
            .wrapping_sub(rhs_zero_point.wrapping_mul(b.rhs_multiplier));
        let to = Output { zero_point, min: b.act_min, max: b.act_max };
        Sum { lhs_multiplier: b.lhs_multiplier, rhs_multiplier: b.rhs_multiplier, constant, shift, to }
    }
}

/// See [`generic::add`]; the kernel that the crate was compiled with.
#[cfg_attr(not(pith_helium), allow(unused_mut))]
fn add(sum: &Sum, mut memory: Memory<'_>, rhs: &[i8]) {
    #[cfg(pith_dsp)]
    arm_dsp::add(sum, memory, rhs);
    #[cfg(pith_helium)]
    if helium::add(sum, &mut memory, rhs) {
        return;
    }
    #[cfg(not(pith_dsp))]
    generic::add(sum, memory, rhs);
}

/// See [`generic::max_rows`]; the kernel that the crate was compiled with.
pub fn max_rows(input: &[i8], step: usize, rows: usize, out: &mut [i8]) {
    #[cfg(pith_dsp)]
    arm_dsp::max_rows(input, step, rows, out);
    #[cfg(pith_helium)]
    if helium::max_rows(input, step, rows, out) {
        return;
    }
    #[cfg(not(pith_dsp))]
    generic::max_rows(input, step, rows, out);
}

/// See [`generic::shift`].
pub fn shift(data: &mut [i8], by: usize) {
    #[cfg(pith_helium)]
    helium::shift(data, by);
    #[cfg(not(pith_helium))]
    generic::shift(data, by);
}

/// See [`generic::spread`].
pub fn spread(from: &[i8], len: usize, to: &mut [i8], step: usize) {
    #[cfg(pith_helium)]
    if helium::spread(from, len, to, step) {
        return;
    }
    generic::spread(from, len, to, step);
}

/// See [`generic::sum_rows`]; the kernel that the crate was compiled with.
fn sum_rows(input: &[i8], step: usize, rows: usize, acc: &mut [i32]) {
    #[cfg(pith_dsp)]
    arm_dsp::sum_rows(input, step, rows, acc);
    #[cfg(pith_helium)]
    if helium::sum_rows(input, step, rows, acc) {
        return;
    }
    #[cfg(not(pith_dsp))]
    generic::sum_rows(input, step, rows, acc);
}
