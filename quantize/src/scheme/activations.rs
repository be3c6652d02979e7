//! Scales and zero points of activations.
//!
//! An activation of fewer than eight bits is an int8 whose operator stays within `2^bits` integers: a step of its own and a clamp, nothing that a kernel must know.

use super::{QParams, QuantOptions, RawPort, Rounding, params_of};
use crate::calibrate::{Observer, Stats};
use crate::graph::{Clamp, Graph, Op, TensorId};
use std::collections::BTreeMap;

/// Integers `lo ..= hi` of a step that an activation is limited to; zero is one of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Levels {
    /// Real value of a step.
    pub step: f32,
    /// Lowest, at most 0.
    pub lo: i32,
    /// Highest, less than 256 above.
    pub hi: i32,
}

impl Levels {
    /// As int8, the lowest at the bottom.
    fn params(self) -> QParams {
        QParams { scale: self.step, zero_point: -128 - self.lo }
    }

    fn clamp(self) -> Clamp {
        Clamp { min: self.step * self.lo as f32, max: self.step * self.hi as f32 }
    }

    /// Of a range that holds zero.
    fn of(min: f32, max: f32, bits: u8) -> Levels {
        let last = (1 << bits) - 1;
        let step = (max - min) / last as f32;
        let lo = ((min / step).round() as i32).clamp(-last, 0);
        Levels { step, lo, hi: lo + last }
    }
}

/// Everything about activations.
pub(super) struct Activations {
    /// The graph, without preprocessing that the inputs' parameters express.
    pub graph: Graph,
    /// By tensor id.
    pub params: Vec<QParams>,
    /// By input index.
    pub inputs: Vec<RawPort>,
    /// Mean per channel, by tensor id.
    pub means: Vec<Vec<f32>>,
}

/// The output of a softmax: probabilities in steps of 1/256.
const PROBABILITY: QParams = QParams { scale: 1.0 / 256.0, zero_point: -128 };

/// Chooses parameters for every tensor.
pub(super) fn assign(
    mut graph: Graph,
    stats: &Stats,
    options: &QuantOptions,
    observer: Observer,
    input_is_u8: &[bool],
    rounding: &Rounding,
) -> Activations {
    let mut fixed: Vec<Option<QParams>> = vec![None; graph.tensors.len()];
    let mut means: Vec<Vec<f32>> = stats.tensors.iter().map(|t| t.mean.clone()).collect();
    let mut inputs = Vec::new();
    for k in 0..graph.inputs.len() {
        let id = graph.inputs[k].tensor;
        let is_u8 = input_is_u8.get(k).copied().unwrap_or(false);
        let raw = match is_u8 {
            true => QParams { scale: 1.0, zero_point: -128 },
            // Inputs are never clipped.
            false => params_of(stats.tensors[id.0].min.min(0.0), stats.tensors[id.0].max.max(0.0)),
        };
        fixed[id.0] = Some(raw);
        if let Some((node, params)) = preprocessing(&graph, id, raw) {
            let output = graph.nodes[node].output;
            means[id.0] = means[output.0].clone();
            graph.redirect(output, id);
            graph.nodes.remove(node);
            fixed[id.0] = Some(params);
        }
        inputs.push(RawPort { params: raw, is_u8 });
    }
    for node in &graph.nodes {
        if matches!(node.op, Op::Softmax { .. }) {
            fixed[node.output.0] = Some(PROBABILITY);
        }
    }
    let group = groups(&graph);
    let root = |mut t: usize| {
        while group[t] != t {
            t = group[t];
        }
        t
    };
    let mut ranges: Vec<(f32, f32)> = vec![(f32::INFINITY, f32::NEG_INFINITY); graph.tensors.len()];
    let mut group_params: Vec<Option<QParams>> = vec![None; graph.tensors.len()];
    let needs_zero = needs_zero(&graph, &root);
    let limits = wanted_limits(&graph, options, rounding, &root);
    for (t, tensor) in stats.tensors.iter().enumerate() {
        if tensor.histogram.is_empty() {
            continue;
        }
        let r = root(t);
        let (min, max) = tensor.range(observer, needs_zero[r], limits.get(&r).map_or(8, |limit| limit.1));
        ranges[r] = (ranges[r].0.min(min), ranges[r].1.max(max));
        if group_params[r].is_none() {
            group_params[r] = fixed[t];
        }
    }
    for (r, (source, bits, given)) in limits {
        let (min, max) = (ranges[r].0.min(0.0), ranges[r].1.max(0.0));
        let levels = given.or_else(|| (bits < 8 && max - min > 1e-30).then(|| Levels::of(min, max, bits)));
        if let (Some(levels), None) = (levels, group_params[r]) {
            group_params[r] = Some(levels.params());
            graph.nodes[source].op.limit(levels.clamp());
        }
    }
    let params = (0..graph.tensors.len())
        .map(|t| {
            let (min, max) = ranges[root(t)];
            let range = if min <= max { (min, max) } else { (0.0, 0.0) };
            group_params[root(t)].unwrap_or_else(|| params_of(range.0, range.1))
        })
        .collect();
    Activations { graph, params, inputs, means }
}

