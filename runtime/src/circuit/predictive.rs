//! The predictive model: every weight has a mean and a scale that follow from weights already decoded, and nothing but a few bytes is sent.
//!
//! ```text
//! mean       = sum over taps of  a[i] * w[t - distance[i]]
//! log2 scale = row + channel + position
//! p(w)       = Parametric(shape, mean, scale, ...)        see `leaf`
//! ```
//!
//! Everything that adapts does so by a step along the gradient of the code length. With `z = (w - mean) / scale`:
//!
//! ```text
//! a[i]                   += rate * clamp(z, -4, 4) * w[t - distance[i]] / scale
//! row, channel, position += rate * log2(e) * (min(|z|, 4) - 1)
//! ```
//!
//! | estimate | rate, for its `n`-th step | starts |
//! |---|---|---|
//! | `row` | `max(1 / (n + 14), 1/100)`, set anew every eighth step | in every row, at a mean of earlier rows' ends |
//! | `channel`, if there are several | `max(1 / (n + 10), 1/50)` | once, at 0 |
//! | `position`, if there are several | `max(1 / (n + 50), 1/500)`, `n` counting rows times channels, once for all of a position | once, at 0 |
//! | `a` | `2^-k`, `k = log2(weights so far + 1) - 2` within 6 and 11 | once, at 0 |
//!
//! Three things are told beside the code, each if the header says so. **Zero channels**, **zero rows**: a bit for each, and their weights
//! cost nothing. **Gaps**: a row whose weights below a threshold were set to zero. And **peaks** are assumed: a row was scaled so that its
//! largest magnitude is the limit, hence until that was seen, each of the `m` weights left is it with probability `1 / m`.
//!
//! A tap whose source lies in another line of the kernel (its column is more than half a kernel away) is left out at that position.

use super::leaf::{Parametric, Reciprocal, SHAPES, Table, Uniform};
use super::stream::{Shape, varint};
use super::{Coder, emit_varint};
use core::cell::Cell;

/// Most taps.
pub const MAX_TAPS: usize = 15;

/// What the header says, beyond the shape.
///
/// | part | content |
/// |---|---|
/// | flags | u8: bits 0-3 shape, 4 peaks, 5 zero rows, 6 gaps, 7 zero channels |
/// | counts | u8: bits 0-3 taps, 4 a limit follows, 5-7 zero |
/// | limit | u8 if told, else `2^(bits - 1) - 1` |
/// | width | u8 if there are several positions: columns of the kernel |
/// | base | u8: log2 of the first row's scale, from -4 in steps of 1/16 |
/// | taps | varint each: distance in weights, `[row, position, channel]` |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Below [`SHAPES`].
    pub shape: u8,
    /// The largest magnitude of every row, unless all its weights are zero, is `limit`.
    pub peaks: bool,
    /// Rows of zeros are told.
    pub zero_rows: bool,
    /// Gaps are told, row by row.
    pub gaps: bool,
    /// Channels of zeros are told.
    pub zero_channels: bool,
    /// Largest magnitude, 1 to 128.
    pub limit: u8,
    /// Columns of the kernel.
    pub width: u8,
    /// Of the first row's scale.
    pub base: u8,
    /// How many of `taps` count.
    pub tap_count: u8,
    /// Distances.
    pub taps: [u16; 15],
}

impl Params {
    /// Those of weights of `bits` bits, without options.
    pub fn new(bits: u8) -> Params {
        Params {
            shape: 0,
            peaks: false,
            zero_rows: false,
            gaps: false,
            zero_channels: false,
            limit: ((1u32 << (bits - 1)) - 1).max(1) as u8,
            width: 1,
            base: 0,
            tap_count: 0,
            taps: [0; MAX_TAPS],
        }
    }

    /// Reads them.
    pub(super) fn parse(bytes: &mut &[u8], shape: Shape, bits: u8) -> Option<Params> {
        let (flags, counts) = (*bytes.split_off_first()?, *bytes.split_off_first()?);
        let flag = |bit: u32| flags >> bit & 1 == 1;
        let mut params = Params::new(bits);
        (params.shape, params.tap_count) = (flags % SHAPES, counts & 15);
        (params.peaks, params.zero_rows, params.gaps, params.zero_channels) = (flag(4), flag(5), flag(6), flag(7));
        if counts & 0x10 != 0 {
            params.limit = *bytes.split_off_first()?;
        }
        if shape.positions > 1 {
            params.width = *bytes.split_off_first()?;
        }
        params.base = *bytes.split_off_first()?;
        for i in 0..params.tap_count as usize {
            *params.taps.get_mut(i)? = varint(bytes)?.try_into().ok()?;
        }
        let is_valid = counts < 0x20 && (1..=128).contains(&params.limit) && params.width > 0;
        (is_valid && !params.distances().contains(&0)).then_some(params)
    }

