//! Samples of a circuit: from the root down, a sum picks one of its units, a product takes all of its parts.

use super::{Circuit, Data};
use crate::random::Random;

/// Draws `samples` rows.
pub fn sample(circuit: &Circuit, samples: usize, seed: u64) -> Data {
    let mut random = Random::new(seed, 0);
    let mut values = vec![0; samples * circuit.variables];
    for row in values.chunks_exact_mut(circuit.variables.max(1)) {
        let mut pending = vec![(circuit.regions.len() - 1, 0)];
        while let Some((index, sum)) = pending.pop() {
            let region = &circuit.regions[index];
            let stride = region.stride();
            let unit = pick(region.weights[sum * stride..][..region.units].iter(), &mut random);
            if let Some(variable) = region.variable {
                row[variable] = pick(region.table.iter().skip(unit).step_by(stride), &mut random) as u8;
            }
            pending.extend(circuit.children(index).map(|child| (child, unit)));
        }
    }
    Data::new(values, circuit.variables)
}

/// An index, as probable as its share.
fn pick<'a>(shares: impl Iterator<Item = &'a f32> + Clone, random: &mut Random) -> usize {
    let mut left = random.uniform() * shares.clone().sum::<f32>();
    let mut last = 0;
    for (i, &share) in shares.enumerate().filter(|(_, share)| **share > 0.0) {
        last = i;
        left -= share;
        if left < 0.0 {
            break;
        }
    }
    last
}
