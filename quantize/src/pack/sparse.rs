//! Weights whose blocks are mostly zeros, stored as the blocks that hold something.
//!
//! Blocks of one and of two rows are tried, and the form is taken that is predicted to be fastest among those that are faster and smaller than the
//! dense one. What is predicted is counted, not timed: on a Cortex-M4 the instructions of its kernels, elsewhere the products.

use super::layout::RowMajor;
use crate::lower::{ConstantSpec, Program};
use pith::format::NONE;
use pith::format::op::Op;
use pith::format::sparse::{self, DEPTH, ROWS, Sparse};
use pith::format::tensor::Constant;
use pith::{Isa, ops};

/// What a kernel takes for a band of rows.
struct Cost {
    /// For each block.
    block: f64,
    /// Before and after.
    band: f64,
}

impl Cost {
    const fn of(&self, blocks: usize, bands: usize) -> f64 {
        self.block * blocks as f64 + self.band * bands as f64
    }
}

/// Costs of dense weights in bands of two rows, and of block-sparse ones in bands of one and of two.
struct Costs {
    dense: Cost,
    sparse: [Cost; 2],
}

/// Instructions for three pixels together, and for one; `cargo xtask bench sparse --layers` counts them.
const ARM_DSP: [Costs; 2] = [
    Costs {
        dense: Cost { block: 20.75, band: 67.0 },
        sparse: [Cost { block: 14.75, band: 50.0 }, Cost { block: 23.75, band: 75.0 }],
    },
    Costs {
        dense: Cost { block: 9.25, band: 42.0 },
        sparse: [Cost { block: 8.75, band: 62.0 }, Cost { block: 12.75, band: 95.0 }],
    },
];

/// Products; one of a stored block counts twice, a little less where two rows share its activations: vectors of 16 bits stay below that by a margin. Where
/// vectors gain nothing, they run the dense weights.
const PORTABLE: Costs = Costs {
    dense: Cost { block: 8.0, band: 0.0 },
    sparse: [Cost { block: 8.0, band: 0.0 }, Cost { block: 14.0, band: 0.0 }],
};

/// None for cores whose kernels know dense weights alone.
fn costs(op: &Op<'_>, isa: Isa) -> Option<&'static Costs> {
    let few =
        matches!(op, Op::Linear(l) if l.rows < 3) || matches!(op, Op::Conv(c) if c.out_h as u32 * (c.out_w as u32) < 3);
    match isa {
        Isa::ArmDsp => ARM_DSP.get(few as usize),
        _ if isa.layout().is_none() => Some(&PORTABLE),
        _ => None,
    }
}

/// The block-sparse weights of an operator for `isa`, if they are smaller and predicted to be faster than dense ones; `dense_bytes` are those of blocks.
pub(super) fn choose(program: &Program, op: &Op<'_>, isa: Isa, dense_bytes: Option<usize>) -> Option<ConstantSpec> {
    let matrix = RowMajor::of(program, op).filter(|matrix| matrix.record.bits == 8)?;
    let costs = costs(op, isa)?;
    let dense_bytes = dense_bytes.unwrap_or(matrix.bytes());
    let dense = costs.dense.of(matrix.n.div_ceil(2) * matrix.k.div_ceil(DEPTH), matrix.n.div_ceil(2));
    let forms = ROWS.iter().zip(&costs.sparse).map(|(&rows, cost)| {
        let spec = emit(&matrix, rows);
        let blocks = Sparse::new_checked(rows, matrix.n, matrix.k, &spec.bytes).map_or(usize::MAX, |s| s.count());
        (cost.of(blocks, matrix.n.div_ceil(rows)), spec)
    });
    let better = forms.filter(|(cost, spec)| *cost < dense && spec.bytes.len() < dense_bytes);
    better.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.bytes.len().cmp(&b.1.bytes.len()))).map(|(_, spec)| spec)
}

fn emit(matrix: &RowMajor<'_>, rows: usize) -> ConstantSpec {
    let mut bytes = Vec::new();
    let (shape, weight) = ((matrix.n, matrix.k), |row: usize, column: usize| matrix.weight(row, column));
    sparse::emit(rows, shape, matrix.zero_point, weight, |row| matrix.stage(row), |part| bytes.extend_from_slice(part));
    let record = Constant {
        encoding: Constant::ENCODING_SPARSE,
        kind: Constant::KIND_BLOCKS,
        layout: sparse::code(rows),
        bytes: bytes.len() as u32,
        offset: 0,
        ..matrix.record
    };
    ConstantSpec { record, bytes, decoded: Vec::new() }
}

