//! Uploads on their way through.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use outport_proto::Digest;

use crate::{
    agreement::direct,
    liar::{Liar, Reply},
    support::{
        Cluster, Options,
        http::Client,
        path,
        registry::Lets,
        session::{Session, absolute, finish},
        token_service::{ISSUER, NamesKey, SERVICE, TokenService, User},
        wait_for,
    },
};

const REPO: &str = "team/app";

fn started() -> Cluster {
    Cluster::start(Options { registry: Some(Lets::Users), sites: vec!["mumbai"], ..Options::default() })
}

#[test]
fn a_body_is_asked_for_once_the_registry_takes_it() {
    let cluster = started();
    let session = Session::user(&cluster, &cluster.primary, &[REPO]);
    let content = b"sent once it was asked for";
    let digest = Digest::sha256(content);
    let (address, target) = absolute(&finish(&session.begin_upload(REPO), &digest)).unwrap();
    let begin = |target: &str| {
        let mut connection = Client::plain().connect(&address).unwrap();
        let head = format!(
            "PUT {target} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
            content.len()
        );
        connection.raw(head.as_bytes()).unwrap();
        connection
    };
    let mut connection = begin(&target);
    let mut line = [0; 25];
    let mut read = 0;
    while read < line.len() {
        read += connection.read(&mut line[read..]).unwrap();
    }
    assert_eq!(&line, b"HTTP/1.1 100 Continue\r\n\r\n");
    connection.raw(content).unwrap();
    let put = connection.receive(false).unwrap();
    assert_eq!(put.status, 201, "{}", put.text());
    assert_eq!(session.get(&format!("/v2/{REPO}/blobs/{digest}")).body, content);

    // One that is refused is not.
    let forged = target.replace("state=", "state=x");
    let refused = begin(&forged).receive_head().unwrap();
    assert_eq!(refused.status, 403);
}

#[test]
fn an_upload_goes_on_after_the_gateway_was_killed() {
    let mut cluster = started();
    let session = Session::user(&cluster, &cluster.primary, &[REPO]);
    let content = vec![7; 3 * 1024 * 1024];
    let (first, second) = content.split_at(1024 * 1024);
    let location = session.begin_upload(REPO);
    let range = format!("0-{}", first.len() - 1);
    let patched = session.send("PATCH", &location, &[("Content-Range", &range)], first);
    assert_eq!(patched.status, 202, "{}", patched.text());
    assert_eq!(patched.header("range"), Some(range.as_str()));
    let location = patched.header("location").unwrap().to_owned();
    cluster.primary.kill();
    cluster.primary.start();
    let status = session.send("GET", &location, &[], b"");
    assert_eq!((status.status, status.header("range")), (204, Some(range.as_str())), "{}", status.text());
    let digest = Digest::sha256(&content);
    let put = session.send("PUT", &finish(&location, &digest), &[], second);
    assert_eq!(put.status, 201, "{}", put.text());
    // A client that did not hear of that asks again.
    let again = session.send("PUT", &finish(&location, &digest), &[], b"");
    assert_eq!(again.status, 201, "{}", again.text());
    // Under a location that leads to the primary alone.
    let theirs = cluster.registry.as_ref().unwrap().address();
    assert!(!location.contains(&theirs) && location.contains(&cluster.primary.registry()), "{location}");
}

#[test]
fn a_registry_that_takes_nothing_is_sent_no_more_than_it_takes() {
    let cluster = started();
    let session = Session::user(&cluster, &cluster.primary, &[REPO]);
    let (address, path) = absolute(&session.begin_upload(REPO)).unwrap();
    crate::support::signal(cluster.registry.as_ref().unwrap().pid(), "STOP");
    let mut connection = Client::plain().connect(&address).unwrap();
    let head = format!("PATCH {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n", 1_u64 << 30);
    connection.raw(head.as_bytes()).unwrap();
    let count = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&count);
    let sent = std::thread::spawn(move || {
        let piece = vec![0; 1024 * 1024];
        while counted.load(Relaxed) < 512 && connection.raw(&piece).is_ok() {
            counted.fetch_add(1, Relaxed);
        }
    });
    // Buffers on the way take in what they hold.
    let (mut last, mut looks) = (0, 0);
    wait_for("nothing to be taken any more", || {
        let now = count.load(Relaxed);
        looks = if now == last && now > 0 { looks + 1 } else { 0 };
        last = now;
        (looks >= 100).then_some(())
    });
    assert!(!sent.is_finished(), "nobody held it up");
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.primary.pid())).unwrap();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
    assert!(kib.unwrap() < 128 * 1024, "{kib:?} KiB");
    crate::support::signal(cluster.registry.as_ref().unwrap().pid(), "CONT");
    sent.join().unwrap();
    assert_eq!(count.load(Relaxed), 512, "and then it goes on");
    assert_eq!(direct(&cluster).get("/v2/").status, 401);
}

