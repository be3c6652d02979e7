//! The float meaning of a graph: the reference that calibration observes and that tests compare with.
//!
//! Convolutions gather their windows into a matrix and multiply (`ndarray` on `matrixmultiply`); everything else is a plain
//! loop. One thread: callers run samples in parallel.

use super::{BinaryKind, Graph, Op, Tap, TensorId, Window};
use ndarray::{Array2, ArrayD, ArrayView2, Axis, IxDyn, Slice};

/// Inputs that do not fit.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// Number of inputs.
    #[error("the network has {expected} inputs, {given} were given")]
    Count {
        /// What the graph declares.
        expected: usize,
        /// What came.
        given: usize,
    },
    /// Shape of one input.
    #[error("input '{name}' has shape {expected:?}, {given:?} was given")]
    Shape {
        /// Input name.
        name: String,
        /// Declared shape.
        expected: Vec<usize>,
        /// Shape that came.
        given: Vec<usize>,
    },
}

/// Outputs of `graph` on one sample, in graph axes.
pub fn run(graph: &Graph, inputs: &[ArrayD<f32>]) -> Result<Vec<ArrayD<f32>>, EvalError> {
    run_visiting(graph, inputs, &mut |_, _| ())
}

/// As [`run`], calling `visit` with every input and every node's output, in order. Values are dropped after their last use.
pub fn run_visiting(
    graph: &Graph,
    inputs: &[ArrayD<f32>],
    visit: &mut dyn FnMut(TensorId, &ArrayD<f32>),
) -> Result<Vec<ArrayD<f32>>, EvalError> {
    if inputs.len() != graph.inputs.len() {
        return Err(EvalError::Count { expected: graph.inputs.len(), given: inputs.len() });
    }
    let mut uses = vec![0usize; graph.tensors.len()];
    graph.nodes.iter().flat_map(|n| &n.inputs).for_each(|id| uses[id.0] += 1);
    graph.outputs.iter().for_each(|port| uses[port.tensor.0] += 1);
    let mut values: Vec<Option<ArrayD<f32>>> = vec![None; graph.tensors.len()];
    for (port, value) in graph.inputs.iter().zip(inputs) {
        if value.shape() != graph.shape(port.tensor) {
            return Err(EvalError::Shape {
                name: port.name.clone(),
                expected: graph.shape(port.tensor).to_vec(),
                given: value.shape().to_vec(),
            });
        }
        visit(port.tensor, value);
        values[port.tensor.0] = Some(value.clone());
    }
    for node in &graph.nodes {
        let args: Vec<&ArrayD<f32>> = node.inputs.iter().filter_map(|id| values[id.0].as_ref()).collect();
        let output = apply(&node.op, &args, graph.shape(node.output));
        visit(node.output, &output);
        for id in &node.inputs {
            uses[id.0] -= 1;
            if uses[id.0] == 0 {
                values[id.0] = None;
            }
        }
        values[node.output.0] = Some(output);
    }
    Ok(graph.outputs.iter().filter_map(|port| values[port.tensor.0].clone()).collect())
}

