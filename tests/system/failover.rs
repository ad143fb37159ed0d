//! A site becomes the primary, as planned or because the primary is gone; the others follow it.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use outport_proto::Digest;

use crate::support::{
    BINARY, Cluster, Node, Options, outport, path,
    session::{Session, bytes},
    wait_for,
};

const REPO: &str = "team/app";
/// Pushes pause for no longer, in a planned failover.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A primary and two sites, of which `pune` knows where `mumbai` will be primary.
fn cluster(site_toml: &str) -> Cluster {
    let mut cluster = Cluster::start(Options {
        sites: vec!["mumbai", "pune"],
        toml_of: vec![("mumbai", site_toml.to_owned())],
        ..Options::default()
    });
    let [old, new] = [&cluster.primary, cluster.site("mumbai")].map(|node| node.replication().to_string());
    let pune = cluster.site_mut("pune");
    pune.stop();
    let text = fs::read_to_string(pune.config()).unwrap();
    fs::write(pune.config(), text.replace(&format!("'{old}'"), &format!("['{old}', '{new}']"))).unwrap();
    pune.start();
    pune.wait_until(|status| status["state"] == "streaming");
    cluster
}

/// Writes the configuration of the primary that `mumbai` becomes beside its own, which is returned first.
fn configurations(cluster: &Cluster) -> [PathBuf; 2] {
    let mumbai = cluster.site("mumbai");
    let site = mumbai.config().with_file_name("mumbai-as-site.toml");
    fs::copy(mumbai.config(), &site).unwrap();
    let text = fs::read_to_string(cluster.primary.config()).unwrap();
    let text = text
        .replace(
            &format!("data_dir = '{}'", path(cluster.primary.data_dir())),
            &format!("data_dir = '{}'", path(mumbai.data_dir())),
        )
        .replace(&cluster.primary.ip.to_string(), &mumbai.ip.to_string());
    let primary = mumbai.config().with_file_name("mumbai-as-primary.toml");
    fs::write(&primary, text).unwrap();
    [site, primary]
}

fn try_promote([site, primary]: &[PathBuf; 2], more: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.args(["promote", "--config", path(site), "--primary-config", path(primary)]).args(more);
    command.output().unwrap()
}

/// Starts `mumbai` as what it was made.
fn start_as_primary(cluster: &mut Cluster, configurations: &[PathBuf; 2]) {
    let mumbai = cluster.site_mut("mumbai");
    fs::copy(&configurations[1], mumbai.config()).unwrap();
    mumbai.becomes("primary");
    mumbai.start();
}

#[test]
fn a_planned_failover_loses_nothing_and_pauses_pushes_alone() {
    let mut cluster = cluster("");
    let configurations = configurations(&cluster);
    let pushed = Mutex::new(Vec::<(String, Digest)>::new());
    let (ended, pulls, pause) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(Duration::ZERO));
    Session::user(&cluster, &cluster.primary, &[REPO]).push_image(REPO, "first", &[&bytes(1000, 1)]);
    cluster.wait_complete();
    let pusher = Session::user(&cluster, cluster.site("pune"), &[REPO]);
    let puller = pusher.clone();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Relaxed) {
                let answer = puller.get(&format!("/v2/{REPO}/manifests/first"));
                assert_eq!(answer.status, 200, "{}", answer.text());
                pulls.fetch_add(1, Relaxed);
            }
        });
        scope.spawn(|| {
            let mut last = Instant::now();
            for number in 0.. {
                let tag = format!("push-{number}");
                let layer = bytes(5000, 100 + number);
                // As a client does that is told to try again.
                let image = loop {
                    match pusher.try_push_image(REPO, &tag, &[&layer]) {
                        Ok(image) => break image,
                        Err(_) => thread::park_timeout(Duration::from_millis(20)),
                    }
                    if ended.load(Relaxed) {
                        return;
                    }
                };
                let mut longest = pause.lock().unwrap();
                *longest = longest.max(last.elapsed());
                last = Instant::now();
                pushed.lock().unwrap().push((tag, image.digest));
                if ended.load(Relaxed) {
                    return;
                }
            }
        });
        let count = || pushed.lock().unwrap().len();
        wait_for("some pushes", || (count() > 10).then_some(()));
        let said = outport(&["drain", "--until", "mumbai", "--admin", &cluster.primary.admin()]);
        assert!(said.contains("mumbai has everything"), "{said}");
        cluster.primary.stop();
        cluster.site_mut("mumbai").stop();
        let saved = cluster.primary.data_dir().to_owned();
        let promoted = try_promote(&configurations, &["--saved", path(&saved)]);
        assert!(promoted.status.success(), "{promoted:?}");
        start_as_primary(&mut cluster, &configurations);
        let before = count();
        wait_for("pushes to go on", || (count() > before + 10).then_some(()));
        ended.store(true, Relaxed);
    });
    let pause = *pause.lock().unwrap();
    eprintln!("a planned failover: pushes paused for {pause:.2?}, {} pulls went on", pulls.load(Relaxed));
    assert!(pause < PAUSE_MAX, "{pause:?}");
    assert!(pulls.load(Relaxed) > 50);
    let pune = cluster.site("pune");
    pune.wait_until(|status| status["state"] == "streaming");
    for (tag, digest) in pushed.lock().unwrap().iter() {
        for node in [pune, cluster.site("mumbai")] {
            let answer = puller.at(node).head(&format!("/v2/{REPO}/manifests/{tag}"));
            assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()), "{tag}");
        }
    }
    // Started again by mistake the old one takes nothing, and nobody follows it.
    cluster.primary.start();
    let late = puller.at(&cluster.primary).once("POST", &format!("/v2/{REPO}/blobs/uploads/"), &[], b"");
    assert_eq!(late.status, 503, "{}", late.text());
    assert!(late.text().contains("handed over"), "{}", late.text());
    outport(&["drain", "--undo", "--admin", &cluster.primary.admin()]);
    let taken = puller.at(&cluster.primary).once("POST", &format!("/v2/{REPO}/blobs/uploads/"), &[], b"");
    assert_eq!(taken.status, 202, "{}", taken.text());
}

