//! What pulls are asked and answered with.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use outport_proto::{Digest, Offset};

use super::Filling;
use crate::store::Blob;

/// How a pull is asked, beside what it asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullOptions {
    /// `Outport-Min-Offset`: the answer must know of everything up to here.
    pub min_offset: Option<Offset>,
    /// What of the answer will be used.
    pub want: Want,
}

/// What of an answer will be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Want {
    /// The content: GET.
    #[default]
    Content,
    /// Its headers alone: HEAD.
    Headers,
}

/// An answer that could not be confirmed with the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staleness {
    /// How old it may be: `Age`, `Outport-Staleness` and `Warning: 110`.
    pub age: Duration,
}

/// A manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestAnswer {
    /// Its digest.
    pub digest: Digest,
    /// The media type it was pushed with, verbatim.
    pub media_type: Arc<str>,
    /// Its bytes, verified.
    pub bytes: Bytes,
    /// Where in the log the answer holds: `Outport-Offset`.
    pub offset: Offset,
    /// `None` when fresh.
    pub staleness: Option<Staleness>,
}

/// A blob.
#[derive(Debug)]
pub struct BlobAnswer {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Where in the log the answer holds: `Outport-Offset`.
    pub offset: Offset,
    /// `None` when fresh; content never is otherwise, that it is still there may be.
    pub staleness: Option<Staleness>,
    /// Where its bytes come from; `None` when only headers were wanted.
    pub content: Option<BlobContent>,
}

/// Where the bytes of a blob come from.
#[derive(Debug)]
pub enum BlobContent {
    /// They are here.
    Local(Blob),
    /// They are on their way.
    Filling(Filling),
}

/// Which part of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// `n`: at most this many; `None` for all. Capped by the service.
    pub n: Option<usize>,
    /// `last`: only what sorts after it.
    pub last: Option<String>,
}

/// A page of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing<T> {
    /// The names, in lexical order.
    pub names: Vec<T>,
    /// The page was capped here and more may follow: `Link: <..n={n}&last={last}>; rel="next"`.
    pub next: Option<Next>,
    /// Where in the log the answer holds: `Outport-Offset`.
    pub offset: Offset,
    /// `None` when fresh.
    pub staleness: Option<Staleness>,
}

/// How to ask for the next page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// How many to ask for.
    pub n: usize,
    /// The last name of this page.
    pub last: String,
}

/// The referrers of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrers {
    /// One descriptor each, by digest.
    pub referrers: Vec<Referrer>,
    /// Where in the log the answer holds: `Outport-Offset`.
    pub offset: Offset,
    /// `None` when fresh.
    pub staleness: Option<Staleness>,
}

/// The descriptor of a manifest that refers to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrer {
    /// Its digest.
    pub digest: Digest,
    /// Its media type, verbatim.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its artifact type, else its config's media type.
    pub artifact_type: Option<String>,
    /// All its annotations, by key.
    pub annotations: Vec<(String, String)>,
}

/// Why a pull was not answered with what it asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// The caller's scopes do not allow it: 401 for a caller without a token, else 403.
    #[error("the token does not allow this")]
    Denied,
    /// The log says that there is no such repository.
    #[error("repository unknown to the registry")]
    NameUnknown,
    /// The log says that the repository holds no such manifest.
    #[error("manifest unknown to the registry")]
    ManifestUnknown,
    /// The log says that the repository links no such blob.
    #[error("blob unknown to the registry")]
    BlobUnknown,
    /// It may exist, and cannot be had now: 503.
    #[error("{reason}")]
    Unavailable {
        /// For the client, without secrets.
        reason: String,
        /// When to ask again: `Retry-After`.
        retry_after: Duration,
    },
    /// The site itself failed: 500. The cause is logged here.
    #[error("the registry failed")]
    Internal,
}
