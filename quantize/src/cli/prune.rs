//! `quantize prune`: a trained network and data → a smaller network, as an ONNX file again.

use super::Failure;
use super::build::target as chip;
use super::input::{Ports, PreprocessArgs, number, spaced};
use super::output::{Progress, check_folder, write_whole};
use super::train::teacher;
use super::training::{TrainArgs, TrainProgress, affine, data, load_test, stop};
use crate::build::{BuildOptions, build, prepend_preprocess};
use crate::data::Set;
use crate::graph::eval::macs;
use crate::graph::{Graph, simplify, trainable};
use crate::onnx;
use crate::pack::ModelFile;
use crate::prune::groups::{Groups, Kind};
use crate::prune::select::Target;
use crate::prune::training::{Method, PruneHooks, PruneOptions, Pruned, prune, prune_post_training};
use crate::prune::trajectory::Kept;
use crate::recipe::Recipe;
use crate::report::layers::{Layer, Summary};
use crate::report::prune_svg::{channels_svg, trajectory_svg};
use crate::report::{grouped, json, table};
use crate::target::Target as Chip;
use crate::train::{Teacher, accuracy};
use ndarray::ArrayD;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Trained float network
    model: PathBuf,
    /// Training set: .npz with x, and y unless the original network is the teacher
    #[arg(long)]
    data: PathBuf,
    /// Labelled set for accuracy before and after
    #[arg(long)]
    test: Option<PathBuf>,
    /// TOML file with hyper-parameters; options on the command line win
    #[arg(long)]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    prune: PruneArgs,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    train: TrainArgs,
    /// Draw what happened: norms of groups, groups left, strength, loss
    #[arg(long, value_name = "FILE", conflicts_with = "post_training")]
    svg: Option<PathBuf>,
    /// Draw the groups of every layer before and after
    #[arg(long, value_name = "FILE")]
    layers_svg: Option<PathBuf>,
    /// Print JSON: before and after with accuracy, parameters, macs, arena_bytes, weight_bytes; layers; trajectory
    #[arg(long)]
    json: bool,
    /// Where the pruned ONNX file goes
    #[arg(short, long)]
    output: PathBuf,
}

/// What goes, and how much.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Pruning")]
pub(super) struct PruneArgs {
    /// filter, channel, shape, block=ROWSxCOLS (1x4, 2x4), depth or weight
    #[arg(long, default_value = "filter")]
    groups: Kind,
    /// Share of the groups that go, over the whole network
    #[arg(long, value_parser = number, group = "budget")]
    sparsity: Option<f64>,
    /// Share of the groups that go in every layer
    #[arg(long, value_parser = number, group = "budget")]
    per_layer: Option<f64>,
    /// Multiply-accumulates that stay: a share below 1 (0.5), or a number (5M)
    #[arg(long, value_parser = amount, group = "budget")]
    macs: Option<Amount>,
    /// Weights that stay: a share below 1, or a number
    #[arg(long, value_parser = amount, group = "budget")]
    parameters: Option<Amount>,
    /// Bytes that int8 weights may take, such as 60K
    #[arg(long, value_parser = count, group = "budget")]
    bytes: Option<u64>,
    /// Instructions of a run that stay, as predicted for --on: a share below 1, or a number
    #[arg(long, value_parser = amount, group = "budget", requires = "on")]
    instructions: Option<Amount>,
    /// Core or board (cortex-m4, nucleo-l4r5zi, ...) of --instructions
    #[arg(long, value_name = "TARGET", value_parser = chip, requires = "instructions")]
    on: Option<Chip>,
    /// What pulls groups to zero [default: wgsef]
    #[arg(long, value_enum, requires = "budget")]
    method: Option<Method>,
    /// Share of the epochs under the pull; the rest trains what is left [default: 0.2, up to 0.4 where that is few steps]. With --method reconstruct, the
    /// share that trains the whole network first [default: 0]
    #[arg(long, value_parser = number, requires = "budget")]
    sparsify: Option<f64>,
    /// Do not train: remove what others can stand in for, and fit every layer to the original's on calibration inputs. Fast, and worse
    #[arg(long, requires = "budget", conflicts_with_all = ["method", "sparsify"])]
    post_training: bool,
    /// Network that teaches (--distill) [default: the network itself, before it is pruned]
    #[arg(long, value_name = "ONNX", requires = "budget", conflicts_with = "post_training")]
    teacher: Option<PathBuf>,
}

