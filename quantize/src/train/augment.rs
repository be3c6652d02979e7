//! Random changes of training samples that keep their meaning: mirrored, shifted and partly covered pictures, noise on signals.

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
}

impl Augment {
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
    fn equal_seeds_equal_pictures() {
        let augment = Augment { flip: true, crop: 2, cutout: 2, noise: 0.1 };
        let run = |seed| {
            let mut picture = vec![1.0; 48];
            augment.apply(&mut picture, &[1, 4, 4, 3], &[0.0; 3], &mut Random::new(seed, 0));
            picture
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }
}
