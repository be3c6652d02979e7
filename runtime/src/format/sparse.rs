//! Block-sparse weights: of a matrix only the blocks that hold something.
//!
//! A weight matrix `[n, k]` of 8 bits (of a convolution `k = kernel_h * kernel_w * in_c`) is cut into *bands* of `rows` rows, 1 or 2, and a band into
//! blocks of [`DEPTH`] consecutive `k`. A band holds
//!
//! ```text
//! bias: i32[rows]   multiplier: i32[rows]   shift: u8[rows]   zeros to an even length   count: u16
//! runs of four blocks, the first of fewer if `count` is no multiple of four:
//!     for each block:  for each row:  four weights          gaps: u8[4], those of absent blocks (at the front) 0
//! ```
//!
//! A block's gap is the number of blocks between it and the one before (or the row's start) that are left out. So blocks come in order, and a
//! gap of more than 255 is broken by a block of zeros. Gaps lie behind their weights so that a kernel reads one stream with one pointer, and
//! enters its loop of four blocks where the first run wants it.
//!
//! The input's zero point is folded into the bias as in [`super::blocks`]: `acc = bias + sum q * w`, where a tap outside of the input reads the zero
//! point.

use super::blocks::MAX_K;
use crate::fixed::{HighWord, SHIFT_RANGE};

/// Consecutive `k` of a block.
pub const DEPTH: usize = 4;

/// Blocks of a run.
pub const RUN: usize = 4;

/// Rows that blocks may have.
pub const ROWS: [usize; 2] = [1, 2];

/// The code in a constant's record, which follows those of [`super::blocks::Layout`].
pub const fn code(rows: usize) -> u8 {
    3 + rows as u8
}

/// Rows of a block of a code.
pub const fn rows_of(code: u8) -> Option<usize> {
    match code {
        4 => Some(1),
        5 => Some(2),
        _ => None,
    }
}

/// Bytes of a band before its blocks.
pub const fn stage_bytes(rows: usize) -> usize {
    8 * rows + rows.next_multiple_of(2) + 2
}

/// Bytes of `count` blocks.
pub const fn blocks_bytes(rows: usize, count: usize) -> usize {
    count * rows * DEPTH + count.div_ceil(RUN) * RUN
}

/// Blocks that the first run lacks.
const fn absent(count: usize) -> usize {
    count.next_multiple_of(RUN) - count
}

/// A checked view of a block-sparse matrix.
#[derive(Clone, Copy, Debug)]
pub struct Sparse<'a> {
    rows: usize,
    n: usize,
    k: usize,
    bytes: &'a [u8],
}

impl<'a> Sparse<'a> {
    /// A view of what [`Sparse::new_checked`] has accepted, which kernels rely on.
    pub(crate) fn new(rows: usize, n: usize, k: usize, bytes: &'a [u8]) -> Sparse<'a> {
        Sparse { rows, n, k, bytes }
    }

    /// A view, or what is wrong.
    pub fn new_checked(rows: usize, n: usize, k: usize, bytes: &'a [u8]) -> Result<Sparse<'a>, &'static str> {
        if !ROWS.contains(&rows) || n == 0 || k == 0 || k > MAX_K {
            return Err("shape of block-sparse weights");
        }
        let sparse = Sparse::new(rows, n, k, bytes);
        let (mut bands, mut count) = (sparse.bands(), 0);
        for band in bands.by_ref().take(n.div_ceil(rows)) {
            band.check(k.div_ceil(DEPTH))?;
            count += 1;
        }
        match count == n.div_ceil(rows) && bands.rest.is_empty() {
            true => Ok(sparse),
            false => Err("length of block-sparse weights"),
        }
    }

    /// Rows of a block.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Rows of the matrix: output channels.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns, without padding.
    pub fn k(&self) -> usize {
        self.k
    }

    /// All bytes.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The bands from the first row to the last.
    pub fn bands(&self) -> Bands<'a> {
        Bands { rows: self.rows, rest: self.bytes }
    }

    /// Blocks that are stored.
    pub fn count(&self) -> usize {
        self.bands().map(|band| band.count).sum()
    }

    /// Whether a kernel may rescale every row by the high word of a product.
    pub fn rescales_by_high_word(&self, zero_point: i32) -> bool {
        let by = HighWord::new(zero_point);
        let serves = |(_, multiplier, shift): (i32, i32, u8)| by.serves(multiplier, shift);
        self.bands().all(|band| (0..self.rows).all(|row| serves(band.stage(row))))
    }
}

