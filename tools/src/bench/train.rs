//! `cargo xtask bench train`: an epoch of ResNet-8 on CIFAR-sized pictures beside PyTorch (`tools/train_peer.py`), in turns, with as many
//! threads as each chooses; what the group envelope adds to a step; the most memory that training took.

use super::peers::environment;
use crate::networks::shared;
use crate::{ToolError, call, root};
use ndarray::{ArrayD, IxDyn};
use quantize::data::{self, Targets};
use quantize::graph::{Graph, trainable};
use quantize::networks::resnet8;
use quantize::prune::groups::Kind;
use quantize::prune::select::Target;
use quantize::prune::training::{Method, PruneHooks, PruneOptions, prune};
use quantize::random::Random;
use quantize::report::{json, table};
use quantize::train::{Data, Device, Hooks, Rule, Session, Status, TrainOptions};
use serde::Serialize;
use std::cell::Cell;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Training pictures of an epoch
    #[arg(long, default_value_t = 10_000)]
    samples: usize,
    /// Epochs of each, in turns; the fastest counts
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// Measure Pith alone
    #[arg(long)]
    no_peer: bool,
    /// Print JSON in place of a table
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Serialize)]
struct Report {
    samples: usize,
    threads: usize,
    /// Seconds of an epoch, the fastest.
    pith_s: f64,
    peer_s: Option<f64>,
    peer: Option<String>,
    /// Pith's seconds over the peer's.
    ratio: Option<f64>,
    /// Seconds of an epoch of pruning, by what pulls.
    magnitude_s: f64,
    wgsef_s: f64,
    /// Largest resident memory of this process.
    peak_mib: Option<u64>,
}

