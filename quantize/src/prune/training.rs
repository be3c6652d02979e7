//! Pruning while training: from a trained network to one that meets a budget exactly.
//!
//! The first share of the epochs trains under a pull that a proximal operator applies after every step, layer by layer:
//!
//! `t = theta - rate * step`,  `theta = (1 + s) prox_{s F_k}(t)`,
//!
//! where `F_k` is the group envelope with the number of groups `k` that the layer will keep. The factor `1 + s` takes back the ridge
//! that `prox` applies to every group. That is our addition, and the same as the operator of `F_k(theta) - |theta|^2 / 2` with strength
//! `s / (1 + s)`, since `F_k` is homogeneous of degree 2: a penalty that is zero exactly where at most `k` groups are left, so that then
//! nothing is shortened any more. While more are left, all but the largest are, by the same length whatever their size. `k` comes from the budget ([`select`]), asked again every epoch until half of this phase is over. The strength `s` of every layer
//! follows the number of groups that are left: it grows while more are left than a cubic schedule wants, and shrinks while fewer are;
//! nobody sets it. With AdamW the metric of a group is the mean of the rule's own over its parameters, in units of its layer's mean.
//!
//! Then the groups that the budget keeps are projected out of the parameters, the rest leaves the graph ([`remove`]), moments of batch
//! norms are refreshed, and the remaining epochs train the small network with its support frozen.
//!
//! Two baselines share all of this but the pull: magnitude pruning has none, group lasso a soft threshold that does not know `k`. A third method needs
//! no pull: what it removes at once it has looked for in the data, and it repairs the rest before the first step. Where the whole network is trained before
//! that, on labels, it teaches what is left of it.

use super::cost::{Cost, Costs};
use super::envelope::{Scale, Solver, Weights, group_lasso_prox};
use super::groups::{GroupError, Groups, Kind};
use super::reconstruct::{Options, ReconstructError, reconstruct};
use super::redundancy;
use super::remove::{mask, remove};
use super::select::{BudgetError, Target, select};
use super::trajectory::{Kept, Trajectory};
use crate::files;
use crate::graph::{Graph, Role, simplify};
use crate::train::{
    Balance, Data, Device, Hooks, Session, Status, Step, Teacher, TrainError, TrainOptions, with_norms,
};
use ndarray::ArrayD;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// What pulls groups to zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The group envelope.
    #[default]
    Wgsef,
    /// Nothing: the smallest norms go at once.
    Magnitude,
    /// A soft threshold.
    GroupLasso,
    /// Nothing either: what the rest can stand in for goes at once, and least squares fit the rest before it is trained.
    Reconstruct,
}

/// How a network is pruned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PruneOptions {
    /// The pull.
    pub method: Method,
    /// Share of the epochs under the pull; the rest trains what is left. Absent: a fifth, and up to two where that is less than 500 steps. For
    /// [`Method::Reconstruct`], the share that trains the whole network first; absent: none.
    pub sparsify: Option<f64>,
    /// How it is trained.
    pub train: TrainOptions,
}

impl Default for PruneOptions {
    fn default() -> PruneOptions {
        PruneOptions { method: Method::Wgsef, sparsify: None, train: TrainOptions::default() }
    }
}

