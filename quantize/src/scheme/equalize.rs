//! Equalization: where a linear layer feeds another through nothing or a ReLU, scaling a channel up in the first and down in the
//! second changes nothing in float, but gives every channel more of the tensor's one integer range.
//!
//! Weights have a scale per output channel, so the first layer pays nothing for it. A depthwise second layer pays nothing either:
//! all channels get the same peak. Any other second layer mixes its inputs under one weight scale per filter; there the gain of
//! the activations and the loss of the weights are balanced by square roots (Nagel et al., "Data-Free Quantization Through
//! Weight Equalization and Bias Correction", section 4.1, with observed activations in the place of the first layer's weights;
//! Xiao et al., "SmoothQuant", section 4, with alpha = 1/2).

use crate::calibrate::Stats;
use crate::graph::{Clamp, Graph, Op};
use ndarray::{ArrayD, Axis};

/// Largest factor of a channel: a nearly dead one is not worth an extreme.
const LIMIT: f32 = 64.0;

/// An equivalent graph with balanced channels; `stats` are the graph's own.
pub fn equalize(mut graph: Graph, stats: &Stats) -> Graph {
    for i in 0..graph.nodes.len() {
        let output = graph.nodes[i].output;
        if let (&[next], false) = (graph.consumers(output).as_slice(), graph.is_output(output)) {
            balance(&mut graph, i, next, &stats.tensors[output.0].peak);
        }
    }
    graph
}

/// Weight of a layer that can be scaled, its bias, groups and clamp.
fn layer(op: &mut Op) -> Option<(&mut ArrayD<f32>, &mut Vec<f32>, usize, Clamp)> {
    match op {
        Op::Conv2d { weight, bias, groups, clamp, .. } => Some((weight, bias, *groups, *clamp)),
        Op::Linear { weight, bias, clamp } => Some((weight, bias, 1, *clamp)),
        _ => None,
    }
}

/// `peak`: largest magnitude of every channel between the two layers.
fn balance(graph: &mut Graph, first: usize, second: usize, peak: &[f32]) {
    let Some((weight, _, _, clamp)) = layer(&mut graph.nodes[first].op) else { return };
    let channels = weight.shape()[0];
    if (clamp != Clamp::NONE && clamp != Clamp::RELU) || peak.len() != channels {
        return;
    }
    let Some((weight, _, groups, _)) = layer(&mut graph.nodes[second].op) else { return };
    let depthwise = groups == channels && weight.shape()[0] == groups;
    let axis = if depthwise { Axis(0) } else { Axis(weight.ndim() - 1) };
    if weight.len_of(axis) != channels || (groups != 1 && !depthwise) {
        return;
    }
    let largest = peak.iter().copied().fold(0f32, f32::max);
    let reads: Vec<f32> = weight.axis_iter(axis).map(|w| w.iter().fold(0f32, |m, v| m.max(v.abs()))).collect();
    let heaviest = reads.iter().copied().fold(0f32, f32::max);
    let factor = |(&p, &w): (&f32, &f32)| match (p > 0.0 && w > 0.0, depthwise) {
        (false, _) => 1.0,
        (true, true) => (largest / p).min(LIMIT),
        (true, false) => ((largest / p) * (w / heaviest)).sqrt().clamp(1.0 / LIMIT, LIMIT),
    };
    let factors: Vec<f32> = peak.iter().zip(&reads).map(factor).collect();
    weight.axis_iter_mut(axis).zip(&factors).for_each(|(mut w, s)| w.mapv_inplace(|v| v / s));
    let Some((weight, bias, ..)) = layer(&mut graph.nodes[first].op) else { return };
    weight.axis_iter_mut(Axis(0)).zip(&factors).for_each(|(mut w, s)| w.mapv_inplace(|v| v * s));
    bias.iter_mut().zip(&factors).for_each(|(b, s)| *b *= s);
}
