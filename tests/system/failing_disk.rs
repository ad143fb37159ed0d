//! A node whose disk makes its log durable no longer.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    shim,
    support::{
        Cluster, Node, Options,
        http::get_plain,
        outport,
        session::{Session, bytes},
        wait_for,
    },
};

const REPO: &str = "team/app";

/// Stands before the C library: as long as a file of the name in `FAILING_DISK` is there, no file is
/// made durable that has in its path what that file says.
const SHIM: &str = r#"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int refused(int file) {
    char link[64], path[4096];
    const char *failing = getenv("FAILING_DISK");
    char refused[64] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    FILE *said = failing == NULL ? NULL : fopen(failing, "r");
    if (said == NULL || length < 0) return 0;
    path[length] = 0;
    size_t read = fread(refused, 1, sizeof refused - 1, said);
    fclose(said);
    return read > 0 && strstr(path, refused) != NULL;
}

static int sync_as(long call, int file) {
    if (refused(file)) { errno = EIO; return -1; }
    return (int)syscall(call, file);
}

int fsync(int file) { return sync_as(SYS_fsync, file); }
int fdatasync(int file) { return sync_as(SYS_fdatasync, file); }
"#;

/// The disk below a node.
struct Disk {
    failing: PathBuf,
}

impl Disk {
    /// Puts it below `node`, whose next start finds it.
    fn below(node: &mut Node, dir: &Path) -> Self {
        let failing = dir.join("failing");
        let shim = shim::built(dir, SHIM);
        node.environment = vec![("LD_PRELOAD", shim), ("FAILING_DISK", failing.clone())];
        Self { failing }
    }

    /// Nothing of the log is durable any more.
    fn fail(&self) {
        self.refuse("/log/");
    }

    /// No file is made durable that has `part` in its path.
    fn refuse(&self, part: &str) {
        // In one step: the node looks at it all the time.
        let new = self.failing.with_extension("new");
        fs::write(&new, part).unwrap();
        fs::rename(new, &self.failing).unwrap();
    }

    fn mend(&self) {
        fs::remove_file(&self.failing).unwrap();
    }
}

#[test]
fn a_primary_whose_log_is_not_durable_says_so_serves_pulls_and_ends_when_a_new_start_helps() {
    let mut cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let dir = tempfile::tempdir().unwrap();
    cluster.primary.stop();
    let disk = Disk::below(&mut cluster.primary, dir.path());
    cluster.primary.start();
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    let pushed = pusher.push_image(REPO, "1", &[&bytes(1000, 1)]);
    cluster.sites[0].wait_until(|status| status["state"] == "streaming");
    cluster.wait_complete();
    assert_eq!(page(&cluster.primary, "/readyz").0, 200);
    assert_eq!(cluster.primary.status()["alarm"], serde_json::Value::Null);

    disk.fail();
    for tag in ["2", "3"] {
        let refused = pusher.put_manifest(REPO, tag, &pushed.manifest);
        assert_eq!((refused.status, refused.code().as_str()), (503, "UNAVAILABLE"), "{}", refused.text());
        assert!(refused.header("retry-after").is_some());
    }
    let (ready, reason) = page(&cluster.primary, "/readyz");
    assert!(ready == 503 && reason.contains("the log is stopped: sync segment"), "{ready} {reason}");
    assert_eq!(page(&cluster.primary, "/healthz").0, 200);
    let alarm = cluster.primary.status()["alarm"].clone();
    assert!(alarm.as_str().is_some_and(|alarm| alarm.contains("the log is stopped")), "{alarm}");
    let shown = outport(&["status", "--admin", &cluster.primary.admin()]);
    assert!(shown.contains("\nALARM: nothing more is taken in: the log is stopped"), "{shown}");
    assert_eq!(cluster.primary.metric("outport_journal_failed", ""), 1.0);

    // What was acknowledged is served as before, and what was not is nowhere.
    let puller = Session::anyone(&cluster, &cluster.primary, &[REPO]);
    for node in cluster.nodes() {
        let puller = puller.at(node);
        let got = puller.get(&format!("/v2/{REPO}/manifests/1"));
        assert_eq!((got.status, &got.body, got.header("warning")), (200, &pushed.manifest, None));
        assert_eq!(puller.get(&format!("/v2/{REPO}/manifests/2")).status, 404, "at {}", node.name);
    }
    assert_eq!(cluster.sites[0].status()["state"], "streaming");

    disk.mend();
    let ended = cluster.primary.ended();
    assert_eq!(ended.code(), Some(1), "{ended}");
    cluster.primary.start();
    assert_eq!(page(&cluster.primary, "/readyz").0, 200);
    assert_eq!(puller.at(&cluster.primary).get(&format!("/v2/{REPO}/manifests/2")).status, 404);
    assert_eq!(pusher.put_manifest(REPO, "2", &pushed.manifest).status, 201);
    cluster.wait_complete();
    let got = Session::anyone(&cluster, &cluster.sites[0], &[REPO]).get(&format!("/v2/{REPO}/manifests/2"));
    assert_eq!((got.status, &got.body), (200, &pushed.manifest));
}