/// Why a network is not pruned.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// Nothing can go.
    #[error(transparent)]
    Groups(#[from] GroupError),
    /// It cannot be so small.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Reconstruction failed.
    #[error(transparent)]
    Reconstruct(#[from] ReconstructError),
    /// An option makes no sense.
    #[error("pruning option '{field}' must be {wanted}")]
    Option {
        /// Which.
        field: &'static str,
        /// What it may be.
        wanted: &'static str,
    },
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Pruned {
    /// The smaller network.
    pub graph: Graph,
    /// The whole one, where labels have trained it before anything went.
    pub whole: Option<Graph>,
    /// Groups before and after, by layer.
    pub layers: Vec<Kept>,
    /// Cost of the original.
    pub before: Cost,
    /// Cost of what is left.
    pub after: Cost,
    /// What happened on the way.
    pub trajectory: Trajectory,
}

/// Called after every part of a step that takes a while, with the step's name and the number of its parts: the `ordering` of what goes, the `fitting` of layers.
pub type Parts<'h> = &'h (dyn Fn(&'static str, usize) + Sync);

/// What a run does beside pruning.
pub struct PruneHooks<'h> {
    /// Called after every step, with the phase's name.
    pub report: &'h dyn Fn(&'static str, &Status),
    /// Told what is done beside training, see [`Parts`].
    pub parts: Parts<'h>,
    /// Set when the user wants to stop.
    pub stop: &'h AtomicBool,
    /// Where checkpoints go; the phases use names beside it.
    pub checkpoint: Option<PathBuf>,
    /// Go on from the checkpoints that are there.
    pub resume: bool,
}

/// Prunes a graph from [`crate::graph::trainable`]. Layers whose batch norms were folded get new ones for the time of training ([`with_norms`]).
pub fn prune(
    graph: &Graph,
    kind: Kind,
    target: Target,
    data: &Data<'_>,
    teacher: Option<&Teacher>,
    options: &PruneOptions,
    device: &Device,
    hooks: &PruneHooks<'_>,
) -> Result<Pruned, PruneError> {
    if options.sparsify.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
        return Err(PruneError::Option { field: "sparsify", wanted: "a share, 0 to 1" });
    }
    options.train.check()?;
    let normed = with_norms(graph, data, Balance::Layer).map_err(TrainError::from)?;
    let graph = &normed.graph;
    let groups = Groups::find(graph, kind)?;
    let costs = Costs::new(graph, &groups).on(target.isa());
    // An impossible budget is refused before anything is trained.
    select(&worth(&groups, &groups.norms(&graph.theta())), &costs, target, &groups)?;
    let before = costs.total(&vec![true; groups.len()]);
    let (sparse, trajectory) = sparsify(graph, &groups, &costs, target, data, teacher, options, device, hooks)?;
    let is_trained = options.method == Method::Reconstruct && epochs_of(options, data).0 > 0;
    let whole = (is_trained && data.targets.is_some()).then(|| sparse.clone());
    let (sparse, kept) = if options.method == Method::Reconstruct {
        let samples: Vec<Vec<ArrayD<f32>>> = data.spaced(FITTED).into_iter().map(|i| data.sample(i)).collect();
        removed_at_once(&sparse, &groups, &costs, target, &samples, hooks.stop, hooks.parts)?
    } else {
        let score = worth(&groups, &groups.norms(&sparse.theta()));
        let kept = select(&score, &costs, target, &groups)?;
        (sparse, kept)
    };
    let after = costs.total(&kept);
    let layers = counts(&groups, &kept);
    let frozen = frozen(&sparse, &groups, &kept);
    let small = remove(sparse, &groups, &kept);
    let own = whole.as_ref().map(|whole| Teacher::new(whole, device)).transpose()?;
    let graph = normed.fold(finetune(&small, frozen, data, own.as_ref().or(teacher), options, device, hooks)?);
    Ok(Pruned { graph, whole: whole.map(|whole| normed.fold(whole)), layers, before, after, trajectory })
}

/// Samples that layers are fitted on.
const FITTED: usize = 512;

/// Prunes a graph without training: the groups go that others can stand in for (`redundancy`; of kinds that it does not know, the smallest
/// norms), and least squares on calibration inputs repair what they can ([`super::reconstruct`]). `samples` are the network's inputs, after
/// preprocessing.
pub fn prune_post_training(
    graph: &Graph,
    kind: Kind,
    target: Target,
    samples: &[Vec<ArrayD<f32>>],
    parts: Parts<'_>,
) -> Result<Pruned, PruneError> {
    let graph = simplify(graph.clone());
    let groups = Groups::find(&graph, kind)?;
    let costs = Costs::new(&graph, &groups).on(target.isa());
    let (fitted, kept) = removed_at_once(&graph, &groups, &costs, target, samples, &AtomicBool::new(false), parts)?;
    Ok(Pruned {
        graph: remove(fitted, &groups, &kept),
        whole: None,
        layers: counts(&groups, &kept),
        before: costs.total(&vec![true; groups.len()]),
        after: costs.total(&kept),
        trajectory: Trajectory::new(&groups.layers, &groups.layer, 200),
    })
}

/// The graph with zeros for the groups that would be missed least, its other weights fitted; and which groups stay.
fn removed_at_once(
    graph: &Graph,
    groups: &Groups,
    costs: &Costs,
    target: Target,
    samples: &[Vec<ArrayD<f32>>],
    stop: &AtomicBool,
    parts: Parts<'_>,
) -> Result<(Graph, Vec<bool>), PruneError> {
    let failed = |e: ReconstructError| match e {
        // This is done again by a run that goes on: it has no checkpoint.
        ReconstructError::Interrupted => PruneError::Train(TrainError::Interrupted { checkpoint: None }),
        e => e.into(),
    };
    let savings = costs.savings(target.budget());
    let score = redundancy::worth(graph, groups, samples, &savings, stop, parts).map_err(failed)?;
    let kept = select(&score, costs, target, groups)?;
    let masked = mask(graph.clone(), groups, &kept);
    let mut fitted = |_: usize, layers: usize| {
        parts("fitting", layers);
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let fitted = reconstruct(graph, &masked, samples, &Options::default(), &mut fitted).map_err(failed)?;
    Ok((fitted.graph, kept))
}

/// Steps under the pull that are worth more epochs than usual.
const STEPS: f64 = 500.0;

/// Epochs under the pull, and after it.
fn epochs_of(options: &PruneOptions, data: &Data<'_>) -> (usize, usize) {
    let all = options.train.epochs;
    let steps = all * data.samples.len().div_ceil(options.train.batch.max(1));
    let share = match options.method {
        Method::Reconstruct => options.sparsify.unwrap_or(0.0),
        _ => options.sparsify.unwrap_or_else(|| (STEPS / steps.max(1) as f64).clamp(0.2, 0.4)),
    };
    let first = (all as f64 * share).round() as usize;
    (first, all - first)
}

/// What every group is worth by its norm, 0 to 1. Of single weights it is the square as a share of the squares that are left when all smaller ones of
/// the layer are gone (LAMP; Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning"), so that layers of few weights keep more of
/// them. Other groups are worth their place in the order of their layer, so that all layers are pruned alike: their norms do not compare, and neither
/// a wide spread of norms nor a dear layer says that fewer groups would do. Groups that are gone are worth nothing.
pub fn worth(groups: &Groups, norms: &[f64]) -> Vec<f64> {
    if groups.kind != Kind::Weight {
        return places(groups, norms);
    }
    let mut worth = vec![0.0; groups.len()];
    for layer in in_order(groups, norms) {
        let mut squares = 0.0;
        for j in layer.into_iter().rev() {
            squares += norms[j] * norms[j];
            worth[j] = norms[j] * norms[j] / squares;
        }
    }
    worth
}

/// The place of every group in the order of its layer, as a share of the layer's groups; 0 for what scores nothing.
pub(super) fn places(groups: &Groups, score: &[f64]) -> Vec<f64> {
    let mut sizes = vec![0usize; groups.layers.len()];
    groups.layer.iter().for_each(|&l| sizes[l] += 1);
    let mut places = vec![0.0; groups.len()];
    for layer in in_order(groups, score) {
        let size = sizes[groups.layer[layer[0]]];
        let gone = size - layer.len();
        layer.into_iter().enumerate().for_each(|(place, j)| places[j] = (gone + place + 1) as f64 / size as f64);
    }
    places
}

/// By layer: the groups that score something, the least first.
fn in_order(groups: &Groups, score: &[f64]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..groups.len()).filter(|&j| score[j] > 0.0).collect();
    order.sort_by(|&a, &b| groups.layer[a].cmp(&groups.layer[b]).then(score[a].total_cmp(&score[b])));
    order.chunk_by(|&a, &b| groups.layer[a] == groups.layer[b]).map(<[usize]>::to_vec).collect()
}

fn counts(groups: &Groups, kept: &[bool]) -> Vec<Kept> {
    let mut layers: Vec<Kept> = groups.layers.iter().map(|l| Kept { layer: l.clone(), before: 0, after: 0 }).collect();
    for (&l, &kept) in groups.layer.iter().zip(kept) {
        layers[l].before += 1;
        layers[l].after += usize::from(kept);
    }
    layers
}

fn session(
    graph: &Graph,
    options: &TrainOptions,
    device: &Device,
    checkpoint: Option<&Path>,
    resume: bool,
) -> Result<Session, TrainError> {
    let mut session = Session::new(graph, options, device)?;
    if let Some(path) = checkpoint.filter(|p| resume && p.exists()) {
        session.resume(path)?;
    }
    Ok(session)
}

/// The pull on all layers of a network.
struct Pull<'g> {
    groups: &'g Groups,
    method: Method,
    /// Groups of every layer, as a range.
    ranges: Vec<std::ops::Range<usize>>,
    /// Groups that every layer will keep.
    k: Vec<usize>,
    /// Strength of a step in every layer, as a checkpoint keeps it.
    strength: Vec<f32>,
    /// What it is multiplied or divided by after a step.
    growth: f32,
    solver: Solver,
}

