//! Status as metrics, computed when scraped so that no number can be left standing.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use crate::status::{Lag, SiteState, SiteStatus, Status, StatusSource, StoreStatus};

/// Turns the status into `outport_log_seq{stage}`, `outport_lag_seconds{stage}` and their kin. A
/// primary shows one series a site, and so does a site that relays, beside its own.
pub struct StatusCollector(pub StatusSource);

impl std::fmt::Debug for StatusCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("StatusCollector").finish()
    }
}

const ALARM: &str = "1 while a person has to look: the status says why";

type Labels = Vec<(&'static str, String)>;

impl Collector for StatusCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (own_head, store, sites) = match (self.0)() {
            Status::Primary(primary) => {
                let family = encoder.encode_descriptor("alarm", ALARM, None, MetricType::Gauge)?;
                let own = (Vec::new(), f64::from(u8::from(primary.alarm.is_some())));
                let of = |site: &SiteStatus| {
                    let labels = vec![("site", site.site.clone())];
                    (labels, f64::from(u8::from(site.alarm.is_some())))
                };
                encode_series(family, &primary.sites.iter().map(of).chain([own]).collect::<Vec<_>>())?;
                let help = "1 while keys of tokens cannot be fetched again";
                let family = encoder.encode_descriptor("auth_alarm", help, None, MetricType::Gauge)?;
                ConstGauge::new(f64::from(u8::from(primary.auth_alarm.is_some()))).encode(family)?;
                (Some(primary.head_seq), primary.store, primary.sites)
            }
            Status::Secondary(mut site) => {
                let behind = std::mem::take(&mut site.sites);
                (None, site.store, std::iter::once(*site).chain(behind).collect())
            }
        };
        let at_primary = own_head.is_some();
        let each = |value: &dyn Fn(&SiteStatus) -> Vec<(Labels, f64)>| -> Vec<(Labels, f64)> {
            let is_own = |place: usize| !at_primary && place == 0;
            let label = |place, site: &SiteStatus| (!is_own(place)).then(|| ("site", site.site.clone()));
            sites
                .iter()
                .enumerate()
                .flat_map(|(place, site)| {
                    value(site).into_iter().map(move |(labels, number)| {
                        (labels.into_iter().chain(label(place, site)).collect::<Labels>(), number)
                    })
                })
                .collect()
        };
        let seqs = each(&|site| {
            let stage = |stage: &str, seq: u64| (vec![("stage", stage.to_owned())], seq as f64);
            vec![
                stage("head", site.head_seq),
                stage("received", site.received_seq),
                stage("durable", site.durable_seq),
                stage("applied", site.applied_seq),
                stage("complete", site.complete_seq),
            ]
        });
        let own = own_head.map(|seq| (vec![("stage", "head".to_owned())], seq as f64));
        let lag = each(&|site| lag_by_stage(site.lag_seconds));
        let one = |value: f64| vec![(Vec::new(), value)];
        let StoreStatus { bytes, blobs, limit_bytes } = store;
        let known = |value: Option<f64>| one(value.unwrap_or(f64::NAN));
        if !at_primary {
            let family = encoder.encode_descriptor("alarm", ALARM, None, MetricType::Gauge)?;
            encode_series(family, &each(&|site| one(f64::from(u8::from(site.alarm.is_some())))))?;
        }
        let connected = |site: &SiteStatus| f64::from(u8::from(site.state != SiteState::Disconnected));
        let families = [
            ("log_seq", "Sequence number of the log by stage", None, own.into_iter().chain(seqs).collect()),
            ("lag", "Age of the oldest event not past the stage; NaN when unknown", Some(Unit::Seconds), lag),
            (
                "lag_events",
                "Events between head and applied",
                None,
                each(&|site| one(site.lag_events as f64)),
            ),
            (
                "lag",
                "Log between head and applied",
                Some(Unit::Bytes),
                each(&|site| one(site.lag_bytes as f64)),
            ),
            (
                "missing_blobs",
                "Blobs wanted and not here",
                None,
                each(&|site| one(site.missing_blobs as f64)),
            ),
            (
                "heartbeat_age",
                "Time since the last heartbeat; NaN before the first",
                Some(Unit::Seconds),
                each(&|site| one(site.heartbeat_age_seconds.unwrap_or(f64::NAN))),
            ),
            ("connected", "1 while the site hears the primary", None, each(&|site| one(connected(site)))),
            (
                "eta",
                "Time until the site is complete, at the pace of the last half minute; 0 when it is, NaN when unknown",
                Some(Unit::Seconds),
                each(&|site| known(site.eta_seconds)),
            ),
            (
                "canary_lag",
                "From the push of the newest canary until the site had pulled it, or how long the next one is overdue; NaN when unknown",
                Some(Unit::Seconds),
                each(&|site| known(site.canary.as_ref().and_then(|canary| canary.lag_seconds))),
            ),
            (
                "canary_late",
                "1 while a site cannot pull the canary, or has the newest one later than the next is pushed; NaN without a canary",
                None,
                each(&|site| known(site.canary.as_ref().map(|canary| f64::from(u8::from(canary.is_late()))))),
            ),
            (
                "clock_offset",
                "How far the site's wall clock is ahead of the primary's, as heartbeats say; NaN before the first",
                Some(Unit::Seconds),
                each(&|site| known(site.clock_offset_seconds)),
            ),
            (
                "clock_offset_error",
                "By how much the clock offset may be wrong either way",
                Some(Unit::Seconds),
                each(&|site| known(site.clock_offset_error_seconds)),
            ),
            (
                "store_limit",
                "Most that the blob store may hold; +Inf without a limit",
                Some(Unit::Bytes),
                vec![(Vec::new(), limit_bytes.map_or(f64::INFINITY, |bytes| bytes as f64))],
            ),
            ("store", "Size of the blob store", Some(Unit::Bytes), vec![(Vec::new(), bytes as f64)]),
            ("store_blobs", "Blobs in the store", None, vec![(Vec::new(), blobs as f64)]),
        ];
        let forks = each(&|site| one(site.forks_refused as f64));
        let help = "Sessions refused because the histories of site and primary forked";
        encode_counters(encoder.encode_descriptor("fork_refused", help, None, MetricType::Counter)?, &forks)?;
        // Nobody says this of others.
        if let Some(own) = sites.first().filter(|_| !at_primary) {
            for (name, help, count) in [
                (
                    "state_mismatches",
                    "Times the index was in another state than the primary's",
                    own.state_mismatches,
                ),
                ("state_repairs", "Of those, repaired", own.state_repairs),
                (
                    "state_entries_repaired",
                    "Tags, manifests and links that repairs changed",
                    own.state_entries_repaired,
                ),
            ] {
                let family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
                ConstCounter::new(count).encode(family)?;
            }
        }
        for (name, help, unit, series) in families {
            let family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
            encode_series(family, &series)?;
        }
        Ok(())
    }
}

