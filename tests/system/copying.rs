//! Copying ahead: layers travel while their image is still being pushed.

use crate::support::{
    Cluster, Options,
    session::{Session, bytes, image},
    wait_for,
};

const REPO: &str = "team/app";

#[test]
fn a_layer_is_at_the_site_before_any_manifest_names_it() {
    let mut cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let layer = bytes(300_000, 5);
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    let digest = pusher.push_blob(REPO, &layer);
    cluster.wait_complete();
    let site = &cluster.sites[0];
    assert_eq!(site.status()["store"]["blobs"], 1);
    assert_eq!(site.metric("outport_upstream_bytes_total", ""), 300_000.0);

    let puller = Session::anyone(&cluster, site, &[REPO]);
    cluster.primary.kill();
    let got = puller.get(&format!("/v2/{REPO}/blobs/{digest}"));
    assert_eq!((got.status, got.body == layer), (200, true), "{}", got.status);
}

#[test]
fn only_what_is_kept_eagerly_is_copied_ahead() {
    let site_toml =
        "[[policy]]\nrepository = 'base/**'\nkeep = 'eager'\n[[policy]]\nkeep = 'lazy'\n".to_owned();
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], site_toml, ..Options::default() });
    let (eager, lazy) = (bytes(10_000, 6), bytes(20_000, 7));
    let pusher = Session::user(&cluster, &cluster.primary, &["base/os", REPO]);
    let lazy_digest = pusher.push_blob(REPO, &lazy);
    pusher.push_blob("base/os", &eager);
    let site = &cluster.sites[0];
    wait_for("the eager blob", || (site.status()["store"]["blobs"] == 1).then_some(()));
    cluster.wait_complete();
    assert_eq!(site.metric("outport_upstream_bytes_total", ""), 10_000.0);
    let puller = Session::anyone(&cluster, site, &[REPO]);
    assert_eq!(puller.get(&format!("/v2/{REPO}/blobs/{lazy_digest}")).body, lazy);
    assert_eq!(site.metric("outport_upstream_bytes_total", ""), 30_000.0);
}

#[test]
fn a_blob_of_two_repositories_is_copied_once() {
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let layer = bytes(100_000, 8);
    let repos = ["team/a", "team/b"];
    let pusher = Session::user(&cluster, &cluster.primary, &repos);
    for repo in repos {
        pusher.push_image(repo, "1", &[&layer]);
    }
    cluster.wait_complete();
    let site = &cluster.sites[0];
    let config = image(&[]).len();
    let fetched = site.metric("outport_upstream_bytes_total", "");
    assert!((100_000.0..100_000.0 + config as f64).contains(&fetched), "{fetched}");
}
