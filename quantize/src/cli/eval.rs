//! `quantize eval`: a model judged on a set.

use super::Failure;
use super::input::{Ports, PreprocessArgs, is_packed, noted_preprocess, parse_packed, read_onnx, read_packed, spaced};
use super::output::Progress;
use super::precisions::refuse;
use crate::build::Sqnr;
use crate::data::{Set, Slot, Targets};
use crate::execute::Runner;
use crate::graph::{Graph, TensorId, eval};
use crate::onnx::Oracle;
use crate::recipe::Preprocess;
use crate::report::{json, table};
use ndarray::{ArrayD, Axis};
use pith::Model;
use rayon::prelude::*;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// .onnx or .pith
    model: PathBuf,
    /// Bits of the precision that is meant, of a .pith with several [default: the finest]
    #[arg(long, value_name = "BITS")]
    precision: Option<u8>,
    /// Set with x, and y (labels or targets) or golden outputs out0, out1, ...
    #[arg(long)]
    data: PathBuf,
    /// Float network to compare outputs with
    #[arg(long)]
    against: Option<PathBuf>,
    /// Samples, evenly spaced over the set [default: all]
    #[arg(long)]
    samples: Option<usize>,
    /// The error of every layer of a .pith; needs --against
    #[arg(long, requires = "against")]
    layers: bool,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    /// Print JSON: metric, value, n, outputs
    #[arg(long)]
    json: bool,
}

/// `--json`; the keys are stable.
#[derive(Serialize)]
struct Report {
    /// `accuracy` (0 to 1) with labels, else `sqnr_db` (of the worst output, against targets or --against); null where nothing says what
    /// is right.
    metric: Option<&'static str>,
    value: Option<f64>,
    n: usize,
    outputs: Vec<Output>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<Vec<LayerError>>,
}

#[derive(Serialize)]
struct Output {
    name: String,
    sqnr_db: Option<f64>,
    max_abs_error: Option<f64>,
}

#[derive(Serialize)]
struct LayerError {
    name: String,
    op: String,
    sqnr_db: Option<f64>,
    max_abs_error: Option<f64>,
}

/// All outputs of one sample.
type Outputs = Vec<ArrayD<f32>>;

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let progress = Progress::new();
    let file = if is_packed(&args.model) { Some(read_packed(&args.model)?) } else { None };
    let report = match &file {
        Some(file) => {
            let model = parse_packed(&args.model, file, args.precision)?;
            let ports = Ports::of_model(&model);
            // A packed model takes raw data; what it noted is only needed to feed the float network alike.
            let preprocess = args.preprocess.over(&noted_preprocess(&model));
            let set = load(args, &ports, &preprocess)?;
            let step = || progress.advance("evaluating", set.samples.len());
            let got = all(&set, || Runner::new(&model), |runner, sample| Ok(runner.run(sample)), &step)?;
            let reference = reference(args, &preprocess, &set, &ports)?;
            let layers = match (&args.against, args.layers) {
                (Some(path), true) => Some(layer_errors(&model, &read_onnx(path, &preprocess)?, &set)),
                _ => None,
            };
            judge(&set, &ports.outputs, &got, reference.as_deref(), layers)
        }
        None => {
            refuse(args.precision)?;
            if args.layers {
                return Err(Failure::new(
                    "--layers compares a .pith with --against MODEL.onnx; the model given is an ONNX file",
                ));
            }
            let preprocess = args.preprocess.over(&Preprocess::default());
            let graph = read_onnx(&args.model, &preprocess)?;
            let ports = Ports::of_graph(&graph);
            let set = load(args, &ports, &preprocess)?;
            let step = || progress.advance("evaluating", set.samples.len());
            let got = all(&set, || (), |(), sample| Ok(eval::run(&graph, sample)?), &step)?;
            let reference = reference(args, &preprocess, &set, &ports)?;
            judge(&set, &ports.outputs, &got, reference.as_deref(), None)
        }
    };
    progress.finish();
    let text = if args.json { json(&report) } else { text(&report) };
    Ok(out.write_all(text.as_bytes())?)
}

fn load(args: &Args, ports: &Ports, preprocess: &Preprocess) -> Result<Set, Failure> {
    let mut set = ports.load(&args.data, preprocess.layout)?;
    let Some(count) = args.samples else { return Ok(set) };
    let keep: Vec<usize> = spaced((0..set.samples.len()).collect(), count);
    set.targets = set.targets.map(|targets| match targets {
        Targets::Classes(y) => Targets::Classes(spaced(y, count)),
        Targets::Values(v) => Targets::Values(v.iter().map(|a| a.select(Axis(0), &keep)).collect()),
    });
    set.samples = spaced(set.samples, count);
    Ok(set)
}

