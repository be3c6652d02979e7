//! What happened during pruning, step by step: norms of some groups, how many are left and how many should be, strength
//! and loss.

use crate::files;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A recording. Vectors over time are as long as `steps`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trajectory {
    /// Names of the layers.
    pub layers: Vec<String>,
    /// Indices of the groups whose norms are recorded, spread evenly over all.
    pub sample: Vec<usize>,
    /// Layer of every sampled group, an index into `layers`.
    pub layer: Vec<usize>,
    /// Training steps at which something was recorded, ascending.
    pub steps: Vec<usize>,
    /// Norms of the sampled groups.
    pub norms: Vec<Vec<f32>>,
    /// Groups that are left, of all.
    pub nonzero: Vec<usize>,
    /// Groups that the schedule asks for.
    pub wanted: Vec<f64>,
    /// Strength of the pull.
    pub lambda: Vec<f64>,
    /// Loss of the task.
    pub loss: Vec<f32>,
}

impl Trajectory {
    /// An empty recording of at most `most` groups, where group `j` belongs to the layer `layer[j]`.
    pub fn new(layers: &[String], layer: &[usize], most: usize) -> Trajectory {
        let count = layer.len().min(most);
        let sample: Vec<usize> = (0..count).map(|i| i * layer.len() / count).collect();
        let own = sample.iter().map(|&j| layer[j]).collect();
        Trajectory { layers: layers.to_vec(), sample, layer: own, ..Trajectory::default() }
    }

    /// A step with the norms of all groups.
    pub fn record(&mut self, step: usize, norms: &[f64], wanted: f64, lambda: f64, loss: f32) {
        self.steps.push(step);
        self.norms.push(self.sample.iter().map(|&j| norms.get(j).map_or(0.0, |&n| n as f32)).collect());
        self.nonzero.push(norms.iter().filter(|n| **n > 0.0).count());
        self.wanted.push(wanted);
        self.lambda.push(lambda);
        self.loss.push(loss);
    }

    /// Keeps it beside a checkpoint.
    pub(super) fn write(&self, path: &Path) -> std::io::Result<()> {
        files::write_whole(path, &serde_json::to_vec(self)?)
    }

    /// Goes on with what was recorded before `step` of the same run; with nothing, if that is not there or of other groups.
    pub(super) fn resume(&mut self, path: &Path, step: usize) {
        let read = std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Trajectory>(&bytes).ok());
        let Some(mut old) = read.filter(|old| {
            (&old.layers, &old.sample, &old.layer) == (&self.layers, &self.sample, &self.layer)
                && [old.norms.len(), old.nonzero.len(), old.wanted.len(), old.lambda.len(), old.loss.len()]
                    == [old.steps.len(); 5]
        }) else {
            return;
        };
        let count = old.steps.partition_point(|&s| s < step);
        old.steps.truncate(count);
        old.norms.truncate(count);
        old.nonzero.truncate(count);
        old.wanted.truncate(count);
        old.lambda.truncate(count);
        old.loss.truncate(count);
        *self = old;
    }
}

/// Channels, or groups of another kind, of a layer before and after pruning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Name of the layer.
    pub layer: String,
    /// Channels of the original.
    pub before: usize,
    /// Channels that are left.
    pub after: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_an_even_sample() {
        let layers = ["a".to_string(), "b".to_string()];
        let mut trajectory = Trajectory::new(&layers, &[0, 0, 0, 0, 1, 1], 3);
        assert_eq!((&trajectory.sample[..], &trajectory.layer[..]), (&[0, 2, 4][..], &[0, 0, 1][..]));
        trajectory.record(7, &[1.0, 0.0, 3.0, 4.0, 0.0, 6.0], 5.0, 0.1, 2.5);
        assert_eq!((&trajectory.norms[0][..], trajectory.nonzero[0]), (&[1.0, 3.0, 0.0][..], 4));
        assert_eq!(Trajectory::new(&layers, &[], 3).sample, [0; 0]);
        assert_eq!(Trajectory::new(&layers, &[0, 1], 9).sample, [0, 1]);
    }
}
