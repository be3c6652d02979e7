//! Weights, given the same weights in fewer bits: what a file of several precisions tells of the finer ones.
//!
//! A filter was rounded twice, with a coarse step to levels `a` and with a fine step to levels `b`; `R` is how many fine steps a coarse one has. Then
//! the weight lay within half a coarse step of `a R`, and `b` is one of the few levels of that interval:
//!
//! ```text
//! lower = (a - 1/2) R - slack, without bound where a is the lowest coarse level
//! upper = (a + 1/2) R + slack, without bound where a is the highest
//! p(b | a) = mass of [b - 1/2, b + 1/2] within [lower, upper] / mass of [lower, upper]
//! ```
//!
//! The mass is that of a histogram over `|b| / R`, told once for all rows: the circuit of the fine weights, asked with the coarse ones as evidence. Together
//! both codes take little more than the fine weights alone, because fine weights all but tell the coarse ones.

use super::{Coder, Leaf};

/// What the header says, beyond the shape.
///
/// | part | content |
/// |---|---|
/// | bottom, top | i8 each: lowest and highest coarse level |
/// | limit | u8: largest fine magnitude, 1 to 128 |
/// | slack | u8, in sixteenths of a fine level |
/// | ratio | u8: bits 0-2 `shift`, 3 signs are told, 4-7 `bits`, up to 8 |
/// | base | u16: of ratios |
/// | bins | u8: of the histogram, 1 to [`MAX_BINS`]; each is half a coarse step wide |
/// | densities | u8 each, from the middle outwards |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params<'a> {
    /// Lowest coarse level.
    pub bottom: i8,
    /// Highest coarse level.
    pub top: i8,
    /// Largest fine magnitude.
    pub limit: u8,
    /// By how much intervals are wider, in sixteenths of a fine level.
    pub slack: u8,
    /// Rows have a sign: those with a minus were negated after they were rounded, so that their lowest and highest levels changed places.
    pub signs: bool,
    /// Ratios are told with so many bits, in units of `2^(ratio_shift - 8)` fine levels.
    pub ratio_shift: u8,
    /// See `ratio_shift`.
    pub ratio_bits: u8,
    /// The smallest ratio, in these units.
    pub ratio_base: u16,
    /// Of the bins.
    pub densities: &'a [u8],
}

/// Instructions that a weight takes on a Cortex-M4, about: measured where a coarse level leaves sixteen fine ones.
pub const INSTRUCTIONS_PER_WEIGHT: u32 = 330;

/// Largest ratio, in 2^-8.
pub const MAX_RATIO: u32 = 1 << 16;

/// Most bins of a histogram.
pub const MAX_BINS: usize = 64;

impl<'a> Params<'a> {
    /// Reads them.
    pub(super) fn parse(bytes: &mut &'a [u8]) -> Option<Params<'a>> {
        let &[bottom, top, limit, slack, ratio, low, high, bins] = bytes.split_off(..8)?.first_chunk()?;
        let params = Params {
            bottom: bottom as i8,
            top: top as i8,
            limit,
            slack,
            signs: ratio >> 3 & 1 == 1,
            ratio_shift: ratio & 7,
            ratio_bits: ratio >> 4,
            ratio_base: u16::from_le_bytes([low, high]),
            densities: bytes.split_off(..bins as usize)?,
        };
        let is_valid = (1..=128).contains(&limit) && params.ratio_bits <= 8;
        (is_valid && (1..=MAX_BINS).contains(&params.densities.len())).then_some(params)
    }

    /// Writes them through `push`.
    pub fn emit(&self, push: impl FnMut(u8)) {
        let [low, high] = self.ratio_base.to_le_bytes();
        let ratio = self.ratio_shift | u8::from(self.signs) << 3 | self.ratio_bits << 4;
        let bins = self.densities.len() as u8;
        let head = [self.bottom as u8, self.top as u8, self.limit, self.slack, ratio, low, high, bins];
        head.iter().chain(self.densities).copied().for_each(push);
    }

    /// Words of memory for a decoder.
    pub fn state_words(&self) -> usize {
        self.densities.len() + 1
    }

    /// The ratio that symbol `told` means, in 2^-8.
    pub fn ratio(&self, told: i32) -> u32 {
        ((self.ratio_base as u32 + told as u32) << self.ratio_shift).clamp(1, MAX_RATIO)
    }
}

/// Numbers of some bits, equally probable.
struct Told(u32);

impl Leaf for Told {
    const BITS: u32 = 16;

