//! One integration binary; a module an area. Tests that need data outside of the repository skip, saying so.

mod cli;
mod coded;
mod decoder;
mod device;
mod elastic;
mod export;
mod firmware;
mod import;
mod onnx_nodes;
mod parity;
mod pipeline;
mod prune;
mod search;
mod sensor;
mod training;
