//! Machines become sites by a token, and sites end.

use std::{
    fs,
    process::{Command, Output},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use outport::auth::{Authority, NodeIdentity};
use outport_proto::{Digest, Timestamp};
use serde_json::Value;

use crate::support::{
    BINARY, Cluster, Node, Options,
    http::get_plain,
    outport, path,
    session::{Session, bytes},
    signal, wait_for,
};

const REPO: &str = "team/app";
/// A site that was removed is cut off within this.
const CUT_OFF: Duration = Duration::from_secs(5);

fn token(cluster: &Cluster, arguments: &[&str]) -> String {
    let said =
        outport(&[&["site", "add", "--json", "--admin", &cluster.primary.admin()], arguments].concat());
    serde_json::from_str::<Value>(&said).unwrap()["token"].as_str().unwrap().to_owned()
}

/// What a machine is started with that joins.
fn joining(machine: &Node, token: &str) -> Vec<String> {
    let data = path(machine.data());
    [
        ["--join", token],
        ["--data-dir", data],
        ["--listen", &machine.registry()],
        ["--admin", &machine.admin()],
    ]
    .concat()
    .iter()
    .map(|argument| (*argument).to_owned())
    .collect()
}

/// Runs the command that joins to its end.
fn try_joining(machine: &Node, token: &str) -> Output {
    let mut command = Command::new(BINARY);
    command.args(["secondary", "--config", path(&machine.config())]).args(joining(machine, token));
    command.output().unwrap()
}

fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

fn row(cluster: &Cluster, site: &str) -> Option<Value> {
    let status = cluster.primary.status();
    status["sites"].as_array().unwrap().iter().find(|row| row["site"] == site).cloned()
}

fn remove(cluster: &Cluster, site: &str) {
    outport(&["site", "remove", site, "--admin", &cluster.primary.admin()]);
}

#[test]
fn a_machine_joins_with_one_command_serves_at_once_and_is_cut_off_when_it_is_removed() {
    let options = Options { sites: vec!["mumbai"], tls: true, certifies: true, ..Options::default() };
    let mut cluster = Cluster::start(options);
    let layer = bytes(200_000, 1);
    let image = Session::user(&cluster, &cluster.primary, &[REPO]).push_image(REPO, "1", &[&layer]);
    let mut goa = cluster.machine("goa", 1);
    let names = format!("{},{}", goa.host, goa.ip);
    let invited = token(&cluster, &["goa", "--https", &names]);
    goa.arguments = joining(&goa, &invited);
    goa.start();
    // Geo DNS sends nobody before.
    wait_for("goa to be ready", || {
        let (status, _) = get_plain(&goa.admin(), "/readyz").unwrap();
        (status == 200).then_some(())
    });
    let puller = Session::user(&cluster, &goa, &[REPO]);
    assert_eq!(puller.get(&format!("/v2/{REPO}/manifests/1")).body, image.manifest);
    assert_eq!(puller.get(&format!("/v2/{REPO}/blobs/{}", Digest::sha256(&layer))).body, layer);
    wait_for("goa to stream", || row(&cluster, "goa").filter(|row| row["state"] == "streaming"));
    let second = Session::user(&cluster, &cluster.primary, &[REPO]).push_image(REPO, "2", &[&bytes(1000, 2)]);
    assert_eq!(puller.get(&format!("/v2/{REPO}/manifests/2")).body, second.manifest);

    // The same command again is a start like any other, also without the primary and with a token that is spent.
    cluster.primary.stop();
    goa.stop();
    goa.start();
    assert_eq!(puller.get(&format!("/v2/{REPO}/manifests/2")).body, second.manifest);
    cluster.primary.start();
    wait_for("goa to stream", || row(&cluster, "goa").filter(|row| row["state"] == "streaming"));
    let thief = refused(&try_joining(&cluster.machine("goa", 2), &invited));
    assert!(thief.contains("used before, by another machine"), "{thief}");
    let taken = Command::new(BINARY)
        .args(["site", "add", "goa", "--admin", &cluster.primary.admin()])
        .output()
        .unwrap();
    assert!(refused(&taken).contains("is a site already"), "{taken:?}");

    let led = led_upload(&cluster, &goa);
    remove(&cluster, "goa");
    let cut_off = std::time::Instant::now();
    wait_for("goa to be cut off", || (goa.status()["state"] == "disconnected").then_some(()));
    assert!(cut_off.elapsed() < CUT_OFF, "{:?}", cut_off.elapsed());
    assert!(row(&cluster, "goa").is_none());
    let answer = cluster.client().send(&cluster.primary.registry(), "POST", &led, &[], b"");
    assert_eq!((answer.status, answer.code()), (403, "DENIED".to_owned()), "its tickets are void");
    wait_for("goa to hear why", || goa.log().contains("was removed").then_some(()));
    // It comes back by itself at no start of either.
    cluster.primary.stop();
    cluster.primary.start();
    goa.stop();
    goa.start();
    wait_for("goa to be refused again", || {
        let refusals = goa.log().matches("has not joined").count();
        (refusals > 0).then_some(())
    });
    assert!(row(&cluster, "goa").is_none());
    // Its place is free, and what the first machine has is no good for it.
    let mut heir = cluster.machine("goa", 3);
    heir.arguments = joining(&heir, &token(&cluster, &["goa"]));
    heir.start();
    wait_for("the heir to stream", || row(&cluster, "goa").filter(|row| row["state"] == "streaming"));
    wait_for("the first to be refused", || {
        goa.log().contains("not one that site goa joined with").then_some(())
    });
}

/// Where a push through `site` is led at the primary, with the ticket.
fn led_upload(cluster: &Cluster, site: &Node) -> String {
    let pusher = Session::user(cluster, site, &[REPO]);
    let answer = pusher.once("POST", &format!("/v2/{REPO}/blobs/uploads/"), &[], b"");
    assert_eq!(answer.status, 307, "{}", answer.text());
    let location = answer.header("location").unwrap();
    location[location.find("/v2/").unwrap()..].to_owned()
}

#[test]
fn a_token_that_is_not_good_spends_nothing_and_says_why() {
    let options = Options { sites: vec!["mumbai"], certifies: true, ..Options::default() };
    let cluster = Cluster::start(options);
    let goa = cluster.machine("goa", 1);
    let first = token(&cluster, &["goa"]);
    let good = token(&cluster, &["goa"]);
    assert!(refused(&try_joining(&goa, &first)).contains("another one was made since"));
    let cut = Command::new(BINARY)
        .args(["secondary", "--config", path(&goa.config()), "--join", &good[..good.len() - 2]])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&cut.stderr);
    assert!(cut.status.code() == Some(2) && said.contains("copy all of it"), "{said}");
    // What could not start is said before the token is shown to anybody.
    let open = Command::new(BINARY)
        .args(["secondary", "--config", path(&goa.config()), "--join", &good])
        .args(["--data-dir", path(goa.data()), "--listen", "0.0.0.0:5000"])
        .output()
        .unwrap();
    assert!(refused(&open).contains("plain HTTP is for loopback"));
    assert!(!goa.config().exists());
    // Another cluster's primary is not told the secret.
    let other = Cluster::start(Options { sites: vec!["mumbai"], certifies: true, ..Options::default() });
    let text: outport::auth::JoinToken = good.parse().unwrap();
    let misled = outport::auth::JoinToken {
        addresses: vec![other.primary.replication().to_string()],
        fallback_url: other.public_url(),
        ..text
    };
    assert!(refused(&try_joining(&goa, &misled.to_string())).contains("another cluster"));
    wait_for("the other primary to see a handshake fail", || {
        other.primary.log().contains("did not say how it wants to join").then_some(())
    });
    assert!(!other.primary.log().contains("refused that wants to join"));
    // It is still good.
    let mut goa = goa;
    goa.arguments = joining(&goa, &good);
    goa.start();
    wait_for("goa to stream", || row(&cluster, "goa").filter(|row| row["state"] == "streaming"));
    let secret = &good[good.len() - 30..];
    for node in [&cluster.primary, &goa] {
        assert!(!node.log().contains(secret), "{}", node.name);
    }
    let none = Command::new(BINARY)
        .args(["site", "remove", "nowhere", "--admin", &cluster.primary.admin()])
        .output()
        .unwrap();
    assert!(refused(&none).contains("there is no site nowhere"));
    let elsewhere =
        Command::new(BINARY).args(["site", "add", "pune", "--admin", &goa.admin()]).output().unwrap();
    assert!(refused(&elsewhere).contains("at the primary"));
}

