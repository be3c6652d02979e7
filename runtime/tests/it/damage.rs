//! Random damage to valid files: whatever comes out, `parse` and `run` do not panic and nothing beyond the arena is written.
//!
//! Most mutants get a fresh checksum, so that they reach the deeper checks. `PITH_MUTATIONS` sets how many are tried.

use crate::cases::model::{Builder, Memory, Random, decode, seal};
use pith::circuit::{Shape, refined};
use pith::format::NONE;
use pith::format::blocks::Layout;
use pith::format::crc32::crc32;
use pith::format::op::{self, Op};
use pith::format::tensor::Constant;
use pith::{Engine, Error, Isa, Model, ops};

/// A model with every operator in it.
pub fn every_operator() -> Vec<u8> {
    let mut b = Builder::default();
    let mut r = Random(11);
    let entry = |n: usize| vec![(100, 1 << 30, 36u8); n];
    let x = b.tensor(&[4, 4, 2], 3);
    b.inputs = vec![x];
    let window = op::Conv {
        in_h: 4,
        in_w: 4,
        in_c: 2,
        out_h: 4,
        out_w: 4,
        out_c: 2,
        kernel_h: 3,
        kernel_w: 3,
        stride_h: 1,
        stride_w: 1,
        dilation_h: 1,
        dilation_w: 1,
        pad_top: 1,
        pad_left: 1,
        groups: 1,
        weight_zero_points: NONE,
        act_min: -128,
        act_max: 127,
        ..op::Conv::default()
    };
    let map = |b: &mut Builder| b.tensor(&[4, 4, 2], 0);
    let channels = b.channels(&entry(2));
    let mut random = |b: &mut Builder, n: usize, bits: u8| {
        let values: Vec<i8> = (0..n).map(|_| r.weight(bits)).collect();
        b.weights(&values, bits)
    };
    let a = map(&mut b);
    let weights = random(&mut b, 36, 5);
    b.op(Op::Conv(op::Conv { input: x, output: a, weights, channels, ..window }));
    let at = b.tensors[a as usize].offset;
    let d = b.tensor_at(&[4, 4, 2], 0, at);
    let weights = random(&mut b, 18, 8);
    b.op_with_scratch(Op::Depthwise(op::Conv { input: a, output: d, weights, channels, ..window }), 16);
    let t = map(&mut b);
    let weights = random(&mut b, 36, 8);
    b.op(Op::ConvTranspose(op::Conv { input: d, output: t, weights, channels, ..window }));
    let s = map(&mut b);
    let binary = op::Binary {
        lhs: d,
        rhs: t,
        output: s,
        dims: [1, 1, 16, 2],
        lhs_strides: [0, 0, 2, 1],
        rhs_strides: [0, 0, 2, 1],
        lhs_multiplier: 1 << 20,
        rhs_multiplier: -(1 << 20),
        shift: 20,
        act_min: -128,
        act_max: 127,
        ..op::Binary::default()
    };
    b.op(Op::Add(binary));
    let m = map(&mut b);
    let scales = random(&mut b, 2, 8);
    let mul = op::Binary {
        lhs: s,
        rhs: scales,
        output: m,
        rhs_is_constant: 1,
        rhs_strides: [0, 0, 0, 1],
        lhs_multiplier: 1 << 30,
        rhs_multiplier: 0,
        shift: 36,
        ..binary
    };
    b.op(Op::Mul(mul));
    let table = b.constant(Constant::KIND_TABLE_S8, 8, 256, (0..=255).collect());
    b.op(Op::Lookup(op::Lookup { input: m, output: m, table, reserved: 0 }));
    b.op(Op::PRelu(op::PRelu { input: m, output: m, channels, c: 2, multiplier: 1 << 30, shift: 30 }));
    let pool = op::Pool {
        channels: NONE,
        in_h: 4,
        in_w: 4,
        c: 2,
        out_h: 2,
        out_w: 2,
        kernel_h: 2,
        kernel_w: 2,
        stride_h: 2,
        stride_w: 2,
        dilation_h: 1,
        dilation_w: 1,
        act_min: -128,
        act_max: 127,
        ..op::Pool::default()
    };
    let (p, v) = (b.tensor(&[2, 2, 2], 0), b.tensor(&[2, 2, 2], 0));
    b.op(Op::MaxPool(op::Pool { input: m, output: p, ..pool }));
    let one = b.channels(&entry(1));
    b.op(Op::AveragePool(op::Pool { input: m, output: v, channels: one, ..pool }));
    let joined = b.tensor(&[2, 2, 4], 0);
    let part = |input| op::ConcatInput { input, reserved: 0, inner: 2, multiplier: 1 << 30, shift: 30 };
    b.concat(joined, 4, &[part(p), part(v)]);
    let padded = b.tensor(&[3, 3, 4], 0);
    let pad = op::Pad {
        input: joined,
        output: padded,
        in_dims: [1, 1, 1, 2, 2, 4],
        out_dims: [1, 1, 1, 3, 3, 4],
        before: [0, 0, 0, 1, 0, 0],
        value: 7,
        reserved: [0; 3],
    };
    b.op(Op::Pad(pad));
    let turned = b.tensor(&[3, 3, 4], 0);
    let rearrange = op::Rearrange {
        input: padded,
        output: turned,
        dims: [1, 1, 1, 3, 3, 4],
        strides: [0, 0, 0, 4, 12, 1],
        offset: 0,
    };
    b.op(Op::Rearrange(rearrange));
    let (near, linear) = (b.tensor(&[2, 2, 4], 0), b.tensor(&[2, 2, 4], 0));
    let (rows, taps) = (b.u16s(&[0, 2]), b.u16s(&[0, 1, 1024, 1, 2, 512]));
    let resize = op::Resize { input: turned, in_h: 3, in_w: 3, c: 4, out_h: 2, out_w: 2, ..op::Resize::default() };
    b.op(Op::ResizeNearest(op::Resize { output: near, rows, columns: rows, ..resize }));
    b.op(Op::ResizeBilinear(op::Resize { output: linear, rows: taps, columns: taps, ..resize }));
    let mean = b.tensor(&[4], 0);
    b.op(Op::Mean(op::Mean {
        input: linear,
        output: mean,
        outer: 1,
        reduce: 4,
        inner: 4,
        multiplier: 1 << 30,
        shift: 32,
    }));
    let y = b.tensor(&[6], 0);
    let weights = random(&mut b, 24, 3);
    let channels = b.channels(&entry(6));
    b.op(Op::Linear(op::Linear {
        input: mean,
        output: y,
        weights,
        channels,
        rows: 1,
        k: 4,
        n: 6,
        weight_zero_points: NONE,
        act_min: -128,
        act_max: 127,
    }));
    let table = b.u16s(&(0..256).map(|i| 32_768 >> (i / 20)).collect::<Vec<u16>>());
    b.op(Op::Softmax(op::Softmax { input: y, output: y, table, reserved: 0, rows: 1, columns: 6 }));
    b.outputs = vec![y, near];
    b.finish()
}

