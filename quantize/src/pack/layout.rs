//! Weights in the order in which a target's kernels read them.

use crate::lower::{ConstantSpec, Program};
use pith::Isa;
use pith::format::NONE;
use pith::format::blocks::{self, Layout, MAX_K};
use pith::format::op::Op;
use pith::format::tensor::Constant;
use pith::kernels::generic::Packed;
use pith::ops;

/// Lays the weights of convolutions and linear layers out for `isa`, each with its output stage; constants that nobody names any more are
/// removed. What has no such kernel (groups, dilation, other widths, convolutions of a zero point outside of int8) stays row-major.
pub fn lay_out(program: &mut Program, isa: Isa) {
    let Some(layout) = isa.layout() else { return };
    for i in 0..program.ops.len() {
        if let Some(constant) = in_blocks(program, &program.ops[i].record, layout) {
            let id = program.constants.len() as u16;
            program.constants.push(constant);
            match &mut program.ops[i].record {
                Op::Conv(c) => (c.weights, c.channels) = (id, NONE),
                Op::Linear(l) => (l.weights, l.channels) = (id, NONE),
                _ => {}
            }
        }
    }
    remove_unused(program);
}

fn in_blocks(program: &Program, op: &Op<'_>, layout: Layout) -> Option<ConstantSpec> {
    let (weights, channels, input) = match op {
        Op::Conv(c) if ops::conv_fits(c) => (c.weights, c.channels, c.input),
        Op::Linear(l) => (l.weights, l.channels, l.input),
        _ => return None,
    };
    let (n, k) = ops::matrix_shape(op)?;
    let weights = &program.constants[weights as usize];
    let bits = weights.record.bits;
    let zero_point = program.tensors[input as usize].record.zero_point;
    let has_borders = matches!(op, Op::Conv(_));
    if !layout.holds(bits) || k > MAX_K || has_borders && !(-128..=127).contains(&zero_point) {
        return None;
    }
    let channels = &program.constants[channels as usize].bytes;
    let word = |at: usize| i32::from_le_bytes([channels[at], channels[at + 1], channels[at + 2], channels[at + 3]]);
    let stage = |row: usize| (word(4 * row), word(4 * (n + row)), channels[8 * n + row]);
    let packed = Packed { bytes: &weights.bytes, bits };
    let mut bytes = vec![0; layout.matrix_bytes(bits, n, k)];
    blocks::emit(layout, bits, (n, k), zero_point, |row, column| packed.get(row * k + column), stage, &mut bytes);
    let record = Constant {
        kind: Constant::KIND_BLOCKS,
        layout: layout.code(),
        bytes: bytes.len() as u32,
        offset: 0,
        ..weights.record
    };
    Some(ConstantSpec { record, bytes })
}

/// Renumbers what is left.
fn remove_unused(program: &mut Program) {
    let mut used = vec![false; program.constants.len()];
    program
        .ops
        .iter_mut()
        .for_each(|op| op.record.constants_mut().into_iter().flatten().for_each(|id| used[*id as usize] = true));
    let mut new_id = vec![NONE; used.len()];
    let mut next = 0;
    for (id, _) in used.iter().enumerate().filter(|(_, used)| **used) {
        new_id[id] = next;
        next += 1;
    }
    program
        .ops
        .iter_mut()
        .for_each(|op| op.record.constants_mut().into_iter().flatten().for_each(|id| *id = new_id[*id as usize]));
    let mut keep = used.into_iter();
    program.constants.retain(|_| keep.next().unwrap_or(false));
}
