//! What can be wrong with a model or an arena.

use core::fmt;

/// Why a file is not a model, or an arena does not serve it. `what` names the field; the sentence of `Display` says where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // fields are named by the sentences below
#[non_exhaustive]
pub enum Error {
    /// The file does not start at a multiple of [`crate::format::ALIGN`].
    FileMisaligned,
    /// Fewer bytes than the header or the header's length field says.
    Truncated { needed: usize, given: usize },
    /// The first four bytes are not `PITH`.
    NotAModel,
    /// A version that this crate does not read.
    Version { found: u16 },
    /// The bytes changed since they were written.
    Checksum { stored: u32, computed: u32 },
    /// A field of the header, or a section that does not lie where it may.
    Header { what: &'static str },
    /// A record of the tensor table.
    Tensor { index: usize, what: &'static str },
    /// A record of the constant table.
    Constant { index: usize, what: &'static str },
    /// An input (first) or output record.
    Port { index: usize, what: &'static str },
    /// An operator record.
    Op { index: usize, what: &'static str },
    /// A reserved feature of the format that this crate does not have.
    Unsupported { what: &'static str },
    /// The arena has fewer bytes than the plan needs.
    ArenaTooSmall { needed: usize, given: usize },
    /// The arena does not start at a multiple of [`crate::format::ALIGN`].
    ArenaMisaligned,
    /// Weights of the model are coded and not decoded yet.
    NotDecoded,
    /// Memory for decoded weights, or to decode in, is too small.
    DecodeTooSmall { what: &'static str, needed: usize, given: usize },
    /// Decoded weights do not start at a multiple of [`crate::format::ALIGN`].
    DecodedMisaligned,
    /// Decoded weights are not those of the model.
    DecodedChecksum { stored: u32, computed: u32 },
    /// Whoever stores decoded weights refused a page.
    WriteRefused { offset: usize },
    /// This machine does not have the instruction set.
    NoSuchKernels { isa: &'static str },
    /// The workspace has fewer bytes than packed weights need.
    WorkspaceTooSmall { needed: usize, given: usize },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Error::FileMisaligned => {
                write!(f, "the model does not start at a multiple of 16 bytes; use include_model! or an aligned buffer")
            }
            Error::Truncated { needed, given } => {
                write!(f, "the model is cut off: {given} bytes of {needed}; copy the whole file")
            }
            Error::NotAModel => {
                write!(f, "not a .pith model (it does not begin with \"PITH\"); build one with `quantize build`")
            }
            Error::Version { found } => {
                write!(
                    f,
                    "format version {found}, this runtime reads version {}; build the model again",
                    crate::format::VERSION
                )
            }
            Error::Checksum { stored, computed } => {
                write!(
                    f,
                    "checksum {computed:08x} is not the stored {stored:08x}: the file is damaged; copy or build it again"
                )
            }
            Error::Header { what } => write!(f, "invalid header: {what}"),
            Error::Tensor { index, what } => write!(f, "tensor {index}: invalid {what}"),
            Error::Constant { index, what } => write!(f, "constant {index}: invalid {what}"),
            Error::Port { index, what } => write!(f, "input or output {index}: invalid {what}"),
            Error::Op { index, what } => write!(f, "operator {index}: invalid {what}"),
            Error::Unsupported { what } => write!(f, "{what} needs a newer runtime"),
            Error::ArenaTooSmall { needed, given } => {
                write!(f, "the arena has {given} bytes, the model needs {needed}")
            }
            Error::NotDecoded => write!(
                f,
                "the model's weights are coded; decode them first (Model::decode_into, or decode_with and with_decoded) and make the \
                 engine of the model that this returns"
            ),
            Error::DecodeTooSmall { what, needed, given } => {
                write!(f, "{what} has {given} bytes, the model's coded weights need {needed}")
            }
            Error::DecodedMisaligned => {
                write!(f, "the decoded weights do not start at a multiple of 16 bytes; use pith::Aligned")
            }
            Error::DecodedChecksum { stored, computed } => {
                write!(f, "the decoded weights have checksum {computed:08x}, not {stored:08x}; decode the model again")
            }
            Error::WriteRefused { offset } => write!(f, "the page at {offset} of the decoded weights was not written"),
            Error::NoSuchKernels { isa } => {
                write!(f, "this machine has no kernels for {isa}; take one of Isa::available()")
            }
            Error::WorkspaceTooSmall { needed, given } => {
                write!(f, "the workspace has {given} bytes, the packed weights need {needed}")
            }
            Error::ArenaMisaligned => {
                write!(f, "the arena does not start at a multiple of 16 bytes; use pith::Aligned")
            }
        }
    }
}

impl core::error::Error for Error {}
