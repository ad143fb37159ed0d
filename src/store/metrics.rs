//! What a store counts.

use prometheus_client::{metrics::counter::Counter, registry::Registry};

use super::Store;

#[derive(Debug, Default)]
pub(super) struct StoreMetrics {
    pub(super) evicted_blobs: Counter,
    pub(super) evicted_bytes: Counter,
    pub(super) rotten: Counter,
    pub(super) scrubbed_bytes: Counter,
}

impl Store {
    /// Registers what the store counts in `registry`, which adds the prefix.
    pub fn register(&self, registry: &mut Registry) {
        let metrics = &self.inner.metrics;
        let counters = [
            ("store_evicted_blobs", "Blobs evicted to make room", &metrics.evicted_blobs),
            ("store_evicted_bytes", "Bytes evicted to make room", &metrics.evicted_bytes),
            ("store_rotten_blobs", "Bad copies set aside", &metrics.rotten),
            ("store_scrubbed_bytes", "Bytes checked without being asked for", &metrics.scrubbed_bytes),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
    }
}
