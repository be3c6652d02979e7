//! One record per operator: a common head, then the operator's own struct. The file carries resolved numbers (shapes,
//! padding, multipliers); the device infers nothing.
//!
//! Real meaning first: `q` is int8, `real = scale * (q - zero_point)`, zero points come from the tensor records, and every
//! result is rounded once by [`crate::fixed`] and clamped to `act_min ..= act_max` (or to int8).

use super::MAX_RANK;
use crate::uses::{self, has};
use bytemuck::{Pod, Zeroable};

/// What every operator record begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Head {
    /// Operator kind, see [`Op::kind`].
    pub kind: u8,
    /// Zero.
    pub reserved: u8,
    /// Length of head and body, a multiple of 4.
    pub record_bytes: u16,
    /// Name: offset in the text section.
    pub name_offset: u32,
    /// Name: length.
    pub name_bytes: u32,
    /// Scratch memory in the arena: byte offset.
    pub scratch_offset: u32,
    /// Scratch memory in the arena: length, at least [`crate::ops::scratch_bytes`] of the record.
    pub scratch_bytes: u32,
}

/// Convolution, depthwise and transposed convolution.
///
/// `acc[oc] = bias[oc] + sum (q_in - in_zp) * w`, `q_out = clamp(out_zp + round(acc * multiplier[oc] / 2^shift[oc]))`. Positions outside
/// of the input add nothing. Weights: `[out_c, kernel_h, kernel_w, in_c / groups]`; for depthwise `[kernel_h, kernel_w, c]`.
/// A transposed convolution reads, for output row `y` and tap `ky`, the input row `(y + pad_top - ky * dilation_h) / stride_h`
/// where that is exact and inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Conv {
    /// Tensor `[in_h, in_w, in_c]`.
    pub input: u16,
    /// Tensor `[out_h, out_w, out_c]`; for depthwise it may be the input's memory.
    pub output: u16,
    /// Constant, [`super::tensor::Constant::KIND_WEIGHTS`].
    pub weights: u16,
    /// Constant, [`super::tensor::Constant::KIND_CHANNELS`], `out_c` entries.
    pub channels: u16,
    #[allow(missing_docs)]
    pub in_h: u16,
    #[allow(missing_docs)]
    pub in_w: u16,
    #[allow(missing_docs)]
    pub in_c: u16,
    #[allow(missing_docs)]
    pub out_h: u16,
    #[allow(missing_docs)]
    pub out_w: u16,
    #[allow(missing_docs)]
    pub out_c: u16,
    #[allow(missing_docs)]
    pub kernel_h: u16,
    #[allow(missing_docs)]
    pub kernel_w: u16,
    #[allow(missing_docs)]
    pub stride_h: u16,
    #[allow(missing_docs)]
    pub stride_w: u16,
    #[allow(missing_docs)]
    pub dilation_h: u16,
    #[allow(missing_docs)]
    pub dilation_w: u16,
    /// Rows of padding above; what lies below follows from the shapes.
    pub pad_top: u16,
    /// Columns of padding to the left.
    pub pad_left: u16,
    /// Number of groups; 1 for depthwise records, whose kind says it.
    pub groups: u16,
    /// Constant of the zero points of asymmetric weights, one for each output channel
    /// ([`super::tensor::Constant::KIND_WEIGHTS`], 8 bits): what is stored less its zero point is the weight. [`super::NONE`]: all are zero.
    /// Only for raw row-major weights narrower than 8 bits.
    pub weight_zero_points: u16,
    /// Lowest output.
    pub act_min: i8,
    /// Highest output.
    pub act_max: i8,
    /// Zero.
    pub reserved: u16,
}

