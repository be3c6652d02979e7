//! Memory beside the arena in which a desktop keeps weights as its vectors want them, and the inputs of the operator at hand.
//!
//! A file says nothing about desktops: when an engine is made, weights of convolutions, depthwise convolutions and linear layers are packed for the
//! machine's instruction set (from any layout of the file) into memory of the caller; `Engine::run` then takes those operators through
//! [`crate::kernels::lanes`]. What has no such kernel (groups, dilation, factors that need 64 bits) stays with the generic ones. The outputs
//! are the same bytes.
//!
//! ```text
//! stamp | entries (one per operator) | packed weights | decoded weights | map of the operator at hand
//! ```
//!
//! Coded weights are decoded before they are packed: resident ones, unless the model at hand has them decoded, to stay (operators that are not packed
//! read them), those of tiles one constant at a time into the memory of maps.
//!
//! The stamp names the model and the set, so that another engine over the same memory need not pack again.

use crate::coded::Stages;
use crate::error::Error;
use crate::format::NONE;
use crate::format::blocks::{Blocks, Layout};
use crate::format::op::{self, Op};
use crate::format::sparse::{self, Sparse};
use crate::format::tensor::Constant;
use crate::isa::Isa;
use crate::kernels::generic::Packed;
use crate::kernels::lanes::{self, Depthwise, Map, Matrix, Planes, Shape, Table, stage_words};
use crate::kernels::{self, Output};
use crate::model::Model;
use crate::ops;
use bytemuck::{Pod, Zeroable};

/// What vectors and tiles want their rows to begin at.
const ALIGN: usize = 64;

/// No map or packed constant is larger; keeps all sums of sizes inside of 32 bits where the machine has no more.
const MAX_BYTES: usize = 1 << 28;

/// Most vectors of depthwise weights that are repeated along a row of pixels.
const MAX_PERIOD: usize = 8;

/// Largest stride of a convolution in planes.
const MAX_PHASES: usize = 4;

/// Where the packed weights of an operator lie.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
struct Entry {
    /// 1 if the operator has packed weights.
    packed: u32,
    /// 1 if any channel's sum is doubled first.
    doubles: u32,
    /// In multiples of [`ALIGN`].
    offset: u32,
    reserved: u32,
}

/// Whose weights the memory holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
struct Stamp {
    /// `PITHWORK`.
    magic: [u8; 8],
    /// Of the model file.
    crc32: u32,
    file_bytes: u32,
    isa: u32,
    /// Of decoded weights in this memory.
    decoded_bytes: u32,
    reserved: [u32; 10],
}

const _: () = assert!(size_of::<Stamp>() == ALIGN);

/// Packed weights and a map.
#[derive(Debug)]
pub(crate) struct Workspace<'a> {
    table: &'static Table,
    entries: &'a [Entry],
    packed: &'a [u8],
    /// Resident constants, empty if the model has them decoded itself.
    decoded: &'a [u8],
    map: &'a mut [u8],
    /// Helpers for large operators.
    pub(crate) parallel: Option<&'a dyn Parallel>,
}

/// Bytes for a model, 0 if the machine has no kernels of this set.
pub(crate) fn bytes(model: &Model<'_>, isa: Isa) -> usize {
    kernels::table(isa).map_or(0, |table| {
        parts(model, table.shape).into_iter().fold(ALIGN + size_of::<Stamp>(), usize::saturating_add)
    })
}

/// Bytes of entries, packed weights, decoded weights and map.
fn parts(model: &Model<'_>, shape: Shape) -> [usize; 4] {
    let (mut packed, mut map) = (0usize, model.decode_scratch_bytes());
    for (_, op) in model.ops() {
        if let Some(step) = Step::of(model, &op, shape) {
            packed = packed.saturating_add(step.packed_bytes(shape).next_multiple_of(ALIGN));
            map = map.max(step.map_bytes(shape));
            if let Some(id) = op.weights().filter(|&id| model.constant(id).is_in_tiles()) {
                map = map.max(model.decoded_len(id).saturating_add(model.decode_scratch_bytes()));
            }
        }
    }
    let entries = model.ops().count() * size_of::<Entry>();
    let decoded = if model.is_decoded() { 0 } else { model.decoded_bytes() };
    [entries, packed, decoded, map].map(|bytes| bytes.next_multiple_of(ALIGN))
}

