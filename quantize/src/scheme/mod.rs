//! A quantized graph: the float graph beside the integers that stand for it.
//!
//! Between calibration and lowering the network is a [`QGraph`]: the graph keeps its operators and axes (so that passes
//! such as [`crate::shrink`] can reason about channels), and every tensor and weighted node carries its exact integers. What
//! the device computes is a function of these integers alone; [`crate::lower`] only spells them as records.

mod activations;
mod equalize;
mod rounding;
mod weights;

use crate::calibrate::{Observer, Stats};
use crate::graph::{Clamp, Graph, Node, Op, ScalarFn};
pub use activations::{Levels, limited_at};
pub use equalize::equalize;
use ndarray::ArrayD;
pub use rounding::{Inputs, Rounded, Rounding};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Quantization of an activation: `real = scale * (q - zero_point)`, `q` in `-128 ..= 127`. The zero point may lie
/// outside of that where no reader needs the integer zero (a sigmoid of logits between -30 and -10).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QParams {
    /// Real value of one step, positive and finite.
    pub scale: f32,
    /// The integer that stands for real zero.
    pub zero_point: i32,
}

/// The integers of a node with weights (`Conv2d`, `ConvTranspose2d`, `Linear`, `Affine`).
#[derive(Clone, Debug, PartialEq)]
pub struct QWeights {
    /// Bits of one weight, 2 ..= 8; values lie in `-(2^(bits-1) - 1) ..= 2^(bits-1) - 1`.
    pub bits: u8,
    /// The weights, in the shape of the op's own (`[c]` for `Affine`).
    pub values: ArrayD<i8>,
    /// Real value of one weight step per output channel (equal values for per-tensor granularity).
    pub scales: Vec<f32>,
    /// Bias per output channel, in steps of `input scale * scales[oc]`.
    pub bias: Vec<i32>,
    /// Output stage per channel: `q_out = zero_point + round(acc * multiplier / 2^shift)`, see [`pith::fixed::requantize`].
    pub multiplier: Vec<i32>,
    /// See `multiplier`.
    pub shift: Vec<u8>,
}

/// How a port's int8 relates to the numbers the user feeds or reads (preprocessing folded in).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RawPort {
    /// `raw = scale * (q - zero_point)`; the zero point may lie outside of int8.
    pub params: QParams,
    /// Raw data are bytes and `q = raw - 128`.
    pub is_u8: bool,
}

/// A float graph and its integers.
#[derive(Clone, Debug)]
pub struct QGraph {
    /// Structure, and the float parameters that the integers approximate.
    pub graph: Graph,
    /// By tensor id.
    pub activations: Vec<QParams>,
    /// By node index; none for nodes without weights.
    pub weights: Vec<Option<QWeights>>,
    /// By input index.
    pub inputs: Vec<RawPort>,
    /// By output index.
    pub outputs: Vec<RawPort>,
}

/// What the user may choose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuantOptions {
    /// Bits of a weight, 2 to 8.
    pub weight_bits: u8,
    /// One weight scale per output channel, or one per layer.
    pub granularity: Granularity,
    /// Bits of what layers read, 2 to 8, wherever the operator that computes it can be limited; none: 8, or the widest that a supernet was trained with. Fewer
    /// make nothing smaller or faster here: they are for comparison with other hardware.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation_bits: Option<u8>,
    /// How activation ranges are chosen; none tries several and keeps the best on held-out calibration samples.
    pub observer: Option<Observer>,
    /// Subtract the mean error that weight rounding causes; none tries both.
    pub bias_correction: Option<bool>,
    /// Balance the channels of neighbouring layers (cross-layer equalization); none tries both.
    pub equalize: Option<bool>,
    /// How weights below eight bits are rounded.
    pub rounding: RoundingRule,
    /// Price of a bit a weight, as a share of the energy of a layer's outputs: weights are rounded to what a code makes shorter. 0: bits cost nothing. For
    /// a layer of mean size a noise of a hundredth (20 dB) is in balance with a price of `0.01 * 2 ln 2 = 0.014`; a larger one gives up more.
    pub bit_price: f64,
    /// Layers that differ, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, LayerOptions>,
}

