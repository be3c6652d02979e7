//! `cargo xtask profile`: what every operator takes on a board, beside the prediction. Boards keep the ticks of the first 64; the total has all.

use super::board::{Board, read_model};
use super::verify::{Session, Target};
use crate::ToolError;
use crate::bench::picture::{Bar, Chart, Group, Panel};
use pith::Model;
use quantize::cost::CostTable;
use quantize::files::write_whole;
use quantize::report::layers::shortened;
use quantize::report::{grouped, json, table};
use quantize::target::Target as Chip;
use serde::Serialize;
use std::path::PathBuf;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    /// Picture: what every operator takes beside the prediction
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    board: String,
    /// "cycles" of a board, "instructions" of an emulated one.
    unit: &'static str,
    layers: Vec<Layer>,
    total: u64,
    /// Milliseconds at the board's clock; an emulated board has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    milliseconds: Option<f64>,
}

#[derive(Serialize)]
struct Layer {
    name: String,
    op: &'static str,
    macs: u64,
    taken: u64,
    /// Instructions, none for kernels that were not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    predicted: Option<u64>,
}

/// The verb.
pub fn run(args: &Args) -> Result<(), ToolError> {
    let file = read_model(&args.target.model)?;
    let model = Model::parse(file.as_bytes()).map_err(|e| ToolError(e.to_string()))?;
    let (board, is_emulated) = Board::find(&args.target.board)?;
    let per_tick = if is_emulated { board.instructions_per_tick.unwrap_or(1.0) } else { 1.0 };
    let mut session = Session::open(&args.target, file.as_bytes(), is_emulated)?;
    let len = |port: &pith::format::tensor::Port| model.tensor(port.tensor).len as usize;
    let inputs: Vec<Vec<i8>> = model.inputs().iter().map(|port| vec![0; len(port)]).collect();
    let said = |e: super::client::LinkError| ToolError(e.to_string());
    let (_, ran) = session.client.run(&inputs, &[]).map_err(said)?;
    let ticks = session.client.layers(&ran).map_err(said)?;
    let costs = CostTable::of(Chip::find(&board.core).map_err(|e| ToolError(e.to_string()))?.isa);
    let taken = |ticks: u64| (ticks as f64 * per_tick).round() as u64;
    let layer = |((head, op), &ticks): ((pith::format::op::Head, pith::format::op::Op<'_>), &u32)| Layer {
        name: model.op_name(&head).into(),
        op: op.name(),
        macs: op.macs(),
        taken: taken(u64::from(ticks)),
        predicted: costs.and_then(|costs| costs.instructions(&model, &op)).map(|n| n.round() as u64),
    };
    let report = Report {
        board: session.identity.board.clone(),
        unit: if is_emulated { "instructions" } else { "cycles" },
        layers: model.ops().zip(&ticks).map(layer).collect(),
        total: taken(ran.ticks),
        milliseconds: (!is_emulated).then(|| ran.ticks as f64 / f64::from(session.identity.tick_hz) * 1e3),
    };
    if let Some(path) = &args.svg {
        write_whole(path, svg(&report).as_bytes()).map_err(|e| ToolError(e.to_string()))?;
    }
    print!("{}", if args.json { json(&report) } else { text(&report) });
    Ok(())
}

/// A bar for what was taken and one for the prediction, operator by operator.
fn svg(report: &Report) -> String {
    let bar = |series, n: u64| Bar { series, value: n.max(1) as f64, text: grouped(n) };
    let group = |(i, layer): (usize, &Layer)| {
        let end: String = layer.name.rsplit(['/', ';']).next().unwrap_or("").chars().take(20).collect();
        let predicted = layer.predicted.map(|n| bar(1, n));
        Group {
            label: format!("{i} {} {end}", layer.op),
            bars: [bar(0, layer.taken)].into_iter().chain(predicted).collect(),
        }
    };
    let groups = report.layers.iter().enumerate().map(group).collect();
    let time = report.milliseconds.map_or(String::new(), |ms| format!(", {ms:.2} ms"));
    Chart {
        title: format!("A run on {}, operator by operator", report.board),
        subtitle: format!("{} {} in all{time}", grouped(report.total), report.unit),
        series: vec![(report.unit.into(), "#2563eb"), ("predicted instructions".into(), "#d1d5db")],
        columns: 1,
        is_linear: true,
        panels: vec![Panel { title: String::new(), groups }],
    }
    .svg()
}

fn text(report: &Report) -> String {
    let row = |layer: &Layer| {
        let ratio = if layer.macs > 0 { format!("{:.2}", layer.taken as f64 / layer.macs as f64) } else { "-".into() };
        let predicted = layer.predicted.map_or("-".into(), grouped);
        vec![shortened(&layer.name, 44), layer.op.into(), grouped(layer.macs), grouped(layer.taken), predicted, ratio]
    };
    let rows: Vec<Vec<String>> = report.layers.iter().map(row).collect();
    let time = report.milliseconds.map_or(String::new(), |ms| format!(", {ms:.2} ms"));
    format!(
        "{}\n{}: {} {} a run{time}\n",
        table(&["layer", "op", "MACs", report.unit, "predicted instructions", "per MAC"], &rows),
        report.board,
        grouped(report.total),
        report.unit
    )
}
