//! Input units: distributions of one integer variable `v` in `0..values`.
//!
//! A categorical unit has a probability for every value. A parametric unit is a mixture of a location-scale family over ordered integers,
//!
//! ```text
//! p(v) = sum_c share_c * (F((v + 1/2 - location_c) / scale_c) - F((v - 1/2 - location_c) / scale_c)),
//! ```
//!
//! whose first and last value take the tails. Both are expanded into the same tables of probabilities; they differ in what EM fits: the
//! target distribution of a unit (its smoothed expected counts) becomes the table, or is approached by the nearest parameters.

/// Cumulative distribution functions `F`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `exp(x) / 2` below zero, and symmetric.
    Laplace,
    /// The normal distribution.
    Gaussian,
    /// `1 / (1 + exp(-x))`.
    Logistic,
}

/// A member of a mixture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Component {
    /// Its weight.
    pub share: f32,
    /// In units of the variable.
    pub location: f32,
    /// In units of the variable, above zero.
    pub scale: f32,
}

/// Kind and parameters of a region's input units.
#[derive(Clone, Debug, PartialEq)]
pub enum Inputs {
    /// The table holds the parameters.
    Categorical,
    /// `components` of each unit, one unit after the other.
    Parametric {
        /// What all of them are.
        family: Family,
        /// Members of a mixture.
        components: usize,
        /// `[units][components]`.
        params: Vec<Component>,
    },
}

impl Inputs {
    /// Numbers that describe the input units.
    pub fn parameters(&self, units: usize, values: usize) -> usize {
        match self {
            Inputs::Categorical => units * values,
            Inputs::Parametric { params, components, .. } => params.len() * if *components > 1 { 3 } else { 2 },
        }
    }

    /// Fits the units to `target`, `[values][stride]` with columns that sum to one, and writes the table.
    pub fn fit(&mut self, target: &[f32], units: usize, stride: usize, table: &mut [f32]) {
        match self {
            Inputs::Categorical => table.copy_from_slice(target),
            Inputs::Parametric { family, components, params } => {
                for (unit, mixture) in params.chunks_exact_mut(*components).enumerate().take(units) {
                    let column: Vec<f32> = target.iter().skip(unit).step_by(stride).copied().collect();
                    approach(*family, mixture, &column);
                    let fitted = probabilities(*family, mixture, column.len());
                    table.iter_mut().skip(unit).step_by(stride).zip(fitted).for_each(|(t, p)| *t = p);
                }
            }
        }
    }
}

/// Probabilities of all values of a mixture; none is below 1e-12, so that no sample is impossible.
pub fn probabilities(family: Family, mixture: &[Component], values: usize) -> Vec<f32> {
    let mut sum = vec![1e-12; values];
    for component in mixture {
        for (p, q) in sum.iter_mut().zip(masses(family, component, values)) {
            *p += component.share * q;
        }
    }
    let total: f32 = sum.iter().sum();
    sum.iter_mut().for_each(|p| *p /= total);
    sum
}

fn masses(family: Family, component: &Component, values: usize) -> Vec<f32> {
    let mut below = 0.0;
    let mut mass = |v: usize| {
        let x = (v as f32 + 0.5 - component.location) / component.scale;
        let upto = if v + 1 == values { 1.0 } else { cumulative(family, x) };
        let mass = (upto - below).max(0.0);
        below = upto;
        mass
    };
    (0..values).map(&mut mass).collect()
}

fn cumulative(family: Family, x: f32) -> f32 {
    match family {
        Family::Laplace if x < 0.0 => 0.5 * x.exp(),
        Family::Laplace => 1.0 - 0.5 * (-x).exp(),
        Family::Logistic => 1.0 / (1.0 + (-x).exp()),
        Family::Gaussian => {
            // Abramowitz and Stegun 7.1.26, to 1.5e-7.
            let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
            let t = 1.0 / (1.0 + 0.327_591_1 * z);
            let poly = t * (0.254_829_6 + t * (-0.284_496_74 + t * (1.421_413_7 + t * (-1.453_152 + t * 1.061_405_4))));
            let tail = 0.5 * poly * (-z * z).exp();
            if x < 0.0 { tail } else { 1.0 - tail }
        }
    }
}

