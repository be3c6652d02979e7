//! Layers, their widths, and what each costs.

use super::{Candidate, Judge, SearchError};
use crate::build::BuildError;
use crate::cost::CostTable;
use crate::lower::Program;
use crate::pack::{ModelFile, PackError, PackOptions, Packed};
use crate::recipe::Recipe;
use pith::format::ALIGN;
use pith::{Isa, Model};
use std::collections::BTreeSet;

/// A layer whose width is chosen.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Name of its node.
    pub name: String,
    /// Number of weights.
    pub weights: u64,
    /// Widths that it may have, the widest first.
    pub bits: Vec<u8>,
    /// Bytes of the file that it takes at each.
    pub bytes: Vec<u64>,
    /// Predicted instructions of a run at each; zero where nothing is known of the target.
    pub instructions: Vec<f64>,
}

impl Layer {
    pub(super) fn new(name: &str, weights: usize, bits: Vec<u8>) -> Layer {
        Layer { name: name.into(), weights: weights as u64, bits, bytes: Vec::new(), instructions: Vec::new() }
    }
}

/// All that a search chooses from.
#[derive(Debug)]
pub struct Space<'a> {
    /// Layers in execution order.
    pub layers: Vec<Layer>,
    /// Bytes of the file besides those of the layers; layers that share weights are counted as if each had its own.
    pub base: u64,
    /// Predicted instructions of operators whose width is not chosen; none without a table for the target.
    pub base_instructions: Option<f64>,
    /// Kernels that the target's table does not know.
    pub uncounted: BTreeSet<String>,
    /// Most bytes of RAM among the widths: the arena, and weights that are decoded into RAM.
    pub ram: u64,
    /// Whether weights are coded.
    pub is_coded: bool,
    judge: Box<dyn Judge + 'a>,
}

