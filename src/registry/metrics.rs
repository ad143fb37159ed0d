//! What the registry counts.

use std::fmt::{self, Write as _};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Counters of pulls. Cloning gives another handle to the same counters.
#[derive(Clone, Debug)]
pub struct PullMetrics {
    /// By [`PullResult`], in its order: a pull looks nothing up to be counted.
    pulls: [Counter; PullResult::ALL.len()],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PullLabels {
    result: PullResult,
}

/// How a pull was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum PullResult {
    /// From here.
    Local,
    /// From here, after waiting for an event or a heartbeat.
    Waited,
    /// With what the primary said.
    Revalidated,
    /// From a fill it began.
    Filled,
    /// From a fill another pull began.
    Joined,
    /// From here, with its age: the primary was unreachable.
    Stale,
    /// Not: it may exist, and could not be had.
    Unavailable,
    /// With the log's "no".
    NotFound,
    /// Not: the caller may not read it.
    Denied,
}

impl PullResult {
    const ALL: [Self; 9] = [
        Self::Local,
        Self::Waited,
        Self::Revalidated,
        Self::Filled,
        Self::Joined,
        Self::Stale,
        Self::Unavailable,
        Self::NotFound,
        Self::Denied,
    ];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Waited => "waited",
            Self::Revalidated => "revalidated",
            Self::Filled => "filled",
            Self::Joined => "joined",
            Self::Stale => "stale",
            Self::Unavailable => "unavailable",
            Self::NotFound => "not_found",
            Self::Denied => "denied",
        }
    }
}

impl EncodeLabelValue for PullResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(self.as_str())
    }
}

impl PullMetrics {
    /// Counters registered as `pulls_total{result}`; `registry` puts its prefix before that.
    pub fn new(registry: &mut Registry) -> Self {
        let pulls = Family::<PullLabels, Counter>::default();
        registry.register("pulls", "Pulls, by how they were answered", pulls.clone());
        Self { pulls: PullResult::ALL.map(|result| pulls.get_or_create_owned(&PullLabels { result })) }
    }

    /// Counters that nobody is shown.
    pub fn hidden() -> Self {
        Self::new(&mut Registry::default())
    }

    /// All counts, by result.
    pub fn by_result(&self) -> impl Iterator<Item = (&'static str, u64)> {
        PullResult::ALL.iter().zip(&self.pulls).map(|(result, count)| (result.as_str(), count.get()))
    }

    /// Of those that content was served to: how many from this disk, and how many in all.
    pub fn hits(&self) -> (u64, u64) {
        use PullResult::{Filled, Joined, Local, Revalidated, Stale, Waited};
        let sum = |of: &[PullResult]| of.iter().map(|result| self.pulls[*result as usize].get()).sum::<u64>();
        let hits = sum(&[Local, Waited, Stale]);
        (hits, hits + sum(&[Revalidated, Filled, Joined]))
    }

    pub(super) fn count(&self, result: PullResult) {
        self.pulls[result as usize].inc();
    }

    #[cfg(test)]
    pub(super) fn get(&self, result: PullResult) -> u64 {
        self.pulls[result as usize].get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_result_has_its_own_counter() {
        for (place, result) in PullResult::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, place);
        }
    }

    #[test]
    fn the_name_that_dashboards_use() {
        let mut registry = Registry::with_prefix("outport");
        PullMetrics::new(&mut registry).count(PullResult::NotFound);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("outport_pulls_total{result=\"not_found\"} 1"), "{text}");
    }
}
