//! `quantize search`: bits of every layer for a budget → a recipe that `build` takes.

use super::Failure;
use super::build::target;
use super::input::{Ports, PreprocessArgs, number, read_onnx, spaced};
use super::output::{Progress, check_folder, write_whole};
use super::prune::count;
use crate::build::{Prepared, prepare};
use crate::data::{Set, Targets};
use crate::pack::PackOptions;
use crate::recipe::Recipe;
use crate::report::front_svg::front_svg;
use crate::report::{grouped, json, table};
use crate::search::{Budget, Candidate, Found, Judges, SearchOptions, Space, recipe_of, search, space};
use crate::target::Target;
use indicatif::{ProgressBar, ProgressStyle};
use ndarray::ArrayD;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Trained float network
    model: PathBuf,
    /// Calibration set: .npz with x, and y for --min-accuracy
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
    /// Candidates that are run [default: 400]
    #[arg(long)]
    candidates: Option<usize>,
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
            ..base.clone()
        }
    }

    /// Says what is given without a budget, and would do nothing.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match self.budget() {
            None if self.bits.is_some() || self.candidates.is_some() => Err(Failure::new(
                "--bits and --candidates need a budget: --max-flash, --max-ram, --max-cycles or --min-accuracy",
            )),
            _ => Ok(()),
        }
    }
}

/// At most so many samples of a set, and their targets.
pub(super) fn calibration(set: Set, count: usize) -> Set {
    let targets = match set.targets {
        Some(Targets::Classes(labels)) => Some(Targets::Classes(spaced(labels, count))),
        // Other targets are not judged by.
        _ => None,
    };
    Set { samples: spaced(set.samples, count), is_u8: set.is_u8, targets }
}

/// What was searched in, and found.
pub(super) struct Search<'a> {
    space: Space<'a>,
    found: Found,
    best: Candidate,
}

impl<'a> Search<'a> {
    /// Searches, or says what stands in the way.
    pub(super) fn run(
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
        if let Some(limit) = budget.ram.filter(|&limit| space.ram > limit) {
            let least = grouped(space.ram);
            return Err(Failure::unmet(format!(
                "the model takes {least} B of RAM, {} are allowed; bits of weights do not change the arena: prune filters (--macs), or choose a smaller input",
                grouped(limit)
            )));
        }
        let bar = bar();
        let mut report = |state: crate::search::genetic::State<'_>| {
            bar.set_length(state.of as u64);
            bar.set_position(state.runs as u64);
            bar.set_message(state.best.map_or("no candidate fits yet".into(), |c| {
                format!("best {:.1} dB, {} B", decibels(c.error), grouped(c.flash))
            }));
        };
        let found = search(&space, budget, &options, &mut report)?;
        bar.finish_and_clear();
        match found.best.clone() {
            Some(best) => Ok(Search { space, found, best }),
            None => Err(Failure::unmet(in_the_way(&space, &found, budget))),
        }
    }

    /// The recipe that builds what was found.
    pub(super) fn recipe(&self, prepared: &Prepared, recipe: &Recipe) -> Recipe {
        recipe_of(&self.space, &self.best, prepared, recipe)
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
                format!("{:.1}", decibels(c.error)),
                instructions,
                accuracy,
            ]
        };
        let mut choices = vec![candidate("found, as built".into(), &self.best)];
        choices.extend(self.found.uniform.iter().map(|c| candidate(format!("all {} bits", c.bits[0]), c)));
        format!(
            "{}\n{}Layers that are alike are rounded one by one, as candidates are; what is built is rounded in turn.\n\n",
            table(&["layer", "weights", "bits", "B"], &rows),
            table(&["choice", "file B", "bits a weight", "SQNR dB", "instructions", "right on --data"], &choices)
        )
    }
}

/// Decibels of the signal over the noise.
fn decibels(error: f64) -> f64 {
    -10.0 * error.max(1e-20).log10()
}

/// Live on a terminal.
fn bar() -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(1) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("   searching {wide_bar} {pos}/{len} {eta} {msg}") {
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
            "the smallest file takes {} B, {} are allowed; {} B of it are no layer's weights, the largest layers are {}; prune (--macs, --bytes) or code the weights (--compress)",
            grouped(least),
            grouped(limit),
            grouped(space.base),
            largest.join(", ")
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

/// `--json`; the keys are stable.
#[derive(Serialize)]
struct Report<'a> {
    layers: Vec<ReportLayer<'a>>,
    best: &'a Candidate,
    front: &'a [Candidate],
    uniform: &'a [Candidate],
    candidates: usize,
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
    let started = Instant::now();
    let mut recipe = args.recipe.as_ref().map_or(Ok(Recipe::default()), |path| Recipe::read(path))?;
    recipe.preprocess = args.preprocess.over(&recipe.preprocess);
    recipe.calibrate.samples = args.samples.unwrap_or(recipe.calibrate.samples);
    let Some(budget) = args.budget.budget() else {
        return Err(Failure::new("no budget; give --max-flash, --max-ram, --max-cycles or --min-accuracy"));
    };
    let compress = recipe.compress.options(&args.target)?;
    let pack = PackOptions { isa: args.target.isa, compress, ..PackOptions::default() };
    let graph = read_onnx(&args.model, &recipe.preprocess)?;
    let set = Ports::of_graph(&graph).load(&args.data, recipe.preprocess.layout)?;
    let set = calibration(set, recipe.calibrate.samples);
    let samples: &[Vec<ArrayD<f32>>] = &set.samples;
    let progress = Progress::new();
    let prepared = prepare(graph, samples, &set.is_u8, &recipe, &|step, n| progress.advance(step, n))?;
    progress.finish();
    let search = Search::run(&prepared, &set, &recipe, &args.budget, &budget, pack)?;
    let config = search.recipe(&prepared, &recipe);
    let config = toml::to_string(&config).map_err(|e| Failure::new(format!("the recipe cannot be written: {e}")))?;
    write_whole(&args.output, config.as_bytes())?;
    if let Some(path) = &args.svg {
        let name = &prepared.graph.name;
        write_whole(path, front_svg(name, &search.found.front, &search.found.uniform, &search.best).as_bytes())?;
    }
    let layers = search.space.layers.iter().zip(&search.best.bits);
    let report = Report {
        layers: layers.map(|(l, &bits)| ReportLayer { name: &l.name, weights: l.weights, bits }).collect(),
        best: &search.best,
        front: &search.found.front,
        uniform: &search.found.uniform,
        candidates: search.found.runs,
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
