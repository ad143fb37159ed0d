//! Clients that break off.

use std::fs;

use outport_proto::Digest;

use crate::support::{
    Cluster, Options,
    http::Client,
    session::{OCI_MANIFEST, Session, absolute, bytes, finish, image},
    wait_for,
};

const REPO: &str = "team/app";

#[test]
fn what_was_told_stays_when_a_client_leaves_in_the_middle_of_a_patch() {
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    let content = bytes(400_000, 1);
    // Straight at the primary, and through a site.
    for node in cluster.nodes() {
        let location = pusher.begin_upload(REPO);
        let (_, path) = absolute(&location).unwrap();
        let told = pusher.send("PATCH", &location, &[], &content[..100_000]);
        assert_eq!((told.status, told.header("range")), (202, Some("0-99999")));
        for framing in ["Content-Length: 300000\r\n", "Transfer-Encoding: chunked\r\n"] {
            let mut connection = Client::plain().connect(&node.registry()).unwrap();
            let head =
                format!("PATCH {path} HTTP/1.1\r\nHost: x\r\nContent-Range: 100000-399999\r\n{framing}\r\n");
            connection.raw(head.as_bytes()).unwrap();
            if framing.starts_with("Transfer") {
                connection.raw(b"186a0\r\n").unwrap();
            }
            connection.raw(&content[100_000..150_000]).unwrap();
            drop(connection);
        }
        // What was told is there, what came after it may be, and the upload goes on from there.
        let response = wait_for("the rest to be taken", || {
            let status = pusher.send("GET", &location, &[], b"");
            let end: usize = status.header("range")?.strip_prefix("0-")?.parse().unwrap();
            assert!((99_999..200_000).contains(&end), "the upload stands at {end}");
            let range = format!("{}-{}", end + 1, content.len() - 1);
            let response = pusher.send("PATCH", &location, &[("Content-Range", &range)], &content[end + 1..]);
            (response.status == 202).then_some(response)
        });
        assert_eq!(response.header("range"), Some("0-399999"));
        let digest = Digest::sha256(&content);
        let response = pusher.send("PUT", &finish(&location, &digest), &[], b"");
        assert_eq!(response.status, 201, "{}", response.text());
        let blob = format!("/v2/{REPO}/blobs/{digest}");
        let got = pusher.get(&blob);
        assert!(got.status == 200 && got.body == content, "{}", got.status);
        assert_eq!(pusher.send("DELETE", &blob, &[], b"").status, 202);
    }
}

#[test]
fn a_put_that_breaks_off_publishes_nothing() {
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    let content = bytes(200_000, 2);
    let digest = Digest::sha256(&content);
    for node in cluster.nodes() {
        let (_, path) = absolute(&finish(&pusher.begin_upload(REPO), &digest)).unwrap();
        let mut connection = Client::plain().connect(&node.registry()).unwrap();
        let head = format!("PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", content.len());
        connection.raw(head.as_bytes()).unwrap();
        connection.raw(&content[..150_000]).unwrap();
        drop(connection);
    }
    // Whole, and with the wrong digest.
    let wrong = Digest::sha256(b"something else");
    let response = pusher.send("PUT", &finish(&pusher.begin_upload(REPO), &wrong), &[], &content);
    assert_eq!((response.status, response.code().as_str()), (400, "DIGEST_INVALID"));
    // A manifest that breaks off.
    let manifest = image(&[&content]);
    let manifest_digest = Digest::sha256(&manifest);
    let mut connection = Client::plain().connect(&cluster.primary.registry()).unwrap();
    let head = format!(
        "PUT /v2/{REPO}/manifests/1 HTTP/1.1\r\nHost: x\r\nAuthorization: {}\r\nContent-Type: {OCI_MANIFEST}\r\nContent-Length: {}\r\n\r\n",
        pusher.authorization(),
        manifest.len()
    );
    connection.raw(head.as_bytes()).unwrap();
    connection.raw(&manifest[..manifest.len() / 2]).unwrap();
    drop(connection);

    let head_seq = cluster.primary.status()["head_seq"].clone();
    for node in cluster.nodes() {
        let session = pusher.at(node);
        for digest in [&digest, &wrong] {
            assert_eq!(session.head(&format!("/v2/{REPO}/blobs/{digest}")).status, 404);
        }
        for reference in ["1", &manifest_digest.to_string()] {
            assert_eq!(session.head(&format!("/v2/{REPO}/manifests/{reference}")).status, 404);
        }
    }
    assert_eq!(head_seq, 0, "nothing was published");
    assert_eq!(cluster.primary.status()["store"]["blobs"], 0);
    let blobs = cluster.primary.data().join("store/blobs");
    assert_eq!(files_below(&blobs), 0);
}

fn files_below(directory: &std::path::Path) -> usize {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { files_below(&path) } else { 1 })
        .sum()
}
