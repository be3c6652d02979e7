//! `quantize build`: ONNX and calibration data → model file.

use super::Failure;
use super::elastic::trained;
use super::eval::accuracy_of;
use super::input::{Ports, PreprocessArgs, is_supernet, number};
use super::output::{Progress, check_folder, write_whole};
use super::precisions;
use super::prune::{PruneArgs, prune_graph};
use super::search::{BudgetArgs, Search, calibration};
use super::training::{TrainArgs, affine, data, load_test, stop};
use crate::build::{BuildOptions, Built, Prepared, finish, finish_given, prepare, prepare_given, prepend_preprocess};
use crate::calibrate::Observer;
use crate::data::Set;
use crate::elastic::Supernet;
use crate::execute::Runner;
use crate::files;
use crate::graph::{eval, simplify, trainable};
use crate::onnx;
use crate::pack::{ModelFile, PackOptions, Residency};
use crate::recipe::{Compress, Recipe};
use crate::report::layers::Summary;
use crate::report::{grouped, json};
use crate::scheme::Granularity;
use crate::search::{Budget, Fit, Source, fit_price, subnet};
use crate::target::Target;
use crate::train::{Device, Teacher, TrainOptions};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Trained float network, or a supernet (`quantize elastic`)
    model: PathBuf,
    /// Calibration set, for a supernet the training set: .npz with x, or .npy
    #[arg(long)]
    data: PathBuf,
    /// Labelled set for accuracy before and after
    #[arg(long)]
    test: Option<PathBuf>,
    /// TOML file with hyper-parameters, such as `quantize search` writes; options on the command line win
    #[arg(long, alias = "config")]
    recipe: Option<PathBuf>,
    /// Calibration samples, evenly spaced over the set
    #[arg(long)]
    samples: Option<usize>,
    /// Bits of a weight, 2 to 8
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=8))]
    weight_bits: Option<u8>,
    /// Bits of what layers read, 2 to 8: of a supernet those that it was trained with (`quantize elastic --activation-bits`), else calibrated. Nothing gets
    /// smaller or faster; it is for comparison with other hardware [default: 8, or a supernet's widest]
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=8))]
    activation_bits: Option<u8>,
    /// One file of several precisions, such as 8,4,2 bits of a weight: a device chooses when it starts, and the first bytes of the file are its coarser
    /// precisions alone. Of a supernet (`quantize elastic`) all of them are good and share most of their bytes; rounded without training they share
    /// little. Weights are coded [default: --compress 6]
    #[arg(long, value_name = "BITS", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(2..=8), conflicts_with = "weight_bits")]
    elastic: Vec<u8>,
    /// What one weight scale covers
    #[arg(long, value_parser = ["channel", "tensor"])]
    granularity: Option<String>,
    /// min-max, mse, or percentile=SHARE (0.0001 cuts one value in ten thousand) [default: the best of all]
    #[arg(long, value_parser = observer)]
    observer: Option<Observer>,
    /// Price of a bit a weight, as a share of the energy of a layer's outputs: weights are rounded to what --compress makes smaller. 0.003 loses little,
    /// 0.03 much [default: 0]
    #[arg(long, value_parser = number)]
    bit_price: Option<f64>,
    /// Subtract the mean error of weight rounding [default: if it helps]
    #[arg(long)]
    bias_correction: Option<bool>,
    /// Balance the channels of neighbouring layers [default: if it helps]
    #[arg(long)]
    equalize: Option<bool>,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    /// Keep channels that are constant or unread
    #[arg(long)]
    no_shrink: bool,
    /// Lay weights out for this target: portable, a core (cortex-m0, -m0plus, -m3, -m4, -m7, -m33, -m55, riscv32), a board (nucleo-l4r5zi, ...) whose
    /// memory then limits what is built, or a .toml file that describes one
    #[arg(long, default_value = "portable", value_parser = target)]
    target: Target,
    /// Keep weights dense where most of their blocks are zeros
    #[arg(long)]
    no_sparse: bool,
    /// Leave operator names out of the file
    #[arg(long)]
    strip_names: bool,
    #[command(flatten)]
    compress: CompressArgs,
    /// With a budget, every layer gets its own bits, as `quantize search` finds them
    #[command(flatten)]
    search: BudgetArgs,
    /// Train a supernet of the network (pruned first, with such a budget) on --data for so many epochs, and build of it: as `quantize elastic`, whose
    /// options a recipe has in [elastic]
    #[arg(long, value_name = "EPOCHS", help_heading = "Bits of layers")]
    elastic_epochs: Option<usize>,
    /// Print JSON: file_bytes, weight_bytes (weights as stored), coded_bytes (with biases and tables), arena_bytes, macs, layers, ...
    #[arg(long)]
    json: bool,
    /// Where the model goes
    #[arg(short, long)]
    output: PathBuf,
    /// With a budget, the network is pruned on --data first, as `quantize prune` does
    #[command(flatten)]
    prune: PruneArgs,
    #[command(flatten)]
    train: TrainArgs,
}

