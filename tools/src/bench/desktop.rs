//! `cargo xtask bench desktop`: time at batch 1 on one thread, Pith and other engines in turns.
//!
//! Each round measures every engine once, in a burst of a few milliseconds, and begins with another one; figures are medians over the
//! rounds, ratios medians of the ratios within a round. An engine whose output differs from the float network's is marked and never best.

use super::peers::{self, ENGINES, Load, Server};
use super::picture::{Bar, Chart, Group, Panel};
use super::{Subject, chosen, default_folder, write};
use crate::networks::{BENCHED, shared};
use crate::{ToolError, root};
use ndarray::{ArrayD, IxDyn};
use pith::Model;
use quantize::build::{BuildOptions, Sqnr, build, output_slots};
use quantize::execute;
use quantize::graph::{Clamp, Graph, Op, eval};
use quantize::npy;
use quantize::pack::ModelFile;
use quantize::recipe::Recipe;
use quantize::report::{grouped, json, layers::Summary, table};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Networks by file name [default: all whose files are there, else digits]
    #[arg(long, value_delimiter = ',')]
    model: Vec<String>,
    /// Instruction sets that Pith is measured with, each by itself [default: what it chooses]
    #[arg(long, value_delimiter = ',', value_parser = ISAS)]
    isa: Vec<String>,
    /// Other engines, or none [default: all]
    #[arg(long, value_delimiter = ',', value_parser = engine_names())]
    peers: Vec<String>,
    /// Limit OpenVINO to an instruction set, in its words, and Pith to its like; the other peers know no limit
    #[arg(long, value_parser = LIMITS.map(|l| l.0))]
    limit: Option<String>,
    /// Rounds
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Length of a burst, in milliseconds
    #[arg(long, default_value_t = 4.0)]
    burst_ms: f64,
    /// Core that everything is pinned to [default: the last]
    #[arg(long)]
    cpu: Option<usize>,
    /// The core's peak in GMAC/s [default: from its clock and instruction set]
    #[arg(long)]
    peak: Option<f64>,
    /// Folder of bench-desktop.json and bench-desktop.svg
    #[arg(long, default_value_os_t = default_folder())]
    out: PathBuf,
    /// Print JSON in place of tables
    #[arg(long)]
    json: bool,
}

/// Values of `PITH_ISA`.
const ISAS: [&str; 9] = ["generic", "sse2", "avx2", "avxvnni", "avx512vnni", "amx", "neon", "dotprod", "i8mm"];

/// oneDNN's names, and the same for Pith.
const LIMITS: [(&str, &str); 6] = [
    ("sse41", "sse2"),
    ("avx2", "avx2"),
    ("avx2_vnni", "avxvnni"),
    ("avx512_core", "avx2"),
    ("avx512_core_vnni", "avx512vnni"),
    ("avx512_core_amx", "amx"),
];

fn engine_names() -> Vec<&'static str> {
    ENGINES.into_iter().chain(["none"]).collect()
}

/// 8-bit MACs per cycle of one core with two vector units (SSE2, AVX2, NEON: 16-bit products); AMX: one tile unit.
fn macs_per_cycle(isa: &str) -> Option<f64> {
    match isa {
        "generic" | "sse2" => Some(16.0),
        "avx2" | "neon" => Some(32.0),
        "avxvnni" | "dotprod" => Some(64.0),
        "avx512vnni" | "i8mm" => Some(128.0),
        "amx" => Some(1024.0),
        _ => None,
    }
}

/// What is measured: an engine of a process.
struct Contestant {
    name: String,
    engine: String,
    server: usize,
}

impl Contestant {
    fn is_pith(&self) -> bool {
        self.name.starts_with("Pith")
    }
}

#[derive(Serialize)]
struct Report {
    unit: &'static str,
    rounds: u32,
    cpu: Option<usize>,
    clock_ghz: f64,
    limit: Option<String>,
    /// Of a network with one element.
    call_overhead_us: Vec<(String, f64)>,
    networks: Vec<Row>,
}

/// A network.
#[derive(Serialize)]
struct Row {
    model: String,
    macs: u64,
    weight_bytes: u64,
    best_peer: Option<String>,
    engines: Vec<Measured>,
}

/// An engine's times.
#[derive(Serialize)]
struct Measured {
    engine: String,
    version: String,
    isa: String,
    us: f64,
    /// To the best peer, median of the rounds' ratios.
    ratio: Option<f64>,
    /// Against the float network's output for the same sample.
    sqnr_db: f64,
    agrees: bool,
    gmacs_per_s: f64,
    share_of_peak: Option<f64>,
    rounds_us: Vec<f64>,
}

