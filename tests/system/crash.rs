//! Processes are killed under load: nothing that was acknowledged is lost.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use outport_proto::Digest;

use crate::support::{
    Cluster, Options,
    session::{Session, bytes},
    wait_for,
};

const REPO: &str = "team/app";
const RESTART_MAX: Duration = Duration::from_secs(10);

/// What the pushers were told is in.
#[derive(Default)]
struct Acknowledged(Mutex<Vec<Pushed>>);

#[derive(Clone)]
struct Pushed {
    tag: String,
    manifest: Vec<u8>,
    layer: Vec<u8>,
}

impl Acknowledged {
    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Waits until this many more are in.
    fn wait_more(&self, more: usize) {
        let enough = self.count() + more;
        wait_for("pushes to be acknowledged", || (self.count() >= enough).then_some(()));
    }
}

#[test]
fn kill_9_under_load_loses_nothing_acknowledged() {
    let mut cluster = Cluster::start(Options::default());
    let acknowledged = Acknowledged::default();
    let stop = AtomicBool::new(false);
    let number = AtomicU64::new(0);
    let pushers = [
        Session::user(&cluster, &cluster.primary, &[REPO]),
        Session::user(&cluster, &cluster.sites[0], &[REPO]),
        Session::user(&cluster, &cluster.sites[1], &[REPO]),
    ];
    thread::scope(|scope| {
        for pusher in &pushers {
            let (acknowledged, stop, number) = (&acknowledged, &stop, &number);
            scope.spawn(move || {
                while !stop.load(SeqCst) {
                    let this = number.fetch_add(1, SeqCst);
                    let layer = bytes(2000 + (this % 7) as usize * 5000, 10_000 + this);
                    let tag = format!("t{this}");
                    // What fails is not acknowledged, and may be there or not.
                    match pusher.try_push_image(REPO, &tag, &[&layer]) {
                        Ok(image) => {
                            let pushed = Pushed { tag, manifest: image.manifest, layer };
                            acknowledged.0.lock().unwrap().push(pushed);
                        }
                        Err(_) => thread::yield_now(),
                    }
                }
            });
        }
        let stop_at_end = StopOnDrop(&stop);
        // After how many pushes the next kill comes: never at the same moment of one.
        for (round, more) in [7, 12, 5, 9].into_iter().enumerate() {
            acknowledged.wait_more(more);
            let began = if round % 2 == 0 {
                cluster.primary.kill();
                let began = Instant::now();
                cluster.primary.start();
                began
            } else {
                let site = &mut cluster.sites[round / 2];
                site.kill();
                let began = Instant::now();
                site.start();
                began
            };
            assert!(began.elapsed() < RESTART_MAX, "the restart took {:?}", began.elapsed());
        }
        acknowledged.wait_more(5);
        drop(stop_at_end);
    });

    let pushed = acknowledged.0.into_inner().unwrap();
    cluster.wait_complete();
    let puller = Session::anyone(&cluster, &cluster.primary, &[REPO]);
    for node in cluster.nodes() {
        let puller = puller.at(node);
        for Pushed { tag, manifest, layer } in &pushed {
            let got = puller.get(&format!("/v2/{REPO}/manifests/{tag}"));
            assert_eq!((got.status, &got.body), (200, manifest), "{tag} at {}", node.name);
            let got = puller.get(&format!("/v2/{REPO}/blobs/{}", Digest::sha256(layer)));
            assert_eq!((got.status, got.body == *layer), (200, true), "layer of {tag} at {}", node.name);
        }
    }
    // The sites hold it all themselves.
    cluster.primary.kill();
    for site in &mut cluster.sites {
        site.kill();
        site.start();
        let puller = puller.at(site);
        for Pushed { tag, manifest, layer } in &pushed {
            let got = puller.get(&format!("/v2/{REPO}/manifests/{tag}"));
            assert_eq!((got.status, &got.body), (200, manifest), "{tag} at {}", site.name);
            let got = puller.head(&format!("/v2/{REPO}/blobs/{}", Digest::sha256(layer)));
            assert_eq!(got.status, 200, "layer of {tag} at {}", site.name);
        }
    }
}