/// Outputs of every sample, in parallel; `start` makes what one thread keeps.
fn all<S>(
    set: &Set,
    start: impl Fn() -> S + Sync + Send,
    run: impl Fn(&mut S, &[ArrayD<f32>]) -> Result<Outputs, Failure> + Sync + Send,
    step: &(dyn Fn() + Sync),
) -> Result<Vec<Outputs>, Failure> {
    let one = |state: &mut S, sample: &Vec<ArrayD<f32>>| {
        step();
        run(state, sample)
    };
    set.samples.par_iter().map_init(start, one).collect()
}

/// Share of samples whose largest value of the first output is at the label; none without labels.
pub(super) fn accuracy_of<S>(
    set: &Set,
    start: impl Fn() -> S + Sync + Send,
    run: impl Fn(&mut S, &[ArrayD<f32>]) -> Outputs + Sync + Send,
    step: &(dyn Fn() + Sync),
) -> Option<f64> {
    let Some(Targets::Classes(labels)) = &set.targets else { return None };
    let outputs = all(set, start, |state, sample| Ok(run(state, sample)), step).ok()?;
    Some(accuracy(&outputs, labels))
}

fn accuracy(outputs: &[Outputs], labels: &[usize]) -> f64 {
    let right = outputs.iter().zip(labels).filter(|(o, label)| o.first().map(argmax) == Some(**label)).count();
    right as f64 / labels.len().max(1) as f64
}

fn argmax(values: &ArrayD<f32>) -> usize {
    values.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &v)| if v > best.1 { (i, v) } else { best }).0
}

/// The float network's outputs, in ONNX axes.
fn reference(args: &Args, preprocess: &Preprocess, set: &Set, ports: &Ports) -> Result<Option<Vec<Outputs>>, Failure> {
    let Some(path) = &args.against else { return Ok(None) };
    let oracle = Oracle::load(path)?;
    let run = |(): &mut (), sample: &[ArrayD<f32>]| {
        let mut cooked = Vec::new();
        for (i, (slot, x)) in ports.inputs.iter().zip(sample).enumerate() {
            let mut x = x.clone();
            let channels = slot.shape.last().copied().unwrap_or(1).max(1);
            if let (0, Some((scale, bias))) = (i, preprocess.affine(channels)?) {
                x.iter_mut().enumerate().for_each(|(j, v)| *v = *v * scale[j % channels] + bias[j % channels]);
            }
            cooked.push(slot.to_onnx(&x));
        }
        Ok(oracle.run(&cooked)?)
    };
    Ok(Some(all(set, || (), run, &|| ())?))
}

fn judge(
    set: &Set,
    slots: &[Slot],
    got: &[Outputs],
    reference: Option<&[Outputs]>,
    layers: Option<Vec<LayerError>>,
) -> Report {
    let wanted = match &set.targets {
        Some(Targets::Values(values)) => Some(values),
        _ => None,
    };
    let error = |k: usize| -> Option<Sqnr> {
        let ours = got.iter().filter_map(|o| o.get(k)).map(|y| slots[k].to_onnx(y));
        match (reference, wanted) {
            (Some(reference), _) => {
                Some(ours.zip(reference).fold(Sqnr::default(), |sum, (y, r)| r.get(k).map_or(sum, |r| sum.and(&y, r))))
            }
            (None, Some(values)) => {
                let values = values.get(k)?;
                let pairs = ours.zip(values.axis_iter(Axis(0)));
                Some(pairs.fold(Sqnr::default(), |sum, (y, v)| sum.and(&y, &v.to_owned())))
            }
            _ => None,
        }
    };
    let errors: Vec<Option<Sqnr>> = (0..slots.len()).map(error).collect();
    let worst = errors.iter().flatten().map(Sqnr::db).reduce(f64::min);
    let (metric, value) = match &set.targets {
        Some(Targets::Classes(labels)) => (Some("accuracy"), Some(accuracy(got, labels))),
        _ => (worst.map(|_| "sqnr_db"), worst),
    };
    let outputs = slots.iter().zip(&errors).map(|(slot, error)| Output {
        name: slot.name.clone(),
        sqnr_db: error.map(|e| e.db()),
        max_abs_error: error.map(|e| e.max_abs_error),
    });
    Report { metric, value, n: set.samples.len(), outputs: outputs.collect(), layers }
}

/// Sums over one channel: expected squared, product, got squared; and the largest difference.
#[derive(Clone, Copy, Default)]
struct Channel {
    ee: f64,
    ge: f64,
    gg: f64,
    max_abs_error: f64,
}

