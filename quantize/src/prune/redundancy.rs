//! How much each channel would be missed, from calibration inputs alone: the order in which channels go when layers are pruned without training.
//!
//! A layer that reads channels has the outputs `W x + b`. Without some columns `S` of `x`, the best that is left is another `W` for the
//! others, and the mean squared error that remains is known before anything is fitted (Hassibi, Stork 1993, for blocks):
//!
//! `E(S) = tr(W_S (H^-1_SS)^-1 W_S^T)`,  `W <- W - W_S (H^-1_SS)^-1 H^-1_S,:`,
//!
//! `H` the covariance of `x`; its mean goes into `b`. So a channel that others can stand in for costs little, however large its
//! filters are. The channel of the least error goes first, then `W` and `H^-1` are those of what is left, until none is. Errors count as shares
//! of the variance of what the layer computes, summed over all layers that read the channel.

use super::channels::{Channels, Reading, reading};
use super::groups::{Groups, Kind, fan_in};
use crate::graph::{Graph, TensorId, eval};
use crate::least_squares::{Moments, cholesky, gather, matrix, positions, substitute, weights};
use ndarray::{Array2, ArrayD, Axis};
use rayon::prelude::*;

/// Rows of a layer's covariance, spread evenly over samples and positions.
const ROWS: usize = 20_000;

/// Ridge as a share of the mean variance of a column.
const RIDGE: f64 = 1e-3;

/// Most columns of a layer that is looked at: its covariance is inverted.
const COLUMNS: usize = 1600;

/// Parts that samples are divided into; sums are joined in order.
const PARTS: usize = 8;

/// A layer that mixes channels.
#[derive(Clone)]
struct Reader {
    /// Index of the node.
    node: usize,
    /// By column of the weights: the class of its channel.
    classes: Vec<usize>,
    /// `W`, a row for every filter.
    weights: Array2<f64>,
    /// `H^-1`.
    inverse: Array2<f64>,
    /// Of the outputs, over all filters.
    variance: f64,
}

impl Reader {
    /// The layers that read a class of some group.
    fn all(graph: &Graph, channels: &Channels, is_group: &[bool]) -> Vec<Reader> {
        let of_node = |node: usize| {
            let op = &graph.nodes[node].op;
            if reading(op) != Reading::Mixed {
                return None;
            }
            let (input, inputs) = (graph.nodes[node].inputs[0], fan_in(op));
            let weights = matrix(op, 0..weights(op).map_or(0, |(_, bias)| bias.len()));
            let of_channel = &channels.classes[input.0];
            if of_channel.len() != inputs || weights.ncols() > COLUMNS || !of_channel.iter().any(|&c| is_group[c]) {
                return None;
            }
            let classes = (0..weights.ncols()).map(|column| of_channel[column % inputs]).collect();
            Some(Reader { node, classes, weights, inverse: Array2::zeros((0, 0)), variance: 0.0 })
        };
        (0..graph.nodes.len()).filter_map(of_node).collect()
    }

    /// Takes the covariance of the columns; false if it says nothing.
    fn learn(&mut self, moments: &Moments) -> bool {
        let mut h = moments.covariance();
        self.variance = (self.weights.dot(&h) * &self.weights).sum();
        let damp = RIDGE * h.diag().sum() / h.nrows().max(1) as f64;
        h.diag_mut().iter_mut().for_each(|v| *v += damp);
        if !(self.variance > 0.0 && self.variance.is_finite() && damp > 0.0) || cholesky(&mut h).is_none() {
            return false;
        }
        let unit = |i: usize| {
            let mut column = vec![0.0; h.nrows()];
            column[i] = 1.0;
            substitute(&h, &mut column);
            column
        };
        let columns: Vec<f64> = (0..h.nrows()).into_par_iter().flat_map_iter(unit).collect();
        let Ok(inverse) = Array2::from_shape_vec(h.raw_dim(), columns) else { return false };
        self.inverse = inverse;
        true
    }

    fn columns(&self, class: usize) -> Vec<usize> {
        (0..self.classes.len()).filter(|&k| self.classes[k] == class).collect()
    }

    /// What the channel's absence would cost, as a share of the outputs' variance; nothing if it is gone.
    fn error(&self, class: usize) -> f64 {
        let columns = self.columns(class);
        let mut block = self.inverse.select(Axis(0), &columns).select(Axis(1), &columns);
        let w = self.weights.select(Axis(1), &columns).reversed_axes();
        match cholesky(&mut block) {
            Some(()) => (solved(&block, w.clone()) * w).sum() / self.variance,
            None => 0.0,
        }
    }

