//! Stands in until `auth` brings it.

use outport_proto::{Offset, RepoName, Timestamp};

/// Who asks.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The token's subject.
    pub subject: String,
    /// When the token was issued.
    pub issued_at: Option<Timestamp>,
    /// The log head when our own token service issued it.
    pub offset: Option<Offset>,
    /// What the token allows.
    pub access: Access,
}

/// What a token allows.
#[derive(Clone, Debug, Default)]
pub struct Access {}

impl Access {
    /// Whether `action` is allowed on `repo`.
    pub fn allows(&self, _repo: &RepoName, _action: Action) -> bool {
        true
    }
}

/// An action of a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read.
    Pull,
    /// Write.
    Push,
    /// Delete.
    Delete,
}
