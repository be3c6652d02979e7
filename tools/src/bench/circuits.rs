//! `cargo xtask bench circuits`: hidden Chow-Liu trees on images, beside the published figures of "Lossless Compression with Probabilistic
//! Circuits" and of "Sparse Probabilistic Circuits via Pruning and Growing".
//!
//! Circuits are learned from the training set, coded as integers, and measured on the test set: bits per dimension by likelihood and by the
//! length of a stream, and the time to code all images. Training stops and goes on by its checkpoints.

use super::picture::{Bar, Chart, Group, Panel};
use super::{default_folder, write};
use crate::ToolError;
use crate::networks::shared;
use quantize::circuit::chow_liu::{Estimate, chow_liu};
use quantize::circuit::codec::Coded;
use quantize::circuit::em::{self, Schedule};
use quantize::circuit::evaluate::{Workspace, bits_per_dimension};
use quantize::circuit::hclt::{Leaves, hclt};
use quantize::circuit::{Circuit, Data, checkpoint, cost, sparsify};
use quantize::npy;
use quantize::report::{grouped, json, table};
use serde::Serialize;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Sets of images
    #[arg(long, value_delimiter = ',', default_value = "mnist,fashion")]
    data: Vec<String>,
    /// Hidden states of every pixel
    #[arg(long, value_delimiter = ',', default_value = "16,32")]
    states: Vec<usize>,
    /// Epochs of a hidden Chow-Liu tree
    #[arg(long, default_value_t = 110)]
    epochs: usize,
    /// Steps of pruning and growing after it
    #[arg(long, default_value_t = 0)]
    grow: usize,
    /// Epochs after each of these steps
    #[arg(long, default_value_t = 30)]
    tune: usize,
    /// Epochs for a circuit pruned to the parameters of the one with the next fewer states; 0: none
    #[arg(long, default_value_t = 0)]
    prune: usize,
    /// Folder of checkpoints, from which training goes on
    #[arg(long, default_value_os_t = default_folder().join("circuits"))]
    checkpoints: PathBuf,
    /// Folder of bench-circuits.json and bench-circuits.svg
    #[arg(long, default_value_os_t = default_folder())]
    out: PathBuf,
    /// Print JSON in place of the table
    #[arg(long)]
    json: bool,
}

const SEED: u64 = 1;

/// Published bits per dimension by likelihood: Table 1 of "Sparse Probabilistic Circuits via Pruning and Growing".
const PUBLISHED: [(&str, &str, f64); 8] = [
    ("mnist", "paper, M = 32", 1.20),
    ("mnist", "pruned and grown", 1.14),
    ("mnist", "BitSwap", 1.27),
    ("mnist", "IDF", 1.90),
    ("fashion", "paper, M = 32", 3.34),
    ("fashion", "pruned and grown", 3.27),
    ("fashion", "BitSwap", 3.28),
    ("fashion", "IDF", 3.47),
];

/// A circuit on a test set.
#[derive(Serialize)]
struct Row {
    data: String,
    circuit: String,
    parameters: usize,
    /// Of which sum edges.
    edges: usize,
    /// Multiplications to encode and decode a sample, and what the paper's partial evaluation would need.
    multiplications: [usize; 2],
    partial_evaluation: [usize; 2],
    bits_per_dimension: f64,
    codeword_bits_per_dimension: f64,
    /// On one thread and on two.
    encode_s: [f64; 2],
    decode_s: [f64; 2],
}

/// The verb; false if a decoded set was not the one that was encoded.
pub fn run(args: &Args) -> Result<bool, ToolError> {
    let mut rows = Vec::new();
    for name in &args.data {
        let (Some(train), Some(test)) = (load(name, "train")?, load(name, "test")?) else {
            eprintln!("left out: shared/data/sets/{name}_train.npz or {name}_test.npz is absent");
            continue;
        };
        let bench = Bench { args, name, train, test };
        let mut smaller: Option<Circuit> = None;
        for &states in &args.states {
            let circuit = bench.tree(states)?;
            rows.push(bench.measure(&format!("M = {states}"), &circuit)?);
            if let Some(smaller) = smaller.filter(|_| args.prune > 0) {
                let pruned = bench.pruned(states, &circuit, &smaller)?;
                rows.push(bench.measure(&format!("M = {states}, pruned"), &pruned)?);
            }
            smaller = Some(circuit.clone());
            let mut grown = circuit;
            for step in 1..=args.grow {
                grown = bench.grown(states, step, grown)?;
                rows.push(bench.measure(&format!("M = {states}, grown {step}x"), &grown)?);
            }
        }
    }
    if rows.is_empty() {
        return Ok(true);
    }
    if args.json {
        println!("{}", json(&rows));
    } else {
        print(&rows);
    }
    write(&args.out, "bench-circuits", &rows, &picture(&rows).svg())?;
    Ok(true)
}

