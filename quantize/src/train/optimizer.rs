//! Steps on the flat parameter vector: SGD with momentum and AdamW, gradient clipping, and the learning rate over time.

use serde::{Deserialize, Serialize};

/// Rule of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// `v = momentum v + g; theta -= rate v`.
    Sgd {
        /// Share of the last step that goes on.
        momentum: f32,
    },
    /// Adam with decoupled weight decay (Loshchilov, Hutter 2019), `beta = 0.9, 0.999`.
    #[serde(rename = "adamw")]
    AdamW,
}

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// What a rule remembers.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    rule: Rule,
    /// Momentum, or Adam's first moment.
    pub first: Vec<f32>,
    /// Adam's second moment; empty for SGD.
    pub second: Vec<f32>,
    /// Steps so far.
    pub steps: u64,
}

impl Optimizer {
    /// Nothing remembered yet.
    pub fn new(rule: Rule, len: usize) -> Optimizer {
        let second = if matches!(rule, Rule::AdamW) { vec![0.0; len] } else { Vec::new() };
        Optimizer { rule, first: vec![0.0; len], second, steps: 0 }
    }

    /// One step. `decay[i]` is the weight decay of parameter `i`.
    pub fn step(&mut self, theta: &mut [f32], gradient: &[f32], rate: f32, decay: &[f32]) {
        self.steps += 1;
        match self.rule {
            Rule::Sgd { momentum } => {
                for (((t, g), v), d) in theta.iter_mut().zip(gradient).zip(&mut self.first).zip(decay) {
                    *v = momentum * *v + g + d * *t;
                    *t -= rate * *v;
                }
            }
            Rule::AdamW => {
                let corrected = rate * self.bias_correction();
                let slots = self.first.iter_mut().zip(&mut self.second);
                for (((t, g), (m, s)), d) in theta.iter_mut().zip(gradient).zip(slots).zip(decay) {
                    *m += (1.0 - BETA1) * (g - *m);
                    *s += (1.0 - BETA2) * (g * g - *s);
                    *t -= corrected * *m / (s.sqrt() + EPSILON) + rate * d * *t;
                }
            }
        }
    }

    fn bias_correction(&self) -> f32 {
        let n = self.steps.min(i32::MAX as u64) as i32;
        (1.0 - BETA2.powi(n)).sqrt() / (1.0 - BETA1.powi(n))
    }

    /// The diagonal metric of the last step: what the gradient was divided by, per parameter. Empty for SGD, whose metric is 1.
    pub fn metric(&self) -> Vec<f32> {
        let correction = self.bias_correction();
        self.second.iter().map(|s| (s.sqrt() + EPSILON) / correction).collect()
    }
}

/// Scales a gradient down to a largest norm; returns the norm it had.
pub fn clip(gradient: &mut [f32], largest: f32) -> f32 {
    let norm = gradient.iter().map(|&g| g as f64 * g as f64).sum::<f64>().sqrt() as f32;
    if norm > largest {
        let factor = largest / norm;
        gradient.iter_mut().for_each(|g| *g *= factor);
    }
    norm
}

/// Share of the full learning rate at `done` (0 to 1) of the steps: a linear rise over `warmup`, then half a cosine down to zero.
pub fn cosine(done: f64, warmup: f64) -> f64 {
    if done < warmup {
        return done / warmup;
    }
    let t = ((done - warmup) / (1.0 - warmup).max(1e-9)).min(1.0);
    0.5 * (1.0 + (std::f64::consts::PI * t).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both rules find the minimum of `sum a_i (x_i - 1)^2`.
    #[test]
    fn quadratic() {
        for (rule, rate) in [(Rule::Sgd { momentum: 0.9 }, 0.02), (Rule::AdamW, 0.05)] {
            let curvature = [1.0f32, 4.0, 0.5];
            let mut x = vec![0.0f32; 3];
            let mut optimizer = Optimizer::new(rule, 3);
            for i in 0..600 {
                let gradient: Vec<f32> = x.iter().zip(curvature).map(|(x, a)| 2.0 * a * (x - 1.0)).collect();
                optimizer.step(&mut x, &gradient, rate * cosine(i as f64 / 600.0, 0.05) as f32, &[0.0; 3]);
            }
            assert!(x.iter().all(|v| (v - 1.0).abs() < 1e-2), "{rule:?}: {x:?}");
        }
    }

    #[test]
    fn schedule_and_clip() {
        assert_eq!(cosine(0.0, 0.0), 1.0);
        assert_eq!(cosine(0.05, 0.1), 0.5);
        assert!(cosine(1.0, 0.1) < 1e-9);
        let mut g = vec![3.0, 4.0];
        assert_eq!(clip(&mut g, 1.0), 5.0);
        assert!((g[0] - 0.6).abs() < 1e-6 && (g[1] - 0.8).abs() < 1e-6);
    }
}
