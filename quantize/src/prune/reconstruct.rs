//! Post-training pruning without training data: layers are fitted anew, one after another, to what the original network
//! computed.
//!
//! A pruned graph has zeros where weights are to vanish. For every layer with weights, from the inputs on, the least
//! squares problem
//!
//! `min sum |W x + b - (W0 x0 + b0)|^2 + ridge |W - W_pruned|^2`
//!
//! is solved over rows of calibration inputs: `x` as the pruned network, already fitted in front, gives it to the
//! layer, `x0` as the original does. Only weights that are not zero move, and filters that are zero stay zero. The
//! ridge pulls towards the weights that were there, so that a layer that nothing was taken from, behind layers that
//! nothing was taken from, stays as it is. Filters with the same support share one Cholesky factor.
//!
//! This is no substitute for training: it repairs what a linear map of each layer's inputs can repair.

use crate::graph::{Graph, Node, Op, eval};
use crate::least_squares::{Moments, cholesky, gather, groups, matrix, positions, substitute, weights};
use ndarray::{Array1, Array2, ArrayD, Axis};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// How much is solved, and how cautiously.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Rows of a layer's least squares problem, spread evenly over samples and positions.
    pub rows: usize,
    /// Ridge as a share of the mean square of the layer's inputs around their mean; more for few samples.
    pub ridge: f64,
}

impl Default for Options {
    fn default() -> Self {
        Options { rows: 20_000, ridge: 1e-3 }
    }
}

/// A fitted network.
#[derive(Clone, Debug)]
pub struct Reconstruction {
    /// The pruned graph with new weights at the same places.
    pub graph: Graph,
    /// Every layer with weights, in order.
    pub layers: Vec<Fit>,
}

/// How far the filters that a layer still has were from the original's, on its rows.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Fit {
    /// Name of the layer.
    pub layer: String,
    /// Mean squared error before its fit, as a share of the variance of the original's outputs.
    pub before: f64,
    /// The same after it.
    pub after: f64,
}

/// Why a network cannot be fitted.
#[derive(Debug, thiserror::Error)]
pub enum ReconstructError {
    /// Not a masked copy.
    #[error(
        "reconstruction: node {node} differs between the original and the pruned graph; mask weights, remove them afterwards"
    )]
    Topology {
        /// Name of the first node that differs.
        node: String,
    },
    /// No input.
    #[error("reconstruction: there are no calibration samples")]
    Empty,
    /// The input does not fit.
    #[error("reconstruction: {0}")]
    Eval(#[from] eval::EvalError),
    /// Something overflowed.
    #[error("reconstruction: layer '{layer}' has no finite solution; check the calibration inputs and raise the ridge")]
    NotFinite {
        /// Name of the layer.
        layer: String,
    },
    /// The caller wanted no more.
    #[error("interrupted")]
    Interrupted,
}

/// Bytes of activations that are held at once; fewer samples are used where they would not fit.
const HELD: usize = 256 << 20;

/// Bytes of the sums that are joined in order.
const SUMS: usize = 256 << 20;

/// Most parts that samples are divided into.
const PARTS: usize = 16;

/// Ridge against what rounding leaves of the variance of constant inputs, as a share of their mean square.
const ROUNDING: f64 = 1e-10;

/// Fits `pruned`, a copy of the simplified graph `original` with zeros in its weights, on calibration inputs in graph
/// axes. `progress` is called with the layers done and their number, and may end the work.
pub fn reconstruct(
    original: &Graph,
    pruned: &Graph,
    samples: &[Vec<ArrayD<f32>>],
    options: &Options,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Reconstruction, ReconstructError> {
    reconstruct_then(original, pruned, samples, options, progress, &mut |_, _| None)
}

/// What a layer is fitted to, for one group of filters.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Covariance of the inputs that the pruned network gives.
    pub covariance: Array2<f64>,
    /// Their mean.
    pub inputs: Array1<f64>,
    /// Mean of the outputs that the original gives, before the clamp.
    pub targets: Array1<f64>,
}

