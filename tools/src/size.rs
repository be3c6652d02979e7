//! `cargo xtask size`: what a model's program takes on a core.

use crate::ToolError;
use crate::core::Core;
use crate::qemu::build_firmware;
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};
use pith::Model;
use quantize::pack::ModelFile;
use quantize::report::{grouped, table};
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Packed model
    model: PathBuf,
    /// Cores [default: all]
    #[arg(long, value_delimiter = ',')]
    core: Vec<Core>,
}

/// Parts of the names of what [`Model::parse`] alone needs.
const CHECKS: [&str; 5] = ["pith::check::", "pith::uses::", "::new_checked", "::crc32", "::runs_in_place"];

/// The verb: a row per core. Code is that of functions and tables whose names begin with the runtime's; with link-time optimization small
/// ones are inlined into their callers and counted there.
pub fn run(args: &Args) -> Result<(), ToolError> {
    let shown = args.model.display();
    let file = ModelFile::read(&args.model).map_err(|e| ToolError(format!("{shown}: {e}")))?;
    let model = Model::parse(file.as_bytes()).map_err(|e| ToolError(format!("{shown}: {e}")))?;
    let input: usize = model.inputs().iter().map(|p| model.tensor(p.tensor).len as usize).sum();
    let cores = if args.core.is_empty() { Core::ALL.to_vec() } else { args.core.clone() };
    let mut rows = Vec::new();
    for core in cores {
        let scratch = tempfile::tempdir().map_err(|e| ToolError(e.to_string()))?;
        let (elf, machine) = build_firmware(file.as_bytes(), &vec![0; input], core, scratch.path())?;
        let bytes = std::fs::read(&elf).map_err(|e| ToolError(e.to_string()))?;
        let object = object::File::parse(&*bytes).map_err(|e| ToolError(e.to_string()))?;
        let symbols: Vec<(String, u64)> = object
            .symbols()
            .filter(|s| matches!(s.kind(), SymbolKind::Text | SymbolKind::Data))
            .map(|s| (format!("{:#}", rustc_demangle::demangle(s.name().unwrap_or(""))), s.size()))
            .filter(|(name, _)| name.trim_start_matches(['<', '&']).starts_with("pith::"))
            .collect();
        let runtime: u64 = symbols.iter().map(|(_, size)| size).sum();
        let is_check = |name: &String| CHECKS.iter().any(|part| name.contains(part));
        let checks: u64 = symbols.iter().filter(|(name, _)| is_check(name)).map(|(_, size)| size).sum();
        let section = |name: &str| object.section_by_name(name).map_or(0, |s| s.size());
        rows.push(vec![
            core.name().into(),
            machine.target.into(),
            grouped(runtime),
            grouped(checks),
            grouped(section(".text") + section(".rodata")),
            grouped(file.as_bytes().len() as u64),
            grouped(model.arena_bytes() as u64),
        ]);
    }
    print!(
        "{}",
        table(&["core", "target", "runtime code B", "of it checks B", "program B", "model B", "arena B"], &rows)
    );
    Ok(())
}
