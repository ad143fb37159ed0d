//! Sites that connect and then take no bytes.

use std::fs;

use serde_json::json;

use crate::support::{
    Cluster, Node, Options,
    session::{Session, bytes, image},
    sites::{Sites, name},
    wait_for,
};

const REPO: &str = "team/app";
const STALLED: usize = 10;

#[test]
fn sites_that_take_no_bytes_cost_the_primary_no_more_with_every_event() {
    let cluster = Cluster::start(Options {
        sites: vec!["mumbai"],
        listed: (0..STALLED).map(name).collect(),
        ..Options::default()
    });
    let mut sites = Sites::of(&cluster);
    sites.stall(0, STALLED);
    let pusher = Session::user(&cluster, &cluster.primary, &[REPO]);
    let layer = bytes(1000, 1);
    pusher.push_image(REPO, "0", &[&layer]);
    // Each of these would take 10 x 48 KiB if it were kept for everybody.
    let push = |numbers: std::ops::Range<usize>| {
        for number in numbers {
            let mut manifest: serde_json::Value = serde_json::from_slice(&image(&[&layer])).unwrap();
            manifest["annotations"] =
                json!({ "number": number.to_string(), "filling": "x".repeat(48 * 1024) });
            let put = pusher.put_manifest(REPO, "1", manifest.to_string().as_bytes());
            assert_eq!(put.status, 201, "{}", put.text());
        }
    };
    // Three things fill up whoever listens: the events kept for sites that keep up, the overlay and
    // the cache of the index, 16 MiB each.
    push(0..500);
    let before = memory_kib(&cluster.primary);
    push(500..1000);
    let more = memory_kib(&cluster.primary).saturating_sub(before);
    assert!(
        more < 48 * 1024,
        "500 events of 48 KiB took {more} KiB, kept for each of the sites they take 240,000"
    );
    wait_for("the other site", || {
        (cluster.sites[0].status()["applied_seq"] == cluster.primary.status()["head_seq"]).then_some(())
    });
    sites.drop_stalled();
}

fn memory_kib(node: &Node) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
