//! Certificates of the cluster's authority are renewed before they end: a site asks the primary, the primary asks
//! the authority's key. Only the certificates change, in their files; what watches those uses them then.

use std::{path::Path, sync::Arc, time::Duration};

use outport_proto::{
    Timestamp,
    frame::{CertificateRequests, Certificates},
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::certificates::validity;
use crate::{
    auth::{
        Authority, CertificateRequest, Identity, NodeIdentity, NodeTls,
        authority::{load_certificates, save_certificates, server_names},
    },
    blocking,
    clock::SharedClock,
    config,
    fetch::{BoxFuture, primary::QuicUpstream},
    shutdown::Shutdown,
};

/// How often it is looked whether one is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(600);
/// A renewal that failed is tried again after this, and then after twice as long each time ..
const RETRY_MIN: Duration = Duration::from_secs(2);
/// .. up to this.
const RETRY_MAX: Duration = Duration::from_secs(3600);

type Failed = Box<dyn std::error::Error + Send + Sync>;
/// Brings certificates for these keys; the names are those of the HTTPS certificate in use.
type Certify = Box<
    dyn Fn(CertificateRequests, Vec<String>) -> BoxFuture<'static, Result<Certificates, Failed>>
        + Send
        + Sync,
>;

/// Renews what `config` says, with the authority's key, until shutdown.
pub(super) fn of_primary(config: &config::Primary, clock: &SharedClock, shutdown: &Shutdown) {
    let replication = &config.replication;
    let Some(key) = replication.authority_key.clone() else { return };
    let (certificate, now) = (replication.tls.authority.clone(), Arc::clone(clock));
    let certify: Certify = Box::new(move |requests, names| {
        let (certificate, key, now) = (certificate.clone(), key.clone(), now.now());
        Box::pin(async move {
            let certified =
                blocking::spawn(move || certified_here(&certificate, &key, &requests, &names, now));
            certified.await?
        })
    });
    Renewal::new(&replication.tls, config.registry.tls.as_ref(), certify).begin(clock, shutdown);
}

/// Renews what `config` says, by asking `upstream`, until shutdown.
pub(super) fn of_site(
    config: &config::Secondary,
    upstream: &QuicUpstream,
    clock: &SharedClock,
    shutdown: &Shutdown,
) {
    let (site, upstream) = (config.site.clone(), upstream.clone());
    let certify: Certify = Box::new(move |requests, _| {
        let (site, upstream) = (site.clone(), upstream.clone());
        Box::pin(async move {
            let certified = upstream.certify(site, Vec::new(), requests).await?;
            certified.ok_or_else(|| "the primary has none for this site".into())
        })
    });
    Renewal::new(&config.primary.tls, config.registry.tls.as_ref(), certify).begin(clock, shutdown);
}

fn certified_here(
    certificate: &Path,
    key: &Path,
    requests: &CertificateRequests,
    names: &[String],
    now: Timestamp,
) -> Result<Certificates, Failed> {
    let authority = Authority::load(certificate, key)?;
    Ok(authority.certify(requests, &NodeIdentity::Primary, names, certificate, now)?)
}

/// What is renewed at a node.
struct Renewal {
    files: Arc<Files>,
    certify: Certify,
}

struct Files {
    node: config::MutualTls,
    https: Option<config::Tls>,
}

/// Requests for what is due.
struct Due {
    node: CertificateRequest,
    https: Option<(CertificateRequest, Vec<String>)>,
}

impl Renewal {
    fn new(node: &config::MutualTls, https: Option<&config::Tls>, certify: Certify) -> Self {
        let https = https.filter(|tls| tls.renew).cloned();
        Self { files: Arc::new(Files { node: node.clone(), https }), certify }
    }

    fn begin(self, clock: &SharedClock, shutdown: &Shutdown) {
        if !self.files.node.renew && self.files.https.is_none() {
            return;
        }
        let (clock, stop) = (Arc::clone(clock), shutdown.clone());
        shutdown.spawn(async move {
            let mut retry = RETRY_MIN;
            loop {
                let wait = match self.renew(clock.now()).await {
                    Ok(is_renewed) => {
                        if is_renewed {
                            tracing::info!("certificates renewed");
                        }
                        retry = RETRY_MIN;
                        LOOK_INTERVAL
                    }
                    Err(error) => {
                        tracing::warn!(%error, "certificates are due and not renewed");
                        let wait = retry;
                        retry = (wait * 2).min(RETRY_MAX);
                        wait
                    }
                };
                if !super::pause(&stop, wait).await {
                    return;
                }
            }
        });
    }

    /// Whether anything was due.
    async fn renew(&self, now: Timestamp) -> Result<bool, Failed> {
        let files = Arc::clone(&self.files);
        let Some(due) = blocking::spawn(move || files.due(now)).await?? else { return Ok(false) };
        let (https, names) =
            due.https.as_ref().map(|(request, names)| (request.der().to_vec(), names.clone())).unzip();
        let requests = CertificateRequests { node: due.node.der().to_vec(), https };
        let certificates = (self.certify)(requests, names.unwrap_or_default()).await?;
        let files = Arc::clone(&self.files);
        blocking::spawn(move || files.replace(&due, &certificates, now)).await??;
        Ok(true)
    }
}

impl Files {
    /// Those of which two thirds of their time are over; the node's own is renewed with the other.
    fn due(&self, now: Timestamp) -> Result<Option<Due>, Failed> {
        let is_due = |certificate: &Path| -> Result<bool, Failed> {
            let (begins, ends) = validity(&load_certificates(certificate)?)?;
            Ok(now >= begins.plus(ends.since(begins) / 3 * 2))
        };
        let https = match &self.https {
            Some(tls) if is_due(&tls.certificate)? => {
                let names = server_names(&load_certificates(&tls.certificate)?);
                Some((CertificateRequest::of_key(&tls.key)?, names))
            }
            _ => None,
        };
        if https.is_none() && !(self.node.renew && is_due(&self.node.certificate)?) {
            return Ok(None);
        }
        Ok(Some(Due { node: CertificateRequest::of_key(&self.node.key)?, https }))
    }

    /// Nothing is replaced by what would not be believed.
    fn replace(&self, due: &Due, certificates: &Certificates, now: Timestamp) -> Result<(), Failed> {
        if self.node.renew {
            let node = due.node.certified(&certificates.node)?;
            check(&node, &certificates.authorities, now)?;
            if ders(&load_certificates(&self.node.authority)?) != certificates.authorities {
                save_certificates(&self.node.authority, &certificates.authorities)?;
            }
            node.save_chain(&self.node.certificate)?;
        }
        if let (Some(tls), Some((request, _))) = (&self.https, &due.https) {
            let chain =
                certificates.https.as_ref().ok_or("the primary has no host names for this site's HTTPS")?;
            request.certified(chain)?.save_chain(&tls.certificate)?;
        }
        Ok(())
    }
}

/// Whether other nodes would believe a certificate.
///
/// # Errors
/// Why not.
pub(super) fn check(node: &Identity, authorities: &[Vec<u8>], now: Timestamp) -> Result<(), Failed> {
    let authorities: Vec<_> = authorities.iter().cloned().map(CertificateDer::from).collect();
    let at = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()));
    Ok(NodeTls::new(node, &authorities)?.replace(node, &authorities, at)?)
}

fn ders(certificates: &[CertificateDer<'_>]) -> Vec<Vec<u8>> {
    certificates.iter().map(|certificate| certificate.to_vec()).collect()
}
