//! Groups of parameters that vanish together, named by what the hardware can skip.
//!
//! A group is a set of indices into the flat vector of [`crate::graph::Graph::theta`]; groups are disjoint. Lists are stored one
//! after another, because single weights make hundreds of thousands of groups.

use super::branches::branches;
use super::channels::{Channels, Reading, reading};
use crate::graph::{Graph, Op, Parameter, Role, TensorId};

/// What a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An output channel with everything that makes it: filters, biases, batch norms and PReLU slopes of all layers that are
    /// coupled by additions, depthwise layers, concatenations.
    Filter,
    /// All weights that read one input channel, of all layers that read the same coupled channel.
    Channel,
    /// One kernel position of one input channel, across all filters of a layer.
    Shape,
    /// `rows` filters by `cols` consecutive inputs of the weight matrix `[oc, kh kw ic]`, as a kernel skips them.
    Block {
        /// Filters.
        rows: usize,
        /// Consecutive weights of a filter.
        cols: usize,
    },
    /// A whole residual branch.
    Depth,
    /// A single weight.
    Weight,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kind::Filter => f.write_str("filter"),
            Kind::Channel => f.write_str("channel"),
            Kind::Shape => f.write_str("shape"),
            Kind::Block { rows, cols } => write!(f, "{rows}x{cols} block"),
            Kind::Depth => f.write_str("depth"),
            Kind::Weight => f.write_str("weight"),
        }
    }
}

/// As the command line writes it, where blocks are `block=1x4`.
impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        if let Some(size) = text.strip_prefix("block=") {
            let count = |t: &str| t.parse::<usize>().ok().filter(|n| (1..=64).contains(n));
            return match size.split_once('x').map(|(rows, cols)| (count(rows), count(cols))) {
                Some((Some(rows), Some(cols))) => Ok(Kind::Block { rows, cols }),
                _ => Err(format!("'{size}' is no block; write 1x4 or 2x4")),
            };
        }
        match text {
            "filter" => Ok(Kind::Filter),
            "channel" => Ok(Kind::Channel),
            "shape" => Ok(Kind::Shape),
            "block" => Ok(Kind::Block { rows: 1, cols: 4 }),
            "depth" => Ok(Kind::Depth),
            "weight" => Ok(Kind::Weight),
            _ => Err("choose filter, channel, shape, block=ROWSxCOLS, depth or weight".into()),
        }
    }
}

/// Why a network has no groups.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// Nothing can go.
    #[error("no {kind} group of this network can be removed: {why}; choose another kind of groups")]
    Nothing {
        /// What was asked for.
        kind: Kind,
        /// What holds each layer.
        why: String,
    },
    /// A block without elements.
    #[error("blocks of {rows} x {cols} weights; both numbers must be at least 1")]
    Block {
        /// Filters.
        rows: usize,
        /// Consecutive weights.
        cols: usize,
    },
}

/// Disjoint groups of parameters.
#[derive(Clone, Debug)]
pub struct Groups {
    /// What they are.
    pub kind: Kind,
    /// Names of the layers (first weighted node of a coupled set) that the groups belong to.
    pub layers: Vec<String>,
    /// Layer of every group, an index into `layers`; groups of a layer stand together.
    pub layer: Vec<usize>,
    /// Group `j` has the elements `elements[starts[j]..starts[j + 1]]`.
    pub starts: Vec<usize>,
    /// Indices into the flat parameter vector.
    pub elements: Vec<usize>,
}

impl Groups {
    /// Every group of this kind that can leave the graph.
    pub fn find(graph: &Graph, kind: Kind) -> Result<Groups, GroupError> {
        let groups = match kind {
            Kind::Filter | Kind::Channel => coupled(graph, kind),
            Kind::Block { rows, cols } if rows == 0 || cols == 0 => return Err(GroupError::Block { rows, cols }),
            Kind::Shape | Kind::Block { .. } | Kind::Weight => tiles(graph, kind),
            Kind::Depth => depth(graph),
        };
        if groups.is_empty() {
            return Err(GroupError::Nothing { kind, why: obstacles(graph, kind) });
        }
        Ok(groups)
    }

    fn new(kind: Kind) -> Groups {
        Groups { kind, layers: Vec::new(), layer: Vec::new(), starts: vec![0], elements: Vec::new() }
    }

