//! Weights → coded constants.
//!
//! A level is a price: how many bits a weight an instruction of its decoder must save. What the price buys is chosen tensor by tensor.
//!
//! | level | models tried | price of 100 instructions, bits a weight | taps up to | leaf shapes | for |
//! |---|---|---|---|---|---|
//! | 0 | none: every value equally probable | | | | reading back |
//! | 1, 2 | classes | | | few, all | fastest decoding |
//! | 3 | and predictive | 0.2 | 1 | few | |
//! | 4 | | 0.15 | 1 | few | |
//! | 5 | | 0.1 | 1 | few | |
//! | 6, default | | 0.08 | 1 | all | devices |
//! | 7 | | 0.02 | 6 | all | |
//! | 8 | | 0.005 | 10 | all | |
//! | 9 | | 0 | 15 | all | smallest |
//!
//! Up to the default whole networks stay below 250 instructions a weight, and take 300 to 360 where single weights were pruned.
//!
//! A limit on the decoding cost or on memory leaves out what exceeds it.

mod narrow;
mod record;
mod refine;
mod search;

pub use narrow::narrow;
pub use record::{Model, Weights};
pub use refine::refine;

use pith::circuit::Shape;
use search::{Best, Limits};

/// The level that is meant where none is given.
pub const DEFAULT_LEVEL: u8 = 6;

/// What may be spent.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// 0 to 9, see the module.
    pub level: u8,
    /// Instructions on a Cortex-M4, see [`Model::instructions_per_weight`].
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
    /// Most taps.
    taps: usize,
    all_shapes: bool,
    /// Other scales of the first row.
    bases: usize,
    /// Farthest tap.
    reach: usize,
    /// Of an instruction, in 2^-16 bits.
    price: u64,
}

impl Effort {
    fn of(level: u8) -> Effort {
        let level = level.min(9);
        Effort {
            level,
            taps: [0, 0, 0, 1, 1, 1, 1, 6, 10, 15][level as usize],
            all_shapes: level == 2 || level > 5,
            bases: if level > 6 { 6 } else { 2 },
            reach: if level < 9 { 4096 } else { usize::MAX },
            price: [0, 0, 0, 131, 98, 66, 52, 13, 3, 0][level as usize],
        }
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

/// Codes `weights` with a model that is given, which must be able to code them: no weight beyond its limit, every row as it says.
pub fn encode_as(model: &Model, weights: &Weights<'_>) -> Vec<u8> {
    record::emit(model, weights)
}

/// The model under which the weights cost the least, the price of decoding included.
pub fn choose(weights: &Weights<'_>, options: &Options, progress: &mut dyn FnMut()) -> Model {
    let effort = Effort::of(options.level);
    let limits = Limits {
        price: effort.price,
        max_instructions_per_weight: options.max_instructions_per_weight,
        max_state_bytes: options.max_state_bytes,
    };
    let mut best = Best::new(weights, limits);
    if options.level > 0 {
        search::classes(&mut best, &effort, progress);
    }
    if options.level > 2 {
        search::predictive(&mut best, &effort, progress);
    }
    best.model
}

#[cfg(test)]
mod tests;
