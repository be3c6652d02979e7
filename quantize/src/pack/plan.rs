//! The memory plan: where every activation lies in the arena, so that the arena is small.
//!
//! A *buffer* is memory with a lifetime in operator steps: a tensor together with its reshapes and with what replaces it in
//! place. Buffers whose lifetimes overlap may not overlap in memory. Finding the smallest arena is NP-hard; several greedy
//! orders and a seeded local search around the best one reach the lower bound (the largest sum of live bytes at any step) on
//! every network tried so far. The search is bounded by iterations, so the plan depends on the program alone.

use crate::lower::Program;
use pith::format::op::Op;
use pith::format::tensor::Constant;
use pith::{Isa, ops};

/// Alignment of offsets in bytes: what word loads of a Cortex-M want.
const ALIGN: usize = 4;

/// Improvement steps of the local search.
const ITERATIONS: usize = 3000;

/// A planned tensor or scratch area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interval {
    /// Tensor index, none for scratch memory.
    pub tensor: Option<usize>,
    /// Name for pictures.
    pub name: String,
    /// Bytes from the arena's start.
    pub offset: usize,
    /// Length.
    pub bytes: usize,
    /// First operator that needs it (inputs: 0).
    pub first_op: usize,
    /// Last operator that needs it (outputs: the last).
    pub last_op: usize,
}

/// Offsets of all tensors.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Size of the arena.
    pub arena_bytes: usize,
    /// The largest sum of live bytes: no plan with the same in-place decisions can be smaller.
    pub lower_bound: usize,
    /// One entry per tensor that is used (reshapes share their source's), and per scratch area.
    pub intervals: Vec<Interval>,
    /// Operators that work in place.
    pub in_place: Vec<bool>,
}

/// What the planner may do.
#[derive(Clone, Copy, Debug)]
pub struct PlanOptions {
    /// Let operators overwrite their input.
    pub in_place: bool,
}

impl Default for PlanOptions {
    fn default() -> Self {
        PlanOptions { in_place: true }
    }
}

/// Memory with a lifetime.
#[derive(Clone, Debug)]
struct Buffer {
    bytes: usize,
    first: usize,
    last: usize,
}

/// Plans `program` and writes offsets (and scratch areas, returned per operator as offset and length) into it.
pub fn plan(program: &mut Program, options: PlanOptions, isa: Isa) -> (Plan, Vec<(usize, usize)>) {
    let n = program.ops.len();
    let is_free = |op: &Op<'_>| match op {
        Op::Depthwise(c) => ops::depthwise_runs_in_place(c, &weights_of(program, op), isa),
        _ => true,
    };
    let mut allowed: Vec<bool> = program.ops.iter().map(|op| options.in_place && is_free(&op.record)).collect();
    let mut best = attempt(program, &allowed, isa);
    // Elsewhere in-place depthwise costs time, so it is switched on only where the arena gets smaller, one operator after another.
    let depthwise = (0..n).filter(|&i| options.in_place && !allowed[i]);
    for i in depthwise.collect::<Vec<_>>() {
        let pointwise = matches!(program.ops[i].record, Op::Depthwise(c) if ops::depthwise_scratch_bytes(&c) == 0);
        allowed[i] = true;
        let candidate = attempt(program, &allowed, isa);
        if candidate.arena < best.arena || (pointwise && candidate.arena == best.arena) {
            best = candidate;
        } else {
            allowed[i] = false;
        }
    }
    for (t, buffer) in best.owner.iter().enumerate() {
        if let Some(b) = buffer {
            program.tensors[t].record.offset = best.offsets[*b] as u32;
        }
    }
    let mut intervals = Vec::new();
    for (t, tensor) in program.tensors.iter().enumerate() {
        if let (Some(_), None, Some((first_op, last_op))) = (best.owner[t], tensor.alias_of, best.lives[t]) {
            let (offset, bytes) = (tensor.record.offset as usize, tensor.record.len as usize);
            intervals.push(Interval { tensor: Some(t), name: tensor.name.clone(), offset, bytes, first_op, last_op });
        }
    }
    let mut scratch = vec![(0, 0); n];
    for (i, b) in best.scratch.iter().enumerate() {
        if let Some(b) = *b {
            scratch[i] = (best.offsets[b], best.buffers[b].bytes);
            let name = format!("{} scratch", program.ops[i].name);
            let (offset, bytes) = scratch[i];
            intervals.push(Interval { tensor: None, name, offset, bytes, first_op: i, last_op: i });
        }
    }
    let plan = Plan { arena_bytes: best.arena, lower_bound: best.bound, intervals, in_place: best.in_place };
    (plan, scratch)
}

