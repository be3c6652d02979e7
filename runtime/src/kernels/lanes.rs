//! Desktop kernels: output channels in the lanes of a vector. One algorithm for all vector sets, written over the few instructions of
//! [`Simd`]; a file of an instruction set implements those and instantiates the algorithm (see `x86_64`).
//!
//! **Groups.** Lanes are sums of 32 bits, and what a multiply instruction adds to each of them at once is a *group* of four bytes of
//! activations: four of 8 bits, or two of 16 where the set multiplies no bytes exactly ([`Simd::WIDE`]). Weights are packed in the same
//! groups when a model is loaded: for a matrix `[group][channel]`, so that one register holds a group of [`Simd::LANES`] channels.
//!
//! **Maps.** An input is copied once into a *map*: with borders, so that windows need no case distinction, and in the form that the multiplication
//! wants (`q + 128` for instructions that take unsigned bytes, which the bias makes up for). A kernel row of a window is then one contiguous run.
//! Since the map is a copy, outputs may overwrite the input.
//!
//! **Output stage.** By the high word of the product, see [`crate::format::blocks::Blocks::rescales_by_high_word`]: rounding and zero point are one addend, so
//! a register of sums takes two multiplications, an addition and a shift. Four registers are then narrowed to one of bytes.

#![allow(unsafe_code, clippy::missing_safety_doc)]

use super::{Memory, Output, Sum};
use crate::format::op;
use crate::format::tensor::Port;
use crate::ops::Axis;

/// Bytes behind a map that kernels may read.
pub const SLACK: usize = 256;

/// The instructions that the kernels are made of. Vectors hold [`Simd::LANES`] sums of 32 bits.
///
/// # Safety
/// Methods may use instructions that the machine must have: they are called only below a function that enables them.
#[allow(missing_docs)]
pub unsafe trait Simd: Copy {
    type V: Copy;
    /// Sums in a vector.
    const LANES: usize;
    /// Groups are two activations of 16 bits instead of four of 8.
    const WIDE: bool;
    /// What maps add to activations of 8 bits.
    const OFFSET: i32;
    unsafe fn load(from: *const u8) -> Self::V;
    unsafe fn store(v: Self::V, to: *mut u8);
    /// Four bytes in every lane.
    unsafe fn group(from: *const u8) -> Self::V;
    unsafe fn splat(value: i32) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn xor(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `a << b`, lane by lane.
    unsafe fn shl(a: Self::V, b: Self::V) -> Self::V;
    /// `a >> b` with sign, lane by lane.
    unsafe fn sra(a: Self::V, b: Self::V) -> Self::V;
    /// `acc +` the products of a group.
    unsafe fn dot(acc: Self::V, activations: Self::V, weights: Self::V) -> Self::V;
    /// Products of two signed 16 bits each, added.
    unsafe fn madd(a: Self::V, b: Self::V) -> Self::V;
    /// High word of the products.
    unsafe fn mul_high(a: Self::V, b: Self::V) -> Self::V;
    /// Lower (`HIGH` = false) or upper halves of every 128 bits interleaved, in units of 8 or 16 bits.
    unsafe fn zip8<const HIGH: bool>(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn zip16<const HIGH: bool>(a: Self::V, b: Self::V) -> Self::V;
    /// Four vectors saturated to bytes: within every 128 bits, four of each.
    unsafe fn narrow(v: [Self::V; 4]) -> Self::V;
    /// After [`Simd::narrow`]: the bytes of each vector together.
    unsafe fn in_order(v: Self::V) -> Self::V;
    /// After [`Simd::narrow`] of [`Simd::WIDE`] halves: channels in order.
    unsafe fn in_channel_order(v: Self::V) -> Self::V;
    /// Bytes clamped.
    unsafe fn clamp8(v: Self::V, min: i8, max: i8) -> Self::V;
}

/// How a set wants maps and packed weights; what packing weights needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// See [`Simd::LANES`].
    pub lanes: usize,
    /// See [`Simd::WIDE`].
    pub wide: bool,
    /// See [`Simd::OFFSET`].
    pub offset: i32,
    /// Runs are cut into chunks of at most 64 bytes.
    pub tiles: bool,
    /// Weights of a channel of a matrix that lie together.
    pub row: usize,
    /// Weights of a channel of a depthwise filter that lie together.
    pub taps: usize,
    /// Whether every second pair of a matrix's run and every second tap of a filter are multiplied as `-!q`, which is `q + 1`.
    pub complements: bool,
}

impl Shape {
    /// Of a vector set.
    pub const fn of<S: Simd>() -> Shape {
        let depth = if S::WIDE { 2 } else { 4 };
        let (lanes, wide, offset) = (S::LANES, S::WIDE, S::OFFSET);
        Shape { lanes, wide, offset, tiles: false, row: depth, taps: depth, complements: false }
    }

    /// Activations of a group.
    pub const fn depth(self) -> usize {
        if self.wide { 2 } else { 4 }
    }

    /// Bytes of an activation in a map.
    pub const fn element(self) -> usize {
        if self.wide { 2 } else { 1 }
    }

