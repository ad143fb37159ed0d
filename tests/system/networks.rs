//! Networks as they are: some carry no UDP, and the site's QUIC goes through the primary's registry, over TCP; others
//! change addresses or lose what is large, or know IPv6 alone.

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use outport_proto::Digest;
use serde_json::Value;

use crate::{
    far::moved_behind,
    support::{
        Cluster, Node, Options,
        http::get_plain,
        listens, outport, path,
        session::{Session, bytes},
        wait_for,
    },
    wire::Quality,
};

const REPO: &str = "team/app";
/// After UDP was cut replication goes on within this.
const RESUMED: Duration = Duration::from_secs(3);

fn row(cluster: &Cluster, site: &str) -> Value {
    let status = cluster.primary.status();
    status["sites"].as_array().unwrap().iter().find(|row| row["site"] == site).cloned().unwrap()
}

/// Changes a site's configuration and starts it again.
fn reconfigured(site: &mut Node, change: impl FnOnce(String) -> String) {
    site.stop();
    let text = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), change(text)).unwrap();
    site.start();
}

/// UDP to the primary leads nowhere, and `more` is in `[primary]`.
fn without_udp(cluster: &Cluster, text: &str, more: &str) -> String {
    let nowhere = format!("{}:9", cluster.primary.ip);
    let near = cluster.primary.replication().to_string();
    let text = text.replace(&format!("'{near}'"), &format!("'{nowhere}'"));
    assert!(text.contains(&nowhere), "{text}");
    text.replace("[primary]\n", &format!("[primary]\n{more}\n"))
}

#[test]
fn a_cut_of_udp_is_survived_over_tcp_and_udp_is_taken_again_when_it_works() {
    const CLIENTS: u64 = 4;
    let mut cluster = Cluster::start(Options { sites: vec!["mumbai"], tls: true, ..Options::default() });
    let registry = format!("https://{}", cluster.primary.registry());
    let near = cluster.primary.replication();
    reconfigured(&mut cluster.sites[0], |text| {
        text.replace("[primary]\n", &format!("[primary]\nfallback_url = '{registry}'\n"))
    });
    let wire = moved_behind(near, &mut cluster.sites[0], Quality::default());
    let site = &cluster.sites[0];
    let layers: Vec<_> = (0..200).map(|number| bytes(20_000, 500 + number)).collect();
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    pusher.push_image(REPO, "1", &[&layers[0]]);
    cluster.wait_complete();
    assert_eq!(site.status()["transport"], "quic");

    let (ended, pulls) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let puller = Session::user(&cluster, site, &[REPO]);
                while !ended.load(Relaxed) {
                    let answer = puller.get(&format!("/v2/{REPO}/manifests/1"));
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    pulls.fetch_add(1, Relaxed);
                }
            });
        }
        let pulled = || {
            let before = pulls.load(Relaxed);
            wait_for("pulls to go on", || (pulls.load(Relaxed) > before + 50).then_some(()));
        };
        pulled();
        wire.cut(true);
        let cut = Instant::now();
        wait_for("the session to go over TCP", || (site.status()["transport"] == "tcp").then_some(()));
        site.wait_until(|status| status["state"] == "streaming");
        let resumed = cut.elapsed();
        eprintln!("UDP was cut, and replication went on over TCP after {resumed:.2?}");
        assert!(resumed < RESUMED, "{resumed:?}");
        assert_eq!(row(&cluster, "mumbai")["transport"], "tcp");
        pulled();
        // Events, and blobs, which take a tunnel of their own.
        for (number, layer) in layers.iter().enumerate().skip(1).take(5) {
            let image = pusher.push_image(REPO, &format!("over-tcp-{number}"), &[layer]);
            let puller = Session::user(&cluster, site, &[REPO]);
            let shown = puller.get(&format!("/v2/{REPO}/manifests/over-tcp-{number}"));
            assert_eq!(shown.body, image.manifest);
            assert_eq!(puller.get(&format!("/v2/{REPO}/blobs/{}", Digest::sha256(layer))).body, *layer);
        }
        cluster.wait_complete();
        wire.cut(false);
        wait_for("UDP to be taken again", || (site.status()["transport"] == "quic").then_some(()));
        site.wait_until(|status| status["state"] == "streaming");
        pulled();
        ended.store(true, Relaxed);
    });
    wait_for("the primary to see it", || (row(&cluster, "mumbai")["transport"] == "quic").then_some(()));
}