/// What a layer may have of its own; absent: as the network's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LayerOptions {
    /// Bits of a weight, 2 to 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_bits: Option<u8>,
    /// What a scale covers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granularity: Option<Granularity>,
    /// Bits of what it reads, 2 to 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation_bits: Option<u8>,
    /// Whether levels lie evenly about zero; only a supernet's sub-networks have others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symmetric: Option<bool>,
}

/// How weights become integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoundingRule {
    /// Below eight bits the weights of a filter make up for one another's errors, see [`Rounding`].
    #[default]
    Compensated,
    /// Each for itself.
    Nearest,
}

impl Default for QuantOptions {
    fn default() -> QuantOptions {
        QuantOptions {
            weight_bits: 8,
            granularity: Granularity::Channel,
            activation_bits: None,
            observer: None,
            bias_correction: None,
            equalize: None,
            rounding: RoundingRule::default(),
            bit_price: 0.0,
            layers: BTreeMap::new(),
        }
    }
}

impl QuantOptions {
    /// Bits and granularity of a node's weights.
    pub fn of(&self, node: &Node) -> (u8, Granularity) {
        if matches!(node.op, Op::Affine { .. }) {
            // One weight per channel: its own scale makes it exact.
            return (8, Granularity::Channel);
        }
        let own = self.layers.get(&node.name).copied().unwrap_or_default();
        (own.weight_bits.unwrap_or(self.weight_bits), own.granularity.unwrap_or(self.granularity))
    }

    /// Bits of what a layer reads.
    pub fn activation_bits_of(&self, layer: &str) -> u8 {
        let own = self.layers.get(layer).and_then(|own| own.activation_bits);
        own.or(self.activation_bits).unwrap_or(8)
    }

    /// Whether some weights of the graph are rounded in a way that must know their inputs.
    pub fn is_compensated(&self, graph: &Graph) -> bool {
        let has_few = |n: &Node| crate::least_squares::weights(&n.op).is_some() && self.is_rounded(self.of(n).0);
        self.rounding == RoundingRule::Compensated && graph.nodes.iter().any(has_few)
    }

    /// Whether weights of this width are more than rounded to nearest.
    pub fn is_rounded(&self, bits: u8) -> bool {
        bits < 8 || self.bit_price > 0.0
    }

    /// Bits and their price are possible, and layers that are named are there.
    pub fn check(&self, graph: &Graph) -> Result<(), SchemeError> {
        let bits = std::iter::once(self.weight_bits).chain(self.layers.values().filter_map(|l| l.weight_bits));
        if let Some(bits) = bits.into_iter().find(|bits| !(2..=8).contains(bits)) {
            return Err(SchemeError::WeightBits(bits));
        }
        let bits = self.activation_bits.into_iter().chain(self.layers.values().filter_map(|l| l.activation_bits));
        if let Some(bits) = bits.into_iter().find(|bits| !(2..=8).contains(bits)) {
            return Err(SchemeError::ActivationBits(bits));
        }
        if !(0.0..=1.0).contains(&self.bit_price) {
            return Err(SchemeError::BitPrice(self.bit_price));
        }
        if self.bit_price > 0.0 && self.rounding == RoundingRule::Nearest {
            return Err(SchemeError::Unpriced);
        }
        let is_there = |name: &String| {
            graph.nodes.iter().any(|n| n.name == *name && crate::least_squares::weights(&n.op).is_some())
        };
        if let Some((name, _)) = self.layers.iter().find(|(_, l)| l.symmetric == Some(false)) {
            return Err(SchemeError::Asymmetric { name: name.clone() });
        }
        if let Some(name) = self.layers.keys().find(|name| !is_there(name)) {
            return Err(SchemeError::NoLayer { name: name.clone() });
        }
        let is_fixed =
            |name: &String| graph.nodes.iter().any(|n| n.name == *name && limited_at(graph, n.inputs[0]).is_none());
        let few = |own: &LayerOptions| own.activation_bits.is_some_and(|bits| bits < 8);
        match self.layers.iter().find(|(name, own)| few(own) && is_fixed(name)) {
            Some((name, _)) => Err(SchemeError::FixedActivation { name: name.clone() }),
            None => Ok(()),
        }
    }
}

