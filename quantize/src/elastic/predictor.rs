//! What accuracy a sub-network has, learned from some of them (CQAP, "EQ-Net", section 3.4): a perceptron reads the forms of all layers.
//!
//! The input is a one-hot width, and the two traits, of every layer whose form is chosen. The authors' conditions hold for a whole network; ours are
//! traits of layers. What layers lose adds up in the main: a ridge regression takes that, and the perceptron learns what is left, so that hundreds of
//! sub-networks do where the authors measure thousands.

use super::{ElasticError, Form};
use crate::data::Targets;
use crate::graph::{Clamp, Graph, Op};
use crate::least_squares::{cholesky, substitute};
use crate::random::Random;
use crate::scheme::Granularity;
use crate::train::{Batch, Data, Device, Hooks, Moments, Net, Session, TrainError, TrainOptions};
use ndarray::{Array2, ArrayD, IxDyn};
use std::sync::atomic::AtomicBool;

/// Hidden layers and their width.
const HIDDEN: [usize; 2] = [64, 64];

/// Steps of training, and sub-networks of a step.
const STEPS: usize = 600;
const BATCH: usize = 64;

/// Added to the squares of features, in sub-networks.
const RIDGE: f64 = 0.5;

/// Every so many sub-networks one is held out.
const HELD_OUT: usize = 5;

/// Numbers that a form is.
const FEATURES: usize = 9;

/// A trained predictor.
#[derive(Debug)]
pub struct Predictor {
    net: Net,
    theta: Vec<f32>,
    moments: Moments,
    /// Mean score, what features add to it, and the size of what the perceptron adds.
    mean: f64,
    linear: Vec<f64>,
    deviation: f64,
}

/// How well sub-networks that were held out are predicted.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Quality {
    /// Linear correlation of predicted and measured scores.
    pub pearson: f64,
    /// Rank correlation (tau-b).
    pub kendall: f64,
    /// Sub-networks that it was learned from.
    pub learned: usize,
    /// Sub-networks that were held out.
    pub held_out: usize,
}

/// What the predictor reads of a sub-network.
pub fn features(forms: &[Form]) -> Vec<f32> {
    let mut all = vec![0.0; forms.len() * FEATURES];
    for (own, form) in all.chunks_exact_mut(FEATURES).zip(forms) {
        own[usize::from(form.bits - 2)] = 1.0;
        own[7] = f32::from(u8::from(form.granularity == Granularity::Channel));
        own[8] = f32::from(u8::from(form.symmetric));
    }
    all
}

impl Predictor {
    /// Learns from measured sub-networks, of which a fifth is held out.
    pub fn fit(
        choices: &[Vec<Form>],
        scores: &[f64],
        seed: u64,
        stop: &AtomicBool,
    ) -> Result<(Predictor, Quality), ElasticError> {
        let split = |held_out: bool| -> Vec<usize> {
            (0..choices.len()).filter(|i| (i % HELD_OUT == HELD_OUT - 1) == held_out).collect()
        };
        let (learned, held_out) = (split(false), split(true));
        let n = learned.len().max(1) as f64;
        let mean = learned.iter().map(|&i| scores[i]).sum::<f64>() / n;
        let inputs: Vec<Vec<f32>> = choices.iter().map(|forms| features(forms)).collect();
        let rows: Vec<&[f32]> = learned.iter().map(|&i| inputs[i].as_slice()).collect();
        let linear = ridge(&rows, &learned.iter().map(|&i| scores[i] - mean).collect::<Vec<_>>());
        let rest: Vec<f64> = learned.iter().map(|&i| scores[i] - mean - dot(&linear, &inputs[i])).collect();
        let deviation = (rest.iter().map(|r| r * r).sum::<f64>() / n).sqrt().max(1e-9);
        let row = |i: usize| ArrayD::from_shape_vec(IxDyn(&[1, inputs[i].len()]), inputs[i].clone());
        let samples: Vec<Vec<ArrayD<f32>>> = learned.iter().filter_map(|&i| Some(vec![row(i).ok()?])).collect();
        let wanted: Vec<f32> = rest.iter().map(|r| (r / deviation) as f32).collect();
        let wanted = ArrayD::from_shape_vec(IxDyn(&[wanted.len(), 1]), wanted).map_err(|_| TrainError::Empty)?;
        let targets = Targets::Values(vec![wanted]);
        let data = Data { samples: &samples, targets: Some(&targets), affine: None };
        let epochs = STEPS.div_ceil(samples.len().div_ceil(BATCH).max(1));
        let options = TrainOptions { epochs, batch: BATCH, rate: Some(1e-3), seed, ..TrainOptions::default() };
        let graph = perceptron(inputs.first().map_or(0, Vec::len), seed).ok_or(TrainError::Empty)?;
        let mut session = Session::new(&graph, &options, &Device::cpu())?;
        let mut hooks = Hooks { step: &mut |_| (), report: &|_| (), stop, checkpoint: None };
        session.run(&data, None, &mut hooks)?;
        let predictor = Predictor {
            net: Net::new(&graph, &Device::cpu())?,
            theta: session.theta.clone(),
            moments: session.moments.clone(),
            mean,
            linear,
            deviation,
        };
        let predicted: Vec<f64> = held_out.iter().map(|&i| predictor.predict(&choices[i])).collect();
        let measured: Vec<f64> = held_out.iter().map(|&i| scores[i]).collect();
        let quality = Quality {
            pearson: pearson(&predicted, &measured),
            kendall: kendall(&predicted, &measured),
            learned: learned.len(),
            held_out: held_out.len(),
        };
        Ok((predictor, quality))
    }

