//! Values known at import: weights, and the integer chains that compute shapes.

use super::proto::Attributes;
use ndarray::{ArrayD, Axis, Dimension, IxDyn};
use tract_onnx::pb::NodeProto;

/// A constant tensor.
#[derive(Clone, Debug)]
pub(super) struct Constant {
    /// Elements.
    pub values: ArrayD<f64>,
    /// Whether the ONNX type is a float (division differs).
    pub is_float: bool,
}

impl Constant {
    pub(super) fn ints(values: Vec<i64>) -> Constant {
        let values: Vec<f64> = values.into_iter().map(|v| v as f64).collect();
        Constant { values: ArrayD::from_shape_vec(IxDyn(&[values.len()]), values).unwrap_or_default(), is_float: false }
    }

    /// Elements as integers.
    pub(super) fn to_ints(&self) -> Vec<i64> {
        self.values.iter().map(|&v| v as i64).collect()
    }

    /// Elements as 32-bit floats.
    pub(super) fn to_f32(&self) -> ArrayD<f32> {
        self.values.mapv(|v| v as f32)
    }
}

/// Operators that have a meaning on constants only; none for any other, or if the arguments do not fit.
pub(super) fn evaluate(node: &NodeProto, args: &[Option<&Constant>]) -> Option<Constant> {
    let first = args.first().copied().flatten();
    let second = args.get(1).copied().flatten();
    let like = |values: ArrayD<f64>, of: &Constant| Constant { values, is_float: of.is_float };
    Some(match node.op_type.as_str() {
        "Shape" => Constant::ints(first?.values.shape().iter().map(|&d| d as i64).collect()),
        "Gather" => gather(first?, second?, node.int("axis", 0))?,
        "Cast" => {
            // FLOAT, FLOAT16, DOUBLE, BFLOAT16 are floats; everything else truncates.
            let is_float = [1, 10, 11, 16].contains(&node.int("to", 1));
            Constant { values: first?.values.mapv(|v| if is_float { v } else { v.trunc() }), is_float }
        }
        "Range" => {
            let scalar = |i: usize| args.get(i).copied().flatten().and_then(|c| c.values.first().copied());
            let (start, limit, delta) = (scalar(0)?, scalar(1)?, scalar(2)?);
            let count = ((limit - start) / delta).ceil().max(0.0);
            if !count.is_finite() || count > 1e6 {
                return None;
            }
            let values: Vec<f64> = (0..count as usize).map(|i| start + i as f64 * delta).collect();
            like(ArrayD::from_shape_vec(IxDyn(&[values.len()]), values).ok()?, first?)
        }
        "ConstantOfShape" => {
            let shape: Vec<usize> = first?.to_ints().iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
            if shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).is_none_or(|n| n > 1 << 28) {
                return None;
            }
            let fill = node.find("value").and_then(|a| a.t.as_ref()).map(super::proto::tensor);
            match fill {
                Some(Ok(fill)) => like(ArrayD::from_elem(IxDyn(&shape), fill.values.first().copied()?), &fill),
                Some(Err(_)) => return None,
                None => Constant { values: ArrayD::zeros(IxDyn(&shape)), is_float: true },
            }
        }
        "Floor" => like(first?.values.mapv(f64::floor), first?),
        "Ceil" => like(first?.values.mapv(f64::ceil), first?),
        "ReduceProd" => {
            let product = first?.values.iter().product();
            let shape = if node.int("keepdims", 1) == 1 { vec![1; first?.values.ndim()] } else { vec![] };
            like(ArrayD::from_elem(IxDyn(&shape), product), first?)
        }
        "Equal" => Constant { is_float: false, ..zip(first?, second?, |a, b| f64::from(a == b))? },
        "Where" => {
            let (yes, no) = (second?, args.get(2).copied().flatten()?);
            let shape = crate::graph::shape::broadcast(first?.values.shape(), yes.values.shape())?;
            let shape = crate::graph::shape::broadcast(&shape, no.values.shape())?;
            let [c, a, b] = [first?, yes, no].map(|c| c.values.broadcast(IxDyn(&shape)));
            let (c, a, b) = (c?, a?, b?);
            let values = c.iter().zip(a.iter().zip(b.iter())).map(|(&c, (&a, &b))| if c != 0.0 { a } else { b });
            like(ArrayD::from_shape_vec(IxDyn(&shape), values.collect()).ok()?, yes)
        }
        "Add" => zip(first?, second?, |a, b| a + b)?,
        "Sub" => zip(first?, second?, |a, b| a - b)?,
        "Mul" => zip(first?, second?, |a, b| a * b)?,
        "Div" if first?.is_float => zip(first?, second?, |a, b| a / b)?,
        "Div" => zip(first?, second?, |a, b| (a / b).trunc())?,
        "DequantizeLinear" => dequantize(node, first?, second?, args.get(2).copied().flatten())?,
        "Identity" => first?.clone(),
        _ => return None,
    })
}

fn zip(a: &Constant, b: &Constant, f: impl Fn(f64, f64) -> f64) -> Option<Constant> {
    let shape = crate::graph::shape::broadcast(a.values.shape(), b.values.shape())?;
    let (x, y) = (a.values.broadcast(IxDyn(&shape))?, b.values.broadcast(IxDyn(&shape))?);
    let values = x.iter().zip(y.iter()).map(|(&x, &y)| f(x, y)).collect();
    Some(Constant { values: ArrayD::from_shape_vec(IxDyn(&shape), values).ok()?, is_float: a.is_float })
}

fn gather(data: &Constant, indices: &Constant, axis: i64) -> Option<Constant> {
    let rank = data.values.ndim();
    let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok().filter(|&a| a < rank)?;
    let n = data.values.shape()[axis] as i64;
    let positions: Vec<usize> = indices
        .to_ints()
        .iter()
        .map(|&i| usize::try_from(if i < 0 { i + n } else { i }).ok().filter(|&i| (i as i64) < n))
        .collect::<Option<_>>()?;
    let picked = data.values.select(Axis(axis), &positions);
    let shape = [&data.values.shape()[..axis], indices.values.shape(), &data.values.shape()[axis + 1..]].concat();
    let values: Vec<f64> = picked.iter().copied().collect();
    Some(Constant { values: ArrayD::from_shape_vec(IxDyn(&shape), values).ok()?, is_float: data.is_float })
}

fn dequantize(node: &NodeProto, x: &Constant, scale: &Constant, zero: Option<&Constant>) -> Option<Constant> {
    let rank = x.values.ndim();
    let axis = node.int("axis", 1);
    let axis = if axis < 0 { axis + rank as i64 } else { axis } as usize;
    let pick = |c: &Constant, i: usize| c.values.iter().copied().nth(if c.values.len() == 1 { 0 } else { i });
    let mut values = x.values.clone();
    for (index, v) in values.indexed_iter_mut() {
        let channel = if scale.values.len() == 1 { 0 } else { *index.slice().get(axis)? };
        let zero = zero.map_or(Some(0.0), |z| pick(z, channel))?;
        *v = (*v - zero) * pick(scale, channel)?;
    }
    Some(Constant { values, is_float: true })
}