/// Fully connected layer, for each of `rows`: `acc[n] = bias[n] + sum_k (q_in[k] - in_zp) * w[n][k]`, then as [`Conv`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Linear {
    /// Tensor `[rows, k]`.
    pub input: u16,
    /// Tensor `[rows, n]`.
    pub output: u16,
    /// Constant `[n, k]`.
    pub weights: u16,
    /// Constant, `n` entries.
    pub channels: u16,
    #[allow(missing_docs)]
    pub rows: u32,
    #[allow(missing_docs)]
    pub k: u32,
    #[allow(missing_docs)]
    pub n: u32,
    /// See [`Conv::weight_zero_points`].
    pub weight_zero_points: u16,
    /// Lowest output.
    pub act_min: i8,
    /// Highest output.
    pub act_max: i8,
}

/// Element-wise operator of two tensors over a space of `dims`, each operand read through its own strides (0 broadcasts).
///
/// - Add: `q = clamp(out_zp + round(((a - a_zp) * lhs_multiplier + (b - b_zp) * rhs_multiplier) / 2^shift))`; multipliers lie in `-2^21 ..= 2^21`
///   and `1 <= shift <= 30`, so the sum fits 32 bits. Subtraction is a negative `rhs_multiplier`.
/// - Mul: `q = clamp(out_zp + round((a - a_zp) * (b - b_zp) * lhs_multiplier / 2^shift))`; `rhs_multiplier` is 0, the multiplier is Q31.
///
/// The output is dense; it may be the memory of `lhs` if `lhs` is read densely too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Binary {
    #[allow(missing_docs)]
    pub lhs: u16,
    /// A tensor, or a constant ([`super::tensor::Constant::KIND_WEIGHTS`], 8 bits) if `rhs_is_constant`.
    pub rhs: u16,
    #[allow(missing_docs)]
    pub output: u16,
    /// 0 or 1.
    pub rhs_is_constant: u8,
    /// Zero.
    pub reserved: u8,
    /// The output's shape with broadcast-compatible axes merged, leading axes 1.
    pub dims: [u32; 4],
    /// Elements between neighbours of each axis.
    pub lhs_strides: [u32; 4],
    /// Elements between neighbours of each axis.
    pub rhs_strides: [u32; 4],
    #[allow(missing_docs)]
    pub lhs_multiplier: i32,
    #[allow(missing_docs)]
    pub rhs_multiplier: i32,
    /// Zero point of a constant `rhs`, else 0.
    pub rhs_zero_point: i32,
    #[allow(missing_docs)]
    pub shift: u8,
    /// Lowest output.
    pub act_min: i8,
    /// Highest output.
    pub act_max: i8,
    /// Zero.
    pub reserved2: u8,
}

/// `q_out = table[q_in + 128]`: every element-wise function of one tensor. May work in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Lookup {
    #[allow(missing_docs)]
    pub input: u16,
    #[allow(missing_docs)]
    pub output: u16,
    /// Constant, [`super::tensor::Constant::KIND_TABLE_S8`].
    pub table: u16,
    /// Zero.
    pub reserved: u16,
}

/// `d = q_in - in_zp`; `q_out = clamp(out_zp + (d >= 0 ? round(d * multiplier / 2^shift) : round(d * multiplier[c] / 2^shift[c])))`. May work in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PRelu {
    /// Tensor whose last axis has `c` elements.
    pub input: u16,
    #[allow(missing_docs)]
    pub output: u16,
    /// Constant, [`super::tensor::Constant::KIND_CHANNELS`], `c` entries: the negative side. Multipliers may be negative, biases are 0.
    pub channels: u16,
    #[allow(missing_docs)]
    pub c: u16,
    /// Positive side.
    pub multiplier: i32,
    /// Positive side.
    pub shift: u32,
}

