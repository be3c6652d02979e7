//! Resize and Upsample: every coordinate rule of the standard becomes one tap per output row and column.

use super::super::build::{Builder, Fault, Value};
use super::super::proto::Attributes;
use super::{axis_of, from_map, one, to_map};
use crate::graph::{Op, Tap};
use tract_onnx::pb::NodeProto;

pub(super) fn resize(b: &mut Builder, node: &NodeProto) -> Result<Vec<Value>, Fault> {
    let x = b.tensor(node, 0)?;
    let shape = b.shape(x);
    let rank = shape.len();
    let legacy = node.op_type == "Upsample" || b.opset < 11;
    let scales_input = if legacy { 1 } else { 2 };
    let given: Option<Vec<f64>> = match node.find("scales") {
        Some(a) => Some(a.floats.iter().map(|&v| v as f64).collect()),
        None => b
            .optional(node, scales_input)?
            .map(|c| c.values.iter().copied().collect())
            .filter(|v: &Vec<f64>| !v.is_empty()),
    };
    let sizes = if legacy { None } else { b.optional(node, 3)?.map(|c| c.to_ints()) };
    let axes = match node.ints("axes") {
        Some(axes) => axes.iter().map(|&a| axis_of(a, rank)).collect::<Result<Vec<_>, _>>()?,
        None => (0..rank).collect(),
    };
    let mut lens = shape.clone();
    let mut scales = vec![1.0f64; rank];
    match (given, sizes) {
        (Some(given), None) if given.len() == axes.len() => {
            for (&axis, &scale) in axes.iter().zip(&given) {
                scales[axis] = scale;
                lens[axis] = (shape[axis] as f64 * scale).floor() as usize;
            }
        }
        (_, Some(sizes)) if sizes.len() == axes.len() => {
            let wanted: Vec<f64> = axes.iter().zip(&sizes).map(|(&a, &s)| s as f64 / shape[a] as f64).collect();
            let uniform = match node.string("keep_aspect_ratio_policy", "stretch").as_str() {
                "not_larger" => Some(wanted.iter().copied().fold(f64::INFINITY, f64::min)),
                "not_smaller" => Some(wanted.iter().copied().fold(0.0, f64::max)),
                _ => None,
            };
            for (i, &axis) in axes.iter().enumerate() {
                scales[axis] = uniform.unwrap_or(wanted[i]);
                lens[axis] = match uniform {
                    Some(scale) => (scale * shape[axis] as f64).round() as usize,
                    None => usize::try_from(sizes[i]).unwrap_or(0),
                };
            }
        }
        _ => return Err(Fault::Invalid("neither scales nor sizes for its axes".into())),
    }
    if lens.iter().any(|&n| n == 0 || n > 1 << 20) {
        return Err(Fault::Invalid(format!("output shape {lens:?}")));
    }
    if rank < 3 || lens[..2] != shape[..2] {
        return Err(Fault::Unsupported("axes other than height and width".into()));
    }
    let rule = Rule::of(node, legacy)?;
    let x = to_map(b, x)?;
    let spatial = |axis: usize| rule.taps(shape[axis], lens[axis], scales[axis]);
    let h = if rank == 3 { vec![Tap { lo: 0, hi: 0, frac: 0.0 }] } else { spatial(2) };
    let y = b.push(Op::Resize { h, w: spatial(rank - 1) }, &[x])?;
    one(from_map(b, y, rank)?)
}

/// Interpolation and coordinate rules.
pub(in crate::onnx) struct Rule {
    pub linear: bool,
    pub coordinates: String,
    pub nearest: String,
}

impl Rule {
    fn of(node: &NodeProto, legacy: bool) -> Result<Rule, Fault> {
        let mode = node.string("mode", "nearest");
        let default = if legacy { "asymmetric" } else { "half_pixel" };
        let rule = Rule {
            linear: matches!(mode.as_str(), "linear" | "bilinear"),
            coordinates: node.string("coordinate_transformation_mode", default),
            nearest: node.string("nearest_mode", if legacy { "floor" } else { "round_prefer_floor" }),
        };
        let known = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric", "align_corners"];
        if !rule.linear && mode != "nearest" {
            return Err(Fault::Unsupported(format!("mode {mode}")));
        }
        if !known.contains(&rule.coordinates.as_str()) {
            return Err(Fault::Unsupported(format!("coordinate_transformation_mode {}", rule.coordinates)));
        }
        if node.int("antialias", 0) != 0 {
            return Err(Fault::Unsupported("antialias".into()));
        }
        Ok(rule)
    }

    /// Every rule of opset 13, the usual ones first.
    pub(in crate::onnx) fn all() -> impl Iterator<Item = Rule> {
        let coordinates = ["asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners"];
        let rule = |linear, coordinates: &str, nearest: &str| Rule {
            linear,
            coordinates: coordinates.into(),
            nearest: nearest.into(),
        };
        let nearest = coordinates.into_iter().flat_map(move |coordinates| {
            let modes = ["floor", "round_prefer_floor", "round_prefer_ceil", "ceil"];
            modes.map(|mode| rule(false, coordinates, mode))
        });
        nearest.chain(coordinates.map(|coordinates| rule(true, coordinates, "floor")))
    }

    /// One tap per output position of an axis of `n` elements that becomes `m`.
    pub(in crate::onnx) fn taps(&self, n: usize, m: usize, scale: f64) -> Vec<Tap> {
        let last = (n - 1) as f64;
        let source = |i: usize| {
            let i = i as f64;
            match self.coordinates.as_str() {
                // The standard divides by the unrounded output length.
                "align_corners" if m > 1 => i * last / (scale * n as f64 - 1.0),
                "align_corners" => 0.0,
                "asymmetric" => i / scale,
                "pytorch_half_pixel" if m == 1 => 0.0,
                "half_pixel_symmetric" => {
                    let adjustment = m as f64 / (scale * n as f64);
                    n as f64 / 2.0 * (1.0 - adjustment) + (i + 0.5) / scale - 0.5
                }
                _ => (i + 0.5) / scale - 0.5,
            }
        };
        let tap = |i: usize| {
            let at = source(i);
            if self.linear {
                let at = at.clamp(0.0, last);
                let lo = at.floor();
                return Tap { lo: lo as usize, hi: (lo + 1.0).min(last) as usize, frac: (at - lo) as f32 };
            }
            let at = match self.nearest.as_str() {
                "floor" => at.floor(),
                "ceil" => at.ceil(),
                "round_prefer_ceil" => (at + 0.5).floor(),
                _ => (at - 0.5).ceil(),
            };
            let index = at.clamp(0.0, last) as usize;
            Tap { lo: index, hi: index, frac: 0.0 }
        };
        (0..m).map(tap).collect()
    }
}
