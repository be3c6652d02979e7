//! What integration tests share: where data lie, and how arrays are compared.

use ndarray::{ArrayD, Axis};
use std::path::{Path, PathBuf};

/// The folder of this package.
pub fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the shared data folder; none, with a printed line, where it is absent.
pub fn shared(file: &str) -> Option<PathBuf> {
    let path = pith_tools::networks::shared(file);
    if path.is_none() {
        println!("skipped: the shared data file {file} is absent");
    }
    path
}

/// An array of an npz file; panics if it is not there, because tests name what they need.
pub fn array(path: &Path, name: &str) -> ArrayD<f32> {
    let arrays = quantize::npy::read(path).expect("npz");
    arrays.into_iter().find(|(n, _)| n == name).expect("array").1.values
}

/// Arrays `PREFIX0`, `PREFIX1`, ... of sample `i`.
pub fn golden(path: &Path, prefix: &str, count: usize, i: usize) -> Vec<ArrayD<f32>> {
    (0..count).map(|k| array(path, &format!("{prefix}{k}")).index_axis_move(Axis(0), i)).collect()
}

/// Largest difference relative to the largest magnitude of `expected` (or 0.001, where only float noise is left).
pub fn relative_error(got: &ArrayD<f32>, expected: &ArrayD<f32>) -> f32 {
    assert_eq!(got.shape(), expected.shape());
    let range = expected.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    got.iter().zip(expected).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / range
}

/// Signal-to-noise ratio in decibels of `got` against `expected`.
pub fn sqnr_db(got: &ArrayD<f32>, expected: &ArrayD<f32>) -> f64 {
    assert_eq!(got.shape(), expected.shape());
    let signal: f64 = expected.iter().map(|&v| (v as f64).powi(2)).sum();
    let noise: f64 = got.iter().zip(expected).map(|(&a, &b)| (a as f64 - b as f64).powi(2)).sum();
    10.0 * (signal / noise.max(1e-30)).log10()
}
