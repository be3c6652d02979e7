//! What a network costs with some groups gone.
//!
//! A layer with `t` taps, `i` inputs of a filter, `o` filters and `p` positions has `t i o` weights and takes `p t i o` MACs. A channel
//! that goes takes a row of the layers that make it and a column of those that read it, so what a group saves depends on which others
//! are gone; tiles of weight matrices save their own weights, and nothing else. Batch norms count nothing, because they fold into the
//! weights beside them.
//!
//! Bytes are those of int8 weights and 32-bit biases. A layer that lost blocks is stored as blocks, each with an index of two bytes, or
//! dense, whichever is smaller. Single weights save no MACs, and bytes only once a code compresses them; they count as if it did so ideally.
//!
//! Instructions are those that [`crate::cost`] predicts for int8 weights on a core, of layers with weights whose kernel it knows. There a channel saves
//! its outputs and patches beside its MACs, so that narrow layers are dearer than their MACs say.

use super::branches::branches;
use super::channels::{Channels, Reading, reading};
use super::groups::{Groups, Kind, fan_in};
use crate::cost::{CostTable, Features};
use crate::graph::{Graph, Node, Op, eval};
use pith::Isa;
use std::collections::BTreeSet;

/// Bytes of a kept block's index.
const INDEX_BYTES: u64 = 2;
/// Bytes of a bias.
const BIAS_BYTES: u64 = 4;

/// What a network takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Multiply-accumulates of one run.
    pub macs: u64,
    /// Weights, biases and PReLU slopes that remain.
    pub parameters: u64,
    /// What they take as int8 weights and 32-bit biases, indices of blocks included.
    pub weight_bytes: u64,
    /// Predicted instructions of layers on the core that [`Costs::on`] names, 0 without one.
    pub instructions: u64,
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// The number of groups.
    Groups,
    /// [`Cost::macs`].
    Macs,
    /// [`Cost::parameters`].
    Parameters,
    /// [`Cost::weight_bytes`].
    Bytes,
    /// [`Cost::instructions`].
    Instructions,
}

impl Budget {
    pub(super) fn of(self, cost: Cost, groups: usize) -> u64 {
        match self {
            Budget::Groups => groups as u64,
            Budget::Macs => cost.macs,
            Budget::Parameters => cost.parameters,
            Budget::Bytes => cost.weight_bytes,
            Budget::Instructions => cost.instructions,
        }
    }
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Budget::Groups => "groups",
            Budget::Macs => "MACs",
            Budget::Parameters => "parameters",
            Budget::Bytes => "weight bytes",
            Budget::Instructions => "instructions",
        })
    }
}

/// A node with weights, whole.
#[derive(Clone, Copy, Debug)]
struct Layer {
    /// Times that every weight multiplies.
    positions: u64,
    /// Weights of an input channel and a filter.
    taps: u64,
    /// 1 if filters have biases.
    bias: u64,
    full: Remaining,
    /// Its kernel's name in cost tables, empty if it has none.
    kernel: &'static str,
    /// Instructions of a MAC, an output, a byte of a patch, a position, a call.
    factors: Features,
}

/// What is left of a layer, or what a group takes from it.
#[derive(Clone, Copy, Debug, Default)]
struct Remaining {
    inputs: u64,
    outputs: u64,
    /// Single weights that are gone though their channels are there.
    lost: u64,
    /// Blocks that are gone.
    lost_blocks: u64,
}

impl Remaining {
    fn without(self, part: &Remaining) -> Remaining {
        Remaining {
            inputs: self.inputs - part.inputs,
            outputs: self.outputs - part.outputs,
            lost: self.lost + part.lost,
            lost_blocks: self.lost_blocks + part.lost_blocks,
        }
    }

    fn with(self, part: &Remaining) -> Remaining {
        Remaining {
            inputs: self.inputs + part.inputs,
            outputs: self.outputs + part.outputs,
            lost: self.lost - part.lost,
            lost_blocks: self.lost_blocks - part.lost_blocks,
        }
    }
}

