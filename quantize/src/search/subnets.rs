//! Candidates of a supernet: what they reach is measured for some hundred, and predicted for all others.
//!
//! A candidate gives every layer a width; the other traits of its form are the first that the supernet was trained with. Some are drawn
//! evenly over the mean width, as the paper conditions its samples on budgets: of many random choices, those whose mean lies in a bucket say how often a layer has a width there.
//! The best by prediction are measured by more samples, with batch norms as they are built with.

use super::journal::Journal;
use super::{Judge, Layer, SearchError, SearchOptions, Space, kernel_widths};
use crate::build::{BuildError, pack_graph, prepare_given, prepend_preprocess};
use crate::data::Targets;
use crate::elastic::predictor::{Predictor, Quality};
use crate::elastic::{ElasticError, Form, Supernet};
use crate::graph::{Graph, Op};
use crate::pack::{PackOptions, Packed, zero_points};
use crate::random::Random;
use crate::recipe::Recipe;
use crate::scheme::{Choice, LayerOptions, QuantOptions, Rounding, quantize};
use crate::train::{Data, Device, Net, TrainError};
use ndarray::{ArrayD, Axis};
use pith::Isa;
use pith::format::crc32::{crc32, crc32_behind};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Samples that a sub-network is measured by, to learn from it and to choose it.
const MEASURED_BY: usize = 1_500;
const CHOSEN_BY: usize = 6_000;

/// Samples that batch norms are recalibrated with before a sub-network is learnt from, at most: few will do to compare.
const RECALIBRATED_BY: usize = 512;

/// Samples that run at once.
const BATCH: usize = 256;

/// Random choices that the frequencies of widths are counted in, and buckets of mean widths.
const DRAWS: usize = 50_000;
const BUCKETS: usize = 30;

/// What a search of a supernet needs.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// What is searched.
    pub supernet: &'a Supernet,
    /// Training data, which recalibrates and measures.
    pub data: Data<'a>,
    /// Where sub-networks run.
    pub device: &'a Device,
    /// Raw calibration samples, and whether the raw data of each input are bytes.
    pub samples: &'a [Vec<ArrayD<f32>>],
    /// See `samples`.
    pub is_u8: &'a [bool],
    /// Set when the user wants to stop.
    pub stop: &'a AtomicBool,
    /// Where scores of measured sub-networks are kept.
    pub checkpoint: Option<&'a Path>,
    /// Whether those that are there count.
    pub resumes: bool,
}

impl Source<'_> {
    /// Of everything that a score depends on.
    fn checksum(&self) -> u32 {
        let options = &self.supernet.options;
        let mut sum = crc32(format!("{:?} {}", options, self.data.samples.len()).as_bytes());
        let mut add = |bytes: &[u8]| sum = crc32_behind(sum, bytes);
        add(bytemuck::cast_slice(self.supernet.theta()));
        let counts = [MEASURED_BY, CHOSEN_BY, options.recalibrate, options.recalibrate.min(RECALIBRATED_BY)];
        for i in counts.into_iter().flat_map(|count| self.data.spaced(count)) {
            self.data.sample(i).iter().flatten().for_each(|v| add(&v.to_le_bytes()));
            match self.data.targets {
                Some(Targets::Classes(labels)) => add(&labels[i].to_le_bytes()),
                Some(Targets::Values(values)) => {
                    let own = values.iter().map(|output| output.index_axis(Axis(0), i));
                    own.for_each(|output| output.iter().for_each(|v| add(&v.to_le_bytes())));
                }
                None => {}
            }
        }
        sum
    }
}

/// A sub-network as it is built.
#[derive(Debug)]
pub struct Subnet {
    /// Takes raw data.
    pub graph: Graph,
    /// Its layers' integers.
    pub rounding: Rounding,
    /// The recipe's, with the widths in which the levels are stored.
    pub quantize: QuantOptions,
}

