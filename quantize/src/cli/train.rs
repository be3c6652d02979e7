//! `quantize train`: a network and labelled data → the same network, trained.

use super::Failure;
use super::input::{Ports, PreprocessArgs};
use super::output::{check_folder, write_whole};
use super::training::{TrainArgs, TrainProgress, affine, data, load_test, stop};
use crate::data::{Layout, picture_and_classes};
use crate::graph::{Graph, trainable};
use crate::networks;
use crate::onnx;
use crate::recipe::Recipe;
use crate::report::json;
use crate::train::{Balance, Hooks, Session, Teacher, accuracy, with_norms};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// ONNX file to train further, or the name of a network to train from scratch: resnet8, ds_cnn, lenet5
    model: PathBuf,
    /// Training set: .npz with x and y
    #[arg(long)]
    data: PathBuf,
    /// Labelled set for accuracy before and after
    #[arg(long)]
    test: Option<PathBuf>,
    /// Network that teaches (--distill); its input is that of the trained one
    #[arg(long, value_name = "ONNX")]
    teacher: Option<PathBuf>,
    /// TOML file with hyper-parameters; options on the command line win
    #[arg(long)]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    train: TrainArgs,
    /// Print JSON: accuracy_before, accuracy_after, loss, parameters, seconds
    #[arg(long)]
    json: bool,
    /// Where the trained ONNX file goes
    #[arg(short, long)]
    output: PathBuf,
}

/// `--json`; the keys are stable.
#[derive(Serialize)]
struct Report {
    accuracy_before: Option<f64>,
    accuracy_after: Option<f64>,
    /// Mean over the last epoch.
    loss: f32,
    parameters: usize,
    seconds: f64,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    check_folder(&args.output)?;
    let started = Instant::now();
    let recipe = args.recipe.as_ref().map_or(Ok(Recipe::default()), |path| Recipe::read(path))?;
    let (preprocess, options) = (args.preprocess.over(&recipe.preprocess), args.train.over(&recipe.train));
    let graph = network(args, preprocess.layout, options.seed)?;
    let ports = Ports::of_graph(&graph);
    let set = ports.load(&args.data, preprocess.layout)?;
    let test = load_test(args.test.as_deref(), &ports, preprocess.layout)?;
    let affine = affine(&preprocess, &ports.inputs[0].shape)?;
    let device = &args.train.device()?;
    let teacher = args.teacher.as_ref().map(|path| teacher(path, device)).transpose()?;
    let judge = |graph: &Graph| match &test {
        Some(test) => accuracy(graph, &data(test, &affine), device),
        None => Ok(None),
    };
    let accuracy_before = judge(&graph)?;
    let normed = with_norms(&graph, &data(&set, &affine), Balance::Layer)?;
    let mut session = Session::new(&normed.graph, &options, device)?;
    let checkpoint = args.train.checkpoint()?;
    if let Some(path) = checkpoint.as_deref().filter(|p| args.train.resume && p.exists()) {
        session.resume(path)?;
    }
    let progress = TrainProgress::new();
    let report = |status: &crate::train::Status| progress.report("train", status);
    let mut hooks = Hooks { step: &mut |_| (), report: &report, stop: stop(), checkpoint };
    let done = session.run(&data(&set, &affine), teacher.as_ref(), &mut hooks);
    progress.finish();
    let loss = done?;
    session.refresh(&data(&set, &affine), 2048);
    let graph = normed.fold(session.graph());
    let accuracy_after = judge(&graph)?;
    write_whole(&args.output, &onnx::encode(&graph)?)?;
    let report = Report {
        accuracy_before,
        accuracy_after,
        loss,
        parameters: graph.theta().len(),
        seconds: started.elapsed().as_secs_f64(),
    };
    let text = if args.json { json(&report) } else { text(&report, &args.output) };
    Ok(out.write_all(text.as_bytes())?)
}

fn text(report: &Report, output: &Path) -> String {
    let share = |a: Option<f64>| a.map_or("not judged".into(), |a| format!("{:.2} %", 100.0 * a));
    format!(
        "loss     {:.4} over the last epoch\naccuracy {} before, {} after\nwrote    {} in {:.1} s\n",
        report.loss,
        share(report.accuracy_before),
        share(report.accuracy_after),
        output.display(),
        report.seconds
    )
}

/// A network that teaches.
pub(super) fn teacher(path: &Path, device: &crate::train::Device) -> Result<Teacher, Failure> {
    Ok(Teacher::new(&trainable(onnx::import(path)?), device)?)
}

/// The network of a file, or one of ours, sized for the set.
fn network(args: &Args, layout: Option<Layout>, seed: u64) -> Result<Graph, Failure> {
    let model = args.model.as_path();
    let name = model.to_str().unwrap_or_default();
    if model.exists() || !networks::NETWORKS.iter().any(|(known, ..)| *known == name) {
        return Ok(trainable(onnx::import(model)?));
    }
    let (picture, classes) = picture_and_classes(&args.data, layout)?;
    match networks::by_name(name, picture, classes, seed) {
        Some(Ok(graph)) => Ok(trainable(graph)),
        Some(Err(e)) => Err(Failure::new(format!("{name} does not fit pictures of {picture:?}: {e}"))),
        None => Err(Failure::new(format!("there is no network '{name}'"))),
    }
}
