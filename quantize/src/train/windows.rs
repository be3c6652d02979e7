//! Pools, batch norms, clamps and rounding on NHWC pictures, forward and backward, on plain slices: what the CPU backend computes.
//!
//! Pictures run in parallel; sums over them are formed in blocks of a fixed size and joined in order, so that results do not depend on the
//! number of threads.

use crate::graph::{Clamp, Window};
use fearless_simd::{Level, Simd, dispatch};
use rayon::prelude::*;

/// Sizes of a window operator; `groups` is 1 for pools, whose `oc` is `ic`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Kernel, stride, dilation, padding.
    pub window: Window,
    /// Of channels.
    pub groups: usize,
    /// Rows, columns, channels of a picture that goes in.
    pub input: [usize; 3],
    /// Rows, columns, channels of one that comes out.
    pub output: [usize; 3],
}

impl Geometry {
    pub fn input_len(&self) -> usize {
        self.input.iter().product()
    }

    pub fn output_len(&self) -> usize {
        self.output.iter().product()
    }

    /// Output positions.
    pub fn positions(&self) -> usize {
        self.output[0] * self.output[1]
    }

    pub fn taps(&self) -> usize {
        self.window.kernel[0] * self.window.kernel[1]
    }

    /// One filter per channel.
    pub fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.input[2] && self.groups == self.output[2]
    }

    /// Input row or column that tap `k` of output `o` reads along `axis`, if it is inside.
    fn source(&self, axis: usize, o: usize, k: usize) -> Option<usize> {
        let w = &self.window;
        (o * w.stride[axis] + k * w.dilation[axis]).checked_sub(w.pad[axis]).filter(|&i| i < self.input[axis])
    }

    /// Calls `visit(tap, input pixel)` for the taps of an output position that lie inside.
    fn visit(&self, oy: usize, ox: usize, mut visit: impl FnMut(usize, usize)) {
        let [kh, kw] = self.window.kernel;
        for ky in 0..kh {
            let Some(iy) = self.source(0, oy, ky) else { continue };
            for kx in 0..kw {
                if let Some(ix) = self.source(1, ox, kx) {
                    visit(ky * kw + kx, iy * self.input[1] + ix);
                }
            }
        }
    }

    /// `visit(output pixel, tap, input pixel)` for all of a picture.
    fn visit_all(&self, mut visit: impl FnMut(usize, usize, usize)) {
        for oy in 0..self.output[0] {
            for ox in 0..self.output[1] {
                self.visit(oy, ox, |tap, pixel| visit(oy * self.output[1] + ox, tap, pixel));
            }
        }
    }
}

/// Largest value of every window; windows that see padding only give the lowest float.
pub(super) fn max_pool(x: &[f32], g: &Geometry) -> Vec<f32> {
    let c = g.input[2];
    let mut y = vec![f32::MIN; x.len() / g.input_len() * g.output_len()];
    y.par_chunks_mut(g.output_len()).zip(x.par_chunks(g.input_len())).for_each(|(y, x)| {
        g.visit_all(|position, _, pixel| {
            let (y, x) = (&mut y[position * c..(position + 1) * c], &x[pixel * c..(pixel + 1) * c]);
            y.iter_mut().zip(x).for_each(|(y, x)| *y = y.max(*x));
        });
    });
    y
}

/// The gradient goes to the first largest value of every window.
pub(super) fn max_pool_backward(x: &[f32], grad: &[f32], g: &Geometry) -> Vec<f32> {
    let c = g.input[2];
    let mut dx = vec![0.0; x.len()];
    let pictures = dx.par_chunks_mut(g.input_len()).zip(x.par_chunks(g.input_len()));
    pictures.zip(grad.par_chunks(g.output_len())).for_each(|((dx, x), dy)| {
        let mut best: Vec<(f32, usize)> = vec![(f32::MIN, usize::MAX); g.positions() * c];
        g.visit_all(|position, _, pixel| {
            for (j, best) in best[position * c..(position + 1) * c].iter_mut().enumerate() {
                let value = x[pixel * c + j];
                if best.1 == usize::MAX || value > best.0 {
                    *best = (value, pixel * c + j);
                }
            }
        });
        for ((_, at), dy) in best.into_iter().zip(dy).filter(|((_, at), _)| *at != usize::MAX) {
            dx[at] += dy;
        }
    });
    dx
}