/// A 3x3 window over six maps of 4x4, padded: what its operators have in common.
fn window() -> op::Conv {
    op::Conv {
        in_h: 4,
        in_w: 4,
        in_c: 6,
        out_h: 4,
        out_w: 4,
        out_c: 6,
        kernel_h: 3,
        kernel_w: 3,
        stride_h: 1,
        stride_w: 1,
        dilation_h: 1,
        dilation_w: 1,
        pad_top: 1,
        pad_left: 1,
        groups: 1,
        weight_zero_points: NONE,
        act_min: -128,
        act_max: 127,
        ..op::Conv::default()
    }
}

/// A model whose weights are coded, one operator in each form of them.
fn coded(residency: u16) -> Vec<u8> {
    let mut b = Builder::default();
    let mut r = Random(17);
    let x = b.tensor(&[4, 4, 6], 3);
    b.inputs = vec![x];
    let entries: Vec<(i32, i32, u8)> =
        (0..40).map(|i| (100 - 9 * i, (1 << 30) + (i << 22), 37 + i as u8 % 3)).collect();
    let stages = [false, true].map(|in_blocks| b.stages(&entries[..6], in_blocks, residency));
    let weights = |b: &mut Builder, r: &mut Random, layout, bits, shape: Shape| {
        let values: Vec<i8> = (0..shape.rows * shape.row()).map(|_| r.weight(bits)).collect();
        b.coded(layout, bits, &values, shape, residency)
    };
    let add = |b: &mut Builder, op: Op<'_>| {
        let (record, stored) = &b.constants[op.weights().unwrap() as usize];
        let own = ops::scratch_bytes(&op, record, false).next_multiple_of(4);
        let tile = ops::tile_scratch_bytes(&op, record, stored).filter(|_| record.is_in_tiles()).unwrap_or_default();
        b.op_with_scratch(op, (own + tile.iter().sum::<usize>()) as u32);
    };
    let mut input = x;
    let full = Shape { rows: 6, positions: 9, channels: 6 };
    for (layout, bits) in [(None, 5), (Some(Layout::Pairs), 4), (Some(Layout::Quads), 8), (Some(Layout::Rows), 8)] {
        let output = b.tensor(&[4, 4, 6], 0);
        let weights = weights(&mut b, &mut r, layout, bits, full);
        let channels = stages[usize::from(layout.is_some())];
        add(&mut b, Op::Conv(op::Conv { input, output, weights, channels, ..window() }));
        input = output;
    }
    let output = b.tensor(&[4, 4, 6], 0);
    let depthwise = weights(&mut b, &mut r, None, 8, Shape { channels: 1, ..full });
    let channels = stages[0];
    add(&mut b, Op::Depthwise(op::Conv { input, output, weights: depthwise, channels, ..window() }));
    let y = b.tensor(&[40], 0);
    // Blocks of four rows of 96 weights: a tile holds 16 rows of 40.
    let weights = weights(&mut b, &mut r, Some(Layout::Quads), 8, Shape { rows: 40, positions: 16, channels: 6 });
    let channels = b.stages(&entries, true, residency);
    let linear = op::Linear {
        input: output,
        output: y,
        weights,
        channels,
        rows: 1,
        k: 96,
        n: 40,
        weight_zero_points: NONE,
        act_min: -128,
        act_max: 127,
    };
    add(&mut b, Op::Linear(linear));
    b.outputs = vec![y];
    b.finish()
}

