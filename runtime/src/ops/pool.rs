//! Pooling windows and means.

use super::Channels;
use crate::format::op;
use crate::kernels::Output;

/// Calls `f` with the input index (of channel 0) of every position of the window of output pixel `(y, x)` that lies inside.
#[inline(always)]
fn for_each_inside(p: &op::Pool, y: usize, x: usize, mut f: impl FnMut(usize)) {
    for ky in 0..p.kernel_h as usize {
        let row = y * p.stride_h as usize + ky * p.dilation_h as usize;
        let Some(row) = row.checked_sub(p.pad_top as usize).filter(|&row| row < p.in_h as usize) else { continue };
        for kx in 0..p.kernel_w as usize {
            let column = x * p.stride_w as usize + kx * p.dilation_w as usize;
            match column.checked_sub(p.pad_left as usize) {
                Some(column) if column < p.in_w as usize => f((row * p.in_w as usize + column) * p.c as usize),
                _ => {}
            }
        }
    }
}

/// Output pixels as `(y, x, channels)`.
fn pixels<'a>(p: &op::Pool, output: &'a mut [i8]) -> impl Iterator<Item = (usize, usize, &'a mut [i8])> {
    let width = p.out_w.max(1) as usize;
    output.chunks_exact_mut(p.c.max(1) as usize).enumerate().map(move |(i, out)| (i / width, i % width, out))
}

/// Largest value; a window that lies wholly outside gives -128.
pub(super) fn max(p: &op::Pool, input: &[i8], output: &mut [i8]) {
    for (y, x, out) in pixels(p, output) {
        out.fill(i8::MIN);
        for_each_inside(p, y, x, |start| {
            let pixel = input.get(start..start + p.c as usize).unwrap_or(&[]);
            out.iter_mut().zip(pixel).for_each(|(out, &q)| *out = (*out).max(q));
        });
        out.iter_mut().for_each(|q| *q = (*q).clamp(p.act_min, p.act_max));
    }
}

/// Channels summed together.
const LANES: usize = 32;

/// Mean of the inside part, or of the whole window if `channels` has one entry.
pub(super) fn average(
    p: &op::Pool,
    input: &[i8],
    zero_point: i32,
    channels: &Channels<'_>,
    to: Output,
    output: &mut [i8],
) {
    for (y, x, out) in pixels(p, output) {
        for (block, out) in out.chunks_mut(LANES).enumerate() {
            let mut acc = [0i32; LANES];
            let mut count = 0usize;
            for_each_inside(p, y, x, |start| {
                let start = start + block * LANES;
                let pixel = input.get(start..start + out.len()).unwrap_or(&[]);
                acc.iter_mut().zip(pixel).for_each(|(acc, &q)| *acc += q as i32 - zero_point);
                count += 1;
            });
            let entry = if channels.shift.len() == 1 { 0 } else { count.saturating_sub(1) };
            let (_, multiplier, shift) = channels.get(entry);
            out.iter_mut().zip(acc).for_each(|(out, acc)| *out = to.stage(acc, multiplier, shift));
        }
    }
}

/// Mean over the middle axis of `[outer, reduce, inner]`.
pub(super) fn mean(m: &op::Mean, input: &[i8], zero_point: i32, to: Output, output: &mut [i8]) {
    let (reduce, inner) = (m.reduce as usize, (m.inner as usize).max(1));
    for (map, out) in input.chunks_exact((reduce * inner).max(1)).zip(output.chunks_exact_mut(inner)) {
        for (block, out) in out.chunks_mut(LANES).enumerate() {
            let mut acc = [0i32; LANES];
            for row in map.chunks_exact(inner) {
                let row = row.get(block * LANES..).unwrap_or(&[]);
                acc.iter_mut().zip(row).for_each(|(acc, &q)| *acc += q as i32 - zero_point);
            }
            out.iter_mut().zip(acc).for_each(|(out, acc)| *out = to.stage(acc, m.multiplier, m.shift as u8));
        }
    }
}
