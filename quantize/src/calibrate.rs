//! Observers: what real inputs say about the range of every activation.
//!
//! Two passes over the samples: extremes and channel means, then a histogram between the extremes. Samples are divided into a
//! fixed number of parts whose sums are joined in order, so that results do not depend on the number of threads.

use crate::graph::{Graph, eval};
use ndarray::ArrayD;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Bins of a histogram.
const BINS: usize = 2048;

/// Parts that samples are divided into.
const PARTS: usize = 16;

/// Statistics of one tensor over all samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorStats {
    /// Smallest value.
    pub min: f32,
    /// Largest value.
    pub max: f32,
    /// Mean per channel of the last axis.
    pub mean: Vec<f32>,
    /// Largest magnitude per channel of the last axis.
    pub peak: Vec<f32>,
    /// Counts between `min` and `max`.
    pub histogram: Vec<u64>,
}

/// Statistics of every tensor of a graph, by tensor id.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// By tensor id; empty means for tensors that are never computed.
    pub tensors: Vec<TensorStats>,
}

/// How a range is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Observer {
    /// Everything that was seen.
    MinMax,
    /// Everything but this share of the values at each end (0.0001 cuts one in ten thousand).
    Percentile(f32),
    /// The range with the smallest squared error at its bits.
    Mse,
}

/// Why a network cannot be calibrated.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// The input does not fit.
    #[error("calibration: {0}")]
    Eval(#[from] eval::EvalError),
    /// No input.
    #[error("calibration: the set holds no samples")]
    Empty,
    /// Something overflowed.
    #[error("calibration: tensor '{tensor}' takes the value {value}; check the preprocessing (--scale, --mean, --std)")]
    NotFinite {
        /// Tensor name.
        tensor: String,
        /// NaN or an infinity.
        value: f32,
    },
}

