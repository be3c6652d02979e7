//! `cargo xtask bench mcu`: executed instructions on emulated cores, beside other people's kernels.
//!
//! A network is quantized once per width and laid out for each core; its outputs there must be the desktop's, byte by byte. The peers'
//! figures were measured on the same emulator and stand in `tools/data/mcu-peers.toml`. Instructions are not cycles.

use super::picture::{Bar, Chart, Group, Panel};
use super::{Subject, chosen, default_folder, write};
use crate::ToolError;
use crate::core::Core;
use crate::qemu::{Run, run_on_core};
use pith::Model;
use quantize::execute::{Runner, quantize};
use quantize::pack::{ModelFile, PackOptions, Packed, pack};
use quantize::report::layers::Summary;
use quantize::report::{grouped, json, shape, table};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Networks by the names of the peers' figures, their files, and what they are.
const NETWORKS: [(&str, &str, &str); 3] =
    [("ic", "ic_resnet8", "ResNet-8"), ("kws", "kws_ref", "DS-CNN"), ("ad", "ad01", "autoencoder")];

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Cores [default: all]
    #[arg(long, value_delimiter = ',')]
    core: Vec<Core>,
    /// Networks: ic, kws, ad, digits [default: the first three, or digits without shared data]
    #[arg(long, value_delimiter = ',')]
    model: Vec<String>,
    /// Bits of a weight, 2 to 8
    #[arg(long, value_delimiter = ',', default_value = "8", value_parser = clap::value_parser!(u8).range(2..=8))]
    bits: Vec<u8>,
    /// Tables layer by layer (also printed for a single network and core)
    #[arg(long)]
    layers: bool,
    /// Folder of bench-mcu.json and bench-mcu.svg
    #[arg(long, default_value_os_t = default_folder())]
    out: PathBuf,
    /// Print JSON in place of tables
    #[arg(long)]
    json: bool,
}

/// `tools/data/mcu-peers.toml`.
#[derive(Debug, Deserialize)]
struct Peers {
    totals: Vec<Total>,
    layers: BTreeMap<String, PeerLayers>,
}

#[derive(Debug, Deserialize)]
struct Total {
    peer: String,
    core: String,
    bits: u8,
    #[serde(flatten)]
    instructions: BTreeMap<String, u64>,
}

#[derive(Debug, Deserialize)]
struct PeerLayers {
    ops: Vec<String>,
    macs: Vec<u64>,
    counts: Vec<Counts>,
}

/// Zero where nothing was measured.
#[derive(Debug, Deserialize)]
struct Counts {
    peer: String,
    core: String,
    bits: u8,
    instructions: Vec<u64>,
}

impl Peers {
    fn read() -> Result<Peers, ToolError> {
        toml::from_str(include_str!("../../data/mcu-peers.toml")).map_err(|e| ToolError(format!("mcu-peers.toml: {e}")))
    }

    fn totals(&self, model: &str, core: Core, bits: u8) -> Vec<Count> {
        let here = self.totals.iter().filter(|t| t.core == core.name() && t.bits == bits);
        let count = |t: &Total| Some(Count { peer: t.peer.clone(), instructions: *t.instructions.get(model)? });
        here.filter_map(count).collect()
    }

    /// What the peers take for one of their layers.
    fn layer(&self, model: &str, core: Core, bits: u8, index: usize) -> Vec<Count> {
        let counts = self.layers.get(model).map_or(&[][..], |l| &l.counts);
        let here = counts.iter().filter(|c| c.core == core.name() && c.bits == bits);
        here.map(|c| Count { peer: c.peer.clone(), instructions: c.instructions[index] })
            .filter(|c| c.instructions > 0)
            .collect()
    }
}

/// The peer's layer of each of ours, `(operator, MACs)`. In order among those of an operator, if that gives pairs of nearly the same MACs
/// (shrinking removes some); else by equal MACs. What was fused into another layer has none.
fn matched(ours: &[(&str, u64)], theirs: &[(&str, u64)]) -> Vec<Option<usize>> {
    let of =
        |op: &str, layers: &[(&str, u64)]| -> Vec<usize> { (0..layers.len()).filter(|&i| layers[i].0 == op).collect() };
    let is_near = |a: u64, b: u64| 4 * a.abs_diff(b) <= b;
    let mut found = vec![None; ours.len()];
    let mut taken = vec![false; theirs.len()];
    for (i, &(op, macs)) in ours.iter().enumerate() {
        let (mine, candidates) = (of(op, ours), of(op, theirs));
        let mut pairs = mine.iter().zip(&candidates);
        let in_order = mine.len() == candidates.len() && pairs.all(|(&a, &b)| is_near(ours[a].1, theirs[b].1));
        found[i] = match in_order {
            true => mine.iter().position(|&m| m == i).map(|at| candidates[at]),
            false => candidates.into_iter().find(|&t| !taken[t] && theirs[t].1 == macs),
        };
        found[i].iter().for_each(|&t| taken[t] = true);
    }
    found
}

