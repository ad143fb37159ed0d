//! `outport verify`: what it says of a node that is right, and of one that is not.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    process::{Command, Output},
    thread,
};

use outport_proto::Digest;
use serde_json::Value;

use crate::support::{
    BINARY, Cluster, Node, Options,
    http::get_plain,
    session::{Session, bytes},
    wait_for,
};

const REPO: &str = "team/app";

/// A cluster of one site that hashes no blob unless it is told to.
fn cluster() -> Cluster {
    let toml = "[store]\nscrub_mib_per_second = 0\n".to_owned();
    Cluster::start(Options {
        sites: vec!["mumbai"],
        site_toml: toml.clone(),
        primary_toml: toml,
        ..Options::default()
    })
}

/// The exit code of `outport verify`, and its result.
fn verify(node: &Node, arguments: &[&str]) -> (i32, Value) {
    let output = run(node, &[&["--json"], arguments].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&text);
    (output.status.code().unwrap(), report.unwrap_or_else(|_| panic!("{output:?}")))
}

fn run(node: &Node, arguments: &[&str]) -> Output {
    let address = node.admin();
    Command::new(BINARY).args(["verify", "--admin", &address]).args(arguments).output().unwrap()
}

fn report(node: &Node) -> Value {
    let (status, text) = get_plain(&node.admin(), "/v1/verify").unwrap();
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn blob_path(node: &Node, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    node.data().join("store/blobs/sha256").join(&hex[..2]).join(&hex)
}

/// Flips a bit in the middle of a blob.
fn flip(node: &Node, digest: &Digest) {
    let file = File::options().read(true).write(true).open(blob_path(node, digest)).unwrap();
    let (mut byte, at) = ([0], file.metadata().unwrap().len() / 2);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

#[test]
fn nodes_that_are_right_are_said_to_be_and_a_rotten_blob_is_found() {
    let cluster = cluster();
    let site = &cluster.sites[0];
    let layer = bytes(6 << 20, 1);
    let digest = Digest::sha256(&layer);
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    pusher.push_image(REPO, "1", &[&layer, &bytes(50_000, 2)]);
    cluster.wait_complete();
    for (node, equals) in [(&cluster.primary, Value::Null), (site, true.into())] {
        let (code, report) = verify(node, &[]);
        assert_eq!(
            (code, &report["adds_up"], &report["equals_primary"]),
            (0, &true.into(), &equals),
            "{report}"
        );
        // The tag, the manifest, and what it links.
        assert!(report["rows"].as_u64().unwrap() >= 4 && report["blobs"].is_null(), "{report}");
        let (code, report) = verify(node, &["--blobs"]);
        let blobs = &report["blobs"];
        assert_eq!((code, &blobs["rotten"]), (0, &0.into()), "{report}");
        assert!(
            blobs["blobs"].as_u64().unwrap() >= 2 && blobs["bytes"].as_u64().unwrap() > 6 << 20,
            "{report}"
        );
        assert_eq!(blobs["bytes"], blobs["bytes_expected"], "{report}");
    }

    flip(site, &digest);
    let (code, report) = verify(site, &[]);
    assert_eq!(code, 0, "nobody looked at blobs: {report}");
    let output = run(site, &["--blobs"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(text.contains("1 of them had rotted"), "{text}");
    assert_eq!(site.metric("outport_store_rotten_blobs_total", ""), 1.0);
    let puller = Session::anyone(&cluster, site, &[REPO]);
    assert!(puller.get(&format!("/v2/{REPO}/blobs/{digest}")).body == layer);
    wait_for("the blob to come back", || blob_path(site, &digest).exists().then_some(()));
    let (code, report) = verify(site, &["--blobs"]);
    assert_eq!(code, 0, "{report}");

    flip(&cluster.primary, &digest);
    let (code, report) = verify(&cluster.primary, &["--blobs"]);
    assert_eq!((code, &report["blobs"]["rotten"]), (3, &1.into()), "{report}");
    let nobody = Command::new(BINARY).args(["verify", "--admin", "127.255.255.253:1"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(1));
}

#[test]
fn a_blob_that_is_gone_is_missed_where_it_should_be() {
    let toml = "[store]\nscrub_mib_per_second = 0\n".to_owned();
    let rules = "[[policy]]\nrepository = 'base/*'\nkeep = 'eager'\n[[policy]]\nkeep = 'lazy'\n\n";
    let cluster = Cluster::start(Options {
        sites: vec!["mumbai"],
        site_toml: format!("{rules}{toml}"),
        primary_toml: toml,
        ..Options::default()
    });
    let site = &cluster.sites[0];
    let pusher = Session::user(&cluster, &cluster.primary, &["base/os", REPO]);
    let [eager, lazy] = [(4, "base/os"), (5, REPO)].map(|(seed, repo)| {
        let layer = bytes(100_000, seed);
        pusher.push_image(repo, "1", &[&layer]);
        Digest::sha256(&layer)
    });
    cluster.wait_complete();
    let missing = |node: &Node| {
        let (code, report) = verify(node, &["--blobs"]);
        (code, report["blobs"]["missing"].as_u64().unwrap(), report["missing"].clone())
    };
    let none = (0, 0, serde_json::json!([]));
    assert!(!blob_path(site, &lazy).exists());
    assert_eq!(missing(site), none, "it keeps that one once somebody pulls it");
    assert_eq!(missing(&cluster.primary), none);

    std::fs::remove_file(blob_path(site, &eager)).unwrap();
    assert_eq!(missing(site), (3, 1, serde_json::json!([format!("base/os@{eager}")])));
    wait_for("the blob to be fetched again", || blob_path(site, &eager).exists().then_some(()));
    assert_eq!(missing(site), none);

    let (here, away) = (blob_path(&cluster.primary, &lazy), cluster.dir.path().join("away"));
    std::fs::rename(&here, &away).unwrap();
    for _ in 0..2 {
        assert_eq!(missing(&cluster.primary), (3, 1, serde_json::json!([format!("{REPO}@{lazy}")])));
    }
    let text = run(&cluster.primary, &["--blobs"]).stdout;
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("of the blobs that should be here, 1 are not:"), "{text}");
    std::fs::rename(&away, &here).unwrap();
    assert_eq!(missing(&cluster.primary), none);
}

#[test]
fn a_lost_tag_is_repaired_and_a_site_without_its_primary_cannot_tell() {
    let mut cluster = cluster();
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    pusher.push_image(REPO, "1", &[&bytes(50_000, 3)]);
    cluster.wait_complete();
    let Cluster { primary, sites, .. } = &mut cluster;
    let site = &mut sites[0];
    site.stop();
    primary.stop();
    let db = sled::Config::new().path(site.data().join("index/db")).open().unwrap();
    assert!(db.remove(format!("t{REPO}\01")).unwrap().is_some());
    db.flush().unwrap();
    drop(db);

    site.start();
    let output = run(site, &["--timeout", "100ms"]);
    let text = String::from_utf8_lossy(&output.stdout);
    // The loss shows without the primary until a walk of the site's own has counted anew.
    assert!(matches!(output.status.code(), Some(3 | 4)), "{output:?}");
    assert!(text.contains("could not be compared with the primary's"), "{text}");

    let repaired = thread::scope(|scope| {
        let verifying = scope.spawn(|| verify(site, &[]));
        // What is repaired from here on is repaired meanwhile.
        wait_for("the walk", || {
            let report = report(site);
            (report["pass"] == 2 && report["adds_up"] == true).then_some(())
        });
        primary.start();
        verifying.join().unwrap()
    });
    let (code, report) = repaired;
    assert_eq!(
        (code, &report["repaired"], &report["equals_primary"]),
        (3, &1.into(), &true.into()),
        "{report}"
    );
    for (metric, expected) in [
        ("outport_state_mismatches_total", 1.0),
        ("outport_state_repairs_total", 1.0),
        ("outport_state_entries_repaired_total", 1.0),
        ("outport_verify_index_mismatches_total", 1.0),
    ] {
        assert_eq!(site.metric(metric, ""), expected, "{metric}");
    }
    let said = |words: &str| site.log().matches(words).count();
    assert_eq!(said("the index is not in the primary's state: it is being repaired"), 1, "{}", site.log());
    assert_eq!(said("the index is in the primary's state again"), 1, "{}", site.log());
    let (code, report) = verify(site, &["--blobs"]);
    assert_eq!((code, &report["repaired"]), (0, &0.into()), "{report}");
}
