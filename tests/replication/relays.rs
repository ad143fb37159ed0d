//! Sites that follow other sites: pune follows mumbai, goa follows pune.

use std::{net::SocketAddr, time::Duration};

use outport::{
    fetch::{At, Upstream as _, UpstreamError},
    primary::source::Relays,
    registry::journal::History,
    status::{SiteState, SiteStatus},
};
use outport_proto::{Change, Digest, Reference};

use crate::{
    divergence::repaired,
    incident::tamper,
    logs::{logged, read_along},
    snapshots::forget_the_past,
    world::{Disk, LIMIT, Primary, Site, SiteConfig, World, committed, jwks_of, repo, site, tagged, until},
};

fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A chain of sites that can be started link by link.
pub(crate) struct Chain {
    pub(crate) world: World,
    disks: [Disk; 3],
}

const MUMBAI: usize = 0;
const PUNE: usize = 1;
const GOA: usize = 2;
const NAMES: [&str; 3] = ["mumbai", "pune", "goa"];
const BEHIND: [&[&str]; 3] = [&["pune"], &["goa"], &[]];

impl Chain {
    pub(crate) fn new() -> Self {
        let relays = [("mumbai", "pune"), ("pune", "goa")];
        let relays = relays.map(|(relay, behind)| (site(relay), vec![site(behind)]));
        let world = World { relays: Relays::new(relays.into()), ..World::new() };
        Self { world, disks: [Disk::new(), Disk::new(), Disk::new()] }
    }

    /// `which` follows `upstream`, which is the site before it in the chain, or the primary.
    async fn start(&self, which: usize, upstream: SocketAddr, listen: SocketAddr) -> Site {
        let name = which.checked_sub(1).map(|before| NAMES[before]);
        self.start_behind(which, name, upstream, listen).await
    }

    async fn start_behind(
        &self,
        which: usize,
        name: Option<&str>,
        upstream: SocketAddr,
        listen: SocketAddr,
    ) -> Site {
        let identity = self.world.issue(NAMES[which]);
        let config = SiteConfig {
            name: NAMES[which],
            upstream: name,
            relays_to: Some((BEHIND[which], listen)),
            ..self.world.site_config(&identity, upstream)
        };
        Site::start(&self.disks[which], config).await
    }

    pub(crate) async fn whole(&self, primary: &Primary) -> [Site; 3] {
        let mumbai = self.start(MUMBAI, primary.address, anywhere()).await;
        let pune = self.start(PUNE, mumbai.relay.unwrap(), anywhere()).await;
        let goa = self.start(GOA, pune.relay.unwrap(), anywhere()).await;
        [mumbai, pune, goa]
    }
}

fn tag(site: &Site, tag: &str) -> Option<Digest> {
    let entry = site.journal.index().tag(&repo("team/app"), &tag.parse().unwrap()).unwrap();
    entry.map(|entry| entry.digest)
}

async fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = check() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

/// The primary's row of a site, once `check` holds.
async fn row(primary: &Primary, name: &str, what: &str, check: impl Fn(&SiteStatus) -> bool) -> SiteStatus {
    let find = || primary.statuses().into_iter().find(|row| row.site == name).filter(&check);
    eventually(what, find).await
}

async fn read(site: &Site, repo_name: &str, digest: &Digest) -> Result<Vec<u8>, UpstreamError> {
    let mut body = site.upstream.fetch(&repo(repo_name), digest, 0).await?.unwrap();
    let mut content = Vec::new();
    while let Some(chunk) = body.chunk().await? {
        content.extend_from_slice(&chunk);
    }
    Ok(content)
}

