//! Patches: what one output pixel of a convolution reads, `k` activations in a row, as the kernels of a [`Layout`] want them.
//!
//! | layout | element | several pixels | scaling |
//! |---|---|---|---|
//! | `Pairs` | i16, of four `k` the order 0, 2, 1, 3 | every four `k` side by side | `q << e(k)`, see [`pair_shift`] |
//! | `Quads` | u16; a single pixel u8, or twice if weights are narrow | two, every `k` side by side: a word that one factor multiplies | `q + 128` |
//!
//! `Rows` has no patches, see [`super::Windows`].
//!
//! Taps outside of the input hold the input's zero point, which the bias accounts for; the padding of `k` holds zeros.

use super::Output;
#[cfg(pith_v6m)]
use super::arm_v6m as arm;
#[cfg(pith_v7m)]
use super::arm_v7m as arm;
use super::generic;
use super::quads;
use crate::format::blocks::{Blocks, Layout};
use crate::format::sparse::Sparse;
use crate::uses::{has_blocks, has_dense, has_sparse};
#[cfg(any(pith_v6m, pith_v7m))]
use arm::expand;
#[cfg(not(any(pith_v6m, pith_v7m)))]
use quads::expand;

/// What patches are multiplied with.
#[derive(Clone, Copy, Debug)]
pub enum Factor<'a> {
    /// All blocks are stored.
    Dense(Blocks<'a>),
    /// Some are; patches are those of [`Layout::Pairs`] of 8 bits.
    Sparse(Sparse<'a>),
}

impl Factor<'_> {
    /// How patches are laid out.
    pub fn layout(&self) -> Layout {
        match self {
            Factor::Dense(blocks) => blocks.layout(),
            Factor::Sparse(_) => Layout::Pairs,
        }
    }

    /// Width of one weight.
    pub fn bits(&self) -> u8 {
        match self {
            Factor::Dense(blocks) => blocks.bits(),
            Factor::Sparse(_) => 8,
        }
    }

    /// Columns, without padding.
    pub fn k(&self) -> usize {
        match self {
            Factor::Dense(blocks) => blocks.k(),
            Factor::Sparse(sparse) => sparse.k(),
        }
    }

    fn rescales_by_high_word(&self, zero_point: i32) -> bool {
        match self {
            Factor::Dense(blocks) => blocks.rescales_by_high_word(zero_point),
            Factor::Sparse(sparse) => sparse.rescales_by_high_word(zero_point),
        }
    }
}

/// Pixels that a matrix kernel multiplies together.
pub const fn pixels(layout: Layout) -> usize {
    match layout {
        Layout::Pairs => 3,
        Layout::Quads => 2,
        Layout::Rows => 1,
    }
}

/// Bytes of one `k` of so many pixels.
pub const fn bytes_per_k(layout: Layout, bits: u8, pixels: usize) -> usize {
    match layout {
        Layout::Pairs => 2 * pixels,
        Layout::Quads if bits == 8 && pixels == 1 => 1,
        Layout::Quads => 4,
        Layout::Rows => pixels,
    }
}

/// Left shift of activation `k` among several pixels for narrow weights. There a word of weights is masked, not shifted, into pairs, so that its
/// pairs come out multiplied by powers of two; the activations make up for it, and every product is `2^sum_shift` times itself.
pub const fn pair_shift(bits: u8, pixels: usize, k: usize) -> u32 {
    match (bits, pixels, k % 8) {
        (_, 1, _) => 0,
        (4, _, 0 | 2 | 4 | 6) => 4,
        (2, _, 0 | 2) => 6,
        (2, _, 1 | 3) => 4,
        (2, _, 4 | 6) => 2,
        _ => 0,
    }
}

/// See [`pair_shift`].
pub const fn sum_shift(bits: u8, pixels: usize) -> u32 {
    match (bits, pixels) {
        (_, 1) => 0,
        (4, _) => 4,
        (2, _) => 6,
        _ => 0,
    }
}

const fn has_pairs(uses: u64) -> bool {
    has_blocks(uses, Layout::Pairs, 8) || has_blocks(uses, Layout::Pairs, 4) || has_blocks(uses, Layout::Pairs, 2)
}

const fn has_quads(uses: u64) -> bool {
    has_blocks(uses, Layout::Quads, 8) || has_blocks(uses, Layout::Quads, 4) || has_blocks(uses, Layout::Quads, 2)
}

/// Position of activation `k` of a pixel among `pixels` in a patch of pairs.
#[inline(always)]
pub const fn pair_index(pixels: usize, pixel: usize, k: usize) -> usize {
    const ORDER: [usize; 4] = [0, 2, 1, 3];
    (k / 4 * pixels + pixel) * 4 + ORDER[k % 4]
}