    /// The others stand in for a channel.
    fn remove(&mut self, class: usize) {
        let columns = self.columns(class);
        let rows = self.inverse.select(Axis(0), &columns);
        let mut block = rows.select(Axis(1), &columns);
        if cholesky(&mut block).is_some() {
            let pull = solved(&block, rows.clone());
            self.weights = &self.weights - &self.weights.select(Axis(1), &columns).dot(&pull);
            self.inverse = &self.inverse - &rows.t().dot(&pull);
        }
        // Rounding leaves a little of what is gone.
        for k in columns {
            self.weights.column_mut(k).fill(0.0);
            self.inverse.row_mut(k).fill(0.0);
            self.inverse.column_mut(k).fill(0.0);
        }
    }
}

/// `(L L^T)^-1 right`.
fn solved(factor: &Array2<f64>, mut right: Array2<f64>) -> Array2<f64> {
    for mut column in right.columns_mut() {
        let mut values = column.to_vec();
        substitute(factor, &mut values);
        column.iter_mut().zip(values).for_each(|(c, v)| *c = v);
    }
    right
}

/// What every group of channels is worth: its place in the order in which its layer can do without, 0 to 1 as [`super::training::worth`]
/// has it; `None` for layers whose readers say nothing, and for groups that are no channels.
pub(super) fn worth(
    graph: &Graph,
    groups: &Groups,
    samples: &[Vec<ArrayD<f32>>],
) -> Result<Vec<Option<f64>>, eval::EvalError> {
    let mut worth = vec![None; groups.len()];
    if !matches!(groups.kind, Kind::Filter | Kind::Channel) || samples.is_empty() {
        return Ok(worth);
    }
    let channels = Channels::of(graph);
    let classes = groups.classes(graph, &channels);
    let mut is_group = vec![false; channels.fixed.len()];
    classes.iter().flatten().for_each(|&class| is_group[class] = true);
    let mut readers = Reader::all(graph, &channels, &is_group);
    let moments = moments(graph, &readers, samples)?;
    let mut moments = moments.iter();
    readers.retain_mut(|reader| moments.next().is_some_and(|moments| reader.learn(moments)));
    let order = |layer: usize| {
        let members: Vec<usize> = (0..groups.len()).filter(|&j| groups.layer[j] == layer).collect();
        let own: Option<Vec<usize>> = members.iter().map(|&j| classes[j]).collect();
        (members, in_order(&readers, &own.unwrap_or_default()))
    };
    let orders: Vec<(Vec<usize>, Vec<usize>)> = (0..groups.layers.len()).into_par_iter().map(order).collect();
    for (members, order) in orders {
        for (place, at) in order.into_iter().enumerate() {
            worth[members[at]] = Some((place + 1) as f64 / members.len() as f64);
        }
    }
    Ok(worth)
}

/// Places in `classes` in the order in which they go; none if some class has no reader.
fn in_order(readers: &[Reader], classes: &[usize]) -> Vec<usize> {
    let reads = |reader: &Reader| classes.iter().any(|class| reader.classes.contains(class));
    let mut readers: Vec<Reader> = readers.iter().filter(|r| reads(r)).cloned().collect();
    let is_read = |class: &usize| readers.iter().any(|r| r.classes.contains(class));
    if !classes.iter().all(is_read) {
        return Vec::new();
    }
    let mut left: Vec<usize> = (0..classes.len()).collect();
    let mut order = Vec::new();
    while !left.is_empty() {
        let error = |&at: &usize| readers.iter().map(|r| r.error(classes[at])).sum::<f64>();
        let errors: Vec<f64> = left.iter().map(error).collect();
        let least = (0..left.len()).min_by(|&a, &b| errors[a].total_cmp(&errors[b])).unwrap_or(0);
        let at = left.remove(least);
        readers.iter_mut().for_each(|r| r.remove(classes[at]));
        order.push(at);
    }
    order
}

