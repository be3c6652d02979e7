//! `quantize run`: inputs from a file, outputs to a file.

use super::Failure;
use super::input::{Ports, is_packed, noted_preprocess, parse_packed, read_onnx, read_packed};
use super::output::{check_folder, write_whole};
use super::precisions::refuse;
use crate::execute::{Runner, shape_of};
use crate::graph::eval;
use crate::npy;
use crate::recipe::Preprocess;
use ndarray::ArrayD;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// .pith or .onnx
    model: PathBuf,
    /// Bits of the precision that is meant, of a .pith with several [default: the finest]
    #[arg(long, value_name = "BITS")]
    precision: Option<u8>,
    /// Samples: .npz with x, or .npy; first axis = sample
    #[arg(long)]
    input: PathBuf,
    /// .npy for one output, .npz for several
    #[arg(long)]
    output: PathBuf,
    /// Int8 in and out in the model's own axes, instead of real numbers
    #[arg(long)]
    raw: bool,
    /// Threads for large operators of a .pith model; the outputs are the same
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
}

/// Elements of one output over all samples.
struct Column {
    name: String,
    descr: &'static str,
    shape: Vec<usize>,
    data: Vec<u8>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    check_folder(&args.output)?;
    let columns = if is_packed(&args.model) {
        let file = read_packed(&args.model)?;
        let model = parse_packed(&args.model, &file, args.precision)?;
        let runner = Runner::new(&model).with_threads(args.threads.into())?;
        if args.raw { run_raw(&model, runner, &args.input)? } else { run_real(&model, runner, &args.input)? }
    } else if args.precision.is_some() {
        return refuse(args.precision);
    } else if args.raw {
        return Err(Failure::new("--raw needs a .pith model; an ONNX file has no int8 inputs"));
    } else {
        let graph = read_onnx(&args.model, &Preprocess::default())?;
        let ports = Ports::of_graph(&graph);
        let set = ports.load(&args.input, None)?;
        let outputs: Result<Vec<_>, _> = set.samples.iter().map(|sample| eval::run(&graph, sample)).collect();
        real_columns(&ports, &outputs?)
    };
    write(&args.output, &columns)
}

fn run_real(model: &pith::Model<'_>, mut runner: Runner<'_>, input: &Path) -> Result<Vec<Column>, Failure> {
    let ports = Ports::of_model(model);
    let set = ports.load(input, noted_preprocess(model).layout)?;
    let outputs: Vec<_> = set.samples.iter().map(|sample| runner.run(sample)).collect();
    Ok(real_columns(&ports, &outputs))
}

fn real_columns(ports: &Ports, outputs: &[Vec<ArrayD<f32>>]) -> Vec<Column> {
    let column = |(k, slot): (usize, &crate::data::Slot)| {
        let values = outputs.iter().flat_map(|o| slot.to_onnx(&o[k]).into_iter().flat_map(f32::to_le_bytes));
        let shape = [&[outputs.len()], &slot.onnx_shape()[1..]].concat();
        Column { name: slot.name.clone(), descr: "<f4", shape, data: values.collect() }
    };
    ports.outputs.iter().enumerate().map(column).collect()
}

fn run_raw(model: &pith::Model<'_>, mut runner: Runner<'_>, input: &Path) -> Result<Vec<Column>, Failure> {
    let file = input.display().to_string();
    let arrays = npy::read(input).map_err(|e| Failure::new(format!("{file}: {e}")))?;
    let mut inputs = Vec::new();
    for (i, port) in model.inputs().iter().enumerate() {
        let shape = shape_of(model, port);
        let named = if i == 0 { "x".into() } else { format!("in{i}") };
        let (_, array) = arrays
            .iter()
            .find(|(name, _)| *name == named || *name == format!("in{i}") || name == model.port_name(port))
            .ok_or_else(|| Failure::new(format!("{file}: no array '{named}'")))?;
        let per_sample: usize = shape.iter().product();
        if array.kind != "i1" || array.values.len() % per_sample != 0 || array.values.is_empty() {
            let given = array.values.shape();
            return Err(Failure::new(format!(
                "{file}: --raw wants int8 of shape [n, {}], the array has dtype {} and shape {given:?}",
                crate::report::shape(&shape[1..]),
                array.kind
            )));
        }
        let flat: Vec<i8> = array.values.iter().map(|&v| v as i8).collect();
        inputs.push(flat.chunks(per_sample).map(<[i8]>::to_vec).collect::<Vec<_>>());
    }
    let n = inputs.iter().map(Vec::len).min().unwrap_or(0);
    let run = |i: usize| runner.run_raw(&inputs.iter().map(|samples| samples[i].clone()).collect::<Vec<_>>());
    let outputs: Vec<Vec<Vec<i8>>> = (0..n).map(run).collect();
    let column = |(k, port): (usize, &pith::format::tensor::Port)| Column {
        name: model.port_name(port).into(),
        descr: "|i1",
        shape: [&[n], &shape_of(model, port)[1..]].concat(),
        data: outputs.iter().flat_map(|o| o[k].iter().map(|&q| q as u8)).collect(),
    };
    Ok(model.outputs().iter().enumerate().map(column).collect())
}

fn write(path: &Path, columns: &[Column]) -> Result<(), Failure> {
    let encoded = |c: &Column| npy::encode(c.descr, &c.shape, &c.data);
    match (columns, path.extension().is_some_and(|e| e == "npz")) {
        ([one], false) => write_whole(path, &encoded(one)),
        (many, true) => {
            // Names may hold characters that make folders of a zip entry.
            let name = |c: &Column| c.name.replace(['/', ':', '\\'], "_");
            let files: Vec<_> = many.iter().map(|c| (name(c), encoded(c))).collect();
            let bytes = npy::encode_archive(&files)?;
            write_whole(path, &bytes)
        }
        (many, false) => Err(Failure::new(format!("the model has {} outputs; name an .npz file for them", many.len()))),
    }
}