/// One operator on arrays of the shapes that [`super::shape::infer`] accepts; `shape` is the output's.
pub fn apply(op: &Op, args: &[&ArrayD<f32>], shape: &[usize]) -> ArrayD<f32> {
    let x = args.first();
    let unary = |f: &dyn Fn(f32) -> f32| x.map_or_else(|| ArrayD::zeros(IxDyn(shape)), |x| x.mapv(f));
    let Some(x) = x else {
        return match op {
            Op::Const(value) => value.clone(),
            _ => ArrayD::zeros(IxDyn(shape)),
        };
    };
    match op {
        Op::Const(value) => value.clone(),
        Op::Conv2d { window, groups, weight, bias, clamp } => {
            let mut y = conv(x, weight, bias, window, *groups, shape);
            y.mapv_inplace(|v| clamp.apply(v));
            y
        }
        Op::ConvTranspose2d { window, groups, weight, bias, clamp, .. } => {
            let mut y = conv_transpose(x, weight, bias, window, *groups, shape);
            y.mapv_inplace(|v| clamp.apply(v));
            y
        }
        Op::Linear { weight, bias, clamp } => {
            let k = weight.shape()[1];
            let rows = matrix(x, x.len() / k, k);
            let mut y = rows.dot(&matrix(weight, bias.len(), k).t());
            y.rows_mut().into_iter().for_each(|mut row| {
                row.iter_mut().zip(bias).for_each(|(v, b)| *v = clamp.apply(*v + b));
            });
            shaped(y.into_iter().collect(), shape)
        }
        Op::BatchNorm { gamma, beta, mean, var, epsilon } => per_channel(x, |c, v| {
            let scale = gamma[c] as f64 / (var[c] as f64 + *epsilon as f64).sqrt();
            ((v as f64 - mean[c] as f64) * scale + beta[c] as f64) as f32
        }),
        Op::Affine { scale, bias, clamp } => per_channel(x, |c, v| clamp.apply(v * scale[c] + bias[c])),
        Op::PRelu { slope } => per_channel(x, |c, v| if v >= 0.0 { v } else { v * slope[c] }),
        Op::Binary { kind, clamp } => {
            let (Some(a), Some(b)) = (x.broadcast(shape), args.get(1).and_then(|b| b.broadcast(shape))) else {
                return ArrayD::zeros(IxDyn(shape));
            };
            let values = a.iter().zip(b.iter()).map(|(a, b)| {
                clamp.apply(match kind {
                    BinaryKind::Add => a + b,
                    BinaryKind::Sub => a - b,
                    BinaryKind::Mul => a * b,
                })
            });
            shaped(values.collect(), shape)
        }
        Op::Map(f) => match f.as_clamp() {
            Some(clamp) => unary(&|v| clamp.apply(v)),
            None => unary(&|v| f.eval(v as f64) as f32),
        },
        Op::MaxPool(window) => pool(x, window, shape, |values, _| values.fold(f32::NEG_INFINITY, f32::max)),
        Op::AveragePool { window, count_include_pad } => pool(x, window, shape, |values, inside| {
            let count = if *count_include_pad { window.kernel[0] * window.kernel[1] } else { inside };
            values.sum::<f32>() / count.max(1) as f32
        }),
        Op::Mean { axes } => {
            let mut y = x.mapv(|v| v as f64);
            for &axis in axes {
                let n = y.len_of(Axis(axis)).max(1) as f64;
                y = y.sum_axis(Axis(axis)).insert_axis(Axis(axis)) / n;
            }
            y.mapv(|v| v as f32)
        }
        Op::Pad { before, value, .. } => {
            let mut y = ArrayD::from_elem(IxDyn(shape), *value);
            y.slice_each_axis_mut(|ax| {
                let i = ax.axis.index();
                Slice::from(before[i]..before[i] + x.shape()[i])
            })
            .assign(x);
            y
        }
        Op::Concat { axis } => {
            let views: Vec<_> = args.iter().map(|a| a.view()).collect();
            ndarray::concatenate(Axis(*axis), &views).unwrap_or_else(|_| ArrayD::zeros(IxDyn(shape)))
        }
        Op::Slice { start, step, .. } => ArrayD::from_shape_fn(IxDyn(shape), |index| {
            let at: Vec<usize> =
                (0..start.len()).map(|i| (start[i] as isize + index[i] as isize * step[i]) as usize).collect();
            x[IxDyn(&at)]
        }),
        Op::Reshape { .. } => shaped(x.iter().copied().collect(), shape),
        Op::Transpose { perm } => shaped(x.view().permuted_axes(IxDyn(perm)).iter().copied().collect(), shape),
        Op::Resize { h, w } => {
            let lerp = |a: f32, b: f32, t: &Tap| if t.frac == 0.0 { a } else { a * (1.0 - t.frac) + b * t.frac };
            ArrayD::from_shape_fn(IxDyn(shape), |index| {
                let (row, column, c) = (&h[index[1]], &w[index[2]], index[3]);
                let at = |y: usize| lerp(x[[0, y, column.lo, c]], x[[0, y, column.hi, c]], column);
                lerp(at(row.lo), at(row.hi), row)
            })
        }
        Op::Softmax { axis } => {
            let mut y = (**x).clone();
            for mut lane in y.lanes_mut(Axis(*axis)) {
                let max = lane.fold(f32::NEG_INFINITY, |m, &v| m.max(v));
                lane.mapv_inplace(|v| (v - max).exp());
                let sum = lane.sum();
                lane.mapv_inplace(|v| v / sum);
            }
            y
        }
    }
}

fn shaped(values: Vec<f32>, shape: &[usize]) -> ArrayD<f32> {
    ArrayD::from_shape_vec(IxDyn(shape), values).unwrap_or_else(|_| ArrayD::zeros(IxDyn(shape)))
}

/// `x`, whose elements are contiguous, as a matrix.
fn matrix(x: &ArrayD<f32>, rows: usize, columns: usize) -> Array2<f32> {
    let dense: Vec<f32> = x.iter().copied().collect();
    Array2::from_shape_vec((rows, columns), dense).unwrap_or_else(|_| Array2::zeros((rows, columns)))
}

fn per_channel(x: &ArrayD<f32>, f: impl Fn(usize, f32) -> f32) -> ArrayD<f32> {
    let channels = x.shape().last().copied().unwrap_or(1).max(1);
    shaped(x.iter().enumerate().map(|(i, &v)| f(i % channels, v)).collect(), x.shape())
}

/// Input position of tap `k` for output `out` on axis `i`, if it lies inside of `n`.
fn tap(window: &Window, i: usize, out: usize, k: usize, n: usize) -> Option<usize> {
    let at = (out * window.stride[i] + k * window.dilation[i]).checked_sub(window.pad[i])?;
    (at < n).then_some(at)
}

