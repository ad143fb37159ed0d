//! The composition root: the only place that knows all parts and wires them together.

mod audit;
mod callers;
mod certificates;
mod data_dir;
mod delegation;
pub mod demo;
mod gateway;
mod issuer;
pub mod join;
mod listen;
mod membership;
mod otlp;
pub mod primary;
pub mod promote;
pub mod relay;
mod renewal;
mod replication;
mod sample;
pub mod secondary;
mod traffic;
mod trust;
mod webhooks;

use std::{
    fmt,
    future::Future,
    num::NonZeroU64,
    path::Path,
    pin::Pin,
    time::{Duration, Instant},
};

use rustls_pki_types::CertificateDer;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::data_dir::DataDir;
use crate::{
    auth::{authority::load_certificates, tls, write_private},
    blocking,
    config::{self, ConfigError},
    registry::{Collector, Journal, journal::JournalError},
    shutdown::Shutdown,
    status::StoreStatus,
    store::{Store, StoreOptions},
};

/// How long a node may take to stop.
const GRACE: Duration = Duration::from_secs(5);
/// The part of it that is left to requests in flight; the rest is for the disk.
const REQUESTS_GRACE: Duration = Duration::from_secs(4);
/// How often a disk that failed is asked again. A supervisor that counts starts does not lose its
/// patience over a disk that fails every time.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Why a node does not start, or does not stop well: what was being done, and what went wrong.
#[derive(Debug)]
pub struct StartError {
    action: String,
    reason: Box<dyn std::error::Error + Send + Sync>,
}

impl StartError {
    fn new(action: impl Into<String>, reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { action: action.into(), reason: reason.into() }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.action, self.reason)
    }
}

impl std::error::Error for StartError {}

/// Listens for SIGINT and SIGTERM from now on; what this returns resolves when the process is told to stop, or a
/// part fails for good.
pub fn until_stopped(shutdown: &Shutdown) -> impl Future<Output = ()> + Send + use<> {
    let [interrupt, terminate] = [SignalKind::interrupt(), SignalKind::terminate()].map(|kind| {
        signal(kind).map_err(|error| tracing::warn!(%error, ?kind, "a signal is not heard")).ok()
    });
    let told = |signal: Option<Signal>| async move {
        match signal {
            Some(mut signal) => _ = signal.recv().await,
            None => std::future::pending().await,
        }
    };
    let shutdown = shutdown.clone();
    async move {
        tokio::select! {
            () = told(interrupt) => {}
            () = told(terminate) => {}
            () = shutdown.requested() => {}
        }
    }
}

/// Starts a node, unless the process is told to stop meanwhile; then nothing that began goes on.
///
/// # Errors
/// Those of `start`.
pub async fn started<T>(
    start: impl Future<Output = Result<T, StartError>>,
    stopped: Pin<&mut (impl Future<Output = ()> + Send)>,
    shutdown: &Shutdown,
) -> Result<Option<T>, StartError> {
    tokio::select! {
        biased;
        started = start => started.map(Some),
        () = stopped => {
            shutdown.finish(GRACE).await;
            Ok(None)
        }
    }
}

/// Tells a node's tasks to stop and waits for them. The journal stops behind all others: requests
/// in flight still write to it. That it had failed is a failure of the node, so that it is started again.
async fn stop(
    (shutdown, journal_shutdown): (&Shutdown, &Shutdown),
    journal: &Journal,
    role: &str,
) -> Result<(), StartError> {
    let told = Instant::now();
    let tasks_ended = shutdown.finish(REQUESTS_GRACE).await;
    let failed = journal.failed();
    if journal_shutdown.finish(GRACE.saturating_sub(told.elapsed())).await && tasks_ended {
        tracing::info!(role, "stopped");
        failed.map_or(Ok(()), |error| Err(StartError::new(format!("run the {role}"), error)))
    } else {
        Err(StartError::new(format!("stop the {role}"), format!("it took longer than {GRACE:?}")))
    }
}

