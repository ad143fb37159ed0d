//! Pushes and token requests are led from a site to the primary: where to is configuration alone,
//! and what leads there is worth nothing elsewhere.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use outport::auth::{MethodClass, TicketSealer, TicketUse};
use outport_proto::{Digest, Timestamp, frame::SealKey};

use crate::support::{
    Cluster, Node, Options, USER,
    http::{Client, Response, get_plain},
    session::{OCI_MANIFEST, SERVICE, Session, absolute, bytes, finish, image, token_for, user_token},
};

const REPO: &str = "team/app";
const UPLOADS: &str = "/v2/team/app/blobs/uploads/";

/// A cluster that logs all it can; at the end its logs and pages are searched for secrets.
struct World {
    cluster: Cluster,
    secrets: Vec<String>,
}

impl World {
    fn start() -> Self {
        let cluster = Cluster::start(Options { log_filter: "debug,outport=trace", ..Options::default() });
        let basic = STANDARD.encode(format!("{USER}:{}", cluster.password));
        let secrets = vec![cluster.password.clone(), basic];
        Self { cluster, secrets }
    }

    fn site(&self) -> &Node {
        &self.cluster.sites[1]
    }

    /// A client of the site that may push.
    fn pusher(&mut self) -> Session {
        let session = Session::user(&self.cluster, self.site(), &[REPO]);
        self.secrets.push(session.authorization()["Bearer ".len()..].to_owned());
        session
    }

    fn assert_no_secret_shows(&self) {
        for node in self.cluster.nodes() {
            let log = node.log();
            let pages =
                ["/metrics", "/v1/status", "/v1/sites"].map(|page| get_plain(&node.admin(), page).unwrap().1);
            let pages = pages.join("\n");
            assert!(log.lines().count() > 5, "{}'s log is empty", node.name);
            for secret in &self.secrets {
                // A token's head and claims are no secret without its signature, and still have no place in a log.
                for part in secret.split('.').filter(|part| part.len() > 20) {
                    let line = log.lines().chain(pages.lines()).find(|line| line.contains(part));
                    assert_eq!(line, None, "{} shows a secret", node.name);
                }
            }
        }
    }
}

#[test]
fn where_a_redirect_leads_is_configuration_alone() {
    let mut world = World::start();
    let pusher = world.pusher();
    let home = format!("http://{}", world.cluster.primary.registry());
    let forged: [&[&str]; 8] = [
        &["Host: evil.example.com"],
        &["Host: evil.example.com:1", "X-Forwarded-Host: evil.example.com"],
        &["Host: a", "X-Forwarded-Host: evil.example.com", "X-Forwarded-Proto: https", "X-Forwarded-Port: 1"],
        &["Host: a", "Forwarded: host=evil.example.com;proto=https"],
        &["Host: a", "X-Original-URL: http://evil.example.com/", "X-Rewrite-URL: /evil"],
        &["Host: a", "X-Forwarded-Host: a\tLocation: http://evil.example.com/"],
        &["Host: evil.example.com@a"],
        &["Host: "],
    ];
    let raw = |node: &Node, request: String| -> Response {
        let mut connection = Client::plain().connect(&node.registry()).unwrap();
        connection.raw(request.as_bytes()).unwrap();
        connection.receive(false).unwrap()
    };
    let authorization = pusher.authorization();
    for headers in forged {
        let headers = headers.join("\r\n");
        let begin = format!(
            "POST {UPLOADS} HTTP/1.1\r\n{headers}\r\nAuthorization: {authorization}\r\nContent-Length: 0\r\n\r\n"
        );
        let led = raw(world.site(), begin.clone());
        if led.status != 400 {
            assert_eq!(led.status, 307, "{headers}: {}", led.text());
            assert!(led.header("location").unwrap().starts_with(&format!("{home}{UPLOADS}?")), "{headers}");
        }
        let begun = raw(&world.cluster.primary, begin);
        if begun.status != 400 {
            assert_eq!(begun.status, 202, "{headers}: {}", begun.text());
            assert!(begun.header("location").unwrap().starts_with(&format!("{home}{UPLOADS}")), "{headers}");
        }
        for node in world.cluster.nodes() {
            let ping = raw(node, format!("GET /v2/ HTTP/1.1\r\n{headers}\r\n\r\n"));
            if ping.status != 400 {
                assert_eq!(ping.status, 401);
                let challenge = ping.header("www-authenticate").unwrap();
                assert!(challenge.starts_with(&format!("Bearer realm=\"{home}/token\"")), "{challenge}");
            }
        }
    }
    // An absolute request target, and line breaks hidden in the query.
    let absolute_form = format!(
        "POST http://evil.example.com{UPLOADS} HTTP/1.1\r\nHost: evil.example.com\r\nAuthorization: {authorization}\r\nContent-Length: 0\r\n\r\n"
    );
    let led = raw(world.site(), absolute_form);
    assert!(led.status == 400 || led.header("location").unwrap().starts_with(&home), "{led:?}");
    for query in
        ["ns=%0d%0aLocation:%20http://evil.example.com/", "ns=a%0aSet-Cookie:x", "ns=%00", "ns=//evil"]
    {
        let led = pusher.once("POST", &format!("{UPLOADS}?{query}"), &[], b"");
        assert_eq!(led.status, 307, "{query}");
        assert!(led.header("location").unwrap().starts_with(&format!("{home}{UPLOADS}?")), "{query}");
        assert_eq!(
            (
                led.header("set-cookie"),
                led.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("location")).count()
            ),
            (None, 1)
        );
    }
    world.assert_no_secret_shows();
}