/// How weights are coded.
#[derive(Debug, clap::Args)]
struct CompressArgs {
    /// Code weights losslessly: 0 raw, 1 fast to 9 smallest [default: the recipe's, or 0]
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u8).range(0..=9))]
    compress: Option<u8>,
    /// Where coded weights are decoded to: ram (once at start, as much RAM as raw weights), flash (once, the application stores them), tile (at every
    /// run, 2 KB at a time, no memory but scratch). The outputs are the same [default: tile for a core, ram for portable]
    #[arg(long)]
    decode: Option<Residency>,
    /// Lower levels of the dearest layers until decoding takes so long by prediction: of a run with tile, at start else
    #[arg(long, value_name = "US", value_parser = number)]
    max_decode_us: Option<f64>,
    /// Clock for that, at an instruction a clock [default: the target's]
    #[arg(long, value_name = "MHZ", value_parser = number)]
    clock_mhz: Option<f64>,
}

impl CompressArgs {
    /// The recipe's values, overridden by what was given.
    fn over(&self, base: &Compress) -> Compress {
        Compress {
            level: self.compress.unwrap_or(base.level),
            decode: self.decode.or(base.decode),
            max_decode_us: self.max_decode_us.or(base.max_decode_us),
            clock_mhz: self.clock_mhz.or(base.clock_mhz),
        }
    }
}

/// SQNR in dB below which a model is hardly the network that it was made of.
const MOSTLY_NOISE: f64 = 5.0;

fn observer(text: &str) -> Result<Observer, String> {
    match text.split_once('=') {
        None if text == "min-max" => Ok(Observer::MinMax),
        None if text == "mse" => Ok(Observer::Mse),
        Some(("percentile", share)) => match share.parse::<f32>() {
            Ok(share) if (0.0..0.5).contains(&share) => Ok(Observer::Percentile(share)),
            _ => Err(format!("'{share}' is no share between 0 and 0.5")),
        },
        _ => Err("choose min-max, mse or percentile=SHARE".into()),
    }
}

pub(super) fn target(name: &str) -> Result<Target, String> {
    Target::find(name).map_err(|e| e.to_string())
}

/// `--json`.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    arena_lower_bound: usize,
    observer: Observer,
    bias_correction: bool,
    equalized: bool,
    sqnr_db: f64,
    shrunk: Vec<Shrunk>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    notes: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<Accuracy>,
}

#[derive(Serialize)]
struct Shrunk {
    layer: String,
    channels: usize,
}

