//! Values against the graph's float meaning, gradients against finite differences, our loops against burn's own operators, and
//! runs against themselves: resumed, repeated, diverging.

use super::ops::WindowOps;
use super::windows::{Geometry, Norm};
use super::*;
use crate::data::Targets;
use crate::graph::scalar::{Binary, ScalarFn, Unary};
use crate::graph::{BinaryKind, Clamp, Graph, Op, Tap, TensorId, Window, eval};
use crate::random::Random;
use ndarray::{ArrayD, IxDyn};
use std::sync::atomic::AtomicBool;

fn random_array(shape: &[usize], random: &mut Random) -> ArrayD<f32> {
    ArrayD::from_shape_simple_fn(IxDyn(shape), || random.normal())
}

/// Where these tests train: the CPU, or what PITH_TEST_DEVICE names in a build that has it.
fn device() -> Device {
    Device::open(std::env::var("PITH_TEST_DEVICE").as_deref().unwrap_or("cpu")).unwrap()
}

fn window(kernel: [usize; 2], stride: [usize; 2], dilation: [usize; 2], pad: [usize; 4]) -> Window {
    Window { kernel, stride, dilation, pad }
}

fn conv(window: Window, groups: usize, [oc, ic]: [usize; 2], clamp: Clamp, random: &mut Random) -> Op {
    let [kh, kw] = window.kernel;
    let weight = random_array(&[oc, kh, kw, ic / groups], random);
    let bias = (0..oc).map(|_| random.normal()).collect();
    Op::Conv2d { window, groups, weight, bias, clamp }
}

fn transpose(window: Window, output_padding: [usize; 2], groups: usize, channels: [usize; 2], r: &mut Random) -> Op {
    let Op::Conv2d { weight, bias, clamp, .. } = conv(window, groups, channels, Clamp::NONE, r) else { unreachable!() };
    Op::ConvTranspose2d { window, output_padding, groups, weight, bias, clamp }
}

fn linear(n: usize, k: usize, random: &mut Random) -> Op {
    Op::Linear { weight: random_array(&[n, k], random) / (k as f32).sqrt(), bias: vec![0.1; n], clamp: Clamp::NONE }
}

fn norm(c: usize, random: &mut Random) -> Op {
    let mut row = |low: f32| (0..c).map(|_| low + random.uniform()).collect::<Vec<f32>>();
    Op::BatchNorm { gamma: row(0.5), beta: row(-0.5), mean: row(-0.5), var: row(0.5), epsilon: 1e-3 }
}

/// A pointwise convolution with parameters, the operators under test, and a linear layer.
fn around(name: &str, seed: u64, tested: impl Fn(&mut Graph, TensorId, &mut Random) -> TensorId) -> Graph {
    let mut random = Random::new(seed, 0);
    let mut g = Graph { name: name.into(), ..Graph::default() };
    let x = g.add_input("x", &[1, 6, 5, 4]);
    let first = conv(window([1, 1], [1, 1], [1, 1], [0; 4]), 1, [4, 4], Clamp::NONE, &mut random);
    let x = g.push("first", first, &[x]).unwrap();
    let y = tested(&mut g, x, &mut random);
    let n: usize = g.shape(y).iter().product();
    let flat = g.push("flat", Op::Reshape { shape: vec![1, n] }, &[y]).unwrap();
    let out = g.push("last", linear(3, n, &mut random), &[flat]).unwrap();
    g.add_output("y", out);
    g
}

