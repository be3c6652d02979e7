//! `cargo xtask results`: the README's table, measured.
//!
//! Every network is built by the `quantize` command (release build) on up to 200 training samples for a Cortex-M4 and judged on its whole test
//! set; instructions are counted on emulated cores, each with the file that is laid out for it. Networks whose data are absent are left out, with a line that says so.

use crate::core::Core;
use crate::networks::{CLASSIFIERS, shared};
use crate::qemu::run_on_core;
use crate::{ToolError, call, root};
use pith::Model;
use quantize::pack::ModelFile;
use quantize::report::grouped;
use std::path::Path;
use std::process::Command;

/// A row to be measured.
struct Row {
    name: String,
    model: String,
    data: String,
    test: String,
    options: Vec<String>,
}

/// The verb.
pub fn run() -> Result<(), ToolError> {
    // From cold this takes minutes, and shows them.
    let built = Command::new("cargo").current_dir(root()).args(["build", "--release", "--bin", "quantize"]).status();
    if !built.map_err(|e| ToolError(format!("cannot run cargo: {e}")))?.success() {
        return Err(ToolError("the quantize command does not build".into()));
    }
    let scratch = tempfile::tempdir().map_err(|e| ToolError(e.to_string()))?;
    println!(
        "| network | test images | float | int8 | weights B | file B | RAM B | MACs | M0 instructions | M4 | M55 |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for row in rows() {
        println!("{}", measure(&row, scratch.path())?);
    }
    Ok(())
}

fn rows() -> Vec<Row> {
    let shown = |p: std::path::PathBuf| p.display().to_string();
    let digits = |file: &str| shown(root().join("tests/models/digits").join(file));
    let mut rows = vec![Row {
        name: "digits (shipped)".into(),
        model: digits("digits.onnx"),
        data: digits("digits_train.npz"),
        test: digits("digits_test.npz"),
        options: vec!["--scale".into(), "1/16".into()],
    }];
    for n in CLASSIFIERS {
        let files =
            [format!("models/{}.onnx", n.model), format!("sets/{}.npz", n.calibration), format!("sets/{}.npz", n.test)];
        let [Some(model), Some(data), Some(test)] = files.map(|f| shared(&f)) else {
            eprintln!("{}: data absent, left out", n.model);
            continue;
        };
        let options = n.arguments();
        rows.push(Row { name: n.model.into(), model: shown(model), data: shown(data), test: shown(test), options });
    }
    rows
}

/// Builds a row's network for a core; returns the command's report.
fn build(row: &Row, core: Core, output: &Path) -> Result<serde_json::Value, ToolError> {
    let mut build = Command::new("cargo");
    build.current_dir(root()).args(["run", "--quiet", "--release", "--bin", "quantize", "--", "build"]);
    build.args([&row.model, "--data", &row.data, "--test", &row.test, "--json", "-o"]).arg(output).args(&row.options);
    build.args(["--target", &format!("cortex-{}", core.name())]);
    serde_json::from_str(&call(&mut build)?).map_err(|e| ToolError(e.to_string()))
}

fn measure(row: &Row, scratch: &Path) -> Result<String, ToolError> {
    let output = scratch.join("model.pith");
    let (mut counts, mut report) = (Vec::new(), serde_json::Value::Null);
    for core in [Core::M0, Core::M55, Core::M4] {
        report = build(row, core, &output)?;
        let file = ModelFile::read(&output).map_err(|e| ToolError(e.to_string()))?;
        let model = Model::parse(file.as_bytes()).map_err(|e| ToolError(e.to_string()))?;
        let lens = model.inputs().iter().map(|p| model.tensor(p.tensor).len as usize);
        // The number of instructions hardly depends on the values; any sample will do.
        let sample: Vec<Vec<i8>> = lens.map(|n| (0..n).map(|i| (i * 37 % 251) as u8 as i8).collect()).collect();
        counts.push(grouped(run_on_core(file.as_bytes(), std::slice::from_ref(&sample), core, true)?.instructions));
    }
    counts.swap(1, 2);
    let number = |key: &str| report[key].as_u64().map_or("?".into(), grouped);
    let percent = |side: &str| report["accuracy"][side].as_f64().map_or("?".into(), |v| format!("{:.2} %", 100.0 * v));
    Ok(format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        row.name,
        report["accuracy"]["n"],
        percent("float"),
        percent("int8"),
        number("weight_bytes"),
        number("file_bytes"),
        number("arena_bytes"),
        number("macs"),
        counts.join(" | ")
    ))
}