#[tokio::test]
async fn a_push_reaches_the_third_site_and_every_blob_crosses_every_hop_once() {
    let chain = Chain::new();
    let primary = chain.world.primary().await;
    let sites = chain.whole(&primary).await;
    let layer = vec![7; 300_000];
    let digest = primary.blob(&layer);
    let head =
        primary.commit(vec![committed("team/app", &layer), tagged("team/app", "1", b"{}", &[&layer])]).await;
    for site in &sites {
        site.applied(head).await;
        site.complete(head).await;
        assert_eq!(tag(site, "1"), Some(Digest::sha256(b"{}")));
        assert_eq!(site.journal.index().state_hash(), primary.journal.index().state_hash());
        assert_eq!(
            (site.store.size(&digest).unwrap(), site.fills.upstream_bytes()),
            (Some(300_000), 300_000)
        );
    }
    let [_, _, goa] = &sites;
    let session = goa.session("going live", |session| session.live && session.head == head).await;
    assert!(session.reachable);
    let told = goa.identity.borrow().clone().unwrap();
    assert_eq!(told.path, [site("mumbai"), site("pune")]);
    assert_eq!((told.public_url.as_str(), jwks_of(&told.keys)), ("https://hub.test", "keys of goa"));

    let row = row(&primary, "goa", "showing goa", |row| {
        row.state == SiteState::Streaming && row.complete_seq == head.seq && row.store.blobs == 1
    })
    .await;
    assert_eq!(
        (row.lag_seconds.applied, row.lag_events, row.via),
        (Some(0.0), 0, vec!["mumbai".to_owned(), "pune".to_owned()])
    );

    let told = self::row(&primary, "goa", "telling of itself", |row| {
        row.propagation.complete.is_some() && row.eta_seconds == Some(0.0)
    })
    .await;
    let (applied, complete) = (told.propagation.applied.unwrap(), told.propagation.complete.unwrap());
    assert!(applied.p50_seconds <= complete.p99_seconds && complete.p99_seconds < 10.0, "{told:?}");
    // One machine has one clock, and no path here takes a second.
    let offset = told.clock_offset_seconds.unwrap();
    assert!(offset.abs() < 1.0 && told.clock_offset_error_seconds.unwrap() < 1.0, "{told:?}");

    let head = primary.commit(vec![tagged("team/app", "1", b"{ }", &[])]).await;
    goa.applied(head).await;
    assert_eq!(tag(goa, "1"), Some(Digest::sha256(b"{ }")));
    let deleted = Change::TagDeleted { repo: repo("team/app"), tag: "1".parse().unwrap() };
    let head = primary.commit(vec![deleted]).await;
    goa.applied(head).await;
    assert_eq!(tag(goa, "1"), None);

    primary.keys.send_replace(2);
    let renewed = |told: &Option<outport_proto::frame::Welcome>| {
        told.as_ref().is_some_and(|told| told.keys.generation == 2)
    };
    let renewed = until("renewing keys", &mut goa.identity.clone(), renewed).await.unwrap();
    assert_eq!(jwks_of(&renewed.keys), "keys of goa");
    for site in sites {
        site.stop().await;
    }
    primary.stop().await;
}

#[tokio::test]
async fn what_goa_asks_the_primary_answers_and_a_blob_that_nobody_keeps_comes_down_once() {
    let chain = Chain::new();
    let primary = chain.world.primary().await;
    let sites = chain.whole(&primary).await;
    let [mumbai, pune, goa] = &sites;
    goa.session("going live", |session| session.live).await;

    // Asked at once, wherever the events are by then.
    for n in 0..20 {
        let name = format!("t{n}");
        let at = primary.commit(vec![tagged("team/app", &name, b"{}", &[])]).await;
        let said =
            goa.upstream.resolve(&repo("team/app"), &Reference::Tag(name.parse().unwrap())).await.unwrap();
        assert!(said.value.is_some() && said.at >= at, "{n}");
    }
    let no = goa.upstream.resolve(&repo("team/app"), &"none".parse().unwrap()).await.unwrap();
    assert_eq!(no.value, None);
    assert!(
        goa.upstream.referrers(&repo("team/app"), &Digest::sha256(b"{}")).await.unwrap().value.is_empty()
    );

    let large: Vec<u8> = (0..2_000_000_u32).map(|n| (n / 7) as u8).collect();
    let digest = primary.blob(&large);
    primary.commit(vec![committed("lazy/app", &large)]).await;
    let reads: Vec<_> = (0..5).map(|_| read(goa, "lazy/app", &digest)).collect();
    for content in futures_join(reads).await {
        assert!(content.unwrap() == large);
    }
    let crossed = (mumbai.fills.upstream_bytes(), pune.fills.upstream_bytes(), goa.fills.upstream_bytes());
    assert_eq!(crossed, (2_000_000, 2_000_000, 0), "each relay filled it once for all");
    let other = goa.upstream.fetch(&repo("lazy/other"), &digest, 0).await.unwrap();
    assert!(other.is_none(), "it exists, and not for this repository");
    let At { value, .. } = goa.upstream.link(&repo("lazy/app"), &digest).await.unwrap();
    assert_eq!(value, Some(2_000_000));
    for site in sites {
        site.stop().await;
    }
    primary.stop().await;
}

/// All at once.
async fn futures_join<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut results = Vec::new();
    let mut running: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        running.retain_mut(|future| match future.as_mut().poll(cx) {
            std::task::Poll::Ready(result) => {
                results.push(result);
                false
            }
            std::task::Poll::Pending => true,
        });
        if running.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    results
}

