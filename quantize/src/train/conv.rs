//! Convolutions and their gradients on NHWC pictures, on plain slices: what the CPU backend computes, and where training spends its time.
//!
//! Nothing is gathered into patches. A picture gets its border of zeros ([`Border`]); then a kernel tap lies at the same distance from
//! every output position, and taps beside one another are one run of values ([`Plan`]). The three products of a convolution are sums over
//! these runs:
//!
//! - forward: a tile of [`TILE`] positions by one or two vectors of filters stays in registers while all runs pass;
//! - the gradient by the input is the same with the roles of input and output exchanged, once for every remainder of a position by the
//!   stride, since only every `stride`-th tap meets it;
//! - the gradient by the weights: a tile of values of a run by one or two vectors of filters stays in registers while positions pass.
//!
//! Depthwise layers have a vector of channels in place of filters. Every sum is formed in the order of its index, whatever the width of a
//! vector; pictures run in parallel, and sums over pictures are formed in a fixed number of parts and joined in order, so that results
//! do not depend on the number of threads.

use super::windows::{Geometry, zeros};
use fearless_simd::{Level, Simd, dispatch, f32x4, f32x8, f32x16, prelude::*};
use rayon::prelude::*;
use std::ops::Range;

/// Output positions, or values of a run, that share a load.
const TILE: usize = 8;

/// Positions over which a tile of the weights' gradient stays in registers; what they read stays in the first cache.
const STRETCH: usize = 64;

/// Parts of a sum over pictures.
const PARTS: usize = 16;

/// A picture with zeros around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Border {
    /// Rows and columns of zeros before the picture.
    before: [usize; 2],
    /// Rows and columns of the picture.
    inside: [usize; 2],
    /// Rows and columns of all.
    all: [usize; 2],
    channels: usize,
}

impl Border {
    /// The bordered picture, in `room` unless it has no border.
    fn around<'a>(&self, picture: &'a [f32], room: &'a mut Vec<f32>) -> &'a [f32] {
        if self.all == self.inside {
            return picture;
        }
        let row = self.inside[1] * self.channels;
        room.clear();
        room.resize(self.all[0] * self.all[1] * self.channels, 0.0);
        for (y, values) in picture.chunks_exact(row).enumerate() {
            let at = ((y + self.before[0]) * self.all[1] + self.before[1]) * self.channels;
            room[at..at + row].copy_from_slice(values);
        }
        room
    }
}

/// Which values of a bordered picture meet which taps.
#[derive(Debug)]
struct Plan {
    border: Border,
    /// Of every output position: its place in the bordered picture, and in what comes out.
    positions: Vec<[usize; 2]>,
    /// Distance from a position, and length.
    runs: Vec<[usize; 2]>,
    /// Taps in the order in which they lie in the runs.
    taps: Vec<usize>,
    /// Channels of a group of the bordered picture.
    channels: usize,
}

impl Plan {
    /// `taps` with their places from the position `[0, 0]` on; positions are `steps` apart.
    fn new(
        border: Border,
        channels: usize,
        mut taps: Vec<(usize, [usize; 2])>,
        grid: [usize; 2],
        steps: [usize; 2],
        out: impl Fn(usize, usize) -> usize,
    ) -> Plan {
        let at = |[y, x]: [usize; 2]| (y * border.all[1] + x) * border.channels;
        taps.sort_by_key(|&(_, place)| at(place));
        let mut runs: Vec<[usize; 2]> = Vec::new();
        for &(_, place) in &taps {
            match runs.last_mut() {
                Some([from, len]) if *from + *len == at(place) => *len += channels,
                _ => runs.push([at(place), channels]),
            }
        }
        let place = |y: usize, x: usize| [at([y * steps[0], x * steps[1]]), out(y, x)];
        let positions =
            (0..grid[0]).flat_map(|y| (0..grid[1]).map(move |x| (y, x))).map(|(y, x)| place(y, x)).collect();
        Plan { border, positions, runs, taps: taps.into_iter().map(|(tap, _)| tap).collect(), channels }
    }

