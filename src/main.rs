//! The `outport` program: parse arguments, start the runtime, turn the outcome into an exit code.

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use outport::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("start the runtime: {error}")),
    };
    let outcome = runtime.block_on(cli.run());
    // Blocking threads may sit in a read of a slow disk: what matters is already waited for.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(error) => failed(&format!("{error:#}")),
    }
}

fn failed(reason: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "outport: {reason}");
    ExitCode::FAILURE
}
