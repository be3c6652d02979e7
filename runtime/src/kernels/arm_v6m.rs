//! Cortex-M0, M0+, M1 and M23: eight registers for arithmetic, six more that can be added to, and a multiplication of 32 bits.
//!
//! The matrix kernel is that of [`super::quads`]: four rows by two pixels, whose eight sums lie in two low and six high registers. LDM brings
//! the words of two `k`; each of four rows then costs LDRB, MULS, ADD, LSRS, ADD: 41 instructions for 16 products, 2.6 each. With one
//! pixel a row costs LDRB, MULS, ADD: 3.3.
//!
//! Of narrow weights eight products are summed before they are taken apart, which pays for the shifts that unpack them.
//!
//! The output stage needs the high word of a product, which is put together from four of 16 bits.

#![allow(unsafe_code)]

use super::arm_quads::{self, Pixel};
use super::{DepthwiseRow, Output, quads};
use crate::format::blocks::{Blocks, Layout};
use crate::uses::{has_asymmetric, has_blocks};
use core::arch::naked_asm;

/// What the matrix kernels read beside what those of all cores do.
#[repr(C)]
struct Rest {
    /// What sums begin with; of weights with zero points, what is added to them for every unit that is added to weights where they are stored.
    low: i32,
    high: i32,
    /// Bytes of weights that the unrolled loop skips in its first round.
    skip: usize,
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
    let by_row = has_asymmetric(USES) && bits < 8;
    let offset = if by_row { -1 } else { -1 << (bits - 1) };
    let [low, high] = [sums[0], sums[1]].map(|sum| sum.wrapping_mul(offset));
    let rest = Rest {
        low: if pixels == 2 && !by_row { low.wrapping_add(high << 16) } else { low },
        high,
        skip: if bits == 8 { blocks.padded_k() % 8 * 4 } else { 0 },
    };
    arm_quads::matrix(blocks, patches, pixels, to, output, at, kernel, rest)
}

/// Saves registers, copies [`Call`] to the stack and begins the loop over blocks: weights at r3, activations at r4, their end in r7.
macro_rules! frame {
    ($($body:expr),* $(,)?) => {
        naked_asm!(
            "push {{r4-r7, lr}}",
            "mov r4, r8",
            "mov r5, r9",
            "mov r6, r10",
            "mov r7, r11",
            "push {{r4-r7}}",
            "sub sp, #44",
            "mov r7, sp",
            "ldm r0!, {{r1-r5}}",
            "stm r7!, {{r1-r5}}",
            "ldm r0!, {{r1-r5}}",
            "stm r7!, {{r1-r5}}",
            "1:",
            "ldr r3, [sp, #8]",
            "adds r3, #48",
            "ldr r4, [sp, #0]",
            "ldr r7, [sp, #4]",
            "ldr r5, [sp, #28]",
            "ldr r6, [sp, #32]",
            $($body,)*
            // The next block, if there is one.
            "ldr r3, [sp, #40]",
            "str r3, [sp, #8]",
            "ldr r4, [sp, #12]",
            "cmp r3, r4",
            "beq 9f",
            "b 1b",
            "9:",
            "add sp, #44",
            "pop {{r4-r7}}",
            "mov r8, r4",
            "mov r9, r5",
            "mov r10, r6",
            "mov r11, r7",
            "pop {{r4-r7, pc}}",
        )
    };
}

/// Product of the weight at `$at` and two pixels in `$word`.
macro_rules! two_products {
    ($at:literal, $word:literal, $low:literal, $high:literal) => {
        concat!(
            "ldrb r2, [r3, #",
            $at,
            "]\n",
            "muls r2, ",
            $word,
            ", r2\n",
            "add ",
            $low,
            ", r2\n",
            "lsrs r2, r2, #16\n",
            "add ",
            $high,
            ", r2\n",
        )
    };
}

/// Two `k` of four rows and two pixels; the weights of a row are four bytes apart from the next one's.
macro_rules! two_k_x2 {
    ($(($row:tt, $next:tt, $low:literal, $high:literal)),*) => {
        concat!(
            "ldm r4!, {{r0, r1}}\n",
            $(two_products!($row, "r0", $low, $high), two_products!($next, "r1", $low, $high),)*
        )
    };
}

