//! Which groups a budget keeps.
//!
//! The group with the least score goes first, over and over, until the budget is met; then groups that still fit return, the best
//! first. Where nothing could be computed without it, one group stays: of every layer, and of every tensor.

use super::cost::{Budget, Costs, State};
use super::groups::{Groups, Kind};
use pith::Isa;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// How much is to be kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// So many groups of the whole network.
    Groups(usize),
    /// All but this share of the groups of the whole network.
    Sparsity(f64),
    /// All but this share of the groups of every layer, see [`kept_per_layer`].
    PerLayer(f64),
    /// At most this share of the MACs.
    MacsShare(f64),
    /// At most so many MACs.
    Macs(u64),
    /// At most this share of the parameters.
    ParametersShare(f64),
    /// At most so many parameters.
    Parameters(u64),
    /// At most so many bytes of weights.
    Bytes(u64),
    /// At most this share of the predicted instructions on a core.
    InstructionsShare(f64, Isa),
    /// At most so many predicted instructions on a core.
    Instructions(u64, Isa),
}

impl Target {
    /// What is limited.
    pub fn budget(&self) -> Budget {
        match self {
            Target::Groups(_) | Target::Sparsity(_) | Target::PerLayer(_) => Budget::Groups,
            Target::MacsShare(_) | Target::Macs(_) => Budget::Macs,
            Target::ParametersShare(_) | Target::Parameters(_) => Budget::Parameters,
            Target::Bytes(_) => Budget::Bytes,
            Target::InstructionsShare(..) | Target::Instructions(..) => Budget::Instructions,
        }
    }

    /// The core whose instructions are limited.
    pub fn isa(&self) -> Option<Isa> {
        match *self {
            Target::InstructionsShare(_, isa) | Target::Instructions(_, isa) => Some(isa),
            _ => None,
        }
    }
}

/// Why a target cannot be met.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BudgetError {
    /// Below what is possible.
    #[error(
        "a budget of {wanted} {budget} cannot be met: {least} remain {why}; raise it or choose another kind of groups"
    )]
    Unreachable {
        /// What is limited.
        budget: Budget,
        /// The limit.
        wanted: u64,
        /// The smallest value that was found.
        least: u64,
        /// With what that is.
        why: &'static str,
    },
    /// A core whose instructions are not known.
    #[error(
        "no instructions were measured on this core; choose cortex-m0, -m3, -m4, -m7, -m33 or -m55, or a board with one"
    )]
    Core,
    /// Groups that leave holes in a layer, whose kernels were not measured.
    #[error(
        "no instructions are predicted for groups of the kind {kind}; choose filter, channel or depth, or another budget"
    )]
    Kernel {
        /// Which.
        kind: Kind,
    },
    /// A share that is none.
    #[error("{what} is {value}; choose {range}")]
    Share {
        /// Which.
        what: &'static str,
        /// What was given.
        value: f64,
        /// What is possible.
        range: &'static str,
    },
    /// Scores of another number of groups.
    #[error("{scores} scores for {groups} groups; give one per group")]
    Scores {
        /// Given.
        scores: usize,
        /// Needed.
        groups: usize,
    },
}

/// Groups that every layer keeps at this sparsity: the largest whole number that does not exceed it, but one at least. Residual branches
/// are counted over the network, in layers that may all go: the first `k` of the list are 1.
pub fn kept_per_layer(groups: &Groups, sparsity: f64) -> Result<Vec<usize>, BudgetError> {
    let sparsity = share("the sparsity", sparsity, sparsity < 1.0, "0 up to, but not, 1")?;
    let mut sizes = vec![0usize; groups.layers.len()];
    groups.layer.iter().for_each(|&l| sizes[l] += 1);
    let kept = |n: usize| floor((1.0 - sparsity) * n as f64) as usize;
    if groups.kind == Kind::Depth {
        let k = kept(groups.len());
        return Ok((0..sizes.len()).map(|l| usize::from(l < k)).collect());
    }
    Ok(sizes.into_iter().map(|n| kept(n).max(1)).collect())
}

fn share(what: &'static str, value: f64, fits: bool, range: &'static str) -> Result<f64, BudgetError> {
    let fits = fits && (0.0..=1.0).contains(&value);
    if fits { Ok(value) } else { Err(BudgetError::Share { what, value, range }) }
}

