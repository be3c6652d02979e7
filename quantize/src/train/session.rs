//! A training run: batches in a seeded order, steps, progress, checkpoints.
//!
//! Everything that a run depends on is in the session's state and its options, so a run that was interrupted and resumed ends with
//! the same numbers as one that was not: orders and augmentations come from `(seed, epoch, sample)`, and a checkpoint holds the
//! place within the epoch.

use super::augment::{Augment, blend};
use super::net::{Batch, Device, Goal, Gradient, Moments, Net};
use super::optimizer::{Optimizer, Rule, clip, cosine};
use super::{TrainError, checkpoint};
use crate::data::Targets;
use crate::graph::{Graph, Op, Role};
use crate::random::Random;
use ndarray::ArrayD;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Samples and what they mean.
#[derive(Clone, Copy, Debug)]
pub struct Data<'a> {
    /// Inputs of every sample, raw.
    pub samples: &'a [Vec<ArrayD<f32>>],
    /// Labels or wanted outputs; without them only a teacher can say what is right.
    pub targets: Option<&'a Targets>,
    /// `(scale, bias)` per channel of the first input, from raw values to the network's.
    pub affine: Option<&'a (Vec<f32>, Vec<f32>)>,
}

impl Data<'_> {
    /// Inputs of a sample as the network takes them.
    pub fn sample(&self, i: usize) -> Vec<ArrayD<f32>> {
        let mut inputs = self.samples[i].clone();
        if let Some(first) = inputs.first_mut() {
            self.preprocess(first.iter_mut());
        }
        inputs
    }

    /// Applies [`Data::affine`] to the elements of a first input, channels last.
    fn preprocess<'v>(&self, values: impl Iterator<Item = &'v mut f32>) {
        if let Some((scale, bias)) = self.affine {
            let channels = scale.iter().zip(bias).cycle();
            values.zip(channels).for_each(|(v, (s, b))| *v = *v * s + b);
        }
    }

    /// At most `count` samples, evenly spaced.
    pub fn spaced(&self, count: usize) -> Vec<usize> {
        spaced(self.samples.len(), count)
    }

    /// Batches of some samples, unaugmented.
    pub fn batches(&self, net: &Net, picked: &[usize], size: usize) -> impl Iterator<Item = Batch> {
        picked.chunks(size.max(1)).map(|picked| batch(net.graph(), self, picked, None))
    }
}

/// How a network is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    /// Passes over the set.
    pub epochs: usize,
    /// Samples of a step.
    pub batch: usize,
    /// Rule of a step.
    pub rule: Rule,
    /// Largest learning rate; absent: 0.05 for SGD, 0.002 for AdamW.
    pub rate: Option<f32>,
    /// Share of the steps over which the rate rises; a cosine to zero follows.
    pub warmup: f64,
    /// Of weights, not of biases and batch norms.
    pub weight_decay: f32,
    /// Largest norm of a gradient.
    pub clip: f32,
    /// Share of the target spread evenly over all classes.
    pub label_smoothing: f32,
    /// Share of the target that a teacher gives, if there is one: 0 labels alone, 1 the teacher alone. Without labels it is 1.
    pub distill: f32,
    /// Of the teacher's softmax.
    pub temperature: f32,
    /// Share by which a step moves the running moments of batch norms towards its batch's.
    pub batch_norm_momentum: f32,
    /// Changes of samples.
    pub augment: Augment,
    /// Of orders and augmentations.
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> TrainOptions {
        TrainOptions {
            epochs: 10,
            batch: 64,
            rule: Rule::AdamW,
            rate: None,
            warmup: 0.05,
            weight_decay: 1e-4,
            clip: 5.0,
            label_smoothing: 0.0,
            distill: 0.0,
            temperature: 1.0,
            batch_norm_momentum: 0.1,
            augment: Augment::default(),
            seed: 1,
        }
    }
}

impl TrainOptions {
    /// The largest learning rate.
    pub fn largest_rate(&self) -> f32 {
        self.rate.unwrap_or(match self.rule {
            Rule::Sgd { .. } => 0.05,
            Rule::AdamW => 0.002,
        })
    }

