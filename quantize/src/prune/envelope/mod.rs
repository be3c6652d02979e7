//! The Weighted Group Sparse Envelope Function and its proximal operator, in worst-case linear time.
//!
//! Groups `j` with norms `n_j >= 0`, weights `d_j > 0` of the quadratic, costs `c_j > 0`, budget `k`:
//!
//! `F(n) = 1/2 min { sum d_j n_j^2 / u_j : 0 <= u_j <= 1, sum c_j u_j <= k }`,
//!
//! for `c = 1` and an integer `k` the largest convex function below `1/2 sum d_j n_j^2` restricted to at most `k`
//! nonzero groups. Its conjugate is half the sum of the `k` largest `n_j^2 / d_j`. The proximal operator minimizes
//! `lambda F(p) + 1/2 sum h_j |p_j - t_j|^2` with a metric `h_j > 0`, constant within a group; it shortens every group
//! by a factor that depends on norms alone:
//!
//! `p_j = t_j h_j u_j / (lambda d_j + h_j u_j)`,  `u_j = clamp(eta n_j sqrt(lambda d_j / c_j) - lambda d_j / h_j, 0, 1)`.
//!
//! That is a soft threshold that follows the data, with at most the factor of a ridge. Both, value and operator, ask
//! for the `eta` where a nondecreasing, piecewise linear function `sum clamp(slope_j (eta - lo_j), 0, c_j)` reaches
//! `k`. The search bisects the breakpoints: each round takes a pivot, evaluates the function there, and drops the
//! groups that are linear on what remains. The pivot is the median of a sample; after a round that dropped less than a
//! quarter of the breakpoints it is their exact median, so that the work is linear whatever the norms are.
//!
//! One application leaves more than `k` groups unless `lambda` is large; `k` is reached over the steps of a training.
//! Norms are finite. Factors are less exact the larger `lambda d_j / h_j` is: at `1e9` half of the digits are left.

/// A number for all groups, or one for each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale<'a> {
    /// For all.
    Same(f64),
    /// For each; as long as the norms.
    Each(&'a [f64]),
}

impl Scale<'_> {
    #[inline]
    fn at(self, j: usize) -> f64 {
        match self {
            Scale::Same(value) => value,
            Scale::Each(values) => values[j],
        }
    }
}

/// What the groups count for; all positive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights<'a> {
    /// Weight in the quadratic: a group of norm `n` pulls like one of norm `n sqrt(d)`.
    pub d: Scale<'a>,
    /// Cost, in the unit of the budget `k`. Where costs differ, the function is a relaxation instead of the envelope.
    pub c: Scale<'a>,
    /// Metric of the proximal operator, for steps that differ from group to group.
    pub h: Scale<'a>,
}

impl Default for Weights<'_> {
    /// `k` counts groups, the step is the same for all.
    fn default() -> Self {
        Weights { d: Scale::Same(1.0), c: Scale::Same(1.0), h: Scale::Same(1.0) }
    }
}

/// What the proximal operator does to every group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prox {
    /// `p_j = factors[j] t_j`.
    pub factors: Vec<f64>,
    /// Water level `1 / eta`: group `j` vanishes if its norm is at most `tau sqrt(lambda d_j c_j) / h_j`. Zero if all
    /// fit the budget, infinite without a budget.
    pub tau: f64,
    /// Factors that are not zero, of groups whose norm is not zero.
    pub nonzero: usize,
    /// Groups looked at, counted once for every look: at most a constant times their number.
    pub visits: usize,
}

/// Value and slope of the envelope.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Envelope {
    /// `F`; infinite where a nonzero group has no budget.
    pub value: f64,
    /// A subgradient: `y_j = factors[j] theta_j`, zero for groups that are zero.
    pub factors: Vec<f64>,
    /// Water level: where `theta_j` is zero, every `y_j` up to the length `omega sqrt(d_j c_j)` is a subgradient too.
    pub omega: f64,
}

