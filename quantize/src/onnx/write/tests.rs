//! Every graph is written, read again, and must mean the same: to our importer, and to tract.

use super::super::{Oracle, import_bytes, proto};
use super::*;
use crate::graph::scalar::{Binary, ScalarFn, Unary};
use crate::graph::{BinaryKind, Clamp, Tap, Window, simplify, trainable};
use crate::random::Random;

fn array(random: &mut Random, shape: &[usize]) -> ArrayD<f32> {
    ArrayD::from_shape_simple_fn(IxDyn(shape), || random.uniform() * 2.0 - 1.0)
}

fn vector(random: &mut Random, n: usize) -> Vec<f32> {
    (0..n).map(|_| random.uniform() * 2.0 - 1.0).collect()
}

/// The graph's outputs in ONNX axes for inputs in ONNX axes.
fn run(graph: &Graph, inputs: &[ArrayD<f32>]) -> Vec<ArrayD<f32>> {
    let fed: Vec<ArrayD<f32>> =
        graph.inputs.iter().zip(inputs).map(|(p, x)| x.clone().permuted_axes(IxDyn(&p.onnx_axes))).collect();
    let outputs = eval::run(graph, &fed).unwrap();
    graph.outputs.iter().zip(outputs).map(|(p, y)| y.permuted_axes(IxDyn(&inverse(&p.onnx_axes)))).collect()
}

fn error(got: &[ArrayD<f32>], expected: &[ArrayD<f32>]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let one = |(got, expected): (&ArrayD<f32>, &ArrayD<f32>)| {
        assert_eq!(got.shape(), expected.shape());
        let range = expected.iter().fold(1f32, |m, v| m.max(v.abs()));
        got.iter().zip(expected).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / range
    };
    got.iter().zip(expected).map(one).fold(0.0, f32::max)
}

fn model(graph: &Graph) -> ModelProto {
    proto::decode("written", &encode(graph).unwrap()).unwrap()
}

fn count(graph: &Graph, op: &str) -> usize {
    model(graph).graph.unwrap().node.iter().filter(|n| n.op_type == op).count()
}

/// Writes and reads; the graph that came back.
fn check(what: &str, graph: &Graph, seed: u64) -> Graph {
    let mut random = Random::new(seed, 1);
    let onnx_shape = |p: &Port| stored(graph.shape(p.tensor), &p.onnx_axes);
    let inputs: Vec<ArrayD<f32>> = graph.inputs.iter().map(|p| array(&mut random, &onnx_shape(p))).collect();
    let expected = run(graph, &inputs);
    let bytes = encode(graph).unwrap_or_else(|e| panic!("{what}: {e}"));
    let back = import_bytes(what, &bytes).unwrap();
    let ports = |g: &Graph| g.inputs.iter().chain(&g.outputs).map(|p| p.name.clone()).collect::<Vec<_>>();
    assert_eq!(ports(&back), ports(graph));
    for (form, read) in
        [("read", back.clone()), ("simple", simplify(back.clone())), ("trainable", trainable(back.clone()))]
    {
        let error = error(&run(&read, &inputs), &expected);
        assert!(error < 1e-5, "{what}, {form}: {error}");
    }
    let file = tempfile::NamedTempFile::with_suffix(".onnx").unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let tract = Oracle::load(file.path()).and_then(|o| o.run(&inputs)).unwrap_or_else(|e| panic!("{what}: {e}"));
    // tract approximates exponentials.
    let error = error(&tract, &expected);
    assert!(error < 1e-3, "{what}, tract: {error}");
    back
}

/// A network of one input `[1, h, w, c]`, declared NCHW or NHWC, and what `body` makes of it.
fn network(shape: [usize; 3], nchw: bool, body: impl FnOnce(&mut Graph, TensorId) -> TensorId) -> Graph {
    let mut g = Graph { name: "test".into(), ..Graph::default() };
    let x = g.add_input("x", &[&[1], &shape[..]].concat());
    let y = body(&mut g, x);
    g.add_output("y", y);
    if nchw {
        let maps: Vec<bool> = g.inputs.iter().chain(&g.outputs).map(|p| g.shape(p.tensor).len() == 4).collect();
        for (port, map) in g.inputs.iter_mut().chain(&mut g.outputs).zip(maps) {
            port.onnx_axes = if map { NCHW.to_vec() } else { port.onnx_axes.clone() };
        }
    }
    g
}

fn window(kernel: [usize; 2], stride: [usize; 2], pad: [usize; 4]) -> Window {
    Window { kernel, stride, dilation: [1, 1], pad }
}

