//! Pruning and growing: edges that carry the least flow go, and units are doubled with noise, so that what remains is worth its size.
//!
//! Without the edges `E`, the mean log-likelihood of `n` samples falls by about `sum over E of flow / n`: a sum edge's flow is how often it is
//! used. Source: "Sparse Probabilistic Circuits via Pruning and Growing", NeurIPS 2022.

use super::evaluate::{Flow, Workspace};
use super::inputs::Inputs;
use super::{Circuit, Data, Region, em, stride};
use crate::random::Random;

/// Removes the `share` of all sum edges that have the smallest flow on `data`, but the largest of a sum unit; then units that nothing reaches.
pub fn prune(circuit: &mut Circuit, data: &Data, share: f32, work: &mut Workspace) {
    let rows: Vec<u32> = (0..data.samples() as u32).collect();
    let (flows, _) = em::total_flows(circuit, data, &rows, 512, work, &mut |_| ());
    let mut all: Vec<f32> = Vec::new();
    for (region, flow) in circuit.regions.iter().zip(&flows) {
        all.extend(region.weights.iter().zip(&flow.edges).filter(|(w, _)| **w > 0.0).map(|(_, f)| *f));
    }
    let count = (all.len() as f32 * share) as usize;
    if count == 0 || count >= all.len() {
        return;
    }
    let (_, &mut threshold, _) = all.select_nth_unstable_by(count, f32::total_cmp);
    for (region, flow) in circuit.regions.iter_mut().zip(&flows) {
        cut(region, flow, threshold);
    }
    remove_unreached(circuit);
}

/// Drops edges with less flow than `threshold` and spreads each sum unit's weight over what is left.
fn cut(region: &mut Region, flow: &Flow, threshold: f32) {
    let stride = region.stride();
    for (row, flow) in region.weights.chunks_exact_mut(stride).zip(flow.edges.chunks_exact(stride)) {
        let is_edge = |j: &usize| row[*j] > 0.0;
        let largest =
            (0..stride).filter(is_edge).max_by(|&a, &b| flow[a].total_cmp(&flow[b]).then(row[a].total_cmp(&row[b])));
        for j in 0..stride {
            if flow[j] < threshold && Some(j) != largest {
                row[j] = 0.0;
            }
        }
        normalize(row);
    }
}

fn normalize(row: &mut [f32]) {
    let total: f32 = row.iter().sum();
    if total > 0.0 {
        row.iter_mut().for_each(|w| *w /= total);
    }
}

/// Removes the `share` of all product units that have the smallest flow on `data`, with their input units and edges; a region keeps its largest.
/// Where edges are dense and input units large, this is what makes a circuit small and fast: regions of certain variables keep one unit.
pub fn prune_units(circuit: &mut Circuit, data: &Data, share: f32, work: &mut Workspace) {
    let rows: Vec<u32> = (0..data.samples() as u32).collect();
    let (flows, _) = em::total_flows(circuit, data, &rows, 512, work, &mut |_| ());
    let unit_flow = |(region, flow): (&Region, &Flow)| -> Vec<f32> {
        let rows = || flow.edges.chunks_exact(region.stride());
        (0..region.units).map(|j| rows().map(|row| row[j]).sum()).collect()
    };
    let flows: Vec<Vec<f32>> = circuit.regions.iter().zip(&flows).map(unit_flow).collect();
    let mut all: Vec<f32> = flows.concat();
    let count = (all.len() as f32 * share) as usize;
    if count == 0 || count >= all.len() {
        return;
    }
    let (_, &mut threshold, _) = all.select_nth_unstable_by(count, f32::total_cmp);
    for (index, flow) in flows.iter().enumerate() {
        let largest = (0..flow.len()).max_by(|&a, &b| flow[a].total_cmp(&flow[b]));
        let kept: Vec<usize> = (0..flow.len()).filter(|&j| flow[j] >= threshold || Some(j) == largest).collect();
        restrict(circuit, index, &kept);
        let region = &mut circuit.regions[index];
        let stride = region.stride();
        for row in region.weights.chunks_exact_mut(stride) {
            if row.iter().all(|&w| w == 0.0) {
                row[..kept.len()].fill(1.0);
            }
            normalize(row);
        }
    }
}

/// Removes units that no sum above them uses, with the sums of the children that only they used.
fn remove_unreached(circuit: &mut Circuit) {
    for index in (0..circuit.regions.len()).rev() {
        let region = &circuit.regions[index];
        let is_used = |j: &usize| region.weights.chunks_exact(region.stride()).any(|row| row[*j] > 0.0);
        let kept: Vec<usize> = (0..region.units).filter(is_used).collect();
        if kept.len() == region.units {
            continue;
        }
        restrict(circuit, index, &kept);
    }
}

/// Keeps these units of a region, and the sums of its children that they multiply.
fn restrict(circuit: &mut Circuit, index: usize, kept: &[usize]) {
    let children: Vec<usize> = circuit.children(index).collect();
    for child in children {
        let child = &mut circuit.regions[child];
        let stride = child.stride();
        child.weights = kept.iter().flat_map(|&i| &child.weights[i * stride..][..stride]).copied().collect();
        child.above = kept.len();
    }
    keep_units(&mut circuit.regions[index], kept);
}

/// Makes `kept` the region's units, in this order; a unit may be there more than once.
fn keep_units(region: &mut Region, kept: &[usize]) {
    let (old, new) = (region.stride(), stride(kept.len()));
    let gather = |rows: &[f32]| {
        let mut out = vec![0.0; rows.len() / old * new];
        for (row, out) in rows.chunks_exact(old).zip(out.chunks_exact_mut(new)) {
            kept.iter().zip(out).for_each(|(&j, x)| *x = row[j]);
        }
        out
    };
    region.table = gather(&region.table);
    region.weights = gather(&region.weights);
    if let Inputs::Parametric { components, params, .. } = &mut region.inputs {
        *params = kept.iter().flat_map(|&j| &params[j * *components..][..*components]).copied().collect();
    }
    region.units = kept.len();
}

/// Doubles every unit but the root's sum: four edges for each, whose weights are multiplied by `N(1, sigma^2)` noise, as are categorical inputs.
pub fn grow(circuit: &mut Circuit, sigma: f32, seed: u64) {
    let mut random = Random::new(seed, 0);
    let root = circuit.regions.len() - 1;
    for (index, region) in circuit.regions.iter_mut().enumerate() {
        let twice: Vec<usize> = (0..2 * region.units).map(|j| j % region.units).collect();
        keep_units(region, &twice);
        let (stride, units) = (region.stride(), region.units);
        if index != root {
            region.weights.extend_from_within(..);
            region.above *= 2;
        }
        let mut noise = |x: &mut f32| *x *= (1.0 + sigma * random.normal()).max(0.1);
        region.weights.iter_mut().for_each(&mut noise);
        region.weights.chunks_exact_mut(stride).for_each(normalize);
        if region.inputs == Inputs::Categorical {
            region.table.iter_mut().for_each(&mut noise);
            normalize_columns(&mut region.table, units, stride);
        }
    }
}

fn normalize_columns(table: &mut [f32], units: usize, stride: usize) {
    let mut totals = vec![0.0; stride];
    table.chunks_exact(stride).for_each(|row| totals.iter_mut().zip(row).for_each(|(t, x)| *t += x));
    totals[units..].fill(1.0);
    table.chunks_exact_mut(stride).for_each(|row| row.iter_mut().zip(&totals).for_each(|(x, t)| *x /= t));
}
