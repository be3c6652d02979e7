//! The walk over the nodes of an ONNX graph.

use super::consts::{self, Constant};
use super::{BatchAxis, ImportError, ops, proto};
use crate::graph::{Graph, Op, TensorId, eval};
use ndarray::ArrayD;
use std::collections::{BTreeMap, BTreeSet};
use tract_onnx::pb::{ModelProto, NodeProto, ValueInfoProto, tensor_shape_proto::dimension, type_proto};

/// What an ONNX tensor name stands for.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Known now.
    Constant(Constant),
    /// Known when the network runs.
    Tensor(TensorId),
}

/// Why a node was not translated.
#[derive(Debug)]
pub(super) enum Fault {
    /// We do not have it; the text adds which form of the operator.
    Unsupported(String),
    /// The file is wrong.
    Invalid(String),
    /// It reads what an unsupported node would have written.
    Blocked,
}

impl From<crate::graph::shape::ShapeError> for Fault {
    fn from(e: crate::graph::shape::ShapeError) -> Fault {
        Fault::Invalid(e.what)
    }
}

/// The graph so far and the values by ONNX name.
pub(super) struct Builder {
    pub graph: Graph,
    pub opset: i64,
    values: BTreeMap<String, Value>,
    /// ONNX element types of initializers.
    types: BTreeMap<String, i32>,
    blocked: BTreeSet<String>,
    /// Name of the node that is being translated, for the IR nodes that it becomes.
    name: String,
}

impl Builder {
    pub(super) fn build(name: &str, model: &ModelProto, batch: BatchAxis) -> Result<Graph, ImportError> {
        let Some(graph) = &model.graph else {
            return Err(ImportError::NotOnnx { name: name.into(), what: "no graph".into() });
        };
        let opset =
            model.opset_import.iter().filter(|o| o.domain.is_empty() || o.domain == "ai.onnx").map(|o| o.version);
        let mut b = Builder {
            graph: Graph { name: graph.name.clone(), ..Graph::default() },
            opset: opset.max().unwrap_or(13),
            values: BTreeMap::new(),
            types: graph.initializer.iter().map(|t| (t.name.clone(), t.data_type)).collect(),
            blocked: BTreeSet::new(),
            name: String::new(),
        };
        for init in &graph.initializer {
            let value = proto::tensor(init).map_err(|what| ImportError::Tensor {
                name: name.into(),
                tensor: init.name.clone(),
                what,
            })?;
            b.values.insert(init.name.clone(), Value::Constant(value));
        }
        for input in graph.input.iter().filter(|i| !graph.initializer.iter().any(|t| t.name == i.name)) {
            let shape = input_shape(name, input, batch)?;
            let id = b.graph.add_input(&input.name, &shape);
            b.values.insert(input.name.clone(), Value::Tensor(id));
        }
        b.nodes(name, &graph.node)?;
        for output in &graph.output {
            let id = match b.values.get(&output.name) {
                Some(Value::Tensor(id)) => *id,
                Some(Value::Constant(value)) => {
                    let value = value.to_f32();
                    b.name = output.name.clone();
                    b.push(Op::Const(value), &[]).map_err(|_| missing(name, &output.name))?
                }
                None => return Err(missing(name, &output.name)),
            };
            b.graph.add_output(&output.name, id);
        }
        Ok(b.graph)
    }

    fn nodes(&mut self, name: &str, nodes: &[NodeProto]) -> Result<(), ImportError> {
        let mut unsupported: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut invalid = None;
        for (i, node) in nodes.iter().enumerate() {
            let shown = if node.name.is_empty() { format!("{}_{i}", node.op_type) } else { node.name.clone() };
            self.name = shown.clone();
            match self.node(node) {
                Ok(()) => continue,
                Err(Fault::Blocked) => {}
                Err(Fault::Unsupported(form)) => {
                    let op =
                        if form.is_empty() { node.op_type.clone() } else { format!("{} with {form}", node.op_type) };
                    unsupported.entry(op).or_default().push(shown);
                }
                Err(Fault::Invalid(what)) => {
                    invalid.get_or_insert(ImportError::Node {
                        name: name.into(),
                        node: shown,
                        op: node.op_type.clone(),
                        what,
                    });
                }
            }
            self.blocked.extend(node.output.iter().cloned());
        }
        match (unsupported.is_empty(), invalid) {
            (false, _) => Err(ImportError::Unsupported { name: name.into(), operators: unsupported }),
            (true, Some(error)) => Err(error),
            (true, None) => Ok(()),
        }
    }

