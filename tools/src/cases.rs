//! `cargo xtask cases`: the random models that hold the runtime to FORMAT.md on the desktop, on an emulated core, with its kernels.

use crate::core::Core;
use crate::qemu::{build_program, emulate};
use crate::{ToolError, has};
use generators::model::Random;
use generators::{Case, FAMILIES};

#[path = "../../runtime/tests/cases/mod.rs"]
#[allow(missing_docs, dead_code)]
mod generators;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Core
    #[arg(long, default_value = "m4")]
    core: Core,
    /// Models
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Start of the generator
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What a core made of the cases.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Cases that were run.
    pub count: usize,
    /// What failed and how, a line each.
    pub failures: Vec<String>,
}

/// The verb; false if a case failed.
pub fn run(args: &Args) -> Result<bool, ToolError> {
    let verdict = check(args.core, args.count as usize, args.seed)?;
    for failure in verdict.failures.iter().take(20) {
        println!("{failure}");
    }
    println!("{} of {} cases passed on {}", verdict.count - verdict.failures.len(), verdict.count, args.core.name());
    Ok(verdict.failures.is_empty())
}

/// Runs `count` cases on a core.
pub fn check(core: Core, count: usize, seed: u64) -> Result<Verdict, ToolError> {
    let machine = core.machine(usize::MAX, usize::MAX);
    if !has(machine.emulator) {
        return Err(ToolError(format!("no {}; `cargo xtask setup` installs it", machine.emulator)));
    }
    let cases = generate(core, count, seed);
    let scratch = tempfile::tempdir().map_err(|e| ToolError(e.to_string()))?;
    std::fs::write(scratch.path().join("cases.bin"), encode(&cases)).map_err(|e| ToolError(e.to_string()))?;
    let elf = build_program("cases", &[], core, machine, scratch.path())?;
    let (ended_well, log) = emulate(&elf, machine, scratch.path(), false)?;
    let verdicts = std::fs::read(scratch.path().join("verdicts.bin")).unwrap_or_default();
    let mut failures = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let how = match verdicts.get(i) {
            Some(0) => continue,
            Some(1) => "other outputs".into(),
            Some(2) => "memory outside of the arena was written".into(),
            Some(_) => "it was not run".into(),
            None => log.join("; "),
        };
        failures.push(format!("case {i}: {how}: {}", case.what));
        if i >= verdicts.len() {
            break;
        }
    }
    if !ended_well && failures.is_empty() {
        return Err(ToolError(format!("{} on {}: {}", core.name(), machine.machine, log.join("; "))));
    }
    Ok(Verdict { count: cases.len(), failures })
}

/// Families in turn; convolutions, whose kernels are many, every other time.
fn generate(core: Core, count: usize, seed: u64) -> Vec<Case> {
    let mut r = Random(seed);
    let mut cases = Vec::new();
    for round in 0.. {
        let (name, family) = FAMILIES[if round % 4 < 2 { 0 } else { round / 2 % FAMILIES.len() }];
        for mut case in family(&mut r, round, &[core.isa()]) {
            case.what = format!("{name}: {}", case.what);
            cases.push(case);
        }
        if cases.len() >= count {
            break;
        }
    }
    cases.truncate(count);
    cases
}

/// As `firmware/src/bin/cases.rs` reads them.
fn encode(cases: &[Case]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for case in cases {
        let inputs = case.inputs.concat();
        let words = [case.model.len(), inputs.len(), case.expected.len(), 0];
        bytes.extend(words.iter().flat_map(|&n| (n as u32).to_le_bytes()));
        bytes.extend(&case.model);
        bytes.extend(inputs.iter().chain(&case.expected).map(|&q| q as u8));
    }
    bytes
}
