//! `cargo xtask bench prune`: how well networks classify when a share of their multiply-accumulates is gone, by the group envelope and by the
//! baselines that share its code.
//!
//! Every network is fine-tuned whole and pruned to every share, by every method, with every seed, for the same number of epochs. `resnet8` and
//! `ds_cnn` are trained from scratch first, once. Rows that are already in the folder's `bench-prune.json` with the same settings are not run again.

use super::picture::{Bar, Chart, Group, Panel};
use super::{default_folder, write};
use crate::ToolError;
use crate::core::Core;
use crate::networks::shared;
use crate::qemu::run_on_core;
use indicatif::{ProgressBar, ProgressStyle};
use ndarray::ArrayD;
use pith::Model;
use quantize::build::{BuildOptions, build, input_slots};
use quantize::data::{self, Set, Targets};
use quantize::execute::quantize;
use quantize::files::write_whole;
use quantize::graph::{Graph, simplify, trainable};
use quantize::networks::by_name;
use quantize::onnx;
use quantize::pack::ModelFile;
use quantize::prune::groups::Kind;
use quantize::prune::select::Target;
use quantize::prune::training::{Method, PruneHooks, PruneOptions, prune};
use quantize::recipe::Recipe;
use quantize::report::{grouped, json, table};
use quantize::train::{
    Augment, Balance, Data, Device, Hooks, Session, Status, Teacher, TrainOptions, accuracy, with_norms,
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Networks: fmnist_cnn_bn, resnet8, ds_cnn (on Fashion-MNIST), ic_resnet8 (on CIFAR-10), kws_ref (by distillation alone)
    #[arg(long, value_delimiter = ',', default_value = "fmnist_cnn_bn,resnet8,ds_cnn,ic_resnet8,kws_ref")]
    network: Vec<String>,
    /// Shares of the multiply-accumulates that stay [default: 0.5,0.25,0.1; ic_resnet8 0.5, kws_ref 0.6]
    #[arg(long, value_delimiter = ',')]
    macs: Vec<f64>,
    /// filter, channel, shape, block=ROWSxCOLS, depth
    #[arg(long, default_value = "filter")]
    groups: Kind,
    /// What pulls groups to zero
    #[arg(long, value_enum, value_delimiter = ',', default_value = "wgsef,magnitude,group-lasso")]
    method: Vec<Method>,
    /// Leave out the whole network, fine-tuned for as many epochs
    #[arg(long)]
    no_whole: bool,
    /// Runs of each, with seeds from 1
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Epochs of pruning, and of fine-tuning the whole network [default: the recipe's]
    #[arg(long)]
    epochs: Option<usize>,
    /// Epochs of training from scratch
    #[arg(long, default_value_t = 15)]
    scratch_epochs: usize,
    /// Training samples, from the start of the set [default: all]
    #[arg(long)]
    samples: Option<usize>,
    /// Other hyper-parameters: its [prune] is used
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Count instructions of the first seed's int8 models on this emulated core
    #[arg(long)]
    core: Option<Core>,
    /// Folder of bench-prune.json and bench-prune.svg
    #[arg(long, default_value_os_t = default_folder())]
    out: PathBuf,
    /// Print JSON in place of the table
    #[arg(long)]
    json: bool,
}

/// A run.
#[derive(Clone, Serialize, Deserialize)]
struct Row {
    network: String,
    /// `wgsef`, ..., or `whole`: fine-tuned, not pruned.
    method: String,
    /// Share of the multiply-accumulates that was allowed.
    share: f64,
    seed: u64,
    settings: String,
    /// Of the network before, on the test set.
    original: f64,
    /// Afterwards.
    accuracy: f64,
    /// Multiply-accumulates afterwards.
    macs: u64,
    seconds: f64,
    /// Of a run of the int8 model on the emulated core.
    instructions: Option<u64>,
}

const WHOLE: &str = "whole";

/// A network and the data that it is trained with and judged by.
struct Subject {
    graph: Graph,
    train: Set,
    test: Set,
    affine: Option<(Vec<f32>, Vec<f32>)>,
    augment: Augment,
    shares: Vec<f64>,
}

/// How a network is fed and how far it is pruned.
struct Settings {
    /// Of the pictures' values.
    scale: f64,
    augment: Augment,
    shares: Vec<f64>,
}

/// The verb.
pub fn run(args: &Args) -> Result<bool, ToolError> {
    let recipe = args.recipe.as_ref().map_or(Ok(Recipe::default()), |path| Recipe::read(path)).map_err(failed)?;
    let mut rows = known(&args.out.join("bench-prune.json"))?;
    let mut shown = Vec::new();
    for name in &args.network {
        let Some(mut subject) = Subject::load(name, args)? else { continue };
        if !args.macs.is_empty() {
            subject.shares.clone_from(&args.macs);
        }
        let original = subject.judge(&subject.graph)?;
        let mut options = recipe.prune.clone();
        options.train.epochs = args.epochs.unwrap_or(options.train.epochs);
        if options.train.augment == Augment::default() {
            options.train.augment = subject.augment;
        }
        let mut settings = format!("{} samples, {options:?}", subject.train.samples.len());
        if args.groups != Kind::Filter {
            settings += &format!(", {}", args.groups);
        }
        for (share, method) in subject.runs(&args.method, !args.no_whole) {
            for seed in 1..=args.seeds.max(1) {
                let label = method.map_or(WHOLE.into(), |m| text_of(&m));
                let is_same = |r: &Row| {
                    r.network == *name
                        && r.method == label
                        && r.share == share
                        && r.seed == seed
                        && r.settings == settings
                        && (r.instructions.is_some() || args.core.is_none() || seed > 1)
                };
                if !rows.iter().any(is_same) {
                    let mut options = options.clone();
                    options.train.seed = seed;
                    options.method = method.unwrap_or_default();
                    let started = Instant::now();
                    let label_of_run = format!("{name} {label} {share} {seed}");
                    let (graph, macs) = subject.pruned(&label_of_run, args.groups, share, method, &options)?;
                    let seconds = started.elapsed().as_secs_f64();
                    let instructions = args.core.filter(|_| seed == 1).map(|core| subject.count(&graph, core));
                    rows.retain(|r| {
                        !(r.network == *name && r.method == label && r.share == share && r.seed == seed)
                            || r.settings != settings
                    });
                    rows.push(Row {
                        network: name.clone(),
                        method: label,
                        share,
                        seed,
                        settings: settings.clone(),
                        original,
                        accuracy: subject.judge(&graph)?,
                        macs,
                        seconds,
                        instructions: instructions.transpose()?,
                    });
                    // What was measured is kept even if the next run is interrupted.
                    let drawn = [shown.clone(), of_run(&rows, name, &settings)].concat();
                    write(&args.out, "bench-prune", &rows, &picture(&drawn).svg())?;
                }
            }
        }
        shown.extend(of_run(&rows, name, &settings));
    }
    // All may have been known before, and the picture one of other settings.
    if !shown.is_empty() {
        write(&args.out, "bench-prune", &rows, &picture(&shown).svg())?;
    }
    print!("{}", if args.json { json(&shown) } else { text(&shown) });
    Ok(true)
}

/// Runs with other settings are other curves.
fn of_run(rows: &[Row], network: &str, settings: &str) -> Vec<Row> {
    rows.iter().filter(|r| r.network == network && r.settings == settings).cloned().collect()
}

fn failed(e: impl std::fmt::Display) -> ToolError {
    ToolError(e.to_string())
}

/// Rows of earlier runs.
fn known(path: &Path) -> Result<Vec<Row>, ToolError> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text).map_err(|e| ToolError(format!("{}: {e}; remove it", path.display()))),
        Err(_) => Ok(Vec::new()),
    }
}

