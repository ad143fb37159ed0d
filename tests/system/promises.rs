//! What was pushed can be pulled, everywhere and at once; what was deleted is gone.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread,
};

use outport_proto::Digest;

use crate::support::{
    Cluster, Node, Options,
    http::Response,
    session::{OCI_MANIFEST, Session, bytes, finish, image},
    wait_for,
};

const REPO: &str = "team/app";

/// Pulls are fired without pause at both sites while images are pushed: from the acknowledgement
/// on, nothing of an image may be denied, and before it nothing may be wrong.
#[test]
fn no_pull_is_denied_after_the_push_was_acknowledged() {
    const PUSHES: usize = 200;
    let cluster = Cluster::start(Options::default());
    let layer = |number: usize| bytes(300, 1000 + number as u64);
    let images: Vec<(Vec<u8>, Vec<u8>)> =
        (0..PUSHES).map(layer).map(|layer| (image(&[&layer]), layer)).collect();
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    let reader = Session::anyone(&cluster, &cluster.primary, &[REPO]);
    pusher.push_image(REPO, "config", &[]);
    let acknowledged = AtomicUsize::new(0);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for (number, site) in cluster.sites.iter().enumerate() {
            let (reader, images, acknowledged, done) = (reader.at(site), &images, &acknowledged, &done);
            scope.spawn(move || {
                let mut fired = number;
                while !done.load(SeqCst) {
                    let known = acknowledged.load(SeqCst);
                    fired += 1;
                    // The newest acknowledged, and the one under way.
                    if let Some(newest) = known.checked_sub(1) {
                        let response = fire(&reader, newest, &images[newest], fired);
                        assert_eq!(response.status, 200, "image {newest}, pull {fired} at {}", site.name);
                    }
                    if known < images.len() {
                        let response = fire(&reader, known, &images[known], fired);
                        assert!(matches!(response.status, 200 | 404), "{}", response.text());
                    }
                }
            });
        }
        let _done = SetOnDrop(&done);
        for (number, (manifest, layer)) in images.iter().enumerate() {
            let digest = pusher.push_blob(REPO, layer);
            // A blob counts as pushed before any manifest names it.
            let site = &cluster.sites[number % 2];
            let blob = format!("/v2/{REPO}/blobs/{digest}");
            let pulled = reader.at(site);
            let pulled = if number % 3 == 0 { pulled.head(&blob) } else { pulled.get(&blob) };
            assert_eq!(pulled.status, 200, "blob {number} at {}", site.name);
            let response = pusher.put_manifest(REPO, &format!("t{number}"), manifest);
            assert_eq!(response.status, 201, "{}", response.text());
            acknowledged.store(number + 1, SeqCst);
            for site in &cluster.sites {
                for way in [number, number + 1] {
                    let pulled = fire(&reader.at(site), number, &images[number], way);
                    assert_eq!(pulled.status, 200, "image {number}, way {way} at {}", site.name);
                }
            }
        }
    });
}

/// One of six ways to ask for a part of an image; a 200 must be right.
pub(crate) fn fire(
    reader: &Session,
    number: usize,
    (manifest, layer): &(Vec<u8>, Vec<u8>),
    way: usize,
) -> Response {
    let digest = Digest::sha256(manifest);
    let (target, content, digest) = match way % 3 {
        0 => (format!("/v2/{REPO}/manifests/t{number}"), manifest, digest),
        1 => (format!("/v2/{REPO}/manifests/{digest}"), manifest, digest),
        _ => (format!("/v2/{REPO}/blobs/{}", Digest::sha256(layer)), layer, Digest::sha256(layer)),
    };
    let is_head = way.is_multiple_of(2);
    let response = if is_head { reader.head(&target) } else { reader.get(&target) };
    if response.status == 200 {
        assert_eq!(response.header("docker-content-digest"), Some(digest.to_string().as_str()));
        assert_eq!(response.header("content-length"), Some(content.len().to_string().as_str()));
        assert!(is_head || response.body == *content);
    }
    response
}

pub(crate) struct SetOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn a_client_reads_its_own_pushes() {
    let cluster = Cluster::start(Options::default());
    let [near, far] = [&cluster.sites[0], &cluster.sites[1]];
    let pusher = Session::user(&cluster, near, &[REPO]);
    let onlooker = Session::anyone(&cluster, near, &[REPO]);
    for round in 0..30 {
        // A tag that moves again and again.
        let pushed = pusher.push_image(REPO, "latest", &[&bytes(100, round)]);
        let digest = pushed.digest.to_string();
        // Through the same site, with the token of before and with any other.
        for (who, session) in [("pusher", &pusher), ("onlooker", &onlooker)] {
            assert_shows(session, &digest, &format!("{who} at the same site, round {round}"));
        }
        // With a token fetched after the push, anywhere.
        assert_shows(&Session::anyone(&cluster, far, &[REPO]), &digest, &format!("far, round {round}"));
        // With a push token, anywhere.
        assert_shows(&pusher.at(far), &digest, &format!("push session, far, round {round}"));
    }
}

