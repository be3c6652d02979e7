#![doc = include_str!("../../FORMAT.md")]
//!
//! # In this module
//!
//! Every record, both directions. Records are plain `repr(C)` structs without padding, so `bytemuck` turns them into bytes and
//! back.
//!
//! - [`header`]: the first bytes: version, checksum, section table;
//! - [`tensor`]: activations, constants, inputs and outputs;
//! - [`op`]: one record per operator;
//! - [`blocks`]: weights laid out for matrix kernels;
//! - [`sparse`]: weights of which only some blocks are stored;
//! - [`stages`]: output stages in few bits.

pub mod blocks;
pub mod crc32;
pub mod header;
pub mod op;
pub mod sparse;
pub mod stages;
pub mod tensor;

/// Required alignment in bytes of a model file and of an arena.
pub const ALIGN: usize = 16;

/// Version of the format that this crate reads and writes.
pub const VERSION: u16 = 1;

/// The first four bytes of every model file.
pub const MAGIC: [u8; 4] = *b"PITH";

/// Largest rank of a tensor.
pub const MAX_RANK: usize = 6;

/// "No such id" in 16-bit id fields.
pub const NONE: u16 = u16::MAX;
