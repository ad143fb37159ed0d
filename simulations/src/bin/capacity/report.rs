//! The report: what was measured, what is assumed, what follows, in words, tables and plots.

mod plots;

use std::fmt::Write as _;

use self::plots::{Plots, hits_kept};
use crate::{
    chart::{Chart, short},
    costs::Costs,
    plan::{self, Tree},
};

/// The file to open.
pub(crate) const PAGE: &str = "index.html";

/// How many sites are looked at.
pub(crate) const SITES: [usize; 4] = [10, 100, 1000, 10_000];
/// Events a second at which most is said.
pub(crate) const RATE: f64 = 10.0;
/// Events a second that are compared.
pub(crate) const RATES: [f64; 3] = [1.0, 10.0, 100.0];
/// Cores of the primary at which most is said.
pub(crate) const CORES: usize = 8;
/// Pulls a second, all sites together.
pub(crate) const PULLS: [f64; 4] = [1000.0, 10_000.0, 100_000.0, 1_000_000.0];
/// Of what a lazy site could be asked for, the share it keeps.
pub(crate) const KEPT: f64 = 0.1;

/// The whole report.
pub(crate) struct Report {
    page: String,
    charts: Vec<(&'static str, Chart)>,
}

impl Report {
    /// Works everything out.
    pub(crate) fn of(costs: &Costs, seed: u64) -> Self {
        let plots = Plots::of(costs, seed);
        let mut page = String::new();
        // Writing to a string does not fail.
        let _ = Page { costs, plots: &plots, out: &mut page }.write();
        Self { page, charts: plots.into_charts() }
    }

    /// Names and contents of its files.
    pub(crate) fn files(&self) -> Vec<(&'static str, String)> {
        let charts = self.charts.iter().map(|(name, chart)| (*name, chart.svg()));
        std::iter::once((PAGE, self.page.clone())).chain(charts).collect()
    }
}

struct Page<'a> {
    costs: &'a Costs,
    plots: &'a Plots,
    out: &'a mut String,
}

