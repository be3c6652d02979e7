//! Depthwise convolutions: one filter per channel.
//!
//! Two ways lead to the same bytes. [`any`] walks over taps that lie inside of the input; it needs no memory unless it works in place. With
//! [`ring_bytes`] of scratch memory, rows of the input go through a ring with borders on both sides, and a row kernel sees neither borders
//! nor the difference between in place and apart. On cores with the DSP extension a filter of 3x3 works on planes instead: four channels
//! at a time are copied apart, so that neighbours in a row can be multiplied in pairs.

#[cfg(pith_helium)]
use super::Channels;
use super::Stage;
use super::conv::axes;
use crate::format::op;
use crate::isa::Isa;
use crate::kernels::generic::Weights;
use crate::kernels::{self, DepthwiseRow, Memory};
use crate::uses::OTHER_DEPTHWISE;

/// Weights in the file: of 8 bits, or narrower and expanded into scratch memory.
pub(super) fn depthwise<W: Weights, const USES: u64>(
    c: &op::Conv,
    mut memory: Memory<'_>,
    weights: W,
    bits: u8,
    stage: &Stage<'_>,
    scratch: &mut [i8],
) {
    #[cfg(pith_dsp)]
    if through_planes(c, &mut memory, weights, stage, scratch).is_some() {
        return;
    }
    #[cfg(pith_helium)]
    if through_words(c, &mut memory, weights, bits, stage, scratch).is_some() {
        return;
    }
    if cfg!(pith_dsp) && USES & OTHER_DEPTHWISE == 0
        || scratch.len() < ring_bytes(c, bits).unwrap_or(usize::MAX)
        || through_ring(c, &mut memory, weights, bits, stage, scratch).is_none()
    {
        any(c, memory, weights, stage, scratch);
    }
}

/// Scratch bytes of the ring, none where it does not serve.
pub fn ring_bytes(c: &op::Conv, bits: u8) -> Option<usize> {
    if [c.dilation_h, c.dilation_w] != [1; 2] {
        return None;
    }
    let channels = c.out_c as usize;
    let ring = ring_row(c)?.checked_mul(c.kernel_h as usize)?.checked_next_multiple_of(4)?;
    ring.checked_add(channels * 4)?.checked_add(weights_bytes(c, bits)?)
}

/// Bytes of narrow weights when they are expanded.
fn weights_bytes(c: &op::Conv, bits: u8) -> Option<usize> {
    if bits == 8 {
        return Some(0);
    }
    (c.kernel_h as usize).checked_mul(c.kernel_w as usize)?.checked_mul(c.out_c as usize)
}

/// Elements of a row with its borders.
fn ring_row(c: &op::Conv) -> Option<usize> {
    let reached = (c.out_w.max(1) as usize - 1).checked_mul(c.stride_w as usize)?.checked_add(c.kernel_w as usize)?;
    (c.pad_left as usize + c.in_w as usize).max(reached).checked_mul(c.in_c as usize)
}

/// Scratch bytes that the kernels of an instruction set want, none if they want nothing.
pub fn wanted_bytes(c: &op::Conv, bits: u8, isa: Isa) -> Option<usize> {
    match isa {
        Isa::Generic => None,
        Isa::ArmDsp => Planes::of(c).map(|planes| planes.bytes()).or_else(|| ring_bytes(c, bits)),
        Isa::Helium => words_bytes(c, bits).or_else(|| ring_bytes(c, bits)),
        _ => ring_bytes(c, bits),
    }
}

/// Whether the output may begin where the input begins if the scratch memory is that of [`wanted_bytes`]: rows are read before they are
/// overwritten.
pub fn runs_in_place(c: &op::Conv) -> bool {
    let read = |y: u64| (y * c.stride_h as u64 + c.kernel_h as u64).saturating_sub(c.pad_top as u64).min(c.in_h as u64);
    (0..c.out_h as u64).all(|y| read(y) == c.in_h as u64 || (y + 1) * c.out_w as u64 <= read(y) * c.in_w as u64)
}

/// Whether a filter is of the kind that works on planes.
pub const fn is_3x3(kernel: [usize; 2], stride: [usize; 2], dilation: [usize; 2]) -> bool {
    kernel[0] == 3
        && kernel[1] == 3
        && stride[0] == stride[1]
        && matches!(stride[0], 1 | 2)
        && dilation[0] == 1
        && dilation[1] == 1
}

/// Channels that are copied apart together: a word of the input.
const PLANES: usize = 4;

/// Scratch memory that planes should not exceed, unless a single row of windows needs more.
const PLANES_BYTES: usize = 2048;