    /// Writes them through `push`.
    pub fn emit(&self, shape: Shape, bits: u8, mut push: impl FnMut(u8)) {
        let tells_limit = self.limit != Params::new(bits).limit;
        let flags = [self.peaks, self.zero_rows, self.gaps, self.zero_channels];
        push(flags.iter().zip(4..).fold(self.shape, |byte, (&flag, bit)| byte | u8::from(flag) << bit));
        push(self.tap_count | u8::from(tells_limit) << 4);
        if tells_limit {
            push(self.limit);
        }
        if shape.positions > 1 {
            push(self.width);
        }
        push(self.base);
        self.distances().iter().for_each(|&d| emit_varint(d as usize, &mut push));
    }

    /// The taps that count.
    pub fn distances(&self) -> &[u16] {
        self.taps.get(..self.tap_count as usize).unwrap_or(&[])
    }

    /// Weights before a row that its taps reach.
    fn reach(&self) -> usize {
        self.distances().iter().max().map_or(0, |&d| d as usize)
    }

    /// Words of memory for a decoder.
    pub fn state_words(&self, shape: Shape) -> usize {
        let bytes = size_of::<Table>() + 2 * shape.channels + self.reach() + shape.row() + 3;
        bytes / 4 + self.tap_count as usize + shape.positions
    }
}

impl Params {
    /// Instructions that a weight takes on a Cortex-M4, fitted to counts in an emulator.
    pub fn instructions_per_weight(&self, shape: Shape) -> u32 {
        let taps = self.tap_count as usize;
        let weights = shape.rows.saturating_mul(shape.row());
        let shares = (270 + 30 * taps) / shape.channels + 350 / shape.row() + 9_000 / weights;
        (238 + 22 * taps + shares) as u32
    }
}

/// A channel of zeros, in place of its scale.
const ZERO: i16 = i16::MIN;

/// The model while it walks.
#[derive(Debug)]
pub struct Predictive<'s> {
    params: Params,
    shape: Shape,
    table: &'s Table,
    taps: &'s mut [i32],
    /// log2 of scales, in 2^-16.
    positions: &'s mut [i32],
    /// log2 of scales, in 2^-11.
    channels: &'s mut [i16],
    /// Weights that taps reach, then the row.
    window: &'s mut [i8],
    /// Where the next row's scale starts.
    base: i32,
    gap: i32,
    /// Rows so far that had weights.
    rows: u32,
    /// Weights of a row that are coded.
    coded: usize,
}

