//! Zero points of weights: rows whose levels lie beside zero take fewer bits with them.
//!
//! Asymmetric levels of `b` bits reach from `-2^(b-1) - z` to `2^(b-1) - 1 - z`; as two's complement they take a bit more. Raw weights are stored with the
//! row's zero point `z` added, in `b` bits, and whoever multiplies them takes it off again: blocks by the sum of a row's activations, row-major
//! weights where they are read. Levels alone tell whether that is so, wherever they came from.

use super::coded::Matrix;
use crate::lower::{ConstantSpec, Program, pack_bits};
use pith::format::NONE;
use pith::format::blocks::{Blocks, Layout};
use pith::format::op::Op;
use pith::format::tensor::Constant;
use pith::kernels::generic::Packed;
use pith::ops;

/// The zero points nearest to zero with which all rows fit `bits`, below eight; none if a row's levels lie too far apart.
pub(crate) fn zero_points<R: Iterator<Item = i8>>(rows: impl Iterator<Item = R>, bits: u8) -> Option<Vec<i8>> {
    let half = 1i32 << (bits - 1);
    let zero_point = |row: R| {
        // Zero is always one of the levels.
        let (low, high) = row.fold((0, 0), |(low, high), w| (i32::from(w).min(low), i32::from(w).max(high)));
        let (least, most) = (-half - low, half - 1 - high);
        (least <= most).then(|| 0.clamp(least, most) as i8)
    };
    rows.map(zero_point).collect()
}

/// The least width below `limit` that holds all rows of a matrix with zero points, and these.
pub(super) fn narrowest(matrix: &Matrix, limit: u8) -> Option<(u8, Vec<i8>)> {
    let rows = || matrix.weights.chunks(matrix.shape.row().max(1)).map(|row| row.iter().copied());
    (2..limit).find_map(|bits| Some(bits).zip(zero_points(rows(), bits)))
}

/// Row-major weights of an operator with zero points, and these, if they are smaller so. Those of 8 bits stay as they are, which is faster.
pub(super) fn narrowed(program: &Program, record: &Op<'_>) -> Option<[ConstantSpec; 2]> {
    let matrix = Matrix::of(program, record).filter(|matrix| matrix.bits < 8)?;
    let (bits, zero_points) = narrowest(&matrix, matrix.bits)?;
    let stored = |row: usize, i: usize| matrix.weights[row * matrix.shape.row() + i] + zero_points[row];
    let (n, k) = (matrix.shape.rows, matrix.shape.row());
    let stored: Vec<i8> = match record {
        // In memory the taps come first.
        Op::Depthwise(_) => (0..n * k).map(|i| stored(i % n, i / n)).collect(),
        _ => (0..n * k).map(|i| stored(i / k, i % k)).collect(),
    };
    let both = [row_major(&stored, bits), row_major(&zero_points, 8)];
    (bytes(&both) < program.constants[record.weights()? as usize].bytes.len()).then_some(both)
}

/// Bytes of weights and zero points, whose record counts too.
pub(super) fn bytes([weights, zeros]: &[ConstantSpec; 2]) -> usize {
    weights.bytes.len() + zeros.bytes.len().next_multiple_of(4) + size_of::<Constant>()
}

/// Stores row-major weights of an operator with zero points if they are smaller so.
pub(super) fn narrow(program: &mut Program, op: usize) {
    if let Some(both) = narrowed(program, &program.ops[op].record) {
        let next = program.constants.len() as u16;
        program.constants.extend(both);
        name(&mut program.ops[op].record, next, next + 1);
    }
}

/// Row-major weights without zero points, of more bits.
pub(super) fn widened(weights: &ConstantSpec, bits: u8) -> ConstantSpec {
    let packed = Packed::new(&weights.bytes, weights.record.bits);
    let values: Vec<i8> = (0..weights.record.len as usize).map(|i| packed.get(i)).collect();
    row_major(&values, bits)
}

/// Stores row-major weights as they are lowered, without zero points, in a program that was laid out before.
pub(super) fn make_symmetric(program: &mut Program) {
    for i in 0..program.ops.len() {
        let record = &program.ops[i].record;
        let (Some(weights), Some(zeros)) = (record.weights(), weight_zero_points(record)) else { continue };
        let (weights, zeros) = (&program.constants[weights as usize], &program.constants[zeros as usize].bytes);
        let packed = Packed::new(&weights.bytes, weights.record.bits);
        let (len, n) = (weights.record.len as usize, zeros.len());
        let row = |i: usize| if matches!(record, Op::Depthwise(_)) { i % n } else { i / (len / n) };
        let values: Vec<i8> = (0..len).map(|i| packed.get(i).wrapping_sub(zeros[row(i)] as i8)).collect();
        // A zero point adds a bit at most.
        let weights = row_major(&values, weights.record.bits + 1);
        let next = program.constants.len() as u16;
        program.constants.push(weights);
        name(&mut program.ops[i].record, next, NONE);
    }
}