    /// Refuses values that make no sense.
    pub(crate) fn check(&self) -> Result<(), TrainError> {
        let fails = [
            (self.batch == 0, "batch", "at least 1"),
            (!(self.largest_rate() > 0.0 && self.largest_rate().is_finite()), "rate", "positive"),
            (!(0.0..1.0).contains(&self.warmup), "warmup", "a share below 1"),
            (!(self.weight_decay >= 0.0 && self.weight_decay.is_finite()), "weight_decay", "0 or more"),
            (self.clip.is_nan() || self.clip <= 0.0, "clip", "positive"),
            (!(0.0..1.0).contains(&self.label_smoothing), "label_smoothing", "a share below 1"),
            (!(0.0..=1.0).contains(&self.distill), "distill", "a share"),
            (!(self.temperature > 0.0 && self.temperature.is_finite()), "temperature", "positive"),
            (!(0.0..=1.0).contains(&self.augment.mixup), "augment.mixup", "0 to 1"),
            (!(self.batch_norm_momentum > 0.0 && self.batch_norm_momentum <= 1.0), "batch_norm_momentum", "a share"),
        ];
        match fails.into_iter().find(|f| f.0) {
            Some((_, field, wanted)) => Err(TrainError::Option { field, wanted }),
            None => Ok(()),
        }
    }
}

/// A network whose outputs are right by definition.
#[derive(Debug)]
pub struct Teacher {
    net: Net,
    theta: Vec<f32>,
    moments: Moments,
}

impl Teacher {
    /// The graph as it is.
    pub fn new(graph: &Graph, device: &Device) -> Result<Teacher, TrainError> {
        Ok(Teacher { net: Net::new(graph, device)?, theta: graph.theta(), moments: Moments::of(graph) })
    }
}

/// Where a run stands, after a step.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// Epoch, from 0.
    pub epoch: usize,
    /// Of so many.
    pub epochs: usize,
    /// Steps done, those before a resumption included.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// Mean loss of this epoch so far.
    pub loss: f32,
    /// Share of right answers of this epoch so far, where there are labels.
    pub accuracy: Option<f64>,
    /// Norm of the last gradient.
    pub gradient: f32,
}

/// A step that has just been made and may be corrected.
pub struct Step<'s> {
    /// Share of the run that is done, 0 to 1.
    pub done: f64,
    /// Steps of the whole run.
    pub steps: usize,
    /// Learning rate of the step.
    pub rate: f32,
    /// Parameters.
    pub theta: &'s mut [f32],
    /// What the rule remembers; its metric is that of the step.
    pub optimizer: &'s mut Optimizer,
    /// Loss of the batch.
    pub loss: f32,
    /// What the hook keeps between steps; empty at first, saved and resumed with the rest.
    pub kept: &'s mut Vec<f32>,
}

/// What a step is made from.
pub struct Lesson<'l> {
    /// The network.
    pub net: &'l Net,
    /// Parameters, with those that the network does not know ([`Session::with_extra`]).
    pub theta: &'l [f32],
    /// Running moments, to be moved by `rate`.
    pub moments: &'l mut Moments,
    /// Inputs.
    pub batch: &'l Batch,
    /// What the outputs should be.
    pub goal: &'l Goal,
    /// See [`TrainOptions::batch_norm_momentum`].
    pub rate: f32,
    /// Steps before this one.
    pub step: usize,
}

/// What a run does beside training.
pub struct Hooks<'h> {
    /// Called after every step: proximal operators, masks.
    pub step: &'h mut dyn FnMut(&mut Step<'_>),
    /// Called after every step, for a progress line.
    pub report: &'h dyn Fn(&Status),
    /// Set when the user wants to stop: the run saves and ends with [`TrainError::Interrupted`].
    pub stop: &'h AtomicBool,
    /// Where checkpoints go, after every epoch and when stopped.
    pub checkpoint: Option<PathBuf>,
}

/// The state of a run.
#[derive(Debug)]
pub struct Session {
    net: Net,
    options: TrainOptions,
    decay: Vec<f32>,
    /// Parameters.
    pub theta: Vec<f32>,
    /// Of batch norms.
    pub moments: Moments,
    /// Of the rule.
    pub optimizer: Optimizer,
    /// Steps done.
    pub step: usize,
    /// What the step hook keeps, see [`Step::kept`].
    pub kept: Vec<f32>,
    /// What else a checkpoint must agree with.
    pub note: String,
}

