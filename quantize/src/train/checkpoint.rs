//! The state of a run in a file: an `.npz` that any tool can open.

use super::TrainError;
use super::session::Session;
use crate::{files, npy};
use std::path::Path;

/// Writes to a temporary name beside `path`, then renames: what is there is always whole.
pub(super) fn write(path: &Path, session: &Session) -> Result<(), TrainError> {
    let vector = |values: &[f32]| npy::encode("<f4", &[values.len()], bytemuck::cast_slice(values));
    let bytes = |values: &[u8]| npy::encode("|u1", &[values.len()], values);
    let counts = [session.step as f64, session.optimizer.steps as f64];
    let arrays = vec![
        ("fingerprint".to_string(), bytes(session.fingerprint().as_bytes())),
        ("steps".to_string(), npy::encode("<f8", &[2], bytemuck::cast_slice(&counts))),
        ("theta".to_string(), vector(&session.theta)),
        ("moments".to_string(), vector(&session.moments.values.concat())),
        ("first".to_string(), vector(&session.optimizer.first)),
        ("second".to_string(), vector(&session.optimizer.second)),
        ("kept".to_string(), vector(&session.kept)),
    ];
    let fail = |what: String| TrainError::Checkpoint { path: path.display().to_string(), what };
    let archive = npy::encode_archive(&arrays).map_err(|e| fail(e.to_string()))?;
    files::write_whole(path, &archive).map_err(|e| fail(e.to_string()))
}

/// Reads the state of the same run.
pub(super) fn read(path: &Path, session: &mut Session) -> Result<(), TrainError> {
    let fail = |what: &str| TrainError::Checkpoint { path: path.display().to_string(), what: what.into() };
    let arrays = npy::read(path).map_err(|e| fail(&e.to_string()))?;
    let find = |name: &str| {
        let found = arrays.iter().find(|(n, _)| n == name).map(|(_, a)| a.values.iter().copied().collect::<Vec<f32>>());
        found.ok_or_else(|| fail(&format!("no array '{name}'; it is no checkpoint")))
    };
    let fingerprint: Vec<u8> = find("fingerprint")?.into_iter().map(|v| v as u8).collect();
    if fingerprint != session.fingerprint().as_bytes() {
        return Err(fail("it is of another network or other options; delete it to start anew"));
    }
    let steps = find("steps")?;
    let (theta, moments) = (find("theta")?, find("moments")?);
    let (first, second, kept) = (find("first")?, find("second")?, find("kept")?);
    let moments_len: usize = session.moments.values.iter().map(Vec::len).sum();
    let fits = theta.len() == session.theta.len()
        && moments.len() == moments_len
        && first.len() == session.optimizer.first.len()
        && second.len() == session.optimizer.second.len()
        && steps.len() == 2
        && steps.iter().all(|s| *s >= 0.0 && *s < 1e9);
    if !fits {
        return Err(fail("its arrays have other sizes; delete it to start anew"));
    }
    let mut rest = moments.as_slice();
    for own in &mut session.moments.values {
        let (head, tail) = rest.split_at(own.len());
        own.copy_from_slice(head);
        rest = tail;
    }
    session.theta = theta;
    session.optimizer.first = first;
    session.optimizer.second = second;
    session.kept = kept;
    session.step = steps[0] as usize;
    session.optimizer.steps = steps[1] as u64;
    Ok(())
}
