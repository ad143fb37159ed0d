//! A primary that comes back from a backup, and two primaries of one cluster.

use std::{net::SocketAddr, time::Duration};

use outport::{
    clock::ManualClock,
    registry::journal::History,
    status::{SiteState, SiteStatus},
};
use outport_proto::{Change, Digest, Offset};

use crate::{
    logs::{logged, read_along},
    world::{Disk, LIMIT, Site, World, committed, now, repo, tagged},
};

fn has(site: &Site, tag: &str) -> bool {
    site.journal.index().tag(&repo("team/app"), &tag.parse().unwrap()).unwrap().is_some()
}

/// Mumbai's own status, once `check` holds.
async fn status(site: &Site, what: &str, check: impl Fn(&SiteStatus) -> bool) -> SiteStatus {
    let reached = tokio::time::timeout(LIMIT, site.view.when(check)).await;
    reached.unwrap_or_else(|_| panic!("{what} took too long"))
}

/// A primary with tag 1, a copy of its disk, and then tag 2 and a layer, which mumbai has as well.
async fn pushed_after_the_backup(world: &World) -> (Disk, SocketAddr) {
    let primary = world.primary().await;
    let address = primary.address;
    primary.commit(vec![tagged("team/app", "1", b"{}", &[])]).await;
    primary.stop().await;
    let backup = world.primary_disk.copy();

    let primary = world.primary_at(address).await;
    let site = world.site(&primary).await;
    primary.blob(b"layer");
    primary.commit(vec![committed("team/app", b"layer")]).await;
    let head = primary.commit(vec![tagged("team/app", "2", b"{ }", &[b"layer"])]).await;
    site.complete(head).await;
    site.stop().await;
    primary.stop().await;
    (backup, address)
}

#[tokio::test]
async fn a_restored_primary_begins_an_epoch_and_the_dead_branch_goes_from_the_site() {
    read_along();
    let world = World::new();
    let (backup, address) = pushed_after_the_backup(&world).await;

    let restored_at = now().as_secs();
    let primary = world.primary_on(&backup, History::Restored, address).await;
    let begun = primary.journal.log().head();
    assert!(begun.epoch >= restored_at && begun.seq == 2, "{begun} is the first event of the new epoch");
    let site = world.site_at(address).await;
    site.applied(begun).await;
    logged(&["WARN", "the primary's history forked", "fork=1.1", "have=1.3"]).await;
    assert!(has(&site, "1") && !has(&site, "2"));
    let layer = Digest::sha256(b"layer");
    assert_eq!(site.journal.index().link(&repo("team/app"), &layer).unwrap(), None);
    assert_eq!(site.store.size(&layer).unwrap(), Some(5), "blobs are kept");
    assert_eq!(site.journal.index().state_hash(), primary.journal.index().state_hash());

    let pushed_again = vec![committed("team/app", b"layer"), tagged("team/app", "2", b"{ }", &[b"layer"])];
    primary.blob(b"layer");
    let head = primary.commit(pushed_again).await;
    site.applied(head).await;
    site.complete(head).await;
    assert!(has(&site, "2"));
    let session = site.session("going live", |session| session.live && session.head == head).await;
    assert!(session.reachable);
    let own = status(&site, "catching up", |status| status.state == SiteState::Streaming).await;
    assert_eq!((own.epoch, own.alarm, own.forks_refused), (begun.epoch, None, 0));
    site.stop().await;

    let again = world.site_at(address).await;
    let head = primary.commit(vec![tagged("team/app", "3", b"{}", &[])]).await;
    again.applied(head).await;
    assert_eq!(again.journal.log().floor(), begun, "one snapshot was enough");
    again.stop().await;
    primary.stop().await;
}

#[tokio::test]
async fn a_site_at_the_fork_or_before_it_and_a_new_one_follow_into_the_new_epoch() {
    let world = World::new();
    let primary = world.primary().await;
    let address = primary.address;
    let site = world.site(&primary).await;
    let before = primary.commit(vec![tagged("team/app", "1", b"{}", &[])]).await;
    site.applied(before).await;
    site.stop().await;
    let fork = primary.commit(vec![tagged("team/app", "2", b"{ }", &[])]).await;
    primary.stop().await;

    let primary = world.primary_on(&world.primary_disk, History::Restored, address).await;
    for _ in 0..2 {
        let site = world.site_at(address).await;
        let head = primary.journal.log().head();
        site.session("going live", |session| session.live && session.head == head).await;
        let head = primary.commit(vec![tagged("team/app", "3", b"{}", &[])]).await;
        site.applied(head).await;
        assert!(has(&site, "2") && has(&site, "3"));
        assert_eq!(site.journal.log().floor(), Offset::ZERO, "no snapshot was taken");
        assert!(site.journal.log().contains(fork));
        site.stop().await;
    }
    let disk = Disk::new();
    let stranger = world.site_on(&disk, address).await;
    stranger.applied(primary.journal.log().head()).await;
    assert_eq!(stranger.journal.log().floor(), Offset::ZERO);
    assert_eq!(stranger.journal.index().state_hash(), primary.journal.index().state_hash());
    stranger.stop().await;
    primary.stop().await;
}

