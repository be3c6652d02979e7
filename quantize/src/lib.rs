//! From a trained ONNX network to a `.pith` file.
//!
//! Data flows one way, and a module imports only what stands before it in this list:
//! [`random`] (seeded numbers), [`files`] (whole or not at all), [`graph`] (the IR and its exact rewrites), [`networks`] (to train from scratch), [`onnx`]
//! (import, export, float oracle), [`npy`] and [`data`] (sets), [`train`], [`prune`] and [`elastic`] (supernets), [`calibrate`]
//! (observers), [`scheme`] (float graph → quantized graph), [`shrink`] (exact removal of channels), [`lower`] (records), [`circuit`] (coded weights),
//! [`pack`] (memory plan, bytes), [`execute`] (a packed model on the host), [`correct`]
//! (its mean error), [`recipe`] (every default), [`build`] (all of it
//! in order), [`report`] and [`cli`].

#![forbid(unsafe_code)]

pub mod build;
pub mod calibrate;
pub mod circuit;
pub mod cli;
pub mod correct;
pub mod cost;
pub mod data;
pub mod elastic;
pub mod execute;
pub mod files;
pub mod graph;
mod least_squares;
pub mod lower;
pub mod networks;
pub mod npy;
pub mod onnx;
pub mod pack;
pub mod prune;
pub mod random;
pub mod recipe;
pub mod report;
pub mod scheme;
pub mod search;
pub mod shrink;
pub mod target;
pub mod train;
