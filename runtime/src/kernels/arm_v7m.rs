//! Cortex-M3, and Armv8-M cores without the DSP extension: MLA, SMULL, SSAT and fourteen registers.
//!
//! The matrix kernel reads the layout of [`super::quads`], but keeps the pixels' sums apart: an MLA is one instruction where two sums in one
//! word would need three for two products. Four rows by two pixels: of one `k` two LDRH, and for every row LDRB and two MLA, 14
//! instructions for 8 products, 1.75 each. With one pixel a row costs LDRB and MLA: 2.3.
//!
//! Products of narrow weights are so short that eight of them fit 16 bits together; there one MLA does serve two pixels: 1.4 instructions for
//! a product, unpacking included.

#![allow(unsafe_code)]

use super::arm_quads::{self, Pixel};
use super::{DepthwiseRow, Output, quads};
use crate::format::blocks::{Blocks, Layout};
use crate::uses::{has_asymmetric, has_blocks};
use core::arch::naked_asm;

/// What the matrix kernels read beside what those of all cores do.
#[repr(C)]
struct Rest {
    /// Whether the unrolled loop's first round is half of one.
    odd: usize,
    /// What sums begin with; of weights with zero points, what is added to them for every unit that is added to weights where they are stored.
    offsets: [i32; 2],
}

type Call = arm_quads::Call<Rest>;

/// As [`super::quads::matrix`], for blocks that [`Blocks::rescales_by_high_word`]. False if a length is wrong.
pub fn matrix<const USES: u64>(
    blocks: &Blocks<'_>,
    patches: &[i8],
    pixels: usize,
    sums: [i32; 3],
    to: Output,
    output: &mut [i8],
    at: [usize; 3],
) -> bool {
    let bits = blocks.bits();
    type Kernel = unsafe extern "C" fn(&Call);
    let either = |symmetric: Kernel, asymmetric: Kernel| if has_asymmetric(USES) { asymmetric } else { symmetric };
    let kernel: Kernel = match (bits, pixels) {
        (8, 1) if has_blocks(USES, Layout::Quads, 8) => quads_x1,
        (8, _) if has_blocks(USES, Layout::Quads, 8) => quads_x2,
        (4, _) if has_blocks(USES, Layout::Quads, 4) => either(quads_s4_x2, quads_s4_x2_asymmetric),
        (2, _) if has_blocks(USES, Layout::Quads, 2) => either(quads_s2_x2, quads_s2_x2_asymmetric),
        _ => return false,
    };
    let offset = if has_asymmetric(USES) && bits < 8 { -1 } else { -1 << (bits - 1) };
    let offsets = [sums[0], sums[1]].map(|sum| sum.wrapping_mul(offset));
    let rest = Rest { odd: blocks.padded_k() / 4 % 2, offsets };
    arm_quads::matrix(blocks, patches, pixels, to, output, at, kernel, rest)
}

/// Saves registers, copies [`Call`] to the stack with eight words behind it, and loops over blocks; the body leaves the next one at r12.
macro_rules! frame {
    ($($body:expr),* $(,)?) => {
        naked_asm!(
            "push {{r4-r11, lr}}",
            "sub sp, sp, #32",
            "ldm r0, {{r1-r10}}",
            "push {{r1-r10}}",
            "1:",
            $($body,)*
            "ldr r8, [sp, #12]",
            "cmp r12, r8",
            "bne 1b",
            "add sp, sp, #72",
            "pop {{r4-r11, pc}}",
        )
    };
}

/// One row of one `k`: weight at `$at`, activations in r8 and r9.
macro_rules! row_x2 {
    ($at:literal, $first:literal, $second:literal) => {
        concat!(
            "ldrb r10, [r12, #",
            $at,
            "\n",
            "mla ",
            $first,
            ", r8, r10, ",
            $first,
            "\n",
            "mla ",
            $second,
            ", r9, r10, ",
            $second,
            "\n",
        )
    };
}

/// One `k` of four rows and two pixels; weights of a row are four bytes apart from the next one's.
macro_rules! k_x2 {
    ($a:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(
            "ldrh r8, [lr], #2\n",
            "ldrh r9, [lr], #2\n",
            row_x2!($a, "r0", "r1"),
            row_x2!($b, "r2", "r3"),
            row_x2!($c, "r4", "r5"),
            row_x2!($d, "r6", "r7"),
        )
    };
}

