//! Requests that no client should send.

use std::{fs, io::Write as _, net::TcpStream, path::PathBuf};

use serde_json::{Value, json};

use crate::support::{
    Cluster, Node, Options, USER,
    http::{Client, token},
    path,
    session::{OCI_MANIFEST, SERVICE, Session, bytes, image},
};

const REPO: &str = "team/app";
const MANIFEST_BYTES_MAX: usize = 4 << 20;

fn cluster() -> Cluster {
    Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() })
}

#[test]
fn names_and_digests_that_are_none_touch_no_file() {
    let cluster = cluster();
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    pusher.push_image(REPO, "1", &[b"layer"]);
    cluster.wait_complete();
    let before = files(&cluster);
    let zeros = "0".repeat(64);
    let mut targets: Vec<String> = [
        "/v2/../../etc/passwd/manifests/1",
        "/v2/team/../app/manifests/1",
        "/v2/team%2f..%2fapp/manifests/1",
        "/v2/team%2Fapp/manifests/1",
        "/v2/%2e%2e/%2e%2e/manifests/1",
        "/v2/team/app%00/manifests/1",
        "/v2/team/app/manifests/%00",
        "/v2/team/app/manifests/..%2f..%2fetc%2fpasswd",
        "/v2/team/app/manifests/%2e%2e",
        "/v2/team/app/manifests/-dash",
        "/v2/team/app/manifests/.dot",
        "/v2/TEAM/app/manifests/1",
        "/v2/t%C3%A9am/app/manifests/1",
        "/v2/team//app/manifests/1",
        "/v2//team/app/manifests/1",
        "/v2/team/app/manifests/",
        "/v2/team/app/blobs/",
        "/v2/team/app/blobs/sha256:",
        "/v2/team/app/blobs/sha256:../../../../etc/passwd",
        "/v2/team/app/blobs/sha256:..%2f..%2f..%2fetc%2fpasswd",
        "/v2/team/app/blobs/sha256:zz",
        "/v2/team/app/blobs/../../../etc/passwd",
        "/v2/team/app/blobs/uploads/../../../../etc/passwd",
        "/v2/team/app/blobs/uploads/..%2f..%2fx",
        "/v2/team/app/blobs/uploads/%00",
        "/v2/team/app/blobs/uploads/not-an-upload",
        "/v2/team/app/referrers/sha256:x",
        "/v2/team/app/tags/list/../..",
        "/v2/_uploads/tags/list",
        "/v1/_ping",
        "/../../../../etc/passwd",
        "/",
    ]
    .map(str::to_owned)
    .to_vec();
    targets.extend([
        format!("/v2/team/app/blobs/sha256:{}", "A".repeat(64)),
        format!("/v2/team/app/blobs/SHA256:{zeros}"),
        format!("/v2/team/app/blobs/sha512:{zeros}"),
        format!("/v2/team/app/blobs/md5:{}", "0".repeat(32)),
        format!("/v2/team/app/blobs/sha256:{zeros}0"),
        format!("/v2/team/app/blobs/sha256:{zeros}/x"),
        format!("/v2/team/app/manifests/{}", "t".repeat(129)),
        format!("/v2/{}/manifests/1", "n".repeat(300)),
        format!("/v2/{}/manifests/1", "a/".repeat(2000)),
    ]);
    for node in cluster.nodes() {
        let session = pusher.at(node);
        for target in &targets {
            for method in ["GET", "HEAD", "PUT", "DELETE", "PATCH", "POST"] {
                let body = if method == "PUT" { image(&[]) } else { Vec::new() };
                let response = session.once(method, target, &[("Content-Type", OCI_MANIFEST)], &body);
                let refused = matches!(response.status, 400 | 401 | 403 | 404 | 405 | 414);
                assert!(refused, "{method} {target} at {}: {}", node.name, response.status);
                if method == "GET" {
                    assert!(!response.code().is_empty(), "{target}: {}", response.text());
                    assert!(!response.text().contains("root:"), "{target}");
                }
            }
        }
        for method in ["TRACE", "CONNECT", "PROPFIND", "BREW"] {
            let response = session.once(method, &format!("/v2/{REPO}/manifests/1"), &[], b"");
            assert!(matches!(response.status, 400 | 405), "{method}: {}", response.status);
        }
    }
    assert_eq!(files(&cluster), before, "something was written");
}