/// Iterator over bands.
#[derive(Clone, Debug)]
pub struct Bands<'a> {
    rows: usize,
    rest: &'a [u8],
}

impl<'a> Iterator for Bands<'a> {
    type Item = Band<'a>;

    fn next(&mut self) -> Option<Band<'a>> {
        let (stage, rest) = self.rest.split_at_checked(stage_bytes(self.rows))?;
        let count = u16::from_le_bytes(*stage.last_chunk()?) as usize;
        let (blocks, rest) = rest.split_at_checked(blocks_bytes(self.rows, count))?;
        self.rest = rest;
        Some(Band { rows: self.rows, count, stage, blocks })
    }
}

/// Rows that have their blocks in the same places.
#[derive(Clone, Copy, Debug)]
pub struct Band<'a> {
    rows: usize,
    count: usize,
    stage: &'a [u8],
    blocks: &'a [u8],
}

impl<'a> Band<'a> {
    /// Blocks that are stored.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes, stage and blocks.
    pub fn len(&self) -> usize {
        self.stage.len() + self.blocks.len()
    }

    /// Whether it has no bytes, which no band has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bias (with the zero point folded in), multiplier and shift of a row.
    pub fn stage(&self, row: usize) -> (i32, i32, u8) {
        let word = |at: usize| {
            self.stage.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |&bytes: &[u8; 4]| i32::from_le_bytes(bytes))
        };
        let shift = self.stage.get(8 * self.rows + row).copied().unwrap_or(1);
        (word(4 * row), word(4 * (self.rows + row)), shift)
    }

    /// Blocks in order: which of its row each is, and its weights, row after row.
    #[inline]
    pub fn blocks(&self) -> impl Iterator<Item = (usize, &'a [u8])> {
        let (absent, block_bytes, bytes) = (absent(self.count), self.rows * DEPTH, self.blocks);
        let mut next = 0;
        (absent..absent + self.count).map(move |i| {
            let gaps = (i / RUN + 1) * RUN - absent;
            let gap = bytes.get(gaps * block_bytes + i).copied().unwrap_or(0);
            let at = next + gap as usize;
            next = at + 1;
            let start = (i - absent) * block_bytes + i / RUN * RUN;
            (at, bytes.get(start..).and_then(|rest| rest.get(..block_bytes)).unwrap_or(&[]))
        })
    }

    /// What a row of so many blocks may be.
    fn check(&self, blocks: usize) -> Result<(), &'static str> {
        if !(0..self.rows).all(|row| SHIFT_RANGE.contains(&self.stage(row).2)) {
            return Err("shift in block-sparse weights");
        }
        let reserved = self.stage.get(9 * self.rows..).and_then(|rest| rest.get(..self.rows % 2)).unwrap_or(&[]);
        let first_gaps = RUN.saturating_sub(absent(self.count)) * self.rows * DEPTH;
        let unused = self.blocks.get(first_gaps..).and_then(|gaps| gaps.get(..absent(self.count))).unwrap_or(&[]);
        if reserved.iter().chain(unused).any(|&byte| byte != 0) {
            return Err("reserved bytes of block-sparse weights");
        }
        match self.blocks().last().is_none_or(|(at, _)| at < blocks) {
            true => Ok(()),
            false => Err("place of a block of weights"),
        }
    }
}

/// Writes a matrix: `weight(row, k)` and `stage(row)`, whose bias is the row-major one, for an input with this zero point. `put` gets the bytes one
/// after another.
pub fn emit(
    rows: usize,
    (n, k): (usize, usize),
    zero_point: i32,
    weight: impl Fn(usize, usize) -> i8,
    stage: impl Fn(usize) -> (i32, i32, u8),
    mut put: impl FnMut(&[u8]),
) {
    let value = |row: usize, k_at: usize| if row < n && k_at < k { weight(row, k_at) } else { 0 };
    for first in (0..n).step_by(rows.max(1)) {
        let band = first..first + rows;
        let holds =
            |block: usize| band.clone().any(|row| (DEPTH * block..DEPTH * (block + 1)).any(|at| value(row, at) != 0));
        let stages = band.clone().map(|row| if row < n { stage(row) } else { (0, 0, 33) });
        for (row, (bias, ..)) in band.clone().zip(stages.clone()) {
            let sum = (0..k).fold(0i32, |sum, at| sum.wrapping_add(value(row, at) as i32));
            put(&bias.wrapping_sub(zero_point.wrapping_mul(sum)).to_le_bytes());
        }
        stages.clone().for_each(|(_, multiplier, _)| put(&multiplier.to_le_bytes()));
        stages.for_each(|(.., shift)| put(&[shift]));
        put(if rows % 2 == 1 { &[0] } else { &[] });
        let mut count = 0;
        each_block(k.div_ceil(DEPTH), holds, |_, _| count += 1);
        put(&(count as u16).to_le_bytes());
        let (mut slot, mut gaps) = (absent(count), [0; RUN]);
        each_block(k.div_ceil(DEPTH), holds, |gap, block| {
            for row in band.clone() {
                put(&[0, 1, 2, 3].map(|i| value(row, DEPTH * block + i) as u8));
            }
            gaps[slot % RUN] = gap;
            slot += 1;
            if slot.is_multiple_of(RUN) {
                put(&gaps);
            }
        });
    }
}

