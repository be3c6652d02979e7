//! Rounding that makes up for itself.
//!
//! With inputs of covariance `H` the squared error of a filter's output is `(q s - w)^T H (q s - w)`; its mean the bias takes. Weights are
//! rounded one after another, those with the liveliest inputs first, and after each the ones that are still to come move so that the error is least:
//! with `H^-1 = U^T U` (`U` upper triangular) the step is `e = (w_i - q_i s) / U_ii`, `w_j -= e U_ij` for `j > i`, and the error grows by `e^2`
//! ("GPTQ", Frantar et al., arXiv 2210.17323, algorithm 1; "Optimal Brain Compression", arXiv 2208.11580). The scale is the best of a grid by that error.
//!
//! Where bits have a price, because weights are coded afterwards, a weight may also take the next integer towards zero, or zero, and steps may be coarser:
//! what is least is the error plus the price of all bits, each integer's by its frequency in the layer (what DeepCABAC does for its own coder,
//! arXiv 1907.11900, here with errors that count as they reach the output).

use super::{Granularity, Levels, QuantOptions, SchemeError};
use crate::calibrate::CalibrateError;
use crate::graph::{Graph, Node, Op, TensorId, eval};
use crate::least_squares::{Moments, cholesky, gather, groups, matrix, positions, substitute, weights};
use crate::prune::reconstruct::{Options, ReconstructError, Rows, reconstruct_then};
use ndarray::{Array1, Array2, ArrayD, Axis, IxDyn};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
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

impl Rounded {
    /// The narrowest width that stores the values.
    pub fn bits(&self) -> u8 {
        let (min, max) = self.values.iter().fold((0i16, 0i16), |(lo, hi), &v| (lo.min(v.into()), hi.max(v.into())));
        (2..8).find(|b| min >= -(1 << (b - 1)) && max < 1 << (b - 1)).unwrap_or(8)
    }

    /// Whether a layer of a graph has these weights, up to float rounding.
    pub fn is_of(&self, graph: &Graph, name: &str) -> bool {
        let node = graph.nodes.iter().find(|n| n.name == name);
        let Some((weight, _)) = node.and_then(|n| weights(&n.op)) else { return false };
        let filters = self.values.axis_iter(Axis(0)).zip(weight.axis_iter(Axis(0))).zip(&self.scales);
        let mut alike = filters.map(|((values, filter), &scale)| {
            values.iter().zip(&filter).all(|(&q, &w)| (f32::from(q) * scale - w).abs() <= 1e-3 * scale)
        });
        weight.shape() == self.values.shape() && alike.all(|alike| alike)
    }
}

/// Integers of layers as they are asked for, each computed once. The default knows of none, so that all are rounded to nearest.
#[derive(Debug, Default)]
pub struct Rounding {
    inputs: Inputs,
    /// Layers that are integers already, by name.
    given: BTreeMap<String, Arc<Rounded>>,
    /// What they read, by name.
    activations: BTreeMap<String, Levels>,
    done: Mutex<HashMap<(TensorId, u8, Granularity), Arc<Rounded>>>,
}

impl Rounding {
    /// By what is known of the inputs.
    pub fn new(inputs: Inputs) -> Rounding {
        Rounding { inputs, ..Rounding::default() }
    }

    /// Layers that are integers already, by name, whatever their width, and the levels of what layers read: a sub-network's ([`crate::elastic`]).
    pub fn given(layers: BTreeMap<String, Rounded>, activations: BTreeMap<String, Levels>) -> Rounding {
        let given = layers.into_iter().map(|(name, rounded)| (name, Arc::new(rounded))).collect();
        Rounding { given, activations, ..Rounding::default() }
    }

    /// Whether levels of activations were given.
    pub fn has_activations(&self) -> bool {
        !self.activations.is_empty()
    }

    /// The levels of what a layer reads, where they were given.
    pub fn activation(&self, layer: &str) -> Option<Levels> {
        self.activations.get(layer).copied()
    }

    /// Whether layers were given.
    pub fn is_given(&self) -> bool {
        !self.given.is_empty()
    }

