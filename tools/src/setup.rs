//! `cargo xtask setup`: everything that builds and tests need, installed or named.
//!
//! Cross targets come from rustup, emulators and the aarch64 linker from Debian's packages, the ONNX project's node tests from its
//! Python package. Each step says what it did; what cannot be installed here is named with the command that would do it, and the
//! tests that need it skip.

use crate::{ToolError, call, has, root};
use std::path::PathBuf;
use std::process::Command;

/// Targets of firmware, portability builds and the emulated suite.
pub const TARGETS: [&str; 9] = [
    "thumbv6m-none-eabi",
    "thumbv7m-none-eabi",
    "thumbv7em-none-eabihf",
    "thumbv8m.main-none-eabi",
    "riscv32imac-unknown-none-elf",
    "riscv32imc-unknown-none-elf",
    "wasm32-unknown-unknown",
    "aarch64-unknown-linux-gnu",
    "thumbv7em-none-eabi",
];

/// Program, and the Debian package that brings it.
const PROGRAMS: [(&str, &str); 7] = [
    ("qemu-system-arm", "qemu-system-arm"),
    ("qemu-system-riscv32", "qemu-system-misc"),
    ("qemu-aarch64", "qemu-user"),
    ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"),
    ("valgrind", "valgrind"),
    ("arm-none-eabi-gcc", "gcc-arm-none-eabi"),
    ("cmake", "cmake"),
];

/// The package that carries the operator tests of the standard; the newest whose wheel holds them.
const ONNX: &str = "onnx==1.22.0";

/// Where that wheel goes.
pub fn node_tests() -> PathBuf {
    root().join("target/onnx-node-tests")
}

/// The verb.
pub fn run() -> Result<bool, ToolError> {
    targets();
    packages();
    wheel();
    println!("setup is complete; `cargo xtask test` runs every check and says what it skips");
    Ok(true)
}

/// Whether the pinned toolchain has a target.
pub fn has_target(target: &str) -> bool {
    let libdir = call(Command::new("rustc").args(["--print", "target-libdir", "--target", target]).current_dir(root()));
    libdir.is_ok_and(|dir| std::path::Path::new(dir.trim()).exists())
}

fn targets() {
    let missing: Vec<&str> = TARGETS.into_iter().filter(|t| !has_target(t)).collect();
    if missing.is_empty() {
        return println!("targets: all present");
    }
    // Run in the repository, so that the pinned toolchain gets them.
    match call(Command::new("rustup").args(["target", "add"]).args(&missing).current_dir(root())) {
        Ok(_) => println!("targets: added {}", missing.join(" ")),
        Err(error) => {
            println!("targets: missing {}; run: rustup target add {} ({error})", missing.join(" "), missing.join(" "))
        }
    }
}

fn packages() {
    let missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| !has(program)).map(|(_, package)| *package).collect();
    let names: Vec<&str> = missing.iter().flat_map(|p| p.split(' ')).collect();
    if names.is_empty() {
        return println!("programs: all present");
    }
    let is_root = call(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    let apt = |args: &[&str]| call(Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive"));
    let install: Vec<&str> =
        ["install", "-y", "--no-install-recommends"].into_iter().chain(names.iter().copied()).collect();
    if is_root && has("apt-get") && apt(&["update"]).is_ok() && apt(&install).is_ok() {
        return println!("programs: installed {}", names.join(" "));
    }
    println!("programs: missing; run: sudo apt-get install {}", names.join(" "));
}

fn wheel() {
    let folder = node_tests();
    let wanted = ONNX.replace("==", "-");
    let is_wanted = |e: std::fs::DirEntry| e.file_name().to_string_lossy().starts_with(&wanted);
    let present = std::fs::read_dir(&folder).is_ok_and(|d| d.filter_map(Result::ok).any(is_wanted));
    if present {
        return println!("ONNX node tests: present");
    }
    let download = call(
        Command::new("python3")
            .args(["-m", "pip", "download", ONNX, "--no-deps", "--only-binary=:all:", "-q", "-d"])
            .arg(&folder),
    );
    match download {
        Ok(_) => println!("ONNX node tests: downloaded with {ONNX}"),
        Err(_) => {
            println!("ONNX node tests: absent; run: python3 -m pip download {ONNX} --no-deps -d target/onnx-node-tests")
        }
    }
}
