//! Shapes that fill vectors and tiles, on every instruction set of the machine against the generic kernels: channels around multiples of the lanes,
//! many pixels, long runs, strides, one pixel and one channel; additions and pools of odd lengths.

use crate::cases::block_sparse;
use crate::cases::model::{Builder, Memory, Random, decode};
use crate::rounds;
use pith::format::NONE;
use pith::format::op::{self, Op};
use pith::{Engine, Isa, Model};

/// Where the machine is known, so is its best set.
#[test]
fn the_best_set_is_found() {
    if let Ok(best) = std::env::var("PITH_BEST") {
        assert_eq!(pith::Isa::detect().name(), best);
    }
}

const ROUNDS: usize = 250;

/// Three threads.
#[derive(Debug)]
struct Threads;

impl pith::Parallel for Threads {
    fn threads(&self) -> usize {
        3
    }

    fn run(&self, parts: &mut [&mut (dyn FnMut() + Send)]) {
        std::thread::scope(|scope| parts.iter_mut().for_each(|part| drop(scope.spawn(part))));
    }
}

/// The first output of a model for its inputs, the same from the generic kernels and from every instruction set of this machine; memory beyond arena
/// and workspace must stay as it was.
pub fn run_everywhere(file: &[u8], inputs: &[Vec<i8>]) -> Vec<i8> {
    const GUARD: u8 = 0xA5;
    let mut file = Memory::of(file);
    let coded = Model::parse(file.bytes()).expect("a valid model");
    let mut decoded = Memory::new(coded.decoded_bytes(), 0);
    let model = decode(&coded, &mut decoded);
    let needed = model.arena_bytes();
    let run = |engine: &mut Engine<'_, '_>| {
        for (i, x) in inputs.iter().enumerate() {
            engine.input(i).copy_from_slice(x);
        }
        engine.run();
        engine.output(0).to_vec()
    };
    let mut arena = Memory::new(needed + 64, GUARD);
    let output = run(&mut Engine::new(&model, arena.bytes()).unwrap());
    assert!(arena.bytes()[needed..].iter().all(|&v| v == GUARD), "memory beyond the arena was written");
    // Resident weights may be decoded before, or when they are packed.
    let models = if coded.decoded_bytes() > 0 { vec![model, coded] } else { vec![model] };
    for (model, isa) in models.iter().flat_map(|model| Isa::available().map(move |isa| (model, isa))) {
        let bytes = Engine::workspace_bytes(model, isa);
        let mut arena = Memory::new(needed + 64, GUARD);
        let mut workspace = Memory::new(bytes + 64, GUARD);
        let engine = Engine::with_workspace(model, arena.bytes(), isa, &mut workspace.bytes()[..bytes]);
        let got = run(&mut engine.unwrap().in_parallel(&Threads));
        assert_eq!(got, output, "{isa:?}");
        assert!(arena.bytes()[needed..].iter().all(|&v| v == GUARD), "{isa:?} wrote beyond the arena");
        assert!(workspace.bytes()[bytes..].iter().all(|&v| v == GUARD), "{isa:?} wrote beyond the workspace");
    }
    output
}

/// Stages that mostly use the high word, sometimes with doublings, and once in a while one that needs 64 bits.
fn entries(r: &mut Random, n: usize) -> Vec<(i32, i32, u8)> {
    let least = [33, 33, 33, 33, 25, 1][r.below(6)];
    let one = |r: &mut Random| {
        let bias = if r.below(8) == 0 { r.next() as i32 } else { r.within(-90_000, 90_000) as i32 };
        (bias, r.within(1 << 30, i32::MAX as i64) as i32, r.within(least, 45) as u8)
    };
    (0..n).map(|_| one(r)).collect()
}

fn values(r: &mut Random, n: usize) -> Vec<i8> {
    (0..n).map(|_| r.s8()).collect()
}

fn bounds(r: &mut Random) -> (i8, i8) {
    if r.below(2) == 0 { (-128, 127) } else { (r.within(-128, 0) as i8, r.within(0, 127) as i8) }
}

