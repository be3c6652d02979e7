//! A circuit as integers, and samples coded with it: the host's side of [`pith::circuit::walk`], which computes every probability.
//!
//! Samples share a stream, so what a stream costs beyond its symbols (8 bytes) is paid once. The coder works backwards: intervals are collected
//! sample by sample, the last sample first, and each sample's in reverse.

use super::{Circuit, Data, Region};
use pith::circuit::rans64::{self, MAX_BITS};
use pith::circuit::tree::{CUMULATIVE_BITS, HEADER, MAGIC, MAX_UNITS, ONE, RECORD, Tree};
use rayon::prelude::*;

/// What is wrong with a circuit or a stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum CodecError {
    #[error("a region has {0} units; a coded circuit has at most {MAX_UNITS} in each")]
    Units(usize),
    #[error("region {0} reads a variable of {1} values; a coded circuit's variables have 1 to 256")]
    Values(usize, usize),
    #[error("{0}; the bytes are damaged")]
    Circuit(&'static str),
    #[error("the stream is damaged, or was coded with another circuit or number of samples")]
    Stream,
}

/// A circuit in the integers that drive the coder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coded {
    words: Vec<u32>,
}

impl Coded {
    /// Rounds the parameters.
    pub fn new(circuit: &Circuit) -> Result<Coded, CodecError> {
        let coded = Coded { words: emit(circuit)? };
        coded.tree()?;
        Ok(coded)
    }

    /// The bytes of the circuit, little-endian.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }

    /// The runtime's view.
    pub fn tree(&self) -> Result<Tree<'_>, CodecError> {
        Tree::new_checked(self.bytes()).map_err(CodecError::Circuit)
    }

    /// Codes samples as streams of equal numbers of them (the last may have fewer), in parallel.
    pub fn encode(&self, data: &Data, streams: usize) -> Result<Vec<Vec<u8>>, CodecError> {
        let tree = self.tree()?;
        let length = data.samples().div_ceil(streams.max(1)).max(1) * data.variables.max(1);
        let parts: Vec<&[u8]> = data.values.chunks(length).collect();
        parts.into_par_iter().map(|rows| encode(&tree, rows)).collect()
    }

    /// The samples of streams that [`Coded::encode`] made of `samples`, in parallel.
    pub fn decode(&self, streams: &[Vec<u8>], samples: usize) -> Result<Data, CodecError> {
        let tree = self.tree()?;
        let length = samples.div_ceil(streams.len().max(1)).max(1) * tree.variables();
        let mut values = vec![0; samples * tree.variables()];
        let parts: Vec<(&mut [u8], &Vec<u8>)> = values.chunks_mut(length.max(1)).zip(streams).collect();
        parts.into_par_iter().try_for_each(|(rows, stream)| decode(&tree, stream, rows))?;
        Ok(Data::new(values, tree.variables()))
    }
}

/// One stream of whole samples.
fn encode(tree: &Tree, rows: &[u8]) -> Result<Vec<u8>, CodecError> {
    let mut state = vec![0; tree.state_words()];
    let mut buffer = vec![0; 4 * rows.len() + rans64::EMPTY];
    let mut coder = rans64::Encoder::new(&mut buffer);
    let mut intervals = Vec::with_capacity(tree.variables());
    for row in rows.rchunks_exact(tree.variables().max(1)) {
        intervals.clear();
        let push = |start, freq| intervals.push((start, freq));
        tree.intervals(row, &mut state, push).ok_or(CodecError::Stream)?;
        for &(start, freq) in intervals.iter().rev() {
            coder.put(start, freq, MAX_BITS).ok_or(CodecError::Stream)?;
        }
    }
    coder.finish().map(<[u8]>::to_vec).ok_or(CodecError::Stream)
}

fn decode(tree: &Tree, stream: &[u8], rows: &mut [u8]) -> Result<(), CodecError> {
    let mut state = vec![0; tree.state_words()];
    let mut coder = rans64::Decoder::new(stream).ok_or(CodecError::Stream)?;
    for row in rows.chunks_exact_mut(tree.variables().max(1)) {
        tree.decode(&mut coder, &mut state, row).ok_or(CodecError::Stream)?;
    }
    if coder.is_finished() { Ok(()) } else { Err(CodecError::Stream) }
}

