//! What every operator becomes.
//!
//! A function an operator, which returns the layout and the name of what it wrote last.

use super::messages::{float, int, ints, string};
use super::{Layout, NCHW, Writer, inverse, plain, stored};
use crate::graph::scalar::{Binary, ScalarFn, Unary};
use crate::graph::{BinaryKind, Clamp, Node, Op, Tap, TensorId, Window};
use crate::onnx::ops::resize::Rule;
use ndarray::{ArrayD, Axis, IxDyn};
use tract_onnx::pb::AttributeProto;

type Written = Result<(Layout, String), String>;

impl Writer<'_> {
    pub(super) fn op(&mut self, node: &Node) -> Written {
        match &node.op {
            // Handled before: they write nothing.
            Op::Const(_) | Op::Transpose { .. } => Err("a constant or transpose with inputs that do not fit it".into()),
            Op::Conv2d { window, groups, weight, bias, clamp } => {
                let weight = weight.view().permuted_axes(IxDyn(&[0, 3, 1, 2])).to_owned();
                let attributes = vec![int("group", *groups)];
                self.convolution(node, "Conv", (window, attributes), (weight, bias), *clamp)
            }
            Op::ConvTranspose2d { window, output_padding, groups, weight, bias, clamp } => {
                let attributes = vec![int("group", *groups), ints("output_padding", output_padding)];
                let weight = transposed_weight(weight, *groups);
                self.convolution(node, "ConvTranspose", (window, attributes), (weight, bias), *clamp)
            }
            Op::Linear { weight, bias, clamp } => self.linear(node, weight, bias, *clamp),
            Op::BatchNorm { gamma, beta, mean, var, epsilon } => {
                self.batch_norm(node, [gamma, beta, mean, var], *epsilon)
            }
            Op::Affine { scale, bias, clamp } => self.affine(node, scale, bias, *clamp),
            Op::Binary { kind, clamp } => self.binary(node, *kind, *clamp),
            Op::Map(f) => {
                let (layout, x) = self.at_hand(node.inputs[0])?;
                Ok((layout, self.map(node, f, &x)))
            }
            Op::PRelu { slope } => {
                let (layout, x) = self.at_hand(node.inputs[0])?;
                let slope = self.per_channel(node, "slope", slope, &layout);
                Ok((layout, self.step(node, "PRelu", vec![x, slope], Vec::new())))
            }
            Op::MaxPool(window) => {
                let x = self.stored_as(node.inputs[0], &NCHW)?;
                let attributes = [geometry(window), vec![ints("dilations", &window.dilation)]].concat();
                Ok((NCHW.to_vec(), self.step(node, "MaxPool", vec![x], attributes)))
            }
            Op::AveragePool { window, count_include_pad } => self.average_pool(node, window, *count_include_pad),
            Op::Mean { axes } => self.mean(node, axes),
            Op::Pad { before, after, value } => {
                let (layout, x) = self.at_hand(node.inputs[0])?;
                let pads = [stored(before, &layout), stored(after, &layout)].concat();
                Ok((layout, self.pad(node, x, &pads, *value)))
            }
            Op::Concat { axis } => {
                let layout = self.common_layout(node);
                let inputs = self.all_stored_as(node, &layout)?;
                let y = self.step(node, "Concat", inputs, vec![int("axis", layout[*axis])]);
                Ok((layout, y))
            }
            Op::Slice { start, step, len } => self.slice(node, start, step, len),
            Op::Reshape { shape } => self.reshape(node, shape),
            Op::Resize { h, w } => self.resize(node, h, w),
            Op::Softmax { axis } => {
                let (layout, x) = self.at_hand(node.inputs[0])?;
                let y = self.step(node, "Softmax", vec![x], vec![int("axis", layout[*axis])]);
                Ok((layout, y))
            }
        }
    }

    /// One ONNX node of an IR node: the first takes its name.
    fn step(&mut self, node: &Node, op: &str, inputs: Vec<String>, attributes: Vec<AttributeProto>) -> String {
        let output = self.tensor_names.unique(&format!("{}/{op}", self.graph.tensors[node.output.0].name));
        let name = if self.fresh { self.node_name(node) } else { format!("{}/{op}", node.name) };
        self.fresh = false;
        self.push(op, &name, inputs, output.clone(), attributes);
        output
    }

    /// The name that the importer would call `node` after.
    fn node_name(&self, node: &Node) -> String {
        // Only layout changes and constants are named after the operator that they stand beside.
        let beside = matches!(node.op, Op::Transpose { .. } | Op::Reshape { .. } | Op::Const(_));
        let of_layout = node.name.strip_suffix(node.op.name()).and_then(|name| name.strip_suffix('/'));
        let free = of_layout
            .filter(|_| beside)
            .filter(|name| !name.is_empty() && !self.graph.nodes.iter().any(|n| n.name == *name));
        free.unwrap_or(&node.name).into()
    }

    /// `id` as it was written.
    fn at_hand(&mut self, id: TensorId) -> Written {
        let layout = self.stores[id.0].first().map_or_else(|| plain(self.graph.shape(id).len()), |(l, _)| l.clone());
        let name = self.stored_as(id, &layout)?;
        Ok((layout, name))
    }

    /// The layout in which most of the inputs are stored, of the output's rank.
    fn common_layout(&self, node: &Node) -> Layout {
        let rank = self.graph.shape(node.output).len();
        let variable = || node.inputs.iter().filter(|id| !self.constants.contains_key(id));
        let mut best = (0, plain(rank));
        if variable().any(|&id| self.graph.shape(id).len() != rank) {
            return best.1;
        }
        for (layout, _) in variable().flat_map(|id| &self.stores[id.0]) {
            let count = variable().filter(|id| self.stores[id.0].iter().any(|(l, _)| l == layout)).count();
            if count > best.0 {
                best = (count, layout.clone());
            }
        }
        best.1
    }

    /// Every input in `layout`; what has fewer axes and is no constant stays as it is, and `layout` is then [`plain`].
    fn all_stored_as(&mut self, node: &Node, layout: &[usize]) -> Result<Vec<String>, String> {
        let one = |&id: &TensorId| {
            let own = plain(self.graph.shape(id).len());
            let fewer = own.len() < layout.len() && !self.constants.contains_key(&id);
            self.stored_as(id, if fewer { &own } else { layout })
        };
        node.inputs.iter().map(one).collect()
    }

    /// A parameter with one value per channel of the last axis, shaped to be broadcast in `layout`.
    fn per_channel(&mut self, node: &Node, role: &str, values: &[f32], layout: &[usize]) -> String {
        let axes = layout.last().map_or(1, |&at| layout.len() - at);
        let mut shape = vec![1; axes];
        shape[0] = values.len();
        self.parameter(node, role, &shape, values)
    }

    fn parameter(&mut self, node: &Node, role: &str, shape: &[usize], values: &[f32]) -> String {
        let value = ArrayD::from_shape_vec(IxDyn(shape), values.to_vec()).unwrap_or_default();
        self.initializer(&format!("{}/{role}", node.name), &value)
    }

    fn scalar(&mut self, node: &Node, role: &str, value: f32) -> String {
        self.parameter(node, role, &[], &[value])
    }

    fn clamp(&mut self, node: &Node, clamp: Clamp, x: String) -> String {
        if clamp == Clamp::NONE {
            return x;
        }
        if clamp == Clamp::RELU {
            return self.step(node, "Relu", vec![x], Vec::new());
        }
        let mut inputs = vec![x];
        for (role, bound) in [("min", clamp.min), ("max", clamp.max)] {
            inputs.push(if bound.is_finite() { self.scalar(node, role, bound) } else { String::new() });
        }
        if inputs[2].is_empty() {
            inputs.pop();
        }
        self.step(node, "Clip", inputs, Vec::new())
    }

    fn convolution(
        &mut self,
        node: &Node,
        op: &str,
        (window, attributes): (&Window, Vec<AttributeProto>),
        (weight, bias): (ArrayD<f32>, &[f32]),
        clamp: Clamp,
    ) -> Written {
        let x = self.stored_as(node.inputs[0], &NCHW)?;
        let mut inputs = vec![x, self.initializer(&format!("{}/weight", node.name), &weight)];
        if bias.iter().any(|&b| b != 0.0) {
            inputs.push(self.parameter(node, "bias", &[bias.len()], bias));
        }
        let attributes = [geometry(window), vec![ints("dilations", &window.dilation)], attributes].concat();
        let y = self.step(node, op, inputs, attributes);
        Ok((NCHW.to_vec(), self.clamp(node, clamp, y)))
    }

    fn linear(&mut self, node: &Node, weight: &ArrayD<f32>, bias: &[f32], clamp: Clamp) -> Written {
        let id = node.inputs[0];
        let rank = self.graph.shape(id).len();
        let channels_last = |layout: &Layout| layout.last() == Some(&(rank - 1));
        let layout = self.stores[id.0].iter().map(|(l, _)| l.clone()).find(channels_last).unwrap_or(plain(rank));
        let x = self.stored_as(id, &layout)?;
        let weight = match self.columns.get(&id) {
            Some(columns) => weight.select(Axis(1), columns),
            None => weight.clone(),
        };
        let role = format!("{}/weight", node.name);
        let has_bias = bias.iter().any(|&b| b != 0.0);
        let y = if rank == 2 && layout == [0, 1] {
            let mut inputs = vec![x, self.initializer(&role, &weight)];
            if has_bias {
                inputs.push(self.parameter(node, "bias", &[bias.len()], bias));
            }
            self.step(node, "Gemm", inputs, vec![int("transB", 1)])
        } else {
            let weight = self.initializer(&role, &weight.reversed_axes());
            let y = self.step(node, "MatMul", vec![x, weight], Vec::new());
            if has_bias {
                let bias = self.parameter(node, "bias", &[bias.len()], bias);
                self.step(node, "Add", vec![y, bias], Vec::new())
            } else {
                y
            }
        };
        Ok((layout, self.clamp(node, clamp, y)))
    }

    /// ONNX has channels on axis 1.
    fn batch_norm(&mut self, node: &Node, [gamma, beta, mean, var]: [&Vec<f32>; 4], epsilon: f32) -> Written {
        let rank = self.graph.shape(node.output).len();
        if rank < 2 {
            return Err("a batch norm of a vector without a batch axis".into());
        }
        let layout: Layout = [0].into_iter().chain(2..rank).chain([1]).collect();
        let mut inputs = vec![self.stored_as(node.inputs[0], &layout)?];
        for (role, values) in [("gamma", gamma), ("beta", beta), ("mean", mean), ("var", var)] {
            inputs.push(self.parameter(node, role, &[values.len()], values));
        }
        let y = self.step(node, "BatchNormalization", inputs, vec![float("epsilon", epsilon)]);
        Ok((layout, y))
    }

    fn affine(&mut self, node: &Node, scale: &[f32], bias: &[f32], clamp: Clamp) -> Written {
        let (layout, mut y) = self.at_hand(node.inputs[0])?;
        for (op, role, values, neutral) in [("Mul", "scale", scale, 1.0), ("Add", "bias", bias, 0.0)] {
            if values.iter().any(|&v| v != neutral) {
                let values = self.per_channel(node, role, values, &layout);
                y = self.step(node, op, vec![y, values], Vec::new());
            }
        }
        Ok((layout, self.clamp(node, clamp, y)))
    }

    fn binary(&mut self, node: &Node, kind: BinaryKind, clamp: Clamp) -> Written {
        let layout = self.common_layout(node);
        let inputs = self.all_stored_as(node, &layout)?;
        let op = match kind {
            BinaryKind::Add => "Add",
            BinaryKind::Sub => "Sub",
            BinaryKind::Mul => "Mul",
        };
        let y = self.step(node, op, inputs, Vec::new());
        Ok((layout, self.clamp(node, clamp, y)))
    }

    /// A pool takes no padding that could fill a whole window; such padding is written apart.
    fn average_pool(&mut self, node: &Node, window: &Window, count_include_pad: bool) -> Written {
        if window.dilation != [1, 1] {
            return Err(format!("an average over a window with dilation {:?}, which opset 13 lacks", window.dilation));
        }
        let mut x = self.stored_as(node.inputs[0], &NCHW)?;
        let mut window = *window;
        let [top, left, bottom, right] = window.pad;
        if (0..4).any(|i| window.pad[i] >= window.kernel[i % 2]) {
            if !count_include_pad {
                return Err(format!("padding {:?} of a window of {:?}", window.pad, window.kernel));
            }
            x = self.pad(node, x, &[0, 0, top, left, 0, 0, bottom, right], 0.0);
            window.pad = [0; 4];
        }
        let mut attributes = geometry(&window);
        if count_include_pad && window.pad != [0; 4] {
            attributes.push(int("count_include_pad", 1));
        }
        Ok((NCHW.to_vec(), self.step(node, "AveragePool", vec![x], attributes)))
    }

    fn mean(&mut self, node: &Node, axes: &[usize]) -> Written {
        let (layout, x) = self.at_hand(node.inputs[0])?;
        if axes.is_empty() {
            return Ok((layout, x));
        }
        let mut axes: Vec<usize> = axes.iter().map(|&axis| layout[axis]).collect();
        axes.sort_unstable();
        let y = if layout.len() == 4 && axes == [2, 3] {
            self.step(node, "GlobalAveragePool", vec![x], Vec::new())
        } else {
            self.step(node, "ReduceMean", vec![x], vec![ints("axes", &axes), int("keepdims", 1)])
        };
        Ok((layout, y))
    }

    /// `pads`: begin of every stored axis, then end of every one.
    fn pad(&mut self, node: &Node, x: String, pads: &[usize], value: f32) -> String {
        let pads: Vec<i64> = pads.iter().map(|&p| p as i64).collect();
        let mut inputs = vec![x, self.integers(&format!("{}/pads", node.name), &pads)];
        if value != 0.0 {
            inputs.push(self.scalar(node, "value", value));
        }
        self.step(node, "Pad", inputs, vec![string("mode", "constant")])
    }

    fn slice(&mut self, node: &Node, start: &[usize], step: &[isize], len: &[usize]) -> Written {
        let (layout, x) = self.at_hand(node.inputs[0])?;
        let shape = self.graph.shape(node.inputs[0]);
        let cut: Vec<usize> = (0..shape.len()).filter(|&i| len[i] != shape[i] || (step[i] < 0 && len[i] > 1)).collect();
        if cut.is_empty() {
            return Ok((layout, x));
        }
        let stride = |i: usize| if len[i] > 1 { step[i] as i64 } else { 1 };
        let end = |i: usize| {
            let last = start[i] as i64 + stride(i) * (len[i] as i64 - 1);
            // An end before the first element is one that counting from the end does not reach.
            if stride(i) > 0 {
                last + 1
            } else if last > 0 {
                last - 1
            } else {
                -(shape[i] as i64) - 1
            }
        };
        let lists: [(&str, Vec<i64>); 4] = [
            ("starts", cut.iter().map(|&i| start[i] as i64).collect()),
            ("ends", cut.iter().map(|&i| end(i)).collect()),
            ("axes", cut.iter().map(|&i| layout[i] as i64).collect()),
            ("steps", cut.iter().map(|&i| stride(i)).collect()),
        ];
        let lists = lists.map(|(role, values)| self.integers(&format!("{}/{role}", node.name), &values));
        let y = self.step(node, "Slice", [x].into_iter().chain(lists).collect(), Vec::new());
        Ok((layout, y))
    }

    /// Reads the elements in the IR's order, which other layouts have too if they only move axes of length 1. What
    /// linear layers alone read, flattened, is flattened as it is stored: their columns change places instead.
    fn reshape(&mut self, node: &Node, shape: &[usize]) -> Written {
        let id = node.inputs[0];
        let from = self.graph.shape(id);
        let in_order = |l: &Layout| same_order(from, self.batch[id.0], l);
        let free = self.stores[id.0].iter().map(|(l, _)| l.clone()).find(in_order);
        let flat = shape.len() == 2 && shape[0] == 1;
        let readers = self.graph.consumers(node.output);
        let reads_columns = |&i: &usize| matches!(self.graph.nodes[i].op, Op::Linear { .. });
        let for_linear =
            flat && !readers.is_empty() && !self.graph.is_output(node.output) && readers.iter().all(reads_columns);
        let layout = match free {
            Some(layout) => layout,
            None if for_linear => {
                let (layout, _) = self.at_hand(id)?;
                if layout.first() == Some(&0) { layout } else { plain(from.len()) }
            }
            None => plain(from.len()),
        };
        let x = self.stored_as(id, &layout)?;
        if !same_order(from, self.batch[id.0], &layout) {
            let elements: Vec<usize> = (0..from.iter().product()).collect();
            let index = ArrayD::from_shape_vec(IxDyn(from), elements).unwrap_or_default();
            let columns = index.permuted_axes(IxDyn(&inverse(&layout))).iter().copied().collect();
            self.columns.insert(node.output, columns);
        }
        let batch = self.batch[node.output.0];
        let leads = layout.first() == Some(&0) && from.first() == Some(&1);
        if flat && leads {
            return Ok((plain(2), self.step(node, "Flatten", vec![x], vec![int("axis", 1)])));
        }
        let target =
            if shape.len() == 4 && same_order(shape, batch, &NCHW) { NCHW.to_vec() } else { plain(shape.len()) };
        if stored(from, &layout) == stored(shape, &target) {
            return Ok((target, x));
        }
        let mut dims: Vec<i64> = stored(shape, &target).iter().map(|&d| d as i64).collect();
        if let Some(axis) = batch {
            dims[target[axis]] = if leads && target[axis] == 0 { 0 } else { -1 };
        }
        let dims = self.integers(&format!("{}/shape", node.name), &dims);
        Ok((target, self.step(node, "Reshape", vec![x, dims], Vec::new())))
    }

    /// The rule of the standard that gives these taps.
    fn resize(&mut self, node: &Node, h: &[Tap], w: &[Tap]) -> Written {
        let x = self.stored_as(node.inputs[0], &NCHW)?;
        let shape = self.graph.shape(node.inputs[0]);
        let axes = [(shape[1], h), (shape[2], w)];
        let scales = axes.map(|(n, taps)| scale(n, taps.len()));
        let fits = |rule: &Rule| {
            axes.iter().zip(scales).all(|(&(n, taps), scale)| same_taps(&rule.taps(n, taps.len(), scale as f64), taps))
        };
        let rule = Rule::all().find(fits).ok_or("an interpolation that is neither nearest nor linear to ONNX")?;
        let scales = [1.0, 1.0, scales[0], scales[1]];
        let scales = self.parameter(node, "scales", &[4], &scales);
        let mut attributes = vec![
            string("mode", if rule.linear { "linear" } else { "nearest" }),
            string("coordinate_transformation_mode", &rule.coordinates),
        ];
        if !rule.linear {
            attributes.push(string("nearest_mode", &rule.nearest));
        }
        let y = self.step(node, "Resize", vec![x, String::new(), scales], attributes);
        Ok((NCHW.to_vec(), y))
    }

    /// A scalar function, innermost part first.
    fn map(&mut self, node: &Node, f: &ScalarFn, x: &str) -> String {
        match f {
            ScalarFn::X => x.into(),
            ScalarFn::Const(value) => {
                // A constant in the shape of `x`.
                let (zero, value) = (self.scalar(node, "zero", 0.0), self.scalar(node, "value", *value));
                let y = self.step(node, "Mul", vec![x.into(), zero], Vec::new());
                self.step(node, "Add", vec![y, value], Vec::new())
            }
            ScalarFn::Unary(kind, a) => match constant_of(a) {
                Some(a) => {
                    let value = ScalarFn::Unary(*kind, Box::new(ScalarFn::Const(a))).eval(0.0);
                    self.map(node, &ScalarFn::Const(value as f32), x)
                }
                None => {
                    let a = self.map(node, a, x);
                    self.unary(node, *kind, a)
                }
            },
            ScalarFn::Binary(kind, a, b) => {
                if let (Some(_), Some(_)) = (constant_of(a), constant_of(b)) {
                    return self.map(node, &ScalarFn::Const(f.eval(0.0) as f32), x);
                }
                let operands = [a, b].map(|side| match constant_of(side) {
                    Some(value) => self.scalar(node, "value", value),
                    None => self.map(node, side, x),
                });
                self.step(node, binary_name(*kind), operands.to_vec(), Vec::new())
            }
        }
    }

    fn unary(&mut self, node: &Node, kind: Unary, x: String) -> String {
        let (op, attributes) = match kind {
            Unary::Clamp(clamp) => return self.clamp(node, clamp, x),
            Unary::Gelu | Unary::GeluTanh => return self.map(node, &gelu(kind), &x),
            Unary::HardSwish => {
                self.opset = self.opset.max(14);
                ("HardSwish", Vec::new())
            }
            Unary::LeakyRelu(slope) => ("LeakyRelu", vec![float("alpha", slope)]),
            Unary::HardSigmoid(alpha, beta) => ("HardSigmoid", vec![float("alpha", alpha), float("beta", beta)]),
            Unary::Elu(alpha) => ("Elu", vec![float("alpha", alpha)]),
            Unary::Sigmoid => ("Sigmoid", Vec::new()),
            Unary::Tanh => ("Tanh", Vec::new()),
            Unary::Erf => ("Erf", Vec::new()),
            Unary::Exp => ("Exp", Vec::new()),
            Unary::Log => ("Log", Vec::new()),
            Unary::Sqrt => ("Sqrt", Vec::new()),
            Unary::Abs => ("Abs", Vec::new()),
            Unary::Neg => ("Neg", Vec::new()),
            Unary::Softplus => ("Softplus", Vec::new()),
        };
        self.step(node, op, vec![x], attributes)
    }
}