/// Four `k`; r12 moves on before the first.
macro_rules! quad_x2 {
    () => {
        concat!(
            k_x2!("16]!", "4]", "8]", "12]"),
            k_x2!("1]", "5]", "9]", "13]"),
            k_x2!("2]", "6]", "10]", "14]"),
            k_x2!("3]", "7]", "11]", "15]"),
        )
    };
}

/// Shift less 33 in r9 with its flags, `2 * zero_point + 1` in r10: shift less 32 and rounding come out. What a shift is below 33, sums are
/// doubled with saturation.
macro_rules! shift_and_round {
    ($($a:literal),*) => {
        concat!(
            "bge 7f\n",
            "6:\n",
            $(
                "adds ", $a, ", ", $a, ", ", $a, "\n",
                "itt vs\n",
                "asrvs ", $a, ", ", $a, ", #31\n",
                "eorvs ", $a, ", ", $a, ", #0x80000000\n",
            )*
            "adds r9, r9, #1\n",
            "bne 6b\n",
            "7:\n",
            "lsl r10, r10, r9\n",
            "add r9, r9, #1\n",
        )
    };
}

/// Multiplier of a row in r8, shift less 32 in r9, rounding in r10, the block at lr.
macro_rules! factor {
    ($multiplier:literal, $shift:literal, $($a:literal),*) => {
        concat!(
            "ldr r8, [lr, #", $multiplier, "]\n",
            "ldrb r9, [lr, #", $shift, "]\n",
            "ldr r10, [sp, #24]\n",
            "subs r9, r9, #33\n",
            shift_and_round!($($a),*),
        )
    };
}

/// One output: rescaled and saturated.
macro_rules! rescale {
    ($a:literal) => {
        concat!(
            "smull r11, ",
            $a,
            ", ",
            $a,
            ", r8\n",
            "add ",
            $a,
            ", ",
            $a,
            ", r10\n",
            "asr ",
            $a,
            ", ",
            $a,
            ", r9\n",
            "ssat ",
            $a,
            ", #8, ",
            $a,
            "\n",
        )
    };
}

