//! Export: the IR as a standard ONNX file (opset 13).
//!
//! The IR is NHWC, ONNX operators that care about axes want NCHW, and a file should look as its network was written: an
//! NCHW one without transposes, an NHWC one with one at its input. So a graph tensor has no fixed order of axes here.
//! It is *stored* in one or several [`Layout`]s, each under a name of its own. Operators that do not care run in the
//! layout at hand, others ask for theirs, and a `Transpose` is written only when a layout is asked for that is not
//! there. The IR's own transposes write nothing: their output is their input, stored in other layouts.
//!
//! The batch axis is the symbol `N` if every operator allows that ([`batch`]), else 1.
//!
//! Constants are folded and stored when they are asked for. Nodes, inputs and outputs keep their names; what has none
//! in the IR (weights, the activation that a `Clamp` is) is named after its node: `conv1/weight`, `conv1/Relu`.

mod batch;
mod messages;
mod ops;
#[cfg(test)]
mod tests;

use crate::graph::{Graph, Node, Op, Port, TensorId, eval};
use ndarray::{ArrayD, Axis, IxDyn};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};

/// Why a graph cannot be written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ExportError {
    /// Everything that ONNX cannot say, at once.
    #[error("{name} cannot be written as ONNX: {}", list(.nodes))]
    Unsupported {
        /// Name of the network.
        name: String,
        /// Node, and what about it.
        nodes: Vec<(String, String)>,
    },
}

fn list(nodes: &[(String, String)]) -> String {
    nodes.iter().map(|(node, what)| format!("node '{node}': {what}")).collect::<Vec<_>>().join("; ")
}

/// The bytes of an ONNX file that computes what `graph` does.
pub fn encode(graph: &Graph) -> Result<Vec<u8>, ExportError> {
    Writer::new(graph).model().map(|model| model.encode_to_vec())
}

/// How a stored tensor orders the axes of a graph tensor: graph axis `i` is stored axis `layout[i]`.
type Layout = Vec<usize>;

/// `[n, h, w, c]` stored as `[n, c, h, w]`.
const NCHW: [usize; 4] = [0, 2, 3, 1];

/// The axes as they are.
fn plain(rank: usize) -> Layout {
    (0..rank).collect()
}

/// `values`, one per graph axis, in stored order.
fn stored<T: Copy>(values: &[T], layout: &[usize]) -> Vec<T> {
    inverse(layout).iter().map(|&axis| values[axis]).collect()
}

/// The graph axis of every stored axis.
fn inverse(layout: &[usize]) -> Vec<usize> {
    let mut axes = vec![0; layout.len()];
    layout.iter().enumerate().for_each(|(axis, &at)| axes[at] = axis);
    axes
}

/// Names in use.
#[derive(Default)]
struct Names(BTreeSet<String>);

impl Names {
    /// `wanted`, or with a number behind it if that is taken.
    fn unique(&mut self, wanted: &str) -> String {
        let numbered = (1..).map(|i| format!("{wanted}_{i}"));
        let mut candidates = Some(wanted.to_string()).filter(|name| !name.is_empty()).into_iter().chain(numbered);
        let free = candidates.find(|name| !self.0.contains(name)).unwrap_or_default();
        self.0.insert(free.clone());
        free
    }
}

/// The file so far.
struct Writer<'a> {
    graph: &'a Graph,
    /// The batch axis of every tensor.
    batch: Vec<Option<usize>>,
    /// The layouts in which every tensor is stored, and under which name; the first is the one it was written in.
    stores: Vec<Vec<(Layout, String)>>,
    /// Tensors that are known now.
    constants: BTreeMap<TensorId, ArrayD<f32>>,
    /// For a flattened tensor whose elements stand in another order: the index that each has in the IR.
    columns: BTreeMap<TensorId, Vec<usize>>,
    /// Transposes that were written, by input and permutation.
    transposes: BTreeMap<(String, Vec<usize>), String>,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    tensor_names: Names,
    node_names: Names,
    opset: i64,
    /// The name of the node that is being written, until an ONNX node has got it.
    fresh: bool,
}

