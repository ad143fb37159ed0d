//! Pushing blobs (specification: "Pushing blobs", "Mounting a blob").

use outport_proto::{Algorithm, Digest};

use crate::{
    Row,
    registry::{Registry, bytes, digests, escape, with_query},
};

pub const ROWS: &[Row] = &[
    ("single POST", single_post),
    ("POST then PUT", post_then_put),
    ("streamed PATCH", streamed_patch),
    ("chunks, the last in the PUT", chunks),
    ("chunks out of order", chunks_out_of_order),
    ("a wrong digest", wrong_digest),
    ("an invalid digest", invalid_digest),
    ("an empty blob", empty_blob),
    ("status of an upload", status),
    ("cancel", cancel),
    ("an unknown upload", unknown_upload),
    ("mount", mount),
    ("mount without from", mount_anonymous),
    ("mount of what nobody has", mount_missing),
];

fn single_post(registry: &Registry) {
    for digest in digests(&bytes(512, 1)) {
        let target =
            with_query(&registry.path("blobs/uploads/"), &format!("digest={}", escape(&digest.to_string())));
        let response =
            registry.send("POST", &target, &[("Content-Type", "application/octet-stream")], &bytes(512, 1));
        created(registry, &response, &digest, &bytes(512, 1));
    }
}

fn post_then_put(registry: &Registry) {
    for digest in digests(&bytes(3067, 2)) {
        let response = registry.put_blob(&registry.begin_upload(), &digest, &bytes(3067, 2));
        created(registry, &response, &digest, &bytes(3067, 2));
    }
}

fn streamed_patch(registry: &Registry) {
    let content = bytes(100_000, 3);
    for digest in digests(&content) {
        let mut body = Vec::new();
        for chunk in content.chunks(7000) {
            body.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            body.extend_from_slice(chunk);
            body.extend(b"\r\n");
        }
        body.extend(b"0\r\n\r\n");
        let response =
            registry.send("PATCH", &registry.begin_upload(), &[("Transfer-Encoding", "chunked")], &body);
        assert_eq!(response.status, 202, "{}", response.text());
        assert_eq!(response.header("range"), Some("0-99999"));
        let location = response.header("location").unwrap().to_owned();
        created(registry, &registry.put_blob(&location, &digest, b""), &digest, &content);
    }
}

fn chunks(registry: &Registry) {
    let content = bytes(3067, 4);
    for digest in digests(&content) {
        let mut location = registry.begin_upload();
        for (range, part) in [("0-1023", &content[..1024]), ("1024-2047", &content[1024..2048])] {
            let response = registry.send("PATCH", &location, &[("Content-Range", range)], part);
            assert_eq!(response.status, 202, "{}", response.text());
            assert_eq!(
                response.header("range"),
                Some(format!("0-{}", range.split_once('-').unwrap().1).as_str())
            );
            location = response.header("location").unwrap().to_owned();
        }
        let target = with_query(&location, &format!("digest={}", escape(&digest.to_string())));
        let response = registry.send("PUT", &target, &[("Content-Range", "2048-3066")], &content[2048..]);
        created(registry, &response, &digest, &content);
    }
}

fn chunks_out_of_order(registry: &Registry) {
    let content = bytes(3067, 5);
    let mut location = registry.begin_upload();
    let mut held = 0;
    for end in [1024, 2048, 3067] {
        let wrong = if held == 0 { "1024-2047".to_owned() } else { "0-1023".to_owned() };
        let response = registry.send("PATCH", &location, &[("Content-Range", &wrong)], &content[..1024]);
        assert_eq!(response.status, 416, "{}", response.text());
        let response = registry.send("GET", &location, &[], b"");
        assert_eq!(response.status, 204);
        let range = format!("0-{}", if held == 0 { 0 } else { held - 1 });
        assert_eq!(response.header("range"), Some(range.as_str()));
        let range = format!("{held}-{}", end - 1);
        let response = registry.send("PATCH", &location, &[("Content-Range", &range)], &content[held..end]);
        assert_eq!(response.status, 202, "{}", response.text());
        location = response.header("location").unwrap().to_owned();
        held = end;
    }
    let digest = Digest::sha256(&content);
    // A PUT with a chunk in the wrong place leaves the upload as it was.
    let target = with_query(&location, &format!("digest={}", escape(&digest.to_string())));
    let response = registry.send("PUT", &target, &[("Content-Range", "9000-9001")], b"xx");
    assert_eq!(response.status, 416, "{}", response.text());
    created(registry, &registry.put_blob(&location, &digest, b""), &digest, &content);
    let malformed = registry.begin_upload();
    for range in ["0", "-1", "5-1", "a-b"] {
        let response = registry.send("PATCH", &malformed, &[("Content-Range", range)], b"xx");
        assert!(matches!(response.status, 400 | 416), "{range}: {}", response.status);
    }
}

