//! Who may do what: tokens, scopes, challenges, tickets, passwords, certificates.
//!
//! - [`scope`]: what a token asks for and grants; [`token`]: issue and verify it; [`challenge`]: ask for it.
//! - [`secret`]: text that never shows in logs.

pub mod challenge;
mod files;
mod random;
pub mod scope;
pub mod secret;
pub mod signing;
pub mod ticket;
pub mod token;
mod token_cache;
pub mod upload_state;
pub mod verifier;

pub use challenge::{Authorization, Challenge, ChallengeError};
pub use files::FileError;
pub use scope::{Access, Action, Actions, Scope};
pub use secret::Secret;
pub use signing::SigningKey;
pub use ticket::{MethodClass, TicketContents, TicketError, TicketOpener, TicketSealer, TicketUse};
pub use token::{Caller, Grant, IssuedToken, TokenError, TokenIssuer};
pub use upload_state::{UploadState, UploadStateError, UploadStates};
pub use verifier::{Leeway, Verifier};