#[test]
fn convolutions_of_many_channels() {
    let mut r = Random(11);
    for round in 0..rounds(ROUNDS) {
        let depthwise = round % 2 == 1;
        let channels = |r: &mut Random| [1, 3, 8, 15, 16, 17, 31, 32, 33, 48, 64, 65, 100, 128][r.below(14)] as u16;
        let in_c = channels(&mut r);
        let out_c = if depthwise { in_c } else { channels(&mut r) };
        let mut u = |n: usize| 1 + r.below(n) as u16;
        let (kernel_h, kernel_w, stride_h, stride_w) = (u(4), u(6), u(3), u(3));
        let (out_h, out_w, pad_top, pad_left) = (u(6), u(36), u(3) - 1, u(3) - 1);
        let room = |out: u16, stride: u16, kernel: u16, pad: u16, after: u16| {
            ((out - 1) * stride + kernel).saturating_sub(pad).saturating_sub(after).max(1)
        };
        let (in_h, in_w) =
            (room(out_h, stride_h, kernel_h, pad_top, u(2) - 1), room(out_w, stride_w, kernel_w, pad_left, u(2) - 1));
        let (act_min, act_max) = bounds(&mut r);
        let c = op::Conv {
            in_h,
            in_w,
            in_c,
            out_h,
            out_w,
            out_c,
            kernel_h,
            kernel_w,
            stride_h,
            stride_w,
            dilation_h: 1,
            dilation_w: 1,
            pad_top,
            pad_left,
            groups: 1,
            weight_zero_points: NONE,
            act_min,
            act_max,
            ..op::Conv::default()
        };
        let bits = [8, 8, 4, 3][r.below(4)];
        let filters = if depthwise { 1 } else { in_c as usize };
        let len = out_c as usize * kernel_h as usize * kernel_w as usize * filters;
        // Extremes often enough that they meet.
        let extreme = bits == 8 && r.below(2) == 0;
        let weights: Vec<i8> = (0..len).map(|_| if extreme { r.s8() } else { r.weight(bits) }).collect();
        let channels = entries(&mut r, out_c as usize);
        let mut b = Builder::default();
        let x = b.tensor(&[in_h, in_w, in_c].map(usize::from), r.within(-128, 127) as i32);
        let y = b.tensor(&[out_h, out_w, out_c].map(usize::from), r.within(-128, 127) as i32);
        let (w, ch) = (b.weights(&weights, bits), b.channels(&channels));
        let record = op::Conv { input: x, output: y, weights: w, channels: ch, ..c };
        b.op(if depthwise { Op::Depthwise(record) } else { Op::Conv(record) });
        (b.inputs, b.outputs) = (vec![x], vec![y]);
        let input = values(&mut r, in_h as usize * in_w as usize * in_c as usize);
        run_everywhere(&b.finish(), &[input]);
    }
}

/// In planes where a set has them, packed with their zeros elsewhere: the outputs of dense weights.
#[test]
fn block_sparse_layers() {
    let mut r = Random(14);
    for round in 0..rounds(ROUNDS) {
        let in_c = 4 * (1 + r.below(12)) as u16;
        let out_c = [1, 2, 3, 5, 8, 16, 17, 64][r.below(8)] as u16;
        let mut u = |n: usize| 1 + r.below(n) as u16;
        let (kernel_h, kernel_w, stride_h, stride_w) = (u(3), u(4), u(5), u(5));
        let (out_h, out_w, pad_top, pad_left) = (u(6), u(36), u(3) - 1, u(3) - 1);
        let room = |out: u16, stride: u16, kernel: u16, pad: u16| ((out - 1) * stride + kernel).saturating_sub(pad);
        let (act_min, act_max) = bounds(&mut r);
        let c = op::Conv {
            in_h: room(out_h, stride_h, kernel_h, pad_top).max(1),
            in_w: room(out_w, stride_w, kernel_w, pad_left).max(1),
            in_c,
            out_h,
            out_w,
            out_c,
            kernel_h,
            kernel_w,
            stride_h,
            stride_w,
            dilation_h: 1,
            dilation_w: 1,
            pad_top,
            pad_left,
            groups: 1,
            weight_zero_points: NONE,
            act_min,
            act_max,
            ..op::Conv::default()
        };
        let (n, k) = (out_c as usize, kernel_h as usize * kernel_w as usize * in_c as usize);
        let (rows, weights) = block_sparse(&mut r, n, k);
        let channels = entries(&mut r, n);
        let zero = r.within(-128, 127) as i32;
        let linear = round % 4 == 0;
        let windows = if linear { [1, out_w as usize, k] } else { [c.in_h, c.in_w, in_c].map(usize::from) };
        let input = values(&mut r, windows.iter().product());
        let file = |sparse: bool| {
            let mut b = Builder::default();
            let x = b.tensor(&windows, zero);
            let y = b.tensor(&if linear { [1, out_w as usize, n] } else { [out_h, out_w, out_c].map(usize::from) }, -3);
            let (weights, channels) = match sparse {
                true => (b.sparse(rows, zero, &weights, &channels), NONE),
                false => (b.weights(&weights, 8), b.channels(&channels)),
            };
            let (k, n, rows) = (k as u32, n as u32, out_w as u32);
            let op = match linear {
                true => Op::Linear(op::Linear {
                    input: x,
                    output: y,
                    weights,
                    channels,
                    rows,
                    k,
                    n,
                    weight_zero_points: NONE,
                    act_min,
                    act_max,
                }),
                false => Op::Conv(op::Conv { input: x, output: y, weights, channels, ..c }),
            };
            b.op_with_scratch(op, pith::ops::scratch_bytes(&op, &b.record(weights), false) as u32);
            (b.inputs, b.outputs) = (vec![x], vec![y]);
            b.finish()
        };
        let dense = run_everywhere(&file(false), std::slice::from_ref(&input));
        assert_eq!(run_everywhere(&file(true), std::slice::from_ref(&input)), dense, "blocks of {rows}: {c:?}");
    }
}