/// Strength that the controllers start with, and its bounds.
const START: f32 = 1e-3;
const WEAKEST: f32 = 1e-6;
const STRONGEST: f32 = 10.0;

/// Logarithm by which a strength can change in the course of a phase, however many steps that has.
const RANGE: f32 = 60.0;

/// Share of the phase after which no more groups should be left than are kept.
const ARRIVAL: f64 = 0.85;

impl<'g> Pull<'g> {
    fn new(groups: &'g Groups, method: Method, steps: usize) -> Pull<'g> {
        let layers = groups.layers.len();
        let first = |l: usize| groups.layer.partition_point(|&own| own < l);
        let ranges = (0..layers).map(|l| first(l)..first(l + 1)).collect();
        let strength = vec![START; layers];
        let growth = (RANGE / steps.max(1) as f32).exp().clamp(1.002, 1.6);
        Pull { groups, method, ranges, k: vec![0; layers], strength, growth, solver: Solver::default() }
    }

    /// Groups that a layer should have left at a share of the phase: a cubic from all to `k` (Zhu, Gupta 2017).
    fn wanted(&self, layer: usize, done: f64) -> f64 {
        let (all, k) = (self.ranges[layer].len() as f64, self.k[layer] as f64);
        let rest = (1.0 - done / ARRIVAL).max(0.0);
        k + (all - k) * rest.powi(3)
    }

    /// Applies the operator to the parameters after a step, then adapts the strengths; returns the norms of all groups after it.
    fn apply(&mut self, step: &mut Step<'_>) -> Vec<f64> {
        let norms = self.groups.norms(step.theta);
        let metric = self.metric(step);
        let mut after = vec![0.0; norms.len()];
        for layer in 0..self.ranges.len() {
            let range = self.ranges[layer].clone();
            let h = &metric[range.clone()];
            let factors = self.factors(layer, &norms[range.clone()], h);
            for (j, factor) in range.zip(factors) {
                after[j] = norms[j] * factor;
                if factor != 1.0 {
                    self.groups.of(j).iter().for_each(|&i| step.theta[i] *= factor as f32);
                }
            }
            let left = after[self.ranges[layer].clone()].iter().filter(|n| **n > 0.0).count() as f64;
            let grows = left > self.wanted(layer, step.done);
            let factor = if grows { self.growth } else { 1.0 / self.growth };
            self.strength[layer] = (self.strength[layer] * factor).clamp(WEAKEST, STRONGEST);
        }
        after
    }

    /// Strengths and `k` of all layers, for a checkpoint.
    fn state(&self) -> Vec<f32> {
        self.strength.iter().copied().chain(self.k.iter().map(|&k| k as f32)).collect()
    }

    /// Goes on with them, if there are any.
    fn restore(&mut self, state: &[f32]) {
        let layers = self.k.len();
        if state.len() == 2 * layers {
            self.strength.copy_from_slice(&state[..layers]);
            self.k.iter_mut().zip(&state[layers..]).for_each(|(own, &k)| *own = k as usize);
        }
    }

    fn factors(&mut self, layer: usize, norms: &[f64], h: &[f64]) -> Vec<f64> {
        let s = f64::from(self.strength[layer]);
        match self.method {
            Method::Magnitude | Method::Reconstruct => vec![1.0; norms.len()],
            Method::Wgsef => {
                let weights = Weights { h: Scale::Each(h), ..Weights::default() };
                let prox = self.solver.prox(norms, &weights, self.k[layer] as f64, s);
                prox.factors.iter().zip(h).map(|(p, h)| (p * (1.0 + s / h)).min(1.0)).collect()
            }
            Method::GroupLasso => {
                // In units of the layer's mean norm, so that one starting strength serves all.
                let mean = norms.iter().sum::<f64>() / norms.len().max(1) as f64;
                let scaled: Vec<f64> = norms.iter().zip(h).map(|(n, h)| n * h).collect();
                group_lasso_prox(&scaled, Scale::Same(1.0), s * mean)
            }
        }
    }

    /// Metric of every group against the mean of its layer.
    fn metric(&self, step: &Step<'_>) -> Vec<f64> {
        let own = step.optimizer.metric();
        if own.is_empty() {
            return vec![1.0; self.groups.len()];
        }
        let mean = |ids: &[usize]| ids.iter().map(|&i| own[i] as f64).sum::<f64>() / ids.len().max(1) as f64;
        let mut h: Vec<f64> = (0..self.groups.len()).map(|j| mean(self.groups.of(j))).collect();
        for range in &self.ranges {
            let layer = &mut h[range.clone()];
            let mean = layer.iter().sum::<f64>() / layer.len().max(1) as f64;
            // Groups without gradients keep a metric that is not zero.
            layer.iter_mut().for_each(|v| *v = if mean > 0.0 { (*v / mean).max(1e-2) } else { 1.0 });
        }
        h
    }
}

/// Trains under the pull.
fn sparsify(
    graph: &Graph,
    groups: &Groups,
    costs: &Costs,
    target: Target,
    data: &Data<'_>,
    teacher: Option<&Teacher>,
    options: &PruneOptions,
    device: &Device,
    hooks: &PruneHooks<'_>,
) -> Result<(Graph, Trajectory), PruneError> {
    let mut trajectory = Trajectory::new(&groups.layers, &groups.layer, 200);
    let (epochs, _) = epochs_of(options, data);
    if epochs == 0 {
        return Ok((graph.clone(), trajectory));
    }
    let train = TrainOptions { epochs, ..options.train.clone() };
    let path = hooks.checkpoint.as_ref().map(|path| files::beside(path, "sparsify"));
    let mut session = session(graph, &train, device, path.as_deref(), hooks.resume)?;
    let recording = path.as_ref().map(|path| files::beside(path, "trajectory"));
    if let Some(recording) = recording.as_ref().filter(|_| session.step > 0) {
        trajectory.resume(recording, session.step);
    }
    let per_epoch = data.samples.len().div_ceil(train.batch.max(1)).max(1);
    let every = (per_epoch * epochs / 300).max(1);
    let mut pull = Pull::new(groups, options.method, per_epoch * epochs);
    pull.restore(&session.kept);
    let mut count = session.step;
    let mut refused = None;
    let mut after_step = |step: &mut Step<'_>| {
        // Asked after the first step of an epoch; a step counts from 1 when it is done.
        if count.is_multiple_of(per_epoch) && (step.done < 0.5 || pull.k.iter().all(|&k| k == 0)) {
            match select(&worth(groups, &groups.norms(step.theta)), costs, target, groups) {
                Ok(kept) => pull.k = counts(groups, &kept).into_iter().map(|l| l.after).collect(),
                Err(e) => refused = Some(e),
            }
        }
        let norms = pull.apply(step);
        *step.kept = pull.state();
        if count.is_multiple_of(every) {
            let wanted = (0..pull.k.len()).map(|l| pull.wanted(l, step.done)).sum();
            let strength = pull.strength.iter().map(|&s| f64::from(s)).sum::<f64>() / pull.strength.len().max(1) as f64;
            trajectory.record(count, &norms, wanted, strength, step.loss);
        }
        count += 1;
    };
    let phase = if options.method == Method::Reconstruct { "train whole" } else { "sparsify" };
    let report = |status: &Status| (hooks.report)(phase, status);
    let done = session.run(
        data,
        teacher,
        &mut Hooks { step: &mut after_step, report: &report, stop: hooks.stop, checkpoint: path },
    );
    let kept = recording.map_or(Ok(()), |recording| {
        let fail =
            |e: std::io::Error| TrainError::Checkpoint { path: recording.display().to_string(), what: e.to_string() };
        trajectory.write(&recording).map_err(fail)
    });
    // Why the run ended is the first thing to say.
    done?;
    kept?;
    if let Some(e) = refused {
        return Err(e.into());
    }
    if options.method == Method::Reconstruct {
        session.refresh(data, REFRESH);
    }
    Ok((session.graph(), trajectory))
}