/// The blocks that are stored of a row, in order, each with its gap.
fn each_block(blocks: usize, holds: impl Fn(usize) -> bool, mut put: impl FnMut(u8, usize)) {
    const LONGEST: usize = u8::MAX as usize;
    let mut next = 0;
    for block in (0..blocks).filter(|&block| holds(block)) {
        while block - next > LONGEST {
            put(u8::MAX, next + LONGEST);
            next += LONGEST + 1;
        }
        put((block - next) as u8, block);
        next = block + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    fn emitted(rows: usize, n: usize, k: usize, weight: impl Fn(usize, usize) -> i8) -> Vec<u8> {
        let mut bytes = Vec::new();
        emit(rows, (n, k), 3, weight, |row| (row as i32, 7, 40), |part| bytes.extend_from_slice(part));
        bytes
    }

    #[test]
    fn what_is_emitted_is_read_back() {
        for rows in ROWS {
            for (n, k, step) in [(1, 1, 1), (3, 27, 2), (17, 40, 5), (16, 64, 3), (5, 5000, 1249), (4, 32, 99)] {
                let weight = |row: usize, at: usize| match (row / 2 + at / DEPTH).is_multiple_of(step) && row + at > 0 {
                    true => (row * 37 + at * 11) as u8 as i8,
                    false => 0,
                };
                let bytes = emitted(rows, n, k, weight);
                let sparse = Sparse::new_checked(rows, n, k, &bytes).unwrap();
                for (i, band) in sparse.bands().enumerate() {
                    let mut read = vec![0i8; rows * k.next_multiple_of(DEPTH)];
                    for (block, weights) in band.blocks() {
                        for (row, four) in weights.chunks_exact(DEPTH).enumerate() {
                            let at = row * k.next_multiple_of(DEPTH) + DEPTH * block;
                            read[at..at + DEPTH].copy_from_slice(bytemuck::cast_slice(four));
                        }
                    }
                    for (row, read) in (i * rows..n).zip(read.chunks(k.next_multiple_of(DEPTH))) {
                        assert!(read.iter().enumerate().all(|(at, &w)| w == if at < k { weight(row, at) } else { 0 }));
                        let sum: i32 = read.iter().map(|&w| w as i32).sum();
                        assert_eq!(band.stage(row - i * rows), (row as i32 - 3 * sum, 7, 40));
                    }
                }
                assert!(sparse.rescales_by_high_word(-128));
            }
        }
    }

    #[test]
    fn what_leaves_the_row_is_refused() {
        let bytes = emitted(2, 3, 20, |row, at| i8::from(at / 4 == 3 || row == 0 && at == 0));
        assert!(Sparse::new_checked(2, 3, 20, &bytes).is_ok());
        let refused = |n: usize, k: usize, bytes: &[u8]| Sparse::new_checked(2, n, k, bytes).unwrap_err();
        assert!(refused(3, 12, &bytes).contains("place"));
        assert!(refused(5, 20, &bytes).contains("length"));
        assert!(refused(1, 20, &bytes).contains("length"));
        assert!(refused(3, 20, &bytes[..bytes.len() - 1]).contains("length"));
        let mut changed = bytes.clone();
        // Gaps of absent blocks, behind the stage and two blocks.
        changed[stage_bytes(2) + 2 * 8] = 1;
        assert!(refused(3, 20, &changed).contains("reserved"));
        changed.clone_from(&bytes);
        changed[16] = 0;
        assert!(refused(3, 20, &changed).contains("shift"));
    }
}
