//! What a circuit is for: the probabilities that it gives to the next variable, in integers alone.
//!
//! Regions form a tree (see `quantize::circuit`): a region has `units`, each the product of an input unit and one sum of every child; its parent
//! sees them through weights `[units of the parent][units]`. Variables are met as a walk from the root enters regions. What the walk carries are
//! two messages for each region on its way, vectors over units:
//!
//! ```text
//! value[j] = input[j](x) * product over finished children c of sum_c[j]          what is known below
//! down[j]  = sum_i down_parent[i] * value_parent[i] * weights[i][j]              what is known elsewhere; the future counts as 1
//! P(x_v < v | everything before) = sum_j down[j] * cumulative[v][j] / sum_j down[j]
//! ```
//!
//! Every weight is used once downwards, when a region is entered, and once upwards, when it is left. So a variable costs about `2 * units^2`
//! multiplications whatever the shape of the tree.
//!
//! Messages are scaled by powers of two so that `units` of them sum to less than 2^32; a message without any probability becomes uniform.
//! Weights are 16-bit fractions, cumulative probabilities have 30 bits. The interval of value `v` out of `2^28`, `values` being `K`:
//!
//! ```text
//! start(v) = floor((2^28 - K) * P(x < v)) + v,     start(K) = 2^28          so that no interval is empty
//! ```

use super::rans64::{self, MAX_BITS};
use super::tree::{CUMULATIVE_BITS, Region, Tree, Weights};

impl Tree<'_> {
    /// 64-bit words of memory that a walk works in: accumulators, a scratch message, and two messages for each region on the way.
    pub fn state_words(&self) -> usize {
        let even = self.units().next_multiple_of(2);
        self.depth().saturating_mul(even).saturating_add(self.units() + even / 2)
    }

    /// Meets every variable once. `choose` gets its index and the probabilities of its values, and returns its value. None if `state` has fewer
    /// than [`Tree::state_words`] words.
    pub fn walk(&self, state: &mut [u64], mut choose: impl FnMut(usize, &Conditional) -> usize) -> Option<()> {
        let even = self.units().next_multiple_of(2);
        let (sums, messages) = state.get_mut(..self.state_words())?.split_at_mut(self.units());
        let messages: &mut [u32] = bytemuck::cast_slice_mut(messages);
        let (scratch, messages) = messages.split_at_mut_checked(even)?;
        let mut way = Way { stride: even, sums, scratch, messages };
        let mut open: Option<usize> = None;
        for index in 0..self.regions() {
            let region = self.region(index)?;
            // Regions that this one does not lie in are finished, deepest first.
            while let Some(last) = open {
                let finished = self.region(last)?;
                if finished.depth < region.depth {
                    break;
                }
                way.leave(&finished)?;
                open = finished.parent;
            }
            way.enter(&region)?;
            way.observe(&region, &mut choose)?;
            open = Some(index);
        }
        Some(())
    }

    /// The intervals of a sample's values in the order of the walk.
    pub fn intervals(&self, sample: &[u8], state: &mut [u64], mut push: impl FnMut(u32, u32)) -> Option<()> {
        self.walk(state, |variable, conditional| {
            let value = sample.get(variable).map_or(0, |&x| x as usize);
            let (start, freq) = conditional.interval(value);
            push(start, freq);
            value
        })
    }

    /// Decodes a sample.
    pub fn decode(&self, coder: &mut rans64::Decoder, state: &mut [u64], sample: &mut [u8]) -> Option<()> {
        self.walk(state, |variable, conditional| {
            let (value, start, freq) = conditional.find(coder.slot(MAX_BITS));
            coder.advance(start, freq, MAX_BITS);
            if let Some(x) = sample.get_mut(variable) {
                *x = value as u8;
            }
            value
        })
    }
}

/// Probabilities of a variable's values, given everything before.
pub struct Conditional<'a> {
    table: &'a [u32],
    units: usize,
    values: usize,
    likely: Option<usize>,
    down: &'a [u32],
    /// `(2^28 - K) * 2^32 / sum of down`.
    factor: u64,
}

