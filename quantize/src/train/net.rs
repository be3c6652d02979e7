//! A graph as a differentiable function of its parameters.
//!
//! Values are burn's backend primitives, whose rank is dynamic as the graph's is. The graph's shapes have a batch of 1; here the
//! first axis is the batch, so an operator that mixes samples (a reshape or transpose that moves the first axis) is refused.
//! Batch norms use the batch's own moments when training and the running ones otherwise. A softmax that ends the network is left
//! out: losses want logits, and predictions put it back.
//!
//! Outputs of some nodes may be rounded to levels ([`Net::rounding`]), which then stand behind the parameters.

use super::TrainError;
use super::ops::WindowOps;
use super::windows::{Geometry, Norm};
use crate::graph::scalar::{Binary, ScalarFn, Unary};
use crate::graph::{BinaryKind, Clamp, Graph, Node, Op, Parameter, Role, Tap, Window};
use burn::backend::ops::{ActivationOps, FloatTensorOps, IntTensorOps};
use burn::backend::tensor::FloatTensor;
use burn::backend::{AutodiffBackend, Dispatch, DispatchDevice, TensorMetadata};
use burn::tensor::ops::PadMode;
use burn::tensor::{Tensor, TensorData};

/// A tensor of any rank on any backend.
type Value = FloatTensor<Dispatch>;

/// Where training runs.
#[derive(Clone, Debug)]
pub struct Device(DispatchDevice);

impl Device {
    /// The CPU.
    pub fn cpu() -> Device {
        Device(burn::tensor::Device::flex().as_dispatch().clone())
    }

    /// What [`Device::open`] knows in this build: `cpu`; `wgpu` and `cuda` where the features of these names are compiled in.
    pub const NAMES: &[&str] = &[
        "cpu",
        #[cfg(feature = "wgpu")]
        "wgpu",
        #[cfg(feature = "cuda")]
        "cuda",
    ];

    /// A device by name, if the machine has it: burn itself would panic at the first tensor.
    pub fn open(name: &str) -> Result<Device, TrainError> {
        let opened = match name {
            "cpu" => Ok(Device::cpu()),
            #[cfg(feature = "wgpu")]
            "wgpu" => wgpu(),
            #[cfg(feature = "cuda")]
            "cuda" => cuda(),
            _ => Err("not in this build".into()),
        };
        opened.map_err(|what: String| TrainError::Device { name: name.into(), what })
    }
}

/// The first adapter of the first graphics API that has one; burn opens it once per process.
#[cfg(feature = "wgpu")]
fn wgpu() -> Result<Device, String> {
    static OPENED: std::sync::OnceLock<Result<Device, String>> = std::sync::OnceLock::new();
    let open = || match burn::tensor::Device::wgpu_options().init() {
        Ok(device) => Ok(Device(device.as_dispatch().clone())),
        Err(error) => Err(error.to_string()),
    };
    OPENED.get_or_init(open).clone()
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<Device, String> {
    let found = burn::tensor::Device::enumerate(burn::tensor::DeviceType::Cuda);
    let first = found.iter().next().ok_or("no driver or no GPU was found")?;
    Ok(Device(first.as_dispatch().clone()))
}

/// Running mean and variance of every batch norm, by node.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Node indices.
    pub nodes: Vec<usize>,
    /// Mean, then variance, of each.
    pub values: Vec<Vec<f32>>,
}

impl Moments {
    /// The graph's own.
    pub fn of(graph: &Graph) -> Moments {
        let own = |(i, node): (usize, &Node)| match &node.op {
            Op::BatchNorm { mean, var, .. } => Some((i, [mean.as_slice(), var].concat())),
            _ => None,
        };
        let (nodes, values) = graph.nodes.iter().enumerate().filter_map(own).unzip();
        Moments { nodes, values }
    }

    /// Writes them into a graph.
    pub fn write(&self, graph: &mut Graph) {
        for (&i, values) in self.nodes.iter().zip(&self.values) {
            if let Op::BatchNorm { mean, var, .. } = &mut graph.nodes[i].op {
                let (m, v) = values.split_at(mean.len());
                mean.copy_from_slice(m);
                var.copy_from_slice(v);
            }
        }
    }

