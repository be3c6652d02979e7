//! What is said over the line, in `postcard`'s encoding. The order of variants and fields is the protocol: new ones go to the end, and
//! [`PROTOCOL`] counts changes that an older end would misread.

use serde::{Deserialize, Serialize};

/// Version of these messages.
pub const PROTOCOL: u8 = 1;

/// Bytes of data in a message, at most: a multiple of what every flash writes at once. Three buffers on a board's stack are a little longer.
pub const CHUNK: usize = 160;

/// What the host asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request<'a> {
    /// Who is there? → [`Response::Identity`]
    Identify,
    /// Makes room for a model of so many bytes in the slot that is not in use. → [`Response::Done`]
    Begin {
        /// Of the file.
        bytes: u32,
    },
    /// A part of it, in order; parts but the last have [`CHUNK`] bytes. → [`Response::Done`]
    Write {
        /// In the file.
        offset: u32,
        /// At most [`CHUNK`].
        data: &'a [u8],
    },
    /// The model is complete: it is checked, and runs from now on. → [`Response::Done`]
    Commit {
        /// CRC-32 of the whole file.
        crc32: u32,
    },
    /// A part of an input. → [`Response::Done`]
    Input {
        /// Of the input.
        index: u8,
        /// In elements.
        offset: u32,
        /// Int8 elements.
        data: &'a [u8],
    },
    /// Runs the model; all inputs have to be given before. → [`Response::Ran`]
    Run,
    /// A part of an output. → [`Response::Data`]
    Output {
        /// Of the output.
        index: u8,
        /// In elements.
        offset: u32,
        /// Elements, at most [`CHUNK`].
        bytes: u16,
    },
    /// Ticks of operators in the last run, four bytes each, little-endian. → [`Response::Data`]
    Layers {
        /// The first.
        first: u16,
    },
}

/// What the board answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response<'a> {
    /// Done.
    Done,
    /// To [`Request::Identify`].
    Identity(#[serde(borrow)] Identity<'a>),
    /// Bytes that were asked for.
    Data(&'a [u8]),
    /// To [`Request::Run`].
    Ran {
        /// Of all operators.
        ticks: u64,
        /// Operators.
        operators: u16,
        /// Stack that was in use at most since the start, in bytes; 0 where it is not measured.
        stack_bytes: u32,
    },
    /// Not done.
    Refused {
        /// Why.
        reason: Reason,
        /// What the runtime says of the model, may be empty.
        detail: &'a str,
    },
}

/// A board and its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity<'a> {
    /// [`PROTOCOL`].
    pub protocol: u8,
    /// Name of the board, as in `boards/`.
    pub board: &'a str,
    /// Ticks of a second.
    pub tick_hz: u32,
    /// Memory for an arena and decoded weights.
    pub memory_bytes: u32,
    /// The longest model file, 0 if it cannot be replaced.
    pub slot_bytes: u32,
    /// The model, if there is one that runs.
    pub model: Option<Running>,
}

/// The model that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Counts updates.
    pub version: u32,
    /// Of the file.
    pub bytes: u32,
    /// Of the whole file.
    pub crc32: u32,
    /// Of its arena.
    pub arena_bytes: u32,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// No message of this protocol.
    NotUnderstood,
    /// There is no model that runs.
    NoModel,
    /// There is no such input, output or operator, or not so much of it.
    OutOfRange,
    /// The file is longer than a slot.
    TooLong,
    /// A part without a beginning, or out of order.
    OutOfOrder,
    /// Flash could not be erased or written, or reads otherwise than written.
    Flash,
    /// The file's checksum is not the announced one.
    Checksum,
    /// The runtime refuses the model.
    Model,
    /// The model wants more memory than there is.
    Memory,
}

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Reason::NotUnderstood => "the board does not understand the request; is its program older than this one?",
            Reason::NoModel => "the board has no model that runs",
            Reason::OutOfRange => "the model has no such input, output or operator, or not so much of it",
            Reason::TooLong => "the file is longer than the board's slot",
            Reason::OutOfOrder => "a part of the file came without a beginning or out of order",
            Reason::Flash => "the board's flash could not be written",
            Reason::Checksum => "the file arrived damaged",
            Reason::Model => "the board's runtime refuses the model",
            Reason::Memory => "the model wants more memory than the board has",
        })
    }
}