    /// Of the convolution itself, and of its gradient by the weights.
    fn forward(g: &Geometry) -> Plan {
        let w = &g.window;
        let [rows, cols, filters] = g.output;
        let reach = |axis: usize| (g.output[axis] - 1) * w.stride[axis] + (w.kernel[axis] - 1) * w.dilation[axis] + 1;
        let before = [w.pad[0], w.pad[1]];
        let inside = [g.input[0], g.input[1]];
        let all = [0, 1].map(|axis| reach(axis).max(before[axis] + inside[axis]));
        let border = Border { before, inside, all, channels: g.input[2] };
        let taps = (0..g.taps()).map(|t| (t, [t / w.kernel[1] * w.dilation[0], t % w.kernel[1] * w.dilation[1]]));
        Plan::new(border, g.input[2] / g.groups, taps.collect(), [rows, cols], w.stride, |y, x| {
            (y * cols + x) * filters
        })
    }

    /// Of the gradient by the input: for every remainder of an input position by the stride, the taps that bring it to outputs.
    fn backward(g: &Geometry) -> Vec<Plan> {
        let w = &g.window;
        // Output `o` reads input `o stride + k dilation - pad`, so input `phase + a stride` meets the outputs `a + shift` of the taps
        // for which `shift` is whole.
        let shift = |axis: usize, phase: usize, k: usize| {
            let far = (phase + w.pad[axis]) as isize - (k * w.dilation[axis]) as isize;
            let stride = w.stride[axis] as isize;
            (far.rem_euclid(stride) == 0).then(|| far.div_euclid(stride))
        };
        let shifts = |axis: usize| {
            (0..w.stride[axis].min(g.input[axis]))
                .flat_map(move |phase| (0..w.kernel[axis]).filter_map(move |k| shift(axis, phase, k)))
        };
        let count = |axis: usize, phase: usize| g.input[axis].saturating_sub(phase).div_ceil(w.stride[axis]);
        let before = [0, 1].map(|axis| shifts(axis).min().unwrap_or(0).min(0).unsigned_abs());
        let inside = [g.output[0], g.output[1]];
        let all = [0, 1].map(|axis| {
            let last = shifts(axis).max().unwrap_or(0).max(0) as usize + count(axis, 0);
            before[axis] + last.max(inside[axis])
        });
        let border = Border { before, inside, all, channels: g.output[2] };
        let mut plans = Vec::new();
        for (py, px) in (0..w.stride[0]).flat_map(|py| (0..w.stride[1]).map(move |px| (py, px))) {
            let place = |axis: usize, phase: usize, k: usize| {
                shift(axis, phase, k).map(|s| (s + before[axis] as isize).unsigned_abs())
            };
            let both = |t: usize| Some((t, [place(0, py, t / w.kernel[1])?, place(1, px, t % w.kernel[1])?]));
            let taps: Vec<_> = (0..g.taps()).filter_map(both).collect();
            let grid = [count(0, py), count(1, px)];
            if taps.is_empty() || grid.contains(&0) {
                continue;
            }
            let out = |y: usize, x: usize| ((py + y * w.stride[0]) * g.input[1] + px + x * w.stride[1]) * g.input[2];
            plans.push(Plan::new(border, g.output[2] / g.groups, taps, grid, [1, 1], out));
        }
        plans
    }

    /// Values that a position meets.
    fn depth(&self) -> usize {
        self.taps.len() * self.channels
    }
}

/// A matrix with a row for every value that a position meets, in blocks of one or two vectors of columns.
struct Blocks {
    values: Vec<f32>,
    depth: usize,
    columns: usize,
    /// Of a vector.
    width: usize,
}

impl Blocks {
    fn new(level: Level, plan: &Plan, columns: usize) -> Blocks {
        let (depth, width) = (plan.depth(), width(level, columns));
        Blocks { values: vec![0.0; columns.next_multiple_of(width) * depth], depth, columns, width }
    }

    /// First column and width of every block: pairs of vectors, then a single one if their number is odd.
    fn layout(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (width, whole) = (self.width, self.columns.next_multiple_of(self.width));
        (0..whole).step_by(2 * width).map(move |first| (first, (whole - first).min(2 * width)))
    }

