//! Content-addressed blobs on a local filesystem.
//!
//! Blocking: every call may touch the disk; async callers run them on a blocking thread, and
//! move bytes with [`pump`] and [`FileReader`]. A blob is visible only once it is whole: temp
//! file, hash while writing, fsync, rename, fsync of the directories.

mod durable;
mod error;
mod evict;
mod hot;
mod ingest;
mod layout;
mod leases;
mod metrics;
mod pump;
mod reader;
mod scrub;
mod totals;
mod upload;
mod verify;

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use outport_proto::{Algorithm, Digest};

use crate::{
    blocking,
    clock::{SharedClock, SystemClock},
    process::is_simulated,
};
use durable::Disk;
pub use durable::Witness;
pub use error::StoreError;
use evict::{Evictor, USE_NOTED_EVERY};
pub use evict::{Rank, Ranks};
use hot::Hot;
pub use ingest::{Ingest, Verified};
use layout::{ALGORITHMS, Layout};
pub use leases::Lease;
use leases::Leases;
use metrics::StoreMetrics;
pub use pump::{ByteSource, PumpError, PumpOptions, Pumped, Sink, pump};
pub use reader::FileReader;
pub use scrub::Scrubbed;
pub use totals::StoreStats;
use totals::Totals;
pub use upload::{Upload, Uploads};
pub use verify::{BlobReader, OnRotten};
use verify::{Doubt, Soundness, Stamp};

/// How long to wait for the process that had the store before to let go of it.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(3);
const LOCK_RETRY_EVERY: Duration = Duration::from_millis(10);

/// A blob store. Cloning gives another handle to the same store.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    layout: Layout,
    disk: Disk,
    totals: Totals,
    hot: Hot,
    temp_next: AtomicU64,
    uploads: upload::Table,
    leases: Leases,
    soundness: Soundness,
    evictor: Evictor,
    metrics: StoreMetrics,
    clock: SharedClock,
    /// Locked until the last handle goes: one process a store.
    _lock: File,
}

/// How a store is kept.
#[derive(Clone)]
pub struct StoreOptions {
    /// Most bytes of blobs it holds. It may be a little over it until all blobs were counted.
    pub limit_bytes: Option<u64>,
    /// Says when blobs are used.
    pub clock: SharedClock,
    /// Asked before each step that makes content durable; for simulations.
    pub witness: Option<Arc<dyn Witness>>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { limit_bytes: None, clock: Arc::new(SystemClock), witness: None }
    }
}

/// What [`Store::open`] found and removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Temporary files of ingests that never finished.
    pub temp_files: u64,
}

/// How many parts [`Store::shard`] knows.
pub const SHARDS: usize = totals::SHARDS;

/// What became of a blob that was to be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is gone.
    Away {
        /// Its size.
        bytes: u64,
    },
    /// It was gone before.
    Absent,
    /// Somebody counts on it: it stays for now.
    Leased,
    /// It is linked: it stays.
    Needed,
}

/// An open blob: the file is complete, and stays readable even if evicted meanwhile. It is read
/// with [`Blob::reader`], which knows whether its content is still to be checked.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Its bytes; those of a blob of at most 4 MiB are checked.
    pub file: Arc<File>,
    /// Size in bytes.
    pub size: u64,
    doubt: Option<Doubt>,
}

impl Store {
    /// As [`Store::open_with`], without a limit.
    ///
    /// # Errors
    /// As [`Store::open_with`].
    pub fn open(root: &Path) -> Result<(Self, Leftovers), StoreError> {
        Self::open_with(root, StoreOptions::default())
    }

    /// Opens or creates the store under `root`, and removes the temporary files a crash left behind.
    ///
    /// Takes the same short time however many blobs there are: a thread of its own counts them
    /// afterwards for [`Store::stats`], and removes files of zero length that are not the empty
    /// blob. (Until then such a file counts as absent all the same.)
    ///
    /// # Errors
    /// When a directory cannot be made, read or synced; [`StoreError::InUse`] when another
    /// process does not let go of the store.
    pub fn open_with(root: &Path, options: StoreOptions) -> Result<(Self, Leftovers), StoreError> {
        let (store, leftovers) = Self::open_uncounted(root, options)?;
        let weak = Arc::downgrade(&store.inner);
        blocking::thread("store-count", move || {
            if let Err(error) = count(&weak) {
                tracing::warn!(%error, "blobs were not counted to the end; totals are too low");
            }
        })
        .map_err(StoreError::when("start the counting thread"))?;
        Ok((store, leftovers))
    }

