//! Block-sparse weights, tensor by tensor.

use super::layers::{Layer, short};
use super::{grouped, table};
use pith::Model;
use pith::format::op::Op;
use pith::format::sparse::{DEPTH, Sparse};
use pith::ops;
use serde::Serialize;

/// The block-sparse weights of a layer; the keys are stable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Blocks {
    /// Filters by consecutive inputs of a block: `1x4` or `2x4`.
    pub shape: &'static str,
    /// Blocks that are stored.
    pub stored: u64,
    /// Blocks that there are.
    pub all: u64,
    /// Stored share of the blocks.
    pub density: f64,
    /// Bytes that the weights take, places and output stage included.
    pub bytes: u64,
}

impl Blocks {
    /// Of an operator, none if its weights are dense.
    pub fn of(model: &Model<'_>, op: &Op<'_>) -> Option<Blocks> {
        let id = op.weights()?;
        let constant = model.constant(id);
        let rows = constant.sparse_rows()?;
        let (n, k) = ops::matrix_shape(op)?;
        let sparse = Sparse::new_checked(rows, n, k, model.stored_bytes(id)).ok()?;
        let (stored, all) = (sparse.count() as u64, (n.div_ceil(rows) * k.div_ceil(DEPTH)) as u64);
        let shape = if rows == 1 { "1x4" } else { "2x4" };
        Some(Blocks { shape, stored, all, density: stored as f64 / all.max(1) as f64, bytes: constant.bytes as u64 })
    }
}

/// A row per layer with block-sparse weights; empty if there is none.
pub fn sparse_table(layers: &[Layer]) -> String {
    let row = |(name, b): (&str, &Blocks)| {
        let density = format!("{:.1}%", 100.0 * b.density);
        vec![short(name), b.shape.into(), grouped(b.stored), grouped(b.all), density, grouped(b.bytes)]
    };
    let sparse = layers.iter().filter_map(|l| Some((l.name.as_str(), l.sparse.as_ref()?)));
    let rows: Vec<Vec<String>> = sparse.map(row).collect();
    match rows.is_empty() {
        true => String::new(),
        false => table(&["block-sparse weights", "block", "stored", "of", "density", "B"], &rows) + "\n",
    }
}
