//! Who is not let in, and what an admin reads about it.

use std::sync::Arc;

use outport::{
    auth::authority::{Authority, Identity, NodeIdentity},
    clock::SystemClock,
    registry::journal::JournalOptions,
};
use outport_proto::Timestamp;

use crate::{
    logs::{logged, read_along},
    world::{Disk, Primary, PrimaryConfig, Site, SiteConfig, World, followed, now, site},
};

async fn start(disk: &Disk, name: &str, identity: &Identity, trusts: &Authority, primary: &Primary) -> Site {
    let policy = Arc::default();
    let (primary, journal) = (primary.address, followed());
    let (upstream, relays_to) = (None, None);
    let config = SiteConfig { name, identity, trusts, primary, policy, journal, upstream, relays_to };
    Site::start(disk, config).await
}

#[tokio::test]
async fn a_certificate_of_another_authority_an_expired_one_and_an_unlisted_site() {
    read_along();
    let world = World::new();
    let primary = world.primary().await;

    let foreign = Authority::create("c1", now()).unwrap();
    let stranger = foreign.issue_node(&NodeIdentity::Site(site("mumbai")), now()).unwrap();
    let disk = Disk::new();
    let refused = start(&disk, "mumbai", &stranger, &world.authority, &primary).await;
    logged(&["WARN", "replication handshake failed", "BadSignature"]).await;
    assert!(refused.identity.borrow().is_none());
    refused.stop().await;

    let distrustful = start(&disk, "mumbai", &world.issue("mumbai"), &foreign, &primary).await;
    logged(&["INFO", "primary unreachable", "invalid peer certificate"]).await;
    distrustful.stop().await;

    let years_ago = Timestamp::from_secs(now().as_secs() - 4 * 365 * 86_400);
    let expired = world.authority.issue_node(&NodeIdentity::Site(site("mumbai")), years_ago).unwrap();
    let late = start(&disk, "mumbai", &expired, &world.authority, &primary).await;
    logged(&["WARN", "replication handshake failed", "certificate expired"]).await;
    logged(&["ERROR", "the primary does not take this site", "certificate expired"]).await;
    late.stop().await;

    let unlisted = start(&disk, "sydney", &world.issue("sydney"), &world.authority, &primary).await;
    logged(&["WARN", "site refused", "site sydney is not listed"]).await;
    logged(&["ERROR", "the primary does not take this site", "site sydney is not listed"]).await;
    assert!(unlisted.identity.borrow().is_none());
    unlisted.stop().await;

    let borrowed = start(&disk, "frankfurt", &world.issue("mumbai"), &world.authority, &primary).await;
    logged(&["ERROR", "the primary does not take this site", "not that of site frankfurt"]).await;
    borrowed.stop().await;
    primary.stop().await;
}

#[tokio::test]
async fn a_primary_of_another_cluster_is_not_followed() {
    read_along();
    let world = World::new();
    let primary = world.primary().await;
    let before = world.site(&primary).await;
    before.session("going live", |session| session.live).await;
    before.stop().await;
    let address = primary.address;
    primary.stop().await;

    let disk = Disk::new();
    let config = PrimaryConfig {
        identity: &world.primary_identity,
        trusts: &world.authority,
        cluster: "c2",
        sites: &["mumbai"],
        relays: Default::default(),
        address,
        journal: JournalOptions::default(),
        clock: Arc::new(SystemClock),
        callers: None,
    };
    let other = Primary::start(&disk, &config).await;
    let after = world.site(&other).await;
    logged(&["ERROR", "the primary does not take this site", "this is cluster c2"]).await;
    assert!(!after.session.now().live);
    after.stop().await;
    other.stop().await;
}