/// The envelope at groups of these norms.
pub fn value(norms: &[f64], weights: &Weights, k: f64) -> f64 {
    Solver::default().envelope(norms, weights, k).value
}

/// A subgradient of the envelope, and its value.
pub fn subgradient(norms: &[f64], weights: &Weights, k: f64) -> Envelope {
    let mut solver = Solver::default();
    solver.envelope(norms, weights, k);
    solver.envelope
}

/// The proximal operator on groups of these norms.
pub fn prox(norms: &[f64], weights: &Weights, k: f64, lambda: f64) -> Prox {
    let mut solver = Solver::default();
    solver.prox(norms, weights, k, lambda);
    solver.prox
}

/// The conjugate `F*` for costs of 1: half the sum of the `k` largest `n_j^2 / d_j`, the last one in part if `k` is no
/// integer.
pub fn conjugate(norms: &[f64], d: Scale, k: f64) -> f64 {
    let square = |j: usize| norms[j] * norms[j] / d.at(j);
    let all = || (0..norms.len()).map(square);
    if k >= norms.len() as f64 {
        return 0.5 * all().sum::<f64>();
    }
    if is_empty(k) {
        return 0.0;
    }
    let mut squares: Vec<f64> = all().collect();
    let last = nth_largest(&mut squares, k.ceil() as usize - 1);
    let above = || all().filter(|&s| s > last);
    0.5 * (above().sum::<f64>() + (k - above().count() as f64) * last)
}

/// The baseline: the proximal operator of `lambda sum sqrt(d_j) n_j`, as factors. Zero where `n_j / sqrt(d_j) <=
/// lambda`.
pub fn group_lasso_prox(norms: &[f64], d: Scale, lambda: f64) -> Vec<f64> {
    let factor = |(j, &n): (usize, &f64)| {
        let strength = n / d.at(j).sqrt();
        if strength > lambda { 1.0 - lambda / strength } else { 0.0 }
    };
    norms.iter().enumerate().map(factor).collect()
}

/// The smallest `lambda` with which [`group_lasso_prox`] leaves at most `k` groups: exactly `k`, unless groups tie or
/// are zero.
pub fn group_lasso_lambda(norms: &[f64], d: Scale, k: usize) -> f64 {
    if k >= norms.len() {
        return 0.0;
    }
    let mut strengths: Vec<f64> = norms.iter().enumerate().map(|(j, n)| n / d.at(j).sqrt()).collect();
    nth_largest(&mut strengths, k)
}

/// A budget that pays for nothing.
fn is_empty(k: f64) -> bool {
    k.is_nan() || k <= 0.0
}

/// The value that stands at `index` in descending order; linear time.
fn nth_largest(values: &mut [f64], index: usize) -> f64 {
    *values.select_nth_unstable_by(index, |a, b| b.total_cmp(a)).1
}

/// Buffers for a step after another without allocation.
#[derive(Clone, Debug, Default)]
pub struct Solver {
    lines: Vec<Line>,
    points: Vec<f64>,
    prox: Prox,
    envelope: Envelope,
}

impl Solver {
    /// The proximal operator on groups of these norms. Without a budget (`k <= 0`) all groups vanish; with `lambda <=
    /// 0` all stay.
    pub fn prox(&mut self, norms: &[f64], weights: &Weights, k: f64, lambda: f64) -> &Prox {
        let terms = Terms::new(weights, lambda.max(0.0));
        self.lines.clear();
        let mut cost = 0.0;
        for (j, &n) in norms.iter().enumerate().filter(|(_, n)| **n > 0.0) {
            let term = terms.at(j);
            let line = Line::new(n * term.slope, term.offset, term.cost);
            self.lines.extend((line.hi < f64::INFINITY).then_some(line));
            cost += term.cost;
        }
        let (eta, visits) = match () {
            _ if is_empty(k) => (0.0, 0),
            _ if lambda <= 0.0 || cost <= k => (f64::INFINITY, 0),
            _ => root(&mut self.lines, &mut self.points, k),
        };
        let mut nonzero = 0;
        self.prox.factors.clear();
        self.prox.factors.extend(norms.iter().enumerate().map(|(j, &n)| {
            let factor = if n > 0.0 { terms.at(j).factor(n, eta) } else { 0.0 };
            nonzero += usize::from(factor > 0.0);
            factor
        }));
        self.prox.nonzero = nonzero;
        self.prox.tau = 1.0 / eta;
        self.prox.visits = visits + 2 * norms.len();
        &self.prox
    }