    /// Moves towards a batch's moments by `rate`.
    fn follow(&mut self, batch: &[Vec<f32>], rate: f32) {
        for (own, new) in self.values.iter_mut().zip(batch) {
            own.iter_mut().zip(new).for_each(|(own, new)| *own += rate * (new - *own));
        }
    }
}

/// One batch: inputs with the batch axis first, one array per network input.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Samples.
    pub size: usize,
    /// Elements of every input, samples one after another, in graph axes.
    pub inputs: Vec<Vec<f32>>,
}

/// What the network should give, and how a difference counts.
#[derive(Clone, Debug)]
pub enum Goal {
    /// Cross-entropy of the first output's logits, divided by a temperature, against distributions over the last axis, one row
    /// per prediction; multiplied by the temperature's square, so that gradients keep their size.
    Distributions(Vec<f32>, f32),
    /// Mean squared error of every output.
    Values(Vec<Vec<f32>>),
}

/// Loss and gradient of a batch.
#[derive(Clone, Debug, Default)]
pub struct Gradient {
    /// Mean over the batch.
    pub loss: f32,
    /// By every parameter, in the order of [`Graph::theta`].
    pub theta: Vec<f32>,
    /// The network's, as logits.
    pub outputs: Vec<Vec<f32>>,
}

/// A graph that can be trained.
#[derive(Debug)]
pub struct Net {
    graph: Graph,
    parameters: Vec<Parameter>,
    /// Index of a node's first parameter.
    first: Vec<usize>,
    /// Biases that a batch norm takes out again.
    idle: Vec<bool>,
    /// By node: the batch norm whose clamp it is, which then does it.
    clamp_of: Vec<Option<usize>>,
    /// Per output, the node of a final softmax, and its axis.
    softmax: Vec<Option<usize>>,
    /// Nodes whose outputs may be rounded, and where the first of their levels stands.
    rounded: (Vec<usize>, usize),
    device: Device,
}

/// Numbers that say how an output is rounded: step, lowest and highest level.
pub const LEVELS: usize = 3;

