//! Runs a model of the runtime over weights that are known: what every symbol would cost, and the code itself.

use pith::circuit::{Coder, FLAT_INSTRUCTIONS_PER_WEIGHT, Leaf, MODEL_CLASSES, MODEL_PREDICTIVE, MODEL_UNIFORM, Shape};
use pith::circuit::{classes, emit_header, predictive, rans};
use std::sync::OnceLock;

/// A model with its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// Every value equally probable.
    Uniform,
    /// A static table for each class of rows.
    Classes(classes::Params),
    /// Mean and scale from weights before.
    Predictive(predictive::Params),
}

impl Model {
    /// Instructions that decoding a weight takes on a Cortex-M4, about.
    pub fn instructions_per_weight(&self, shape: Shape) -> u32 {
        match self {
            Model::Uniform => FLAT_INSTRUCTIONS_PER_WEIGHT,
            Model::Classes(params) => params.instructions_per_weight(shape),
            Model::Predictive(params) => params.instructions_per_weight(shape),
        }
    }

    /// Bytes of a decoder's state.
    pub fn state_bytes(&self, shape: Shape) -> usize {
        match self {
            Model::Uniform => 0,
            Model::Classes(params) => 4 * params.state_words(),
            Model::Predictive(params) => 4 * params.state_words(shape),
        }
    }
}

/// Weights, `[rows, positions, channels]`, of `bits` bits.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// In the order of the shape.
    pub values: &'a [i8],
    /// Their meaning.
    pub shape: Shape,
    /// 2 to 8.
    pub bits: u8,
}

impl Weights<'_> {
    /// Row by row.
    pub fn rows(&self) -> impl Iterator<Item = &[i8]> {
        self.values.chunks(self.shape.row())
    }

    /// Channels that are zero in every row.
    pub fn zero_channels(&self) -> Vec<bool> {
        let mut zero = vec![true; self.shape.channels];
        for pixel in self.values.chunks(self.shape.channels) {
            zero.iter_mut().zip(pixel).for_each(|(zero, &w)| *zero &= w == 0);
        }
        zero
    }
}

/// What a model makes of weights.
#[derive(Debug, Default)]
pub struct Record {
    /// Bits of the code in 2^-16, header included.
    pub cost: u64,
    /// First slot, number of slots and log2 of all slots of every symbol.
    pub(super) intervals: Vec<(u32, u32, u32)>,
    keeps: bool,
    symbols: Vec<i32>,
    at: usize,
}

impl Record {
    /// Before the first of known symbols, keeping their intervals.
    pub(super) fn of(symbols: Vec<i32>) -> Record {
        Record { keeps: true, symbols, ..Record::default() }
    }
}

impl Coder for Record {
    fn code<L: Leaf>(&mut self, leaf: &L) -> i32 {
        let symbol = self.symbols[self.at];
        self.at += 1;
        let (start, freq) = leaf.interval(symbol);
        self.cost += ((L::BITS as u64) << 16) - log2(freq) as u64;
        if self.keeps {
            self.intervals.push((start, freq, L::BITS));
        }
        symbol
    }
}

/// log2 of 1 to 2^16, in 2^-16.
fn log2(freq: u32) -> u32 {
    static TABLE: OnceLock<Vec<u32>> = OnceLock::new();
    let entry = |freq: u32| (65_536.0 * f64::from(freq.max(1)).log2()).round() as u32;
    TABLE.get_or_init(|| (0..=1 << 16).map(entry).collect())[freq as usize]
}

/// Cost of the weights under a model, in 2^-16 bits.
pub fn cost(model: &Model, weights: &Weights<'_>) -> u64 {
    run(model, weights, false).cost + 8 * ((header(model, weights).len() as u64) << 16)
}

/// A coded constant.
pub fn emit(model: &Model, weights: &Weights<'_>) -> Vec<u8> {
    let mut bytes = header(model, weights);
    bytes.extend_from_slice(&code(&run(model, weights, true)));
    bytes
}

/// The code of a record that keeps its intervals.
pub(super) fn code(record: &Record) -> Vec<u8> {
    let mut buffer = vec![0; 2 * record.intervals.len() + 6];
    let mut coder = rans::Encoder::new(&mut buffer);
    for &(start, freq, bits) in record.intervals.iter().rev() {
        coder.put(start, freq, bits).expect("the buffer has two bytes for every symbol");
    }
    coder.finish().expect("the buffer has six more bytes").to_vec()
}