impl<'a> Workspace<'a> {
    /// Decodes and packs the weights, unless the memory holds them.
    pub(crate) fn new(model: &Model<'_>, isa: Isa, memory: &'a mut [u8]) -> Result<Workspace<'a>, Error> {
        let table = kernels::table(isa).ok_or(Error::NoSuchKernels { isa: isa.name() })?;
        let sizes = parts(model, table.shape);
        let (needed, given) = (bytes(model, isa), memory.len());
        let [stamp, entries, packed, decoded, map] =
            split(memory, sizes).ok_or(Error::WorkspaceTooSmall { needed, given })?;
        let too_small = |_| Error::WorkspaceTooSmall { needed, given };
        let stamp: &mut Stamp = bytemuck::try_from_bytes_mut(stamp).map_err(too_small)?;
        let entries: &mut [Entry] = bytemuck::try_cast_slice_mut(entries).map_err(too_small)?;
        let decodes = !model.is_decoded();
        let header = model.header();
        let ours = Stamp {
            magic: *b"PITHWORK",
            crc32: header.crc32,
            file_bytes: header.file_bytes,
            isa: isa as u32,
            decoded_bytes: if decodes { header.decoded_bytes } else { 0 },
            ..Stamp::default()
        };
        if *stamp != ours {
            *stamp = Stamp::default();
            let model = if decodes { model.decode_into(decoded, map)? } else { *model };
            pack(&model, table.shape, entries, packed, map)?;
            *stamp = ours;
        }
        let decoded = decoded.get(..if decodes { model.decoded_bytes() } else { 0 }).unwrap_or(&[]);
        Ok(Workspace { table, entries, packed, decoded, map, parallel: None })
    }

    /// The model with its weights decoded.
    pub(crate) fn decoded<'d>(&'d self, model: &Model<'d>) -> Model<'d> {
        if self.decoded.is_empty() { *model } else { model.over(self.decoded) }
    }

    /// The set's other kernels.
    pub(crate) fn table(&self) -> &'static Table {
        self.table
    }

    /// Runs operator `index` if it has packed weights; false if it must be run otherwise.
    pub(crate) fn run(&mut self, model: &Model<'_>, index: usize, op: &Op<'_>, arena: &mut [i8]) -> bool {
        let Some(entry) = self.entries.get(index).filter(|entry| entry.packed == 1) else { return false };
        self.execute(model, *entry, op, arena).is_some()
    }

    fn execute(&mut self, model: &Model<'_>, entry: Entry, op: &Op<'_>, arena: &mut [i8]) -> Option<()> {
        let (table, shape) = (self.table, self.table.shape);
        let step = Step::of(model, op, shape)?;
        let weights = self.packed.get(entry.offset as usize * ALIGN..)?.get(..step.packed_bytes(shape))?;
        let (from, to, act_min, act_max) = match op {
            Op::Conv(c) | Op::Depthwise(c) => (c.input, c.output, c.act_min, c.act_max),
            Op::Linear(l) => (l.input, l.output, l.act_min, l.act_max),
            _ => return None,
        };
        let range = |id: u16| {
            let tensor = model.tensor(id);
            tensor.offset as usize..tensor.offset as usize + tensor.len as usize
        };
        let map = self.map.get_mut(..step.map_bytes(shape))?;
        let input = arena.get(range(from))?;
        let is_filled = match step.kind {
            Kind::Sparse { .. } => (table.fill_planes)(&step.planes(), input, map),
            _ => (table.fill)(&step.map, input, map),
        };
        if !is_filled {
            return None;
        }
        let to_stage = Output { zero_point: model.tensor(to).zero_point, min: act_min, max: act_max };
        let call = Call { table, step: &step, map, weights, doubles: entry.doubles == 1, to: to_stage };
        let output = arena.get_mut(range(to))?;
        let parallel = self.parallel.filter(|_| op.macs() >= PARALLEL_MACS && step.out_h > 1);
        let done = match parallel {
            Some(parallel) => call.run_in_parts(parallel, output),
            None => call.run(0, step.out_h, output),
        };
        done.then_some(())
    }
}

