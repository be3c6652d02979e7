//! Weights coded with probabilistic circuits: a tractable model says how probable every value of the next weight is, an entropy coder turns
//! that into bytes and back.
//!
//! ```text
//! coded constant ──> Coded (checked header) ──> Decoder: one row of weights at a time, in integers
//!                                               model (flat, classes, predictive, refined) ──> leaf ──> rans
//! ```
//!
//! A model walks over the weights of a row and asks a [`Coder`] for each, giving it a [`Leaf`]: the distribution of that weight. The decoder
//! answers with the weight that the code says; the host's recorder with the weight that is to be coded. So host and device compute the
//! probabilities with the code of this module alone, in integers, and agree to the last bit on every machine. Source of the method:
//! "Lossless Compression with Probabilistic Circuits", ICLR 2022.

pub mod classes;
pub mod leaf;
pub mod predictive;
pub mod rans;
pub mod rans64;
pub mod refined;
mod stream;
pub mod tree;
pub mod walk;

pub use leaf::{Leaf, Uniform};
pub use stream::{
    Coded, Decoder, FLAT_INSTRUCTIONS_PER_WEIGHT, Flat, FlatDecoder, MODEL_CLASSES, MODEL_NARROW, MODEL_PREDICTIVE,
    MODEL_REFINED, MODEL_UNIFORM, Refiner, Shape, emit_header, emit_varint, shape_of,
};

/// Turns distributions into symbols: from code, or from symbols that are known.
pub trait Coder {
    /// The next symbol, which `leaf` describes.
    fn code<L: Leaf>(&mut self, leaf: &L) -> i32;
}