/// What groups take from layers.
#[derive(Clone, Debug)]
pub struct Costs {
    kind: Kind,
    layers: Vec<Layer>,
    /// Blocks of every layer.
    blocks: Vec<u64>,
    /// Group `j` takes the parts `parts[starts[j]..starts[j + 1]]`: a layer and what goes.
    starts: Vec<usize>,
    parts: Vec<(usize, Remaining)>,
    /// Groups of which one stays, or a tensor would have no channels.
    tensors: Vec<Vec<usize>>,
}

/// What is left of every layer, kept up to date while groups go and return.
#[derive(Clone, Debug)]
pub(super) struct State {
    layers: Vec<Remaining>,
}

impl Costs {
    /// The costs of `graph`, whose groups these are.
    pub fn new(graph: &Graph, groups: &Groups) -> Costs {
        let mut index = vec![None; graph.nodes.len()];
        let mut layers = Vec::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            if let Some(layer) = layer(graph, node) {
                index[i] = Some(layers.len());
                layers.push(layer);
            }
        }
        let (parts, tensors) = match groups.kind {
            Kind::Filter | Kind::Channel => coupled_parts(graph, groups, &index),
            Kind::Depth => (branch_parts(graph, groups, &index, &layers), Vec::new()),
            Kind::Shape | Kind::Block { .. } | Kind::Weight => (tile_parts(graph, groups, &index), Vec::new()),
        };
        let mut costs = Costs {
            kind: groups.kind,
            blocks: vec![0; layers.len()],
            layers,
            starts: vec![0],
            parts: Vec::new(),
            tensors,
        };
        for own in parts {
            own.iter().for_each(|(layer, part)| costs.blocks[*layer] += part.lost_blocks);
            costs.parts.extend(own);
            costs.starts.push(costs.parts.len());
        }
        costs
    }

    /// The same, with the instructions of a core whose kernels were measured.
    pub fn on(mut self, isa: Option<Isa>) -> Costs {
        let table = isa.and_then(CostTable::of);
        for layer in &mut self.layers {
            layer.factors = table.and_then(|table| table.factors(layer.kernel)).unwrap_or_default();
        }
        self
    }

    /// What the network costs with these groups. Equal to the cost of the graph that [`super::remove::remove`] makes where groups are
    /// channels, but that a node which only several residual branches share is counted until they are removed.
    pub fn total(&self, kept: &[bool]) -> Cost {
        let mut kept = kept.to_vec();
        for tensor in &self.tensors {
            if let Some(&first) = tensor.first().filter(|_| tensor.iter().all(|&j| !kept[j])) {
                kept[first] = true;
            }
        }
        self.cost(&self.state(&kept))
    }

    /// What each group adds to the cost of the others that are kept, for those that are gone too. In groups that is 1.
    pub fn marginal(&self, kept: &[bool], budget: Budget) -> Vec<f64> {
        let state = self.state(kept);
        kept.iter().enumerate().map(|(j, &kept)| self.saving(&state, j, kept, budget) as f64).collect()
    }

    /// Number of groups.
    pub(super) fn groups(&self) -> usize {
        self.starts.len() - 1
    }

    /// What is left with these groups.
    pub(super) fn state(&self, kept: &[bool]) -> State {
        let mut state = State { layers: self.layers.iter().map(|l| l.full).collect() };
        (0..self.groups()).filter(|&j| !kept[j]).for_each(|j| self.take(&mut state, j));
        state
    }

    fn parts(&self, j: usize) -> &[(usize, Remaining)] {
        &self.parts[self.starts[j]..self.starts[j + 1]]
    }

    /// Group `j` goes.
    pub(super) fn take(&self, state: &mut State, j: usize) {
        self.parts(j).iter().for_each(|(l, part)| state.layers[*l] = state.layers[*l].without(part));
    }

    /// Group `j` returns.
    pub(super) fn put_back(&self, state: &mut State, j: usize) {
        self.parts(j).iter().for_each(|(l, part)| state.layers[*l] = state.layers[*l].with(part));
    }

    /// Cost of all layers.
    pub(super) fn cost(&self, state: &State) -> Cost {
        let mut total = Cost::default();
        for (l, remaining) in state.layers.iter().enumerate() {
            let mut cost = self.layer_cost(l, remaining);
            if let Kind::Block { .. } = self.kind {
                let full = self.layer_cost(l, &self.layers[l].full);
                cost.weight_bytes = cost.weight_bytes.min(full.weight_bytes - INDEX_BYTES * self.blocks[l]);
            }
            total.macs += cost.macs;
            total.parameters += cost.parameters;
            total.weight_bytes += cost.weight_bytes;
            total.instructions += cost.instructions;
        }
        total
    }

    /// Cost of one layer, stored as blocks if groups are such.
    fn layer_cost(&self, l: usize, r: &Remaining) -> Cost {
        let layer = &self.layers[l];
        let dense = layer.taps * r.inputs * r.outputs;
        let (weights, biases) = (dense - r.lost, layer.bias * r.outputs);
        let macs = layer.positions * if self.kind == Kind::Weight { dense } else { weights };
        let patch = if layer.taps > 1 { layer.positions * layer.taps * r.inputs } else { 0 };
        let features = [macs, layer.positions * r.outputs, patch, layer.positions, 1].map(|n| n as f64);
        // A layer without channels is none.
        let is_there = r.inputs > 0 && r.outputs > 0;
        let instructions = layer.factors.iter().zip(features).map(|(a, b)| a * b).sum::<f64>();
        Cost {
            instructions: if is_there { instructions.round() as u64 } else { 0 },
            macs,
            parameters: weights + biases,
            weight_bytes: weights + BIAS_BYTES * biases + INDEX_BYTES * (self.blocks[l] - r.lost_blocks),
        }
    }

    /// What every group of the whole network saves if it goes alone.
    pub(super) fn savings(&self, budget: Budget) -> Vec<u64> {
        let all = self.state(&vec![true; self.groups()]);
        (0..self.groups()).map(|j| self.saving(&all, j, true, budget)).collect()
    }

    /// What group `j` saves, or would save if it returned.
    pub(super) fn saving(&self, state: &State, j: usize, kept: bool, budget: Budget) -> u64 {
        if budget == Budget::Groups {
            return 1;
        }
        let saved = |(l, part): &(usize, Remaining)| {
            let with = if kept { state.layers[*l] } else { state.layers[*l].with(part) };
            let cost = |r: &Remaining| budget.of(self.layer_cost(*l, r), 0);
            cost(&with) - cost(&with.without(part))
        };
        self.parts(j).iter().map(saved).sum()
    }

    /// Groups of which one has to stay: those of a layer, and those that a tensor consists of.
    pub(super) fn floors(&self, groups: &Groups) -> Vec<Vec<usize>> {
        if self.kind == Kind::Depth {
            return Vec::new();
        }
        let mut layers = vec![Vec::new(); groups.layers.len()];
        groups.layer.iter().enumerate().for_each(|(j, &l)| layers[l].push(j));
        layers.into_iter().chain(self.tensors.iter().cloned()).collect()
    }
}

