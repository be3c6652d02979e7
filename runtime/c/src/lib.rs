//! [`pith`]'s runtime for C and C++: `include/pith.h` says the same in their words.
//!
//! Nothing is allocated: a model and an engine are structs of fixed size in the caller's memory, which this crate fills and checks at every
//! call. Whatever can be told apart from its memory is an error code: null pointers, alignments, lengths, overlaps, objects that were never made.
//!
//! # What callers promise
//!
//! What cannot be told is the contract of every function here:
//! - a pointer is null or points to as many bytes as the length beside it says (to one object, where there is none), which nobody else uses during
//!   the call;
//! - a [`pith_model_t`] or [`pith_engine_t`] was made by these functions or is zeros;
//! - the bytes of a file, and those that its weights were decoded into, stay as they are while the model is in use; model, arena and
//!   workspace stay where they are while the engine is in use, and nobody else writes to the workspace.
//!
//! Modules: [`mod@error`] has the codes, `memory` the checks of pointers, [`model`] and [`engine`] the functions.
#![cfg_attr(target_os = "none", no_std)]
#![allow(non_camel_case_types)] // names are C's
#![allow(clippy::missing_safety_doc)] // one contract for all of them, above

pub mod engine;
pub mod error;
mod memory;
pub mod model;

pub use engine::*;
pub use error::*;
pub use model::*;

/// The runtime does not panic; a program without an operating system needs this nevertheless.
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