/// Every operator, some with odd shapes.
fn graphs() -> Vec<Graph> {
    let single = |name: &str, op: fn(&mut Random) -> Op| {
        around(name, 5, |g, x, random| {
            let op = op(random);
            g.push("tested", op, &[x]).unwrap()
        })
    };
    let map = |name: &str, f: ScalarFn| around(name, 6, |g, x, _| g.push("tested", Op::Map(f.clone()), &[x]).unwrap());
    let unary = |kind: Unary| map(&format!("{kind:?}"), ScalarFn::unary(kind));
    let positive = |f: Unary| {
        let square = ScalarFn::binary(Binary::Mul, ScalarFn::X, ScalarFn::X);
        let shifted = ScalarFn::binary(Binary::Add, square, ScalarFn::Const(0.5));
        map(&format!("{f:?}"), ScalarFn::Unary(f, Box::new(shifted)))
    };
    let mut all = vec![
        single("conv", |r| conv(window([3, 2], [2, 1], [1, 2], [1, 0, 2, 1]), 1, [6, 4], Clamp::NONE, r)),
        single("conv relu6", |r| conv(window([3, 3], [1, 1], [1, 1], [1; 4]), 1, [3, 4], Clamp::RELU6, r)),
        single("depthwise", |r| conv(window([3, 3], [2, 2], [1, 1], [1, 1, 0, 1]), 4, [4, 4], Clamp::RELU, r)),
        single("grouped", |r| conv(window([3, 3], [1, 1], [1, 1], [1; 4]), 2, [6, 4], Clamp::NONE, r)),
        single("multiplier", |r| conv(window([2, 2], [1, 1], [1, 1], [0; 4]), 4, [8, 4], Clamp::NONE, r)),
        single("pointwise stride", |r| conv(window([1, 1], [2, 2], [1, 1], [0; 4]), 1, [5, 4], Clamp::NONE, r)),
        single("transpose", |r| transpose(window([3, 3], [2, 2], [1, 1], [1, 1, 1, 0]), [1, 0], 2, [6, 4], r)),
        single("transpose with room", |r| transpose(window([2, 3], [1, 2], [2, 1], [0; 4]), [1, 3], 1, [3, 4], r)),
        single("batch norm", |r| norm(4, r)),
        around("clamped batch norm", 8, |g, x, r| {
            let y = g.push("norm", norm(4, r), &[x]).unwrap();
            g.push("clamp", Op::Map(ScalarFn::clamp(Clamp { min: -0.4, max: 0.6 })), &[y]).unwrap()
        }),
        single("affine", |_| Op::Affine { scale: vec![0.5, -1.0, 2.0, 1.0], bias: vec![0.1; 4], clamp: Clamp::RELU }),
        single("prelu", |_| Op::PRelu { slope: vec![0.25, 0.1, -0.2, 0.5] }),
        single("max pool", |_| Op::MaxPool(window([3, 2], [2, 2], [1, 1], [1, 0, 1, 1]))),
        single("average", |_| Op::AveragePool {
            window: window([3, 3], [2, 2], [1, 1], [1; 4]),
            count_include_pad: false,
        }),
        single("average of padding", |_| Op::AveragePool {
            window: window([2, 3], [1, 2], [1, 1], [1, 1, 0, 1]),
            count_include_pad: true,
        }),
        single("mean", |_| Op::Mean { axes: vec![1, 2] }),
        single("pad", |_| Op::Pad { before: vec![0, 1, 0, 2], after: vec![0, 0, 3, 0], value: 0.5 }),
        single("slice", |_| Op::Slice { start: vec![0, 5, 1, 0], step: vec![1, -2, 1, 3], len: vec![1, 3, 4, 2] }),
        single("reshape", |_| Op::Reshape { shape: vec![1, 5, 24] }),
        single("permute", |_| Op::Transpose { perm: vec![0, 3, 1, 2] }),
        single("softmax", |_| Op::Softmax { axis: 3 }),
        single("resize", |_| {
            let tap = |i: usize, n: usize| Tap {
                lo: i / 2,
                hi: (i / 2 + 1).min(n - 1),
                frac: if i.is_multiple_of(2) { 0.25 } else { 0.75 },
            };
            Op::Resize { h: (0..12).map(|i| tap(i, 6)).collect(), w: (0..10).map(|i| tap(i, 5)).collect() }
        }),
        around("residual", 7, |g, x, r| {
            let w = window([3, 3], [1, 1], [1, 1], [1; 4]);
            let Op::Conv2d { window, groups, weight, .. } = conv(w, 1, [4, 4], Clamp::NONE, r) else { unreachable!() };
            let op = Op::Conv2d { window, groups, weight, bias: vec![0.0; 4], clamp: Clamp::NONE };
            let y = g.push("conv", op, &[x]).unwrap();
            let y = g.push("norm", norm(4, r), &[y]).unwrap();
            let y = g.push("sub", Op::Binary { kind: BinaryKind::Sub, clamp: Clamp::NONE }, &[y, x]).unwrap();
            let y = g.push("mul", Op::Binary { kind: BinaryKind::Mul, clamp: Clamp::RELU }, &[y, x]).unwrap();
            let gate = g.push("pool", Op::Mean { axes: vec![1, 2] }, &[x]).unwrap();
            let y = g.push("gated", Op::Binary { kind: BinaryKind::Mul, clamp: Clamp::NONE }, &[y, gate]).unwrap();
            let c = g.push("const", Op::Const(random_array(&[4], r)), &[]).unwrap();
            let y = g.push("plus", Op::Binary { kind: BinaryKind::Add, clamp: Clamp::NONE }, &[c, y]).unwrap();
            g.push("concat", Op::Concat { axis: 3 }, &[y, x, y]).unwrap()
        }),
        positive(Unary::Log),
        positive(Unary::Sqrt),
        map("tree", {
            let x = || Box::new(ScalarFn::X);
            let ratio = ScalarFn::binary(Binary::Div, ScalarFn::X, ScalarFn::Unary(Unary::Softplus, x()));
            let top =
                ScalarFn::binary(Binary::Max, ratio, ScalarFn::binary(Binary::Min, ScalarFn::X, ScalarFn::Const(0.3)));
            ScalarFn::binary(Binary::Sub, top, ScalarFn::binary(Binary::Pow, ScalarFn::X, ScalarFn::Const(2.0)))
        }),
    ];
    let kinds = [
        Unary::LeakyRelu(0.1),
        Unary::Sigmoid,
        Unary::HardSigmoid(0.2, 0.5),
        Unary::HardSwish,
        Unary::Tanh,
        Unary::Erf,
        Unary::Gelu,
        Unary::GeluTanh,
        Unary::Exp,
        Unary::Abs,
        Unary::Neg,
        Unary::Softplus,
        Unary::Elu(0.7),
        Unary::Clamp(Clamp { min: -0.5, max: 0.75 }),
        Unary::Clamp(Clamp { min: f32::NEG_INFINITY, max: 0.75 }),
    ];
    all.extend(kinds.map(unary));
    all
}

