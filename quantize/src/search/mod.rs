//! Bits for every layer, for a budget, without training again.
//!
//! A candidate gives every layer with weights its own width. A genetic search (parents: the best quarter; mutants, and uniform crossovers; "EQ-Net",
//! section 3.4) starts from what errors of single layers, taken as additive, say is best at every price of a byte. Candidates above a budget are
//! repaired before they are judged. How they are judged depends on where they come from:
//!
//! - `rounded`: a network that nobody trains. Its weights are rounded so that they make up for one another's errors ([`crate::scheme::Rounding`]), and the
//!   runtime itself runs it on the calibration samples: what is compared is the true error of the outputs, as a share of their energy. The best of all
//!   are run once more with layers rounded in turn, each fitted to what those before it give ([`crate::scheme::Rounding::in_turn`]), as the build does
//!   it; that decides.
//! - `subnets`: a supernet ([`crate::elastic`]). Some sub-networks are measured, all others predicted; the best are measured, and that decides. What was
//!   measured may be kept (`journal`).
//!
//! What a candidate costs is known before it is built: a file's bytes are a base and those of every layer at its width; the written file is measured
//! again.

pub mod genetic;
mod journal;
mod price;
mod rounded;
mod space;
mod subnets;

use crate::build::{BuildError, Prepared};
use crate::data::Targets;
use crate::elastic::ElasticError;
use crate::pack::PackOptions;
use crate::recipe::Recipe;
pub use genetic::search;
use ndarray::ArrayD;
use pith::Isa;
pub use price::{Fit, fit_price};
use serde::{Deserialize, Serialize};
pub use space::{Layer, Space};
use std::collections::BTreeSet;
pub use subnets::{Source, Subnet, space as supernet_space, subnet};

/// What a model may take, and must reach.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Budget {
    /// Bytes of the file.
    pub flash: Option<u64>,
    /// Bytes of RAM: the arena, and weights that are decoded into RAM.
    pub ram: Option<u64>,
    /// Predicted instructions of a run.
    pub instructions: Option<u64>,
    /// Share of right answers on the calibration samples; then the smallest file is searched.
    pub accuracy: Option<f64>,
}

/// How much is searched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SearchOptions {
    /// Widths that a layer may have; absent: those of 8, 4 and 2 for which a core has kernels, all from 2 to 8 elsewhere.
    pub bits: Option<Vec<u8>>,
    /// Candidates that are run; of a supernet's, ten times as many are predicted.
    pub candidates: usize,
    /// Sub-networks of a supernet that are measured, for the rest to be predicted.
    pub measured: usize,
    /// Of all random choices.
    pub seed: u64,
}

impl Default for SearchOptions {
    fn default() -> SearchOptions {
        SearchOptions { bits: None, candidates: 400, measured: 250, seed: 1 }
    }
}

/// A candidate that was run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// Bits of every layer of the space.
    pub bits: Vec<u8>,
    /// Predicted bytes of the file.
    pub flash: u64,
    /// Predicted instructions of a run, where the target's are known.
    pub instructions: Option<u64>,
    /// Noise of the outputs as a share of their energy, of the worst output.
    pub error: f64,
    /// Share of right answers, where the samples have labels.
    pub accuracy: Option<f64>,
}

impl Candidate {
    /// Mean width, weighted by the number of weights.
    pub fn mean_bits(&self, space: &Space) -> f64 {
        let weights = |i: usize| space.layers[i].weights as f64;
        let all: f64 = (0..self.bits.len()).map(weights).sum();
        (0..self.bits.len()).map(|i| weights(i) * f64::from(self.bits[i])).sum::<f64>() / all.max(1.0)
    }
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The best within the budget, as it is built.
    pub best: Option<Candidate>,
    /// Candidates that no other beats in both bytes and error, the smallest first.
    pub front: Vec<Candidate>,
    /// All of one width, the widest first.
    pub uniform: Vec<Candidate>,
    /// Candidates that were run.
    pub runs: usize,
}

