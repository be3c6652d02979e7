//! Weights coded with probabilistic circuits: a tractable model says how probable every value of the next weight is, an entropy coder turns
//! that into bytes and back.
//!
//! ```text
//! coded constant ──> Coded (checked header) ──> Decoder: one row of weights at a time, in integers
//! ```
//!
//! Host and device compute the probabilities with the code of this module alone, so they agree to the last bit on every machine. Source of the
//! method: "Lossless Compression with Probabilistic Circuits", ICLR 2022.

pub mod rans;
pub mod rans64;
mod stream;
pub mod tree;
pub mod walk;

pub use stream::{Coded, Decoder, MODEL_UNIFORM, Shape, emit_header};
