//! `cargo xtask flash`: a board's program and a model onto the board, through a debug probe; `serve`: the same, and then its log; `monitor`: the log
//! alone.
//!
//! The probe is driven by `probe-rs` (probe.rs), a program of its own. The model goes into the first slot, the head of the second one is
//! overwritten, so that the board starts with what was flashed, whatever it ran before. An emulated board is started with the same program and
//! the same slots.

use super::board::{Board, read_model};
use super::line::Emulator;
use crate::{ToolError, call};
use pith::Model;
use pith_link::slots::{HEAD, head, slot_bytes};
use quantize::report::grouped;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// The program that answers on the line.
const SERVE: &str = "serve";

/// How long a board may take to say in its log what it runs.
const BOOT: Duration = Duration::from_secs(10);

/// How often an emulated board's log is read.
const PAUSE: Duration = Duration::from_millis(50);

/// The board.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// Board (see `cargo xtask boards`); with qemu- before its name it is emulated
    #[arg(long)]
    pub board: String,
    /// One of several debug probes: VID:PID or VID:PID:serial
    #[arg(long)]
    pub probe: Option<String>,
    /// The program that drives the probe
    #[arg(long, default_value = "probe-rs")]
    pub probe_rs: PathBuf,
}

/// Arguments of `flash`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Packed model [default: the program alone; the board keeps its models]
    pub model: Option<PathBuf>,
    /// Where it goes
    #[command(flatten)]
    pub place: Place,
    /// Another program of the board, without a model of its own
    #[arg(long, default_value = SERVE, conflicts_with = "model")]
    pub program: String,
    /// Leave the program as it is
    #[arg(long, requires = "model")]
    pub model_only: bool,
}

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// Packed model [default: the program alone; the board keeps its models]
    model: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
    /// Of an emulated board: its line, a Unix socket to be made here, for `--port` of other verbs
    #[arg(long)]
    socket: Option<PathBuf>,
}

/// Arguments of `monitor`.
#[derive(Debug, clap::Args)]
pub struct MonitorArgs {
    #[command(flatten)]
    place: Place,
    /// The program that the board runs
    #[arg(long, default_value = SERVE)]
    program: String,
}

/// A debug probe at a board.
struct Probe<'b> {
    board: &'b Board,
    chip: &'b str,
    place: &'b Place,
}

