//! `cargo xtask bench sparse`: block-sparse weights beside the same weights stored dense.
//!
//! A network is quantized, and of every convolution's and linear layer's weight matrix all but a share of its blocks, drawn at random, are set to
//! zero. Then the file is packed twice, with block-sparse weights and without: instructions on an emulated core, time on this machine in turns. The
//! outputs must be the same bytes. How well such a network classifies is no matter here.

use super::{Subject, chosen};
use crate::core::Core;
use crate::qemu::run_on_core;
use crate::{ToolError, has};
use pith::format::op::Op;
use pith::format::sparse::{DEPTH, rows_of};
use pith::format::tensor::Constant;
use pith::{Isa, Model, ops};
use quantize::execute::{Runner, quantize};
use quantize::lower::Program;
use quantize::pack::{ModelFile, PackOptions, Packed, pack};
use quantize::report::layers::Summary;
use quantize::report::{grouped, json, table};
use serde::Serialize;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Network: ic_resnet8, kws_ref, ad01, digits, ... [default: ic_resnet8, or digits without shared data]
    #[arg(long)]
    model: Option<String>,
    /// Shares of the blocks that are kept
    #[arg(long, value_delimiter = ',', default_value = "0.25")]
    density: Vec<f64>,
    /// Rows of a block by four
    #[arg(long, value_delimiter = ',', default_value = "1,2", value_parser = clap::value_parser!(u8).range(1..=2))]
    rows: Vec<u8>,
    /// Emulated core [default: m4, if there is an emulator]
    #[arg(long)]
    core: Option<Core>,
    /// Leave the emulated core out
    #[arg(long)]
    no_core: bool,
    /// Instruction sets of this machine [default: all]
    #[arg(long, value_delimiter = ',')]
    isa: Vec<String>,
    /// Turns of dense and sparse runs
    #[arg(long, default_value_t = 60)]
    turns: usize,
    /// Tables layer by layer, of the core
    #[arg(long)]
    layers: bool,
    /// Print JSON in place of tables
    #[arg(long)]
    json: bool,
}

/// One network, block shape and density on one machine.
#[derive(Serialize)]
struct Row {
    model: String,
    block: String,
    density: f64,
    on: String,
    unit: &'static str,
    dense: f64,
    sparse: f64,
    dense_file_bytes: usize,
    sparse_file_bytes: usize,
    /// Layers whose weights became block-sparse, of those that have blocks.
    sparse_layers: usize,
    all_layers: usize,
    layers: Vec<Layer>,
}

#[derive(Serialize)]
struct Layer {
    name: String,
    block_sparse: bool,
    dense: u64,
    sparse: u64,
}

/// The verb; false if outputs differ, which is said.
pub fn run(args: &Args) -> Result<bool, ToolError> {
    let asked: Vec<String> = args.model.iter().cloned().collect();
    let model = chosen(&asked, &["ic_resnet8"]).remove(0);
    let subject = Subject::load(&model)?;
    eprintln!("{model}: quantizing");
    let program = subject.quantize(8)?.packed.program;
    let (mut rows, mut same) = (Vec::new(), true);
    for &block_rows in &args.rows {
        for &density in &args.density {
            let mut program = program.clone();
            keep_blocks(&mut program, block_rows as usize, density);
            let pair = Pair { model: &model, rows: block_rows as usize, density, program, subject: &subject };
            let (found, is_same) = pair.measure(args)?;
            rows.extend(found);
            same &= is_same;
        }
    }
    print!("{}", if args.json { json(&rows) } else { text(&rows, args.layers) });
    Ok(same)
}

/// Operators whose weights have blocks: row-major, 8 bits.
fn has_blocks(program: &Program, op: &Op<'_>) -> bool {
    let fits = match op {
        Op::Conv(c) => ops::conv_fits(c),
        Op::Linear(_) => true,
        _ => false,
    };
    let constant = op.weights().map_or(Constant::default(), |id| program.constants[id as usize].record);
    fits && constant.kind == Constant::KIND_WEIGHTS && constant.bits == 8 && constant.bytes > 0
}

