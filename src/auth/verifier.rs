//! Believing tokens: configured keys, one algorithm a key, every time claim checked.
//!
//! Tokens of Outport's own service say all that they can. What others say was looked up in their
//! sources: GitLab (`lib/json_web_token`) sends `jti`, `iss`, `iat`, `nbf` (5 s before `iat`), `exp`, and `aud`
//! and `sub` where there are any, RS256, and libtrust's key ID as `kid`; Harbor (`core/service/token`) sends
//! all claims, `aud` as a text or a list by version, RS256 and the same `kid`; CNCF Distribution
//! (`registry/auth/token`) asks for `iss`, `aud` and `exp`, takes a missing `nbf` for long ago, never
//! looks at `iat`, allows 60 s of difference between clocks, and finds the key by `x5c`, or by `kid`, which is
//! libtrust's ID up to 2.8 and an RFC 7638 thumbprint or a key set's `kid` from 3.0 on; zot
//! (`pkg/api/bearer.go`) has one key and looks at no `kid`. `access` is an exact match of type and name for all of
//! them: there are no wildcards in names, the class of a type (`repository(plugin)`) is no part of it, and
//! `*` as an action means every action.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use jsonwebtoken::{
    Algorithm, DecodingKey, Header, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse},
};
use outport_proto::Timestamp;

use super::{
    Scope,
    certificate_chain::Roots,
    public_key::PublicKey,
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
    /// Of another issuer than Outport.
    foreign: Option<Foreign>,
    verified: TokenCache<Arc<Verified>>,
}

/// What differs when somebody else issues the tokens.
struct Foreign {
    roots: Roots,
    root_certificates: Vec<Vec<u8>>,
    /// The only key there is, for tokens that name none.
    only: Option<TokenKey>,
}

/// What registries allow between the clocks of those who issue tokens and those who believe them.
const FOREIGN_NOT_BEFORE_LEEWAY: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(super) struct TokenKey {
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
        self.set(jwks, None, issuer, audience)
    }

    /// As [`Verifier::set_keys`], for tokens of somebody else than Outport: `nbf` and `iat` may be missing, a
    /// token may name its key by the certificates in its header, which must lead to one of `roots` (DER), or
    /// not at all when there is only one.
    pub fn set_foreign_keys(
        &self,
        jwks: &str,
        roots: &[Vec<u8>],
        issuer: &str,
        audience: &str,
    ) -> Result<(), KeySetError> {
        self.set(jwks, Some(roots), issuer, audience)
    }

    fn set(
        &self,
        jwks: &str,
        roots: Option<&[Vec<u8>]>,
        issuer: &str,
        audience: &str,
    ) -> Result<(), KeySetError> {
        let unchanged = |trust: &Trust| {
            trust.jwks == jwks
                && trust.issuer == issuer
                && trust.audience == audience
                && trust.foreign.as_ref().map(|foreign| &*foreign.root_certificates) == roots
        };
        if self.trust.load().as_deref().is_some_and(unchanged) {
            return Ok(());
        }
        let keys = parse_keys(jwks)?;
        let foreign = match roots {
            // An issuer whose keys could not be had yet.
            Some([]) if keys.is_empty() => {
                self.forget_keys();
                return Ok(());
            }
            Some(roots) => Some(Foreign {
                roots: Roots::new(roots.iter().cloned()).ok_or(KeySetError::Certificate)?,
                root_certificates: roots.to_vec(),
                only: only_key(jwks)?,
            }),
            None => None,
        };
        self.trust.store(Some(Arc::new(Trust {
            keys,
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
            jwks: jwks.to_owned(),
            foreign,
            verified: TokenCache::new(),
        })));
        Ok(())
    }

    /// Believes no token any longer.
    pub fn forget_keys(&self) {
        self.trust.store(None);
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
            verified.check_times(now, trust.leeway(self.leeway))?;
            return Ok(verified.caller.clone());
        }
        let verified = Arc::new(trust.verify(token, now)?);
        verified.check_times(now, trust.leeway(self.leeway))?;
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
    fn leeway(&self, own: Leeway) -> Leeway {
        match self.foreign {
            Some(_) => Leeway { not_before: own.not_before.max(FOREIGN_NOT_BEFORE_LEEWAY), ..own },
            None => own,
        }
    }

    /// Everything but the times. Of the header only `alg` and `kid` count, and `x5c` as far as it leads
    /// to a configured certificate: a key or a URL in it is the sender's claim about themselves.
    fn verify(&self, token: &str, now: Timestamp) -> Result<Verified, TokenError> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Malformed)?;
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        let key = self.key_of(&header, now)?;
        let mut claims = jsonwebtoken::decode::<Claims>(token, &key.key, &key.validation)
            .map_err(|error| refusal(error.kind()))?
            .claims;
        let times = [Some(claims.exp), claims.nbf, claims.iat];
        if times.into_iter().flatten().any(|seconds| seconds > CLAIM_SECONDS_MAX) {
            return Err(TokenError::Claims);
        }
        if claims.iss != self.issuer {
            return Err(TokenError::Issuer);
        }
        if !claims.aud.names(&self.audience) {
            return Err(TokenError::Audience);
        }
        let valid_from = match (&self.foreign, claims.nbf, claims.iat) {
            (None, Some(not_before), Some(issued)) => not_before.max(issued),
            (None, _, _) => return Err(TokenError::Claims),
            (Some(_), not_before, issued) => {
                // It was issued before it was seen here, which is all that freshness needs to know.
                claims.iat = issued.or(Some(now.as_secs()));
                claims.outport_offset = None;
                not_before.unwrap_or_default()
            }
        };
        Ok(Verified {
            caller: claims.to_caller()?,
            expires: Timestamp::from_secs(claims.exp),
            valid_from: Timestamp::from_secs(valid_from),
        })
    }

    fn key_of(&self, header: &Header, now: Timestamp) -> Result<Cow<'_, TokenKey>, TokenError> {
        let named = header.kid.as_ref().and_then(|id| self.keys.get(id));
        let found = match (named, &self.foreign, &header.x5c) {
            (Some(key), _, _) => Some(Cow::Borrowed(key)),
            (None, Some(foreign), Some(chain)) if !foreign.roots.is_empty() => {
                foreign.roots.key_of(chain, now).and_then(|key| token_key(&key)).map(Cow::Owned)
            }
            (None, Some(foreign), _) if header.kid.is_none() => foreign.only.as_ref().map(Cow::Borrowed),
            (None, _, _) => None,
        };
        found.ok_or(TokenError::UnknownKey)
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
pub(super) fn parse_keys(jwks: &str) -> Result<HashMap<String, TokenKey>, KeySetError> {
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

/// The key of a set that holds one alone, by however many names.
fn only_key(jwks: &str) -> Result<Option<TokenKey>, KeySetError> {
    let set: JwkSet = serde_json::from_str(jwks).map_err(|_| KeySetError::Malformed)?;
    let mut keys = set.keys.iter().map(PublicKey::of_jwk);
    let Some(first) = keys.next() else { return Ok(None) };
    Ok(if keys.all(|key| key == first) { token_key(&first) } else { None })
}

fn token_key(key: &PublicKey) -> Option<TokenKey> {
    let algorithm = algorithm_of(key.jwk()).ok().flatten()?;
    let key = DecodingKey::from_jwk(key.jwk()).ok()?;
    Some(TokenKey { key, validation: signature_only(algorithm) })
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
    /// A certificate that chains cannot lead to.
    #[error("a root certificate is not valid")]
    Certificate,
}

#[cfg(test)]
mod foreign_tests;
#[cfg(test)]
mod tests;
