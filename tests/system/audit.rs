//! The audit log: who did what, a line each.

use std::{fs, path::PathBuf};

use opentelemetry_proto::tonic::common::v1::any_value;
use serde_json::Value;

use crate::{
    collector::Collector,
    support::{
        Cluster, Node, Options, USER,
        http::{Client, get_plain},
        session::{SERVICE, Session, bytes, token_for},
        wait_for,
    },
};

const REPO: &str = "team/app";

fn file(node: &Node) -> PathBuf {
    node.data_dir().join("audit.log")
}

/// The lines of a node's log so far. Each is as the schema says.
fn lines(node: &Node) -> Vec<Value> {
    let text = fs::read_to_string(file(node)).unwrap_or_default();
    let whole = text.rsplit_once('\n').map(|(whole, _)| whole.to_owned()).unwrap_or_default();
    let lines = whole.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.inspect(is_as_documented).collect()
}

/// Waits for the first line that says all of this.
fn line(node: &Node, says: &[(&str, Value)]) -> Value {
    wait_for(&format!("a line with {says:?} in {}", node.name), || {
        lines(node).into_iter().find(|line| says.iter().all(|(key, value)| line[key] == *value))
    })
}

fn is_as_documented(line: &Value) {
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/audit.schema.json");
    let schema: Value = serde_json::from_str(&fs::read_to_string(schema).unwrap()).unwrap();
    let line = line.as_object().unwrap();
    for required in schema["required"].as_array().unwrap() {
        assert!(line.contains_key(required.as_str().unwrap()), "{required}: {line:?}");
    }
    for (key, value) in line {
        let property = &schema["properties"][key];
        assert!(property.is_object(), "the schema has no {key}: {line:?}");
        let is_right = match property["type"].as_str() {
            Some("string") => value.is_string(),
            Some("integer") => value.is_u64(),
            Some("number") => value.is_number(),
            _ => property["enum"].as_array().unwrap().contains(value),
        };
        assert!(is_right, "{key}: {line:?}");
    }
}

#[test]
fn every_pull_push_redirect_denial_delete_and_act_of_an_administrator_is_a_line() {
    let cluster = Cluster::start(Options {
        sites: vec!["mumbai"],
        primary_toml: "[audit]\nfile = '{data}/audit.log'\n".to_owned(),
        site_toml: "[audit]\nfile = '{data}/audit.log'\n[[policy]]\nkeep = 'lazy'\n".to_owned(),
        public: "open/**",
        ..Options::default()
    });
    let site = &cluster.sites[0];
    let session = Session::user(&cluster, &cluster.primary, &[REPO]);
    let content = bytes(50_000, 1);
    let image = session.push_image(REPO, "1", &[&content]);
    let put = line(&cluster.primary, &[("kind", "push".into()), ("action", "manifest-put".into())]);
    assert_eq!(
        (&put["subject"], &put["reference"], &put["status"]),
        (&USER.into(), &"1".into(), &201.into())
    );
    assert_eq!(put["digest"], image.digest.to_string());
    let blob = outport_proto::Digest::sha256(&content).to_string();
    line(&cluster.primary, &[("kind", "push".into()), ("digest", blob.clone().into())]);
    line(&cluster.primary, &[("kind", "token".into()), ("subject", USER.into()), ("status", 200.into())]);

    let user = Some((USER, cluster.password.as_str()));
    let pulling = token_for(&cluster.primary.registry(), SERVICE, &[REPO], "pull", user);
    let here = Session::with_token(&site.registry(), &pulling);
    site.wait_until(|status| status["applied_seq"] == cluster.primary.status()["head_seq"]);
    let pulled =
        here.send("GET", &format!("/v2/{REPO}/manifests/1"), &[("User-Agent", "ana's \"client\"")], b"");
    assert_eq!(pulled.status, 200);
    let pull = line(site, &[("kind", "pull".into()), ("reference", "1".into())]);
    for (key, value) in [
        ("site", Value::from("mumbai")),
        ("subject", USER.into()),
        ("action", "manifest".into()),
        ("method", "GET".into()),
        ("repository", REPO.into()),
        ("digest", image.digest.to_string().into()),
        ("status", 200.into()),
        ("result", "local".into()),
        ("bytes", image.manifest.len().into()),
        ("ending", "whole".into()),
        ("user_agent", "ana's \"client\"".into()),
        ("client", "127.0.0.1".into()),
    ] {
        assert_eq!(pull[key], value, "{key}: {pull}");
    }
    assert!(pull["rule"].is_string() && pull["trace_id"].as_str().unwrap().len() == 32, "{pull}");
    assert_eq!(here.get(&format!("/v2/{REPO}/blobs/{blob}")).body, content);
    let filled = line(site, &[("digest", blob.clone().into()), ("kind", "pull".into())]);
    assert_eq!((&filled["result"], &filled["bytes"]), (&"filled".into(), &50_000.into()), "{filled}");
    here.head(&format!("/v2/{REPO}/blobs/{blob}"));
    let head = line(site, &[("method", "HEAD".into())]);
    assert_eq!(
        (&head["bytes"], &head["ending"], &head["result"]),
        (&0.into(), &"whole".into(), &"local".into())
    );
    assert_eq!(here.get(&format!("/v2/{REPO}/manifests/none")).status, 404);
    line(site, &[("reference", "none".into()), ("status", 404.into()), ("result", "not_found".into())]);
    here.get(&format!("/v2/{REPO}/tags/list"));
    line(site, &[("kind", "list".into()), ("action", "tags".into())]);

    // A push here is led away; who only asks how to come in was denied nothing.
    let led = session.at(site).once("POST", &format!("/v2/{REPO}/blobs/uploads/"), &[], b"");
    assert_eq!(led.status, 307);
    let redirect = line(site, &[("kind", "redirect".into())]);
    assert_eq!((&redirect["subject"], &redirect["action"]), (&USER.into(), &"upload-start".into()));
    assert!(!redirect.to_string().contains("ticket"), "{redirect}");
    let nobody = Client::plain().connect(&site.registry()).unwrap().send("GET", "/v2/", &[], b"").unwrap();
    assert_eq!(nobody.status, 401);
    let stranger = Session::with_token(&site.registry(), "made.up.token");
    assert_eq!(stranger.get(&format!("/v2/{REPO}/manifests/1")).status, 401);
    let other = Session::anyone(&cluster, site, &["open/app"]);
    assert_eq!(other.get(&format!("/v2/{REPO}/manifests/1")).status, 401);
    let denied = line(site, &[("kind", "denial".into()), ("subject", "".into())]);
    assert_eq!((&denied["status"], &denied["repository"]), (&401.into(), &REPO.into()), "{denied}");
    let denials = || lines(site).into_iter().filter(|line| line["kind"] == "denial").count();
    assert_eq!(wait_for("both denials", || Some(denials()).filter(|count| *count >= 2)), 2);

    assert_eq!(session.send("DELETE", &format!("/v2/{REPO}/manifests/1"), &[], b"").status, 202);
    let deleted = line(&cluster.primary, &[("kind", "delete".into())]);
    assert_eq!((&deleted["reference"], &deleted["subject"]), (&"1".into(), &USER.into()));

    let acted = Client::plain().connect(&site.admin()).unwrap();
    let acted = { acted }.send("POST", "/v1/gc?dry_run=true", &[], b"").unwrap();
    let act = line(site, &[("kind", "admin".into())]);
    assert_eq!((&act["detail"], &act["status"]), (&"/v1/gc?dry_run=true".into(), &acted.status.into()));
    // Looking is no act.
    assert_eq!(get_plain(&site.admin(), "/v1/status").unwrap().0, 200);
    assert_eq!(lines(site).iter().filter(|line| line["kind"] == "admin").count(), 1);

    for node in cluster.nodes() {
        let text = fs::read_to_string(file(node)).unwrap();
        assert!(!text.contains(&cluster.password) && !text.contains("Bearer"), "credentials are in the log");
    }
}