#[tokio::test]
async fn without_the_primary_the_chain_holds_and_nobody_in_it_looks_fresh() {
    let chain = Chain::new();
    let primary = chain.world.primary().await;
    let address = primary.address;
    let [mumbai, pune, goa] = chain.whole(&primary).await;
    let layer = primary.blob(b"layer");
    let head =
        primary.commit(vec![committed("lazy/app", b"layer"), tagged("team/app", "1", b"{}", &[])]).await;
    goa.applied(head).await;
    goa.session("going live", |session| session.live).await;
    assert_eq!(read(&pune, "lazy/app", &layer).await.unwrap(), b"layer");
    primary.stop().await;

    let session = goa.session("going stale", |session| !session.live).await;
    assert!(session.reachable, "pune is there, and may have blobs");
    let closed = session.closed_time;
    let status = goa.view.status(Default::default());
    assert_eq!((status.lag_seconds.applied, status.state), (None, SiteState::Disconnected));
    assert!(status.heartbeat_age_seconds.unwrap() > 0.5);
    assert_eq!(read(&goa, "lazy/app", &layer).await.unwrap(), b"layer", "mumbai has it");
    let asked = goa.upstream.resolve(&repo("team/app"), &"1".parse().unwrap()).await;
    assert!(matches!(asked, Err(UpstreamError::Unavailable(_) | UpstreamError::Timeout(_))), "{asked:?}");

    // A relay that restarts meanwhile lets goa in with what it kept, and pretends nothing.
    let listen = pune.relay.unwrap();
    pune.stop().await;
    let pune = chain.start(PUNE, mumbai.relay.unwrap(), listen).await;
    goa.session("losing pune", |session| !session.reachable).await;
    let session = goa.session("finding pune again", |session| session.reachable).await;
    assert!(!session.live);
    assert_eq!(session.closed_time, closed);

    let primary = chain.world.primary_at(address).await;
    let head = primary.commit(vec![tagged("team/app", "2", b"{ }", &[])]).await;
    goa.applied(head).await;
    goa.session("going live again", |session| session.live && session.closed_time > closed).await;
    for site in [mumbai, pune, goa] {
        site.stop().await;
    }
    primary.stop().await;
}

#[tokio::test]
async fn a_relay_that_is_down_is_waited_for_and_its_sites_are_shown_as_cut_off() {
    let chain = Chain::new();
    let primary = chain.world.primary().await;
    let [mumbai, pune, goa] = chain.whole(&primary).await;
    goa.session("going live", |session| session.live).await;
    row(&primary, "goa", "connecting", |row| row.state == SiteState::Streaming).await;

    let listen = mumbai.relay.unwrap();
    mumbai.stop().await;
    let cut = row(&primary, "goa", "losing mumbai", |row| row.state == SiteState::Disconnected).await;
    assert_eq!(cut.lag_seconds.applied, None);
    let head = primary.commit(vec![tagged("team/app", "1", b"{}", &[])]).await;
    goa.session("going stale", |session| !session.live).await;

    let mumbai = chain.start(MUMBAI, primary.address, listen).await;
    goa.applied(head).await;
    row(&primary, "goa", "coming back", |row| {
        row.state == SiteState::Streaming && row.applied_seq == head.seq
    })
    .await;

    goa.stop().await;
    let gone = row(&primary, "goa", "leaving", |row| row.state == SiteState::Disconnected).await;
    assert_eq!(gone.applied_seq, head.seq);
    row(&primary, "pune", "staying", |row| row.state == SiteState::Streaming).await;
    for site in [mumbai, pune] {
        site.stop().await;
    }
    primary.stop().await;
}

