//! Rounding that makes up for itself.
//!
//! With inputs of covariance `H` the squared error of a filter's output is `(q s - w)^T H (q s - w)`; its mean the bias takes. Weights are
//! rounded one after another, those with the liveliest inputs first, and after each the ones that are still to come move so that the error is least:
//! with `H^-1 = U^T U` (`U` upper triangular) the step is `e = (w_i - q_i s) / U_ii`, `w_j -= e U_ij` for `j > i`, and the error grows by `e^2`
//! ("GPTQ", Frantar et al., arXiv 2210.17323, algorithm 1; "Optimal Brain Compression", arXiv 2208.11580). The scale is the best of a grid by that error.

use super::{Granularity, QuantOptions, SchemeError};
use crate::calibrate::CalibrateError;
use crate::graph::{Graph, Node, Op, TensorId, eval};
use crate::least_squares::{cholesky, gather, groups, matrix, positions, substitute, weights};
use crate::prune::reconstruct::{Options, ReconstructError, Rows, reconstruct_then};
use ndarray::{Array1, Array2, ArrayD, Axis, IxDyn};
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Weights of a layer and their scales.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounded {
    /// In the shape of the op's own.
    pub values: ArrayD<i8>,
    /// Real value of a step, by filter.
    pub scales: Vec<f32>,
    /// Mean squared error of the layer's output by it, summed over the channels.
    pub error: f64,
    /// Biases that belong to it, where they are not the layer's own.
    pub bias: Option<Vec<f32>>,
}

/// Integers of layers as they are asked for, each computed once.
#[derive(Debug, Default)]
pub struct Rounding {
    inputs: Inputs,
    done: Mutex<HashMap<(TensorId, u8, Granularity), Arc<Rounded>>>,
}

impl Rounding {
    /// By what is known of the inputs; with none of them every weight is rounded to nearest, elsewhere.
    pub fn new(inputs: Inputs) -> Rounding {
        Rounding { inputs, done: Mutex::default() }
    }

    /// Layers below eight bits in the widths of `options`, from the inputs on: each is first fitted to what the float network computed from what the
    /// rounded layers before it give ([`crate::prune::reconstruct`]), then rounded. All others keep their weights.
    pub fn in_turn(
        graph: &Graph,
        samples: &[Vec<ArrayD<f32>>],
        options: &QuantOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Rounding, ReconstructError> {
        let mut done = HashMap::new();
        let mut round = |node: &Node, rows: Option<Vec<Rows>>| -> Option<Op> {
            let (bits, granularity) = options.of(node);
            let own = || graph.nodes.iter().find(|n| n.output == node.output).map(|n| n.op.clone());
            let k = weights(&node.op).map_or(0, |(w, b)| w.len() / b.len().max(1));
            let (Some(rows), true) = (rows, bits < 8 && k <= MOST) else { return own() };
            let factors: Option<Vec<Factor>> = rows.par_iter().map(|r| Factor::of(&r.covariance)).collect();
            let Some(factors) = factors else { return own() };
            let inputs = Inputs { layers: HashMap::from([(node.output, factors)]) };
            let Ok(Some(mut rounded)) = inputs.round(node, bits, granularity) else { return own() };
            let (mut op, count) = (node.op.clone(), rounded.scales.len() / rows.len().max(1));
            let (Op::Conv2d { weight, bias, .. }
            | Op::ConvTranspose2d { weight, bias, .. }
            | Op::Linear { weight, bias, .. }) = &mut op
            else {
                return own();
            };
            for (oc, bias) in bias.iter_mut().enumerate() {
                let (mut filter, values) = (weight.index_axis_mut(Axis(0), oc), rounded.values.index_axis(Axis(0), oc));
                filter.iter_mut().zip(values).for_each(|(w, &q)| *w = f32::from(q) * rounded.scales[oc]);
                let rows = &rows[oc / count.max(1)];
                let sum: f64 = filter.iter().zip(&rows.inputs).map(|(&w, x)| f64::from(w) * x).sum();
                *bias = (rows.targets[oc % count.max(1)] - sum) as f32;
            }
            rounded.bias = Some(bias.clone());
            done.insert((node.output, bits, granularity), Arc::new(rounded));
            Some(op)
        };
        reconstruct_then(graph, graph, samples, &Options::default(), progress, &mut round)?;
        Ok(Rounding { inputs: Inputs::default(), done: Mutex::new(done) })
    }

    /// The weights of a node in so many bits; none where the inputs are not known.
    pub fn of(&self, node: &Node, bits: u8, granularity: Granularity) -> Result<Option<Arc<Rounded>>, SchemeError> {
        let key = (node.output, bits, granularity);
        let known = |done: &Mutex<HashMap<_, _>>| done.lock().ok().and_then(|done| done.get(&key).cloned());
        if let Some(found) = known(&self.done) {
            return Ok(Some(found));
        }
        if !self.inputs.layers.contains_key(&node.output) {
            return Ok(None);
        }
        let rounded = self.inputs.round(node, bits, granularity)?.map(Arc::new);
        if let (Ok(mut done), Some(rounded)) = (self.done.lock(), &rounded) {
            done.insert(key, rounded.clone());
        }
        Ok(rounded)
    }
}

/// What rounding must know of the inputs of every layer, by the layer's output.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    layers: HashMap<TensorId, Vec<Factor>>,
}

