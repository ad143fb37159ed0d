//! The cluster's certificate authority: identities of nodes for mutual TLS, and server
//! certificates for registries that have none from elsewhere.
//!
//! A node's identity is one DNS name in its certificate: `primary.outport`, or
//! `<site>.site.outport` for a secondary. Neither exists in the public DNS, and the authority
//! never puts such a name into a server certificate, so the two kinds cannot stand in for each other.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use outport_proto::{SiteName, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use super::{FileError, Secret, files};

/// The name a secondary expects in its primary's certificate.
pub const PRIMARY_NAME: &str = "primary.outport";
const SITE_SUFFIX: &str = ".site.outport";
const RESERVED_SUFFIX: &str = ".outport";

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The authority outlives every cluster it is made for.
const AUTHORITY_DAYS: u32 = 20 * 365;
const NODE_DAYS: u32 = 3 * 365;
/// The longest that all common clients accept for servers.
const SERVER_DAYS: u32 = 397;
/// Certificates are valid from a little before they are made: clocks differ.
const BACKDATED: Duration = Duration::from_secs(3600);

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeIdentity {
    /// The primary.
    Primary,
    /// A node of a secondary site.
    Site(SiteName),
}

impl NodeIdentity {
    /// The DNS name that stands for it.
    pub fn dns_name(&self) -> String {
        match self {
            Self::Primary => PRIMARY_NAME.to_owned(),
            Self::Site(site) => format!("{site}{SITE_SUFFIX}"),
        }
    }

    fn of_dns_name(name: &str) -> Option<Self> {
        if name == PRIMARY_NAME {
            return Some(Self::Primary);
        }
        name.strip_suffix(SITE_SUFFIX)?.parse().ok().map(Self::Site)
    }
}

/// Who presented this certificate, which TLS must have verified already. `None` unless it carries
/// exactly one DNS name and that is a node's.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Option<NodeIdentity> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut names = certificate.valid_dns_names();
    match (names.next(), names.next()) {
        (Some(name), None) => NodeIdentity::of_dns_name(name),
        _ => None,
    }
}

/// The site a verified peer certificate is of; `None` for anything but a secondary's.
pub fn site_of(certificate: &CertificateDer<'_>) -> Option<SiteName> {
    match identity_of(certificate)? {
        NodeIdentity::Site(site) => Some(site),
        NodeIdentity::Primary => None,
    }
}

/// A certificate chain and its private key.
pub struct Identity {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
    chain_pem: String,
    key_pem: Secret,
}

impl Identity {
    /// Reads a chain and a key from PEM files.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, AuthorityError> {
        Self::from_pem(read(certificate)?, read(key)?).map_err(|part| AuthorityError::Pem {
            path: if part == KEY { key } else { certificate }.to_owned(),
            expected: part,
        })
    }

    /// Writes both as PEM, the key with mode 0600.
    pub fn save(&self, certificate: &Path, key: &Path) -> Result<(), AuthorityError> {
        files::write_private(key, self.key_pem.expose())?;
        Ok(files::write_public(certificate, &self.chain_pem)?)
    }

    fn from_pem(chain_pem: String, key_pem: String) -> Result<Self, &'static str> {
        let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .ok()
            .filter(|chain| !chain.is_empty())
            .ok_or(CERTIFICATE)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| KEY)?;
        Ok(Self { chain, key, chain_pem, key_pem: key_pem.into() })
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            chain_pem: self.chain_pem.clone(),
            key_pem: self.key_pem.clone(),
        }
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("certificates", &self.chain.len()).finish_non_exhaustive()
    }
}

const CERTIFICATE: &str = "a certificate";
const KEY: &str = "a private key";

/// Reads the certificates of authorities to trust from a PEM file.
pub fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let certificates = CertificateDer::pem_slice_iter(read(path)?.as_bytes()).collect::<Result<Vec<_>, _>>();
    certificates
        .ok()
        .filter(|certificates| !certificates.is_empty())
        .ok_or_else(|| AuthorityError::Pem { path: path.to_owned(), expected: CERTIFICATE })
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    files::read_text(path)?.ok_or_else(|| AuthorityError::Missing { path: path.to_owned() })
}

/// A certificate authority with its private key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    identity: Identity,
}

