//! Callers whom only the registry knows, and what answers in its place.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use crate::{
    liar::{Asked, Liar, Reply},
    support::{
        Cluster, Node, Options,
        http::{Client, Response},
        outport, wait_for,
    },
};

/// `ana:s3cret`.
const ANA: &str = "Basic YW5hOnMzY3JldA==";
/// Nobody's.
const MADE_UP: &str = "Basic bm9ib2R5Om5vdGhpbmc=";
const LISTED: &str = "/v2/team/app/tags/list";

fn json(status: u16, headers: &[(&'static str, String)], value: &serde_json::Value) -> Reply {
    let headers = [headers, &[("Content-Type", "application/json".to_owned())]].concat();
    Reply::Whole(status, headers, value.to_string().into_bytes())
}

/// A registry that lets in ana and nobody else, and the gateway as little; it has nothing.
fn of_ana(asked: &Asked) -> Reply {
    if asked.authorization.as_deref() != Some(ANA) {
        let challenge = [("WWW-Authenticate", "Basic realm=\"Registry\"".to_owned())];
        return json(401, &challenge, &serde_json::json!({ "errors": [{ "code": "UNAUTHORIZED" }] }));
    }
    match asked.path.split('?').next().unwrap_or_default() {
        "/v2/" => json(200, &[], &serde_json::json!({})),
        LISTED => json(200, &[], &serde_json::json!({ "name": "team/app", "tags": [] })),
        _ => Reply::unknown("NAME_UNKNOWN"),
    }
}

fn in_front_of(liar: &Liar, delegated_toml: &str) -> Cluster {
    let cluster = Cluster::start(Options {
        sites: vec!["mumbai"],
        upstream: Some(liar.url()),
        gateway_toml: "answer_seconds = 1\n".to_owned(),
        auth_toml: Some(format!("[auth]\nmode = 'delegated'\n[auth.delegated]\n{delegated_toml}")),
        ..Options::default()
    });
    // Until the registry said so, nobody knows what to ask clients for.
    let login = || (get(&cluster.sites[0], "/v2/", None).status == 401).then_some(());
    wait_for("the registry's challenge", login);
    cluster
}

fn get(node: &Node, target: &str, authorization: Option<&str>) -> Response {
    let headers: Vec<_> = authorization.map(|value| ("Authorization", value)).into_iter().collect();
    Client::plain().get(&node.registry(), target, &headers)
}

#[test]
fn a_login_page_in_front_of_the_registry_lets_nobody_in() {
    let is_down = Arc::new(AtomicBool::new(false));
    let page = Arc::clone(&is_down);
    let liar = Liar::open(move |asked| {
        if !page.load(SeqCst) {
            return of_ana(asked);
        }
        let html = ("Content-Type", "text/html".to_owned());
        if asked.path.starts_with("/v2/team/led/blobs/") {
            let to = ("Location", "http://login.example.com/?then=/v2/".to_owned());
            return Reply::Whole(302, vec![html, to], Vec::new());
        }
        if asked.path.starts_with("/v2/team/led/tags/") {
            return Reply::unknown("NAME_UNKNOWN");
        }
        Reply::Whole(200, vec![html], b"<html>Please log in</html>".to_vec())
    });
    let cluster = in_front_of(&liar, "");
    let blob = format!("/v2/team/led/blobs/{}", outport_proto::Digest::sha256(b"1"));
    is_down.store(true, SeqCst);
    for node in cluster.nodes() {
        for target in ["/v2/", LISTED, "/v2/_catalog", "/v2/team/app/manifests/1", &blob] {
            let response = get(node, target, Some(MADE_UP));
            assert_eq!(response.status, 503, "{} {target}: {}", node.name, response.text());
            assert!(response.header("retry-after").is_some());
        }
    }
    // And nothing of it is remembered.
    is_down.store(false, SeqCst);
    for node in cluster.nodes() {
        assert_eq!(get(node, LISTED, Some(MADE_UP)).status, 401, "{}", node.name);
        assert_eq!(get(node, "/v2/", Some(ANA)).status, 200, "{}", node.name);
    }
}

#[test]
fn a_restart_while_the_registry_is_away_changes_nothing_at_sites() {
    let is_down = Arc::new(AtomicBool::new(false));
    let down = Arc::clone(&is_down);
    let liar = Liar::open(move |asked| match down.load(SeqCst) {
        true => Reply::Whole(502, Vec::new(), Vec::new()),
        false => of_ana(asked),
    });
    let mut cluster = in_front_of(&liar, "allow_seconds = 3600\n");
    assert_eq!(get(&cluster.sites[0], "/v2/", Some(ANA)).status, 200);
    is_down.store(true, SeqCst);
    cluster.primary.stop();
    cluster.primary.start();
    cluster.sites[0].wait_until(|status| status["state"] == "streaming");
    assert_eq!(get(&cluster.sites[0], "/v2/", Some(ANA)).status, 200, "she was let in an hour ago at most");
    for node in cluster.nodes() {
        let login = get(node, "/v2/", None);
        assert_eq!(login.status, 401, "{}: {}", node.name, login.text());
        assert_eq!(login.header("www-authenticate"), Some("Basic realm=\"Registry\""));
    }

    // What was revoked stays so as well.
    outport(&["revoke", "--admin", &cluster.primary.admin()]);
    wait_for("the site to hear of it", || {
        (get(&cluster.sites[0], "/v2/", Some(ANA)).status == 503).then_some(())
    });
    cluster.primary.stop();
    cluster.primary.start();
    cluster.sites[0].wait_until(|status| status["state"] == "streaming");
    assert_eq!(get(&cluster.sites[0], "/v2/", Some(ANA)).status, 503);
}