    /// Appends a group to the last layer, or to a new one if that has another name.
    fn push(&mut self, layer: &str, elements: impl Iterator<Item = usize>) {
        if self.layers.last().is_none_or(|last| last != layer) {
            self.layers.push(layer.into());
        }
        self.layer.push(self.layers.len() - 1);
        self.elements.extend(elements);
        self.starts.push(self.elements.len());
    }

    /// Number of groups.
    pub fn len(&self) -> usize {
        self.layer.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.layer.is_empty()
    }

    /// Parameter indices of group `j`.
    pub fn of(&self, j: usize) -> &[usize] {
        &self.elements[self.starts[j]..self.starts[j + 1]]
    }

    /// Euclidean norm of every group.
    pub fn norms(&self, theta: &[f32]) -> Vec<f64> {
        let square = |&i: &usize| theta[i] as f64 * theta[i] as f64;
        (0..self.len()).map(|j| self.of(j).iter().map(square).sum::<f64>().sqrt()).collect()
    }

    /// The node of every group's first element.
    pub(super) fn nodes(&self, graph: &Graph) -> Vec<Option<usize>> {
        let parameters = graph.parameters();
        let node = |j: usize| Some(parameter_of(&parameters, *self.of(j).first()?)?.node);
        (0..self.len()).map(node).collect()
    }

    /// The class of channels that every group stands for (`Filter` and `Channel`), found from its first element.
    pub(super) fn classes(&self, graph: &Graph, channels: &Channels) -> Vec<Option<usize>> {
        let parameters = graph.parameters();
        let class = |j: usize| {
            let &element = self.of(j).first()?;
            class_of(graph, channels, self.kind, parameter_of(&parameters, element)?, element)
        };
        (0..self.len()).map(class).collect()
    }
}

/// Where an element of the flat vector stands.
pub(super) fn parameter_of(parameters: &[Parameter], element: usize) -> Option<&Parameter> {
    parameters.get(parameters.partition_point(|p| p.range.end <= element))
}

/// The class of channels that a parameter makes (`Filter`) or reads (`Channel`).
pub(super) fn class_of(
    graph: &Graph,
    channels: &Channels,
    kind: Kind,
    parameter: &Parameter,
    element: usize,
) -> Option<usize> {
    let node = &graph.nodes[parameter.node];
    let (at, len) = (element - parameter.range.start, parameter.range.len());
    match kind {
        Kind::Filter => {
            let count = channels.classes[node.output.0].len();
            channels.class(node.output, at * count / len)
        }
        Kind::Channel if parameter.role == Role::Weight && reading(&node.op) == Reading::Mixed => {
            let inputs = fan_in(&node.op);
            let input = node.inputs[0];
            (channels.classes[input.0].len() == inputs).then(|| channels.class(input, at % inputs)).flatten()
        }
        _ => None,
    }
}

/// Input channels of one filter.
pub(super) fn fan_in(op: &Op) -> usize {
    match op {
        Op::Conv2d { weight, .. } | Op::ConvTranspose2d { weight, .. } | Op::Linear { weight, .. } => {
            weight.shape().last().copied().unwrap_or(1).max(1)
        }
        _ => 1,
    }
}

/// Classes of channels as groups.
fn coupled(graph: &Graph, kind: Kind) -> Groups {
    let channels = Channels::of(graph);
    let mut elements: Vec<Vec<usize>> = vec![Vec::new(); channels.fixed.len()];
    let parameters = graph.parameters();
    for parameter in &parameters {
        for element in parameter.range.clone() {
            if let Some(class) = class_of(graph, &channels, kind, parameter, element) {
                elements[class].push(element);
            }
        }
    }
    let owner = owners(graph, &channels, &parameters);
    let free = |&c: &usize| channels.fixed[c].is_none() && (kind == Kind::Channel || channels.sounds[c].is_none());
    let mut classes: Vec<usize> = (0..elements.len()).filter(|&c| !elements[c].is_empty()).filter(free).collect();
    classes.sort_by_key(|&c| (owner[c], c));
    let mut groups = Groups::new(kind);
    for c in classes {
        let layer = owner[c].map_or("", |(_, node)| graph.nodes[node].name.as_str());
        groups.push(layer, elements[c].iter().copied());
    }
    groups
}

