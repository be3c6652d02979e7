//! The `quantize` command: one file a verb. This module and [`crate::report`] are the only ones that print.
//!
//! Exit codes: 0 done, 1 a target or budget was not met, 2 bad input or usage (one line on standard error).

mod build;
mod elastic;
mod eval;
mod input;
mod inspect;
mod output;
mod precisions;
mod prune;
mod run;
mod search;
mod train;
mod training;

use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::io::Write;

const ISA_HELP: &str = "Models run on the best instruction set of the machine; PITH_ISA=generic|sse2|avx2|avxvnni|avx512vnni|amx|neon|dotprod|i8mm \
    chooses another. The outputs are the same.";

/// Keep the essence of a trained network: quantize, pack, run.
#[derive(Debug, Parser)]
#[command(name = "quantize", version, about, max_term_width = 110, after_help = ISA_HELP)]
struct Args {
    /// More log lines (repeatable); PITH_LOG sets filters
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a .pith model from an ONNX file and calibration data
    Build(Box<build::Args>),
    /// Train a network, from a file or from scratch
    Train(train::Args),
    /// Remove groups of weights while training, until a budget is met
    Prune(Box<prune::Args>),
    /// Train a supernet: one set of weights that works at every width
    Elastic(Box<elastic::Args>),
    /// Find the bits of every layer that fit a budget, without training
    Search(search::Args),
    /// Judge a model on a set: accuracy, SQNR and errors, also layer by layer
    Eval(eval::Args),
    /// Feed inputs from an array file, write outputs to another
    Run(run::Args),
    /// Show layers, sizes and the memory plan of a model
    Inspect(inspect::Args),
}

/// What a verb ends with when it does not succeed.
#[derive(Debug)]
pub struct Failure {
    /// One line.
    message: String,
    code: u8,
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Transparent wrappers and messages that quote their cause repeat it.
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            source = cause.source();
        }
        Failure { message, code: 2 }
    }
}

impl Failure {
    fn new(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), code: 2 }
    }

    /// A budget that cannot be met.
    fn unmet(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), code: 1 }
    }
}

/// Runs the command with these arguments (the first is the program's name); what it says goes to `out` and `err`. Returns the exit code.
pub fn run<I, T>(args: I, out: &mut dyn Write, err: &mut dyn Write) -> u8
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            let to: &mut dyn Write = if error.use_stderr() { err } else { out };
            let _ = write!(to, "{error}");
            return error.exit_code() as u8;
        }
    };
    start_log(args.verbose);
    let done = crate::execute::isa().map_err(Failure::from).and_then(|_| match args.verb {
        Verb::Build(args) => build::run(&args, out),
        Verb::Train(args) => train::run(&args, out),
        Verb::Prune(args) => prune::run(&args, out),
        Verb::Elastic(args) => elastic::run(&args, out),
        Verb::Search(args) => search::run(&args, out),
        Verb::Eval(args) => eval::run(&args, out),
        Verb::Run(args) => run::run(&args),
        Verb::Inspect(args) => inspect::run(&args, out),
    });
    match done {
        Ok(()) => 0,
        Err(Failure { message, code }) => {
            let line = message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
            let _ = writeln!(err, "error: {line}");
            code
        }
    }
}

fn start_log(verbose: u8) {
    use tracing_subscriber::EnvFilter;
    let default = ["warn", "info", "debug"][usize::from(verbose.min(2))];
    let filter = EnvFilter::try_from_env("PITH_LOG").unwrap_or_else(|_| EnvFilter::new(format!("quantize={default}")));
    // A second call in one process keeps the first subscriber.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().try_init();
}
