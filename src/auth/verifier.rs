//! Believing tokens: configured keys, one algorithm a key, every time claim checked.

use std::{collections::HashMap, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse},
};
use outport_proto::Timestamp;

use super::{
    Scope,
    rules::AccessRules,
    token::{CLAIM_SECONDS_MAX, Caller, Claims, TOKEN_BYTES_MAX, TokenError},
    token_cache::TokenCache,
};
use crate::clock::SharedClock;

/// How far this machine's clock may be from the issuer's. Issuer and audience have no leeway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leeway {
    /// A token is refused from `exp` + this on. Zero unless configured: it would prolong every token.
    pub expiry: Duration,
    /// A token is refused before `nbf` or `iat` - this.
    pub not_before: Duration,
}

impl Default for Leeway {
    fn default() -> Self {
        Self { expiry: Duration::ZERO, not_before: Duration::from_secs(5) }
    }
}

/// Verifies tokens with keys that may be replaced at any time. Share it in an `Arc`.
pub struct Verifier {
    trust: ArcSwapOption<Trust>,
    public: ArcSwapOption<AccessRules>,
    clock: SharedClock,
    leeway: Leeway,
}

/// One generation of keys with the tokens verified under it: they go together.
struct Trust {
    keys: HashMap<String, TokenKey>,
    issuer: String,
    audience: String,
    jwks: String,
    verified: TokenCache<Arc<Verified>>,
}

struct TokenKey {
    key: DecodingKey,
    validation: Validation,
}

struct Verified {
    caller: Caller,
    expires: Timestamp,
    valid_from: Timestamp,
}

impl Verifier {
    /// A verifier that knows no keys yet and refuses with [`TokenError::NoKeys`].
    pub fn new(clock: SharedClock, leeway: Leeway) -> Self {
        Self { trust: ArcSwapOption::empty(), public: ArcSwapOption::empty(), clock, leeway }
    }

    /// Trusts the keys of a JSON Web Key Set from now on, and no others, for tokens of `issuer`
    /// for `audience`. Setting what is set already keeps what was verified.
    pub fn set_keys(&self, jwks: &str, issuer: &str, audience: &str) -> Result<(), KeySetError> {
        let unchanged =
            |trust: &Trust| trust.jwks == jwks && trust.issuer == issuer && trust.audience == audience;
        if self.trust.load().as_deref().is_some_and(unchanged) {
            return Ok(());
        }
        self.trust.store(Some(Arc::new(Trust {
            keys: parse_keys(jwks)?,
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
            jwks: jwks.to_owned(),
            verified: TokenCache::new(),
        })));
        Ok(())
    }

    /// Lets callers without a token do from now on what `rules` let anybody do, and no more.
    pub fn set_public(&self, rules: AccessRules) {
        self.public.store(Some(Arc::new(rules)));
    }

    /// Someone without a token, with what of `scopes` is for anybody; `None` while the rules are
    /// not known.
    pub fn anybody(&self, scopes: &[Scope]) -> Option<Caller> {
        let rules = self.public.load_full()?;
        Some(Caller::anonymous(Arc::new(rules.grant(None, scopes))))
    }

    /// Whether keys were set.
    pub fn has_keys(&self) -> bool {
        self.trust.load().is_some()
    }

    /// Who sends this token.
    pub fn verify(&self, token: &str) -> Result<Caller, TokenError> {
        let trust = self.trust.load();
        let trust = trust.as_deref().ok_or(TokenError::NoKeys)?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong);
        }
        let now = self.clock.now();
        if let Some(verified) = trust.verified.get(token) {
            verified.check_times(now, self.leeway)?;
            return Ok(verified.caller.clone());
        }
        let verified = Arc::new(trust.verify(token)?);
        verified.check_times(now, self.leeway)?;
        trust.verified.insert(token, Arc::clone(&verified));
        Ok(verified.caller.clone())
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("has_keys", &self.has_keys()).finish_non_exhaustive()
    }
}