/// Max and average pooling.
///
/// Max: largest `q_in` of the window's inside part; scales of input and output are equal. Average: `n` positions inside,
/// `q_out = clamp(out_zp + round(sum(q_in - in_zp) * multiplier / 2^shift))` with entry 0 of `channels` if it has one entry, else entry `n - 1` of
/// `kernel_h * kernel_w`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Pool {
    /// Tensor `[in_h, in_w, c]`.
    pub input: u16,
    /// Tensor `[out_h, out_w, c]`.
    pub output: u16,
    /// Constant for averages, [`super::NONE`] for max.
    pub channels: u16,
    #[allow(missing_docs)]
    pub in_h: u16,
    #[allow(missing_docs)]
    pub in_w: u16,
    #[allow(missing_docs)]
    pub c: u16,
    #[allow(missing_docs)]
    pub out_h: u16,
    #[allow(missing_docs)]
    pub out_w: u16,
    #[allow(missing_docs)]
    pub kernel_h: u16,
    #[allow(missing_docs)]
    pub kernel_w: u16,
    #[allow(missing_docs)]
    pub stride_h: u16,
    #[allow(missing_docs)]
    pub stride_w: u16,
    #[allow(missing_docs)]
    pub dilation_h: u16,
    #[allow(missing_docs)]
    pub dilation_w: u16,
    #[allow(missing_docs)]
    pub pad_top: u16,
    #[allow(missing_docs)]
    pub pad_left: u16,
    /// Lowest output.
    pub act_min: i8,
    /// Highest output.
    pub act_max: i8,
    /// Zero.
    pub reserved: u16,
}

/// Mean over the middle axis of `[outer, reduce, inner]`: `q = clamp(out_zp + round(sum(q_in - in_zp) * multiplier / 2^shift))`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Mean {
    #[allow(missing_docs)]
    pub input: u16,
    /// Tensor `[outer, inner]`.
    pub output: u16,
    #[allow(missing_docs)]
    pub outer: u32,
    /// At most 2^22, so that the sum fits.
    pub reduce: u32,
    #[allow(missing_docs)]
    pub inner: u32,
    #[allow(missing_docs)]
    pub multiplier: i32,
    #[allow(missing_docs)]
    pub shift: u32,
}

/// Softmax of each row: `e[i] = table[max - q[i]]`, `q_out = min(127, floor((512 e + sum) / (2 sum)) - 128)`: the output's scale is 1/256, its zero
/// point -128. May work in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Softmax {
    /// Tensor `[rows, columns]`.
    pub input: u16,
    #[allow(missing_docs)]
    pub output: u16,
    /// Constant, [`super::tensor::Constant::KIND_U16`], 256 entries, the first is 2^15: `round(2^15 exp(-scale * i))`.
    pub table: u16,
    /// Zero.
    pub reserved: u16,
    #[allow(missing_docs)]
    pub rows: u32,
    /// At most 65,535, so that the sum fits 32 bits.
    pub columns: u32,
}

/// Dense output filled with `value`, the input copied to `before`. Scales are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Pad {
    #[allow(missing_docs)]
    pub input: u16,
    #[allow(missing_docs)]
    pub output: u16,
    /// Input shape, leading axes 1.
    pub in_dims: [u16; MAX_RANK],
    /// Output shape, leading axes 1.
    pub out_dims: [u16; MAX_RANK],
    /// Where the input starts in the output.
    pub before: [u16; MAX_RANK],
    /// Quantized fill.
    pub value: i8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Strided read, dense write: transpose, slice, split. `out[i0..i5] = in[offset + sum i_k * strides[k]]`. Scales are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Rearrange {
    #[allow(missing_docs)]
    pub input: u16,
    #[allow(missing_docs)]
    pub output: u16,
    /// Output shape, leading axes 1.
    pub dims: [u16; MAX_RANK],
    /// In elements, may be negative.
    pub strides: [i32; MAX_RANK],
    /// In elements.
    pub offset: u32,
}

/// Joins inputs: for each of `outer`, `inner` elements of every input in turn. Followed by `input_count` [`ConcatInput`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Concat {
    #[allow(missing_docs)]
    pub output: u16,
    #[allow(missing_docs)]
    pub input_count: u16,
    #[allow(missing_docs)]
    pub outer: u32,
}

