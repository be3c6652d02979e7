//! Operators that move elements or rename axes.

use super::super::build::{Builder, Fault, Value};
use super::super::consts::Constant;
use super::super::proto::{self, Attributes};
use super::{axis_of, one};
use crate::graph::{Op, TensorId};
use tract_onnx::pb::NodeProto;

/// Integers from the attribute `name` or, in later opsets, from input `i`.
fn ints(b: &Builder, node: &NodeProto, name: &str, i: usize) -> Result<Option<Vec<i64>>, Fault> {
    match node.ints(name) {
        Some(values) => Ok(Some(values)),
        None => Ok(b.optional(node, i)?.map(|c| c.to_ints())),
    }
}

pub(super) fn constant(_: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let floats = |values: Vec<f64>, shape: &[usize]| {
        let values = ndarray::ArrayD::from_shape_vec(shape, values).map_err(|e| Fault::Invalid(e.to_string()))?;
        Ok::<_, Fault>(Constant { values, is_float: true })
    };
    let value = if let Some(tensor) = node.find("value").and_then(|a| a.t.as_ref()) {
        proto::tensor(tensor).map_err(Fault::Invalid)?
    } else if let Some(a) = node.find("value_float") {
        floats(vec![a.f as f64], &[])?
    } else if let Some(a) = node.find("value_floats") {
        floats(a.floats.iter().map(|&v| v as f64).collect(), &[a.floats.len()])?
    } else if let Some(a) = node.find("value_int") {
        Constant { is_float: false, ..floats(vec![a.i as f64], &[])? }
    } else if let Some(a) = node.find("value_ints") {
        Constant::ints(a.ints.clone())
    } else {
        return Err(Fault::Unsupported("a value that is neither tensor, float nor integer".into()));
    };
    Ok(vec![Value::Constant(value)])
}

/// Shapes are static, so this is a constant.
pub(super) fn shape(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let x = b.tensor(node, 0)?;
    let shape: Vec<i64> = b.shape(x).iter().map(|&d| d as i64).collect();
    let rank = shape.len() as i64;
    let bound = |v: i64| (if v < 0 { v + rank } else { v }).clamp(0, rank) as usize;
    let (start, end) = (bound(node.int("start", 0)), bound(node.int("end", rank)));
    Ok(vec![Value::Constant(Constant::ints(shape[start..end.max(start)].to_vec()))])
}

pub(super) fn transpose(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let x = b.tensor(node, 0)?;
    let rank = b.shape(x).len();
    let perm = match node.ints("perm") {
        Some(perm) => perm.iter().map(|&p| axis_of(p, rank)).collect::<Result<_, _>>()?,
        None => (0..rank).rev().collect(),
    };
    one(b.push(Op::Transpose { perm }, &[x])?)
}

fn reshaped(b: &mut Builder, x: TensorId, shape: Vec<usize>) -> Result<Vec<Value>, Fault> {
    one(b.push(Op::Reshape { shape }, &[x])?)
}

pub(super) fn reshape(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let wanted = ints(b, node, "shape", 1)?.ok_or_else(|| Fault::Invalid("no shape".into()))?;
    let x = b.tensor(node, 0)?;
    let from = b.shape(x);
    let keep_zero = node.int("allowzero", 0) != 0;
    let mut shape: Vec<usize> = Vec::new();
    for (i, &d) in wanted.iter().enumerate() {
        shape.push(match d {
            -1 => 1,
            0 if !keep_zero => *from.get(i).ok_or_else(|| Fault::Invalid(format!("shape {wanted:?} of {from:?}")))?,
            d => usize::try_from(d).map_err(|_| Fault::Invalid(format!("shape {wanted:?}")))?,
        });
    }
    if let Some(free) = wanted.iter().position(|&d| d == -1) {
        let known = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).unwrap_or(0).max(1);
        shape[free] = from.iter().product::<usize>() / known;
    }
    reshaped(b, x, shape)
}

pub(super) fn flatten(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let x = b.tensor(node, 0)?;
    let shape = b.shape(x);
    let axis = node.int("axis", 1);
    let axis = if axis == shape.len() as i64 { shape.len() } else { axis_of(axis, shape.len())? };
    reshaped(b, x, vec![shape[..axis].iter().product(), shape[axis..].iter().product()])
}

