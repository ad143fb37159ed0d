//! A site that the log no longer reaches takes the whole state, and goes on from there.

use outport::registry::journal::SnapshotPiece;
use outport_proto::{Change, Digest, Offset};

use crate::world::{Primary, World, committed, repo, tagged};

/// The primary's log begins anew at its head, in `epoch`: as after a long time, or in a restored primary.
async fn forget_the_past(primary: &Primary, epoch: u64) {
    let at = Offset::new(epoch, primary.journal.log().head().seq);
    let mut pieces = primary.journal.snapshot();
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