/// One EM step of a mixture towards a target distribution; the cross-entropy never grows.
fn approach(family: Family, mixture: &mut [Component], target: &[f32]) {
    let before = cross_entropy(&probabilities(family, mixture, target.len()), target);
    let old = mixture.to_vec();
    let parts: Vec<Vec<f32>> = mixture.iter().map(|c| masses(family, c, target.len())).collect();
    let mixed = |v: usize| old.iter().zip(&parts).map(|(c, part)| c.share * part[v]).sum::<f32>() + 1e-12;
    for (component, part) in mixture.iter_mut().zip(&parts) {
        let own: Vec<f32> = (0..target.len()).map(|v| target[v] * component.share * part[v] / mixed(v)).collect();
        component.share = own.iter().sum::<f32>().max(1e-6);
        refine(family, component, &own);
    }
    let total: f32 = mixture.iter().map(|c| c.share).sum();
    mixture.iter_mut().for_each(|c| c.share /= total);
    if cross_entropy(&probabilities(family, mixture, target.len()), target) > before {
        mixture.copy_from_slice(&old);
    }
}

/// Moves location and scale downhill by steps in proportion to the scale.
fn refine(family: Family, component: &mut Component, counts: &[f32]) {
    let loss =
        |c: &Component| cross_entropy(&probabilities(family, &[Component { share: 1.0, ..*c }], counts.len()), counts);
    let mut best = loss(component);
    for step in [0.5f32, 0.25, 0.1, 0.03, 0.01] {
        let c = *component;
        let moved = [
            Component { location: c.location + step * c.scale, ..c },
            Component { location: c.location - step * c.scale, ..c },
            Component { scale: c.scale * (1.0 + step), ..c },
            Component { scale: (c.scale / (1.0 + step)).max(0.02), ..c },
        ];
        for candidate in moved {
            let loss = loss(&candidate);
            if loss < best {
                (best, *component) = (loss, candidate);
            }
        }
    }
}

fn cross_entropy(p: &[f32], target: &[f32]) -> f64 {
    p.iter().zip(target).map(|(&p, &t)| -(t as f64) * (p as f64).ln()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_sum_to_one_and_find_their_parameters() {
        for family in [Family::Laplace, Family::Gaussian, Family::Logistic] {
            let truth = [Component { share: 1.0, location: 20.0, scale: 3.0 }];
            let target = probabilities(family, &truth, 64);
            assert!((target.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            let mut fitted = [Component { share: 1.0, location: 32.0, scale: 10.0 }];
            for _ in 0..40 {
                approach(family, &mut fitted, &target);
            }
            assert!(
                (fitted[0].location - 20.0).abs() < 0.2 && (fitted[0].scale - 3.0).abs() < 0.2,
                "{family:?} {fitted:?}"
            );
        }
    }

    #[test]
    fn mixtures_never_move_away() {
        let truth =
            [(0.3, 10.0, 1.0), (0.7, 40.0, 4.0)].map(|(share, location, scale)| Component { share, location, scale });
        let target = probabilities(Family::Laplace, &truth, 64);
        let mut fitted =
            [(0.5, 5.0, 5.0), (0.5, 50.0, 5.0)].map(|(share, location, scale)| Component { share, location, scale });
        let mut last = f64::INFINITY;
        for _ in 0..60 {
            approach(Family::Laplace, &mut fitted, &target);
            let loss = cross_entropy(&probabilities(Family::Laplace, &fitted, 64), &target);
            assert!(loss <= last);
            last = loss;
        }
        assert!(last - cross_entropy(&target, &target) < 0.01, "{fitted:?}");
    }
}
