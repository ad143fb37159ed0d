//! A site that was away for long takes the primary's whole state, and pulls go on meanwhile.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Instant,
};

use outport_proto::Digest;
use serde_json::{Value, json};

use crate::support::{
    Cluster, Options, PATIENCE,
    http::get_plain,
    session::{OCI_MANIFEST, Session, bytes, image},
};

const REPO: &str = "team/app";
/// Enough for a snapshot that takes a while.
const MANIFESTS: usize = 48;
const MANIFEST_BYTES: usize = 180_000;

fn large_manifest(number: usize) -> Vec<u8> {
    let noise: String =
        bytes(MANIFEST_BYTES / 2, number as u64 + 1).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut manifest: Value = serde_json::from_slice(&image(&[])).unwrap();
    manifest["mediaType"] = json!(OCI_MANIFEST);
    manifest["annotations"] = json!({ "noise": noise });
    manifest.to_string().into_bytes()
}

#[test]
fn pulls_never_fail_while_a_snapshot_is_taken() {
    let mut cluster = Cluster::start(Options {
        sites: vec!["mumbai"],
        primary_toml: "[log]\nsnapshot_after_events = 10\n".to_owned(),
        ..Options::default()
    });
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    pusher.push_image(REPO, "1", &[b"old layer"]);
    cluster.wait_complete();
    let older_token = Session::anyone(&cluster, &cluster.primary, &[REPO]);
    cluster.sites[0].stop();

    let layer = bytes(100_000, 7);
    let moved = pusher.push_image(REPO, "1", &[&layer]);
    pusher.push_image(REPO, "2", &[b"old layer"]);
    // More events than the snapshot has entries.
    for _ in 0..2 {
        for number in 0..MANIFESTS {
            let put = pusher.put_manifest(REPO, "large", &large_manifest(number));
            assert_eq!(put.status, 201, "{}", put.text());
        }
    }
    let head = cluster.primary.status()["head_seq"].as_u64().unwrap();
    let newer_token = Session::anyone(&cluster, &cluster.primary, &[REPO]);

    cluster.sites[0].spawn();
    let site = &cluster.sites[0];
    let (is_connected, is_done, pulls) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for session in [&older_token, &newer_token] {
            let session = session.at(site);
            let (moved, layer, is_connected, is_done, pulls) =
                (&moved, &layer, &is_connected, &is_done, &pulls);
            scope.spawn(move || {
                let digest = moved.digest.to_string();
                let blob = Digest::sha256(layer);
                let targets = [
                    (format!("/v2/{REPO}/manifests/1"), &moved.manifest),
                    (format!("/v2/{REPO}/manifests/{digest}"), &moved.manifest),
                    (format!("/v2/{REPO}/blobs/{blob}"), layer),
                ];
                while !is_done.load(Ordering::SeqCst) {
                    for (target, content) in &targets {
                        let was_connected = is_connected.load(Ordering::SeqCst);
                        let head = session.try_send("HEAD", target, &[], b"");
                        let get = session.try_send("GET", target, &[], b"");
                        if !was_connected {
                            continue;
                        }
                        let (head, get) = (head.unwrap(), get.unwrap());
                        assert_eq!((head.status, get.status), (200, 200), "{target}: {}", get.text());
                        assert!(get.body == **content, "{target} is not what the primary has");
                        pulls.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
        let state = || {
            let (_, text) = get_plain(&site.admin(), "/v1/status").ok()?;
            serde_json::from_str::<Value>(&text).ok()
        };
        let mut states: Vec<String> = Vec::new();
        let (began, mut caught_up) = (Instant::now(), false);
        while !caught_up && began.elapsed() < PATIENCE {
            let Some(status) = state() else { continue };
            let name = status["state"].as_str().unwrap_or_default().to_owned();
            is_connected.fetch_or(name != "disconnected", Ordering::SeqCst);
            caught_up = status["applied_seq"].as_u64().unwrap_or(0) >= head && name == "streaming";
            if states.last() != Some(&name) {
                states.push(name);
            }
        }
        is_done.store(true, Ordering::SeqCst);
        assert!(caught_up, "{states:?}");
    });
    assert!(site.log().contains("snapshot installed"), "it came by a snapshot");
    assert!(pulls.load(Ordering::SeqCst) >= 3, "clients pulled meanwhile");
    cluster.wait_complete();
    let status = site.status();
    assert_eq!(status["alarm"], Value::Null);
}