/// A sub-network, with preprocessing in front. Levels are stored in the least width that holds them and has kernels of the set; where zero points make
/// that a narrower one, packing finds it.
pub fn subnet(
    supernet: &Supernet,
    choice: &[usize],
    data: &Data<'_>,
    device: &Device,
    recipe: &Recipe,
    isa: Isa,
) -> Result<Subnet, SearchError> {
    let widths = kernel_widths(isa);
    let lowered = supernet.lower(choice, data, device)?;
    let graph = prepend_preprocess(lowered.graph, &recipe.preprocess).map_err(BuildError::from)?;
    let mut quantize = recipe.quantize.clone();
    quantize.layers.clear();
    quantize.activation_bits = None;
    let mut layers = BTreeMap::new();
    // Preprocessing that went into a layer's weights leaves no levels there.
    for (name, (bits, rounded)) in lowered.layers.into_iter().filter(|(name, (_, r))| r.is_of(&graph, name)) {
        let kernel = |bits: u8| widths.iter().rev().copied().find(|&w| w >= bits);
        let filters = || rounded.values.axis_iter(Axis(0)).map(|filter| filter.into_iter().copied());
        let narrower = widths.iter().any(|&w| w < bits && zero_points(filters(), w).is_some());
        let shifted = narrower && (isa.layout().is_none() || is_matrix(&graph, &name));
        let bits = if shifted { bits } else { kernel(bits).unwrap_or(bits) };
        quantize.layers.insert(name.clone(), LayerOptions { weight_bits: Some(bits), ..LayerOptions::default() });
        layers.insert(name, rounded);
    }
    Ok(Subnet { graph, rounding: Rounding::given(layers, lowered.activations), quantize })
}

/// Whether a core's kernels read a layer's weights as a matrix in blocks; what they read row by row is fastest in 8 bits.
fn is_matrix(graph: &Graph, name: &str) -> bool {
    graph.nodes.iter().any(|node| {
        let is_full = matches!(&node.op, Op::Conv2d { window, groups: 1, .. } if window.dilation == [1; 2]);
        node.name == name && (is_full || matches!(node.op, Op::Linear { .. }))
    })
}

/// A supernet's candidates.
#[derive(Debug)]
struct Subnets<'a> {
    source: Source<'a>,
    net: Net,
    /// Layers of the supernet that are chosen for.
    chosen: Vec<usize>,
    /// By layer of the supernet, the form at each width.
    forms: Vec<Vec<(u8, usize)>>,
    /// Forms of activations: no budget counts what fewer bits would save, so that they are the widest, or what the recipe wants.
    activations: Vec<usize>,
    /// To learn from, and to choose by.
    quick: Measure,
    well: Measure,
    predictor: Option<Predictor>,
    journal: Journal,
}

/// What sub-networks are measured by.
#[derive(Debug)]
struct Measure {
    samples: Vec<usize>,
    truth: Truth,
    /// Samples that batch norms are recalibrated with.
    recalibrate: usize,
}

/// What outputs should be.
#[derive(Debug)]
enum Truth {
    /// The set's labels.
    Labels(Vec<usize>),
    /// What the float network answers, where a set has no labels.
    Answers(Vec<usize>),
    /// The first output of the float network, where it is no classifier.
    Outputs(Vec<f32>),
}