impl Session {
    /// At the graph's own parameters; the graph comes from [`crate::graph::trainable`].
    pub fn new(graph: &Graph, options: &TrainOptions, device: &Device) -> Result<Session, TrainError> {
        Session::with_extra(graph, &[], options, device)
    }

    /// With parameters behind the graph's own that only the gradient of [`Session::run_by`] knows.
    pub fn with_extra(
        graph: &Graph,
        extra: &[f32],
        options: &TrainOptions,
        device: &Device,
    ) -> Result<Session, TrainError> {
        options.check()?;
        let net = Net::new(graph, device)?;
        let mut theta = graph.theta();
        theta.extend(extra);
        let mut decay = vec![0.0; theta.len()];
        let weights = net.parameters().iter().filter(|p| p.role == Role::Weight);
        weights.for_each(|p| decay[p.range.clone()].fill(options.weight_decay));
        let optimizer = Optimizer::new(options.rule, theta.len());
        Ok(Session {
            net,
            options: options.clone(),
            decay,
            theta,
            moments: Moments::of(graph),
            optimizer,
            step: 0,
            kept: Vec::new(),
            note: String::new(),
        })
    }

    /// The network.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// The graph with the parameters as they are.
    pub fn graph(&self) -> Graph {
        let mut graph = self.net.graph().clone();
        graph.set_theta(&self.theta);
        self.moments.write(&mut graph);
        graph
    }

    /// Goes on where a checkpoint of the same run stopped.
    pub fn resume(&mut self, path: &Path) -> Result<(), TrainError> {
        checkpoint::read(path, self)
    }

    /// What must agree between a checkpoint and a run, in words.
    pub(super) fn fingerprint(&self) -> String {
        let shapes: Vec<String> = self
            .net
            .parameters()
            .iter()
            .map(|p| format!("{}:{}", self.net.graph().nodes[p.node].name, p.range.len()))
            .collect();
        format!("{:?} {}{}", self.options, shapes.join(","), self.note)
    }

    /// Trains to the end of the epochs; returns the mean loss of the last epoch.
    pub fn run(
        &mut self,
        data: &Data<'_>,
        teacher: Option<&Teacher>,
        hooks: &mut Hooks<'_>,
    ) -> Result<f32, TrainError> {
        let mut own = |l: Lesson<'_>| l.net.gradient(l.theta, l.moments, l.batch, l.goal, l.rate);
        self.run_by(data, teacher, hooks, &mut own)
    }

