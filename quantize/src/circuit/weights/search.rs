//! Which model and which parameters code a tensor with the fewest bits.
//!
//! Parameters are few, so they are searched one after another, each over a handful of values with the rest kept: first the shape of the
//! leaf, then taps, one by one as long as another one pays for its byte and for its instructions, then the shape again and what else a
//! level tries.

use super::Effort;
use super::record::{Model, Weights, cost};
use pith::circuit::leaf::SHAPES;
use pith::circuit::{Shape, classes, predictive};

/// What a model may take on a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Of an instruction, in 2^-16 bits.
    pub price: u64,
    pub max_instructions_per_weight: u32,
    pub max_state_bytes: usize,
}

/// The best model so far, and what the weights cost under it in 2^-16 bits, with the price of decoding.
#[derive(Clone)]
pub(super) struct Best<'w> {
    weights: &'w Weights<'w>,
    limits: Limits,
    /// Weights outside of rows that are zero, which cost no instructions to speak of.
    priced: u64,
    pub model: Model,
    cost: u64,
}

impl<'w> Best<'w> {
    /// Every value equally probable: what everything else must beat.
    pub fn new(weights: &'w Weights<'w>, limits: Limits) -> Best<'w> {
        let kept = weights.rows().filter(|row| row.iter().any(|&w| w != 0)).count();
        let priced = (kept * weights.shape.row()) as u64;
        let mut best = Best { weights, limits, priced, model: Model::Uniform, cost: 0 };
        best.cost = best.price(&Model::Uniform);
        best
    }

    fn price(&self, model: &Model) -> u64 {
        let instructions = model.instructions_per_weight(self.weights.shape) as u64;
        cost(model, self.weights) + self.limits.price * instructions * self.priced
    }

    /// Takes the model if it is cheaper and within the limits; whether it was.
    fn offer(&mut self, model: Model) -> bool {
        let shape = self.weights.shape;
        let is_allowed = model.instructions_per_weight(shape) <= self.limits.max_instructions_per_weight
            && model.state_bytes(shape) <= self.limits.max_state_bytes;
        let cost = if is_allowed { self.price(&model) } else { u64::MAX };
        let is_better = cost < self.cost;
        if is_better {
            (self.model, self.cost) = (model, cost);
        }
        is_better
    }

    /// The same without a model.
    fn empty(&self) -> Best<'w> {
        Best { cost: u64::MAX, ..self.clone() }
    }
}

/// log2 of a mean magnitude in the header's steps of 1/16 from 1/16.
fn base_of(mean: f64) -> u8 {
    (16.0 * (mean.max(0.0625).log2() + 4.0)).round().clamp(0.0, 255.0) as u8
}

fn mean_magnitude(values: &[i8]) -> f64 {
    values.iter().map(|&w| (w as f64).abs()).sum::<f64>() / values.len().max(1) as f64
}

fn limit(values: &[i8]) -> u8 {
    values.iter().map(|w| w.unsigned_abs()).max().unwrap_or(0).max(1)
}

fn is_zero(row: &[i8]) -> bool {
    row.iter().all(|&w| w == 0)
}

