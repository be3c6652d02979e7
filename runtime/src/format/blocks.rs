//! Weights laid out for matrix kernels: blocks of rows, each with its output stage before it.
//!
//! A weight matrix `[n, k]` (of a convolution `k = kernel_h * kernel_w * in_c`) is cut into blocks of [`Layout::rows`] rows. A block holds
//!
//! ```text
//! bias: i32[rows]   multiplier: i32[rows]   shift: u8[rows]   zero point of the weights: i8[rows]   zeros to a multiple of 4 * rows
//! for each run of `depth` consecutive k:  for each row:  `depth` weights
//! ```
//!
//! A shift `s` is stored as itself; [`Layout::Rows`] stores `32 - s`, the amount by which Helium shifts a high word left. There `k` goes along the
//! columns of a window, `[kernel_w, kernel_h, in_c]`, see [`Layout::column`]; elsewhere it is row-major.
//!
//! so that a kernel reads one stream from the first byte to the last. Rows beyond `n` have shift 33 and zeros, `k` is padded with zeros.
//! The input's zero point is folded into the bias: `acc = bias + sum (q + o) * w` over **all** taps, where a tap outside of the input reads
//! the zero point and `o` is [`Layout::offset`]. That equals the row-major meaning, since sums wrap.
//!
//! Narrow weights may have a zero point in every row, which makes of `2^bits` levels around zero as many around another middle: asymmetric weights. As
//! kernels multiply what is stored, at least zero, they owe every row a multiple of the sum of its activations anyway: `2^(bits - 1)` of it, and a
//! zero point more or less ("row-sum correction").

use crate::fixed::{HighWord, SHIFT_RANGE};

/// Largest `k` of a matrix in blocks; keeps scaled sums of narrow weights inside of 32 bits.
pub const MAX_K: usize = 32_768;

/// How weights are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Two rows, words of 32 bits: what SXTB16 and SMLAD of a Cortex-M4 pair without reordering. 8, 4 or 2 bits.
    Pairs,
    /// Four rows by four `k`, stored as `w + 128`, for activations `q + 128`: what LDRB loads from a base register of a Cortex-M0, and products
    /// that fill 16 bits, so that one multiplication serves two pixels. Cores without SIMD. Of 4 or 2 bits, eight `k`.
    Quads,
    /// Four rows by sixteen `k`: one vector register of Helium; of 4 or 2 bits two rows or four share it. Columns of a window lie side by side, so that
    /// windows overlap in memory as they do in the input.
    Rows,
}

impl Layout {
    /// All of them.
    pub const ALL: [Layout; 3] = [Layout::Pairs, Layout::Quads, Layout::Rows];

    /// The code in a constant's record; 0 is row-major.
    pub const fn code(self) -> u8 {
        match self {
            Layout::Pairs => 1,
            Layout::Quads => 2,
            Layout::Rows => 3,
        }
    }

    /// The layout of a code.
    pub const fn from_code(code: u8) -> Option<Layout> {
        match code {
            1 => Some(Layout::Pairs),
            2 => Some(Layout::Quads),
            3 => Some(Layout::Rows),
            _ => None,
        }
    }

    /// What is added to activations.
    pub const fn offset(self) -> i32 {
        match self {
            Layout::Quads => 128,
            Layout::Pairs | Layout::Rows => 0,
        }
    }

    /// Rows of a block.
    pub const fn rows(self) -> usize {
        match self {
            Layout::Pairs => 2,
            Layout::Quads | Layout::Rows => 4,
        }
    }

    /// Consecutive `k` of one row.
    pub const fn depth(self, bits: u8) -> usize {
        match self {
            Layout::Pairs => 32 / bits as usize,
            Layout::Rows => 16,
            Layout::Quads if bits == 8 => 4,
            Layout::Quads => 8,
        }
    }

    /// Whether weights of so many bits can be laid out so.
    pub const fn holds(self, bits: u8) -> bool {
        matches!(bits, 2 | 4 | 8)
    }

    /// `k` with its padding.
    pub const fn padded_k(self, bits: u8, k: usize) -> usize {
        k.next_multiple_of(self.depth(bits))
    }

    /// Row-major index of column `k` of a matrix whose rows are windows of `[kernel_h, kernel_w, in_c]`.
    pub const fn column(self, [kernel_h, kernel_w, in_c]: [usize; 3], k: usize) -> usize {
        match self {
            Layout::Rows => {
                let (tap, channel) = (k / in_c, k % in_c);
                (tap % kernel_h * kernel_w + tap / kernel_h) * in_c + channel
            }
            _ => k,
        }
    }

