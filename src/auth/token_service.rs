//! The token service without HTTP: from what a client asks to a signed token.
//!
//! Sources: CNCF Distribution "Token authentication specification" (`GET`) and "OAuth2 token
//! authentication" (`POST`). The two requests differ in form alone.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use outport_proto::{Offset, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    AccessRules, CheckError, Grant, PrimaryKeys, Scope, Secret, TokenError, TokenIssuer, Users, random,
};
use crate::clock::SharedClock;

/// Scopes one token may be asked for; clients ask for a handful.
pub const SCOPES_MAX: usize = 128;
/// Longest refresh token that is looked at, in bytes.
const REFRESH_BYTES_MAX: usize = 2048;
const REFRESH_VERSION: u8 = 1;

/// How long tokens live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenLives {
    /// Access tokens: short, because nothing can take one back.
    pub access: Duration,
    /// Refresh tokens; a changed password or a removed user ends them at once.
    pub refresh: Duration,
}

impl Default for TokenLives {
    fn default() -> Self {
        Self { access: Duration::from_secs(300), refresh: Duration::from_secs(90 * 24 * 3600) }
    }
}

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// The audience it wants a token for; `None` when it does not say.
    pub service: Option<String>,
    /// What it wants to do.
    pub scopes: Vec<Scope>,
    /// How it proves who it is.
    pub grant: TokenGrant,
    /// Whether it wants a refresh token (`offline_token=true`, `access_type=offline`).
    pub offline: bool,
}

/// How a client proves who it is.
#[derive(Clone, Debug)]
pub enum TokenGrant {
    /// Not at all.
    Anonymous,
    /// By password: Basic credentials of a `GET`, or `grant_type=password`.
    Password {
        /// Who.
        user: String,
        /// The proof.
        password: Secret,
    },
    /// By a refresh token from here: `grant_type=refresh_token`.
    Refresh(Secret),
}

/// The answer.
#[derive(Clone, Debug)]
pub struct TokenResponse {
    /// The access token.
    pub token: Secret,
    /// Seconds it lives.
    pub expires_in: u64,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// For coming back without a password.
    pub refresh_token: Option<Secret>,
}

impl TokenResponse {
    /// The response body. The token is in it under both names: `token` of the `GET` specification
    /// and `access_token` of OAuth2.
    pub fn to_json(&self) -> String {
        let mut body = serde_json::json!({
            "token": self.token.expose(),
            "access_token": self.token.expose(),
            "expires_in": self.expires_in,
            "issued_at": rfc3339(self.issued_at),
        });
        if let Some(refresh_token) = &self.refresh_token {
            body["refresh_token"] = refresh_token.expose().into();
        }
        body.to_string()
    }
}

fn rfc3339(time: Timestamp) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_default()
}

/// Reads the primary's newest durable offset.
pub type ReadHead = Arc<dyn Fn() -> Offset + Send + Sync>;

/// Issues tokens to whom the rules allow.
pub struct TokenService {
    issuer: TokenIssuer,
    lives: TokenLives,
    rules: AccessRules,
    users: Option<Arc<Users>>,
    clock: SharedClock,
    head: ReadHead,
    refresh_key: LessSafeKey,
    fingerprint_key: hmac::Key,
}

/// What a refresh token seals.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Refresh {
    #[serde(rename = "u")]
    user: String,
    #[serde(rename = "e")]
    expires_seconds: u64,
    /// Of the password hash it was issued against.
    #[serde(rename = "f")]
    fingerprint: [u8; 16],
}

