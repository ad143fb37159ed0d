//! Pushes that go around the gateway, and notifications that do not all come.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    agreement::{direct, report, tags, wait_applied, wait_backfilled},
    support::{
        Cluster, Options,
        http::{Client, get_plain},
        registry::Lets,
        session::Session,
        wait_for,
    },
};

const REPO: &str = "team/app";
/// Between two walks.
const INTERVAL: Duration = Duration::from_secs(10);
const SECRET: &str = "told by the registry";

/// Stands between registry and gateway, and is as bad as a network can be: of the notifications of tags
/// it drops some, sends some twice, and holds some back.
struct BadPost {
    url: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    gateway: Mutex<Option<String>>,
    /// Tags told of; a notification that is not taken comes again.
    seen: Mutex<BTreeSet<u64>>,
    dropped: AtomicU64,
    held: Mutex<Vec<Vec<u8>>>,
    is_good: AtomicBool,
}

impl BadPost {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1/notifications", listener.local_addr().unwrap());
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || state.serve(stream));
            }
        });
        Self { url, state }
    }

    fn yaml(&self) -> String {
        let url = &self.url;
        format!(
            "notifications:\n  endpoints:\n    - name: outport\n      url: {url}\n      headers:\n        \
             Authorization: ['Bearer {SECRET}']\n      timeout: 5s\n      threshold: 3\n      backoff: 100ms\n"
        )
    }

    fn connect(&self, cluster: &Cluster) {
        *self.state.gateway.lock().unwrap() = Some(cluster.primary.admin());
    }
}