/// Inputs of a group's filters.
#[derive(Clone, Debug)]
struct Factor {
    /// Weights in the order of their rounding.
    order: Vec<usize>,
    /// `U`, in that order.
    upper: Array2<f64>,
}

/// Rows of inputs that a layer is judged by, spread evenly over samples and positions.
const ROWS: usize = 20_000;

/// Weights of a filter above which rounding is to nearest: the work grows with the cube.
const MOST: usize = 2_048;

/// Added to variances, as a share of their mean.
const DAMP: f64 = 0.01;

/// Parts that samples are divided into; sums are joined in order.
const PARTS: usize = 8;

/// Clips that are tried: the largest weight times `1 - i / GRID`, down to a quarter.
const GRID: usize = 32;

/// Sums over rows of inputs.
struct Sums {
    rows: f64,
    gram: Array2<f64>,
    sum: Array1<f64>,
}

impl Inputs {
    /// Runs the samples, inputs in graph axes.
    pub fn observe(
        graph: &Graph,
        samples: &[Vec<ArrayD<f32>>],
        progress: &(dyn Fn() + Sync),
    ) -> Result<Inputs, CalibrateError> {
        if samples.is_empty() {
            return Err(CalibrateError::Empty);
        }
        let is_judged = |n: &&Node| weights(&n.op).is_some_and(|(w, b)| w.len() / b.len().max(1) <= MOST);
        let nodes: Vec<&Node> = graph.nodes.iter().filter(is_judged).collect();
        let rows = (ROWS / samples.len()).max(1);
        let chunk = samples.len().div_ceil(PARTS);
        let part = |(p, part): (usize, &[Vec<ArrayD<f32>>])| -> Result<Vec<Vec<Sums>>, CalibrateError> {
            let mut all: Vec<Vec<Sums>> = nodes.iter().map(|n| Sums::of(&n.op)).collect();
            for (i, sample) in part.iter().enumerate() {
                let mut add = |id: TensorId, value: &ArrayD<f32>| {
                    for (node, sums) in nodes.iter().zip(&mut all).filter(|(n, _)| n.inputs[0] == id) {
                        let out = graph.shape(node.output);
                        let at = positions(out, p * chunk + i, rows);
                        for (group, sums) in sums.iter_mut().enumerate() {
                            sums.add(&gather(&node.op, value, out, group, &at));
                        }
                    }
                };
                eval::run_visiting(graph, sample, &mut add)?;
                progress();
            }
            Ok(all)
        };
        let mut parts: Vec<_> = samples.par_chunks(chunk).enumerate().map(part).collect();
        let first = parts.remove(0)?;
        let join = |all: Vec<Vec<Sums>>, part: Result<Vec<Vec<Sums>>, CalibrateError>| {
            let join = |(a, b): (Vec<Sums>, Vec<Sums>)| a.into_iter().zip(b).map(|(a, b)| a.join(b)).collect();
            Ok::<_, CalibrateError>(all.into_iter().zip(part?).map(join).collect())
        };
        let all: Vec<Vec<Sums>> = parts.into_iter().try_fold(first, join)?;
        let factors = |(node, sums): (&&Node, Vec<Sums>)| {
            let factors: Option<Vec<Factor>> = sums.par_iter().map(|s| Factor::of(&s.covariance())).collect();
            Some((node.output, factors?))
        };
        Ok(Inputs { layers: nodes.iter().zip(all).filter_map(factors).collect() })
    }

