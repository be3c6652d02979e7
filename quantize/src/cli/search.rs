//! `quantize search`: bits of every layer for a budget → a recipe that `build` takes.

use super::Failure;
use super::build::target;
use super::input::{Ports, PreprocessArgs, is_supernet, number, read_onnx, spaced};
use super::output::{Progress, check_folder, write_whole};
use super::prune::count;
use super::training::{affine, data, stop};
use crate::build::{Prepared, prepare};
use crate::data::{Set, Targets};
use crate::elastic::Supernet;
use crate::elastic::predictor::Quality;
use crate::pack::PackOptions;
use crate::recipe::Recipe;
use crate::report::front_svg::{Scale, front_svg};
use crate::report::{grouped, json, table};
use crate::search::{
    Budget, Candidate, Found, Judges, SearchError, SearchOptions, Source, Space, search, space, supernet_space,
};
use crate::target::Target;
use crate::train::Device;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Trained float network, or a supernet (`quantize elastic`)
    model: PathBuf,
    /// Calibration set, for a supernet the training set: .npz with x, and y for --min-accuracy
    #[arg(long)]
    data: PathBuf,
    /// TOML file with hyper-parameters; options on the command line win
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// What the file is for, as with build
    #[arg(long, default_value = "portable", value_parser = target)]
    target: Target,
    #[command(flatten)]
    budget: BudgetArgs,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    /// Calibration samples, evenly spaced over the set
    #[arg(long)]
    samples: Option<usize>,
    /// Keep what was measured of a supernet here, for --resume and for searches with other budgets
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Use what the checkpoint holds, if it is there
    #[arg(long, requires = "checkpoint")]
    resume: bool,
    /// Draw error against bytes: what was found, and the widths that all layers share
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON: layers, best, front, uniform
    #[arg(long)]
    json: bool,
    /// Where the recipe goes; build takes it with --recipe
    #[arg(short, long)]
    output: PathBuf,
}

/// From 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    match number(text)? {
        value if (0.0..=1.0).contains(&value) => Ok(value),
        value => Err(format!("{value} is no share; give 0 to 1, such as 0.9")),
    }
}

/// What the model may take.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Bits of layers")]
pub(super) struct BudgetArgs {
    /// Most bytes of the file, such as 60K: every layer gets the bits that cost least; with --compress, weights are rounded to what codes well
    #[arg(long, value_parser = count)]
    max_flash: Option<u64>,
    /// Most bytes of RAM: the arena, and weights that are decoded into RAM
    #[arg(long, value_parser = count)]
    max_ram: Option<u64>,
    /// Most instructions of a run on the target, as predicted, such as 5M (on a core without caches and wait states, cycles)
    #[arg(long, value_parser = count)]
    max_cycles: Option<u64>,
    /// Least share of right answers on --data, 0 to 1; the smallest file that reaches it is searched
    #[arg(long, value_parser = share)]
    min_accuracy: Option<f64>,
    /// Bits that a layer may have [default: those of 8,4,2 for which a core has kernels, else 2 to 8]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(2..=8))]
    bits: Option<Vec<u8>>,
    /// Candidates that are run; of a supernet's, ten times as many are predicted [default: 400]
    #[arg(long)]
    candidates: Option<usize>,
    /// Sub-networks of a supernet that are measured, for the rest to be predicted [default: 250]
    #[arg(long)]
    measured: Option<usize>,
}

impl BudgetArgs {
    /// The budget, if one was given.
    pub(super) fn budget(&self) -> Option<Budget> {
        let budget = Budget {
            flash: self.max_flash,
            ram: self.max_ram,
            instructions: self.max_cycles,
            accuracy: self.min_accuracy,
        };
        (budget != Budget::default()).then_some(budget)
    }