    fn interval(&self, symbol: i32) -> (u32, u32) {
        let width = 1 << (16 - self.0);
        (symbol as u32 * width, width)
    }

    fn locate(&self, slot: u32) -> (i32, u32, u32) {
        let symbol = (slot >> (16 - self.0)) as i32;
        let (start, width) = self.interval(symbol);
        (symbol, start, width)
    }
}

/// A row's histogram: half of its mass, 2^15, from the middle outwards.
#[derive(Clone, Copy, Debug)]
struct Histogram<'s> {
    /// Mass up to every edge.
    edges: &'s [u32],
    /// Bins of a fine level: `mantissa / 2^shift`, in 2^-8 of both.
    mantissa: u32,
    shift: u32,
}

impl Histogram<'_> {
    /// With a ratio in 2^-8.
    fn new(edges: &[u32], ratio: u32) -> Histogram<'_> {
        // A bin is half of the ratio: `512 / ratio` of them in a level.
        let shift = 7 + ratio.ilog2();
        Histogram { edges, mantissa: ((1u64 << (9 + shift)) / ratio as u64) as u32, shift }
    }

    /// The mass up to a place in 2^-8 of a level, out of 2^16.
    #[inline(always)]
    fn at(&self, place: i32) -> u32 {
        let bins = (place.unsigned_abs() * self.mantissa) >> self.shift;
        let edge = |i: u32| self.edges.get(i as usize).map_or(1 << 15, |&mass| mass);
        let start = edge(bins >> 8);
        let half = start + (((edge((bins >> 8) + 1) - start) * (bins & 255)) >> 8);
        if place < 0 { (1 << 15) - half } else { (1 << 15) + half }
    }
}

/// The fine levels that a coarse one leaves.
#[derive(Clone, Copy, Debug)]
struct Given<'s> {
    histogram: Histogram<'s>,
    /// Left end of the interval, in 2^-8 levels.
    lower: i32,
    /// Levels that it touches.
    low: i32,
    high: i32,
    /// The mass up to `lower`; of an interval without mass, which counts as flat, none.
    before: Option<u32>,
    /// Of the interval.
    mass: u32,
}

/// Mass below which an interval counts as flat.
const LEAST_MASS: u32 = 256;

impl<'s> Given<'s> {
    fn new(histogram: Histogram<'s>, params: &Params<'_>, ratio: u32, coarse: i32) -> Given<'s> {
        let (limit, slack) = (params.limit as i32, 16 * params.slack as i32);
        let end = 256 * limit + 128;
        let edge = |twice: i32| (twice * ratio as i32) >> 1;
        let lower = if coarse <= params.bottom as i32 { -end } else { edge(2 * coarse - 1) - slack };
        let upper = if coarse >= params.top as i32 { end } else { edge(2 * coarse + 1) + slack };
        let lower = lower.clamp(-end, end);
        let upper = upper.clamp(lower, end);
        let level = |at: i32| ((at + 128) >> 8).clamp(-limit, limit);
        let before = histogram.at(lower);
        let mass = histogram.at(upper) - before;
        let (before, mass) = match mass >= LEAST_MASS {
            true => (Some(before), mass),
            false => (None, (upper - lower) as u32 / 2 + 1),
        };
        Given { histogram, lower, low: level(lower), high: level(upper), before, mass }
    }

    /// First slot of a level, or the end of them: strictly increasing from `low` to `high + 1`.
    #[inline(always)]
    fn start(&self, k: i32) -> u32 {
        if k <= self.low {
            return 0;
        }
        if k > self.high {
            return 1 << 16;
        }
        let at = 256 * k - 128;
        let part = match self.before {
            Some(before) => self.histogram.at(at).saturating_sub(before),
            None => (at - self.lower).max(0) as u32 / 2,
        };
        let levels = (self.high - self.low + 1) as u32;
        part.min(self.mass) * ((1 << 16) - levels) / self.mass.max(1) + (k - self.low) as u32
    }
}

