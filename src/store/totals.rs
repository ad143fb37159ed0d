//! How many blobs and bytes are held, without reading every directory before the store opens.
//!
//! Each shard directory has a lock. Until a shard is counted, changes to it are not added up:
//! the count will see them. From then on they are.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use outport_proto::{Algorithm, Digest};

use super::layout::ALGORITHMS;

pub(super) const SHARDS: usize = ALGORITHMS.len() * 256;

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Bytes of whole blobs.
    pub bytes: u64,
    /// Whole blobs.
    pub blobs: u64,
    /// Whether the count made after opening goes on, so that both are still too low.
    pub counting: bool,
}

#[derive(Debug)]
pub(super) struct Totals {
    bytes: AtomicU64,
    blobs: AtomicU64,
    uncounted: AtomicUsize,
    shards: Vec<Mutex<Counted>>,
}

/// Whether a shard's files are part of the totals.
#[derive(Debug)]
struct Counted(bool);

/// The right to change the files of one shard.
#[derive(Debug)]
pub(super) struct Shard<'a> {
    totals: &'a Totals,
    counted: MutexGuard<'a, Counted>,
}

impl Totals {
    pub(super) fn new() -> Self {
        Self {
            bytes: AtomicU64::new(0),
            blobs: AtomicU64::new(0),
            uncounted: AtomicUsize::new(SHARDS),
            shards: (0..SHARDS).map(|_| Mutex::new(Counted(false))).collect(),
        }
    }

    pub(super) fn stats(&self) -> StoreStats {
        StoreStats {
            bytes: self.bytes.load(Ordering::Relaxed),
            blobs: self.blobs.load(Ordering::Relaxed),
            counting: self.uncounted.load(Ordering::Relaxed) != 0,
        }
    }

    pub(super) fn shard_of(&self, digest: &Digest) -> Shard<'_> {
        self.shard(digest.algorithm(), digest.as_bytes()[0])
    }

    pub(super) fn shard(&self, algorithm: Algorithm, first_byte: u8) -> Shard<'_> {
        let algorithm = match algorithm {
            Algorithm::Sha256 => 0,
            Algorithm::Sha512 => 1,
        };
        let shard = &self.shards[algorithm * 256 + usize::from(first_byte)];
        Shard { totals: self, counted: shard.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

impl Shard<'_> {
    /// Notes that a file of `before` bytes became one of `after` bytes; `None` is no file.
    pub(super) fn changed(&self, before: Option<u64>, after: Option<u64>) {
        if !self.counted.0 {
            return;
        }
        if let Some(size) = before {
            self.totals.bytes.fetch_sub(size, Ordering::Relaxed);
            self.totals.blobs.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(size) = after {
            self.totals.bytes.fetch_add(size, Ordering::Relaxed);
            self.totals.blobs.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Adds up what the shard holds, once.
    pub(super) fn count(mut self, bytes: u64, blobs: u64) {
        if !std::mem::replace(&mut self.counted.0, true) {
            self.totals.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.totals.blobs.fetch_add(blobs, Ordering::Relaxed);
            self.totals.uncounted.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