/// Parameters that stay zero in the removed graph, which for channels are none.
fn frozen(graph: &Graph, groups: &Groups, kept: &[bool]) -> Option<Vec<bool>> {
    match groups.kind {
        Kind::Filter | Kind::Channel | Kind::Depth => None,
        Kind::Shape | Kind::Block { .. } | Kind::Weight => {
            // Kernels may shrink on removal, so zeros are found in what is left.
            let left = remove(graph.clone(), groups, kept);
            let theta = left.theta();
            let mut frozen = vec![false; theta.len()];
            for p in left.parameters().into_iter().filter(|p| p.role == Role::Weight) {
                p.range.for_each(|i| frozen[i] = theta[i] == 0.0);
            }
            Some(frozen)
        }
    }
}

/// Trains what is left, with its support frozen.
fn finetune(
    graph: &Graph,
    frozen: Option<Vec<bool>>,
    data: &Data<'_>,
    teacher: Option<&Teacher>,
    options: &PruneOptions,
    device: &Device,
    hooks: &PruneHooks<'_>,
) -> Result<Graph, PruneError> {
    let (_, epochs) = epochs_of(options, data);
    let train = TrainOptions { epochs, ..options.train.clone() };
    let path = hooks.checkpoint.as_ref().map(|path| files::beside(path, "finetune"));
    let mut session = session(graph, &train, device, path.as_deref(), hooks.resume)?;
    if session.step == 0 {
        session.refresh(data, REFRESH);
    }
    let mut after_step = |step: &mut Step<'_>| {
        if let Some(frozen) = &frozen {
            step.theta.iter_mut().zip(frozen).filter(|(_, f)| **f).for_each(|(t, _)| *t = 0.0);
        }
    };
    let report = |status: &Status| (hooks.report)("fine-tune", status);
    session.run(
        data,
        teacher,
        &mut Hooks { step: &mut after_step, report: &report, stop: hooks.stop, checkpoint: path },
    )?;
    session.refresh(data, REFRESH);
    Ok(session.graph())
}