impl Trust {
    /// Everything but the times. Of the header only `alg` and `kid` count: a key, a certificate
    /// or a URL in it is the sender's claim about themselves.
    fn verify(&self, token: &str) -> Result<Verified, TokenError> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Malformed)?;
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        let key = header.kid.and_then(|id| self.keys.get(&id)).ok_or(TokenError::UnknownKey)?;
        let claims = jsonwebtoken::decode::<Claims>(token, &key.key, &key.validation)
            .map_err(|error| refusal(error.kind()))?
            .claims;
        if [claims.exp, claims.nbf, claims.iat].iter().any(|seconds| *seconds > CLAIM_SECONDS_MAX) {
            return Err(TokenError::Claims);
        }
        if claims.iss != self.issuer {
            return Err(TokenError::Issuer);
        }
        if !claims.aud.names(&self.audience) {
            return Err(TokenError::Audience);
        }
        Ok(Verified {
            caller: claims.to_caller()?,
            expires: Timestamp::from_secs(claims.exp),
            valid_from: Timestamp::from_secs(claims.nbf.max(claims.iat)),
        })
    }
}

impl Verified {
    fn check_times(&self, now: Timestamp, leeway: Leeway) -> Result<(), TokenError> {
        if now >= self.expires.plus(leeway.expiry) {
            return Err(TokenError::Expired);
        }
        if now.plus(leeway.not_before) < self.valid_from {
            return Err(TokenError::NotYetValid);
        }
        Ok(())
    }
}

fn refusal(kind: &jsonwebtoken::errors::ErrorKind) -> TokenError {
    use jsonwebtoken::errors::ErrorKind;
    match kind {
        ErrorKind::InvalidAlgorithm => TokenError::Algorithm,
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::Json(_) | ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) => {
            TokenError::Claims
        }
        _ => TokenError::Malformed,
    }
}

/// Reads the keys that tokens may be signed with. Keys for other uses and of unknown kinds are
/// left out, as RFC 7517 section 5 asks; a symmetric key is refused, for it could not be public.
fn parse_keys(jwks: &str) -> Result<HashMap<String, TokenKey>, KeySetError> {
    let set: JwkSet = serde_json::from_str(jwks).map_err(|_| KeySetError::Malformed)?;
    let mut keys = HashMap::new();
    for jwk in &set.keys {
        if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
            continue;
        }
        let Some(algorithm) = algorithm_of(jwk)? else { continue };
        let id = jwk.common.key_id.clone().ok_or(KeySetError::NoKeyId)?;
        let key = DecodingKey::from_jwk(jwk).map_err(|_| KeySetError::Key(id.clone()))?;
        if keys.insert(id.clone(), TokenKey { key, validation: signature_only(algorithm) }).is_some() {
            return Err(KeySetError::Duplicate(id));
        }
    }
    Ok(keys)
}

/// The one algorithm of a key: fixed by its curve, or named by the key itself for RSA.
fn algorithm_of(jwk: &Jwk) -> Result<Option<Algorithm>, KeySetError> {
    let implied = match &jwk.algorithm {
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => (Algorithm::ES256, KeyAlgorithm::ES256),
            EllipticCurve::P384 => (Algorithm::ES384, KeyAlgorithm::ES384),
            _ => return Ok(None),
        },
        AlgorithmParameters::OctetKeyPair(_) => (Algorithm::EdDSA, KeyAlgorithm::EdDSA),
        AlgorithmParameters::RSA(_) => match jwk.common.key_algorithm {
            None | Some(KeyAlgorithm::RS256) => (Algorithm::RS256, KeyAlgorithm::RS256),
            Some(KeyAlgorithm::RS384) => (Algorithm::RS384, KeyAlgorithm::RS384),
            Some(KeyAlgorithm::RS512) => (Algorithm::RS512, KeyAlgorithm::RS512),
            Some(KeyAlgorithm::PS256) => (Algorithm::PS256, KeyAlgorithm::PS256),
            Some(_) => return Ok(None),
        },
        AlgorithmParameters::OctetKey(_) => return Err(KeySetError::Symmetric),
        _ => return Ok(None),
    };
    Ok((jwk.common.key_algorithm.is_none_or(|named| named == implied.1)).then_some(implied.0))
}

/// The library checks the signature alone: its reading of time claims takes floats, looks at the
/// machine's clock and knows one leeway for all.
fn signature_only(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

/// Why a key set cannot be trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Not a JSON Web Key Set.
    #[error("not a JSON Web Key Set")]
    Malformed,
    /// A key without a name.
    #[error("a key has no key id")]
    NoKeyId,
    /// Two keys with one name.
    #[error("key id {0} occurs twice")]
    Duplicate(String),
    /// A key that cannot be used.
    #[error("key {0} is not valid")]
    Key(String),
    /// A secret key among public ones.
    #[error("a symmetric key has no place in a public key set")]
    Symmetric,
}

#[cfg(test)]
mod tests;