    /// The weights of a node in so many bits; none for a node without weights.
    pub fn round(&self, node: &Node, bits: u8, granularity: Granularity) -> Result<Option<Rounded>, SchemeError> {
        let Some((weight, bias)) = weights(&node.op) else { return Ok(None) };
        if weight.iter().any(|v| !v.is_finite()) {
            return Err(SchemeError::NotFinite { node: node.name.clone() });
        }
        let limit = ((1i32 << (bits - 1)) - 1) as f64;
        let (filters, k) = (matrix(&node.op, 0..bias.len()), weight.len() / bias.len().max(1));
        let own = bias.len() / groups(&node.op);
        let nearest = [Factor::identity(k)];
        let factors = self.layers.get(&node.output).map_or(&nearest[..], Vec::as_slice);
        let factor = |oc: usize| &factors[(oc / own.max(1)).min(factors.len() - 1)];
        let peak = |oc: usize| filters.row(oc).iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let peaks: Vec<f64> = match granularity {
            Granularity::Channel => (0..bias.len()).map(peak).collect(),
            Granularity::Tensor => vec![(0..bias.len()).map(peak).fold(0.0, f64::max); bias.len()],
        };
        // Eight bits have room for the largest.
        let clips = if bits == 8 { 1 } else { GRID * 3 / 4 };
        let tried: Vec<Vec<(f64, f32, Vec<i8>)>> = (0..bias.len())
            .into_par_iter()
            .map(|oc| {
                let filter = filters.row(oc).to_vec();
                let at = |clip: usize| {
                    let scale = step(peaks[oc] * (1.0 - clip as f64 / GRID as f64) / limit);
                    let (error, values) = factor(oc).round(&filter, f64::from(scale), limit);
                    (error, scale, values)
                };
                (0..clips).map(at).collect()
            })
            .collect();
        let best = |errors: &dyn Fn(usize) -> f64| {
            (0..clips).min_by(|&a, &b| errors(a).total_cmp(&errors(b))).unwrap_or_default()
        };
        let together = best(&|clip| tried.iter().map(|t| t[clip].0).sum());
        let mut rounded =
            Rounded { values: ArrayD::zeros(weight.raw_dim()), scales: Vec::new(), error: 0.0, bias: None };
        let mut values = Vec::with_capacity(weight.len());
        for tried in tried {
            let clip = match granularity {
                Granularity::Channel => best(&|clip| tried[clip].0),
                Granularity::Tensor => together,
            };
            let (error, scale, own) = &tried[clip];
            values.extend_from_slice(own);
            rounded.scales.push(*scale);
            rounded.error += error;
        }
        if let Ok(values) = ArrayD::from_shape_vec(IxDyn(weight.shape()), values) {
            rounded.values = values;
        }
        Ok(Some(rounded))
    }
}

/// A scale that is stored as a float; filters of zeros have any.
fn step(scale: f64) -> f32 {
    if scale > 1e-30 { scale as f32 } else { 1.0 }
}

impl Sums {
    /// Empty ones of every group.
    fn of(op: &Op) -> Vec<Sums> {
        let k = weights(op).map_or(0, |(weight, bias)| weight.len() / bias.len().max(1));
        let empty = |_| Sums { rows: 0.0, gram: Array2::zeros((k, k)), sum: Array1::zeros(k) };
        (0..groups(op)).map(empty).collect()
    }