/// One over the number of values that every window averages.
fn shares(g: &Geometry, count_include_pad: bool) -> Vec<f32> {
    let mut counts = vec![0usize; g.positions()];
    g.visit_all(|position, _, _| counts[position] += 1);
    let count = |n: usize| if count_include_pad { g.taps() } else { n };
    counts.into_iter().map(|n| 1.0 / count(n).max(1) as f32).collect()
}

/// Mean of every window.
pub(super) fn average_pool(x: &[f32], g: &Geometry, count_include_pad: bool) -> Vec<f32> {
    let c = g.input[2];
    let share = shares(g, count_include_pad);
    let mut y = vec![0.0; x.len() / g.input_len() * g.output_len()];
    y.par_chunks_mut(g.output_len()).zip(x.par_chunks(g.input_len())).for_each(|(y, x)| {
        g.visit_all(|position, _, pixel| {
            let (y, x) = (&mut y[position * c..(position + 1) * c], &x[pixel * c..(pixel + 1) * c]);
            y.iter_mut().zip(x).for_each(|(y, x)| *y += x * share[position]);
        });
    });
    y
}

/// Gradient of [`average_pool`].
pub(super) fn average_pool_backward(grad: &[f32], g: &Geometry, count_include_pad: bool) -> Vec<f32> {
    let c = g.input[2];
    let share = shares(g, count_include_pad);
    let mut dx = vec![0.0; grad.len() / g.output_len() * g.input_len()];
    dx.par_chunks_mut(g.input_len()).zip(grad.par_chunks(g.output_len())).for_each(|(dx, dy)| {
        g.visit_all(|position, _, pixel| {
            let (dx, dy) = (&mut dx[pixel * c..(pixel + 1) * c], &dy[position * c..(position + 1) * c]);
            dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += dy * share[position]);
        });
    });
    dx
}

/// Values of a block of rows at least; sums are formed block by block, which keeps 32 bits exact enough.
const BLOCK: usize = 1 << 14;

/// Rows of channels, repeated until a loop over them is worth its overhead.
struct Pattern {
    channels: usize,
    /// Values of one repetition after another.
    len: usize,
    /// Values of a block: whole repetitions.
    block: usize,
}

impl Pattern {
    fn of(channels: usize) -> Pattern {
        let len = channels * 64usize.div_ceil(channels);
        Pattern { channels, len, block: len * BLOCK.div_ceil(len) }
    }

    fn repeated(&self, row: impl Iterator<Item = f32>) -> Vec<f32> {
        let row: Vec<f32> = row.collect();
        row.iter().copied().cycle().take(self.len).collect()
    }

    /// Sums of every channel from those of every place of a repetition.
    fn folded(&self, sums: &[f32]) -> Vec<f64> {
        let mut folded = vec![0.0; self.channels];
        for row in sums.chunks_exact(self.channels) {
            folded.iter_mut().zip(row).for_each(|(f, v)| *f += f64::from(*v));
        }
        folded
    }
}

/// Mean and variance (divided by the count) of every channel of rows `[m, c]`: `[2, c]`. Every block has a mean of its own, from which
/// its squares are taken; the blocks' are joined (Chan, Golub, LeVeque 1979).
pub(super) fn moments(x: &[f32], c: usize) -> Vec<f32> {
    let (pattern, level) = (Pattern::of(c), Level::new());
    let of_block = |x: &[f32]| {
        let rows = (x.len() / c) as f64;
        let sums = dispatch!(level, simd => sum(simd, x, pattern.len));
        let means: Vec<f64> = pattern.folded(&sums).into_iter().map(|s| s / rows).collect();
        let centre = pattern.repeated(means.iter().map(|&m| m as f32));
        let squares = dispatch!(level, simd => sum_of_squares(simd, x, &centre));
        (rows, means, pattern.folded(&squares))
    };
    let blocks: Vec<(f64, Vec<f64>, Vec<f64>)> = x.par_chunks(pattern.block).map(of_block).collect();
    let (mut rows, mut mean, mut squares) = (0.0, vec![0.0; c], vec![0.0; c]);
    for (more, means, more_squares) in blocks {
        let all: f64 = rows + more;
        for i in 0..c {
            let step = means[i] - mean[i];
            mean[i] += step * more / all;
            squares[i] += more_squares[i] + step * step * rows * more / all;
        }
        rows = all;
    }
    let var = squares.iter().map(|s| (s / rows) as f32);
    mean.iter().map(|&m| m as f32).chain(var).collect()
}

