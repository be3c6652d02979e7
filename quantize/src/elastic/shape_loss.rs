//! The WDR loss ("EQ-Net", section 3.2): weights whose distribution has no skewness and the kurtosis 1.8 of a uniform one lose least at few bits.
//!
//! `(1 / L) sum over layers of a Skew^2 + b (Kurt - 1.8)^2`, where `Skew` and `Kurt` are the means of `z^3` and `z^4` with `z = (w - mean) / sigma`. Its
//! gradient is written out: `dSkew/dw = 3 / (n sigma) (z^2 - 1 - Skew z)` and `dKurt/dw = 4 / (n sigma) (z^3 - Skew - Kurt z)`. Weights that are zero were
//! pruned, and belong to no distribution.

/// Kurtosis of a uniform distribution.
const UNIFORM: f64 = 1.8;

/// Skewness and kurtosis of some weights, with their mean and standard deviation; none where they are all alike.
fn moments(weights: &[f32]) -> Option<[f64; 4]> {
    let kept = || weights.iter().filter(|w| **w != 0.0).map(|&w| f64::from(w));
    let n = kept().count().max(1) as f64;
    let mean = kept().sum::<f64>() / n;
    let power = |p: i32| kept().map(|w| (w - mean).powi(p)).sum::<f64>() / n;
    let sigma = power(2).sqrt();
    (sigma > 1e-12).then(|| [mean, sigma, power(3) / sigma.powi(3), power(4) / sigma.powi(4)])
}

/// Loss of one layer, and its gradient times `share`, added to `total`. `factors` are those of skewness and kurtosis.
pub(super) fn add(weights: &[f32], factors: [f32; 2], share: f32, total: &mut [f32]) -> f32 {
    let Some([mean, sigma, skew, kurt]) = moments(weights) else { return 0.0 };
    let [a, b] = factors.map(f64::from);
    let (to_skew, to_kurt) = (2.0 * a * skew, 2.0 * b * (kurt - UNIFORM));
    let n = weights.iter().filter(|w| **w != 0.0).count() as f64;
    for (total, &w) in total.iter_mut().zip(weights).filter(|(_, w)| **w != 0.0) {
        let z = (f64::from(w) - mean) / sigma;
        let by_skew = 3.0 * (z * z - 1.0 - skew * z);
        let by_kurt = 4.0 * (z * z * z - skew - kurt * z);
        *total += (f64::from(share) * (to_skew * by_skew + to_kurt * by_kurt) / (n * sigma)) as f32;
    }
    (f64::from(share) * (a * skew * skew + b * (kurt - UNIFORM).powi(2))) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn gradient_is_that_of_the_loss() {
        let mut random = Random::new(1, 0);
        let weights: Vec<f32> = (0..40).map(|_| random.normal().powi(3) + 0.2).collect();
        let loss = |weights: &[f32]| {
            let [_, _, skew, kurt] = moments(weights).unwrap();
            0.25 * (skew * skew + 0.015 * (kurt - UNIFORM).powi(2))
        };
        let mut gradient = vec![0.0; 40];
        let value = add(&weights, [1.0, 0.015], 0.25, &mut gradient);
        assert!((f64::from(value) - loss(&weights)).abs() < 1e-5);
        for i in [0, 7, 13, 39] {
            let moved = |d: f32| {
                let mut w = weights.clone();
                w[i] += d;
                loss(&w)
            };
            let numeric = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!(
                (numeric - f64::from(gradient[i])).abs() < 1e-3 * (1.0 + numeric.abs()),
                "{numeric} {}",
                gradient[i]
            );
        }
    }

    #[test]
    fn pruned_weights_do_not_count() {
        let kept: Vec<f32> = (1..30).map(|i| (i as f32 / 9.0).exp()).collect();
        let pruned: Vec<f32> = kept.iter().flat_map(|&w| [0.0, w, 0.0]).collect();
        let (mut alone, mut among) = (vec![0.0; kept.len()], vec![0.0; pruned.len()]);
        assert_eq!(add(&kept, [1.0, 0.015], 0.5, &mut alone), add(&pruned, [1.0, 0.015], 0.5, &mut among));
        assert!(among.chunks(3).zip(&alone).all(|(three, &own)| three == [0.0, own, 0.0]));
    }

    #[test]
    fn uniform_weights_lose_nothing() {
        let weights: Vec<f32> = (0..1000).map(|i| i as f32 / 1000.0).collect();
        let [_, _, skew, kurt] = moments(&weights).unwrap();
        assert!(skew.abs() < 1e-4 && (kurt - UNIFORM).abs() < 1e-2, "{skew} {kurt}");
        assert!(moments(&[0.5; 9]).is_none());
    }
}