    /// Chunks of a run, and groups of each.
    pub const fn chunks(self, run: usize) -> (usize, usize) {
        // Divisors are constants: this runs before every operator.
        let groups = if self.wide { run.div_ceil(2) } else { run.div_ceil(4) };
        let groups = if self.row == 8 { groups.next_multiple_of(2) } else { groups };
        match self.tiles && groups > 16 {
            true => (groups.div_ceil(16), groups.div_ceil(groups.div_ceil(16))),
            false => (1, groups),
        }
    }

    /// Groups of a run, with the padding of its chunks.
    pub const fn groups(self, run: usize) -> usize {
        let (chunks, groups) = self.chunks(run);
        chunks * groups
    }

    /// Taps of a kernel row with their padding.
    pub const fn padded_taps(self, kernel_w: usize) -> usize {
        // A power of two.
        (kernel_w + self.taps - 1) & !(self.taps - 1)
    }

    /// Bytes of one output stage of `channels`.
    pub const fn stage_bytes(channels: usize) -> usize {
        STAGE_WORDS * 4 * channels
    }

    /// Bytes of a block of `lanes` channels.
    pub const fn block_bytes(self, runs: usize, run: usize) -> usize {
        Shape::stage_bytes(self.lanes) + runs * self.groups(run) * 4 * self.lanes
    }

    /// Channels of a vector of bytes.
    pub const fn vector(self) -> usize {
        4 * self.lanes
    }

