//! Convolutions and linear layers over weights in blocks, all of them stored or some: patches of a few output pixels times a matrix.
//!
//! ```text
//! input rows ──> ring (kernel_h rows, borders filled with the zero point) ──> patches (kernel taps in a row) ──> matrix kernel ──> output
//! ```
//!
//! The ring keeps the rows that a kernel row still needs, so an output may overwrite its input wherever rows are consumed faster than
//! written ([`runs_in_place`]). A kernel of one tap has no border and no ring: a pixel is read into its patch before anything behind it
//! is written.

use super::{Place, columns};
use crate::format::blocks::Layout;
use crate::format::op;
use crate::kernels::patch::{self, Factor, Patches, Rows};
use crate::kernels::{Memory, Output};
use crate::uses::decodes_tiles;

/// Scratch memory of a convolution in blocks, in this order.
struct Scratch {
    ring: usize,
    staging: usize,
    patches: usize,
}

impl Scratch {
    fn of(c: &op::Conv, layout: Layout, bits: u8) -> Scratch {
        let run = c.kernel_w as usize * c.in_c as usize;
        let k = c.kernel_h as usize * run;
        let ring = if has_one_tap(c) { 0 } else { c.kernel_h as usize * ring_row(c) };
        Scratch {
            ring: ring.next_multiple_of(4),
            staging: if run.is_multiple_of(4) || layout == Layout::Quads { 0 } else { k.next_multiple_of(4) },
            patches: patch::bytes(layout, bits, patch::pixels(layout), k),
        }
    }
}

/// Scratch bytes of a convolution whose weights lie in blocks.
pub fn conv_scratch_bytes(c: &op::Conv, layout: Layout, bits: u8) -> usize {
    if layout == Layout::Rows {
        return columns::conv_scratch_bytes(c, bits);
    }
    let scratch = Scratch::of(c, layout, bits);
    scratch.ring + scratch.staging + scratch.patches
}

/// Scratch bytes of a linear layer whose weights lie in blocks.
pub fn linear_scratch_bytes(l: &op::Linear, layout: Layout, bits: u8) -> usize {
    if layout == Layout::Rows {
        return columns::linear_scratch_bytes(l, bits);
    }
    patch::bytes(layout, bits, linear_pixels(l, layout), l.k as usize)
}

/// Rows of the input that are multiplied together.
fn linear_pixels(l: &op::Linear, layout: Layout) -> usize {
    if l.rows as usize >= patch::pixels(layout) { patch::pixels(layout) } else { 1 }
}

/// Whether a convolution can have its weights in blocks at all.
pub fn conv_fits(c: &op::Conv) -> bool {
    [c.groups, c.dilation_h, c.dilation_w] == [1; 3]
}

pub(super) fn has_one_tap(c: &op::Conv) -> bool {
    [c.kernel_h, c.kernel_w] == [1; 2]
        && [c.pad_top, c.pad_left] == [0; 2]
        && reach(c) <= [c.in_h, c.in_w].map(usize::from)
}

/// Rows and columns of the input that windows reach to, padding before it not counted.
fn reach(c: &op::Conv) -> [usize; 2] {
    let axis = |out: u16, stride: u16, kernel: u16, pad: u16| {
        (out.max(1) as usize - 1) * stride as usize + (kernel as usize).saturating_sub(pad as usize)
    };
    [axis(c.out_h, c.stride_h, c.kernel_h, c.pad_top), axis(c.out_w, c.stride_w, c.kernel_w, c.pad_left)]
}

/// Elements of a row in the ring: what windows reach to, with borders on both sides.
pub(super) fn ring_row(c: &op::Conv) -> usize {
    let width = (c.pad_left as usize + c.in_w as usize)
        .max((c.out_w.max(1) as usize - 1) * c.stride_w as usize + c.kernel_w as usize);
    width * c.in_c as usize
}

/// Whether the output may begin where the input begins: nothing is overwritten before it is read.
pub fn runs_in_place(c: &op::Conv) -> bool {
    let [in_h, in_w, in_c, out_h, out_w, out_c, stride_h, stride_w] =
        [c.in_h, c.in_w, c.in_c, c.out_h, c.out_w, c.out_c, c.stride_h, c.stride_w].map(u64::from);
    if has_one_tap(c) {
        // The pixel that is read next lies at or behind the end of what is written; both are linear along a row.
        let safe = |y: u64, x: u64| (y * out_w + x) * out_c <= (y * stride_h * in_w + x * stride_w) * in_c;
        return (0..out_h).all(|y| safe(y, 0) && safe(y, out_w.max(1) - 1));
    }
    let read = |y: u64| (y * stride_h + c.kernel_h as u64).saturating_sub(c.pad_top as u64).min(in_h);
    (0..out_h).all(|y| read(y) == in_h || (y + 1) * out_w * out_c <= read(y) * in_w * in_c)
}