/// The integer below, if rounding has not made it of the integer itself.
fn floor(value: f64) -> u64 {
    (value + 1e-9 * value.max(1.0)).floor() as u64
}

/// The groups that stay: never more than the target, and none fewer where one could return. `score` says how much each is worth.
pub fn select(score: &[f64], costs: &Costs, target: Target, groups: &Groups) -> Result<Vec<bool>, BudgetError> {
    if score.len() != groups.len() || costs.groups() != groups.len() {
        return Err(BudgetError::Scores { scores: score.len(), groups: groups.len() });
    }
    let all = Selection::new(costs, groups);
    let budget = target.budget();
    let part = |what, f: f64| Ok(floor(share(what, f, true, "0 to 1")? * all.measure(budget) as f64));
    let limit = match target {
        Target::PerLayer(sparsity) if groups.kind != Kind::Depth => return per_layer(score, all, groups, sparsity),
        Target::PerLayer(s) | Target::Sparsity(s) => {
            let kept = 1.0 - share("the sparsity", s, true, "0 to 1")?;
            floor(kept * groups.len() as f64)
        }
        Target::Groups(k) => k as u64,
        Target::MacsShare(f) => part("the share of MACs", f)?,
        Target::ParametersShare(f) => part("the share of parameters", f)?,
        Target::InstructionsShare(f, _) => part("the share of instructions", f)?,
        Target::Macs(n) | Target::Parameters(n) | Target::Bytes(n) | Target::Instructions(n, _) => n,
    };
    if budget == Budget::Instructions && !matches!(groups.kind, Kind::Filter | Kind::Channel | Kind::Depth) {
        return Err(BudgetError::Kernel { kind: groups.kind });
    }
    if budget == Budget::Instructions && all.measure(budget) == 0 {
        return Err(BudgetError::Core);
    }
    let mut chosen = all.clone();
    if !chosen.lower(budget, limit, 0..groups.len(), |j, _| score[j]) {
        // By score it ended too high; by savings alone it ends lowest.
        chosen = all;
        if !chosen.lower(budget, limit, 0..groups.len(), |_, saving| -(saving as f64)) {
            let least = chosen.measure(budget);
            let why = match groups.kind {
                Kind::Depth => "without any residual branch",
                Kind::Weight if budget == Budget::Macs => "because single weights save no MACs",
                _ => "with one group in every layer",
            };
            return Err(BudgetError::Unreachable { budget, wanted: limit, least, why });
        }
    }
    chosen.fill(budget, limit, score);
    Ok(chosen.kept)
}

fn per_layer(score: &[f64], all: Selection<'_>, groups: &Groups, sparsity: f64) -> Result<Vec<bool>, BudgetError> {
    let mut chosen = all;
    let mut first = 0;
    for k in kept_per_layer(groups, sparsity)? {
        let count = groups.layer[first..].iter().take_while(|&&l| l == groups.layer[first]).count();
        let limit = chosen.count - (count - k);
        // A layer whose channels part into several tensors may keep one of each: then this ends above.
        chosen.lower(Budget::Groups, limit as u64, first..first + count, |j, _| score[j]);
        first += count;
    }
    Ok(chosen.kept)
}

/// A set of groups while it changes.
#[derive(Clone)]
struct Selection<'a> {
    costs: &'a Costs,
    state: State,
    kept: Vec<bool>,
    count: usize,
    /// By group: the sets that it belongs to, of which one group stays.
    sets: Vec<Vec<usize>>,
    /// By set: the groups that are kept.
    left: Vec<usize>,
}

