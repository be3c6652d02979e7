//! Groups leave the graph.
//!
//! [`mask`] makes their parameters zero; [`remove`] takes out what computes nothing any more, and the network stays the same function:
//! channels leave the layers that make them, those that pass them on and those that read them; a residual branch gives way to its
//! shortcut; rows and columns at the border of a kernel leave with as much padding. Blocks and single weights stay as zeros.

use super::branches::branches;
use super::channels::{Channels, Reading, reading};
use super::groups::{Groups, Kind, class_of};
use crate::graph::scalar::ScalarFn;
use crate::graph::{Clamp, Graph, Op, TensorId, Window, shape};
use ndarray::{ArrayD, Axis, Slice};

/// The graph with the parameters of groups that are not kept at zero. Of a channel that is gone everything is zero: what makes it and
/// the weights that read it, so that neither widens the range of what stays.
pub fn mask(mut graph: Graph, groups: &Groups, kept: &[bool]) -> Graph {
    let mut theta = graph.theta();
    let lost = (0..groups.len()).zip(kept).filter(|(_, kept)| !**kept);
    lost.flat_map(|(j, _)| groups.of(j)).for_each(|&i| theta[i] = 0.0);
    if let Kind::Filter | Kind::Channel = groups.kind {
        silence(&graph, groups, kept, &mut theta);
    }
    graph.set_theta(&theta);
    graph
}

/// Zeroes what makes and what reads channels that are gone.
fn silence(graph: &Graph, groups: &Groups, kept: &[bool], theta: &mut [f32]) {
    let channels = Channels::of(graph);
    let gone = gone(graph, groups, kept, &channels);
    for parameter in graph.parameters() {
        for element in parameter.range.clone() {
            let class = |kind| class_of(graph, &channels, kind, &parameter, element);
            if [Kind::Filter, Kind::Channel].into_iter().filter_map(class).any(|c| gone[c]) {
                theta[element] = 0.0;
            }
        }
    }
}

/// The same function with what is gone taken out.
pub fn remove(graph: Graph, groups: &Groups, kept: &[bool]) -> Graph {
    let left = match groups.kind {
        Kind::Filter | Kind::Channel => {
            let channels = Channels::of(&graph);
            let mut gone = gone(&graph, groups, kept, &channels);
            channels.keep_one(&mut gone);
            cut(mask(graph, groups, kept), &channels, &gone)
        }
        Kind::Depth => skip(graph, groups, kept),
        Kind::Shape => shrink_kernels(mask(graph, groups, kept)),
        Kind::Block { .. } | Kind::Weight => mask(graph, groups, kept),
    };
    left.in_standard_layout()
}

/// By class of channels: whether its group is gone.
fn gone(graph: &Graph, groups: &Groups, kept: &[bool], channels: &Channels) -> Vec<bool> {
    let mut gone = vec![false; channels.fixed.len()];
    for (class, kept) in groups.classes(graph, channels).into_iter().zip(kept) {
        class.into_iter().for_each(|c| gone[c] = !kept);
    }
    gone
}

/// Takes classes of channels out.
fn cut(mut graph: Graph, channels: &Channels, gone: &[bool]) -> Graph {
    let kept = |id: TensorId| channels.kept(id, gone);
    for node in &mut graph.nodes {
        let Some(&input) = node.inputs.first() else { continue };
        let (inputs, outputs) = (kept(input), kept(node.output));
        let (from, to) = (channels.axis[input.0], channels.axis[node.output.0]);
        let mixes = reading(&node.op) == Reading::Mixed && from + 1 == graph.tensors[input.0].shape.len();
        let read = mixes.then_some(&inputs);
        match &mut node.op {
            Op::Conv2d { weight, bias, groups, .. } | Op::ConvTranspose2d { weight, bias, groups, .. } => {
                // Groups of a grouped convolution go whole.
                *groups = if *groups > 1 { *groups * outputs.len() / bias.len().max(1) } else { 1 };
                select_channels(weight, bias, &outputs, read);
            }
            Op::Linear { weight, bias, .. } => select_channels(weight, bias, &outputs, read),
            Op::BatchNorm { gamma, beta, mean, var, .. } => {
                [gamma, beta, mean, var].into_iter().for_each(|values| pick(values, &outputs));
            }
            Op::Affine { scale, bias, .. } => [scale, bias].into_iter().for_each(|values| pick(values, &outputs)),
            Op::PRelu { slope } => pick(slope, &outputs),
            Op::Pad { before, after, .. } => {
                let (first, end) = (before[to], before[to] + channels.classes[input.0].len());
                before[to] = outputs.iter().filter(|&&c| c < first).count();
                after[to] = outputs.iter().filter(|&&c| c >= end).count();
            }
            Op::Slice { start, len, .. } => {
                start[from] = inputs.iter().filter(|&&c| c < start[from]).count();
                len[to] = outputs.len();
            }
            Op::Reshape { shape } => shape[to] = outputs.len(),
            _ => {}
        }
    }
    with_shapes(graph)
}