impl<'b> Probe<'b> {
    /// That there is one, and that the chip behind it is the board's.
    fn at(board: &'b Board, place: &'b Place) -> Result<Probe<'b>, ToolError> {
        let chip = board.chip.as_deref();
        let chip =
            chip.ok_or_else(|| ToolError(format!("{} is not flashed by probe-rs: {}", board.name, board.probe)))?;
        if !crate::has(&place.probe_rs) {
            return Err(ToolError(format!(
                "no {}; `cargo install probe-rs-tools --locked` installs it (see probe.rs)",
                place.probe_rs.display()
            )));
        }
        let probe = Probe { board, chip, place };
        if let Some(identity) = board.identity {
            let read = probe.run("read", &["b32".into(), format!("{:#x}", identity.address), "1".into()])?;
            let word = read.split_whitespace().last().and_then(|word| u32::from_str_radix(word, 16).ok());
            let word = word.ok_or_else(|| ToolError(format!("probe-rs read '{}', which is no word", read.trim())))?;
            if word & identity.mask != identity.value {
                return Err(ToolError(format!(
                    "the chip at the probe is no {chip}: its identity word at {:#010x} is {word:#010x}, {:#x} was expected in the bits {:#x}; \
                     is another board plugged in?",
                    identity.address, identity.value, identity.mask
                )));
            }
        }
        Ok(probe)
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.place.probe_rs);
        command.arg(verb).args(["--chip", self.chip, "--non-interactive"]);
        command.args(self.place.probe.iter().flat_map(|probe| ["--probe", probe]));
        command
    }

    /// One command; what it prints.
    fn run(&self, verb: &str, args: &[String]) -> Result<String, ToolError> {
        let said = |error: ToolError| match error.0.contains("No connected probes were found") {
            true => ToolError(format!(
                "no debug probe is attached: plug in {}'s ({}); if it is, may this user open USB devices (see probe.rs, udev rules)?",
                self.board.name, self.board.probe
            )),
            false => error,
        };
        call(self.command(verb).args(args)).map_err(said)
    }

    /// Writes an ELF file, or bytes to an address.
    fn download(&self, path: &Path, address: Option<u32>) -> Result<(), ToolError> {
        let mut args = vec!["--disable-progressbars".into(), "--verify".into(), path.display().to_string()];
        if let Some(address) = address {
            args.extend(["--binary-format", "bin", "--base-address"].map(String::from));
            args.push(format!("{address:#x}"));
        }
        self.run("download", &args).map(|_| ())
    }

    /// The log, decoded, of the program in an ELF file that runs.
    fn attach(&self, elf: &Path) -> Command {
        let mut command = self.command("attach");
        command.arg(elf);
        command
    }

    /// Lines of the log until one that `is_last`, or until `BOOT` is over.
    fn boot_log(&self, elf: &Path, is_last: impl Fn(&str) -> bool) -> Result<Vec<String>, ToolError> {
        let said = |e: std::io::Error| ToolError(format!("cannot read the board's log: {e}"));
        let mut child = self.attach(elf).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(said)?;
        let (sender, lines) = mpsc::channel();
        let Some(output) = child.stdout.take() else { return Ok(Vec::new()) };
        std::thread::spawn(move || send_lines(output, &sender));
        let (mut log, started) = (Vec::new(), Instant::now());
        while let Ok(line) = lines.recv_timeout(BOOT.saturating_sub(started.elapsed())) {
            let is_done = is_last(&line);
            log.push(line);
            if is_done {
                break;
            }
        }
        // It runs until it is told to end.
        child.kill().and_then(|()| child.wait()).map_err(said)?;
        Ok(log)
    }
}

fn send_lines(output: impl Read, to: &mpsc::Sender<String>) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        if to.send(line).is_err() {
            return;
        }
    }
}

/// A model that fits on the board.
fn fitting(board: &Board, path: &Path) -> Result<Vec<u8>, ToolError> {
    let file = read_model(path)?;
    let model = Model::parse(file.as_bytes()).map_err(|e| ToolError(format!("{}: {e}", path.display())))?;
    match board.too_small_for(&model, file.as_bytes().len()) {
        Some(why) => Err(ToolError(format!("{} does not fit on {}: {why}", path.display(), board.name))),
        None => Ok(file.as_bytes().to_vec()),
    }
}

/// Writes program and model; the log that the board starts with.
fn flash(
    board: &Board,
    place: &Place,
    program: &str,
    model: Option<&[u8]>,
    with_program: bool,
) -> Result<Vec<String>, ToolError> {
    let probe = Probe::at(board, place)?;
    let elf = board.build(program, false)?;
    if with_program {
        eprintln!("{}: {program}", board.name);
        probe.download(&elf, None)?;
    }
    if let Some(model) = model {
        eprintln!("{}: the model of {} bytes", board.name, grouped(model.len() as u64));
        let folder = tempfile::tempdir().map_err(|e| ToolError(e.to_string()))?;
        let slot = slot_bytes(board.slots.bytes, board.slots.erase.max(1)) as u32;
        let first = [&head(0, model.len() as u32), model].concat();
        // Zeros are no head.
        for (name, bytes, offset) in [("first", first, 0), ("second", vec![0; HEAD], slot)] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).map_err(|e| ToolError(e.to_string()))?;
            probe.download(&path, Some(board.slots.flashed_at() + offset))?;
        }
    }
    probe.run("reset", &[])?;
    probe.boot_log(&elf, |line| is_first(line, board))
}

/// Whether a line is the first of a program's log: the board's name, and what it runs.
fn is_first(line: &str, board: &Board) -> bool {
    line.contains(&format!("{}: ", board.name))
}

