//! Copying what somebody asks for, now and whatever the policy says.

use std::{fmt, str::FromStr};

use outport_proto::RepoName;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::whereabouts::ImageRef;

/// What to copy: a repository, or one image of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Everything in it.
    Repository(RepoName),
    /// An image, and for an index all of its children.
    Image(ImageRef),
}

impl FromStr for Wanted {
    type Err = InvalidWanted;

    fn from_str(text: &str) -> Result<Self, InvalidWanted> {
        match text.parse() {
            Ok(repo) => Ok(Self::Repository(repo)),
            Err(_) => text.parse().map(Self::Image).map_err(|_| InvalidWanted),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repository(repo) => repo.fmt(f),
            Self::Image(image) => image.fmt(f),
        }
    }
}

/// A text that names neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected repository, repository:tag or repository@digest, without a host")]
pub struct InvalidWanted;

/// How it goes: one line of the answer to `POST /v1/prefetch`. The last one is `done`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Step {
    /// What is missing of something that was asked for.
    Found {
        /// What was asked for.
        reference: String,
        /// Blobs that are not here.
        blobs: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// Something that was asked for cannot be looked up.
    Unknown {
        /// What was asked for.
        reference: String,
        /// Why.
        reason: String,
    },
    /// How far copying is; several times a second, and whenever a blob is here.
    Progress {
        /// Blobs that are here now.
        blobs: u64,
        /// Bytes that are here now, those of blobs under way included.
        bytes: u64,
    },
    /// A blob could not be copied.
    Failed {
        /// The blob.
        digest: String,
        /// Why.
        reason: String,
    },
    /// It is over.
    Done {
        /// Blobs copied.
        blobs: u64,
        /// Their bytes.
        bytes: u64,
        /// Blobs that could not be copied, and names that could not be looked up.
        failed: u64,
    },
}

/// Copies what it is asked for.
pub trait Prefetches: Send + Sync + 'static {
    /// Begins; dropping the receiver ends it, but for the blobs under way.
    fn prefetch(&self, wanted: Vec<Wanted>) -> mpsc::Receiver<Step>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_asked_for() {
        let by_digest = format!("team/app@{}", outport_proto::Digest::sha256(b"x"));
        for (text, is_repository) in [("team/app", true), ("team/app:1", false), (&by_digest, false)] {
            let wanted: Wanted = text.parse().unwrap();
            assert_eq!(matches!(wanted, Wanted::Repository(_)), is_repository, "{text}");
            assert_eq!(wanted.to_string(), text);
        }
        for bad in ["", "Team", "team/app:", "registry.example.com:5000/app", "app@sha256:1"] {
            assert_eq!(bad.parse::<Wanted>(), Err(InvalidWanted), "{bad}");
        }
    }
}