/// How batch norms work.
enum Mode<'a> {
    /// By the batch; what they saw is collected.
    Train(&'a mut Vec<Vec<f32>>),
    /// By running moments.
    Infer(&'a Moments),
}

impl Net {
    /// Takes a graph from [`crate::graph::trainable`]; refuses what mixes samples.
    pub fn new(graph: &Graph, device: &Device) -> Result<Net, TrainError> {
        for node in &graph.nodes {
            if let Some(what) = mixes_samples(graph, node) {
                return Err(TrainError::Unsupported { node: node.name.clone(), op: node.op.name(), what });
            }
        }
        let parameters = graph.parameters();
        if parameters.is_empty() {
            return Err(TrainError::NoParameters);
        }
        let first = (0..graph.nodes.len())
            .map(|i| parameters.iter().position(|p| p.node == i).unwrap_or(parameters.len()))
            .collect();
        let idle = graph.nodes.iter().map(|n| feeds_batch_norm(graph, n)).collect();
        let softmax = graph.outputs.iter().map(|p| final_softmax(graph, p.tensor)).collect();
        let clamp_of = graph.nodes.iter().map(|n| clamps_batch_norm(graph, n)).collect();
        let rounded = (Vec::new(), 0);
        Ok(Net { graph: graph.clone(), parameters, first, idle, clamp_of, softmax, rounded, device: device.clone() })
    }

    /// The same with outputs of some nodes that are rounded wherever `theta` has [`LEVELS`] numbers for each of them from `at` on. They get gradients as parameters do.
    pub fn rounding(self, nodes: Vec<usize>, at: usize) -> Net {
        Net { rounded: (nodes, at), ..self }
    }

    /// The graph as it was given.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Where every parameter stands.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Values of one prediction of an output: the length of its last axis.
    pub fn classes(&self) -> usize {
        self.graph.outputs.first().and_then(|p| self.graph.shape(p.tensor).last().copied()).unwrap_or(1)
    }

    /// Loss and gradient; running moments move by `rate` towards the batch's.
    pub fn gradient(&self, theta: &[f32], moments: &mut Moments, batch: &Batch, goal: &Goal, rate: f32) -> Gradient {
        let device = DispatchDevice::autodiff(self.device.0.clone());
        let leaves: Vec<Value> = self.leaves(theta, &device, true);
        let mut seen = Vec::new();
        let outputs = self.forward(&leaves, batch, &device, &mut Mode::Train(&mut seen));
        let loss = loss(&outputs, goal, &device);
        let read_outputs = outputs.iter().map(|y| read(y.clone())).collect();
        let value = read(loss.clone()).first().copied().unwrap_or(f32::NAN);
        let grads = Dispatch::backward(loss);
        moments.follow(&seen, rate);
        let mut gradient = vec![0.0; theta.len()];
        for (leaf, parameter) in leaves.iter().zip(&self.parameters) {
            if let Some(grad) = Dispatch::grad(leaf, &grads) {
                gradient[parameter.range.clone()].copy_from_slice(&read(grad));
            }
        }
        for (leaf, range) in leaves[self.parameters.len()..].iter().zip(self.levels(theta)) {
            if let Some(grad) = Dispatch::grad(leaf, &grads) {
                gradient[range].copy_from_slice(&read(grad));
            }
        }
        Gradient { loss: value, theta: gradient, outputs: read_outputs }
    }

    /// Outputs with running moments, as logits.
    pub fn logits(&self, theta: &[f32], moments: &Moments, batch: &Batch) -> Vec<Vec<f32>> {
        let device = self.device.0.clone();
        let leaves = self.leaves(theta, &device, false);
        self.forward(&leaves, batch, &device, &mut Mode::Infer(moments)).into_iter().map(read).collect()
    }

    /// Outputs with running moments, as the network gives them.
    pub fn predict(&self, theta: &[f32], moments: &Moments, batch: &Batch) -> Vec<Vec<f32>> {
        let device = self.device.0.clone();
        let leaves = self.leaves(theta, &device, false);
        let outputs = self.forward(&leaves, batch, &device, &mut Mode::Infer(moments));
        let finish = |(y, softmax): (Value, &Option<usize>)| match softmax.map(|i| &self.graph.nodes[i].op) {
            Some(Op::Softmax { axis }) => read(Dispatch::softmax(y, *axis)),
            _ => read(y),
        };
        outputs.into_iter().zip(&self.softmax).map(finish).collect()
    }

    /// Moves the moments to those of the data: the mean over batches.
    pub fn refresh(&self, theta: &[f32], moments: &mut Moments, batches: impl Iterator<Item = Batch>) {
        let device = self.device.0.clone();
        let leaves = self.leaves(theta, &device, false);
        for (i, batch) in batches.enumerate() {
            let mut seen = Vec::new();
            self.forward(&leaves, &batch, &device, &mut Mode::Train(&mut seen));
            moments.follow(&seen, 1.0 / (i + 1) as f32);
        }
    }

    /// The first node whose output is not finite, by name.
    pub fn first_not_finite(&self, theta: &[f32], batch: &Batch) -> Option<String> {
        let bad = self.parameters.iter().find(|p| theta[p.range.clone()].iter().any(|v| !v.is_finite()));
        if let Some(p) = bad {
            return Some(self.graph.nodes[p.node].name.clone());
        }
        let device = self.device.0.clone();
        let leaves = self.leaves(theta, &device, false);
        let mut found = None;
        let mut visit = |node: &Node, value: &Value| {
            if found.is_none() && read(value.clone()).iter().any(|v| !v.is_finite()) {
                found = Some(node.name.clone());
            }
        };
        self.forward_visiting(&leaves, batch, &device, &mut Mode::Train(&mut Vec::new()), &mut visit);
        found
    }

    /// What nodes give for a batch, by its own moments.
    pub fn values(&self, theta: &[f32], batch: &Batch, nodes: &[usize]) -> Vec<Vec<f32>> {
        let device = self.device.0.clone();
        let leaves = self.leaves(theta, &device, false);
        let (mut i, mut found) = (0, vec![Vec::new(); nodes.len()]);
        let mut visit = |_: &Node, value: &Value| {
            if let Some(at) = nodes.iter().position(|&n| n == i) {
                found[at] = read(value.clone());
            }
            i += 1;
        };
        self.forward_visiting(&leaves, batch, &device, &mut Mode::Train(&mut Vec::new()), &mut visit);
        found
    }

    /// Where the levels of every rounded output stand; none if `theta` has none.
    fn levels(&self, theta: &[f32]) -> Vec<std::ops::Range<usize>> {
        let (nodes, at) = &self.rounded;
        let ranges = (0..nodes.len()).map(|k| at + LEVELS * k..at + LEVELS * (k + 1));
        ranges.filter(|range| range.end <= theta.len()).collect()
    }

    /// The parameters, then levels.
    fn leaves(&self, theta: &[f32], device: &DispatchDevice, track: bool) -> Vec<Value> {
        let leaf = |p: &Parameter| {
            let value = upload(theta[p.range.clone()].to_vec(), self.parameter_shape(p), device);
            let idle = p.role == Role::Bias && self.idle[p.node];
            if track && !idle { Dispatch::float_set_require_grad(value, true) } else { value }
        };
        let levels = |range: std::ops::Range<usize>| {
            let value = upload(theta[range].to_vec(), vec![LEVELS], device);
            if track { Dispatch::float_set_require_grad(value, true) } else { value }
        };
        self.parameters.iter().map(leaf).chain(self.levels(theta).into_iter().map(levels)).collect()
    }

    fn parameter_shape(&self, p: &Parameter) -> Vec<usize> {
        match (&self.graph.nodes[p.node].op, p.role) {
            (
                Op::Conv2d { weight, .. } | Op::ConvTranspose2d { weight, .. } | Op::Linear { weight, .. },
                Role::Weight,
            ) => weight.shape().to_vec(),
            _ => vec![p.range.len()],
        }
    }

    fn forward(&self, leaves: &[Value], batch: &Batch, device: &DispatchDevice, mode: &mut Mode<'_>) -> Vec<Value> {
        self.forward_visiting(leaves, batch, device, mode, &mut |_, _| ())
    }

    fn forward_visiting(
        &self,
        leaves: &[Value],
        batch: &Batch,
        device: &DispatchDevice,
        mode: &mut Mode<'_>,
        visit: &mut dyn FnMut(&Node, &Value),
    ) -> Vec<Value> {
        let graph = &self.graph;
        let mut uses = vec![0usize; graph.tensors.len()];
        graph.nodes.iter().flat_map(|n| &n.inputs).for_each(|id| uses[id.0] += 1);
        graph.outputs.iter().for_each(|port| uses[port.tensor.0] += 1);
        let mut values: Vec<Option<Value>> = vec![None; graph.tensors.len()];
        for (port, input) in graph.inputs.iter().zip(&batch.inputs) {
            let shape = with_batch(graph.shape(port.tensor), batch.size);
            values[port.tensor.0] = Some(upload(input.clone(), shape, device));
        }
        for (i, node) in graph.nodes.iter().enumerate() {
            let mut args = Vec::with_capacity(node.inputs.len());
            for id in &node.inputs {
                uses[id.0] -= 1;
                let value = if uses[id.0] == 0 { values[id.0].take() } else { values[id.0].clone() };
                args.extend(value);
            }
            let value = match self.softmax.contains(&Some(i)) {
                true => args.swap_remove(0),
                false => self.apply(i, args, leaves, batch.size, device, mode),
            };
            let levels = self.rounded.0.iter().position(|&n| n == i).map(|k| self.parameters.len() + k);
            let value = match levels.and_then(|k| leaves.get(k)) {
                Some(levels) => Dispatch::rounded(value, levels.clone()),
                None => value,
            };
            visit(node, &value);
            values[node.output.0] = Some(value);
        }
        graph.outputs.iter().filter_map(|port| values[port.tensor.0].clone()).collect()
    }

    /// The value of node `i`.
    fn apply(
        &self,
        i: usize,
        args: Vec<Value>,
        leaves: &[Value],
        batch: usize,
        device: &DispatchDevice,
        mode: &mut Mode<'_>,
    ) -> Value {
        let node = &self.graph.nodes[i];
        let leaf = |k: usize| leaves[self.first[i] + k].clone();
        let geometry = |window: Window, groups: usize| self.geometry(node, window, groups);
        let with_bias =
            |y: Value| if self.idle[i] { y } else { Dispatch::float_add(y.clone(), along_last(leaf(1), &y)) };
        match &node.op {
            Op::Const(value) => return upload(value.iter().copied().collect(), value.shape().to_vec(), device),
            Op::Concat { axis } => return Dispatch::float_cat(args, *axis),
            _ => {}
        }
        let mut args = args.into_iter();
        let (Some(x), second) = (args.next(), args.next()) else { unreachable!("{} has no input", node.name) };
        match &node.op {
            Op::Const(_) | Op::Concat { .. } => x,
            Op::Conv2d { window, groups, clamp, .. } => {
                let y = Dispatch::window_conv(x, leaf(0), geometry(*window, *groups));
                clamped(with_bias(y), *clamp)
            }
            Op::ConvTranspose2d { window, groups, clamp, .. } => {
                // The picture that comes out is the input of the convolution whose gradient this is.
                let g = geometry(*window, *groups);
                let g = Geometry { input: g.output, output: g.input, ..g };
                let y = Dispatch::window_conv_x_backward(x, exchanged(leaf(0), *groups), g);
                clamped(with_bias(y), *clamp)
            }
            Op::Linear { clamp, .. } => {
                let mut shape = x.shape().to_vec();
                let k = shape.pop().unwrap_or(1);
                let rows = shape.iter().product::<usize>();
                let x = Dispatch::float_reshape(x, [rows, k].into());
                let y = Dispatch::float_matmul(x, Dispatch::float_swap_dims(leaf(0), 0, 1));
                shape.push(y.shape()[1]);
                clamped(with_bias(Dispatch::float_reshape(y, shape.into())), *clamp)
            }
            Op::BatchNorm { epsilon, .. } => {
                let moments = match mode {
                    Mode::Train(seen) => {
                        let moments = Dispatch::channel_moments(x.clone());
                        seen.push(read(moments.clone()));
                        moments
                    }
                    Mode::Infer(running) => {
                        let at = running.nodes.iter().position(|&n| n == i);
                        let values = at.map(|at| running.values[at].clone()).unwrap_or_default();
                        let c = values.len() / 2;
                        upload(values, vec![2, c], device)
                    }
                };
                let behind = self.clamp_of.iter().position(|&norm| norm == Some(i));
                let clamp = behind.and_then(|clamp| clamp_alone(&self.graph.nodes[clamp])).unwrap_or(Clamp::NONE);
                Dispatch::channel_normalize(x, leaf(0), leaf(1), moments, Norm { epsilon: *epsilon, clamp })
            }
            Op::Affine { scale, bias, clamp } => {
                let row = |values: &[f32]| along_last(upload(values.to_vec(), vec![values.len()], device), &x);
                let (scale, bias) = (row(scale), row(bias));
                clamped(Dispatch::float_add(Dispatch::float_mul(x, scale), bias), *clamp)
            }
            Op::Binary { kind, clamp } => {
                let y = second.unwrap_or_else(|| x.clone());
                let rank = x.shape().num_dims().max(y.shape().num_dims());
                let (x, y) = (raised(x, rank), raised(y, rank));
                let value = match kind {
                    BinaryKind::Add => Dispatch::float_add(x, y),
                    BinaryKind::Sub => Dispatch::float_sub(x, y),
                    BinaryKind::Mul => Dispatch::float_mul(x, y),
                };
                clamped(value, *clamp)
            }
            Op::Map(_) if self.clamp_of[i].is_some() => x,
            Op::Map(f) => scalar(f, &x, device),
            Op::PRelu { .. } => {
                let negative = Dispatch::relu(Dispatch::float_neg(x.clone()));
                let slope = along_last(leaf(0), &x);
                Dispatch::float_sub(Dispatch::relu(x), Dispatch::float_mul(negative, slope))
            }
            Op::MaxPool(window) => Dispatch::window_max(x, geometry(*window, 1)),
            Op::AveragePool { window, count_include_pad } => {
                Dispatch::window_mean(x, geometry(*window, 1), *count_include_pad)
            }
            Op::Mean { axes } => axes.iter().filter(|&&a| a > 0).fold(x, |x, &axis| Dispatch::float_mean_dim(x, axis)),
            Op::Pad { before, after, value } => {
                let pads: Vec<(usize, usize)> = before.iter().copied().zip(after.iter().copied()).collect();
                Dispatch::float_pad(x, &pads, PadMode::Constant(*value))
            }
            Op::Slice { start, step, len } => sliced(x, start, step, len),
            Op::Reshape { shape } => Dispatch::float_reshape(x, with_batch(shape, batch).into()),
            Op::Transpose { perm } => Dispatch::float_permute(x, perm),
            Op::Resize { h, w } => interpolated(interpolated(x, 1, h, device), 2, w, device),
            Op::Softmax { axis } => Dispatch::softmax(x, *axis),
        }
    }

    fn geometry(&self, node: &Node, window: Window, groups: usize) -> Geometry {
        let picture = |shape: &[usize]| [shape[1], shape[2], shape[3]];
        let input = picture(self.graph.shape(node.inputs[0]));
        Geometry { window, groups, input, output: picture(self.graph.shape(node.output)) }
    }
}

/// Why a node cannot work on a batch, if it cannot.
fn mixes_samples(graph: &Graph, node: &Node) -> Option<&'static str> {
    let output = graph.shape(node.output);
    let batched = |id: &crate::graph::TensorId| graph.shape(*id).first() == Some(&1);
    let moves = match &node.op {
        Op::Const(_) => return None,
        Op::Transpose { perm } => perm.first() != Some(&0),
        Op::Concat { axis } | Op::Softmax { axis } => *axis == 0,
        Op::Pad { before, after, .. } => before.first().copied().unwrap_or(0) + after.first().copied().unwrap_or(0) > 0,
        _ => false,
    };
    let all = output.first() == Some(&1) && node.inputs.iter().all(batched);
    // A constant without a batch axis may join.
    let joins = matches!(node.op, Op::Binary { .. }) && output.first() == Some(&1);
    (moves || !(all || joins)).then_some("its first axis is not the batch")
}