fn samples(n: usize, shape: &[usize], seed: u64) -> Vec<Vec<ArrayD<f32>>> {
    let mut random = Random::new(seed, 1);
    (0..n).map(|_| vec![random_array(shape, &mut random)]).collect()
}

fn batch_of(samples: &[Vec<ArrayD<f32>>]) -> Batch {
    Batch { size: samples.len(), inputs: vec![samples.iter().flat_map(|s| s[0].iter().copied()).collect()] }
}

#[test]
fn values_are_the_graph_s() {
    for graph in graphs() {
        let samples = samples(3, &[1, 6, 5, 4], 1);
        let net = Net::new(&graph, &device()).unwrap();
        let got = net.predict(&graph.theta(), &Moments::of(&graph), &batch_of(&samples));
        let expected: Vec<f32> =
            samples.iter().flat_map(|s| eval::run(&graph, s).unwrap()[0].iter().copied().collect::<Vec<_>>()).collect();
        for (a, b) in got[0].iter().zip(&expected) {
            assert!((a - b).abs() <= 1e-4 * (1.0 + b.abs()), "{}: {a} for {b}", graph.name);
        }
    }
}

#[test]
fn gradients_are_slopes() {
    for graph in graphs() {
        let samples = samples(3, &[1, 6, 5, 4], 2);
        let (net, batch) = (Net::new(&graph, &device()).unwrap(), batch_of(&samples));
        let theta = graph.theta();
        let loss = |theta: &[f32]| {
            let goal = Goal::Values(vec![vec![0.3, -0.2, 0.1, 0.0, 0.5, 0.2, -0.4, 0.6, 0.1]]);
            net.gradient(theta, &mut Moments::of(&graph), &batch, &goal, 0.1)
        };
        let gradient = loss(&theta).theta;
        let mut random = Random::new(9, 9);
        // Of several directions most must agree; a step over a kink spoils one at times.
        let errors: Vec<f64> = (0..12)
            .map(|_| {
                let direction: Vec<f32> = theta.iter().map(|_| random.normal()).collect();
                let length = direction.iter().map(|d| d * d).sum::<f32>().sqrt();
                let step = 2e-3;
                let moved = |sign: f32| {
                    let theta: Vec<f32> =
                        theta.iter().zip(&direction).map(|(t, d)| t + sign * step * d / length).collect();
                    loss(&theta).loss as f64
                };
                let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step as f64);
                let expected: f64 = gradient.iter().zip(&direction).map(|(g, d)| (g * d / length) as f64).sum();
                let scale =
                    gradient.iter().map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt() / (theta.len() as f64).sqrt();
                (slope - expected).abs() / (expected.abs() + scale)
            })
            .collect();
        let good = errors.iter().filter(|e| **e < 2e-2).count();
        assert!(good >= 9, "{}: {errors:?}", graph.name);
    }
}

