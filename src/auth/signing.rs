//! The token service's signing key: ECDSA on P-256.

use jsonwebtoken::{
    Algorithm, EncodingKey,
    jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash},
};

/// A private key that signs tokens with ES256, and its public half as a JSON web key.
#[derive(Clone)]
pub struct SigningKey {
    pub(super) private: EncodingKey,
    public: Jwk,
    id: String,
    pem: super::Secret,
}

impl SigningKey {
    /// A new random key.
    pub fn generate() -> Result<Self, SigningKeyError> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|_| SigningKeyError::Generate)?;
        Self::from_pem(&pair.serialize_pem())
    }

    /// Reads a PKCS#8 key on P-256 in PEM.
    pub fn from_pem(pem: &str) -> Result<Self, SigningKeyError> {
        let private = EncodingKey::from_ec_pem(pem.as_bytes()).map_err(|_| SigningKeyError::Invalid)?;
        let mut public =
            Jwk::from_encoding_key(&private, Algorithm::ES256).map_err(|_| SigningKeyError::Invalid)?;
        let id = public.thumbprint(ThumbprintHash::SHA256).map_err(|_| SigningKeyError::Invalid)?;
        public.common.key_id = Some(id.clone());
        public.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self { private, public, id, pem: pem.into() })
    }

    /// The key as PKCS#8 in PEM.
    pub fn to_pem(&self) -> &super::Secret {
        &self.pem
    }

    /// The key's name in token headers: its RFC 7638 thumbprint.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The JSON Web Key Set of the public halves of `keys`, as text.
    pub fn jwks<'a>(keys: impl IntoIterator<Item = &'a Self>) -> Result<String, SigningKeyError> {
        let set = JwkSet { keys: keys.into_iter().map(|key| key.public.clone()).collect() };
        serde_json::to_string(&set).map_err(|_| SigningKeyError::Invalid)
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why there is no signing key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SigningKeyError {
    /// The library could not make one.
    #[error("a signing key cannot be generated")]
    Generate,
    /// Not a key of the right kind.
    #[error("not an ECDSA P-256 private key in PKCS#8 PEM")]
    Invalid,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_pem_and_shows_only_its_public_half() {
        let key = SigningKey::generate().unwrap();
        let back = SigningKey::from_pem(key.to_pem().expose()).unwrap();
        assert_eq!(back.id(), key.id());
        let jwks = SigningKey::jwks([&back]).unwrap();
        let set: serde_json::Value = serde_json::from_str(&jwks).unwrap();
        assert_eq!(set["keys"][0]["kid"], key.id());
        assert_eq!(set["keys"][0]["alg"], "ES256");
        assert_eq!(set["keys"][0]["crv"], "P-256");
        assert_eq!(set["keys"][0]["use"], "sig");
        assert!(set["keys"][0].get("d").is_none());
        assert!(!format!("{key:?}").contains("PRIVATE"));
        assert_eq!(SigningKey::from_pem("no key").err(), Some(SigningKeyError::Invalid));
    }
}