/// A share or a number.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Amount {
    Share(f64),
    Count(u64),
}

fn amount(text: &str) -> Result<Amount, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((i, 'K' | 'k')) => (&text[..i], 1e3),
        Some((i, 'M')) => (&text[..i], 1e6),
        _ => (text, 1.0),
    };
    let value = number(digits)? * unit;
    match value {
        v if !(0.0..1e18).contains(&v) => Err(format!("'{text}' is no amount")),
        v if v <= 1.0 && unit == 1.0 => Ok(Amount::Share(v)),
        v => Ok(Amount::Count(v.round() as u64)),
    }
}

/// A whole number, such as 60K.
pub(super) fn count(text: &str) -> Result<u64, String> {
    match amount(text)? {
        Amount::Count(n) => Ok(n),
        Amount::Share(s) => Err(format!("{s} is no count; give a number such as 60K")),
    }
}

impl PruneArgs {
    /// The budget, if one was given.
    pub(super) fn target(&self) -> Option<Target> {
        let share_of = |a: Amount, share: fn(f64) -> Target, count: fn(u64) -> Target| match a {
            Amount::Share(s) => share(s),
            Amount::Count(n) => count(n),
        };
        self.sparsity
            .map(Target::Sparsity)
            .or(self.per_layer.map(Target::PerLayer))
            .or(self.macs.map(|a| share_of(a, Target::MacsShare, Target::Macs)))
            .or(self.parameters.map(|a| share_of(a, Target::ParametersShare, Target::Parameters)))
            .or(self.bytes.map(Target::Bytes))
            .or(self.instructions.zip(self.on.as_ref()).map(|(amount, on)| match amount {
                Amount::Share(share) => Target::InstructionsShare(share, on.isa),
                Amount::Count(count) => Target::Instructions(count, on.isa),
            }))
    }

    fn method_name(&self, base: &PruneOptions) -> String {
        let name = match self.over(base).method {
            _ if self.post_training => "post_training",
            Method::Wgsef => "wgsef",
            Method::Magnitude => "magnitude",
            Method::GroupLasso => "group_lasso",
            Method::Reconstruct => "reconstruct",
        };
        name.into()
    }

    fn over(&self, base: &PruneOptions) -> PruneOptions {
        let mut options = base.clone();
        options.method = self.method.unwrap_or(options.method);
        options.sparsify = self.sparsify.or(options.sparsify);
        options
    }
}

/// Prunes a trainable graph as the arguments say.
pub(super) fn prune_graph(
    graph: &Graph,
    target: Target,
    args: &PruneArgs,
    train: &TrainArgs,
    recipe: &Recipe,
    set: &Set,
) -> Result<Pruned, Failure> {
    let ports = Ports::of_graph(graph);
    let affine = affine(&recipe.preprocess, &ports.inputs[0].shape)?;
    let mut options = args.over(&recipe.prune);
    options.train = train.over(&options.train);
    if args.post_training {
        let samples = inputs(&set.samples, &affine, recipe.calibrate.samples);
        let progress = Progress::new();
        let parts = |step: &'static str, parts: usize| progress.advance(step, parts);
        let pruned = prune_post_training(graph, args.groups, target, &samples, &parts)?;
        progress.finish();
        return Ok(pruned);
    }
    let device = &train.device()?;
    let teacher =
        args.teacher.as_deref().map_or_else(|| Ok(Teacher::new(graph, device)?), |path| teacher(path, device))?;
    let (steps, progress) = (Progress::new(), TrainProgress::new());
    let report = |phase, status: &crate::train::Status| progress.report(phase, status);
    let parts = |step: &'static str, parts: usize| steps.advance(step, parts);
    let (checkpoint, resume) = (train.checkpoint()?, train.resume);
    let hooks = PruneHooks { report: &report, parts: &parts, stop: stop(), checkpoint, resume };
    let data = data(set, &affine);
    let pruned = prune(graph, args.groups, target, &data, Some(&teacher), &options, device, &hooks);
    progress.finish();
    Ok(pruned?)
}