/// `flash`.
pub fn run(args: &Args) -> Result<(), ToolError> {
    let (board, is_emulated) = Board::find(&args.place.board)?;
    let model = args.model.as_deref().map(|path| fitting(&board, path)).transpose()?;
    let log = match is_emulated {
        true => emulated_log(&board, &args.program, model.as_deref())?,
        false => flash(&board, &args.place, &args.program, model.as_deref(), !args.model_only)?,
    };
    log.iter().for_each(|line| println!("{line}"));
    let runs = |line: &String| match &model {
        Some(model) => line.contains(&format!("{}: model 0 of {} bytes", board.name, model.len())),
        None => is_first(line, &board),
    };
    match log.iter().any(runs) {
        true => Ok(()),
        false => Err(ToolError(format!(
            "{} was written, but its log does not say that it runs it; is it held in reset, or does it run another program?",
            board.name
        ))),
    }
}

/// What an emulated board logs when it starts.
fn emulated_log(board: &Board, program: &str, model: Option<&[u8]>) -> Result<Vec<String>, ToolError> {
    let elf = board.build(program, true)?;
    let (emulator, _line) = Emulator::start(board, &elf, model, false)?;
    let started = Instant::now();
    loop {
        let log = emulator.log();
        if started.elapsed() > BOOT || log.iter().any(|line| is_first(line, board)) {
            return Ok(log);
        }
        std::thread::sleep(PAUSE);
    }
}

/// `serve`, until it is interrupted.
pub fn run_serve(args: &ServeArgs) -> Result<(), ToolError> {
    let (board, is_emulated) = Board::find(&args.place.board)?;
    let model = args.model.as_deref().map(|path| fitting(&board, path)).transpose()?;
    if !is_emulated {
        if args.socket.is_some() {
            return Err(ToolError::new("--socket is for emulated boards; a board's line is its serial port"));
        }
        flash(&board, &args.place, SERVE, model.as_deref(), true)?;
        return monitor(&board, &args.place, SERVE);
    }
    let elf = board.build(SERVE, true)?;
    let socket = args.socket.clone().unwrap_or_else(|| PathBuf::from(format!("{}.line", board.name)));
    let mut emulator = Emulator::start_at(&board, &elf, model.as_deref(), &socket)?;
    println!(
        "{} answers at {}; e.g. cargo xtask verify --board {} --port {} MODEL.pith --data SET.npz",
        args.place.board,
        socket.display(),
        board.name,
        socket.display()
    );
    // The emulator hears an interrupt too; what they leave in the file system goes with the value.
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    ctrlc::set_handler(move || seen.store(true, Ordering::Relaxed)).map_err(|e| ToolError(e.to_string()))?;
    let mut shown = 0;
    while emulator.is_running() {
        let log = emulator.log();
        log.iter().skip(shown).for_each(|line| println!("{line}"));
        shown = log.len();
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
    match stop.load(Ordering::Relaxed) {
        true => Ok(()),
        false => Err(ToolError::new("the emulator ended")),
    }
}

/// `monitor`, until it is interrupted.
pub fn run_monitor(args: &MonitorArgs) -> Result<(), ToolError> {
    let (board, is_emulated) = Board::find(&args.place.board)?;
    match is_emulated {
        true => Err(ToolError(format!(
            "an emulated board logs where it was started: cargo xtask serve --board {}",
            args.place.board
        ))),
        false => monitor(&board, &args.place, &args.program),
    }
}

fn monitor(board: &Board, place: &Place, program: &str) -> Result<(), ToolError> {
    let probe = Probe::at(board, place)?;
    let elf = board.build(program, false)?;
    let status = probe.attach(&elf).status().map_err(|e| ToolError(format!("cannot run probe-rs: {e}")))?;
    match status.success() {
        true => Ok(()),
        false => Err(ToolError(format!("probe-rs ended ({status})"))),
    }
}
