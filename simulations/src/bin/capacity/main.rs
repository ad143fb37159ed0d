//! What a primary and its sites can carry, from measured costs: a report with plots.
//!
//! `fan_out` simulates the cores of a primary or relay and the queue before them; `popularity` what a
//! site already has of what is pulled; `plan` puts them, the network and the costs together; `report`
//! writes it down for people. The costs are those of `costs.toml` beside this crate, which
//! `OUTPORT_COSTS=$PWD/simulations/costs.toml cargo bench -- costs` measures anew. Machines differ:
//! measure yours.

mod chart;
mod costs;
mod fan_out;
mod plan;
mod popularity;
mod random;
mod report;

use std::{io::Write as _, path::PathBuf};

use anyhow::Context as _;
use clap::Parser;

/// Writes a report on what a primary and its sites can carry.
#[derive(Debug, Parser)]
struct Arguments {
    /// Costs that were measured on another machine (TOML, as `simulations/costs.toml`).
    #[arg(long, value_name = "FILE")]
    costs: Option<PathBuf>,
    /// Where the report goes: `index.html`, and each plot as an SVG file.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let costs = costs::Costs::load(arguments.costs.as_deref())?;
    let report = report::Report::of(&costs, arguments.seed);
    std::fs::create_dir_all(&arguments.out).with_context(|| format!("create {}", arguments.out.display()))?;
    for (name, content) in report.files() {
        let path = arguments.out.join(name);
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    }
    writeln!(std::io::stdout(), "{}", arguments.out.join(report::PAGE).display()).context("write")
}
