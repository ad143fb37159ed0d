//! What a site holds and what it lets go: limits, full disks, bit rot, garbage. No pull suffers.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
};

use outport_proto::Digest;
use serde_json::Value;

use crate::support::{
    Cluster, Node, Options, outport, path,
    session::{Session, bytes},
};

const REPO: &str = "team/app";
const MIB: usize = 1 << 20;

fn cluster(store: &str) -> Cluster {
    let site_toml = format!("[[policy]]\nkeep = 'lazy'\n\n[store]\n{store}\n");
    let primary_toml = "[store]\ngc_grace_minutes = 0\n".to_owned();
    Cluster::start(Options { sites: vec!["mumbai"], site_toml, primary_toml, ..Options::default() })
}

/// Pushes blobs and waits until the site knows them.
fn push(cluster: &Cluster, contents: &[Vec<u8>]) -> Vec<(String, Digest)> {
    let pusher = Session::user(cluster, &cluster.primary, &[REPO]);
    let pushed = contents.iter().map(|content| {
        let digest = pusher.push_blob(REPO, content);
        (format!("/v2/{REPO}/blobs/{digest}"), digest)
    });
    let pushed = pushed.collect();
    wait_applied(cluster);
    pushed
}

fn wait_applied(cluster: &Cluster) {
    let head = cluster.primary.status()["head_seq"].as_u64();
    cluster.sites[0].wait_until(|status| status["applied_seq"].as_u64() >= head);
}

fn blob_path(node: &Node, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    node.data().join("store/blobs/sha256").join(&hex[..2]).join(&hex)
}

#[test]
fn a_limit_holds_and_no_pull_is_denied() {
    const LIMIT: u64 = 4 * MIB as u64;
    let cluster = cluster(&format!("limit = '{}MiB'", LIMIT >> 20));
    let site = &cluster.sites[0];
    let contents: Vec<Vec<u8>> = (0..12).map(|seed| bytes(700_000 + seed as usize, 100 + seed)).collect();
    let blobs = push(&cluster, &contents);
    let puller = Session::anyone(&cluster, site, &[REPO]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                let status = site.status();
                assert_eq!(status["store"]["limit_bytes"], LIMIT);
                assert!(status["store"]["bytes"].as_u64().unwrap() <= LIMIT, "{status}");
            }
        });
        let pulls: Vec<_> = (0..6)
            .map(|client| {
                let (puller, blobs, contents) = (&puller, &blobs, &contents);
                scope.spawn(move || {
                    for round in 0..40 {
                        let at = (client * 5 + round * 7) % blobs.len();
                        let response = puller.get(&blobs[at].0);
                        assert_eq!(response.status, 200, "{}", response.text());
                        assert!(response.body == contents[at], "blob {at}, round {round}");
                    }
                })
            })
            .collect();
        let ended: Vec<_> = pulls.into_iter().map(|pull| pull.join()).collect();
        done.store(true, SeqCst);
        assert!(ended.iter().all(Result::is_ok));
    });
    assert!(site.metric("outport_store_evicted_blobs_total", "") > 0.0);
    let row = &cluster.primary.status()["sites"][0]["store"];
    assert_eq!(row["limit_bytes"], LIMIT);
}

/// What lies under a directory of a node is a small disk; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where one may not mount.
    fn mount(at: PathBuf, bytes: usize) -> Option<Self> {
        let size = format!("size={bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs", path(&at)]).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(at))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy", path(&self.0)]).status();
    }
}

#[test]
fn a_full_disk_fails_no_pull_and_recovers_by_itself() {
    let mut cluster = cluster("");
    let mut contents: Vec<Vec<u8>> = (0..16).map(|seed| bytes(MIB, 200 + seed)).collect();
    contents.push(bytes(12 * MIB, 300));
    let blobs = push(&cluster, &contents);
    cluster.sites[0].stop();
    let Some(_disk) = SmallDisk::mount(cluster.sites[0].data().join("store"), 8 * MIB) else {
        eprintln!("skipped: no right to mount a small disk");
        return;
    };
    cluster.sites[0].start();
    let site = &cluster.sites[0];
    site.wait_until(|status| status["state"] == "streaming");
    let puller = Session::anyone(&cluster, site, &[REPO]);
    for round in 0..3 {
        thread::scope(|scope| {
            for client in 0..4 {
                let (puller, blobs, contents) = (&puller, &blobs, &contents);
                scope.spawn(move || {
                    for at in (0..blobs.len()).map(|at| (at + client * 4) % blobs.len()) {
                        let response = puller.get(&blobs[at].0);
                        assert_eq!(response.status, 200, "{}", response.text());
                        assert!(response.body == contents[at], "blob {at}, round {round}");
                    }
                });
            }
        });
    }
    assert!(site.metric("outport_store_evicted_blobs_total", "") > 0.0);
    assert!(site.metric("outport_fills_unkept_total", "") > 0.0, "12 MiB do not fit on 8");
    // What is pulled now is kept again.
    let digest = blobs[0].1;
    assert_eq!(puller.get(&blobs[0].0).status, 200);
    site.wait_until(|_| blob_path(site, &digest).exists());
}