#[test]
fn no_line_is_lost_over_stops_and_rotation_and_new_rules_are_told_once() {
    let mut cluster = Cluster::start(Options {
        sites: vec!["mumbai"],
        site_toml: "[audit]\nfile = '{data}/audit.log'\nrotate = '64KiB'\nkeep = 1000\n".to_owned(),
        ..Options::default()
    });
    let session = Session::user(&cluster, &cluster.primary, &[REPO]);
    session.push_image(REPO, "1", &[b"layer"]);
    cluster.wait_complete();
    let here = session.at(&cluster.sites[0]);
    const PULLS: usize = 2000;
    (0..PULLS).for_each(|_| assert_eq!(here.get(&format!("/v2/{REPO}/manifests/1")).status, 200));
    cluster.sites[0].stop();
    let dir = cluster.sites[0].data_dir().to_owned();
    let all = || -> Vec<Value> {
        let mut files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| file.file_name().unwrap().to_string_lossy().starts_with("audit.log"));
        assert!(files.len() > 3, "{files:?}");
        let texts = files.iter().map(|file| fs::read_to_string(file).unwrap());
        texts
            .flat_map(|text| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>())
            .collect()
    };
    let of_kind = |kind: &str| all().into_iter().filter(|line| line["kind"] == kind).collect::<Vec<_>>();
    assert_eq!(of_kind("pull").len(), PULLS);
    assert_eq!(of_kind("policy").len(), 1, "the first rules are new as well");

    cluster.sites[0].start();
    cluster.sites[0].stop();
    let config = cluster.sites[0].config();
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}\n[[policy]]\nrepository = 'team/**'\nkeep = 'exclude'\n")).unwrap();
    cluster.sites[0].start();
    cluster.sites[0].stop();
    let told = of_kind("policy");
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.iter().any(|line| line["detail"].as_str().unwrap().contains("team/**")), "{told:?}");
}

#[test]
fn a_collector_takes_it_as_well() {
    let collector = Collector::start();
    let cluster = Cluster::start(Options {
        sites: vec!["mumbai"],
        primary_toml: format!("[audit]\notlp = true\n{}", collector.by_http("")),
        site_toml: format!("[audit]\notlp = true\n{}", collector.by_grpc("")),
        ..Options::default()
    });
    let session = Session::user(&cluster, &cluster.primary, &[REPO]);
    session.push_image(REPO, "1", &[b"layer"]);
    assert_eq!(session.at(&cluster.sites[0]).get(&format!("/v2/{REPO}/manifests/1")).status, 200);
    for (site, kind) in [("primary", "push"), ("mumbai", "pull")] {
        let body = wait_for(&format!("a {kind} of {site}"), || {
            let all = collector.all();
            let found = all.logs.iter().find(|sent| sent.site == site && sent.what.event_name == kind);
            let body = found?.what.body.clone()?.value?;
            Some(match body {
                any_value::Value::StringValue(line) => serde_json::from_str::<Value>(&line).unwrap(),
                other => panic!("{other:?}"),
            })
        });
        is_as_documented(&body);
        assert_eq!((&body["kind"], &body["site"]), (&kind.into(), &site.into()));
    }
}