/// One input of a [`Concat`]: copied, or rescaled by `clamp(out_zp + round((q - in_zp) * multiplier / 2^shift))` where `multiplier` is not 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ConcatInput {
    #[allow(missing_docs)]
    pub input: u16,
    /// Zero.
    pub reserved: u16,
    #[allow(missing_docs)]
    pub inner: u32,
    #[allow(missing_docs)]
    pub multiplier: i32,
    #[allow(missing_docs)]
    pub shift: u32,
}

/// Separable interpolation. Scales are equal.
///
/// Nearest: `rows` and `columns` hold one source index per output row and column. Bilinear: three values `lo, hi, frac` each,
/// `frac` in `0 ..= 2048`; `q = floor((sum of four q * weights + 2^21) / 2^22)` with weights `(2048 - frac)` and `frac`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Resize {
    /// Tensor `[in_h, in_w, c]`.
    pub input: u16,
    /// Tensor `[out_h, out_w, c]`.
    pub output: u16,
    /// Constant, [`super::tensor::Constant::KIND_U16`].
    pub rows: u16,
    /// Constant, [`super::tensor::Constant::KIND_U16`].
    pub columns: u16,
    #[allow(missing_docs)]
    pub in_h: u16,
    #[allow(missing_docs)]
    pub in_w: u16,
    #[allow(missing_docs)]
    pub c: u16,
    #[allow(missing_docs)]
    pub out_h: u16,
    #[allow(missing_docs)]
    pub out_w: u16,
    /// Zero.
    pub reserved: u16,
}

/// What [`Head::kind`] says.
#[allow(missing_docs)]
pub mod kind {
    pub const CONV: u8 = 1;
    pub const DEPTHWISE: u8 = 2;
    pub const CONV_TRANSPOSE: u8 = 3;
    pub const LINEAR: u8 = 4;
    pub const ADD: u8 = 5;
    pub const MUL: u8 = 6;
    pub const LOOKUP: u8 = 7;
    pub const PRELU: u8 = 8;
    pub const MAX_POOL: u8 = 9;
    pub const AVERAGE_POOL: u8 = 10;
    pub const MEAN: u8 = 11;
    pub const SOFTMAX: u8 = 12;
    pub const PAD: u8 = 13;
    pub const REARRANGE: u8 = 14;
    pub const CONCAT: u8 = 15;
    pub const RESIZE_NEAREST: u8 = 16;
    pub const RESIZE_BILINEAR: u8 = 17;
}

/// An operator as a value; its kinds in the file are [`Op::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // each variant is documented by its record
#[repr(u32)] // a tag of a word, so that records are copied by words
pub enum Op<'a> {
    Conv(Conv),
    Depthwise(Conv),
    ConvTranspose(Conv),
    Linear(Linear),
    Add(Binary),
    Mul(Binary),
    Lookup(Lookup),
    PRelu(PRelu),
    MaxPool(Pool),
    AveragePool(Pool),
    Mean(Mean),
    Softmax(Softmax),
    Pad(Pad),
    Rearrange(Rearrange),
    Concat(Concat, &'a [ConcatInput]),
    ResizeNearest(Resize),
    ResizeBilinear(Resize),
}

/// Bytes of [`Head`].
pub const HEAD_BYTES: usize = size_of::<Head>();

impl<'a> Op<'a> {
    /// The record at the start of `bytes`, none if it is cut off, of unknown kind or of the wrong length. `bytes` lie at a multiple of 4.
    pub fn parse(bytes: &'a [u8]) -> Option<(Head, Op<'a>)> {
        Op::parse_using::<{ uses::ALL }>(bytes)
    }

