//! Files that appear whole or not at all, and progress.

use super::Failure;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Mutex;

/// Says early whether `path` can be written: long work should not end in a missing folder.
pub(super) fn check_folder(path: &Path) -> Result<(), Failure> {
    let folder = folder(path);
    if path.is_dir() {
        return Err(Failure::new(format!("{} is a folder; name a file", path.display())));
    }
    match folder.is_dir() {
        true => Ok(()),
        false => Err(Failure::new(format!("the folder {} does not exist; create it first", folder.display()))),
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes to a temporary name beside `path`, then renames.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let fail = |e: std::io::Error| Failure::new(format!("cannot write {}: {e}", path.display()));
    let mut file = tempfile::Builder::new().prefix(".pith-").suffix(".tmp").tempfile_in(folder(path)).map_err(fail)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(fail)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Temporary files are private; a model is an ordinary file.
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(fail)?;
    }
    file.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

/// A bar on a terminal, nothing elsewhere. Steps follow one another; each knows its length.
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
    }

    pub(super) fn finish(&self) {
        if let Ok(current) = self.bar.lock() {
            current.1.finish_and_clear();
        }
    }
}