    /// Calls `visit(tap, channel, column, value)` for every element.
    fn each(&mut self, plan: &Plan, mut visit: impl FnMut(usize, usize, usize, &mut f32)) {
        let (layout, depth, columns) = (self.layout(), self.depth, self.columns);
        for (first, wide) in layout {
            let block = &mut self.values[first * depth..(first + wide) * depth];
            let rows = plan.taps.iter().flat_map(|&tap| (0..plan.channels).map(move |channel| (tap, channel)));
            for ((tap, channel), row) in rows.zip(block.chunks_exact_mut(wide)) {
                row.iter_mut().take(columns - first).enumerate().for_each(|(i, v)| visit(tap, channel, first + i, v));
            }
        }
    }
}

/// Elements of the vector that suits rows of so many.
fn width(level: Level, columns: usize) -> usize {
    fn native<S: Simd>(_: S) -> usize {
        S::f32s::LEN
    }
    dispatch!(level, simd => native(simd)).clamp(4, 16).min(columns.next_power_of_two().max(4))
}

/// Calls a function that is generic over a vector with that of a width.
macro_rules! with_width {
    ($width:expr, $simd:expr, $f:ident ( $($arg:expr),* )) => {
        match $width {
            16 => $f::<_, f32x16<_>>($simd, $($arg),*),
            8 => $f::<_, f32x8<_>>($simd, $($arg),*),
            _ => $f::<_, f32x4<_>>($simd, $($arg),*),
        }
    };
}

/// `out[position][column] = sum over depth of source * weights`.
#[inline(always)]
fn products<S: Simd, V: SimdFloat<S, Element = f32>>(
    simd: S,
    plan: &Plan,
    weights: &Blocks,
    source: &[f32],
    out: &mut [f32],
) {
    let depth = plan.depth();
    for (first, wide) in weights.layout() {
        let block = &weights.values[first * depth..(first + wide) * depth];
        let columns = first..weights.columns.min(first + wide);
        match wide == V::LEN {
            true => products_band::<S, V, 1>(simd, plan, block, source, columns, out),
            false => products_band::<S, V, 2>(simd, plan, block, source, columns, out),
        }
    }
}

/// Some columns of all positions.
#[inline(always)]
fn products_band<S: Simd, V: SimdFloat<S, Element = f32>, const C: usize>(
    simd: S,
    plan: &Plan,
    weights: &[f32],
    source: &[f32],
    columns: Range<usize>,
    out: &mut [f32],
) {
    let mut at = 0;
    while at < plan.positions.len() {
        // The last tile may begin early: the same sums are formed twice.
        let from = at.min(plan.positions.len().saturating_sub(TILE));
        match plan.positions[from..].first_chunk::<TILE>() {
            Some(tile) => products_tile::<S, V, TILE, C>(simd, plan, tile, weights, source, columns.clone(), out),
            None => {
                for &position in &plan.positions[from..] {
                    products_tile::<S, V, 1, C>(simd, plan, &[position], weights, source, columns.clone(), out);
                }
            }
        }
        at += TILE;
    }
}

#[inline(always)]
fn products_tile<S: Simd, V: SimdFloat<S, Element = f32>, const R: usize, const C: usize>(
    simd: S,
    plan: &Plan,
    tile: &[[usize; 2]; R],
    mut weights: &[f32],
    source: &[f32],
    columns: Range<usize>,
    out: &mut [f32],
) {
    let mut sums = [[V::splat(simd, 0.0); C]; R];
    for &[offset, len] in &plan.runs {
        let (now, rest) = weights.split_at(len * C * V::LEN);
        weights = rest;
        let mut values = [&source[..0]; R];
        for r in 0..R {
            values[r] = &source[tile[r][0] + offset..][..len];
        }
        for (k, row) in now.chunks_exact(C * V::LEN).enumerate() {
            let row = vectors_of::<S, V, C>(simd, row);
            for r in 0..R {
                let value = V::splat(simd, values[r][k]);
                for c in 0..C {
                    sums[r][c] = row[c].mul_add(value, sums[r][c]);
                }
            }
        }
    }
    for (sums, &[_, at]) in sums.iter().zip(tile) {
        let mut out = &mut out[at + columns.start..at + columns.end];
        for sum in sums {
            let (now, rest) = out.split_at_mut(V::LEN.min(out.len()));
            match now.len() == V::LEN {
                true => sum.store_slice(now),
                false => now.copy_from_slice(&sum.as_slice()[..now.len()]),
            }
            out = rest;
        }
    }
}