    /// As [`Op::parse`]; none also where `USES` has no such operator, see [`crate::uses`].
    pub fn parse_using<const USES: u64>(bytes: &'a [u8]) -> Option<(Head, Op<'a>)> {
        let head: Head = bytemuck::pod_read_unaligned(bytes.get(..HEAD_BYTES)?);
        let body = bytes.get(HEAD_BYTES..head.record_bytes as usize)?;
        let op = match head.kind {
            kind::CONV if const { has(USES, kind::CONV) } => Op::Conv(read(body)?),
            kind::DEPTHWISE if const { has(USES, kind::DEPTHWISE) } => Op::Depthwise(read(body)?),
            kind::CONV_TRANSPOSE if const { has(USES, kind::CONV_TRANSPOSE) } => Op::ConvTranspose(read(body)?),
            kind::LINEAR if const { has(USES, kind::LINEAR) } => Op::Linear(read(body)?),
            kind::ADD if const { has(USES, kind::ADD) } => Op::Add(read(body)?),
            kind::MUL if const { has(USES, kind::MUL) } => Op::Mul(read(body)?),
            kind::LOOKUP if const { has(USES, kind::LOOKUP) } => Op::Lookup(read(body)?),
            kind::PRELU if const { has(USES, kind::PRELU) } => Op::PRelu(read(body)?),
            kind::MAX_POOL if const { has(USES, kind::MAX_POOL) } => Op::MaxPool(read(body)?),
            kind::AVERAGE_POOL if const { has(USES, kind::AVERAGE_POOL) } => Op::AveragePool(read(body)?),
            kind::MEAN if const { has(USES, kind::MEAN) } => Op::Mean(read(body)?),
            kind::SOFTMAX if const { has(USES, kind::SOFTMAX) } => Op::Softmax(read(body)?),
            kind::PAD if const { has(USES, kind::PAD) } => Op::Pad(read(body)?),
            kind::REARRANGE if const { has(USES, kind::REARRANGE) } => Op::Rearrange(read(body)?),
            kind::CONCAT if const { has(USES, kind::CONCAT) } => {
                let (concat, inputs) = body.split_at_checked(size_of::<Concat>())?;
                let concat: Concat = read(concat)?;
                let inputs: &[ConcatInput] = bytemuck::try_cast_slice(inputs).ok()?;
                if inputs.len() != concat.input_count as usize {
                    return None;
                }
                Op::Concat(concat, inputs)
            }
            kind::RESIZE_NEAREST if const { has(USES, kind::RESIZE_NEAREST) } => Op::ResizeNearest(read(body)?),
            kind::RESIZE_BILINEAR if const { has(USES, kind::RESIZE_BILINEAR) } => Op::ResizeBilinear(read(body)?),
            _ => return None,
        };
        Some((head, op))
    }

    /// The operator's own struct as bytes, and the list that follows it (of a [`Concat`], else empty).
    fn body(&self) -> (&[u8], &[u8]) {
        use bytemuck::{bytes_of, cast_slice};
        match self {
            Op::Conv(body) | Op::Depthwise(body) | Op::ConvTranspose(body) => (bytes_of(body), &[]),
            Op::Linear(body) => (bytes_of(body), &[]),
            Op::Add(body) | Op::Mul(body) => (bytes_of(body), &[]),
            Op::Lookup(body) => (bytes_of(body), &[]),
            Op::PRelu(body) => (bytes_of(body), &[]),
            Op::MaxPool(body) | Op::AveragePool(body) => (bytes_of(body), &[]),
            Op::Mean(body) => (bytes_of(body), &[]),
            Op::Softmax(body) => (bytes_of(body), &[]),
            Op::Pad(body) => (bytes_of(body), &[]),
            Op::Rearrange(body) => (bytes_of(body), &[]),
            Op::Concat(body, inputs) => (bytes_of(body), cast_slice(inputs)),
            Op::ResizeNearest(body) | Op::ResizeBilinear(body) => (bytes_of(body), &[]),
        }
    }

