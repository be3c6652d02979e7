//! Quantized graph → program: the records that the device executes, not yet placed in memory.

use crate::graph::{BinaryKind, Clamp, Node, Op, Port, ScalarFn, Tap, TensorId, Window};
use crate::scheme::{
    QGraph, QParams, QWeights, RawPort, multiplier, quantize_value, quantized_clamp, sum_factors, table,
};
use ndarray::ArrayD;
use pith::format::{MAX_RANK, NONE, op, tensor};

/// A program in execution order. Records name tensors and constants by index; offsets are still zero.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Activations; `offset` is filled in by [`crate::pack`].
    pub tensors: Vec<TensorSpec>,
    /// Weights and tables.
    pub constants: Vec<ConstantSpec>,
    /// Operators.
    pub ops: Vec<OpSpec>,
    /// Inputs of the model.
    pub inputs: Vec<PortSpec>,
    /// Outputs of the model.
    pub outputs: Vec<PortSpec>,
    /// Free text, `key=value`.
    pub metadata: Vec<(String, String)>,
}

/// An activation tensor.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    /// For reports and `eval --layers`: the float graph's tensor name.
    pub name: String,
    /// The record.
    pub record: tensor::Tensor,
    /// Tensor that this one shares memory with because it only has another shape.
    pub alias_of: Option<usize>,
}

/// A constant and its bytes as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct ConstantSpec {
    /// The record; `offset` is filled in by [`crate::pack`].
    pub record: tensor::Constant,
    /// `record.bytes` bytes.
    pub bytes: Vec<u8>,
    /// What a coded constant decodes to, else empty.
    pub decoded: Vec<u8>,
}

/// An operator.
#[derive(Clone, Debug)]
pub struct OpSpec {
    /// The float graph's node name.
    pub name: String,
    /// The record; a `Concat`'s inputs stand in `concat`.
    pub record: op::Op<'static>,
    /// Inputs of a `Concat`, else empty.
    pub concat: Vec<op::ConcatInput>,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Shape of the output for tables.
    pub out_shape: Vec<usize>,
}

/// A port of the model.
#[derive(Clone, Debug)]
pub struct PortSpec {
    /// The name in the ONNX file.
    pub name: String,
    /// The record; text offsets are filled in by [`crate::pack`].
    pub record: tensor::Port,
}

/// Why a quantized graph has no program.
#[derive(Debug, thiserror::Error)]
#[error("node '{node}' ({op}): {what}")]
pub struct LowerError {
    /// Node name.
    pub node: String,
    /// Operator.
    pub op: &'static str,
    /// What the device cannot do, with the shape.
    pub what: String,
}

/// The program of a quantized graph.
pub fn lower(q: &QGraph) -> Result<Program, LowerError> {
    let mut l = Lowering { q, program: Program::default(), node: 0 };
    for (i, tensor) in q.graph.tensors.iter().enumerate() {
        let spec = TensorSpec {
            name: tensor.name.clone(),
            record: record(&unbatched(&tensor.shape), q.activations[i]),
            alias_of: None,
        };
        l.program.tensors.push(spec);
    }
    for i in 0..q.graph.nodes.len() {
        l.node = i;
        l.lower_node()?;
    }
    let port = |port: &Port, raw: &RawPort| PortSpec {
        name: port.name.clone(),
        record: tensor::Port {
            tensor: port.tensor.0 as u16,
            layout: if port.onnx_axes == [0, 2, 3, 1] { tensor::Port::NCHW } else { tensor::Port::AS_ONNX },
            raw: if raw.is_u8 { tensor::Port::U8 } else { tensor::Port::REAL },
            scale: raw.params.scale,
            zero_point: raw.params.zero_point,
            ..tensor::Port::default()
        },
    };
    l.program.inputs = q.graph.inputs.iter().zip(&q.inputs).map(|(p, raw)| port(p, raw)).collect();
    l.program.outputs = q.graph.outputs.iter().zip(&q.outputs).map(|(p, raw)| port(p, raw)).collect();
    Ok(l.program)
}

/// A shape without its batch axis.
fn unbatched(shape: &[usize]) -> Vec<usize> {
    match shape {
        [1, rest @ ..] if !rest.is_empty() => rest.to_vec(),
        _ => shape.to_vec(),
    }
}