/// A row as vectors.
#[inline(always)]
fn vectors_of<S: Simd, V: SimdFloat<S, Element = f32>, const C: usize>(simd: S, row: &[f32]) -> [V; C] {
    let row = &row[..C * V::LEN];
    let mut vectors = [V::splat(simd, 0.0); C];
    for c in 0..C {
        vectors[c] = V::from_slice(simd, &row[c * V::LEN..][..V::LEN]);
    }
    vectors
}

/// `sums[depth][column] += sum over positions of source * grad`; rows of `grad` are `row` apart and full vectors.
#[inline(always)]
fn outer<S: Simd, V: SimdFloat<S, Element = f32>>(
    simd: S,
    plan: &Plan,
    sums: &mut Blocks,
    source: &[f32],
    grad: &[f32],
    row: usize,
) {
    let depth = plan.depth();
    for (first, wide) in sums.layout() {
        let block = &mut sums.values[first * depth..(first + wide) * depth];
        match wide == V::LEN {
            true => outer_band::<S, V, 1>(simd, plan, block, source, &grad[first..], row),
            false => outer_band::<S, V, 2>(simd, plan, block, source, &grad[first..], row),
        }
    }
}

/// Some columns of all rows.
#[inline(always)]
fn outer_band<S: Simd, V: SimdFloat<S, Element = f32>, const C: usize>(
    simd: S,
    plan: &Plan,
    sums: &mut [f32],
    source: &[f32],
    grad: &[f32],
    row: usize,
) {
    let wide = C * V::LEN;
    for (i, stretch) in plan.positions.chunks(STRETCH).enumerate() {
        let grad = &grad[i * STRETCH * row..];
        let mut at = 0;
        for &[offset, len] in &plan.runs {
            let run = &mut sums[at * wide..(at + len) * wide];
            at += len;
            let mut done = 0;
            while len - done >= TILE {
                let out = &mut run[done * wide..];
                outer_tile::<S, V, TILE, C>(simd, stretch, offset + done, out, source, grad, row);
                done += TILE;
            }
            if len - done >= 4 {
                outer_tile::<S, V, 4, C>(simd, stretch, offset + done, &mut run[done * wide..], source, grad, row);
                done += 4;
            }
            if len - done >= 2 {
                outer_tile::<S, V, 2, C>(simd, stretch, offset + done, &mut run[done * wide..], source, grad, row);
                done += 2;
            }
            if len > done {
                outer_tile::<S, V, 1, C>(simd, stretch, offset + done, &mut run[done * wide..], source, grad, row);
            }
        }
    }
}

#[inline(always)]
fn outer_tile<S: Simd, V: SimdFloat<S, Element = f32>, const R: usize, const C: usize>(
    simd: S,
    stretch: &[[usize; 2]],
    offset: usize,
    out: &mut [f32],
    source: &[f32],
    grad: &[f32],
    row: usize,
) {
    let out = &mut out[..R * C * V::LEN];
    let mut sums = [[V::splat(simd, 0.0); C]; R];
    for (sums, out) in sums.iter_mut().zip(out.chunks_exact(C * V::LEN)) {
        *sums = vectors_of::<S, V, C>(simd, out);
    }
    for (&[at, _], grad) in stretch.iter().zip(grad.chunks(row)) {
        let grad = vectors_of::<S, V, C>(simd, grad);
        let values = &source[at + offset..][..R];
        for r in 0..R {
            let value = V::splat(simd, values[r]);
            for c in 0..C {
                sums[r][c] = grad[c].mul_add(value, sums[r][c]);
            }
        }
    }
    for (sums, out) in sums.iter().zip(out.chunks_exact_mut(C * V::LEN)) {
        for (sum, out) in sums.iter().zip(out.chunks_exact_mut(V::LEN)) {
            sum.store_slice(out);
        }
    }
}

/// The first channel of every vector; the last may begin early, if there is more than one.
#[inline(always)]
fn vectors(channels: usize, width: usize) -> impl Iterator<Item = usize> {
    (0..channels).step_by(width).map(move |first| first.min(channels - width))
}