/// Calibration samples as the network takes them.
fn inputs(samples: &[Vec<ArrayD<f32>>], affine: &Option<(Vec<f32>, Vec<f32>)>, count: usize) -> Vec<Vec<ArrayD<f32>>> {
    let mut samples = spaced(samples.to_vec(), count);
    if let Some((scale, bias)) = affine {
        for value in samples.iter_mut().filter_map(|s| s.first_mut()) {
            let n = scale.len();
            value.iter_mut().enumerate().for_each(|(i, v)| *v = *v * scale[i % n] + bias[i % n]);
        }
    }
    samples
}

/// `--json`; the keys are stable.
#[derive(Serialize)]
struct Report<'a> {
    groups: String,
    /// `wgsef`, `magnitude`, `group_lasso`, `reconstruct`; `post_training` where nothing was trained.
    method: String,
    before: Side,
    after: Side,
    layers: &'a [Kept],
    trajectory: &'a crate::prune::trajectory::Trajectory,
    seconds: f64,
}

/// A network's figures; sizes are those of the int8 model that `build` makes of it.
#[derive(Serialize)]
struct Side {
    accuracy: Option<f64>,
    parameters: u64,
    macs: u64,
    arena_bytes: Option<u64>,
    weight_bytes: u64,
    layers: Vec<LayerCost>,
}

/// Of an operator with weights.
#[derive(Serialize)]
struct LayerCost {
    name: String,
    macs: u64,
    weight_bytes: u64,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    check_folder(&args.output)?;
    [&args.svg, &args.layers_svg].into_iter().flatten().try_for_each(|path| check_folder(path))?;
    let started = Instant::now();
    let mut recipe = args.recipe.as_ref().map_or(Ok(Recipe::default()), |path| Recipe::read(path))?;
    recipe.preprocess = args.preprocess.over(&recipe.preprocess);
    let Some(target) = args.prune.target() else {
        return Err(Failure::new(
            "no budget; give --sparsity, --per-layer, --macs, --parameters, --bytes or --instructions",
        ));
    };
    if args.svg.is_some() && args.prune.over(&recipe.prune).method == Method::Reconstruct {
        return Err(Failure::new("--method reconstruct records nothing that --svg could draw; use --layers-svg"));
    }
    let graph = trainable(onnx::import(&args.model)?);
    let ports = Ports::of_graph(&graph);
    let set = ports.load(&args.data, recipe.preprocess.layout)?;
    let test = load_test(args.test.as_deref(), &ports, recipe.preprocess.layout)?;
    let pruned = prune_graph(&graph, target, &args.prune, &args.train, &recipe, &set)?;
    let affine = affine(&recipe.preprocess, &ports.inputs[0].shape)?;
    let judge = |graph: &Graph| match &test {
        Some(test) => accuracy(graph, &data(test, &affine), &args.train.device()?),
        None => Ok(None),
    };
    let kind = args.prune.groups;
    let before = side(&graph, kind, &set, &recipe, judge(&graph)?)?;
    let after = side(&pruned.graph, kind, &set, &recipe, judge(&pruned.graph)?)?;
    write_whole(&args.output, &onnx::encode(&pruned.graph)?)?;
    if let Some(path) = &args.svg {
        write_whole(path, trajectory_svg(&pruned.trajectory, &graph.name).as_bytes())?;
    }
    if let Some(path) = &args.layers_svg {
        write_whole(path, channels_svg(&pruned.layers, &graph.name).as_bytes())?;
    }
    let report = Report {
        groups: args.prune.groups.to_string(),
        method: args.prune.method_name(&recipe.prune),
        before,
        after,
        layers: &pruned.layers,
        trajectory: &pruned.trajectory,
        seconds: started.elapsed().as_secs_f64(),
    };
    let text = if args.json { json(&report) } else { text(&report, args) };
    Ok(out.write_all(text.as_bytes())?)
}

