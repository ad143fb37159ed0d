//! The OCI distribution specification v1.1 as its text demands, row by row, first with the
//! primary as the registry, then with a secondary: what a client may rely on must not depend on
//! which of them it talks to.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why on standard error"
)]
#![expect(
    unreachable_pub,
    reason = "a test binary is reached by nobody: `pub` tells its modules apart well enough"
)]

mod content;
mod discovery;
mod manifests;
mod registry;
#[path = "../support/mod.rs"]
mod support;
mod uploads;

use std::panic::{AssertUnwindSafe, catch_unwind};

use registry::Registry;
use support::{Cluster, Options};

/// A row: what is demanded, and the check of it.
type Row = (&'static str, fn(&Registry));

#[test]
fn the_primary_conforms() {
    let cluster = Cluster::start(Options { sites: Vec::new(), ..options() });
    run(&Registry::new(&cluster, &cluster.primary));
}

#[test]
fn a_secondary_conforms() {
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], ..options() });
    run(&Registry::new(&cluster, &cluster.sites[0]));
}

#[test]
fn a_secondary_that_proxies_pushes_conforms() {
    let site_toml = "[push]\nmode = 'proxy'\n".to_owned();
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], site_toml, ..options() });
    run(&Registry::new(&cluster, &cluster.sites[0]));
}

fn options() -> Options {
    Options::default()
}

/// Runs every row, each in repositories of its own, and reports all that fail.
fn run(registry: &Registry) {
    let rows = [uploads::ROWS, content::ROWS, manifests::ROWS, discovery::ROWS].concat();
    let failed: Vec<&str> = rows
        .iter()
        .filter(|(name, check): &&Row| {
            let registry = registry.with_repo(name);
            let failed = catch_unwind(AssertUnwindSafe(|| check(&registry))).is_err();
            if failed {
                eprintln!("^ row `{name}`\n");
            }
            failed
        })
        .map(|(name, _)| *name)
        .collect();
    assert!(failed.is_empty(), "{} of {} rows fail: {failed:#?}", failed.len(), rows.len());
}
