//! A push at the primary shows at the site, through restarts and cuts.

use outport::status::SiteState;
use outport_proto::Digest;

use crate::world::{World, committed, repo, tagged};

#[tokio::test]
async fn what_is_pushed_at_the_primary_shows_at_the_site_and_its_blobs_follow() {
    let world = World::new();
    let primary = world.primary();
    let site = world.site(&primary);
    let layer = vec![7; 700_000];
    primary.blob(&layer);
    primary.commit(vec![committed("team/app", &layer)]).await;
    let head = primary.commit(vec![tagged("team/app", "1", b"{}", &[&layer])]).await;

    site.applied(head).await;
    let tag = site.index.tag(&repo("team/app"), &"1".parse().unwrap()).unwrap().unwrap();
    assert_eq!((tag.digest, tag.offset), (Digest::sha256(b"{}"), head));
    site.complete(head).await;
    assert_eq!(site.store.size(&Digest::sha256(&layer)).unwrap(), Some(700_000));

    let session = site.session("going live", |session| session.live && session.head == head).await;
    assert!(session.reachable);
    let welcome = site.identity.borrow().clone().unwrap();
    assert_eq!((welcome.cluster.as_str(), welcome.public_url.as_str()), ("c1", "https://hub.test"));
    assert_eq!(welcome.keys.token_jwks, "keys of mumbai");
    assert_eq!(site.view.state(), SiteState::Streaming);
    let rows = primary.statuses();
    assert_eq!(rows.iter().map(|row| row.site.as_str()).collect::<Vec<_>>(), ["frankfurt", "mumbai"]);
    site.stop().await;
    primary.stop().await;
}