/// The verb; false if Pith's output was wrong.
pub fn run(args: &Args) -> Result<bool, ToolError> {
    if cfg!(debug_assertions) {
        return in_release();
    }
    if args.peers.len() > 1 && args.peers.iter().any(|p| p == "none") {
        return Err(ToolError::new("--peers none stands alone"));
    }
    let models = chosen(&args.model, &BENCHED.map(|n| n.model));
    let cache = default_folder().join("cache");
    let prepared = models.iter().map(|m| prepare(m, &cache)).collect::<Result<Vec<_>, _>>()?;
    let overhead = overhead(&cache)?;
    let cpu = args.cpu.or_else(peers::default_cpu);
    let (mut servers, contestants) = start(args, cpu)?;
    let mut report = Report {
        unit: "microseconds",
        rounds: args.rounds,
        cpu,
        clock_ghz: clock_ghz(),
        limit: args.limit.clone(),
        call_overhead_us: Vec::new(),
        networks: Vec::new(),
    };
    for c in contestants.iter().filter(|c| c.is_pith()) {
        let server = &mut servers[c.server];
        server.load(&c.engine, &overhead.load())?.map_err(|why| ToolError(format!("{}: {why}", c.name)))?;
        let mut times = Vec::new();
        for _ in 0..args.rounds {
            times.push(server.time(&c.engine, &overhead.packed, 1000)? / 1e3);
        }
        report.call_overhead_us.push((c.name.clone(), median(&times)));
    }
    for network in &prepared {
        report.networks.push(measure(network, args, &contestants, &mut servers, report.clock_ghz)?);
    }
    print!("{}", if args.json { json(&report) } else { text(&report) });
    write(&args.out, "bench-desktop", &report, &picture(&report).svg())?;
    let wrong = report.networks.iter().flat_map(|n| &n.engines).filter(|e| e.engine.starts_with("Pith") && !e.agrees);
    Ok(wrong.count() == 0)
}

/// The same command, optimized.
fn in_release() -> Result<bool, ToolError> {
    eprintln!("times need a release build; going on with one");
    let mut again = Command::new("cargo");
    again.current_dir(root()).args(["run", "--release", "--quiet", "--package", "pith-tools", "--"]);
    again.args(std::env::args_os().skip(1));
    let status = again.status().map_err(|e| ToolError(format!("cannot run cargo: {e}")))?;
    match status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => Err(ToolError::new("the release build failed or ended early")),
    }
}

/// A network's files and what its output should be.
struct Prepared {
    name: String,
    onnx: PathBuf,
    packed: PathBuf,
    samples: PathBuf,
    tflite: Option<PathBuf>,
    expected: ArrayD<f32>,
    macs: u64,
    weight_bytes: u64,
}

impl Prepared {
    fn load(&self) -> Load<'_> {
        Load { model: &self.packed, samples: &self.samples, tflite: None }
    }

    fn load_peer(&self) -> Load<'_> {
        Load { model: &self.onnx, samples: &self.samples, tflite: self.tflite.as_deref() }
    }
}

fn prepare(name: &str, cache: &Path) -> Result<Prepared, ToolError> {
    eprintln!("{name}: quantizing");
    let subject = Subject::load(name)?;
    let packed = subject.quantize(8)?.packed.bytes;
    save(name, subject, &packed, cache)
}

/// Writes the packed model and the samples in the ONNX file's axes.
fn save(name: &str, subject: Subject, packed: &[u8], cache: &Path) -> Result<Prepared, ToolError> {
    let file = ModelFile::new(packed);
    let model = Model::parse(file.as_bytes()).map_err(|e| ToolError(e.to_string()))?;
    let slot = &execute::input_slots(&model)[0];
    let shape = [&[subject.samples.len()], &slot.onnx_shape()[1..]].concat();
    let values = subject.samples.iter().flat_map(|s| slot.to_onnx(&s[0]).into_iter().flat_map(f32::to_le_bytes));
    let samples = npy::encode("<f4", &shape, &values.collect::<Vec<u8>>());
    let keep = |extension: &str, bytes: &[u8]| {
        let path = cache.join(name).with_extension(extension);
        std::fs::create_dir_all(cache)
            .and_then(|()| std::fs::write(&path, bytes))
            .map_err(|e| ToolError(format!("{}: {e}", path.display())))?;
        Ok::<_, ToolError>(path)
    };
    let outputs = eval::run(&subject.graph, &subject.samples[0]).map_err(|e| ToolError(format!("{name}: {e}")))?;
    let summary = Summary::of_model(&model);
    Ok(Prepared {
        packed: keep("pith", packed)?,
        samples: keep("npy", &samples)?,
        tflite: shared(&format!("tflite/{name}_int8.tflite")),
        expected: output_slots(&subject.graph)[0].to_onnx(&outputs[0]),
        macs: summary.macs,
        weight_bytes: summary.coded_bytes,
        name: name.into(),
        onnx: subject.model,
    })
}