/// As [`reconstruct`]; `then` gets every layer after its fit and what it was fitted to, a group after another (none where a group lacks inputs), and may
/// put another operator in its place, for which layers behind it make up.
pub fn reconstruct_then(
    original: &Graph,
    pruned: &Graph,
    samples: &[Vec<ArrayD<f32>>],
    options: &Options,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    then: &mut dyn FnMut(&Node, Option<Vec<Rows>>) -> Option<Op>,
) -> Result<Reconstruction, ReconstructError> {
    check(original, pruned)?;
    let last_use = last_uses(original);
    let mut graph = pruned.clone();
    let mut states = begin(original, samples, &last_use)?;
    let layers = graph.nodes.iter().filter(|n| weights(&n.op).is_some()).count();
    let mut fits = Vec::new();
    for i in 0..graph.nodes.len() {
        if weights(&graph.nodes[i].op).is_some() {
            let layer = Layer { graph: &graph, original: &original.nodes[i].op, node: i };
            let (op, fit, rows) = layer.fit(&states, options)?;
            graph.nodes[i].op = op;
            if let Some(op) = then(&graph.nodes[i], rows) {
                graph.nodes[i].op = op;
            }
            fits.push(fit);
            if progress(fits.len(), layers).is_break() {
                return Err(ReconstructError::Interrupted);
            }
        }
        states.par_iter_mut().for_each(|state| state.step(original, &graph, i, &last_use));
    }
    Ok(Reconstruction { graph, layers: fits })
}

fn check(original: &Graph, pruned: &Graph) -> Result<(), ReconstructError> {
    let shape = |op| weights(op).map(|(weight, _)| weight.shape());
    for (a, b) in original.nodes.iter().zip(&pruned.nodes) {
        let is_same = a.op.name() == b.op.name() && shape(&a.op) == shape(&b.op);
        if !is_same || (&a.inputs, a.output) != (&b.inputs, b.output) {
            return Err(ReconstructError::Topology { node: format!("'{}'", a.name) });
        }
    }
    let (a, b) = (&original.nodes, &pruned.nodes);
    match a.len() == b.len() && original.tensors.len() == pruned.tensors.len() {
        true => Ok(()),
        false => Err(ReconstructError::Topology { node: format!("number {}", a.len().min(b.len())) }),
    }
}

/// The last node that reads a tensor, by tensor.
fn last_uses(graph: &Graph) -> Vec<Option<usize>> {
    let mut last = vec![None; graph.tensors.len()];
    graph.nodes.iter().enumerate().for_each(|(i, n)| n.inputs.iter().for_each(|id| last[id.0] = Some(i)));
    last
}

/// Live activations of a sample, by tensor, in the original and in the pruned network.
struct State {
    original: Vec<Option<ArrayD<f32>>>,
    pruned: Vec<Option<ArrayD<f32>>>,
}

/// As many samples as can be held, spread evenly, with their inputs.
fn begin(
    graph: &Graph,
    samples: &[Vec<ArrayD<f32>>],
    last_use: &[Option<usize>],
) -> Result<Vec<State>, ReconstructError> {
    if samples.is_empty() {
        return Err(ReconstructError::Empty);
    }
    let count = (HELD / held(graph, last_use).max(1)).clamp(1, samples.len());
    let state = |i: usize| {
        let sample = &samples[i * samples.len() / count];
        let mut values = vec![None; graph.tensors.len()];
        if sample.len() != graph.inputs.len() {
            return Err(eval::EvalError::Count { expected: graph.inputs.len(), given: sample.len() });
        }
        for (port, value) in graph.inputs.iter().zip(sample) {
            let (expected, given) = (graph.shape(port.tensor).to_vec(), value.shape().to_vec());
            if expected != given {
                return Err(eval::EvalError::Shape { name: port.name.clone(), expected, given });
            }
            values[port.tensor.0] = Some(value.as_standard_layout().into_owned());
        }
        Ok(State { original: values.clone(), pruned: values })
    };
    Ok((0..count).map(state).collect::<Result<_, _>>()?)
}

