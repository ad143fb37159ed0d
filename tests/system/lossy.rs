//! Sites far away, over wires that lose packets.
//!
//! `OUTPORT_PULLS=10000 cargo test --release --test system lossy -- --nocapture` is the figure; without
//! the variable a few pulls are fired, as a test.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use outport_proto::Digest;

use crate::{
    far::moved_behind,
    promises::{SetOnDrop, fire},
    support::{
        Cluster, Options,
        session::{Session, bytes, image},
    },
    wire::{Quality, Wire},
};

const REPO: &str = "team/app";
/// One way.
const DELAY: Duration = Duration::from_millis(100);
const LOST_PER_MILLE: u64 = 10;
const PULLS: usize = 200;
/// Clients of each site that fire one pull after the other.
const READERS: usize = 12;

/// Images are pushed one after the other at the primary while every reader fires without pause, by
/// tag, by digest and for the layer, GET and HEAD: what was acknowledged before a pull began is never
/// denied by it, whatever the site has heard of it.
#[test]
fn no_pull_is_denied_at_a_far_site_after_the_push_was_acknowledged() {
    let pulls = std::env::var("OUTPORT_PULLS").map_or(PULLS, |count| count.parse().unwrap());
    // Ten thousand pulls take longer than a token lives.
    let primary_auth_toml = "token_lifetime_seconds = 3600\n".to_owned();
    let mut cluster = Cluster::start(Options { primary_auth_toml, ..Options::default() });
    let near = cluster.primary.replication();
    let quality = |seed| Quality { delay: DELAY, lost_per_mille: LOST_PER_MILLE, seed };
    let behind =
        cluster.sites.iter_mut().zip(7..).map(|(site, seed)| moved_behind(near, site, quality(seed)));
    let wires: Vec<Wire> = behind.collect();
    let cluster = cluster;
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    let reader = Session::anyone(&cluster, &cluster.primary, &[REPO]);
    pusher.push_image(REPO, "config", &[]);
    let images: Mutex<Vec<(Vec<u8>, Vec<u8>)>> = Mutex::default();
    let (fired, began, acknowledged) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let counts: Mutex<BTreeMap<(u16, bool), usize>> = Mutex::default();
    let done = AtomicBool::new(false);
    let begun = Instant::now();
    thread::scope(|scope| {
        for site in &cluster.sites {
            for number in 0..READERS {
                let reader = reader.at(site);
                let (images, fired, began, acknowledged) = (&images, &fired, &began, &acknowledged);
                let (counts, done) = (&counts, &done);
                scope.spawn(move || {
                    let _done = SetOnDrop(done);
                    let mut way = number;
                    while !done.load(SeqCst) {
                        // The newest acknowledged, and then the one under way.
                        for is_acknowledged in [true, false] {
                            let known = if is_acknowledged { acknowledged } else { began }.load(SeqCst);
                            let Some(newest) = known.checked_sub(1) else { continue };
                            let was_acknowledged = newest < acknowledged.load(SeqCst);
                            let image = images.lock().unwrap()[newest].clone();
                            way += 1;
                            let response = fire(&reader, newest, &image, way);
                            let status = response.status;
                            fired.fetch_add(usize::from(was_acknowledged), SeqCst);
                            if status != 200 && (was_acknowledged || status != 404) {
                                println!("image {newest}, way {way} at {}: {}", site.name, response.text());
                            }
                            *counts.lock().unwrap().entry((status, was_acknowledged)).or_default() += 1;
                        }
                    }
                });
            }
        }
        let _done = SetOnDrop(&done);
        let mut number = 0;
        while fired.load(SeqCst) < pulls && !done.load(SeqCst) {
            let layer = bytes(300, 5000 + number as u64);
            let manifest = image(&[&layer]);
            images.lock().unwrap().push((manifest.clone(), layer.clone()));
            began.store(number + 1, SeqCst);
            pusher.push_blob(REPO, &layer);
            let response = pusher.put_manifest(REPO, &format!("t{number}"), &manifest);
            assert_eq!(response.status, 201, "{}", response.text());
            number += 1;
            acknowledged.store(number, SeqCst);
        }
    });
    let counts = counts.into_inner().unwrap();
    let lost: Vec<(u64, u64)> = wires.iter().map(|wire| wire.counts()).collect();
    println!(
        "{} pulls of what was acknowledged, {} images, {:.0?}: (status, acknowledged) {counts:?}; (packets carried, lost) {lost:?}",
        fired.load(SeqCst),
        acknowledged.load(SeqCst),
        begun.elapsed()
    );
    let expected =
        |(status, was_acknowledged): &(u16, bool)| *status == 200 || (*status == 404 && !was_acknowledged);
    assert!(counts.keys().all(expected), "{counts:?}");
    let digest = Digest::sha256(&images.into_inner().unwrap()[0].0);
    assert_eq!(reader.at(&cluster.sites[0]).head(&format!("/v2/{REPO}/manifests/{digest}")).status, 200);
}