/// The best table for each class of rows.
pub(super) fn classes(best: &mut Best<'_>, effort: &Effort, progress: &mut dyn FnMut()) {
    let weights = best.weights;
    let mut means: Vec<f64> = weights.rows().filter(|row| !is_zero(row)).map(mean_magnitude).collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means.get(((means.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or(0.125);
    let zero_rows = means.len() < weights.shape.rows;
    let limit = limit(weights.values);
    for class_bits in u8::from(zero_rows)..=2 {
        let places = (1u8 << class_bits) - u8::from(zero_rows);
        let (low, high) = match places {
            1 => (base_of(at(0.5)), base_of(at(0.5))),
            n => (base_of(at(0.5 / n as f64)), base_of(at(1.0 - 0.5 / n as f64))),
        };
        let step = ((high - low) as f64 / (places.max(2) - 1) as f64).round() as u8;
        for shape in effort.shapes() {
            progress();
            best.offer(Model::Classes(classes::Params { shape, class_bits, zero_rows, limit, base: low, step }));
        }
    }
}

/// The best mean and scale from weights before.
pub(super) fn predictive(best: &mut Best<'_>, effort: &Effort, progress: &mut dyn FnMut()) {
    let mut found = best.empty();
    let mut current = start(best.weights);
    let mut offer = |found: &mut Best<'_>, current: &mut predictive::Params, params: predictive::Params| {
        progress();
        if found.offer(Model::Predictive(params)) {
            *current = params;
        }
    };
    let kept = current;
    offer(&mut found, &mut current, kept);
    effort.shapes().for_each(|shape| offer(&mut found, &mut current, predictive::Params { shape, ..kept }));
    if kept.peaks {
        let kept = current;
        offer(&mut found, &mut current, predictive::Params { peaks: false, ..kept });
    }
    if best.weights.rows().any(|row| !is_zero(row) && row.contains(&0)) {
        let kept = current;
        offer(&mut found, &mut current, predictive::Params { gaps: true, ..kept });
    }
    for width in widths(best.weights.shape) {
        let mut trial = predictive::Params { width, ..current };
        let mut trial_found = found.empty();
        trial_found.offer(Model::Predictive(trial));
        let candidates = distances(best.weights.shape, width as usize, effort);
        while (trial.tap_count as usize) < effort.taps {
            let kept = trial;
            for &distance in candidates.iter().filter(|d| !kept.distances().contains(d)) {
                let mut params = kept;
                params.taps[kept.tap_count as usize] = distance;
                params.tap_count += 1;
                offer(&mut trial_found, &mut trial, params);
            }
            if trial == kept {
                break;
            }
        }
        if trial_found.cost < found.cost {
            (found, current) = (trial_found, trial);
        }
    }
    let kept = current;
    effort.shapes().for_each(|shape| offer(&mut found, &mut current, predictive::Params { shape, ..kept }));
    for step in [-8i16, 8, -4, 4, -2, 2].into_iter().take(effort.bases) {
        let params = predictive::Params { base: (current.base as i16 + step).clamp(0, 255) as u8, ..current };
        offer(&mut found, &mut current, params);
    }
    if found.cost < best.cost {
        *best = Best { weights: best.weights, ..found };
    }
}

/// What the weights themselves say.
fn start(weights: &Weights<'_>) -> predictive::Params {
    let mut params = predictive::Params::new(weights.bits);
    let largest = limit(weights.values);
    if weights.rows().any(|row| row.iter().any(|w| w.unsigned_abs() > params.limit)) || largest * 2 < params.limit {
        params.limit = largest;
    }
    let full = |row: &[i8]| is_zero(row) || limit(row) == params.limit;
    params.peaks = weights.rows().all(full);
    params.zero_rows = weights.rows().any(is_zero);
    let channels = weights.zero_channels();
    params.zero_channels = channels.contains(&true) && channels.contains(&false);
    let first = weights.rows().find(|row| !is_zero(row)).unwrap_or(&[]);
    params.base = base_of(mean_magnitude(first));
    params.shape = 5;
    params
}

/// Columns that a kernel of so many positions may have; the square first.
fn widths(shape: Shape) -> Vec<u8> {
    let n = shape.positions;
    let square = (n as f64).sqrt() as usize;
    match n {
        _ if square * square == n && square < 256 => vec![square as u8],
        _ => (1..=n.min(255)).filter(|&w| n.is_multiple_of(w)).map(|w| w as u8).collect(),
    }
}

/// Distances worth a trial: along a row, along the kernel's axes, and the same place of earlier rows.
fn distances(shape: Shape, width: usize, effort: &Effort) -> Vec<u16> {
    let (c, row) = (shape.channels, shape.row());
    let mut all = vec![1, c, c * width, row, 2];
    if effort.level >= 5 {
        all.extend([c * (width + 1), c * width.saturating_sub(1), 3, 4]);
    }
    if effort.level >= 7 {
        all.extend([2 * row, 2 * c, 2 * c * width, 5, 6, 7, 8]);
    }
    if effort.level >= 8 {
        let near =
            [c + 1, c.saturating_sub(1), c * width + 1, (c * width).saturating_sub(1), row + 1, row - 1, 3 * row];
        all.extend(near);
        all.extend([row + c, row.saturating_sub(c), row + c * width, row.saturating_sub(c * width)]);
        all.extend((3..=8).flat_map(|k| [1 << k, (1 << k) - 1, (1 << k) + 1]));
    }
    let mut distances: Vec<u16> = Vec::new();
    for distance in all {
        let is_inside = distance > 0 && distance < shape.rows * row && distance <= effort.reach;
        if let Ok(distance) = u16::try_from(distance)
            && is_inside
            && !distances.contains(&distance)
        {
            distances.push(distance);
        }
    }
    distances
}

/// All shapes, or a few that lie far apart.
pub(super) fn shapes(all: bool) -> impl Iterator<Item = u8> {
    (0..SHAPES).filter(move |shape| all || [0, 4, 5, 7, 11].contains(shape))
}
