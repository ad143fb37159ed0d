//! Who may do what: tokens, scopes, challenges, tickets, passwords, certificates.
//!
//! - [`scope`]: what a token asks for and grants; [`token`]: issue and verify it; [`challenge`]: ask for it.
//! - [`secret`]: text that never shows in logs.

pub mod authority;
pub mod challenge;
mod files;
pub mod keys;
mod random;
pub mod scope;
pub mod secret;
pub mod signing;
pub mod ticket;
pub mod tls;
pub mod token;
mod token_cache;
pub mod upload_state;
pub mod verifier;

pub use authority::{Authority, AuthorityError, Identity, NodeIdentity, site_of};
pub use challenge::{Authorization, Challenge, ChallengeError};
pub use files::FileError;
pub use keys::{KeysError, PrimaryKeys};
pub use scope::{Access, Action, Actions, Scope};
pub use secret::Secret;
pub use signing::SigningKey;
pub use ticket::{MethodClass, TicketContents, TicketError, TicketOpener, TicketSealer, TicketUse};
pub use token::{Caller, Grant, IssuedToken, TokenError, TokenIssuer};
pub use upload_state::{UploadState, UploadStateError, UploadStates};
pub use verifier::{Leeway, Verifier};
