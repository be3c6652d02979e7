//! `cargo xtask size`: what a model's program takes on a core. It was checked when it was built, so no checks are linked.

use crate::ToolError;
use crate::core::Core;
use crate::qemu::build_firmware;
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};
use pith::Model;
use quantize::pack::ModelFile;
use quantize::report::{grouped, table};
use std::path::{Path, PathBuf};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Packed model
    model: PathBuf,
    /// Cores [default: all]
    #[arg(long, value_delimiter = ',')]
    core: Vec<Core>,
}

/// Bytes of code and constants in a firmware.
#[derive(Clone, Copy, Debug)]
pub struct CodeSize {
    /// Functions and tables whose names begin with the runtime's; with link-time optimization small ones are inlined into their callers
    /// and counted there.
    pub runtime: u64,
    /// All of the program, the model apart.
    pub program: u64,
}

/// Of an ELF file.
pub fn code_size(elf: &Path) -> Result<CodeSize, ToolError> {
    let bytes = std::fs::read(elf).map_err(|e| ToolError(format!("{}: {e}", elf.display())))?;
    let object = object::File::parse(&*bytes).map_err(|e| ToolError(format!("{}: {e}", elf.display())))?;
    let symbols: Vec<(String, u64)> = object
        .symbols()
        .filter(|s| matches!(s.kind(), SymbolKind::Text | SymbolKind::Data))
        .map(|s| (format!("{:#}", rustc_demangle::demangle(s.name().unwrap_or(""))), s.size()))
        .filter(|(name, _)| name.trim_start_matches(['<', '&']).starts_with("pith::"))
        .collect();
    let section = |name: &str| object.section_by_name(name).map_or(0, |s| s.size());
    Ok(CodeSize { runtime: symbols.iter().map(|(_, size)| size).sum(), program: section(".text") + section(".rodata") })
}

/// The verb: a row per core.
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
        let size = code_size(&elf)?;
        rows.push(vec![
            core.name().into(),
            machine.target.into(),
            grouped(size.runtime),
            grouped(size.program),
            grouped(file.as_bytes().len() as u64),
            grouped(model.arena_bytes() as u64),
        ]);
    }
    print!("{}", table(&["core", "target", "runtime code B", "program B", "model B", "arena B"], &rows));
    Ok(())
}