/// Products of an operator from which on other threads are asked for help.
const PARALLEL_MACS: u64 = 1 << 20;

/// Parts that an operator is cut into at most.
const MAX_PARTS: usize = 16;

/// Something that runs parts of an operator at the same time, for example a pool of threads. They are all done when it returns.
pub trait Parallel: core::fmt::Debug + Sync {
    /// How many parts are worth while.
    fn threads(&self) -> usize;

    /// Calls each of them once.
    fn run(&self, parts: &mut [&mut (dyn FnMut() + Send)]);
}

/// An operator over a map that is filled.
#[derive(Clone, Copy)]
struct Call<'a> {
    table: &'static Table,
    step: &'a Step,
    map: &'a [u8],
    weights: &'a [u8],
    doubles: bool,
    to: Output,
}

impl Call<'_> {
    /// Elements of a row of the output.
    fn out_row(&self) -> usize {
        match self.step.kind {
            Kind::Matrix { n, .. } | Kind::Sparse { n, .. } => self.step.out_w * n,
            Kind::Depthwise { .. } => self.step.out_w * self.step.map.channels,
        }
    }

    /// Rows `first ..` of the output, cut into parts; the same bytes as in one.
    fn run_in_parts(&self, parallel: &dyn Parallel, output: &mut [i8]) -> bool {
        let rows = self.step.out_h.div_ceil(parallel.threads().clamp(1, MAX_PARTS));
        let mut parts = output.chunks_mut((rows * self.out_row()).max(1)).enumerate();
        let mut jobs: [_; MAX_PARTS] = core::array::from_fn(|_| parts.next().map(|part| (part, false)));
        let count = jobs.iter().flatten().count();
        let mut calls = jobs.each_mut().map(|job| {
            move || {
                if let Some(((i, output), done)) = job {
                    *done = self.run(*i * rows, rows.min(self.step.out_h - *i * rows), output);
                }
            }
        });
        let mut calls = calls.each_mut().map(|call| call as &mut (dyn FnMut() + Send));
        parallel.run(calls.get_mut(..count).unwrap_or(&mut []));
        parts.next().is_none() && jobs.iter().flatten().all(|(_, done)| *done)
    }

    /// So many rows of the output from `first` on; false if a length is wrong.
    #[inline]
    fn run(&self, first: usize, rows: usize, output: &mut [i8]) -> bool {
        let Call { table, step, weights, doubles, to, .. } = *self;
        let (shape, out_row) = (table.shape, self.out_row());
        if let Kind::Sparse { rows: of_block, n, .. } = step.kind {
            let (planes, row_step) = (step.planes(), 4 * step.planes().columns());
            let Some(map) = self.map.get(first * row_step..) else { return false };
            let mut sparse = lanes::Sparse {
                planes: map,
                plane_bytes: planes.plane_bytes(),
                out_h: rows,
                out_w: step.out_w,
                row_step,
                rows: of_block,
                bands: weights,
                n,
                doubles,
                to,
                output,
            };
            return (table.sparse)(&mut sparse);
        }
        let pixel = step.map.pitch * shape.element();
        let row = step.map.columns * pixel;
        let Some(map) = self.map.get(first * step.stride_h * row..) else { return false };
        match step.kind {
            Kind::Matrix { runs, run, n } => {
                let mut matrix = Matrix {
                    map,
                    pixels: rows * step.out_w,
                    width: step.out_w,
                    row_step: step.stride_h * row,
                    pixel_step: step.stride_w * pixel,
                    runs,
                    run_step: row,
                    run,
                    weights,
                    n,
                    doubles,
                    to,
                    output,
                };
                (table.matrix)(&mut matrix, shape)
            }
            Kind::Depthwise { kernel_h, kernel_w, vectors, side_by_side } => {
                let (channels, period) = (step.map.channels, vectors * shape.vector());
                let mut depthwise = Depthwise {
                    map,
                    row,
                    pitch: pixel,
                    kernel_h,
                    kernel_w,
                    stride_h: step.stride_h,
                    out_h: rows,
                    out_row,
                    vectors,
                    positions: if side_by_side { out_row.div_ceil(period) } else { step.out_w },
                    map_step: if side_by_side { period * shape.element() } else { step.stride_w * pixel },
                    out_step: if side_by_side { period } else { channels },
                    span: if side_by_side { period } else { channels },
                    weights,
                    doubles,
                    to,
                    output,
                };
                (table.depthwise)(&mut depthwise, shape)
            }
            Kind::Sparse { .. } => false,
        }
    }
}

