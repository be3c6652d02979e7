//! Distributions of one symbol: exact partitions of `0 .. 2^16` (or of a smaller power of two) into an interval for each value.
//!
//! Parametric leaves come from one family, a mixture of two Gaussians with a common mean and weights `1 - w, w`, the second `b` times wider.
//! Its cumulative distribution is kept as [`HalfTable`], in units of its own mean magnitude, so that a scale is what the mean magnitude of
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

/// A shape's cumulative distribution right of its middle, in units of its mean magnitude, in steps of 1/8 up to 8; beyond, it counts as 1.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct HalfTable {
    /// Entry `i` is `2^16 (F(i / 8) - 1/2)` and how much the next one has more.
    entries: [[u16; 2]; 64],
    /// The largest entry not above `512 b`, for each `b`: where to look for a value.
    first: [u8; 64],
}

impl HalfTable {
    /// Fills the table.
    pub fn fill(&mut self, shape: u8) {
        let mixed = shape.min(SHAPES - 1).checked_sub(1);
        let (weight, halves) = mixed.map_or((0, 2), |k| (1 << (k & 3), [3, 4, 6, 8][(k >> 2) as usize & 3]));
        // Mean magnitude sqrt(2 / pi) ((1 - w) + w b), in 16 bits and times 4: what an eighth of it is in the steps of `NORMAL`.
        let eighth = 4 * 52_290 * ((16 - weight) * 2 + weight * halves) / 32;
        let at = |i: u32| {
            let (narrow, wide) = (normal_at(i * eighth), normal_at(i * eighth / halves * 2));
            (((16 - weight) * narrow + weight * wide + 8) / 16) as u16
        };
        for (entry, i) in self.entries.iter_mut().zip(0..) {
            *entry = [at(i), at(i + 1) - at(i)];
        }
        let mut i = 0;
        for (first, b) in self.first.iter_mut().zip(0..) {
            while i < 63 && at(i + 1) <= b * 512 {
                i += 1;
            }
            *first = i as u8;
        }
    }

    /// `2^16 (F(z) - 1/2)` for `z` in units of 2^-15.
    #[inline(always)]
    pub fn at(&self, z: i32) -> i32 {
        let magnitude = z.unsigned_abs();
        let value = match self.entries.get((magnitude >> 12) as usize) {
            Some(&[low, rise]) => (low as u32 + ((rise as u32 * (magnitude & 0xFFF)) >> 12)) as i32,
            None => 1 << 15,
        };
        if z < 0 { -value } else { value }
    }