    /// Which channel of a vector is lane `lane` of register `register` of four: see [`depthwise`].
    pub const fn channel(self, register: usize, lane: usize) -> usize {
        let (part, i) = (lane / 4, lane % 4);
        match self.wide {
            false => 16 * part + 4 * register + i,
            true => register / 2 * 2 * self.lanes + 8 * part + 4 * (register % 2) + i,
        }
    }
}

/// The kernels of an instruction set.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// How it wants maps and weights.
    pub shape: Shape,
    /// See [`fill`].
    pub fill: fn(&Map, &[i8], &mut [u8]) -> bool,
    /// See [`matrix`].
    pub matrix: fn(&mut Matrix<'_>, Shape) -> bool,
    /// See [`depthwise`].
    pub depthwise: fn(&mut Depthwise<'_>, Shape) -> bool,
    /// See [`super::generic::add`].
    pub add: fn(&Sum, Memory<'_>, &[i8]),
    /// See [`max_pool`].
    pub max_pool: fn(&op::Pool, &[i8], &mut [i8]),
    /// See [`sum_rows`].
    pub sum_rows: fn(&[i8], usize, usize, &mut [i32]),
    /// See [`quantize`].
    pub quantize: fn(&Port, &[f32], &mut [i8]),
}

/// Words of a channel's output stage: bias, multiplier, shift (of the high word), doublings; each an array over the channels.
pub const STAGE_WORDS: usize = 4;

/// What the output stage of a channel becomes; none if the high word does not give it.
pub fn stage_words(bias: i32, multiplier: i32, shift: u8, zero_point: i32) -> Option<[i32; STAGE_WORDS]> {
    let doublings = 33u8.saturating_sub(shift) as i32;
    let shift = shift.max(33) as i32;
    let large = multiplier == 0 || multiplier.unsigned_abs() >= 1 << 30;
    let addend = (2 * zero_point as i64 + 1) << (shift - 33);
    (multiplier != i32::MIN && doublings <= 8 && (doublings == 0 || large) && addend.unsigned_abs() < 1 << 30)
        .then_some([bias, multiplier, shift - 32, doublings])
}

/// A bordered copy of an input.
#[derive(Clone, Copy, Debug)]
pub struct Map {
    /// Rows and pixels of a row, borders included.
    pub rows: usize,
    #[allow(missing_docs)]
    pub columns: usize,
    /// Elements of a pixel: channels with their padding.
    pub pitch: usize,
    /// The input.
    pub in_h: usize,
    #[allow(missing_docs)]
    pub in_w: usize,
    #[allow(missing_docs)]
    pub channels: usize,
    /// Rows and pixels of border before it.
    pub top: usize,
    #[allow(missing_docs)]
    pub left: usize,
    /// What borders hold.
    pub zero_point: i8,
}

impl Map {
    /// Bytes with slack.
    pub fn bytes(&self, element: usize) -> usize {
        self.rows * self.columns * self.pitch * element + SLACK
    }
}

/// Copies an input into its map; false if a length is wrong. Padding of channels is not written.
#[inline(always)]
pub fn fill<S: Simd>(map: &Map, input: &[i8], to: &mut [u8]) -> bool {
    match S::WIDE {
        true => fill_with(map, input, to, 2, |from, to: &mut [u8]| {
            for (to, &q) in to.chunks_exact_mut(2).zip(from) {
                to.copy_from_slice(&(q as i16).to_le_bytes());
            }
        }),
        false => fill_with(map, input, to, 1, |from, to: &mut [u8]| {
            to.iter_mut().zip(from).for_each(|(to, &q)| *to = (q as u8).wrapping_add(S::OFFSET as u8));
        }),
    }
    .is_some()
}

/// [`fill`] with a copy of elements of `element` bytes; none if a length is wrong.
#[inline(always)]
pub(super) fn fill_with(
    map: &Map,
    input: &[i8],
    to: &mut [u8],
    element: usize,
    copy: impl Fn(&[i8], &mut [u8]),
) -> Option<()> {
    let (pixel, row) = (map.pitch * element, map.columns * map.pitch * element);
    let border = [map.zero_point; 64];
    let blank = |to: &mut [u8]| to.chunks_mut(64 * element).for_each(|to| copy(&border, to));
    let (above, rest) = to.get_mut(..map.rows * row)?.split_at_mut_checked(map.top * row)?;
    let (inside, below) = rest.split_at_mut_checked(map.in_h * row)?;
    blank(above);
    blank(below);
    let in_row = map.in_w * map.channels;
    for (to, from) in inside.chunks_exact_mut(row.max(1)).zip(input.chunks_exact(in_row.max(1))) {
        let (before, rest) = to.split_at_mut_checked(map.left * pixel)?;
        let (to, after) = rest.split_at_mut_checked(map.in_w * pixel)?;
        blank(before);
        blank(after);
        if map.pitch == map.channels {
            copy(from, to);
        } else {
            for (to, from) in to.chunks_exact_mut(pixel).zip(from.chunks_exact(map.channels)) {
                copy(from, to.get_mut(..map.channels * element)?);
            }
        }
    }
    Some(())
}

/// A matrix of packed weights times windows of a map.
#[derive(Debug)]
pub struct Matrix<'a> {
    /// The map, with slack.
    pub map: &'a [u8],
    /// Windows: how many, in rows of how many.
    pub pixels: usize,
    #[allow(missing_docs)]
    pub width: usize,
    /// Bytes from one row of windows to the next, and from one window to the next.
    pub row_step: usize,
    #[allow(missing_docs)]
    pub pixel_step: usize,
    /// Runs of a window, bytes between them, activations in each.
    pub runs: usize,
    #[allow(missing_docs)]
    pub run_step: usize,
    #[allow(missing_docs)]
    pub run: usize,
    /// Blocks of [`Shape::block_bytes`].
    pub weights: &'a [u8],
    /// Output channels.
    pub n: usize,
    /// Whether any channel's sum is doubled first.
    pub doubles: bool,
    /// Bounds.
    pub to: Output,
    /// `[pixel, n]`.
    pub output: &'a mut [i8],
}

impl Matrix<'_> {
    /// Whether all windows lie in the map, and weights and outputs are as long as they must be.
    pub fn fits(&self, shape: Shape) -> bool {
        if self.pixels == 0 || self.width == 0 || self.n == 0 || self.runs == 0 || self.run == 0 {
            return false;
        }
        let last_row = (self.pixels - 1) / self.width;
        let last = last_row * self.row_step + (self.width - 1).min(self.pixels - 1) * self.pixel_step;
        let end = last + (self.runs - 1) * self.run_step + 4 * shape.groups(self.run);
        end <= self.map.len()
            && self.weights.len() == self.n.div_ceil(shape.lanes) * shape.block_bytes(self.runs, self.run)
            && self.output.len() == self.pixels * self.n
    }
}

/// Output stage of one register.
#[derive(Clone, Copy)]
pub(super) struct Stage<S: Simd> {
    pub(super) bias: S::V,
    multiplier: S::V,
    addend: S::V,
    shift: S::V,
    /// Zero where nothing is doubled.
    doublings: S::V,
}

/// Stages of `N` registers, `step` bytes apart.
///
/// # Safety
/// Each as in [`Stage::load`].
#[inline(always)]
pub(super) unsafe fn load_stages<S: Simd, const N: usize>(
    at: *const u8,
    step: usize,
    channels: usize,
    zero_point: i32,
) -> [Stage<S>; N] {
    // SAFETY: by this function's contract.
    unsafe {
        let mut stages = [Stage::load(at, channels, zero_point); N];
        for (i, stage) in stages.iter_mut().enumerate() {
            *stage = Stage::load(at.add(i * step), channels, zero_point);
        }
        stages
    }
}

impl<S: Simd> Stage<S> {
    /// # Safety
    /// [`STAGE_WORDS`] arrays of `channels` words lie at `at`; a vector is read of each.
    #[inline(always)]
    unsafe fn load(at: *const u8, channels: usize, zero_point: i32) -> Stage<S> {
        // SAFETY: by this function's contract.
        unsafe {
            let step = 4 * channels;
            let shift = S::load(at.add(2 * step));
            let rounding = S::splat(2 * zero_point + 1);
            Stage {
                bias: S::load(at),
                multiplier: S::load(at.add(step)),
                addend: S::shl(rounding, S::add(shift, S::splat(-1))),
                shift,
                doublings: S::load(at.add(3 * step)),
            }
        }
    }

