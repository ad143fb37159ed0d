//! Tokens of another service, whose keys are fetched from it.

use crate::support::{
    Cluster, Node, Options,
    http::Client,
    registry::Lets,
    token_service::{ISSUER, NamesKey, SERVICE, TokenService, User},
    wait_for,
};

/// Whether a node lets in whoever sends this.
fn status(node: &Node, authorization: &str) -> u16 {
    Client::plain().get(&node.registry(), "/v2/", &[("Authorization", authorization)]).status
}

#[test]
fn the_keys_of_another_service_are_fetched_again_when_they_change_and_kept_when_it_is_away() {
    let ana = User {
        name: "ana".to_owned(),
        password: "s3cret".to_owned(),
        names_key: NamesKey::Libtrust,
        may: |_, _| true,
    };
    let service = TokenService::start(vec![ana]);
    let (realm, jwks) = (service.realm(), service.jwks());
    let auth = format!(
        "[auth]\nmode = 'token'\n[auth.token]\nrealm = '{realm}'\nservice = '{SERVICE}'\nissuer = '{ISSUER}'\n\
         jwks = '{jwks}'\njwks_refresh_seconds = 3600\n"
    );
    let mut cluster = Cluster::start(Options {
        sites: vec!["frankfurt", "mumbai"],
        behind: vec![("mumbai", "frankfurt")],
        registry: Some(Lets::Anybody),
        auth_toml: Some(auth),
        ..Options::default()
    });
    let everywhere = |cluster: &Cluster, authorization: &str| -> Vec<u16> {
        cluster.nodes().map(|node| status(node, authorization)).collect()
    };
    let first = service.authorization("ana", "team/app");
    assert_eq!(everywhere(&cluster, &first), [200, 200, 200]);

    // A site behind a site meets the new key first, and asks its way up.
    service.renew_key();
    let second = service.authorization("ana", "team/app");
    assert_eq!(status(cluster.site("mumbai"), &second), 200);
    assert_eq!(everywhere(&cluster, &second), [200, 200, 200]);
    assert_eq!(everywhere(&cluster, &first), [401, 401, 401]);

    service.works(false);
    cluster.primary.stop();
    assert_eq!(status(cluster.site("mumbai"), &second), 200);
    cluster.primary.start();
    for site in &cluster.sites {
        site.wait_until(|status| status["state"] == "streaming");
    }
    assert_eq!(everywhere(&cluster, &second), [200, 200, 200]);
    let alarm = |cluster: &Cluster| cluster.primary.status()["auth_alarm"].as_str().map(str::to_owned);
    assert!(alarm(&cluster).is_some_and(|alarm| alarm.contains("cannot be had again")));
    assert_eq!(cluster.primary.metric("outport_auth_alarm", ""), 1.0);
    service.renew_key();
    let third = service.authorization("ana", "team/app");
    assert_eq!(status(&cluster.primary, &third), 503, "it may be a new key, and nobody can be asked");

    // Whoever keeps the service away must not keep its old keys in use for ever.
    cluster.primary.stop();
    let kept = cluster.primary.data().join("keys/issuer-keys.json");
    let mut keys: serde_json::Value = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
    let at = keys["fetched_at"].as_u64().unwrap();
    keys["fetched_at"] = (at - 25 * 3600).into();
    std::fs::write(&kept, keys.to_string()).unwrap();
    cluster.primary.start();
    for site in &cluster.sites {
        site.wait_until(|status| status["state"] == "streaming");
        wait_for("the site to hear of it", || (status(site, &second) == 503).then_some(()));
    }
    assert_eq!(everywhere(&cluster, &second), [503, 503, 503]);
    assert!(alarm(&cluster).is_some_and(|alarm| alarm.contains("too old to be believed")));
    service.works(true);
    let fourth = service.authorization("ana", "team/app");
    wait_for("the keys to be fetched", || (everywhere(&cluster, &fourth) == [200, 200, 200]).then_some(()));
    assert_eq!(alarm(&cluster), None);
}
