//! Who may do what: tokens, scopes, challenges, tickets, passwords, certificates.
//!
//! - [`scope`]: what a token asks for and grants. [`challenge`] asks for a token, [`token_service`]
//!   decides and [`token`] issues it with a key of [`signing`], [`verifier`] believes it, or one of
//!   somebody else with [`issuer_keys`].
//! - [`authenticator`] lets callers in: by a token, or by what the registry behind the primary says about
//!   them ([`delegated`]), or everybody.
//! - [`rules`], [`password`], [`users`]: who may do what, and how they prove who they are.
//! - [`ticket`], [`upload_state`]: authority that survives a redirect to another host.
//! - [`keys`]: the primary's secrets on disk. [`authority`], [`tls`], [`NodeTls`]: certificates and their use;
//!   [`JoinToken`], [`join_tls`]: how a machine gets its first one.
//! - [`secret`]: text that never shows in logs.

pub mod authenticator;
pub mod authority;
mod certificate_chain;
pub mod challenge;
pub mod delegated;
mod files;
pub mod issuer_keys;
pub mod join_tls;
mod join_token;
pub mod keys;
mod node_tls;
pub mod password;
mod public_key;
mod random;
pub mod rules;
pub mod scope;
pub mod secret;
pub mod signing;
pub mod ticket;
pub mod tls;
pub mod token;
mod token_cache;
pub mod token_service;
pub mod upload_state;
pub mod users;
pub mod verifier;

pub use authenticator::{Authenticator, Demand, FindKey, Refused, Wanted};
pub use authority::{Authority, AuthorityError, CertificateRequest, Identity, NodeIdentity, site_of};
pub use challenge::{Authorization, BasicChallenge, Challenge, ChallengeError};
pub use delegated::{Judge, JudgeError, Judged, Remembering, Unjudged, Verdicts, WRONG_PER_MINUTE};
pub use files::{FileError, read_text, write_private};
pub use issuer_keys::{IssuerKeys, IssuerKeysError};
pub use join_token::{InvalidJoinToken, JoinToken};
pub use keys::{KeysError, PrimaryKeys};
pub use node_tls::NodeTls;
pub use password::PasswordError;
pub use random::{NoRandomness, random_number, random_text};
pub use rules::{AccessRule, AccessRules, RuleError};
pub use scope::{Access, Action, Actions, Scope};
pub use secret::Secret;
pub use signing::SigningKey;
pub use ticket::{MethodClass, TicketContents, TicketError, TicketOpener, TicketSealer, TicketUse};
pub use token::{Caller, Grant, IssuedToken, TokenError, TokenIssuer};
pub use token_service::{
    TokenGrant, TokenLives, TokenRequest, TokenResponse, TokenService, TokenServiceError,
};
pub use upload_state::{UploadState, UploadStateError, UploadStates};
pub use users::{CheckError, Users};
pub use verifier::{Leeway, Verifier};
