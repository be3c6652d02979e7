//! `cargo xtask bench elastic`: what one supernet gives at every uniform setting, what its losses add, and accuracy by the bytes of coded files.
//!
//! Networks whose batch norms were folded get new ones ([`quantize::train::with_norms`]); the float network to compare with is fine-tuned for the same number
//! of epochs with the same data. Uniform settings are judged as training simulates them (activations in floats), files by the runtime. Beside them stand
//! other people's quantizers with the best of other people's coders.

use super::bits::{Subject, build, digits, subject};
use super::{compress, default_folder, write};
use crate::ToolError;
use indicatif::{ProgressBar, ProgressStyle};
use quantize::build::input_slots;
use quantize::data::{self, Set, Targets};
use quantize::elastic::{ElasticOptions, Form, Supernet, Symmetry, train};
use quantize::graph::{Graph, Role, simplify};
use quantize::onnx;
use quantize::report::{grouped, json, table};
use quantize::scheme::Granularity;
use quantize::train::{
    Augment, Balance, Data, Device, Hooks, Session, Status, Teacher, TrainOptions, accuracy, evaluate, with_norms,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Networks; the shipped digits without shared data
    #[arg(long, value_delimiter = ',', default_value = "fmnist_cnn_bn,ic_resnet8")]
    network: Vec<String>,
    /// Epochs, of the supernet and of everything beside it
    #[arg(long, default_value_t = 8)]
    epochs: usize,
    /// Training samples, from the start of the set
    #[arg(long, default_value_t = 20_000)]
    samples: usize,
    /// Widths for which a network is trained that knows no other
    #[arg(long, value_delimiter = ',')]
    alone: Vec<u8>,
    /// Train again without the WDR loss, and without teachers among sub-networks
    #[arg(long)]
    ablate: bool,
    /// Bytes of coded files, as shares of the number of weights
    #[arg(long, value_delimiter = ',', default_value = "0.5,0.4,0.35,0.3,0.25")]
    coded: Vec<f64>,
    /// Mean coded bits of a weight, for each of which a network of 4 bits is trained
    #[arg(long, value_delimiter = ',')]
    coded_bits: Vec<f32>,
    /// Folder of bench-elastic.json and bench-elastic.svg
    #[arg(long, default_value_os_t = default_folder())]
    out: PathBuf,
    /// Print JSON in place of tables
    #[arg(long)]
    json: bool,
}

/// What was measured of a network.
#[derive(Serialize)]
struct Report {
    network: String,
    settings: String,
    original: f64,
    /// Fine-tuned as floats.
    float: f64,
    uniform: Vec<Uniform>,
    files: Vec<Point>,
}

/// A uniform setting of a supernet, or of a network that was trained for it alone.
#[derive(Serialize)]
struct Uniform {
    run: String,
    form: Form,
    accuracy: f64,
}

/// A file.
#[derive(Serialize)]
struct Point {
    series: Series,
    name: String,
    /// Weights, biases and tables as stored; of peers the weights alone.
    coded_bytes: u64,
    /// `None` of peers.
    file_bytes: Option<u64>,
    accuracy: f64,
}

/// What files of one colour have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Series {
    Searched,
    CodedBits,
    Alike,
    NotTrained,
    Peer,
}

impl Series {
    const ALL: [Series; 5] = [Series::Searched, Series::CodedBits, Series::Alike, Series::NotTrained, Series::Peer];

    /// What the legend says, and a colour.
    fn shown(self) -> (&'static str, &'static str) {
        match self {
            Series::Searched => ("searched in the supernet", "#2563eb"),
            Series::CodedBits => ("trained for coded bits", "#7c3aed"),
            Series::Alike => ("alike in the supernet", "#059669"),
            Series::NotTrained => ("not trained", "#d97706"),
            Series::Peer => ("peers, not trained", "#6b7280"),
        }
    }
}

