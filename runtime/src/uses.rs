//! What a model uses, so that a program may link nothing else: operators, kinds of weights, whether they are coded.
//!
//! [`uses`] reads a file, at compile time if the file is a constant. The result is an argument of the types that would otherwise name every
//! operator: [`crate::Model::parse_using`] and [`crate::Engine::using`].

use crate::circuit::{MODEL_NARROW, MODEL_UNIFORM};
use crate::format::NONE;
use crate::format::blocks::Layout;
use crate::format::header::Header;
use crate::format::op::{self, Head, Op, kind};
use crate::format::sparse;
use crate::format::tensor::Constant;
use crate::model::Model;
use crate::ops;
use core::mem::offset_of;

/// Everything.
pub const ALL: u64 = u64::MAX;

/// Coded weights whose values are not all equally probable, or that are decoded once.
pub const CIRCUITS: u64 = 1 << 18;

/// A sum or product whose operands are not both dense.
pub const STRIDED: u64 = 1 << 20;

/// A depthwise filter that is not of 3x3 with a stride of 1 or 2.
pub const OTHER_DEPTHWISE: u64 = 1 << 26;

/// Weights that are decoded at every run.
pub const TILES: u64 = 1 << 29;

/// Weights that are decoded once.
pub const RESIDENT: u64 = 1 << 30;

/// Weights with zero points.
pub const ASYMMETRIC: u64 = 1 << 31;

/// Whether weights may have zero points.
pub const fn has_asymmetric(uses: u64) -> bool {
    uses & ASYMMETRIC != 0
}

/// Whether code is more than numbers of a fixed width.
pub const fn has_circuits(uses: u64) -> bool {
    uses & CIRCUITS != 0
}

/// Whether any weights are coded.
pub const fn decodes(uses: u64) -> bool {
    uses & (TILES | RESIDENT) != 0
}

/// Whether weights are decoded once.
pub const fn decodes_once(uses: u64) -> bool {
    uses & RESIDENT != 0
}

/// Whether weights are decoded at every run.
pub const fn decodes_tiles(uses: u64) -> bool {
    uses & TILES != 0
}

/// How an operator's weights lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Weights {
    /// Row-major bytes.
    Bytes,
    /// Row-major and narrower.
    Packed,
    /// In blocks.
    Blocks,
    /// In blocks of which only some are stored.
    Sparse,
}

/// Operators of a kind.
pub const fn operators(kind: u8) -> u64 {
    1 << kind
}

/// Operators of a kind with such weights.
pub const fn operators_with(kind: u8, weights: Weights) -> u64 {
    1 << (32 + 4 * kind + weights as u8)
}

/// Whether `uses` has operators of a kind.
pub const fn has(uses: u64, kind: u8) -> bool {
    uses & operators(kind) != 0
}

/// Whether `uses` has operators of a kind with such weights.
pub const fn has_weights(uses: u64, kind: u8, weights: Weights) -> bool {
    uses & operators_with(kind, weights) != 0
}

/// Whether `uses` has block-sparse matrices.
pub const fn has_sparse(uses: u64) -> bool {
    has_weights(uses, kind::CONV, Weights::Sparse) || has_weights(uses, kind::LINEAR, Weights::Sparse)
}

/// Whether `uses` has matrices in blocks that are all stored.
pub const fn has_dense(uses: u64) -> bool {
    has_weights(uses, kind::CONV, Weights::Blocks) || has_weights(uses, kind::LINEAR, Weights::Blocks)
}

/// Matrices in blocks of a layout.
pub const fn blocks_of(layout: Layout, bits: u8) -> u64 {
    match (layout, bits) {
        (Layout::Pairs, 8) => 1 << 21,
        (Layout::Pairs, 4) => 1 << 22,
        (Layout::Pairs, _) => 1 << 23,
        (Layout::Quads, 8) => 1 << 24,
        (Layout::Quads, 4) => 1 << 27,
        (Layout::Quads, _) => 1 << 28,
        (Layout::Rows, 8) => 1 << 25,
        (Layout::Rows, _) => 1 << 19,
    }
}