/// Whether all that reads a convolution or linear layer without a clamp is a batch norm, which takes any bias out again.
fn feeds_batch_norm(graph: &Graph, node: &Node) -> bool {
    let open = match &node.op {
        Op::Conv2d { clamp, bias, .. } | Op::ConvTranspose2d { clamp, bias, .. } | Op::Linear { clamp, bias, .. } => {
            *clamp == Clamp::NONE && bias.iter().all(|&b| b == 0.0)
        }
        _ => false,
    };
    let readers = graph.consumers(node.output);
    let is_norm = |&i: &usize| matches!(graph.nodes[i].op, Op::BatchNorm { .. });
    open && !readers.is_empty() && readers.iter().all(is_norm) && !graph.is_output(node.output)
}

/// The bounds of a node that is nothing but a clamp.
fn clamp_alone(node: &Node) -> Option<Clamp> {
    match &node.op {
        Op::Map(ScalarFn::Unary(Unary::Clamp(clamp), x)) if **x == ScalarFn::X => Some(*clamp),
        _ => None,
    }
}

/// The batch norm that a node clamps, if nobody else reads it.
fn clamps_batch_norm(graph: &Graph, node: &Node) -> Option<usize> {
    clamp_alone(node)?;
    let norm = graph.producer(node.inputs[0])?;
    let output = graph.nodes[norm].output;
    let is_norm = matches!(graph.nodes[norm].op, Op::BatchNorm { .. });
    (is_norm && graph.consumers(output).len() == 1 && !graph.is_output(output)).then_some(norm)
}

