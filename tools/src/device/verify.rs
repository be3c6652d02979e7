//! `cargo xtask verify`: a board's outputs against the host's, byte by byte. Exit code 1 if any differ.

use super::board::{Board, read_model};
use super::client::{Client, Identity, LinkError};
use super::line::{Emulator, Line, serial};
use crate::ToolError;
use crate::qemu::quantized_inputs;
use indicatif::ProgressBar;
use pith::Model;
use pith::format::crc32::crc32;
use quantize::data::Layout;
use quantize::execute::Runner;
use quantize::report::{grouped, json};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// The board at the other end, and the model on it.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// Packed model
    pub model: PathBuf,
    /// Board (see `cargo xtask boards`); with qemu- before its name it is emulated
    #[arg(long)]
    pub board: String,
    /// Serial port of a board that is not emulated
    #[arg(long)]
    pub port: Option<String>,
    /// Baud of that port
    #[arg(long, default_value_t = 115_200)]
    pub baud: u32,
    /// Load the model over the line, even if an emulator could start with it
    #[arg(long)]
    pub load: bool,
}

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Samples: .npy, or .npz with x
    #[arg(long)]
    data: PathBuf,
    /// Samples, from the start of the set [default: all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    samples: Option<u32>,
    /// How images lie in the set [default: by shape]
    #[arg(long)]
    layout: Option<Layout>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A conversation with a board that runs a model.
pub struct Session {
    /// The host's end.
    pub client: Client<Box<dyn Line>>,
    /// What the board said.
    pub identity: Identity,
    /// Seconds that loading took, if the model was loaded.
    pub load_seconds: Option<f64>,
    /// Ends with the session.
    pub emulator: Option<Emulator>,
}

impl Session {
    /// Finds or starts the board, and brings the model there if another one runs.
    pub fn open(target: &Target, file: &[u8], count: bool) -> Result<Session, ToolError> {
        let (board, is_emulated) = Board::find(&target.board)?;
        let model = Model::parse(file).map_err(|e| ToolError(format!("{}: {e}", target.model.display())))?;
        if let Some(why) = board.too_small_for(&model, file.len()) {
            return Err(ToolError(format!("{} does not fit on {}: {why}", target.model.display(), board.name)));
        }
        if is_emulated {
            let elf = board.build("serve", true)?;
            let (emulator, line) = Emulator::start(&board, &elf, (!target.load).then_some(file), count)?;
            return Session::over(Box::new(line), file, Some(emulator));
        }
        let port = target.port.as_deref();
        let port = port.ok_or_else(|| ToolError(format!("--port is missing: where is {} plugged in?", board.name)))?;
        let session = Session::over(serial(port, target.baud)?, file, None)?;
        match session.identity.board == board.name {
            true => Ok(session),
            false => Err(ToolError(format!("{port}: {} answers, not {}", session.identity.board, board.name))),
        }
    }

    /// Over a line, with the model loaded where another one runs.
    pub fn over(line: Box<dyn Line>, file: &[u8], emulator: Option<Emulator>) -> Result<Session, ToolError> {
        let mut client = Client::new(line);
        let log = |error: LinkError| {
            let log = emulator.as_ref().map(|e| e.log().join("; ")).unwrap_or_default();
            ToolError(if log.is_empty() { error.to_string() } else { format!("{error} (the board's log: {log})") })
        };
        let mut identity = client.identify().map_err(log)?;
        let checksum = crc32(file);
        let mut load_seconds = None;
        if identity.model.is_none_or(|running| running.crc32 != checksum) {
            let started = Instant::now();
            let bar = ProgressBar::new(file.len() as u64).with_message("bytes loaded");
            client.load(file, &|bytes| bar.set_position(bytes as u64)).map_err(log)?;
            bar.finish_and_clear();
            load_seconds = Some(started.elapsed().as_secs_f64());
            identity = client.identify().map_err(log)?;
        }
        let running = identity.model.map_or(0, |running| running.crc32);
        if running != checksum {
            return Err(log(LinkError::OtherModel(running, checksum)));
        }
        Ok(Session { client, identity, load_seconds, emulator })
    }
}

