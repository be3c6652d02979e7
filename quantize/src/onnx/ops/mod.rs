//! Translation of ONNX operators, one function an operator, one file a family.
//!
//! ONNX puts channels on axis 1; the IR puts them last. [`channels_last`] and [`channels_first`] bracket an operator with the
//! transposes that say so.

mod elementwise;
mod linear;
mod pool;
pub(super) mod resize;
mod shape;

use super::build::{Builder, Fault, Value};
use crate::graph::{Op, TensorId};
use tract_onnx::pb::NodeProto;

type Translate = fn(&mut Builder, &NodeProto) -> Result<Vec<Value>, Fault>;

/// The translation of an operator, none if it is unknown.
fn find(op_type: &str) -> Option<Translate> {
    Some(match op_type {
        "Conv" => linear::conv,
        "ConvTranspose" => linear::conv_transpose,
        "Gemm" => linear::gemm,
        "MatMul" => linear::matmul,
        "BatchNormalization" => linear::batch_norm,
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Min" | "Max" => elementwise::binary,
        "Relu" | "LeakyRelu" | "Sigmoid" | "HardSigmoid" | "HardSwish" | "Tanh" | "Gelu" | "Erf" | "Exp" | "Log"
        | "Sqrt" | "Abs" | "Neg" | "Softplus" | "Elu" | "Reciprocal" => elementwise::unary,
        "Clip" => elementwise::clip,
        "PRelu" => elementwise::prelu,
        "QuantizeLinear" => elementwise::quantize,
        "Dropout" | "Identity" | "DequantizeLinear" => elementwise::identity,
        "Cast" => elementwise::cast,
        "Softmax" => elementwise::softmax,
        "MaxPool" => pool::max,
        "AveragePool" => pool::average,
        "GlobalAveragePool" => pool::global_average,
        "GlobalMaxPool" => pool::global_max,
        "ReduceMean" => pool::reduce_mean,
        "Pad" => shape::pad,
        "Concat" => shape::concat,
        "Split" => shape::split,
        "Slice" => shape::slice,
        "Reshape" => shape::reshape,
        "Flatten" => shape::flatten,
        "Squeeze" | "Unsqueeze" => shape::squeeze,
        "Transpose" => shape::transpose,
        "Constant" => shape::constant,
        "Shape" => shape::shape,
        "Resize" | "Upsample" => resize::resize,
        _ => return None,
    })
}

/// Operators that [`super::consts`] computes when their inputs are constants.
const CONSTANT_ONLY: [&str; 9] =
    ["Gather", "Range", "ConstantOfShape", "Floor", "Ceil", "ReduceProd", "Equal", "Where", "Size"];

pub(super) fn is_known(op_type: &str) -> bool {
    find(op_type).is_some() || CONSTANT_ONLY.contains(&op_type)
}

pub(super) fn translate(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let form = if CONSTANT_ONLY.contains(&node.op_type.as_str()) { "inputs that are not constant" } else { "" };
    find(&node.op_type).ok_or_else(|| Fault::Unsupported(form.into()))?(b, node)
}

/// One output.
fn one(id: TensorId) -> Result<Vec<Value>, Fault> {
    Ok(vec![Value::Tensor(id)])
}

/// `axis`, counted from the end if negative.
fn axis_of(axis: i64, rank: usize) -> Result<usize, Fault> {
    let resolved = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(resolved)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| Fault::Invalid(format!("axis {axis} of a tensor with {rank} axes")))
}

/// `[n, c, ...]` as `[n, ..., c]`.
fn channels_last(b: &mut Builder, x: TensorId) -> Result<TensorId, Fault> {
    let rank = b.shape(x).len();
    if rank < 3 {
        return Ok(x);
    }
    let perm = [0].into_iter().chain(2..rank).chain([1]).collect();
    b.push(Op::Transpose { perm }, &[x])
}

/// `[n, ..., c]` as `[n, c, ...]`.
fn channels_first(b: &mut Builder, x: TensorId) -> Result<TensorId, Fault> {
    let rank = b.shape(x).len();
    if rank < 3 {
        return Ok(x);
    }
    let perm = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    b.push(Op::Transpose { perm }, &[x])
}

/// `[n, c, h, w]` or `[n, c, w]` as `[n, h, w, c]` (with `h = 1`).
fn to_map(b: &mut Builder, x: TensorId) -> Result<TensorId, Fault> {
    let x = match b.shape(x)[..] {
        [_, _, _, _] => x,
        [n, c, w] => b.push(Op::Reshape { shape: vec![n, c, 1, w] }, &[x])?,
        ref other => return Err(Fault::Unsupported(format!("{} spatial axes", other.len().saturating_sub(2)))),
    };
    channels_last(b, x)
}

/// The inverse of [`to_map`] for an operator whose ONNX input had `rank` axes.
fn from_map(b: &mut Builder, x: TensorId, rank: usize) -> Result<TensorId, Fault> {
    let x = channels_first(b, x)?;
    match b.shape(x)[..] {
        [n, c, 1, w] if rank == 3 => b.push(Op::Reshape { shape: vec![n, c, w] }, &[x]),
        _ => Ok(x),
    }
}