    /// Translates one node and binds its outputs.
    fn node(&mut self, node: &NodeProto) -> Result<(), Fault> {
        if !matches!(node.domain.as_str(), "" | "ai.onnx" | "com.microsoft") {
            return Err(Fault::Unsupported(format!("domain {}", node.domain)));
        }
        if node.input.iter().any(|i| self.blocked.contains(i)) {
            // Still say that this one is unknown, so that every unsupported operator is listed at once.
            return Err(if ops::is_known(&node.op_type) { Fault::Blocked } else { Fault::Unsupported(String::new()) });
        }
        let args: Vec<Option<&Value>> = node.input.iter().map(|i| self.values.get(i)).collect();
        if let Some(i) = node.input.iter().position(|i| !i.is_empty() && !self.values.contains_key(i)) {
            return Err(Fault::Invalid(format!("it reads '{}', which nothing writes", node.input[i])));
        }
        let constants: Vec<Option<&Constant>> = args.iter().map(|a| as_constant(*a)).collect();
        let known = !node.input.is_empty() && args.iter().all(|a| !matches!(a, Some(Value::Tensor(_))));
        if known && let Some(value) = consts::evaluate(node, &constants) {
            return self.bind(node, vec![Value::Constant(value)]);
        }
        let (nodes, tensors) = (self.graph.nodes.len(), self.graph.tensors.len());
        let mut outputs = ops::translate(self, node)?;
        if known {
            // Everything emitted so far for this node depends on constants: compute it and take the nodes back.
            let emitted = self.graph.nodes.split_off(nodes);
            let mut values: BTreeMap<TensorId, ArrayD<f32>> = BTreeMap::new();
            for node in &emitted {
                let args: Vec<&ArrayD<f32>> = node.inputs.iter().filter_map(|id| values.get(id)).collect();
                values.insert(node.output, eval::apply(&node.op, &args, self.graph.shape(node.output)));
            }
            self.graph.tensors.truncate(tensors);
            for output in &mut outputs {
                if let Value::Tensor(id) = output {
                    let value = values.get(id).ok_or_else(|| Fault::Invalid("constant without a value".into()))?;
                    *output = Value::Constant(Constant { values: value.mapv(|v| v as f64), is_float: true });
                }
            }
        }
        self.bind(node, outputs)
    }

    fn bind(&mut self, node: &NodeProto, outputs: Vec<Value>) -> Result<(), Fault> {
        for (name, value) in node.output.iter().zip(outputs) {
            if let Value::Tensor(id) = value {
                let is_fresh = self.graph.nodes.last().is_some_and(|n| n.output == id);
                if is_fresh {
                    self.graph.tensors[id.0].name = name.clone();
                }
            }
            self.values.insert(name.clone(), value);
        }
        Ok(())
    }

    /// Appends an IR node under the current node's name.
    pub(super) fn push(&mut self, op: Op, inputs: &[TensorId]) -> Result<TensorId, Fault> {
        // Layout changes around an operator are named after it, so that tables show the operator's own name once.
        let name = match op {
            Op::Transpose { .. } | Op::Reshape { .. } | Op::Const(_) => format!("{}/{}", self.name, op.name()),
            _ => self.name.clone(),
        };
        Ok(self.graph.push(name, op, inputs)?)
    }

    pub(super) fn shape(&self, id: TensorId) -> Vec<usize> {
        self.graph.shape(id).to_vec()
    }

