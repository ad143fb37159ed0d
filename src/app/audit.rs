//! Starts the audit log, and tells it of rules that changed while nobody was looking.

use std::{
    fmt::Display,
    time::{Duration, SystemTime},
};

use super::{StartError, data_dir::DataDir, durable_write, otlp};
use crate::{
    auth::read_text,
    blocking, config,
    telemetry::{
        Metrics,
        audit::{Audit, AuditMetrics, Kind, Record, RotatingFile, Sink, Stdout},
    },
};

/// How long a node that stops waits for its last records to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// The rules of the last start.
const RULES: &str = "rules";

/// Starts to keep what happens at `site`, where `config` says.
///
/// # Errors
/// When a file cannot be opened, or the collector not be understood.
pub(super) fn start(
    config: &config::Audit,
    otlp: Option<&config::Otlp>,
    (role, site): (&'static str, &str),
    metrics: &Metrics,
) -> Result<Audit, StartError> {
    let failed = |error: std::io::Error| StartError::new("start the audit log (audit)", error);
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    if let Some(options) = config.file() {
        let action = format!("open audit.file {}", options.path.display());
        let file = RotatingFile::open(options).map_err(|error| StartError::new(action, error))?;
        sinks.push(Box::new(file));
    }
    if config.stdout {
        sinks.push(Box::new(Stdout));
    }
    if let Some(otlp) = otlp.filter(|_| config.otlp) {
        sinks.push(Box::new(otlp::AuditLog::start(otlp, role, site)?));
    }
    Audit::start(site, sinks, metrics.register(AuditMetrics::new)).map_err(failed)
}

/// Tells of the rules of this start, if they are others than those of the last.
///
/// # Errors
/// When they cannot be remembered.
pub(super) fn tell_rules(audit: &Audit, data_dir: &DataDir, rules: impl Display) -> Result<(), StartError> {
    if !audit.is_kept() {
        return Ok(());
    }
    let (rules, file) = (rules.to_string(), data_dir.join(RULES));
    let before =
        read_text(&file).map_err(|error| StartError::new("read the rules of the last start", error))?;
    if before.as_deref() == Some(&rules) {
        return Ok(());
    }
    durable_write(&file, &rules)?;
    audit.tell(&Record { detail: Some(&rules), ..Record::at(SystemTime::now(), Kind::Policy) });
    Ok(())
}

/// Waits for what was told to be written, for a moment at most.
pub(super) async fn stop(audit: Audit) {
    if let Err(error) = blocking::spawn(move || audit.flush(FLUSH_TIMEOUT)).await {
        tracing::error!(%error, "ending the audit log crashed");
    }
}