/// A registry that believes one token of a caller's, the gateway's, and nothing else.
fn believing_one(token: Arc<OnceLock<String>>) -> Liar {
    let realm = Arc::new(OnceLock::<String>::new());
    let own = Arc::clone(&realm);
    let liar = Liar::open(move |asked| {
        let path = asked.path.split('?').next().unwrap();
        if path == "/token" {
            return Reply::ok(&[], br#"{"token":"gateway"}"#);
        }
        // As one that looks at nothing else would: the caller's token has ended by its second request.
        let is_begin = asked.method == "POST" && asked.authorization.as_ref() == token.get();
        if !is_begin && asked.authorization.as_deref() != Some("Bearer gateway") {
            let challenge = format!("Bearer realm=\"{}\",service=\"x\"", own.get().unwrap());
            return Reply::Whole(401, vec![("WWW-Authenticate", challenge)], b"{}".to_vec());
        }
        let upload = || {
            vec![("Location", format!("/v2/{REPO}/blobs/uploads/1?_state=a")), ("Range", "0-6".to_owned())]
        };
        match asked.method.as_str() {
            "POST" | "PATCH" => Reply::Whole(202, upload(), Vec::new()),
            "PUT" => Reply::Whole(201, Vec::new(), Vec::new()),
            "HEAD" => Reply::ok(&[], b"content"),
            _ => Reply::unknown("NAME_UNKNOWN"),
        }
    });
    realm.set(format!("{}/token", liar.url())).unwrap();
    liar
}

#[test]
fn an_upload_outlives_its_token_where_the_operator_says_so() {
    let service = TokenService::start(vec![User {
        name: "ana".to_owned(),
        password: "s3cret".to_owned(),
        names_key: NamesKey::Libtrust,
        may: |_, _| true,
    }]);
    let files = tempfile::tempdir().unwrap();
    let (bundle, password) = (files.path().join("bundle"), files.path().join("password"));
    service.write_bundle(&bundle);
    std::fs::write(&password, "secret").unwrap();
    for (finish_expired, patched, put) in [(false, 401, 401), (true, 202, 201)] {
        let token = Arc::new(OnceLock::new());
        let liar = believing_one(Arc::clone(&token));
        let cluster = Cluster::start(Options {
            sites: vec![],
            upstream: Some(liar.url()),
            gateway_toml: format!(
                "username = 'gateway'\npassword_file = '{}'\ntoken_realm = '{}/token'\n\
                 finish_expired_uploads = {finish_expired}\n",
                path(&password),
                liar.url()
            ),
            auth_toml: Some(format!(
                "[auth]\nmode = 'token'\n[auth.token]\nrealm = '{}'\nservice = '{SERVICE}'\n\
                 issuer = '{ISSUER}'\ncertificates = '{}'\n",
                service.realm(),
                path(&bundle)
            )),
            ..Options::default()
        });
        service.live_for(3);
        let authorization = service.authorization_for("ana", &[format!("repository:{REPO}:pull,push")]);
        token.set(authorization.clone()).unwrap();
        let session = Session::with_token(&cluster.primary.registry(), &authorization["Bearer ".len()..]);
        let location = session.begin_upload(REPO);
        wait_for("the token to end", || (session.get("/v2/").status == 401).then_some(()));
        let response = session.send("PATCH", &location, &[], b"content");
        assert_eq!(response.status, patched, "{}", response.text());
        let location = response.header("location").map_or(location, str::to_owned);
        let digest = Digest::sha256(b"content");
        let response = session.send("PUT", &finish(&location, &digest), &[], b"");
        assert_eq!(response.status, put, "{}", response.text());
        // The gateway's own credentials open nothing else.
        let other = location.replace(REPO, "team/other");
        assert_eq!(session.send("PUT", &finish(&other, &digest), &[], b"").status, 403);
    }
}
