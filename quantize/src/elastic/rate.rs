//! The coded size as a part of the loss (entropy-constrained quantization: Chou, Lookabaugh and Gray 1989), so that training ends at a size fixed in advance.
//!
//! A level costs `c(n) = -log2 p(n)` bits, where `p` is its share of its layer's levels: what a coder without context would write, and circuits stay
//! below. What pulls is the largest convex function below these costs, linear between levels, so that no level that is frequent by chance holds weights on
//! their way: a weight at `v = w / s` feels `h'(v) / s`, and `ln s` feels `-v h'(v)`. The shares count as fixed, for they are those that make the sum
//! least. So weights are drawn to the most frequent level, which is zero as a rule, and steps grow where that costs the network least; which layers give up
//! most bits is left to the loss.
//!
//! The loss counts a mean bit per weight, the rate, with a [`Price`], the Lagrange multiplier, which nobody has to choose: it rises while weights take more
//! bits than a line from those of the first step to the wanted ones allows, and falls while they take less (dual ascent on its logarithm, with a
//! proportional part against swings).

/// Share of the training after which the wanted bits are reached.
const ARRIVAL: f64 = 0.5;

/// First price: of a bit per weight, in nats of the loss.
const FIRST: f32 = 0.01;

/// The logarithm of a price moves at most so far in a whole training, and by an error of [`CLEAR`] bits or more with all its speed.
const SPEED: f32 = 20.0;
const CLEAR: f32 = 0.1;

/// Such an error counts at once too, or the bits would swing about the wanted ones.
const PROMPT: f32 = 4.0;

/// Levels that no weight has count as often as this.
const UNSEEN: f32 = 0.5;

/// How the cost of a layer's levels grows away from the most frequent one.
pub(super) struct Slopes {
    lo: i32,
    /// Bits from a level to the next, from `lo` on; never falling.
    slopes: Vec<f32>,
}

impl Slopes {
    /// By the shares of the levels that a layer has, and the sum of all its bits.
    pub fn of(levels: &[i8]) -> (Slopes, f32) {
        // One more on either side, which nothing has: weights are pulled on both sides of every level.
        let lo = levels.iter().copied().min().map_or(0, i32::from) - 1;
        let hi = levels.iter().copied().max().map_or(0, i32::from) + 1;
        let mut counts = vec![0u32; (hi - lo + 1) as usize];
        levels.iter().for_each(|&n| counts[(i32::from(n) - lo) as usize] += 1);
        let all = levels.len().max(1) as f32;
        let bits: Vec<f32> = counts.iter().map(|&count| (all / (count as f32).max(UNSEEN)).log2()).collect();
        let sum = counts.iter().zip(&bits).map(|(&count, bits)| count as f32 * bits).sum();
        (Slopes { lo, slopes: hull(&bits) }, sum)
    }

    /// Slope at a value between levels.
    pub fn at(&self, value: f32) -> f32 {
        let below = (value.floor() as i32 - self.lo).clamp(0, self.slopes.len() as i32 - 1);
        self.slopes[below as usize]
    }
}

/// Slopes of the largest convex function below some values: from each to the next.
fn hull(values: &[f32]) -> Vec<f32> {
    // Corners, from left to right.
    let mut corners: Vec<usize> = Vec::new();
    let slope = |a: usize, b: usize| (values[b] - values[a]) / (b - a) as f32;
    for i in 0..values.len() {
        while let [.., a, b] = corners[..]
            && slope(a, b) >= slope(b, i)
        {
            corners.pop();
        }
        corners.push(i);
    }
    corners.windows(2).flat_map(|c| std::iter::repeat_n(slope(c[0], c[1]), c[1] - c[0])).collect()
}

/// What a coded bit per weight costs, and from where the way to the wanted bits leads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Price {
    first: f32,
    log: f32,
    error: f32,
}

impl Price {
    /// As [`Price::kept`] was; none before the first step.
    pub fn of(kept: &[f32]) -> Option<Price> {
        (kept.len() == 3).then(|| Price { first: kept[0], log: kept[1], error: kept[2] })
    }

    /// For weights that take so many bits at first.
    pub fn new(first: f32) -> Price {
        Price { first, log: FIRST.ln(), error: 0.0 }
    }

    /// For a checkpoint.
    pub fn kept(self) -> Vec<f32> {
        vec![self.first, self.log, self.error]
    }

    /// Nats of a bit per weight.
    pub fn value(self) -> f32 {
        (self.log + PROMPT * self.error).exp()
    }

    /// After a step, one of so many, that found so many bits where `goal` is wanted in the end.
    pub fn follow(&mut self, bits: f32, goal: f32, done: f64, steps: usize) {
        let way = (done / ARRIVAL).min(1.0) as f32;
        let planned = self.first + (goal - self.first) * way;
        self.error = ((bits - planned) / CLEAR).clamp(-1.0, 1.0);
        self.log = (self.log + SPEED / steps.max(1) as f32 * self.error).clamp(-12.0, 4.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_those_of_the_shares() {
        let (slopes, sum) = Slopes::of(&[0, 0, 0, 0, 1, 1, -1, 3]);
        assert_eq!(sum, 4.0 + 4.0 + 3.0 + 3.0);
        // 4, 3, 1, 2, (4), 3, 4 bits from -2 on; corners at -2, 0, 3 and 4.
        let third = 2.0 / 3.0;
        assert_eq!(slopes.slopes, [-1.5, -1.5, third, third, third, 1.0]);
        assert_eq!([slopes.at(-0.3), slopes.at(0.3), slopes.at(-9.0), slopes.at(9.0)], [-1.5, third, -1.5, 1.0]);
        let (one, none) = Slopes::of(&[5; 7]);
        assert!(none == 0.0 && one.at(4.9) < 0.0 && one.at(5.1) > 0.0);
    }

    /// Weights follow a price slowly; whatever price they need, they end with the wanted bits, and never fall far below those on the way.
    #[test]
    fn the_price_finds_the_bits() {
        for needed in [0.003f32, 0.05, 0.8] {
            let (mut bits, mut price, mut least) = (3.0f32, Price::new(3.0), 3.0f32);
            for i in 0..4000 {
                let wanted = 2.0 + 0.5 * (needed / price.value()).ln().clamp(-4.0, 4.0);
                bits += 0.005 * (wanted - bits);
                least = least.min(bits);
                price.follow(bits, 2.0, f64::from(i) / 4000.0, 4000);
            }
            assert!((bits - 2.0).abs() < 0.03 && least > 1.9, "{needed}: {bits}, {least} at least");
            assert_eq!(Price::of(&price.kept()), Some(price));
        }
        assert_eq!(Price::of(&[]), None);
    }
}