/// `out[position][channel] = sum over taps of source * weights[tap][channel]`, for at least a vector of channels.
#[inline(always)]
fn depthwise<S: Simd, V: SimdFloat<S, Element = f32>>(
    simd: S,
    plan: &Plan,
    weights: &[f32],
    source: &[f32],
    out: &mut [f32],
) {
    const ROWS: usize = 4;
    let channels = plan.border.channels;
    for first in vectors(channels, V::LEN) {
        let mut tiles = plan.positions.chunks_exact(ROWS);
        for tile in &mut tiles {
            let tile: &[[usize; 2]; ROWS] = tile.first_chunk().unwrap_or(&[[0; 2]; ROWS]);
            depthwise_tile::<S, V, ROWS>(simd, plan, tile, weights, source, first, out);
        }
        for &position in tiles.remainder() {
            depthwise_tile::<S, V, 1>(simd, plan, &[position], weights, source, first, out);
        }
    }
}

#[inline(always)]
fn depthwise_tile<S: Simd, V: SimdFloat<S, Element = f32>, const R: usize>(
    simd: S,
    plan: &Plan,
    tile: &[[usize; 2]; R],
    weights: &[f32],
    source: &[f32],
    first: usize,
    out: &mut [f32],
) {
    let channels = plan.border.channels;
    let mut sums = [V::splat(simd, 0.0); R];
    for (&[offset, _], weights) in plan.runs.iter().zip(weights.chunks_exact(channels)) {
        let weights = V::from_slice(simd, &weights[first..][..V::LEN]);
        for r in 0..R {
            let values = V::from_slice(simd, &source[tile[r][0] + offset + first..][..V::LEN]);
            sums[r] = weights.mul_add(values, sums[r]);
        }
    }
    for (sum, &[_, at]) in sums.iter().zip(tile) {
        sum.store_slice(&mut out[at + first..][..V::LEN]);
    }
}

/// `sums[tap][channel] = sum over positions of source * grad`, for at least a vector of channels.
#[inline(always)]
fn depthwise_outer<S: Simd, V: SimdFloat<S, Element = f32>>(
    simd: S,
    plan: &Plan,
    sums: &mut [f32],
    source: &[f32],
    grad: &[f32],
) {
    /// Taps whose sums stay in registers.
    const TAPS: usize = 9;
    let channels = plan.border.channels;
    for first in vectors(channels, V::LEN) {
        for (taps, sums) in plan.runs.chunks(TAPS).zip(sums.chunks_mut(TAPS * channels)) {
            let mut totals = [V::splat(simd, 0.0); TAPS];
            for (&[at, _], grad) in plan.positions.iter().zip(grad.chunks_exact(channels)) {
                let grad = V::from_slice(simd, &grad[first..][..V::LEN]);
                for (total, &[offset, _]) in totals.iter_mut().zip(taps) {
                    let values = V::from_slice(simd, &source[at + offset + first..][..V::LEN]);
                    *total = grad.mul_add(values, *total);
                }
            }
            for (total, sums) in totals.iter().zip(sums.chunks_exact_mut(channels)) {
                total.store_slice(&mut sums[first..][..V::LEN]);
            }
        }
    }
}

/// The vector of a depthwise layer, whose channels fill at least one; `None` where there are too few.
fn depthwise_width(level: Level, channels: usize) -> Option<usize> {
    let widest = width(level, usize::MAX / 2);
    [16, 8, 4].into_iter().find(|&w| w <= widest && w <= channels)
}

/// Weights `[channel][tap]` as `[tap][channel]`, in the order of a plan.
fn taps_first(plan: &Plan, w: &[f32], taps: usize) -> Vec<f32> {
    let channels = plan.border.channels;
    plan.taps.iter().flat_map(|&tap| (0..channels).map(move |channel| w[channel * taps + tap])).collect()
}

/// Pictures with channels of zeros behind their own, so that they fill a vector.
fn widened(x: &[f32], channels: usize, to: usize) -> Vec<f32> {
    let mut wide = vec![0.0; x.len() / channels * to];
    wide.chunks_exact_mut(to).zip(x.chunks_exact(channels)).for_each(|(wide, x)| wide[..channels].copy_from_slice(x));
    wide
}

/// The same without them.
fn narrowed(x: &[f32], channels: usize, from: usize) -> Vec<f32> {
    x.chunks_exact(from).flat_map(|x| x[..channels].iter().copied()).collect()
}

/// A depthwise layer of more channels.
fn wider(g: &Geometry, channels: usize) -> Geometry {
    let picture = |[h, w, _]: [usize; 3]| [h, w, channels];
    Geometry { groups: channels, input: picture(g.input), output: picture(g.output), ..*g }
}