/// Floats in their total order.
#[derive(PartialEq)]
struct Key(f64);

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Key) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl<'a> Selection<'a> {
    /// All groups.
    fn new(costs: &'a Costs, groups: &Groups) -> Selection<'a> {
        let kept = vec![true; groups.len()];
        let floors = costs.floors(groups);
        let mut sets = vec![Vec::new(); groups.len()];
        let mut left = Vec::new();
        for (set, mut members) in floors.into_iter().enumerate() {
            members.sort_unstable();
            members.dedup();
            members.iter().for_each(|&j| sets[j].push(set));
            left.push(members.len());
        }
        Selection { costs, state: costs.state(&kept), count: kept.len(), kept, sets, left }
    }

    fn measure(&self, budget: Budget) -> u64 {
        match budget {
            Budget::Groups => self.count as u64,
            _ => budget.of(self.costs.cost(&self.state), self.count),
        }
    }

    /// Groups of `among` go, the least key first, until the limit is met; false if that cannot be. A group's key may rise when others go.
    fn lower(
        &mut self,
        budget: Budget,
        limit: u64,
        among: std::ops::Range<usize>,
        key: impl Fn(usize, u64) -> f64,
    ) -> bool {
        let saving = |s: &Self, j: usize| s.costs.saving(&s.state, j, true, budget);
        let mut heap: BinaryHeap<Reverse<(Key, usize)>> =
            among.map(|j| Reverse((Key(key(j, saving(self, j))), j))).collect();
        while self.measure(budget) > limit {
            let Some(Reverse((seen, j))) = heap.pop() else { return false };
            if self.sets[j].iter().any(|&set| self.left[set] < 2) {
                continue;
            }
            let now = saving(self, j);
            let current = Key(key(j, now));
            if current > seen {
                heap.push(Reverse((current, j)));
            } else if now > 0 {
                self.drop(j);
            }
        }
        true
    }

    fn drop(&mut self, j: usize) {
        self.costs.take(&mut self.state, j);
        self.kept[j] = false;
        self.count -= 1;
        self.sets[j].iter().for_each(|&set| self.left[set] -= 1);
    }

    /// Groups that fit return, the best first.
    fn fill(&mut self, budget: Budget, limit: u64, score: &[f64]) {
        let mut gone: Vec<usize> = (0..self.kept.len()).filter(|&j| !self.kept[j]).collect();
        gone.sort_by(|&a, &b| score[b].total_cmp(&score[a]).then(a.cmp(&b)));
        for j in gone {
            self.costs.put_back(&mut self.state, j);
            self.count += 1;
            if self.measure(budget) > limit {
                self.costs.take(&mut self.state, j);
                self.count -= 1;
            } else {
                self.kept[j] = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::networks::{Random, network};
    use super::*;
    use crate::graph::Graph;

    const KINDS: [Kind; 6] =
        [Kind::Filter, Kind::Channel, Kind::Shape, Kind::Block { rows: 2, cols: 4 }, Kind::Depth, Kind::Weight];

    /// Groups, costs and norms of random networks.
    fn cases(seed: u32, count: usize, mut check: impl FnMut(&Graph, &Groups, &Costs, &[f64])) {
        let mut r = Random(seed);
        for _ in 0..count {
            let graph = network(&mut r);
            for kind in KINDS {
                if let Ok(groups) = Groups::find(&graph, kind) {
                    let costs = Costs::new(&graph, &groups).on(Some(Isa::ArmDsp));
                    check(&graph, &groups, &costs, &groups.norms(&graph.theta()));
                }
            }
        }
    }

    fn count(kept: &[bool]) -> usize {
        kept.iter().filter(|&&k| k).count()
    }

    #[test]
    fn counts_of_groups_are_exact() {
        cases(31, 30, |_, groups, costs, score| {
            let kept = select(score, costs, Target::Sparsity(0.5), groups).unwrap();
            assert_eq!(count(&kept), groups.len() / 2);
            let kept = select(score, costs, Target::PerLayer(0.7), groups).unwrap();
            let per_layer = kept_per_layer(groups, 0.7).unwrap();
            if groups.kind == Kind::Depth {
                assert_eq!(count(&kept), per_layer.iter().sum::<usize>());
            } else {
                for (l, k) in per_layer.into_iter().enumerate() {
                    let left = (0..groups.len()).filter(|&j| kept[j] && groups.layer[j] == l).count();
                    // More only where the layer's channels part into two tensors.
                    assert!(left == k || (k == 1 && left == 2), "{left} of {k}");
                }
            }
            assert_eq!(count(&select(score, costs, Target::Groups(usize::MAX), groups).unwrap()), groups.len());
        });
    }

    #[test]
    fn budgets_are_met_and_used() {
        let (mut met, mut refused, mut used) = (0, 0, 0.0);
        cases(32, 30, |graph, groups, costs, score| {
            let all = costs.total(&vec![true; groups.len()]);
            for (budget, target) in [
                (Budget::Macs, Target::MacsShare(0.5)),
                (Budget::Macs, Target::Macs(all.macs / 4)),
                (Budget::Parameters, Target::ParametersShare(0.3)),
                (Budget::Bytes, Target::Bytes(all.weight_bytes / 2)),
                (Budget::Instructions, Target::InstructionsShare(0.5, Isa::ArmDsp)),
            ] {
                let limit = match target {
                    Target::MacsShare(_) | Target::Bytes(_) | Target::InstructionsShare(..) => budget.of(all, 0) / 2,
                    Target::Macs(n) => n,
                    _ => (budget.of(all, 0) as f64 * 0.3) as u64,
                };
                match select(score, costs, target, groups) {
                    Ok(kept) => {
                        let got = budget.of(costs.total(&kept), 0);
                        assert!(got <= limit, "{} {budget}: {got} of {limit}", groups.kind);
                        let channels = matches!(groups.kind, Kind::Filter | Kind::Channel);
                        if channels && budget == Budget::Macs {
                            let removed = super::super::remove::remove(graph.clone(), groups, &kept);
                            let macs = |n: &crate::graph::Node| {
                                let x = n.inputs.first().map_or(&[][..], |&x| removed.shape(x));
                                crate::graph::eval::macs(&n.op, x, removed.shape(n.output))
                            };
                            assert_eq!(removed.nodes.iter().map(macs).sum::<u64>(), got);
                        }
                        // Nothing that is gone would still fit.
                        for j in (0..groups.len()).filter(|&j| !kept[j]).take(20) {
                            let mut more = kept.clone();
                            more[j] = true;
                            assert!(budget.of(costs.total(&more), 0) > limit);
                        }
                        met += 1;
                        used += got as f64 / limit as f64;
                    }
                    Err(BudgetError::Unreachable { wanted, least, .. }) => {
                        assert!(wanted == limit && least > limit);
                        refused += 1;
                    }
                    Err(BudgetError::Kernel { kind }) => {
                        assert!(
                            budget == Budget::Instructions
                                && ![Kind::Filter, Kind::Channel, Kind::Depth].contains(&kind)
                        );
                    }
                    Err(e) => panic!("{e}"),
                }
            }
        });
        println!("{met} budgets met with {:.3} of them used, {refused} refused", used / met as f64);
        assert!(met > 300, "{met} met, {refused} refused");
    }

    #[test]
    fn every_layer_keeps_a_group_or_the_budget_is_refused() {
        cases(33, 20, |_, groups, costs, score| {
            let layers = if groups.kind == Kind::Depth { 0 } else { groups.layers.len() };
            let kept = select(score, costs, Target::Groups(layers), groups);
            match kept {
                Ok(kept) => assert!((0..layers).all(|l| (0..groups.len()).any(|j| kept[j] && groups.layer[j] == l))),
                // A tensor that is part of a layer's channels may need one of its own.
                Err(BudgetError::Unreachable { least, .. }) => assert!(least as usize > layers),
                Err(e) => panic!("{e}"),
            }
            if layers > 0 {
                let refused = select(score, costs, Target::Groups(layers - 1), groups).unwrap_err().to_string();
                assert!(refused.contains("with one group in every layer"), "{refused}");
            }
        });
    }

    #[test]
    fn bad_numbers_are_refused() {
        cases(34, 1, |_, groups, costs, score| {
            let error = |target| select(score, costs, target, groups).unwrap_err().to_string();
            assert_eq!(error(Target::MacsShare(1.5)), "the share of MACs is 1.5; choose 0 to 1");
            let holes = !matches!(groups.kind, Kind::Filter | Kind::Channel | Kind::Depth);
            let on = |isa| error(Target::Instructions(0, isa));
            assert_eq!(on(Isa::ArmDsp).contains("no instructions are predicted"), holes, "{}", groups.kind);
            assert!(error(Target::Sparsity(f64::NAN)).contains("NaN"));
            assert!(error(Target::PerLayer(-0.1)).contains("-0.1"));
            assert!(select(&[1.0], costs, Target::Groups(1), groups).unwrap_err().to_string().contains("1 scores"));
        });
    }

    #[test]
    fn the_worst_go_first() {
        cases(35, 10, |_, groups, costs, score| {
            let kept = select(score, costs, Target::Sparsity(0.3), groups).unwrap();
            let best_gone = (0..groups.len()).filter(|&j| !kept[j]).map(|j| score[j]).fold(0.0, f64::max);
            let worse = (0..groups.len()).filter(|&j| kept[j] && score[j] < best_gone).count();
            // Only the last of a layer may stay though it is worse.
            assert!(worse <= groups.layers.len(), "{worse}");
        });
    }
}
