//! A far region is fed once: pune follows mumbai instead of the primary, and goa follows pune.

use outport_proto::Digest;
use serde_json::{Value, json};

use crate::{
    support::{
        Cluster, Node, Options, outport,
        session::{Image, Session, bytes},
        wait_for,
    },
    whereabouts::{json, run, why},
};

const REPO: &str = "team/app";
const CHAIN: [&str; 3] = ["mumbai", "pune", "goa"];

fn chain(toml_of: &[(&'static str, &'static str)]) -> Cluster {
    Cluster::start(Options {
        sites: CHAIN.to_vec(),
        behind: vec![("pune", "mumbai"), ("goa", "pune")],
        toml_of: toml_of.iter().map(|(site, toml)| (*site, (*toml).to_owned())).collect(),
        ..Options::default()
    })
}

/// What `node` says of a site: its own row, or that of one behind it.
fn row(node: &Node, site: &str) -> Value {
    let status = node.status();
    let rows = status["sites"].as_array().cloned().unwrap_or_default();
    rows.into_iter().find(|row| row["site"] == site).unwrap_or_else(|| panic!("{site}: {status}"))
}

fn wait_for_row(node: &Node, site: &str, check: impl Fn(&Value) -> bool) -> Value {
    wait_for(&format!("what {} says of {site}", node.name), || Some(row(node, site)).filter(&check))
}

fn is_level(row: &Value, head: &Value) -> bool {
    row["state"] == "streaming" && row["applied_seq"] == *head && row["complete_seq"] == *head
}

/// Everything of an image can be had, by every name and method that a client may use.
fn pulls(puller: &Session, tag: &str, image: &Image, layer: &[u8]) {
    let digest = image.digest.to_string();
    for reference in [tag, &digest] {
        let target = format!("/v2/{REPO}/manifests/{reference}");
        let (head, get) = (puller.head(&target), puller.get(&target));
        assert_eq!(head.status, 200, "{target}");
        assert_eq!(head.header("docker-content-digest"), Some(digest.as_str()), "{target}");
        assert_eq!((get.status, get.body == image.manifest), (200, true), "{target}: {}", get.text());
        for name in ["age", "warning", "outport-staleness"] {
            assert_eq!(get.header(name), None, "{target}");
        }
    }
    let blob = format!("/v2/{REPO}/blobs/{}", Digest::sha256(layer));
    assert_eq!(puller.head(&blob).status, 200);
    let got = puller.get(&blob);
    assert_eq!((got.status, got.body == layer), (200, true));
}