/// What a board made of inputs.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Inputs.
    pub samples: usize,
    /// Those whose outputs are the host's.
    pub equal: usize,
    /// The first that differs: sample, output, element, what the host and what the board gave.
    pub first_difference: Option<(usize, usize, usize, i8, i8)>,
    /// Questions that had to be sent again.
    pub repeats: u64,
    /// Stack in use at most since the start, in bytes: of all of the program, with what the line keeps.
    pub stack_bytes: u32,
    /// Of its arena.
    pub arena_bytes: usize,
    /// Seconds that loading took, if the model was loaded.
    pub load_seconds: Option<f64>,
    /// Seconds of all runs, with their inputs and outputs.
    pub seconds: f64,
}

/// Runs inputs (sample, input, element) on a board and here.
pub fn verify(session: &mut Session, file: &[u8], inputs: &[Vec<Vec<i8>>]) -> Result<Verdict, ToolError> {
    let model = Model::parse(file).map_err(|e| ToolError(e.to_string()))?;
    let lens: Vec<usize> = model.outputs().iter().map(|port| model.tensor(port.tensor).len as usize).collect();
    let mut host = Runner::new(&model);
    let mut verdict = Verdict {
        samples: inputs.len(),
        equal: 0,
        first_difference: None,
        repeats: 0,
        stack_bytes: 0,
        arena_bytes: model.arena_bytes(),
        load_seconds: session.load_seconds,
        seconds: 0.0,
    };
    let started = Instant::now();
    let bar = ProgressBar::new(inputs.len() as u64).with_message("inputs");
    for (sample, input) in inputs.iter().enumerate() {
        let (given, ran) = session.client.run(input, &lens).map_err(|e| ToolError(format!("sample {sample}: {e}")))?;
        let expected = host.run_raw(input);
        let difference = first_difference(&expected, &given);
        verdict.equal += usize::from(difference.is_none());
        let difference = difference.map(|(output, element, host, board)| (sample, output, element, host, board));
        verdict.first_difference = verdict.first_difference.or(difference);
        verdict.stack_bytes = verdict.stack_bytes.max(ran.stack_bytes);
        bar.inc(1);
    }
    bar.finish_and_clear();
    (verdict.seconds, verdict.repeats) = (started.elapsed().as_secs_f64(), session.client.repeats);
    Ok(verdict)
}

fn first_difference(host: &[Vec<i8>], board: &[Vec<i8>]) -> Option<(usize, usize, i8, i8)> {
    host.iter().zip(board).enumerate().find_map(|(output, (host, board))| {
        let element = host.iter().zip(board).position(|(h, b)| h != b)?;
        Some((output, element, host[element], board[element]))
    })
}

/// The verb; false if an output differs.
pub fn run(args: &Args) -> Result<bool, ToolError> {
    let file = read_model(&args.target.model)?;
    let model = Model::parse(file.as_bytes()).map_err(|e| ToolError(e.to_string()))?;
    let mut inputs = quantized_inputs(&model, &args.data, args.layout, false)?;
    inputs.truncate(args.samples.map_or(usize::MAX, |n| n as usize));
    let mut session = Session::open(&args.target, file.as_bytes(), false)?;
    let verdict = verify(&mut session, file.as_bytes(), &inputs)?;
    if args.json {
        print!("{}", json(&verdict));
        return Ok(verdict.equal == verdict.samples);
    }
    if let Some((sample, output, element, host, board)) = verdict.first_difference {
        println!("sample {sample}, output {output}, element {element}: {host} here, {board} on the board");
    }
    let loaded = verdict.load_seconds.map_or(String::new(), |s| format!(", model loaded in {s:.1} s"));
    println!(
        "{}: {} of {} inputs give the same bytes ({:.1} s, {} questions repeated{loaded}); {} B of arena, {} B of stack",
        session.identity.board,
        verdict.equal,
        verdict.samples,
        verdict.seconds,
        verdict.repeats,
        grouped(verdict.arena_bytes as u64),
        grouped(u64::from(verdict.stack_bytes)),
    );
    Ok(verdict.equal == verdict.samples)
}