#[inline(always)]
fn sum<S: Simd>(_: S, x: &[f32], len: usize) -> Vec<f32> {
    let mut sums = vec![0.0; len];
    for x in x.chunks(len) {
        for (s, x) in sums.iter_mut().zip(x) {
            *s += x;
        }
    }
    sums
}

#[inline(always)]
fn sum_of_squares<S: Simd>(_: S, x: &[f32], centre: &[f32]) -> Vec<f32> {
    let mut sums = vec![0.0; centre.len()];
    for x in x.chunks(centre.len()) {
        for ((s, x), m) in sums.iter_mut().zip(x).zip(centre) {
            *s += (x - m) * (x - m);
        }
    }
    sums
}

/// A batch norm, and the clamp behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Norm {
    /// Added to variances.
    pub epsilon: f32,
    /// Of what comes out.
    pub clamp: Clamp,
}

impl Norm {
    /// `1 / sqrt(var + epsilon)`.
    fn inverse(&self, moments: &[f32]) -> Vec<f32> {
        moments[moments.len() / 2..].iter().map(|var| 1.0 / (var + self.epsilon).sqrt()).collect()
    }

    /// Factor and term of every channel before the clamp, as patterns.
    fn line(&self, pattern: &Pattern, gamma: &[f32], beta: &[f32], moments: &[f32]) -> Line {
        let scale: Vec<f32> = self.inverse(moments).iter().zip(gamma).map(|(i, g)| g * i).collect();
        let shift = (0..scale.len()).map(|i| beta[i] - moments[i] * scale[i]);
        Line { shift: pattern.repeated(shift), scale: pattern.repeated(scale.into_iter()), clamp: self.clamp }
    }
}

/// `clamp(scale x + shift)`.
struct Line {
    scale: Vec<f32>,
    shift: Vec<f32>,
    clamp: Clamp,
}

/// `clamp(gamma (x - mean) / sqrt(var + epsilon) + beta)`.
pub(super) fn normalize(x: &[f32], gamma: &[f32], beta: &[f32], moments: &[f32], norm: Norm) -> Vec<f32> {
    let (pattern, level) = (Pattern::of(gamma.len()), Level::new());
    let line = norm.line(&pattern, gamma, beta, moments);
    let mut y = zeros(x.len());
    let blocks = y.par_chunks_mut(pattern.block).zip(x.par_chunks(pattern.block));
    blocks.for_each(|(y, x)| dispatch!(level, simd => apply_line(simd, y, x, &line)));
    y
}

#[inline(always)]
fn apply_line<S: Simd>(_: S, y: &mut [f32], x: &[f32], line: &Line) {
    let len = line.scale.len();
    for (y, x) in y.chunks_mut(len).zip(x.chunks(len)) {
        for (((y, x), s), t) in y.iter_mut().zip(x).zip(&line.scale).zip(&line.shift) {
            *y = clamped(x * s + t, line.clamp);
        }
    }
}

/// Gradients of [`normalize`] by gamma and beta: `[2, c]`.
pub(super) fn normalize_sums(
    x: &[f32],
    grad: &[f32],
    gamma: &[f32],
    beta: &[f32],
    moments: &[f32],
    norm: Norm,
) -> Vec<f32> {
    let c = gamma.len();
    let (pattern, level) = (Pattern::of(c), Level::new());
    let line = norm.line(&pattern, gamma, beta, moments);
    let mean = pattern.repeated(moments[..c].iter().copied());
    let of_block = |(x, dy): (&[f32], &[f32])| {
        let [gamma, beta] = dispatch!(level, simd => normalize_sums_of(simd, x, dy, &mean, &line));
        [pattern.folded(&gamma), pattern.folded(&beta)].concat()
    };
    let blocks: Vec<Vec<f64>> = x.par_chunks(pattern.block).zip(grad.par_chunks(pattern.block)).map(of_block).collect();
    let mut total = vec![0.0f64; 2 * c];
    for block in blocks {
        total.iter_mut().zip(block).for_each(|(t, v)| *t += v);
    }
    let (by_gamma, by_beta) = total.split_at(c);
    let by_gamma = by_gamma.iter().zip(norm.inverse(moments)).map(|(t, inverse)| *t as f32 * inverse);
    by_gamma.chain(by_beta.iter().map(|t| *t as f32)).collect()
}