/// Stamp, entries, packed weights, decoded weights and map.
fn split(memory: &mut [u8], sizes: [usize; 4]) -> Option<[&mut [u8]; 5]> {
    let mut rest = memory.get_mut(memory.as_ptr().align_offset(ALIGN)..)?;
    let mut parts = [const { None }; 5];
    for (part, bytes) in parts.iter_mut().zip([size_of::<Stamp>()].into_iter().chain(sizes)) {
        let (taken, after) = rest.split_at_mut_checked(bytes)?;
        (*part, rest) = (Some(taken), after);
    }
    Some(parts.map(|part| part.unwrap_or(&mut [])))
}

/// Packs the weights of all operators that go through lanes; `memory` is for decoding.
fn pack(
    model: &Model<'_>,
    shape: Shape,
    entries: &mut [Entry],
    packed: &mut [u8],
    memory: &mut [u8],
) -> Result<(), Error> {
    entries.fill(Entry::default());
    let mut at = 0;
    for (entry, (_, op)) in entries.iter_mut().zip(model.ops()) {
        let Some(step) = Step::of(model, &op, shape) else { continue };
        let to = packed.get_mut(at..).and_then(|p| p.get_mut(..step.packed_bytes(shape))).unwrap_or(&mut []);
        let weights = op.weights().unwrap_or(NONE);
        let doubles = match model.constant(weights).is_in_tiles() {
            true => {
                let (decoded, scratch) = memory.split_at_mut_checked(model.decoded_len(weights)).unwrap_or_default();
                model.decode(weights, decoded, scratch)?;
                step.pack(model, &op, decoded, shape, to)
            }
            false => step.pack(model, &op, model.constant_bytes(weights), shape, to),
        };
        if let Some(doubles) = doubles {
            *entry = Entry { packed: 1, doubles: doubles.into(), offset: (at / ALIGN) as u32, reserved: 0 };
        }
        at += to.len().next_multiple_of(ALIGN);
    }
    Ok(())
}

/// An operator that goes through lanes.
#[derive(Clone, Copy, Debug)]
struct Step {
    map: Map,
    out_h: usize,
    out_w: usize,
    stride_h: usize,
    stride_w: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Matrix {
        runs: usize,
        run: usize,
        n: usize,
    },
    Depthwise {
        kernel_h: usize,
        kernel_w: usize,
        vectors: usize,
        /// Vectors run along a row of pixels, not along the channels of one.
        side_by_side: bool,
    },
    /// Block-sparse, in planes.
    Sparse {
        kernel_w: usize,
        n: usize,
        /// Of a block.
        rows: usize,
        /// At least as many as are stored.
        blocks: usize,
    },
}

