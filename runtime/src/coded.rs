//! Coded weights as operators want them: the bytes that their constant would have in a file without code.
//!
//! A code holds a matrix `[n, k]` row by row, one output channel after another (see [`crate::circuit`]).
//!
//! | kind | of | a row becomes |
//! |---|---|---|
//! | weights | Conv, ConvTranspose, Linear | the next `k` elements |
//! | weights | Depthwise | every `n`th element: `[position, channel]` in memory |
//! | blocks | Conv, Linear | a row of a block, with the output stage of its channel, into which the row's sum is folded |
//!
//! Output stages are packed rather than coded ([`stages`]), and read where they lie while rows become blocks; those that operators read
//! are unpacked with the weights.
//!
//! Rows come in *units*, the smallest number of them that takes whole bytes: a block, one row of bytes, up to eight narrow rows, all of a depthwise
//! filter.

use crate::circuit::{self, Coded, Shape};
use crate::format::blocks::{self, Layout, MAX_K};
use crate::format::op::Op;
use crate::format::stages::{self, PackedStages, Stage};
use crate::format::tensor::Constant;
use crate::model::Model;
use crate::ops::{self, Channels, MAX_TILE_BYTES, TILE_BYTES};
use crate::uses::has_circuits;

const NOT_CODED: &str = "coded weights: the operator has none";
const SHAPE: &str = "coded weights: their shape is not the operator's";

/// The coded weights of an operator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'m> {
    coded: Coded<'m>,
    form: Form<'m>,
    bits: u8,
    /// Output channels.
    pub(crate) n: usize,
    /// Weights of a row.
    k: usize,
}

/// What rows become.
#[derive(Clone, Copy, Debug)]
enum Form<'m> {
    Rows,
    Depthwise,
    Blocks { layout: Layout, kernel: [usize; 3], zero_point: i32, stages: Stages<'m> },
}