/// Accumulators of the rows.
macro_rules! rows_x2 {
    ($a:tt, $b:tt, $c:tt, $d:tt, $e:tt, $f:tt, $g:tt, $h:tt) => {
        two_k_x2!(($a, $b, "r8", "r9"), ($c, $d, "r10", "r11"), ($e, $f, "r12", "lr"), ($g, $h, "r5", "r6"))
    };
}

/// The high word of `$a` times r3:r2 (the multiplier's halves): `$a` and r4..r6 in, `$a` out.
macro_rules! high_word {
    ($a:literal) => {
        concat!(
            "uxth r4, ",
            $a,
            "\n",
            "asrs ",
            $a,
            ", ",
            $a,
            ", #16\n",
            "mov r5, r4\n",
            "muls r5, r2, r5\n",
            "lsrs r5, r5, #16\n",
            "mov r6, ",
            $a,
            "\n",
            "muls r6, r2, r6\n",
            "adds r5, r5, r6\n",
            "muls r4, r3, r4\n",
            "muls ",
            $a,
            ", r3, ",
            $a,
            "\n",
            "uxth r6, r5\n",
            "adds r4, r4, r6\n",
            "asrs r4, r4, #16\n",
            "asrs r5, r5, #16\n",
            "adds ",
            $a,
            ", ",
            $a,
            ", r4\n",
            "adds ",
            $a,
            ", ",
            $a,
            ", r5\n",
        )
    };
}

/// Saturates to eight bits, with r4 at hand.
macro_rules! saturate {
    ($a:literal) => {
        concat!(
            "sxtb r4, ",
            $a,
            "\n",
            "cmp r4, ",
            $a,
            "\n",
            "beq 8f\n",
            "asrs ",
            $a,
            ", ",
            $a,
            ", #31\n",
            "movs r4, #127\n",
            "eors ",
            $a,
            ", r4\n",
            "8:\n",
        )
    };
}

/// Multiplier's halves to r2 and r3, shift less 33 to r7, which held the block.
macro_rules! factor {
    ($multiplier:literal, $shift:literal) => {
        concat!(
            "ldr r3, [r7, #",
            $multiplier,
            "]\n",
            "movs r4, #",
            $shift,
            "\n",
            "ldrb r7, [r7, r4]\n",
            "uxth r2, r3\n",
            "asrs r3, r3, #16\n",
            "subs r7, #33\n",
        )
    };
}

/// Doubles with saturation, with r4 at hand: what a shift below 33 needs.
macro_rules! double {
    ($a:literal) => {
        concat!(
            "adds ",
            $a,
            ", ",
            $a,
            ", ",
            $a,
            "\n",
            "bvc 5f\n",
            "asrs ",
            $a,
            ", ",
            $a,
            ", #31\n",
            "movs r4, #1\n",
            "lsls r4, r4, #31\n",
            "eors ",
            $a,
            ", r4\n",
            "5:\n",
        )
    };
}

/// Makes up for what is added to the weights of a row where they are stored, `$middle` and their zero point: the block at r7, sums in r0 and r1.
macro_rules! offset_x2 {
    ($middle:literal, $zero:literal) => {
        concat!(
            "movs r4, #",
            $zero,
            "\n",
            "ldrsb r4, [r7, r4]\n",
            "adds r4, #",
            $middle,
            "\n",
            "ldr r2, [sp, #28]\n",
            "muls r2, r4, r2\n",
            "adds r0, r0, r2\n",
            "ldr r2, [sp, #32]\n",
            "muls r2, r4, r2\n",
            "adds r1, r1, r2\n",
        )
    };
}

