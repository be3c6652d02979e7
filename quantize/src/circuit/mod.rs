//! Probabilistic circuits on the host: models are learned and chosen here, and everything that drives the coder is computed by [`pith::circuit`].
//!
//! A [`Circuit`] is a tree of [`Region`]s. A region `r` has `units`, each a product of one input unit and one sum unit of every child, and its
//! parent sees them through a dense sum layer:
//!
//! ```text
//! value_r[j](x) = input_r[j](x_v) * product over children c of sum_c[j](x)        (j = 1..units of r)
//! sum_r[i](x)   = sum_j weights_r[i][j] * value_r[j](x)                            (i = 1..units of the parent; 1 for the root)
//! ```
//!
//! So children of a product have disjoint scopes and split them as the tree does (structured decomposable), and children of a sum share theirs
//! (smooth). A hidden Chow-Liu tree, a hidden Markov model and a mixture of independent variables are all of this form. Weights that are zero
//! are edges that are absent.
//!
//! Modules, in reading order: [`dense`] (arithmetic), [`inputs`] (input units), [`evaluate`] (likelihood, flows), [`sample`],
//! [`em`] (parameters),
//! [`chow_liu`] and [`hclt`] (structure), [`sparsify`] (pruning, growing), [`checkpoint`] (bytes), [`codec`] (a circuit as integers, and data
//! coded with it), [`cost`] (multiplications), [`weights`].

pub mod checkpoint;
pub mod chow_liu;
pub mod codec;
pub mod cost;
pub mod dense;
pub mod em;
pub mod evaluate;
pub mod hclt;
pub mod inputs;
pub mod sample;
pub mod sparsify;
#[cfg(test)]
mod tests;
pub mod weights;

pub use crate::random;
use inputs::Inputs;

/// A distribution over `variables` integers, in regions: children before parents, a subtree contiguous, the root last.
#[derive(Clone, Debug, PartialEq)]
pub struct Circuit {
    /// Number of variables; each belongs to one region.
    pub variables: usize,
    /// In postorder.
    pub regions: Vec<Region>,
}

/// Units over the same variables, and the sum layer above them.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// What the input units read; none in a region that only joins its children.
    pub variable: Option<usize>,
    /// Product units.
    pub units: usize,
    /// Sum units: units of the parent, 1 in the root.
    pub above: usize,
    /// Regions of the subtree, this one included.
    pub size: usize,
    /// Kind and parameters of the input units.
    pub inputs: Inputs,
    /// Probabilities of the input units, `[values][stride(units)]`, padded with zeros; empty without a variable.
    pub table: Vec<f32>,
    /// `[above][stride(units)]`, padded with zeros.
    pub weights: Vec<f32>,
}

/// Floats of a row of `units`: whole vectors.
pub fn stride(units: usize) -> usize {
    units.next_multiple_of(dense::LANES)
}

impl Region {
    /// Floats of a row of units.
    pub fn stride(&self) -> usize {
        stride(self.units)
    }

    /// Values of the variable.
    pub fn values(&self) -> usize {
        self.table.len() / self.stride().max(1)
    }

    /// Sum weights that are not zero.
    pub fn edges(&self) -> usize {
        self.weights.iter().filter(|&&w| w > 0.0).count()
    }
}

impl Circuit {
    /// Sum edges and parameters of input units.
    pub fn parameters(&self) -> usize {
        self.regions.iter().map(|r| r.edges() + r.inputs.parameters(r.units, r.values())).sum()
    }

    /// Largest number of values of a variable.
    pub fn values(&self) -> usize {
        self.regions.iter().map(Region::values).max().unwrap_or(0)
    }

    /// Indices of the children of a region, last first.
    pub fn children(&self, region: usize) -> impl Iterator<Item = usize> + '_ {
        let first = region + 1 - self.regions[region].size;
        let mut next = region;
        std::iter::from_fn(move || {
            let child = next.checked_sub(1).filter(|&c| c >= first)?;
            next = child + 1 - self.regions[child].size;
            Some(child)
        })
    }

    /// Says what contradicts the definition of a circuit: sizes, scopes, or weights that do not sum to one.
    pub fn check(&self) -> Result<(), String> {
        let mut scope = vec![false; self.variables];
        let root = self.regions.len().checked_sub(1).ok_or("no regions")?;
        if self.regions[root].size != self.regions.len() || self.regions[root].above != 1 {
            return Err("the last region is not the root".into());
        }
        for (i, region) in self.regions.iter().enumerate() {
            let fail = |what: &str| Err(format!("region {i}: {what}"));
            if region.size > i + 1 || region.units == 0 || region.weights.len() != region.above * region.stride() {
                return fail("sizes");
            }
            if self.children(i).any(|c| self.regions[c].above != region.units) {
                return fail("a child's sums do not match the units");
            }
            if let Some(variable) = region.variable {
                match scope.get_mut(variable) {
                    Some(seen) if !*seen => *seen = true,
                    _ => return fail("its variable is another region's, or none"),
                }
            }
            let is_one = |sum: f32| (sum - 1.0).abs() < 1e-3;
            if !region.weights.chunks(region.stride()).all(|row| is_one(row.iter().sum())) {
                return fail("weights do not sum to 1");
            }
            let total = |unit: usize| region.table.iter().skip(unit).step_by(region.stride()).sum();
            if region.variable.is_some() && !(0..region.units).all(|unit| is_one(total(unit))) {
                return fail("input probabilities do not sum to 1");
            }
        }
        match scope.iter().all(|&seen| seen) {
            true => Ok(()),
            false => Err("a variable belongs to no region".into()),
        }
    }
}

/// Samples of variables below 256, row by row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Data {
    /// Length of a row.
    pub variables: usize,
    /// `[samples][variables]`.
    pub values: Vec<u8>,
    /// Which of them are unknown, in the same order; those are summed over.
    pub missing: Option<Vec<bool>>,
}

impl Data {
    /// Complete samples.
    pub fn new(values: Vec<u8>, variables: usize) -> Data {
        Data { variables, values, missing: None }
    }

    /// Number of rows.
    pub fn samples(&self) -> usize {
        self.values.len().checked_div(self.variables).unwrap_or(0)
    }
}
