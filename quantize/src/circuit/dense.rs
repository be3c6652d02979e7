//! The arithmetic of a sum layer on a batch: products of small dense matrices, in vectors of [`LANES`] floats.
//!
//! Rows are samples or units, padded to whole vectors. A tile of the result stays in registers while the inner dimension runs, so every sum is
//! taken in the order of its index whatever the number of threads.

use fearless_simd::{Level, Simd, dispatch, f32x16, prelude::*};

/// Floats of a vector.
pub const LANES: usize = 16;

/// What becomes of a product.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Into {
    /// It is stored.
    Assign,
    /// What was there is multiplied by it.
    Scale,
}

/// `c[m][n] = a[m][k] * b[k][n]`; rows of `a` are `a_stride` apart, `n` is a multiple of [`LANES`].
pub fn multiply(level: Level, c: &mut [f32], a: &[f32], a_stride: usize, b: &[f32], n: usize) {
    dispatch!(level, simd => rows(simd, c, a, a_stride, b, n, Into::Assign));
}

/// `c[m][n] *= a[m][k] * b[k][n]`, elementwise.
pub fn scale_by_product(level: Level, c: &mut [f32], a: &[f32], a_stride: usize, b: &[f32], n: usize) {
    dispatch!(level, simd => rows(simd, c, a, a_stride, b, n, Into::Scale));
}

/// `c[m][n] = sum over s of a[s][m] * b[s][n]`; rows of `a` are `a_stride` apart, `n` is a multiple of [`LANES`].
pub fn outer(level: Level, c: &mut [f32], a: &[f32], a_stride: usize, b: &[f32], n: usize) {
    dispatch!(level, simd => columns(simd, c, a, a_stride, b, n));
}

const TALL: usize = 8;

#[inline(always)]
fn rows<S: Simd>(simd: S, c: &mut [f32], a: &[f32], a_stride: usize, b: &[f32], n: usize, into: Into) {
    let k = b.len() / n;
    let mut tall = c.chunks_exact_mut(TALL * n);
    let mut a_tall = a.chunks_exact(TALL * a_stride);
    for (c, a) in (&mut tall).zip(&mut a_tall) {
        let a: [&[f32]; TALL] = std::array::from_fn(|r| &a[r * a_stride..][..k]);
        let column = |i: usize| -> [f32; TALL] { std::array::from_fn(|r| a[r][i]) };
        band(simd, c, column, b, n, into);
    }
    for (c, a) in tall.into_remainder().chunks_exact_mut(n).zip(a_tall.remainder().chunks_exact(a_stride)) {
        let a = &a[..k];
        band(simd, c, |i| [a[i]], b, n, into);
    }
}

#[inline(always)]
fn columns<S: Simd>(simd: S, c: &mut [f32], a: &[f32], a_stride: usize, b: &[f32], n: usize) {
    let m = c.len() / n;
    let mut tall = c.chunks_exact_mut(TALL * n);
    let mut first = 0;
    for c in &mut tall {
        let column = |s: usize| a[s * a_stride + first..].first_chunk::<TALL>().copied().unwrap_or_default();
        band(simd, c, column, b, n, Into::Assign);
        first += TALL;
    }
    for (c, i) in tall.into_remainder().chunks_exact_mut(n).zip(first..m) {
        band(simd, c, |s| [a[s * a_stride + i]], b, n, Into::Assign);
    }
}

/// `R` rows of the result, two vectors at a time.
#[inline(always)]
fn band<S: Simd, const R: usize>(
    simd: S,
    c: &mut [f32],
    a: impl Fn(usize) -> [f32; R] + Copy,
    b: &[f32],
    n: usize,
    into: Into,
) {
    let mut column = 0;
    while column + 2 * LANES <= n {
        tile::<S, R, 2>(simd, c, a, b, n, column, into);
        column += 2 * LANES;
    }
    if column < n {
        tile::<S, R, 1>(simd, c, a, b, n, column, into);
    }
}

#[inline(always)]
fn tile<S: Simd, const R: usize, const C: usize>(
    simd: S,
    c: &mut [f32],
    a: impl Fn(usize) -> [f32; R],
    b: &[f32],
    n: usize,
    column: usize,
    into: Into,
) {
    let mut sums = [[f32x16::splat(simd, 0.0); C]; R];
    for (i, row) in b.chunks_exact(n).enumerate() {
        let row = &row[column..][..C * LANES];
        let b: [f32x16<S>; C] = std::array::from_fn(|c| f32x16::from_slice(simd, &row[c * LANES..][..LANES]));
        let a = a(i);
        for r in 0..R {
            let a = f32x16::splat(simd, a[r]);
            for c in 0..C {
                sums[r][c] = a.mul_add(b[c], sums[r][c]);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        let row = &mut c[r * n + column..][..C * LANES];
        for (sum, out) in sums.into_iter().zip(row.chunks_exact_mut(LANES)) {
            match into {
                Into::Assign => sum.store_slice(out),
                Into::Scale => (sum * f32x16::from_slice(simd, out)).store_slice(out),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn products_agree_with_their_definition() {
        let mut random = Random::new(1, 0);
        for (m, k, n) in [(1, 1usize, 16), (8, 3, 32), (13, 16, 48), (30, 5, 16), (17, 40, 64)] {
            let a_stride = k.next_multiple_of(LANES);
            let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| random.uniform() - 0.5).collect() };
            let (a, b, old) = (numbers(m * a_stride), numbers(k * n), numbers(m * n));
            let expected = |i: usize, j: usize| (0..k).map(|x| a[i * a_stride + x] * b[x * n + j]).sum::<f32>();
            let level = Level::new();
            let (mut assigned, mut scaled) = (old.clone(), old.clone());
            multiply(level, &mut assigned, &a, a_stride, &b, n);
            scale_by_product(level, &mut scaled, &a, a_stride, &b, n);
            for at in 0..m * n {
                let expected = expected(at / n, at % n);
                assert!((assigned[at] - expected).abs() < 1e-5 && (scaled[at] - old[at] * expected).abs() < 1e-5);
            }
            // Rows of `old` with rows of `assigned`, over all m samples.
            let mut counts = vec![0.0; n * n];
            outer(level, &mut counts, &old, n, &assigned, n);
            for at in 0..n * n {
                let expected: f32 = (0..m).map(|s| old[s * n + at / n] * assigned[s * n + at % n]).sum();
                assert!((counts[at] - expected).abs() < 1e-4);
            }
        }
    }
}
