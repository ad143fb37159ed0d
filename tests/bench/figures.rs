//! One function a figure.

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use outport_proto::Digest;
use serde_json::json;

use crate::{
    Figure,
    load::{self, median, percentile},
    peers::{self, Peer, noise},
    support::{
        Cluster, Options, USER,
        http::{Client, get_plain, token},
    },
};

/// In bytes.
pub const MIB: usize = 1024 * 1024;
/// The benchmark's repository.
pub const REPO: &str = "bench/image";
/// Configuration of a site that copies nothing ahead.
pub const LAZY: &str = "[[policy]]\nkeep = 'lazy'\n";

/// Warm manifest by tag at a secondary, token checked, against the same bytes elsewhere.
pub fn warm_manifest() -> Vec<Figure> {
    const CONNECTIONS: usize = 32;
    const ROUNDS: usize = 5;
    const ROUND: Duration = Duration::from_secs(2);
    load::pin();
    let cluster = one_site(Some(load::SERVER_CORE), "");
    let (config, layer) = (noise(2000, 1), noise(3000, 2));
    let blobs: [&[u8]; 2] = [&config, &layer];
    let manifest = peers::manifest(&blobs);
    peers::push(&cluster.primary.registry(), REPO, "1", &manifest, &blobs, Some(&push_token(&cluster)));
    cluster.wait_complete();
    let site = cluster.sites[0].registry();
    // A token lives for minutes; the figure takes seconds.
    let pull = pull_token(&cluster);
    let nginx = peers::nginx(&[("manifest", &manifest)]);
    let registry = peers::docker_registry(&manifest, &blobs);
    let mut targets =
        vec![("outport", site.clone(), load::get(&site, &format!("/v2/{REPO}/manifests/1"), Some(&pull)))];
    if let Some(peer) = &nginx {
        targets.push((peer.name, peer.address.clone(), load::get(&peer.address, "/manifest", None)));
    }
    if let Some(peer) = &registry {
        targets.push((
            peer.name,
            peer.address.clone(),
            load::get(&peer.address, "/v2/peer/image/manifests/1", None),
        ));
    }
    let pids = [
        Some(cluster.sites[0].pid()),
        nginx.as_ref().map(|peer| peer.pid),
        registry.as_ref().map(|peer| peer.pid),
    ];
    let pids: Vec<u32> = pids.into_iter().flatten().collect();
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); targets.len()];
    let mut rates_of_cpu = rates.clone();
    for _ in 0..ROUNDS {
        for (number, (_, address, request)) in targets.iter().enumerate() {
            let before = load::cpu_seconds(pids[number]);
            let rate = load::requests_per_second(address, request, CONNECTIONS, ROUND);
            let cpu = load::cpu_seconds(pids[number]) - before;
            rates[number].push(rate);
            rates_of_cpu[number].push(rate * ROUND.as_secs_f64() / cpu);
        }
    }
    let must_reach = "1.0 of nginx, 8 of docker-registry";
    let mut figures = against_peers("warm manifest by tag, requests/s", &targets, &mut rates, must_reach);
    // What others do on the machine shows in the first figure more than in this one.
    figures.extend(against_peers(
        "warm manifest by tag, requests for each CPU-second",
        &targets,
        &mut rates_of_cpu,
        must_reach,
    ));
    figures
}

