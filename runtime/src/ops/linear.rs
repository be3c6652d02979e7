//! Fully connected layers.

use super::Channels;
use crate::format::op;
use crate::kernels::Output;
use crate::kernels::generic::Weights;

/// `output[row, n] = stage(bias[n] + sum_k (input[row, k] - zero_point) * weight[n, k])`.
pub(super) fn linear<W: Weights>(
    l: &op::Linear,
    input: &[i8],
    zero_point: i16,
    weights: W,
    channels: &Channels<'_>,
    to: Output,
    output: &mut [i8],
) {
    let (k, n) = (l.k as usize, l.n as usize);
    for (row, out) in input.chunks_exact(k.max(1)).zip(output.chunks_exact_mut(n.max(1))) {
        for (i, out) in out.iter_mut().enumerate() {
            let (bias, multiplier, shift) = channels.get(i);
            let acc = bias.wrapping_add(weights.dot(i * k, row, zero_point));
            *out = to.stage(acc, multiplier, shift);
        }
    }
}
