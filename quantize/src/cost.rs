//! Predicted instructions of operators on a core.
//!
//! What a kernel executes is nearly linear in a few counts: multiply-accumulates (of a pool: values read), outputs, bytes of patches that are gathered,
//! positions, and calls. `cargo xtask bench cost` counts calibration networks on emulated cores and fits a table for every instruction set,
//! `targets/costs/`. Weights that are decoded in tiles take that on top. Instructions are not cycles: flash wait states and multi-cycle loads come on top.

use crate::pack::Residency;
use pith::circuit::Coded;
use pith::format::op::{Conv, Op};
use pith::format::tensor::Constant;
use pith::{Isa, Model, ops};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// Instructions of a kernel, by what it does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Operator; `_generic` where the set has no kernel of its own for it.
    pub op: String,
    /// Bits of a weight, [`OTHER`] for all widths without an entry, 0 without weights.
    pub bits: u8,
    /// Of a multiply-accumulate.
    pub mac: f64,
    /// Of an output.
    pub output: f64,
    /// Of a byte of a gathered patch.
    pub patch: f64,
    /// Of a position: a pixel, or a row.
    pub position: f64,
    /// Of a call.
    pub call: f64,
}

/// Stands for all widths that have no entry of their own.
pub const OTHER: u8 = 5;

/// Kernels of an instruction set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostTable {
    /// In any order.
    pub kernel: Vec<Kernel>,
}

/// The tables of the instruction sets that were counted.
const COUNTED: [(Isa, &str); 5] = [
    (Isa::ArmV6M, include_str!("../targets/costs/armv6m.toml")),
    (Isa::ArmV7M, include_str!("../targets/costs/armv7m.toml")),
    (Isa::ArmDsp, include_str!("../targets/costs/armdsp.toml")),
    (Isa::Helium, include_str!("../targets/costs/helium.toml")),
    (Isa::RiscV, include_str!("../targets/costs/riscv.toml")),
];

/// Counts of an operator, in the order of [`Kernel`]'s factors.
pub type Features = [f64; 5];

impl Kernel {
    /// The factors.
    pub fn factors(&self) -> Features {
        [self.mac, self.output, self.patch, self.position, self.call]
    }
}

impl CostTable {
    /// The table of an instruction set, none if it was not measured.
    pub fn of(isa: Isa) -> Option<&'static CostTable> {
        static TABLES: OnceLock<[CostTable; COUNTED.len()]> = OnceLock::new();
        let tables = TABLES.get_or_init(|| COUNTED.map(|(_, text)| toml::from_str(text).unwrap_or_default()));
        COUNTED.iter().position(|(counted, _)| *counted == isa).map(|at| &tables[at])
    }

    /// Instructions of an operator, none for a kernel that is not in the table.
    pub fn instructions(&self, model: &Model<'_>, op: &Op<'_>) -> Option<f64> {
        let (name, bits, features) = features(model, op);
        let find = |bits: u8| self.kernel.iter().find(|k| k.op == name && k.bits == bits);
        let kernel = find(bits).or_else(|| find(OTHER))?;
        let run: f64 = kernel.factors().iter().zip(features).map(|(a, b)| a * b).sum();
        Some(run + decoding(model, op))
    }

    /// Instructions of a run, or the kernels that the table does not know.
    pub fn run(&self, model: &Model<'_>) -> Result<f64, BTreeSet<String>> {
        let (mut sum, mut unknown) = (0.0, BTreeSet::new());
        for (_, op) in model.ops() {
            match self.instructions(model, &op) {
                Some(instructions) => sum += instructions,
                None => _ = unknown.insert(features(model, &op).0),
            }
        }
        if unknown.is_empty() { Ok(sum) } else { Err(unknown) }
    }

    /// The factors of an operator's kernel for int8 weights, by [`features`]' name.
    pub fn factors(&self, op: &str) -> Option<Features> {
        let find = |bits: u8| self.kernel.iter().find(|k| k.op == op && k.bits == bits);
        find(8).or_else(|| find(OTHER)).map(Kernel::factors)
    }
}

