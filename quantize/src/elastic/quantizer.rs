//! Quantizers of weights and activations with learned steps (LSQ+: Bhalgat et al. 2020; "EQ-Net", section 3.1), in the integers that the device multiplies.
//!
//! A filter's weight `w` becomes the level `n = clamp(round(w / s), lo, hi)` and counts as `s n`. A symmetric form has `lo, hi = -+(2^(b-1) - 1)`, an
//! asymmetric one `2^b` levels from `lo = -2^(b-1) - z`, with an integer zero point `z`. A level is what a file stores, so what is trained is what the
//! runtime computes. Steps and zero points stand in the flat parameter vector as `ln s` and `z / 2^(b-1)`: a training step changes both by shares.
//!
//! Gradients (straight through the rounding): a weight within the levels passes its gradient on and moves the step by `n - w / s`; one beyond them keeps
//! its own and moves the step by `n`, and the zero point by `-s`.
//!
//! Activations are rounded within the network ([`crate::train::Net::rounding`]), by one step per tensor. Their levels are `-2^(b-1) ..= 2^(b-1) - 1`, or
//! `0 ..= 2^b - 1` behind a ReLU, or shifted by a zero point.

use super::Form;
use super::rate::Slopes;
use crate::scheme::Granularity;
use std::ops::Range;

/// A form of a layer, and where its steps and zero points stand in the parameter vector.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Quantizer {
    pub form: Form,
    /// `ln s`: one, or one per filter.
    pub steps: Range<usize>,
    /// `z / 2^(b-1)`, as many; empty for a symmetric form.
    pub zeros: Range<usize>,
}

/// An activation whose width is elastic: what some layers read.
#[derive(Clone, Debug)]
pub(super) struct Site {
    /// Node of the supernet's graph whose output is rounded.
    pub node: usize,
    /// Indices of the layers that read it.
    pub layers: Vec<usize>,
    /// Whether it can be negative.
    pub signed: bool,
    /// Values of a sample.
    pub count: usize,
    /// Forms that it may take, the widest first.
    pub forms: Vec<Form>,
    /// By form: where `ln s` stands, and behind it `z / 2^(b-1)` if the form is shifted.
    pub places: Vec<usize>,
}

impl Site {
    fn kind(&self, form: Form) -> Kind {
        match (form.symmetric, self.signed) {
            (false, _) => Kind::Shifted,
            (true, true) => Kind::Signed,
            (true, false) => Kind::Unsigned,
        }
    }

    /// Step, lowest and highest level.
    pub fn levels(&self, theta: &[f32], form: usize) -> (f32, i32, i32) {
        let (own, at) = (self.forms[form], self.places[form]);
        let half = own.half();
        let zero = match self.kind(own) {
            Kind::Shifted => (theta[at + 1] * half).round().clamp(1.0 - half, half - 1.0) as i32,
            _ => 0,
        };
        let (lo, hi) = self.kind(own).levels(own.bits, zero);
        (theta[at].exp().max(f32::MIN_POSITIVE), lo, hi)
    }

    /// Adds to `total` what gradients by step, lowest and highest level say of the parameters.
    pub fn pull_back(&self, theta: &[f32], form: usize, gradient: &[f32], total: &mut [f32]) {
        let (own, at) = (self.forms[form], self.places[form]);
        let factor = 1.0 / (self.count as f32 * own.half()).sqrt();
        let (step, ..) = self.levels(theta, form);
        total[at] += factor * step * gradient[0];
        if self.kind(own) == Kind::Shifted {
            total[at + 1] -= factor * own.half() * (gradient[1] + gradient[2]);
        }
    }

    /// First steps, from some of its values.
    pub fn start(&self, theta: &mut [f32], values: &[f32]) {
        for (&form, &at) in self.forms.iter().zip(&self.places) {
            let (step, zero) = first(form, self.kind(form), values);
            theta[at] = step.ln();
            if self.kind(form) == Kind::Shifted {
                theta[at + 1] = zero / form.half();
            }
        }
    }
}

/// Where `2^b` levels lie, or one less.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// As many below zero as above.
    Even,
    /// One more below zero.
    Signed,
    /// From zero on.
    Unsigned,
    /// By a zero point.
    Shifted,
}

impl Kind {
    /// Lowest and highest level.
    fn levels(self, bits: u8, zero_point: i32) -> (i32, i32) {
        let half = 1 << (bits - 1);
        match self {
            Kind::Even => (1 - half, half - 1),
            Kind::Signed => (-half, half - 1),
            Kind::Unsigned => (0, 2 * half - 1),
            Kind::Shifted => (-half - zero_point, half - 1 - zero_point),
        }
    }
}