/// What a step computes on that device, against the same on the CPU.
#[test]
fn devices_agree() {
    let mut worst = (0.0, String::new());
    for graph in graphs() {
        let batch = batch_of(&samples(3, &[1, 6, 5, 4], 2));
        let goal = Goal::Values(vec![vec![0.3, -0.2, 0.1, 0.0, 0.5, 0.2, -0.4, 0.6, 0.1]]);
        let step = |device: &Device| {
            let (net, mut moments) = (Net::new(&graph, device).unwrap(), Moments::of(&graph));
            let Gradient { loss, theta, outputs } = net.gradient(&graph.theta(), &mut moments, &batch, &goal, 0.1);
            [vec![loss], theta, outputs.concat(), moments.values.concat()]
        };
        for (own, expected) in step(&device()).iter().zip(&step(&Device::cpu())) {
            let size = expected.iter().fold(0.0f32, |size, v| size.max(v.abs()));
            for (a, b) in own.iter().zip(expected) {
                assert!((a - b).abs() <= 1e-4 * (1.0 + size), "{}: {a} for {b}", graph.name);
                if (a - b).abs() / size > worst.0 {
                    worst = ((a - b).abs() / size, graph.name.clone());
                }
            }
        }
    }
    println!("largest difference of a value, by the largest of its kind: {:.1e}, in '{}'", worst.0, worst.1);
}

/// Our loops and burn's operators on the same backend: the form that other backends use.
#[test]
fn composed_operators_agree() {
    use super::ops::composed;
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Flex, TensorMetadata};
    use burn::tensor::TensorData;
    type Flat = FloatTensor<Flex>;
    let mut random = Random::new(3, 0);
    let mut tensor = |shape: &[usize]| {
        let n = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|_| random.normal()).collect();
        Flat::from_data(TensorData::new(values, shape.to_vec()))
    };
    let agree = |what: &str, a: Flat, b: Flat| {
        assert_eq!(a.shape(), b.shape(), "{what}");
        let read = |t: Flat| t.to_contiguous().as_slice::<f32>().unwrap().to_vec();
        for (a, b) in read(a).into_iter().zip(read(b)) {
            assert!((a - b).abs() <= 1e-4 * (1.0 + b.abs()), "{what}: {a} and {b}");
        }
    };
    // The last leaves room for another position in each direction, as output padding does.
    for (groups, oc, pad, stride, room) in [
        (1, 6, [1, 0, 2, 1], [2, 1], 0),
        (4, 4, [1; 4], [2, 2], 0),
        (2, 6, [0; 4], [1, 1], 0),
        (1, 6, [0, 0, 1, 0], [1, 2], 1),
    ] {
        let w = window([3, 2], stride, [1, 1], pad);
        let out = |axis: usize, n: usize| (n + pad[axis] + pad[axis + 2] - w.kernel[axis]) / stride[axis] + 1 - room;
        let g = Geometry { window: w, groups, input: [6, 5, 4], output: [out(0, 6), out(1, 5), oc] };
        let (x, weight) = (tensor(&[2, 6, 5, 4]), tensor(&[oc, 3, 2, 4 / groups]));
        let grad = tensor(&[2, g.output[0], g.output[1], oc]);
        agree(
            "conv",
            Flex::window_conv(x.clone(), weight.clone(), g),
            composed::conv::<Flex>(x.clone(), weight.clone(), g),
        );
        agree(
            "conv x",
            Flex::window_conv_x_backward(grad.clone(), weight.clone(), g),
            composed::conv_x_backward::<Flex>(grad.clone(), weight, g),
        );
        agree(
            "conv weight",
            Flex::window_conv_weight_backward(x.clone(), grad.clone(), g),
            composed::conv_weight_backward::<Flex>(x.clone(), grad, g),
        );
        let g = Geometry { groups: 1, output: [g.output[0], g.output[1], 4], ..g };
        let grad = tensor(&[2, g.output[0], g.output[1], 4]);
        agree("max", Flex::window_max(x.clone(), g), composed::max_pool::<Flex>(x.clone(), g));
        agree(
            "max x",
            Flex::window_max_backward(x.clone(), grad.clone(), g),
            composed::max_pool_backward::<Flex>(x.clone(), grad.clone(), g),
        );
        for include in [false, true] {
            let ours = Flex::window_mean(x.clone(), g, include);
            agree("mean", ours, composed::average_pool::<Flex>(x.clone(), g, include));
            let ours = Flex::window_mean_backward(grad.clone(), g, include);
            agree("mean x", ours, composed::average_pool_backward::<Flex>(grad.clone(), g, include));
        }
    }
    for clamp in [Clamp::RELU, Clamp::RELU6, Clamp { min: f32::NEG_INFINITY, max: 0.5 }, Clamp { min: -0.5, max: 0.5 }]
    {
        let (x, grad) = (tensor(&[2, 3, 5, 4]), tensor(&[2, 3, 5, 4]));
        let y = Flex::bounded(x.clone(), clamp);
        agree("clamp", y.clone(), composed::clamp::<Flex>(x, clamp));
        let ours = Flex::bounded_backward(y.clone(), grad.clone(), clamp);
        agree("clamp x", ours, composed::clamp_backward::<Flex>(y, grad, clamp));
    }
    let (x, grad, gamma, beta) = (tensor(&[2, 3, 5, 4]), tensor(&[2, 3, 5, 4]), tensor(&[4]), tensor(&[4]));
    let m = Flex::channel_moments(x.clone());
    agree("moments", m.clone(), composed::moments::<Flex>(x.clone()));
    let l = Flat::from_data(TensorData::new(vec![0.4f32, -2.0, 3.0], vec![3]));
    let dy = tensor(&[2, 3, 5, 4]);
    agree("rounded", Flex::rounded(x.clone(), l.clone()), composed::rounded::<Flex>(x.clone(), l.clone()));
    let ours = Flex::rounded_x_backward(x.clone(), dy.clone(), l.clone());
    agree("rounded x", ours, composed::rounded_x_backward::<Flex>(x.clone(), dy.clone(), l.clone()));
    let ours = Flex::rounded_sums(x.clone(), dy.clone(), l.clone());
    agree("rounded levels", ours, composed::rounded_sums::<Flex>(x.clone(), dy, l));
    for clamp in [Clamp::NONE, Clamp::RELU, Clamp { min: -0.5, max: 0.5 }] {
        let norm = Norm { epsilon: 1e-3, clamp };
        let [x, grad, gamma, beta, m] = [&x, &grad, &gamma, &beta, &m].map(Clone::clone);
        let ours = Flex::channel_normalize(x.clone(), gamma.clone(), beta.clone(), m.clone(), norm);
        let theirs = composed::normalize::<Flex>(x.clone(), gamma.clone(), beta.clone(), m.clone(), norm);
        agree("normalize", ours, theirs);
        let all = || (x.clone(), grad.clone(), gamma.clone(), beta.clone(), m.clone());
        let (x, dy, g, b, m) = all();
        let sums = Flex::channel_normalize_sums(x, dy, g, b, m, norm);
        let (x, dy, g, b, m) = all();
        agree("sums", sums.clone(), composed::normalize_sums::<Flex>(x, dy, g, b, m, norm));
        let (x, dy, g, b, m) = all();
        let ours = Flex::channel_normalize_x_backward(x, dy, g, b, m, sums.clone(), norm);
        let (x, dy, g, b, m) = all();
        agree("normalize x", ours, composed::normalize_x_backward::<Flex>(x, dy, g, b, m, sums, norm));
    }
}