    /// Whether bytes alone are limited and weights are coded: then the price of bits is searched, not widths, unless these are asked for.
    pub(super) fn is_of_code(&self, budget: &Budget, level: u8) -> bool {
        let is_bytes = *budget == Budget { flash: budget.flash, ..Budget::default() };
        is_bytes && level > 0 && self.bits.is_none()
    }

    fn over(&self, base: &SearchOptions) -> SearchOptions {
        SearchOptions {
            bits: self.bits.clone().or_else(|| base.bits.clone()),
            candidates: self.candidates.unwrap_or(base.candidates),
            measured: self.measured.unwrap_or(base.measured),
            ..base.clone()
        }
    }

    /// Says what is given without a budget, and would do nothing.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match self.budget() {
            None if self.bits.is_some() || self.candidates.is_some() || self.measured.is_some() => Err(Failure::new(
                "--bits, --candidates and --measured need a budget: --max-flash, --max-ram, --max-cycles or --min-accuracy",
            )),
            _ => Ok(()),
        }
    }
}

/// At most so many samples of a set, and their targets.
pub(super) fn calibration(set: &Set, count: usize) -> Set {
    let picked = spaced((0..set.samples.len()).collect(), count);
    let targets = match &set.targets {
        Some(Targets::Classes(labels)) => Some(Targets::Classes(picked.iter().map(|&i| labels[i]).collect())),
        // Other targets are not judged by.
        _ => None,
    };
    Set { samples: picked.iter().map(|&i| set.samples[i].clone()).collect(), is_u8: set.is_u8.clone(), targets }
}

/// What was searched in, and found.
pub(super) struct Search<'a> {
    space: Space<'a>,
    /// How well a supernet's accuracies are predicted.
    quality: Option<Quality>,
    options: SearchOptions,
    found: Found,
    best: Candidate,
}

