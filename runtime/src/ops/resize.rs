//! Separable interpolation over rows and columns; the taps come from the file.

use crate::format::op;

/// Pixel `(row, column)` of the input.
#[inline(always)]
fn pixel<'a>(r: &op::Resize, input: &'a [i8], row: u16, column: u16) -> &'a [i8] {
    let start = (row as usize * r.in_w as usize + column as usize) * r.c as usize;
    input.get(start..start + r.c as usize).unwrap_or(&[])
}

/// One source pixel per output pixel.
pub(super) fn nearest(r: &op::Resize, rows: &[u16], columns: &[u16], input: &[i8], output: &mut [i8]) {
    let sources = rows.iter().flat_map(|&row| columns.iter().map(move |&column| (row, column)));
    for (out, (row, column)) in output.chunks_exact_mut(r.c.max(1) as usize).zip(sources) {
        out.iter_mut().zip(pixel(r, input, row, column)).for_each(|(out, &q)| *out = q);
    }
}

/// Four source pixels per output pixel; weights are products of two 11-bit fractions.
pub(super) fn bilinear(r: &op::Resize, rows: &[u16], columns: &[u16], input: &[i8], output: &mut [i8]) {
    let taps = |table| <[u16]>::chunks_exact(table, 3);
    let sources = taps(rows).flat_map(|row| taps(columns).map(move |column| (row, column)));
    for (out, (row, column)) in output.chunks_exact_mut(r.c.max(1) as usize).zip(sources) {
        let (&[top, bottom, v], &[left, right, u]) = (row, column) else { return };
        let (v, u) = (v as i32, u as i32);
        let corners = [
            (pixel(r, input, top, left), (2048 - v) * (2048 - u)),
            (pixel(r, input, top, right), (2048 - v) * u),
            (pixel(r, input, bottom, left), v * (2048 - u)),
            (pixel(r, input, bottom, right), v * u),
        ];
        for (i, out) in out.iter_mut().enumerate() {
            let sum: i32 = corners.iter().map(|(p, weight)| p.get(i).map_or(0, |&q| q as i32) * weight).sum();
            *out = ((sum + (1 << 21)) >> 22) as i8;
        }
    }
}