    /// Sums to outputs of 32 bits.
    ///
    /// # Safety
    /// That of [`Simd`].
    #[inline(always)]
    pub(super) unsafe fn rescale(&self, sum: S::V, doubles: bool) -> S::V {
        // SAFETY: by this function's contract.
        unsafe {
            let sum = if doubles {
                // Doubling saturates where the product leaves int8 anyway.
                let high = S::sra(S::splat(i32::MAX), self.doublings);
                let low = S::sra(S::splat(i32::MIN), self.doublings);
                S::shl(S::min(S::max(sum, low), high), self.doublings)
            } else {
                sum
            };
            S::sra(S::add(S::mul_high(sum, self.multiplier), self.addend), self.shift)
        }
    }
}

/// See [`Matrix`]; false if a length is wrong.
///
/// # Safety
/// That of [`Simd`].
#[inline(always)]
pub unsafe fn matrix<S: Simd, const P1: usize, const P2: usize, const P4: usize>(
    m: &mut Matrix<'_>,
    shape: Shape,
) -> bool {
    if !m.fits(shape) {
        return false;
    }
    let mut channel = 0;
    while channel < m.n {
        // SAFETY: `fits`; `R` blocks from `channel` on are read only where as many begin before `n`, and channels below `n` written.
        unsafe {
            let left = m.n - channel;
            if m.pixels == 1 && left > 3 * S::LANES {
                single::<S, 4, 2>(m, shape, channel);
                channel += 4 * S::LANES;
            } else if m.pixels == 1 {
                single::<S, 1, 8>(m, shape, channel);
                channel += S::LANES;
            } else if left >= 4 * S::LANES {
                column::<S, 4, P4>(m, shape, channel);
                channel += 4 * S::LANES;
            } else if left >= 2 * S::LANES {
                column::<S, 2, P2>(m, shape, channel);
                channel += 2 * S::LANES;
            } else {
                column::<S, 1, P1>(m, shape, channel);
                channel += S::LANES;
            }
        }
    }
    true
}

/// `R` blocks of channels for all pixels, `P` at a time.
///
/// # Safety
/// [`Matrix::fits`], and `R` blocks begin at `channel`, all their channels inside of `n` unless `R` is 1.
#[inline(always)]
unsafe fn column<S: Simd, const R: usize, const P: usize>(m: &mut Matrix<'_>, shape: Shape, channel: usize) {
    // SAFETY: a window is read in `runs` runs of whole groups from its start, whose end `fits` has compared with the map; stages and groups
    // lie in the `R` blocks; outputs are written for pixels below `pixels` and channels below `n`.
    unsafe {
        let block_bytes = shape.block_bytes(m.runs, m.run);
        let blocks = m.weights.as_ptr().add(channel / S::LANES * block_bytes);
        let stages = load_stages::<S, R>(blocks, block_bytes, S::LANES, m.to.zero_point);
        let weights = blocks.add(Shape::stage_bytes(S::LANES));
        let groups = shape.groups(m.run);
        let map = m.map.as_ptr();
        let (mut x, mut row) = (0, 0);
        let mut first = 0;
        while first < m.pixels {
            let count = P.min(m.pixels - first);
            // Places beyond the last pixel compute it again.
            let mut starts = [map.add(row + x * m.pixel_step); P];
            for p in 0..count {
                for later in p..P {
                    starts[later] = map.add(row + x * m.pixel_step);
                }
                x += 1;
                if x == m.width {
                    (x, row) = (0, row + m.row_step);
                }
            }
            let mut sums = [[stages[0].bias; P]; R];
            for r in 0..R {
                sums[r] = [stages[r].bias; P];
            }
            let mut w = weights;
            for run in 0..m.runs {
                let mut at = run * m.run_step;
                for _ in 0..groups {
                    let mut weight = [S::load(w); R];
                    for r in 1..R {
                        weight[r] = S::load(w.add(r * block_bytes));
                    }
                    for p in 0..P {
                        let activations = S::group(starts[p].add(at));
                        for r in 0..R {
                            sums[r][p] = S::dot(sums[r][p], activations, weight[r]);
                        }
                    }
                    w = w.add(4 * S::LANES);
                    at += 4;
                }
            }
            let sums = Registers::<S, R, P> { sums, stages, doubles: m.doubles };
            let out = m.output.as_mut_ptr().cast::<u8>().add(first * m.n + channel);
            write::<S, _, R>(P, count, &sums, m.n, m.n - channel, m.to, out);
            first += count;
        }
    }
}

/// Sums of some pixels times `R` blocks, rescaled one by one. (Methods, because closures are not inlined where their features are enabled.)
pub(super) trait Rescaled<S: Simd> {
    /// Outputs of 32 bits.
    ///
    /// # Safety
    /// That of [`Simd`].
    unsafe fn at(&self, pixel: usize, block: usize) -> S::V;
}

struct Registers<S: Simd, const R: usize, const P: usize> {
    sums: [[S::V; P]; R],
    stages: [Stage<S>; R],
    doubles: bool,
}

impl<S: Simd, const R: usize, const P: usize> Rescaled<S> for Registers<S, R, P> {
    #[inline(always)]
    unsafe fn at(&self, pixel: usize, block: usize) -> S::V {
        // SAFETY: by this function's contract.
        unsafe { self.stages[block].rescale(self.sums[block][pixel], self.doubles) }
    }
}

/// Writes outputs of `R` blocks for the first `count` of `pixels`, `n` apart. `left` channels are inside.
///
/// # Safety
/// That of [`Simd`]; outputs of `count` pixels can be written at `out`, as many as there are channels in the blocks or `left`.
#[inline(always)]
pub(super) unsafe fn write<S: Simd, T: Rescaled<S>, const R: usize>(
    pixels: usize,
    count: usize,
    sums: &T,
    n: usize,
    left: usize,
    to: Output,
    out: *mut u8,
) {
    let part = R * S::LANES;
    let mut pixel = 0;
    while pixel < count {
        // SAFETY: whole vectors are stored where their pixels lie together, else each pixel's part, at most `left`.
        unsafe {
            let mut quad = [sums.at(pixel, 0); 4];
            for i in 1..4 {
                quad[i] = sums.at((pixel + i / R).min(pixels - 1), i % R);
            }
            let bytes = clamped::<S>(S::in_order(S::narrow(quad)), to);
            if n == part && pixel + 4 / R <= count {
                S::store(bytes, out.add(pixel * n));
            } else {
                let mut buffer = [0u8; 64];
                S::store(bytes, buffer.as_mut_ptr());
                for j in 0..(4 / R).min(count - pixel) {
                    let from = buffer.as_ptr().add(j * part);
                    let to = out.add((pixel + j) * n);
                    if left >= part {
                        core::ptr::copy_nonoverlapping(from, to, part);
                    } else {
                        copy_short(from, to, left);
                    }
                }
            }
        }
        pixel += 4 / R;
    }
}

/// Copies at most 64 bytes, most often 8 to 15, without a call.
///
/// # Safety
/// `len` bytes can be read and written.
#[inline(always)]
unsafe fn copy_short(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: both halves, which may overlap, lie in `len` bytes.
    unsafe {
        match len {
            8..16 => {
                core::ptr::copy_nonoverlapping(from, to, 8);
                core::ptr::copy_nonoverlapping(from.add(len - 8), to.add(len - 8), 8);
            }
            _ => core::ptr::copy_nonoverlapping(from, to, len),
        }
    }
}

/// `R` blocks of channels for one pixel: weights are read once, so they set the pace; eight sums hide the latency.
///
/// # Safety
/// [`Matrix::fits`], and `R` blocks begin at `channel`; only the last may have channels beyond `n`.
#[inline(always)]
unsafe fn single<S: Simd, const R: usize, const UNROLL: usize>(m: &mut Matrix<'_>, shape: Shape, channel: usize) {
    // SAFETY: as in `column`.
    unsafe {
        let block_bytes = shape.block_bytes(m.runs, m.run);
        let block = m.weights.as_ptr().add(channel / S::LANES * block_bytes);
        let stages = load_stages::<S, R>(block, block_bytes, S::LANES, m.to.zero_point);
        let mut w = block.add(Shape::stage_bytes(S::LANES));
        let groups = shape.groups(m.run);
        let mut sums = [[S::splat(0); UNROLL]; R];
        for run in 0..m.runs {
            let mut at = m.map.as_ptr().add(run * m.run_step);
            let mut left = groups;
            while left >= UNROLL {
                for j in 0..UNROLL {
                    let activations = S::group(at.add(4 * j));
                    for r in 0..R {
                        let weights = S::load(w.add(r * block_bytes + 4 * S::LANES * j));
                        sums[r][j] = S::dot(sums[r][j], activations, weights);
                    }
                }
                (at, w, left) = (at.add(4 * UNROLL), w.add(4 * S::LANES * UNROLL), left - UNROLL);
            }
            while left > 0 {
                let activations = S::group(at);
                for r in 0..R {
                    sums[r][0] = S::dot(sums[r][0], activations, S::load(w.add(r * block_bytes)));
                }
                (at, w, left) = (at.add(4), w.add(4 * S::LANES), left - 1);
            }
        }
        let mut quad = [sums[0][0]; 4];
        for r in 0..R {
            let mut sum = stages[r].bias;
            for j in 0..UNROLL {
                sum = S::add(sum, sums[r][j]);
            }
            quad[r] = stages[r].rescale(sum, m.doubles);
        }
        let bytes = clamped::<S>(S::in_order(S::narrow(quad)), m.to);
        let out = m.output.as_mut_ptr().cast::<u8>().add(channel);
        let len = (R * S::LANES).min(m.n - channel);
        if len == 4 * S::LANES {
            S::store(bytes, out);
        } else {
            let mut buffer = [0u8; 64];
            S::store(bytes, buffer.as_mut_ptr());
            copy_short(buffer.as_ptr(), out, len);
        }
    }
}

/// # Safety
/// That of [`Simd`].
#[inline(always)]
unsafe fn clamped<S: Simd>(bytes: S::V, to: Output) -> S::V {
    // SAFETY: by this function's contract.
    if to.is_full() { bytes } else { unsafe { S::clamp8(bytes, to.min, to.max) } }
}

/// A depthwise convolution over a map.
#[derive(Debug)]
pub struct Depthwise<'a> {
    /// The map, with slack.
    pub map: &'a [u8],
    /// Bytes of a row of the map, and from one tap to the next in a row.
    pub row: usize,
    #[allow(missing_docs)]
    pub pitch: usize,
    #[allow(missing_docs)]
    pub kernel_h: usize,
    #[allow(missing_docs)]
    pub kernel_w: usize,
    #[allow(missing_docs)]
    pub stride_h: usize,
    /// Rows of the output, elements of each.
    pub out_h: usize,
    #[allow(missing_docs)]
    pub out_row: usize,
    /// Vectors of channels; each has its own weights.
    pub vectors: usize,
    /// Positions in a row where a vector is computed, bytes of the map and elements of the output between them.
    pub positions: usize,
    #[allow(missing_docs)]
    pub map_step: usize,
    #[allow(missing_docs)]
    pub out_step: usize,
    /// Elements of the output that a position's vectors may fill.
    pub span: usize,
    /// Per vector: stages of its channels in the order of [`Shape::channel`], then for every kernel row and group four registers.
    pub weights: &'a [u8],
    /// Whether any channel's sum is doubled first.
    pub doubles: bool,
    /// Bounds.
    pub to: Output,
    /// `[out_h, out_row]`.
    pub output: &'a mut [i8],
}

