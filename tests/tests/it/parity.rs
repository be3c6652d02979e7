//! Every operator: float meaning against the integers of the device, within the error that the scales allow; and the same bytes
//! whatever lay in the arena before, with and without in-place operators.
//!
//! Inputs are drawn on the input's own integer grid, so that they are exact. What remains: half an output step, and for operators
//! with weights half a weight step times the input, summed over the filter.

use ndarray::{ArrayD, Axis, IxDyn};
use pith::{Engine, Model};
use quantize::calibrate::{Observer, observe};
use quantize::execute::{dequantize, quantize as to_int8, shape_of};
use quantize::graph::scalar::{Binary, Unary};
use quantize::graph::{BinaryKind, Clamp, Graph, Op, ScalarFn, Tap, Window, eval};
use quantize::lower::lower;
use quantize::pack::{Arena, ModelFile, PackOptions, PlanOptions, pack};
use quantize::scheme::{Choice, QuantOptions, Rounding, quantize};

struct Random(u64);

impl Random {
    fn real(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn array(&mut self, shape: &[usize]) -> ArrayD<f32> {
        ArrayD::from_shape_simple_fn(IxDyn(shape), || self.real())
    }

    fn vector(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.real()).collect()
    }
}

const SHAPE: [usize; 4] = [1, 7, 6, 4];

fn window(kernel: [usize; 2], stride: usize, dilation: usize, pad: [usize; 4]) -> Window {
    Window { kernel, stride: [stride; 2], dilation: [dilation; 2], pad }
}

/// Every operator once or more, with the number of inputs it takes.
fn operators(r: &mut Random) -> Vec<(&'static str, Op, usize)> {
    let none = Clamp::NONE;
    let conv = |r: &mut Random, name, window: Window, groups: usize, oc: usize, clamp| {
        let weight = r.array(&[oc, window.kernel[0], window.kernel[1], 4 / groups]);
        (name, Op::Conv2d { window, groups, weight, bias: r.vector(oc), clamp }, 1)
    };
    let mut all = vec![
        conv(r, "conv", window([3, 3], 1, 1, [1; 4]), 1, 5, none),
        conv(r, "conv strided, asymmetric padding, relu", window([3, 2], 2, 1, [1, 0, 2, 1]), 1, 3, Clamp::RELU),
        conv(r, "conv dilated, relu6", window([2, 2], 1, 2, [0; 4]), 1, 6, Clamp::RELU6),
        conv(r, "conv in groups", window([3, 3], 1, 1, [1; 4]), 2, 6, none),
        conv(r, "depthwise", window([3, 3], 1, 1, [1; 4]), 4, 4, Clamp::RELU),
        conv(r, "depthwise strided", window([3, 3], 2, 1, [1; 4]), 4, 4, none),
        conv(r, "depthwise with multiplier", window([3, 3], 1, 1, [1; 4]), 4, 8, none),
    ];
    let weight = r.array(&[3, 3, 3, 4]);
    let transpose = window([3, 3], 2, 1, [1, 1, 0, 1]);
    let op = Op::ConvTranspose2d {
        window: transpose,
        output_padding: [0, 1],
        groups: 1,
        weight,
        bias: r.vector(3),
        clamp: none,
    };
    all.push(("conv_transpose", op, 1));
    all.push(("linear", Op::Linear { weight: r.array(&[5, 4]), bias: r.vector(5), clamp: none }, 1));
    all.push(("affine", Op::Affine { scale: r.vector(4), bias: r.vector(4), clamp: none }, 1));
    for (name, kind) in [("add", BinaryKind::Add), ("sub", BinaryKind::Sub), ("mul", BinaryKind::Mul)] {
        all.push((name, Op::Binary { kind, clamp: none }, 2));
    }
    all.push(("add, relu", Op::Binary { kind: BinaryKind::Add, clamp: Clamp::RELU }, 2));
    for (name, kind) in [
        ("leaky relu", Unary::LeakyRelu(0.1)),
        ("sigmoid", Unary::Sigmoid),
        ("hard sigmoid", Unary::HardSigmoid(0.2, 0.5)),
        ("hard swish", Unary::HardSwish),
        ("tanh", Unary::Tanh),
        ("gelu", Unary::Gelu),
        ("gelu tanh", Unary::GeluTanh),
        ("exp", Unary::Exp),
        ("softplus", Unary::Softplus),
        ("elu", Unary::Elu(1.0)),
    ] {
        all.push((name, Op::Map(ScalarFn::unary(kind)), 1));
    }
    all.push(("silu", Op::Map(ScalarFn::binary(Binary::Mul, ScalarFn::X, ScalarFn::unary(Unary::Sigmoid))), 1));
    all.push(("prelu", Op::PRelu { slope: r.vector(4) }, 1));
    all.push(("max pool", Op::MaxPool(window([3, 3], 2, 1, [1; 4])), 1));
    let average = window([3, 3], 2, 1, [1; 4]);
    all.push(("average pool", Op::AveragePool { window: average, count_include_pad: false }, 1));
    all.push(("average pool with padding", Op::AveragePool { window: average, count_include_pad: true }, 1));
    all.push(("mean over the map", Op::Mean { axes: vec![1, 2] }, 1));
    all.push(("mean over channels", Op::Mean { axes: vec![3] }, 1));
    all.push(("pad", Op::Pad { before: vec![0, 1, 2, 0], after: vec![0, 0, 1, 3], value: 0.0 }, 1));
    all.push(("concat", Op::Concat { axis: 3 }, 2));
    all.push(("concat of rows", Op::Concat { axis: 1 }, 2));
    all.push(("slice", Op::Slice { start: vec![0, 6, 1, 0], step: vec![1, -2, 2, 1], len: vec![1, 3, 2, 3] }, 1));
    all.push(("transpose", Op::Transpose { perm: vec![0, 3, 1, 2] }, 1));
    all.push(("softmax", Op::Softmax { axis: 3 }, 1));
    all.push(("softmax over rows", Op::Softmax { axis: 1 }, 1));
    let nearest = |n: usize, m: usize| (0..m).map(|i| Tap { lo: i * n / m, hi: i * n / m, frac: 0.0 }).collect();
    all.push(("nearest", Op::Resize { h: nearest(7, 14), w: nearest(6, 9) }, 1));
    let linear = |n: usize, m: usize| {
        let tap = |i: usize| {
            let at = i as f32 * (n - 1) as f32 / (m - 1) as f32;
            Tap { lo: at as usize, hi: (at as usize + 1).min(n - 1), frac: at.fract() }
        };
        (0..m).map(tap).collect()
    };
    all.push(("bilinear", Op::Resize { h: linear(7, 12), w: linear(6, 11) }, 1));
    all
}

