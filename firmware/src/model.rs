//! The model and the inputs that `build.rs` put into the program.

use pith::{Aligned, Model};

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The model, of several precisions the finest, without what checks it.
pub fn model() -> Model<'static> {
    if COARSER_BYTES != 0 {
        return pith::precisions(&MODEL_FILE.0).filter_map(Result::ok).last().expect("`build.rs` has parsed it");
    }
    // SAFETY: `build.rs` has parsed this very file, of one precision, which it embeds aligned, and has taken `USES` from it; an empty one has no
    // operators.
    unsafe { Model::trusted(&MODEL_FILE.0) }
}

/// Raw int8 inputs, one sample after another, as bytes.
pub fn inputs() -> &'static [u8] {
    &INPUT_FILE
}
