//! The figures, measured here and now: `cargo bench` starts a primary and a site, and nginx and
//! Debian's docker-registry beside them where they are installed, and prints a table.
//!
//! Where the server alone is measured it runs on core 0 and the load generator on core 1. Rounds
//! of all peers alternate, and medians are compared, because machines are noisy.
//! `cargo bench -- NAME..` runs the figures whose names hold one of the words.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says why on standard error"
)]
#![expect(
    unreachable_pub,
    reason = "a test binary is reached by nobody: `pub` tells its modules apart well enough"
)]

mod catching_up;
#[expect(dead_code, reason = "tests use more of it")]
#[path = "../system/collector.rs"]
mod collector;
mod costs;
mod divergence;
mod figures;
mod gateway;
#[path = "../replication/incident.rs"]
mod incident;
mod joining;
mod load;
mod observed;
mod peers;
mod scale;
#[expect(dead_code, reason = "tests use more of it")]
#[path = "../replication/stretch.rs"]
mod stretch;
#[path = "../support/mod.rs"]
mod support;
#[expect(dead_code, reason = "tests use more of it")]
#[path = "../replication/world.rs"]
mod world;

use comfy_table::{Table, presets};

/// A row of the table.
struct Figure {
    what: &'static str,
    measured: String,
    must_reach: &'static str,
}

type Measure = fn() -> Vec<Figure>;

const MEASURES: &[(&str, Measure)] = &[
    ("manifest", figures::warm_manifest),
    ("observed", observed::cost),
    ("blob", figures::warm_blob),
    ("crowd", figures::crowd),
    ("cold", figures::cold_pull),
    ("propagation", figures::propagation),
    ("memory", figures::memory),
    ("start-empty", figures::start_empty),
    ("start", figures::start_after_kill),
    ("events", catching_up::events),
    ("snapshot", catching_up::snapshot),
    ("sites-fan-out", scale::fan_out),
    ("sites-memory", scale::memory_a_site),
    ("gateway-push", gateway::push),
    ("gateway-manifest", gateway::manifest),
    ("gateway-memory", gateway::memory),
    ("costs", costs::costs),
    ("divergence", divergence::divergence),
    ("join", joining::first_pull),
    ("rotation", joining::rotation),
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header(["figure", "measured", "must reach"]);
    for (name, measure) in MEASURES {
        if words.is_empty() || words.iter().any(|word| name.contains(word.as_str())) {
            eprintln!("measuring: {name}");
            for figure in measure() {
                eprintln!("  {}: {}", figure.what, figure.measured);
                table.add_row([figure.what, &figure.measured, figure.must_reach]);
            }
        }
    }
    println!("{table}");
}
