//! The `cargo xtask` command; everything is in [`pith_tools`].

use std::process::ExitCode;

fn main() -> ExitCode {
    match pith_tools::run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
