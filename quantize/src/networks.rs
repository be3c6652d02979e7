//! Reference networks to train from scratch.
//!
//! Graphs with seeded weights and batch norms kept as nodes. A picture is `[h, w, c]`; the input `image` is declared
//! NCHW, as PyTorch's models are, so that a written file has no transposes, and the output `logits` has no softmax.
//! Convolutions start as He et al. propose (normal, variance `2 / fan_in`), linear layers with variance `1 / fan_in`,
//! biases at zero, batch norms as the identity.

use crate::graph::scalar::ScalarFn;
use crate::graph::shape::ShapeError;
use crate::graph::{BinaryKind, Clamp, Graph, Op, TensorId, Window};
use crate::random::Random;
use ndarray::{ArrayD, IxDyn};

/// A network's function: `[h, w, c]` of a picture, number of classes, seed.
pub type Network = fn([usize; 3], usize, u64) -> Result<Graph, ShapeError>;

/// Every network: its name, what it is, its function.
pub const NETWORKS: [(&str, &str, Network); 3] = [
    (
        "resnet8",
        "MLPerf Tiny's ResNet for 32 x 32 pictures: 7 convolutions of 16, 32, 64 channels, two projections",
        resnet8,
    ),
    (
        "ds_cnn",
        "depthwise-separable, after MLPerf Tiny's keyword spotter: one convolution, 4 pairs of 64 channels",
        ds_cnn,
    ),
    ("lenet5", "LeCun's network for digits with ReLU and max pooling: two convolutions, three linear layers", lenet5),
];

/// The network of that name, none if there is no such name; an error if the picture is too small for it.
pub fn by_name(name: &str, input: [usize; 3], classes: usize, seed: u64) -> Option<Result<Graph, ShapeError>> {
    let (_, _, network) = NETWORKS.iter().find(|(known, _, _)| *known == name)?;
    Some(network(input, classes, seed))
}

/// Three stacks of two 3 x 3 convolutions; from the second on, the first of them and the projection beside them have a
/// stride of 2.
pub fn resnet8(input: [usize; 3], classes: usize, seed: u64) -> Result<Graph, ShapeError> {
    let (mut b, x) = Builder::new("resnet8", input, seed);
    let mut x = b.unit("stem", x, 16, 3, 1, 1)?;
    for (i, channels) in [16, 32, 64].into_iter().enumerate() {
        let stride = if i == 0 { 1 } else { 2 };
        let name = |layer: &str| format!("stack{}.{layer}", i + 1);
        let y = b.unit(&name("conv1"), x, channels, 3, stride, 1)?;
        let y = b.normed(&name("conv2"), y, channels, 3, 1, 1)?;
        let skip = if i == 0 { x } else { b.conv(&name("skip"), x, channels, 1, stride, 1)? };
        x = b.push(name("add"), Op::Binary { kind: BinaryKind::Add, clamp: Clamp::RELU }, &[y, skip])?;
    }
    let x = b.global_average(x)?;
    b.classifier(x, classes)
}

/// A convolution with a stride of 2, then four times depthwise 3 x 3 and pointwise.
pub fn ds_cnn(input: [usize; 3], classes: usize, seed: u64) -> Result<Graph, ShapeError> {
    let (mut b, x) = Builder::new("ds_cnn", input, seed);
    let mut x = b.unit("stem", x, 64, 3, 2, 1)?;
    for i in 1..=4 {
        x = b.unit(&format!("block{i}.depthwise"), x, 64, 3, 1, 64)?;
        x = b.unit(&format!("block{i}.pointwise"), x, 64, 1, 1, 1)?;
    }
    let x = b.global_average(x)?;
    b.classifier(x, classes)
}

/// Two 5 x 5 convolutions, each followed by 2 x 2 max pooling, and linear layers of 120 and 84.
pub fn lenet5(input: [usize; 3], classes: usize, seed: u64) -> Result<Graph, ShapeError> {
    let (mut b, mut x) = Builder::new("lenet5", input, seed);
    for (i, channels) in [(1, 6), (2, 16)] {
        x = b.unit(&format!("conv{i}"), x, channels, 5, 1, 1)?;
        let window = Window { kernel: [2, 2], stride: [2, 2], dilation: [1, 1], pad: [0; 4] };
        x = b.push(format!("pool{i}"), Op::MaxPool(window), &[x])?;
    }
    let elements = b.graph.shape(x).iter().product();
    x = b.push("flatten", Op::Reshape { shape: vec![1, elements] }, &[x])?;
    x = b.linear("fc1", x, 120, Clamp::RELU)?;
    x = b.linear("fc2", x, 84, Clamp::RELU)?;
    b.classifier(x, classes)
}

/// A graph and the numbers that its weights come from.
struct Builder {
    graph: Graph,
    random: Random,
}

impl Builder {
    fn new(name: &str, [h, w, c]: [usize; 3], seed: u64) -> (Builder, TensorId) {
        let mut graph = Graph { name: name.into(), ..Graph::default() };
        let x = graph.add_input("image", &[1, h, w, c]);
        graph.inputs[0].onnx_axes = vec![0, 2, 3, 1];
        (Builder { graph, random: Random::new(seed, 0) }, x)
    }

    fn push(&mut self, name: impl Into<String>, op: Op, inputs: &[TensorId]) -> Result<TensorId, ShapeError> {
        self.graph.push(name, op, inputs)
    }