/// Asymmetric weights: of 5 bits in a convolution, of 3 bits in a depthwise one, of 4 bits in blocks of a linear layer.
pub fn asymmetric(layout: Layout) -> Vec<u8> {
    let mut r = Random(41);
    let mut b = Builder::default();
    let x = b.tensor(&[4, 4, 2], -3);
    let window = op::Conv { in_c: 2, out_c: 2, in_h: 4, in_w: 4, out_h: 4, out_w: 4, ..window() };
    let channels = b.channels(&[(100, 1 << 30, 36); 2]);
    let mut add = |b: &mut Builder, input: u16, bits: u8, len: usize, zeros: [i8; 2], run: usize| {
        let values: Vec<i8> = (0..len).map(|i| r.weight(bits) - zeros[i / run % 2]).collect();
        let (weights, weight_zero_points) = b.asymmetric(&values, bits, &zeros, run);
        let output = b.tensor(&[4, 4, 2], 0);
        op::Conv { input, output, weights, channels, weight_zero_points, ..window }
    };
    let conv = add(&mut b, x, 5, 36, [15, -16], 18);
    b.op(Op::Conv(conv));
    let depthwise = add(&mut b, conv.output, 3, 18, [-4, 1], 1);
    b.op(Op::Depthwise(depthwise));
    let y = b.tensor(&[5], 0);
    let zeros = [-8, 7, 0, 3, -1];
    let weights: Vec<i8> = (0..160).map(|i| r.weight(4) - zeros[i / 32]).collect();
    let weights = b.blocks(layout, 4, 0, [1, 1, 32], &weights, &zeros, &[(100, 1 << 30, 36); 5]);
    let record = Op::Linear(op::Linear {
        input: depthwise.output,
        output: y,
        weights,
        channels: NONE,
        rows: 1,
        k: 32,
        n: 5,
        weight_zero_points: NONE,
        act_min: -128,
        act_max: 127,
    });
    b.op_with_scratch(record, pith::ops::scratch_bytes(&record, &b.record(weights), false) as u32);
    (b.inputs, b.outputs) = (vec![x], vec![y]);
    b.finish()
}

/// A convolution of 3 bits with zero points and a linear layer of 5, in their own widths, for blocks of 4 and 8 in tiles.
pub fn narrow() -> Vec<u8> {
    let (mut r, layout, zeros) = (Random(43), Layout::Pairs, [-4, 3, 0, 1, -2, 0]);
    let mut b = Builder::default();
    let x = b.tensor(&[4, 4, 6], -3);
    let shape = Shape { rows: 6, positions: 9, channels: 6 };
    let values: Vec<i8> = (0..324).map(|i| r.weight(3) - zeros[i / 54]).collect();
    let weights = b.narrow((layout, 4), 3, &zeros, &values, shape);
    let channels = b.stages(&[(100, 1 << 30, 36); 6], true, Constant::IN_TILES);
    let conv = op::Conv { input: x, output: b.tensor(&[4, 4, 6], 0), weights, channels, ..window() };
    let add = |b: &mut Builder, op: Op<'_>, weights: u16| {
        let own = ops::scratch_bytes(&op, &b.record(weights), false).next_multiple_of(4);
        let [work, tile] = ops::tile_scratch_bytes(&op, &b.record(weights), &b.constants[weights as usize].1).unwrap();
        b.op_with_scratch(op, (own + work + tile) as u32);
    };
    add(&mut b, Op::Conv(conv), weights);
    let shape = Shape { rows: 5, positions: 16, channels: 6 };
    let values: Vec<i8> = (0..480).map(|_| r.weight(5)).collect();
    let weights = b.narrow((layout, 8), 5, &[], &values, shape);
    let channels = b.stages(&[(100, 1 << 30, 36); 5], true, Constant::IN_TILES);
    let y = b.tensor(&[5], 0);
    let record = Op::Linear(op::Linear {
        input: conv.output,
        output: y,
        weights,
        channels,
        rows: 1,
        k: 96,
        n: 5,
        weight_zero_points: NONE,
        act_min: -128,
        act_max: 127,
    });
    add(&mut b, record, weights);
    (b.inputs, b.outputs) = (vec![x], vec![y]);
    b.finish()
}

