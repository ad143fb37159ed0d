//! A tiny image goes to every site again and again: how long that takes, and who is told when it does not.

use serde_json::Value;

use crate::support::{
    Cluster, Node, Options, USER,
    http::{Client, get_plain, token},
    registry::Lets,
    session::{SERVICE, Session},
    wait_for,
};

const CANARY: &str = "outport/canary";

fn canary(node: &Node) -> Value {
    node.status()["canary"].clone()
}

/// What the primary says of a site's.
fn told(cluster: &Cluster, site: &str) -> Value {
    let status = cluster.primary.status();
    let sites = status["sites"].as_array().unwrap();
    sites.iter().find(|of| of["site"] == site).unwrap()["canary"].clone()
}

fn metric(node: &Node, line: &str) -> bool {
    get_plain(&node.admin(), "/metrics").unwrap().1.lines().any(|found| found == line)
}

/// Waits until the newest canary came to a site in less time than is between two.
fn wait_in_time(node: &Node) {
    node.wait_until(|status| {
        let canary = &status["canary"];
        canary["error"].is_null() && canary["lag_seconds"].as_f64().is_some_and(|lag| lag < 1.0)
    });
}

#[test]
fn every_site_pulls_it_whatever_its_rules_and_says_how_long_it_took() {
    let mut cluster = Cluster::start(Options {
        canary_seconds: 1,
        toml_of: vec![("mumbai", "[[policy]]\nkeep = 'exclude'\n".to_owned())],
        ..Options::default()
    });
    for site in &cluster.sites {
        wait_in_time(site);
        assert_eq!(canary(site)["interval_seconds"], 1.0);
        wait_for("the metric to say so", || metric(site, "outport_canary_late 0.0").then_some(()));
        wait_for("the primary to be told", || told(&cluster, &site.name)["lag_seconds"].as_f64());
        // They are nobody's pulls.
        assert!(site.status()["pulls"].as_object().unwrap().values().all(|count| count == 0));
    }

    // Cut off, the next one is overdue, and the more so the longer it lasts.
    cluster.primary.stop();
    let mumbai = cluster.site("mumbai");
    mumbai.wait_until(|status| status["canary"]["lag_seconds"].as_f64().is_some_and(|lag| lag > 1.0));
    assert!(metric(mumbai, "outport_canary_late 1.0"));
    cluster.primary.start();
    cluster.sites.iter().for_each(wait_in_time);

    // Switched off it goes, from sites as well.
    cluster.primary.environment.push(("OUTPORT_CANARY__INTERVAL_SECONDS", "0".into()));
    cluster.primary.stop();
    cluster.primary.start();
    for site in &cluster.sites {
        site.wait_until(|status| status["canary"].is_null());
        assert!(metric(site, "outport_canary_lag_seconds NaN") && metric(site, "outport_canary_late NaN"));
    }
}

#[test]
fn its_repository_is_the_primarys_own() {
    let cluster = Cluster::start(Options { canary_seconds: 1, ..Options::default() });
    cluster.sites.iter().for_each(wait_in_time);
    for node in cluster.nodes() {
        let session = Session::user(&cluster, node, &[CANARY, "team/app"]);
        let begun = session.send("POST", &format!("/v2/{CANARY}/blobs/uploads/"), &[], b"");
        assert_eq!((begun.status, begun.header("location")), (403, None), "{}", begun.text());
        assert!(begun.text().contains("\"DENIED\""), "{}", begun.text());
        let deleted = session.send("DELETE", &format!("/v2/{CANARY}/manifests/latest"), &[], b"");
        assert_eq!(deleted.status, 403);
        assert_eq!(session.get(&format!("/v2/{CANARY}/manifests/latest")).status, 200, "who may can look");
    }
    let session = Session::user(&cluster, &cluster.primary, &["team/app"]);
    session.push_image("team/app", "1", &[b"layer"]);
    cluster.wait_complete();
    let user = Some((USER, cluster.password.as_str()));
    let of_catalog =
        token(&Client::plain(), &cluster.primary.registry(), SERVICE, &["registry:catalog:*"], user);
    for node in cluster.nodes() {
        let catalog = Session::with_token(&node.registry(), &of_catalog).get("/v2/_catalog?n=1");
        let listed: Value = serde_json::from_slice(&catalog.body).unwrap();
        assert_eq!(listed["repositories"], serde_json::json!(["team/app"]));
        assert_eq!(catalog.header("link"), None, "there is nothing more");
    }
}

#[test]
fn a_registry_behind_the_primary_never_hears_of_it() {
    let cluster = Cluster::start(Options {
        canary_seconds: 1,
        registry: Some(Lets::Anybody),
        sites: vec!["mumbai"],
        gateway_toml: "[gateway.reconcile]\ninterval_seconds = 1\n".to_owned(),
        ..Options::default()
    });
    let walked = || cluster.primary.status()["gateway"]["last_reconciled_at"].as_u64();
    let first = wait_for("a walk", walked);
    wait_in_time(&cluster.sites[0]);
    wait_for("a walk with the canary there", || walked().filter(|at| *at > first + 1));
    wait_in_time(&cluster.sites[0]);
    let status = cluster.primary.status();
    assert_eq!(status["gateway"]["last_drift"], 0, "{status}");
    assert_eq!(status["gateway"]["alarm"], Value::Null);
    let log = std::fs::read_to_string(cluster.dir.path().join("registry/log")).unwrap();
    assert!(log.contains("/v2/_catalog") && !log.contains(CANARY), "the registry was asked for it");
}