    /// Layers below eight bits, or all where bits have a price, in the widths of `options`, from the inputs on: each is first
    /// fitted to what the float network computed from what the rounded layers before it give ([`crate::prune::reconstruct`]),
    /// then rounded. All others keep their weights.
    pub fn in_turn(
        graph: &Graph,
        samples: &[Vec<ArrayD<f32>>],
        options: &QuantOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Rounding, ReconstructError> {
        let mut done = HashMap::new();
        let sizes: Vec<usize> = graph.nodes.iter().filter_map(|n| weights(&n.op)).map(|(w, _)| w.len()).collect();
        let mean = sizes.iter().sum::<usize>() as f64 / sizes.len().max(1) as f64;
        let mut round = |node: &Node, rows: Option<Vec<Rows>>| -> Option<Op> {
            let (bits, granularity) = options.of(node);
            let own = || graph.nodes.iter().find(|n| n.output == node.output).map(|n| n.op.clone());
            let k = weights(&node.op).map_or(0, |(w, b)| w.len() / b.len().max(1));
            let (Some(rows), true) = (rows, options.is_rounded(bits) && k <= MOST) else { return own() };
            let factors: Option<Vec<Factor>> = rows.par_iter().map(|r| Factor::of(&r.covariance)).collect();
            let Some(factors) = factors else { return own() };
            let inputs = Inputs { layers: HashMap::from([(node.output, factors)]) };
            let Ok(Some(mut rounded)) = inputs.round(node, bits, granularity, options.bit_price / mean) else {
                return own();
            };
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
        let mut progress = |done: usize, layers: usize| {
            progress(done, layers);
            ControlFlow::Continue(())
        };
        reconstruct_then(graph, graph, samples, &Options::default(), &mut progress, &mut round)?;
        Ok(Rounding { done: Mutex::new(done), ..Rounding::default() })
    }

    /// The weights of a node in so many bits; none where the inputs are not known.
    pub fn of(&self, node: &Node, bits: u8, granularity: Granularity) -> Result<Option<Arc<Rounded>>, SchemeError> {
        if let Some(given) = self.given.get(&node.name) {
            return Ok(Some(given.clone()));
        }
        let key = (node.output, bits, granularity);
        let known = |done: &Mutex<HashMap<_, _>>| done.lock().ok().and_then(|done| done.get(&key).cloned());
        if let Some(found) = known(&self.done) {
            return Ok(Some(found));
        }
        if !self.inputs.layers.contains_key(&node.output) {
            return Ok(None);
        }
        let rounded = self.inputs.round(node, bits, granularity, 0.0)?.map(Arc::new);
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
    /// `H` with what was added to its diagonal, in that order.
    covariance: Array2<f64>,
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

/// Steps of a quarter of an octave that are tried where bits have a price: up to 32 times the finest.
const COARSER: usize = 21;

/// Times that prices of integers are taken from what was chosen.
const PASSES: usize = 2;

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
        let part = |(p, part): (usize, &[Vec<ArrayD<f32>>])| -> Result<Vec<Vec<Moments>>, CalibrateError> {
            let mut all: Vec<Vec<Moments>> = nodes.iter().map(|n| empty(&n.op)).collect();
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
        let mut all = parts.remove(0)?;
        for part in parts {
            let pairs = all.iter_mut().flatten().zip(part?.into_iter().flatten());
            pairs.for_each(|(sums, more)| sums.join(&more));
        }
        let factors = |(node, sums): (&&Node, Vec<Moments>)| {
            let factors: Option<Vec<Factor>> = sums.par_iter().map(|s| Factor::of(&s.covariance())).collect();
            Some((node.output, factors?))
        };
        Ok(Inputs { layers: nodes.iter().zip(all).filter_map(factors).collect() })
    }

    /// The weights of a node in so many bits; none for a node without weights. `price` is that of a bit as a share of the energy of the outputs.
    pub fn round(
        &self,
        node: &Node,
        bits: u8,
        granularity: Granularity,
        price: f64,
    ) -> Result<Option<Rounded>, SchemeError> {
        let Some((weight, bias)) = weights(&node.op) else { return Ok(None) };
        if weight.iter().any(|v| !v.is_finite()) {
            return Err(SchemeError::NotFinite { node: node.name.clone() });
        }
        let k = weight.len() / bias.len().max(1);
        let nearest = [Factor::identity(k)];
        let layer = Layer {
            filters: matrix(&node.op, 0..bias.len()),
            own: (bias.len() / groups(&node.op)).max(1),
            factors: self.layers.get(&node.output).map_or(&nearest[..], Vec::as_slice),
            limit: ((1i32 << (bits - 1)) - 1) as f64,
            granularity,
        };
        let tried = if price > 0.0 { layer.at_a_price(price) } else { layer.round(Steps::Clips, None) };
        let mut rounded =
            Rounded { values: ArrayD::zeros(weight.raw_dim()), scales: Vec::new(), error: 0.0, bias: None };
        let mut values = Vec::with_capacity(weight.len());
        for filter in tried {
            values.extend_from_slice(&filter.values);
            rounded.scales.push(filter.scale);
            rounded.error += filter.error;
        }
        if let Ok(values) = ArrayD::from_shape_vec(IxDyn(weight.shape()), values) {
            rounded.values = values;
        }
        Ok(Some(rounded))
    }
}

/// A layer to be rounded.
struct Layer<'a> {
    filters: Array2<f64>,
    /// Filters of a group.
    own: usize,
    /// By group.
    factors: &'a [Factor],
    /// Largest integer.
    limit: f64,
    granularity: Granularity,
}

/// Steps that are tried.
#[derive(Clone, Copy)]
enum Steps {
    /// So that the largest weight has the largest integer, and finer ones that clip it.
    Clips,
    /// So that the largest weight has the largest integer, and coarser ones that leave integers unused, which a code makes nothing of.
    Coarser,
}

/// What a weight's bits cost.
struct Price {
    /// By integer, from -128 on.
    bits: Vec<f64>,
    /// Error that a bit is worth.
    of_a_bit: f64,
}

/// A filter as it was rounded.
#[derive(Clone)]
struct Filter {
    error: f64,
    /// With the price of its bits.
    cost: f64,
    scale: f32,
    values: Vec<i8>,
}

impl Layer<'_> {
    fn factor(&self, oc: usize) -> &Factor {
        &self.factors[(oc / self.own).min(self.factors.len() - 1)]
    }

    /// All filters, each at the best of the steps, or at the one that is best for all.
    fn round(&self, steps: Steps, price: Option<&Price>) -> Vec<Filter> {
        let peak = |oc: usize| self.filters.row(oc).iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let count = self.filters.nrows();
        let mut peaks: Vec<f64> = (0..count).map(peak).collect();
        if self.granularity == Granularity::Tensor {
            let largest = peaks.iter().copied().fold(0.0, f64::max);
            peaks.fill(largest);
        }
        let tries = match steps {
            // Eight bits have room for the largest.
            Steps::Clips if self.limit > 100.0 => 1,
            Steps::Clips => GRID * 3 / 4,
            Steps::Coarser => COARSER,
        };
        let factor = |i: usize| match steps {
            Steps::Clips => 1.0 - i as f64 / GRID as f64,
            Steps::Coarser => (i as f64 / 4.0).exp2(),
        };
        let tried: Vec<Vec<Filter>> = (0..count)
            .into_par_iter()
            .map(|oc| {
                let filter = self.filters.row(oc).to_vec();
                let at = |i: usize| {
                    let scale = step(peaks[oc] * factor(i) / self.limit);
                    self.factor(oc).round(&filter, scale, self.limit, price)
                };
                (0..tries).map(at).collect()
            })
            .collect();
        let best = |costs: &dyn Fn(usize) -> f64| {
            (0..tries).min_by(|&a, &b| costs(a).total_cmp(&costs(b))).unwrap_or_default()
        };
        let together = best(&|i| tried.iter().map(|t| t[i].cost).sum());
        let pick = |tried: Vec<Filter>| {
            let i = match self.granularity {
                Granularity::Channel => best(&|i| tried[i].cost),
                Granularity::Tensor => together,
            };
            tried[i].clone()
        };
        tried.into_iter().map(pick).collect()
    }

    /// With the price of a bit; what integers cost follows from how often they were chosen before.
    fn at_a_price(&self, price: f64) -> Vec<Filter> {
        let energy = |oc: usize| self.factor(oc).energy(&self.filters.row(oc).to_vec());
        let energy: f64 = (0..self.filters.nrows()).map(energy).sum();
        let of_a_bit = price * energy;
        // At first as if every doubling took two bits.
        let first = (-128..128i32).map(|v| 1.0 + 2.0 * f64::from(1 + v.abs()).log2()).collect();
        let mut price = Price { bits: first, of_a_bit };
        let mut found = self.round(Steps::Coarser, Some(&price));
        for _ in 0..PASSES {
            let mut counts = vec![0.2f64; 256];
            found.iter().flat_map(|f| &f.values).for_each(|&v| counts[(i32::from(v) + 128) as usize] += 1.0);
            let all: f64 = counts.iter().sum();
            price.bits = counts.into_iter().map(|n| (all / n).log2()).collect();
            found = self.round(Steps::Coarser, Some(&price));
        }
        found
    }
}

/// A scale that is stored as a float; filters of zeros have any.
fn step(scale: f64) -> f32 {
    if scale > 1e-30 { scale as f32 } else { 1.0 }
}

/// Empty sums of every group.
fn empty(op: &Op) -> Vec<Moments> {
    let k = weights(op).map_or(0, |(weight, bias)| weight.len() / bias.len().max(1));
    (0..groups(op)).map(|_| Moments::new(k)).collect()
}

impl Factor {
    /// Rounds to nearest.
    fn identity(k: usize) -> Factor {
        // No matrix: nothing moves.
        let none = Array2::zeros((0, 0));
        Factor { order: (0..k).collect(), upper: none.clone(), covariance: none }
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
        let covariance = h.clone();
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
        Some(Factor { order, upper: inverse.t().as_standard_layout().into_owned(), covariance })
    }

