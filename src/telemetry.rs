//! Logs, metrics and traces of the process.

pub mod log;
pub mod trace;

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::registry::Registry;

pub use self::log::{LogError, LogFormat, init_log};

/// The metrics of one node. Cloning gives another handle. Names get the prefix `outport_`.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Default for Metrics {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Registry::with_prefix("outport"))))
    }
}

impl Metrics {
    /// Lets a part register its own metrics.
    pub fn register<T>(&self, part: impl FnOnce(&mut Registry) -> T) -> T {
        part(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything registered, in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}

/// An error with all that led to it, for one line: a client's own says little.
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
