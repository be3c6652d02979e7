//! Coded weights, tensor by tensor: what they take, and what decoding them costs.

use super::layers::{Layer, short};
use super::{grouped, table};
use crate::pack::Residency;
use pith::Model;
use pith::circuit::{Coded, Shape};
use pith::format::blocks::Layout;
use pith::format::tensor::Constant;
use serde::Serialize;

/// The coded weights of a layer; the keys are stable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Code {
    /// Weights.
    pub weights: u64,
    /// Bytes that they would take raw, with the padding of their layout.
    pub raw_bytes: u64,
    /// Bytes that they take, everything included.
    pub coded_bytes: u64,
    /// Coded bits of one weight.
    pub bits_per_weight: f64,
    /// The probabilistic model.
    pub model: &'static str,
    /// Predicted instructions on a Cortex-M4 that decoding them takes once.
    pub decode_instructions: u64,
    /// Where they are decoded to: `ram`, `flash` or `tile`.
    pub decode: &'static str,
}

impl Code {
    /// Of a constant, none if it is raw.
    pub fn of(model: &Model<'_>, id: u16) -> Option<Code> {
        let constant = model.constant(id);
        let residency = Residency::of(&constant)?;
        let coded = Coded::new_checked(model.stored_bytes(id), constant.bits, constant.len as usize).ok()?;
        let (weights, coded_bytes) = (constant.len as u64, constant.bytes as u64);
        Some(Code {
            weights,
            raw_bytes: raw_bytes(&constant, coded.shape()),
            coded_bytes,
            bits_per_weight: 8.0 * coded_bytes as f64 / weights.max(1) as f64,
            model: coded.model(),
            decode_instructions: u64::from(model.decode_instructions_per_weight(id)) * weights,
            decode: residency.name(),
        })
    }
}

/// Bytes of blocks beyond the output stages that coded weights leave in a constant of their own; of other weights all.
fn raw_bytes(constant: &Constant, shape: Shape) -> u64 {
    let stages = (9 * shape.rows).next_multiple_of(4);
    match Layout::from_code(constant.layout) {
        Some(layout) => (layout.matrix_bytes(constant.bits, shape.rows, shape.row()) - stages) as u64,
        None => (constant.len as u64 * constant.bits as u64).div_ceil(8),
    }
}

/// A row per layer with coded weights and one for all of them; empty if there is none.
pub fn code_table(layers: &[Layer]) -> String {
    let coded: Vec<(&str, &Code)> = layers.iter().filter_map(|l| Some((l.name.as_str(), l.code.as_ref()?))).collect();
    if coded.is_empty() {
        return String::new();
    }
    let sum = |f: fn(&Code) -> u64| coded.iter().map(|(_, code)| f(code)).sum::<u64>();
    let (weights, raw, bytes) = (sum(|c| c.weights), sum(|c| c.raw_bytes), sum(|c| c.coded_bytes));
    let saved = |raw: u64, coded: u64| format!("{:.1}%", 100.0 * (1.0 - coded as f64 / raw.max(1) as f64));
    let mut rows: Vec<Vec<String>> = coded
        .iter()
        .map(|(name, code)| {
            vec![
                short(name),
                grouped(code.raw_bytes),
                grouped(code.coded_bytes),
                saved(code.raw_bytes, code.coded_bytes),
                format!("{:.2}", code.bits_per_weight),
                code.model.into(),
                grouped(code.decode_instructions),
                code.decode.into(),
            ]
        })
        .collect();
    rows.push(vec![
        "all".into(),
        grouped(raw),
        grouped(bytes),
        saved(raw, bytes),
        format!("{:.2}", 8.0 * bytes as f64 / weights.max(1) as f64),
        String::new(),
        grouped(sum(|c| c.decode_instructions)),
        String::new(),
    ]);
    let head = ["coded weights", "raw B", "coded B", "saved", "bits/weight", "model", "instr. on M4", "decode"];
    table(&head, &rows) + "\n"
}