    /// Value and subgradient at groups of these norms; the metric has no part in it.
    pub fn envelope(&mut self, norms: &[f64], weights: &Weights, k: f64) -> &Envelope {
        let Weights { d, c, .. } = *weights;
        self.lines.clear();
        let (mut cost, mut least) = (0.0, f64::INFINITY);
        for (j, &n) in norms.iter().enumerate().filter(|(_, n)| **n > 0.0) {
            let line = Line::new(n * (d.at(j) * c.at(j)).sqrt(), 0.0, c.at(j));
            least = line.hi.recip().min(least);
            cost += c.at(j);
            self.lines.extend((line.hi < f64::INFINITY).then_some(line));
        }
        // A budget that is just spent lets zero groups resist as much as the weakest other one pulls.
        let omega = match () {
            _ if is_empty(k) || cost < k => 0.0,
            _ if cost == k => least,
            _ => root(&mut self.lines, &mut self.points, k).0.recip(),
        };
        let lacks = cost > 0.0 && is_empty(k);
        let slope =
            |(j, &n): (usize, &f64)| if n > 0.0 { d.at(j).max(omega * (d.at(j) * c.at(j)).sqrt() / n) } else { 0.0 };
        let own = &mut self.envelope;
        own.factors.clear();
        own.factors.extend(norms.iter().enumerate().map(slope));
        own.omega = omega;
        own.value = if lacks {
            f64::INFINITY
        } else {
            0.5 * own.factors.iter().zip(norms).map(|(y, n)| y * n * n).sum::<f64>()
        };
        own
    }
}

/// Weights of a group as the proximal operator uses them: `c u = clamp(slope n eta - offset, 0, cost)`.
#[derive(Clone, Copy, Debug)]
struct Term {
    slope: f64,
    offset: f64,
    cost: f64,
}

impl Term {
    /// Of weights `d`, `c`, `h`.
    fn new(lambda: f64, d: f64, c: f64, h: f64) -> Term {
        let pull = lambda * d * c;
        Term { slope: pull.sqrt(), offset: pull / h, cost: c }
    }

    /// `h u / (lambda d + h u)`, where `eta` may be infinite.
    #[inline]
    fn factor(&self, n: f64, eta: f64) -> f64 {
        let line = if eta < f64::INFINITY { self.slope * n * eta - self.offset } else { self.cost };
        let share = line.max(0.0).min(self.cost);
        if share > 0.0 { share / (self.offset + share) } else { 0.0 }
    }
}

/// A term for all groups, computed once, or one for each.
enum Terms<'a> {
    Same(Term),
    Each(Weights<'a>, f64),
}

impl<'a> Terms<'a> {
    fn new(weights: &Weights<'a>, lambda: f64) -> Terms<'a> {
        match (weights.d, weights.c, weights.h) {
            (Scale::Same(d), Scale::Same(c), Scale::Same(h)) => Terms::Same(Term::new(lambda, d, c, h)),
            _ => Terms::Each(*weights, lambda),
        }
    }

    #[inline]
    fn at(&self, j: usize) -> Term {
        match self {
            Terms::Same(term) => *term,
            Terms::Each(Weights { d, c, h }, lambda) => Term::new(*lambda, d.at(j), c.at(j), h.at(j)),
        }
    }
}

/// `clamp(slope (x - lo), 0, cost)`, which is `cost` from `hi` on.
#[derive(Clone, Copy, Debug)]
struct Line {
    lo: f64,
    hi: f64,
    slope: f64,
    cost: f64,
}

impl Line {
    /// `clamp(slope x - offset, 0, cost)`.
    #[inline]
    fn new(slope: f64, offset: f64, cost: f64) -> Line {
        let per_slope = 1.0 / slope;
        Line { lo: offset * per_slope, hi: (offset + cost) * per_slope, slope, cost }
    }