fn conv(
    x: &ArrayD<f32>,
    weight: &ArrayD<f32>,
    bias: &[f32],
    window: &Window,
    groups: usize,
    shape: &[usize],
) -> ArrayD<f32> {
    let [h, w, c] = [x.shape()[1], x.shape()[2], x.shape()[3]];
    let [oh, ow, oc] = [shape[1], shape[2], shape[3]];
    let [kh, kw] = window.kernel;
    let (group_in, group_out) = (c / groups, oc / groups);
    let input = x.as_standard_layout();
    let input = input.as_slice().unwrap_or(&[]);
    let mut y = vec![0f32; oh * ow * oc];
    if group_in == 1 && group_out == 1 {
        let taps = weight.as_standard_layout();
        let taps = taps.as_slice().unwrap_or(&[]);
        for (pixel, out) in y.chunks_exact_mut(oc).enumerate() {
            out.copy_from_slice(bias);
            for ky in 0..kh {
                let Some(row) = tap(window, 0, pixel / ow, ky, h) else { continue };
                for kx in 0..kw {
                    let Some(column) = tap(window, 1, pixel % ow, kx, w) else { continue };
                    let values = &input[(row * w + column) * c..][..c];
                    for (i, out) in out.iter_mut().enumerate() {
                        *out += values[i] * taps[(i * kh + ky) * kw + kx];
                    }
                }
            }
        }
        return shaped(y, shape);
    }
    let filters = matrix(weight, oc, kh * kw * group_in);
    for group in 0..groups {
        let mut windows = Array2::<f32>::zeros((oh * ow, kh * kw * group_in));
        for (pixel, mut row) in windows.rows_mut().into_iter().enumerate() {
            let row = row.as_slice_mut().unwrap_or(&mut []);
            for ky in 0..kh {
                let Some(iy) = tap(window, 0, pixel / ow, ky, h) else { continue };
                for kx in 0..kw {
                    let Some(ix) = tap(window, 1, pixel % ow, kx, w) else { continue };
                    let from = (iy * w + ix) * c + group * group_in;
                    row[(ky * kw + kx) * group_in..][..group_in].copy_from_slice(&input[from..][..group_in]);
                }
            }
        }
        let part: ArrayView2<f32> =
            filters.slice_axis(Axis(0), Slice::from(group * group_out..(group + 1) * group_out));
        let product = windows.dot(&part.t());
        for (pixel, row) in product.rows().into_iter().enumerate() {
            for (i, v) in row.iter().enumerate() {
                y[pixel * oc + group * group_out + i] = v + bias[group * group_out + i];
            }
        }
    }
    shaped(y, shape)
}

fn conv_transpose(
    x: &ArrayD<f32>,
    weight: &ArrayD<f32>,
    bias: &[f32],
    window: &Window,
    groups: usize,
    shape: &[usize],
) -> ArrayD<f32> {
    let mut y = ArrayD::from_shape_fn(IxDyn(shape), |index| bias[index[3]]);
    let (group_in, group_out) = (x.shape()[3] / groups, shape[3] / groups);
    let target = |i: usize, at: usize, k: usize| {
        (at * window.stride[i] + k * window.dilation[i]).checked_sub(window.pad[i]).filter(|&t| t < shape[i + 1])
    };
    for (index, &v) in x.indexed_iter() {
        let (iy, ix, c) = (index[1], index[2], index[3]);
        for ky in 0..window.kernel[0] {
            let Some(oy) = target(0, iy, ky) else { continue };
            for kx in 0..window.kernel[1] {
                let Some(ox) = target(1, ix, kx) else { continue };
                for o in 0..group_out {
                    let oc = c / group_in * group_out + o;
                    y[[0, oy, ox, oc]] += v * weight[[oc, ky, kx, c % group_in]];
                }
            }
        }
    }
    y
}

/// `f` over the inside values of every window and their count.
fn pool(
    x: &ArrayD<f32>,
    window: &Window,
    shape: &[usize],
    f: impl Fn(&mut dyn Iterator<Item = f32>, usize) -> f32,
) -> ArrayD<f32> {
    ArrayD::from_shape_fn(IxDyn(shape), |index| {
        let inside = |i: usize| -> Vec<usize> {
            (0..window.kernel[i]).filter_map(|k| tap(window, i, index[i + 1], k, x.shape()[i + 1])).collect()
        };
        let (rows, columns) = (inside(0), inside(1));
        let count = rows.len() * columns.len();
        let mut values =
            rows.iter().flat_map(|&r| columns.iter().map(move |&c| (r, c))).map(|(r, c)| x[[0, r, c, index[3]]]);
        f(&mut values, count)
    })
}

/// Multiply-accumulates of one run of `op`.
pub fn macs(op: &Op, input: &[usize], output: &[usize]) -> u64 {
    let n = match op {
        Op::Conv2d { weight, .. } => output.iter().product::<usize>() * weight.shape()[1..].iter().product::<usize>(),
        Op::ConvTranspose2d { weight, groups, .. } => {
            input.iter().product::<usize>() * weight.shape()[..3].iter().product::<usize>() / groups
        }
        Op::Linear { weight, .. } => output.iter().product::<usize>() * weight.shape()[1],
        Op::Affine { .. } => output.iter().product(),
        _ => 0,
    };
    n as u64
}