/// The words of a circuit, regions in the order in which a walk enters them.
fn emit(circuit: &Circuit) -> Result<Vec<u32>, CodecError> {
    let regions = circuit.regions.len();
    let mut words = vec![MAGIC, circuit.variables as u32, regions as u32, 0];
    words.resize(HEADER + RECORD * regions, 0);
    let mut pending = vec![(regions - 1, 0, 0)];
    let likely = likely_values(circuit);
    let mut at = HEADER;
    let mut order = 0;
    while let Some((index, parent, depth)) = pending.pop() {
        order += 1;
        pending.extend(circuit.children(index).map(|child| (child, order, depth + 1)));
        let region = &circuit.regions[index];
        let values = region.values();
        if region.units > MAX_UNITS {
            return Err(CodecError::Units(region.units));
        }
        if region.variable.is_some() && !(1..=256).contains(&values) {
            return Err(CodecError::Values(index, values));
        }
        let table = words.len();
        words.extend(cumulative(region));
        let weights = words.len();
        let kind = emit_weights(region, &mut words) | likely[index] << 8;
        let variable = region.variable.map_or(0, |v| v as u32 + 1);
        let values = if variable > 0 { values } else { 0 };
        let record = [variable, parent, depth, region.units as u32, values as u32, table as u32, weights as u32, kind];
        words[at..at + RECORD].copy_from_slice(&record);
        at += RECORD;
    }
    Ok(words)
}

/// For each region, 1 + the value that its variable has in more than a quarter of all cases, or 0. A search looks there first.
fn likely_values(circuit: &Circuit) -> Vec<u32> {
    let mut likely = vec![0; circuit.regions.len()];
    let mut pending = vec![(circuit.regions.len() - 1, vec![1.0])];
    while let Some((index, above)) = pending.pop() {
        let region = &circuit.regions[index];
        let mut units = vec![0.0; region.stride()];
        for (row, above) in region.weights.chunks_exact(region.stride()).zip(&above) {
            units.iter_mut().zip(row).for_each(|(u, w)| *u += above * w);
        }
        let marginal = |row: &[f32]| -> f32 { row.iter().zip(&units).map(|(p, u)| p * u).sum() };
        let often = region.table.chunks_exact(region.stride()).position(|row| marginal(row) > 0.25);
        likely[index] = often.map_or(0, |value| value as u32 + 1);
        pending.extend(circuit.children(index).map(|child| (child, units.clone())));
    }
    likely
}

/// Cumulative probabilities, `[values + 1][units]`, from 0 to `2^CUMULATIVE_BITS`.
fn cumulative(region: &Region) -> Vec<u32> {
    if region.variable.is_none() {
        return Vec::new();
    }
    let (units, values) = (region.units, region.values());
    let mut table = vec![0; (values + 1) * units];
    for unit in 0..units {
        let column = || region.table.iter().skip(unit).step_by(region.stride()).map(|&p| p as f64);
        let total: f64 = column().sum();
        let scale = (1u32 << CUMULATIVE_BITS) as f64 / if total > 0.0 { total } else { 1.0 };
        let mut sum = 0.0;
        for (v, p) in column().enumerate() {
            sum += p;
            table[(v + 1) * units + unit] = ((sum * scale).round() as u32).min(1 << CUMULATIVE_BITS);
        }
        table[values * units + unit] = 1 << CUMULATIVE_BITS;
    }
    table
}

/// Weights as fractions of [`ONE`] whose rows sum to it, sparse where that is less work; returns the kind.
fn emit_weights(region: &Region, words: &mut Vec<u32>) -> u32 {
    let mut dense = Vec::with_capacity(region.above * region.units);
    for row in region.weights.chunks_exact(region.stride()) {
        dense.extend(fractions(&row[..region.units]));
    }
    let edges = dense.iter().filter(|&&w| w > 0).count();
    // An edge of sparse weights takes about as long as three of dense ones.
    if 3 * edges > dense.len() {
        halves(words, &dense);
        return 0;
    }
    let (mut columns, mut weights) = (Vec::new(), Vec::new());
    for row in dense.chunks_exact(region.units) {
        words.push(columns.len() as u32);
        let edges = row.iter().enumerate().filter(|&(_, &w)| w > 0);
        edges.for_each(|(column, &w)| {
            columns.push(column as u16);
            weights.push(w);
        });
    }
    words.push(columns.len() as u32);
    halves(words, &columns);
    halves(words, &weights);
    1
}

/// Rounded shares of [`ONE`]; the largest takes what rounding left.
fn fractions(row: &[f32]) -> Vec<u16> {
    let total: f64 = row.iter().map(|&w| w as f64).sum();
    let scale = ONE as f64 / if total > 0.0 { total } else { 1.0 };
    let mut shares: Vec<i64> = row.iter().map(|&w| (w as f64 * scale).round() as i64).collect();
    let left = ONE as i64 - shares.iter().sum::<i64>();
    if let Some(largest) = shares.iter_mut().max() {
        *largest += left;
    }
    shares.into_iter().map(|w| w.clamp(0, ONE as i64) as u16).collect()
}

fn halves(words: &mut Vec<u32>, halves: &[u16]) {
    words.extend(halves.chunks(2).map(|pair| pair[0] as u32 | (pair.get(1).copied().unwrap_or(0) as u32) << 16));
}
