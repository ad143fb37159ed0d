//! Nodes that do not belong to the cluster.

use std::{fs, net::UdpSocket};

use crate::support::{
    Cluster, Options, outport, path,
    session::{Session, bytes},
    wait_for,
};

const REPO: &str = "team/app";

#[test]
fn a_site_with_a_foreign_certificate_is_refused_and_nobody_else_notices() {
    let mut cluster = Cluster::start(Options::default());
    let foreign = tempfile::tempdir().unwrap();
    let foreign = path(foreign.path());
    outport(&["cert", "init", "--dir", foreign, "--cluster", "foreign"]);
    outport(&["cert", "issue", "mumbai", "--dir", foreign]);
    let pki = cluster.dir.path().join("pki");
    let site = &mut cluster.sites[1];
    site.kill();
    for file in ["mumbai.crt", "mumbai.key"] {
        fs::copy(format!("{foreign}/{file}"), pki.join(file)).unwrap();
    }
    site.start();
    wait_for("the primary to refuse", || {
        cluster.primary.log().contains("replication handshake failed").then_some(())
    });
    let site = &cluster.sites[1];
    wait_for("the site to say why", || {
        let log = site.log().to_lowercase();
        (log.contains("certificate") || log.contains("unknownca") || log.contains("unknown ca")).then_some(())
    });
    assert_eq!(site.status()["state"], "disconnected");
    assert!(!site.log().contains("panicked") && !cluster.primary.log().contains("panicked"));
    assert_others_go_on(&cluster);

    // With a right one it is back.
    outport(&["cert", "issue", "mumbai", "--dir", path(&pki), "--force"]);
    cluster.sites[1].stop();
    cluster.sites[1].start();
    cluster.sites[1].wait_until(|status| status["state"] == "streaming");
    cluster.wait_complete();
}

#[test]
fn a_site_that_is_not_listed_is_refused() {
    let mut cluster = Cluster::start(Options::default());
    let pki = cluster.dir.path().join("pki");
    outport(&["cert", "issue", "tokyo", "--dir", path(&pki)]);
    let site = &mut cluster.sites[1];
    site.kill();
    for suffix in ["crt", "key"] {
        fs::copy(pki.join(format!("tokyo.{suffix}")), pki.join(format!("mumbai.{suffix}"))).unwrap();
    }
    let config = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), config.replace("site = 'mumbai'", "site = 'tokyo'")).unwrap();
    site.start();
    wait_for("the primary to refuse", || {
        let log = cluster.primary.log();
        log.lines().any(|line| line.contains("site refused") && line.contains("tokyo")).then_some(())
    });
    wait_for("the site to say why", || {
        cluster.sites[1].log().contains("not in replication.sites").then_some(())
    });
    assert_eq!(cluster.sites[1].status()["state"], "disconnected");
    assert_others_go_on(&cluster);
}

#[test]
fn a_site_cannot_pass_for_another() {
    let mut cluster = Cluster::start(Options::default());
    let pki = cluster.dir.path().join("pki");
    let site = &mut cluster.sites[1];
    site.kill();
    for suffix in ["crt", "key"] {
        fs::copy(pki.join(format!("frankfurt.{suffix}")), pki.join(format!("mumbai.{suffix}"))).unwrap();
    }
    site.start();
    wait_for("the primary to refuse", || {
        let log = cluster.primary.log();
        log.lines().any(|line| line.contains("WARN") && line.contains("mumbai")).then_some(())
    });
    assert_eq!(cluster.sites[1].status()["state"], "disconnected");
    assert_others_go_on(&cluster);
}

#[test]
fn garbage_on_the_replication_port_harms_nobody() {
    let cluster = Cluster::start(Options::default());
    let socket = UdpSocket::bind((cluster.sites[0].ip, 0)).unwrap();
    for seed in 0..2000 {
        let mut packet = bytes(20 + (seed as usize * 7) % 1400, seed);
        // Every other one claims to be a first packet of QUIC version 1.
        if seed % 2 == 0 {
            packet[0] = 0xc0 | (packet[0] & 0x0f);
            packet[1..5].copy_from_slice(&[0, 0, 0, 1]);
        }
        socket.send_to(&packet, (cluster.primary.ip, 5443)).unwrap();
    }
    assert_others_go_on(&cluster);
    assert!(!cluster.primary.log().contains("panicked"));
}

/// Pushes and pulls at the first site work as ever.
fn assert_others_go_on(cluster: &Cluster) {
    let site = &cluster.sites[0];
    let pushed = Session::user(cluster, site, &[REPO]).push_image(REPO, "1", &[&bytes(1000, 9)]);
    let got = Session::anyone(cluster, site, &[REPO]).get(&format!("/v2/{REPO}/manifests/1"));
    assert_eq!((got.status, got.body == pushed.manifest), (200, true), "{}", got.text());
    site.wait_until(|status| status["state"] == "streaming");
}
