//! Removal of transposes.
//!
//! The importer states layouts literally: an NCHW operator is transpose · NHWC operator · transpose. Transposes sink through
//! operators that do not care about axes (or whose axes can be renamed) until they meet their inverse, fold into the weights of
//! a `Linear`, or reach an input or output, whose [`super::Port::onnx_axes`] then record the order. What cannot sink is hoisted
//! towards the inputs instead. A transpose that moves only axes of length 1 is a reshape.

use super::fold::{BatchNorms, constant_of, sole_producer};
use super::{Graph, Op, TensorId};
use ndarray::{ArrayD, Axis, IxDyn};

const NCHW_TO_NHWC: [usize; 4] = [0, 2, 3, 1];
const NHWC_TO_NCHW: [usize; 4] = [0, 3, 1, 2];

/// Removes every transpose that can be removed.
pub fn remove_transposes(mut graph: Graph, norms: BatchNorms) -> Graph {
    type Rule = fn(&mut Graph, usize) -> bool;
    let cancel: [Rule; 4] = [merge, unit_axes, into_linear, at_output];
    let phases: [&[Rule]; 2] = [&[sink], &[hoist]];
    for moves in phases {
        let rules: Vec<Rule> = cancel.iter().chain(moves).copied().collect();
        // Every rule moves transposes one way, so this ends; the bound guards against a rule that does not.
        for _ in 0..64 * (graph.nodes.len() + 1) {
            let changed = (0..graph.nodes.len()).any(|i| rules.iter().any(|rule| rule(&mut graph, i)));
            if !changed && !at_input(&mut graph) {
                break;
            }
            graph = super::fold::fold(graph.compact(), norms);
        }
    }
    graph
}

fn perm_of(graph: &Graph, i: usize) -> Option<Vec<usize>> {
    match &graph.nodes[i].op {
        Op::Transpose { perm } => Some(perm.clone()),
        _ => None,
    }
}

/// The transpose that writes `id`: its permutation and its input.
fn transposed(graph: &Graph, id: TensorId) -> Option<(Vec<usize>, TensorId)> {
    let p = graph.producer(id)?;
    Some((perm_of(graph, p)?, graph.nodes[p].inputs[0]))
}

fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; perm.len()];
    perm.iter().enumerate().for_each(|(i, &p)| inverse[p] = i);
    inverse
}

/// Transpose of a transpose.
fn merge(graph: &mut Graph, i: usize) -> bool {
    let Some(outer) = perm_of(graph, i) else { return false };
    let Some((inner, input)) = transposed(graph, graph.nodes[i].inputs[0]) else { return false };
    graph.nodes[i].op = Op::Transpose { perm: outer.iter().map(|&p| inner[p]).collect() };
    graph.nodes[i].inputs = vec![input];
    true
}

/// A transpose that keeps the order of all axes longer than 1.
fn unit_axes(graph: &mut Graph, i: usize) -> bool {
    let Some(perm) = perm_of(graph, i) else { return false };
    let shape = graph.shape(graph.nodes[i].inputs[0]);
    if !only_moves_unit_axes(&perm, shape) {
        return false;
    }
    graph.nodes[i].op = Op::Reshape { shape: graph.shape(graph.nodes[i].output).to_vec() };
    true
}

fn only_moves_unit_axes(perm: &[usize], shape: &[usize]) -> bool {
    let moved: Vec<usize> = perm.iter().copied().filter(|&p| shape[p] > 1).collect();
    moved.is_sorted()
}

/// Transpose, reshape to one row, `Linear`: the weight's columns are permuted instead.
fn into_linear(graph: &mut Graph, i: usize) -> bool {
    if !matches!(graph.nodes[i].op, Op::Linear { .. }) {
        return false;
    }
    let input = graph.nodes[i].inputs[0];
    let columns = graph.shape(input).last().copied().unwrap_or(0);
    if graph.shape(input).iter().product::<usize>() != columns {
        return false;
    }
    let Some(reshape) = sole_producer(graph, input) else { return false };
    if !matches!(graph.nodes[reshape].op, Op::Reshape { .. }) {
        return false;
    }
    let Some((perm, source)) = transposed(graph, graph.nodes[reshape].inputs[0]) else { return false };
    let shape = graph.shape(source).to_vec();
    // Position in the transposed order of every element of the source order.
    let mut order = ArrayD::from_elem(IxDyn(&perm.iter().map(|&p| shape[p]).collect::<Vec<_>>()), 0usize);
    order.iter_mut().enumerate().for_each(|(i, v)| *v = i);
    let positions: Vec<usize> = order.view().permuted_axes(IxDyn(&inverse(&perm))).iter().copied().collect();
    if let Op::Linear { weight, .. } = &mut graph.nodes[i].op {
        // Parameters are slices, so the elements stay in row-major order.
        *weight = weight.select(Axis(1), &positions).as_standard_layout().into_owned();
    }
    graph.nodes[reshape].inputs = vec![source];
    true
}