    /// The kind byte of the file.
    pub fn kind(&self) -> u8 {
        match self {
            Op::Conv(_) => kind::CONV,
            Op::Depthwise(_) => kind::DEPTHWISE,
            Op::ConvTranspose(_) => kind::CONV_TRANSPOSE,
            Op::Linear(_) => kind::LINEAR,
            Op::Add(_) => kind::ADD,
            Op::Mul(_) => kind::MUL,
            Op::Lookup(_) => kind::LOOKUP,
            Op::PRelu(_) => kind::PRELU,
            Op::MaxPool(_) => kind::MAX_POOL,
            Op::AveragePool(_) => kind::AVERAGE_POOL,
            Op::Mean(_) => kind::MEAN,
            Op::Softmax(_) => kind::SOFTMAX,
            Op::Pad(_) => kind::PAD,
            Op::Rearrange(_) => kind::REARRANGE,
            Op::Concat(..) => kind::CONCAT,
            Op::ResizeNearest(_) => kind::RESIZE_NEAREST,
            Op::ResizeBilinear(_) => kind::RESIZE_BILINEAR,
        }
    }

    /// Short name for tables.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Conv(_) => "conv",
            Op::Depthwise(_) => "depthwise",
            Op::ConvTranspose(_) => "conv_transpose",
            Op::Linear(_) => "linear",
            Op::Add(_) => "add",
            Op::Mul(_) => "mul",
            Op::Lookup(_) => "lookup",
            Op::PRelu(_) => "prelu",
            Op::MaxPool(_) => "max_pool",
            Op::AveragePool(_) => "average_pool",
            Op::Mean(_) => "mean",
            Op::Softmax(_) => "softmax",
            Op::Pad(_) => "pad",
            Op::Rearrange(_) => "rearrange",
            Op::Concat(..) => "concat",
            Op::ResizeNearest(_) => "resize_nearest",
            Op::ResizeBilinear(_) => "resize_bilinear",
        }
    }

    /// Length of the whole record, head included.
    pub fn record_bytes(&self) -> usize {
        let (body, list) = self.body();
        HEAD_BYTES + body.len() + list.len()
    }

    /// Writes the record to the start of `out` and returns its length; `head.kind` and `head.record_bytes` are filled in. None if `out` is
    /// too short or the record too long for its length field.
    pub fn emit(&self, head: Head, out: &mut [u8]) -> Option<usize> {
        let (body, list) = self.body();
        let record_bytes = u16::try_from(self.record_bytes()).ok()?;
        let head = Head { kind: self.kind(), record_bytes, ..head };
        let (to, out) = out.split_at_mut_checked(HEAD_BYTES)?;
        to.copy_from_slice(bytemuck::bytes_of(&head));
        let (to, out) = out.split_at_mut_checked(body.len())?;
        to.copy_from_slice(body);
        out.get_mut(..list.len())?.copy_from_slice(list);
        Some(record_bytes as usize)
    }

    /// The tensors that the operator reads, absent ones as none; a [`Concat`]'s stand in its list.
    pub fn inputs(&self) -> [Option<u16>; 2] {
        match self {
            Op::Conv(op) | Op::Depthwise(op) | Op::ConvTranspose(op) => [Some(op.input), None],
            Op::Linear(op) => [Some(op.input), None],
            Op::Add(op) | Op::Mul(op) => [Some(op.lhs), (op.rhs_is_constant == 0).then_some(op.rhs)],
            Op::Lookup(op) => [Some(op.input), None],
            Op::PRelu(op) => [Some(op.input), None],
            Op::MaxPool(op) | Op::AveragePool(op) => [Some(op.input), None],
            Op::Mean(op) => [Some(op.input), None],
            Op::Softmax(op) => [Some(op.input), None],
            Op::Pad(op) => [Some(op.input), None],
            Op::Rearrange(op) => [Some(op.input), None],
            Op::Concat(..) => [None, None],
            Op::ResizeNearest(op) | Op::ResizeBilinear(op) => [Some(op.input), None],
        }
    }

    /// The tensor that the operator writes.
    pub fn output(&self) -> u16 {
        match self {
            Op::Conv(op) | Op::Depthwise(op) | Op::ConvTranspose(op) => op.output,
            Op::Linear(op) => op.output,
            Op::Add(op) | Op::Mul(op) => op.output,
            Op::Lookup(op) => op.output,
            Op::PRelu(op) => op.output,
            Op::MaxPool(op) | Op::AveragePool(op) => op.output,
            Op::Mean(op) => op.output,
            Op::Softmax(op) => op.output,
            Op::Pad(op) => op.output,
            Op::Rearrange(op) => op.output,
            Op::Concat(op, _) => op.output,
            Op::ResizeNearest(op) | Op::ResizeBilinear(op) => op.output,
        }
    }

    /// The constant that holds the operator's weights.
    pub fn weights(&self) -> Option<u16> {
        match self {
            Op::Conv(op) | Op::Depthwise(op) | Op::ConvTranspose(op) => Some(op.weights),
            Op::Linear(op) => Some(op.weights),
            _ => None,
        }
    }

    /// The constant of its output stages, if it has weights; [`super::NONE`] where blocks bring them.
    pub fn stages(&self) -> Option<u16> {
        match self {
            Op::Conv(op) | Op::Depthwise(op) | Op::ConvTranspose(op) => Some(op.channels),
            Op::Linear(op) => Some(op.channels),
            _ => None,
        }
    }

    /// The constants that the operator names, for renumbering.
    pub fn constants_mut(&mut self) -> [Option<&mut u16>; 3] {
        let [first, second, third] = match self {
            Op::Conv(op) | Op::Depthwise(op) | Op::ConvTranspose(op) => {
                [Some(&mut op.weights), Some(&mut op.channels), Some(&mut op.weight_zero_points)]
            }
            Op::Linear(op) => [Some(&mut op.weights), Some(&mut op.channels), Some(&mut op.weight_zero_points)],
            Op::Add(op) | Op::Mul(op) => [(op.rhs_is_constant == 1).then_some(&mut op.rhs), None, None],
            Op::Lookup(op) => [Some(&mut op.table), None, None],
            Op::PRelu(op) => [Some(&mut op.channels), None, None],
            Op::AveragePool(op) => [Some(&mut op.channels), None, None],
            Op::Softmax(op) => [Some(&mut op.table), None, None],
            Op::ResizeNearest(op) | Op::ResizeBilinear(op) => [Some(&mut op.rows), Some(&mut op.columns), None],
            Op::MaxPool(_) | Op::Mean(_) | Op::Pad(_) | Op::Rearrange(_) | Op::Concat(..) => [None, None, None],
        };
        [first, second, third].map(|id| id.filter(|id| **id != super::NONE))
    }

    /// Multiply-accumulates of one run.
    pub fn macs(&self) -> u64 {
        let product = |values: &[u16]| values.iter().map(|&v| v as u64).product::<u64>();
        match self {
            Op::Conv(c) => {
                let reads = product(&[c.kernel_h, c.kernel_w, c.in_c / c.groups.max(1)]);
                product(&[c.out_h, c.out_w, c.out_c]) * reads
            }
            Op::Depthwise(c) => product(&[c.out_h, c.out_w, c.out_c, c.kernel_h, c.kernel_w]),
            Op::ConvTranspose(c) => {
                product(&[c.in_h, c.in_w, c.in_c]) * product(&[c.kernel_h, c.kernel_w, c.out_c / c.groups.max(1)])
            }
            Op::Linear(l) => l.rows as u64 * l.k as u64 * l.n as u64,
            _ => 0,
        }
    }
}

/// `body` as the struct that it must be exactly.
fn read<T: Pod>(body: &[u8]) -> Option<T> {
    (body.len() == size_of::<T>()).then(|| bytemuck::pod_read_unaligned(body))
}