/// Shares of right answers, 0 to 1.
#[derive(Clone, Copy, Serialize)]
struct Accuracy {
    float: f64,
    int8: f64,
    n: usize,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    check_folder(&args.output)?;
    let started = Instant::now();
    let recipe = recipe(args)?;
    let compress = match args.elastic.is_empty() {
        true => recipe.compress.options(&args.target)?,
        false => precisions::options(&args.elastic, &recipe.compress, &args.target)?,
    };
    let target = args.prune.target();
    args.search.check()?;
    if !args.elastic.is_empty() && args.search.budget().is_some() {
        return Err(Failure::new(
            "--elastic names the bits itself; leave out --max-flash, --max-ram, --max-cycles and --min-accuracy",
        ));
    }
    let is_supernet = is_supernet(&args.model);
    let searches = is_supernet && args.search.budget().is_some();
    let trains = target.is_some() || args.elastic_epochs.is_some();
    // A search keeps a checkpoint too.
    let is_unused = if searches { args.train.changes() } else { args.train.is_given() };
    if !trains && is_unused {
        return Err(Failure::new(
            "options for training need a budget to prune to (--macs, --bytes, ...) or --elastic-epochs; `quantize train` trains without",
        ));
    }
    if is_supernet && trains {
        return Err(Failure::new("a supernet is trained already; prune and train the network that it was made of"));
    }
    if (is_supernet || args.elastic_epochs.is_some())
        && (recipe.quantize.bit_price > 0.0 || recipe.quantize.equalize == Some(true))
    {
        return Err(Failure::new(
            "a supernet's weights are integers already: leave out --bit-price and --equalize true",
        ));
    }
    recipe.elastic.check()?;
    if args.elastic_epochs.is_some() {
        // Before anything is trained.
        recipe.elastic.check_activations(&recipe.quantize)?;
        let quantize = &recipe.quantize;
        if args.search.budget().is_none() && quantize.layers.is_empty() {
            let widths = if args.elastic.is_empty() { &vec![quantize.weight_bits] } else { &args.elastic };
            widths.iter().try_for_each(|&bits| recipe.elastic.common(bits, quantize.granularity).map(|_| ()))?;
        }
    }
    let known = is_supernet.then(|| Supernet::read(&args.model)).transpose()?;
    let graph = match &known {
        Some(supernet) => supernet.graph.clone(),
        None if trains => trainable(onnx::import(&args.model)?),
        None => simplify(onnx::import(&args.model)?),
    };
    let ports = Ports::of_graph(&graph);
    let whole = ports.load(&args.data, recipe.preprocess.layout)?;
    let test = load_test(args.test.as_deref(), &ports, recipe.preprocess.layout)?;
    let affine = affine(&recipe.preprocess, &ports.inputs[0].shape)?;
    let original = graph.clone();
    let (graph, before) = match target {
        Some(target) => {
            let pruned = prune_graph(&graph, target, &args.prune, &args.train, &recipe, &whole)?;
            (pruned.graph, pruned.whole)
        }
        None => (graph, None),
    };
    let supernet = match args.elastic_epochs {
        Some(epochs) => {
            // With labels, pruning has trained a network that knows these data better than the original does, best of all before anything went.
            let best = before.as_ref().unwrap_or(&graph);
            let teacher = if whole.targets.is_some() { best } else { &original };
            let teacher = Teacher::new(teacher, &args.train.device()?)?;
            let mut options = recipe.elastic.clone();
            options.train = TrainOptions { epochs, ..args.train.over(&options.train) };
            let checkpoint = args.train.checkpoint()?.map(|path| files::beside(&path, "elastic"));
            let plain = simplify(graph.clone());
            Some(trained(&teacher, &plain, &options, &args.train, checkpoint, &data(&whole, &affine))?.supernet)
        }
        None => known,
    };
    let set = calibration(&whole, recipe.calibrate.samples);
    let options = BuildOptions {
        shrink: !args.no_shrink,
        pack: PackOptions {
            strip_names: args.strip_names,
            isa: args.target.isa,
            compress,
            sparse: !args.no_sparse,
            ..PackOptions::default()
        },
    };
    let journal = args.train.checkpoint()?.map(|path| if trains { files::beside(&path, "search") } else { path });
    let progress = Progress::new();
    let step = |step: &'static str, n: usize| progress.advance(step, n);
    let budget = args.search.budget();
    let one = |recipe: &Recipe, options: BuildOptions| -> Result<(String, Built), Failure> {
        Ok(match (&supernet, &budget) {
            (Some(supernet), budget) => {
                let source = Source {
                    supernet,
                    data: data(&whole, &affine),
                    device: &Device::cpu(),
                    samples: &set.samples,
                    is_u8: &set.is_u8,
                    stop: stop(),
                    checkpoint: journal.as_deref(),
                    resumes: args.train.resume,
                };
                build_subnet(source, recipe, &args.search, budget.as_ref(), options, &step)?
            }
            (None, budget) => {
                let graph = prepend_preprocess(simplify(graph.clone()), &recipe.preprocess)?;
                let prepared = prepare(graph, &set.samples, &set.is_u8, recipe, &step)?;
                match budget {
                    Some(budget) if args.search.is_of_code(budget, compress.level) => {
                        fit(&prepared, &set, recipe, options, budget.flash.unwrap_or(u64::MAX))?
                    }
                    Some(budget) => {
                        let search = Search::of_network(&prepared, &set, recipe, &args.search, budget, options.pack)?;
                        let (recipe, text) = (search.recipe(recipe), search.text());
                        drop(search);
                        (text, finish(prepared, &set.samples, &set.is_u8, &recipe, options, &step)?)
                    }
                    None => (String::new(), finish(prepared, &set.samples, &set.is_u8, recipe, options, &step)?),
                }
            }
        })
    };
    if !args.elastic.is_empty() {
        let built = |recipe: &Recipe, options: BuildOptions| Ok(one(recipe, options)?.1);
        let to = (&args.target, args.output.as_path(), args.json);
        let text = precisions::build(&args.elastic, &recipe, options.pack, to, test.as_ref(), &built, options.shrink)?;
        return Ok(out.write_all(text.as_bytes())?);
    }
    let (found, built) = one(&recipe, options)?;
    let file = ModelFile::new(&built.packed.bytes);
    if let Some(limit) = budget.and_then(|b| b.flash).filter(|&limit| built.packed.bytes.len() as u64 > limit) {
        let bytes = grouped(built.packed.bytes.len() as u64);
        return Err(Failure::unmet(format!(
            "the file takes {bytes} B, {} are allowed; give it a little less",
            grouped(limit)
        )));
    }
    let model = super::input::parse_packed(&args.output, &file, None)?;
    let (flash, ram) = compress.memory(&model);
    if let Some(what) = args.target.exceeded(flash, ram) {
        return Err(Failure::unmet(format!("{what}; prune filters (--macs), or give layers fewer bits (--max-flash)")));
    }
    let accuracy = match &test {
        Some(test) => {
            let step = || progress.advance("testing", 2 * test.samples.len());
            let float =
                accuracy_of(test, || (), |(), sample| eval::run(&built.graph, sample).unwrap_or_default(), &step);
            let int8 = accuracy_of(test, || Runner::new(&model), |runner, sample| runner.run(sample), &step);
            let (Some(float), Some(int8)) = (float, int8) else {
                return Err(Failure::new("the test set has no integer labels 'y'; leave --test out or add them"));
            };
            Some(Accuracy { float, int8, n: test.samples.len() })
        }
        None => None,
    };
    progress.finish();
    write_whole(&args.output, &built.packed.bytes)?;
    let summary = Summary::of_model(&model);
    let text = if args.json {
        json(&report(&summary, &built, accuracy))
    } else {
        found + &text(args, &summary, &built, accuracy, started)
    };
    Ok(out.write_all(text.as_bytes())?)
}

