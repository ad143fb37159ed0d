//! What a node serves, for its status.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    fetch::FlightMetrics, http::HttpMetrics, registry::PullMetrics, secondary::detail::TrafficSource,
    shutdown::Shutdown, status,
};

/// The hit ratio is that of so many steps.
const STEPS: usize = 30;
const STEP: Duration = Duration::from_secs(10);

/// Counters of a node, and what they were lately. Cloning gives another handle.
#[derive(Clone)]
pub(super) struct Traffic(Arc<Parts>);

struct Parts {
    pulls: PullMetrics,
    http: HttpMetrics,
    flights: FlightMetrics,
    /// Hits and all, a step apart, the oldest first.
    before: Mutex<VecDeque<(u64, u64)>>,
}

impl Traffic {
    pub(super) fn new(pulls: PullMetrics, http: HttpMetrics, flights: FlightMetrics) -> Self {
        Self(Arc::new(Parts { pulls, http, flights, before: Mutex::new(VecDeque::from([(0, 0)])) }))
    }

    /// Remembers from time to time where the counters were.
    pub(super) async fn run(self, shutdown: Shutdown) {
        while super::pause(&shutdown, STEP).await {
            let mut before = self.0.before.lock().unwrap_or_else(PoisonError::into_inner);
            if before.len() == STEPS {
                before.pop_front();
            }
            before.push_back(self.0.pulls.hits());
        }
    }

    pub(super) fn read(&self) -> status::Traffic {
        let Parts { pulls, http, flights, before } = &*self.0;
        let (hits, all) = pulls.hits();
        let (hits_before, all_before) =
            before.lock().unwrap_or_else(PoisonError::into_inner).front().copied().unwrap_or_default();
        let recent = all.saturating_sub(all_before);
        status::Traffic {
            pulls: pulls.by_result().map(|(result, count)| (result.to_owned(), count)).collect(),
            hit_ratio: (recent > 0).then(|| hits.saturating_sub(hits_before) as f64 / recent as f64),
            served_bytes: http.served_bytes(),
            upstream_bytes: flights.upstream_bytes(),
        }
    }

    pub(super) fn source(&self) -> TrafficSource {
        let this = self.clone();
        Arc::new(move || this.read())
    }
}
