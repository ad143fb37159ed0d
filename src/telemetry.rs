//! Logs, metrics and traces of the process.

pub mod audit;
pub mod log;
mod metrics;
pub mod trace;

pub use self::{
    log::{LogError, LogFormat, init_log, is_colored},
    metrics::{Exposition, Metrics},
};

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