#[test]
fn a_site_behind_a_relay_is_cut_off_as_well() {
    let cluster = Cluster::start(Options {
        sites: vec!["mumbai", "pune", "goa"],
        behind: vec![("pune", "mumbai"), ("goa", "pune")],
        certifies: true,
        ..Options::default()
    });
    wait_for("goa to be told of", || row(&cluster, "goa").filter(|row| row["state"] == "streaming"));
    remove(&cluster, "goa");
    let cut_off = std::time::Instant::now();
    wait_for("goa to be cut off", || (cluster.site("goa").status()["state"] == "disconnected").then_some(()));
    assert!(cut_off.elapsed() < CUT_OFF, "{:?}", cut_off.elapsed());
    assert!(row(&cluster, "goa").is_none());
    assert_eq!(cluster.site("pune").status()["state"], "streaming");
}

#[test]
fn certificates_are_renewed_before_they_end() {
    let options = Options {
        sites: vec!["mumbai", "pune"],
        behind: vec![("pune", "mumbai")],
        tls: true,
        certifies: true,
        ..Options::default()
    };
    let mut cluster = Cluster::start(options);
    let pki = cluster.authority().parent().unwrap().to_owned();
    let authority = Authority::load(&pki.join("authority.crt"), &pki.join("authority.key")).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    // Issued for three years, and for thirteen months, nearly all of which are over.
    let begun = |days: u64| Timestamp::from_secs(now - days * 24 * 3600);
    for (name, node) in [
        ("primary", NodeIdentity::Primary),
        ("mumbai", NodeIdentity::Site("mumbai".parse().unwrap())),
        ("pune", NodeIdentity::Site("pune".parse().unwrap())),
    ] {
        let old = authority.issue_node(&node, begun(3 * 365 - 5)).unwrap();
        old.save(&pki.join(format!("{name}.crt")), &pki.join(format!("{name}.key"))).unwrap();
    }
    let names = [cluster.primary.host.clone(), cluster.primary.ip.to_string()];
    let old = authority.issue_server(&names, begun(390)).unwrap();
    old.save(&pki.join("primary-https.crt"), &pki.join("primary-https.key")).unwrap();
    let soon = (now + 10 * 24 * 3600) as f64;
    for node in std::iter::once(&mut cluster.primary).chain(&mut cluster.sites) {
        node.stop();
        let text = fs::read_to_string(node.config()).unwrap();
        let mut text = text.replace(".tls]\n", ".tls]\nrenew = true\n");
        if node.name == "primary" {
            text = text.replace("-https.key' }", "-https.key', renew = true }");
        }
        fs::write(node.config(), text).unwrap();
    }
    cluster.primary.start();
    cluster.sites.iter_mut().for_each(Node::start);
    let expiry = |node: &Node, name: &str| {
        node.metric("outport_certificate_expiry_timestamp_seconds", &format!("certificate=\"{name}\""))
    };
    for node in cluster.nodes() {
        // Whoever watches the files looks every few seconds, or when told to.
        wait_for(&format!("{} to be renewed", node.name), || {
            node.log().contains("certificates renewed").then_some(())
        });
        signal(node.pid(), "HUP");
        wait_for("it is used", || (expiry(node, "replication") > soon).then_some(()));
    }
    wait_for("https is used", || (expiry(&cluster.primary, "https") > soon).then_some(()));
    // What was renewed is good for new sessions.
    for node in std::iter::once(&mut cluster.primary).chain(&mut cluster.sites) {
        node.stop();
        node.start();
    }
    let image = Session::user(&cluster, &cluster.primary, &[REPO]).push_image(REPO, "1", &[&bytes(1000, 3)]);
    cluster.wait_complete();
    let puller = Session::user(&cluster, cluster.site("pune"), &[REPO]);
    assert_eq!(puller.get(&format!("/v2/{REPO}/manifests/1")).body, image.manifest);
}