fn conv(random: &mut Random, c: usize, oc: usize, groups: usize, window: Window, clamp: Clamp) -> Op {
    let [kh, kw] = window.kernel;
    let weight = array(random, &[oc, kh, kw, c / groups]);
    Op::Conv2d { window, groups, weight, bias: vector(random, oc), clamp }
}

fn linear(random: &mut Random, k: usize, n: usize, clamp: Clamp) -> Op {
    Op::Linear { weight: array(random, &[n, k]), bias: vector(random, n), clamp }
}

fn batch_norm(random: &mut Random, c: usize) -> Op {
    let positive = |v: Vec<f32>| v.into_iter().map(|v| v * v + 0.5).collect();
    let (gamma, var) = (positive(vector(random, c)), positive(vector(random, c)));
    Op::BatchNorm { gamma, beta: vector(random, c), mean: vector(random, c), var, epsilon: 1e-3 }
}

fn nearest(n: usize, factor: usize) -> Vec<Tap> {
    (0..n * factor).map(|i| Tap { lo: i / factor, hi: i / factor, frac: 0.0 }).collect()
}

fn bilinear(n: usize, m: usize) -> Vec<Tap> {
    let rule =
        crate::onnx::ops::resize::Rule { linear: true, coordinates: "half_pixel".into(), nearest: "floor".into() };
    rule.taps(n, m, m as f64 / n as f64)
}

/// One of every operator, on `[1, 6, 5, 4]`.
fn operators(random: &mut Random) -> Vec<(&'static str, Op)> {
    let clip = Clamp { min: -0.25, max: 0.5 };
    let dilated = Window { dilation: [2, 2], ..window([2, 2], [1, 1], [0; 4]) };
    let weight = array(random, &[6, 3, 2, 2]);
    let up = window([3, 2], [2, 3], [1, 0, 0, 1]);
    let bias = vector(random, 6);
    let transposed =
        Op::ConvTranspose2d { window: up, output_padding: [1, 0], groups: 2, weight, bias, clamp: Clamp::RELU };
    vec![
        ("conv", conv(random, 4, 6, 1, window([3, 2], [2, 1], [1, 0, 2, 1]), Clamp::RELU)),
        ("grouped conv", conv(random, 4, 6, 2, window([3, 3], [1, 1], [1; 4]), Clamp::RELU6)),
        ("depthwise conv", conv(random, 4, 8, 4, dilated, clip)),
        ("transposed conv", transposed),
        ("linear of a map", linear(random, 4, 3, clip)),
        ("batch norm", batch_norm(random, 4)),
        ("affine", Op::Affine { scale: vector(random, 4), bias: vector(random, 4), clamp: Clamp::RELU }),
        ("affine of nothing", Op::Affine { scale: vec![1.0; 4], bias: vec![0.0; 4], clamp: Clamp::NONE }),
        ("prelu", Op::PRelu { slope: vector(random, 4) }),
        ("max pool", Op::MaxPool(window([3, 2], [2, 2], [1, 0, 2, 1]))),
        ("dilated max pool", Op::MaxPool(dilated)),
        ("average", Op::AveragePool { window: window([3, 2], [2, 2], [1, 0, 1, 1]), count_include_pad: false }),
        ("average, zeros", Op::AveragePool { window: window([3, 2], [2, 2], [1, 0, 1, 1]), count_include_pad: true }),
        ("average, wide", Op::AveragePool { window: window([2, 2], [2, 2], [3, 0, 1, 2]), count_include_pad: true }),
        ("mean", Op::Mean { axes: vec![1, 2] }),
        ("mean of rows", Op::Mean { axes: vec![2] }),
        ("mean of channels", Op::Mean { axes: vec![3] }),
        ("pad", Op::Pad { before: vec![0, 1, 0, 2], after: vec![0, 0, 3, 1], value: 0.5 }),
        ("slice", Op::Slice { start: vec![0, 5, 1, 0], step: vec![1, -2, 2, 1], len: vec![1, 3, 2, 4] }),
        ("backwards", Op::Slice { start: vec![0, 0, 4, 3], step: vec![1, 1, -1, -3], len: vec![1, 6, 5, 2] }),
        ("slice of all", Op::Slice { start: vec![0; 4], step: vec![1; 4], len: vec![1, 6, 5, 4] }),
        ("reshape", Op::Reshape { shape: vec![1, 30, 4] }),
        ("reshape to a map", Op::Reshape { shape: vec![1, 3, 10, 4] }),
        ("flatten", Op::Reshape { shape: vec![1, 120] }),
        ("no batch", Op::Reshape { shape: vec![12, 10] }),
        ("transpose", Op::Transpose { perm: vec![0, 2, 1, 3] }),
        ("transpose to NCHW", Op::Transpose { perm: vec![0, 3, 1, 2] }),
        ("rotation", Op::Transpose { perm: vec![3, 0, 1, 2] }),
        ("nearest", Op::Resize { h: nearest(6, 2), w: nearest(5, 3) }),
        ("bilinear", Op::Resize { h: bilinear(6, 12), w: bilinear(5, 7) }),
        ("softmax", Op::Softmax { axis: 3 }),
        ("softmax of rows", Op::Softmax { axis: 2 }),
    ]
}