    fn open_uncounted(root: &Path, options: StoreOptions) -> Result<(Self, Leftovers), StoreError> {
        let (layout, disk) = (Layout::new(root), Disk::over(options.witness));
        make_tree(&layout, &disk).map_err(StoreError::when("make the store's directories"))?;
        // Whoever simulates has the process before end, and time stands still here.
        let lock = lock(&layout, if is_simulated() { Duration::ZERO } else { LOCK_WAIT_MAX })?;
        let temp_files = empty_dir(&layout.temp()).map_err(StoreError::when("remove temporary files"))?;
        let inner = Inner {
            layout,
            disk,
            totals: Totals::new(),
            hot: Hot::new(),
            temp_next: AtomicU64::new(0),
            uploads: upload::Table::default(),
            leases: Leases::new(),
            soundness: Soundness::new(),
            evictor: Evictor::new(options.limit_bytes),
            metrics: StoreMetrics::default(),
            clock: options.clock,
            _lock: lock,
        };
        Ok((Self { inner: Arc::new(inner) }, Leftovers { temp_files }))
    }

    /// The blob, when it is here whole.
    ///
    /// # Errors
    /// When the disk fails; absence is `Ok(None)`.
    pub fn get(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let inner = &self.inner;
        if let Some(blob) = inner.hot.get(digest) {
            return inner.settled(digest, blob);
        }
        let generation = inner.hot.generation();
        let Some(file) = found(File::open(inner.layout.blob(digest)), "open a blob")? else {
            return Ok(None);
        };
        let metadata = file.metadata().map_err(StoreError::when("read a blob's size"))?;
        let size = metadata.len();
        if is_hollow(digest, size) {
            return Ok(None);
        }
        inner.note_use(digest, &file, &metadata);
        let blob = Blob::sound(Arc::new(file), size);
        inner.hot.remember(*digest, blob.clone(), generation);
        inner.settled(digest, blob)
    }

    /// The blob, when it is here whole, needs no check and was used so recently that it is still open.
    /// Never touches the disk, so it may be asked on any thread; `None` says nothing about absence.
    pub fn get_hot(&self, digest: &Digest) -> Option<Blob> {
        let blob = self.inner.hot.get(digest)?;
        let metadata = blob.file.metadata().ok()?;
        self.inner.is_sound(digest, Stamp::of(&metadata)).then_some(blob)
    }

    /// Size in bytes of the blob, when it is here whole.
    ///
    /// # Errors
    /// When the disk fails; absence is `Ok(None)`.
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        if let Some(blob) = self.inner.hot.get(digest) {
            return Ok(Some(blob.size));
        }
        let size = self.inner.size_on_disk(digest)?;
        Ok(size.filter(|size| !is_hollow(digest, *size)))
    }

    /// Whether the disk has the blob whole, whatever memory has of it.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn is_on_disk(&self, digest: &Digest) -> Result<bool, StoreError> {
        let size = self.inner.size_on_disk(digest)?;
        Ok(size.is_some_and(|size| !is_hollow(digest, size)))
    }

    /// Begins to take in content that will have to hash under `algorithm`.
    ///
    /// # Errors
    /// When no temporary file can be made.
    pub fn ingest(&self, algorithm: Algorithm) -> Result<Ingest, StoreError> {
        Ingest::begin(Arc::clone(&self.inner), algorithm, None)
    }

    /// As [`Store::ingest`], for content of `bytes`: room is made for it first.
    ///
    /// # Errors
    /// [`StoreError::Full`] when there is no room and none can be made.
    pub fn ingest_of(&self, algorithm: Algorithm, bytes: u64) -> Result<Ingest, StoreError> {
        let room = self.inner.reserve(bytes)?;
        Ingest::begin(Arc::clone(&self.inner), algorithm, Some(room))
    }

    /// Removes the blob and says whether it was there. Who has it open reads on.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.inner.take_away(digest, |path| fs::remove_file(path), "remove a blob")?.is_some())
    }

    /// Sets a bad copy aside, so that the blob is absent and will be fetched again; says whether
    /// it was there. The copy lies in `quarantine/`; a later one of the same digest replaces it.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn quarantine(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.inner.quarantine(digest, None)
    }

    /// The blobs of one of [`SHARDS`] parts of the store.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn shard(&self, number: usize) -> Result<Vec<Digest>, StoreError> {
        let (algorithm, first_byte) = (ALGORITHMS[number / 256 % ALGORITHMS.len()], (number % 256) as u8);
        let listed = found(fs::read_dir(self.inner.layout.shard(algorithm, first_byte)), "list blobs")?;
        let mut digests = Vec::new();
        for entry in listed.into_iter().flatten() {
            let name = entry.map_err(StoreError::when("list blobs"))?.file_name();
            digests.extend(digest_of(algorithm, &name));
        }
        // The order in which a directory gives them is nobody's business.
        digests.sort_unstable();
        Ok(digests)
    }

    /// What the store holds, without touching the disk.
    pub fn stats(&self) -> StoreStats {
        self.inner.totals.stats()
    }

    /// The resumable uploads of this store.
    pub fn uploads(&self) -> Uploads {
        Uploads::of(Arc::clone(&self.inner))
    }

    /// A disk that can be told to fail.
    #[cfg(test)]
    fn faults(&self) -> &durable::faults::Faults {
        &self.inner.disk.faults
    }

    /// Lets the disk be full after so many bytes more.
    #[cfg(test)]
    pub(crate) fn fill_up_after(&self, bytes: u64) {
        self.faults().room.store(bytes, std::sync::atomic::Ordering::SeqCst);
        self.faults().refuse_create.store(bytes == 0, std::sync::atomic::Ordering::SeqCst);
    }

    /// Lets the next write find the disk full.
    #[cfg(test)]
    fn full_once(&self) {
        self.faults().full_once.store(true, Ordering::SeqCst);
    }

    /// Lets every sync of a file fail.
    #[cfg(test)]
    pub(crate) fn fail_syncs(&self, fail: bool) {
        self.faults().fail_sync.store(fail, std::sync::atomic::Ordering::SeqCst);
    }
}

