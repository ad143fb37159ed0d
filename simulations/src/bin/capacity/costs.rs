//! What was measured: `costs.toml`.

use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

use crate::{
    fan_out::{Load, Service, percentile, simulate},
    random::Random,
};

/// The costs that come with the program.
const CHECKED_IN: &str = include_str!("../../../costs.toml");

/// Measured costs of one machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Costs {
    pub(crate) primary: Primary,
    pub(crate) site: Site,
    pub(crate) wire: Wire,
    pub(crate) measured: Measured,
}

/// CPU time of a primary, and its memory.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Primary {
    /// To take in the push of a small manifest, in microseconds.
    pub(crate) push_micros: f64,
    /// To send one event to one site and take its acknowledgement.
    pub(crate) event_micros: f64,
    /// To send one more event together with another one.
    pub(crate) further_event_micros: f64,
    /// To send one heartbeat to one site, take its acknowledgement, and keep both connections alive.
    pub(crate) heartbeat_micros: f64,
    /// To send a site one small blob that it lacks.
    pub(crate) fill_micros: f64,
    /// To send sites 1 GiB of blobs, in seconds.
    pub(crate) fill_gib_seconds: f64,
    /// Memory for each site, in KiB.
    pub(crate) site_kib: f64,
}

/// CPU time of a site.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Site {
    /// To answer a pull of a manifest by tag from what is here, in microseconds.
    pub(crate) pull_micros: f64,
    /// To serve 1 GiB of blobs from disk, in seconds.
    pub(crate) pull_gib_seconds: f64,
    /// To fill and serve one small blob.
    pub(crate) fill_micros: f64,
    /// To fill and serve 1 GiB, in seconds.
    pub(crate) fill_gib_seconds: f64,
}

/// Bytes on the wire between a primary and one site, both ways, IPv4 and UDP headers included.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wire {
    /// From the primary, for one small event and the heartbeat with it.
    pub(crate) event_bytes: f64,
    /// To the primary, for the same.
    pub(crate) event_back_bytes: f64,
    /// From the primary, for one heartbeat.
    pub(crate) heartbeat_bytes: f64,
    /// To the primary, for the same.
    pub(crate) heartbeat_back_bytes: f64,
}

/// One event to many sites, measured whole: the model must come to the same.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Measured {
    /// How many sites, all in one process beside the primary.
    pub(crate) sites: usize,
    /// Cores of the machine that both shared.
    pub(crate) cores: usize,
    /// Events a second.
    pub(crate) events_per_second: f64,
    /// CPU time of that process for each event and site, in microseconds.
    pub(crate) sites_event_micros: f64,
    /// CPU time of that process for each heartbeat and site.
    pub(crate) sites_heartbeat_micros: f64,
    /// From the event's own time until the last site had it, the middle of all events.
    pub(crate) last_site_p50_millis: f64,
    /// The same, 99 of 100 events.
    pub(crate) last_site_p99_millis: f64,
}

impl Costs {
    /// Reads costs that were measured elsewhere; without a file those that come with the program.
    pub(crate) fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        let text = match path {
            Some(path) => {
                std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?
            }
            None => CHECKED_IN.to_owned(),
        };
        toml::from_str(&text).context("parse the costs")
    }

    /// What it costs a primary, or a relay, to tell its followers.
    pub(crate) fn service(&self) -> Service {
        let Primary { push_micros, event_micros, further_event_micros, heartbeat_micros, .. } = self.primary;
        Service {
            commit: push_micros / 1e6,
            event: event_micros / 1e6,
            further_event: further_event_micros / 1e6,
            heartbeat: heartbeat_micros / 1e6,
        }
    }

    /// What the model comes to where one event to many sites was measured whole: milliseconds until
    /// the last has it, the middle of all events.
    pub(crate) fn last_site_millis(&self) -> f64 {
        let (measured, service) = (&self.measured, self.service());
        // There the sites used the same cores.
        let service = Service {
            event: service.event + measured.sites_event_micros / 1e6,
            heartbeat: service.heartbeat + measured.sites_heartbeat_micros / 1e6,
            ..service
        };
        let load = Load {
            followers: measured.sites,
            cores: measured.cores,
            rate: measured.events_per_second,
            events: 300,
            together_max: usize::MAX,
        };
        percentile(&mut simulate(&load, &service, &mut Random::new(1)).lasts, 0.5) * 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_comes_near_what_was_measured_whole() {
        let costs = Costs::load(None).unwrap();
        let ratio = costs.last_site_millis() / costs.measured.last_site_p50_millis;
        // A rough check: the model is told of nothing but CPU time, and what was measured is later than that.
        assert!((0.4..1.5).contains(&ratio), "{ratio} of what was measured");
    }
}