/// Three precisions of a small network, 2, 4 and 8 bits, of which each stands behind the coarser ones; for a layout or row-major.
pub fn several_precisions(layout: Option<Layout>, residency: u16) -> Vec<u8> {
    let mut r = Random(31);
    let shape = Shape { rows: 6, positions: 9, channels: 6 };
    let len = shape.rows * shape.row();
    let two: Vec<i8> = (0..len).map(|_| r.weight(2)).collect();
    // A level of twice as many bits is four times, then sixteen times finer.
    let finer = |r: &mut Random, coarse: &[i8], ratio: usize, lowest: i32| -> Vec<i8> {
        let one = |&a: &i8| a as i32 * ratio as i32 + r.below(ratio) as i32 - ratio as i32 / 2;
        coarse.iter().map(one).map(|w| w.clamp(lowest, -lowest - 1) as i8).collect()
    };
    let four = finer(&mut r, &two, 4, -8);
    let eight = finer(&mut r, &four, 16, -128);
    let mut before = Vec::new();
    for (bits, weights, coarse, ratio) in [(2, &two, None, 1), (4, &four, Some(&two), 4), (8, &eight, Some(&four), 16)]
    {
        let mut b = Builder { before, ..Builder::default() };
        let (input, output) = (b.tensor(&[4, 4, 6], 3), b.tensor(&[4, 4, 6], 0));
        (b.inputs, b.outputs) = (vec![input], vec![output]);
        let channels = b.channels(&[(100, 1 << 30, 30 + bits); 6]);
        // Not the first constant, so that its place is no accident.
        let weights = match coarse {
            None => b.coded(layout, bits, weights, shape, residency),
            Some(coarse) => {
                let params = refined::Params {
                    bottom: *coarse.iter().min().unwrap(),
                    top: *coarse.iter().max().unwrap(),
                    limit: if bits == 8 { 128 } else { 8 },
                    slack: 16,
                    signs: false,
                    ratio_shift: 4,
                    ratio_bits: 0,
                    ratio_base: 16 * ratio,
                    densities: &[250, 200, 90, 40, 10],
                };
                b.refined(layout, bits, (coarse, weights), shape, (residency, 1), &params)
            }
        };
        let conv = Op::Conv(op::Conv { input, output, weights, channels, ..window() });
        let scratch = ops::scratch_bytes(&conv, &b.constants[weights as usize].0, false) as u32;
        b.op_with_scratch(conv, scratch);
        before = b.finish();
        before.resize(before.len().next_multiple_of(16), 0);
    }
    before
}

/// Block-sparse weights: a convolution with blocks of two rows, one of one, a linear layer with a row of filler blocks.
pub fn block_sparse() -> Vec<u8> {
    let mut b = Builder::default();
    let mut r = Random(23);
    let x = b.tensor(&[6, 8, 8], 3);
    b.inputs = vec![x];
    let window = op::Conv {
        in_h: 6,
        in_w: 8,
        in_c: 8,
        out_h: 6,
        out_w: 8,
        out_c: 8,
        kernel_h: 3,
        kernel_w: 3,
        stride_h: 1,
        stride_w: 1,
        dilation_h: 1,
        dilation_w: 1,
        pad_top: 1,
        pad_left: 1,
        groups: 1,
        weight_zero_points: NONE,
        act_min: -128,
        act_max: 127,
        ..op::Conv::default()
    };
    let mut weights = |n: usize, k: usize, rows: usize| -> Vec<i8> {
        let stored: Vec<bool> = (0..n.div_ceil(rows) * k.div_ceil(4)).map(|_| r.below(4) == 0).collect();
        (0..n * k).map(|i| if stored[i / k / rows * k.div_ceil(4) + i % k / 4] { r.s8() } else { 0 }).collect()
    };
    let mut input = x;
    for rows in [2, 1] {
        let output = b.tensor(&[6, 8, 8], 0);
        let weights = b.sparse(rows, if input == x { 3 } else { 0 }, &weights(8, 72, rows), &[(100, 1 << 30, 38); 8]);
        let record = Op::Conv(op::Conv { input, output, weights, channels: NONE, ..window });
        b.op_with_scratch(record, ops::scratch_bytes(&record, &b.record(weights), false) as u32);
        input = output;
    }
    let wide = b.tensor(&[1100], 0);
    b.op(Op::Rearrange(op::Rearrange {
        input,
        output: wide,
        dims: [1, 1, 1, 1, 11, 100],
        strides: [0, 0, 0, 0, 20, 1],
        offset: 0,
    }));
    let y = b.tensor(&[5], 0);
    let mut long = weights(5, 1100, 2);
    // More blocks are left out than one gap tells.
    long[4 * 1100 + 8..5 * 1100 - 4].fill(0);
    long[5 * 1100 - 1] = 7;
    let weights = b.sparse(2, 0, &long, &[(7, 1 << 30, 40); 5]);
    let linear = Op::Linear(op::Linear {
        input: wide,
        output: y,
        weights,
        channels: NONE,
        rows: 1,
        k: 1100,
        n: 5,
        weight_zero_points: NONE,
        act_min: -128,
        act_max: 127,
    });
    b.op_with_scratch(linear, ops::scratch_bytes(&linear, &b.record(weights), false) as u32);
    b.outputs = vec![y];
    b.finish()
}

