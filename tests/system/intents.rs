//! A site that has led a push away knows that something is about to move, also when it was killed
//! meanwhile or does not know what it may have forgotten.

use std::{
    fs,
    time::{Duration, Instant},
};

use outport_proto::Digest;

use crate::{
    far::moved_away,
    support::{
        Cluster, Node, Options,
        session::{OCI_MANIFEST, Session, bytes, image},
        wait_for,
    },
};

const REPO: &str = "team/app";
const LATEST: &str = "/v2/team/app/manifests/latest";
const STABLE: &str = "/v2/team/app/manifests/stable";

struct World {
    cluster: Cluster,
    pusher: Session,
    /// Knows nothing of pushes after the first ones: its token is older.
    onlooker: Session,
    /// What `latest` is about to name.
    next: Vec<u8>,
}

impl World {
    fn start() -> Self {
        let cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
        let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
        for tag in ["latest", "stable"] {
            pusher.push_image(REPO, tag, &[&bytes(100, 1)]);
        }
        let layer = bytes(100, 2);
        pusher.push_blob(REPO, &layer);
        cluster.wait_complete();
        let onlooker = Session::anyone(&cluster, &cluster.sites[0], &[REPO]);
        Self { cluster, pusher, onlooker, next: image(&[&layer]) }
    }

    fn site(&self) -> &Node {
        &self.cluster.sites[0]
    }

    /// Where the site sends a push of `latest`.
    fn led(&self) -> String {
        let content_type = [("Content-Type", OCI_MANIFEST)];
        let led = self.pusher.at(self.site()).once("PUT", LATEST, &content_type, &self.next);
        assert_eq!(led.status, 307, "{}", led.text());
        led.header("location").unwrap().to_owned()
    }

    fn restart(&mut self, meanwhile: impl FnOnce(&Node)) {
        let site = &mut self.cluster.sites[0];
        site.kill();
        meanwhile(site);
        site.start();
        site.wait_until(|status| status["state"] == "streaming");
        // Freshness begins with the first heartbeat.
        wait_for("the site to answer by itself or not", || {
            (!self.asks(STABLE) || self.asks(LATEST)).then_some(())
        });
    }

    /// Whether the site asks the primary before it answers.
    fn asks(&self, target: &str) -> bool {
        let asked = || self.site().metric("outport_pulls_total", "result=\"revalidated\"");
        let before = asked();
        assert_eq!(self.onlooker.get(target).status, 200);
        asked() > before
    }
}

#[test]
fn a_killed_site_still_knows_what_it_led_away() {
    let mut world = World::start();
    assert!(!world.asks(LATEST) && !world.asks(STABLE));
    let location = world.led();
    assert!(world.asks(LATEST) && !world.asks(STABLE));
    world.restart(|_| ());
    assert!(world.asks(LATEST), "it was led away before the kill");
    assert!(!world.asks(STABLE), "nothing was said about it");
    let put = world.pusher.send("PUT", &location, &[("Content-Type", OCI_MANIFEST)], &world.next);
    assert_eq!(put.status, 201, "{}", put.text());
    let shown = world.onlooker.get(LATEST);
    assert_eq!(shown.body, world.next);
    world.cluster.wait_complete();
    wait_for("the push's event to end the wait for it", || (!world.asks(LATEST)).then_some(()));
    assert_eq!(
        world.onlooker.get(LATEST).header("docker-content-digest"),
        Some(&*Digest::sha256(&world.next).to_string())
    );
}

#[test]
fn a_push_from_elsewhere_does_not_end_the_wait_for_ones_own() {
    let world = World::start();
    let location = world.led();
    for round in 0..5 {
        world.pusher.push_image(REPO, "latest", &[&bytes(100, 10 + round)]);
        world.cluster.wait_complete();
        assert!(world.asks(LATEST), "round {round}");
    }
    let put = world.pusher.send("PUT", &location, &[("Content-Type", OCI_MANIFEST)], &world.next);
    assert_eq!(put.status, 201, "{}", put.text());
    assert_eq!(world.onlooker.get(LATEST).body, world.next);
}