fn functions() -> Vec<ScalarFn> {
    let unary = [
        Unary::Clamp(Clamp::RELU),
        Unary::Clamp(Clamp { min: f32::NEG_INFINITY, max: 0.25 }),
        Unary::Clamp(Clamp { min: -0.5, max: f32::INFINITY }),
        Unary::LeakyRelu(0.2),
        Unary::Sigmoid,
        Unary::HardSigmoid(0.25, 0.4),
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
    ];
    let x = || ScalarFn::X;
    let of = |kind, a| ScalarFn::Unary(kind, Box::new(a));
    let constant = ScalarFn::Const;
    let above = ScalarFn::binary(Binary::Add, of(Unary::Abs, x()), constant(0.5));
    let rest = [
        x(),
        constant(0.75),
        of(Unary::Log, above.clone()),
        of(Unary::Sqrt, above.clone()),
        ScalarFn::binary(Binary::Pow, above.clone(), constant(1.5)),
        ScalarFn::binary(Binary::Div, constant(1.0), above),
        ScalarFn::binary(Binary::Mul, x(), ScalarFn::unary(Unary::Sigmoid)),
        ScalarFn::binary(Binary::Sub, constant(1.0), ScalarFn::binary(Binary::Min, x(), constant(0.1))),
        ScalarFn::binary(Binary::Max, constant(0.1), ScalarFn::binary(Binary::Add, constant(0.1), constant(-0.3))),
    ];
    unary.map(ScalarFn::unary).into_iter().chain(rest).collect()
}

#[test]
fn every_operator_in_both_layouts() {
    let mut random = Random::new(1, 0);
    for nchw in [false, true] {
        for (what, op) in operators(&mut random) {
            let alone = network([6, 5, 4], nchw, |g, x| g.push("op", op.clone(), &[x]).unwrap());
            check(what, &alone, 2);
            let between = network([6, 5, 4], nchw, |g, x| {
                let pointwise = conv(&mut random, 4, 4, 1, window([1, 1], [1, 1], [0; 4]), Clamp::NONE);
                let x = g.push("before", pointwise, &[x]).unwrap();
                let y = g.push("op", op.clone(), &[x]).unwrap();
                let c = *g.shape(y).last().unwrap();
                let bias = vector(&mut random, c);
                g.push("after", Op::Affine { scale: vec![0.5; c], bias, clamp: Clamp::NONE }, &[y]).unwrap()
            });
            check(what, &between, 3);
        }
        for f in functions() {
            let g = network([3, 2, 4], nchw, |g, x| g.push("f", Op::Map(f.clone()), &[x]).unwrap());
            check(&format!("{f:?}"), &g, 4);
        }
    }
}

