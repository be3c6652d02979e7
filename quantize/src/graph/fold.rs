//! Folding: constants into constants, batch norm and per-channel arithmetic into the weights beside them, and whatever does
//! nothing into nothing.
//!
//! Each rule looks at one node and its neighbours, changes the graph and says so; [`fold`] applies them until none applies.
//! Float results change by rounding only.

use super::{BinaryKind, Clamp, Graph, Op, TensorId, Window, eval};
use ndarray::{ArrayD, Axis};

/// What becomes of batch norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchNorms {
    /// They are folded into the weights beside them: inference.
    Folded,
    /// They stay: training.
    Kept,
}

/// Applies every rule until nothing changes.
pub fn fold(mut graph: Graph, norms: BatchNorms) -> Graph {
    type Rule = fn(&mut Graph, usize) -> bool;
    let mut rules: Vec<Rule> = vec![
        constant,
        binary_with_constant,
        affine_into_producer,
        affine_into_consumer,
        identity,
        reshape_of_reshape,
        slice_of_slice,
        pad_into_window,
        global_pool,
    ];
    if norms == BatchNorms::Folded {
        rules.push(batch_norm);
    }
    while (0..graph.nodes.len()).any(|i| rules.iter().any(|rule| rule(&mut graph, i))) {
        graph = graph.compact();
    }
    graph
}

/// The constant that a tensor is.
pub(super) fn constant_of(graph: &Graph, id: TensorId) -> Option<&ArrayD<f32>> {
    match &graph.nodes[graph.producer(id)?].op {
        Op::Const(value) => Some(value),
        _ => None,
    }
}

/// The node that writes `id`, if `id` is read once and is no output.
pub(super) fn sole_producer(graph: &Graph, id: TensorId) -> Option<usize> {
    let reads = graph.nodes.iter().flat_map(|n| &n.inputs).filter(|&&input| input == id).count();
    graph.producer(id).filter(|_| reads == 1 && !graph.is_output(id))
}

/// Operators of constants only.
fn constant(graph: &mut Graph, i: usize) -> bool {
    let node = &graph.nodes[i];
    let args: Option<Vec<&ArrayD<f32>>> = node.inputs.iter().map(|&id| constant_of(graph, id)).collect();
    let Some(args) = args.filter(|args| !args.is_empty()) else { return false };
    let value = eval::apply(&node.op, &args, graph.shape(node.output));
    let node = &mut graph.nodes[i];
    node.op = Op::Const(value);
    node.inputs.clear();
    true
}

/// `x + c`, `x - c`, `c - x`, `x * c` with one constant per channel of the last axis (or one for all) is `Affine`.
fn binary_with_constant(graph: &mut Graph, i: usize) -> bool {
    let node = &graph.nodes[i];
    let Op::Binary { kind, clamp } = node.op else { return false };
    let shape = graph.shape(node.output).to_vec();
    let channels = shape.last().copied().unwrap_or(1);
    for (x, c) in [(0, 1), (1, 0)] {
        let (x, c) = (node.inputs[x], node.inputs[c]);
        let Some(value) = constant_of(graph, c) else { continue };
        let per_channel = value.len() == 1 || (value.len() == channels && value.shape().last() == Some(&channels));
        if graph.shape(x) != shape || !per_channel {
            continue;
        }
        let values: Vec<f32> = value.iter().copied().cycle().take(channels).collect();
        let constant_first = c == node.inputs[0];
        let (scale, bias) = match kind {
            BinaryKind::Mul => (values, vec![0.0; channels]),
            BinaryKind::Add => (vec![1.0; channels], values),
            BinaryKind::Sub if constant_first => (vec![-1.0; channels], values),
            BinaryKind::Sub => (vec![1.0; channels], values.iter().map(|v| -v).collect()),
        };
        graph.nodes[i].op = Op::Affine { scale, bias, clamp };
        graph.nodes[i].inputs = vec![x];
        return true;
    }
    false
}

