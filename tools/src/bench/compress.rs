//! `cargo xtask bench compress`: weights coded by Pith beside general coders, and what decoding takes.
//!
//! All weight tensors of a network, symmetric per output channel (`w = round(x / max|x| * limit)`, half to even), in four variants:
//!
//! | variant | limit | before rounding |
//! |---|---|---|
//! | int8 | 127 | |
//! | int4 | 7 | |
//! | filters | 127 | of every tensor the half of output channels with the smaller Euclidean norm is set to zero |
//! | weights | 127 | of every tensor the half of weights with the smaller magnitude is set to zero |
//!
//! Everything that Pith stores for a tensor counts. The coders get the integers of all tensors in one stream, in two orders, int4 also two a
//! byte, and the smallest counts; their figures stand in `tools/data/coders.toml`, or `--peers` measures them.

use super::picture::{Bar, Chart, Group, Panel};
use super::{chosen, default_folder, files, write};
use crate::core::Core;
use crate::qemu::{build_program, emulate};
use crate::{ToolError, call, has, root};
use pith::circuit::{Coded, Shape};
use pith::format::crc32::crc32;
use quantize::circuit::weights::{DEFAULT_LEVEL, encode};
use quantize::graph::{Op, simplify};
use quantize::onnx::import;
use quantize::report::{grouped, json, table};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Networks [default: all of the shared data, or digits]
    #[arg(long, value_delimiter = ',')]
    model: Vec<String>,
    /// Variants of the weights
    #[arg(long, value_delimiter = ',', default_values_t = VARIANTS.map(|v| v.name.to_string()))]
    variant: Vec<String>,
    /// Levels
    #[arg(long, value_delimiter = ',', default_values_t = [1, DEFAULT_LEVEL, 9], value_parser = clap::value_parser!(u8).range(0..=9))]
    level: Vec<u8>,
    /// Emulated cores that count instructions
    #[arg(long, value_delimiter = ',', default_value = "m4,m0")]
    core: Vec<Core>,
    /// Run the other coders instead of reading their figures
    #[arg(long)]
    peers: bool,
    /// Folder of bench-compress.json and bench-compress.svg
    #[arg(long, default_value_os_t = default_folder())]
    out: PathBuf,
    /// Print JSON in place of a table
    #[arg(long)]
    json: bool,
}

/// Integers made of a network's weights.
struct Variant {
    name: &'static str,
    bits: u8,
    prunes: Option<fn(&mut [f32], usize)>,
}

const VARIANTS: [Variant; 4] = [
    Variant { name: "int8", bits: 8, prunes: None },
    Variant { name: "int4", bits: 4, prunes: None },
    Variant { name: "filters", bits: 8, prunes: Some(prune_filters) },
    Variant { name: "weights", bits: 8, prunes: Some(prune_weights) },
];

/// A tensor's integers.
struct Tensor {
    shape: Shape,
    values: Vec<i8>,
}

#[derive(Serialize)]
struct Report {
    unit: &'static str,
    rows: Vec<Row>,
}

/// A network's weights in one variant.
#[derive(Serialize)]
struct Row {
    model: String,
    variant: &'static str,
    weights: usize,
    /// Bytes of every coder.
    peers: BTreeMap<String, u64>,
    levels: Vec<Level>,
}

/// What a level makes of them.
#[derive(Serialize)]
struct Level {
    level: u8,
    bytes: u64,
    encode_seconds: f64,
    decode_mb_per_second: f64,
    /// Largest memory of a decoder.
    state_bytes: usize,
    /// Bits a weight within rows and channels that are zero, where a tenth of the weights is such.
    zero_group_bits: Option<f64>,
    instructions_per_weight: BTreeMap<&'static str, f64>,
}

/// `tools/data/coders.toml`: model, variant, coder.
type Figures = BTreeMap<String, BTreeMap<String, BTreeMap<String, u64>>>;

fn known() -> Result<Figures, ToolError> {
    toml::from_str(include_str!("../../data/coders.toml"))
        .map_err(|e| ToolError(format!("tools/data/coders.toml: {e}")))
}

/// The coder that other people have for the weights of a model, and its bytes.
pub(super) fn best_peer(model: &str, variant: &str) -> Result<Option<(String, u64)>, ToolError> {
    let coders = known()?.remove(model).and_then(|mut variants| variants.remove(variant));
    Ok(coders.into_iter().flatten().min_by_key(|&(_, bytes)| bytes))
}

