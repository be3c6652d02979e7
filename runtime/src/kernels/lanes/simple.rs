//! Sums of two tensors, pools and sums of rows.

#![allow(unsafe_code, clippy::missing_safety_doc)]

use super::{Simd, clamped};
use crate::format::op;
use crate::kernels::{Memory, Output, Sum, generic};
use crate::ops::Axis;

/// See [`crate::kernels::generic::add`]. A multiplier `m` is `low + high * 2^15`; pairs of operands, as `q + 128`, are multiplied by both parts at once.
///
/// # Safety
/// That of [`Simd`].
#[inline(always)]
pub unsafe fn add<S: Simd>(sum: &Sum, memory: Memory<'_>, rhs: &[i8]) {
    let (lhs, output, len): (*const i8, *mut i8, usize) = match memory {
        Memory::InPlace(data) => (data.as_ptr(), data.as_mut_ptr(), data.len().min(rhs.len())),
        Memory::Apart(lhs, output) => {
            let len = output.len().min(lhs.len()).min(rhs.len());
            (lhs.as_ptr(), output.as_mut_ptr(), len)
        }
    };
    let vector = 4 * S::LANES;
    // SAFETY: `len` elements of all three can be accessed; whole vectors below it, and the rest through buffers of a vector.
    unsafe {
        let adder = Adder::<S>::new(sum);
        let (lhs, right, output) = (lhs.cast::<u8>(), rhs.as_ptr().cast::<u8>(), output.cast::<u8>());
        let mut at = 0;
        while at + vector <= len {
            adder.step(lhs.add(at), right.add(at), output.add(at));
            at += vector;
        }
        if at < len {
            let mut buffers = [[0u8; 64]; 3];
            core::ptr::copy_nonoverlapping(lhs.add(at), buffers[0].as_mut_ptr(), len - at);
            core::ptr::copy_nonoverlapping(right.add(at), buffers[1].as_mut_ptr(), len - at);
            let [a, b, c] = buffers.each_mut().map(|buffer| buffer.as_mut_ptr());
            adder.step(a, b, c);
            core::ptr::copy_nonoverlapping(c, output.add(at), len - at);
        }
    }
}

/// The constants of an addition in vectors.
struct Adder<S: Simd> {
    low: S::V,
    high: S::V,
    constant: S::V,
    shift: S::V,
    zero_point: S::V,
    to: Output,
}

impl<S: Simd> Adder<S> {
    /// # Safety
    /// That of [`Simd`].
    #[inline(always)]
    unsafe fn new(sum: &Sum) -> Adder<S> {
        let (lhs, rhs) = (sum.lhs_multiplier, sum.rhs_multiplier);
        let offset = lhs.wrapping_add(rhs).wrapping_mul(-128);
        // SAFETY: by this function's contract.
        unsafe {
            Adder {
                low: S::splat(lhs & 0x7FFF | (rhs & 0x7FFF) << 16),
                high: S::splat(lhs >> 15 & 0xFFFF | rhs >> 15 << 16),
                constant: S::splat(sum.constant.wrapping_add(offset)),
                shift: S::splat(sum.shift as i32),
                zero_point: S::splat(sum.to.zero_point),
                to: sum.to,
            }
        }
    }

    /// # Safety
    /// A vector of bytes can be read at `lhs` and `rhs` and written at `out`.
    #[inline(always)]
    unsafe fn step(&self, lhs: *const u8, rhs: *const u8, out: *mut u8) {
        // SAFETY: by this function's contract.
        unsafe {
            let (sign, zero) = (S::splat(0x8080_8080u32 as i32), S::splat(0));
            let (lhs, rhs) = (S::xor(S::load(lhs), sign), S::xor(S::load(rhs), sign));
            let (a, b) = (S::zip8::<false>(lhs, zero), S::zip8::<true>(lhs, zero));
            let (c, d) = (S::zip8::<false>(rhs, zero), S::zip8::<true>(rhs, zero));
            let quad = [
                self.one(S::zip16::<false>(a, c)),
                self.one(S::zip16::<true>(a, c)),
                self.one(S::zip16::<false>(b, d)),
                self.one(S::zip16::<true>(b, d)),
            ];
            S::store(clamped::<S>(S::narrow(quad), self.to), out);
        }
    }