/// Most bytes of a sample that are alive at once, in both networks.
fn held(graph: &Graph, last_use: &[Option<usize>]) -> usize {
    let bytes = |id: usize| 2 * size_of::<f32>() * graph.tensors[id].shape.iter().product::<usize>();
    let mut now: usize = graph.inputs.iter().map(|p| bytes(p.tensor.0)).sum();
    let mut most = now;
    for (i, node) in graph.nodes.iter().enumerate() {
        now += bytes(node.output.0);
        most = most.max(now);
        let mut ends: Vec<usize> = node.inputs.iter().map(|id| id.0).filter(|&id| last_use[id] == Some(i)).collect();
        ends.dedup();
        now -= ends.iter().map(|&id| bytes(id)).sum::<usize>().min(now);
    }
    most
}

impl State {
    /// Runs node `i` in both networks and drops what nothing reads any more.
    fn step(&mut self, original: &Graph, pruned: &Graph, i: usize, last_use: &[Option<usize>]) {
        for (graph, values) in [(original, &mut self.original), (pruned, &mut self.pruned)] {
            let node = &graph.nodes[i];
            let args: Vec<&ArrayD<f32>> = node.inputs.iter().filter_map(|id| values[id.0].as_ref()).collect();
            let output = eval::apply(&node.op, &args, graph.shape(node.output));
            let is_read = last_use[node.output.0].is_some();
            node.inputs.iter().filter(|id| last_use[id.0] == Some(i)).for_each(|id| values[id.0] = None);
            values[node.output.0] = is_read.then_some(output);
        }
    }
}

/// A layer to be fitted.
struct Layer<'a> {
    graph: &'a Graph,
    original: &'a Op,
    node: usize,
}

