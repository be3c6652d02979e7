//! Likelihoods and flows of a batch of samples, region by region.
//!
//! Values are linear, not logarithmic: a row of units of one sample is scaled by a power of two after its product, so that its largest value
//! lies in `[1, 2)`, and the exponents are summed over the subtree. A sum layer is then one matrix product (see [`dense`]).
//!
//! A flow is what a sample sends through an edge, its expected count; the flow of the root is 1:
//!
//! ```text
//! ratio_r[i] = flow_parent[i] / sum_r[i]
//! edge_r[i][j] = ratio_r[i] * weights_r[i][j] * value_r[j]
//! flow_r[j] = sum_i edge_r[i][j],   which the input unit j receives as well, for the sample's value
//! ```
//!
//! Regions that do not depend on one another run in parallel, each of them whole, so results do not depend on the number of threads.

use super::{Circuit, Data, Region, dense, stride};
use fearless_simd::{Level, Simd, dispatch, f32x16, prelude::*};
use rayon::prelude::*;

/// Samples that are evaluated together, variable by variable.
#[derive(Clone, Debug)]
pub struct Batch {
    samples: usize,
    /// `[variables][samples]`.
    columns: Vec<u8>,
    missing: Option<Vec<bool>>,
}

impl Batch {
    /// Gathers rows of `data`.
    pub fn gather(data: &Data, rows: &[u32]) -> Batch {
        let columns = transposed(&data.values, data.variables, rows);
        let missing = data.missing.as_ref().map(|m| transposed(m, data.variables, rows));
        Batch { samples: rows.len(), columns, missing }
    }

    /// A variable's values, and which of them are unknown.
    fn column(&self, variable: usize) -> (&[u8], Option<&[bool]>) {
        let range = variable * self.samples..(variable + 1) * self.samples;
        (&self.columns[range.clone()], self.missing.as_ref().map(|m| &m[range]))
    }
}

fn transposed<T: Copy + Default>(values: &[T], variables: usize, rows: &[u32]) -> Vec<T> {
    let mut columns = vec![T::default(); variables * rows.len()];
    for (s, &row) in rows.iter().enumerate() {
        let row = &values[row as usize * variables..][..variables];
        columns.iter_mut().skip(s).step_by(rows.len()).zip(row).for_each(|(to, &from)| *to = from);
    }
    columns
}

/// Expected counts of a region, summed over a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flow {
    /// Of the sum layer's edges, as [`Region::weights`].
    pub edges: Vec<f32>,
    /// Of the input units' values, as [`Region::table`]; samples that lack the variable do not count.
    pub inputs: Vec<f32>,
}

/// A region's results for a batch.
#[derive(Clone, Debug, Default)]
struct Slot {
    /// `[samples][stride(units)]`: values upwards, flows downwards.
    values: Vec<f32>,
    /// `[samples][stride(above)]`: sums upwards, ratios downwards.
    sums: Vec<f32>,
    /// Powers of two taken out of the subtree's values.
    exponents: Vec<i32>,
}

/// Memory that evaluation works in; it grows to what a batch needs.
#[derive(Debug)]
pub struct Workspace {
    level: Level,
    slots: Vec<Slot>,
}

impl Default for Workspace {
    fn default() -> Workspace {
        Workspace { level: Level::new(), slots: Vec::new() }
    }
}

/// Log-likelihoods of the samples, in nats; missing values are summed over.
pub fn log_likelihoods(circuit: &Circuit, work: &mut Workspace, batch: &Batch) -> Vec<f64> {
    work.slots.resize_with(circuit.regions.len(), Slot::default);
    up(&circuit.regions, &mut work.slots, work.level, batch);
    let Some(root) = work.slots.last() else { return Vec::new() };
    let sums = root.sums.iter().step_by(stride(1));
    sums.zip(&root.exponents).map(|(&p, &e)| (p as f64).ln() + e as f64 * std::f64::consts::LN_2).collect()
}

/// Log-likelihoods as [`log_likelihoods`], then every region's flow, given once to `visit` with the region's index. `visit` may change the
/// region's parameters: nothing of this batch depends on them any more.
pub fn flows(
    circuit: &mut Circuit,
    work: &mut Workspace,
    batch: &Batch,
    visit: &(impl Fn(usize, &mut Region, Flow) + Sync),
) -> Vec<f64> {
    let likelihoods = log_likelihoods(circuit, work, batch);
    let mut ones = vec![0.0; batch.samples * stride(1)];
    ones.iter_mut().step_by(stride(1)).for_each(|one| *one = 1.0);
    down(&mut circuit.regions, &mut work.slots, &ones, 0, work.level, batch, visit);
    likelihoods
}