/// `BatchNorm` at inference is `Affine`.
pub(crate) fn batch_norm(graph: &mut Graph, i: usize) -> bool {
    let Op::BatchNorm { gamma, beta, mean, var, epsilon } = &graph.nodes[i].op else { return false };
    let scale = |c: usize| gamma[c] as f64 / (var[c] as f64 + *epsilon as f64).sqrt();
    let channels = 0..gamma.len();
    let bias = channels.clone().map(|c| (beta[c] as f64 - mean[c] as f64 * scale(c)) as f32).collect();
    graph.nodes[i].op = Op::Affine { scale: channels.map(|c| scale(c) as f32).collect(), bias, clamp: Clamp::NONE };
    true
}

/// `Affine` after a linear operator scales its filters; after another `Affine` they merge.
fn affine_into_producer(graph: &mut Graph, i: usize) -> bool {
    let Op::Affine { scale, bias, clamp } = &graph.nodes[i].op else { return false };
    let (scale, bias, clamp) = (scale.clone(), bias.clone(), *clamp);
    let Some(p) = sole_producer(graph, graph.nodes[i].inputs[0]) else { return false };
    let fold_bias = |own: &mut [f32]| {
        own.iter_mut()
            .zip(scale.iter().zip(&bias))
            .for_each(|(b, (s, t))| *b = (*b as f64 * *s as f64 + *t as f64) as f32);
    };
    match &mut graph.nodes[p].op {
        Op::Conv2d { weight, bias: own, clamp: before, .. }
        | Op::ConvTranspose2d { weight, bias: own, clamp: before, .. }
        | Op::Linear { weight, bias: own, clamp: before }
            if *before == Clamp::NONE =>
        {
            for (mut filter, s) in weight.axis_iter_mut(Axis(0)).zip(&scale) {
                filter.mapv_inplace(|w| w * s);
            }
            fold_bias(own);
            *before = clamp;
        }
        Op::Affine { scale: first, bias: own, clamp: before } if *before == Clamp::NONE => {
            first.iter_mut().zip(&scale).for_each(|(a, s)| *a *= s);
            fold_bias(own);
            *before = clamp;
        }
        _ => return false,
    }
    bypass(graph, i);
    true
}

/// `Affine` before a linear operator that sees no padding scales its input channels: `w (s x + t) + b = (w s) x + (w t + b)`.
fn affine_into_consumer(graph: &mut Graph, i: usize) -> bool {
    let Some(p) = graph.nodes[i].inputs.first().and_then(|&id| sole_producer(graph, id)) else { return false };
    let Op::Affine { scale, bias, clamp: Clamp::NONE } = &graph.nodes[p].op else { return false };
    let (scale, shift) = (scale.clone(), bias.clone());
    let (weight, bias, groups) = match &mut graph.nodes[i].op {
        Op::Linear { weight, bias, .. } => (weight, bias, 1),
        Op::Conv2d { weight, bias, window, groups, .. } if window.pad == [0; 4] => (weight, bias, *groups),
        _ => return false,
    };
    let outputs = bias.len();
    let Some(&group_in) = weight.shape().last() else { return false };
    for (oc, (mut filter, b)) in weight.axis_iter_mut(Axis(0)).zip(bias.iter_mut()).enumerate() {
        let first = oc * groups / outputs * group_in;
        let mut sum = *b as f64;
        for (j, w) in filter.iter_mut().enumerate() {
            let channel = first + j % group_in;
            sum += *w as f64 * shift[channel] as f64;
            *w *= scale[channel];
        }
        *b = sum as f32;
    }
    bypass(graph, p);
    true
}

/// Makes every reader of node `i` read its input.
fn bypass(graph: &mut Graph, i: usize) {
    let (from, to) = (graph.nodes[i].output, graph.nodes[i].inputs[0]);
    graph.redirect(from, to);
}

