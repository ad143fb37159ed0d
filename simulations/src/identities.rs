//! Certificates of the primary and the sites: Ed25519, so that every handshake has the same length.

use std::{fs, path::Path, sync::OnceLock};

use anyhow::Context as _;
use outport::auth::authority::{Identity, NodeIdentity};
use outport_proto::SiteName;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, PKCS_ED25519, SerialNumber,
};
use rustls_pki_types::CertificateDer;

/// Sites a world can have.
pub(crate) const SITES_MAX: usize = 8;

/// Who is who. Made once: a world's history does not depend on keys.
pub(crate) struct Identities {
    pub(crate) authority: CertificateDer<'static>,
    pub(crate) primary: Identity,
    pub(crate) sites: Vec<Identity>,
}

/// What site number `number` is called.
pub(crate) fn site_name(number: usize) -> anyhow::Result<SiteName> {
    format!("site-{number}").parse().context("name a site")
}

/// The identities of this program.
pub(crate) fn identities() -> anyhow::Result<&'static Identities> {
    static MADE: OnceLock<Result<Identities, String>> = OnceLock::new();
    MADE.get_or_init(|| make().map_err(|error| format!("{error:#}"))).as_ref().map_err(anyhow::Error::msg)
}

fn make() -> anyhow::Result<Identities> {
    let dir = tempfile::tempdir().context("make a directory for keys")?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.serial_number = Some(SerialNumber::from(vec![1]));
    let key = KeyPair::generate_for(&PKCS_ED25519).context("make the authority's key")?;
    let authority = CertifiedIssuer::self_signed(params, key).context("make the authority")?;
    let issue = |identity: NodeIdentity| issue(&authority, &identity, dir.path());
    let sites = (0..SITES_MAX).map(|number| issue(NodeIdentity::Site(site_name(number)?)));
    Ok(Identities {
        authority: authority.der().clone(),
        primary: issue(NodeIdentity::Primary)?,
        sites: sites.collect::<anyhow::Result<_>>()?,
    })
}

fn issue(
    authority: &CertifiedIssuer<'_, KeyPair>,
    identity: &NodeIdentity,
    dir: &Path,
) -> anyhow::Result<Identity> {
    let key = KeyPair::generate_for(&PKCS_ED25519).context("make a key")?;
    let mut params = CertificateParams::new(vec![identity.dns_name()]).context("name a node")?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, identity.dns_name());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.serial_number = Some(SerialNumber::from(vec![2]));
    let certificate = params.signed_by(&key, authority).context("sign a certificate")?;
    let (chain, secret) = (dir.join("chain.pem"), dir.join("key.pem"));
    fs::write(&chain, certificate.pem()).context("write a certificate")?;
    fs::write(&secret, key.serialize_pem()).context("write a key")?;
    Identity::load(&chain, &secret).context("read an identity")
}
