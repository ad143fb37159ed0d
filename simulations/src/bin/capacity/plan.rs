//! From costs to what a primary and its sites need: CPU, bytes, lag.

use crate::{
    costs::Costs,
    fan_out::{HEARTBEAT_SECONDS, Load, Seen, percentile, simulate},
    random::Random,
};

/// Assumed: round trips between a primary and its sites, in seconds, all equally many.
pub(crate) const ROUND_TRIPS: [f64; 8] = [0.005, 0.02, 0.04, 0.08, 0.12, 0.16, 0.2, 0.25];
/// Assumed: packets that are lost.
pub(crate) const LOSS: f64 = 0.01;
/// Assumed: how long an end waits for an acknowledgement beyond the round trip before it sends again.
pub(crate) const ACK_DELAY_SECONDS: f64 = 0.025;
/// Assumed: an fsync at a site or relay.
pub(crate) const FSYNC_SECONDS: f64 = 0.001;
/// Assumed: events of one push of an image; three blobs and a manifest.
pub(crate) const EVENTS_PER_PUSH: f64 = 4.0;
/// Assumed: bytes of one push that no image before it had.
pub(crate) const PUSH_BYTES: f64 = 20.0 * 1024.0 * 1024.0;
/// Assumed: bytes of one pull, on average: one of twenty finds its node without the layers, 20 MiB.
pub(crate) const PULL_BYTES: f64 = 1024.0 * 1024.0;
/// Assumed: cores and network of a primary that is large and still common.
pub(crate) const LARGE_CORES: usize = 32;
pub(crate) const NETWORK_BYTES: f64 = 10e9 / 8.0;
/// A sender is full when its cores are this busy, or its network.
pub(crate) const FULL: f64 = 0.7;

const EVENTS_AND_SITES_MAX: usize = 3_000_000;
const SAMPLES: usize = 400_000;

/// Seconds from an acknowledged push until the site shows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lag {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

/// How a log travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tree {
    /// Every site follows the primary.
    Direct,
    /// Sites follow relays, and relays the primary; about as many relays as each has sites.
    Relayed,
}

impl Tree {
    /// Who follows the primary itself.
    pub(crate) fn followers_of_primary(self, sites: usize) -> usize {
        match self {
            Self::Direct => sites,
            Self::Relayed => ((sites as f64).sqrt().round() as usize).max(1),
        }
    }
}

/// Lag at `sites` sites of a primary with `cores`, at `rate` events a second.
pub(crate) fn lag(costs: &Costs, tree: Tree, sites: usize, cores: usize, rate: f64, seed: u64) -> Lag {
    let random = &mut Random::new(seed);
    let at_primary = tree.followers_of_primary(sites);
    let first = fan_out(costs, at_primary, cores, rate, random).delays;
    let second = match tree {
        Tree::Direct => Vec::new(),
        Tree::Relayed => fan_out(costs, sites.div_ceil(at_primary), cores, rate, random).delays,
    };
    let mut samples: Vec<f64> = (0..SAMPLES)
        .map(|_| {
            let hop = |delays: &[f64], random: &mut Random| {
                random.choose(delays).map_or(0.0, |delay| delay + path(random) + FSYNC_SECONDS)
            };
            hop(&first, random) + hop(&second, random)
        })
        .collect();
    let mut at = |fraction| percentile(&mut samples, fraction);
    Lag { p50: at(0.5), p99: at(0.99), p999: at(0.999) }
}

fn fan_out(costs: &Costs, followers: usize, cores: usize, rate: f64, random: &mut Random) -> Seen {
    let events = (EVENTS_AND_SITES_MAX / followers).clamp(100, 2000);
    let load = Load { followers, cores, rate, events, together_max: usize::MAX };
    simulate(&load, &costs.service(), random)
}

/// One way, and once more when the packet was lost.
fn path(random: &mut Random) -> f64 {
    let round_trip = random.choose(&ROUND_TRIPS).unwrap_or_default();
    let mut took = round_trip / 2.0;
    while random.unit() < LOSS {
        took += round_trip + ACK_DELAY_SECONDS;
    }
    took
}

/// Heartbeats a second of a follower that gets `rate` events a second: each event puts the next
/// heartbeat off.
fn heartbeats(rate: f64) -> f64 {
    if rate == 0.0 { 1.0 / HEARTBEAT_SECONDS } else { rate / (rate * HEARTBEAT_SECONDS).exp_m1() }
}

/// Cores that the log keeps busy at a sender with `followers`, when every event is sent by itself.
pub(crate) fn log_cores(costs: &Costs, followers: usize, rate: f64) -> f64 {
    let service = costs.service();
    let each = rate * service.event + heartbeats(rate) * service.heartbeat;
    rate * service.commit + followers as f64 * each
}

/// Bytes a second of log that leave a sender with `followers`.
pub(crate) fn log_egress(costs: &Costs, followers: usize, rate: f64) -> f64 {
    let each = rate * costs.wire.event_bytes + heartbeats(rate) * costs.wire.heartbeat_bytes;
    followers as f64 * each
}

/// Bytes a second of blobs that leave the primary when everything pushed is copied to its followers.
pub(crate) fn blob_egress(followers: usize, rate: f64) -> f64 {
    followers as f64 * rate / EVENTS_PER_PUSH * PUSH_BYTES
}

/// Most followers that a sender with `cores` can tell, before it is full.
pub(crate) fn followers_max(costs: &Costs, cores: usize, rate: f64) -> usize {
    largest(|followers| log_cores(costs, followers, rate) <= FULL * cores as f64)
}

/// Most followers that a sender can copy all blobs to, before its network is full.
pub(crate) fn copies_max(rate: f64) -> usize {
    largest(|followers| blob_egress(followers, rate) <= FULL * NETWORK_BYTES)
}

fn largest(fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, 100_000_000);
    while low < high {
        let middle = usize::midpoint(low, high + 1);
        if fits(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_simulated_sender_is_as_busy_as_it_should_be() {
        let costs = Costs::load(None).unwrap();
        for (followers, rate) in [(100, 1.0), (1000, 10.0)] {
            let seen = fan_out(&costs, followers, 8, rate, &mut Random::new(1));
            let theory = log_cores(&costs, followers, rate) / 8.0;
            assert!((seen.busy / theory - 1.0).abs() < 0.1, "{} busy instead of {theory}", seen.busy);
        }
    }

    #[test]
    fn a_relay_costs_a_hop_and_takes_load_off_the_primary() {
        let costs = Costs::load(None).unwrap();
        let lag = |tree| lag(&costs, tree, 100, 8, 1.0, 1);
        assert!(lag(Tree::Relayed).p50 > lag(Tree::Direct).p50);
        assert_eq!(Tree::Relayed.followers_of_primary(10_000), 100);
        assert!(followers_max(&costs, 8, 10.0) > followers_max(&costs, 2, 10.0));
        let full = followers_max(&costs, 8, 10.0);
        assert!(
            log_cores(&costs, full, 10.0) <= FULL * 8.0 && log_cores(&costs, full + 1, 10.0) > FULL * 8.0
        );
    }
}