fn binary_name(kind: Binary) -> &'static str {
    match kind {
        Binary::Add => "Add",
        Binary::Sub => "Sub",
        Binary::Mul => "Mul",
        Binary::Div => "Div",
        Binary::Pow => "Pow",
        Binary::Min => "Min",
        Binary::Max => "Max",
    }
}

/// The value of an expression without a variable.
fn constant_of(f: &ScalarFn) -> Option<f32> {
    fn has_variable(f: &ScalarFn) -> bool {
        match f {
            ScalarFn::X => true,
            ScalarFn::Const(_) => false,
            ScalarFn::Unary(_, a) => has_variable(a),
            ScalarFn::Binary(_, a, b) => has_variable(a) || has_variable(b),
        }
    }
    (!has_variable(f)).then(|| f.eval(0.0) as f32)
}

/// GELU in operators of opset 13: `0.5 x (1 + erf(x / sqrt 2))`, or by the hyperbolic tangent.
fn gelu(kind: Unary) -> ScalarFn {
    let product = |a, b| ScalarFn::binary(Binary::Mul, a, b);
    let sum = |a, b| ScalarFn::binary(Binary::Add, a, b);
    let constant = |value: f64| ScalarFn::Const(value as f32);
    let inner = if kind == Unary::Gelu {
        let scaled = product(ScalarFn::X, constant(std::f64::consts::FRAC_1_SQRT_2));
        ScalarFn::Unary(Unary::Erf, Box::new(scaled))
    } else {
        let cube = product(product(ScalarFn::X, ScalarFn::X), ScalarFn::X);
        let scaled = sum(ScalarFn::X, product(cube, constant(0.044715)));
        let root = constant((2.0 / std::f64::consts::PI).sqrt());
        ScalarFn::Unary(Unary::Tanh, Box::new(product(scaled, root)))
    };
    product(product(ScalarFn::X, constant(0.5)), sum(inner, constant(1.0)))
}

