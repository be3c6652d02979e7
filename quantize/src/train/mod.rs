//! Training: any graph that the importer accepts, forward and backward, on `burn`. The only module that names burn's types.
//!
//! In reading order: `windows` (convolutions, pools and batch norms on slices), `ops` (the same as operators of a burn backend, with
//! gradients), `net` (a graph as a differentiable function of its flat parameter vector), `norms` (batch norms for networks that have none),
//! `optimizer`, `augment`, `session` (a run: batches, steps, progress) and `checkpoint`.

mod augment;
mod checkpoint;
mod conv;
mod net;
mod norms;
mod ops;
mod optimizer;
mod session;
#[cfg(test)]
mod tests;
mod windows;

pub use augment::Augment;
pub use net::{Batch, Device, Goal, Gradient, LEVELS, Moments, Net};
pub use norms::{Balance, Normed, is_layer, with_norms};
pub use optimizer::{Optimizer, Rule};
pub use session::{Data, Hooks, Lesson, Session, Status, Step, Teacher, TrainOptions, accuracy, evaluate};

use std::path::PathBuf;

/// Why a network is not trained.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages name the fields
pub enum TrainError {
    #[error("node '{node}' ({op}) cannot be trained: {what}")]
    Unsupported { node: String, op: &'static str, what: &'static str },
    #[error(
        "the set has no labels or wanted outputs 'y', and there is no teacher; add 'y', or distil from the original network"
    )]
    NoTargets,
    #[error("the set holds no samples")]
    Empty,
    #[error("the wanted outputs 'y' do not fit; the network gives {expected:?} values per sample")]
    Targets { expected: Vec<usize> },
    #[error("the teacher's inputs or outputs have other shapes than the network's")]
    Teacher,
    #[error(
        "the labels 'y' name a class per sample, but the first output holds {values} values, {classes} of them along its last axis; give wanted outputs as floats"
    )]
    Predictions { values: usize, classes: usize },
    #[error("cannot train on '{name}': {what}")]
    Device { name: String, what: String },
    #[error("the network has no parameters to train")]
    NoParameters,
    #[error("training option '{field}' must be {wanted}")]
    Option { field: &'static str, wanted: &'static str },
    #[error("step {step}: '{layer}' is no longer finite; lower the learning rate{}", kept(.checkpoint))]
    Diverged { step: usize, layer: String, checkpoint: Option<PathBuf> },
    #[error(transparent)]
    Eval(#[from] crate::graph::eval::EvalError),
    #[error("interrupted{}", kept(.checkpoint))]
    Interrupted { checkpoint: Option<PathBuf> },
    #[error("checkpoint {path}: {what}")]
    Checkpoint { path: String, what: String },
}

fn kept(checkpoint: &Option<PathBuf>) -> String {
    checkpoint.as_ref().map_or(String::new(), |path| format!(" ({} holds the last good state)", path.display()))
}