    /// Normal weights, `[outputs, ..]`, whose outputs have `gain` times the variance of their inputs.
    fn weight(&mut self, shape: &[usize], gain: f32) -> ArrayD<f32> {
        let fan_in = shape[1..].iter().product::<usize>().max(1);
        let deviation = (gain / fan_in as f32).sqrt();
        ArrayD::from_shape_simple_fn(IxDyn(shape), || self.random.normal() * deviation)
    }

    /// A convolution that keeps the size but for its stride.
    fn conv(
        &mut self,
        name: &str,
        x: TensorId,
        channels: usize,
        kernel: usize,
        stride: usize,
        groups: usize,
    ) -> Result<TensorId, ShapeError> {
        let window = Window { kernel: [kernel; 2], stride: [stride; 2], dilation: [1; 2], pad: [kernel / 2; 4] };
        let weight = self.weight(&[channels, kernel, kernel, self.graph.shape(x)[3] / groups], 2.0);
        let op = Op::Conv2d { window, groups, weight, bias: vec![0.0; channels], clamp: Clamp::NONE };
        self.push(name, op, &[x])
    }

    /// Convolution and batch norm.
    fn normed(
        &mut self,
        name: &str,
        x: TensorId,
        channels: usize,
        kernel: usize,
        stride: usize,
        groups: usize,
    ) -> Result<TensorId, ShapeError> {
        let x = self.conv(name, x, channels, kernel, stride, groups)?;
        let [zero, one] = [0.0, 1.0].map(|v| vec![v; channels]);
        let norm = Op::BatchNorm { gamma: one.clone(), beta: zero.clone(), mean: zero, var: one, epsilon: 1e-5 };
        self.push(format!("{name}.norm"), norm, &[x])
    }

    /// Convolution, batch norm, ReLU.
    fn unit(
        &mut self,
        name: &str,
        x: TensorId,
        channels: usize,
        kernel: usize,
        stride: usize,
        groups: usize,
    ) -> Result<TensorId, ShapeError> {
        let x = self.normed(name, x, channels, kernel, stride, groups)?;
        self.push(format!("{name}.relu"), Op::Map(ScalarFn::clamp(Clamp::RELU)), &[x])
    }

    /// `[1, h, w, c]` to `[1, c]`.
    fn global_average(&mut self, x: TensorId) -> Result<TensorId, ShapeError> {
        let channels = self.graph.shape(x)[3];
        let mean = self.push("average", Op::Mean { axes: vec![1, 2] }, &[x])?;
        self.push("flatten", Op::Reshape { shape: vec![1, channels] }, &[mean])
    }

    fn linear(&mut self, name: &str, x: TensorId, outputs: usize, clamp: Clamp) -> Result<TensorId, ShapeError> {
        let gain = if clamp == Clamp::NONE { 1.0 } else { 2.0 };
        let weight = self.weight(&[outputs, self.graph.shape(x)[1]], gain);
        self.push(name, Op::Linear { weight, bias: vec![0.0; outputs], clamp }, &[x])
    }

    /// The last layer and the output.
    fn classifier(mut self, x: TensorId, classes: usize) -> Result<Graph, ShapeError> {
        let logits = self.linear("classifier", x, classes, Clamp::NONE)?;
        self.graph.tensors[logits.0].name = "logits".into();
        self.graph.add_output("logits", logits);
        Ok(self.graph)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{eval, trainable};

    /// Multiply-accumulates of one picture.
    fn macs(graph: &Graph) -> u64 {
        let one = |n: &crate::graph::Node| eval::macs(&n.op, graph.shape(n.inputs[0]), graph.shape(n.output));
        graph.nodes.iter().map(one).sum()
    }

    #[test]
    fn they_have_the_known_sizes() {
        let weights = |g: &Graph| -> usize {
            let of = |op: &Op| match op {
                Op::Conv2d { weight, .. } | Op::Linear { weight, .. } => weight.len(),
                _ => 0,
            };
            g.nodes.iter().map(|n| of(&n.op)).sum()
        };
        let resnet = resnet8([32, 32, 3], 10, 1).unwrap();
        // As in MLPerf Tiny's file.
        assert_eq!((weights(&resnet), macs(&resnet)), (77_360, 12_501_632));
        let ds_cnn = ds_cnn([28, 28, 1], 10, 1).unwrap();
        assert_eq!((weights(&ds_cnn), macs(&ds_cnn)), (19_904, 3_776_384));
    }

    #[test]
    fn seeds_decide_and_values_keep_their_size() {
        for (name, _, network) in NETWORKS {
            let graph = network([28, 28, 1], 10, 7).unwrap();
            assert_eq!(graph.theta(), by_name(name, [28, 28, 1], 10, 7).unwrap().unwrap().theta());
            assert_ne!(graph.theta(), network([28, 28, 1], 10, 8).unwrap().theta());
            assert_eq!(trainable(graph.clone()).nodes.len(), graph.nodes.len(), "{name}");
            let mut random = Random::new(1, 1);
            let x = ArrayD::from_shape_simple_fn(IxDyn(&[1, 28, 28, 1]), || random.normal());
            let y = eval::run(&graph, &[x]).unwrap().remove(0);
            assert_eq!((y.shape(), graph.outputs[0].name.as_str()), (&[1, 10][..], "logits"));
            let size = (y.iter().map(|v| v * v).sum::<f32>() / 10.0).sqrt();
            assert!((0.05..20.0).contains(&size), "{name}: {size}");
        }
        assert!(by_name("resnet9", [28, 28, 1], 10, 7).is_none());
        assert!(lenet5([1, 1, 1], 10, 7).is_err());
    }
}
