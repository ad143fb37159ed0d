//! What can go wrong in the store.

use std::{io, path::PathBuf};

use outport_proto::Digest;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The content hashes to something else.
    #[error("content hashes to {actual}, not to {expected}")]
    DigestMismatch {
        /// What it should have been.
        expected: Digest,
        /// What it is.
        actual: Box<Digest>,
    },
    /// No space, or no quota, is left. It may be there again later.
    #[error("{action}: the disk is full")]
    Full {
        /// What was being done, verb first.
        action: &'static str,
    },
    /// The copy of the blob is bad. It was set aside.
    #[error("the copy of {0} is bad")]
    Rotten(Digest),
    /// Another process has the store open.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// There is no such upload, or it belongs to another repository.
    #[error("there is no such upload")]
    UploadUnknown,
    /// The upload is being written by another request.
    #[error("the upload is being written by another request")]
    UploadBusy,
    /// The disk failed.
    #[error("{action}: {source}")]
    Io {
        /// What was being done, verb first.
        action: &'static str,
        /// The operating system's error.
        source: io::Error,
    },
}

impl StoreError {
    /// An operating system's error, a full disk told apart from the others.
    pub(crate) fn io(action: &'static str, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { action },
            _ => Self::Io { action, source },
        }
    }

    /// The same, to hand to `map_err`.
    pub(crate) fn when(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::io(action, source)
    }
}
