//! Layers with weights as least squares problems: every output position of every sample is a row, the inputs that a filter multiplies there.

use crate::graph::{Op, Window};
use ndarray::{Array1, Array2, ArrayD, ArrayView1, Axis};

/// Weights `[oc, ..]` and biases.
pub(crate) fn weights(op: &Op) -> Option<(&ArrayD<f32>, &[f32])> {
    match op {
        Op::Conv2d { weight, bias, .. }
        | Op::ConvTranspose2d { weight, bias, .. }
        | Op::Linear { weight, bias, .. } => Some((weight, bias)),
        _ => None,
    }
}

/// Groups of a convolution, 1 for other layers.
pub(crate) fn groups(op: &Op) -> usize {
    match op {
        Op::Conv2d { groups, .. } | Op::ConvTranspose2d { groups, .. } => (*groups).max(1),
        _ => 1,
    }
}

/// Some filters as the rows of a matrix.
pub(crate) fn matrix(op: &Op, filters: std::ops::Range<usize>) -> Array2<f64> {
    let Some((weight, bias)) = weights(op) else { return Array2::zeros((0, 0)) };
    let k = weight.len() / bias.len().max(1);
    let values: Vec<f64> = weight.iter().skip(filters.start * k).take(filters.len() * k).map(|&w| w.into()).collect();
    Array2::from_shape_vec((filters.len(), k), values).unwrap_or_else(|_| Array2::zeros((filters.len(), k)))
}

/// Positions of an output `[.., channels]`, at most `rows`, spread evenly; the first one moves from sample to sample.
pub(crate) fn positions(out: &[usize], sample: usize, rows: usize) -> Vec<usize> {
    let all = out.iter().rev().skip(1).product::<usize>().max(1);
    let count = rows.min(all);
    // Multiples of the golden ratio never meet.
    let first = ((sample as f64 * 0.618_033_988_75).fract() * all as f64) as usize;
    (0..count).map(|i| (first + i * all / count) % all).collect()
}

/// The inputs that an output position reads, as a filter of the group multiplies them, one row for every position.
pub(crate) fn gather(op: &Op, x: &ArrayD<f32>, out: &[usize], group: usize, positions: &[usize]) -> Array2<f64> {
    let k = weights(op).map_or(0, |(weight, bias)| weight.len() / bias.len().max(1));
    let input = x.as_standard_layout();
    let input = input.as_slice().unwrap_or(&[]);
    let mut rows = Array2::zeros((positions.len(), k));
    for (mut row, &position) in rows.rows_mut().into_iter().zip(positions) {
        let copy = |row: &mut [f64], from: &[f32]| row.iter_mut().zip(from).for_each(|(r, &v)| *r = v.into());
        let row = row.as_slice_mut().unwrap_or(&mut []);
        let (window, is_transposed) = match op {
            Op::Conv2d { window, .. } => (window, false),
            Op::ConvTranspose2d { window, .. } => (window, true),
            _ => {
                copy(row, &input[position * k..]);
                continue;
            }
        };
        let [h, w, c] = [x.shape()[1], x.shape()[2], x.shape()[3]];
        let (own, [kh, kw]) = (c / groups(op), window.kernel);
        let tap = if is_transposed { transposed_tap } else { tap };
        for ky in 0..kh {
            let Some(iy) = tap(window, 0, position / out[2], ky, h) else { continue };
            for kx in 0..kw {
                let Some(ix) = tap(window, 1, position % out[2], kx, w) else { continue };
                copy(&mut row[(ky * kw + kx) * own..][..own], &input[(iy * w + ix) * c + group * own..]);
            }
        }
    }
    rows
}

/// Input position that tap `k` of a convolution reads for output `out` on axis `i`.
fn tap(window: &Window, i: usize, out: usize, k: usize, n: usize) -> Option<usize> {
    let at = (out * window.stride[i] + k * window.dilation[i]).checked_sub(window.pad[i])?;
    (at < n).then_some(at)
}

/// The same of a transposed convolution.
fn transposed_tap(window: &Window, i: usize, out: usize, k: usize, n: usize) -> Option<usize> {
    let at = (out + window.pad[i]).checked_sub(k * window.dilation[i])?;
    (at.is_multiple_of(window.stride[i]) && at / window.stride[i] < n).then_some(at / window.stride[i])
}

/// Sums over rows of `k` inputs.
pub(crate) struct Moments {
    /// Number of rows.
    pub rows: f64,
    /// Sum of their outer squares, `[k, k]`.
    pub gram: Array2<f64>,
    /// Their sum, `[k]`.
    pub sum: Array1<f64>,
}

impl Moments {
    pub(crate) fn new(k: usize) -> Moments {
        Moments { rows: 0.0, gram: Array2::zeros((k, k)), sum: Array1::zeros(k) }
    }

    /// With more rows `[n, k]`.
    pub(crate) fn add(&mut self, rows: &Array2<f64>) {
        self.rows += rows.nrows() as f64;
        self.gram += &rows.t().dot(rows);
        self.sum += &rows.sum_axis(Axis(0));
    }

    pub(crate) fn join(&mut self, other: &Moments) {
        self.rows += other.rows;
        self.gram += &other.gram;
        self.sum += &other.sum;
    }

    /// A sum over the rows as a mean.
    pub(crate) fn mean(&self, sum: &Array1<f64>) -> Array1<f64> {
        sum / self.rows.max(1.0)
    }

    /// Gram matrix around the mean.
    pub(crate) fn centred(&self) -> Array2<f64> {
        let mean = self.mean(&self.sum).insert_axis(Axis(1));
        &self.gram - &mean.dot(&self.sum.view().insert_axis(Axis(0)))
    }

    /// The same, a row's share.
    pub(crate) fn covariance(&self) -> Array2<f64> {
        self.centred() / self.rows.max(1.0)
    }
}

/// Lower triangle of the factor of a positive definite matrix, in place; none if it is not.
pub(crate) fn cholesky(a: &mut Array2<f64>) -> Option<()> {
    for i in 0..a.nrows() {
        for j in 0..=i {
            let sum = a[[i, j]] - dot(a.row(i), a.row(j), j);
            a[[i, j]] = match i == j {
                true if sum > 0.0 => sum.sqrt(),
                true => return None,
                false => sum / a[[j, j]],
            };
        }
    }
    Some(())
}

/// Solves `L L^T x = b` in place.
pub(crate) fn substitute(l: &Array2<f64>, b: &mut [f64]) {
    for i in 0..b.len() {
        b[i] = (b[i] - dot(l.row(i), ArrayView1::from(&*b), i)) / l[[i, i]];
    }
    for i in (0..b.len()).rev() {
        b[i] /= l[[i, i]];
        let x = b[i];
        b[..i].iter_mut().zip(l.row(i)).for_each(|(b, l)| *b -= l * x);
    }
}

/// Product of the first `n` elements, which `ndarray` sums in eight lanes.
fn dot(a: ArrayView1<f64>, b: ArrayView1<f64>, n: usize) -> f64 {
    a.split_at(Axis(0), n).0.dot(&b.split_at(Axis(0), n).0)
}
