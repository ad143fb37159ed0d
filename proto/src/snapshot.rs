//! The entries of a snapshot: the state that a prefix of the log led to, as self-contained
//! records. Every entry carries the offset of the event that made it, so applying an older event
//! on top of it changes nothing, and a snapshot may be taken while events go on being applied.

use crate::{
    Digest, ManifestPut, Offset, RepoName, Tag, Timestamp,
    codec::{Decode, Encode},
};

/// One record of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Entry {
    /// A tag names a manifest.
    Tag {
        /// The repository.
        repo: RepoName,
        /// The tag.
        tag: Tag,
        /// What it names.
        digest: Digest,
        /// The event that moved it there.
        offset: Offset,
        /// When, by the primary's clock.
        time: Timestamp,
    },
    /// A repository holds a manifest (`tags` is empty).
    Manifest {
        /// The manifest.
        manifest: Box<ManifestPut>,
        /// The event that put it.
        offset: Offset,
    },
    /// A repository links a blob.
    Link {
        /// The repository.
        repo: RepoName,
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// The event that linked it.
        offset: Offset,
    },
    /// Something was deleted.
    Tombstone {
        /// What.
        of: Deleted,
        /// The event that deleted it.
        offset: Offset,
    },
}

/// What a tombstone stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum Deleted {
    /// A tag.
    Tag(RepoName, Tag),
    /// A repository's manifest.
    Manifest(RepoName, Digest),
    /// A repository's link to a blob.
    Blob(RepoName, Digest),
    /// A repository with all it held.
    Repository(RepoName),
}

/// Which entry: what it is of. A snapshot is in the order of its keys: links, manifests, tags, then
/// tombstones of tags, of blobs, of manifests and of repositories, each by the bytes of their
/// repository's name, then by those of the tag or by algorithm and hash.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum EntryKey {
    /// A repository's link to a blob.
    Link(RepoName, Digest),
    /// A repository's manifest.
    Manifest(RepoName, Digest),
    /// A tag.
    Tag(RepoName, Tag),
    /// What was deleted.
    Tombstone(Deleted),
}

impl Entry {
    /// Which entry this is.
    pub fn key(&self) -> EntryKey {
        match self {
            Self::Tag { repo, tag, .. } => EntryKey::Tag(repo.clone(), tag.clone()),
            Self::Manifest { manifest, .. } => EntryKey::Manifest(manifest.repo.clone(), manifest.digest),
            Self::Link { repo, digest, .. } => EntryKey::Link(repo.clone(), *digest),
            Self::Tombstone { of, .. } => EntryKey::Tombstone(of.clone()),
        }
    }
}

/// Where a snapshot that was cut off goes on. What it has already stays good: every event after
/// `from` is applied on top of it, as on top of what follows.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SnapshotPlace {
    /// Where the snapshot began.
    pub from: Offset,
    /// The last entry that arrived.
    pub after: EntryKey,
}