/// What one weight scale covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// One output channel.
    Channel,
    /// The whole tensor.
    Tensor,
}

/// One complete choice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// See [`QuantOptions::observer`].
    pub observer: Observer,
    /// See [`QuantOptions::bias_correction`].
    pub bias_correction: bool,
}

/// Quantizes a simplified graph. `input_is_u8` says for each input whether its raw data are bytes. The graph's first node may be the
/// preprocessing (`Affine` on an input); where an input's scale and zero point can express it, it vanishes. What `rounding` does not know
/// is rounded to nearest.
pub fn quantize(
    graph: &Graph,
    stats: &Stats,
    options: &QuantOptions,
    choice: Choice,
    input_is_u8: &[bool],
    rounding: &Rounding,
) -> Result<QGraph, SchemeError> {
    options.check(graph)?;
    let activations::Activations { graph, params, inputs, means } =
        activations::assign(graph.clone(), stats, options, choice.observer, input_is_u8, rounding);
    let weights = graph
        .nodes
        .iter()
        .map(|node| {
            let mean = choice.bias_correction.then(|| node.inputs.first().map(|id| means[id.0].as_slice())).flatten();
            weights::quantize(node, &params, mean, options, rounding)
        })
        .collect::<Result<_, _>>()?;
    let outputs = graph.outputs.iter().map(|p| RawPort { params: params[p.tensor.0], is_u8: false }).collect();
    Ok(QGraph { graph, activations: params, weights, inputs, outputs })
}

/// Why a network cannot be quantized.
#[derive(Debug, thiserror::Error)]
pub enum SchemeError {
    /// A width that is not offered.
    #[error("weight_bits is {0}; choose 2 to 8")]
    WeightBits(u8),
    /// A width that is not offered.
    #[error("activation_bits is {0}; choose 2 to 8")]
    ActivationBits(u8),
    /// A width for what keeps eight bits.
    #[error(
        "layer '{name}' reads an activation that keeps eight bits: nothing before it can be limited, or its readers share it with a concatenation; leave out its activation_bits"
    )]
    FixedActivation {
        /// Name of the layer.
        name: String,
    },
    /// A price that makes no sense.
    #[error("quantize.bit_price is {0}; choose 0 to 1, such as 0.01")]
    BitPrice(f64),
    /// A price that does nothing.
    #[error("quantize.bit_price does nothing with rounding = \"nearest\"; leave one of them out")]
    Unpriced,
    /// A form that is trained.
    #[error("quantize.layers.'{name}' is asymmetric, which only a supernet (`quantize elastic`) can be")]
    Asymmetric {
        /// As it was given.
        name: String,
    },
    /// A layer that the network does not have.
    #[error(
        "quantize.layers names '{name}', which is no layer with weights of this network; `quantize inspect` lists them"
    )]
    NoLayer {
        /// As it was given.
        name: String,
    },
    /// NaN or infinite weights.
    #[error("node '{node}': a weight or bias is not finite; export the model from a healthy checkpoint")]
    NotFinite {
        /// Node name.
        node: String,
    },
}

/// `(multiplier, shift)` with `multiplier / 2^shift` nearest to `factor`, see [`pith::fixed`]. The relative error is at most `2^-31` for
/// factors from `2^-31` to `2^30`; larger ones saturate, smaller ones lose digits.
pub fn multiplier(factor: f64) -> (i32, u8) {
    if factor == 0.0 || !factor.is_finite() {
        return (0, 31);
    }
    let exponent = factor.abs().log2().floor() as i32 + 1;
    // |factor| = fraction * 2^exponent with fraction in 0.5 .. 1 (rounding of log2 is corrected below).
    let (mut fraction, mut exponent) = (factor / 2f64.powi(exponent), exponent);
    if fraction.abs() >= 1.0 {
        (fraction, exponent) = (fraction / 2.0, exponent + 1);
    } else if fraction.abs() < 0.5 {
        (fraction, exponent) = (fraction * 2.0, exponent - 1);
    }
    let mut shift = 31 - exponent;
    if shift > 62 {
        fraction /= 2f64.powi(shift - 62);
        shift = 62;
    }
    let rounded = (fraction * 2f64.powi(31)).round();
    match (rounded.abs() >= 2f64.powi(31), shift) {
        (true, 2..) => ((rounded / 2.0) as i32, shift as u8 - 1),
        (_, ..=0) => (if factor > 0.0 { i32::MAX } else { -i32::MAX }, 1),
        (_, shift) => (rounded as i32, shift as u8),
    }
}