impl<'a> Space<'a> {
    /// Of the network packed once at each width, the widest first; a layer that lacks a width has another there.
    pub(super) fn new(
        layers: Vec<Layer>,
        packed: &[(u8, Packed)],
        options: PackOptions,
        judge: Box<dyn Judge + 'a>,
    ) -> Result<Space<'a>, SearchError> {
        if layers.is_empty() {
            return Err(SearchError::NoLayers);
        }
        let (base_instructions, uncounted) = (None, BTreeSet::new());
        let is_coded = options.compress.level > 0;
        let mut space = Space { layers, base: 0, base_instructions, uncounted, ram: 0, is_coded, judge };
        for (width, packed) in packed {
            let bytes: Vec<u64> = space.layers.iter().map(|l| layer_bytes(&packed.program, &l.name)).collect();
            space.base = space.base.max((packed.bytes.len() as u64).saturating_sub(bytes.iter().sum()));
            let own = space.layers.iter_mut().zip(bytes).filter(|(l, _)| l.bits.contains(width));
            own.for_each(|(l, bytes)| l.bytes.push(bytes));
            let file = ModelFile::new(&packed.bytes);
            let model = Model::parse(file.as_bytes()).map_err(|e| BuildError::from(PackError::Invalid(e)))?;
            space.ram = space.ram.max(options.compress.memory(&model).1);
            space.count(*width, &packed.program, &model, options.isa);
        }
        Ok(space)
    }

    /// Of layers whose costs are known.
    #[cfg(test)]
    pub(super) fn of(layers: Vec<Layer>, judge: Box<dyn Judge + 'a>) -> Space<'a> {
        let (base_instructions, uncounted) = (None, BTreeSet::new());
        Space { layers, base: 100, base_instructions, uncounted, ram: 0, is_coded: false, judge }
    }

    /// Adds predicted instructions of one more width.
    fn count(&mut self, width: u8, program: &Program, model: &Model<'_>, isa: Isa) {
        let counted = CostTable::of(isa).map(|table| (table, table.run(model)));
        let (table, all) = match counted {
            Some((table, Ok(all))) => (table, all),
            uncounted => {
                self.uncounted.extend(uncounted.and_then(|(_, all)| all.err()).unwrap_or_default());
                let own = self.layers.iter_mut().filter(|l| l.bits.contains(&width));
                own.for_each(|l| l.instructions.push(0.0));
                return;
            }
        };
        let mut chosen = 0.0;
        let names = program.ops.iter().map(|spec| spec.name.as_str());
        let ops: Vec<_> = names.zip(model.ops().map(|(_, op)| op)).collect();
        for layer in &mut self.layers {
            let own = ops.iter().find(|(name, op)| *name == layer.name && op.weights().is_some());
            let own = own.and_then(|(_, op)| table.instructions(model, op)).unwrap_or(0.0);
            if layer.bits.contains(&width) {
                layer.instructions.push(own);
            }
            chosen += own;
        }
        self.base_instructions = Some(self.base_instructions.unwrap_or(0.0).max(all - chosen));
    }

    /// Predicted instructions of a run, none without a table for the target.
    pub fn instructions(&self, bits: &[u8]) -> Option<u64> {
        let of = |(l, &bits): (&Layer, &u8)| l.at(bits).map_or(0.0, |i| l.instructions[i]);
        let base = self.base_instructions.filter(|_| self.uncounted.is_empty())?;
        Some((base + self.layers.iter().zip(bits).map(of).sum::<f64>()) as u64)
    }

    /// Predicted bytes of the file.
    pub fn flash(&self, bits: &[u8]) -> u64 {
        self.base + self.layers.iter().zip(bits).map(|(l, &bits)| l.bytes_at(bits)).sum::<u64>()
    }

    /// Bytes of the smallest file.
    pub fn least_flash(&self) -> u64 {
        self.base + self.layers.iter().map(|l| l.bytes.iter().min().copied().unwrap_or(0)).sum::<u64>()
    }

    /// A width for all layers, or for each the narrowest that is at least as wide.
    pub fn uniform(&self, width: u8) -> Vec<u8> {
        let of = |l: &Layer| l.bits.iter().rev().copied().find(|&b| b >= width).unwrap_or(l.bits[0]);
        self.layers.iter().map(of).collect()
    }

    /// Every width that some layer may have, the widest first.
    pub fn widths(&self) -> Vec<u8> {
        let all: BTreeSet<u8> = self.layers.iter().flat_map(|l| l.bits.iter().copied()).collect();
        all.into_iter().rev().collect()
    }

    /// Whether right answers are known.
    pub fn has_labels(&self) -> bool {
        self.judge.has_labels()
    }

    /// Whether candidates are judged by what others have reached.
    pub fn is_predicted(&self) -> bool {
        self.judge.is_predicted()
    }

    /// A candidate, as many are compared.
    pub fn judge(&self, bits: &[u8]) -> Result<Candidate, SearchError> {
        Ok(self.candidate(bits, self.judge.judge(bits)?))
    }

    /// A candidate, as the few that are left at the end are compared: better known, and far slower.
    pub fn judge_well(&self, bits: &[u8]) -> Result<Candidate, SearchError> {
        Ok(self.candidate(bits, self.judge.judge_well(bits)?))
    }

    /// The recipe that builds a candidate, and nothing else.
    pub fn recipe(&self, candidate: &Candidate, recipe: &Recipe) -> Recipe {
        self.judge.recipe(&candidate.bits, recipe)
    }

    fn candidate(&self, bits: &[u8], (error, accuracy): (f64, Option<f64>)) -> Candidate {
        let (flash, instructions) = (self.flash(bits), self.instructions(bits));
        Candidate { bits: bits.to_vec(), flash, instructions, error, accuracy }
    }
}

impl Layer {
    /// Index of a width.
    fn at(&self, bits: u8) -> Option<usize> {
        self.bits.iter().position(|&b| b == bits)
    }

    fn bytes_at(&self, bits: u8) -> u64 {
        self.at(bits).map_or(0, |i| self.bytes[i])
    }
}

/// Bytes of the constants of an operator, as they lie in a file.
fn layer_bytes(program: &Program, name: &str) -> u64 {
    let Some(spec) = program.ops.iter().find(|spec| spec.name == name && spec.record.weights().is_some()) else {
        return 0;
    };
    let mut record = spec.record;
    let ids = record.constants_mut().into_iter().flatten().map(|id| *id as usize);
    let bytes = |id: usize| program.constants.get(id).map_or(0, |c| c.record.bytes as usize);
    ids.map(|id| bytes(id).next_multiple_of(ALIGN) as u64).sum()
}