/// Sets all but a share of the blocks to zero, in the same places every time.
fn keep_blocks(program: &mut Program, rows: usize, density: f64) {
    let mut state = 1u64;
    let mut random = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    for i in 0..program.ops.len() {
        let op = program.ops[i].record;
        let (true, Some((n, k)), Some(id)) = (has_blocks(program, &op), ops::matrix_shape(&op), op.weights()) else {
            continue;
        };
        let per_row = k.div_ceil(DEPTH);
        let mut blocks: Vec<usize> = (0..n.div_ceil(rows) * per_row).collect();
        (1..blocks.len()).rev().for_each(|i| blocks.swap(i, random(i + 1)));
        let kept = (density * blocks.len() as f64).round() as usize;
        for &block in blocks.iter().skip(kept) {
            let (first, at) = (block / per_row * rows, block % per_row * DEPTH);
            for row in first..n.min(first + rows) {
                program.constants[id as usize].bytes[row * k + at..row * k + k.min(at + DEPTH)].fill(0);
            }
        }
    }
}

/// A network whose blocks are zeroed, to be packed both ways.
struct Pair<'a> {
    model: &'a str,
    rows: usize,
    density: f64,
    program: Program,
    subject: &'a Subject,
}

impl Pair<'_> {
    fn measure(&self, args: &Args) -> Result<(Vec<Row>, bool), ToolError> {
        let pack_for = |isa: Isa| -> Result<[Packed; 2], ToolError> {
            let packed = |sparse: bool| {
                pack(self.program.clone(), PackOptions { isa, sparse, ..PackOptions::default() })
                    .map_err(|e| ToolError(format!("{}: {e}", self.model)))
            };
            Ok([packed(false)?, packed(true)?])
        };
        let (mut rows, mut same) = (Vec::new(), true);
        let files = pack_for(Isa::Generic)?;
        let files = files.each_ref().map(|packed| ModelFile::new(&packed.bytes));
        let [Ok(dense), Ok(sparse)] = files.each_ref().map(|file| Model::parse(file.as_bytes())) else {
            return Err(ToolError(format!("{}: not a model", self.model)));
        };
        let input: Vec<Vec<i8>> =
            dense.inputs().iter().zip(&self.subject.samples[0]).map(|(port, x)| quantize(port, x)).collect();
        let expected = Runner::on(&dense, Isa::Generic).run_raw(&input);
        let mut isas: Vec<Isa> = Isa::available().collect();
        isas.retain(|isa| args.isa.is_empty() || args.isa.iter().any(|name| name == isa.name()));
        for isa in isas {
            let mut runners = [&dense, &sparse].map(|model| Runner::on(model, isa));
            same &= runners.iter_mut().all(|runner| runner.run_raw(&input) == expected);
            let [dense_us, sparse_us] = in_turns(&mut runners, args.turns);
            let lengths = files.each_ref().map(|file| file.as_bytes().len());
            rows.push(self.row(&sparse, isa.name(), "us", [dense_us, sparse_us], lengths, Vec::new()));
        }
        let core = args.core.or(has("qemu-system-arm").then_some(Core::M4)).filter(|_| !args.no_core);
        if let Some(core) = core {
            let files = pack_for(core.isa())?;
            let mut runs = Vec::new();
            for packed in &files {
                eprintln!("{}: {}x{DEPTH} at {} on the {}", self.model, self.rows, self.density, core.name());
                runs.push(run_on_core(&packed.bytes, &[input.clone(), input.clone()], core, true)?);
            }
            same &= runs.iter().all(|run| run.outputs.iter().all(|outputs| *outputs == expected));
            let file = ModelFile::new(&files[1].bytes);
            let model = Model::parse(file.as_bytes()).map_err(|e| ToolError(e.to_string()))?;
            let counts = [runs[0].instructions as f64, runs[1].instructions as f64];
            let names = Summary::of_model(&model).layers;
            let layers = names.iter().zip(runs[0].layers.iter().zip(&runs[1].layers)).map(|(l, (&dense, &sparse))| {
                Layer { name: l.name.clone(), block_sparse: l.sparse.is_some(), dense, sparse }
            });
            let lengths = files.each_ref().map(|packed| packed.bytes.len());
            rows.push(self.row(&model, core.name(), "instructions", counts, lengths, layers.collect()));
        }
        if !same {
            eprintln!("{}: outputs differ", self.model);
        }
        Ok((rows, same))
    }

    fn row(
        &self,
        sparse: &Model<'_>,
        on: &str,
        unit: &'static str,
        times: [f64; 2],
        lengths: [usize; 2],
        layers: Vec<Layer>,
    ) -> Row {
        let is_sparse = |op: &Op<'_>| op.weights().is_some_and(|id| rows_of(sparse.constant(id).layout).is_some());
        Row {
            model: self.model.into(),
            block: format!("{}x{DEPTH}", self.rows),
            density: self.density,
            on: on.into(),
            unit,
            dense: times[0],
            sparse: times[1],
            dense_file_bytes: lengths[0],
            sparse_file_bytes: lengths[1],
            sparse_layers: sparse.ops().filter(|(_, op)| is_sparse(op)).count(),
            all_layers: self.program.ops.iter().filter(|spec| has_blocks(&self.program, &spec.record)).count(),
            layers,
        }
    }
}

