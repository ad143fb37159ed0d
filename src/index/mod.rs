//! Tags, manifests, links and referrers: a view of the log. It can always be rebuilt, so
//! it is checked rather than trusted.
//!
//! Reads are quick and never wait for a writer; `apply` and `checkpoint` block.
//!
//! The rules of change are in `apply`, reading in `view`, and both stand on one small ordered
//! key-value store (`kv`) whose rows are named in `key` and laid out in `row`. `sled` keeps it on
//! disk, `memory` does not; `home` and `open` decide whether what is on disk may be believed.

mod apply;
mod defer;
mod dump;
mod home;
mod hot;
mod key;
mod kv;
mod listing;
mod memory;
mod mend;
mod open;
mod overlay;
mod row;
mod shown;
mod sled;
mod standing;
mod sums;
mod tombstones;
mod tx;
mod view;
mod walk;
mod whole;

#[cfg(test)]
mod tests;

use crate::watch;
use std::{
    fmt, mem,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use outport_proto::{
    Change, Digest, Event, ManifestPut, Offset, Reference, RepoName, Tag, Timestamp,
    snapshot::{Entry, EntryKey},
};

use defer::Below;
use home::Home;
pub(crate) use home::boot_id;
use hot::{Hot, HotKey};
use kv::Kv;
use memory::MemoryKv;
pub use mend::{Bucket, Correction, corrections};
use open::OpenIndex;
use overlay::Overlay;
use row::State;
use shown::Shown;
pub use standing::Placed;
use sums::Tally;
use tx::Tx;
pub use walk::{BucketSums, RowsDiffer, Verified, WalkReport, Walked};
pub use whole::Whole;
use whole::Wholeness;

/// Rows removed at once when everything is.
const CLEAR_ROWS: usize = 1024;
/// Most events or entries written in one batch. Readers that miss the hot manifests wait while a
/// batch is written, so it is kept short.
const BATCH_ITEMS_MAX: usize = 128;
/// The same above a database that is behind, where a batch takes no longer.
const BATCH_ITEMS_MAX_ABOVE: usize = 1024;
/// Manifest bytes from which on a batch is not made longer.
const BATCH_BYTES_MAX: usize = 512 * 1024;

/// The index. Cloning gives another handle to the same index. When the last one is dropped the
/// index is closed, as by [`Index::close`].
#[derive(Clone)]
pub struct Index {
    shared: Arc<Shared>,
}

struct Shared {
    /// The database.
    base: Arc<dyn Kv>,
    below: Below,
    /// What readers see above it while it is behind.
    overlay: RwLock<Option<Arc<Overlay>>>,
    /// `None` in memory.
    home: Option<Home>,
    hot: Hot,
    writer: Mutex<Writer>,
    /// What readers are told: it follows what the store holds.
    shown: Mutex<Shown>,
    /// What walks came to.
    verified: Mutex<Verified>,
    applied: watch::Sender<Offset>,
    whole: Wholeness,
}

/// Held by whoever writes.
struct Writer {
    /// What readers see.
    stored: State,
    /// Sums of what it holds, by bucket.
    tally: Tally,
    closed: bool,
}

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
    /// Only when not even an empty index can be made, or when another process has this one open.
    pub fn open(dir: &Path, options: IndexOptions) -> Result<(Self, Opened), IndexError> {
        let OpenIndex { home, kv, state, opened } = open::open(dir, options.cache_bytes_max)?;
        Ok((Self::new(kv, Some(home), state, &options), opened))
    }

    /// An index in memory alone, for tests and simulations.
    pub fn in_memory(options: IndexOptions) -> Self {
        Self::new(Arc::new(MemoryKv::default()), None, open::NOTHING, &options)
    }

    fn new(base: Arc<dyn Kv>, home: Option<Home>, state: State, options: &IndexOptions) -> Self {
        let shared = Shared {
            base,
            below: Below { state: Mutex::new(state), closed: AtomicBool::new(false) },
            overlay: RwLock::new(None),
            home,
            hot: Hot::new(options.hot_bytes_max),
            writer: Mutex::new(Writer { stored: state, tally: Tally::default(), closed: false }),
            shown: Mutex::new(Shown::new(state)),
            verified: Mutex::default(),
            applied: watch::Sender::new(state.applied),
            whole: Wholeness::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Applies consecutive events in order. Idempotent: what is older than what it would replace changes nothing.
    ///
    /// # Errors
    /// When the database fails. [`Index::applied`] says how far it came: events are applied in
    /// atomic batches, each with its place in the log.
    pub fn apply(&self, events: &[Arc<Event>]) -> Result<(), IndexError> {
        self.shared.write(events, |event| event_bytes(event), |tx, event| tx.apply(event))
    }

    /// Newest applied event: everything up to it is visible.
    pub fn applied(&self) -> Offset {
        *self.shared.applied.borrow()
    }

    /// Follows [`Index::applied`].
    pub fn watch(&self) -> watch::Receiver<Offset> {
        self.shared.applied.subscribe()
    }

    /// What a tag names.
    ///
    /// # Errors
    /// As every read: when a row is damaged or the database fails.
    pub fn tag(&self, repo: &RepoName, tag: &Tag) -> Result<Option<TagEntry>, IndexError> {
        self.shared.read(|kv| view::tag(kv, repo, tag))
    }

    /// The manifest a reference names in a repository, if the repository holds it.
    pub fn manifest(&self, repo: &RepoName, reference: &Reference) -> Result<Option<Manifest>, IndexError> {
        let key = HotKey { repo: repo.clone(), reference: reference.clone() };
        let missed = match self.shared.hot.get(&key) {
            Ok(manifest) => return Ok(Some(manifest)),
            Err(missed) => missed,
        };
        let manifest = self.shared.read(|kv| view::manifest(kv, repo, reference))?;
        if let Some(manifest) = &manifest {
            self.shared.hot.offer(key, manifest, missed);
        }
        Ok(manifest)
    }

    /// All the index knows of a manifest a repository holds, with its bytes if inline; `tags` is empty.
    pub fn manifest_record(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Option<ManifestPut>, IndexError> {
        self.shared.read(|kv| Ok(view::held(kv, repo, digest)?.map(|held| held.put)))
    }

    /// Size in bytes of a blob, if the repository links it.
    pub fn link(&self, repo: &RepoName, digest: &Digest) -> Result<Option<u64>, IndexError> {
        self.shared.read(|kv| Ok(view::link(kv, repo, digest)?.map(|link| link.size)))
    }

    /// Some repository that links the blob, if any does; for anonymous mounts.
    pub fn any_link(&self, digest: &Digest) -> Result<Option<(RepoName, u64)>, IndexError> {
        self.shared.read(|kv| view::any_link(kv, digest))
    }

    /// Whether any repository links the blob, or holds a manifest of that digest: then its bytes are needed.
    pub fn is_named(&self, digest: &Digest) -> Result<bool, IndexError> {
        self.shared.read(|kv| view::is_named(kv, digest))
    }

    /// The same of one repository.
    pub fn is_named_in(&self, repo: &RepoName, digest: &Digest) -> Result<bool, IndexError> {
        self.shared
            .read(|kv| Ok(view::link(kv, repo, digest)?.is_some() || view::held(kv, repo, digest)?.is_some()))
    }

    /// At most `limit` repositories that link the blob or hold a manifest of that digest.
    pub fn naming(&self, digest: &Digest, limit: usize) -> Result<Vec<RepoName>, IndexError> {
        self.shared.read(|kv| view::naming(kv, digest, limit))
    }

    /// Whether the repository exists: holds any tag, manifest or link.
    pub fn has_repository(&self, repo: &RepoName) -> Result<bool, IndexError> {
        self.shared.read(|kv| view::has_repository(kv, repo))
    }

    /// At most `limit` tags after `last`, in lexical order.
    pub fn tags(&self, repo: &RepoName, last: Option<&str>, limit: usize) -> Result<Vec<Tag>, IndexError> {
        self.shared.read(|kv| view::tags(kv, repo, last, limit))
    }

    /// At most `limit` repositories after `last`, in lexical order.
    pub fn repositories(&self, last: Option<&str>, limit: usize) -> Result<Vec<RepoName>, IndexError> {
        self.shared.read(|kv| view::repositories(kv, last, limit))
    }

    /// Manifests of the repository that refer to `subject`, by digest; bytes left out.
    pub fn referrers(&self, repo: &RepoName, subject: &Digest) -> Result<Vec<ManifestPut>, IndexError> {
        self.shared.read(|kv| view::referrers(kv, repo, subject))
    }

    /// Order-independent hash over (repo, tag, digest), manifests and links, with the offset it
    /// holds at. While a snapshot is loaded, and until the events it was overtaken by are applied,
    /// it is the hash of what is there and of no offset.
    pub fn state_hash(&self) -> ([u8; 32], Offset) {
        let state = lock(&self.shared.shown).state;
        (state.hash, state.applied)
    }

    /// Makes everything applied durable, then the applied offset with it.
    ///
    /// # Errors
    /// When it is not durable. After one failure every further checkpoint fails: what a failed
    /// fsync left on disk cannot be known.
    pub fn checkpoint(&self) -> Result<Offset, IndexError> {
        let below = *lock(&self.shared.below.state);
        self.shared.checkpoint(below, false)
    }

    /// Makes a last checkpoint and notes that the index was shut down cleanly. Reads still work
    /// afterwards, [`Index::apply`] fails. Closing again does nothing.
    ///
    /// # Errors
    /// As [`Index::checkpoint`].
    pub fn close(&self) -> Result<Offset, IndexError> {
        self.shared.close()
    }

    /// Walks the whole state in parts of about `part_bytes`, while events go on being applied.
    /// Returns (from, until): the parts and every event after `from` give the state from `until` on.
    ///
    /// # Errors
    /// When reading fails or `sink` does.
    pub fn dump(
        &self,
        part_bytes: usize,
        sink: &mut dyn FnMut(Vec<Entry>) -> std::io::Result<()>,
    ) -> Result<(Offset, Offset), IndexError> {
        self.dump_after(None, part_bytes, sink)
    }

    /// [`Index::dump`] of what stands behind the entry `after`: together with what an earlier walk
    /// had up to there, and every event since that one's `from`, it gives the state from `until` on.
    ///
    /// # Errors
    /// Those of [`Index::dump`].
    pub fn dump_after(
        &self,
        after: Option<&EntryKey>,
        part_bytes: usize,
        sink: &mut dyn FnMut(Vec<Entry>) -> std::io::Result<()>,
    ) -> Result<(Offset, Offset), IndexError> {
        let from = self.applied();
        self.shared.read(|kv| dump::dump(kv, after, part_bytes, sink))?;
        // Rows are seen before `applied` is: wait for the batch that is being written.
        let _writer = lock(&self.shared.writer);
        Ok((from, self.applied()))
    }

    /// Removes everything, before another history is loaded; `applied` becomes
    /// [`Offset::ZERO`], and the index is not whole until [`Index::whole_from`] says from when on.
    /// Cut off by a crash, the index is doubtful at the next start.
    ///
    /// # Errors
    /// When the database fails.
    pub fn clear(&self) -> Result<(), IndexError> {
        self.shared.clear()
    }

    /// Takes in parts of a snapshot; [`Index::loaded`] ends it. Idempotent, and right on top of
    /// an older state as well.
    ///
    /// # Errors
    /// When the database fails; load the snapshot again then.
    pub fn load(&self, entries: &[Entry]) -> Result<(), IndexError> {
        self.shared.write(entries, entry_bytes, |tx, entry| tx.load(entry))
    }

    /// A snapshot taken `from` there is loaded: `applied` becomes `from`, unless it is past it.
    ///
    /// # Errors
    /// When the database fails.
    pub fn loaded(&self, from: Offset) -> Result<(), IndexError> {
        self.shared.write(
            &[from],
            |_| 0,
            |tx, from| {
                tx.begin_anew(*from);
                Ok(())
            },
        )
    }
}

impl Shared {
    fn read<T>(&self, read: impl FnOnce(&dyn Kv) -> Result<T, IndexError>) -> Result<T, IndexError> {
        match self.overlay() {
            Some(overlay) => self.noting_damage(read(&*overlay)),
            None => self.noting_damage(read(&*self.base)),
        }
    }

    /// Takes `items` in, in atomic batches.
    fn write<T>(
        &self,
        items: &[T],
        bytes: impl Fn(&T) -> usize,
        take_in: impl Fn(&mut Tx<'_>, &T) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        let mut rest = items;
        while !rest.is_empty() {
            let mut batch_bytes = 0;
            let fits = |item: &&T| {
                let had_room = batch_bytes < BATCH_BYTES_MAX;
                batch_bytes += bytes(item);
                had_room
            };
            let items_max = if self.overlay().is_some() { BATCH_ITEMS_MAX_ABOVE } else { BATCH_ITEMS_MAX };
            let len = rest.iter().take(items_max).take_while(fits).count();
            let (batch, later) = rest.split_at(len);
            self.noting_damage(self.write_batch(batch, &take_in))?;
            rest = later;
        }
        Ok(())
    }

    fn write_batch<T>(
        &self,
        items: &[T],
        take_in: impl Fn(&mut Tx<'_>, &T) -> Result<(), IndexError>,
    ) -> Result<(), IndexError> {
        let mut writer = self.writer_if_open()?;
        let overlay = self.overlay();
        let kv = overlay.as_deref().map_or(&*self.base, |overlay| overlay as &dyn Kv);
        let Writer { stored, tally, .. } = &mut *writer;
        let mut tx = Tx::new(kv, &self.hot, stored, tally);
        let taken_in = items.iter().try_for_each(|item| take_in(&mut tx, item));
        let stored = taken_in.and_then(|()| tx.store());
        let passed = mem::take(&mut tx.passed);
        if overlay.is_none() {
            *lock(&self.below.state) = writer.stored;
        }
        let state = stored?;
        lock(&self.shown).advance(state, passed);
        self.applied.send_if_modified(|applied| mem::replace(applied, state.applied) != state.applied);
        overlay.map_or(Ok(()), |overlay| overlay.spill(state.applied))
    }

    /// Changes something in one atomic batch, unless the database is behind: then nothing is changed.
    fn change(&self, change: impl FnOnce(&mut Tx<'_>) -> Result<(), IndexError>) -> Result<(), IndexError> {
        let mut writer = self.writer_if_open()?;
        if self.overlay().is_some() {
            return Ok(());
        }
        let Writer { stored, tally, .. } = &mut *writer;
        let mut tx = Tx::new(&*self.base, &self.hot, stored, tally);
        let changed = change(&mut tx).and_then(|()| tx.store());
        *lock(&self.below.state) = writer.stored;
        let state = self.noting_damage(changed)?;
        lock(&self.shown).advance(state, []);
        Ok(())
    }

    fn writer_if_open(&self) -> Result<MutexGuard<'_, Writer>, IndexError> {
        let writer = lock(&self.writer);
        if writer.closed {
            return Err(IndexError::Database { action: "write", reason: "the index is closed".into() });
        }
        Ok(writer)
    }

    fn clear(&self) -> Result<(), IndexError> {
        let mut writer = self.writer_if_open()?;
        self.whole.emptied();
        if let Some(home) = &self.home {
            home.note_damage("it was being emptied").map_err(|error| IndexError::Database {
                action: "note that the index is being emptied",
                reason: error.to_string(),
            })?;
        }
        let mut below = lock(&self.below.state);
        let ended = self.overlay_mut().take();
        drop(ended);
        loop {
            let page = self.base.page(&[], &[], CLEAR_ROWS)?;
            if page.is_empty() {
                break;
            }
            self.base.write(page.into_iter().map(|(key, _)| (key, None)).collect())?;
        }
        self.hot.clear();
        (writer.stored, *below) = (open::NOTHING, open::NOTHING);
        drop(below);
        writer.tally.forget();
        lock(&self.shown).replace(open::NOTHING);
        self.applied.send_replace(Offset::ZERO);
        self.checkpoint(open::NOTHING, false)?;
        match &self.home {
            Some(home) => home.forget_damage(),
            None => Ok(()),
        }
    }

    fn checkpoint(&self, state: State, clean: bool) -> Result<Offset, IndexError> {
        if let Some(home) = &self.home {
            self.noting_damage(home.checkpoint(state, clean, || self.base.flush()))?;
        }
        Ok(state.applied)
    }

    fn close(&self) -> Result<Offset, IndexError> {
        let mut writer = lock(&self.writer);
        self.below.closed.store(true, Ordering::SeqCst);
        let below = lock(&self.below.state);
        if mem::replace(&mut writer.closed, true) {
            return Ok(below.applied);
        }
        self.checkpoint(*below, true)
    }

    /// Damage is noted in the directory, so that the next start rebuilds the index.
    fn noting_damage<T>(&self, result: Result<T, IndexError>) -> Result<T, IndexError> {
        if let (Err(IndexError::Damaged(reason)), Some(home)) = (&result, &self.home)
            && let Err(error) = home.note_damage(reason)
        {
            tracing::warn!(%reason, %error, "damage of the index could not be noted");
        }
        result
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "index not closed cleanly");
        }
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").field("applied", &self.applied()).finish_non_exhaustive()
    }
}

/// Nothing behind these locks is left half-changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn event_bytes(event: &Event) -> usize {
    match &event.change {
        Change::ManifestPut(put) => put_bytes(put),
        _ => 0,
    }
}

fn entry_bytes(entry: &Entry) -> usize {
    match entry {
        Entry::Manifest { manifest, .. } => put_bytes(manifest),
        _ => 0,
    }
}

fn put_bytes(put: &ManifestPut) -> usize {
    put.bytes.as_ref().map_or(0, |bytes| bytes.len())
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
