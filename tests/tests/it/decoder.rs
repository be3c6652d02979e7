//! A decoder of coded constants, written only to be read: it follows `runtime/FORMAT.md` and shares no line with the runtime.
//!
//! Numbers are as wide as they need to be, tables come from real functions, and a symbol is found by trying one after another.

use std::collections::VecDeque;
use std::f64::consts::PI;

/// The weights `[rows, positions, channels]` of a coded constant; none if the code does not end as it must.
pub fn decode(bytes: &[u8], bits: u32, len: usize) -> Option<Vec<i8>> {
    let mut header = Header(bytes);
    let model = header.byte();
    let (rows, positions) = (header.varint(), header.varint());
    let shape = Shape { rows, positions, channels: len / rows / positions };
    let (weights, coder) = match model {
        0 => uniform(shape, bits, header.code()),
        1 => classes(shape, &mut header),
        2 => predictive(shape, bits, &mut header),
        4 => narrow(shape, &mut header),
        _ => return None,
    };
    whole(weights, &coder)
}

/// The weights of a refined constant, whose coarser ones are `coarse`.
pub fn decode_refined(bytes: &[u8], coarse: &[i8]) -> Option<Vec<i8>> {
    let mut header = Header(bytes);
    assert_eq!(header.byte(), 3);
    let (rows, positions) = (header.varint(), header.varint());
    let shape = Shape { rows, positions, channels: coarse.len() / rows / positions };
    let (weights, coder) = refined(shape, coarse, &mut header);
    whole(weights, &coder)
}

/// Bias, multiplier and shift of every channel of a coded constant of `n` output stages.
pub fn decode_stages(bytes: &[u8], n: usize) -> Vec<(i64, i64, i64)> {
    let [precision, drop, scale_bits, bias_bits] = [0, 1, 2, 3].map(|i| i64::from(bytes[i]));
    let word = |at: usize| [0, 1, 2, 3].map(|i| i64::from(bytes[at + i]) << (8 * i)).iter().sum::<i64>();
    let bit = |i: i64| i64::from(bytes[12 + i as usize / 8]) >> (i % 8) & 1;
    let number = |from: i64, bits: i64| (0..bits).map(|i| bit(from + i) << i).sum::<i64>();
    let of = |channel: i64| {
        let from = channel * (scale_bits + bias_bits);
        let scale = (word(4) + number(from, scale_bits)) % (1 << 32);
        let (octave, rest) = (scale >> precision, scale % (1 << precision));
        let shift = 62 - octave;
        let bias = word(8) + number(from + scale_bits, bias_bits);
        let bias = bias << (shift - drop).max(0);
        (i64::from(bias as i32), ((1 << precision) + rest) << (30 - precision), shift)
    };
    (0..n as i64).map(of).collect()
}

/// The weights, if the code ended as it must.
fn whole(weights: Vec<i64>, coder: &Coder) -> Option<Vec<i8>> {
    let check = (coder.check % 65_536) ^ (coder.check / 65_536);
    let is_whole = coder.state == 1 << 16 && coder.words.is_empty() && check == coder.told as u32;
    is_whole.then(|| weights.into_iter().map(|w| w as i8).collect())
}

#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    positions: usize,
    channels: usize,
}

impl Shape {
    fn row(&self) -> usize {
        self.positions * self.channels
    }
}

/// What is left of a constant.
struct Header<'a>(&'a [u8]);

impl Header<'_> {
    fn byte(&mut self) -> usize {
        let (&first, rest) = self.0.split_first().expect("a header is whole");
        self.0 = rest;
        first as usize
    }

    fn varint(&mut self) -> usize {
        match self.byte() {
            low if low < 128 => low,
            low => low - 128 + 128 * self.varint(),
        }
    }

    /// The state, the check, then words.
    fn code(&self) -> Coder {
        let state = u32::from_le_bytes(self.0[..4].try_into().expect("four bytes"));
        let mut words: VecDeque<u16> = self.0[4..].chunks(2).map(|w| u16::from_le_bytes([w[0], w[1]])).collect();
        let told = words.pop_front().expect("a check");
        Coder { state: state as u64, words, check: state, told }
    }
}

