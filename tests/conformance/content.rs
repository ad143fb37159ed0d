//! Reading and deleting blobs (specification: "Pulling blobs", "Deleting blobs"; RFC 9110 for
//! ranges and conditions).

use outport_proto::Digest;

use crate::{
    Row,
    registry::{Registry, bytes, digests, escape, with_query},
};

pub const ROWS: &[Row] = &[
    ("base", base),
    ("HEAD and GET agree", head_and_get),
    ("ranges", ranges),
    ("several ranges", several_ranges),
    ("conditions", conditions),
    ("a blob nobody pushed", unknown_blob),
    ("a blob of another repository", foreign_blob),
    ("delete a blob, push it again", delete_blob),
    ("names and digests that are none", invalid_names),
];

fn base(registry: &Registry) {
    let response = registry.send("GET", "/v2/", &[], b"");
    assert_eq!(response.status, 200);
    assert_eq!(response.header("docker-distribution-api-version"), Some("registry/2.0"));
}

fn head_and_get(registry: &Registry) {
    let content = bytes(5000, 20);
    for digest in digests(&content) {
        let target = with_query(&registry.begin_upload(), &format!("digest={}", escape(&digest.to_string())));
        assert_eq!(registry.send("PUT", &target, &[], &content).status, 201);
        let get = registry.get(&format!("blobs/{digest}"), &[("Accept-Encoding", "zstd,gzip")]);
        let head = registry.head(&format!("blobs/{digest}"));
        assert_eq!((get.status, head.status), (200, 200));
        assert_eq!(get.body, content);
        assert!(head.body.is_empty());
        let digest = digest.to_string();
        for (name, value) in [
            ("content-length", "5000"),
            ("docker-content-digest", digest.as_str()),
            ("accept-ranges", "bytes"),
        ] {
            assert_eq!(get.header(name), Some(value), "{name}");
            assert_eq!(head.header(name), Some(value), "{name}");
        }
        assert_eq!(get.header("content-type"), head.header("content-type"));
        assert_eq!(get.header("etag"), head.header("etag"));
        assert_eq!(get.header("content-encoding"), None);
    }
}

fn ranges(registry: &Registry) {
    let content = bytes(2048, 21);
    let digest = registry.push_blob(&content);
    let blob = format!("blobs/{digest}");
    for (range, from, to) in [
        ("bytes=500-1499", 500, 1499),
        ("bytes=500-", 500, 2047),
        ("bytes=-500", 1548, 2047),
        ("bytes=-5000", 0, 2047),
        ("bytes=2000-5000", 2000, 2047),
        ("bytes=0-2048", 0, 2047),
        ("bytes=0-0", 0, 0),
    ] {
        let response = registry.get(&blob, &[("Range", range)]);
        assert_eq!(response.status, 206, "{range}");
        assert_eq!(
            response.header("content-range"),
            Some(format!("bytes {from}-{to}/2048").as_str()),
            "{range}"
        );
        assert_eq!(response.body, content[from..=to], "{range}");
        assert_eq!(response.header("content-length"), Some((to - from + 1).to_string().as_str()));
    }
    for range in ["bytes=2048-", "bytes=5000-10000", "bytes=500-0", "bytes=-0"] {
        let response = registry.get(&blob, &[("Range", range)]);
        assert_eq!(response.status, 416, "{range}");
        assert_eq!(response.header("content-range"), Some("bytes */2048"), "{range}");
    }
    for range in ["lines=1-2", "bytes"] {
        assert_eq!(registry.get(&blob, &[("Range", range)]).status, 200, "{range}");
    }
}

