//! Expectation maximization: parameters become their expected shares of the data.
//!
//! ```text
//! target = (flow + pseudocount / edges) / (sum of flows + pseudocount)      over the edges of a sum unit, or the values of an input unit
//! theta <- inertia * theta + (1 - inertia) * target                         after every mini-batch; inertia 0 after a pass over all data
//! ```
//!
//! With all data, no inertia and no pseudocount the likelihood never falls. Absent edges have no flow and stay absent.

use super::dense::LANES;
use super::evaluate::{Batch, Flow, Workspace, flows};
use super::inputs::Inputs;
use super::{Circuit, Data, Region};
use crate::random::Random;
use fearless_simd::{Level, Simd, dispatch, f32x16, prelude::*};
use std::ops::Range;
use std::sync::Mutex;

/// How long, and with which steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Epochs of mini-batches, each phase with its inertia at both ends.
    pub phases: Vec<(usize, Range<f32>)>,
    /// Epochs of full-batch EM at the end. They take the noise of mini-batches out; more than a few learn the training set by heart.
    pub full: usize,
    /// Samples of a mini-batch.
    pub batch: usize,
    /// In samples, for mini-batches.
    pub pseudocount: f32,
    /// In samples, for full batches.
    pub full_pseudocount: f32,
}

/// Full batches at the end of a schedule: on images, a test set is best after one or two.
const FULL: usize = 2;

impl Schedule {
    /// The authors' schedule in a number of epochs of one's own: inertia 0.2 to 0.9, then 0.9 to 0.95, then full batches.
    pub fn of(epochs: usize) -> Schedule {
        let mini = epochs.saturating_sub(FULL);
        Schedule::with(vec![(mini.div_ceil(2), 0.2..0.9), (mini / 2, 0.9..0.95)], epochs - mini)
    }

    /// For circuits that were trained before, as after pruning: inertia begins high.
    pub fn tune(epochs: usize) -> Schedule {
        let mini = epochs.saturating_sub(FULL);
        Schedule::with(vec![(mini, 0.8..0.95)], epochs - mini)
    }

    fn with(phases: Vec<(usize, Range<f32>)>, full: usize) -> Schedule {
        Schedule { phases, full, batch: 512, pseudocount: 0.1, full_pseudocount: 3.0 }
    }

    /// All epochs.
    pub fn epochs(&self) -> usize {
        self.phases.iter().map(|p| p.0).sum::<usize>() + self.full
    }

    /// Inertia of an epoch of mini-batches; none where it is one of the full ones.
    fn inertia(&self, mut epoch: usize) -> Option<f32> {
        for (epochs, inertia) in &self.phases {
            if epoch < *epochs {
                return Some(inertia.start + (inertia.end - inertia.start) * epoch as f32 / *epochs as f32);
            }
            epoch -= epochs;
        }
        None
    }
}

/// One epoch; returns the mean log-likelihood of the samples it saw, in nats, each with the parameters of that moment. Equal arguments give
/// equal circuits, so training may stop and go on between any two epochs. `seen` is called with the number of samples after every batch.
pub fn epoch(
    circuit: &mut Circuit,
    data: &Data,
    schedule: &Schedule,
    epoch: usize,
    seed: u64,
    work: &mut Workspace,
    seen: &mut dyn FnMut(usize),
) -> f64 {
    let mut rows: Vec<u32> = (0..data.samples() as u32).collect();
    let size = schedule.batch.clamp(1, data.samples().max(1));
    let Some(inertia) = schedule.inertia(epoch) else {
        return full_batch(circuit, data, &rows, size, schedule.full_pseudocount, work, seen);
    };
    Random::new(seed, 1 + epoch as u64).shuffle(&mut rows);
    let mut sum = 0.0;
    let learn = |_: usize, region: &mut Region, flow: Flow| step(region, &flow, inertia, schedule.pseudocount);
    for (i, rows) in rows.chunks_exact(size).enumerate() {
        sum += flows(circuit, work, &Batch::gather(data, rows), &learn).iter().sum::<f64>();
        seen((i + 1) * size);
    }
    sum / (data.samples() / size * size).max(1) as f64
}