/// A peer's figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Count {
    peer: String,
    instructions: u64,
}

fn best(counts: &[Count]) -> Option<&Count> {
    counts.iter().min_by_key(|c| c.instructions)
}

#[derive(Serialize)]
struct Report {
    unit: &'static str,
    rows: Vec<Row>,
}

/// A network on a core.
#[derive(Serialize)]
struct Row {
    core: &'static str,
    machine: &'static str,
    model: String,
    bits: u8,
    macs: u64,
    instructions: u64,
    file_bytes: usize,
    arena_bytes: usize,
    stack_bytes: usize,
    code_bytes: u64,
    peers: Vec<Count>,
    layers: Vec<Layer>,
}

#[derive(Serialize)]
struct Layer {
    name: String,
    op: String,
    out_shape: Vec<usize>,
    macs: u64,
    instructions: u64,
    peers: Vec<Count>,
}

/// The verb; false if a core could not be measured or gave other outputs, which is said.
pub fn run(args: &Args) -> Result<bool, ToolError> {
    let long = |name: &str| NETWORKS.iter().find(|n| n.0 == name).map_or(name, |n| n.1).to_string();
    let asked: Vec<String> = args.model.iter().map(|name| long(name)).collect();
    let models = chosen(&asked, &NETWORKS.map(|n| n.1));
    let cores = if args.core.is_empty() { Core::ALL.to_vec() } else { args.core.clone() };
    let peers = Peers::read()?;
    let (mut rows, mut failed) = (Vec::new(), false);
    for model in &models {
        let subject = Subject::load(model)?;
        for &bits in &args.bits {
            eprintln!("{model}: quantizing to {bits} bits");
            let packed = subject.quantize(bits)?.packed;
            for row in on_cores(model, bits, &packed, &subject, &cores, &peers)? {
                match row {
                    Ok(row) => rows.push(row),
                    Err(why) => {
                        eprintln!("{why}");
                        failed = true;
                    }
                }
            }
        }
    }
    rows.sort_by_key(|row| cores.iter().position(|c| c.name() == row.core));
    let report = Report { unit: "executed instructions under QEMU, not cycles", rows };
    let layers = args.layers || (models.len() == 1 && cores.len() == 1);
    print!("{}", if args.json { json(&report) } else { text(&report, layers) });
    write(&args.out, "bench-mcu", &report, &picture(&report).svg())?;
    Ok(!failed)
}

/// Two cores at a time; building the firmware is most of the work.
fn on_cores(
    model: &str,
    bits: u8,
    packed: &Packed,
    subject: &Subject,
    cores: &[Core],
    peers: &Peers,
) -> Result<Vec<Result<Row, ToolError>>, ToolError> {
    let file = ModelFile::new(&packed.bytes);
    let portable = Model::parse(file.as_bytes()).map_err(|e| ToolError(e.to_string()))?;
    let ports = portable.inputs().iter().zip(&subject.samples[0]);
    let input: Vec<Vec<i8>> = ports.map(|(port, x)| quantize(port, x)).collect();
    let expected = Runner::new(&portable).run_raw(&input);
    let name = NETWORKS.iter().find(|n| n.1 == model).map_or(model, |n| n.0);
    let on_core = |core: Core| {
        let at = format!("{name}: {bits} bits on the {}", core.name());
        eprintln!("{at}");
        let failed = |e: &dyn std::fmt::Display| ToolError(format!("{at}: {e}"));
        let options = PackOptions { isa: core.isa(), ..PackOptions::default() };
        let laid_out = pack(packed.program.clone(), options).map_err(|e| failed(&e))?;
        // Layers are counted in a run of their own.
        let run = run_on_core(&laid_out.bytes, &[input.clone(), input.clone()], core, true).map_err(|e| failed(&e))?;
        if run.outputs.iter().any(|o| *o != expected) {
            return Err(failed(&"not the desktop's outputs"));
        }
        row(name, bits, &laid_out.bytes, core, &run, peers)
    };
    let mut rows = Vec::new();
    for pair in cores.chunks(2) {
        let done: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = pair.iter().map(|&core| scope.spawn(move || on_core(core))).collect();
            running.into_iter().map(|r| r.join().unwrap_or_else(|_| Err(ToolError::new("a run panicked")))).collect()
        });
        rows.extend(done);
    }
    Ok(rows)
}

