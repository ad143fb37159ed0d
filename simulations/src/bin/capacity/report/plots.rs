//! The plots of the report.

use super::{CORES, KEPT, RATE, RATES, SITES};
use crate::{
    chart::{Axis, Chart, Scale, Series, Style},
    costs::Costs,
    plan::{self, Lag, Tree},
    popularity::Zipf,
    random::Random,
};

const IMAGES: usize = 10_000;
const EXPONENT: f64 = 0.9;
const MANY_SITES: [usize; 10] = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000];

/// What the plots show.
pub(super) struct Plots {
    lags: Vec<(Tree, usize, Lag)>,
    charts: Vec<(&'static str, Chart)>,
}

/// Share of pulls that a lazy site serves from what it has, when it keeps this share of all images.
pub(super) fn hits_kept(kept: f64) -> f64 {
    Zipf::new(IMAGES, EXPONENT).hits_by_che((IMAGES as f64 * kept) as usize)
}

impl Plots {
    pub(super) fn of(costs: &Costs, seed: u64) -> Self {
        let mut lags = Vec::new();
        for tree in [Tree::Direct, Tree::Relayed] {
            for sites in MANY_SITES {
                lags.push((tree, sites, plan::lag(costs, tree, sites, CORES, RATE, seed)));
            }
        }
        let charts = vec![
            ("lag.svg", lag(&lags)),
            ("cpu.svg", cpu(costs)),
            ("egress.svg", egress(costs)),
            ("hits.svg", hits(seed)),
            ("saved.svg", saved()),
        ];
        Self { lags, charts }
    }

    /// The lag at this many sites, one of [`SITES`].
    pub(super) fn lag_at(&self, tree: Tree, sites: usize) -> Lag {
        let found = self.lags.iter().find(|(of, at, _)| *of == tree && *at == sites);
        found.map_or(Lag { p50: f64::NAN, p99: f64::NAN, p999: f64::NAN }, |(_, _, lag)| *lag)
    }

    pub(super) fn chart(&self, name: &str) -> Option<&Chart> {
        self.charts.iter().find(|(of, _)| *of == name).map(|(_, chart)| chart)
    }