#[inline(always)]
fn normalize_sums_of<S: Simd>(_: S, x: &[f32], grad: &[f32], mean: &[f32], line: &Line) -> [Vec<f32>; 2] {
    let len = mean.len();
    let (mut gamma, mut beta) = (vec![0.0; len], vec![0.0; len]);
    let factors = || line.scale.iter().zip(&line.shift);
    for (x, dy) in x.chunks(len).zip(grad.chunks(len)) {
        for (((((g, b), x), dy), m), (s, t)) in gamma.iter_mut().zip(&mut beta).zip(x).zip(dy).zip(mean).zip(factors())
        {
            let dy = passed(x * s + t, *dy, line.clamp);
            *g += dy * (x - m);
            *b += dy;
        }
    }
    [gamma, beta]
}

/// Gradient of [`normalize`] by `x`, through the batch's own moments; `sums` from [`normalize_sums`].
pub(super) fn normalize_x_backward(
    x: &[f32],
    grad: &[f32],
    gamma: &[f32],
    beta: &[f32],
    moments: &[f32],
    sums: &[f32],
    norm: Norm,
) -> Vec<f32> {
    let c = gamma.len();
    let rows = (x.len() / c) as f32;
    let (pattern, level) = (Pattern::of(c), Level::new());
    let line = norm.line(&pattern, gamma, beta, moments);
    // dx = s (dy - sum(dy) / m - x^ sum(dy x^) / m) with x^ = (x - mean) i and s = gamma i, as s dy + b x + t per channel.
    let inverse = norm.inverse(moments);
    let b: Vec<f32> = (0..c).map(|i| -gamma[i] * inverse[i] * inverse[i] * sums[i] / rows).collect();
    let t = (0..c).map(|i| -gamma[i] * inverse[i] * sums[c + i] / rows - b[i] * moments[i]);
    let rest = [pattern.repeated(b.iter().copied()), pattern.repeated(t)];
    let mut dx = zeros(x.len());
    let rows = x.par_chunks(pattern.block).zip(grad.par_chunks(pattern.block));
    let blocks = dx.par_chunks_mut(pattern.block).zip(rows);
    blocks.for_each(|(dx, (x, dy))| dispatch!(level, simd => combine(simd, dx, x, dy, &line, &rest)));
    dx
}

#[inline(always)]
fn combine<S: Simd>(_: S, dx: &mut [f32], x: &[f32], dy: &[f32], line: &Line, [b, t]: &[Vec<f32>; 2]) {
    let len = b.len();
    let factors = || line.scale.iter().zip(&line.shift).zip(b.iter().zip(t));
    for ((dx, x), dy) in dx.chunks_mut(len).zip(x.chunks(len)).zip(dy.chunks(len)) {
        for (((dx, x), dy), ((scale, shift), (b, t))) in dx.iter_mut().zip(x).zip(dy).zip(factors()) {
            *dx = scale * passed(x * scale + shift, *dy, line.clamp) + b * x + t;
        }
    }
}

/// A value between two bounds; what is not a number stays so.
#[inline(always)]
fn clamped(x: f32, Clamp { min, max }: Clamp) -> f32 {
    let raised = if x < min { min } else { x };
    if raised > max { max } else { raised }
}

/// The gradient of a clamp: none at a bound or beyond.
#[inline(always)]
fn passed(x: f32, dy: f32, Clamp { min, max }: Clamp) -> f32 {
    if x <= min || x >= max { 0.0 } else { dy }
}

/// Values between two bounds.
pub(super) fn clamp(x: &[f32], clamp: Clamp) -> Vec<f32> {
    let level = Level::new();
    let mut y = zeros(x.len());
    let blocks = y.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK));
    blocks.for_each(|(y, x)| dispatch!(level, simd => clamp_all(simd, y, x, clamp)));
    y
}

#[inline(always)]
fn clamp_all<S: Simd>(_: S, y: &mut [f32], x: &[f32], clamp: Clamp) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = clamped(x, clamp);
    }
}

