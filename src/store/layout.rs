//! Where things are under the store's root.
//!
//! ```text
//! blobs/<algorithm>/<first 2 hex>/<hex>   whole, verified blobs
//! tmp/<n>                                 content being taken in
//! uploads/<id>, uploads/<id>.meta         resumable uploads
//! quarantine/<algorithm>-<hex>            bad copies, set aside
//! scrubbed                                which part of the store is to be checked next
//! displaced                               blobs that should be here and had to go for want of room
//! lock                                    held while a process has the store open
//! ```

use std::path::{Path, PathBuf};

use outport_proto::{Algorithm, Digest};

/// Both algorithms that blobs are stored under.
pub(super) const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

/// Paths of one store.
#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(super) fn displaced(&self) -> PathBuf {
        self.root.join("displaced")
    }

    pub(super) fn scrubbed(&self) -> PathBuf {
        self.root.join("scrubbed")
    }

    pub(super) fn temp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(super) fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    pub(super) fn quarantined(&self, digest: &Digest) -> PathBuf {
        self.quarantine().join(format!("{}-{}", digest.algorithm(), digest.hex()))
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(super) fn algorithm(&self, algorithm: Algorithm) -> PathBuf {
        self.blobs().join(algorithm.as_str())
    }

    /// The directory of the blobs whose hash begins with `first_byte`.
    pub(super) fn shard(&self, algorithm: Algorithm, first_byte: u8) -> PathBuf {
        self.algorithm(algorithm).join(format!("{first_byte:02x}"))
    }

    pub(super) fn shard_of(&self, digest: &Digest) -> PathBuf {
        self.shard(digest.algorithm(), digest.as_bytes()[0])
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.shard_of(digest).join(digest.hex())
    }
}