/// A network that does next to nothing: one element, bounded.
fn overhead(cache: &Path) -> Result<Prepared, ToolError> {
    let failed = |e: &dyn std::fmt::Display| ToolError(format!("the empty network: {e}"));
    let mut graph = Graph::default();
    let x = graph.add_input("x", &[1, 1]);
    let op = Op::Affine { scale: vec![1.0], bias: vec![0.0], clamp: Clamp::RELU };
    let y = graph.push("relu", op, &[x]).map_err(|e| failed(&e))?;
    graph.add_output("y", y);
    let samples: Vec<_> = (0..4).map(|i| vec![ArrayD::from_elem(IxDyn(&[1, 1]), i as f32)]).collect();
    let built = build(graph.clone(), &samples, &[false], &Recipe::default(), BuildOptions::default(), &|_, _| ());
    let packed = built.map_err(|e| failed(&e))?.packed.bytes;
    save("empty", Subject { model: PathBuf::new(), graph, samples, is_u8: vec![false] }, &packed, cache)
}

/// The processes: one for all peers, one for each of Pith's instruction sets.
fn start(args: &Args, cpu: Option<usize>) -> Result<(Vec<Server>, Vec<Contestant>), ToolError> {
    let (mut servers, mut contestants) = (Vec::new(), Vec::new());
    if args.peers != ["none"] {
        let mut program = peers::program()?;
        program.envs(args.limit.as_ref().map(|limit| ("PITH_PEER_ISA", limit)));
        servers.push(Server::start("peers", &mut program, cpu)?);
        let asked = |engine: &&str| args.peers.is_empty() || args.peers.iter().any(|p| p == engine);
        for engine in ENGINES.into_iter().filter(asked) {
            contestants.push(Contestant { name: engine.replace('_', " "), engine: engine.into(), server: 0 });
        }
    }
    let limited = LIMITS.into_iter().find(|l| Some(l.0) == args.limit.as_deref()).map(|l| l.1.to_string());
    let isas = match args.isa.as_slice() {
        [] => vec![limited],
        isas => isas.iter().cloned().map(Some).collect(),
    };
    for isa in isas {
        let this = std::env::current_exe().map_err(|e| ToolError(e.to_string()))?;
        let mut program = Command::new(this);
        program.args(["bench", "serve"]).envs(isa.as_ref().map(|isa| ("PITH_ISA", isa)));
        let suffix = isa.map_or(String::new(), |isa| format!(" {isa}"));
        servers.push(Server::start(&format!("pith{}", suffix.replace(' ', "-")), &mut program, cpu)?);
        for (engine, note) in [("int8", ""), ("float", " float io")] {
            let (name, server) = (format!("Pith{suffix}{note}"), servers.len() - 1);
            contestants.push(Contestant { name, engine: engine.into(), server });
        }
    }
    Ok((servers, contestants))
}