    #[inline]
    fn at(&self, x: f64) -> f64 {
        (self.slope * (x - self.lo)).max(0.0).min(self.cost)
    }
}

/// Lines that are linear on what remains of the axis, summed: `constant + slope x - offset`.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    constant: f64,
    slope: f64,
    offset: f64,
}

/// Breakpoints in the sample that gives a pivot.
const SAMPLE: usize = 512;

/// Where the lines sum up to `k > 0`, which is less than the sum of their costs; and the lines looked at.
fn root(lines: &mut Vec<Line>, points: &mut Vec<f64>, k: f64) -> (f64, usize) {
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let (mut sum, mut breakpoints) = (Sum::default(), 2 * lines.len());
    let (mut visits, mut is_exact) = (0, false);
    while let Some(pivot) = pivot(lines, points, low, high, is_exact) {
        if sum.constant + sum.slope * pivot - sum.offset + total(lines, pivot) >= k {
            high = pivot;
        } else {
            low = pivot;
        }
        visits += lines.len() * if is_exact { 3 } else { 2 };
        let left = settle(lines, &mut sum, low, high);
        is_exact = left > breakpoints / 4 * 3;
        breakpoints = left;
    }
    // A sum that is constant there reaches `k` at the upper end only by rounding.
    let eta = if sum.slope > 0.0 { (k - sum.constant + sum.offset) / sum.slope } else { high };
    (eta.clamp(low, high), visits)
}

/// What the lines sum up to at `x`, in four sums that do not wait for each other.
fn total(lines: &[Line], x: f64) -> f64 {
    let fours = lines.chunks_exact(4);
    let rest: f64 = fours.remainder().iter().map(|line| line.at(x)).sum();
    let mut sums = [0.0; 4];
    fours.for_each(|four| (0..4).for_each(|i| sums[i] += four[i].at(x)));
    sums.iter().sum::<f64>() + rest
}

/// A breakpoint between `low` and `high`: the median of a sample or of all; none if none is there.
fn pivot(lines: &[Line], points: &mut Vec<f64>, low: f64, high: f64, is_exact: bool) -> Option<f64> {
    let mut collect = |stride: usize| {
        points.clear();
        let both = lines.iter().step_by(stride).flat_map(|line| [line.lo, line.hi]);
        points.extend(both.filter(|&x| low < x && x < high));
        let middle = points.len() / 2;
        (!points.is_empty()).then(|| nth_largest(points, middle))
    };
    let stride = lines.len() / (SAMPLE / 2);
    let sampled = if is_exact || stride < 2 { None } else { collect(stride) };
    sampled.or_else(|| collect(1))
}

/// Moves lines without a breakpoint between `low` and `high` to the sum; how many breakpoints are left. Free of
/// branches, as nothing predicts them.
fn settle(lines: &mut Vec<Line>, sum: &mut Sum, low: f64, high: f64) -> usize {
    let (mut kept, mut breakpoints) = (0, 0);
    for i in 0..lines.len() {
        let line = lines[i];
        let is_full = line.hi <= low;
        let is_linear = (line.lo <= low) & (line.hi >= high);
        let inside = usize::from((low < line.lo) & (line.lo < high)) + usize::from((low < line.hi) & (line.hi < high));
        sum.constant += when(is_full, line.cost);
        sum.slope += when(is_linear, line.slope);
        sum.offset += when(is_linear, line.slope * line.lo);
        lines[kept] = line;
        kept += usize::from(inside > 0);
        breakpoints += inside;
    }
    lines.truncate(kept);
    breakpoints
}

/// `value`, which is finite, or zero: a product, as compilers turn a choice into a branch.
#[inline]
fn when(holds: bool, value: f64) -> f64 {
    f64::from(u8::from(holds)) * value
}

#[cfg(test)]
mod tests;
