//! The model and the inputs that `build.rs` put into the program.

use pith::Aligned;

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The model file.
pub fn file() -> &'static [u8] {
    &MODEL_FILE.0
}

/// Raw int8 inputs, one sample after another, as bytes.
pub fn inputs() -> &'static [u8] {
    &INPUT_FILE
}
