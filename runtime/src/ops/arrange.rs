//! Operators that move elements: pad, rearrange (transpose, slice, split), concat.

use crate::fixed::{requantize, saturate};
use crate::format::op;

/// The outer five of six axes, walked from the last to the first without a division; `at` is where the steps of all axes lead.
struct Walk {
    dims: [usize; 5],
    steps: [isize; 5],
    index: [usize; 5],
    at: isize,
}

impl Walk {
    fn new(dims: [usize; 5], steps: [isize; 5], start: isize) -> Walk {
        Walk { dims, steps, index: [0; 5], at: start }
    }

    /// To the next position; after the last it begins again. (Wrapping: along an axis of length 1 a step may be anything.)
    fn advance(&mut self) {
        for axis in (0..5).rev() {
            self.index[axis] += 1;
            self.at = self.at.wrapping_add(self.steps[axis]);
            if self.index[axis] < self.dims[axis] {
                return;
            }
            self.at = self.at.wrapping_sub(self.steps[axis].wrapping_mul(self.index[axis] as isize));
            self.index[axis] = 0;
        }
    }
}

/// Fills the output, then copies the input row by row to where it belongs.
pub(super) fn pad(p: &op::Pad, input: &[i8], output: &mut [i8]) {
    output.fill(p.value);
    let width = (p.in_dims[5] as usize).max(1);
    let mut steps = [0; 5];
    let (mut start, mut step) = (p.before[5] as isize, p.out_dims[5] as isize);
    for axis in (0..5).rev() {
        steps[axis] = step;
        start = (p.before[axis] as isize).wrapping_mul(step).wrapping_add(start);
        step = step.wrapping_mul(p.out_dims[axis] as isize);
    }
    let mut walk = Walk::new(core::array::from_fn(|axis| p.in_dims[axis] as usize), steps, start);
    for row in input.chunks_exact(width) {
        if let Some(to) = usize::try_from(walk.at).ok().and_then(|at| output.get_mut(at..at + width)) {
            to.copy_from_slice(row);
        }
        walk.advance();
    }
}

/// Strided read, dense write.
pub(super) fn rearrange(r: &op::Rearrange, input: &[i8], output: &mut [i8]) {
    let width = (r.dims[5] as usize).max(1);
    let steps = core::array::from_fn(|axis| r.strides[axis] as isize);
    let mut walk = Walk::new(core::array::from_fn(|axis| r.dims[axis] as usize), steps, r.offset as isize);
    for row in output.chunks_exact_mut(width) {
        let run = usize::try_from(walk.at).ok().filter(|_| r.strides[5] == 1);
        if let Some(run) = run.and_then(|at| input.get(at..at + width)) {
            row.copy_from_slice(run);
        } else {
            for (j, out) in row.iter_mut().enumerate() {
                let index = walk.at + j as isize * r.strides[5] as isize;
                *out = usize::try_from(index).ok().and_then(|i| input.get(i)).copied().unwrap_or(0);
            }
        }
        walk.advance();
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