/// Runs of a ring's rows, from `left` on: what the taps of a window read, kernel row after kernel row.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// `slots` rows of `row` elements.
    pub ring: &'a [i8],
    #[allow(missing_docs)]
    pub row: usize,
    #[allow(missing_docs)]
    pub slots: usize,
    /// The slot that comes first; the next ones follow, cyclically.
    pub first: usize,
    #[allow(missing_docs)]
    pub left: usize,
    /// Elements of a run.
    pub run: usize,
}

impl<'a> Rows<'a> {
    /// One run.
    pub fn single(run: &'a [i8]) -> Rows<'a> {
        Rows { ring: run, row: run.len(), slots: 1, first: 0, left: 0, run: run.len() }
    }

    /// Whether all of them lie in the ring.
    pub fn are_inside(&self) -> bool {
        self.first < self.slots
            && self.left.checked_add(self.run).is_some_and(|end| end <= self.row)
            && self.slots.checked_mul(self.row).is_some_and(|end| end <= self.ring.len())
    }

    /// One after another; empty where they leave the ring.
    fn runs(&self) -> impl Iterator<Item = &'a [i8]> {
        let slots = (self.first..self.slots).chain(0..self.first);
        let (ring, row, left, run) = (self.ring, self.row, self.left, self.run);
        slots.map(move |slot| ring.get(slot * row + left..).and_then(|from| from.get(..run)).unwrap_or(&[]))
    }

    /// Copies them to `to`.
    #[inline(always)]
    pub fn copy_to(&self, to: &mut [i8]) {
        #[cfg(pith_dsp)]
        super::arm_dsp::copy_rows(to, self);
        #[cfg(not(pith_dsp))]
        for (to, run) in to.chunks_exact_mut(self.run.max(1)).zip(self.runs()) {
            to.iter_mut().zip(run).for_each(|(to, from)| *to = *from);
        }
    }
}

/// Scratch bytes of patches.
pub const fn bytes(layout: Layout, bits: u8, pixels: usize, k: usize) -> usize {
    layout.padded_k(bits, k) * bytes_per_k(layout, bits, pixels)
}

/// Patches of some pixels, in scratch memory, for the layouts of `USES`, see [`crate::uses`].
#[derive(Debug)]
pub struct Patches<'s, const USES: u64> {
    layout: Layout,
    bits: u8,
    pixels: usize,
    memory: &'s mut [i8],
    /// Whether a kernel of the instruction set serves.
    #[cfg_attr(not(any(pith_dsp, pith_v6m, pith_v7m)), allow(dead_code))]
    native: bool,
    /// Sums of activations of every pixel, for weights that are stored with an offset.
    sums: [i32; 3],
}

