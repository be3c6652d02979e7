//! Cortex-M55 and M85: Helium. Its assembly is in `helium.s`; here every kernel has a safe function that checks what it may touch.
//!
//! The compiler knows no Helium, so kernels are functions of assembly. They leave vector registers as the calling convention wants; that the
//! vector unit is on is the program's business, see `firmware/src/vector.rs`.
//!
//! - **Windows times a matrix**: VMLADAVA adds 16 products at a time to one of eight sums; of 16 `k`, four rows times two windows take 14
//!   instructions, 0.11 a product. With one window (linear layers) eight rows take 17. Weights of 4 and 2 bits are multiplied in the upper bits of their bytes,
//!   so that products come out 16 and 64 times too large, and 16 `k` take 16 and 17 instructions (21 and 23).
//! - **Depthwise**: a window of up to 4x4 is one vector, see [`Planes`]; larger ones have channels in lanes.
//! - **Output stage**: VMULH gives the high word of `acc * multiplier`, VRSHL shifts it right and rounds. For a shift of at least 33 that is
//!   exactly [`crate::fixed::requantize`]; below, see [`Blocks::rescales_by_high_word`].

#![allow(unsafe_code)]

use super::{DepthwiseRow, Memory, Output, Sum};
use crate::format::blocks::{Blocks, Layout};
use crate::format::op;
use crate::uses::has_blocks;

core::arch::global_asm!(include_str!("helium.s"), options(raw));

unsafe extern "C" {
    fn pith_helium_windows_x2(_: &Call);
    fn pith_helium_windows_x2_wide(_: &Call);
    fn pith_helium_windows_x1(_: &Call);
    fn pith_helium_windows_x1_wide(_: &Call);
    fn pith_helium_windows_4_x2(_: &Call);
    fn pith_helium_windows_4_x2_wide(_: &Call);
    fn pith_helium_windows_4_x1(_: &Call);
    fn pith_helium_windows_4_x1_wide(_: &Call);
    fn pith_helium_windows_2_x2(_: &Call);
    fn pith_helium_windows_2_x2_wide(_: &Call);
    fn pith_helium_windows_2_x1(_: &Call);
    fn pith_helium_windows_2_x1_wide(_: &Call);
    fn pith_helium_and_words(first: *const u8, step: usize, count: usize) -> u32;
    fn pith_helium_or_words(first: *const u8, step: usize, count: usize) -> u32;
    fn pith_helium_depthwise_1(_: &Depthwise);
    fn pith_helium_depthwise_1_wide(_: &Depthwise);
    fn pith_helium_depthwise_2(_: &Depthwise);
    fn pith_helium_depthwise_2_wide(_: &Depthwise);
    fn pith_helium_depthwise_row(_: &Row);
    fn pith_helium_add(_: &Add);
    fn pith_helium_add_wide(_: &Add);
    fn pith_helium_sum_rows(input: *const i8, step: usize, rows: usize, acc: *mut i32, len: usize);
    fn pith_helium_max_rows(input: *const i8, step: usize, rows: usize, out: *mut i8, len: usize);
    fn pith_helium_copy(to: *mut i8, from: *const i8, bytes: usize);
    fn pith_helium_spread(to: *mut i8, from: *const i8, bytes: usize, step: usize, runs: usize);
}

/// What the matrix kernels read, in the order of their frame.
#[repr(C)]
struct Call {
    weights_end: *const u8,
    zero_point: i32,
    window: *const i8,
    /// The second window, or the bytes of a block.
    second: usize,
    /// Steps of 16 that the unrolled loop skips in its first round.
    skip: usize,
    weights: *const u8,
    window_bytes: usize,
    output: *mut i8,
    second_output: *mut i8,
    /// Of two windows.
    step: usize,
    windows: usize,
    /// Of two outputs.
    output_step: usize,
    min: i32,
    max: i32,
    rows: usize,
    rows_left: usize,
    /// 1 if weights have zero points; kernels of 8 bits do not look.
    is_asymmetric: usize,
}

