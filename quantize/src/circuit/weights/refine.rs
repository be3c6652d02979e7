//! Weights coded given the same weights in fewer bits.
//!
//! Both roundings of a weight `w` bound the ratio `R` of their steps: with coarse level `a > 0` and fine level `b` (mirrored below zero),
//!
//! ```text
//! (a - 1/2) R < b + 1/2    unless a is the lowest coarse level
//! (a + 1/2) R > b - 1/2    unless a is the highest
//! ```
//!
//! so a row's ratio lies where all of its weights agree, or between where they come nearest to it. Ratios are told in units of which several sizes are tried:
//! coarser ones take fewer bits and more slack around every interval. A row has the sign under which its weights agree better: levels are not symmetric, and
//! folding a batch norm may have turned a filter around.

use super::record::{self, Record};
use pith::circuit::refined::{MAX_BINS, MAX_RATIO, Params, Refined};
use pith::circuit::{MODEL_REFINED, Shape, emit_header};

/// The code of `fine`, `[rows, positions, channels]` as `coarse`; none where they are not roundings of the same weights, nearly.
pub fn refine(coarse: &[i8], fine: &[i8], shape: Shape) -> Option<Vec<u8>> {
    let row = |(coarse, fine)| Row::of(coarse, fine);
    let mut rows: Vec<Row> = coarse.chunks(shape.row()).zip(fine.chunks(shape.row())).map(row).collect();
    // Turned so that the lowest level is the one further from zero, where they show it.
    rows.iter_mut().filter(|row| row.highest() > -row.lowest()).for_each(Row::turn);
    let bottom = rows.iter().map(Row::lowest).min()?;
    let top = rows.iter().map(Row::highest).max()?;
    for row in &mut rows {
        let before = row.bounds(bottom, top).gap();
        row.turn();
        let fits = row.lowest() >= bottom && row.highest() <= top;
        if !fits || row.bounds(bottom, top).gap() >= before {
            row.turn();
        }
    }
    let ratios: Vec<f64> = rows.iter().map(|row| row.bounds(bottom, top).middle()).collect();
    let limit = rows.iter().flat_map(|row| &row.pairs).map(|(_, b)| b.unsigned_abs()).max()?;
    let plain = Params {
        bottom: i8::try_from(bottom).ok()?,
        top: i8::try_from(top).ok()?,
        limit: u8::try_from(limit.max(1)).ok()?,
        slack: 0,
        signs: rows.iter().any(|row| row.sign < 0),
        ratio_shift: 0,
        ratio_bits: 0,
        ratio_base: 0,
        densities: &[],
    };
    let told = (0..=7).filter_map(|shift| Told::with(&plain, shift, &rows, &ratios));
    told.map(|told| emit(&told, &rows, shape)).min_by_key(Vec::len)
}

/// Coarse and fine levels of a row, turned by its sign.
struct Row {
    pairs: Vec<(i32, i32)>,
    sign: i32,
}

impl Row {
    fn of(coarse: &[i8], fine: &[i8]) -> Row {
        Row { pairs: coarse.iter().zip(fine).map(|(&a, &b)| (a.into(), b.into())).collect(), sign: 1 }
    }

    fn turn(&mut self) {
        self.sign = -self.sign;
        self.pairs.iter_mut().for_each(|(a, b)| (*a, *b) = (-*a, -*b));
    }

    fn lowest(&self) -> i32 {
        self.pairs.iter().map(|pair| pair.0).min().unwrap_or(0)
    }

    fn highest(&self) -> i32 {
        self.pairs.iter().map(|pair| pair.0).max().unwrap_or(0)
    }

    /// Where the row's ratio may be.
    fn bounds(&self, bottom: i32, top: i32) -> Bounds {
        let mut bounds = Bounds { lower: 1.0, upper: f64::from(MAX_RATIO) };
        for &(a, b) in &self.pairs {
            let (is_bottom, is_top) = (a <= bottom, a >= top);
            // Seen from zero: which end of the interval is open?
            let (sign, inner_open, outer_open) =
                if a < 0 { (-1.0, is_top, is_bottom) } else { (1.0, is_bottom, is_top) };
            let (a, b) = (sign * f64::from(a), sign * 256.0 * f64::from(b));
            if a == 0.0 {
                if !(if b > 0.0 { is_top } else { is_bottom }) {
                    bounds.lower = bounds.lower.max(2.0 * b.abs() - 256.0);
                }
                continue;
            }
            if !inner_open {
                bounds.upper = bounds.upper.min((2.0 * b + 256.0) / (2.0 * a - 1.0));
            }
            if !outer_open {
                bounds.lower = bounds.lower.max((2.0 * b - 256.0) / (2.0 * a + 1.0));
            }
        }
        bounds
    }

