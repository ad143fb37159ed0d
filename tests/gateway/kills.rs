//! The registry and the gateway are killed under load.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    agreement::{direct, tags, wait_applied, wait_backfilled},
    support::{Cluster, Options, registry::Lets, session::Session},
};

const REPO: &str = "team/app";
const TAGS: usize = 8;
const PUSHERS: usize = 3;
const LOAD: Duration = Duration::from_secs(12);

/// Pushes until told to stop, each pusher to tags of its own; returns what the last acknowledged push of each
/// tag was, and all that were begun since.
fn push_until(stop: &AtomicBool, session: &Session, pusher: usize) -> BTreeMap<String, Vec<String>> {
    // Of a tag: the digest acknowledged last, and those that may have come to be since.
    let mut tags = BTreeMap::<String, Vec<String>>::new();
    let mut number = 0_u64;
    while !stop.load(Relaxed) {
        number += 1;
        let tag = format!("p{pusher}-{}", number as usize % TAGS);
        let layer = format!("{pusher} {number}");
        let manifest = crate::support::session::image(&[layer.as_bytes()]);
        let digest = outport_proto::Digest::sha256(&manifest).to_string();
        let may_be = tags.entry(tag.clone()).or_default();
        match session.try_push_image(REPO, &tag, &[layer.as_bytes()]) {
            Ok(_) => *may_be = vec![digest],
            Err(_) => may_be.push(digest),
        }
    }
    tags
}

fn under_load(cluster: &mut Cluster, mut disturb: impl FnMut(&mut Cluster, u32)) {
    let stop = AtomicBool::new(false);
    let session = Session::user(cluster, &cluster.primary, &[REPO]);
    let pushed = Mutex::new(BTreeMap::<String, Vec<String>>::new());
    thread::scope(|scope| {
        for pusher in 0..PUSHERS {
            let (session, stop, pushed) = (&session, &stop, &pushed);
            scope.spawn(move || {
                let tags = push_until(stop, session, pusher);
                pushed.lock().unwrap().extend(tags);
            });
        }
        let (began, mut round) = (Instant::now(), 0);
        while began.elapsed() < LOAD {
            disturb(cluster, round);
            round += 1;
        }
        stop.store(true, Relaxed);
    });
    agree(cluster, &pushed.into_inner().unwrap());
}

/// Nothing acknowledged is lost, nothing false is recorded: registry, primary and sites agree.
fn agree(cluster: &Cluster, pushed: &BTreeMap<String, Vec<String>>) {
    let output = std::process::Command::new(crate::support::BINARY)
        .args(["reconcile", "--admin", &cluster.primary.admin()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs = tags(&direct(cluster), &[REPO]);
    let mut acknowledged = 0;
    for (tag, may_be) in pushed {
        let named = theirs.get(&format!("{REPO}:{tag}"));
        assert!(named.is_none_or(|digest| may_be.contains(digest)), "{tag}: {named:?} of {may_be:?}");
        acknowledged += usize::from(named.is_some());
    }
    assert!(acknowledged > TAGS, "hardly anything was pushed: {acknowledged}");
    for node in cluster.nodes() {
        if node.name != cluster.primary.name {
            wait_applied(cluster, node);
        }
        assert_eq!(tags(&Session::user(cluster, node, &[REPO]), &[REPO]), theirs, "{}", node.name);
    }
}

fn started() -> Cluster {
    let options = Options { registry: Some(Lets::Anybody), sites: vec!["mumbai"], ..Options::default() };
    let cluster = Cluster::start(options);
    wait_backfilled(&cluster);
    cluster
}

#[test]
fn the_registry_is_killed_and_restarted_under_load() {
    let mut cluster = started();
    under_load(&mut cluster, |cluster, round| {
        thread::park_timeout(Duration::from_millis(300 + 170 * u64::from(round % 5)));
        let registry = cluster.registry.as_mut().unwrap();
        registry.kill();
        registry.start();
    });
}

#[test]
fn the_gateway_is_killed_and_restarted_under_load() {
    let mut cluster = started();
    under_load(&mut cluster, |cluster, round| {
        thread::park_timeout(Duration::from_millis(300 + 170 * u64::from(round % 5)));
        cluster.primary.kill();
        cluster.primary.start();
    });
}
