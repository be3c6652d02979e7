//! Candidates without training: the network's own weights, rounded to every width.

use super::{Judge, Judges, Layer, SearchError, Space};
use crate::build::{BuildError, Prepared, Sqnr, pack_graph};
use crate::execute::Runner;
use crate::lower::lower;
use crate::pack::{ModelFile, PackOptions, Packed, pack};
use crate::recipe::Recipe;
use crate::scheme::{QGraph, QWeights, QuantOptions, Rounding, quantize};
use ndarray::ArrayD;
use pith::Model;
use rayon::prelude::*;

/// A network's integers at every width.
#[derive(Debug)]
pub(super) struct Rounded<'a> {
    /// With the widest weights; candidates replace them.
    q: QGraph,
    /// Name and node of every layer that is chosen for, and its integers by width.
    layers: Vec<(String, usize, Vec<QWeights>)>,
    prepared: &'a Prepared,
    given: QuantOptions,
    judges: Judges<'a>,
    /// Outputs of the float network.
    truth: Vec<Vec<ArrayD<f32>>>,
}

/// The space of a network, quantized and packed once for each width, the widest first.
pub(super) fn space<'a>(
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
    let mut layers = Vec::new();
    for (node, own) in q.graph.nodes.iter().enumerate() {
        // What the recipe has fixed, or what one width fits, is no choice.
        let is_fixed = given.layers.get(&own.name).is_some_and(|l| l.weight_bits.is_some());
        let all: Vec<QWeights> = graphs.iter().filter_map(|q| q.weights[node].clone()).collect();
        let is_choice = all.first().zip(all.last()).is_some_and(|(first, last)| first.bits != last.bits);
        if !is_fixed && is_choice {
            layers.push((own.name.clone(), node, all));
        }
    }
    let shown = layers.iter().map(|(name, _, all)| Layer::new(name, all[0].values.len(), widths.to_vec())).collect();
    let packs = widths
        .iter()
        .zip(&graphs)
        .map(|(&width, q)| Ok((width, pack_graph(q, recipe, prepared.equalized, options, progress)?)));
    let packs: Vec<(u8, Packed)> = packs.collect::<Result<_, SearchError>>()?;
    let truth = prepared.truth(judges.samples)?;
    let judge = Rounded { q, layers, prepared, given: given.clone(), judges, truth };
    Space::new(shown, &packs, options, Box::new(judge))
}

impl Rounded<'_> {
    /// What the recipe says of weights, with these widths.
    fn options(&self, bits: &[u8]) -> QuantOptions {
        let mut options = self.given.clone();
        for ((name, ..), &bits) in self.layers.iter().zip(bits) {
            options.layers.entry(name.clone()).or_default().weight_bits = Some(bits);
        }
        options
    }

    /// Noise of the worst output as a share of its energy, and the share of right answers.
    fn run(&self, q: &QGraph) -> Result<(f64, Option<f64>), SearchError> {
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
        Ok((worst, accuracy))
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

impl Judge for Rounded<'_> {
    fn judge(&self, bits: &[u8]) -> Result<(f64, Option<f64>), SearchError> {
        let mut q = self.q.clone();
        for ((_, node, integers), &bits) in self.layers.iter().zip(bits) {
            q.weights[*node] = integers.iter().find(|w| w.bits == bits).cloned();
        }
        self.run(&q)
    }

    /// Layers are rounded in turn, as the build does it.
    fn judge_well(&self, bits: &[u8]) -> Result<(f64, Option<f64>), SearchError> {
        let options = self.options(bits);
        let Prepared { graph, stats, choice, .. } = self.prepared;
        let rounding = match options.is_compensated(graph) {
            true => {
                Rounding::in_turn(graph, self.judges.samples, &options, &mut |_, _| ()).map_err(BuildError::from)?
            }
            false => Rounding::default(),
        };
        let q = quantize(graph, stats, &options, *choice, self.judges.is_u8, &rounding).map_err(BuildError::from)?;
        self.run(&q)
    }

    fn recipe(&self, bits: &[u8], recipe: &Recipe) -> Recipe {
        let mut recipe = recipe.clone();
        let (q, choice) = (&mut recipe.quantize, self.prepared.choice);
        (q.observer, q.bias_correction) = (Some(choice.observer), Some(choice.bias_correction));
        q.equalize = Some(self.prepared.equalized);
        q.layers = self.options(bits).layers;
        recipe
    }

    fn has_labels(&self) -> bool {
        self.judges.labels.is_some()
    }

    fn is_predicted(&self) -> bool {
        false
    }
}

fn argmax(values: &ArrayD<f32>) -> usize {
    let best = values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.map_or(0, |(i, _)| i)
}
