//! Filling from the primary while clients wait, leave, ask for parts, and processes die.

use std::{fs, sync::Barrier, thread};

use outport_proto::Digest;

use crate::{
    status::Halted,
    support::{
        Cluster, Node, Options,
        http::Connection,
        session::{Session, bytes, image},
        wait_for,
    },
};

const REPO: &str = "team/app";
/// Long enough that the primary can be stopped in its middle.
const LARGE: usize = 48 << 20;
/// What is held back until the digest matches.
const HELD_BACK: usize = 64 << 10;

fn lazy_site() -> Cluster {
    let site_toml = "[[policy]]\nkeep = 'lazy'\n".to_owned();
    Cluster::start(Options { sites: vec!["mumbai"], site_toml, ..Options::default() })
}

#[test]
fn a_fill_outlives_its_client() {
    let cluster = lazy_site();
    let site = &cluster.sites[0];
    let content = bytes(LARGE, 10);
    let (puller, blob, digest) = push(&cluster, &content);

    let (mut first, head) = puller.open(&blob);
    assert_eq!((head.status, head.header("content-length")), (200, Some(LARGE.to_string().as_str())));
    let mut buffer = vec![0; 256 << 10];
    first.read(&mut buffer).unwrap();
    assert!(!is_local(site, &digest), "the fill is too quick for this test");
    drop(first);

    wait_for("the fill to finish", || is_local(site, &digest).then_some(()));
    assert_eq!(upstream_bytes(site), LARGE as f64);
    let _halted = Halted::new(&cluster.primary);
    assert!(puller.get(&blob).body == content);
}

#[test]
fn ranges_during_a_fill_are_exact() {
    let cluster = lazy_site();
    let site = &cluster.sites[0];
    let content = bytes(LARGE, 11);
    let (puller, blob, digest) = push(&cluster, &content);
    let (first, _) = puller.open(&blob);
    let first = thread::spawn(move || read_rest(first, LARGE));
    let halted = Halted::new(&cluster.primary);
    assert!(!is_local(site, &digest), "the fill is too quick for this test");

    // Each range waits for its bytes on a connection of its own while the fill stands still.
    let ranges = [
        (0, 0),
        (0, 1023),
        (512, 4095),
        (LARGE / 2, LARGE / 2 + 100_000),
        (LARGE - HELD_BACK - 10, LARGE - HELD_BACK + 10),
        (LARGE - 1, LARGE - 1),
        (0, LARGE - 1),
    ];
    let past_the_end = puller.send("GET", &blob, &[("Range", &format!("bytes={LARGE}-"))], b"");
    assert_eq!(past_the_end.status, 416);
    assert_eq!(past_the_end.header("content-range"), Some(format!("bytes */{LARGE}").as_str()));
    thread::scope(|scope| {
        let ask = |range: String| {
            let (puller, blob) = (&puller, &blob);
            scope.spawn(move || puller.send("GET", blob, &[("Range", &range)], b""))
        };
        let exact = ranges.map(|(from, to)| (from, to, ask(format!("bytes={from}-{to}"))));
        let clamped = ask(format!("bytes={}-{}", LARGE - 5, LARGE + 5));
        let suffix = ask("bytes=-7".to_owned());
        wait_for("readers to join the fill", || {
            (site.metric("outport_fills_joined_total", "") >= 5.0).then_some(())
        });
        drop(halted);
        for (from, to, answer) in exact {
            let answer = answer.join().unwrap();
            assert_eq!(answer.status, 206, "{from}-{to}");
            assert_eq!(answer.header("content-range"), Some(format!("bytes {from}-{to}/{LARGE}").as_str()));
            assert!(answer.body == content[from..=to], "{from}-{to}");
        }
        assert_eq!(clamped.join().unwrap().body, content[LARGE - 5..]);
        assert_eq!(suffix.join().unwrap().body, content[LARGE - 7..]);
    });
    assert!(first.join().unwrap() == content);
    assert_eq!(upstream_bytes(site), LARGE as f64, "one copy for all of them");
}