/// "Coder".
struct Coder {
    state: u64,
    words: VecDeque<u16>,
    check: u32,
    told: u16,
}

impl Coder {
    /// The symbol among `symbols` whose interval of `2^bits` slots holds the state's slot; `start` says where each begins.
    fn symbol(&mut self, bits: u32, symbols: std::ops::RangeInclusive<i64>, start: impl Fn(i64) -> i64) -> i64 {
        let slot = (self.state % (1 << bits)) as i64;
        let symbol = symbols.rev().find(|&s| start(s) <= slot).expect("the first symbol starts at 0");
        self.advance(bits, start(symbol), start(symbol + 1));
        symbol
    }

    fn advance(&mut self, bits: u32, start: i64, end: i64) {
        let slot = self.state % (1 << bits);
        self.state = (end - start) as u64 * (self.state >> bits) + slot - start as u64;
        if self.state < 1 << 16 {
            self.state = self.state << 16 | self.words.pop_front().unwrap_or(0) as u64;
            self.check = self.check.rotate_left(5) ^ self.state as u32;
        }
    }

    /// One of `2^bits` values of equal probability.
    fn equal(&mut self, bits: u32) -> i64 {
        self.symbol(bits, 0..=(1 << bits) - 1, |s| s)
    }
}

/// "Uniform".
fn uniform(shape: Shape, bits: u32, mut coder: Coder) -> (Vec<i64>, Coder) {
    let weights = (0..shape.rows * shape.row()).map(|_| coder.equal(bits) - (1 << (bits - 1))).collect();
    (weights, coder)
}

/// "Narrow".
fn narrow(shape: Shape, header: &mut Header<'_>) -> (Vec<i64>, Coder) {
    let flags = header.byte();
    let (bits, shifted) = (flags as u32 % 16, flags / 16 == 1);
    let mut coder = header.code();
    let mut weights = Vec::new();
    for _ in 0..shape.rows {
        let zero_point = if shifted { coder.equal(bits) } else { 1 << (bits - 1) };
        weights.extend((0..shape.row()).map(|_| coder.equal(bits) - zero_point));
    }
    (weights, coder)
}

/// "Refined".
fn refined(shape: Shape, coarse: &[i8], header: &mut Header<'_>) -> (Vec<i64>, Coder) {
    let [bottom, top] = [header.byte(), header.byte()].map(|byte| i64::from(byte as u8 as i8));
    let (limit, slack, flags) = (header.byte() as i64, header.byte() as i64, header.byte());
    let base = header.byte() + 256 * header.byte();
    let bins = header.byte();
    let densities: Vec<i64> = (0..bins).map(|_| header.byte() as i64 + 1).collect();
    let sum: i64 = densities.iter().sum();
    let edge = |i: i64| densities.iter().take(i as usize).sum::<i64>() * 32_768 / sum;
    let mut coder = header.code();
    let told = |coder: &mut Coder, bits: u32| coder.symbol(16, 0..=(1 << bits) - 1, |s| s << (16 - bits));
    let mut weights = Vec::new();
    for row in coarse.chunks(shape.row()) {
        let sign = if flags & 8 != 0 && told(&mut coder, 1) == 1 { -1 } else { 1 };
        let symbol = if flags >> 4 > 0 { told(&mut coder, (flags >> 4) as u32) } else { 0 };
        let ratio = ((base as i64 + symbol) << (flags & 7)).clamp(1, 65_536);
        let shift = 7 + ratio.ilog2();
        let mantissa = (1i64 << (9 + shift)) / ratio;
        let mass = |x: i64| {
            let bins = (x.abs() * mantissa) >> shift;
            let start = edge(bins >> 8);
            let half = start + (((edge((bins >> 8) + 1) - start) * (bins % 256)) >> 8);
            32_768 + if x < 0 { -half } else { half }
        };
        for &a in row {
            let (a, end) = (sign * i64::from(a), 256 * limit + 128);
            let place = |twice: i64| (twice * ratio) >> 1;
            let lower = if a <= bottom { -end } else { (place(2 * a - 1) - 16 * slack).clamp(-end, end) };
            let upper = if a >= top { end } else { (place(2 * a + 1) + 16 * slack).clamp(lower, end) };
            let level = |x: i64| ((x + 128) >> 8).clamp(-limit, limit);
            let (low, high) = (level(lower), level(upper));
            let is_flat = mass(upper) - mass(lower) < 256;
            let whole = if is_flat { (upper - lower) / 2 + 1 } else { mass(upper) - mass(lower) };
            let start = |k: i64| match k {
                _ if k <= low => 0,
                _ if k > high => 65_536,
                _ => {
                    let x = 256 * k - 128;
                    let part = if is_flat { (x - lower).max(0) / 2 } else { (mass(x) - mass(lower)).max(0) };
                    part.min(whole) * (65_536 - (high - low + 1)) / whole + k - low
                }
            };
            weights.push(sign * coder.symbol(16, low..=high, start));
        }
    }
    (weights, coder)
}