/// The verb; false if a core decoded other weights.
pub fn run(args: &Args) -> Result<bool, ToolError> {
    let known = known()?;
    let mut rows = Vec::new();
    for model in chosen(&args.model, &super::BENCHED.map(|n| n.model)) {
        for variant in VARIANTS.iter().filter(|v| args.variant.iter().any(|name| name == v.name)) {
            eprintln!("{model} {}", variant.name);
            let tensors = tensors(&model, variant)?;
            let peers = match args.peers {
                true => run_peers(&tensors, variant.bits)?,
                false => known.get(&model).and_then(|m| m.get(variant.name)).cloned().unwrap_or_default(),
            };
            let weights = tensors.iter().map(|t| t.values.len()).sum();
            let levels = args.level.iter().map(|&level| measure(&tensors, variant.bits, level, &args.core));
            let levels = levels.collect::<Result<_, _>>()?;
            rows.push(Row { model: model.clone(), variant: variant.name, weights, peers, levels });
        }
    }
    let report = Report { unit: "bytes", rows };
    write(&args.out, "bench-compress", &report, &chart(&report).svg())?;
    print!("{}", if args.json { json(&report) } else { text(&report) });
    Ok(true)
}

fn tensors(model: &str, variant: &Variant) -> Result<Vec<Tensor>, ToolError> {
    let (path, ..) = files(model)?;
    let graph = simplify(import(&path).map_err(|e| ToolError(format!("{model}: {e}")))?);
    let weights = graph.nodes.iter().filter_map(|node| match &node.op {
        Op::Conv2d { weight, .. } | Op::ConvTranspose2d { weight, .. } | Op::Linear { weight, .. } => Some(weight),
        _ => None,
    });
    Ok(weights
        .map(|weight| {
            let dims = weight.shape();
            let channels = dims.last().copied().unwrap_or(1);
            let positions = dims.iter().skip(1).product::<usize>() / channels;
            let shape = Shape { rows: dims[0], positions, channels };
            let mut values: Vec<f32> = weight.iter().copied().collect();
            if let Some(prune) = variant.prunes {
                prune(&mut values, shape.row());
            }
            Tensor { shape, values: quantize(&values, shape.row(), variant.bits) }
        })
        .collect())
}

/// Symmetric per row.
fn quantize(values: &[f32], row: usize, bits: u8) -> Vec<i8> {
    let limit = ((1i32 << (bits - 1)) - 1) as f64;
    let quantize_row = |row: &[f32]| -> Vec<i8> {
        let max = row.iter().fold(0f32, |max, w| max.max(w.abs())) as f64;
        let scale = if max > 0.0 { max / limit } else { 1.0 };
        row.iter().map(|&w| (w as f64 / scale).round_ties_even() as i8).collect()
    };
    values.chunks(row).flat_map(quantize_row).collect()
}

fn prune_filters(values: &mut [f32], row: usize) {
    let norm = |row: &[f32]| row.iter().map(|&w| (w as f64).powi(2)).sum::<f64>();
    let mut order: Vec<(f64, usize)> = values.chunks(row).map(norm).zip(0..).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    for &(_, i) in &order[..order.len() / 2] {
        values[i * row..][..row].fill(0.0);
    }
}

fn prune_weights(values: &mut [f32], _row: usize) {
    let mut magnitudes: Vec<f32> = values.iter().map(|w| w.abs()).collect();
    magnitudes.sort_by(f32::total_cmp);
    let threshold = magnitudes[magnitudes.len() / 2];
    values.iter_mut().filter(|w| w.abs() < threshold).for_each(|w| *w = 0.0);
}

fn measure(tensors: &[Tensor], bits: u8, level: u8, cores: &[Core]) -> Result<Level, ToolError> {
    let start = Instant::now();
    let constants: Vec<Vec<u8>> = tensors.iter().map(|t| encode(&t.values, t.shape, bits, level)).collect();
    let encode_seconds = start.elapsed().as_secs_f64();
    let mut state_bytes = 0;
    let mut seconds = f64::INFINITY;
    // The fastest of some runs: what the machine can do when nothing else wants it.
    for _ in 0..5 {
        let start = Instant::now();
        for (tensor, constant) in tensors.iter().zip(&constants) {
            state_bytes = state_bytes.max(decode(tensor, constant, bits)?);
        }
        seconds = start.elapsed().as_secs_f64().min(seconds);
    }
    let weights: usize = tensors.iter().map(|t| t.values.len()).sum();
    let mut instructions_per_weight = BTreeMap::new();
    for &core in cores.iter().filter(|core| has(core.machine(0, 0).emulator)) {
        let counts = decode_on_core(tensors, &constants, bits, core)?;
        instructions_per_weight.insert(core.name(), counts.iter().sum::<f64>() / weights as f64);
    }
    Ok(Level {
        level,
        bytes: constants.iter().map(|c| c.len() as u64).sum(),
        encode_seconds,
        decode_mb_per_second: weights as f64 / seconds / 1e6,
        state_bytes,
        zero_group_bits: zero_group_bits(tensors, &constants, bits, level),
        instructions_per_weight,
    })
}

