//! A site's index goes wrong: it is noticed, located, made equal to the primary's, and counted.

use std::{cell::Cell, time::Duration};

use outport::registry::journal::{JournalOptions, VerifyOptions};
use outport_proto::{Change, Digest, Offset, Reference};

use crate::{
    incident::{incidents, status, tamper},
    logs::OwnLines,
    world::{Primary, Site, World, committed, followed, repo, tagged},
};

pub(crate) async fn repaired(site: &Site, primary: &Primary) {
    site.session("noticing", |session| session.differs).await;
    site.session("repairing", |session| session.live && !session.differs).await;
    assert_eq!(site.journal.index().state_hash(), primary.journal.index().state_hash());
}

/// Three pushes of an image, and some layers.
async fn pushes(primary: &Primary) -> Offset {
    let layers: Vec<_> = (0..200_u64).map(|number| committed("lazy/app", &number.to_le_bytes())).collect();
    primary.commit(layers).await;
    primary.commit(vec![tagged("lazy/app", "1", b"{\"image\":1}", &[])]).await;
    primary.commit(vec![tagged("lazy/app", "2", b"{\"image\":2}", &[])]).await;
    primary.commit(vec![tagged("lazy/other", "latest", b"{\"image\":3}", &[])]).await
}

#[tokio::test]
async fn a_lost_an_added_and_a_changed_tag_and_link_are_repaired_counted_and_said_once() {
    let (lines, _reading) = OwnLines::read_along();
    let world = World::new();
    let primary = world.primary().await;
    let site = world.site(&primary).await;
    let head = pushes(&primary).await;
    site.applied(head).await;
    site.session("going live", |session| session.live && !session.differs).await;

    let (app, one, two) = (repo("lazy/app"), "1".parse().unwrap(), "2".parse().unwrap());
    let layer = Digest::sha256(&7_u64.to_le_bytes());
    let image = Digest::sha256(b"{\"image\":1}");
    let wrongs = [
        Change::TagDeleted { repo: app.clone(), tag: two },
        Change::BlobDeleted { repo: app.clone(), digest: layer },
        Change::ManifestDeleted { repo: app.clone(), digest: image },
        committed("lazy/app", b"never pushed"),
        tagged("lazy/app", "1", b"never pushed", &[]),
        Change::RepositoryDeleted { repo: app.clone() },
    ];
    for (number, wrong) in (1..).zip(wrongs) {
        tamper(&site, vec![wrong]);
        site.session("noticing", |session| session.differs).await;
        let alarm = status(&site).alarm.unwrap_or_default();
        assert!(alarm.contains("not in the primary's state"), "{alarm}");
        repaired(&site, &primary).await;
        let status = status(&site);
        assert_eq!((status.state_mismatches, status.state_repairs, status.alarm), (number, number, None));
        let said = |level: &str, words: &str| lines.with(&[level, words]).len() as u64;
        assert_eq!(said(" ERROR ", ""), number);
        assert_eq!(said(" ERROR ", "the index is not in the primary's state"), number);
        assert_eq!(said(" INFO ", "the index is in the primary's state again"), number);
    }
    let manifest = site.journal.index().manifest(&app, &Reference::Tag(one)).unwrap().unwrap();
    assert_eq!(manifest.bytes.as_deref(), Some(&b"{\"image\":1}"[..]), "with its bytes");
    assert!(status(&site).state_entries_repaired >= 205, "{:?}", status(&site));
    site.stop().await;
    primary.stop().await;
}

#[tokio::test]
async fn a_site_is_repaired_while_events_go_on() {
    let world = World::new();
    let primary = world.primary().await;
    let site = world.site(&primary).await;
    let head = pushes(&primary).await;
    site.applied(head).await;
    site.session("going live", |session| session.live).await;

    let is_over = Cell::new(false);
    let pushing = async {
        for number in (1_000_u64..).take_while(|_| !is_over.get()) {
            primary.commit(vec![committed("lazy/app", &number.to_le_bytes())]).await;
        }
    };
    tamper(&site, vec![Change::TagDeleted { repo: repo("lazy/app"), tag: "1".parse().unwrap() }]);
    let noticed_and_repaired = async {
        site.session("noticing", |session| session.differs).await;
        site.session("repairing", |session| session.live && !session.differs).await;
        is_over.set(true);
    };
    tokio::join!(pushing, noticed_and_repaired);
    let image = Digest::sha256(b"{\"image\":1}");
    let tag = site.journal.index().tag(&repo("lazy/app"), &"1".parse().unwrap()).unwrap();
    assert_eq!(tag.unwrap().digest, image);
    let head = primary.journal.log().head();
    site.applied(head).await;
    assert_eq!(primary.journal.applied(), head);
    assert_eq!(site.journal.index().state_hash(), primary.journal.index().state_hash());
    site.stop().await;
    primary.stop().await;
}