/// Of the operators whose weights could be decoded in tiles those where that is worth its memory: `saved` are the bytes of file that each saves.
///
/// A tile takes scratch memory, and an operator that runs in several cannot overwrite its input. What fits under the same arena comes together, so
/// the arena is chosen for which the file shrinks most beyond what the arena grows.
pub(super) fn worthwhile_tiles(
    program: &Program,
    options: PlanOptions,
    isa: Isa,
    saved: &[Option<usize>],
) -> Vec<bool> {
    let allowed = vec![options.in_place; program.ops.len()];
    let arena = |tiled: &[bool]| buffers(program, &allowed, isa, tiled).bound;
    let none = vec![false; saved.len()];
    let least = arena(&none);
    let alone = |i: usize| {
        let mut only = none.clone();
        only[i] = true;
        saved[i].map(|_| arena(&only).max(least))
    };
    let alone: Vec<Option<usize>> = (0..saved.len()).map(alone).collect();
    let mut limits: Vec<usize> = alone.iter().flatten().copied().collect();
    limits.sort_unstable();
    limits.dedup();
    let mut best = (0, none);
    for limit in limits {
        let tiled: Vec<bool> = alone.iter().map(|arena| arena.is_some_and(|arena| arena <= limit)).collect();
        let gain: usize = saved.iter().zip(&tiled).filter(|(_, tiled)| **tiled).filter_map(|(saved, _)| *saved).sum();
        let gain = gain as i64 - (arena(&tiled) as i64 - least as i64);
        if gain > best.0 {
            best = (gain, tiled);
        }
    }
    best.1
}

/// One set of in-place decisions, placed.
struct Attempt {
    arena: usize,
    bound: usize,
    buffers: Vec<Buffer>,
    offsets: Vec<usize>,
    /// Buffer of every tensor that is used.
    owner: Vec<Option<usize>>,
    /// Lifetime of every tensor that is used.
    lives: Vec<Option<(usize, usize)>>,
    /// Scratch buffer of every operator.
    scratch: Vec<Option<usize>>,
    in_place: Vec<bool>,
}

fn attempt(program: &Program, allowed: &[bool], isa: Isa) -> Attempt {
    let tiled = vec![true; program.ops.len()];
    let attempt = buffers(program, allowed, isa, &tiled);
    let offsets = place_all(&attempt.buffers, attempt.bound);
    Attempt { arena: extent(&attempt.buffers, &offsets), offsets, ..attempt }
}

/// As [`attempt`], not placed; weights are decoded in tiles only where `tiled` says so.
fn buffers(program: &Program, allowed: &[bool], isa: Isa, tiled: &[bool]) -> Attempt {
    let root = |mut t: usize| {
        while let Some(source) = program.tensors[t].alias_of {
            t = source;
        }
        t
    };
    let lives = lifetimes(program, &root);
    let mut buffers: Vec<Buffer> = Vec::new();
    let mut owner: Vec<Option<usize>> = vec![None; program.tensors.len()];
    let mut scratch = vec![None; program.ops.len()];
    let mut in_place = vec![false; program.ops.len()];
    let inputs = program.inputs.iter().map(|p| (None, root(p.record.tensor as usize)));
    let outputs = program.ops.iter().enumerate().map(|(i, op)| (Some(i), root(op.record.output() as usize)));
    for (op, t) in inputs.chain(outputs) {
        let Some((first, last)) = lives[t].filter(|_| owner[t].is_none()) else { continue };
        let replaced = op.filter(|&i| allowed[i]).and_then(|i| replaceable(program, i, tiled[i], &lives, &root));
        match replaced.and_then(|input| owner[input]).filter(|&b| buffers[b].last == first) {
            Some(b) => {
                buffers[b].last = last;
                owner[t] = Some(b);
                in_place[first] = true;
            }
            None => {
                owner[t] = Some(buffers.len());
                buffers.push(Buffer { bytes: program.tensors[t].record.len as usize, first, last });
            }
        }
    }
    for (i, spec) in program.ops.iter().enumerate() {
        let bytes = scratch_bytes(program, &spec.record, in_place[i], isa, tiled[i]);
        if bytes > 0 {
            scratch[i] = Some(buffers.len());
            buffers.push(Buffer { bytes, first: i, last: i });
        }
    }
    for t in 0..owner.len() {
        owner[t] = owner[root(t)];
    }
    let bound = lower_bound(&buffers, program.ops.len());
    Attempt { arena: bound, bound, buffers, offsets: Vec::new(), owner, lives, scratch, in_place }
}

