//! Convolutions and pools on NHWC pictures, forward and backward, on plain slices: what the CPU backend computes.
//!
//! A convolution is a matrix product per picture, `y [p, oc] = patches(x) [p, kh kw ic] · w^T`, where a patch row lies as the weights
//! do; its two gradients are the two other products of the same three matrices. Depthwise layers add scaled rows of channels, one
//! kernel tap at a time, so that they cost what their multiplications cost. Pictures run in parallel; sums over pictures are formed
//! in a fixed number of parts and joined in order, so that results do not depend on the number of threads.

use crate::graph::Window;
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice};
use rayon::prelude::*;

/// Parts of a sum over pictures.
const PARTS: usize = 16;

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
    fn input_len(&self) -> usize {
        self.input.iter().product()
    }

    fn output_len(&self) -> usize {
        self.output.iter().product()
    }

    /// Output positions.
    fn positions(&self) -> usize {
        self.output[0] * self.output[1]
    }

    fn taps(&self) -> usize {
        self.window.kernel[0] * self.window.kernel[1]
    }

    /// One filter per channel.
    fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.input[2] && self.groups == self.output[2]
    }

    /// A patch is the pixel itself.
    fn is_pointwise(&self) -> bool {
        self.taps() == 1 && self.window.stride == [1, 1] && self.window.pad == [0; 4]
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

fn matrix(values: &[f32], rows: usize, cols: usize) -> ArrayView2<'_, f32> {
    match ArrayView2::from_shape((rows, cols), values) {
        Ok(view) => view,
        Err(e) => unreachable!("{} values as {rows} x {cols}: {e}", values.len()),
    }
}

fn matrix_mut(values: &mut [f32], rows: usize, cols: usize) -> ArrayViewMut2<'_, f32> {
    match ArrayViewMut2::from_shape((rows, cols), values) {
        Ok(view) => view,
        Err(e) => unreachable!("a matrix of {rows} x {cols}: {e}"),
    }
}

/// Patches of one group of one picture, `[p, taps * ic / groups]`.
fn gather(x: &[f32], g: &Geometry, group: usize, patches: &mut Vec<f32>) {
    let c = g.input[2] / g.groups;
    let (row, first) = (g.taps() * c, group * c);
    patches.clear();
    patches.resize(g.positions() * row, 0.0);
    g.visit_all(|position, tap, pixel| {
        let at = position * row + tap * c;
        let from = pixel * g.input[2] + first;
        patches[at..at + c].copy_from_slice(&x[from..from + c]);
    });
}

/// Adds patches back where they came from.
fn scatter(patches: &[f32], g: &Geometry, group: usize, x: &mut [f32]) {
    let c = g.input[2] / g.groups;
    let (row, first) = (g.taps() * c, group * c);
    g.visit_all(|position, tap, pixel| {
        let at = position * row + tap * c;
        let to = pixel * g.input[2] + first;
        x[to..to + c].iter_mut().zip(&patches[at..at + c]).for_each(|(x, p)| *x += p);
    });
}

/// Sums of parts, in order.
fn sum_parts(len: usize, pictures: usize, part: impl Fn(std::ops::Range<usize>) -> Vec<f32> + Sync) -> Vec<f32> {
    let bounds = |p: usize| pictures * p / PARTS;
    let parts: Vec<Vec<f32>> = (0..PARTS).into_par_iter().map(|p| part(bounds(p)..bounds(p + 1))).collect();
    let mut sum = vec![0.0; len];
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(s, v)| *s += v);
    }
    sum
}

/// `x [n, h, w, ic]`, `w [oc, kh, kw, ic / groups]` → `[n, oh, ow, oc]`.
pub(super) fn conv(x: &[f32], w: &[f32], g: &Geometry) -> Vec<f32> {
    let pictures = x.len() / g.input_len();
    let mut y = vec![0.0; pictures * g.output_len()];
    let taps_first = if g.is_depthwise() { transposed(w, g.groups, g.taps()) } else { Vec::new() };
    let pairs = y.par_chunks_mut(g.output_len()).zip(x.par_chunks(g.input_len()));
    pairs.for_each_init(Vec::new, |patches, (y, x)| match g.is_depthwise() {
        true => {
            let c = g.groups;
            g.visit_all(|position, tap, pixel| {
                let y = &mut y[position * c..(position + 1) * c];
                let (x, w) = (&x[pixel * c..(pixel + 1) * c], &taps_first[tap * c..(tap + 1) * c]);
                y.iter_mut().zip(x.iter().zip(w)).for_each(|(y, (x, w))| *y += x * w);
            });
        }
        false => {
            let (k, oc) = (g.taps() * g.input[2] / g.groups, g.output[2] / g.groups);
            let mut y = matrix_mut(y, g.positions(), g.output[2]);
            for group in 0..g.groups {
                let whole = g.is_pointwise() && g.groups == 1;
                if !whole {
                    gather(x, g, group, patches);
                }
                let lhs = matrix(if whole { x } else { patches }, g.positions(), k);
                let filters = matrix(&w[group * oc * k..(group + 1) * oc * k], oc, k);
                let mut y = y.slice_axis_mut(Axis(1), Slice::from(group * oc..(group + 1) * oc));
                general_mat_mul(1.0, &lhs, &filters.t(), 0.0, &mut y);
            }
        }
    });
    y
}

