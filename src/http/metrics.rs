//! What the listener counts.

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

/// Buckets of the time to the first byte, in seconds: from a warm manifest to a cold layer.
const TTFB_SECONDS: [f64; 12] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

/// Counters of the OCI distribution API. Cloning gives another handle to the same counters.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    pub(super) redirects: Family<RedirectLabels, Counter>,
    pub(super) served_bytes: Counter,
    pub(super) proxied_bytes: Counter,
    pub(super) ttfb: Histogram,
}

/// Labels of `outport_redirects_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RedirectLabels {
    pub(super) kind: RedirectKind,
}

/// How a request that the primary must see got there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RedirectKind {
    /// An upload's beginning, redirected.
    Upload,
    /// A mount, redirected.
    Mount,
    /// A manifest, redirected.
    Manifest,
    /// A delete, redirected.
    Delete,
    /// A token request, redirected.
    Token,
    /// Streamed through this site.
    Proxied,
}

impl RedirectKind {
    const ALL: [Self; 6] =
        [Self::Upload, Self::Mount, Self::Manifest, Self::Delete, Self::Token, Self::Proxied];
}

impl EncodeLabelValue for RedirectKind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Upload => "upload",
            Self::Mount => "mount",
            Self::Manifest => "manifest",
            Self::Delete => "delete",
            Self::Token => "token",
            Self::Proxied => "proxied",
        })
    }
}

impl HttpMetrics {
    /// Registers them; `registry` puts its prefix before their names.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            redirects: Family::default(),
            served_bytes: Counter::default(),
            proxied_bytes: Counter::default(),
            ttfb: Histogram::new(TTFB_SECONDS),
        };
        // What never happened is shown as 0: a rate needs a beginning.
        for kind in RedirectKind::ALL {
            drop(metrics.redirects.get_or_create(&RedirectLabels { kind }));
        }
        registry.register("redirects", "Requests led to the primary", metrics.redirects.clone());
        registry.register("served_bytes", "Bytes of response bodies sent", metrics.served_bytes.clone());
        registry.register(
            "proxied_push_bytes",
            "Bytes of request bodies streamed through this site to the primary",
            metrics.proxied_bytes.clone(),
        );
        registry.register("ttfb_seconds", "From a request's headers to its answer's", metrics.ttfb.clone());
        metrics
    }

    /// Requests led to the primary in this way.
    pub fn redirects(&self, kind: RedirectKind) -> u64 {
        self.redirects.get_or_create(&RedirectLabels { kind }).get()
    }

    /// Bytes of response bodies sent.
    pub fn served_bytes(&self) -> u64 {
        self.served_bytes.get()
    }

    /// Bytes of request bodies streamed through this site to the primary.
    pub fn proxied_bytes(&self) -> u64 {
        self.proxied_bytes.get()
    }

    pub(super) fn led_to_primary(&self, kind: RedirectKind) {
        self.redirects.get_or_create(&RedirectLabels { kind }).inc();
    }

    pub(super) fn answered_after(&self, elapsed: Duration) {
        self.ttfb.observe(elapsed.as_secs_f64());
    }
}
