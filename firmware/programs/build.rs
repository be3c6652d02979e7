//! Turns a board's `board.toml` into its memory map for the linker and into constants for its programs.
//!
//! Linker scripts are those of cortex-m-rt and defmt unless the field `link` lists others; what a chip's memory map has beside flash and RAM
//! is in a file `sections.x` in the board's folder, which is put behind it.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};
use toml::{Table, Value};

fn main() {
    println!("cargo::rerun-if-changed=board.toml");
    println!("cargo::rerun-if-changed=sections.x");
    if let Err(error) = generate() {
        println!("cargo::error=board.toml: {error}");
        std::process::exit(1);
    }
}

fn number(table: &Table, field: &str) -> Result<i64, String> {
    table.get(field).and_then(Value::as_integer).ok_or(format!("the field {field} is missing or no whole number"))
}

/// Origin and length of a memory.
fn region(table: &Table, field: &str) -> Result<(i64, i64), String> {
    let region = table.get(field).and_then(Value::as_table).ok_or(format!("the table {field} is missing"))?;
    Ok((number(region, "origin")?, number(region, "bytes")?))
}

fn generate() -> Result<(), Box<dyn Error>> {
    let board: Table = fs::read_to_string("board.toml")?.parse()?;
    let (flash, slots, ram) = (region(&board, "flash")?, region(&board, "slots")?, region(&board, "ram")?);
    let erase = number(&board["slots"].as_table().cloned().unwrap_or_default(), "erase")?;
    if flash.0 + flash.1 > slots.0 && slots.0 + slots.1 > flash.0 {
        return Err("the slots overlap the program's flash".into());
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let name = env::var("CARGO_PKG_NAME")?;
    fs::write(
        out.join("board.rs"),
        format!(
            "/// Name of the board.\npub const NAME: &str = {name:?};\n\
             /// Ticks of a second.\npub const TICK_HZ: u32 = {};\n\
             /// Memory for arenas and decoded weights.\npub const MEMORY_BYTES: usize = {};\n\
             /// Where the slots begin.\npub const SLOTS: usize = {};\n\
             /// Their bytes together.\npub const SLOTS_BYTES: usize = {};\n\
             /// Bytes that are erased together.\npub const ERASE_BYTES: usize = {erase};\n",
            number(&board, "tick_hz")?,
            number(&board, "memory_bytes")?,
            slots.0,
            slots.1,
        ),
    )?;
    println!("cargo::rustc-link-search={}", out.display());
    let scripts = match board.get("link").map(|link| link.as_array().ok_or("the field link is no list")) {
        Some(listed) => listed?.iter().map(|script| script.as_str().map(String::from)).collect(),
        None => Some(vec!["link.x".into(), "defmt.x".into()]),
    };
    let scripts = scripts.ok_or("the field link is no list of texts")?;
    // Only cortex-m-rt's script asks for a map, and another's own must not be hidden.
    if scripts.iter().any(|script| script == "link.x") {
        let map = format!(
            "MEMORY\n{{\n  FLASH : ORIGIN = {:#x}, LENGTH = {:#x}\n  RAM : ORIGIN = {:#x}, LENGTH = {:#x}\n}}\n",
            flash.0, flash.1, ram.0, ram.1
        );
        let sections = if Path::new("sections.x").exists() { fs::read_to_string("sections.x")? } else { String::new() };
        fs::write(out.join("memory.x"), map + &sections)?;
    }
    for script in scripts {
        println!("cargo::rustc-link-arg-bins=-T{script}");
    }
    println!("cargo::rustc-link-arg-bins=--nmagic");
    Ok(())
}
