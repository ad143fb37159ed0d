//! A primary in front of docker-registry, beside that registry itself.

use std::time::{Duration, Instant};

use outport_proto::Digest;

use crate::{
    Figure,
    figures::{LAZY, MIB, REPO, pull_token, push_token},
    load::{self, median},
    peers::{self, noise},
    support::{Cluster, Options, registry::Lets},
};

const LAYER_BYTES: usize = 300 * MIB;

fn started(site_toml: &str) -> Cluster {
    let cluster = Cluster::start(Options {
        sites: vec!["mumbai"],
        site_toml: format!("{LAZY}{site_toml}"),
        primary_auth_toml: "token_lifetime_seconds = 3600\n".to_owned(),
        registry: Some(Lets::Anybody),
        registry_yaml: "log: {level: error, accesslog: {disabled: true}}\n".to_owned(),
        ..Options::default()
    });
    cluster.primary.wait_until(|status| !status["gateway"]["last_reconciled_at"].is_null());
    cluster
}

/// Pushing a layer of 300 MiB through the gateway and straight to the registry behind it, in turns.
pub fn push() -> Vec<Figure> {
    const ROUNDS: u64 = 5;
    let cluster = started("");
    let registry = cluster.registry.as_ref().unwrap().address();
    let token = push_token(&cluster);
    let (mut through, mut straight) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for is_through in [round % 2 == 0, round % 2 == 1] {
            let layer = noise(LAYER_BYTES, 1000 + round * 2 + u64::from(is_through));
            let manifest = peers::manifest(&[&layer]);
            let (address, token) = if is_through {
                (cluster.primary.registry(), Some(token.as_str()))
            } else {
                (registry.clone(), None)
            };
            let began = Instant::now();
            peers::push(&address, REPO, &format!("push-{round}-{is_through}"), &manifest, &[&layer], token);
            let seconds = began.elapsed().as_secs_f64();
            if is_through { through.push(seconds) } else { straight.push(seconds) }
        }
    }
    let (through, straight) = (median(&mut through), median(&mut straight));
    let measured =
        format!("{through:.2} s; straight {straight:.2} s: {:.2} of its throughput", straight / through);
    vec![Figure { what: "push of 300 MiB through a gateway", measured, must_reach: "0.9 of docker-registry" }]
}

/// A manifest by tag that the gateway knows, at the gateway and at the registry behind it.
pub fn manifest() -> Vec<Figure> {
    const CONNECTIONS: usize = 32;
    const ROUNDS: usize = 5;
    const ROUND: Duration = Duration::from_secs(2);
    let cluster = started("");
    let registry = cluster.registry.as_ref().unwrap().address();
    let (config, layer) = (noise(2000, 1), noise(3000, 2));
    let blobs: [&[u8]; 2] = [&config, &layer];
    let manifest = peers::manifest(&blobs);
    peers::push(&cluster.primary.registry(), REPO, "1", &manifest, &blobs, Some(&push_token(&cluster)));
    let target = format!("/v2/{REPO}/manifests/1");
    let (gateway, pull) = (cluster.primary.registry(), pull_token(&cluster));
    let requests = [load::get(&gateway, &target, Some(&pull)), load::get(&registry, &target, None)];
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for ((address, request), rates) in [&gateway, &registry].iter().zip(&requests).zip(&mut rates) {
            rates.push(load::requests_per_second(address, request, CONNECTIONS, ROUND));
        }
    }
    let [through, straight] = rates.map(|mut rates| median(&mut rates));
    vec![Figure {
        what: "warm manifest by tag at a gateway, requests/s",
        measured: format!("{through:.0}; docker-registry {straight:.0}: {:.2} of it", through / straight),
        must_reach: "0.9 of docker-registry",
    }]
}

/// What a push of 300 MiB through a site that streams pushes takes of memory, there and at the gateway.
pub fn memory() -> Vec<Figure> {
    let cluster = started("[push]\nmode = 'proxy'\n");
    let site = &cluster.sites[0];
    let layer = noise(LAYER_BYTES, 2000);
    let manifest = peers::manifest(&[&layer]);
    let nodes = [("the site", site.pid()), ("the gateway", cluster.primary.pid())];
    let before = nodes.map(|(_, pid)| load::memory_mib(pid, "VmRSS"));
    peers::push(&site.registry(), REPO, "memory", &manifest, &[&layer], Some(&push_token(&cluster)));
    let more: Vec<String> = nodes
        .iter()
        .zip(before)
        .map(|((name, pid), before)| format!("{name} {:.1} MiB", load::memory_mib(*pid, "VmHWM") - before))
        .collect();
    let held = site.status()["store"]["bytes"].as_u64().unwrap();
    assert!(held < MIB as u64, "the site holds {held} bytes of {}", Digest::sha256(&layer));
    vec![Figure {
        what: "more memory while 300 MiB are pushed through a site and a gateway",
        measured: more.join(", "),
        must_reach: "at most 32 MiB each",
    }]
}