fn pick(values: &mut Vec<f32>, indices: &[usize]) {
    *values = indices.iter().map(|&c| values[c]).collect();
}

fn select_channels(weight: &mut ArrayD<f32>, bias: &mut Vec<f32>, outputs: &[usize], inputs: Option<&Vec<usize>>) {
    *weight = weight.select(Axis(0), outputs);
    pick(bias, outputs);
    if let Some(inputs) = inputs {
        *weight = weight.select(Axis(weight.ndim() - 1), inputs);
    }
    if !weight.is_standard_layout() {
        *weight = weight.as_standard_layout().into_owned();
    }
}

/// The graph with the shapes that its operators give now.
fn with_shapes(mut graph: Graph) -> Graph {
    for i in 0..graph.nodes.len() {
        let node = &graph.nodes[i];
        let inputs: Vec<&[usize]> = node.inputs.iter().map(|&id| graph.shape(id)).collect();
        if let Ok(shape) = shape::infer(&node.op, &inputs) {
            let output = node.output;
            graph.tensors[output.0].shape = shape;
        }
    }
    graph
}

/// Readers of an addition whose branch is gone read the shortcut; a bound of the addition stays as an operator.
fn skip(mut graph: Graph, groups: &Groups, kept: &[bool]) -> Graph {
    let lost: Vec<usize> =
        groups.nodes(&graph).into_iter().zip(kept).filter_map(|(i, kept)| i.filter(|_| !kept)).collect();
    for branch in branches(&graph).0 {
        if !lost.iter().any(|i| branch.nodes.contains(i)) {
            continue;
        }
        let (output, shortcut) = (graph.nodes[branch.add].output, graph.nodes[branch.add].inputs[branch.operand]);
        let Op::Binary { clamp, .. } = graph.nodes[branch.add].op else { continue };
        graph.nodes[branch.add].inputs = vec![shortcut];
        graph.nodes[branch.add].op = Op::Map(ScalarFn::clamp(clamp));
        // An output may not become an input's alias.
        let aliases = graph.is_output(output) && graph.producer(shortcut).is_none();
        if clamp == Clamp::NONE && !aliases {
            graph.redirect(output, shortcut);
        }
    }
    graph.compact()
}

/// Rows and columns of zeros at the border of a kernel go where padding or the end of the input allows it.
fn shrink_kernels(mut graph: Graph) -> Graph {
    for i in 0..graph.nodes.len() {
        let node = &graph.nodes[i];
        let Some(&input) = node.inputs.first() else { continue };
        let (input, output) = (graph.shape(input).to_vec(), graph.shape(node.output).to_vec());
        while let Some(op) = smaller_kernel(&graph.nodes[i].op, &input, &output) {
            graph.nodes[i].op = op;
        }
    }
    graph
}

/// The convolution without one row or column of zeros, if it has one that can go.
fn smaller_kernel(op: &Op, input: &[usize], output: &[usize]) -> Option<Op> {
    let Op::Conv2d { window, groups: 1, weight, .. } = op else { return None };
    let sides = (0..2).flat_map(|axis| [(axis, true), (axis, false)]);
    sides.filter(|&(axis, _)| window.kernel[axis] > 1).find_map(|(axis, first)| {
        let n = window.kernel[axis];
        let border = if first { 0 } else { n - 1 };
        if weight.index_axis(Axis(axis + 1), border).iter().any(|&w| w != 0.0) {
            return None;
        }
        let mut smaller = op.clone();
        let Op::Conv2d { window, weight, .. } = &mut smaller else { return None };
        *window = without_tap(*window, axis, first)?;
        let rest = if first { Slice::from(1..) } else { Slice::from(..n - 1) };
        *weight = weight.slice_axis(Axis(axis + 1), rest).as_standard_layout().into_owned();
        (shape::infer(&smaller, &[input]).as_deref() == Ok(output)).then_some(smaller)
    })
}