/// A tag goes back and forth between two images: whoever pulls gets all of one of them.
#[test]
fn a_tag_that_moves_while_it_is_pulled_is_all_old_or_all_new() {
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let site = &cluster.sites[0];
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    let layers = [bytes(40_000, 200), bytes(30_000, 201)];
    let images = layers.each_ref().map(|layer| pusher.push_image(REPO, "latest", &[layer]));
    let reader = Session::anyone(&cluster, site, &[REPO]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    let got = reader.get(&format!("/v2/{REPO}/manifests/latest"));
                    assert_eq!(got.status, 200, "{}", got.text());
                    let which = images.iter().position(|image| image.manifest == got.body);
                    let which = which.expect("one of the two");
                    let digest = images[which].digest.to_string();
                    assert_eq!(got.header("docker-content-digest"), Some(digest.as_str()));
                    let layer = &layers[which];
                    let blob = reader.get(&format!("/v2/{REPO}/blobs/{}", Digest::sha256(layer)));
                    assert!(blob.status == 200 && blob.body == *layer, "{}", blob.status);
                    assert_eq!(reader.head(&format!("/v2/{REPO}/manifests/{digest}")).status, 200);
                }
            });
        }
        let _done = SetOnDrop(&done);
        for round in 0..100 {
            let response = pusher.put_manifest(REPO, "latest", &images[round % 2].manifest);
            assert_eq!(response.status, 201, "{}", response.text());
        }
    });
    let last = Session::anyone(&cluster, site, &[REPO]).get(&format!("/v2/{REPO}/manifests/latest"));
    assert_eq!(last.body, images[1].manifest);
}

#[test]
fn what_is_deleted_is_gone_everywhere() {
    let cluster = Cluster::start(Options::default());
    let [near, far] = [&cluster.sites[0], &cluster.sites[1]];
    let pusher = Session::user(&cluster, near, &[REPO]);
    for round in 0..10 {
        let layer = bytes(100, 50 + round);
        let pushed = pusher.push_image(REPO, "gone", &[&layer]);
        pusher.push_image(REPO, "stays", &[&bytes(100, 500)]);
        cluster.wait_complete();
        let deleted = pusher.send("DELETE", &format!("/v2/{REPO}/manifests/gone"), &[], b"");
        assert_eq!(deleted.status, 202, "{}", deleted.text());
        // At once: through the site that was asked, and with a token fetched afterwards.
        for (session, who) in
            [(pusher.clone(), "same site"), (Session::anyone(&cluster, far, &[REPO]), "far site")]
        {
            let tag = session.head(&format!("/v2/{REPO}/manifests/gone"));
            assert_eq!(tag.status, 404, "{who}, round {round}");
            let tags = session.get(&format!("/v2/{REPO}/tags/list")).json();
            assert_eq!(tags["tags"], serde_json::json!(["stays"]), "{who}, round {round}");
        }
        // The digest stays until it is deleted itself.
        let manifest = format!("/v2/{REPO}/manifests/{}", pushed.digest);
        for node in cluster.nodes() {
            assert_eq!(pusher.at(node).get(&manifest).status, 200);
        }
        assert_eq!(pusher.send("DELETE", &manifest, &[], b"").status, 202);
        let blob = format!("/v2/{REPO}/blobs/{}", Digest::sha256(&layer));
        assert_eq!(pusher.send("DELETE", &blob, &[], b"").status, 202);
        for node in cluster.nodes() {
            for target in [&manifest, &blob] {
                assert_gone(&pusher.at(node), target, node);
            }
        }
    }
}

#[test]
fn a_client_that_asks_for_an_offset_gets_it() {
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let old = Session::anyone(&cluster, &cluster.sites[0], &[REPO]);
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    for round in 0..10 {
        let pushed = pusher.push_image(REPO, "1", &[&bytes(100, 80 + round)]);
        let status = cluster.primary.status();
        let offset = format!("{}.{}", status["epoch"], status["head_seq"]);
        let target = format!("/v2/{REPO}/manifests/1");
        let got = old.send("GET", &target, &[("Outport-Min-Offset", &offset)], b"");
        assert_eq!((got.status, got.body == pushed.manifest), (200, true), "{}", got.text());
    }
}

#[test]
fn a_blob_that_was_uploaded_in_pieces_is_everywhere_at_once() {
    let cluster = Cluster::start(Options::default());
    let pusher = Session::user(&cluster, &cluster.sites[0], &[REPO]);
    let content = bytes(60_000, 90);
    let mut location = pusher.begin_upload(REPO);
    for (at, piece) in content.chunks(20_000).enumerate() {
        let range = format!("{}-{}", at * 20_000, at * 20_000 + piece.len() - 1);
        let response = pusher.send("PATCH", &location, &[("Content-Range", &range)], piece);
        assert_eq!(response.status, 202, "{}", response.text());
        location = response.header("location").unwrap().to_owned();
    }
    let digest = Digest::sha256(&content);
    assert_eq!(pusher.send("PUT", &finish(&location, &digest), &[], b"").status, 201);
    for site in &cluster.sites {
        let blob = format!("/v2/{REPO}/blobs/{digest}");
        assert_eq!(pusher.at(site).head(&blob).status, 200, "a push session asks at once");
        let got = Session::anyone(&cluster, site, &[REPO]).get(&blob);
        assert_eq!((got.status, got.body == content), (200, true));
    }
    assert_eq!(pusher.put_manifest(REPO, "1", &image(&[&content])).status, 404, "its config is missing");
    assert_eq!(pusher.get(&format!("/v2/{REPO}/manifests/1")).status, 404);
}

fn assert_shows(session: &Session, digest: &str, who: &str) {
    let target = format!("/v2/{REPO}/manifests/latest");
    let head = session.send("HEAD", &target, &[("Accept", OCI_MANIFEST)], b"");
    assert_eq!((head.status, head.header("docker-content-digest")), (200, Some(digest)), "HEAD: {who}");
    let get = session.get(&target);
    assert_eq!((get.status, get.header("docker-content-digest")), (200, Some(digest)), "GET: {who}");
}

fn assert_gone(session: &Session, target: &str, node: &Node) {
    wait_for(&format!("{target} to be gone at {}", node.name), || {
        (session.get(target).status == 404).then_some(())
    });
}
