//! A site that the log no longer reaches takes the whole state, and goes on from there.

use std::time::Duration;

use outport::{
    log::{LogOptions, Retention},
    registry::journal::{JournalOptions, SnapshotPiece},
};
use outport_proto::{Change, Digest, Offset};

use crate::world::{LIMIT, Primary, World, committed, repo, tagged};

/// The primary's log begins anew at its head, in `epoch`: as after a long time, or in a restored primary.
pub(crate) async fn forget_the_past(primary: &Primary, epoch: u64) {
    let at = Offset::new(epoch, primary.journal.log().head().seq);
    let mut pieces = primary.journal.snapshot(None);
    let mut installation = primary.journal.install_snapshot(at, primary.journal.log().bytes()).await.unwrap();
    while let Some(piece) = pieces.next().await {
        match piece.unwrap() {
            SnapshotPiece::Begin { .. } => {}
            SnapshotPiece::Part(entries) => installation = installation.part(entries).await.unwrap(),
            SnapshotPiece::End { entries, .. } => {
                installation.finish(at, entries).await.unwrap();
                return;
            }
        }
    }
    panic!("the snapshot has no end");
}

#[tokio::test]
async fn a_new_site_takes_the_state_copies_its_blobs_and_follows() {
    let world = World::new();
    let primary = world.primary().await;
    primary.blob(b"old layer");
    primary
        .commit(vec![committed("team/app", b"old layer"), tagged("team/app", "1", b"{}", &[b"old layer"])])
        .await;
    forget_the_past(&primary, 1).await;

    let site = world.site(&primary).await;
    site.session("going live", |session| session.live && session.head.seq == 2).await;
    let head = primary.commit(vec![tagged("team/app", "2", b"{ }", &[b"old layer"])]).await;
    site.applied(head).await;
    assert_eq!(site.journal.index().state_hash(), primary.journal.index().state_hash());
    assert_eq!(site.journal.log().floor(), Offset::new(1, 2));
    site.complete(head).await;
    assert_eq!(site.store.size(&Digest::sha256(b"old layer")).unwrap(), Some(9));
    site.stop().await;

    let again = world.site(&primary).await;
    again.session("going live again", |session| session.live).await;
    let head = primary.commit(vec![tagged("team/app", "3", b"{ }", &[])]).await;
    again.applied(head).await;
    assert_eq!(again.journal.log().floor(), Offset::new(1, 2), "no second snapshot is taken");
}

#[tokio::test]
async fn what_a_restored_primary_no_longer_has_goes_from_the_site() {
    let world = World::new();
    let primary = world.primary().await;
    let head =
        primary.commit(vec![tagged("team/app", "1", b"{}", &[]), tagged("team/app", "2", b"{}", &[])]).await;
    let site = world.site(&primary).await;
    site.applied(head).await;
    site.stop().await;

    primary.commit(vec![Change::TagDeleted { repo: repo("team/app"), tag: "2".parse().unwrap() }]).await;
    forget_the_past(&primary, 2).await;
    let site = world.site(&primary).await;
    site.applied(Offset::new(2, 3)).await;
    let tag = |name: &str| site.journal.index().tag(&repo("team/app"), &name.parse().unwrap()).unwrap();
    assert!(tag("1").is_some() && tag("2").is_none());
    let head = primary.commit(vec![tagged("team/app", "3", b"{}", &[])]).await;
    assert_eq!(head.epoch, 2);
    site.applied(head).await;
    assert!(tag("3").is_some());
    assert_eq!(site.journal.index().state_hash(), primary.journal.index().state_hash());
    site.stop().await;
}

#[tokio::test]
async fn a_site_that_was_away_longer_than_the_log_is_kept_takes_a_snapshot() {
    let world = World::new();
    let journal = JournalOptions {
        log: LogOptions { segment_bytes_max: 4_000, ..LogOptions::default() },
        retention: Retention { bytes: 8_000, age: Duration::MAX },
        ..JournalOptions::default()
    };
    let anywhere = "127.0.0.1:0".parse().unwrap();
    let primary = world.primary_with(&world.primary_disk, journal, anywhere).await;
    let old = vec![
        tagged("team/app", "1", b"{}", &[]),
        tagged("team/app", "2", b"{ }", &[]),
        committed("lazy/app", b"gone"),
    ];
    let head = primary.commit(old).await;
    let site = world.site(&primary).await;
    site.applied(head).await;
    site.stop().await;

    let gone = Digest::sha256(b"gone");
    let deleted = vec![
        Change::TagDeleted { repo: repo("team/app"), tag: "2".parse().unwrap() },
        Change::BlobDeleted { repo: repo("lazy/app"), digest: gone },
    ];
    primary.commit(deleted).await;
    for number in 0..120_u8 {
        primary.commit(vec![committed("lazy/app", &[number])]).await;
    }
    let cut = async {
        while primary.journal.log().floor() <= head {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, cut).await.unwrap();

    let site = world.site(&primary).await;
    site.applied(primary.journal.log().head()).await;
    site.session("going live", |session| session.live).await;
    assert!(site.journal.log().floor() > head, "by a snapshot");
    let tag = |name: &str| site.journal.index().tag(&repo("team/app"), &name.parse().unwrap()).unwrap();
    assert!(tag("1").is_some() && tag("2").is_none());
    assert_eq!(site.journal.index().link(&repo("lazy/app"), &gone).unwrap(), None);
    assert_eq!(site.journal.index().state_hash(), primary.journal.index().state_hash());
    site.stop().await;
    primary.stop().await;
}
