//! Which channels of which tensors live and die together.
//!
//! Every tensor has one channel axis, the last one unless a transpose or reshape moved it. Element-wise operators, pools, depthwise
//! convolutions, additions and concatenations tie channels of their inputs to channels of their output; convolutions and linear layers
//! mix their inputs and make fresh channels. The channels that are tied, over any number of tensors, are a *class*: if one goes, all go.
//! Flattening ties one channel to many columns.
//!
//! A class is *fixed* if one of its channels is an input or output of the network, or is read by an operator that cannot lose it.
//! It is *silent* if every channel of it that a mixing layer reads is exactly zero once its filters, biases, batch norms and slopes are.

use crate::graph::{BinaryKind, Graph, Node, Op, TensorId};

/// The classes of a graph.
#[derive(Clone, Debug)]
pub(super) struct Channels {
    /// Channel axis of every tensor.
    pub axis: Vec<usize>,
    /// Classes of the channels of every tensor, along its axis; empty for tensors that nothing makes.
    pub classes: Vec<Vec<usize>>,
    /// By class: what it is tied to that cannot go, if anything.
    pub fixed: Vec<Option<String>>,
    /// By class: what it would do even if its parameters were zero, if anything.
    pub sounds: Vec<Option<String>>,
}

/// How an operator with weights reads its input channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Every output from all of them.
    Mixed,
    /// Groups of outputs from groups of inputs; depthwise has groups of one.
    Grouped(usize),
    /// It has no weights.
    None,
}

/// How `op` reads its input channels.
pub(super) fn reading(op: &Op) -> Reading {
    match op {
        Op::Conv2d { groups, .. } | Op::ConvTranspose2d { groups, .. } if *groups > 1 => Reading::Grouped(*groups),
        Op::Conv2d { .. } | Op::ConvTranspose2d { .. } | Op::Linear { .. } => Reading::Mixed,
        _ => Reading::None,
    }
}

impl Channels {
    /// The classes of `graph`.
    pub fn of(graph: &Graph) -> Channels {
        let count = graph.tensors.len();
        let mut ties = Ties { graph, made: vec![None; count], parent: Vec::new(), zero: Vec::new(), fixed: Vec::new() };
        for port in &graph.inputs {
            ties.make(port.tensor, last_axis(graph, port.tensor));
            ties.fix(port.tensor, || format!("the input '{}'", port.name));
        }
        graph.nodes.iter().for_each(|node| ties.visit(node));
        for port in &graph.outputs {
            ties.fix(port.tensor, || format!("the output '{}'", port.name));
        }
        ties.resolve()
    }

    /// Class of channel `c` of a tensor.
    pub fn class(&self, tensor: TensorId, c: usize) -> Option<usize> {
        self.classes[tensor.0].get(c).copied()
    }

    /// Takes back what would leave a tensor without channels: the first one stays, as zeros.
    pub fn keep_one(&self, gone: &mut [bool]) {
        for classes in &self.classes {
            if let Some(&first) = classes.first().filter(|_| classes.iter().all(|&c| gone[c])) {
                gone[first] = false;
            }
        }
    }

    /// The channels of a tensor that stay.
    pub fn kept(&self, tensor: TensorId, gone: &[bool]) -> Vec<usize> {
        let classes = &self.classes[tensor.0];
        (0..classes.len()).filter(|&c| !gone[classes[c]]).collect()
    }
}

fn last_axis(graph: &Graph, tensor: TensorId) -> usize {
    graph.shape(tensor).len().saturating_sub(1)
}

/// Where a tensor's channels stand in the list of all.
#[derive(Clone, Copy)]
struct Made {
    axis: usize,
    start: usize,
    count: usize,
}

/// The walk over the graph that joins channels.
struct Ties<'a> {
    graph: &'a Graph,
    made: Vec<Option<Made>>,
    /// Forest over all channels.
    parent: Vec<usize>,
    /// Whether a channel is zero when the parameters of its class are.
    zero: Vec<bool>,
    fixed: Vec<(Made, String)>,
}