/// Microseconds of a run of each, the best of so many turns.
fn in_turns(runners: &mut [Runner<'_>; 2], turns: usize) -> [f64; 2] {
    let time = |runner: &mut Runner<'_>, runs: u32| {
        let mut elapsed = Duration::ZERO;
        runner.with_engine(|engine| {
            let start = Instant::now();
            (0..runs).for_each(|_| {
                engine.run();
                black_box(engine.output(0));
            });
            elapsed = start.elapsed();
        });
        1e6 * elapsed.as_secs_f64() / runs as f64
    };
    // Turns of about two milliseconds.
    let runs = (2000.0 / time(&mut runners[0], 3).max(1.0)).ceil() as u32;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..turns.max(1) {
        for (times, runner) in times.iter_mut().zip(runners.iter_mut()) {
            times.push(time(runner, runs));
        }
    }
    times.map(|times| times.into_iter().fold(f64::INFINITY, f64::min))
}

fn text(rows: &[Row], layers: bool) -> String {
    let head =
        ["model", "block", "density", "on", "unit", "dense", "sparse", "speed-up", "file B", "sparse B", "layers"];
    let number = |v: f64, unit: &str| if unit == "us" { format!("{v:.1}") } else { grouped(v as u64) };
    let line = |r: &Row| {
        vec![
            r.model.clone(),
            r.block.clone(),
            format!("{}", r.density),
            r.on.clone(),
            r.unit.into(),
            number(r.dense, r.unit),
            number(r.sparse, r.unit),
            format!("{:.2}", r.dense / r.sparse.max(1e-9)),
            grouped(r.dense_file_bytes as u64),
            grouped(r.sparse_file_bytes as u64),
            format!("{} of {}", r.sparse_layers, r.all_layers),
        ]
    };
    let mut text = table(&head, &rows.iter().map(line).collect::<Vec<_>>());
    for row in rows.iter().filter(|row| layers && !row.layers.is_empty()) {
        let line = |l: &Layer| {
            let speed = format!("{:.2}", l.dense as f64 / l.sparse.max(1) as f64);
            let form = if l.block_sparse { "blocks" } else { "dense" };
            vec![l.name.clone(), form.into(), grouped(l.dense), grouped(l.sparse), speed]
        };
        let head = ["layer", "weights", "dense", "sparse", "speed-up"];
        let lines: Vec<Vec<String>> = row.layers.iter().map(line).collect();
        text.push_str(&format!("\n{} {} at {} on {}\n", row.model, row.block, row.density, row.on));
        text.push_str(&table(&head, &lines));
    }
    text + "Instructions are executed ones under QEMU, not cycles; times are the best of turns, dense and sparse alternating.\n"
}