/// Gradient of [`clamp`], from what came out: none at a bound.
pub(super) fn clamp_backward(y: &[f32], grad: &[f32], clamp: Clamp) -> Vec<f32> {
    let level = Level::new();
    let mut dx = zeros(y.len());
    let blocks = dx.par_chunks_mut(BLOCK).zip(y.par_chunks(BLOCK).zip(grad.par_chunks(BLOCK)));
    blocks.for_each(|(dx, (y, dy))| dispatch!(level, simd => clamp_backward_all(simd, dx, y, dy, clamp)));
    dx
}

#[inline(always)]
fn clamp_backward_all<S: Simd>(_: S, dx: &mut [f32], y: &[f32], dy: &[f32], clamp: Clamp) {
    for ((dx, &y), &dy) in dx.iter_mut().zip(y).zip(dy) {
        *dx = passed(y, dy, clamp);
    }
}

/// Values on the levels `lo ..= hi` of a step: half a level is rounded up, as the runtime does.
pub(super) fn rounded(x: &[f32], levels: &[f32]) -> Vec<f32> {
    let (level, levels) = (Level::new(), Levels::of(levels));
    let mut y = zeros(x.len());
    let blocks = y.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK));
    blocks.for_each(|(y, x)| dispatch!(level, simd => rounded_all(simd, y, x, levels)));
    y
}

#[inline(always)]
fn rounded_all<S: Simd>(_: S, y: &mut [f32], x: &[f32], levels: Levels) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = levels.step * clamped((x / levels.step + 0.5).floor(), levels.ends());
    }
}

/// Gradient of [`rounded`] by its input: that of a clamp.
pub(super) fn rounded_backward(x: &[f32], grad: &[f32], levels: &[f32]) -> Vec<f32> {
    let (level, levels) = (Level::new(), Levels::of(levels));
    let mut dx = zeros(x.len());
    let blocks = dx.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK).zip(grad.par_chunks(BLOCK)));
    blocks.for_each(|(dx, (x, dy))| dispatch!(level, simd => rounded_backward_all(simd, dx, x, dy, levels)));
    dx
}

#[inline(always)]
fn rounded_backward_all<S: Simd>(_: S, dx: &mut [f32], x: &[f32], dy: &[f32], levels: Levels) {
    for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
        let v = x / levels.step;
        *dx = if v < levels.lo || v > levels.hi { 0.0 } else { dy };
    }
}

/// Gradients of [`rounded`] by the step, the lowest and the highest level. Sums are made block by block, so that threads do not matter.
pub(super) fn rounded_sums(x: &[f32], grad: &[f32], levels: &[f32]) -> Vec<f32> {
    let (level, levels) = (Level::new(), Levels::of(levels));
    let blocks = x.par_chunks(BLOCK).zip(grad.par_chunks(BLOCK));
    let sums: Vec<[f32; 3]> =
        blocks.map(|(x, dy)| dispatch!(level, simd => rounded_sums_of(simd, x, dy, levels))).collect();
    let total = |i: usize| sums.iter().map(|s| f64::from(s[i])).sum::<f64>() as f32;
    vec![total(0), levels.step * total(1), levels.step * total(2)]
}

#[inline(always)]
fn rounded_sums_of<S: Simd>(_: S, x: &[f32], dy: &[f32], levels: Levels) -> [f32; 3] {
    let mut sums = [0.0; 3];
    for (&x, &dy) in x.iter().zip(dy) {
        let v = x / levels.step;
        let n = clamped((v + 0.5).floor(), levels.ends());
        let (below, above) = (if v < levels.lo { dy } else { 0.0 }, if v > levels.hi { dy } else { 0.0 });
        sums[0] += dy * n - (dy - below - above) * v;
        sums[1] += below;
        sums[2] += above;
    }
    sums
}

/// What values are rounded to.
#[derive(Clone, Copy)]
struct Levels {
    step: f32,
    lo: f32,
    hi: f32,
}

impl Levels {
    fn of(levels: &[f32]) -> Levels {
        let at = |i: usize| levels.get(i).copied().unwrap_or(0.0);
        Levels { step: at(0), lo: at(1), hi: at(2) }
    }

    #[inline(always)]
    fn ends(self) -> Clamp {
        Clamp { min: self.lo, max: self.hi }
    }
}

/// Zeros, written by all threads: a large part of training's memory traffic.
pub(super) fn zeros(n: usize) -> Vec<f32> {
    rayon::iter::repeat_n(0.0, n).collect()
}
