//! Codes of errors, and their sentences.

use core::ffi::{CStr, c_char};
use core::fmt::{self, Write};
use pith::Error;

/// What a function says; `pith_error_text` has a sentence for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum pith_error_t {
    /// It went well.
    PITH_OK = 0,
    /// A pointer is null.
    PITH_NULL = 1,
    /// A pointer is not aligned: files, arenas and decoded weights to 16 bytes, objects as their types are.
    PITH_MISALIGNED = 2,
    /// A length is not that of the input or output, or larger than memory can be.
    PITH_LENGTH = 3,
    /// Two pieces of memory share bytes.
    PITH_OVERLAP = 4,
    /// The model or the engine was not made, or could not be.
    PITH_NOT_MADE = 5,
    /// The engine is running: a step's callback may not use it.
    PITH_BUSY = 6,
    /// There is no such input or output.
    PITH_INDEX = 7,
    /// A step's callback stopped the run.
    PITH_STOPPED = 8,
    /// The bytes are no `.pith` file.
    PITH_NOT_A_MODEL = 9,
    /// The file is cut off.
    PITH_TRUNCATED = 10,
    /// The file has a version of the format that this runtime does not read.
    PITH_VERSION = 11,
    /// The file, its coded weights or what they were decoded to is damaged.
    PITH_DAMAGED = 12,
    /// A record of the file is invalid.
    PITH_INVALID = 13,
    /// The file needs a feature that this runtime does not have.
    PITH_UNSUPPORTED = 14,
    /// The arena, the workspace, or memory to decode in or into is too small.
    PITH_TOO_SMALL = 15,
    /// The weights are coded and not decoded yet.
    PITH_NOT_DECODED = 16,
    /// Anything else.
    PITH_OTHER = 17,
}

use pith_error_t::*;

/// Codes and sentences.
const TEXTS: [(pith_error_t, &CStr); 18] = [
    (PITH_OK, c"no error"),
    (PITH_NULL, c"a pointer is null"),
    (PITH_MISALIGNED, c"a pointer is not aligned; files, arenas and decoded weights start at a multiple of 16 bytes"),
    (PITH_LENGTH, c"a length is not that of the input or output, or larger than memory can be"),
    (PITH_OVERLAP, c"two pieces of memory share bytes"),
    (PITH_NOT_MADE, c"the model or the engine was not made; call pith_model_parse and pith_engine_init, and look at what they return"),
    (PITH_BUSY, c"the engine is running; a step's callback may not use it"),
    (PITH_INDEX, c"there is no such input or output"),
    (PITH_STOPPED, c"the callback stopped the run"),
    (PITH_NOT_A_MODEL, c"not a .pith model (it does not begin with \"PITH\"); build one with `quantize build`"),
    (PITH_TRUNCATED, c"the model is cut off; copy the whole file"),
    (PITH_VERSION, c"this runtime does not read the file's version; build the model again"),
    (PITH_DAMAGED, c"the model is damaged; copy or build the file again"),
    (PITH_INVALID, c"a record of the model is invalid; build the file again"),
    (PITH_UNSUPPORTED, c"the model needs a newer runtime"),
    (PITH_TOO_SMALL, c"the arena, the workspace, or memory to decode in or into is too small"),
    (PITH_NOT_DECODED, c"the model's weights are coded; call pith_model_decode first"),
    (PITH_OTHER, c"another error"),
];

/// A sentence for an error, never null.
#[unsafe(no_mangle)]
pub extern "C" fn pith_error_text(error: i32) -> *const c_char {
    let text = usize::try_from(error).ok().and_then(|code| TEXTS.get(code));
    text.map_or(c"no such error", |&(_, text)| text).as_ptr()
}

const _: () = {
    let mut code = 0;
    while code < TEXTS.len() {
        assert!(TEXTS[code].0 as usize == code, "sentences are in the order of codes");
        code += 1;
    }
};

impl From<Error> for pith_error_t {
    fn from(error: Error) -> pith_error_t {
        match error {
            Error::FileMisaligned | Error::ArenaMisaligned | Error::DecodedMisaligned => PITH_MISALIGNED,
            Error::Truncated { .. } => PITH_TRUNCATED,
            Error::NotAModel => PITH_NOT_A_MODEL,
            Error::Version { .. } => PITH_VERSION,
            Error::Checksum { .. } | Error::DecodedChecksum { .. } => PITH_DAMAGED,
            Error::Header { .. }
            | Error::Tensor { .. }
            | Error::Constant { .. }
            | Error::Port { .. }
            | Error::Op { .. } => PITH_INVALID,
            Error::Unsupported { .. } => PITH_UNSUPPORTED,
            Error::ArenaTooSmall { .. } | Error::DecodeTooSmall { .. } | Error::WorkspaceTooSmall { .. } => {
                PITH_TOO_SMALL
            }
            Error::NotDecoded => PITH_NOT_DECODED,
            _ => PITH_OTHER,
        }
    }
}

/// The code of a result.
pub(crate) fn code(result: Result<(), pith_error_t>) -> pith_error_t {
    result.err().unwrap_or(PITH_OK)
}

/// Writes an error's sentence and a zero into `out`, cut where that ends, and returns the length of the whole sentence.
pub(crate) fn write_detail(error: Option<Error>, out: &mut [u8]) -> usize {
    let mut text = Text { room: out.len().saturating_sub(1), out, len: 0 };
    let written = error.map_or(Ok(()), |error| write!(text, "{error}"));
    debug_assert!(written.is_ok(), "text takes everything");
    let end = text.len.min(text.room);
    if let Some(zero) = text.out.get_mut(end) {
        *zero = 0;
    }
    text.len
}

/// Text that is cut where its memory ends.
struct Text<'a> {
    out: &'a mut [u8],
    room: usize,
    /// Of what was written, cut or not.
    len: usize,
}

impl Write for Text<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = self.out.get_mut(self.len.min(self.room)..self.room).unwrap_or(&mut []);
        room.iter_mut().zip(part.bytes()).for_each(|(to, byte)| *to = byte);
        self.len += part.len();
        Ok(())
    }
}