#[tokio::test]
async fn a_new_epoch_and_the_end_of_a_dead_branch_reach_the_third_site() {
    let chain = Chain::new();
    let primary = chain.world.primary().await;
    let address = primary.address;
    let before = primary.commit(vec![tagged("team/app", "1", b"{}", &[])]).await;
    primary.stop().await;
    let backup = chain.world.primary_disk.copy();

    let primary = chain.world.primary_at(address).await;
    let [mumbai, pune, goa] = chain.whole(&primary).await;
    goa.applied(before).await;
    let head = primary.commit(vec![tagged("team/app", "2", b"{ }", &[])]).await;
    goa.applied(head).await;
    primary.stop().await;

    let primary = chain.world.primary_on(&backup, History::Restored, address).await;
    let begun = primary.journal.log().head();
    assert!(begun.epoch > head.epoch && begun.seq == 2, "{begun}");
    for site in [&mumbai, &pune, &goa] {
        site.applied(begun).await;
        let gone = || (tag(site, "2").is_none() && tag(site, "1").is_some()).then_some(());
        eventually("dropping the dead branch", gone).await;
    }
    let head = primary.commit(vec![tagged("team/app", "3", b"{}", &[])]).await;
    goa.applied(head).await;
    let session = goa.session("going live", |session| session.live && session.head == head).await;
    assert!(session.reachable);
    assert_eq!(goa.view.status(Default::default()).alarm, None);
    assert_eq!(goa.journal.index().state_hash(), primary.journal.index().state_hash());

    // Within one epoch as well as into the next by the log alone.
    let primary_again = {
        primary.stop().await;
        chain.world.primary_on(&backup, History::Restored, address).await
    };
    let head = primary_again.commit(vec![tagged("team/app", "4", b"{}", &[])]).await;
    assert!(head.epoch > begun.epoch, "{head}");
    goa.applied(head).await;
    for site in [mumbai, pune, goa] {
        site.stop().await;
    }
    primary_again.stop().await;
}

#[tokio::test]
async fn a_site_behind_relays_is_repaired_by_them_and_never_led_astray() {
    let chain = Chain::new();
    let primary = chain.world.primary().await;
    let sites = chain.whole(&primary).await;
    let [mumbai, pune, goa] = &sites;
    let blobs = (0..200_u64).map(|number| committed("lazy/app", &number.to_le_bytes()));
    primary.commit(blobs.collect()).await;
    let head = primary.commit(vec![tagged("team/app", "1", b"{}", &[])]).await;
    goa.applied(head).await;
    let compared = async |site: &Site| {
        let before = site.session.now().comparisons;
        site.session("comparing", |session| session.live && session.comparisons > before + 1).await
    };
    assert!(!compared(goa).await.differs);
    let wrong = || Change::TagDeleted { repo: repo("team/app"), tag: "1".parse().unwrap() };

    tamper(goa, vec![wrong()]);
    repaired(goa, &primary).await;
    assert_eq!(tag(goa, "1"), Some(Digest::sha256(b"{}")));

    // What goes wrong at a relay stays there.
    for relay in [pune, mumbai] {
        tamper(relay, vec![wrong()]);
        repaired(relay, &primary).await;
        compared(goa).await;
        assert_eq!(goa.view.status(Default::default()).state_mismatches, 1);
    }
    tamper(pune, vec![wrong()]);
    tamper(goa, vec![committed("lazy/app", b"never pushed")]);
    tokio::join!(repaired(pune, &primary), repaired(goa, &primary));
    assert_eq!(pune.view.status(Default::default()).state_mismatches, 2);
    assert_eq!(tag(goa, "1"), Some(Digest::sha256(b"{}")));
    for site in sites {
        site.stop().await;
    }
    primary.stop().await;
}

#[tokio::test]
async fn keys_are_for_the_site_they_are_of_and_for_those_above_it() {
    read_along();
    let chain = Chain::new();
    let primary = chain.world.primary().await;
    let sites = chain.whole(&primary).await;
    let [mumbai, pune, goa] = &sites;
    goa.session("going live", |session| session.live).await;

    let keys = async |asker: &Site, of: &str, via: &[&str]| {
        let via = via.iter().map(|name| site(name)).collect();
        asker.upstream.site_keys(site(of), via).await.unwrap().map(|keys| jwks_of(&keys).to_owned())
    };
    assert_eq!(keys(pune, "goa", &["pune"]).await.as_deref(), Some("keys of goa"));
    assert_eq!(keys(mumbai, "goa", &["pune", "mumbai"]).await.as_deref(), Some("keys of goa"));
    assert_eq!(keys(mumbai, "pune", &["mumbai"]).await.as_deref(), Some("keys of pune"));
    for (asker, of, via) in [
        (pune, "mumbai", &["pune"][..]),
        (pune, "frankfurt", &["pune"]),
        (goa, "pune", &["goa"]),
        (goa, "goa", &["pune"]),
        (goa, "pune", &["mumbai", "goa"]),
        (mumbai, "goa", &["mumbai"]),
        (mumbai, "frankfurt", &["mumbai"]),
        (mumbai, "goa", &["pune"]),
        (mumbai, "goa", &[]),
    ] {
        assert_eq!(keys(asker, of, via).await, None, "{of} by {via:?}");
    }
    logged(&["WARN", "a site asked for what is not for it", "frankfurt"]).await;
    for site in sites {
        site.stop().await;
    }
    primary.stop().await;
}