/// Largest sum of absolute inputs that one output can see, times half a weight step of its channel.
fn weight_error(op: &Op, scales: &[f32], peak: f32) -> f32 {
    let fan_in = match op {
        Op::Conv2d { weight, .. } | Op::ConvTranspose2d { weight, .. } | Op::Linear { weight, .. } => {
            weight.len() / weight.len_of(Axis(0))
        }
        _ => 1,
    };
    scales.iter().fold(0f32, |m, s| m.max(*s)) * 0.5 * fan_in as f32 * peak
}

#[test]
fn operators_stay_within_their_steps() {
    let mut r = Random(3);
    for (name, op, inputs) in operators(&mut r) {
        let mut graph = Graph::default();
        let ids: Vec<_> = (0..inputs).map(|i| graph.add_input(&format!("x{i}"), &SHAPE)).collect();
        let output = graph.push(name, op.clone(), &ids).unwrap();
        graph.add_output("y", output);
        let mut samples: Vec<Vec<ArrayD<f32>>> =
            (0..8).map(|_| (0..inputs).map(|i| r.array(&SHAPE) * (3.0 - i as f32)).collect()).collect();
        let choice = Choice { observer: Observer::MinMax, bias_correction: false };
        let is_u8 = vec![false; inputs];
        // The grid of the inputs depends on their extremes alone, which rounding to it keeps.
        let stats = observe(&graph, &samples, &|| ()).unwrap();
        let q = quantize(&graph, &stats, &QuantOptions::default(), choice, &is_u8, &Rounding::default()).unwrap();
        for (x, port) in samples.iter_mut().flatten().zip(q.inputs.iter().cycle()) {
            let p = port.params;
            x.mapv_inplace(|v| {
                p.scale * ((v / p.scale).round().clamp(-128.0 - p.zero_point as f32, 127.0 - p.zero_point as f32))
            });
        }
        let stats = observe(&graph, &samples, &|| ()).unwrap();
        let q = quantize(&graph, &stats, &QuantOptions::default(), choice, &is_u8, &Rounding::default()).unwrap();
        let step = q.activations[output.0].scale;
        let weighted = q.weights.iter().flatten().next();
        let peak = samples.iter().flatten().flat_map(|x| x.iter()).fold(0f32, |m, v| m.max(v.abs()));
        let bound = match (&op, weighted) {
            (_, Some(w)) => 0.51 * step + weight_error(&op, &w.scales, peak) + step * 0.01,
            // Sums of exponentials from a table of 15 bits.
            (Op::Softmax { .. }, _) => 1.01 * step,
            // The shared grid of input and output is the output's own; mixed grids round once more.
            (Op::Concat { .. } | Op::Resize { .. }, _) => 1.01 * step,
            // A saturating end may be half a step inside of the range.
            _ => 1.01 * step,
        };
        let plans = [true, false].map(|in_place| {
            let options = PackOptions { plan: PlanOptions { in_place }, ..PackOptions::default() };
            pack(lower(&q).unwrap(), options).unwrap()
        });
        assert!(plans[0].plan.arena_bytes <= plans[1].plan.arena_bytes);
        for sample in &samples {
            let truth = &eval::run(&graph, sample).unwrap()[0];
            let mut first: Option<Vec<i8>> = None;
            for (packed, paint) in plans.iter().flat_map(|p| [(p, 0x00), (p, 0x7F)]) {
                let file = ModelFile::new(&packed.bytes);
                let model = Model::parse(file.as_bytes()).unwrap();
                let mut arena = Arena::new(model.arena_bytes(), paint);
                let mut engine = Engine::new(&model, arena.bytes_mut()).unwrap();
                for (i, (port, x)) in model.inputs().iter().zip(sample).enumerate() {
                    engine.input(i).copy_from_slice(&to_int8(port, x));
                }
                engine.run();
                let got = engine.output(0).to_vec();
                assert_eq!(&got, first.get_or_insert(got.clone()), "{name}: other memory, other bytes");
                let port = &model.outputs()[0];
                let real = dequantize(port, &shape_of(&model, port), &got);
                let worst = real.iter().zip(truth).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(worst <= bound, "{name}: error {worst}, bound {bound}, step {step}");
            }
        }
    }
}