    /// By how much intervals must be wider to touch all fine levels, in 2^-8.
    fn slack(&self, params: &Params<'_>, told: i32) -> i32 {
        let ratio = params.ratio(told) as i32;
        let excess = |&(a, b): &(i32, i32)| {
            let b = 256 * b;
            let below = if a <= params.bottom.into() { 0 } else { (((2 * a - 1) * ratio) >> 1) - (b + 127) };
            let above = if a >= params.top.into() { 0 } else { (b - 128) - (((2 * a + 1) * ratio) >> 1) };
            below.max(above).max(0)
        };
        self.pairs.iter().map(excess).max().unwrap_or(0)
    }
}

/// Ratios of a row, in 2^-8: every lower bound is below every upper one, if the row was rounded twice.
#[derive(Clone, Copy)]
struct Bounds {
    lower: f64,
    upper: f64,
}

impl Bounds {
    /// By how much they contradict each other.
    fn gap(&self) -> f64 {
        (self.lower - self.upper).max(0.0)
    }

    /// The middle, where all agree or else are equally wrong.
    fn middle(&self) -> f64 {
        (0.5 * (self.lower + self.upper)).clamp(1.0, f64::from(MAX_RATIO))
    }
}

/// Parameters with the ratio symbol of every row.
struct Told {
    params: Params<'static>,
    densities: Vec<u8>,
    symbols: Vec<i32>,
}

impl Told {
    /// Ratios in units of `2^shift`; none if they need too many bits or too much slack.
    fn with(params: &Params<'static>, shift: u8, rows: &[Row], ratios: &[f64]) -> Option<Told> {
        let unit = f64::from(1u32 << shift);
        let units: Vec<i32> = ratios.iter().map(|r| (r / unit).round() as i32).collect();
        let (least, most) = (*units.iter().min()?, *units.iter().max()?);
        let ratio_bits = (0..=8).find(|&bits| most - least < 1 << bits)?;
        let ratio_base = u16::try_from(least).ok()?;
        let params = Params { ratio_shift: shift, ratio_bits, ratio_base, ..*params };
        let symbols: Vec<i32> = units.iter().map(|u| u - least).collect();
        let needed = rows.iter().zip(&symbols).map(|(row, &told)| row.slack(&params, told)).max()?;
        let params = Params { slack: u8::try_from((needed + 15) / 16).ok()?, ..params };
        Some(Told { densities: densities(&params, &symbols, rows), params, symbols })
    }

    fn params(&self) -> Params<'_> {
        Params { densities: &self.densities, ..self.params }
    }
}

/// The histogram of fine levels over their row's ratio, every level spread over its width.
fn densities(params: &Params<'_>, symbols: &[i32], rows: &[Row]) -> Vec<u8> {
    let mut mass = [0.0f64; MAX_BINS];
    for (row, &told) in rows.iter().zip(symbols) {
        let bins_of_level = 512.0 / f64::from(params.ratio(told));
        for &(_, b) in &row.pairs {
            let b = f64::from(b.abs());
            // Both halves of level 0 fall onto one.
            let (from, to) = (bins_of_level * (b - 0.5).max(0.0), bins_of_level * (b + 0.5));
            let weight = if b == 0.0 { 2.0 } else { 1.0 } / bins_of_level;
            let last = MAX_BINS as f64 - 1.0;
            for bin in from.min(last) as usize..=to.min(last) as usize {
                let (start, end) = (bin as f64, if bin + 1 == MAX_BINS { f64::MAX } else { bin as f64 + 1.0 });
                mass[bin] += weight * (to.min(end) - from.max(start)).max(0.0);
            }
        }
    }
    let most = mass.iter().copied().fold(0.0, f64::max).max(1e-9);
    let bins = mass.iter().rposition(|&m| m > 0.0).unwrap_or(0) + 1;
    mass[..bins].iter().map(|m| (256.0 * m / most - 1.0).round().clamp(0.0, 255.0) as u8).collect()
}

/// A coded constant.
fn emit(told: &Told, rows: &[Row], shape: Shape) -> Vec<u8> {
    let params = told.params();
    let mut bytes = Vec::new();
    emit_header(MODEL_REFINED, shape, |byte| bytes.push(byte));
    params.emit(|byte| bytes.push(byte));
    let mut symbols = Vec::new();
    for (row, &ratio) in rows.iter().zip(&told.symbols) {
        symbols.extend(params.signs.then_some(i32::from(row.sign < 0)));
        symbols.extend((params.ratio_bits > 0).then_some(ratio));
        symbols.extend(row.pairs.iter().map(|pair| pair.1));
    }
    let mut record = Record::of(symbols);
    let mut state = vec![0; params.state_words()];
    let mut model = Refined::new(&params, &mut state).expect("the state has the words asked for");
    for row in rows {
        let mut coarse: Vec<i8> = row.pairs.iter().map(|pair| (row.sign * pair.0) as i8).collect();
        model.row(&mut record, &mut coarse);
    }
    bytes.extend_from_slice(&record::code(&record));
    bytes
}
