//! Random damage to valid files: whatever comes out, `parse` and `run` do not panic and nothing beyond the arena is written.
//!
//! Most mutants get a fresh checksum, so that they reach the deeper checks. `PITH_MUTATIONS` sets how many are tried.

use crate::cases::model::{Builder, Memory, Random, seal};
use pith::format::NONE;
use pith::format::op::{self, Op};
use pith::format::tensor::Constant;
use pith::{Engine, Error, Isa, Model};

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

/// Parses and, if the file is valid, runs it; with `vectors` on every instruction set of this machine too.
fn survive(file: &mut Memory, arena: &mut Memory, vectors: bool) -> bool {
    let Ok(model) = Model::parse(file.bytes()) else { return false };
    let needed = model.arena_bytes();
    let arena = arena.bytes();
    if needed + 16 > arena.len() {
        return false;
    }
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
            let mut engine = Engine::with_workspace(&model, arena, isa, &mut workspace).expect("a workspace");
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

#[test]
fn mutants_do_not_panic() {
    let default = if cfg!(miri) { 200 } else { 1_000_000 };
    let count: usize = std::env::var("PITH_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let good = every_operator();
    let mut arena = Memory::new(1 << 16, 0);
    assert!(survive(&mut Memory::of(&good), &mut arena, true), "the original runs");
    let mut r = Random(99);
    let mut ran = 0;
    for round in 0..count {
        let mut bytes = good.clone();
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
            seal(&mut bytes);
        }
        ran += usize::from(survive(&mut Memory::of(&bytes), &mut arena, round % 8 == 0));
    }
    println!("{count} mutants, {ran} of them valid and run");
    assert!(ran > count / 50, "the mutations never reach a run");
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
    assert!(matches!(changed(16, 2, true), Error::Unsupported { .. }));
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
