//! What a thousand sites cost one primary. The sites are sessions of this process, over real QUIC
//! connections; the primary is a process of its own; both share the machine's cores.

use std::{thread, time::Duration};

use serde_json::json;

use crate::{
    Figure,
    figures::{REPO, push_token},
    load::{self, median, percentile},
    peers,
    support::{
        Cluster, Options,
        http::{Client, Connection},
        sites::{self, Sites},
    },
};

/// How many sites.
pub const SITES: usize = 1000;
const STALLED_MAX: usize = 10;

/// Time from an event's own time at the primary, before it is on disk, until sites have it; and how
/// sites that take no bytes change that.
pub fn fan_out() -> Vec<Figure> {
    const ROUNDS: usize = 6;
    const EVENTS: usize = 40;
    const STALLED: [usize; 3] = [0, 1, STALLED_MAX];
    let (cluster, mut pusher) = crowd();
    let mut sites = Sites::of(&cluster);
    sites.follow(SITES);
    pusher.push(&sites, EVENTS);
    sites.take_seen();

    let mut lasts = Vec::new();
    let mut p99s: [Vec<f64>; STALLED.len()] = Default::default();
    let mut cpu = Vec::new();
    for _ in 0..ROUNDS {
        for (stalled, p99s) in STALLED.into_iter().zip(&mut p99s) {
            sites.stall(SITES, stalled);
            // Fills their windows: from here on the primary waits for them.
            pusher.push(&sites, 10);
            sites.take_seen();
            let before = load::cpu_seconds_of_all(cluster.primary.pid());
            pusher.push(&sites, EVENTS);
            cpu.push((load::cpu_seconds_of_all(cluster.primary.pid()) - before) / EVENTS as f64 * 1000.0);
            let seen = sites.take_seen();
            if stalled == 0 {
                lasts.extend(last_of_each(&seen));
            }
            let mut all: Vec<f64> =
                seen.iter().flatten().map(|(_, micros)| *micros as f64 / 1000.0).collect();
            p99s.push(percentile(&mut all, 0.99));
            assert_eq!(sites.drop_stalled(), stalled, "sites that take no bytes are given time");
        }
    }
    let [without, one, ten] = p99s.map(|mut p99s| median(&mut p99s));
    let percent = |with: f64| (with / without - 1.0) * 100.0;
    vec![
        Figure {
            what: "one event to 1,000 sites on this machine: the last site has it",
            measured: format!(
                "p50 {:.1} ms, p99 {:.1} ms of {} events",
                percentile(&mut lasts, 0.5),
                percentile(&mut lasts, 0.99),
                lasts.len()
            ),
            must_reach: "p99 at most 25 ms",
        },
        Figure {
            what: "one event to 1,000 sites: p99 of all, with sites that take no bytes",
            measured: format!(
                "{without:.2} ms; 1 such site {one:.2} ms ({:+.1} %), 10 such {ten:.2} ms ({:+.1} %)",
                percent(one),
                percent(ten)
            ),
            must_reach: "less than 5 % more",
        },
        Figure {
            what: "CPU of the primary for one event to 1,000 sites, heartbeats meanwhile included",
            measured: format!("{:.1} ms", median(&mut cpu)),
            must_reach: "",
        },
    ]
}

/// Memory of the primary for each site that follows it.
pub fn memory_a_site() -> Vec<Figure> {
    let (cluster, mut pusher) = crowd();
    let mut sites = Sites::of(&cluster);
    let mut points = Vec::new();
    for count in [0, SITES / 2, SITES] {
        sites.follow(count);
        pusher.push(&sites, 5);
        // Two keep-alive intervals: handshakes are forgotten.
        thread::sleep(Duration::from_secs(3));
        points.push((count as f64, load::memory_mib(cluster.primary.pid(), "VmRSS") * 1024.0));
    }
    // As while all of them fetch blobs.
    sites.open_bulk();
    let with_bulk = load::memory_mib(cluster.primary.pid(), "VmRSS") * 1024.0;
    let slope = |from: (f64, f64), to: (f64, f64)| (to.1 - from.1) / (to.0 - from.0);
    vec![
        Figure {
            what: "memory of the primary for each site",
            measured: format!(
                "{:.1} KiB (0 to 1,000), {:.1} KiB (500 to 1,000); {:.1} MiB in all",
                slope(points[0], points[2]),
                slope(points[1], points[2]),
                points[2].1 / 1024.0
            ),
            must_reach: "at most 48 KiB",
        },
        Figure {
            what: "more while it fetches blobs: its second connection",
            measured: format!("{:.1} KiB", (with_bulk - points[2].1) / SITES as f64),
            must_reach: "",
        },
    ]
}

