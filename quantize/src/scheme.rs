//! A quantized graph: the float graph beside the integers that stand for it.
//!
//! Between calibration and lowering the network is a [`QGraph`]: the graph keeps its operators and axes (so that passes
//! such as [`crate::shrink`] can reason about channels), and every tensor and weighted node carries its exact integers. What
//! the device computes is a function of these integers alone; [`crate::lower`] only spells them as records.

use crate::graph::Graph;
use ndarray::ArrayD;

/// Quantization of an activation: `real = scale * (q - zero_point)`, `q` in `-128 ..= 127`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QParams {
    /// Real value of one step, positive and finite.
    pub scale: f32,
    /// The integer that stands for real zero, in `-128 ..= 127`.
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
