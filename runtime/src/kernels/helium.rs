//! Cortex-M55 and M85: Helium. Its assembly is in `helium.s`; here every kernel has a safe function that checks what it may touch.
//!
//! The compiler knows no Helium, so kernels are functions of assembly. They leave vector registers as the calling convention wants; that the
//! vector unit is on is the program's business, see `firmware/src/bin/infer.rs`.
//!
//! - **Windows times a matrix**: VMLADAVA adds 16 products at a time to one of eight sums; of 16 `k`, four rows times two windows take 14
//!   instructions, 0.11 a product. With one window (linear layers) eight rows take 17.
//! - **Output stage**: VMULH gives the high word of `acc * multiplier`, VRSHL shifts it right and rounds. For a shift of at least 33 that is
//!   exactly [`crate::fixed::requantize`]; below, see [`Blocks::rescales_by_high_word`].

#![allow(unsafe_code)]

use super::Output;
use crate::format::blocks::{Blocks, Layout};

core::arch::global_asm!(include_str!("helium.s"), options(raw));

unsafe extern "C" {
    fn pith_helium_windows_x2(_: &Call);
    fn pith_helium_windows_x2_wide(_: &Call);
    fn pith_helium_windows_x1(_: &Call);
    fn pith_helium_windows_x1_wide(_: &Call);
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
}

/// Zero points that may be added with saturation to what was saturated to 16 bits before.
const ZERO_POINTS: core::ops::Range<i32> = -(1 << 14)..1 << 14;

/// Steps that the unrolled loops have.
const UNROLLED: usize = 4;

/// Which kernel a matrix and its output need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Shifts of at least 33, full bounds, whole blocks.
    Usual,
    /// Anything that rescales by the high word.
    Wide,
}

impl Kernel {
    /// None if the generic kernel has to do it.
    pub fn of(blocks: &Blocks<'_>, to: Output) -> Option<Kernel> {
        let rows = Layout::Rows.rows();
        // Shifts are stored as `32 - shift`: negative from 33 on.
        let all_shift = || {
            let shifts = |block: &[u8]| block.get(8 * rows..9 * rows).and_then(|s| s.try_into().ok()).map(u32::from_le_bytes);
            blocks.blocks().all(|block| shifts(block).is_some_and(|shifts| shifts & 0x8080_8080 == 0x8080_8080))
        };
        if blocks.layout() != Layout::Rows || blocks.bits() != 8 {
            None
        } else if to.is_full() && blocks.n().is_multiple_of(rows) && all_shift() {
            Some(Kernel::Usual)
        } else {
            blocks.rescales_by_high_word(to.zero_point).then_some(Kernel::Wide)
        }
    }
}

/// See [`super::Windows::multiply`]. False if a length is wrong.
pub fn windows(
    kernel: Kernel,
    blocks: &Blocks<'_>,
    activations: &[i8],
    step: usize,
    to: Output,
    output: &mut [i8],
) -> bool {
    let (n, window_bytes) = (blocks.n(), blocks.padded_k());
    let block_bytes = Layout::Rows.block_bytes(8, blocks.k());
    let weights = blocks.as_bytes();
    let count = output.len() / n.max(1);
    let read = count.checked_sub(1).and_then(|last| last.checked_mul(step)).and_then(|at| at.checked_add(window_bytes));
    let served = n > 0
        && window_bytes > 0
        && output.len() == count * n
        && read.is_some_and(|read| read <= activations.len())
        && weights.len() == n.div_ceil(Layout::Rows.rows()) * block_bytes
        && weights.as_ptr().align_offset(4) == 0
        && ZERO_POINTS.contains(&to.zero_point)
        && (kernel == Kernel::Wide || to.is_full() && n.is_multiple_of(Layout::Rows.rows()));
    if !served {
        return false;
    }
    let steps = window_bytes / Layout::Rows.depth(8);
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
        second_output: output.as_mut_ptr().wrapping_add(n),
        step: 2 * step,
        windows: pairs,
        output_step: 2 * n,
        min: to.min.into(),
        max: to.max.into(),
        rows: n,
        rows_left: n,
    };
    if pairs > 0 {
        // SAFETY: `pairs` windows of `window_bytes` begin `step` apart and end inside of `activations`, `pairs * n` outputs lie in `output`, and the
        // weights are whole blocks at a multiple of 4 (all checked above). Of a last block that is not full, the wide kernel writes only the rows
        // there are; the usual one is taken only if `n` is a multiple of 4.
        unsafe {
            match kernel {
                Kernel::Usual => pith_helium_windows_x2(&call),
                Kernel::Wide => pith_helium_windows_x2_wide(&call),
            }
        }
    }
    if count > pairs {
        call.window = activations.as_ptr().wrapping_add(pairs * step);
        call.second = block_bytes;
        call.output = output.as_mut_ptr().wrapping_add(pairs * n);
        // SAFETY: as above, for the last of `count` windows and outputs.
        unsafe {
            match kernel {
                Kernel::Usual => pith_helium_windows_x1(&call),
                Kernel::Wide => pith_helium_windows_x1_wide(&call),
            }
        }
    }
    true
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