/// A rounded value's gradients: by its ends exactly, by the step but for the share that moves with what is rounded (LSQ, Esser et al. 2020, equation 3).
#[test]
fn rounding_has_the_gradients_of_lsq() {
    use super::windows::{rounded, rounded_backward, rounded_sums};
    // Well within a level, so that none changes; the first and the last lie beyond.
    let steps = [-5.3, -2.7, -1.8, -0.3, 0.2, 0.9, 1.7, 2.8, 4.2, 9.1];
    let (step, lo, hi) = (0.4f32, -2.0, 3.0);
    let x: Vec<f32> = steps.iter().map(|v| v * step).collect();
    let grad: Vec<f32> = (0..10).map(|i| 0.5 - 0.2 * i as f32).collect();
    let value = |levels: [f32; 3]| -> f32 { rounded(&x, &levels).iter().zip(&grad).map(|(y, g)| y * g).sum() };
    let slope = |i: usize| {
        let at = |by: f32| {
            let mut levels = [step, lo, hi];
            levels[i] += by;
            value(levels)
        };
        (at(1e-3) - at(-1e-3)) / 2e-3
    };
    let inside = |v: f32| (lo..=hi).contains(&v);
    let moves: f32 = steps.iter().zip(&grad).filter(|(v, _)| inside(**v)).map(|(v, g)| v * g).sum();
    let sums = rounded_sums(&x, &grad, &[step, lo, hi]);
    assert!((sums[0] - (slope(0) - moves)).abs() < 1e-2, "{} for {}", sums[0], slope(0) - moves);
    assert_eq!(rounded(&x, &[step, lo, hi])[..3], [-0.8, -0.8, -0.8]);
    let beyond: Vec<f32> = x.iter().map(|x| 100.0 * x).collect();
    let sums = rounded_sums(&beyond, &grad, &[step, lo, hi]);
    let end = |below: bool| -> f32 { x.iter().zip(&grad).filter(|(x, _)| (**x < 0.0) == below).map(|(_, g)| g).sum() };
    assert!((sums[1] - step * end(true)).abs() < 1e-6 && (sums[2] - step * end(false)).abs() < 1e-6, "{sums:?}");
    let straight = rounded_backward(&x, &grad, &[step, lo, hi]);
    assert!(steps.iter().zip(straight).zip(&grad).all(|((&v, dx), &g)| dx == if inside(v) { g } else { 0.0 }));
}

