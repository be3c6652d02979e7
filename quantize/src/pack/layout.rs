//! Weights in the order in which a target's kernels read them.

use super::coded::{self, Code, Matrix, Residency};
use super::precisions::Coarser;
use super::{CompressOptions, PackOptions, asymmetric, sparse};
use crate::circuit::weights::{Weights, narrow};
use crate::lower::{ConstantSpec, OpSpec, Program};
use pith::format::NONE;
use pith::format::blocks::{self, Layout, MAX_K};
use pith::format::op::Op;
use pith::format::stages::Stage;
use pith::format::tensor::Constant;
use pith::kernels::generic::Packed;
use pith::{Isa, ops};

/// Lays the weights of convolutions and linear layers out for `isa`, each with its output stage; constants that nobody names any more are
/// removed. What has no such kernel (groups, dilation, a convolution's zero point outside of int8) stays row-major.
///
/// Raw weights whose levels lie beside zero get zero points where they are narrower then. Those of a width that has no kernel are stored in their own width
/// all the same, and become blocks of the next that has one a tile at a time, while the operator runs; where a tile takes more memory than that saves they
/// are stored wider.
///
/// Coded weights have no zero points, as the code tells their levels, and become blocks of the next width that has a kernel too.
///
/// Weights of 8 bits whose blocks are mostly zeros become block-sparse where that is smaller and predicted to be faster, unless `options` forbid it or
/// weights are coded: a code takes zeros for nearly nothing, and decodes to dense weights.
///
/// With a level of compression, weights are coded where that is smaller; coded blocks leave the output stage in the operator's own constant. Returns
/// what is to be said about operators whose weights stay raw though their code is smaller.
pub(super) fn lay_out(
    program: &mut Program,
    coarser: Option<&Coarser<'_>>,
    options: PackOptions,
    progress: &(dyn Fn(&'static str, usize) + Sync),
) -> Vec<String> {
    let CompressOptions { level, residency, .. } = options.compress;
    if level == 0 || residency != Residency::Tile || coarser.is_some() {
        return lay_out_as_told(program, coarser, options, progress);
    }
    // Decoders of circuits take memory in tiles, which small layers are not worth; their own width takes none.
    let mut plain = program.clone();
    let of_plain = lay_out_as_told(
        &mut plain,
        None,
        PackOptions { compress: CompressOptions::NONE, sparse: false, ..options },
        &|_, _| (),
    );
    let of_coded = lay_out_as_told(program, coarser, options, progress);
    let bytes = |program: &Program| program.constants.iter().map(|c| c.bytes.len()).sum::<usize>();
    if bytes(&plain) >= bytes(program) {
        return of_coded;
    }
    *program = plain;
    of_plain
}

fn lay_out_as_told(
    program: &mut Program,
    coarser: Option<&Coarser<'_>>,
    options: PackOptions,
    progress: &(dyn Fn(&'static str, usize) + Sync),
) -> Vec<String> {
    let PackOptions { isa, plan, compress, .. } = options;
    sparse::make_dense(program);
    asymmetric::make_symmetric(program);
    let blocks = |i: usize| isa.layout().and_then(|layout| raw_blocks(program, &program.ops[i].record, layout));
    let mut blocks: Vec<Option<ConstantSpec>> = (0..program.ops.len()).map(blocks).collect();
    let mut codes: Vec<Option<Code>> = vec![None; program.ops.len()];
    if options.sparse && compress.level == 0 {
        for (spec, blocks) in program.ops.iter().zip(&mut blocks) {
            let sparse = sparse::choose(program, &spec.record, isa, blocks.as_ref().map(|blocks| blocks.bytes.len()));
            *blocks = sparse.or(blocks.take());
        }
    }
    if compress.level > 0 {
        let floor = |i: usize| {
            let op = &program.ops[i].record;
            let weights = program.constants[op.weights()? as usize].bytes.len();
            let weights = asymmetric::narrowed(program, op).map_or(weights, |both| asymmetric::bytes(&both));
            // The output stage that blocks hold is then stored beside them.
            let stage = coded::stage_of(op).map_or(0, |id| coded::stage_bytes(program, id));
            Some(blocks[i].as_ref().map_or(weights, |blocks| blocks.bytes.len().saturating_sub(stage)))
        };
        codes = coded::encode_all(program, |bits| decoded_bits(isa, bits), coarser, compress, floor, progress);
    }
    let residency = if compress.level > 0 { compress.residency } else { Residency::Tile };
    if compress.level == 0 {
        let narrow = |(spec, blocks): (&OpSpec, &Option<ConstantSpec>)| {
            narrow_code(program, &spec.record, blocks.as_ref()?).map(|bytes| Code { bytes, refines: NONE })
        };
        codes = program.ops.iter().zip(&blocks).map(narrow).collect();
    }
    let is_coded = codes.iter().any(Option::is_some);
    let mut smaller = coded::Smaller::new();
    for i in 0..program.ops.len() {
        let op = &program.ops[i].record;
        let spec = match (blocks[i].take(), codes[i].take()) {
            (Some(blocks), None) => blocks,
            (None, None) => {
                asymmetric::narrow(program, i);
                continue;
            }
            (raw, Some(code)) => {
                let id = op.weights().unwrap_or(NONE) as usize;
                let row_major = &program.constants[id];
                let wide = decoded_bits(isa, row_major.record.bits);
                let blocks = isa.layout().and_then(|layout| wide_blocks(program, op, layout, wide));
                let decoded = blocks.unwrap_or_else(|| asymmetric::widened(row_major, wide));
                let raw = raw.unwrap_or_else(|| row_major.clone());
                if raw.bytes.len() < decoded.bytes.len() {
                    smaller.insert(program.constants.len() as u16, raw);
                }
                coded_constant(decoded, code, residency)
            }
        };
        let with_stage = !spec.record.is_coded();
        let known = program.constants.iter().position(|c| !with_stage && *c == spec);
        let id = known.unwrap_or_else(|| {
            program.constants.push(spec);
            program.constants.len() - 1
        });
        coded::set_weights(&mut program.ops[i].record, id as u16, with_stage);
    }
    let notes = match is_coded && residency == Residency::Tile {
        true => coded::leave_raw(program, &smaller, plan, isa, compress.level > 0),
        false => Vec::new(),
    };
    remove_unused(program);
    if is_coded {
        coded::pack_stages(program, residency);
    }
    notes
}

/// The constant of weights that are coded.
fn coded_constant(raw: ConstantSpec, code: Code, residency: Residency) -> ConstantSpec {
    let record = Constant {
        encoding: Constant::ENCODING_CODED,
        residency: residency.code(),
        bytes: code.bytes.len() as u32,
        refines: code.refines,
        ..raw.record
    };
    ConstantSpec { record, bytes: code.bytes, decoded: raw.bytes }
}

/// The weight matrix of a convolution or linear layer and its output stage as they are lowered.
pub(super) struct RowMajor<'p> {
    pub record: Constant,
    weights: Packed<'p>,
    /// A constant of channels.
    stages: &'p [u8],
    pub n: usize,
    pub k: usize,
    /// Of the input.
    pub zero_point: i32,
}

impl<'p> RowMajor<'p> {
    /// None of what must stay row-major whatever the target.
    pub(super) fn of(program: &'p Program, op: &Op<'_>) -> Option<RowMajor<'p>> {
        let (weights, channels, input) = match op {
            Op::Conv(c) if ops::conv_fits(c) => (c.weights, c.channels, c.input),
            Op::Linear(l) => (l.weights, l.channels, l.input),
            _ => return None,
        };
        let (n, k) = ops::matrix_shape(op)?;
        let weights = program.constants.get(weights as usize)?;
        let record = weights.record;
        let zero_point = program.tensors[input as usize].record.zero_point;
        // A convolution's borders hold the zero point.
        let zero_fits = matches!(op, Op::Linear(_)) || (-128..=127).contains(&zero_point);
        if record.kind != Constant::KIND_WEIGHTS || record.is_coded() || k > MAX_K || !zero_fits {
            return None;
        }
        let stages = &program.constants.get(channels as usize)?.bytes;
        Some(RowMajor { record, weights: Packed::new(&weights.bytes, record.bits), stages, n, k, zero_point })
    }

    pub(super) fn weight(&self, row: usize, column: usize) -> i8 {
        self.weights.get(row * self.k + column)
    }

    /// Bias, multiplier and shift of a row.
    pub(super) fn stage(&self, row: usize) -> Stage {
        stage(self.stages, self.n, row)
    }

    /// Bytes with the output stage.
    pub(super) fn bytes(&self) -> usize {
        self.record.bytes as usize + self.stages.len()
    }
}

/// Stage `i` of a constant of `n` channels.
pub(super) fn stage(bytes: &[u8], n: usize, i: usize) -> Stage {
    let word = |at: usize| bytes[at..].first_chunk().map_or(0, |&bytes| i32::from_le_bytes(bytes));
    (word(4 * i), word(4 * (n + i)), bytes[8 * n + i])
}

/// The width in which coded weights are decoded: the narrowest that holds them and has kernels.
fn decoded_bits(isa: Isa, bits: u8) -> u8 {
    isa.layout().map_or(bits, |layout| held(layout, bits))
}

/// The narrowest width of a layout that holds weights of `bits` bits.
fn held(layout: Layout, bits: u8) -> u8 {
    (bits..8).find(|&bits| layout.holds(bits)).unwrap_or(8)
}

/// The code of weights in their own width, where that has no kernel, and raw blocks and their output stage are larger.
fn narrow_code(program: &Program, op: &Op<'_>, blocks: &ConstantSpec) -> Option<Vec<u8>> {
    let layout = Layout::from_code(blocks.record.layout)?;
    let matrix = Matrix::of(program, op).filter(|matrix| !layout.holds(matrix.bits))?;
    let (bits, zero_points) = asymmetric::narrowest(&matrix, blocks.record.bits)?;
    let weights = Weights { values: &matrix.weights, shape: matrix.shape, bits: matrix.bits };
    let stage = coded::stage_of(op).map_or(0, |id| coded::stage_bytes(program, id));
    Some(narrow(&weights, bits, &zero_points)).filter(|code| code.len() + stage < blocks.bytes.len())
}

/// Blocks as a file stores them: of narrow weights the narrowest that hold them, with zero points if need be.
fn raw_blocks(program: &Program, op: &Op<'_>, layout: Layout) -> Option<ConstantSpec> {
    let matrix = RowMajor::of(program, op)?;
    let bits = matrix.record.bits;
    let narrow = (2..bits).filter(|&narrower| bits < 8 && layout.holds(narrower));
    let matrix = &matrix;
    let weights = || (0..matrix.n).map(|row| (0..matrix.k).map(move |column| matrix.weight(row, column)));
    let shifted = |narrower: u8| Some(narrower).zip(asymmetric::zero_points(weights(), narrower));
    match narrow.filter_map(shifted).next() {
        Some((narrower, zero_points)) => Some(in_blocks(matrix, op, layout, narrower, &zero_points)),
        None => Some(in_blocks(matrix, op, layout, held(layout, bits), &[])),
    }
}

/// Blocks that code becomes.
fn wide_blocks(program: &Program, op: &Op<'_>, layout: Layout, bits: u8) -> Option<ConstantSpec> {
    Some(in_blocks(&RowMajor::of(program, op)?, op, layout, bits, &[]))
}

fn in_blocks(matrix: &RowMajor<'_>, op: &Op<'_>, layout: Layout, bits: u8, zero_points: &[i8]) -> ConstantSpec {
    let (n, k) = (matrix.n, matrix.k);
    let weight = |row: usize, column: usize| matrix.weight(row, ops::matrix_column(op, layout, column));
    let mut bytes = vec![0; layout.matrix_bytes(bits, n, k)];
    blocks::emit(layout, bits, (n, k), matrix.zero_point, zero_points, weight, |row| matrix.stage(row), &mut bytes);
    let record = Constant {
        bits,
        kind: Constant::KIND_BLOCKS,
        layout: layout.code(),
        bytes: bytes.len() as u32,
        offset: 0,
        ..matrix.record
    };
    ConstantSpec { record, bytes, decoded: Vec::new() }
}

/// Renumbers what is left.
fn remove_unused(program: &mut Program) {
    let mut used = vec![false; program.constants.len()];
    program
        .ops
        .iter_mut()
        .for_each(|op| op.record.constants_mut().into_iter().flatten().for_each(|id| used[*id as usize] = true));
    let mut new_id = vec![NONE; used.len()];
    for (next, (id, _)) in (0..).zip(used.iter().enumerate().filter(|(_, used)| **used)) {
        new_id[id] = next;
    }
    program
        .ops
        .iter_mut()
        .for_each(|op| op.record.constants_mut().into_iter().flatten().for_each(|id| *id = new_id[*id as usize]));
    let mut keep = used.into_iter();
    program.constants.retain(|_| keep.next().unwrap_or(false));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::asymmetric::tests::network_behind;
    use crate::pack::sparse::tests::outputs;
    use crate::pack::{ModelFile, PackOptions, pack};
    use crate::random::Random;
    use pith::Model;
    use pith::circuit::Coded;

    /// Levels of `bits` bits, all as likely, around zero or beside it, in a network whose first map takes more memory than a tile.
    fn levels(bits: u8, shifted: bool) -> Program {
        let (mut random, all) = (Random::new(5, 0), 1 << bits);
        let stored = bits + u8::from(shifted);
        network_behind(2, stored, |row| {
            let lowest = if shifted && row % 3 > 0 { 0 } else { -all / 2 };
            (lowest + random.below(all as usize) as i32) as i8
        })
    }

    #[test]
    fn widths_without_kernels_are_stored_as_they_are_and_run_in_blocks() {
        for (bits, shifted) in [(3, false), (5, false), (5, true), (6, true), (7, false)] {
            let expected = outputs(&pack(levels(bits, shifted), PackOptions::default()).unwrap());
            for isa in [Isa::ArmDsp, Isa::ArmV6M, Isa::ArmV7M, Isa::RiscV, Isa::Helium] {
                let packed = pack(levels(bits, shifted), PackOptions { isa, ..PackOptions::default() }).unwrap();
                assert_eq!(outputs(&packed), expected, "{bits} bits, {isa:?}");
                let file = ModelFile::new(&packed.bytes);
                let model = Model::parse(file.as_bytes()).unwrap();
                // Depthwise and grouped filters have no blocks.
                let in_blocks = |id: &u16| model.constant(*id).kind == Constant::KIND_BLOCKS;
                let matrix = |op: Op<'_>| op.weights().filter(in_blocks).zip(ops::matrix_shape(&op));
                let matrices: Vec<(u16, (usize, usize))> = model.ops().filter_map(|(_, op)| matrix(op)).collect();
                assert_eq!(matrices.len(), 2);
                for (id, (n, k)) in matrices {
                    let (constant, layout) = (model.constant(id), isa.layout().unwrap());
                    assert_eq!(constant.bits, held(layout, bits + u8::from(shifted)), "{bits} bits, {isa:?}");
                    // The head has long rows; where a block of them fits no tile, or one takes more memory than it saves, its weights are stored wider.
                    let fits = layout.block_bytes(constant.bits, k) <= ops::MAX_TILE_BYTES;
                    assert!(constant.is_coded() || k > 100, "{bits} bits, {isa:?}");
                    assert!(!constant.is_coded() || fits, "{bits} bits, {isa:?}, {n} x {k}");
                    if constant.is_coded() {
                        let stored = model.stored_bytes(id);
                        let coded = Coded::new_checked(stored, constant.bits, constant.len as usize).unwrap();
                        assert_eq!((coded.model(), constant.is_in_tiles()), ("narrow", true));
                        let numbers = n * (k + usize::from(shifted)) * bits as usize / 8;
                        assert!((numbers..numbers + 16).contains(&stored.len()), "{bits} bits, {isa:?}");
                    }
                }
            }
        }
    }
}
