//! Integer weights, biases and output stages.

use super::{Granularity, QParams, QWeights, QuantOptions, Rounding, SchemeError, stage_bias, stage_multiplier};
use crate::graph::{Node, Op};
use ndarray::{ArrayD, Axis, IxDyn};

/// The integers of a node, none if it has no weights. `mean` is its input's mean per channel, for bias correction.
pub(super) fn quantize(
    node: &Node,
    params: &[QParams],
    mean: Option<&[f32]>,
    options: &QuantOptions,
    rounding: &Rounding,
) -> Result<Option<QWeights>, SchemeError> {
    let (weight, bias): (ArrayD<f32>, &[f32]) = match &node.op {
        Op::Conv2d { weight, bias, .. }
        | Op::ConvTranspose2d { weight, bias, .. }
        | Op::Linear { weight, bias, .. } => (weight.clone(), bias),
        Op::Affine { scale, bias, .. } => (ArrayD::from_shape_fn(IxDyn(&[scale.len()]), |i| scale[i[0]]), bias),
        _ => return Ok(None),
    };
    if weight.iter().chain(bias).any(|v| !v.is_finite()) {
        return Err(SchemeError::NotFinite { node: node.name.clone() });
    }
    let (bits, granularity) = options.of(node);
    let rounded =
        if options.is_rounded(bits) || rounding.is_given() { rounding.of(node, bits, granularity)? } else { None };
    // Biases of weights that were fitted too hold their mean error already.
    let fitted = rounded.as_ref().and_then(|r| r.bias.clone());
    let mean = if fitted.is_some() { None } else { mean };
    let bias = fitted.as_deref().unwrap_or(bias);
    let limit = ((1i32 << (bits - 1)) - 1) as f64;
    let (from, to) = (params[node.inputs[0].0], params[node.output.0]);
    let filters: Vec<Vec<f32>> = weight.axis_iter(Axis(0)).map(|f| f.iter().copied().collect()).collect();
    let mut scales: Vec<f64> = match granularity {
        _ if rounded.is_some() => rounded.iter().flat_map(|r| r.scales.iter().map(|&s| s.into())).collect(),
        Granularity::Channel => filters.iter().map(|f| best_scale(f, limit)).collect(),
        Granularity::Tensor => {
            let all: Vec<f32> = weight.iter().copied().collect();
            vec![best_scale(&all, limit); filters.len()]
        }
    };
    // A bias that does not fit 30 bits at this scale needs a coarser one.
    let mut coarser = vec![false; scales.len()];
    for ((scale, &b), coarser) in scales.iter_mut().zip(bias).zip(&mut coarser) {
        let least = b.abs() as f64 / (from.scale as f64 * (1u32 << 30) as f64);
        (*coarser, *scale) = (least > *scale, scale.max(least));
    }
    let mut q = QWeights {
        bits,
        values: ArrayD::zeros(weight.raw_dim()),
        scales: Vec::new(),
        bias: Vec::new(),
        multiplier: Vec::new(),
        shift: Vec::new(),
    };
    let group_channels = input_channels(&node.op, &weight);
    for (oc, mut values) in q.values.axis_iter_mut(Axis(0)).enumerate() {
        // The stored scale is a float; the integers are made for exactly that one.
        let scale = scales[oc] as f32 as f64;
        let mut correction = 0.0;
        let known = rounded.as_ref().filter(|_| !coarser[oc]).map(|r| r.values.index_axis(Axis(0), oc));
        let mut known = known.iter().flat_map(|values| values.iter());
        for (i, (value, &w)) in values.iter_mut().zip(&filters[oc]).enumerate() {
            let nearest = || (w as f64 / scale).round().clamp(-limit, limit) as i8;
            *value = known.next().copied().unwrap_or_else(nearest);
            if let Some(&mean) = mean.and_then(|m| m.get(group_channels(oc, i))) {
                correction += (*value as f64 * scale - w as f64) * mean as f64;
            }
        }
        let step = from.scale as f64 * scale;
        let widest = (-128 - from.zero_point).abs().max((127 - from.zero_point).abs()) as i64;
        let sum: i64 = values.iter().map(|&v| (v as i64).abs() * widest).sum();
        let room = (i32::MAX as i64 - sum).max(0) as f64;
        q.scales.push(scale as f32);
        let (m, shift) = stage_multiplier(step / to.scale as f64);
        q.bias.push(stage_bias((bias[oc] as f64 - correction) / step, shift).clamp(-room, room) as i32);
        q.multiplier.push(m);
        q.shift.push(shift);
    }
    Ok(Some(q))
}

/// Input channel of weight `i` of filter `oc`.
fn input_channels(op: &Op, weight: &ArrayD<f32>) -> impl Fn(usize, usize) -> usize {
    let outputs = weight.shape()[0];
    let per_group = weight.shape().last().copied().unwrap_or(1).max(1);
    let groups = match op {
        Op::Conv2d { groups, .. } | Op::ConvTranspose2d { groups, .. } => *groups,
        Op::Affine { .. } => return Box::new(|oc, _| oc) as Box<dyn Fn(usize, usize) -> usize>,
        _ => 1,
    };
    // Transposed convolutions use a tap only at some positions; the mean of what they add is left alone.
    let known = !matches!(op, Op::ConvTranspose2d { .. });
    Box::new(move |oc, i| if known { oc * groups / outputs * per_group + i % per_group } else { usize::MAX })
}

/// The scale with the least squared error: the maximum at eight bits, else the best of a grid of clips.
fn best_scale(values: &[f32], limit: f64) -> f64 {
    let max = values.iter().fold(0f32, |m, v| m.max(v.abs())) as f64;
    if max < 1e-30 {
        return 1.0;
    }
    if limit > 100.0 {
        return max / limit;
    }
    let error = |scale: f64| -> f64 {
        values.iter().map(|&w| (w as f64 - (w as f64 / scale).round().clamp(-limit, limit) * scale).powi(2)).sum()
    };
    let grid = (0..70).map(|i| max * (1.0 - 0.01 * i as f64) / limit);
    grid.min_by(|a, b| error(*a).total_cmp(&error(*b))).unwrap_or(max / limit)
}
