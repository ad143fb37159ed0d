//! A push at the primary shows at the site, through restarts and cuts.

use std::time::{Duration, Instant};

use outport::{
    fetch::{Upstream as _, UpstreamError},
    log::{Record, faulty::FaultyDisk},
    status::{SiteState, SiteStatus},
};
use outport_proto::{Change, Digest, Offset};

use crate::{
    stretch::Stretch,
    world::{Primary, Site, World, committed, jwks_of, repo, tagged},
};

#[tokio::test]
async fn what_is_pushed_at_the_primary_shows_at_the_site_and_its_blobs_follow() {
    let world = World::new();
    let primary = world.primary().await;
    let site = world.site(&primary).await;
    let layer = vec![7; 700_000];
    primary.blob(&layer);
    primary.commit(vec![committed("team/app", &layer)]).await;
    let head = primary.commit(vec![tagged("team/app", "1", b"{}", &[&layer])]).await;

    site.applied(head).await;
    let tag = site.journal.index().tag(&repo("team/app"), &"1".parse().unwrap()).unwrap().unwrap();
    assert_eq!((tag.digest, tag.offset), (Digest::sha256(b"{}"), head));
    site.complete(head).await;
    assert_eq!(site.store.size(&Digest::sha256(&layer)).unwrap(), Some(700_000));

    let session = site.session("going live", |session| session.live && session.head == head).await;
    assert!(session.reachable);
    let welcome = site.identity.borrow().clone().unwrap();
    assert_eq!((welcome.cluster.as_str(), welcome.public_url.as_str()), ("c1", "https://hub.test"));
    assert_eq!(jwks_of(&welcome.keys), "keys of mumbai");
    let own = site.view.status(Default::default());
    assert_eq!((own.state, own.applied_seq, own.lag_seconds.applied), (SiteState::Streaming, 2, Some(0.0)));

    let [frankfurt, mumbai] = rows(&primary, |rows| rows[1].complete_seq == 2).await;
    assert_eq!((frankfurt.state, frankfurt.lag_seconds.applied), (SiteState::Disconnected, None));
    assert_eq!((mumbai.state, mumbai.lag_seconds.complete), (SiteState::Streaming, Some(0.0)));
    assert_eq!((mumbai.transport.as_str(), mumbai.lag_bytes), ("quic", 0));
    site.stop().await;
    primary.stop().await;
}

#[tokio::test]
async fn a_repository_kept_lazily_is_complete_without_its_blobs() {
    let world = World::new();
    let primary = world.primary().await;
    let site = world.site(&primary).await;
    primary.blob(b"layer");
    let head = primary.commit(vec![committed("lazy/app", b"layer")]).await;
    site.complete(head).await;
    assert_eq!(site.store.size(&Digest::sha256(b"layer")).unwrap(), None);
}

#[tokio::test]
async fn a_blob_that_could_not_be_copied_is_found_again_after_a_restart() {
    let world = World::new();
    let primary = world.primary().await;
    let site = world.site(&primary).await;
    let first = primary.commit(vec![committed("team/app", b"late"), committed("team/app", b"never")]).await;
    let pushed_at = Instant::now();
    site.applied(first).await;
    let mut progress = site.progress.clone();
    crate::world::until("looking", &mut progress, |progress| progress.missing_blobs == 2).await;
    assert_eq!(progress.borrow().complete, Offset::new(1, 0));
    site.stop().await;

    let age = pushed_at.elapsed();
    let site = world.site(&primary).await;
    site.session("going live", |session| session.live).await;
    let lag = site.view.status(Default::default()).lag_seconds;
    assert!(lag.applied == Some(0.0) && lag.complete > Some(age.as_secs_f64()), "{lag:?} {age:?}");
    site.stop().await;

    primary.blob(b"late");
    let gone = Change::BlobDeleted { repo: repo("team/app"), digest: Digest::sha256(b"never") };
    let head = primary.commit(vec![gone]).await;
    let site = world.site(&primary).await;
    site.complete(head).await;
    assert!(site.store.size(&Digest::sha256(b"late")).unwrap().is_some());
    assert_eq!(site.progress.borrow().missing_blobs, 0);
    site.stop().await;
}

#[tokio::test]
async fn a_site_that_restarts_goes_on_where_it_was_and_still_knows_its_primary() {
    let world = World::new();
    let primary = world.primary().await;
    let site = world.site(&primary).await;
    let first = many(&primary, 20).await;
    site.applied(first).await;
    site.stop().await;

    let second = many(&primary, 20).await;
    let site = world.site(&primary).await;
    site.applied(second).await;
    assert_same(&site, &primary);
    site.stop().await;

    let address = primary.address;
    primary.stop().await;
    let alone = world.site_at(address).await;
    let mut identity = alone.identity.clone();
    let remembered = crate::world::until("remembering", &mut identity, Option::is_some).await.unwrap();
    assert_eq!((remembered.cluster.as_str(), remembered.keys.generation), ("c1", 1));
    assert!(!alone.session.now().live);
    alone.stop().await;
}

#[tokio::test]
async fn a_primary_that_restarts_on_its_port_is_found_again() {
    let world = World::new();
    let primary = world.primary().await;
    let site = world.site(&primary).await;
    let first = many(&primary, 5).await;
    site.applied(first).await;
    let address = primary.address;
    primary.stop().await;
    site.session("noticing", |session| !session.live && !session.reachable).await;

    let primary = world.primary_at(address).await;
    let second = many(&primary, 5).await;
    site.applied(second).await;
    assert_same(&site, &primary);
    site.stop().await;
    primary.stop().await;
}