#[test]
fn manifests_have_limits() {
    let cluster = cluster();
    let pushers = cluster.nodes().map(|node| Session::user(&cluster, node, &[REPO]));
    let pushers: Vec<Session> = pushers.collect();
    let primary = &pushers[0];
    primary.push_image(REPO, "1", &[b"layer"]);
    let base: Value = serde_json::from_slice(&image(&[b"layer"])).unwrap();
    let padded = |length: usize| {
        let mut manifest = base.clone();
        manifest["annotations"] = json!({ "pad": "" });
        let rest = length - manifest.to_string().len();
        manifest["annotations"]["pad"] = "x".repeat(rest).into();
        manifest.to_string().into_bytes()
    };
    let largest = padded(MANIFEST_BYTES_MAX);
    assert_eq!(largest.len(), MANIFEST_BYTES_MAX);
    for (number, pusher) in pushers.iter().enumerate() {
        let tag = format!("large{number}");
        assert_eq!(pusher.put_manifest(REPO, &tag, &largest).status, 201);
        let got = pusher.get(&format!("/v2/{REPO}/manifests/{tag}"));
        assert!(got.status == 200 && got.body == largest, "{}", got.status);
        let response = pusher.put_manifest(REPO, "larger", &padded(MANIFEST_BYTES_MAX + 1));
        assert_eq!((response.status, response.code().as_str()), (413, "SIZE_INVALID"));
    }
    let text = base.to_string();
    let both = {
        let mut both = base.clone();
        both["manifests"] = json!([]);
        both.to_string()
    };
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (why, manifest) in [
        ("a manifest and an index in one", both),
        ("duplicate keys", text.replacen("{", r#"{"schemaVersion":2,"#, 1)),
        ("duplicate layers", text.replacen("{", r#"{"layers":[],"#, 1)),
        ("deep JSON", deep.clone()),
        ("deep annotations", text.replacen("{", &format!(r#"{{"annotations":{deep},"#), 1)),
        ("not JSON", "not json".to_owned()),
        ("cut JSON", text[..text.len() - 1].to_owned()),
        ("two documents", format!("{text}{text}")),
        ("nothing", String::new()),
        ("another media type inside", text.replace("image.manifest.v1", "image.index.v1")),
        ("a layer without a digest", text.replace(r#""digest""#, r#""digits""#)),
        ("a digest that is none", text.replace("sha256:", "sha256:../")),
        ("a negative size", text.replace(r#""size":5"#, r#""size":-5"#)),
        ("bytes that are no text", String::from_utf8_lossy(b"\"\xff\xfe\"").into_owned()),
    ] {
        for pusher in &pushers {
            let response = pusher.put_manifest(REPO, "bad", manifest.as_bytes());
            assert!(matches!(response.status, 400 | 404), "{why}: {} {}", response.status, response.text());
            assert!(response.code().starts_with("MANIFEST_"), "{why}: {}", response.text());
        }
    }
    for pusher in &pushers {
        assert_eq!(pusher.head(&format!("/v2/{REPO}/manifests/bad")).status, 404);
        assert_eq!(pusher.head(&format!("/v2/{REPO}/manifests/larger")).status, 404);
    }
    assert!(cluster.nodes().all(|node| !node.log().contains("panicked")));
}

#[test]
fn listings_are_capped() {
    let cluster = cluster();
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    for tag in ["a", "b", "c"] {
        pusher.push_image(REPO, tag, &[]);
    }
    cluster.wait_complete();
    let scopes = ["registry:catalog:*", "repository:team/app:pull"];
    let user = Some((USER, cluster.password.as_str()));
    let token = token(&Client::plain(), &cluster.primary.registry(), SERVICE, &scopes, user);
    for node in cluster.nodes() {
        let session = Session::with_token(&node.registry(), &token);
        for list in ["/v2/_catalog".to_owned(), format!("/v2/{REPO}/tags/list")] {
            for n in ["1000000000", "18446744073709551615", "99999999999999999999999999"] {
                let response = session.get(&format!("{list}?n={n}"));
                assert_eq!(response.status, 200, "{n}: {}", response.text());
            }
            for n in ["-1", "x", "1.5", "", "0x10", "%00"] {
                let response = session.get(&format!("{list}?n={n}"));
                assert_eq!(response.status, 400, "{list}?n={n}: {}", response.text());
                assert_eq!(response.code(), "PAGINATION_NUMBER_INVALID");
            }
            let odd = session.get(&format!("{list}?last=..%2f..%2f%00%ff&n=2"));
            assert!(matches!(odd.status, 200 | 400), "{}", odd.status);
        }
        let all = session.get(&format!("/v2/{REPO}/tags/list?n=1000000000")).json();
        assert_eq!(all["tags"], json!(["a", "b", "c"]));
    }
}

#[test]
fn requests_cannot_be_smuggled_nor_lines_forged() {
    let cluster = cluster();
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    let authorization = pusher.authorization();
    for node in cluster.nodes() {
        // Two lengths: whatever is answered, nobody reads a second request out of the first one's body.
        for framing in [
            "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
            "Content-Length: 6\r\nContent-Length: 0\r\n",
            "Content-Length: 0, 6\r\n",
            "Transfer-Encoding: chunked, identity\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Content-Length: 6\r\nTransfer-Encoding:\tchunked\r\n",
        ] {
            let smuggled = format!(
                "GET /v2/{REPO}/tags/list HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n\r\n"
            );
            let request = format!("POST /v2/ HTTP/1.1\r\nHost: x\r\n{framing}\r\n0\r\n\r\n{smuggled}");
            let answers = exchange(node, request.as_bytes());
            let statuses: Vec<&str> = answers.lines().filter(|line| line.starts_with("HTTP/1.1")).collect();
            assert!(statuses.len() <= 1 || statuses[1].contains("400"), "{framing:?}: {answers}");
        }
        // Control characters stay out of the log, or are escaped in it.
        for request in [
            &b"GET /v2/forged\x1b[31m/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n"[..],
            b"GET /v2/forged\x00/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /v2/forged\nforged-line/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /v2/forged%0aforged-line%1b[31m/manifests/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            b"PUT /v2/forged%0d%0aforged-line/manifests/1 HTTP/1.1\r\nHost: x\r\nUser-Agent: a\x1b[31mb\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            b"FORGED\x07 /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Forged: a\x00b\r\n\r\n",
            b"GET /v2/ HTTP/9.9\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnot a frame at all, whatever follows",
        ] {
            let answers = exchange(node, request);
            let first = answers.lines().next().unwrap_or_default();
            assert!(!first.contains(" 200") && !first.contains(" 500"), "{first}");
        }
        let huge = format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Large: {}\r\n\r\n", "x".repeat(1 << 20));
        let answers = exchange(node, huge.as_bytes());
        assert!(answers.is_empty() || answers.starts_with("HTTP/1.1 4"), "{answers}");
        let log = node.log();
        assert!(log.lines().all(|line| !line.starts_with("forged-line")), "a forged line in the log");
        assert!(
            !log.contains("\u{1b}[31m") && !log.contains('\0') && !log.contains('\u{7}'),
            "a control character in the log"
        );
        assert!(!log.contains("panicked"));
        assert_eq!(pusher.at(node).get("/v2/").status, 200, "honest clients are served");
    }
}

#[test]
fn odd_headers_are_refused_or_ignored() {
    let cluster = cluster();
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    let layer = bytes(1000, 1);
    pusher.push_image(REPO, "1", &[&layer]);
    cluster.wait_complete();
    let blob = format!("/v2/{REPO}/blobs/{}", outport_proto::Digest::sha256(&layer));
    for node in cluster.nodes() {
        let session = pusher.at(node);
        for range in [
            "bytes",
            "bytes=",
            "bytes=x-y",
            "lines=1-2",
            "bytes=1",
            "bytes=--1",
            "bytes=5-2",
            "bytes=99999999999999999999-",
            &"bytes=0-1,".repeat(1000),
        ] {
            let response = session.send("GET", &blob, &[("Range", range)], b"");
            assert!(matches!(response.status, 200 | 206 | 416), "{range}: {}", response.status);
            assert!(response.status != 200 || response.body == layer);
        }
        for (name, value) in [
            ("If-None-Match", "\""),
            ("If-Match", "W/\"x\""),
            ("Accept", ",,,;;;"),
            ("Accept", "text/plain"),
            ("Outport-Min-Offset", "x"),
            ("Outport-Min-Offset", "-1.-1"),
            ("Content-Length", "0"),
            ("Expect", "200-maybe"),
            ("Cookie", "a=b"),
            ("X-HTTP-Method-Override", "DELETE"),
        ] {
            let response = session.send("GET", &format!("/v2/{REPO}/manifests/1"), &[(name, value)], b"");
            assert!(response.status < 500, "{name}: {value}: {}", response.status);
        }
        assert_eq!(session.get(&format!("/v2/{REPO}/manifests/1")).status, 200);
    }
}

/// Sends bytes and reads all that comes back until the node closes, or has nothing more to say.
fn exchange(node: &Node, bytes: &[u8]) -> String {
    use std::{io::Read as _, net::Shutdown};
    let mut stream = TcpStream::connect(node.registry()).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    // The node may refuse before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Every file of the stores, by path and size.
fn files(cluster: &Cluster) -> Vec<(PathBuf, u64)> {
    let mut files = Vec::new();
    for node in cluster.nodes() {
        let mut open = vec![node.data().join("store")];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                if entry.path().is_dir() {
                    open.push(entry.path());
                } else {
                    files.push((entry.path(), entry.metadata().unwrap().len()));
                }
            }
        }
    }
    assert!(files.iter().all(|(file, _)| path(file).contains("store")));
    files.sort();
    files
}
