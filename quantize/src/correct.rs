//! Empirical bias correction of the layers that feed the outputs.
//!
//! The analytic correction in [`crate::scheme`] removes what rounded weights add on average, layer by layer. What clipping and
//! rounding of activations leave behind still reaches the outputs as a shift, and functions such as a sigmoid far from zero turn a
//! shift into a factor. So the integer network runs on the calibration samples, and the bias of every last weighted layer is
//! moved by its mean error per channel, each error weighted by how much the output feels it (the squared derivative of the
//! functions in between): the shift with the least squared error at the output, to first order.

use crate::execute::Runner;
use crate::graph::{Clamp, Graph, Op, ScalarFn, TensorId, eval};
use crate::lower::{LowerError, lower};
use crate::pack::{ModelFile, PackError, PackOptions, pack};
use crate::scheme::{QGraph, stage_bias};
use ndarray::ArrayD;
use rayon::prelude::*;

/// Why the network does not run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum CorrectError {
    #[error(transparent)]
    Lower(#[from] LowerError),
    #[error(transparent)]
    Pack(#[from] PackError),
}

/// Per channel: sum of weighted errors, sum of weights.
type Shift = (Vec<f64>, Vec<f64>);

/// A weighted node, its output, and the function between it and the network's output.
type Last = (usize, TensorId, ScalarFn);

/// Moves the biases of the last weighted layers of `q`, the quantized form of `graph`.
pub fn correct_outputs(mut q: QGraph, graph: &Graph, samples: &[Vec<ArrayD<f32>>]) -> Result<QGraph, CorrectError> {
    let last = last_weighted(&q.graph);
    if last.is_empty() {
        return Ok(q);
    }
    let packed = pack(lower(&q)?, PackOptions::default())?;
    let file = ModelFile::new(&packed.bytes);
    let model = pith::Model::parse(file.as_bytes()).map_err(PackError::Invalid)?;
    let one = |runner: &mut Runner<'_>, sample: &Vec<ArrayD<f32>>| -> Vec<Shift> {
        let mut truth: Vec<Option<ArrayD<f32>>> = vec![None; last.len()];
        let _ = eval::run_visiting(graph, sample, &mut |id, values| {
            if let Some(k) = last.iter().position(|(_, t, _)| *t == id) {
                truth[k] = Some(values.clone());
            }
        });
        let mut shifts: Vec<Shift> = vec![(Vec::new(), Vec::new()); last.len()];
        runner.run_visiting(sample, &mut |id, values| {
            // Records name tensors as the graph does.
            let Some(k) = last.iter().position(|(_, t, _)| t.0 == id as usize) else { return };
            let Some(expected) = &truth[k] else { return };
            let params = q.activations[id as usize];
            let channels = expected.shape().last().copied().unwrap_or(1).max(1);
            let (mut sums, mut weights) = (vec![0.0; channels], vec![0.0; channels]);
            for (i, (&v, &e)) in values.iter().zip(expected).enumerate() {
                let error = params.scale as f64 * (v as i32 - params.zero_point) as f64 - e as f64;
                let weight = slope(&last[k].2, e as f64).powi(2);
                sums[i % channels] += weight * error;
                weights[i % channels] += weight;
            }
            shifts[k] = (sums, weights);
        });
        shifts
    };
    let all: Vec<Vec<Shift>> = samples.par_iter().map_init(|| Runner::new(&model), one).collect();
    for (k, (node, ..)) in last.iter().enumerate() {
        let from = q.activations[q.graph.nodes[*node].inputs[0].0];
        let Some(weights) = &mut q.weights[*node] else { continue };
        for (c, bias) in weights.bias.iter_mut().enumerate() {
            let sum: f64 = all.iter().filter_map(|shifts| shifts[k].0.get(c)).sum();
            let weight: f64 = all.iter().filter_map(|shifts| shifts[k].1.get(c)).sum();
            if weight <= 0.0 {
                continue;
            }
            let steps = sum / weight / (from.scale as f64 * weights.scales[c] as f64);
            *bias = bias.saturating_sub(stage_bias(steps, weights.shift[c]) as i32);
        }
    }
    Ok(q)
}

/// Derivative of `f` at `x`.
fn slope(f: &ScalarFn, x: f64) -> f64 {
    let h = 1e-4 * (1.0 + x.abs());
    (f.eval(x + h) - f.eval(x - h)) / (2.0 * h)
}

/// Weighted nodes without a clamp whose values reach an output through element-wise functions and reshapes alone.
fn last_weighted(graph: &Graph) -> Vec<Last> {
    let mut found: Vec<Last> = Vec::new();
    for port in &graph.outputs {
        let (mut tensor, mut function) = (port.tensor, ScalarFn::X);
        while let Some(i) = graph.producer(tensor) {
            let node = &graph.nodes[i];
            match &node.op {
                Op::Map(f) => (tensor, function) = (node.inputs[0], function.of(f)),
                // A softmax couples its inputs; each counts alike.
                Op::Reshape { .. } | Op::Softmax { .. } | Op::Transpose { .. } => tensor = node.inputs[0],
                Op::Conv2d { clamp: Clamp::NONE, .. } | Op::Linear { clamp: Clamp::NONE, .. } => {
                    if !found.iter().any(|(other, ..)| *other == i) {
                        found.push((i, node.output, function));
                    }
                    break;
                }
                _ => break,
            }
        }
    }
    found
}
