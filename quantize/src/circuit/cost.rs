//! Multiplications that coding takes, of sum edges, input units and their cumulative probabilities: the walk of [`pith::circuit::walk`] beside the
//! partial evaluation of the paper, which for every variable evaluates what lies on the path from its input up to the lowest region that
//! contains all variables so far, once for each probability it needs.

use super::Circuit;

/// Multiplications for one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Two probabilities for each variable.
    pub encode: usize,
    /// A binary search over the values.
    pub decode: usize,
}

/// Every edge once down and once up, whatever the tree.
pub fn walk(circuit: &Circuit) -> Cost {
    let edges: usize = circuit.regions.iter().map(|r| 2 * r.edges() + 4 * r.units).sum();
    let each = |probabilities: &dyn Fn(usize) -> usize| {
        let inputs = circuit.regions.iter().filter(|r| r.variable.is_some());
        edges + inputs.map(|r| r.units * probabilities(r.values())).sum::<usize>()
    };
    Cost { encode: each(&|_| 2), decode: each(&search) }
}

/// The paper's: the first child of a region is the one with the most variables, its own variable comes last.
pub fn partial_evaluation(circuit: &Circuit) -> Cost {
    let mut cost = Cost { encode: 0, decode: 0 };
    let mut pending = vec![(circuit.regions.len() - 1, true, 0)];
    while let Some((index, is_first, path)) = pending.pop() {
        let region = &circuit.regions[index];
        // The first path contains all that came before, so evaluation ends there.
        let path = if is_first { 0 } else { path + region.edges() + region.units };
        if region.variable.is_some() {
            cost.encode += 2 * (path + region.units);
            cost.decode += (1 + search(region.values())) * (path + region.units);
        }
        let largest = circuit.children(index).max_by_key(|&child| circuit.regions[child].size);
        pending.extend(circuit.children(index).map(|child| (child, is_first && Some(child) == largest, path)));
    }
    cost
}

/// Probabilities that a binary search over `values` looks at.
fn search(values: usize) -> usize {
    values.next_power_of_two().trailing_zeros() as usize
}