/// A node as a layer, if it multiplies or stores anything.
fn layer(graph: &Graph, node: &Node) -> Option<Layer> {
    let (weights, inputs, outputs, bias) = match &node.op {
        Op::Conv2d { weight, bias, .. }
        | Op::ConvTranspose2d { weight, bias, .. }
        | Op::Linear { weight, bias, .. } => (weight.len(), fan_in(&node.op), bias.len(), 1),
        Op::Affine { scale, .. } => (scale.len(), 1, scale.len(), 1),
        Op::PRelu { slope } => (slope.len(), 1, slope.len(), 0),
        _ => return None,
    };
    let macs = eval::macs(&node.op, graph.shape(*node.inputs.first()?), graph.shape(node.output));
    let kernel = match &node.op {
        Op::Conv2d { window, groups: 1, .. } if window.dilation == [1; 2] => "conv",
        Op::Conv2d { window, groups, .. } if *groups == outputs && inputs == 1 => match window.kernel {
            [3, 3] => "depthwise_3x3",
            _ => "depthwise",
        },
        Op::Conv2d { .. } => "conv_generic",
        Op::Linear { .. } => "linear",
        _ => "",
    };
    Some(Layer {
        kernel,
        factors: Features::default(),
        positions: macs / weights.max(1) as u64,
        taps: (weights / (inputs * outputs).max(1)) as u64,
        bias,
        full: Remaining { inputs: inputs as u64, outputs: outputs as u64, ..Remaining::default() },
    })
}

