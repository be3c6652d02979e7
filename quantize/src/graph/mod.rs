//! The intermediate representation: a float network as a list of nodes in execution order.
//!
//! A [`Graph`] is a value. Every [`Node`] is one [`Op`] with one output tensor; tensors have static shapes with a leading
//! batch of 1. Operators that care about axes (`Conv2d`, pools, `Resize`) read and write **NHWC** (`[1, h, w, c]`), and
//! per-channel operators (`BatchNorm`, `Affine`, `PRelu`, `Linear`) act on the **last** axis. A one-dimensional
//! convolution is a two-dimensional one with `h = 1`. Whatever layout the ONNX file used, the importer states it with
//! explicit `Transpose` nodes, and [`layout`] removes those that can be removed.
//!
//! Modules, in reading order:
//! - [`shape`]: the shape of every operator's output, from its inputs' (the only shape rules of the project);
//! - [`scalar`]: scalar functions, the meaning of every element-wise operator;
//! - [`eval`]: the float meaning of the whole graph (calibration, tests);
//! - [`parameters`]: the trainable numbers as one flat vector;
//! - [`fold`], [`fuse`], [`layout`]: exact rewrites, each a function from graph to graph.

pub mod eval;
pub mod fold;
pub mod fuse;
pub mod layout;
pub mod parameters;
pub mod scalar;
pub mod shape;

pub use fold::BatchNorms;
use ndarray::ArrayD;
pub use parameters::{Parameter, Role};
pub use scalar::ScalarFn;

/// Index of a tensor in [`Graph::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub usize);

/// A float network. Nodes stand in execution order: a node's inputs are graph inputs or outputs of earlier nodes.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Name of the network, for reports.
    pub name: String,
    /// What the caller feeds.
    pub inputs: Vec<Port>,
    /// What the caller reads.
    pub outputs: Vec<Port>,
    /// Operators in execution order.
    pub nodes: Vec<Node>,
    /// Every tensor that is an input or a node's output (dead entries may remain; [`Graph::compact`] drops them).
    pub tensors: Vec<Tensor>,
}

/// A named input or output of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// The name in the ONNX file.
    pub name: String,
    /// The tensor, in the graph's own axis order.
    pub tensor: TensorId,
    /// How the graph's axes relate to the ONNX tensor's: `onnx_axes[i]` is the ONNX axis that graph axis `i` holds.
    /// `[0, 2, 3, 1]` for an NCHW image that the graph holds as NHWC, `[0, 1, ..]` where nothing was moved.
    pub onnx_axes: Vec<usize>,
}

/// A value that flows between nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The name in the ONNX file, or one derived from its producer.
    pub name: String,
    /// Static shape, batch of 1 included.
    pub shape: Vec<usize>,
}

/// One operator.
#[derive(Clone, Debug)]
pub struct Node {
    /// Unique name, from the ONNX node where it has one.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// Activation inputs (constants are part of the op, or come from an [`Op::Const`] node).
    pub inputs: Vec<TensorId>,
    /// The one output.
    pub output: TensorId,
}

/// Inclusive output bounds that an activation adds to a linear operator; `Relu` is `0 ..= inf`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clamp {
    /// Lower bound, `-inf` for none.
    pub min: f32,
    /// Upper bound, `+inf` for none.
    pub max: f32,
}

impl Clamp {
    /// No bounds.
    pub const NONE: Clamp = Clamp { min: f32::NEG_INFINITY, max: f32::INFINITY };
    /// `max(x, 0)`.
    pub const RELU: Clamp = Clamp { min: 0.0, max: f32::INFINITY };

    /// `min(max(x, 0), 6)`.
    pub const RELU6: Clamp = Clamp { min: 0.0, max: 6.0 };

    /// The clamp that applies `self` first and `next` after it.
    pub fn then(self, next: Clamp) -> Clamp {
        Clamp { min: self.min.max(next.min).min(next.max), max: self.max.min(next.max).max(next.min) }
    }