/// A primary that lists all sites of the crowd, and something to push.
pub fn crowd() -> (Cluster, Pusher) {
    let cluster = Cluster::start(Options {
        sites: Vec::new(),
        listed: (0..SITES + STALLED_MAX).map(sites::name).collect(),
        primary_auth_toml: "token_lifetime_seconds = 3600\n".to_owned(),
        log_filter: "warn",
        ..Options::default()
    });
    let config = peers::noise(100, 6);
    let manifest = peers::manifest(&[&config]);
    let push = push_token(&cluster);
    peers::push(&cluster.primary.registry(), REPO, "t", &manifest, &[&config], Some(&push));
    let pusher = Pusher {
        registry: cluster.primary.registry(),
        bearer: format!("Bearer {push}"),
        manifest: serde_json::from_slice(&manifest).unwrap(),
        pushed: 0,
    };
    (cluster, pusher)
}

/// Moves a tag again and again.
pub struct Pusher {
    registry: String,
    bearer: String,
    manifest: serde_json::Value,
    pushed: u64,
}

impl Pusher {
    /// Pushes one event after the other, each when every site has the one before and a while has
    /// passed that is different every time, so that heartbeats are everywhere in between.
    pub fn push(&mut self, sites: &Sites, events: usize) {
        let mut connection = Client::plain().connect(&self.registry).unwrap();
        for _ in 0..events {
            let before = sites.arrivals();
            self.push_one(&mut connection);
            sites.wait_arrivals(before, sites.following() as u64);
            thread::sleep(Duration::from_millis(30 + self.pushed * 37 % 41));
        }
    }

    /// Pushes as fast as the primary takes it, over so many connections.
    pub fn push_together(&mut self, sites: &Sites, events: usize, connections: usize) {
        let before = sites.arrivals();
        let first = self.pushed;
        self.pushed += events as u64;
        thread::scope(|scope| {
            for connection in 0..connections {
                let mut pusher = Self {
                    registry: self.registry.clone(),
                    bearer: self.bearer.clone(),
                    manifest: self.manifest.clone(),
                    pushed: 0,
                };
                scope.spawn(move || {
                    let mut stream = Client::plain().connect(&pusher.registry).unwrap();
                    for number in (connection..events).step_by(connections) {
                        pusher.pushed = first + number as u64;
                        pusher.push_one(&mut stream);
                    }
                });
            }
        });
        sites.wait_arrivals(before, (sites.following() * events) as u64);
    }

    fn push_one(&mut self, connection: &mut Connection) {
        self.pushed += 1;
        self.manifest["annotations"] = json!({ "number": self.pushed.to_string() });
        let headers = [
            ("Authorization", self.bearer.as_str()),
            ("Content-Type", "application/vnd.oci.image.manifest.v1+json"),
        ];
        let target = format!("/v2/{REPO}/manifests/t");
        let body = self.manifest.to_string();
        let put = connection.send("PUT", &target, &headers, body.as_bytes()).unwrap();
        assert_eq!(put.status, 201, "{}", put.text());
    }
}

/// Milliseconds until the last site had each event.
pub fn last_of_each(seen: &[Vec<(u64, u64)>]) -> Vec<f64> {
    let mut last = std::collections::BTreeMap::new();
    for (seq, micros) in seen.iter().flatten() {
        let entry = last.entry(seq).or_insert(0);
        *entry = (*entry).max(*micros);
    }
    last.values().map(|micros| *micros as f64 / 1000.0).collect()
}