    /// A shift as it is stored, and back.
    const fn stored_shift(self, shift: u8) -> u8 {
        match self {
            Layout::Rows => 32u8.wrapping_sub(shift),
            _ => shift,
        }
    }

    /// Bytes of a block's output stage.
    pub const fn stage_bytes(self) -> usize {
        (9 * self.rows()).next_multiple_of(4 * self.rows())
    }

    /// Bytes of one block.
    pub const fn block_bytes(self, bits: u8, k: usize) -> usize {
        self.stage_bytes() + self.rows() * self.padded_k(bits, k) * bits as usize / 8
    }

    /// Bytes of a matrix.
    pub const fn matrix_bytes(self, bits: u8, n: usize, k: usize) -> usize {
        n.div_ceil(self.rows()) * self.block_bytes(bits, k)
    }
}

/// A checked view of a matrix in blocks.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    layout: Layout,
    bits: u8,
    n: usize,
    k: usize,
    bytes: &'a [u8],
}

impl<'a> Blocks<'a> {
    /// A view of what [`Blocks::new_checked`] has accepted. Of anything else, rows and weights may read as zeros.
    pub fn new(layout: Layout, bits: u8, n: usize, k: usize, bytes: &'a [u8]) -> Blocks<'a> {
        Blocks { layout, bits, n, k, bytes }
    }

    /// A view, or what is wrong.
    pub fn new_checked(
        layout: Layout,
        bits: u8,
        n: usize,
        k: usize,
        bytes: &'a [u8],
    ) -> Result<Blocks<'a>, &'static str> {
        if !layout.holds(bits) {
            return Err("width of weights in blocks");
        }
        // Both factors are at most 2^32 and the rest is small, so 64 bits hold the product; so does usize after the comparison.
        let padded = (k as u64).next_multiple_of(layout.depth(bits) as u64);
        let block = layout.stage_bytes() as u64 + layout.rows() as u64 * padded * bits as u64 / 8;
        let expected = (n as u64).div_ceil(layout.rows() as u64).checked_mul(block);
        if k == 0 || k > MAX_K || n == 0 || expected != Some(bytes.len() as u64) {
            return Err("length of weights in blocks");
        }
        let blocks = Blocks::new(layout, bits, n, k, bytes);
        let padded_n = n.next_multiple_of(layout.rows());
        if !(0..padded_n).all(|i| SHIFT_RANGE.contains(&blocks.stage(i).2)) {
            return Err("shift in blocks");
        }
        // Zero is one of the levels, which bounds sums. Kernels of 8 bits know no zero points.
        let half = if bits < 8 { 1 << (bits - 1) } else { 0 };
        match (0..padded_n).all(|i| (-half..half.max(1)).contains(&blocks.zero_point(i))) {
            true => Ok(blocks),
            false => Err("zero point of weights in blocks"),
        }
    }

    /// How it is laid out.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Width of one weight.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Rows: output channels.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns, without padding.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns, with padding.
    pub fn padded_k(&self) -> usize {
        self.layout.padded_k(self.bits, self.k)
    }

    /// All bytes.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The blocks' bytes.
    pub fn blocks(&self) -> core::slice::ChunksExact<'a, u8> {
        self.bytes.chunks_exact(self.layout.block_bytes(self.bits, self.k))
    }

    fn block(&self, row: usize) -> &'a [u8] {
        self.blocks().nth(row / self.layout.rows()).unwrap_or(&[])
    }

    /// Bias (with the zero point folded in), multiplier and shift of a row.
    pub fn stage(&self, row: usize) -> (i32, i32, u8) {
        let (rows, block) = (self.layout.rows(), self.block(row));
        let lane = row % rows;
        let word = |at: usize| block.get(at..at + 4).and_then(|w| w.try_into().ok()).map_or(0, i32::from_le_bytes);
        let shift = block.get(8 * rows + lane).map_or(1, |&shift| self.layout.stored_shift(shift));
        (word(4 * lane), word(4 * (rows + lane)), shift)
    }

    /// One weight; `k` may lie in the padding.
    pub fn weight(&self, row: usize, k: usize) -> i32 {
        let (byte, bit) = place(self.layout, self.bits, row % self.layout.rows(), k);
        let raw = self.block(row).get(byte).copied().unwrap_or(0);
        decode(self.layout, self.bits, raw >> bit) - self.zero_point(row)
    }

    /// Zero point of a row's weights.
    fn zero_point(&self, row: usize) -> i32 {
        zero_point(self.layout, row % self.layout.rows(), self.block(row)).into()
    }

    /// Whether any row has a zero point.
    pub fn is_asymmetric(&self) -> bool {
        (0..self.n.next_multiple_of(self.layout.rows())).any(|row| self.zero_point(row) != 0)
    }

    /// Whether a kernel may rescale every row by the high word of a product.
    pub fn rescales_by_high_word(&self, zero_point: i32) -> bool {
        let (rows, by) = (self.layout.rows(), HighWord::new(zero_point));
        self.blocks().all(|block| {
            let (Some(multipliers), Some(shifts)) = (block.get(4 * rows..8 * rows), block.get(8 * rows..9 * rows))
            else {
                return false;
            };
            let multipliers = multipliers.as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes));
            multipliers.zip(shifts).all(|(m, &shift)| by.serves(m, self.layout.stored_shift(shift)))
        })
    }
}

