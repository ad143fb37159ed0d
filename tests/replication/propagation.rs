//! How long after its acknowledgement a push shows at a site. A measurement, not a judgement:
//! `cargo test --release --test replication propagation -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use outport_proto::Offset;

use crate::world::{World, committed, tagged};

const PUSHES: usize = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn from_the_acknowledgement_to_the_site() {
    let world = World::new();
    let primary = world.primary().await;
    let site = world.site(&primary).await;
    site.session("going live", |session| session.live).await;
    let mut applied = site.journal.watch_applied();
    let mut took = Vec::with_capacity(PUSHES);
    for _ in 0..PUSHES {
        let head = primary.commit(vec![tagged("lazy/app", "1", b"{}", &[])]).await;
        let acknowledged = Instant::now();
        applied.wait_for(|applied| *applied >= head).await.unwrap();
        took.push(acknowledged.elapsed());
    }
    took.sort();
    let at = |share: f64| took[(PUSHES as f64 * share) as usize];
    let median: Duration = at(0.5);
    println!("{PUSHES} pushes: p50 {median:?}, p99 {:?}, max {:?}", at(0.99), took[PUSHES - 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn a_hundred_thousand_events_behind() {
    let world = World::new();
    let primary = world.primary().await;
    let mut head = Offset::ZERO;
    for batch in 0..100_u64 {
        let blob = |number: u64| committed("lazy/app", &(batch * 1000 + number).to_le_bytes());
        head = primary.commit((0..1000).map(blob).collect()).await;
    }
    let begun = Instant::now();
    let site = world.site(&primary).await;
    let mut applied = site.journal.watch_applied();
    applied.wait_for(|applied| *applied >= head).await.unwrap();
    println!("{} events caught up in {:?}", head.seq, begun.elapsed());
    assert_eq!(site.journal.index().state_hash(), primary.journal.index().state_hash());
}
