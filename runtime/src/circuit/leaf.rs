//! Distributions of one symbol: exact partitions of `0 .. 2^16` (or of a smaller power of two) into an interval for each value.
//!
//! Parametric leaves come from one family, a mixture of two Gaussians with a common mean and weights `1 - w, w`, the second `b` times wider.
//! Its cumulative distribution is kept as a [`Table`], in units of its own mean magnitude, so that a scale is what the mean magnitude of
//! weights estimates. Everything derives from two tables computed here, [`NORMAL`] and [`EXP2`].

/// The distribution of a symbol.
pub trait Leaf {
    /// Logarithm of the number of slots, at most [`super::rans::MAX_BITS`].
    const BITS: u32;
    /// First slot and number of slots of a symbol.
    fn interval(&self, symbol: i32) -> (u32, u32);
    /// The symbol of a slot, with its interval.
    fn locate(&self, slot: u32) -> (i32, u32, u32);
}

/// `2^BITS` equally probable symbols, from 0.
#[derive(Clone, Copy, Debug)]
pub struct Uniform<const BITS: u32>;

impl<const BITS: u32> Leaf for Uniform<BITS> {
    const BITS: u32 = BITS;

    fn interval(&self, symbol: i32) -> (u32, u32) {
        (symbol as u32, 1)
    }

    fn locate(&self, slot: u32) -> (i32, u32, u32) {
        (slot as i32, slot, 1)
    }
}

/// `2^16 (Phi(i / 32) - 1/2)`, rounded: the normal distribution from its middle to 5.5 standard deviations.
pub const NORMAL: [u16; 177] = normal();

/// `2^13 * 2^(-i / 64)`, rounded.
pub const EXP2: [u16; 64] = exp2();

const ONE: u128 = 1 << 60;

/// Simpson's rule on intervals of 1/32, whose densities come from `p(k + 1) = p(k) r(k), r(k + 1) = r(k) exp(-1/4096)` in steps of 1/64.
const fn normal() -> [u16; 177] {
    // 1 / sqrt(2 pi), exp(-1/8192) and exp(-1/4096) in 60 bits.
    let (mut density, mut ratio, step) =
        (459_949_134_171_706_403u128, 1_152_780_775_708_076_725u128, 1_152_640_063_987_078_656u128);
    let mut table = [0; 177];
    let (mut sum, mut i) = (0, 1);
    while i < table.len() {
        let first = density;
        density = density * ratio / ONE;
        ratio = ratio * step / ONE;
        let middle = density;
        density = density * ratio / ONE;
        ratio = ratio * step / ONE;
        sum += (first + 4 * middle + density) / (6 * 32);
        table[i] = ((sum + (1 << 43)) >> 44) as u16;
        i += 1;
    }
    table
}

const fn exp2() -> [u16; 64] {
    let mut table = [0; 64];
    let (mut value, mut i) = (ONE, 0);
    while i < table.len() {
        table[i] = ((value + (1 << 46)) >> 47) as u16;
        // 2^(-1/64) in 60 bits.
        value = value * 1_140_502_249_370_840_087 / ONE;
        i += 1;
    }
    table
}

/// Shapes of the family: 0 is one Gaussian, `1 + 4 i + j` mixes `2^j / 16` of another one that is `1.5, 2, 3, 4` times wider (`i`).
pub const SHAPES: u8 = 16;

/// A shape's cumulative distribution in units of its mean magnitude, from -8 to 8 in steps of 1/8.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Table {
    /// Low half of entry `i`: `2^16 F(i / 8 - 8)`; high half: how much the next one has more.
    entries: [u32; 128],
    /// The largest entry not above `512 b`, for each `b`: where to look for a value.
    first: [u8; 128],
}

impl Table {
    /// Fills the table.
    pub fn fill(&mut self, shape: u8) {
        let mixed = shape.min(SHAPES - 1).checked_sub(1);
        let (weight, halves) = mixed.map_or((0, 2), |k| (1 << (k & 3), [3, 4, 6, 8][(k >> 2) as usize & 3]));
        // Mean magnitude sqrt(2 / pi) ((1 - w) + w b), in 16 bits and times 4: what an eighth of it is in the steps of `NORMAL`.
        let eighth = 4 * 52_290 * ((16 - weight) * 2 + weight * halves) / 32;
        let half = |i: u32| {
            let (narrow, wide) = (normal_at(i * eighth), normal_at(i * eighth / halves * 2));
            ((16 - weight) * narrow + weight * wide + 8) / 16
        };
        let at = |i: u32| if i < 64 { (1 << 15) - half(64 - i) } else { ((1 << 15) + half(i - 64)).min(65_535) };
        let mut low = at(0);
        for (entry, i) in self.entries.iter_mut().zip(0..) {
            let next = at(i + 1);
            *entry = low | (next - low) << 16;
            low = next;
        }
        let mut i = 0;
        for (first, b) in self.first.iter_mut().zip(0..) {
            while i < 127 && self.entries[i + 1] & 0xFFFF <= b * 512 {
                i += 1;
            }
            *first = i as u8;
        }
    }

    /// `2^16 F(z)` for `z` in units of 2^-15.
    #[inline(always)]
    pub fn at(&self, z: i32) -> u32 {
        let z = z.clamp(-8 << 15, (8 << 15) - 1);
        let entry = self.entries[((z >> 12) + 64) as usize & 127];
        (entry & 0xFFFF) + (((entry >> 16) * (z as u32 & 0xFFF)) >> 12)
    }

