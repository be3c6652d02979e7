//! Import and export of ONNX files, and the float oracle. The only module that names tract types: tract has the protobuf
//! messages and runs the original network; the translation to the IR and back is ours.
//!
//! Nodes are translated one by one and literally (see `ops`); [`crate::graph::simplify`] makes the result small. Values that
//! depend on constants alone are computed here, so that chains of `Shape`, `Gather`, `Concat` end as numbers. The batch axis, if
//! it is symbolic, is 1.

mod build;
mod consts;
mod ops;
mod oracle;
mod proto;
mod write;

use crate::graph::Graph;
pub use oracle::{Oracle, OracleError};
use std::collections::BTreeMap;
use std::path::Path;
use tract_onnx::pb;
pub use write::{ExportError, encode};

/// Why a file cannot be imported; every message names the file's part and the fix.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages name the fields
pub enum ImportError {
    #[error("cannot read {path}")]
    Read { path: String, source: std::io::Error },
    #[error("{name} is not an ONNX model ({what})")]
    NotOnnx { name: String, what: String },
    #[error(
        "{name}: input '{input}' has a dynamic axis {axis} ('{symbol}'); export the model with fixed sizes (only the batch may be symbolic)"
    )]
    DynamicShape { name: String, input: String, axis: usize, symbol: String },
    #[error("{name}: input '{input}' has a batch of {batch}; export the model with a batch of 1 or a symbolic one")]
    Batch { name: String, input: String, batch: usize },
    #[error("{name}: unsupported operators: {}", list(.operators))]
    Unsupported { name: String, operators: BTreeMap<String, Vec<String>> },
    #[error("{name}: node '{node}' ({op}): {what}")]
    Node { name: String, node: String, op: String, what: String },
    #[error("{name}: tensor '{tensor}': {what}")]
    Tensor { name: String, tensor: String, what: String },
}

fn list(operators: &BTreeMap<String, Vec<String>>) -> String {
    let one = |(op, nodes): (&String, &Vec<String>)| {
        format!("{op} (node{} '{}')", if nodes.len() == 1 { "" } else { "s" }, nodes.join("', '"))
    };
    operators.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// What to do with the first axis of inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchAxis {
    /// It is the batch: symbolic or 1, and 1 in the graph.
    One,
    /// Any fixed size, kept (operator tests).
    Keep,
}

/// Reads and translates a file.
pub fn import(path: &Path) -> Result<Graph, ImportError> {
    let shown = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|source| ImportError::Read { path: shown.clone(), source })?;
    import_bytes(&shown, &bytes)
}

/// Translates the bytes of a file; `name` is for messages.
pub fn import_bytes(name: &str, bytes: &[u8]) -> Result<Graph, ImportError> {
    let model = proto::decode(name, bytes)?;
    import_model(name, &model, BatchAxis::One)
}

/// Translates a decoded model.
pub fn import_model(name: &str, model: &pb::ModelProto, batch: BatchAxis) -> Result<Graph, ImportError> {
    build::Builder::build(name, model, batch)
}