    /// The score of a sub-network.
    pub fn predict(&self, forms: &[Form]) -> f64 {
        let input = features(forms);
        let linear = dot(&self.linear, &input);
        let outputs = self.net.predict(&self.theta, &self.moments, &Batch { size: 1, inputs: vec![input] });
        let value = outputs.first().and_then(|o| o.first()).copied().unwrap_or(0.0);
        self.mean + linear + self.deviation * f64::from(value)
    }
}

fn dot(linear: &[f64], input: &[f32]) -> f64 {
    linear.iter().zip(input).map(|(a, b)| a * f64::from(*b)).sum()
}

/// `(X^T X + RIDGE I)^-1 X^T y`.
fn ridge(rows: &[&[f32]], y: &[f64]) -> Vec<f64> {
    let k = rows.first().map_or(0, |r| r.len());
    let mut squares = Array2::from_diag_elem(k, RIDGE);
    let mut products = vec![0.0; k];
    for (row, y) in rows.iter().zip(y) {
        // One-hot features: most are zero.
        for (i, &a) in row.iter().enumerate().filter(|(_, a)| **a != 0.0) {
            products[i] += f64::from(a) * y;
            row.iter().enumerate().for_each(|(j, &b)| squares[[i, j]] += f64::from(a * b));
        }
    }
    if cholesky(&mut squares).is_none() {
        return vec![0.0; k];
    }
    substitute(&squares, &mut products);
    products
}

/// A perceptron with random weights.
fn perceptron(inputs: usize, seed: u64) -> Option<Graph> {
    let mut random = Random::new(seed, 77);
    let mut graph = Graph { name: "predictor".into(), ..Graph::default() };
    let mut x = graph.add_input("forms", &[1, inputs]);
    let mut k = inputs;
    let widths: Vec<usize> = HIDDEN.into_iter().chain([1]).collect();
    for (i, &n) in widths.iter().enumerate() {
        let size = (2.0 / k.max(1) as f32).sqrt();
        let weight = ArrayD::from_shape_simple_fn(IxDyn(&[n, k]), || size * random.normal());
        let clamp = if i + 1 == widths.len() { Clamp::NONE } else { Clamp::RELU };
        x = graph.push(format!("layer{i}"), Op::Linear { weight, bias: vec![0.0; n], clamp }, &[x]).ok()?;
        k = n;
    }
    graph.add_output("score", x);
    Some(graph)
}

/// Linear correlation.
pub fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len().max(1) as f64;
    let mean = |v: &[f64]| v.iter().sum::<f64>() / n;
    let (ma, mb) = (mean(a), mean(b));
    let sum = |f: &dyn Fn(f64, f64) -> f64| a.iter().zip(b).map(|(&x, &y)| f(x - ma, y - mb)).sum::<f64>();
    let scale = (sum(&|x, _| x * x) * sum(&|_, y| y * y)).sqrt();
    if scale > 0.0 { sum(&|x, y| x * y) / scale } else { 0.0 }
}

/// Kendall's tau-b: pairs in the same order less pairs in another, where ties count for neither.
pub fn kendall(a: &[f64], b: &[f64]) -> f64 {
    let (mut same, mut other, mut ties_a, mut ties_b) = (0u64, 0u64, 0u64, 0u64);
    for i in 0..a.len() {
        for j in 0..i {
            match ((a[i] - a[j]).total_cmp(&0.0) as i8) * ((b[i] - b[j]).total_cmp(&0.0) as i8) {
                1 => same += 1,
                -1 => other += 1,
                _ => {
                    ties_a += u64::from(a[i] == a[j]);
                    ties_b += u64::from(b[i] == b[j]);
                }
            }
        }
    }
    let n = (a.len() * a.len().saturating_sub(1) / 2) as f64;
    let scale = ((n - ties_a as f64) * (n - ties_b as f64)).sqrt();
    if scale > 0.0 { (same as f64 - other as f64) / scale } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlations() {
        let a = [1.0, 2.0, 3.0, 4.0];
        assert!((pearson(&a, &[2.0, 4.0, 6.0, 8.0]) - 1.0).abs() < 1e-12);
        assert!((kendall(&a, &[1.0, 4.0, 9.0, 16.0]) - 1.0).abs() < 1e-12);
        assert!((kendall(&a, &[4.0, 3.0, 2.0, 1.0]) + 1.0).abs() < 1e-12);
        // One swapped pair of six; a tie takes a pair out of one side.
        assert!((kendall(&a, &[1.0, 3.0, 2.0, 4.0]) - 4.0 / 6.0).abs() < 1e-12);
        assert!((kendall(&a, &[1.0, 1.0, 2.0, 3.0]) - 5.0 / (30.0f64).sqrt()).abs() < 1e-12);
        assert_eq!(pearson(&a, &[5.0; 4]), 0.0);
    }

    /// A score that adds up over layers is learned from a few hundred.
    #[test]
    fn learns_a_sum() {
        let mut random = Random::new(5, 0);
        let choices: Vec<Vec<Form>> = (0..200)
            .map(|_| {
                let form = |bits: u8| Form { bits, granularity: Granularity::Channel, symmetric: true };
                (0..5).map(|_| form(2 + random.below(7) as u8)).collect()
            })
            .collect();
        let score = |forms: &Vec<Form>| {
            0.9 - forms.iter().enumerate().map(|(i, f)| 0.05 * (i + 1) as f64 / f64::from(f.bits).powi(2)).sum::<f64>()
        };
        let scores: Vec<f64> = choices.iter().map(score).collect();
        let (_, quality) = Predictor::fit(&choices, &scores, 1, &AtomicBool::new(false)).unwrap();
        assert!(quality.pearson > 0.99 && quality.kendall > 0.9, "{quality:?}");
    }
}