/// Decodes and compares; bytes of state.
fn decode(tensor: &Tensor, constant: &[u8], bits: u8) -> Result<usize, ToolError> {
    let coded = Coded::new_checked(constant, bits, tensor.values.len()).map_err(ToolError::new)?;
    let mut state = vec![0; coded.state_words()];
    let mut values = vec![0; tensor.values.len()];
    let mut decoder = coded.decoder(&mut state).ok_or_else(|| ToolError::new("a decoder does not start"))?;
    values.chunks_mut(tensor.shape.row()).for_each(|row| decoder.row(row));
    match decoder.is_finished() && values == tensor.values {
        true => Ok(4 * coded.state_words()),
        false => Err(ToolError(format!("{:?}: other weights came back", tensor.shape))),
    }
}

/// Bits a weight that zero rows cost: what is saved by leaving them out.
fn zero_group_bits(tensors: &[Tensor], constants: &[Vec<u8>], bits: u8, level: u8) -> Option<f64> {
    let (mut zeros, mut cost) = (0, 0);
    for (tensor, constant) in tensors.iter().zip(constants) {
        let kept: Vec<&[i8]> = tensor.values.chunks(tensor.shape.row()).filter(|r| r.iter().any(|&w| w != 0)).collect();
        if kept.is_empty() || kept.len() == tensor.shape.rows {
            continue;
        }
        let shape = Shape { rows: kept.len(), ..tensor.shape };
        zeros += tensor.values.len() - shape.rows * shape.row();
        cost += 8 * constant.len() as i64 - 8 * encode(&kept.concat(), shape, bits, level).len() as i64;
    }
    let weights: usize = tensors.iter().map(|t| t.values.len()).sum();
    (10 * zeros > weights).then(|| cost as f64 / zeros as f64)
}

