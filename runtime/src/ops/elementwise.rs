//! Operators of one or two tensors, element by element.

use super::{Channels, dense_strides};
use crate::fixed::{requantize, rescale_sum, saturate};
use crate::format::op::{self, Op, kind};
use crate::kernels::{Memory, Set, Sum};
use crate::uses::{STRIDED, has};

/// Addition or multiplication with its zero points.
#[derive(Clone, Copy)]
pub(super) struct Function {
    add: bool,
    lhs_zero_point: i32,
    rhs_zero_point: i32,
    zero_point: i32,
}

impl Function {
    /// `zero_points` of left operand, right operand (a tensor) and output.
    pub(super) fn new(op: &Op<'_>, b: &op::Binary, zero_points: [i32; 3]) -> Function {
        let [lhs_zero_point, rhs, zero_point] = zero_points;
        let rhs_zero_point = if b.rhs_is_constant == 1 { b.rhs_zero_point } else { rhs };
        Function { add: matches!(op, Op::Add(_)), lhs_zero_point, rhs_zero_point, zero_point }
    }

    #[inline(always)]
    fn apply(self, b: &op::Binary, lhs: i8, rhs: i8) -> i8 {
        let (lhs, rhs) = (lhs as i32 - self.lhs_zero_point, rhs as i32 - self.rhs_zero_point);
        let q = if self.add {
            rescale_sum(lhs, b.lhs_multiplier, rhs, b.rhs_multiplier, b.shift)
        } else {
            requantize(lhs * rhs, b.lhs_multiplier, b.shift)
        };
        saturate(q, self.zero_point, b.act_min, b.act_max)
    }
}

/// Add and Mul; the output is dense, operands are read through their strides.
pub(super) fn binary<const USES: u64>(b: &op::Binary, set: Set, f: Function, memory: Memory<'_>, rhs: &[i8]) {
    let dense = dense_strides(&b.dims);
    let rhs_is_dense = b.rhs_strides == dense;
    let lhs_is_dense = matches!(memory, Memory::InPlace(_)) || b.lhs_strides == dense;
    if f.add && lhs_is_dense && rhs_is_dense {
        let sum = Sum::new(b, f.lhs_zero_point, f.rhs_zero_point, f.zero_point);
        return set.add(&sum, memory, rhs);
    }
    if !has(USES, kind::MUL) && USES & STRIDED == 0 {
        return;
    }
    match memory {
        Memory::InPlace(data) if rhs_is_dense => {
            data.iter_mut().zip(rhs).for_each(|(out, &rhs)| *out = f.apply(b, *out, rhs));
        }
        Memory::InPlace(data) => {
            let mut out = data.iter_mut();
            for_each_index(&b.dims, &b.rhs_strides, &b.rhs_strides, |i, _| {
                if let (Some(out), Some(&rhs)) = (out.next(), rhs.get(i)) {
                    *out = f.apply(b, *out, rhs);
                }
            });
        }
        Memory::Apart(lhs, output) if rhs_is_dense && b.lhs_strides == dense => {
            output.iter_mut().zip(lhs.iter().zip(rhs)).for_each(|(out, (&lhs, &rhs))| *out = f.apply(b, lhs, rhs));
        }
        Memory::Apart(lhs, output) => {
            let mut out = output.iter_mut();
            for_each_index(&b.dims, &b.lhs_strides, &b.rhs_strides, |i, j| {
                if let (Some(out), Some(&lhs), Some(&rhs)) = (out.next(), lhs.get(i), rhs.get(j)) {
                    *out = f.apply(b, lhs, rhs);
                }
            });
        }
    }
}

/// Row-major walk over `dims`, with the element index of both operands.
fn for_each_index(dims: &[u32; 4], lhs: &[u32; 4], rhs: &[u32; 4], mut f: impl FnMut(usize, usize)) {
    let at = |strides: &[u32; 4], index: [u32; 4]| -> usize {
        (0..4).map(|i| index[i] as usize * strides[i] as usize).sum()
    };
    for a in 0..dims[0] {
        for b in 0..dims[1] {
            for c in 0..dims[2] {
                let (i, j) = (at(lhs, [a, b, c, 0]), at(rhs, [a, b, c, 0]));
                for d in 0..dims[3] as usize {
                    f(i + d * lhs[3] as usize, j + d * rhs[3] as usize);
                }
            }
        }
    }
}

/// `q = table[q + 128]`.
pub(super) fn lookup(table: &[i8], memory: Memory<'_>) {
    let Ok(table) = <&[i8; 256]>::try_from(table) else { return };
    memory.in_place().iter_mut().for_each(|q| *q = table[(*q as u8 ^ 0x80) as usize]);
}

/// Two slopes: one for `q >= zero point`, one per channel below. `zero_points` of input and output.
pub(super) fn prelu(p: &op::PRelu, channels: &Channels<'_>, zero_points: [i32; 2], memory: Memory<'_>) {
    let [from, to] = zero_points;
    for pixel in memory.in_place().chunks_exact_mut(p.c.max(1) as usize) {
        for (i, q) in pixel.iter_mut().enumerate() {
            let d = *q as i32 - from;
            let (_, multiplier, shift) = if d >= 0 { (0, p.multiplier, p.shift as u8) } else { channels.get(i) };
            *q = saturate(requantize(d, multiplier, shift), to, i8::MIN, i8::MAX);
        }
    }
}