fn encode_counters(mut family: MetricEncoder<'_>, series: &[(Labels, f64)]) -> Result<(), std::fmt::Error> {
    for (labels, value) in labelled(series) {
        ConstCounter::new(*value).encode(family.encode_family(labels)?)?;
    }
    match unlabelled(series) {
        Some(value) => ConstCounter::new(value).encode(family),
        None => Ok(()),
    }
}

fn encode_series(mut family: MetricEncoder<'_>, series: &[(Labels, f64)]) -> Result<(), std::fmt::Error> {
    for (labels, value) in labelled(series) {
        ConstGauge::new(*value).encode(family.encode_family(labels)?)?;
    }
    match unlabelled(series) {
        Some(value) => ConstGauge::new(value).encode(family),
        None => Ok(()),
    }
}

fn labelled(series: &[(Labels, f64)]) -> impl Iterator<Item = &(Labels, f64)> {
    series.iter().filter(|(labels, _)| !labels.is_empty())
}

/// The one of the node itself; it ends its family.
fn unlabelled(series: &[(Labels, f64)]) -> Option<f64> {
    series.iter().find(|(labels, _)| labels.is_empty()).map(|(_, value)| *value)
}

fn lag_by_stage(lag: Lag) -> Vec<(Labels, f64)> {
    [("applied", lag.applied), ("complete", lag.complete)]
        .into_iter()
        .map(|(stage, seconds)| (vec![("stage", stage.to_owned())], seconds.unwrap_or(f64::NAN)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        status::PrimaryStatus,
        telemetry::{Exposition, Metrics},
    };

    fn scrape(status: Status) -> String {
        let metrics = Metrics::default();
        let source: StatusSource = Arc::new(move || status.clone());
        metrics.register(|registry| registry.register_collector(Box::new(StatusCollector(source))));
        metrics.encode(Exposition::OpenMetrics)
    }

    #[test]
    fn an_unknown_lag_is_not_a_number() {
        let text = scrape(Status::Secondary(Box::default()));
        assert!(text.contains("outport_lag_seconds{stage=\"applied\"} NaN"), "{text}");
        assert!(text.contains("outport_heartbeat_age_seconds NaN"), "{text}");
        assert!(text.contains("outport_log_seq{stage=\"complete\"} 0"), "{text}");
        assert!(text.contains("outport_fork_refused_total 0"), "{text}");
        assert!(text.contains("outport_state_repairs_total 0"), "{text}");
    }

    #[test]
    fn a_site_that_relays_shows_itself_and_who_is_behind_it() {
        let behind = |name: &str, lag_events| SiteStatus {
            site: name.to_owned(),
            lag_events,
            forks_refused: 1,
            ..SiteStatus::default()
        };
        let sites = vec![behind("goa", 3), behind("pune", 4)];
        let text = scrape(Status::Secondary(Box::new(SiteStatus { sites, ..behind("mumbai", 2) })));
        for line in [
            "outport_lag_events{site=\"goa\"} 3",
            "outport_lag_events{site=\"pune\"} 4",
            "outport_lag_events 2",
            "outport_log_seq{stage=\"applied\"} 0",
            "outport_log_seq{stage=\"applied\",site=\"goa\"} 0",
            "outport_fork_refused_total{site=\"goa\"} 1",
            "outport_fork_refused_total 1",
            "outport_state_repairs_total 0",
        ] {
            assert_eq!(text.lines().filter(|found| found.starts_with(line)).count(), 1, "{line}: {text}");
        }
        assert!(!text.contains("outport_state_repairs_total{"), "{text}");
    }

    #[test]
    fn a_primary_shows_every_site() {
        let site = |name: &str| SiteStatus { site: name.to_owned(), lag_events: 3, ..SiteStatus::default() };
        let sites = vec![site("frankfurt"), site("mumbai")];
        let text = scrape(Status::Primary(Box::new(PrimaryStatus {
            head_seq: 9,
            sites,
            ..PrimaryStatus::default()
        })));
        assert!(text.contains("outport_lag_events{site=\"mumbai\"} 3"), "{text}");
        assert!(text.contains("outport_log_seq{stage=\"head\"} 9"), "{text}");
    }
}