impl<'a> Search<'a> {
    /// Searches the widths of a network.
    pub(super) fn of_network(
        prepared: &'a Prepared,
        set: &'a Set,
        recipe: &Recipe,
        args: &BudgetArgs,
        budget: &Budget,
        pack: PackOptions,
    ) -> Result<Search<'a>, Failure> {
        let options = args.over(&recipe.search);
        let progress = Progress::new();
        let judges = Judges::new(&set.samples, &set.is_u8, set.targets.as_ref());
        let space = space(prepared, judges, recipe, &options, pack, &|step, n| progress.advance(step, n))?;
        progress.finish();
        Search::run(space, None, options, budget)
    }

    /// Searches the sub-networks of a supernet.
    pub(super) fn of_supernet(
        source: Source<'a>,
        recipe: &Recipe,
        args: &BudgetArgs,
        budget: &Budget,
        pack: PackOptions,
    ) -> Result<Search<'a>, Failure> {
        // Said before minutes of measuring.
        if budget.accuracy.is_some() && !matches!(source.data.targets, Some(Targets::Classes(_))) {
            return Err(SearchError::NoLabels.into());
        }
        let mut options = args.over(&recipe.search);
        let progress = Progress::new();
        let step = |step: &'static str, n: usize| progress.advance(step, n);
        let (space, quality) = supernet_space(source, recipe, &options, pack, &step)?;
        progress.finish();
        options.candidates *= 10;
        Search::run(space, Some(quality), options, budget)
    }

    /// Searches, or says what stands in the way.
    fn run(
        space: Space<'a>,
        quality: Option<Quality>,
        options: SearchOptions,
        budget: &Budget,
    ) -> Result<Search<'a>, Failure> {
        if let Some(limit) = budget.ram.filter(|&limit| space.ram > limit) {
            let least = grouped(space.ram);
            return Err(Failure::unmet(format!(
                "the model takes {least} B of RAM, {} are allowed; bits of weights do not change the arena: prune filters (--macs), or choose a smaller input",
                grouped(limit)
            )));
        }
        let bar = bar();
        let is_predicted = space.is_predicted();
        let mut drawn = Instant::now();
        let mut report = |state: crate::search::genetic::State<'_>| {
            bar.set_length(state.of as u64);
            bar.set_position(state.runs as u64);
            bar.set_message(state.best.map_or("no candidate fits yet".into(), |c| {
                format!("best {}, {} B", quality_of(c, is_predicted), grouped(c.flash))
            }));
            if drawn.elapsed() >= REDRAW {
                bar.set_prefix(front_line(&state.front(), is_predicted));
                drawn = Instant::now();
            }
        };
        let found = search(&space, budget, &options, &mut report)?;
        bar.finish_and_clear();
        match found.best.clone() {
            Some(best) => Ok(Search { space, quality, options, found, best }),
            None => Err(Failure::unmet(in_the_way(&space, &found, budget))),
        }
    }

    /// Searches the same space again for another budget.
    pub(super) fn again(self, budget: &Budget) -> Result<Search<'a>, Failure> {
        Search::run(self.space, self.quality, self.options, budget)
    }

    /// The recipe that builds what was found.
    pub(super) fn recipe(&self, recipe: &Recipe) -> Recipe {
        self.space.recipe(&self.best, recipe)
    }

    pub(super) fn text(&self) -> String {
        let layer = |(layer, &bits): (&crate::search::Layer, &u8)| {
            let at = |bits: u8| layer.bits.iter().position(|&b| b == bits).map_or(0, |i| layer.bytes[i]);
            vec![layer.name.clone(), grouped(layer.weights), bits.to_string(), grouped(at(bits))]
        };
        let rows: Vec<Vec<String>> = self.space.layers.iter().zip(&self.best.bits).map(layer).collect();
        let candidate = |name: String, c: &Candidate| {
            let accuracy = c.accuracy.map_or("-".into(), |a| format!("{:.2} %", 100.0 * a));
            let instructions = c.instructions.map_or("-".into(), grouped);
            vec![
                name,
                grouped(c.flash),
                format!("{:.2}", c.mean_bits(&self.space)),
                match c.accuracy.filter(|_| self.space.is_predicted()) {
                    Some(_) => "-".into(),
                    None => format!("{:.1}", decibels(c.error)),
                },
                instructions,
                accuracy,
            ]
        };
        let name = if self.space.is_predicted() { "found, measured" } else { "found, as built" };
        let mut choices = vec![candidate(name.into(), &self.best)];
        let width = |c: &Candidate| c.bits.iter().copied().min().unwrap_or(8);
        choices.extend(self.found.uniform.iter().map(|c| candidate(format!("all {} bits", width(c)), c)));
        let note = match self.quality {
            None => {
                "Layers that are alike are rounded one by one, as candidates are; what is built is rounded in turn."
                    .into()
            }
            Some(q) => format!(
                "Accuracies but that of the found one are predicted from {} sub-networks; on {} others prediction and measurement correlate with {:.3} (Pearson), {:.3} (Kendall).",
                q.learned, q.held_out, q.pearson, q.kendall
            ),
        };
        format!(
            "{}\n{}{note}\n\n",
            table(&["layer", "weights", "bits", "B"], &rows),
            table(&["choice", "file B", "bits a weight", "SQNR dB", "instructions", "right on --data"], &choices)
        )
    }
}

/// Decibels of the signal over the noise.
fn decibels(error: f64) -> f64 {
    -10.0 * error.max(1e-20).log10()
}

/// A candidate in a word.
fn quality_of(c: &Candidate, is_predicted: bool) -> String {
    match c.accuracy.filter(|_| is_predicted) {
        Some(accuracy) => format!("{:.1} %", 100.0 * accuracy),
        None => format!("{:.1} dB", decibels(c.error)),
    }
}

/// How often the front is drawn anew, and points of it that are shown.
const REDRAW: Duration = Duration::from_millis(250);
const SHOWN: usize = 6;

