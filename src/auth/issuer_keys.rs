//! The keys of another issuer, from what registries are configured with: a bundle of certificates
//! (`rootcertbundle` of CNCF Distribution), a JSON Web Key Set, or both.

use jsonwebtoken::jwk::{Jwk, JwkSet};
use rustls_pki_types::pem::{PemObject as _, SectionKind};

use super::{
    certificate_chain::Roots,
    public_key::PublicKey,
    verifier::{KeySetError, parse_keys},
};

/// Largest file or document that is read.
pub const ISSUER_KEYS_BYTES_MAX: usize = 1024 * 1024;

/// The keys of another issuer, in the form that sites are told them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IssuerKeys {
    /// A JSON Web Key Set in which every key stands once by each of its names.
    pub jwks: String,
    /// The certificates of the bundle, DER.
    pub roots: Vec<Vec<u8>>,
}

impl IssuerKeys {
    /// Reads a bundle in PEM, of certificates and bare public keys, and a JSON Web Key Set.
    ///
    /// # Errors
    /// When one of them holds something else. Keys of a set that are for other uses, or of a kind that is
    /// not known here, are left out.
    pub fn read(bundle: Option<&str>, jwks: Option<&str>) -> Result<Self, IssuerKeysError> {
        let mut names = Names::default();
        let mut roots = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(bundle.unwrap_or_default().as_bytes()) {
            match section.map_err(|_| IssuerKeysError::Pem)? {
                (SectionKind::Certificate, der) => {
                    let key = PublicKey::of_certificate(&der.as_slice().into());
                    names.add(&key.ok_or(IssuerKeysError::Certificate)?);
                    roots.push(der);
                }
                (SectionKind::PublicKey, der) => {
                    names.add(&PublicKey::of_spki(&der).ok_or(IssuerKeysError::PublicKey)?);
                }
                (_, _) => return Err(IssuerKeysError::Private),
            }
        }
        if bundle.is_some() && names.0.is_empty() {
            return Err(IssuerKeysError::Pem);
        }
        Roots::new(roots.iter().cloned()).ok_or(IssuerKeysError::Certificate)?;
        if let Some(jwks) = jwks {
            let set: JwkSet = serde_json::from_str(jwks).map_err(|_| KeySetError::Malformed)?;
            for jwk in &set.keys {
                names.add_jwk(jwk);
            }
        }
        let jwks = serde_json::to_string(&JwkSet { keys: names.0 }).map_err(|_| KeySetError::Malformed)?;
        parse_keys(&jwks)?;
        Ok(Self { jwks, roots })
    }
}

/// Keys by all of their names; the first key of a name keeps it.
#[derive(Default)]
struct Names(Vec<Jwk>);

impl Names {
    fn add(&mut self, key: &PublicKey) {
        for name in [key.thumbprint(), key.libtrust_id()].into_iter().flatten() {
            self.name(&name, key);
        }
    }

    fn add_jwk(&mut self, jwk: &Jwk) {
        let key = PublicKey::of_jwk(jwk);
        if let Some(name) = &jwk.common.key_id {
            self.name(name, &key);
        }
        self.add(&key);
    }

    fn name(&mut self, name: &str, key: &PublicKey) {
        if !self.0.iter().any(|jwk| jwk.common.key_id.as_deref() == Some(name)) {
            self.0.push(key.named(name));
        }
    }
}

/// Why keys of an issuer cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssuerKeysError {
    /// No PEM, or none of anything.
    #[error("holds no certificate and no public key in PEM")]
    Pem,
    /// A certificate that cannot be used.
    #[error("a certificate is not valid, or not of an RSA, ECDSA (P-256, P-384) or Ed25519 key")]
    Certificate,
    /// A public key that cannot be used.
    #[error("a public key is not valid, or not RSA, ECDSA (P-256, P-384) or Ed25519")]
    PublicKey,
    /// Something else, most likely a private key.
    #[error("holds something else than certificates and public keys: private keys stay with the issuer")]
    Private,
    /// The key set cannot be used.
    #[error(transparent)]
    Set(#[from] KeySetError),
}

#[cfg(test)]
mod tests;
