//! Output stages in few bits: the bias, multiplier and shift of every channel in fields of equal width, so that any is read where it lies.
//!
//! Scales of a layer's channels lie within a few octaves of each other and are told with a mantissa of `precision + 1` bits, biases in units of about
//! a fixed share of an output step:
//!
//! ```text
//! s = scale_base + field      shift = 62 - (s >> precision)      multiplier = (2^precision + s mod 2^precision) * 2^(30 - precision)
//! bias = (bias_base + field) * 2^max(0, shift - drop)
//! ```
//!
//! What the host writes here is what it would write raw: it packs only stages that these fields hold exactly.

use crate::fixed::SHIFT_RANGE;

/// Bytes before the fields.
const HEAD_BYTES: usize = 12;

/// Most channels of a packed constant: their bits are counted in the machine's words, which may have 32.
pub const MAX_CHANNELS: usize = 1 << 20;

/// Most bits of a mantissa behind its leading one, so that a scale fits 30 bits.
const MAX_PRECISION: u8 = 24;

/// Bias, multiplier and shift, see [`crate::fixed`].
pub type Stage = (i32, i32, u8);

/// How the fields of a constant are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    precision: u8,
    drop: u8,
    scale_bits: u8,
    bias_bits: u8,
    scale_base: u32,
    bias_base: i32,
}

impl Fields {
    /// The narrowest fields that hold these stages exactly; none if there are too many, or a multiplier is not in `2^30 .. 2^31` or has more than
    /// 25 significant bits.
    pub fn of(len: usize, stage: impl Fn(usize) -> Stage) -> Option<Fields> {
        let all = || (0..len).map(&stage);
        if len == 0 || len > MAX_CHANNELS || !all().all(|(_, m, s)| m >= 1 << 30 && SHIFT_RANGE.contains(&s)) {
            return None;
        }
        let precision = all().map(|(_, m, _)| 30 - m.trailing_zeros().min(30) as u8).max()?;
        let scale = |(_, m, s): Stage| {
            let mantissa = m as u32 >> (30 - precision);
            (((62 - s) as u32) << precision) + (mantissa & ((1 << precision) - 1))
        };
        if precision > MAX_PRECISION {
            return None;
        }
        let scale_base = all().map(scale).min()?;
        let scale_bits = width(all().map(scale).max()?.wrapping_sub(scale_base));
        let with = |drop: u8| {
            let unit = |s: u8| s.saturating_sub(drop) as u32;
            let is_exact = all().all(|(bias, _, s)| unit(s) < 32 && bias.trailing_zeros() >= unit(s));
            let biases = || all().map(|(bias, _, s)| bias >> unit(s).min(31));
            let (bias_base, most) = (biases().min()?, biases().max()?);
            let bias_bits = width(most.wrapping_sub(bias_base) as u32);
            is_exact.then_some(Fields { precision, drop, scale_bits, bias_bits, scale_base, bias_base })
        };
        // Shifts are at most 62: the last of these drops nothing.
        (0..=62).filter_map(with).min_by_key(|fields| fields.bias_bits)
    }

    /// Bytes of so many stages.
    pub fn bytes(&self, len: usize) -> usize {
        (HEAD_BYTES + (len * self.field_bits()).div_ceil(8)).next_multiple_of(4)
    }

    fn field_bits(&self) -> usize {
        (self.scale_bits + self.bias_bits) as usize
    }

    /// Writes stages that these fields hold; `out` has [`Fields::bytes`].
    pub fn emit(&self, len: usize, stage: impl Fn(usize) -> Stage, out: &mut [u8]) {
        out.fill(0);
        let head = [self.precision, self.drop, self.scale_bits, self.bias_bits];
        let words = [head, self.scale_base.to_le_bytes(), self.bias_base.to_le_bytes()];
        out.iter_mut().zip(words.iter().flatten()).for_each(|(to, &byte)| *to = byte);
        for i in 0..len {
            let (bias, multiplier, shift) = stage(i);
            let mantissa = (multiplier as u32 >> (30 - self.precision)) & ((1 << self.precision) - 1);
            let scale = (((62 - shift) as u32) << self.precision) + mantissa;
            let unit = shift.saturating_sub(self.drop).min(31);
            let at = HEAD_BYTES * 8 + i * self.field_bits();
            put(out, at, scale.wrapping_sub(self.scale_base));
            put(out, at + self.scale_bits as usize, (bias >> unit).wrapping_sub(self.bias_base) as u32);
        }
    }
}