/// The verb.
pub fn run(args: &Args) -> Result<bool, ToolError> {
    let mut subjects: Vec<Subject> = args.network.iter().filter_map(|name| subject(name)).collect();
    if subjects.is_empty() {
        subjects.push(digits());
    }
    let mut reports = Vec::new();
    for subject in subjects {
        reports.push(Bench::load(&subject, args)?.measure(args)?);
        write(&args.out, "bench-elastic", &reports, &svg(&reports))?;
    }
    print!("{}", if args.json { json(&reports) } else { reports.iter().map(text).collect() });
    Ok(true)
}

fn failed(e: impl std::fmt::Display) -> ToolError {
    ToolError(e.to_string())
}

struct Bench<'s> {
    subject: &'s Subject,
    graph: Graph,
    train: Set,
    test: Set,
    affine: Option<(Vec<f32>, Vec<f32>)>,
    options: TrainOptions,
    weights: usize,
}

impl<'s> Bench<'s> {
    fn load(subject: &'s Subject, args: &Args) -> Result<Bench<'s>, ToolError> {
        let graph = simplify(onnx::import(&subject.files[0]).map_err(failed)?);
        let slots = input_slots(&graph);
        let classes = graph.outputs.first().map_or(0, |p| graph.shape(p.tensor).iter().product());
        let load = |path: &PathBuf| data::load(path, &slots, None, classes).map_err(failed);
        let (mut train, test) = (load(&subject.files[1])?, load(&subject.files[2])?);
        train.samples.truncate(args.samples);
        if let Some(Targets::Classes(labels)) = &mut train.targets {
            labels.truncate(args.samples);
        }
        let channels = slots[0].shape.last().copied().unwrap_or(1);
        let affine = subject.preprocess.affine(channels).map_err(failed)?;
        let is_photo = subject.name.starts_with("ic_") || subject.name.contains("cifar");
        let augment = if is_photo { Augment { flip: true, crop: 2, ..Augment::default() } } else { Augment::default() };
        let options = TrainOptions { epochs: args.epochs, augment, ..ElasticOptions::default().train };
        let weights = graph.parameters().iter().filter(|p| p.role == Role::Weight).map(|p| p.range.len()).sum();
        Ok(Bench { subject, graph, train, test, affine, options, weights })
    }

    fn data<'a>(&'a self, set: &'a Set) -> Data<'a> {
        Data { samples: &set.samples, targets: set.targets.as_ref(), affine: self.affine.as_ref() }
    }

    fn judge(&self, graph: &Graph) -> Result<f64, ToolError> {
        let share = accuracy(graph, &self.data(&self.test), &Device::cpu()).map_err(failed)?;
        share.ok_or_else(|| ToolError("the test set has no labels".into()))
    }

    fn measure(&self, args: &Args) -> Result<Report, ToolError> {
        let base = ElasticOptions { train: self.options.clone(), ..ElasticOptions::default() };
        let coded: Vec<ElasticOptions> = args.coded_bits.iter().map(|&bits| for_coded_bits(&base, bits)).collect();
        // Before an hour of training.
        coded.iter().try_for_each(ElasticOptions::check).map_err(failed)?;
        let original = self.judge(&self.graph)?;
        let float = self.judge(&self.fine_tuned()?)?;
        let supernet = self.supernet("supernet", &base)?;
        let mut uniform = self.uniform("supernet", &supernet)?;
        if args.ablate {
            let without_shape = ElasticOptions { skewness: 0.0, kurtosis: 0.0, ..base.clone() };
            uniform.extend(self.uniform("no WDR", &self.supernet("no WDR", &without_shape)?)?);
            let without_guidance = ElasticOptions { guidance: 0.0, ..base.clone() };
            uniform.extend(self.uniform("no GPG", &self.supernet("no GPG", &without_guidance)?)?);
        }
        for &bits in &args.alone {
            let symmetry = vec![Symmetry::Symmetric];
            let granularity = vec![Granularity::Channel];
            let alone = ElasticOptions { bits: vec![bits], granularity, symmetry, ..base.clone() };
            let label = format!("{bits} bits alone");
            uniform.extend(self.uniform(&label, &self.supernet(&label, &alone)?)?);
        }
        let mut files = self.files(&supernet, args)?;
        for (bits, own) in args.coded_bits.iter().zip(&coded) {
            files.push(self.trained(format!("{bits} coded bits"), own)?);
        }
        files.extend(self.peers()?);
        let settings = format!("{} samples, {} epochs", self.train.samples.len(), args.epochs);
        Ok(Report { network: self.subject.name.clone(), settings, original, float, uniform, files })
    }

    /// The float network after the same training.
    fn fine_tuned(&self) -> Result<Graph, ToolError> {
        let data = self.data(&self.train);
        let normed = with_norms(&self.graph, &data, Balance::Filter).map_err(failed)?;
        let mut session = Session::new(&normed.graph, &self.options, &Device::cpu()).map_err(failed)?;
        let (bar, stop) = (bar(&format!("{} float", self.subject.name)), AtomicBool::new(false));
        let report = |s: &Status| advance(&bar, s);
        let mut hooks = Hooks { step: &mut |_| (), report: &report, stop: &stop, checkpoint: None };
        session.run(&data, None, &mut hooks).map_err(failed)?;
        bar.finish_and_clear();
        session.refresh(&data, 2048);
        Ok(normed.fold(session.graph()))
    }

    fn supernet(&self, label: &str, options: &ElasticOptions) -> Result<Supernet, ToolError> {
        let data = self.data(&self.train);
        let teacher = Teacher::new(&self.graph, &Device::cpu()).map_err(failed)?;
        let supernet = Supernet::new(&self.graph, &data, options).map_err(failed)?;
        let (bar, stop) = (bar(&format!("{} {label}", self.subject.name)), AtomicBool::new(false));
        let report = |s: &Status| advance(&bar, s);
        let mut hooks = Hooks { step: &mut |_| (), report: &report, stop: &stop, checkpoint: None };
        let trained = train(supernet, &data, Some(&teacher), &Device::cpu(), &mut hooks, None).map_err(failed)?;
        bar.finish_and_clear();
        Ok(trained.supernet)
    }

    fn uniform(&self, run: &str, supernet: &Supernet) -> Result<Vec<Uniform>, ToolError> {
        let net = supernet.net(&Device::cpu()).map_err(failed)?;
        let judge = |form: Form| {
            let choice = supernet.uniform(form, None);
            let (theta, moments) = supernet.recalibrated(&net, Some(&choice), &self.data(&self.train));
            let accuracy = evaluate(&net, &theta, &moments, &self.data(&self.test)).unwrap_or(0.0);
            Uniform { run: run.into(), form, accuracy }
        };
        Ok(supernet.options.forms(false).into_iter().map(judge).collect())
    }

    /// Coded files within budgets of bytes, and two without training.
    fn files(&self, supernet: &Supernet, args: &Args) -> Result<Vec<Point>, ToolError> {
        let scratch = tempfile::tempdir().map_err(failed)?;
        let path = scratch.path().join("net.supernet");
        supernet.write(&path).map_err(failed)?;
        let mut points = Vec::new();
        for bits in ["8", "4"] {
            let (name, form) = (format!("{bits} bits"), ["--weight-bits", bits]);
            points.push(self.built(Series::NotTrained, name.clone(), &self.subject.files[0], &form)?);
            points.push(self.built(Series::Alike, name, &path, &form)?);
        }
        // What one budget's search measures serves the others.
        let measured = scratch.path().join("measured.json").display().to_string();
        for share in &args.coded {
            let limit = ((share * self.weights as f64) as u64).to_string();
            let search = ["--max-flash", &limit, "--checkpoint", &measured, "--resume"];
            match self.built(Series::Searched, format!("at most {limit} B"), &path, &search) {
                Ok(point) => points.push(point),
                // A budget below the smallest file ends the curve.
                Err(e) => eprintln!("{e}"),
            }
        }
        Ok(points)
    }

    /// The coded file of a network that was trained for it.
    fn trained(&self, name: String, options: &ElasticOptions) -> Result<Point, ToolError> {
        let scratch = tempfile::tempdir().map_err(failed)?;
        let path = scratch.path().join("net.supernet");
        self.supernet(&name, options)?.write(&path).map_err(failed)?;
        self.built(Series::CodedBits, name, &path, &["--weight-bits", "4"])
    }

    /// The coded file of a network.
    fn built(&self, series: Series, name: String, model: &Path, more: &[&str]) -> Result<Point, ToolError> {
        begins(&format!("building {} {name}", self.subject.name));
        let scratch = tempfile::tempdir().map_err(failed)?;
        let [_, data, test] = self.subject.files.clone();
        let subject = Subject {
            name: self.subject.name.clone(),
            files: [model.to_path_buf(), data, test],
            options: self.subject.options.clone(),
            preprocess: self.subject.preprocess.clone(),
        };
        let row = build(&subject, "portable", &[&["--compress", "6"], more].concat(), scratch.path())?;
        let (coded_bytes, file_bytes) = (row.coded_bytes, Some(row.file_bytes));
        Ok(Point { series, name, coded_bytes, file_bytes, accuracy: row.accuracy })
    }

    /// Other people's files of the network as it comes: raw int8, and what the best of their coders makes of 8 and 4 bits.
    fn peers(&self) -> Result<Vec<Point>, ToolError> {
        let known: BTreeMap<String, Peers> = toml::from_str(include_str!("../../data/elastic-peers.toml"))
            .map_err(|e| ToolError(format!("tools/data/elastic-peers.toml: {e}")))?;
        let Some(peers) = known.get(&self.subject.name) else { return Ok(Vec::new()) };
        let point = |name: String, coded_bytes: u64, percent: f64| Point {
            series: Series::Peer,
            name,
            coded_bytes,
            file_bytes: None,
            accuracy: percent / 100.0,
        };
        let mut points = vec![point("onnxruntime int8".into(), self.weights as u64, peers.int8)];
        for (variant, name, percent) in [("int8", "onnxruntime", peers.int8), ("int4", "4 bits rounded", peers.int4)] {
            if let Some((coder, bytes)) = compress::best_peer(&self.subject.name, variant)? {
                points.push(point(format!("{name}, {coder}"), bytes, percent));
            }
        }
        Ok(points)
    }
}

/// Four bits of which a coded weight takes `bits` in the mean.
fn for_coded_bits(base: &ElasticOptions, bits: f32) -> ElasticOptions {
    ElasticOptions {
        bits: vec![4],
        edge_bits: 4,
        granularity: vec![Granularity::Channel],
        symmetry: vec![Symmetry::Symmetric],
        skewness: 0.0,
        kurtosis: 0.0,
        coded_bits: Some(bits),
        ..base.clone()
    }
}

/// A network of `tools/data/elastic-peers.toml`: percent right.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Peers {
    int8: f64,
    int4: f64,
}