#[tokio::test]
async fn a_ring_of_sites_is_refused_with_an_alarm() {
    read_along();
    let chain = Chain::new();
    let primary = chain.world.primary().await;
    let mumbai = chain.start(MUMBAI, primary.address, anywhere()).await;
    let pune = chain.start(PUNE, mumbai.relay.unwrap(), anywhere()).await;
    let goa = chain.start(GOA, pune.relay.unwrap(), anywhere()).await;
    goa.session("going live", |session| session.live).await;
    let (at_mumbai, at_pune) = (mumbai.relay.unwrap(), pune.relay.unwrap());
    mumbai.stop().await;

    let identity = chain.world.issue("mumbai");
    let config = SiteConfig {
        upstream: Some("pune"),
        relays_to: Some((&["pune", "mumbai"], at_mumbai)),
        ..chain.world.site_config(&identity, at_pune)
    };
    pune.stop().await;
    let mumbai = Site::start(&chain.disks[MUMBAI], config).await;
    let identity = chain.world.issue("pune");
    let config = SiteConfig {
        name: "pune",
        upstream: Some("mumbai"),
        relays_to: Some((&["mumbai", "goa"], at_pune)),
        ..chain.world.site_config(&identity, at_mumbai)
    };
    let pune = Site::start(&chain.disks[PUNE], config).await;
    let alarm = eventually("raising the alarm", || {
        [&mumbai, &pune].into_iter().find_map(|site| site.view.status(Default::default()).alarm)
    })
    .await;
    assert!(alarm.contains("is a ring") && alarm.contains("mumbai") && alarm.contains("pune"), "{alarm}");
    logged(&["ERROR", "this site does not follow", "is a ring"]).await;
    assert!(!goa.session.now().live);

    // Put right, it goes on.
    mumbai.stop().await;
    let mumbai = chain.start(MUMBAI, primary.address, at_mumbai).await;
    goa.session("going live again", |session| session.live).await;
    assert_eq!(pune.view.status(Default::default()).alarm, None);
    for site in [mumbai, pune, goa] {
        site.stop().await;
    }
    primary.stop().await;
}

#[tokio::test]
async fn a_site_expects_the_very_upstream_it_was_told_of() {
    read_along();
    let chain = Chain::new();
    let primary = chain.world.primary().await;
    let mumbai = chain.start(MUMBAI, primary.address, anywhere()).await;
    for (upstream, address) in [
        (None, mumbai.relay.unwrap()),
        (Some("frankfurt"), mumbai.relay.unwrap()),
        (Some("mumbai"), primary.address),
    ] {
        let pune = chain.start_behind(PUNE, upstream, address, anywhere()).await;
        logged(&["INFO", "primary unreachable", &address.to_string(), "not valid for name"]).await;
        assert!(pune.identity.borrow().is_none());
        pune.stop().await;
    }
    let stranger = chain.start_behind(GOA, Some("mumbai"), mumbai.relay.unwrap(), anywhere()).await;
    logged(&["ERROR", "the primary does not take this site", "site goa is not listed"]).await;
    stranger.stop().await;
    mumbai.stop().await;
    primary.stop().await;
}

#[tokio::test]
async fn a_site_that_took_a_snapshot_sends_those_behind_it_to_one() {
    let chain = Chain::new();
    let primary = chain.world.primary().await;
    let [mumbai, pune, goa] = chain.whole(&primary).await;
    let head = primary.commit(vec![tagged("team/app", "1", b"{}", &[])]).await;
    goa.applied(head).await;
    let at_mumbai = mumbai.relay.unwrap();
    mumbai.stop().await;
    for n in 0..50 {
        let deleted = Change::TagDeleted { repo: repo("team/app"), tag: "1".parse().unwrap() };
        primary.commit(vec![tagged("team/app", &format!("t{n}"), b"{}", &[]), deleted]).await;
    }
    forget_the_past(&primary, 1).await;

    let mumbai = chain.start(MUMBAI, primary.address, at_mumbai).await;
    let head = primary.commit(vec![tagged("team/app", "last", b"{}", &[])]).await;
    for site in [&mumbai, &pune, &goa] {
        site.applied(head).await;
        assert_eq!(site.journal.index().state_hash(), primary.journal.index().state_hash());
        assert!(site.journal.log().floor() >= primary.journal.log().floor(), "a snapshot was taken");
    }
    assert_eq!((tag(&goa, "1"), tag(&goa, "t49")), (None, Some(Digest::sha256(b"{}"))));
    goa.session("going live", |session| session.live).await;
    for site in [mumbai, pune, goa] {
        site.stop().await;
    }
    primary.stop().await;
}