impl Step {
    /// None if the operator has another shape than lanes can do.
    fn of(model: &Model<'_>, op: &Op<'_>, shape: Shape) -> Option<Step> {
        let step = match op {
            Op::Conv(c) if ops::conv_fits(c) => {
                let run = c.kernel_w as usize * c.in_c as usize;
                let kind = Kind::Matrix { runs: c.kernel_h as usize, run, n: c.out_c as usize };
                Step::over(model, c, c.in_c as usize, kind)?
            }
            Op::Depthwise(c) if [c.dilation_h, c.dilation_w] == [1; 2] => {
                let (channels, vector) = (c.in_c as usize, shape.vector());
                // After so many vectors a row of pixels begins at a vector's first lane again.
                let period = channels.max(1) >> channels.trailing_zeros().min(vector.trailing_zeros());
                let side_by_side = c.stride_w == 1 && period <= MAX_PERIOD;
                let vectors = if side_by_side { period } else { channels.div_ceil(vector) };
                let pitch = if side_by_side { channels } else { vectors * vector };
                let (kernel_h, kernel_w) = (c.kernel_h as usize, c.kernel_w as usize);
                let kind = Kind::Depthwise { kernel_h, kernel_w, vectors, side_by_side };
                Step::over(model, c, pitch, kind)?
            }
            Op::Linear(l) => {
                let (rows, k) = (l.rows as usize, l.k as usize);
                let map = Map {
                    rows: 1,
                    columns: rows,
                    pitch: k,
                    in_h: 1,
                    in_w: rows,
                    channels: k,
                    top: 0,
                    left: 0,
                    zero_point: 0,
                };
                let kind = Kind::Matrix { runs: 1, run: k, n: l.n as usize };
                Step { map, out_h: 1, out_w: rows, stride_h: 1, stride_w: 1, kind }
            }
            _ => return None,
        };
        let step = step.in_planes(model, op, shape);
        let columns = match step.kind {
            Kind::Matrix { runs, run, n } => runs.checked_mul(run)?.checked_mul(n)?,
            Kind::Depthwise { kernel_h, kernel_w, .. } => {
                kernel_h.checked_mul(kernel_w)?.checked_mul(step.map.pitch)?
            }
            Kind::Sparse { n, blocks, .. } => n.checked_add(blocks)?,
        };
        let map = step.map.rows.checked_mul(step.map.columns)?.checked_mul(step.map.pitch)?;
        (columns.max(map) < MAX_BYTES).then_some(step)
    }

    /// None if borders would have to hold a zero point that is no int8.
    fn over(model: &Model<'_>, c: &op::Conv, pitch: usize, kind: Kind) -> Option<Step> {
        let reach = |out: u16, stride: u16, kernel: u16, pad: u16, input: u16| {
            let last = (out.max(1) as usize - 1) * stride as usize + kernel as usize;
            last.max(pad as usize + input as usize)
        };
        let mut map = Map {
            rows: reach(c.out_h, c.stride_h, c.kernel_h, c.pad_top, c.in_h),
            columns: reach(c.out_w, c.stride_w, c.kernel_w, c.pad_left, c.in_w),
            pitch,
            in_h: c.in_h as usize,
            in_w: c.in_w as usize,
            channels: c.in_c as usize,
            top: c.pad_top as usize,
            left: c.pad_left as usize,
            zero_point: 0,
        };
        if [map.rows, map.columns] != [map.in_h, map.in_w] {
            map.zero_point = model.tensor(c.input).zero_point.try_into().ok()?;
        }
        let [out_h, out_w, stride_h, stride_w] = [c.out_h, c.out_w, c.stride_h, c.stride_w].map(usize::from);
        Some(Step { map, out_h, out_w, stride_h, stride_w, kind })
    }