fn several_ranges(registry: &Registry) {
    let content = bytes(4096, 22);
    let digest = registry.push_blob(&content);
    let response = registry.get(&format!("blobs/{digest}"), &[("Range", "bytes=0-9, 1000-1009")]);
    assert_eq!(response.status, 206);
    let kind = response.header("content-type").unwrap().to_owned();
    let boundary =
        kind.strip_prefix("multipart/byteranges; boundary=").expect("several parts").trim_matches('"');
    let text = response.body;
    for (from, to) in [(0, 9), (1000, 1009)] {
        let mut part = format!("Content-Range: bytes {from}-{to}/4096\r\n\r\n").into_bytes();
        part.extend_from_slice(&content[from..=to]);
        part.extend_from_slice(format!("\r\n--{boundary}").as_bytes());
        assert!(text.windows(part.len()).any(|window| window.eq_ignore_ascii_case(&part)), "{from}-{to}");
    }
}

fn conditions(registry: &Registry) {
    let digest = registry.push_blob(&bytes(100, 23));
    let blob = format!("blobs/{digest}");
    let etag = registry.head(&blob).header("etag").expect("an ETag").to_owned();
    assert_eq!(registry.get(&blob, &[("If-None-Match", &etag)]).status, 304);
    assert_eq!(registry.get(&blob, &[("If-None-Match", "*")]).status, 304);
    assert_eq!(registry.get(&blob, &[("If-None-Match", "\"other\"")]).status, 200);
    assert_eq!(registry.get(&blob, &[("Range", "bytes=0-9"), ("If-Range", &etag)]).status, 206);
    assert_eq!(registry.get(&blob, &[("Range", "bytes=0-9"), ("If-Range", "\"other\"")]).status, 200);
}

fn unknown_blob(registry: &Registry) {
    registry.push_blob(b"so that the repository exists");
    for digest in digests(b"never pushed") {
        let response = registry.get(&format!("blobs/{digest}"), &[]);
        assert_eq!((response.status, response.code().as_str()), (404, "BLOB_UNKNOWN"));
        assert_eq!(registry.head(&format!("blobs/{digest}")).status, 404);
    }
}

fn foreign_blob(registry: &Registry) {
    let source = registry.of_other();
    let digest = source.push_blob(b"held by the other repository alone");
    registry.push_blob(b"so that the repository exists");
    let absent = registry.get(&format!("blobs/{}", Digest::sha256(b"nobody has this")), &[]);
    let foreign = registry.get(&format!("blobs/{digest}"), &[]);
    assert_eq!((foreign.status, foreign.code()), (absent.status, absent.code()));
    assert_eq!(registry.get(&format!("blobs/{digest}"), &[("Range", "bytes=0-1")]).status, 404);
}

fn delete_blob(registry: &Registry) {
    let content = b"{}";
    for _ in 0..3 {
        let digest = registry.push_blob(content);
        let blob = format!("blobs/{digest}");
        assert_eq!(registry.head(&blob).status, 200);
        assert_eq!(registry.delete(&blob).status, 202);
        assert_eq!(registry.head(&blob).status, 404);
        let response = registry.delete(&blob);
        assert_eq!(response.status, 404);
        // With its last blob the repository is gone as well.
        assert!(matches!(response.code().as_str(), "BLOB_UNKNOWN" | "NAME_UNKNOWN"), "{}", response.text());
    }
}

fn invalid_names(registry: &Registry) {
    let digest = Digest::sha256(b"");
    for name in [
        "Team/app",
        "team//app",
        "team/..",
        "team/%2e%2e/app",
        "team%2fapp",
        "team/app%00",
        "tea%C3%A4m",
        "-a",
    ] {
        let response = registry.send("GET", &format!("/v2/{name}/blobs/{digest}"), &[], b"");
        assert!(matches!(response.status, 400 | 401 | 404), "{name}: {}", response.status);
    }
    for digest in [
        "sha256:abc",
        "sha256:../../etc/passwd",
        "sha256:%2e%2e%2f",
        "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
    ] {
        let response = registry.get(&format!("blobs/{digest}"), &[]);
        assert!(matches!(response.status, 400 | 404), "{digest}: {}", response.status);
    }
    let response = registry.get(&format!("blobs/{}", digest.to_string().replace("e3b0", "E3B0")), &[]);
    assert_eq!((response.status, response.code().as_str()), (400, "DIGEST_INVALID"));
}