#[test]
fn a_ticket_is_good_for_its_request_alone() {
    let mut world = World::start();
    let pusher = world.pusher();
    let led = pusher.once("POST", UPLOADS, &[], b"");
    assert_eq!((led.status, led.header("cache-control")), (307, Some("no-store")));
    let location = led.header("location").unwrap().to_owned();
    let (primary, target) = absolute(&location).unwrap();
    let ticket = target.split_once("ticket=").unwrap().1.to_owned();
    world.secrets.push(ticket.clone());
    assert!(location.len() < 6 * 1024);
    for part in pusher.authorization()["Bearer ".len()..].split('.') {
        assert!(!location.contains(part) && !location.contains(&URL_SAFE_NO_PAD.encode(part)));
    }
    let client = Client::plain();
    let refused = |method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]| {
        let response = client.send(&primary, method, target, headers, body);
        assert_eq!(response.status, 403, "{method} {target}: {}", response.text());
        assert_eq!(response.code(), "DENIED");
        assert_eq!(response.header("www-authenticate"), None, "a bad ticket is never challenged");
        assert!(!response.text().contains("Bearer"));
    };
    // Tampered: any byte of it.
    for at in [0, 3, 8, 20, ticket.len() / 2, ticket.len() - 2] {
        let mut tampered = ticket.clone().into_bytes();
        tampered[at] = if tampered[at] == b'A' { b'B' } else { b'A' };
        let tampered = String::from_utf8(tampered).unwrap();
        refused("POST", &format!("{UPLOADS}?ticket={tampered}"), &[], b"");
    }
    for broken in ["", "x", "%00", &ticket[..ticket.len() / 2], &format!("{ticket}AAAA"), &"A".repeat(8000)] {
        refused("POST", &format!("{UPLOADS}?ticket={broken}"), &[], b"");
    }
    // Even with a header that would do.
    refused("POST", &format!("{UPLOADS}?ticket=x"), &[("Authorization", pusher.authorization())], b"");
    // Another repository, another kind of request, a mount.
    refused("POST", &format!("/v2/team/other/blobs/uploads/?ticket={ticket}"), &[], b"");
    let manifest = image(&[]);
    let put = [("Content-Type", OCI_MANIFEST)];
    refused("PUT", &format!("/v2/{REPO}/manifests/1?ticket={ticket}"), &put, &manifest);
    refused("DELETE", &format!("/v2/{REPO}/manifests/1?ticket={ticket}"), &[], b"");
    refused("GET", &format!("/token?service={SERVICE}&ticket={ticket}"), &[], b"");
    let digest = Digest::sha256(b"x");
    refused("POST", &format!("{UPLOADS}?mount={digest}&from=team/other&ticket={ticket}"), &[], b"");
    // It is not a way to read.
    let read = client.get(&primary, &format!("/v2/{REPO}/tags/list?ticket={ticket}"), &[]);
    assert_eq!(read.status, 401);
    // And it is good for what it was made for.
    let begun = client.send(&primary, "POST", &target, &[], b"");
    assert_eq!(begun.status, 202, "{}", begun.text());
    world.assert_no_secret_shows();
}