/// The space of a supernet, and how well its accuracies are predicted.
pub fn space<'a>(
    source: Source<'a>,
    recipe: &Recipe,
    search: &SearchOptions,
    options: PackOptions,
    progress: &(dyn Fn(&'static str, usize) + Sync),
) -> Result<(Space<'a>, Quality), SearchError> {
    let supernet = source.supernet;
    let widths = match &search.bits {
        Some(bits) => bits.clone(),
        // Coded levels are decoded into a width that has kernels.
        None if options.compress.level > 0 => (2..=8).collect(),
        None => kernel_widths(options.isa),
    };
    // The first form of a width: symmetric levels are fewer, and store and code shorter.
    let preferred = |forms: &[Form]| -> Vec<(u8, usize)> {
        let mut all: Vec<(u8, usize)> = Vec::new();
        for (i, form) in forms.iter().enumerate().filter(|(_, form)| widths.contains(&form.bits)) {
            if all.last().is_none_or(|(bits, _)| *bits != form.bits) {
                all.push((form.bits, i));
            }
        }
        if all.is_empty() { vec![(forms[0].bits, 0)] } else { all }
    };
    let forms: Vec<Vec<(u8, usize)>> = supernet.layers.iter().map(|l| preferred(&l.forms)).collect();
    let chosen: Vec<usize> = (0..forms.len()).filter(|&i| forms[i].len() > 1).collect();
    let net = supernet.net(source.device)?;
    let recalibrate = supernet.options.recalibrate;
    let quick = Measure::new(&source, &net, MEASURED_BY, recalibrate.min(RECALIBRATED_BY));
    let well = Measure::new(&source, &net, CHOSEN_BY, recalibrate);
    let journal = Journal::open(source.checkpoint, source.resumes, source.checksum())?;
    let activations = supernet.choose_activations(&recipe.quantize)?;
    let mut subnets = Subnets { source, net, chosen, forms, activations, quick, well, predictor: None, journal };
    let layers: Vec<Layer> = subnets
        .chosen
        .iter()
        .map(|&i| {
            let layer = &supernet.layers[i];
            Layer::new(&layer.name, layer.weights.len(), subnets.forms[i].iter().map(|f| f.0).collect())
        })
        .collect();
    if layers.is_empty() {
        return Err(widths.first().map_or(SearchError::NoLayers, |&bits| SearchError::OneWidth { bits }));
    }
    let mut all: Vec<u8> = layers.iter().flat_map(|l| l.bits.iter().copied()).collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    all.dedup();
    let mut packs: Vec<(u8, Packed)> = Vec::new();
    let mut made: Option<Choice> = None;
    for width in all {
        let bits: Vec<u8> =
            layers.iter().map(|l| l.bits.iter().rev().copied().find(|&b| b >= width).unwrap_or(l.bits[0])).collect();
        packs.push((width, subnets.packed(&bits, recipe, options, &mut made, progress)?));
    }
    let quality = subnets.learn(&layers, search.measured, search.seed, progress)?;
    Ok((Space::new(layers, &packs, options, Box::new(subnets))?, quality))
}

impl Measure {
    /// By so many samples at most.
    fn new(source: &Source<'_>, net: &Net, samples: usize, recalibrate: usize) -> Measure {
        let samples = source.data.spaced(samples);
        let truth = Truth::of(source, net, &samples);
        Measure { samples, truth, recalibrate }
    }
}

impl Truth {
    fn of(source: &Source<'_>, net: &Net, samples: &[usize]) -> Truth {
        if let Some(Targets::Classes(labels)) = source.data.targets {
            return Truth::Labels(samples.iter().map(|&i| labels[i]).collect());
        }
        let (theta, moments) = source.supernet.recalibrated(net, None, &source.data);
        let batches = source.data.batches(net, samples, BATCH);
        let outputs: Vec<f32> = batches.flat_map(|batch| first(net.logits(&theta, &moments, &batch))).collect();
        match source.data.targets.is_none() && net.ends_in_softmax() {
            true => Truth::Answers(outputs.chunks_exact(net.classes().max(1)).map(largest).collect()),
            false => Truth::Outputs(outputs),
        }
    }
}

fn first(outputs: Vec<Vec<f32>>) -> Vec<f32> {
    outputs.into_iter().next().unwrap_or_default()
}

fn largest(row: &[f32]) -> usize {
    let all = row.iter().enumerate();
    all.fold((0, f32::NEG_INFINITY), |best, (i, &v)| if v > best.1 { (i, v) } else { best }).0
}

impl Subnets<'_> {
    /// Form of every layer of the supernet.
    fn choice(&self, bits: &[u8]) -> Vec<usize> {
        let mut choice: Vec<usize> = self.forms.iter().map(|f| f[0].1).collect();
        for (&layer, bits) in self.chosen.iter().zip(bits) {
            choice[layer] = self.forms[layer].iter().find(|f| f.0 == *bits).map_or(choice[layer], |f| f.1);
        }
        choice.extend(&self.activations);
        choice
    }

    /// Forms of the layers that are chosen for.
    fn forms(&self, bits: &[u8]) -> Vec<Form> {
        let choice = self.choice(bits);
        self.chosen.iter().map(|&i| self.source.supernet.layers[i].forms[choice[i]]).collect()
    }

    /// Ends the work if the user wants that.
    fn go_on(&self) -> Result<(), SearchError> {
        match self.source.stop.load(Ordering::Relaxed) {
            true => Err(ElasticError::from(TrainError::Interrupted { checkpoint: self.journal.path() }).into()),
            false => Ok(()),
        }
    }

    /// The share of right answers, or decibels over 100, with batch norms of its own.
    fn measure(&self, bits: &[u8], by: &Measure) -> Result<f64, SearchError> {
        let choice = self.choice(bits);
        self.journal.score(&choice, [by.samples.len(), by.recalibrate], || self.measured(&choice, by))
    }

    fn measured(&self, choice: &[usize], by: &Measure) -> Result<f64, SearchError> {
        self.go_on()?;
        let Source { supernet, data, .. } = self.source;
        let (theta, moments) = supernet.recalibrated_by(by.recalibrate, &self.net, Some(choice), &data);
        let batches = data.batches(&self.net, &by.samples, BATCH);
        let outputs: Vec<f32> = batches.flat_map(|batch| first(self.net.logits(&theta, &moments, &batch))).collect();
        Ok(match &by.truth {
            Truth::Labels(labels) | Truth::Answers(labels) => {
                let rows = outputs.chunks_exact(self.net.classes().max(1)).zip(labels);
                rows.filter(|(row, label)| largest(row) == **label).count() as f64 / labels.len().max(1) as f64
            }
            Truth::Outputs(wanted) => {
                let square = |v: f32| f64::from(v).powi(2);
                let noise: f64 = outputs.iter().zip(wanted).map(|(a, b)| square(a - b)).sum();
                let signal: f64 = wanted.iter().map(|&v| square(v)).sum();
                -0.1 * (noise.max(1e-30) / signal.max(1e-30)).log10()
            }
        })
    }

    /// Error and share of right answers of a score.
    fn judged(&self, score: f64) -> (f64, Option<f64>) {
        match &self.quick.truth {
            Truth::Outputs(_) => (10f64.powf(-10.0 * score), None),
            _ => (1.0 - score, Some(score)),
        }
    }

    fn packed(
        &self,
        bits: &[u8],
        recipe: &Recipe,
        options: PackOptions,
        made: &mut Option<Choice>,
        progress: &(dyn Fn(&'static str, usize) + Sync),
    ) -> Result<Packed, SearchError> {
        self.go_on()?;
        let Source { supernet, data, device, samples, is_u8, .. } = self.source;
        let own = subnet(supernet, &self.choice(bits), &data, device, recipe, options.isa)?;
        let mut recipe = Recipe { quantize: own.quantize, ..recipe.clone() };
        // Bytes do not depend on these; they are chosen once.
        if let Some(choice) = made {
            recipe.quantize.observer = Some(choice.observer);
            recipe.quantize.bias_correction = Some(choice.bias_correction);
        }
        let prepared = prepare_given(own.graph, samples, is_u8, &recipe, &own.rounding, progress)?;
        *made = Some(prepared.choice);
        let q = quantize(&prepared.graph, &prepared.stats, &recipe.quantize, prepared.choice, is_u8, &own.rounding)
            .map_err(BuildError::from)?;
        Ok(pack_graph(&q, &recipe, false, options, progress)?)
    }

    /// Measures sub-networks and learns from them.
    fn learn(
        &mut self,
        layers: &[Layer],
        count: usize,
        seed: u64,
        progress: &(dyn Fn(&'static str, usize) + Sync),
    ) -> Result<Quality, SearchError> {
        let mut random = Random::new(seed, 0xC0A9);
        let draws = draws(layers, count.max(20), &mut random);
        let mut scores = Vec::with_capacity(draws.len());
        for bits in &draws {
            scores.push(self.measure(bits, &self.quick)?);
            progress("measuring", draws.len());
        }
        let forms: Vec<Vec<Form>> = draws.iter().map(|bits| self.forms(bits)).collect();
        let (predictor, quality) = Predictor::fit(&forms, &scores, seed, self.source.stop)?;
        self.predictor = Some(predictor);
        Ok(quality)
    }
}

/// Choices whose mean widths lie evenly between the narrowest and the widest.
fn draws(layers: &[Layer], count: usize, random: &mut Random) -> Vec<Vec<u8>> {
    let all: f64 = layers.iter().map(|l| l.weights as f64).sum();
    let mean = |bits: &[u8]| layers.iter().zip(bits).map(|(l, &b)| l.weights as f64 * f64::from(b)).sum::<f64>() / all;
    let ends = |pick: fn(&Layer) -> u8| mean(&layers.iter().map(pick).collect::<Vec<_>>());
    let (low, high) = (ends(|l| l.bits[l.bits.len() - 1]), ends(|l| l.bits[0]));
    let bucket = |mean: f64| ((((mean - low) / (high - low).max(1e-9)) * BUCKETS as f64) as usize).min(BUCKETS - 1);
    let any = |random: &mut Random| -> Vec<u8> { layers.iter().map(|l| l.bits[random.below(l.bits.len())]).collect() };
    // How often a layer has a width where the mean lies in a bucket; a little of everything.
    let mut seen: Vec<Vec<Vec<f32>>> = vec![layers.iter().map(|l| vec![0.01; l.bits.len()]).collect(); BUCKETS];
    for _ in 0..DRAWS {
        let bits = any(random);
        let of = &mut seen[bucket(mean(&bits))];
        for ((layer, own), bits) in layers.iter().zip(of).zip(&bits) {
            own[layer.bits.iter().position(|b| b == bits).unwrap_or(0)] += 1.0;
        }
    }
    let draw = |i: usize, random: &mut Random| -> Vec<u8> {
        let frequencies = &seen[i * BUCKETS / count.max(1)];
        let pick = |(layer, own): (&Layer, &Vec<f32>)| {
            let mut at = random.uniform() * own.iter().sum::<f32>();
            let found = own.iter().position(|f| {
                at -= f;
                at < 0.0
            });
            layer.bits[found.unwrap_or(0)]
        };
        layers.iter().zip(frequencies).map(pick).collect()
    };
    let mut choices: Vec<Vec<u8>> = (0..count).map(|i| draw(i, random)).collect();
    // What is held out is no end of the scale.
    random.shuffle(&mut choices);
    choices
}

impl Judge for Subnets<'_> {
    fn judge(&self, bits: &[u8]) -> Result<(f64, Option<f64>), SearchError> {
        self.go_on()?;
        Ok(self.judged(self.predictor.as_ref().map_or(0.0, |p| p.predict(&self.forms(bits)))))
    }

    fn judge_well(&self, bits: &[u8]) -> Result<(f64, Option<f64>), SearchError> {
        Ok(self.judged(self.measure(bits, &self.well)?))
    }

    fn recipe(&self, bits: &[u8], recipe: &Recipe) -> Recipe {
        let mut recipe = recipe.clone();
        let choice = self.choice(bits);
        for (layer, form) in self.source.supernet.layers.iter().zip(choice) {
            let form = layer.forms[form];
            let own = recipe.quantize.layers.entry(layer.name.clone()).or_default();
            own.weight_bits = Some(form.bits);
            own.granularity = Some(form.granularity);
            own.symmetric = Some(form.symmetric);
        }
        recipe
    }

    fn has_labels(&self) -> bool {
        matches!(self.quick.truth, Truth::Labels(_))
    }

    fn is_predicted(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean widths lie evenly between the ends, though most random choices lie in the middle.
    #[test]
    fn draws_are_even_over_the_mean_width() {
        let layer = |weights: usize| Layer::new("", weights, vec![8, 6, 5, 4, 3, 2]);
        let layers: Vec<Layer> = [100, 400, 400, 800, 1600, 300, 500].map(layer).into();
        let all = draws(&layers, 300, &mut Random::new(1, 1));
        let weights: f64 = layers.iter().map(|l| l.weights as f64).sum();
        let mean = |bits: &Vec<u8>| {
            layers.iter().zip(bits).map(|(l, &b)| l.weights as f64 * f64::from(b)).sum::<f64>() / weights
        };
        let mut thirds = [0; 3];
        all.iter().for_each(|bits| thirds[(((mean(bits) - 2.0) / 2.0) as usize).min(2)] += 1);
        assert!(thirds.iter().all(|&n| n >= 60), "{thirds:?} of 300");
        let distinct: std::collections::BTreeSet<&Vec<u8>> = all.iter().collect();
        assert!(distinct.len() > 280, "{}", distinct.len());
    }
}