#[test]
fn what_was_pushed_can_be_pulled_behind_two_relays_at_once() {
    let cluster = chain(&[]);
    let (primary, goa) = (&cluster.primary, cluster.site("goa"));
    for (round, through) in (0..).zip([primary, goa, cluster.site("pune"), primary, goa]) {
        let layer = bytes(300_000, 200 + round);
        let pusher = Session::user(&cluster, through, &[REPO]);
        let image = pusher.push_image(REPO, "1", &[&layer]);
        for site in [goa, cluster.site("pune"), cluster.site("mumbai")] {
            pulls(&Session::anyone(&cluster, site, &[REPO]), "1", &image, &layer);
        }
        // The token of the push may go on.
        assert_eq!(pusher.at(goa).get(&format!("/v2/{REPO}/manifests/1")).body, image.manifest);
    }

    let waited = json(&run("wait", primary, &["team/app:1", "--all-sites", "--complete"]), Some(0));
    assert_eq!(
        (&waited["reached"], waited["sites"].as_array().unwrap().len()),
        (&true.into(), 3),
        "{waited}"
    );
    let one = json(&run("wait", primary, &["team/app:1", "--site", "goa", "--complete"]), Some(0));
    assert_eq!((&one["sites"][0]["site"], &one["reached"]), (&"goa".into(), &true.into()), "{one}");
    let head = primary.status()["head_seq"].clone();
    for asked in [primary, goa] {
        let why = why(asked, "team/app:1", goa);
        assert_eq!((&why["code"], &why["site"]), (&"visible".into(), &"goa".into()), "{why}");
    }

    let holds_all = |row: &Value| row["store"]["bytes"].as_u64() >= Some(5 * 300_000);
    let seen = wait_for_row(primary, "goa", |row| is_level(row, &head) && holds_all(row));
    assert_eq!(seen["via"], json!(["mumbai", "pune"]), "{seen}");
    assert_eq!(seen["lag_seconds"], json!({ "applied": 0.0, "complete": 0.0 }), "{seen}");
    assert!(seen["rtt_seconds"].as_f64().is_some(), "{seen}");
    assert_eq!(goa.status()["via"], json!(["mumbai", "pune"]));
    let table = outport(&["status", "--admin", &primary.admin()]);
    assert!(table.contains("VIA") && table.contains("mumbai > pune"), "{table}");

    // A relay says the same of the sites behind it.
    for (relay, behind) in [("mumbai", &["goa", "pune"][..]), ("pune", &["goa"])] {
        let relay = cluster.site(relay);
        for site in behind {
            let said = wait_for_row(relay, site, |row| is_level(row, &head));
            assert_eq!(said["via"], row(primary, site)["via"], "{said}");
            assert_eq!(said["lag_seconds"]["applied"], 0.0, "{said}");
            let applied = relay.metric("outport_log_seq", &format!("stage=\"applied\",site=\"{site}\""));
            assert_eq!(Some(applied), head.as_f64(), "{site} in the metrics of {}", relay.name);
        }
        assert_eq!(relay.status()["sites"].as_array().unwrap().len(), behind.len());
        let table = outport(&["status", "--admin", &relay.admin()]);
        assert!(table.contains("goa") && table.contains("mumbai > pune"), "{table}");
    }
    assert!(goa.status().get("sites").is_none(), "nobody is behind it");

    let pusher = Session::user(&cluster, goa, &[REPO]);
    let gone = pusher.send("DELETE", &format!("/v2/{REPO}/manifests/1"), &[], b"");
    assert_eq!(gone.status, 202, "{}", gone.text());
    for site in [goa, cluster.site("pune")] {
        let puller = Session::anyone(&cluster, site, &[REPO]);
        assert_eq!(puller.get(&format!("/v2/{REPO}/manifests/1")).status, 404, "{}", site.name);
    }
    let never = why(primary, "team/app:1", goa);
    assert_eq!((&never["code"], &never["actor"]), (&"deleted".into(), &"demo".into()), "{never}");
}