impl Authority {
    /// A new authority, named after its cluster.
    pub fn create(cluster: &str, now: Timestamp) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("Outport {cluster} authority"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, now, AUTHORITY_DAYS)?;
        let certificate = params.self_signed(&key)?;
        Self::of_pem(certificate.pem(), key.serialize_pem()).map_err(|_| AuthorityError::Library)
    }

    /// Reads an authority from its PEM files.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, AuthorityError> {
        Self::of_pem(read(certificate)?, read(key)?).map_err(|part| AuthorityError::Pem {
            path: if part == KEY { key } else { certificate }.to_owned(),
            expected: part,
        })
    }

    fn of_pem(certificate_pem: String, key_pem: String) -> Result<Self, &'static str> {
        let key = KeyPair::from_pem(&key_pem).map_err(|_| KEY)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(|_| CERTIFICATE)?;
        Ok(Self { issuer, identity: Identity::from_pem(certificate_pem, key_pem)? })
    }

    /// Writes both as PEM, the key with mode 0600.
    pub fn save(&self, certificate: &Path, key: &Path) -> Result<(), AuthorityError> {
        self.identity.save(certificate, key)
    }

    /// The authority's certificate: what its nodes and clients trust.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.identity.chain[0]
    }

    /// The same as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.identity.chain_pem
    }

    /// A node's identity for mutual TLS.
    pub fn issue_node(&self, node: &NodeIdentity, now: Timestamp) -> Result<Identity, AuthorityError> {
        let usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(&[node.dns_name()], usages, now, NODE_DAYS)
    }

    /// A server certificate for host names and IP addresses. Names under `outport` are nodes' and
    /// refused here.
    pub fn issue_server(&self, names: &[String], now: Timestamp) -> Result<Identity, AuthorityError> {
        let reserved = |name: &&String| {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            name == RESERVED_SUFFIX[1..] || name.ends_with(RESERVED_SUFFIX)
        };
        if let Some(name) = names.iter().find(reserved) {
            return Err(AuthorityError::Reserved(name.clone()));
        }
        if names.is_empty() {
            return Err(AuthorityError::NoName);
        }
        self.issue(names, vec![ExtendedKeyUsagePurpose::ServerAuth], now, SERVER_DAYS)
    }

    fn issue(
        &self,
        names: &[String],
        usages: Vec<ExtendedKeyUsagePurpose>,
        now: Timestamp,
        days: u32,
    ) -> Result<Identity, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, names[0].as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, days)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Identity::from_pem(certificate.pem(), key.serialize_pem()).map_err(|_| AuthorityError::Library)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority(..)")
    }
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, days: u32) -> Result<(), AuthorityError> {
    let now = i64::try_from(now.as_secs())
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(AuthorityError::Library)?;
    params.not_before = now - BACKDATED;
    params.not_after = now + DAY * days;
    Ok(())
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is not there.
    #[error("{}: no such file", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// A file holds something else.
    #[error("{}: does not hold {expected} in PEM", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// A server name that only nodes may have.
    #[error("{0} is reserved for nodes of the cluster")]
    Reserved(String),
    /// A server certificate for nobody.
    #[error("a server certificate needs at least one name")]
    NoName,
    /// The library refused, for instance a name that is no host name.
    #[error("a certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The library contradicts itself.
    #[error("a certificate that was just made cannot be read")]
    Library,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    #[test]
    fn a_node_certificate_names_its_site_and_nothing_else_does() {
        let authority = Authority::create("demo", NOW).unwrap();
        let mumbai: SiteName = "mumbai".parse().unwrap();
        let node = authority.issue_node(&NodeIdentity::Site(mumbai.clone()), NOW).unwrap();
        assert_eq!(site_of(&node.chain[0]), Some(mumbai));
        let primary = authority.issue_node(&NodeIdentity::Primary, NOW).unwrap();
        assert_eq!(site_of(&primary.chain[0]), None);
        assert_eq!(identity_of(&primary.chain[0]), Some(NodeIdentity::Primary));
        let names = ["registry.example.com".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let server = authority.issue_server(&names, NOW).unwrap();
        assert_eq!(identity_of(&server.chain[0]), None);
        assert_eq!(identity_of(authority.certificate()), None);
        assert_eq!(identity_of(&CertificateDer::from(vec![1, 2, 3])), None);
        let two = ["a.site.outport".to_owned(), "b.site.outport".to_owned()];
        let two = authority.issue(&two, vec![], NOW, 1).unwrap();
        assert_eq!(identity_of(&two.chain[0]), None);
        for name in ["x.y.site.outport", ".site.outport", "site.outport", "mumbai.site.outport.example.com"] {
            assert_eq!(NodeIdentity::of_dns_name(name), None, "{name}");
        }
    }

    #[test]
    fn server_certificates_cannot_name_nodes() {
        let authority = Authority::create("demo", NOW).unwrap();
        for name in ["primary.outport", "mumbai.site.outport", "MUMBAI.SITE.OUTPORT.", "outport", "*.outport"]
        {
            let answer = authority.issue_server(&[name.to_owned()], NOW);
            assert!(matches!(answer, Err(AuthorityError::Reserved(_))), "{name}");
        }
        assert!(matches!(authority.issue_server(&[], NOW), Err(AuthorityError::NoName)));
        assert!(authority.issue_server(&["ä".to_owned()], NOW).is_err());
    }

    #[test]
    fn an_authority_survives_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = (directory.path().join("ca.pem"), directory.path().join("ca-key.pem"));
        let missing = Authority::load(&certificate, &key).unwrap_err().to_string();
        assert!(missing.ends_with("ca.pem: no such file"), "{missing}");
        Authority::create("demo", NOW).unwrap().save(&certificate, &key).unwrap();
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        let authority = Authority::load(&certificate, &key).unwrap();
        assert_eq!(load_certificates(&certificate).unwrap(), [authority.certificate().clone()]);
        authority.issue_node(&NodeIdentity::Primary, NOW).unwrap();
        let swapped = Authority::load(&key, &certificate).unwrap_err().to_string();
        assert!(swapped.contains("does not hold"), "{swapped}");
        assert!(
            Identity::load(&certificate, &certificate).unwrap_err().to_string().contains("a private key")
        );
        assert!(load_certificates(&key).is_err());
    }
}