/// Output stage of one row; `$offset` makes up for what is added to weights with zero points.
macro_rules! finish_x2 {
    ($row:literal, $bias:literal, $multiplier:literal, $shift:literal, $low:literal, $high:literal, $offset:expr) => {
        concat!(
            "ldr r7, [sp, #8]\n",
            "mov r0, ",
            $low,
            "\n",
            "mov r1, ",
            $high,
            "\n",
            "lsls r2, r1, #16\n",
            "subs r0, r0, r2\n",
            "ldr r2, [r7, #",
            $bias,
            "]\n",
            "adds r0, r0, r2\n",
            "adds r1, r1, r2\n",
            $offset,
            factor!($multiplier, $shift),
            "bge 7f\n",
            "6:\n",
            double!("r0"),
            double!("r1"),
            "adds r7, #1\n",
            "bne 6b\n",
            "7:\n",
            high_word!("r0"),
            high_word!("r1"),
            "ldr r4, [sp, #24]\n",
            "lsls r4, r7\n",
            "adds r7, #1\n",
            "adds r0, r0, r4\n",
            "adds r1, r1, r4\n",
            "asrs r0, r7\n",
            "asrs r1, r7\n",
            saturate!("r0"),
            saturate!("r1"),
            "ldr r4, [sp, #16]\n",
            "strb r0, [r4, #",
            $row,
            "]\n",
            "ldr r5, [sp, #20]\n",
            "strb r1, [r5, #",
            $row,
            "]\n",
        )
    };
}

