//! Certificates that are replaced while everything goes on.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
};

use crate::support::{
    Cluster, Node, Options, outport, path,
    session::{Session, bytes},
    signal, wait_for,
};

fn reloads(node: &Node, certificate: &str) -> f64 {
    node.metric("outport_certificate_reloads_total", &format!("certificate=\"{certificate}\""))
}

/// Makes new certificates for `name` and puts them in place of the old ones, the certificate before its key:
/// between the two they do not fit.
fn renew(pki: &Path, name: &str, more: &[&str]) {
    let new = pki.join("new");
    fs::create_dir_all(&new).unwrap();
    for file in ["authority.crt", "authority.key"] {
        fs::copy(pki.join(file), new.join(file)).unwrap();
    }
    let arguments = [&["cert", "issue", name][..], more, &["--dir", path(&new)]].concat();
    outport(&arguments);
    for end in ["crt", "key"] {
        fs::rename(new.join(format!("{name}.{end}")), pki.join(format!("{name}.{end}"))).unwrap();
    }
}

#[test]
fn certificates_are_replaced_under_load_without_a_pull_that_fails() {
    const CLIENTS: usize = 4;
    let mut cluster = Cluster::start(Options { sites: vec!["mumbai"], tls: true, ..Options::default() });
    let site = &cluster.sites[0];
    let pusher = Session::user(&cluster, &cluster.primary, &["team/app"]);
    pusher.push_image("team/app", "1", &[&bytes(50_000, 1)]);
    cluster.wait_complete();
    let pki = cluster.authority().parent().unwrap().to_owned();
    let names = |node: &Node| format!("{},{},localhost", node.host, node.ip);
    let (ended, pulls) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            // Half of them come anew for every pull, and shake hands with whatever is there then.
            scope.spawn(|| {
                let puller = Session::user(&cluster, site, &["team/app"]);
                while !ended.load(Relaxed) {
                    let pulled = puller.once("GET", "/v2/team/app/manifests/1", &[], b"");
                    assert_eq!(pulled.status, 200, "{}", pulled.text());
                    assert_eq!(puller.get("/v2/team/app/manifests/1").status, 200);
                    pulls.fetch_add(2, Relaxed);
                }
            });
        }
        let pulled = || {
            let before = pulls.load(Relaxed);
            wait_for("pulls go on", || (pulls.load(Relaxed) > before + 50).then_some(()));
        };
        pulled();
        for round in 1..=5 {
            for node in cluster.nodes() {
                renew(&pki, &node.name, &[]);
                renew(&pki, &format!("{}-https", node.name), &["--https", &names(node)]);
                signal(node.pid(), "HUP");
                for certificate in ["replication", "https"] {
                    wait_for("read again", || (reloads(node, certificate) >= f64::from(round)).then_some(()));
                }
            }
            pulled();
        }
        ended.store(true, Relaxed);
    });
    // What the site shows now is good for a new session as well.
    cluster.primary.stop();
    cluster.primary.start();
    Session::user(&cluster, &cluster.primary, &["team/app"]).push_image("team/app", "2", &[&bytes(100, 2)]);
    cluster.wait_complete();
}

#[test]
fn what_nobody_would_believe_is_refused_and_the_one_before_stays() {
    let mut cluster = Cluster::start(Options { sites: vec!["mumbai"], tls: true, ..Options::default() });
    let pki = cluster.authority().parent().unwrap().to_owned();
    let site = &cluster.sites[0];
    let refused = |name: &str| -> Option<String> {
        let status = site.status();
        let of = status["certificates"].as_array().unwrap().iter().find(|of| of["name"] == name).unwrap();
        of["refused"].as_str().map(str::to_owned)
    };
    let expiry = |name: &str| {
        site.metric("outport_certificate_expiry_timestamp_seconds", &format!("certificate=\"{name}\""))
    };
    assert_eq!((refused("https"), refused("replication")), (None, None));
    let before = (expiry("https"), expiry("replication"));
    let kept = fs::read(pki.join("mumbai-https.key")).unwrap();
    fs::write(pki.join("mumbai-https.key"), "half a k").unwrap();
    // Another node's certificate would make another node of this one.
    for end in ["crt", "key"] {
        fs::copy(pki.join(format!("mumbai.{end}")), pki.join(format!("mumbai.{end}.kept"))).unwrap();
        fs::copy(pki.join(format!("primary.{end}")), pki.join(format!("mumbai.{end}"))).unwrap();
    }
    signal(site.pid(), "HUP");
    let why = wait_for("a refusal of https", || refused("https"));
    assert!(why.contains("mumbai-https.key") && why.contains("private key"), "{why}");
    let why = wait_for("a refusal of replication", || refused("replication"));
    assert!(why.contains("not this node's"), "{why}");
    assert_eq!((expiry("https"), expiry("replication")), before);
    assert_eq!(site.metric("outport_certificate_refused", "certificate=\"https\""), 1.0);
    let puller = Session::user(&cluster, site, &["team/app"]);
    assert_eq!(puller.once("GET", "/v2/", &[], b"").status, 200, "the one before is still shown");
    let said = outport(&["status", "--admin", &site.admin()]);
    assert!(said.contains("certificate https"), "{said}");

    // Mended files are found without a signal.
    fs::write(pki.join("mumbai-https.key"), kept).unwrap();
    for end in ["crt", "key"] {
        fs::rename(pki.join(format!("mumbai.{end}.kept")), pki.join(format!("mumbai.{end}"))).unwrap();
    }
    wait_for("mended", || (refused("https").is_none() && refused("replication").is_none()).then_some(()));
    assert_eq!(site.metric("outport_certificate_refused", "certificate=\"https\""), 0.0);
    cluster.sites[0].stop();
}
