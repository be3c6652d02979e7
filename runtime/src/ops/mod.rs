//! Operators: shapes, padding and borders around the kernels. One file a family; `run` gives each its memory.
//!
//! Every function here relies on what `Model::parse` established, but none relies on it for safety: slices are taken with
//! checked access, and what cannot happen after a check does nothing.

mod arrange;
mod columns;
mod conv;
mod depthwise;
mod elementwise;
mod linear;
mod matrix;
mod pool;
mod resize;
mod softmax;
mod tiles;

use crate::coded::{self, Source};
use crate::format::NONE;
use crate::format::blocks::{Blocks, Layout};
use crate::format::op::{self, Head, Op, kind};
use crate::format::sparse::Sparse;
use crate::format::tensor::{Constant, Tensor};
use crate::isa::Isa;
use crate::kernels::generic::{Bytes, Packed};
use crate::kernels::patch::Factor;
use crate::kernels::{Memory, Output, Set};
use crate::model::Model;
use crate::uses::{self, Weights, has, has_rows, has_weights};
#[cfg(pith_desktop)]
pub(crate) use conv::Axis;
pub use depthwise::depthwise_scratch_bytes;
pub(crate) use depthwise::is_3x3;
pub use matrix::{conv_fits, conv_scratch_bytes, linear_scratch_bytes, runs_in_place};

/// Most bytes of weights that an operator decodes together at a run.
pub const TILE_BYTES: usize = 2048;

/// Largest block of weights that is a tile by itself.
pub const MAX_TILE_BYTES: usize = 4096;

/// The output stage of one constant: per channel `bias`, `multiplier`, `shift`.
#[derive(Clone, Copy, Debug)]
pub struct Channels<'a> {
    /// In accumulator steps.
    pub bias: &'a [i32],
    /// See [`crate::fixed`].
    pub multiplier: &'a [i32],
    /// See [`crate::fixed`].
    pub shift: &'a [u8],
}