/// Zero points that may be added with saturation to what was saturated to 16 bits before.
const ZERO_POINTS: core::ops::Range<i32> = -(1 << 14)..1 << 14;

/// Steps that the unrolled loops have.
const UNROLLED: usize = 4;

/// Which kernel a matrix and its output need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Width of a weight: 8, 4 or 2.
    bits: u8,
    /// Not all shifts are at least 33, there are bounds, a block is not full, or weights have zero points.
    is_wide: bool,
    /// Weights have zero points.
    is_asymmetric: bool,
}

impl Kernel {
    /// None if the generic kernel has to do it.
    pub fn of(blocks: &Blocks<'_>, to: Output) -> Option<Kernel> {
        let rows = Layout::Rows.rows();
        let (bytes, bits) = (blocks.as_bytes(), blocks.bits());
        if blocks.layout() != Layout::Rows || !Layout::Rows.holds(bits) {
            return None;
        }
        let (block_bytes, count) = (Layout::Rows.block_bytes(bits, blocks.k()), blocks.n().div_ceil(rows));
        if count == 0 || bytes.len() != count * block_bytes {
            return None;
        }
        // SAFETY: of `count` blocks of `block_bytes` bytes, which lie in `bytes` (checked above), the word behind eight words is read, and the next one.
        let (shifts, zero_points) = unsafe {
            let shifts = bytes.as_ptr().wrapping_add(8 * rows);
            let zero_points = shifts.wrapping_add(rows);
            (
                pith_helium_and_words(shifts, block_bytes, count),
                if bits < 8 { pith_helium_or_words(zero_points, block_bytes, count) } else { 0 },
            )
        };
        // Shifts are stored as `32 - shift`: negative from 33 on.
        let usual = shifts & 0x8080_8080 == 0x8080_8080;
        let is_asymmetric = zero_points != 0;
        let is_wide = !usual || !to.is_full() || !blocks.n().is_multiple_of(rows) || is_asymmetric;
        let served = |(index, block): (usize, &[u8])| {
            let shifts = block.get(8 * rows..9 * rows).unwrap_or(&[]);
            shifts.iter().enumerate().all(|(lane, &shift)| {
                shift >= 0x80 || {
                    let (_, multiplier, shift) = blocks.stage(index * rows + lane);
                    rescales(multiplier, shift)
                }
            })
        };
        let kernel = Kernel { bits, is_wide, is_asymmetric };
        (usual || blocks.blocks().enumerate().all(served)).then_some(kernel)
    }

    /// Of two windows, and of one.
    fn functions<const USES: u64>(self) -> [unsafe extern "C" fn(&Call); 2] {
        if has_blocks(USES, Layout::Rows, 4) && self.bits < 8 {
            return match (self.bits, self.is_wide) {
                (4, false) => [pith_helium_windows_4_x2, pith_helium_windows_4_x1],
                (4, true) => [pith_helium_windows_4_x2_wide, pith_helium_windows_4_x1_wide],
                (_, false) => [pith_helium_windows_2_x2, pith_helium_windows_2_x1],
                (_, true) => [pith_helium_windows_2_x2_wide, pith_helium_windows_2_x1_wide],
            };
        }
        match self.is_wide {
            false => [pith_helium_windows_x2, pith_helium_windows_x1],
            true => [pith_helium_windows_x2_wide, pith_helium_windows_x1_wide],
        }
    }
}

/// Whether the high word gives the output, see [`Blocks::rescales_by_high_word`]. The rounding shift needs no bound beyond that of the format.
fn rescales(multiplier: i32, shift: u8) -> bool {
    shift >= 33 || shift >= 25 && (multiplier == 0 || multiplier.unsigned_abs() >= 1 << 30)
}