/// A node whose index is walked as fast as it goes.
fn walking(journal: JournalOptions) -> JournalOptions {
    let verify = VerifyOptions { rows_per_second: 1_000_000, interval: Duration::from_millis(50) };
    JournalOptions { verify, ..journal }
}

/// Removes a tag from the database of a node that is stopped, behind the back of its index.
fn lose_a_row(disk: &std::path::Path) {
    let db = sled::Config::new().path(disk.join("index/db")).open().unwrap();
    assert!(db.remove(b"tlazy/app\x001").unwrap().is_some());
    db.flush().unwrap();
}

#[tokio::test]
async fn a_row_that_a_site_lost_while_it_was_stopped_is_found_and_comes_back() {
    let world = World::new();
    let primary = world.primary().await;
    let site = world.site(&primary).await;
    let head = pushes(&primary).await;
    site.applied(head).await;
    site.stop().await;
    lose_a_row(world.site_disk.path());

    let site = world.site_with(&world.site_disk, primary.address, walking(followed())).await;
    repaired(&site, &primary).await;
    let tag = site.journal.index().tag(&repo("lazy/app"), &"1".parse().unwrap()).unwrap().unwrap();
    assert_eq!(tag.digest, Digest::sha256(b"{\"image\":1}"));
    assert_eq!(site.journal.verified().mismatches, 1);
    assert_eq!(status(&site).state_entries_repaired, 1);
    site.stop().await;
    primary.stop().await;
}

#[tokio::test]
async fn a_primary_that_lost_a_row_fails_and_rebuilds_its_index_and_no_site_follows_its_mistake() {
    let world = World::new();
    let primary = world.primary().await;
    let site = world.site(&primary).await;
    let head = pushes(&primary).await;
    site.applied(head).await;
    let truth = primary.journal.index().state_hash();
    let address = primary.address;
    primary.stop().await;
    lose_a_row(world.primary_disk.path());

    let options = walking(JournalOptions::default());
    let primary = world.primary_with(&world.primary_disk, options.clone(), address).await;
    let failure = tokio::time::timeout(crate::world::LIMIT, primary.journal.failure()).await.unwrap();
    assert!(failure.to_string().contains("rows"), "{failure}");
    primary.stop().await;

    let primary = world.primary_with(&world.primary_disk, options, address).await;
    assert_eq!(primary.journal.index().state_hash(), truth);
    site.session("going live", |session| session.live).await;
    assert_eq!(site.journal.index().state_hash(), truth);
    assert_eq!(status(&site).state_mismatches, 0);
    site.stop().await;
    primary.stop().await;
}

#[tokio::test]
async fn an_index_that_differs_in_most_of_it_is_replaced_by_a_snapshot() {
    let world = World::new();
    let primary = world.primary().await;
    let site = world.site(&primary).await;
    for part in 0..4_u64 {
        let layers = (0..1000).map(|number| committed("lazy/app", &(part * 1000 + number).to_le_bytes()));
        let head = primary.commit(layers.collect()).await;
        site.applied(head).await;
    }
    site.session("going live", |session| session.live).await;
    let at = site.journal.applied();
    tamper(&site, vec![Change::RepositoryDeleted { repo: repo("lazy/app") }]);
    repaired(&site, &primary).await;
    assert_eq!(site.journal.log().floor(), at, "the log begins anew behind the snapshot");
    site.stop().await;
    primary.stop().await;
}

/// `cargo bench -- divergence` does the same with 1,000,000.
#[tokio::test]
async fn one_fact_among_very_many_is_found_by_the_next_heartbeat_with_few_bytes() {
    for incident in incidents(20_000).await {
        assert!(incident.noticed <= incident.repaired, "{}", incident.what);
        // One more may have been under way.
        assert!(incident.comparisons <= 2, "{incident:?}");
        assert!(incident.bytes < 1024 * 1024, "{incident:?}");
        assert!((1..=2).contains(&incident.entries), "{incident:?}");
    }
}