    pub(super) fn into_charts(self) -> Vec<(&'static str, Chart)> {
        self.charts
    }
}

fn sites_axis() -> Axis {
    let [from, .., to] = SITES;
    Axis { label: "sites", scale: Scale::Log, from: from as f64, to: to as f64 }
}

fn series(name: impl Into<String>, style: Style, colour: usize, points: Vec<(f64, f64)>) -> Series {
    Series { name: name.into(), points, style, colour }
}

/// A line over the number of sites.
fn over_sites(value: impl Fn(usize) -> f64) -> Vec<(f64, f64)> {
    MANY_SITES.into_iter().map(|sites| (sites as f64, value(sites))).collect()
}

/// One number of a lag.
type Pick = fn(&Lag) -> f64;

fn lag(lags: &[(Tree, usize, Lag)]) -> Chart {
    let line = |tree, pick: Pick| {
        let of_tree = lags.iter().filter(move |(of, ..)| *of == tree);
        of_tree.map(|(_, sites, lag)| (*sites as f64, pick(lag) * 1000.0)).collect()
    };
    let mut all = Vec::new();
    let picks: [(&str, Pick); 3] =
        [("p50", |lag| lag.p50), ("p99", |lag| lag.p99), ("p99.9", |lag| lag.p999)];
    for (colour, (name, pick)) in picks.into_iter().enumerate() {
        all.push(series(name, Style::Solid, colour, line(Tree::Direct, pick)));
        all.push(series(format!("{name}, behind relays"), Style::Dashed, colour, line(Tree::Relayed, pick)));
    }
    Chart {
        title: format!("Push until shown at a site: {RATE} events/s, primary with {CORES} cores"),
        x: sites_axis(),
        y: Axis { label: "lag (ms)", scale: Scale::Log, from: 10.0, to: 10_000.0 },
        series: all,
    }
}

fn cpu(costs: &Costs) -> Chart {
    let mut all = Vec::new();
    for (colour, rate) in RATES.into_iter().enumerate() {
        let cores =
            |tree: Tree| over_sites(|sites| plan::log_cores(costs, tree.followers_of_primary(sites), rate));
        all.push(series(format!("{rate} events/s"), Style::Solid, colour, cores(Tree::Direct)));
        all.push(series(format!("{rate} events/s, relayed"), Style::Dashed, colour, cores(Tree::Relayed)));
    }
    all.push(series(
        format!("{CORES} cores, {:.0} % busy", plan::FULL * 100.0),
        Style::Dashed,
        6,
        over_sites(|_| plan::FULL * CORES as f64),
    ));
    Chart {
        title: "CPU of the primary for the log".to_owned(),
        x: sites_axis(),
        y: Axis { label: "cores", scale: Scale::Log, from: 0.001, to: 100.0 },
        series: all,
    }
}

fn egress(costs: &Costs) -> Chart {
    let log =
        |tree: Tree| over_sites(|sites| plan::log_egress(costs, tree.followers_of_primary(sites), RATE));
    let blobs = |tree: Tree| {
        over_sites(|sites| {
            let followers = tree.followers_of_primary(sites);
            plan::log_egress(costs, followers, RATE) + plan::blob_egress(followers, RATE)
        })
    };
    Chart {
        title: format!("What leaves the primary: {RATE} events/s"),
        x: sites_axis(),
        y: Axis { label: "bytes/s", scale: Scale::Log, from: 1e4, to: 1e12 },
        series: vec![
            series("log and all blobs", Style::Solid, 1, blobs(Tree::Direct)),
            series("log and all blobs, relayed", Style::Dashed, 1, blobs(Tree::Relayed)),
            series("log alone", Style::Solid, 0, log(Tree::Direct)),
            series("log alone, relayed", Style::Dashed, 0, log(Tree::Relayed)),
            series("a network of 10 Gbit/s", Style::Dashed, 6, over_sites(|_| plan::NETWORK_BYTES)),
        ],
    }
}

fn hits(seed: u64) -> Chart {
    const KEPT_SHARES: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];
    let mut all = Vec::new();
    for (colour, exponent) in [1.1, 0.9, 0.7].into_iter().enumerate() {
        let zipf = Zipf::new(IMAGES, exponent);
        let kept = |share: f64| (IMAGES as f64 * share) as usize;
        let theory = KEPT_SHARES.map(|share| (share * 100.0, zipf.hits_by_che(kept(share)) * 100.0));
        let random = &mut Random::new(seed);
        let seen =
            [0.001, 0.01, 0.1].map(|share| (share * 100.0, zipf.hits(kept(share), 200_000, random) * 100.0));
        let mut line = series(format!("Zipf exponent {exponent}"), Style::Solid, colour, theory.to_vec());
        line.points.retain(|(_, hits)| hits.is_finite());
        all.push(line);
        all.push(series(format!("{exponent}, simulated"), Style::Marks, colour + 3, seen.to_vec()));
    }
    Chart {
        title: "Pulls that a lazy site serves from what it keeps".to_owned(),
        x: Axis { label: "images kept (%)", scale: Scale::Log, from: 0.1, to: 100.0 },
        y: Axis { label: "pulls (%)", scale: Scale::Linear, from: 0.0, to: 100.0 },
        series: all,
    }
}

fn saved() -> Chart {
    const SITES: usize = 1000;
    let over_pulls = |bytes: &dyn Fn(f64) -> f64| {
        let pulls = (0..=12).map(|step| 1000.0 * 10_f64.powf(f64::from(step) / 4.0));
        pulls.map(|pulls| (pulls, bytes(pulls))).collect::<Vec<_>>()
    };
    let misses = 1.0 - hits_kept(KEPT);
    let eager = |tree: Tree| plan::blob_egress(tree.followers_of_primary(SITES), RATE);
    Chart {
        title: format!("Blob bytes that leave the primary: 1,000 sites, {RATE} events/s"),
        x: Axis { label: "pulls/s, all sites together", scale: Scale::Log, from: 1e3, to: 1e6 },
        y: Axis { label: "bytes/s", scale: Scale::Log, from: 1e8, to: 1e14 },
        series: vec![
            series("without sites", Style::Solid, 1, over_pulls(&|pulls| pulls * plan::PULL_BYTES)),
            series(
                format!("lazy sites, {:.0} % kept", KEPT * 100.0),
                Style::Solid,
                0,
                over_pulls(&|pulls| pulls * plan::PULL_BYTES * misses),
            ),
            series("eager sites", Style::Solid, 2, over_pulls(&|_| eager(Tree::Direct))),
            series("eager sites, relayed", Style::Dashed, 2, over_pulls(&|_| eager(Tree::Relayed))),
            series("a network of 10 Gbit/s", Style::Dashed, 6, over_pulls(&|_| plan::NETWORK_BYTES)),
        ],
    }
}
