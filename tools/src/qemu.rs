//! `cargo xtask qemu`: a model on an emulated core.
//!
//! The firmware is built with the model and the quantized inputs inside, run by QEMU, and leaves outputs and counts in files. Counts are
//! executed **instructions** (under `-icount shift=0`), not cycles; their resolution is one tick of SysTick, 31 to 63 instructions, and on RISC-V
//! one instruction.

use crate::core::{Core, Machine};
use crate::size::code_size;
use crate::{ToolError, absolute, call, root};
use pith::Model;
use quantize::data::{self, Layout};
use quantize::execute::{self, input_slots, output_slots, shape_of};
use quantize::npy;
use quantize::pack::ModelFile;
use quantize::report::layers::shortened;
use quantize::report::{grouped, json, table};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Packed model
    model: PathBuf,
    /// Samples: .npy, or .npz with x
    #[arg(long)]
    input: PathBuf,
    /// Samples, from the start of the set [default: all]
    #[arg(long)]
    samples: Option<usize>,
    /// Core
    #[arg(long, default_value = "m4")]
    core: Core,
    /// How images lie in the set [default: by shape]
    #[arg(long)]
    layout: Option<Layout>,
    /// Int8 in and out, in the model's own axes
    #[arg(long)]
    raw: bool,
    /// Where outputs go (.npy; one output)
    #[arg(long)]
    output: Option<PathBuf>,
    /// Do not count instructions: faster
    #[arg(long)]
    no_count: bool,
    /// Print JSON: instructions, layers, stack_bytes, arena_touched, ...
    #[arg(long)]
    json: bool,
}

/// What a run on a core gave.
#[derive(Clone, Debug)]
pub struct Run {
    /// Int8 outputs: sample, output, element.
    pub outputs: Vec<Vec<Vec<i8>>>,
    /// Instructions of one whole run; meaningless without counting.
    pub instructions: u64,
    /// Instructions of every operator; empty with a single sample.
    pub layers: Vec<u64>,
    /// Instructions of decoding weights once, before the first run.
    pub decoding: u64,
    /// Stack that a run needs, in bytes.
    pub stack_bytes: usize,
    /// The runtime's code and tables, see [`crate::size::CodeSize`].
    pub code_bytes: u64,
    /// One past the last arena byte that a run changed.
    pub arena_touched: usize,
    /// Decoded log.
    pub log: Vec<String>,
    /// The machine.
    pub machine: Machine,
}

/// Builds the firmware of a core with a model and inputs inside; returns the ELF file and its machine.
pub fn build_firmware(
    model: &[u8],
    inputs: &[u8],
    core: Core,
    scratch: &Path,
) -> Result<(PathBuf, Machine), ToolError> {
    let file = ModelFile::new(model);
    let parsed = file.finest().map_err(|e| ToolError(e.to_string()))?;
    let ram = parsed.arena_bytes().max(parsed.decode_scratch_bytes()) + parsed.decoded_bytes();
    let machine = core.machine(model.len() + inputs.len(), ram);
    let embedded = [("PITH_MODEL", "model.pith", model), ("PITH_INPUTS", "inputs.bin", inputs)];
    Ok((build_program("infer", &embedded, core, machine, scratch)?, machine))
}

/// Builds one of the firmware's programs with files that are named by environment variables, and copies its ELF file to `scratch`.
pub fn build_program(
    program: &str,
    files: &[(&str, &str, &[u8])],
    core: Core,
    machine: Machine,
    scratch: &Path,
) -> Result<PathBuf, ToolError> {
    // One folder per core, so that parallel builds of different cores do not replace each other's program.
    let target_dir = root().join("firmware/target").join(core.name());
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(root().join("firmware"))
        .args(["build", "--release", "--quiet", "--locked", "--bin", program, "--target", machine.target])
        .args(machine.feature.map(|feature| ["--features", feature]).into_iter().flatten())
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("PITH_BOARD", machine.board)
        .env_remove("RUSTFLAGS");
    for (variable, name, bytes) in files {
        let path = scratch.join(name);
        std::fs::write(&path, bytes).map_err(|e| ToolError(format!("{}: {e}", path.display())))?;
        cargo.env(variable, absolute(&path)?);
    }
    call(&mut cargo)?;
    let built = target_dir.join(machine.target).join("release").join(program);
    // The next build may replace it while it runs.
    let elf = scratch.join(program).with_extension("elf");
    std::fs::copy(&built, &elf).map_err(|e| ToolError(format!("{}: {e}", built.display())))?;
    Ok(elf)
}

/// Runs a program on its machine in a folder; whether it ended well, and its log with what the emulator said.
pub fn emulate(elf: &Path, machine: Machine, folder: &Path, count: bool) -> Result<(bool, Vec<String>), ToolError> {
    let mut qemu = Command::new(machine.emulator);
    qemu.args(["-machine", machine.machine, "-bios", "none", "-nographic", "-monitor", "none", "-serial", "null"])
        .args(["-semihosting-config", "enable=on,target=native", "-kernel"])
        .arg(elf)
        .current_dir(folder)
        .stdin(Stdio::null());
    if count {
        // Time that a program sleeps is passed over.
        qemu.args(["-icount", "shift=0,sleep=off"]);
    }
    let output = qemu
        .output()
        .map_err(|e| ToolError(format!("cannot run {}: {e}; `cargo xtask setup` installs it", machine.emulator)))?;
    let mut log = decode_log(elf, &output.stdout);
    log.extend(String::from_utf8_lossy(&output.stderr).lines().map(String::from));
    Ok((output.status.success(), log))
}