/// The window without its first or last tap. The first takes padding with it that must be there; the last may only have touched
/// what lies behind the input.
fn without_tap(mut window: Window, axis: usize, first: bool) -> Option<Window> {
    window.kernel[axis] -= 1;
    let step = window.dilation[axis];
    if first {
        window.pad[axis] = window.pad[axis].checked_sub(step)?;
    } else {
        window.pad[axis + 2] = window.pad[axis + 2].saturating_sub(step);
    }
    Some(window)
}

#[cfg(test)]
mod tests {
    use super::super::networks::{Random, add, conv, network};
    use super::*;
    use crate::calibrate::{Observer, Stats, observe};
    use crate::execute::Runner;
    use crate::graph::{eval, simplify};
    use crate::lower::lower;
    use crate::pack::{ModelFile, PackOptions, pack};
    use crate::scheme::{Choice, QGraph, QuantOptions, Rounding, quantize};
    use crate::shrink::shrink;

    const KINDS: [Kind; 6] =
        [Kind::Filter, Kind::Channel, Kind::Shape, Kind::Block { rows: 2, cols: 4 }, Kind::Depth, Kind::Weight];

    fn weights(g: &Graph) -> usize {
        g.theta().len()
    }

    /// Every shape is what the operators say.
    fn check(g: &Graph) {
        for node in &g.nodes {
            let inputs: Vec<&[usize]> = node.inputs.iter().map(|&id| g.shape(id)).collect();
            assert_eq!(shape::infer(&node.op, &inputs).map_err(|e| e.at(&node.name)).unwrap(), g.shape(node.output));
            assert!(node.op.parameters().iter().all(|p| !p.1.is_empty()), "{} is not contiguous", node.name);
        }
    }