fn full_batch(
    circuit: &mut Circuit,
    data: &Data,
    rows: &[u32],
    size: usize,
    pseudocount: f32,
    work: &mut Workspace,
    seen: &mut dyn FnMut(usize),
) -> f64 {
    let (total, sum) = total_flows(circuit, data, rows, size, work, seen);
    for (region, flow) in circuit.regions.iter_mut().zip(&total) {
        step(region, flow, 0.0, pseudocount);
    }
    sum / rows.len().max(1) as f64
}

/// Flows of all regions over all rows, and the sum of log-likelihoods.
pub fn total_flows(
    circuit: &mut Circuit,
    data: &Data,
    rows: &[u32],
    size: usize,
    work: &mut Workspace,
    seen: &mut dyn FnMut(usize),
) -> (Vec<Flow>, f64) {
    let zero = |r: &Region| Mutex::new(Flow { edges: vec![0.0; r.weights.len()], inputs: vec![0.0; r.table.len()] });
    let total: Vec<Mutex<Flow>> = circuit.regions.iter().map(zero).collect();
    let mut sum = 0.0;
    let gather = |index: usize, _: &mut Region, flow: Flow| {
        let mut total = total[index].lock().unwrap_or_else(|e| e.into_inner());
        total.edges.iter_mut().zip(flow.edges).for_each(|(t, x)| *t += x);
        total.inputs.iter_mut().zip(flow.inputs).for_each(|(t, x)| *t += x);
    };
    let mut done = 0;
    for rows in rows.chunks(size.max(1)) {
        sum += flows(circuit, work, &Batch::gather(data, rows), &gather).iter().sum::<f64>();
        done += rows.len();
        seen(done);
    }
    (total.into_iter().map(|t| t.into_inner().unwrap_or_else(|e| e.into_inner())).collect(), sum)
}

/// Moves a region's parameters to the shares of its flow.
fn step(region: &mut Region, flow: &Flow, inertia: f32, pseudocount: f32) {
    let (stride, units) = (region.stride(), region.units);
    for (row, flow) in region.weights.chunks_exact_mut(stride).zip(flow.edges.chunks_exact(stride)) {
        let edges = row.iter().filter(|&&w| w > 0.0).count() as f32;
        let total = flow.iter().sum::<f32>() + pseudocount;
        if !(total > 0.0 && total.is_finite()) {
            continue;
        }
        let (gain, share) = ((1.0 - inertia) / total, pseudocount / edges);
        for (w, f) in row.iter_mut().zip(flow) {
            *w = if *w > 0.0 { inertia * *w + gain * (f + share) } else { 0.0 };
        }
    }
    if region.table.is_empty() {
        return;
    }
    let mut totals = vec![pseudocount; stride];
    for row in flow.inputs.chunks_exact(stride) {
        totals.iter_mut().zip(row).for_each(|(t, x)| *t += x);
    }
    let share = pseudocount / region.values() as f32;
    let is_live = |unit: usize| unit < units && totals[unit] > 0.0 && totals[unit].is_finite();
    let gains: Vec<f32> = (0..stride).map(|j| if is_live(j) { (1.0 - inertia) / totals[j] } else { 0.0 }).collect();
    let keep: Vec<f32> = (0..stride).map(|j| if is_live(j) || j >= units { inertia } else { 1.0 }).collect();
    let level = Level::new();
    if region.inputs == Inputs::Categorical {
        return dispatch!(level, simd => blend(simd, &mut region.table, &flow.inputs, share, &keep, &gains));
    }
    let mut target = region.table.clone();
    dispatch!(level, simd => blend(simd, &mut target, &flow.inputs, share, &keep, &gains));
    region.inputs.fit(&target, units, stride, &mut region.table);
}

/// `table = keep * table + gains * (counts + share)`, rows of units.
#[inline(always)]
fn blend<S: Simd>(simd: S, table: &mut [f32], counts: &[f32], share: f32, keep: &[f32], gains: &[f32]) {
    let share = f32x16::splat(simd, share);
    let vector = |x: &[f32]| f32x16::from_slice(simd, x);
    for (table, counts) in table.chunks_exact_mut(keep.len()).zip(counts.chunks_exact(keep.len())) {
        let parameters = keep.chunks_exact(LANES).zip(gains.chunks_exact(LANES));
        for ((t, count), (keep, gain)) in table.chunks_exact_mut(LANES).zip(counts.chunks_exact(LANES)).zip(parameters)
        {
            (vector(keep) * vector(t) + vector(gain) * (vector(count) + share)).store_slice(t);
        }
    }
}