/// Runs a model, of several precisions the finest, on a core with int8 inputs (sample, input, element).
pub fn run_on_core(model: &[u8], inputs: &[Vec<Vec<i8>>], core: Core, count: bool) -> Result<Run, ToolError> {
    let scratch = tempfile::tempdir().map_err(|e| ToolError(e.to_string()))?;
    let bytes: Vec<u8> = inputs.iter().flatten().flatten().map(|&q| q as u8).collect();
    let (elf, machine) = build_firmware(model, &bytes, core, scratch.path())?;
    let (ended_well, log) = emulate(&elf, machine, scratch.path(), count)?;
    if !ended_well {
        return Err(ToolError(format!("{} on {}: {}", core.name(), machine.machine, log.join("; "))));
    }
    let read = |name: &str| std::fs::read(scratch.path().join(name)).map_err(|e| ToolError(format!("{name}: {e}")));
    let counts: Vec<u32> =
        read("counts.bin")?.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
    let [total, stack, touched, decoding, layers @ ..] = counts.as_slice() else {
        return Err(ToolError::new("the firmware left no counts"));
    };
    // A long run goes round the counter, its layers do not.
    let round = 1u64 << machine.counter_bits;
    let sum: u64 = layers.iter().map(|&t| t as u64).sum();
    let rounds = (sum.saturating_sub(*total as u64) + round / 2) / round;
    let instructions = |ticks: u64| (ticks as f64 * machine.instructions_per_tick) as u64;
    let file = ModelFile::new(model);
    let parsed = file.finest().map_err(|e| ToolError(e.to_string()))?;
    let lens: Vec<usize> = parsed.outputs().iter().map(|p| parsed.tensor(p.tensor).len as usize).collect();
    let raw = read("outputs.bin")?;
    let outputs: Vec<Vec<Vec<i8>>> = raw
        .chunks_exact(lens.iter().sum::<usize>().max(1))
        .map(|sample| {
            let mut rest = sample;
            let take = |&len: &usize| {
                let (part, tail) = rest.split_at(len);
                rest = tail;
                part.iter().map(|&b| b as i8).collect()
            };
            lens.iter().map(take).collect()
        })
        .collect();
    if outputs.len() != inputs.len() {
        return Err(ToolError(format!("{} samples came back of {}", outputs.len(), inputs.len())));
    }
    Ok(Run {
        outputs,
        instructions: instructions(*total as u64 + rounds * round),
        layers: layers.iter().map(|&t| instructions(t as u64)).collect(),
        decoding: if parsed.decoded_bytes() > 0 { instructions(*decoding as u64) } else { 0 },
        stack_bytes: *stack as usize,
        code_bytes: code_size(&elf)?.runtime,
        arena_touched: *touched as usize,
        log,
        machine,
    })
}

/// Lines of defmt frames; what cannot be decoded is said so, since it is only a log.
pub(crate) fn decode_log(elf: &Path, frames: &[u8]) -> Vec<String> {
    let Ok(Ok(Some(table))) = std::fs::read(elf).map(|elf| defmt_decoder::Table::parse(&elf)) else {
        return vec!["(no defmt table in the program)".into()];
    };
    let mut decoder = table.new_stream_decoder();
    decoder.received(frames);
    let mut lines = Vec::new();
    while let Ok(frame) = decoder.decode() {
        lines.push(frame.display(false).to_string());
    }
    lines
}

#[derive(Serialize)]
struct Report {
    core: &'static str,
    machine: &'static str,
    samples: usize,
    instructions: Option<u64>,
    /// Of weights that are decoded once.
    #[serde(skip_serializing_if = "Option::is_none")]
    decoding: Option<u64>,
    stack_bytes: usize,
    arena_bytes: usize,
    arena_touched: usize,
    layers: Vec<Layer>,
}

#[derive(Serialize)]
struct Layer {
    name: String,
    op: &'static str,
    macs: u64,
    instructions: Option<u64>,
}