impl Layer<'_> {
    /// The operator with new weights.
    fn fit(&self, states: &[State], options: &Options) -> Result<(Op, Fit, Option<Vec<Rows>>), ReconstructError> {
        let node = &self.graph.nodes[self.node];
        let mut op = node.op.clone();
        let groups = groups(&op);
        let rows = (options.rows / states.len()).max(1);
        let mut total = Errors::default();
        let mut all = Vec::new();
        for group in 0..groups {
            let sums = self.sums(states, group, rows);
            if sums.x.gram.iter().chain(&sums.moment).any(|v| !v.is_finite()) {
                return Err(ReconstructError::NotFinite { layer: node.name.clone() });
            }
            let changes = self.solve(&sums, group, options.ridge);
            let changes = changes.ok_or_else(|| ReconstructError::NotFinite { layer: node.name.clone() })?;
            sums.count_errors(&changes, &mut total);
            all.push(sums.rows(&op));
            write(&mut op, group, &sums.columns, &changes);
        }
        let share = |e: f64| e / total.variance.max(f64::MIN_POSITIVE);
        let fit = Fit { layer: node.name.clone(), before: share(total.before), after: share(total.after) };
        Ok((op, fit, all.into_iter().collect()))
    }

    /// Sums over all samples, in parts that are joined in order.
    fn sums(&self, states: &[State], group: usize, rows: usize) -> Sums {
        let empty = || Sums::new(self.columns(group), self.filters(group).len());
        let bytes = size_of::<f64>() * empty().columns.len().pow(2);
        let parts = (SUMS / bytes.max(1)).clamp(1, PARTS);
        let chunk = states.len().div_ceil(parts);
        let part = |(p, part): (usize, &[State])| {
            let mut sums = empty();
            part.iter().enumerate().for_each(|(i, state)| self.add(&mut sums, state, p * chunk + i, group, rows));
            sums
        };
        let parts: Vec<Sums> = states.par_chunks(chunk).enumerate().map(part).collect();
        parts.into_iter().reduce(Sums::join).unwrap_or_else(empty)
    }

    /// The filters of a group.
    fn filters(&self, group: usize) -> std::ops::Range<usize> {
        let op = &self.graph.nodes[self.node].op;
        let own = weights(op).map_or(0, |(_, bias)| bias.len()) / groups(op);
        group * own..(group + 1) * own
    }

    /// Weights of a filter that some filter of the group has.
    fn columns(&self, group: usize) -> Vec<usize> {
        let filters = matrix(&self.graph.nodes[self.node].op, self.filters(group));
        (0..filters.ncols()).filter(|&k| filters.column(k).iter().any(|&w| w != 0.0)).collect()
    }

    /// Adds the rows of one sample.
    fn add(&self, sums: &mut Sums, state: &State, sample: usize, group: usize, rows: usize) {
        let node = &self.graph.nodes[self.node];
        let id = node.inputs[0].0;
        let (Some(x0), Some(x)) = (&state.original[id], &state.pruned[id]) else { return };
        let out = self.graph.shape(node.output);
        let at = positions(out, sample, rows);
        let filters = self.filters(group);
        let (x0, x) = (gather(&node.op, x0, out, group, &at), gather(&node.op, x, out, group, &at));
        let target = affine(self.original, &x0, filters.clone());
        let residual = &target - &affine(&node.op, &x, filters);
        sums.add(&x.select(Axis(1), &sums.columns), &target, &residual);
    }

    /// Changes of weights and of the bias, one column for every filter; none if the ridge is too small.
    fn solve(&self, sums: &Sums, group: usize, ridge: f64) -> Option<Changes> {
        let own = matrix(&self.graph.nodes[self.node].op, self.filters(group));
        let (gram, moment) = sums.centred();
        let mut supports: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
        for filter in 0..own.nrows() {
            let is_there = |&at: &usize| own[[filter, sums.columns[at]]] != 0.0;
            supports.entry((0..sums.columns.len()).filter(is_there).collect()).or_default().push(filter);
        }
        supports.remove(&Vec::new());
        let damp = (ridge * gram.diag().sum() + ROUNDING * sums.x.gram.diag().sum()) / sums.columns.len().max(1) as f64;
        let solved: Option<Vec<_>> = supports
            .into_iter()
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|(support, filters)| {
                let solutions = solve_support(&gram, &moment, damp, &support, &filters)?;
                Some((support, filters, solutions))
            })
            .collect();
        let mut changes = Changes::new(sums);
        for (support, filters, solutions) in solved? {
            for (filter, solution) in filters.into_iter().zip(solutions) {
                support.iter().zip(solution).for_each(|(&k, v)| changes.weights[[k, filter]] = v);
                let shift = changes.weights.column(filter).dot(&sums.x.mean(&sums.x.sum));
                changes.live.push(filter);
                changes.biases[filter] = sums.residuals[filter] / sums.x.rows.max(1.0) - shift;
            }
        }
        let is_finite = changes.weights.iter().chain(&changes.biases).all(|v| v.is_finite());
        is_finite.then_some(changes)
    }
}

/// Changes of the weights in `support`, for every filter that has it; none if the matrix is singular. Nothing changes
/// where no input varies.
fn solve_support(
    gram: &Array2<f64>,
    moment: &Array2<f64>,
    damp: f64,
    support: &[usize],
    filters: &[usize],
) -> Option<Vec<Vec<f64>>> {
    let rhs = |filter: &usize| support.iter().map(|&k| moment[[k, *filter]]).collect::<Vec<f64>>();
    let mut solutions: Vec<Vec<f64>> = filters.iter().map(rhs).collect();
    let mut factor = gram.select(Axis(0), support).select(Axis(1), support);
    if factor.diag().iter().all(|&v| v <= 0.0) {
        return Some(vec![vec![0.0; support.len()]; filters.len()]);
    }
    factor.diag_mut().iter_mut().for_each(|v| *v += damp);
    cholesky(&mut factor)?;
    solutions.par_iter_mut().for_each(|rhs| substitute(&factor, rhs));
    Some(solutions)
}