/// Some points of the front, the smallest first.
fn front_line(front: &[Candidate], is_predicted: bool) -> String {
    let last = front.len().saturating_sub(1);
    let shown = SHOWN.min(front.len());
    let point = |i: usize| {
        let c = &front[i * last / (shown.max(2) - 1)];
        format!("{:.1}K {}", c.flash as f64 / 1024.0, quality_of(c, is_predicted))
    };
    (0..shown).map(point).collect::<Vec<_>>().join("  |  ")
}

/// Live on a terminal: the best, and below it the front.
fn bar() -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(1) } else { ProgressBar::hidden() };
    if let Ok(style) =
        ProgressStyle::with_template("   searching {wide_bar} {pos}/{len} {eta} {msg}\n       front {prefix}")
    {
        bar.set_style(style);
    }
    bar
}

/// Why no candidate is within the budget.
fn in_the_way(space: &Space<'_>, found: &Found, budget: &Budget) -> String {
    let least = space.least_flash();
    if let Some(limit) = budget.flash.filter(|&limit| least > limit) {
        let mut layers: Vec<(u64, &str)> =
            space.layers.iter().map(|l| (l.bytes.iter().min().copied().unwrap_or(0), l.name.as_str())).collect();
        layers.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        let largest: Vec<String> =
            layers.iter().take(3).map(|(bytes, name)| format!("'{name}' with {} B", grouped(*bytes))).collect();
        return format!(
            "the smallest file takes {} B, {} are allowed; {} B of it are no layer's weights, the largest layers are {}; prune (--macs, --bytes){}",
            grouped(least),
            grouped(limit),
            grouped(space.base),
            largest.join(", "),
            if space.is_coded { "" } else { " or code the weights (--compress)" }
        );
    }
    let fastest = found.front.iter().chain(&found.uniform).filter_map(|c| c.instructions).min();
    if let (Some(limit), Some(fastest)) = (budget.instructions, fastest)
        && fastest > limit
    {
        let least = |l: &crate::search::Layer| l.instructions.iter().copied().fold(f64::INFINITY, f64::min) as u64;
        let slowest = space.layers.iter().max_by_key(|l| least(l));
        return format!(
            "the fastest candidate takes {} instructions, {} are allowed; the slowest layer is {} with {}; prune filters (--macs)",
            grouped(fastest),
            grouped(limit),
            slowest.map_or("none".into(), |l| format!("'{}'", l.name)),
            grouped(slowest.map_or(0, least))
        );
    }
    let nearest = found
        .front
        .iter()
        .rev()
        .take(3)
        .map(|c| format!("{:.2} % with {} B", 100.0 * c.accuracy.unwrap_or(0.0), grouped(c.flash)));
    format!(
        "no candidate reaches {:.2} % on the calibration set; the nearest are {}; give more bytes, or train the network further",
        100.0 * budget.accuracy.unwrap_or(0.0),
        nearest.collect::<Vec<_>>().join(", ")
    )
}

/// What is searched, with the set, and for a supernet the calibration samples and the preprocessing too.
enum Given {
    Network(Box<Prepared>, Set),
    Supernet(Box<Supernet>, Set, Set, Option<(Vec<f32>, Vec<f32>)>),
}

impl Given {
    fn read(args: &Args, recipe: &Recipe) -> Result<Given, Failure> {
        let (preprocess, count) = (&recipe.preprocess, recipe.calibrate.samples);
        if is_supernet(&args.model) {
            let supernet = Supernet::read(&args.model)?;
            let ports = Ports::of_graph(&supernet.graph);
            let set = ports.load(&args.data, preprocess.layout)?;
            let affine = affine(preprocess, &ports.inputs[0].shape)?;
            let picked = calibration(&set, count);
            return Ok(Given::Supernet(Box::new(supernet), set, picked, affine));
        }
        let graph = read_onnx(&args.model, preprocess)?;
        let set = Ports::of_graph(&graph).load(&args.data, preprocess.layout)?;
        let set = calibration(&set, count);
        let progress = Progress::new();
        let prepared = prepare(graph, &set.samples, &set.is_u8, recipe, &|step, n| progress.advance(step, n))?;
        progress.finish();
        Ok(Given::Network(Box::new(prepared), set))
    }
}

