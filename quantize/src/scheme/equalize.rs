//! Cross-layer equalization: where a linear layer feeds another through nothing or a ReLU, scaling a channel up in the first and
//! down in the second changes nothing in float, but makes the ranges of channels alike (Nagel et al., "Data-Free Quantization
//! Through Weight Equalization and Bias Correction", section 4.1).

use crate::graph::{Clamp, Graph, Op};
use ndarray::{ArrayD, Axis};

/// An equivalent graph with balanced channels.
pub fn equalize(mut graph: Graph) -> Graph {
    // Chains settle in a few rounds.
    for _ in 0..4 {
        for i in 0..graph.nodes.len() {
            let output = graph.nodes[i].output;
            if let (&[next], false) = (graph.consumers(output).as_slice(), graph.is_output(output)) {
                balance(&mut graph, i, next);
            }
        }
    }
    graph
}

/// Weight of a layer that can be scaled, its bias and clamp.
fn layer(op: &mut Op) -> Option<(&mut ArrayD<f32>, &mut Vec<f32>, usize, Clamp)> {
    match op {
        Op::Conv2d { weight, bias, groups, clamp, .. } => Some((weight, bias, *groups, *clamp)),
        Op::Linear { weight, bias, clamp } => Some((weight, bias, 1, *clamp)),
        _ => None,
    }
}

fn balance(graph: &mut Graph, first: usize, second: usize) {
    let Some((weight, _, _, clamp)) = layer(&mut graph.nodes[first].op) else { return };
    if clamp != Clamp::NONE && clamp != Clamp::RELU {
        return;
    }
    let before = largest(weight, Axis(0));
    let Some((weight, _, groups, _)) = layer(&mut graph.nodes[second].op) else { return };
    let depthwise = groups == before.len() && weight.shape()[0] == groups;
    let axis = if depthwise { Axis(0) } else { Axis(weight.ndim() - 1) };
    let after = largest(weight, axis);
    if after.len() != before.len() || (groups != 1 && !depthwise) {
        return;
    }
    // before * s == after / s; channels that are zero on one side stay, and no factor goes to extremes.
    let factor = |(&a, &b): (&f32, &f32)| if a > 0.0 && b > 0.0 { (b / a).sqrt().clamp(1e-3, 1e3) } else { 1.0 };
    let factors: Vec<f32> = before.iter().zip(&after).map(factor).collect();
    weight.axis_iter_mut(axis).zip(&factors).for_each(|(mut w, s)| w.mapv_inplace(|v| v / s));
    let Some((weight, bias, ..)) = layer(&mut graph.nodes[first].op) else { return };
    weight.axis_iter_mut(Axis(0)).zip(&factors).for_each(|(mut w, s)| w.mapv_inplace(|v| v * s));
    bias.iter_mut().zip(&factors).for_each(|(b, s)| *b *= s);
}

fn largest(weight: &ArrayD<f32>, axis: Axis) -> Vec<f32> {
    weight.axis_iter(axis).map(|w| w.iter().fold(0f32, |m, v| m.max(v.abs()))).collect()
}