impl Depthwise<'_> {
    /// Bytes of a vector's stages and weights.
    pub const fn vector_bytes(shape: Shape, kernel_h: usize, kernel_w: usize) -> usize {
        let taps = kernel_h * shape.padded_taps(kernel_w);
        Shape::stage_bytes(shape.vector()) + taps * shape.element() * shape.vector()
    }

    /// Whether all taps lie in the map, and weights and outputs are as long as they must be.
    pub fn fits(&self, shape: Shape) -> bool {
        if [self.kernel_h, self.kernel_w, self.out_h, self.vectors, self.positions].contains(&0) {
            return false;
        }
        let taps = shape.padded_taps(self.kernel_w);
        let last = ((self.out_h - 1) * self.stride_h + self.kernel_h - 1) * self.row
            + (self.positions - 1) * self.map_step
            + (taps - 1) * self.pitch
            + self.vectors * shape.vector() * shape.element();
        last <= self.map.len()
            && self.weights.len() == self.vectors * Depthwise::vector_bytes(shape, self.kernel_h, self.kernel_w)
            && self.output.len() == self.out_h * self.out_row
    }
}

/// Every register of a vector of channels gets the groups of its lanes by interleaving the taps, which are a pixel apart in the map; narrowing
/// restores the order of the channels. False if a length is wrong.
///
/// # Safety
/// That of [`Simd`].
#[inline(always)]
pub unsafe fn depthwise<S: Simd>(d: &mut Depthwise<'_>, shape: Shape) -> bool {
    if !d.fits(shape) {
        return false;
    }
    let groups = d.kernel_w.div_ceil(shape.depth());
    let vector_bytes = Depthwise::vector_bytes(shape, d.kernel_h, d.kernel_w);
    let element = shape.element();
    for vector in 0..d.vectors {
        // SAFETY: `fits` has compared the last element that is read of the map, the lengths of weights and output; an output is written for as many
        // bytes as are left of its row, at most.
        unsafe {
            let at = d.weights.as_ptr().add(vector * vector_bytes);
            let stages = load_stages::<S, 4>(at, 4 * S::LANES, shape.vector(), d.to.zero_point);
            let weights = at.add(Shape::stage_bytes(shape.vector()));
            let first = vector * shape.vector();
            for y in 0..d.out_h {
                let top = d.map.as_ptr().add(y * d.stride_h * d.row + first * element);
                let out = d.output.as_mut_ptr().cast::<u8>().add(y * d.out_row);
                for position in 0..d.positions {
                    // Where pixels lie side by side in a vector, the row ends the span.
                    let at = position * d.out_step + first;
                    let end = (position * d.out_step + d.span).min(d.out_row);
                    if at >= end {
                        continue;
                    }
                    let mut sums = [stages[0].bias, stages[1].bias, stages[2].bias, stages[3].bias];
                    let mut w = weights;
                    for ky in 0..d.kernel_h {
                        let mut tap = top.add(ky * d.row + position * d.map_step);
                        for _ in 0..groups {
                            let quads = interleaved::<S>(tap, d.pitch);
                            for r in 0..4 {
                                sums[r] = S::dot(sums[r], quads[r], S::load(w.add(4 * S::LANES * r)));
                            }
                            w = w.add(16 * S::LANES);
                            tap = tap.add(shape.depth() * d.pitch);
                        }
                    }
                    for r in 0..4 {
                        sums[r] = stages[r].rescale(sums[r], d.doubles);
                    }
                    let bytes = S::narrow(sums);
                    let bytes = clamped::<S>(if S::WIDE { S::in_channel_order(bytes) } else { bytes }, d.to);
                    if at + shape.vector() <= end {
                        S::store(bytes, out.add(at));
                    } else {
                        let mut buffer = [0u8; 64];
                        S::store(bytes, buffer.as_mut_ptr());
                        core::ptr::copy_nonoverlapping(buffer.as_ptr(), out.add(at), end - at);
                    }
                }
            }
        }
    }
    true
}