/// `--json`; the keys are stable.
#[derive(Serialize)]
struct Report<'a> {
    layers: Vec<ReportLayer<'a>>,
    best: &'a Candidate,
    front: &'a [Candidate],
    uniform: &'a [Candidate],
    candidates: usize,
    /// How well a supernet's accuracies are predicted: pearson, kendall.
    #[serde(skip_serializing_if = "Option::is_none")]
    predictor: Option<Quality>,
    seconds: f64,
}

#[derive(Serialize)]
struct ReportLayer<'a> {
    name: &'a str,
    weights: u64,
    bits: u8,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    check_folder(&args.output)?;
    args.svg.as_deref().map_or(Ok(()), check_folder)?;
    args.checkpoint.as_deref().map_or(Ok(()), check_folder)?;
    if args.checkpoint.is_some() && !is_supernet(&args.model) {
        return Err(Failure::new(
            "--checkpoint keeps what is measured of a supernet; a search of a network takes a minute",
        ));
    }
    let started = Instant::now();
    let mut recipe = args.recipe.as_ref().map_or(Ok(Recipe::default()), |path| Recipe::read(path))?;
    recipe.preprocess = args.preprocess.over(&recipe.preprocess);
    recipe.calibrate.samples = args.samples.unwrap_or(recipe.calibrate.samples);
    let Some(budget) = args.budget.budget() else {
        return Err(Failure::new("no budget; give --max-flash, --max-ram, --max-cycles or --min-accuracy"));
    };
    let compress = recipe.compress.options(&args.target)?;
    let pack = PackOptions { isa: args.target.isa, compress, ..PackOptions::default() };
    let (given, device) = (Given::read(args, &recipe)?, Device::cpu());
    let (name, search) = match &given {
        Given::Network(prepared, set) => {
            (&prepared.graph.name, Search::of_network(prepared, set, &recipe, &args.budget, &budget, pack)?)
        }
        Given::Supernet(supernet, set, picked, affine) => {
            let source = Source {
                supernet,
                data: data(set, affine),
                device: &device,
                samples: &picked.samples,
                is_u8: &picked.is_u8,
                stop: stop(),
                checkpoint: args.checkpoint.as_deref(),
                resumes: args.resume,
            };
            (&supernet.graph.name, Search::of_supernet(source, &recipe, &args.budget, &budget, pack)?)
        }
    };
    let config = search.recipe(&recipe);
    let config = toml::to_string(&config).map_err(|e| Failure::new(format!("the recipe cannot be written: {e}")))?;
    write_whole(&args.output, config.as_bytes())?;
    if let Some(path) = &args.svg {
        let has_answers = search.space.is_predicted() && search.best.accuracy.is_some();
        let scale = if has_answers { Scale::Percent } else { Scale::Decibels };
        let found = &search.found;
        write_whole(path, front_svg(name, scale, &found.front, &found.uniform, &search.best).as_bytes())?;
    }
    let layers = search.space.layers.iter().zip(&search.best.bits);
    let report = Report {
        layers: layers.map(|(l, &bits)| ReportLayer { name: &l.name, weights: l.weights, bits }).collect(),
        best: &search.best,
        front: &search.found.front,
        uniform: &search.found.uniform,
        candidates: search.found.runs,
        predictor: search.quality,
        seconds: started.elapsed().as_secs_f64(),
    };
    let text = match args.json {
        true => json(&report),
        false => format!(
            "{}wrote {} after {} candidates in {:.1} s\n",
            search.text(),
            args.output.display(),
            report.candidates,
            report.seconds
        ),
    };
    Ok(out.write_all(text.as_bytes())?)
}