/// Two classes that a small network can tell apart.
fn task() -> (Graph, Vec<Vec<ArrayD<f32>>>, Targets) {
    let mut random = Random::new(11, 0);
    let mut g = Graph::default();
    let x = g.add_input("x", &[1, 6, 6, 1]);
    let x = g
        .push("conv", conv(window([3, 3], [1, 1], [1, 1], [1; 4]), 1, [8, 1], Clamp::RELU, &mut random), &[x])
        .unwrap();
    let x = g.push("norm", norm(8, &mut random), &[x]).unwrap();
    let x = g.push("pool", Op::Mean { axes: vec![1, 2] }, &[x]).unwrap();
    let x = g.push("flat", Op::Reshape { shape: vec![1, 8] }, &[x]).unwrap();
    let y = g.push("last", linear(2, 8, &mut random), &[x]).unwrap();
    let y = g.push("softmax", Op::Softmax { axis: 1 }, &[y]).unwrap();
    g.add_output("y", y);
    let labels: Vec<usize> = (0..120).map(|i| i % 2).collect();
    // Horizontal or vertical stripes in noise.
    let stripe = |i: usize, y: usize, x: usize| {
        if (if i.is_multiple_of(2) { y } else { x }).is_multiple_of(2) { 1.0 } else { -1.0 }
    };
    let sample = |i: usize| {
        let mut random = Random::new(i as u64, 77);
        let values = (0..36).map(|p| stripe(i, p / 6, p % 6) + 0.5 * random.normal()).collect();
        vec![ArrayD::from_shape_vec(IxDyn(&[1, 6, 6, 1]), values).unwrap()]
    };
    (g, (0..120).map(sample).collect(), Targets::Classes(labels))
}

fn train(session: &mut Session, data: &Data<'_>, teacher: Option<&Teacher>) -> Result<f32, TrainError> {
    let stop = AtomicBool::new(false);
    session.run(data, teacher, &mut Hooks { step: &mut |_| (), report: &|_| (), stop: &stop, checkpoint: None })
}

fn options() -> TrainOptions {
    TrainOptions { epochs: 6, batch: 16, rate: Some(0.02), rule: Rule::AdamW, ..TrainOptions::default() }
}

#[test]
fn learns_repeats_and_teaches() {
    let (graph, samples, targets) = task();
    let data = Data { samples: &samples, targets: Some(&targets), affine: None };
    for rule in [Rule::AdamW, Rule::Sgd { momentum: 0.9 }] {
        let options = TrainOptions { rule, epochs: 10, label_smoothing: 0.05, ..options() };
        let mut session = Session::new(&graph, &options, &device()).unwrap();
        train(&mut session, &data, None).unwrap();
        assert!(session.evaluate(&data).unwrap() > 0.95, "{rule:?}: {:?}", session.evaluate(&data));
        let mut again = Session::new(&graph, &options, &device()).unwrap();
        train(&mut again, &data, None).unwrap();
        assert_eq!(session.theta, again.theta, "equal seeds, equal networks");
        session.refresh(&data, 64);
        // The student starts anew and sees no labels.
        let teacher = Teacher::new(&session.graph(), &device()).unwrap();
        let mut student = Session::new(&graph, &TrainOptions { temperature: 2.0, ..options }, &device()).unwrap();
        train(&mut student, &Data { targets: None, ..data }, Some(&teacher)).unwrap();
        assert!(student.evaluate(&data).unwrap() > 0.9);
    }
}

