//! How a site comes to the primary's state from nothing or from far behind: by a snapshot when that
//! costs less than the events, and by the same one when the way to it was cut.

use bytes::Bytes;
use outport::registry::journal::JournalOptions;
use outport_proto::{Change, Digest, ManifestPut, Offset, frame::Resume};

use crate::{
    stretch::Stretch,
    world::{Primary, World, committed, followed, repo, tagged, until},
};

const MANIFESTS: u64 = 96;
const MANIFEST_BYTES: usize = 64 * 1024;
const SNAPSHOT_BYTES: u64 = MANIFESTS * MANIFEST_BYTES as u64;

/// A manifest that fills some of a snapshot. No two are alike, and none can be compressed.
fn large(number: u64) -> Change {
    let mut bytes = Vec::with_capacity(MANIFEST_BYTES);
    while bytes.len() < MANIFEST_BYTES {
        let place = [number.to_le_bytes(), (bytes.len() as u64).to_le_bytes()].concat();
        bytes.extend_from_slice(Digest::sha256(&place).as_bytes());
    }
    let Change::ManifestPut(put) = tagged("team/app", &format!("large-{number}"), b"", &[]) else {
        unreachable!()
    };
    Change::ManifestPut(Box::new(ManifestPut {
        digest: Digest::sha256(&bytes),
        size: bytes.len() as u64,
        bytes: Some(Bytes::from(bytes)),
        ..*put
    }))
}

/// A primary whose log has everything, and that sends whoever is more than ten events behind to a
/// snapshot.
async fn primary(world: &World) -> Primary {
    let journal = JournalOptions { tail_events_max: 10, ..JournalOptions::default() };
    world.primary_with(&world.primary_disk, journal, "127.0.0.1:0".parse().unwrap()).await
}

/// One with more events than a snapshot has entries, and enough of them to cut its way.
async fn large_primary(world: &World) -> Primary {
    let primary = primary(world).await;
    primary.commit(vec![committed("lazy/app", b"again and again"); 2 * MANIFESTS as usize]).await;
    for number in 0..MANIFESTS {
        primary.commit(vec![large(number)]).await;
    }
    primary
}

#[tokio::test]
async fn a_site_so_far_behind_that_the_events_cost_more_takes_a_snapshot() {
    let world = World::new();
    let primary = primary(&world).await;
    let first =
        primary.commit(vec![tagged("team/app", "1", b"{}", &[]), committed("lazy/app", b"gone")]).await;
    let site = world.site(&primary).await;
    site.applied(first).await;
    assert_eq!(site.journal.log().floor().seq, 0, "by the events");
    site.stop().await;

    for number in 0..4 {
        primary.commit(vec![committed("lazy/app", &[number])]).await;
    }
    let site = world.site(&primary).await;
    site.applied(primary.journal.applied()).await;
    assert_eq!(site.journal.log().floor().seq, 0, "by the events again: there are few");
    site.stop().await;

    let gone = Digest::sha256(b"gone");
    primary
        .commit(vec![
            Change::TagDeleted { repo: repo("team/app"), tag: "1".parse().unwrap() },
            Change::ManifestDeleted { repo: repo("team/app"), digest: Digest::sha256(b"{}") },
            Change::BlobDeleted { repo: repo("lazy/app"), digest: gone },
        ])
        .await;
    for number in 0..20 {
        primary.commit(vec![committed("lazy/app", &[number])]).await;
    }
    assert_eq!(primary.journal.log().floor().seq, 0, "the primary has every event");
    let site = world.site(&primary).await;
    site.session("going live", |session| session.live).await;
    let welcome = until("a welcome", &mut site.identity.clone(), Option::is_some).await.unwrap();
    assert_eq!(welcome.resume, Resume::Tail, "the one behind the snapshot");
    site.applied(primary.journal.applied()).await;
    assert_eq!(site.journal.log().floor(), primary.journal.applied(), "by a snapshot");
    let index = site.journal.index();
    assert_eq!(index.tag(&repo("team/app"), &"1".parse().unwrap()).unwrap(), None, "what is not in it goes");
    assert_eq!(index.link(&repo("lazy/app"), &gone).unwrap(), None);
    assert_eq!(index.any_link(&gone).unwrap(), None, "nobody links it: it may be collected");
    assert!(!index.has_repository(&repo("team/app")).unwrap());
    assert_eq!(index.state_hash(), primary.journal.index().state_hash());
    site.stop().await;
    primary.stop().await;
}

/// Cuts the way to the snapshot at four fifths, with or without a restart before it heals.
async fn cut_off(restarts: bool) {
    let world = World::new();
    let primary = large_primary(&world).await;
    let from = primary.journal.applied();
    let stretch = Stretch::to(primary.address).await;
    stretch.cut_after(SNAPSHOT_BYTES * 4 / 5);
    let mut site = world.site_at(stretch.address).await;
    stretch.carries(SNAPSHOT_BYTES * 4 / 5).await;
    site.session("noticing the cut", |session| !session.reachable).await;
    let carried = stretch.carried();

    // The world goes on: behind the place that was reached, and before it.
    primary
        .commit(vec![
            tagged("team/app", "large-0", b"{}", &[]),
            tagged("zoo/app", "1", b"{ }", &[]),
            Change::TagDeleted { repo: repo("team/app"), tag: "large-1".parse().unwrap() },
            committed("a/app", b"layer"),
        ])
        .await;
    if restarts {
        site.stop().await;
        site = world.site_at(stretch.address).await;
    }
    stretch.heal();
    site.session("going live", |session| session.live).await;
    site.applied(primary.journal.applied()).await;
    assert_eq!(site.journal.log().floor(), from, "it is the snapshot that was begun");
    assert_eq!(site.journal.index().state_hash(), primary.journal.index().state_hash());
    let rest = stretch.carried() - carried;
    assert!(rest < SNAPSHOT_BYTES / 2, "{rest} of {SNAPSHOT_BYTES} bytes came again");

    // Nothing is left that another one could be confused with.
    site.stop().await;
    let names = std::fs::read_dir(world.site_disk.path().join("snapshots")).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| !name.ends_with(".received")), "{names:?}");
    primary.stop().await;
}

#[tokio::test]
async fn a_snapshot_that_is_cut_off_goes_on_where_it_was() {
    cut_off(false).await;
}

#[tokio::test]
async fn a_snapshot_goes_on_where_it_was_after_a_restart() {
    cut_off(true).await;
}

#[tokio::test]
async fn a_snapshot_begins_anew_where_the_primary_lost_what_follows_it() {
    let world = World::new();
    let primary = large_primary(&world).await;
    let stretch = Stretch::to(primary.address).await;
    stretch.cut_after(SNAPSHOT_BYTES / 2);
    let site = world.site_with(&world.site_disk, stretch.address, followed()).await;
    stretch.carries(SNAPSHOT_BYTES / 2).await;
    site.stop().await;
    // The log begins anew behind what the site had begun with.
    let head = primary.commit(vec![tagged("team/app", "large-0", b"{}", &[])]).await;
    crate::snapshots::forget_the_past(&primary, 1).await;
    stretch.heal();
    let site = world.site_with(&world.site_disk, stretch.address, followed()).await;
    site.applied(head).await;
    site.session("going live", |session| session.live).await;
    assert_eq!(site.journal.log().floor(), Offset::new(1, head.seq), "it is another snapshot");
    assert_eq!(site.journal.index().state_hash(), primary.journal.index().state_hash());
    assert!(stretch.carried() > SNAPSHOT_BYTES);
}