/// Builds the int8 model of a network for its sizes. Blocks that are zero, which kernels skip, count no multiply-accumulates where such are the groups.
fn side(graph: &Graph, kind: Kind, set: &Set, recipe: &Recipe, accuracy: Option<f64>) -> Result<Side, Failure> {
    let raw = prepend_preprocess(simplify(graph.clone()), &recipe.preprocess)?;
    let samples = spaced(set.samples.clone(), recipe.calibrate.samples.min(64));
    // One choice is enough for sizes.
    let mut quick = recipe.clone();
    quick.quantize.observer = Some(crate::calibrate::Observer::MinMax);
    quick.quantize.bias_correction = Some(false);
    quick.quantize.equalize = Some(false);
    let progress = Progress::new();
    let step = |step: &'static str, n: usize| progress.advance(step, n);
    let built = build(raw, &samples, &set.is_u8, &quick, BuildOptions::default(), &step)?;
    progress.finish();
    let file = ModelFile::new(&built.packed.bytes);
    let model = super::input::parse_packed(std::path::Path::new("the pruned model"), &file, None)?;
    let summary = Summary::of_model(&model);
    let plain = simplify(graph.clone());
    let parameters = plain.theta().iter().filter(|v| **v != 0.0).count() as u64;
    let mut layers: Vec<LayerCost> =
        summary.layers.into_iter().filter(|l| l.weight_bytes > 0).map(LayerCost::from).collect();
    let dense: u64 = layers.iter().map(|l| l.macs).sum();
    if let (Kind::Block { .. }, Ok(groups)) = (kind, Groups::find(&plain, kind)) {
        let norms = groups.norms(&plain.theta());
        for layer in &mut layers {
            let is_own = |&j: &usize| groups.layers[groups.layer[j]] == layer.name;
            let own: Vec<usize> = (0..groups.len()).filter(is_own).collect();
            let size = |j: &usize| groups.of(*j).len() as u64;
            let all: u64 = own.iter().map(size).sum();
            let left: u64 = own.iter().filter(|j| norms[**j] > 0.0).map(size).sum();
            // The model may have lost channels that are all zero.
            if let (Some(node), 1..) = (plain.nodes.iter().find(|n| n.name == layer.name), all) {
                let of_all = macs(&node.op, plain.shape(node.inputs[0]), plain.shape(node.output));
                layer.macs = layer.macs.min(of_all / all * left);
            }
        }
    }
    Ok(Side {
        accuracy,
        parameters,
        macs: summary.macs - (dense - layers.iter().map(|l| l.macs).sum::<u64>()),
        arena_bytes: summary.arena_bytes,
        weight_bytes: summary.weight_bytes,
        layers,
    })
}

impl From<Layer> for LayerCost {
    fn from(l: Layer) -> LayerCost {
        LayerCost { name: l.name, macs: l.macs, weight_bytes: l.weight_bytes }
    }
}

/// Operators with weights, before and after; those that are gone have nothing left.
fn costs(before: &[LayerCost], after: &[LayerCost]) -> String {
    let row = |b: &LayerCost| {
        let left = after.iter().find(|a| a.name == b.name);
        let left = |f: fn(&LayerCost) -> u64| left.map_or("-".into(), |l| grouped(f(l)));
        vec![b.name.clone(), grouped(b.macs), left(|l| l.macs), grouped(b.weight_bytes), left(|l| l.weight_bytes)]
    };
    let rows: Vec<Vec<String>> = before.iter().map(row).collect();
    table(&["operator", "MACs", "left", "weight B", "left"], &rows)
}

fn text(report: &Report<'_>, args: &Args) -> String {
    let rows: Vec<Vec<String>> =
        report.layers.iter().map(|l| vec![l.layer.clone(), l.before.to_string(), l.after.to_string()]).collect();
    let (b, a) = (&report.before, &report.after);
    let share =
        |b: u64, a: u64| format!("{} -> {} ({:.1} %)", grouped(b), grouped(a), 100.0 * a as f64 / b.max(1) as f64);
    let accuracy = match (b.accuracy, a.accuracy) {
        (Some(b), Some(a)) => format!("{:.2} % -> {:.2} %", 100.0 * b, 100.0 * a),
        _ => "not judged (--test)".into(),
    };
    let method = match report.method.as_str() {
        "post_training" => {
            "post-training: what is missed least removed, layers fitted on calibration inputs, nothing trained".into()
        }
        name => format!("{name}, trained"),
    };
    format!(
        "{}\n{}\nmethod     {method}\naccuracy   {accuracy}\nparameters {} not zero\nMACs       {}\nweights    {} bytes as int8\narena      {} bytes\nwrote      {} in {:.1} s\n",
        table(&["layer", "groups", "kept"], &rows),
        costs(&b.layers, &a.layers),
        share(b.parameters, a.parameters),
        share(b.macs, a.macs),
        share(b.weight_bytes, a.weight_bytes),
        share(b.arena_bytes.unwrap_or(0), a.arena_bytes.unwrap_or(0)),
        args.output.display(),
        report.seconds
    )
}