/// See [`super::Windows::multiply`]. False if a length is wrong.
pub fn windows<const USES: u64>(
    kernel: Kernel,
    blocks: &Blocks<'_>,
    activations: &[i8],
    step: usize,
    pitch: usize,
    to: Output,
    output: &mut [i8],
) -> bool {
    let (n, window_bytes) = (blocks.n(), blocks.padded_k());
    let block_bytes = Layout::Rows.block_bytes(kernel.bits, blocks.k());
    let weights = blocks.as_bytes();
    let Some(spare) = pitch.checked_sub(n) else { return false };
    let count = (output.len() + spare) / pitch.max(1);
    let read = count.checked_sub(1).and_then(|last| last.checked_mul(step)).and_then(|at| at.checked_add(window_bytes));
    let served = n > 0
        && kernel.bits == blocks.bits()
        && has_blocks(USES, Layout::Rows, kernel.bits)
        && window_bytes > 0
        && count > 0
        && read.is_some_and(|read| read <= activations.len())
        && weights.len() == n.div_ceil(Layout::Rows.rows()) * block_bytes
        && weights.as_ptr().align_offset(4) == 0
        && ZERO_POINTS.contains(&to.zero_point)
        && (kernel.is_wide || to.is_full() && n.is_multiple_of(Layout::Rows.rows()));
    if !served {
        return false;
    }
    let steps = window_bytes / Layout::Rows.depth(kernel.bits);
    let pairs = count / 2 * 2;
    let mut call = Call {
        weights_end: weights.as_ptr_range().end,
        zero_point: to.zero_point,
        window: activations.as_ptr(),
        second: activations.as_ptr().wrapping_add(step) as usize,
        skip: steps.wrapping_neg() % UNROLLED,
        weights: weights.as_ptr(),
        window_bytes,
        output: output.as_mut_ptr(),
        second_output: output.as_mut_ptr().wrapping_add(pitch),
        step: 2 * step,
        windows: pairs,
        output_step: 2 * pitch,
        min: to.min.into(),
        max: to.max.into(),
        rows: n,
        rows_left: n,
        is_asymmetric: kernel.is_asymmetric.into(),
    };
    let [two_windows, one_window] = kernel.functions::<USES>();
    if pairs > 0 {
        // SAFETY: `pairs` windows of `window_bytes` begin `step` apart and end inside of `activations`, `n` outputs for each of them `pitch` apart end
        // inside of `output` (`count` is how many times `pitch` goes into its length, the last time without what lies behind `n`), and the
        // weights are whole blocks of the kernel's width at a multiple of 4 (all checked above). Of a last block that is not full, the wide kernel
        // writes only the rows there are; the usual one is taken only if `n` is a multiple of 4.
        unsafe { two_windows(&call) };
    }
    if count > pairs {
        call.window = activations.as_ptr().wrapping_add(pairs * step);
        call.second = block_bytes;
        call.output = output.as_mut_ptr().wrapping_add(pairs * pitch);
        // SAFETY: as above, for the last of `count` windows and outputs.
        unsafe { one_window(&call) };
    }
    true
}

/// A depthwise convolution with windows of up to 4x4 and a horizontal stride of 1 or 2. Four channels at a time go through planes in which a
/// word is a column of four rows, so that a window is sixteen bytes and an output one VMLADAVA.
#[derive(Debug)]
pub struct Planes<'a> {
    /// The record.
    pub conv: &'a op::Conv,
    /// `[kernel_h, kernel_w, channel]`.
    pub weights: &'a [i8],
    /// Per channel.
    pub bias: &'a [i32],
    /// Per channel.
    pub multiplier: &'a [i32],
    /// Per channel.
    pub shift: &'a [u8],
    /// What lies outside of the input.
    pub in_zero_point: i8,
    /// Zero point and bounds.
    pub to: Output,
}

