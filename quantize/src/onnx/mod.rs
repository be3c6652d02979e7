//! Import of ONNX files, and the float oracle; the only module that names tract types.
