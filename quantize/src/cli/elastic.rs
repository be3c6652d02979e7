//! `quantize elastic`: a network and labelled data → a supernet, from which `search` and `build` take sub-networks.

use super::Failure;
use super::input::{Ports, PreprocessArgs};
use super::output::{Progress, check_folder};
use super::train::teacher;
use super::training::{TrainArgs, TrainProgress, affine, data, load_test, stop};
use crate::data::Set;
use crate::elastic::{ElasticOptions, Form, Supernet, Symmetry, Trained, train};
use crate::graph::{Graph, simplify, trainable};
use crate::onnx;
use crate::recipe::Recipe;
use crate::report::{json, table};
use crate::scheme::Granularity;
use crate::train::{Data, Device, Hooks, Status, Teacher, accuracy, evaluate};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Trained float network
    model: PathBuf,
    /// Training set: .npz with x, and y unless the original network is the teacher
    #[arg(long)]
    data: PathBuf,
    /// Labelled set: judges every uniform setting
    #[arg(long)]
    test: Option<PathBuf>,
    /// Network that teaches (--distill) [default: the float network]
    #[arg(long, value_name = "ONNX")]
    teacher: Option<PathBuf>,
    /// TOML file with hyper-parameters; options on the command line win
    #[arg(long)]
    recipe: Option<PathBuf>,
    #[command(flatten)]
    elastic: ElasticArgs,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    #[command(flatten)]
    train: TrainArgs,
    /// Print JSON: accuracy_before, accuracy_float, loss, coded_bits, uniform (bits, granularity, symmetric, activation_bits, accuracy), seconds
    #[arg(long)]
    json: bool,
    /// Where the supernet goes
    #[arg(short, long)]
    output: PathBuf,
}

/// What a supernet may be.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Elastic quantization")]
pub(super) struct ElasticArgs {
    /// Widths of weights [default: 8,6,5,4,3,2]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(2..=8))]
    bits: Option<Vec<u8>>,
    /// Widths of what layers read; 8 alone is calibrated when a sub-network is built, not trained [default: 8]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(2..=8))]
    activation_bits: Option<Vec<u8>>,
    /// What a step covers [default: channel,tensor]
    #[arg(long, value_delimiter = ',', value_parser = ["channel", "tensor"])]
    granularity: Option<Vec<String>>,
    /// Whether levels lie evenly about zero [default: symmetric,asymmetric]
    #[arg(long, value_delimiter = ',', value_parser = ["symmetric", "asymmetric"])]
    symmetry: Option<Vec<String>>,
    /// Least width of the first and the last layer [default: 8]
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=8))]
    edge_bits: Option<u8>,
    /// Mean bits that a weight of the narrowest sub-network may take in a file that is coded (`build --compress`); training finds where it can do with fewer.
    /// Leave it room: --bits 4 for 2 coded bits
    #[arg(long, value_name = "BITS")]
    coded_bits: Option<f32>,
}

impl ElasticArgs {
    fn over(&self, base: &ElasticOptions) -> ElasticOptions {
        let granularity = |name: &String| if name == "tensor" { Granularity::Tensor } else { Granularity::Channel };
        let symmetry = |name: &String| if name == "symmetric" { Symmetry::Symmetric } else { Symmetry::Asymmetric };
        ElasticOptions {
            bits: self.bits.clone().unwrap_or_else(|| base.bits.clone()),
            activation_bits: self.activation_bits.clone().unwrap_or_else(|| base.activation_bits.clone()),
            granularity: self
                .granularity
                .as_ref()
                .map_or_else(|| base.granularity.clone(), |all| all.iter().map(granularity).collect()),
            symmetry: self
                .symmetry
                .as_ref()
                .map_or_else(|| base.symmetry.clone(), |all| all.iter().map(symmetry).collect()),
            edge_bits: self.edge_bits.unwrap_or(base.edge_bits),
            coded_bits: self.coded_bits.or(base.coded_bits),
            ..base.clone()
        }
    }
}

/// `--json`; the keys are stable.
#[derive(Serialize)]
struct Report {
    accuracy_before: Option<f64>,
    /// Of the trained weights as floats.
    accuracy_float: Option<f64>,
    loss: f32,
    /// Where they are bounded.
    coded_bits: Option<f32>,
    uniform: Vec<Uniform>,
    seconds: f64,
}

