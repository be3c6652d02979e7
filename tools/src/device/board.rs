//! `cargo xtask boards`: the folders of `firmware/boards/`, which model fits on them, and what their program takes.

use crate::size::code_size;
use crate::{ToolError, call, root};
use pith::Model;
use quantize::pack::ModelFile;
use quantize::report::{grouped, json, table};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Does this model fit?
    model: Option<PathBuf>,
    /// Build `serve` for every board and say how much flash it takes
    #[arg(long)]
    build: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A `board.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Board {
    /// The folder's name.
    #[serde(default)]
    pub name: String,
    /// Rust target.
    pub target: String,
    /// Core, as `quantize --target` names it.
    pub core: String,
    /// As probe-rs names it, if it does.
    pub chip: Option<String>,
    /// A word that says which chip it is.
    pub identity: Option<ChipWord>,
    /// The debug probe that it is flashed with.
    pub probe: String,
    /// Where its line is, for whoever plugs it in.
    pub line: String,
    /// Linker scripts, if not those of cortex-m-rt and defmt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Vec<String>>,
    /// `-machine` of QEMU, if it knows the board.
    pub machine: Option<String>,
    /// Ticks of a second on the board.
    pub tick_hz: u32,
    /// Instructions of a tick in the emulator, with an instruction taking a nanosecond.
    pub instructions_per_tick: Option<f64>,
    /// Of the program.
    pub flash: Region,
    /// Of models.
    pub slots: Region,
    /// All of it.
    pub ram: Region,
    /// Bytes for arenas and decoded weights.
    pub memory_bytes: usize,
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Its first address.
    pub origin: u32,
    /// Its length.
    pub bytes: usize,
    /// Bytes that are erased together, of flash that programs write.
    #[serde(default)]
    pub erase: usize,
    /// Where it begins for who flashes it, if it is mapped elsewhere.
    flashed_at: Option<u32>,
}

/// What a register or a word of a chip holds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChipWord {
    /// Where it is.
    pub address: u32,
    /// The bits that say it.
    pub mask: u32,
    /// What they are.
    pub value: u32,
}

impl Region {
    /// Where the region begins for who flashes it.
    pub fn flashed_at(&self) -> u32 {
        self.flashed_at.unwrap_or(self.origin)
    }
}

/// What is read of a board's `Cargo.toml`.
#[derive(Deserialize)]
struct Package {
    #[serde(default)]
    bin: Vec<Bin>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Bin {
    name: String,
    #[serde(default)]
    required_features: Vec<String>,
}

/// The feature of a board's package that its programs are built with.
fn feature(is_emulated: bool) -> &'static str {
    if is_emulated { "emulator" } else { "probe" }
}

/// Emulated boards are named with this before the board's name.
pub const EMULATED: &str = "qemu-";

impl Board {
    /// All boards, by name.
    pub fn all() -> Result<Vec<Board>, ToolError> {
        let folder = root().join("firmware/boards");
        let said = |e: std::io::Error| ToolError(format!("{}: {e}", folder.display()));
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(said)? {
            let entry = entry.map_err(said)?;
            if entry.path().join("board.toml").is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        names.iter().map(|name| Board::read(name)).collect()
    }

    /// The board of a name, which for an emulated one begins with [`EMULATED`]; whether it is to be emulated.
    pub fn find(name: &str) -> Result<(Board, bool), ToolError> {
        let (bare, is_emulated) = name.strip_prefix(EMULATED).map_or((name, false), |bare| (bare, true));
        let all = Board::all()?;
        let known = || {
            let emulated = all.iter().filter(|b| b.machine.is_some()).map(|b| format!("{EMULATED}{}", b.name));
            emulated.chain(all.iter().map(|b| b.name.clone())).collect::<Vec<_>>().join(", ")
        };
        let board = all.iter().find(|board| board.name == bare && (board.machine.is_some() || !is_emulated));
        let board = board.ok_or_else(|| ToolError(format!("no board '{name}'; there are {}", known())))?;
        Ok((board.clone(), is_emulated))
    }

    fn read(name: &str) -> Result<Board, ToolError> {
        let path = root().join("firmware/boards").join(name).join("board.toml");
        let said = |e: String| ToolError(format!("{}: {e}", path.display()));
        let text = std::fs::read_to_string(&path).map_err(|e| said(e.to_string()))?;
        let board: Board = toml::from_str(&text).map_err(|e| said(e.to_string()))?;
        Ok(Board { name: name.into(), ..board })
    }

    /// The longest model file.
    pub fn slot_bytes(&self) -> usize {
        pith_link::slots::slot_bytes(self.slots.bytes, self.slots.erase.max(1)).saturating_sub(pith_link::slots::HEAD)
    }

    /// Why a model does not fit, if it does not.
    pub fn too_small_for(&self, model: &Model<'_>, file_bytes: usize) -> Option<String> {
        let needed = pith_link::server::needed_bytes(model);
        if file_bytes > self.slot_bytes() {
            return Some(format!(
                "the file of {} bytes is {} longer than a slot",
                grouped(file_bytes as u64),
                grouped((file_bytes - self.slot_bytes()) as u64)
            ));
        }
        (needed > self.memory_bytes).then(|| {
            format!(
                "it needs {} bytes of RAM, {} more than there are",
                grouped(needed as u64),
                grouped((needed - self.memory_bytes) as u64)
            )
        })
    }

    /// Flash that a program takes, as it is for a board that is not emulated.
    pub fn program_bytes(&self, program: &str) -> Result<u64, ToolError> {
        Ok(code_size(&self.build(program, false)?)?.program)
    }

    /// The programs that its package names, apart from those for the other kind of board.
    pub fn programs(&self, is_emulated: bool) -> Result<Vec<String>, ToolError> {
        let path = root().join("firmware/boards").join(&self.name).join("Cargo.toml");
        let said = |e: String| ToolError(format!("{}: {e}", path.display()));
        let text = std::fs::read_to_string(&path).map_err(|e| said(e.to_string()))?;
        let package: Package = toml::from_str(&text).map_err(|e| said(e.to_string()))?;
        let feature = feature(is_emulated);
        let is_ours = |bin: &Bin| bin.required_features.iter().all(|wanted| wanted == feature);
        let names = package.bin.iter().filter(|bin| is_ours(bin)).map(|bin| &bin.name);
        Ok(names.filter_map(|name| Some(name.strip_prefix(&format!("{}-", self.name))?.into())).collect())
    }

    /// RAM that is left for the stack and what the line keeps.
    pub fn stack_bytes(&self) -> usize {
        self.ram.bytes.saturating_sub(self.memory_bytes)
    }

    /// Builds one of the programs for it; the path of the ELF file.
    pub fn build(&self, program: &str, is_emulated: bool) -> Result<PathBuf, ToolError> {
        let programs = self.programs(is_emulated)?;
        if !programs.iter().any(|known| known == program) {
            return Err(ToolError(format!("no program '{program}' for {}; it has {}", self.name, programs.join(", "))));
        }
        let target_dir = root().join("firmware/target/boards");
        let bin = format!("{}-{program}", self.name);
        let feature = feature(is_emulated);
        call(
            Command::new("cargo")
                .current_dir(root().join("firmware"))
                .args(["build", "--release", "--quiet", "--locked", "--package", &self.name, "--bin", &bin])
                .args(["--target", &self.target, "--no-default-features", "--features", feature])
                .env("CARGO_TARGET_DIR", &target_dir)
                .env("DEFMT_LOG", "info")
                .env_remove("PITH_BOARD")
                .env_remove("RUSTFLAGS"),
        )?;
        Ok(target_dir.join(&self.target).join("release").join(bin))
    }
}

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    board: Board,
    slot_bytes: usize,
    /// Code and constants of `serve` as it is flashed, if it was built.
    #[serde(skip_serializing_if = "Option::is_none")]
    program_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    too_small: Option<String>,
}

/// The verb.
pub fn run(args: &Args) -> Result<(), ToolError> {
    let file = args.model.as_deref().map(read_model).transpose()?;
    let model = file.as_ref().map(|file| Model::parse(file.as_bytes())).transpose();
    let model = model.map_err(|e| ToolError(e.to_string()))?.zip(file.as_ref());
    let row = |board: Board| {
        Ok(Row {
            slot_bytes: board.slot_bytes(),
            program_bytes: args.build.then(|| board.program_bytes("serve")).transpose()?,
            too_small: model.as_ref().and_then(|(model, file)| board.too_small_for(model, file.as_bytes().len())),
            board,
        })
    };
    let rows: Vec<Row> = Board::all()?.into_iter().map(row).collect::<Result<_, ToolError>>()?;
    if args.json {
        print!("{}", json(&rows));
        return Ok(());
    }
    let cells = |row: &Row| {
        let Board { name, chip, core, memory_bytes, machine, .. } = &row.board;
        let fits = row.too_small.clone().unwrap_or(if model.is_some() { "fits".into() } else { String::new() });
        let emulated = if machine.is_some() { format!("{EMULATED}{name}") } else { "-".into() };
        let bytes = |n: usize| grouped(n as u64);
        let program = row.program_bytes.map_or("-".into(), grouped);
        let (model, memory) = (bytes(row.slot_bytes), bytes(*memory_bytes));
        vec![name.clone(), chip.clone().unwrap_or("-".into()), core.clone(), program, model, memory, emulated, fits]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    print!(
        "{}",
        table(&["board", "chip", "core", "serve B", "model B, at most", "RAM for it B", "emulated", "model"], &rows)
    );
    Ok(())
}

/// A model file that is valid.
pub fn read_model(path: &Path) -> Result<ModelFile, ToolError> {
    let file = ModelFile::read(path).map_err(|e| ToolError(format!("{}: {e}", path.display())))?;
    Model::parse(file.as_bytes()).map_err(|e| ToolError(format!("{}: {e}", path.display())))?;
    Ok(file)
}
