//! Operators that act on each element.

use super::super::build::{Builder, Fault, Value};
use super::super::consts::Constant;
use super::super::proto::Attributes;
use super::{axis_of, one};
use crate::graph::scalar::{Binary, ScalarFn, Unary};
use crate::graph::{BinaryKind, Clamp, Op, TensorId};
use tract_onnx::pb::NodeProto;

pub(super) fn unary(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let kind = match node.op_type.as_str() {
        "Relu" => Unary::Clamp(Clamp::RELU),
        "LeakyRelu" => Unary::LeakyRelu(node.float("alpha", 0.01)),
        "Sigmoid" => Unary::Sigmoid,
        "HardSigmoid" => Unary::HardSigmoid(node.float("alpha", 0.2), node.float("beta", 0.5)),
        "HardSwish" => Unary::HardSwish,
        "Tanh" => Unary::Tanh,
        "Gelu" if node.string("approximate", "none") == "tanh" => Unary::GeluTanh,
        "Gelu" => Unary::Gelu,
        "Erf" => Unary::Erf,
        "Exp" => Unary::Exp,
        "Log" => Unary::Log,
        "Sqrt" => Unary::Sqrt,
        "Abs" => Unary::Abs,
        "Neg" => Unary::Neg,
        "Softplus" => Unary::Softplus,
        "Elu" => Unary::Elu(node.float("alpha", 1.0)),
        "Reciprocal" => {
            let x = b.tensor(node, 0)?;
            return one(b.push(Op::Map(reciprocal()), &[x])?);
        }
        _ => return Err(Fault::Unsupported(String::new())),
    };
    let x = b.tensor(node, 0)?;
    one(b.push(Op::Map(ScalarFn::unary(kind)), &[x])?)
}

fn reciprocal() -> ScalarFn {
    ScalarFn::binary(Binary::Div, ScalarFn::Const(1.0), ScalarFn::X)
}

/// Operators of two inputs. Those with a scalar constant become scalar functions; division multiplies by the reciprocal.
pub(super) fn binary(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let kind = match node.op_type.as_str() {
        "Add" => Binary::Add,
        "Sub" => Binary::Sub,
        "Mul" => Binary::Mul,
        "Div" => Binary::Div,
        "Pow" => Binary::Pow,
        "Min" => Binary::Min,
        _ => Binary::Max,
    };
    if node.input.len() == 1 && matches!(kind, Binary::Min | Binary::Max) {
        return one(b.tensor(node, 0)?);
    }
    if node.input.len() != 2 {
        return Err(Fault::Unsupported(format!("{} inputs", node.input.len())));
    }
    for (x, c) in [(0, 1), (1, 0)] {
        let Some(constant) = b.constant(node, c).filter(|c| c.values.len() == 1) else { continue };
        if b.constant(node, x).is_some() {
            continue;
        }
        let x = b.tensor(node, x)?;
        if constant.values.ndim() > b.shape(x).len() {
            continue;
        }
        let value = ScalarFn::Const(constant.values.iter().copied().next().unwrap_or(0.0) as f32);
        let f = if c == 1 {
            ScalarFn::binary(kind, ScalarFn::X, value)
        } else {
            ScalarFn::binary(kind, value, ScalarFn::X)
        };
        return one(b.push(Op::Map(f), &[x])?);
    }
    let kind = match kind {
        Binary::Add => BinaryKind::Add,
        Binary::Sub => BinaryKind::Sub,
        Binary::Mul => BinaryKind::Mul,
        Binary::Div => return divide(b, node),
        _ => return Err(Fault::Unsupported("two tensors (only a scalar constant)".into())),
    };
    let (x, y) = (b.tensor(node, 0)?, b.tensor(node, 1)?);
    one(b.push(Op::Binary { kind, clamp: Clamp::NONE }, &[x, y])?)
}

fn divide(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let x = b.tensor(node, 0)?;
    let inverse: TensorId = match b.constant(node, 1) {
        Some(c) => b.push(Op::Const(c.values.mapv(|v| (1.0 / v) as f32)), &[])?,
        None => {
            let y = b.tensor(node, 1)?;
            b.push(Op::Map(reciprocal()), &[y])?
        }
    };
    one(b.push(Op::Binary { kind: BinaryKind::Mul, clamp: Clamp::NONE }, &[x, inverse])?)
}

pub(super) fn clip(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let bound = |b: &Builder, i: usize, name: &str, default: f32| -> Result<f32, Fault> {
        let value = b.optional(node, i)?.and_then(|c| c.values.iter().copied().next());
        Ok(value.map_or(node.float(name, default), |v| v as f32))
    };
    let min = bound(b, 1, "min", f32::NEG_INFINITY)?;
    let max = bound(b, 2, "max", f32::INFINITY)?;
    let x = b.tensor(node, 0)?;
    // The standard lets the upper bound win where the bounds cross.
    one(b.push(Op::Map(ScalarFn::clamp(Clamp { min: min.min(max), max })), &[x])?)
}

