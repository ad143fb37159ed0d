//! What operators see (the fields and metric names that others build on).

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Command, Stdio},
};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

use crate::support::{
    BINARY, Cluster, Node, Options,
    http::get_plain,
    session::{Session, bytes},
    signal, wait_for,
};

const SITE_FIELDS: [&str; 40] = [
    "canary",
    "certificates",
    "fills",
    "missing_repos",
    "alarm",
    "forks_refused",
    "site",
    "cluster",
    "version",
    "epoch",
    "head_seq",
    "received_seq",
    "durable_seq",
    "applied_seq",
    "complete_seq",
    "lag_seconds",
    "lag_events",
    "lag_bytes",
    "missing_blobs",
    "heartbeat_age_seconds",
    "staleness_bound_seconds",
    "transport",
    "rtt_seconds",
    "store",
    "state",
    "via",
    "state_mismatches",
    "state_repairs",
    "state_entries_repaired",
    "eta_seconds",
    "propagation",
    "pulls",
    "hit_ratio",
    "served_bytes",
    "upstream_bytes",
    "clock_offset_seconds",
    "clock_offset_error_seconds",
    "last_error",
    "latitude",
    "longitude",
];

#[test]
fn every_admin_address_says_who_is_where() {
    let cluster = Cluster::start(Options::default());
    let pusher = Session::user(&cluster, &cluster.primary, &["team/app"]);
    pusher.push_image("team/app", "1", &[&bytes(50_000, 1)]);
    cluster.wait_complete();

    let primary = cluster.primary.status();
    assert_eq!(primary["role"], "primary");
    let head = primary["head_seq"].as_u64().unwrap();
    assert!(head >= 3, "{primary}");
    for field in ["cluster", "epoch", "head_seq", "floor_seq", "sites"] {
        assert!(!primary[field].is_null(), "{field}: {primary}");
    }
    let names: Vec<&str> =
        primary["sites"].as_array().unwrap().iter().map(|site| site["site"].as_str().unwrap()).collect();
    assert_eq!(names, ["frankfurt", "mumbai"]);
    for site in &cluster.sites {
        let status = site.status();
        assert_eq!(status["role"], "secondary");
        assert_eq!(status["site"], site.name.as_str());
        assert_eq!(status["cluster"], primary["cluster"]);
        assert_eq!(status["epoch"], primary["epoch"]);
        assert_site_fields(&status);
        for stage in ["head_seq", "received_seq", "durable_seq", "applied_seq", "complete_seq"] {
            assert_eq!(status[stage], head, "{stage}: {status}");
        }
        assert_eq!(status["lag_seconds"], serde_json::json!({ "applied": 0.0, "complete": 0.0 }), "{status}");
        assert_eq!((&status["lag_events"], &status["missing_blobs"]), (&0.into(), &0.into()));
        assert_eq!(status["transport"], "quic");
        assert_eq!(status["staleness_bound_seconds"], 1.0);
        assert!(status["rtt_seconds"].as_f64().unwrap() < 1.0);
        assert!(status["heartbeat_age_seconds"].as_f64().unwrap() < 5.0);
        assert!(status["store"]["bytes"].as_u64().unwrap() > 50_000, "{status}");
        assert_eq!(page(site, "/readyz").0, 200);
    }
    // What the primary knows of a site comes with its acknowledgements.
    for site in ["frankfurt", "mumbai"] {
        cluster.primary.wait_until(|status| {
            let row = status["sites"].as_array().unwrap().iter().find(|row| row["site"] == site).unwrap();
            row["complete_seq"] == head && row["state"] == "streaming"
        });
    }
    let (status, sites) = page(&cluster.primary, "/v1/sites");
    let sites: Value = serde_json::from_str(&sites).unwrap();
    assert_eq!((status, sites.as_array().unwrap().len()), (200, 2));
    sites.as_array().unwrap().iter().for_each(assert_site_fields);
    let (_, sites) = page(&cluster.sites[0], "/v1/sites");
    assert_eq!(serde_json::from_str::<Value>(&sites).unwrap()[0]["site"], "frankfurt");

    for node in cluster.nodes() {
        assert_eq!(page(node, "/healthz").0, 200);
        assert_eq!(page(node, "/no/such/page").0, 404);
        let json: Value = serde_json::from_str(&outport_status(node, &["--json"])).unwrap();
        assert_eq!(json["role"], node.status()["role"]);
        let text = outport_status(node, &[]);
        assert!(text.contains("streaming") && text.contains("frankfurt") | text.contains("mumbai"), "{text}");
        assert!(text.contains("quic"), "{text}");
    }
    assert!(outport_status(&cluster.primary, &[]).starts_with("primary"));
    let listed =
        Command::new(BINARY).args(["site", "list", "--admin", &cluster.primary.admin()]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(listed.lines().nth(2).unwrap().starts_with(" mumbai     streaming"), "{listed}");
    let nobody = Command::new(BINARY).args(["status", "--admin", "127.255.255.253:1"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("127.255.255.253:1"));
}

/// What `outport` writes on a terminal.
fn on_a_terminal(arguments: &[&str], no_color: Option<&str>) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let end = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let mut command = Command::new(BINARY);
    command.args(arguments).stdout(end).env_remove("NO_COLOR");
    if let Some(value) = no_color {
        command.env("NO_COLOR", value);
    }
    let mut child = command.spawn().unwrap();
    drop(command);
    // It fails once nobody has the other end any more.
    let mut text = Vec::new();
    let _ = File::from(terminal).read_to_end(&mut text);
    assert!(child.wait().unwrap().success());
    String::from_utf8(text).unwrap()
}

#[test]
fn colour_is_for_terminals_whose_users_want_it() {
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    cluster.primary.wait_until(|status| status["sites"][0]["state"] == "streaming");
    let admin = cluster.primary.admin();
    let status = ["status", "--admin", &admin];
    assert!(!outport_status(&cluster.primary, &[]).contains('\x1b'));
    let coloured = on_a_terminal(&status, None);
    assert!(coloured.contains("\x1b[") && coloured.contains("streaming"), "{coloured:?}");
    assert!(on_a_terminal(&status, Some("")).contains('\x1b'), "empty is as good as unset");
    let plain = on_a_terminal(&status, Some("1"));
    assert!(!plain.contains('\x1b') && plain.contains("streaming"), "{plain:?}");
}

#[test]
fn metrics_have_the_names_that_dashboards_use() {
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let site = &cluster.sites[0];
    let pusher = Session::user(&cluster, site, &["team/app"]);
    pusher.push_image("team/app", "1", &[&bytes(50_000, 2)]);
    cluster.wait_complete();
    assert_eq!(Session::anyone(&cluster, site, &["team/app"]).get("/v2/team/app/manifests/1").status, 200);

    let (_, text) = page(site, "/metrics");
    for name in [
        "outport_log_seq{stage=\"applied\"}",
        "outport_lag_seconds{stage=\"applied\"}",
        "outport_lag_seconds{stage=\"complete\"}",
        "outport_lag_events",
        "outport_pulls_total{result=\"",
        "outport_redirects_total{kind=\"",
        "outport_upstream_bytes_total",
        "outport_served_bytes_total",
        "outport_ttfb_seconds_bucket",
        "outport_heartbeat_age_seconds",
        "outport_store_bytes",
    ] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} is missing:\n{text}");
    }
    assert!(!text.contains("team/app") && !text.contains("sha256:"), "names must not be labels:\n{text}");
    assert!(site.metric("outport_upstream_bytes_total", "") >= 50_000.0);
    assert_eq!(site.metric("outport_redirects_total", "kind=\"manifest\""), 1.0);
    assert_eq!(site.metric("outport_redirects_total", "kind=\"upload\""), 2.0);
    let (_, text) = page(&cluster.primary, "/metrics");
    for name in
        ["outport_log_seq{stage=\"head\"}", "outport_lag_events{site=\"mumbai\"}", "outport_store_bytes"]
    {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} is missing:\n{text}");
    }
}