/// Pushes images until `enough`; each shows at the site, and its session is the one that it was.
fn goes_on(cluster: &Cluster, site: &Node, name: &str) {
    let sessions = |node: &Node| node.log().matches("session with the primary is open").count();
    let before = sessions(site);
    for number in 0..5 {
        let layer = bytes(300_000, 700 + number);
        let pusher = Session::user(cluster, &cluster.primary, &[REPO]);
        let image = pusher.push_image(REPO, &format!("{name}-{number}"), &[&layer]);
        let puller = Session::anyone(cluster, site, &[REPO]);
        let shown = puller.get(&format!("/v2/{REPO}/manifests/{name}-{number}"));
        assert_eq!(shown.body, image.manifest);
        assert_eq!(puller.get(&format!("/v2/{REPO}/blobs/{}", Digest::sha256(&layer))).body, layer);
    }
    cluster.wait_complete();
    assert_eq!(sessions(site), before, "{name}: the session went on");
    assert_eq!(site.status()["transport"], "quic");
}

#[test]
fn a_session_outlives_a_nat_that_forgets_and_a_path_that_becomes_narrow() {
    let mut cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let near = cluster.primary.replication();
    let delay = Duration::from_millis(2);
    let wire = moved_behind(near, &mut cluster.sites[0], Quality { delay, ..Quality::default() });
    let site = &cluster.sites[0];
    goes_on(&cluster, site, "as-it-is");
    wire.rebind();
    goes_on(&cluster, site, "from-another-port");
    // Both ends have found out that more fits through; now no more than QUIC asks of every path does.
    wire.narrow(1200);
    goes_on(&cluster, site, "narrow");
    wire.narrow(usize::MAX);
    wire.rebind();
    goes_on(&cluster, site, "wide-again");
}

#[test]
fn a_site_follows_over_ipv6_alone() {
    let mut cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
    let near = cluster.primary.replication();
    let port = std::net::UdpSocket::bind("[::1]:0").unwrap().local_addr().unwrap().port();
    let six = format!("[::1]:{port}");
    reconfigured(&mut cluster.primary, |text| text.replace(&near.to_string(), &six));
    reconfigured(&mut cluster.sites[0], |text| text.replace(&near.to_string(), &six));
    let site = &cluster.sites[0];
    site.wait_until(|status| status["state"] == "streaming" && status["transport"] == "quic");
    goes_on(&cluster, site, "six");
    // Of several addresses the one that works is taken, whatever stands before it.
    let several = format!("['127.0.0.1:9', 'nowhere.invalid:1', '{six}']");
    reconfigured(&mut cluster.sites[0], |text| text.replace(&format!("'{six}'"), &several));
    let site = &cluster.sites[0];
    site.wait_until(|status| status["state"] == "streaming" && status["transport"] == "quic");
    goes_on(&cluster, site, "several");
}

#[test]
fn a_machine_joins_and_fills_where_there_is_no_udp() {
    let mut cluster =
        Cluster::start(Options { sites: vec!["mumbai"], certifies: true, ..Options::default() });
    let nowhere = format!("public_address = '{}:9'", cluster.primary.ip);
    reconfigured(&mut cluster.primary, |text| {
        let (before, rest) = text.split_once("public_address").unwrap();
        let (_, behind) = rest.split_once('\n').unwrap();
        format!("{before}{nowhere}\n{behind}")
    });
    let layer = bytes(3_000_000, 9);
    Session::user(&cluster, &cluster.primary, &[REPO]).push_image(REPO, "1", &[&layer]);
    let said = outport(&["site", "add", "goa", "--json", "--admin", &cluster.primary.admin()]);
    let token = serde_json::from_str::<Value>(&said).unwrap()["token"].as_str().unwrap().to_owned();
    let mut goa = cluster.machine("goa", 1);
    let (data, registry, admin) = (path(goa.data()).to_owned(), goa.registry(), goa.admin());
    let arguments = ["--join", &token, "--data-dir", &data, "--listen", &registry, "--admin", &admin];
    goa.arguments = arguments.map(str::to_owned).to_vec();
    goa.start();
    goa.wait_until(|status| status["state"] == "streaming" && status["transport"] == "tcp");
    let puller = Session::anyone(&cluster, &goa, &[REPO]);
    assert_eq!(puller.get(&format!("/v2/{REPO}/blobs/{}", Digest::sha256(&layer))).body, layer);
    assert_eq!(row(&cluster, "goa")["transport"], "tcp");
    // Switched off, there is no way.
    reconfigured(&mut goa, |text| text.replace("[primary]\n", "[primary]\ntcp_fallback = false\n"));
    wait_for("it to say that it cannot", || goa.log().contains("primary unreachable").then_some(()));
    assert_eq!(get_plain(&goa.admin(), "/readyz").unwrap().0, 503);
}

