//! `cargo xtask bench`: Pith beside other people's engines.
//!
//! - [`mcu`]: executed instructions on emulated cores, beside measured figures of CMSIS-NN and others;
//! - [`desktop`]: time at batch 1 on one thread, in turns with the [`peers`], which run in processes of their own, as [`pith`] does;
//! - [`circuits`]: probabilistic circuits and their codec on images, beside published figures;
//! - [`compress`]: weights without loss, beside other coders, and what decoding takes;
//! - [`bits`]: every layer with its own bits, by the bytes of the file;
//! - [`elastic`]: one supernet at every width, beside networks trained for one;
//! - [`cost`]: what kernels execute, fitted;
//! - [`sparse`]: block-sparse weights beside dense ones;
//! - [`prune`]: accuracy of pruned networks, beside baselines;
//! - [`prox`]: time of the proximal operator that prunes, by the number of groups;
//! - [`train`]: an epoch of training, beside PyTorch;
//! - [`picture`]: bars for all.

use crate::networks::{BENCHED, Network, shared};
use crate::{ToolError, root};
use ndarray::ArrayD;
use quantize::build::{BuildOptions, Built, build, input_slots};
use quantize::data;
use quantize::graph::{Graph, simplify};
use quantize::onnx::import;
use quantize::report::json;
use serde::Serialize;
use std::path::{Path, PathBuf};

pub mod bits;
pub mod circuits;
pub mod compress;
pub mod cost;
pub mod desktop;
pub mod elastic;
pub mod mcu;
pub mod peers;
pub mod picture;
pub mod pith;
pub mod prox;
pub mod prune;
pub mod sparse;
pub mod train;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, clap::Subcommand)]
enum Bench {
    /// Instructions on emulated cores, beside measured peers
    Mcu(mcu::Args),
    /// Time on this machine, in turns with other engines
    Desktop(desktop::Args),
    /// Probabilistic circuits on images: bits per dimension, time to code
    Circuits(circuits::Args),
    /// Weights coded by Pith beside other coders
    Compress(compress::Args),
    /// Accuracy by the bytes of the file, every layer with its own bits, without training
    Bits(bits::Args),
    /// A supernet at every uniform setting, and accuracy by the bytes of coded files (an hour)
    Elastic(elastic::Args),
    /// Count kernels on emulated cores and fit what is predicted of them
    Cost(cost::Args),
    /// Block-sparse weights beside the same weights stored dense
    Sparse(sparse::Args),
    /// Accuracy of pruned networks, by the share of multiply-accumulates that is left (hours; it goes on where it stopped)
    Prune(prune::Args),
    /// The proximal operator of the group envelope, by the number of groups
    Prox(prox::Args),
    /// An epoch of training beside PyTorch, and what pruning adds to it
    Train(train::Args),
    /// Pith as an engine of `desktop`: JSON lines on standard input and output
    #[command(hide = true)]
    Serve,
}

/// The verb; false if a core failed or an output was wrong.
pub fn run(args: &Args) -> Result<bool, ToolError> {
    match &args.bench {
        Bench::Mcu(args) => mcu::run(args),
        Bench::Desktop(args) => desktop::run(args),
        Bench::Circuits(args) => circuits::run(args),
        Bench::Compress(args) => compress::run(args),
        Bench::Bits(args) => bits::run(args),
        Bench::Elastic(args) => elastic::run(args),
        Bench::Cost(args) => cost::run(args),
        Bench::Sparse(args) => sparse::run(args),
        Bench::Prune(args) => prune::run(args),
        Bench::Prox(args) => prox::run(args),
        Bench::Train(args) => train::run(args),
        Bench::Serve => pith::serve().map(|()| true),
    }
}

/// Calibration samples; the first is also the one that is timed.
const SAMPLES: usize = 200;

/// A network with samples as its own float input takes them, in the graph's axes.
struct Subject {
    model: PathBuf,
    graph: Graph,
    samples: Vec<Vec<ArrayD<f32>>>,
    is_u8: Vec<bool>,
}