#[test]
fn many_first_pulls_at_once_are_one_fetch_a_blob() {
    const CLIENTS: usize = 131;
    let cluster = lazy_site();
    let site = &cluster.sites[0];
    let layers: Vec<Vec<u8>> = (0..3).map(|seed| bytes(700_000, 20 + seed)).collect();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let pushed = Session::user(&cluster, &cluster.primary, &[REPO]).push_image(REPO, "1", &layers);
    let puller = Session::anyone(&cluster, site, &[REPO]);
    let barrier = Barrier::new(CLIENTS);
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (puller, barrier, layers, pushed) = (&puller, &barrier, &layers, &pushed);
            scope.spawn(move || {
                barrier.wait();
                let manifest = puller.get(&format!("/v2/{REPO}/manifests/1"));
                assert_eq!((manifest.status, &manifest.body), (200, &pushed.manifest));
                for at in 0..layers.len() {
                    let layer = layers[(at + number) % layers.len()];
                    let blob = puller.get(&format!("/v2/{REPO}/blobs/{}", Digest::sha256(layer)));
                    assert_eq!(blob.status, 200, "{}", blob.text());
                    assert!(blob.body == layer);
                }
            });
        }
    });
    assert_eq!(upstream_bytes(site), (3 * 700_000) as f64);
}

#[test]
fn a_site_killed_in_the_middle_of_a_fill_serves_nothing_partial() {
    let mut cluster = lazy_site();
    let content = bytes(LARGE, 12);
    let (puller, blob, digest) = push(&cluster, &content);
    let (mut first, _) = puller.open(&blob);
    let mut buffer = vec![0; 64 << 10];
    first.read(&mut buffer).unwrap();
    let halted = Halted::new(&cluster.primary);
    let site = &mut cluster.sites[0];
    assert!(!is_local(site, &digest), "the fill is too quick for this test");
    assert!(!temporaries(site).is_empty());
    site.kill();
    assert!(read_rest(first, LARGE).len() < LARGE);
    site.start();
    assert_eq!(temporaries(site), [] as [String; 0], "leftovers are removed at start");
    assert!(!is_local(site, &digest));
    assert_eq!(site.status()["store"]["blobs"], 0);
    drop(halted);
    site.wait_until(|status| status["state"] == "streaming");
    let again = puller.get(&blob);
    assert_eq!(again.status, 200, "{}", again.status);
    assert!(again.body == content);
}

#[test]
fn a_primary_that_dies_in_the_middle_of_a_fill_is_waited_for_or_the_answer_breaks_off() {
    let mut cluster = lazy_site();
    let content = bytes(LARGE, 13);
    let (puller, blob, digest) = push(&cluster, &content);
    let (first, _) = puller.open(&blob);
    cluster.primary.kill();
    assert!(!is_local(&cluster.sites[0], &digest), "the fill is too quick for this test");
    let reader = thread::spawn(move || read_rest(first, LARGE));
    cluster.primary.start();
    let got = reader.join().unwrap();
    assert!(got.len() < LARGE || got == content, "a whole answer with wrong bytes");
    assert!(content.starts_with(&got));
    cluster.sites[0].wait_until(|status| status["state"] == "streaming");
    let again = puller.get(&blob);
    assert_eq!(again.status, 200, "{}", again.status);
    assert!(again.body == content);
}