impl<'a> Channels<'a> {
    /// The parts of a [`Constant::KIND_CHANNELS`] with `len` entries; empty if `bytes` are too short or unaligned.
    pub fn new(bytes: &'a [u8], len: usize) -> Channels<'a> {
        let part = |start: usize, size: usize| bytes.get(start * len..(start + size) * len).unwrap_or(&[]);
        let words = |start| bytemuck::try_cast_slice(part(start, 4)).unwrap_or(&[]);
        Channels { bias: words(0), multiplier: words(4), shift: part(8, 1) }
    }

    /// Entry `i`: bias, multiplier, shift; zeros beyond the end.
    #[inline(always)]
    pub fn get(&self, i: usize) -> (i32, i32, u8) {
        match (self.bias.get(i), self.multiplier.get(i), self.shift.get(i)) {
            (Some(&bias), Some(&multiplier), Some(&shift)) => (bias, multiplier, shift),
            _ => (0, 0, 1),
        }
    }
}

/// Strides of a dense array of `dims`, 0 for axes of length 1 (which are never stepped along).
pub fn dense_strides(dims: &[u32; 4]) -> [u32; 4] {
    let mut strides = [0; 4];
    let mut step = 1u32;
    for i in (0..4).rev() {
        strides[i] = if dims[i] == 1 { 0 } else { step };
        step = step.wrapping_mul(dims[i]);
    }
    strides
}

/// Bytes of scratch memory that a record needs where it lies (`in_place`: output memory is input memory). `weights` is the record of its
/// weights, if it has any.
pub fn scratch_bytes(op: &Op<'_>, weights: &Constant, in_place: bool) -> usize {
    // Block-sparse weights multiply the patches of pairs.
    let layout = weights.sparse_rows().map_or(Layout::from_code(weights.layout), |_| Some(Layout::Pairs));
    match (op, layout) {
        (Op::Depthwise(c), _) if in_place => depthwise_scratch_bytes(c),
        (Op::Conv(c), Some(layout)) => conv_scratch_bytes(c, layout, weights.bits),
        (Op::Linear(l), Some(layout)) => linear_scratch_bytes(l, layout, weights.bits),
        _ => 0,
    }
}

/// Scratch bytes beyond those, counted from a multiple of 4, of a record whose weights are decoded tile by tile: the decoder's state with a row, and
/// a tile. `stored` is the code. None if it is not of this record's weights or does not fit a tile.
pub fn tile_scratch_bytes(op: &Op<'_>, weights: &Constant, stored: &[u8]) -> Option<[usize; 2]> {
    Source::of_stored::<{ uses::ALL }>(op, weights, stored).ok()?.tile_scratch_bytes()
}

/// Tiles that a record runs in, 1 unless its weights are decoded in several at every run. It then reads its input once for each, so it cannot
/// overwrite it.
pub fn tiles(op: &Op<'_>, weights: &Constant) -> usize {
    coded::tiles(op, weights)
}

/// As [`scratch_bytes`], with what the kernels of an instruction set want beyond it; with less they leave the record to the generic ones.
pub fn wanted_scratch_bytes(op: &Op<'_>, weights: &Constant, in_place: bool, isa: Isa) -> usize {
    let wanted = match op {
        Op::Depthwise(c) => depthwise::wanted_bytes(c, weights.bits, isa).unwrap_or(0),
        _ => 0,
    };
    wanted.max(scratch_bytes(op, weights, in_place))
}

/// Whether the kernels of an instruction set run a depthwise convolution in place as fast as apart.
pub fn depthwise_runs_in_place(c: &op::Conv, weights: &Constant, isa: Isa) -> bool {
    depthwise::wanted_bytes(c, weights.bits, isa).is_some() && depthwise::runs_in_place(c)
}

/// Rows and columns of the weight matrix of a record.
pub fn matrix_shape(op: &Op<'_>) -> Option<(usize, usize)> {
    match op {
        Op::Conv(c) => {
            let k = [c.kernel_h, c.kernel_w, c.in_c].into_iter().try_fold(1usize, |k, d| k.checked_mul(d.into()))?;
            Some((c.out_c.into(), k))
        }
        Op::Linear(l) => Some((l.n as usize, l.k as usize)),
        _ => None,
    }
}

/// Row-major index of column `k` of a record's weight matrix in a layout.
pub fn matrix_column(op: &Op<'_>, layout: Layout, k: usize) -> usize {
    match op {
        Op::Conv(c) => layout.column([c.kernel_h, c.kernel_w, c.in_c].map(usize::from), k),
        _ => k,
    }
}

/// Executes one operator. `arena` has at least [`Model::arena_bytes`] bytes.
pub(crate) fn run<const USES: u64>(
    model: &Model<'_>,
    set: Set,
    head: &Head,
    op: &Op<'_>,
    arena: &mut [i8],
) -> Option<()> {
    let mut arena = Arena { model, head, memory: arena };
    if let Op::Conv(op::Conv { input, weights: id, .. })
    | Op::Depthwise(op::Conv { input, weights: id, .. })
    | Op::ConvTranspose(op::Conv { input, weights: id, .. })
    | Op::Linear(op::Linear { input, weights: id, .. }) = *op
    {
        let (memory, scratch) = arena.may_be_in_place(input, op.output())?;
        if uses::decodes_tiles(USES) && model.constant(id).is_in_tiles() {
            return tiles::run::<USES>(model, op, memory, scratch);
        }
        let weights = Part { bytes: model.weights_bytes::<USES>(id), rows: None };
        return multiply::<USES>(model, op, memory, scratch, weights);
    }
    match op {
        Op::Add(b) | Op::Mul(b) if has(USES, kind::ADD) || has(USES, kind::MUL) => {
            let zero_points = [b.lhs, b.rhs, b.output].map(|id| model.tensor(id).zero_point);
            let function = elementwise::Function::new(op, b, zero_points);
            if b.rhs_is_constant == 1 {
                let rhs = bytemuck::cast_slice(model.stored_bytes(b.rhs));
                let (lhs, _) = arena.may_be_in_place(b.lhs, b.output)?;
                elementwise::binary::<USES>(b, set, function, lhs, rhs)
            } else {
                let (lhs, rhs) = arena.two_inputs(b.lhs, b.rhs, b.output)?;
                elementwise::binary::<USES>(b, set, function, lhs, rhs)
            }
        }
        Op::Lookup(l) if has(USES, kind::LOOKUP) => {
            let table = bytemuck::cast_slice(model.stored_bytes(l.table));
            elementwise::lookup(table, arena.may_be_in_place(l.input, l.output)?.0)
        }
        Op::PRelu(p) if has(USES, kind::PRELU) => {
            let channels = Channels::new(model.stored_bytes(p.channels), p.c as usize);
            let zero_points = [p.input, p.output].map(|id| model.tensor(id).zero_point);
            elementwise::prelu(p, &channels, zero_points, arena.may_be_in_place(p.input, p.output)?.0)
        }
        Op::MaxPool(p) if has(USES, kind::MAX_POOL) => {
            let (input, output) = arena.apart(p.input, p.output)?;
            pool::max(p, set, input, output)
        }
        Op::AveragePool(p) if has(USES, kind::AVERAGE_POOL) => {
            let (input, output) = arena.apart(p.input, p.output)?;
            let channels = Channels::new(model.stored_bytes(p.channels), model.constant(p.channels).len as usize);
            let to = Output { zero_point: model.tensor(p.output).zero_point, min: p.act_min, max: p.act_max };
            pool::average(p, set, input, model.tensor(p.input).zero_point, &channels, to, output)
        }
        Op::Mean(m) if has(USES, kind::MEAN) => {
            let (input, output) = arena.apart(m.input, m.output)?;
            let to = Output { zero_point: model.tensor(m.output).zero_point, min: i8::MIN, max: i8::MAX };
            pool::mean(m, set, input, model.tensor(m.input).zero_point, to, output)
        }
        Op::Softmax(s) if has(USES, kind::SOFTMAX) => {
            let table = crate::check::u16s(model.stored_bytes(s.table));
            softmax::softmax(s, table, arena.may_be_in_place(s.input, s.output)?.0)
        }
        Op::Pad(p) if has(USES, kind::PAD) => {
            let (input, output) = arena.apart(p.input, p.output)?;
            arrange::pad(p, input, output)
        }
        Op::Rearrange(r) if has(USES, kind::REARRANGE) => {
            let (input, output) = arena.apart(r.input, r.output)?;
            arrange::rearrange(r, input, output)
        }
        Op::Concat(c, inputs) if has(USES, kind::CONCAT) => {
            let inner: usize = inputs.iter().map(|i| i.inner as usize).sum();
            let mut start = 0;
            for part in inputs.iter() {
                let (input, output) = arena.apart(part.input, c.output)?;
                let output = output.get_mut(start..)?;
                let zero_points = [part.input, c.output].map(|id| model.tensor(id).zero_point);
                arrange::concat_part(part, zero_points, input, inner, output);
                start += part.inner as usize;
            }
        }
        Op::ResizeNearest(r) | Op::ResizeBilinear(r)
            if has(USES, kind::RESIZE_NEAREST) || has(USES, kind::RESIZE_BILINEAR) =>
        {
            let [rows, columns] = [r.rows, r.columns].map(|id| crate::check::u16s(model.stored_bytes(id)));
            let (input, output) = arena.apart(r.input, r.output)?;
            match op {
                Op::ResizeNearest(_) => resize::nearest(r, rows, columns, input, output),
                _ => resize::bilinear(r, rows, columns, input, output),
            }
        }
        _ => return None,
    }
    Some(())
}

/// Weights of an operator: all of them, or of blocks those of some output channels.
#[derive(Clone, Copy)]
struct Part<'a> {
    bytes: &'a [u8],
    /// First output channel and how many, none for all.
    rows: Option<(usize, usize)>,
}

