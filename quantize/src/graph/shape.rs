//! The shape of every operator's output.

use super::{Op, Window};

/// What does not fit, and where.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("node '{node}' ({op}): {what}")]
pub struct ShapeError {
    /// Name of the node, empty until [`ShapeError::at`].
    pub node: String,
    /// Operator name.
    pub op: &'static str,
    /// The mismatch, with the shapes.
    pub what: String,
}

impl ShapeError {
    /// The same error, told where it happened.
    pub fn at(self, node: &str) -> ShapeError {
        ShapeError { node: node.into(), ..self }
    }
}

/// Output shape of `op` on inputs of these shapes.
pub fn infer(op: &Op, inputs: &[&[usize]]) -> Result<Vec<usize>, ShapeError> {
    let fail = |what: String| ShapeError { node: String::new(), op: op.name(), what };
    let arity = match op {
        Op::Const(_) => 0..=0,
        Op::Binary { .. } => 2..=2,
        Op::Concat { .. } => 1..=usize::MAX,
        _ => 1..=1,
    };
    if !arity.contains(&inputs.len()) {
        return Err(fail(format!("{} inputs", inputs.len())));
    }
    let x = inputs.first().copied().unwrap_or(&[]);
    let nhwc = || match x {
        &[1, h, w, c] => Ok([h, w, c]),
        _ => Err(fail(format!("input shape {x:?} is not [1, h, w, c]"))),
    };
    let channels = |c: usize| match x.last() {
        Some(&last) if last == c => Ok(x.to_vec()),
        _ => Err(fail(format!("{c} channels of parameters for input shape {x:?}"))),
    };
    match op {
        Op::Const(array) => Ok(array.shape().to_vec()),
        Op::Conv2d { window, groups, weight, bias, .. } => {
            let [h, w, c] = nhwc()?;
            let oc = conv_weight(weight.shape(), c, *groups, window, bias.len()).map_err(fail)?;
            let [oh, ow] = window_output([h, w], window).map_err(fail)?;
            Ok(vec![1, oh, ow, oc])
        }
        Op::ConvTranspose2d { window, output_padding, groups, weight, bias, .. } => {
            let [h, w, c] = nhwc()?;
            let oc = conv_weight(weight.shape(), c, *groups, window, bias.len()).map_err(fail)?;
            let axis = |i: usize, n: usize| {
                let full = n.saturating_sub(1) * window.stride[i]
                    + (window.kernel[i] - 1) * window.dilation[i]
                    + 1
                    + output_padding[i];
                full.checked_sub(window.pad[i] + window.pad[i + 2])
                    .filter(|&n| n > 0)
                    .ok_or_else(|| fail(format!("padding {:?} leaves nothing of {full} elements", window.pad)))
            };
            Ok(vec![1, axis(0, h)?, axis(1, w)?, oc])
        }
        Op::Linear { weight, bias, .. } => match (weight.shape(), x.split_last()) {
            (&[n, k], Some((&last, rest))) if last == k && bias.len() == n => Ok([rest, &[n]].concat()),
            (w, _) => Err(fail(format!("input shape {x:?}, weight {w:?}, bias [{}]", bias.len()))),
        },
        Op::BatchNorm { gamma, beta, mean, var, .. } => {
            if [beta.len(), mean.len(), var.len()].iter().any(|&n| n != gamma.len()) {
                return Err(fail("parameters of different lengths".into()));
            }
            channels(gamma.len())
        }
        Op::Affine { scale, bias, .. } => {
            if scale.len() != bias.len() {
                return Err(fail("scale and bias of different lengths".into()));
            }
            channels(scale.len())
        }
        Op::PRelu { slope } => channels(slope.len()),
        Op::Binary { .. } => {
            broadcast(x, inputs[1]).ok_or_else(|| fail(format!("{x:?} and {:?} do not broadcast", inputs[1])))
        }
        Op::Map(_) => Ok(x.to_vec()),
        Op::MaxPool(window) | Op::AveragePool { window, .. } => {
            let [h, w, c] = nhwc()?;
            let [oh, ow] = window_output([h, w], window).map_err(fail)?;
            Ok(vec![1, oh, ow, c])
        }
        Op::Mean { axes } => {
            let mut shape = x.to_vec();
            for &axis in axes {
                *shape.get_mut(axis).ok_or_else(|| fail(format!("axis {axis} of shape {x:?}")))? = 1;
            }
            Ok(shape)
        }
        Op::Pad { before, after, .. } => {
            if before.len() != x.len() || after.len() != x.len() {
                return Err(fail(format!("padding of {} axes for shape {x:?}", before.len())));
            }
            Ok((0..x.len()).map(|i| before[i] + x[i] + after[i]).collect())
        }
        Op::Concat { axis } => {
            let mut shape = x.to_vec();
            for other in &inputs[1..] {
                let fits = other.len() == x.len() && (0..x.len()).all(|i| i == *axis || other[i] == x[i]);
                if !fits || *axis >= x.len() {
                    return Err(fail(format!("{x:?} and {other:?} along axis {axis}")));
                }
                shape[*axis] += other[*axis];
            }
            Ok(shape)
        }
        Op::Slice { start, step, len } => {
            let fits = [start.len(), step.len(), len.len()].iter().all(|&n| n == x.len())
                && (0..x.len()).all(|i| {
                    let last = start[i] as isize + step[i] * (len[i] as isize - 1);
                    len[i] > 0 && start[i] < x[i] && (0..x[i] as isize).contains(&last)
                });
            fits.then(|| len.clone())
                .ok_or_else(|| fail(format!("start {start:?} step {step:?} length {len:?} of shape {x:?}")))
        }
        Op::Reshape { shape } => {
            if shape.iter().product::<usize>() != x.iter().product::<usize>() {
                return Err(fail(format!("{x:?} to {shape:?}")));
            }
            Ok(shape.clone())
        }
        Op::Transpose { perm } => {
            let mut seen = vec![false; x.len()];
            perm.iter().for_each(|&p| seen.get_mut(p).into_iter().for_each(|s| *s = true));
            if perm.len() != x.len() || seen.contains(&false) {
                return Err(fail(format!("permutation {perm:?} of shape {x:?}")));
            }
            Ok(perm.iter().map(|&p| x[p]).collect())
        }
        Op::Resize { h: rows, w: columns } => {
            let [h, w, c] = nhwc()?;
            let inside = |taps: &[super::Tap], n| taps.iter().all(|t| t.lo < n && t.hi < n);
            if rows.is_empty() || columns.is_empty() || !inside(rows, h) || !inside(columns, w) {
                return Err(fail(format!("taps outside of shape {x:?}")));
            }
            Ok(vec![1, rows.len(), columns.len(), c])
        }
        Op::Softmax { axis } => {
            if *axis >= x.len() {
                return Err(fail(format!("axis {axis} of shape {x:?}")));
            }
            Ok(x.to_vec())
        }
    }
}

