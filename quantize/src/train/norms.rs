//! Batch norms for the time of training.
//!
//! Exported networks often have theirs folded into the weights. What is left trains badly: weights have the scale of whatever batch norm and input they were
//! folded with, and nothing holds the moments of activations while groups vanish or weights get coarser. So every layer but those that give the
//! outputs gets one again: its bias and its clamp move behind a batch norm that at first changes nothing, and its weights, whose scale is then free,
//! are brought to the size that a step is made for. [`Normed::fold`] takes the batch norms out again.

use super::Data;
use crate::graph::fold::batch_norm;
use crate::graph::scalar::Unary;
use crate::graph::{Clamp, Graph, Node, Op, ScalarFn, TensorId, eval, trainable};
use ndarray::{ArrayD, Axis};
use rayon::prelude::*;

/// Samples that first moments are taken from.
const SAMPLES: usize = 256;

/// Parts that samples are divided into; sums are joined in order.
const PARTS: usize = 8;

const EPSILON: f32 = 1e-3;

/// What weights share a scale that is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Those of a layer: filters keep their sizes among one another.
    Layer,
    /// Those of a filter.
    Filter,
}

/// A network with batch norms.
#[derive(Clone, Debug)]
pub struct Normed {
    /// The same function, up to what the samples say of the moments.
    pub graph: Graph,
    /// Batch norms that were not there before.
    names: Vec<String>,
}

/// Puts batch norms behind the layers of a graph from [`trainable`] or [`crate::graph::simplify`] that have none.
pub fn with_norms(graph: &Graph, data: &Data<'_>, balance: Balance) -> Result<Normed, eval::EvalError> {
    let mut graph = graph.clone();
    // Clamps apart, so that what comes before them can be seen.
    for i in bare(&graph).into_iter().rev() {
        split_clamp(&mut graph, i);
    }
    let layers = bare(&graph);
    if layers.is_empty() {
        return Ok(Normed { graph, names: Vec::new() });
    }
    let names = layers.iter().map(|&i| norm_name(&graph, i)).collect();
    let moments = moments(&graph, &layers, data)?;
    for (&i, moments) in layers.iter().zip(moments).rev() {
        let factors = resize(&mut graph.nodes[i].op, balance);
        insert_norm(&mut graph, i, &moments, &factors);
    }
    Ok(Normed { graph: graph.compact().in_standard_layout(), names })
}

impl Normed {
    /// Takes the batch norms that were put in out of what has become of the network.
    pub fn fold(&self, mut graph: Graph) -> Graph {
        for i in 0..graph.nodes.len() {
            if self.names.contains(&graph.nodes[i].name) {
                batch_norm(&mut graph, i);
            }
        }
        if self.names.is_empty() { graph } else { trainable(graph) }
    }
}

/// Layers without a batch norm that do not give an output.
fn bare(graph: &Graph) -> Vec<usize> {
    let is_normed = |i: usize| {
        let readers = graph.consumers(graph.nodes[i].output);
        readers.iter().any(|&r| matches!(graph.nodes[r].op, Op::BatchNorm { .. }))
    };
    let is_bare = |&i: &usize| is_layer(&graph.nodes[i].op) && !is_normed(i) && !gives_output(graph, i);
    (0..graph.nodes.len()).filter(is_bare).collect()
}

/// Whether a node has weights that a step is taken on.
pub fn is_layer(op: &Op) -> bool {
    crate::least_squares::weights(op).is_some()
}

/// Whether a layer's output reaches an output of the network through operators that have no weights of their own.
fn gives_output(graph: &Graph, layer: usize) -> bool {
    let mut id = graph.nodes[layer].output;
    loop {
        if graph.is_output(id) {
            return true;
        }
        let [next] = graph.consumers(id)[..] else { return false };
        let node = &graph.nodes[next];
        if !matches!(
            node.op,
            Op::Softmax { .. } | Op::Reshape { .. } | Op::Map(_) | Op::Transpose { .. } | Op::Concat { .. }
        ) {
            return false;
        }
        id = node.output;
    }
}

fn clamp_mut(op: &mut Op) -> Option<&mut Clamp> {
    match op {
        Op::Conv2d { clamp, .. } | Op::ConvTranspose2d { clamp, .. } | Op::Linear { clamp, .. } => Some(clamp),
        _ => None,
    }
}

/// A node right behind node `i`, on all of its output that is read.
fn insert_behind(graph: &mut Graph, i: usize, name: String, op: Op) {
    let from = graph.nodes[i].output;
    let shape = graph.shape(from).to_vec();
    let to = graph.add_tensor(name.clone(), &shape);
    graph.redirect(from, to);
    graph.nodes.insert(i + 1, Node { name, op, inputs: vec![from], output: to });
}

