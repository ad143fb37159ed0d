//! The primary is gone: what a site knows it goes on serving, and says how old it is.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{
    shim,
    status::Halted,
    support::{
        Cluster, Options,
        http::{Client, Response},
        listens,
        session::{Session, absolute, bytes, finish},
        signal, wait_for,
    },
};

const REPO: &str = "team/app";

#[test]
fn pulls_go_on_without_the_primary() {
    let mut cluster = Cluster::start(Options::default());
    let layer = bytes(200_000, 3);
    let pusher = Session::user(&cluster, &cluster.sites[0], &[REPO]);
    let image = pusher.push_image(REPO, "1", &[&layer]);
    cluster.wait_complete();
    let puller = Session::anyone(&cluster, &cluster.primary, &[REPO]);
    let stranger = Session::anyone(&cluster, &cluster.primary, &["team/other"]);
    cluster.primary.kill();

    let layer_digest = outport_proto::Digest::sha256(&layer);
    for site in &cluster.sites {
        site.wait_until(|status| status["state"] == "disconnected");
        let puller = puller.at(site);
        for reference in ["1", &image.digest.to_string()] {
            let target = format!("/v2/{REPO}/manifests/{reference}");
            let (get, head) = (puller.get(&target), puller.head(&target));
            assert_eq!((get.status, &get.body), (200, &image.manifest), "{}", get.text());
            assert_eq!(head.status, 200);
            let digest = image.digest.to_string();
            assert_eq!(head.header("docker-content-digest"), Some(digest.as_str()));
            for name in ["content-length", "content-type", "docker-content-digest", "etag"] {
                assert_eq!(head.header(name), get.header(name), "{name}");
            }
            if reference == "1" {
                for response in [&get, &head] {
                    assert!(response.header("age").is_some(), "{response:?}");
                    assert!(
                        response.header("warning").unwrap_or_default().starts_with("110"),
                        "{response:?}"
                    );
                    assert!(response.header("outport-staleness").is_some(), "{response:?}");
                }
            }
        }
        let blob = format!("/v2/{REPO}/blobs/{layer_digest}");
        let got = puller.get(&blob);
        assert_eq!((got.status, got.body == layer), (200, true));
        assert_eq!(puller.head(&blob).status, 200);
        let part = puller.send("GET", &blob, &[("Range", "bytes=100-199")], b"");
        assert_eq!((part.status, part.body.as_slice()), (206, &layer[100..200]));

        // What the site does not know it cannot deny.
        let absent = outport_proto::Digest::sha256(b"nobody has this");
        for response in [
            puller.get(&format!("/v2/{REPO}/manifests/unknown")),
            puller.get(&format!("/v2/{REPO}/blobs/{absent}")),
            stranger.at(site).get("/v2/team/other/manifests/1"),
        ] {
            assert_eq!((response.status, response.code().as_str()), (503, "UNAVAILABLE"));
            let after: u32 = response.header("retry-after").expect("Retry-After").parse().unwrap();
            assert!(after >= 1);
            assert!(response.json()["errors"][0]["message"].as_str().is_some_and(|text| !text.is_empty()));
        }
        let head = puller.head(&format!("/v2/{REPO}/manifests/unknown"));
        assert_eq!((head.status, head.header("retry-after").is_some()), (503, true));
    }

    cluster.primary.start();
    for site in &cluster.sites {
        site.wait_until(|status| status["state"] == "streaming");
    }
    let moved = Session::user(&cluster, &cluster.sites[0], &[REPO]).push_image(REPO, "1", &[b"new"]);
    for site in &cluster.sites {
        let puller = Session::anyone(&cluster, site, &[REPO]);
        let fresh = puller.get(&format!("/v2/{REPO}/manifests/1"));
        assert_eq!((fresh.status, &fresh.body), (200, &moved.manifest));
        assert_eq!(fresh.header("warning"), None);
        assert_eq!(puller.get(&format!("/v2/{REPO}/manifests/unknown")).status, 404);
    }
}

#[test]
fn a_push_in_flight_when_the_primary_is_told_to_stop_is_taken() {
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let content = bytes(1000, 5);
    let location = Session::user(&cluster, &cluster.primary, &[REPO]).begin_upload(REPO);
    let target = finish(&location, &outport_proto::Digest::sha256(&content));
    let target = absolute(&target).map_or(target, |(_, path)| path);
    let address = cluster.primary.registry();
    let mut connection = Client::plain().connect(&address).unwrap();
    let head =
        format!("PUT {target} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n", content.len());
    connection.raw(head.as_bytes()).unwrap();
    connection.raw(&content[..500]).unwrap();
    // Answered behind the request, so the primary has that too.
    assert_eq!(Client::plain().get(&address, "/v2/", &[]).status, 401);

    signal(cluster.primary.pid(), "TERM");
    wait_for("the primary to stop listening", || (!listens(address.parse().unwrap())).then_some(()));
    connection.raw(&content[500..]).unwrap();
    let response = connection.receive(false).unwrap();
    assert_eq!(response.status, 201, "{}", response.text());
}

#[test]
fn a_site_that_starts_without_its_primary_serves_what_it_has() {
    let mut cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let image = Session::user(&cluster, &cluster.primary, &[REPO]).push_image(REPO, "1", &[&bytes(1000, 4)]);
    cluster.wait_complete();
    let puller = Session::anyone(&cluster, &cluster.sites[0], &[REPO]);
    cluster.primary.kill();
    cluster.sites[0].kill();
    cluster.sites[0].start();
    let got = puller.get(&format!("/v2/{REPO}/manifests/1"));
    assert_eq!((got.status, &got.body), (200, &image.manifest), "{}", got.text());
    assert_eq!(puller.get(&format!("/v2/{REPO}/manifests/2")).status, 503);
    let push = Session::with_token(&cluster.sites[0].registry(), "x");
    let push = push.once("POST", &format!("/v2/{REPO}/blobs/uploads/"), &[], b"");
    assert!(matches!(push.status, 401 | 503), "{}", push.text());
}