/// `x [n, h, w, ic]`, `w [oc, kh, kw, ic / groups]` → `[n, oh, ow, oc]`.
pub(super) fn conv(x: &[f32], w: &[f32], g: &Geometry) -> Vec<f32> {
    let level = Level::new();
    let mut y = zeros(x.len() / g.input_len() * g.output_len());
    if g.is_depthwise() {
        let Some(width) = depthwise_width(level, g.groups) else {
            let w = widened_rows(w, g.groups, 4);
            return narrowed(&conv(&widened(x, g.groups, 4), &w, &wider(g, 4)), g.groups, 4);
        };
        let plan = Plan::forward(g);
        let w = taps_first(&plan, w, g.taps());
        let pairs = y.par_chunks_mut(g.output_len()).zip(x.par_chunks(g.input_len()));
        pairs.for_each_init(Vec::new, |room, (y, x)| {
            let x = plan.border.around(x, room);
            dispatch!(level, simd => with_width!(width, simd, depthwise(&plan, &w, x, y)));
        });
        return y;
    }
    let plan = Plan::forward(g);
    let (k, oc) = (g.taps() * plan.channels, g.output[2] / g.groups);
    let weights: Vec<Blocks> = w
        .chunks_exact(oc * k)
        .map(|w| {
            let mut blocks = Blocks::new(level, &plan, oc);
            blocks.each(&plan, |tap, channel, filter, v| *v = w[filter * k + tap * plan.channels + channel]);
            blocks
        })
        .collect();
    let pairs = y.par_chunks_mut(g.output_len()).zip(x.par_chunks(g.input_len()));
    pairs.for_each_init(Vec::new, |room, (y, x)| {
        let x = plan.border.around(x, room);
        for (group, weights) in weights.iter().enumerate() {
            let (x, y) = (&x[group * plan.channels..], &mut y[group * oc..]);
            dispatch!(level, simd => with_width!(weights.width, simd, products(&plan, weights, x, y)));
        }
    });
    y
}

/// Gradient of [`conv`] by `x`, from the gradient by its output.
pub(super) fn conv_x_backward(grad: &[f32], w: &[f32], g: &Geometry) -> Vec<f32> {
    let level = Level::new();
    let mut dx = zeros(grad.len() / g.output_len() * g.input_len());
    let plans = Plan::backward(g);
    let Some(first) = plans.first() else { return dx };
    if g.is_depthwise() {
        let Some(width) = depthwise_width(level, g.groups) else {
            let w = widened_rows(w, g.groups, 4);
            return narrowed(&conv_x_backward(&widened(grad, g.groups, 4), &w, &wider(g, 4)), g.groups, 4);
        };
        let weights: Vec<Vec<f32>> = plans.iter().map(|plan| taps_first(plan, w, g.taps())).collect();
        let pairs = dx.par_chunks_mut(g.input_len()).zip(grad.par_chunks(g.output_len()));
        pairs.for_each_init(Vec::new, |room, (dx, dy)| {
            let dy = first.border.around(dy, room);
            for (plan, w) in plans.iter().zip(&weights) {
                dispatch!(level, simd => with_width!(width, simd, depthwise(plan, w, dy, dx)));
            }
        });
        return dx;
    }
    let (ic, oc) = (g.input[2] / g.groups, g.output[2] / g.groups);
    let k = g.taps() * ic;
    let packed = |plan: &Plan| -> Vec<Blocks> {
        w.chunks_exact(oc * k)
            .map(|w| {
                let mut blocks = Blocks::new(level, plan, ic);
                blocks.each(plan, |tap, filter, channel, v| *v = w[filter * k + tap * ic + channel]);
                blocks
            })
            .collect()
    };
    let weights: Vec<Vec<Blocks>> = plans.iter().map(packed).collect();
    let pairs = dx.par_chunks_mut(g.input_len()).zip(grad.par_chunks(g.output_len()));
    pairs.for_each_init(Vec::new, |room, (dx, dy)| {
        let dy = first.border.around(dy, room);
        for (plan, weights) in plans.iter().zip(&weights) {
            for (group, weights) in weights.iter().enumerate() {
                let (dy, dx) = (&dy[group * oc..], &mut dx[group * ic..]);
                dispatch!(level, simd => with_width!(weights.width, simd, products(plan, weights, dy, dx)));
            }
        }
    });
    dx
}