    /// Bounded value.
    pub fn apply(self, x: f32) -> f32 {
        x.max(self.min).min(self.max)
    }
}

/// Window geometry shared by convolutions and pools, in elements, `[h, w]` or `[top, left, bottom, right]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Kernel size `[h, w]`.
    pub kernel: [usize; 2],
    /// Step `[h, w]`.
    pub stride: [usize; 2],
    /// Distance between kernel taps `[h, w]`.
    pub dilation: [usize; 2],
    /// Zero padding `[top, left, bottom, right]`; resolved from SAME, and from ceil mode (which only enlarges bottom, right).
    pub pad: [usize; 4],
}

/// The operators of the float graph.
#[allow(missing_docs)] // each variant's text names its fields
#[derive(Clone, Debug)]
pub enum Op {
    /// Constant tensor; no inputs.
    Const(ArrayD<f32>),
    /// Convolution, NHWC: weight `[oc, kh, kw, ic / groups]`, bias `[oc]`. Depthwise when `groups == ic`.
    Conv2d { window: Window, groups: usize, weight: ArrayD<f32>, bias: Vec<f32>, clamp: Clamp },
    /// Transposed convolution, NHWC: weight `[oc, kh, kw, ic / groups]`, bias `[oc]`; `window.pad` crops the full output and
    /// `output_padding` `[h, w]` extends it at bottom and right.
    ConvTranspose2d {
        window: Window,
        output_padding: [usize; 2],
        groups: usize,
        weight: ArrayD<f32>,
        bias: Vec<f32>,
        clamp: Clamp,
    },
    /// `y = x W^T + b` on the last axis: weight `[n, k]`, bias `[n]`.
    Linear { weight: ArrayD<f32>, bias: Vec<f32>, clamp: Clamp },
    /// Batch normalization at inference, per channel of the last axis. Kept unfolded by the importer, so that training can use it.
    BatchNorm { gamma: Vec<f32>, beta: Vec<f32>, mean: Vec<f32>, var: Vec<f32>, epsilon: f32 },
    /// `y = x * scale + bias` per channel of the last axis; vectors have the channel count as length.
    Affine { scale: Vec<f32>, bias: Vec<f32>, clamp: Clamp },
    /// Element-wise operator of two activations with NumPy broadcasting.
    Binary { kind: BinaryKind, clamp: Clamp },
    /// Scalar function applied to every element.
    Map(ScalarFn),
    /// `x >= 0 ? x : slope[c] * x`, per channel of the last axis.
    PRelu { slope: Vec<f32> },
    /// Largest value of a window, NHWC; padding never wins.
    MaxPool(Window),
    /// Mean of a window, NHWC; padded positions count as zeros if `count_include_pad`, else they do not count.
    AveragePool { window: Window, count_include_pad: bool },
    /// Mean over `axes`, which are kept with length 1.
    Mean { axes: Vec<usize> },
    /// Constant padding, one count per axis.
    Pad { before: Vec<usize>, after: Vec<usize>, value: f32 },
    /// Joins its inputs along one axis.
    Concat { axis: usize },
    /// `start`, signed `step` and `len` per axis.
    Slice { start: Vec<usize>, step: Vec<isize>, len: Vec<usize> },
    /// Same elements in row-major order under another shape.
    Reshape { shape: Vec<usize> },
    /// Output axis `i` is input axis `perm[i]`.
    Transpose { perm: Vec<usize> },
    /// Separable interpolation over `h` and `w`, NHWC; the coordinate rule is resolved to one [`Tap`] per output row and column.
    Resize { h: Vec<Tap>, w: Vec<Tap> },
    /// `exp(x - max) / sum` over one axis.
    Softmax { axis: usize },
}

/// `y = x[lo] * (1 - frac) + x[hi] * frac` along one axis; nearest neighbour has `frac == 0` everywhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tap {
    /// Source index weighted `1 - frac`.
    pub lo: usize,
    /// Source index weighted `frac`.
    pub hi: usize,
    /// In `0.0 ..= 1.0`.
    pub frac: f32,
}

