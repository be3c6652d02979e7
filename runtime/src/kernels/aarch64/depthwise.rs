//! Depthwise convolutions: sixteen channels in a vector, a filter's sums for some neighbouring positions of some rows at a time.

use super::stage::{Stage, narrow};
use crate::kernels::lanes::{Depthwise, Shape};
use core::arch::aarch64::*;

/// Sums of sixteen channels.
type Sums = [int32x4_t; 4];

/// A filter's products at `X` positions of `Y` rows.
///
/// # Safety
/// Its weights can be read, and the machine has the instructions.
unsafe trait Filter<const Y: usize, const X: usize> {
    /// Adds them to the sums.
    ///
    /// # Safety
    /// The filter's taps at all positions from `at` on can be read.
    unsafe fn add(&self, sums: &mut [[Sums; X]; Y], at: *const u8);
}

/// Where the taps of a filter lie, and its weights.
#[derive(Clone, Copy)]
struct Taps {
    weights: *const u8,
    kernel_h: usize,
    kernel_w: usize,
    row: usize,
    pitch: usize,
    /// Bytes from one position to the next.
    step: usize,
}

/// Two taps at a time, the second complemented; see [`super::neon`].
struct Pairs(Taps);

/// [`Pairs`] of nine taps.
struct Nine(Taps);

/// Groups of four taps of a row, interleaved.
struct Groups(Taps);

/// [`Groups`] of rows of at most three taps, for positions a tap apart: the same groups with the weights a tap later are the second position's.
struct Shared(Taps);

/// `acc + first * v + second * w`, or with `ONE` only the first.
#[inline(always)]
unsafe fn add_pair<const ONE: bool>(acc: &mut Sums, [first, second]: [int8x16_t; 2], [v, w]: [int8x16_t; 2]) {
    // SAFETY: NEON is enabled.
    unsafe {
        let (mut low, mut high) = (vmull_s8(vget_low_s8(first), vget_low_s8(v)), vmull_high_s8(first, v));
        if !ONE {
            let second = vmvnq_s8(second);
            (low, high) = (vmlsl_s8(low, vget_low_s8(second), vget_low_s8(w)), vmlsl_high_s8(high, second, w));
        }
        *acc = [
            vaddw_s16(acc[0], vget_low_s16(low)),
            vaddw_high_s16(acc[1], low),
            vaddw_s16(acc[2], vget_low_s16(high)),
            vaddw_high_s16(acc[3], high),
        ];
    }
}

// SAFETY: pairs of taps, and the last one alone.
unsafe impl Filter<1, 1> for Pairs {
    #[inline(always)]
    unsafe fn add(&self, sums: &mut [[Sums; 1]; 1], at: *const u8) {
        let taps = &self.0;
        let mut next = Cursor { tap: at, row: at, x: 0 };
        // SAFETY: by this function's contract.
        unsafe {
            let count = taps.kernel_h * taps.kernel_w;
            let weight = |tap: usize| vld1q_s8(taps.weights.add(16 * tap).cast());
            for tap in (0..count - 1).step_by(2) {
                let pair = [next.load(taps), next.load(taps)];
                add_pair::<false>(&mut sums[0][0], pair, [weight(tap), weight(tap + 1)]);
            }
            if count % 2 == 1 {
                add_pair::<true>(&mut sums[0][0], [next.load(taps); 2], [weight(count - 1); 2]);
            }
        }
    }
}

/// Walks over taps.
struct Cursor {
    tap: *const u8,
    row: *const u8,
    x: usize,
}

impl Cursor {
    /// # Safety
    /// There is another tap, which can be read.
    #[inline(always)]
    unsafe fn load(&mut self, taps: &Taps) -> int8x16_t {
        // SAFETY: by this function's contract; pointers beyond the last tap are not read.
        let tap = unsafe { vld1q_s8(self.tap.cast()) };
        self.x += 1;
        self.tap = self.tap.wrapping_add(taps.pitch);
        if self.x == taps.kernel_w {
            self.row = self.row.wrapping_add(taps.row);
            (self.tap, self.x) = (self.row, 0);
        }
        tap
    }
}

// SAFETY: as `Pairs`, for three rows of three.
unsafe impl<const X: usize> Filter<1, X> for Nine {
    #[inline(always)]
    unsafe fn add(&self, sums: &mut [[Sums; X]; 1], at: *const u8) {
        let taps = &self.0;
        // SAFETY: by this function's contract.
        unsafe {
            for tap in (0..9).step_by(2) {
                let other = if tap == 8 { 8 } else { tap + 1 };
                let weights = [tap, other].map(|tap| vld1q_s8(taps.weights.add(16 * tap).cast()));
                for i in 0..X {
                    let at = at.add(i * taps.step);
                    let pair =
                        [tap, other].map(|tap| vld1q_s8(at.add(tap / 3 * taps.row + tap % 3 * taps.pitch).cast()));
                    match tap {
                        8 => add_pair::<true>(&mut sums[0][i], pair, weights),
                        _ => add_pair::<false>(&mut sums[0][i], pair, weights),
                    }
                }
            }
        }
    }
}