const RESIDENCIES: [u16; 3] = [Constant::IN_RAM, Constant::IN_FLASH, Constant::IN_TILES];

/// Parses and, if the file is valid, runs it; with `vectors` on every instruction set of this machine too. Code that is damaged is found when it is
/// decoded, or makes wrong outputs.
fn survive(file: &mut Memory, arena: &mut Memory, vectors: bool) -> bool {
    let file = file.bytes();
    // Every precision; whether the last of them runs.
    let (mut models, mut ran) = (pith::precisions(file), false);
    while let Some(model) = models.next() {
        ran = model.is_ok_and(|model| survive_model(&model, arena, vectors));
        assert!(models.bytes() <= file.len());
    }
    ran
}

fn survive_model(coded: &Model<'_>, arena: &mut Memory, vectors: bool) -> bool {
    let needed = coded.arena_bytes();
    let arena = arena.bytes();
    if needed + 16 > arena.len() || coded.decoded_bytes() > 1 << 20 || coded.decode_scratch_bytes() > 1 << 20 {
        return false;
    }
    let mut scratch = vec![0; coded.decode_scratch_bytes()];
    let undamaged = coded.verify(&mut scratch).is_ok();
    let mut decoded = Memory::new(coded.decoded_bytes(), 0);
    let Ok(model) = coded.decode_into(decoded.bytes(), &mut scratch) else {
        assert!(!undamaged);
        return false;
    };
    arena.fill(0x5A);
    let Ok(mut engine) = Engine::new(&model, arena) else { return false };
    for i in 0..model.inputs().len() {
        engine.input(i).fill(-77);
    }
    engine.run();
    let outputs: Vec<Vec<i8>> = (0..model.outputs().len()).map(|i| engine.output(i).to_vec()).collect();
    let names = model.ops().map(|(head, _)| model.op_name(&head).len()).sum::<usize>() + model.metadata().len();
    std::hint::black_box(names);
    assert!(arena[needed..].iter().all(|&v| v == 0x5A), "memory beyond the arena was written");
    if vectors {
        for isa in Isa::available() {
            let mut workspace = vec![0x5A; Engine::workspace_bytes(&model, isa)];
            arena.fill(0x5A);
            let engine = Engine::with_workspace(&model, arena, isa, &mut workspace);
            // Tiles are decoded when they are packed.
            let Ok(mut engine) = engine else {
                assert!(!undamaged, "a workspace");
                continue;
            };
            for i in 0..model.inputs().len() {
                engine.input(i).fill(-77);
            }
            engine.run();
            let same = outputs.iter().enumerate().all(|(i, output)| engine.output(i) == output);
            assert!(same, "{isa:?} gave other bytes");
            assert!(arena[needed..].iter().all(|&v| v == 0x5A), "{isa:?} wrote beyond the arena");
        }
    }
    true
}

/// Changes a few bytes, mostly to what hurts.
fn mutate(bytes: &mut Vec<u8>, r: &mut Random) {
    for _ in 0..1 + r.below(3) {
        let at = r.below(bytes.len());
        match r.below(6) {
            0 => bytes[at] ^= 1 << r.below(8),
            1 => bytes[at] = r.next() as u8,
            2 => bytes[at] = [0, 1, 127, 128, 255][r.below(5)],
            3 => {
                let word = [0u32, 1, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, u32::MAX][r.below(6)].to_le_bytes();
                let at = at & !3;
                bytes[at..].iter_mut().zip(word).for_each(|(to, from)| *to = from);
            }
            4 => {
                let (from, len) = (r.below(bytes.len()), 1 + r.below(16));
                let part: Vec<u8> = bytes[from..].iter().copied().take(len).collect();
                bytes[at..].iter_mut().zip(part).for_each(|(to, from)| *to = from);
            }
            _ if r.below(4) == 0 => bytes.truncate(at.max(1)),
            _ => {}
        }
    }
    if r.below(8) > 0 && bytes.len() > 16 {
        seal(bytes);
    }
}