impl<'s, const USES: u64> Patches<'s, USES> {
    /// Room for `pixels` patches, all zero; `memory` is aligned to 4 and has [`bytes`].
    pub fn new(factor: &Factor<'_>, to: Output, pixels: usize, memory: &'s mut [i8]) -> Option<Patches<'s, USES>> {
        let (layout, bits) = (factor.layout(), factor.bits());
        let memory = memory.get_mut(..bytes(layout, bits, pixels, factor.k()))?;
        memory.fill(0);
        let native = factor.rescales_by_high_word(to.zero_point);
        Some(Patches { layout, bits, pixels, memory, native, sums: [0; 3] })
    }

    /// Begins a pixel anew.
    #[inline(always)]
    pub fn begin(&mut self, pixel: usize) {
        if let Some(sum) = self.sums.get_mut(pixel) {
            *sum = 0;
        }
    }

    /// All activations of a pixel.
    #[inline(always)]
    pub fn put_rows(&mut self, pixel: usize, rows: &Rows<'_>) {
        #[cfg(pith_dsp)]
        if let (Layout::Pairs, Ok(to)) = (self.layout, bytemuck::try_cast_slice_mut::<i8, i16>(self.memory)) {
            self.sums[pixel % 3] += super::arm_dsp::expand_rows::<USES>(self.bits, to, self.pixels, pixel, 0, rows);
            return;
        }
        for (i, run) in rows.runs().enumerate() {
            self.put(pixel, i * rows.run, run);
        }
    }

    /// Activations `k ..` of a pixel.
    #[inline(always)]
    pub fn put(&mut self, pixel: usize, k: usize, run: &[i8]) {
        match self.layout {
            Layout::Pairs if has_pairs(USES) => {
                let Ok(to) = bytemuck::try_cast_slice_mut::<i8, i16>(self.memory) else { return };
                #[cfg(pith_dsp)]
                let sum = super::arm_dsp::expand::<USES>(self.bits, to, self.pixels, pixel, k, run);
                #[cfg(not(pith_dsp))]
                let sum = generic::expand(self.bits, to, self.pixels, pixel, k, run);
                self.sums[pixel % 3] += sum;
            }
            Layout::Quads if has_quads(USES) => {
                if self.is_bytes() {
                    let to = bytemuck::cast_slice_mut(self.memory.get_mut(k..).unwrap_or(&mut []));
                    self.sums[0] += quads::offset(to, run);
                    return;
                }
                let Ok(to) = bytemuck::try_cast_slice_mut::<i8, u16>(self.memory) else { return };
                self.sums[pixel % 3] += expand(to.get_mut(2 * k + pixel..).unwrap_or(&mut []), run);
                if self.pixels == 1 {
                    self.sums[1] = self.sums[0];
                    expand(to.get_mut(2 * k + 1..).unwrap_or(&mut []), run);
                }
            }
            _ => (),
        }
    }

    /// Whether a patch of [`Layout::Quads`] is a pixel of bytes.
    fn is_bytes(&self) -> bool {
        bytes_per_k(self.layout, self.bits, self.pixels) == 1
    }

    /// Four activations of a pixel in a patch of pairs of 8 bits, `4 * index ..` in order.
    #[inline(always)]
    pub fn four(&self, pixel: usize, index: usize) -> [i16; 4] {
        let words: &[i16] = bytemuck::try_cast_slice(self.memory).unwrap_or(&[]);
        let start = pair_index(self.pixels, pixel, 4 * index);
        let [a, c, b, d] = words.get(start..).and_then(<[i16]>::first_chunk).copied().unwrap_or_default();
        [a, b, c, d]
    }

    /// Activation `k` of a pixel, with [`Layout::offset`].
    pub fn get(&self, pixel: usize, k: usize) -> i32 {
        match self.layout {
            Layout::Pairs if has_pairs(USES) => {
                let words: &[i16] = bytemuck::try_cast_slice(self.memory).unwrap_or(&[]);
                let q = words.get(pair_index(self.pixels, pixel, k)).copied().unwrap_or(0);
                (q >> pair_shift(self.bits, self.pixels, k)) as i32
            }
            Layout::Quads if self.is_bytes() => self.memory.get(k).copied().unwrap_or(0) as u8 as i32,
            _ => {
                let halves: &[u16] = bytemuck::try_cast_slice(self.memory).unwrap_or(&[]);
                halves.get(2 * k + pixel).copied().unwrap_or(0) as i32
            }
        }
    }

    /// What kernels of [`Layout::Quads`] are told: a pixel that stands twice is two.
    #[cfg(any(pith_v6m, pith_v7m, not(target_arch = "arm")))]
    fn quads_places(&self, at: [usize; 3]) -> (usize, [usize; 3]) {
        let at = if self.pixels == 1 { [at[0]; 3] } else { at };
        (if self.is_bytes() { 1 } else { 2 }, at)
    }

    /// Multiplies with a matrix: pixel `i`'s `n` outputs begin at `output[at[i]]`. Pixels may be fewer than there is room for only if they
    /// are named again: kernels compute all of them.
    pub fn multiply(&self, factor: &Factor<'_>, to: Output, output: &mut [i8], at: [usize; 3]) {
        match factor {
            Factor::Dense(blocks) if has_dense(USES) => self.multiply_dense(blocks, to, output, at),
            Factor::Sparse(sparse) if has_sparse(USES) => self.multiply_sparse(sparse, to, output, at),
            _ => (),
        }
    }

    fn multiply_sparse(&self, sparse: &Sparse<'_>, to: Output, output: &mut [i8], at: [usize; 3]) {
        #[cfg(pith_dsp)]
        if self.native && super::arm_dsp::sparse(sparse, self.memory, self.pixels, to, output, at) {
            return;
        }
        generic::sparse(sparse, self, self.pixels, to, output, at);
    }

    fn multiply_dense(&self, blocks: &Blocks<'_>, to: Output, output: &mut [i8], at: [usize; 3]) {
        // Kernels of an instruction set return whether they served.
        #[cfg(pith_dsp)]
        if self.native && super::arm_dsp::pairs::<USES>(blocks, self.memory, self.pixels, self.sums, to, output, at) {
            return;
        }
        #[cfg(any(pith_v6m, pith_v7m, not(target_arch = "arm")))]
        let (pixels, places) = self.quads_places(at);
        #[cfg(any(pith_v6m, pith_v7m))]
        if self.native && arm::matrix::<USES>(blocks, self.memory, pixels, self.sums, to, output, places) {
            return;
        }
        #[cfg(not(target_arch = "arm"))]
        if has_quads(USES) && quads::matrix(blocks, self.memory, pixels, self.sums, to, output, places) {
            return;
        }
        generic::matrix(blocks, self, self.pixels, to, output, at);
    }
}