/// Whether `uses` has matrices in blocks of a layout.
pub const fn has_blocks(uses: u64, layout: Layout, bits: u8) -> bool {
    uses & blocks_of(layout, bits) != 0
}

/// Whether `uses` has matrices in blocks of [`Layout::Rows`], of any width.
pub const fn has_rows(uses: u64) -> bool {
    has_blocks(uses, Layout::Rows, 8) || has_blocks(uses, Layout::Rows, 4)
}

/// What a checked operator uses.
pub fn used_by(model: &Model<'_>, op: &Op<'_>) -> u64 {
    let constant = op.weights().map_or(Constant::default(), |id| model.constant(id));
    let stages = op.stages().map_or(Constant::default(), |id| model.constant(id));
    let asymmetric = if model.header().required_features & Header::ASYMMETRIC != 0 { ASYMMETRIC } else { 0 };
    used_decoded(model, op)
        | asymmetric
        | op.weights().map_or(0, |id| code(&constant, model.stored_bytes(id).first().copied()))
        | unpacked(stages.encoding, stages.residency as usize)
}

/// As [`used_by`], apart from decoding.
pub(crate) fn used_decoded(model: &Model<'_>, op: &Op<'_>) -> u64 {
    let weights = op.weights().map_or(0, |id| {
        let constant = model.constant(id);
        weights(op.kind(), constant.layout, constant.bits)
    });
    let pair = |a: u16, b: u16| [a as usize, b as usize];
    let special = match op {
        Op::Add(b) | Op::Mul(b) if [b.lhs_strides, b.rhs_strides] != [ops::dense_strides(&b.dims); 2] => STRIDED,
        Op::Depthwise(c) => {
            filter(pair(c.kernel_h, c.kernel_w), pair(c.stride_h, c.stride_w), pair(c.dilation_h, c.dilation_w))
        }
        _ => 0,
    };
    operators(op.kind()) | weights | special
}

/// Two fields of an [`op::Conv`].
macro_rules! fields {
    ($file:expr, $body:expr, $a:ident, $b:ident) => {
        [u16_at($file, $body + offset_of!(op::Conv, $a)), u16_at($file, $body + offset_of!(op::Conv, $b))]
    };
}

/// What the model in `file` uses; unspecified (but never a panic) if it is none.
pub const fn uses(file: &[u8]) -> u64 {
    let (mut at, mut left) = (u32_at(file, offset_of!(Header, ops_offset)), u16_at(file, offset_of!(Header, op_count)));
    let sections =
        [u32_at(file, offset_of!(Header, constants_offset)), u32_at(file, offset_of!(Header, weights_offset))];
    let features = u32_at(file, offset_of!(Header, required_features)) as u32;
    let mut uses = if features & Header::ASYMMETRIC != 0 { ASYMMETRIC } else { 0 };
    while left > 0 {
        let kind = byte_at(file, at + offset_of!(Head, kind));
        let body = at + size_of::<Head>();
        uses |= operators(kind % 32);
        match kind {
            kind::CONV | kind::DEPTHWISE | kind::CONV_TRANSPOSE => {
                uses |= weights_at(file, sections, kind, u16_at(file, body + offset_of!(op::Conv, weights)));
                uses |= stages_at(file, sections[0], u16_at(file, body + offset_of!(op::Conv, channels)));
                if kind == kind::DEPTHWISE {
                    uses |= filter(
                        fields!(file, body, kernel_h, kernel_w),
                        fields!(file, body, stride_h, stride_w),
                        fields!(file, body, dilation_h, dilation_w),
                    );
                }
            }
            kind::LINEAR => {
                uses |= weights_at(file, sections, kind, u16_at(file, body + offset_of!(op::Linear, weights)));
                uses |= stages_at(file, sections[0], u16_at(file, body + offset_of!(op::Linear, channels)));
            }
            kind::ADD | kind::MUL if !is_dense(file, body) => uses |= STRIDED,
            _ => (),
        }
        at += u16_at(file, at + offset_of!(Head, record_bytes));
        left -= 1;
    }
    uses
}

