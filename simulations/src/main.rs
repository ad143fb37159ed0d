//! Runs worlds and reports what was seen; exit code 1 when a promise was broken.

use std::{
    io::Write,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Parser;
use simulations::{Bug, Options, Report, run};

/// Deterministic simulation of a primary and its sites.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many worlds, one a seed.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Only this world.
    #[arg(long, conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
    /// Virtual minutes a world, recovery not counted.
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Make a mistake on purpose.
    #[arg(long, value_enum)]
    bug: Option<Bug>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let (first, worlds) = match arguments.seed {
        Some(seed) => (seed, 1),
        None => (arguments.first, arguments.seeds),
    };
    let mut out = std::io::stdout().lock();
    let begun = Instant::now();
    let mut report = Report::default();
    for seed in first..first.saturating_add(worlds) {
        let duration = Duration::from_secs(arguments.minutes * 60);
        let outcome = run(&Options { seed, duration, bug: arguments.bug });
        report.add(&outcome.report);
        if worlds == 1 {
            writeln!(out, "trace {:016x}", outcome.trace).context("write")?;
        }
        if let Some((at, broken)) = outcome.broken {
            let bug = arguments.bug.map(|bug| format!(" --bug {}", bug.name())).unwrap_or_default();
            let minutes = arguments.minutes;
            write!(out, "{report}").context("write")?;
            writeln!(out, "BROKEN at {:.6} s with seed {seed}: {broken}", at.as_secs_f64())
                .context("write")?;
            writeln!(
                out,
                "replay: cargo run --release -p simulations -- --seed {seed} --minutes {minutes}{bug}"
            )
            .context("write")?;
            return Ok(ExitCode::FAILURE);
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    write!(out, "{report}").context("write")?;
    let speed = report.time.as_secs_f64() / seconds;
    writeln!(out, "{:.1} seeds/s, {speed:.0} times real time, no promise broken", worlds as f64 / seconds)
        .context("write")?;
    Ok(ExitCode::SUCCESS)
}