/// By group of tensors that layers read: the node to limit, the bits that its most demanding reader wants, and the levels where a sub-network gives them.
fn wanted_limits(
    graph: &Graph,
    options: &QuantOptions,
    rounding: &Rounding,
    root: &dyn Fn(usize) -> usize,
) -> BTreeMap<usize, (usize, u8, Option<Levels>)> {
    let mut wanted: BTreeMap<usize, (usize, u8, Option<Levels>)> = BTreeMap::new();
    for node in &graph.nodes {
        let Some((_, id)) = crate::least_squares::weights(&node.op).zip(node.inputs.first()) else { continue };
        let Some(source) = limited_at(graph, *id) else { continue };
        let (bits, given) = (options.activation_bits_of(&node.name), rounding.activation(&node.name));
        let entry = wanted.entry(root(id.0)).or_insert((source, bits, given));
        *entry = (source, entry.1.max(bits), entry.2.or(given));
    }
    wanted
}

/// The node that computes the values of a tensor and can keep them within bounds; what only moves them is looked through. None where there is no such
/// node, where it does no more than preprocess an input, or where others would share the step without the bounds.
pub fn limited_at(graph: &Graph, id: TensorId) -> Option<usize> {
    let moves = |op: &Op| match op {
        Op::MaxPool(_) | Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } => true,
        Op::Pad { value, .. } => *value == 0.0,
        _ => false,
    };
    let mut source = graph.producer(id)?;
    while moves(&graph.nodes[source].op) {
        source = graph.producer(graph.nodes[source].inputs[0])?;
    }
    let is_input = graph.inputs.iter().any(|p| graph.nodes[source].inputs.contains(&p.tensor));
    let bounds = match &graph.nodes[source].op {
        Op::Affine { .. } | Op::BatchNorm { .. } => !is_input,
        Op::Map(_) => true,
        op => op.clamp().is_some(),
    };
    let mut reached = vec![graph.nodes[source].output];
    while let Some(id) = reached.pop() {
        for node in graph.consumers(id).into_iter().map(|i| &graph.nodes[i]) {
            match &node.op {
                Op::Concat { .. } | Op::Resize { .. } => return None,
                op if moves(op) => reached.push(node.output),
                _ => {}
            }
        }
    }
    bounds.then_some(source)
}

/// The `Affine` that alone reads input `id`, and the parameters of its output on the input's integers, if one scale and an int8 zero
/// point express it.
fn preprocessing(graph: &Graph, id: TensorId, raw: QParams) -> Option<(usize, QParams)> {
    let readers = graph.consumers(id);
    let &[node] = readers.as_slice() else { return None };
    let Op::Affine { scale, bias, clamp } = &graph.nodes[node].op else { return None };
    let (&a, &b) = (scale.first()?, bias.first()?);
    let uniform = scale.iter().all(|&s| s == a) && bias.iter().all(|&t| t == b);
    if !uniform || a <= 0.0 || *clamp != Clamp::NONE || graph.is_output(id) {
        return None;
    }
    let step = raw.scale as f64 * a as f64;
    let zero = raw.zero_point as f64 - b as f64 / step;
    let rounded = zero.round();
    ((zero - rounded).abs() < 1e-3 && (-128.0..=127.0).contains(&rounded))
        .then_some((node, QParams { scale: step as f32, zero_point: rounded as i32 }))
}

/// Parent of every tensor in the forest of tensors that share parameters.
fn groups(graph: &Graph) -> Vec<usize> {
    let mut parent: Vec<usize> = (0..graph.tensors.len()).collect();
    fn root(parent: &[usize], mut t: usize) -> usize {
        while parent[t] != t {
            t = parent[t];
        }
        t
    }
    for node in &graph.nodes {
        let shares = |id: &&TensorId| match node.op {
            Op::MaxPool(_) | Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } | Op::Resize { .. } => true,
            // The fill must be representable: zero always is.
            Op::Pad { value, .. } => value == 0.0,
            // An input that only the concat reads needs no precision beyond the output's.
            Op::Concat { .. } => graph.consumers(**id).len() == 1 && !is_probability(graph, **id),
            _ => false,
        };
        for id in node.inputs.iter().filter(shares) {
            let (a, b) = (root(&parent, id.0), root(&parent, node.output.0));
            parent[b.max(a)] = a.min(b);
        }
    }
    parent
}

/// By group: whether one of its readers needs an int8 that stands for zero. Linear operators and tables do not: what lies outside of a
/// convolution's input adds nothing, whatever the zero point.
fn needs_zero(graph: &Graph, root: &dyn Fn(usize) -> usize) -> Vec<bool> {
    let mut needs = vec![false; graph.tensors.len()];
    for node in &graph.nodes {
        let free = matches!(
            node.op,
            Op::Conv2d { .. }
                | Op::ConvTranspose2d { .. }
                | Op::Linear { .. }
                | Op::Map(_)
                | Op::Reshape { .. }
                | Op::Softmax { .. }
        );
        if !free {
            node.inputs.iter().for_each(|id| needs[root(id.0)] = true);
        }
        if matches!(node.op, Op::Pad { .. } | Op::Const(_)) {
            needs[root(node.output.0)] = true;
        }
    }
    needs
}

fn is_probability(graph: &Graph, id: TensorId) -> bool {
    graph.producer(id).is_none_or(|p| matches!(graph.nodes[p].op, Op::Softmax { .. }))
}
