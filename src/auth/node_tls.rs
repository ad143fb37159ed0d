//! Mutual TLS between nodes whose certificate and authorities can be replaced while connections are open.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{
    authority::{Identity, NodeIdentity, PRIMARY_NAME, identity_of},
    tls::{TlsError, provider, roots},
};

/// Who this node is to others, and whom it believes. What is [replaced](Self::replace) holds for the next
/// handshake; connections that are open go on.
pub struct NodeTls {
    shown: ArcSwap<CertifiedKey>,
    trust: ArcSwap<Trust>,
}

struct Trust {
    authorities: Vec<CertificateDer<'static>>,
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
}

impl NodeTls {
    /// Shows `identity`, and believes what one of `authorities` signed.
    ///
    /// # Errors
    /// When the key is not the certificate's, or an authority's certificate cannot be used.
    pub fn new(identity: &Identity, authorities: &[CertificateDer<'static>]) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self {
            shown: ArcSwap::from_pointee(certified(identity)?),
            trust: ArcSwap::from_pointee(Trust::new(authorities)?),
        }))
    }

    /// Does so from now on, if others would believe it: they are of the same cluster.
    ///
    /// # Errors
    /// As [`Self::new`]; [`TlsError::Another`] when it is another node's certificate, [`TlsError::Setup`] when
    /// it has ended, has not begun or no authority signed it. Nothing has changed then.
    pub fn replace(
        &self,
        identity: &Identity,
        authorities: &[CertificateDer<'static>],
        now: UnixTime,
    ) -> Result<(), TlsError> {
        let (shown, trust) = (certified(identity)?, Trust::new(authorities)?);
        let (leaf, chain) = identity.chain.split_first().ok_or(TlsError::Another)?;
        let of = |shown: &CertifiedKey| shown.end_entity_cert().ok().and_then(|leaf| identity_of(leaf));
        let node = identity_of(leaf).filter(|node| of(&self.shown.load()).as_ref() == Some(node));
        match node.ok_or(TlsError::Another)? {
            // It connects to nobody: a certificate for servers alone will do.
            NodeIdentity::Primary => {
                let name = ServerName::try_from(PRIMARY_NAME).map_err(|_| TlsError::Another)?;
                trust.servers.verify_server_cert(leaf, chain, &name, &[], now)?;
            }
            NodeIdentity::Site(_) => _ = trust.clients.verify_client_cert(leaf, chain, now)?,
        }
        self.shown.store(Arc::new(shown));
        self.trust.store(Arc::new(trust));
        Ok(())
    }

    /// Who is believed now.
    pub(super) fn authorities(&self) -> Vec<CertificateDer<'static>> {
        self.trust.load().authorities.clone()
    }

    /// What is shown now.
    pub(super) fn shown(&self) -> Arc<CertifiedKey> {
        self.shown.load_full()
    }

    /// The accepting side of a connection.
    ///
    /// # Errors
    /// None that this cryptography has.
    pub fn server(self: &Arc<Self>, alpn: &[&[u8]]) -> Result<ServerConfig, TlsError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::clone(self) as Arc<dyn ClientCertVerifier>)
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.max_early_data_size = 0;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(config)
    }

    /// The connecting side.
    ///
    /// # Errors
    /// None that this cryptography has.
    pub fn client(self: &Arc<Self>, alpn: &[&[u8]]) -> Result<ClientConfig, TlsError> {
        // "Dangerous" is what verifies other than the library: this hands on to the library's own.
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(self) as Arc<dyn ServerCertVerifier>)
            .with_client_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesClientCert>);
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.enable_early_data = false;
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

impl Trust {
    fn new(authorities: &[CertificateDer<'static>]) -> Result<Self, TlsError> {
        let roots: Arc<RootCertStore> = Arc::new(roots(authorities)?);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider()).build();
        let servers = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
        Ok(Self {
            authorities: authorities.to_vec(),
            clients: clients.map_err(|_| TlsError::Authority)?,
            servers: servers.map_err(|_| TlsError::Authority)?,
        })
    }
}

fn certified(identity: &Identity) -> Result<CertifiedKey, TlsError> {
    Ok(CertifiedKey::from_der(identity.chain.clone(), identity.key.clone_key(), &provider())?)
}

impl fmt::Debug for NodeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeTls").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for NodeTls {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown.load_full())
    }
}

impl ResolvesClientCert for NodeTls {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.shown.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for NodeTls {
    /// Nobody chooses among certificates by them.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.trust.load().clients.verify_client_cert(leaf, chain, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.trust.load().clients.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.trust.load().clients.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.load().clients.supported_verify_schemes()
    }
}

impl ServerCertVerifier for NodeTls {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.trust.load().servers.verify_server_cert(leaf, chain, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.trust.load().servers.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.trust.load().servers.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.load().servers.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outport_proto::Timestamp;

    use super::*;
    use crate::auth::authority::Authority;

    #[test]
    fn a_certificate_that_nobody_would_believe_is_not_taken() {
        let now = Timestamp::from_secs(1_800_000_000);
        let at = |secs: u64| UnixTime::since_unix_epoch(Duration::from_secs(secs));
        let [ours, theirs] = ["ours", "theirs"].map(|name| Authority::create(name, now).unwrap());
        let site = |name: &str| NodeIdentity::Site(name.parse().unwrap());
        let trust =
            |of: &[&Authority]| -> Vec<_> { of.iter().map(|one| one.certificate().clone()).collect() };
        let first = ours.issue_node(&site("mumbai"), now).unwrap();
        let tls = NodeTls::new(&first, &trust(&[&ours])).unwrap();
        let shown = || tls.shown().cert[0].clone();
        let next = ours.issue_node(&site("mumbai"), now).unwrap();
        let mut mixed = next.clone();
        mixed.key = first.key.clone_key();
        let other = ours.issue_node(&site("goa"), now).unwrap();
        let foreign = theirs.issue_node(&site("mumbai"), now).unwrap();
        for (what, identity, when) in [
            ("another's key", &mixed, 1_800_000_000),
            ("another site's", &other, 1_800_000_000),
            ("another cluster's", &foreign, 1_800_000_000),
            ("one that ended", &next, 1_900_000_000),
            ("one to come", &next, 1_700_000_000),
        ] {
            assert!(tls.replace(identity, &trust(&[&ours]), at(when)).is_err(), "{what}");
            assert_eq!(shown(), first.chain[0], "{what}");
        }
        assert!(tls.replace(&next, &[], at(1_800_000_000)).is_err(), "nobody to believe");
        tls.replace(&next, &trust(&[&ours]), at(1_800_000_000)).unwrap();
        assert_eq!(shown(), next.chain[0]);
        // An authority is followed by another while both are believed.
        tls.replace(&foreign, &trust(&[&ours, &theirs]), at(1_800_000_000)).unwrap();

        let [first, next] = [(); 2].map(|()| ours.issue_node(&NodeIdentity::Primary, now).unwrap());
        let primary = NodeTls::new(&first, &trust(&[&ours])).unwrap();
        assert!(primary.replace(&other, &trust(&[&ours]), at(1_800_000_000)).is_err());
        assert!(primary.replace(&next, &trust(&[&ours]), at(1_900_000_000)).is_err());
        primary.replace(&next, &trust(&[&ours]), at(1_800_000_000)).unwrap();
    }
}
