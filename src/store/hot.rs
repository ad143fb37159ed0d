//! Recently used blobs kept open: a hit needs no system call. Also who has a blob open, hot or not.

use std::{
    collections::BTreeMap,
    fs::File,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use lru::LruCache;
use outport_proto::Digest;

use super::Blob;

/// Files kept open at most; far below the usual limit of 1024 descriptors.
const HOT_FILES_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(127);
/// From so many on, files that nobody has open any more are forgotten.
const OPEN_FILES_MIN: usize = 1024;

#[derive(Debug)]
pub(super) struct Hot {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Grows whenever a blob goes away, so that a file opened before is not remembered after.
    generation: u64,
    blobs: LruCache<Digest, Blob>,
    /// Files that somebody may have open. Files that are open bound it.
    open: BTreeMap<Digest, Weak<File>>,
    open_at_last_look: usize,
}

impl Hot {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                generation: 0,
                blobs: LruCache::new(HOT_FILES_MAX),
                open: BTreeMap::new(),
                open_at_last_look: 0,
            }),
        }
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
            state.note_open(digest, &blob.file);
            state.blobs.put(digest, blob);
        }
    }

    /// A blob was published, and whoever took it in may still have it open.
    pub(super) fn published(&self, digest: &Digest, file: &Arc<File>) {
        self.state().note_open(*digest, file);
    }

    /// Whether the blob is kept open.
    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.state().blobs.contains(digest)
    }

    /// Whether anybody has the blob open to read it.
    pub(super) fn is_read(&self, digest: &Digest) -> bool {
        let state = self.state();
        let own = state.blobs.peek(digest).map(|blob| &blob.file);
        state.open.get(digest).is_some_and(|file| {
            let is_own = own.is_some_and(|own| std::ptr::eq(file.as_ptr(), Arc::as_ptr(own)));
            file.strong_count() > usize::from(is_own)
        })
    }

    pub(super) fn forget(&self, digest: &Digest) {
        let mut state = self.state();
        state.generation += 1;
        state.blobs.pop(digest);
        state.open.remove(digest);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn note_open(&mut self, digest: Digest, file: &Arc<File>) {
        if self.open.len() >= OPEN_FILES_MIN.max(2 * self.open_at_last_look) {
            self.open.retain(|_, file| file.strong_count() > 0);
            self.open_at_last_look = self.open.len();
        }
        self.open.insert(digest, Arc::downgrade(file));
    }
}