/// Arithmetic of [`Op::Binary`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryKind {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
}

impl Op {
    /// Short name for tables and messages, in the field's spelling.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Const(_) => "Const",
            Op::Conv2d { .. } => "Conv2d",
            Op::ConvTranspose2d { .. } => "ConvTranspose2d",
            Op::Linear { .. } => "Linear",
            Op::BatchNorm { .. } => "BatchNorm",
            Op::Affine { .. } => "Affine",
            Op::Binary { kind: BinaryKind::Add, .. } => "Add",
            Op::Binary { kind: BinaryKind::Sub, .. } => "Sub",
            Op::Binary { kind: BinaryKind::Mul, .. } => "Mul",
            Op::Map(_) => "Map",
            Op::PRelu { .. } => "PRelu",
            Op::MaxPool(_) => "MaxPool",
            Op::AveragePool { .. } => "AveragePool",
            Op::Mean { .. } => "Mean",
            Op::Pad { .. } => "Pad",
            Op::Concat { .. } => "Concat",
            Op::Slice { .. } => "Slice",
            Op::Reshape { .. } => "Reshape",
            Op::Transpose { .. } => "Transpose",
            Op::Resize { .. } => "Resize",
            Op::Softmax { .. } => "Softmax",
        }
    }

    /// The clamp that the operator applies to what it gives, or is; none where it can have none.
    pub fn clamp(&self) -> Option<Clamp> {
        match self {
            Op::Conv2d { clamp, .. }
            | Op::ConvTranspose2d { clamp, .. }
            | Op::Linear { clamp, .. }
            | Op::Affine { clamp, .. }
            | Op::Binary { clamp, .. } => Some(*clamp),
            Op::Map(f) => f.as_clamp(),
            _ => None,
        }
    }

    /// Adds bounds to that clamp, or to a function of one value; no other operator changes.
    pub fn limit(&mut self, bounds: Clamp) {
        match self {
            Op::Conv2d { clamp, .. }
            | Op::ConvTranspose2d { clamp, .. }
            | Op::Linear { clamp, .. }
            | Op::Affine { clamp, .. }
            | Op::Binary { clamp, .. } => *clamp = clamp.then(bounds),
            Op::Map(f) => *f = ScalarFn::Unary(scalar::Unary::Clamp(bounds), Box::new(f.clone())),
            _ => {}
        }
    }
}

impl Graph {
    /// The shape of a tensor.
    pub fn shape(&self, id: TensorId) -> &[usize] {
        &self.tensors[id.0].shape
    }

    /// A new tensor.
    pub fn add_tensor(&mut self, name: impl Into<String>, shape: &[usize]) -> TensorId {
        self.tensors.push(Tensor { name: name.into(), shape: shape.to_vec() });
        TensorId(self.tensors.len() - 1)
    }

    /// A new input whose axes are the ONNX tensor's.
    pub fn add_input(&mut self, name: &str, shape: &[usize]) -> TensorId {
        let tensor = self.add_tensor(name, shape);
        self.inputs.push(Port { name: name.into(), tensor, onnx_axes: (0..shape.len()).collect() });
        tensor
    }

    /// Declares `tensor` an output whose axes are the ONNX tensor's.
    pub fn add_output(&mut self, name: &str, tensor: TensorId) {
        let onnx_axes = (0..self.shape(tensor).len()).collect();
        self.outputs.push(Port { name: name.into(), tensor, onnx_axes });
    }

    /// Appends a node; its output shape comes from [`shape::infer`], whose error says what does not fit.
    pub fn push(
        &mut self,
        name: impl Into<String>,
        op: Op,
        inputs: &[TensorId],
    ) -> Result<TensorId, shape::ShapeError> {
        let name = name.into();
        let shapes: Vec<&[usize]> = inputs.iter().map(|&id| self.shape(id)).collect();
        let shape = shape::infer(&op, &shapes).map_err(|e| e.at(&name))?;
        let output = self.add_tensor(name.clone(), &shape);
        self.nodes.push(Node { name, op, inputs: inputs.to_vec(), output });
        Ok(output)
    }