impl Page<'_> {
    fn write(&mut self) -> std::fmt::Result {
        self.out.push_str(HEAD);
        self.in_short()?;
        self.lag()?;
        self.cpu()?;
        self.egress()?;
        self.pulls()?;
        self.measured()?;
        self.assumed()?;
        self.out.push_str("</body></html>\n");
        Ok(())
    }

    fn in_short(&mut self) -> std::fmt::Result {
        let costs = self.costs;
        let carried = |cores| short(plan::followers_max(costs, cores, RATE) as f64);
        let (direct, relayed) =
            (self.plots.lag_at(Tree::Direct, 1000), self.plots.lag_at(Tree::Relayed, 1000));
        let copies = plan::copies_max(RATE);
        writeln!(
            self.out,
            "<h2>In short</h2><ul>\
             <li>At {RATE} events a second (a push of an image is about {} events) the log alone keeps a primary \
             full, at {:.0} % of its cores, with <b>{} sites on 2 cores</b>, {} on {CORES} and {} on {}.</li>\
             <li>1,000 sites on {CORES} cores show a push after {:.0} ms (p50) and {:.0} ms (p99), nearly all of \
             it the way there; behind relays, after {:.0} and {:.0} ms.</li>\
             <li>What fills first is the network: when every site copies every blob ahead, a primary with \
             10 Gbit/s can feed {copies} sites or relays at that rate. Beyond that, use relays or copy lazily.</li>\
             <li>Sites cost the primary {:.0} KiB of memory each: 10,000 take {:.0} MiB.</li>\
             <li>Pulls never reach the primary unless a site lacks something: 1,000,000 pulls a second by tag \
             take {:.0} cores, spread over all sites, and none at the primary.</li></ul>",
            plan::EVENTS_PER_PUSH,
            plan::FULL * 100.0,
            carried(2),
            carried(CORES),
            carried(plan::LARGE_CORES),
            plan::LARGE_CORES,
            direct.p50 * 1000.0,
            direct.p99 * 1000.0,
            relayed.p50 * 1000.0,
            relayed.p99 * 1000.0,
            costs.primary.site_kib,
            costs.primary.site_kib * 10_000.0 / 1024.0,
            1e6 * costs.site.pull_micros / 1e6,
        )
    }

    fn lag(&mut self) -> std::fmt::Result {
        writeln!(
            self.out,
            "<h2>How late sites are</h2><p>From the push until a site shows it, simulated: the primary's cores \
             and the queue before them, the way there with losses, an fsync at each hop. A site is told of every \
             event in turn, so with many sites the last waits for all others: that is where the lines leave the \
             floor that the network sets. Relays shorten the queue and add a hop.</p>"
        )?;
        self.chart("lag.svg")?;
        self.out.push_str(
            "<table><tr><th>sites</th><th>p50</th><th>p99</th><th>p99.9</th><th>behind relays: p50</th>\
             <th>p99</th><th>p99.9</th><th>relays</th></tr>\n",
        );
        for sites in SITES {
            let (direct, relayed) =
                (self.plots.lag_at(Tree::Direct, sites), self.plots.lag_at(Tree::Relayed, sites));
            write!(self.out, "<tr><td>{}</td>", grouped(sites))?;
            for seconds in [direct.p50, direct.p99, direct.p999, relayed.p50, relayed.p99, relayed.p999] {
                write!(self.out, "<td>{:.0} ms</td>", seconds * 1000.0)?;
            }
            writeln!(self.out, "<td>{}</td></tr>", Tree::Relayed.followers_of_primary(sites))?;
        }
        self.out.push_str("</table>\n");
        Ok(())
    }

    fn cpu(&mut self) -> std::fmt::Result {
        writeln!(
            self.out,
            "<h2>When one primary no longer suffices: CPU</h2><p>Heartbeats, {} a second to each site, are the \
             floor; events come on top. Above 70 % of its cores a sender's queue grows quickly; it then sends \
             several events at once, which costs less, so it slows down before it falls behind.</p>",
            1.0 / crate::fan_out::HEARTBEAT_SECONDS
        )?;
        self.chart("cpu.svg")?;
        self.out.push_str("<table><tr><th>most sites that follow directly</th>");
        for rate in RATES {
            write!(self.out, "<th>{rate} events/s</th>")?;
        }
        self.out.push_str("</tr>\n");
        for cores in [2, CORES, plan::LARGE_CORES] {
            write!(self.out, "<tr><td>{cores} cores</td>")?;
            for rate in RATES {
                write!(self.out, "<td>{}</td>", grouped(plan::followers_max(self.costs, cores, rate)))?;
            }
            self.out.push_str("</tr>\n");
        }
        self.out.push_str(
            "</table><p>Through relays the square of that many sites can follow: a relay is a secondary and costs \
             the primary what a site does.</p>\n",
        );
        Ok(())
    }

    fn egress(&mut self) -> std::fmt::Result {
        self.out.push_str(
            "<h2>What leaves the primary</h2><p>Bytes a second on its network. The log is small; blobs copied \
             ahead are what fills a link, and relays are what empties it.</p>\n",
        );
        self.chart("egress.svg")?;
        self.out.push_str(
            "<table><tr><th>sites</th><th>log</th><th>log, relayed</th><th>log and all blobs</th>\
             <th>the same, relayed</th><th>memory of the primary, direct</th></tr>\n",
        );
        for sites in SITES {
            let relays = Tree::Relayed.followers_of_primary(sites);
            write!(self.out, "<tr><td>{}</td>", grouped(sites))?;
            let log = |followers| plan::log_egress(self.costs, followers, RATE);
            let all = |followers| log(followers) + plan::blob_egress(followers, RATE);
            for bytes in [log(sites), log(relays), all(sites), all(relays)] {
                let over = if bytes > plan::FULL * plan::NETWORK_BYTES { " class=over" } else { "" };
                write!(self.out, "<td{over}>{}B/s</td>", short(bytes))?;
            }
            writeln!(
                self.out,
                "<td>{}B</td></tr>",
                short(sites as f64 * self.costs.primary.site_kib * 1024.0)
            )?;
        }
        self.out.push_str("</table><p>Red: more than a network of 10 Gbit/s carries well.</p>\n");
        Ok(())
    }

    fn pulls(&mut self) -> std::fmt::Result {
        let hits = hits_kept(KEPT);
        writeln!(
            self.out,
            "<h2>Pulls</h2><p>A site that copies nothing ahead (lazy) fills on the first pull and keeps what was \
             pulled last. With images as popular as Zipf says (exponent 0.9) and {:.0} % of them kept, {:.0} % of \
             pulls find everything there. The lines are Che's approximation, the points simulated.</p>",
            KEPT * 100.0,
            hits * 100.0
        )?;
        self.chart("hits.svg")?;
        self.out.push_str(
            "<p>Without sites every pull leaves the primary; with them only what a site lacks, or what was pushed, \
             once to each.</p>\n",
        );
        self.chart("saved.svg")?;
        self.out.push_str(
            "<table><tr><th>pulls/s, all 1,000 sites</th><th>from the primary alone</th><th>lazy sites</th>\
             <th>saved</th><th>eager sites</th><th>saved</th><th>eager, relayed</th><th>saved</th>\
             <th>cores of each site</th></tr>\n",
        );
        for pulls in PULLS {
            let alone = pulls * plan::PULL_BYTES;
            let lazy = alone * (1.0 - hits);
            let eager = plan::blob_egress(1000, RATE);
            let relayed = plan::blob_egress(Tree::Relayed.followers_of_primary(1000), RATE);
            let gib = pulls / 1000.0 * plan::PULL_BYTES / 1024_f64.powi(3);
            let cores =
                pulls / 1000.0 * self.costs.site.pull_micros / 1e6 + gib * self.costs.site.pull_gib_seconds;
            write!(self.out, "<tr><td>{}</td><td>{}B/s</td>", short(pulls), short(alone))?;
            for bytes in [lazy, eager, relayed] {
                let saved = (1.0 - bytes / alone) * 100.0;
                write!(self.out, "<td>{}B/s</td><td>{saved:.1} %</td>", short(bytes))?;
            }
            writeln!(self.out, "<td>{cores:.3}</td></tr>")?;
        }
        writeln!(
            self.out,
            "</table><p>A lazy site's fill costs the primary {:.0} us and {:.2} CPU-seconds for each GiB: at 1,000,000 \
             pulls a second and {:.0} % misses that alone is {:.0} cores, so popular repositories belong in \
             <code>eager</code> at large fleets, or lazy sites behind relays that are eager.</p>",
            self.costs.primary.fill_micros,
            self.costs.primary.fill_gib_seconds,
            (1.0 - hits) * 100.0,
            1e6 * (1.0 - hits)
                * (self.costs.primary.fill_micros / 1e6
                    + plan::PULL_BYTES / 1024_f64.powi(3) * self.costs.primary.fill_gib_seconds),
        )
    }

    fn measured(&mut self) -> std::fmt::Result {
        let Costs { primary, site, wire, measured } = self.costs;
        self.out.push_str(
            "<h2>What was measured</h2><p>By <code>cargo bench -- costs</code> on one machine, with real processes \
             over loopback. Machines differ: measure yours, and give the file with <code>--costs</code>.</p>\
             <table><tr><th>cost</th><th>measured</th></tr>\n",
        );
        for (what, number) in [
            ("primary: one push taken in", format!("{:.0} us CPU", primary.push_micros)),
            ("primary: one event to one site", format!("{:.1} us CPU", primary.event_micros)),
            (
                "primary: one more event in the same frame (0.10 is a floor)",
                format!("{:.2} us CPU", primary.further_event_micros),
            ),
            ("primary: one heartbeat to one site", format!("{:.1} us CPU", primary.heartbeat_micros)),
            ("primary: one small fill", format!("{:.0} us CPU", primary.fill_micros)),
            ("primary: 1 GiB of fills", format!("{:.2} s CPU", primary.fill_gib_seconds)),
            ("primary: memory for one site", format!("{:.1} KiB", primary.site_kib)),
            ("site: one pull by tag", format!("{:.1} us CPU", site.pull_micros)),
            ("site: 1 GiB from disk", format!("{:.2} s CPU", site.pull_gib_seconds)),
            ("site: one small fill, served", format!("{:.0} us CPU", site.fill_micros)),
            ("site: 1 GiB filled and served", format!("{:.2} s CPU", site.fill_gib_seconds)),
            (
                "one event on the wire, to a site and back",
                format!("{:.0} B and {:.0} B", wire.event_bytes, wire.event_back_bytes),
            ),
            (
                "one heartbeat on the wire, to a site and back",
                format!("{:.0} B and {:.0} B", wire.heartbeat_bytes, wire.heartbeat_back_bytes),
            ),
            (
                "whole: the last of 1,000 sites has an event",
                format!(
                    "p50 {:.1} ms, p99 {:.1} ms; {} sites in one process beside the primary, {} cores for both; \
                     p50 by the model: {:.1} ms",
                    measured.last_site_p50_millis,
                    measured.last_site_p99_millis,
                    grouped(measured.sites),
                    measured.cores,
                    self.costs.last_site_millis()
                ),
            ),
        ] {
            writeln!(self.out, "<tr><td>{what}</td><td>{number}</td></tr>")?;
        }
        self.out.push_str(
            "</table><p>The model is held against M/D/1 where there is one queue and one server, and against \
             Che's approximation. Against the last line it is only roughly right: the test takes 0.4 to 1.5 of what \
             was measured. The model knows no other work on the machine and no waking and switching of tasks, so \
             read its lags as the least to expect: <code>cargo test -p simulations</code>.</p>\n",
        );
        Ok(())
    }

    fn assumed(&mut self) -> std::fmt::Result {
        let trips: Vec<String> =
            plan::ROUND_TRIPS.iter().map(|trip| format!("{:.0}", trip * 1000.0)).collect();
        let mib = 1024.0 * 1024.0;
        writeln!(
            self.out,
            "<h2>What is assumed</h2><ul>\
             <li>Round trips of {} ms, equally many sites each; {:.0} % of packets lost, sent again after a round \
             trip and {:.0} ms.</li>\
             <li>Pushes come at random (Poisson), {} events and {:.0} MiB of new blobs each; {:.0} ms for an fsync.</li>\
             <li>A pull takes {:.0} MiB of blobs on average: one in twenty finds its node without the layers, 20 MiB; lazy sites keep {:.0} % of 10,000 images, and \
             all sites want the same.</li>\
             <li>There are as many relays as each has sites, and a relay costs what a primary does, but for the \
             push itself.</li></ul>\
             <p>Not in it: one socket of a primary is read by one task, which limits it before 32 cores do when \
             sites acknowledge very often; retransmissions are in the lag and not in the CPU; TLS towards clients, \
             authentication, object storage and disks of sites are not in the pulls; memory of HTTP.</p>",
            trips.join(", "),
            plan::LOSS * 100.0,
            plan::ACK_DELAY_SECONDS * 1000.0,
            plan::EVENTS_PER_PUSH,
            plan::PUSH_BYTES / mib,
            plan::FSYNC_SECONDS * 1000.0,
            plan::PULL_BYTES / mib,
            KEPT * 100.0,
        )
    }

    fn chart(&mut self, name: &str) -> std::fmt::Result {
        if let Some(chart) = self.plots.chart(name) {
            writeln!(self.out, "<figure id=\"{name}\">{}</figure>", chart.svg())?;
        }
        Ok(())
    }
}

/// With commas between thousands.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

const HEAD: &str = r#"<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Outport: capacity</title>
<style>
body { font: 16px/1.5 sans-serif; max-width: 900px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; font-size: 14px; }
th, td { border: 1px solid #ccc; padding: 4px 10px; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { background: #f3f3f3; }
.over { color: #c00; }
figure { margin: 1em 0; overflow-x: auto; }
</style></head><body>
<h1>What one primary and its sites can carry</h1>
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_whole() {
        let report = Report::of(&Costs::load(None).unwrap(), 1);
        let files = report.files();
        let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, [PAGE, "lag.svg", "cpu.svg", "egress.svg", "hits.svg", "saved.svg"]);
        let page = &files[0].1;
        assert_eq!(page.matches("<svg").count(), 5);
        assert!(!page.contains("NaN") && !page.contains("inf"), "a number is missing");
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(
            [7, 999, 1000, 10_000, 1_234_567].map(grouped),
            ["7", "999", "1,000", "10,000", "1,234,567"]
        );
    }
}