/// Groups of a vector of channels: the taps at `tap`, `pitch` bytes apart.
///
/// # Safety
/// [`Shape::depth`] taps of a vector of channels can be read.
#[inline(always)]
unsafe fn interleaved<S: Simd>(tap: *const u8, pitch: usize) -> [S::V; 4] {
    // SAFETY: by this function's contract.
    unsafe {
        if S::WIDE {
            let half = 4 * S::LANES;
            let (a, b) = (S::load(tap), S::load(tap.add(pitch)));
            let (c, d) = (S::load(tap.add(half)), S::load(tap.add(pitch + half)));
            [S::zip16::<false>(a, b), S::zip16::<true>(a, b), S::zip16::<false>(c, d), S::zip16::<true>(c, d)]
        } else {
            let (a, b) = (S::load(tap), S::load(tap.add(pitch)));
            let (c, d) = (S::load(tap.add(2 * pitch)), S::load(tap.add(3 * pitch)));
            let (low, high) = (S::zip8::<false>(a, b), S::zip8::<true>(a, b));
            let (next_low, next_high) = (S::zip8::<false>(c, d), S::zip8::<true>(c, d));
            [
                S::zip16::<false>(low, next_low),
                S::zip16::<true>(low, next_low),
                S::zip16::<false>(high, next_high),
                S::zip16::<true>(high, next_high),
            ]
        }
    }
}