impl TokenService {
    /// A service that issues tokens of `issuer` for `audience`. Without `users` everybody is anonymous.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part of its own, wired once in the composition root"
    )]
    pub fn new(
        keys: &PrimaryKeys,
        issuer: &str,
        audience: &str,
        lives: TokenLives,
        rules: AccessRules,
        users: Option<Arc<Users>>,
        clock: SharedClock,
        head: ReadHead,
    ) -> Result<Self, TokenServiceError> {
        let refresh_key = UnboundKey::new(&AES_256_GCM, &keys.derived_key("refresh token"))
            .map_err(|_| TokenServiceError::Sealing)?;
        Ok(Self {
            issuer: TokenIssuer::new(keys.signing_key().clone(), issuer, audience),
            lives,
            rules,
            users,
            clock,
            head,
            refresh_key: LessSafeKey::new(refresh_key),
            fingerprint_key: hmac::Key::new(hmac::HMAC_SHA256, &keys.derived_key("password fingerprint")),
        })
    }

    /// Answers a request. A caller who may do less than they ask for gets a token that says less,
    /// as the specification wants it: the registry refuses them then.
    pub async fn answer(&self, request: &TokenRequest) -> Result<TokenResponse, TokenServiceError> {
        if request.service.as_deref().is_some_and(|service| service != self.issuer.audience()) {
            return Err(TokenServiceError::Service);
        }
        if request.scopes.len() > SCOPES_MAX {
            return Err(TokenServiceError::TooManyScopes);
        }
        let user = self.authenticate(&request.grant).await?;
        let access = self.rules.grant(user.as_deref(), &request.scopes);
        let now = self.clock.now();
        let grant = Grant {
            subject: user.as_deref().unwrap_or_default(),
            access: &access,
            offset: Some((self.head)()),
            life: self.lives.access,
        };
        let issued = self.issuer.issue(&grant, now)?;
        let refresh_token = match (&user, &request.grant) {
            (Some(user), TokenGrant::Password { .. }) if request.offline => {
                Some(self.seal_refresh(user, now)?)
            }
            _ => None,
        };
        Ok(TokenResponse {
            token: issued.token,
            expires_in: issued.expires_in,
            issued_at: issued.issued_at,
            refresh_token,
        })
    }

    /// The user who proved to be one; `None` for a client that does not claim to be anybody.
    async fn authenticate(&self, grant: &TokenGrant) -> Result<Option<String>, TokenServiceError> {
        match grant {
            TokenGrant::Anonymous => Ok(None),
            TokenGrant::Password { user, password } => {
                let users = self.users.as_ref().ok_or(TokenServiceError::Password(CheckError::Wrong))?;
                users.check(user, password).await?;
                Ok(Some(user.clone()))
            }
            TokenGrant::Refresh(token) => self.open_refresh(token).map(Some),
        }
    }

    fn seal_refresh(&self, user: &str, now: Timestamp) -> Result<Secret, TokenServiceError> {
        let fingerprint = self.fingerprint(user).ok_or(TokenServiceError::Password(CheckError::Wrong))?;
        let refresh = Refresh {
            user: user.to_owned(),
            expires_seconds: now.plus(self.lives.refresh).as_secs(),
            fingerprint,
        };
        let mut sealed = serde_json::to_vec(&refresh).map_err(|_| TokenServiceError::Sealing)?;
        let nonce = random::bytes::<NONCE_LEN>().map_err(|_| TokenServiceError::Sealing)?;
        self.refresh_key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from([REFRESH_VERSION]),
                &mut sealed,
            )
            .map_err(|_| TokenServiceError::Sealing)?;
        Ok(URL_SAFE_NO_PAD.encode([&[REFRESH_VERSION], &nonce[..], &sealed].concat()).into())
    }

    fn open_refresh(&self, token: &Secret) -> Result<String, TokenServiceError> {
        let refresh = self.unseal_refresh(token.expose()).ok_or(TokenServiceError::Refresh)?;
        let expired = self.clock.now() >= Timestamp::from_secs(refresh.expires_seconds);
        if expired || self.fingerprint(&refresh.user) != Some(refresh.fingerprint) {
            return Err(TokenServiceError::Refresh);
        }
        Ok(refresh.user)
    }

    fn unseal_refresh(&self, token: &str) -> Option<Refresh> {
        if token.len() > REFRESH_BYTES_MAX {
            return None;
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (version, rest) = bytes.split_first_chunk_mut::<1>()?;
        let (nonce, sealed) = rest.split_first_chunk_mut::<NONCE_LEN>()?;
        if *version != [REFRESH_VERSION] {
            return None;
        }
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.refresh_key.open_in_place(nonce, Aad::from(*version), sealed).ok()?;
        serde_json::from_slice(plain).ok()
    }

    fn fingerprint(&self, user: &str) -> Option<[u8; 16]> {
        self.users.as_ref()?.fingerprint(user, &self.fingerprint_key)
    }
}

impl std::fmt::Debug for TokenService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenService").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// Why no token is issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenServiceError {
    /// The password is not accepted.
    #[error(transparent)]
    Password(#[from] CheckError),
    /// The refresh token is not from here, has expired, or its user's password changed.
    #[error("the refresh token is not valid")]
    Refresh,
    /// The client wants a token for another service.
    #[error("tokens for this service are not issued here")]
    Service,
    /// More than [`SCOPES_MAX`].
    #[error("too many scopes for one token")]
    TooManyScopes,
    /// The token cannot be made, for instance because the scopes make it too long.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Sealing a refresh token failed here.
    #[error("the refresh token cannot be made")]
    Sealing,
}

#[cfg(test)]
mod tests;
