//! nginx and HAProxy in front of nodes, configured with the files of `deploy/proxy`.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use outport_proto::Digest;
use serde_json::Value;

use crate::{
    REPO,
    support::{
        Cluster, Node, Options,
        http::Client,
        listens, outport, path,
        session::{Session, bytes, user_token},
        wait_for,
    },
};

/// A proxy in front of nodes. Dropping it ends it.
struct Proxy {
    child: Child,
    address: String,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    /// Where it is going to listen: an address of its own, so that nodes see who comes from it.
    fn place(cluster: &Cluster, number: u8) -> (Ipv4Addr, String) {
        let [a, b, c, _] = cluster.primary.ip.octets();
        let ip = Ipv4Addr::new(a, b, c, number);
        let port = TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap().port();
        (ip, format!("{ip}:{port}"))
    }

    fn start(mut command: Command, address: &str, log: &Path) -> Self {
        let file = fs::File::create(log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let mut child = command.spawn().expect("the proxy (Debian: nginx, haproxy) runs");
        wait_for("the proxy to listen", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the proxy ended with {status}:\n{}", fs::read_to_string(log).unwrap());
            }
            listens(address.parse().unwrap()).then_some(())
        });
        Self { child, address: address.to_owned() }
    }

    fn nginx(cluster: &Cluster, (ip, address): &(Ipv4Addr, String), node: &Node) -> Self {
        let dir = dir_of(cluster, &format!("nginx-{}", node.name));
        let pki = cluster.dir.path().join("pki");
        let name = format!("nginx-{}", node.name);
        outport(&["cert", "issue", &name, "--https", &ip.to_string(), "--dir", path(&pki)]);
        let text = adapted(
            "nginx.conf",
            &[
                ("listen 443 ssl", &format!("listen {address} ssl")),
                ("server 127.0.0.1:5000;", &format!("server {};", node.registry())),
                ("/etc/nginx/registry.crt", path(&pki.join(format!("{name}.crt")))),
                ("/etc/nginx/registry.key", path(&pki.join(format!("{name}.key")))),
                ("proxy_pass ", &format!("proxy_bind {ip};\n            proxy_pass ")),
                ("http {", "http {\n    access_log off;"),
            ],
        );
        let config = dir.join("nginx.conf");
        fs::write(&config, text).unwrap();
        let mut command = Command::new("nginx");
        let more = format!("daemon off; pid {0}/pid; error_log stderr;", path(&dir));
        command.args(["-p", path(&dir), "-c", path(&config), "-g", &more]);
        Self::start(command, address, &dir.join("log"))
    }

    fn haproxy(cluster: &Cluster, (ip, address): &(Ipv4Addr, String)) -> Self {
        let dir = dir_of(cluster, "haproxy");
        let [first, second] = [0, 1].map(|number| cluster.sites[number].registry());
        let text = adapted(
            "haproxy.cfg",
            &[
                ("bind :443", &format!("bind {address}")),
                ("balance first", &format!("source {ip}\n    balance first")),
                ("10.0.0.10:443", &first),
                ("10.0.0.20:443", &second),
            ],
        );
        let config = dir.join("haproxy.cfg");
        fs::write(&config, text).unwrap();
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f", path(&config)]);
        Self::start(command, address, &dir.join("log"))
    }
}

fn dir_of(cluster: &Cluster, name: &str) -> PathBuf {
    let dir = cluster.dir.path().join(name);
    fs::create_dir(&dir).unwrap();
    dir
}

fn adapted(file: &str, changes: &[(&str, &str)]) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/proxy").join(file);
    changes.iter().fold(fs::read_to_string(file).unwrap(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    })
}

/// Waits for the pull of `digest` in a node's audit log; returns the client's address there.
fn client_of_pull(node: &Node, digest: &Digest) -> String {
    let digest = digest.to_string();
    wait_for("the pull in the audit log", || {
        let text = fs::read_to_string(node.data_dir().join("audit.log")).ok()?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut pulls = lines.filter(|line| line["kind"] == "pull" && line["digest"] == digest.as_str());
        Some(pulls.next()?["client"].as_str().unwrap().to_owned())
    })
}

fn restart_with(node: &mut Node, change: impl Fn(&str) -> String) {
    node.stop();
    let text = fs::read_to_string(node.config()).unwrap();
    fs::write(node.config(), change(&text)).unwrap();
    node.start();
}

