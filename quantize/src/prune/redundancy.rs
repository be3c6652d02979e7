//! How much each group would be missed, from calibration inputs alone: the order in which channels, blocks and weights go when layers are pruned
//! without training.
//!
//! A layer that reads channels has the outputs `W x + b`. Without some columns `S` of `x`, the best that is left is another `W` for the
//! others, and the mean squared error that remains is known before anything is fitted (Hassibi, Stork 1993, for blocks):
//!
//! `E(S) = tr(W_S (H^-1_SS)^-1 W_S^T)`,  `W <- W - W_S (H^-1_SS)^-1 H^-1_S,:`,
//!
//! `H` the covariance of `x`; its mean goes into `b`. So a channel that others can stand in for costs little, however large its
//! filters are. The channel of the least error goes first, then `W` and `H^-1` are those of what is left, until none is. Errors count as shares
//! of the variance of what the layer computes, summed over all layers that read the channel.
//!
//! Blocks and single weights leave single filters, each with the same `H` (Frantar, Alistarh 2022, "Optimal Brain Compression"): every filter, or
//! the filters that share a block, has an order of its own, and the layer's follows from the errors.

use super::channels::{Channels, Reading, reading};
use super::groups::{Groups, Kind, fan_in, parameter_of};
use super::reconstruct::ReconstructError;
use super::training::{Parts, places};
use crate::graph::{Graph, Role, TensorId, eval};
use crate::least_squares::{Moments, cholesky, gather, groups as conv_groups, matrix, positions, substitute, weights};
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayD, Axis};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows of a layer's covariance, spread evenly over samples and positions.
const ROWS: usize = 20_000;

/// Ridge as a share of the mean variance of a column.
const RIDGE: f64 = 1e-3;

/// Most columns of a layer that is looked at: its covariance is inverted.
const COLUMNS: usize = 1600;

/// Most steps of a layer whose blocks or weights are looked at, filters times the cube of columns: about a minute.
const STEPS: f64 = 1e11;

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
        let Some((inverse, variance)) = learn(&self.weights, moments) else { return false };
        (self.inverse, self.variance) = (inverse, variance);
        true
    }

    fn columns(&self, class: usize) -> Vec<usize> {
        (0..self.classes.len()).filter(|&k| self.classes[k] == class).collect()
    }

    /// What the channel's absence would cost, as a share of the outputs' variance; nothing if it is gone.
    fn error(&self, class: usize) -> f64 {
        error(&self.weights, &self.inverse, &self.columns(class)) / self.variance
    }

    /// The others stand in for a channel.
    fn remove(&mut self, class: usize) {
        let columns = self.columns(class);
        remove(&mut self.weights, &mut self.inverse, &columns);
    }
}

/// `H^-1`, and the variance of the outputs over all filters; none where the inputs say nothing.
fn learn(weights: &Array2<f64>, moments: &Moments) -> Option<(Array2<f64>, f64)> {
    let mut h = moments.covariance();
    let variance = (weights.dot(&h) * weights).sum();
    let damp = RIDGE * h.diag().sum() / h.nrows().max(1) as f64;
    h.diag_mut().iter_mut().for_each(|v| *v += damp);
    if !(variance > 0.0 && variance.is_finite() && damp > 0.0) {
        return None;
    }
    cholesky(&mut h)?;
    let unit = |i: usize| {
        let mut column = vec![0.0; h.nrows()];
        column[i] = 1.0;
        substitute(&h, &mut column);
        column
    };
    let columns: Vec<f64> = (0..h.nrows()).into_par_iter().flat_map_iter(unit).collect();
    Some((Array2::from_shape_vec(h.raw_dim(), columns).ok()?, variance))
}

/// The mean squared error that the absence of some columns leaves; none of columns that are gone.
fn error(weights: &Array2<f64>, inverse: &Array2<f64>, columns: &[usize]) -> f64 {
    if let &[k] = columns {
        let pivot = inverse[[k, k]];
        return if pivot > 0.0 { weights.column(k).iter().map(|w| w * w).sum::<f64>() / pivot } else { 0.0 };
    }
    let mut block = inverse.select(Axis(0), columns).select(Axis(1), columns);
    let w = weights.select(Axis(1), columns).reversed_axes();
    match cholesky(&mut block) {
        Some(()) => (solved(&block, w.clone()) * w).sum(),
        None => 0.0,
    }
}