/// Runs `samples` (inputs in graph axes) and collects statistics; `progress` is called once per sample and pass.
pub fn observe(
    graph: &Graph,
    samples: &[Vec<ArrayD<f32>>],
    progress: &(dyn Fn() + Sync),
) -> Result<Stats, CalibrateError> {
    if samples.is_empty() {
        return Err(CalibrateError::Empty);
    }
    let chunk = samples.len().div_ceil(PARTS);
    let extremes = parts(graph, samples, chunk, progress, |_, values| Extremes::of(values), Extremes::join)?;
    for (tensor, found) in graph.tensors.iter().zip(&extremes) {
        let value = [found.min, found.max].into_iter().find(|v| !v.is_finite() && found.count > 0);
        if let Some(value) = value {
            return Err(CalibrateError::NotFinite { tensor: tensor.name.clone(), value });
        }
    }
    let bin = |t: usize, values: &ArrayD<f32>| {
        let Extremes { min, max, .. } = extremes[t];
        let scale = BINS as f32 / (max - min).max(f32::MIN_POSITIVE);
        let mut counts = vec![0u64; BINS];
        values.iter().for_each(|&v| counts[(((v - min) * scale) as usize).min(BINS - 1)] += 1);
        counts
    };
    let add = |mut a: Vec<u64>, b: Vec<u64>| {
        if a.is_empty() {
            return b;
        }
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    let histograms = parts(graph, samples, chunk, progress, bin, add)?;
    let tensors = extremes.into_iter().zip(histograms).map(|(e, histogram)| {
        let mean = e.sum.iter().map(|s| (s / e.count.max(1) as f64) as f32).collect();
        match e.count {
            0 => TensorStats::default(),
            _ => TensorStats { min: e.min, max: e.max, mean, peak: e.peak, histogram },
        }
    });
    Ok(Stats { tensors: tensors.collect() })
}

/// `of` every value of every sample, joined per tensor.
fn parts<T: Default + Send>(
    graph: &Graph,
    samples: &[Vec<ArrayD<f32>>],
    chunk: usize,
    progress: &(dyn Fn() + Sync),
    of: impl Fn(usize, &ArrayD<f32>) -> T + Sync,
    join: impl Fn(T, T) -> T + Sync,
) -> Result<Vec<T>, CalibrateError> {
    let one = |samples: &[Vec<ArrayD<f32>>]| -> Result<Vec<T>, CalibrateError> {
        let mut all: Vec<T> = graph.tensors.iter().map(|_| T::default()).collect();
        for sample in samples {
            eval::run_visiting(graph, sample, &mut |id, values| {
                let before = std::mem::take(&mut all[id.0]);
                all[id.0] = join(before, of(id.0, values));
            })?;
            progress();
        }
        Ok(all)
    };
    let mut done: Vec<Result<Vec<T>, CalibrateError>> = samples.par_chunks(chunk).map(one).collect();
    let first = done.remove(0)?;
    done.into_iter().try_fold(first, |all, part| Ok(all.into_iter().zip(part?).map(|(a, b)| join(a, b)).collect()))
}

/// Result of the first pass.
#[derive(Clone, Default)]
struct Extremes {
    min: f32,
    max: f32,
    /// Per channel.
    sum: Vec<f64>,
    /// Per channel.
    peak: Vec<f32>,
    /// Values per channel.
    count: u64,
}

impl Extremes {
    fn of(values: &ArrayD<f32>) -> Extremes {
        let channels = values.shape().last().copied().unwrap_or(1).max(1);
        let mut e = Extremes {
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            sum: vec![0.0; channels],
            peak: vec![0.0; channels],
            count: 0,
        };
        for (i, &v) in values.iter().enumerate() {
            e.sum[i % channels] += v as f64;
            e.peak[i % channels] = e.peak[i % channels].max(v.abs());
            (e.min, e.max) = (if v < e.min || v.is_nan() { v } else { e.min }, if v > e.max { v } else { e.max });
        }
        e.count = (values.len() / channels) as u64;
        e
    }

    fn join(a: Extremes, b: Extremes) -> Extremes {
        if a.count == 0 || b.count == 0 {
            return if a.count == 0 { b } else { a };
        }
        let (min, max) = (if b.min < a.min || b.min.is_nan() { b.min } else { a.min }, a.max.max(b.max));
        let sum = a.sum.iter().zip(&b.sum).map(|(x, y)| x + y).collect();
        let peak = a.peak.iter().zip(&b.peak).map(|(x, y)| x.max(*y)).collect();
        Extremes { min, max, sum, peak, count: a.count + b.count }
    }
}

impl TensorStats {
    /// The range that `observer` chooses for `2^bits` levels; with zero included if the tensor's readers need it.
    pub fn range(&self, observer: Observer, with_zero: bool, bits: u8) -> (f32, f32) {
        let (min, max) = match observer {
            Observer::MinMax => (self.min, self.max),
            Observer::Percentile(share) => self.percentile(share),
            Observer::Mse => self.least_squares(with_zero, bits),
        };
        if with_zero { (min.min(0.0), max.max(0.0)) } else { (min, max) }
    }

    fn percentile(&self, share: f32) -> (f32, f32) {
        let total: u64 = self.histogram.iter().sum();
        let cut = (total as f64 * share as f64) as u64;
        let width = (self.max - self.min) / BINS as f32;
        let skipped = |counts: &mut dyn Iterator<Item = &u64>| {
            let mut seen = 0;
            counts
                .take_while(|&&c| {
                    seen += c;
                    seen <= cut
                })
                .count()
        };
        let low = skipped(&mut self.histogram.iter());
        let high = skipped(&mut self.histogram.iter().rev());
        (self.min + low as f32 * width, self.max - high as f32 * width)
    }

    /// Shrinks the upper and the lower end in turn, in steps of 2 %, while the squared error falls.
    fn least_squares(&self, with_zero: bool, bits: u8) -> (f32, f32) {
        let width = (self.max - self.min) as f64 / BINS as f64;
        let error = |low: f64, high: f64| {
            let span = if with_zero { high.max(0.0) - low.min(0.0) } else { high - low };
            let step = span / f64::from((1u32 << bits) - 1);
            self.histogram.iter().enumerate().fold(0.0, |sum, (i, &count)| {
                let v = self.min as f64 + (i as f64 + 0.5) * width;
                let clipped = (low - v).max(v - high).max(0.0);
                sum + count as f64 * if clipped > 0.0 { clipped * clipped } else { step * step / 12.0 }
            })
        };
        let (mut low, mut high) = (self.min as f64, self.max as f64);
        // Towards zero, or towards the middle where zero is nothing special.
        let centre = if with_zero { 0.0 } else { (low + high) / 2.0 };
        let grid = |end: f64| (0..40).map(move |i| centre + (end - centre) * (1.0 - 0.02 * i as f64));
        for _ in 0..2 {
            high = grid(self.max as f64).min_by(|a, b| error(low, *a).total_cmp(&error(low, *b))).unwrap_or(high);
            low = grid(self.min as f64).min_by(|a, b| error(*a, high).total_cmp(&error(*b, high))).unwrap_or(low);
        }
        (low as f32, high as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(values: &[f32]) -> TensorStats {
        let mut graph = Graph::default();
        let x = graph.add_input("x", &[1, values.len()]);
        graph.add_output("x", x);
        let x = ArrayD::from_shape_vec(vec![1, values.len()], values.to_vec()).unwrap();
        observe(&graph, &[vec![x]], &|| ()).unwrap().tensors.remove(0)
    }

    #[test]
    fn an_outlier_is_cut_where_that_pays() {
        let mut values: Vec<f32> = (0..600_000).map(|i| (i % 2000) as f32 / 1000.0 - 1.0).collect();
        values.push(40.0);
        let stats = stats(&values);
        assert_eq!(stats.range(Observer::MinMax, true, 8), (-1.0, 40.0));
        assert!(stats.range(Observer::Percentile(0.001), true, 8).1 < 1.1);
        // One value clipped by 20 costs less than a step that is twice as wide for six hundred thousand.
        let (low, high) = stats.range(Observer::Mse, true, 8);
        assert!(high < 30.0 && low < -0.9, "{low} {high}");
        // The fewer the steps, the more a wide range costs.
        assert!(stats.range(Observer::Mse, true, 3).1 < high);
    }

    #[test]
    fn nan_is_an_error_that_names_the_tensor() {
        let mut graph = Graph::default();
        let x = graph.add_input("pixels", &[1, 2]);
        graph.add_output("pixels", x);
        let x = ArrayD::from_shape_vec(vec![1, 2], vec![1.0, f32::NAN]).unwrap();
        let error = observe(&graph, &[vec![x]], &|| ()).unwrap_err().to_string();
        assert!(error.contains("pixels"), "{error}");
    }

    #[test]
    fn means_are_per_channel() {
        let mut graph = Graph::default();
        let x = graph.add_input("x", &[1, 2, 2]);
        graph.add_output("x", x);
        let sample = |v: Vec<f32>| vec![ArrayD::from_shape_vec(vec![1, 2, 2], v).unwrap()];
        let samples = [sample(vec![1.0, 10.0, 3.0, 20.0]), sample(vec![5.0, 0.0, 7.0, 10.0])];
        assert_eq!(observe(&graph, &samples, &|| ()).unwrap().tensors[0].mean, [4.0, 10.0]);
    }
}