/// Adds the products of one group.
#[inline(always)]
unsafe fn add_group(sums: &mut Sums, quads: &Sums, weights: &Sums) {
    // SAFETY: the machine has the dot product.
    unsafe {
        for r in 0..4 {
            sums[r] = super::sdot(sums[r], quads[r], weights[r]);
        }
    }
}

/// The groups of every channel: four taps of it.
///
/// # Safety
/// A vector can be read at `tap` and three more, `pitch` bytes apart.
#[inline(always)]
unsafe fn interleaved(tap: *const u8, pitch: usize) -> Sums {
    // SAFETY: by this function's contract; NEON is enabled.
    unsafe {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| vld1q_s8(tap.add(i * pitch).cast()));
        let pairs = |a, b| (vreinterpretq_s16_s8(vzip1q_s8(a, b)), vreinterpretq_s16_s8(vzip2q_s8(a, b)));
        let ((low, high), (next_low, next_high)) = (pairs(a, b), pairs(c, d));
        [vzip1q_s16(low, next_low), vzip2q_s16(low, next_low), vzip1q_s16(high, next_high), vzip2q_s16(high, next_high)]
            .map(|quads| vreinterpretq_s32_s16(quads))
    }
}

/// Weights of a group.
#[inline(always)]
unsafe fn load_group(at: *const u8) -> Sums {
    // SAFETY: 64 bytes can be read.
    unsafe { [0, 1, 2, 3].map(|r| vld1q_s32(at.add(16 * r).cast())) }
}

// SAFETY: the taps of every row in groups.
unsafe impl Filter<1, 1> for Groups {
    #[inline(always)]
    unsafe fn add(&self, sums: &mut [[Sums; 1]; 1], at: *const u8) {
        let taps = &self.0;
        let groups = taps.kernel_w.div_ceil(4);
        // SAFETY: by this function's contract.
        unsafe {
            for ky in 0..taps.kernel_h {
                for group in 0..groups {
                    let quads = interleaved(at.add(ky * taps.row + 4 * group * taps.pitch), taps.pitch);
                    let weights = load_group(taps.weights.add(64 * (ky * groups + group)));
                    add_group(&mut sums[0][0], &quads, &weights);
                }
            }
        }
    }
}

/// Adds the products of one group at a position and, with the weights a tap later, at the next one.
///
/// # Safety
/// As many weights can be read, and the machine has the dot product.
#[inline(always)]
unsafe fn add_shared(sums: &mut [Sums; 2], quads: &Sums, weights: *const u8) {
    // SAFETY: by this function's contract.
    unsafe {
        let weights = load_group(weights);
        add_group(&mut sums[0], quads, &weights);
        add_group(&mut sums[1], quads, &weights.map(|w| vshlq_n_s32::<8>(w)));
    }
}

// SAFETY: the group of every row; with two rows of positions, all groups but the first and the last one are of both.
unsafe impl<const Y: usize> Filter<Y, 2> for Shared {
    #[inline(always)]
    unsafe fn add(&self, sums: &mut [[Sums; 2]; Y], at: *const u8) {
        let taps = &self.0;
        // SAFETY: by this function's contract.
        unsafe {
            let quads = |row: usize| interleaved(at.add(row * taps.row), taps.pitch);
            let weights = |row: usize| taps.weights.add(64 * row);
            add_shared(&mut sums[0], &quads(0), weights(0));
            for row in 1..taps.kernel_h {
                let quads = quads(row);
                add_shared(&mut sums[0], &quads, weights(row));
                if Y == 2 {
                    add_shared(&mut sums[1], &quads, weights(row - 1));
                }
            }
            if Y == 2 {
                add_shared(&mut sums[1], &quads(taps.kernel_h), weights(taps.kernel_h - 1));
            }
        }
    }
}

/// By NEON; see [`lanes::depthwise`].
///
/// # Safety
/// That of [`Filter`], which NEON alone gives.
pub unsafe fn by_taps(d: &mut Depthwise<'_>, shape: Shape) -> bool {
    if !d.fits(shape) {
        return false;
    }
    for vector in 0..d.vectors {
        let taps = taps(d, shape, vector);
        // SAFETY: `fits`, and the filters read `kernel_h` rows of `kernel_w` taps.
        unsafe {
            match (d.kernel_h, d.kernel_w) {
                (3, 3) if d.positions > 1 => run::<_, 1, 2>(d, shape, vector, Nine(taps)),
                (3, 3) => run::<_, 1, 1>(d, shape, vector, Nine(taps)),
                _ => run::<_, 1, 1>(d, shape, vector, Pairs(taps)),
            }
        }
    }
    true
}

