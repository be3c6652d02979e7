//! `cargo xtask bench circuits`: hidden Chow-Liu trees on images.

use super::default_folder;
use crate::ToolError;
use crate::networks::shared;
use quantize::circuit::chow_liu::{Estimate, chow_liu};
use quantize::circuit::em::{self, Schedule};
use quantize::circuit::evaluate::{Workspace, bits_per_dimension};
use quantize::circuit::hclt::{Leaves, hclt};
use quantize::circuit::{Circuit, Data, checkpoint};
use quantize::npy;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Sets of images
    #[arg(long, value_delimiter = ',', default_value = "mnist,fashion")]
    data: Vec<String>,
    /// Hidden states of every pixel
    #[arg(long, value_delimiter = ',', default_value = "16,32")]
    states: Vec<usize>,
    /// Epochs
    #[arg(long, default_value_t = 220)]
    epochs: usize,
    /// Folder of checkpoints
    #[arg(long, default_value_os_t = default_folder().join("circuits"))]
    checkpoints: PathBuf,
}

const SEED: u64 = 1;

/// The verb.
pub fn run(args: &Args) -> Result<bool, ToolError> {
    for name in &args.data {
        let (Some(train), Some(test)) = (load(name, "train")?, load(name, "test")?) else {
            eprintln!("left out: shared/data/sets/{name}_train.npz or {name}_test.npz is absent");
            continue;
        };
        for &states in &args.states {
            let path = args.checkpoints.join(format!("{name}-{states}-{}.circuit", args.epochs));
            let circuit = trained(&train, states, &Schedule::of(args.epochs), &path, &test)?;
            println!(
                "{name} {states} {:.4} bpd, {} parameters",
                bits_per_dimension(&circuit, &test),
                circuit.parameters()
            );
        }
    }
    Ok(true)
}

fn load(name: &str, part: &str) -> Result<Option<Data>, ToolError> {
    let Some(path) = shared(&format!("sets/{name}_{part}.npz")) else { return Ok(None) };
    let arrays = npy::read(&path).map_err(|e| ToolError(format!("{}: {e}", path.display())))?;
    let x = arrays
        .into_iter()
        .find(|(name, _)| name == "x")
        .ok_or_else(|| ToolError(format!("{}: no x", path.display())))?;
    let values = x.1.values;
    let pixels = values.shape().iter().skip(1).product();
    let rows: Vec<u8> = values.iter().map(|&v| v as u8).collect();
    Ok(Some(Data::new(rows, pixels)))
}

fn trained(train: &Data, states: usize, schedule: &Schedule, path: &Path, test: &Data) -> Result<Circuit, ToolError> {
    let fail = |e: &dyn std::fmt::Display| ToolError(format!("{}: {e}", path.display()));
    let variables = train.variables;
    let (mut circuit, done) = match checkpoint::load(path).map_err(ToolError)? {
        Some(found) => found,
        None => {
            let tree = chow_liu(train, Estimate::default());
            (hclt(&tree, 256, states, Leaves::Categorical, SEED), 0)
        }
    };
    let mut work = Workspace::default();
    for epoch in done..schedule.epochs() {
        let started = Instant::now();
        let mean = em::epoch(&mut circuit, train, schedule, epoch, SEED, &mut work, &mut |_| ());
        let bits = -mean / (variables as f64 * std::f64::consts::LN_2);
        let seconds = started.elapsed().as_secs_f64();
        let test =
            if epoch % 20 == 19 { format!(", test {:.4}", bits_per_dimension(&circuit, test)) } else { String::new() };
        eprintln!(
            "epoch {}: {bits:.4} bpd{test}, {seconds:.1} s, {:.0} s left",
            epoch + 1,
            seconds * (schedule.epochs() - epoch - 1) as f64
        );
        if epoch % 5 == 4 || epoch + 1 == schedule.epochs() {
            checkpoint::save(path, &circuit, epoch + 1).map_err(|e| fail(&e))?;
        }
    }
    Ok(circuit)
}