/// "Shapes": `2^16 F` of a leaf's shape, from -8 to 8 in steps of 1/8.
struct Leaf(Vec<i64>);

impl Leaf {
    fn new(shape: usize) -> Leaf {
        // Twice the width of the second Gaussian, and its weight in sixteenths.
        let (width, weight) = match shape {
            0 => (2, 0),
            k => ([3, 4, 6, 8][(k - 1) / 4 % 4], 1 << ((k - 1) % 4)),
        };
        let normal: Vec<i64> = (0..=176).map(|i| normal(i as f64 / 32.0)).collect();
        let at = |z: i64| {
            let entry = |i: i64| normal.get(i as usize).copied().unwrap_or(1 << 15);
            let (i, part) = (z >> 16, z % 65_536 / 16);
            entry(i) + (entry(i + 1) - entry(i)) * part / 4096
        };
        let eighth = 4 * 52_290 * ((16 - weight) * 2 + weight * width) / 32;
        let half = |i: i64| ((16 - weight) * at(i * eighth) + weight * at(i * eighth / width * 2) + 8) / 16;
        let value = |i: i64| if i < 0 { (1 << 15) - half(-i) } else { ((1 << 15) + half(i)).min(65_535) };
        Leaf((-64..=64).map(value).collect())
    }

    /// At `z`, in 2^-15, between entries.
    fn at(&self, z: i64) -> i64 {
        let z = (z + (8 << 15)).clamp(0, (16 << 15) - 1);
        let (low, high) = (self.0[(z >> 12) as usize], self.0[(z >> 12) as usize + 1]);
        low + (high - low) * (z % 4096) / 4096
    }
}

/// `2^16 (Phi(x) - 1/2)`, rounded, by Simpson's rule.
fn normal(x: f64) -> i64 {
    let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * PI).sqrt();
    let step = x / 1000.0;
    let piece = |i: usize| {
        let t = i as f64 * step;
        step / 6.0 * (density(t) + 4.0 * density(t + step / 2.0) + density(t + step))
    };
    (65_536.0 * (0..1000).map(piece).sum::<f64>()).round() as i64
}

/// "Scales": `1 / 2^(4 + log / 2^16)` as a mantissa and a shift.
fn reciprocal(log: i64) -> (i64, i64) {
    let log = log.clamp(-8 << 16, (8 << 16) - 1);
    let part = (log >> 10) % 64;
    let part = if part < 0 { part + 64 } else { part };
    ((8192.0 * 2f64.powf(-part as f64 / 64.0)).round() as i64, (log >> 16) + 4)
}