/// NumPy broadcasting of two shapes, none if they do not match.
pub fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |j| s[j]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (m, n) if m == n || n == 1 => Some(m),
            (1, n) => Some(n),
            _ => None,
        })
        .collect()
}

/// Output `[h, w]` of a window that slides over `[h, w]`.
fn window_output(input: [usize; 2], window: &Window) -> Result<[usize; 2], String> {
    let axis = |i: usize| {
        if window.kernel[i] == 0 || window.stride[i] == 0 || window.dilation[i] == 0 {
            return Err(format!("a zero in {window:?}"));
        }
        let span = (window.kernel[i] - 1) * window.dilation[i] + 1;
        let padded = input[i] + window.pad[i] + window.pad[i + 2];
        let room = padded.checked_sub(span).ok_or_else(|| format!("a kernel of {span} over {padded} elements"))?;
        Ok(room / window.stride[i] + 1)
    };
    Ok([axis(0)?, axis(1)?])
}

/// Checks a weight `[oc, kh, kw, ic / groups]` and returns `oc`.
fn conv_weight(weight: &[usize], c: usize, groups: usize, window: &Window, bias: usize) -> Result<usize, String> {
    match *weight {
        [oc, kh, kw, ic]
            if groups > 0 && ic * groups == c && oc % groups == 0 && [kh, kw] == window.kernel && bias == oc =>
        {
            Ok(oc)
        }
        _ => Err(format!("weight {weight:?}, bias [{bias}], {groups} groups, {c} input channels")),
    }
}