#[test]
fn wrong_bytes_of_the_primary_are_never_published() {
    let cluster = lazy_site();
    let site = &cluster.sites[0];
    let damages: [fn(&mut Vec<u8>); 3] =
        [|content| content[700_000] ^= 1, |content| content.truncate(600_000), |content| content.push(0)];
    for (seed, damage) in (50..).zip(damages) {
        let content = bytes(1 << 20, seed);
        let (puller, blob, digest) = push(&cluster, &content);
        let mut damaged = content.clone();
        damage(&mut damaged);
        fs::write(blob_path(&cluster.primary, &digest), &damaged).unwrap();
        for _ in 0..2 {
            let (connection, head) = puller.open(&blob);
            if head.status == 200 {
                let got = read_rest(connection, content.len());
                assert!(got.len() < content.len(), "a whole answer of wrong bytes");
            } else {
                assert!(head.status >= 500, "{}: only the log says no", head.status);
            }
            assert!(!is_local(site, &digest));
        }
        // Pushed again, it is whole again, and the next pull works.
        push(&cluster, &content);
        let again = puller.get(&blob);
        assert_eq!(again.status, 200, "{}", again.text());
        assert!(again.body == content);
    }
}

#[test]
fn a_blob_cut_short_on_the_disk_of_a_site_is_fetched_again() {
    let cluster = lazy_site();
    let site = &cluster.sites[0];
    let content = bytes(1 << 20, 15);
    let (puller, blob, digest) = push(&cluster, &content);
    assert!(puller.get(&blob).body == content);
    wait_for("the blob on disk", || is_local(site, &digest).then_some(()));
    let mut damaged = content.clone();
    damaged.truncate(1000);
    fs::write(blob_path(site, &digest), &damaged).unwrap();
    let again = puller.get(&blob);
    assert_eq!((again.status, again.header("content-length")), (200, Some("1048576")));
    assert!(again.body == content);
    assert_eq!(upstream_bytes(site), 2.0 * content.len() as f64);
    wait_for("the blob on disk", || is_local(site, &digest).then_some(()));
    assert!(fs::read(blob_path(site, &digest)).unwrap() == content);
}

#[test]
fn an_image_is_pulled_whole_while_its_blobs_are_still_coming() {
    let cluster = lazy_site();
    let site = &cluster.sites[0];
    let layer = bytes(LARGE / 4, 16);
    let pushed = Session::user(&cluster, &cluster.primary, &[REPO]).push_image(REPO, "1", &[&layer]);
    assert_eq!(pushed.manifest, image(&[&layer]));
    let puller = Session::anyone(&cluster, site, &[REPO]);
    let blob = format!("/v2/{REPO}/blobs/{}", Digest::sha256(&layer));
    let head = puller.head(&blob);
    assert_eq!((head.status, head.header("content-length")), (200, Some(layer.len().to_string().as_str())));
    assert_eq!(upstream_bytes(site), 0.0, "a HEAD fetches nothing");
    assert!(puller.get(&blob).body == layer);
}

fn push(cluster: &Cluster, content: &[u8]) -> (Session, String, Digest) {
    let digest = Session::user(cluster, &cluster.primary, &[REPO]).push_blob(REPO, content);
    let site = &cluster.sites[0];
    let head = cluster.primary.status()["head_seq"].as_u64();
    site.wait_until(|status| status["applied_seq"].as_u64() >= head);
    let puller = Session::anyone(cluster, site, &[REPO]);
    (puller, format!("/v2/{REPO}/blobs/{digest}"), digest)
}

fn upstream_bytes(site: &Node) -> f64 {
    site.metric("outport_upstream_bytes_total", "")
}

fn blob_path(node: &Node, digest: &Digest) -> std::path::PathBuf {
    let hex = digest.hex();
    node.data().join("store/blobs/sha256").join(&hex[..2]).join(&hex)
}

fn is_local(node: &Node, digest: &Digest) -> bool {
    blob_path(node, digest).exists()
}

fn temporaries(node: &Node) -> Vec<String> {
    let entries = fs::read_dir(node.data().join("store/tmp")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Reads a body of `length` bytes, or what comes of it before it breaks off.
fn read_rest(mut connection: Connection, length: usize) -> Vec<u8> {
    let mut content = Vec::new();
    let mut buffer = vec![0; 256 << 10];
    while content.len() < length {
        match connection.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(read) => content.extend_from_slice(&buffer[..read]),
        }
    }
    content
}
