//! From an imported graph and calibration samples to a model file: every step in order, and the automatic choices.

use crate::calibrate::{CalibrateError, Observer, Stats, observe};
use crate::correct::{CorrectError, correct_outputs};
use crate::data::Slot;
use crate::execute::Runner;
use crate::graph::{Clamp, Graph, Node, Op, eval, simplify};
use crate::lower::{LowerError, lower};
use crate::pack::{ModelFile, PackError, PackOptions, Packed, pack, pack_visibly};
use crate::prune::reconstruct::ReconstructError;
use crate::recipe::{Preprocess, Recipe, RecipeError};
use crate::scheme::{Choice, Inputs, QGraph, QuantOptions, Rounding, SchemeError, equalize, quantize};
use crate::shrink::{ShrinkReport, shrink};
use ndarray::ArrayD;
use rayon::prelude::*;

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum BuildError {
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Scheme(#[from] SchemeError),
    #[error(transparent)]
    Lower(#[from] LowerError),
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error(transparent)]
    Correct(#[from] CorrectError),
    #[error(transparent)]
    Round(#[from] ReconstructError),
}

/// What a build leaves behind.
#[derive(Clone, Debug)]
pub struct Built {
    /// The file and its plan.
    pub packed: Packed,
    /// The float graph that was quantized, with preprocessing: its tensors have the names of the file's.
    pub graph: Graph,
    /// What shrinking removed.
    pub shrunk: ShrinkReport,
    /// The chosen observer and bias correction.
    pub choice: Choice,
    /// Whether channels were equalized.
    pub equalized: bool,
    /// SQNR in dB of the worst output on the held-out calibration samples.
    pub sqnr_db: f64,
}

/// What a build may do beyond the recipe.
#[derive(Clone, Copy, Debug)]
pub struct BuildOptions {
    /// Remove constant and unread channels.
    pub shrink: bool,
    /// See [`PackOptions`].
    pub pack: PackOptions,
}

impl Default for BuildOptions {
    fn default() -> BuildOptions {
        BuildOptions { shrink: true, pack: PackOptions::default() }
    }
}

/// Inputs of a float graph as data slots.
pub fn input_slots(graph: &Graph) -> Vec<Slot> {
    graph.inputs.iter().map(|p| slot(graph, p)).collect()
}

/// Outputs of a float graph as data slots.
pub fn output_slots(graph: &Graph) -> Vec<Slot> {
    graph.outputs.iter().map(|p| slot(graph, p)).collect()
}

fn slot(graph: &Graph, port: &crate::graph::Port) -> Slot {
    let is_nchw = port.onnx_axes == [0, 2, 3, 1];
    Slot { name: port.name.clone(), shape: graph.shape(port.tensor).to_vec(), is_nchw }
}

/// The graph with the preprocessing of its first input as its first node, so that it takes the user's raw data.
pub fn prepend_preprocess(mut graph: Graph, preprocess: &Preprocess) -> Result<Graph, RecipeError> {
    let Some(port) = graph.inputs.first() else { return Ok(graph) };
    let raw = port.tensor;
    let shape = graph.shape(raw).to_vec();
    let channels = shape.last().copied().unwrap_or(1);
    let Some((scale, bias)) = preprocess.affine(channels)? else { return Ok(graph) };
    let cooked = graph.add_tensor(format!("{}/preprocessed", port.name), &shape);
    graph.redirect(raw, cooked);
    let op = Op::Affine { scale, bias, clamp: Clamp::NONE };
    graph.nodes.insert(0, Node { name: "preprocess".into(), op, inputs: vec![raw], output: cooked });
    Ok(simplify(graph))
}

/// A float graph that is ready to be quantized, with everything that was chosen.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// With preprocessing, and equalized where that helps.
    pub graph: Graph,
    /// Its activations on the calibration samples.
    pub stats: Stats,
    /// The chosen observer and bias correction.
    pub choice: Choice,
    /// Whether channels were equalized.
    pub equalized: bool,
}

impl Prepared {
    /// What compensated rounding knows of the calibration samples.
    pub fn rounding(
        &self,
        samples: &[Vec<ArrayD<f32>>],
        progress: &(dyn Fn(&'static str, usize) + Sync),
    ) -> Result<Rounding, BuildError> {
        Ok(Rounding::new(Inputs::observe(&self.graph, samples, &|| progress("rounding", samples.len()))?))
    }

    /// Outputs of the float network.
    pub fn truth(&self, samples: &[Vec<ArrayD<f32>>]) -> Result<Vec<Vec<ArrayD<f32>>>, BuildError> {
        Ok(float_outputs(&self.graph, samples)?)
    }
}

/// The last fifth of the samples judges, at most 32; it takes no part in a choice's calibration if there are enough.
fn split(samples: &[Vec<ArrayD<f32>>]) -> (&[Vec<ArrayD<f32>>], &[Vec<ArrayD<f32>>]) {
    let held_out = (samples.len() / 5).clamp(1, 32).min(samples.len());
    let (fit, judge) = match samples.len() {
        0..20 => (samples, samples),
        n => samples.split_at(n - held_out),
    };
    (fit, &judge[..judge.len().min(32)])
}

/// Quantizes, shrinks and packs. `graph` comes from [`simplify`] and [`prepend_preprocess`]; `samples` are raw; `progress` gets a step's
/// name, and how many of how many samples are done.
pub fn build(
    graph: Graph,
    samples: &[Vec<ArrayD<f32>>],
    input_is_u8: &[bool],
    recipe: &Recipe,
    options: BuildOptions,
    progress: &(dyn Fn(&'static str, usize) + Sync),
) -> Result<Built, BuildError> {
    let prepared = prepare(graph, samples, input_is_u8, recipe, progress)?;
    finish(prepared, samples, input_is_u8, recipe, options, progress)
}

/// Calibrates, and makes the choices that the recipe leaves open.
pub fn prepare(
    graph: Graph,
    samples: &[Vec<ArrayD<f32>>],
    input_is_u8: &[bool],
    recipe: &Recipe,
    progress: &(dyn Fn(&'static str, usize) + Sync),
) -> Result<Prepared, BuildError> {
    prepare_given(graph, samples, input_is_u8, recipe, &Rounding::default(), progress)
}

/// The same for layers that are integers already.
pub fn prepare_given(
    graph: Graph,
    samples: &[Vec<ArrayD<f32>>],
    input_is_u8: &[bool],
    recipe: &Recipe,
    given: &Rounding,
    progress: &(dyn Fn(&'static str, usize) + Sync),
) -> Result<Prepared, BuildError> {
    let (fit, judge) = split(samples);
    let wanted = &recipe.quantize;
    wanted.check(&graph)?;
    // Integers have their scales.
    let equalize_wanted = if given.is_given() { Some(false) } else { wanted.equalize };
    let equalizations = equalize_wanted.map_or(vec![false, true], |e| vec![e]);
    let observers =
        wanted.observer.map_or(vec![Observer::MinMax, Observer::Percentile(1e-5), Observer::Mse], |o| vec![o]);
    // Activations that were trained in few bits have their own means, which floats do not tell.
    let corrections = match (wanted.bias_correction, given.has_activations()) {
        (Some(wanted), _) => vec![wanted],
        (None, true) => vec![false],
        (None, false) => vec![false, true],
    };
    let mut best: Option<(f64, Graph, bool, Choice)> = None;
    let single = equalizations.len() * observers.len() * corrections.len() == 1;
    let plain = observe(&graph, fit, &|| progress("calibrating", 2 * fit.len()))?;
    for equalized in equalizations {
        let (graph, stats) = match equalized {
            false => (graph.clone(), plain.clone()),
            true => {
                let graph = equalize(graph.clone(), &plain);
                let stats = observe(&graph, fit, &|| progress("calibrating", 2 * fit.len()))?;
                (graph, stats)
            }
        };
        let truth = float_outputs(&graph, judge)?;
        for &observer in &observers {
            for &bias_correction in &corrections {
                let choice = Choice { observer, bias_correction };
                let db = match single {
                    true => 0.0,
                    false => {
                        let q = quantized(&graph, &stats, wanted, choice, input_is_u8, fit, given)?;
                        let packed = pack(lower(&q)?, PackOptions::default())?;
                        outputs_sqnr_db(&packed.bytes, judge, &truth)
                    }
                };
                // Ties, and gains too small to mean anything, go to what came first: the simplest.
                if best.as_ref().is_none_or(|(db_before, ..)| db > db_before + 0.2) {
                    best = Some((db, graph.clone(), equalized, choice));
                }
            }
        }
    }
    let Some((_, graph, equalized, choice)) = best else { return Err(CalibrateError::Empty.into()) };
    let stats = observe(&graph, samples, &|| progress("calibrating", 2 * samples.len()))?;
    Ok(Prepared { graph, stats, choice, equalized })
}

/// Quantizes, shrinks and packs what was prepared on the same samples with the same recipe, up to the bits of layers.
pub fn finish(
    prepared: Prepared,
    samples: &[Vec<ArrayD<f32>>],
    input_is_u8: &[bool],
    recipe: &Recipe,
    options: BuildOptions,
    progress: &(dyn Fn(&'static str, usize) + Sync),
) -> Result<Built, BuildError> {
    let wanted = &recipe.quantize;
    let rounding = match wanted.is_compensated(&prepared.graph) {
        true => Rounding::in_turn(&prepared.graph, samples, wanted, &mut |_, layers| progress("rounding", layers))?,
        false => Rounding::default(),
    };
    finish_given(prepared, samples, input_is_u8, recipe, options, &rounding, progress)
}

/// The same with layers rounded as given.
pub fn finish_given(
    prepared: Prepared,
    samples: &[Vec<ArrayD<f32>>],
    input_is_u8: &[bool],
    recipe: &Recipe,
    options: BuildOptions,
    rounding: &Rounding,
    progress: &(dyn Fn(&'static str, usize) + Sync),
) -> Result<Built, BuildError> {
    let (_, judge) = split(samples);
    let wanted = &recipe.quantize;
    let Prepared { graph, stats, choice, equalized } = prepared;
    let q = quantized(&graph, &stats, wanted, choice, input_is_u8, samples, rounding)?;
    let (q, shrunk) = if options.shrink { shrink(q) } else { (q, ShrinkReport::default()) };
    let packed = pack_graph(&q, recipe, equalized, options.pack, progress)?;
    let truth = float_outputs(&graph, judge)?;
    let sqnr_db = outputs_sqnr_db(&packed.bytes, judge, &truth);
    Ok(Built { packed, graph, shrunk, choice, equalized, sqnr_db })
}

/// The file of a quantized graph, with the recipe's preprocessing noted.
pub(crate) fn pack_graph(
    q: &QGraph,
    recipe: &Recipe,
    equalized: bool,
    options: PackOptions,
    progress: &(dyn Fn(&'static str, usize) + Sync),
) -> Result<Packed, BuildError> {
    let mut program = lower(q)?;
    let list = |values: &[f64]| values.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
    let p = &recipe.preprocess;
    program.metadata = vec![
        ("network".into(), q.graph.name.clone()),
        ("quantize.equalized".into(), equalized.to_string()),
        ("preprocess.scale".into(), p.scale.to_string()),
        ("preprocess.mean".into(), list(&p.mean)),
        ("preprocess.std".into(), list(&p.std)),
    ];
    if let Some(layout) = p.layout {
        program.metadata.push(("preprocess.layout".into(), format!("{layout:?}").to_lowercase()));
    }
    Ok(pack_visibly(program, options, progress)?)
}

fn float_outputs(graph: &Graph, samples: &[Vec<ArrayD<f32>>]) -> Result<Vec<Vec<ArrayD<f32>>>, CalibrateError> {
    Ok(samples.par_iter().map(|sample| eval::run(graph, sample)).collect::<Result<_, _>>()?)
}

/// One candidate: quantized, and corrected on at most 32 of the calibration samples if the choice says so.
fn quantized(
    graph: &Graph,
    stats: &Stats,
    options: &QuantOptions,
    choice: Choice,
    input_is_u8: &[bool],
    samples: &[Vec<ArrayD<f32>>],
    rounding: &Rounding,
) -> Result<QGraph, BuildError> {
    let q = quantize(graph, stats, options, choice, input_is_u8, rounding)?;
    Ok(if choice.bias_correction { correct_outputs(q, graph, &samples[..samples.len().min(32)])? } else { q })
}

/// SQNR in dB of the worst output.
fn outputs_sqnr_db(bytes: &[u8], samples: &[Vec<ArrayD<f32>>], truth: &[Vec<ArrayD<f32>>]) -> f64 {
    let file = ModelFile::new(bytes);
    let Ok(model) = pith::Model::parse(file.as_bytes()) else { return f64::NEG_INFINITY };
    let outputs: Vec<Vec<ArrayD<f32>>> =
        samples.par_iter().map_init(|| Runner::new(&model), |runner, sample| runner.run(sample)).collect();
    let db = |k: usize| Sqnr::of(outputs.iter().zip(truth).map(|(got, expected)| (&got[k], &expected[k]))).db();
    (0..model.outputs().len()).map(db).fold(f64::INFINITY, f64::min)
}

/// Signal and noise of pairs of arrays with equal element order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sqnr {
    /// Sum of squares of the expected values.
    pub signal: f64,
    /// Sum of squares of the differences.
    pub noise: f64,
    /// Largest absolute difference.
    pub max_abs_error: f64,
}

impl Sqnr {
    /// Over all pairs of `(got, expected)`.
    pub fn of<'a>(pairs: impl Iterator<Item = (&'a ArrayD<f32>, &'a ArrayD<f32>)>) -> Sqnr {
        pairs.fold(Sqnr::default(), |sum, (got, expected)| sum.and(got, expected))
    }

    /// With one more pair.
    pub fn and(mut self, got: &ArrayD<f32>, expected: &ArrayD<f32>) -> Sqnr {
        for (&a, &b) in got.iter().zip(expected) {
            let d = a as f64 - b as f64;
            self.signal += b as f64 * b as f64;
            self.noise += d * d;
            self.max_abs_error = self.max_abs_error.max(d.abs());
        }
        self
    }

    /// `10 log10(signal / noise)`; 200 where there is no noise.
    pub fn db(&self) -> f64 {
        if self.noise == 0.0 { 200.0 } else { (10.0 * (self.signal.max(1e-300) / self.noise).log10()).min(200.0) }
    }
}
