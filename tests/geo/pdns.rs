//! Debian's PowerDNS on loopback, configured with the files of `deploy/dns/powerdns`.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::{
    mmdb::{Place, database},
    support::{Cluster, path, wait_for},
};

/// What clients ask for.
pub const NAME: &str = "registry.example.com";
/// How often it is looked whether sites are ready, in seconds.
pub const CHECK_SECONDS: u64 = 1;

/// Where in the world something is.
#[derive(Clone, Copy, Debug)]
pub struct Spot {
    pub latitude: f64,
    pub longitude: f64,
    pub continent: &'static str,
}

/// Which of the two records of the zone file answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// By distance.
    Closest,
    /// By a list for each continent.
    Lists,
}

/// A running server. Dropping it ends it.
pub struct Pdns {
    child: Child,
    ip: Ipv4Addr,
    port: u16,
}

impl Pdns {
    /// Leads clients to the sites of `cluster`, which stand at `sites`; client networks (/24) are at `clients`.
    pub fn start(cluster: &Cluster, record: Record, sites: &[Spot], clients: &[(Ipv4Addr, Spot)]) -> Self {
        let dir = cluster.dir.path().join("pdns");
        fs::create_dir(&dir).unwrap();
        let [a, b, c, _] = cluster.primary.ip.octets();
        let ip = Ipv4Addr::new(a, b, c, 240);
        // Free a moment ago, on an address that nothing else uses.
        let port = UdpSocket::bind((ip, 0)).unwrap().local_addr().unwrap().port();
        let site_places = cluster.sites.iter().zip(sites).map(|(site, spot)| (site.ip, 32, spot));
        let client_places = clients.iter().map(|(network, spot)| (*network, 24, spot));
        let places: Vec<_> = site_places
            .chain(client_places)
            .map(|(network, prefix, spot)| Place {
                network,
                prefix,
                latitude: spot.latitude,
                longitude: spot.longitude,
                continent: spot.continent,
            })
            .collect();
        fs::write(dir.join("city.mmdb"), database(&places)).unwrap();
        let registry = cluster.sites[0].registry();
        let registry_port = registry.rsplit_once(':').unwrap().1;
        for file in ["pdns.conf", "zones.conf", "geoip-zones.yaml", "registry.zone"] {
            let text = fs::read_to_string(
                Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/dns/powerdns").join(file),
            );
            let mut text = text.unwrap();
            if record == Record::Lists {
                text = text
                    .replace("\n@  10", "\n;@  10")
                    .replace("\n;@ 10", "\n@ 10")
                    .replace("\n;   ", "\n    ");
            }
            for (from, to) in [
                ("/etc/powerdns", path(&dir).to_owned()),
                ("/var/lib/GeoIP/GeoLite2-City.mmdb", path(&dir.join("city.mmdb")).to_owned()),
                ("lua-health-checks-interval=5", format!("lua-health-checks-interval={CHECK_SECONDS}")),
                ("ttl=5", "ttl=0".to_owned()),
                ("https://registry.example.com/", format!("http://registry.example.com:{registry_port}/")),
                ("192.0.2.10", cluster.sites[0].ip.to_string()),
                ("192.0.2.20", cluster.sites[1].ip.to_string()),
                ("192.0.2.30", cluster.sites[2].ip.to_string()),
            ] {
                text = text.replace(from, &to);
            }
            fs::write(dir.join(file), text).unwrap();
        }
        let log = fs::File::create(dir.join("log")).unwrap();
        let child = Command::new("pdns_server")
            .args([&format!("--config-dir={}", path(&dir)), &format!("--socket-dir={}", path(&dir))])
            .args([&format!("--local-address={ip}"), &format!("--local-port={port}")])
            .args(["--daemon=no", "--guardian=no", "--setuid=", "--setgid=", "--disable-syslog=yes"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("pdns_server (Debian: pdns-server) runs");
        let mut pdns = Self { child, ip, port };
        wait_for("PowerDNS to answer", || {
            if let Some(status) = pdns.child.try_wait().unwrap() {
                panic!("PowerDNS ended with {status}:\n{}", fs::read_to_string(dir.join("log")).unwrap());
            }
            (!pdns.answers(None).is_empty()).then_some(())
        });
        pdns
    }

    /// Where a client of `network` is led.
    pub fn answers(&self, network: Option<Ipv4Addr>) -> Vec<IpAddr> {
        let mut dig = Command::new("dig");
        dig.arg(format!("@{}", self.ip)).args(["-p", &self.port.to_string(), NAME, "A", "+short"]);
        dig.args(["+time=2", "+tries=1"]);
        if let Some(network) = network {
            dig.arg(format!("+subnet={network}/24"));
        }
        let output = dig.output().expect("dig (Debian: bind9-dnsutils) runs");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

impl Drop for Pdns {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