/// Elsewhere than on a terminal, which shows bars, a line that says what begins.
fn begins(what: &str) {
    if !std::io::stderr().is_terminal() {
        eprintln!("{what}");
    }
}

fn bar(label: &str) -> ProgressBar {
    begins(&format!("training {label}"));
    let bar = ProgressBar::new(1).with_message(label.to_string());
    if let Ok(style) = ProgressStyle::with_template("{msg:>32} {wide_bar} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar
}

fn advance(bar: &ProgressBar, s: &Status) {
    bar.set_length(s.steps as u64);
    bar.set_position(s.step as u64);
}

fn percent(share: f64) -> String {
    format!("{:.2}", 100.0 * share)
}

fn text(r: &Report) -> String {
    let mut runs: Vec<&str> = r.uniform.iter().map(|u| u.run.as_str()).collect();
    runs.dedup();
    let forms: Vec<Form> = r.uniform.iter().filter(|u| u.run == runs[0]).map(|u| u.form).collect();
    let head: Vec<&str> = ["setting"].into_iter().chain(runs.iter().copied()).collect();
    let cell = |run: &str, form: Form| {
        let found = r.uniform.iter().find(|u| u.run == run && u.form == form);
        found.map_or("-".into(), |u| percent(u.accuracy))
    };
    let row = |form: &Form| -> Vec<String> {
        [form.to_string()].into_iter().chain(runs.iter().map(|run| cell(run, *form))).collect()
    };
    let settings: Vec<Vec<String>> = forms.iter().map(row).collect();
    let file = |p: &Point| -> Vec<String> {
        let whole = p.file_bytes.map_or("-".into(), grouped);
        vec![p.series.shown().0.into(), p.name.clone(), grouped(p.coded_bytes), whole, percent(p.accuracy)]
    };
    let files: Vec<Vec<String>> = r.files.iter().map(file).collect();
    format!(
        "{}: {}; percent right: {} as it comes, {} as floats after the same training\n{}\n{}\n",
        r.network,
        r.settings,
        percent(r.original),
        percent(r.float),
        table(&head, &settings),
        table(&["files", "", "weights and tables B", "file B", "right"], &files)
    )
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 60.0;
const PLOT: [f64; 2] = [760.0, 300.0];
const HEIGHT: f64 = 400.0;

/// Accuracy of files against their bytes, one panel a network.
fn svg(reports: &[Report]) -> String {
    let height = 40.0 + HEIGHT * reports.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"16\">Right answers (%) by the bytes of coded weights and tables</text>\n"
    );
    for (i, r) in reports.iter().enumerate() {
        panel(&mut svg, r, 40.0 + HEIGHT * i as f64);
    }
    svg + "</svg>\n"
}

fn panel(svg: &mut String, r: &Report, top: f64) {
    let most = r.files.iter().map(|p| p.coded_bytes).max().unwrap_or(1) as f64 * 1.05;
    let own = r.files.iter().filter(|p| p.series != Series::Peer).map(|p| p.accuracy);
    let all: Vec<f64> = own.chain([r.float, r.original]).map(|a| 100.0 * a).collect();
    let low = all.iter().copied().fold(100.0, f64::min).floor() - 1.0;
    let high = all.iter().copied().fold(0.0, f64::max).ceil();
    let step = ((high - low) / 8.0).ceil().max(1.0);
    // A peer far below stands on the lowest line.
    let y = |percent: f64| top + 40.0 + PLOT[1] * (high - percent.max(low)) / (high - low).max(1.0);
    let x = |bytes: f64| LEFT + PLOT[0] * bytes / most;
    // Drawn last, over the lines.
    let mut labels = String::new();
    let mut text = |x: f64, y: f64, style: &str, text: &str| {
        let _ = writeln!(labels, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{text}</text>");
    };
    text(16.0, top + 20.0, "font-size=\"13\"", &format!("{}: {}", r.network, r.settings));
    let mut lines = vec![(high, "#ddd")];
    while lines[lines.len() - 1].0 - step >= low {
        lines.push((lines[lines.len() - 1].0 - step, "#ddd"));
    }
    for &(percent, _) in &lines {
        text(LEFT - 8.0, y(percent) + 4.0, "text-anchor=\"end\" fill=\"#555\"", &percent.to_string());
    }
    // Round numbers, four to ten of them.
    let tenth = 10f64.powf((most / 4.0).log10().floor());
    let apart = [5.0, 2.0, 1.0].map(|n| n * tenth).into_iter().find(|step| 4.0 * step <= most).unwrap_or(tenth);
    for i in 0..=(most / apart) as usize {
        let bytes = apart * i as f64;
        let label = format!("{} B", grouped(bytes as u64));
        text(x(bytes), y(low) + 18.0, "text-anchor=\"middle\" fill=\"#555\"", &label);
    }
    for (share, name) in [(r.float, "float, same training"), (r.original, "float, as it comes")] {
        lines.push((100.0 * share, "#888"));
        text(LEFT + 4.0, y(100.0 * share) - 4.0, "fill=\"#555\"", name);
    }
    let at = |p: &Point| (x(p.coded_bytes as f64), y(100.0 * p.accuracy));
    let mut peers = 0;
    for p in &r.files {
        let (cx, cy) = at(p);
        let mut own = r.files.iter().filter(|other| other.series == p.series).map(at);
        // A label ends below its point where that of a neighbour stands above.
        let is_crowded = own.any(|(ox, oy)| ox > cx && ox - cx < 40.0 && (oy - cy).abs() < 15.0);
        let label = match p.series {
            Series::Searched | Series::CodedBits => percent(p.accuracy),
            Series::Alike | Series::NotTrained => p.name.clone(),
            Series::Peer => format!("{} {}", p.name, percent(p.accuracy)),
        };
        // Peers' are long, and those of one accuracy neighbours: they end below their points, in two rows.
        let (offset, anchor) = match p.series {
            Series::Peer if 100.0 * p.accuracy <= low => (-8.0, "end"),
            Series::Peer => (if peers % 2 == 0 { 17.0 } else { 31.0 }, "end"),
            Series::Searched => (17.0, "middle"),
            Series::CodedBits => (if is_crowded { 17.0 } else { -8.0 }, "end"),
            Series::Alike | Series::NotTrained => (-8.0, "middle"),
        };
        peers += usize::from(p.series == Series::Peer);
        text(cx, cy + offset, &format!("text-anchor=\"{anchor}\" fill=\"{}\"", p.series.shown().1), &label);
    }
    for (percent, colour) in lines {
        let _ = writeln!(svg, "<path d=\"M{LEFT} {:.1}h{}\" stroke=\"{colour}\"/>", y(percent), PLOT[0]);
    }
    for (i, series) in Series::ALL.iter().enumerate() {
        let (name, colour) = series.shown();
        let (lx, ly) = (LEFT + 162.0 * i as f64, y(low) + 40.0);
        text(lx + 14.0, ly, "", name);
        let mut points: Vec<(f64, f64)> = r.files.iter().filter(|p| p.series == *series).map(at).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        if matches!(series, Series::Searched | Series::CodedBits) {
            let line: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\"/>", line.join(" "));
        }
        for (cx, cy) in points.into_iter().chain([(lx + 4.0, ly - 4.0)]) {
            let _ = writeln!(svg, "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"4\" fill=\"{colour}\"/>");
        }
    }
    svg.push_str(&labels);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_have_coders_and_stay_in_the_picture() {
        let peers: BTreeMap<String, Peers> = toml::from_str(include_str!("../../data/elastic-peers.toml")).unwrap();
        assert!(!peers.is_empty());
        for name in peers.keys() {
            for variant in ["int8", "int4"] {
                assert!(compress::best_peer(name, variant).unwrap().is_some(), "{name} {variant}");
            }
        }
        let point =
            |series, accuracy| Point { series, name: "4 bits".into(), coded_bytes: 9, file_bytes: None, accuracy };
        let report = Report {
            network: "n".into(),
            settings: String::new(),
            original: 0.9,
            float: 0.9,
            uniform: Vec::new(),
            files: vec![point(Series::Alike, 0.88), point(Series::Peer, 0.2)],
        };
        let picture = svg(&[report]);
        let heights = picture.split("cy=\"").skip(1).map(|s| s.split('"').next().unwrap().parse::<f64>().unwrap());
        assert!(heights.clone().count() > 2 && heights.into_iter().all(|y| y < 40.0 + HEIGHT), "{picture}");
        assert!(picture.contains("4 bits 20.00"));
    }
}
