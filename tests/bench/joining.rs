//! How soon a machine that joins serves, and what a rotation of certificates costs those who pull.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use super::{
    Figure,
    figures::{REPO, pull_token, push_tags},
    load::median,
    support::{
        Cluster, Options,
        http::get_plain,
        outport, path,
        session::{Session, bytes},
        signal, wait_for,
    },
};

/// From `secondary --join` to the first pull, with 100,000 tags at the primary.
pub fn first_pull() -> Vec<Figure> {
    const TAGS: usize = 100_000;
    const ROUNDS: u8 = 5;
    let cluster = Cluster::start(Options {
        sites: vec!["mumbai"],
        certifies: true,
        primary_auth_toml: "token_lifetime_seconds = 3600\n".to_owned(),
        ..Options::default()
    });
    push_tags(&cluster, TAGS);
    cluster.wait_complete();
    let head = cluster.primary.status()["head_seq"].as_u64().unwrap();
    let pull = format!("Bearer {}", pull_token(&cluster));
    let (mut first, mut whole) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let name = format!("goa-{round}");
        let said = outport(&["site", "add", &name, "--json", "--admin", &cluster.primary.admin()]);
        let token =
            serde_json::from_str::<serde_json::Value>(&said).unwrap()["token"].as_str().unwrap().to_owned();
        let mut machine = cluster.machine(&name, round);
        let (data, registry, admin) = (path(machine.data()).to_owned(), machine.registry(), machine.admin());
        let arguments = ["--join", &token, "--data-dir", &data, "--listen", &registry, "--admin", &admin];
        machine.arguments = arguments.map(str::to_owned).to_vec();
        let target = format!("/v2/{REPO}/manifests/t{}", TAGS - 1);
        let began = Instant::now();
        machine.spawn();
        wait_for("the first pull", || {
            let answer = cluster
                .client()
                .connect(&registry)
                .and_then(|mut connection| connection.send("GET", &target, &[("Authorization", &pull)], b""));
            answer.is_ok_and(|answer| answer.status == 200).then_some(())
        });
        first.push(began.elapsed().as_secs_f64());
        wait_for("all of it", || {
            let (status, text) = get_plain(&admin, "/v1/status").ok()?;
            let shown: serde_json::Value = serde_json::from_str(&text).ok()?;
            (status == 200 && shown["complete_seq"].as_u64()? >= head).then_some(())
        });
        whole.push(began.elapsed().as_secs_f64());
        machine.kill();
    }
    vec![
        Figure {
            what: "`secondary --join` with 100,000 tags at the primary, until the first pull",
            measured: format!("{:.2} s, median of {ROUNDS}", median(&mut first)),
            must_reach: "at most 5 s",
        },
        Figure {
            what: "the same, until it shows and holds all of them",
            measured: format!("{:.2} s, median of {ROUNDS}", median(&mut whole)),
            must_reach: "",
        },
    ]
}

/// All certificates of a site and its primary are replaced while 500 pulls a second go on.
pub fn rotation() -> Vec<Figure> {
    const CLIENTS: u32 = 10;
    const PULLS_A_SECOND: u32 = 500;
    const ROTATIONS: u32 = 10;
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], tls: true, ..Options::default() });
    let site = &cluster.sites[0];
    Session::user(&cluster, &cluster.primary, &[REPO]).push_image(REPO, "1", &[&bytes(50_000, 1)]);
    cluster.wait_complete();
    let pki = cluster.authority().parent().unwrap().to_owned();
    let (ended, pulls, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let began = Instant::now();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (cluster, ended, pulls, failed) = (&cluster, &ended, &pulls, &failed);
            scope.spawn(move || {
                let puller = Session::user(cluster, site, &[REPO]);
                let target = format!("/v2/{REPO}/manifests/1");
                let headers = [("Authorization", puller.authorization())];
                let mut kept = cluster.client().connect(&site.registry()).unwrap();
                let mut next = Instant::now();
                while !ended.load(Relaxed) {
                    // Half of them shake hands for every pull, the others hold on to one connection.
                    let answer = match client % 2 {
                        0 => puller.try_send("GET", &target, &[], b""),
                        _ => kept.send("GET", &target, &headers, b""),
                    };
                    if answer.is_ok_and(|answer| answer.status == 200) {
                        pulls.fetch_add(1, Relaxed);
                    } else {
                        failed.fetch_add(1, Relaxed);
                    }
                    next += Duration::from_secs(1) * CLIENTS / PULLS_A_SECOND;
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            });
        }
        for round in 1..=ROTATIONS {
            let before = pulls.load(Relaxed);
            wait_for("pulls to go on", || (pulls.load(Relaxed) > before + 500).then_some(()));
            for node in cluster.nodes() {
                let https = format!("{},{},localhost", node.host, node.ip);
                outport(&["cert", "issue", &node.name, "--force", "--dir", path(&pki)]);
                let name = format!("{}-https", node.name);
                outport(&["cert", "issue", &name, "--https", &https, "--force", "--dir", path(&pki)]);
                signal(node.pid(), "HUP");
                for certificate in ["replication", "https"] {
                    let labels = format!("certificate=\"{certificate}\"");
                    wait_for("it is used", || {
                        (node.metric("outport_certificate_reloads_total", &labels) >= f64::from(round))
                            .then_some(())
                    });
                }
            }
        }
        ended.store(true, Relaxed);
    });
    let rate = pulls.load(Relaxed) as f64 / began.elapsed().as_secs_f64();
    vec![Figure {
        what: "pulls that fail while all certificates are replaced, ten times",
        measured: format!("{} of {} at {rate:.0} pulls/s", failed.load(Relaxed), pulls.load(Relaxed)),
        must_reach: "0 at 500 pulls/s",
    }]
}