#[test]
fn a_lost_primary_is_followed_by_a_site_and_what_only_it_had_is_named() {
    let mut cluster = cluster("");
    let configurations = configurations(&cluster);
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    let kept = pusher.push_image(REPO, "kept", &[&bytes(1000, 2)]);
    cluster.wait_complete();
    let running = try_promote(&configurations, &[]);
    assert!(String::from_utf8_lossy(&running.stderr).contains("another process uses it"), "{running:?}");
    // The last push reaches pune alone.
    cluster.site_mut("mumbai").stop();
    let lost = pusher.push_image(REPO, "lost", &[&bytes(1000, 3)]);
    let shown = |node: &Node, tag: &str| {
        let anyone = pusher.at(node);
        anyone.get(&format!("/v2/{REPO}/manifests/{tag}"))
    };
    wait_for("pune to show it", || (shown(cluster.site("pune"), "lost").status == 200).then_some(()));
    let head = cluster.primary.status()["head_seq"].as_u64().unwrap();
    cluster.site("pune").wait_until(|status| status["applied_seq"].as_u64().unwrap() >= head);
    cluster.primary.kill();
    let promoted = try_promote(&configurations, &[]);
    assert!(promoted.status.success(), "{promoted:?}");
    start_as_primary(&mut cluster, &configurations);

    let pune = cluster.site("pune");
    let mumbai = cluster.site("mumbai");
    let epoch = mumbai.status()["epoch"].as_u64().unwrap();
    assert!(epoch > 1, "{epoch}");
    pune.wait_until(|status| status["state"] == "streaming" && status["epoch"] == epoch);
    // Tokens of the lost primary are void: its keys went with it.
    assert_eq!(shown(pune, "kept").status, 401);
    let token = crate::support::session::token_for(
        &mumbai.registry(),
        crate::support::session::SERVICE,
        &[REPO],
        "pull,push",
        Some((crate::support::USER, &cluster.password)),
    );
    let at = |node: &Node| Session::with_token(&node.registry(), &token);
    for node in [pune, mumbai] {
        assert_eq!(at(node).get(&format!("/v2/{REPO}/manifests/kept")).body, kept.manifest, "{}", node.name);
        let gone = at(node).get(&format!("/v2/{REPO}/manifests/lost"));
        assert_eq!(gone.status, 404, "{}: {}", node.name, gone.text());
    }
    let line = format!("{REPO}:lost");
    wait_for("pune to name what is lost", || pune.log().contains(&line).then_some(()));
    assert!(!pune.log().contains(&format!("{REPO}:kept")));
    let again = at(pune).push_image(REPO, "lost", &[&bytes(1000, 3)]);
    assert_eq!(again.digest, lost.digest);
    assert_eq!(at(pune).get(&format!("/v2/{REPO}/manifests/lost")).body, lost.manifest);
}

#[test]
fn a_site_that_lacks_blobs_says_which_images_and_stays_what_it_is() {
    let mut cluster = cluster("[[policy]]\nrepository = 'lazy/**'\nkeep = 'lazy'\n");
    let configurations = configurations(&cluster);
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO, "lazy/app"]);
    pusher.push_image(REPO, "1", &[&bytes(1000, 4)]);
    pusher.push_image("lazy/app", "2", &[&bytes(70_000, 5)]);
    cluster.wait_complete();
    cluster.primary.kill();
    cluster.site_mut("mumbai").stop();
    let refused = try_promote(&configurations, &[]);
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert!(said.contains("lazy/app:2 lacks 68.4 KiB, in 1 of its blobs") && !said.contains(REPO), "{said}");
    cluster.site_mut("mumbai").start();
    cluster.site_mut("mumbai").stop();
    let accepted = try_promote(&configurations, &["--accept-missing"]);
    assert!(accepted.status.success(), "{accepted:?}");
    start_as_primary(&mut cluster, &configurations);
    let pune = cluster.site("pune");
    let epoch = cluster.site("mumbai").status()["epoch"].as_u64().unwrap();
    pune.wait_until(|status| status["state"] == "streaming" && status["epoch"] == epoch);
}
