//! Weights in their own width for kernels of a wider one: no model, numbers of a few bits.

use super::record::{Record, Weights, code};
use pith::circuit::{Flat, MODEL_NARROW, emit_header};

/// Codes `weights` with `bits` each. Every row has a zero point, which is added so that all of its levels fit `bits`; where all are zero, none is stored.
pub fn narrow(weights: &Weights<'_>, bits: u8, zero_points: &[i8]) -> Vec<u8> {
    let flat = Flat { bits, shifted: zero_points.iter().any(|&zero| zero != 0) };
    let mut bytes = Vec::new();
    emit_header(MODEL_NARROW, weights.shape, |byte| bytes.push(byte));
    flat.emit(|byte| bytes.push(byte));
    let told = |level: i8, zero: i8| {
        let slot = i32::from(level) + i32::from(zero) + (1 << (bits - 1));
        debug_assert!((0..1 << bits).contains(&slot), "{level} and {zero} in {bits} bits");
        (slot as u32, 1, u32::from(bits))
    };
    let mut record = Record::default();
    for (row, &zero) in weights.rows().zip(zero_points) {
        record.intervals.extend(flat.shifted.then(|| told(0, zero)));
        record.intervals.extend(row.iter().map(|&level| told(level, zero)));
    }
    bytes.extend_from_slice(&code(&record));
    bytes
}
