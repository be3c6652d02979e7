//! `cargo xtask test`: every check, in lanes. A lane that cannot run here says why and counts as skipped.

use crate::setup::has_target;
use crate::{ToolError, call, has, root};
use std::process::Command;
use std::time::Instant;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these lanes
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Not these lanes
    #[arg(long, value_delimiter = ',')]
    skip: Vec<String>,
}

/// How a lane ended.
enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

type Lane = (&'static str, fn() -> Outcome);

const LANES: [Lane; 9] = [
    ("fmt", fmt),
    ("clippy", clippy),
    ("doc", doc),
    ("tests", tests),
    ("no_std", no_std),
    ("aarch64", aarch64),
    ("sanitizer", sanitizer),
    ("valgrind", valgrind),
    ("miri", miri),
];

/// The verb; the last line counts lanes.
pub fn run(args: &Args) -> Result<bool, ToolError> {
    let known = |name: &String| LANES.iter().any(|(lane, _)| lane == name);
    if let Some(name) = args.only.iter().chain(&args.skip).find(|n| !known(n)) {
        let lanes: Vec<&str> = LANES.iter().map(|(lane, _)| *lane).collect();
        return Err(ToolError(format!("no lane '{name}'; there are {}", lanes.join(", "))));
    }
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, lane) in LANES {
        let wanted = args.only.is_empty() || args.only.iter().any(|n| n == name);
        if !wanted || args.skip.iter().any(|n| n == name) {
            continue;
        }
        let started = Instant::now();
        let outcome = lane();
        let seconds = started.elapsed().as_secs();
        match outcome {
            Outcome::Passed => {
                passed += 1;
                println!("{name:<10} ok       {seconds:>4} s");
            }
            Outcome::Skipped(why) => {
                skipped += 1;
                println!("{name:<10} skipped  {seconds:>4} s  {why}");
            }
            Outcome::Failed(why) => {
                failed += 1;
                println!("{name:<10} FAILED   {seconds:>4} s\n{why}");
            }
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(failed == 0)
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(args).current_dir(root());
    command
}

fn all(commands: Vec<Command>) -> Outcome {
    for mut command in commands {
        if let Err(error) = call(&mut command) {
            return Outcome::Failed(error.0);
        }
    }
    Outcome::Passed
}

/// Runs a command with its output shown, because its lines (counts, skips) are the result.
fn show(mut command: Command) -> Outcome {
    match command.status() {
        Ok(status) if status.success() => Outcome::Passed,
        Ok(status) => Outcome::Failed(format!("{command:?}: {status}")),
        Err(error) => Outcome::Failed(format!("{command:?}: {error}")),
    }
}

fn fmt() -> Outcome {
    let mut firmware = cargo(&["fmt", "--all", "--check"]);
    firmware.current_dir(root().join("firmware"));
    all(vec![cargo(&["fmt", "--all", "--check"]), firmware])
}

fn clippy() -> Outcome {
    all(vec![cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])])
}

fn doc() -> Outcome {
    let mut command = cargo(&["doc", "--quiet", "--workspace", "--no-deps"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    all(vec![command])
}

fn tests() -> Outcome {
    show(cargo(&["test", "--workspace", "--", "--show-output"]))
}

/// The runtime on bare targets.
fn no_std() -> Outcome {
    let bare = crate::setup::TARGETS.into_iter().filter(|t| !t.contains("linux"));
    let (here, missing): (Vec<&str>, Vec<&str>) = bare.partition(|t| has_target(t));
    if here.is_empty() {
        return Outcome::Skipped(format!("no targets ({}); run cargo xtask setup", missing.join(" ")));
    }
    all(here
        .iter()
        .map(|t| cargo(&["build", "--quiet", "--package", "pith-runtime", "--release", "--target", t]))
        .collect())
}

/// The runtime's tests as aarch64 code, on emulated cores of which each has another best set: all tests on the last, those of kernels on all. The
/// importer's dependency alone would take longer than all other lanes together.
fn aarch64() -> Outcome {
    const TARGET: &str = "aarch64-unknown-linux-gnu";
    const CORES: [(&str, &str); 3] = [("cortex-a53", "neon"), ("neoverse-n1", "dotprod"), ("max", "i8mm")];
    if !has_target(TARGET) || !has("qemu-aarch64") || !has("aarch64-linux-gnu-gcc") {
        return Outcome::Skipped("target, qemu-aarch64 or linker missing; run cargo xtask setup".into());
    }
    for (core, best) in CORES {
        let kernels: &[&str] = if core == "max" { &[] } else { &["--", "lanes", "reference"] };
        let arguments = ["test", "--quiet", "--package", "pith-runtime", "--lib", "--tests", "--target", TARGET];
        let mut command = cargo(&arguments);
        command
            .args(kernels)
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc")
            // Static, so that no other aarch64 library of the machine gets in; bounded, because an emulator may hang.
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static")
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", "timeout 600 qemu-aarch64")
            .env("QEMU_CPU", core)
            .env("PITH_BEST", best)
            .env("PITH_MUTATIONS", "20000");
        match all(vec![command]) {
            Outcome::Passed => println!("  {core}: sets up to {best}"),
            failed => return failed,
        }
    }
    Outcome::Passed
}

fn nightly() -> bool {
    call(cargo(&["+nightly", "--version"]).env_remove("RUSTUP_TOOLCHAIN")).is_ok()
}

fn sanitizer() -> Outcome {
    if !nightly() {
        return Outcome::Skipped("no nightly toolchain".into());
    }
    let target = "x86_64-unknown-linux-gnu";
    let mut command =
        cargo(&["+nightly", "test", "--quiet", "--package", "pith-runtime", "--lib", "--tests", "--target", target]);
    command
        .env_remove("RUSTUP_TOOLCHAIN")
        .env("RUSTFLAGS", "-Zsanitizer=address")
        .env("CARGO_TARGET_DIR", root().join("target/sanitizer"))
        .env("PITH_MUTATIONS", "100000");
    all(vec![command])
}

fn valgrind() -> Outcome {
    if !has("valgrind") {
        return Outcome::Skipped("no valgrind; run cargo xtask setup".into());
    }
    let mut command = cargo(&["test", "--quiet", "--package", "pith-runtime", "--lib", "--tests"]);
    command
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "timeout 900 valgrind --quiet --error-exitcode=9")
        .env("PITH_MUTATIONS", "2000")
        .env("PITH_ROUNDS", "60");
    all(vec![command])
}

fn miri() -> Outcome {
    if call(cargo(&["+nightly", "miri", "--version"]).env_remove("RUSTUP_TOOLCHAIN")).is_err() {
        return Outcome::Skipped("no miri on the nightly toolchain".into());
    }
    let mut command = cargo(&["+nightly", "miri", "test", "--quiet", "--package", "pith-runtime", "--lib", "--tests"]);
    command
        .env_remove("RUSTUP_TOOLCHAIN")
        .env("CARGO_TARGET_DIR", root().join("target/miri"))
        .env("MIRIFLAGS", "-Zmiri-disable-isolation")
        .env("PITH_MUTATIONS", "50");
    all(vec![command])
}
