//! Access tokens: what they say, and issuing them.
//!
//! Sources: RFC 7519, RFC 7515, CNCF Distribution "Token authentication implementation". The
//! claim `outport_offset` is Outport's own: the log head at issue as `epoch.seq`, so that a
//! token fetched after a push makes every site show that push.

use std::{fmt, sync::Arc, time::Duration};

use jsonwebtoken::{Algorithm, Header};
use outport_proto::{Offset, Timestamp};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Access, Secret, SigningKey, random, scope::AccessClaim};

/// Largest token in bytes: well over a hundred scopes fit, and headers stay within what proxies take.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Latest time a claim may name, the end of the year 9999: anything above is a mistake or a trick.
pub(super) const CLAIM_SECONDS_MAX: u64 = 253_402_300_799;

/// Who sent a request, as far as it was proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The token's subject; empty when anonymous.
    pub subject: Arc<str>,
    /// What the token grants.
    pub access: Arc<Access>,
    /// When the token was issued, by its issuer's clock in whole seconds, or when it was first seen if it
    /// does not say; `None` without a token.
    pub issued_at: Option<Timestamp>,
    /// The log head when the token was issued; `None` when the issuer is not Outport.
    pub offset: Option<Offset>,
    /// Whether nobody in particular is calling: no token, or one without a subject.
    pub anonymous: bool,
}

impl Caller {
    /// A caller without a token, who may do what `access` says.
    pub fn anonymous(access: Arc<Access>) -> Self {
        Self { subject: "".into(), access, issued_at: None, offset: None, anonymous: true }
    }
}

/// What a token is to say.
#[derive(Clone, Debug)]
pub struct Grant<'a> {
    /// Who; empty for anonymous.
    pub subject: &'a str,
    /// What they may do.
    pub access: &'a Access,
    /// The log head now.
    pub offset: Option<Offset>,
    /// How long the token lives; whole seconds.
    pub life: Duration,
}

/// A signed token.
#[derive(Clone, Debug)]
pub struct IssuedToken {
    /// The token in its compact form.
    pub token: Secret,
    /// The second it was issued in.
    pub issued_at: Timestamp,
    /// Seconds it lives from then on.
    pub expires_in: u64,
}

/// Signs tokens of one issuer for one audience.
#[derive(Clone, Debug)]
pub struct TokenIssuer {
    key: SigningKey,
    header: Header,
    issuer: String,
    audience: String,
}

impl TokenIssuer {
    /// An issuer that signs with `key`.
    pub fn new(key: SigningKey, issuer: impl Into<String>, audience: impl Into<String>) -> Self {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(key.id().to_owned());
        Self { key, header, issuer: issuer.into(), audience: audience.into() }
    }

    /// The audience of its tokens.
    pub fn audience(&self) -> &str {
        &self.audience
    }

    /// Signs a token that is valid from `now` on.
    pub fn issue(&self, grant: &Grant<'_>, now: Timestamp) -> Result<IssuedToken, TokenError> {
        let issued = now.as_secs();
        let claims = Claims {
            iss: self.issuer.clone(),
            sub: grant.subject.to_owned(),
            aud: Audience::One(self.audience.clone()),
            exp: issued + grant.life.as_secs(),
            nbf: Some(issued),
            iat: Some(issued),
            jti: Some(random::text::<16>().map_err(|_| TokenError::Sign)?),
            access: Some(grant.access.to_claim()),
            outport_offset: grant.offset.map(|offset| offset.to_string()),
        };
        let token =
            jsonwebtoken::encode(&self.header, &claims, &self.key.private).map_err(|_| TokenError::Sign)?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong);
        }
        Ok(IssuedToken {
            token: token.into(),
            issued_at: Timestamp::from_secs(issued),
            expires_in: grant.life.as_secs(),
        })
    }
}

/// The claims set. Times are whole seconds since the Unix epoch, as JSON integers and nothing else. What
/// others than Outport may leave out is optional here.
#[derive(Serialize, Deserialize)]
pub(super) struct Claims {
    pub(super) iss: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) sub: String,
    pub(super) aud: Audience,
    pub(super) exp: u64,
    #[serde(default)]
    pub(super) nbf: Option<u64>,
    #[serde(default)]
    pub(super) iat: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    jti: Option<String>,
    #[serde(default)]
    access: Option<Vec<AccessClaim>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) outport_offset: Option<String>,
}

/// `null` where others leave a member out.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Claims {
    /// The caller these claims describe.
    pub(super) fn to_caller(&self) -> Result<Caller, TokenError> {
        let offset = self.outport_offset.as_deref().map(str::parse).transpose();
        Ok(Caller {
            subject: self.sub.as_str().into(),
            access: Arc::new(Access::from_claim(self.access.as_deref().unwrap_or_default())),
            issued_at: self.iat.map(Timestamp::from_secs),
            offset: offset.map_err(|_| TokenError::Claims)?,
            anonymous: self.sub.is_empty(),
        })
    }
}

/// The `aud` claim: one audience or several.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Audience {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Audience {
    /// Whether `audience` is meant.
    pub(super) fn names(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

/// Why a token is not made or not believed. All but [`TokenError::NoKeys`] and
/// [`TokenError::Sign`] are the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// This site has no verification keys yet, so it cannot tell.
    #[error("no token keys are known yet")]
    NoKeys,
    /// Longer than [`TOKEN_BYTES_MAX`].
    #[error("the token is too long")]
    TooLong,
    /// Not a JSON web token in compact form, or with critical extensions.
    #[error("the token is malformed")]
    Malformed,
    /// Signed by a key that is not configured, or not saying which.
    #[error("the token's key is not known")]
    UnknownKey,
    /// Not the algorithm configured for its key.
    #[error("the token's algorithm is not its key's")]
    Algorithm,
    /// The signature does not fit.
    #[error("the token's signature is not valid")]
    Signature,
    /// A claim is missing or of the wrong type.
    #[error("the token's claims are incomplete or of the wrong type")]
    Claims,
    /// Another issuer's.
    #[error("the token's issuer is not trusted")]
    Issuer,
    /// For another service.
    #[error("the token is for another service")]
    Audience,
    /// No longer valid.
    #[error("the token has expired")]
    Expired,
    /// Not valid yet.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// Signing failed here.
    #[error("the token cannot be signed")]
    Sign,
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims").field("sub", &self.sub).finish_non_exhaustive()
    }
}