impl Leaf for Given<'_> {
    const BITS: u32 = 16;

    #[inline(always)]
    fn interval(&self, k: i32) -> (u32, u32) {
        let start = self.start(k);
        (start, self.start(k + 1) - start)
    }

    /// A guess as if all levels had the same mass, then one at a time.
    #[inline(always)]
    fn locate(&self, slot: u32) -> (i32, u32, u32) {
        let mut k = self.low + ((slot * (self.high - self.low + 1) as u32) >> 16) as i32;
        let mut start = self.start(k);
        let mut end = None;
        while start > slot {
            (end, k) = (Some(start), k - 1);
            start = self.start(k);
        }
        let mut end = end.unwrap_or_else(|| self.start(k + 1));
        while end <= slot {
            (start, k) = (end, k + 1);
            end = self.start(k + 1);
        }
        (k, start, end - start)
    }
}

/// The model while it walks.
#[derive(Debug)]
pub struct Refined<'a, 's> {
    params: Params<'a>,
    edges: &'s [u32],
}

impl<'a, 's> Refined<'a, 's> {
    /// A model before the first row; none if `state` has fewer than [`Params::state_words`] words.
    pub fn new(params: &Params<'a>, state: &'s mut [u32]) -> Option<Refined<'a, 's>> {
        let edges = state.get_mut(..params.state_words())?;
        // No bin is empty, so that no level is far from the histogram.
        let sum: u32 = params.densities.iter().map(|&d| d as u32 + 1).sum();
        let mut total = 0;
        for (edge, i) in edges.iter_mut().zip(0..) {
            *edge = (total << 15) / sum.max(1);
            total += params.densities.get(i).map_or(0, |&d| d as u32 + 1);
        }
        Some(Refined { params: *params, edges })
    }

    /// The next row, which holds coarse levels before and fine ones after.
    pub fn row(&mut self, coder: &mut impl Coder, row: &mut [i8]) {
        let sign = if self.params.signs && coder.code(&Told(1)) == 1 { -1 } else { 1 };
        let told = if self.params.ratio_bits > 0 { coder.code(&Told(self.params.ratio_bits as u32)) } else { 0 };
        let ratio = self.params.ratio(told);
        let histogram = Histogram::new(self.edges, ratio);
        for w in row {
            let given = Given::new(histogram, &self.params, ratio, sign * *w as i32);
            *w = (sign * coder.code(&given)) as i8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every coarse level of every kind of header splits all slots among its levels, and every slot finds its own.
    #[test]
    fn evidence_leaves_a_partition() {
        let densities: [&[u8]; 4] = [&[255; 64], &[200, 180, 90, 30, 4], &[0], &[255, 0, 0, 0, 0, 255, 7]];
        for (i, (slack, ratio)) in
            [(0, 16 << 8), (1, 4 << 8), (255, 1), (0, MAX_RATIO), (7, 2900)].into_iter().enumerate()
        {
            let limit = if slack == 7 { 7 } else { 127 };
            let params = Params {
                bottom: -8,
                top: 7,
                limit,
                slack,
                signs: false,
                ratio_shift: 0,
                ratio_bits: 0,
                ratio_base: ratio.min(65_535) as u16,
                densities: densities[i % 4],
            };
            let mut state = [0; MAX_BINS + 1];
            let model = Refined::new(&params, &mut state).unwrap();
            assert!(model.edges.is_sorted() && model.edges.last() == Some(&(1 << 15)));
            for coarse in -128..=127 {
                let given = Given::new(Histogram::new(model.edges, ratio), &params, ratio, coarse);
                let mut next = 0;
                for k in given.low..=given.high {
                    let (start, freq) = given.interval(k);
                    assert!(start == next && freq > 0, "{params:?}, {coarse}, {k}");
                    for slot in [start, start + freq / 2, start + freq - 1] {
                        assert_eq!(given.locate(slot), (k, start, freq), "{params:?}, {coarse}");
                    }
                    next = start + freq;
                }
                assert_eq!(next, 1 << 16, "{params:?}, {coarse}");
            }
        }
    }
}
