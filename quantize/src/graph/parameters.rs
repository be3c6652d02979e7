//! The trainable numbers of a graph as one flat vector.
//!
//! Weights, biases, batch-norm scales and shifts and PReLU slopes of all nodes stand one after another, in node order and, within a
//! node, in the order of [`Role`]; every value in the IR's own layout. Training, pruning and checkpoints all speak of indices into
//! that vector, often called `theta`. Constants and `Affine` nodes are no parameters: they are preprocessing or folded arithmetic.

use super::{Graph, Op};
use std::ops::Range;

/// What a parameter does in its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Weights of a convolution or linear layer, `[oc, ..]`.
    Weight,
    /// One per output channel.
    Bias,
    /// Scale of a batch norm, one per channel.
    Gamma,
    /// Shift of a batch norm, one per channel.
    Beta,
    /// PReLU, one per channel.
    Slope,
}

/// Where a parameter stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Index of its node.
    pub node: usize,
    /// Which of the node's numbers.
    pub role: Role,
    /// Its elements in the flat vector.
    pub range: Range<usize>,
}

/// Elements in row-major order, which every graph has: rewrites and removals end with [`Graph::in_standard_layout`].
fn row_major<T>(elements: Option<T>) -> T {
    match elements {
        Some(elements) => elements,
        None => unreachable!("a weight that is not in row-major order"),
    }
}

impl Op {
    /// The trainable numbers, in the order of [`Role`].
    pub fn parameters(&self) -> Vec<(Role, &[f32])> {
        match self {
            Op::Conv2d { weight, bias, .. }
            | Op::ConvTranspose2d { weight, bias, .. }
            | Op::Linear { weight, bias, .. } => {
                vec![(Role::Weight, row_major(weight.as_slice())), (Role::Bias, bias)]
            }
            Op::BatchNorm { gamma, beta, .. } => vec![(Role::Gamma, gamma), (Role::Beta, beta)],
            Op::PRelu { slope } => vec![(Role::Slope, slope)],
            _ => Vec::new(),
        }
    }

    /// The same numbers, to be changed.
    pub fn parameters_mut(&mut self) -> Vec<(Role, &mut [f32])> {
        match self {
            Op::Conv2d { weight, bias, .. }
            | Op::ConvTranspose2d { weight, bias, .. }
            | Op::Linear { weight, bias, .. } => {
                vec![(Role::Weight, row_major(weight.as_slice_mut())), (Role::Bias, bias)]
            }
            Op::BatchNorm { gamma, beta, .. } => vec![(Role::Gamma, gamma), (Role::Beta, beta)],
            Op::PRelu { slope } => vec![(Role::Slope, slope)],
            _ => Vec::new(),
        }
    }
}

impl Graph {
    /// Every parameter and its place in the flat vector.
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut at = 0;
        let mut all = Vec::new();
        for (node, n) in self.nodes.iter().enumerate() {
            for (role, values) in n.op.parameters() {
                all.push(Parameter { node, role, range: at..at + values.len() });
                at += values.len();
            }
        }
        all
    }

    /// The flat vector.
    pub fn theta(&self) -> Vec<f32> {
        self.nodes.iter().flat_map(|n| n.op.parameters()).flat_map(|(_, values)| values.iter().copied()).collect()
    }

    /// Writes the flat vector back; extra or missing values are ignored.
    pub fn set_theta(&mut self, theta: &[f32]) {
        let mut values = theta.iter();
        for (_, own) in self.nodes.iter_mut().flat_map(|n| n.op.parameters_mut()) {
            own.iter_mut().zip(&mut values).for_each(|(own, v)| *own = *v);
        }
    }
}