#[test]
fn nginx_ends_tls_and_tells_whose_requests_are() {
    let mut cluster = Cluster::start(Options {
        sites: vec!["mumbai"],
        site_toml: "[audit]\nfile = '{data}/audit.log'\n".to_owned(),
        ..Options::default()
    });
    let (to_primary, to_site) = (Proxy::place(&cluster, 230), Proxy::place(&cluster, 231));
    let plain = cluster.public_url();
    let trusted = |ip: Ipv4Addr| format!("\n[registry.proxies]\ntrusted = ['{ip}']\n");
    restart_with(&mut cluster.primary, |text| {
        let text = text.replace(&plain, &format!("https://{}", to_primary.1));
        format!("{text}{}", trusted(to_primary.0))
    });
    restart_with(&mut cluster.sites[0], |text| format!("{text}{}", trusted(to_site.0)));
    cluster.sites[0].wait_until(|status| status["state"] == "streaming");
    let before_primary = Proxy::nginx(&cluster, &to_primary, &cluster.primary);
    let before_site = Proxy::nginx(&cluster, &to_site, &cluster.sites[0]);

    let https = Client::trusting(&cluster.authority());
    let token = user_token(&cluster, &[REPO]);
    let at = |proxy: &Proxy| Session::over(https.clone(), &proxy.address, &token);
    // Led from the site to the primary, and up through nginx: more than it would take by default.
    let layer = bytes(5_000_000, 1);
    let image = at(&before_site).push_image(REPO, "1", &[&layer]);
    let direct = at(&before_primary).push_image(REPO, "2", &[&layer]);
    let digest = Digest::sha256(&layer);
    // What a client claims stands before what nginx knows, and is not believed.
    let claims = [("X-Forwarded-For", "203.0.113.9")];
    let blob = at(&before_site).send("GET", &format!("/v2/{REPO}/blobs/{digest}"), &claims, b"");
    assert_eq!((blob.status, Digest::sha256(&blob.body)), (200, digest));
    for (tag, pushed) in [("1", &image), ("2", &direct)] {
        let manifest = at(&before_site).get(&format!("/v2/{REPO}/manifests/{tag}"));
        assert_eq!(manifest.body, pushed.manifest);
    }
    assert_eq!(client_of_pull(&cluster.sites[0], &digest), Ipv4Addr::LOCALHOST.to_string());
    // A site whose network carries no UDP gets through nginx as well.
    let near = cluster.primary.replication().to_string();
    let nowhere = format!("{}:9", cluster.primary.ip);
    let authority = cluster.authority();
    restart_with(&mut cluster.sites[0], |text| {
        let text = text.replace(&format!("'{near}'"), &format!("'{nowhere}'"));
        assert!(text.contains(path(&authority)), "it believes nginx's certificate");
        text.replace("[primary]\n", &format!("[primary]\nfallback_url = 'https://{}'\n", to_primary.1))
    });
    cluster.sites[0].wait_until(|status| status["state"] == "streaming" && status["transport"] == "tcp");

    // Whoever is no trusted proxy is who it is.
    let around = Session::user(&cluster, &cluster.sites[0], &[REPO]);
    let manifest = Digest::sha256(&image.manifest);
    around.send("GET", &format!("/v2/{REPO}/manifests/{manifest}"), &claims, b"");
    assert_eq!(client_of_pull(&cluster.sites[0], &manifest), Ipv4Addr::LOCALHOST.to_string());
}

#[test]
fn haproxy_passes_tls_on_tells_whose_connections_are_and_leaves_out_a_site_that_is_stopped() {
    let mut cluster = Cluster::start(Options {
        sites: vec!["frankfurt", "mumbai"],
        tls: true,
        site_toml: "[audit]\nfile = '{data}/audit.log'\n".to_owned(),
        ..Options::default()
    });
    let image = Session::user(&cluster, &cluster.primary, &[REPO]).push_image(REPO, "1", &[&bytes(1000, 2)]);
    cluster.wait_complete();
    let place = Proxy::place(&cluster, 232);
    let pki = cluster.dir.path().join("pki");
    for site in &mut cluster.sites {
        // Clients know all sites by one name; here it is HAProxy's address.
        let names = format!("{},{},{}", site.host, site.ip, place.0);
        let file = format!("{}-https", site.name);
        outport(&["cert", "issue", &file, "--https", &names, "--force", "--dir", path(&pki)]);
        let proxies = format!("\n[registry.proxies]\ntrusted = ['{}']\nproxy_protocol = true\n", place.0);
        restart_with(site, |text| format!("{text}{proxies}"));
        site.wait_until(|status| status["state"] == "streaming");
    }
    let haproxy = Proxy::haproxy(&cluster, &place);
    let https = Client::trusting(&cluster.authority());
    let session = Session::over(https, &haproxy.address, &user_token(&cluster, &[REPO]));
    let target = format!("/v2/{REPO}/manifests/1");
    let pulled = || session.try_send("GET", &target, &[], b"").ok().filter(|answer| answer.status == 200);
    assert_eq!(wait_for("a pull through HAProxy", pulled).body, image.manifest);
    let digest = Digest::sha256(&image.manifest);
    assert_eq!(client_of_pull(&cluster.sites[0], &digest), Ipv4Addr::LOCALHOST.to_string());
    // Others go around it: they begin with TLS.
    let around = Session::user(&cluster, &cluster.sites[0], &[REPO]);
    assert_eq!(around.get(&target).status, 200);

    // The first site is stopped: HAProxy sees it, and leads clients to the next.
    cluster.sites[0].stop();
    wait_for("a pull at the next site", pulled);
    assert_eq!(client_of_pull(&cluster.sites[1], &digest), Ipv4Addr::LOCALHOST.to_string());
}