fn row(name: &str, bits: u8, bytes: &[u8], core: Core, run: &Run, peers: &Peers) -> Result<Row, ToolError> {
    let file = ModelFile::new(bytes);
    let model = Model::parse(file.as_bytes()).map_err(|e| ToolError(e.to_string()))?;
    let summary = Summary::of_model(&model);
    let ours: Vec<(&str, u64)> = summary.layers.iter().map(|l| (l.op.as_str(), l.macs)).collect();
    let theirs: Vec<(&str, u64)> = peers
        .layers
        .get(name)
        .map_or(Vec::new(), |l| l.ops.iter().map(String::as_str).zip(l.macs.iter().copied()).collect());
    let paired = summary.layers.iter().zip(matched(&ours, &theirs)).zip(&run.layers);
    let layers = paired.map(|((l, peer), &instructions)| Layer {
        name: l.name.clone(),
        op: l.op.clone(),
        out_shape: l.out_shape.clone(),
        macs: l.macs,
        instructions,
        peers: peer.map_or(Vec::new(), |i| peers.layer(name, core, bits, i)),
    });
    Ok(Row {
        core: core.name(),
        machine: run.machine.machine,
        model: name.into(),
        bits,
        macs: summary.macs,
        instructions: run.instructions,
        file_bytes: bytes.len(),
        arena_bytes: model.arena_bytes(),
        stack_bytes: run.stack_bytes,
        code_bytes: run.code_bytes,
        peers: peers.totals(name, core, bits),
        layers: layers.collect(),
    })
}

/// `n / macs`, or a dash.
fn per_mac(n: u64, macs: u64) -> String {
    if macs == 0 { "-".into() } else { format!("{:.3}", n as f64 / macs as f64) }
}

fn ratio(ours: u64, theirs: Option<u64>) -> String {
    theirs.filter(|&n| n > 0).map_or("-".into(), |n| format!("{:.2}", ours as f64 / n as f64))
}

fn text(report: &Report, layers: bool) -> String {
    let per_core = report.rows.chunk_by(|a, b| a.core == b.core).map(|rows| {
        let totals = format!("{} ({})\n{}\n", rows[0].core, rows[0].machine, totals(rows));
        let detail = |r: &Row| format!("{} at {} bits on the {}\n{}\n", r.model, r.bits, r.core, layer_table(r));
        totals + &rows.iter().filter(|_| layers).map(detail).collect::<String>()
    });
    per_core.collect::<String>() + "Executed instructions under QEMU, not cycles. Ratios below 1: Pith needs fewer.\n"
}

/// The peers that have a figure, in order.
fn names<'a>(counts: impl Iterator<Item = &'a Count>) -> Vec<&'a str> {
    let mut names = Vec::new();
    counts.for_each(|c| {
        if !names.contains(&c.peer.as_str()) {
            names.push(&c.peer);
        }
    });
    names
}

/// A cell for each of `names`.
fn cells(names: &[&str], counts: &[Count]) -> Vec<String> {
    let find = |name: &&str| counts.iter().find(|c| c.peer == **name);
    names.iter().map(|name| find(name).map_or("-".into(), |c| grouped(c.instructions))).collect()
}

fn totals(rows: &[Row]) -> String {
    let peers = names(rows.iter().flat_map(|r| &r.peers));
    let head = [&["model", "bits", "MACs", "Pith", "per MAC"][..], &peers, &["ratio to best", "to 8 bits"]].concat();
    let head = [&head[..], &["arena B", "stack B", "code B", "file B"]].concat();
    let line = |r: &Row| {
        let eight = rows.iter().find(|e| e.model == r.model && e.bits == 8).map(|e| e.instructions);
        let ours = [r.model.clone(), r.bits.to_string(), grouped(r.macs), grouped(r.instructions)];
        let best = best(&r.peers).map(|c| c.instructions);
        let ratios = [ratio(r.instructions, best), ratio(r.instructions, eight)];
        let sizes = [r.arena_bytes as u64, r.stack_bytes as u64, r.code_bytes, r.file_bytes as u64].map(grouped);
        [&ours[..], &[per_mac(r.instructions, r.macs)], &cells(&peers, &r.peers), &ratios, &sizes].concat()
    };
    table(&head, &rows.iter().map(line).collect::<Vec<_>>())
}