/// Significant bits of an output stage's multiplier: its error is at most `2^-14`, a 64th of a step at the far end of eight bits.
const MULTIPLIER_BITS: u32 = 14;

/// Shift up to which biases are told to the last accumulator step; beyond it in units of a 32nd of an output step or less.
const EXACT_BIAS_SHIFT: u8 = 36;

/// As [`multiplier`], of an output stage: in no more digits than the outputs can tell, so that stages pack well ([`pith::format::stages`]).
pub fn stage_multiplier(factor: f64) -> (i32, u8) {
    let (multiplier, shift) = multiplier(factor);
    let unit = 1i64 << (31 - MULTIPLIER_BITS);
    let rounded = (i64::from(multiplier) + unit / 2).div_euclid(unit) * unit;
    match (i32::try_from(rounded), shift) {
        (Ok(rounded), _) => (rounded, shift),
        (Err(_), 2..) => (1 << 30, shift - 1),
        (Err(_), _) => (multiplier, shift),
    }
}

/// A number of accumulator steps as a stage with this shift tells it.
pub fn stage_bias(steps: f64, shift: u8) -> f64 {
    let unit = 2f64.powi(i32::from(shift.saturating_sub(EXACT_BIAS_SHIFT)));
    (steps / unit).round() * unit
}

/// Multipliers and the common shift of a sum of two tensors, see [`pith::fixed::rescale_sum`].
pub fn sum_factors(factors: [f64; 2]) -> ([i32; 2], u8) {
    let largest = factors[0].abs().max(factors[1].abs());
    let limit = pith::fixed::SUM_MULTIPLIER_MAX as f64;
    let shift = (1..=30).rev().find(|&s| largest * 2f64.powi(s) <= limit).unwrap_or(1);
    (factors.map(|f| (f * 2f64.powi(shift)).round().clamp(-limit, limit) as i32), shift as u8)
}

/// The int8 that stands for a real value, half rounded up.
pub fn quantize_value(value: f32, params: QParams) -> i8 {
    ((value as f64 / params.scale as f64 + 0.5).floor() + params.zero_point as f64).clamp(-128.0, 127.0) as i8
}

/// Lowest and highest int8 that a fused clamp allows.
pub fn quantized_clamp(clamp: Clamp, params: QParams) -> (i8, i8) {
    let bound = |value: f32, open: i8| if value.is_finite() { quantize_value(value, params) } else { open };
    (bound(clamp.min, i8::MIN), bound(clamp.max, i8::MAX))
}

/// The 256 outputs of an element-wise function, indexed by `q + 128`.
pub fn table(f: &ScalarFn, from: QParams, to: QParams) -> Vec<i8> {
    (-128..=127)
        .map(|q| {
            let x = from.scale as f64 * (q - from.zero_point) as f64;
            let y = f.eval(x) / to.scale as f64;
            let y = if y.is_nan() { 0.0 } else { y };
            ((y + 0.5).floor() + to.zero_point as f64).clamp(-128.0, 127.0) as i8
        })
        .collect()
}

/// Parameters of a range. If it includes zero, the zero point is an int8; else it lies outside, at most as far as
/// [`pith::format::tensor::Tensor::ZERO_POINTS`] reach.
pub fn params_of(min: f32, max: f32) -> QParams {
    let (min, max) = (min as f64, max as f64);
    if max - min < 1e-30 && min.abs().max(max.abs()) < 1e-30 {
        return QParams { scale: 1.0, zero_point: 0 };
    }
    // A range far from zero in terms of its width gets a coarser step, so that the zero point stays within reach.
    let scale = ((max - min) / 255.0).max(min.abs().max(max.abs()) / 16_000.0) as f32;
    let zero_point = (-128.0 - min / scale as f64).round();
    let zero_point = if min <= 0.0 && max >= 0.0 { zero_point.clamp(-128.0, 127.0) } else { zero_point };
    QParams { scale, zero_point: zero_point as i32 }
}
