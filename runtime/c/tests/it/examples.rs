//! Both examples, built as their users would, print what Rust computes.

use crate::calls::expected;
use crate::{TINY, call, has, here};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where this builds; kept, so that the next time is quick.
fn build() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("pith-c")
}

/// A command without what `cargo test` tells its children, apart from where the compiler is.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"] {
        command.env_remove(name);
    }
    command
}

/// Values as the examples print them.
fn lines(outputs: &[Vec<i8>]) -> String {
    let line = |values: &Vec<i8>| values.iter().map(i8::to_string).collect::<Vec<_>>().join(" ") + "\n";
    outputs.iter().map(line).collect()
}

/// The example for desktops: built by CMake, or as CMake would.
fn desktop() -> Option<PathBuf> {
    let (source, library, build) = (here("examples/desktop"), build().join("host"), build().join("desktop"));
    if !has("cc") {
        println!("skipped: no cc");
        return None;
    }
    if has("cmake") && has("make") {
        let place = format!("-DPITH_BUILD={}", library.display());
        // It names the checkout that it was made for, and the target folder may serve others.
        let _ = fs::remove_file(build.join("CMakeCache.txt"));
        call(command("cmake").arg("-S").arg(&source).arg("-B").arg(&build).args(["-G", "Unix Makefiles", &place]));
        call(command("cmake").arg("--build").arg(&build));
        return Some(build.join("pith_example"));
    }
    println!("skipped: CMakeLists.txt, as there is no cmake");
    let cargo = ["build", "--release", "--lib", "--package", "pith-c", "--target-dir"];
    call(command(env!("CARGO")).args(cargo).arg(&library).current_dir(here("")));
    let program = build.join("pith_example");
    fs::create_dir_all(&build).unwrap();
    let mut cc = command("cc");
    cc.args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-I"]).arg(here("include")).arg(source.join("main.c"));
    call(cc.arg(library.join("release/libpith_c.a")).args(["-lpthread", "-ldl", "-lm", "-o"]).arg(&program));
    Some(program)
}

#[test]
#[cfg(unix)]
fn desktop_prints_what_rust_computes() {
    let Some(program) = desktop() else { return };
    let golden = here("../tests/golden");
    for name in ["tiny.pith", "every_operator.pith", "block_sparse.pith", "asymmetric.pith"] {
        let path = golden.join(name);
        let mut memory = vec![pith::Aligned([0u8; 16]); 1 + fs::metadata(&path).unwrap().len() as usize / 16];
        let bytes = fs::read(&path).unwrap();
        let file = memory.iter_mut().zip(bytes.chunks(16)).map(|(to, from)| to.0[..from.len()].copy_from_slice(from));
        file.for_each(drop);
        // SAFETY: `Aligned` is its bytes alone.
        let file = unsafe { core::slice::from_raw_parts(memory.as_ptr().cast::<u8>(), bytes.len()) };
        let value = |index: usize| (index * 37 % 251) as u8 as i8;
        let model = pith::Model::parse(file).unwrap();
        let len: usize = model.inputs().iter().map(|port| model.tensor(port.tensor).len as usize).sum();
        let input = build().join(format!("{name}.raw"));
        fs::write(&input, (0..len).map(|index| value(index) as u8).collect::<Vec<_>>()).unwrap();
        assert_eq!(call(Command::new(&program).arg(&path)), lines(&expected(file, |_| 0)), "{name}, zeros");
        assert_eq!(call(Command::new(&program).arg(&path).arg(&input)), lines(&expected(file, value)), "{name}");
    }
    let refused = Command::new(&program).arg(here("Cargo.toml")).output().unwrap();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not a .pith model"));
}

#[test]
fn cortex_m_prints_what_rust_computes() {
    for program in ["make", "arm-none-eabi-gcc", "qemu-system-arm"] {
        if !has(program) {
            return println!("skipped: no {program}; cargo xtask setup installs it");
        }
    }
    let libdir = call(command("rustc").args(["--print", "target-libdir", "--target", "thumbv7em-none-eabihf"]));
    if !Path::new(libdir.trim()).exists() {
        return println!("skipped: no target thumbv7em-none-eabihf; cargo xtask setup adds it");
    }
    let place = build().join("cortex-m");
    fs::create_dir_all(&place).unwrap();
    let mut make = command("make");
    make.args(["-s", "run"]).arg(format!("BUILD={}", place.display())).current_dir(here("examples/cortex-m"));
    let printed = call(&mut make);
    assert_eq!(printed, lines(&expected(TINY, |_| 3)));
    assert_eq!(printed, "7 -15\n");
    let mut size = Command::new("arm-none-eabi-size");
    println!("{}", call(size.arg(place.join("example.elf"))));
}