#[test]
fn mutants_do_not_panic() {
    let default = if cfg!(miri) { 200 } else { 1_000_000 };
    let count: usize = std::env::var("PITH_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let parts: Vec<(Vec<u8>, usize)> = [every_operator(), block_sparse(), asymmetric(Layout::Pairs), narrow()]
        .into_iter()
        .map(|good| (good, count / 8))
        .chain(RESIDENCIES.map(|residency| (coded(residency), count / 8)))
        .chain([(several_precisions(Some(Layout::Pairs), Constant::IN_RAM), count / 8)])
        .collect();
    let part = |(index, (good, count)): (usize, &(Vec<u8>, usize))| {
        let (mut arena, mut r) = (Memory::new(1 << 16, 0), Random(99 + index as u64));
        assert!(survive(&mut Memory::of(good), &mut arena, true), "the original runs");
        let mut ran = 0;
        for round in 0..*count {
            let mut bytes = good.clone();
            mutate(&mut bytes, &mut r);
            ran += usize::from(survive(&mut Memory::of(&bytes), &mut arena, round % 8 == 0));
        }
        println!("{count} mutants, {ran} of them valid and run");
        assert!(ran > count / 50, "the mutations never reach a run");
    };
    // A thread for each file: a scope ends with a panic if one of them did.
    std::thread::scope(|scope| {
        for task in parts.iter().enumerate() {
            scope.spawn(move || part(task));
        }
    });
}

#[test]
fn residencies_give_the_same_and_damaged_code_is_named() {
    let mut outputs = Vec::new();
    for residency in RESIDENCIES {
        let mut file = Memory::of(&coded(residency));
        let model = Model::parse(file.bytes()).unwrap();
        let mut arena = Memory::new(model.arena_bytes(), 0x5A);
        let is_resident = residency != Constant::IN_TILES;
        assert_eq!(Engine::new(&model, arena.bytes()).err(), is_resident.then_some(Error::NotDecoded));
        let mut decoded = Memory::new(model.decoded_bytes(), 0);
        let whole = decode(&model, &mut decoded);
        let mut engine = Engine::new(&whole, arena.bytes()).unwrap();
        engine.input(0).fill(40);
        engine.run();
        outputs.push(engine.output(0).to_vec());
    }
    assert!(outputs.iter().all(|output| output == &outputs[0]) && outputs[0].iter().any(|&q| q != outputs[0][0]));

    for residency in RESIDENCIES {
        let good = coded(residency);
        let (id, constant, weights) = {
            let mut file = Memory::of(&good);
            let model = Model::parse(file.bytes()).unwrap();
            let is_code = |c: &Constant| c.is_coded() && c.kind != Constant::KIND_CHANNELS;
            let (id, constant) = model.constants().iter().enumerate().filter(|(_, c)| is_code(c)).nth(2).unwrap();
            (id, *constant, model.header().weights_offset)
        };
        let mut bytes = good.clone();
        bytes[(weights + constant.offset + constant.bytes) as usize - 1] ^= 4;
        seal(&mut bytes);
        let mut file = Memory::of(&bytes);
        let model = Model::parse(file.bytes()).unwrap();
        let mut scratch = vec![0; model.decode_scratch_bytes()];
        let error = model.verify(&mut scratch).unwrap_err();
        assert!(matches!(error, Error::Constant { index, .. } if index == id), "{error}");
        assert!(error.to_string().contains("damaged"), "{error}");
        let mut decoded = Memory::new(model.decoded_bytes(), 0);
        let result = model.decode_into(decoded.bytes(), &mut scratch).map(|_| ());
        assert_eq!(result.err(), (residency != Constant::IN_TILES).then_some(error));
    }
}

#[test]
fn pages_are_what_ram_would_hold() {
    let mut file = Memory::of(&coded(Constant::IN_FLASH));
    let model = Model::parse(file.bytes()).unwrap();
    let mut scratch = vec![0; model.decode_scratch_bytes()];
    let mut ram = Memory::new(model.decoded_bytes(), 0xEE);
    model.decode_into(ram.bytes(), &mut scratch).unwrap();
    for page_bytes in [1, 7, 256, 1 << 14] {
        let mut flash = Memory::new(model.decoded_bytes().next_multiple_of(page_bytes), 0xEE);
        let mut next = 0;
        let mut write = |offset: usize, page: &[u8]| {
            assert_eq!((offset, page.len()), (next, page_bytes));
            flash.bytes()[offset..offset + page.len()].copy_from_slice(page);
            next += page.len();
            true
        };
        model.decode_with(&mut scratch, &mut vec![0; page_bytes], &mut write).unwrap();
        assert_eq!(flash.bytes()[..model.decoded_bytes()], *ram.bytes());
        assert_eq!(crc32(ram.bytes()), model.header().decoded_crc32);
        assert!(model.with_decoded(flash.bytes()).unwrap().is_decoded());
        flash.bytes()[5] ^= 1;
        assert!(matches!(model.with_decoded(flash.bytes()), Err(Error::DecodedChecksum { .. })));
    }
    let mut refuse = |offset: usize, _: &[u8]| offset == 0;
    let refused = model.decode_with(&mut scratch, &mut [0; 64], &mut refuse);
    assert_eq!(refused, Err(Error::WriteRefused { offset: 64 }));
    let (needed, given) = (model.decode_scratch_bytes(), 3);
    let small = model.verify(&mut scratch[..given]).unwrap_err();
    assert!(matches!(small, Error::DecodeTooSmall { needed: n, given: 3, .. } if n <= needed), "{small}");
    let short = ram.bytes().len() - 1;
    assert!(matches!(model.with_decoded(&ram.bytes()[..short]), Err(Error::DecodeTooSmall { .. })));
}

#[test]
fn errors_say_what_and_where() {
    let good = every_operator();
    let parse = |bytes: &[u8]| Model::parse(Memory::of(bytes).bytes()).err().unwrap();
    assert_eq!(parse(b"ELF....."), Error::NotAModel);
    assert!(matches!(parse(&good[..good.len() - 1]), Error::Truncated { .. }));
    assert!(matches!(parse(&[]), Error::Truncated { .. }));
    let changed = |at: usize, value: u8, sealed: bool| {
        let mut bytes = good.clone();
        bytes[at] = value;
        if sealed {
            seal(&mut bytes);
        }
        parse(&bytes)
    };
    assert_eq!(changed(4, 2, true), Error::Version { found: 2 });
    assert!(matches!(changed(200, 0xEE, false), Error::Checksum { .. }));
    assert!(matches!(changed(16, 16, true), Error::Unsupported { .. }));
    assert!(changed(16, 4, true).to_string().contains("behind the coarser ones"));
    let mut memory = Memory::of(&[&[0; 4], good.as_slice()].concat());
    assert_eq!(Model::parse(&memory.bytes()[4..]).err(), Some(Error::FileMisaligned));
    let mut file = Memory::of(&good);
    let model = Model::parse(file.bytes()).unwrap();
    let needed = model.arena_bytes();
    let mut arena = Memory::new(needed, 0);
    let small = Engine::new(&model, &mut arena.bytes()[..needed - 1]).err();
    assert_eq!(small, Some(Error::ArenaTooSmall { needed, given: needed - 1 }));
    assert_eq!(Engine::new(&model, &mut arena.bytes()[1..]).err(), Some(Error::ArenaMisaligned));
    assert!(small.unwrap().to_string().contains("needs"));
}

#[test]
fn block_sparse_weights_are_checked() {
    let good = block_sparse();
    let (constant, weights) = {
        let mut file = Memory::of(&good);
        let model = Model::parse(file.bytes()).unwrap();
        (model.constants()[0], model.header().weights_offset as usize)
    };
    let record = u32::from_le_bytes(good[28..32].try_into().unwrap()) as usize;
    let changed = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        seal(&mut bytes);
        Model::parse(Memory::of(&bytes).bytes()).err().unwrap().to_string()
    };
    // A reader that does not know the feature refuses it; so does one that is not told of it.
    assert_eq!(good[16], 2);
    assert!(changed(16, 0).contains("encoding"));
    assert!(changed(record + 1, Constant::KIND_WEIGHTS).contains("block-sparse"));
    assert!(changed(record + 2, 4).contains("block-sparse"));
    assert!(changed(record + 3, 6).contains("block-sparse"));
    let band = weights + constant.offset as usize;
    assert!(changed(band + 16, 0).contains("shift"));
    let blocks = u16::from_le_bytes([good[band + 18], good[band + 19]]);
    assert!(changed(band + 18, blocks as u8 + 1).len() > 4);
    // The last gap of the first run leads out of the row.
    let first = match blocks % 4 {
        0 => 4,
        n => n as usize,
    };
    assert!(changed(band + 20 + 8 * first + 3, 255).contains("place"));
}

