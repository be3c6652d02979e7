//! Fusion: chains and diamonds of element-wise operators become one scalar function, and clamps become part of the operator
//! that feeds them.

use super::fold::{constant_of, sole_producer};
use super::scalar::{Binary, ScalarFn, Unary};
use super::{BinaryKind, Clamp, Graph, Op, TensorId};

/// Applies the rules until nothing changes. Clamps go into weighted operators first, then scalar functions are joined, and only
/// then do clamps go into what remains.
pub fn fuse(mut graph: Graph) -> Graph {
    type Rule = fn(&mut Graph, usize) -> bool;
    let stages: [&[Rule]; 2] = [
        &[clamp_into_weighted, hoist_over_reshape, clamp_over_max_pool, map_of_map, binary_to_map, affine_map],
        &[clamp_into_binary],
    ];
    for rules in stages {
        while (0..graph.nodes.len()).any(|i| rules.iter().any(|rule| rule(&mut graph, i))) {
            graph = graph.compact();
        }
    }
    graph
}

/// The clamp that node `i` is.
fn clamp_of(graph: &Graph, i: usize) -> Option<Clamp> {
    match &graph.nodes[i].op {
        Op::Map(f) => f.as_clamp(),
        _ => None,
    }
}

fn clamp_into(graph: &mut Graph, i: usize, find: fn(&mut Op) -> Option<&mut Clamp>) -> bool {
    let Some(next) = clamp_of(graph, i) else { return false };
    let Some(p) = sole_producer(graph, graph.nodes[i].inputs[0]) else { return false };
    let Some(clamp) = find(&mut graph.nodes[p].op) else { return false };
    *clamp = clamp.then(next);
    let (from, to) = (graph.nodes[i].output, graph.nodes[i].inputs[0]);
    graph.redirect(from, to);
    true
}

fn clamp_into_weighted(graph: &mut Graph, i: usize) -> bool {
    clamp_into(graph, i, |op| match op {
        Op::Conv2d { clamp, .. }
        | Op::ConvTranspose2d { clamp, .. }
        | Op::Linear { clamp, .. }
        | Op::Affine { clamp, .. } => Some(clamp),
        _ => None,
    })
}

fn clamp_into_binary(graph: &mut Graph, i: usize) -> bool {
    clamp_into(graph, i, |op| match op {
        Op::Binary { clamp, .. } => Some(clamp),
        _ => None,
    })
}

/// Swaps node `i` with the node `p` that feeds it alone; `i` keeps its place and gets `p`'s operator.
fn swap_with_producer(graph: &mut Graph, i: usize, p: usize) {
    let (first, second) = (graph.nodes[p].clone(), graph.nodes[i].clone());
    let shape = graph.shape(first.inputs[0]).to_vec();
    let between = graph.add_tensor(second.name.clone(), &shape);
    graph.nodes[p].op = second.op;
    graph.nodes[p].name = second.name;
    graph.nodes[p].output = between;
    graph.nodes[i].op = first.op;
    graph.nodes[i].name = first.name;
    graph.nodes[i].inputs = vec![between];
}

/// Element-wise operators move above a reshape, towards what they can join.
fn hoist_over_reshape(graph: &mut Graph, i: usize) -> bool {
    let per_channel = match &graph.nodes[i].op {
        Op::Map(_) => false,
        Op::Affine { .. } | Op::BatchNorm { .. } | Op::PRelu { .. } => true,
        _ => return false,
    };
    let Some(p) = sole_producer(graph, graph.nodes[i].inputs[0]) else { return false };
    let (before, after) = (graph.shape(graph.nodes[p].inputs[0]), graph.shape(graph.nodes[p].output));
    if !matches!(graph.nodes[p].op, Op::Reshape { .. }) || (per_channel && before.last() != after.last()) {
        return false;
    }
    swap_with_producer(graph, i, p);
    true
}