#[test]
fn a_site_whose_log_is_not_durable_asks_its_primary_until_a_new_start_helps() {
    let mut cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let dir = tempfile::tempdir().unwrap();
    let site = &mut cluster.sites[0];
    site.stop();
    let disk = Disk::below(site, dir.path());
    site.start();
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    pusher.push_image(REPO, "1", &[&bytes(1000, 2)]);
    cluster.wait_complete();

    disk.fail();
    let moved = pusher.push_image(REPO, "1", &[&bytes(1000, 3)]);
    let site = &cluster.sites[0];
    site.wait_until(|status| {
        status["alarm"].as_str().is_some_and(|alarm| alarm.contains("the log is stopped: sync segment"))
    });
    let (ready, reason) = page(site, "/readyz");
    assert!(ready == 503 && reason.contains("nothing more is taken in"), "{ready} {reason}");
    assert_eq!(site.metric("outport_journal_failed", ""), 1.0);
    let shown = outport(&["status", "--admin", &site.admin()]);
    assert!(shown.contains("\nALARM mumbai: nothing more is taken in"), "{shown}");
    // It knows the old one alone, and that this is older than the token.
    let puller = Session::anyone(&cluster, site, &[REPO]);
    let tag = format!("/v2/{REPO}/manifests/1");
    wait_for("the primary's answer", || {
        let got = puller.get(&tag);
        assert_eq!(got.status, 200, "{}", got.text());
        let is_old = got.body != moved.manifest;
        assert!(!is_old || got.header("warning").is_some(), "an old answer that does not say so");
        (!is_old).then_some(())
    });

    disk.mend();
    assert_eq!(cluster.sites[0].ended().code(), Some(1));
    cluster.sites[0].start();
    cluster.sites[0].wait_until(|status| status["state"] == "streaming" && status["alarm"].is_null());
    cluster.wait_complete();
    assert_eq!(puller.get(&tag).body, moved.manifest);
}

#[test]
fn a_segment_that_alone_is_not_durable_starts_nothing_again_and_again() {
    let mut cluster = Cluster::start(Options { sites: vec![], ..Options::default() });
    let dir = tempfile::tempdir().unwrap();
    cluster.primary.stop();
    let disk = Disk::below(&mut cluster.primary, dir.path());
    cluster.primary.start();
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    let pushed = pusher.push_image(REPO, "1", &[&bytes(1000, 4)]);
    let (pid, tag) = (cluster.primary.pid(), format!("/v2/{REPO}/manifests/1"));

    // Any other file is as durable as ever.
    disk.refuse(".log");
    assert_eq!(pusher.put_manifest(REPO, "2", &pushed.manifest).status, 503);
    wait_for("the disk to be asked", || {
        cluster.primary.log().contains("the disk does not make the log durable").then_some(())
    });
    let puller = Session::anyone(&cluster, &cluster.primary, &[REPO]);
    assert_eq!(puller.get(&tag).body, pushed.manifest, "pulls go on");
    assert_eq!(cluster.primary.pid(), pid);
    assert_eq!(page(&cluster.primary, "/readyz").0, 503);

    disk.mend();
    assert_eq!(cluster.primary.ended().code(), Some(1));
    cluster.primary.start();
    assert_eq!(pusher.put_manifest(REPO, "2", &pushed.manifest).status, 201);
    assert_eq!(puller.get(&tag).body, pushed.manifest);
}

fn page(node: &Node, target: &str) -> (u16, String) {
    get_plain(&node.admin(), target).unwrap()
}