/// Every operator's output against the float node of the same name, over all samples. Where the build equalized channels, each channel
/// is compared up to its factor (the one with the least squared error).
fn layer_errors(model: &Model<'_>, graph: &Graph, set: &Set) -> Vec<LayerError> {
    let ops: Vec<(String, &'static str, u16)> =
        model.ops().map(|(head, op)| (model.op_name(&head).to_string(), op.name(), op.output())).collect();
    // An operator that became several records is compared after the last of them.
    let node_of = |i: usize| -> Option<TensorId> {
        let (name, ..) = &ops[i];
        let is_last = !ops[i + 1..].iter().any(|(other, ..)| other == name);
        graph.nodes.iter().find(|n| n.name == *name && is_last).map(|n| n.output)
    };
    let nodes: Vec<Option<TensorId>> = (0..ops.len()).map(node_of).collect();
    let equalized = model.metadata().lines().any(|l| l == "quantize.equalized=true");
    let one = |runner: &mut Runner<'_>, sample: &Vec<ArrayD<f32>>| {
        let mut truth: Vec<Option<ArrayD<f32>>> = vec![None; graph.tensors.len()];
        let _ = eval::run_visiting(graph, sample, &mut |id, values| truth[id.0] = Some(values.clone()));
        let mut errors: Vec<Vec<Channel>> = vec![Vec::new(); ops.len()];
        let mut at = 0;
        runner.run_visiting(sample, &mut |id, q| {
            if let Some(expected) = nodes[at].and_then(|t| truth[t.0].as_ref()).filter(|t| t.len() == q.len()) {
                let tensor = model.tensor(id);
                let port = pith::format::tensor::Port {
                    scale: tensor.scale,
                    zero_point: tensor.zero_point,
                    ..Default::default()
                };
                let channels = expected.shape().last().copied().unwrap_or(1).max(1);
                errors[at] = vec![Channel::default(); channels];
                for (i, (&q, &e)) in q.iter().zip(expected).enumerate() {
                    let (g, e) = (port.dequantize(q) as f64, e as f64);
                    let c = &mut errors[at][i % channels];
                    (c.ee, c.ge, c.gg) = (c.ee + e * e, c.ge + g * e, c.gg + g * g);
                    c.max_abs_error = c.max_abs_error.max((g - e).abs());
                }
            }
            at += 1;
        });
        errors
    };
    let per_sample: Vec<Vec<Vec<Channel>>> = set.samples.par_iter().map_init(|| Runner::new(model), one).collect();
    let sum = |i: usize| {
        let mut total = Sqnr::default();
        for c in 0..per_sample.first().map_or(0, |errors| errors[i].len()) {
            let sums = per_sample.iter().fold(Channel::default(), |sum, errors| {
                let next = errors[i][c];
                let max_abs_error = sum.max_abs_error.max(next.max_abs_error);
                Channel { ee: sum.ee + next.ee, ge: sum.ge + next.ge, gg: sum.gg + next.gg, max_abs_error }
            });
            let factor = if equalized && sums.gg > 0.0 { sums.ge / sums.gg } else { 1.0 };
            total.signal += sums.ee;
            total.noise += (sums.ee - 2.0 * factor * sums.ge + factor * factor * sums.gg).max(0.0);
            total.max_abs_error = total.max_abs_error.max(sums.max_abs_error);
        }
        total
    };
    ops.iter()
        .enumerate()
        .map(|(i, (name, op, _))| {
            let error = Some(sum(i)).filter(|e| e.signal > 0.0);
            LayerError {
                name: name.clone(),
                op: (*op).into(),
                sqnr_db: error.map(|e| e.db()),
                max_abs_error: error.filter(|_| !equalized).map(|e| e.max_abs_error),
            }
        })
        .collect()
}

fn text(report: &Report) -> String {
    let number = |v: Option<f64>, digits: usize| v.map_or("-".into(), |v| format!("{v:.digits$}"));
    let mut text = String::new();
    if let Some(layers) = &report.layers {
        let rows: Vec<Vec<String>> = layers
            .iter()
            .map(|l| vec![l.name.clone(), l.op.clone(), number(l.sqnr_db, 1), number(l.max_abs_error, 5)])
            .collect();
        text.push_str(&table(&["layer", "op", "SQNR dB", "max error"], &rows));
        text.push('\n');
    }
    if report.outputs.iter().any(|o| o.sqnr_db.is_some()) {
        let rows: Vec<Vec<String>> = report
            .outputs
            .iter()
            .map(|o| vec![o.name.clone(), number(o.sqnr_db, 1), number(o.max_abs_error, 6)])
            .collect();
        text.push_str(&table(&["output", "SQNR dB", "max error"], &rows));
        text.push('\n');
    }
    match (report.metric, report.value) {
        (Some("accuracy"), Some(v)) => text.push_str(&format!("accuracy {:.2} % on {} samples\n", 100.0 * v, report.n)),
        (Some(metric), Some(v)) => text.push_str(&format!("{metric} {v:.4} on {} samples\n", report.n)),
        _ => text.push_str(&format!(
            "{} samples; without labels, targets or --against there is nothing to judge by\n",
            report.n
        )),
    }
    text
}