/// Gradient of [`conv`] by `x`, from the gradient by its output.
pub(super) fn conv_x_backward(grad: &[f32], w: &[f32], g: &Geometry) -> Vec<f32> {
    let pictures = grad.len() / g.output_len();
    let mut dx = vec![0.0; pictures * g.input_len()];
    let taps_first = if g.is_depthwise() { transposed(w, g.groups, g.taps()) } else { Vec::new() };
    let pairs = dx.par_chunks_mut(g.input_len()).zip(grad.par_chunks(g.output_len()));
    pairs.for_each_init(Vec::new, |patches: &mut Vec<f32>, (dx, dy)| match g.is_depthwise() {
        true => {
            let c = g.groups;
            g.visit_all(|position, tap, pixel| {
                let dx = &mut dx[pixel * c..(pixel + 1) * c];
                let (dy, w) = (&dy[position * c..(position + 1) * c], &taps_first[tap * c..(tap + 1) * c]);
                dx.iter_mut().zip(dy.iter().zip(w)).for_each(|(dx, (dy, w))| *dx += dy * w);
            });
        }
        false => {
            let (k, oc) = (g.taps() * g.input[2] / g.groups, g.output[2] / g.groups);
            let dy = matrix(dy, g.positions(), g.output[2]);
            for group in 0..g.groups {
                let filters = matrix(&w[group * oc * k..(group + 1) * oc * k], oc, k);
                let dy = dy.slice_axis(Axis(1), Slice::from(group * oc..(group + 1) * oc));
                if g.is_pointwise() && g.groups == 1 {
                    general_mat_mul(1.0, &dy, &filters, 0.0, &mut matrix_mut(dx, g.positions(), k));
                    continue;
                }
                patches.resize(g.positions() * k, 0.0);
                general_mat_mul(1.0, &dy, &filters, 0.0, &mut matrix_mut(patches, g.positions(), k));
                scatter(patches, g, group, dx);
            }
        }
    });
    dx
}

/// Gradient of [`conv`] by `w`.
pub(super) fn conv_weight_backward(x: &[f32], grad: &[f32], g: &Geometry) -> Vec<f32> {
    let (k, oc) = (g.taps() * g.input[2] / g.groups, g.output[2] / g.groups);
    let len = g.output[2] * k;
    let sum = sum_parts(len, x.len() / g.input_len(), |pictures| {
        let mut dw = vec![0.0; len];
        let mut patches = Vec::new();
        for n in pictures {
            let x = &x[n * g.input_len()..(n + 1) * g.input_len()];
            let dy = &grad[n * g.output_len()..(n + 1) * g.output_len()];
            if g.is_depthwise() {
                let c = g.groups;
                g.visit_all(|position, tap, pixel| {
                    let dw = &mut dw[tap * c..(tap + 1) * c];
                    let (x, dy) = (&x[pixel * c..(pixel + 1) * c], &dy[position * c..(position + 1) * c]);
                    dw.iter_mut().zip(x.iter().zip(dy)).for_each(|(dw, (x, dy))| *dw += x * dy);
                });
                continue;
            }
            let dy = matrix(dy, g.positions(), g.output[2]);
            for group in 0..g.groups {
                let whole = g.is_pointwise() && g.groups == 1;
                if !whole {
                    gather(x, g, group, &mut patches);
                }
                let lhs = matrix(if whole { x } else { &patches }, g.positions(), k);
                let dy = dy.slice_axis(Axis(1), Slice::from(group * oc..(group + 1) * oc));
                let mut dw = matrix_mut(&mut dw[group * oc * k..(group + 1) * oc * k], oc, k);
                general_mat_mul(1.0, &dy.t(), &lhs, 1.0, &mut dw);
            }
        }
        dw
    });
    if g.is_depthwise() { transposed(&sum, g.taps(), g.groups) } else { sum }
}

/// `[rows, cols]` as `[cols, rows]`.
fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|i| values[i % rows * cols + i / rows]).collect()
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

