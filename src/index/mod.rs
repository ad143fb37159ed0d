//! Tags, manifests, links and referrers: a view of the log. It can always be rebuilt, so
//! it is checked rather than trusted.
//!
//! Reads are quick and never wait for a writer; `apply` and `checkpoint` block.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use outport_proto::{
    Digest, Event, ManifestPut, Offset, Reference, RepoName, Tag, Timestamp, snapshot::Entry,
};
use tokio::sync::watch;

/// The index. Cloning gives another handle to the same index.
#[derive(Clone, Debug)]
pub struct Index {}

/// How an index is kept.
#[derive(Clone, Debug)]
pub struct IndexOptions {
    /// Hot manifests kept in memory, in bytes.
    pub hot_bytes_max: usize,
    /// The database's own page cache, in bytes.
    pub cache_bytes_max: u64,
}

/// A manifest a repository holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its digest.
    pub digest: Digest,
    /// Verbatim media type.
    pub media_type: Arc<str>,
    /// Size in bytes.
    pub size: u64,
    /// Its bytes; `None` when it was too large for its event: then they are in the blob store or upstream.
    pub bytes: Option<Bytes>,
}

/// What a tag names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagEntry {
    /// The manifest.
    pub digest: Digest,
    /// The event that moved it there.
    pub offset: Offset,
    /// When, by the primary's clock.
    pub time: Timestamp,
}

/// How [`Index::open`] found the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Usable; events after this offset must be applied.
    Ready(Offset),
    /// It was absent or doubtful (the text says why) and is now empty: load a snapshot, then the log.
    Empty(String),
}

impl Index {
    /// Opens or creates the index in `dir`. A doubtful one is set aside and replaced by an empty one.
    ///
    /// # Errors
    /// Only when not even an empty index can be made.
    pub fn open(dir: &Path, options: IndexOptions) -> Result<(Self, Opened), IndexError> {
        todo!("{dir:?} {options:?}")
    }

    /// An index in memory alone, for tests and simulations.
    pub fn in_memory(options: IndexOptions) -> Self {
        todo!("{options:?}")
    }

    /// Applies consecutive events in order. Idempotent: what is older than what it would replace changes nothing.
    ///
    /// # Errors
    /// When the database fails; nothing of the batch counts as applied then.
    pub fn apply(&self, events: &[Arc<Event>]) -> Result<(), IndexError> {
        todo!("{}", events.len())
    }

    /// Newest applied event: everything up to it is visible.
    pub fn applied(&self) -> Offset {
        todo!()
    }

    /// Follows [`Index::applied`].
    pub fn watch(&self) -> watch::Receiver<Offset> {
        todo!()
    }

    /// What a tag names.
    pub fn tag(&self, repo: &RepoName, tag: &Tag) -> Result<Option<TagEntry>, IndexError> {
        todo!("{repo} {tag}")
    }

    /// The manifest a reference names in a repository, if the repository holds it.
    pub fn manifest(&self, repo: &RepoName, reference: &Reference) -> Result<Option<Manifest>, IndexError> {
        todo!("{repo} {reference}")
    }

    /// All the index knows of a manifest a repository holds, with its bytes if inline; `tags` is empty.
    pub fn manifest_record(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Option<ManifestPut>, IndexError> {
        todo!("{repo} {digest}")
    }

    /// Size in bytes of a blob, if the repository links it.
    pub fn link(&self, repo: &RepoName, digest: &Digest) -> Result<Option<u64>, IndexError> {
        todo!("{repo} {digest}")
    }

    /// Some repository that links the blob, if any does; for anonymous mounts.
    pub fn any_link(&self, digest: &Digest) -> Result<Option<(RepoName, u64)>, IndexError> {
        todo!("{digest}")
    }

    /// Whether the repository exists: holds any tag, manifest or link.
    pub fn has_repository(&self, repo: &RepoName) -> Result<bool, IndexError> {
        todo!("{repo}")
    }

    /// At most `limit` tags after `last`, in lexical order.
    pub fn tags(&self, repo: &RepoName, last: Option<&str>, limit: usize) -> Result<Vec<Tag>, IndexError> {
        todo!("{repo} {last:?} {limit}")
    }

    /// At most `limit` repositories after `last`, in lexical order.
    pub fn repositories(&self, last: Option<&str>, limit: usize) -> Result<Vec<RepoName>, IndexError> {
        todo!("{last:?} {limit}")
    }

    /// Manifests of the repository that refer to `subject`, by digest; bytes left out.
    pub fn referrers(&self, repo: &RepoName, subject: &Digest) -> Result<Vec<ManifestPut>, IndexError> {
        todo!("{repo} {subject}")
    }

    /// Order-independent hash over (repo, tag, digest) and links, with the offset it holds at.
    pub fn state_hash(&self) -> ([u8; 32], Offset) {
        todo!()
    }

    /// Makes everything applied durable, then the applied offset with it.
    pub fn checkpoint(&self) -> Result<Offset, IndexError> {
        todo!()
    }

    /// Walks the whole state in parts of about `part_bytes`, while events go on being applied.
    /// Returns (from, until): the parts and every event after `from` give the state from `until` on.
    pub fn dump(
        &self,
        part_bytes: usize,
        sink: &mut dyn FnMut(Vec<Entry>) -> std::io::Result<()>,
    ) -> Result<(Offset, Offset), IndexError> {
        todo!("{part_bytes} {}", sink(Vec::new()).is_ok())
    }

    /// Takes in parts of a snapshot; [`Index::loaded`] ends it.
    pub fn load(&self, entries: &[Entry]) -> Result<(), IndexError> {
        todo!("{}", entries.len())
    }

    /// A snapshot taken `from` there is loaded: `applied` becomes `from`.
    pub fn loaded(&self, from: Offset) -> Result<(), IndexError> {
        todo!("{from}")
    }
}

/// Why the index did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IndexError {
    /// A stored value fails its checksum: the index must be rebuilt.
    #[error("index damaged: {0}")]
    Damaged(String),
    /// The database failed.
    #[error("{action}: {reason}")]
    Database {
        /// What was being done, verb first.
        action: &'static str,
        /// The database's error.
        reason: String,
    },
}
