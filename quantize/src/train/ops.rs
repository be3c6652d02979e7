//! Operators that burn does not have in the IR's layout, or is slow at: a backend extension.
//!
//! All act on NHWC values of any batch. On the CPU backend (`Flex`) they are the loops of [`super::conv`] and [`super::windows`]; other backends compose
//! them of burn's own operators ([`composed`]), which tests hold against those loops. [`Autodiff`] adds the gradients once for all.

use super::conv;
use super::windows::{self, Geometry, Norm};
use crate::graph::Clamp;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, TensorMetadata, backend_extension};
use burn::tensor::TensorData;

/// See the module.
#[backend_extension(Autodiff, Flex, Cube: cfg(any(feature = "wgpu", feature = "cuda")))]
pub(super) trait WindowOps: Backend {
    /// `x [n, h, w, ic]`, `weight [oc, kh, kw, ic / groups]` → `[n, oh, ow, oc]`.
    fn window_conv(x: FloatTensor<Self>, weight: FloatTensor<Self>, g: Geometry) -> FloatTensor<Self> {
        composed::conv::<Self>(x, weight, g)
    }

    /// Gradient by `x`; as an operator of its own, a transposed convolution.
    fn window_conv_x_backward(grad: FloatTensor<Self>, weight: FloatTensor<Self>, g: Geometry) -> FloatTensor<Self> {
        composed::conv_x_backward::<Self>(grad, weight, g)
    }

    /// Gradient by `weight`.
    fn window_conv_weight_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>, g: Geometry) -> FloatTensor<Self> {
        composed::conv_weight_backward::<Self>(x, grad, g)
    }

    /// Largest value of every window.
    fn window_max(x: FloatTensor<Self>, g: Geometry) -> FloatTensor<Self> {
        composed::max_pool::<Self>(x, g)
    }

    /// Gradient of `window_max`.
    fn window_max_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>, g: Geometry) -> FloatTensor<Self> {
        composed::max_pool_backward::<Self>(x, grad, g)
    }

    /// Mean of every window.
    fn window_mean(x: FloatTensor<Self>, g: Geometry, count_include_pad: bool) -> FloatTensor<Self> {
        composed::average_pool::<Self>(x, g, count_include_pad)
    }

    /// Gradient of `window_mean`.
    fn window_mean_backward(grad: FloatTensor<Self>, g: Geometry, count_include_pad: bool) -> FloatTensor<Self> {
        composed::average_pool_backward::<Self>(grad, g, count_include_pad)
    }

    /// Values between two bounds.
    fn bounded(x: FloatTensor<Self>, clamp: Clamp) -> FloatTensor<Self> {
        composed::clamp::<Self>(x, clamp)
    }

    /// Gradient of `bounded`, from what came out: none at a bound.
    fn bounded_backward(y: FloatTensor<Self>, grad: FloatTensor<Self>, clamp: Clamp) -> FloatTensor<Self> {
        composed::clamp_backward::<Self>(y, grad, clamp)
    }

    /// Values on levels, which are `[3]`: their step, the lowest and the highest.
    fn rounded(x: FloatTensor<Self>, levels: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::rounded::<Self>(x, levels)
    }

    /// Gradient of `rounded` by `x`: straight through the rounding, none beyond the levels.
    fn rounded_x_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        levels: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::rounded_x_backward::<Self>(x, grad, levels)
    }

    /// Gradient of `rounded` by `levels`.
    fn rounded_sums(x: FloatTensor<Self>, grad: FloatTensor<Self>, levels: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::rounded_sums::<Self>(x, grad, levels)
    }

    /// Mean and variance of every channel of the last axis: `[2, c]`.
    fn channel_moments(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::moments::<Self>(x)
    }

    /// Batch norm with the moments of the same batch, and the clamp behind it.
    fn channel_normalize(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        composed::normalize::<Self>(x, gamma, beta, moments, norm)
    }

    /// Gradients by gamma and beta: `[2, c]`.
    fn channel_normalize_sums(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        composed::normalize_sums::<Self>(x, grad, gamma, beta, moments, norm)
    }

    /// Gradient by `x`, through the moments.
    fn channel_normalize_x_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        sums: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        composed::normalize_x_backward::<Self>(x, grad, gamma, beta, moments, sums, norm)
    }
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
impl WindowOps for burn::backend::Cube {}