#[test]
fn an_upload_goes_on_after_the_primary_was_killed() {
    let mut cluster = Cluster::start(Options { sites: Vec::new(), ..Options::default() });
    let content = bytes(3_000_000, 30);
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    let location = pusher.begin_upload(REPO);
    let response = pusher.send("PATCH", &location, &[], &content[..1_000_000]);
    assert_eq!((response.status, response.header("range")), (202, Some("0-999999")));
    let location = response.header("location").unwrap().to_owned();
    cluster.primary.kill();
    cluster.primary.start();
    // What was acknowledged is there; the client asks where to go on.
    let status = pusher.send("GET", &location, &[], b"");
    assert_eq!((status.status, status.header("range")), (204, Some("0-999999")), "{}", status.text());
    let digest = Digest::sha256(&content);
    let response =
        pusher.send("PUT", &crate::support::session::finish(&location, &digest), &[], &content[1_000_000..]);
    assert_eq!(response.status, 201, "{}", response.text());
    assert!(pusher.get(&format!("/v2/{REPO}/blobs/{digest}")).body == content);
}

#[test]
fn sigterm_lets_a_download_go_on_and_ends_in_time() {
    let mut cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let content = bytes(16 << 20, 31);
    let digest = Session::user(&cluster, &cluster.primary, &[REPO]).push_blob(REPO, &content);
    cluster.wait_complete();
    let blob = format!("/v2/{REPO}/blobs/{digest}");
    let puller = Session::anyone(&cluster, &cluster.primary, &[REPO]);
    let site = &mut cluster.sites[0];

    // One client reads on while the node drains, one does not read at all.
    let (mut reading, head) = puller.at(site).open(&blob);
    assert_eq!(head.status, 200);
    let mut got = vec![0; 1000];
    let read = reading.read(&mut got).unwrap();
    got.truncate(read);
    let (_stuck, head) = puller.at(site).open(&blob);
    assert_eq!(head.status, 200);
    let address = site.registry().parse().unwrap();
    thread::scope(|scope| {
        let stopping = scope.spawn(|| site.stop());
        wait_for("the node to stop listening", || (!crate::support::listens(address)).then_some(()));
        let mut buffer = vec![0; 256 << 10];
        while got.len() < content.len() {
            let read = reading.read(&mut buffer).expect("the download goes on");
            assert!(read > 0, "the download broke off at {} bytes", got.len());
            got.extend_from_slice(&buffer[..read]);
        }
        assert!(got == content);
        let took = stopping.join().unwrap();
        assert!(took < Duration::from_millis(5500), "stopping took {took:?}");
    });

    let took = cluster.primary.stop();
    assert!(took < Duration::from_secs(5), "stopping the primary took {took:?}");
    cluster.primary.start();
    cluster.sites[0].start();
    assert!(puller.at(&cluster.sites[0]).get(&blob).body == content);
}

#[test]
fn two_processes_never_share_a_data_directory() {
    let cluster = Cluster::start(Options { sites: Vec::new(), ..Options::default() });
    let config = std::fs::read_to_string(cluster.primary.config()).unwrap();
    // Everything but the directory differs.
    let ip = cluster.primary.ip.to_string();
    let mut other = cluster.primary.ip.octets();
    other[3] = 99;
    let config = config.replace(&ip, &std::net::Ipv4Addr::from(other).to_string());
    let path = cluster.dir.path().join("second.toml");
    std::fs::write(&path, config).unwrap();
    let output = std::process::Command::new(crate::support::BINARY)
        .args(["primary", "--config", crate::support::path(&path)])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("another process uses it"), "{said}");
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}