/// A tensor record; axes longer than a record can say are split.
fn record(shape: &[usize], params: QParams) -> tensor::Tensor {
    let mut dims: Vec<usize> = Vec::new();
    for &d in shape {
        match (1..=65_535.min(d)).rev().find(|f| d % f == 0) {
            Some(f) if d > 65_535 => dims.extend([d / f, f]),
            _ => dims.push(d),
        }
    }
    if dims.len() > MAX_RANK || dims.iter().any(|&d| d > 65_535) {
        // Only reports read the shape; the length is what counts.
        dims = vec![1];
    }
    let len: usize = shape.iter().product();
    let mut record = tensor::Tensor {
        kind: tensor::Tensor::ACTIVATION,
        bits: 8,
        rank: dims.len() as u8,
        zero_point: params.zero_point,
        scale: params.scale,
        len: len as u32,
        dims: [1; MAX_RANK],
        ..tensor::Tensor::default()
    };
    record.dims.iter_mut().zip(&dims).for_each(|(to, &d)| *to = d as u16);
    record
}

struct Lowering<'q> {
    q: &'q QGraph,
    program: Program,
    node: usize,
}

impl Lowering<'_> {
    fn current(&self) -> &Node {
        &self.q.graph.nodes[self.node]
    }

    fn fail(&self, what: String) -> LowerError {
        LowerError { node: self.current().name.clone(), op: self.current().op.name(), what }
    }

    fn shape(&self, id: TensorId) -> Vec<usize> {
        unbatched(self.q.graph.shape(id))
    }

    fn small(&self, n: usize) -> Result<u16, LowerError> {
        u16::try_from(n).map_err(|_| self.fail(format!("a dimension of {n}; the file's limit is 65,535")))
    }

    /// `[h, w, c]` of a map.
    fn map(&self, id: TensorId) -> Result<[u16; 3], LowerError> {
        match self.shape(id)[..] {
            [h, w, c] => Ok([self.small(h)?, self.small(w)?, self.small(c)?]),
            ref other => Err(self.fail(format!("shape {other:?} is no map"))),
        }
    }

    /// Index of a constant; equal ones are stored once.
    fn constant(&mut self, kind: u8, bits: u8, len: usize, bytes: Vec<u8>) -> u16 {
        let record = tensor::Constant {
            encoding: tensor::Constant::ENCODING_RAW,
            kind,
            bits,
            len: len as u32,
            bytes: bytes.len() as u32,
            refines: NONE,
            ..tensor::Constant::default()
        };
        let spec = ConstantSpec { record, bytes, decoded: Vec::new() };
        let found = self.program.constants.iter().position(|c| *c == spec);
        found.unwrap_or_else(|| {
            self.program.constants.push(spec);
            self.program.constants.len() - 1
        }) as u16
    }

    fn channels(&mut self, bias: &[i32], multiplier: &[i32], shift: &[u8]) -> u16 {
        let mut bytes: Vec<u8> = bias.iter().chain(multiplier).flat_map(|v| v.to_le_bytes()).collect();
        bytes.extend(shift);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        self.constant(tensor::Constant::KIND_CHANNELS, 32, shift.len(), bytes)
    }

    fn factors(&mut self, factors: &[f64]) -> u16 {
        let (multipliers, shifts): (Vec<i32>, Vec<u8>) = factors.iter().map(|&f| multiplier(f)).unzip();
        self.channels(&vec![0; factors.len()], &multipliers, &shifts)
    }

    fn weights(&mut self, values: &[i8], bits: u8) -> u16 {
        self.constant(tensor::Constant::KIND_WEIGHTS, bits, values.len(), pack_bits(values, bits))
    }

    fn u16s(&mut self, values: &[u16]) -> u16 {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(tensor::Constant::KIND_U16, 16, values.len(), bytes)
    }

    fn push(&mut self, record: op::Op<'static>) {
        self.push_list(record, Vec::new());
    }

    fn push_list(&mut self, record: op::Op<'static>, concat: Vec<op::ConcatInput>) {
        let node = self.current();
        let out_shape = self.program.tensors[record.output() as usize].record;
        let spec = OpSpec {
            name: node.name.clone(),
            macs: record.macs(),
            out_shape: out_shape.dims[..out_shape.rank as usize].iter().map(|&d| d as usize).collect(),
            record,
            concat,
        };
        self.program.ops.push(spec);
    }

    /// A new tensor like `id` with other parameters and shape.
    fn temporary(&mut self, id: TensorId, shape: &[usize], params: QParams) -> u16 {
        let name = format!("{}/part", self.q.graph.tensors[id.0].name);
        self.program.tensors.push(TensorSpec { name, record: record(shape, params), alias_of: None });
        (self.program.tensors.len() - 1) as u16
    }

    fn lookup(&mut self, input: u16, output: u16, f: &ScalarFn, from: QParams, to: QParams) {
        let bytes = table(f, from, to).iter().map(|&q| q as u8).collect();
        let table = self.constant(tensor::Constant::KIND_TABLE_S8, 8, 256, bytes);
        self.push(op::Op::Lookup(op::Lookup { input, output, table, reserved: 0 }));
    }

    fn lower_node(&mut self) -> Result<(), LowerError> {
        let q = self.q;
        let node = &q.graph.nodes[self.node];
        let to = q.activations[node.output.0];
        let output = node.output.0 as u16;
        let Some(&first) = node.inputs.first() else {
            return Ok(()); // Constants are stored where they are read.
        };
        let from = q.activations[first.0];
        let input = first.0 as u16;
        if let Some(id) = node.inputs.iter().find(|&&id| self.constant_value(id).is_some())
            && (!matches!(node.op, Op::Binary { .. })
                || node.inputs.iter().all(|&id| self.constant_value(id).is_some()))
        {
            return Err(self.fail(format!("a constant operand ('{}')", q.graph.tensors[id.0].name)));
        }
        match &node.op {
            Op::Const(_) => {}
            Op::Conv2d { window, groups, clamp, .. } | Op::ConvTranspose2d { window, groups, clamp, .. } => {
                let [in_h, in_w, in_c] = self.map(first)?;
                let [out_h, out_w, out_c] = self.map(node.output)?;
                let weights = self.qweights()?;
                let transposed = matches!(node.op, Op::ConvTranspose2d { .. });
                let depthwise = !transposed && *groups == in_c as usize && in_c == out_c && *groups > 1;
                let values: Vec<i8> = match depthwise {
                    // [c, kh, kw, 1] becomes [kh, kw, c].
                    true => weights.values.view().permuted_axes(vec![3, 1, 2, 0]).iter().copied().collect(),
                    false => weights.values.iter().copied().collect(),
                };
                let (act_min, act_max) = quantized_clamp(*clamp, to);
                let record = op::Conv {
                    input,
                    output,
                    weights: self.weights(&values, weights.bits),
                    channels: self.channels(&weights.bias, &weights.multiplier, &weights.shift),
                    in_h,
                    in_w,
                    in_c,
                    out_h,
                    out_w,
                    out_c,
                    kernel_h: self.small(window.kernel[0])?,
                    kernel_w: self.small(window.kernel[1])?,
                    stride_h: self.small(window.stride[0])?,
                    stride_w: self.small(window.stride[1])?,
                    dilation_h: self.small(window.dilation[0])?,
                    dilation_w: self.small(window.dilation[1])?,
                    pad_top: self.small(window.pad[0])?,
                    pad_left: self.small(window.pad[1])?,
                    groups: if depthwise { 1 } else { self.small(*groups)? },
                    weight_zero_points: NONE,
                    act_min,
                    act_max,
                    reserved: 0,
                };
                self.push(match (transposed, depthwise) {
                    (true, _) => op::Op::ConvTranspose(record),
                    (_, true) => op::Op::Depthwise(record),
                    _ => op::Op::Conv(record),
                });
            }
            Op::Affine { scale, clamp, .. } => {
                let c = scale.len();
                let pixels = self.shape(first).iter().product::<usize>() / c.max(1);
                let width = (1..=65_535.min(pixels)).rev().find(|w| pixels % w == 0).unwrap_or(1);
                let (h, w, c) = (self.small(pixels / width)?, self.small(width)?, self.small(c)?);
                let weights = self.qweights()?;
                let values: Vec<i8> = weights.values.iter().copied().collect();
                let (act_min, act_max) = quantized_clamp(*clamp, to);
                let record = op::Conv {
                    input,
                    output,
                    weights: self.weights(&values, weights.bits),
                    channels: self.channels(&weights.bias, &weights.multiplier, &weights.shift),
                    in_h: h,
                    in_w: w,
                    in_c: c,
                    out_h: h,
                    out_w: w,
                    out_c: c,
                    kernel_h: 1,
                    kernel_w: 1,
                    stride_h: 1,
                    stride_w: 1,
                    dilation_h: 1,
                    dilation_w: 1,
                    groups: 1,
                    weight_zero_points: NONE,
                    act_min,
                    act_max,
                    ..op::Conv::default()
                };
                self.push(op::Op::Depthwise(record));
            }
            Op::Linear { weight, clamp, .. } => {
                let (n, k) = (weight.shape()[0], weight.shape()[1]);
                let weights = self.qweights()?;
                let values: Vec<i8> = weights.values.iter().copied().collect();
                let (act_min, act_max) = quantized_clamp(*clamp, to);
                let record = op::Linear {
                    input,
                    output,
                    weights: self.weights(&values, weights.bits),
                    channels: self.channels(&weights.bias, &weights.multiplier, &weights.shift),
                    rows: (self.shape(first).iter().product::<usize>() / k.max(1)) as u32,
                    k: k as u32,
                    n: n as u32,
                    weight_zero_points: NONE,
                    act_min,
                    act_max,
                };
                self.push(op::Op::Linear(record));
            }
            Op::BatchNorm { .. } => return Err(self.fail("batch norm that was not folded".into())),
            Op::Binary { kind, clamp } => self.binary(*kind, *clamp)?,
            Op::Map(f) => self.lookup(input, output, f, from, to),
            Op::PRelu { slope } => {
                let ratio = from.scale as f64 / to.scale as f64;
                let factors: Vec<f64> = slope.iter().map(|&s| s as f64 * ratio).collect();
                let (multiplier, shift) = multiplier(ratio);
                let channels = self.factors(&factors);
                let c = self.small(slope.len())?;
                self.push(op::Op::PRelu(op::PRelu { input, output, channels, c, multiplier, shift: shift as u32 }));
            }
            Op::AveragePool { window, count_include_pad } => {
                let ratio = from.scale as f64 / to.scale as f64;
                let area = window.kernel[0] * window.kernel[1];
                let always_full = *count_include_pad || window.pad == [0; 4];
                let factors: Vec<f64> = match always_full {
                    true => vec![ratio / area as f64],
                    false => (1..=area).map(|n| ratio / n as f64).collect(),
                };
                let channels = self.factors(&factors);
                let record = self.pool(input, output, window, channels)?;
                self.push(op::Op::AveragePool(record));
            }
            Op::Mean { axes } => {
                let shape = q.graph.shape(first);
                let axes: Vec<usize> = axes.iter().copied().filter(|&a| shape[a] > 1).collect();
                let (Some(&low), Some(&high)) = (axes.first(), axes.last()) else {
                    self.lookup(input, output, &ScalarFn::X, from, to);
                    return Ok(());
                };
                if (low..=high).any(|a| shape[a] > 1 && !axes.contains(&a)) {
                    return Err(self.fail(format!("a mean over axes {axes:?}, which do not lie together")));
                }
                let reduce = shape[low..=high].iter().product::<usize>();
                if reduce > 1 << 22 {
                    return Err(self.fail(format!("a mean of {reduce} elements; the limit is 4 million")));
                }
                let (multiplier, shift) = multiplier(from.scale as f64 / to.scale as f64 / reduce as f64);
                self.push(op::Op::Mean(op::Mean {
                    input,
                    output,
                    outer: shape[..low].iter().product::<usize>() as u32,
                    reduce: reduce as u32,
                    inner: shape[high + 1..].iter().product::<usize>() as u32,
                    multiplier,
                    shift: shift as u32,
                }));
            }
            Op::Concat { axis } => {
                let shape = q.graph.shape(node.output);
                let inner: usize = shape[axis + 1..].iter().product();
                let inputs: Vec<op::ConcatInput> = node
                    .inputs
                    .iter()
                    .map(|id| {
                        let from = q.activations[id.0];
                        let (multiplier, shift) = match from == to {
                            true => (0, 1),
                            false => multiplier(from.scale as f64 / to.scale as f64),
                        };
                        op::ConcatInput {
                            input: id.0 as u16,
                            reserved: 0,
                            inner: (q.graph.shape(*id)[*axis] * inner) as u32,
                            multiplier,
                            shift: shift as u32,
                        }
                    })
                    .collect();
                let outer = shape[..*axis].iter().product::<usize>() as u32;
                let record = op::Concat { output, input_count: inputs.len() as u16, outer };
                self.push_list(op::Op::Concat(record, &[]), inputs);
            }
            Op::Softmax { axis } => {
                let shape = q.graph.shape(first);
                let scale = from.scale as f64;
                let values: Vec<u16> =
                    (0..256).map(|i| (32_768.0 * (-scale * i as f64).exp()).round() as u16).collect();
                let table = self.u16s(&values);
                let columns = shape[*axis];
                if columns > 65_535 {
                    return Err(self.fail(format!("a softmax over {columns} values; the limit is 65,535")));
                }
                let rows = shape.iter().product::<usize>() / columns;
                let record =
                    op::Softmax { input, output, table, reserved: 0, rows: rows as u32, columns: columns as u32 };
                if shape[axis + 1..].iter().all(|&d| d == 1) {
                    self.push(op::Op::Softmax(record));
                    return Ok(());
                }
                // Another axis than the last: bring it there and back.
                let mut perm: Vec<usize> = (0..shape.len()).filter(|a| a != axis).collect();
                perm.push(*axis);
                let moved: Vec<usize> = perm.iter().map(|&p| shape[p]).collect();
                let before = self.temporary(node.output, &moved, from);
                let after = self.temporary(node.output, &moved, to);
                self.transpose(input, before, shape, &perm)?;
                self.push(op::Op::Softmax(op::Softmax { input: before, output: after, ..record }));
                let mut back = vec![0; perm.len()];
                perm.iter().enumerate().for_each(|(i, &p)| back[p] = i);
                self.transpose(after, output, &moved, &back)?;
            }
            Op::Reshape { .. } if from == to => {
                self.program.tensors[node.output.0].alias_of = Some(first.0);
            }
            Op::MaxPool(_)
            | Op::Pad { .. }
            | Op::Slice { .. }
            | Op::Transpose { .. }
            | Op::Resize { .. }
            | Op::Reshape { .. } => {
                self.same_scale(input, output, from, to)?;
            }
        }
        Ok(())
    }

    fn constant_value(&self, id: TensorId) -> Option<&ArrayD<f32>> {
        match &self.q.graph.nodes[self.q.graph.producer(id)?].op {
            Op::Const(value) => Some(value),
            _ => None,
        }
    }

    fn qweights(&self) -> Result<QWeights, LowerError> {
        self.q.weights[self.node].clone().ok_or_else(|| self.fail("weights that were not quantized".into()))
    }

    fn pool(&self, input: u16, output: u16, window: &Window, channels: u16) -> Result<op::Pool, LowerError> {
        let node = self.current();
        let [in_h, in_w, c] = self.map(node.inputs[0])?;
        let [out_h, out_w, _] = self.map(node.output)?;
        Ok(op::Pool {
            input,
            output,
            channels,
            in_h,
            in_w,
            c,
            out_h,
            out_w,
            kernel_h: self.small(window.kernel[0])?,
            kernel_w: self.small(window.kernel[1])?,
            stride_h: self.small(window.stride[0])?,
            stride_w: self.small(window.stride[1])?,
            dilation_h: self.small(window.dilation[0])?,
            dilation_w: self.small(window.dilation[1])?,
            pad_top: self.small(window.pad[0])?,
            pad_left: self.small(window.pad[1])?,
            act_min: i8::MIN,
            act_max: i8::MAX,
            reserved: 0,
        })
    }

    /// Operators that only move integers; if their output has other parameters, a table follows.
    fn same_scale(&mut self, input: u16, output: u16, from: QParams, to: QParams) -> Result<(), LowerError> {
        let q = self.q;
        let node = &q.graph.nodes[self.node];
        let (first, shape) = (node.inputs[0], q.graph.shape(node.inputs[0]));
        if matches!(node.op, Op::Reshape { .. }) {
            self.lookup(input, output, &ScalarFn::X, from, to);
            return Ok(());
        }
        let target = match from == to {
            true => output,
            false => self.temporary(node.output, &self.shape(node.output), from),
        };
        match &node.op {
            Op::MaxPool(window) => {
                let record = self.pool(input, target, window, NONE)?;
                self.push(op::Op::MaxPool(record));
            }
            Op::Pad { before, value, .. } => {
                let dims = |values: &[usize], fill: u16| -> Result<[u16; MAX_RANK], LowerError> {
                    let missing = MAX_RANK.checked_sub(values.len());
                    let missing = missing.ok_or_else(|| self.fail(format!("{} axes; the limit is 6", values.len())))?;
                    let mut all = [fill; MAX_RANK];
                    for (to, &d) in all[missing..].iter_mut().zip(values) {
                        *to = self.small(d)?;
                    }
                    Ok(all)
                };
                let record = op::Pad {
                    input,
                    output: target,
                    in_dims: dims(shape, 1)?,
                    out_dims: dims(q.graph.shape(node.output), 1)?,
                    before: dims(before, 0)?,
                    value: quantize_value(*value, from),
                    reserved: [0; 3],
                };
                self.push(op::Op::Pad(record));
            }
            Op::Slice { start, step, len } => {
                let strides = dense(shape);
                let offset: usize = start.iter().zip(&strides).map(|(s, stride)| s * stride).sum();
                let steps: Vec<i64> = step.iter().zip(&strides).map(|(&s, &stride)| s as i64 * stride as i64).collect();
                self.rearrange(input, target, len, &steps, offset)?;
            }
            Op::Transpose { perm } => self.transpose(input, target, shape, perm)?,
            Op::Resize { h, w } => {
                let [in_h, in_w, c] = self.map(first)?;
                let [out_h, out_w, _] = self.map(node.output)?;
                let nearest = h.iter().chain(w).all(|t| t.frac == 0.0);
                let mut taps = |axis: &[Tap]| {
                    let fraction = |t: &Tap| (t.frac * 2048.0).round() as u16;
                    let values: Vec<u16> = match nearest {
                        true => axis.iter().map(|t| t.lo as u16).collect(),
                        false => axis.iter().flat_map(|t| [t.lo as u16, t.hi as u16, fraction(t)]).collect(),
                    };
                    self.u16s(&values)
                };
                let (rows, columns) = (taps(h), taps(w));
                let record =
                    op::Resize { input, output: target, rows, columns, in_h, in_w, c, out_h, out_w, reserved: 0 };
                self.push(if nearest { op::Op::ResizeNearest(record) } else { op::Op::ResizeBilinear(record) });
            }
            _ => return Err(self.fail("no record for this operator".into())),
        }
        if target != output {
            self.lookup(target, output, &ScalarFn::X, from, to);
        }
        Ok(())
    }

    fn transpose(&mut self, input: u16, output: u16, shape: &[usize], perm: &[usize]) -> Result<(), LowerError> {
        let strides = dense(shape);
        let dims: Vec<usize> = perm.iter().map(|&p| shape[p]).collect();
        let steps: Vec<i64> = perm.iter().map(|&p| strides[p] as i64).collect();
        self.rearrange(input, output, &dims, &steps, 0)
    }

    /// Axes of length 1 are dropped and neighbours that are walked as one are merged.
    fn rearrange(
        &mut self,
        input: u16,
        output: u16,
        dims: &[usize],
        steps: &[i64],
        offset: usize,
    ) -> Result<(), LowerError> {
        let mut axes: Vec<(usize, i64)> = Vec::new();
        for (&d, &s) in dims.iter().zip(steps).filter(|(d, _)| **d > 1) {
            match axes.last_mut() {
                Some((last, step)) if *step == s * d as i64 && *last * d <= 65_535 => (*last, *step) = (*last * d, s),
                _ => axes.push((d, s)),
            }
        }
        if axes.len() > MAX_RANK {
            return Err(self.fail(format!("{} axes in motion; the limit is 6", axes.len())));
        }
        let mut record =
            op::Rearrange { input, output, dims: [1; MAX_RANK], strides: [0; MAX_RANK], offset: offset as u32 };
        let first = MAX_RANK - axes.len();
        for (i, (d, s)) in axes.into_iter().enumerate() {
            record.dims[first + i] = self.small(d)?;
            record.strides[first + i] = s as i32;
        }
        self.push(op::Op::Rearrange(record));
        Ok(())
    }

    fn binary(&mut self, kind: BinaryKind, clamp: Clamp) -> Result<(), LowerError> {
        let q = self.q;
        let node = &q.graph.nodes[self.node];
        let to = q.activations[node.output.0];
        let shape = q.graph.shape(node.output);
        let (mut lhs, mut rhs, mut signs) =
            (node.inputs[0], node.inputs[1], [1.0, if kind == BinaryKind::Sub { -1.0 } else { 1.0 }]);
        // The right operand is the constant or the one that broadcasts.
        if self.constant_value(lhs).is_some() || (q.graph.shape(lhs) != shape && self.constant_value(rhs).is_none()) {
            (lhs, rhs) = (rhs, lhs);
            signs.reverse();
        }
        let [a, b] = [lhs, rhs].map(|id| q.activations[id.0]);
        let strides = |id: TensorId| {
            let own = q.graph.shape(id);
            let dense = dense(own);
            let missing = shape.len() - own.len();
            (0..shape.len())
                .map(|i| match i.checked_sub(missing) {
                    Some(j) if own[j] > 1 => dense[j],
                    _ => 0,
                })
                .collect::<Vec<_>>()
        };
        let (dims, lhs_strides, rhs_strides) = merge(shape, &strides(lhs), &strides(rhs))
            .ok_or_else(|| self.fail(format!("broadcasting over more than 4 axes ({shape:?})")))?;
        let constant: Option<Vec<i8>> =
            self.constant_value(rhs).map(|value| value.iter().map(|&v| quantize_value(v, b)).collect());
        let (act_min, act_max) = quantized_clamp(clamp, to);
        let ratio = |p: QParams| p.scale as f64 / to.scale as f64;
        let mut record = op::Binary {
            lhs: lhs.0 as u16,
            rhs: rhs.0 as u16,
            output: node.output.0 as u16,
            dims,
            lhs_strides,
            rhs_strides,
            act_min,
            act_max,
            ..op::Binary::default()
        };
        if let Some(values) = constant {
            record.rhs = self.weights(&values, 8);
            record.rhs_is_constant = 1;
            record.rhs_zero_point = b.zero_point;
        }
        if kind == BinaryKind::Mul {
            (record.lhs_multiplier, record.shift) = multiplier(a.scale as f64 * ratio(b));
            self.push(op::Op::Mul(record));
        } else {
            ([record.lhs_multiplier, record.rhs_multiplier], record.shift) =
                sum_factors([ratio(a) * signs[0], ratio(b) * signs[1]]);
            self.push(op::Op::Add(record));
        }
        Ok(())
    }
}

