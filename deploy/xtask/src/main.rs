//! `cargo run -p xtask -- COMMAND`: what Outport is installed from.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match xtask::Xtask::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