/// What is added to weights `[column, filter]` and to biases.
struct Changes {
    weights: Array2<f64>,
    biases: Array1<f64>,
    /// Filters that are there.
    live: Vec<usize>,
}

impl Changes {
    fn new(sums: &Sums) -> Changes {
        Changes {
            weights: Array2::zeros(sums.moment.raw_dim()),
            biases: Array1::zeros(sums.moment.ncols()),
            live: Vec::new(),
        }
    }
}

/// Squared errors of a layer.
#[derive(Default)]
struct Errors {
    before: f64,
    after: f64,
    variance: f64,
}

/// Sums over rows: inputs `x` (the columns that are fitted), outputs `y` of the original, residuals `r` of the pruned
/// layer.
struct Sums {
    columns: Vec<usize>,
    x: Moments,
    moment: Array2<f64>,
    residuals: Array1<f64>,
    residual_squares: Array1<f64>,
    targets: Array1<f64>,
    target_squares: Array1<f64>,
}

impl Sums {
    fn new(columns: Vec<usize>, filters: usize) -> Sums {
        let k = columns.len();
        let zeros = || Array1::zeros(filters);
        Sums {
            columns,
            x: Moments::new(k),
            moment: Array2::zeros((k, filters)),
            residuals: zeros(),
            residual_squares: zeros(),
            targets: zeros(),
            target_squares: zeros(),
        }
    }

    fn add(&mut self, x: &Array2<f64>, target: &Array2<f64>, residual: &Array2<f64>) {
        self.x.add(x);
        self.moment += &x.t().dot(residual);
        self.residuals += &residual.sum_axis(Axis(0));
        self.residual_squares += &(residual * residual).sum_axis(Axis(0));
        self.targets += &target.sum_axis(Axis(0));
        self.target_squares += &(target * target).sum_axis(Axis(0));
    }

    fn join(mut self, other: Sums) -> Sums {
        self.x.join(&other.x);
        self.moment += &other.moment;
        self.residuals += &other.residuals;
        self.residual_squares += &other.residual_squares;
        self.targets += &other.targets;
        self.target_squares += &other.target_squares;
        self
    }

    /// None where the layer's filters lack inputs.
    fn rows(&self, op: &Op) -> Option<Rows> {
        let k = weights(op).map_or(0, |(weight, bias)| weight.len() / bias.len().max(1));
        let (inputs, targets) = (self.x.mean(&self.x.sum), self.x.mean(&self.targets));
        (self.columns.len() == k).then(|| Rows { covariance: self.x.covariance(), inputs, targets })
    }

    /// Gram matrix and moments around the means: the bias is free.
    fn centred(&self) -> (Array2<f64>, Array2<f64>) {
        let mean = self.x.mean(&self.x.sum).insert_axis(Axis(1));
        let moment = &self.moment - &mean.dot(&self.residuals.view().insert_axis(Axis(0)));
        (self.x.centred(), moment)
    }

    /// Errors without the changes and with them, of the filters that are there.
    fn count_errors(&self, changes: &Changes, total: &mut Errors) {
        for &f in &changes.live {
            let (w, b) = (changes.weights.column(f), changes.biases[f]);
            let square = w.dot(&self.x.gram.dot(&w)) + 2.0 * b * w.dot(&self.x.sum) + b * b * self.x.rows;
            let cross = w.dot(&self.moment.column(f)) + b * self.residuals[f];
            total.before += self.residual_squares[f];
            total.after += (self.residual_squares[f] - 2.0 * cross + square).max(0.0);
            total.variance += self.target_squares[f] - self.targets[f] * self.targets[f] / self.x.rows.max(1.0);
        }
    }
}