/// As the command line and recipes write it.
fn text_of(method: &Method) -> String {
    serde_json::to_value(method).ok().and_then(|v| v.as_str().map(String::from)).unwrap_or_default()
}

fn macs(graph: &Graph) -> u64 {
    let of = |n: &quantize::graph::Node| {
        let x = n.inputs.first().map_or(&[][..], |&x| graph.shape(x));
        quantize::graph::eval::macs(&n.op, x, graph.shape(n.output))
    };
    graph.nodes.iter().map(of).sum()
}

impl Subject {
    /// None where the shared data are absent, which is said.
    fn load(name: &str, args: &Args) -> Result<Option<Subject>, ToolError> {
        let flip_and_shift = Augment { flip: true, crop: 2, ..Augment::default() };
        let (sets, scale, augment, shares) = match name {
            "fmnist_cnn_bn" | "resnet8" | "ds_cnn" => {
                (["fashion_train", "fashion_test"], 1.0 / 255.0, Augment::default(), vec![0.5, 0.25, 0.1])
            }
            "ic_resnet8" => (["cifar10_train", "cifar10_test"], 1.0, flip_and_shift, vec![0.5]),
            "kws_ref" => (["kws_calib_200", "kws_test_800"], 1.0, Augment::default(), vec![0.6]),
            _ => return Err(ToolError(format!("no network '{name}' here"))),
        };
        let [Some(train), Some(test)] = sets.map(|set| shared(&format!("sets/{set}.npz"))) else {
            eprintln!("{name}: data absent, left out");
            return Ok(None);
        };
        let from_scratch = ["resnet8", "ds_cnn"].contains(&name);
        let graph = match shared(&format!("models/{name}.onnx")) {
            Some(model) => onnx::import(&model).map_err(failed)?,
            None if from_scratch => {
                let (picture, classes) = data::picture_and_classes(&train, None).map_err(failed)?;
                match by_name(name, picture, classes, 1) {
                    Some(graph) => graph.map_err(failed)?,
                    None => return Err(ToolError(format!("no network '{name}'"))),
                }
            }
            None => {
                eprintln!("{name}: model absent, left out");
                return Ok(None);
            }
        };
        let settings = Settings { scale, augment, shares };
        let mut subject = Subject::with_data(name, trainable(graph), [&train, &test], args, &settings)?;
        if from_scratch {
            let file = format!("prune-{name}-{}-{}.onnx", subject.train.samples.len(), args.scratch_epochs);
            let trained = subject.trained_from_scratch(&args.out.join(file), args.scratch_epochs)?;
            // An exported network takes its pictures in ONNX's layout.
            subject = Subject::with_data(name, trained, [&train, &test], args, &settings)?;
        }
        Ok(Some(subject))
    }

