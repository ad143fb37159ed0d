//! What stands in front of real sites. Proxies, and geo DNS: clients of three regions are led to three sites, away from one that fails, and
//! go on when they are moved in the middle of something.

#![cfg(test)]
#![expect(
    unreachable_pub,
    reason = "a test binary is reached by nobody: `pub` tells its modules apart well enough"
)]

mod mmdb;
mod pdns;
mod proxies;
#[path = "../support/mod.rs"]
mod support;

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use outport_proto::Digest;

use self::{
    pdns::{CHECK_SECONDS, Pdns, Record, Spot},
    support::{
        Cluster, Node, Options,
        http::get_plain,
        session::{Session, bytes, finish},
        signal, wait_for,
    },
};

const REPO: &str = "team/app";
const FRANKFURT: Spot = Spot { latitude: 50.1, longitude: 8.7, continent: "EU" };
const MUMBAI: Spot = Spot { latitude: 19.1, longitude: 72.9, continent: "AS" };
const VIRGINIA: Spot = Spot { latitude: 38.9, longitude: -77.5, continent: "NA" };
/// Clients in Paris, Delhi and Chicago.
const CLIENTS: [(Ipv4Addr, Spot); 3] = [
    (Ipv4Addr::new(198, 51, 100, 0), Spot { latitude: 48.9, longitude: 2.4, continent: "EU" }),
    (Ipv4Addr::new(203, 0, 113, 0), Spot { latitude: 28.6, longitude: 77.2, continent: "AS" }),
    (Ipv4Addr::new(192, 0, 2, 0), Spot { latitude: 41.9, longitude: -87.6, continent: "NA" }),
];

fn world(record: Record) -> (Cluster, Pdns) {
    let cluster =
        Cluster::start(Options { sites: vec!["frankfurt", "mumbai", "virginia"], ..Options::default() });
    let pdns = Pdns::start(&cluster, record, &[FRANKFURT, MUMBAI, VIRGINIA], &CLIENTS);
    (cluster, pdns)
}

fn wait_until_led(pdns: &Pdns, client: usize, site: &Node) {
    let to = [IpAddr::from(site.ip)];
    wait_for(&format!("client {client} to be led to {}", site.name), || {
        (pdns.answers(Some(CLIENTS[client].0)) == to).then_some(())
    });
}

#[test]
fn clients_are_led_to_the_nearest_site_that_is_ready() {
    let (mut cluster, pdns) = world(Record::Closest);
    for (client, site) in cluster.sites.iter().enumerate() {
        wait_until_led(&pdns, client, site);
    }
    // A stopped site leaves the answers, its clients go to the next nearest, and come back with it.
    let (frankfurt, mumbai) = (0, 1);
    cluster.sites[mumbai].stop();
    let stopped = Instant::now();
    wait_until_led(&pdns, mumbai, &cluster.sites[frankfurt]);
    // Its last good check, the next one, which is refused at once, and a moment for the question.
    assert!(stopped.elapsed() < Duration::from_secs(2 * CHECK_SECONDS + 1), "{:?}", stopped.elapsed());
    cluster.sites[mumbai].start();
    wait_until_led(&pdns, mumbai, &cluster.sites[mumbai]);

    // One that is cut off says so, and serves on for whoever is still there.
    Session::user(&cluster, &cluster.primary, &[REPO]).push_image(REPO, "1", &[&bytes(1000, 1)]);
    cluster.wait_complete();
    let session = Session::anyone(&cluster, &cluster.sites[mumbai], &[REPO]);
    signal(cluster.primary.pid(), "STOP");
    wait_for("mumbai not to be ready", || {
        let (status, text) = get_plain(&cluster.sites[mumbai].registry(), "/readyz").unwrap();
        (status == 503).then(|| assert_eq!(text, "not ready\n"))
    });
    assert_eq!(session.get(&format!("/v2/{REPO}/manifests/1")).status, 200);
    // Now that nobody is ready, the nearest is the best there is.
    for (client, site) in cluster.sites.iter().enumerate() {
        wait_until_led(&pdns, client, site);
    }
    signal(cluster.primary.pid(), "CONT");
    for (client, site) in cluster.sites.iter().enumerate() {
        site.wait_until(|status| status["state"] == "streaming");
        wait_until_led(&pdns, client, site);
    }
}