    fn close(a: &ArrayD<f32>, b: &ArrayD<f32>) -> bool {
        let range = b.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
        a.shape() == b.shape() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * range)
    }

    #[test]
    fn outputs_are_those_of_the_masked_network() {
        let mut r = Random(5);
        let mut smaller = [0; 6];
        for case in 0..150 {
            let graph = network(&mut r);
            let x = vec![r.array(&[1, 7, 7, 3])];
            for (kind, smaller) in KINDS.into_iter().zip(&mut smaller) {
                let Ok(groups) = Groups::find(&graph, kind) else { continue };
                let share = 2 + r.below(4);
                let kept: Vec<bool> = (0..groups.len()).map(|_| r.below(share) > 0).collect();
                let masked = mask(graph.clone(), &groups, &kept);
                let removed = remove(graph.clone(), &groups, &kept);
                check(&removed);
                let (expected, got) = (eval::run(&masked, &x).unwrap(), eval::run(&removed, &x).unwrap());
                assert!(close(&got[0], &expected[0]), "case {case}, {kind}: {got:?}, {expected:?}");
                *smaller += usize::from(weights(&removed) < weights(&graph));
            }
        }
        println!("smaller, by kind: {smaller:?}");
        assert!(smaller[0] > 100 && smaller[1] > 100 && smaller[4] > 30, "{smaller:?}");
    }

    #[test]
    fn everything_may_go_but_a_channel_of_every_tensor() {
        let mut r = Random(8);
        for case in 0..60 {
            let graph = network(&mut r);
            let x = vec![r.array(&[1, 7, 7, 3])];
            for kind in [Kind::Filter, Kind::Channel, Kind::Depth, Kind::Shape] {
                let Ok(groups) = Groups::find(&graph, kind) else { continue };
                let kept = vec![false; groups.len()];
                let removed = remove(graph.clone(), &groups, &kept);
                check(&removed);
                let expected = eval::run(&mask(graph.clone(), &groups, &kept), &x).unwrap();
                assert!(close(&eval::run(&removed, &x).unwrap()[0], &expected[0]), "case {case}, {kind}");
            }
        }
    }

    #[test]
    fn kernels_lose_borders_of_zeros() {
        let mut r = Random(4);
        for (pad, stride, kernel) in [(true, 1, [1, 2]), (false, 1, [3, 3]), (true, 2, [1, 2])] {
            let mut g = Graph::default();
            let x = g.add_input("x", &[1, 8, 8, 2]);
            let y = conv(&mut g, &mut r, x, 3, 3, 1, pad);
            let Op::Conv2d { window, weight, .. } = &mut g.nodes[0].op else { unreachable!() };
            window.stride = [stride; 2];
            for axis in [1, 2] {
                weight.index_axis_mut(Axis(axis), 0).fill(0.0);
            }
            weight.index_axis_mut(Axis(1), 2).fill(0.0);
            let mut g = with_shapes(g);
            g.add_output("y", y);
            let smaller = shrink_kernels(g.clone());
            check(&smaller);
            let Op::Conv2d { window, .. } = &smaller.nodes[0].op else { unreachable!() };
            assert_eq!(window.kernel, kernel, "pad {pad}, stride {stride}");
            let x = vec![r.array(&[1, 8, 8, 2])];
            assert_eq!(eval::run(&smaller, &x).unwrap(), eval::run(&g, &x).unwrap());
        }
    }

    #[test]
    fn chains_of_branches_collapse_to_what_is_left() {
        let mut r = Random(6);
        let mut g = Graph::default();
        let x = g.add_input("x", &[1, 4, 4, 3]);
        let mut y = x;
        for clamp in [Clamp::NONE, Clamp::RELU, Clamp::NONE] {
            let branch = conv(&mut g, &mut r, y, 3, 3, 1, true);
            y = add(&mut g, branch, y, clamp);
        }
        g.add_output("y", y);
        let groups = Groups::find(&g, Kind::Depth).unwrap();
        assert_eq!(groups.len(), 3);
        for case in 0..8 {
            let kept: Vec<bool> = (0..3).map(|j| case >> j & 1 == 1).collect();
            let removed = remove(g.clone(), &groups, &kept);
            check(&removed);
            let x = vec![r.array(&[1, 4, 4, 3])];
            let expected = eval::run(&mask(g.clone(), &groups, &kept), &x).unwrap();
            assert_eq!(eval::run(&removed, &x).unwrap(), expected, "case {case}");
        }
    }

    fn quantized(g: &Graph, stats: &Stats) -> QGraph {
        let choice = Choice { observer: Observer::MinMax, bias_correction: false };
        quantize(g, stats, &QuantOptions::default(), choice, &[false], &Rounding::default()).unwrap()
    }

    /// Statistics of `from` for the tensors of `to`, by name.
    fn same_stats(stats: &Stats, from: &Graph, to: &Graph) -> Stats {
        let of = |t: &crate::graph::Tensor| from.tensors.iter().position(|own| own.name == t.name).unwrap();
        Stats { tensors: to.tensors.iter().map(|t| stats.tensors[of(t)].clone()).collect() }
    }

    fn outputs(q: &QGraph, inputs: &[Vec<i8>]) -> Vec<Vec<Vec<i8>>> {
        let packed = pack(lower(q).unwrap(), PackOptions::default()).unwrap();
        let file = ModelFile::new(&packed.bytes);
        let model = pith::Model::parse(file.as_bytes()).unwrap();
        let mut runner = Runner::new(&model);
        inputs.iter().map(|x| runner.run_raw(std::slice::from_ref(x))).collect()
    }

    /// With the same ranges, because a sum of other length rounds otherwise, and zeros widen a range that does not reach zero.
    #[test]
    fn integers_are_those_of_the_masked_network() {
        let mut r = Random(9);
        let (mut same, mut other, mut own_ranges) = ([0; 6], [0; 6], [0; 6]);
        for case in 0..40 {
            let graph = network(&mut r);
            let samples: Vec<Vec<ArrayD<f32>>> = (0..4).map(|_| vec![r.array(&[1, 7, 7, 3])]).collect();
            let inputs: Vec<Vec<i8>> = (0..6).map(|_| (0..147).map(|_| r.below(256) as u8 as i8).collect()).collect();
            for (k, kind) in KINDS.into_iter().enumerate() {
                let Ok(groups) = Groups::find(&graph, kind) else { continue };
                let kept: Vec<bool> = (0..groups.len()).map(|_| r.below(3) > 0).collect();
                let masked = simplify(mask(graph.clone(), &groups, &kept));
                let removed = simplify(remove(graph.clone(), &groups, &kept));
                let stats = observe(&masked, &samples, &|| ()).unwrap();
                let expected = outputs(&shrink(quantized(&masked, &stats)).0, &inputs);
                let got = outputs(&quantized(&removed, &same_stats(&stats, &masked, &removed)), &inputs);
                if kind != Kind::Depth {
                    assert_eq!(got, expected, "case {case}, {kind}");
                }
                same[k] += usize::from(got == expected);
                other[k] += usize::from(got != expected);
                let own = outputs(&quantized(&removed, &observe(&removed, &samples, &|| ()).unwrap()), &inputs);
                own_ranges[k] += usize::from(own == expected);
            }
        }
        println!("same bytes, by kind: {same:?}, other {other:?}; with ranges of their own same {own_ranges:?}");
        // Without a branch its addition does not round again.
        assert!(same[0] + same[1] > 70 && other[4] < same[4], "{same:?}, {other:?}");
    }
}