/// Warm blob of 256 MiB: bytes for each CPU-second of the server.
pub fn warm_blob() -> Vec<Figure> {
    const ROUNDS: usize = 5;
    load::pin();
    let cluster = one_site(Some(load::SERVER_CORE), "");
    let (config, layer) = (noise(2000, 3), noise(256 * MIB, 4));
    let blobs: [&[u8]; 2] = [&config, &layer];
    let manifest = peers::manifest(&blobs);
    peers::push(&cluster.primary.registry(), REPO, "1", &manifest, &blobs, Some(&push_token(&cluster)));
    cluster.wait_complete();
    let digest = Digest::sha256(&layer);
    let site = cluster.sites[0].registry();
    let pull = pull_token(&cluster);
    let nginx = peers::nginx(&[("blob", &layer)]);
    let registry = peers::docker_registry(&manifest, &blobs);
    let mut targets =
        vec![("outport", site.clone(), load::get(&site, &format!("/v2/{REPO}/blobs/{digest}"), Some(&pull)))];
    let mut pids = vec![cluster.sites[0].pid()];
    let mut peer = |peer: &Option<Peer>, target: &str| {
        if let Some(peer) = peer {
            targets.push((peer.name, peer.address.clone(), load::get(&peer.address, target, None)));
            pids.push(peer.pid);
        }
    };
    peer(&nginx, "/blob");
    peer(&registry, &format!("/v2/peer/image/blobs/{digest}"));
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); targets.len()];
    for _ in 0..ROUNDS {
        for (((_, address, request), pid), rates) in targets.iter().zip(&pids).zip(&mut rates) {
            let before = load::cpu_seconds(*pid);
            let bytes: u64 = (0..4).map(|_| load::download(address, request)).sum();
            rates.push(bytes as f64 / MIB as f64 / (load::cpu_seconds(*pid) - before));
        }
    }
    against_peers("warm blob, MiB for each CPU-second", &targets, &mut rates, "1.0 of docker-registry")
}

/// 100 clients pulling one cold blob of 256 MiB at once.
pub fn crowd() -> Vec<Figure> {
    const CLIENTS: usize = 100;
    let cluster = one_site(None, LAZY);
    let layer = noise(256 * MIB, 5);
    let digest = push_blob(&cluster, &layer);
    let site = &cluster.sites[0];
    let request =
        load::get(&site.registry(), &format!("/v2/{REPO}/blobs/{digest}"), Some(&pull_token(&cluster)));
    let start = Barrier::new(CLIENTS);
    let mut seconds: Vec<f64> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let began = Instant::now();
                    assert_eq!(load::download(&site.registry(), &request), layer.len() as u64);
                    began.elapsed().as_secs_f64()
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let upstream = site.metric("outport_upstream_bytes_total", "");
    let (first, last) = (percentile(&mut seconds, 0.0), percentile(&mut seconds, 1.0));
    vec![
        Figure {
            what: "100 clients, one cold 256 MiB blob: upstream bytes / size",
            measured: format!("{:.4}", upstream / layer.len() as f64),
            must_reach: "at most 1.001",
        },
        Figure {
            what: "100 clients, one cold 256 MiB blob: last client / first",
            measured: format!("{:.2} ({last:.2} s / {first:.2} s)", last / first),
            must_reach: "at most 1.1",
        },
    ]
}

/// A cold pull through a secondary against the same straight from the primary.
pub fn cold_pull() -> Vec<Figure> {
    const ROUNDS: u64 = 7;
    let cluster = one_site(None, LAZY);
    let (primary, site) = (cluster.primary.registry(), cluster.sites[0].registry());
    let pids = [cluster.primary.pid(), cluster.sites[0].pid()];
    let (mut straight, mut through) = (Vec::new(), Vec::new());
    let mut cpu = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        let digest = push_blob(&cluster, &noise(256 * MIB, 100 + round));
        let pull = pull_token(&cluster);
        let timed = |address: &str| {
            let request = load::get(address, &format!("/v2/{REPO}/blobs/{digest}"), Some(&pull));
            let began = Instant::now();
            load::download(address, &request);
            began.elapsed().as_secs_f64()
        };
        straight.push(timed(&primary));
        let before = pids.map(load::cpu_seconds);
        through.push(timed(&site));
        for (side, cpu) in cpu.iter_mut().enumerate() {
            cpu.push((load::cpu_seconds(pids[side]) - before[side]) * 4.0);
        }
    }
    let (straight, through) = (median(&mut straight), median(&mut through));
    let [primary, site] = cpu.map(|mut cpu| median(&mut cpu));
    vec![
        Figure {
            what: "cold pull of 256 MiB through a secondary / straight from the primary",
            measured: format!("{:.2} ({through:.3} s / {straight:.3} s)", through / straight),
            must_reach: "at most 1.1",
        },
        Figure {
            what: "CPU-seconds for each GiB pulled cold through a secondary",
            measured: format!("primary {primary:.2}, secondary {site:.2}"),
            must_reach: "",
        },
    ]
}