/// Images as rows of bytes; none if the file is absent.
fn load(name: &str, part: &str) -> Result<Option<Data>, ToolError> {
    let Some(path) = shared(&format!("sets/{name}_{part}.npz")) else { return Ok(None) };
    let fail = |what: &dyn std::fmt::Display| ToolError(format!("{}: {what}", path.display()));
    let arrays = npy::read(&path).map_err(|e| fail(&e))?;
    let (_, array) = arrays.into_iter().find(|(name, _)| name == "x").ok_or_else(|| fail(&"no array 'x'"))?;
    if array.kind != "u1" {
        return Err(fail(&"array 'x' does not hold bytes"));
    }
    let variables = array.values.shape().iter().skip(1).product();
    Ok(Some(Data::new(array.values.iter().map(|&v| v as u8).collect(), variables)))
}

/// What belongs to a set.
struct Bench<'a> {
    args: &'a Args,
    name: &'a str,
    train: Data,
    test: Data,
}

impl Bench<'_> {
    /// A hidden Chow-Liu tree.
    fn tree(&self, states: usize) -> Result<Circuit, ToolError> {
        let begin = || hclt(&chow_liu(&self.train, Estimate::default()), 256, states, Leaves::Categorical, SEED);
        let file = format!("{}-{states}-{}", self.name, self.args.epochs);
        self.train(&file, begin, &Schedule::of(self.args.epochs))
    }

    /// Half of all units go, the others are doubled: as large as before, but where the data want it.
    fn grown(&self, states: usize, step: usize, circuit: Circuit) -> Result<Circuit, ToolError> {
        let begin = || {
            let mut circuit = circuit;
            sparsify::prune_units(&mut circuit, &self.train, 0.5, &mut Workspace::default());
            sparsify::grow(&mut circuit, 0.3, SEED + step as u64);
            circuit
        };
        let file = format!("{}-{states}-{}-grown-{step}-{}", self.name, self.args.epochs, self.args.tune);
        self.train(&file, begin, &Schedule::tune(self.args.tune))
    }

    /// As few parameters as a smaller circuit has.
    fn pruned(&self, states: usize, circuit: &Circuit, smaller: &Circuit) -> Result<Circuit, ToolError> {
        let begin = || {
            let mut share = 1.0 - smaller.parameters() as f32 / circuit.parameters() as f32;
            loop {
                let mut pruned = circuit.clone();
                sparsify::prune_units(&mut pruned, &self.train, share, &mut Workspace::default());
                if pruned.parameters() <= smaller.parameters() {
                    return pruned;
                }
                share += 0.01;
            }
        };
        let file = format!("{}-{states}-{}-pruned-{}", self.name, self.args.epochs, self.args.prune);
        self.train(&file, begin, &Schedule::tune(self.args.prune))
    }

    /// Trains from where the checkpoint is.
    fn train(&self, file: &str, begin: impl FnOnce() -> Circuit, schedule: &Schedule) -> Result<Circuit, ToolError> {
        let path = self.args.checkpoints.join(file).with_extension("circuit");
        let (mut circuit, done) = checkpoint::load(&path).map_err(ToolError)?.unwrap_or_else(|| (begin(), 0));
        let (epochs, samples) = (schedule.epochs(), self.train.samples());
        let mut work = Workspace::default();
        let started = Instant::now();
        for epoch in done..epochs {
            let left = |seen: usize| {
                let past = (epoch - done) as f64 + seen as f64 / samples as f64;
                started.elapsed().as_secs_f64() / past.max(1e-9) * ((epochs - done) as f64 - past)
            };
            let mut seen = |seen: usize| {
                if std::io::stderr().is_terminal() {
                    eprint!(
                        "\r{file}: epoch {} of {epochs}, {} %, {:.0} s left  ",
                        epoch + 1,
                        100 * seen / samples,
                        left(seen)
                    );
                }
            };
            let mean = em::epoch(&mut circuit, &self.train, schedule, epoch, SEED, &mut work, &mut seen);
            let bits = -mean / (self.train.variables as f64 * std::f64::consts::LN_2);
            eprintln!(
                "\r{file}: epoch {} of {epochs}, {bits:.4} bits per dimension, {:.0} s left",
                epoch + 1,
                left(samples)
            );
            if epoch % 5 == 4 || epoch + 1 == epochs {
                save(&path, &circuit, epoch + 1)?;
            }
        }
        Ok(circuit)
    }

    fn measure(&self, name: &str, circuit: &Circuit) -> Result<Row, ToolError> {
        let fail = |e: &dyn std::fmt::Display| ToolError(format!("{} {name}: {e}", self.name));
        let coded = Coded::new(circuit).map_err(|e| fail(&e))?;
        let (mut encode_s, mut decode_s, mut bytes) = ([0.0; 2], [0.0; 2], 0);
        for threads in [2, 1] {
            let started = Instant::now();
            let streams = coded.encode(&self.test, threads).map_err(|e| fail(&e))?;
            encode_s[threads - 1] = started.elapsed().as_secs_f64();
            let started = Instant::now();
            let decoded = coded.decode(&streams, self.test.samples()).map_err(|e| fail(&e))?;
            decode_s[threads - 1] = started.elapsed().as_secs_f64();
            if decoded != self.test {
                return Err(fail(&"decoded images differ"));
            }
            bytes = streams.iter().map(Vec::len).sum();
        }
        let pair = |cost: cost::Cost| [cost.encode, cost.decode];
        Ok(Row {
            data: self.name.into(),
            circuit: name.into(),
            parameters: circuit.parameters(),
            edges: circuit.regions.iter().map(|r| r.edges()).sum(),
            multiplications: pair(cost::walk(circuit)),
            partial_evaluation: pair(cost::partial_evaluation(circuit)),
            bits_per_dimension: bits_per_dimension(circuit, &self.test),
            codeword_bits_per_dimension: 8.0 * bytes as f64 / self.test.values.len() as f64,
            encode_s,
            decode_s,
        })
    }
}