fn split_clamp(graph: &mut Graph, i: usize) {
    let Some(clamp) = clamp_mut(&mut graph.nodes[i].op).map(|c| std::mem::replace(c, Clamp::NONE)) else { return };
    if clamp != Clamp::NONE {
        let name = format!("{}/clamp", graph.nodes[i].name);
        insert_behind(graph, i, name, Op::Map(ScalarFn::unary(Unary::Clamp(clamp))));
    }
}

/// Mean and variance of every channel.
type Moments = Vec<(f64, f64)>;

/// Divides filters so that the variance of their inputs comes out as it goes in; returns the divisors.
fn resize(op: &mut Op, balance: Balance) -> Vec<f64> {
    let (Op::Conv2d { weight, .. } | Op::ConvTranspose2d { weight, .. } | Op::Linear { weight, .. }) = op else {
        return Vec::new();
    };
    // A sum of squares of 1 per filter.
    let squares: Vec<f64> =
        weight.axis_iter(Axis(0)).map(|f| f.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>()).collect();
    let mean = squares.iter().sum::<f64>() / squares.len().max(1) as f64;
    let size = |own: f64| if own > 1e-24 { own.sqrt() } else { 1.0 };
    let factors: Vec<f64> = squares
        .iter()
        .map(|&own| match balance {
            Balance::Layer => size(mean),
            Balance::Filter => size(own),
        })
        .collect();
    for (mut filter, &factor) in weight.axis_iter_mut(Axis(0)).zip(&factors) {
        filter.mapv_inplace(|w| (f64::from(w) / factor) as f32);
    }
    factors
}

fn norm_name(graph: &Graph, i: usize) -> String {
    format!("{}/norm", graph.nodes[i].name)
}

/// A batch norm that undoes `factors`, by which filters were divided, and adds their biases; `moments` are those before the division.
fn insert_norm(graph: &mut Graph, i: usize, moments: &Moments, factors: &[f64]) {
    let name = norm_name(graph, i);
    let (Op::Conv2d { bias, .. } | Op::ConvTranspose2d { bias, .. } | Op::Linear { bias, .. }) = &mut graph.nodes[i].op
    else {
        return;
    };
    let old = std::mem::replace(bias, vec![0.0; moments.len()]);
    let epsilon = f64::from(EPSILON);
    let op = Op::BatchNorm {
        gamma: moments.iter().zip(factors).map(|((_, var), f)| (var + epsilon * f * f).sqrt() as f32).collect(),
        beta: moments.iter().map(|(mean, _)| *mean as f32).collect(),
        mean: moments.iter().zip(factors).zip(&old).map(|(((m, _), f), b)| ((m - f64::from(*b)) / f) as f32).collect(),
        var: moments.iter().zip(factors).map(|((_, var), f)| (var / (f * f)) as f32).collect(),
        epsilon: EPSILON,
    };
    insert_behind(graph, i, name, op);
}

/// Moments of the layers' outputs, by layer and channel.
fn moments(graph: &Graph, layers: &[usize], data: &Data<'_>) -> Result<Vec<Moments>, eval::EvalError> {
    let picked = data.spaced(SAMPLES);
    let outputs: Vec<TensorId> = layers.iter().map(|&i| graph.nodes[i].output).collect();
    let channels = |k: usize| graph.shape(outputs[k]).last().copied().unwrap_or(1);
    let empty = || (0..outputs.len()).map(|k| vec![[0.0f64; 2]; channels(k)]).collect::<Vec<_>>();
    let part = |part: &[usize]| -> Result<Vec<Vec<[f64; 2]>>, eval::EvalError> {
        let mut sums = empty();
        for &i in part {
            let mut add = |id: TensorId, value: &ArrayD<f32>| {
                let Some(k) = outputs.iter().position(|o| *o == id) else { return };
                let c = channels(k);
                for (j, &v) in value.iter().enumerate() {
                    let v = f64::from(v);
                    let sum = &mut sums[k][j % c];
                    *sum = [sum[0] + v, sum[1] + v * v];
                }
            };
            eval::run_visiting(graph, &data.sample(i), &mut add)?;
        }
        Ok(sums)
    };
    let chunk = picked.len().div_ceil(PARTS).max(1);
    let parts: Vec<_> = picked.par_chunks(chunk).map(part).collect::<Result<_, _>>()?;
    let mut all = empty();
    for part in parts {
        let pairs = all.iter_mut().flatten().zip(part.into_iter().flatten());
        pairs.for_each(|(all, one)| *all = [all[0] + one[0], all[1] + one[1]]);
    }
    let finish = |(k, sums): (usize, Vec<[f64; 2]>)| {
        let positions = graph.shape(outputs[k]).iter().product::<usize>() / channels(k).max(1) * picked.len();
        let n = positions.max(1) as f64;
        sums.into_iter().map(|[sum, squares]| (sum / n, (squares / n - (sum / n).powi(2)).max(0.0))).collect()
    };
    Ok(all.into_iter().enumerate().map(finish).collect())
}