/// "Classes".
fn classes(shape: Shape, header: &mut Header<'_>) -> (Vec<i64>, Coder) {
    let [flags, limit, base, step] = std::array::from_fn(|_| header.byte() as i64);
    let (class_bits, zero_rows) = ((flags >> 4 & 3) as u32, flags >> 6);
    let mut coder = header.code();
    let leaf = Leaf::new(flags as usize % 16);
    let starts = |class: i64| -> Vec<i64> {
        let (mantissa, shift) = reciprocal((base + (class - zero_rows).max(0) * step - 128) << 12);
        let at = |m: i64| (leaf.at(((256 * m - 128).max(0) * mantissa) >> (6 + shift)) - (1 << 15)).max(0);
        let (mass, span) = ((1 << 15) - (limit + 1), at(limit + 1).max(1));
        (0..=limit).map(|m| at(m) * mass / span + m).chain([1 << 15]).collect()
    };
    let starts: Vec<Vec<i64>> = (0..1 << class_bits).map(starts).collect();
    let mut weights = Vec::new();
    for _ in 0..shape.rows {
        let class = coder.equal(class_bits);
        if class == 0 && zero_rows == 1 {
            weights.extend(vec![0; shape.row()]);
            continue;
        }
        // 0, 1, -1, 2, -2, ...: twice the slots of each magnitude, shared by both signs.
        let starts = &starts[class as usize];
        let start = |s: i64| match ((s + 1) / 2, s % 2) {
            (0, _) => 0,
            (m, 1) => 2 * starts[m as usize],
            (m, _) => starts[m as usize] + starts[m as usize + 1],
        };
        for _ in 0..shape.row() {
            let s = coder.symbol(16, 0..=2 * limit, start);
            weights.push(if s % 2 == 1 { (s + 1) / 2 } else { -s / 2 });
        }
    }
    (weights, coder)
}

/// "Parametric leaves": the first slot of every integer, one more than `limit` included.
fn starts(
    leaf: &Leaf,
    (mantissa, shift): (i64, i64),
    mean: i64,
    gap: i64,
    limit: i64,
    peak: i64,
) -> impl Fn(i64) -> i64 + '_ {
    move |k| match k {
        _ if k == -limit => 0,
        _ if k > limit => 1 << 16,
        _ => {
            let edge = 256 * k - 128 - mean + if k > 0 { gap } else { -gap };
            let value = leaf.at((edge * mantissa) >> (6 + shift));
            ((value * (65_535 - 2 * (limit + peak))) >> 16) + k + limit + peak
        }
    }
}

/// log2(e), in 2^-16.
const LOG2_E: i64 = 94_548;

/// Whether a tap counts at a position: its source lies in an earlier row, or not across the kernel's edge.
fn reaches(distance: usize, position: usize, width: usize, shape: Shape) -> bool {
    let back = distance / shape.channels;
    let columns = |p: usize| p % width;
    distance >= shape.row() || (back <= position && columns(position).abs_diff(columns(position - back)) <= width / 2)
}