/// Output stage of four rows and two pixels, the block at lr.
macro_rules! finish_x2 {
    () => {
        concat!(
            factor!("16", "32", "r0", "r1"),
            rescale!("r0"),
            rescale!("r1"),
            factor!("20", "33", "r2", "r3"),
            rescale!("r2"),
            rescale!("r3"),
            factor!("24", "34", "r4", "r5"),
            rescale!("r4"),
            rescale!("r5"),
            factor!("28", "35", "r6", "r7"),
            rescale!("r6"),
            rescale!("r7"),
            "ldrd r8, r9, [sp, #16]\n",
            "strb r0, [r8], #4\n",
            "strb r1, [r9], #4\n",
            "strb r2, [r8, #-3]\n",
            "strb r3, [r9, #-3]\n",
            "strb r4, [r8, #-2]\n",
            "strb r5, [r9, #-2]\n",
            "strb r6, [r8, #-1]\n",
            "strb r7, [r9, #-1]\n",
            "strd r8, r9, [sp, #16]\n",
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn quads_x2(_: &Call) {
    frame!(
        "ldr lr, [sp, #8]",
        "ldm lr, {{r8-r11}}",
        "ldrd r6, r7, [sp, #32]",
        "add r12, lr, #32",
        "add r0, r8, r6",
        "add r1, r8, r7",
        "add r2, r9, r6",
        "add r3, r9, r7",
        "add r4, r10, r6",
        "add r5, r10, r7",
        "add r6, r6, r11",
        "add r7, r7, r11",
        "ldr lr, [sp, #0]",
        "ldrd r11, r8, [sp, #4]",
        "ldr r8, [sp, #28]",
        "cmp r8, #0",
        "bne 3f",
        "2:",
        quad_x2!(),
        "3:",
        quad_x2!(),
        "cmp lr, r11",
        "bne 2b",
        "ldr lr, [sp, #8]",
        "add r12, r12, #16",
        "str r12, [sp, #8]",
        finish_x2!(),
    )
}

/// Narrow weights of one `k`, whose rows lie in r4..r7, times the word in `$word`: products of the rows in r0..r3.
macro_rules! k_narrow {
    ($word:literal, $at:literal, $bits:literal, $mul:literal, $a:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(
            "ubfx r10, r4, #",
            $at,
            ", #",
            $bits,
            "\n",
            $mul,
            " r0, r10, ",
            $word,
            $a,
            "\n",
            "ubfx r10, r5, #",
            $at,
            ", #",
            $bits,
            "\n",
            $mul,
            " r1, r10, ",
            $word,
            $b,
            "\n",
            "ubfx r10, r6, #",
            $at,
            ", #",
            $bits,
            "\n",
            $mul,
            " r2, r10, ",
            $word,
            $c,
            "\n",
            "ubfx r10, r7, #",
            $at,
            ", #",
            $bits,
            "\n",
            $mul,
            " r3, r10, ",
            $word,
            $d,
            "\n",
        )
    };
}

/// The first of eight `k`.
macro_rules! first_k {
    ($word:literal, $at:literal, $bits:literal) => {
        k_narrow!($word, $at, $bits, "mul", "", "", "", "")
    };
}

/// The others.
macro_rules! next_k {
    ($word:literal, $at:literal, $bits:literal) => {
        k_narrow!($word, $at, $bits, "mla", ", r0", ", r1", ", r2", ", r3")
    };
}

/// Eight products of a row join its sums on the stack.
macro_rules! join_eight {
    ($sum:literal, $at:literal) => {
        concat!(
            "ldrd r10, r11, [sp, #",
            $at,
            "]\n",
            "add r10, r10, ",
            $sum,
            "\n",
            "add r11, r11, ",
            $sum,
            ", lsr #16\n",
            "strd r10, r11, [sp, #",
            $at,
            "]\n",
        )
    };
}

/// A row's sums of both pixels.
macro_rules! take_apart {
    ($first:literal, $second:literal, $at:literal, $bias:literal) => {
        concat!(
            "ldrd r8, r9, [sp, #",
            $at,
            "]\n",
            "ldr r10, [lr, #",
            $bias,
            "]\n",
            "sub r8, r8, r9, lsl #16\n",
            "add ",
            $first,
            ", r8, r10\n",
            "add ",
            $second,
            ", r9, r10\n",
        )
    };
}

/// Makes up for what is added to the weights of a row where they are stored, `$middle` and their zero point.
macro_rules! offset {
    ($middle:literal, $first:literal, $second:literal, $zero:literal) => {
        concat!(
            "ldrsb r10, [lr, #",
            $zero,
            "]\n",
            "ldrd r8, r9, [sp, #32]\n",
            "add r10, r10, #",
            $middle,
            "\n",
            "mla ",
            $first,
            ", r8, r10, ",
            $first,
            "\n",
            "mla ",
            $second,
            ", r9, r10, ",
            $second,
            "\n",
        )
    };
}

/// What sums of narrow weights begin with, to r0 and r1.
macro_rules! begin_with_offsets {
    () => {
        "ldrd r0, r1, [sp, #32]\nadd r0, r0, r1, lsl #16\n"
    };
}

/// Nothing: offsets come at the end.
macro_rules! begin_with_zeros {
    () => {
        "movs r0, #0\nmovs r1, #0\n"
    };
}

/// [`offset`] of all rows.
macro_rules! offsets {
    ($middle:literal) => {
        concat!(
            offset!($middle, "r0", "r1", "36"),
            offset!($middle, "r2", "r3", "37"),
            offset!($middle, "r4", "r5", "38"),
            offset!($middle, "r6", "r7", "39"),
        )
    };
}

/// Two pixels and weights of `$bits` bits, of which `$load` brings eight of four rows; places of the seven behind the first follow.
macro_rules! narrow_x2 {
    ($bits:literal, $begin:expr, $offsets:expr, $load:literal, $b:literal, $c:literal, $d:literal, $e:literal, $f:literal, $g:literal, $h:literal) => {
        frame!(
            "ldr r12, [sp, #8]",
            $begin,
            "add r12, r12, #48",
            "ldr lr, [sp, #0]",
            "strd r0, r1, [sp, #40]",
            "strd r0, r1, [sp, #48]",
            "strd r0, r1, [sp, #56]",
            "strd r0, r1, [sp, #64]",
            "2:",
            $load,
            "ldrd r8, r9, [lr], #8",
            first_k!("r8", "0", $bits),
            next_k!("r9", $b, $bits),
            "ldrd r8, r9, [lr], #8",
            next_k!("r8", $c, $bits),
            next_k!("r9", $d, $bits),
            "ldrd r8, r9, [lr], #8",
            next_k!("r8", $e, $bits),
            next_k!("r9", $f, $bits),
            "ldrd r8, r9, [lr], #8",
            next_k!("r8", $g, $bits),
            next_k!("r9", $h, $bits),
            join_eight!("r0", "40"),
            join_eight!("r1", "48"),
            join_eight!("r2", "56"),
            join_eight!("r3", "64"),
            "ldr r10, [sp, #4]",
            "cmp lr, r10",
            "bne 2b",
            "ldr lr, [sp, #8]",
            "str r12, [sp, #8]",
            take_apart!("r0", "r1", "40", "0"),
            take_apart!("r2", "r3", "48", "4"),
            take_apart!("r4", "r5", "56", "8"),
            take_apart!("r6", "r7", "64", "12"),
            $offsets,
            finish_x2!(),
        )
    };
}

macro_rules! s4_x2 {
    ($begin:expr, $offsets:expr) => {
        narrow_x2!("4", $begin, $offsets, "ldm r12!, {{r4-r7}}", "4", "8", "12", "16", "20", "24", "28")
    };
}

#[unsafe(naked)]
unsafe extern "C" fn quads_s4_x2(_: &Call) {
    s4_x2!(begin_with_offsets!(), "")
}

#[unsafe(naked)]
unsafe extern "C" fn quads_s4_x2_asymmetric(_: &Call) {
    s4_x2!(begin_with_zeros!(), offsets!("8"))
}

macro_rules! s2_x2 {
    ($begin:expr, $offsets:expr) => {
        narrow_x2!(
            "2",
            $begin,
            $offsets,
            "ldrh r4, [r12], #2\nldrh r5, [r12], #2\nldrh r6, [r12], #2\nldrh r7, [r12], #2",
            "2",
            "4",
            "6",
            "8",
            "10",
            "12",
            "14"
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn quads_s2_x2(_: &Call) {
    s2_x2!(begin_with_offsets!(), "")
}

#[unsafe(naked)]
unsafe extern "C" fn quads_s2_x2_asymmetric(_: &Call) {
    s2_x2!(begin_with_zeros!(), offsets!("2"))
}

/// Four `k` of one row, activations in r4..r7.
macro_rules! row_x1 {
    ($sum:literal, $a:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(
            "ldrb r8, [r12, #",
            $a,
            "\n",
            "mla ",
            $sum,
            ", r4, r8, ",
            $sum,
            "\n",
            "ldrb r8, [r12, #",
            $b,
            "\n",
            "mla ",
            $sum,
            ", r5, r8, ",
            $sum,
            "\n",
            "ldrb r8, [r12, #",
            $c,
            "\n",
            "mla ",
            $sum,
            ", r6, r8, ",
            $sum,
            "\n",
            "ldrb r8, [r12, #",
            $d,
            "\n",
            "mla ",
            $sum,
            ", r7, r8, ",
            $sum,
            "\n",
        )
    };
}

macro_rules! quad_x1 {
    () => {
        concat!(
            "ldrb r4, [lr], #4\n",
            "ldrb r5, [lr, #-3]\n",
            "ldrb r6, [lr, #-2]\n",
            "ldrb r7, [lr, #-1]\n",
            row_x1!("r0", "16]!", "1]", "2]", "3]"),
            row_x1!("r1", "4]", "5]", "6]", "7]"),
            row_x1!("r2", "8]", "9]", "10]", "11]"),
            row_x1!("r3", "12]", "13]", "14]", "15]"),
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn quads_x1(_: &Call) {
    frame!(
        "ldr lr, [sp, #8]",
        "ldm lr, {{r0-r3}}",
        "ldr r6, [sp, #32]",
        "add r12, lr, #32",
        "add r0, r0, r6",
        "add r1, r1, r6",
        "add r2, r2, r6",
        "add r3, r3, r6",
        "ldr lr, [sp, #0]",
        "ldr r11, [sp, #4]",
        "ldr r8, [sp, #28]",
        "cmp r8, #0",
        "bne 3f",
        "2:",
        quad_x1!(),
        "3:",
        quad_x1!(),
        "cmp lr, r11",
        "bne 2b",
        "ldr lr, [sp, #8]",
        "add r12, r12, #16",
        "str r12, [sp, #8]",
        factor!("16", "32", "r0"),
        rescale!("r0"),
        factor!("20", "33", "r1"),
        rescale!("r1"),
        factor!("24", "34", "r2"),
        rescale!("r2"),
        factor!("28", "35", "r3"),
        rescale!("r3"),
        "ldr r8, [sp, #16]",
        "strb r0, [r8], #4",
        "strb r1, [r8, #-3]",
        "strb r2, [r8, #-2]",
        "strb r3, [r8, #-1]",
        "str r8, [sp, #16]",
    )
}

/// As [`super::quads::expand`].
pub fn expand(to: &mut [u16], run: &[i8]) -> i32 {
    if run.is_empty() || to.len() < 2 * run.len() - 1 {
        return quads::expand(to, run);
    }
    let mut sum = 0;
    for (to, run) in to.chunks_mut(2 * EXPANDED).zip(run.chunks(EXPANDED)) {
        // SAFETY: element `2 * (run.len() - 1)` is the last that is written, inside of `to` (checked above); `run` is read as long as it is.
        sum += unsafe { expand_run(run.as_ptr(), to.as_mut_ptr(), run.len()) };
    }
    sum
}

/// Activations whose sum is kept in two halves of a word, half of them in each: `256 * 255 < 2^16`.
const EXPANDED: usize = 512;

macro_rules! expand_four {
    () => {
        concat!(
            "ldr r3, [r0], #4\n",
            "eor r3, r3, #0x80808080\n",
            "and r4, r3, #0x00FF00FF\n",
            "bic r3, r3, r4\n",
            "add r12, r12, r4\n",
            "add r12, r12, r3, lsr #8\n",
            "strh r4, [r1], #16\n",
            "lsr r4, r4, #16\n",
            "strh r4, [r1, #-8]\n",
            "ubfx r4, r3, #8, #8\n",
            "strh r4, [r1, #-12]\n",
            "lsr r3, r3, #24\n",
            "strh r3, [r1, #-4]\n",
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn expand_run(from: *const i8, to: *mut u16, len: usize) -> i32 {
    naked_asm!(
        "push {{r4, lr}}",
        "mov r12, #0",
        "subs r2, r2, #8",
        "blt 2f",
        "1:",
        expand_four!(),
        expand_four!(),
        "subs r2, r2, #8",
        "bge 1b",
        "2:",
        "uxth r4, r12",
        "add r12, r4, r12, lsr #16",
        "adds r2, r2, #8",
        "beq 4f",
        "3:",
        "ldrb r3, [r0], #1",
        "eor r3, r3, #128",
        "strh r3, [r1], #4",
        "add r12, r12, r3",
        "subs r2, r2, #1",
        "bne 3b",
        "4:",
        "mov r0, r12",
        "pop {{r4, pc}}",
    )
}

/// As [`super::generic::depthwise_row`] for 3x3. False if it does not serve.
pub fn depthwise_row(r: &mut DepthwiseRow<'_>) -> bool {
    arm_quads::depthwise_row(r, depthwise_3x3)
}

/// A tap in r8, its weight in r9, the sum in r12.
macro_rules! three_taps {
    ($row:literal, $weights:literal) => {
        concat!(
            "ldrsb r8, [",
            $row,
            ", r6]\n",
            "ldrsb r9, [",
            $weights,
            ", r6]\n",
            "mla r12, r8, r9, r12\n",
            "ldrsb r8, [",
            $row,
            ", r7]\n",
            "ldrsb r9, [",
            $weights,
            ", r7]\n",
            "mla r12, r8, r9, r12\n",
            "ldrsb r8, [",
            $row,
            "], #1\n",
            "ldrsb r9, [",
            $weights,
            "], #1\n",
            "mla r12, r8, r9, r12\n",
        )
    };
}

/// Rows in r0..r2, the filter's in r3..r5, distances of taps in r6 and r7, the channel in lr.
#[unsafe(naked)]
unsafe extern "C" fn depthwise_3x3(_: &Pixel) {
    naked_asm!(
        "push {{r4-r11, lr}}",
        "add r1, r0, #28",
        "ldm r1, {{r8-r12}}",
        "push {{r8-r12}}",
        "ldm r0, {{r0-r6}}",
        // The order of the frame: the channels lie between rows and weights.
        "mov r7, r3",
        "mov r3, r4",
        "mov r4, r5",
        "mov r5, r6",
        "mov r6, r7",
        "lsl r7, r6, #1",
        "mov lr, #0",
        "1:",
        "ldr r12, [sp, #0]",
        "ldr r12, [r12, lr, lsl #2]",
        three_taps!("r0", "r3"),
        three_taps!("r1", "r4"),
        three_taps!("r2", "r5"),
        "ldr r8, [sp, #4]",
        "ldr r9, [sp, #8]",
        "ldr r8, [r8, lr, lsl #2]",
        "ldrb r9, [r9, lr]",
        "ldr r10, [sp, #16]",
        "subs r9, r9, #33",
        shift_and_round!("r12"),
        rescale!("r12"),
        "ldr r9, [sp, #12]",
        "strb r12, [r9, lr]",
        "add lr, lr, #1",
        "cmp lr, r6",
        "bne 1b",
        "add sp, sp, #20",
        "pop {{r4-r11, pc}}",
    )
}