fn save(path: &Path, circuit: &Circuit, epochs: usize) -> Result<(), ToolError> {
    checkpoint::save(path, circuit, epochs).map_err(|e| ToolError(format!("{}: {e}", path.display())))
}

fn print(rows: &[Row]) {
    let head = ["set", "circuit", "parameters", "bpd", "coded", "encode s", "decode s", "on two", "Mmul", "paper's"];
    let own = rows.iter().map(|r| {
        let mega = |n: [usize; 2]| format!("{:.1} / {:.1}", n[0] as f64 / 1e6, n[1] as f64 / 1e6);
        vec![
            r.data.clone(),
            r.circuit.clone(),
            grouped(r.parameters as u64),
            format!("{:.4}", r.bits_per_dimension),
            format!("{:.4}", r.codeword_bits_per_dimension),
            format!("{:.1}", r.encode_s[0]),
            format!("{:.1}", r.decode_s[0]),
            format!("{:.1} / {:.1}", r.encode_s[1], r.decode_s[1]),
            mega(r.multiplications),
            mega(r.partial_evaluation),
        ]
    });
    let published = PUBLISHED.iter().filter(|p| rows.iter().any(|r| r.data == p.0)).map(|(data, name, bits)| {
        let mut cells = vec![String::new(); head.len()];
        (cells[0], cells[1], cells[3]) = (data.to_string(), name.to_string(), format!("{bits:.2}"));
        cells
    });
    println!("{}", table(&head, &own.chain(published).collect::<Vec<Vec<String>>>()));
    println!("Mmul: million multiplications to encode / decode an image.");
}

fn picture(rows: &[Row]) -> Chart {
    let mut sets: Vec<&str> = rows.iter().map(|r| r.data.as_str()).collect();
    sets.dedup();
    let group = |label: &str, series, value| {
        let bar = Bar { series, value, text: format!("{value:.2}") };
        Group { label: label.into(), bars: vec![bar] }
    };
    let panel = |set: &&str| {
        let own = rows.iter().filter(|r| r.data == *set);
        let own = own.map(|r| group(&format!("Pith, {}", r.circuit), 0, r.codeword_bits_per_dimension));
        let published = PUBLISHED.iter().filter(|p| p.0 == *set).map(|p| group(p.1, 1, p.2));
        Panel { title: (*set).into(), groups: own.chain(published).collect() }
    };
    Chart {
        title: "Lossless image compression with probabilistic circuits".into(),
        subtitle: "bits per dimension on the test set; Pith: length of the stream, published: by likelihood".into(),
        series: vec![("Pith".into(), "#2563eb"), ("published".into(), "#9ca3af")],
        columns: 2,
        is_linear: true,
        panels: sets.iter().map(panel).collect(),
    }
}