    fn with_data(
        name: &str,
        graph: Graph,
        sets: [&Path; 2],
        args: &Args,
        settings: &Settings,
    ) -> Result<Subject, ToolError> {
        let slots = input_slots(&graph);
        let classes = graph.outputs.first().map_or(0, |p| graph.shape(p.tensor).iter().product());
        let load = |path: &Path| data::load(path, &slots, None, classes).map_err(failed);
        let (mut train, mut test) = (load(sets[0])?, load(sets[1])?);
        if name == "kws_ref" {
            (train, test) = halves(train, test);
        }
        truncate(&mut train, args.samples.unwrap_or(usize::MAX));
        let affine = (settings.scale != 1.0).then(|| {
            let channels = slots[0].shape.last().copied().unwrap_or(1);
            (vec![settings.scale as f32; channels], vec![0.0f32; channels])
        });
        Ok(Subject { graph, train, test, affine, augment: settings.augment, shares: settings.shares.clone() })
    }

    /// The network after training, or what an earlier run has left at `path`.
    fn trained_from_scratch(&self, path: &Path, epochs: usize) -> Result<Graph, ToolError> {
        if !path.exists() {
            let train = TrainOptions { epochs, augment: self.augment, ..TrainOptions::default() };
            let graph = self.fine_tuned(&path.display().to_string(), &train)?;
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).map_err(failed)?;
            }
            write_whole(path, &onnx::encode(&graph).map_err(failed)?).map_err(failed)?;
        }
        Ok(trainable(onnx::import(path).map_err(failed)?))
    }

    /// Shares and methods, the whole network first.
    fn runs(&self, methods: &[Method], with_whole: bool) -> Vec<(f64, Option<Method>)> {
        let pruned = self.shares.iter().flat_map(|&share| methods.iter().map(move |&m| (share, Some(m))));
        with_whole.then_some((1.0, None)).into_iter().chain(pruned).collect()
    }

    fn data<'a>(&'a self, set: &'a Set) -> Data<'a> {
        Data { samples: &set.samples, targets: set.targets.as_ref(), affine: self.affine.as_ref() }
    }

    fn judge(&self, graph: &Graph) -> Result<f64, ToolError> {
        let share = accuracy(graph, &self.data(&self.test), &Device::cpu()).map_err(failed)?;
        share.ok_or_else(|| ToolError("the test set has no labels".into()))
    }

    /// The network after pruning, or fine-tuned whole, and its multiply-accumulates, those of groups that are gone left out.
    fn pruned(
        &self,
        label: &str,
        groups: Kind,
        share: f64,
        method: Option<Method>,
        options: &PruneOptions,
    ) -> Result<(Graph, u64), ToolError> {
        if method.is_none() {
            let graph = self.fine_tuned(label, &options.train)?;
            let macs = macs(&graph);
            return Ok((graph, macs));
        }
        let teacher = Teacher::new(&self.graph, &Device::cpu()).map_err(failed)?;
        let (bar, stop) = (bar(label), AtomicBool::new(false));
        let report = |phase: &'static str, s: &Status| advance(&bar, phase, s);
        let hooks = PruneHooks { report: &report, parts: &|_, _| (), stop: &stop, checkpoint: None, resume: false };
        let target = Target::MacsShare(share);
        let data = self.data(&self.train);
        let pruned = prune(&self.graph, groups, target, &data, Some(&teacher), options, &Device::cpu(), &hooks);
        bar.finish_and_clear();
        let pruned = pruned.map_err(failed)?;
        Ok((pruned.graph, pruned.after.macs))
    }

    fn fine_tuned(&self, label: &str, options: &TrainOptions) -> Result<Graph, ToolError> {
        let teacher = Teacher::new(&self.graph, &Device::cpu()).map_err(failed)?;
        let data = self.data(&self.train);
        let normed = with_norms(&self.graph, &data, Balance::Layer).map_err(failed)?;
        let mut session = Session::new(&normed.graph, options, &Device::cpu()).map_err(failed)?;
        let (bar, stop) = (bar(label), AtomicBool::new(false));
        let report = |s: &Status| advance(&bar, "train", s);
        let mut hooks = Hooks { step: &mut |_| (), report: &report, stop: &stop, checkpoint: None };
        session.run(&data, Some(&teacher), &mut hooks).map_err(failed)?;
        bar.finish_and_clear();
        session.refresh(&data, 2048);
        Ok(normed.fold(session.graph()))
    }

    /// Instructions of the int8 model.
    fn count(&self, graph: &Graph, core: Core) -> Result<u64, ToolError> {
        let step = (self.train.samples.len() / 64).max(1);
        let mut samples: Vec<Vec<ArrayD<f32>>> = self.train.samples.iter().step_by(step).cloned().collect();
        if let Some((scale, bias)) = &self.affine {
            let n = scale.len();
            for (i, v) in samples.iter_mut().flat_map(|s| s[0].iter_mut().enumerate()) {
                *v = *v * scale[i % n] + bias[i % n];
            }
        }
        let mut options = BuildOptions::default();
        options.pack.isa = core.isa();
        let graph = simplify(graph.clone());
        let built = build(graph, &samples, &[false], &Recipe::default(), options, &|_, _| ()).map_err(failed)?;
        let file = ModelFile::new(&built.packed.bytes);
        let model = Model::parse(file.as_bytes()).map_err(failed)?;
        let input: Vec<Vec<i8>> = model.inputs().iter().zip(&samples[0]).map(|(p, x)| quantize(p, x)).collect();
        Ok(run_on_core(&built.packed.bytes, &[input.clone(), input], core, true)?.instructions)
    }
}