/// A clamp commutes with a maximum.
fn clamp_over_max_pool(graph: &mut Graph, i: usize) -> bool {
    let Some(p) = clamp_of(graph, i).and_then(|_| sole_producer(graph, graph.nodes[i].inputs[0])) else { return false };
    if !matches!(graph.nodes[p].op, Op::MaxPool(_)) {
        return false;
    }
    swap_with_producer(graph, i, p);
    true
}

/// `g(f(x))` of one reader is one function.
fn map_of_map(graph: &mut Graph, i: usize) -> bool {
    let Op::Map(outer) = &graph.nodes[i].op else { return false };
    let Some(p) = sole_producer(graph, graph.nodes[i].inputs[0]) else { return false };
    let Op::Map(inner) = &graph.nodes[p].op else { return false };
    graph.nodes[i].op = Op::Map(outer.of(inner));
    graph.nodes[i].inputs = graph.nodes[p].inputs.clone();
    true
}

/// An operator of two tensors that are both functions of one tensor (or constants) is a function of that tensor: `x * sigmoid(x)`.
fn binary_to_map(graph: &mut Graph, i: usize) -> bool {
    let node = &graph.nodes[i];
    let Op::Binary { kind, clamp } = node.op else { return false };
    let kind = match kind {
        BinaryKind::Add => Binary::Add,
        BinaryKind::Sub => Binary::Sub,
        BinaryKind::Mul => Binary::Mul,
    };
    for a in readings(graph, node.inputs[0]) {
        for b in readings(graph, node.inputs[1]) {
            let root = match (a.0, b.0) {
                (Some(a), Some(b)) if a == b => a,
                (Some(root), None) | (None, Some(root)) => root,
                _ => continue,
            };
            if graph.shape(root) != graph.shape(node.output) {
                continue;
            }
            let f = ScalarFn::binary(kind, a.1.clone(), b.1);
            let f = if clamp == Clamp::NONE { f } else { ScalarFn::Unary(Unary::Clamp(clamp), Box::new(f)) };
            graph.nodes[i].op = Op::Map(f);
            graph.nodes[i].inputs = vec![root];
            return true;
        }
    }
    false
}

/// What a tensor can be read as: a scalar constant, itself, or a function of its producer's input.
fn readings(graph: &Graph, id: TensorId) -> Vec<(Option<TensorId>, ScalarFn)> {
    if let Some(value) = constant_of(graph, id) {
        return match value.len() {
            1 => value.iter().map(|&v| (None, ScalarFn::Const(v))).collect(),
            _ => Vec::new(),
        };
    }
    let mut readings = vec![(Some(id), ScalarFn::X)];
    if let Some(p) = graph.producer(id)
        && let Op::Map(f) = &graph.nodes[p].op
    {
        readings.push((Some(graph.nodes[p].inputs[0]), f.clone()));
    }
    readings
}

/// `a x + b` is `Affine`, which weights beside it can absorb - unless a function before or after it can.
fn affine_map(graph: &mut Graph, i: usize) -> bool {
    let Op::Map(f) = &graph.nodes[i].op else { return false };
    let Some((a, b)) = f.as_affine() else { return false };
    let weighted = |op: &Op| {
        matches!(
            op,
            Op::Conv2d { .. }
                | Op::ConvTranspose2d { .. }
                | Op::Linear { .. }
                | Op::Affine { .. }
                | Op::BatchNorm { .. }
        )
    };
    let node = &graph.nodes[i];
    let before = graph.producer(node.inputs[0]).is_some_and(|p| weighted(&graph.nodes[p].op));
    let after = graph.consumers(node.output).iter().any(|&c| weighted(&graph.nodes[c].op));
    let Some(&channels) = graph.shape(node.output).last().filter(|_| before || after) else { return false };
    graph.nodes[i].op =
        Op::Affine { scale: vec![a as f32; channels], bias: vec![b as f32; channels], clamp: Clamp::NONE };
    true
}
