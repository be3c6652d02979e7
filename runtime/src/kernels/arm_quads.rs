//! What the kernels of Cortex-M0 and M3 share: which lengths they need, and what becomes of rows beyond whole blocks.

#![allow(unsafe_code)]

use super::{DepthwiseRow, Output};
use crate::fixed::HighWord;
use crate::format::blocks::{Blocks, Layout};

/// What a matrix kernel reads, in the order of its stack frame; `R` is what only one core's does.
#[repr(C)]
pub(super) struct Call<R> {
    /// Patches: begin and end.
    acts: *const i8,
    acts_end: *const i8,
    /// Blocks of four rows: begin and end.
    weights: *const u8,
    weights_end: *const u8,
    /// Where the pixels' next four outputs go.
    out: [*mut i8; 2],
    /// `2 * zero_point + 1`.
    rounding: i32,
    rest: R,
}

/// As [`super::quads::matrix`] by a kernel for these bits and pixels, for blocks that [`Blocks::rescales_by_high_word`]. False if a length is wrong.
pub(super) fn matrix<R>(
    blocks: &Blocks<'_>,
    patches: &[i8],
    pixels: usize,
    to: Output,
    output: &mut [i8],
    at: [usize; 3],
    kernel: unsafe extern "C" fn(&Call<R>),
    rest: R,
) -> bool {
    let (bits, n) = (blocks.bits(), blocks.n());
    let fits = |&at: &usize| at.checked_add(n).is_some_and(|end| end <= output.len());
    let served = blocks.layout() == Layout::Quads
        && (pixels == 2 || pixels == 1)
        && patches.len() == blocks.padded_k() * if pixels == 2 { 4 } else { 1 }
        && (bits == 8 || pixels == 2)
        && !patches.is_empty()
        && patches.as_ptr().align_offset(4) == 0
        && blocks.as_bytes().as_ptr().align_offset(4) == 0
        && blocks.as_bytes().len() == Layout::Quads.matrix_bytes(bits, n, blocks.k())
        && at.iter().take(pixels).all(fits);
    if !served {
        return false;
    }
    let block_bytes = Layout::Quads.block_bytes(bits, blocks.k());
    let begin = blocks.as_bytes().as_ptr();
    let whole = n / 4 * block_bytes;
    let mut call = Call {
        acts: patches.as_ptr(),
        acts_end: patches.as_ptr_range().end,
        weights: begin,
        weights_end: begin.wrapping_add(whole),
        out: [at[0], at[1]].map(|at| output.as_mut_ptr().wrapping_add(at)),
        rounding: 2 * to.zero_point + 1,
        rest,
    };
    if whole > 0 {
        // SAFETY: `weights .. weights_end` are whole blocks for `patches` (lengths and alignment were checked above) and every kernel writes
        // four outputs per pixel and block, which `fits` has checked to lie in `output`.
        unsafe { kernel(&call) };
    }
    if !n.is_multiple_of(4) {
        // The last block has rows that nobody wants: its outputs go to a place of their own.
        let mut last = [[0i8; 4]; 2];
        call.weights = call.weights_end;
        call.weights_end = call.weights.wrapping_add(block_bytes);
        call.out = last.each_mut().map(|quad| quad.as_mut_ptr());
        // SAFETY: as above with one block, which exists because `n` is no multiple of four; outputs go to `last`.
        unsafe { kernel(&call) };
        for (quad, at) in last.iter().zip(at).take(pixels) {
            let to = output.get_mut(at + n / 4 * 4..at + n).unwrap_or(&mut []);
            to.iter_mut().zip(quad).for_each(|(to, &q)| *to = q);
        }
    }
    if !to.is_full() {
        for at in at.into_iter().take(pixels) {
            output.get_mut(at..at + n).unwrap_or(&mut []).iter_mut().for_each(|q| *q = (*q).clamp(to.min, to.max));
        }
    }
    true
}

/// What a depthwise kernel reads for one output pixel, in the order of its stack frame.
#[repr(C)]
pub(super) struct Pixel {
    /// The window's first tap in three rows.
    rows: [*const i8; 3],
    /// Channels.
    channels: usize,
    /// The filter's three rows.
    weights: [*const i8; 3],
    /// Output stage, per channel.
    bias: *const i32,
    multiplier: *const i32,
    shift: *const u8,
    out: *mut i8,
    /// `2 * zero_point + 1`.
    rounding: i32,
}

/// As [`super::generic::depthwise_row`] for 3x3, a pixel at a time. False if it does not serve.
pub(super) fn depthwise_row(r: &mut DepthwiseRow<'_>, kernel: unsafe extern "C" fn(&Pixel)) -> bool {
    if !r.is_3x3_by_high_word() {
        return false;
    }
    let channels = r.channels;
    let slots = [r.first, r.first + 1, r.first + 2].map(|slot| if slot >= 3 { slot - 3 } else { slot });
    let mut pixel = Pixel {
        rows: slots.map(|slot| r.ring.as_ptr().wrapping_add(slot * r.row)),
        channels,
        weights: [0, 3, 6].map(|tap| r.weights.as_ptr().wrapping_add(tap * channels)),
        bias: r.bias.as_ptr(),
        multiplier: r.multiplier.as_ptr(),
        shift: r.shift.as_ptr(),
        out: r.output.as_mut_ptr(),
        rounding: 2 * r.to.zero_point + 1,
    };
    for _ in r.output.chunks_exact(channels) {
        // SAFETY: `is_3x3_by_high_word` has checked that windows of all whole pixels of the output lie in rows of the ring, and that weights and
        // output stage have all channels; pointers advance by one pixel for each of the output's chunks.
        unsafe { kernel(&pixel) };
        pixel.rows = pixel.rows.map(|row| row.wrapping_add(r.stride_w * channels));
        pixel.out = pixel.out.wrapping_add(channels);
    }
    if !r.to.is_full() {
        r.output.iter_mut().for_each(|q| *q = (*q).clamp(r.to.min, r.to.max));
    }
    true
}

impl DepthwiseRow<'_> {
    /// Whether a filter of 3x3 finds all that it reads in these slices, and the high word of a product gives every output.
    fn is_3x3_by_high_word(&self) -> bool {
        let channels = self.channels;
        if [self.kernel_h, self.kernel_w] != [3; 2] || channels == 0 {
            return false;
        }
        let last = (self.output.len() / channels).saturating_sub(1);
        let read = last.checked_mul(self.stride_w).and_then(|x| (x + 3).checked_mul(channels));
        let stage = self.multiplier.iter().zip(self.shift).take(channels);
        let by = HighWord::new(self.to.zero_point);
        read.is_some_and(|read| read <= self.row)
            && self.first < 3
            && self.row.checked_mul(3).is_some_and(|ring| ring <= self.ring.len())
            && channels.checked_mul(9).is_some_and(|taps| taps <= self.weights.len())
            && [self.bias.len(), self.multiplier.len(), self.shift.len()].iter().all(|&len| len >= channels)
            && stage.into_iter().all(|(&multiplier, &shift)| by.serves(multiplier, shift))
    }
}
