use outport_proto::oci::media_type::OCI_MANIFEST;

use super::*;
use crate::auth::ticket::TICKET_LIFE_MAX;

struct Leading {
    primary: Primary,
    site: Secondary,
    token: String,
}

impl Leading {
    async fn start(mode: PushMode) -> Self {
        let primary = Primary::start().await;
        let site = primary.secondary(mode);
        let token = primary.token(&["team/app"], Actions::ALL);
        Self { primary, site, token }
    }

    /// Asks the site, and returns where it redirects to: path and query at the primary.
    async fn led(&self, ask: Ask) -> String {
        let answer = self.site.ask(ask).await.is(307);
        assert_eq!(answer.header("cache-control"), "no-store");
        self.primary.path_of(answer.location())
    }

    fn redirects(&self, kind: RedirectKind) -> u64 {
        self.site.api.metrics.redirects(kind)
    }
}

#[tokio::test]
async fn a_push_goes_straight_to_the_primary() {
    let world = Leading::start(PushMode::Redirect).await;
    let digest = Digest::sha256(b"layer");
    let path = world.led(ask("POST", "/v2/team/app/blobs/uploads/?ns=x").by(&world.token)).await;
    assert!(path.starts_with("/v2/team/app/blobs/uploads/?ns=x&ticket="), "{path}");
    // The client has lost its Authorization on the way.
    let started = world.primary.ask(ask("POST", path)).await.is(202);
    let upload = world.primary.path_of(started.location());
    world.primary.ask(ask("PUT", format!("{upload}&digest={digest}")).body("layer")).await.is(201);
    let manifest = image(&digest, "");
    let put = |uri: &str| ask("PUT", uri).with("content-type", OCI_MANIFEST).body(manifest.clone());
    let path = world.led(put("/v2/team/app/manifests/1").by(&world.token)).await;
    world.primary.ask(put(&path)).await.is(201);
    // The events are not here yet, and still nobody is told that what was pushed does not exist.
    let get = ask("GET", "/v2/team/app/manifests/1").by(&world.token);
    assert_eq!(world.site.ask(get).await.is(200).body, manifest);
    let path = world.led(ask("DELETE", "/v2/team/app/manifests/1").by(&world.token)).await;
    world.primary.ask(ask("DELETE", path)).await.is(202);
    let path = world.led(ask("DELETE", format!("/v2/team/app/blobs/{digest}")).by(&world.token)).await;
    world.primary.ask(ask("DELETE", path)).await.is(202);
    assert_eq!(world.site.api.metrics.proxied_bytes(), 0);
    assert_eq!(world.redirects(RedirectKind::Upload), 1);
    assert_eq!(world.redirects(RedirectKind::Manifest), 1);
    assert_eq!(world.redirects(RedirectKind::Delete), 2);
}

#[tokio::test]
async fn a_mount_carries_both_repositories() {
    let world = Leading::start(PushMode::Redirect).await;
    let both = world.primary.token(&["team/app", "base"], Actions::ALL);
    let digest = push_blob(&world.primary, &both, "base", b"layer").await;
    let mount = format!("/v2/team/app/blobs/uploads/?from=base&mount={digest}");
    world.site.ask(ask("POST", &mount).by(&world.token)).await.refused(401, "UNAUTHORIZED");
    let path = world.led(ask("POST", &mount).by(&both)).await;
    world.primary.ask(ask("POST", path.replace("from=base", "from=other"))).await.refused(403, "DENIED");
    world.primary.ask(ask("POST", &path)).await.is(201);
    assert_eq!(world.redirects(RedirectKind::Mount), 1);
}