    /// Input `i` as a tensor; constants become `Const` nodes.
    pub(super) fn tensor(&mut self, node: &NodeProto, i: usize) -> Result<TensorId, Fault> {
        match node.input.get(i).and_then(|name| self.values.get(name)) {
            Some(Value::Tensor(id)) => Ok(*id),
            Some(Value::Constant(value)) => {
                let value = value.to_f32();
                self.push(Op::Const(value), &[])
            }
            None => Err(Fault::Invalid(format!("input {i} is missing"))),
        }
    }

    /// Input `i` if it is a constant.
    pub(super) fn constant(&self, node: &NodeProto, i: usize) -> Option<Constant> {
        as_constant(node.input.get(i).and_then(|name| self.values.get(name))).cloned()
    }

    /// ONNX element type of input `i`, if it is an initializer.
    pub(super) fn element_type(&self, node: &NodeProto, i: usize) -> Option<i32> {
        self.types.get(node.input.get(i)?).copied()
    }

    /// Whether input `i` is given.
    pub(super) fn has(&self, node: &NodeProto, i: usize) -> bool {
        node.input.get(i).is_some_and(|name| !name.is_empty())
    }

    /// Input `i`, which must be a constant if it is given.
    pub(super) fn optional(&self, node: &NodeProto, i: usize) -> Result<Option<Constant>, Fault> {
        match (self.has(node, i), self.constant(node, i)) {
            (false, _) => Ok(None),
            (true, Some(value)) => Ok(Some(value)),
            (true, None) => Err(Fault::Unsupported(format!("input {i} ('{}') that is not constant", node.input[i]))),
        }
    }

    /// Input `i`, which must be a constant.
    pub(super) fn required(&self, node: &NodeProto, i: usize) -> Result<Constant, Fault> {
        self.optional(node, i)?.ok_or_else(|| Fault::Invalid(format!("input {i} is missing")))
    }
}

fn as_constant(value: Option<&Value>) -> Option<&Constant> {
    match value {
        Some(Value::Constant(value)) => Some(value),
        _ => None,
    }
}

fn missing(name: &str, tensor: &str) -> ImportError {
    ImportError::Tensor { name: name.into(), tensor: tensor.into(), what: "an output that no node writes".into() }
}

/// Static shape of a graph input, with the batch axis resolved.
fn input_shape(name: &str, input: &ValueInfoProto, batch: BatchAxis) -> Result<Vec<usize>, ImportError> {
    let invalid = |what: &str| ImportError::Tensor { name: name.into(), tensor: input.name.clone(), what: what.into() };
    let Some(type_proto::Value::TensorType(tensor)) = input.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
        return Err(invalid("an input that is no tensor"));
    };
    if ![1, 2, 3, 10, 11, 16].contains(&tensor.elem_type) {
        return Err(invalid("an input that is neither float nor 8-bit integer"));
    }
    let Some(shape) = &tensor.shape else { return Err(invalid("an input without a shape; export with fixed sizes")) };
    let mut dims = Vec::new();
    for (axis, dim) in shape.dim.iter().enumerate() {
        let size = match &dim.value {
            Some(dimension::Value::DimValue(size)) if *size > 0 => *size as usize,
            Some(dimension::Value::DimParam(_)) | Some(dimension::Value::DimValue(_)) | None if axis == 0 => 1,
            other => {
                let symbol = match other {
                    Some(dimension::Value::DimParam(symbol)) => symbol.clone(),
                    _ => "?".into(),
                };
                return Err(ImportError::DynamicShape { name: name.into(), input: input.name.clone(), axis, symbol });
            }
        };
        if size > 1 << 24 {
            return Err(invalid("an input with an axis longer than 16 million"));
        }
        dims.push(size);
    }
    match dims.first() {
        Some(&n) if n != 1 && batch == BatchAxis::One => {
            Err(ImportError::Batch { name: name.into(), input: input.name.clone(), batch: n })
        }
        _ => Ok(dims),
    }
}