const NOWHERE: Made = Made { axis: 0, start: 0, count: 0 };

impl Ties<'_> {
    /// Fresh channels for a tensor along `axis`.
    fn make(&mut self, tensor: TensorId, axis: usize) -> Made {
        let count = self.graph.shape(tensor).get(axis).copied().unwrap_or(1);
        let made = Made { axis, start: self.parent.len(), count };
        self.parent.extend(made.start..made.start + count);
        self.zero.resize(self.parent.len(), false);
        self.made[tensor.0] = Some(made);
        made
    }

    fn at(&self, tensor: TensorId) -> Made {
        self.made[tensor.0].unwrap_or(NOWHERE)
    }

    fn fix(&mut self, tensor: TensorId, why: impl Fn() -> String) {
        self.fixed.push((self.at(tensor), why()));
    }

    fn root(&mut self, mut i: usize) -> usize {
        while self.parent[i] != i {
            self.parent[i] = self.parent[self.parent[i]];
            i = self.parent[i];
        }
        i
    }

    /// The earlier root stays the root, so that classes are numbered in the order of the graph.
    fn tie(&mut self, i: usize, j: usize) {
        let (i, j) = (self.root(i), self.root(j));
        self.parent[i.max(j)] = i.min(j);
    }

    /// Output channel `c` is input channel `from(c)`, if any; it is zero where that is and `keeps(c)`.
    fn follow(&mut self, x: Made, y: Made, from: impl Fn(usize) -> Option<usize>, keeps: impl Fn(usize) -> bool) {
        for c in 0..y.count {
            if let Some(i) = from(c).filter(|&i| i < x.count) {
                self.tie(x.start + i, y.start + c);
                self.zero[y.start + c] = self.zero[x.start + i] && keeps(c);
            }
        }
    }

    /// Nothing that `node` reads or writes can go.
    fn refuse(&mut self, node: &Node) {
        if self.made[node.output.0].is_none() {
            self.make(node.output, last_axis(self.graph, node.output));
        }
        let why = || format!("'{}' ({}), which cannot lose channels", node.name, node.op.name());
        node.inputs.iter().chain([&node.output]).for_each(|&id| self.fix(id, why));
    }

    fn visit(&mut self, node: &Node) {
        let Some(&first) = node.inputs.first() else {
            self.make(node.output, last_axis(self.graph, node.output));
            return self.fix(node.output, || format!("the constant '{}'", node.name));
        };
        let x = self.at(first);
        let channels_last = x.axis == last_axis(self.graph, first);
        match &node.op {
            Op::Conv2d { clamp, .. } | Op::ConvTranspose2d { clamp, .. } | Op::Linear { clamp, .. }
                if channels_last =>
            {
                let y = self.make(node.output, last_axis(self.graph, node.output));
                self.zero[y.start..].fill(clamp.apply(0.0) == 0.0);
                if let Reading::Grouped(groups) = reading(&node.op) {
                    self.tie_groups(x, y, groups);
                }
            }
            Op::BatchNorm { .. } if channels_last => {
                let y = self.make(node.output, x.axis);
                self.follow(x, y, Some, |_| true);
                self.zero[y.start..].fill(true);
            }
            Op::PRelu { .. } if channels_last => self.same(node, x, |_| true),
            Op::Affine { bias, clamp, .. } if channels_last => self.same(node, x, |c| clamp.apply(bias[c]) == 0.0),
            Op::Map(f) => {
                let zero = f.eval(0.0) == 0.0;
                self.same(node, x, |_| zero);
            }
            Op::MaxPool(_) | Op::AveragePool { .. } | Op::Resize { .. } if channels_last => {
                self.same(node, x, |_| true)
            }
            Op::Mean { axes } if !axes.contains(&x.axis) => self.same(node, x, |_| true),
            Op::Pad { before, value, .. } => {
                let (zero, skip) = (*value == 0.0, before[x.axis]);
                let y = self.make(node.output, x.axis);
                self.zero[y.start..].fill(zero);
                self.follow(x, y, |c| c.checked_sub(skip), |_| zero);
            }
            Op::Slice { start, step, .. } if step[x.axis] == 1 => {
                let skip = start[x.axis];
                let y = self.make(node.output, x.axis);
                self.follow(x, y, |c| Some(c + skip), |_| true);
            }
            Op::Transpose { perm } => match perm.iter().position(|&p| p == x.axis) {
                Some(axis) => {
                    let y = self.make(node.output, axis);
                    self.follow(x, y, Some, |_| true);
                }
                None => self.refuse(node),
            },
            Op::Reshape { shape } => self.reshape(node, x, shape),
            Op::Concat { axis } => self.concat(node, *axis),
            Op::Binary { kind, clamp } => self.binary(node, *kind, clamp.apply(0.0) == 0.0),
            _ => self.refuse(node),
        }
    }

    fn same(&mut self, node: &Node, x: Made, keeps: impl Fn(usize) -> bool) {
        let y = self.make(node.output, x.axis);
        self.follow(x, y, Some, keeps);
    }

    /// All inputs and outputs of a group of a convolution are one.
    fn tie_groups(&mut self, x: Made, y: Made, groups: usize) {
        let (inputs, outputs) = (x.count / groups, y.count / groups);
        for group in 0..groups {
            let first = x.start + group * inputs;
            (first..first + inputs).for_each(|i| self.tie(first, i));
            (0..outputs).for_each(|o| self.tie(first, y.start + group * outputs + o));
        }
    }

    fn reshape(&mut self, node: &Node, x: Made, shape: &[usize]) {
        let from = self.graph.shape(node.inputs[0]);
        let inner: usize = from.get(x.axis + 1..).unwrap_or_default().iter().product();
        match reshaped_axis(inner, x.count, shape) {
            Some((axis, Cover::Output(run))) => {
                let y = self.make(node.output, axis);
                self.follow(x, y, |c| Some(c / run % x.count), |_| true);
            }
            Some((axis, Cover::Input(run))) => {
                let y = self.make(node.output, axis);
                self.zero[y.start..].fill(true);
                for i in 0..x.count {
                    let c = y.start + i / run % y.count;
                    self.tie(x.start + i, c);
                    self.zero[c] &= self.zero[x.start + i];
                }
            }
            None => self.refuse(node),
        }
    }

    fn concat(&mut self, node: &Node, axis: usize) {
        let parts: Vec<Made> = node.inputs.iter().map(|&id| self.at(id)).collect();
        let own = parts[0].axis;
        if parts.iter().any(|p| p.axis != own) {
            return self.refuse(node);
        }
        let y = self.make(node.output, own);
        self.zero[y.start..].fill(true);
        let mut offset = 0;
        for x in parts {
            for c in 0..x.count {
                self.tie(x.start + c, y.start + offset + c);
                self.zero[y.start + offset + c] &= self.zero[x.start + c];
            }
            offset += if axis == own { x.count } else { 0 };
        }
    }

    /// Operands whose channels meet are tied; one that is broadcast over channels only scales them.
    fn binary(&mut self, node: &Node, kind: BinaryKind, keeps: bool) {
        let rank = self.graph.shape(node.output).len();
        let operands: Vec<(TensorId, Made)> = node.inputs.iter().map(|&id| (id, self.at(id))).collect();
        let aligned = |id: TensorId, m: Made| m.axis + rank - self.graph.shape(id).len();
        let whole =
            |&&(id, m): &&(TensorId, Made)| m.count > 1 && m.count == self.graph.shape(node.output)[aligned(id, m)];
        let Some(axis) = operands.iter().find(whole).map(|&(id, m)| aligned(id, m)) else {
            return self.refuse(node);
        };
        let extent = self.graph.shape(node.output)[axis];
        let along = |id: TensorId| {
            let shape = self.graph.shape(id);
            (axis + shape.len()).checked_sub(rank).map_or(1, |i| shape[i])
        };
        // An operand that varies along the axis, but has its channels elsewhere, cannot be followed.
        if operands.iter().any(|&(id, m)| along(id) == extent && aligned(id, m) != axis) {
            return self.refuse(node);
        }
        let y = self.make(node.output, axis);
        let mul = kind == BinaryKind::Mul;
        self.zero[y.start..].fill(!mul);
        for (id, x) in operands {
            let meets = along(id) == extent;
            if !meets {
                self.fix(id, || format!("'{}', which broadcasts it over channels", node.name));
            }
            for c in 0..y.count {
                let zero = meets && self.zero[x.start + c];
                let own = &mut self.zero[y.start + c];
                *own = if mul { *own || zero } else { *own && zero };
                if meets {
                    self.tie(x.start + c, y.start + c);
                }
            }
        }
        self.zero[y.start..].iter_mut().for_each(|z| *z &= keeps);
    }

    /// Numbers the classes and says what holds them.
    fn resolve(mut self) -> Channels {
        let mut number = vec![usize::MAX; self.parent.len()];
        let mut count = 0;
        let mut class = vec![0; self.parent.len()];
        for (i, class) in class.iter_mut().enumerate() {
            let root = self.root(i);
            if number[root] == usize::MAX {
                number[root] = count;
                count += 1;
            }
            *class = number[root];
        }
        let mut fixed: Vec<Option<String>> = vec![None; count];
        for (made, why) in std::mem::take(&mut self.fixed) {
            for &c in &class[made.start..made.start + made.count] {
                fixed[c].get_or_insert_with(|| why.clone());
            }
        }
        let mut sounds: Vec<Option<String>> = vec![None; count];
        for node in self.graph.nodes.iter().filter(|n| reading(&n.op) == Reading::Mixed) {
            let x = self.at(node.inputs[0]);
            for i in (x.start..x.start + x.count).filter(|&i| !self.zero[i]) {
                let what = || format!("would feed '{}' a constant that is not zero", node.name);
                sounds[class[i]].get_or_insert_with(what);
            }
        }
        let of = |m: &Option<Made>| m.map_or(Vec::new(), |m| class[m.start..m.start + m.count].to_vec());
        Channels {
            axis: self.made.iter().map(|m| m.map_or(0, |m| m.axis)).collect(),
            classes: self.made.iter().map(of).collect(),
            fixed,
            sounds,
        }
    }
}