/// A linear network gives for a blend the blend of what it gives: it is learnt without error only if targets are blended like inputs.
#[test]
fn targets_are_blended_like_inputs() {
    let mut g = Graph::default();
    let x = g.add_input("x", &[1, 4]);
    let y = g.push("y", linear(2, 4, &mut Random::new(1, 0)), &[x]).unwrap();
    g.add_output("y", y);
    let mut random = Random::new(2, 0);
    let samples: Vec<_> =
        (0..64).map(|_| vec![ArrayD::from_shape_simple_fn(IxDyn(&[1, 4]), || random.normal())]).collect();
    let wanted =
        |i: usize| if i.is_multiple_of(2) { samples[i / 2][0][[0, 1]] - 2.0 } else { samples[i / 2][0][[0, 3]] };
    let targets = ArrayD::from_shape_vec(IxDyn(&[64, 2]), (0..128).map(wanted).collect()).unwrap();
    let targets = Targets::Values(vec![targets]);
    let data = Data { samples: &samples, targets: Some(&targets), affine: None };
    let augment = Augment { mixup: 1.0, ..Augment::default() };
    let options = TrainOptions { epochs: 150, weight_decay: 0.0, augment, ..options() };
    let mut session = Session::new(&g, &options, &device()).unwrap();
    let loss = train(&mut session, &data, None).unwrap();
    assert!(loss < 1e-4 && session.evaluate(&data).unwrap() < 1e-4, "{loss}");
}