#[tokio::test]
async fn events_that_were_received_and_not_durable_when_a_session_ended_come_again() {
    let world = World::new();
    let primary = world.primary().await;
    let log = FaultyDisk::new();
    let site = world.site_logging_to(&log, primary.address).await;
    let first = many(&primary, 1).await;
    site.applied(first).await;

    log.hold_syncs(true);
    for _ in 0..3 {
        let head = many(&primary, 1).await;
        site.session("receiving", |session| session.head == head).await;
    }
    let address = primary.address;
    primary.stop().await;
    site.session("noticing", |session| !session.reachable).await;
    log.hold_syncs(false);

    let primary = world.primary_at(address).await;
    let last = many(&primary, 1).await;
    site.applied(last).await;
    assert_same(&site, &primary);
    site.stop().await;
    primary.stop().await;
}

#[tokio::test]
async fn a_site_goes_on_once_its_full_disk_has_room_again() {
    let world = World::new();
    let primary = world.primary().await;
    let log = FaultyDisk::new();
    let site = world.site_logging_to(&log, primary.address).await;
    let first = many(&primary, 1).await;
    site.applied(first).await;

    log.set_capacity(Some(log.bytes()));
    let second = many(&primary, 1).await;
    site.session("giving up", |session| !session.reachable).await;
    log.set_capacity(None);
    site.applied(second).await;
    assert_same(&site, &primary);
    site.stop().await;
    primary.stop().await;
}

#[tokio::test]
async fn a_cut_shows_within_a_second_and_is_made_up_for_afterwards() {
    let world = World::new();
    let primary = world.primary().await;
    let stretch = Stretch::to(primary.address).await;
    let site = world.site_at(stretch.address).await;
    let first = many(&primary, 3).await;
    site.applied(first).await;
    site.session("going live", |session| session.live).await;

    stretch.cut();
    let cut_at = Instant::now();
    site.session("noticing the cut", |session| !session.live).await;
    assert!(cut_at.elapsed() < Duration::from_secs(1), "{:?}", cut_at.elapsed());
    assert_eq!(site.view.status(Default::default()).lag_seconds.applied, None, "a lag is never frozen");
    let second = many(&primary, 3).await;
    site.session("giving up", |session| !session.reachable).await;
    let asked = site.upstream.link(&repo("team/app"), &Digest::sha256(b"")).await;
    assert!(matches!(asked, Err(UpstreamError::Unreachable(_))), "{asked:?}");

    stretch.heal();
    site.applied(second).await;
    site.session("going live again", |session| session.live).await;
    assert_same(&site, &primary);

    stretch.rebind();
    let third = many(&primary, 3).await;
    site.applied(third).await;
    assert_same(&site, &primary);
    site.stop().await;
    primary.stop().await;
}

#[tokio::test]
async fn new_keys_reach_a_connected_site() {
    let world = World::new();
    let primary = world.primary().await;
    let site = world.site(&primary).await;
    let mut identity = site.identity.clone();
    crate::world::until("the first keys", &mut identity, Option::is_some).await;
    primary.keys.send_replace(2);
    let has_second = |welcome: &Option<outport_proto::frame::Welcome>| {
        welcome.as_ref().is_some_and(|welcome| welcome.keys.generation == 2)
    };
    crate::world::until("the second keys", &mut identity, has_second).await;
}

#[tokio::test]
async fn a_site_far_behind_catches_up() {
    let world = World::new();
    let primary = world.primary().await;
    let mut head = Offset::ZERO;
    for _ in 0..20 {
        head = many(&primary, 500).await;
    }
    let site = world.site(&primary).await;
    site.applied(head).await;
    assert_same(&site, &primary);
}

/// Blobs of a repository that no site keeps.
async fn many(primary: &Primary, count: u64) -> Offset {
    let after = primary.journal.log().head().seq;
    let changes: Vec<Change> =
        (0..count).map(|number| committed("lazy/app", &(after + number).to_le_bytes())).collect();
    primary.commit(changes).await
}

/// The site's log holds exactly the primary's events, and its index shows them: no gap, no
/// duplicate, the same bytes.
fn assert_same(site: &Site, primary: &Primary) {
    let (ours, theirs) = (site.journal.log(), primary.journal.log());
    assert_eq!((ours.head(), ours.bytes()), (theirs.head(), theirs.bytes()));
    let mut after = Offset::ZERO;
    while after.seq < theirs.head().seq {
        let records = theirs.read(after, 64 * 1024).unwrap();
        let copies = ours.read(after, 64 * 1024).unwrap();
        let encoded =
            |records: &[Record]| -> Vec<_> { records.iter().map(|record| record.encoded.clone()).collect() };
        assert_eq!(encoded(&copies), encoded(&records));
        after = records.last().unwrap().event.offset;
    }
    assert_eq!(site.journal.index().state_hash(), primary.journal.index().state_hash());
}

/// The primary's rows of both sites, once `check` holds.
async fn rows(primary: &Primary, check: impl Fn(&[SiteStatus]) -> bool) -> [SiteStatus; 2] {
    let wait = async {
        loop {
            let rows = primary.statuses();
            if check(&rows) {
                return rows.try_into().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::world::LIMIT, wait).await.unwrap()
}