/// Byte in the block and bit in the byte of a weight.
fn place(layout: Layout, bits: u8, lane: usize, k: usize) -> (usize, u32) {
    let (depth, rows) = (layout.depth(bits), layout.rows());
    if layout == Layout::Rows {
        let (byte, bit) = place_in_rows(bits, lane, k);
        return (layout.stage_bytes() + byte, bit);
    }
    let run = layout.stage_bytes() + (k / depth * rows + lane) * depth * bits as usize / 8;
    let bit = bit_in_run(layout, bits, k % depth);
    (run + bit / 8, (bit % 8) as u32)
}

/// As [`place`], of [`Layout::Rows`] behind the output stage: a byte holds one `k` of one row, of two or of four.
fn place_in_rows(bits: u8, lane: usize, k: usize) -> (usize, u32) {
    let shared = 8 / bits as usize;
    let vector = k / 16 * (4 / shared) + lane / shared;
    (16 * vector + k % 16, (lane % shared) as u32 * bits as u32)
}

/// Where weight `k` of a row's [`Layout::depth`] consecutive ones lies.
fn bit_in_run(layout: Layout, bits: u8, k: usize) -> usize {
    match layout {
        // Halfwords hold what SMLAD multiplies together: of four k, first and third, then second and fourth.
        Layout::Pairs => 16 * (k % 4 / 2) + bits as usize * (k / 4 * 2 + k % 2),
        _ => k * bits as usize,
    }
}

/// [`Layout::Rows`] and [`Layout::Pairs`] of 8 bits are stored in two's complement, the rest with an offset.
fn decode(layout: Layout, bits: u8, raw: u8) -> i32 {
    match (layout, bits) {
        (Layout::Quads, 8) => raw as i32 - 128,
        (_, 8) => raw as i8 as i32,
        (Layout::Rows, _) => ((raw << (8 - bits)) as i8 >> (8 - bits)) as i32,
        _ => (raw as i32 & ((1 << bits) - 1)) - (1 << (bits - 1)),
    }
}

fn encode(layout: Layout, bits: u8, weight: i8) -> u8 {
    match (layout, bits) {
        (Layout::Quads, 8) => weight as u8 ^ 0x80,
        (_, 8) => weight as u8,
        (Layout::Rows, _) => weight as u8 & ((1u8 << bits) - 1),
        _ => ((weight as i32 + (1 << (bits - 1))) as u8) & ((1u8 << bits) - 1),
    }
}

/// Where the zero point of a row's weights lies in its block.
const fn zero_point_at(layout: Layout, lane: usize) -> usize {
    9 * layout.rows() + lane
}

fn zero_point(layout: Layout, lane: usize, block: &[u8]) -> i8 {
    block.get(zero_point_at(layout, lane)).map_or(0, |&byte| byte as i8)
}

/// Writes a matrix: `weight(row, k)` and `stage(row)`, whose bias is the row-major one, for an input with this zero point. `weight_zero_points` of
/// rows are those of narrow weights, none if all are zero. `out` has exactly [`Layout::matrix_bytes`].
pub fn emit(
    layout: Layout,
    bits: u8,
    (n, k): (usize, usize),
    zero_point: i32,
    weight_zero_points: &[i8],
    weight: impl Fn(usize, usize) -> i8,
    stage: impl Fn(usize) -> (i32, i32, u8),
    out: &mut [u8],
) {
    const RUN: usize = 16;
    for (index, block) in out.chunks_exact_mut(layout.block_bytes(bits, k)).enumerate() {
        begin(layout, bits, block);
        let first = index * layout.rows();
        for (lane, row) in (first..n.min(first + layout.rows())).enumerate() {
            let zero_point_of_weights = weight_zero_points.get(row).map_or(0, |&zero| zero as u8);
            block.iter_mut().skip(zero_point_at(layout, lane)).take(1).for_each(|to| *to = zero_point_of_weights);
            let run = |at: usize| {
                let columns = (k - at).min(RUN);
                let weights: [i8; RUN] = core::array::from_fn(|i| if i < columns { weight(row, at + i) } else { 0 });
                put(layout, bits, lane, at, weights.get(..columns).unwrap_or(&[]), block)
            };
            let sum = (0..k).step_by(RUN).map(run).fold(0, i32::wrapping_add);
            put_stage(layout, lane, stage(row), zero_point, sum, block);
        }
    }
}