type Parts = Vec<Vec<(usize, Remaining)>>;

/// Channels: filters of the layers that make them, inputs of those that read them.
fn coupled_parts(graph: &Graph, groups: &Groups, index: &[Option<usize>]) -> (Parts, Vec<Vec<usize>>) {
    let channels = Channels::of(graph);
    let mut group = vec![None; channels.fixed.len()];
    for (j, class) in groups.classes(graph, &channels).into_iter().enumerate() {
        class.into_iter().for_each(|c| group[c] = Some(j));
    }
    let mut parts: Parts = vec![Vec::new(); groups.len()];
    let mut take = |layer: usize, classes: &[usize], one: Remaining| {
        for j in classes.iter().filter_map(|&c| group[c]) {
            match parts[j].last_mut().filter(|(last, _)| *last == layer) {
                Some((_, part)) => *part = part.with(&one),
                None => parts[j].push((layer, one)),
            }
        }
    };
    for (i, node) in graph.nodes.iter().enumerate() {
        let Some(layer) = index[i] else { continue };
        take(layer, &channels.classes[node.output.0], Remaining { outputs: 1, ..Remaining::default() });
        if reading(&node.op) == Reading::Mixed {
            take(layer, &channels.classes[node.inputs[0].0], Remaining { inputs: 1, ..Remaining::default() });
        }
    }
    let mut seen = BTreeSet::new();
    let whole = |classes: &Vec<usize>| classes.iter().map(|&c| group[c]).collect::<Option<Vec<usize>>>();
    let tensors =
        channels.classes.iter().filter_map(whole).filter(|t| !t.is_empty() && seen.insert(t.clone())).collect();
    (parts, tensors)
}

/// Branches: all filters of their layers.
fn branch_parts(graph: &Graph, groups: &Groups, index: &[Option<usize>], layers: &[Layer]) -> Parts {
    let mut parts: Parts = vec![Vec::new(); groups.len()];
    let nodes = groups.nodes(graph);
    for branch in branches(graph).0 {
        let own = (0..groups.len()).find(|&j| nodes[j].is_some_and(|i| branch.nodes.contains(&i)));
        let Some(j) = own else { continue };
        parts[j] = branch
            .nodes
            .iter()
            .filter_map(|&i| index[i])
            .map(|l| (l, Remaining { inputs: 0, ..layers[l].full }))
            .collect();
    }
    parts
}