/// The node of a softmax over the last axis that only writes this output.
fn final_softmax(graph: &Graph, output: crate::graph::TensorId) -> Option<usize> {
    let i = graph.producer(output)?;
    let rank = graph.shape(output).len();
    let is_last = matches!(graph.nodes[i].op, Op::Softmax { axis } if axis + 1 == rank);
    (is_last && graph.consumers(output).is_empty()).then_some(i)
}

/// A shape with another batch.
fn with_batch(shape: &[usize], batch: usize) -> Vec<usize> {
    shape.iter().enumerate().map(|(i, &d)| if i == 0 { batch * d } else { d }).collect()
}

fn upload(values: Vec<f32>, shape: Vec<usize>, device: &DispatchDevice) -> Value {
    Dispatch::float_from_data(TensorData::new(values, shape), device)
}

fn read(value: Value) -> Vec<f32> {
    let n = value.shape().num_elements();
    let flat: Tensor<1> = Tensor::from_dispatch(Dispatch::float_reshape(value, [n].into()));
    flat.into_data().try_into_vec().unwrap_or_default()
}

/// `[c]` as `[1, .., c]`, to be joined with `like`.
fn along_last(row: Value, like: &Value) -> Value {
    raised(row, like.shape().num_dims())
}

/// Leading axes of length 1 up to a rank.
fn raised(value: Value, rank: usize) -> Value {
    let shape = value.shape().to_vec();
    if shape.len() == rank {
        return value;
    }
    let shape: Vec<usize> = std::iter::repeat_n(1, rank - shape.len()).chain(shape).collect();
    Dispatch::float_reshape(value, shape.into())
}

