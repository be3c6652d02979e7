//! What a model consists of, layer by layer.

use super::code::{Code, code_table};
use super::sparse::{Blocks, sparse_table};
use super::{grouped, shape, table};
use crate::execute::shape_of;
use crate::graph::{Graph, Op, eval};
use pith::Model;
use pith::format::tensor::Constant;
use serde::Serialize;

/// A model's sizes; the keys are stable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Length of the file.
    pub file_bytes: u64,
    /// Weights as stored (bits times count; 32 bits in an ONNX file), without biases and tables.
    pub weight_bytes: u64,
    /// The file's weights section: weights, biases, output stages and tables.
    pub coded_bytes: u64,
    /// RAM: the arena, which holds inputs, outputs and everything between; absent for ONNX files.
    pub arena_bytes: Option<u64>,
    /// Of coded weights that are decoded once, into RAM or flash.
    #[serde(skip_serializing_if = "is_zero")]
    pub decoded_bytes: u64,
    /// Predicted instructions on a Cortex-M4 for decoding all coded weights: at start where they are decoded once, at every run in tiles.
    #[serde(skip_serializing_if = "is_zero")]
    pub decode_instructions: u64,
    /// Multiply-accumulates of one run.
    pub macs: u64,
    /// Layers in execution order.
    pub layers: Vec<Layer>,
    /// Inputs.
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
}

/// One operator.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layer {
    /// Name from the ONNX file.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Output shape without the batch.
    pub out_shape: Vec<usize>,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Bits of a weight; 0 where there are none.
    pub bits: u8,
    /// Weights as stored.
    pub weight_bytes: u64,
    /// Where the output lies in the arena.
    pub arena_offset: Option<u64>,
    /// Of coded weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// Of block-sparse weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparse: Option<Blocks>,
}

/// One input or output.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Port {
    /// Name from the ONNX file.
    pub name: String,
    /// Shape without the batch, as the model holds it.
    pub shape: Vec<usize>,
    /// `nchw` if the ONNX tensor was `[n, c, h, w]` (the model holds `[h, w, c]`), else `as_onnx`.
    pub layout: &'static str,
    /// `raw = scale * (q - zero_point)`; absent for ONNX files.
    pub scale: Option<f32>,
    /// See `scale`.
    pub zero_point: Option<i32>,
}

impl Summary {
    /// Of a packed model.
    pub fn of_model(model: &Model<'_>) -> Summary {
        let layers: Vec<Layer> = model
            .ops()
            .map(|(head, op)| {
                let output = model.tensor(op.output());
                let weights = op.weights().map_or(Constant::default(), |id| model.constant(id));
                Layer {
                    name: model.op_name(&head).into(),
                    op: op.name().into(),
                    out_shape: output.dims.iter().take(output.rank as usize).map(|&d| d as usize).collect(),
                    macs: op.macs(),
                    bits: weights.bits,
                    weight_bytes: weights.bytes as u64,
                    arena_offset: Some(output.offset as u64),
                    code: op.weights().and_then(|id| Code::of(model, id)),
                    sparse: Blocks::of(model, &op),
                }
            })
            .collect();
        let ports = |ports: &[pith::format::tensor::Port]| {
            let port = |p: &pith::format::tensor::Port| Port {
                name: model.port_name(p).into(),
                shape: shape_of(model, p)[1..].to_vec(),
                layout: if p.layout == pith::format::tensor::Port::NCHW { "nchw" } else { "as_onnx" },
                scale: Some(p.scale),
                zero_point: Some(p.zero_point),
            };
            ports.iter().map(port).collect()
        };
        Summary {
            file_bytes: model.header().file_bytes as u64,
            // Layers that share a constant store it once.
            weight_bytes: distinct_weights(model),
            coded_bytes: model.weights_section_bytes() as u64,
            arena_bytes: Some(model.arena_bytes() as u64),
            decoded_bytes: model.decoded_bytes() as u64,
            decode_instructions: layers.iter().flat_map(|l| &l.code).map(|code| code.decode_instructions).sum(),
            macs: layers.iter().map(|l| l.macs).sum(),
            layers,
            inputs: ports(model.inputs()),
            outputs: ports(model.outputs()),
        }
    }