impl<'a> Writer<'a> {
    fn new(graph: &'a Graph) -> Writer<'a> {
        let mut w = Writer {
            graph,
            batch: batch::axes(graph).unwrap_or_else(|| vec![None; graph.tensors.len()]),
            stores: vec![Vec::new(); graph.tensors.len()],
            constants: BTreeMap::new(),
            columns: BTreeMap::new(),
            transposes: BTreeMap::new(),
            nodes: Vec::new(),
            initializers: Vec::new(),
            tensor_names: Names::default(),
            node_names: Names::default(),
            opset: 13,
            fresh: false,
        };
        for port in &graph.inputs {
            w.stores[port.tensor.0].push((port.onnx_axes.clone(), port.name.clone()));
        }
        let ports = graph.inputs.iter().chain(&graph.outputs);
        w.tensor_names.0.extend(ports.map(|port| port.name.clone()));
        w
    }

    fn model(mut self) -> Result<ModelProto, ExportError> {
        let mut faults = Vec::new();
        for node in &self.graph.nodes {
            if let Err(what) = self.node(node) {
                faults.push((node.name.clone(), what));
                // A stand-in, so that only what is wrong itself is listed.
                let rank = self.graph.shape(node.output).len();
                self.stores[node.output.0].push((plain(rank), String::new()));
            }
        }
        for port in &self.graph.outputs {
            if let Err(what) = self.output(port) {
                faults.push((port.name.clone(), what));
            }
        }
        if !faults.is_empty() {
            return Err(ExportError::Unsupported { name: self.graph.name.clone(), nodes: faults });
        }
        let info = |port: &Port| {
            let shape = stored(self.graph.shape(port.tensor), &port.onnx_axes);
            messages::value_info(&port.name, &shape, self.batch[port.tensor.0].map(|axis| port.onnx_axes[axis]))
        };
        let name = Some(self.graph.name.clone()).filter(|name| !name.is_empty()).unwrap_or_else(|| "network".into());
        let graph = GraphProto {
            name,
            input: self.graph.inputs.iter().map(info).collect(),
            output: self.graph.outputs.iter().map(info).collect(),
            node: self.nodes,
            initializer: self.initializers,
            ..GraphProto::default()
        };
        Ok(ModelProto {
            ir_version: 8,
            producer_name: "pith".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: self.opset }],
            graph: Some(graph),
            ..ModelProto::default()
        })
    }

    /// Writes one node of the IR.
    fn node(&mut self, node: &Node) -> Result<(), String> {
        self.fresh = true;
        let known: Option<Vec<&ArrayD<f32>>> = node.inputs.iter().map(|id| self.constants.get(id)).collect();
        if let Some(args) = known {
            let value = eval::apply(&node.op, &args, self.graph.shape(node.output));
            self.constants.insert(node.output, value);
            return Ok(());
        }
        if let Op::Transpose { perm } = &node.op {
            self.relabel(node, perm);
            return Ok(());
        }
        let first = self.nodes.len();
        let (layout, mut name) = self.op(node)?;
        // The last of the written nodes gives the result, which has a name in the IR.
        let is_result = |last: &&mut NodeProto| last.output[0] == name && last.op_type != "Transpose";
        if let Some(last) = self.nodes[first..].last_mut().filter(is_result) {
            name = self.tensor_names.unique(&self.graph.tensors[node.output.0].name);
            last.output[0] = name.clone();
        }
        self.stores[node.output.0].push((layout, name));
        Ok(())
    }

    /// A transpose of the IR: the output's axes are the input's under other numbers.
    fn relabel(&mut self, node: &Node, perm: &[usize]) {
        let renamed = |(layout, name): &(Layout, String)| (perm.iter().map(|&p| layout[p]).collect(), name.clone());
        self.stores[node.output.0] = self.stores[node.inputs[0].0].iter().map(renamed).collect();
    }

    /// The name of `id` in `layout`. A constant also has layouts of more axes: it is broadcast.
    fn stored_as(&mut self, id: TensorId, layout: &[usize]) -> Result<String, String> {
        if let Some((_, name)) = self.stores[id.0].iter().find(|(l, _)| l == layout) {
            return Ok(name.clone());
        }
        let name = match (self.constants.get(&id), self.stores[id.0].first()) {
            (Some(value), _) => {
                let value = ranked(value, layout.len()).permuted_axes(IxDyn(&inverse(layout)));
                self.initializer(&self.graph.tensors[id.0].name.clone(), &value)
            }
            (None, Some((from, name))) if from.len() == layout.len() => {
                let perm = inverse(layout).iter().map(|&axis| from[axis]).collect();
                self.transpose(name.clone(), perm)
            }
            _ => return Err(format!("it reads '{}', which nothing writes before", self.graph.tensors[id.0].name)),
        };
        self.stores[id.0].push((layout.to_vec(), name.clone()));
        Ok(name)
    }

    fn transpose(&mut self, input: String, perm: Vec<usize>) -> String {
        let key = (input.clone(), perm.clone());
        if let Some(output) = self.transposes.get(&key) {
            return output.clone();
        }
        let output = self.tensor_names.unique(&format!("{input}/Transpose"));
        let attributes = vec![messages::ints("perm", &perm)];
        self.push("Transpose", &output.clone(), vec![input], output.clone(), attributes);
        self.transposes.insert(key, output.clone());
        output
    }

    /// Gives the tensor of `port` its name as an output.
    fn output(&mut self, port: &Port) -> Result<(), String> {
        let name = self.stored_as(port.tensor, &port.onnx_axes)?;
        if name == port.name {
            return Ok(());
        }
        let taken = self.graph.inputs.iter().chain(&self.graph.outputs).any(|p| p.name == name);
        if taken || !self.nodes.iter().any(|n| n.output[0] == name) {
            self.push("Identity", &port.name, vec![name], port.name.clone(), Vec::new());
            return Ok(());
        }
        let rename = |own: &mut String| {
            if *own == name {
                *own = port.name.clone();
            }
        };
        self.nodes.iter_mut().flat_map(|n| n.input.iter_mut().chain(&mut n.output)).for_each(rename);
        self.stores.iter_mut().flatten().map(|(_, own)| own).for_each(rename);
        self.transposes.clear();
        Ok(())
    }

    fn push(&mut self, op: &str, name: &str, input: Vec<String>, output: String, attribute: Vec<AttributeProto>) {
        let name = self.node_names.unique(name);
        let op_type = op.into();
        self.nodes.push(NodeProto { name, op_type, input, output: vec![output], attribute, ..NodeProto::default() });
    }

    /// A new initializer, named as near to `name` as possible.
    fn initializer(&mut self, name: &str, value: &ArrayD<f32>) -> String {
        let name = self.tensor_names.unique(name);
        self.initializers.push(messages::floats(&name, value));
        name
    }

    /// A new initializer of integers.
    fn integers(&mut self, name: &str, values: &[i64]) -> String {
        let name = self.tensor_names.unique(name);
        self.initializers.push(messages::integers(&name, values));
        name
    }
}

/// `value` with leading axes of length 1, if it has fewer than `rank`.
fn ranked(value: &ArrayD<f32>, rank: usize) -> ArrayD<f32> {
    (value.ndim()..rank).fold(value.clone(), |value, _| value.insert_axis(Axis(0)))
}
