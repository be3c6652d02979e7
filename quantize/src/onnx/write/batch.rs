//! Where the batch is.
//!
//! The IR has a batch of 1. A file may have any if every operator treats samples alike: then the batch is some axis of
//! every tensor that depends on an input, none of a constant.

use crate::graph::{Graph, Op};

/// The batch axis of every tensor; nothing if some operator needs a batch of 1.
pub(super) fn axes(graph: &Graph) -> Option<Vec<Option<usize>>> {
    let mut axes = vec![None; graph.tensors.len()];
    for port in &graph.inputs {
        let leads = graph.shape(port.tensor).first() == Some(&1) && port.onnx_axes.first() == Some(&0);
        axes[port.tensor.0] = Some(leads.then_some(0)?);
    }
    for node in &graph.nodes {
        let inputs: Vec<_> = node.inputs.iter().map(|id| (axes[id.0], graph.shape(*id))).collect();
        if inputs.iter().any(|(axis, _)| axis.is_some()) {
            axes[node.output.0] = Some(through(&node.op, &inputs, graph.shape(node.output))?);
        }
    }
    Some(axes)
}

/// The output's batch axis if `op` works sample by sample.
fn through(op: &Op, inputs: &[(Option<usize>, &[usize])], output: &[usize]) -> Option<usize> {
    let (axis, shape) = *inputs.iter().find(|(axis, _)| axis.is_some())?;
    let axis = axis?;
    let kept = |keeps: bool| keeps.then_some(axis);
    match op {
        Op::Const(_) => None,
        Op::Conv2d { .. }
        | Op::ConvTranspose2d { .. }
        | Op::MaxPool(_)
        | Op::AveragePool { .. }
        | Op::Resize { .. } => kept(axis == 0),
        Op::Linear { .. } | Op::BatchNorm { .. } | Op::Affine { .. } | Op::PRelu { .. } => kept(axis + 1 < shape.len()),
        Op::Map(_) => Some(axis),
        Op::Binary { .. } => broadcast(inputs, output),
        Op::Mean { axes } => kept(!axes.contains(&axis)),
        Op::Pad { before, after, .. } => kept(before[axis] + after[axis] == 0),
        Op::Concat { axis: along } => kept(*along != axis && inputs.iter().all(|(a, _)| *a == Some(axis))),
        Op::Slice { .. } => Some(axis),
        Op::Reshape { shape } => kept(axis == 0 && shape.first() == Some(&1)),
        Op::Transpose { perm } => perm.iter().position(|&p| p == axis),
        Op::Softmax { axis: along } => kept(*along != axis),
    }
}

/// Both operands have the batch on one axis of the output, or one has it and the other is broadcast along it.
fn broadcast(inputs: &[(Option<usize>, &[usize])], output: &[usize]) -> Option<usize> {
    let at = |(axis, shape): &(Option<usize>, &[usize])| axis.map(|axis| axis + output.len() - shape.len());
    let axis = inputs.iter().find_map(at)?;
    let fits = |input: &(Option<usize>, &[usize])| at(input).is_none_or(|a| a == axis);
    (inputs.iter().all(fits) && output[axis] == 1).then_some(axis)
}
