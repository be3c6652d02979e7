//! `cargo xtask bench prox`: the proximal operator of the group envelope takes time in proportion to the number of groups, whatever their
//! norms are.

use super::picture::{Bar, Chart, Group, Panel};
use super::{default_folder, write};
use crate::ToolError;
use quantize::circuit::random::Random;
use quantize::prune::envelope::{Solver, Weights};
use quantize::report::{grouped, json, table};
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Numbers of groups
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000,300000,1000000,10000000")]
    groups: Vec<usize>,
    /// Share of the groups that the budget pays for
    #[arg(long, default_value_t = 0.1)]
    keep: f64,
    /// Strength of a step
    #[arg(long, default_value_t = 0.01)]
    lambda: f64,
    /// Folder of bench-prox.json and bench-prox.svg
    #[arg(long, default_value_os_t = default_folder())]
    out: PathBuf,
    /// Print JSON in place of the table
    #[arg(long)]
    json: bool,
}

const SEED: u64 = 1;

/// How long a case is repeated; the fastest run counts.
const PATIENCE: Duration = Duration::from_millis(500);

/// How norms are distributed.
const SHAPES: [&str; 4] = ["gaussian", "geometric", "ties", "adversarial"];

/// One case.
#[derive(Serialize)]
struct Row {
    norms: &'static str,
    groups: usize,
    /// That are left, of one application.
    nonzero: usize,
    visits_per_group: f64,
    prox_ns_per_group: f64,
    value_ns_per_group: f64,
}

/// The verb.
pub fn run(args: &Args) -> Result<bool, ToolError> {
    let cases = SHAPES.iter().flat_map(|&shape| args.groups.iter().map(move |&m| (shape, m)));
    let rows: Vec<Row> = cases.map(|(shape, m)| measure(shape, m.max(1), args)).collect();
    if args.json {
        println!("{}", json(&rows));
    } else {
        print(&rows);
    }
    write(&args.out, "bench-prox", &rows, &picture(&rows).svg())?;
    Ok(true)
}

fn norms(shape: &str, m: usize) -> Vec<f64> {
    let mut random = Random::new(SEED, m as u64);
    match shape {
        "geometric" => (0..m).map(|j| 1e-6f64.powf(j as f64 / m as f64)).collect(),
        "ties" => (0..m).map(|_| 1.0 + random.below(8) as f64).collect(),
        _ => (0..m).map(|j| f64::from(random.normal()).abs() * outlier(shape, j, m)).collect(),
    }
}

/// A sample at equal distances sees nothing but groups that are far above all others.
fn outlier(shape: &str, j: usize, m: usize) -> f64 {
    let is_seen = shape == "adversarial" && j.is_multiple_of((m / 256).max(1));
    if is_seen { 1e6 } else { 1.0 }
}

fn measure(shape: &'static str, m: usize, args: &Args) -> Row {
    let (norms, weights, k) = (norms(shape, m), Weights::default(), args.keep * m as f64);
    let mut solver = Solver::default();
    let prox_ns = fastest(|| {
        solver.prox(&norms, &weights, k, args.lambda);
    });
    let (nonzero, visits) = {
        let prox = solver.prox(&norms, &weights, k, args.lambda);
        (prox.nonzero, prox.visits)
    };
    let value_ns = fastest(|| {
        solver.envelope(&norms, &weights, k);
    });
    let per_group = |n: f64| n / m as f64;
    Row {
        norms: shape,
        groups: m,
        nonzero,
        visits_per_group: per_group(visits as f64),
        prox_ns_per_group: per_group(prox_ns),
        value_ns_per_group: per_group(value_ns),
    }
}

/// Nanoseconds of the fastest of at least three runs.
fn fastest(mut run: impl FnMut()) -> f64 {
    let (started, mut least, mut runs) = (Instant::now(), f64::INFINITY, 0);
    while runs < 3 || started.elapsed() < PATIENCE {
        let run_started = Instant::now();
        run();
        least = least.min(run_started.elapsed().as_secs_f64() * 1e9);
        runs += 1;
    }
    least
}

fn print(rows: &[Row]) {
    let head = ["norms", "groups", "left", "visits a group", "prox ns a group", "prox ms", "value ns a group"];
    let cells = |r: &Row| {
        vec![
            r.norms.to_string(),
            grouped(r.groups as u64),
            grouped(r.nonzero as u64),
            format!("{:.2}", r.visits_per_group),
            format!("{:.1}", r.prox_ns_per_group),
            format!("{:.3}", r.prox_ns_per_group * r.groups as f64 / 1e6),
            format!("{:.1}", r.value_ns_per_group),
        ]
    };
    println!("{}", table(&head, &rows.iter().map(cells).collect::<Vec<Vec<String>>>()));
    println!("Adversarial: a sample at equal distances sees outliers only, so that exact medians must help.");
}

fn picture(rows: &[Row]) -> Chart {
    let bar = |series, value: f64| Bar { series, value, text: format!("{value:.1}") };
    let group = |r: &Row| Group {
        label: grouped(r.groups as u64),
        bars: vec![bar(0, r.prox_ns_per_group), bar(1, r.visits_per_group)],
    };
    let panel = |shape: &&str| Panel {
        title: format!("norms: {shape}"),
        groups: rows.iter().filter(|r| r.norms == *shape).map(group).collect(),
    };
    Chart {
        title: "The proximal operator of the group envelope".into(),
        subtitle: "nanoseconds and visits per group, by the number of groups; level bars mean linear time".into(),
        series: vec![("ns per group".into(), "#2563eb"), ("visits per group".into(), "#9ca3af")],
        columns: 2,
        is_linear: true,
        panels: SHAPES.iter().map(panel).collect(),
    }
}