/// Why there is no search.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// Quantizing or packing failed.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A supernet failed.
    #[error(transparent)]
    Elastic(#[from] ElasticError),
    /// A width that is not offered.
    #[error("a layer cannot have {0} bits; choose from 2 to 8")]
    Bits(u8),
    /// No layer to choose for.
    #[error("the network has no layers whose bits could be chosen")]
    NoLayers,
    /// Nothing to choose.
    #[error(
        "layers could have {bits} bits alone, which leaves nothing to choose; name several widths, such as --bits 8,4,2"
    )]
    OneWidth {
        /// The only one.
        bits: u8,
    },
    /// No table, or kernels that it does not know.
    #[error("a budget of cycles needs a target whose kernels were counted: a core or a board with one{}", uncounted(.0))]
    NoCosts(BTreeSet<String>),
    /// Scores that were kept do not serve, or cannot be kept.
    #[error("checkpoint {path}: {what}")]
    Journal {
        /// The file.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// No labels.
    #[error("a least accuracy needs labels 'y' in the calibration set, which has none")]
    NoLabels,
}

fn uncounted(kernels: &BTreeSet<String>) -> String {
    let names: Vec<&str> = kernels.iter().map(String::as_str).collect();
    if names.is_empty() { String::new() } else { format!("; not counted there: {}", names.join(", ")) }
}

/// What gives layers their widths, and says how well that works.
trait Judge: std::fmt::Debug {
    /// Error (what is minimized), and the share of right answers where they are known.
    fn judge(&self, bits: &[u8]) -> Result<(f64, Option<f64>), SearchError>;
    /// The same, better known and slower.
    fn judge_well(&self, bits: &[u8]) -> Result<(f64, Option<f64>), SearchError>;
    /// The recipe that builds it.
    fn recipe(&self, bits: &[u8], recipe: &Recipe) -> Recipe;
    /// Whether right answers are known.
    fn has_labels(&self) -> bool;
    /// Whether [`Judge::judge`] predicts from others.
    fn is_predicted(&self) -> bool;
}

/// Samples that candidates are judged by.
#[derive(Clone, Copy, Debug)]
pub struct Judges<'a> {
    /// Raw inputs.
    pub samples: &'a [Vec<ArrayD<f32>>],
    /// Whether the raw data of each input are bytes.
    pub is_u8: &'a [bool],
    /// Classes, by sample.
    pub labels: Option<&'a [usize]>,
}

impl<'a> Judges<'a> {
    /// With the labels of a set.
    pub fn new(samples: &'a [Vec<ArrayD<f32>>], is_u8: &'a [bool], targets: Option<&'a Targets>) -> Judges<'a> {
        let labels = match targets {
            Some(Targets::Classes(labels)) if labels.len() == samples.len() => Some(labels.as_slice()),
            _ => None,
        };
        Judges { samples, is_u8, labels }
    }
}

/// Widths for which a set has kernels, the widest first: a core's are few; a desktop packs all for its own. Weights of other widths may or may not be
/// worth a tile, which depends on all other layers, so that their bytes are no promise.
fn kernel_widths(isa: Isa) -> Vec<u8> {
    let known = |bits: &u8| isa.layout().is_none_or(|layout| layout.holds(*bits));
    (2..=8).rev().filter(known).collect()
}

/// The space of a network, with everything that candidates are made of.
pub fn space<'a>(
    prepared: &'a Prepared,
    judges: Judges<'a>,
    recipe: &Recipe,
    options: &SearchOptions,
    pack: PackOptions,
    progress: &(dyn Fn(&'static str, usize) + Sync),
) -> Result<Space<'a>, SearchError> {
    let all = options.bits.clone().unwrap_or_else(|| kernel_widths(pack.isa));
    if let Some(&bits) = all.iter().find(|bits| !(2..=8).contains(*bits)) {
        return Err(SearchError::Bits(bits));
    }
    let mut all = all;
    all.sort_unstable_by(|a, b| b.cmp(a));
    all.dedup();
    match all[..] {
        [] => Err(SearchError::NoLayers),
        [bits] => Err(SearchError::OneWidth { bits }),
        _ => rounded::space(prepared, judges, recipe, &all, pack, progress),
    }
}