/// Instructions that decoding an operator's weights takes at every run, where they are decoded in tiles: those of a Cortex-M4, on other cores an estimate.
fn decoding(model: &Model<'_>, op: &Op<'_>) -> f64 {
    let Some((id, weights)) = op.weights().map(|id| (id, model.constant(id))) else { return 0.0 };
    if Residency::of(&weights) != Some(Residency::Tile) {
        return 0.0;
    }
    let coded = Coded::new_checked(model.stored_bytes(id), weights.bits, weights.len as usize);
    coded.map_or(0.0, |coded| f64::from(coded.instructions_per_weight()) * f64::from(weights.len))
}

/// What weights say of the kernel that reads them.
fn form(weights: &Constant) -> &'static str {
    match weights.kind {
        Constant::KIND_BLOCKS if weights.sparse_rows().is_some() => "_sparse",
        Constant::KIND_BLOCKS => "",
        _ => "_generic",
    }
}

/// Kernel, bits and counts of an operator.
pub fn features(model: &Model<'_>, op: &Op<'_>) -> (String, u8, Features) {
    let len = |id: u16| f64::from(model.tensor(id).len);
    let outputs = len(op.output());
    let weights = op.weights().map_or(Constant::default(), |id| model.constant(id));
    let macs = op.macs() as f64;
    // Every tile goes over all positions.
    let tiles = if weights.is_in_tiles() { ops::tiles(op, &weights) as f64 } else { 1.0 };
    let of = |c: &Conv| (f64::from(c.out_h) * f64::from(c.out_w), f64::from(c.kernel_h) * f64::from(c.kernel_w));
    let name = op.name();
    let (name, features) = match op {
        Op::Conv(c) | Op::ConvTranspose(c) => {
            let (positions, taps) = of(c);
            let patch = if taps > 1.0 { positions * taps * f64::from(c.in_c) } else { 0.0 };
            (format!("{name}{}", form(&weights)), [macs, outputs, tiles * patch, tiles * positions, tiles])
        }
        Op::Depthwise(c) => {
            let (positions, taps) = of(c);
            let form = if taps == 9.0 { "_3x3" } else { "" };
            (format!("{name}{form}"), [macs, outputs, 0.0, positions, 1.0])
        }
        Op::Linear(l) => (format!("{name}{}", form(&weights)), [macs, outputs, 0.0, tiles * f64::from(l.rows), tiles]),
        Op::MaxPool(p) | Op::AveragePool(p) => {
            let taps = f64::from(p.kernel_h) * f64::from(p.kernel_w);
            let positions = f64::from(p.out_h) * f64::from(p.out_w);
            (name.into(), [outputs * taps, outputs, 0.0, positions, 1.0])
        }
        _ => {
            let read: f64 = op.inputs().into_iter().flatten().map(len).sum();
            (name.into(), [read, outputs, 0.0, 0.0, 1.0])
        }
    };
    (name, if weights.bytes > 0 { weights.bits } else { 0 }, features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_core_that_was_counted_has_its_table() {
        for (isa, _) in COUNTED {
            let table = CostTable::of(isa).unwrap();
            for (op, bits) in [("conv", 8), ("linear", 8), ("depthwise_3x3", 8), ("conv_generic", OTHER), ("add", 0)] {
                let kernel = table.kernel.iter().find(|k| k.op == op && k.bits == bits);
                let kernel = kernel.unwrap_or_else(|| panic!("{isa:?}: no {op} of {bits} bits"));
                assert!(kernel.factors().iter().all(|v| v.is_finite() && *v >= 0.0), "{isa:?}: {kernel:?}");
                assert!(kernel.mac + kernel.output > 0.0, "{isa:?}: {kernel:?}");
            }
            let has_kernel = |bits: u8| table.kernel.iter().any(|k| k.op == "conv" && k.bits == bits);
            assert!([8, 4, 2].into_iter().all(has_kernel), "{isa:?}");
        }
        assert!(CostTable::of(Isa::Generic).is_none());
    }
}
