//! The C interface: its header is the one that the code gives, wrong arguments are errors, and the examples print what Rust computes.

mod calls;
mod examples;
mod header;
#[allow(dead_code)]
#[path = "../../../tests/cases/model.rs"]
mod model;

use std::path::{Path, PathBuf};
use std::process::Command;

/// A path in this package.
fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Whether a program is there.
fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// What a command prints; it has to succeed.
fn call(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

/// A small model: input [3, 3, 3], output [7, -15].
const TINY: &[u8] = pith::include_model!("../../../tests/golden/tiny.pith");
