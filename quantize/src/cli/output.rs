//! Files that appear whole or not at all, and progress.

use super::Failure;
use crate::files;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Mutex;

/// Says early whether `path` can be written: long work should not end in a missing folder.
pub(super) fn check_folder(path: &Path) -> Result<(), Failure> {
    let folder = files::folder(path);
    if path.is_dir() {
        return Err(Failure::new(format!("{} is a folder; name a file", path.display())));
    }
    match folder.is_dir() {
        true => Ok(()),
        false => Err(Failure::new(format!("the folder {} does not exist; create it first", folder.display()))),
    }
}

/// Writes to a temporary name beside `path`, then renames.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    files::write_whole(path, bytes).map_err(|e| Failure::new(format!("cannot write {}: {e}", path.display())))
}

/// A bar on a terminal, nothing elsewhere. Steps follow one another; each knows its length, and its bar goes when it is done.
pub(super) struct Progress {
    bar: Mutex<(&'static str, ProgressBar)>,
}

impl Progress {
    pub(super) fn new() -> Progress {
        Progress { bar: Mutex::new(("", ProgressBar::hidden())) }
    }

    /// One unit of `step`, which has `total`.
    pub(super) fn advance(&self, step: &'static str, total: usize) {
        let Ok(mut current) = self.bar.lock() else { return };
        let finished = current.1.length().is_some_and(|n| current.1.position() >= n);
        if (current.0 != step || finished) && std::io::stderr().is_terminal() {
            current.1.finish_and_clear();
            let style = ProgressStyle::with_template("{msg:>12} {wide_bar} {pos}/{len} {eta}");
            let bar = ProgressBar::new(total as u64).with_message(step);
            *current = (
                step,
                match style {
                    Ok(style) => bar.with_style(style),
                    Err(_) => bar,
                },
            );
        }
        current.1.inc(1);
        if current.1.length() == Some(current.1.position()) {
            current.1.finish_and_clear();
        }
    }

    pub(super) fn finish(&self) {
        if let Ok(current) = self.bar.lock() {
            current.1.finish_and_clear();
        }
    }
}