/// What the depthwise kernels read, in the order of their frame.
#[repr(C)]
struct Depthwise {
    input: *const i8,
    in_row: usize,
    in_w: usize,
    in_h: usize,
    pad_top: usize,
    stride_h: usize,
    output: *mut i8,
    out_w: usize,
    out_h: usize,
    channels: usize,
    weights: *const i8,
    kernel_h: usize,
    kernel_w: usize,
    filters: *mut i8,
    planes: *mut i8,
    plane_bytes: usize,
    first: *mut i8,
    negative_zero: i32,
    zero_point: i32,
    in_zero_point: i32,
    bias: *const i32,
    multiplier: *const i32,
    shift: *const u8,
    count: usize,
    min: i32,
    max: i32,
    state: [usize; 2],
}

impl Planes<'_> {
    /// Runs it with `scratch` for four filters of 64 bytes and four planes. None if a length is wrong or the output stage is too special.
    pub fn run(&self, memory: &mut Memory<'_>, scratch: &mut [i8], plane_bytes: usize) -> Option<()> {
        let c = self.conv;
        let [in_h, in_w, out_h, out_w, channels, kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left] = [
            c.in_h, c.in_w, c.out_h, c.out_w, c.out_c, c.kernel_h, c.kernel_w, c.stride_h, c.stride_w, c.pad_top,
            c.pad_left,
        ]
        .map(usize::from);
        let columns = plane_bytes / 4;
        let served = [in_h, in_w, out_h, out_w, channels, stride_h].iter().all(|&dim| dim > 0)
            && (1..=4).contains(&kernel_h)
            && (1..=4).contains(&kernel_w)
            && matches!(stride_w, 1 | 2)
            && (out_w - 1) * stride_w + 4 <= columns
            && pad_left + in_w <= columns
            && plane_bytes.is_multiple_of(4)
            && scratch.len() == 256 + 4 * plane_bytes
            && scratch.as_ptr().align_offset(4) == 0
            && memory.input().len() >= in_h * in_w * channels
            && memory.output().len() >= out_h * out_w * channels
            && self.weights.len() >= kernel_h * kernel_w * channels
            && [self.bias.len(), self.multiplier.len(), self.shift.len()].iter().all(|&len| len >= channels)
            && ZERO_POINTS.contains(&self.to.zero_point);
        if !served {
            return None;
        }
        let usual = self.shift.iter().all(|&shift| shift >= 33);
        if !usual && !self.multiplier.iter().zip(self.shift).all(|(&multiplier, &shift)| rescales(multiplier, shift)) {
            return None;
        }
        let (input, output) = match memory {
            Memory::InPlace(data) => (data.as_mut_ptr().cast_const(), data.as_mut_ptr()),
            Memory::Apart(input, output) => (input.as_ptr(), output.as_mut_ptr()),
        };
        let planes = scratch.as_mut_ptr().wrapping_add(256);
        for channel in (0..channels).step_by(4) {
            let count = (channels - channel).min(4);
            let call = Depthwise {
                input: input.wrapping_add(channel),
                in_row: in_w * channels,
                in_w,
                in_h,
                pad_top,
                stride_h,
                output: output.wrapping_add(channel),
                out_w,
                out_h,
                channels,
                weights: self.weights.as_ptr().wrapping_add(channel),
                kernel_h,
                kernel_w,
                filters: scratch.as_mut_ptr(),
                planes,
                plane_bytes,
                first: planes.wrapping_add(4 * pad_left),
                negative_zero: -(self.in_zero_point as i32),
                zero_point: self.to.zero_point,
                in_zero_point: self.in_zero_point.into(),
                bias: self.bias.as_ptr().wrapping_add(channel),
                multiplier: self.multiplier.as_ptr().wrapping_add(channel),
                shift: self.shift.as_ptr().wrapping_add(channel),
                count,
                min: self.to.min.into(),
                max: self.to.max.into(),
                state: [0; 2],
            };
            let kernel = match (usual && self.to.is_full() && count == 4, stride_w) {
                (true, 1) => pith_helium_depthwise_1,
                (true, _) => pith_helium_depthwise_2,
                (false, 1) => pith_helium_depthwise_1_wide,
                (false, _) => pith_helium_depthwise_2_wide,
            };
            // SAFETY: of `count` channels from `channel` on the kernel reads weights and output stage and rows `0 .. in_h` of the input, and
            // writes `out_h` rows of the output; the usual one does so for four of them, the wide one leaves lanes from `count` on alone. Columns
            // `pad_left .. pad_left + in_w` of the planes are written and sixteen bytes from column `(out_w - 1) * stride_w` read. All of it lies in
            // the slices, whose lengths and alignment were checked above, and no dimension is zero.
            unsafe { kernel(&call) };
        }
        Some(())
    }
}