/// Whether a reader must know of zero points.
pub(super) fn has_zero_points(op: &Op<'_>, constants: &[ConstantSpec]) -> bool {
    let in_blocks = || {
        let weights = constants.get(op.weights()? as usize).filter(|c| !c.record.is_coded())?;
        let (layout, (n, k)) = (Layout::from_code(weights.record.layout)?, ops::matrix_shape(op)?);
        Some(Blocks::new(layout, weights.record.bits, n, k, &weights.bytes).is_asymmetric())
    };
    weight_zero_points(op).is_some() || in_blocks().unwrap_or(false)
}

fn row_major(values: &[i8], bits: u8) -> ConstantSpec {
    let bytes = pack_bits(values, bits);
    let record = Constant {
        kind: Constant::KIND_WEIGHTS,
        bits,
        len: values.len() as u32,
        bytes: bytes.len() as u32,
        refines: NONE,
        ..Constant::default()
    };
    ConstantSpec { record, bytes, decoded: Vec::new() }
}

fn weight_zero_points(op: &Op<'_>) -> Option<u16> {
    let id = match op {
        Op::Conv(c) | Op::Depthwise(c) | Op::ConvTranspose(c) => c.weight_zero_points,
        Op::Linear(l) => l.weight_zero_points,
        _ => NONE,
    };
    Some(id).filter(|&id| id != NONE)
}