/// Turns block-sparse weights of a program that was laid out before into row-major ones with their output stage.
pub(super) fn make_dense(program: &mut Program) {
    for i in 0..program.ops.len() {
        let Some((weights, stages)) = row_major(program, &program.ops[i].record) else { continue };
        let next = program.constants.len() as u16;
        program.constants.extend([weights, stages]);
        let ids = [next, next + 1];
        match &mut program.ops[i].record {
            Op::Conv(c) => [c.weights, c.channels] = ids,
            Op::Linear(l) => [l.weights, l.channels] = ids,
            _ => continue,
        }
    }
}

/// Weights and channels of an operator whose weights are block-sparse.
fn row_major(program: &Program, op: &Op<'_>) -> Option<(ConstantSpec, ConstantSpec)> {
    let (n, k) = ops::matrix_shape(op)?;
    let constant = program.constants.get(op.weights()? as usize)?;
    let sparse = Sparse::new_checked(constant.record.sparse_rows()?, n, k, &constant.bytes).ok()?;
    let zero_point = program.tensors[op.inputs()[0]? as usize].record.zero_point;
    let mut weights = vec![0u8; n * k];
    let mut stages = Vec::new();
    for (first, band) in (0..n).step_by(sparse.rows()).zip(sparse.bands()) {
        for row in first..n.min(first + sparse.rows()) {
            let to = &mut weights[row * k..(row + 1) * k];
            for (block, from) in band.blocks() {
                let four = from.chunks(DEPTH).nth(row - first).unwrap_or(&[]);
                to.iter_mut().skip(DEPTH * block).zip(four).for_each(|(to, &w)| *to = w);
            }
            let sum = to.iter().fold(0i32, |sum, &w| sum.wrapping_add(w as i8 as i32));
            let (bias, multiplier, shift) = band.stage(row - first);
            stages.push((bias.wrapping_add(zero_point.wrapping_mul(sum)), multiplier, shift));
        }
    }
    let mut channels: Vec<u8> = stages.iter().flat_map(|stage| stage.0.to_le_bytes()).collect();
    channels.extend(stages.iter().flat_map(|stage| stage.1.to_le_bytes()));
    channels.extend(stages.iter().map(|stage| stage.2));
    channels.resize(channels.len().next_multiple_of(4), 0);
    let spec = |kind: u8, bits: u8, len: usize, bytes: Vec<u8>| {
        let (len, stored) = (len as u32, bytes.len() as u32);
        let record = Constant { kind, bits, len, bytes: stored, refines: NONE, ..Constant::default() };
        ConstantSpec { record, bytes, decoded: Vec::new() }
    };
    Some((spec(Constant::KIND_WEIGHTS, 8, n * k, weights), spec(Constant::KIND_CHANNELS, 32, n, channels)))
}

#[cfg(test)]
pub(in crate::pack) mod tests {
    use super::*;
    use crate::calibrate::{Observer, observe};
    use crate::execute::Runner;
    use crate::graph::{Clamp, Graph, Op as Node, Window};
    use crate::lower::lower;
    use crate::pack::{CompressOptions, ModelFile, PackOptions, Packed, Residency, pack};
    use crate::report::layers::Summary;
    use crate::scheme::{Choice, QuantOptions, Rounding, quantize};
    use ndarray::{ArrayD, IxDyn};
    use pith::Model;

