//! What flights count.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// Counters of a node's flights. Cloning gives another handle to the same counters.
#[derive(Clone, Debug, Default)]
pub struct FlightMetrics {
    pub(super) upstream_bytes: Counter,
    pub(super) started: Counter,
    pub(super) joined: Counter,
    pub(super) resumed: Counter,
    pub(super) failed: Counter,
    pub(super) unkept: Counter,
    pub(super) in_progress: Gauge,
}

impl FlightMetrics {
    /// Metrics registered in `registry`, which adds the prefix.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let counters = [
            ("upstream_bytes", "Bytes fetched from upstream", &metrics.upstream_bytes),
            ("fills_started", "Fills started", &metrics.started),
            ("fills_joined", "Readers that joined a fill in progress", &metrics.joined),
            ("fills_resumed", "Times a fill went on after its upstream broke", &metrics.resumed),
            ("fills_failed", "Fills that failed", &metrics.failed),
            ("fills_unkept", "Fills that could not be kept on disk", &metrics.unkept),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register("fills_in_progress", "Fills in progress or waiting", metrics.in_progress.clone());
        metrics
    }

    /// Bytes fetched from upstream.
    pub fn upstream_bytes(&self) -> u64 {
        self.upstream_bytes.get()
    }
}
