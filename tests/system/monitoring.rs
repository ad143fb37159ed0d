//! What is ready-made for monitoring: alerts and dashboards, held against what nodes show, and a real
//! Prometheus that scrapes them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::{
    status::Halted,
    support::{Cluster, Node, Options, http::get_plain, registry::Lets, wait_for},
};

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

/// Every word of `text` that looks like a metric.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("outport_")).map(str::to_owned).collect()
}

/// The series of a scrape, without their labels.
fn scraped(nodes: &[&Node]) -> BTreeSet<String> {
    let mut series = BTreeSet::new();
    for node in nodes {
        let (_, text) = get_plain(&node.admin(), "/metrics").unwrap();
        for line in text.lines() {
            match line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
                Some((family, "histogram")) => {
                    series.extend(["_bucket", "_sum", "_count"].map(|part| format!("{family}{part}")));
                }
                Some((family, _)) => _ = series.insert(family.to_owned()),
                None => {}
            }
        }
    }
    series
}

#[test]
fn alerts_and_dashboards_name_only_what_nodes_show() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), "secret").unwrap();
    let webhook = format!(
        "[[webhooks]]\nname = 'ci'\nurl = 'http://127.0.0.1:9/'\nsecret_file = '{}'\n",
        secret.path().display()
    );
    let options = Options {
        sites: vec!["mumbai"],
        registry: Some(Lets::Anybody),
        primary_toml: webhook,
        ..Options::default()
    };
    let cluster = Cluster::start(options);
    let shown = scraped(&[&cluster.primary, &cluster.sites[0]]);
    for file in ["prometheus/alerts.yaml", "grafana/outport.json"] {
        let text = fs::read_to_string(deploy(file)).unwrap();
        let named = match file.ends_with(".json") {
            true => {
                let dashboard: Value = serde_json::from_str(&text).unwrap();
                let panels = dashboard["panels"].as_array().unwrap().clone();
                let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
                targets.flat_map(|target| names(target["expr"].as_str().unwrap())).collect()
            }
            false => names(&text),
        };
        assert!(named.len() > 10, "{file}: {named:?}");
        let missing: Vec<_> = named.difference(&shown).collect();
        assert!(missing.is_empty(), "{file} names what no node shows: {missing:?}");
    }
}

#[test]
fn alerts_fire_when_they_should() {
    let test = Command::new("promtool")
        .args(["test", "rules", "alerts_test.yaml"])
        .current_dir(deploy("prometheus"))
        .output()
        .expect("promtool (Debian's package prometheus) is needed");
    assert!(test.status.success(), "{}", String::from_utf8_lossy(&[test.stdout, test.stderr].concat()));
}

/// A Prometheus that scrapes every node of a cluster four times a second. Dropping it kills it.
struct Prometheus {
    child: Child,
    address: String,
}

impl Prometheus {
    fn start(cluster: &Cluster) -> Self {
        let dir = cluster.dir.path().join("prometheus");
        fs::create_dir(&dir).unwrap();
        let [a, b, c, _] = cluster.primary.ip.octets();
        let address = format!("{a}.{b}.{c}.251:9090");
        let nodes: String = cluster.nodes().map(|node| format!("'{}', ", node.admin())).collect();
        let config = format!(
            "global: {{scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 250ms}}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n  - {{job_name: outport, static_configs: [{{targets: [{nodes}]}}]}}\n",
            deploy("prometheus/alerts.yaml").display()
        );
        let file = dir.join("prometheus.yml");
        fs::write(&file, config).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("prometheus (Debian's package) is needed");
        let this = Self { child, address };
        wait_for("Prometheus to answer", || {
            get_plain(&this.address, "/-/ready").ok().filter(|(status, _)| *status == 200)
        });
        this
    }

    /// The values that a query has now, by instance.
    fn values(&self, query: &str) -> Vec<(String, String)> {
        let query = utf8_percent_encode(query, NON_ALPHANUMERIC);
        let (status, body) = get_plain(&self.address, &format!("/api/v1/query?query={query}")).unwrap();
        assert_eq!(status, 200, "{body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        let series = body["data"]["result"].as_array().unwrap().iter();
        series
            .map(|series| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                (text(&series["metric"]["instance"]), text(&series["value"][1]))
            })
            .collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn prometheus_sees_a_lag_of_nothing_and_no_lag_once_a_site_is_cut_off() {
    let cluster = Cluster::start(Options::default());
    let prometheus = Prometheus::start(&cluster);
    let of_sites = r#"outport_lag_seconds{site=""}"#;
    wait_for("a lag of nothing", || {
        let lags = prometheus.values(of_sites);
        (lags.len() == 4 && lags.iter().all(|(_, lag)| lag == "0")).then_some(())
    });
    let firing = r#"ALERTS{alertname="OutportSiteDisconnected",alertstate="firing"}"#;
    assert_eq!(prometheus.values(firing), []);
    let halted = Halted::new(&cluster.primary);
    let began = Instant::now();
    wait_for("the alert", || (prometheus.values(firing).len() == 2).then_some(()));
    let took = began.elapsed();
    eprintln!("both sites were alerted on {took:?} after they were cut off");
    assert!(took < Duration::from_secs(3), "{took:?}");
    wait_for("no lag", || prometheus.values(of_sites).iter().all(|(_, lag)| lag == "NaN").then_some(()));
    drop(halted);
    wait_for("the alert to end", || prometheus.values(firing).is_empty().then_some(()));
}

#[test]
fn the_primary_shows_within_a_second_that_a_site_is_cut_off() {
    let cluster = Cluster::start(Options::default());
    let row = |status: &Value| status["sites"][1].clone();
    cluster.primary.wait_until(|status| row(status)["state"] == "streaming");
    let halted = Halted::new(&cluster.sites[1]);
    let began = Instant::now();
    cluster.primary.wait_until(|status| row(status)["state"] == "disconnected");
    let took = began.elapsed();
    eprintln!("the primary showed the cut after {took:?}");
    assert!(took.as_millis() < 1300, "{took:?}");
    let (_, text) = get_plain(&cluster.primary.admin(), "/metrics").unwrap();
    assert!(text.contains("outport_connected{site=\"mumbai\"} 0"), "{text}");
    assert!(text.contains("outport_connected{site=\"frankfurt\"} 1"), "{text}");
    drop(halted);
    cluster.primary.wait_until(|status| row(status)["state"] == "streaming");
}
