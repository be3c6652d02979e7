//! `cargo xtask bench bits`: what networks lose when every layer has its own bits, by the bytes of the file, beside layers that are all alike.
//!
//! Coded files (`--compress 6`) get a price of bits instead. Nothing is trained: the `quantize` command searches on 200 training samples, and the whole test set judges.

use crate::networks::{CLASSIFIERS, shared};
use crate::{ToolError, root};
use quantize::recipe::Preprocess;
use quantize::report::{grouped, json, table};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Networks; the shipped digits without shared data
    #[arg(long, value_delimiter = ',', default_value = "ic_resnet8,kws_ref,fmnist_cnn_bn")]
    model: Vec<String>,
    /// Shares of the int8 file's bytes that are allowed
    #[arg(long, value_delimiter = ',', default_value = "0.75,0.5")]
    share: Vec<f64>,
    /// The same with coded weights
    #[arg(long, value_delimiter = ',', default_value = "0.5,0.4,0.35")]
    coded: Vec<f64>,
    /// Widths that all layers have, to compare with
    #[arg(long, value_delimiter = ',', default_value = "4,3")]
    alike: Vec<u8>,
    /// As with build
    #[arg(long, default_value = "portable")]
    target: String,
    /// Print JSON in place of the table
    #[arg(long)]
    json: bool,
}

/// A network in one form.
#[derive(Serialize)]
pub(super) struct Row {
    network: String,
    form: String,
    pub(super) file_bytes: u64,
    /// Weights, biases and tables as stored.
    pub(super) coded_bytes: u64,
    /// Against the int8 file.
    share: f64,
    pub(super) accuracy: f64,
    float: f64,
    seconds: f64,
}

/// A network, its sets and its preprocessing.
pub(super) struct Subject {
    pub(super) name: String,
    /// Network, calibration set, test set.
    pub(super) files: [PathBuf; 3],
    pub(super) options: Vec<String>,
    pub(super) preprocess: Preprocess,
}

/// The verb.
pub fn run(args: &Args) -> Result<bool, ToolError> {
    let scratch = tempfile::tempdir().map_err(|e| ToolError(e.to_string()))?;
    let mut rows = Vec::new();
    let mut subjects: Vec<Subject> = args.model.iter().filter_map(|name| subject(name)).collect();
    if subjects.is_empty() {
        subjects.push(digits());
    }
    for subject in subjects {
        eprintln!("{}", subject.name);
        let int8 = build(&subject, &args.target, &[], scratch.path())?;
        let whole = int8.file_bytes;
        let mut add = |form: String, mut row: Row| {
            row.form = form;
            row.share = row.file_bytes as f64 / whole as f64;
            rows.push(row);
        };
        add("8 bits".into(), int8);
        for share in &args.share {
            let limit = ((share * whole as f64) as u64).to_string();
            let row = build(&subject, &args.target, &["--max-flash", &limit], scratch.path())?;
            add(format!("at most {:.0} %", 100.0 * share), row);
        }
        for share in &args.coded {
            let limit = ((share * whole as f64) as u64).to_string();
            let row = build(&subject, &args.target, &["--compress", "6", "--max-flash", &limit], scratch.path())?;
            add(format!("coded, at most {:.0} %", 100.0 * share), row);
        }
        for bits in &args.alike {
            let row = build(&subject, &args.target, &["--weight-bits", &bits.to_string()], scratch.path())?;
            add(format!("all {bits} bits"), row);
        }
    }
    print!("{}", if args.json { json(&rows) } else { text(&rows) });
    Ok(true)
}

pub(super) fn subject(name: &str) -> Option<Subject> {
    let network = CLASSIFIERS.into_iter().find(|n| n.model == name)?;
    // The lossless pictures are too few to tell a point.
    let test = if network.calibration == "cifar10_train" { "cifar10_test" } else { network.test };
    let files = [
        shared(&format!("models/{name}.onnx")),
        shared(&format!("sets/{}.npz", network.calibration)),
        shared(&format!("sets/{test}.npz")),
    ];
    match files {
        [Some(model), Some(data), Some(test)] => {
            let (options, preprocess) = (network.arguments(), network.recipe().preprocess);
            Some(Subject { name: name.into(), files: [model, data, test], options, preprocess })
        }
        _ => {
            eprintln!("{name}: data absent, left out");
            None
        }
    }
}

pub(super) fn digits() -> Subject {
    let file = |file: &str| root().join("tests/models/digits").join(file);
    let files = [file("digits.onnx"), file("digits_train.npz"), file("digits_test.npz")];
    let preprocess = Preprocess { scale: 1.0 / 16.0, ..Preprocess::default() };
    Subject { name: "digits".into(), files, options: vec!["--scale".into(), "1/16".into()], preprocess }
}

pub(super) fn build(subject: &Subject, target: &str, more: &[&str], scratch: &Path) -> Result<Row, ToolError> {
    let output = scratch.join("model.pith");
    let [model, data, test] = &subject.files;
    let shown = |path: &Path| path.display().to_string();
    let mut command = vec!["quantize".into(), "build".into(), shown(model), "--data".into(), shown(data)];
    command.extend(["--test".into(), shown(test), "--json".into(), "-o".into(), shown(&output)]);
    command.extend(["--target", target].into_iter().chain(more.iter().copied()).map(String::from));
    command.extend(subject.options.iter().cloned());
    let (started, mut out, mut err) = (Instant::now(), Vec::new(), Vec::new());
    if quantize::cli::run(&command, &mut out, &mut err) != 0 {
        return Err(ToolError(format!("{}: {}", subject.name, String::from_utf8_lossy(&err).trim())));
    }
    let report: serde_json::Value =
        serde_json::from_slice(&out).map_err(|e| ToolError(format!("{}: {e}", subject.name)))?;
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or(0.0);
    Ok(Row {
        network: subject.name.clone(),
        form: String::new(),
        file_bytes: number(&report["file_bytes"]) as u64,
        coded_bytes: number(&report["coded_bytes"]) as u64,
        share: 1.0,
        accuracy: number(&report["accuracy"]["int8"]),
        float: number(&report["accuracy"]["float"]),
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn text(rows: &[Row]) -> String {
    let line = |r: &Row| {
        vec![
            r.network.clone(),
            r.form.clone(),
            grouped(r.file_bytes),
            format!("{:.1} %", 100.0 * r.share),
            format!("{:.2} %", 100.0 * r.accuracy),
            format!("{:.2} %", 100.0 * r.float),
            format!("{:.1}", r.seconds),
        ]
    };
    let lines: Vec<Vec<String>> = rows.iter().map(line).collect();
    table(&["network", "bits", "file B", "of int8", "right", "float", "s"], &lines)
}