/// Four planes of 16 bits, `rows` rows with borders each, of the input less its zero point.
#[derive(Clone, Copy, Debug)]
struct Planes {
    /// Elements of a row, even.
    width: usize,
    /// Rows of the input that are held.
    rows: usize,
    /// Rows of the output that they give.
    #[cfg_attr(not(pith_dsp), allow(dead_code))]
    out_rows: usize,
}

impl Planes {
    /// For a 3x3 filter with a stride of 1 or 2.
    fn of(c: &op::Conv) -> Option<Planes> {
        let axes = |a: u16, b: u16| [a as usize, b as usize];
        let fits = is_3x3(axes(c.kernel_h, c.kernel_w), axes(c.stride_h, c.stride_w), axes(c.dilation_h, c.dilation_w));
        if !fits || c.pad_top > 2 || c.pad_left > 2 {
            return None;
        }
        let stride = c.stride_h as usize;
        // The kernel reads four elements from every even one at which it begins.
        let read = (c.out_w as usize * stride).next_multiple_of(2) + 2;
        let width = (c.pad_left as usize + c.in_w as usize).max(read).next_multiple_of(2);
        let room = (PLANES_BYTES / (PLANES * width * 2)).max(3);
        let out_rows = ((room - 3) / stride + 1).min(c.out_h as usize);
        Some(Planes { width, rows: (out_rows - 1) * stride + 3, out_rows })
    }

    fn plane(self) -> usize {
        self.width * self.rows
    }

    fn bytes(self) -> usize {
        PLANES * self.plane() * 2
    }
}

/// Four channels after another, tile of rows after tile of rows; what a tile needs of the rows before it is kept in the planes, so a
/// channel may be overwritten behind the tile.
#[cfg(pith_dsp)]
fn through_planes<W: Weights>(
    c: &op::Conv,
    memory: &mut Memory<'_>,
    weights: W,
    stage: &Stage<'_>,
    scratch: &mut [i8],
) -> Option<()> {
    use kernels::arm_dsp::{Plane, gather, plane_3x3};
    let planes = Planes::of(c)?;
    i8::try_from(stage.in_zero_point).ok()?;
    if matches!(memory, Memory::InPlace(_)) && !runs_in_place(c) {
        return None;
    }
    let memory_of_planes: &mut [i16] = bytemuck::try_cast_slice_mut(scratch.get_mut(..planes.bytes())?).ok()?;
    let channels = c.out_c as usize;
    let filters = |channel: usize| {
        let taps = core::array::from_fn(|tap| weights.get(tap * channels + channel));
        Plane::new(taps, stage.channels.get(channel), stage.output)
    };
    if !(0..channels).all(|channel| filters(channel).is_some()) {
        return None;
    }
    let (stride, pad_top, pad_left) = (c.stride_h as usize, c.pad_top as usize, c.pad_left as usize);
    let in_row = c.in_w as usize * channels;
    for first in (0..channels).step_by(PLANES) {
        let count = PLANES.min(channels - first);
        memory_of_planes.fill(0);
        // Rows of the padded input: those in the planes begin at `top`.
        let (mut top, mut filled) = (0, 0);
        for y in (0..c.out_h as usize).step_by(planes.out_rows) {
            let out_rows = planes.out_rows.min(c.out_h as usize - y);
            let start = y * stride;
            let kept = filled.max(start) - start;
            for plane in memory_of_planes.chunks_exact_mut(planes.plane()) {
                plane.copy_within((start - top) * planes.width..(start - top + kept) * planes.width, 0);
            }
            top = start;
            filled = filled.max(start);
            while filled < start + (out_rows - 1) * stride + 3 {
                let to = (filled - top) * planes.width;
                match filled.checked_sub(pad_top).filter(|&row| row < c.in_h as usize) {
                    Some(row) => {
                        let from = memory.input().get(row * in_row + first..(row + 1) * in_row)?;
                        let to = memory_of_planes.get_mut(to + pad_left..)?;
                        gather(from, channels, count, c.in_w as usize, stage.in_zero_point, to, planes.plane())?;
                    }
                    None => memory_of_planes
                        .chunks_exact_mut(planes.plane())
                        .for_each(|plane| plane.get_mut(to..to + planes.width).unwrap_or(&mut []).fill(0)),
                }
                filled += 1;
            }
            for i in 0..count {
                let plane = memory_of_planes.get(i * planes.plane()..(i + 1) * planes.plane())?;
                let out_w = c.out_w as usize;
                let output = memory.output().get_mut(y * out_w * channels + first + i..)?;
                let shape = (out_rows, out_w, stride);
                plane_3x3(&filters(first + i)?, plane, planes.width, shape, channels, output)?;
            }
        }
    }
    Some(())
}

