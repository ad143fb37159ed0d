//! How long events take from the push to each stage here.

use std::{collections::VecDeque, time::Duration};

use outport_proto::{Offset, Timestamp, frame::Spread, session::Received};
use prometheus_client::{
    metrics::{family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};
use tokio::time::Instant;

use crate::bounds;

/// Buckets of the histogram, in seconds: from a site next door to one that was cut off for a day.
const SECONDS: [f64; 16] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0, 3600.0, 86_400.0];
/// Groups of events that wait for a stage, at most: more are put together two by two.
const GROUPS_MAX: usize = 4096;
/// The quantiles are of so long a time, in steps.
const STEPS: usize = 10;
const STEP: Duration = Duration::from_secs(30);
/// Each bucket of the quantiles ends at so much more than the one before.
const RATIO: f64 = 1.1;
const BUCKETS: usize = 192;
/// Where the first one ends, in microseconds.
const FIRST_MICROS: f64 = 100.0;

/// `outport_propagation_seconds`. Cloning gives another handle to the same histogram.
#[derive(Clone, Debug)]
pub struct PropagationMetrics {
    by_stage: [Histogram; 2],
}

type Labels = [(&'static str, &'static str); 1];

impl PropagationMetrics {
    /// Registers it; `registry` puts its prefix before the name.
    pub fn new(registry: &mut Registry) -> Self {
        let family = Family::<Labels, Histogram>::new_with_constructor(|| Histogram::new(SECONDS));
        let help = "From an event's commit at the primary until this site has it, by stage";
        registry.register_with_unit("propagation", help, Unit::Seconds, family.clone());
        let by_stage = ["applied", "complete"].map(|stage| family.get_or_create_owned(&[("stage", stage)]));
        Self { by_stage }
    }
}

impl Default for PropagationMetrics {
    fn default() -> Self {
        Self::new(&mut Registry::default())
    }
}

/// Events on their way through this site.
pub(super) struct Propagation {
    applied: Waiting,
    complete: Waiting,
}

struct Waiting {
    groups: VecDeque<Group>,
    histogram: Histogram,
    recent: Recent,
}

/// Consecutive events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    last: Offset,
    /// Of the first.
    time: Timestamp,
    events: u64,
}

impl Propagation {
    pub(super) fn new(metrics: PropagationMetrics) -> Self {
        let [applied, complete] = metrics.by_stage.map(|histogram| Waiting {
            groups: VecDeque::new(),
            histogram,
            recent: Recent::default(),
        });
        Self { applied, complete }
    }

    pub(super) fn received(&mut self, events: &[Received]) {
        for Received { offset, event, .. } in events {
            let group = Group { last: *offset, time: event.time, events: 1 };
            self.applied.wait(group);
            self.complete.wait(group);
        }
    }

    /// The index shows everything up to `to`, and the primary's clock reads `now`.
    pub(super) fn applied(&mut self, to: Offset, now: Option<Timestamp>) {
        self.applied.passed(to, now);
    }

    /// Every blob up to `to` is local.
    pub(super) fn complete(&mut self, to: Offset, now: Option<Timestamp>) {
        self.complete.passed(to, now);
    }

    /// Whether any event waits for a stage up to which everything has come.
    pub(super) fn is_waiting(&self, applied: Offset, complete: Offset) -> bool {
        let is_due = |waiting: &Waiting, to| waiting.groups.front().is_some_and(|group| group.last <= to);
        is_due(&self.applied, applied) || is_due(&self.complete, complete)
    }

    /// What was received is to come again, or never happened.
    pub(super) fn forget(&mut self) {
        self.applied.groups.clear();
        self.complete.groups.clear();
    }

    /// Quantiles of what passed each stage lately.
    pub(super) fn spreads(&self) -> [Option<Spread>; 2] {
        let now = Instant::now();
        [&self.applied, &self.complete].map(|waiting| waiting.recent.spread(now))
    }
}

impl Waiting {
    fn wait(&mut self, group: Group) {
        if self.groups.len() == GROUPS_MAX {
            let pairs = std::mem::take(&mut self.groups);
            let mut pairs = pairs.into_iter();
            while let Some(first) = pairs.next() {
                let second = pairs.next().unwrap_or(Group { events: 0, ..first });
                let events = first.events + second.events;
                self.groups.push_back(Group { last: second.last, time: first.time, events });
            }
        }
        self.groups.push_back(group);
        bounds::note("groups of events that wait for a stage", self.groups.len(), GROUPS_MAX);
    }

