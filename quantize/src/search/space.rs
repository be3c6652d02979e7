//! Layers, their widths, what each costs, and a way to judge a choice.

use super::{Candidate, Judges, SearchError};
use crate::build::{BuildError, Prepared, Sqnr, pack_graph};
use crate::cost::CostTable;
use crate::execute::Runner;
use crate::lower::{Program, lower};
use crate::pack::{ModelFile, PackError, PackOptions, Packed, pack};
use crate::recipe::Recipe;
use crate::scheme::{QGraph, QWeights, QuantOptions, Rounding, quantize};
use ndarray::ArrayD;
use pith::format::ALIGN;
use pith::{Isa, Model};
use rayon::prelude::*;
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
    /// Its index among the nodes of the quantized graph.
    node: usize,
    /// Its integers at each width.
    integers: Vec<QWeights>,
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
    /// With the widest weights; candidates replace them.
    q: QGraph,
    prepared: &'a Prepared,
    given: QuantOptions,
    judges: Judges<'a>,
    /// Outputs of the float network.
    truth: Vec<Vec<ArrayD<f32>>>,
}

impl<'a> Space<'a> {
    /// Quantizes and packs the network once for each width, the widest first.
    pub(super) fn new(
        prepared: &'a Prepared,
        judges: Judges<'a>,
        recipe: &Recipe,
        widths: &[u8],
        options: PackOptions,
        progress: &(dyn Fn(&'static str, usize) + Sync),
    ) -> Result<Space<'a>, SearchError> {
        let given = &recipe.quantize;
        given.check(&prepared.graph).map_err(BuildError::from)?;
        let rounding = prepared.rounding(judges.samples, progress)?;
        let mut graphs = Vec::new();
        for &bits in widths {
            let mut wanted = given.clone();
            wanted.weight_bits = bits;
            let q = quantize(&prepared.graph, &prepared.stats, &wanted, prepared.choice, judges.is_u8, &rounding);
            graphs.push(q.map_err(BuildError::from)?);
            progress("rounding", widths.len());
        }
        let Some(q) = graphs.first().cloned() else { return Err(SearchError::NoLayers) };
        let mut space = Space {
            layers: Vec::new(),
            base: 0,
            base_instructions: None,
            uncounted: BTreeSet::new(),
            ram: 0,
            q,
            prepared,
            given: given.clone(),
            judges,
            truth: prepared.truth(judges.samples)?,
        };
        for (node, own) in space.q.graph.nodes.iter().enumerate() {
            // What the recipe has fixed, or what one width fits, is no choice.
            let is_fixed = given.layers.get(&own.name).is_some_and(|l| l.weight_bits.is_some());
            let all: Vec<QWeights> = graphs.iter().filter_map(|q| q.weights[node].clone()).collect();
            let is_choice = all.first().zip(all.last()).is_some_and(|(first, last)| first.bits != last.bits);
            if is_fixed || !is_choice {
                continue;
            }
            let weights = all[0].values.len() as u64;
            space.layers.push(Layer {
                name: own.name.clone(),
                weights,
                bits: widths.to_vec(),
                bytes: Vec::new(),
                instructions: Vec::new(),
                node,
                integers: all,
            });
        }
        if space.layers.is_empty() {
            return Err(SearchError::NoLayers);
        }
        for q in &graphs {
            let packed = pack_graph(q, recipe, prepared.equalized, options, progress)?;
            let bytes: Vec<u64> = space.layers.iter().map(|l| layer_bytes(&packed.program, &l.name)).collect();
            space.base = space.base.max((packed.bytes.len() as u64).saturating_sub(bytes.iter().sum()));
            space.layers.iter_mut().zip(bytes).for_each(|(l, bytes)| l.bytes.push(bytes));
            let file = ModelFile::new(&packed.bytes);
            let model = Model::parse(file.as_bytes()).map_err(|e| BuildError::from(PackError::Invalid(e)))?;
            space.ram = space.ram.max(options.compress.memory(&model).1);
            space.count(&packed.program, &model, options.isa);
        }
        Ok(space)
    }

    /// Adds predicted instructions of one more width.
    fn count(&mut self, program: &Program, model: &Model<'_>, isa: Isa) {
        let counted = CostTable::of(isa).map(|table| (table, table.run(model)));
        let (table, all) = match counted {
            Some((table, Ok(all))) => (table, all),
            uncounted => {
                self.uncounted.extend(uncounted.and_then(|(_, all)| all.err()).unwrap_or_default());
                self.layers.iter_mut().for_each(|l| l.instructions.push(0.0));
                return;
            }
        };
        let mut chosen = 0.0;
        let names = program.ops.iter().map(|spec| spec.name.as_str());
        let ops: Vec<_> = names.zip(model.ops().map(|(_, op)| op)).collect();
        for layer in &mut self.layers {
            let own = ops.iter().find(|(name, op)| *name == layer.name && op.weights().is_some());
            let own = own.and_then(|(_, op)| table.instructions(model, op)).unwrap_or(0.0);
            layer.instructions.push(own);
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

    /// Whether samples have labels.
    pub fn has_labels(&self) -> bool {
        self.judges.labels.is_some()
    }

    /// Runs a candidate.
    pub fn judge(&self, bits: &[u8]) -> Result<Candidate, SearchError> {
        let mut q = self.q.clone();
        for (layer, &bits) in self.layers.iter().zip(bits) {
            q.weights[layer.node] = layer.at(bits).map(|i| layer.integers[i].clone());
        }
        self.candidate(bits, &q)
    }

    /// Runs a candidate whose layers are rounded in turn, as the build does it: better, and far slower.
    pub fn judge_in_turn(&self, bits: &[u8]) -> Result<Candidate, SearchError> {
        let options = self.options(bits);
        let Prepared { graph, stats, choice, .. } = self.prepared;
        let rounding = match options.is_compensated(graph) {
            true => {
                Rounding::in_turn(graph, self.judges.samples, &options, &mut |_, _| ()).map_err(BuildError::from)?
            }
            false => Rounding::default(),
        };
        let q = quantize(graph, stats, &options, *choice, self.judges.is_u8, &rounding).map_err(BuildError::from)?;
        self.candidate(bits, &q)
    }

    /// What the recipe says of weights, with these widths.
    pub(super) fn options(&self, bits: &[u8]) -> QuantOptions {
        let mut options = self.given.clone();
        for (layer, &bits) in self.layers.iter().zip(bits) {
            options.layers.entry(layer.name.clone()).or_default().weight_bits = Some(bits);
        }
        options
    }

    fn candidate(&self, bits: &[u8], q: &QGraph) -> Result<Candidate, SearchError> {
        let packed = pack(lower(q).map_err(BuildError::from)?, PackOptions::default()).map_err(BuildError::from)?;
        let outputs = self.outputs(&packed);
        let noise = |k: usize| {
            let sum = Sqnr::of(outputs.iter().zip(&self.truth).map(|(got, expected)| (&got[k], &expected[k])));
            sum.noise / sum.signal.max(1e-30)
        };
        let worst = (0..self.truth.first().map_or(0, Vec::len)).map(noise).fold(0.0, f64::max);
        let accuracy = self.judges.labels.map(|labels| {
            let right = outputs.iter().zip(labels).filter(|(got, label)| argmax(&got[0]) == **label).count();
            right as f64 / labels.len().max(1) as f64
        });
        let (flash, instructions) = (self.flash(bits), self.instructions(bits));
        Ok(Candidate { bits: bits.to_vec(), flash, instructions, error: worst, accuracy })
    }

    fn outputs(&self, packed: &Packed) -> Vec<Vec<ArrayD<f32>>> {
        let file = ModelFile::new(&packed.bytes);
        match Model::parse(file.as_bytes()) {
            Ok(model) => {
                let run = |runner: &mut Runner<'_>, sample: &Vec<ArrayD<f32>>| runner.run(sample);
                self.judges.samples.par_iter().map_init(|| Runner::new(&model), run).collect()
            }
            // The packer has parsed it before.
            Err(_) => Vec::new(),
        }
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

fn argmax(values: &ArrayD<f32>) -> usize {
    let best = values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.map_or(0, |(i, _)| i)
}