/// Clips that are tried for a first step: the largest weight times `1 - i / 100`.
const GRID: usize = 80;

/// Errors count with this power when a first step is chosen.
const POWER: f32 = 2.4;

impl Form {
    fn of_weights(self) -> Kind {
        if self.symmetric { Kind::Even } else { Kind::Shifted }
    }

    fn half(self) -> f32 {
        (1u32 << (self.bits - 1)) as f32
    }
}

impl Quantizer {
    /// Step and levels of filter `oc`.
    fn scale(&self, theta: &[f32], oc: usize) -> (f32, i32, i32) {
        let at = if self.steps.len() == 1 { 0 } else { oc };
        let step = theta[self.steps.start + at].exp().max(f32::MIN_POSITIVE);
        let zero = match self.zeros.is_empty() {
            true => 0,
            // Levels then lie within eight bits, and zero is one of them.
            false => (theta[self.zeros.start + at] * self.form.half())
                .round()
                .clamp(1.0 - self.form.half(), self.form.half() - 1.0) as i32,
        };
        let (lo, hi) = self.form.of_weights().levels(self.form.bits, zero);
        (step, lo, hi)
    }

    /// LSQ's factor of a step's gradient, which grows with what the step covers.
    fn factor(&self, weights: usize) -> f32 {
        let own = weights / self.steps.len().max(1);
        1.0 / (own as f32 * self.form.half()).sqrt()
    }

    /// Levels of the weights of a layer with so many filters, and the step of each filter.
    pub fn levels(&self, theta: &[f32], weights: &[f32], filters: usize) -> (Vec<i8>, Vec<f32>) {
        let k = (weights.len() / filters.max(1)).max(1);
        let mut levels = Vec::with_capacity(weights.len());
        let mut steps = Vec::with_capacity(filters);
        for (oc, filter) in weights.chunks_exact(k).enumerate() {
            let (step, lo, hi) = self.scale(theta, oc);
            levels.extend(filter.iter().map(|w| level(w / step, lo, hi) as i8));
            steps.push(step);
        }
        (levels, steps)
    }

    /// What the weights count as.
    pub fn apply(&self, theta: &[f32], weights: &[f32], filters: usize, out: &mut [f32]) {
        let k = (weights.len() / filters.max(1)).max(1);
        for (oc, (filter, out)) in weights.chunks_exact(k).zip(out.chunks_exact_mut(k)).enumerate() {
            let (step, lo, hi) = self.scale(theta, oc);
            out.iter_mut().zip(filter).for_each(|(out, w)| *out = level(w / step, lo, hi) * step);
        }
    }

    /// Adds to `total` what a gradient by the quantized weights says of the weights at `at`, the steps and the zero points.
    pub fn pull_back(&self, theta: &[f32], at: Range<usize>, filters: usize, gradient: &[f32], total: &mut [f32]) {
        let k = (at.len() / filters.max(1)).max(1);
        let factor = self.factor(at.len());
        for oc in 0..filters {
            let (step, lo, hi) = self.scale(theta, oc);
            let (mut to_step, mut to_zero) = (0.0f32, 0.0f32);
            for i in oc * k..(oc + 1) * k {
                let (v, g) = (theta[at.start + i] / step, gradient[i]);
                let n = level(v, lo, hi);
                match v >= lo as f32 && v <= hi as f32 {
                    true => {
                        total[at.start + i] += g;
                        to_step += g * (n - v);
                    }
                    false => {
                        to_step += g * n;
                        to_zero -= g;
                    }
                }
            }
            let index = if self.steps.len() == 1 { 0 } else { oc };
            total[self.steps.start + index] += factor * step * to_step;
            if !self.zeros.is_empty() {
                total[self.zeros.start + index] += factor * step * self.form.half() * to_zero;
            }
        }
    }

    /// The rate, bits of the whole layer when it is coded, and adds to `total` its gradient times `price`: see [`super::rate`]. Pruned weights stay, and cost what
    /// a zero costs.
    pub fn add_rate(&self, theta: &[f32], at: Range<usize>, filters: usize, price: f32, total: &mut [f32]) -> f32 {
        let k = (at.len() / filters.max(1)).max(1);
        let factor = self.factor(at.len());
        let (levels, _) = self.levels(theta, &theta[at.clone()], filters);
        let (slopes, bits) = Slopes::of(&levels);
        for oc in 0..filters {
            let (step, lo, hi) = self.scale(theta, oc);
            let mut to_log = 0.0f32;
            for i in at.start + oc * k..at.start + (oc + 1) * k {
                let v = theta[i] / step;
                if theta[i] != 0.0 && v > lo as f32 && v < hi as f32 {
                    let slope = slopes.at(v);
                    total[i] += price * slope / step;
                    to_log -= v * slope;
                }
            }
            let index = if self.steps.len() == 1 { 0 } else { oc };
            total[self.steps.start + index] += factor * price * to_log;
        }
        bits
    }