impl Inner {
    /// Gives verified, synced content its place. A copy that is there already is replaced by
    /// the one just verified: it may have rotted, and its name may not be durable yet.
    fn publish(&self, from: &Path, digest: &Digest, size: u64) -> Result<(), StoreError> {
        let to = self.layout.blob(digest);
        let shard = self.totals.shard_of(digest);
        let before = self.size_on_disk(digest)?;
        let dir = self.layout.shard_of(digest);
        let renamed = match self.disk.rename(from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.disk.make_dirs(&dir).and_then(|()| self.disk.rename(from, &to))
            }
            renamed => renamed,
        };
        renamed.map_err(StoreError::when("publish a blob"))?;
        shard.changed(before, Some(size));
        self.hot.forget(digest);
        self.evictor.published(digest);
        let synced = self.disk.sync_dir(&dir);
        if synced.is_err() && before.is_none() && fs::remove_file(&to).is_ok() {
            shard.changed(Some(size), None);
            self.hot.forget(digest);
        }
        synced.map_err(StoreError::when("sync a blob's directory"))
    }

    /// Sets a bad copy aside; with `file` only if it is that one, which may have been replaced.
    fn quarantine(&self, digest: &Digest, file: Option<&File>) -> Result<bool, StoreError> {
        let to = self.layout.quarantined(digest);
        let is_replaced = |path: &Path| -> io::Result<bool> {
            Ok(file.map(File::metadata).transpose()?.is_some_and(|own| {
                fs::metadata(path).is_ok_and(|shown| Stamp::of(&shown).inode != Stamp::of(&own).inode)
            }))
        };
        let set_aside = |path: &Path| {
            if is_replaced(path)? { Err(io::ErrorKind::NotFound.into()) } else { fs::rename(path, &to) }
        };
        let was_there = self.take_away(digest, set_aside, "set a bad blob aside")?.is_some();
        if was_there {
            self.metrics.rotten.inc();
            self.soundness.rotten(digest);
        }
        Ok(was_there)
    }

    /// Returns the size of what was there, in bytes; `None` when nothing was.
    fn take_away(
        &self,
        digest: &Digest,
        take: impl FnOnce(&Path) -> io::Result<()>,
        action: &'static str,
    ) -> Result<Option<u64>, StoreError> {
        let shard = self.totals.shard_of(digest);
        let before = self.size_on_disk(digest)?;
        if found(take(&self.layout.blob(digest)), action)?.is_none() {
            return Ok(None);
        }
        shard.changed(before, None);
        self.hot.forget(digest);
        Ok(before)
    }

    /// Notes that a blob is used, for who has to make room.
    fn note_use(&self, digest: &Digest, file: &File, metadata: &fs::Metadata) {
        let now = self.now();
        let noted =
            metadata.modified().is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age < USE_NOTED_EVERY));
        if !noted {
            let was_sound = self.is_sound(digest, Stamp::of(metadata));
            // Should it fail, the blob only goes earlier than it should.
            if file.set_modified(now).is_ok() && was_sound {
                self.note_written(digest, file);
            }
        }
    }

    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(self.clock.now().as_micros())
    }

    /// A name for a temporary file that no other has.
    fn temp_path(&self) -> PathBuf {
        let number = self.temp_next.fetch_add(1, Ordering::Relaxed);
        self.layout.temp().join(number.to_string())
    }

    fn size_on_disk(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let metadata = found(fs::metadata(self.layout.blob(digest)), "read a blob's size")?;
        Ok(metadata.map(|metadata| metadata.len()))
    }

    /// Counts one shard's blobs and removes hollow files from it; returns how many those were.
    fn count_shard(&self, algorithm: Algorithm, first_byte: u8) -> io::Result<u64> {
        let shard = self.totals.shard(algorithm, first_byte);
        let (mut bytes, mut blobs, mut hollow) = (0, 0, 0);
        let entries = match fs::read_dir(self.layout.shard(algorithm, first_byte)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            entries => Some(entries?),
        };
        for entry in entries.into_iter().flatten() {
            let entry = entry?;
            let size = entry.metadata()?.len();
            match digest_of(algorithm, &entry.file_name()) {
                Some(digest) if is_hollow(&digest, size) => {
                    fs::remove_file(entry.path())?;
                    hollow += 1;
                }
                Some(_) => {
                    bytes += size;
                    blobs += 1;
                }
                None => {}
            }
        }
        shard.count(bytes, blobs);
        Ok(hollow)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("layout", &self.layout).finish_non_exhaustive()
    }
}