impl Subject {
    /// One of [`BENCHED`], or the shipped `digits`.
    fn load(name: &str) -> Result<Subject, ToolError> {
        let failed = |e: &dyn std::fmt::Display| ToolError(format!("{name}: {e}"));
        let (model, set, network) = files(name)?;
        let preprocess = network.recipe().preprocess;
        let graph = simplify(import(&model).map_err(|e| failed(&e))?);
        let set = data::load(&set, &input_slots(&graph), None, usize::MAX).map_err(|e| failed(&e))?;
        let step = (set.samples.len() / SAMPLES).max(1);
        let mut samples: Vec<_> = set.samples.into_iter().step_by(step).take(SAMPLES).collect();
        let channels = samples[0][0].shape().last().copied().unwrap_or(1);
        let affine = preprocess.affine(channels).map_err(|e| failed(&e))?;
        if let Some((scale, bias)) = &affine {
            for (i, x) in samples.iter_mut().flat_map(|s| s[0].iter_mut().enumerate()) {
                *x = *x * scale[i % channels] + bias[i % channels];
            }
        }
        let is_u8 = if affine.is_some() { vec![false; set.is_u8.len()] } else { set.is_u8 };
        Ok(Subject { model, graph, samples, is_u8 })
    }

    /// Quantized with the default recipe, laid out for any machine.
    fn quantize(&self, bits: u8) -> Result<Built, ToolError> {
        let mut recipe = Network::PLAIN.recipe();
        recipe.quantize.weight_bits = bits;
        build(self.graph.clone(), &self.samples, &self.is_u8, &recipe, BuildOptions::default(), &|_, _| ())
            .map_err(|e| ToolError(format!("{}: {e}", self.model.display())))
    }
}

/// Model, calibration set and preprocessing of a network.
fn files(name: &str) -> Result<(PathBuf, PathBuf, Network), ToolError> {
    if name == DIGITS {
        let file = |file: &str| root().join("tests/models/digits").join(file);
        let network = Network { model: DIGITS, scale: 1.0 / 16.0, ..Network::PLAIN };
        return Ok((file("digits.onnx"), file("digits_train.npz"), network));
    }
    let known = || BENCHED.map(|n| n.model).join(", ");
    let network = BENCHED.into_iter().find(|n| n.model == name);
    let network = network.ok_or_else(|| ToolError(format!("no network '{name}'; choose of {}, {DIGITS}", known())))?;
    let file = |file: String| shared(&file).ok_or_else(|| ToolError(format!("{name}: shared/data/{file} is absent")));
    Ok((file(format!("models/{name}.onnx"))?, file(format!("sets/{}.npz", network.calibration))?, network))
}

/// The network that the repository itself holds.
const DIGITS: &str = "digits";

/// What was asked for, or else those of `all` whose files are there, or else the shipped network.
fn chosen(asked: &[String], all: &[&str]) -> Vec<String> {
    if !asked.is_empty() {
        return asked.to_vec();
    }
    let (there, absent): (Vec<&str>, Vec<&str>) = all.iter().partition(|name| files(name).is_ok());
    if !absent.is_empty() {
        eprintln!("left out, as the shared data are absent: {}", absent.join(", "));
    }
    let names = if there.is_empty() { vec![DIGITS] } else { there };
    names.into_iter().map(String::from).collect()
}

/// Writes `NAME.json` and `NAME.svg` and says where.
fn write(folder: &Path, name: &str, report: &impl Serialize, picture: &str) -> Result<(), ToolError> {
    for (extension, text) in [("json", json(report).as_str()), ("svg", picture)] {
        let path = folder.join(name).with_extension(extension);
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&path, text))
            .map_err(|e| ToolError(format!("{}: {e}", path.display())))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}

/// Where results go if nothing else is said.
fn default_folder() -> PathBuf {
    root().join("target/bench")
}