/// Ends the process when a node can no longer do its work and a new start can: whoever watches over
/// it starts it again. As long as the disk refuses, or does not have what a start reads, that would take
/// away pulls as well.
async fn end_on_failure(journal: Journal, shutdown: Shutdown, process: Shutdown) {
    let error = tokio::select! {
        biased;
        () = shutdown.requested() => return,
        error = journal.failure() => error,
    };
    if matches!(error, JournalError::Log(_)) {
        tracing::error!(%error, "nothing more is taken in, pulls go on; the process ends, to be started again, once the disk makes the log durable");
        loop {
            if !pause(&shutdown, PROBE_INTERVAL).await {
                return;
            }
            let log = journal.log().clone();
            match blocking::spawn(move || log.probe()).await {
                Ok(Ok(())) => break,
                Ok(Err(reason)) => tracing::warn!(%reason, "the disk does not make the log durable"),
                Err(reason) => tracing::error!(%reason, "asking the disk crashed"),
            }
        }
    }
    tracing::error!(%error, "the journal failed: stopping");
    process.request();
}

/// Whether a node can do its work.
fn able(journal: &Journal) -> Result<(), String> {
    journal.failed().map_or(Ok(()), |error| Err(format!("nothing more is taken in: {error}")))
}

/// Waits; returns false as soon as the node is told to stop.
async fn pause(shutdown: &Shutdown, duration: Duration) -> bool {
    tokio::time::timeout(duration, shutdown.requested()).await.is_err()
}

async fn open_store(data_dir: &DataDir, options: StoreOptions) -> Result<Store, StartError> {
    let path = data_dir.join("store");
    let opened = blocking::spawn(move || Store::open_with(&path, options)).await;
    let (store, leftovers) = opened
        .map_err(|error| StartError::new("open the blob store", error))?
        .map_err(|error| StartError::new("open the blob store", error))?;
    if leftovers != crate::store::Leftovers::default() {
        tracing::info!(?leftovers, "removed what a crash left in the blob store");
    }
    Ok(store)
}

/// Checks blobs for bit rot before anybody asks for them.
fn scrub(store: &Store, mib_per_second: u32, shutdown: &Shutdown) {
    if let Some(rate) = NonZeroU64::new(u64::from(mib_per_second) * 1024 * 1024) {
        shutdown.spawn(store.clone().scrub(rate, shutdown.clone()));
    }
}

/// Removes what no repository names, on a timer and on demand.
fn collector(journal: &Journal, store: &Store, grace_minutes: u32, shutdown: &Shutdown) -> Collector {
    let grace = Duration::from_secs(u64::from(grace_minutes) * 60);
    let collector = Collector::new(journal.index().clone(), store.clone(), grace);
    shutdown.spawn(collector.clone().run(shutdown.clone()));
    collector
}

/// The authorities this machine trusts, for HTTPS to the primary.
fn system_authorities() -> Vec<CertificateDer<'static>> {
    let found = rustls_native_certs::load_native_certs();
    for error in found.errors {
        tracing::warn!(%error, "some of the system's certificate authorities cannot be read");
    }
    found.certs
}

/// A client for HTTPS that believes what leads to the authorities of a file, or without one to the system's.
fn https_client(
    authorities: Option<&Path>,
) -> Result<rustls::ClientConfig, Box<dyn std::error::Error + Send + Sync>> {
    let authorities = match authorities {
        Some(file) => load_certificates(file)?,
        None => system_authorities(),
    };
    Ok(tls::https_client(&authorities)?)
}

fn store_status(store: &Store) -> StoreStatus {
    let stats = store.stats();
    StoreStatus { bytes: stats.bytes, limit_bytes: store.limit(), blobs: stats.blobs }
}

/// What became of a look at a configuration file that would be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Whose configuration it is.
    pub role: &'static str,
    /// What is probably not meant, one line each.
    pub warnings: Vec<String>,
}

/// Says whether a file would be accepted, and by which role.
///
/// # Errors
/// What is wrong with it, where.
pub fn check_config(path: &Path) -> Result<Checked, ConfigError> {
    // A secondary is what names a primary.
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let names_primary = text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("primary"));
    if names_primary {
        let config: config::Secondary = config::load(path)?;
        config.check(path)?;
        Ok(Checked { role: "secondary", warnings: config.warnings(path) })
    } else {
        let config: config::Primary = config::load(path)?;
        config.check(path)?;
        Ok(Checked { role: "primary", warnings: Vec::new() })
    }
}

/// Writes a file that only its owner may read, whole or not at all.
fn durable_write(path: &Path, text: &str) -> Result<(), StartError> {
    write_private(path, text).map_err(|error| StartError::new("write", error))
}