/// Fills a block as if it had no rows: weights of zero, shifts of 33.
pub fn begin(layout: Layout, bits: u8, block: &mut [u8]) {
    let rows = layout.rows();
    let (stages, weights) = block.split_at_mut(layout.stage_bytes().min(block.len()));
    stages.fill(0);
    stages.iter_mut().skip(8 * rows).take(rows).for_each(|shift| *shift = layout.stored_shift(33));
    let zero = encode(layout, bits, 0);
    weights.fill((0..8 / bits).fold(0, |byte, i| byte | zero << (i * bits)));
}

/// Writes weights of a row from column `at` on, in the layout's order of columns, and returns their sum. Narrow weights are stored around the zero point
/// that the block has for the row, and begin at a multiple of [`Layout::depth`], in [`Layout::Rows`] anywhere, if those before them are written before.
pub fn put(layout: Layout, bits: u8, lane: usize, at: usize, weights: &[i8], block: &mut [u8]) -> i32 {
    let (depth, rows) = (layout.depth(bits), layout.rows());
    let zero_point = zero_point(layout, lane, block);
    let block = block.get_mut(layout.stage_bytes()..).unwrap_or(&mut []);
    if bits < 8 && layout == Layout::Rows {
        return put_in_rows(bits, lane, at, weights, zero_point, block);
    }
    if bits < 8 {
        return put_narrow(layout, bits, lane, at, weights, zero_point, block);
    }
    let place = |at: usize| (at / depth * rows + lane) * depth + at % depth;
    let flip = encode(layout, bits, 0);
    let mut sum = 0i32;
    let (fours, rest) = if at.is_multiple_of(4) { weights.as_chunks() } else { (&[][..], weights) };
    for (at, four) in (at..).step_by(4).zip(fours) {
        let [a, b, c, d] = *four;
        sum = sum.wrapping_add(a as i32 + b as i32 + c as i32 + d as i32);
        if let Some(to) = block.get_mut(place(at)..).and_then(<[u8]>::first_chunk_mut) {
            *to = [a as u8 ^ flip, b as u8 ^ flip, c as u8 ^ flip, d as u8 ^ flip];
        }
    }
    for (at, &w) in (at + 4 * fours.len()..).zip(rest) {
        sum = sum.wrapping_add(w as i32);
        if let Some(to) = block.get_mut(place(at)) {
            *to = w as u8 ^ flip;
        }
    }
    sum
}

/// As [`put`], of narrow weights in [`Layout::Rows`].
fn put_in_rows(bits: u8, lane: usize, at: usize, mut weights: &[i8], zero_point: i8, block: &mut [u8]) -> i32 {
    let (mut at, mut sum) = (at, 0i32);
    while !weights.is_empty() {
        let (byte, bit) = place_in_rows(bits, lane, at);
        let (here, rest) = weights.split_at(weights.len().min(16 - at % 16));
        let (keep, mask) = (!(((1 << bits) - 1) << bit), (1u8 << bits) - 1);
        let to = block.get_mut(byte..).unwrap_or(&mut []);
        let (to, behind) = to.split_at_mut(here.len().min(to.len()));
        for (to, &w) in to.iter_mut().zip(here) {
            sum = sum.wrapping_add(w as i32);
            *to = *to & keep | (w.wrapping_add(zero_point) as u8 & mask) << bit;
        }
        (at, weights) = (at + here.len(), rest);
        // Zeros have a level of their own, up to the end of the run.
        if zero_point != 0 && weights.is_empty() {
            let zero = (zero_point as u8 & mask) << bit;
            behind.iter_mut().take(at.next_multiple_of(16) - at).for_each(|to| *to = *to & keep | zero);
        }
    }
    sum
}

/// Largest [`Layout::depth`] of narrow weights.
const MAX_NARROW_DEPTH: usize = 16;

