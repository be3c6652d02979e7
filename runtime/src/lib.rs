//! Pith's runtime: executes a `.pith` model in memory that the caller owns. `no_std`, no allocation, no floats between int8
//! input and int8 output, no panic on any file, and the same bytes on every core.
//!
//! Modules, in reading order:
//! - [`fixed`]: the only rounding in the project;
//! - [`format`](mod@format): the bytes of a model file;
//! - [`circuit`]: weights coded with probabilistic circuits;
//! - [`Model`]: a file, checked once ([`Model::parse`]); afterwards nothing can fail, except that coded weights may be damaged;
//! - [`kernels`]: inner loops, [`kernels::generic`] being their meaning;
//! - [`ops`]: operators, that is shapes and borders around kernels;
//! - [`Isa`]: instruction sets, compiled for or looked up;
//! - [`Engine`]: a model and its arena, on a desktop with a workspace for packed weights;
//! - [`uses`]: what a program may leave out;
//! - [`mod@precisions`]: a file of several precisions;
//! - [`embed`]: a model as a constant of the program ([`include_model!`]).
//!
//! ```
//! # fn main() -> Result<(), pith::Error> {
//! let model = pith::Model::parse(pith::include_model!("../tests/golden/tiny.pith"))?;
//! let mut arena = pith::Aligned([0; 64]); // model.arena_bytes() or more
//! let mut engine = pith::Engine::new(&model, &mut arena.0)?;
//! engine.input(0).copy_from_slice(&[3, 3, 3]);
//! engine.run();
//! assert_eq!(engine.output(0), [7, -15]);
//! # Ok(())
//! # }
//! ```
#![no_std]
#![deny(unsafe_code)]

#[cfg(test)]
extern crate std;

#[cfg(target_endian = "big")]
compile_error!("model files are little-endian views; big-endian targets are not supported");

mod check;
pub mod circuit;
mod coded;
mod decode;
pub mod embed;
mod engine;
mod error;
pub mod fixed;
pub mod format;
mod isa;
pub mod kernels;
mod model;
pub mod ops;
pub mod precisions;
pub mod uses;
#[cfg(pith_desktop)]
mod workspace;

pub use engine::{Aligned, Engine, Steps};
pub use error::Error;
pub use isa::Isa;
pub use model::{Model, Ops};
pub use precisions::precisions;
#[cfg(pith_desktop)]
pub use workspace::Parallel;
