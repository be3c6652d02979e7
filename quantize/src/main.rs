//! The `quantize` command; everything is in [`quantize::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(quantize::cli::run(std::env::args_os(), &mut std::io::stdout().lock(), &mut std::io::stderr()))
}
