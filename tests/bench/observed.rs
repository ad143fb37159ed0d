//! What it costs to be watched.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Figure,
    collector::Collector,
    figures::{REPO, pull_token, push_token},
    load::{self, median},
    peers::{self, noise},
    support::{BINARY, Cluster, Options, http::get_plain},
};

/// Ways of being watched.
const WAYS: [&str; 5] = ["plain", "scraped", "audited", "traced", "watched"];

/// Warm manifest at a site that is scraped, keeps an audit log and records every hundredth request, and at
/// sites that do one of these, against one beside them on the same core that does none.
pub fn cost() -> Vec<Figure> {
    const CONNECTIONS: usize = 32;
    const ROUNDS: usize = 15;
    const ROUND: Duration = Duration::from_millis(1500);
    load::pin();
    let collector = Collector::start();
    let audit = "[audit]\nfile = '{data}/audit.log'\n";
    let traces = collector.by_grpc("trace_ratio = 0.01");
    let cluster = Cluster::start(Options {
        sites: WAYS.to_vec(),
        core: Some(load::SERVER_CORE),
        toml_of: vec![
            ("audited", audit.to_owned()),
            ("traced", traces.clone()),
            ("watched", format!("{audit}{traces}")),
        ],
        log_filter: "warn",
        ..Options::default()
    });
    let (config, layer) = (noise(2000, 1), noise(3000, 2));
    let blobs: [&[u8]; 2] = [&config, &layer];
    let manifest = peers::manifest(&blobs);
    peers::push(&cluster.primary.registry(), REPO, "1", &manifest, &blobs, Some(&push_token(&cluster)));
    cluster.wait_complete();
    let pull = pull_token(&cluster);
    let sites = WAYS.map(|name| cluster.site(name));
    let targets = sites.map(|site| {
        let address = site.registry();
        let request = load::get(&address, &format!("/v2/{REPO}/manifests/1"), Some(&pull));
        (address, request)
    });
    let ended = AtomicBool::new(false);
    let (mut rates, mut per_cpu) = (WAYS.map(|_| Vec::new()), WAYS.map(|_| Vec::new()));
    thread::scope(|scope| {
        // As a Prometheus does it, but oftener.
        scope.spawn(|| {
            while !ended.load(Relaxed) {
                for site in [sites[1], sites[4]] {
                    assert_eq!(get_plain(&site.admin(), "/metrics").unwrap().0, 200);
                }
                thread::park_timeout(Duration::from_secs(1));
            }
        });
        for round in 0..ROUNDS {
            for turn in 0..WAYS.len() {
                // Who comes first takes turns.
                let place = (round + turn) % WAYS.len();
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
    let dropped = sites[4].metric("outport_audit_dropped_total", "");
    let against_plain = |of: &[Vec<f64>; 5], place: usize| {
        let mut ratios: Vec<f64> = of[0].iter().zip(&of[place]).map(|(plain, other)| other / plain).collect();
        median(&mut ratios)
    };
    let rate = |place| against_plain(&rates, place);
    vec![
        Figure {
            what: "warm manifest with scrapes, audit log and traces of 1 %: requests/s against without",
            measured: format!("{:.3} ({dropped} records dropped)", rate(4)),
            must_reach: "at least 0.95",
        },
        Figure {
            what: "the same, requests for each CPU-second of the site",
            measured: format!("{:.3}", against_plain(&per_cpu, 4)),
            must_reach: "",
        },
        Figure {
            what: "requests/s with scrapes alone, the audit log alone, traces alone",
            measured: format!("{:.3}, {:.3}, {:.3}", rate(1), rate(2), rate(3)),
            must_reach: "",
        },
        Figure {
            what: "`outport status`, from the start of the process to its end, median",
            measured: format!("{:.1} ms", status(&cluster) * 1000.0),
            must_reach: "at most 50 ms",
        },
    ]
}

/// How long the command takes at the primary, in seconds.
fn status(cluster: &Cluster) -> f64 {
    const RUNS: usize = 51;
    let admin = cluster.primary.admin();
    let mut took: Vec<f64> = (0..RUNS)
        .map(|_| {
            let begun = Instant::now();
            let ran = Command::new(BINARY).args(["status", "--admin", &admin]).output().unwrap();
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
            begun.elapsed().as_secs_f64()
        })
        .collect();
    median(&mut took)
}