/// Times that a budget of bytes is tightened: codes of layers that differ in width may share less than was predicted.
const TIGHTENED: usize = 4;

/// A sub-network: the one that the recipe names, or the best within a budget.
fn build_subnet(
    source: Source<'_>,
    recipe: &Recipe,
    args: &BudgetArgs,
    budget: Option<&Budget>,
    options: BuildOptions,
    progress: &(dyn Fn(&'static str, usize) + Sync),
) -> Result<(String, Built), Failure> {
    let build = |recipe: &Recipe| -> Result<Built, Failure> {
        let choice = source.supernet.choose(&recipe.quantize)?;
        let own = subnet(source.supernet, &choice, &source.data, source.device, recipe, options.pack.isa)?;
        let recipe = Recipe { quantize: own.quantize, ..recipe.clone() };
        let (samples, is_u8) = (source.samples, source.is_u8);
        let prepared = prepare_given(own.graph, samples, is_u8, &recipe, &own.rounding, progress)?;
        Ok(finish_given(prepared, samples, is_u8, &recipe, options, &own.rounding, progress)?)
    };
    let Some(budget) = budget else { return Ok((String::new(), build(recipe)?)) };
    let mut search = Search::of_supernet(source, recipe, args, budget, options.pack)?;
    let mut allowed = *budget;
    for _ in 0..TIGHTENED {
        let built = build(&search.recipe(recipe))?;
        let excess = (built.packed.bytes.len() as u64).saturating_sub(budget.flash.unwrap_or(u64::MAX));
        if excess == 0 {
            return Ok((search.text(), built));
        }
        allowed.flash = allowed.flash.map(|flash| flash.saturating_sub(excess));
        search = search.again(&allowed)?;
    }
    let built = build(&search.recipe(recipe))?;
    Ok((search.text(), built))
}

/// The coded file that fits, at the least price of bits.
fn fit(
    prepared: &Prepared,
    set: &Set,
    recipe: &Recipe,
    options: BuildOptions,
    limit: u64,
) -> Result<(String, Built), Failure> {
    let progress = Progress::new();
    let step = |_: usize, of: usize| progress.advance("fitting", of);
    let fit = fit_price(prepared, &set.samples, &set.is_u8, recipe, options, limit, &step)?;
    progress.finish();
    match fit {
        Fit::Found(price, built) => {
            Ok((format!("price    {price}, the least price of bits at which the file fits\n\n"), *built))
        }
        Fit::Least(bytes) => Err(Failure::unmet(format!(
            "the smallest coded file takes {} B, {} are allowed; prune (--macs, --bytes)",
            grouped(bytes),
            grouped(limit)
        ))),
    }
}

/// The recipe file with the command line's values.
fn recipe(args: &Args) -> Result<Recipe, Failure> {
    let mut recipe = args.recipe.as_ref().map_or(Ok(Recipe::default()), |path| Recipe::read(path))?;
    recipe.preprocess = args.preprocess.over(&recipe.preprocess);
    recipe.compress = args.compress.over(&recipe.compress);
    recipe.calibrate.samples = args.samples.unwrap_or(recipe.calibrate.samples);
    let q = &mut recipe.quantize;
    q.weight_bits = args.weight_bits.unwrap_or(q.weight_bits);
    q.activation_bits = args.activation_bits.or(q.activation_bits);
    match args.granularity.as_deref() {
        Some("tensor") => q.granularity = Granularity::Tensor,
        Some(_) => q.granularity = Granularity::Channel,
        None => {}
    }
    q.bit_price = args.bit_price.unwrap_or(q.bit_price);
    q.observer = args.observer.or(q.observer);
    q.bias_correction = args.bias_correction.or(q.bias_correction);
    q.equalize = args.equalize.or(q.equalize);
    if recipe.quantize.bit_price > 0.0 && recipe.compress.level == 0 {
        return Err(Failure::new("a price of bits (--bit-price) does nothing for raw weights; add --compress 6"));
    }
    Ok(recipe)
}

fn report<'a>(summary: &'a Summary, built: &'a Built, accuracy: Option<Accuracy>) -> Report<'a> {
    let shrunk =
        built.shrunk.removed.iter().map(|(layer, channels)| Shrunk { layer: layer.clone(), channels: *channels });
    Report {
        summary,
        arena_lower_bound: built.packed.plan.lower_bound,
        observer: built.choice.observer,
        bias_correction: built.choice.bias_correction,
        equalized: built.equalized,
        sqnr_db: built.sqnr_db,
        shrunk: shrunk.collect(),
        notes: &built.packed.notes,
        accuracy,
    }
}

fn text(args: &Args, summary: &Summary, built: &Built, accuracy: Option<Accuracy>, started: Instant) -> String {
    let mut text = summary.text();
    let observer = match built.choice.observer {
        Observer::MinMax => "min-max".into(),
        Observer::Mse => "mse".into(),
        Observer::Percentile(share) => format!("percentile={share}"),
    };
    let on = |flag: bool| if flag { "on" } else { "off" };
    let removed: usize = built.shrunk.removed.iter().map(|(_, n)| n).sum();
    text.push_str(&format!(
        "plan     lower bound {} B\nchosen   observer {observer}, bias correction {}, equalization {}\nshrunk   {removed} channels removed without changing any output bit\nSQNR     {:.1} dB (worst output, held-out calibration samples)\n",
        grouped(built.packed.plan.lower_bound as u64),
        on(built.choice.bias_correction),
        on(built.equalized),
        built.sqnr_db,
    ));
    if built.sqnr_db < MOSTLY_NOISE {
        text.push_str("note     the outputs are mostly noise; give more bytes or bits\n");
    }
    built.packed.notes.iter().for_each(|note| text.push_str(&format!("note     {note}\n")));
    if let Some(a) = accuracy {
        text.push_str(&format!(
            "accuracy {:.2} % float, {:.2} % int8, on {} samples\n",
            100.0 * a.float,
            100.0 * a.int8,
            a.n
        ));
    }
    text.push_str(&format!("wrote    {} in {:.1} s\n", args.output.display(), started.elapsed().as_secs_f64()));
    text
}