/// An operator that has weights.
fn multiply<const USES: u64>(
    model: &Model<'_>,
    op: &Op<'_>,
    memory: Memory<'_>,
    scratch: &mut [i8],
    part: Part<'_>,
) -> Option<()> {
    let constant = model.constant(op.weights()?);
    let to = |output, min, max| Output { zero_point: model.tensor(output).zero_point, min, max };
    if let Some(rows) = constant.sparse_rows().filter(|_| uses::has_sparse(USES)) {
        let (n, k) = matrix_shape(op)?;
        let factor = Factor::Sparse(Sparse::new(rows, n, k, part.bytes));
        let place = Place { first: 0, pitch: n };
        return match op {
            Op::Conv(c) if has_weights(USES, kind::CONV, Weights::Sparse) => {
                let to = to(c.output, c.act_min, c.act_max);
                matrix::conv::<USES>(c, memory, model.tensor(c.input).zero_point as i8, &factor, place, to, scratch)
            }
            Op::Linear(l) if has_weights(USES, kind::LINEAR, Weights::Sparse) => {
                let to = to(l.output, l.act_min, l.act_max);
                matrix::linear::<USES>(l, memory, &factor, place, to, scratch)
            }
            _ => None,
        };
    }
    if let Some(layout) = Layout::from_code(constant.layout).filter(|_| uses::has_dense(USES)) {
        let (all, k) = matrix_shape(op)?;
        // Outputs of a pixel lie as far apart as there are channels in all.
        let (first, n) = part.rows.filter(|_| uses::decodes_tiles(USES)).unwrap_or((0, all));
        let place = Place { first, pitch: all };
        let blocks = Blocks::new(layout, constant.bits, n, k, part.bytes);
        match op {
            Op::Conv(c) if has_weights(USES, kind::CONV, Weights::Blocks) => {
                let zero_point = model.tensor(c.input).zero_point as i8;
                let to = to(c.output, c.act_min, c.act_max);
                return match layout {
                    Layout::Rows if has_rows(USES) => {
                        columns::conv::<USES>(c, memory, zero_point, &blocks, place, to, scratch)
                    }
                    _ => matrix::conv::<USES>(c, memory, zero_point, &Factor::Dense(blocks), place, to, scratch),
                };
            }
            Op::Linear(l) if has_weights(USES, kind::LINEAR, Weights::Blocks) => {
                let to = to(l.output, l.act_min, l.act_max);
                return match layout {
                    Layout::Rows if has_rows(USES) => columns::linear::<USES>(l, memory, &blocks, place, to, scratch),
                    _ => matrix::linear::<USES>(l, memory, &Factor::Dense(blocks), place, to, scratch),
                };
            }
            _ => return None,
        }
    }
    let weights = match constant.bits {
        8 => Either::Bytes(Bytes(bytemuck::cast_slice(part.bytes))),
        bits => Either::Packed(packed::<USES>(model, op, part.bytes, bits)),
    };
    if let (Op::Depthwise(c), true) = (op, has(USES, kind::DEPTHWISE)) {
        let stage = Stage::of::<USES>(model, c);
        match weights {
            Either::Bytes(w) if has_weights(USES, kind::DEPTHWISE, Weights::Bytes) => {
                depthwise::depthwise::<_, USES>(c, memory, w, 8, &stage, scratch)
            }
            Either::Packed(w) if has_weights(USES, kind::DEPTHWISE, Weights::Packed) => {
                depthwise::depthwise::<_, USES>(c, memory, w, w.bits, &stage, scratch)
            }
            _ => return None,
        }
        return Some(());
    }
    let Memory::Apart(input, output) = memory else { return None };
    match op {
        Op::Conv(c) if has(USES, kind::CONV) => {
            let stage = Stage::of::<USES>(model, c);
            match weights {
                Either::Bytes(w) if has_weights(USES, kind::CONV, Weights::Bytes) => {
                    conv::conv(c, input, w, &stage, output)
                }
                Either::Packed(w) if has_weights(USES, kind::CONV, Weights::Packed) => {
                    conv::conv(c, input, w, &stage, output)
                }
                _ => return None,
            }
        }
        Op::ConvTranspose(c) if has(USES, kind::CONV_TRANSPOSE) => {
            let stage = Stage::of::<USES>(model, c);
            match weights {
                Either::Bytes(w) if has_weights(USES, kind::CONV_TRANSPOSE, Weights::Bytes) => {
                    conv::conv_transpose(c, input, w, &stage, output)
                }
                Either::Packed(w) if has_weights(USES, kind::CONV_TRANSPOSE, Weights::Packed) => {
                    conv::conv_transpose(c, input, w, &stage, output)
                }
                _ => return None,
            }
        }
        Op::Linear(l) if has(USES, kind::LINEAR) => {
            let channels = Channels::new(model.weights_bytes::<USES>(l.channels), l.n as usize);
            let to = to(l.output, l.act_min, l.act_max);
            let zero_point = model.tensor(l.input).zero_point as i16;
            match weights {
                Either::Bytes(w) if has_weights(USES, kind::LINEAR, Weights::Bytes) => {
                    linear::linear(l, input, zero_point, w, &channels, to, output)
                }
                Either::Packed(w) if has_weights(USES, kind::LINEAR, Weights::Packed) => {
                    linear::linear(l, input, zero_point, w, &channels, to, output)
                }
                _ => return None,
            }
        }
        _ => return None,
    }
    Some(())
}