    /// Index of the node that writes `tensor`, none for graph inputs.
    pub fn producer(&self, tensor: TensorId) -> Option<usize> {
        self.nodes.iter().position(|n| n.output == tensor)
    }

    /// Indices of the nodes that read `tensor`, each once, in order.
    pub fn consumers(&self, tensor: TensorId) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&i| self.nodes[i].inputs.contains(&tensor)).collect()
    }

    /// Whether `tensor` is a graph output.
    pub fn is_output(&self, tensor: TensorId) -> bool {
        self.outputs.iter().any(|p| p.tensor == tensor)
    }

    /// Makes every reader of `from`, outputs included, read `to` instead.
    pub fn redirect(&mut self, from: TensorId, to: TensorId) {
        for id in self.nodes.iter_mut().flat_map(|n| n.inputs.iter_mut()) {
            if *id == from {
                *id = to;
            }
        }
        for port in &mut self.outputs {
            if port.tensor == from {
                port.tensor = to;
            }
        }
    }

    /// Weights in row-major order, which [`Graph::theta`] relies on; views and selections may leave another one.
    pub fn in_standard_layout(mut self) -> Graph {
        for node in &mut self.nodes {
            if let Op::Conv2d { weight, .. } | Op::ConvTranspose2d { weight, .. } | Op::Linear { weight, .. } =
                &mut node.op
                && !weight.is_standard_layout()
            {
                *weight = weight.as_standard_layout().into_owned();
            }
        }
        self
    }

    /// Drops nodes that no output needs and tensors that nothing names; renumbers the rest. Inputs stay.
    pub fn compact(mut self) -> Graph {
        let mut live = vec![false; self.tensors.len()];
        self.outputs.iter().for_each(|p| live[p.tensor.0] = true);
        for node in self.nodes.iter().rev() {
            if live[node.output.0] {
                node.inputs.iter().for_each(|id| live[id.0] = true);
            }
        }
        self.nodes.retain(|n| live[n.output.0]);
        self.inputs.iter().for_each(|p| live[p.tensor.0] = true);
        let mut next = 0;
        let number: Vec<usize> = live
            .iter()
            .map(|&l| {
                next += usize::from(l);
                next.wrapping_sub(1)
            })
            .collect();
        let renumber = |id: &mut TensorId| *id = TensorId(number[id.0]);
        for node in &mut self.nodes {
            node.inputs.iter_mut().for_each(renumber);
            renumber(&mut node.output);
        }
        self.inputs.iter_mut().chain(&mut self.outputs).for_each(|p| renumber(&mut p.tensor));
        let mut keep = live.iter();
        self.tensors.retain(|_| *keep.next().unwrap_or(&false));
        self
    }
}

/// Every exact rewrite until nothing changes: the graph that is calibrated and quantized.
pub fn simplify(graph: Graph) -> Graph {
    rewrite(graph, BatchNorms::Folded)
}

/// The same, but batch norms stay: the graph that is trained and pruned. `simplify` of it is the graph for inference.
pub fn trainable(graph: Graph) -> Graph {
    rewrite(graph, BatchNorms::Kept)
}

fn rewrite(mut graph: Graph, norms: BatchNorms) -> Graph {
    let size = |g: &Graph| (g.nodes.len(), g.nodes.iter().map(|n| n.op.name()).collect::<Vec<_>>());
    // Each round ends smaller or equal; a handful suffices for real networks.
    for _ in 0..16 {
        let before = size(&graph);
        graph = fold::fold(fuse::fuse(layout::remove_transposes(fuse::fuse(graph.compact()), norms)), norms);
        if size(&graph) == before {
            break;
        }
    }
    graph.compact().in_standard_layout()
}
