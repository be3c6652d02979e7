//! Lossless shrinking: channels whose output is provably constant fold into the next bias, channels nobody reads are removed, and
//! the integer outputs do not change by one bit.
//!
//! Everything is proved in integers, on the quantized graph. Forward, every channel gets the interval of int8 values it can take
//! (an all-zero filter, or one that its clamp always cuts, gives a single value). Backward, a channel may go if every reader
//! can do without it: a convolution whose weights for it are zero, or one that can take `weight * (q - zero_point)` into its
//! bias - which is exact only if no padding replaces the constant by zero, or if the constant *is* zero. Element-wise operators,
//! pools, depthwise convolutions, additions and concatenations tie their input and output channels together: all go or none.
//! That is a greatest fixpoint: assume every channel can go, and take back until nothing contradicts.

use crate::graph::shape::infer;
use crate::graph::{BinaryKind, Graph, Node, Op, TensorId};
use crate::scheme::{QGraph, QParams, QWeights, multiplier, quantize_value, quantized_clamp, sum_factors, table};
use ndarray::{ArrayD, Axis};
use pith::fixed::{requantize, rescale_sum, saturate};

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShrinkReport {
    /// Output channels removed, by the name of the weighted node.
    pub removed: Vec<(String, usize)>,
}

/// Smallest and largest int8 that a channel takes.
type Interval = (i8, i8);

const FULL: Interval = (i8::MIN, i8::MAX);

/// The same integers from less work.
pub fn shrink(mut q: QGraph) -> (QGraph, ShrinkReport) {
    let before = channels(&q.graph);
    // Removing readers makes more channels unread; each round removes some or is the last.
    loop {
        let intervals = intervals(&q);
        let gone = removable(&q, &intervals);
        if gone.iter().flatten().all(|&g| !g) {
            break;
        }
        remove(&mut q, &gone, &intervals);
    }
    let after = channels(&q.graph);
    let removed = before.into_iter().zip(after).filter(|(b, a)| b.1 > a.1).map(|(b, a)| (b.0, b.1 - a.1)).collect();
    (q, ShrinkReport { removed })
}

/// Output channels of every weighted node.
fn channels(graph: &Graph) -> Vec<(String, usize)> {
    let weighted = |n: &&Node| matches!(n.op, Op::Conv2d { .. } | Op::Linear { .. });
    graph.nodes.iter().filter(weighted).map(|n| (n.name.clone(), last(graph.shape(n.output)))).collect()
}

fn last(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1)
}

/// How a convolution or linear layer ties channels.
enum Tie {
    /// Every output depends on every input.
    Mixed,
    /// Output `c` depends on input `c` alone.
    Same,
    /// Anything else: nothing can go.
    Fixed,
}

fn tie(op: &Op, shape: &[usize]) -> Tie {
    let axis = shape.len().wrapping_sub(1);
    match op {
        Op::Linear { .. } | Op::Conv2d { groups: 1, .. } => Tie::Mixed,
        Op::Conv2d { groups, weight, .. } if *groups == last(shape) && weight.shape()[0] == *groups => Tie::Same,
        Op::Affine { .. }
        | Op::Map(_)
        | Op::PRelu { .. }
        | Op::MaxPool(_)
        | Op::AveragePool { .. }
        | Op::Resize { .. } => Tie::Same,
        Op::Mean { axes } if !axes.contains(&axis) => Tie::Same,
        Op::Pad { before, after, .. } if before[axis] + after[axis] == 0 => Tie::Same,
        Op::Slice { start, step, len } if start[axis] == 0 && step[axis] == 1 && len[axis] == shape[axis] => Tie::Same,
        Op::Concat { axis: joined } if *joined != axis => Tie::Same,
        _ => Tie::Fixed,
    }
}