    /// The steps and zero points with the least `sum |w - s n|^2.4` of a grid of clips.
    pub fn start(&self, theta: &mut [f32], weights: &[f32], filters: usize) {
        let k = (weights.len() / filters.max(1)).max(1);
        let parts: Vec<&[f32]> = match self.form.granularity {
            Granularity::Channel => weights.chunks_exact(k).collect(),
            Granularity::Tensor => vec![weights],
        };
        for (i, part) in parts.into_iter().enumerate() {
            let (step, zero) = first(self.form, self.form.of_weights(), part);
            theta[self.steps.start + i] = step.ln();
            if !self.zeros.is_empty() {
                theta[self.zeros.start + i] = zero / self.form.half();
            }
        }
    }
}

fn level(v: f32, lo: i32, hi: i32) -> f32 {
    v.round().clamp(lo as f32, hi as f32)
}

/// The best step and zero point of some values.
fn first(form: Form, kind: Kind, values: &[f32]) -> (f32, f32) {
    let (min, max) = values.iter().fold((0f32, 0f32), |(lo, hi), &w| (lo.min(w), hi.max(w)));
    if max - min < 1e-20 {
        return (1.0, 0.0);
    }
    let half = form.half();
    let at = |i: usize| {
        let clip = 1.0 - 0.01 * i as f32;
        match kind {
            Kind::Even => (clip * max.max(-min) / (half - 1.0), 0.0),
            Kind::Signed => (clip * max.max(-min) / (half - 0.5), 0.0),
            Kind::Unsigned => (clip * max.max(1e-20) / (2.0 * half - 1.0), 0.0),
            Kind::Shifted => {
                let step = clip * (max - min) / (2.0 * half - 1.0);
                (step, (-half - clip * min / step).round().clamp(1.0 - half, half - 1.0))
            }
        }
    };
    let error = |(step, zero): (f32, f32)| -> f32 {
        let (lo, hi) = kind.levels(form.bits, zero as i32);
        values.iter().map(|w| (w - step * level(w / step, lo, hi)).abs().powf(POWER)).sum()
    };
    (0..GRID).map(at).min_by(|&a, &b| error(a).total_cmp(&error(b))).unwrap_or((1.0, 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn form(bits: u8, granularity: Granularity, symmetric: bool) -> Form {
        Form { bits, granularity, symmetric }
    }

    /// A quantizer behind `weights` in one vector, at its first steps.
    fn quantizer(form: Form, weights: &[f32], filters: usize) -> (Quantizer, Vec<f32>) {
        let own = if form.granularity == Granularity::Channel { filters } else { 1 };
        let at = weights.len();
        let zeros = if form.symmetric { at + own..at + own } else { at + own..at + 2 * own };
        let quantizer = Quantizer { form, steps: at..at + own, zeros };
        let mut theta = weights.to_vec();
        theta.resize(quantizer.zeros.end, 0.0);
        quantizer.start(&mut theta, weights, filters);
        (quantizer, theta)
    }

    fn random(count: usize, shift: f32) -> Vec<f32> {
        let mut random = Random::new(3, 1);
        (0..count).map(|_| random.normal() + shift).collect()
    }

    /// Levels stay within their bounds and eight bits, and the error falls with every bit.
    #[test]
    fn levels() {
        let weights = random(120, 0.3);
        for granularity in [Granularity::Channel, Granularity::Tensor] {
            for symmetric in [true, false] {
                let mut before = f32::INFINITY;
                for bits in 2..=if symmetric { 8 } else { 7 } {
                    let (q, theta) = quantizer(form(bits, granularity, symmetric), &weights, 4);
                    let (levels, steps) = q.levels(&theta, &weights, 4);
                    let mut real = vec![0.0; weights.len()];
                    q.apply(&theta, &weights, 4, &mut real);
                    let (_, lo, hi) = q.scale(&theta, 0);
                    assert!(lo >= -128 && hi <= 127 && lo <= 0 && hi >= 0, "{bits} bits: {lo}..{hi}");
                    assert!(levels[..30].iter().all(|&n| (lo..=hi).contains(&(n as i32))));
                    assert!((0..weights.len()).all(|i| real[i] == levels[i] as f32 * steps[i / 30]));
                    let error: f32 = weights.iter().zip(&real).map(|(a, b)| (a - b).powi(2)).sum();
                    assert!(
                        error < before,
                        "{bits} bits, {granularity:?}, symmetric {symmetric}: {error} after {before}"
                    );
                    before = error;
                }
            }
        }
        // Two bits with four levels beat three levels.
        let error = |symmetric: bool| {
            let (q, theta) = quantizer(form(2, Granularity::Channel, symmetric), &weights, 4);
            let mut real = vec![0.0; weights.len()];
            q.apply(&theta, &weights, 4, &mut real);
            weights.iter().zip(&real).map(|(a, b)| (a - b).powi(2)).sum::<f32>()
        };
        assert!(error(false) < error(true));
    }

    /// By steps and zero points the quantizer is differentiable once the rounding of weights within the levels is taken as fixed; clipped
    /// weights move with them.
    #[test]
    fn gradients() {
        let weights = random(60, 0.2);
        let gradient = random(60, 0.0);
        let form = form(3, Granularity::Channel, false);
        let (q, mut theta) = quantizer(form, &weights, 3);
        // Steps so short that some weights are clipped on both sides.
        theta[q.steps.clone()].iter_mut().for_each(|s| *s -= 0.7);
        let mut total = vec![0.0; theta.len()];
        q.pull_back(&theta, 0..60, 3, &gradient, &mut total);
        let (levels, steps) = q.levels(&theta, &weights, 3);
        for oc in 0..3 {
            let (step, lo, hi) = q.scale(&theta, oc);
            let own = oc * 20..(oc + 1) * 20;
            let inside = |i: usize| (lo as f32..=hi as f32).contains(&(weights[i] / step));
            assert!(own.clone().any(inside) && own.clone().any(|i| !inside(i)));
            // d(s n)/ds is n, and the rounding error n - w/s where the weight follows.
            let to_step: f32 = own
                .clone()
                .map(|i| gradient[i] * (levels[i] as f32 - if inside(i) { weights[i] / steps[oc] } else { 0.0 }))
                .sum();
            let to_zero: f32 = own.clone().filter(|&i| !inside(i)).map(|i| -step * gradient[i]).sum();
            let factor = 1.0 / (20.0f32 * 4.0).sqrt();
            assert!((total[q.steps.start + oc] - factor * step * to_step).abs() < 1e-4);
            assert!((total[q.zeros.start + oc] - factor * 4.0 * to_zero).abs() < 1e-4);
            assert!(own.clone().all(|i| total[i] == if inside(i) { gradient[i] } else { 0.0 }));
        }
    }

    /// The gradient is that of a cost that is linear between levels, with the levels' shares as they are.
    #[test]
    fn coded_bits_pull_as_their_cost_falls() {
        let weights = random(60, 0.1);
        for symmetric in [true, false] {
            let (q, mut theta) = quantizer(form(3, Granularity::Channel, symmetric), &weights, 3);
            // First steps lay the largest weights on the last level, where the cost has an edge.
            theta[q.steps.clone()].iter_mut().for_each(|s| *s -= 0.1);
            let (levels, _) = q.levels(&theta, &weights, 3);
            let (slopes, sum) = Slopes::of(&levels);
            // The cost of one weight between its levels.
            let cost = |theta: &[f32], i: usize| {
                let (step, lo, hi) = q.scale(theta, i / 20);
                let v = (theta[i] / step).clamp(lo as f32, hi as f32);
                let whole: f32 = (lo..v.floor() as i32).map(|n| slopes.at(n as f32)).sum();
                whole + (v - v.floor()) * slopes.at(v)
            };
            let mut total = vec![0.0; theta.len()];
            assert_eq!(q.add_rate(&theta, 0..60, 3, 0.5, &mut total), sum);
            let numeric = |k: usize, of: &dyn Fn(&[f32]) -> f32| {
                let moved = |d: f32| {
                    let mut theta = theta.clone();
                    theta[k] += d;
                    of(&theta)
                };
                (moved(1e-3) - moved(-1e-3)) / 2e-3
            };
            for i in 0..60 {
                let found = numeric(i, &|theta| 0.5 * cost(theta, i));
                assert!((found - total[i]).abs() < 0.05 * (1.0 + found.abs()), "{i}: {found} {}", total[i]);
            }
            let factor = 1.0 / (20.0f32 * 4.0).sqrt();
            for oc in 0..3 {
                let of = |theta: &[f32]| (oc * 20..(oc + 1) * 20).map(|i| 0.5 * factor * cost(theta, i)).sum();
                let (found, own) = (numeric(q.steps.start + oc, &of), total[q.steps.start + oc]);
                assert!((found - own).abs() < 0.05 * (1.0 + found.abs()), "step {oc}: {found} {own}");
            }
            assert!(q.zeros.clone().all(|i| total[i] == 0.0));
        }
    }
}