#[test]
fn a_site_that_does_not_know_what_it_forgot_asks_about_everything() {
    let mut world = World::start();
    world.led();
    let notes = |site: &Node| site.data().join("intents/open");
    world.restart(|site| fs::remove_file(notes(site)).unwrap());
    assert!(world.asks(LATEST) && world.asks(STABLE), "the file was gone");
    world.restart(|_| ());
    assert!(world.asks(STABLE), "that it does not know is known after another kill");
    world.restart(|site| {
        let mut content = fs::read(notes(site)).unwrap();
        content[20] ^= 1;
        fs::write(notes(site), content).unwrap();
    });
    assert!(world.asks(STABLE), "the file was damaged");
}

#[test]
fn a_remembered_no_ends_with_an_event_and_is_not_believed_while_a_push_is_on_its_way() {
    const DELAY: Duration = Duration::from_millis(300);
    const OTHER: &str = "team/other";
    let site_toml = "[read]\nremembered_max = 100\nstaleness_bound_ms = 60000\n".to_owned();
    let options = Options { sites: vec!["mumbai"], site_toml, ..Options::default() };
    let mut cluster = Cluster::start(options);
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO, OTHER]);
    let layer = bytes(100, 1);
    pusher.push_image(REPO, "old", &[&layer]);
    pusher.push_image(OTHER, "old", &[&layer]);
    let _wire = moved_away(&mut cluster, DELAY);
    cluster.wait_complete();
    let site = &cluster.sites[0];
    // Its token is older than what follows, so only what the site knows counts.
    let onlooker = Session::anyone(&cluster, site, &[REPO, OTHER]);
    let manifest = |repo: &str, tag: &str| format!("/v2/{repo}/manifests/{tag}");
    let denied_in = |repo: &str, tag: &str| {
        let began = Instant::now();
        let got = onlooker.get(&manifest(repo, tag));
        assert_eq!((got.status, got.code()), (404, "MANIFEST_UNKNOWN".to_owned()));
        began.elapsed()
    };
    let wait_remembered = |repo: &str, tag: &str| {
        wait_for(&format!("a remembered no to {repo}:{tag}"), || {
            (denied_in(repo, tag) < 2 * DELAY).then_some(())
        });
    };
    let sees = |tag: &str, content: &[u8], when: &str| {
        let got = onlooker.get(&manifest(REPO, tag));
        assert_eq!((got.status, got.body == content), (200, true), "{when}: {}", got.text());
    };
    for (repo, tag) in [(REPO, "new"), (REPO, "newer"), (OTHER, "new")] {
        wait_remembered(repo, tag);
    }

    let (content, content_type) = (image(&[&layer]), [("Content-Type", OCI_MANIFEST)]);
    let led = pusher.at(site).once("PUT", &manifest(REPO, "new"), &content_type, &content);
    assert_eq!(led.status, 307, "{}", led.text());
    for tag in ["new", "newer"] {
        assert!(
            denied_in(REPO, tag) >= 2 * DELAY,
            "{tag}: a push is on its way, and the primary was not asked"
        );
    }
    wait_remembered(OTHER, "new");
    let put = pusher.send("PUT", led.header("location").unwrap(), &content_type, &content);
    assert_eq!(put.status, 201, "{}", put.text());
    sees("new", &content, "its event is still on its way");

    cluster.wait_complete();
    wait_remembered(REPO, "newer");
    assert_eq!(pusher.put_manifest(REPO, "another", &content).status, 201);
    cluster.wait_complete();
    assert_eq!(pusher.put_manifest(REPO, "newer", &content).status, 201);
    sees("newer", &content, "the event before it ended what the site remembered of the repository");
}