#[test]
fn operators_of_two_inputs_and_constants() {
    let mut random = Random::new(5, 0);
    for nchw in [false, true] {
        for kind in [BinaryKind::Add, BinaryKind::Sub, BinaryKind::Mul] {
            let op = Op::Binary { kind, clamp: Clamp::RELU };
            for shape in [&[4][..], &[5, 4], &[1, 1, 4], &[6, 1, 1], &[1, 1, 1, 4], &[1, 6, 5, 4], &[1, 6, 5, 1]] {
                let value = array(&mut random, shape);
                let g = network([6, 5, 4], nchw, |g, x| {
                    let c = g.push("c", Op::Const(value), &[]).unwrap();
                    g.push("op", op.clone(), &[c, x]).unwrap()
                });
                check("with a constant", &g, 6);
            }
            let gated = network([6, 5, 4], nchw, |g, x| {
                let mean = g.push("mean", Op::Mean { axes: vec![1, 2] }, &[x]).unwrap();
                let row = g.push("row", Op::Reshape { shape: vec![1, 4] }, &[mean]).unwrap();
                let row = g.push("fc", linear(&mut random, 4, 4, Clamp::RELU), &[row]).unwrap();
                let gate = g.push("gate", Op::Reshape { shape: vec![1, 1, 1, 4] }, &[row]).unwrap();
                g.push("op", op.clone(), &[x, gate]).unwrap()
            });
            check("gated", &gated, 7);
            // The gate could be stored either way; it is stored as convolutions want it.
            assert_eq!(count(&gated, "Transpose"), usize::from(!nchw));
        }
        let joined = network([6, 5, 4], nchw, |g, x| {
            let c = g.push("c", Op::Const(array(&mut random, &[1, 6, 5, 2])), &[]).unwrap();
            let y =
                g.push("up", conv(&mut random, 4, 3, 1, window([3, 3], [1, 1], [1; 4]), Clamp::NONE), &[x]).unwrap();
            g.push("cat", Op::Concat { axis: 3 }, &[x, c, y]).unwrap()
        });
        check("concat", &joined, 8);
    }
    let mut constant = Graph::default();
    let x = constant.add_input("x", &[1, 3]);
    let c = constant.push("c", Op::Const(array(&mut random, &[2, 2])), &[]).unwrap();
    for (name, id) in [("copy", x), ("again", x), ("constant", c)] {
        constant.add_output(name, id);
    }
    check("outputs that nothing computes", &constant, 9);
    let mut vector = Graph::default();
    let x = vector.add_input("x", &[5]);
    let y = vector.push("fc", linear(&mut random, 5, 3, Clamp::RELU), &[x]).unwrap();
    vector.add_output("y", y);
    let bytes = encode(&vector).unwrap();
    assert!(proto::decode("vector", &bytes).is_ok());
}

/// A random network of maps, which ends in a map or in a linear layer.
fn any(seed: u64) -> Graph {
    let mut random = Random::new(seed, 2);
    let shape = [4 + random.below(4), 4 + random.below(4), 2 * (1 + random.below(3))];
    let nchw = random.below(2) == 0;
    network(shape, nchw, |g, x| {
        let mut maps = vec![x];
        for i in 0..3 + random.below(6) {
            let x = maps[maps.len() - 1 - random.below(2.min(maps.len()))];
            if let Some((op, inputs)) = layer(g, &maps, x, &mut random) {
                maps.extend(g.push(format!("n{i}"), op, &inputs).ok());
            }
        }
        let last = maps[maps.len() - 1];
        let (k, c) = (g.shape(last).iter().product::<usize>(), g.shape(last)[3]);
        match random.below(3) {
            0 => last,
            1 => {
                let flat = g.push("flat", Op::Reshape { shape: vec![1, k] }, &[last]).unwrap();
                g.push("fc", linear(&mut random, k, 3, Clamp::NONE), &[flat]).unwrap()
            }
            _ => {
                let mean = g.push("mean", Op::Mean { axes: vec![1, 2] }, &[last]).unwrap();
                let row = g.push("row", Op::Reshape { shape: vec![1, c] }, &[mean]).unwrap();
                g.push("fc", linear(&mut random, c, 3, Clamp::RELU), &[row]).unwrap()
            }
        }
    })
}

fn layer(g: &Graph, maps: &[TensorId], x: TensorId, random: &mut Random) -> Option<(Op, Vec<TensorId>)> {
    let [h, w, c] = [1, 2, 3].map(|i| g.shape(x)[i]);
    let clamp = [Clamp::NONE, Clamp::RELU, Clamp { min: -1.0, max: 1.0 }][random.below(3)];
    let size = |n: usize, random: &mut Random| 1 + random.below(n.min(3));
    let kernel = [size(h, random), size(w, random)];
    let slide = window(kernel, [1 + random.below(2), 1 + random.below(2)], [0, 1, 2, 3].map(|i| kernel[i % 2] / 2));
    let same = maps.iter().copied().filter(|&id| id != x && g.shape(id) == g.shape(x)).collect::<Vec<_>>();
    let op = match random.below(13) {
        0 => {
            let oc = 2 * (1 + random.below(4));
            conv(random, c, oc, 1, slide, clamp)
        }
        1 => conv(random, c, c, c, slide, clamp),
        2 => batch_norm(random, c),
        3 => Op::Affine { scale: vector(random, c), bias: vector(random, c), clamp },
        4 => Op::PRelu { slope: vector(random, c) },
        5 => Op::MaxPool(slide),
        6 => Op::AveragePool { window: slide, count_include_pad: random.below(2) == 0 },
        7 => Op::Map(ScalarFn::binary(Binary::Mul, ScalarFn::X, ScalarFn::unary(Unary::HardSigmoid(0.2, 0.5)))),
        8 => Op::Pad { before: vec![0, 1, 0, 0], after: vec![0, 0, 1, 1], value: 0.25 },
        9 => Op::Softmax { axis: 1 + random.below(3) },
        10 => Op::Transpose { perm: vec![0, 2, 1, 3] },
        11 => return Some((Op::Concat { axis: 3 }, vec![x, *same.first()?, x])),
        _ => return Some((Op::Binary { kind: BinaryKind::Add, clamp }, vec![x, *same.first()?])),
    };
    Some((op, vec![x]))
}