/// See [`super::generic::add`]. A multiplier `m` is `low + high * 2^15`; pairs of operands, as `q + 128`, are multiplied by both parts at once.
///
/// # Safety
/// That of [`Simd`].
#[inline(always)]
pub unsafe fn add<S: Simd>(sum: &Sum, memory: Memory<'_>, rhs: &[i8]) {
    let (lhs, output, len): (*const i8, *mut i8, usize) = match memory {
        Memory::InPlace(data) => (data.as_ptr(), data.as_mut_ptr(), data.len().min(rhs.len())),
        Memory::Apart(lhs, output) => {
            let len = output.len().min(lhs.len()).min(rhs.len());
            (lhs.as_ptr(), output.as_mut_ptr(), len)
        }
    };
    let vector = 4 * S::LANES;
    // SAFETY: `len` elements of all three can be accessed; whole vectors below it, and the rest through buffers of a vector.
    unsafe {
        let adder = Adder::<S>::new(sum);
        let (lhs, right, output) = (lhs.cast::<u8>(), rhs.as_ptr().cast::<u8>(), output.cast::<u8>());
        let mut at = 0;
        while at + vector <= len {
            adder.step(lhs.add(at), right.add(at), output.add(at));
            at += vector;
        }
        if at < len {
            let mut buffers = [[0u8; 64]; 3];
            core::ptr::copy_nonoverlapping(lhs.add(at), buffers[0].as_mut_ptr(), len - at);
            core::ptr::copy_nonoverlapping(right.add(at), buffers[1].as_mut_ptr(), len - at);
            let [a, b, c] = buffers.each_mut().map(|buffer| buffer.as_mut_ptr());
            adder.step(a, b, c);
            core::ptr::copy_nonoverlapping(c, output.add(at), len - at);
        }
    }
}

/// The constants of an addition in vectors.
struct Adder<S: Simd> {
    low: S::V,
    high: S::V,
    constant: S::V,
    shift: S::V,
    zero_point: S::V,
    to: Output,
}

impl<S: Simd> Adder<S> {
    /// # Safety
    /// That of [`Simd`].
    #[inline(always)]
    unsafe fn new(sum: &Sum) -> Adder<S> {
        let (lhs, rhs) = (sum.lhs_multiplier, sum.rhs_multiplier);
        let offset = lhs.wrapping_add(rhs).wrapping_mul(-128);
        // SAFETY: by this function's contract.
        unsafe {
            Adder {
                low: S::splat(lhs & 0x7FFF | (rhs & 0x7FFF) << 16),
                high: S::splat(lhs >> 15 & 0xFFFF | rhs >> 15 << 16),
                constant: S::splat(sum.constant.wrapping_add(offset)),
                shift: S::splat(sum.shift as i32),
                zero_point: S::splat(sum.to.zero_point),
                to: sum.to,
            }
        }
    }

    /// # Safety
    /// A vector of bytes can be read at `lhs` and `rhs` and written at `out`.
    #[inline(always)]
    unsafe fn step(&self, lhs: *const u8, rhs: *const u8, out: *mut u8) {
        // SAFETY: by this function's contract.
        unsafe {
            let (sign, zero) = (S::splat(0x8080_8080u32 as i32), S::splat(0));
            let (lhs, rhs) = (S::xor(S::load(lhs), sign), S::xor(S::load(rhs), sign));
            let (a, b) = (S::zip8::<false>(lhs, zero), S::zip8::<true>(lhs, zero));
            let (c, d) = (S::zip8::<false>(rhs, zero), S::zip8::<true>(rhs, zero));
            let quad = [
                self.one(S::zip16::<false>(a, c)),
                self.one(S::zip16::<true>(a, c)),
                self.one(S::zip16::<false>(b, d)),
                self.one(S::zip16::<true>(b, d)),
            ];
            S::store(clamped::<S>(S::narrow(quad), self.to), out);
        }
    }

