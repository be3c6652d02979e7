//! Operators with weights.

use super::super::build::{Builder, Fault, Value};
use super::super::proto::Attributes;
use super::pool::{Geometry, geometry};
use super::{channels_first, channels_last, from_map, one, to_map};
use crate::graph::{BinaryKind, Clamp, Op};
use ndarray::{ArrayD, Axis, IxDyn};
use tract_onnx::pb::NodeProto;

/// The bias at input `i`, or zeros.
fn bias(b: &Builder, node: &NodeProto, i: usize, channels: usize) -> Result<Vec<f32>, Fault> {
    match b.optional(node, i)? {
        None => Ok(vec![0.0; channels]),
        Some(c) if c.values.len() == channels => Ok(c.to_f32().into_iter().collect()),
        Some(c) => Err(Fault::Invalid(format!("bias of shape {:?} for {channels} channels", c.values.shape()))),
    }
}

/// A weight `[a, b, w]` or `[a, b, h, w]` as `[a, b, h, w]`.
fn weight4(weight: ArrayD<f32>) -> Result<ArrayD<f32>, Fault> {
    match weight.ndim() {
        3 => Ok(weight.insert_axis(Axis(2))),
        4 => Ok(weight),
        n => Err(Fault::Unsupported(format!("{} spatial axes", n.saturating_sub(2)))),
    }
}

fn groups(node: &NodeProto) -> Result<usize, Fault> {
    usize::try_from(node.int("group", 1))
        .ok()
        .filter(|&g| g > 0)
        .ok_or_else(|| Fault::Invalid("group is not positive".into()))
}

pub(super) fn conv(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let x = b.tensor(node, 0)?;
    let rank = b.shape(x).len();
    let weight = weight4(b.required(node, 1)?.to_f32())?;
    let kernel = [weight.shape()[2], weight.shape()[3]];
    let x = to_map(b, x)?;
    let [h, w] = [b.shape(x)[1], b.shape(x)[2]];
    let Geometry { window, .. } = geometry(node, kernel, [h, w])?;
    let bias = bias(b, node, 2, weight.shape()[0])?;
    let weight = weight.permuted_axes(IxDyn(&[0, 2, 3, 1])).as_standard_layout().into_owned();
    let op = Op::Conv2d { window, groups: groups(node)?, weight, bias, clamp: Clamp::NONE };
    let y = b.push(op, &[x])?;
    one(from_map(b, y, rank)?)
}

pub(super) fn conv_transpose(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let x = b.tensor(node, 0)?;
    let rank = b.shape(x).len();
    // ONNX: [ic, oc / groups, kh, kw]; ours: [oc, kh, kw, ic / groups].
    let weight = weight4(b.required(node, 1)?.to_f32())?;
    let [ic, group_out, kh, kw] = [0, 1, 2, 3].map(|i| weight.shape()[i]);
    let groups = groups(node)?;
    if ic % groups != 0 {
        return Err(Fault::Invalid(format!("{ic} input channels in {groups} groups")));
    }
    let group_in = ic / groups;
    let weight = ArrayD::from_shape_fn(IxDyn(&[group_out * groups, kh, kw, group_in]), |i| {
        weight[[i[0] / group_out.max(1) * group_in + i[3], i[0] % group_out.max(1), i[1], i[2]]]
    });
    let x = to_map(b, x)?;
    let input = [b.shape(x)[1], b.shape(x)[2]];
    let Geometry { mut window, .. } = geometry(node, [kh, kw], [usize::MAX; 2])?;
    let spatial = |name: &str| match node.ints(name).as_deref() {
        None | Some([]) => Ok(None),
        Some(&[w]) if rank == 3 => Ok(Some([if name == "output_shape" { 1 } else { 0 }, w as usize])),
        Some(&[h, w]) => Ok(Some([h as usize, w as usize])),
        // Some exporters give the full shape.
        Some(&[_, _, h, w]) => Ok(Some([h as usize, w as usize])),
        Some(other) => Err(Fault::Invalid(format!("{name} {other:?}"))),
    };
    let mut output_padding = spatial("output_padding")?.unwrap_or([0; 2]);
    let auto = node.string("auto_pad", "NOTSET");
    let same = auto.starts_with("SAME");
    let wanted = spatial("output_shape")?.or(same.then(|| [0, 1].map(|i| input[i] * window.stride[i])));
    if let Some(wanted) = wanted {
        for i in 0..2 {
            let full =
                (input[i] - 1) * window.stride[i] + (window.kernel[i] - 1) * window.dilation[i] + 1 + output_padding[i];
            let total = full.saturating_sub(wanted[i]);
            // The standard puts the odd element at the end unless SAME_UPPER asks for the start to be smaller.
            let begin = if auto == "SAME_UPPER" { total / 2 } else { total - total / 2 };
            (window.pad[i], window.pad[i + 2]) = (begin, total - begin);
            output_padding[i] += wanted[i].saturating_sub(full);
        }
    }
    let bias = bias(b, node, 2, group_out * groups)?;
    let op = Op::ConvTranspose2d { window, output_padding, groups, weight, bias, clamp: Clamp::NONE };
    let y = b.push(op, &[x])?;
    one(from_map(b, y, rank)?)
}