    /// A value between -1 and 1.
    fn real(state: &mut u32) -> f32 {
        *state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (*state >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Two convolutions and a head, a share of whose blocks of `rows` by four is not zero.
    fn network(rows: usize, density: f32) -> Graph {
        let mut state = 5;
        let mut sparse = |shape: &[usize]| {
            let (n, k) = (shape[0], shape[1..].iter().product::<usize>());
            let stored = |state: &mut u32| real(state).abs() < density;
            let kept: Vec<bool> = (0..n.div_ceil(rows) * k.div_ceil(4)).map(|_| stored(&mut state)).collect();
            let at = |i: usize| kept[i / k / rows * k.div_ceil(4) + i % k / 4];
            let values = (0..n * k).map(|i| if at(i) { real(&mut state) } else { 0.0 }).collect();
            ArrayD::from_shape_vec(IxDyn(shape), values).unwrap()
        };
        let mut g = Graph::default();
        let mut x = g.add_input("x", &[1, 12, 12, 8]);
        for (name, oc) in [("a", 16), ("b", 11)] {
            let weight = sparse(&[oc, 3, 3, g.shape(x)[3]]);
            let window = Window { kernel: [3; 2], stride: [1; 2], dilation: [1; 2], pad: [1; 4] };
            let op = Node::Conv2d { window, groups: 1, weight, bias: vec![0.1; oc], clamp: Clamp::RELU };
            x = g.push(name, op, &[x]).unwrap();
        }
        let x = g.push("flat", Node::Reshape { shape: vec![1, 12 * 12 * 11] }, &[x]).unwrap();
        let head = Node::Linear { weight: sparse(&[5, 12 * 12 * 11]), bias: vec![0.1; 5], clamp: Clamp::NONE };
        let y = g.push("head", head, &[x]).unwrap();
        g.add_output("y", y);
        g
    }

    /// A network lowered to 8 bits.
    pub(in crate::pack) fn program(graph: &Graph) -> Program {
        let mut state = 9;
        let shape = IxDyn(graph.shape(graph.inputs[0].tensor));
        let sample = || vec![ArrayD::from_shape_simple_fn(shape.clone(), || real(&mut state))];
        let samples: Vec<Vec<ArrayD<f32>>> = std::iter::repeat_with(sample).take(4).collect();
        let stats = observe(graph, &samples, &|| ()).unwrap();
        let choice = Choice { observer: Observer::MinMax, bias_correction: false };
        lower(&quantize(graph, &stats, &QuantOptions::default(), choice, &[false], &Rounding::default()).unwrap())
            .unwrap()
    }

    /// What every instruction set of this machine gives.
    pub(in crate::pack) fn outputs(packed: &Packed) -> Vec<Vec<Vec<i8>>> {
        let file = ModelFile::new(&packed.bytes);
        let model = Model::parse(file.as_bytes()).unwrap();
        let input_len = model.tensor(model.inputs()[0].tensor).len;
        let input: Vec<i8> = (0..input_len).map(|i| (i * 37 % 251) as u8 as i8).collect();
        let sets = Isa::available().chain([Isa::Generic]);
        sets.map(|isa| Runner::on(&model, isa).run_raw(std::slice::from_ref(&input))).collect()
    }

    fn blocks(packed: &Packed) -> Vec<&'static str> {
        let file = ModelFile::new(&packed.bytes);
        let summary = Summary::of_model(&Model::parse(file.as_bytes()).unwrap());
        summary.layers.iter().filter_map(|l| Some(l.sparse.as_ref()?.shape)).collect()
    }

    #[test]
    fn zeroed_blocks_give_a_smaller_file_and_the_same_outputs() {
        for (rows, shape) in [(1, "1x4"), (2, "2x4")] {
            let program = program(&network(rows, 0.25));
            for isa in [Isa::Generic, Isa::ArmDsp] {
                let options = PackOptions { isa, ..PackOptions::default() };
                let sparse = pack(program.clone(), options).unwrap();
                let dense = pack(program.clone(), PackOptions { sparse: false, ..options }).unwrap();
                // Of an odd number of rows, blocks of one row may be fewer.
                assert_eq!((blocks(&sparse)[0], blocks(&sparse).len(), blocks(&dense).len()), (shape, 3, 0), "{isa:?}");
                assert!(2 * sparse.bytes.len() < dense.bytes.len(), "{} of {}", sparse.bytes.len(), dense.bytes.len());
                let expected = outputs(&dense);
                assert!(expected.iter().chain(&outputs(&sparse)).all(|output| *output == expected[0]), "{isa:?}");
                // What was laid out once can be laid out again, for cores that know no block-sparse weights too.
                let again = |isa: Isa| pack(sparse.program.clone(), PackOptions { isa, ..options }).unwrap();
                assert!(blocks(&again(Isa::Helium)).is_empty());
                assert_eq!(outputs(&again(Isa::ArmV6M))[0], expected[0]);
                // Code has no use for zeros that are not there.
                let compress = CompressOptions { level: 1, residency: Residency::Ram, ..CompressOptions::NONE };
                assert!(blocks(&pack(program.clone(), PackOptions { compress, ..options }).unwrap()).is_empty());
            }
        }
    }

    #[test]
    fn dense_weights_stay_dense() {
        let program = program(&network(2, 0.95));
        for isa in [Isa::Generic, Isa::ArmDsp, Isa::ArmV7M] {
            let packed = pack(program.clone(), PackOptions { isa, ..PackOptions::default() }).unwrap();
            assert!(blocks(&packed).is_empty(), "{isa:?}");
        }
    }
}