    /// A magnitude of `z` whose `F - 1/2` is about `value / 2^16`, at most 8.
    #[inline(always)]
    pub fn inverse(&self, value: u32) -> u32 {
        let mut i = self.first[(value >> 9).min(63) as usize] as usize & 63;
        loop {
            let [low, rise] = self.entries[i].map(u32::from);
            let part = value.saturating_sub(low);
            if part < rise || i == 63 {
                return ((i as u32) << 12) + (part.min(rise) << 12) / rise.max(1);
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

/// A reciprocal scale: `x / s = x * mantissa / 2^(13 + shift)` with a mantissa of 12 to 13 bits.
#[derive(Clone, Copy, Debug)]
pub struct Reciprocal {
    /// Above 2^12, at most 2^13.
    pub mantissa: i32,
    /// From -3 to 7.
    pub shift: i32,
}

impl Reciprocal {
    /// Of the scale `2^(log / 2^16)`, from 1/8 up to below 256.
    #[inline(always)]
    pub fn of_log2(log: i32) -> Reciprocal {
        let log = log.clamp(-3 << 16, (8 << 16) - 1);
        Reciprocal { mantissa: EXP2[(log >> 10 & 63) as usize] as i32, shift: log >> 16 }
    }
}

/// Integers `-limit ..= limit` from a shape with a mean and a scale, cut off outside and made a sum of three circuits: the shape; one slot
/// for each integer, so that none is impossible; and `peak` more slots for each of the two ends.
///
/// Integer `k` holds the shape's mass between `k - 1/2` and `k + 1/2`; with a `gap` of `g` the interval of 0 is `g` wider on both sides and
/// the others lie beyond it: for weights that were rounded to zero below a threshold.
#[derive(Clone, Copy, Debug)]
pub struct Parametric<'t> {
    table: &'t HalfTable,
    scale: Reciprocal,
    /// Mean, in 2^-8.
    mean: i32,
    /// In 2^-8.
    gap: i32,
    limit: i32,
    peak: i32,
    /// Mass left of `-limit - 1/2`, as [`HalfTable::at`] has it.
    left: i32,
    /// Mass between the ends.
    span: u32,
    /// Slots of the shape.
    mass: u32,
    /// `2^15 mass / span`.
    stretch: u32,
}

impl<'t> Parametric<'t> {
    /// `mean` in 2^-8, within `-limit - gap ..= limit + gap`; `limit` up to 128, `peak` up to 32000.
    #[inline(always)]
    pub fn new(table: &'t HalfTable, scale: Reciprocal, mean: i32, gap: i32, limit: i32, peak: i32) -> Parametric<'t> {
        let mass = ((1 << 16) - (2 * limit + 1) - 2 * peak) as u32;
        let mut leaf =
            Parametric { table, scale, mean, gap: gap << 8, limit, peak, left: 0, span: 0, mass, stretch: 0 };
        leaf.left = leaf.half(leaf.edge(-limit));
        leaf.span = (leaf.half(leaf.edge(limit + 1)) - leaf.left).max(1) as u32;
        leaf.stretch = (mass << 15) / leaf.span;
        leaf
    }

    /// Left end of an integer's interval, in 2^-8.
    #[inline(always)]
    fn edge(&self, k: i32) -> i32 {
        (k << 8) - 128 + if k > 0 { self.gap } else { -self.gap }
    }

    #[inline(always)]
    fn half(&self, edge: i32) -> i32 {
        self.table.at((edge - self.mean).wrapping_mul(self.scale.mantissa) >> (6 + self.scale.shift))
    }

    /// First slot of an integer, strictly increasing: 0 of the first, 2^16 behind the last.
    #[inline(always)]
    fn start(&self, k: i32) -> u32 {
        if k <= -self.limit {
            return 0;
        }
        if k > self.limit {
            return 1 << 16;
        }
        let mass = (self.half(self.edge(k)) - self.left) as u32;
        ((mass * self.stretch) >> 15) + (k + self.limit + self.peak) as u32
    }

    /// About where a slot lies.
    #[inline(always)]
    fn guess(&self, slot: u32) -> i32 {
        let t = slot.saturating_sub(self.peak as u32) * (self.span >> 2)
            / ((self.mass >> 2) + (self.limit as u32 >> 1) + 1);
        let value = self.left + t as i32;
        let z = self.table.inverse(value.unsigned_abs());
        let distance = ((z << (6 + self.scale.shift)) / self.scale.mantissa as u32) as i32;
        let x = self.mean + if value < 0 { -distance } else { distance } + 128;
        let x = if x > 128 { (x - self.gap).max(128) } else { (x + self.gap).min(128) };
        (x >> 8).clamp(-self.limit, self.limit)
    }
}

impl Leaf for Parametric<'_> {
    const BITS: u32 = 16;

    #[inline(always)]
    fn interval(&self, k: i32) -> (u32, u32) {
        let start = self.start(k);
        (start, self.start(k + 1) - start)
    }

    /// A guess by the inverse table, then one integer at a time.
    #[inline(always)]
    fn locate(&self, slot: u32) -> (i32, u32, u32) {
        let mut k = self.guess(slot);
        let mut start = self.start(k);
        if slot < start {
            loop {
                let end = start;
                k -= 1;
                start = self.start(k);
                if slot >= start {
                    return (k, start, end - start);
                }
            }
        }
        loop {
            let end = self.start(k + 1);
            if slot < end {
                return (k, start, end - start);
            }
            start = end;
            k += 1;
        }
    }
}
