//! Random networks for the tests: batch norms, residual and depthwise layers, concatenations, gates, splits, flattening.

use crate::graph::scalar::{ScalarFn, Unary};
use crate::graph::{BinaryKind, Clamp, Graph, Op, TensorId, Window};
use ndarray::{ArrayD, IxDyn};

pub struct Random(pub u32);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(1664525).wrapping_add(1013904223);
        (self.0 >> 8) as usize % n
    }

    pub fn real(&mut self) -> f32 {
        self.below(2001) as f32 / 1000.0 - 1.0
    }

    pub fn array(&mut self, shape: &[usize]) -> ArrayD<f32> {
        ArrayD::from_shape_simple_fn(IxDyn(shape), || self.real())
    }

    fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.real()).collect()
    }
}

pub fn channels(g: &Graph, x: TensorId) -> usize {
    g.shape(x).last().copied().unwrap()
}

fn name(g: &Graph, op: &str) -> String {
    format!("{op}{}", g.nodes.len())
}

/// A convolution of `groups` groups that keeps the size if `pad`.
pub fn conv(
    g: &mut Graph,
    r: &mut Random,
    x: TensorId,
    oc: usize,
    kernel: usize,
    groups: usize,
    pad: bool,
) -> TensorId {
    let pad = if pad { kernel / 2 } else { 0 };
    let window = Window { kernel: [kernel; 2], stride: [1; 2], dilation: [1; 2], pad: [pad; 4] };
    let weight = r.array(&[oc, kernel, kernel, channels(g, x) / groups]);
    let op = Op::Conv2d { window, groups, weight, bias: r.vec(oc), clamp: Clamp::NONE };
    g.push(name(g, "conv"), op, &[x]).unwrap()
}

pub fn norm(g: &mut Graph, r: &mut Random, x: TensorId) -> TensorId {
    let c = channels(g, x);
    let var = (0..c).map(|_| 0.5 + r.real().abs()).collect();
    let op = Op::BatchNorm { gamma: r.vec(c), beta: r.vec(c), mean: r.vec(c), var, epsilon: 1e-3 };
    g.push(name(g, "norm"), op, &[x]).unwrap()
}

pub fn map(g: &mut Graph, f: ScalarFn, x: TensorId) -> TensorId {
    g.push(name(g, "map"), Op::Map(f), &[x]).unwrap()
}

fn activation(g: &mut Graph, r: &mut Random, x: TensorId) -> TensorId {
    match r.below(5) {
        0 => x,
        1 => map(g, ScalarFn::unary(Unary::HardSwish), x),
        2 => {
            let slope = r.vec(channels(g, x));
            g.push(name(g, "prelu"), Op::PRelu { slope }, &[x]).unwrap()
        }
        3 => map(g, ScalarFn::clamp(Clamp::RELU6), x),
        _ => map(g, ScalarFn::clamp(Clamp::RELU), x),
    }
}

/// Convolution, often batch norm, often an activation.
pub fn block(g: &mut Graph, r: &mut Random, x: TensorId, oc: usize, kernel: usize, groups: usize) -> TensorId {
    let y = conv(g, r, x, oc, kernel, groups, true);
    let y = if r.below(3) > 0 { norm(g, r, y) } else { y };
    activation(g, r, y)
}

pub fn add(g: &mut Graph, a: TensorId, b: TensorId, clamp: Clamp) -> TensorId {
    g.push(name(g, "add"), Op::Binary { kind: BinaryKind::Add, clamp }, &[a, b]).unwrap()
}

pub fn slice(g: &mut Graph, x: TensorId, from: usize, count: usize) -> TensorId {
    let mut len = g.shape(x).to_vec();
    *len.last_mut().unwrap() = count;
    g.push(name(g, "slice"), Op::Slice { start: vec![0, 0, 0, from], step: vec![1; 4], len }, &[x]).unwrap()
}

pub fn linear(g: &mut Graph, r: &mut Random, x: TensorId, n: usize) -> TensorId {
    let k = channels(g, x);
    let op = Op::Linear { weight: r.array(&[n, k]), bias: r.vec(n), clamp: Clamp::NONE };
    g.push(name(g, "linear"), op, &[x]).unwrap()
}

