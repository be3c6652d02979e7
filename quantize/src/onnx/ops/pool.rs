//! Pooling and reductions, and the window attributes they share with convolutions.

use super::super::build::{Builder, Fault, Value};
use super::super::proto::Attributes;
use super::{axis_of, channels_first, from_map, one, to_map};
use crate::graph::{Op, Window};
use tract_onnx::pb::NodeProto;

/// A window, and how far ceil mode makes it reach beyond the padding (`[h, w]`, at bottom and right).
pub(super) struct Geometry {
    pub window: Window,
    pub overhang: [usize; 2],
}

/// Strides, dilations and padding of a node over `input` `[h, w]`; 1-D attributes describe `w`. `usize::MAX` as input: padding as written.
pub(super) fn geometry(node: &NodeProto, kernel: [usize; 2], input: [usize; 2]) -> Result<Geometry, Fault> {
    let pair = |name: &str| match node.ints(name).as_deref() {
        None | Some([]) => Ok([1, 1]),
        Some(&[w]) if w > 0 => Ok([1, w as usize]),
        Some(&[h, w]) if h > 0 && w > 0 => Ok([h as usize, w as usize]),
        Some(other) => Err(Fault::Invalid(format!("{name} {other:?}"))),
    };
    let (stride, dilation) = (pair("strides")?, pair("dilations")?);
    let mut pad = match node.ints("pads").as_deref() {
        None | Some([]) => [0; 4],
        Some(&[left, right]) if left >= 0 && right >= 0 => [0, left as usize, 0, right as usize],
        Some(&[t, l, b, r]) if t >= 0 && l >= 0 && b >= 0 && r >= 0 => [t, l, b, r].map(|p| p as usize),
        Some(other) => return Err(Fault::Unsupported(format!("pads {other:?}"))),
    };
    if pad.iter().any(|&p| p > 1 << 20) {
        return Err(Fault::Invalid(format!("pads {pad:?}")));
    }
    let auto = node.string("auto_pad", "NOTSET");
    let mut overhang = [0; 2];
    for i in (0..2).filter(|&i| input[i] != usize::MAX) {
        let span = kernel[i].saturating_sub(1) * dilation[i] + 1;
        match auto.as_str() {
            "SAME_UPPER" | "SAME_LOWER" => {
                let out = input[i].div_ceil(stride[i]);
                let total = ((out.saturating_sub(1)) * stride[i] + span).saturating_sub(input[i]);
                let small = total / 2;
                (pad[i], pad[i + 2]) =
                    if auto == "SAME_UPPER" { (small, total - small) } else { (total - small, small) };
            }
            "VALID" => (pad[i], pad[i + 2]) = (0, 0),
            _ => {}
        }
        if node.int("ceil_mode", 0) != 0 {
            let padded = input[i] + pad[i] + pad[i + 2];
            let room = padded.saturating_sub(span);
            let mut out = room.div_ceil(stride[i]) + 1;
            // The last window must start inside of the input or its leading padding.
            if (out - 1) * stride[i] >= input[i] + pad[i] {
                out -= 1;
            }
            overhang[i] = ((out - 1) * stride[i] + span).saturating_sub(padded);
            pad[i + 2] += overhang[i];
        }
    }
    Ok(Geometry { window: Window { kernel, stride, dilation, pad }, overhang })
}

fn kernel(node: &NodeProto) -> Result<[usize; 2], Fault> {
    match node.ints("kernel_shape").as_deref() {
        Some(&[w]) if w > 0 => Ok([1, w as usize]),
        Some(&[h, w]) if h > 0 && w > 0 => Ok([h as usize, w as usize]),
        Some(other) if other.len() > 2 => Err(Fault::Unsupported(format!("{} spatial axes", other.len()))),
        other => Err(Fault::Invalid(format!("kernel_shape {other:?}"))),
    }
}

pub(super) fn max(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    if node.output.len() > 1 {
        return Err(Fault::Unsupported("the Indices output".into()));
    }
    let x = b.tensor(node, 0)?;
    let rank = b.shape(x).len();
    let kernel = kernel(node)?;
    let x = to_map(b, x)?;
    let Geometry { window, .. } = geometry(node, kernel, [b.shape(x)[1], b.shape(x)[2]])?;
    let y = b.push(Op::MaxPool(window), &[x])?;
    one(from_map(b, y, rank)?)
}

pub(super) fn average(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let x = b.tensor(node, 0)?;
    let rank = b.shape(x).len();
    let kernel = kernel(node)?;
    let mut x = to_map(b, x)?;
    let Geometry { mut window, overhang } = geometry(node, kernel, [b.shape(x)[1], b.shape(x)[2]])?;
    let mut count_include_pad = node.int("count_include_pad", 0) != 0 && window.pad != [0; 4];
    if count_include_pad && overhang != [0; 2] {
        // Padding counts, the overhang does not: the padding becomes real zeros.
        let [top, left, bottom, right] = window.pad;
        let after = vec![0, bottom - overhang[0], right - overhang[1], 0];
        x = b.push(Op::Pad { before: vec![0, top, left, 0], after, value: 0.0 }, &[x])?;
        window.pad = [0, 0, overhang[0], overhang[1]];
        count_include_pad = false;
    }
    let y = b.push(Op::AveragePool { window, count_include_pad }, &[x])?;
    one(from_map(b, y, rank)?)
}

pub(super) fn global_average(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let x = b.tensor(node, 0)?;
    let rank = b.shape(x).len();
    one(b.push(Op::Mean { axes: (2..rank).collect() }, &[x])?)
}

pub(super) fn global_max(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let x = b.tensor(node, 0)?;
    let x = to_map(b, x)?;
    let kernel = [b.shape(x)[1], b.shape(x)[2]];
    let window = Window { kernel, stride: [1; 2], dilation: [1; 2], pad: [0; 4] };
    let y = b.push(Op::MaxPool(window), &[x])?;
    one(channels_first(b, y)?)
}

pub(super) fn reduce_mean(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let x = b.tensor(node, 0)?;
    let shape = b.shape(x);
    let axes = match (node.ints("axes"), b.optional(node, 1)?) {
        (Some(axes), _) => axes,
        (None, Some(axes)) => axes.to_ints(),
        (None, None) => Vec::new(),
    };
    if axes.is_empty() && node.int("noop_with_empty_axes", 0) != 0 {
        return one(x);
    }
    let mut axes = match axes.is_empty() {
        true => (0..shape.len()).collect(),
        false => axes.iter().map(|&a| axis_of(a, shape.len())).collect::<Result<Vec<_>, _>>()?,
    };
    axes.sort_unstable();
    axes.dedup();
    let y = b.push(Op::Mean { axes: axes.clone() }, &[x])?;
    if node.int("keepdims", 1) != 0 {
        return one(y);
    }
    let shape = (0..shape.len()).filter(|i| !axes.contains(i)).map(|i| shape[i]).collect();
    one(b.push(Op::Reshape { shape }, &[y])?)
}