/// The verb.
pub fn run(args: &Args) -> Result<(), ToolError> {
    let shown = args.model.display();
    let file = ModelFile::read(&args.model).map_err(|e| ToolError(format!("{shown}: {e}")))?;
    let model = file.finest().map_err(|e| ToolError(format!("{shown}: {e}")))?;
    let mut inputs = quantized_inputs(&model, &args.input, args.layout, args.raw)?;
    inputs.truncate(args.samples.unwrap_or(usize::MAX));
    let given = inputs.len();
    // Layers are counted in a run of their own.
    if given == 1 {
        inputs.push(inputs[0].clone());
    }
    let mut done = run_on_core(file.as_bytes(), &inputs, args.core, !args.no_count)?;
    done.outputs.truncate(given);
    if let Some(path) = &args.output {
        write_outputs(&model, &done, args.raw, path)?;
    }
    let counted = |n: u64| (!args.no_count).then_some(n);
    let layer = |(i, (head, op)): (usize, (pith::format::op::Head, pith::format::op::Op<'_>))| Layer {
        name: model.op_name(&head).into(),
        op: op.name(),
        macs: op.macs(),
        instructions: done.layers.get(i).copied().and_then(counted),
    };
    let report = Report {
        core: args.core.name(),
        machine: done.machine.machine,
        samples: given,
        instructions: counted(done.instructions),
        decoding: counted(done.decoding).filter(|&n| n > 0),
        stack_bytes: done.stack_bytes,
        arena_bytes: model.arena_bytes(),
        arena_touched: done.arena_touched,
        layers: model.ops().enumerate().map(layer).collect(),
    };
    print!("{}", if args.json { json(&report) } else { text(&report) });
    Ok(())
}

/// Inputs of a file as the model takes them: sample, input, element. `raw` ones are int8 already.
pub fn quantized_inputs(
    model: &Model<'_>,
    input: &Path,
    layout: Option<Layout>,
    raw: bool,
) -> Result<Vec<Vec<Vec<i8>>>, ToolError> {
    if raw {
        let file = input.display();
        let arrays = npy::read(input).map_err(|e| ToolError(format!("{file}: {e}")))?;
        let per_sample: usize = model.inputs().iter().map(|p| model.tensor(p.tensor).len as usize).sum();
        return match (model.inputs(), arrays.as_slice()) {
            ([_], [(_, array), ..]) if array.kind == "i1" && array.values.len() % per_sample == 0 => {
                let flat: Vec<i8> = array.values.iter().map(|&v| v as i8).collect();
                Ok(flat.chunks(per_sample).map(|sample| vec![sample.to_vec()]).collect())
            }
            _ => Err(ToolError(format!("{file}: --raw wants one int8 array of samples of {per_sample} elements"))),
        };
    }
    let classes = output_slots(model).first().map_or(0, |o| o.shape.iter().product());
    let set = data::load(input, &input_slots(model), layout, classes).map_err(|e| ToolError(e.to_string()))?;
    let quantize = |sample: &Vec<ndarray::ArrayD<f32>>| {
        model.inputs().iter().zip(sample).map(|(port, x)| execute::quantize(port, x)).collect()
    };
    Ok(set.samples.iter().map(quantize).collect())
}

fn write_outputs(model: &Model<'_>, run: &Run, raw: bool, path: &Path) -> Result<(), ToolError> {
    let slots = output_slots(model);
    let ([port], [slot]) = (model.outputs(), slots.as_slice()) else {
        return Err(ToolError(format!("the model has {} outputs; --output writes one", model.outputs().len())));
    };
    let n = run.outputs.len();
    let shape = shape_of(model, port);
    let samples = run.outputs.iter().map(|o| &o[0]);
    let bytes = match raw {
        true => {
            let data: Vec<u8> = samples.flatten().map(|&q| q as u8).collect();
            npy::encode("|i1", &[&[n], &shape[1..]].concat(), &data)
        }
        false => {
            let real = |q: &Vec<i8>| slot.to_onnx(&execute::dequantize(port, &shape, q));
            let data: Vec<u8> = samples.flat_map(|q| real(q).into_iter().flat_map(f32::to_le_bytes)).collect();
            npy::encode("<f4", &[&[n], &slot.onnx_shape()[1..]].concat(), &data)
        }
    };
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, bytes)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|e| ToolError(format!("{}: {e}", path.display())))
}

fn text(report: &Report) -> String {
    let number = |n: Option<u64>| n.map_or("-".into(), grouped);
    let rows: Vec<Vec<String>> = report
        .layers
        .iter()
        .map(|l| {
            let ratio = l
                .instructions
                .filter(|_| l.macs > 0)
                .map_or("-".into(), |n| format!("{:.2}", n as f64 / l.macs as f64));
            vec![shortened(&l.name, 44), l.op.into(), grouped(l.macs), number(l.instructions), ratio]
        })
        .collect();
    let macs: u64 = report.layers.iter().map(|l| l.macs).sum();
    let ratio =
        report.instructions.map_or(String::new(), |n| format!(", {:.2} per MAC", n as f64 / macs.max(1) as f64));
    let decoding = report
        .decoding
        .map_or(String::new(), |n| format!("decoding before the first run: {} instructions\n", grouped(n)));
    format!(
        "{}\n{decoding}{} on {}: {} instructions{ratio} (not cycles), {} B of stack, {} of {} B of arena touched, {} samples\n",
        table(&["layer", "op", "MACs", "instructions", "per MAC"], &rows),
        report.core,
        report.machine,
        number(report.instructions),
        grouped(report.stack_bytes as u64),
        grouped(report.arena_touched as u64),
        grouped(report.arena_bytes as u64),
        report.samples,
    )
}
