//! Cortex-M4, M7 and M33: the DSP extension. `SXTB16` widens two of four bytes, `SMLAD` multiplies and adds two pairs of 16 bits,
//! `SMMLA` adds the high word of a product: the whole output stage but for a shift and a saturation.
//!
//! The matrix kernel holds two rows times three pixels in registers: of four `k`, one LDRD and four SXTB16 for the weights, and for every
//! pixel one LDRD and four SMLAD. That is 20 instructions for 24 products, 0.83 each. With one pixel (linear layers) weights are read
//! four words at a time: 18 instructions for 16 products.
//!
//! Narrow weights are widened by masking alone (`AND` with `0x000F000F`, `0x00F000F0`): what that leaves as a factor of 16 is made up for by
//! activations that were shifted when they were put into the patch, see [`super::patch::pair_shift`]. With one pixel a register is left for
//! the mask, and `AND` shifts what it masks.

#![allow(unsafe_code)]

use super::patch::{Rows, sum_shift};
use super::{DepthwiseRow, Memory, Output, Sum};
use crate::fixed::HighWord;
use crate::format::blocks::{Blocks, Layout};
use crate::format::sparse::Sparse;
use crate::uses::{has_asymmetric, has_blocks};

/// A naked function's body. The assembler must be told of the extension where it is an option.
#[cfg(feature = "dsp")]
macro_rules! naked {
    ($($body:tt)*) => { core::arch::naked_asm!(".cpu cortex-m33", $($body)*) };
}

/// A naked function's body.
#[cfg(not(feature = "dsp"))]
macro_rules! naked {
    ($($body:tt)*) => { core::arch::naked_asm!($($body)*) };
}

/// What the matrix kernels read, in the order of their stack frame.
#[repr(C)]
struct Call {
    /// Patches: begin and end.
    acts: *const i8,
    acts_end: *const i8,
    /// Blocks of two rows: begin and end.
    weights: *const u8,
    weights_end: *const u8,
    /// Where the pixels' next two outputs go.
    out: [*mut i8; 3],
    /// `2 * zero_point + 1`.
    rounding: i32,
    /// From the end of a block back to its multipliers.
    to_multipliers: i32,
    /// Quads of `k` that the unrolled loop skips in its first round.
    skip: usize,
    /// Narrow weights: what the sums begin with; of those with zero points, for every unit that is added to weights where they are stored.
    sums: [i32; 3],
}

/// Two rows times three pixels (`pixels` = 3) or one, for blocks that [`Blocks::rescales_by_high_word`]. False if a length is wrong.
pub fn pairs<const USES: u64>(
    blocks: &Blocks<'_>,
    patches: &[i8],
    pixels: usize,
    sums: [i32; 3],
    to: Output,
    output: &mut [i8],
    at: [usize; 3],
) -> bool {
    let (bits, n) = (blocks.bits(), blocks.n());
    let per_step = Layout::Pairs.depth(bits);
    let steps = blocks.padded_k() / per_step;
    let fits = |&at: &usize| at.checked_add(n).is_some_and(|end| end <= output.len());
    let served = blocks.layout() == Layout::Pairs
        && (pixels == 3 || pixels == 1)
        && patches.len() == blocks.padded_k() * 2 * pixels
        && patches.as_ptr().align_offset(4) == 0
        && blocks.as_bytes().as_ptr().align_offset(4) == 0
        && blocks.as_bytes().len() == Layout::Pairs.matrix_bytes(bits, n, blocks.k())
        && at.iter().take(pixels).all(fits)
        && n > 0;
    if !served {
        return false;
    }
    type Kernel = unsafe extern "C" fn(&Call);
    let either = |symmetric: Kernel, asymmetric: Kernel| if has_asymmetric(USES) { asymmetric } else { symmetric };
    let kernel: Kernel = match (bits, pixels) {
        (8, 3) if has_blocks(USES, Layout::Pairs, 8) => pairs_s8_x3,
        (8, _) if has_blocks(USES, Layout::Pairs, 8) => pairs_s8_x1,
        (4, 3) if has_blocks(USES, Layout::Pairs, 4) => either(pairs_s4_x3, pairs_s4_x3_asymmetric),
        (4, _) if has_blocks(USES, Layout::Pairs, 4) => either(pairs_s4_x1, pairs_s4_x1_asymmetric),
        (2, 3) if has_blocks(USES, Layout::Pairs, 2) => either(pairs_s2_x3, pairs_s2_x3_asymmetric),
        (2, _) if has_blocks(USES, Layout::Pairs, 2) => either(pairs_s2_x1, pairs_s2_x1_asymmetric),
        _ => return false,
    };
    let unroll = match (bits, pixels) {
        (8, 3) => 4,
        (4, _) => 2,
        _ => 1,
    };
    let block_bytes = Layout::Pairs.block_bytes(bits, blocks.k());
    let bytes = blocks.as_bytes();
    let whole = n / 2 * block_bytes;
    let offset = if has_asymmetric(USES) { 1 } else { 1i32 << (bits - 1) } << sum_shift(bits, pixels);
    let mut call = Call {
        acts: patches.as_ptr(),
        acts_end: patches.as_ptr_range().end,
        weights: bytes.as_ptr(),
        weights_end: bytes.as_ptr().wrapping_add(whole),
        out: at.map(|at| output.as_mut_ptr().wrapping_add(at)),
        rounding: 2 * to.zero_point + 1,
        to_multipliers: 8 - block_bytes as i32,
        skip: (unroll - steps % unroll) % unroll,
        sums: if bits == 8 { [0; 3] } else { sums.map(|sum| -sum * offset) },
    };
    if whole > 0 {
        // SAFETY: `patches` holds `steps` steps of `pixels` pixels and is aligned (checked above), `weights .. weights_end` are whole blocks of
        // `steps` steps (the length of the matrix was checked), and every kernel writes two outputs per pixel and block, which `fits` has
        // checked to lie in `output`.
        unsafe { kernel(&call) };
    }
    if n % 2 == 1 {
        // The last block has one row that nobody wants: its outputs go to a place of their own.
        let mut last = [[0i8; 2]; 3];
        call.weights = call.weights_end;
        call.weights_end = call.weights.wrapping_add(block_bytes);
        call.out = last.each_mut().map(|pair| pair.as_mut_ptr());
        // SAFETY: as above with one block, which exists because `n` is odd; two outputs per pixel go to `last`.
        unsafe { kernel(&call) };
        for (pair, at) in last.iter().zip(at).take(pixels) {
            if let Some(to) = output.get_mut(at + n - 1) {
                *to = pair[0];
            }
        }
    }
    at.into_iter().take(pixels).for_each(|at| clamp(to, output.get_mut(at..at + n).unwrap_or(&mut [])));
    true
}

/// The frame: the words of [`Call`] as offsets from the stack pointer.
macro_rules! frame {
    ($($body:expr),* $(,)?) => {
        naked!(
            "push {{r4-r11, lr}}",
            "ldm r0!, {{r1-r10}}",
            "ldr r11, [r0]",
            "ldr r12, [r0, #4]",
            "ldr lr, [r0, #8]",
            "push {{r1-r12, lr}}",
            "mov r12, r3",
            $($body,)*
            "add sp, sp, #52",
            "pop {{r4-r11, pc}}",
        )
    };
}

/// One pixel: four products each of two rows, weights in r6..r9.
macro_rules! pixel {
    ($first:literal, $second:literal) => {
        concat!(
            "ldrd r10, r11, [lr], #8\n",
            "smlad ",
            $first,
            ", r6, r10, ",
            $first,
            "\n",
            "smlad ",
            $first,
            ", r7, r11, ",
            $first,
            "\n",
            "smlad ",
            $second,
            ", r8, r10, ",
            $second,
            "\n",
            "smlad ",
            $second,
            ", r9, r11, ",
            $second,
            "\n",
        )
    };
}

/// Three pixels; accumulators of row 0 in r0..r2, of row 1 in r3..r5.
macro_rules! three_pixels {
    () => {
        concat!(pixel!("r0", "r3"), pixel!("r1", "r4"), pixel!("r2", "r5"))
    };
}

/// Four `k` of 8 bits: 80 bytes of code.
macro_rules! quad_s8 {
    () => {
        concat!(
            "ldrd r6, r8, [r12], #8\n",
            "sxtb16 r7, r6, ror #8\n",
            "sxtb16 r6, r6\n",
            "sxtb16 r9, r8, ror #8\n",
            "sxtb16 r8, r8\n",
            three_pixels!()
        )
    };
}

