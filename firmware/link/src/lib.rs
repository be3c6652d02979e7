//! A model on a board, seen from the other end of a serial line: what is it, give it an input, run it, read the output, what did every
//! layer take, replace it by another. `no_std`, no allocation; any line with [`embedded_io`] traits, any flash with [`embedded_storage`]'s.
//!
//! Modules, in reading order:
//! - [`frame`]: bytes of a line become frames that are whole or are dropped;
//! - [`message`]: what the two ends say;
//! - [`slots`]: two places for a model in flash, so that an update that is cut off anywhere leaves one to run;
//! - [`server`]: the board's end. Its memory is a frame in and a frame out.
//!
//! The host asks, the board answers, and every question has a number. An answer that does not come is asked for again under the same
//! number, and a board that has answered it already says the same again, without doing anything twice: a run overwrites its inputs, so
//! running twice would give something else. Whatever the line loses, repeats or turns over, a message arrives as it was sent or not at all.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod frame;
pub mod message;
pub mod server;
pub mod slots;