fn layer_table(row: &Row) -> String {
    let peers = names(row.layers.iter().flat_map(|l| &l.peers));
    let head = [&["layer", "op", "output", "MACs", "Pith", "per MAC"][..], &peers, &["per MAC", "ratio"]].concat();
    let line = |l: &Layer| {
        let best = best(&l.peers).map(|c| c.instructions);
        let ours = [last(&l.name), l.op.clone(), shape(&l.out_shape), grouped(l.macs), grouped(l.instructions)];
        let ratios = [best.map_or("-".into(), |n| per_mac(n, l.macs)), ratio(l.instructions, best)];
        [&ours[..], &[per_mac(l.instructions, l.macs)], &cells(&peers, &l.peers), &ratios].concat()
    };
    table(&head, &row.layers.iter().map(line).collect::<Vec<_>>())
}

/// The last part of a name that was made of several, at most 32 characters.
fn last(name: &str) -> String {
    let part = name.rsplit(';').next().unwrap_or(name);
    part.chars().skip(part.chars().count().saturating_sub(32)).collect()
}

/// A core's name as people write it.
fn label(core: &str) -> String {
    if core == Core::RiscV.name() { "RISC-V".into() } else { core.to_uppercase() }
}

/// A panel per network: instructions per MAC, ours above the best peer's.
fn picture(report: &Report) -> Chart {
    let bar = |series, instructions: u64, r: &Row| {
        let value = instructions as f64 / r.macs.max(1) as f64;
        Bar { series, value, text: format!("{value:.2}") }
    };
    let group = |r: &Row| {
        let width = if r.bits == 8 { String::new() } else { format!(" {}-bit", r.bits) };
        let peer = best(&r.peers).map(|c| bar(1, c.instructions, r));
        let bars = [Some(bar(0, r.instructions, r)), peer].into_iter().flatten().collect();
        Group { label: format!("{}{width}", label(r.core)), bars }
    };
    let models = models(&report.rows);
    let panel = |model: &str| Panel {
        title: NETWORKS.iter().find(|n| n.0 == model).map_or(model.to_string(), |n| format!("{} ({})", n.0, n.2)),
        groups: report.rows.iter().filter(|r| r.model == model).map(group).collect(),
    };
    Chart {
        title: "Instructions per multiply-accumulate on emulated cores".into(),
        subtitle: "whole int8 networks of MLPerf Tiny, executed instructions under QEMU, batch 1, log scale; shorter is better"
            .into(),
        series: vec![("Pith".into(), "#2563eb"), ("best peer (CMSIS-NN)".into(), "#b6bcc6")],
        columns: 3,
        is_linear: false,
        panels: models.into_iter().map(panel).collect(),
    }
}

fn models(rows: &[Row]) -> Vec<&str> {
    let mut models: Vec<&str> = Vec::new();
    for row in rows.iter().filter(|r| r.macs > 0) {
        if !models.contains(&row.model.as_str()) {
            models.push(&row.model);
        }
    }
    models
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_layers_add_up() {
        let peers = Peers::read().unwrap();
        for (model, layers) in &peers.layers {
            assert_eq!(layers.ops.len(), layers.macs.len(), "{model}");
            assert!(layers.counts.iter().all(|c| c.instructions.len() == layers.ops.len()), "{model}");
            let sum = |c: &Counts| c.instructions.iter().sum::<u64>();
            let of = |peer: &str| layers.counts.iter().find(|c| c.peer == peer && c.bits == 8).map(sum);
            let totals = peers.totals(model, Core::M4, 8);
            assert_eq!(of("CMSIS-NN gcc"), Some(totals[0].instructions), "{model}");
            assert_eq!(best(&totals).unwrap().peer, "CMSIS-NN fastest", "{model}");
        }
        for total in &peers.totals {
            assert!(Core::ALL.iter().any(|c| c.name() == total.core), "{}", total.core);
        }
    }

    #[test]
    fn layers_find_their_peers() {
        let theirs = [("conv", 9), ("conv", 3), ("add", 0), ("conv", 9), ("linear", 8), ("linear", 9), ("linear", 9)];
        // Another order, a fused add, layers that lost channels.
        let ours = [("conv", 3), ("conv", 9), ("conv", 9), ("lookup", 0), ("linear", 7), ("linear", 8), ("linear", 9)];
        assert_eq!(matched(&ours, &theirs), [Some(1), Some(0), Some(3), None, Some(4), Some(5), Some(6)]);
    }

    #[test]
    fn ratios() {
        assert_eq!((ratio(3, Some(4)).as_str(), ratio(3, None).as_str()), ("0.75", "-"));
        assert_eq!((per_mac(5, 4).as_str(), per_mac(5, 0).as_str()), ("1.250", "-"));
    }
}