/// All rounds of a network.
fn measure(
    network: &Prepared,
    args: &Args,
    contestants: &[Contestant],
    servers: &mut [Server],
    clock_ghz: f64,
) -> Result<Row, ToolError> {
    eprintln!("{}: preparing the engines", network.name);
    let mut engines = Vec::new();
    let mut turns = Vec::new();
    for c in contestants {
        let (server, load) = match c.is_pith() {
            true => (&mut servers[c.server], network.load()),
            false => (&mut servers[c.server], network.load_peer()),
        };
        let loaded = match server.load(&c.engine, &load)? {
            Ok(loaded) => server.check(&c.engine, load.model)?.map(|output| (loaded, output)),
            Err(why) => Err(why),
        };
        let ((version, isa), output) = match loaded {
            Ok(loaded) => loaded,
            Err(why) if c.is_pith() => return Err(ToolError(format!("{}: {}: {why}", network.name, c.name))),
            Err(why) => {
                eprintln!("{}: no {}: {why}", network.name, c.name);
                continue;
            }
        };
        let (agrees, sqnr_db) = agreement(&output, &network.expected);
        let ns = server.time(&c.engine, load.model, 5)?.min(server.time(&c.engine, load.model, 5)?);
        turns.push((c, load.model, ((args.burst_ms * 1e6 / ns) as usize).clamp(1, 100_000)));
        engines.push(Measured {
            engine: c.name.clone(),
            version,
            isa,
            us: 0.0,
            ratio: None,
            sqnr_db,
            agrees,
            gmacs_per_s: 0.0,
            share_of_peak: None,
            rounds_us: Vec::new(),
        });
    }
    eprintln!("{}: {} rounds of {} engines", network.name, args.rounds, turns.len());
    for round in 0..args.rounds as usize {
        for i in 0..turns.len() {
            let at = (i + round) % turns.len();
            let (c, model, runs) = turns[at];
            engines[at].rounds_us.push(servers[c.server].time(&c.engine, model, runs)? / 1e3);
        }
    }
    let best = judge(&mut engines);
    for engine in &mut engines {
        engine.gmacs_per_s = network.macs as f64 / engine.us / 1e3;
        let peak = args.peak.or_else(|| macs_per_cycle(&engine.isa).map(|n| n * clock_ghz));
        engine.share_of_peak = peak.map(|peak| engine.gmacs_per_s / peak);
    }
    Ok(Row {
        model: network.name.clone(),
        macs: network.macs,
        weight_bytes: network.weight_bytes,
        best_peer: best,
        engines,
    })
}

/// Whether an output means the same as the float network's (same class, or nine tenths of its energy right), and its SQNR.
fn agreement(output: &[f64], expected: &ArrayD<f32>) -> (bool, f64) {
    if output.len() != expected.len() {
        return (false, f64::NEG_INFINITY);
    }
    let got: Vec<f32> = output.iter().map(|&v| v as f32).collect();
    let class = |values: &[f32]| (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]));
    let same_class = class(&got) == expected.as_slice().and_then(class);
    let got = ArrayD::from_shape_vec(expected.raw_dim(), got).unwrap_or_default();
    let db = Sqnr::of([(&got, expected)].into_iter()).db();
    (same_class || db >= 10.0, db)
}

/// Fills in medians and ratios to the best peer that agrees; returns its name.
fn judge(engines: &mut [Measured]) -> Option<String> {
    engines.iter_mut().for_each(|e| e.us = median(&e.rounds_us));
    let peers = engines.iter().filter(|e| e.agrees && !e.engine.starts_with("Pith"));
    let best = peers.min_by(|a, b| a.us.total_cmp(&b.us))?;
    let (name, rounds) = (best.engine.clone(), best.rounds_us.clone());
    for engine in engines {
        let ratios: Vec<f64> = engine.rounds_us.iter().zip(&rounds).map(|(a, b)| a / b).collect();
        engine.ratio = Some(median(&ratios));
    }
    Some(name)
}

/// The middle value, or the mean of the two; zero of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n => (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0,
    }
}

/// The clock under load, from a chain of multiplications: three cycles a link on today's cores.
fn clock_ghz() -> f64 {
    const LINKS: u64 = 200_000;
    let run = || {
        let start = Instant::now();
        let mut x = std::hint::black_box(3u64);
        for _ in 0..LINKS {
            x = x.wrapping_mul(x);
        }
        std::hint::black_box(x);
        3.0 * LINKS as f64 / start.elapsed().as_nanos() as f64
    };
    // Short and many: one of them is undisturbed.
    (0..100).map(|_| run()).fold(0.0, f64::max)
}

