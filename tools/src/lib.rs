//! `cargo xtask`: what the project needs beside cargo. One file a verb.
//!
//! - [`setup`]: installs what builds and tests need, or names it;
//! - [`mod@test`]: every check, lane by lane;
//! - [`qemu`]: a model on an emulated core, outputs and executed instructions back;
//! - [`cases`]: models of one operator on an emulated core, against exact arithmetic;
//! - [`device`]: boards at the other end of a line, emulated ones included: `boards`, `flash`, `serve`, `monitor`, `verify`, `profile`;
//! - [`size`]: code and memory of a model's program;
//! - [`mod@bench`]: instructions and times beside other engines;
//! - [`gestures`]: what an accelerometer would feel, to train the example of a sensor on;
//! - [`results`]: the README's table, over the [`networks`] at hand.

use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::Command;

pub mod bench;
pub mod cases;
pub mod core;
pub mod device;
pub mod gestures;
pub mod networks;
pub mod qemu;
pub mod results;
pub mod setup;
pub mod size;
pub mod test;

/// What stops a verb; one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ToolError(pub String);

impl ToolError {
    /// An error with this text.
    pub fn new(text: impl Into<String>) -> ToolError {
        ToolError(text.into())
    }
}

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Pith's development commands")]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install cross targets, emulators and test data, or say what is missing
    Setup,
    /// Run every check; each lane prints its time
    Test(test::Args),
    /// Run a model on an emulated core
    Qemu(qemu::Args),
    /// Check every operator on an emulated core
    Cases(cases::Args),
    /// Code, tables and RAM of a model's program on a core
    Size(size::Args),
    /// Boards, their memory, and which model fits
    Boards(device::board::Args),
    /// Write a board's program and a model by a debug probe, and see it start
    Flash(device::flash::Args),
    /// Write or emulate a board that answers on its line, and show its log
    Serve(device::flash::ServeArgs),
    /// Show the log of a board's program
    Monitor(device::flash::MonitorArgs),
    /// Compare a board's outputs with the host's, byte by byte
    Verify(device::verify::Args),
    /// What every operator takes on a board
    Profile(device::profile::Args),
    /// Pith beside other engines: instructions on emulated cores, time on this machine
    Bench(bench::Args),
    /// Synthetic gestures of an accelerometer: sets, an untrained network, a recording
    Gestures(gestures::Args),
    /// The README's table of results
    Results,
}

/// Parses the command line and runs the verb; false if checks failed.
pub fn run() -> Result<bool, ToolError> {
    match Args::parse().verb {
        Verb::Setup => setup::run(),
        Verb::Test(args) => test::run(&args),
        Verb::Qemu(args) => qemu::run(&args).map(|()| true),
        Verb::Cases(args) => cases::run(&args),
        Verb::Size(args) => size::run(&args).map(|()| true),
        Verb::Boards(args) => device::board::run(&args).map(|()| true),
        Verb::Flash(args) => device::flash::run(&args).map(|()| true),
        Verb::Serve(args) => device::flash::run_serve(&args).map(|()| true),
        Verb::Monitor(args) => device::flash::run_monitor(&args).map(|()| true),
        Verb::Verify(args) => device::verify::run(&args),
        Verb::Profile(args) => device::profile::run(&args).map(|()| true),
        Verb::Bench(args) => bench::run(&args),
        Verb::Gestures(args) => gestures::run(&args).map(|()| true),
        Verb::Results => results::run().map(|()| true),
    }
}

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Whether a program is there and answers `--version`.
pub fn has(program: impl AsRef<std::ffi::OsStr>) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success())
}

/// Runs a command to its end; its output is kept for the message if it fails.
pub fn call(command: &mut Command) -> Result<String, ToolError> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|e| ToolError(format!("cannot run {shown}: {e}")))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let said = text(&output.stderr) + &text(&output.stdout);
    let tail: Vec<&str> = said.lines().rev().take(30).collect();
    Err(ToolError(format!("{shown} failed:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"))))
}

/// A file name made absolute, so that it survives a change of folder.
pub fn absolute(path: &Path) -> Result<PathBuf, ToolError> {
    std::path::absolute(path).map_err(|e| ToolError(format!("{}: {e}", path.display())))
}
