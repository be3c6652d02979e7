//! The model and the inputs that `build.rs` put into the program.

use pith::{Aligned, Model};

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The model, of several precisions the finest, without what checks it.
pub fn model() -> Model<'static> {
    if COARSER_BYTES > 0
        && let Some(Ok(finest)) = pith::precisions(&MODEL_FILE.0).last()
    {
        return finest;
    }
    // SAFETY: `build.rs` has parsed this very file, which it embeds aligned, and has taken `USES` from it; an empty one has no operators.
    unsafe { Model::trusted(&MODEL_FILE.0) }
}

/// Raw int8 inputs, one sample after another, as bytes.
pub fn inputs() -> &'static [u8] {
    &INPUT_FILE
}