    /// About where `F` is `value / 2^16`, within 8.
    #[inline(always)]
    pub fn inverse(&self, value: u32) -> i32 {
        let mut i = self.first[(value >> 9) as usize & 127] as usize;
        loop {
            let entry = self.entries[i & 127];
            let (part, rise) = (value.saturating_sub(entry & 0xFFFF), entry >> 16);
            if part < rise || i >= 127 {
                return ((i << 12) as u32 + (part << 12) / (rise | 1)) as i32 - (8 << 15);
            }
            i += 1;
        }
    }
}

/// [`NORMAL`] between its entries, `z` in 2^-16 of a step.
fn normal_at(z: u32) -> u32 {
    let entry = |i: u32| NORMAL.get(i as usize).map_or(1 << 15, |&v| v as u32);
    let (i, part) = (z >> 16, (z & 0xFFFF) >> 4);
    entry(i) + (((entry(i + 1) - entry(i)) * part) >> 12)
}

/// A reciprocal scale: `x / s = x * mantissa / 2^(13 + shift)`.
#[derive(Clone, Copy, Debug)]
pub struct Reciprocal {
    /// Above 2^12, at most 2^13.
    pub mantissa: i32,
    /// From -4 to 11.
    pub shift: i32,
}

impl Reciprocal {
    /// Of the scale `2^(4 + log / 2^16)`, from 2^-4 to below 2^12.
    #[inline(always)]
    pub fn of_log2(log: i32) -> Reciprocal {
        let log = log.clamp(-8 << 16, (8 << 16) - 1);
        Reciprocal { mantissa: EXP2[(log >> 10 & 63) as usize] as i32, shift: (log >> 16) + 4 }
    }
}

/// Integers `-limit ..= limit` from a shape with a mean and a scale, what lies outside counted to the ends. A sum of three circuits: the
/// shape; one slot for each integer, so that none is impossible; and `peak` more slots for each of the two ends.
///
/// Integer `k` holds the shape's mass between `k - 1/2` and `k + 1/2`. With a gap (`GAP`) of `g` the interval of 0 is `g` wider on both sides
/// and the others lie beyond it: for weights that were rounded to zero below a threshold.
#[derive(Clone, Copy, Debug)]
pub struct Parametric<'t, const GAP: bool> {
    /// Of the shape.
    pub table: &'t Table,
    /// Of the shape.
    pub scale: Reciprocal,
    /// Of the shape, in 2^-8, up to 2^15.
    pub mean: i32,
    /// In 2^-8.
    pub gap: i32,
    /// From 1 to 128.
    pub limit: i32,
    /// Up to 32000.
    pub peak: i32,
}

impl<const GAP: bool> Parametric<'_, GAP> {
    /// Slots of the shape.
    #[inline(always)]
    fn mass(&self) -> u32 {
        (65_535 - 2 * (self.limit + self.peak)) as u32
    }

    /// Left end of an integer's interval, times the mantissa.
    #[inline(always)]
    fn edge(&self, k: i32) -> i32 {
        let mut edge = (k << 8) - 128 - self.mean;
        if GAP {
            edge += if k > 0 { self.gap } else { -self.gap };
        }
        edge.wrapping_mul(self.scale.mantissa)
    }

    /// First slot of an integer above `-limit`, from its edge: strictly increasing.
    #[inline(always)]
    fn start(&self, edge: i32, k: i32) -> u32 {
        let value = self.table.at(edge >> (6 + self.scale.shift));
        ((value * self.mass()) >> 16) + (k + self.limit + self.peak) as u32
    }

    /// About where a slot lies.
    #[inline(always)]
    fn guess(&self, slot: u32) -> i32 {
        let t = match self.peak as u32 {
            0 => slot,
            peak => ((slot.saturating_sub(peak) << 15) / ((32_767 - peak) | 1)).min(65_535),
        };
        let z = self.table.inverse(t);
        let x = self.mean + ((z >> 4) << (6 + self.scale.shift)) / (self.scale.mantissa >> 4 | 1) + 128;
        let x = match x > 128 {
            _ if !GAP => x,
            true => (x - self.gap).max(128),
            false => (x + self.gap).min(128),
        };
        (x >> 8).min(self.limit).max(-self.limit)
    }
}

impl<const GAP: bool> Leaf for Parametric<'_, GAP> {
    const BITS: u32 = 16;

    #[inline(always)]
    fn interval(&self, k: i32) -> (u32, u32) {
        let start = if k > -self.limit { self.start(self.edge(k), k) } else { 0 };
        let end = if k < self.limit { self.start(self.edge(k + 1), k + 1) } else { 1 << 16 };
        (start, end - start)
    }

    /// A guess by the inverse table, then one integer at a time.
    #[inline(always)]
    fn locate(&self, slot: u32) -> (i32, u32, u32) {
        let step = self.scale.mantissa << 8;
        let mut k = self.guess(slot);
        let mut edge = self.edge(k);
        let mut end = 1 << 16;
        // Down to the integer that begins at or before the slot, ...
        let mut start = loop {
            let start = if k > -self.limit { self.start(edge, k) } else { 0 };
            if start <= slot {
                break start;
            }
            end = start;
            k -= 1;
            edge = if GAP { self.edge(k) } else { edge.wrapping_sub(step) };
        };
        // ... or up to the one that ends behind it.
        while end == 1 << 16 && k < self.limit {
            edge = if GAP { self.edge(k + 1) } else { edge.wrapping_add(step) };
            let next = self.start(edge, k + 1);
            if slot < next {
                end = next;
                break;
            }
            start = next;
            k += 1;
        }
        (k, start, end - start)
    }
}
