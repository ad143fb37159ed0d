//! What one event, heartbeat, pull and fill costs, for the capacity model in `simulations`.
//! `OUTPORT_COSTS=$PWD/simulations/costs.toml cargo bench -- costs` writes the file it reads.

use std::{
    fmt::Write as _,
    fs, thread,
    time::{Duration, Instant},
};

use outport_proto::Digest;

use crate::{
    Figure,
    figures::{LAZY, MIB, REPO, one_site, pull_token, push_blob},
    load::{self, percentile},
    peers::noise,
    scale::{SITES, crowd, last_of_each},
    support::{
        Cluster,
        sites::{Sites, Traffic},
    },
};

/// IPv4 and UDP headers of a packet, in bytes.
const HEADERS_BYTES: f64 = 28.0;
/// The least that one more event in a frame is said to cost, in seconds.
const FURTHER_MIN: f64 = 1e-7;
const HEARTBEATS_A_SECOND: f64 = 4.0;

/// Measures them, and writes them where `OUTPORT_COSTS` says.
pub fn costs() -> Vec<Figure> {
    let mut file = format!(
        "# Measured by `OUTPORT_COSTS=$PWD/simulations/costs.toml cargo bench -- costs` with real processes\n\
         # over loopback, on one machine of {} cores. Machines differ: measure yours. CPU times hold what\n\
         # the kernel does for the process.\n",
        cores()
    );
    let push = cost_of_a_push();
    let (cluster, mut pusher) = crowd();
    let primary = cluster.primary.pid();
    let mut sites = Sites::of(&cluster);
    let without = load::memory_mib(primary, "VmRSS");
    sites.follow(SITES);
    pusher.push(&sites, 5);
    thread::sleep(Duration::from_secs(3));
    let site_kib = (load::memory_mib(primary, "VmRSS") - without) * 1024.0 / SITES as f64;

    const QUIET: Duration = Duration::from_secs(8);
    let (before, traffic) = (Used::now(primary), sites.traffic());
    thread::sleep(QUIET);
    let heartbeat = before.since(primary).over(QUIET.as_secs_f64() * HEARTBEATS_A_SECOND * SITES as f64);
    let heartbeats_bytes = bytes(&sites, traffic, QUIET.as_secs_f64() * HEARTBEATS_A_SECOND);

    // More often than heartbeats come by themselves: one goes with each event.
    const EVENTS: usize = 150;
    sites.take_seen();
    let (before, traffic, began) = (Used::now(primary), sites.traffic(), Instant::now());
    pusher.push(&sites, EVENTS);
    let rate = EVENTS as f64 / began.elapsed().as_secs_f64();
    let mut event = before.since(primary);
    event.primary -= push * EVENTS as f64;
    let event = event.over((EVENTS * SITES) as f64);
    let events_bytes = bytes(&sites, traffic, EVENTS as f64);
    let mut lasts = last_of_each(&sites.take_seen());

    const TOGETHER: usize = 600;
    let (before, appends) = (Used::now(primary), sites.appends());
    pusher.push_together(&sites, TOGETHER, 16);
    let appends = (sites.appends() - appends) as f64;
    let further = before.since(primary).primary - push * TOGETHER as f64 - event.primary * appends;
    let further = further / ((TOGETHER * SITES) as f64 - appends);
    // A small difference of large numbers: it may drown in their noise.
    let (further, is_floor) = (further.max(FURTHER_MIN), further < FURTHER_MIN);
    let floor = if is_floor { " # a floor, not measured" } else { "" };
    drop(sites);
    drop(cluster);

    let of_pulls = Pulls::measure();
    let micros = |seconds: f64| seconds * 1e6;
    writeln!(
        file,
        "\n[primary]\npush_micros = {:.0}\nevent_micros = {:.1}\nfurther_event_micros = {:.2}{floor}\n\
         heartbeat_micros = {:.1}\nfill_micros = {:.0}\nfill_gib_seconds = {:.2}\nsite_kib = {site_kib:.1}\n\n\
         [site]\npull_micros = {:.1}\npull_gib_seconds = {:.2}\nfill_micros = {:.0}\nfill_gib_seconds = {:.2}\n\n\
         [wire]\nevent_bytes = {:.0}\nevent_back_bytes = {:.0}\nheartbeat_bytes = {:.0}\n\
         heartbeat_back_bytes = {:.0}\n\n\
         [measured]\nsites = {SITES}\ncores = {}\nevents_per_second = {rate:.1}\nsites_event_micros = {:.1}\n\
         sites_heartbeat_micros = {:.1}\nlast_site_p50_millis = {:.1}\nlast_site_p99_millis = {:.1}",
        micros(push),
        micros(event.primary),
        micros(further),
        micros(heartbeat.primary),
        micros(of_pulls.fill.primary),
        of_pulls.fill_gib.primary,
        micros(of_pulls.pull),
        of_pulls.pull_gib,
        micros(of_pulls.fill.other),
        of_pulls.fill_gib.other,
        events_bytes.received,
        events_bytes.sent,
        heartbeats_bytes.received,
        heartbeats_bytes.sent,
        cores(),
        micros(event.other),
        micros(heartbeat.other),
        percentile(&mut lasts, 0.5),
        percentile(&mut lasts, 0.99),
    )
    .unwrap();
    eprintln!("{file}");
    if let Some(path) = std::env::var_os("OUTPORT_COSTS") {
        fs::write(path, file).unwrap();
    }
    vec![
        Figure {
            what: "CPU of the primary for one event to one site, for one heartbeat",
            measured: format!("{:.1} us, {:.1} us", micros(event.primary), micros(heartbeat.primary)),
            must_reach: "",
        },
        Figure {
            what: "bytes to a site for one event, for one heartbeat",
            measured: format!("{:.0}, {:.0}", events_bytes.received, heartbeats_bytes.received),
            must_reach: "",
        },
    ]
}