fn clamped(x: Value, clamp: Clamp) -> Value {
    if clamp == Clamp::NONE { x } else { Dispatch::bounded(x, clamp) }
}

/// Weights `[oc, kh, kw, ic / g]` of a transposed convolution as those `[ic, kh, kw, oc / g]` of the convolution it is the gradient of.
fn exchanged(weight: Value, groups: usize) -> Value {
    let [oc, kh, kw, ic]: [usize; 4] = weight.shape().dims();
    let grouped = Dispatch::float_reshape(weight, [groups, oc / groups, kh, kw, ic].into());
    let swapped = Dispatch::float_permute(grouped, &[0, 4, 2, 3, 1]);
    Dispatch::float_reshape(swapped, [groups * ic, kh, kw, oc / groups].into())
}

fn sliced(x: Value, start: &[usize], step: &[isize], len: &[usize]) -> Value {
    let shape = x.shape().to_vec();
    let mut x = x;
    for axis in 1..start.len() {
        if len[axis] == shape[axis] && step[axis] == 1 {
            continue;
        }
        // Burn's negative steps count from the end; picking by index says the same for every step.
        let at = |i: usize| (start[axis] as isize + i as isize * step[axis]) as i64;
        x = picked(x, axis, (0..len[axis]).map(at).collect());
    }
    x
}