/// Output stage of four rows; the last row's sums lie in r5 and r6, which it overwrites.
macro_rules! finish_rows_x2 {
    ($a:expr, $b:expr, $c:expr, $d:expr) => {
        concat!(
            finish_x2!("3", "12", "28", "35", "r5", "r6", $d),
            finish_x2!("0", "0", "16", "32", "r8", "r9", $a),
            finish_x2!("1", "4", "20", "33", "r10", "r11", $b),
            finish_x2!("2", "8", "24", "34", "r12", "lr", $c),
            "adds r4, #4\n",
            "adds r5, #4\n",
            "str r4, [sp, #16]\n",
            "str r5, [sp, #20]\n",
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn quads_x2(_: &Call) {
    frame!(
        "mov r8, r5",
        "mov r9, r6",
        "mov r10, r5",
        "mov r11, r6",
        "mov r12, r5",
        "mov lr, r6",
        "ldr r0, [sp, #36]",
        "subs r3, r3, r0",
        "cmp r0, #0",
        "beq 2f",
        "b 3f",
        "2:",
        rows_x2!("0", "1", "4", "5", "8", "9", "12", "13"),
        rows_x2!("2", "3", "6", "7", "10", "11", "14", "15"),
        "3:",
        rows_x2!("16", "17", "20", "21", "24", "25", "28", "29"),
        rows_x2!("18", "19", "22", "23", "26", "27", "30", "31"),
        "adds r3, #32",
        "cmp r4, r7",
        "beq 4f",
        "b 2b",
        "4:",
        "str r3, [sp, #40]",
        finish_rows_x2!("", "", "", ""),
    )
}

/// A narrow weight of the byte at `$at` in `$to`: shifted left, unless it is the highest, then right.
macro_rules! narrow {
    ($to:literal, $at:literal, $left:literal, $right:literal) => {
        concat!(
            "ldrb ", $to, ", [r3, #", $at, "]\n", "lsls ", $to, ", ", $to, ", #", $left, "\n", "lsrs ", $to, ", ", $to,
            ", #", $right, "\n",
        )
    };
    ($to:literal, $at:literal, $right:literal) => {
        concat!("ldrb ", $to, ", [r3, #", $at, "]\n", "lsrs ", $to, ", ", $to, ", #", $right, "\n",)
    };
}

/// Words of two `k`, and the products of the narrow weights there.
macro_rules! two_k_narrow {
    (($($first:literal),*), ($($second:literal),*)) => {
        concat!(
            "ldm r4!, {{r0, r1}}\n",
            narrow!("r2", $($first),*),
            "muls r2, r0, r2\n",
            "adds r5, r5, r2\n",
            narrow!("r2", $($second),*),
            "muls r2, r1, r2\n",
            "adds r5, r5, r2\n",
        )
    };
}

/// Eight `k` of a row: their products are summed in r5 before they are taken apart. The next row begins at the first again.
macro_rules! row_narrow {
    ($low:literal, $high:literal, ($($first:literal),*), ($($second:literal),*), $($pairs:expr),*) => {
        concat!(
            "ldm r4!, {{r0, r1}}\n",
            narrow!("r5", $($first),*),
            "muls r5, r0, r5\n",
            narrow!("r2", $($second),*),
            "muls r2, r1, r2\n",
            "adds r5, r5, r2\n",
            $($pairs,)*
            "add ", $low, ", r5\n",
            "lsrs r5, r5, #16\n",
            "add ", $high, ", r5\n",
            "subs r4, #32\n",
        )
    };
}

macro_rules! row_s4 {
    ($low:literal, $high:literal, $a:literal, $b:literal, $c:literal, $d:literal) => {
        row_narrow!(
            $low,
            $high,
            ($a, "28", "28"),
            ($a, "4"),
            two_k_narrow!(($b, "28", "28"), ($b, "4")),
            two_k_narrow!(($c, "28", "28"), ($c, "4")),
            two_k_narrow!(($d, "28", "28"), ($d, "4"))
        )
    };
}

macro_rules! row_s2 {
    ($low:literal, $high:literal, $a:literal, $b:literal) => {
        row_narrow!(
            $low,
            $high,
            ($a, "30", "30"),
            ($a, "28", "30"),
            two_k_narrow!(($a, "26", "30"), ($a, "6")),
            two_k_narrow!(($b, "30", "30"), ($b, "28", "30")),
            two_k_narrow!(($b, "26", "30"), ($b, "6"))
        )
    };
}

/// Two pixels and narrow weights, eight `k` of which have `$step` bytes in four rows. The last row's sums lie in r6 and r7 until the output
/// stage. Sums begin as `$begin` leaves them in r6 and r7.
macro_rules! narrow_x2 {
    ($begin:expr, $finish:expr, $step:literal, $($row:expr),*) => {
        frame!(
            $begin,
            "mov r8, r6",
            "mov r9, r7",
            "mov r10, r6",
            "mov r11, r7",
            "mov r12, r6",
            "mov lr, r7",
            "2:",
            $($row,)*
            "adds r4, #32",
            concat!("adds r3, #", $step),
            "ldr r0, [sp, #4]",
            "cmp r4, r0",
            "beq 4f",
            "b 2b",
            "4:",
            "str r3, [sp, #40]",
            "mov r5, r6",
            "mov r6, r7",
            $finish,
        )
    };
}

/// The offset of narrow weights, to r6 and r7.
macro_rules! begin_with_offsets {
    () => {
        "mov r7, r6\nmov r6, r5\n"
    };
}

/// Nothing: offsets come at the end.
macro_rules! begin_with_zeros {
    () => {
        "movs r6, #0\nmovs r7, #0\n"
    };
}

/// Output stage of four rows whose weights have zero points.
macro_rules! finish_rows_asymmetric {
    ($middle:literal) => {
        finish_rows_x2!(
            offset_x2!($middle, "36"),
            offset_x2!($middle, "37"),
            offset_x2!($middle, "38"),
            offset_x2!($middle, "39")
        )
    };
}

macro_rules! s4_x2 {
    ($begin:expr, $finish:expr) => {
        narrow_x2!(
            $begin,
            $finish,
            "16",
            row_s4!("r8", "r9", "0", "1", "2", "3"),
            row_s4!("r10", "r11", "4", "5", "6", "7"),
            row_s4!("r12", "lr", "8", "9", "10", "11"),
            row_s4!("r6", "r7", "12", "13", "14", "15")
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn quads_s4_x2(_: &Call) {
    s4_x2!(begin_with_offsets!(), finish_rows_x2!("", "", "", ""))
}

#[unsafe(naked)]
unsafe extern "C" fn quads_s4_x2_asymmetric(_: &Call) {
    s4_x2!(begin_with_zeros!(), finish_rows_asymmetric!("8"))
}

macro_rules! s2_x2 {
    ($begin:expr, $finish:expr) => {
        narrow_x2!(
            $begin,
            $finish,
            "8",
            row_s2!("r8", "r9", "0", "1"),
            row_s2!("r10", "r11", "2", "3"),
            row_s2!("r12", "lr", "4", "5"),
            row_s2!("r6", "r7", "6", "7")
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn quads_s2_x2(_: &Call) {
    s2_x2!(begin_with_offsets!(), finish_rows_x2!("", "", "", ""))
}

#[unsafe(naked)]
unsafe extern "C" fn quads_s2_x2_asymmetric(_: &Call) {
    s2_x2!(begin_with_zeros!(), finish_rows_asymmetric!("2"))
}

/// One product of the weight at `$at`.
macro_rules! product {
    ($at:literal, $word:literal, $sum:literal) => {
        concat!("ldrb r2, [r3, #", $at, "]\n", "muls r2, ", $word, ", r2\n", "add ", $sum, ", r2\n",)
    };
}

/// Activations of four `k`.
macro_rules! four_bytes {
    ($a:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(
            "ldrb r0, [r4, #",
            $a,
            "]\n",
            "ldrb r1, [r4, #",
            $b,
            "]\n",
            "ldrb r5, [r4, #",
            $c,
            "]\n",
            "ldrb r6, [r4, #",
            $d,
            "]\n",
        )
    };
}

/// Four `k` of one row.
macro_rules! row_x1 {
    ($sum:literal, $a:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(product!($a, "r0", $sum), product!($b, "r1", $sum), product!($c, "r5", $sum), product!($d, "r6", $sum))
    };
}

/// One sum in r0 rescaled and saturated; factor as [`factor`] leaves it with its flags, rounding on the stack.
macro_rules! rescale_x1 {
    ($rounding:literal) => {
        concat!(
            "bge 7f\n",
            "6:\n",
            double!("r0"),
            "adds r7, #1\n",
            "bne 6b\n",
            "7:\n",
            high_word!("r0"),
            "ldr r4, [sp, #",
            $rounding,
            "]\n",
            "lsls r4, r7\n",
            "adds r7, #1\n",
            "adds r0, r0, r4\n",
            "asrs r0, r7\n",
            saturate!("r0"),
        )
    };
}

/// Output stage of one row.
macro_rules! finish_x1 {
    ($row:literal, $bias:literal, $multiplier:literal, $shift:literal, $sum:literal) => {
        concat!(
            "ldr r7, [sp, #8]\n",
            "ldr r0, [r7, #",
            $bias,
            "]\n",
            "add r0, ",
            $sum,
            "\n",
            factor!($multiplier, $shift),
            rescale_x1!("24"),
            "ldr r4, [sp, #16]\n",
            "strb r0, [r4, #",
            $row,
            "]\n",
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn quads_x1(_: &Call) {
    frame!(
        "mov r8, r5",
        "mov r9, r5",
        "mov r10, r5",
        "mov r11, r5",
        "ldr r0, [sp, #36]",
        "subs r3, r3, r0",
        "lsrs r0, r0, #2",
        "subs r4, r4, r0",
        "cmp r0, #0",
        "bne 3f",
        "2:",
        four_bytes!("0", "1", "2", "3"),
        row_x1!("r8", "0", "1", "2", "3"),
        row_x1!("r9", "4", "5", "6", "7"),
        row_x1!("r10", "8", "9", "10", "11"),
        row_x1!("r11", "12", "13", "14", "15"),
        "3:",
        four_bytes!("4", "5", "6", "7"),
        row_x1!("r8", "16", "17", "18", "19"),
        row_x1!("r9", "20", "21", "22", "23"),
        row_x1!("r10", "24", "25", "26", "27"),
        row_x1!("r11", "28", "29", "30", "31"),
        "adds r3, #32",
        "adds r4, #8",
        "cmp r4, r7",
        "bne 2b",
        "str r3, [sp, #40]",
        finish_x1!("0", "0", "16", "32", "r8"),
        finish_x1!("1", "4", "20", "33", "r9"),
        finish_x1!("2", "8", "24", "34", "r10"),
        finish_x1!("3", "12", "28", "35", "r11"),
        "adds r4, #4",
        "str r4, [sp, #16]",
    )
}

/// As [`super::quads::expand`].
pub fn expand(to: &mut [u16], run: &[i8]) -> i32 {
    if run.is_empty() || to.len() < 2 * run.len() - 1 {
        return quads::expand(to, run);
    }
    // SAFETY: element `2 * (run.len() - 1)` is the last that is written, inside of `to` (checked above); `run` is read as long as it is.
    unsafe { expand_run(run.as_ptr(), to.as_mut_ptr(), run.len()) }
}

macro_rules! expand_one {
    ($from:literal, $to:literal) => {
        concat!("ldrb r3, [r0, #", $from, "]\n", "eors r3, r5\n", "strh r3, [r1, #", $to, "]\n", "adds r4, r4, r3\n",)
    };
}

#[unsafe(naked)]
unsafe extern "C" fn expand_run(from: *const i8, to: *mut u16, len: usize) -> i32 {
    naked_asm!(
        "push {{r4, r5, lr}}",
        "movs r4, #0",
        "movs r5, #128",
        "subs r2, #8",
        "blt 2f",
        "1:",
        expand_one!("0", "0"),
        expand_one!("1", "4"),
        expand_one!("2", "8"),
        expand_one!("3", "12"),
        expand_one!("4", "16"),
        expand_one!("5", "20"),
        expand_one!("6", "24"),
        expand_one!("7", "28"),
        "adds r0, #8",
        "adds r1, #32",
        "subs r2, #8",
        "bge 1b",
        "2:",
        "adds r2, #8",
        "beq 4f",
        "3:",
        expand_one!("0", "0"),
        "adds r0, #1",
        "adds r1, #4",
        "subs r2, #1",
        "bne 3b",
        "4:",
        "mov r0, r4",
        "pop {{r4, r5, pc}}",
    )
}

/// As [`super::generic::depthwise_row`] for 3x3. False if it does not serve.
pub fn depthwise_row(r: &mut DepthwiseRow<'_>) -> bool {
    arm_quads::depthwise_row(r, depthwise_3x3)
}

/// Three taps of the window's row `$row` and the filter's row `$weights`; offsets of the taps in r2..r4, sum in r5.
macro_rules! three_taps {
    ($row:literal, $weights:literal) => {
        concat!(
            "mov r0, ",
            $row,
            "\n",
            "mov r1, ",
            $weights,
            "\n",
            "ldrsb r6, [r0, r2]\n",
            "ldrsb r7, [r1, r2]\n",
            "muls r6, r7, r6\n",
            "adds r5, r5, r6\n",
            "ldrsb r6, [r0, r3]\n",
            "ldrsb r7, [r1, r3]\n",
            "muls r6, r7, r6\n",
            "adds r5, r5, r6\n",
            "ldrsb r6, [r0, r4]\n",
            "ldrsb r7, [r1, r4]\n",
            "muls r6, r7, r6\n",
            "adds r5, r5, r6\n",
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn depthwise_3x3(_: &Pixel) {
    naked_asm!(
        "push {{r4-r7, lr}}",
        "mov r4, r8",
        "mov r5, r9",
        "mov r6, r10",
        "mov r7, r11",
        "push {{r4-r7}}",
        "sub sp, #28",
        "mov r7, sp",
        "ldm r0!, {{r1-r3}}",
        "mov r8, r1",
        "mov r9, r2",
        "mov r10, r3",
        "ldm r0!, {{r1-r4}}",
        "str r1, [r7]",
        "mov r11, r2",
        "mov r12, r3",
        "mov lr, r4",
        "ldm r0!, {{r1-r5}}",
        "adds r7, #4",
        "stm r7!, {{r1-r5}}",
        "movs r2, #0",
        "ldr r5, [sp, #0]",
        "1:",
        "adds r3, r2, r5",
        "adds r4, r3, r5",
        "ldr r5, [sp, #4]",
        "lsls r6, r2, #2",
        "ldr r5, [r5, r6]",
        three_taps!("r8", "r11"),
        three_taps!("r9", "r12"),
        three_taps!("r10", "lr"),
        "mov r0, r5",
        "mov r1, r2",
        "lsls r6, r1, #2",
        "ldr r3, [sp, #8]",
        "ldr r3, [r3, r6]",
        "ldr r7, [sp, #12]",
        "ldrb r7, [r7, r1]",
        "uxth r2, r3",
        "asrs r3, r3, #16",
        "subs r7, #33",
        rescale_x1!("20"),
        "ldr r4, [sp, #16]",
        "strb r0, [r4, r1]",
        "adds r2, r1, #1",
        "ldr r5, [sp, #0]",
        "cmp r2, r5",
        "bne 1b",
        "add sp, #28",
        "pop {{r4-r7}}",
        "mov r8, r4",
        "mov r9, r5",
        "mov r10, r6",
        "mov r11, r7",
        "pop {{r4-r7, pc}}",
    )
}