/// Narrow row-major weights of an operator: `bytes` of `bits` each.
pub(crate) fn packed<'m, const USES: u64>(model: &Model<'m>, op: &Op<'_>, bytes: &'m [u8], bits: u8) -> Packed<'m> {
    if !uses::has_asymmetric(USES) {
        return Packed::new(bytes, bits);
    }
    let (zero_points, run) = match op {
        Op::Depthwise(c) => (c.weight_zero_points, 1),
        Op::Conv(c) | Op::ConvTranspose(c) => (
            c.weight_zero_points,
            [c.kernel_h, c.kernel_w, c.in_c / c.groups.max(1)].iter().map(|&d| d as usize).product(),
        ),
        Op::Linear(l) => (l.weight_zero_points, l.k as usize),
        _ => (NONE, 1),
    };
    let zero_points = if zero_points == NONE { &[] } else { bytemuck::cast_slice(model.stored_bytes(zero_points)) };
    Packed { bytes, bits, zero_points, run }
}

/// Where the outputs of a pixel lie: from `first` on, `pitch` behind those of the pixel before.
#[derive(Clone, Copy, Debug)]
struct Place {
    first: usize,
    pitch: usize,
}

/// Everything behind the accumulator of a convolution.
struct Stage<'a> {
    in_zero_point: i16,
    channels: Channels<'a>,
    output: Output,
}