fn put_narrow(
    layout: Layout,
    bits: u8,
    lane: usize,
    at: usize,
    weights: &[i8],
    zero_point: i8,
    block: &mut [u8],
) -> i32 {
    let (depth, rows) = (layout.depth(bits), layout.rows());
    let bytes = depth * bits as usize / 8;
    let (offset, mask) = ((1 << (bits - 1)) + zero_point as i32, (1 << bits) - 1);
    // Four weights are two pairs, see `bit_in_run`: so far apart, and the next four so far behind.
    let (apart, step) = if layout == Layout::Pairs { (16, 2 * bits) } else { (2 * bits, 4 * bits) };
    let mut sum = 0i32;
    for (run, weights) in (at / depth..).zip(weights.chunks(depth)) {
        let mut padded = [0; MAX_NARROW_DEPTH];
        let weights = match weights.len() < depth {
            true => {
                padded.iter_mut().zip(weights).for_each(|(to, &w)| *to = w);
                padded.get(..depth).unwrap_or(&[])
            }
            false => weights,
        };
        let (mut word, mut shift) = (0, 0);
        // Written out, since where code is dear the compiler leaves loops of four rolled.
        for &[a, b, c, d] in weights.as_chunks().0 {
            let mut code = |w: i8| {
                sum = sum.wrapping_add(w as i32);
                (w as i32 + offset) as u32 & mask
            };
            let (a, b, c, d) = (code(a), code(b), code(c), code(d));
            word |= (a | b << bits) << shift | (c | d << bits) << (shift + apart);
            shift += step;
        }
        let to = block.get_mut((run * rows + lane) * bytes..).unwrap_or(&mut []);
        let [a, b, c, d] = word.to_le_bytes();
        match (bytes, to) {
            (4, [to_a, to_b, to_c, to_d, ..]) => [*to_a, *to_b, *to_c, *to_d] = [a, b, c, d],
            (2, [to_a, to_b, ..]) => [*to_a, *to_b] = [a, b],
            _ => {}
        }
    }
    sum
}

/// Writes the output stage of a row whose weights have this sum.
pub fn put_stage(
    layout: Layout,
    lane: usize,
    (bias, multiplier, shift): (i32, i32, u8),
    zero_point: i32,
    sum: i32,
    block: &mut [u8],
) {
    let rows = layout.rows();
    let folded = bias.wrapping_sub(zero_point.wrapping_add(layout.offset()).wrapping_mul(sum));
    let mut write = |at: usize, bytes: &[u8]| {
        if let Some(to) = block.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    };
    write(4 * lane, &folded.to_le_bytes());
    write(4 * (rows + lane), &multiplier.to_le_bytes());
    write(8 * rows + lane, &[layout.stored_shift(shift)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn what_is_emitted_is_read_back() {
        for layout in Layout::ALL {
            for bits in [8, 4, 2].into_iter().filter(|&b| layout.holds(b)) {
                for (n, k) in [(1, 1), (3, 27), (17, 40), (16, 64)] {
                    let half = 1i32 << (bits - 1);
                    // Without zero points, then with all there are.
                    let zero = |row: usize| if k % 8 != 0 || bits == 8 { 0 } else { row as i32 % (2 * half) - half };
                    let value =
                        |row: usize, k: usize| ((row * 37 + k * 11) as i32 % (2 * half) - half - zero(row)) as i8;
                    let zeros: Vec<i8> = (0..n).map(|row| zero(row) as i8).collect();
                    let mut bytes = vec![0xEE; layout.matrix_bytes(bits, n, k)];
                    emit(layout, bits, (n, k), 3, &zeros, value, |row| (row as i32, 7, 40), &mut bytes);
                    let blocks = Blocks::new_checked(layout, bits, n, k, &bytes).unwrap();
                    assert_eq!(blocks.is_asymmetric(), zeros.iter().any(|&zero| zero != 0));
                    for row in 0..n {
                        let read: Vec<i32> = (0..blocks.padded_k()).map(|k| blocks.weight(row, k)).collect();
                        let expected = |c: usize| if c < k { value(row, c) as i32 } else { 0 };
                        assert!(read.iter().enumerate().all(|(c, &w)| w == expected(c)), "{layout:?} {bits} {n} {k}");
                        let bias = row as i32 - (3 + layout.offset()) * read.iter().sum::<i32>();
                        assert_eq!(blocks.stage(row), (bias, 7, 40));
                    }
                    assert!(blocks.rescales_by_high_word(-128));
                    assert!(Blocks::new_checked(layout, bits, n, k, &bytes[1..]).is_err());
                    bytes[zero_point_at(layout, 0)] = if bits == 8 { 1 } else { half as u8 };
                    assert!(Blocks::new_checked(layout, bits, n, k, &bytes).is_err(), "zero is no level");
                }
            }
        }
    }
}
