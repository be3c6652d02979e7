//! `quantize inspect`: what a model consists of.

use super::Failure;
use super::input::{is_packed, parse_packed, read_packed};
use super::output::{check_folder, write_whole};
use super::precisions::{refuse, table_of, text};
use crate::graph::simplify;
use crate::onnx;
use crate::report::code_svg::code_svg;
use crate::report::json;
use crate::report::layers::Summary;
use crate::report::plan_svg::plan_svg;
use std::io::Write;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// .onnx or .pith
    model: PathBuf,
    /// Bits of the precision that is meant, of a .pith with several [default: the finest]
    #[arg(long, value_name = "BITS")]
    precision: Option<u8>,
    /// Print JSON: file_bytes, weight_bytes (weights as stored), coded_bytes (with biases and tables), arena_bytes, macs, layers, ...
    #[arg(long)]
    json: bool,
    /// Draw the memory plan of a .pith
    #[arg(long)]
    plan_svg: Option<PathBuf>,
    /// Draw the weights of a .pith, layer by layer: raw against coded
    #[arg(long)]
    weights_svg: Option<PathBuf>,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let (summary, metadata) = if is_packed(&args.model) {
        let file = read_packed(&args.model)?;
        let model = parse_packed(&args.model, &file, args.precision)?;
        let summary = Summary::of_model(&model);
        let title = args.model.file_name().map_or("model".into(), |n| n.to_string_lossy());
        if let Some(path) = &args.plan_svg {
            check_folder(path)?;
            write_whole(path, plan_svg(&model, &title).as_bytes())?;
        }
        if let Some(path) = &args.weights_svg {
            check_folder(path)?;
            write_whole(path, code_svg(&summary, &title).as_bytes())?;
        }
        let precisions = table_of(&file, &args.model)?;
        let table = if precisions.len() > 1 { format!("{}\n", text(&precisions)) } else { String::new() };
        (summary, table + model.metadata())
    } else {
        refuse(args.precision)?;
        if args.plan_svg.is_some() {
            return Err(Failure::new("--plan-svg draws a .pith model; an ONNX file has no memory plan"));
        }
        if args.weights_svg.is_some() {
            return Err(Failure::new("--weights-svg draws a .pith model; an ONNX file has no coded weights"));
        }
        let graph = simplify(onnx::import(&args.model)?);
        let bytes = std::fs::metadata(&args.model)?.len();
        (Summary::of_graph(&graph, bytes), String::new())
    };
    let text = match args.json {
        true => json(&summary),
        false if metadata.is_empty() => summary.text(),
        false => format!("{}\n{metadata}", summary.text()),
    };
    Ok(out.write_all(text.as_bytes())?)
}