    fn passed(&mut self, to: Offset, now: Option<Timestamp>) {
        while let Some(group) = self.groups.pop_front_if(|group| group.last <= to) {
            let Some(now) = now else { continue };
            let took = now.since(group.time);
            (0..group.events).for_each(|_| self.histogram.observe(took.as_secs_f64()));
            self.recent.add(Instant::now(), took, group.events);
        }
    }
}

/// How many took how long, of the last minutes. Cheap: what it says is right to a twentieth.
#[derive(Debug, Default)]
struct Recent {
    /// The newest is last.
    steps: VecDeque<(Instant, Box<[u64; BUCKETS]>)>,
}

impl Recent {
    fn add(&mut self, now: Instant, took: Duration, events: u64) {
        if self.steps.back().is_none_or(|(begun, _)| now.duration_since(*begun) >= STEP) {
            self.steps.push_back((now, Box::new([0; BUCKETS])));
            if self.steps.len() > STEPS {
                self.steps.pop_front();
            }
        }
        let bucket = ((took.as_micros() as f64 / FIRST_MICROS).ln() / RATIO.ln()).ceil().max(0.0);
        if let Some((_, counts)) = self.steps.back_mut() {
            counts[(bucket as usize).min(BUCKETS - 1)] += events;
        }
    }

    fn spread(&self, now: Instant) -> Option<Spread> {
        let span = STEP * u32::try_from(STEPS).unwrap_or(u32::MAX);
        let recent = || self.steps.iter().filter(|(begun, _)| now.duration_since(*begun) < span);
        let counts: Vec<u64> =
            (0..BUCKETS).map(|bucket| recent().map(|(_, counts)| counts[bucket]).sum()).collect();
        let total: u64 = counts.iter().sum();
        let quantile = |of_hundred: u64| {
            let rank = (total * of_hundred).div_ceil(100);
            let mut seen = 0;
            let bucket = counts.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            // The middle of the bucket.
            let ends = RATIO.powi(i32::try_from(bucket.unwrap_or(BUCKETS)).unwrap_or(i32::MAX));
            (FIRST_MICROS * ends / RATIO.sqrt()) as u64
        };
        (total > 0).then(|| Spread { p50_micros: quantile(50), p99_micros: quantile(99) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seq: u64) -> Offset {
        Offset::new(1, seq)
    }

    #[test]
    fn every_event_counts_at_each_stage_however_many_wait() {
        let mut registry = Registry::default();
        let mut of = Propagation::new(PropagationMetrics::new(&mut registry));
        let events = 3 * GROUPS_MAX as u64 + 1;
        for seq in 1..=events {
            of.applied.wait(Group { last: at(seq), time: Timestamp::from_secs(100), events: 1 });
        }
        assert!(of.applied.groups.len() <= GROUPS_MAX);
        of.applied(at(events), Some(Timestamp::from_secs(102)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let line = format!("propagation_seconds_count{{stage=\"applied\"}} {events}");
        assert!(text.contains(&line), "{text}");
        assert!(text.contains("propagation_seconds_bucket{le=\"1.0\",stage=\"applied\"} 0"), "{text}");
        let [applied, complete] = of.spreads();
        assert_eq!(complete, None);
        assert!((1_900_000..2_100_000).contains(&applied.unwrap().p50_micros), "{applied:?}");
    }

    #[test]
    fn quantiles_are_right_to_a_twentieth_and_forget() {
        let mut recent = Recent::default();
        let begun = Instant::now();
        (1..=1000).for_each(|millis| recent.add(begun, Duration::from_millis(millis), 1));
        let Spread { p50_micros, p99_micros } = recent.spread(begun).unwrap();
        assert!((475_000..=525_000).contains(&p50_micros), "{p50_micros}");
        assert!((940_000..=1_040_000).contains(&p99_micros), "{p99_micros}");
        assert_eq!(recent.spread(begun + STEP * 10), None);
        recent.add(begun + STEP * 9, Duration::ZERO, 1);
        assert!(recent.spread(begun + STEP * 10).unwrap().p99_micros < 100);
    }
}