impl State {
    fn serve(&self, mut stream: TcpStream) {
        while let Some(body) = receive(&mut stream) {
            let status = self.pass(body);
            let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n");
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn pass(&self, body: Vec<u8>) -> u16 {
        let envelope: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let event = &envelope["events"][0];
        let tag = event["target"]["tag"].as_str().filter(|_| event["action"] == "push");
        let number = tag.and_then(|tag| tag.strip_prefix('v')?.parse::<u64>().ok());
        let Some(number) = number.filter(|_| !self.is_good.load(Relaxed)) else { return self.send(&body) };
        let status = match number % 10 {
            1 | 6 => {
                self.dropped.fetch_add(1, Relaxed);
                200
            }
            3 => {
                self.send(&body);
                self.send(&body)
            }
            8 => {
                self.held.lock().unwrap().push(body);
                200
            }
            _ => self.send(&body),
        };
        if status == 200 {
            self.seen.lock().unwrap().insert(number);
        }
        status
    }

    fn send(&self, body: &[u8]) -> u16 {
        let Some(gateway) = self.gateway.lock().unwrap().clone() else { return 503 };
        let authorization = format!("Bearer {SECRET}");
        let Ok(mut connection) = Client::plain().connect(&gateway) else { return 503 };
        let headers = [("Authorization", authorization.as_str()), ("Content-Type", "application/json")];
        connection.send("POST", "/v1/notifications", &headers, body).map_or(503, |response| response.status)
    }

    /// Those that were held back come now, in another order.
    fn release(&self) {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        for body in held.iter().rev() {
            assert_eq!(self.send(body), 200);
        }
    }
}

/// The body of a request with a Content-Length.
fn receive(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"))?.trim().parse().ok()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(body)
}

fn started(post: &BadPost) -> (Cluster, tempfile::TempDir) {
    walked_every(3600, post)
}

/// A gateway that walks its registry every so many seconds.
fn walked_every(seconds: u64, post: &BadPost) -> (Cluster, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, SECRET).unwrap();
    let gateway_toml = format!(
        "[[gateway.notifications]]\nname = 'registry'\nformat = 'docker'\nsecret_file = '{}'\n\n\
         [gateway.reconcile]\nrequests_per_second = 5000\ninterval_seconds = {seconds}\n",
        secret.display()
    );
    let options = Options {
        registry: Some(Lets::Anybody),
        registry_yaml: post.yaml(),
        gateway_toml,
        ..Options::default()
    };
    let cluster = Cluster::start(options);
    post.connect(&cluster);
    wait_backfilled(&cluster);
    (cluster, dir)
}

/// Walks over thousands of tags take their time.
fn wait_long_for(what: &str, mut attempt: impl FnMut() -> Option<()>) {
    let began = Instant::now();
    while attempt().is_none() {
        assert!(began.elapsed() < Duration::from_secs(300), "waited too long for {what}");
        thread::park_timeout(Duration::from_millis(50));
    }
}

/// `OUTPORT_PUSHES` says how many; 200 without.
#[test]
fn pushes_around_the_gateway_arrive_whatever_becomes_of_their_notifications() {
    let pushes: u64 = std::env::var("OUTPORT_PUSHES").map_or(200, |text| text.parse().unwrap());
    let post = BadPost::open();
    let (cluster, _dir) = walked_every(INTERVAL.as_secs(), &post);
    let there = direct(&cluster);
    for number in 0..pushes {
        there.push_image(REPO, &format!("v{number}"), &[format!("layer {}", number % 7).as_bytes()]);
    }
    // Every notification was sent; some of them arrived, and some do so late.
    wait_for("the registry to have told of all", || {
        (post.state.seen.lock().unwrap().len() as u64 == pushes).then_some(())
    });
    let last = Instant::now();
    let dropped = post.state.dropped.load(Relaxed);
    let held = post.state.held.lock().unwrap().len() as u64;
    assert!(dropped >= pushes / 5 && held >= pushes / 10, "{dropped} {held}");
    post.state.release();

    // Nobody asks for a walk: the next that comes by itself finds all that was not told of.
    let before = report(&cluster)["pass"].as_u64().unwrap();
    let is_through = |report: &serde_json::Value| {
        let pass = report["pass"].as_u64().unwrap();
        pass > before + 1 || (pass == before + 1 && report["running"] == false)
    };
    wait_long_for("the next walk", || is_through(&report(&cluster)).then_some(()));
    let walked = last.elapsed();
    let theirs = tags(&there, &[REPO]);
    assert_eq!(theirs.len() as u64, pushes);
    for site in &cluster.sites {
        wait_applied(&cluster, site);
        assert_eq!(tags(&Session::user(&cluster, site, &[REPO]), &[REPO]), theirs, "{}", site.name);
    }
    assert_eq!(report(&cluster)["missed"].as_u64(), Some(dropped), "{}", report(&cluster));
    assert_eq!(cluster.primary.metric("outport_gateway_missed_notifications", ""), dropped as f64);
    let alarm = cluster.primary.status()["gateway"]["alarm"].as_str().map(str::to_owned);
    let clear = || cluster.primary.status()["gateway"]["alarm"].is_null().then_some(());
    match alarm {
        Some(alarm) => assert!(alarm.contains("notifications do not all come"), "{alarm}"),
        // A walk that found nothing came since.
        None => assert_eq!(clear(), Some(())),
    }
    wait_long_for("a walk that finds nothing", clear);
    assert_eq!(cluster.primary.status()["gateway"]["last_drift"], 0);
    assert_eq!(report(&cluster)["missed"].as_u64(), Some(dropped));
    eprintln!(
        "{pushes} pushes: {dropped} notifications dropped, {held} late; all was found after {walked:?}, walks being {INTERVAL:?} apart"
    );
}

#[test]
fn moved_and_deleted_tags_are_told_of_at_once() {
    let post = BadPost::open();
    post.state.is_good.store(true, Relaxed);
    let (cluster, _dir) = started(&post);
    let (there, site) = (direct(&cluster), &cluster.sites[1]);
    let here = Session::anyone(&cluster, site, &[REPO]);
    let seen = |tag: &str| here.get(&format!("/v2/{REPO}/manifests/{tag}"));
    for version in ["one", "two", "one"] {
        let image = there.push_image(REPO, "latest", &[version.as_bytes()]);
        wait_for("the site to show what was pushed", || {
            (seen("latest").body == image.manifest).then_some(())
        });
    }
    let image = there.push_image(REPO, "gone", &[b"gone"]);
    wait_for("the site to show what was pushed", || (seen("gone").status == 200).then_some(()));
    let target = format!("/v2/{REPO}/manifests/{}", image.digest);
    assert_eq!(there.send("DELETE", &target, &[], b"").status, 202);
    wait_for("the site to show that it was deleted", || (seen("gone").status == 404).then_some(()));
    // Whoever looks at the tag before the notification came sees that go first.
    wait_for("the manifest to go as well", || (here.get(&target).status == 404).then_some(()));
    assert_eq!(seen("latest").status, 200, "another tag stays");
    assert_eq!(report(&cluster)["missed"], 0);
}

#[test]
fn notifications_are_taken_from_known_sources_alone() {
    let post = BadPost::open();
    let (cluster, _dir) = started(&post);
    let admin = cluster.primary.admin();
    let send = |authorization: &str, body: &[u8]| {
        let headers = [("Authorization", authorization)];
        Client::plain()
            .connect(&admin)
            .unwrap()
            .send("POST", "/v1/notifications", &headers, body)
            .unwrap()
            .status
    };
    let good = format!("Bearer {SECRET}");
    let alarm = || cluster.primary.status()["gateway"]["alarm"].as_str().map(str::to_owned);
    assert_eq!(alarm(), None);
    assert_eq!(send("Bearer wrong", b"{\"events\":[]}"), 401);
    let refused = alarm().unwrap();
    assert!(refused.contains("secret is missing or wrong") && refused.contains("registry"), "{refused}");
    assert_eq!(cluster.primary.metric("outport_gateway_alarm", ""), 1.0);
    assert_eq!(send(&good, b"{\"events\":[]}"), 200);
    assert_eq!(alarm(), None);
    assert_eq!(send(&good, b"not json"), 400);
    // What a notification says is not believed: the registry has no such thing.
    let lie = serde_json::json!({ "events": [{ "action": "push", "target": {
        "repository": REPO, "tag": "lie", "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": outport_proto::Digest::sha256(b"lie").to_string() } },
        { "action": "sing", "target": { "repository": REPO } }] });
    assert_eq!(send(&good, lie.to_string().as_bytes()), 200);
    assert_eq!(cluster.primary.status()["head_seq"], 0);
    assert_eq!(cluster.primary.metric("outport_gateway_notifications_total", "unknown"), 1.0);
    assert_eq!(cluster.primary.metric("outport_gateway_notifications_refused_total", ""), 1.0);
    let (status, _) = get_plain(&cluster.sites[0].admin(), "/v1/reconcile").unwrap();
    assert_eq!(status, 404, "a site stands in front of nothing");
}
