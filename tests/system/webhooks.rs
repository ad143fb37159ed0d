//! Others are told what becomes of images at each site.

use std::{
    collections::BTreeSet,
    io::{BufReader, Write as _},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use crate::support::{Cluster, Options, session::Session, wait_for};

const SECRET: &[u8] = b"a secret of this test alone";

/// Takes what it is told, unless it is to refuse the next few.
struct Receiver {
    address: SocketAddr,
    told: Arc<Mutex<Vec<Value>>>,
    refusing: Arc<AtomicUsize>,
    secret: tempfile::NamedTempFile,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (told, refusing) = (Arc::<Mutex<Vec<Value>>>::default(), Arc::<AtomicUsize>::default());
        let (here, refuses) = (Arc::clone(&told), Arc::clone(&refusing));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, told, refuses) = (stream.unwrap(), Arc::clone(&here), Arc::clone(&refuses));
                thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    while let Some(event) = signed(&mut reader) {
                        let refused =
                            refuses.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
                        let status = if refused { "500 No" } else { "204 Taken" };
                        if !refused {
                            told.lock().unwrap().push(event);
                        }
                        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                        if stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let mut secret = tempfile::NamedTempFile::new().unwrap();
        secret.write_all(SECRET).unwrap();
        Self { address, told, refusing, secret }
    }

    fn toml(&self, more: &str) -> String {
        format!(
            "\n[[webhooks]]\nname = 'ci'\nurl = 'http://{}/hook'\nsecret_file = '{}'\n{more}\n",
            self.address,
            self.secret.path().display()
        )
    }

    fn told(&self, kind: &str) -> Vec<Value> {
        let told = self.told.lock().unwrap();
        told.iter().filter(|event| event["type"] == format!("outport.{kind}")).cloned().collect()
    }

    /// Waits until it was told of as many things of a kind.
    fn wait(&self, kind: &str, count: usize) -> Vec<Value> {
        wait_for(&format!("{count} of {kind}"), || Some(self.told(kind)).filter(|told| told.len() >= count))
    }
}

/// The next request's event, when its signature is right; `None` at the end.
fn signed(reader: &mut impl std::io::BufRead) -> Option<Value> {
    let (mut length, mut headers) = (0, std::collections::BTreeMap::new());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end().split_once(": ") {
            Some((name, value)) => _ = headers.insert(name.to_ascii_lowercase(), value.to_owned()),
            None if line.trim_end().is_empty() => break,
            None => {}
        }
        if let Some(value) = headers.get("content-length") {
            length = value.parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    assert_eq!(headers["content-type"], "application/cloudevents+json; charset=utf-8");
    let (id, at) = (&headers["webhook-id"], &headers["webhook-timestamp"]);
    let text = format!("{id}.{at}.{}", String::from_utf8(body.clone()).unwrap());
    let signature = STANDARD.decode(headers["webhook-signature"].strip_prefix("v1,").unwrap()).unwrap();
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), text.as_bytes(), &signature).unwrap();
    let event: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(event["id"], id.as_str());
    Some(event)
}

fn cluster(receiver: &Receiver, more: &str) -> Cluster {
    Cluster::start(Options { primary_toml: receiver.toml(more), ..Options::default() })
}

#[test]
fn images_are_told_of_once_for_each_site_whoever_is_down_meanwhile() {
    let receiver = Receiver::start();
    let mut cluster = cluster(&receiver, "repositories = ['team/**']");
    let session = Session::user(&cluster, &cluster.primary, &["team/app", "other/app"]);
    session.push_image("other/app", "1", &[b"nobody asked"]);
    receiver.refusing.store(3, Relaxed);
    let image = session.push_image("team/app", "1", &[b"layer"]);
    for kind in ["image.visible", "image.complete"] {
        let told = receiver.wait(kind, 2);
        let sites: BTreeSet<_> = told.iter().map(|event| event["data"]["site"].as_str().unwrap()).collect();
        assert_eq!(sites, BTreeSet::from(["frankfurt", "mumbai"]), "{told:?}");
        for event in &told {
            assert_eq!((&event["specversion"], &event["subject"]), (&"1.0".into(), &"team/app:1".into()));
            assert_eq!(event["data"]["digest"], image.digest.to_string());
            assert!(event["data"]["lag_seconds"].as_f64().unwrap() < 60.0);
        }
    }
    assert_eq!(receiver.refusing.load(Relaxed), 0, "it was told again what it refused");
    assert!(cluster.primary.metric("outport_webhook_deliveries_total", "failed") >= 3.0);
    let status = &cluster.primary.status()["webhooks"][0];
    assert_eq!((&status["name"], status["last_taken_at"].is_u64()), (&"ci".into(), true), "{status}");
    assert!(status["last_error"]["text"].as_str().unwrap().contains("500"), "{status}");

    // Refused until the primary is killed: it is told after the next start.
    receiver.refusing.store(usize::MAX, Relaxed);
    session.push_image("team/app", "2", &[b"later"]);
    cluster.wait_complete();
    cluster.primary.wait_until(|status| status["webhooks"][0]["retrying"].as_u64().unwrap() > 0);
    cluster.primary.kill();
    receiver.refusing.store(0, Relaxed);
    cluster.primary.start();
    for kind in ["image.visible", "image.complete"] {
        let told = wait_for("the second image", || {
            let told = receiver.told(kind);
            let later = told.iter().filter(|event| event["subject"] == "team/app:2").count();
            (later >= 2).then_some(told)
        });
        assert!(told.iter().all(|event| event["data"]["repository"] == "team/app"), "{told:?}");
        let ids: BTreeSet<_> = told.iter().map(|event| event["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), 4, "what is told again has the same identity: {told:?}");
    }
}

#[test]
fn a_site_that_is_behind_and_comes_back_is_told_of() {
    let receiver = Receiver::start();
    let mut cluster =
        cluster(&receiver, "events = ['site.behind', 'site.back']\nsites = ['mumbai']\nbehind_seconds = 1");
    cluster.site_mut("frankfurt").stop();
    cluster.site_mut("mumbai").stop();
    let behind = receiver.wait("site.behind", 1);
    assert_eq!(behind[0]["data"]["site"], "mumbai");
    assert_eq!(behind[0]["data"]["state"], "disconnected");
    cluster.site_mut("mumbai").start();
    assert_eq!(receiver.wait("site.back", 1)[0]["data"]["site"], "mumbai");
    let all = receiver.told.lock().unwrap();
    assert!(all.iter().all(|event| event["data"]["site"] == "mumbai"), "{all:?}");
}