/// The output stages of an operator, as its constant stores them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stages<'m> {
    Raw(Channels<'m>),
    Packed(PackedStages<'m>),
}

impl<'m> Stages<'m> {
    /// Of constant `id` with `n` channels.
    pub(crate) fn of(model: &Model<'m>, id: u16, n: usize) -> Stages<'m> {
        let bytes = model.stored_bytes(id);
        match model.constant(id).is_coded() {
            true => Stages::Packed(PackedStages::new(bytes, n)),
            false => Stages::Raw(Channels::new(bytes, n)),
        }
    }

    /// Bias, multiplier and shift of a channel.
    pub(crate) fn get(&self, channel: usize) -> Stage {
        match self {
            Stages::Raw(channels) => channels.get(channel),
            Stages::Packed(stages) => stages.get(channel),
        }
    }
}

impl<'m> Source<'m> {
    /// The weights of `op`, or why they are not its weights.
    pub(crate) fn of<const USES: u64>(model: &Model<'m>, op: &Op<'_>) -> Result<Source<'m>, &'static str> {
        let id = op.weights().ok_or(NOT_CODED)?;
        let mut source = Source::of_stored::<USES>(op, &model.constant(id), model.stored_bytes(id))?;
        if let Form::Blocks { zero_point, stages, .. } = &mut source.form {
            let (input, channels) = match op {
                Op::Conv(c) => (c.input, c.channels),
                Op::Linear(l) => (l.input, l.channels),
                _ => return Err(NOT_CODED),
            };
            *zero_point = model.tensor(input).zero_point;
            *stages = Stages::of(model, channels, source.n);
        }
        Ok(source)
    }

    /// As [`Source::of`] of what is stored alone: enough for sizes.
    pub(crate) fn of_stored<const USES: u64>(
        op: &Op<'_>,
        weights: &Constant,
        stored: &'m [u8],
    ) -> Result<Source<'m>, &'static str> {
        let len = usize::try_from(weights.len).map_err(|_| SHAPE)?;
        let coded = coded_of::<USES>(stored, weights.bits, len)?;
        let (shape, k) = (coded.shape(), coded.shape().row());
        let (n, kernel) = match op {
            Op::Conv(c) | Op::Depthwise(c) | Op::ConvTranspose(c) => {
                (c.out_c as usize, [c.kernel_h, c.kernel_w, c.in_c].map(usize::from))
            }
            Op::Linear(l) => (l.n as usize, [1, 1, l.k as usize]),
            _ => return Err(NOT_CODED),
        };
        if shape.rows != n || n.checked_mul(k) != Some(len) {
            return Err(SHAPE);
        }
        let form = match (Layout::from_code(weights.layout), op) {
            (None, Op::Depthwise(_)) => Form::Depthwise,
            (None, _) => Form::Rows,
            (Some(layout), _) => {
                let stages = Stages::Raw(Channels { bias: &[], multiplier: &[], shift: &[] });
                Form::Blocks { layout, kernel, zero_point: 0, stages }
            }
        };
        Ok(Source { coded, form, bits: weights.bits, n, k })
    }

    /// Rows of a unit.
    fn unit_rows(&self) -> usize {
        match self.form {
            Form::Rows => unit_rows(self.bits, self.k),
            Form::Depthwise => self.n,
            Form::Blocks { layout, .. } => layout.rows(),
        }
    }

    /// Bytes of so many rows, a multiple of those of a unit or all that are left.
    pub(crate) fn bytes(&self, rows: usize) -> usize {
        match self.form {
            Form::Rows | Form::Depthwise => weights_bytes(rows, self.k, self.bits),
            Form::Blocks { layout, .. } => layout.matrix_bytes(self.bits, rows, self.k),
        }
    }

    /// Bytes of the largest unit.
    pub(crate) fn unit_bytes(&self) -> usize {
        self.bytes(self.unit_rows().min(self.n))
    }

    /// Rows of a tile, as many whole units as fit, but not more than there are; 0 if not even one does.
    pub(crate) fn tile_rows(&self) -> usize {
        let units = match self.form {
            Form::Blocks { .. } => blocks_of_tile(self.unit_bytes()),
            Form::Rows | Form::Depthwise => TILE_BYTES / self.unit_bytes().max(1),
        };
        units.saturating_mul(self.unit_rows()).min(self.n)
    }

    /// Scratch bytes of an operator that decodes these weights at every run, behind its own: what decoding works in, and a tile. None if
    /// that cannot be: of blocks, one does not fit a tile; of others, not all do.
    pub(crate) fn tile_scratch_bytes(&self) -> Option<[usize; 2]> {
        let rows = self.tile_rows();
        let in_blocks = matches!(self.form, Form::Blocks { .. });
        let fits = rows > 0 && (in_blocks || rows == self.n);
        fits.then(|| [self.work_bytes(), self.bytes(rows).next_multiple_of(4)])
    }

    /// Bytes that decoding works in: the decoder's state and a row.
    pub(crate) fn work_bytes(&self) -> usize {
        self.state_bytes() + self.row_bytes()
    }

    /// Bytes for a row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.k.next_multiple_of(4)
    }

    /// Before the first row; `state` has the words that the code asks for. None of refined weights.
    pub(crate) fn decoder<'s>(&self, state: &'s mut [u8]) -> Option<circuit::Decoder<'m, 's>> {
        self.coded.decoder(bytemuck::try_cast_slice_mut(state).ok()?)
    }

    /// As [`Source::decoder`], of codes that use no circuit.
    pub(crate) fn flat_decoder(&self) -> Option<circuit::FlatDecoder<'m>> {
        self.coded.flat_decoder()
    }

    /// Bytes of the decoder's state, at a multiple of 4.
    pub(crate) fn state_bytes(&self) -> usize {
        4 * self.coded.state_words()
    }

    /// Units of the rows of `decoder`; `row` has [`Source::row_bytes`].
    pub(crate) fn unpack<'s>(&self, decoder: &'s mut dyn Rows, row: &'s mut [u8]) -> Option<Unpacker<'m, 's>> {
        let row = bytemuck::cast_slice_mut(row.get_mut(..self.k)?);
        Some(Unpacker { source: *self, decoder, row, next: 0 })
    }
}

