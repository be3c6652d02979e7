//! Pooling windows and means.

use super::Channels;
use super::conv::Axis;
use crate::format::op;
use crate::kernels::{self, Output, Set};

/// Calls `f` with the runs of the window of output pixel `(y, x)` that lie inside of the input, one per kernel row: index (of channel 0) of the
/// first position, and how many follow `dilation_w * c` apart.
#[inline(always)]
fn for_each_run(p: &op::Pool, y: usize, x: usize, mut f: impl FnMut(usize, usize)) {
    let (rows, columns) = Axis::of_pool(p);
    let (row_taps, top) = rows.taps(y);
    let (column_taps, left) = columns.taps(x);
    for i in 0..row_taps.len() {
        f(((top + i * rows.dilation) * columns.input + left) * p.c as usize, column_taps.len());
    }
}

/// Output pixels as `(y, x, channels)`.
fn pixels<'a>(p: &op::Pool, output: &'a mut [i8]) -> impl Iterator<Item = (usize, usize, &'a mut [i8])> {
    let width = p.out_w.max(1) as usize;
    output.chunks_exact_mut(p.c.max(1) as usize).enumerate().map(move |(i, out)| (i / width, i % width, out))
}

/// Largest value; a window that lies wholly outside gives -128.
pub(super) fn max(p: &op::Pool, set: Set, input: &[i8], output: &mut [i8]) {
    #[cfg(pith_desktop)]
    if let Some(table) = set.table {
        return (table.max_pool)(p, input, output);
    }
    let _ = set;
    for (y, x, out) in pixels(p, output) {
        out.fill(i8::MIN);
        for_each_run(p, y, x, |start, count| {
            kernels::max_rows(input.get(start..).unwrap_or(&[]), p.dilation_w as usize * p.c as usize, count, out);
        });
        out.iter_mut().for_each(|q| *q = (*q).clamp(p.act_min, p.act_max));
    }
}

/// Channels summed together.
const LANES: usize = 32;

/// Mean of the inside part, or of the whole window if `channels` has one entry.
pub(super) fn average(
    p: &op::Pool,
    set: Set,
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
            let lanes = acc.get_mut(..out.len()).unwrap_or(&mut []);
            for_each_run(p, y, x, |start, run| {
                let input = input.get(start + block * LANES..).unwrap_or(&[]);
                set.sum_rows(input, p.dilation_w as usize * p.c as usize, run, lanes);
                count += run;
            });
            let entry = if channels.shift.len() == 1 { 0 } else { count.saturating_sub(1) };
            let (_, multiplier, shift) = channels.get(entry);
            let zero = zero_point.wrapping_mul(count as i32);
            out.iter_mut().zip(acc).for_each(|(out, acc)| *out = to.stage(acc.wrapping_sub(zero), multiplier, shift));
        }
    }
}

/// Mean over the middle axis of `[outer, reduce, inner]`.
pub(super) fn mean(m: &op::Mean, set: Set, input: &[i8], zero_point: i32, to: Output, output: &mut [i8]) {
    let (reduce, inner) = (m.reduce as usize, (m.inner as usize).max(1));
    for (map, out) in input.chunks_exact((reduce * inner).max(1)).zip(output.chunks_exact_mut(inner)) {
        for (block, out) in out.chunks_mut(LANES).enumerate() {
            let mut acc = [0i32; LANES];
            let lanes = acc.get_mut(..out.len()).unwrap_or(&mut []);
            set.sum_rows(map.get(block * LANES..).unwrap_or(&[]), inner, reduce, lanes);
            let zero = zero_point.wrapping_mul(reduce as i32);
            let stage = |acc: i32| to.stage(acc.wrapping_sub(zero), m.multiplier, m.shift as u8);
            out.iter_mut().zip(acc).for_each(|(out, acc)| *out = stage(acc));
        }
    }
}