#[test]
fn zero_points_of_weights_are_checked() {
    let good = asymmetric(Layout::Pairs);
    let (zeros, bits) = {
        let mut file = Memory::of(&good);
        let model = Model::parse(file.bytes()).unwrap();
        let Op::Conv(conv) = model.ops().next().unwrap().1 else { panic!("the first operator is a convolution") };
        let record = model.header().constants_offset as usize + size_of::<Constant>() * conv.weights as usize;
        let zeros = model.constants()[conv.weight_zero_points as usize];
        (model.header().weights_offset as usize + zeros.offset as usize, record + 2)
    };
    let changed = |bytes: &[u8], at: usize, value: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = value;
        seal(&mut bytes);
        Model::parse(Memory::of(&bytes).bytes()).err().map(|e| e.to_string()).unwrap_or_default()
    };
    // A reader that does not know the feature refuses it; so does one that is not told of it.
    assert_eq!(good[16], 8);
    assert!(changed(&good, 16, 0).contains("does not require"));
    assert_eq!([good[zeros], good[bits]], [15, 5]);
    assert!(changed(&good, zeros, 16).contains("zero point of weights"));
    assert!(changed(&good, zeros + 1, -17i8 as u8).contains("zero point of weights"));
    // In blocks they stand in the block, which lies behind two constants of weights, their zero points and output stages.
    for layout in [Layout::Pairs, Layout::Quads] {
        let good = asymmetric(layout);
        let mut file = Memory::of(&good);
        let model = Model::parse(file.bytes()).unwrap();
        let blocks = model.constants().iter().find(|c| c.kind == Constant::KIND_BLOCKS).unwrap();
        let zeros = (model.header().weights_offset + blocks.offset) as usize + 9 * layout.rows();
        assert_eq!(good[zeros], -8i8 as u8);
        assert!(changed(&good, zeros, 8).contains("zero point"));
        assert_eq!(changed(&good, zeros, 7), "");
    }
}

