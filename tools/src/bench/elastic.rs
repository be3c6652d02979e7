//! `cargo xtask bench elastic`: what one supernet gives at every uniform setting, what its losses add, and accuracy by the bytes of coded files.
//!
//! Networks whose batch norms were folded get new ones ([`quantize::train::with_norms`]); the float network to compare with is fine-tuned for the same number
//! of epochs with the same data. Uniform settings are judged as training simulates them (activations in floats), files by the runtime.

use super::bits::{Subject, build, digits, subject};
use super::{default_folder, write};
use crate::ToolError;
use indicatif::{ProgressBar, ProgressStyle};
use quantize::build::input_slots;
use quantize::data::{self, Set, Targets};
use quantize::elastic::{ElasticOptions, Form, Supernet, Symmetry, train};
use quantize::graph::{Graph, simplify};
use quantize::onnx;
use quantize::report::{grouped, json, table};
use quantize::scheme::Granularity;
use quantize::train::{
    Augment, Balance, Data, Device, Hooks, Session, Status, Teacher, TrainOptions, accuracy, evaluate, with_norms,
};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;
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
    name: String,
    /// Weights, biases and tables as stored.
    coded_bytes: u64,
    file_bytes: u64,
    accuracy: f64,
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
        let weights = graph.nodes.iter().flat_map(|n| n.op.parameters()).map(|(_, v)| v.len()).sum();
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
        let original = self.judge(&self.graph)?;
        let float = self.judge(&self.fine_tuned()?)?;
        let base = ElasticOptions { train: self.options.clone(), ..ElasticOptions::default() };
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
        let files = self.files(&supernet, args)?;
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
        let [model, data, test] = self.subject.files.clone();
        let of = |model: PathBuf| Subject {
            name: self.subject.name.clone(),
            files: [model, data.clone(), test.clone()],
            options: self.subject.options.clone(),
            preprocess: self.subject.preprocess.clone(),
        };
        let (elastic, plain) = (of(path), of(model));
        let mut points = Vec::new();
        let mut add = |name: String, subject: &Subject, more: &[&str]| -> Result<(), ToolError> {
            let row = build(subject, "portable", &[&["--compress", "6"], more].concat(), scratch.path())?;
            let (coded_bytes, file_bytes) = (row.coded_bytes, row.file_bytes);
            points.push(Point { name, coded_bytes, file_bytes, accuracy: row.accuracy });
            Ok(())
        };
        for bits in ["8", "4"] {
            add(format!("{bits} bits, not trained"), &plain, &["--weight-bits", bits])?;
            add(format!("{bits} bits of the supernet"), &elastic, &["--weight-bits", bits])?;
        }
        for share in &args.coded {
            let limit = ((share * self.weights as f64) as u64).to_string();
            match add(format!("at most {limit} B"), &elastic, &["--max-flash", &limit]) {
                Ok(()) => {}
                // A budget below the smallest file ends the curve.
                Err(e) => eprintln!("{e}"),
            }
        }
        Ok(points)
    }
}

fn bar(label: &str) -> ProgressBar {
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
    let file = |p: &Point| vec![p.name.clone(), grouped(p.coded_bytes), grouped(p.file_bytes), percent(p.accuracy)];
    let files: Vec<Vec<String>> = r.files.iter().map(file).collect();
    format!(
        "{}: {}; percent right: {} as it comes, {} as floats after the same training\n{}\n{}\n",
        r.network,
        r.settings,
        percent(r.original),
        percent(r.float),
        table(&head, &settings),
        table(&["coded file", "weights and tables B", "file B", "right"], &files)
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
    let all = || r.files.iter().map(|p| p.accuracy).chain([r.float, r.original]).map(|a| 100.0 * a);
    let (low, high) = (all().fold(100.0, f64::min).floor() - 1.0, all().fold(0.0, f64::max).ceil());
    let step = ((high - low) / 8.0).ceil().max(1.0);
    let y = |percent: f64| top + 40.0 + PLOT[1] * (high - percent) / (high - low).max(1.0);
    let x = |bytes: f64| LEFT + PLOT[0] * bytes / most;
    let _ =
        writeln!(svg, "<text x=\"16\" y=\"{:.1}\" font-size=\"13\">{}: {}</text>", top + 20.0, r.network, r.settings);
    let mut line = high;
    while line >= low {
        let at = y(line);
        let _ = writeln!(svg, "<path d=\"M{LEFT} {at:.1}h{}\" stroke=\"#ddd\"/>", PLOT[0]);
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{line}</text>",
            LEFT - 8.0,
            at + 4.0
        );
        line -= step;
    }
    for i in 0..=4 {
        let bytes = most * i as f64 / 4.0;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{} B</text>",
            x(bytes),
            y(low) + 18.0,
            grouped(bytes as u64)
        );
    }
    for (share, name) in [(r.float, "float, same training"), (r.original, "float, as it comes")] {
        let at = y(100.0 * share);
        let _ = writeln!(svg, "<path d=\"M{LEFT} {at:.1}h{}\" stroke=\"#888\" stroke-dasharray=\"4 3\"/>", PLOT[0]);
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" fill=\"#555\">{name}</text>", LEFT + 4.0, at - 4.0);
    }
    let curve: Vec<String> = r
        .files
        .iter()
        .filter(|p| p.name.starts_with("at most"))
        .map(|p| format!("{:.1},{:.1}", x(p.coded_bytes as f64), y(100.0 * p.accuracy)))
        .collect();
    let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"#2563eb\"/>", curve.join(" "));
    for p in &r.files {
        let (cx, cy) = (x(p.coded_bytes as f64), y(100.0 * p.accuracy));
        let series = SERIES.iter().find(|(part, ..)| p.name.contains(part)).unwrap_or(&SERIES[0]);
        let (_, _, colour, below) = series;
        let _ = writeln!(svg, "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"4\" fill=\"{colour}\"/>");
        let is_uniform = p.name.contains(" bits");
        let label =
            if is_uniform { p.name.split(' ').take(2).collect::<Vec<_>>().join(" ") } else { percent(p.accuracy) };
        let _ = writeln!(
            svg,
            "<text x=\"{cx:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{colour}\">{label}</text>",
            if *below { cy + 17.0 } else { cy - 8.0 }
        );
    }
    for (i, (_, name, colour, _)) in SERIES.iter().enumerate() {
        let (cx, cy) = (LEFT + 230.0 * i as f64, y(low) + 40.0);
        let _ = writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"/>", cx + 4.0, cy - 4.0);
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{cy:.1}\">{name}</text>", cx + 14.0);
    }
}

/// Part of a file's name, what it says, its colour, and whether its label stands below the point.
const SERIES: [(&str, &str, &str, bool); 3] = [
    ("at most", "bits of layers searched in the supernet", "#2563eb", true),
    ("not trained", "not trained", "#d97706", true),
    ("of the supernet", "all layers alike, of the supernet", "#059669", false),
];
