//! Random changes of training samples that keep their meaning: mirrored, shifted and partly covered pictures, noise on signals; and
//! blends of two samples, which mean both ("mixup", Zhang et al., ICLR 2018).

use crate::random::Random;
use serde::{Deserialize, Serialize};

/// What is done to every sample, each time anew; nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Mirror every second picture left to right.
    pub flip: bool,
    /// Shift by up to so many pixels each way; what comes in is black.
    pub crop: usize,
    /// Cover a square of so many pixels' side.
    pub cutout: usize,
    /// Standard deviation of normal noise, as a share of the network input's unit (after preprocessing).
    pub noise: f32,
    /// Blend every sample with another one of its batch, by a share from the distribution Beta(`mixup`, `mixup`), and their targets alike;
    /// a teacher is asked about the blend. 0: not at all, 1: any share is as likely.
    pub mixup: f32,
}

impl Augment {
    /// The shares that samples keep of themselves when their batch is blended, half at least; none where batches are not blended.
    pub fn shares(&self, samples: &[usize], seed: u64) -> Vec<f32> {
        if self.mixup <= 0.0 {
            return Vec::new();
        }
        let share = |&i: &usize| {
            let drawn = beta(self.mixup, &mut Random::new(seed ^ MIXUP, i as u64));
            // Whichever of two is called the first: a sample stays what it mostly is.
            drawn.max(1.0 - drawn)
        };
        samples.iter().map(share).collect()
    }

    /// Changes one sample `[h, w, c]` (other shapes get noise only); `black` is the value of an absent pixel, per channel.
    pub fn apply(&self, values: &mut [f32], shape: &[usize], black: &[f32], random: &mut Random) {
        if let &[_, h, w, c] = shape {
            let (flip, shift) = (self.flip && random.below(2) == 1, self.crop > 0);
            if flip || shift {
                let mut offset = || random.below(2 * self.crop + 1) as isize - self.crop as isize;
                let (dy, dx) = if shift { (offset(), offset()) } else { (0, 0) };
                moved(values, [h, w, c], black, flip, dy, dx);
            }
            if self.cutout > 0 {
                let (y, x) = (random.below(h), random.below(w));
                cover(values, [h, w, c], black, y, x, self.cutout);
            }
        }
        if self.noise > 0.0 {
            values.iter_mut().for_each(|v| *v += self.noise * random.normal());
        }
    }
}

/// Tells the stream of shares from that of the other changes.
const MIXUP: u64 = 0x6D69_7875_7000_0000;

/// From Beta(`a`, `a`), `a` in (0, 1], by Johnk's rejection of two powers of uniform numbers.
fn beta(a: f32, random: &mut Random) -> f32 {
    loop {
        // In logarithms: powers of 1 / a vanish where a is small.
        let (x, y) = ((1.0 - random.uniform()).ln() / a, (1.0 - random.uniform()).ln() / a);
        let largest = x.max(y);
        let sum = largest + ((x - largest).exp() + (y - largest).exp()).ln();
        if sum <= 0.0 {
            return (x - sum).exp();
        }
    }
}

/// Rows of equal length, each with its share of itself and the rest of the next row, the last with the first.
pub(super) fn blend(values: &mut [f32], shares: &[f32]) {
    let row = values.len() / shares.len().max(1);
    if row == 0 {
        return;
    }
    let first = values[..row].to_vec();
    for (i, &share) in shares.iter().enumerate() {
        let (own, rest) = values[i * row..].split_at_mut(row);
        let next = if rest.is_empty() { &first[..] } else { &rest[..row] };
        own.iter_mut().zip(next).for_each(|(own, next)| *own = share * *own + (1.0 - share) * next);
    }
}

/// `out[y, x] = in[y + dy, x' + dx]`, `x'` mirrored if wanted.
fn moved(values: &mut [f32], [h, w, c]: [usize; 3], black: &[f32], flip: bool, dy: isize, dx: isize) {
    let old = values.to_vec();
    for y in 0..h {
        for x in 0..w {
            let from_x = if flip { w - 1 - x } else { x };
            let (sy, sx) = (y.wrapping_add_signed(dy), from_x.wrapping_add_signed(dx));
            let to = &mut values[(y * w + x) * c..(y * w + x + 1) * c];
            match sy < h && sx < w {
                true => to.copy_from_slice(&old[(sy * w + sx) * c..(sy * w + sx + 1) * c]),
                false => to.iter_mut().zip(black.iter().cycle()).for_each(|(v, b)| *v = *b),
            }
        }
    }
}

/// A square around a point, cut at the borders.
fn cover(values: &mut [f32], [h, w, c]: [usize; 3], black: &[f32], y: usize, x: usize, side: usize) {
    let range = |at: usize, n: usize| at.saturating_sub(side / 2)..(at + side.div_ceil(2)).min(n);
    for y in range(y, h) {
        for x in range(x, w) {
            let pixel = &mut values[(y * w + x) * c..(y * w + x + 1) * c];
            pixel.iter_mut().zip(black.iter().cycle()).for_each(|(v, b)| *v = *b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_and_covers() {
        let mut picture: Vec<f32> = (1..=9).map(|v| v as f32).collect();
        moved(&mut picture, [3, 3, 1], &[0.0], true, 0, 0);
        assert_eq!(picture, [3.0, 2.0, 1.0, 6.0, 5.0, 4.0, 9.0, 8.0, 7.0]);
        moved(&mut picture, [3, 3, 1], &[-1.0], false, 1, 0);
        assert_eq!(picture, [6.0, 5.0, 4.0, 9.0, 8.0, 7.0, -1.0, -1.0, -1.0]);
        cover(&mut picture, [3, 3, 1], &[0.5], 0, 0, 2);
        assert_eq!(picture[..3], [0.5, 5.0, 4.0]);
    }

    #[test]
    fn blends_with_the_next() {
        let mut rows = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        blend(&mut rows, &[0.5, 1.0, 0.75]);
        assert_eq!(rows, [2.0, 3.0, 3.0, 4.0, 4.0, 5.0], "with what rows were before");
        blend(&mut rows, &[]);
        assert_eq!(rows[..2], [2.0, 3.0]);
    }

    #[test]
    fn shares_follow_their_distribution() {
        let samples: Vec<usize> = (0..20_000).collect();
        let n = samples.len() as f32;
        for a in [1.0, 0.4, 0.2] {
            let shares = Augment { mixup: a, ..Augment::default() }.shares(&samples, 1);
            assert!(shares.iter().all(|s| (0.5..=1.0).contains(s)));
            // The variance of Beta(a, a) about a half, which folding keeps.
            let variance = shares.iter().map(|s| (s - 0.5).powi(2)).sum::<f32>() / n;
            let wanted = 0.25 / (2.0 * a + 1.0);
            assert!((variance - wanted).abs() < 0.02 * wanted, "{a}: {variance}, {wanted}");
        }
        assert!(Augment::default().shares(&samples, 1).is_empty());
    }

    #[test]
    fn equal_seeds_equal_pictures() {
        let augment = Augment { flip: true, crop: 2, cutout: 2, noise: 0.1, mixup: 0.0 };
        let run = |seed| {
            let mut picture = vec![1.0; 48];
            augment.apply(&mut picture, &[1, 4, 4, 3], &[0.0; 3], &mut Random::new(seed, 0));
            picture
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }
}