/// `output[y, x, oc]`, see [`op::Conv`] and [`crate::format::blocks`].
pub(super) fn conv<const USES: u64>(
    c: &op::Conv,
    mut memory: Memory<'_>,
    zero_point: i8,
    factor: &Factor<'_>,
    place: Place,
    to: Output,
    scratch: &mut [i8],
) -> Option<()> {
    let sizes = Scratch::of(c, factor.layout(), factor.bits());
    let (ring, rest) = scratch.split_at_mut_checked(sizes.ring)?;
    let (staging, rest) = rest.split_at_mut_checked(sizes.staging)?;
    let mut group: Group<'_, USES> =
        Group::new(factor, place, to, patch::pixels(factor.layout()), rest, c.out_h as usize * c.out_w as usize)?;
    let one_tap = has_one_tap(c);
    let (in_c, in_w) = (c.in_c as usize, c.in_w as usize);
    let run = c.kernel_w as usize * in_c;
    let (row, kernel_h) = (ring_row(c), c.kernel_h as usize);
    ring.fill(zero_point);
    staging.fill(0);
    // Input rows that lie in the ring; row `r` of the padded input lies in slot `r % kernel_h`.
    let mut filled = 0;
    for y in 0..c.out_h as usize {
        let top = y * c.stride_h as usize;
        if !one_tap {
            filled = filled.max(top);
            while filled < top + kernel_h {
                let slot = ring.get_mut(filled % kernel_h * row..)?.get_mut(..row)?;
                let inside = filled.checked_sub(c.pad_top as usize).filter(|&r| r < c.in_h as usize);
                match inside {
                    Some(r) => {
                        let to = slot.get_mut(c.pad_left as usize * in_c..)?.get_mut(..in_w * in_c)?;
                        to.copy_from_slice(memory.input().get(r * in_w * in_c..(r + 1) * in_w * in_c)?);
                    }
                    None => slot.fill(zero_point),
                }
                filled += 1;
            }
        }
        let first_slot = top % kernel_h;
        for x in 0..c.out_w as usize {
            let pixel = group.begin();
            let left = x * c.stride_w as usize * in_c;
            let rows = match one_tap {
                true => Rows::single(memory.input().get(top * in_w * in_c + left..)?.get(..in_c)?),
                false => Rows { ring, row, slots: kernel_h, first: first_slot, left, run },
            };
            if staging.is_empty() {
                group.patches.put_rows(pixel, &rows);
            } else {
                rows.copy_to(staging);
                group.patches.put(pixel, 0, staging);
            }
            group.end(factor, to, memory.output());
        }
    }
    group.finish(factor, to, memory.output());
    Some(())
}

/// `output[row, n]`, see [`op::Linear`] and [`crate::format::blocks`].
pub(super) fn linear<const USES: u64>(
    l: &op::Linear,
    mut memory: Memory<'_>,
    factor: &Factor<'_>,
    place: Place,
    to: Output,
    scratch: &mut [i8],
) -> Option<()> {
    let (k, rows) = (l.k as usize, l.rows as usize);
    let mut group: Group<'_, USES> = Group::new(factor, place, to, linear_pixels(l, factor.layout()), scratch, rows)?;
    for row in 0..rows {
        let pixel = group.begin();
        group.patches.put(pixel, 0, memory.input().get(row * k..(row + 1) * k)?);
        group.end(factor, to, memory.output());
    }
    group.finish(factor, to, memory.output());
    Some(())
}

/// Output pixels that are multiplied together: collected one by one, written when all places are taken.
struct Group<'s, const USES: u64> {
    patches: Patches<'s, USES>,
    places: usize,
    /// Index of the pixel in every place.
    pixels: [usize; 3],
    next: usize,
    /// Places that are taken.
    taken: usize,
    place: Place,
}

impl<'s, const USES: u64> Group<'s, USES> {
    /// With fewer pixels than places there is only one.
    fn new(
        factor: &Factor<'_>,
        place: Place,
        to: Output,
        places: usize,
        memory: &'s mut [i8],
        pixels: usize,
    ) -> Option<Group<'s, USES>> {
        let places = if pixels < places { 1 } else { places };
        Some(Group {
            patches: Patches::new(factor, to, places, memory)?,
            places,
            pixels: [0; 3],
            next: 0,
            taken: 0,
            place,
        })
    }

    /// Where a pixel's outputs begin.
    fn at(&self, pixel: usize) -> usize {
        let first = if decodes_tiles(USES) { self.place.first } else { 0 };
        pixel * self.place.pitch + first
    }

    /// The place of the next pixel.
    #[inline(always)]
    fn begin(&mut self) -> usize {
        let place = self.taken;
        self.patches.begin(place);
        if let Some(pixel) = self.pixels.get_mut(place) {
            *pixel = self.next;
        }
        self.next += 1;
        self.taken += 1;
        place
    }

    /// Multiplies if all places are taken.
    #[inline(always)]
    fn end(&mut self, factor: &Factor<'_>, to: Output, output: &mut [i8]) {
        if self.taken == self.places {
            self.finish(factor, to, output);
            self.taken = 0;
        }
    }

    /// Multiplies what is left; places that hold an earlier pixel still give it the same output.
    fn finish(&mut self, factor: &Factor<'_>, to: Output, output: &mut [i8]) {
        if self.taken != 0 {
            self.patches.multiply(factor, to, output, self.pixels.map(|pixel| self.at(pixel)));
        }
    }
}
