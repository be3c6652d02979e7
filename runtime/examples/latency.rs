//! How long a model takes on every instruction set of this machine, and with `--layers` how long each operator takes on the best.
//!
//! `cargo run --release -p pith-runtime --example latency -- MODEL.pith [--layers]`

use pith::{Engine, Isa, Model};
use std::process::ExitCode;
use std::time::Instant;

/// Bytes at a multiple of 16.
fn aligned(bytes: &[u8]) -> (Vec<u128>, usize) {
    let mut words = vec![0u128; bytes.len().div_ceil(16)];
    bytemuck::cast_slice_mut::<u128, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
    (words, bytes.len())
}

/// Median microseconds of a call, over rounds of at least a millisecond.
fn median_us(mut call: impl FnMut()) -> f64 {
    let mut once = || {
        let started = Instant::now();
        call();
        started.elapsed().as_secs_f64() * 1e6
    };
    let runs = (1000.0 / (0..5).map(|_| once()).fold(f64::MAX, f64::min)).ceil().max(1.0) as usize;
    let mut rounds: Vec<f64> = (0..31).map(|_| (0..runs).map(|_| once()).sum::<f64>() / runs as f64).collect();
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (path, with_layers) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [path] => (path, false),
        [path, "--layers"] => (path, true),
        _ => return Err("want MODEL.pith [--layers]".into()),
    };
    let (words, len) = aligned(&std::fs::read(path).map_err(|e| format!("{path}: {e}"))?);
    let model = Model::parse(&bytemuck::cast_slice(&words)[..len]).map_err(|e| format!("{path}: {e}"))?;
    let mut decoded = vec![0u128; model.decoded_bytes().div_ceil(16)];
    let model = model
        .decode_into(bytemuck::cast_slice_mut(&mut decoded), &mut vec![0; model.decode_scratch_bytes()])
        .map_err(|e| format!("{path}: {e}"))?;
    let mut arena = vec![0u128; model.arena_bytes().div_ceil(16)];
    let arena = bytemuck::cast_slice_mut(&mut arena);
    let mut engine = Engine::new(&model, arena).map_err(|e| e.to_string())?;
    println!("{:<12} {:>9.2} us", "none", median_us(|| engine.run()));
    for isa in Isa::available() {
        let bytes = Engine::workspace_bytes(&model, isa);
        let mut workspace = vec![0; bytes];
        let mut engine = Engine::with_workspace(&model, arena, isa, &mut workspace).map_err(|e| e.to_string())?;
        println!("{:<12} {:>9.2} us  {} B of workspace", isa.name(), median_us(|| engine.run()), bytes);
        if with_layers && isa == Isa::detect() {
            let mut best: Vec<f64> = vec![f64::MAX; model.ops().count()];
            for _ in 0..2000 {
                let mut steps = engine.steps();
                for best in &mut best {
                    let started = Instant::now();
                    steps.step();
                    *best = best.min(started.elapsed().as_secs_f64() * 1e6);
                }
            }
            for ((head, op), us) in model.ops().zip(best) {
                println!("  {us:>8.2} us  {:<16} {}", op.name(), model.op_name(&head));
            }
        }
    }
    Ok(())
}
