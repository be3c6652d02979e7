//! The checks behind [`crate::Model::parse`]: what holds afterwards is what the operators rely on.
//!
//! After a successful check every tensor lies inside the arena, every constant inside the weights section, every operator's
//! shapes agree with the lengths of what it names, indices that come from the file (strides, taps) stay inside, and memory
//! that an operator writes is apart from what it reads, except where it may work in place.

use crate::circuit::Coded;
use crate::coded::{self, Source};
use crate::error::Error;
use crate::fixed::{SHIFT_RANGE, SUM_MULTIPLIER_MAX, SUM_SHIFT_RANGE};
use crate::format::blocks::{Blocks, Layout};
use crate::format::header::Header;
use crate::format::op::{self, Head, Op, kind};
use crate::format::sparse::Sparse;
use crate::format::stages::{self, PackedStages};
use crate::format::tensor::{Constant, Port, Tensor};
use crate::format::{ALIGN, MAX_RANK, NONE};
use crate::model::Model;
use crate::ops;
use crate::uses::{self, has};

/// All of it.
pub(crate) fn model<const USES: u64>(model: &Model<'_>) -> Result<(), Error> {
    let header = model.header();
    if !name_is_valid(model, header.metadata_offset, header.metadata_bytes) {
        return Err(Error::Header { what: "metadata: it leaves the text section" });
    }
    for (index, record) in model.tensors().iter().enumerate() {
        tensor(model, record).map_err(|what| Error::Tensor { index, what })?;
    }
    // Of resident constants in the decoded region.
    let mut end = 0;
    for (index, record) in model.constants().iter().enumerate() {
        let known = match record.encoding {
            Constant::ENCODING_RAW => true,
            Constant::ENCODING_CODED => uses::decodes(USES),
            Constant::ENCODING_SPARSE => uses::has_sparse(USES),
            _ => false,
        };
        if !known {
            return Err(Error::Unsupported { what: "a constant's encoding (coded or block-sparse)" });
        }
        let checked = match record.is_coded() && uses::decodes(USES) {
            true => coded_constant::<USES>(model, index as u16, record).map(|bytes| {
                if record.is_resident() {
                    end = u64::next_multiple_of(end, ALIGN as u64).saturating_add(bytes);
                }
            }),
            false => constant::<USES>(model, index as u16, record),
        };
        checked.map_err(|what| Error::Constant { index, what })?;
    }
    if uses::decodes(USES) && end != header.decoded_bytes as u64 {
        return Err(Error::Header { what: "bytes to decode" });
    }
    for (index, record) in model.inputs().iter().chain(model.outputs()).enumerate() {
        port(model, record).map_err(|what| Error::Port { index, what })?;
    }
    let mut ops = model.ops_using::<USES>();
    let mut count = 0;
    for (index, (head, record)) in ops.by_ref().enumerate() {
        operator::<USES>(model, &head, &record).map_err(|what| Error::Op { index, what })?;
        count = index + 1;
    }
    if count != model.header().op_count as usize || !ops.is_exhausted() {
        let what = match USES {
            uses::ALL => "record",
            _ => "record, or its kind: this program was built for other models",
        };
        return Err(Error::Op { index: count, what });
    }
    Ok(())
}

type Check = Result<(), &'static str>;

const OWN_ZERO_POINTS: &str = "zero points of weights: blocks bring their own";

fn ensure(condition: bool, what: &'static str) -> Check {
    if condition { Ok(()) } else { Err(what) }
}

fn tensor(model: &Model<'_>, t: &Tensor) -> Check {
    ensure(t.kind == Tensor::ACTIVATION, "kind (state tensors need a newer runtime)")?;
    ensure(t.bits == 8 && t.reserved == 0, "element width")?;
    ensure(t.rank as usize <= MAX_RANK, "rank")?;
    ensure(t.dims.iter().skip(t.rank as usize).all(|&d| d == 1), "unused dimension")?;
    ensure(product(&t.dims) == Some(t.len as usize) && t.len > 0, "shape")?;
    ensure(Tensor::ZERO_POINTS.contains(&t.zero_point), "zero point")?;
    ensure(t.scale.is_finite() && t.scale > 0.0, "scale")?;
    let end = t.offset.checked_add(t.len);
    ensure(end.is_some_and(|end| end <= model.header().arena_bytes), "range: it leaves the arena")
}