    /// The same with another gradient.
    pub fn run_by(
        &mut self,
        data: &Data<'_>,
        teacher: Option<&Teacher>,
        hooks: &mut Hooks<'_>,
        learn: &mut dyn FnMut(Lesson<'_>) -> Gradient,
    ) -> Result<f32, TrainError> {
        let judge = Judge::new(&self.net, data, teacher, &self.options)?;
        let n = data.samples.len();
        let per_epoch = n.div_ceil(self.options.batch);
        let steps = per_epoch * self.options.epochs;
        let mut good = (self.theta.clone(), self.moments.clone());
        let mut last = 0.0;
        for epoch in self.step / per_epoch..self.options.epochs {
            let order = order(n, self.options.seed, epoch);
            let (mut loss, mut right, mut seen) = (0.0f64, 0usize, 0usize);
            for i in self.step % per_epoch..per_epoch {
                let picked = &order[i * self.options.batch..((i + 1) * self.options.batch).min(n)];
                let augment = (self.options.augment, self.options.seed.wrapping_add((epoch as u64) << 32));
                let mut batch = batch(self.net.graph(), data, picked, Some(augment));
                let shares = augment.0.shares(picked, augment.1);
                batch.inputs.iter_mut().for_each(|input| blend(input, &shares));
                let goal = judge.goal(&batch, picked, &shares);
                let mut gradient = learn(Lesson {
                    net: &self.net,
                    theta: &self.theta,
                    moments: &mut self.moments,
                    batch: &batch,
                    goal: &goal,
                    rate: self.options.batch_norm_momentum,
                    step: self.step,
                });
                let norm = clip(&mut gradient.theta, self.options.clip);
                if !gradient.loss.is_finite() || !norm.is_finite() {
                    return Err(self.diverged(good, &batch, hooks));
                }
                let done = self.step as f64 / steps as f64;
                let rate = self.options.largest_rate() * cosine(done, self.options.warmup) as f32;
                self.optimizer.step(&mut self.theta, &gradient.theta, rate, &self.decay);
                self.step += 1;
                let done = self.step as f64 / steps as f64;
                let mut step = Step {
                    done,
                    steps,
                    rate,
                    theta: &mut self.theta,
                    optimizer: &mut self.optimizer,
                    loss: gradient.loss,
                    kept: &mut self.kept,
                };
                (hooks.step)(&mut step);
                loss += gradient.loss as f64 * picked.len() as f64;
                seen += picked.len();
                right += judge.right(gradient.outputs.first().map_or(&[][..], Vec::as_slice), picked).unwrap_or(0);
                last = (loss / seen as f64) as f32;
                (hooks.report)(&Status {
                    epoch,
                    epochs: self.options.epochs,
                    step: self.step,
                    steps,
                    loss: last,
                    accuracy: judge.labels().map(|_| right as f64 / seen as f64),
                    gradient: norm,
                });
                if hooks.stop.load(Ordering::Relaxed) {
                    if let Some(path) = &hooks.checkpoint {
                        checkpoint::write(path, self)?;
                    }
                    return Err(TrainError::Interrupted { checkpoint: hooks.checkpoint.clone() });
                }
            }
            good = (self.theta.clone(), self.moments.clone());
            if let Some(path) = &hooks.checkpoint {
                checkpoint::write(path, self)?;
            }
        }
        Ok(last)
    }

    /// Restores the last good parameters and says where it broke.
    fn diverged(&mut self, good: (Vec<f32>, Moments), batch: &Batch, hooks: &Hooks<'_>) -> TrainError {
        let layer = self.net.first_not_finite(&self.theta, batch);
        (self.theta, self.moments) = good;
        let layer = layer.unwrap_or_else(|| "the loss".into());
        TrainError::Diverged { step: self.step, layer, checkpoint: hooks.checkpoint.clone() }
    }

    /// Replaces running moments by the mean over at most `samples` of the set, unaugmented.
    pub fn refresh(&mut self, data: &Data<'_>, samples: usize) {
        if self.moments.nodes.is_empty() {
            return;
        }
        let picked = data.spaced(samples);
        let batches = data.batches(&self.net, &picked, self.options.batch.max(64));
        self.net.refresh(&self.theta, &mut self.moments, batches);
    }

    /// Share of right answers, or the mean squared error where the targets are values; `None` without targets.
    pub fn evaluate(&self, data: &Data<'_>) -> Option<f64> {
        evaluate(&self.net, &self.theta, &self.moments, data)
    }
}

/// Share of right answers of a graph as it is; `None` where the targets are no classes.
pub fn accuracy(graph: &Graph, data: &Data<'_>, device: &Device) -> Result<Option<f64>, TrainError> {
    let net = Net::new(graph, device)?;
    match data.targets {
        Some(Targets::Classes(_)) => Ok(evaluate(&net, &graph.theta(), &Moments::of(graph), data)),
        _ => Ok(None),
    }
}

/// Share of right answers, or the mean squared error where the targets are values; `None` without targets.
pub fn evaluate(net: &Net, theta: &[f32], moments: &Moments, data: &Data<'_>) -> Option<f64> {
    let targets = data.targets?;
    let all: Vec<usize> = (0..data.samples.len()).collect();
    let (mut sum, mut count) = (0.0f64, 0usize);
    for picked in all.chunks(256) {
        let outputs = net.predict(theta, moments, &batch(net.graph(), data, picked, None));
        match targets {
            Targets::Classes(labels) => {
                sum += count_right(&outputs[0], net.classes(), picked, labels) as f64;
                count += picked.len();
            }
            Targets::Values(values) => {
                let wanted = values_of(values, picked);
                for (output, wanted) in outputs.iter().zip(&wanted) {
                    sum += output.iter().zip(wanted).map(|(a, b)| ((a - b) as f64).powi(2)).sum::<f64>();
                    count += output.len();
                }
            }
        }
    }
    Some(sum / count.max(1) as f64)
}

/// What is right, batch by batch.
struct Judge<'a> {
    targets: Option<&'a Targets>,
    teacher: Option<&'a Teacher>,
    /// Share of the teacher.
    distill: f32,
    temperature: f32,
    smoothing: f32,
    classes: usize,
    /// The outputs are a distribution's logits.
    is_classifier: bool,
}