fn step(g: &mut Graph, r: &mut Random, x: TensorId) -> TensorId {
    let c = channels(g, x);
    match r.below(10) {
        0 => {
            let oc = 4 + r.below(4);
            block(g, r, x, oc, 3, 1)
        }
        1 => block(g, r, x, c, 3, c),
        // Identity shortcut, the addition clamped now and then.
        2 => {
            let y = block(g, r, x, c + 1, 3, 1);
            let y = conv(g, r, y, c, 1, 1, true);
            let y = norm(g, r, y);
            let clamp = if r.below(2) == 0 { Clamp::RELU } else { Clamp::NONE };
            add(g, x, y, clamp)
        }
        // Projection.
        3 => {
            let y = block(g, r, x, 5, 3, 1);
            let y = conv(g, r, y, c + 2, 3, 1, true);
            let shortcut = conv(g, r, x, c + 2, 1, 1, true);
            add(g, y, shortcut, Clamp::RELU)
        }
        // Shortcut padded with zero channels.
        4 => {
            let y = block(g, r, x, c + 3, 3, 1);
            let (before, after) = (vec![0, 0, 0, 1], vec![0, 0, 0, 2]);
            let padded = g.push(name(g, "pad"), Op::Pad { before, after, value: 0.0 }, &[x]).unwrap();
            add(g, padded, y, Clamp::RELU)
        }
        5 => {
            let y = block(g, r, x, 4, 3, 1);
            g.push(name(g, "concat"), Op::Concat { axis: 3 }, &[x, y]).unwrap()
        }
        // A gate, as squeeze and excitation has it.
        6 => {
            let mean = g.push(name(g, "squeeze"), Op::Mean { axes: vec![1, 2] }, &[x]).unwrap();
            let y = conv(g, r, mean, c, 1, 1, true);
            let y = map(g, ScalarFn::unary(Unary::Sigmoid), y);
            g.push(name(g, "gate"), Op::Binary { kind: BinaryKind::Mul, clamp: Clamp::NONE }, &[x, y]).unwrap()
        }
        // Halves that go different ways.
        7 => {
            let half = c / 2;
            let a = slice(g, x, 0, half);
            let b = slice(g, x, half, c - half);
            let b = block(g, r, b, 3, 1, 1);
            g.push(name(g, "concat"), Op::Concat { axis: 3 }, &[a, b]).unwrap()
        }
        8 => {
            let y = block(g, r, x, 8, 1, 1);
            block(g, r, y, 12, 3, 4)
        }
        _ => {
            let window = Window { kernel: [2; 2], stride: [1; 2], dilation: [1; 2], pad: [0, 0, 1, 1] };
            let op = match r.below(2) {
                0 => Op::MaxPool(window),
                _ => Op::AveragePool { window, count_include_pad: r.below(2) == 0 },
            };
            g.push(name(g, "pool"), op, &[x]).unwrap()
        }
    }
}

/// A network of `[1, 7, 7, 3]` with four outputs.
pub fn network(r: &mut Random) -> Graph {
    let mut g = Graph::default();
    let mut x = g.add_input("x", &[1, 7, 7, 3]);
    x = block(&mut g, r, x, 6, 3, 1);
    for _ in 0..3 + r.below(3) {
        x = step(&mut g, r, x);
    }
    let flat: usize = g.shape(x).iter().product();
    x = match r.below(3) {
        0 => g.push("mean", Op::Mean { axes: vec![1, 2] }, &[x]).unwrap(),
        1 => g.push("flat", Op::Reshape { shape: vec![1, flat] }, &[x]).unwrap(),
        // Flattened as an NCHW file does it.
        _ => {
            let x = g.push("nchw", Op::Transpose { perm: vec![0, 3, 1, 2] }, &[x]).unwrap();
            g.push("flat", Op::Reshape { shape: vec![1, flat] }, &[x]).unwrap()
        }
    };
    if r.below(2) == 0 {
        x = linear(&mut g, r, x, 7);
        x = map(&mut g, ScalarFn::clamp(Clamp::RELU), x);
    }
    let y = linear(&mut g, r, x, 4);
    g.add_output("y", y);
    g
}
