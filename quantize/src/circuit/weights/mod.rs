//! Weights → coded constants.
//!
//! | level | models tried | taps up to | leaf shapes | for |
//! |---|---|---|---|---|
//! | 0 | none: every value equally probable | | | reading back |
//! | 1, 2 | classes | | few, all | fastest decoding |
//! | 3 | predictive | 0 | few | |
//! | 4 | predictive | 2 | few | |
//! | 5 | predictive | 3 | few | |
//! | 6, default | predictive | 4 | all | devices |
//! | 7 | predictive | 6 | all | |
//! | 8 | predictive | 10 | all | |
//! | 9 | predictive | 15 | all | smallest |
//!
//! From level 3 on the classes are tried too and the smallest is kept. A limit on the decoding cost or on memory leaves out what exceeds it.

mod record;
mod search;

pub use record::{Model, Weights};

use pith::circuit::{MODEL_CLASSES, MODEL_PREDICTIVE, MODEL_UNIFORM, Shape};

/// The level that is meant where none is given.
pub const DEFAULT_LEVEL: u8 = 6;

/// What may be spent.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// 0 to 9, see the module.
    pub level: u8,
    /// Instructions on a Cortex-M4, see [`pith::circuit::Coded::instructions_per_weight`].
    pub max_instructions_per_weight: u32,
    /// Bytes of a decoder's state.
    pub max_state_bytes: usize,
}

impl Options {
    /// A level without limits but for the state of a device: 4 KB, and none at level 9.
    pub fn level(level: u8) -> Options {
        let max_state_bytes = if level < 9 { 4096 } else { usize::MAX };
        Options { level, max_instructions_per_weight: u32::MAX, max_state_bytes }
    }
}

impl Default for Options {
    fn default() -> Options {
        Options::level(DEFAULT_LEVEL)
    }
}

/// What a level tries.
#[derive(Clone, Copy, Debug)]
struct Effort {
    level: u8,
    taps: usize,
    all_shapes: bool,
    /// Other scales of the first row.
    bases: usize,
    /// Farthest tap.
    reach: usize,
}

impl Effort {
    fn of(level: u8) -> Effort {
        let taps = [0, 0, 0, 0, 2, 3, 4, 6, 10, 15][level.min(9) as usize];
        let reach = if level < 9 { 4096 } else { usize::MAX };
        Effort { level, taps, all_shapes: level == 2 || level > 5, bases: if level > 6 { 6 } else { 2 }, reach }
    }

    fn shapes(&self) -> impl Iterator<Item = u8> + use<> {
        search::shapes(self.all_shapes)
    }
}

/// Codes `weights`, `[rows, positions, channels]` of `bits` bits each. `level` 0 to 9 trades time for size.
pub fn encode(weights: &[i8], shape: Shape, bits: u8, level: u8) -> Vec<u8> {
    encode_with(weights, shape, bits, &Options::level(level), &mut || ())
}

/// Codes `weights` within limits; `progress` is called for every model tried.
pub fn encode_with(weights: &[i8], shape: Shape, bits: u8, options: &Options, progress: &mut dyn FnMut()) -> Vec<u8> {
    let weights = Weights { values: weights, shape, bits };
    record::emit(&choose(&weights, options, progress), &weights)
}

/// Codes `weights` with a model that is given.
pub fn encode_as(model: &Model, weights: &Weights<'_>) -> Vec<u8> {
    record::emit(model, weights)
}

/// What a coded constant costs, for reports and budgets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Description {
    /// Name of the model.
    pub model: &'static str,
    /// Predicted instructions a weight on a Cortex-M4.
    pub instructions_per_weight: f64,
}

/// Of coded weights.
pub fn describe(bytes: &[u8]) -> Description {
    let (model, instructions_per_weight) = match bytes.first() {
        Some(&MODEL_UNIFORM) => ("uniform", 15.0),
        Some(&MODEL_CLASSES) => ("classes", 60.0),
        Some(&MODEL_PREDICTIVE) => ("predictive", 250.0),
        _ => ("unknown", 0.0),
    };
    Description { model, instructions_per_weight }
}

/// The model under which the weights cost the least.
pub fn choose(weights: &Weights<'_>, options: &Options, progress: &mut dyn FnMut()) -> Model {
    let effort = Effort::of(options.level);
    let mut best = search::Best { model: Model::Uniform, cost: record::cost(&Model::Uniform, weights) };
    let mut take = |candidate: search::Best| {
        if candidate.cost < best.cost {
            best = candidate;
        }
    };
    if options.level > 0 {
        progress();
        take(search::classes(weights, &effort));
    }
    if options.level > 2 {
        let may = |params: &pith::circuit::predictive::Params| {
            4 * params.state_words(weights.shape) <= options.max_state_bytes
        };
        take(search::predictive(weights, &effort, &may, progress));
    }
    best.model
}

#[cfg(test)]
mod tests {
    use super::*;
    use pith::circuit::Coded;

    #[test]
    fn what_is_encoded_is_decoded() {
        for (bits, level) in (2..=8u8).flat_map(|bits| [0, 1, 3, 6].map(|level| (bits, level))) {
            let shape = Shape { rows: 3, positions: 2, channels: 5 };
            let half = 1i32 << (bits - 1);
            let weights: Vec<i8> = (0..30).map(|i| (i * 37 % (2 * half) - half) as i8).collect();
            let bytes = encode(&weights, shape, bits, level);
            let coded = Coded::new_checked(&bytes, bits, weights.len()).unwrap();
            assert_eq!(coded.shape(), shape);
            let mut state = vec![0; coded.state_words()];
            let mut decoder = coded.decoder(&mut state).unwrap();
            let mut row = vec![0; shape.row()];
            for expected in weights.chunks(shape.row()) {
                decoder.row(&mut row);
                assert_eq!(row, expected);
            }
            assert!(decoder.is_finished());
        }
    }
}
