//! Content-addressed blobs on a local filesystem.
//!
//! Blocking: every call may touch the disk; async callers run them on a blocking thread.
//! A blob is visible only once it is whole: temp file, hash while writing, fsync, rename, fsync
//! of the directories.

use std::{fs::File, path::Path, sync::Arc};

use outport_proto::{Algorithm, Digest};

/// A blob store. Cloning gives another handle to the same store.
#[derive(Clone, Debug)]
pub struct Store {}

/// What [`Store::open`] found and removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Temporary files of ingests that never finished.
    pub temp_files: u64,
    /// Published files of zero length that are not the empty blob.
    pub empty_blobs: u64,
}

/// An open blob: the file is complete and verified, and stays readable even if evicted meanwhile.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Its bytes, read with `read_at`.
    pub file: Arc<File>,
    /// Size in bytes.
    pub size: u64,
}

impl Store {
    /// Opens or creates the store under `root`, and removes what a crash left behind.
    ///
    /// # Errors
    /// When a directory cannot be made, read or synced.
    pub fn open(root: &Path) -> Result<(Self, Leftovers), StoreError> {
        todo!("{root:?}")
    }

    /// The blob, when it is here whole.
    ///
    /// # Errors
    /// When the disk fails; absence is `Ok(None)`.
    pub fn get(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        todo!("{digest}")
    }

    /// Size in bytes of the blob, when it is here whole.
    ///
    /// # Errors
    /// When the disk fails; absence is `Ok(None)`.
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        todo!("{digest}")
    }

    /// Begins to take in content that will have to hash under `algorithm`.
    ///
    /// # Errors
    /// When no temporary file can be made.
    pub fn ingest(&self, algorithm: Algorithm) -> Result<Ingest, StoreError> {
        todo!("{algorithm}")
    }
}

/// Content being taken in. Dropping it removes the temporary file.
#[derive(Debug)]
pub struct Ingest {}

impl Ingest {
    /// Appends bytes.
    ///
    /// # Errors
    /// When the disk fails or is full.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        todo!("{}", bytes.len())
    }

    /// Bytes taken in so far.
    pub fn len(&self) -> u64 {
        todo!()
    }

    /// Whether nothing was taken in.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A second handle on the growing file, for readers that follow it.
    pub fn file(&self) -> Arc<File> {
        todo!()
    }

    /// Verifies, makes durable and publishes. When this returns the blob survives a power cut.
    ///
    /// # Errors
    /// [`StoreError::DigestMismatch`] when the content is not `expected`; nothing is published then.
    pub fn commit(self, expected: &Digest) -> Result<u64, StoreError> {
        todo!("{expected}")
    }
}

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The content hashes to something else.
    #[error("content hashes to {actual}, not to {expected}")]
    DigestMismatch {
        /// What it should have been.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// The disk failed.
    #[error("{action}: {source}")]
    Io {
        /// What was being done, verb first.
        action: &'static str,
        /// The operating system's error.
        source: std::io::Error,
    },
}
