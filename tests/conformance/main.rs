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
use support::{Cluster, Options, registry::Lets};

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

#[test]
fn a_primary_in_front_of_a_registry_conforms() {
    let cluster = Cluster::start(Options { sites: Vec::new(), ..gateway() });
    run_but(&Registry::new(&cluster, &cluster.primary), NOT_BEHIND);
}

#[test]
fn a_secondary_of_a_primary_in_front_of_a_registry_conforms() {
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], ..gateway() });
    run_but(&Registry::new(&cluster, &cluster.sites[0]), NOT_BEHIND);
}

/// What CNCF Distribution 2.8 does not do as the specification asks, or not at all: the gateway answers
/// what it answers.
const NOT_BEHIND: &[&str] = &[
    // It begins an upload instead.
    "single POST",
    "mount without from",
    // It takes them as they come.
    "chunks out of order",
    // As a single POST it begins an upload.
    "a wrong digest",
    // It knows neither artifact manifests nor `?tag=`.
    "every media type comes back as it went",
    "tags as parameters",
    "a manifest by sha512",
    // It answers 500 to a layer of a URL that its configuration does not list.
    "layers that need not be here",
    // It deletes manifests alone.
    "what nobody pushed",
    "delete a tag",
];

fn gateway() -> Options {
    Options { registry: Some(Lets::Users), ..options() }
}

fn options() -> Options {
    Options::default()
}

/// Runs every row, each in repositories of its own, and reports all that fail.
fn run(registry: &Registry) {
    run_but(registry, &[]);
}

/// Runs every row but those that are `left_out`, which must be rows.
fn run_but(registry: &Registry, left_out: &[&str]) {
    let mut rows = [uploads::ROWS, content::ROWS, manifests::ROWS, discovery::ROWS].concat();
    let all = rows.len();
    rows.retain(|(name, _)| !left_out.contains(name));
    assert_eq!(rows.len() + left_out.len(), all, "a row that is left out is none");
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