/// Rows times filters, plus biases.
fn affine(op: &Op, x: &Array2<f64>, filters: std::ops::Range<usize>) -> Array2<f64> {
    let bias = weights(op).map_or_else(Vec::new, |(_, bias)| bias[filters.clone()].to_vec());
    x.dot(&matrix(op, filters).t()) + &Array1::from_iter(bias.into_iter().map(f64::from))
}

/// Adds the changes of a group's filters.
fn write(op: &mut Op, group: usize, columns: &[usize], changes: &Changes) {
    let (Op::Conv2d { weight, bias, .. } | Op::ConvTranspose2d { weight, bias, .. } | Op::Linear { weight, bias, .. }) =
        op
    else {
        return;
    };
    let (k, count) = (weight.len() / bias.len().max(1), changes.biases.len());
    let Some(values) = weight.as_slice_mut() else { return };
    for (i, filter) in (group * count..).take(count).enumerate() {
        bias[filter] = (f64::from(bias[filter]) + changes.biases[i]) as f32;
        for (at, &column) in columns.iter().enumerate() {
            let own = &mut values[filter * k + column];
            *own = (f64::from(*own) + changes.weights[[at, i]]) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuit::random::Random;
    use crate::graph::{Clamp, TensorId, Window};
    use ndarray::IxDyn;

    fn array(random: &mut Random, shape: &[usize], scale: f32) -> ArrayD<f32> {
        ArrayD::from_shape_simple_fn(IxDyn(shape), || scale * random.normal())
    }

    fn window(kernel: usize, stride: usize, pad: usize) -> Window {
        Window { kernel: [kernel; 2], stride: [stride; 2], dilation: [1; 2], pad: [pad; 4] }
    }

    fn conv(random: &mut Random, [oc, kernel, ic]: [usize; 3], stride: usize, groups: usize) -> Op {
        let (fan, pad) = (kernel * kernel * ic / groups, kernel / 2);
        let weight = array(random, &[oc, kernel, kernel, ic / groups], (2.0 / fan as f32).sqrt());
        let bias = (0..oc).map(|_| 0.1 * random.normal()).collect();
        Op::Conv2d { window: window(kernel, stride, pad), groups, weight, bias, clamp: Clamp::RELU }
    }

    /// Convolutions of every kind, a transposed one and a linear layer.
    fn network(random: &mut Random) -> Graph {
        let mut graph = Graph::default();
        let mut at = graph.add_input("x", &[1, 12, 12, 3]);
        let push = |graph: &mut Graph, at: TensorId, op: Op| graph.push(format!("n{}", at.0), op, &[at]).unwrap();
        let convs =
            [([24, 3, 3], 1, 1), ([32, 3, 24], 2, 1), ([32, 3, 32], 1, 32), ([24, 1, 32], 1, 1), ([24, 3, 24], 1, 2)];
        for (shape, stride, groups) in convs {
            let op = conv(random, shape, stride, groups);
            at = push(&mut graph, at, op);
        }
        let (weight, bias) = (array(random, &[16, 2, 2, 24], 0.2), vec![0.05; 16]);
        let (window, clamp) = (window(2, 2, 0), Clamp::RELU);
        at = push(
            &mut graph,
            at,
            Op::ConvTranspose2d { window, output_padding: [0; 2], groups: 1, weight, bias, clamp },
        );
        at = push(&mut graph, at, Op::Mean { axes: vec![1, 2] });
        at = push(&mut graph, at, Op::Reshape { shape: vec![1, 16] });
        let (weight, bias) = (array(random, &[10, 16], 0.5), vec![0.0; 10]);
        at = push(&mut graph, at, Op::Linear { weight, bias, clamp: Clamp::NONE });
        graph.add_output("y", at);
        graph
    }

    /// Smooth images of different brightness.
    fn images(random: &mut Random, count: usize) -> Vec<Vec<ArrayD<f32>>> {
        let image = |random: &mut Random| {
            let wave: Vec<f32> = (0..12).map(|_| random.normal()).collect();
            ArrayD::from_shape_fn(IxDyn(&[1, 12, 12, 3]), |i| {
                let (y, x, c) = (i[1] as f32 / 4.0, i[2] as f32 / 4.0, i[3] * 4);
                wave[c] + (y * wave[c + 1] + x * wave[c + 2] + 3.0 * wave[c + 3]).sin()
            })
        };
        (0..count).map(|_| vec![image(random)]).collect()
    }

    /// Zeros in every filter of `node` whose norm is below the median, or in every other weight.
    fn mask(graph: &mut Graph, node: usize, is_structured: bool) {
        let filters = matrix(&graph.nodes[node].op, 0..weights(&graph.nodes[node].op).unwrap().1.len());
        let norms: Vec<f64> = filters.rows().into_iter().map(|row| row.dot(&row)).collect();
        let mut sorted = norms.clone();
        sorted.sort_by(f64::total_cmp);
        let Op::Conv2d { weight, bias, .. } = &mut graph.nodes[node].op else { return };
        let k = filters.ncols();
        for (i, w) in weight.iter_mut().enumerate() {
            let is_out =
                if is_structured { norms[i / k] < sorted[norms.len() / 2] } else { (i * 7 + i / k).is_multiple_of(3) };
            *w *= f32::from(u8::from(!is_out));
        }
        for (j, b) in bias.iter_mut().enumerate().filter(|_| is_structured) {
            *b *= f32::from(u8::from(norms[j] >= sorted[norms.len() / 2]));
        }
    }

    fn error(a: &Graph, b: &Graph, samples: &[Vec<ArrayD<f32>>]) -> f64 {
        let one = |s: &Vec<ArrayD<f32>>| {
            let (a, b) = (eval::run(a, s).unwrap(), eval::run(b, s).unwrap());
            (&a[0] - &b[0]).iter().map(|v| f64::from(v * v)).sum::<f64>()
        };
        samples.iter().map(one).sum::<f64>() / samples.len() as f64
    }

    fn zeros(graph: &Graph) -> Vec<bool> {
        graph.theta().iter().map(|v| *v == 0.0).collect()
    }

    #[test]
    fn a_fit_repairs_most_of_what_pruning_broke() {
        for is_structured in [true, false] {
            let mut random = Random::new(1, u64::from(is_structured));
            let original = network(&mut random);
            let (samples, held_out) = (images(&mut random, 100), images(&mut random, 50));
            let mut pruned = original.clone();
            [0, 1, 3, 4].iter().for_each(|&node| mask(&mut pruned, node, is_structured));
            let fitted =
                reconstruct(&original, &pruned, &samples, &Options::default(), &mut |_, _| ControlFlow::Continue(()))
                    .unwrap();
            let (before, after) = (error(&original, &pruned, &held_out), error(&original, &fitted.graph, &held_out));
            assert!(after < 0.1 * before, "structured {is_structured}: {before} became {after}");
            let weights: Vec<bool> = zeros(&fitted.graph);
            assert!(
                zeros(&pruned).iter().zip(&weights).filter(|(p, f)| **p && !**f).count() <= 10,
                "zeros came to life"
            );
            assert!(fitted.layers.iter().all(|l| l.after <= l.before * (1.0 + 1e-9)), "{:?}", fitted.layers);
            let again =
                reconstruct(&original, &pruned, &samples, &Options::default(), &mut |_, _| ControlFlow::Continue(()))
                    .unwrap();
            assert_eq!(again.graph.theta(), fitted.graph.theta());
        }
    }

    #[test]
    fn a_network_that_nothing_was_taken_from_stays() {
        let mut random = Random::new(2, 0);
        let (original, samples) = (network(&mut random), images(&mut random, 4));
        let mut calls = Vec::new();
        let options = Options { rows: 100, ridge: 1e-6 };
        let fitted = reconstruct(&original, &original, &samples, &options, &mut |n, of| {
            calls.push((n, of));
            ControlFlow::Continue(())
        })
        .unwrap();
        let fit = |layers: usize| {
            let mut progress =
                |n: usize, _: usize| if n < layers { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
            reconstruct(&original, &original, &samples, &options, &mut progress)
        };
        assert!(matches!(fit(1), Err(ReconstructError::Interrupted)) && fit(usize::MAX).is_ok());
        assert_eq!(fitted.graph.theta(), original.theta());
        assert_eq!(calls, [(1, 7), (2, 7), (3, 7), (4, 7), (5, 7), (6, 7), (7, 7)]);
        assert!(fitted.layers.iter().all(|l| l.before == 0.0 && l.after == 0.0));
    }

    #[test]
    fn rows_are_what_the_operators_multiply() {
        let mut random = Random::new(3, 0);
        let (graph, sample) = (network(&mut random), images(&mut random, 1).remove(0));
        let mut values = vec![None; graph.tensors.len()];
        eval::run_visiting(&graph, &sample, &mut |id, value| values[id.0] = Some(value.clone())).unwrap();
        for node in graph.nodes.iter().filter(|n| weights(&n.op).is_some()) {
            let (out, x) = (graph.shape(node.output), values[node.inputs[0].0].as_ref().unwrap());
            let (channels, expected) = (out[out.len() - 1], values[node.output.0].as_ref().unwrap());
            let own = channels / groups(&node.op);
            let all = positions(out, 3, usize::MAX);
            for group in 0..groups(&node.op) {
                let y = affine(&node.op, &gather(&node.op, x, out, group, &all), group * own..(group + 1) * own);
                for ((row, o), v) in y.indexed_iter() {
                    let expected = f64::from(expected.as_slice().unwrap()[all[row] * channels + group * own + o]);
                    let is_clamped = !matches!(&node.op, Op::Linear { .. }) && *v < 0.0;
                    assert!(
                        (v * f64::from(u8::from(!is_clamped)) - expected).abs() < 1e-4,
                        "{}: {v}, {expected}",
                        node.name
                    );
                }
            }
        }
    }

    #[test]
    fn a_factor_solves() {
        let mut random = Random::new(4, 0);
        let x = array(&mut random, &[40, 9], 1.0).into_dimensionality::<ndarray::Ix2>().unwrap().mapv(f64::from);
        let gram = x.t().dot(&x);
        let solution: Vec<f64> = (0..9).map(f64::from).collect();
        let mut rhs = gram.dot(&Array1::from_vec(solution.clone())).to_vec();
        let mut factor = gram;
        cholesky(&mut factor).unwrap();
        substitute(&factor, &mut rhs);
        assert!(rhs.iter().zip(&solution).all(|(a, b)| (a - b).abs() < 1e-10), "{rhs:?}");
        assert!(cholesky(&mut Array2::zeros((2, 2))).is_none());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut random = Random::new(5, 0);
        let (original, samples) = (network(&mut random), images(&mut random, 2));
        let fit = |pruned: &Graph, samples: &[Vec<ArrayD<f32>>]| {
            reconstruct(&original, pruned, samples, &Options::default(), &mut |_, _| ControlFlow::Continue(()))
                .map(|_| ())
                .unwrap_err()
                .to_string()
        };
        let mut shorter = original.clone();
        shorter.nodes.pop();
        assert!(fit(&shorter, &samples).contains("number 8"), "{}", fit(&shorter, &samples));
        assert!(fit(&original, &[]).contains("no calibration samples"));
        assert!(fit(&original, &[vec![]]).contains("1 inputs"));
        let mut infinite = samples.clone();
        infinite[0][0].fill(f32::INFINITY);
        assert!(fit(&original, &infinite).contains("no finite solution"));
    }
}