#[test]
fn tickets_that_no_site_would_make_are_refused() {
    let world = World::start();
    let primary = &world.cluster.primary;
    let mine = format!("Bearer {}", user_token(&world.cluster, &[REPO]));
    let foreign = format!("Bearer {}", user_token(&world.cluster, &["team/other"]));
    let now = Timestamp::from_secs(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
    let at = |seconds: i64| Timestamp::from_secs(now.as_secs().checked_add_signed(seconds).unwrap());
    let key = seal_key(primary, "mumbai");
    let unknown = SealKey { id: 4711, ..key.clone() };
    let guessed = SealKey { secret: [7; 32], ..key.clone() };
    let sealed = |site: &str, key: &SealKey, authorization: Option<&str>, now: Timestamp| {
        let sealer = TicketSealer::new(site.parse().unwrap());
        sealer.set_keys(std::slice::from_ref(key)).unwrap();
        let repository = Some(REPO.parse().unwrap());
        let usage = TicketUse { class: MethodClass::StartUpload, repository, mount_from: None };
        let ticket = sealer.seal(authorization, &usage, now).unwrap();
        Client::plain().send(&primary.registry(), "POST", &format!("{UPLOADS}?ticket={ticket}"), &[], b"")
    };
    assert_eq!(sealed("mumbai", &key, Some(&mine), now).status, 202, "the test's own tickets are good");
    for (why, response) in [
        ("expired", sealed("mumbai", &key, Some(&mine), at(-61))),
        ("of the future", sealed("mumbai", &key, Some(&mine), at(120))),
        ("another site's key", sealed("frankfurt", &key, Some(&mine), now)),
        ("an unknown key", sealed("mumbai", &unknown, Some(&mine), now)),
        ("a guessed key", sealed("mumbai", &guessed, Some(&mine), now)),
        ("no credentials", sealed("mumbai", &key, None, now)),
        ("credentials of another repository", sealed("mumbai", &key, Some(&foreign), now)),
        ("credentials that are none", sealed("mumbai", &key, Some("Bearer x.y.z"), now)),
        ("a password", sealed("mumbai", &key, Some("Basic ZGVtbzpkZW1v"), now)),
    ] {
        assert_eq!((response.status, response.code().as_str()), (403, "DENIED"), "{why}");
        assert_eq!(response.header("www-authenticate"), None, "{why}");
    }
    world.assert_no_secret_shows();
}

#[test]
fn a_token_for_another_repository_leads_nowhere() {
    let world = World::start();
    let other = Session::user(&world.cluster, world.site(), &["team/other"]);
    let reader = Session::anyone(&world.cluster, world.site(), &[REPO]);
    let digest = Digest::sha256(b"x");
    for session in [&other, &reader] {
        for node in world.cluster.nodes() {
            let session = session.at(node);
            for (method, target) in [
                ("POST", UPLOADS.to_owned()),
                ("PUT", format!("/v2/{REPO}/manifests/1")),
                ("DELETE", format!("/v2/{REPO}/manifests/1")),
                ("DELETE", format!("/v2/{REPO}/blobs/{digest}")),
            ] {
                let response = session.once(method, &target, &[("Content-Type", OCI_MANIFEST)], b"");
                assert!(matches!(response.status, 401 | 403), "{method} {target}: {}", response.text());
                assert_eq!(response.header("location"), None);
                let challenge = response.header("www-authenticate").unwrap_or_default();
                assert!(response.status == 403 || challenge.contains("insufficient_scope"), "{challenge}");
            }
        }
    }
}

#[test]
fn an_uploads_state_is_good_for_that_upload_alone() {
    let mut world = World::start();
    let pusher = world.pusher();
    let client = Client::plain();
    let [first, second] = [(), ()].map(|()| pusher.begin_upload(REPO));
    let (primary, first) = absolute(&first).unwrap();
    let (_, second) = absolute(&second).unwrap();
    let (path, state) = first.split_once('?').unwrap();
    let (other_path, _) = second.split_once('?').unwrap();
    world.secrets.push(state.split_once('=').unwrap().1.to_owned());
    let foreign_path = path.replace(REPO, "team/other");
    let mut tampered = state.to_owned().into_bytes();
    let last = tampered.len() - 5;
    tampered[last] ^= 1;
    let tampered = String::from_utf8(tampered).unwrap();
    for (target, why) in [
        (format!("{other_path}?{state}"), "another upload"),
        (format!("{foreign_path}?{state}"), "another repository"),
        (format!("{path}?{tampered}"), "tampered"),
        (format!("{path}?state="), "empty"),
    ] {
        for method in ["PATCH", "PUT", "GET", "DELETE"] {
            let target =
                if method == "PUT" { finish(&target, &Digest::sha256(b"x")) } else { target.clone() };
            let response = client.send(&primary, method, &target, &[], b"");
            assert_eq!(
                (response.status, response.header("www-authenticate")),
                (403, None),
                "{method}: {why}"
            );
        }
    }
    let naked = client.send(&primary, "PATCH", path, &[], b"x");
    assert_eq!(naked.status, 401);
    // Untouched by all that; parameters around the state do not matter.
    let target = format!("{path}?ns=registry.example.com&{state}&x=%2F");
    let response = client.send(&primary, "PATCH", &target, &[], b"some");
    assert_eq!((response.status, response.header("range")), (202, Some("0-3")), "{}", response.text());
    world.assert_no_secret_shows();
}

#[test]
fn an_upload_that_reaches_a_site_is_streamed_through() {
    let mut world = World::start();
    let pusher = world.pusher();
    let site = world.site();
    let content = bytes(300_000, 40);
    let (_, upload) = absolute(&pusher.begin_upload(REPO)).unwrap();
    let client = Client::plain();
    let address = site.registry();
    let response =
        client.send(&address, "PATCH", &upload, &[("Content-Range", "0-99999")], &content[..100_000]);
    assert_eq!((response.status, response.header("range")), (202, Some("0-99999")), "{}", response.text());
    let next = response.header("location").unwrap();
    assert!(next.starts_with(&format!("http://{}", world.cluster.primary.registry())), "{next}");
    let status = client.get(&address, &upload, &[]);
    assert_eq!((status.status, status.header("range")), (204, Some("0-99999")));
    let digest = Digest::sha256(&content);
    let response = client.send(&address, "PUT", &finish(&upload, &digest), &[], &content[100_000..]);
    assert_eq!(response.status, 201, "{}", response.text());
    assert_eq!(site.metric("outport_proxied_push_bytes_total", ""), 300_000.0);
    assert_eq!(pusher.get(&format!("/v2/{REPO}/blobs/{digest}")).body, content);

    // A whole blob in one POST, and a manifest from a client that cannot send it twice.
    let whole = pusher.once("POST", &format!("{UPLOADS}?digest={}", Digest::sha256(b"whole")), &[], b"whole");
    assert_eq!(whole.status, 201, "{}", whole.text());
    pusher.push_image(REPO, "1", &[b"whole"]);
    let put = [("Content-Type", OCI_MANIFEST), ("User-Agent", "regclient/regctl (v0.8.0)")];
    let manifest = image(&[b"whole"]);
    assert_eq!(pusher.once("PUT", &format!("/v2/{REPO}/manifests/2"), &put, &manifest).status, 201);
    assert_eq!(pusher.get(&format!("/v2/{REPO}/manifests/2")).body, manifest);
    world.assert_no_secret_shows();
}

#[test]
fn a_token_too_large_for_a_url_is_streamed_through() {
    let world = World::start();
    let names: Vec<String> =
        (0..60).map(|n| format!("a-rather-long-repository-name/number-{n:04}")).collect();
    let mut repos: Vec<&str> = names.iter().map(String::as_str).collect();
    repos.push(REPO);
    let large = user_token(&world.cluster, &repos);
    assert!(large.len() > 6 * 1024, "{}", large.len());
    let pusher = Session::with_token(&world.site().registry(), &large);
    let begun = pusher.once("POST", UPLOADS, &[], b"");
    assert_eq!(begun.status, 202, "{}", begun.text());
    let image = pusher.push_image(REPO, "large", &[&bytes(1000, 41)]);
    assert_eq!(pusher.get(&format!("/v2/{REPO}/manifests/large")).body, image.manifest);
}

#[test]
fn a_token_request_takes_its_credentials_along_sealed() {
    let world = World::start();
    let (site, client) = (world.site(), Client::plain());
    let user = (USER, world.cluster.password.as_str());
    let basic = format!("Basic {}", STANDARD.encode(format!("{}:{}", user.0, user.1)));
    let target = format!("/token?service={SERVICE}&scope=repository:{REPO}:pull,push");
    let led = client.get(&site.registry(), &target, &[("Authorization", &basic)]);
    assert_eq!(led.status, 307, "{}", led.text());
    let location = led.header("location").unwrap();
    assert!(!location.contains(user.1) && !location.contains(&basic["Basic ".len()..]), "{location}");
    let (primary, sealed) = absolute(location).unwrap();
    assert_eq!(primary, world.cluster.primary.registry());
    let answer = client.get(&primary, &sealed, &[]);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let token = answer.json()["token"].as_str().unwrap().to_owned();
    Session::with_token(&site.registry(), &token).push_image(REPO, "1", &[b"sealed"]);

    // Nobody stays nobody, and a wrong password is wrong there as well.
    let led = client.get(&site.registry(), &target, &[]);
    let (_, anonymous) = absolute(led.header("location").unwrap()).unwrap();
    let token = client.get(&primary, &anonymous, &[]).json()["token"].as_str().unwrap().to_owned();
    let push = Session::with_token(&site.registry(), &token).once("POST", UPLOADS, &[], b"");
    assert_eq!(push.status, 401);
    let wrong = format!("Basic {}", STANDARD.encode(format!("{USER}:wrong")));
    let led = client.get(&site.registry(), &target, &[("Authorization", &wrong)]);
    let (_, sealed) = absolute(led.header("location").unwrap()).unwrap();
    assert_eq!(client.get(&primary, &sealed, &[]).status, 401);

    // OAuth2 clients post their credentials in a form, which a 307 keeps.
    let form = format!(
        "grant_type=password&client_id=test&service={SERVICE}&scope=repository:{REPO}:pull,push&username={}&password={}",
        user.0, user.1
    );
    let headers = [("Content-Type", "application/x-www-form-urlencoded")];
    let led = client.send(&site.registry(), "POST", "/token", &headers, form.as_bytes());
    assert_eq!(led.status, 307, "{}", led.text());
    let (_, there) = absolute(led.header("location").unwrap()).unwrap();
    let answer = client.send(&primary, "POST", &there, &headers, form.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.json()["access_token"].is_string());
    assert_eq!(site.metric("outport_redirects_total", "kind=\"token\""), 4.0);
    assert!(!token_for(&primary, SERVICE, &[REPO], "pull,push", Some(user)).is_empty());
    world.assert_no_secret_shows();
}

/// The newest key of a site, as the primary keeps it.
fn seal_key(primary: &Node, site: &str) -> SealKey {
    let text = fs::read_to_string(primary.data().join("keys/seal-keys.json")).unwrap();
    let keys: serde_json::Value = serde_json::from_str(&text).unwrap();
    let key = &keys["sites"][site][0];
    let secret = URL_SAFE_NO_PAD.decode(key["secret"].as_str().unwrap()).unwrap();
    SealKey { id: key["id"].as_u64().unwrap() as u32, secret: secret.try_into().unwrap() }
}
