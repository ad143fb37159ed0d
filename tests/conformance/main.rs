//! The OCI distribution specification v1.1 as its text demands, row by row, first with the
//! primary as the registry, then with a secondary: what a client may rely on must not depend on
//! which of them it talks to.

#![cfg(test)]
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

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use registry::{Registry, WayIn};
use support::{
    Cluster, Options, path,
    registry::{Lets, OWNER},
    token_service::{ISSUER, NamesKey, SERVICE, TokenService, User},
};

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

#[test]
fn a_registry_that_says_itself_who_may_conforms_at_the_gateway_and_behind_it() {
    let auth_toml = Some("[auth]\nmode = 'delegated'\n".to_owned());
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], auth_toml, ..gateway() });
    let password = cluster.registry.as_ref().unwrap().password.clone();
    let way_in = WayIn::Password { user: OWNER, password };
    run_but(&Registry::by(way_in.clone(), &cluster.sites[0]), NOT_BEHIND);
    run_but(&Registry::by(way_in, &cluster.primary).below("gateway"), NOT_BEHIND);
}

#[test]
fn a_registry_that_believes_tokens_conforms_at_the_gateway_and_behind_it() {
    let (service, files) = (TokenService::start(vec![owner()]), tempfile::tempdir().unwrap());
    let cluster = Cluster::start(believing(&service, files.path()));
    let way_in = WayIn::Service { service, user: OWNER };
    run_but(&Registry::by(way_in.clone(), &cluster.sites[0]), NOT_BEHIND);
    run_but(&Registry::by(way_in, &cluster.primary).below("gateway"), NOT_BEHIND);
}

fn owner() -> User {
    User {
        name: OWNER.to_owned(),
        password: "s3cret".to_owned(),
        names_key: NamesKey::Libtrust,
        may: |_, _| true,
    }
}

/// A site behind a gateway, and a registry that believes the same tokens of `service`; files lie in `files`.
fn believing(service: &TokenService, files: &Path) -> Options {
    let (bundle, password) = (files.join("bundle.crt"), files.join("password"));
    service.write_bundle(&bundle);
    fs::write(&password, owner().password).unwrap();
    let (bundle, password, realm) = (path(&bundle), path(&password), service.realm());
    Options {
        sites: vec!["mumbai"],
        registry: Some(Lets::Anybody),
        registry_yaml: format!(
            "auth:\n  token: {{realm: '{realm}', service: '{SERVICE}', issuer: '{ISSUER}', \
             rootcertbundle: '{bundle}'}}\n"
        ),
        gateway_toml: format!(
            "username = '{OWNER}'\npassword_file = '{password}'\ntoken_realm = '{realm}'\n"
        ),
        auth_toml: Some(format!(
            "[auth]\nmode = 'token'\n[auth.token]\nrealm = '{realm}'\nservice = '{SERVICE}'\n\
             issuer = '{ISSUER}'\ncertificates = '{bundle}'\n"
        )),
        ..options()
    }
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