    fn add(&mut self, rows: &Array2<f64>) {
        self.rows += rows.nrows() as f64;
        self.gram += &rows.t().dot(rows);
        self.sum += &rows.sum_axis(Axis(0));
    }

    fn join(mut self, other: Sums) -> Sums {
        self.rows += other.rows;
        self.gram += &other.gram;
        self.sum += &other.sum;
        self
    }

    /// Around the mean, which the bias takes.
    fn covariance(&self) -> Array2<f64> {
        let n = self.rows.max(1.0);
        let mean = (&self.sum / n).insert_axis(Axis(1));
        &self.gram / n - mean.dot(&mean.t())
    }
}

impl Factor {
    /// Rounds to nearest.
    fn identity(k: usize) -> Factor {
        // No matrix: nothing moves.
        Factor { order: (0..k).collect(), upper: Array2::zeros((0, 0)) }
    }

    /// None where the inputs are not finite.
    fn of(covariance: &Array2<f64>) -> Option<Factor> {
        let k = covariance.nrows();
        let mean = covariance.diag().sum() / k.max(1) as f64;
        if !mean.is_finite() {
            return None;
        }
        if mean <= 1e-12 {
            return Some(Factor::identity(k));
        }
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|&a, &b| covariance[[b, b]].total_cmp(&covariance[[a, a]]).then(a.cmp(&b)));
        let mut h = covariance.select(Axis(0), &order).select(Axis(1), &order);
        h.diag_mut().iter_mut().for_each(|v| *v += DAMP * mean);
        cholesky(&mut h)?;
        let columns: Vec<Vec<f64>> = (0..k)
            .into_par_iter()
            .map(|i| {
                let mut unit = vec![0.0; k];
                unit[i] = 1.0;
                substitute(&h, &mut unit);
                unit
            })
            .collect();
        let mut inverse = Array2::from_shape_fn((k, k), |(i, j)| (columns[i][j] + columns[j][i]) / 2.0);
        cholesky(&mut inverse)?;
        Some(Factor { order, upper: inverse.t().as_standard_layout().into_owned() })
    }

    /// Error and integers of a filter; zeros stay zeros.
    fn round(&self, filter: &[f64], scale: f64, limit: f64) -> (f64, Vec<i8>) {
        let mut left: Vec<f64> = self.order.iter().map(|&i| filter[i]).collect();
        let mut values = vec![0i8; filter.len()];
        let mut error = 0.0;
        for (i, &at) in self.order.iter().enumerate() {
            // What was pruned stays away.
            let value = if filter[at] == 0.0 { 0.0 } else { (left[i] / scale).round().clamp(-limit, limit) };
            values[at] = value as i8;
            let miss = left[i] - value * scale;
            if self.upper.is_empty() {
                error += miss * miss;
                continue;
            }
            let row = self.upper.row(i);
            let e = miss / row[i];
            error += e * e;
            let row = row.to_slice().unwrap_or(&[]);
            left[i + 1..].iter_mut().zip(&row[i + 1..]).for_each(|(w, u)| *w -= e * u);
        }
        (error, values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Clamp;
    use crate::random::Random;

    /// A linear layer whose inputs are mixtures of a few, and samples of them.
    fn case(seed: u64) -> (Graph, Vec<Vec<ArrayD<f32>>>) {
        let (k, oc) = (24, 8);
        let mut random = Random::new(seed, 0);
        let mut normal = |shape: &[usize]| ArrayD::from_shape_simple_fn(IxDyn(shape), || random.normal());
        let (mix, weight) = (normal(&[6, k]), normal(&[oc, k]));
        let sample = |_| {
            let (hidden, noise) = (normal(&[6]), normal(&[k]));
            let x = |i: usize| (0..6).map(|j| hidden[j] * mix[[j, i]]).sum::<f32>() + 0.1 * noise[i];
            vec![ArrayD::from_shape_fn(IxDyn(&[1, k]), |i| x(i[1]))]
        };
        let samples = (0..200).map(sample).collect();
        let mut graph = Graph::default();
        let x = graph.add_input("x", &[1, k]);
        let op = Op::Linear { weight, bias: vec![0.0; oc], clamp: Clamp::NONE };
        let y = graph.push("fc", op, &[x]).unwrap();
        graph.add_output("y", y);
        (graph, samples)
    }

    /// Variance of the output's error, summed over channels.
    fn error(graph: &Graph, samples: &[Vec<ArrayD<f32>>], rounded: &Rounded) -> f64 {
        let (weight, _) = weights(&graph.nodes[0].op).unwrap();
        let channel = |oc: usize| {
            let at = |s: &Vec<ArrayD<f32>>| -> f64 {
                let change = |i: usize| {
                    f64::from(rounded.values[[oc, i]]) * f64::from(rounded.scales[oc]) - f64::from(weight[[oc, i]])
                };
                s[0].iter().enumerate().map(|(i, &x)| f64::from(x) * change(i)).sum()
            };
            let errors: Vec<f64> = samples.iter().map(at).collect();
            let mean = errors.iter().sum::<f64>() / errors.len() as f64;
            errors.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / errors.len() as f64
        };
        (0..rounded.scales.len()).map(channel).sum()
    }

    #[test]
    fn errors_are_those_of_the_output_and_far_below_rounding_to_nearest() {
        for seed in 0..5 {
            let (graph, samples) = case(seed);
            let inputs = Inputs::observe(&graph, &samples, &|| ()).unwrap();
            for granularity in [Granularity::Channel, Granularity::Tensor] {
                for bits in [2, 3, 4, 8] {
                    let good = inputs.round(&graph.nodes[0], bits, granularity).unwrap().unwrap();
                    let plain = Inputs::default().round(&graph.nodes[0], bits, granularity).unwrap().unwrap();
                    let limit = (1i16 << (bits - 1)) - 1;
                    assert!(good.values.iter().all(|&v| i16::from(v).abs() <= limit));
                    let [got, nearest] = [&good, &plain].map(|r| error(&graph, &samples, r));
                    // What is promised holds all but what damping adds.
                    assert!(got <= 1.001 * good.error, "{bits} bits: {got}, promised {}", good.error);
                    assert!(got < 0.6 * nearest, "{bits} bits: {got} against {nearest}");
                }
            }
        }
    }

    #[test]
    fn constant_inputs_and_zero_filters_round_to_nearest() {
        let (mut graph, mut samples) = case(9);
        samples.iter_mut().for_each(|s| s[0].fill(1.0));
        if let Op::Linear { weight, .. } = &mut graph.nodes[0].op {
            weight.index_axis_mut(Axis(0), 2).fill(0.0);
        }
        let inputs = Inputs::observe(&graph, &samples, &|| ()).unwrap();
        let rounded = inputs.round(&graph.nodes[0], 4, Granularity::Channel).unwrap().unwrap();
        let plain = Inputs::default().round(&graph.nodes[0], 4, Granularity::Channel).unwrap().unwrap();
        assert_eq!(rounded.values, plain.values);
        assert!(rounded.values.index_axis(Axis(0), 2).iter().all(|&v| v == 0));
        assert_eq!(rounded.scales[2], 1.0);
    }

    #[test]
    fn no_samples_and_no_numbers_are_errors() {
        let (mut graph, samples) = case(1);
        assert!(Inputs::observe(&graph, &[], &|| ()).is_err());
        let inputs = Inputs::observe(&graph, &samples, &|| ()).unwrap();
        if let Op::Linear { weight, .. } = &mut graph.nodes[0].op {
            weight[[1, 1]] = f32::NAN;
        }
        let error = inputs.round(&graph.nodes[0], 4, Granularity::Channel).unwrap_err();
        assert!(error.to_string().contains("'fc'"), "{error}");
    }
}