impl<'a> Judge<'a> {
    fn new(
        net: &Net,
        data: &Data<'a>,
        teacher: Option<&'a Teacher>,
        options: &TrainOptions,
    ) -> Result<Judge<'a>, TrainError> {
        if data.samples.is_empty() {
            return Err(TrainError::Empty);
        }
        let distill = match (data.targets, teacher) {
            (None, None) => return Err(TrainError::NoTargets),
            (None, Some(_)) => 1.0,
            (Some(_), None) => 0.0,
            (Some(_), Some(_)) => options.distill,
        };
        let has_classes = matches!(data.targets, Some(Targets::Classes(_)));
        let shapes = |graph: &Graph| {
            let ports = graph.inputs.iter().chain(&graph.outputs);
            ports.map(|p| graph.shape(p.tensor).to_vec()).collect::<Vec<_>>()
        };
        if teacher.is_some_and(|t| shapes(t.net.graph()) != shapes(net.graph())) {
            return Err(TrainError::Teacher);
        }
        let predictions = net.graph().outputs.first().map_or(0, |p| net.graph().shape(p.tensor).iter().product());
        if has_classes && predictions != net.classes() {
            return Err(TrainError::Predictions { values: predictions, classes: net.classes() });
        }
        if let Some(Targets::Values(values)) = data.targets {
            let outputs = net.graph().outputs.len();
            let expected = |k: usize| net.graph().shape(net.graph().outputs[k].tensor).iter().product::<usize>();
            let given = |v: &ArrayD<f32>| v.len() / data.samples.len();
            if values.len() != outputs || (0..outputs).any(|k| given(&values[k]) != expected(k)) {
                return Err(TrainError::Targets { expected: (0..outputs).map(expected).collect() });
            }
        }
        Ok(Judge {
            targets: data.targets,
            teacher: teacher.filter(|_| distill > 0.0),
            distill,
            temperature: if distill < 1.0 { 1.0 } else { options.temperature },
            smoothing: options.label_smoothing,
            classes: net.classes(),
            is_classifier: has_classes || (data.targets.is_none() && net.ends_in_softmax()),
        })
    }

    fn labels(&self) -> Option<&'a [usize]> {
        match self.targets {
            Some(Targets::Classes(labels)) => Some(labels),
            _ => None,
        }
    }

    /// What a batch, blended by these shares, should give.
    fn goal(&self, batch: &Batch, picked: &[usize], shares: &[f32]) -> Goal {
        let teacher = self.teacher.map(|t| t.net.logits(&t.theta, &t.moments, batch));
        if !self.is_classifier {
            return Goal::Values(match (teacher, self.targets) {
                (Some(outputs), _) => outputs,
                (None, Some(Targets::Values(values))) => {
                    let mut values = values_of(values, picked);
                    values.iter_mut().for_each(|values| blend(values, shares));
                    values
                }
                (None, _) => Vec::new(),
            });
        }
        let mut target = vec![0.0; picked.len() * self.classes];
        if let Some(labels) = self.labels() {
            let share = 1.0 - self.distill;
            target.fill(share * self.smoothing / self.classes as f32);
            picked.iter().enumerate().for_each(|(row, &i)| {
                target[row * self.classes + labels[i]] += share * (1.0 - self.smoothing);
            });
            blend(&mut target, shares);
        }
        if let Some(logits) = teacher.as_ref().and_then(|t| t.first()) {
            target.resize(logits.len(), 0.0);
            let rows = target.chunks_exact_mut(self.classes).zip(logits.chunks_exact(self.classes));
            rows.for_each(|(target, logits)| add_softmax(target, logits, self.temperature, self.distill));
        }
        Goal::Distributions(target, self.temperature)
    }

    fn right(&self, output: &[f32], picked: &[usize]) -> Option<usize> {
        self.labels().map(|labels| count_right(output, self.classes, picked, labels))
    }
}