const fn filter(kernel: [usize; 2], stride: [usize; 2], dilation: [usize; 2]) -> u64 {
    if !ops::is_3x3(kernel, stride, dilation) { OTHER_DEPTHWISE } else { 0 }
}

const fn weights(kind: u8, layout: u8, bits: u8) -> u64 {
    if sparse::rows_of(layout).is_some() {
        // They share their patches.
        return operators_with(kind, Weights::Sparse) | blocks_of(Layout::Pairs, 8);
    }
    match (Layout::from_code(layout), bits) {
        (Some(layout), _) => operators_with(kind, Weights::Blocks) | blocks_of(layout, bits),
        (None, 8) => operators_with(kind, Weights::Bytes),
        (None, _) => operators_with(kind, Weights::Packed),
    }
}

const fn weights_at(file: &[u8], [constants, weights_offset]: [usize; 2], kind: u8, id: usize) -> u64 {
    let at = constants + id * size_of::<Constant>();
    let model = byte_at(file, weights_offset.wrapping_add(u32_at(file, at + offset_of!(Constant, offset))));
    weights(kind, byte_at(file, at + offset_of!(Constant, layout)), byte_at(file, at + offset_of!(Constant, bits)))
        | coded(
            byte_at(file, at + offset_of!(Constant, encoding)),
            u16_at(file, at + offset_of!(Constant, residency)),
            model,
        )
}

/// Output stages that are unpacked once; blocks have none of their own.
const fn stages_at(file: &[u8], constants: usize, id: usize) -> u64 {
    if id == NONE as usize {
        return 0;
    }
    let at = constants + id * size_of::<Constant>();
    unpacked(byte_at(file, at + offset_of!(Constant, encoding)), u16_at(file, at + offset_of!(Constant, residency)))
}

/// What is read where it lies needs nothing beyond what decodes the weights.
const fn unpacked(encoding: u8, residency: usize) -> u64 {
    if residency == IN_TILES { 0 } else { coded(encoding, residency, MODEL_UNIFORM) }
}

/// Of weights whose code begins with `model`.
pub(crate) fn code(constant: &Constant, model: Option<u8>) -> u64 {
    coded(constant.encoding, constant.residency as usize, model.unwrap_or(MODEL_UNIFORM))
}

const fn coded(encoding: u8, residency: usize, model: u8) -> u64 {
    match (encoding, residency) {
        (Constant::ENCODING_CODED, IN_TILES) if is_flat(model) => TILES,
        (Constant::ENCODING_CODED, IN_TILES) => TILES | CIRCUITS,
        (Constant::ENCODING_CODED, _) => RESIDENT | CIRCUITS,
        _ => 0,
    }
}

/// Whether the code of a model is numbers of a fixed width.
const fn is_flat(model: u8) -> bool {
    matches!(model, MODEL_UNIFORM | MODEL_NARROW)
}

const IN_TILES: usize = Constant::IN_TILES as usize;

/// Whether both operands of a [`op::Binary`] are dense.
const fn is_dense(file: &[u8], body: usize) -> bool {
    let (mut axis, mut step) = (4, 1);
    while axis > 0 {
        axis -= 1;
        let dim = u32_at(file, body + offset_of!(op::Binary, dims) + 4 * axis);
        let stride = if dim == 1 { 0 } else { step };
        if u32_at(file, body + offset_of!(op::Binary, lhs_strides) + 4 * axis) != stride
            || u32_at(file, body + offset_of!(op::Binary, rhs_strides) + 4 * axis) != stride
        {
            return false;
        }
        step = step.wrapping_mul(dim);
    }
    true
}

pub(crate) const fn byte_at(file: &[u8], at: usize) -> u8 {
    if at < file.len() { file[at] } else { 0 }
}

pub(crate) const fn u16_at(file: &[u8], at: usize) -> usize {
    byte_at(file, at) as usize | (byte_at(file, at.wrapping_add(1)) as usize) << 8
}

pub(crate) const fn u32_at(file: &[u8], at: usize) -> usize {
    u16_at(file, at) | u16_at(file, at.wrapping_add(2)) << 16
}