/// An NHWC map that is transposed to NCHW only to be an output stays NHWC.
fn at_output(graph: &mut Graph, i: usize) -> bool {
    if perm_of(graph, i).as_deref() != Some(&NHWC_TO_NCHW[..]) {
        return false;
    }
    let (output, input) = (graph.nodes[i].output, graph.nodes[i].inputs[0]);
    if graph.producer(input).is_none() {
        return false;
    }
    let mut changed = false;
    for port in graph.outputs.iter_mut().filter(|p| p.tensor == output && p.onnx_axes == [0, 1, 2, 3]) {
        port.tensor = input;
        port.onnx_axes = NCHW_TO_NHWC.to_vec();
        changed = true;
    }
    changed
}

/// An NCHW input whose readers all transpose it to NHWC is fed as NHWC.
fn at_input(graph: &mut Graph) -> bool {
    for k in 0..graph.inputs.len() {
        let input = graph.inputs[k].tensor;
        let readers = graph.consumers(input);
        let all = readers.iter().all(|&i| perm_of(graph, i).as_deref() == Some(&NCHW_TO_NHWC[..]));
        if readers.is_empty() || !all || graph.is_output(input) || graph.inputs[k].onnx_axes != [0, 1, 2, 3] {
            continue;
        }
        let shape: Vec<usize> = NCHW_TO_NHWC.iter().map(|&p| graph.shape(input)[p]).collect();
        graph.tensors[input.0].shape = shape;
        graph.inputs[k].onnx_axes = NCHW_TO_NHWC.to_vec();
        for i in readers {
            graph.redirect(graph.nodes[i].output, input);
        }
        return true;
    }
    false
}

/// Moves the transpose that feeds node `i` behind it.
fn sink(graph: &mut Graph, i: usize) -> bool {
    let (inputs, output) = (graph.nodes[i].inputs.clone(), graph.nodes[i].output);
    let found = inputs.iter().enumerate().find_map(|(k, &id)| Some((k, transposed(graph, id)?)));
    let Some((first, (perm, source))) = found else { return false };
    let Some(op) = renamed(&graph.nodes[i].op, &perm) else { return false };
    let mut moved = vec![source];
    if inputs.len() > 1 {
        moved.clear();
        let rank = perm.len();
        for (k, &id) in inputs.iter().enumerate() {
            let other = match transposed(graph, id) {
                Some((p, source)) if p == perm => source,
                _ if k == first => source,
                other => {
                    let free = constant_of(graph, id).is_some() || other.is_some() || {
                        let shape = graph.shape(id);
                        shape.len() == rank && only_moves_unit_axes(&inverse(&perm), shape)
                    };
                    let Some(id) = Some(id).filter(|_| free).and_then(|id| with_rank(graph, output, id, rank)) else {
                        return false;
                    };
                    insert_before(graph, output, Op::Transpose { perm: inverse(&perm) }, id)
                }
            };
            moved.push(other);
        }
    }
    replace(graph, output, op, moved, perm);
    true
}

/// `id` reshaped to `rank` axes by leading ones.
fn with_rank(graph: &mut Graph, before: TensorId, id: TensorId, rank: usize) -> Option<TensorId> {
    let shape = graph.shape(id).to_vec();
    let missing = rank.checked_sub(shape.len())?;
    if missing == 0 {
        return Some(id);
    }
    let shape = [vec![1; missing], shape].concat();
    Some(insert_before(graph, before, Op::Reshape { shape }, id))
}