#[test]
fn a_site_that_was_asleep_answers_nothing_older_than_the_bound() {
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let site = &cluster.sites[0];
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    pusher.push_image(REPO, "1", &[b"old"]);
    cluster.wait_complete();
    // A token of before, which does not tell the site what there is to see.
    let puller = Session::anyone(&cluster, site, &[REPO]);
    let target = format!("/v2/{REPO}/manifests/1");
    assert_eq!(puller.get(&target).status, 200);
    for round in 0..3 {
        let asleep = Halted::new(site);
        let pushed = pusher.push_image(REPO, "1", &[&bytes(100, 60 + round)]);
        let acknowledged = Instant::now();
        wait_for("the bound to pass", || {
            (acknowledged.elapsed() > Duration::from_millis(1100)).then_some(())
        });
        drop(asleep);
        let got = puller.get(&target);
        assert_eq!((got.status, got.body == pushed.manifest), (200, true), "{}", got.text());
        site.wait_until(|status| status["state"] == "streaming");
    }
}

#[test]
fn a_site_that_is_cut_off_for_too_long_answers_no_tags() {
    let site_toml = "[read]\nstale_max_seconds = 2\n".to_owned();
    let cluster = Cluster::start(Options { sites: vec!["mumbai"], site_toml, ..Options::default() });
    let site = &cluster.sites[0];
    let pushed =
        Session::user(&cluster, &cluster.primary, &[REPO]).push_image(REPO, "1", &[&bytes(1000, 70)]);
    cluster.wait_complete();
    let puller = Session::anyone(&cluster, site, &[REPO]);
    let halted = Halted::new(&cluster.primary);
    let tag = format!("/v2/{REPO}/manifests/1");
    wait_for("the tag to be too old", || {
        let got = puller.get(&tag);
        assert!(matches!(got.status, 200 | 503), "{}", got.status);
        (got.status == 503 && got.header("retry-after").is_some()).then_some(())
    });
    // What cannot change is served all the same.
    let got = puller.get(&format!("/v2/{REPO}/manifests/{}", pushed.digest));
    assert_eq!((got.status, got.body == pushed.manifest), (200, true));
    drop(halted);
    wait_for("the tag to be back", || (puller.get(&tag).status == 200).then_some(()));
}

/// Stands before the C library: as long as a file of the name in `CLOCK_SET_BACK` is there, the wall
/// clock is an hour behind.
const CLOCK: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    const char *ahead = getenv("CLOCK_AHEAD");
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    FILE *said = clock != CLOCK_REALTIME || ahead == NULL ? NULL : fopen(ahead, "r");
    if (said == NULL) return failed;
    long seconds = 0;
    if (fscanf(said, "%ld", &seconds) == 1) now->tv_sec += seconds;
    fclose(said);
    return failed;
}
"#;

/// A site with tag 1 that is cut off from its primary, and the file that says how far ahead its wall clock is.
fn cut_off(site_toml: &str) -> (Cluster, tempfile::TempDir, PathBuf) {
    let site_toml = site_toml.to_owned();
    let mut cluster = Cluster::start(Options { sites: vec!["mumbai"], site_toml, ..Options::default() });
    let dir = tempfile::tempdir().unwrap();
    let ahead = dir.path().join("ahead");
    let site = &mut cluster.sites[0];
    site.stop();
    site.environment = vec![("LD_PRELOAD", shim::built(dir.path(), CLOCK)), ("CLOCK_AHEAD", ahead.clone())];
    site.start();
    site.wait_until(|status| status["state"] == "streaming");
    Session::user(&cluster, &cluster.primary, &[REPO]).push_image(REPO, "1", &[&bytes(1000, 80)]);
    cluster.wait_complete();
    cluster.primary.kill();
    cluster.sites[0].wait_until(|status| status["state"] == "disconnected");
    (cluster, dir, ahead)
}

/// To clocks that are set tokens are of another time; anybody may pull this.
fn pull(cluster: &Cluster) -> Response {
    Client::plain().get(&cluster.sites[0].registry(), &format!("/v2/{REPO}/manifests/1"), &[])
}

fn age(answer: &Response) -> u64 {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("age").expect("it is stale").parse().unwrap()
}

#[test]
fn an_answer_is_as_old_as_a_machine_that_was_held_learns_from_its_wall_clock() {
    let (cluster, _dir, ahead) = cut_off("");
    assert!(age(&pull(&cluster)) < 300);
    fs::write(&ahead, "600").unwrap();
    assert!(age(&pull(&cluster)) >= 600);
    let heard = cluster.sites[0].status()["heartbeat_age_seconds"].as_f64();
    assert!(heard.is_some_and(|seconds| seconds >= 600.0), "{heard:?}");
    fs::write(&ahead, "-3600").unwrap();
    assert!(age(&pull(&cluster)) >= 600, "what is set back says nothing");
}

#[test]
fn an_answer_grows_old_whoever_sets_the_clock() {
    let (cluster, _dir, ahead) = cut_off("[read]\nstale_max_seconds = 4\n");
    fs::write(ahead, "-3600").unwrap();
    let pull = || pull(&cluster);
    let mut oldest = 0;
    wait_for("the tag to be too old", || {
        let got = pull();
        if got.status == 503 {
            return Some(());
        }
        let grown = age(&got);
        assert!(grown >= oldest, "{grown} s after {oldest} s");
        oldest = grown;
        None
    });
}