/// "Predictive".
fn predictive(shape: Shape, bits: u32, header: &mut Header<'_>) -> (Vec<i64>, Coder) {
    let (flags, counts) = (header.byte(), header.byte());
    let [peaks, zero_rows, gaps, zero_channels] = [16, 32, 64, 128].map(|bit| flags & bit != 0);
    let limit = if counts & 16 != 0 { header.byte() as i64 } else { (1 << (bits - 1)) - 1 };
    let width = if shape.positions > 1 { header.byte() } else { 1 };
    let mut base = (header.byte() as i64 - 128) << 12;
    let distances: Vec<usize> = (0..counts & 15).map(|_| header.varint()).collect();
    let mut coder = header.code();
    let leaf = Leaf::new(flags % 16);

    let mut taps = vec![0i64; distances.len()];
    let mut position_scales = vec![0i64; shape.positions];
    let mut channel_scales = vec![0i64; shape.channels];
    let is_coded: Vec<bool> = (0..shape.channels).map(|_| !zero_channels || coder.equal(1) == 1).collect();
    let coded = is_coded.iter().filter(|c| **c).count() * shape.positions;
    let (mut gap, mut rows) = (0, 0);
    let mut weights: Vec<i64> = Vec::new();
    for _ in 0..shape.rows {
        if zero_rows && coder.equal(1) == 0 {
            weights.extend(vec![0; shape.row()]);
            continue;
        }
        if gaps {
            let most = (limit - 1).max(1);
            let scale = reciprocal(((limit + 1).ilog2() as i64 - 8) << 16);
            let start = starts(&leaf, scale, 256 * gap, 0, most, 0);
            gap = coder.symbol(16, -most..=most, start).clamp(0, limit - 1);
        }
        // The gap is left out of what is coded.
        let most = limit - gap;
        let (mut row_scale, mut row_rate, mut peak, mut steps, mut largest) = (base, 0, 0, 0, 0);
        for position in 0..shape.positions {
            let rate = |n: usize, from: i64, least: i64| (LOG2_E / (n.min(1 << 16) as i64 + from)).max(LOG2_E / least);
            let channel_rate = if shape.channels > 1 { rate(rows * shape.positions + position, 10, 50) } else { 0 };
            let position_rate = if shape.positions > 1 { rate(rows * shape.channels, 50, 500) } else { 0 };
            let tap_shift = ((rows * coded + position * shape.channels + 1).ilog2() as i64 - 2).clamp(6, 11);
            let mut gradients = 0;
            for channel in 0..shape.channels {
                if !is_coded[channel] {
                    weights.push(0);
                    continue;
                }
                if steps % 8 == 0 {
                    row_rate = (LOG2_E / (steps.min(1 << 16) as i64 + 14)).max(LOG2_E / 100);
                    let left = (coded - steps).clamp(1, 1 << 15) as i64;
                    peak = if peaks && largest < most { ((1 << 15) / left).min(32_000) } else { 0 };
                }
                steps += 1;
                let read: Vec<i64> = distances
                    .iter()
                    .map(|&d| match reaches(d, position, width, shape) && d <= weights.len() {
                        true => weights[weights.len() - d],
                        false => 0,
                    })
                    .collect();
                let mean = taps.iter().zip(&read).map(|(a, w)| a * w).sum::<i64>() >> 10;
                let mean = mean.clamp(-1 << 15, (1 << 15) - 1);
                let scale = reciprocal(row_scale + position_scales[position] + 32 * channel_scales[channel]);
                let k = coder.symbol(16, -most..=most, starts(&leaf, scale, mean, 256 * gap, most, peak));
                let w = k + k.signum() * gap;
                weights.push(w);
                largest = largest.max(k.abs());

                let (mantissa, shift) = scale;
                let (z, magnitude) = match ((256 * w - mean) * mantissa) >> (13 + shift) {
                    _ if gap > 0 && k == 0 => (0, (128 * gap * mantissa) >> (13 + shift)),
                    z => (z, z.abs()),
                };
                let gradient = magnitude.min(1023) - 256;
                row_scale += (gradient * row_rate) >> 8;
                gradients += gradient;
                let changed = channel_scales[channel] + ((gradient * channel_rate + (1 << 12)) >> 13);
                channel_scales[channel] = changed.clamp(-1 << 14, (1 << 14) - 1);
                let least_shift = (limit.ilog2() as i64 - 4).max(-3);
                let step = (z.clamp(-1024, 1023) * mantissa) >> (shift.max(least_shift) + tap_shift - 3);
                taps.iter_mut().zip(&read).for_each(|(a, w)| *a += (w * step) >> 6);
            }
            position_scales[position] += (gradients.clamp(-1 << 19, 1 << 19) * position_rate) >> 8;
        }
        base += (row_scale - base) / (rows.min(16) as i64 + 2);
        rows = (rows + 1).min(1 << 16);
    }
    (weights, coder)
}