pub(super) fn prelu(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let slope = b.required(node, 1)?.to_f32();
    let x = b.tensor(node, 0)?;
    let shape = b.shape(x);
    if slope.len() == 1 {
        let slope = slope.iter().copied().next().unwrap_or(0.0);
        return one(b.push(Op::Map(ScalarFn::unary(Unary::LeakyRelu(slope))), &[x])?);
    }
    let rank = shape.len();
    let offset =
        rank.checked_sub(slope.ndim()).ok_or_else(|| Fault::Invalid("a slope with more axes than the input".into()))?;
    let axes: Vec<usize> = (0..slope.ndim()).filter(|&i| slope.shape()[i] != 1).map(|i| i + offset).collect();
    let &[axis] = axes.as_slice() else {
        // Slopes per element: x >= 0 part plus slope times the negative part.
        let clamp = |min, max| Op::Map(ScalarFn::clamp(Clamp { min, max }));
        let positive = b.push(clamp(0.0, f32::INFINITY), &[x])?;
        let negative = b.push(clamp(f32::NEG_INFINITY, 0.0), &[x])?;
        let slope = b.push(Op::Const(slope), &[])?;
        let negative = b.push(Op::Binary { kind: BinaryKind::Mul, clamp: Clamp::NONE }, &[negative, slope])?;
        return one(b.push(Op::Binary { kind: BinaryKind::Add, clamp: Clamp::NONE }, &[positive, negative])?);
    };
    let slope: Vec<f32> = slope.into_iter().collect();
    let to_last: Vec<usize> = (0..rank).filter(|&i| i != axis).chain([axis]).collect();
    let x = b.push(Op::Transpose { perm: to_last.clone() }, &[x])?;
    let y = b.push(Op::PRelu { slope }, &[x])?;
    let mut back = vec![0; rank];
    to_last.iter().enumerate().for_each(|(i, &p)| back[p] = i);
    one(b.push(Op::Transpose { perm: back }, &[y])?)
}

/// The file's own quantization is made anew from calibration, but exporters drop activations that its bounds imply, so the bounds
/// stay as a clamp.
pub(super) fn quantize(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let scalar = |c: Option<Constant>| c.filter(|c| c.values.len() == 1).and_then(|c| c.values.iter().copied().next());
    let scale =
        scalar(b.optional(node, 1)?).ok_or_else(|| Fault::Unsupported("a scale per channel on activations".into()))?;
    let zero_point = scalar(b.optional(node, 2)?).unwrap_or(0.0);
    // UINT8 is 2 and the default, INT8 is 3; wider types never clamp.
    let (low, high) = match b.element_type(node, 2) {
        None | Some(2) => (0.0, 255.0),
        Some(3) => (-128.0, 127.0),
        Some(_) => (f64::NEG_INFINITY, f64::INFINITY),
    };
    let bound = |q: f64| ((q - zero_point) * scale) as f32;
    let x = b.tensor(node, 0)?;
    one(b.push(Op::Map(ScalarFn::clamp(Clamp { min: bound(low), max: bound(high) })), &[x])?)
}

/// Operators that change nothing at inference.
pub(super) fn identity(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    if node.op_type == "Dropout" && b.constant(node, 2).is_some_and(|c| c.values.iter().any(|&v| v != 0.0)) {
        return Err(Fault::Unsupported("training_mode; export in evaluation mode".into()));
    }
    one(b.tensor(node, 0)?)
}

pub(super) fn cast(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    match node.int("to", 1) {
        1 | 10 | 11 | 16 => one(b.tensor(node, 0)?),
        other => Err(Fault::Unsupported(format!("a target type that is no float ({other})"))),
    }
}

pub(super) fn softmax(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let x = b.tensor(node, 0)?;
    let shape = b.shape(x);
    let axis = axis_of(node.int("axis", if b.opset < 13 { 1 } else { -1 }), shape.len())?;
    if b.opset >= 13 || shape[axis + 1..].iter().all(|&d| d == 1) {
        return one(b.push(Op::Softmax { axis }, &[x])?);
    }
    // Before opset 13 all axes from `axis` on are one.
    let rows = shape[..axis].iter().product();
    let columns = shape[axis..].iter().product();
    let flat = b.push(Op::Reshape { shape: vec![rows, columns] }, &[x])?;
    let y = b.push(Op::Softmax { axis: 1 }, &[flat])?;
    one(b.push(Op::Reshape { shape }, &[y])?)
}