/// Tiles: weights of one layer.
fn tile_parts(graph: &Graph, groups: &Groups, index: &[Option<usize>]) -> Parts {
    let block = u64::from(matches!(groups.kind, Kind::Block { .. }));
    let nodes = groups.nodes(graph);
    let part = |j: usize| {
        let layer = nodes[j].and_then(|i| index[i])?;
        Some((layer, Remaining { lost: groups.of(j).len() as u64, lost_blocks: block, ..Remaining::default() }))
    };
    (0..groups.len()).map(|j| part(j).into_iter().collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::networks::{Random, network};
    use super::super::remove::{mask, remove};
    use super::*;
    use crate::graph::Role;

    fn random_kept(r: &mut Random, groups: &Groups) -> Vec<bool> {
        let share = 2 + r.below(4);
        (0..groups.len()).map(|_| r.below(share) > 0).collect()
    }

    /// Counted in the graph itself; zeros count only if `dense`.
    fn counted(graph: &Graph, dense: bool) -> Cost {
        let mut cost = Cost::default();
        for node in &graph.nodes {
            let mut stays = 1.0;
            for (role, values) in node.op.parameters() {
                let here = values.iter().filter(|&&v| dense || v != 0.0).count() as u64;
                let bytes = match role {
                    Role::Weight => 1,
                    Role::Bias => 4,
                    Role::Slope => 1,
                    Role::Gamma | Role::Beta => 0,
                };
                if role == Role::Weight {
                    stays = here as f64 / values.len() as f64;
                }
                cost.parameters += if bytes > 0 { here } else { 0 };
                cost.weight_bytes += bytes * here;
            }
            let macs =
                node.inputs.first().map_or(0, |&x| eval::macs(&node.op, graph.shape(x), graph.shape(node.output)));
            cost.macs += (macs as f64 * stays).round() as u64;
        }
        cost
    }

    #[test]
    fn totals_are_those_of_the_removed_graph() {
        let mut r = Random(21);
        for case in 0..100 {
            let graph = network(&mut r);
            for kind in [Kind::Filter, Kind::Channel, Kind::Depth] {
                let Ok(groups) = Groups::find(&graph, kind) else { continue };
                let costs = Costs::new(&graph, &groups);
                let none = vec![false; groups.len()];
                for kept in [random_kept(&mut r, &groups), random_kept(&mut r, &groups), none] {
                    let removed = remove(graph.clone(), &groups, &kept);
                    assert_eq!(costs.total(&kept), counted(&removed, true), "case {case}, {kind}");
                }
            }
        }
    }

    #[test]
    fn totals_of_tiles_count_what_is_not_zero() {
        let mut r = Random(22);
        for case in 0..60 {
            let mut graph = network(&mut r);
            graph.set_theta(&vec![1.0; graph.theta().len()]);
            for kind in [Kind::Shape, Kind::Block { rows: 2, cols: 4 }, Kind::Weight] {
                let Ok(groups) = Groups::find(&graph, kind) else { continue };
                let costs = Costs::new(&graph, &groups);
                let kept = random_kept(&mut r, &groups);
                let (got, all) = (costs.total(&kept), counted(&graph, true));
                let mut expected = counted(&mask(graph.clone(), &groups, &kept), false);
                match kind {
                    Kind::Weight => expected.macs = all.macs,
                    // A layer of blocks has an index, if it is not smaller without.
                    Kind::Block { .. } => {
                        let blocks = kept.iter().filter(|&&k| k).count() as u64;
                        let range = expected.weight_bytes..=all.weight_bytes.min(expected.weight_bytes + 2 * blocks);
                        assert!(range.contains(&got.weight_bytes), "case {case}: {} in {range:?}", got.weight_bytes);
                        expected.weight_bytes = got.weight_bytes;
                    }
                    _ => {}
                }
                assert_eq!(got, expected, "case {case}, {kind}");
                assert_eq!(costs.total(&vec![true; groups.len()]), all, "case {case}, {kind}");
            }
        }
    }

    #[test]
    fn instructions_are_those_of_the_table() {
        let mut r = Random(24);
        for _ in 0..20 {
            let graph = network(&mut r);
            let Ok(groups) = Groups::find(&graph, Kind::Filter) else { continue };
            let costs = Costs::new(&graph, &groups).on(Some(Isa::ArmDsp));
            let whole = costs.total(&vec![true; groups.len()]);
            let kept = random_kept(&mut r, &groups);
            let less = costs.total(&kept);
            assert!(0 < less.instructions && less.instructions <= whole.instructions);
            // Of the removed graph it is the same.
            let removed = remove(graph.clone(), &groups, &kept);
            let groups = Groups::find(&removed, Kind::Filter).unwrap();
            let costs = Costs::new(&removed, &groups).on(Some(Isa::ArmDsp));
            assert_eq!(costs.total(&vec![true; groups.len()]).instructions, less.instructions);
            assert_eq!(costs.on(None).total(&vec![true; groups.len()]).instructions, 0);
        }
    }

    #[test]
    fn marginal_costs_are_differences() {
        let mut r = Random(23);
        for _ in 0..40 {
            let graph = network(&mut r);
            for kind in [Kind::Filter, Kind::Channel, Kind::Shape, Kind::Depth] {
                let Ok(groups) = Groups::find(&graph, kind) else { continue };
                let costs = Costs::new(&graph, &groups);
                let kept = random_kept(&mut r, &groups);
                let marginal = costs.marginal(&kept, Budget::Macs);
                for j in (0..groups.len()).step_by(3) {
                    let with = |k: bool| {
                        let kept: Vec<bool> =
                            kept.iter().enumerate().map(|(i, &own)| if i == j { k } else { own }).collect();
                        costs.cost(&costs.state(&kept)).macs
                    };
                    assert_eq!(marginal[j], (with(true) - with(false)) as f64, "{kind}");
                }
            }
        }
    }
}