#[test]
fn a_site_that_is_cut_off_says_so_within_a_second() {
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let site = &cluster.sites[0];
    assert_eq!(site.status()["lag_seconds"]["applied"], 0.0);
    let halted = Halted::new(&cluster.primary);
    let began = std::time::Instant::now();
    site.wait_until(|status| status["state"] == "disconnected");
    let took = began.elapsed();
    assert!(took.as_millis() < 1300, "it took {took:?}");
    let status = site.status();
    assert_eq!(status["lag_seconds"], serde_json::json!({ "applied": null, "complete": null }), "{status}");
    assert!(status["heartbeat_age_seconds"].as_f64().unwrap() > 0.4);
    let (ready, reason) = page(site, "/readyz");
    assert_eq!(ready, 503, "{reason}");
    let (_, metrics) = page(site, "/metrics");
    assert!(metrics.contains("outport_lag_seconds{stage=\"applied\"} NaN"), "{metrics}");
    assert!(outport_status(site, &[]).contains("unknown"));
    drop(halted);
    site.wait_until(|status| status["state"] == "streaming" && status["lag_seconds"]["applied"] == 0.0);
}

#[test]
fn the_primary_knows_that_a_site_is_gone() {
    let mut cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    cluster.sites[0].kill();
    let row = wait_for("the primary to miss the site", || {
        let row = cluster.primary.status()["sites"][0].clone();
        (row["state"] == "disconnected").then_some(row)
    });
    assert!(row["lag_seconds"]["applied"].is_null(), "{row}");
    cluster.sites[0].start();
    cluster.primary.wait_until(|status| status["sites"][0]["state"] == "streaming");
}

