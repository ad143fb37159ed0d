//! A registry that is wrong or means harm: bounded, explained, never published.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use outport_proto::Digest;

use crate::{
    agreement::report,
    liar::{Asked, Liar, Reply},
    support::{
        Cluster, Options,
        http::Response,
        session::{OCI_MANIFEST, Session, image},
        wait_for,
    },
};

const REPO: &str = "team/app";
pub const LAYER: &[u8] = b"the layer that was meant";

pub fn in_front_of(liar: &Liar, gateway_toml: &str) -> Cluster {
    let gateway_toml = format!("answer_seconds = 1\n{gateway_toml}");
    let upstream = Some(liar.url());
    Cluster::start(Options { sites: vec!["mumbai"], upstream, gateway_toml, ..Options::default() })
}

pub fn json(headers: &[(&'static str, String)], value: &serde_json::Value) -> Reply {
    Reply::ok(headers, value.to_string().as_bytes())
}

pub fn manifest_of(bytes: &[u8]) -> Reply {
    let digest = Digest::sha256(bytes).to_string();
    let headers = [("Content-Type", OCI_MANIFEST.to_owned()), ("Docker-Content-Digest", digest)];
    Reply::ok(&headers, bytes)
}

/// A registry with nothing in it but what `special` says.
pub fn nothing_but(special: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static) -> Liar {
    Liar::open(move |asked| {
        if let Some(reply) = special(asked) {
            return reply;
        }
        match asked.path.split('?').next().unwrap_or_default() {
            "/v2/" => json(&[], &serde_json::json!({})),
            "/v2/_catalog" => json(&[], &serde_json::json!({ "repositories": [] })),
            _ => Reply::unknown("MANIFEST_UNKNOWN"),
        }
    })
}

fn pull(cluster: &Cluster, what: &str) -> Response {
    Session::anyone(cluster, &cluster.sites[0], &[REPO]).get(&format!("/v2/{REPO}/{what}"))
}

/// It may be there and cannot be had now, and the answer says why in the protocol's own form.
#[track_caller]
fn assert_unavailable(response: &Response) {
    assert_eq!(response.status, 503, "{}", response.text());
    assert!(!response.code().is_empty() && response.header("retry-after").is_some(), "{}", response.text());
}

fn head(cluster: &Cluster) -> u64 {
    cluster.primary.status()["head_seq"].as_u64().unwrap()
}

#[test]
fn answers_that_are_no_manifests_are_neither_recorded_nor_taken_for_absence() {
    let good = image(&[LAYER]);
    let page = b"<html>down for maintenance</html>".to_vec();
    let liar = nothing_but(move |asked| {
        let html = || vec![("Content-Type", "text/html".to_owned())];
        Some(match asked.path.strip_prefix("/v2/team/app/manifests/")? {
            "page" => Reply::Whole(200, html(), page.clone()),
            "page-404" => Reply::Whole(404, html(), page.clone()),
            "page-200-digest" => {
                let other = Digest::sha256(b"something else").to_string();
                Reply::Whole(200, vec![("Docker-Content-Digest", other)], good.clone())
            }
            "no-digest" => {
                Reply::Whole(200, vec![("Docker-Content-Digest", "sha256:zz".to_owned())], good.clone())
            }
            "forbidden" => Reply::Whole(403, html(), page.clone()),
            "failing" => Reply::Whole(500, html(), page.clone()),
            "teapot" => Reply::Whole(418, html(), page.clone()),
            "huge" => manifest_of(&vec![b' '; 4 * 1024 * 1024 + 1]),
            "silent" => Reply::Silence,
            "slow" => Reply::Trickle(
                b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{".to_vec(),
                Duration::from_millis(5),
            ),
            "cut" => Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{".to_vec()),
            "garbage" => Reply::Raw(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
            "absent" => Reply::unknown("MANIFEST_UNKNOWN"),
            _ => return None,
        })
    });
    let cluster = in_front_of(&liar, "");
    for tag in [
        "page",
        "page-404",
        "page-200-digest",
        "no-digest",
        "forbidden",
        "failing",
        "teapot",
        "huge",
        "silent",
        "cut",
        "garbage",
    ] {
        let began = Instant::now();
        let response = pull(&cluster, &format!("manifests/{tag}"));
        assert_unavailable(&response);
        assert!(began.elapsed() < Duration::from_secs(15), "{tag}: {:?}", began.elapsed());
    }
    assert_eq!(pull(&cluster, "manifests/absent").status, 404);
    assert_eq!(head(&cluster), 0, "nothing was recorded");
    // One who takes a byte at a time is given up as well, and holds up nobody meanwhile.
    let slow = std::thread::scope(|scope| {
        let slow = scope.spawn(|| pull(&cluster, "manifests/slow").status);
        assert_eq!(pull(&cluster, "manifests/absent").status, 404);
        slow.join().unwrap()
    });
    assert_eq!(slow, 503);
}

#[test]
fn bytes_that_are_not_the_blob_are_never_published() {
    let wanted = Digest::sha256(LAYER);
    let size = LAYER.len();
    let kind = Arc::new(AtomicU64::new(0));
    let of = Arc::clone(&kind);
    let liar = nothing_but(move |asked| {
        let manifest = image(&[LAYER]);
        if asked.path == format!("/v2/{REPO}/manifests/1") {
            return Some(manifest_of(&manifest));
        }
        if asked.path != format!("/v2/{REPO}/blobs/{wanted}") {
            return None;
        }
        if asked.method == "HEAD" {
            return Some(Reply::ok(&[], LAYER));
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n");
        let wrong = vec![b'x'; size];
        Some(match of.load(Relaxed) {
            0 => Reply::ok(&[], &wrong),
            1 => Reply::Raw([head.as_bytes(), &LAYER[..size - 3]].concat()),
            2 => Reply::ok(&[], &[LAYER, b"and more"].concat()),
            3 => Reply::ok(&[], &LAYER[..size - 3]),
            4 => Reply::Whole(200, vec![("Content-Encoding", "gzip".to_owned())], wrong),
            _ => Reply::ok(&[], LAYER),
        })
    });
    let cluster = in_front_of(&liar, "");
    assert_eq!(pull(&cluster, "manifests/1").status, 200);
    let target = format!("/v2/{REPO}/blobs/{wanted}");
    for number in 0..5 {
        kind.store(number, Relaxed);
        let asked = Session::anyone(&cluster, &cluster.sites[0], &[REPO]).try_send("GET", &target, &[], b"");
        if let Ok(response) = asked {
            assert_unavailable(&response);
        }
        for node in cluster.nodes() {
            assert_eq!(node.status()["store"]["blobs"], 0, "{number} at {}", node.name);
        }
    }
    kind.store(9, Relaxed);
    wait_for("the blob to be had", || {
        let session = Session::anyone(&cluster, &cluster.sites[0], &[REPO]);
        let response = session.try_send("GET", &target, &[], b"").ok()?;
        (response.status == 200).then(|| assert_eq!(response.body, LAYER))
    });
}

#[test]
fn storage_is_where_the_configuration_says_and_gets_no_credentials() {
    static STORAGE: OnceLock<String> = OnceLock::new();
    let wanted = Digest::sha256(LAYER);
    let storage = Liar::open(|asked| match asked.path.as_str() {
        "/good" => Reply::ok(&[], LAYER),
        "/loop" => Reply::Whole(307, vec![("Location", "/loop".to_owned())], Vec::new()),
        _ => Reply::Whole(403, Vec::new(), Vec::new()),
    });
    STORAGE.set(storage.address.clone()).unwrap();
    let place = Arc::new(AtomicU64::new(0));
    let to = Arc::clone(&place);
    let liar = nothing_but(move |asked| {
        if asked.path == format!("/v2/{REPO}/manifests/1") {
            return Some(manifest_of(&image(&[LAYER])));
        }
        if asked.path != format!("/v2/{REPO}/blobs/{wanted}") {
            return None;
        }
        if asked.method == "HEAD" {
            return Some(Reply::ok(&[], LAYER));
        }
        let storage = STORAGE.get().unwrap();
        let port = storage.rsplit(':').next().unwrap();
        let location = match to.load(Relaxed) {
            0 => format!("http://localhost:{port}/good"),
            1 => format!("http://{storage}/loop"),
            2 => "file:///etc/passwd".to_owned(),
            3 => format!("http://{storage}/expired"),
            _ => format!("http://{storage}/good"),
        };
        Some(Reply::Whole(307, vec![("Location", location)], Vec::new()))
    });
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "for the registry alone").unwrap();
    let gateway_toml = format!(
        "username = 'outport'\npassword_file = '{}'\nredirect_hosts = ['127.0.0.1']\n",
        password.display()
    );
    let cluster = in_front_of(&liar, &gateway_toml);
    assert_eq!(pull(&cluster, "manifests/1").status, 200);
    for number in 0..4 {
        place.store(number, Relaxed);
        let response = pull(&cluster, &format!("blobs/{wanted}"));
        assert_unavailable(&response);
    }
    let asked = storage.asked();
    assert!(asked.iter().all(|asked| asked.path != "/good"), "localhost is not named: {asked:?}");
    let loops = asked.iter().filter(|asked| asked.path == "/loop").count();
    // Three redirects, as often as two flights try.
    assert!((1..200).contains(&loops), "{loops}");
    place.store(9, Relaxed);
    wait_for("the blob to be had", || {
        let response = pull(&cluster, &format!("blobs/{wanted}"));
        (response.status == 200).then(|| assert_eq!(response.body, LAYER))
    });
    assert!(storage.asked().iter().all(|asked| asked.authorization.is_none()), "{:?}", storage.asked());
}

#[test]
fn the_gateways_password_goes_to_no_token_endpoint_that_nobody_named() {
    let thief = Liar::open(|_| Reply::ok(&[], br#"{"token":"t"}"#));
    let realm = format!("Bearer realm=\"{}/token\",service=\"x\"", thief.url());
    let liar =
        Liar::open(move |_| Reply::Whole(401, vec![("WWW-Authenticate", realm.clone())], b"{}".to_vec()));
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "for the registry alone").unwrap();
    let gateway_toml = format!("username = 'outport'\npassword_file = '{}'\n", password.display());
    let cluster = in_front_of(&liar, &gateway_toml);
    assert_unavailable(&pull(&cluster, "manifests/1"));
    assert_eq!(thief.asked(), []);
    let error = wait_for("the walk to say why", || report(&cluster)["error"].as_str().map(str::to_owned));
    assert!(error.contains("gateway.token_realm"), "{error}");
}

#[test]
fn lists_without_an_end_and_storms_of_429_stop_nothing_but_the_walk() {
    let liar = nothing_but(|asked| {
        asked.path.starts_with("/v2/_catalog").then(|| {
            // Two pages that lead to each other.
            let other = if asked.path.contains("last=b") { "a" } else { "b" };
            let next = format!("</v2/_catalog?n=1000&last={other}>; rel=\"next\"");
            json(&[("Link", next)], &serde_json::json!({ "repositories": ["a", "b"] }))
        })
    });
    let cluster = in_front_of(&liar, "");
    let error = wait_for("the walk to stop", || report(&cluster)["error"].as_str().map(str::to_owned));
    assert!(error.contains("broke the protocol"), "{error}");
    let pages = liar.asked().iter().filter(|asked| asked.path.starts_with("/v2/_catalog")).count();
    assert!(pages < 10, "{pages}");
    assert!(cluster.primary.status()["gateway"]["alarm"].as_str().unwrap().contains("broke the protocol"));
    assert_eq!(pull(&cluster, "manifests/absent").status, 404, "pulls go on");

    static STORM: AtomicU64 = AtomicU64::new(0);
    let liar = nothing_but(|asked| {
        let rest = || Reply::Whole(429, vec![("Retry-After", "1".to_owned())], b"{}".to_vec());
        (asked.path.starts_with("/v2/_catalog") && STORM.fetch_add(1, Relaxed) < 3).then(rest)
    });
    let cluster = in_front_of(&liar, "");
    let began = Instant::now();
    wait_for("the walk to end", || report(&cluster)["last_reconciled_at"].as_u64());
    assert!(began.elapsed() > Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(STORM.load(Relaxed), 4, "asked no more often than it wants to be");
}

#[test]
fn ten_thousand_tags_and_a_manifest_of_four_mebibytes() {
    const TAGS: usize = 10_000;
    let mut large = image(&[LAYER]);
    large.resize(4 * 1024 * 1024, b' ');
    let expected = large.clone();
    let liar = nothing_but(move |asked| {
        let path = asked.path.split('?').next().unwrap();
        Some(match path {
            "/v2/_catalog" => json(&[], &serde_json::json!({ "repositories": [REPO] })),
            "/v2/team/app/tags/list" => {
                let tags: Vec<String> = (0..TAGS).map(|number| format!("v{number}")).collect();
                json(&[], &serde_json::json!({ "name": REPO, "tags": tags }))
            }
            _ if path.starts_with("/v2/team/app/manifests/v") => manifest_of(&image(&[LAYER])),
            "/v2/team/app/manifests/large" => manifest_of(&large),
            _ if path.starts_with("/v2/team/app/manifests/sha256:") => {
                let of = |bytes: &[u8]| path.ends_with(&Digest::sha256(bytes).to_string());
                if of(&large) { manifest_of(&large) } else { manifest_of(&image(&[LAYER])) }
            }
            _ if path.starts_with("/v2/team/app/blobs/") => Reply::ok(&[], LAYER),
            _ => return None,
        })
    });
    let cluster = in_front_of(&liar, "[gateway.reconcile]\nrequests_per_second = 100000\n");
    wait_for("all tags to be walked", || report(&cluster)["last_reconciled_at"].as_u64());
    assert_eq!(report(&cluster)["found"], TAGS);
    let response = pull(&cluster, "manifests/large");
    assert_eq!((response.status, response.body.len()), (200, expected.len()));
    assert_eq!(response.body, expected);
}

#[test]
fn a_certificate_that_nobody_vouches_for_is_not_believed() {
    let liar = Liar::open(|_| Reply::Raw(b"\x15\x03\x01\x00\x02\x02\x28".to_vec()));
    let upstream = Some(format!("https://{}", liar.address));
    let options = Options { sites: vec!["mumbai"], upstream, ..Options::default() };
    let cluster = Cluster::start(options);
    assert_unavailable(&pull(&cluster, "manifests/1"));
    let error = wait_for("the walk to say why", || report(&cluster)["error"].as_str().map(str::to_owned));
    assert!(error.contains("cannot be reached"), "{error}");
    let session = Session::user(&cluster, &cluster.primary, &[REPO]);
    assert_unavailable(&session.once("POST", &format!("/v2/{REPO}/blobs/uploads/"), &[], b""));
}
