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
//! a[i]                   += rate * clamp(z, -3, 3) * w[t - distance[i]] / scale
//! row, channel, position += rate * log2(e) * (min(|z|, 3.5) - 1)
//! ```
//!
//! | estimate | rate, for its `n`-th step | starts |
//! |---|---|---|
//! | `row` | `max(1 / (n + 12), 1/100)` | in every row, at a mean of earlier rows' ends |
//! | `channel`, if there are several | `max(1 / (n + 10), 1/50)` | once, at 0 |
//! | `position`, if there are several | `max(1 / (n + 50), 1/500)`, `n` counting rows times channels | once, at 0 |
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
        let mut walk = Walk { row: self.base, rate: 0, peak: 0, step: 0, is_seen: !self.params.peaks };
        let mut taps = Taps { sources: [0; MAX_TAPS], values: [0; MAX_TAPS] };
        for position in 0..positions {
            let start = reach + position * channels;
            self.place_taps(position, start, &mut taps);
            let rates = self.rates(position);
            let mut scale = self.positions.get(position).copied().unwrap_or(0);
            for channel in 0..channels {
                let channel_scale = self.channels.get(channel).copied().unwrap_or(0);
                if channel_scale == ZERO {
                    self.put(start + channel, 0);
                    continue;
                }
                if walk.step & 7 == 0 {
                    walk.refresh(self.coded);
                }
                walk.step += 1;
                self.read_weight::<GAP>(coder, &rates, &mut walk, &mut taps, &mut scale, channel, start);
            }
            if let Some(kept) = self.positions.get_mut(position) {
                *kept = scale;
            }
        }
        self.base = self.base.wrapping_add((walk.row.wrapping_sub(self.base)) / (self.rows.min(16) as i32 + 2));
    }

    #[inline(always)]
    fn read_weight<const GAP: bool>(
        &mut self,
        coder: &mut impl Coder,
        rates: &Rates,
        walk: &mut Walk,
        taps: &mut Taps,
        position_scale: &mut i32,
        channel: usize,
        start: usize,
    ) {
        let (limit, gap) = (self.params.limit as i32 - if GAP { self.gap } else { 0 }, self.gap);
        let mut mean = 0i32;
        for ((a, from), value) in self.taps.iter().zip(&taps.sources).zip(&mut taps.values) {
            *value = self.window.get(from.wrapping_add(channel)).map_or(0, |&w| w as i32);
            mean = mean.wrapping_add(a.wrapping_mul(*value));
        }
        let mean = (mean >> 10).clamp(-1 << 15, (1 << 15) - 1);
        let channel_scale = self.channels.get(channel).map_or(0, |&c| c as i32);
        let scale = Reciprocal::of_log2(walk.row.wrapping_add(channel_scale << 5).wrapping_add(*position_scale));
        let leaf = Parametric::<GAP> { table: self.table, scale, mean, gap: gap << 8, limit, peak: walk.peak };
        let k = coder.code(&leaf);
        let w = if GAP { k + k.signum() * gap } else { k };
        self.put(start + channel, w as i8);
        if k.abs() == limit {
            walk.see();
        }

        let mut z = (((w << 8) - mean) * scale.mantissa) >> (13 + scale.shift);
        let mut magnitude = z.abs();
        if GAP && k == 0 && gap > 0 {
            (z, magnitude) = (0, ((gap << 7) * scale.mantissa) >> (13 + scale.shift));
        }
        let gradient = magnitude.min(1023) - 256;
        walk.row = walk.row.wrapping_add((gradient * walk.rate) >> 8);
        *position_scale = position_scale.wrapping_add((gradient * rates.position) >> 8);
        if let Some(kept) = self.channels.get_mut(channel) {
            let changed = channel_scale + ((gradient * rates.channel + (1 << 12)) >> 13);
            *kept = changed.clamp(-1 << 14, (1 << 14) - 1) as i16;
        }
        // A scale far below the weights around would make a step of any size.
        let step = (z.clamp(-1024, 1023) * scale.mantissa) >> (scale.shift.max(rates.least_shift) + rates.taps - 3);
        for (a, value) in self.taps.iter_mut().zip(&taps.values) {
            *a = a.wrapping_add((value.wrapping_mul(step) + 32) >> 6);
        }
    }

    #[inline(always)]
    fn put(&mut self, at: usize, w: i8) {
        if let Some(to) = self.window.get_mut(at) {
            *to = w;
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
            least_shift: (self.params.limit as i32).ilog2() as i32 - 4,
        }
    }

    /// Where the taps' sources for channel 0 of a position lie, whose weights begin at `start` of the window.
    fn place_taps(&self, position: usize, start: usize, taps: &mut Taps) {
        let (width, channels) = (self.params.width as usize, self.shape.channels);
        for (&distance, source) in self.params.distances().iter().zip(&mut taps.sources) {
            let (distance, back) = (distance as usize, distance as usize / channels);
            let is_near = back <= position && (position % width).abs_diff((position - back) % width) <= width / 2;
            let is_active = is_near || distance >= self.shape.row();
            *source = if is_active { start.wrapping_sub(distance) } else { NOWHERE };
        }
    }
}

/// log2(e), in 2^-16.
const LOG2_E: u32 = 94_548;

/// The source of a tap that is left out: beyond any window, whatever the channel.
const NOWHERE: usize = usize::MAX / 2;

/// What changes with every weight of a row.
struct Walk {
    /// log2 of the row's scale, in 2^-16.
    row: i32,
    /// Of the row's scale.
    rate: i32,
    /// See [`Parametric::peak`].
    peak: i32,
    /// Weights before this one.
    step: usize,
    is_seen: bool,
}

impl Walk {
    /// What is set anew before every eighth weight, of `coded`.
    fn refresh(&mut self, coded: usize) {
        self.rate = (LOG2_E / (self.step.min(1 << 16) as u32 + 14)).max(LOG2_E / 100) as i32;
        if !self.is_seen {
            let left = coded.saturating_sub(self.step).clamp(1, 1 << 15) as i32;
            self.peak = ((1 << 15) / left).min(32_000);
        }
    }

    fn see(&mut self) {
        (self.is_seen, self.peak) = (true, 0);
    }
}

/// What changes with the position: rates of scales in 2^-16 log2(e), and of taps as a shift.
struct Rates {
    channel: i32,
    position: i32,
    taps: i32,
    least_shift: i32,
}

/// The taps at a position.
struct Taps {
    /// Where the source for channel 0 lies in the window.
    sources: [usize; MAX_TAPS],
    /// The sources of the weight that is next.
    values: [i32; MAX_TAPS],
}