fn wrong_digest(registry: &Registry) {
    let (content, other) = (bytes(3072, 6), Digest::sha256(b"something else"));
    let query = format!("digest={}", escape(&other.to_string()));
    let single = registry.send("POST", &with_query(&registry.path("blobs/uploads/"), &query), &[], &content);
    let put = registry.put_blob(&registry.begin_upload(), &other, &content);
    for response in [single, put] {
        assert_eq!(response.status, 400, "{}", response.text());
        assert_eq!(response.code(), "DIGEST_INVALID");
    }
    for digest in [other, Digest::sha256(&content)] {
        assert_eq!(registry.head(&format!("blobs/{digest}")).status, 404);
    }
}

fn invalid_digest(registry: &Registry) {
    for digest in ["sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", "nonsense", ""] {
        let target = with_query(&registry.begin_upload(), &format!("digest={}", escape(digest)));
        let response = registry.send("PUT", &target, &[], b"x");
        assert_eq!((response.status, response.code().as_str()), (400, "DIGEST_INVALID"), "{digest}");
    }
    let response = registry.send("PUT", &registry.begin_upload(), &[], b"x");
    assert_eq!((response.status, response.code().as_str()), (400, "DIGEST_INVALID"));
}

fn empty_blob(registry: &Registry) {
    for digest in digests(b"") {
        let location = registry.begin_upload();
        let target = with_query(&location, &format!("digest={}", escape(&digest.to_string())));
        let response = registry.send("PUT", &target, &[("Transfer-Encoding", "chunked")], b"0\r\n\r\n");
        created(registry, &response, &digest, b"");
        assert_eq!(registry.head(&format!("blobs/{digest}")).header("content-length"), Some("0"));
    }
}

fn status(registry: &Registry) {
    let location = registry.begin_upload();
    let response = registry.send("PATCH", &location, &[], &bytes(10, 7));
    assert_eq!(response.status, 202, "{}", response.text());
    let response = registry.send("GET", response.header("location").unwrap(), &[], b"");
    assert_eq!(response.status, 204, "{}", response.text());
    assert_eq!(response.header("range"), Some("0-9"));
    assert!(response.header("location").is_some());
    assert!(response.header("docker-upload-uuid").is_some());
}

fn cancel(registry: &Registry) {
    let location = registry.begin_upload();
    assert_eq!(registry.send("DELETE", &location, &[], b"").status, 204);
    let response = registry.send("GET", &location, &[], b"");
    assert_eq!((response.status, response.code().as_str()), (404, "BLOB_UPLOAD_UNKNOWN"));
}

fn unknown_upload(registry: &Registry) {
    let target = registry.path("blobs/uploads/00000000000000000000000000000000");
    for method in ["GET", "PATCH", "DELETE"] {
        let response = registry.send(method, &target, &[], b"");
        assert_eq!((response.status, response.code().as_str()), (404, "BLOB_UPLOAD_UNKNOWN"), "{method}");
    }
}

fn mount(registry: &Registry) {
    let source = registry.of_other();
    for content in [bytes(512, 8), Vec::new()] {
        let digest = source.push_blob(&content);
        let query = format!("from={}&mount={}", escape(&source.repo), escape(&digest.to_string()));
        let response = registry.send("POST", &with_query(&registry.path("blobs/uploads/"), &query), &[], b"");
        created(registry, &response, &digest, &content);
    }
}

fn mount_anonymous(registry: &Registry) {
    let source = registry.of_other();
    let content = bytes(512, 9);
    let digest = source.push_blob(&content);
    let query = format!("mount={}", escape(&digest.to_string()));
    let response = registry.send("POST", &with_query(&registry.path("blobs/uploads/"), &query), &[], b"");
    created(registry, &response, &digest, &content);
}

fn mount_missing(registry: &Registry) {
    let content = bytes(512, 10);
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let digest = Digest::of(algorithm, &content);
        let query = format!("from={}&mount={}", escape(&registry.other), escape(&digest.to_string()));
        let response = registry.send("POST", &with_query(&registry.path("blobs/uploads/"), &query), &[], b"");
        assert_eq!(response.status, 202, "{}", response.text());
        let location = response.header("location").unwrap().to_owned();
        created(registry, &registry.put_blob(&location, &digest, &content), &digest, &content);
    }
}

/// A 201 for a blob, and the blob behind its `Location`.
fn created(registry: &Registry, response: &crate::support::http::Response, digest: &Digest, content: &[u8]) {
    assert_eq!(response.status, 201, "{}", response.text());
    assert_eq!(response.header("docker-content-digest"), Some(digest.to_string().as_str()));
    let location = response.header("location").expect("a Location");
    let blob = registry.send("GET", location, &[], b"");
    assert_eq!((blob.status, blob.body.as_slice()), (200, content), "{location}");
    let here = registry.get(&format!("blobs/{digest}"), &[]);
    assert_eq!((here.status, here.body.as_slice()), (200, content));
}