pub(super) fn squeeze(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let axes = ints(b, node, "axes", 1)?;
    let x = b.tensor(node, 0)?;
    let mut shape = b.shape(x);
    if node.op_type == "Squeeze" {
        let axes = match axes {
            Some(axes) => axes.iter().map(|&a| axis_of(a, shape.len())).collect::<Result<Vec<_>, _>>()?,
            None => (0..shape.len()).filter(|&i| shape[i] == 1).collect(),
        };
        shape = (0..shape.len()).filter(|i| !axes.contains(i)).map(|i| shape[i]).collect();
    } else {
        let axes = axes.ok_or_else(|| Fault::Invalid("no axes".into()))?;
        let rank = shape.len() + axes.len();
        let mut axes = axes.iter().map(|&a| axis_of(a, rank)).collect::<Result<Vec<_>, _>>()?;
        axes.sort_unstable();
        for axis in axes {
            if axis > shape.len() {
                return Err(Fault::Invalid(format!("axis {axis} given twice")));
            }
            shape.insert(axis, 1);
        }
    }
    reshaped(b, x, shape)
}

pub(super) fn concat(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let inputs = (0..node.input.len()).map(|i| b.tensor(node, i)).collect::<Result<Vec<_>, _>>()?;
    let rank = inputs.first().map_or(0, |&x| b.shape(x).len());
    let axis = axis_of(node.int("axis", 1), rank)?;
    one(b.push(Op::Concat { axis }, &inputs)?)
}

/// A slice of `len` elements from `start` along one axis.
fn part(b: &mut Builder, x: TensorId, axis: usize, start: usize, step: isize, len: usize) -> Result<TensorId, Fault> {
    let mut lens = b.shape(x);
    let (mut starts, mut steps) = (vec![0; lens.len()], vec![1; lens.len()]);
    (starts[axis], steps[axis], lens[axis]) = (start, step, len);
    b.push(Op::Slice { start: starts, step: steps, len: lens }, &[x])
}

pub(super) fn split(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let x = b.tensor(node, 0)?;
    let shape = b.shape(x);
    let axis = axis_of(node.int("axis", 0), shape.len())?;
    let sizes: Vec<usize> = match ints(b, node, "split", 1)? {
        Some(sizes) => sizes.iter().map(|&s| usize::try_from(s).unwrap_or(0)).collect(),
        None => {
            let count = node.int("num_outputs", node.output.len() as i64).max(1) as usize;
            let chunk = shape[axis].div_ceil(count);
            (0..count).map(|i| chunk.min(shape[axis].saturating_sub(i * chunk))).collect()
        }
    };
    if sizes.iter().sum::<usize>() != shape[axis] || sizes.contains(&0) {
        return Err(Fault::Unsupported(format!("parts {sizes:?} of an axis of {}", shape[axis])));
    }
    let mut start = 0;
    let mut outputs = Vec::new();
    for (name, len) in node.output.iter().zip(sizes) {
        let id = part(b, x, axis, start, 1, len)?;
        b.graph.tensors[id.0].name = name.clone();
        outputs.push(Value::Tensor(id));
        start += len;
    }
    Ok(outputs)
}