/// A file of no length under a name that is not the empty blob's: a power cut or a full disk
/// made it, never the store.
fn is_hollow(digest: &Digest, size: u64) -> bool {
    size == 0 && *digest != Digest::of(digest.algorithm(), b"")
}

/// The digest that a file of a shard is named after.
fn digest_of(algorithm: Algorithm, name: &OsStr) -> Option<Digest> {
    name.to_str().and_then(|hex| format!("{algorithm}:{hex}").parse().ok())
}

/// `None` when the file is not there.
fn found<T>(result: io::Result<T>, action: &'static str) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io(action, error)),
    }
}

/// Makes the few directories every store has, and syncs the names an earlier process made
/// without living to sync them. Shards are made when the first blob comes.
fn make_tree(layout: &Layout, disk: &Disk) -> io::Result<()> {
    disk.make_dirs(layout.root())?;
    let algorithms = ALGORITHMS.map(|algorithm| layout.algorithm(algorithm));
    for dir in
        [layout.temp(), layout.uploads(), layout.quarantine(), layout.blobs()].iter().chain(&algorithms)
    {
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    algorithms.iter().try_for_each(|dir| disk.sync_dir(dir))?;
    disk.sync_dir(&layout.blobs())?;
    disk.sync_dir(layout.root())
}

fn lock(layout: &Layout, wait_max: Duration) -> Result<File, StoreError> {
    let file = File::create(layout.lock()).map_err(StoreError::when("make the store's lock"))?;
    let give_up = Instant::now() + wait_max;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < give_up => std::thread::sleep(LOCK_RETRY_EVERY),
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse(layout.root().to_owned())),
            Err(TryLockError::Error(error)) => return Err(StoreError::io("lock the store", error)),
        }
    }
}

fn empty_dir(dir: &Path) -> io::Result<u64> {
    let mut removed = 0;
    for entry in fs::read_dir(dir)? {
        fs::remove_file(entry?.path())?;
        removed += 1;
    }
    Ok(removed)
}

/// Counts every shard while anybody holds the store.
fn count(store: &Weak<Inner>) -> io::Result<()> {
    let mut hollow = 0;
    for algorithm in ALGORITHMS {
        for first_byte in 0..=u8::MAX {
            let Some(inner) = store.upgrade() else {
                return Ok(());
            };
            hollow += inner.count_shard(algorithm, first_byte)?;
        }
    }
    if hollow > 0 {
        tracing::warn!(files = hollow, "removed blob files of zero length");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