type Flat = FloatTensor<Flex>;

/// `f` on the elements of contiguous tensors.
fn with<const N: usize>(tensors: [Flat; N], shape: Vec<usize>, f: impl FnOnce([&[f32]; N]) -> Vec<f32>) -> Flat {
    let tensors = tensors.map(|t| t.to_contiguous());
    let values = f(tensors.each_ref().map(|t| t.as_slice().unwrap_or_default()));
    Flat::from_data(TensorData::new(values, shape))
}

/// Shape with the batch of `of` and the picture `last`.
fn batched(of: &Flat, last: [usize; 3]) -> Vec<usize> {
    vec![of.shape()[0], last[0], last[1], last[2]]
}

impl WindowOps for Flex {
    fn window_conv(x: Flat, weight: Flat, g: Geometry) -> Flat {
        let shape = batched(&x, g.output);
        with([x, weight], shape, |[x, w]| conv::conv(x, w, &g))
    }

    fn window_conv_x_backward(grad: Flat, weight: Flat, g: Geometry) -> Flat {
        let shape = batched(&grad, g.input);
        with([grad, weight], shape, |[dy, w]| conv::conv_x_backward(dy, w, &g))
    }

    fn window_conv_weight_backward(x: Flat, grad: Flat, g: Geometry) -> Flat {
        let [kh, kw] = g.window.kernel;
        let shape = vec![g.output[2], kh, kw, g.input[2] / g.groups];
        with([x, grad], shape, |[x, dy]| conv::conv_weight_backward(x, dy, &g))
    }

    fn window_max(x: Flat, g: Geometry) -> Flat {
        let shape = batched(&x, g.output);
        with([x], shape, |[x]| windows::max_pool(x, &g))
    }

    fn window_max_backward(x: Flat, grad: Flat, g: Geometry) -> Flat {
        let shape = batched(&x, g.input);
        with([x, grad], shape, |[x, dy]| windows::max_pool_backward(x, dy, &g))
    }

    fn window_mean(x: Flat, g: Geometry, count_include_pad: bool) -> Flat {
        let shape = batched(&x, g.output);
        with([x], shape, |[x]| windows::average_pool(x, &g, count_include_pad))
    }

    fn window_mean_backward(grad: Flat, g: Geometry, count_include_pad: bool) -> Flat {
        let shape = batched(&grad, g.input);
        with([grad], shape, |[dy]| windows::average_pool_backward(dy, &g, count_include_pad))
    }

    fn bounded(x: Flat, clamp: Clamp) -> Flat {
        let shape = x.shape().to_vec();
        with([x], shape, |[x]| windows::clamp(x, clamp))
    }

    fn bounded_backward(y: Flat, grad: Flat, clamp: Clamp) -> Flat {
        let shape = y.shape().to_vec();
        with([y, grad], shape, |[y, dy]| windows::clamp_backward(y, dy, clamp))
    }

    fn rounded(x: Flat, levels: Flat) -> Flat {
        let shape = x.shape().to_vec();
        with([x, levels], shape, |[x, l]| windows::rounded(x, l))
    }

    fn rounded_x_backward(x: Flat, grad: Flat, levels: Flat) -> Flat {
        let shape = x.shape().to_vec();
        with([x, grad, levels], shape, |[x, dy, l]| windows::rounded_backward(x, dy, l))
    }

    fn rounded_sums(x: Flat, grad: Flat, levels: Flat) -> Flat {
        with([x, grad, levels], vec![3], |[x, dy, l]| windows::rounded_sums(x, dy, l))
    }

    fn channel_moments(x: Flat) -> Flat {
        let c = last(&x);
        with([x], vec![2, c], |[x]| windows::moments(x, c))
    }

    fn channel_normalize(x: Flat, gamma: Flat, beta: Flat, moments: Flat, norm: Norm) -> Flat {
        let shape = x.shape().to_vec();
        with([x, gamma, beta, moments], shape, |[x, g, b, m]| windows::normalize(x, g, b, m, norm))
    }

