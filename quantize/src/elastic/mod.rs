//! Elastic quantization (EQ-Net: "Elastic Quantization Neural Networks", ICCV 2023): one set of float weights whose every quantization works.
//!
//! A [`Supernet`] is a network with batch norms and, for every layer and every [`Form`] that its weights may take, learned steps. Training steps on three
//! sub-networks at once ([`train`]): the widest, a random one that the widest teaches, and the narrowest that the random one teaches (the GPG
//! loss), while the WDR loss keeps the weights' distribution flat. A sub-network is then a choice of forms and batch-norm moments of its own: no
//! training follows. [`predictor`] learns from some of them what accuracy a choice has, so that [`crate::search`] can judge thousands.
//!
//! Weights are elastic, and activations where [`ElasticOptions::activation_bits`] names other widths than eight: fewer bits of those save neither memory nor
//! time on the cores that there are, so that by default they stay out of the training and are calibrated when a sub-network is built. What training
//! simulates are the integers that a file stores: see `quantizer`.
//!
//! In reading order: `quantizer`, `shape_loss` (WDR), `rate` (coded bits as a part of the loss), `training`, `supernet` (files, sub-networks), `predictor`.

pub mod predictor;
mod quantizer;
mod rate;
mod shape_loss;
mod supernet;
#[cfg(test)]
mod tests;
mod training;

use crate::scheme::{Granularity, QuantOptions};
use crate::train::TrainOptions;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
pub use supernet::{Layer, Lowered, Supernet};
use supernet::{name_of, names};
pub use training::{Trained, train};

/// How the weights of a layer, or what it reads, are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Form {
    /// 2 to 8.
    pub bits: u8,
    /// What a step covers.
    pub granularity: Granularity,
    /// As many levels below zero as above (of an activation one more, and all above zero where it is never negative); else `2^bits` levels from a learned place on. At eight bits all forms are symmetric: an offset gains nothing
    /// there, and a level must fit eight bits.
    pub symmetric: bool,
}

/// What a supernet may be, and how it is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ElasticOptions {
    /// Widths of weights.
    pub bits: Vec<u8>,
    /// Widths of single layers' weights in place of these, by the layer's name; of the first and the last layer too.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, Vec<u8>>,
    /// Widths of what layers read; eight alone is not simulated.
    pub activation_bits: Vec<u8>,
    /// What steps may cover.
    pub granularity: Vec<Granularity>,
    /// Symmetric forms, asymmetric ones, or both.
    pub symmetry: Vec<Symmetry>,
    /// Least width of the first and the last layer, and of what the last one reads.
    pub edge_bits: u8,
    /// Random sub-networks of a step, beside the widest and the narrowest.
    pub random_subnets: usize,
    /// Share of the teacher in the loss of a sub-network that is taught.
    pub guidance: f32,
    /// Factor of the WDR loss's skewness.
    pub skewness: f32,
    /// Factor of the WDR loss's kurtosis.
    pub kurtosis: f32,
    /// Mean bits that a weight of the narrowest sub-network may take once it is coded (as a coder without context would), pruned ones and those of all layers
    /// counted; absent: as many as the widths allow.
    pub coded_bits: Option<f32>,
    /// Samples that the batch norms of a sub-network are recalibrated with; a search, which measures hundreds, takes fewer.
    pub recalibrate: usize,
    /// Of the training; `prune.train` has its own.
    pub train: TrainOptions,
}

/// Whether levels lie evenly about zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Symmetry {
    /// `-n ..= n`.
    Symmetric,
    /// From a learned place on.
    Asymmetric,
}

impl Default for ElasticOptions {
    fn default() -> ElasticOptions {
        ElasticOptions {
            bits: vec![8, 6, 5, 4, 3, 2],
            layers: BTreeMap::new(),
            activation_bits: vec![8],
            granularity: vec![Granularity::Channel, Granularity::Tensor],
            symmetry: vec![Symmetry::Symmetric, Symmetry::Asymmetric],
            edge_bits: 8,
            random_subnets: 1,
            guidance: 0.5,
            skewness: 1.0,
            kurtosis: 0.015,
            coded_bits: None,
            recalibrate: 4096,
            // Adam at 1e-3 without decay, as the authors train.
            train: TrainOptions { rate: Some(1e-3), weight_decay: 0.0, ..TrainOptions::default() },
        }
    }
}

impl ElasticOptions {
    /// Widths of a list, the widest first; `is_edge` for the first and the last layer.
    fn widths(&self, all: &[u8], is_edge: bool) -> Vec<u8> {
        let mut bits = all.to_vec();
        bits.sort_unstable_by(|a, b| b.cmp(a));
        bits.dedup();
        let widest = bits.first().copied().unwrap_or(8);
        if is_edge {
            bits.retain(|&b| b >= self.edge_bits);
            if bits.is_empty() {
                bits.push(self.edge_bits.max(widest));
            }
        }
        bits
    }

    /// Every form of what a layer reads, the widest first; none where activations are not simulated. `signed`: it can be negative; else its levels begin at zero.
    pub fn activation_forms(&self, is_edge: bool, signed: bool) -> Vec<Form> {
        let mut forms = Vec::new();
        if self.activation_bits.iter().all(|&b| b == 8) {
            return forms;
        }
        for bits in self.widths(&self.activation_bits, is_edge) {
            for &symmetry in &self.symmetry {
                let symmetric = !signed || symmetry == Symmetry::Symmetric;
                let form = Form { bits, granularity: Granularity::Tensor, symmetric };
                if !forms.contains(&form) {
                    forms.push(form);
                }
            }
        }
        forms
    }