/// Four `k` of narrow weights: words at r12 (moved on by `$step`), shifted right by 8 for the upper half, masked.
macro_rules! quad_narrow {
    ($load:literal, $shift:literal, $first:literal, $second:literal) => {
        concat!(
            $load,
            "\n",
            $shift,
            "\n",
            "and r7, r6, #",
            $second,
            "\n",
            "and r6, r6, #",
            $first,
            "\n",
            "and r9, r8, #",
            $second,
            "\n",
            "and r8, r8, #",
            $first,
            "\n",
        )
    };
}

/// Rescales one row's three sums: shift byte in r9, multiplier in `$m`.
macro_rules! rescale {
    ($a:literal, $b:literal, $c:literal, $m:literal) => {
        concat!(
            "subs r9, r9, #33\n",
            "bge 6f\n",
            "5:\n",
            "qadd ",
            $a,
            ", ",
            $a,
            ", ",
            $a,
            "\n",
            "qadd ",
            $b,
            ", ",
            $b,
            ", ",
            $b,
            "\n",
            "qadd ",
            $c,
            ", ",
            $c,
            ", ",
            $c,
            "\n",
            "adds r9, r9, #1\n",
            "blt 5b\n",
            "6:\n",
            "lsl r11, r10, r9\n",
            "add r9, r9, #1\n",
            "smmla ",
            $a,
            ", ",
            $a,
            ", ",
            $m,
            ", r11\n",
            "smmla ",
            $b,
            ", ",
            $b,
            ", ",
            $m,
            ", r11\n",
            "smmla ",
            $c,
            ", ",
            $c,
            ", ",
            $m,
            ", r11\n",
            "asr ",
            $a,
            ", ",
            $a,
            ", r9\n",
            "asr ",
            $b,
            ", ",
            $b,
            ", r9\n",
            "asr ",
            $c,
            ", ",
            $c,
            ", r9\n",
            "ssat ",
            $a,
            ", #8, ",
            $a,
            "\n",
            "ssat ",
            $b,
            ", #8, ",
            $b,
            "\n",
            "ssat ",
            $c,
            ", #8, ",
            $c,
            "\n",
        )
    };
}

/// Output stage of three pixels, and the branch to the next block.
macro_rules! finish_x3 {
    () => {
        concat!("ldr r6, [sp, #32]\n", "add r6, r12, r6\n", finish_x3_at!())
    };
}