/// Scratch bytes of planes for Helium, see [`kernels::helium`]: four filters in four phases, then four planes with a word for every column.
fn words_bytes(c: &op::Conv, bits: u8) -> Option<usize> {
    let served = (1..=4).contains(&c.kernel_h)
        && (1..=4).contains(&c.kernel_w)
        && [c.dilation_h, c.dilation_w] == [1; 2]
        && matches!(c.stride_w, 1 | 2);
    served.then(|| FILTER_BYTES + 4 * plane_bytes(c)).and_then(|bytes| bytes.checked_add(weights_bytes(c, bits)?))
}

/// Bytes of four filters in four phases.
const FILTER_BYTES: usize = 256;

/// A window reads four columns.
fn plane_bytes(c: &op::Conv) -> usize {
    let read = (c.out_w.max(1) as usize - 1) * c.stride_w as usize + 4;
    4 * read.max(c.pad_left as usize + c.in_w as usize)
}

/// Four channels after another, from the first row to the last.
#[cfg(pith_helium)]
fn through_words<W: Weights>(
    c: &op::Conv,
    memory: &mut Memory<'_>,
    weights: W,
    bits: u8,
    stage: &Stage<'_>,
    scratch: &mut [i8],
) -> Option<()> {
    let in_zero_point = i8::try_from(stage.in_zero_point).ok()?;
    if matches!(memory, Memory::InPlace(_)) && !runs_in_place(c) {
        return None;
    }
    let (scratch, expanded) = scratch.get_mut(..words_bytes(c, bits)?)?.split_at_mut(FILTER_BYTES + 4 * plane_bytes(c));
    for (i, w) in expanded.iter_mut().enumerate() {
        *w = weights.get(i);
    }
    let weights: &[i8] = if bits == 8 { weights.as_bytes() } else { expanded };
    let Channels { bias, multiplier, shift } = stage.channels;
    let planes = kernels::helium::Planes { conv: c, weights, bias, multiplier, shift, in_zero_point, to: stage.output };
    planes.run(memory, scratch, plane_bytes(c))
}

fn through_ring<W: Weights>(
    c: &op::Conv,
    memory: &mut Memory<'_>,
    weights: W,
    bits: u8,
    stage: &Stage<'_>,
    scratch: &mut [i8],
) -> Option<()> {
    let zero_point = i8::try_from(stage.in_zero_point).ok()?;
    if matches!(memory, Memory::InPlace(_)) && !runs_in_place(c) {
        return None;
    }
    let (channels, kernel_h) = (c.out_c as usize, c.kernel_h as usize);
    let taps = kernel_h * c.kernel_w as usize;
    let row = ring_row(c)?;
    let (bias, rest) = scratch.split_at_mut_checked(channels * 4)?;
    let bias: &mut [i32] = bytemuck::try_cast_slice_mut(bias).ok()?;
    let (ring, rest) = rest.split_at_mut_checked((row * kernel_h).next_multiple_of(4))?;
    let expanded = rest.get_mut(..weights_bytes(c, bits)?)?;
    for (i, w) in expanded.iter_mut().enumerate() {
        *w = weights.get(i);
    }
    let weights: &[i8] = if bits == 8 { weights.as_bytes() } else { expanded };
    // Borders hold the zero point, so the bias takes it off for all taps alike.
    bias.copy_from_slice(stage.channels.bias.get(..channels)?);
    for tap in weights.chunks_exact(channels).take(taps) {
        for (bias, &w) in bias.iter_mut().zip(tap) {
            *bias = bias.wrapping_sub(zero_point as i32 * w as i32);
        }
    }
    ring.fill(zero_point);
    let in_row = c.in_w as usize * channels;
    let mut filled = 0;
    for y in 0..c.out_h as usize {
        let top = y * c.stride_h as usize;
        filled = filled.max(top);
        while filled < top + kernel_h {
            let slot = ring.get_mut(filled % kernel_h * row..)?.get_mut(..row)?;
            match filled.checked_sub(c.pad_top as usize).filter(|&r| r < c.in_h as usize) {
                Some(r) => {
                    let to = slot.get_mut(c.pad_left as usize * channels..)?.get_mut(..in_row)?;
                    to.copy_from_slice(memory.input().get(r * in_row..(r + 1) * in_row)?);
                }
                None => slot.fill(zero_point),
            }
            filled += 1;
        }
        let out_row = c.out_w as usize * channels;
        kernels::depthwise_row(&mut DepthwiseRow {
            ring,
            row,
            first: top % kernel_h,
            kernel_h,
            kernel_w: c.kernel_w as usize,
            stride_w: c.stride_w as usize,
            channels,
            weights,
            bias,
            multiplier: stage.channels.multiplier,
            shift: stage.channels.shift,
            to: stage.output,
            output: memory.output().get_mut(y * out_row..(y + 1) * out_row)?,
        });
    }
    Some(())
}

