//! The cluster's certificate authority: identities of nodes for mutual TLS, and server
//! certificates for registries that have none from elsewhere.
//!
//! A node's identity is one DNS name in its certificate: `primary.outport`, or
//! `<site>.site.outport` for a secondary. Neither exists in the public DNS, and the authority
//! never puts such a name into a server certificate, so the two kinds cannot stand in for each other.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use outport_proto::{
    SiteName, Timestamp,
    frame::{CertificateRequests, Certificates},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use x509_parser::extensions::GeneralName;

use super::{FileError, Secret, files, random};

/// The name a secondary expects in its primary's certificate.
pub const PRIMARY_NAME: &str = "primary.outport";
const SITE_SUFFIX: &str = ".site.outport";
const RESERVED_SUFFIX: &str = ".outport";

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The authority outlives every cluster it is made for.
const AUTHORITY_DAYS: u32 = 20 * 365;
/// For those that people issue and copy.
const NODE_DAYS: u32 = 3 * 365;
/// For those that are renewed without people.
const RENEWED_DAYS: u32 = 90;
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
        self.save_chain(certificate)
    }

    /// Writes the certificate alone, whose key is on disk already.
    pub fn save_chain(&self, certificate: &Path) -> Result<(), AuthorityError> {
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
const CERTIFICATE_OF_KEY: &str = "the certificate of the authority's key";
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

    /// Reads an authority from its PEM files. Of several certificates it is the one that is the key's: nodes
    /// believe an authority and the one that follows it from one file.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, AuthorityError> {
        Self::of_pem(read(certificate)?, read(key)?).map_err(|part| AuthorityError::Pem {
            path: if part == KEY { key } else { certificate }.to_owned(),
            expected: part,
        })
    }

    fn of_pem(certificate_pem: String, key_pem: String) -> Result<Self, &'static str> {
        let key = KeyPair::from_pem(&key_pem).map_err(|_| KEY)?;
        let mut identity = Identity::from_pem(certificate_pem, key_pem)?;
        identity.chain.retain(|certificate| public_key(certificate).as_deref() == Some(key.der_bytes()));
        let own = identity.chain.first().ok_or(CERTIFICATE_OF_KEY)?;
        let issuer = Issuer::from_ca_cert_der(own, key).map_err(|_| CERTIFICATE)?;
        Ok(Self { issuer, identity })
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
        check_server_names(names)?;
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
        let certificate = leaf(names, usages, now, days)?.signed_by(&key, &self.issuer)?;
        Identity::from_pem(certificate.pem(), key.serialize_pem()).map_err(|_| AuthorityError::Library)
    }

    /// The chain that makes the key of `request` ([`CertificateRequest`]) a node's, for a time after which it is
    /// to be asked for again.
    pub fn certify_node(
        &self,
        request: &[u8],
        node: &NodeIdentity,
        now: Timestamp,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(request, leaf(&[node.dns_name()], usages, now, RENEWED_DAYS)?)
    }

    /// The same for a server of these names, as [`Authority::issue_server`] takes them.
    pub fn certify_server(
        &self,
        request: &[u8],
        names: &[String],
        now: Timestamp,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        check_server_names(names)?;
        self.sign(request, leaf(names, vec![ExtendedKeyUsagePurpose::ServerAuth], now, RENEWED_DAYS)?)
    }

    /// All that `requests` ask for: the certificate of `node`, and that of its HTTPS if it has `names`; with the
    /// authorities of the file `believed`.
    pub fn certify(
        &self,
        requests: &CertificateRequests,
        node: &NodeIdentity,
        names: &[String],
        believed: &Path,
        now: Timestamp,
    ) -> Result<Certificates, AuthorityError> {
        let ders = |chain: Vec<CertificateDer<'static>>| chain.iter().map(|der| der.to_vec()).collect();
        let https = requests.https.as_ref().filter(|_| !names.is_empty());
        let https = https.map(|request| self.certify_server(request, names, now)).transpose()?;
        Ok(Certificates {
            node: ders(self.certify_node(&requests.node, node, now)?),
            https: https.map(ders),
            authorities: ders(load_certificates(believed)?),
        })
    }

    /// Its signature shows that whoever made the request has the key; nothing else in it counts.
    fn sign(
        &self,
        request: &[u8],
        leaf: CertificateParams,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let request = CertificateSigningRequestParams::from_der(&request.into())?;
        Ok(vec![leaf.signed_by(&request.public_key, &self.issuer)?.der().clone()])
    }
}

/// The public key that a request is about, without its algorithm.
///
/// # Errors
/// When it is no request, or was not signed with that key.
pub fn requested_key(request: &[u8]) -> Result<Vec<u8>, AuthorityError> {
    Ok(CertificateSigningRequestParams::from_der(&request.into())?.public_key.der_bytes().to_vec())
}

fn public_key(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(certificate.public_key().subject_public_key.data.to_vec())
}

/// The DNS names and addresses that the first certificate of a chain is for.
pub fn server_names(chain: &[CertificateDer<'_>]) -> Vec<String> {
    let Some((_, leaf)) = chain.first().and_then(|leaf| x509_parser::parse_x509_certificate(leaf).ok())
    else {
        return Vec::new();
    };
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|address| IpAddr::from(address).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|address| IpAddr::from(address).to_string()),
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}

