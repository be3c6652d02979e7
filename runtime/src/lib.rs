//! Pith's runtime: executes a `.pith` model in the caller's memory. `no_std`, no allocation, no floats between int8 input and
//! int8 output, and the same bytes on every core.
#![no_std]
#![deny(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!("model files are little-endian views; big-endian targets are not supported");

pub mod fixed;
pub mod format;