    fn channel_normalize_sums(x: Flat, grad: Flat, gamma: Flat, beta: Flat, moments: Flat, norm: Norm) -> Flat {
        let shape = vec![2, last(&x)];
        with([x, grad, gamma, beta, moments], shape, |[x, dy, g, b, m]| windows::normalize_sums(x, dy, g, b, m, norm))
    }

    fn channel_normalize_x_backward(
        x: Flat,
        grad: Flat,
        gamma: Flat,
        beta: Flat,
        moments: Flat,
        sums: Flat,
        norm: Norm,
    ) -> Flat {
        let shape = x.shape().to_vec();
        with([x, grad, gamma, beta, moments, sums], shape, |[x, dy, g, b, m, s]| {
            windows::normalize_x_backward(x, dy, g, b, m, s, norm)
        })
    }
}

fn last<T: TensorMetadata>(x: &T) -> usize {
    x.shape().last().copied().unwrap_or(1)
}

#[derive(Debug)]
struct Conv;

impl<B: Backend + WindowOps> Backward<B, 2> for Conv {
    type State = (B::FloatTensorPrimitive, B::FloatTensorPrimitive, Geometry);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, weight, g) = ops.state;
        let [to_x, to_weight] = ops.parents;
        if let Some(node) = to_x {
            grads.register::<B>(node.id, B::window_conv_x_backward(grad.clone(), weight, g));
        }
        if let Some(node) = to_weight {
            grads.register::<B>(node.id, B::window_conv_weight_backward(x, grad, g));
        }
    }
}

/// The transposed convolution `y = window_conv_x_backward(x, weight)`: the same three products with the roles of input and output exchanged.
#[derive(Debug)]
struct ConvTranspose;

impl<B: Backend + WindowOps> Backward<B, 2> for ConvTranspose {
    type State = (B::FloatTensorPrimitive, B::FloatTensorPrimitive, Geometry);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, weight, g) = ops.state;
        let [to_x, to_weight] = ops.parents;
        if let Some(node) = to_x {
            grads.register::<B>(node.id, B::window_conv(grad.clone(), weight, g));
        }
        if let Some(node) = to_weight {
            grads.register::<B>(node.id, B::window_conv_weight_backward(grad, x, g));
        }
    }
}

#[derive(Debug)]
struct Max;

impl<B: Backend + WindowOps> Backward<B, 1> for Max {
    type State = (B::FloatTensorPrimitive, Geometry);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (x, g) = ops.state;
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::window_max_backward(x, grad, g));
        }
    }
}

#[derive(Debug)]
struct Mean;

impl<B: Backend + WindowOps> Backward<B, 1> for Mean {
    type State = (Geometry, bool);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (g, count_include_pad) = ops.state;
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::window_mean_backward(grad, g, count_include_pad));
        }
    }
}

#[derive(Debug)]
struct Bounded;

impl<B: Backend + WindowOps> Backward<B, 1> for Bounded {
    type State = (B::FloatTensorPrimitive, Clamp);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (y, clamp) = ops.state;
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::bounded_backward(y, grad, clamp));
        }
    }
}

#[derive(Debug)]
struct Rounded;

impl<B: Backend + WindowOps> Backward<B, 2> for Rounded {
    /// Input and levels.
    type State = [B::FloatTensorPrimitive; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [x, levels] = ops.state;
        let [to_x, to_levels] = ops.parents;
        if let Some(node) = to_levels {
            grads.register::<B>(node.id, B::rounded_sums(x.clone(), grad.clone(), levels.clone()));
        }
        if let Some(node) = to_x {
            grads.register::<B>(node.id, B::rounded_x_backward(x, grad, levels));
        }
    }
}

#[derive(Debug)]
struct Normalize;