/// The other columns stand in for some.
fn remove(weights: &mut Array2<f64>, inverse: &mut Array2<f64>, columns: &[usize]) {
    let rows = inverse.select(Axis(0), columns);
    let mut block = rows.select(Axis(1), columns);
    if cholesky(&mut block).is_some() {
        let pull = solved(&block, rows.clone());
        let own = weights.select(Axis(1), columns);
        general_mat_mul(-1.0, &own, &pull, 1.0, weights);
        general_mat_mul(-1.0, &rows.t(), &pull, 1.0, inverse);
    }
    // Rounding leaves a little of what is gone.
    for &k in columns {
        weights.column_mut(k).fill(0.0);
        inverse.row_mut(k).fill(0.0);
        inverse.column_mut(k).fill(0.0);
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

/// What every group is worth. A block or a weight is worth the error that it adds when its turn comes, as a share of the variance of what its layer
/// computes, divided by what it saves. Errors of channels, which several layers read, are no measure between layers: they are worth their place in the order
/// in which their layer can do without, 0 to 1 as [`places`] has it. So is everything where samples do not tell about all
/// layers, and what they do not tell about goes by norms. It ends soon after `stop` is set.
pub(super) fn worth(
    graph: &Graph,
    groups: &Groups,
    samples: &[Vec<ArrayD<f32>>],
    savings: &[u64],
    stop: &AtomicBool,
    parts: Parts<'_>,
) -> Result<Vec<f64>, ReconstructError> {
    let by_norm = places(groups, &groups.norms(&graph.theta()));
    let errors = match groups.kind {
        Kind::Block { .. } | Kind::Weight if !samples.is_empty() => {
            errors_of_tiles(graph, groups, samples, stop, parts)?
        }
        Kind::Filter | Kind::Channel if !samples.is_empty() => {
            let known = worth_of_channels(graph, groups, samples, parts)?;
            return Ok(known.into_iter().zip(by_norm).map(|(known, by_norm)| known.unwrap_or(by_norm)).collect());
        }
        _ => return Ok(by_norm),
    };
    if let Some(errors) = errors.iter().copied().collect::<Option<Vec<f64>>>() {
        let each = |(e, &saved): (f64, &u64)| e / saved.max(1) as f64;
        return Ok(errors.into_iter().zip(savings).map(each).collect());
    }
    let known: Vec<f64> = errors.iter().map(|e| e.unwrap_or(0.0)).collect();
    let known = places(groups, &known);
    Ok(errors.iter().zip(known).zip(by_norm).map(|((e, known), norm)| e.map_or(norm, |_| known)).collect())
}

/// Places of channels; `None` for layers whose readers say nothing.
fn worth_of_channels(
    graph: &Graph,
    groups: &Groups,
    samples: &[Vec<ArrayD<f32>>],
    parts: Parts<'_>,
) -> Result<Vec<Option<f64>>, eval::EvalError> {
    let mut worth = vec![None; groups.len()];
    let channels = Channels::of(graph);
    let classes = groups.classes(graph, &channels);
    let mut is_group = vec![false; channels.fixed.len()];
    classes.iter().flatten().for_each(|&class| is_group[class] = true);
    let mut readers = Reader::all(graph, &channels, &is_group);
    let wanted: Vec<(usize, usize)> = readers.iter().map(|r| (r.node, 0)).collect();
    let moments = moments(graph, &wanted, samples)?;
    let mut moments = moments.iter();
    readers.retain_mut(|reader| moments.next().is_some_and(|moments| reader.learn(moments)));
    let order = |layer: usize| {
        let members: Vec<usize> = (0..groups.len()).filter(|&j| groups.layer[j] == layer).collect();
        let own: Option<Vec<usize>> = members.iter().map(|&j| classes[j]).collect();
        let order = in_order(&readers, &own.unwrap_or_default());
        parts("ordering", groups.layers.len());
        (members, order)
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

/// Tiles (blocks, single weights) of some filters, all of which are part of the same ones.
struct Filters {
    weights: Array2<f64>,
    /// Groups that are left, with their columns.
    tiles: Vec<(usize, Vec<usize>)>,
}

impl Filters {
    /// The groups in the order in which they go, with the error that each adds. An error that is below one before counts as that: it could not
    /// have gone earlier.
    fn in_order(mut self, mut inverse: Array2<f64>) -> Vec<(usize, f64)> {
        let mut order = Vec::with_capacity(self.tiles.len());
        let (mut least, mut left) = (0.0f64, self.tiles.iter().map(|(_, own)| own.len()).sum::<usize>());
        while !self.tiles.is_empty() {
            let errors = self.tiles.iter().map(|(_, own)| error(&self.weights, &inverse, own));
            let Some((at, found)) = errors.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)) else { break };
            let (group, own) = self.tiles.swap_remove(at);
            least = least.max(found);
            order.push((group, least));
            remove(&mut self.weights, &mut inverse, &own);
            left -= own.len();
            if 2 * left < inverse.nrows() {
                inverse = self.without_gaps(&inverse);
            }
        }
        order
    }

    /// Leaves out columns that are gone; the inverse without them.
    fn without_gaps(&mut self, inverse: &Array2<f64>) -> Array2<f64> {
        let mut kept: Vec<usize> = self.tiles.iter().flat_map(|(_, own)| own.iter().copied()).collect();
        kept.sort_unstable();
        let place = |k: &mut usize| *k = kept.partition_point(|&own| own < *k);
        self.tiles.iter_mut().for_each(|(_, own)| own.iter_mut().for_each(place));
        self.weights = self.weights.select(Axis(1), &kept);
        inverse.select(Axis(0), &kept).select(Axis(1), &kept)
    }
}

/// The error that each tile adds when its turn comes, as a share of the variance of what its layer computes; `None` for layers of which the samples say
/// nothing.
fn errors_of_tiles(
    graph: &Graph,
    groups: &Groups,
    samples: &[Vec<ArrayD<f32>>],
    stop: &AtomicBool,
    parts: Parts<'_>,
) -> Result<Vec<Option<f64>>, ReconstructError> {
    let parameters = graph.parameters();
    // By node and group of a convolution, then by the filters that a tile is part of.
    let mut layers: BTreeMap<(usize, usize), BTreeMap<Vec<usize>, Filters>> = BTreeMap::new();
    for j in 0..groups.len() {
        let Some(p) = groups.of(j).first().and_then(|&e| parameter_of(&parameters, e)) else { continue };
        let op = &graph.nodes[p.node].op;
        let Some((weight, bias)) = weights(op) else { continue };
        let (columns, per_group) = (weight.len() / bias.len().max(1), bias.len() / conv_groups(op));
        if p.role != Role::Weight || bias.len() as f64 * (columns as f64).powi(3) > STEPS {
            continue;
        }
        let at = |f: fn(usize, usize) -> usize| {
            let mut all: Vec<usize> = groups.of(j).iter().map(|&e| f(e - p.range.start, columns)).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        let (rows, own) = (at(|e, n| e / n), at(|e, n| e % n));
        let of_layer = layers.entry((p.node, rows[0] / per_group.max(1))).or_default();
        let filters = of_layer.entry(rows).or_insert_with_key(|rows| Filters {
            weights: matrix(op, rows[0]..rows[rows.len() - 1] + 1),
            tiles: Vec::new(),
        });
        filters.tiles.push((j, own));
    }
    let wanted: Vec<(usize, usize)> = layers.keys().copied().collect();
    let learnt = |(&(node, group), moments): (&(usize, usize), &Moments)| {
        let op = &graph.nodes[node].op;
        let own = weights(op).map_or(0, |(_, bias)| bias.len()) / conv_groups(op);
        learn(&matrix(op, group * own..(group + 1) * own), moments)
    };
    let learnt: Vec<_> = wanted.iter().zip(&moments(graph, &wanted, samples)?).map(learnt).collect();
    let mut variances = vec![0.0; graph.nodes.len()];
    wanted.iter().zip(&learnt).for_each(|(w, l)| variances[w.0] += l.as_ref().map_or(0.0, |l| l.1));
    let mut errors = vec![None; groups.len()];
    let all =
        layers.values().zip(&learnt).filter(|(_, learnt)| learnt.is_some()).map(|(filters, _)| filters.len()).sum();
    for (((node, _), filters), learnt) in layers.into_iter().zip(learnt) {
        let Some((inverse, _)) = learnt else { continue };
        let filters: Vec<Filters> = filters.into_values().collect();
        let order = |own: Filters| {
            let order = (!stop.load(Ordering::Relaxed)).then(|| own.in_order(inverse.clone()));
            parts("ordering", all);
            order
        };
        let orders: Option<Vec<Vec<(usize, f64)>>> = filters.into_par_iter().map(order).collect();
        let orders = orders.ok_or(ReconstructError::Interrupted)?;
        orders.into_iter().flatten().for_each(|(j, error)| errors[j] = Some(error / variances[node]));
    }
    Ok(errors)
}

/// Moments of the columns of layers, each a node and a group of its convolution.
fn moments(
    graph: &Graph,
    wanted: &[(usize, usize)],
    samples: &[Vec<ArrayD<f32>>],
) -> Result<Vec<Moments>, eval::EvalError> {
    let rows = (ROWS / samples.len()).max(1);
    let columns = |node: usize| weights(&graph.nodes[node].op).map_or(0, |(w, bias)| w.len() / bias.len().max(1));
    let empty = || -> Vec<Moments> { wanted.iter().map(|&(node, _)| Moments::new(columns(node))).collect() };
    let add = |sums: &mut Vec<Moments>, i: usize| -> Result<(), eval::EvalError> {
        let mut visit = |tensor: TensorId, value: &ArrayD<f32>| {
            for (&(node, group), sums) in wanted.iter().zip(sums.iter_mut()) {
                let node = &graph.nodes[node];
                if node.inputs[0] == tensor {
                    let out = graph.shape(node.output);
                    sums.add(&gather(&node.op, value, out, group, &positions(out, i, rows)));
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

    #[test]
    fn tiles_go_in_the_order_of_the_errors_that_they_leave() {
        let mut r = Random::new(7, 0);
        let mixed = random([12, 12], &mut r);
        let mut moments = Moments::new(12);
        moments.add(&random([300, 12], &mut r).dot(&mixed));
        let weights = random([2, 12], &mut r);
        let (inverse, _) = learn(&weights, &moments).unwrap();
        let mut h = moments.covariance();
        let damp = RIDGE * h.diag().sum() / 12.0;
        h.diag_mut().iter_mut().for_each(|v| *v += damp);
        for width in [1, 3] {
            let tiles: Vec<(usize, Vec<usize>)> =
                (0..12 / width).map(|t| (100 + t, (t * width..(t + 1) * width).collect())).collect();
            let filters = Filters { weights: weights.clone(), tiles: tiles.clone() };
            let order = filters.in_order(inverse.clone());
            assert!(order.is_sorted_by(|a, b| a.1 <= b.1));
            // What the first so many leave, and that no other tile would have left less.
            let columns =
                |groups: &[usize]| (0..12).filter(|k| groups.contains(&(100 + k / width))).collect::<Vec<usize>>();
            let all: Vec<usize> = tiles.iter().map(|t| t.0).collect();
            let left = |gone: &[usize]| {
                let rest: Vec<usize> = all.iter().copied().filter(|g| !gone.contains(g)).collect();
                least_error(&h, &weights, &columns(gone), &columns(&rest))
            };
            let mut before = 0.0;
            for n in 0..order.len() - 1 {
                let gone: Vec<usize> = order[..n].iter().map(|o| o.0).collect();
                let with = |other: usize| left(&[&gone[..], &[other]].concat());
                let chosen = with(order[n].0);
                for &other in all.iter().filter(|g| !gone.contains(g)) {
                    assert!(chosen <= with(other) * (1.0 + 1e-6), "{width}: {n}: {chosen} for {}", with(other));
                }
                // Unless an earlier one left more.
                assert!(order[n].1 >= (chosen - before) * (1.0 - 1e-6), "{width}: {n}: {chosen} - {before}");
                before = chosen;
            }
        }
    }

    /// Inputs that repeat others are not needed, by any filter.
    #[test]
    fn weights_of_repeated_inputs_go_without_loss() {
        let mut r = Random::new(8, 0);
        for kind in [Kind::Weight, Kind::Block { rows: 1, cols: 4 }, Kind::Block { rows: 2, cols: 4 }] {
            let mut g = Graph::default();
            let x = g.add_input("x", &[1, 16]);
            let weight = ArrayD::from_shape_simple_fn(IxDyn(&[6, 16]), || r.normal());
            let op = Op::Linear { weight, bias: vec![0.0; 6], clamp: Clamp::NONE };
            let y = g.push("linear", op, &[x]).unwrap();
            g.add_output("y", y);
            let mut sample = || {
                let own: Vec<f32> = (0..8).map(|_| r.normal()).collect();
                vec![ArrayD::from_shape_fn(IxDyn(&[1, 16]), |at| own[at[1] % 8])]
            };
            let samples: Vec<Vec<ArrayD<f32>>> = (0..200).map(|_| sample()).collect();
            let pruned = prune_post_training(&g, kind, Target::Sparsity(0.5), &samples, &|_, _| ()).unwrap();
            let theta = pruned.graph.theta();
            assert_eq!(theta[..96].iter().filter(|w| **w == 0.0).count(), 48, "{kind}");
            let fresh = sample();
            let [a, b] = [&g, &pruned.graph].map(|g| eval::run(g, &fresh).unwrap().remove(0));
            let square = |x: &ArrayD<f32>| x.iter().map(|v| v * v).sum::<f32>();
            let lost = square(&(&a - &b)) / square(&a);
            assert!(lost < 1e-4, "{kind}: {lost} of the output's energy are lost");
        }
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
        let pruned = prune_post_training(&g, Kind::Filter, target, &samples, &|_, _| ()).unwrap();
        assert_eq!(pruned.layers[0].after, 4);
        let fresh = sample();
        let [a, b] = [&g, &pruned.graph].map(|g| eval::run(g, &fresh).unwrap().remove(0));
        let square = |x: &ArrayD<f32>| x.iter().map(|v| v * v).sum::<f32>();
        let lost = square(&(&a - &b)) / square(&a);
        assert!(lost < 1e-4, "{lost} of the output's energy are lost");
    }
}