/// Mean and variance (divided by the count) of every channel of rows `[m, c]`: `[2, c]`.
pub(super) fn moments(x: &[f32], c: usize) -> Vec<f32> {
    let rows = x.len() / c;
    let mean: Vec<f32> = row_sums(x, c, |row, sums| sums.iter_mut().zip(row).for_each(|(s, v)| *s += v))
        .into_iter()
        .map(|s| s / rows as f32)
        .collect();
    let var = row_sums(x, c, |row, sums| {
        sums.iter_mut().zip(row.iter().zip(&mean)).for_each(|(s, (v, m))| *s += (v - m) * (v - m));
    });
    mean.iter().copied().chain(var.iter().map(|s| s / rows as f32)).collect()
}

/// Sums over rows, each added by `add`. A thousand rows are summed before they join others, which keeps 32 bits exact enough.
fn row_sums(x: &[f32], c: usize, add: impl Fn(&[f32], &mut [f32]) + Sync) -> Vec<f32> {
    let blocks: Vec<Vec<f32>> = x
        .par_chunks(1024 * c)
        .map(|block| {
            let mut sums = vec![0.0; c];
            block.chunks_exact(c).for_each(|row| add(row, &mut sums));
            sums
        })
        .collect();
    let mut total = vec![0.0f64; c];
    for block in blocks {
        total.iter_mut().zip(block).for_each(|(t, v)| *t += v as f64);
    }
    total.into_iter().map(|t| t as f32).collect()
}

/// `gamma (x - mean) / sqrt(var + epsilon) + beta`.
pub(super) fn normalize(x: &[f32], gamma: &[f32], beta: &[f32], moments: &[f32], epsilon: f32) -> Vec<f32> {
    let c = gamma.len();
    let scale: Vec<f32> = (0..c).map(|i| gamma[i] / (moments[c + i] + epsilon).sqrt()).collect();
    let shift: Vec<f32> = (0..c).map(|i| beta[i] - moments[i] * scale[i]).collect();
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(256 * c).zip(x.par_chunks(256 * c)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            let factors = scale.iter().zip(&shift);
            y.iter_mut().zip(x).zip(factors).for_each(|((y, x), (s, t))| *y = x * s + t);
        }
    });
    y
}

/// Gradients of [`normalize`] by gamma and beta: `[2, c]`.
pub(super) fn normalize_sums(x: &[f32], grad: &[f32], moments: &[f32], epsilon: f32) -> Vec<f32> {
    let c = moments.len() / 2;
    let inverse: Vec<f32> = (0..c).map(|i| 1.0 / (moments[c + i] + epsilon).sqrt()).collect();
    let blocks: Vec<Vec<f32>> = x
        .par_chunks(1024 * c)
        .zip(grad.par_chunks(1024 * c))
        .map(|(x, dy)| {
            let mut sums = vec![0.0; 2 * c];
            let (gamma, beta) = sums.split_at_mut(c);
            for (x, dy) in x.chunks_exact(c).zip(dy.chunks_exact(c)) {
                gamma
                    .iter_mut()
                    .zip(x.iter().zip(dy))
                    .zip(&moments[..c])
                    .for_each(|((s, (x, d)), m)| *s += d * (x - m));
                beta.iter_mut().zip(dy).for_each(|(s, d)| *s += d);
            }
            sums
        })
        .collect();
    let mut total = vec![0.0f64; 2 * c];
    for block in blocks {
        total.iter_mut().zip(block).for_each(|(t, v)| *t += v as f64);
    }
    (0..2 * c).map(|i| if i < c { total[i] as f32 * inverse[i] } else { total[i] as f32 }).collect()
}

/// Gradient of [`normalize`] by `x`, through the batch's own moments; `sums` from [`normalize_sums`].
pub(super) fn normalize_x_backward(
    x: &[f32],
    grad: &[f32],
    gamma: &[f32],
    moments: &[f32],
    sums: &[f32],
    epsilon: f32,
) -> Vec<f32> {
    let c = gamma.len();
    let rows = (x.len() / c) as f32;
    // dx = s (dy - sum(dy) / m - x^ sum(dy x^) / m) with x^ = (x - mean) i and s = gamma i, as a dy + b x + t per channel.
    let inverse: Vec<f32> = (0..c).map(|i| 1.0 / (moments[c + i] + epsilon).sqrt()).collect();
    let a: Vec<f32> = (0..c).map(|i| gamma[i] * inverse[i]).collect();
    let b: Vec<f32> = (0..c).map(|i| -a[i] * inverse[i] * sums[i] / rows).collect();
    let t: Vec<f32> = (0..c).map(|i| -a[i] * sums[c + i] / rows - b[i] * moments[i]).collect();
    let mut dx = vec![0.0; x.len()];
    let rows = x.par_chunks(256 * c).zip(grad.par_chunks(256 * c));
    dx.par_chunks_mut(256 * c).zip(rows).for_each(|(dx, (x, dy))| {
        for ((dx, x), dy) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(dy.chunks_exact(c)) {
            for i in 0..c {
                dx[i] = a[i] * dy[i] + b[i] * x[i] + t[i];
            }
        }
    });
    dx
}