#[test]
fn an_operand_replaced_in_place_is_as_long_as_the_output() {
    for len in [10, 20] {
        let mut b = Builder::default();
        let lhs = b.tensor(&[len], 0);
        let y = b.tensor_at(&[10], 0, 0);
        let rhs = b.tensor_at(&[10], 0, if len == 20 { 10 } else { 20 });
        b.op(Op::Add(op::Binary {
            lhs,
            rhs,
            output: y,
            dims: [1, 1, 1, 10],
            lhs_strides: [0, 0, 0, 1],
            rhs_strides: [0, 0, 0, 1],
            shift: 1,
            act_min: -128,
            act_max: 127,
            ..op::Binary::default()
        }));
        (b.inputs, b.outputs) = (vec![lhs, rhs], vec![y]);
        let mut file = Memory::of(&b.finish());
        assert_eq!(Model::parse(file.bytes()).is_ok(), len == 10, "{len} elements");
    }
}

#[test]
fn every_precision_is_what_it_is_alone() {
    for layout in [None, Some(Layout::Pairs), Some(Layout::Quads)] {
        for residency in [Constant::IN_RAM, Constant::IN_FLASH] {
            let mut file = Memory::of(&several_precisions(layout, residency));
            let models: Vec<Model<'_>> = pith::precisions(file.bytes()).map(Result::unwrap).collect();
            assert_eq!(models.len(), 3);
            let mut outputs = Vec::new();
            for model in &models {
                let mut decoded = Memory::new(model.decoded_bytes(), 0);
                let whole = decode(model, &mut decoded);
                let mut arena = Memory::new(model.arena_bytes(), 0);
                let mut engine = Engine::new(&whole, arena.bytes()).unwrap();
                engine.input(0).fill(40);
                engine.run();
                outputs.push(engine.output(0).to_vec());
            }
            // A shift for every four times as many levels: the outputs are near each other, and not the same.
            assert!(outputs[0] != outputs[1] && outputs[1] != outputs[2], "{layout:?}");
        }
    }
}

#[test]
fn a_part_of_the_file_is_a_file() {
    let whole = several_precisions(None, Constant::IN_RAM);
    let mut file = Memory::of(&whole);
    // Where each precision's last byte is, and where the next begins.
    let (mut models, mut ends, mut starts) = (pith::precisions(file.bytes()), Vec::new(), vec![0]);
    while let Some(model) = models.next() {
        ends.push(starts.last().unwrap() + model.unwrap().header().file_bytes as usize);
        starts.push(models.bytes());
    }
    assert_eq!((ends.len(), starts[3]), (3, whole.len()));
    for cut in 1..whole.len() {
        let mut part = Memory::of(&whole[..cut]);
        let read: Vec<bool> = pith::precisions(part.bytes()).map(|model| model.is_ok()).collect();
        let complete = read.iter().filter(|&&ok| ok).count();
        assert_eq!(complete, ends.iter().filter(|&&end| cut >= end).count(), "cut at {cut}");
        assert!(read[..complete].iter().all(|&ok| ok));
    }
    // What stands behind another model is not this model's finer precision.
    let other = several_precisions(Some(Layout::Pairs), Constant::IN_RAM);
    let first = Model::parse(Memory::of(&other).bytes()).unwrap().header().file_bytes as usize;
    let swapped = [&other[..first.next_multiple_of(16)], &whole[starts[1]..]].concat();
    let mut swapped = Memory::of(&swapped);
    let read: Vec<_> = pith::precisions(swapped.bytes()).collect();
    assert!(read[0].is_ok() && matches!(read[1], Err(Error::Checksum { .. })) && read.len() == 2);
    // Nor is it a model by itself.
    let mut alone = Memory::of(&whole[starts[1]..]);
    let error = Model::parse(alone.bytes()).unwrap_err();
    assert!(error.to_string().contains("finer precision"), "{error}");
}

#[test]
fn damage_of_any_precision_is_found() {
    let whole = several_precisions(Some(Layout::Pairs), Constant::IN_RAM);
    let mut file = Memory::of(&whole);
    let weights: Vec<usize> = pith::precisions(file.bytes())
        .map(Result::unwrap)
        .map(|model| {
            let coded = model.constants().iter().find(|c| c.is_coded()).unwrap();
            (model.header().weights_offset + coded.offset + coded.bytes - 1) as usize
        })
        .collect();
    let mut models = pith::precisions(file.bytes());
    let mut starts = vec![0];
    while models.next().is_some() {
        starts.push(models.bytes());
    }
    for damaged in 0..3 {
        let mut bytes = whole.clone();
        bytes[starts[damaged] + weights[damaged]] ^= 4;
        seal(&mut bytes);
        let mut file = Memory::of(&bytes);
        for (index, model) in pith::precisions(file.bytes()).enumerate() {
            let model = model.unwrap();
            let is_good = model.verify(&mut vec![0; model.decode_scratch_bytes()]).is_ok();
            // A finer precision is decoded from the coarser ones.
            assert_eq!(is_good, index < damaged, "precision {index}, damage in {damaged}");
        }
    }
}