#[test]
fn regions_may_have_their_own_order_of_sites() {
    let (mut cluster, pdns) = world(Record::Lists);
    let [frankfurt, mumbai, virginia] = [0, 1, 2];
    wait_until_led(&pdns, mumbai, &cluster.sites[mumbai]);
    for client in [frankfurt, virginia] {
        wait_until_led(&pdns, client, &cluster.sites[frankfurt]);
    }
    cluster.sites[mumbai].stop();
    wait_until_led(&pdns, mumbai, &cluster.sites[frankfurt]);
    cluster.sites[mumbai].start();
    wait_until_led(&pdns, mumbai, &cluster.sites[mumbai]);
}

#[test]
fn the_views_of_bind_are_what_bind_reads() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/dns/bind/named.conf");
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(file).unwrap();
    let text = text.replace("/var/cache/bind", support::path(dir.path()));
    let adapted = dir.path().join("named.conf");
    std::fs::write(&adapted, text).unwrap();
    let checked = std::process::Command::new("named-checkconf")
        .arg(adapted)
        .output()
        .expect("named-checkconf (Debian: bind9-utils) runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[test]
fn a_client_that_is_moved_in_the_middle_of_a_push_and_of_a_pull_goes_on() {
    let (mut cluster, pdns) = world(Record::Closest);
    let [frankfurt, mumbai] = [0, 1];
    wait_until_led(&pdns, mumbai, &cluster.sites[mumbai]);
    // Half of a blob through Mumbai, whose site then goes away; the client looks the name up again.
    let content = bytes(2_000_000, 7);
    let digest = Digest::sha256(&content);
    let at_mumbai = Session::user(&cluster, &cluster.sites[mumbai], &[REPO]);
    let upload = at_mumbai.begin_upload(REPO);
    let half = content.len() / 2;
    let answer = at_mumbai.send("PATCH", &upload, &[], &content[..half]);
    assert_eq!(answer.status, 202, "{}", answer.text());
    cluster.sites[mumbai].stop();
    wait_until_led(&pdns, mumbai, &cluster.sites[frankfurt]);
    let elsewhere = at_mumbai.at(&cluster.sites[frankfurt]);
    let next = answer.header("location").unwrap();
    let answer = elsewhere.send("PUT", &finish(next, &digest), &[], &content[half..]);
    assert_eq!(answer.status, 201, "{}", answer.text());
    let image = elsewhere.push_image(REPO, "moved", &[&content]);
    // The token that it was given for one site is good at the next, which shows what was pushed at once.
    assert_eq!(elsewhere.get(&format!("/v2/{REPO}/manifests/moved")).body, image.manifest);

    // A pull that breaks off at one site goes on with a range at another.
    cluster.sites[mumbai].start();
    wait_until_led(&pdns, mumbai, &cluster.sites[mumbai]);
    let blob = format!("/v2/{REPO}/blobs/{digest}");
    let first = at_mumbai.send("GET", &blob, &[("Range", &format!("bytes=0-{}", half - 1))], b"");
    assert_eq!((first.status, first.body.len()), (206, half));
    cluster.sites[mumbai].kill();
    wait_until_led(&pdns, mumbai, &cluster.sites[frankfurt]);
    let rest = elsewhere.send("GET", &blob, &[("Range", &format!("bytes={half}-"))], b"");
    assert_eq!(rest.status, 206, "{}", rest.text());
    assert_eq!(Digest::sha256(&[first.body, rest.body].concat()), digest);
}