#[test]
fn random_networks() {
    for seed in 0..150 {
        let graph = any(seed);
        check(&format!("network {seed}"), &graph, seed);
        check(&format!("network {seed}, trainable"), &trainable(graph.clone()), seed);
        check(&format!("network {seed}, simple"), &simplify(graph), seed);
    }
}

/// A residual network with an excitation, padding, pooling and a flattened end.
fn residual(nchw: bool) -> Graph {
    let mut random = Random::new(11, 0);
    network([8, 8, 3], nchw, |g, x| {
        let mut random_conv = |c, oc| conv(&mut random, c, oc, 1, window([3, 3], [1, 1], [1; 4]), Clamp::NONE);
        let a = g.push("a", random_conv(3, 4), &[x]).unwrap();
        let b = g.push("b", random_conv(4, 4), &[a]).unwrap();
        let b = g.push("bn", batch_norm(&mut Random::new(12, 0), 4), &[b]).unwrap();
        let y = g.push("add", Op::Binary { kind: BinaryKind::Add, clamp: Clamp::RELU }, &[a, b]).unwrap();
        let y = g.push("pool", Op::MaxPool(window([2, 2], [2, 2], [0; 4])), &[y]).unwrap();
        let y = g.push("flat", Op::Reshape { shape: vec![1, 64] }, &[y]).unwrap();
        g.push("fc", linear(&mut Random::new(13, 0), 64, 3, Clamp::NONE), &[y]).unwrap()
    })
}

#[test]
fn transposes_are_written_where_layouts_differ_and_nowhere_else() {
    assert_eq!(count(&residual(true), "Transpose"), 0);
    assert_eq!(count(&residual(false), "Transpose"), 1);
    let ops: Vec<String> = model(&residual(true)).graph.unwrap().node.iter().map(|n| n.op_type.clone()).collect();
    assert_eq!(ops.join(" "), "Conv Conv BatchNormalization Add Relu MaxPool Flatten Gemm");
    let back = trainable(check("residual", &residual(true), 14));
    let names: Vec<&str> = back.nodes.iter().map(|n| n.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "bn", "add", "pool", "flat/Reshape", "fc"]);
    assert_eq!(back.theta(), trainable(residual(true)).theta());
}

#[test]
fn the_batch_is_a_symbol_where_it_can_be() {
    let symbols = |g: &Graph| {
        let graph = model(g).graph.unwrap();
        let dim = |info: &tract_onnx::pb::ValueInfoProto| format!("{:?}", info.r#type).contains("DimParam(\"N\")");
        graph.input.iter().chain(&graph.output).filter(|info| dim(info)).count()
    };
    assert_eq!(symbols(&residual(true)), 2);
    let fixed = |op: Op| network([4, 4, 2], true, |g, x| g.push("op", op, &[x]).unwrap());
    assert_eq!(symbols(&fixed(Op::Reshape { shape: vec![16, 2] })), 0);
    assert_eq!(symbols(&fixed(Op::Reshape { shape: vec![1, 32] })), 2);
    assert_eq!(symbols(&fixed(Op::Mean { axes: vec![0] })), 0);
}

#[test]
fn what_onnx_cannot_say_is_listed_at_once() {
    let skewed = |n: usize| (0..n).map(|i| Tap { lo: i * i / n, hi: i * i / n, frac: 0.0 }).collect::<Vec<_>>();
    let dilated = Window { dilation: [2, 1], ..window([2, 2], [1, 1], [0; 4]) };
    let g = network([6, 6, 2], true, |g, x| {
        let x = g.push("warp", Op::Resize { h: skewed(6), w: skewed(6) }, &[x]).unwrap();
        g.push("smooth", Op::AveragePool { window: dilated, count_include_pad: false }, &[x]).unwrap()
    });
    let message = encode(&g).unwrap_err().to_string();
    assert!(message.contains("'warp'") && message.contains("'smooth'") && message.contains("dilation"), "{message}");
}