/// What does nothing vanishes.
fn identity(graph: &mut Graph, i: usize) -> bool {
    let node = &graph.nodes[i];
    let Some(&input) = node.inputs.first() else { return false };
    let same_shape = graph.shape(input) == graph.shape(node.output);
    let nothing = match &node.op {
        Op::Reshape { .. } | Op::Concat { .. } | Op::Pad { .. } => same_shape && node.inputs.len() == 1,
        Op::Slice { step, .. } => same_shape && step.iter().all(|&s| s == 1 || s == 0),
        Op::Transpose { perm } => perm.iter().enumerate().all(|(i, &p)| i == p),
        Op::Map(f) => f.as_affine() == Some((1.0, 0.0)),
        Op::Affine { scale, bias, clamp } => {
            *clamp == Clamp::NONE && scale.iter().all(|&s| s == 1.0) && bias.iter().all(|&b| b == 0.0)
        }
        Op::Mean { .. } => same_shape,
        Op::MaxPool(w) | Op::AveragePool { window: w, .. } => {
            w.kernel == [1, 1] && w.stride == [1, 1] && w.pad == [0; 4]
        }
        _ => false,
    };
    // An output may not become an input's alias with another name's axes; the copy stays then.
    if !nothing || (graph.is_output(node.output) && graph.producer(input).is_none()) {
        return false;
    }
    let output = node.output;
    if graph.consumers(output).is_empty() && !graph.is_output(output) {
        return false;
    }
    bypass(graph, i);
    true
}

fn reshape_of_reshape(graph: &mut Graph, i: usize) -> bool {
    if !matches!(graph.nodes[i].op, Op::Reshape { .. }) {
        return false;
    }
    let Some(p) = graph.producer(graph.nodes[i].inputs[0]) else { return false };
    if !matches!(graph.nodes[p].op, Op::Reshape { .. }) {
        return false;
    }
    graph.nodes[i].inputs = graph.nodes[p].inputs.clone();
    true
}

fn slice_of_slice(graph: &mut Graph, i: usize) -> bool {
    let Op::Slice { start, step, len } = &graph.nodes[i].op else { return false };
    let Some(p) = sole_producer(graph, graph.nodes[i].inputs[0]) else { return false };
    let Op::Slice { start: first, step: stride, .. } = &graph.nodes[p].op else { return false };
    let axes = 0..start.len();
    let start = axes.clone().map(|k| (first[k] as isize + start[k] as isize * stride[k]) as usize).collect();
    let step = axes.map(|k| step[k] * stride[k]).collect();
    graph.nodes[i].op = Op::Slice { start, step, len: len.clone() };
    graph.nodes[i].inputs = graph.nodes[p].inputs.clone();
    true
}

/// Zero padding of rows and columns before a convolution is the convolution's own.
fn pad_into_window(graph: &mut Graph, i: usize) -> bool {
    let Some(p) = graph.nodes[i].inputs.first().and_then(|&id| sole_producer(graph, id)) else { return false };
    let Op::Pad { before, after, value } = &graph.nodes[p].op else { return false };
    let spatial = before.len() == 4 && [before[0], before[3], after[0], after[3]] == [0; 4];
    if !spatial || *value != 0.0 {
        return false;
    }
    let extra = [before[1], before[2], after[1], after[2]];
    let window = match &mut graph.nodes[i].op {
        Op::Conv2d { window, .. } => window,
        Op::AveragePool { window, count_include_pad } if *count_include_pad || window.pad == [0; 4] => {
            *count_include_pad = true;
            window
        }
        _ => return false,
    };
    window.pad.iter_mut().zip(extra).for_each(|(pad, extra)| *pad += extra);
    bypass(graph, p);
    true
}

/// An average over the whole map is a mean, whatever its stride.
fn global_pool(graph: &mut Graph, i: usize) -> bool {
    let Op::AveragePool { window: Window { kernel, pad, .. }, .. } = &graph.nodes[i].op else { return false };
    let shape = graph.shape(graph.nodes[i].inputs[0]);
    if *pad != [0; 4] || shape[1..3] != kernel[..] {
        return false;
    }
    graph.nodes[i].op = Op::Mean { axes: vec![1, 2] };
    true
}