    /// # Safety
    /// That of [`Simd`].
    #[inline(always)]
    unsafe fn one(&self, pairs: S::V) -> S::V {
        // SAFETY: by this function's contract.
        unsafe {
            let high = S::shl(S::madd(pairs, self.high), S::splat(15));
            let acc = S::add(S::add(S::madd(pairs, self.low), high), self.constant);
            S::add(S::sra(acc, self.shift), self.zero_point)
        }
    }
}

/// See [`super::generic::sum_rows`]; sums of a block of channels stay in registers.
#[inline(always)]
pub fn sum_rows(input: &[i8], step: usize, rows: usize, acc: &mut [i32]) {
    const BLOCK: usize = 32;
    let mut start = 0;
    let mut blocks = acc.chunks_exact_mut(BLOCK);
    for block in &mut blocks {
        let mut sums = [0i32; BLOCK];
        for row in 0..rows {
            let Some(row) = input.get(row * step + start..).and_then(|row| row.first_chunk::<BLOCK>()) else { break };
            for (sum, &q) in sums.iter_mut().zip(row) {
                *sum = sum.wrapping_add(q as i32);
            }
        }
        for (acc, sum) in block.iter_mut().zip(sums) {
            *acc = acc.wrapping_add(sum);
        }
        start += BLOCK;
    }
    super::generic::sum_rows(input.get(start..).unwrap_or(&[]), step, rows, blocks.into_remainder());
}

/// See [`crate::ops`]: a whole maximum pool. Blocks of 64, 16 and 8 channels, then single ones.
#[inline(always)]
pub fn max_pool(p: &op::Pool, input: &[i8], output: &mut [i8]) {
    let channels = (p.c as usize).max(1);
    let (rows, columns) = Axis::of_pool(p);
    for (pixel, out) in output.chunks_exact_mut(channels).enumerate() {
        let (row_taps, top) = rows.taps(pixel / (p.out_w as usize).max(1));
        let (column_taps, left) = columns.taps(pixel % (p.out_w as usize).max(1));
        let window = Window {
            input,
            start: (top * columns.input + left) * channels,
            rows: row_taps.len(),
            row_step: rows.dilation * columns.input * channels,
            columns: column_taps.len(),
            column_step: columns.dilation * channels,
        };
        let rest = window.blocks::<64>(0, out, p);
        let rest = window.blocks::<16>(channels - rest.len(), rest, p);
        let rest = window.blocks::<8>(channels - rest.len(), rest, p);
        window.blocks::<1>(channels - rest.len(), rest, p);
    }
}

/// What one pixel of a pool reads.
struct Window<'a> {
    input: &'a [i8],
    start: usize,
    rows: usize,
    row_step: usize,
    columns: usize,
    column_step: usize,
}

impl Window<'_> {
    /// Blocks of `N` channels from `first` on, as many as `out` has room for; returns the rest.
    #[inline(always)]
    fn blocks<'o, const N: usize>(&self, first: usize, out: &'o mut [i8], p: &op::Pool) -> &'o mut [i8] {
        let mut blocks = out.chunks_exact_mut(N);
        for (i, block) in (&mut blocks).enumerate() {
            let mut largest = [i8::MIN; N];
            for row in 0..self.rows {
                for column in 0..self.columns {
                    let at = self.start + row * self.row_step + column * self.column_step + first + i * N;
                    let Some(tap) = self.input.get(at..).and_then(|tap| tap.first_chunk::<N>()) else { continue };
                    for (largest, &q) in largest.iter_mut().zip(tap) {
                        *largest = (*largest).max(q);
                    }
                }
            }
            for (out, q) in block.iter_mut().zip(largest) {
                *out = q.max(p.act_min).min(p.act_max);
            }
        }
        blocks.into_remainder()
    }
}

/// [`Port::quantize`] of every value, without branches.
#[inline(always)]
pub fn quantize(port: &Port, raw: &[f32], to: &mut [i8]) {
    let (scale, zero_point) = (port.scale as f64, port.zero_point.clamp(-65_536, 65_536));
    for (to, &raw) in to.iter_mut().zip(raw) {
        let steps = raw as f64 / scale + 0.5;
        let steps = if steps.is_nan() { 0.0 } else { steps.clamp(-65_536.0, 65_536.0) };
        // SAFETY: the value is a number between -65,536 and 65,536.
        let truncated: i32 = unsafe { steps.to_int_unchecked() };
        let floor = truncated - i32::from(steps < truncated as f64);
        *to = (floor + zero_point).clamp(-128, 127) as i8;
    }
}