/// All of a leaf but its key.
fn leaf(
    names: &[String],
    usages: Vec<ExtendedKeyUsagePurpose>,
    now: Timestamp,
    days: u32,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, names.first().map_or("", String::as_str));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages;
    params.use_authority_key_identifier_extension = true;
    // The library would make it from the key, which a renewed certificate shares with the one before.
    let mut serial = random::bytes::<16>().map_err(|_| AuthorityError::Library)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    set_validity(&mut params, now, days)?;
    Ok(params)
}

/// Names of servers that the cluster's authority may certify. Those under `outport` are nodes'.
///
/// # Errors
/// Which is not, or that there are none.
pub fn check_server_names(names: &[String]) -> Result<(), AuthorityError> {
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
    CertificateParams::new(names.to_vec())?;
    Ok(())
}

/// A node's private key, and what asks for its certificate (PKCS #10).
pub struct CertificateRequest {
    key_pem: Secret,
    request: Vec<u8>,
}

impl CertificateRequest {
    /// For the key in a PEM file, which is made, with mode 0600, if there is none.
    ///
    /// # Errors
    /// When it cannot be read or written, or holds something else.
    pub fn of_key(path: &Path) -> Result<Self, AuthorityError> {
        let key = match files::read_text(path)? {
            Some(pem) => KeyPair::from_pem(&pem)
                .map_err(|_| AuthorityError::Pem { path: path.to_owned(), expected: KEY })?,
            None => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                files::write_private(path, &key.serialize_pem())?;
                key
            }
        };
        let request = CertificateParams::default().serialize_request(&key)?.der().to_vec();
        Ok(Self { key_pem: key.serialize_pem().into(), request })
    }

    /// The request, DER.
    pub fn der(&self) -> &[u8] {
        &self.request
    }

    /// The key with the chain that it was given.
    ///
    /// # Errors
    /// When the chain is empty.
    pub fn certified(&self, chain: &[Vec<u8>]) -> Result<Identity, AuthorityError> {
        let pem = self.key_pem.expose().to_owned();
        Identity::from_pem(certificates_pem(chain), pem).map_err(|_| AuthorityError::Library)
    }
}

/// Certificates in DER as PEM.
fn certificates_pem(certificates: &[impl AsRef<[u8]>]) -> String {
    const LINE: usize = 64;
    let mut pem = String::new();
    for certificate in certificates {
        let text = STANDARD.encode(certificate);
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        for at in (0..text.len()).step_by(LINE) {
            pem.push_str(&text[at..text.len().min(at + LINE)]);
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

/// Writes certificates of authorities to trust as PEM.
///
/// # Errors
/// When the file cannot be written.
pub fn save_certificates(path: &Path, certificates: &[Vec<u8>]) -> Result<(), FileError> {
    files::write_public(path, &certificates_pem(certificates))
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
    fn a_key_made_elsewhere_is_certified_for_what_the_authority_says() {
        let authority = Authority::create("demo", NOW).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node.key");
        let request = CertificateRequest::of_key(&path).unwrap();
        let again = CertificateRequest::of_key(&path).unwrap();
        assert_eq!(requested_key(request.der()).unwrap(), requested_key(again.der()).unwrap());
        let mumbai = NodeIdentity::Site("mumbai".parse().unwrap());
        let chains = [(); 2].map(|()| authority.certify_node(request.der(), &mumbai, NOW).unwrap());
        assert_ne!(chains[0], chains[1], "another serial number each time");
        assert_eq!(identity_of(&chains[0][0]), Some(mumbai.clone()));
        let ders: Vec<_> = chains[0].iter().map(|der| der.to_vec()).collect();
        let identity = request.certified(&ders).unwrap();
        let certificate = directory.path().join("node.crt");
        identity.save_chain(&certificate).unwrap();
        assert_eq!(Identity::load(&certificate, &path).unwrap().chain, chains[0]);
        let mut foreign = request.der().to_vec();
        *foreign.last_mut().unwrap() ^= 1;
        assert!(authority.certify_node(&foreign, &mumbai, NOW).is_err(), "not signed with its key");
        let name = |name: &str| [name.to_owned()];
        assert!(authority.certify_server(request.der(), &name("primary.outport"), NOW).is_err());
        let server = authority.certify_server(request.der(), &name("edge.example.com"), NOW).unwrap();
        assert_eq!(identity_of(&server[0]), None);
        assert_eq!(server_names(&server), ["edge.example.com"]);
        let names = ["edge.example.com", "127.0.0.1", "::1"].map(str::to_owned);
        let server = authority.certify_server(request.der(), &names, NOW).unwrap();
        assert_eq!(server_names(&server), names);
    }

    #[test]
    fn an_authority_is_found_among_those_that_nodes_believe() {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = (directory.path().join("ca.pem"), directory.path().join("ca-key.pem"));
        let [old, new] = ["old", "new"].map(|name| Authority::create(name, NOW).unwrap());
        new.save(&certificate, &key).unwrap();
        let both = [old.certificate().to_vec(), new.certificate().to_vec()];
        save_certificates(&certificate, &both).unwrap();
        assert_eq!(load_certificates(&certificate).unwrap(), both.map(CertificateDer::from));
        let loaded = Authority::load(&certificate, &key).unwrap();
        assert_eq!(loaded.certificate(), new.certificate());
        save_certificates(&certificate, &[old.certificate().to_vec()]).unwrap();
        let error = Authority::load(&certificate, &key).unwrap_err().to_string();
        assert!(error.contains("the certificate of the authority's key"), "{error}");
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
