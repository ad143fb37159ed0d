//! What pushes are asked and answered with.

use std::time::Duration;

use bytes::Bytes;
use outport_proto::{Digest, Offset, Reference, RepoName, Tag, oci::InvalidManifest, route::UploadId};

/// How pushes are bounded and what they may leave out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushLimits {
    /// An index may name manifests the repository does not hold.
    pub sparse_indexes: bool,
    /// A manifest may name blobs the repository does not link.
    pub sparse_manifests: bool,
    /// A mount without `from` may take the blob from any repository the caller may pull.
    pub anonymous_mount: bool,
    /// Largest blob, in bytes.
    pub blob_bytes_max: u64,
}

impl Default for PushLimits {
    fn default() -> Self {
        Self {
            sparse_indexes: false,
            sparse_manifests: false,
            anonymous_mount: true,
            blob_bytes_max: 1 << 40,
        }
    }
}

/// The right to act on one upload: its owner made one only from a caller's scope or from a
/// verified upload state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadRight {
    /// The repository the upload is for.
    pub repo: RepoName,
    /// The upload.
    pub upload: UploadId,
    /// Who began it; the actor of the event it ends in.
    pub actor: String,
}

/// How far an upload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadStatus {
    /// Bytes taken in: `Range: 0-{length - 1}` (`0-0` when empty).
    pub length: u64,
}

/// `Content-Range: first-last` of a chunk, inclusive as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// First byte.
    pub first: u64,
    /// Last byte.
    pub last: u64,
}

/// A blob is linked in the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobPut {
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Where in the log: `Outport-Offset`.
    pub offset: Offset,
}

/// What a mount led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mounted {
    /// The blob is linked: 201.
    Linked(BlobPut),
    /// There was none to link, an upload began: 202.
    Upload(UploadRight, UploadStatus),
}

/// A manifest as it is pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewManifest {
    /// The tag, or the digest the bytes must have.
    pub reference: Reference,
    /// `tag` parameters: tags beside a digest reference.
    pub tags: Vec<Tag>,
    /// `Content-Type` without parameters.
    pub content_type: String,
    /// The manifest.
    pub bytes: Bytes,
}

/// A manifest was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestPushed {
    /// Its digest: `Docker-Content-Digest`.
    pub digest: Digest,
    /// What it refers to: `OCI-Subject`.
    pub subject: Option<Digest>,
    /// The tags of the `tag` parameters: `OCI-Tag`.
    pub tags: Vec<Tag>,
    /// Where in the log: `Outport-Offset`.
    pub offset: Offset,
}

/// Something was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// Where in the log: `Outport-Offset`.
    pub offset: Offset,
}

/// Why a push or delete was not done. Names follow the specification's error codes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The caller's scopes do not allow it: 401 for a caller without a token, else 403.
    #[error("the token does not allow this")]
    Denied,
    /// No such repository.
    #[error("repository unknown to the registry")]
    NameUnknown,
    /// The repository links no such blob.
    #[error("blob unknown to the registry")]
    BlobUnknown,
    /// The repository holds no such manifest.
    #[error("manifest unknown to the registry")]
    ManifestUnknown,
    /// No such upload, or it has ended.
    #[error("blob upload unknown to the registry")]
    BlobUploadUnknown,
    /// The upload cannot take this now: another request is writing to it.
    #[error("blob upload invalid: {0}")]
    BlobUploadInvalid(&'static str),
    /// A chunk does not start where the upload ends: 416.
    #[error("the range does not start at byte {length}, where the upload ends")]
    RangeInvalid {
        /// Bytes taken in so far.
        length: u64,
    },
    /// The content is not what its digest says.
    #[error("content hashes to {actual}, not to {expected}")]
    DigestInvalid {
        /// What it should have been.
        expected: Digest,
        /// What it is.
        actual: Box<Digest>,
    },
    /// A body has not the size that was announced for it.
    #[error("the body has not the announced size")]
    SizeInvalid,
    /// A manifest names something the repository does not hold.
    #[error("the manifest names {0}, which the repository does not hold")]
    ManifestBlobUnknown(Digest),
    /// The bytes are not a manifest of their media type.
    #[error(transparent)]
    ManifestInvalid(#[from] InvalidManifest),
    /// Larger than allowed: 413.
    #[error("larger than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// It makes no sense or is not offered here.
    #[error("unsupported: {0}")]
    Unsupported(&'static str),
    /// The ticket that led it here was used for something else: 403.
    #[error("the ticket in the query was used for another request")]
    TicketUsed,
    /// It cannot be done now: 503.
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
