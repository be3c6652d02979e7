//! Files that appear whole or not at all.

use std::io::Write;
use std::path::{Path, PathBuf};

/// The folder that `path` lies in.
pub fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes to a temporary name beside `path`, then renames: an interrupted write, or a full disk, leaves what was there.
pub fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".pith-").suffix(".tmp").tempfile_in(folder(path))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Temporary files are private; these are ordinary files.
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    file.persist(path).map(|_| ()).map_err(|e| e.error)
}

/// A file of its own for a phase of the work: `run.npz` becomes `run.npz.phase`.
pub fn beside(path: &Path, phase: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{phase}"));
    path.with_file_name(name)
}