#[derive(Clone, Serialize)]
struct Uniform {
    #[serde(flatten)]
    form: Form,
    /// Where activations are elastic.
    activation_bits: Option<u8>,
    accuracy: f64,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    check_folder(&args.output)?;
    let started = Instant::now();
    let recipe = args.recipe.as_ref().map_or(Ok(Recipe::default()), |path| Recipe::read(path))?;
    let preprocess = args.preprocess.over(&recipe.preprocess);
    let mut options = args.elastic.over(&recipe.elastic);
    options.train = args.train.over(&options.train);
    let graph = simplify(onnx::import(&args.model)?);
    let ports = Ports::of_graph(&graph);
    let set = ports.load(&args.data, preprocess.layout)?;
    let test = load_test(args.test.as_deref(), &ports, preprocess.layout)?;
    let affine = affine(&preprocess, &ports.inputs[0].shape)?;
    let device = &args.train.device()?;
    let judge = |graph: &Graph| match &test {
        Some(test) => accuracy(graph, &data(test, &affine), device),
        None => Ok(None),
    };
    let accuracy_before = judge(&graph)?;
    let teacher = match &args.teacher {
        Some(path) => teacher(path, device)?,
        None => Teacher::new(&trainable(graph.clone()), device)?,
    };
    let trained = trained(&teacher, &graph, &options, &args.train, args.train.checkpoint()?, &data(&set, &affine))?;
    // What took long is kept before it is judged.
    trained.supernet.write(&args.output)?;
    let uniform = match &test {
        Some(test) => uniform(&trained.supernet, &set, test, &affine, device)?,
        None => Vec::new(),
    };
    let accuracy_float = match &test {
        Some(test) => {
            let net = trained.supernet.net(device)?;
            let (theta, moments) = trained.supernet.recalibrated(&net, None, &data(&set, &affine));
            evaluate(&net, &theta, &moments, &data(test, &affine))
        }
        None => None,
    };
    let seconds = started.elapsed().as_secs_f64();
    let report = Report {
        accuracy_before,
        accuracy_float,
        loss: trained.loss,
        coded_bits: trained.coded_bits,
        uniform,
        seconds,
    };
    let text = if args.json { json(&report) } else { text(&report, args) };
    Ok(out.write_all(text.as_bytes())?)
}

/// A supernet of a network for inference, taught by another where the data have no labels, or a recipe asks for that.
pub(super) fn trained(
    teacher: &Teacher,
    graph: &Graph,
    options: &ElasticOptions,
    args: &TrainArgs,
    checkpoint: Option<PathBuf>,
    data: &Data<'_>,
) -> Result<Trained, Failure> {
    let device = &args.device()?;
    let supernet = Supernet::new(graph, data, options)?;
    let resume = checkpoint.clone().filter(|p| args.resume && p.exists());
    let progress = TrainProgress::new();
    let report = |status: &Status| progress.report("elastic", status);
    let mut hooks = Hooks { step: &mut |_| (), report: &report, stop: stop(), checkpoint };
    let done = train(supernet, data, Some(teacher), device, &mut hooks, resume.as_deref());
    progress.finish();
    let done = done?;
    if let (Some(bits), Some(wanted)) = (done.coded_bits, options.coded_bits)
        && bits > wanted + CODED_BITS_MISSED
    {
        eprintln!("elastic: {bits:.2} coded bits a weight, {wanted} wanted: it takes more epochs, or a higher rate");
    }
    Ok(done)
}

/// Coded bits a weight beyond those wanted that are worth a line.
const CODED_BITS_MISSED: f32 = 0.05;

/// Every form as that of all layers, with the widest activations, and with those as wide as the weights; judged as simulated, until the user has seen enough.
fn uniform(
    supernet: &Supernet,
    set: &Set,
    test: &Set,
    affine: &Option<(Vec<f32>, Vec<f32>)>,
    device: &Device,
) -> Result<Vec<Uniform>, Failure> {
    let net = supernet.net(device)?;
    let (mut all, progress) = (Vec::new(), Progress::new());
    let own: Vec<u8> = supernet.options.activation_forms(false, true).iter().map(|f| f.bits).collect();
    let narrower = |form: &Form| own.contains(&form.bits) && own.first() != Some(&form.bits);
    let settings: Vec<(Form, Option<u8>)> = supernet
        .options
        .forms(false)
        .into_iter()
        .flat_map(|form| [Some((form, own.first().copied())), narrower(&form).then_some((form, Some(form.bits)))])
        .flatten()
        .collect();
    for &(form, activation_bits) in &settings {
        if stop().load(Ordering::Relaxed) {
            break;
        }
        let (theta, moments) =
            supernet.recalibrated(&net, Some(&supernet.uniform(form, activation_bits)), &data(set, affine));
        if let Some(accuracy) = evaluate(&net, &theta, &moments, &data(test, affine)) {
            all.push(Uniform { form, activation_bits, accuracy });
        }
        progress.advance("judging", settings.len());
    }
    progress.finish();
    Ok(all)
}

fn text(report: &Report, args: &Args) -> String {
    let share = |a: Option<f64>| a.map_or("not judged".into(), |a| format!("{:.2} %", 100.0 * a));
    let setting = |u: &Uniform| match u.activation_bits {
        Some(bits) => format!("{}, activations {bits}", u.form),
        None => u.form.to_string(),
    };
    let rows: Vec<Vec<String>> =
        report.uniform.iter().map(|u| vec![setting(u), format!("{:.2} %", 100.0 * u.accuracy)]).collect();
    let settings = match rows.is_empty() {
        true => String::new(),
        false => {
            format!("{}\n", table(&["all layers but the first and the last, which may keep more bits", "right"], &rows))
        }
    };
    let coded =
        report.coded_bits.map_or(String::new(), |bits| format!("coded    {bits:.2} bits a weight, narrowest\n"));
    format!(
        "{settings}{coded}loss     {:.4} over the last epoch, of the widest\naccuracy {} before, {} of the trained weights as floats\nwrote    {} in {:.1} s\n",
        report.loss,
        share(report.accuracy_before),
        share(report.accuracy_float),
        args.output.display(),
        report.seconds
    )
}
