//! Operators that move elements: pad, rearrange (transpose, slice, split), concat.

use crate::fixed::{requantize, saturate};
use crate::format::op;

/// Fills the output, then copies the input row by row to where it belongs.
pub(super) fn pad(p: &op::Pad, input: &[i8], output: &mut [i8]) {
    output.fill(p.value);
    let width = (p.in_dims[5] as usize).max(1);
    for (i, row) in input.chunks_exact(width).enumerate() {
        let mut rest = i;
        let mut start = p.before[5] as usize;
        let mut stride = p.out_dims[5] as usize;
        for axis in (0..5).rev() {
            let dim = (p.in_dims[axis] as usize).max(1);
            start += (rest % dim + p.before[axis] as usize) * stride;
            rest /= dim;
            stride *= p.out_dims[axis] as usize;
        }
        if let Some(to) = output.get_mut(start..start + width) {
            to.copy_from_slice(row);
        }
    }
}

/// Strided read, dense write.
pub(super) fn rearrange(r: &op::Rearrange, input: &[i8], output: &mut [i8]) {
    let width = (r.dims[5] as usize).max(1);
    for (i, row) in output.chunks_exact_mut(width).enumerate() {
        let mut rest = i;
        let mut at = r.offset as isize;
        for axis in (0..5).rev() {
            let dim = (r.dims[axis] as usize).max(1);
            at += (rest % dim) as isize * r.strides[axis] as isize;
            rest /= dim;
        }
        let run = usize::try_from(at).ok().filter(|_| r.strides[5] == 1).and_then(|at| input.get(at..at + width));
        if let Some(run) = run {
            row.copy_from_slice(run);
            continue;
        }
        for (j, out) in row.iter_mut().enumerate() {
            let index = at + j as isize * r.strides[5] as isize;
            *out = usize::try_from(index).ok().and_then(|i| input.get(i)).copied().unwrap_or(0);
        }
    }
}

/// One input of a concat: `part.inner` elements of every `inner` of the output. `zero_points` of input and output.
pub(super) fn concat_part(
    part: &op::ConcatInput,
    zero_points: [i32; 2],
    input: &[i8],
    inner: usize,
    output: &mut [i8],
) {
    let [from, to] = zero_points;
    for (from_row, to_row) in input.chunks_exact((part.inner as usize).max(1)).zip(output.chunks_mut(inner.max(1))) {
        for (out, &q) in to_row.iter_mut().zip(from_row) {
            *out = match part.multiplier {
                0 => q,
                multiplier => saturate(requantize(q as i32 - from, multiplier, part.shift as u8), to, i8::MIN, i8::MAX),
            };
        }
    }
}