/// All samples without labels to learn from in one set, and every second one of the larger set to judge by.
fn halves(calibration: Set, labelled: Set) -> (Set, Set) {
    let odd = |i: usize| i % 2 == 1;
    let mut train = calibration;
    train.targets = None;
    train.samples.extend(labelled.samples.iter().enumerate().filter(|(i, _)| odd(*i)).map(|(_, s)| s.clone()));
    let mut test = labelled;
    test.samples = test.samples.into_iter().enumerate().filter(|(i, _)| !odd(*i)).map(|(_, s)| s).collect();
    if let Some(Targets::Classes(labels)) = &mut test.targets {
        *labels = labels.iter().copied().step_by(2).collect();
    }
    (train, test)
}

fn truncate(set: &mut Set, samples: usize) {
    set.samples.truncate(samples);
    if let Some(Targets::Classes(labels)) = &mut set.targets {
        labels.truncate(samples);
    }
}

fn bar(label: &str) -> ProgressBar {
    let bar = ProgressBar::new(1);
    if let Ok(style) = ProgressStyle::with_template("{prefix}: {msg} {wide_bar} {pos}/{len} {eta} left") {
        bar.set_style(style);
    }
    bar.set_prefix(label.to_string());
    bar
}

fn advance(bar: &ProgressBar, phase: &str, s: &Status) {
    bar.set_length(s.steps as u64);
    bar.set_message(format!("{phase}, loss {:.4}", s.loss));
    bar.set_position(s.step as u64);
}

/// Runs that differ in nothing but their seed.
struct Summary {
    accuracies: Vec<f64>,
    macs: u64,
    instructions: Option<u64>,
}