/// By class: the first node with weights that makes it, else the first that has any parameters of it, else the first that reads it.
fn owners(graph: &Graph, channels: &Channels, parameters: &[Parameter]) -> Vec<Option<(u8, usize)>> {
    let mut owner: Vec<Option<(u8, usize)>> = vec![None; channels.fixed.len()];
    let mut claim = |tensor: TensorId, claim: (u8, usize)| {
        for &c in &channels.classes[tensor.0] {
            owner[c] = Some(owner[c].map_or(claim, |o| o.min(claim)));
        }
    };
    for p in parameters {
        let node = &graph.nodes[p.node];
        claim(node.output, (u8::from(p.role != Role::Weight), p.node));
        node.inputs.iter().for_each(|&id| claim(id, (2, p.node)));
    }
    owner
}

/// The filters and the weights of a filter of every layer that tiles of this kind cover.
fn matrix(op: &Op, kind: Kind) -> Option<(usize, usize)> {
    match (op, kind) {
        (Op::Conv2d { groups: 1, weight, .. } | Op::Linear { weight, .. }, _)
        | (Op::Conv2d { weight, .. } | Op::ConvTranspose2d { weight, .. }, Kind::Weight) => {
            let n = weight.shape()[0];
            Some((n, weight.len() / n.max(1)))
        }
        _ => None,
    }
}

/// Weight matrices cut into tiles; the last ones of a row or column are smaller where the size does not divide.
fn tiles(graph: &Graph, kind: Kind) -> Groups {
    let mut groups = Groups::new(kind);
    for p in graph.parameters().iter().filter(|p| p.role == Role::Weight) {
        let node = &graph.nodes[p.node];
        let Some((n, k)) = matrix(&node.op, kind) else { continue };
        let (rows, cols) = match kind {
            Kind::Block { rows, cols } => (rows, cols),
            Kind::Shape => (n, 1),
            _ => (1, 1),
        };
        for top in (0..n).step_by(rows.max(1)) {
            for left in (0..k).step_by(cols) {
                let row = |r: usize| (left..(left + cols).min(k)).map(move |c| r * k + c);
                let elements = (top..(top + rows).min(n)).flat_map(row);
                groups.push(&node.name, elements.map(|i| p.range.start + i));
            }
        }
    }
    groups
}

/// Residual branches, each a layer of its own.
fn depth(graph: &Graph) -> Groups {
    let parameters = graph.parameters();
    let mut groups = Groups::new(Kind::Depth);
    for branch in branches(graph).0 {
        let own: Vec<&Parameter> = parameters.iter().filter(|p| branch.nodes.contains(&p.node)).collect();
        if let Some(first) = own.iter().find(|p| p.role == Role::Weight) {
            groups.push(&graph.nodes[first.node].name, own.iter().flat_map(|p| p.range.clone()));
        }
    }
    groups
}

/// What holds the layers of a network without groups: the first few.
fn obstacles(graph: &Graph, kind: Kind) -> String {
    let mut all = match kind {
        Kind::Filter | Kind::Channel => fixed_layers(graph, kind),
        Kind::Depth => branches(graph).1.iter().map(|(node, why)| format!("'{node}' {why}")).collect(),
        _ => vec!["it has no convolutions (of one group) and no linear layers".into()],
    };
    let more = all.len().saturating_sub(4);
    all.truncate(4);
    match (all.is_empty(), more) {
        (true, _) if kind == Kind::Depth => "it has no additions".into(),
        (true, _) => "it has no weights".into(),
        (_, 0) => all.join("; "),
        _ => format!("{}; and {more} more", all.join("; ")),
    }
}