impl<'s> Predictive<'s> {
    /// A model before the first row, which reads what is told before it; none if `state` has fewer than [`Params::state_words`] words.
    pub fn new(params: &Params, shape: Shape, state: &'s mut [u32], coder: &mut impl Coder) -> Option<Predictive<'s>> {
        let state = state.get_mut(..params.state_words(shape))?;
        state.fill(0);
        let (taps, rest) = state.split_at_mut_checked(params.tap_count as usize)?;
        let (positions, rest) = rest.split_at_mut_checked(shape.positions)?;
        let (table, rest) = bytemuck::cast_slice_mut::<u32, u8>(rest).split_at_mut_checked(size_of::<Table>())?;
        let (channels, rest) = rest.split_at_mut_checked(2 * shape.channels)?;
        let window = rest.get_mut(..params.reach() + shape.row())?;
        let table = bytemuck::try_from_bytes_mut::<Table>(table).ok()?;
        table.fill(params.shape);
        let mut model = Predictive {
            params: *params,
            shape,
            table,
            taps: bytemuck::cast_slice_mut(taps),
            positions: bytemuck::cast_slice_mut(positions),
            channels: bytemuck::try_cast_slice_mut(channels).ok()?,
            window: bytemuck::cast_slice_mut(window),
            base: (params.base as i32 - 128) << 12,
            gap: 0,
            rows: 0,
            coded: shape.row(),
        };
        if params.zero_channels {
            for channel in model.channels.iter_mut() {
                if coder.code(&Uniform::<1>) == 0 {
                    *channel = ZERO;
                    model.coded -= shape.positions;
                }
            }
        }
        Some(model)
    }

    /// The next row.
    pub fn row(&mut self, coder: &mut impl Coder, out: &mut [i8]) {
        let reach = self.window.len() - self.shape.row();
        if self.params.zero_rows && coder.code(&Uniform::<1>) == 0 {
            self.window.get_mut(reach..).unwrap_or(&mut []).fill(0);
        } else {
            if self.params.gaps {
                self.read_gap(coder);
            }
            match self.params.gaps {
                true => self.read_weights::<true>(coder, reach),
                false => self.read_weights::<false>(coder, reach),
            }
            self.rows = (self.rows + 1).min(1 << 16);
        }
        let row = self.window.get(reach..).unwrap_or(&[]);
        out.iter_mut().zip(row).for_each(|(to, &from)| *to = from);
        self.window.copy_within(self.shape.row().., 0);
    }

    /// The row's gap, near the last one's.
    fn read_gap(&mut self, coder: &mut impl Coder) {
        let limit = self.params.limit as i32 - 1;
        let scale = Reciprocal::of_log2(((limit + 2).ilog2() as i32 - 8) << 16);
        let (table, mean) = (self.table, self.gap << 8);
        let leaf = Parametric::<false> { table, scale, mean, gap: 0, limit: limit.max(1), peak: 0 };
        self.gap = coder.code(&leaf).clamp(0, limit);
    }

    fn read_weights<const GAP: bool>(&mut self, coder: &mut impl Coder, reach: usize) {
        let Shape { positions, channels, .. } = self.shape;
        // Without peaks it is as if the largest had been seen.
        let largest = if self.params.peaks { 0 } else { 1 << 15 };
        let mut walk = Walk { scale: self.base, rate: 0, peak: 0, step: 0, largest, gradients: 0 };
        let window = core::mem::take(&mut self.window);
        let cells = Cell::from_mut(&mut *window).as_slice_of_cells();
        let mut sources: Sources = [&[]; MAX_TAPS];
        for position in 0..positions {
            let start = reach + position * channels;
            self.place_taps(position, start, cells, &mut sources);
            let rates = self.rates(position);
            let before = self.positions.get(position).copied().unwrap_or(0);
            (walk.scale, walk.gradients) = (walk.scale.wrapping_add(before), 0);
            self.read_position::<GAP>(coder, &rates, &mut walk, &sources, cells.get(start..).unwrap_or(&[]));
            let gradients = walk.gradients.clamp(-1 << 19, 1 << 19);
            let after = before.wrapping_add((gradients * rates.position) >> 8);
            if let Some(kept) = self.positions.get_mut(position) {
                *kept = after;
            }
            walk.scale = walk.scale.wrapping_sub(before);
        }
        self.window = window;
        self.base = self.base.wrapping_add((walk.scale.wrapping_sub(self.base)) / (self.rows.min(16) as i32 + 2));
    }

    /// The weights of a position, one for each channel.
    #[inline(always)]
    fn read_position<const GAP: bool>(
        &mut self,
        coder: &mut impl Coder,
        rates: &Rates,
        walk: &mut Walk,
        sources: &Sources<'_>,
        row: &[Cell<i8>],
    ) {
        let (limit, gap) = (self.params.limit as i32 - if GAP { self.gap } else { 0 }, self.gap);
        let (table, coded) = (self.table, self.coded);
        let mut values = [0; MAX_TAPS];
        for (channel, (kept, to)) in self.channels.iter_mut().zip(row).enumerate() {
            if *kept == ZERO {
                to.set(0);
                continue;
            }
            if walk.step & 7 == 0 {
                walk.refresh(coded, limit * limit);
            }
            walk.step += 1;
            let mut mean = 0i32;
            for ((a, source), value) in self.taps.iter().zip(sources).zip(&mut values) {
                *value = source.get(channel).map_or(0, |w| w.get() as i32);
                mean = mean.wrapping_add(a.wrapping_mul(*value));
            }
            let mean = (mean >> 10).clamp(-1 << 15, (1 << 15) - 1);
            let scale = Reciprocal::of_log2(walk.scale.wrapping_add((*kept as i32) << 5));
            let leaf = Parametric::<GAP> { table, scale, mean, gap: gap << 8, limit, peak: walk.peak };
            let k = coder.code(&leaf);
            let w = if GAP { k + k.signum() * gap } else { k };
            to.set(w as i8);
            walk.largest = walk.largest.max(k * k);

            let mut z = (((w << 8) - mean) * scale.mantissa) >> (13 + scale.shift);
            let mut magnitude = z.abs();
            if GAP && k == 0 && gap > 0 {
                (z, magnitude) = (0, ((gap << 7) * scale.mantissa) >> (13 + scale.shift));
            }
            let gradient = magnitude.min(1023) - 256;
            walk.scale = walk.scale.wrapping_add((gradient * walk.rate) >> 8);
            walk.gradients = walk.gradients.wrapping_add(gradient);
            let changed = *kept as i32 + ((gradient * rates.channel + (1 << 12)) >> 13);
            *kept = changed.clamp(-1 << 14, (1 << 14) - 1) as i16;
            // A scale far below the weights around would make a step of any size.
            let step = (z.clamp(-1024, 1023) * scale.mantissa) >> (scale.shift.max(rates.least_shift) + rates.taps - 3);
            for (a, value) in self.taps.iter_mut().zip(&values) {
                *a = a.wrapping_add(value.wrapping_mul(step) >> 6);
            }
        }
    }

    /// Rates at a position.
    fn rates(&self, position: usize) -> Rates {
        let Shape { positions, channels, .. } = self.shape;
        let rows = self.rows as usize;
        let after =
            |n: usize, start: u32, least: u32| (LOG2_E / (n.min(1 << 16) as u32 + start)).max(LOG2_E / least) as i32;
        let weights = rows.saturating_mul(self.coded).saturating_add(position * channels + 1);
        Rates {
            channel: if channels > 1 { after(rows.saturating_mul(positions) + position, 10, 50) } else { 0 },
            position: if positions > 1 { after(rows.saturating_mul(channels), 50, 500) } else { 0 },
            taps: (weights.ilog2() as i32 - 2).clamp(6, 11),
            least_shift: ((self.params.limit as i32).ilog2() as i32 - 4).max(-3),
        }
    }

    /// What the taps read at a position, whose weights begin at `start` of the window; a tap that is left out reads nothing.
    fn place_taps<'w>(&self, position: usize, start: usize, window: &'w [Cell<i8>], sources: &mut Sources<'w>) {
        let (width, channels) = (self.params.width as usize, self.shape.channels);
        for (&distance, source) in self.params.distances().iter().zip(sources) {
            let (distance, back) = (distance as usize, distance as usize / channels);
            let is_near = back <= position && (position % width).abs_diff((position - back) % width) <= width / 2;
            let from = start.checked_sub(distance).filter(|_| is_near || distance >= self.shape.row());
            *source = from.and_then(|from| window.get(from..)).unwrap_or(&[]);
        }
    }
}

