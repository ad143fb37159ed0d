//! What it costs to be watched.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use crate::{
    Figure,
    collector::Collector,
    figures::{REPO, pull_token, push_token},
    load::{self, median},
    peers::{self, noise},
    support::{Cluster, Options, http::get_plain},
};

/// Warm manifest at a site that is scraped, keeps an audit log and records every hundredth request, against
/// one beside it on the same core that does none of that.
pub fn cost() -> Vec<Figure> {
    const CONNECTIONS: usize = 32;
    const ROUNDS: usize = 11;
    const ROUND: Duration = Duration::from_secs(2);
    load::pin();
    let collector = Collector::start();
    let watched =
        format!("[audit]\nfile = '{{data}}/audit.log'\n{}", collector.by_grpc("trace_ratio = 0.01"));
    let cluster = Cluster::start(Options {
        sites: vec!["plain", "watched"],
        core: Some(load::SERVER_CORE),
        toml_of: vec![("watched", watched)],
        log_filter: "warn",
        ..Options::default()
    });
    let (config, layer) = (noise(2000, 1), noise(3000, 2));
    let blobs: [&[u8]; 2] = [&config, &layer];
    let manifest = peers::manifest(&blobs);
    peers::push(&cluster.primary.registry(), REPO, "1", &manifest, &blobs, Some(&push_token(&cluster)));
    cluster.wait_complete();
    let pull = pull_token(&cluster);
    let sites = ["plain", "watched"].map(|name| cluster.site(name));
    let targets = sites.map(|site| {
        let address = site.registry();
        let request = load::get(&address, &format!("/v2/{REPO}/manifests/1"), Some(&pull));
        (address, request)
    });
    let ended = AtomicBool::new(false);
    let (mut rates, mut per_cpu) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    thread::scope(|scope| {
        // As a Prometheus does it, but oftener.
        scope.spawn(|| {
            while !ended.load(Relaxed) {
                assert_eq!(get_plain(&sites[1].admin(), "/metrics").unwrap().0, 200);
                thread::park_timeout(Duration::from_secs(1));
            }
        });
        for round in 0..ROUNDS {
            // Who comes first takes turns.
            for place in [round % 2, 1 - round % 2] {
                let (address, request) = &targets[place];
                let before = load::cpu_seconds(sites[place].pid());
                let rate = load::requests_per_second(address, request, CONNECTIONS, ROUND);
                let cpu = load::cpu_seconds(sites[place].pid()) - before;
                rates[place].push(rate);
                per_cpu[place].push(rate * ROUND.as_secs_f64() / cpu);
            }
        }
        ended.store(true, Relaxed);
    });
    let dropped = sites[1].metric("outport_audit_dropped_total", "");
    let ratio = |[plain, watched]: [Vec<f64>; 2]| {
        let mut ratios: Vec<f64> =
            plain.iter().zip(&watched).map(|(plain, watched)| watched / plain).collect();
        median(&mut ratios)
    };
    let (rate, cpu) = (ratio(rates), ratio(per_cpu));
    vec![
        Figure {
            what: "warm manifest with scrapes, audit log and traces of 1 %: requests/s against without",
            measured: format!("{rate:.3} ({dropped} records dropped)"),
            must_reach: "at least 0.95",
        },
        Figure {
            what: "the same, requests for each CPU-second of the site",
            measured: format!("{cpu:.3}"),
            must_reach: "",
        },
    ]
}