#[tokio::test]
async fn tickets_are_good_for_one_kind_of_request_and_a_minute() {
    let world = Leading::start(PushMode::Redirect).await;
    let path = world.led(ask("POST", "/v2/team/app/blobs/uploads/").by(&world.token)).await;
    let (_, ticket) = path.split_once("ticket=").unwrap();
    assert!(!ticket.contains(&world.token["Bearer ".len()..]));
    let other = primary_url("/v2/team/other/blobs/uploads/", ticket);
    let put = primary_url("/v2/team/app/manifests/1", ticket);
    let broken = primary_url("/v2/team/app/blobs/uploads/", &ticket[..ticket.len() - 2]);
    let empty = primary_url("/v2/team/app/blobs/uploads/", "");
    for refused in [ask("POST", other), ask("PUT", put), ask("POST", broken), ask("POST", empty)] {
        // Not even a good token beside it helps: the ticket wins.
        let answer = world.primary.ask(refused.by(&world.token)).await;
        answer.refused(403, "DENIED");
        assert!(!answer.has("www-authenticate"));
    }
    world.primary.ask(ask("POST", &path).by("Bearer nonsense")).await.is(202);
    world.primary.clock.set(NOW.plus(TICKET_LIFE_MAX));
    world.primary.ask(ask("POST", &path)).await.refused(403, "DENIED");
}

fn primary_url(path: &str, ticket: &str) -> String {
    format!("{path}?ticket={ticket}")
}

#[tokio::test]
async fn nobody_is_redirected_where_a_request_says() {
    let world = Leading::start(PushMode::Redirect).await;
    let forged = ask("POST", "/v2/team/app/blobs/uploads/?ticket=forged")
        .by(&world.token)
        .with("host", "evil.example.com")
        .with("x-forwarded-host", "evil.example.com")
        .with("x-forwarded-proto", "gopher")
        .with("forwarded", "host=evil.example.com");
    let path = world.led(forged).await;
    assert!(!path.contains("evil") && !path.contains("forged"), "{path}");
    let absolute = ask("POST", "http://evil.example.com/v2/team/app/blobs/uploads/").by(&world.token);
    assert!(!world.led(absolute).await.contains("evil"));
}

#[tokio::test]
async fn who_may_not_push_is_not_redirected() {
    let world = Leading::start(PushMode::Redirect).await;
    let puller = world.primary.token(&["team/app"], Actions::PULL);
    for (method, path) in [
        ("POST", "/v2/team/app/blobs/uploads/"),
        ("PUT", "/v2/team/app/manifests/1"),
        ("DELETE", "/v2/team/app/manifests/1"),
    ] {
        world.site.ask(ask(method, path)).await.refused(401, "UNAUTHORIZED");
        world.site.ask(ask(method, path).by(&puller)).await.refused(401, "UNAUTHORIZED");
    }
    assert_eq!(world.redirects(RedirectKind::Upload), 0);
}

#[tokio::test]
async fn what_must_not_meet_a_redirect_is_streamed_through() {
    let world = Leading::start(PushMode::Redirect).await;
    let digest = Digest::sha256(b"layer");
    let whole = format!("/v2/team/app/blobs/uploads/?digest={digest}");
    world.site.ask(ask("POST", &whole).by(&world.token).body("layer")).await.is(201);
    assert_eq!(world.site.api.metrics.proxied_bytes(), 5);
    world.site.ask(ask("POST", &whole).by(&world.token).chunks(["lay".into(), "er".into()])).await.is(201);

    let path = world.led(ask("POST", "/v2/team/app/blobs/uploads/").by(&world.token)).await;
    let started = world.primary.ask(ask("POST", path)).await.is(202);
    let upload = world.primary.path_of(started.location());
    let patched = world.site.ask(ask("PATCH", &upload).with("content-range", "0-1").body("la")).await.is(202);
    assert_eq!(patched.header("range"), "0-1");
    assert!(patched.location().starts_with(&world.primary.url));
    let status = world.site.ask(ask("GET", &upload)).await.is(204);
    assert_eq!(status.header("range"), "0-1");
    world.site.ask(ask("PUT", format!("{upload}&digest={digest}")).body("yer")).await.is(201);
    world.site.ask(ask("DELETE", &upload)).await.refused(404, "BLOB_UPLOAD_UNKNOWN");

    let put = || {
        let put = ask("PUT", "/v2/team/app/manifests/1").by(&world.token).with("content-type", OCI_MANIFEST);
        put.body(image(&digest, ""))
    };
    world.site.ask(put().with("user-agent", "regclient/regctl (v0.8)")).await.is(201);
    let names: Vec<String> =
        (0..60).map(|number| format!("a-rather-long-repository-name/number-{number:04}")).collect();
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.push("team/app");
    let large = world.primary.token(&names, Actions::ALL);
    assert!(large.len() > 6 * 1024);
    world.site.ask(ask("POST", "/v2/team/app/blobs/uploads/").by(&large)).await.is(202);
    assert_eq!(world.redirects(RedirectKind::Proxied), 8);
}