fn header(model: &Model, weights: &Weights<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut start = |id| emit_header(id, weights.shape, |byte| bytes.push(byte));
    match model {
        Model::Uniform => start(MODEL_UNIFORM),
        Model::Classes(params) => {
            start(MODEL_CLASSES);
            params.emit(|byte| bytes.push(byte));
        }
        Model::Predictive(params) => {
            start(MODEL_PREDICTIVE);
            params.emit(weights.shape, weights.bits, |byte| bytes.push(byte));
        }
    }
    bytes
}

fn run(model: &Model, weights: &Weights<'_>, keeps: bool) -> Record {
    let mut record = Record { keeps, ..Record::default() };
    let mut row = vec![0; weights.shape.row()];
    match model {
        Model::Uniform => uniform(&mut record, weights),
        Model::Classes(params) => {
            record.symbols = class_symbols(params, weights);
            let mut state = vec![0; params.state_words()];
            let mut model = classes::Classes::new(params, &mut state).expect("the state has the words asked for");
            (0..weights.shape.rows).for_each(|_| model.row(&mut record, &mut row));
        }
        Model::Predictive(params) => {
            record.symbols = predictive_symbols(params, weights);
            let mut state = vec![0; params.state_words(weights.shape)];
            let model = predictive::Predictive::new(params, weights.shape, &mut state, &mut record);
            let mut model = model.expect("the state has the words asked for");
            (0..weights.shape.rows).for_each(|_| model.row(&mut record, &mut row));
        }
    }
    record
}

fn uniform(record: &mut Record, weights: &Weights<'_>) {
    let bits = weights.bits as u32;
    record.cost = (weights.values.len() as u64 * bits as u64) << 16;
    if record.keeps {
        let start = |&w: &i8| (w as i32 + (1 << (bits - 1))) as u32;
        record.intervals = weights.values.iter().map(|w| (start(w), 1, bits)).collect();
    }
}

/// The class of every row before its weights: the one that codes it with the fewest bits.
fn class_symbols(params: &classes::Params, weights: &Weights<'_>) -> Vec<i32> {
    let mut state = vec![0; params.state_words()];
    let model = classes::Classes::new(params, &mut state).expect("the state has the words asked for");
    let mut symbols = Vec::with_capacity(weights.values.len() + weights.shape.rows);
    let first = usize::from(params.zero_rows);
    let limit = params.limit as i32;
    let costs: Vec<Vec<u64>> = model.tables()[first..]
        .iter()
        .map(|table| (-limit..=limit).map(|w| (16 << 16) - log2(table.interval(w).1) as u64).collect())
        .collect();
    for row in weights.rows() {
        let cost = |class: &Vec<u64>| row.iter().map(|&w| class[(w as i32 + limit) as usize]).sum::<u64>();
        let best = (0..costs.len()).min_by_key(|&c| cost(&costs[c])).unwrap_or(0) + first;
        let class = if params.zero_rows && row.iter().all(|&w| w == 0) { 0 } else { best };
        if params.class_bits > 0 {
            symbols.push(class as i32);
        }
        if class > 0 || !params.zero_rows {
            symbols.extend(row.iter().map(|&w| w as i32));
        }
    }
    symbols
}

fn predictive_symbols(params: &predictive::Params, weights: &Weights<'_>) -> Vec<i32> {
    let mut symbols = Vec::with_capacity(weights.values.len() + 2 * weights.shape.rows);
    let zero = match params.zero_channels {
        true => weights.zero_channels(),
        false => vec![false; weights.shape.channels],
    };
    if params.zero_channels {
        symbols.extend(zero.iter().map(|&zero| i32::from(!zero)));
    }
    for row in weights.rows() {
        let smallest = row.iter().filter(|&&w| w != 0).map(|&w| (w as i32).abs()).min();
        if params.zero_rows {
            symbols.push(i32::from(smallest.is_some()));
            if smallest.is_none() {
                continue;
            }
        }
        let gap = if params.gaps { smallest.unwrap_or(1) - 1 } else { 0 };
        if params.gaps {
            symbols.push(gap);
        }
        let coded = row.iter().zip(zero.iter().cycle()).filter(|(_, zero)| !**zero).map(|(&w, _)| w as i32);
        symbols.extend(coded.map(|w| w - w.signum() * gap));
    }
    symbols
}
