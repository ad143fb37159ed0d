//! Clients that reach their site and nothing else: tokens and pushes go through it.

use outport_proto::Digest;

use crate::support::{
    Cluster, Node, Options, USER,
    http::{Client, Response, token},
    session::{SERVICE, Session, bytes, finish},
};

const REPO: &str = "team/app";

/// A site whose clients are behind a firewall.
fn cluster() -> Cluster {
    let site_toml = "[push]\nmode = 'proxy'\n".to_owned();
    let mut cluster = Cluster::start(Options { sites: vec!["mumbai"], site_toml, ..Options::default() });
    let site = &mut cluster.sites[0];
    site.stop();
    let own = format!("http://{}", site.registry());
    site.environment = vec![("OUTPORT_REGISTRY__PUBLIC_URL", own.into())];
    site.start();
    site.wait_until(|status| status["state"] == "streaming");
    cluster
}

/// Asserts that nothing in an answer leads elsewhere.
fn assert_stays(response: &Response, site: &Node) {
    let leads = ["location", "www-authenticate", "link"];
    for value in leads.iter().filter_map(|name| response.header(name)) {
        let elsewhere =
            value.match_indices("://").filter(|(at, _)| !value[*at + 3..].starts_with(&site.registry()));
        assert_eq!(elsewhere.count(), 0, "{value}");
    }
}

#[test]
fn a_client_that_reaches_its_site_alone_gets_tokens_and_pushes_there() {
    let cluster = cluster();
    let site = &cluster.sites[0];
    let (http, address) = (Client::plain(), site.registry());
    let user = (USER, cluster.password.as_str());
    let scopes = ["repository:team/app:pull,push"];

    // Where passwords go is not for a request to say.
    for forged in
        [&[][..], &[("X-Forwarded-Host", "evil.example.com"), ("Forwarded", "host=evil.example.com")]]
    {
        let ping = http.get(&address, "/v2/", forged);
        let challenge = format!("Bearer realm=\"http://{address}/token\",service=\"{SERVICE}\"");
        assert_eq!((ping.status, ping.header("www-authenticate")), (401, Some(challenge.as_str())));
    }
    let push = http.send(&address, "POST", &format!("/v2/{REPO}/blobs/uploads/"), &[], b"");
    assert_eq!(push.status, 401, "{}", push.text());
    assert_stays(&push, site);

    let pusher = Session::with_token(&address, &token(&http, &address, SERVICE, &scopes, Some(user)));
    let form = format!(
        "grant_type=password&service={SERVICE}&client_id=test&scope={}&username={USER}&password={}",
        scopes[0], user.1
    );
    let form_type = [("Content-Type", "application/x-www-form-urlencoded")];
    let posted = http.send(&address, "POST", "/token", &form_type, form.as_bytes());
    assert_eq!(posted.status, 200, "{}", posted.text());
    assert!(posted.json()["access_token"].as_str().is_some(), "{}", posted.text());
    // As the primary says it.
    let wrong = [("Authorization", "Basic ZGVtbzp3cm9uZw==")];
    let target = format!("/token?service={SERVICE}&scope={}", scopes[0]);
    let refused = http.get(&address, &target, &wrong);
    assert_eq!(refused.status, 401, "{}", refused.text());
    assert_stays(&refused, site);

    let layer = bytes(50_000, 1);
    let begun = pusher.once("POST", &format!("/v2/{REPO}/blobs/uploads/"), &[], b"");
    assert_eq!(begun.status, 202, "{}", begun.text());
    assert_stays(&begun, site);
    let location = finish(begun.header("location").unwrap(), &Digest::sha256(&layer));
    let ended = pusher.once("PUT", &location, &[], &layer);
    assert_eq!(ended.status, 201, "{}", ended.text());
    assert_stays(&ended, site);
    let pushed = pusher.push_image(REPO, "1", &[&layer]);
    let puller =
        Session::with_token(&address, &token(&http, &address, SERVICE, &["repository:team/app:pull"], None));
    let got = puller.get(&format!("/v2/{REPO}/manifests/1"));
    assert_eq!((got.status, &got.body), (200, &pushed.manifest));
    let redirected = |kind: &str| site.metric("outport_redirects_total", &format!("kind=\"{kind}\""));
    assert_eq!([redirected("token"), redirected("upload"), redirected("manifest")], [0.0; 3]);
}
