//! Two ends of a real QUIC connection on loopback, for tests.

use std::{net::SocketAddr, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{RootCertStore, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::quic::{self, TransportOptions};

/// A certificate authority made for one test.
pub(crate) struct TestAuthority(CertifiedIssuer<'static, KeyPair>);

impl TestAuthority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn identity(&self, name: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }

    pub(crate) fn server(&self, name: &str) -> rustls::ServerConfig {
        let (chain, key) = self.identity(name);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots(), Arc::clone(&provider));
        rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap()
    }

    pub(crate) fn client(&self, name: &str) -> rustls::ClientConfig {
        let (chain, key) = self.identity(name);
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots())
            .with_client_auth_cert(chain, key)
            .unwrap()
    }
}

/// A listening endpoint named `primary`, and where it is.
pub(crate) fn listening(authority: &TestAuthority) -> (quinn::Endpoint, SocketAddr) {
    let config = quic::server_config(&authority.server("primary"), &TransportOptions::upstream()).unwrap();
    let endpoint = quic::listen("127.0.0.1:0".parse().unwrap(), config).unwrap();
    let address = endpoint.local_addr().unwrap();
    (endpoint, address)
}

/// A connection to it as `site`.
pub(crate) async fn connected(
    authority: &TestAuthority,
    address: SocketAddr,
    site: &str,
) -> Result<quinn::Connection, quinn::ConnectionError> {
    let config = quic::client_config(&authority.client(site), &TransportOptions::bulk()).unwrap();
    quic::dialer(&quic::Udp, address, &TransportOptions::bulk())
        .unwrap()
        .connect_with(config, address, "primary")
        .unwrap()
        .await
}
