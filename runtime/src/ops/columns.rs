//! Convolutions and linear layers over weights in [`Layout::Rows`](crate::format::blocks::Layout::Rows): windows are multiplied where they lie.
//!
//! ```text
//! input rows ──> ring [x, kernel_h, in_c] ──> kernel over windows ──> output
//! ```
//!
//! The ring holds the rows that a window reaches to, column after column. So a window is one run of activations, the next one begins
//! `stride_w` columns behind it, and nothing is collected for a pixel. Going down, the whole ring moves up by `stride_h` rows and the new
//! rows are spread over its columns; what moves into their places from the next column is overwritten.

use super::Place;
use super::matrix::{has_one_tap, ring_row};
use crate::format::blocks::{Blocks, Layout};
use crate::format::op;
use crate::kernels::{self, Memory, Output, Windows};

/// Pixels that are copied and multiplied together where a window is one pixel.
const PIXELS: usize = 8;

/// Scratch bytes of a convolution: the ring, and what a kernel reads of the padding of `k` behind the last window.
pub(super) fn conv_scratch_bytes(c: &op::Conv, bits: u8) -> usize {
    let k = c.kernel_h as usize * c.kernel_w as usize * c.in_c as usize;
    if is_pointwise(c) {
        return pixels_scratch_bytes(bits, k, c.out_h as usize * c.out_w as usize);
    }
    (ring_row(c) * c.kernel_h as usize + Layout::Rows.padded_k(bits, k) - k).next_multiple_of(4)
}

/// Scratch bytes of a linear layer.
pub(super) fn linear_scratch_bytes(l: &op::Linear, bits: u8) -> usize {
    pixels_scratch_bytes(bits, l.k as usize, l.rows as usize)
}

/// Whether output pixel `i` reads input pixel `i` alone.
fn is_pointwise(c: &op::Conv) -> bool {
    has_one_tap(c) && [c.stride_h, c.stride_w] == [1; 2] && c.in_w == c.out_w
}

/// `output[y, x, oc]`, see [`op::Conv`] and [`crate::format::blocks`].
pub(super) fn conv<const USES: u64>(
    c: &op::Conv,
    mut memory: Memory<'_>,
    zero_point: i8,
    blocks: &Blocks<'_>,
    place: Place,
    to: Output,
    scratch: &mut [i8],
) -> Option<()> {
    if is_pointwise(c) {
        return pixels::<USES>(c.out_h as usize * c.out_w as usize, memory, blocks, place, to, scratch);
    }
    let [in_h, in_w, in_c, kernel_h, stride_h, pad_top, pad_left] =
        [c.in_h, c.in_w, c.in_c, c.kernel_h, c.stride_h, c.pad_top, c.pad_left].map(usize::from);
    let (in_row, out_w) = (in_w * in_c, c.out_w as usize);
    let windows = Windows::new(blocks, place.pitch, to);
    if let (true, Memory::Apart(input, output)) = (has_one_tap(c) && blocks.k() == blocks.padded_k(), &mut memory) {
        for y in 0..c.out_h as usize {
            let output = outputs(output, place, y * out_w, out_w)?;
            windows.multiply::<USES>(input.get(y * stride_h * in_row..)?, c.stride_w as usize * in_c, output);
        }
        return Some(());
    }
    let pitch = kernel_h * in_c;
    let width = ring_row(c) / in_c.max(1);
    let ring = scratch.get_mut(..width * pitch + blocks.padded_k() - blocks.k())?;
    ring.fill(zero_point);
    let borders = || (0..pad_left).chain(pad_left + in_w..width);
    for y in 0..c.out_h as usize {
        let kept = if y == 0 { 0 } else { kernel_h.saturating_sub(stride_h) };
        if kept > 0 {
            kernels::shift(ring, stride_h * in_c);
        }
        for slot in kept..kernel_h {
            let place = |x: usize| x * pitch + slot * in_c;
            let mut fill = |x: usize| ring.get_mut(place(x)..place(x) + in_c).unwrap_or(&mut []).fill(zero_point);
            match (y * stride_h + slot).checked_sub(pad_top).filter(|&row| row < in_h) {
                Some(row) => {
                    borders().for_each(fill);
                    let row = memory.input().get(row * in_row..(row + 1) * in_row)?;
                    kernels::spread(row, in_c, ring.get_mut(place(pad_left)..)?, pitch);
                }
                None => (0..width).for_each(&mut fill),
            }
        }
        let output = outputs(memory.output(), place, y * out_w, out_w)?;
        windows.multiply::<USES>(ring, c.stride_w as usize * pitch, output);
    }
    Some(())
}

/// `output[row, n]`, see [`op::Linear`] and [`crate::format::blocks`].
pub(super) fn linear<const USES: u64>(
    l: &op::Linear,
    memory: Memory<'_>,
    blocks: &Blocks<'_>,
    place: Place,
    to: Output,
    scratch: &mut [i8],
) -> Option<()> {
    pixels::<USES>(l.rows as usize, memory, blocks, place, to, scratch)
}

/// Runs of `k` activations one after another, `count` times. What has no room for the padding of `k` or is overwritten goes through scratch memory.
fn pixels<const USES: u64>(
    count: usize,
    mut memory: Memory<'_>,
    blocks: &Blocks<'_>,
    place: Place,
    to: Output,
    scratch: &mut [i8],
) -> Option<()> {
    let (k, step, pitch) = (blocks.k(), blocks.padded_k(), place.pitch);
    let windows = Windows::new(blocks, pitch, to);
    if let (true, Memory::Apart(input, output)) = (k == step, &mut memory) {
        windows.multiply::<USES>(input, k, output.get_mut(place.first..)?);
        return Some(());
    }
    for first in (0..count).step_by(PIXELS) {
        let taken = PIXELS.min(count - first);
        let copy = scratch.get_mut(..taken * step)?;
        kernels::spread(memory.input().get(first * k..(first + taken) * k)?, k, copy, step);
        windows.multiply::<USES>(copy, step, outputs(memory.output(), place, first, taken)?);
    }
    Some(())
}

/// Outputs of so many pixels from `pixel` on.
fn outputs(output: &mut [i8], place: Place, pixel: usize, count: usize) -> Option<&mut [i8]> {
    output.get_mut(pixel * place.pitch + place.first..(pixel + count) * place.pitch)
}

fn pixels_scratch_bytes(bits: u8, k: usize, count: usize) -> usize {
    Layout::Rows.padded_k(bits, k) * PIXELS.min(count)
}