pub(super) fn slice(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let missing = |what: &str| Fault::Invalid(format!("no {what}"));
    let starts = ints(b, node, "starts", 1)?.ok_or_else(|| missing("starts"))?;
    let ends = ints(b, node, "ends", 2)?.ok_or_else(|| missing("ends"))?;
    let axes = ints(b, node, "axes", 3)?.unwrap_or((0..starts.len() as i64).collect());
    let steps = b.optional(node, 4)?.map_or(vec![1; starts.len()], |c| c.to_ints());
    let x = b.tensor(node, 0)?;
    let mut len = b.shape(x);
    let rank = len.len();
    let (mut start, mut step) = (vec![0usize; rank], vec![1isize; rank]);
    if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return Err(Fault::Invalid("starts, ends, axes and steps of different lengths".into()));
    }
    for i in 0..starts.len() {
        let axis = axis_of(axes[i], rank)?;
        let n = len[axis] as i64;
        let from_end = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
        let (first, end, stride) = (from_end(starts[i]), from_end(ends[i]), steps[i]);
        let count = match stride {
            0 => return Err(Fault::Invalid("a step of 0".into())),
            s if s > 0 => {
                let first = first.clamp(0, n);
                start[axis] = first as usize;
                (end.clamp(0, n) - first).max(0) as u64
            }
            _ => {
                let first = first.clamp(-1, n - 1);
                start[axis] = first.max(0) as usize;
                (first - end.clamp(-1, n - 1)).max(0) as u64
            }
        };
        len[axis] = count.div_ceil(stride.unsigned_abs()) as usize;
        step[axis] = isize::try_from(stride.clamp(-(1 << 30), 1 << 30)).unwrap_or(1);
        if len[axis] == 0 {
            return Err(Fault::Unsupported("an empty result".into()));
        }
        if len[axis] == 1 {
            step[axis] = 1;
        }
    }
    one(b.push(Op::Slice { start, step, len }, &[x])?)
}

pub(super) fn pad(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let pads = ints(b, node, "pads", 1)?.ok_or_else(|| Fault::Invalid("no pads".into()))?;
    let value = b
        .optional(node, 2)?
        .and_then(|c| c.values.iter().copied().next())
        .map_or(node.float("value", 0.0), |v| v as f32);
    let axes = b.optional(node, 3)?.map(|c| c.to_ints());
    let mut x = b.tensor(node, 0)?;
    let rank = b.shape(x).len();
    let axes = axes.unwrap_or((0..rank as i64).collect());
    if pads.len() != 2 * axes.len() {
        return Err(Fault::Invalid(format!("{} pads for {} axes", pads.len(), axes.len())));
    }
    let (mut before, mut after) = (vec![0i64; rank], vec![0i64; rank]);
    for (i, &axis) in axes.iter().enumerate() {
        let axis = axis_of(axis, rank)?;
        (before[axis], after[axis]) = (pads[i], pads[i + axes.len()]);
    }
    if before.iter().chain(&after).any(|&p| p.abs() > 1 << 20) {
        return Err(Fault::Invalid(format!("pads {pads:?}")));
    }
    // Negative padding crops.
    for axis in 0..rank {
        let n = b.shape(x)[axis] as i64;
        let (head, tail) = ((-before[axis]).max(0), (-after[axis]).max(0));
        if head + tail > 0 {
            if head + tail >= n {
                return Err(Fault::Invalid(format!("pads {pads:?} leave nothing")));
            }
            x = part(b, x, axis, head as usize, 1, (n - head - tail) as usize)?;
        }
    }
    let count = |pads: Vec<i64>| -> Vec<usize> { pads.into_iter().map(|p| p.max(0) as usize).collect() };
    let (before, after) = (count(before), count(after));
    let mode = node.string("mode", "constant");
    if mode == "constant" {
        return one(b.push(Op::Pad { before, after, value }, &[x])?);
    }
    for axis in 0..rank {
        let n = b.shape(x)[axis];
        // Start and step of the parts in front and behind.
        let (front, back) = match mode.as_str() {
            "edge" => ((0, 0), (n - 1, 0)),
            "reflect" if before[axis] < n && after[axis] < n => ((before[axis], -1), (n.saturating_sub(2), -1)),
            "wrap" if before[axis] <= n && after[axis] <= n => ((n - before[axis], 1), (0, 1)),
            _ if before[axis] + after[axis] == 0 => continue,
            _ => {
                return Err(Fault::Unsupported(format!(
                    "mode {mode} of {} before and {} after {n}",
                    before[axis], after[axis]
                )));
            }
        };
        let mut parts = Vec::new();
        if before[axis] > 0 {
            parts.push(part(b, x, axis, front.0, front.1, before[axis])?);
        }
        parts.push(x);
        if after[axis] > 0 {
            parts.push(part(b, x, axis, back.0, back.1, after[axis])?);
        }
        if parts.len() > 1 {
            x = b.push(Op::Concat { axis }, &parts)?;
        }
    }
    one(x)
}
