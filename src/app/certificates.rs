//! A node's certificates: read at the start, read again when their files change or on `SIGHUP`.
//!
//! What is read is used from the next handshake on; connections that are open go on with what they began
//! with. Files that nobody would believe are not taken: the ones before stay in use, and the status tells.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use outport_proto::Timestamp;
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::signal::unix::{SignalKind, signal};
use x509_parser::parse_x509_certificate;

use super::StartError;
use crate::{
    auth::{Identity, NodeTls, authority::load_certificates, tls},
    blocking,
    clock::SharedClock,
    config,
    http::TlsConfig,
    shutdown::Shutdown,
    status::CertificateStatus,
    telemetry::Metrics,
};

/// How often it is looked whether files changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

type Failed = Box<dyn std::error::Error + Send + Sync>;
type Labels = [(&'static str, &'static str); 1];
/// Reads the files again and uses them; returns when they end.
type Read = Box<dyn Fn(Timestamp) -> Result<Timestamp, Failed> + Send>;

/// All of a node.
#[derive(Default)]
pub(super) struct Certificates {
    kept: Vec<Kept>,
    statuses: Statuses,
    metrics: CertificateMetrics,
}

/// One certificate.
struct Kept {
    name: &'static str,
    files: Vec<PathBuf>,
    read: Read,
    /// How the files were when they were read.
    seen: Vec<Option<Stamp>>,
}

/// Stands for a file's content.
type Stamp = (u64, u64, u64, Option<SystemTime>);

/// How they are.
#[derive(Clone, Default)]
pub(super) struct Statuses(Arc<Mutex<Vec<CertificateStatus>>>);

#[derive(Clone, Default)]
struct CertificateMetrics {
    ends: Family<Labels, Gauge<f64, AtomicU64>>,
    refused: Family<Labels, Gauge>,
    reloads: Family<Labels, Counter>,
}

impl Certificates {
    /// None yet; what becomes of them is told in `metrics`.
    pub(super) fn new(metrics: &Metrics) -> Self {
        let this = Self::default();
        let CertificateMetrics { ends, refused, reloads } = this.metrics.clone();
        metrics.register(|registry| {
            let help = "When the certificate in use ends, in seconds since the Unix epoch";
            registry.register("certificate_expiry_timestamp_seconds", help, ends);
            let help =
                "1 while the certificate's files hold what cannot be used, so that the one before still is";
            registry.register("certificate_refused", help, refused);
            registry.register("certificate_reloads", "Times that a certificate was replaced", reloads);
        });
        this
    }

