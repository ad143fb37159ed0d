//! TLS as Outport uses it: aws-lc-rs everywhere, mutual authentication between nodes.
//!
//! Between nodes: TLS 1.3 only, both sides with certificates of the cluster's authority. Early
//! data is off because it can be replayed, resumption is off because it would skip the check of
//! the certificate's dates. Whether a site may connect at all is the publisher's to say, from
//! [`super::authority::site_of`] of the peer's certificate.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::CryptoProvider};
use rustls_pki_types::CertificateDer;

use super::{authority::Identity, node_tls::NodeTls};

/// The cryptography all TLS here runs on, given explicitly: no process-wide default is needed.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The accepting side of a connection between nodes, for good: [`NodeTls`] for one that can be replaced.
pub fn node_server(
    identity: &Identity,
    authorities: &[CertificateDer<'static>],
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    NodeTls::new(identity, authorities)?.server(alpn)
}

/// The connecting side. The server name to connect with is [`super::authority::PRIMARY_NAME`].
pub fn node_client(
    identity: &Identity,
    authorities: &[CertificateDer<'static>],
    alpn: &[&[u8]],
) -> Result<ClientConfig, TlsError> {
    NodeTls::new(identity, authorities)?.client(alpn)
}

/// A registry's or token endpoint's HTTPS: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1, no client certificates.
pub fn https_server(identity: &Identity) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// An HTTPS client that trusts these authorities alone. ALPN is the connector's to set.
pub fn https_client(authorities: &[CertificateDer<'static>]) -> Result<ClientConfig, TlsError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(authorities)?)
        .with_no_client_auth())
}

/// [`https_client`] that shows a certificate.
pub fn https_client_as(
    identity: &Identity,
    authorities: &[CertificateDer<'static>],
) -> Result<ClientConfig, TlsError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(authorities)?)
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?)
}

pub(super) fn roots(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(|_| TlsError::Authority)?;
    }
    Ok(roots)
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No usable authority certificate.
    #[error("the authority's certificate cannot be trusted")]
    Authority,
    /// It would make another node of this one.
    #[error("it is not this node's certificate")]
    Another,
    /// The library refused, for instance a key that does not fit its certificate.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

#[cfg(test)]
mod tests {
    use std::io;

    use outport_proto::{Timestamp, frame::ALPN};
    use rustls::{ClientConnection, ServerConnection};
    use rustls_pki_types::ServerName;

    use super::*;
    use crate::{
        auth::authority::{Authority, NodeIdentity, PRIMARY_NAME, site_of},
        auth::join_tls::{fingerprint, join_client, join_server},
        clock::{Clock as _, SystemClock},
    };

    fn now() -> Timestamp {
        SystemClock.now()
    }

    fn authority() -> Authority {
        Authority::create("demo", now()).unwrap()
    }

    fn site() -> NodeIdentity {
        NodeIdentity::Site("mumbai".parse().unwrap())
    }