impl Summary {
    fn of(rows: &[Row], network: &str, share: f64, method: &str) -> Option<Summary> {
        let is_own = |r: &&Row| r.network == network && r.share == share && r.method == method;
        let own: Vec<&Row> = rows.iter().filter(is_own).collect();
        let first = own.first()?;
        Some(Summary {
            accuracies: own.iter().map(|r| 100.0 * r.accuracy).collect(),
            macs: own.iter().map(|r| r.macs).max().unwrap_or(first.macs),
            instructions: own.iter().find_map(|r| r.instructions),
        })
    }

    fn mean(&self) -> f64 {
        self.accuracies.iter().sum::<f64>() / self.accuracies.len() as f64
    }

    /// Half of the distance between the best and the worst.
    fn spread(&self) -> f64 {
        let fold = |f: fn(f64, f64) -> f64, start| self.accuracies.iter().copied().fold(start, f);
        (fold(f64::max, f64::NEG_INFINITY) - fold(f64::min, f64::INFINITY)) / 2.0
    }
}

/// Distinct values in the order of their first appearance.
fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    values.for_each(|v| {
        if !seen.contains(&v) {
            seen.push(v);
        }
    });
    seen
}

fn text(rows: &[Row]) -> String {
    let methods = distinct(rows.iter().map(|r| r.method.as_str()).filter(|m| *m != WHOLE));
    let mut head = vec!["network", "original", "MACs", "of all", "whole"];
    head.extend(&methods);
    head.push("instructions");
    let mut lines = Vec::new();
    for network in distinct(rows.iter().map(|r| r.network.as_str())) {
        let own: Vec<&Row> = rows.iter().filter(|r| r.network == network).collect();
        let whole = Summary::of(rows, network, 1.0, WHOLE);
        for share in distinct(own.iter().map(|r| r.share).filter(|s| *s < 1.0)) {
            let shown = |s: &Summary| format!("{:.2} ± {:.2}", s.mean(), s.spread());
            let found: Vec<Option<Summary>> =
                methods.iter().map(|method| Summary::of(rows, network, share, method)).collect();
            let first = found.iter().flatten().next();
            let mut line = vec![
                network.to_string(),
                format!("{:.2}", 100.0 * own[0].original),
                first.map_or("-".into(), |s| grouped(s.macs)),
                format!("{:.0} %", 100.0 * share),
                whole.as_ref().map_or("-".into(), shown),
            ];
            line.extend(found.iter().map(|s| s.as_ref().map_or("-".into(), shown)));
            let counts = [whole.as_ref(), first].map(|s| s.and_then(|s| s.instructions));
            line.push(match counts {
                [Some(all), Some(left)] => format!("{} -> {}", grouped(all), grouped(left)),
                _ => "-".into(),
            });
            lines.push(line);
        }
    }
    let note = "Percent right of the test set, mean and half of the range over the seeds; 'whole' is fine-tuned like the others and not pruned.\n";
    table(&head, &lines) + note
}

fn picture(rows: &[Row]) -> Chart {
    let colours = ["#9ca3af", "#2563eb", "#f59e0b", "#10b981"];
    let methods = distinct([WHOLE].into_iter().chain(rows.iter().map(|r| r.method.as_str())));
    let panel = |network: &str| {
        let shares = distinct(rows.iter().filter(|r| r.network == network).map(|r| r.share));
        let group = |share: f64| {
            let bar = |(series, method): (usize, &&str)| {
                let s = Summary::of(rows, network, share, method)?;
                let error = 100.0 - s.mean();
                Some(Bar { series, value: error, text: format!("{error:.2} ± {:.2}", s.spread()) })
            };
            Group {
                label: format!("{:.0} %", 100.0 * share),
                bars: methods.iter().enumerate().filter_map(bar).collect(),
            }
        };
        Panel { title: network.to_string(), groups: shares.into_iter().map(group).collect() }
    };
    let networks = distinct(rows.iter().map(|r| r.network.as_str()));
    Chart {
        title: "Pruned networks".into(),
        subtitle: "percent wrong on the test set, by the share of multiply-accumulates that is left; shorter is better"
            .into(),
        series: methods.iter().zip(colours.iter().cycle()).map(|(m, &c)| (m.to_string(), c)).collect(),
        columns: 2.min(networks.len().max(1)),
        is_linear: true,
        panels: networks.into_iter().map(panel).collect(),
    }
}
