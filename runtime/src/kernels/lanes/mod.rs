//! Desktop kernels: output channels in the lanes of a vector. One algorithm for the vector sets of x86-64, written over the few instructions of
//! [`Simd`]; a file of an instruction set implements those and instantiates the algorithm (see `x86_64`). AMX and aarch64, whose four lanes want
//! other tiles, have loops of their own; maps, packed weights and the [`Table`] are the same.
//!
//! **Groups.** Lanes are sums of 32 bits, and what a multiply instruction adds to each of them at once is a *group* of four bytes of
//! activations: four of 8 bits, or two of 16 where the set multiplies no bytes exactly ([`Simd::WIDE`]). Weights are packed in the same
//! groups when a model is loaded: for a matrix `[group][channel]`, so that one register holds a group of [`Simd::LANES`] channels.
//!
//! **Maps.** An input is copied once into a *map*: with borders, so that windows need no case distinction, and in the form that the multiplication
//! wants (`q + 128` for instructions that take unsigned bytes, which the bias makes up for). A kernel row of a window is then one contiguous run.
//! Since the map is a copy, outputs may overwrite the input.
//!
//! **Output stage.** By the high word of the product, see [`HighWord`]: rounding and zero point are one addend, so
//! a register of sums takes two multiplications, an addition and a shift. Four registers are then narrowed to one of bytes.

#![allow(unsafe_code, clippy::missing_safety_doc)]

mod depthwise;
mod map;
mod matrix;
mod simple;
mod sparse;

use super::{Memory, Output, Sum};
use crate::fixed::HighWord;
use crate::format::op;
use crate::format::tensor::Port;
pub use depthwise::{Depthwise, depthwise};
#[cfg(target_arch = "aarch64")]
pub(in crate::kernels) use map::fill_with;
pub use map::{Map, fill, quantize};
#[cfg(target_arch = "x86_64")]
pub(in crate::kernels) use matrix::{Destination, Rescaled};
pub use matrix::{Matrix, matrix};
pub use simple::{add, max_pool, sum_rows};
pub use sparse::{Planes, Sparse, band_bytes, block_bytes, fill_planes, sparse};

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
    /// Whether block-sparse weights are multiplied as such; else they are packed with their zeros.
    pub sparse: bool,
}

impl Shape {
    /// Of a vector set.
    pub const fn of<S: Simd>() -> Shape {
        let depth = if S::WIDE { 2 } else { 4 };
        let (lanes, wide, offset) = (S::LANES, S::WIDE, S::OFFSET);
        Shape { lanes, wide, offset, tiles: false, row: depth, taps: depth, complements: false, sparse: true }
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
    /// See [`fill_planes`]; where [`Shape::sparse`].
    pub fill_planes: fn(&Planes, &[i8], &mut [u8]) -> bool,
    /// See [`sparse`]; where [`Shape::sparse`].
    pub sparse: fn(&mut Sparse<'_>) -> bool,
    /// See [`crate::kernels::generic::add`].
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
    // The negative end would overflow in kernels that double a product.
    let serves = multiplier != i32::MIN && HighWord::new(zero_point).serves(multiplier, shift);
    serves.then(|| [bias, multiplier, shift.max(33) as i32 - 32, 33u8.saturating_sub(shift) as i32])
}

/// Output stage of one register.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Stage<S: Simd> {
    pub(in crate::kernels) bias: S::V,
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
pub(in crate::kernels) unsafe fn load_stages<S: Simd, const N: usize>(
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
    pub(in crate::kernels) unsafe fn rescale(&self, sum: S::V, doubles: bool) -> S::V {
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

/// # Safety
/// That of [`Simd`].
#[inline(always)]
unsafe fn clamped<S: Simd>(bytes: S::V, to: Output) -> S::V {
    // SAFETY: by this function's contract.
    if to.is_full() { bytes } else { unsafe { S::clamp8(bytes, to.min, to.max) } }
}