/// How the channel axes before and after a reshape contain each other.
enum Cover {
    /// The output's holds every channel many times, in runs of this length.
    Output(usize),
    /// The input's holds every output channel many times, in runs of this length.
    Input(usize),
}

/// The axis of `shape` that holds the channels of an axis of `count` elements with `inner` values after each.
fn reshaped_axis(inner: usize, count: usize, shape: &[usize]) -> Option<(usize, Cover)> {
    let axes: Vec<(usize, usize, usize)> =
        (0..shape.len()).map(|b| (b, shape[b], shape[b + 1..].iter().product())).collect();
    let covers = |inner: usize, n: usize, own: usize, m: usize| {
        inner.is_multiple_of(own) && (own * m).is_multiple_of(inner * n) && m > 0 && n > 0
    };
    let exact = axes.iter().rev().find(|&&(_, m, own)| m == count && own == inner);
    let output = axes.iter().rev().find(|&&(_, m, own)| m > 1 && covers(inner, count, own, m));
    let input = axes.iter().rev().find(|&&(_, m, own)| m > 1 && covers(own, m, inner, count));
    let found = exact.or(output).map(|&(b, _, own)| (b, Cover::Output(inner / own)));
    found.or(input.map(|&(b, _, own)| (b, Cover::Input(own / inner))))
}