    /// What other nodes are shown, and whom they are believed by; `keys` are what configured it.
    pub(super) fn node(&mut self, files: &config::MutualTls, keys: &str) -> Result<Arc<NodeTls>, StartError> {
        let failed = |error: Failed| StartError::new(format!("set up replication ({keys})"), error);
        let files = files.clone();
        let load = {
            let files = files.clone();
            move || -> Result<_, Failed> {
                let identity = Identity::load(&files.certificate, &files.key)?;
                Ok((identity, load_certificates(&files.authority)?))
            }
        };
        let (identity, authorities) = load().map_err(failed)?;
        let tls = NodeTls::new(&identity, &authorities).map_err(|error| failed(error.into()))?;
        let (_, ends) = validity(&identity.chain).map_err(failed)?;
        let used = Arc::clone(&tls);
        let read = move |now: Timestamp| {
            let (identity, authorities) = load()?;
            let at = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()));
            used.replace(&identity, &authorities, at)?;
            Ok(validity(&identity.chain)?.1)
        };
        self.keep("replication", vec![files.certificate, files.key, files.authority], ends, Box::new(read));
        Ok(tls)
    }

    /// What clients are shown.
    pub(super) fn https(&mut self, files: &config::Tls) -> Result<TlsConfig, StartError> {
        let failed =
            |error: Failed| StartError::new("load registry.tls.certificate and registry.tls.key", error);
        let files = files.clone();
        let load = {
            let files = files.clone();
            move || -> Result<_, Failed> {
                let identity = Identity::load(&files.certificate, &files.key)?;
                Ok((tls::https_server(&identity)?, validity(&identity.chain)?))
            }
        };
        let (config, (_, ends)) = load().map_err(failed)?;
        let tls: TlsConfig = Arc::new(ArcSwap::from_pointee(config));
        let used = Arc::clone(&tls);
        let read = move |now: Timestamp| {
            let (config, (begins, ends)) = load()?;
            if begins > now || ends <= now {
                return Err("the certificate is not valid now".into());
            }
            used.store(Arc::new(config));
            Ok(ends)
        };
        self.keep("https", vec![files.certificate, files.key], ends, Box::new(read));
        Ok(tls)
    }

    fn keep(&mut self, name: &'static str, files: Vec<PathBuf>, ends: Timestamp, read: Read) {
        let seen = files.iter().map(|file| stamp(file)).collect();
        self.kept.push(Kept { name, files, read, seen });
        self.taken(name, ends);
    }

    fn taken(&self, name: &'static str, ends: Timestamp) {
        let labels = [("certificate", name)];
        self.metrics.ends.get_or_create(&labels).set(ends.as_secs() as f64);
        self.metrics.refused.get_or_create(&labels).set(0);
        let status = CertificateStatus { name: name.to_owned(), expires_at: ends.as_secs(), refused: None };
        self.statuses.put(status);
    }

    /// How they are.
    pub(super) fn statuses(&self) -> Statuses {
        self.statuses.clone()
    }

    /// Reads them again when their files change, and on `SIGHUP`, until shutdown.
    ///
    /// # Errors
    /// When the signal cannot be heard.
    pub(super) fn watch(mut self, clock: &SharedClock, shutdown: &Shutdown) -> Result<(), StartError> {
        let mut hangup =
            signal(SignalKind::hangup()).map_err(|error| StartError::new("listen for SIGHUP", error))?;
        let (clock, stop) = (Arc::clone(clock), shutdown.clone());
        shutdown.spawn(async move {
            loop {
                let is_asked = tokio::select! {
                    biased;
                    () = stop.requested() => return,
                    heard = hangup.recv() => heard.is_some(),
                    () = tokio::time::sleep(LOOK_INTERVAL) => false,
                };
                let now = clock.now();
                let looked = blocking::spawn(move || {
                    self.look(is_asked, now);
                    self
                });
                match looked.await {
                    Ok(looked) => self = looked,
                    Err(error) => {
                        tracing::error!(%error, "reading certificates crashed: they are not read again");
                        return;
                    }
                }
            }
        });
        Ok(())
    }

    /// Reads those again whose files changed, or all.
    fn look(&mut self, all: bool, now: Timestamp) {
        let mut kept = std::mem::take(&mut self.kept);
        for kept in &mut kept {
            let stamps: Vec<_> = kept.files.iter().map(|file| stamp(file)).collect();
            // What was refused may be half written: it is tried until it is good.
            if !all && stamps == kept.seen && !self.statuses.is_refused(kept.name) {
                continue;
            }
            kept.seen = stamps;
            match (kept.read)(now) {
                Ok(ends) => {
                    tracing::info!(
                        certificate = kept.name,
                        ends_at = ends.as_secs(),
                        "certificate read again"
                    );
                    self.metrics.reloads.get_or_create(&[("certificate", kept.name)]).inc();
                    self.taken(kept.name, ends);
                }
                Err(error) => self.refused(kept.name, &error.to_string()),
            }
        }
        self.kept = kept;
    }

    fn refused(&self, name: &'static str, reason: &str) {
        if self.statuses.refuse(name, reason) {
            tracing::error!(certificate = name, %reason, "certificate not taken: the one before is still used");
        }
        self.metrics.refused.get_or_create(&[("certificate", name)]).set(1);
    }
}

impl Statuses {
    /// All of them.
    pub(super) fn read(&self) -> Vec<CertificateStatus> {
        self.with(|statuses| statuses.clone())
    }

    fn put(&self, status: CertificateStatus) {
        self.with(|statuses| {
            statuses.retain(|other| other.name != status.name);
            statuses.push(status);
        });
    }

    fn is_refused(&self, name: &str) -> bool {
        self.with(|statuses| statuses.iter().any(|status| status.name == name && status.refused.is_some()))
    }

    /// Whether that was not known.
    fn refuse(&self, name: &str, reason: &str) -> bool {
        self.with(|statuses| {
            let status = statuses.iter_mut().find(|status| status.name == name);
            status.is_some_and(|status| status.refused.replace(reason.to_owned()).as_deref() != Some(reason))
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Vec<CertificateStatus>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// `None` when there is no such file.
fn stamp(file: &Path) -> Option<Stamp> {
    let file = fs::metadata(file).ok()?;
    Some((file.dev(), file.ino(), file.len(), file.modified().ok()))
}

/// From when to when all of a chain is valid.
pub(super) fn validity(chain: &[CertificateDer<'_>]) -> Result<(Timestamp, Timestamp), Failed> {
    let mut common = None::<(i64, i64)>;
    for certificate in chain {
        let (_, certificate) = parse_x509_certificate(certificate)?;
        let of = certificate.validity();
        let (begins, ends) = (of.not_before.timestamp(), of.not_after.timestamp());
        common = Some(common.map_or((begins, ends), |so_far| (so_far.0.max(begins), so_far.1.min(ends))));
    }
    let (begins, ends) = common.ok_or("there is no certificate")?;
    let time = |seconds| Timestamp::from_secs(u64::try_from(seconds).unwrap_or_default());
    Ok((time(begins), time(ends)))
}