pub(super) fn gemm(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let (alpha, beta) = (node.float("alpha", 1.0), node.float("beta", 1.0));
    let mut x = b.tensor(node, 0)?;
    if node.int("transA", 0) != 0 {
        x = b.push(Op::Transpose { perm: vec![1, 0] }, &[x])?;
    }
    let mut weight = b.required(node, 1)?.to_f32();
    if weight.ndim() != 2 {
        return Err(Fault::Invalid(format!("a weight of shape {:?}", weight.shape())));
    }
    if node.int("transB", 0) == 0 {
        weight = weight.reversed_axes();
    }
    let weight = weight.mapv(|w| w * alpha).as_standard_layout().into_owned();
    let n = weight.shape()[0];
    let c = b.optional(node, 2)?.map(|c| c.to_f32().mapv(|v| v * beta));
    let row = |c: &ArrayD<f32>| c.len() == n && c.shape().last() == Some(&n) || c.len() == 1;
    let (bias, matrix) = match c {
        None => (vec![0.0; n], None),
        Some(c) if row(&c) => (c.iter().copied().cycle().take(n).collect(), None),
        Some(c) => (vec![0.0; n], Some(c)),
    };
    let mut y = b.push(Op::Linear { weight, bias, clamp: Clamp::NONE }, &[x])?;
    if let Some(c) = matrix {
        let c = b.push(Op::Const(c), &[])?;
        y = b.push(Op::Binary { kind: BinaryKind::Add, clamp: Clamp::NONE }, &[y, c])?;
    }
    one(y)
}

pub(super) fn matmul(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let (lhs, rhs) = (b.constant(node, 0), b.constant(node, 1));
    let linear = |weight: ArrayD<f32>| Op::Linear {
        bias: vec![0.0; weight.shape()[0]],
        weight: weight.as_standard_layout().into_owned(),
        clamp: Clamp::NONE,
    };
    // A constant matrix, leading axes of length 1 dropped.
    let matrix = |c: &super::super::consts::Constant| {
        let mut m = c.to_f32();
        while m.ndim() > 2 && m.shape()[0] == 1 {
            m = m.index_axis_move(Axis(0), 0);
        }
        (m.ndim() == 2).then_some(m)
    };
    match (lhs, rhs) {
        (_, Some(rhs)) => {
            let x = b.tensor(node, 0)?;
            if rhs.values.ndim() == 1 {
                let y = b.push(linear(rhs.to_f32().insert_axis(Axis(0))), &[x])?;
                let shape = b.shape(y);
                return one(b.push(Op::Reshape { shape: shape[..shape.len() - 1].to_vec() }, &[y])?);
            }
            let weight = matrix(&rhs).ok_or_else(|| Fault::Unsupported("a batch of constant matrices".into()))?;
            one(b.push(linear(weight.reversed_axes()), &[x])?)
        }
        (Some(lhs), None) => {
            let weight = matrix(&lhs).ok_or_else(|| Fault::Unsupported("a batch of constant matrices".into()))?;
            let x = b.tensor(node, 1)?;
            let rank = b.shape(x).len();
            if rank < 2 {
                return Err(Fault::Unsupported("a vector on the right".into()));
            }
            let mut perm: Vec<usize> = (0..rank).collect();
            perm.swap(rank - 2, rank - 1);
            let x = b.push(Op::Transpose { perm: perm.clone() }, &[x])?;
            let y = b.push(linear(weight), &[x])?;
            one(b.push(Op::Transpose { perm }, &[y])?)
        }
        (None, None) => Err(Fault::Unsupported("two activations".into())),
    }
}

pub(super) fn batch_norm(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    if node.int("training_mode", 0) != 0 {
        return Err(Fault::Unsupported("training_mode; export in evaluation mode".into()));
    }
    let x = b.tensor(node, 0)?;
    let [gamma, beta, mean, var] =
        [1, 2, 3, 4].map(|i| b.required(node, i).map(|c| c.to_f32().into_iter().collect::<Vec<f32>>()));
    let op = Op::BatchNorm { gamma: gamma?, beta: beta?, mean: mean?, var: var?, epsilon: node.float("epsilon", 1e-5) };
    let x = channels_last(b, x)?;
    let y = b.push(op, &[x])?;
    one(channels_first(b, y)?)
}