/// Flips a bit of a blob while the node is stopped, as a disk does it.
fn flip(node: &mut Node, digest: &Digest, at: usize) {
    node.stop();
    let file = fs::File::options().read(true).write(true).open(blob_path(node, digest)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at as u64).unwrap();
    node.start();
}

#[test]
fn a_flipped_bit_is_never_served_by_a_site_and_is_fetched_again() {
    let mut cluster = cluster("");
    let contents = [bytes(100_000, 1), bytes(6 * MIB, 2)];
    let blobs = push(&cluster, &contents);
    let mut set_aside = 0;
    for (at, (target, digest)) in blobs.iter().enumerate() {
        let content = &contents[at];
        let size = content.len();
        for position in [0, size / 2, size - 1] {
            for range in [None, Some(0..10), Some(size - 10..size)] {
                let what = format!("{size} bytes, bit of byte {position}, range {range:?}");
                let puller = Session::anyone(&cluster, &cluster.sites[0], &[REPO]);
                assert!(puller.get(target).body == *content);
                flip(&mut cluster.sites[0], digest, position);
                let site = &cluster.sites[0];
                site.wait_until(|status| status["state"] == "streaming");
                assert_eq!(puller.head(target).status, 200, "{what}");
                let header = range.as_ref().map(|range| format!("bytes={}-{}", range.start, range.end - 1));
                let headers: Vec<_> = header.iter().map(|value| ("Range", value.as_str())).collect();
                // Cut off, or right.
                let expected = range.map_or(&content[..], |range| &content[range]);
                if let Ok(response) = puller.try_send("GET", target, &headers, b"") {
                    assert!(matches!(response.status, 200 | 206), "{what}: {}", response.status);
                    assert!(response.body == expected, "{what}");
                }
                let again = puller.send("GET", target, &headers, b"");
                assert!(again.body == expected, "{what}, again");
                assert_eq!(site.metric("outport_store_rotten_blobs_total", ""), 1.0, "{what}");
                set_aside += 1;
            }
        }
    }
    assert_eq!(set_aside, 18);
    assert_eq!(fs::read_dir(cluster.sites[0].data().join("store/quarantine")).unwrap().count(), 2);
}

#[test]
fn a_flipped_bit_at_the_primary_is_no_reason_to_say_no() {
    let mut cluster = cluster("");
    let contents = [bytes(100_000, 3), bytes(6 * MIB, 4)];
    let blobs = push(&cluster, &contents);
    for (at, (target, digest)) in blobs.iter().enumerate() {
        flip(&mut cluster.primary, digest, contents[at].len() / 2);
        cluster.sites[0].wait_until(|status| status["state"] == "streaming");
        for node in [&cluster.primary, &cluster.sites[0]] {
            let puller = Session::anyone(&cluster, node, &[REPO]);
            for _ in 0..2 {
                // Cut off, or 503: the blob is lost, and nobody says that it never was.
                if let Ok(response) = puller.try_send("GET", target, &[], b"") {
                    assert_eq!(response.status, 503, "{at}: {}", response.text());
                }
            }
        }
        assert_eq!(cluster.primary.metric("outport_store_rotten_blobs_total", ""), 1.0);
        // Pushed again it is there again.
        Session::user(&cluster, &cluster.primary, &[REPO]).push_blob(REPO, &contents[at]);
        let puller = Session::anyone(&cluster, &cluster.sites[0], &[REPO]);
        assert!(puller.get(target).body == contents[at]);
    }
}

fn gc(node: &Node, arguments: &[&str]) -> Value {
    let address = node.admin();
    let mut all = vec!["gc", "--json", "--admin", &address];
    all.extend_from_slice(arguments);
    serde_json::from_str(&outport(&all)).unwrap()
}

#[test]
fn garbage_goes_at_both_roles_and_nothing_else_does() {
    let mut cluster = cluster("gc_grace_minutes = 0");
    let contents = [bytes(100_000, 5), bytes(200_000, 6)];
    let blobs = push(&cluster, &contents);
    let puller = Session::anyone(&cluster, &cluster.sites[0], &[REPO]);
    for (at, (target, _)) in blobs.iter().enumerate() {
        assert!(puller.get(target).body == contents[at]);
    }
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    assert_eq!(pusher.send("DELETE", &blobs[0].0, &[], b"").status, 202);
    wait_applied(&cluster);
    for node in cluster.nodes() {
        let dry = gc(node, &["--dry-run"]);
        assert_eq!((&dry["removed"]["blobs"], &dry["removed"]["bytes"]), (&1.into(), &100_000.into()));
        assert!(blob_path(node, &blobs[0].1).exists(), "only looked");
        assert_eq!(gc(node, &[])["removed"]["blobs"], 1);
        assert!(!blob_path(node, &blobs[0].1).exists() && blob_path(node, &blobs[1].1).exists());
        assert_eq!(gc(node, &[])["unlinked"]["blobs"], 0);
        assert_eq!(node.status()["store"]["blobs"], 1);
    }
    assert_eq!(puller.get(&blobs[0].0).status, 404);
    // A primary that is down, or says no without a tombstone, purges nothing.
    cluster.primary.kill();
    cluster.sites[0].wait_until(|status| status["state"] == "disconnected");
    assert_eq!(gc(&cluster.sites[0], &[])["unlinked"]["blobs"], 0);
    assert!(puller.get(&blobs[1].0).body == contents[1]);
}