/// The verb.
pub fn run(args: &Args) -> Result<bool, ToolError> {
    let (samples, labels) = pictures(args.samples)?;
    let targets = Targets::Classes(labels);
    let data = Data { samples: &samples, targets: Some(&targets), affine: None };
    let graph = trainable(resnet8([32, 32, 3], 10, 1).map_err(|e| ToolError(e.to_string()))?);
    let (mut pith, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..args.turns.max(1) {
        pith.push(epoch(&graph, &data)?);
        if !args.no_peer {
            peer.push(torch(args.samples)?);
        }
    }
    let least = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::INFINITY, f64::min);
    let pith_s = least(&mut pith.iter().copied());
    let peer_s = (!peer.is_empty()).then(|| least(&mut peer.iter().map(|(s, _)| *s)));
    let pruned = |method| -> Result<f64, ToolError> {
        let runs: Result<Vec<f64>, ToolError> =
            (0..args.turns.max(1)).map(|_| prune_epoch(&graph, &data, method)).collect();
        Ok(least(&mut runs?.into_iter()))
    };
    let report = Report {
        samples: samples.len(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        pith_s,
        peer_s,
        peer: peer.first().map(|(_, name)| name.clone()),
        ratio: peer_s.map(|p| pith_s / p),
        magnitude_s: pruned(Method::Magnitude)?,
        wgsef_s: pruned(Method::Wgsef)?,
        peak_mib: peak_mib(),
    };
    print!("{}", if args.json { json(&report) } else { text(&report) });
    Ok(true)
}

fn text(r: &Report) -> String {
    let mut rows = vec![vec!["Pith".into(), format!("{:.2}", r.pith_s), "1.00".into()]];
    if let (Some(s), Some(name)) = (r.peer_s, &r.peer) {
        rows.push(vec![name.clone(), format!("{s:.2}"), format!("{:.2}", s / r.pith_s)]);
    }
    rows.push(vec!["Pith, pruning by magnitude".into(), format!("{:.2}", r.magnitude_s), String::new()]);
    rows.push(vec!["Pith, pruning by the group envelope".into(), format!("{:.2}", r.wgsef_s), String::new()]);
    let added = 100.0 * (r.wgsef_s / r.magnitude_s - 1.0);
    format!(
        "ResNet-8, {} pictures of 32 x 32, batches of 64, {} threads\n{}the envelope adds {added:.1} % to a step; memory at most {} MiB\n",
        r.samples,
        r.threads,
        table(&["training", "s an epoch", "to Pith"], &rows),
        r.peak_mib.map_or("?".into(), |m| m.to_string()),
    )
}

/// CIFAR-10 where the shared data are, else random pictures.
fn pictures(count: usize) -> Result<(Vec<Vec<ArrayD<f32>>>, Vec<usize>), ToolError> {
    let slot = data::Slot { name: "image".into(), shape: vec![1, 32, 32, 3], is_nchw: false };
    if let Some(path) = shared("sets/cifar10_train.npz") {
        let set = data::load(&path, &[slot], None, 10).map_err(|e| ToolError(e.to_string()))?;
        if let Some(Targets::Classes(labels)) = set.targets {
            let scaled = |s: &Vec<ArrayD<f32>>| s.iter().map(|x| x / 255.0).collect();
            return Ok((
                set.samples.iter().take(count).map(scaled).collect(),
                labels.into_iter().take(count).collect(),
            ));
        }
    }
    let mut random = Random::new(1, 0);
    let picture = |_| vec![ArrayD::from_shape_simple_fn(IxDyn(&[1, 32, 32, 3]), || random.uniform())];
    Ok(((0..count).map(picture).collect(), (0..count).map(|i| i % 10).collect()))
}

fn options(rule: Rule) -> TrainOptions {
    TrainOptions { epochs: 1, batch: 64, rule, ..TrainOptions::default() }
}

fn epoch(graph: &Graph, data: &Data<'_>) -> Result<f64, ToolError> {
    let failed = |e: quantize::train::TrainError| ToolError(e.to_string());
    let mut session = Session::new(graph, &options(Rule::Sgd { momentum: 0.9 }), &Device::cpu()).map_err(failed)?;
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let mut hooks = Hooks { step: &mut |_| (), report: &|_| (), stop: &stop, checkpoint: None };
    session.run(data, None, &mut hooks).map_err(failed)?;
    Ok(start.elapsed().as_secs_f64())
}

/// An epoch under the pull.
fn prune_epoch(graph: &Graph, data: &Data<'_>, method: Method) -> Result<f64, ToolError> {
    let (first, last) = (Cell::new(None), Cell::new(0.0));
    let report = |phase: &'static str, _: &Status| {
        if phase == "sparsify" {
            let start = first.get().unwrap_or_else(Instant::now);
            first.set(Some(start));
            last.set(start.elapsed().as_secs_f64());
        }
    };
    let stop = AtomicBool::new(false);
    let hooks = PruneHooks { report: &report, parts: &|_, _| (), stop: &stop, checkpoint: None, resume: false };
    let train = options(Rule::Sgd { momentum: 0.9 });
    let options = PruneOptions { method, sparsify: Some(1.0), train };
    prune(graph, Kind::Filter, Target::MacsShare(0.5), data, None, &options, &Device::cpu(), &hooks)
        .map_err(|e| ToolError(e.to_string()))?;
    Ok(last.get())
}

/// Seconds of PyTorch's faster epoch, and its version.
fn torch(samples: usize) -> Result<(f64, String), ToolError> {
    let python = environment(&root().join("target/train-peer"), Path::new("tools/train-requirements.txt"))?;
    let script = root().join("tools/train_peer.py");
    let answer = call(Command::new(python).arg(script).args(["--epochs", "1", "--samples"]).arg(samples.to_string()))?;
    let answer: serde_json::Value =
        serde_json::from_str(answer.trim()).map_err(|e| ToolError(format!("train_peer.py: {e}")))?;
    match (answer["seconds_per_epoch"].as_f64(), answer["framework"].as_str()) {
        (Some(seconds), Some(name)) => Ok((seconds, name.into())),
        _ => Err(ToolError(format!("train_peer.py answered {answer}"))),
    }
}

/// `VmHWM` of this process, where there is a `/proc`.
fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib / 1024)
}
