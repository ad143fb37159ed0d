//! TLS of a machine that is no node yet: it knows the cluster's authority by a fingerprint, and shows nothing.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::{
    ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{
    node_tls::NodeTls,
    tls::{TlsError, provider, roots},
};

/// By which a machine that joins knows the authority: SHA-256 of its certificate.
pub fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest(&SHA256, certificate).as_ref());
    fingerprint
}

/// The primary's side: what `node` shows to other nodes, and behind it the authorities' own certificates, which a
/// machine that joins does not have.
///
/// # Errors
/// None that this cryptography has.
pub fn join_server(node: &Arc<NodeTls>) -> Result<ServerConfig, TlsError> {
    // What QUIC makes of it says that nothing is resumed, and for which protocol it is.
    Ok(ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(WithAuthorities(Arc::clone(node)))))
}

/// The machine's side: it believes the authority with this fingerprint, whose certificate it is shown.
///
/// # Errors
/// None that this cryptography has.
pub fn join_client(authority: [u8; 32]) -> Result<ClientConfig, TlsError> {
    // "Dangerous" is what verifies other than the library: this hands on to the library's own.
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(authority)))
        .with_no_client_auth())
}

#[derive(Debug)]
struct WithAuthorities(Arc<NodeTls>);

impl ResolvesServerCert for WithAuthorities {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.0.shown();
        let chain = shown.cert.iter().cloned().chain(self.0.authorities()).collect();
        Some(Arc::new(CertifiedKey { cert: chain, key: Arc::clone(&shown.key), ocsp: None }))
    }
}

/// Believes what the authority with this fingerprint certified.
#[derive(Debug)]
struct Pinned([u8; 32]);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is_other = || rustls::Error::General("it is of another cluster than the join token".to_owned());
        let authority = chain.iter().find(|certificate| fingerprint(certificate) == self.0);
        let authority = authority.ok_or_else(is_other)?.clone().into_owned();
        let roots = roots(&[authority]).map_err(|error| rustls::Error::General(error.to_string()))?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(leaf, chain, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