/// Intervals of every channel of every tensor.
fn intervals(q: &QGraph) -> Vec<Vec<Interval>> {
    let graph = &q.graph;
    let mut all: Vec<Vec<Interval>> = graph.tensors.iter().map(|t| vec![FULL; last(&t.shape)]).collect();
    for (i, node) in graph.nodes.iter().enumerate() {
        let Some(&first) = node.inputs.first() else { continue };
        let (from, to) = (q.activations[first.0], q.activations[node.output.0]);
        let input = &all[first.0];
        let count = last(graph.shape(node.output));
        let output: Vec<Interval> = match (&node.op, &q.weights[i]) {
            (Op::Conv2d { .. } | Op::ConvTranspose2d { .. } | Op::Linear { .. } | Op::Affine { .. }, Some(w)) => {
                (0..count).map(|oc| weighted_interval(&node.op, w, oc, input, from, to)).collect()
            }
            (Op::Map(f), _) => {
                let values = table(f, from, to);
                input.iter().map(|&(lo, hi)| hull((lo..=hi).map(|v| values[(v as i32 + 128) as usize]))).collect()
            }
            (Op::MaxPool(_) | Op::Resize { .. }, _) if from == to => input.clone(),
            (Op::Mean { axes }, _) if matches!(tie(&node.op, graph.shape(first)), Tie::Same) => {
                let reduce: usize = axes.iter().map(|&a| graph.shape(first)[a]).product();
                let (m, shift) = multiplier(from.scale as f64 / to.scale as f64 / reduce as f64);
                let value = |v: i8| {
                    let acc = reduce as i32 * (v as i32 - from.zero_point);
                    saturate(requantize(acc, m, shift), to.zero_point, i8::MIN, i8::MAX)
                };
                // A mean over axes of length 1 is a table in the file, which rounds the same way only where nothing changes.
                if reduce > 1 {
                    input.iter().map(|&(lo, hi)| (value(lo), value(hi))).collect()
                } else {
                    vec![FULL; count]
                }
            }
            (Op::Pad { value, .. }, _) if from == to && matches!(tie(&node.op, graph.shape(first)), Tie::Same) => {
                let fill = quantize_value(*value, from);
                input.iter().map(|&(lo, hi)| (lo.min(fill), hi.max(fill))).collect()
            }
            (Op::Slice { .. }, _) if from == to && matches!(tie(&node.op, graph.shape(first)), Tie::Same) => {
                input.clone()
            }
            (Op::Reshape { .. }, _) if from == to && count.is_multiple_of(input.len()) => {
                (0..count).map(|j| input[j % input.len()]).collect()
            }
            (Op::Binary { kind, clamp }, _) => {
                let [a, b] = [node.inputs[0], node.inputs[1]];
                let (act_min, act_max) = quantized_clamp(*clamp, to);
                let same = graph.shape(a) == graph.shape(b);
                match kind {
                    BinaryKind::Add | BinaryKind::Sub if same => {
                        let sign = if *kind == BinaryKind::Sub { -1.0 } else { 1.0 };
                        let params = [q.activations[a.0], q.activations[b.0]];
                        let ratio = |p: QParams| p.scale as f64 / to.scale as f64;
                        let ([m, n], shift) = sum_factors([ratio(params[0]), sign * ratio(params[1])]);
                        let value = |x: i8, y: i8| {
                            let (x, y) = (x as i32 - params[0].zero_point, y as i32 - params[1].zero_point);
                            saturate(rescale_sum(x, m, y, n, shift), to.zero_point, act_min, act_max)
                        };
                        let corners = |(x, y): (&Interval, &Interval)| {
                            hull([value(x.0, y.0), value(x.0, y.1), value(x.1, y.0), value(x.1, y.1)].into_iter())
                        };
                        all[a.0].iter().zip(&all[b.0]).map(corners).collect()
                    }
                    _ => vec![(act_min, act_max); count],
                }
            }
            (Op::Concat { axis }, _) if *axis == graph.shape(node.output).len() - 1 => {
                let part = |id: &TensorId| {
                    if q.activations[id.0] == to { all[id.0].clone() } else { vec![FULL; all[id.0].len()] }
                };
                node.inputs.iter().flat_map(part).collect()
            }
            _ => vec![FULL; count],
        };
        all[node.output.0] = output;
    }
    all
}

fn hull(values: impl Iterator<Item = i8>) -> Interval {
    values.fold((i8::MAX, i8::MIN), |(lo, hi), v| (lo.min(v), hi.max(v)))
}