/// A node that is stopped in its tracks until this is dropped.
pub struct Halted(u32);

impl Halted {
    pub fn new(node: &Node) -> Self {
        signal(node.pid(), "STOP");
        Self(node.pid())
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        signal(self.0, "CONT");
    }
}

fn assert_site_fields(status: &Value) {
    let fields: Vec<&String> =
        status.as_object().unwrap().keys().filter(|key| key.as_str() != "role").collect();
    for field in SITE_FIELDS {
        assert!(status.get(field).is_some(), "{field} is missing: {status}");
    }
    assert_eq!(fields.len(), SITE_FIELDS.len(), "{fields:?}");
    for field in ["applied", "complete"] {
        assert!(status["lag_seconds"].get(field).is_some(), "{status}");
    }
    for field in ["bytes", "limit_bytes", "blobs"] {
        assert!(status["store"].get(field).is_some(), "{status}");
    }
}

fn page(node: &Node, target: &str) -> (u16, String) {
    get_plain(&node.admin(), target).unwrap()
}

fn outport_status(node: &Node, arguments: &[&str]) -> String {
    let admin = node.admin();
    crate::support::outport(&[&["status", "--admin", &admin], arguments].concat())
}

/// Says whether Prometheus' own checker has anything against what a node shows.
fn promtool(node: &Node) -> String {
    let (status, text) = get_plain(&node.admin(), "/metrics").unwrap();
    assert_eq!(status, 200, "{text}");
    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool (Debian's package prometheus) is needed");
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success() && said.is_empty(), "{}: {said}", node.name);
    text
}

#[test]
fn metrics_are_as_prometheus_wants_them() {
    let cluster = Cluster::start(Options::default());
    let pusher = Session::user(&cluster, &cluster.primary, &["team/app"]);
    let image = pusher.push_image("team/app", "1", &[&bytes(50_000, 1)]);
    cluster.wait_complete();
    let pulled = Session::anyone(&cluster, &cluster.sites[0], &["team/app"]);
    assert_eq!(pulled.get("/v2/team/app/manifests/1").body, image.manifest);
    let primary = promtool(&cluster.primary);
    let site = promtool(&cluster.sites[0]);
    for name in [
        "outport_log_seq",
        "outport_pulls_total",
        "outport_lag_seconds",
        "outport_store_bytes",
        "outport_build_info",
    ] {
        for text in [&primary, &site] {
            assert!(text.contains(&format!("\n# TYPE {name} ")), "{name}: {text}");
        }
    }
}

#[test]
fn the_log_is_shown_and_followed() {
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let pusher = Session::user(&cluster, &cluster.primary, &["team/app"]);
    let image = pusher.push_image("team/app", "1", &[&bytes(5000, 1)]);
    cluster.wait_complete();
    let log = |node: &Node, arguments: &[&str]| {
        let mut command = Command::new(BINARY);
        command.args(["log", "show", "--admin", &node.admin()]).args(arguments);
        command
    };
    for node in cluster.nodes() {
        let shown = log(node, &["--json", "--limit", "1"]).output().unwrap();
        let event: Value = serde_json::from_slice(&shown.stdout).unwrap();
        assert_eq!((&event["kind"], &event["tags"][0]), (&"manifest-put".into(), &"1".into()), "{event}");
        assert_eq!(event["digest"], image.digest.to_string());
        let all = log(node, &[]).output().unwrap();
        let text = String::from_utf8(all.stdout).unwrap();
        assert_eq!(text.lines().filter(|line| line.contains("blob-committed")).count(), 2, "{text}");
    }
    let first = log(&cluster.primary, &["--from", "1", "--limit", "1"]).output().unwrap();
    assert!(String::from_utf8_lossy(&first.stdout).starts_with("1.1 "), "{first:?}");
    let absurd = log(&cluster.primary, &["--limit", "1001"]).output().unwrap();
    assert!(!absurd.status.success());
    assert!(String::from_utf8_lossy(&absurd.stderr).contains("limit: a number from 1 to 1000"), "{absurd:?}");

    let mut following = log(&cluster.sites[0], &["--follow", "--json", "--limit", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("manifest-put"));
    pusher.push_image("team/app", "2", &[&bytes(5000, 1)]);
    let next = lines.find(|line| line.as_ref().unwrap().contains("manifest-put")).unwrap().unwrap();
    assert!(next.contains("\"2\""), "{next}");
    following.kill().unwrap();
    following.wait().unwrap();
}
