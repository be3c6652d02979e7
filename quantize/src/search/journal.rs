//! Scores of sub-networks that were measured, kept in a file, so that a search that was interrupted goes on where it was.
//!
//! JSON: `{"of": CHECKSUM, "measured": [[[form of every layer, samples, recalibrated], score], ..]}`. The checksum is that of everything that a score depends on. Scores do not
//! depend on budgets or seeds: searches of one supernet for several boards share a journal.

use super::SearchError;
use crate::files;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// See the module.
#[derive(Debug)]
pub struct Journal {
    path: Option<PathBuf>,
    of: u32,
    scores: RefCell<BTreeMap<Vec<usize>, f64>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    of: u32,
    measured: Vec<(Vec<usize>, f64)>,
}

impl Journal {
    /// In memory, or in a file, which is read first if it is there and `resumes`.
    pub(super) fn open(path: Option<&Path>, resumes: bool, of: u32) -> Result<Journal, SearchError> {
        let mut scores = BTreeMap::new();
        if let Some(path) = path.filter(|path| resumes && path.exists()) {
            let fail = |what: String| SearchError::Journal { path: path.display().to_string(), what };
            let text = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
            let content: Content = serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))?;
            if content.of != of {
                return Err(fail("it is of another supernet or other data; delete it to start anew".into()));
            }
            scores.extend(content.measured.into_iter().filter(|(_, score)| score.is_finite()));
        }
        Ok(Journal { path: path.map(Path::to_path_buf), of, scores: RefCell::new(scores) })
    }

    /// The score of a choice by so many samples, its batch norms recalibrated with so many, which `measure` is asked for if nobody knows it.
    pub(super) fn score(
        &self,
        choice: &[usize],
        by: [usize; 2],
        measure: impl FnOnce() -> Result<f64, SearchError>,
    ) -> Result<f64, SearchError> {
        let key = [choice, &by].concat();
        let known = self.scores.borrow().get(&key).copied();
        if let Some(score) = known {
            return Ok(score);
        }
        let score = measure()?;
        self.scores.borrow_mut().insert(key, score);
        self.write()?;
        Ok(score)
    }

    /// Where scores are kept.
    pub(super) fn path(&self) -> Option<PathBuf> {
        self.path.clone()
    }

    fn write(&self) -> Result<(), SearchError> {
        let Some(path) = &self.path else { return Ok(()) };
        let fail = |what: String| SearchError::Journal { path: path.display().to_string(), what };
        let measured = self.scores.borrow().iter().map(|(choice, &score)| (choice.clone(), score)).collect();
        let text = serde_json::to_vec(&Content { of: self.of, measured }).map_err(|e| fail(e.to_string()))?;
        files::write_whole(path, &text).map_err(|e| fail(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_not_measured_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.json");
        let fail = || Err(SearchError::NoLayers);
        let journal = Journal::open(Some(&path), true, 7).unwrap();
        assert_eq!(journal.score(&[1, 2], [9, 5], || Ok(0.5)).unwrap(), 0.5);
        assert_eq!(journal.score(&[1, 2], [9, 5], fail).unwrap(), 0.5);
        assert!(journal.score(&[1, 2], [8, 5], fail).is_err(), "fewer samples give another score");
        assert!(journal.score(&[2, 2], [9, 5], fail).is_err(), "an error is no score");
        assert_eq!(journal.score(&[0, 0], [9, 5], || Ok(1.0 / 3.0)).unwrap(), 1.0 / 3.0);
        let again = Journal::open(Some(&path), true, 7).unwrap();
        assert_eq!(again.score(&[0, 0], [9, 5], fail).unwrap(), 1.0 / 3.0, "to the last bit");
        assert!(Journal::open(Some(&path), false, 7).unwrap().score(&[1, 2], [9, 5], fail).is_err(), "anew");
        let error = Journal::open(Some(&path), true, 8).unwrap_err().to_string();
        assert!(error.contains("scores.json") && error.contains("another supernet"), "{error}");
        std::fs::write(&path, "{\"of\": 7}").unwrap();
        let error = Journal::open(Some(&path), true, 7).unwrap_err().to_string();
        assert!(error.contains("measured"), "{error}");
    }
}