/// First and last operator of every tensor that is used, reshapes counted for their source. Inputs live from the start, outputs to the end.
fn lifetimes(program: &Program, root: &dyn Fn(usize) -> usize) -> Vec<Option<(usize, usize)>> {
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; program.tensors.len()];
    let mut touch = |t: u16, i: usize| {
        let life = &mut lives[root(t as usize)];
        *life = Some(life.map_or((i, i), |(first, last)| (first.min(i), last.max(i))));
    };
    program.inputs.iter().for_each(|p| touch(p.record.tensor, 0));
    for (i, spec) in program.ops.iter().enumerate() {
        spec.record.inputs().into_iter().flatten().for_each(|t| touch(t, i));
        spec.concat.iter().for_each(|c| touch(c.input, i));
        touch(spec.record.output(), i);
    }
    let end = program.ops.len().saturating_sub(1);
    program.outputs.iter().for_each(|p| touch(p.record.tensor, end));
    lives
}

/// The input that operator `i` may overwrite: it dies here, is large enough, and is read densely and once.
fn replaceable(
    program: &Program,
    i: usize,
    tiled: bool,
    lives: &[Option<(usize, usize)>],
    root: &dyn Fn(usize) -> usize,
) -> Option<usize> {
    let record = &program.ops[i].record;
    let weights = weights_of(program, record);
    let in_blocks = weights.layout != 0 && (!tiled || ops::tiles(record, &weights) == 1);
    let input = match record {
        Op::Lookup(op) => op.input,
        Op::PRelu(op) => op.input,
        Op::Softmax(op) => op.input,
        Op::Depthwise(op) => op.input,
        Op::Conv(op) if in_blocks && ops::runs_in_place(op) => op.input,
        Op::Linear(op) if in_blocks && (op.rows == 1 || op.n <= op.k) => op.input,
        Op::Add(op) | Op::Mul(op) => {
            let same = op.rhs_is_constant == 0 && root(op.rhs as usize) == root(op.lhs as usize);
            let dense = op.lhs_strides == ops::dense_strides(&op.dims);
            Some(op.lhs).filter(|_| dense && !same)?
        }
        _ => return None,
    };
    let input = root(input as usize);
    let is_output = program.outputs.iter().any(|p| root(p.record.tensor as usize) == input);
    let fits = program.tensors[record.output() as usize].record.len <= program.tensors[input].record.len;
    (lives[input].is_some_and(|(_, last)| last == i) && fits && !is_output).then_some(input)
}

/// What an operator's kernels want, and behind it what its tiles need.
fn scratch_bytes(program: &Program, op: &Op<'_>, in_place: bool, isa: Isa, tiled: bool) -> usize {
    let weights = weights_of(program, op);
    let own = ops::wanted_scratch_bytes(op, &weights, in_place, isa);
    let Some(id) = op.weights().filter(|_| tiled && weights.is_in_tiles()) else { return own };
    let tile = ops::tile_scratch_bytes(op, &weights, &program.constants[id as usize].bytes).unwrap_or_default();
    own.next_multiple_of(4) + tile.iter().sum::<usize>()
}

/// The record of an operator's weights, an empty one if it has none.
fn weights_of(program: &Program, op: &Op<'_>) -> Constant {
    op.weights().map_or_else(Constant::default, |w| program.constants[w as usize].record)
}