impl Goal {
    /// With the outputs of another network as this share of what is wanted: for distributions the gradient of the mean of cross-entropies (a
    /// Kullback-Leibler divergence has the same), for values that of squared errors.
    pub fn taught(&self, outputs: &[Vec<f32>], share: f32, classes: usize) -> Goal {
        match self {
            Goal::Distributions(target, temperature) => {
                let mut target: Vec<f32> = target.iter().map(|t| (1.0 - share) * t).collect();
                let logits = outputs.first().map_or(&[][..], Vec::as_slice);
                let rows = target.chunks_exact_mut(classes.max(1)).zip(logits.chunks_exact(classes.max(1)));
                rows.for_each(|(target, logits)| add_softmax(target, logits, *temperature, share));
                Goal::Distributions(target, *temperature)
            }
            Goal::Values(values) => {
                let mixed = |(own, taught): (&Vec<f32>, &Vec<f32>)| {
                    own.iter().zip(taught).map(|(own, taught)| (1.0 - share) * own + share * taught).collect()
                };
                Goal::Values(values.iter().zip(outputs).map(mixed).collect())
            }
        }
    }
}

fn add_softmax(target: &mut [f32], logits: &[f32], temperature: f32, share: f32) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|&z| ((z - largest) / temperature).exp()).collect();
    let sum: f32 = powers.iter().sum();
    target.iter_mut().zip(powers).for_each(|(t, p)| *t += share * p / sum);
}

fn count_right(output: &[f32], classes: usize, picked: &[usize], labels: &[usize]) -> usize {
    let best = |row: &[f32]| {
        let all = row.iter().enumerate();
        all.fold((0, f32::NEG_INFINITY), |best, (i, &v)| if v > best.1 { (i, v) } else { best }).0
    };
    output.chunks_exact(classes.max(1)).zip(picked).filter(|(row, i)| best(row) == labels[**i]).count()
}

fn values_of(values: &[ArrayD<f32>], picked: &[usize]) -> Vec<Vec<f32>> {
    let of = |array: &ArrayD<f32>| {
        picked.iter().flat_map(|&i| array.index_axis(ndarray::Axis(0), i).iter().copied().collect::<Vec<_>>()).collect()
    };
    values.iter().map(of).collect()
}

/// Samples in a random order of their own in every epoch.
fn order(n: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    Random::new(seed, epoch as u64).shuffle(&mut order);
    order
}

/// At most `count` of `n`, evenly spaced.
fn spaced(n: usize, count: usize) -> Vec<usize> {
    let count = count.clamp(1, n.max(1)).min(n);
    (0..count).map(|i| i * n / count).collect()
}

fn batch(graph: &Graph, data: &Data<'_>, picked: &[usize], augment: Option<(Augment, u64)>) -> Batch {
    let mut inputs: Vec<Vec<f32>> = vec![Vec::new(); graph.inputs.len()];
    for &i in picked {
        for (k, (input, sample)) in inputs.iter_mut().zip(&data.samples[i]).enumerate() {
            let from = input.len();
            input.extend(sample.iter());
            let values = &mut input[from..];
            let mut black = vec![0.0];
            if let Some((_, bias)) = data.affine.filter(|_| k == 0) {
                data.preprocess(values.iter_mut());
                black = bias.clone();
            }
            if let Some((augment, seed)) = augment {
                augment.apply(values, sample.shape(), &black, &mut Random::new(seed, i as u64));
            }
        }
    }
    Batch { size: picked.len(), inputs }
}

impl Net {
    /// Whether the first output is a softmax's.
    pub fn ends_in_softmax(&self) -> bool {
        let graph = self.graph();
        let last = graph.outputs.first().and_then(|p| graph.producer(p.tensor));
        last.is_some_and(|i| matches!(graph.nodes[i].op, Op::Softmax { .. }))
    }
}