/// Where decoded rows come from.
pub(crate) trait Rows {
    /// The next row.
    fn row(&mut self, out: &mut [i8]);
    /// After the last row: whether the code was that of these weights.
    fn is_finished(&self) -> bool;
}

impl Rows for circuit::Decoder<'_, '_> {
    fn row(&mut self, out: &mut [i8]) {
        circuit::Decoder::row(self, out);
    }

    fn is_finished(&self) -> bool {
        circuit::Decoder::is_finished(self)
    }
}

impl Rows for circuit::FlatDecoder<'_> {
    fn row(&mut self, out: &mut [i8]) {
        circuit::FlatDecoder::row(self, out);
    }

    fn is_finished(&self) -> bool {
        circuit::FlatDecoder::is_finished(self)
    }
}

/// Decodes unit after unit.
pub(crate) struct Unpacker<'m, 's> {
    source: Source<'m>,
    decoder: &'s mut dyn Rows,
    row: &'s mut [i8],
    next: usize,
}

impl Unpacker<'_, '_> {
    /// Fills `out` with the next rows; its length is [`Source::bytes`] of whole units, or of all that is left.
    pub(crate) fn fill(&mut self, out: &mut [u8]) {
        let Source { form, bits, n, k, .. } = self.source;
        match form {
            Form::Blocks { layout, .. } => {
                out.chunks_exact_mut(layout.block_bytes(bits, k)).for_each(|block| self.block(block));
            }
            Form::Rows if bits == 8 => {
                for row in out.chunks_exact_mut(k.max(1)) {
                    self.decoder.row(bytemuck::cast_slice_mut(row));
                    self.next += 1;
                }
            }
            Form::Rows => {
                out.fill(0);
                let rows = (out.len() * 8).checked_div(k * bits as usize).unwrap_or(0).min(n.saturating_sub(self.next));
                for row in 0..rows {
                    self.decoder.row(self.row);
                    self.row.iter().enumerate().for_each(|(i, &w)| put(out, row * k + i, bits, w));
                }
                self.next += rows;
            }
            Form::Depthwise => {
                out.fill(0);
                for channel in 0..n {
                    self.decoder.row(self.row);
                    self.row.iter().enumerate().for_each(|(tap, &w)| put(out, tap * n + channel, bits, w));
                }
                self.next = n;
            }
        }
    }

    /// The next rows, as many as a block has.
    fn block(&mut self, block: &mut [u8]) {
        let Source { form, bits, n, .. } = self.source;
        let Form::Blocks { layout, kernel, zero_point, stages } = form else { return };
        blocks::begin(layout, bits, block);
        for lane in 0..layout.rows().min(n - self.next.min(n)) {
            self.decoder.row(self.row);
            let sum = match (layout, kernel) {
                (Layout::Rows, [kernel_h, kernel_w, in_c]) if kernel_h > 1 => {
                    let taps = (0..kernel_w).flat_map(|x| (0..kernel_h).map(move |y| y * kernel_w + x));
                    let put = |(i, tap): (usize, usize)| {
                        let run = self.row.get(tap * in_c..(tap + 1) * in_c).unwrap_or(&[]);
                        blocks::put(layout, bits, lane, i * in_c, run, block)
                    };
                    taps.enumerate().map(put).fold(0, i32::wrapping_add)
                }
                _ => blocks::put(layout, bits, lane, 0, self.row, block),
            };
            blocks::put_stage(layout, lane, stages.get(self.next), zero_point, sum, block);
            self.next += 1;
        }
    }