fn geometry(window: &Window) -> Vec<AttributeProto> {
    vec![ints("kernel_shape", &window.kernel), ints("strides", &window.stride), ints("pads", &window.pad)]
}

/// `[oc, kh, kw, ic / groups]` as ONNX wants a transposed convolution's: `[ic, oc / groups, kh, kw]`.
fn transposed_weight(weight: &ArrayD<f32>, groups: usize) -> ArrayD<f32> {
    let [oc, kh, kw, group_in] = [0, 1, 2, 3].map(|i| weight.shape()[i]);
    let group_out = oc / groups;
    ArrayD::from_shape_fn(IxDyn(&[group_in * groups, group_out, kh, kw]), |i| {
        weight[[i[0] / group_in * group_out + i[1], i[2], i[3], i[0] % group_in]]
    })
}

/// Whether a tensor's elements stand in the IR's order when it is stored in `layout`. The batch may be longer than 1.
fn same_order(shape: &[usize], batch: Option<usize>, layout: &[usize]) -> bool {
    let long = |axis: &usize| shape[*axis] > 1 || batch == Some(*axis);
    (0..shape.len()).filter(long).map(|axis| layout[axis]).is_sorted()
}

/// A scale that makes `m` elements of `n`: the standard rounds down.
fn scale(n: usize, m: usize) -> f32 {
    let scale = m as f32 / n as f32;
    if (n as f32 * scale) < m as f32 || (n as f64 * scale as f64) < m as f64 { scale.next_up() } else { scale }
}

/// Whether taps read the same, up to rounding.
fn same_taps(a: &[Tap], b: &[Tap]) -> bool {
    let at = |t: &Tap| t.lo as f32 * (1.0 - t.frac) + t.hi as f32 * t.frac;
    let nearest = |taps: &[Tap]| taps.iter().all(|t| t.frac == 0.0);
    nearest(a) == nearest(b) && a.iter().zip(b).all(|(a, b)| (at(a) - at(b)).abs() < 1e-4)
}