/// From the primary's acknowledgement of a moved tag to the site's answer showing it.
pub fn propagation() -> Vec<Figure> {
    const PUSHES: usize = 500;
    let cluster = one_site(None, "");
    let primary = cluster.primary.registry();
    let push = push_token(&cluster);
    let config = noise(100, 6);
    let first = peers::manifest(&[&config]);
    peers::push(&primary, REPO, "t", &first, &[&config], Some(&push));
    cluster.wait_complete();
    // An old token: the answer comes from what is applied here, not from the primary.
    let pull = format!("Bearer {}", pull_token(&cluster));
    let mut to_primary = Client::plain().connect(&primary).unwrap();
    let mut to_site = Client::plain().connect(&cluster.sites[0].registry()).unwrap();
    let bearer = format!("Bearer {push}");
    let target = format!("/v2/{REPO}/manifests/t");
    let mut seconds: Vec<f64> = (0..PUSHES)
        .map(|number| {
            let mut manifest: serde_json::Value = serde_json::from_slice(&first).unwrap();
            manifest["annotations"] = json!({ "number": number.to_string() });
            let manifest = manifest.to_string().into_bytes();
            let headers = [
                ("Authorization", bearer.as_str()),
                ("Content-Type", "application/vnd.oci.image.manifest.v1+json"),
            ];
            let put = to_primary.send("PUT", &target, &headers, &manifest).unwrap();
            let acknowledged = Instant::now();
            assert_eq!(put.status, 201, "{}", put.text());
            while to_site.send("GET", &target, &[("Authorization", &pull)], b"").unwrap().body != manifest {}
            acknowledged.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    vec![Figure {
        what: "push acknowledged until the tag answers at a site",
        measured: format!(
            "p50 {:.2} ms, p99 {:.2} ms",
            percentile(&mut seconds, 0.5),
            percentile(&mut seconds, 0.99)
        ),
        must_reach: "p50 at most 5 ms, p99 at most 20 ms",
    }]
}

/// Memory of a secondary at rest, and while it fills 1 GiB.
pub fn memory() -> Vec<Figure> {
    let cluster = one_site(None, LAZY);
    let site = &cluster.sites[0];
    let pull = pull_token(&cluster);
    let at_rest = load::memory_mib(site.pid(), "VmRSS");
    let digests: Vec<Digest> =
        (0..4).map(|part| push_blob(&cluster, &noise(256 * MIB, 200 + part))).collect();
    thread::scope(|scope| {
        for digest in &digests {
            let request = load::get(&site.registry(), &format!("/v2/{REPO}/blobs/{digest}"), Some(&pull));
            scope.spawn(move || load::download(&site.registry(), &request));
        }
    });
    let highest = load::memory_mib(site.pid(), "VmHWM");
    vec![
        Figure {
            what: "memory of a secondary at rest",
            measured: format!("{at_rest:.1} MiB"),
            must_reach: "at most 30 MiB",
        },
        Figure {
            what: "more while filling 1 GiB (4 blobs at once)",
            measured: format!("{:.1} MiB", highest - at_rest),
            must_reach: "at most 32 MiB",
        },
    ]
}

/// Start of a secondary with 100,000 tags after kill -9, until the first pull.
pub fn start_after_kill() -> Vec<Figure> {
    const TAGS: usize = 100_000;
    const ROUNDS: usize = 3;
    let mut cluster = one_site(None, "");
    push_tags(&cluster, TAGS);
    cluster.wait_complete();
    let pull = format!("Bearer {}", pull_token(&cluster));
    let mut seconds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let site = &mut cluster.sites[0];
            site.kill();
            let began = Instant::now();
            site.spawn();
            let target = format!("/v2/{REPO}/manifests/t99999");
            loop {
                let answer = Client::plain().connect(&site.registry()).and_then(|mut connection| {
                    connection.send("GET", &target, &[("Authorization", &pull)], b"")
                });
                if answer.is_ok_and(|answer| answer.status == 200) {
                    return began.elapsed().as_secs_f64();
                }
                thread::park_timeout(Duration::from_millis(1));
            }
        })
        .collect();
    vec![Figure {
        what: "start with 100,000 tags after kill -9, until the first pull",
        measured: format!("{:.2} s", median(&mut seconds)),
        must_reach: "at most 1 s",
    }]
}