impl<B: Backend + WindowOps> Backward<B, 3> for Normalize {
    /// Input, gamma, beta, moments.
    type State = ([B::FloatTensorPrimitive; 4], Norm);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let ([x, gamma, beta, moments], norm) = ops.state;
        let [to_x, to_gamma, to_beta] = ops.parents;
        let sums =
            B::channel_normalize_sums(x.clone(), grad.clone(), gamma.clone(), beta.clone(), moments.clone(), norm);
        let c = last(&gamma);
        for (row, node) in [to_gamma, to_beta].into_iter().enumerate() {
            if let Some(node) = node {
                let sum = B::float_slice(sums.clone(), &[(row..row + 1).into(), (0..c).into()]);
                grads.register::<B>(node.id, B::float_reshape(sum, [c].into()));
            }
        }
        if let Some(node) = to_x {
            let dx = B::channel_normalize_x_backward(x, grad, gamma, beta, moments, sums, norm);
            grads.register::<B>(node.id, dx);
        }
    }
}

impl<B: Backend + WindowOps, C: CheckpointStrategy> WindowOps for Autodiff<B, C> {
    fn window_conv(x: FloatTensor<Self>, weight: FloatTensor<Self>, g: Geometry) -> FloatTensor<Self> {
        let prep = Backward::<B, 2>::prepare::<C>(Conv, [x.node(), weight.node()]).compute_bound().stateful();
        let (x, weight) = (x.into_primitive(), weight.into_primitive());
        match prep {
            OpsKind::Tracked(prep) => {
                let state = (x.clone(), weight.clone(), g);
                prep.finish(state, B::window_conv(x, weight, g))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::window_conv(x, weight, g)),
        }
    }

    fn window_conv_x_backward(x: FloatTensor<Self>, weight: FloatTensor<Self>, g: Geometry) -> FloatTensor<Self> {
        let prep = Backward::<B, 2>::prepare::<C>(ConvTranspose, [x.node(), weight.node()]).compute_bound().stateful();
        let (x, weight) = (x.into_primitive(), weight.into_primitive());
        match prep {
            OpsKind::Tracked(prep) => {
                let state = (x.clone(), weight.clone(), g);
                prep.finish(state, B::window_conv_x_backward(x, weight, g))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::window_conv_x_backward(x, weight, g)),
        }
    }

    fn window_max(x: FloatTensor<Self>, g: Geometry) -> FloatTensor<Self> {
        let prep = Backward::<B, 1>::prepare::<C>(Max, [x.node()]).compute_bound().stateful();
        let x = x.into_primitive();
        match prep {
            OpsKind::Tracked(prep) => prep.finish((x.clone(), g), B::window_max(x, g)),
            OpsKind::UnTracked(prep) => prep.finish(B::window_max(x, g)),
        }
    }