/// What [`depthwise_row`]'s kernel reads, in the order of its frame.
#[repr(C)]
struct Row {
    first: *const i8,
    row: usize,
    ring_end: *const i8,
    ring_bytes: usize,
    kernel_h: usize,
    kernel_w: usize,
    step: usize,
    channels: usize,
    weights: *const i8,
    bias: *const i32,
    multiplier: *const i32,
    shift: *const u8,
    zero_point: i32,
    min: i32,
    max: i32,
    output: *mut i8,
    width: usize,
    left: usize,
    unused: [usize; 2],
}

/// See [`super::generic::depthwise_row`]. False if a length is wrong or the output stage is too special.
pub fn depthwise_row(r: &mut DepthwiseRow<'_>) -> bool {
    let DepthwiseRow { row, first, kernel_h, kernel_w, stride_w, channels, .. } = *r;
    let width = r.output.len() / channels.max(1);
    let read = |width: usize| (width - 1).checked_mul(stride_w)?.checked_add(kernel_w)?.checked_mul(channels);
    let served = [channels, width, kernel_h, kernel_w].iter().all(|&dim| dim > 0)
        && first < kernel_h
        && read(width).is_some_and(|read| read <= row)
        && row.checked_mul(kernel_h).is_some_and(|bytes| bytes <= r.ring.len())
        && r.weights.len() >= kernel_h * kernel_w * channels
        && [r.bias.len(), r.multiplier.len(), r.shift.len()].iter().all(|&len| len >= channels)
        && ZERO_POINTS.contains(&r.to.zero_point)
        && r.multiplier.iter().zip(r.shift).all(|(&multiplier, &shift)| rescales(multiplier, shift));
    if !served {
        return false;
    }
    let call = Row {
        first: r.ring.as_ptr().wrapping_add(first * row),
        row,
        ring_end: r.ring.as_ptr().wrapping_add(kernel_h * row),
        ring_bytes: kernel_h * row,
        kernel_h,
        kernel_w,
        step: stride_w * channels,
        channels,
        weights: r.weights.as_ptr(),
        bias: r.bias.as_ptr(),
        multiplier: r.multiplier.as_ptr(),
        shift: r.shift.as_ptr(),
        zero_point: r.to.zero_point,
        min: r.to.min.into(),
        max: r.to.max.into(),
        output: r.output.as_mut_ptr(),
        width,
        left: channels,
        unused: [0; 2],
    };
    // SAFETY: `kernel_h` rows lie in the ring, from `first` on and around its end; of each, windows reach `read(width)` elements far. Weights
    // and output stage have `channels` elements a tap and `width` pixels lie in the output (all checked above). Lanes beyond the last channel
    // neither read nor write.
    unsafe { pith_helium_depthwise_row(&call) };
    true
}

/// What the addition reads.
#[repr(C)]
struct Add {
    lhs: *const i8,
    rhs: *const i8,
    output: *mut i8,
    len: usize,
    lhs_multiplier: i32,
    rhs_multiplier: i32,
    constant: i32,
    /// To the left.
    shift: i32,
    zero_point: i32,
    min: i32,
    max: i32,
}