    /// # Safety
    /// That of [`Simd`].
    #[inline(always)]
    unsafe fn one(&self, pairs: S::V) -> S::V {
        // SAFETY: by this function's contract.
        unsafe {
            let high = S::shl(S::madd(pairs, self.high), S::splat(15));
            let acc = S::add(S::add(S::madd(pairs, self.low), high), self.constant);
            S::add(S::sra(acc, self.shift), self.zero_point)
        }
    }
}

/// See [`crate::kernels::generic::sum_rows`]; sums of a block of channels stay in registers.
#[inline(always)]
pub fn sum_rows(input: &[i8], step: usize, rows: usize, acc: &mut [i32]) {
    const BLOCK: usize = 32;
    let mut start = 0;
    let mut blocks = acc.chunks_exact_mut(BLOCK);
    for block in &mut blocks {
        let mut sums = [0i32; BLOCK];
        for row in 0..rows {
            let Some(row) = input.get(row * step + start..).and_then(|row| row.first_chunk::<BLOCK>()) else { break };
            for (sum, &q) in sums.iter_mut().zip(row) {
                *sum = sum.wrapping_add(q as i32);
            }
        }
        for (acc, sum) in block.iter_mut().zip(sums) {
            *acc = acc.wrapping_add(sum);
        }
        start += BLOCK;
    }
    generic::sum_rows(input.get(start..).unwrap_or(&[]), step, rows, blocks.into_remainder());
}

/// See [`crate::ops`]: a whole maximum pool. Blocks of 64, 16 and 8 channels, then single ones.
#[inline(always)]
pub fn max_pool(p: &op::Pool, input: &[i8], output: &mut [i8]) {
    let channels = (p.c as usize).max(1);
    let (rows, columns) = Axis::of_pool(p);
    for (pixel, out) in output.chunks_exact_mut(channels).enumerate() {
        let (row_taps, top) = rows.taps(pixel / (p.out_w as usize).max(1));
        let (column_taps, left) = columns.taps(pixel % (p.out_w as usize).max(1));
        let window = Window {
            input,
            start: (top * columns.input + left) * channels,
            rows: row_taps.len(),
            row_step: rows.dilation * columns.input * channels,
            columns: column_taps.len(),
            column_step: columns.dilation * channels,
        };
        let rest = window.blocks::<64>(0, out, p);
        let rest = window.blocks::<16>(channels - rest.len(), rest, p);
        let rest = window.blocks::<8>(channels - rest.len(), rest, p);
        window.blocks::<1>(channels - rest.len(), rest, p);
    }
}

/// What one pixel of a pool reads.
struct Window<'a> {
    input: &'a [i8],
    start: usize,
    rows: usize,
    row_step: usize,
    columns: usize,
    column_step: usize,
}

impl Window<'_> {
    /// Blocks of `N` channels from `first` on, as many as `out` has room for; returns the rest.
    #[inline(always)]
    fn blocks<'o, const N: usize>(&self, first: usize, out: &'o mut [i8], p: &op::Pool) -> &'o mut [i8] {
        let mut blocks = out.chunks_exact_mut(N);
        for (i, block) in (&mut blocks).enumerate() {
            let mut largest = [i8::MIN; N];
            for row in 0..self.rows {
                for column in 0..self.columns {
                    let at = self.start + row * self.row_step + column * self.column_step + first + i * N;
                    let Some(tap) = self.input.get(at..).and_then(|tap| tap.first_chunk::<N>()) else { continue };
                    for (largest, &q) in largest.iter_mut().zip(tap) {
                        *largest = (*largest).max(q);
                    }
                }
            }
            for (out, q) in block.iter_mut().zip(largest) {
                *out = q.max(p.act_min).min(p.act_max);
            }
        }
        blocks.into_remainder()
    }
}