/// Start of a primary with nothing in it, until it is ready.
pub fn start_empty() -> Vec<Figure> {
    const ROUNDS: usize = 21;
    let mut cluster = Cluster::start(Options { sites: Vec::new(), ..Options::default() });
    let primary = &mut cluster.primary;
    let mut milliseconds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            primary.kill();
            std::fs::remove_dir_all(primary.data_dir()).unwrap();
            let began = Instant::now();
            primary.spawn();
            while !get_plain(&primary.admin(), "/readyz").is_ok_and(|(status, _)| status == 200) {
                thread::park_timeout(Duration::from_micros(200));
            }
            began.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    vec![Figure {
        what: "start with an empty store, until it is ready",
        measured: format!("{:.0} ms, median of {ROUNDS}", median(&mut milliseconds)),
        must_reach: "at most 100 ms",
    }]
}

/// Pushes manifests to the primary, as `REPO:t0` and so on.
pub fn push_tags(cluster: &Cluster, count: usize) {
    let primary = cluster.primary.registry();
    let push = push_token(cluster);
    let config = noise(100, 7);
    let first = peers::manifest(&[&config]);
    peers::push(&primary, REPO, "t", &first, &[&config], Some(&push));
    let bearer = format!("Bearer {push}");
    thread::scope(|scope| {
        for worker in 0..16 {
            let (primary, bearer, first) = (&primary, &bearer, &first);
            scope.spawn(move || {
                let mut connection = Client::plain().connect(primary).unwrap();
                for number in (worker..count).step_by(16) {
                    let mut manifest: serde_json::Value = serde_json::from_slice(first).unwrap();
                    manifest["annotations"] = json!({ "number": number.to_string() });
                    let kind = ("Content-Type", "application/vnd.oci.image.manifest.v1+json");
                    let target = format!("/v2/{REPO}/manifests/t{number}");
                    let headers = [("Authorization", bearer.as_str()), kind];
                    let put =
                        connection.send("PUT", &target, &headers, manifest.to_string().as_bytes()).unwrap();
                    assert_eq!(put.status, 201, "{}", put.text());
                }
            });
        }
    });
}

/// A primary and one site.
pub fn one_site(core: Option<usize>, site_toml: &str) -> Cluster {
    Cluster::start(Options {
        sites: vec!["mumbai"],
        site_toml: site_toml.to_owned(),
        // Tokens must outlive the longest figure.
        primary_auth_toml: "token_lifetime_seconds = 3600\n".to_owned(),
        core,
        ..Options::default()
    })
}

/// A token of the user who may push the benchmark's image.
pub fn push_token(cluster: &Cluster) -> String {
    let scope = format!("repository:{REPO}:pull,push");
    let user = Some((USER, cluster.password.as_str()));
    token(&Client::plain(), &cluster.primary.registry(), "outport.test", &[&scope], user)
}

/// A token of nobody.
pub fn pull_token(cluster: &Cluster) -> String {
    let scope = format!("repository:{REPO}:pull");
    token(&Client::plain(), &cluster.primary.registry(), "outport.test", &[&scope], None)
}

/// Pushes a blob to the primary and waits until the site knows that the repository links it.
pub fn push_blob(cluster: &Cluster, content: &[u8]) -> Digest {
    let manifest = peers::manifest(&[content]);
    peers::push(&cluster.primary.registry(), REPO, "blob", &manifest, &[content], Some(&push_token(cluster)));
    let head = cluster.primary.status()["head_seq"].as_u64().unwrap();
    cluster.sites[0].wait_until(|status| status["applied_seq"].as_u64().unwrap() >= head);
    Digest::sha256(content)
}

/// Medians, and Outport's relation to each peer.
fn against_peers(
    what: &'static str,
    targets: &[(&'static str, String, Vec<u8>)],
    rates: &mut [Vec<f64>],
    must_reach: &'static str,
) -> Vec<Figure> {
    let medians: Vec<f64> = rates.iter_mut().map(|rates| median(rates)).collect();
    let mut measured = format!("{:.0}", medians[0]);
    for ((name, ..), rate) in targets.iter().zip(&medians).skip(1) {
        measured.push_str(&format!("; {name} {rate:.0}: {:.2} of it", medians[0] / rate));
    }
    vec![Figure { what, measured, must_reach }]
}