    /// Runs a handshake in memory.
    fn handshake(
        client: ClientConfig,
        server: ServerConfig,
        name: &'static str,
    ) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
        let name = ServerName::try_from(name).unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name)?;
        let mut server = ServerConnection::new(Arc::new(server))?;
        let broken = |error: io::Error| rustls::Error::General(error.to_string());
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).map_err(broken)?;
            }
            let mut rest = &wire[..];
            while !rest.is_empty() {
                server.read_tls(&mut rest).map_err(broken)?;
                server.process_new_packets()?;
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).map_err(broken)?;
            }
            let mut rest = &wire[..];
            while !rest.is_empty() {
                client.read_tls(&mut rest).map_err(broken)?;
                client.process_new_packets()?;
            }
        }
        Ok((client, server))
    }

    fn roots_of(authority: &Authority) -> [CertificateDer<'static>; 1] {
        [authority.certificate().clone()]
    }

    #[test]
    fn nodes_of_one_cluster_meet_and_know_each_other() {
        let authority = authority();
        let primary = authority.issue_node(&NodeIdentity::Primary, now()).unwrap();
        let secondary = authority.issue_node(&site(), now()).unwrap();
        let server = node_server(&primary, &roots_of(&authority), &[ALPN]).unwrap();
        let client = node_client(&secondary, &roots_of(&authority), &[ALPN]).unwrap();
        let (client, server) = handshake(client, server, PRIMARY_NAME).unwrap();
        assert_eq!(server.alpn_protocol(), Some(ALPN));
        assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(site_of(&server.peer_certificates().unwrap()[0]), "mumbai".parse().ok());
    }

    #[test]
    fn strangers_and_impostors_are_refused() {
        let (ours, theirs) = (authority(), authority());
        let primary = ours.issue_node(&NodeIdentity::Primary, now()).unwrap();
        let secondary = ours.issue_node(&site(), now()).unwrap();
        let old = Timestamp::from_secs(now().as_secs() - 5 * 365 * 24 * 3600);
        let expired = ours.issue_node(&site(), old).unwrap();
        let foreign = theirs.issue_node(&site(), now()).unwrap();
        let web = ours.issue_server(&["registry.example.com".to_owned()], now()).unwrap();
        let trust = roots_of(&ours);
        for (what, client, server) in [
            ("a client of another cluster", &foreign, &primary),
            ("an expired client", &expired, &primary),
            ("a server certificate as client", &web, &primary),
            ("a secondary as primary", &secondary, &secondary),
            ("a web server as primary", &secondary, &web),
            ("a primary of another cluster", &secondary, &foreign),
        ] {
            let server = node_server(server, &trust, &[ALPN]).unwrap();
            let client = node_client(client, &trust, &[ALPN]).unwrap();
            assert!(handshake(client, server, PRIMARY_NAME).is_err(), "{what}");
        }
        let server = node_server(&primary, &trust, &[ALPN]).unwrap();
        let nobody = https_client(&trust).unwrap();
        assert!(handshake(nobody, server, PRIMARY_NAME).is_err(), "no client certificate");
        let server = node_server(&primary, &trust, &[ALPN]).unwrap();
        let client = node_client(&secondary, &trust, &[b"outport/0"]).unwrap();
        assert!(handshake(client, server, PRIMARY_NAME).is_err(), "another protocol");
        assert!(node_server(&primary, &[], &[ALPN]).is_err());
    }

    #[test]
    fn a_machine_that_joins_knows_the_authority_by_its_fingerprint_alone() {
        let (ours, theirs) = (authority(), authority());
        let identity = ours.issue_node(&NodeIdentity::Primary, now()).unwrap();
        let node = NodeTls::new(&identity, &roots_of(&ours)).unwrap();
        let pinned = |authority: &Authority| join_client(fingerprint(authority.certificate())).unwrap();
        let server = || join_server(&node).unwrap();
        let (_, server_side) = handshake(pinned(&ours), server(), PRIMARY_NAME).unwrap();
        assert!(server_side.peer_certificates().is_none());
        let error = handshake(pinned(&theirs), server(), PRIMARY_NAME).unwrap_err().to_string();
        assert!(error.contains("another cluster"), "{error}");
        // Somebody else cannot show the authority's certificate behind one of their own.
        let other = theirs.issue_node(&NodeIdentity::Primary, now()).unwrap();
        let other = NodeTls::new(&other, &roots_of(&ours)).unwrap();
        let liar = join_server(&other).unwrap();
        assert!(handshake(pinned(&ours), liar, PRIMARY_NAME).is_err());
        // Nor can a site of the cluster stand in for its primary.
        let node = NodeTls::new(&ours.issue_node(&site(), now()).unwrap(), &roots_of(&ours)).unwrap();
        let impostor = join_server(&node).unwrap();
        assert!(handshake(pinned(&ours), impostor, PRIMARY_NAME).is_err());
    }

    #[test]
    fn quinn_takes_the_node_configurations() {
        let authority = authority();
        let node = authority.issue_node(&site(), now()).unwrap();
        let server = node_server(&node, &roots_of(&authority), &[ALPN]).unwrap();
        let client = node_client(&node, &roots_of(&authority), &[ALPN]).unwrap();
        assert!(quinn::crypto::rustls::QuicServerConfig::try_from(server).is_ok());
        assert!(quinn::crypto::rustls::QuicClientConfig::try_from(client).is_ok());
    }

    #[test]
    fn a_server_certificate_serves_its_names_over_https() {
        let authority = authority();
        let web = authority.issue_server(&["localhost".to_owned(), "127.0.0.1".to_owned()], now()).unwrap();
        for (name, good) in [("localhost", true), ("127.0.0.1", true), ("example.com", false)] {
            let client = https_client(&roots_of(&authority)).unwrap();
            assert_eq!(handshake(client, https_server(&web).unwrap(), name).is_ok(), good, "{name}");
        }
    }
}