    /// After the last row: whether the code was that of these weights.
    pub(crate) fn is_finished(&self) -> bool {
        self.next == self.source.n && self.decoder.is_finished()
    }
}

/// Most weights of a coded constant, and most bytes of it decoded: sums of a few of them fit the machine's words, which may have 32 bits.
const MAX_LEN: u32 = 1 << 29;

/// The code of weights, of the models that `USES` has.
fn coded_of<const USES: u64>(stored: &[u8], bits: u8, len: usize) -> Result<Coded<'_>, &'static str> {
    match has_circuits(USES) {
        true => Coded::new_checked(stored, bits, len),
        false => Coded::new_flat_checked(stored, bits, len),
    }
}

/// Checks a coded constant by itself and returns the bytes that it takes decoded.
pub(crate) fn check<const USES: u64>(constant: &Constant, stored: &[u8]) -> Result<u64, &'static str> {
    if constant.len > MAX_LEN {
        return Err("length");
    }
    let Shape { rows: n, .. } = coded_of::<USES>(stored, constant.bits, constant.len as usize)?.shape();
    let k = constant.len as usize / n.max(1);
    let Some(layout) = Layout::from_code(constant.layout) else {
        return Ok((constant.len as u64 * constant.bits as u64).div_ceil(8));
    };
    if !layout.holds(constant.bits) || k > MAX_K {
        return Err("width or length of weights in blocks");
    }
    // Both factors have at most 32 bits.
    let bytes = n.div_ceil(layout.rows()) as u64 * layout.block_bytes(constant.bits, k) as u64;
    if bytes <= MAX_LEN as u64 { Ok(bytes) } else { Err("length") }
}

/// Bytes that a checked constant takes decoded.
pub(crate) fn decoded_bytes(constant: &Constant, stored: &[u8]) -> usize {
    let len = constant.len as usize;
    if constant.kind == Constant::KIND_CHANNELS {
        return stages::raw_bytes(len);
    }
    match (Layout::from_code(constant.layout), circuit::shape_of(stored, len)) {
        (Some(layout), Some(shape)) => layout.matrix_bytes(constant.bits, shape.rows, shape.row()),
        _ => weights_bytes(1, len, constant.bits),
    }
}

/// Blocks that a tile holds, 0 if none fits.
fn blocks_of_tile(block_bytes: usize) -> usize {
    let usual = TILE_BYTES / block_bytes.max(1);
    if usual == 0 && block_bytes <= MAX_TILE_BYTES { 1 } else { usual }
}

/// Tiles that an operator runs in: 1 unless its weights are decoded in several.
pub(crate) fn tiles(op: &Op<'_>, weights: &Constant) -> usize {
    match (Layout::from_code(weights.layout), ops::matrix_shape(op)) {
        (Some(layout), Some((n, k))) if weights.is_in_tiles() => {
            let blocks = blocks_of_tile(layout.block_bytes(weights.bits, k));
            n.div_ceil(layout.rows()).checked_div(blocks).map_or(0, |_| n.div_ceil(layout.rows()).div_ceil(blocks))
        }
        _ => 1,
    }
}

/// Bytes of `rows` rows of `k` weights.
fn weights_bytes(rows: usize, k: usize, bits: u8) -> usize {
    (rows as u64 * k as u64 * bits as u64).div_ceil(8) as usize
}

/// Rows that take whole bytes together.
fn unit_rows(bits: u8, k: usize) -> usize {
    8 >> (k * bits as usize).trailing_zeros().min(3)
}

/// Adds element `index` to a bit stream of zeros.
fn put(out: &mut [u8], index: usize, bits: u8, w: i8) {
    let at = index * bits as usize;
    let word = ((w as u8 as u16) & ((1u16 << bits) - 1)) << (at % 8);
    for (to, byte) in out.iter_mut().skip(at / 8).zip(word.to_le_bytes()) {
        *to |= byte;
    }
}
