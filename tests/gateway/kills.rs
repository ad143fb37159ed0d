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

/// What is known of a tag.
#[derive(Default)]
struct Pushed {
    /// The push that was acknowledged last.
    acknowledged: Option<String>,
    /// Those since, which may have come to be or not.
    since: Vec<String>,
}

impl Pushed {
    fn may_be(&self, digest: &str) -> bool {
        self.acknowledged.iter().chain(&self.since).any(|pushed| pushed == digest)
    }
}

type Tags = BTreeMap<String, Pushed>;

/// Pushes to tags of its own until told to stop.
fn push_until(stop: &AtomicBool, session: &Session, pusher: usize) -> Tags {
    let mut tags = Tags::new();
    let mut number = 0_u64;
    while !stop.load(Relaxed) {
        number += 1;
        let tag = format!("p{pusher}-{}", number as usize % TAGS);
        let layer = format!("{pusher} {number}");
        let manifest = crate::support::session::image(&[layer.as_bytes()]);
        let digest = outport_proto::Digest::sha256(&manifest).to_string();
        let pushed = tags.entry(tag.clone()).or_default();
        match session.try_push_image(REPO, &tag, &[layer.as_bytes()]) {
            Ok(_) => *pushed = Pushed { acknowledged: Some(digest), since: Vec::new() },
            Err(_) => pushed.since.push(digest),
        }
    }
    tags
}

fn under_load(cluster: &mut Cluster, mut disturb: impl FnMut(&mut Cluster, u32)) {
    let stop = AtomicBool::new(false);
    let session = Session::user(cluster, &cluster.primary, &[REPO]);
    let pushed = Mutex::new(Tags::new());
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
fn agree(cluster: &Cluster, pushed: &Tags) {
    // Before anything is walked: what was acknowledged is in the log.
    let anyone = Session::anyone(cluster, &cluster.primary, &[REPO]);
    let mut acknowledged = 0;
    for (tag, pushed) in pushed.iter().filter(|(_, pushed)| pushed.acknowledged.is_some()) {
        let head = anyone.head(&format!("/v2/{REPO}/manifests/{tag}"));
        let named = head.header("docker-content-digest");
        assert!(named.is_some_and(|digest| pushed.may_be(digest)), "{tag}: {} {named:?}", head.status);
        acknowledged += 1;
    }
    assert!(acknowledged > TAGS, "hardly anything was pushed: {acknowledged}");
    let output = std::process::Command::new(crate::support::BINARY)
        .args(["reconcile", "--admin", &cluster.primary.admin()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs = tags(&direct(cluster), &[REPO]);
    for (tag, pushed) in pushed {
        let named = theirs.get(&format!("{REPO}:{tag}"));
        assert!(named.is_none_or(|digest| pushed.may_be(digest)), "{tag}: {named:?}");
        assert!(named.is_some() || pushed.acknowledged.is_none(), "{tag} was acknowledged and is gone");
    }
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