/// Of a primary that nobody follows.
fn cost_of_a_push() -> f64 {
    const PUSHES: usize = 200;
    let (cluster, mut pusher) = crowd();
    let sites = Sites::of(&cluster);
    pusher.push(&sites, 5);
    let before = Used::now(cluster.primary.pid());
    pusher.push(&sites, PUSHES);
    before.since(cluster.primary.pid()).primary / PUSHES as f64
}

/// CPU seconds of a primary and of a second process: this one, where nothing else is said.
#[derive(Clone, Copy)]
struct Used {
    primary: f64,
    other: f64,
}

impl Used {
    fn now(primary: u32) -> Self {
        Self::of(primary, std::process::id())
    }

    fn of(primary: u32, other: u32) -> Self {
        Self { primary: load::cpu_seconds_of_all(primary), other: load::cpu_seconds_of_all(other) }
    }

    fn since(self, primary: u32) -> Self {
        self.since_of(primary, std::process::id())
    }

    fn since_of(self, primary: u32, other: u32) -> Self {
        let now = Self::of(primary, other);
        Self { primary: now.primary - self.primary, other: now.other - self.other }
    }

    fn over(self, count: f64) -> Self {
        Self { primary: self.primary / count, other: self.other / count }
    }
}

/// Bytes on the wire to one site and back.
struct Bytes {
    received: f64,
    sent: f64,
}

fn bytes(sites: &Sites, before: Traffic, count: f64) -> Bytes {
    let now = sites.traffic();
    let whole =
        |bytes: u64, packets: u64| (bytes as f64 + packets as f64 * HEADERS_BYTES) / count / SITES as f64;
    Bytes {
        received: whole(
            now.received_bytes - before.received_bytes,
            now.received_packets - before.received_packets,
        ),
        sent: whole(now.sent_bytes - before.sent_bytes, now.sent_packets - before.sent_packets),
    }
}

/// What pulls through a site cost: CPU seconds.
struct Pulls {
    pull: f64,
    pull_gib: f64,
    fill: Used,
    fill_gib: Used,
}

impl Pulls {
    fn measure() -> Self {
        const FILLS: u64 = 100;
        const LARGE: usize = 256 * MIB;
        let cluster = one_site(None, LAZY);
        let [primary, site] = [cluster.primary.pid(), cluster.sites[0].pid()];
        let address = cluster.sites[0].registry();
        let small: Vec<Digest> =
            (0..FILLS).map(|salt| push_blob(&cluster, &noise(2000, 300 + salt))).collect();
        let large = push_blob(&cluster, &noise(LARGE, 299));
        let pull = pull_token(&cluster);
        let get = |target: &str| load::get(&address, &format!("/v2/{REPO}/{target}"), Some(&pull));
        let blob = |digest: &Digest| get(&format!("blobs/{digest}"));

        let before = Used::of(primary, site);
        small.iter().for_each(|digest| assert_eq!(load::download(&address, &blob(digest)), 2000));
        let fill = before.since_of(primary, site).over(FILLS as f64);
        let large_gib = LARGE as f64 / 1024_f64.powi(3);
        let before = Used::of(primary, site);
        load::download(&address, &blob(&large));
        let fill_gib = before.since_of(primary, site).over(large_gib);

        // From here on all is local.
        settle(&cluster);
        let before = load::cpu_seconds(site);
        (0..4).for_each(|_| _ = load::download(&address, &blob(&large)));
        let pull_gib = (load::cpu_seconds(site) - before) / (4.0 * large_gib);
        const ROUND: Duration = Duration::from_secs(3);
        let manifest = get("manifests/blob");
        load::requests_per_second(&address, &manifest, 32, Duration::from_millis(300));
        let before = load::cpu_seconds(site);
        let rate = load::requests_per_second(&address, &manifest, 32, ROUND);
        let pull = (load::cpu_seconds(site) - before) / (rate * ROUND.as_secs_f64());
        Self { pull, pull_gib, fill, fill_gib }
    }
}

/// Waits until the last fill is on disk.
fn settle(cluster: &Cluster) {
    cluster.sites[0].wait_until(|status| status["store"]["blobs"].as_u64().unwrap() >= 101);
}

fn cores() -> usize {
    thread::available_parallelism().unwrap().get()
}