/// A coded constant, whose shape is that of the operators that name it (they check it); returns its decoded length.
fn coded_constant<const USES: u64>(model: &Model<'_>, id: u16, c: &Constant) -> Result<u64, &'static str> {
    ensure((c.layout == 0) == (c.kind != Constant::KIND_BLOCKS), "layout")?;
    let kinds = [Constant::KIND_WEIGHTS, Constant::KIND_CHANNELS, Constant::KIND_BLOCKS];
    ensure(kinds.contains(&c.kind), "kind of coded constant")?;
    ensure(c.kind != Constant::KIND_BLOCKS || Layout::from_code(c.layout).is_some(), "layout")?;
    ensure(model.header().required_features & Header::CODED != 0, "encoding: the header does not require it")?;
    let bytes = model.stored_bytes(id);
    ensure(bytes.len() == c.bytes as usize && c.offset.is_multiple_of(4), "range: it leaves the weights section")?;
    if c.kind == Constant::KIND_CHANNELS {
        ensure(c.bits == 32 && c.refines == NONE, "element width or coarser constant")?;
        // What lies in tiles is read while weights become blocks.
        let is_known = c.is_in_tiles() || matches!(c.residency, Constant::IN_RAM | Constant::IN_FLASH);
        ensure(is_known && (c.is_in_tiles() || uses::decodes_once(USES)), "residency")?;
        PackedStages::new_checked(bytes, c.len as usize)?;
        return Ok(stages::raw_bytes(c.len as usize) as u64);
    }
    ensure((2..=8).contains(&c.bits) && c.len > 0, "element width or length")?;
    let decodes = match c.residency {
        Constant::IN_RAM | Constant::IN_FLASH => uses::decodes_once(USES),
        Constant::IN_TILES => uses::decodes_tiles(USES),
        _ => return Err("residency"),
    };
    ensure(decodes, "residency: this program was built for other models")?;
    ensure(uses::code(c, bytes.first().copied()) & !USES == 0, "code: this program was built for other models")?;
    let len = coded::check::<USES>(c, bytes)?;
    refined(model, c, bytes)?;
    Ok(len)
}

/// Refined weights and nothing else name a coarser constant, whose rows theirs are decoded from. Apart, so that checks of ordinary models need no stack
/// for it.
#[inline(never)]
fn refined(model: &Model<'_>, c: &Constant, bytes: &[u8]) -> Check {
    const COARSER: &str = "coarser constant";
    let fine = Coded::new_checked(bytes, c.bits, c.len as usize)?;
    ensure(fine.is_refined() == (c.refines != NONE), COARSER)?;
    if c.refines == NONE {
        return Ok(());
    }
    ensure(c.is_resident(), "residency: refined weights are decoded once")?;
    let before = model.coarser().ok_or(COARSER)?;
    let coarse = before.constant(c.refines);
    ensure(coarse.is_coded() && coarse.len == c.len, COARSER)?;
    let coarse = Coded::new_checked(before.stored_bytes(c.refines), coarse.bits, coarse.len as usize)?;
    ensure(coarse.shape() == fine.shape(), COARSER)
}

fn constant<const USES: u64>(model: &Model<'_>, id: u16, c: &Constant) -> Check {
    if uses::has_sparse(USES) && c.encoding == Constant::ENCODING_SPARSE {
        let is_sparse = c.kind == Constant::KIND_BLOCKS && c.bits == 8 && c.sparse_rows().is_some();
        ensure(is_sparse, "kind, width or layout of block-sparse weights")?;
        let required = model.header().required_features & Header::SPARSE != 0;
        ensure(required, "encoding: the header does not require it")?;
    }
    ensure((c.layout == 0) == (c.kind != Constant::KIND_BLOCKS) && c.residency == 0, "layout or reserved bytes")?;
    ensure(c.refines == NONE, "coarser constant: only coded weights have one")?;
    let bytes = model.stored_bytes(id);
    ensure(bytes.len() == c.bytes as usize && c.offset.is_multiple_of(4), "range: it leaves the weights section")?;
    let len = c.len as u64;
    let (bits, expected) = match c.kind {
        Constant::KIND_WEIGHTS => (2..=8, (len * c.bits as u64).div_ceil(8)),
        Constant::KIND_CHANNELS => (32..=32, (len * 9).next_multiple_of(4)),
        Constant::KIND_TABLE_S8 => (8..=8, 256),
        Constant::KIND_U16 => (16..=16, len * 2),
        // Their length follows from the operator, which checks it.
        Constant::KIND_BLOCKS => (2..=8, c.bytes as u64),
        _ => return Err("kind"),
    };
    ensure(bits.contains(&c.bits), "element width")?;
    ensure(expected == c.bytes as u64 && len > 0, "length")?;
    ensure(c.kind != Constant::KIND_TABLE_S8 || c.len == 256, "table length")?;
    if c.kind == Constant::KIND_CHANNELS {
        let shifts_are_valid = ops::Channels::new(bytes, c.len as usize).shift.iter().all(|s| SHIFT_RANGE.contains(s));
        ensure(shifts_are_valid, "shift")?;
    }
    Ok(())
}

fn port(model: &Model<'_>, p: &Port) -> Check {
    ensure((p.tensor as usize) < model.tensors().len(), "tensor")?;
    ensure(p.layout <= Port::NCHW && p.raw <= Port::U8, "layout or raw type")?;
    ensure(p.scale.is_finite() && p.scale > 0.0, "scale")?;
    ensure(name_is_valid(model, p.name_offset, p.name_bytes), "name")
}

/// Names may not be cut inside of a character; `model.port_name` would then be empty.
fn name_is_valid(model: &Model<'_>, offset: u32, bytes: u32) -> bool {
    bytes == 0
        || model.port_name(&Port { name_offset: offset, name_bytes: bytes, ..Port::default() }).len() == bytes as usize
}

fn operator<const USES: u64>(model: &Model<'_>, head: &Head, record: &Op<'_>) -> Check {
    let view = View { model, head };
    ensure(head.reserved == 0 && head.record_bytes.is_multiple_of(4), "head")?;
    ensure(name_is_valid(model, head.name_offset, head.name_bytes), "name")?;
    let scratch_end = head.scratch_offset.checked_add(head.scratch_bytes);
    ensure(scratch_end.is_some_and(|end| end <= model.header().arena_bytes), "scratch: it leaves the arena")?;
    ensure(uses::used_decoded(model, record) & !USES == 0, "kind: this program was built for other models")?;
    if uses::decodes(USES) {
        view.coded::<USES>(record)?;
    }
    match record {
        Op::Conv(c) if has(USES, kind::CONV) => view.conv_in_blocks::<USES>(record, c),
        Op::Depthwise(c) if has(USES, kind::DEPTHWISE) => view.depthwise(c),
        Op::ConvTranspose(c) if has(USES, kind::CONV_TRANSPOSE) => view.conv(c),
        Op::Linear(l) if has(USES, kind::LINEAR) => view.linear::<USES>(record, l),
        Op::Add(b) if has(USES, kind::ADD) => {
            let bound = -SUM_MULTIPLIER_MAX..=SUM_MULTIPLIER_MAX;
            ensure(bound.contains(&b.lhs_multiplier) && bound.contains(&b.rhs_multiplier), "multiplier")?;
            ensure(SUM_SHIFT_RANGE.contains(&b.shift), "shift")?;
            view.binary(b)
        }
        Op::Mul(b) if has(USES, kind::MUL) => {
            ensure(SHIFT_RANGE.contains(&b.shift) && b.rhs_multiplier == 0, "multiplier or shift")?;
            view.binary(b)
        }
        Op::Lookup(l) if has(USES, kind::LOOKUP) => {
            view.constant(l.table, Constant::KIND_TABLE_S8, 256)?;
            view.same_len(l.input, l.output)?;
            view.memory(&[l.input], l.output, true)
        }
        Op::PRelu(p) if has(USES, kind::PRELU) => {
            view.constant(p.channels, Constant::KIND_CHANNELS, p.c as u64)?;
            view.raw(p.channels)?;
            ensure(is_shift(p.shift), "shift")?;
            view.same_len(p.input, p.output)?;
            ensure(p.c > 0 && view.tensor(p.input)?.len % p.c as u32 == 0, "channel count")?;
            view.memory(&[p.input], p.output, true)
        }
        Op::MaxPool(p) if has(USES, kind::MAX_POOL) => {
            ensure(p.channels == NONE, "channels")?;
            view.pool(p)
        }
        Op::AveragePool(p) if has(USES, kind::AVERAGE_POOL) => {
            let entries = view.find(p.channels, Constant::KIND_CHANNELS)?.len;
            view.raw(p.channels)?;
            ensure(entries == 1 || entries == p.kernel_h as u32 * p.kernel_w as u32, "channel table length")?;
            view.pool(p)
        }
        Op::Mean(m) if has(USES, kind::MEAN) => {
            ensure(m.reduce > 0 && m.reduce <= 1 << 22 && is_shift(m.shift), "reduction or shift")?;
            view.zero_is_int8(m.input)?;
            view.elements(m.input, &[m.outer, m.reduce, m.inner])?;
            view.elements(m.output, &[m.outer, m.inner])?;
            view.memory(&[m.input], m.output, false)
        }
        Op::Softmax(s) if has(USES, kind::SOFTMAX) => {
            view.constant(s.table, Constant::KIND_U16, 256)?;
            let table = u16s(model.stored_bytes(s.table));
            ensure(table.first() == Some(&(1 << 15)) && table.iter().all(|&v| v <= 1 << 15), "table")?;
            ensure(s.columns > 0 && s.columns <= 65_535, "row length")?;
            view.elements(s.input, &[s.rows, s.columns])?;
            view.elements(s.output, &[s.rows, s.columns])?;
            view.memory(&[s.input], s.output, true)
        }
        Op::Pad(p) if has(USES, kind::PAD) => {
            ensure(p.reserved == [0; 3], "reserved bytes")?;
            let fits = (0..MAX_RANK).all(|i| p.before[i] as u32 + p.in_dims[i] as u32 <= p.out_dims[i] as u32);
            ensure(fits, "padding")?;
            view.dims(p.input, &p.in_dims)?;
            view.dims(p.output, &p.out_dims)?;
            view.memory(&[p.input], p.output, false)
        }
        Op::Rearrange(r) if has(USES, kind::REARRANGE) => view.rearrange(r),
        Op::Concat(c, inputs) if has(USES, kind::CONCAT) => view.concat(c, inputs),
        Op::ResizeNearest(r) if has(USES, kind::RESIZE_NEAREST) => view.resize(r, 1),
        Op::ResizeBilinear(r) if has(USES, kind::RESIZE_BILINEAR) => view.resize(r, 3),
        _ => Err("kind"),
    }
}

/// One operator in its model.
struct View<'v, 'm> {
    model: &'v Model<'m>,
    head: &'v Head,
}

impl View<'_, '_> {
    fn tensor(&self, id: u16) -> Result<&Tensor, &'static str> {
        self.model.tensors().get(id as usize).ok_or("tensor id")
    }

    fn find(&self, id: u16, kind: u8) -> Result<&Constant, &'static str> {
        self.model.constants().get(id as usize).filter(|c| c.kind == kind).ok_or("constant id")
    }

    fn constant(&self, id: u16, kind: u8, len: u64) -> Check {
        ensure(self.find(id, kind)?.len as u64 == len, "constant length")
    }

    /// What operators read as it is stored.
    fn raw(&self, id: u16) -> Check {
        ensure(!self.model.constant(id).is_coded(), "constant: it cannot be coded here")
    }

    /// Output stages beside row-major weights: raw, or unpacked once.
    fn stages(&self, id: u16, n: u64) -> Check {
        self.constant(id, Constant::KIND_CHANNELS, n)?;
        ensure(!self.model.constant(id).is_in_tiles(), "channels: only blocks are decoded with theirs")
    }

    fn elements(&self, id: u16, dims: &[u32]) -> Check {
        let len = dims.iter().try_fold(1u32, |n, &d| n.checked_mul(d));
        ensure(len == Some(self.tensor(id)?.len), "shape: it is not the tensor's")
    }

    fn dims(&self, id: u16, dims: &[u16]) -> Check {
        ensure(product(dims) == Some(self.tensor(id)?.len as usize), "shape: it is not the tensor's")
    }

    /// Sums of differences to the zero point are only bounded for such tensors.
    fn zero_is_int8(&self, id: u16) -> Check {
        ensure((-128..=127).contains(&self.tensor(id)?.zero_point), "zero point: it must be an int8 here")
    }

    fn same_len(&self, a: u16, b: u16) -> Check {
        ensure(self.tensor(a)?.len == self.tensor(b)?.len, "shape: input and output differ")
    }

    /// What is written is apart from what is read; with `in_place`, the first input may begin where the output begins.
    fn memory(&self, inputs: &[u16], output: u16, in_place: bool) -> Check {
        let range = |t: &Tensor| (t.offset, t.offset + t.len);
        let apart = |a: (u32, u32), b: (u32, u32)| a.1 <= b.0 || b.1 <= a.0 || a.0 == a.1 || b.0 == b.1;
        let out = range(self.tensor(output)?);
        let scratch = (self.head.scratch_offset, self.head.scratch_offset + self.head.scratch_bytes);
        ensure(apart(out, scratch), "scratch: it overlaps the output")?;
        for (i, &id) in inputs.iter().enumerate() {
            let input = range(self.tensor(id)?);
            ensure(apart(input, scratch), "scratch: it overlaps an input")?;
            let replaced = in_place && i == 0 && input.0 == out.0 && out.1 <= input.1;
            ensure(replaced || apart(input, out), "memory: output and input overlap")?;
        }
        Ok(())
    }

    fn window(&self, c: &op::Conv) -> Check {
        let fields = [c.kernel_h, c.kernel_w, c.stride_h, c.stride_w, c.dilation_h, c.dilation_w, c.groups];
        ensure(!fields.contains(&0), "zero in kernel, stride, dilation or groups")?;
        ensure(c.act_min <= c.act_max && c.reserved == 0, "activation bounds")?;
        self.dims(c.input, &[c.in_h, c.in_w, c.in_c])?;
        self.dims(c.output, &[c.out_h, c.out_w, c.out_c])
    }

    /// Coded weights: their shape, and the scratch memory of tiles.
    fn coded<const USES: u64>(&self, op: &Op<'_>) -> Check {
        let Some(weights) = op.weights().map(|id| self.model.constant(id)).filter(Constant::is_coded) else {
            return Ok(());
        };
        let source = Source::of::<USES>(self.model, op)?;
        if !weights.is_in_tiles() {
            return Ok(());
        }
        let [work, tile] = source.tile_scratch_bytes().ok_or("tile: the weights do not fit")?;
        let in_place = op.inputs()[0]
            .is_some_and(|input| self.model.tensor(input).offset == self.model.tensor(op.output()).offset);
        let own = ops::scratch_bytes(op, &weights, in_place).next_multiple_of(4);
        let needed = own.saturating_add(work).saturating_add(tile);
        ensure(
            self.head.scratch_bytes as usize >= needed && self.head.scratch_offset.is_multiple_of(4),
            "scratch: too small for a tile",
        )
    }

    /// The weights' constant if it lies in blocks, whose bytes and scratch memory are then checked. The record has no channels.
    fn blocks<const USES: u64>(&self, op: &Op<'_>, weights: u16, channels: u16) -> Result<bool, &'static str> {
        let Ok(&constant) = self.find(weights, Constant::KIND_BLOCKS) else { return Ok(false) };
        let (n, k) = ops::matrix_shape(op).ok_or("weight shape")?;
        ensure(constant.len as u64 == n as u64 * k as u64, "weight shape")?;
        let sparse = constant.sparse_rows().filter(|_| uses::has_sparse(USES));
        if let Some(rows) = sparse {
            ensure(channels == NONE, "channels: weights in blocks bring their own")?;
            Sparse::new_checked(rows, n, k, self.model.stored_bytes(weights))?;
        } else if uses::decodes(USES) && constant.is_coded() {
            self.constant(channels, Constant::KIND_CHANNELS, n as u64)?;
        } else {
            ensure(channels == NONE, "channels: weights in blocks bring their own")?;
            let layout = Layout::from_code(constant.layout).ok_or("layout of the weights")?;
            let blocks = Blocks::new_checked(layout, constant.bits, n, k, self.model.stored_bytes(weights))?;
            if blocks.is_asymmetric() {
                self.requires_asymmetric()?;
            }
        }
        let needed = ops::scratch_bytes(op, &constant, false);
        ensure(
            self.head.scratch_bytes as usize >= needed && self.head.scratch_offset.is_multiple_of(4),
            "scratch: too small",
        )?;
        Ok(true)
    }

    fn weights(&self, id: u16, dims: &[u32]) -> Check {
        let len = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64)).ok_or("weight shape")?;
        self.constant(id, Constant::KIND_WEIGHTS, len)
    }

    /// Zero points of row-major weights, `n` of them if there are any.
    fn weight_zero_points(&self, id: u16, weights: u16, n: u64) -> Check {
        if id == NONE {
            return Ok(());
        }
        self.requires_asymmetric()?;
        let weights = self.model.constant(weights);
        ensure(!weights.is_coded() && weights.bits < 8, "zero points: only raw weights below 8 bits have some")?;
        let zero_points = self.find(id, Constant::KIND_WEIGHTS)?;
        let is_bytes = zero_points.bits == 8 && zero_points.encoding == Constant::ENCODING_RAW;
        ensure(is_bytes && zero_points.len as u64 == n, "zero points of weights: their constant")?;
        // Zero is one of the levels.
        let half = 1i32 << (weights.bits - 1);
        let fits = |&byte: &u8| (-half..half).contains(&(byte as i8 as i32));
        ensure(self.model.stored_bytes(id).iter().all(fits), "zero point of weights")
    }

    fn requires_asymmetric(&self) -> Check {
        let required = self.model.header().required_features & Header::ASYMMETRIC != 0;
        ensure(required, "zero points of weights: the header does not require them")
    }

    /// A convolution whose weights may lie in blocks.
    fn conv_in_blocks<const USES: u64>(&self, op: &Op<'_>, c: &op::Conv) -> Check {
        if self.find(c.weights, Constant::KIND_BLOCKS).is_err() {
            return self.conv(c);
        }
        self.window(c)?;
        ensure(ops::conv_fits(c), "groups or dilation of weights in blocks")?;
        // Positions and the ring are computed in the machine's words, which may have 32 bits.
        let reach = |out: u16, stride: u16, kernel: u16, pad: u16, input: u16| {
            (out as u64 * stride as u64 + kernel as u64).max(pad as u64 + input as u64)
        };
        let rows = reach(c.out_h, c.stride_h, c.kernel_h, c.pad_top, c.in_h);
        let columns = reach(c.out_w, c.stride_w, c.kernel_w, c.pad_left, c.in_w);
        let ring = columns * c.in_c as u64 * c.kernel_h as u64;
        ensure(rows.max(ring) <= i32::MAX as u64 / 2, "window: it reaches too far")?;
        // Borders of the ring hold it.
        self.zero_is_int8(c.input)?;
        self.blocks::<USES>(op, c.weights, c.channels)?;
        ensure(c.weight_zero_points == NONE, OWN_ZERO_POINTS)?;
        self.memory(&[c.input], c.output, self.is_one_tile::<USES>(op) && ops::runs_in_place(c))
    }

    /// What runs in several tiles reads its input again after the first.
    fn is_one_tile<const USES: u64>(&self, op: &Op<'_>) -> bool {
        !uses::decodes_tiles(USES) || op.weights().is_none_or(|id| coded::tiles(op, &self.model.constant(id)) == 1)
    }

    fn conv(&self, c: &op::Conv) -> Check {
        self.window(c)?;
        ensure(c.in_c.is_multiple_of(c.groups) && c.out_c.is_multiple_of(c.groups), "groups")?;
        self.stages(c.channels, c.out_c as u64)?;
        self.weights(c.weights, &[c.out_c, c.kernel_h, c.kernel_w, c.in_c / c.groups].map(u32::from))?;
        self.weight_zero_points(c.weight_zero_points, c.weights, c.out_c as u64)?;
        self.memory(&[c.input], c.output, false)
    }

    fn depthwise(&self, c: &op::Conv) -> Check {
        self.window(c)?;
        ensure(c.groups == 1 && c.in_c == c.out_c, "groups")?;
        self.stages(c.channels, c.out_c as u64)?;
        self.weights(c.weights, &[c.kernel_h, c.kernel_w, c.out_c].map(u32::from))?;
        self.weight_zero_points(c.weight_zero_points, c.weights, c.out_c as u64)?;
        let in_place = self.tensor(c.input)?.offset == self.tensor(c.output)?.offset;
        ensure(!in_place || self.head.scratch_bytes as usize >= ops::depthwise_scratch_bytes(c), "scratch: too small")?;
        self.memory(&[c.input], c.output, true)
    }

    fn linear<const USES: u64>(&self, op: &Op<'_>, l: &op::Linear) -> Check {
        ensure(l.act_min <= l.act_max, "activation bounds")?;
        self.elements(l.input, &[l.rows, l.k])?;
        self.elements(l.output, &[l.rows, l.n])?;
        if self.blocks::<USES>(op, l.weights, l.channels)? {
            ensure(l.weight_zero_points == NONE, OWN_ZERO_POINTS)?;
            // All of a row is read before anything is written.
            let in_place = self.is_one_tile::<USES>(op) && (l.rows == 1 || l.n <= l.k);
            return self.memory(&[l.input], l.output, in_place);
        }
        self.weights(l.weights, &[l.n, l.k])?;
        self.weight_zero_points(l.weight_zero_points, l.weights, l.n as u64)?;
        self.stages(l.channels, l.n as u64)?;
        self.memory(&[l.input], l.output, false)
    }

    fn binary(&self, b: &op::Binary) -> Check {
        ensure(b.reserved == 0 && b.reserved2 == 0 && b.rhs_is_constant <= 1, "reserved bytes")?;
        for id in [Some(b.lhs), (b.rhs_is_constant == 0).then_some(b.rhs)].into_iter().flatten() {
            self.zero_is_int8(id)?;
        }
        ensure(b.act_min <= b.act_max && (-128..=127).contains(&b.rhs_zero_point), "activation bounds or zero point")?;
        self.elements(b.output, &b.dims)?;
        ensure(inside(&b.dims, &b.lhs_strides, self.tensor(b.lhs)?.len), "strides of the left operand")?;
        let rhs_len = if b.rhs_is_constant == 1 {
            let constant = self.find(b.rhs, Constant::KIND_WEIGHTS)?;
            ensure(constant.bits == 8 && constant.encoding == Constant::ENCODING_RAW, "constant width or encoding")?;
            constant.len
        } else {
            self.tensor(b.rhs)?.len
        };
        ensure(inside(&b.dims, &b.rhs_strides, rhs_len), "strides of the right operand")?;
        let dense = b.lhs_strides == ops::dense_strides(&b.dims);
        let (lhs, output) = (self.tensor(b.lhs)?, self.tensor(b.output)?);
        let replaced = lhs.offset == output.offset;
        ensure(!replaced || lhs.len == output.len, "memory: in place, the left operand must be as long as the output")?;
        let inputs = [b.lhs, b.rhs];
        self.memory(&inputs[..if b.rhs_is_constant == 1 { 1 } else { 2 }], b.output, dense)
    }

    fn pool(&self, p: &op::Pool) -> Check {
        let fields = [p.kernel_h, p.kernel_w, p.stride_h, p.stride_w, p.dilation_h, p.dilation_w];
        ensure(!fields.contains(&0), "zero in kernel, stride or dilation")?;
        ensure((p.kernel_h as u32 * p.kernel_w as u32) < 1 << 22, "kernel")?;
        // Positions are computed in the machine's words, which may have 32 bits.
        let reach = |out: u16, stride: u16, kernel: u16, dilation: u16| {
            out as u64 * stride as u64 + kernel as u64 * dilation as u64
        };
        let rows = reach(p.out_h, p.stride_h, p.kernel_h, p.dilation_h);
        let columns = reach(p.out_w, p.stride_w, p.kernel_w, p.dilation_w);
        ensure(rows.max(columns) <= i32::MAX as u64, "window: it reaches too far")?;
        ensure(p.act_min <= p.act_max && p.reserved == 0, "activation bounds")?;
        self.zero_is_int8(p.input)?;
        self.dims(p.input, &[p.in_h, p.in_w, p.c])?;
        self.dims(p.output, &[p.out_h, p.out_w, p.c])?;
        self.memory(&[p.input], p.output, false)
    }

    fn rearrange(&self, r: &op::Rearrange) -> Check {
        self.dims(r.output, &r.dims)?;
        let (mut low, mut high) = (r.offset as i64, r.offset as i64);
        for (&dim, &stride) in r.dims.iter().zip(&r.strides) {
            let reach = (dim as i64 - 1) * stride as i64;
            low += reach.min(0);
            high += reach.max(0);
        }
        ensure(low >= 0 && high < self.tensor(r.input)?.len as i64, "strides")?;
        self.memory(&[r.input], r.output, false)
    }

    fn concat(&self, c: &op::Concat, inputs: &[op::ConcatInput]) -> Check {
        let mut inner = 0u32;
        for input in inputs {
            ensure(input.reserved == 0 && is_shift(input.shift), "input")?;
            self.elements(input.input, &[c.outer, input.inner])?;
            inner = inner.checked_add(input.inner).ok_or("length")?;
            self.memory(&[input.input], c.output, false)?;
        }
        self.elements(c.output, &[c.outer, inner])
    }

    /// `values` per tap: 1 for nearest, 3 for bilinear.
    fn resize(&self, r: &op::Resize, values: usize) -> Check {
        self.dims(r.input, &[r.in_h, r.in_w, r.c])?;
        self.dims(r.output, &[r.out_h, r.out_w, r.c])?;
        for (id, outputs, inputs) in [(r.rows, r.out_h, r.in_h), (r.columns, r.out_w, r.in_w)] {
            self.constant(id, Constant::KIND_U16, outputs as u64 * values as u64)?;
            let taps = u16s(self.model.stored_bytes(id)).chunks_exact(values);
            let valid = |tap: &[u16]| match *tap {
                [index] => index < inputs,
                [lo, hi, frac] => lo < inputs && hi < inputs && frac <= 2048,
                _ => false,
            };
            ensure(taps.into_iter().all(valid), "taps")?;
        }
        self.memory(&[r.input], r.output, false)
    }
}

fn is_shift(shift: u32) -> bool {
    u8::try_from(shift).is_ok_and(|s| SHIFT_RANGE.contains(&s))
}

fn product(dims: &[u16]) -> Option<usize> {
    let len = dims.iter().try_fold(1u32, |n, &d| n.checked_mul(d as u32))?;
    usize::try_from(len).ok()
}

/// Whether the largest index of a strided operand lies inside of `len` elements.
fn inside(dims: &[u32; 4], strides: &[u32; 4], len: u32) -> bool {
    let last = dims.iter().zip(strides).try_fold(0u64, |sum, (&dim, &stride)| {
        sum.checked_add((dim as u64).checked_sub(1)?.checked_mul(stride as u64)?)
    });
    last.is_some_and(|last| last < len as u64)
}

/// A checked constant's 16-bit values.
pub(crate) fn u16s(bytes: &[u8]) -> &[u16] {
    bytemuck::try_cast_slice(bytes).unwrap_or(&[])
}
