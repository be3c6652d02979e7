//! ONNX files: import, then simplify.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(graph) = quantize::onnx::import_bytes("fuzz.onnx", data) {
        quantize::graph::simplify(graph);
    }
});
