//! What verbs that train share: options, progress, Ctrl-C.

use super::Failure;
use super::input::{Ports, number};
use super::output::check_folder;
use crate::data::{Layout, Set, Targets};
use crate::recipe::Preprocess;
use crate::train::{Data, Device, Rule, Status, TrainError, TrainOptions};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// How to train; what is not given comes from the recipe.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Training")]
pub(super) struct TrainArgs {
    /// Passes over the training set
    #[arg(long)]
    epochs: Option<usize>,
    /// Samples of a step
    #[arg(long)]
    batch: Option<usize>,
    /// Rule of a step
    #[arg(long, value_parser = ["adamw", "sgd"])]
    optimizer: Option<String>,
    /// Largest learning rate; it rises, then falls along a cosine [default: 0.002 for adamw, 0.05 for sgd]
    #[arg(long, value_parser = number)]
    rate: Option<f64>,
    /// Weight decay of weights
    #[arg(long, value_parser = number)]
    weight_decay: Option<f64>,
    /// Share of a label spread over all classes
    #[arg(long, value_parser = number)]
    label_smoothing: Option<f64>,
    /// Share of the target that the original network gives, 0 to 1; 1 without labels
    #[arg(long, value_parser = number)]
    distill: Option<f64>,
    /// Temperature of the original network's answers, where they are the whole target
    #[arg(long, value_parser = number)]
    temperature: Option<f64>,
    /// Mirror pictures at random
    #[arg(long)]
    flip: bool,
    /// Shift pictures by up to so many pixels
    #[arg(long, value_name = "PIXELS")]
    crop: Option<usize>,
    /// Cover a random square of this side
    #[arg(long, value_name = "PIXELS")]
    cutout: Option<usize>,
    /// Add noise of this standard deviation, in units of the network's input
    #[arg(long, value_name = "SIGMA", value_parser = number)]
    noise: Option<f64>,
    /// Blend samples, and their targets alike, by a share from Beta(ALPHA, ALPHA), 0 to 1: 1 makes any share as likely
    #[arg(long, value_name = "ALPHA", value_parser = number)]
    mixup: Option<f64>,
    /// Of all random choices: equal seeds give equal files
    #[arg(long)]
    seed: Option<u64>,
    /// Where to train: cpu, or wgpu and cuda in builds with these features
    #[arg(long, default_value = "cpu", value_parser = device)]
    device: String,
    /// Save the state here after every epoch and on Ctrl-C; a search of a supernet keeps here what it measured
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Go on from the checkpoint if it is there
    #[arg(long, requires = "checkpoint")]
    pub resume: bool,
}

fn device(name: &str) -> Result<String, String> {
    let known = Device::NAMES.contains(&name);
    let absent = || format!("'{name}' is not in this build; choose cpu, or build with --features wgpu or cuda");
    known.then(|| name.into()).ok_or_else(absent)
}

impl TrainArgs {
    /// The recipe's options, overridden by what was given.
    pub(super) fn over(&self, base: &TrainOptions) -> TrainOptions {
        let mut t = base.clone();
        let real = |own: &mut f32, given: Option<f64>| *own = given.map_or(*own, |v| v as f32);
        t.epochs = self.epochs.unwrap_or(t.epochs);
        t.batch = self.batch.unwrap_or(t.batch);
        match self.optimizer.as_deref() {
            Some("sgd") => t.rule = Rule::Sgd { momentum: 0.9 },
            Some(_) => t.rule = Rule::AdamW,
            None => {}
        }
        t.rate = self.rate.map(|v| v as f32).or(t.rate);
        real(&mut t.weight_decay, self.weight_decay);
        real(&mut t.label_smoothing, self.label_smoothing);
        real(&mut t.distill, self.distill);
        real(&mut t.temperature, self.temperature);
        real(&mut t.augment.noise, self.noise);
        real(&mut t.augment.mixup, self.mixup);
        t.augment.flip |= self.flip;
        t.augment.crop = self.crop.unwrap_or(t.augment.crop);
        t.augment.cutout = self.cutout.unwrap_or(t.augment.cutout);
        t.seed = self.seed.unwrap_or(t.seed);
        t
    }

    /// Whether any of them asks for something that is not the default.
    pub(super) fn is_given(&self) -> bool {
        self.changes() || self.checkpoint.is_some()
    }

    /// Whether any of them changes how is trained.
    pub(super) fn changes(&self) -> bool {
        self.over(&TrainOptions::default()) != TrainOptions::default()
    }

    pub(super) fn device(&self) -> Result<Device, TrainError> {
        Device::open(&self.device)
    }

    /// Where to save, checked early.
    pub(super) fn checkpoint(&self) -> Result<Option<PathBuf>, Failure> {
        self.checkpoint.as_deref().map(check_folder).transpose()?;
        Ok(self.checkpoint.clone())
    }
}

/// From a set's raw values to the network's, for the first input.
pub(super) fn affine(preprocess: &Preprocess, shape: &[usize]) -> Result<Option<(Vec<f32>, Vec<f32>)>, Failure> {
    Ok(preprocess.affine(shape.last().copied().unwrap_or(1))?)
}

/// A labelled set, if one was given; what cannot be judged is refused before anything is trained.
pub(super) fn load_test(path: Option<&Path>, ports: &Ports, layout: Option<Layout>) -> Result<Option<Set>, Failure> {
    let Some(path) = path else { return Ok(None) };
    let set = ports.load(path, layout)?;
    match set.targets {
        Some(Targets::Classes(_)) => Ok(Some(set)),
        _ => Err(Failure::new("the test set has no integer labels 'y'; leave --test out or add them")),
    }
}

/// A set as training sees it.
pub(super) fn data<'a>(set: &'a Set, affine: &'a Option<(Vec<f32>, Vec<f32>)>) -> Data<'a> {
    Data { samples: &set.samples, targets: set.targets.as_ref(), affine: affine.as_ref() }
}

static STOP: AtomicBool = AtomicBool::new(false);

/// Set by the first Ctrl-C: the step ends, the state is saved. The second ends the process at once.
pub(super) fn stop() -> &'static AtomicBool {
    // A process has one handler; a second call finds the first.
    let _ = ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
    &STOP
}

/// A line with phase, loss, metric and time left: live on a terminal, one for every epoch elsewhere.
pub(super) struct TrainProgress {
    bar: ProgressBar,
    last: Mutex<(&'static str, usize)>,
}

impl TrainProgress {
    pub(super) fn new() -> TrainProgress {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(1) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta} left") {
            bar.set_style(style);
        }
        TrainProgress { bar, last: Mutex::new(("", 0)) }
    }

    pub(super) fn report(&self, phase: &'static str, s: &Status) {
        let accuracy = s.accuracy.map_or(String::new(), |a| format!(", {:.1} % right", 100.0 * a));
        let line = format!("{phase} epoch {}/{}: loss {:.4}{accuracy}", s.epoch + 1, s.epochs, s.loss);
        let ends = s.step.is_multiple_of((s.steps / s.epochs.max(1)).max(1));
        match std::io::stderr().is_terminal() {
            true => {
                if let Ok(mut last) = self.last.lock()
                    && last.0 != phase
                {
                    *last = (phase, 0);
                    self.bar.reset();
                    self.bar.set_length(s.steps as u64);
                }
                self.bar.set_message(line);
                self.bar.set_position(s.step as u64);
            }
            false if ends => eprintln!("{line}"),
            false => {}
        }
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