/// See [`super::generic::add`]. False if the zero point is too special.
pub fn add(sum: &Sum, memory: &mut Memory<'_>, rhs: &[i8]) -> bool {
    let len = memory.input().len().min(memory.output().len()).min(rhs.len());
    if !ZERO_POINTS.contains(&sum.to.zero_point) || sum.shift > 31 {
        return false;
    }
    let (lhs, output) = match memory {
        Memory::InPlace(data) => (data.as_mut_ptr().cast_const(), data.as_mut_ptr()),
        Memory::Apart(lhs, output) => (lhs.as_ptr(), output.as_mut_ptr()),
    };
    let call = Add {
        lhs,
        rhs: rhs.as_ptr(),
        output,
        len,
        lhs_multiplier: sum.lhs_multiplier,
        rhs_multiplier: sum.rhs_multiplier,
        constant: sum.constant,
        shift: -(sum.shift as i32),
        zero_point: sum.to.zero_point,
        min: sum.to.min.into(),
        max: sum.to.max.into(),
    };
    // SAFETY: `len` elements are read from both operands and written to the output, which are at least so long; in place, an element is
    // written after it is read.
    unsafe {
        match sum.to.is_full() {
            true => pith_helium_add(&call),
            false => pith_helium_add_wide(&call),
        }
    }
    true
}

/// Whether `rows` rows of `len` elements, `step` apart, lie in `input`.
fn rows_fit(input: &[i8], step: usize, rows: usize, len: usize) -> bool {
    let end = rows.checked_sub(1).and_then(|last| last.checked_mul(step)).and_then(|at| at.checked_add(len));
    len > 0 && end.is_some_and(|end| end <= input.len())
}

/// See [`super::generic::sum_rows`]. False if rows leave the input.
pub fn sum_rows(input: &[i8], step: usize, rows: usize, acc: &mut [i32]) -> bool {
    let served = rows_fit(input, step, rows, acc.len());
    if served {
        // SAFETY: there is a row, and `rows` rows of `acc.len()` elements lie in `input` (`rows_fit`).
        unsafe { pith_helium_sum_rows(input.as_ptr(), step, rows, acc.as_mut_ptr(), acc.len()) };
    }
    served
}

/// See [`super::generic::max_rows`]. False if rows leave the input.
pub fn max_rows(input: &[i8], step: usize, rows: usize, out: &mut [i8]) -> bool {
    let served = rows_fit(input, step, rows, out.len());
    if served {
        // SAFETY: there is a row, and `rows` rows of `out.len()` elements lie in `input` (`rows_fit`).
        unsafe { pith_helium_max_rows(input.as_ptr(), step, rows, out.as_mut_ptr(), out.len()) };
    }
    served
}

/// See [`super::generic::shift`].
pub fn shift(data: &mut [i8], by: usize) {
    if let Some(bytes) = data.len().checked_sub(by) {
        // SAFETY: `bytes` elements from `by` on and `bytes` elements from the start lie in `data`; the copy goes upwards and reads every 16 bytes
        // before it writes them, at lower addresses.
        unsafe { pith_helium_copy(data.as_mut_ptr(), data.as_ptr().wrapping_add(by), bytes) };
    }
}

/// See [`super::generic::spread`]. False if a length is wrong.
pub fn spread(from: &[i8], len: usize, to: &mut [i8], step: usize) -> bool {
    let runs = from.len() / len.max(1);
    let written = runs.checked_sub(1).and_then(|last| last.checked_mul(step)).and_then(|at| at.checked_add(len));
    if len == 0 || written.is_none_or(|written| written > to.len()) {
        return false;
    }
    // SAFETY: `runs` runs of `len` lie in `from`; the last one ends in `to` (checked above), so all do.
    unsafe { pith_helium_spread(to.as_mut_ptr(), from.as_ptr(), len, step, runs) };
    true
}