/// A checked view of packed stages.
#[derive(Clone, Copy, Debug)]
pub struct PackedStages<'a> {
    fields: Fields,
    len: usize,
    bytes: &'a [u8],
}

impl<'a> PackedStages<'a> {
    /// A view of what [`PackedStages::new_checked`] has accepted. Of anything else, stages may read as anything.
    pub fn new(bytes: &'a [u8], len: usize) -> PackedStages<'a> {
        let word = |at: usize| bytes.get(at..at + 4).and_then(|w| w.try_into().ok()).unwrap_or([0; 4]);
        let [precision, drop, scale_bits, bias_bits] = word(0);
        let scale_base = u32::from_le_bytes(word(4));
        let fields = Fields {
            precision: precision.min(MAX_PRECISION),
            drop,
            scale_bits: scale_bits.min(32),
            bias_bits: bias_bits.min(32),
            scale_base,
            bias_base: i32::from_le_bytes(word(8)),
        };
        PackedStages { fields, len, bytes }
    }

    /// A view, or what is wrong.
    pub fn new_checked(bytes: &'a [u8], len: usize) -> Result<PackedStages<'a>, &'static str> {
        let Some(&[precision, _, scale_bits, bias_bits]) = bytes.first_chunk() else { return Err("length") };
        if len == 0 || len > MAX_CHANNELS {
            return Err("number of coded output stages");
        }
        if precision > MAX_PRECISION || scale_bits > 32 || bias_bits > 32 {
            return Err("fields of coded output stages");
        }
        let stages = PackedStages::new(bytes, len);
        if stages.fields.bytes(len) != bytes.len() {
            return Err("length");
        }
        match (0..len).all(|i| stages.scale(i) >> precision < 62) {
            true => Ok(stages),
            false => Err("shift"),
        }
    }

    fn scale(&self, i: usize) -> u32 {
        let field = field(self.bytes, HEAD_BYTES * 8 + i * self.fields.field_bits(), self.fields.scale_bits);
        self.fields.scale_base.wrapping_add(field)
    }

    /// Stage `i`; beyond the end a bias and a multiplier of zero.
    pub fn get(&self, i: usize) -> Stage {
        if i >= self.len {
            return (0, 0, 1);
        }
        let Fields { precision, drop, scale_bits, bias_bits, bias_base, .. } = self.fields;
        let scale = self.scale(i);
        let shift = 62 - (scale >> precision).min(61) as u8;
        let mantissa = (1 << precision) + (scale & ((1 << precision) - 1));
        let at = HEAD_BYTES * 8 + i * self.fields.field_bits() + scale_bits as usize;
        let bias = bias_base.wrapping_add(field(self.bytes, at, bias_bits) as i32);
        let unit = shift.saturating_sub(drop).into();
        (bias.checked_shl(unit).unwrap_or(0), (mantissa << (30 - precision)) as i32, shift)
    }

    /// Words of the raw constant.
    pub fn words(&self) -> usize {
        raw_bytes(self.len) / 4
    }

    /// Word `i` of the raw constant: all biases, all multipliers, then shifts, four a word.
    pub fn word(&self, i: usize) -> [u8; 4] {
        match i / self.len.max(1) {
            0 => self.get(i).0.to_le_bytes(),
            1 => self.get(i - self.len).1.to_le_bytes(),
            _ => {
                let first = 4 * (i - 2 * self.len);
                core::array::from_fn(|lane| if first + lane < self.len { self.get(first + lane).2 } else { 0 })
            }
        }
    }
}

/// Bytes of so many stages as they are: see [`super::tensor::Constant::KIND_CHANNELS`].
pub const fn raw_bytes(len: usize) -> usize {
    (9 * len).next_multiple_of(4)
}

/// Bits that hold a number.
fn width(number: u32) -> u8 {
    (u32::BITS - number.leading_zeros()) as u8
}

/// `count` bits from bit `at` on, zeros beyond the end.
fn field(bytes: &[u8], at: usize, count: u8) -> u32 {
    let mut word = 0u64;
    for (i, &byte) in bytes.get(at / 8..).unwrap_or(&[]).iter().take(5).enumerate() {
        word |= (byte as u64) << (8 * i);
    }
    ((word >> (at % 8)) & ((1 << count) - 1)) as u32
}

/// Adds a number to zeros from bit `at` on.
fn put(out: &mut [u8], at: usize, number: u32) {
    let word = (number as u64) << (at % 8);
    out.iter_mut().skip(at / 8).zip(word.to_le_bytes()).for_each(|(to, byte)| *to |= byte);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    fn packed(all: &[Stage]) -> Option<Vec<u8>> {
        let fields = Fields::of(all.len(), |i| all[i])?;
        let mut bytes = vec![0xEE; fields.bytes(all.len())];
        fields.emit(all.len(), |i| all[i], &mut bytes);
        Some(bytes)
    }

    /// Multipliers of so many significant bits, biases that are multiples of a unit.
    fn random(state: &mut u64, len: usize, bits: u32) -> Vec<Stage> {
        let mut next = |below: u64| {
            *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (*state >> 33) % below
        };
        let stage = |_| {
            let shift = 30 + next(12) as u8;
            let mantissa = (1 << (bits - 1)) + next(1 << (bits - 1)) as i32;
            let bias = (next(1 << 12) as i32 - 2000) << shift.saturating_sub(36);
            (bias, mantissa << (31 - bits), shift)
        };
        (0..len).map(stage).collect()
    }

    #[test]
    fn what_is_packed_is_read_back() {
        let mut state = 5;
        for len in [1, 2, 3, 7, 64, 200] {
            for bits in [1, 8, 14, 25] {
                let all = random(&mut state, len, bits);
                let bytes = packed(&all).unwrap();
                let stages = PackedStages::new_checked(&bytes, len).unwrap();
                assert!((0..len).all(|i| stages.get(i) == all[i]), "{len} stages of {bits} bits");
                let raw: Vec<u8> = (0..stages.words()).flat_map(|i| stages.word(i)).collect();
                assert_eq!(raw.len(), raw_bytes(len));
                let channels = crate::ops::Channels::new(&raw, len);
                // An odd number of words may lie anywhere.
                let is_read = channels.bias.len() == len;
                assert!(!is_read || (0..len).all(|i| channels.get(i) == all[i]));
                assert!(raw[8 * len..9 * len].iter().zip(&all).all(|(shift, stage)| *shift == stage.2));
                assert!(PackedStages::new_checked(&bytes[..bytes.len() - 4], len).is_err());
            }
        }
        // Fourteen bits, four octaves and twelve bits of bias are less than half of nine bytes.
        let bytes = packed(&random(&mut state, 64, 14)).unwrap();
        assert!(bytes.len() < 64 * 4, "{}", bytes.len());
    }

    #[test]
    fn any_bias_is_held() {
        let all = [(i32::MIN, 1 << 30, 1), (i32::MAX, 1 << 30, 62), (-1, 3 << 29, 40)];
        let bytes = packed(&all).unwrap();
        let stages = PackedStages::new_checked(&bytes, 3).unwrap();
        assert!((0..3).all(|i| stages.get(i) == all[i]));
        for refused in [(0, 0, 31), (0, -(1 << 30), 31), (0, i32::MAX, 31), (0, 1 << 30, 0), (0, 1 << 30, 63)] {
            assert_eq!(packed(&[refused]), None);
        }
        assert_eq!(packed(&[]), None);
    }

    /// Whatever the bytes are: what is accepted has valid shifts.
    #[test]
    fn damaged_stages_are_refused_or_valid() {
        let mut state = 9;
        let all = random(&mut state, 20, 14);
        let good = packed(&all).unwrap();
        let mut accepted = 0;
        for at in 0..good.len() {
            for byte in [0, 1, 31, 33, 127, 255] {
                let mut bytes = good.clone();
                bytes[at] = byte;
                let Ok(stages) = PackedStages::new_checked(&bytes, 20) else { continue };
                accepted += 1;
                assert!((0..20).all(|i| SHIFT_RANGE.contains(&stages.get(i).2)));
            }
        }
        assert!(accepted > 100, "{accepted}");
        for len in 0..12 {
            assert!(PackedStages::new_checked(&good[..len], 20).is_err());
        }
    }
}