fn lower_bound(buffers: &[Buffer], ops: usize) -> usize {
    let live = |i: usize| {
        buffers.iter().filter(|b| b.first <= i && i <= b.last).map(|b| b.bytes.next_multiple_of(ALIGN)).sum()
    };
    (0..ops.max(1)).map(live).max().unwrap_or(0)
}

fn extent(buffers: &[Buffer], offsets: &[usize]) -> usize {
    buffers.iter().zip(offsets).map(|(b, o)| o + b.bytes).max().unwrap_or(0).next_multiple_of(ALIGN)
}

/// Lowest offsets in the given order.
fn place_in_order(buffers: &[Buffer], order: &[usize]) -> Vec<usize> {
    let mut offsets = vec![0; buffers.len()];
    for (k, &b) in order.iter().enumerate() {
        let mut taken: Vec<(usize, usize)> = order[..k]
            .iter()
            .filter(|&&o| buffers[o].first <= buffers[b].last && buffers[b].first <= buffers[o].last)
            .map(|&o| (offsets[o], (offsets[o] + buffers[o].bytes).next_multiple_of(ALIGN)))
            .collect();
        taken.sort_unstable();
        let mut at = 0;
        for (start, end) in taken {
            if at + buffers[b].bytes <= start {
                break;
            }
            at = at.max(end);
        }
        offsets[b] = at;
    }
    offsets
}

/// The best of some greedy orders, improved by swaps until the bound is met or the iterations are spent.
fn place_all(buffers: &[Buffer], bound: usize) -> Vec<usize> {
    type Key = fn(&Buffer) -> (std::cmp::Reverse<usize>, usize);
    let keys: [Key; 4] = [
        |b| (std::cmp::Reverse(b.bytes), b.first),
        |b| (std::cmp::Reverse(b.bytes * (b.last - b.first + 1)), b.first),
        |b| (std::cmp::Reverse(b.last - b.first), b.first),
        |b| (std::cmp::Reverse(0), b.first),
    ];
    let mut best: Option<(usize, Vec<usize>)> = None;
    for key in keys {
        let mut order: Vec<usize> = (0..buffers.len()).collect();
        order.sort_by_key(|&b| key(&buffers[b]));
        let size = extent(buffers, &place_in_order(buffers, &order));
        if best.as_ref().is_none_or(|(smallest, _)| size < *smallest) {
            best = Some((size, order));
        }
    }
    let Some((mut size, mut order)) = best else { return Vec::new() };
    // A linear congruential generator: the plan must not depend on anything but the program.
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    for _ in 0..if order.len() > 1 { ITERATIONS } else { 0 } {
        if size <= bound {
            break;
        }
        let (i, j) = (random(order.len()), random(order.len()));
        order.swap(i, j);
        let changed = extent(buffers, &place_in_order(buffers, &order));
        if changed <= size {
            size = changed;
        } else {
            order.swap(i, j);
        }
    }
    place_in_order(buffers, &order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_lifetimes_never_collide_and_stay_near_the_bound() {
        let mut state = 1u32;
        let mut random = |n: u32| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            ((state >> 8) % n) as usize
        };
        for _ in 0..40 {
            let ops = 4 + random(30);
            let buffers: Vec<Buffer> = (0..3 + random(40))
                .map(|_| {
                    let first = random(ops as u32);
                    Buffer { bytes: 1 + random(5000), first, last: (first + random(6)).min(ops - 1) }
                })
                .collect();
            let bound = lower_bound(&buffers, ops);
            let offsets = place_all(&buffers, bound);
            let size = extent(&buffers, &offsets);
            assert!(size >= bound && size <= bound + bound / 4, "{size} for a bound of {bound}");
            for (i, a) in buffers.iter().enumerate() {
                for (j, b) in buffers.iter().enumerate().skip(i + 1) {
                    let together = a.first <= b.last && b.first <= a.last;
                    let apart = offsets[i] + a.bytes <= offsets[j] || offsets[j] + b.bytes <= offsets[i];
                    assert!(!together || apart, "buffers {i} and {j}");
                }
            }
            assert_eq!(offsets, place_all(&buffers, bound));
        }
    }
}