/// A new node that reads `id`, right before the node that writes `before`.
fn insert_before(graph: &mut Graph, before: TensorId, op: Op, id: TensorId) -> TensorId {
    let name = format!("{}/{}", graph.tensors[id.0].name, op.name());
    match graph.push(name, op, &[id]) {
        Ok(output) => {
            if let (Some(at), Some(node)) = (graph.producer(before), graph.nodes.pop()) {
                graph.nodes.insert(at, node);
            }
            output
        }
        Err(_) => id,
    }
}

/// The node that writes `old` becomes `op` on `inputs`, followed by `Transpose(perm)` that writes `old`.
fn replace(graph: &mut Graph, old: TensorId, op: Op, inputs: Vec<TensorId>, perm: Vec<usize>) {
    let Some(at) = graph.producer(old) else { return };
    let shape: Vec<usize> = inverse(&perm).iter().map(|&p| graph.shape(old)[p]).collect();
    let name = graph.tensors[old.0].name.clone();
    let between = graph.add_tensor(name.clone(), &shape);
    let node = &mut graph.nodes[at];
    node.op = op;
    node.inputs = inputs;
    node.output = between;
    let transpose = super::Node {
        name: format!("{name}/Transpose"),
        op: Op::Transpose { perm },
        inputs: vec![between],
        output: old,
    };
    graph.nodes.insert(at + 1, transpose);
}

/// `op`, which reads `Transpose(perm)`, as it acts on the untransposed axes; none if its axes are fixed.
fn renamed(op: &Op, perm: &[usize]) -> Option<Op> {
    let keeps_last = perm.last() == Some(&(perm.len().wrapping_sub(1)));
    let back = inverse(perm);
    let permute = |values: &[usize]| back.iter().map(|&i| values[i]).collect::<Vec<_>>();
    Some(match op {
        Op::Map(_) | Op::Binary { .. } => op.clone(),
        Op::Affine { .. } | Op::BatchNorm { .. } | Op::PRelu { .. } if keeps_last => op.clone(),
        Op::Concat { axis } => Op::Concat { axis: perm[*axis] },
        Op::Softmax { axis } => Op::Softmax { axis: perm[*axis] },
        Op::Mean { axes } => {
            let mut axes: Vec<usize> = axes.iter().map(|&axis| perm[axis]).collect();
            axes.sort_unstable();
            Op::Mean { axes }
        }
        Op::Pad { before, after, value } => Op::Pad { before: permute(before), after: permute(after), value: *value },
        Op::Slice { start, step, len } => {
            Op::Slice { start: permute(start), step: back.iter().map(|&i| step[i]).collect(), len: permute(len) }
        }
        _ => return None,
    })
}