/// Moments of every reader's columns.
fn moments(graph: &Graph, readers: &[Reader], samples: &[Vec<ArrayD<f32>>]) -> Result<Vec<Moments>, eval::EvalError> {
    let rows = (ROWS / samples.len()).max(1);
    let empty = || -> Vec<Moments> { readers.iter().map(|r| Moments::new(r.classes.len())).collect() };
    let add = |sums: &mut Vec<Moments>, i: usize| -> Result<(), eval::EvalError> {
        let mut visit = |tensor: TensorId, value: &ArrayD<f32>| {
            for (reader, sums) in readers.iter().zip(sums.iter_mut()) {
                let node = &graph.nodes[reader.node];
                if node.inputs[0] == tensor {
                    let out = graph.shape(node.output);
                    sums.add(&gather(&node.op, value, out, 0, &positions(out, i, rows)));
                }
            }
        };
        eval::run_visiting(graph, &samples[i], &mut visit).map(|_| ())
    };
    let part = |p: usize| -> Result<Vec<Moments>, eval::EvalError> {
        let mut sums = empty();
        for i in samples.len() * p / PARTS..samples.len() * (p + 1) / PARTS {
            add(&mut sums, i)?;
        }
        Ok(sums)
    };
    let parts: Result<Vec<Vec<Moments>>, _> = (0..PARTS).into_par_iter().map(part).collect();
    let mut all = empty();
    for part in parts? {
        all.iter_mut().zip(&part).for_each(|(all, part)| all.join(part));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Clamp, Op, Window};
    use crate::prune::select::Target;
    use crate::prune::training::prune_post_training;
    use crate::random::Random;
    use ndarray::IxDyn;

    fn random(shape: [usize; 2], random: &mut Random) -> Array2<f64> {
        Array2::from_shape_simple_fn(shape, || f64::from(random.normal()))
    }

    /// `tr(W_S (H_SS - H_SR H_RR^-1 H_RS) W_S^T)`: the error of the best other weights for the columns `rest`.
    fn least_error(h: &Array2<f64>, w: &Array2<f64>, gone: &[usize], rest: &[usize]) -> f64 {
        let part = |rows: &[usize], cols: &[usize]| h.select(Axis(0), rows).select(Axis(1), cols);
        let mut factor = part(rest, rest);
        cholesky(&mut factor).unwrap();
        let left = part(gone, gone) - part(gone, rest).dot(&solved(&factor, part(rest, gone)));
        let w = w.select(Axis(1), gone);
        (w.dot(&left) * &w).sum()
    }

    #[test]
    fn errors_are_those_of_the_best_other_weights() {
        let mut r = Random::new(5, 0);
        let mixed = random([12, 12], &mut r);
        let rows = random([300, 12], &mut r).dot(&mixed);
        let mut moments = Moments::new(12);
        moments.add(&rows);
        let weights = random([5, 12], &mut r);
        // Channels of three columns each, as a kernel of three taps has them.
        let classes = (0..12).map(|k| k % 4).collect();
        let mut reader =
            Reader { node: 0, classes, weights: weights.clone(), inverse: Array2::zeros((0, 0)), variance: 0.0 };
        assert!(reader.learn(&moments));
        let mut h = moments.covariance();
        let damp = RIDGE * h.diag().sum() / 12.0;
        h.diag_mut().iter_mut().for_each(|v| *v += damp);
        let of = |classes: &[usize]| (0..12).filter(|k| classes.contains(&(k % 4))).collect::<Vec<usize>>();
        let one = least_error(&h, &weights, &of(&[2]), &of(&[0, 1, 3]));
        assert!((reader.error(2) * reader.variance - one).abs() < 1e-6 * one);
        reader.remove(2);
        assert_eq!(reader.error(2), 0.0);
        let both = least_error(&h, &weights, &of(&[1, 2]), &of(&[0, 3]));
        let more = reader.error(1) * reader.variance;
        assert!((one + more - both).abs() < 1e-6 * both, "{one} and {more} for {both}");
    }

    /// Channels that repeat others go first, however large their filters are, and nothing is lost.
    #[test]
    fn repetitions_go_without_loss() {
        let mut r = Random::new(6, 0);
        let mut g = Graph::default();
        let x = g.add_input("x", &[1, 6, 6, 2]);
        let mut filters: Vec<f32> = (0..4 * 18).map(|_| r.normal()).collect();
        filters.extend(filters.clone().iter().map(|w| 3.0 * w));
        let window = Window { kernel: [3, 3], stride: [1, 1], dilation: [1, 1], pad: [1; 4] };
        let weight = ArrayD::from_shape_vec(IxDyn(&[8, 3, 3, 2]), filters).unwrap();
        let op = Op::Conv2d { window, groups: 1, weight, bias: vec![0.0; 8], clamp: Clamp::RELU };
        let y = g.push("first", op, &[x]).unwrap();
        let weight = ArrayD::from_shape_simple_fn(IxDyn(&[3, 3, 3, 8]), || r.normal());
        let op = Op::Conv2d { window, groups: 1, weight, bias: vec![0.0; 3], clamp: Clamp::NONE };
        let y = g.push("second", op, &[y]).unwrap();
        g.add_output("y", y);
        let mut sample = || vec![ArrayD::from_shape_simple_fn(IxDyn(&[1, 6, 6, 2]), || r.normal())];
        let samples: Vec<Vec<ArrayD<f32>>> = (0..60).map(|_| sample()).collect();
        let target = Target::PerLayer(0.5);
        let pruned = prune_post_training(&g, Kind::Filter, target, &samples, &mut |_, _| ()).unwrap();
        assert_eq!(pruned.layers[0].after, 4);
        let fresh = sample();
        let [a, b] = [&g, &pruned.graph].map(|g| eval::run(g, &fresh).unwrap().remove(0));
        let square = |x: &ArrayD<f32>| x.iter().map(|v| v * v).sum::<f32>();
        let lost = square(&(&a - &b)) / square(&a);
        assert!(lost < 1e-4, "{lost} of the output's energy are lost");
    }
}