/// Scratch bytes of a depthwise convolution that works in place: one channel of its input, nothing where each output pixel reads its own
/// input pixel alone.
pub fn depthwise_scratch_bytes(c: &op::Conv) -> usize {
    if is_pointwise(c) { 0 } else { c.in_h as usize * c.in_w as usize }
}

fn is_pointwise(c: &op::Conv) -> bool {
    let unit = [c.kernel_h, c.kernel_w, c.stride_h, c.stride_w] == [1; 4] && [c.pad_top, c.pad_left] == [0; 2];
    unit && [c.in_h, c.in_w] == [c.out_h, c.out_w]
}

/// Channels accumulated together.
const LANES: usize = 32;

/// For any shape, any width and any zero point. Channel `k` of the output depends on channel `k` of the input alone.
fn any<W: Weights>(c: &op::Conv, memory: Memory<'_>, weights: W, stage: &Stage<'_>, scratch: &mut [i8]) {
    match memory {
        // With kernels of an instruction set this is a rare way, whose code should be short.
        Memory::Apart(input, output) if matches!(Isa::COMPILED, Isa::Generic) => {
            by_blocks(c, input, weights, stage, output);
        }
        memory => by_channel(c, memory, weights, stage, scratch),
    }
}

/// A block of channels is accumulated together.
fn by_blocks<W: Weights>(c: &op::Conv, input: &[i8], weights: W, stage: &Stage<'_>, output: &mut [i8]) {
    let (rows, columns) = axes(c);
    let channels = (c.out_c as usize).max(1);
    let out_w = (c.out_w as usize).max(1);
    for (pixel, out) in output.chunks_exact_mut(channels).enumerate() {
        let (row_taps, top) = rows.taps(pixel / out_w);
        let (column_taps, left) = columns.taps(pixel % out_w);
        for (block, out) in out.chunks_mut(LANES).enumerate() {
            let first = block * LANES;
            let mut acc = [0; LANES];
            for (i, ky) in row_taps.clone().enumerate() {
                for (j, kx) in column_taps.clone().enumerate() {
                    let at = (top + i * rows.dilation) * columns.input + left + j * columns.dilation;
                    let start = at * channels + first;
                    let run = input.get(start..start + out.len()).unwrap_or(&[]);
                    let tap = (ky * columns.kernel + kx) * channels + first;
                    weights.accumulate(tap, run, stage.in_zero_point, &mut acc);
                }
            }
            for (i, (out, acc)) in out.iter_mut().zip(acc).enumerate() {
                let (bias, multiplier, shift) = stage.channels.get(first + i);
                *out = stage.output.stage(acc.wrapping_add(bias), multiplier, shift);
            }
        }
    }
}

/// One channel after another. In place, it is copied to `scratch` first, unless a pixel reads only itself: output pixel `i` then overwrites
/// channel `k` of input pixel `i`, which nobody reads again.
fn by_channel<W: Weights>(c: &op::Conv, mut memory: Memory<'_>, weights: W, stage: &Stage<'_>, scratch: &mut [i8]) {
    let (rows, columns) = axes(c);
    let channels = (c.out_c as usize).max(1);
    let out_w = (c.out_w as usize).max(1);
    let copied = matches!(memory, Memory::InPlace(_)) && !is_pointwise(c);
    for channel in 0..channels {
        let (bias, multiplier, shift) = stage.channels.get(channel);
        if copied {
            for (copy, pixel) in scratch.iter_mut().zip(memory.input().chunks_exact(channels)) {
                *copy = pixel.get(channel).copied().unwrap_or(0);
            }
        }
        for pixel in 0..c.out_h as usize * c.out_w as usize {
            let (row_taps, top) = rows.taps(pixel / out_w);
            let (column_taps, left) = columns.taps(pixel % out_w);
            let mut acc = bias;
            for (i, ky) in row_taps.enumerate() {
                for (j, kx) in column_taps.clone().enumerate() {
                    let at = (top + i * rows.dilation) * columns.input + left + j * columns.dilation;
                    let q = if copied { scratch.get(at) } else { memory.input().get(at * channels + channel) };
                    let d = q.map_or(0, |&q| q as i32 - stage.in_zero_point as i32);
                    let w = weights.get((ky * columns.kernel + kx) * channels + channel);
                    acc = acc.wrapping_add(d * w as i32);
                }
            }
            if let Some(out) = memory.output().get_mut(pixel * channels + channel) {
                *out = stage.output.stage(acc, multiplier, shift);
            }
        }
    }
}