    /// Of a float graph; `file_bytes` is the ONNX file's.
    pub fn of_graph(graph: &Graph, file_bytes: u64) -> Summary {
        let layers: Vec<Layer> = graph
            .nodes
            .iter()
            .map(|node| {
                let input = node.inputs.first().map_or(&[][..], |&id| graph.shape(id));
                let weights = match &node.op {
                    Op::Conv2d { weight, .. } | Op::ConvTranspose2d { weight, .. } | Op::Linear { weight, .. } => {
                        weight.len()
                    }
                    Op::Affine { scale, .. } => scale.len(),
                    _ => 0,
                };
                Layer {
                    name: node.name.clone(),
                    op: match &node.op {
                        Op::Map(f) => f.to_string(),
                        op => op.name().into(),
                    },
                    out_shape: graph.shape(node.output).get(1..).unwrap_or(&[]).to_vec(),
                    macs: eval::macs(&node.op, input, graph.shape(node.output)),
                    bits: if weights > 0 { 32 } else { 0 },
                    weight_bytes: 4 * weights as u64,
                    arena_offset: None,
                    code: None,
                    sparse: None,
                }
            })
            .collect();
        let ports = |ports: &[crate::graph::Port]| {
            let port = |p: &crate::graph::Port| Port {
                name: p.name.clone(),
                shape: graph.shape(p.tensor).get(1..).unwrap_or(&[]).to_vec(),
                layout: if p.onnx_axes == [0, 2, 3, 1] { "nchw" } else { "as_onnx" },
                scale: None,
                zero_point: None,
            };
            ports.iter().map(port).collect()
        };
        let weight_bytes = layers.iter().map(|l| l.weight_bytes).sum();
        Summary {
            file_bytes,
            weight_bytes,
            coded_bytes: weight_bytes,
            arena_bytes: None,
            decoded_bytes: 0,
            decode_instructions: 0,
            macs: layers.iter().map(|l| l.macs).sum(),
            layers,
            inputs: ports(&graph.inputs),
            outputs: ports(&graph.outputs),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let number = |n: u64| if n == 0 { "-".into() } else { grouped(n) };
        let rows: Vec<Vec<String>> = self
            .layers
            .iter()
            .enumerate()
            .map(|(i, l)| {
                vec![
                    i.to_string(),
                    short(&l.name),
                    l.op.clone(),
                    shape(&l.out_shape),
                    number(l.macs),
                    number(l.bits as u64),
                    number(l.weight_bytes),
                    l.arena_offset.map_or("-".into(), grouped),
                ]
            })
            .collect();
        let mut text = table(&["#", "layer", "op", "output", "MACs", "bits", "weights B", "at B"], &rows);
        text.push('\n');
        text.push_str(&code_table(&self.layers));
        text.push_str(&sparse_table(&self.layers));
        for (kind, ports) in [("input ", &self.inputs), ("output", &self.outputs)] {
            for p in ports {
                let raw = match (p.scale, p.zero_point) {
                    (Some(scale), Some(zero)) => format!(", value = {scale} * (q - {zero})"),
                    _ => String::new(),
                };
                let layout = if p.layout == "nchw" { " (channels last; NCHW in the ONNX file)" } else { "" };
                text.push_str(&format!("{kind}  {}  {}{layout}{raw}\n", p.name, shape(&p.shape)));
            }
        }
        text.push_str(&format!("\nMACs     {}\n", grouped(self.macs)));
        text.push_str(&format!("file     {} B", grouped(self.file_bytes)));
        text.push_str(&format!(
            ", of which weights {} B, with biases and tables {} B\n",
            grouped(self.weight_bytes),
            grouped(self.coded_bytes)
        ));
        if self.decoded_bytes > 0 {
            text.push_str(&format!("decoded  {} B of weights, once (RAM or flash)\n", grouped(self.decoded_bytes)));
        }
        if let Some(arena) = self.arena_bytes {
            text.push_str(&format!("RAM      {} B (arena, inputs and outputs included)\n", grouped(arena)));
        }
        text
    }
}

/// Names that exporters join from many parts are cut at the front: the end says more.
pub(super) fn short(name: &str) -> String {
    shortened(name, 44)
}

/// The end of a name, at most `width` characters.
pub fn shortened(name: &str, width: usize) -> String {
    match name.chars().count() {
        n if n > width => format!("...{}", name.chars().skip(n - width + 3).collect::<String>()),
        _ => name.into(),
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn distinct_weights(model: &Model<'_>) -> u64 {
    let mut ids: Vec<u16> = model.ops().filter_map(|(_, op)| op.weights()).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.iter().map(|&id| model.constant(id).bytes as u64).sum()
}