    fn window_mean(x: FloatTensor<Self>, g: Geometry, count_include_pad: bool) -> FloatTensor<Self> {
        let prep = Backward::<B, 1>::prepare::<C>(Mean, [x.node()]).compute_bound().stateful();
        let y = B::window_mean(x.into_primitive(), g, count_include_pad);
        match prep {
            OpsKind::Tracked(prep) => prep.finish((g, count_include_pad), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn bounded(x: FloatTensor<Self>, clamp: Clamp) -> FloatTensor<Self> {
        let prep = Backward::<B, 1>::prepare::<C>(Bounded, [x.node()]).compute_bound().stateful();
        let y = B::bounded(x.into_primitive(), clamp);
        match prep {
            OpsKind::Tracked(prep) => prep.finish((y.clone(), clamp), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn rounded(x: FloatTensor<Self>, levels: FloatTensor<Self>) -> FloatTensor<Self> {
        let prep = Backward::<B, 2>::prepare::<C>(Rounded, [x.node(), levels.node()]).compute_bound().stateful();
        let (x, levels) = (x.into_primitive(), levels.into_primitive());
        match prep {
            OpsKind::Tracked(prep) => {
                let state = [x.clone(), levels.clone()];
                prep.finish(state, B::rounded(x, levels))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::rounded(x, levels)),
        }
    }

    /// No gradient flows here: that of [`WindowOps::channel_normalize`] knows where the moments came from.
    fn channel_moments(x: FloatTensor<Self>) -> FloatTensor<Self> {
        FloatTensor::<Self>::new(B::channel_moments(x.into_primitive()))
    }

    fn channel_normalize(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), gamma.node(), beta.node()];
        let prep = Backward::<B, 3>::prepare::<C>(Normalize, nodes).compute_bound().stateful();
        let (x, gamma, beta) = (x.into_primitive(), gamma.into_primitive(), beta.into_primitive());
        let moments = moments.into_primitive();
        let y = B::channel_normalize(x.clone(), gamma.clone(), beta.clone(), moments.clone(), norm);
        match prep {
            OpsKind::Tracked(prep) => prep.finish(([x, gamma, beta, moments], norm), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}

/// The same operators of burn's own, for backends without loops of ours.
pub(super) mod composed {
    use super::{Clamp, Geometry, Norm, last};
    use burn::backend::tensor::{BoolTensor, FloatTensor};
    use burn::backend::{Backend, TensorMetadata};
    use burn::tensor::ops::{ConvOptions, PadMode};
    use burn::tensor::{Shape, Slice};

    fn planes<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
        B::float_permute(x, &[0, 3, 1, 2])
    }

    fn pixels<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
        B::float_permute(x, &[0, 2, 3, 1])
    }

    /// Rows and columns of the padded picture that windows reach: less than all where a stride leaves a rest, or output padding room.
    fn reach(g: &Geometry) -> [usize; 2] {
        let w = &g.window;
        [0, 1].map(|i| (g.output[i] - 1) * w.stride[i] + (w.kernel[i] - 1) * w.dilation[i] + 1)
    }

    /// What windows reach, with every padding as a border of its own: the operators need none, and what comes out has the geometry's shape.
    fn padded<B: Backend>(x: FloatTensor<B>, g: &Geometry, value: f32) -> FloatTensor<B> {
        let [top, left, bottom, right] = g.window.pad;
        cut::<B>(framed::<B>(x, [(top, bottom), (left, right)], value), [0, 0], reach(g))
    }

    /// The picture within the gradient by what [`padded`] gives.
    fn cropped<B: Backend>(x: FloatTensor<B>, g: &Geometry) -> FloatTensor<B> {
        let reach = reach(g);
        let beyond = |i: usize| (0, (g.window.pad[i] + g.input[i]).saturating_sub(reach[i]));
        let all = framed::<B>(x, [beyond(0), beyond(1)], 0.0);
        cut::<B>(all, [g.window.pad[0], g.window.pad[1]], [g.input[0], g.input[1]])
    }

    /// Rows and columns before and after those of planes.
    fn framed<B: Backend>(x: FloatTensor<B>, [rows, cols]: [(usize, usize); 2], value: f32) -> FloatTensor<B> {
        if [rows, cols] == [(0, 0); 2] {
            return x;
        }
        B::float_pad(x, &[(0, 0), (0, 0), rows, cols], PadMode::Constant(value))
    }

    /// Some rows and columns of planes.
    fn cut<B: Backend>(x: FloatTensor<B>, [top, left]: [usize; 2], [rows, cols]: [usize; 2]) -> FloatTensor<B> {
        let [n, c, h, w]: [usize; 4] = x.shape().dims();
        if [h, w] == [rows, cols] {
            return x;
        }
        B::float_slice(x, &[0..n, 0..c, top..top + rows, left..left + cols].map(Slice::from))
    }

    fn options(g: &Geometry) -> ConvOptions<2> {
        ConvOptions::new(g.window.stride, [0, 0], g.window.dilation, g.groups)
    }

    /// Zeros in the shape of padded planes: what the backward passes want for shapes.
    fn like_padded<B: Backend>(of: &FloatTensor<B>, g: &Geometry) -> FloatTensor<B> {
        let [rows, cols] = reach(g);
        B::float_zeros([of.shape()[0], g.input[2], rows, cols].into(), &of.device(), of.dtype().into())
    }

    pub(in crate::train) fn conv<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, g: Geometry) -> FloatTensor<B> {
        pixels::<B>(B::conv2d(padded::<B>(planes::<B>(x), &g, 0.0), planes::<B>(weight), None, options(&g)))
    }

    pub(in crate::train) fn conv_x_backward<B: Backend>(
        grad: FloatTensor<B>,
        weight: FloatTensor<B>,
        g: Geometry,
    ) -> FloatTensor<B> {
        let like = like_padded::<B>(&grad, &g);
        let dx = B::conv2d_x_backward(like, planes::<B>(weight), planes::<B>(grad), options(&g));
        pixels::<B>(cropped::<B>(dx, &g))
    }

    pub(in crate::train) fn conv_weight_backward<B: Backend>(
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
        g: Geometry,
    ) -> FloatTensor<B> {
        let [kh, kw] = g.window.kernel;
        let shape: Shape = [g.output[2], g.input[2] / g.groups, kh, kw].into();
        let like = B::float_zeros(shape, &x.device(), x.dtype().into());
        let x = padded::<B>(planes::<B>(x), &g, 0.0);
        pixels::<B>(B::conv2d_weight_backward(x, like, planes::<B>(grad), options(&g)))
    }

    pub(in crate::train) fn max_pool<B: Backend>(x: FloatTensor<B>, g: Geometry) -> FloatTensor<B> {
        let w = g.window;
        let x = padded::<B>(planes::<B>(x), &g, f32::MIN);
        pixels::<B>(B::max_pool2d(x, w.kernel, w.stride, [0, 0], w.dilation, false))
    }

    pub(in crate::train) fn max_pool_backward<B: Backend>(
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
        g: Geometry,
    ) -> FloatTensor<B> {
        let w = g.window;
        let x = padded::<B>(planes::<B>(x), &g, f32::MIN);
        let settings = burn::backend::get_or_init_device_settings::<B>(&x.device());
        let found =
            B::max_pool2d_with_indices(x.clone(), w.kernel, w.stride, [0, 0], w.dilation, false, settings.int_dtype);
        let dx = B::max_pool2d_with_indices_backward(
            x,
            w.kernel,
            w.stride,
            [0, 0],
            w.dilation,
            false,
            planes::<B>(grad),
            found.indices,
        );
        pixels::<B>(cropped::<B>(dx.x_grad, &g))
    }

    /// Mean over windows as a depthwise convolution with ones, divided by the counts.
    fn ones<B: Backend>(of: &FloatTensor<B>, g: &Geometry) -> FloatTensor<B> {
        let [kh, kw] = g.window.kernel;
        B::float_ones([g.input[2], kh, kw, 1].into(), &of.device(), of.dtype().into())
    }

    fn counts<B: Backend>(of: &FloatTensor<B>, g: &Geometry, count_include_pad: bool) -> FloatTensor<B> {
        let taps = g.window.kernel[0] * g.window.kernel[1];
        if count_include_pad {
            return B::float_full([1, 1, 1, 1].into(), (taps as f32).into(), &of.device(), of.dtype().into());
        }
        let picture: Shape = [1, g.input[0], g.input[1], g.input[2]].into();
        let picture = B::float_ones(picture, &of.device(), of.dtype().into());
        B::float_clamp_min(conv::<B>(picture, ones::<B>(of, g), depthwise(*g)), 1.0f32.into())
    }

    fn depthwise(g: Geometry) -> Geometry {
        Geometry { groups: g.input[2], ..g }
    }

    pub(in crate::train) fn average_pool<B: Backend>(
        x: FloatTensor<B>,
        g: Geometry,
        count_include_pad: bool,
    ) -> FloatTensor<B> {
        let counts = counts::<B>(&x, &g, count_include_pad);
        let ones = ones::<B>(&x, &g);
        B::float_div(conv::<B>(x, ones, depthwise(g)), counts)
    }

    pub(in crate::train) fn average_pool_backward<B: Backend>(
        grad: FloatTensor<B>,
        g: Geometry,
        count_include_pad: bool,
    ) -> FloatTensor<B> {
        let counts = counts::<B>(&grad, &g, count_include_pad);
        let ones = ones::<B>(&grad, &g);
        conv_x_backward::<B>(B::float_div(grad, counts), ones, depthwise(g))
    }

    /// `[m, c]`.
    fn rows<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
        let c = last(&x);
        let m = x.shape().num_elements() / c.max(1);
        B::float_reshape(x, [m, c].into())
    }

    fn row<B: Backend>(of: FloatTensor<B>, i: usize) -> FloatTensor<B> {
        let c = last(&of);
        B::float_slice(of, &[Slice::from(i..i + 1), Slice::from(0..c)])
    }

    pub(in crate::train) fn clamp<B: Backend>(x: FloatTensor<B>, Clamp { min, max }: Clamp) -> FloatTensor<B> {
        match (min == f32::NEG_INFINITY, max == f32::INFINITY) {
            (true, true) => x,
            (true, false) => B::float_clamp_max(x, max.into()),
            (false, true) => B::float_clamp_min(x, min.into()),
            (false, false) => B::float_clamp(x, min.into(), max.into()),
        }
    }

    pub(in crate::train) fn clamp_backward<B: Backend>(
        y: FloatTensor<B>,
        grad: FloatTensor<B>,
        Clamp { min, max }: Clamp,
    ) -> FloatTensor<B> {
        let settings = burn::backend::get_or_init_device_settings::<B>(&y.device());
        let low = B::float_lower_equal_elem(y.clone(), min.into(), settings.bool_dtype);
        let high = B::float_greater_equal_elem(y, max.into(), settings.bool_dtype);
        B::float_mask_fill(grad, B::bool_or(low, high), 0.0f32.into())
    }

    /// One of the levels in the shape of `like`.
    fn level<B: Backend>(levels: &FloatTensor<B>, i: usize, like: &FloatTensor<B>) -> FloatTensor<B> {
        let one = B::float_slice(levels.clone(), &[Slice::from(i..i + 1)]);
        let ones: Shape = vec![1; like.shape().num_dims()].into();
        B::float_expand(B::float_reshape(one, ones), like.shape())
    }

    /// `x` in steps, and where that lies below and above the levels.
    fn in_steps<B: Backend>(
        x: FloatTensor<B>,
        levels: &FloatTensor<B>,
    ) -> (FloatTensor<B>, BoolTensor<B>, BoolTensor<B>) {
        let settings = burn::backend::get_or_init_device_settings::<B>(&x.device());
        let [step, lo, hi] = [0, 1, 2].map(|i| level::<B>(levels, i, &x));
        let v = B::float_div(x, step);
        let below = B::float_lower(v.clone(), lo, settings.bool_dtype);
        let above = B::float_greater(v.clone(), hi, settings.bool_dtype);
        (v, below, above)
    }

    /// The level of every value.
    fn nearest<B: Backend>(v: FloatTensor<B>, levels: &FloatTensor<B>) -> FloatTensor<B> {
        let settings = burn::backend::get_or_init_device_settings::<B>(&v.device());
        let [lo, hi] = [1, 2].map(|i| level::<B>(levels, i, &v));
        let n = B::float_floor(B::float_add_scalar(v, 0.5f32.into()));
        let below = B::float_lower(n.clone(), lo.clone(), settings.bool_dtype);
        let n = B::float_mask_where(n, below, lo);
        let above = B::float_greater(n.clone(), hi.clone(), settings.bool_dtype);
        B::float_mask_where(n, above, hi)
    }

    pub(in crate::train) fn rounded<B: Backend>(x: FloatTensor<B>, levels: FloatTensor<B>) -> FloatTensor<B> {
        let step = level::<B>(&levels, 0, &x);
        let (v, ..) = in_steps::<B>(x, &levels);
        B::float_mul(nearest::<B>(v, &levels), step)
    }

    pub(in crate::train) fn rounded_x_backward<B: Backend>(
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
        levels: FloatTensor<B>,
    ) -> FloatTensor<B> {
        let (_, below, above) = in_steps::<B>(x, &levels);
        B::float_mask_fill(grad, B::bool_or(below, above), 0.0f32.into())
    }

    pub(in crate::train) fn rounded_sums<B: Backend>(
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
        levels: FloatTensor<B>,
    ) -> FloatTensor<B> {
        let (v, below, above) = in_steps::<B>(x, &levels);
        let n = nearest::<B>(v.clone(), &levels);
        let inside = B::float_mask_fill(grad.clone(), B::bool_or(below.clone(), above.clone()), 0.0f32.into());
        let of = |grad: FloatTensor<B>, mask| {
            let rest = B::float_mask_fill(grad, B::bool_not(mask), 0.0f32.into());
            B::float_mul(B::float_sum(rest), B::float_slice(levels.clone(), &[Slice::from(0..1)]))
        };
        let to_step = B::float_sub(B::float_mul(grad.clone(), n), B::float_mul(inside, v));
        B::float_cat(vec![B::float_sum(to_step), of(grad.clone(), below), of(grad, above)], 0)
    }

    pub(in crate::train) fn moments<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
        let x = rows::<B>(x);
        let mean = B::float_mean_dim(x.clone(), 0);
        let centred = B::float_sub(x, mean.clone());
        let var = B::float_mean_dim(B::float_mul(centred.clone(), centred), 0);
        B::float_cat(vec![mean, var], 0)
    }

    /// `1 / sqrt(var + epsilon)`, `[1, c]`.
    fn inverse<B: Backend>(moments: FloatTensor<B>, epsilon: f32) -> FloatTensor<B> {
        B::float_recip(B::float_sqrt(B::float_add_scalar(row::<B>(moments, 1), epsilon.into())))
    }

    /// `(x - mean) / sqrt(var + epsilon)`, `[m, c]`.
    fn whitened<B: Backend>(x: FloatTensor<B>, moments: FloatTensor<B>, epsilon: f32) -> FloatTensor<B> {
        let centred = B::float_sub(rows::<B>(x), row::<B>(moments.clone(), 0));
        B::float_mul(centred, inverse::<B>(moments, epsilon))
    }

    pub(in crate::train) fn normalize<B: Backend>(
        x: FloatTensor<B>,
        gamma: FloatTensor<B>,
        beta: FloatTensor<B>,
        moments: FloatTensor<B>,
        norm: Norm,
    ) -> FloatTensor<B> {
        let shape = x.shape();
        let y = B::float_mul(whitened::<B>(x, moments, norm.epsilon), rows::<B>(gamma));
        clamp::<B>(B::float_reshape(B::float_add(y, rows::<B>(beta)), shape), norm.clamp)
    }

    /// The gradient that the clamp behind a batch norm lets through.
    fn passed<B: Backend>(
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
        gamma: FloatTensor<B>,
        beta: FloatTensor<B>,
        moments: FloatTensor<B>,
        norm: Norm,
    ) -> FloatTensor<B> {
        match norm.clamp {
            Clamp::NONE => grad,
            clamp => clamp_backward::<B>(normalize::<B>(x, gamma, beta, moments, norm), grad, clamp),
        }
    }

    pub(in crate::train) fn normalize_sums<B: Backend>(
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
        gamma: FloatTensor<B>,
        beta: FloatTensor<B>,
        moments: FloatTensor<B>,
        norm: Norm,
    ) -> FloatTensor<B> {
        let grad = rows::<B>(passed::<B>(x.clone(), grad, gamma, beta, moments.clone(), norm));
        let gamma = B::float_mul(grad.clone(), whitened::<B>(x, moments, norm.epsilon));
        B::float_cat(vec![B::float_sum_dim(gamma, 0), B::float_sum_dim(grad, 0)], 0)
    }

    pub(in crate::train) fn normalize_x_backward<B: Backend>(
        x: FloatTensor<B>,
        grad: FloatTensor<B>,
        gamma: FloatTensor<B>,
        beta: FloatTensor<B>,
        moments: FloatTensor<B>,
        sums: FloatTensor<B>,
        norm: Norm,
    ) -> FloatTensor<B> {
        let (shape, epsilon) = (x.shape(), norm.epsilon);
        let grad = passed::<B>(x.clone(), grad, gamma.clone(), beta, moments.clone(), norm);
        let m = shape.num_elements() as f32 / last(&x) as f32;
        let scale = B::float_mul(rows::<B>(gamma), inverse::<B>(moments.clone(), epsilon));
        let sums = B::float_div_scalar(sums, m.into());
        let along = B::float_mul(whitened::<B>(x, moments, epsilon), row::<B>(sums.clone(), 0));
        let rest = B::float_sub(B::float_sub(rows::<B>(grad), row::<B>(sums, 1)), along);
        B::float_reshape(B::float_mul(rest, scale), shape)
    }
}