/// Sum of all samples' log-likelihoods, in nats.
pub fn total_log_likelihood(circuit: &Circuit, data: &Data) -> f64 {
    let rows: Vec<u32> = (0..data.samples() as u32).collect();
    let mut work = Workspace::default();
    let mut total = |rows| log_likelihoods(circuit, &mut work, &Batch::gather(data, rows)).iter().sum::<f64>();
    rows.chunks(256).map(&mut total).sum()
}

/// Code length of the data in bits for each variable of each sample.
pub fn bits_per_dimension(circuit: &Circuit, data: &Data) -> f64 {
    -total_log_likelihood(circuit, data) / (std::f64::consts::LN_2 * data.values.len() as f64)
}

/// Splits the children of a region off, last first.
fn subtrees(mut regions: &[Region]) -> impl Iterator<Item = &[Region]> {
    std::iter::from_fn(move || {
        let (rest, child) = regions.split_at(regions.len() - regions.last()?.size);
        regions = rest;
        Some(child)
    })
}

fn up(regions: &[Region], slots: &mut [Slot], level: Level, batch: &Batch) {
    let (Some((region, below)), Some((slot, mut rest))) = (regions.split_last(), slots.split_last_mut()) else {
        return;
    };
    let mut tasks = Vec::new();
    for child in subtrees(below) {
        let (others, slots) = rest.split_at_mut(rest.len() - child.len());
        tasks.push((child, slots));
        rest = others;
    }
    match &mut tasks[..] {
        [(child, slots)] => up(child, slots, level, batch),
        _ => tasks.par_iter_mut().for_each(|(child, slots)| up(child, slots, level, batch)),
    }
    let children: Vec<&Slot> = tasks.iter().filter_map(|(_, slots)| slots.last()).collect();
    let n = batch.samples;
    let (units, above) = (region.stride(), stride(region.above));
    slot.values.resize(n * units, 0.0);
    slot.sums.resize(n * above, 0.0);
    slot.exponents.resize(n, 0);
    dispatch!(level, simd => products(simd, region, slot, &children, batch));
    let mut transposed = vec![0.0; region.units * above];
    for (i, row) in region.weights.chunks_exact(units).enumerate() {
        for (j, &w) in row[..region.units].iter().enumerate() {
            transposed[j * above + i] = w;
        }
    }
    dense::multiply(level, &mut slot.sums, &slot.values, units, &transposed, above);
}

/// Below this share of a row's largest value, a value is nothing; it keeps arithmetic away from denormal numbers, which are slow.
const NOTHING: f32 = 1e-30;

#[inline(always)]
fn products<S: Simd>(simd: S, region: &Region, slot: &mut Slot, children: &[&Slot], batch: &Batch) {
    let stride = region.stride();
    let (column, missing) = region.variable.map_or((&[][..], None), |v| batch.column(v));
    // Of an unknown value: input units count as 1.
    let ones: Vec<f32> = (0..stride).map(|j| if j < region.units { 1.0 } else { 0.0 }).collect();
    let zeros = vec![0.0; stride];
    for (s, row) in slot.values.chunks_exact_mut(stride).enumerate() {
        let inputs = match column.get(s) {
            Some(&x) if !missing.is_some_and(|m| m[s]) => {
                region.table.chunks_exact(stride).nth(x as usize).unwrap_or(&zeros)
            }
            _ => &ones,
        };
        slot.exponents[s] = match children.split_first() {
            None => {
                row.copy_from_slice(inputs);
                normalize(simd, row)
            }
            Some((first, rest)) => {
                let exponent = first.exponents[s] + multiply(simd, row, inputs, &first.sums[s * stride..][..stride]);
                // Many small factors would leave the range of floats before the last of them.
                rest.iter().fold(exponent, |exponent, child| {
                    exponent + child.exponents[s] + scale(simd, row, &child.sums[s * stride..][..stride])
                })
            }
        };
    }
}

/// `row = a * b`, normalized.
#[inline(always)]
fn multiply<S: Simd>(simd: S, row: &mut [f32], a: &[f32], b: &[f32]) -> i32 {
    for ((x, a), b) in row.chunks_exact_mut(LANES).zip(a.chunks_exact(LANES)).zip(b.chunks_exact(LANES)) {
        (f32x16::from_slice(simd, a) * f32x16::from_slice(simd, b)).store_slice(x);
    }
    normalize(simd, row)
}

/// `row *= b`, normalized.
#[inline(always)]
fn scale<S: Simd>(simd: S, row: &mut [f32], b: &[f32]) -> i32 {
    for (x, b) in row.chunks_exact_mut(LANES).zip(b.chunks_exact(LANES)) {
        (f32x16::from_slice(simd, x) * f32x16::from_slice(simd, b)).store_slice(x);
    }
    normalize(simd, row)
}