/// Samples that moments of batch norms are taken from.
const REFRESH: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Targets;
    use crate::graph::trainable;
    use crate::networks::resnet8;
    use crate::random::Random;
    use crate::train::Rule;
    use ndarray::IxDyn;
    use std::cell::Cell;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering as Memory;

    const SAMPLES: usize = 96;

    /// Pictures that are bright in one half.
    fn task() -> (Graph, Vec<Vec<ArrayD<f32>>>, Targets) {
        let mut random = Random::new(5, 0);
        let mut sample = |i: usize| {
            let bright = |p: usize| if (p / 32).is_multiple_of(2) == i.is_multiple_of(2) { 1.0 } else { 0.0 };
            let values = (0..64).map(|p| bright(p) + 0.3 * random.normal()).collect();
            vec![ArrayD::from_shape_vec(IxDyn(&[1, 8, 8, 1]), values).unwrap()]
        };
        let samples = (0..SAMPLES).map(&mut sample).collect();
        let graph = trainable(resnet8([8, 8, 1], 2, 3).unwrap());
        (graph, samples, Targets::Classes((0..SAMPLES).map(|i| i % 2).collect()))
    }

    fn options(method: Method, rule: Rule) -> PruneOptions {
        let train = TrainOptions { epochs: 8, batch: 16, rule, ..TrainOptions::default() };
        PruneOptions { method, sparsify: Some(0.6), train }
    }

    fn run(options: &PruneOptions, kind: Kind, target: Target, hooks: &PruneHooks<'_>) -> Result<Pruned, PruneError> {
        let (graph, samples, targets) = task();
        let data = Data { samples: &samples, targets: Some(&targets), affine: None };
        prune(&graph, kind, target, &data, None, options, &Device::cpu(), hooks)
    }

    fn undisturbed(options: &PruneOptions, kind: Kind, target: Target) -> Result<Pruned, PruneError> {
        let stop = AtomicBool::new(false);
        let hooks = PruneHooks { report: &|_, _| (), parts: &|_, _| (), stop: &stop, checkpoint: None, resume: false };
        run(options, kind, target, &hooks)
    }

    #[test]
    fn budgets_are_met_and_groups_vanish_by_themselves() {
        for (method, rule) in [
            (Method::Wgsef, Rule::AdamW),
            (Method::Wgsef, Rule::Sgd { momentum: 0.9 }),
            (Method::GroupLasso, Rule::AdamW),
            (Method::Magnitude, Rule::AdamW),
        ] {
            let pruned = undisturbed(&options(method, rule), Kind::Filter, Target::PerLayer(0.5)).unwrap();
            for l in &pruned.layers {
                assert_eq!(l.after, l.before / 2, "{method:?}: {l:?}");
            }
            let (all, left) = (pruned.trajectory.nonzero[0], *pruned.trajectory.nonzero.last().unwrap());
            match method {
                Method::Magnitude => assert_eq!(left, all),
                // In so few steps; a gradient may wake a group for a moment.
                _ => assert!(left <= all * 2 / 3, "{method:?} {rule:?}: {left} of {all} are left"),
            }
            assert!(pruned.after.macs < pruned.before.macs / 3);
        }
    }

    #[test]
    fn few_steps_are_worth_more_epochs() {
        let all = vec![Vec::new(); 20_000];
        let split = |epochs: usize, samples: usize| {
            let train = TrainOptions { epochs, ..TrainOptions::default() };
            let data = Data { samples: &all[..samples], targets: None, affine: None };
            epochs_of(&PruneOptions { train, ..PruneOptions::default() }, &data)
        };
        assert_eq!(split(15, 20_000), (3, 12));
        assert_eq!(split(10, 1_300), (4, 6));
        assert_eq!(split(100, 1_000), (31, 69));
    }

    #[test]
    fn what_goes_at_once_leaves_all_epochs_to_the_rest() {
        let options = PruneOptions { sparsify: None, ..options(Method::Reconstruct, Rule::AdamW) };
        let stop = AtomicBool::new(false);
        let phases = Cell::new(0);
        let report = |phase: &'static str, s: &Status| {
            assert_eq!((phase, s.epochs), ("fine-tune", 8));
            phases.set(phases.get() + 1);
        };
        let (fits, orders) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let parts = |step: &'static str, all: usize| {
            let done = if step == "fitting" { &fits } else { &orders };
            assert!(done.fetch_add(1, Ordering::Relaxed) < all, "{step}");
        };
        let hooks = PruneHooks { report: &report, parts: &parts, stop: &stop, checkpoint: None, resume: false };
        let wrong = PruneOptions { train: TrainOptions { batch: 0, ..options.train.clone() }, ..options.clone() };
        assert!(run(&wrong, Kind::Filter, Target::PerLayer(0.5), &hooks).is_err());
        assert_eq!(fits.load(Ordering::Relaxed), 0, "wrong options are refused before anything is fitted");
        let pruned = run(&options, Kind::Filter, Target::PerLayer(0.5), &hooks).unwrap();
        assert!(fits.load(Ordering::Relaxed) > 0);
        assert_eq!(orders.load(Ordering::Relaxed), pruned.layers.len());
        assert!(pruned.layers.iter().all(|l| l.after == l.before / 2), "{:?}", pruned.layers);
        assert_eq!(phases.get(), 8 * SAMPLES / 16);
        let (_, samples, targets) = task();
        let data = Data { samples: &samples, targets: Some(&targets), affine: None };
        assert!(crate::train::accuracy(&pruned.graph, &data, &Device::cpu()).unwrap().unwrap() > 0.9);
        assert!(pruned.whole.is_none());
        // Whoever stops waits for one layer, not for all.
        [&fits, &orders].into_iter().for_each(|done| done.store(0, Ordering::Relaxed));
        stop.store(true, Ordering::Relaxed);
        let error = run(&options, Kind::Filter, Target::PerLayer(0.5), &hooks).unwrap_err();
        assert!(matches!(error, PruneError::Train(TrainError::Interrupted { checkpoint: None })), "{error}");
        assert_eq!(fits.load(Ordering::Relaxed), 1);
        // Nor for the order of all weights.
        [&fits, &orders].into_iter().for_each(|done| done.store(0, Ordering::Relaxed));
        let error = run(&options, Kind::Weight, Target::Sparsity(0.5), &hooks).unwrap_err();
        assert!(matches!(error, PruneError::Train(TrainError::Interrupted { checkpoint: None })), "{error}");
        assert_eq!(fits.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_whole_network_may_be_trained_before_anything_goes() {
        let options = options(Method::Reconstruct, Rule::AdamW);
        let stop = AtomicBool::new(false);
        let steps = Cell::new([0; 2]);
        let report = |phase: &'static str, _: &Status| {
            let [whole, rest] = steps.get();
            steps.set(if phase == "train whole" { [whole + 1, rest] } else { [whole, rest + 1] });
        };
        let hooks = PruneHooks { report: &report, parts: &|_, _| (), stop: &stop, checkpoint: None, resume: false };
        let pruned = run(&options, Kind::Weight, Target::Sparsity(0.5), &hooks).unwrap();
        let per_epoch = SAMPLES / 16;
        assert_eq!(steps.get(), [5 * per_epoch, 3 * per_epoch]);
        let (_, samples, targets) = task();
        let data = Data { samples: &samples, targets: Some(&targets), affine: None };
        for graph in [&pruned.graph, &pruned.whole.unwrap()] {
            assert!(crate::train::accuracy(graph, &data, &Device::cpu()).unwrap().unwrap() > 0.9);
        }
        let (kept, all) = pruned.layers.iter().fold((0, 0), |(a, b), l| (a + l.after, b + l.before));
        assert_eq!(kept, all / 2);
    }

    #[test]
    fn frozen_blocks_stay_zero() {
        let kind = Kind::Block { rows: 1, cols: 4 };
        let pruned = undisturbed(&options(Method::Wgsef, Rule::AdamW), kind, Target::Sparsity(0.75)).unwrap();
        let groups = Groups::find(&pruned.graph, kind).unwrap();
        let left = groups.norms(&pruned.graph.theta()).iter().filter(|n| **n > 0.0).count();
        assert!(left <= groups.len() / 4, "{left} of {}", groups.len());
    }

    #[test]
    fn layers_of_few_weights_keep_more_of_them() {
        let graph = trainable(resnet8([8, 8, 1], 2, 1).unwrap());
        for (kind, alike) in [(Kind::Weight, false), (Kind::Block { rows: 1, cols: 4 }, true)] {
            let groups = Groups::find(&graph, kind).unwrap();
            let costs = Costs::new(&graph, &groups);
            let score = worth(&groups, &groups.norms(&graph.theta()));
            let kept = select(&score, &costs, Target::Sparsity(0.6), &groups).unwrap();
            assert_eq!(kept.iter().filter(|k| **k).count(), (0.4 * groups.len() as f64).floor() as usize);
            let shares = counts(&groups, &kept).into_iter().map(|l| (l.before, l.after as f64 / l.before as f64));
            let (mut few, mut many) = ((usize::MAX, 0.0), (0, 0.0));
            for (size, share) in shares {
                few = if size < few.0 { (size, share) } else { few };
                many = if size > many.0 { (size, share) } else { many };
            }
            assert!(
                if alike { (few.1 - many.1).abs() < 0.05 } else { few.1 > many.1 + 0.2 },
                "{kind}: {few:?} {many:?}"
            );
        }
    }

    #[test]
    fn an_interrupted_run_ends_the_same() {
        let (options, target) = (options(Method::Wgsef, Rule::AdamW), Target::MacsShare(0.4));
        let whole = undisturbed(&options, Kind::Filter, target).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for phase in ["sparsify", "fine-tune"] {
            let stop = AtomicBool::new(false);
            let steps = Cell::new(0);
            let report = |now: &'static str, _: &Status| {
                if now == phase {
                    steps.set(steps.get() + 1);
                    stop.store(steps.get() == 8, Memory::Relaxed);
                }
            };
            let checkpoint = Some(folder.path().join(format!("{phase}.npz")));
            let hooks = PruneHooks {
                report: &report,
                parts: &|_, _| (),
                stop: &stop,
                checkpoint: checkpoint.clone(),
                resume: false,
            };
            let error = run(&options, Kind::Filter, target, &hooks).unwrap_err();
            assert!(matches!(error, PruneError::Train(TrainError::Interrupted { .. })), "{error}");
            stop.store(false, Memory::Relaxed);
            let hooks = PruneHooks { report: &|_, _| (), parts: &|_, _| (), stop: &stop, checkpoint, resume: true };
            let resumed = run(&options, Kind::Filter, target, &hooks).unwrap();
            assert_eq!(resumed.graph.theta(), whole.graph.theta(), "{phase}");
            assert_eq!(resumed.layers, whole.layers);
            let recorded = |pruned: &Pruned| (pruned.trajectory.steps.clone(), pruned.trajectory.nonzero.clone());
            assert_eq!(recorded(&resumed), recorded(&whole), "{phase}");
        }
    }

    #[test]
    fn impossible_budgets_are_refused_before_training() {
        let options = options(Method::Wgsef, Rule::AdamW);
        let error = undisturbed(&options, Kind::Filter, Target::MacsShare(1e-5)).unwrap_err();
        assert!(matches!(error, PruneError::Budget(_)), "{error}");
        let error = undisturbed(&PruneOptions { sparsify: Some(1.5), ..options }, Kind::Filter, Target::PerLayer(0.5))
            .unwrap_err();
        assert!(error.to_string().contains("'sparsify'"), "{error}");
    }
}
