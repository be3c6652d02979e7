//! The fastest model: a row belongs to one of up to four classes, whose scales form a geometric series, and its weights are independent.
//!
//! A class is a table: `2^15` slots are shared out among the magnitudes `0 ..= limit`, each at least one. A weight has twice as many slots as
//! its magnitude, the lower half of them meaning plus (a zero has no sign). The class of a row is coded with equal probabilities.

use super::leaf::{self, Reciprocal, SHAPES, Uniform};
use super::{Coder, Leaf, Shape};

/// What the header says, beyond the shape.
///
/// | part | content |
/// |---|---|
/// | flags | u8: bits 0-3 shape of the leaf, 4-5 log2 of the number of classes (up to 2), 6 class 0 is rows of zeros, 7 zero |
/// | limit | u8: largest magnitude, 1 to 128 |
/// | base | u8: log2 of the first class's scale, from -4 in steps of 1/16 |
/// | step | u8: from a class to the next, in the same steps |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Below [`SHAPES`].
    pub shape: u8,
    /// log2 of the number of classes, 0 to 2.
    pub class_bits: u8,
    /// Class 0 is rows of zeros; the series begins with class 1.
    pub zero_rows: bool,
    /// Largest magnitude.
    pub limit: u8,
    /// Of the series.
    pub base: u8,
    /// Of the series.
    pub step: u8,
}

impl Params {
    /// Reads them.
    pub(super) fn parse(bytes: &mut &[u8]) -> Option<Params> {
        let &[flags, limit, base, step] = bytes.split_off(..4)?.first_chunk()?;
        let (shape, class_bits, zero_rows) = (flags % SHAPES, flags >> 4 & 3, flags >> 6 == 1);
        let is_valid = flags < 0x80 && class_bits <= 2 && (1..=128).contains(&limit);
        is_valid.then_some(Params { shape, class_bits, zero_rows, limit, base, step })
    }

    /// Writes them through `push`.
    pub fn emit(&self, push: impl FnMut(u8)) {
        let flags = self.shape | self.class_bits << 4 | u8::from(self.zero_rows) << 6;
        [flags, self.limit, self.base, self.step].into_iter().for_each(push);
    }

    /// Words of memory for a decoder.
    pub fn state_words(&self) -> usize {
        size_of::<leaf::Table>() / 4 + ((size_of::<Table>() / 4) << self.class_bits)
    }

    /// Instructions that a weight takes on a Cortex-M4, fitted to counts in an emulator.
    pub fn instructions_per_weight(&self, shape: Shape) -> u32 {
        let weights = shape.rows.saturating_mul(shape.row());
        (47 + 150 / shape.row() + (9_000 + (7_000 << self.class_bits)) / weights) as u32
    }

    /// log2 of a class's scale, in 2^-16.
    fn scale(&self, class: usize) -> i32 {
        let place = class.saturating_sub(usize::from(self.zero_rows)) as i32;
        (self.base as i32 + place * self.step as i32 - 128) << 12
    }
}

/// A class.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Table {
    /// First slot of every magnitude, out of 2^15, then 2^15.
    starts: [u16; 256],
    /// The largest magnitude that begins at or before slot `256 b`, for each `b`.
    first: [u8; 128],
}

impl Table {
    fn fill(&mut self, shape: &leaf::Table, log_scale: i32, limit: i32) {
        let scale = Reciprocal::of_log2(log_scale);
        let at =
            |m: i32| shape.at((((m << 8) - 128).max(0) * scale.mantissa) >> (6 + scale.shift)).saturating_sub(1 << 15);
        let (mass, span) = ((1 << 15) - (limit + 1) as u32, at(limit + 1).max(1));
        let mut m = 0;
        for (start, i) in self.starts.iter_mut().zip(0..) {
            *start = if i > limit { 1 << 15 } else { (at(i) * mass / span) as u16 + i as u16 };
        }
        for (b, first) in self.first.iter_mut().enumerate() {
            while self.starts.get(m + 1).is_some_and(|&s| s as usize <= b * 256) {
                m += 1;
            }
            *first = m as u8;
        }
    }
}

impl Leaf for Table {
    const BITS: u32 = 16;

    fn interval(&self, w: i32) -> (u32, u32) {
        let start = |m: u32| self.starts[m as usize & 255] as u32;
        let m = w.unsigned_abs();
        let freq = start(m + 1) - start(m);
        match m {
            0 => (0, 2 * freq),
            _ => (2 * start(m) + if w < 0 { freq } else { 0 }, freq),
        }
    }

    #[inline(always)]
    fn locate(&self, slot: u32) -> (i32, u32, u32) {
        let mut m = self.first[(slot >> 9) as usize & 127] as usize;
        let half = slot >> 1;
        // Where slots matter a bucket holds one boundary at most: no branch for that one.
        m += usize::from(self.starts[(m + 1) & 255] as u32 <= half);
        while self.starts[(m + 1) & 255] as u32 <= half {
            m += 1;
        }
        let (start, end) = (self.starts[m & 255] as u32, self.starts[(m + 1) & 255] as u32);
        let freq = end - start;
        if m == 0 {
            return (0, 0, 2 * freq);
        }
        // The sign is as good as random: no branch.
        let minus = u32::from(slot >= 2 * start + freq);
        ((m as i32 ^ -(minus as i32)) + minus as i32, 2 * start + freq * minus, freq)
    }
}

/// The model while it walks.
#[derive(Debug)]
pub struct Classes<'s> {
    params: Params,
    tables: &'s [Table],
}

impl<'s> Classes<'s> {
    /// A model before the first row; none if `state` has fewer than [`Params::state_words`] words.
    pub fn new(params: &Params, state: &'s mut [u32]) -> Option<Classes<'s>> {
        let state = state.get_mut(..params.state_words())?;
        let (values, tables) = state.split_at_mut_checked(size_of::<leaf::Table>() / 4)?;
        let values = bytemuck::try_from_bytes_mut::<leaf::Table>(bytemuck::cast_slice_mut(values)).ok()?;
        values.fill(params.shape);
        let tables: &mut [Table] = bytemuck::try_cast_slice_mut(tables).ok()?;
        for (class, table) in tables.iter_mut().enumerate() {
            table.fill(values, params.scale(class), params.limit as i32);
        }
        Some(Classes { params: *params, tables })
    }

    /// Every class, in order.
    pub fn tables(&self) -> &[Table] {
        self.tables
    }

    /// The next row.
    pub fn row(&mut self, coder: &mut impl Coder, out: &mut [i8]) {
        let class = match self.params.class_bits {
            0 => 0,
            1 => coder.code(&Uniform::<1>),
            _ => coder.code(&Uniform::<2>),
        };
        match self.tables.get(class as usize) {
            Some(table) if class > 0 || !self.params.zero_rows => {
                for w in out {
                    *w = coder.code(table) as i8;
                }
            }
            _ => out.fill(0),
        }
    }
}