fn name(op: &mut Op<'_>, new: u16, zeros: u16) {
    match op {
        Op::Conv(c) | Op::Depthwise(c) | Op::ConvTranspose(c) => (c.weights, c.weight_zero_points) = (new, zeros),
        Op::Linear(l) => (l.weights, l.weight_zero_points) = (new, zeros),
        _ => (),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::graph::{Clamp, Graph, Op as Node, Window};
    use crate::pack::sparse::tests::{outputs, program};
    use crate::pack::{CompressOptions, ModelFile, PackOptions, Packed, Residency, pack};
    use crate::random::Random;
    use ndarray::{ArrayD, IxDyn};
    use pith::format::header::Header;
    use pith::{Isa, Model};

    fn network(bits: u8, level: impl FnMut(usize) -> i8) -> Program {
        network_behind(1, bits, level)
    }

    /// Convolutions, all channels, one and four together, and a head, whose integers are replaced by such as `level` gives for a row's number, behind a
    /// pool over `pooled` pixels each way.
    pub(in crate::pack) fn network_behind(pooled: usize, bits: u8, mut level: impl FnMut(usize) -> i8) -> Program {
        let mut g = Graph::default();
        let mut x = g.add_input("x", &[1, 12 * pooled, 12 * pooled, 8]);
        if pooled > 1 {
            let window = Window { kernel: [pooled; 2], stride: [pooled; 2], dilation: [1; 2], pad: [0; 4] };
            x = g.push("pool", Node::MaxPool(window), &[x]).unwrap();
        }
        let window = Window { kernel: [3; 2], stride: [1; 2], dilation: [1; 2], pad: [1; 4] };
        let weight = |shape: &[usize]| ArrayD::from_elem(IxDyn(shape), 0.5);
        let conv = |shape: &[usize], groups| {
            let (weight, bias) = (weight(shape), vec![0.1; shape[0]]);
            Node::Conv2d { window, groups, weight, bias, clamp: Clamp::NONE }
        };
        x = g.push("full", conv(&[16, 3, 3, 8], 1), &[x]).unwrap();
        x = g.push("depthwise", conv(&[16, 3, 3, 1], 16), &[x]).unwrap();
        x = g.push("grouped", conv(&[8, 3, 3, 4], 4), &[x]).unwrap();
        x = g.push("flat", Node::Reshape { shape: vec![1, 12 * 12 * 8] }, &[x]).unwrap();
        let head = Node::Linear { weight: weight(&[10, 12 * 12 * 8]), bias: vec![0.1; 10], clamp: Clamp::NONE };
        let y = g.push("head", head, &[x]).unwrap();
        g.add_output("y", y);
        let mut program = program(&g);
        for i in 0..program.ops.len() {
            let record = program.ops[i].record;
            let Some(Matrix { shape, .. }) = Matrix::of(&program, &record) else { continue };
            let depthwise = matches!(record, Op::Depthwise(_));
            let row = |i: usize| if depthwise { i % shape.rows } else { i / shape.row() };
            let values: Vec<i8> = (0..shape.rows * shape.row()).map(|i| level(row(i))).collect();
            program.constants.push(row_major(&values, bits));
            let last = program.constants.len() as u16 - 1;
            name(&mut program.ops[i].record, last, NONE);
        }
        program
    }

    /// Levels of `bits` bits around a middle of every row's own, all as likely, or one far more than the others.
    fn shifted(bits: u8, stored: u8, peaked: bool) -> Program {
        let (mut random, half) = (Random::new(11, 0), 1i32 << (bits - 1));
        network(stored, |row| {
            let zero = (5 * row as i32 + 3) % (2 * half) - half;
            let level = if peaked && random.below(4) > 0 { half } else { random.below(2 * half as usize) as i32 };
            (level - half - zero) as i8
        })
    }

    /// Widths of all weights, and whether the header tells of zero points.
    fn widths(packed: &Packed) -> (Vec<u8>, bool) {
        let file = ModelFile::new(&packed.bytes);
        let model = Model::parse(file.as_bytes()).unwrap();
        let width = |op: Op<'_>| op.weights().map(|id| model.constant(id).bits);
        let widths = model.ops().filter_map(|(_, op)| width(op)).collect();
        (widths, model.header().required_features & Header::ASYMMETRIC != 0)
    }

    #[test]
    fn shifted_levels_are_stored_in_their_width_and_give_the_same_outputs() {
        for bits in [2, 3, 4] {
            let expected = outputs(&pack(shifted(bits, 8, false), PackOptions::default()).unwrap());
            for isa in [Isa::Generic, Isa::ArmDsp, Isa::ArmV6M, Isa::Helium] {
                let options = PackOptions { isa, ..PackOptions::default() };
                let packed = pack(shifted(bits, bits + 1, false), options).unwrap();
                // What has no kernels becomes blocks of the next width that holds the levels as they are.
                let held = |layout: Layout| (bits..=8).find(|&bits| layout.holds(bits));
                let known = isa.layout().and_then(held).unwrap_or(bits);
                let (mut own, asymmetric) = widths(&packed);
                assert_eq!((own.remove(0), own.pop().unwrap()), (known, known), "{isa:?}");
                // The others, of which depthwise filters are too few to gain by it.
                assert!(own.iter().all(|own| [bits, bits + 1].contains(own)), "{isa:?}: {own:?}");
                assert_eq!(asymmetric, own.contains(&bits) || known == bits, "{isa:?}");
                assert_eq!(outputs(&packed), expected, "{bits} bits, {isa:?}");
                // Laid out again, for a core with blocks.
                let again = pack(packed.program, PackOptions { isa: Isa::ArmV7M, ..options });
                assert!(isa != Isa::Generic || outputs(&again.unwrap()) == expected, "{bits} bits");
            }
        }
    }

    #[test]
    fn codes_hold_levels_as_they_are() {
        for (bits, in_blocks) in [(2, 4), (4, 8)] {
            let expected = outputs(&pack(shifted(bits, 8, true), PackOptions::default()).unwrap());
            for (isa, residency) in [
                (Isa::Generic, Residency::Ram),
                (Isa::ArmDsp, Residency::Flash),
                (Isa::ArmDsp, Residency::Tile),
                (Isa::ArmV6M, Residency::Ram),
            ] {
                let compress = CompressOptions { level: 5, residency, ..CompressOptions::NONE };
                let options = PackOptions { isa, compress, ..PackOptions::default() };
                let packed = pack(shifted(bits, bits + 1, true), options).unwrap();
                assert_eq!(outputs(&packed), expected, "{bits} bits, {isa:?}");
                let constants = &packed.program.constants;
                let coded =
                    constants.iter().filter(|c| c.record.is_coded() && c.record.kind != Constant::KIND_CHANNELS);
                let (blocks, rows): (Vec<_>, Vec<_>) = coded.partition(|c| c.record.kind == Constant::KIND_BLOCKS);
                assert!(blocks.iter().all(|c| c.record.bits == in_blocks), "{isa:?}");
                // Grouped and depthwise weights too are read in a width that kernels know.
                let wide = if isa == Isa::Generic { bits + 1 } else { in_blocks };
                let widths: Vec<u8> = rows.iter().map(|c| c.record.bits).collect();
                assert!(widths.iter().all(|&own| own == wide), "{isa:?}, {residency:?}: {widths:?}, {wide}");
                // Small layers are not worth the memory of a tile: they stay raw, and as narrow as without code.
                let mut raw =
                    constants.iter().filter(|c| c.record.kind == Constant::KIND_BLOCKS && !c.record.is_coded());
                assert!(raw.all(|c| c.record.bits == bits), "{isa:?}, {residency:?}");
                let coded = blocks.len() + rows.len();
                assert!(coded > 2 || residency == Residency::Tile, "{isa:?}, {residency:?}: {coded}");
            }
        }
    }

    #[test]
    fn eight_bits_and_wide_rows_stay_as_they_are() {
        let mut random = Random::new(3, 0);
        let one_sided = network(8, |_| random.below(100) as i8);
        assert_eq!(widths(&pack(one_sided, PackOptions::default()).unwrap()), (vec![8; 4], false));
        let wide = network(5, |_| random.below(32) as i8 - 16);
        assert_eq!(widths(&pack(wide, PackOptions::default()).unwrap()), (vec![5; 4], false));
        assert_eq!(zero_points([[0i8, 3].into_iter(), [-3, 0].into_iter()].into_iter(), 2), Some(vec![-2, 1]));
        assert_eq!(zero_points([[-1i8, 3].into_iter()].into_iter(), 2), None);
        // Zero is a level, wherever the others lie.
        assert_eq!(zero_points([[3i8, 5].into_iter()].into_iter(), 2), None);
    }
}