/// What every tap reads, channel by channel.
type Sources<'w> = [&'w [Cell<i8>]; MAX_TAPS];

/// log2(e), in 2^-16.
const LOG2_E: u32 = 94_548;

/// What changes with every weight of a row.
struct Walk {
    /// log2 of the row's scale, with the position's while there, in 2^-16.
    scale: i32,
    /// Of the row's scale.
    rate: i32,
    /// See [`Parametric::peak`].
    peak: i32,
    /// Weights before this one.
    step: usize,
    /// Square of the largest magnitude, as it is coded.
    largest: i32,
    /// Sum over the position.
    gradients: i32,
}

impl Walk {
    /// What is set anew before every eighth weight, of `coded`. No peak is expected once the largest square is `end`.
    #[inline(always)]
    fn refresh(&mut self, coded: usize, end: i32) {
        self.rate = (LOG2_E / (self.step.min(1 << 16) as u32 + 14)).max(LOG2_E / 100) as i32;
        let left = coded.saturating_sub(self.step).clamp(1, 1 << 15) as i32;
        self.peak = if self.largest < end { ((1 << 15) / left).min(32_000) } else { 0 };
    }
}

/// What changes with the position: rates of scales in 2^-16 log2(e), and of taps as a shift.
struct Rates {
    channel: i32,
    position: i32,
    taps: i32,
    least_shift: i32,
}