/// Three digits.
fn short(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn text(report: &Report) -> String {
    let mut names: Vec<&str> = Vec::new();
    for engine in report.networks.iter().flat_map(|n| &n.engines) {
        if !names.contains(&engine.engine.as_str()) {
            names.push(&engine.engine);
        }
    }
    let head = [&["network (MACs)"][..], &names, &["best peer"]].concat();
    let cell = |row: &Row, name: &&str| {
        row.engines.iter().find(|e| e.engine == **name).map_or("-".into(), |e| {
            let ratio = e.ratio.map_or(String::new(), |r| format!(" ({r:.2})"));
            format!("{}{ratio}{}", short(e.us), if e.agrees { "" } else { " !" })
        })
    };
    let line = |row: &Row| {
        let name = format!("{} ({:.1} M)", row.model, row.macs as f64 / 1e6);
        let cells = names.iter().map(|name| cell(row, name));
        [name].into_iter().chain(cells).chain([row.best_peer.clone().unwrap_or("-".into())]).collect()
    };
    let times = table(&head, &report.networks.iter().map(line).collect::<Vec<_>>());
    let limit = |(row, e): (&Row, &Measured)| {
        let share = e.share_of_peak.map_or("-".into(), |s| format!("{:.1} %", 100.0 * s));
        let rate = row.weight_bytes as f64 / e.us / 1e3;
        let macs = [grouped(row.macs), short(e.us), short(e.gmacs_per_s), share];
        [&[row.model.clone(), e.engine.clone(), e.isa.clone()][..], &macs, &[grouped(row.weight_bytes), short(rate)]]
            .concat()
    };
    let pith = report.networks.iter().flat_map(|row| row.engines.iter().map(move |e| (row, e)));
    let limits: Vec<Vec<String>> = pith.filter(|(_, e)| e.engine.starts_with("Pith")).map(limit).collect();
    let head = ["network", "engine", "isa", "MACs", "us", "GMAC/s", "of peak", "constants B", "GB/s"];
    let overhead = report.call_overhead_us.iter().map(|(name, us)| format!("{name} {us:.3} us"));
    format!(
        "Microseconds, batch 1, one thread, median of {} rounds in turns{}; in brackets the ratio to the best peer in the same round.\n\
         Pith and litert int8 take and give int8; all others take and give floats, and their quantization is in the time.\n\
         ! marks an output that differs from the float network's.\n\n{times}\n{}\nClock {:.2} GHz. Call overhead: {}\n",
        report.rounds,
        report.cpu.map_or(String::new(), |cpu| format!(" on core {cpu}")),
        table(&head, &limits),
        report.clock_ghz,
        overhead.collect::<Vec<_>>().join(", "),
    )
}

/// A panel per network, fastest engine first.
fn picture(report: &Report) -> Chart {
    let group = |e: &Measured| {
        let series = if e.engine.starts_with("Pith") { 0 } else { 1 + usize::from(!e.engine.contains("int8")) };
        let mark = if e.agrees { "" } else { " (wrong)" };
        Group {
            label: e.engine.clone(),
            bars: vec![Bar { series, value: e.us, text: format!("{}{mark}", short(e.us)) }],
        }
    };
    let panel = |row: &Row| {
        let mut engines: Vec<&Measured> = row.engines.iter().collect();
        engines.sort_by(|a, b| a.us.total_cmp(&b.us));
        Panel {
            title: format!("{} ({:.1} M MACs)", row.model, row.macs as f64 / 1e6),
            groups: engines.into_iter().map(group).collect(),
        }
    };
    let limit = report.limit.as_ref().map_or(String::new(), |l| format!(", limited to {l} where that can be"));
    Chart {
        title: "Time of one inference".into(),
        subtitle: format!(
            "microseconds, batch 1, one thread, median of {} rounds in turns{limit}, log scale; shorter is better",
            report.rounds
        ),
        series: vec![("Pith".into(), "#2563eb"), ("int8".into(), "#8b95a5"), ("float32".into(), "#cdd2da")],
        columns: 2,
        is_linear: false,
        panels: report.networks.iter().map(panel).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(name: &str, rounds: &[f64], agrees: bool) -> Measured {
        Measured {
            engine: name.into(),
            version: String::new(),
            isa: String::new(),
            us: 0.0,
            ratio: None,
            sqnr_db: 0.0,
            agrees,
            gmacs_per_s: 0.0,
            share_of_peak: None,
            rounds_us: rounds.to_vec(),
        }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut engines = [
            engine("wrong", &[1.0, 1.0, 1.0], false),
            engine("a", &[10.0, 20.0, 40.0], true),
            engine("b", &[30.0, 30.0, 30.0], true),
            engine("Pith", &[5.0, 16.0, 20.0], true),
        ];
        assert_eq!(judge(&mut engines), Some("a".into()));
        assert_eq!((engines[3].us, engines[3].ratio, engines[1].ratio), (16.0, Some(0.5), Some(1.0)));
        assert_eq!(judge(&mut engines[3..]), None);
    }

    #[test]
    fn medians() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0]), median(&[])), (2.0, 2.5, 0.0));
    }

    #[test]
    fn outputs_agree_by_class_or_by_value() {
        let expected = ArrayD::from_shape_vec(IxDyn(&[1, 3]), vec![0.1f32, 0.7, 0.2]).unwrap();
        assert!(agreement(&[0.3, 0.4, 0.3], &expected).0);
        assert!(!agreement(&[0.6, 0.4, 0.3], &expected).0);
        assert!(!agreement(&[0.7], &expected).0);
    }
}