#[test]
fn the_way_over_tcp_may_lead_through_a_proxy_and_ends_at_the_primary_alone() {
    let mut cluster = Cluster::start(Options { sites: vec!["mumbai"], tls: true, ..Options::default() });
    let proxy = Tinyproxy::start(&cluster);
    let registry = format!("https://{}", cluster.primary.registry());
    let more = format!("fallback_url = '{registry}'\nhttp_proxy = '{}'", proxy.address);
    let text = fs::read_to_string(cluster.sites[0].config()).unwrap();
    let text = without_udp(&cluster, &text, &more);
    reconfigured(&mut cluster.sites[0], |_| text);
    let site = &cluster.sites[0];
    site.wait_until(|status| status["state"] == "streaming" && status["transport"] == "tcp");
    let image = Session::user(&cluster, &cluster.primary, &[REPO]).push_image(REPO, "1", &[&bytes(1000, 3)]);
    let puller = Session::user(&cluster, site, &[REPO]);
    assert_eq!(puller.get(&format!("/v2/{REPO}/manifests/1")).body, image.manifest);
    let log = fs::read_to_string(&proxy.log).unwrap();
    assert!(log.contains("CONNECT"), "{log}");

    // Nothing but the replication listener can be reached, and that only by an upgrade; a site has no tunnel.
    let upgrade = [("Connection", "Upgrade"), ("Upgrade", "connect-udp")];
    let client = cluster.client();
    let primary = cluster.primary.registry();
    for target in ["/.well-known/masque/udp/192.0.2.1/53/", "/.well-known/masque/udp/primary.outport/444/"] {
        assert_eq!(client.send(&primary, "GET", target, &upgrade, b"").status, 404, "{target}");
    }
    let path = "/.well-known/masque/udp/primary.outport/443/";
    assert_eq!(client.send(&primary, "GET", path, &[], b"").status, 404);
    assert_eq!(client.send(&site.registry(), "GET", path, &upgrade, b"").status, 404);
    // Without a certificate of the cluster there is nothing behind it: one that says nothing is closed.
    let answer = client.send(&primary, "GET", path, &upgrade, b"");
    assert_eq!(answer.status, 101);
}

/// Debian's HTTP proxy. Dropping it ends it.
struct Tinyproxy {
    child: Child,
    address: String,
    log: std::path::PathBuf,
}

impl Tinyproxy {
    fn start(cluster: &Cluster) -> Self {
        let port = TcpListener::bind((cluster.primary.ip, 0)).unwrap().local_addr().unwrap().port();
        let (ip, dir) = (cluster.primary.ip, cluster.dir.path());
        let log = dir.join("tinyproxy.log");
        let config = dir.join("tinyproxy.conf");
        let text =
            format!("Port {port}\nListen {ip}\nTimeout 600\nLogFile \"{}\"\nLogLevel Connect\n", path(&log));
        fs::write(&config, text).unwrap();
        let child = Command::new("tinyproxy")
            .args(["-d", "-c", path(&config)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("tinyproxy (Debian: tinyproxy-bin) runs");
        let address = format!("{ip}:{port}");
        let proxy = Self { child, address, log };
        wait_for("tinyproxy to listen", || listens(proxy.address.parse().unwrap()).then_some(()));
        proxy
    }
}

impl Drop for Tinyproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