    /// Mean square of a filter's output around its mean.
    fn energy(&self, filter: &[f64]) -> f64 {
        if self.upper.is_empty() {
            return filter.iter().map(|w| w * w).sum();
        }
        let own = Array1::from_iter(self.order.iter().map(|&i| filter[i]));
        own.dot(&self.covariance.dot(&own))
    }

    /// A filter at a step; zeros stay zeros.
    fn round(&self, filter: &[f64], step: f32, limit: f64, price: Option<&Price>) -> Filter {
        let scale = f64::from(step);
        let mut left: Vec<f64> = self.order.iter().map(|&i| filter[i]).collect();
        let mut values = vec![0i8; filter.len()];
        let (mut error, mut bits) = (0.0, 0.0);
        for (i, &at) in self.order.iter().enumerate() {
            let row = if self.upper.is_empty() { None } else { self.upper.row(i).to_slice() };
            let unit = row.map_or(1.0, |row| row[i]);
            let nearest = (left[i] / scale).round().clamp(-limit, limit);
            let value = match price {
                // What was pruned stays away.
                _ if filter[at] == 0.0 => 0.0,
                None => nearest,
                Some(price) => {
                    let cost = |v: f64| {
                        ((left[i] - v * scale) / unit).powi(2) + price.of_a_bit * price.bits[(v + 128.0) as usize]
                    };
                    let closer = nearest - nearest.signum();
                    [nearest, closer, 0.0].into_iter().min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(nearest)
                }
            };
            values[at] = value as i8;
            bits += price.map_or(0.0, |price| price.bits[(value + 128.0) as usize]);
            let e = (left[i] - value * scale) / unit;
            error += e * e;
            if let Some(row) = row {
                left[i + 1..].iter_mut().zip(&row[i + 1..]).for_each(|(w, u)| *w -= e * u);
            }
        }
        let cost = error + price.map_or(0.0, |price| price.of_a_bit * bits);
        Filter { error, cost, scale: step, values }
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
                    let good = inputs.round(&graph.nodes[0], bits, granularity, 0.0).unwrap().unwrap();
                    let plain = Inputs::default().round(&graph.nodes[0], bits, granularity, 0.0).unwrap().unwrap();
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
    fn a_price_makes_integers_cheaper_and_errors_larger() {
        let entropy = |values: &ArrayD<i8>| {
            let mut counts = HashMap::new();
            values.iter().for_each(|&v| *counts.entry(v).or_insert(0.0) += 1.0);
            let n = values.len() as f64;
            counts.values().map(|c: &f64| c / n * (n / c).log2()).sum::<f64>()
        };
        let (mut graph, samples) = case(3);
        if let Op::Linear { weight, .. } = &mut graph.nodes[0].op {
            weight.index_axis_mut(Axis(0), 1).fill(0.0);
        }
        let inputs = Inputs::observe(&graph, &samples, &|| ()).unwrap();
        let round = |price: f64| inputs.round(&graph.nodes[0], 8, Granularity::Channel, price).unwrap().unwrap();
        let (mut bits, mut noise) = (8.0, round(0.0).error);
        for price in [1e-5, 1e-4, 1e-3] {
            let rounded = round(price);
            let (now, error) = (entropy(&rounded.values), error(&graph, &samples, &rounded));
            assert!(now < bits - 0.5, "{price}: {now} bits after {bits}");
            assert!(error > noise && error <= 1.001 * rounded.error, "{price}: {error} after {noise}");
            assert!(rounded.values.index_axis(Axis(0), 1).iter().all(|&v| v == 0));
            (bits, noise) = (now, error);
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
        let rounded = inputs.round(&graph.nodes[0], 4, Granularity::Channel, 0.0).unwrap().unwrap();
        let plain = Inputs::default().round(&graph.nodes[0], 4, Granularity::Channel, 0.0).unwrap().unwrap();
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
        let error = inputs.round(&graph.nodes[0], 4, Granularity::Channel, 0.0).unwrap_err();
        assert!(error.to_string().contains("'fc'"), "{error}");
    }
}