/// Interval of output channel `oc`: the accumulator's, through the output stage, which is monotone.
fn weighted_interval(op: &Op, w: &QWeights, oc: usize, input: &[Interval], from: QParams, to: QParams) -> Interval {
    let (clamp, padded, groups) = match op {
        Op::Conv2d { clamp, window, groups, .. } => (*clamp, window.pad != [0; 4], *groups),
        // A transposed convolution skips taps.
        Op::ConvTranspose2d { clamp, groups, .. } => (*clamp, true, *groups),
        Op::Linear { clamp, .. } => (*clamp, false, 1),
        Op::Affine { clamp, .. } => (*clamp, false, input.len()),
        _ => return FULL,
    };
    let filter = w.values.index_axis(Axis(0), oc);
    let per_group = input.len() / groups.max(1);
    let first = oc * groups / w.bias.len().max(1) * per_group;
    let (mut low, mut high) = (w.bias[oc] as i64, w.bias[oc] as i64);
    for (j, &weight) in filter.iter().enumerate() {
        let (lo, hi) = input[first + j % per_group.max(1)];
        let terms = [lo, hi].map(|v| (v as i64 - from.zero_point as i64) * weight as i64);
        let zero = if padded { 0 } else { terms[0] };
        low += terms[0].min(terms[1]).min(zero);
        high += terms[0].max(terms[1]).max(zero);
    }
    let (act_min, act_max) = quantized_clamp(clamp, to);
    let stage = |acc: i64| match i32::try_from(acc) {
        Ok(acc) => Some(saturate(requantize(acc, w.multiplier[oc], w.shift[oc]), to.zero_point, act_min, act_max)),
        Err(_) => None,
    };
    match (stage(low), stage(high)) {
        (Some(a), Some(b)) => (a.min(b), a.max(b)),
        _ => (act_min, act_max),
    }
}

/// Whether a mixing layer can do without input channel `c`.
fn can_fold(op: &Op, w: &QWeights, c: usize, interval: Interval, zero_point: i32) -> bool {
    let axis = Axis(w.values.ndim() - 1);
    if w.values.index_axis(axis, c).iter().all(|&v| v == 0) {
        return true;
    }
    let padded = matches!(op, Op::Conv2d { window, .. } if window.pad != [0; 4]);
    interval.0 == interval.1 && (!padded || interval.0 as i32 == zero_point)
}

/// The channels of every tensor that can go.
fn removable(q: &QGraph, intervals: &[Vec<Interval>]) -> Vec<Vec<bool>> {
    let graph = &q.graph;
    let mut gone: Vec<Vec<bool>> = graph.tensors.iter().map(|t| vec![true; last(&t.shape)]).collect();
    for port in graph.inputs.iter().chain(&graph.outputs) {
        gone[port.tensor.0].fill(false);
    }
    // A tensor that nobody reads is left alone: it is not part of any output.
    let read: Vec<bool> =
        (0..graph.tensors.len()).map(|t| graph.nodes.iter().any(|n| n.inputs.contains(&TensorId(t)))).collect();
    gone.iter_mut().zip(&read).filter(|(_, read)| !**read).for_each(|(g, _)| g.fill(false));
    loop {
        let before = gone.clone();
        for (i, node) in graph.nodes.iter().enumerate() {
            let output = node.output.0;
            let Some(&first) = node.inputs.first() else {
                gone[output].fill(false);
                continue;
            };
            let shape = graph.shape(first);
            let same_shapes = node.inputs.iter().all(|id| graph.shape(*id) == graph.shape(node.output));
            match (&node.op, tie(&node.op, shape)) {
                (op, Tie::Mixed) => {
                    if let Some(w) = &q.weights[i] {
                        for (c, g) in gone[first.0].iter_mut().enumerate() {
                            *g &= can_fold(op, w, c, intervals[first.0][c], q.activations[first.0].zero_point);
                        }
                    }
                }
                (Op::Binary { .. }, _) if same_shapes => agree(&mut gone, &node.inputs, output, |c| c),
                (Op::Concat { axis }, _) if *axis == shape.len() - 1 => {
                    let mut offset = 0;
                    for id in &node.inputs {
                        agree(&mut gone, &[*id], output, |c| offset + c);
                        offset += last(graph.shape(*id));
                    }
                }
                (_, Tie::Same) => agree(&mut gone, &node.inputs, output, |c| c),
                (Op::Reshape { .. }, _) if gone[output].len().is_multiple_of(gone[first.0].len()) => {
                    let n = gone[first.0].len();
                    for block in 0..gone[output].len() / n {
                        agree(&mut gone, &[first], output, |c| block * n + c);
                    }
                }
                _ => {
                    node.inputs.iter().for_each(|id| gone[id.0].fill(false));
                    gone[output].fill(false);
                }
            }
        }
        // A layer keeps at least one channel.
        for g in gone.iter_mut().filter(|g| g.iter().all(|&gone| gone)) {
            if let Some(first) = g.first_mut() {
                *first = false;
            }
        }
        if gone == before {
            return gone;
        }
    }
}