    /// The same operator in planes, if its weights are block-sparse and that is worth it.
    fn in_planes(self, model: &Model<'_>, op: &Op<'_>, shape: Shape) -> Step {
        let Kind::Matrix { runs, run, n } = self.kind else { return self };
        let weights = op.weights().map_or(Constant::default(), |id| model.constant(id));
        let Some(rows) = weights.sparse_rows().filter(|_| shape.sparse) else { return self };
        let blocks = weights.bytes as usize / (sparse::DEPTH * rows + 1);
        // Lanes beyond the last pixel of a row are idle.
        let lanes = self.out_w.next_multiple_of(shape.lanes);
        let all = (n.div_ceil(rows) * runs).saturating_mul(run.div_ceil(sparse::DEPTH));
        // Where bytes are multiplied four at a time, reading them and turning outputs is what takes long.
        let least = if shape.wide { 2 } else { 8 };
        let pays = blocks.saturating_mul(lanes) < (all / least).saturating_mul(self.out_w);
        let fits = self.map.channels.is_multiple_of(sparse::DEPTH) && self.stride_h.max(self.stride_w) <= MAX_PHASES;
        if !pays || !fits {
            return self;
        }
        let kernel_w = run / self.map.channels.max(1);
        Step { kind: Kind::Sparse { kernel_w, n, rows, blocks }, ..self }
    }

    fn planes(&self) -> Planes {
        Planes { map: self.map, stride_h: self.stride_h, stride_w: self.stride_w }
    }

    fn map_bytes(&self, shape: Shape) -> usize {
        if let Kind::Sparse { .. } = self.kind {
            return self.planes().bytes(shape.depth()).next_multiple_of(ALIGN);
        }
        let extra = match self.kind {
            // The last group of a kernel row may reach beyond its taps.
            Kind::Depthwise { .. } => shape.depth() * self.map.pitch * shape.element(),
            _ => 0,
        };
        (self.map.bytes(shape.element()) + extra).next_multiple_of(ALIGN)
    }

    fn packed_bytes(&self, shape: Shape) -> usize {
        match self.kind {
            Kind::Matrix { runs, run, n } => n.div_ceil(shape.lanes) * shape.block_bytes(runs, run),
            Kind::Depthwise { kernel_h, kernel_w, vectors, .. } => {
                vectors * Depthwise::vector_bytes(shape, kernel_h, kernel_w)
            }
            Kind::Sparse { n, rows, blocks, .. } => {
                n.div_ceil(rows) * lanes::band_bytes(rows) + blocks * lanes::block_bytes(rows, shape.wide)
            }
        }
    }

