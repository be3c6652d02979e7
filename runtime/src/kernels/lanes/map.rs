//! Maps: what kernels read instead of an input. And raw inputs to int8.

#![allow(unsafe_code)]

use super::Simd;
use crate::format::tensor::Port;

/// Elements of a map that are blanked together.
const BLANK: usize = 256;

/// Bytes behind a map that kernels may read.
pub const SLACK: usize = 256;

/// A bordered copy of an input.
#[derive(Clone, Copy, Debug)]
pub struct Map {
    /// Rows and pixels of a row, borders included.
    pub rows: usize,
    #[allow(missing_docs)]
    pub columns: usize,
    /// Elements of a pixel: channels with their padding.
    pub pitch: usize,
    /// The input.
    pub in_h: usize,
    #[allow(missing_docs)]
    pub in_w: usize,
    #[allow(missing_docs)]
    pub channels: usize,
    /// Rows and pixels of border before it.
    pub top: usize,
    #[allow(missing_docs)]
    pub left: usize,
    /// What borders hold.
    pub zero_point: i8,
}

impl Map {
    /// Bytes with slack.
    pub fn bytes(&self, element: usize) -> usize {
        self.rows * self.columns * self.pitch * element + SLACK
    }
}

/// Copies an input into its map; false if a length is wrong. Padding of channels is not written.
#[inline(always)]
pub fn fill<S: Simd>(map: &Map, input: &[i8], to: &mut [u8]) -> bool {
    match S::WIDE {
        true => fill_with(map, input, to, 2, |from, to: &mut [u8]| {
            for (to, &q) in to.chunks_exact_mut(2).zip(from) {
                to.copy_from_slice(&(q as i16).to_le_bytes());
            }
        }),
        false => fill_with(map, input, to, 1, |from, to: &mut [u8]| {
            to.iter_mut().zip(from).for_each(|(to, &q)| *to = (q as u8).wrapping_add(S::OFFSET as u8));
        }),
    }
    .is_some()
}

/// [`fill`] with a copy of elements of `element` bytes; none if a length is wrong.
#[inline(always)]
pub(in crate::kernels) fn fill_with(
    map: &Map,
    input: &[i8],
    to: &mut [u8],
    element: usize,
    copy: impl Fn(&[i8], &mut [u8]),
) -> Option<()> {
    let (pixel, row) = (map.pitch * element, map.columns * map.pitch * element);
    let to = to.get_mut(..map.rows * row)?;
    if [map.rows, map.columns] != [map.in_h, map.in_w] {
        // All of it in one go: borders are short.
        to.chunks_mut(BLANK * element).for_each(|to| copy(&[map.zero_point; BLANK], to));
    }
    let (in_row, inside) = (map.in_w * map.channels, to.get_mut(map.top * row..)?);
    for (to, from) in inside.chunks_exact_mut(row.max(1)).zip(input.chunks_exact(in_row.max(1))).take(map.in_h) {
        let to = to.get_mut(map.left * pixel..)?.get_mut(..map.in_w * pixel)?;
        if map.pitch == map.channels {
            copy(from, to);
        } else {
            for (to, from) in to.chunks_exact_mut(pixel).zip(from.chunks_exact(map.channels)) {
                copy(from, to.get_mut(..map.channels * element)?);
            }
        }
    }
    Some(())
}

/// [`Port::quantize`] of every value, without branches.
#[inline(always)]
pub fn quantize(port: &Port, raw: &[f32], to: &mut [i8]) {
    let (scale, zero_point) = (port.scale as f64, port.zero_point.clamp(-65_536, 65_536));
    for (to, &raw) in to.iter_mut().zip(raw) {
        let steps = raw as f64 / scale + 0.5;
        let steps = if steps.is_nan() { 0.0 } else { steps.clamp(-65_536.0, 65_536.0) };
        // SAFETY: the value is a number between -65,536 and 65,536.
        let truncated: i32 = unsafe { steps.to_int_unchecked() };
        let floor = truncated - i32::from(steps < truncated as f64);
        *to = (floor + zero_point).clamp(-128, 127) as i8;
    }
}