#[test]
fn an_interrupted_run_ends_the_same() {
    let (graph, samples, targets) = task();
    let data = Data { samples: &samples, targets: Some(&targets), affine: None };
    let options =
        TrainOptions { augment: Augment { flip: true, crop: 1, cutout: 2, noise: 0.1, mixup: 0.5 }, ..options() };
    let mut whole = Session::new(&graph, &options, &device()).unwrap();
    train(&mut whole, &data, None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.npz");
    let stop = AtomicBool::new(false);
    let report = |s: &Status| stop.store(s.step == 21, std::sync::atomic::Ordering::Relaxed);
    let mut hooks = Hooks { step: &mut |_| (), report: &report, stop: &stop, checkpoint: Some(path.clone()) };
    let mut first = Session::new(&graph, &options, &device()).unwrap();
    let error = first.run(&data, None, &mut hooks).unwrap_err();
    assert!(matches!(error, TrainError::Interrupted { .. }), "{error}");
    let mut second = Session::new(&graph, &options, &device()).unwrap();
    second.resume(&path).unwrap();
    assert_eq!(second.step, 21);
    train(&mut second, &data, None).unwrap();
    assert_eq!(second.theta, whole.theta);
    assert_eq!(second.moments, whole.moments);
    let other = TrainOptions { seed: 2, ..options };
    let error = Session::new(&graph, &other, &device()).unwrap().resume(&path).unwrap_err();
    assert!(error.to_string().contains("other options"), "{error}");
    std::fs::write(&path, b"nothing").unwrap();
    assert!(second.resume(&path).is_err());
}

#[test]
fn divergence_names_the_layer_and_keeps_what_was_good() {
    let (graph, mut samples, targets) = task();
    let good = Session::new(&graph, &options(), &device()).unwrap();
    samples[7][0][[0, 0, 0, 0]] = f32::INFINITY;
    let data = Data { samples: &samples, targets: Some(&targets), affine: None };
    let mut session = Session::new(&graph, &options(), &device()).unwrap();
    let error = train(&mut session, &data, None).unwrap_err();
    assert!(matches!(&error, TrainError::Diverged { layer, .. } if layer == "conv"), "{error}");
    assert_eq!(session.theta, good.theta);
    assert!(session.moments.values.iter().flatten().all(|v| v.is_finite()));
}

#[test]
fn bad_input_is_refused() {
    let (graph, samples, targets) = task();
    let new = |options: &TrainOptions| Session::new(&graph, options, &device());
    let error = new(&TrainOptions { batch: 0, ..options() }).unwrap_err();
    assert!(error.to_string().contains("'batch'"), "{error}");
    let mut session = new(&options()).unwrap();
    let unlabelled = Data { samples: &samples, targets: None, affine: None };
    assert!(matches!(train(&mut session, &unlabelled, None), Err(TrainError::NoTargets)));
    let wrong = Targets::Values(vec![ArrayD::zeros(IxDyn(&[120, 3]))]);
    let data = Data { samples: &samples, targets: Some(&wrong), affine: None };
    assert!(matches!(train(&mut session, &data, None), Err(TrainError::Targets { .. })));
    let empty = Data { samples: &[], targets: Some(&targets), affine: None };
    assert!(matches!(train(&mut session, &empty, None), Err(TrainError::Empty)));
    let mut g = Graph::default();
    let x = g.add_input("x", &[1, 4]);
    let y = g.push("turned", Op::Transpose { perm: vec![1, 0] }, &[x]).unwrap();
    g.add_output("y", y);
    let error = Net::new(&g, &device()).unwrap_err();
    assert!(error.to_string().contains("turned"), "{error}");
}

/// Batch norms that are put in change nothing, and neither does taking them out; weights get the size that steps are made for.
#[test]
fn norms_come_and_go() {
    let mut random = Random::new(4, 4);
    let mut g = Graph { name: "folded".into(), ..Graph::default() };
    let x = g.add_input("x", &[1, 6, 6, 3]);
    let w = window([3, 3], [1, 1], [1, 1], [1; 4]);
    // As exported: weights for pixels of 0 to 255, clamps fused, one layer with its own batch norm.
    let Op::Conv2d { window, groups, weight, bias, .. } = conv(w, 1, [4, 3], Clamp::NONE, &mut random) else {
        unreachable!()
    };
    let first = Op::Conv2d { window, groups, weight: weight / 255.0, bias, clamp: Clamp::RELU6 };
    let y = g.push("first", first, &[x]).unwrap();
    let Op::Conv2d { window, groups, weight, .. } = conv(w, 4, [4, 4], Clamp::NONE, &mut random) else {
        unreachable!()
    };
    let second = Op::Conv2d { window, groups, weight, bias: vec![0.0; 4], clamp: Clamp::NONE };
    let y = g.push("second", second, &[y]).unwrap();
    let y = g.push("own", norm(4, &mut random), &[y]).unwrap();
    let y = g.push("third", conv(w, 1, [5, 4], Clamp::NONE, &mut random), &[y]).unwrap();
    let y = g.push("flat", Op::Reshape { shape: vec![1, 180] }, &[y]).unwrap();
    let y = g.push("hidden", linear(6, 180, &mut random), &[y]).unwrap();
    let y = g.push("relu", Op::Map(ScalarFn::unary(Unary::Clamp(Clamp::RELU))), &[y]).unwrap();
    let y = g.push("last", linear(3, 6, &mut random), &[y]).unwrap();
    let y = g.push("softmax", Op::Softmax { axis: 1 }, &[y]).unwrap();
    g.add_output("y", y);
    let graph = crate::graph::trainable(g);
    let samples: Vec<_> = samples(40, &[1, 6, 6, 3], 8).into_iter().map(|s| vec![&s[0] * 64.0 + 128.0]).collect();
    let data = Data { samples: &samples, targets: None, affine: None };
    for balance in [Balance::Layer, Balance::Filter] {
        let normed = with_norms(&graph, &data, balance).unwrap();
        let count = |g: &Graph| g.nodes.iter().filter(|n| matches!(n.op, Op::BatchNorm { .. })).count();
        assert_eq!((count(&graph), count(&normed.graph)), (1, 4), "all but 'last', which gives the output");
        let folded = normed.fold(normed.graph.clone());
        assert_eq!(count(&folded), 1);
        let names = |g: &Graph| g.nodes.iter().map(|n| (n.name.clone(), n.op.name())).collect::<Vec<_>>();
        assert_eq!(names(&folded), names(&graph));
        let net = Net::new(&normed.graph, &device()).unwrap();
        for sample in samples.iter().take(5) {
            let expected = eval::run(&graph, sample).unwrap();
            let trained = net.predict(
                &normed.graph.theta(),
                &Moments::of(&normed.graph),
                &batch_of(std::slice::from_ref(sample)),
            );
            let again = eval::run(&folded, sample).unwrap();
            for ((a, b), c) in expected[0].iter().zip(&trained[0]).zip(&again[0]) {
                assert!((a - b).abs() < 1e-4 && (a - c).abs() < 1e-4, "{a}, with norms {b}, without {c}");
            }
        }
        // The batch's own moments are about those that were put in.
        let mut moments = Moments::of(&normed.graph);
        net.refresh(&normed.graph.theta(), &mut moments, data.batches(&net, &data.spaced(40), 40));
        for (own, seen) in Moments::of(&normed.graph).values.iter().zip(&moments.values).take(1) {
            assert!(own.iter().zip(seen).all(|(a, b)| (a - b).abs() < 1e-2 * (1.0 + b.abs())), "{own:?} {seen:?}");
        }
        let Op::Conv2d { weight, .. } = &normed.graph.nodes[0].op else { unreachable!() };
        let square: f32 = weight.iter().map(|w| w * w).sum::<f32>() / 4.0;
        assert!((square - 1.0).abs() < 1e-3, "filters of length 1: {square}");
    }
}