const LANES: usize = dense::LANES;

/// Scales a row so that its largest value lies in `[1, 2)`; returns the exponent of two that was taken out.
#[inline(always)]
fn normalize<S: Simd>(simd: S, row: &mut [f32]) -> i32 {
    let mut largest = f32x16::splat(simd, 0.0);
    for x in row.chunks_exact(LANES) {
        largest = largest.max(f32x16::from_slice(simd, x));
    }
    let largest = largest.reduce_max();
    if !largest.is_normal() {
        return 0;
    }
    let exponent = (largest.to_bits() >> 23) as i32 - 127;
    let factor = f32x16::splat(simd, f32::from_bits(((127 - exponent) as u32) << 23));
    let (nothing, zero) = (f32x16::splat(simd, NOTHING), f32x16::splat(simd, 0.0));
    for x in row.chunks_exact_mut(LANES) {
        let scaled = f32x16::from_slice(simd, x) * factor;
        scaled.simd_ge(nothing).select(scaled, zero).store_slice(x);
    }
    exponent
}

fn down(
    regions: &mut [Region],
    slots: &mut [Slot],
    parent: &[f32],
    first: usize,
    level: Level,
    batch: &Batch,
    visit: &(impl Fn(usize, &mut Region, Flow) + Sync),
) {
    let index = first + regions.len() - 1;
    let (Some((region, mut below)), Some((slot, mut rest))) = (regions.split_last_mut(), slots.split_last_mut()) else {
        return;
    };
    let (units, above) = (region.stride(), stride(region.above));
    dispatch!(level, simd => ratios(simd, &mut slot.sums, parent));
    let mut edges = vec![0.0; region.above * units];
    dense::outer(level, &mut edges, &slot.sums, above, &slot.values, units);
    edges.iter_mut().zip(&region.weights).for_each(|(g, w)| *g *= w);
    dense::scale_by_product(level, &mut slot.values, &slot.sums, above, &region.weights, units);
    let inputs = dispatch!(level, simd => counts(simd, region, &mut slot.values, batch));
    visit(index, region, Flow { edges, inputs });
    let mut tasks = Vec::new();
    while let Some(size) = below.last().map(|r| r.size) {
        let at = below.len() - size;
        let ((others, child), (other_slots, slots)) = (below.split_at_mut(at), rest.split_at_mut(at));
        tasks.push((first + at, child, slots));
        (below, rest) = (others, other_slots);
    }
    let flow = &slot.values;
    match &mut tasks[..] {
        [(first, child, slots)] => down(child, slots, flow, *first, level, batch, visit),
        _ => tasks.par_iter_mut().for_each(|(at, child, slots)| down(child, slots, flow, *at, level, batch, visit)),
    }
}

/// Sums become the ratios of the parent's flow to them.
#[inline(always)]
fn ratios<S: Simd>(simd: S, sums: &mut [f32], parent: &[f32]) {
    let least = f32x16::splat(simd, f32::MIN_POSITIVE);
    for (sum, flow) in sums.chunks_exact_mut(LANES).zip(parent.chunks_exact(LANES)) {
        (f32x16::from_slice(simd, flow) / f32x16::from_slice(simd, sum).max(least)).store_slice(sum);
    }
}

/// Flows of the input units by value, `[values][stride]`; flows too small to matter become zero.
#[inline(always)]
fn counts<S: Simd>(simd: S, region: &Region, flows: &mut [f32], batch: &Batch) -> Vec<f32> {
    let stride = region.stride();
    let (nothing, zero) = (f32x16::splat(simd, NOTHING), f32x16::splat(simd, 0.0));
    for x in flows.chunks_exact_mut(LANES) {
        let flow = f32x16::from_slice(simd, x);
        flow.simd_ge(nothing).select(flow, zero).store_slice(x);
    }
    let mut counts = vec![0.0; region.table.len()];
    let Some((column, missing)) = region.variable.map(|v| batch.column(v)) else { return counts };
    for (s, flow) in flows.chunks_exact(stride).enumerate() {
        let at = column[s] as usize * stride;
        let Some(counts) = counts.get_mut(at..at + stride).filter(|_| !missing.is_some_and(|m| m[s])) else { continue };
        for (count, flow) in counts.chunks_exact_mut(LANES).zip(flow.chunks_exact(LANES)) {
            (f32x16::from_slice(simd, count) + f32x16::from_slice(simd, flow)).store_slice(count);
        }
    }
    counts
}
