//! Logs and metrics of the process.

use std::{
    io::IsTerminal as _,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::registry::Registry;
use serde::Deserialize;
use tracing_subscriber::{EnvFilter, fmt};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Sends the process's log to standard error. `RUST_LOG` wins over `filter`.
///
/// # Errors
/// When the filter does not parse, or a log is already set up.
pub fn init_log(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let (source, filter) = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => ("RUST_LOG", text),
        _ => ("telemetry.log_filter", filter.to_owned()),
    };
    let filter =
        EnvFilter::try_new(&filter).map_err(|error| LogError(format!("{source} = {filter:?}: {error}")))?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Human => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|error| LogError(error.to_string()))
}

/// Why there is no log.
#[derive(Clone, Debug, thiserror::Error)]
#[error("set up the log: {0}")]
pub struct LogError(String);

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