    /// Every form of a layer's weights, the widest first; `is_edge` for the first and the last.
    pub fn forms(&self, is_edge: bool) -> Vec<Form> {
        self.forms_of(self.widths(&self.bits, is_edge))
    }

    /// The same of the layer with this name.
    fn forms_of_layer(&self, name: &str, is_edge: bool) -> Vec<Form> {
        self.layers.get(name).map_or_else(|| self.forms(is_edge), |own| self.forms_of(self.widths(own, false)))
    }

    fn forms_of(&self, bits: Vec<u8>) -> Vec<Form> {
        let mut forms = Vec::new();
        for bits in bits {
            for &granularity in &self.granularity {
                for &symmetry in &self.symmetry {
                    let form = Form { bits, granularity, symmetric: bits == 8 || symmetry == Symmetry::Symmetric };
                    if !forms.contains(&form) {
                        forms.push(form);
                    }
                }
            }
        }
        forms
    }

    /// The form of layers that are not named one by one; an error if a supernet of these options would not have it.
    pub fn common(&self, weight_bits: u8, granularity: Granularity) -> Result<Form, ElasticError> {
        let all = self.forms(false);
        let found = all.iter().find(|f| f.bits == weight_bits && f.granularity == granularity);
        found.copied().ok_or_else(|| ElasticError::NoWidth {
            form: format!("{weight_bits} bits {}", name_of(granularity)),
            has: names(&all),
        })
    }

    /// Refuses widths of activations that a supernet of these options would not have.
    pub fn check_activations(&self, wanted: &QuantOptions) -> Result<(), ElasticError> {
        let known = |bits: &u8| self.activation_bits.contains(bits);
        let named = wanted.layers.values().filter_map(|own| own.activation_bits);
        match named.chain(wanted.activation_bits).find(|bits| !known(bits)) {
            Some(bits) => Err(ElasticError::NoActivation {
                bits,
                has: self.widths(&self.activation_bits, false).iter().map(u8::to_string).collect::<Vec<_>>().join(", "),
            }),
            None => Ok(()),
        }
    }

    /// Refuses what cannot be trained.
    pub fn check(&self) -> Result<(), ElasticError> {
        let fit = |bits: &[u8]| !bits.is_empty() && bits.iter().all(|b| (2..=8).contains(b));
        let fails = [
            (!fit(&self.bits), "bits", "widths from 2 to 8"),
            (!self.layers.values().all(|own| fit(own)), "layers", "widths from 2 to 8 of every layer that it names"),
            (!fit(&self.activation_bits), "activation_bits", "widths from 2 to 8"),
            (self.granularity.is_empty(), "granularity", "\"channel\", \"tensor\" or both"),
            (self.symmetry.is_empty(), "symmetry", "\"symmetric\", \"asymmetric\" or both"),
            (!(0.0..=1.0).contains(&self.guidance), "guidance", "a share"),
            (!(self.skewness >= 0.0 && self.skewness.is_finite()), "skewness", "0 or more"),
            (!(self.kurtosis >= 0.0 && self.kurtosis.is_finite()), "kurtosis", "0 or more"),
            (!self.coded_bits.is_none_or(|bits| bits > 0.0 && bits <= 8.0), "coded_bits", "above 0, 8 at most"),
            (!(2..=8).contains(&self.edge_bits), "edge_bits", "a width from 2 to 8"),
            (self.recalibrate == 0, "recalibrate", "at least 1"),
        ];
        match fails.into_iter().find(|f| f.0) {
            Some((_, field, wanted)) => Err(ElasticError::Option { field, wanted }),
            None => Ok(()),
        }
    }
}

/// Why there is no supernet.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages name the fields
pub enum ElasticError {
    #[error(transparent)]
    Train(#[from] crate::train::TrainError),
    #[error("elastic.{field} must be {wanted}")]
    Option { field: &'static str, wanted: &'static str },
    #[error("the network has no layers with weights")]
    NoLayers,
    #[error("elastic.layers names '{layer}', which no layer with weights is called; there are: {has}")]
    Named { layer: String, has: String },
    #[error(
        "{path} is no supernet: {what}; make one with `quantize elastic`, or export a model of PyTorch or Keras to ONNX"
    )]
    File { path: String, what: String },
    #[error("the supernet was made of another network: it has no layer '{layer}'")]
    NoLayer { layer: String },
    #[error("layer '{layer}' of the supernet cannot have {form}; it can have {has}")]
    NoForm { layer: String, form: String, has: String },
    #[error("no layer of the supernet has {form}; it has {has}")]
    NoWidth { form: String, has: String },
    #[error(
        "the supernet knows no activations of {bits} bits; its activations have {has} (--activation-bits of `quantize elastic`, or elastic.activation_bits of a recipe)"
    )]
    NoActivation { bits: u8, has: String },
    #[error(transparent)]
    Scheme(#[from] crate::scheme::SchemeError),
    #[error("the supernet was trained on {own}, but gets {given}; give the same --scale, --mean and --std")]
    Preprocess { own: String, given: String },
    #[error("the supernet cannot be written: {0}")]
    Write(String),
}