#[tokio::test]
async fn in_proxy_mode_everything_is_streamed_through() {
    let world = Leading::start(PushMode::Proxy).await;
    let digest = Digest::sha256(b"layer");
    let started = world.site.ask(ask("POST", "/v2/team/app/blobs/uploads/").by(&world.token)).await.is(202);
    // A client that cannot reach the primary stays at the host it asked.
    let upload = started.location();
    assert!(upload.starts_with("/v2/team/app/blobs/uploads/"), "{upload}");
    world.site.ask(ask("PUT", format!("{upload}&digest={digest}")).body("layer")).await.is(201);
    let put = ask("PUT", "/v2/team/app/manifests/1").by(&world.token).with("content-type", OCI_MANIFEST);
    world.site.ask(put.body(image(&digest, ""))).await.is(201);
    world.site.ask(ask("GET", "/v2/team/app/manifests/1").by(&world.token)).await.is(200);
    world.site.ask(ask("DELETE", "/v2/team/app/manifests/1").by(&world.token)).await.is(202);
}

#[tokio::test]
async fn a_layer_may_take_longer_on_its_way_than_the_primary_may_be_silent() {
    let mut world = Leading::start(PushMode::Proxy).await;
    let Role::Secondary(redirects) = &mut Arc::get_mut(&mut world.site.api).unwrap().role else { panic!() };
    redirects.proxy.answer_timeout = std::time::Duration::from_millis(400);
    let layer = vec![b'x'; 8];
    let digest = Digest::sha256(&layer);
    let whole = format!("/v2/team/app/blobs/uploads/?digest={digest}");
    let slow = ask("POST", whole).by(&world.token).chunks(layer.iter().map(|byte| vec![*byte].into()));
    world.site.ask(slow.slowly(std::time::Duration::from_millis(100))).await.is(201);
}

#[tokio::test]
async fn without_the_primary_a_push_is_told_to_come_back() {
    let mut world = Leading::start(PushMode::Proxy).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    Arc::get_mut(&mut world.site.api).unwrap().addresses = addresses(&format!("http://{closed}"));
    let answer = world.site.ask(ask("POST", "/v2/team/app/blobs/uploads/").by(&world.token)).await;
    answer.refused(503, "UNAVAILABLE");
    assert!(answer.has("retry-after"));
}

#[tokio::test]
async fn a_token_request_takes_its_password_along_sealed() {
    let world = Leading::start(PushMode::Redirect).await;
    let query = format!("service={SERVICE}&scope=repository%3Ateam%2Fapp%3Apull%2Cpush");
    let get = || ask("GET", format!("/token?{query}"));
    let sealed = world.led(get().by(&basic("demo", "s3cret"))).await;
    assert!(!sealed.contains("s3cret"));
    let token = async |path: String| {
        let token =
            world.primary.ask(ask("GET", path)).await.is(200).json()["token"].as_str().unwrap().to_owned();
        format!("Bearer {token}")
    };
    let start = |token: String| ask("POST", "/v2/team/app/blobs/uploads/").by(&token);
    world.primary.ask(start(token(sealed.clone()).await)).await.is(202);
    world.primary.ask(start(token(world.led(get()).await).await)).await.is(401);
    let form = |uri: &str| {
        let form = format!("grant_type=password&client_id=x&username=demo&password=s3cret&{query}");
        ask("POST", uri).with("content-type", "application/x-www-form-urlencoded").body(form)
    };
    let path = world.led(form("/token")).await;
    world.primary.ask(form(&path)).await.is(200);
    world.primary.ask(ask("GET", sealed.replace("ticket=A", "ticket=B"))).await.refused(403, "DENIED");
    assert_eq!(world.redirects(RedirectKind::Token), 3);
}
