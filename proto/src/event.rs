//! The events of the replication log. Everything a site shows follows from these, applied in
//! the order of their offsets.

use bytes::Bytes;

use crate::{
    Digest, Offset, RepoName, SiteName, Tag, Timestamp,
    codec::{Decode, Encode},
    oci::{Descriptor, Platform},
};

/// A manifest up to this size travels inside its event; a larger one is fetched like a blob.
pub const INLINE_MANIFEST_BYTES_MAX: usize = 256 * 1024;

/// One record of the replication log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Event {
    /// Its place.
    pub offset: Offset,
    /// When the primary took it, by the primary's clock.
    pub time: Timestamp,
    /// Who asked for it: the token's subject, or empty for an anonymous or internal actor.
    pub actor: String,
    /// The write intent that it fulfils, when a site led the request to the primary.
    pub intent: Option<IntentId>,
    /// What happened.
    pub change: Change,
}

/// Names one write intent of one site: the site opened it when it led a request to the primary, and
/// ends it when it applies the event that carries this.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct IntentId {
    /// The site that opened it.
    pub site: SiteName,
    /// Random, so that no two intents of a site share one.
    pub number: u64,
}

/// What happened, to a repository or to the log itself.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Change {
    /// A blob upload was committed: the repository links the blob. Sent before any manifest
    /// names it, so that sites can start copying.
    BlobCommitted {
        /// The repository that now links it.
        repo: RepoName,
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
    },
    /// A blob was mounted from another repository: the repository links the blob.
    BlobMounted {
        /// The repository that now links it.
        repo: RepoName,
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// Where the right to it came from, when the client named a source.
        from: Option<RepoName>,
    },
    /// A manifest was put, and tags, if any, moved to it.
    ManifestPut(Box<ManifestPut>),
    /// A tag was deleted; the manifest stays.
    TagDeleted {
        /// The repository.
        repo: RepoName,
        /// The tag.
        tag: Tag,
    },
    /// A manifest was deleted, and with it every tag of the repository that named it.
    ManifestDeleted {
        /// The repository.
        repo: RepoName,
        /// The manifest.
        digest: Digest,
    },
    /// A repository's link to a blob was deleted.
    BlobDeleted {
        /// The repository.
        repo: RepoName,
        /// The blob.
        digest: Digest,
    },
    /// A repository was deleted with all its tags, manifests and links.
    RepositoryDeleted {
        /// The repository.
        repo: RepoName,
    },
    /// The log's history forked: this event is the first of a new epoch.
    EpochBegan {
        /// The newest event that both histories have, which is the event before this one. What any
        /// older epoch holds behind it never happened.
        fork: Offset,
    },
}

impl Change {
    /// The repository it happened to; `None` when it happened to the log.
    pub fn repo(&self) -> Option<&RepoName> {
        match self {
            Self::BlobCommitted { repo, .. }
            | Self::BlobMounted { repo, .. }
            | Self::TagDeleted { repo, .. }
            | Self::ManifestDeleted { repo, .. }
            | Self::BlobDeleted { repo, .. }
            | Self::RepositoryDeleted { repo } => Some(repo),
            Self::ManifestPut(put) => Some(&put.repo),
            Self::EpochBegan { .. } => None,
        }
    }
}

/// A manifest put into a repository, with everything an index needs to know about it, so that
/// no site has to parse or even hold the bytes to answer for tags, children and referrers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestPut {
    /// The repository.
    pub repo: RepoName,
    /// The manifest's digest.
    pub digest: Digest,
    /// The media type it was pushed with, verbatim.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
    /// The bytes, when at most [`INLINE_MANIFEST_BYTES_MAX`].
    pub bytes: Option<Bytes>,
    /// The tags that now name it; may be empty.
    pub tags: Vec<Tag>,
    /// What the manifest declares itself to refer to.
    pub subject: Option<Digest>,
    /// The artifact type a referrers listing shows: the manifest's own, else its config's media type.
    pub artifact_type: Option<String>,
    /// What an image runs on, as its config says; `None` when it is none or the primary could not read it.
    pub platform: Option<Platform>,
    /// The manifest's annotations as a referrers listing shows them; empty without a subject.
    pub annotations: Vec<(String, String)>,
    /// Config, layers and child manifests, in the manifest's order.
    pub children: Vec<Descriptor>,
}