impl Conditional<'_> {
    /// Number of values.
    pub fn values(&self) -> usize {
        self.values
    }

    /// Where the interval of a value begins, out of `2^28`; beyond the last value, `2^28`.
    pub fn start(&self, value: usize) -> u32 {
        if value == 0 || value >= self.values {
            return if value == 0 { 0 } else { 1 << MAX_BITS };
        }
        let row = self.table.get(value * self.units..).unwrap_or_default();
        let share = dot(self.down, row) >> CUMULATIVE_BITS;
        (share.wrapping_mul(self.factor) >> 32) as u32 + value as u32
    }

    /// Start and length of the interval of a value; values beyond the last count as it.
    pub fn interval(&self, value: usize) -> (u32, u32) {
        let value = value.min(self.values - 1);
        let start = self.start(value);
        (start, self.start(value + 1) - start)
    }

    /// The value whose interval holds `slot`, and its interval.
    pub fn find(&self, slot: u32) -> (usize, u32, u32) {
        let (mut low, mut high) = (0, self.values);
        let (mut start, mut end) = (0, 1 << MAX_BITS);
        let mut first = self.likely.into_iter().flat_map(|value| [value, value + 1]);
        while high - low > 1 {
            let middle = first.find(|&value| low < value && value < high).unwrap_or((low + high) / 2);
            let at = self.start(middle);
            if at <= slot {
                (low, start) = (middle, at);
            } else {
                (high, end) = (middle, at);
            }
        }
        (low, start, end - start)
    }
}

/// The messages on the way from the root, and room to compute.
struct Way<'s> {
    /// Numbers of a message, even.
    stride: usize,
    sums: &'s mut [u64],
    scratch: &'s mut [u32],
    /// `[depth][down, value][stride]`.
    messages: &'s mut [u32],
}

/// What a step works with: accumulators and scratch for the longer of both messages, and the messages of a region and its parent.
struct Step<'s> {
    sums: &'s mut [u64],
    scratch: &'s mut [u32],
    parent_down: &'s [u32],
    parent_value: &'s mut [u32],
    down: &'s mut [u32],
    value: &'s mut [u32],
}

impl Way<'_> {
    fn step(&mut self, region: &Region) -> Option<Step<'_>> {
        let stride = self.stride;
        let (above, own) = self.messages.split_at_mut_checked(region.depth * 2 * stride)?;
        let parent = match region.depth {
            0 => &mut [],
            _ => above.get_mut((region.depth - 1) * 2 * stride..)?,
        };
        let (parent_down, parent_value) = parent.split_at_mut(parent.len() / 2);
        let (down, value) = own.get_mut(..2 * stride)?.split_at_mut(stride);
        let parent_units = if region.depth == 0 { 0 } else { region.above };
        Some(Step {
            sums: self.sums,
            scratch: self.scratch.get_mut(..region.above)?,
            parent_down: parent_down.get(..parent_units)?,
            parent_value: parent_value.get_mut(..parent_units)?,
            down: down.get_mut(..region.units)?,
            value: value.get_mut(..region.units)?,
        })
    }

    /// Computes `down` of a region from its parent's messages.
    fn enter(&mut self, region: &Region) -> Option<()> {
        let step = self.step(region)?;
        let message = step.scratch;
        if region.parent.is_none() {
            message.fill(1);
        } else {
            let products = step.sums.get_mut(..region.above)?;
            for ((p, &d), &v) in products.iter_mut().zip(step.parent_down).zip(&*step.parent_value) {
                *p = d as u64 * v as u64;
            }
            normalize(products, message);
        }
        let sums = step.sums.get_mut(..region.units)?;
        region.weights.downwards(message, sums);
        normalize(sums, step.down);
        Some(())
    }

    /// Asks for the value of the region's variable and makes `value` its input units'.
    fn observe(&mut self, region: &Region, choose: &mut impl FnMut(usize, &Conditional) -> usize) -> Option<()> {
        let step = self.step(region)?;
        let (units, values) = (region.units, region.values);
        let sums = step.sums.get_mut(..units)?;
        sums.fill(1);
        if let Some(variable) = region.variable {
            let total: u64 = step.down.iter().map(|&m| m as u64).sum();
            let factor = (((1 << MAX_BITS) - values as u64) << 32) / total.max(1);
            let conditional =
                Conditional { table: region.table, units, values, likely: region.likely, down: step.down, factor };
            let x = choose(variable, &conditional).min(values - 1);
            let (low, high) = region.table.get(x * units..)?.get(..2 * units)?.split_at(units);
            for ((sum, &low), &high) in sums.iter_mut().zip(low).zip(high) {
                *sum = (high - low) as u64;
            }
        }
        normalize(sums, step.value);
        Some(())
    }

    /// Multiplies the sums of a finished region into its parent's `value`.
    fn leave(&mut self, region: &Region) -> Option<()> {
        let step = self.step(region)?;
        let sums = step.sums.get_mut(..region.above)?;
        region.weights.upwards(step.value, sums);
        normalize(sums, step.scratch);
        for ((sum, &a), &b) in sums.iter_mut().zip(&*step.parent_value).zip(&*step.scratch) {
            *sum = a as u64 * b as u64;
        }
        normalize(sums.get(..step.parent_value.len())?, step.parent_value);
        Some(())
    }
}