#[tokio::test]
async fn an_older_copy_that_does_not_say_so_is_refused_and_reads_go_on() {
    read_along();
    let world = World::new();
    let (backup, address) = pushed_after_the_backup(&world).await;

    let primary = world.primary_on(&backup, History::Continues, address).await;
    let site = world.site_at(address).await;
    logged(&["ERROR", "site refused: the histories forked", "--restored"]).await;
    logged(&["ERROR", "this site does not follow the primary", "--restored"]).await;
    let own = status(&site, "raising the alarm", |status| status.alarm.is_some()).await;
    assert!(own.forks_refused > 0 && own.alarm.unwrap().contains("--restored"));
    let row = primary.statuses().into_iter().find(|row| row.site == "mumbai").unwrap();
    assert!(row.alarm.unwrap().contains("--restored") && row.forks_refused > 0);
    assert!(has(&site, "1") && has(&site, "2"), "what it has stays");
    assert!(!site.session.now().live && !site.session.now().reachable);

    // It does not help the older copy to grow past the site.
    for _ in 0..3 {
        primary.commit(vec![tagged("team/app", "other", b"[]", &[])]).await;
    }
    site.stop().await;
    let site = world.site_at(address).await;
    status(&site, "being refused again", |status| status.forks_refused > 0).await;
    assert!(has(&site, "2") && !has(&site, "other"));
    site.stop().await;
    primary.stop().await;

    let primary = world.primary_on(&backup, History::Restored, address).await;
    let site = world.site_at(address).await;
    site.applied(primary.journal.log().head()).await;
    assert!(has(&site, "other") && !has(&site, "2"));
    assert_eq!(site.view.status(Default::default()).alarm, None);
    assert!(primary.statuses().iter().all(|row| row.alarm.is_none()));
    site.stop().await;
    primary.stop().await;
}

#[tokio::test]
async fn of_two_live_primaries_the_site_follows_the_newer_epoch_alone() {
    let world = World::new();
    let (backup, address) = pushed_after_the_backup(&world).await;
    let anywhere = "127.0.0.1:0".parse().unwrap();
    let old = world.primary_at(address).await;
    let new = world.primary_on(&backup, History::Restored, anywhere).await;

    let site = world.site_at(new.address).await;
    site.applied(new.journal.log().head()).await;
    site.stop().await;
    let site = world.site_at(old.address).await;
    status(&site, "refusing the older", |status| status.alarm.is_some()).await;
    old.commit(vec![Change::TagDeleted { repo: repo("team/app"), tag: "1".parse().unwrap() }]).await;
    site.stop().await;
    let site = world.site_at(old.address).await;
    status(&site, "refusing it again", |status| status.alarm.is_some()).await;
    assert!(has(&site, "1") && !has(&site, "2"));
    site.stop().await;

    // Even a site that lost its log knows which of the two is older.
    std::fs::remove_dir_all(world.site_disk.path().join("log")).unwrap();
    let site = world.site_at(old.address).await;
    status(&site, "refusing the older without a log", |status| status.alarm.is_some()).await;
    assert!(!has(&site, "2"));
    site.stop().await;
    let site = world.site_at(new.address).await;
    site.applied(new.journal.log().head()).await;
    site.stop().await;
    old.stop().await;
    new.stop().await;
}

#[tokio::test]
async fn two_copies_restored_without_knowing_of_each_other_are_followed_in_turn() {
    let world = World::new();
    let (backup, address) = pushed_after_the_backup(&world).await;
    let (older, later) = (ManualClock::at(now()), ManualClock::at(now().plus(Duration::from_secs(10))));
    let one = world.primary_by(older, &backup, History::Restored, address).await;
    let head = one.commit(vec![tagged("team/app", "one", b"[]", &[])]).await;
    let site = world.site_at(address).await;
    site.applied(head).await;
    site.stop().await;
    one.stop().await;

    let two = world.primary_by(later, &world.primary_disk, History::Restored, address).await;
    let site = world.site_at(address).await;
    site.applied(two.journal.log().head()).await;
    assert!(has(&site, "1") && has(&site, "2") && !has(&site, "one"), "what the second copy has");
    assert_eq!(site.journal.index().state_hash(), two.journal.index().state_hash());
    let own = status(&site, "following it", |status| status.state == SiteState::Streaming).await;
    assert_eq!((own.alarm, own.forks_refused), (None, 0));
    site.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn two_primaries_that_began_an_epoch_in_the_same_second_are_told_apart() {
    let world = World::new();
    let (backup, address) = pushed_after_the_backup(&world).await;
    let (anywhere, same) = ("127.0.0.1:0".parse().unwrap(), now());
    let one = world.primary_by(ManualClock::at(same), &backup, History::Restored, address).await;
    let disk = &world.primary_disk;
    let two = world.primary_by(ManualClock::at(same), disk, History::Restored, anywhere).await;
    assert_eq!(one.journal.log().head().epoch, two.journal.log().head().epoch);
    let site = world.site_at(one.address).await;
    site.applied(one.journal.log().head()).await;
    site.stop().await;
    let site = world.site_at(two.address).await;
    status(&site, "noticing the other history", |status| status.alarm.is_some()).await;
    assert!(!has(&site, "2"));
    site.stop().await;
    one.stop().await;
    two.stop().await;
}
