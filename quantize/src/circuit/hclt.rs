//! Hidden Chow-Liu trees: every variable of a tree gets a hidden state of `units` values on which it depends, and the hidden states depend on
//! one another as the tree says. A region stands for a variable and its state, its weights for the state's distribution given the parent's.

use super::chow_liu::Tree;
use super::inputs::{Component, Family, Inputs};
use super::{Circuit, Region, stride};
use crate::random::Random;

/// What input units are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// A probability for every value.
    Categorical,
    /// Mixtures with this many components.
    Parametric(Family, usize),
}

/// A circuit of the tree's shape over variables below `values`. Probabilities are uniform up to noise: factors between 0.6 and 1.4, as the
/// authors begin.
pub fn hclt(tree: &Tree, values: usize, units: usize, leaves: Leaves, seed: u64) -> Circuit {
    let mut random = Random::new(seed, 0);
    let children = tree.children();
    let mut regions: Vec<Region> = Vec::new();
    let mut pending: Vec<(usize, usize)> = tree.root().map(|root| (root, 0)).into_iter().collect();
    while let Some(&mut (variable, ref mut next)) = pending.last_mut() {
        if let Some(&child) = children[variable].get(*next) {
            *next += 1;
            pending.push((child, 0));
            continue;
        }
        pending.pop();
        let above = if pending.is_empty() { 1 } else { units };
        let size = 1 + sizes(&regions, children[variable].len());
        regions.push(region(variable, (units, above, size), values, leaves, &mut random));
    }
    Circuit { variables: tree.parents.len(), regions }
}

/// Regions in the last `children` subtrees.
fn sizes(regions: &[Region], children: usize) -> usize {
    (0..children).fold(0, |below, _| below + regions[regions.len() - 1 - below].size)
}

fn region(
    variable: usize,
    (units, above, size): (usize, usize, usize),
    values: usize,
    leaves: Leaves,
    random: &mut Random,
) -> Region {
    let stride = stride(units);
    let weights = noise(above, units, stride, random);
    let by_unit = noise(units, values, values, random);
    let mut target = vec![0.0; values * stride];
    for (unit, row) in by_unit.chunks_exact(values).enumerate() {
        row.iter().enumerate().for_each(|(v, &p)| target[v * stride + unit] = p);
    }
    let mut inputs = match leaves {
        Leaves::Categorical => Inputs::Categorical,
        Leaves::Parametric(family, components) => {
            let component = |_| Component {
                share: 1.0 / components as f32,
                location: values as f32 * (0.25 + 0.5 * random.uniform()),
                scale: values as f32 * (0.05 + 0.1 * random.uniform()),
            };
            Inputs::Parametric { family, components, params: (0..units * components).map(component).collect() }
        }
    };
    let mut table = vec![0.0; target.len()];
    inputs.fit(&target, units, stride, &mut table);
    Region { variable: Some(variable), units, above, size, inputs, table, weights }
}

/// Rows of `n` noisy equal shares, padded to `stride`.
fn noise(rows: usize, n: usize, stride: usize, random: &mut Random) -> Vec<f32> {
    let mut shares = vec![0.0; rows * stride];
    for row in shares.chunks_exact_mut(stride) {
        row[..n].iter_mut().for_each(|x| *x = 0.6 + 0.8 * random.uniform());
        let total: f32 = row.iter().sum();
        row.iter_mut().for_each(|x| *x /= total);
    }
    shares
}
