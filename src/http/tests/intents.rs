//! A request that a site leads to the primary is awaited by the site until its own event comes.

use outport_proto::{Reference, Timestamp, oci::media_type::OCI_MANIFEST};

use super::*;
use crate::{auth::ticket::TICKET_LIFE, registry::INTENT_LIFE};

const APP: &str = "/v2/team/app";

struct World {
    primary: Primary,
    site: Secondary,
    token: String,
    /// Without push: with it every read would ask the primary anyway.
    puller: String,
    config: Digest,
}

impl World {
    async fn start(mode: PushMode) -> Self {
        let primary = Primary::start().await;
        let token = primary.token(&["team/app"], Actions::ALL);
        let puller = primary.token(&["team/app"], Actions::PULL);
        let config = push_blob(&primary, &token, "team/app", b"config").await;
        let site = primary.secondary(mode);
        Self { primary, site, token, puller, config }
    }

    fn manifest(&self, number: u32) -> String {
        image(&self.config, &format!(r#","annotations":{{"number":"{number}"}}"#))
    }

    fn put(&self, uri: &str, number: u32) -> Ask {
        let put = ask("PUT", format!("{APP}/manifests/{uri}")).by(&self.token);
        put.with("content-type", OCI_MANIFEST).body(self.manifest(number))
    }

    /// Sends what the site was asked where it redirects to.
    async fn follow(&self, led: Ask, path: &str) -> Answer {
        let method = led.request.method_ref().unwrap().clone();
        let mut again = ask(method.as_str(), path);
        if let Some(content_type) = led.request.headers_ref().unwrap().get("content-type") {
            again = again.with("content-type", content_type.to_str().unwrap());
        }
        self.primary.ask(Ask { body: led.body, ..again }).await
    }

    async fn led(&self, ask: Ask) -> String {
        self.primary.path_of(self.site.ask(ask).await.is(307).location())
    }

    /// What the site answers to a client that may only pull.
    async fn sees(&self, what: &str) -> Option<Digest> {
        let answer = self.site.ask(ask("GET", format!("{APP}/{what}")).by(&self.puller)).await;
        match answer.status.as_u16() {
            404 => None,
            200 => Some(answer.header("docker-content-digest").parse().unwrap()),
            other => panic!("{other} {answer:?}"),
        }
    }

    fn is_announced(&self, reference: &str) -> bool {
        self.site.inner.intents.is_open(&repo("team/app"), &testing::reference(reference), NOW)
    }

    fn catch_up(&self) {
        self.site.inner.catch_up(&self.primary.inner);
    }
}

fn digest_of(manifest: &str) -> Digest {
    Digest::sha256(manifest.as_bytes())
}

#[tokio::test]
async fn an_event_that_came_from_elsewhere_ends_nothing() {
    let world = World::start(PushMode::Redirect).await;
    let digest = |number| digest_of(&world.manifest(number));
    let delete = |what: String| ask("DELETE", format!("{APP}/{what}")).by(&world.token);
    // What is asked of the site, and what it concerns.
    type Led<'a> = (&'a dyn Fn() -> Ask, Vec<String>);
    let by_tag = || world.put("1", 1);
    let by_digest = || world.put(&format!("{}?tag=1&tag=2", digest(2)), 2);
    let untag = || delete("manifests/1".into());
    let remove = || delete(format!("manifests/{}", digest(7)));
    let remove_blob = || delete(format!("blobs/{}", world.config));
    let cases: [Led<'_>; 5] = [
        (&by_tag, vec!["1".into()]),
        (&by_digest, vec!["1".into(), "2".into(), digest(2).to_string()]),
        (&untag, vec!["1".into()]),
        (&remove, vec!["1".into(), "2".into(), digest(7).to_string()]),
        (&remove_blob, vec![world.config.to_string()]),
    ];
    for (case, (led, concerned)) in cases.into_iter().enumerate() {
        for tag in ["1", "2"] {
            world.primary.ask(world.put(tag, 7)).await.is(201);
        }
        world.catch_up();
        let path = world.led(led()).await;
        // The same happens through others meanwhile, and the site hears of it.
        for tag in ["1", "2"] {
            world.primary.ask(world.put(tag, 7)).await.is(201);
        }
        world.primary.ask(delete("manifests/2".into())).await.is(202);
        world.primary.ask(world.put("2", 7)).await.is(201);
        world.catch_up();
        for name in &concerned {
            assert!(world.is_announced(name), "{case}: {name}");
        }
        let done = world.follow(led(), &path).await;
        assert!(done.status.is_success(), "{case}: {done:?}");
        // Not here yet, and seen all the same.
        let seen = match case {
            0 => (world.sees("manifests/1").await, Some(digest(1))),
            1 => (world.sees("manifests/2").await, Some(digest(2))),
            2 => (world.sees("manifests/1").await, None),
            3 => (world.sees("manifests/2").await, None),
            _ => (world.sees(&format!("blobs/{}", world.config)).await, None),
        };
        assert_eq!(seen.0, seen.1, "{case}");
        world.catch_up();
        for name in &concerned {
            assert!(!world.is_announced(name), "{case}: {name}");
        }
    }
}

#[tokio::test]
async fn what_is_streamed_through_is_awaited_as_well() {
    let world = World::start(PushMode::Proxy).await;
    // What a client sends in place of the site's announcement counts for nothing.
    world.site.ask(world.put("1", 1).with("outport-intent", "forged")).await.is(201);
    assert!(world.is_announced("1"));
    assert_eq!(world.sees("manifests/1").await, Some(digest_of(&world.manifest(1))));
    world.primary.ask(world.put("1", 2)).await.is(201);
    world.catch_up();
    assert!(!world.is_announced("1"), "by its own event");
    // A refusal ends it at once.
    let missing = ask("DELETE", format!("{APP}/manifests/none")).by(&world.token);
    world.site.ask(missing).await.refused(404, "MANIFEST_UNKNOWN");
    assert!(!world.is_announced("none"));
    world.primary.ask(world.put("1", 3).with("outport-intent", "forged")).await.refused(403, "DENIED");
}

#[tokio::test]
async fn a_refused_push_is_awaited_until_it_cannot_be_acknowledged_any_longer() {
    let world = World::start(PushMode::Redirect).await;
    let path = world.led(world.put("1", 1)).await;
    let broken = ask("PUT", path).with("content-type", OCI_MANIFEST).body("{");
    world.primary.ask(broken).await.refused(400, "MANIFEST_INVALID");
    world.catch_up();
    assert!(world.is_announced("1"));
    let intents = &world.site.inner.intents;
    assert!(!intents.is_open(
        &repo("team/app"),
        &Reference::Tag("1".parse().unwrap()),
        NOW.plus(INTENT_LIFE)
    ));
}

#[tokio::test]
async fn a_ticket_that_comes_twice_does_its_work_once() {
    let world = World::start(PushMode::Redirect).await;
    let path = world.led(world.put("1", 1)).await;
    let first = world.follow(world.put("1", 1), &path).await.is(201);
    world.primary.ask(world.put("1", 2)).await.is(201);
    let head = world.primary.inner.pull.applied();
    let again = world.follow(world.put("1", 1), &path).await.is(201);
    assert_eq!(again.header("outport-offset"), first.header("outport-offset"));
    assert_eq!(world.primary.inner.pull.applied(), head, "nothing happened");
    world.follow(world.put("1", 3), &path).await.refused(403, "DENIED");
    let delete = || ask("DELETE", format!("{APP}/manifests/1")).by(&world.token);
    let path = world.led(delete()).await;
    let first = world.follow(delete(), &path).await.is(202);
    let again = world.follow(delete(), &path).await.is(202);
    assert_eq!(again.header("outport-offset"), first.header("outport-offset"));
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_not_acknowledged() {
    let world = World::start(PushMode::Redirect).await;
    let path = world.led(world.put("1", 1)).await;
    // The primary of this test waits for nothing beyond the ticket's life, of which this is the end.
    world.primary.clock.set(Timestamp::from_micros(NOW.plus(TICKET_LIFE).as_micros() - 20_000));
    let pieces = world.manifest(1).into_bytes().into_iter().map(|byte| vec![byte].into());
    let slow = ask("PUT", path).with("content-type", OCI_MANIFEST).chunks(pieces.collect::<Vec<Bytes>>());
    let answer = world.primary.ask(slow.slowly(std::time::Duration::from_millis(10))).await;
    answer.refused(503, "UNAVAILABLE");
    world.primary.clock.set(NOW);
    assert_eq!(world.sees("manifests/1").await, None);
}