/// Instructions of every tensor on an emulated core, which must give the same weights.
fn decode_on_core(tensors: &[Tensor], constants: &[Vec<u8>], bits: u8, core: Core) -> Result<Vec<f64>, ToolError> {
    let scratch = tempfile::tempdir().map_err(|e| ToolError(e.to_string()))?;
    let mut bytes = Vec::new();
    for (tensor, constant) in tensors.iter().zip(constants) {
        let values: Vec<u8> = tensor.values.iter().map(|&w| w as u8).collect();
        let head = [bits as u32, values.len() as u32, constant.len() as u32, crc32(&values)];
        bytes.extend(head.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(constant);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    std::fs::write(scratch.path().join("coded.bin"), bytes).map_err(|e| ToolError(e.to_string()))?;
    let machine = core.machine(usize::MAX, usize::MAX);
    let elf = build_program("decode", &[], core, machine, scratch.path())?;
    let (ended_well, log) = emulate(&elf, machine, scratch.path(), true)?;
    let results = std::fs::read(scratch.path().join("decoded.bin")).unwrap_or_default();
    let words: Vec<u32> = results.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect();
    let (pairs, _) = words.as_chunks::<2>();
    if !ended_well || pairs.len() != tensors.len() || pairs.iter().any(|&[_, right]| right != 1) {
        return Err(ToolError(format!("{} decoded {:?}: {}", core.name(), pairs, log.join("; "))));
    }
    Ok(pairs.iter().map(|&[ticks, _]| ticks as f64 * machine.instructions_per_tick).collect())
}

/// Bytes that every coder makes of all tensors in one stream: filters as Pith has them, or channel by channel as ONNX has them.
fn run_peers(tensors: &[Tensor], bits: u8) -> Result<BTreeMap<String, u64>, ToolError> {
    let scratch = tempfile::tempdir().map_err(|e| ToolError(e.to_string()))?;
    let by_channel = |t: &Tensor| -> Vec<i8> {
        let (p, c) = (t.shape.positions, t.shape.channels);
        t.values.chunks(p * c).flat_map(|row| (0..p * c).map(|i| row[i % p * c + i / p])).collect()
    };
    let orders =
        [tensors.iter().flat_map(|t| t.values.clone()).collect(), tensors.iter().flat_map(by_channel).collect()];
    let mut python = Command::new(python()?);
    let shapes: Vec<String> = tensors.iter().map(|t| format!("{}x{}", t.shape.rows, t.shape.row())).collect();
    python.arg(root().join("tools/coders.py")).arg(bits.to_string()).arg(shapes.join(","));
    for (values, name) in orders.iter().zip(["position", "channel"]) {
        let values: &Vec<i8> = values;
        let path = scratch.path().join(name);
        std::fs::write(&path, values.iter().map(|&w| w as u8).collect::<Vec<u8>>())
            .map_err(|e| ToolError(e.to_string()))?;
        python.arg(path);
    }
    serde_json::from_str(&call(&mut python)?).map_err(|e| ToolError(format!("tools/coders.py: {e}")))
}

/// DeepCABAC.
const NNCODEC: &str = "nncodec==2.1.3";

/// A Python with the coders' packages, installed first if it is not there.
fn python() -> Result<PathBuf, ToolError> {
    let folder = root().join("target/coders");
    let python = super::peers::environment(&folder, Path::new("tools/coders-requirements.txt"))?;
    // Without what its package asks for, PyTorch among them; it is compiled, which needs a C++ compiler and minutes.
    let stamp = folder.join(NNCODEC);
    if !stamp.exists() {
        let pip = ["-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-deps", NNCODEC];
        match call(Command::new(&python).args(pip)) {
            Ok(_) => std::fs::write(&stamp, "").map_err(|e| ToolError(e.to_string()))?,
            Err(e) => eprintln!("DeepCABAC is left out: {e}"),
        }
    }
    Ok(python)
}

fn chart(report: &Report) -> Chart {
    let levels: Vec<u8> = report.rows.first().map_or(Vec::new(), |r| r.levels.iter().map(|l| l.level).collect());
    let bars = |row: &Row| -> Vec<Group> {
        let bits = |bytes: u64| 8.0 * bytes as f64 / row.weights as f64;
        let bar = |series, bytes| Bar { series, value: bits(bytes), text: format!("{:.3}", bits(bytes)) };
        let ours = row.levels.iter().map(|l| (format!("Pith -{}", l.level), bar(0, l.bytes)));
        let theirs = best(row).map(|(name, bytes)| (name.clone(), bar(1, *bytes)));
        ours.chain(theirs).map(|(label, bar)| Group { label, bars: vec![bar] }).collect()
    };
    Chart {
        title: "Weights, compressed without loss".into(),
        subtitle: format!(
            "bits a weight, everything counted; Pith at levels {levels:?} and the best of the other coders"
        ),
        series: vec![("Pith".into(), "#2563eb"), ("best of the others".into(), "#9ca3af")],
        columns: 2,
        is_linear: true,
        panels: report
            .rows
            .iter()
            .map(|r| Panel { title: format!("{} {}", r.model, r.variant), groups: bars(r) })
            .collect(),
    }
}

fn best(row: &Row) -> Option<(&String, &u64)> {
    row.peers.iter().min_by_key(|(_, bytes)| **bytes)
}

fn text(report: &Report) -> String {
    let mut lines = Vec::new();
    for row in &report.rows {
        let best = best(row);
        for level in &row.levels {
            let ratio = best.map(|(_, &b)| 100.0 * (level.bytes as f64 / b as f64 - 1.0));
            let core = |name| level.instructions_per_weight.get(name).map_or("-".into(), |n| format!("{n:.0}"));
            lines.push(vec![
                row.model.clone(),
                row.variant.into(),
                level.level.to_string(),
                grouped(level.bytes),
                format!("{:.3}", 8.0 * level.bytes as f64 / row.weights as f64),
                best.map_or("-".into(), |(name, &bytes)| format!("{} {name}", grouped(bytes))),
                ratio.map_or("-".into(), |r| format!("{r:+.2} %")),
                core("m4"),
                core("m0"),
                format!("{:.0}", level.decode_mb_per_second),
                format!("{:.2}", level.encode_seconds),
                grouped(level.state_bytes as u64),
                level.zero_group_bits.map_or("-".into(), |b| format!("{b:.3}")),
            ]);
        }
    }
    let head = [
        "model",
        "variant",
        "level",
        "bytes",
        "bits",
        "best other",
        "against it",
        "M4",
        "M0",
        "MB/s",
        "encode s",
        "state B",
        "zero rows",
    ];
    table(&head, &lines)
}