/// Gradient of [`conv`] by `w`.
pub(super) fn conv_weight_backward(x: &[f32], grad: &[f32], g: &Geometry) -> Vec<f32> {
    let level = Level::new();
    let plan = Plan::forward(g);
    let pictures = x.len() / g.input_len();
    let picture = |n: usize| (&x[n * g.input_len()..][..g.input_len()], &grad[n * g.output_len()..][..g.output_len()]);
    if g.is_depthwise() {
        let Some(width) = depthwise_width(level, g.groups) else {
            let (x, grad) = (widened(x, g.groups, 4), widened(grad, g.groups, 4));
            let mut dw = conv_weight_backward(&x, &grad, &wider(g, 4));
            dw.truncate(g.groups * g.taps());
            return dw;
        };
        let len = g.groups * g.taps();
        let sum = sum_parts(pictures, |pictures| {
            let (mut dw, mut one, mut room) = (vec![0.0; len], vec![0.0; len], Vec::new());
            for (x, dy) in pictures.map(picture) {
                let x = plan.border.around(x, &mut room);
                dispatch!(level, simd => with_width!(width, simd, depthwise_outer(&plan, &mut one, x, dy)));
                dw.iter_mut().zip(&one).for_each(|(s, v)| *s += v);
            }
            vec![dw]
        });
        let mut dw = vec![0.0; len];
        for (tap, row) in plan.taps.iter().zip(sum.iter().flat_map(|sum| sum.chunks_exact(g.groups))) {
            row.iter().enumerate().for_each(|(channel, v)| dw[channel * g.taps() + tap] = *v);
        }
        return dw;
    }
    let (k, oc) = (g.taps() * plan.channels, g.output[2] / g.groups);
    let width = width(level, oc);
    let whole = oc.next_multiple_of(width);
    let sums = sum_parts(pictures, |pictures| {
        let mut sums: Vec<Blocks> = (0..g.groups).map(|_| Blocks::new(level, &plan, oc)).collect();
        let (mut room, mut wide) = (Vec::new(), Vec::new());
        for (x, dy) in pictures.map(picture) {
            let x = plan.border.around(x, &mut room);
            for (group, sums) in sums.iter_mut().enumerate() {
                let x = &x[group * plan.channels..];
                // Vectors that would reach into the next position get zeros to end in.
                let (dy, row) = match whole == oc {
                    true => (&dy[group * oc..], g.output[2]),
                    false => {
                        wide.clear();
                        wide.resize(g.positions() * whole, 0.0);
                        let rows = wide.chunks_exact_mut(whole).zip(dy.chunks_exact(g.output[2]));
                        rows.for_each(|(wide, dy)| wide[..oc].copy_from_slice(&dy[group * oc..][..oc]));
                        (&wide[..], whole)
                    }
                };
                dispatch!(level, simd => with_width!(width, simd, outer(&plan, sums, x, dy, row)));
            }
        }
        sums.into_iter().map(|sums| sums.values).collect()
    });
    let mut dw = vec![0.0; g.output[2] * k];
    for (values, dw) in sums.into_iter().zip(dw.chunks_exact_mut(oc * k)) {
        let mut blocks = Blocks { values, depth: plan.depth(), columns: oc, width };
        blocks.each(&plan, |tap, channel, filter, v| dw[filter * k + tap * plan.channels + channel] = *v);
    }
    dw
}

/// Weights of a depthwise layer, a row for every channel, with rows of zeros.
fn widened_rows(w: &[f32], channels: usize, to: usize) -> Vec<f32> {
    let mut wide = w.to_vec();
    wide.resize(w.len() / channels * to, 0.0);
    wide
}