    /// Writes stages and weights; returns whether any sum is doubled, none if a factor is not for the high word.
    fn pack(&self, model: &Model<'_>, op: &Op<'_>, weights: &[u8], shape: Shape, to: &mut [u8]) -> Option<bool> {
        let source = Source::of(model, op, weights)?;
        let zero_out = model.tensor(op.output()).zero_point;
        to.fill(0);
        let mut doubles = false;
        // Stage of `channel` into lane `lane` of arrays of `lanes`; `sum` is what the sum has too much.
        let mut stage = |stage: (i32, i32, u8), sum: i32, to: &mut [u8], lane: usize, lanes: usize| {
            let (bias, multiplier, shift) = stage;
            let words = stage_words(bias.wrapping_sub(sum), multiplier, shift, zero_out)?;
            doubles |= words[3] != 0;
            for (i, word) in words.into_iter().enumerate() {
                to.get_mut(4 * (i * lanes + lane)..)?.get_mut(..4)?.copy_from_slice(&word.to_le_bytes());
            }
            Some(())
        };
        let put = |to: &mut [u8], slot: usize, w: i8| -> Option<()> {
            match shape.wide {
                true => to.get_mut(2 * slot..)?.get_mut(..2)?.copy_from_slice(&(w as i16).to_le_bytes()),
                false => *to.get_mut(slot)? = w as u8,
            }
            Some(())
        };
        let surplus = |w: i8, complement: bool| {
            let offset = shape.offset + (shape.complements && complement) as i32;
            source.zero_point.wrapping_add(offset).wrapping_mul(w as i32)
        };
        match self.kind {
            Kind::Matrix { runs, run, n } => {
                let (padded, row) = (shape.groups(run) * shape.depth(), shape.row);
                let block_bytes = shape.block_bytes(runs, run);
                // Weight `k` of a channel; returns what it adds to the surplus.
                let put = |to: &mut [u8], channel: usize, k: usize, w: i8| -> Option<i32> {
                    let weights =
                        to.get_mut(channel / shape.lanes * block_bytes + Shape::stage_bytes(shape.lanes)..)?;
                    let at = k / run * padded + k % run;
                    put(weights, (at / row * shape.lanes + channel % shape.lanes) * row + at % row, w)?;
                    Some(surplus(w, at & 2 != 0))
                };
                let mut stage = |to: &mut [u8], channel: usize, words: (i32, i32, u8), sum: i32| {
                    let head = to.get_mut(channel / shape.lanes * block_bytes..)?;
                    stage(words, sum, head, channel % shape.lanes, shape.lanes)
                };
                if let Weights::Sparse(sparse) = &source.weights {
                    for (first, band) in (0..n).step_by(sparse.rows()).zip(sparse.bands()) {
                        for channel in first..n.min(first + sparse.rows()) {
                            let mut sum = 0i32;
                            for (place, weights) in band.blocks() {
                                let four = weights.chunks(sparse::DEPTH).nth(channel - first).unwrap_or(&[]);
                                let columns = sparse::DEPTH * place..(sparse::DEPTH * (place + 1)).min(runs * run);
                                for (k, &w) in columns.zip(four) {
                                    sum = sum.wrapping_add(put(to, channel, k, w as i8)?);
                                }
                            }
                            stage(to, channel, band.stage(channel - first), sum)?;
                        }
                    }
                    return Some(doubles);
                }
                for channel in 0..n {
                    let mut sum = 0i32;
                    for column in 0..runs * run {
                        let k = source.layout.map_or(column, |layout| ops::matrix_column(op, layout, column));
                        let w = source.weight(channel * runs * run + k, channel, column);
                        sum = sum.wrapping_add(put(to, channel, k, w)?);
                    }
                    stage(to, channel, source.stage(channel), sum)?;
                }
            }
            Kind::Sparse { kernel_w, n, rows, .. } => {
                let (Weights::Sparse(sparse), planes) = (&source.weights, self.planes()) else { return None };
                let mut rest = to;
                for (first, band) in (0..n).step_by(rows).zip(sparse.bands()) {
                    let bytes = lanes::band_bytes(rows) + band.count() * lanes::block_bytes(rows, shape.wide);
                    let (to, after) = core::mem::take(&mut rest).split_at_mut_checked(bytes)?;
                    let (head, blocks) = to.split_at_mut_checked(lanes::band_bytes(rows))?;
                    head.get_mut(..4)?.copy_from_slice(&(band.count() as u32).to_le_bytes());
                    let mut sums = [0i32; 2];
                    let blocks = blocks.chunks_exact_mut(lanes::block_bytes(rows, shape.wide));
                    for ((place, weights), to) in band.blocks().zip(blocks) {
                        let k = place * sparse::DEPTH;
                        let (tap, channel) = (k / self.map.channels, k % self.map.channels);
                        let offset = planes.offset(channel / shape.depth(), tap / kernel_w, tap % kernel_w);
                        to.get_mut(..4)?.copy_from_slice(&(offset as u32).to_le_bytes());
                        for (i, &w) in weights.iter().enumerate() {
                            let (row, i, w) = (i / sparse::DEPTH, i % sparse::DEPTH, w as i8);
                            sums[row % 2] = sums[row % 2].wrapping_add(surplus(w, false));
                            let slot = (i / shape.depth() * rows + row) * shape.depth() + i % shape.depth();
                            put(to.get_mut(4..)?, slot, w)?;
                        }
                    }
                    for row in 0..rows {
                        let sum = sums[row % 2];
                        // Rows beyond the last have a stage that always serves.
                        let words = if first + row < n { band.stage(row) } else { (0, 0, 33) };
                        stage(words, sum, head.get_mut(4 + 16 * row..)?, 0, 1)?;
                    }
                    rest = after;
                }
            }
            Kind::Depthwise { kernel_h, kernel_w, vectors, side_by_side } => {
                let channels = self.map.channels;
                let (padded, taps) = (shape.padded_taps(kernel_w), shape.taps);
                for (i, lane) in (0..vectors * shape.vector()).map(|i| (i, i % shape.vector())) {
                    let vector_bytes = Depthwise::vector_bytes(shape, kernel_h, kernel_w);
                    let vector = to.get_mut(i / shape.vector() * vector_bytes..)?.get_mut(..vector_bytes)?;
                    let (head, weights) = vector.split_at_mut_checked(Shape::stage_bytes(shape.vector()))?;
                    let place = shape.channel(lane / shape.lanes, lane % shape.lanes);
                    let channel = i / shape.vector() * shape.vector() + place;
                    let channel = if side_by_side { channel % channels } else { channel };
                    if channel >= channels {
                        continue;
                    }
                    let mut sum = 0i32;
                    for tap in 0..kernel_h * kernel_w {
                        let w = source.weight(tap * channels + channel, channel, tap);
                        let at = tap / kernel_w * padded + tap % kernel_w;
                        sum = sum.wrapping_add(surplus(w, at & 1 != 0));
                        put(weights, (at / taps * shape.vector() + lane) * taps + at % taps, w)?;
                    }
                    stage(source.stage(channel), sum, head, lane, shape.vector())?;
                }
            }
        }
        Some(doubles)
    }
}

