//! The properties that define the envelope, on random groups.

use super::{
    Line, Prox, Scale, Solver, Weights, conjugate, group_lasso_lambda, group_lasso_prox, prox, subgradient, value,
};
use crate::random::Random;

/// Norms of Gaussian groups with one weight.
fn gaussian(random: &mut Random, m: usize) -> Vec<f64> {
    (0..m).map(|_| f64::from(random.normal()).abs()).collect()
}

/// Positive numbers of different sizes.
fn positive(random: &mut Random, m: usize) -> Vec<f64> {
    (0..m).map(|_| f64::from(random.normal()).exp()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn scaled(norms: &[f64], prox: &Prox) -> Vec<f64> {
    norms.iter().zip(&prox.factors).map(|(n, f)| n * f).collect()
}

fn assert_close(a: f64, b: f64, tolerance: f64, what: &str) {
    assert!((a - b).abs() <= tolerance * (1.0 + a.abs().max(b.abs())), "{what}: {a} and {b}");
}

/// Random cases: norms of which some are zero, weights, costs, metric, a budget, a strength.
struct Case {
    norms: Vec<f64>,
    d: Vec<f64>,
    c: Vec<f64>,
    h: Vec<f64>,
    k: f64,
    lambda: f64,
}

impl Case {
    fn random(random: &mut Random, round: usize, m: usize) -> Case {
        let ones = || vec![1.0; m];
        let mut norms = gaussian(random, m);
        (0..m).for_each(|j| norms[j] *= f64::from(u8::from(random.below(6) > 0)));
        let d = if round.is_multiple_of(2) { ones() } else { positive(random, m) };
        let c = if (round / 2).is_multiple_of(2) { ones() } else { positive(random, m) };
        let h = if (round / 4).is_multiple_of(2) { ones() } else { positive(random, m) };
        let total: f64 = c.iter().sum();
        let k = if (round / 2).is_multiple_of(2) {
            (1 + random.below(m)) as f64
        } else {
            total * f64::from(random.uniform() + 0.01)
        };
        let lambda = 10f64.powf(f64::from(random.uniform()) * 5.0 - 3.0);
        Case { norms, d, c, h, k, lambda }
    }

    fn weights(&self) -> Weights<'_> {
        Weights { d: Scale::Each(&self.d), c: Scale::Each(&self.c), h: Scale::Each(&self.h) }
    }

    /// What the proximal operator minimizes.
    fn objective(&self, p: &[f64]) -> f64 {
        let far: f64 = (0..p.len()).map(|j| self.h[j] * (p[j] - self.norms[j]).powi(2)).sum();
        self.lambda * value(p, &self.weights(), self.k) + 0.5 * far
    }

    /// `F*` by its definition: the best budget of a sorted knapsack, which may take the last group in part.
    fn conjugate(&self, y: &[f64]) -> f64 {
        let gain = |j: &usize| y[*j] * y[*j] / self.d[*j];
        let mut order: Vec<usize> = (0..y.len()).collect();
        order.sort_by(|a, b| (gain(b) / self.c[*b]).total_cmp(&(gain(a) / self.c[*a])));
        let mut left = self.k;
        let mut sum = 0.0;
        for j in &order {
            let u = (left / self.c[*j]).clamp(0.0, 1.0);
            sum += u * gain(j);
            left -= u * self.c[*j];
        }
        0.5 * sum
    }
}

fn cases(seed: u64, rounds: usize, most: usize) -> impl Iterator<Item = (Case, Random)> {
    (0..rounds).map(move |round| {
        let mut random = Random::new(seed, round as u64);
        let m = 1 + random.below(most);
        (Case::random(&mut random, round, m), random)
    })
}

#[test]
fn a_subgradient_attains_fenchels_equality() {
    for (case, _) in cases(1, 400, 300) {
        let at = subgradient(&case.norms, &case.weights(), case.k);
        let y: Vec<f64> = at.factors.iter().zip(&case.norms).map(|(f, n)| f * n).collect();
        assert_close(at.value + case.conjugate(&y), dot(&case.norms, &y), 1e-12, "F + F* = <x, y>");
        assert_eq!(at.value, value(&case.norms, &case.weights(), case.k));
        if case.c.iter().all(|&c| c == 1.0) {
            assert_close(case.conjugate(&y), conjugate(&y, Scale::Each(&case.d), case.k), 1e-13, "conjugate");
        }
    }
}

#[test]
fn zero_groups_resist_up_to_the_water_level() {
    for (case, _) in cases(2, 200, 40) {
        let at = subgradient(&case.norms, &case.weights(), case.k);
        let mut y: Vec<f64> = at.factors.iter().zip(&case.norms).map(|(f, n)| f * n).collect();
        for j in (0..y.len()).filter(|&j| case.norms[j] == 0.0) {
            y[j] = at.omega * (case.d[j] * case.c[j]).sqrt();
        }
        assert_close(at.value + case.conjugate(&y), dot(&case.norms, &y), 1e-12, "F + F* = <x, y>");
    }
}

/// `F*` of the constraint itself, by going through all sets of `k` groups.
fn conjugate_of_sets(y: &[f64], d: &[f64], k: usize) -> f64 {
    let of = |set: u32| (0..y.len()).filter(|j| set >> j & 1 == 1).map(|j| 0.5 * y[j] * y[j] / d[j]).sum::<f64>();
    (0..1u32 << y.len()).filter(|set| set.count_ones() as usize == k).map(of).fold(0.0, f64::max)
}

/// The biconjugate is the largest `<x, y> - F*(y)`: the subgradient attains the value, and no other `y`, near or far,
/// exceeds it.
#[test]
fn the_value_is_the_biconjugate_of_at_most_k_groups() {
    let mut random = Random::new(3, 0);
    for round in 0..200usize {
        let m = 2 + random.below(6);
        let k = 1 + random.below(m);
        let norms = gaussian(&mut random, m);
        let d = if round.is_multiple_of(2) { vec![1.0; m] } else { positive(&mut random, m) };
        let at = subgradient(&norms, &Weights { d: Scale::Each(&d), ..Weights::default() }, k as f64);
        let bound = |y: &[f64]| dot(&norms, y) - conjugate_of_sets(y, &d, k);
        let best: Vec<f64> = at.factors.iter().zip(&norms).map(|(f, n)| f * n).collect();
        assert_close(bound(&best), at.value, 1e-12, "attained");
        for _ in 0..200 {
            let width = 10f64.powi(1 - random.below(6) as i32);
            let y: Vec<f64> = best.iter().map(|y| y + width * f64::from(random.normal())).collect();
            assert!(bound(&y) <= at.value * (1.0 + 1e-12), "round {round}: {} above {}", bound(&y), at.value);
        }
    }
}

#[test]
fn the_operator_passes_fenchels_certificate() {
    for (case, _) in cases(4, 400, 300) {
        let p = scaled(&case.norms, &prox(&case.norms, &case.weights(), case.k, case.lambda));
        let q: Vec<f64> = (0..p.len()).map(|j| case.h[j] * (case.norms[j] - p[j]) / case.lambda).collect();
        let f = value(&p, &case.weights(), case.k);
        assert_close(f + case.conjugate(&q), dot(&p, &q), 1e-10, "F(p) + F*(q) = <p, q>");
    }
}

#[test]
fn nothing_near_the_operator_is_better() {
    for (case, mut random) in cases(5, 60, 12) {
        let p = scaled(&case.norms, &prox(&case.norms, &case.weights(), case.k, case.lambda));
        let least = case.objective(&p);
        for _ in 0..100 {
            let width = 10f64.powi(-(random.below(6) as i32));
            let near: Vec<f64> = p.iter().map(|p| (p + width * f64::from(random.normal())).abs()).collect();
            assert!(case.objective(&near) >= least * (1.0 - 1e-12), "{} below {least}", case.objective(&near));
        }
    }
}

/// The root by sorting all breakpoints.
fn sorted_root(lines: &[Line], k: f64) -> f64 {
    let sum = |x: f64| lines.iter().map(|line| line.at(x)).sum::<f64>();
    let mut points: Vec<f64> = lines.iter().flat_map(|line| [line.lo, line.hi]).collect();
    points.sort_by(f64::total_cmp);
    let above = points.partition_point(|&x| sum(x) < k);
    let (low, high) = (if above > 0 { points[above - 1] } else { 0.0 }, points[above]);
    low + (high - low) * (k - sum(low)) / (sum(high) - sum(low))
}

#[test]
fn the_linear_search_finds_what_a_sorted_one_finds() {
    let mut random = Random::new(6, 0);
    for round in 0..120usize {
        let m = 1 + random.below(3000);
        let mut norms = gaussian(&mut random, m);
        match round % 4 {
            1 => (0..m).for_each(|j| norms[j] = 1.5 * 0.99f64.powi(j as i32)),
            2 => norms.iter_mut().for_each(|n| *n = (*n * 2.0).ceil()),
            // What stands where a sample looks is far above all else.
            3 => norms.iter_mut().step_by((m / 256).max(1)).for_each(|n| *n *= 1e3),
            _ => (),
        }
        let (slope, offset) = if round.is_multiple_of(3) { (1.0, 0.0) } else { (0.5, 0.25) };
        let mut lines: Vec<Line> = norms.iter().map(|n| Line::new(n * slope, offset, 1.0)).collect();
        let k = f64::from(random.uniform()) * m as f64 * 0.99 + 1e-3;
        let expected = sorted_root(&lines, k);
        let (eta, visits) = super::root(&mut lines, &mut Vec::new(), k);
        assert!((eta / expected - 1.0).abs() < 1e-11, "round {round}: {eta} and {expected}");
        assert!(visits <= 12 * m, "round {round}: {visits} visits of {m} groups");
    }
}

#[test]
fn a_budget_for_all_groups_is_a_ridge() {
    let norms = [0.3, 0.0, 2.0, 1e-9];
    for k in [3.0, 3.5, 1e9] {
        let all = prox(&norms, &Weights::default(), k, 0.5);
        assert_eq!((all.factors, all.nonzero, all.tau), (vec![1.0 / 1.5, 0.0, 1.0 / 1.5, 1.0 / 1.5], 3, 0.0));
        assert_close(value(&norms, &Weights::default(), k), 0.5 * dot(&norms, &norms), 1e-15, "ridge");
    }
}

#[test]
fn edges() {
    let one = Weights::default();
    assert_eq!(prox(&[], &one, 1.0, 1.0), Prox::default());
    assert_eq!(prox(&[0.0, 0.0], &one, 1.0, 1.0).factors, [0.0, 0.0]);
    let none = prox(&[1.0, 2.0], &one, 0.0, 1.0);
    assert_eq!((none.factors, none.tau, none.nonzero), (vec![0.0, 0.0], f64::INFINITY, 0));
    assert_eq!(prox(&[1.0, 2.0], &one, f64::NAN, 1.0).nonzero, 0);
    assert_eq!(prox(&[1.0, 0.0, 2.0], &one, 1.0, 0.0).factors, [1.0, 0.0, 1.0]);
    assert_eq!((value(&[1.0], &one, 0.0), value(&[0.0], &one, 0.0), value(&[], &one, 1.0)), (f64::INFINITY, 0.0, 0.0));
    // Less than one group, and groups that tie.
    assert_close(value(&[3.0, 4.0], &one, 0.5), 49.0, 1e-15, "half a group");
    assert_eq!(prox(&[1.0; 4], &one, 2.0, 1.0).factors, [1.0 / 3.0; 4]);
    assert!(prox(&[f64::MIN_POSITIVE, 1e300, 1.0], &one, 1.0, 1e-3).factors.iter().all(|f| f.is_finite()));
    assert_eq!(conjugate(&[1.0, 3.0, 2.0], Scale::Same(1.0), 1.5), 0.5 * (9.0 + 2.0));
}

#[test]
fn a_strong_pull_keeps_the_k_largest() {
    let mut random = Random::new(7, 0);
    let norms = gaussian(&mut random, 1000);
    let mut sorted = norms.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let lambda = 1e6;
    let top = prox(&norms, &Weights::default(), 100.0, lambda);
    for (n, f) in norms.iter().zip(&top.factors) {
        match n {
            _ if *n >= sorted[98] => assert_close(f * (1.0 + lambda), 1.0, 1e-6, "kept"),
            _ if *n < sorted[102] => assert_eq!(*f, 0.0),
            _ => (),
        }
    }
}

/// The counts of the derivation's own generator; another seed moves them by a few standard deviations at most.
#[test]
fn counts_of_nonzero_groups() {
    let mut random = Random::new(8, 0);
    let norms = gaussian(&mut random, 1000);
    let table = [(1e-3, 996), (1e-2, 934), (0.1, 666), (1.0, 243), (10.0, 121), (100.0, 102)];
    let mut last = usize::MAX;
    for (lambda, expected) in table {
        let count = prox(&norms, &Weights::default(), 100.0, lambda).nonzero;
        let spread = (3.0 * (expected as f64 * (1000 - expected) as f64 / 1000.0).sqrt()) as usize;
        assert!(count.abs_diff(expected) <= spread.min(40), "lambda {lambda}: {count}, expected {expected}");
        assert!((100..=last).contains(&count));
        last = count;
    }
}

#[test]
fn a_metric_that_is_the_same_for_all_is_another_lambda() {
    let mut random = Random::new(9, 0);
    let norms = gaussian(&mut random, 200);
    let with = |h: f64, lambda: f64| prox(&norms, &Weights { h: Scale::Same(h), ..Weights::default() }, 30.0, lambda);
    for (a, b) in with(4.0, 2.0).factors.iter().zip(with(1.0, 0.5).factors) {
        assert_close(*a, b, 1e-13, "factor");
    }
}

#[test]
fn a_solver_forgets_what_it_solved() {
    let mut solver = Solver::default();
    for (case, _) in cases(10, 40, 50) {
        assert_eq!(
            *solver.prox(&case.norms, &case.weights(), case.k, case.lambda),
            prox(&case.norms, &case.weights(), case.k, case.lambda)
        );
        assert_eq!(
            *solver.envelope(&case.norms, &case.weights(), case.k),
            subgradient(&case.norms, &case.weights(), case.k)
        );
    }
}

#[test]
fn group_lasso_leaves_the_groups_that_were_asked_for() {
    let mut random = Random::new(11, 0);
    let norms = gaussian(&mut random, 500);
    let d = positive(&mut random, 500);
    for k in [0, 1, 250, 499, 500, 600] {
        let lambda = group_lasso_lambda(&norms, Scale::Each(&d), k);
        let factors = group_lasso_prox(&norms, Scale::Each(&d), lambda);
        assert_eq!(factors.iter().filter(|f| **f > 0.0).count(), k.min(500));
    }
    assert_eq!(group_lasso_prox(&[1.0, 3.0], Scale::Same(4.0), 1.0), [0.0, 1.0 - 1.0 / 1.5]);
}