impl Weights<'_> {
    /// `sums[j] = sum_i message[i] * weights[i][j]`
    fn downwards(&self, message: &[u32], sums: &mut [u64]) {
        sums.fill(0);
        match *self {
            Weights::Dense(weights) => {
                for (row, &m) in weights.chunks_exact(sums.len()).zip(message) {
                    for (sum, &w) in sums.iter_mut().zip(row) {
                        *sum += m as u64 * w as u64;
                    }
                }
            }
            Weights::Sparse { .. } => {
                for (i, &m) in message.iter().enumerate() {
                    self.edges(i).for_each(|(j, w)| sums.get_mut(j).into_iter().for_each(|sum| *sum += m as u64 * w));
                }
            }
        }
    }

    /// `sums[i] = sum_j weights[i][j] * value[j]`
    fn upwards(&self, value: &[u32], sums: &mut [u64]) {
        match *self {
            Weights::Dense(weights) => {
                for (sum, row) in sums.iter_mut().zip(weights.chunks_exact(value.len())) {
                    *sum = row.iter().zip(value).map(|(&w, &v)| w as u64 * v as u64).sum();
                }
            }
            Weights::Sparse { .. } => {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = self.edges(i).map(|(j, w)| value.get(j).map_or(0, |&v| v as u64 * w)).sum();
                }
            }
        }
    }

    /// Units and weights of a row of sparse weights.
    fn edges(&self, row: usize) -> impl Iterator<Item = (usize, u64)> + '_ {
        let (columns, weights) = match *self {
            Weights::Dense(_) => (&[][..], &[][..]),
            Weights::Sparse { starts, columns, weights } => {
                let at = |i: usize| starts.get(i).map_or(0, |&start| start as usize);
                let range = at(row)..at(row + 1);
                (columns.get(range.clone()).unwrap_or_default(), weights.get(range).unwrap_or_default())
            }
        };
        columns.iter().zip(weights).map(|(&column, &w)| (column as usize, w as u64))
    }
}

/// Scales sums by a power of two so that all of them together stay below 2^32; all zeros become equal.
fn normalize(sums: &[u64], message: &mut [u32]) {
    let bits = 32 - (sums.len() as u32).next_power_of_two().trailing_zeros();
    let together = sums.iter().fold(0, |together, &sum| together | sum);
    let used = u64::BITS - together.leading_zeros();
    if used == 0 {
        message.fill(1 << (bits - 1));
    } else if used > bits {
        let shift = used - bits;
        message.iter_mut().zip(sums).for_each(|(m, &sum)| *m = (sum >> shift) as u32);
    } else {
        let shift = bits - used;
        message.iter_mut().zip(sums).for_each(|(m, &sum)| *m = (sum << shift) as u32);
    }
}

fn dot(a: &[u32], b: &[u32]) -> u64 {
    a.iter().zip(b).map(|(&a, &b)| a as u64 * b as u64).sum()
}
