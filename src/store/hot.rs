//! Recently used blobs kept open: a hit needs no system call.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
};

use lru::LruCache;
use outport_proto::Digest;

use super::Blob;

/// Files kept open at most; far below the usual limit of 1024 descriptors.
const HOT_FILES_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(127);

#[derive(Debug)]
pub(super) struct Hot {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Grows whenever a blob goes away, so that a file opened before is not remembered after.
    generation: u64,
    blobs: LruCache<Digest, Blob>,
}

impl Hot {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State { generation: 0, blobs: LruCache::new(HOT_FILES_MAX) }) }
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Blob> {
        self.state().blobs.get(digest).cloned()
    }

    /// To be read before a file is opened and given to [`Hot::remember`].
    pub(super) fn generation(&self) -> u64 {
        self.state().generation
    }

    pub(super) fn remember(&self, digest: Digest, blob: Blob, generation: u64) {
        let mut state = self.state();
        if state.generation == generation {
            state.blobs.put(digest, blob);
        }
    }

    pub(super) fn forget(&self, digest: &Digest) {
        let mut state = self.state();
        state.generation += 1;
        state.blobs.pop(digest);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