#[test]
fn a_site_behind_relays_goes_on_without_any_of_those_above_it() {
    let mut cluster = chain(&[]);
    let target = format!("/v2/{REPO}/manifests/1");
    let layer = bytes(200_000, 210);
    let image = Session::user(&cluster, cluster.site("goa"), &[REPO]).push_image(REPO, "1", &[&layer]);
    json(&run("wait", &cluster.primary, &["team/app:1", "--all-sites", "--complete"]), Some(0));
    let puller = Session::anyone(&cluster, cluster.site("goa"), &[REPO]);
    let digest = Digest::sha256(&layer);

    let serves_stale = |cluster: &Cluster| {
        let goa = cluster.site("goa");
        goa.wait_until(|status| status["state"] == "disconnected");
        let status = goa.status();
        assert_eq!(status["lag_seconds"], json!({ "applied": null, "complete": null }), "{status}");
        for response in [puller.get(&target), puller.head(&target)] {
            assert_eq!(response.status, 200, "{}", response.text());
            assert!(response.header("age").is_some(), "{response:?}");
            assert!(response.header("warning").unwrap_or_default().starts_with("110"), "{response:?}");
        }
        assert_eq!(puller.get(&target).body, image.manifest);
        assert!(puller.get(&format!("/v2/{REPO}/blobs/{digest}")).body == layer);
        assert_eq!(puller.get(&format!("/v2/{REPO}/manifests/{}", image.digest)).status, 200);
        let unknown = puller.get(&format!("/v2/{REPO}/manifests/unknown"));
        assert_eq!((unknown.status, unknown.header("retry-after").is_some()), (503, true));
    };
    let recovers = |cluster: &Cluster, tag: &str| {
        for site in &cluster.sites {
            site.wait_until(|status| status["state"] == "streaming");
        }
        let goa = cluster.site("goa");
        let pushed = Session::user(cluster, goa, &[REPO]).push_image(REPO, tag, &[&layer]);
        pulls(&Session::anyone(cluster, goa, &[REPO]), tag, &pushed, &layer);
        let reference = format!("{REPO}:{tag}");
        json(&run("wait", &cluster.primary, &[&reference, "--all-sites", "--complete"]), Some(0));
        let head = cluster.primary.status()["head_seq"].clone();
        wait_for_row(&cluster.primary, "goa", |row| is_level(row, &head));
    };

    cluster.primary.kill();
    serves_stale(&cluster);
    // Who is connected to a relay that hears nothing is no more up to date than that one.
    let said = wait_for_row(cluster.site("pune"), "goa", |row| row["lag_seconds"]["applied"].is_null());
    assert_eq!(said["state"], "disconnected", "{said}");
    cluster.primary.start();
    recovers(&cluster, "2");

    for relay in ["pune", "mumbai"] {
        cluster.site_mut(relay).kill();
        serves_stale(&cluster);
        let lost = wait_for_row(&cluster.primary, "goa", |row| row["state"] == "disconnected");
        assert!(lost["lag_seconds"]["applied"].is_null(), "{lost}");
        let pushed = Session::user(&cluster, &cluster.primary, &[REPO]).push_image(REPO, "late", &[&layer]);
        let late = why(&cluster.primary, "team/app:late", cluster.site("goa"));
        assert_eq!(late["code"], "cut_off", "{late}");
        cluster.site_mut(relay).start();
        recovers(&cluster, "3");
        pulls(&Session::anyone(&cluster, cluster.site("goa"), &[REPO]), "late", &pushed, &layer);
        let moved = Session::user(&cluster, &cluster.primary, &[REPO]).push_image(REPO, "late", &[b"moved"]);
        pulls(&Session::anyone(&cluster, cluster.site("goa"), &[REPO]), "late", &moved, b"moved");
    }
}

#[test]
fn a_relay_that_keeps_nothing_still_feeds_those_behind_it() {
    let cluster = chain(&[
        ("mumbai", "[[policy]]\nkeep = 'exclude'\n"),
        ("pune", "[[policy]]\nrepository = 'team/**'\nkeep = 'lazy'\n[[policy]]\nkeep = 'exclude'\n"),
    ]);
    let repos = [REPO, "base/os"];
    let pusher = Session::user(&cluster, cluster.site("goa"), &repos);
    let layers = [bytes(300_000, 220), bytes(400_000, 221)];
    for (repo, layer) in repos.iter().zip(&layers) {
        pusher.push_image(repo, "1", &[layer]);
        let puller = Session::anyone(&cluster, cluster.site("goa"), &repos);
        let got = puller.get(&format!("/v2/{repo}/blobs/{}", Digest::sha256(layer)));
        assert_eq!((got.status, got.body == *layer), (200, true), "{}", got.text());
        assert_eq!(puller.get(&format!("/v2/{repo}/manifests/1")).status, 200);
        let image = format!("{repo}:1");
        json(&run("wait", &cluster.primary, &[&image, "--all-sites", "--complete"]), Some(0));
    }
    let blobs = |site: &str| cluster.site(site).status()["store"]["blobs"].clone();
    assert_eq!((blobs("mumbai"), blobs("goa")), (0.into(), 3.into()), "layers, and the config of both");
    wait_for("pune to keep what it filled for goa", || (blobs("pune") == 2).then_some(()));
    assert!(cluster.site("mumbai").metric("outport_upstream_bytes_total", "") >= 700_000.0);
}