/// Sums of lists of numbers over parts of the pictures, in order.
fn sum_parts(pictures: usize, part: impl Fn(Range<usize>) -> Vec<Vec<f32>> + Sync) -> Vec<Vec<f32>> {
    let bounds = |p: usize| pictures * p / PARTS;
    let parts: Vec<Vec<Vec<f32>>> = (0..PARTS).into_par_iter().map(|p| part(bounds(p)..bounds(p + 1))).collect();
    let add = |mut sum: Vec<Vec<f32>>, part: Vec<Vec<f32>>| {
        for (sum, part) in sum.iter_mut().zip(&part) {
            sum.iter_mut().zip(part).for_each(|(s, v)| *s += v);
        }
        sum
    };
    parts.into_iter().reduce(add).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Window;
    use crate::random::Random;

    /// `visit(output, weight, input)` for every product of a picture, as indices: the definition.
    fn products_of(g: &Geometry, mut visit: impl FnMut(usize, usize, usize)) {
        let (w, [rows, cols, oc], [h, iw, ic]) = (&g.window, g.output, g.input);
        let (c, filters) = (ic / g.groups, oc / g.groups);
        let source = |o: usize, k: usize, axis: usize| {
            (o * w.stride[axis] + k * w.dilation[axis]).checked_sub(w.pad[axis]).filter(|&i| i < [h, iw][axis])
        };
        for (y, x) in (0..rows).flat_map(|y| (0..cols).map(move |x| (y, x))) {
            for t in 0..g.taps() {
                let at = (source(y, t / w.kernel[1], 0), source(x, t % w.kernel[1], 1));
                let (Some(iy), Some(ix)) = at else { continue };
                for f in 0..oc {
                    for i in 0..c {
                        let input = (iy * iw + ix) * ic + f / filters * c + i;
                        visit((y * cols + x) * oc + f, (f * g.taps() + t) * c + i, input);
                    }
                }
            }
        }
    }

    fn some_geometry(random: &mut Random) -> Geometry {
        let mut below = |n: usize| random.below(n);
        loop {
            let groups = [1, 1, 2, 3, 20][below(5)];
            let (mut ic, mut oc) = (groups * (1 + below(7)), groups * (1 + below(7)));
            match below(4) {
                0 => (ic, oc) = (groups, groups),
                1 if groups == 1 => (ic, oc) = (1 + below(40), 1 + below(40)),
                _ => {}
            }
            let mut pair = |n: usize| [1 + below(n), 1 + below(n)];
            let (kernel, stride, dilation, input) = (pair(4), pair(3), pair(2), pair(13));
            let pad = [below(3), below(3), below(3), below(3)];
            let far = |axis: usize| input[axis] + pad[axis] + pad[axis + 2];
            let reach = |axis: usize| (kernel[axis] - 1) * dilation[axis] + 1;
            if (0..2).all(|axis| far(axis) >= reach(axis)) {
                let out = |axis: usize| (far(axis) - reach(axis)) / stride[axis] + 1;
                let window = Window { kernel, stride, dilation, pad };
                return Geometry { window, groups, input: [input[0], input[1], ic], output: [out(0), out(1), oc] };
            }
        }
    }

    #[test]
    fn all_three_products_agree_with_their_definition() {
        let mut random = Random::new(21, 0);
        for _ in 0..400 {
            let g = some_geometry(&mut random);
            let pictures = 1 + random.below(3);
            let weights = g.output[2] * g.taps() * g.input[2] / g.groups;
            let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| random.uniform() - 0.5).collect() };
            let (x, w) = (numbers(pictures * g.input_len()), numbers(weights));
            let dy = numbers(pictures * g.output_len());
            let (mut y, mut dx, mut dw) = (vec![0.0f64; dy.len()], vec![0.0f64; x.len()], vec![0.0f64; w.len()]);
            for n in 0..pictures {
                let (from, to) = (n * g.input_len(), n * g.output_len());
                products_of(&g, |o, k, i| {
                    let (o, i) = (to + o, from + i);
                    y[o] += f64::from(w[k]) * f64::from(x[i]);
                    dx[i] += f64::from(w[k]) * f64::from(dy[o]);
                    dw[k] += f64::from(x[i]) * f64::from(dy[o]);
                });
            }
            let agree = |what: &str, got: Vec<f32>, expected: &[f64]| {
                assert_eq!(got.len(), expected.len(), "{what} {g:?}");
                for (i, (a, b)) in got.iter().zip(expected).enumerate() {
                    assert!((f64::from(*a) - b).abs() < 1e-4, "{what} {i}: {a} for {b}, {g:?}");
                }
            };
            agree("y", conv(&x, &w, &g), &y);
            agree("dx", conv_x_backward(&dy, &w, &g), &dx);
            agree("dw", conv_weight_backward(&x, &dy, &g), &dw);
        }
    }
}