#[test]
fn long_linear_layers() {
    let mut r = Random(12);
    for _ in 0..rounds(ROUNDS) {
        let rows = [1, 1, 2, 5, 17, 40][r.below(6)];
        let (k, n) = (1 + r.below(700), [1, 10, 16, 33, 64, 130][r.below(6)]);
        let (act_min, act_max) = bounds(&mut r);
        let mut b = Builder::default();
        // Zero points may lie outside of int8 where nothing is padded.
        let zero = if r.below(4) == 0 { r.within(-16_384, 16_383) } else { r.within(-128, 127) };
        let x = b.tensor(&[rows, k], zero as i32);
        let y = b.tensor(&[rows, n], r.within(-128, 127) as i32);
        let weights = values(&mut r, n * k);
        let channels = entries(&mut r, n);
        let (weights, channels) = (b.weights(&weights, 8), b.channels(&channels));
        b.op(Op::Linear(op::Linear {
            input: x,
            output: y,
            weights,
            channels,
            rows: rows as u32,
            k: k as u32,
            n: n as u32,
            weight_zero_points: NONE,
            act_min,
            act_max,
        }));
        (b.inputs, b.outputs) = (vec![x], vec![y]);
        let input = values(&mut r, rows * k);
        run_everywhere(&b.finish(), &[input]);
    }
}

#[test]
fn long_additions_and_wide_pools() {
    let mut r = Random(13);
    for _ in 0..rounds(ROUNDS) {
        let len = 1 + r.below(300);
        let (act_min, act_max) = bounds(&mut r);
        let mut b = Builder::default();
        let zeros = [0; 3].map(|_: i32| r.within(-128, 127) as i32);
        let lhs = b.tensor(&[len], zeros[0]);
        let rhs = b.tensor(&[len], zeros[1]);
        let output = if r.below(2) == 0 { b.tensor_at(&[len], zeros[2], 0) } else { b.tensor(&[len], zeros[2]) };
        let limit = pith::fixed::SUM_MULTIPLIER_MAX as i64;
        let dims = [1, 1, 1, len as u32];
        b.op(Op::Add(op::Binary {
            lhs,
            rhs,
            output,
            dims,
            lhs_strides: pith::ops::dense_strides(&dims),
            rhs_strides: pith::ops::dense_strides(&dims),
            lhs_multiplier: r.within(-limit, limit) as i32,
            rhs_multiplier: r.within(-limit, limit) as i32,
            shift: r.within(1, 30) as u8,
            act_min,
            act_max,
            ..op::Binary::default()
        }));
        (b.inputs, b.outputs) = (vec![lhs, rhs], vec![output]);
        let inputs = [values(&mut r, len), values(&mut r, len)];
        run_everywhere(&b.finish(), &inputs);
    }
}

#[test]
fn raw_inputs_are_quantized_as_one_by_one() {
    let mut b = Builder::default();
    let shape = [61];
    let x = b.tensor(&shape, 3);
    let table = b.u16s(&(0..256).map(|i| 32_768 >> (i / 20)).collect::<Vec<u16>>());
    b.op(Op::Softmax(op::Softmax { input: x, output: x, table, reserved: 0, rows: 1, columns: 61 }));
    (b.inputs, b.outputs) = (vec![x], vec![x]);
    let mut file = Memory::of(&b.finish());
    let model = Model::parse(file.bytes()).expect("a valid model");
    let port = model.inputs()[0];
    let mut raw: Vec<f32> = (0..61).map(|i| port.scale * (i as f32 * 5.5 - 160.0)).collect();
    raw[..6].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -0.0, f32::MIN_POSITIVE]);
    let expected: Vec<i8> = raw.iter().map(|&v| port.quantize(v)).collect();
    for isa in Isa::available() {
        let mut arena = Memory::new(model.arena_bytes(), 0);
        let mut workspace = vec![0; Engine::workspace_bytes(&model, isa)];
        let mut engine = Engine::with_workspace(&model, arena.bytes(), isa, &mut workspace).unwrap();
        engine.write_input(0, &raw);
        assert_eq!(engine.input(0), expected, "{isa:?}");
    }
}
