//! When a node's certificates end, for whoever watches it.

use std::{path::Path, sync::atomic::AtomicU64};

use prometheus_client::metrics::{family::Family, gauge::Gauge};
use x509_parser::parse_x509_certificate;

use super::StartError;
use crate::{auth::authority::load_certificates, config, telemetry::Metrics};

type Labels = [(&'static str, &'static str); 1];

/// Registers `outport_certificate_expiry_timestamp_seconds{certificate}`: of what the node shows to other
/// nodes and, when it has one, to clients.
pub(super) fn register(
    metrics: &Metrics,
    replication: &Path,
    https: Option<&config::Tls>,
) -> Result<(), StartError> {
    let ends = Family::<Labels, Gauge<f64, AtomicU64>>::default();
    let files = [("replication", Some(replication)), ("https", https.map(|tls| tls.certificate.as_path()))];
    for (name, file) in files {
        let Some(file) = file else { continue };
        let failed = |reason: String| StartError::new(format!("read {}", file.display()), reason);
        let chain = load_certificates(file).map_err(|error| failed(error.to_string()))?;
        // The leaf comes first, and whatever of the chain ends first ends it.
        let ends_at = chain.iter().map(|certificate| {
            let (_, certificate) =
                parse_x509_certificate(certificate).map_err(|error| failed(error.to_string()))?;
            Ok::<_, StartError>(certificate.validity().not_after.timestamp())
        });
        let first = ends_at.collect::<Result<Vec<_>, _>>()?.into_iter().min();
        if let Some(first) = first {
            ends.get_or_create(&[("certificate", name)]).set(first as f64);
        }
    }
    let help = "When the certificate that was read at the start ends, in seconds since the Unix epoch";
    metrics.register(|registry| registry.register("certificate_expiry_timestamp_seconds", help, ends));
    Ok(())
}