/// Row-major strides.
fn dense(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * shape[i + 1];
    }
    strides
}

/// Axes of length 1 dropped, and neighbours that both operands walk as one merged; leading axes 1, strides 0 along axes of length 1.
fn merge(dims: &[usize], lhs: &[usize], rhs: &[usize]) -> Option<([u32; 4], [u32; 4], [u32; 4])> {
    let mut axes: Vec<[usize; 3]> = Vec::new();
    for i in (0..dims.len()).filter(|&i| dims[i] > 1) {
        match axes.last_mut() {
            Some([d, l, r]) if *l == lhs[i] * dims[i] && *r == rhs[i] * dims[i] => {
                (*d, *l, *r) = (*d * dims[i], lhs[i], rhs[i]);
            }
            _ => axes.push([dims[i], lhs[i], rhs[i]]),
        }
    }
    let first = 4usize.checked_sub(axes.len())?;
    let mut merged = ([1; 4], [0; 4], [0; 4]);
    for (i, [d, l, r]) in axes.into_iter().enumerate() {
        (merged.0[first + i], merged.1[first + i], merged.2[first + i]) = (d as u32, l as u32, r as u32);
    }
    Some(merged)
}

/// Values as a little-endian bit stream of `bits` each.
pub(crate) fn pack_bits(values: &[i8], bits: u8) -> Vec<u8> {
    let mut bytes = vec![0u8; (values.len() * bits as usize).div_ceil(8)];
    for (i, &v) in values.iter().enumerate() {
        let at = i * bits as usize;
        let word = ((v as u8 as u16) & ((1 << bits) - 1)) << (at % 8);
        bytes[at / 8] |= word as u8;
        if word > 0xFF {
            bytes[at / 8 + 1] |= (word >> 8) as u8;
        }
    }
    bytes
}