fn picked(x: Value, axis: usize, indices: Vec<i64>) -> Value {
    let device = x.device();
    let n = indices.len();
    let indices = Dispatch::int_from_data(TensorData::new(indices, [n]), &device);
    Dispatch::float_select(x, axis, indices)
}

/// Linear interpolation along an axis.
fn interpolated(x: Value, axis: usize, taps: &[Tap], device: &DispatchDevice) -> Value {
    let lo = picked(x.clone(), axis, taps.iter().map(|t| t.lo as i64).collect());
    if taps.iter().all(|t| t.frac == 0.0) {
        return lo;
    }
    let hi = picked(x, axis, taps.iter().map(|t| t.hi as i64).collect());
    let mut shape = vec![1; 4];
    shape[axis] = taps.len();
    let share = upload(taps.iter().map(|t| t.frac).collect(), shape, device);
    let step = Dispatch::float_sub(hi, lo.clone());
    Dispatch::float_add(lo, Dispatch::float_mul(step, share))
}

/// A scalar function of every element.
fn scalar(f: &ScalarFn, x: &Value, device: &DispatchDevice) -> Value {
    match f {
        ScalarFn::X => x.clone(),
        ScalarFn::Const(value) => upload(vec![*value], vec![1; x.shape().num_dims()], device),
        ScalarFn::Unary(kind, a) => unary(*kind, scalar(a, x, device)),
        ScalarFn::Binary(Binary::Pow, a, b) if matches!(**b, ScalarFn::Const(_)) => {
            let exponent = b.eval(0.0) as f32;
            Dispatch::float_powf_scalar(scalar(a, x, device), exponent.into())
        }
        ScalarFn::Binary(kind, a, b) => {
            let (a, b) = (scalar(a, x, device), scalar(b, x, device));
            match kind {
                Binary::Add => Dispatch::float_add(a, b),
                Binary::Sub => Dispatch::float_sub(a, b),
                Binary::Mul => Dispatch::float_mul(a, b),
                Binary::Div => Dispatch::float_div(a, b),
                Binary::Pow => Dispatch::float_powf(a, b),
                Binary::Max => Dispatch::float_add(a.clone(), Dispatch::relu(Dispatch::float_sub(b, a))),
                Binary::Min => Dispatch::float_sub(a.clone(), Dispatch::relu(Dispatch::float_sub(a, b))),
            }
        }
    }
}