/// Channel `c` of every input and channel `at(c)` of the output go together or stay.
fn agree(gone: &mut [Vec<bool>], inputs: &[TensorId], output: usize, at: impl Fn(usize) -> usize) {
    let Some(first) = inputs.first() else { return };
    for c in 0..gone[first.0].len() {
        let all = inputs.iter().all(|id| gone[id.0].get(c).copied().unwrap_or(false)) && gone[output][at(c)];
        inputs.iter().for_each(|id| gone[id.0].get_mut(c).into_iter().for_each(|g| *g = all));
        gone[output][at(c)] = all;
    }
}

/// Takes the channels out and folds constants into biases.
fn remove(q: &mut QGraph, gone: &[Vec<bool>], intervals: &[Vec<Interval>]) {
    let kept = |id: TensorId| -> Vec<usize> { (0..gone[id.0].len()).filter(|&c| !gone[id.0][c]).collect() };
    // Shapes change on the way; ties are those of the graph as it was.
    let tie_of = |n: &Node| n.inputs.first().map_or(Tie::Fixed, |&id| tie(&n.op, q.graph.shape(id)));
    let ties: Vec<Tie> = q.graph.nodes.iter().map(tie_of).collect();
    for (i, tied) in ties.iter().enumerate() {
        let Some(&first) = q.graph.nodes[i].inputs.first() else { continue };
        let output = q.graph.nodes[i].output;
        if let (Tie::Mixed, Some(w)) = (tied, &mut q.weights[i]) {
            let lost = (0..gone[first.0].len()).filter(|&c| gone[first.0][c]);
            fold_constants(&mut q.graph.nodes[i].op, w, lost, &intervals[first.0], q.activations[first.0]);
        }
        let (inputs, outputs) = (kept(first), kept(output));
        match &mut q.graph.nodes[i].op {
            Op::Conv2d { weight, bias, groups, .. } => {
                select_filters(weight, bias, &outputs);
                match tied {
                    Tie::Mixed => select_inputs(weight, &inputs),
                    _ if *groups > 1 && outputs.len() < gone[output.0].len() => *groups = outputs.len(),
                    _ => {}
                }
            }
            Op::Linear { weight, bias, .. } => {
                select_filters(weight, bias, &outputs);
                select_inputs(weight, &inputs);
            }
            Op::Affine { scale, bias, .. } => {
                *scale = outputs.iter().map(|&c| scale[c]).collect();
                *bias = outputs.iter().map(|&c| bias[c]).collect();
            }
            Op::PRelu { slope } => *slope = outputs.iter().map(|&c| slope[c]).collect(),
            Op::Slice { len, .. } => {
                if let Some(n) = len.last_mut().filter(|_| matches!(tied, Tie::Same)) {
                    *n = outputs.len();
                }
            }
            Op::Reshape { shape } if outputs.len() < gone[output.0].len() => {
                if let Some(n) = shape.last_mut() {
                    *n = outputs.len();
                }
            }
            _ => {}
        }
        if let Some(w) = &mut q.weights[i] {
            w.values = w.values.select(Axis(0), &outputs);
            if matches!(tied, Tie::Mixed) {
                w.values = w.values.select(Axis(w.values.ndim() - 1), &inputs);
            }
            w.scales = outputs.iter().map(|&c| w.scales[c]).collect();
            w.bias = outputs.iter().map(|&c| w.bias[c]).collect();
            w.multiplier = outputs.iter().map(|&c| w.multiplier[c]).collect();
            w.shift = outputs.iter().map(|&c| w.shift[c]).collect();
        }
        let shapes: Vec<&[usize]> = q.graph.nodes[i].inputs.iter().map(|&id| q.graph.shape(id)).collect();
        if let Ok(shape) = infer(&q.graph.nodes[i].op, &shapes) {
            q.graph.tensors[output.0].shape = shape;
        }
    }
}