/// [`finish_x3`] with the multipliers at r6.
macro_rules! finish_x3_at {
    () => {
        concat!(
            "ldr r10, [sp, #28]\n",
            "ldm r6, {{r6, r7, r8}}\n",
            "uxtb r9, r8\n",
            rescale!("r0", "r1", "r2", "r6"),
            "uxtb r9, r8, ror #8\n",
            rescale!("r3", "r4", "r5", "r7"),
            "add r6, sp, #16\n",
            "ldm r6, {{r7, r8, r9}}\n",
            "bfi r0, r3, #8, #24\n",
            "bfi r1, r4, #8, #24\n",
            "bfi r2, r5, #8, #24\n",
            "strh r0, [r7], #2\n",
            "strh r1, [r8], #2\n",
            "strh r2, [r9], #2\n",
            "stm r6, {{r7, r8, r9}}\n",
            "ldr r6, [sp, #12]\n",
            "cmp r12, r6\n",
            "bne 1b\n",
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn pairs_s8_x3(_: &Call) {
    frame!(
        // Where the unrolled loop is entered: 80 bytes a quad.
        "ldr r0, [sp, #36]",
        "movs r1, #80",
        "muls r0, r1, r0",
        "adr r1, 2f",
        "add r0, r0, r1",
        "orr r0, r0, #1",
        "str r0, [sp, #36]",
        "1:",
        "ldrd r0, r3, [r12], #24",
        "ldr lr, [sp, #0]",
        "ldr r6, [sp, #36]",
        "mov r1, r0",
        "mov r2, r0",
        "mov r4, r3",
        "mov r5, r3",
        "bx r6",
        ".p2align 2",
        "2:",
        quad_s8!(),
        quad_s8!(),
        quad_s8!(),
        quad_s8!(),
        "ldr r6, [sp, #4]",
        "cmp lr, r6",
        "bne 2b",
        finish_x3!(),
    )
}

/// What is added to the weights of a block's two rows, to r7 and r8: the middle of the levels and the rows' zero points.
macro_rules! offsets {
    ($middle:literal) => {
        concat!(
            "ldrsb r7, [r12, #18]\n",
            "ldrsb r8, [r12, #19]\n",
            "add r7, r7, #",
            $middle,
            "\n",
            "add r8, r8, #",
            $middle,
            "\n",
        )
    };
}

/// Before the first `k` of narrow weights: sums begin with what their offset will add. With zero points every row has an offset of its own, around `$middle`.
macro_rules! begin_narrow_x3 {
    () => {
        concat!(
            "1:\n",
            "add r6, sp, #40\n",
            "ldm r6, {{r0, r1, r2}}\n",
            "ldr lr, [sp, #0]\n",
            "adds r12, r12, #24\n",
            "mov r3, r0\n",
            "mov r4, r1\n",
            "mov r5, r2\n",
        )
    };
    ($middle:literal) => {
        concat!(
            "1:\n",
            "add r6, sp, #40\n",
            "ldm r6, {{r0, r1, r2}}\n",
            "ldr lr, [sp, #0]\n",
            offsets!($middle),
            "adds r12, r12, #24\n",
            "mul r3, r0, r8\n",
            "mul r4, r1, r8\n",
            "mul r5, r2, r8\n",
            "mul r0, r0, r7\n",
            "mul r1, r1, r7\n",
            "mul r2, r2, r7\n",
        )
    };
}

/// After the last `k` of narrow weights: sums are scaled back and the bias added.
macro_rules! end_narrow_x3 {
    ($shift:literal) => {
        concat!(
            "ldr r6, [sp, #32]\n",
            "add r6, r12, r6\n",
            "ldrd r7, r8, [r6, #-8]\n",
            "add r0, r7, r0, asr #",
            $shift,
            "\n",
            "add r1, r7, r1, asr #",
            $shift,
            "\n",
            "add r2, r7, r2, asr #",
            $shift,
            "\n",
            "add r3, r8, r3, asr #",
            $shift,
            "\n",
            "add r4, r8, r4, asr #",
            $shift,
            "\n",
            "add r5, r8, r5, asr #",
            $shift,
            "\n",
        )
    };
}

/// Eight `k` of 4 bits: 172 bytes of code.
macro_rules! step_s4 {
    () => {
        concat!(
            quad_narrow!("ldrd r6, r8, [r12]", "", "0x000F000F", "0x00F000F0"),
            three_pixels!(),
            quad_narrow!("ldrd r6, r8, [r12], #8", "lsr r6, r6, #8\nlsr r8, r8, #8", "0x000F000F", "0x00F000F0"),
            three_pixels!(),
        )
    };
}

macro_rules! s4_x3 {
    ($begin:expr) => {
        frame!(
            $begin,
            "ldr r6, [sp, #36]",
            "cbz r6, 2f",
            "b 3f",
            "2:",
            step_s4!(),
            "3:",
            step_s4!(),
            "ldr r6, [sp, #4]",
            "cmp lr, r6",
            "bne 2b",
            end_narrow_x3!("4"),
            finish_x3!(),
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn pairs_s4_x3(_: &Call) {
    s4_x3!(begin_narrow_x3!())
}

#[unsafe(naked)]
unsafe extern "C" fn pairs_s4_x3_asymmetric(_: &Call) {
    s4_x3!(begin_narrow_x3!("8"))
}

macro_rules! s2_x3 {
    ($begin:expr) => {
        frame!(
            $begin,
            "2:",
            quad_narrow!("ldrd r6, r8, [r12]", "", "0x00030003", "0x000C000C"),
            three_pixels!(),
            quad_narrow!("ldrd r6, r8, [r12]", "", "0x00300030", "0x00C000C0"),
            three_pixels!(),
            quad_narrow!("ldrd r6, r8, [r12]", "lsr r6, r6, #8\nlsr r8, r8, #8", "0x00030003", "0x000C000C"),
            three_pixels!(),
            quad_narrow!("ldrd r6, r8, [r12], #8", "lsr r6, r6, #8\nlsr r8, r8, #8", "0x00300030", "0x00C000C0"),
            three_pixels!(),
            "ldr r6, [sp, #4]",
            "cmp lr, r6",
            "bne 2b",
            end_narrow_x3!("6"),
            finish_x3!(),
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn pairs_s2_x3(_: &Call) {
    s2_x3!(begin_narrow_x3!())
}

#[unsafe(naked)]
unsafe extern "C" fn pairs_s2_x3_asymmetric(_: &Call) {
    s2_x3!(begin_narrow_x3!("2"))
}

/// Four `k` of one pixel: words of both rows in `$w0`, `$w1`, activations in `$a0`, `$a1`.
macro_rules! quad_x1 {
    ($w0:literal, $w1:literal, $a0:literal, $a1:literal) => {
        concat!(
            "sxtb16 r2, ",
            $w0,
            "\n",
            "sxtb16 ",
            $w0,
            ", ",
            $w0,
            ", ror #8\n",
            "smlad r0, r2, ",
            $a0,
            ", r0\n",
            "smlad r0, ",
            $w0,
            ", ",
            $a1,
            ", r0\n",
            "sxtb16 r2, ",
            $w1,
            "\n",
            "sxtb16 ",
            $w1,
            ", ",
            $w1,
            ", ror #8\n",
            "smlad r1, r2, ",
            $a0,
            ", r1\n",
            "smlad r1, ",
            $w1,
            ", ",
            $a1,
            ", r1\n",
        )
    };
}

/// Eight `k` of one pixel.
macro_rules! two_quads_x1 {
    () => {
        concat!(
            "ldm r12!, {{r4, r5, r6, r7}}\n",
            "ldm lr!, {{r8, r9, r10, r11}}\n",
            quad_x1!("r4", "r5", "r8", "r9"),
            quad_x1!("r6", "r7", "r10", "r11"),
        )
    };
}

/// Output stage of one pixel, and the branch to the next block.
macro_rules! finish_x1 {
    () => {
        concat!("ldr r6, [sp, #32]\n", "add r6, r12, r6\n", finish_x1_at!())
    };
}

/// [`finish_x1`] with the multipliers at r6.
macro_rules! finish_x1_at {
    () => {
        concat!(
            "ldr r10, [sp, #28]\n",
            "ldm r6, {{r6, r7, r8}}\n",
            "uxtb r9, r8\n",
            "uxtb r8, r8, ror #8\n",
            "subs r9, r9, #33\n",
            "bge 6f\n",
            "5:\n",
            "qadd r0, r0, r0\n",
            "adds r9, r9, #1\n",
            "blt 5b\n",
            "6:\n",
            "subs r8, r8, #33\n",
            "bge 6f\n",
            "5:\n",
            "qadd r1, r1, r1\n",
            "adds r8, r8, #1\n",
            "blt 5b\n",
            "6:\n",
            "lsl r11, r10, r9\n",
            "lsl r10, r10, r8\n",
            "smmla r0, r0, r6, r11\n",
            "smmla r1, r1, r7, r10\n",
            "add r9, r9, #1\n",
            "add r8, r8, #1\n",
            "asr r0, r0, r9\n",
            "asr r1, r1, r8\n",
            "ssat r0, #8, r0\n",
            "ssat r1, #8, r1\n",
            "ldr r7, [sp, #16]\n",
            "bfi r0, r1, #8, #24\n",
            "strh r0, [r7], #2\n",
            "ldr r6, [sp, #12]\n",
            "str r7, [sp, #16]\n",
            "cmp r12, r6\n",
            "bne 1b\n",
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn pairs_s8_x1(_: &Call) {
    frame!(
        "1:",
        "ldrd r0, r1, [r12], #24",
        "ldr lr, [sp, #0]",
        "ldr r3, [sp, #4]",
        // Quads before a whole number of rounds of eight, one by one.
        "sub r4, r3, lr",
        "ands r4, r4, #56",
        "beq 3f",
        "add r3, lr, r4",
        "2:",
        "ldrd r4, r5, [r12], #8",
        "ldrd r8, r9, [lr], #8",
        quad_x1!("r4", "r5", "r8", "r9"),
        "cmp lr, r3",
        "bne 2b",
        "ldr r3, [sp, #4]",
        "cmp lr, r3",
        "beq 4f",
        "3:",
        two_quads_x1!(),
        two_quads_x1!(),
        two_quads_x1!(),
        two_quads_x1!(),
        "cmp lr, r3",
        "bne 3b",
        "4:",
        finish_x1!(),
    )
}

/// As [`begin_narrow_x3`], and the mask of weights.
macro_rules! begin_narrow_x1 {
    ($mask:literal) => {
        concat!(
            "1:\n",
            "ldr r0, [sp, #40]\n",
            "ldr lr, [sp, #0]\n",
            "ldr r3, [sp, #4]\n",
            "adds r12, r12, #24\n",
            "mov r1, r0\n",
            "mov r6, #",
            $mask,
            "\n"
        )
    };
    ($mask:literal, $middle:literal) => {
        concat!(
            "1:\n",
            "ldr r0, [sp, #40]\n",
            "ldr lr, [sp, #0]\n",
            "ldr r3, [sp, #4]\n",
            offsets!($middle),
            "adds r12, r12, #24\n",
            "mul r1, r0, r8\n",
            "mul r0, r0, r7\n",
            "mov r6, #",
            $mask,
            "\n"
        )
    };
}

/// After the last `k`: the bias is added.
macro_rules! end_narrow_x1 {
    () => {
        concat!(
            "ldr r6, [sp, #32]\n",
            "add r6, r12, r6\n",
            "ldrd r7, r8, [r6, #-8]\n",
            "add r0, r0, r7\n",
            "add r1, r1, r8\n",
        )
    };
}

/// A pair of weights out of `$w` times the pair `$a`.
macro_rules! masked {
    ($sum:literal, $w:literal, $shift:literal, $a:literal) => {
        concat!("and r2, r6, ", $w, $shift, "\n", "smlad ", $sum, ", r2, ", $a, ", ", $sum, "\n")
    };
}

/// Eight `k` of one pixel: four pairs of both rows.
macro_rules! four_pairs_x1 {
    ($s0:literal, $s1:literal, $s2:literal, $s3:literal) => {
        concat!(
            "ldm lr!, {{r8, r9, r10, r11}}\n",
            masked!("r0", "r4", $s0, "r8"),
            masked!("r0", "r4", $s1, "r9"),
            masked!("r0", "r4", $s2, "r10"),
            masked!("r0", "r4", $s3, "r11"),
            masked!("r1", "r5", $s0, "r8"),
            masked!("r1", "r5", $s1, "r9"),
            masked!("r1", "r5", $s2, "r10"),
            masked!("r1", "r5", $s3, "r11"),
        )
    };
}

macro_rules! step_s4_x1 {
    () => {
        concat!("ldrd r4, r5, [r12], #8\n", four_pairs_x1!("", ", lsr #4", ", lsr #8", ", lsr #12"))
    };
}

macro_rules! s4_x1 {
    ($begin:expr) => {
        frame!(
            $begin,
            "ldr r7, [sp, #36]",
            "cbz r7, 2f",
            "b 3f",
            "2:",
            step_s4_x1!(),
            "3:",
            step_s4_x1!(),
            "cmp lr, r3",
            "bne 2b",
            end_narrow_x1!(),
            finish_x1!(),
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn pairs_s4_x1(_: &Call) {
    s4_x1!(begin_narrow_x1!("0x000F000F"))
}

#[unsafe(naked)]
unsafe extern "C" fn pairs_s4_x1_asymmetric(_: &Call) {
    s4_x1!(begin_narrow_x1!("0x000F000F", "8"))
}

macro_rules! s2_x1 {
    ($begin:expr) => {
        frame!(
            $begin,
            "2:",
            "ldrd r4, r5, [r12], #8",
            four_pairs_x1!("", ", lsr #2", ", lsr #4", ", lsr #6"),
            four_pairs_x1!(", lsr #8", ", lsr #10", ", lsr #12", ", lsr #14"),
            "cmp lr, r3",
            "bne 2b",
            end_narrow_x1!(),
            finish_x1!(),
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn pairs_s2_x1(_: &Call) {
    s2_x1!(begin_narrow_x1!("0x00030003"))
}

#[unsafe(naked)]
unsafe extern "C" fn pairs_s2_x1_asymmetric(_: &Call) {
    s2_x1!(begin_narrow_x1!("0x00030003", "2"))
}

/// Block-sparse: one or two rows times three pixels or one, for matrices that [`Sparse::rescales_by_high_word`]. Of a block, 2 rows: 23 instructions for 24
/// products of three pixels, 12 for 8 of one; 1 row: 14 for 12, and 8 for 4. False if a length is wrong.
pub fn sparse(
    sparse: &Sparse<'_>,
    patches: &[i8],
    pixels: usize,
    to: Output,
    output: &mut [i8],
    at: [usize; 3],
) -> bool {
    let (n, rows) = (sparse.n(), sparse.rows());
    let fits = |&at: &usize| at.checked_add(n).is_some_and(|end| end <= output.len());
    let served = patches.len() == Layout::Pairs.padded_k(8, sparse.k()) * 2 * pixels
        && patches.as_ptr().align_offset(4) == 0
        && sparse.as_bytes().as_ptr().align_offset(4) == 0
        && at.iter().take(pixels).all(fits)
        && n > 0;
    let kernel = match (rows, pixels) {
        (2, 3) if served => sparse_2x4_x3,
        (2, 1) if served => sparse_2x4_x1,
        (1, 3) if served => sparse_1x4_x3,
        (1, 1) if served => sparse_1x4_x1,
        _ => return false,
    };
    let whole = match n % rows {
        0 => sparse.as_bytes().len(),
        _ => sparse.bands().last().map_or(0, |band| sparse.as_bytes().len() - band.len()),
    };
    let bytes = sparse.as_bytes();
    let mut call = Call {
        acts: patches.as_ptr(),
        acts_end: patches.as_ptr(),
        weights: bytes.as_ptr(),
        weights_end: bytes.as_ptr().wrapping_add(whole),
        out: at.map(|at| output.as_mut_ptr().wrapping_add(at)),
        rounding: 2 * to.zero_point + 1,
        to_multipliers: 0,
        skip: 0,
        sums: [0; 3],
    };
    if whole > 0 {
        // SAFETY: views of block-sparse weights are made of bytes that `Sparse::new_checked` has accepted: whole bands, as many as `n` rows have, none of
        // whose blocks leaves a row of `k`. So blocks are read inside of the bytes and activations inside of `patches`, whose length and alignment were
        // checked above; a band's outputs per pixel lie in `output`, as `fits` has checked.
        unsafe { kernel(&call) };
    }
    if whole < bytes.len() {
        // The last band has a row that nobody wants: its outputs go to a place of their own.
        let mut last = [[0i8; 2]; 3];
        call.weights = call.weights_end;
        call.weights_end = bytes.as_ptr_range().end;
        call.out = last.each_mut().map(|pair| pair.as_mut_ptr());
        // SAFETY: as above with one band; two outputs per pixel go to `last`.
        unsafe { kernel(&call) };
        for (pair, at) in last.iter().zip(at).take(pixels) {
            if let Some(to) = output.get_mut(at + n - 1) {
                *to = pair[0];
            }
        }
    }
    at.into_iter().take(pixels).for_each(|at| clamp(to, output.get_mut(at..at + n).unwrap_or(&mut [])));
    true
}

/// Begins a band at r12 with its blocks: `count` from `$count`, `$stage` bytes before the blocks, `$bytes` a shift of a block's. The stage's place goes to
/// `[sp, #8]`, the end of the blocks to `[sp, #4]` and r3; branches to `4:` if there is none. Leaves in r6 how many blocks the first run lacks.
macro_rules! begin_sparse {
    ($count:literal, $stage:literal, $shift:literal) => {
        concat!(
            "str r12, [sp, #8]\n",
            "ldrh r6, [r12, #",
            $count,
            "]\n",
            "add r12, r12, #",
            $stage,
            "\n",
            "ldr lr, [sp, #0]\n",
            "cmp r6, #0\n",
            "beq 4f\n",
            "add r7, r6, #3\n",
            "bic r7, r7, #3\n",
            "add r7, r7, r6, lsl #",
            $shift,
            "\n",
            "add r7, r7, r12\n",
            "str r7, [sp, #4]\n",
            "rsb r6, r6, #0\n",
            "and r6, r6, #3\n",
        )
    };
}

/// Enters a run of four blocks at number r6.
macro_rules! enter_run {
    () => {
        concat!(
            "tbb [pc, r6]\n",
            "7:\n",
            ".byte (20f - 7b) / 2\n",
            ".byte (21f - 7b) / 2\n",
            ".byte (22f - 7b) / 2\n",
            ".byte (23f - 7b) / 2\n",
        )
    };
}

/// A block of two rows and three pixels, whose gap lies `$gap` bytes behind r12.
macro_rules! block_2x4_x3 {
    ($gap:literal) => {
        concat!(
            "ldrb r10, [r12, #",
            $gap,
            "]\n",
            "ldrd r6, r8, [r12], #8\n",
            "add r10, r10, r10, lsl #1\n",
            "add lr, lr, r10, lsl #3\n",
            "sxtb16 r7, r6, ror #8\n",
            "sxtb16 r6, r6\n",
            "sxtb16 r9, r8, ror #8\n",
            "sxtb16 r8, r8\n",
            three_pixels!()
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn sparse_2x4_x3(_: &Call) {
    frame!(
        "1:",
        "ldrd r0, r3, [r12]",
        "mov r1, r0",
        "mov r2, r0",
        "mov r4, r3",
        "mov r5, r3",
        begin_sparse!("18", "20", "3"),
        enter_run!(),
        "20:",
        block_2x4_x3!("32"),
        "21:",
        block_2x4_x3!("25"),
        "22:",
        block_2x4_x3!("18"),
        "23:",
        block_2x4_x3!("11"),
        "ldr r6, [sp, #4]",
        "add r12, r12, #4",
        "cmp r12, r6",
        "bne 20b",
        "4:",
        "ldr r6, [sp, #8]",
        "add r6, r6, #8",
        finish_x3_at!(),
    )
}

/// A block of two rows and one pixel.
macro_rules! block_2x4_x1 {
    ($gap:literal) => {
        concat!(
            "ldrb r10, [r12, #",
            $gap,
            "]\n",
            "ldrd r4, r5, [r12], #8\n",
            "add lr, lr, r10, lsl #3\n",
            "ldrd r8, r9, [lr], #8\n",
            quad_x1!("r4", "r5", "r8", "r9"),
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn sparse_2x4_x1(_: &Call) {
    frame!(
        "1:",
        "ldrd r0, r1, [r12]",
        begin_sparse!("18", "20", "3"),
        "mov r3, r7",
        enter_run!(),
        "20:",
        block_2x4_x1!("32"),
        "21:",
        block_2x4_x1!("25"),
        "22:",
        block_2x4_x1!("18"),
        "23:",
        block_2x4_x1!("11"),
        "add r12, r12, #4",
        "cmp r12, r3",
        "bne 20b",
        "4:",
        "ldr r6, [sp, #8]",
        "add r6, r6, #8",
        finish_x1_at!(),
    )
}

/// One pixel of a row: weights in r6, r7.
macro_rules! pixel_1x4 {
    ($sum:literal) => {
        concat!(
            "ldrd r10, r11, [lr], #8\n",
            "smlad ",
            $sum,
            ", r6, r10, ",
            $sum,
            "\n",
            "smlad ",
            $sum,
            ", r7, r11, ",
            $sum,
            "\n",
        )
    };
}

/// A block of one row and three pixels; r4 holds 24, the bytes of four `k`.
macro_rules! block_1x4_x3 {
    ($gap:literal) => {
        concat!(
            "ldrb r10, [r12, #",
            $gap,
            "]\n",
            "ldr r6, [r12], #4\n",
            "mla lr, r10, r4, lr\n",
            "sxtb16 r7, r6, ror #8\n",
            "sxtb16 r6, r6\n",
            pixel_1x4!("r0"),
            pixel_1x4!("r1"),
            pixel_1x4!("r2"),
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn sparse_1x4_x3(_: &Call) {
    frame!(
        "movs r4, #24",
        "1:",
        "ldr r0, [r12]",
        "mov r1, r0",
        "mov r2, r0",
        begin_sparse!("10", "12", "2"),
        "mov r3, r7",
        enter_run!(),
        "20:",
        block_1x4_x3!("16"),
        "21:",
        block_1x4_x3!("13"),
        "22:",
        block_1x4_x3!("10"),
        "23:",
        block_1x4_x3!("7"),
        "add r12, r12, #4",
        "cmp r12, r3",
        "bne 20b",
        "4:",
        "ldr r6, [sp, #8]",
        "ldr r10, [sp, #28]",
        "ldrb r9, [r6, #8]",
        "ldr r6, [r6, #4]",
        rescale!("r0", "r1", "r2", "r6"),
        "add r6, sp, #16",
        "ldm r6, {{r7, r8, r9}}",
        "strb r0, [r7], #1",
        "strb r1, [r8], #1",
        "strb r2, [r9], #1",
        "stm r6, {{r7, r8, r9}}",
        "ldr r6, [sp, #12]",
        "cmp r12, r6",
        "bne 1b",
    )
}

/// A block of one row and one pixel.
macro_rules! block_1x4_x1 {
    ($gap:literal) => {
        concat!(
            "ldrb r10, [r12, #",
            $gap,
            "]\n",
            "ldr r4, [r12], #4\n",
            "add lr, lr, r10, lsl #3\n",
            "ldrd r8, r9, [lr], #8\n",
            "sxtb16 r2, r4\n",
            "sxtb16 r4, r4, ror #8\n",
            "smlad r0, r2, r8, r0\n",
            "smlad r0, r4, r9, r0\n",
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn sparse_1x4_x1(_: &Call) {
    frame!(
        "1:",
        "ldr r0, [r12]",
        begin_sparse!("10", "12", "2"),
        "mov r3, r7",
        enter_run!(),
        "20:",
        block_1x4_x1!("16"),
        "21:",
        block_1x4_x1!("13"),
        "22:",
        block_1x4_x1!("10"),
        "23:",
        block_1x4_x1!("7"),
        "add r12, r12, #4",
        "cmp r12, r3",
        "bne 20b",
        "4:",
        "ldr r6, [sp, #8]",
        "ldr r10, [sp, #28]",
        "ldrb r9, [r6, #8]",
        "ldr r6, [r6, #4]",
        "subs r9, r9, #33",
        "bge 6f",
        "5:",
        "qadd r0, r0, r0",
        "adds r9, r9, #1",
        "blt 5b",
        "6:",
        "lsl r11, r10, r9",
        "smmla r0, r0, r6, r11",
        "add r9, r9, #1",
        "asr r0, r0, r9",
        "ssat r0, #8, r0",
        "ldr r7, [sp, #16]",
        "ldr r6, [sp, #12]",
        "strb r0, [r7], #1",
        "str r7, [sp, #16]",
        "cmp r12, r6",
        "bne 1b",
    )
}

/// What the kernels of [`expand_rows`] and [`copy_rows`] read.
#[repr(C)]
struct RowsCall {
    to: *mut i16,
    /// Words of a run; for a copy its bytes.
    run: usize,
    runs: usize,
    /// Where the first run begins, the distance to the next, where the ring's runs end and begin again.
    from: *const i8,
    step: usize,
    end: *const i8,
    begin: *const i8,
    /// Whether the first word is an odd one of the patch.
    odd: usize,
}

impl RowsCall {
    fn new(to: *mut i16, run: usize, rows: &Rows<'_>) -> RowsCall {
        let begin = rows.ring.as_ptr().wrapping_add(rows.left);
        RowsCall {
            to,
            run,
            runs: rows.slots,
            from: begin.wrapping_add(rows.first * rows.row),
            step: rows.row,
            end: begin.wrapping_add(rows.slots * rows.row),
            begin,
            odd: 0,
        }
    }
}

/// Writes runs of whole words into a patch of pairs from `k`, a multiple of four, and returns their sum; for weights of 8 bits without the sum.
pub fn expand_rows<const USES: u64>(
    bits: u8,
    to: &mut [i16],
    pixels: usize,
    pixel: usize,
    k: usize,
    rows: &Rows<'_>,
) -> i32 {
    let quads = rows.run / 4;
    if quads == 0 || !rows.run.is_multiple_of(4) || !rows.are_inside() || !matches!(pixels, 1 | 3) {
        return 0;
    }
    let start = (k / 4 * pixels + pixel) * 4;
    let end = start + (rows.slots * quads - 1) * pixels * 4 + 4;
    if end > to.len() {
        return 0;
    }
    let kernel = match (bits, pixels) {
        (8, 3) if const { has_blocks(USES, Layout::Pairs, 8) } => expand_s8_x3,
        (8, _) if const { has_blocks(USES, Layout::Pairs, 8) } => expand_s8_x1,
        (4, 3) if const { has_blocks(USES, Layout::Pairs, 4) } => expand_s4_x3,
        (2, 3) if const { has_blocks(USES, Layout::Pairs, 2) } => expand_s2_x3,
        _ => expand_x1,
    };
    let call = RowsCall { odd: k / 4 % 2, ..RowsCall::new(to.as_mut_ptr().wrapping_add(start), quads, rows) };
    // SAFETY: `slots` times `quads` words are read from the ring (`are_inside`); of each, eight bytes are written, `pixels * 8` bytes after those
    // of the word before, the last of which end at `end <= to.len()`. LDR needs no alignment, STRD a multiple of 4, which `start` and the
    // distance keep and the caller's scratch has.
    unsafe { kernel(&call) }
}

/// [`expand_rows`] of one run, whose last word is filled up with zeros.
pub fn expand<const USES: u64>(bits: u8, to: &mut [i16], pixels: usize, pixel: usize, k: usize, run: &[i8]) -> i32 {
    let (words, rest) = run.as_chunks::<4>();
    let mut last = [0; 4];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    let whole = words.len() * 4;
    let mut sum = expand_rows::<USES>(bits, to, pixels, pixel, k, &Rows::single(words.as_flattened()));
    if whole < run.len() {
        sum += expand_rows::<USES>(bits, to, pixels, pixel, k + whole, &Rows::single(&last));
    }
    sum
}

/// Copies runs one after another.
pub fn copy_rows(to: &mut [i8], rows: &Rows<'_>) {
    if rows.run == 0 || !rows.are_inside() || rows.slots * rows.run > to.len() {
        return;
    }
    let call = RowsCall::new(to.as_mut_ptr().cast(), rows.run, rows);
    // SAFETY: `slots` runs are read from the ring (`are_inside`) and as many bytes written to `to`, whose length was checked. LDR and STR need
    // no alignment.
    unsafe { copy_runs(&call) };
}

/// To the next run in r8, around the ring; zero if there is none.
macro_rules! next_run {
    () => {
        concat!("add r8, r8, r9\n", "cmp r8, r10\n", "it eq\n", "moveq r8, r11\n", "subs r7, r7, #1\n")
    };
}

#[unsafe(naked)]
unsafe extern "C" fn copy_runs(_: &RowsCall) {
    naked!(
        "push {{r4-r11, lr}}",
        "ldm r0, {{r1, r6-r11}}",
        "and r5, r6, #3",
        "1:",
        "mov r0, r8",
        "lsrs r2, r6, #2",
        "beq 3f",
        "2:",
        "ldr r3, [r0], #4",
        "str r3, [r1], #4",
        "subs r2, r2, #1",
        "bne 2b",
        "3:",
        "movs r2, r5",
        "beq 5f",
        "4:",
        "ldrb r3, [r0], #1",
        "strb r3, [r1], #1",
        "subs r2, r2, #1",
        "bne 4b",
        "5:",
        next_run!(),
        "bne 1b",
        "pop {{r4-r11, pc}}",
    )
}

macro_rules! expand_word {
    ($step:literal) => {
        concat!(
            "ldr r12, [r0], #4\n",
            "sxtb16 r3, r12\n",
            "sxtb16 r12, r12, ror #8\n",
            "strd r3, r12, [r1], #",
            $step,
            "\n",
        )
    };
}

macro_rules! expand_loop {
    ($step:literal) => {
        naked!(
            "push {{r4-r11, lr}}",
            "ldm r0, {{r1, r6-r11}}",
            "1:",
            "mov r0, r8",
            "lsrs r2, r6, #1",
            "bcc 2f",
            expand_word!($step),
            "beq 3f",
            "2:",
            expand_word!($step),
            expand_word!($step),
            "subs r2, r2, #1",
            "bne 2b",
            "3:",
            next_run!(),
            "bne 1b",
            "movs r0, #0",
            "pop {{r4-r11, pc}}",
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn expand_s8_x3(_: &RowsCall) -> i32 {
    expand_loop!("24")
}

#[unsafe(naked)]
unsafe extern "C" fn expand_s8_x1(_: &RowsCall) -> i32 {
    expand_loop!("8")
}

/// A word with its sum in r4; `$first` and `$second` shift its pairs, r3 and r12.
macro_rules! expand_and_sum {
    ($step:literal, $first:literal, $second:literal) => {
        concat!(
            "ldr r12, [r0], #4\n",
            "sxtb16 r3, r12\n",
            "sxtb16 r12, r12, ror #8\n",
            "smlad r4, r3, r5, r4\n",
            "smlad r4, r12, r5, r4\n",
            $first,
            "\n",
            $second,
            "\n",
            "strd r3, r12, [r1], #",
            $step,
            "\n",
            "subs r2, r2, #1\n",
        )
    };
}

/// Words whose quads are even and odd.
macro_rules! expand_and_sum_loop {
    ($even:expr, $odd:expr) => {
        naked!(
            "push {{r4-r11, lr}}",
            "ldr r3, [r0, #28]",
            "ldm r0, {{r1, r6-r11}}",
            "movs r4, #0",
            "mov r5, #0x00010001",
            "mov r0, r8",
            "mov r2, r6",
            "cmp r3, #0",
            "bne 2f",
            "1:",
            $even,
            "beq 3f",
            "2:",
            $odd,
            "bne 1b",
            next_run!(),
            "mov r0, r8",
            "mov r2, r6",
            "bne 1b",
            "b 4f",
            "3:",
            next_run!(),
            "mov r0, r8",
            "mov r2, r6",
            "bne 2b",
            "4:",
            "mov r0, r4",
            "pop {{r4-r11, pc}}",
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn expand_x1(_: &RowsCall) -> i32 {
    expand_and_sum_loop!(expand_and_sum!("8", "", ""), expand_and_sum!("8", "", ""))
}

#[unsafe(naked)]
unsafe extern "C" fn expand_s4_x3(_: &RowsCall) -> i32 {
    expand_and_sum_loop!(
        expand_and_sum!("24", "lsl r3, r3, #4", "bic r3, r3, #0x000F0000"),
        expand_and_sum!("24", "lsl r3, r3, #4", "bic r3, r3, #0x000F0000")
    )
}

#[unsafe(naked)]
unsafe extern "C" fn expand_s2_x3(_: &RowsCall) -> i32 {
    expand_and_sum_loop!(
        expand_and_sum!("24", "lsl r3, r3, #6\nbic r3, r3, #0x003F0000", "lsl r12, r12, #4\nbic r12, r12, #0x000F0000"),
        expand_and_sum!("24", "lsl r3, r3, #2", "bic r3, r3, #0x00030000")
    )
}

/// What [`add_quads`] reads, in the order of its registers.
#[repr(C)]
struct AddCall {
    lhs: *const i8,
    rhs: *const i8,
    out: *mut i8,
    end: *const i8,
    lhs_multiplier: i32,
    rhs_multiplier: i32,
    constant: i32,
    shift: u32,
    zero_point: i32,
}

/// [`super::generic::add`]. The sum shifted right leaves room for the zero point.
pub fn add(sum: &Sum, mut memory: Memory<'_>, rhs: &[i8]) {
    let len = memory.input().len().min(memory.output().len()).min(rhs.len());
    let out = memory.output().as_mut_ptr();
    let lhs = if let Memory::Apart(input, _) = &memory { input.as_ptr() } else { out.cast_const() };
    let whole = len & !3;
    let mut call = AddCall {
        lhs,
        rhs: rhs.as_ptr(),
        out,
        end: out.wrapping_add(whole),
        lhs_multiplier: sum.lhs_multiplier,
        rhs_multiplier: sum.rhs_multiplier,
        constant: sum.constant,
        shift: sum.shift,
        zero_point: sum.to.zero_point,
    };
    if whole > 0 {
        // SAFETY: `whole`, a multiple of four, is at most the length of each of the three slices. LDR and STR need no alignment.
        unsafe { add_quads(&call) };
    }
    if whole < len {
        // The last few elements, in words of their own.
        let mut words = [[0i8; 4]; 3];
        let [left, right, result] = &mut words;
        left.iter_mut().zip(memory.input().get(whole..len).unwrap_or(&[])).for_each(|(to, from)| *to = *from);
        right.iter_mut().zip(rhs.get(whole..len).unwrap_or(&[])).for_each(|(to, from)| *to = *from);
        call = AddCall {
            lhs: left.as_ptr(),
            rhs: right.as_ptr(),
            out: result.as_mut_ptr(),
            end: result.as_ptr_range().end,
            ..call
        };
        // SAFETY: all three have four elements.
        unsafe { add_quads(&call) };
        let tail = memory.output().get_mut(whole..len).unwrap_or(&mut []);
        tail.iter_mut().zip(result).for_each(|(to, from)| *to = *from);
    }
    clamp(sum.to, memory.output().get_mut(..len).unwrap_or(&mut []));
}

/// Bounds that a kernel left out, if they are not those of the type.
fn clamp(to: Output, output: &mut [i8]) {
    if !to.is_full() {
        output.iter_mut().for_each(|q| *q = (*q).clamp(to.min, to.max));
    }
}

/// One element of words r8 and r9 to `$to`.
macro_rules! add_element {
    ($to:literal, $rotation:literal) => {
        concat!(
            "sxtb ",
            $to,
            ", r8",
            $rotation,
            "\n",
            "sxtb r12, r9",
            $rotation,
            "\n",
            "mla ",
            $to,
            ", ",
            $to,
            ", r4, r6\n",
            "mla ",
            $to,
            ", r12, r5, ",
            $to,
            "\n",
            "asr ",
            $to,
            ", ",
            $to,
            ", r7\n",
            "add ",
            $to,
            ", ",
            $to,
            ", lr\n",
            "ssat ",
            $to,
            ", #8, ",
            $to,
            "\n",
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn add_quads(_: &AddCall) {
    naked!(
        "push {{r4-r11, lr}}",
        "ldr lr, [r0, #32]",
        "ldm r0, {{r0-r7}}",
        "1:",
        "ldr r8, [r0], #4",
        "ldr r9, [r1], #4",
        add_element!("r10", ""),
        add_element!("r11", ", ror #8"),
        "bfi r10, r11, #8, #8",
        add_element!("r11", ", ror #16"),
        "bfi r10, r11, #16, #8",
        add_element!("r11", ", ror #24"),
        "bfi r10, r11, #24, #8",
        "str r10, [r2], #4",
        "cmp r2, r3",
        "bne 1b",
        "pop {{r4-r11, pc}}",
    )
}

/// Whether `rows` rows (at least one) of `len` elements, `step` apart, lie in `input`.
fn holds_rows(input: &[i8], step: usize, rows: usize, len: usize) -> bool {
    let end = rows.checked_sub(1).and_then(|last| last.checked_mul(step)).and_then(|start| start.checked_add(len));
    end.is_some_and(|end| end <= input.len())
}

/// [`super::generic::max_rows`].
pub fn max_rows(input: &[i8], step: usize, rows: usize, out: &mut [i8]) {
    let (quads, rest) = out.as_chunks_mut::<4>();
    let whole = quads.len() * 4;
    if !holds_rows(input, step, rows, whole + rest.len()) {
        return super::generic::max_rows(input, step, rows, out);
    }
    for (from, quad) in input.chunks(4).zip(quads) {
        // SAFETY: of every row a word is read at a distance from its start that `holds_rows` allows; `quad` has four elements.
        unsafe { max_4(from.as_ptr(), step, rows, quad) };
    }
    if !rest.is_empty() {
        super::generic::max_rows(input.get(whole..).unwrap_or(&[]), step, rows, rest);
    }
}

#[unsafe(naked)]
unsafe extern "C" fn max_4(from: *const i8, step: usize, rows: usize, out: &mut [i8; 4]) {
    naked!(
        "push {{r4, lr}}",
        "ldr r12, [r3]",
        "1:",
        "ldr r4, [r0]",
        "add r0, r0, r1",
        "ssub8 lr, r12, r4",
        "sel r12, r12, r4",
        "subs r2, r2, #1",
        "bne 1b",
        "str r12, [r3]",
        "pop {{r4, pc}}",
    )
}

/// Rows whose sum fits 16 bits.
const ROWS: usize = 255;

/// [`super::generic::sum_rows`].
pub fn sum_rows(input: &[i8], step: usize, rows: usize, acc: &mut [i32]) {
    let (quads, rest) = acc.as_chunks_mut::<4>();
    let whole = quads.len() * 4;
    if !holds_rows(input, step, rows, whole + rest.len()) {
        return super::generic::sum_rows(input, step, rows, acc);
    }
    for (i, quad) in quads.iter_mut().enumerate() {
        for first in (0..rows).step_by(ROWS) {
            let from = input.as_ptr().wrapping_add(first * step + 4 * i);
            // SAFETY: of every one of rows `first ..` a word is read at a distance from its start that `holds_rows` allows.
            unsafe { sum_4(from, step, ROWS.min(rows - first), quad) };
        }
    }
    if !rest.is_empty() {
        super::generic::sum_rows(input.get(whole..).unwrap_or(&[]), step, rows, rest);
    }
}

#[unsafe(naked)]
unsafe extern "C" fn sum_4(from: *const i8, step: usize, rows: usize, acc: &mut [i32; 4]) {
    naked!(
        "push {{r4-r6, lr}}",
        "movs r4, #0",
        "movs r5, #0",
        "1:",
        "ldr r6, [r0]",
        "add r0, r0, r1",
        "sxtab16 r4, r4, r6",
        "sxtab16 r5, r5, r6, ror #8",
        "subs r2, r2, #1",
        "bne 1b",
        "ldm r3, {{r0, r1, r2, r6}}",
        "sxtah r0, r0, r4",
        "sxtah r1, r1, r5",
        "sxtah r2, r2, r4, ror #16",
        "sxtah r6, r6, r5, ror #16",
        "stm r3, {{r0, r1, r2, r6}}",
        "pop {{r4-r6, pc}}",
    )
}

/// What [`taps_4`] reads and changes.
#[repr(C)]
struct TapsCall {
    /// Where the run of the next kernel row begins, the distance to the one after it, where the ring's runs end and begin again.
    from: *const i8,
    step: usize,
    end: *const i8,
    begin: *const i8,
    rows: usize,
    /// Elements of a kernel row, and of a tap.
    run: usize,
    channels: usize,
    weights: *const i8,
    bias: *const i32,
    multiplier: *const i32,
    shift: *const u8,
    /// `2 * zero_point + 1`.
    rounding: i32,
    out: *mut i8,
}

/// [`super::generic::depthwise_row`], four channels at a time; of the last ones some are computed twice.
pub fn depthwise_row(r: &mut DepthwiseRow<'_>) {
    let DepthwiseRow { channels, kernel_h, kernel_w, row, .. } = *r;
    let width = r.output.len() / channels.max(1);
    let reach = (width.max(1) - 1) * r.stride_w + kernel_w;
    let by = HighWord::new(r.to.zero_point);
    let served = channels >= 4
        && kernel_w > 0
        && r.first < kernel_h
        && reach * channels <= row
        && row * kernel_h <= r.ring.len()
        && kernel_h * kernel_w * channels <= r.weights.len()
        && [r.bias.len(), r.multiplier.len(), r.shift.len()].iter().all(|&len| len >= channels)
        && r.multiplier.iter().zip(r.shift).all(|(&m, &shift)| by.serves(m, shift));
    if !served {
        return super::generic::depthwise_row(r);
    }
    for x in 0..width {
        let left = r.ring.as_ptr().wrapping_add(x * r.stride_w * channels);
        let out = r.output.as_mut_ptr().wrapping_add(x * channels);
        for first in (0..channels).step_by(4) {
            let first = first.min(channels - 4);
            let begin = left.wrapping_add(first);
            let mut call = TapsCall {
                from: begin.wrapping_add(r.first * row),
                step: row,
                end: begin.wrapping_add(kernel_h * row),
                begin,
                rows: kernel_h,
                run: kernel_w * channels,
                channels,
                weights: r.weights.as_ptr().wrapping_add(first),
                bias: r.bias.as_ptr().wrapping_add(first),
                multiplier: r.multiplier.as_ptr().wrapping_add(first),
                shift: r.shift.as_ptr().wrapping_add(first),
                rounding: 2 * r.to.zero_point + 1,
                out: out.wrapping_add(first),
            };
            // SAFETY: of every one of `kernel_h` rows, words are read at every one of `kernel_w` taps from channel `first <= channels - 4` on; the
            // last ends at `reach * channels <= row` of a row of the ring, or inside of the weights. Output stages have at least `channels`
            // entries, the output `width` times as many elements; four of each are read and written from `first` on (lengths were checked).
            unsafe { taps_4(&mut call) };
        }
    }
    clamp(r.to, r.output);
}

/// The output stage of lane `$at`, whose sum is in `$acc`.
macro_rules! finish_lane {
    ($acc:literal, $word:literal, $byte:literal) => {
        concat!(
            "ldr r3, [r0, #",
            $word,
            "]\n",
            "ldrb r4, [r1, #",
            $byte,
            "]\n",
            "subs r4, r4, #33\n",
            "bge 6f\n",
            "5:\n",
            "qadd ",
            $acc,
            ", ",
            $acc,
            ", ",
            $acc,
            "\n",
            "adds r4, r4, #1\n",
            "blt 5b\n",
            "6:\n",
            "lsl r5, r2, r4\n",
            "add r4, r4, #1\n",
            "smmla ",
            $acc,
            ", ",
            $acc,
            ", r3, r5\n",
            "asr ",
            $acc,
            ", ",
            $acc,
            ", r4\n",
            "ssat ",
            $acc,
            ", #8, ",
            $acc,
            "\n",
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn taps_4(_: &mut TapsCall) {
    naked!(
        "push {{r4-r12, lr}}",
        "mov lr, r0",
        "ldrd r3, r1, [lr, #20]",
        "ldrd r2, r8, [lr, #28]",
        "ldm r8, {{r9-r12}}",
        "1:",
        "ldr r0, [lr]",
        "movs r8, #0",
        "2:",
        "ldr r5, [r0, r8]",
        "ldr r7, [r2, r8]",
        "add r8, r8, r1",
        "sxtb16 r4, r5",
        "sxtb16 r5, r5, ror #8",
        "sxtb16 r6, r7",
        "sxtb16 r7, r7, ror #8",
        "smlabb r9, r4, r6, r9",
        "smlabb r10, r5, r7, r10",
        "smlatt r11, r4, r6, r11",
        "smlatt r12, r5, r7, r12",
        "cmp r8, r3",
        "bne 2b",
        "add r2, r2, r3",
        "ldrd r5, r6, [lr, #4]",
        "ldrd r7, r8, [lr, #12]",
        "ldr r0, [lr]",
        "add r0, r0, r5",
        "cmp r0, r6",
        "it eq",
        "moveq r0, r7",
        "str r0, [lr]",
        "subs r8, r8, #1",
        "str r8, [lr, #16]",
        "bne 1b",
        "add r3, lr, #36",
        "ldm r3, {{r0, r1, r2, r6}}",
        finish_lane!("r9", "0", "0"),
        finish_lane!("r10", "4", "1"),
        finish_lane!("r11", "8", "2"),
        finish_lane!("r12", "12", "3"),
        "bfi r9, r10, #8, #8",
        "bfi r9, r11, #16, #8",
        "bfi r9, r12, #24, #8",
        "str r9, [r6]",
        "pop {{r4-r12, pc}}",
    )
}

/// A 3x3 filter of one channel with its output stage, as [`plane_3x3`] holds it in registers and on the stack.
#[repr(C)]
#[derive(Debug)]
pub struct Plane {
    /// Of every row of the filter the pairs `(w0, w1)` and `(w1, w2)`.
    weights: [u32; 6],
    /// Filled in by [`plane_3x3`]: planes' first row, its length, the distance of rows, and how many.
    from: usize,
    row_bytes: usize,
    row_step: usize,
    rows: usize,
    /// Filled in: output, and the distance of pixels.
    out: usize,
    pixel: usize,
    multiplier: i32,
    rounding: i32,
    shift: i32,
    bias: i32,
    /// Filled in: bytes that the loop over (pairs of) outputs advances, and whether one is left.
    advance: usize,
    odd: usize,
    /// Bounds, if they are not those of the type.
    bounds: Option<(i8, i8)>,
}

impl Plane {
    /// None where the high word of a product does not give the output, see [`Blocks::rescales_by_high_word`]: a shift below 33 is brought there by
    /// larger weights and bias.
    pub fn new(taps: [i8; 9], (bias, multiplier, shift): (i32, i32, u8), to: Output) -> Option<Plane> {
        let doublings = 33u8.saturating_sub(shift);
        let shift = shift.max(33);
        let rounding = (2 * to.zero_point as i64 + 1) << (shift - 33);
        // Nine products of 16 and 16 bits stay below 2^29 only together with a bias that leaves room.
        let scaled = (bias as i64) << doublings;
        if doublings > 7 || rounding.unsigned_abs() >= 1 << 30 || scaled.unsigned_abs() >= 1 << 30 {
            return None;
        }
        let w = taps.map(|w| ((w as i16) << doublings) as u16 as u32);
        let pair = |a: usize, b: usize| w[a] | w[b] << 16;
        Some(Plane {
            weights: [pair(0, 1), pair(1, 2), pair(3, 4), pair(4, 5), pair(6, 7), pair(7, 8)],
            multiplier,
            rounding: rounding as i32,
            shift: shift as i32 - 32,
            bias: scaled as i32,
            bounds: (!to.is_full()).then_some((to.min, to.max)),
            from: 0,
            row_bytes: 0,
            row_step: 0,
            rows: 0,
            out: 0,
            pixel: 0,
            advance: 0,
            odd: 0,
        })
    }
}

/// Copies `count` (at most four) channels of a row apart: `to[i * plane + x] = from[x * channels + i] - zero_point`. None if a length is wrong.
pub fn gather(
    from: &[i8],
    channels: usize,
    count: usize,
    width: usize,
    zero_point: i16,
    to: &mut [i16],
    plane: usize,
) -> Option<()> {
    if width == 0 || (width - 1) * channels + count > from.len() || (count - 1) * plane + width > to.len() {
        return None;
    }
    if count == 4 {
        let packed = (zero_point.wrapping_neg() as u16 as u32) * 0x0001_0001;
        // SAFETY: the last word that is read ends at `(width - 1) * channels + 4`, the last element that is written is `3 * plane + width - 1`; both lie
        // inside (checked above). LDR and STR need no alignment on these cores.
        unsafe { gather_4(from.as_ptr(), to.as_mut_ptr(), channels, width, plane * 2, packed) };
        return Some(());
    }
    for x in 0..width {
        for i in 0..count {
            *to.get_mut(i * plane + x)? = *from.get(x * channels + i)? as i16 - zero_point;
        }
    }
    Some(())
}

#[unsafe(naked)]
unsafe extern "C" fn gather_4(
    from: *const i8,
    to: *mut i16,
    channels: usize,
    width: usize,
    plane_bytes: usize,
    packed: u32,
) {
    naked!(
        "push {{r4-r11, lr}}",
        "ldrd r4, r5, [sp, #36]", // plane bytes, packed -zero_point
        "lsl r6, r4, #1",
        "add r7, r6, r4",
        "subs r3, r3, #2",
        "blt 2f",
        "1:",
        "ldr r8, [r0]",
        "ldr r9, [r0, r2]",
        "add r0, r0, r2, lsl #1",
        "sxtab16 r10, r5, r8",
        "sxtab16 r11, r5, r9",
        "sxtab16 r12, r5, r8, ror #8",
        "sxtab16 lr, r5, r9, ror #8",
        "pkhbt r8, r10, r11, lsl #16",
        "pkhbt r9, r12, lr, lsl #16",
        "pkhtb r10, r11, r10, asr #16",
        "pkhtb r12, lr, r12, asr #16",
        "str r9, [r1, r4]",
        "str r10, [r1, r6]",
        "str r12, [r1, r7]",
        "str r8, [r1], #4",
        "subs r3, r3, #2",
        "bge 1b",
        "2:",
        "adds r3, r3, #2",
        "beq 3f",
        // A last single column.
        "ldr r8, [r0]",
        "sxtab16 r10, r5, r8",
        "sxtab16 r12, r5, r8, ror #8",
        "strh r10, [r1]",
        "strh r12, [r1, r4]",
        "lsr r10, r10, #16",
        "lsr r12, r12, #16",
        "strh r10, [r1, r6]",
        "strh r12, [r1, r7]",
        "3:",
        "pop {{r4-r11, pc}}",
    )
}

/// `rows` times `width` outputs of one channel, `pixel` elements apart, from a plane whose rows have `plane_width` elements (even, two more than the
/// outputs read). `shape` is rows, width and stride. None if a length is wrong.
pub fn plane_3x3(
    filter: &Plane,
    plane: &[i16],
    plane_width: usize,
    (rows, width, stride): (usize, usize, usize),
    pixel: usize,
    output: &mut [i8],
) -> Option<()> {
    let read_width = (width * stride).next_multiple_of(2) + 2;
    let served = rows > 0
        && width > 0
        && (stride == 1 || stride == 2)
        && plane_width.is_multiple_of(2)
        && plane_width >= read_width
        && plane.as_ptr().align_offset(4) == 0
        && ((rows - 1) * stride + 3) * plane_width <= plane.len()
        && (rows * width - 1) * pixel < output.len();
    if !served {
        return None;
    }
    let loops = if stride == 1 { width / 2 } else { width };
    let call = Plane {
        from: plane.as_ptr() as usize,
        row_bytes: plane_width * 2,
        row_step: plane_width * 2 * stride,
        rows,
        out: output.as_mut_ptr() as usize,
        pixel,
        advance: loops * 4,
        odd: if stride == 1 { width % 2 } else { 0 },
        ..*filter
    };
    // SAFETY: of every one of `rows` rows of windows three rows of at most `read_width` elements are read, which end in `plane`, at multiples of 4
    // (the plane's start is one, and its rows are even); outputs are written at `i * pixel` for `i < rows * width`, inside of `output`.
    unsafe {
        match stride {
            1 => plane_3x3_by_1(&call),
            _ => plane_3x3_by_2(&call),
        }
    }
    if let Some((min, max)) = filter.bounds {
        output.iter_mut().step_by(pixel).take(rows * width).for_each(|q| *q = (*q).clamp(min, max));
    }
    Some(())
}

/// Weights in r0..r5, elements in r6 and r7, sums in r8 and r9, rows at r10..r12, output at lr.
macro_rules! plane_frame {
    ($($body:expr),* $(,)?) => {
        naked!(
            "push {{r4-r11, lr}}",
            "sub sp, sp, #52",
            "add r1, r0, #24",
            "ldm r1, {{r1-r12}}",
            "stm sp, {{r1-r12}}",
            "ldm r0, {{r0-r5}}",
            "ldr lr, [sp, #16]",
            "1:",
            // The rows of windows begin at [sp], their end goes to [sp, #48].
            "ldrd r10, r6, [sp, #0]",
            "ldr r7, [sp, #40]",
            "add r11, r10, r6",
            "add r12, r11, r6",
            "add r7, r7, r10",
            "str r7, [sp, #48]",
            $($body,)*
            "ldr r6, [sp, #0]",
            "ldrd r7, r8, [sp, #8]",
            "add r6, r6, r7",
            "str r6, [sp, #0]",
            "subs r8, r8, #1",
            "str r8, [sp, #12]",
            "bne 1b",
            "add sp, sp, #52",
            "pop {{r4-r11, pc}}",
        )
    };
}

macro_rules! two_outputs {
    ($row:literal, $a:literal, $b:literal) => {
        concat!(
            "ldrd r6, r7, [",
            $row,
            "], #4\n",
            "smlad r8, r6, ",
            $a,
            ", r8\n",
            "smlabt r8, r7, ",
            $b,
            ", r8\n",
            "smlatb r9, r6, ",
            $a,
            ", r9\n",
            "smlad r9, r7, ",
            $b,
            ", r9\n",
        )
    };
}

macro_rules! one_output {
    ($row:literal, $a:literal, $b:literal) => {
        concat!("ldrd r6, r7, [", $row, "], #4\n", "smlad r8, r6, ", $a, ", r8\n", "smlabt r8, r7, ", $b, ", r8\n",)
    };
}

/// Sum in r8 to the output, which moves on by one pixel.
macro_rules! store_one {
    () => {
        concat!(
            "ldrd r6, r7, [sp, #24]\n",
            "smmla r8, r8, r6, r7\n",
            "ldr r6, [sp, #32]\n",
            "ldr r7, [sp, #20]\n",
            "asr r8, r8, r6\n",
            "ssat r8, #8, r8\n",
            "strb r8, [lr]\n",
            "add lr, lr, r7\n",
        )
    };
}

#[unsafe(naked)]
unsafe extern "C" fn plane_3x3_by_1(_: &Plane) {
    plane_frame!(
        "cmp r10, r7",
        "beq 3f",
        "2:",
        "ldr r8, [sp, #36]",
        "mov r9, r8",
        two_outputs!("r10", "r0", "r1"),
        two_outputs!("r11", "r2", "r3"),
        two_outputs!("r12", "r4", "r5"),
        "ldrd r6, r7, [sp, #24]",
        "smmla r8, r8, r6, r7",
        "smmla r9, r9, r6, r7",
        "ldr r6, [sp, #32]",
        "ldr r7, [sp, #20]",
        "asr r8, r8, r6",
        "asr r9, r9, r6",
        "ssat r8, #8, r8",
        "ssat r9, #8, r9",
        "strb r8, [lr]",
        "strb r9, [lr, r7]",
        "ldr r6, [sp, #48]",
        "add lr, lr, r7, lsl #1",
        "cmp r10, r6",
        "bne 2b",
        "3:",
        "ldr r6, [sp, #44]",
        "cbz r6, 4f",
        "ldr r8, [sp, #36]",
        one_output!("r10", "r0", "r1"),
        one_output!("r11", "r2", "r3"),
        one_output!("r12", "r4", "r5"),
        store_one!(),
        "4:",
    )
}

#[unsafe(naked)]
unsafe extern "C" fn plane_3x3_by_2(_: &Plane) {
    plane_frame!(
        "2:",
        "ldr r8, [sp, #36]",
        one_output!("r10", "r0", "r1"),
        one_output!("r11", "r2", "r3"),
        one_output!("r12", "r4", "r5"),
        store_one!(),
        "ldr r6, [sp, #48]",
        "cmp r10, r6",
        "bne 2b",
    )
}