/// Moves transpose `i` before the element-wise operator that feeds it alone, towards the input.
fn hoist(graph: &mut Graph, i: usize) -> bool {
    let Some(perm) = perm_of(graph, i) else { return false };
    let Some(p) = sole_producer(graph, graph.nodes[i].inputs[0]) else { return false };
    let inputs = graph.nodes[p].inputs.clone();
    let movable = match &graph.nodes[p].op {
        Op::Map(_) => true,
        Op::Binary { .. } => inputs.iter().filter(|&&id| constant_of(graph, id).is_some()).count() == 1,
        _ => false,
    };
    let shape = graph.shape(graph.nodes[p].output).to_vec();
    if !movable {
        return false;
    }
    let (op, name, output) = (graph.nodes[p].op.clone(), graph.nodes[p].name.clone(), graph.nodes[i].output);
    let mut moved = Vec::new();
    for id in inputs {
        let Some(id) = with_rank(graph, output, id, shape.len()) else { return false };
        moved.push(insert_before(graph, output, Op::Transpose { perm: perm.clone() }, id));
    }
    if let Some(at) = graph.producer(output) {
        graph.nodes[at] = super::Node { name, op, inputs: moved, output };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::super::{BinaryKind, Clamp, Window, eval};
    use super::*;

    fn conv_nchw(graph: &mut Graph, name: &str, x: TensorId, oc: usize, kernel: usize) -> TensorId {
        let c = graph.shape(x)[1];
        let x = graph.push(format!("{name}.in"), Op::Transpose { perm: NCHW_TO_NHWC.to_vec() }, &[x]).unwrap();
        let mut k = oc as f32;
        let weight = ArrayD::from_shape_simple_fn(IxDyn(&[oc, kernel, kernel, c]), || {
            k = (k * 1.7 + 0.3) % 2.0;
            k - 1.0
        });
        let window = Window { kernel: [kernel; 2], stride: [1; 2], dilation: [1; 2], pad: [kernel / 2; 4] };
        let op = Op::Conv2d { window, groups: 1, weight, bias: vec![0.1; oc], clamp: Clamp::NONE };
        let y = graph.push(name, op, &[x]).unwrap();
        graph.push(format!("{name}.out"), Op::Transpose { perm: NHWC_TO_NCHW.to_vec() }, &[y]).unwrap()
    }

    fn input(shape: &[usize]) -> ArrayD<f32> {
        let mut k = 0.0f32;
        ArrayD::from_shape_simple_fn(IxDyn(shape), || {
            k = (k * 1.31 + 0.7) % 3.0;
            k - 1.5
        })
    }

    /// Outputs in ONNX axes before and after agree, and no transpose is left.
    fn check(graph: Graph, transposes_left: usize) {
        let x: Vec<ArrayD<f32>> = graph.inputs.iter().map(|p| input(graph.shape(p.tensor))).collect();
        let expected = eval::run(&graph, &x).unwrap();
        let after = remove_transposes(graph, BatchNorms::Folded);
        let count = after.nodes.iter().filter(|n| matches!(n.op, Op::Transpose { .. })).count();
        assert_eq!(count, transposes_left, "{:?}", after.nodes.iter().map(|n| n.op.name()).collect::<Vec<_>>());
        let fed: Vec<ArrayD<f32>> =
            after.inputs.iter().zip(x).map(|(p, x)| x.permuted_axes(IxDyn(&p.onnx_axes))).collect();
        let got = eval::run(&after, &fed).unwrap();
        for ((port, got), expected) in after.outputs.iter().zip(got).zip(expected) {
            let got = got.permuted_axes(IxDyn(&inverse(&port.onnx_axes)));
            assert_eq!(got.shape(), expected.shape());
            assert!(got.iter().zip(expected.iter()).all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + b.abs())));
        }
    }

    #[test]
    fn residual_nchw_network_ends_without_transposes() {
        let mut g = Graph::default();
        let x = g.add_input("x", &[1, 3, 6, 5]);
        let a = conv_nchw(&mut g, "a", x, 4, 3);
        let b = conv_nchw(&mut g, "b", a, 4, 3);
        let sum = g.push("add", Op::Binary { kind: BinaryKind::Add, clamp: Clamp::NONE }, &[a, b]).unwrap();
        let offset = g.push("c", Op::Const(input(&[4, 1, 1])), &[]).unwrap();
        let y = g.push("offset", Op::Binary { kind: BinaryKind::Mul, clamp: Clamp::NONE }, &[sum, offset]).unwrap();
        let cat = g.push("cat", Op::Concat { axis: 1 }, &[y, a]).unwrap();
        g.add_output("y", cat);
        check(g, 0);
    }

    #[test]
    fn flatten_permutes_the_linear_weight() {
        let mut g = Graph::default();
        let x = g.add_input("x", &[1, 2, 4, 3]);
        let a = conv_nchw(&mut g, "a", x, 5, 1);
        let flat = g.push("flatten", Op::Reshape { shape: vec![1, 60] }, &[a]).unwrap();
        let weight = input(&[7, 60]);
        let y = g.push("fc", Op::Linear { weight, bias: vec![0.0; 7], clamp: Clamp::NONE }, &[flat]).unwrap();
        g.add_output("y", y);
        check(g, 0);
    }

    #[test]
    fn detection_head_and_preprocessing() {
        let mut g = Graph::default();
        let x = g.add_input("x", &[1, 3, 4, 4]);
        let mean = g.push("mean", Op::Const(input(&[1, 3, 1, 1])), &[]).unwrap();
        let x = g.push("sub", Op::Binary { kind: BinaryKind::Sub, clamp: Clamp::NONE }, &[x, mean]).unwrap();
        let a = conv_nchw(&mut g, "a", x, 6, 3);
        let nhwc = g.push("t", Op::Transpose { perm: NCHW_TO_NHWC.to_vec() }, &[a]).unwrap();
        let y = g.push("reshape", Op::Reshape { shape: vec![1, 16, 6] }, &[nhwc]).unwrap();
        g.add_output("boxes", y);
        g.add_output("map", a);
        check(g, 0);
    }
}