/// Weights and output stages as the file has them.
enum Weights<'m> {
    RowMajor(Packed<'m>, Stages<'m>),
    Blocks(Blocks<'m>),
    Sparse(Sparse<'m>),
}

struct Source<'m> {
    weights: Weights<'m>,
    /// Order of the columns of blocks.
    layout: Option<Layout>,
    /// What sums still have to be made up for.
    zero_point: i32,
}

impl<'m> Source<'m> {
    /// `bytes` are those of the operator's weights, decoded.
    fn of(model: &Model<'m>, op: &Op<'_>, bytes: &'m [u8]) -> Option<Source<'m>> {
        let (input, weights, channels, n) = match op {
            Op::Conv(c) | Op::Depthwise(c) => (c.input, c.weights, c.channels, c.out_c as usize),
            Op::Linear(l) => (l.input, l.weights, l.channels, l.n as usize),
            _ => return None,
        };
        let constant = model.constant(weights);
        if let Some(rows) = constant.sparse_rows() {
            let (n, k) = ops::matrix_shape(op)?;
            let weights = Weights::Sparse(Sparse::new(rows, n, k, bytes));
            return Some(Source { weights, layout: None, zero_point: 0 });
        }
        match Layout::from_code(constant.layout) {
            Some(layout) => {
                let (n, k) = ops::matrix_shape(op)?;
                let blocks = Blocks::new(layout, constant.bits, n, k, bytes);
                Some(Source { weights: Weights::Blocks(blocks), layout: Some(layout), zero_point: -layout.offset() })
            }
            None => {
                let packed = ops::packed::<{ crate::uses::ALL }>(model, op, bytes, constant.bits);
                Some(Source {
                    weights: Weights::RowMajor(packed, Stages::of(model, channels, n)),
                    layout: None,
                    zero_point: model.tensor(input).zero_point,
                })
            }
        }
    }

    /// Element `index` of row-major weights, or of a matrix in blocks the one of `row` and `column`.
    fn weight(&self, index: usize, row: usize, column: usize) -> i8 {
        match &self.weights {
            Weights::RowMajor(packed, _) => packed.get(index),
            Weights::Blocks(blocks) => blocks.weight(row, column) as i8,
            Weights::Sparse(_) => 0,
        }
    }

    fn stage(&self, channel: usize) -> (i32, i32, u8) {
        match &self.weights {
            Weights::RowMajor(_, stages) => stages.get(channel),
            Weights::Blocks(blocks) => blocks.stage(channel),
            Weights::Sparse(_) => (0, 0, 33),
        }
    }
}