/// By the dot product; see [`lanes::depthwise`].
///
/// # Safety
/// The machine has it.
pub unsafe fn by_groups(d: &mut Depthwise<'_>, shape: Shape) -> bool {
    if !d.fits(shape) {
        return false;
    }
    let shared = d.positions > 1 && d.kernel_w <= 3 && d.map_step == d.pitch;
    for vector in 0..d.vectors {
        let taps = taps(d, shape, vector);
        // SAFETY: `fits`, and the filters read `kernel_h` rows of whole groups.
        unsafe {
            match shared {
                true if d.stride_h == 1 && d.out_h > 1 => run::<_, 2, 2>(d, shape, vector, Shared(taps)),
                true => run::<_, 1, 2>(d, shape, vector, Shared(taps)),
                false => run::<_, 1, 1>(d, shape, vector, Groups(taps)),
            }
        }
    }
    true
}

/// The filters of a vector, behind its stages.
fn taps(d: &Depthwise<'_>, shape: Shape, vector: usize) -> Taps {
    let vector_bytes = Depthwise::vector_bytes(shape, d.kernel_h, d.kernel_w);
    let at = vector * vector_bytes + Shape::stage_bytes(shape.vector());
    Taps {
        weights: d.weights.as_ptr().wrapping_add(at),
        kernel_h: d.kernel_h,
        kernel_w: d.kernel_w,
        row: d.row,
        pitch: d.pitch,
        step: d.map_step,
    }
}

/// A vector of channels at all positions of all rows. The last ones overlap those before them.
///
/// # Safety
/// [`Depthwise::fits`], and `filter` is the one of `vector` and reads taps of its positions; there are at least `X` of them in `Y` rows.
#[inline(always)]
unsafe fn run<F: Filter<Y, X>, const Y: usize, const X: usize>(
    d: &mut Depthwise<'_>,
    shape: Shape,
    vector: usize,
    filter: F,
) {
    let first = vector * shape.vector();
    let whole = first + 16 <= d.span && (d.positions - 1) * d.out_step + first + 16 <= d.out_row;
    // SAFETY: `fits` has compared the last tap with the map and the lengths of weights and output; an output is written for as many bytes as are left of
    // its row, at most.
    unsafe {
        let at = d.weights.as_ptr().add(vector * Depthwise::vector_bytes(shape, d.kernel_h, d.kernel_w));
        let stages = [0, 1, 2, 3].map(|r| Stage::load(at.add(16 * r), shape.vector(), d.to.zero_point));
        let bias = stages.map(|stage| stage.bias);
        for y in (0..d.out_h).step_by(Y) {
            let y = y.min(d.out_h - Y);
            let top = d.map.as_ptr().add(y * d.stride_h * d.row + first);
            for position in (0..d.positions).step_by(X) {
                let position = position.min(d.positions - X);
                let mut sums = [[bias; X]; Y];
                filter.add(&mut sums, top.add(position * d.map_step));
                for r in 0..4 {
                    if d.doubles {
                        sums.as_flattened_mut().iter_mut().for_each(|sums| sums[r] = stages[r].double(sums[r]));
                    }
                    sums.as_flattened_mut().iter_mut().for_each(|sums| sums[r] = stages[r].rescale(sums[r]));
                }
                for y_of in 0..Y {
                    for x_of in 0..X {
                        let bytes = narrow(sums[y_of][x_of], d.to);
                        let start = (position + x_of) * d.out_step;
                        let out = d.output.as_mut_ptr().wrapping_add((y + y_of) * d.out_row + start + first);
                        if whole {
                            vst1q_s8(out, bytes);
                        } else {
                            // Where pixels lie side by side in a vector, the row ends the span.
                            let end = (start + d.span).min(d.out_row);
                            store_short(bytes, out, end.saturating_sub(start + first).min(16));
                        }
                    }
                }
            }
        }
    }
}

/// Writes the first `len` of sixteen outputs.
///
/// # Safety
/// As many can be written.
#[inline(never)]
unsafe fn store_short(bytes: int8x16_t, out: *mut i8, len: usize) {
    let mut buffer = [0i8; 16];
    // SAFETY: by this function's contract.
    unsafe {
        vst1q_s8(buffer.as_mut_ptr(), bytes);
        core::ptr::copy_nonoverlapping(buffer.as_ptr(), out, len);
    }
}