fn unary(kind: Unary, x: Value) -> Value {
    let times = |x: Value, factor: f32| Dispatch::float_mul_scalar(x, factor.into());
    let plus = |x: Value, term: f32| Dispatch::float_add_scalar(x, term.into());
    let unit = Clamp { min: 0.0, max: 1.0 };
    match kind {
        Unary::Clamp(clamp) => clamped(x, clamp),
        Unary::LeakyRelu(slope) => Dispatch::leaky_relu(x, slope.into()),
        Unary::Sigmoid => Dispatch::sigmoid(x),
        Unary::HardSigmoid(alpha, beta) => clamped(plus(times(x, alpha), beta), unit),
        Unary::HardSwish => Dispatch::float_mul(x.clone(), clamped(plus(times(x, 1.0 / 6.0), 0.5), unit)),
        Unary::Tanh => Dispatch::float_tanh(x),
        Unary::Erf => Dispatch::float_erf(x),
        Unary::Gelu => {
            let cdf = times(plus(Dispatch::float_erf(times(x.clone(), std::f32::consts::FRAC_1_SQRT_2)), 1.0), 0.5);
            Dispatch::float_mul(x, cdf)
        }
        Unary::GeluTanh => {
            let cube = Dispatch::float_mul(Dispatch::float_mul(x.clone(), x.clone()), x.clone());
            let inner =
                times(Dispatch::float_add(x.clone(), times(cube, 0.044715)), (2.0 / std::f32::consts::PI).sqrt());
            Dispatch::float_mul(x, times(plus(Dispatch::float_tanh(inner), 1.0), 0.5))
        }
        Unary::Exp => Dispatch::float_exp(x),
        Unary::Log => Dispatch::float_log(x),
        Unary::Sqrt => Dispatch::float_sqrt(x),
        Unary::Abs => Dispatch::float_abs(x),
        Unary::Neg => Dispatch::float_neg(x),
        Unary::Softplus => {
            let tail = Dispatch::float_log1p(Dispatch::float_exp(Dispatch::float_neg(Dispatch::float_abs(x.clone()))));
            Dispatch::float_add(Dispatch::relu(x), tail)
        }
        Unary::Elu(alpha) => {
            let below = Dispatch::float_exp(Dispatch::float_clamp_max(x.clone(), 0.0f32.into()));
            Dispatch::float_add(Dispatch::relu(x), times(plus(below, -1.0), alpha))
        }
    }
}

/// One number.
fn loss(outputs: &[Value], goal: &Goal, device: &DispatchDevice) -> Value {
    let cross_entropy = |logits: &Value, target: &[f32], temperature: f32| {
        let shape = logits.shape().to_vec();
        let axis = shape.len() - 1;
        let rows = (shape.iter().product::<usize>() / shape[axis].max(1)) as f32;
        let target = upload(target.to_vec(), shape, device);
        let logits = Dispatch::float_div_scalar(logits.clone(), temperature.into());
        let likelihood = Dispatch::float_mul(target, Dispatch::log_softmax(logits, axis));
        Dispatch::float_mul_scalar(Dispatch::float_sum(likelihood), (-temperature * temperature / rows).into())
    };
    match goal {
        Goal::Distributions(target, temperature) => cross_entropy(&outputs[0], target, *temperature),
        Goal::Values(targets) => {
            let error = |(output, target): (&Value, &Vec<f32>)| {
                let target = upload(target.clone(), output.shape().to_vec(), device);
                let d = Dispatch::float_sub(output.clone(), target);
                Dispatch::float_mean(Dispatch::float_mul(d.clone(), d))
            };
            let mut errors = outputs.iter().zip(targets).map(error);
            let first = errors.next().unwrap_or_else(|| upload(vec![0.0], vec![1], device));
            errors.fold(first, Dispatch::float_add)
        }
    }
}