impl<'a> Stage<'a> {
    fn of<const USES: u64>(model: &Model<'a>, c: &op::Conv) -> Stage<'a> {
        Stage {
            in_zero_point: model.tensor(c.input).zero_point as i16,
            channels: Channels::new(model.weights_bytes::<USES>(c.channels), c.out_c as usize),
            output: Output { zero_point: model.tensor(c.output).zero_point, min: c.act_min, max: c.act_max },
        }
    }
}

enum Either<'a> {
    Bytes(Bytes<'a>),
    Packed(Packed<'a>),
}

/// The arena during one operator: hands out disjoint slices of it.
struct Arena<'v, 'm> {
    model: &'v Model<'m>,
    head: &'v Head,
    memory: &'v mut [i8],
}

impl Arena<'_, '_> {
    fn range(&self, id: u16) -> (usize, usize) {
        let Tensor { offset, len, .. } = self.model.tensor(id);
        (offset as usize, offset as usize + len as usize)
    }

    fn apart(&mut self, input: u16, output: u16) -> Option<(&[i8], &mut [i8])> {
        let [input, output, _] = carve(self.memory, [self.range(input), self.range(output), NOTHING])?;
        Some((input, output))
    }

    /// Input and output, and the operator's scratch memory.
    fn may_be_in_place(&mut self, input: u16, output: u16) -> Option<(Memory<'_>, &mut [i8])> {
        let (from, to) = (self.range(input), self.range(output));
        let scratch = self.head.scratch_offset as usize;
        let scratch = (scratch, scratch + self.head.scratch_bytes as usize);
        if from.0 == to.0 {
            let [data, scratch, _] = carve(self.memory, [from, scratch, NOTHING])?;
            Some((Memory::InPlace(data), scratch))
        } else {
            let [input, output, scratch] = carve(self.memory, [from, to, scratch])?;
            Some((Memory::Apart(input, output), scratch))
        }
    }

    /// Left operand and output, and the right operand.
    fn two_inputs(&mut self, lhs: u16, rhs: u16, output: u16) -> Option<(Memory<'_>, &[i8])> {
        let (from, second, to) = (self.range(lhs), self.range(rhs), self.range(output));
        if from.0 == to.0 {
            let [data, rhs, _] = carve(self.memory, [from, second, NOTHING])?;
            Some((Memory::InPlace(data), rhs))
        } else {
            // Both operands may be the same memory, so they are shared slices of what is not output.
            let (before, rest) = self.memory.split_at_mut_checked(to.0)?;
            let (output, after) = rest.split_at_mut_checked(to.1 - to.0)?;
            let (before, after): (&[i8], &[i8]) = (before, after);
            let part = |(start, end): (usize, usize)| match start.checked_sub(to.1) {
                Some(start) => after.get(start..end - to.1),
                None => before.get(start..end),
            };
            Some((Memory::Apart(part(from)?, output), part(second)?))
        }
    }
}

/// A range for [`carve`] that is not wanted.
const NOTHING: (usize, usize) = (0, 0);

/// Disjoint parts of `memory`, none if two overlap or one leaves it.
#[inline(never)]
fn carve(memory: &mut [i8], ranges: [(usize, usize); 3]) -> Option<[&mut [i8]; 3]> {
    let mut order = [0, 1, 2];
    order.sort_unstable_by_key(|&i| ranges[i]);
    let mut parts = [const { None }; 3];
    let mut rest = memory;
    let mut done = 0;
    for i in order {
        let (start, end) = ranges[i];
        if start == end {
            parts[i] = Some(&mut [][..]);
            continue;
        }
        let (_, tail) = rest.split_at_mut_checked(start.checked_sub(done)?)?;
        let (part, tail) = tail.split_at_mut_checked(end.checked_sub(start)?)?;
        parts[i] = Some(part);
        rest = tail;
        done = end;
    }
    let mut missing = false;
    let parts = parts.map(|part| {
        missing |= part.is_none();
        part.unwrap_or(&mut [])
    });
    (!missing).then_some(parts)
}
