//! Residual branches: what an addition can do without.
//!
//! `y = skip + branch(t)`, where everything on the branch serves this addition alone and `skip` comes from `t` too. With all parameters
//! of the branch zero its output is zero, and `y = skip`. Where both operands have weights (a projection shortcut beside the main
//! path), the one with more layers is the branch and the other one stays.

use super::channels::{Reading, reading};
use crate::graph::{BinaryKind, Graph, Op, TensorId};

/// A branch that can be skipped.
#[derive(Clone, Debug)]
pub(super) struct Branch {
    /// The addition.
    pub add: usize,
    /// Which of its two operands stays.
    pub operand: usize,
    /// The tensor that is.
    pub skip: TensorId,
    /// The nodes that serve the other operand alone.
    pub nodes: Vec<usize>,
}

/// The branches of a graph, disjoint and in its order (of nested ones the inner), and why other additions have none.
pub(super) fn branches(graph: &Graph) -> (Vec<Branch>, Vec<(String, String)>) {
    let (mut found, mut refused) = (Vec::new(), Vec::new());
    for (add, node) in graph.nodes.iter().enumerate() {
        if matches!(node.op, Op::Binary { kind: BinaryKind::Add, .. }) {
            match branch(graph, add) {
                Ok(branch) => found.push(branch),
                Err(why) => refused.push((node.name.clone(), why)),
            }
        }
    }
    found.sort_by_key(|b: &Branch| (b.nodes.len(), b.add));
    let mut taken = vec![false; graph.nodes.len()];
    found.retain(|b| {
        let free = b.nodes.iter().all(|&i| !taken[i]);
        b.nodes.iter().filter(|_| free).for_each(|&i| taken[i] = true);
        free
    });
    found.sort_by_key(|b| b.add);
    (found, refused)
}

fn branch(graph: &Graph, add: usize) -> Result<Branch, String> {
    let node = &graph.nodes[add];
    let candidate = |operand: usize| {
        let (branch, skip) = (node.inputs[operand], node.inputs[1 - operand]);
        Branch { add, operand: 1 - operand, skip, nodes: serving(graph, add, branch, skip) }
    };
    let depth = |b: &Branch| {
        let weights = |&&i: &&usize| matches!(reading(&graph.nodes[i].op), Reading::Mixed | Reading::Grouped(_));
        let parameters = |&i: &usize| graph.nodes[i].op.parameters().iter().map(|p| p.1.len()).sum::<usize>();
        (b.nodes.iter().filter(weights).count(), b.nodes.iter().map(parameters).sum::<usize>())
    };
    let (first, second) = (candidate(0), candidate(1));
    let branch = if depth(&first) > depth(&second) { first } else { second };
    if depth(&branch).0 == 0 {
        return Err("adds nothing with weights of its own".into());
    }
    if graph.shape(branch.skip) != graph.shape(node.output) {
        return Err("has no operand of the output's shape to skip to".into());
    }
    let upstream = upstream(graph, branch.skip);
    let reads = branch.nodes.iter().flat_map(|&i| &graph.nodes[i].inputs);
    let inside = |id: &TensorId| branch.nodes.iter().any(|&i| graph.nodes[i].output == *id);
    if reads.filter(|id| !inside(id)).any(|id| !upstream[id.0]) {
        return Err("joins two paths that do not part before it".into());
    }
    if !is_silent(graph, &branch.nodes, node.inputs[1 - branch.operand]) {
        return Err("has a branch whose output is not zero when its parameters are".into());
    }
    Ok(branch)
}

/// The nodes that nothing needs once `add` reads only `skip`.
fn serving(graph: &Graph, add: usize, branch: TensorId, skip: TensorId) -> Vec<usize> {
    let mut live = vec![false; graph.tensors.len()];
    graph.outputs.iter().for_each(|p| live[p.tensor.0] = true);
    // What outputs need today, with the addition as it is, is a superset: dead nodes are nobody's branch.
    let mut needed = live.clone();
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        if needed[node.output.0] {
            node.inputs.iter().for_each(|id| needed[id.0] = true);
        }
        if live[node.output.0] {
            node.inputs.iter().filter(|&&id| i != add || id == skip).for_each(|id| live[id.0] = true);
        }
    }
    if branch == skip {
        return Vec::new();
    }
    (0..graph.nodes.len()).filter(|&i| needed[graph.nodes[i].output.0] && !live[graph.nodes[i].output.0]).collect()
}

/// Tensors that `tensor` is made of, itself and constants included.
fn upstream(graph: &Graph, tensor: TensorId) -> Vec<bool> {
    let mut found = vec![false; graph.tensors.len()];
    found[tensor.0] = true;
    for node in graph.nodes.iter().rev() {
        if found[node.output.0] {
            node.inputs.iter().for_each(|id| found[id.0] = true);
        }
        if matches!(node.op, Op::Const(_)) {
            found[node.output.0] = true;
        }
    }
    found
}

/// Whether `output` is zero when all parameters of `nodes` are.
fn is_silent(graph: &Graph, nodes: &[usize], output: TensorId) -> bool {
    let mut zero = vec![false; graph.tensors.len()];
    for node in nodes.iter().map(|&i| &graph.nodes[i]) {
        let mut inputs = node.inputs.iter().map(|id| zero[id.0]);
        zero[node.output.0] = match &node.op {
            Op::Conv2d { clamp, .. } | Op::ConvTranspose2d { clamp, .. } | Op::Linear { clamp, .. } => {
                clamp.apply(0.0) == 0.0
            }
            Op::BatchNorm { .. } => true,
            Op::Affine { bias, clamp, .. } => inputs.all(|z| z) && bias.iter().all(|&b| clamp.apply(b) == 0.0),
            Op::Map(f) => inputs.all(|z| z) && f.eval(0.0) == 0.0,
            Op::Binary { kind: BinaryKind::Mul, clamp } => inputs.any(|z| z) && clamp.apply(0.0) == 0.0,
            Op::Binary { clamp, .. } => inputs.all(|z| z) && clamp.apply(0.0) == 0.0,
            Op::Pad { value, .. } => inputs.all(|z| z) && *value == 0.0,
            Op::Const(_) | Op::Softmax { .. } => false,
            _ => inputs.all(|z| z),
        };
    }
    zero[output.0]
}