fn select_filters(weight: &mut ArrayD<f32>, bias: &mut Vec<f32>, outputs: &[usize]) {
    *weight = weight.select(Axis(0), outputs);
    *bias = outputs.iter().map(|&c| bias[c]).collect();
}

fn select_inputs(weight: &mut ArrayD<f32>, inputs: &[usize]) {
    *weight = weight.select(Axis(weight.ndim() - 1), inputs);
}

/// Adds what the lost input channels contribute to every output's bias. The sum stays within 32 bits, because the scheme bounds
/// `|bias| + sum |weight| * |q - zero_point|`.
fn fold_constants(
    op: &mut Op,
    w: &mut QWeights,
    lost: impl Iterator<Item = usize>,
    intervals: &[Interval],
    from: QParams,
) {
    let (Op::Conv2d { weight, bias, .. } | Op::Linear { weight, bias, .. }) = op else { return };
    let axis = Axis(weight.ndim() - 1);
    for c in lost {
        let q = intervals[c].0 as i32 - from.zero_point;
        let constant = intervals[c].0 == intervals[c].1;
        let filters = w.values.index_axis(axis, c);
        for (oc, filter) in filters.axis_iter(Axis(0)).enumerate() {
            // A channel that is not constant goes only where all its weights are zero.
            let sum: i32 = filter.iter().map(|&v| v as i32).sum();
            w.bias[oc] = w.bias[oc].saturating_add(sum.saturating_mul(q));
        }
        for (oc, filter) in weight.index_axis(axis, c).axis_iter(Axis(0)).enumerate().filter(|_| constant) {
            bias[oc] += filter.sum() * from.scale * q as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::{Observer, observe};
    use crate::execute::Runner;
    use crate::graph::{Clamp, Window};
    use crate::lower::lower;
    use crate::pack::{ModelFile, PackOptions, pack};
    use crate::scheme::{Choice, QuantOptions, Rounding, quantize};
    use ndarray::IxDyn;

    struct Random(u32);

    impl Random {
        fn below(&mut self, n: usize) -> usize {
            self.0 = self.0.wrapping_mul(1664525).wrapping_add(1013904223);
            (self.0 >> 8) as usize % n
        }

        fn real(&mut self) -> f32 {
            self.below(2001) as f32 / 1000.0 - 1.0
        }
    }

    /// A convolution with some filters that are zero and some that a ReLU always cuts.
    fn conv(g: &mut Graph, r: &mut Random, x: TensorId, oc: usize, depthwise: bool) -> TensorId {
        let c = last(g.shape(x));
        let (oc, groups, ic) = if depthwise { (c, c, 1) } else { (oc, 1, c) };
        let kernel = 1 + 2 * r.below(2);
        let pad = if r.below(2) == 0 { kernel / 2 } else { 0 };
        let mut weight = ArrayD::from_shape_simple_fn(IxDyn(&[oc, kernel, kernel, ic]), || r.real());
        let mut bias: Vec<f32> = (0..oc).map(|_| r.real()).collect();
        for o in 0..oc {
            match r.below(4) {
                0 => weight.index_axis_mut(Axis(0), o).fill(0.0),
                1 => bias[o] = -1000.0,
                _ => {}
            }
        }
        let window = Window { kernel: [kernel; 2], stride: [1; 2], dilation: [1; 2], pad: [pad; 4] };
        let clamp = if r.below(3) > 0 { Clamp::RELU } else { Clamp::NONE };
        g.push(format!("conv{}", g.nodes.len()), Op::Conv2d { window, groups, weight, bias, clamp }, &[x]).unwrap()
    }

    fn network(r: &mut Random) -> Graph {
        let mut g = Graph::default();
        let mut x = g.add_input("x", &[1, 9, 9, 3]);
        x = conv(&mut g, r, x, 6, false);
        for _ in 0..3 {
            let name = format!("op{}", g.nodes.len());
            x = match r.below(4) {
                0 => {
                    let oc = 5 + r.below(3);
                    conv(&mut g, r, x, oc, false)
                }
                1 => conv(&mut g, r, x, 0, true),
                2 => {
                    let window = Window { kernel: [1; 2], stride: [1; 2], dilation: [1; 2], pad: [0; 4] };
                    let c = last(g.shape(x));
                    let weight = ArrayD::from_shape_simple_fn(IxDyn(&[c, 1, 1, c]), || r.real());
                    let op = Op::Conv2d { window, groups: 1, weight, bias: vec![0.0; c], clamp: Clamp::RELU };
                    let y = g.push(format!("{name}.b"), op, &[x]).unwrap();
                    g.push(name, Op::Binary { kind: BinaryKind::Add, clamp: Clamp::RELU }, &[x, y]).unwrap()
                }
                _ => {
                    let y = conv(&mut g, r, x, 4, false);
                    let [h, w] = [g.shape(y)[1], g.shape(y)[2]];
                    let (start, step) = (vec![0; 4], vec![1; 4]);
                    let len = vec![1, h, w, last(g.shape(x))];
                    let x = g.push(format!("{name}.crop"), Op::Slice { start, step, len }, &[x]).unwrap();
                    g.push(name, Op::Concat { axis: 3 }, &[x, y]).unwrap()
                }
            };
        }
        let shape = g.shape(x).to_vec();
        let flat: usize = shape.iter().product();
        let x = match r.below(2) {
            0 => g.push("mean", Op::Mean { axes: vec![1, 2] }, &[x]).unwrap(),
            _ => g.push("flat", Op::Reshape { shape: vec![1, flat] }, &[x]).unwrap(),
        };
        let k = last(g.shape(x));
        let weight = ArrayD::from_shape_simple_fn(IxDyn(&[4, k]), || r.real());
        let y = g.push("head", Op::Linear { weight, bias: vec![0.1; 4], clamp: Clamp::NONE }, &[x]).unwrap();
        g.add_output("y", y);
        g
    }

    fn outputs(q: &QGraph, inputs: &[Vec<i8>]) -> (Vec<Vec<Vec<i8>>>, usize) {
        let packed = pack(lower(q).unwrap(), PackOptions::default()).unwrap();
        let file = ModelFile::new(&packed.bytes);
        let model = pith::Model::parse(file.as_bytes()).unwrap();
        let mut runner = Runner::new(&model);
        (inputs.iter().map(|x| runner.run_raw(std::slice::from_ref(x))).collect(), packed.bytes.len())
    }

    #[test]
    fn outputs_keep_every_bit_and_files_shrink() {
        let mut r = Random(7);
        let mut smaller = 0;
        for case in 0..60 {
            let graph = network(&mut r);
            let samples: Vec<Vec<ArrayD<f32>>> =
                (0..4).map(|_| vec![ArrayD::from_shape_simple_fn(IxDyn(&[1, 9, 9, 3]), || r.real())]).collect();
            let stats = observe(&graph, &samples, &|| ()).unwrap();
            let choice = Choice { observer: Observer::MinMax, bias_correction: false };
            let q = quantize(&graph, &stats, &QuantOptions::default(), choice, &[false], &Rounding::default()).unwrap();
            let inputs: Vec<Vec<i8>> = (0..8).map(|_| (0..243).map(|_| r.below(256) as u8 as i8).collect()).collect();
            let (expected, before) = outputs(&q, &inputs);
            let (shrunk, report) = shrink(q);
            let (got, after) = outputs(&shrunk, &inputs);
            assert_eq!(got, expected, "case {case}: {report:?}");
            assert!(after <= before);
            smaller += usize::from(!report.removed.is_empty());
        }
        assert!(smaller > 30, "only {smaller} of 60 networks with dead channels shrank");
    }
}
