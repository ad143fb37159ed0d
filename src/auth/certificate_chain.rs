//! The chain of certificates in a token's header (`x5c`, RFC 7515 section 4.1.6): believed as far as it
//! leads to a certificate that is configured.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use outport_proto::Timestamp;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::public_key::PublicKey;

/// Certificates in one chain at most.
const CHAIN_MAX: usize = 8;

/// Certificates that chains may lead to.
#[derive(Debug, Default)]
pub(super) struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

impl Roots {
    /// Trusts these certificates (DER); `None` when one of them is none.
    pub(super) fn new(certificates: impl IntoIterator<Item = Vec<u8>>) -> Option<Self> {
        let mut roots = Self::default();
        for certificate in certificates {
            let certificate = CertificateDer::from(certificate);
            roots.anchors.push(anchor_from_trusted_cert(&certificate).ok()?.to_owned());
            roots.certificates.push(certificate);
        }
        Some(roots)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.certificates.is_empty()
    }

    /// The key of the first certificate of `chain`, if that is one of these, or the rest of the chain leads
    /// from it to one, all valid at `now`.
    pub(super) fn key_of(&self, chain: &[String], now: Timestamp) -> Option<PublicKey> {
        if chain.len() > CHAIN_MAX {
            return None;
        }
        let der = |text: &String| STANDARD.decode(text).ok().map(CertificateDer::from);
        let chain: Vec<_> = chain.iter().map(der).collect::<Option<_>>()?;
        let (leaf, intermediates) = chain.split_first()?;
        // Self-signed ones are often marked as authorities and then no end of a chain. Its key is known by
        // its names anyhow, without a look at the certificate's dates.
        if !self.certificates.contains(leaf) && !self.lead_to(leaf, intermediates, now) {
            return None;
        }
        PublicKey::of_certificate(leaf)
    }

    fn lead_to(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: Timestamp,
    ) -> bool {
        let Ok(leaf) = EndEntityCert::try_from(leaf) else { return false };
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()));
        // There is no extended usage for signing tokens: whatever a certificate is for is good.
        [KeyUsage::server_auth(), KeyUsage::client_auth()].into_iter().any(|usage| {
            let (algorithms, anchors) = (ALL_VERIFICATION_ALGS, &self.anchors);
            leaf.verify_for_usage(algorithms, anchors, intermediates, time, usage, None, None).is_ok()
        })
    }
}