fn fixed_layers(graph: &Graph, kind: Kind) -> Vec<String> {
    let channels = Channels::of(graph);
    let weighted = graph.nodes.iter().filter(|n| reading(&n.op) != Reading::None);
    let sentence = |n: &crate::graph::Node| {
        let (tensor, what) = match kind {
            Kind::Channel => (n.inputs[0], "reads"),
            _ => (n.output, "makes"),
        };
        let class = channels.class(tensor, 0)?;
        let tied = channels.fixed[class].as_ref().map(|to| format!("'{}' {what} channels tied to {to}", n.name));
        tied.or_else(|| channels.sounds[class].as_ref().map(|would| format!("'{}' {would}", n.name)))
    };
    weighted.filter_map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::super::networks::{Random, add, block, conv, linear, map, network, norm};
    use super::*;
    use crate::graph::scalar::{ScalarFn, Unary};
    use crate::graph::{Clamp, eval};

    const KINDS: [Kind; 6] =
        [Kind::Filter, Kind::Channel, Kind::Shape, Kind::Block { rows: 2, cols: 4 }, Kind::Depth, Kind::Weight];

    fn relu(g: &mut Graph, x: TensorId) -> TensorId {
        map(g, ScalarFn::clamp(Clamp::RELU), x)
    }

    /// Groups per layer, by name.
    fn count(groups: &Groups) -> Vec<(&str, usize)> {
        let of = |l: usize| groups.layer.iter().filter(|&&layer| layer == l).count();
        groups.layers.iter().enumerate().map(|(l, name)| (name.as_str(), of(l))).collect()
    }

    #[test]
    fn groups_are_disjoint_and_layers_stand_together() {
        let mut r = Random(3);
        let mut found = [0; 6];
        for _ in 0..100 {
            let graph = network(&mut r);
            let theta = graph.theta();
            for (kind, found) in KINDS.into_iter().zip(&mut found) {
                let Ok(groups) = Groups::find(&graph, kind) else { continue };
                *found += 1;
                let mut seen = vec![false; theta.len()];
                groups.elements.iter().for_each(|&i| assert!(!std::mem::replace(&mut seen[i], true)));
                assert!((0..groups.len()).all(|j| !groups.of(j).is_empty()));
                assert!(groups.layer.is_sorted() && groups.starts.len() == groups.len() + 1);
                let last = groups.layer.last().unwrap();
                assert_eq!(last + 1, groups.layers.len());
            }
        }
        println!("{found:?} of 100 networks have groups");
        assert!(found.iter().all(|&n| n > 30), "{found:?}");
    }

    #[test]
    fn silent_channels_leave_the_output_alone() {
        // With all groups of a class zero, what the class's readers multiply them by does not matter.
        let mut r = Random(11);
        for case in 0..40 {
            let graph = network(&mut r);
            let Ok(groups) = Groups::find(&graph, Kind::Filter) else { continue };
            let (columns, channels) = (super::coupled(&graph, Kind::Channel), Channels::of(&graph));
            let (filter, column) = (groups.classes(&graph, &channels), columns.classes(&graph, &channels));
            let mut theta = graph.theta();
            let gone: Vec<usize> = (0..groups.len()).filter(|_| r.below(3) == 0).collect();
            gone.iter().flat_map(|&j| groups.of(j)).for_each(|&i| theta[i] = 0.0);
            let run = |theta: &[f32], x: &ndarray::ArrayD<f32>| {
                let mut masked = graph.clone();
                masked.set_theta(theta);
                eval::run(&masked, std::slice::from_ref(x)).unwrap()
            };
            let x = r.array(&[1, 7, 7, 3]);
            let expected = run(&theta, &x);
            for j in (0..columns.len()).filter(|&j| gone.iter().any(|&g| filter[g] == column[j])) {
                columns.of(j).iter().for_each(|&i| theta[i] = 100.0);
            }
            assert_eq!(run(&theta, &x), expected, "case {case}");
        }
    }

    #[test]
    fn residual_and_depthwise_layers_are_joint_groups() {
        let mut r = Random(1);
        let mut g = Graph::default();
        let x = g.add_input("x", &[1, 8, 8, 3]);
        let stem = conv(&mut g, &mut r, x, 6, 3, 1, true);
        let stem = norm(&mut g, &mut r, stem);
        let a = relu(&mut g, stem);
        let b = conv(&mut g, &mut r, a, 10, 1, 1, true);
        let b = conv(&mut g, &mut r, b, 10, 3, 10, true);
        let b = relu(&mut g, b);
        let b = conv(&mut g, &mut r, b, 6, 1, 1, true);
        let sum = add(&mut g, a, b, Clamp::RELU);
        let flat = g.push("flat", Op::Reshape { shape: vec![1, 384] }, &[sum]).unwrap();
        let y = linear(&mut g, &mut r, flat, 5);
        g.add_output("y", y);
        let groups = Groups::find(&g, Kind::Filter).unwrap();
        assert_eq!(count(&groups), [("conv0", 6), ("conv3", 10)]);
        // Filter, bias, gamma and beta of the stem; filter and bias of the projection.
        assert_eq!(groups.of(0).len(), 27 + 1 + 2 + 10 + 1);
        // Filter and bias of the expansion and of the depthwise layer.
        assert_eq!(groups.of(6).len(), 6 + 1 + 9 + 1);
        let groups = Groups::find(&g, Kind::Channel).unwrap();
        assert_eq!(count(&groups), [("conv0", 6), ("conv3", 10)]);
        // The expansion's column and, flattened, 64 columns of the head.
        assert_eq!((groups.of(0).len(), groups.of(6).len()), (10 + 64 * 5, 6));
        let groups = Groups::find(&g, Kind::Depth).unwrap();
        assert_eq!(count(&groups), [("conv3", 1)]);
        assert_eq!(groups.elements.len(), 10 * 7 + 10 * 10 + 6 * 11);
        let blocks = Groups::find(&g, Kind::Block { rows: 4, cols: 4 }).unwrap();
        assert_eq!(count(&blocks), [("conv0", 2 * 7), ("conv3", 3 * 2), ("conv6", 2 * 3), ("linear9", 2 * 96)]);
        assert_eq!(Groups::find(&g, Kind::Weight).unwrap().len(), 162 + 60 + 90 + 60 + 5 * 384);
        assert_eq!(Groups::find(&g, Kind::Shape).unwrap().len(), 27 + 6 + 10 + 384);
    }

    #[test]
    fn shortcuts_stay_and_nested_branches_do_not_overlap() {
        let mut r = Random(2);
        let mut g = Graph::default();
        let x = g.add_input("x", &[1, 8, 8, 3]);
        let a = block(&mut g, &mut r, x, 4, 3, 1);
        let inner = conv(&mut g, &mut r, a, 4, 3, 1, true);
        let b = add(&mut g, a, inner, Clamp::NONE);
        let main = conv(&mut g, &mut r, b, 6, 3, 1, true);
        let main = conv(&mut g, &mut r, main, 6, 3, 1, true);
        let shortcut = conv(&mut g, &mut r, b, 6, 1, 1, true);
        let c = add(&mut g, main, shortcut, Clamp::RELU);
        g.add_output("y", c);
        let (found, _) = branches(&g);
        let names = |nodes: &[usize]| nodes.iter().map(|&i| g.nodes[i].output).collect::<Vec<_>>();
        assert_eq!(found.len(), 2);
        assert_eq!((names(&found[0].nodes), found[0].skip), (vec![inner], a));
        assert_eq!((found[1].nodes.len(), found[1].skip), (2, shortcut));
    }

    #[test]
    fn errors_name_layers_and_reasons() {
        let mut r = Random(1);
        let mut g = Graph::default();
        let x = g.add_input("x", &[1, 4, 4, 2]);
        let y = conv(&mut g, &mut r, x, 3, 1, 1, true);
        g.add_output("logits", y);
        let message = |kind| Groups::find(&g, kind).unwrap_err().to_string();
        assert_eq!(
            message(Kind::Filter),
            "no filter group of this network can be removed: 'conv0' makes channels tied to the output 'logits'; choose \
             another kind of groups"
        );
        assert!(message(Kind::Channel).contains("'conv0' reads channels tied to the input 'x'"));
        assert!(message(Kind::Depth).contains("it has no additions"));
        assert!(message(Kind::Block { rows: 0, cols: 4 }).contains("at least 1"));
    }

    #[test]
    fn what_is_not_zero_at_zero_holds_filters_but_not_channels() {
        let mut r = Random(1);
        let mut g = Graph::default();
        let x = g.add_input("x", &[1, 4, 4, 2]);
        let a = conv(&mut g, &mut r, x, 6, 1, 1, true);
        let a = map(&mut g, ScalarFn::unary(Unary::Sigmoid), a);
        let y = conv(&mut g, &mut r, a, 3, 1, 1, true);
        g.add_output("y", y);
        let message = Groups::find(&g, Kind::Filter).unwrap_err().to_string();
        assert!(message.contains("'conv0' would feed 'conv2' a constant that is not zero"), "{message}");
        assert_eq!(Groups::find(&g, Kind::Channel).unwrap().len(), 6);
    }
}
