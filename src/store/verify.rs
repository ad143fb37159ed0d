//! Bit rot: nothing is served in whole that does not hash to its digest.
//!
//! A blob is *sound* when its content was hashed by this process, while it was taken in or later,
//! and its file has not changed since, for at most [`SOUND_FOR`]; any other is doubtful. What is
//! sound is served straight. A doubtful one is hashed again, once:
//!
//! - up to [`CHECKED_FIRST_BYTES_MAX`] before it is given at all, so that a bad copy counts as absent and is
//!   filled again for the very client that asked;
//! - a larger one while it is read from beginning to end, with its last piece held back until the
//!   digest matches: a bad one is cut off;
//! - a larger one of which only a part is wanted, whole before the first byte of it: a part alone
//!   proves nothing. Who asks meanwhile waits for the same look.
//!
//! A bad copy is set aside in `quarantine/`, counted, and logged, once: it is gone from sight then.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io,
    num::NonZeroUsize,
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use lru::LruCache;
use outport_proto::{Digest, Timestamp, digest::Hasher};
use tokio::{sync::OnceCell, task::JoinHandle};

use super::{Blob, FileReader, Inner, Store, StoreError, reader::read_waiting};
use crate::blocking;

/// A blob up to this size is checked before it is given; every manifest is.
pub(super) const CHECKED_FIRST_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// How long a check is believed: the disk may lose later what memory still has.
const SOUND_FOR: Duration = Duration::from_secs(24 * 3600);
/// Checks remembered; what is forgotten is checked again.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(65_535);
/// Bytes hashed at once.
pub(super) const PIECE_BYTES: usize = 512 * 1024;

/// Called with every digest whose copy was set aside.
pub type OnRotten = Arc<dyn Fn(&Digest) + Send + Sync>;

/// What is known to be sound.
pub(super) struct Soundness {
    checked: Mutex<LruCache<Digest, Check>>,
    /// Whole blobs being checked, for all who wait for it.
    checking: Mutex<BTreeMap<Digest, Weak<OnceCell<bool>>>>,
    on_rotten: OnceLock<OnRotten>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Check {
    stamp: Stamp,
    at: Timestamp,
}

/// What a file looks like from outside; it changes whenever the content is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) inode: u64,
    pub(super) size: u64,
    changed: (i64, i64),
}

/// A blob that has to be checked before it is believed.
#[derive(Clone)]
pub(super) struct Doubt {
    store: Arc<Inner>,
    digest: Digest,
}

impl Store {
    /// As [`Store::get`], checked whatever its size.
    ///
    /// # Errors
    /// When the disk fails; absence is `Ok(None)`, and so is a bad copy.
    pub fn get_sound(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        match self.get(digest)? {
            Some(blob) if blob.doubt.is_some() => {
                let is_sound = self.inner.check(digest, &blob.file)?;
                Ok(is_sound.then_some(Blob { doubt: None, ..blob }))
            }
            blob => Ok(blob),
        }
    }

    /// A blob that should be here is not: whoever hears of bad copies hears of it.
    pub fn note_lost(&self, digest: &Digest) {
        self.inner.soundness.rotten(digest);
    }

    /// Calls `on_rotten` from now on with every digest whose copy was set aside, on any thread. To be called once.
    pub fn on_rotten(&self, on_rotten: OnRotten) {
        if self.inner.soundness.on_rotten.set(on_rotten).is_err() {
            tracing::error!("who hears of bad copies was set before");
        }
    }
}

impl Soundness {
    pub(super) fn new() -> Self {
        Self {
            checked: Mutex::new(LruCache::new(REMEMBERED_MAX)),
            checking: Mutex::default(),
            on_rotten: OnceLock::new(),
        }
    }

    /// A copy was set aside: it is not believed, nor is what takes its place before it was hashed.
    pub(super) fn rotten(&self, digest: &Digest) {
        lock(&self.checked).pop(digest);
        if let Some(on_rotten) = self.on_rotten.get() {
            on_rotten(digest);
        }
    }

    fn checking(&self, digest: &Digest) -> Arc<OnceCell<bool>> {
        let mut checking = lock(&self.checking);
        if let Some(cell) = checking.get(digest).and_then(Weak::upgrade) {
            return cell;
        }
        checking.retain(|_, cell| cell.strong_count() > 0);
        let cell = Arc::new(OnceCell::new());
        checking.insert(*digest, Arc::downgrade(&cell));
        cell
    }
}

impl Stamp {
    pub(super) fn of(metadata: &std::fs::Metadata) -> Self {
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Self { inode: metadata.ino(), size: metadata.len(), changed }
    }
}

impl Inner {
    /// The blob, checked if that takes no time; `None` when it is a bad copy.
    pub(super) fn settled(self: &Arc<Self>, digest: &Digest, blob: Blob) -> Result<Option<Blob>, StoreError> {
        let metadata = blob.file.metadata().map_err(StoreError::when("look at a blob"))?;
        if self.is_sound(digest, Stamp::of(&metadata)) {
            return Ok(Some(blob));
        }
        if blob.size <= CHECKED_FIRST_BYTES_MAX {
            return Ok(self.check(digest, &blob.file)?.then_some(blob));
        }
        Ok(Some(Blob { doubt: Some(Doubt { store: Arc::clone(self), digest: *digest }), ..blob }))
    }

    pub(super) fn is_sound(&self, digest: &Digest, stamp: Stamp) -> bool {
        let now = self.clock.now();
        let check = lock(&self.soundness.checked).get(digest).copied();
        check.is_some_and(|check| check.stamp == stamp && now.since(check.at) < SOUND_FOR)
    }

    /// The file's content hashed to the digest while it looked like `stamp`.
    pub(super) fn note_sound(&self, digest: &Digest, stamp: Stamp) {
        let check = Check { stamp, at: self.clock.now() };
        lock(&self.soundness.checked).put(*digest, check);
    }

    /// As [`Inner::note_sound`], of a file that was just written.
    pub(super) fn note_written(&self, digest: &Digest, file: &File) {
        // Without it, it is checked when it is read.
        if let Ok(metadata) = file.metadata() {
            self.note_sound(digest, Stamp::of(&metadata));
        }
    }

    /// Hashes the whole file; a bad copy is set aside.
    pub(super) fn check(&self, digest: &Digest, file: &File) -> Result<bool, StoreError> {
        let failed = StoreError::when("check a blob");
        let before = match file.metadata() {
            Ok(metadata) => Stamp::of(&metadata),
            Err(error) => return Err(failed(error)),
        };
        let mut hasher = Hasher::new(digest.algorithm());
        hash(file, 0..before.size, &mut hasher)?;
        Ok(self.judge(digest, file, before, hasher.finish()))
    }

    /// Whether content that hashed to `actual` is what it should be; if not, it is set aside.
    pub(super) fn judge(&self, digest: &Digest, file: &File, stamp: Stamp, actual: Digest) -> bool {
        if actual == *digest {
            self.note_sound(digest, stamp);
        } else {
            self.set_aside(digest, file, &actual);
        }
        actual == *digest
    }

    /// Sets a bad copy aside, if it is still the one that is shown.
    fn set_aside(&self, digest: &Digest, file: &File, actual: &Digest) {
        match self.quarantine(digest, Some(file)) {
            Ok(true) => {
                tracing::error!(%digest, %actual, "blob has rotted; its copy was set aside");
            }
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%digest, %actual, %error, "blob has rotted and cannot be set aside")
            }
        }
    }
}

/// Hashes a range of a file.
pub(super) fn hash(file: &File, range: Range<u64>, hasher: &mut Hasher) -> Result<(), StoreError> {
    let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(range.end - range.start).unwrap_or(PIECE_BYTES))];
    let mut at = range.start;
    while at < range.end {
        let wanted = PIECE_BYTES.min(usize::try_from(range.end - at).unwrap_or(PIECE_BYTES));
        file.read_exact_at(&mut piece[..wanted], at).map_err(StoreError::when("check a blob"))?;
        hasher.update(&piece[..wanted]);
        at += wanted as u64;
    }
    Ok(())
}

impl Blob {
    /// A file that needs no check.
    pub fn sound(file: Arc<File>, size: u64) -> Self {
        Self { file, size, doubt: None }
    }

    /// Reads `range`, which must lie within the blob. What is doubtful never comes to its end
    /// unless it is right.
    pub fn reader(&self, range: Range<u64>) -> BlobReader {
        let state = match &self.doubt {
            None => State::Sound(FileReader::new(Arc::clone(&self.file), range)),
            Some(doubt) if range == (0..self.size) => State::Hashing(Box::new(Hashing {
                doubt: doubt.clone(),
                file: Arc::clone(&self.file),
                size: self.size,
                at: 0,
                hasher: None,
                held: None,
                reading: None,
            })),
            Some(doubt) => {
                let (doubt, file) = (doubt.clone(), Arc::clone(&self.file));
                State::Checking(Box::pin(doubt.checked(file)), Arc::clone(&self.file), range)
            }
        };
        BlobReader { state }
    }
}

impl Doubt {
    /// Waits until the whole blob was checked.
    async fn checked(self, file: Arc<File>) -> Result<(), StoreError> {
        let cell = self.store.soundness.checking(&self.digest);
        let is_sound = *cell
            .get_or_try_init(|| async {
                let (this, file) = (self.clone(), Arc::clone(&file));
                let checked = blocking::spawn(move || this.store.check(&this.digest, &file));
                checked
                    .await
                    .unwrap_or_else(|lost| Err(StoreError::io("check a blob", io::Error::other(lost))))
            })
            .await?;
        if is_sound { Ok(()) } else { Err(StoreError::Rotten(self.digest)) }
    }
}

/// Reads a range of a blob piece by piece. Dropping it stops reading.
#[derive(Debug)]
pub struct BlobReader {
    state: State,
}

enum State {
    Sound(FileReader),
    Checking(Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>, Arc<File>, Range<u64>),
    Hashing(Box<Hashing>),
    Failed,
}

impl BlobReader {
    /// The next piece, at most 512 KiB; `None` at the end of the range.
    ///
    /// # Errors
    /// When the disk fails, or the blob is not what it should be. The reader is at its end then.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await.transpose()
    }

    /// As [`BlobReader::chunk`], for hand-written bodies.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StoreError>>> {
        loop {
            match &mut self.state {
                State::Sound(reader) => return reader.poll_chunk(cx),
                State::Failed => return Poll::Ready(None),
                State::Checking(checked, file, range) => match ready!(checked.as_mut().poll(cx)) {
                    Ok(()) => self.state = State::Sound(FileReader::new(Arc::clone(file), range.clone())),
                    Err(error) => {
                        self.state = State::Failed;
                        return Poll::Ready(Some(Err(error)));
                    }
                },
                State::Hashing(hashing) => {
                    let piece = ready!(hashing.poll_piece(cx));
                    if matches!(piece, Some(Err(_))) {
                        self.state = State::Failed;
                    }
                    return Poll::Ready(piece);
                }
            }
        }
    }
}

/// A whole blob that is hashed while it is read; its last piece is held back until that is done.
struct Hashing {
    doubt: Doubt,
    file: Arc<File>,
    size: u64,
    /// The next byte to read.
    at: u64,
    /// The hash up to there, with how the file looked when it began.
    hasher: Option<(Hasher, Stamp)>,
    held: Option<Bytes>,
    reading: Option<JoinHandle<Result<Read, StoreError>>>,
}

struct Read {
    piece: Bytes,
    hasher: Hasher,
    stamp: Stamp,
}

impl Hashing {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StoreError>>> {
        loop {
            if self.at == self.size && self.reading.is_none() {
                return Poll::Ready(self.held.take().map(Ok));
            }
            let reading = match &mut self.reading {
                Some(reading) => reading,
                None => self.reading.insert(self.doubt.clone().read(
                    Arc::clone(&self.file),
                    self.size,
                    self.at,
                    self.hasher.take(),
                )),
            };
            let joined = ready!(Pin::new(reading).poll(cx));
            self.reading = None;
            let lost = |lost| Err(StoreError::io("read a blob", io::Error::other(lost)));
            match joined.unwrap_or_else(lost) {
                Ok(Read { piece, hasher, stamp }) => {
                    self.at += piece.len() as u64;
                    self.hasher = Some((hasher, stamp));
                    if let Some(before) = self.held.replace(piece) {
                        return Poll::Ready(Some(Ok(before)));
                    }
                }
                Err(error) => {
                    self.held = None;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

impl Doubt {
    /// Reads and hashes the piece at `at`; behind the last one it says whether all of it was right.
    fn read(
        self,
        file: Arc<File>,
        size: u64,
        at: u64,
        hashed: Option<(Hasher, Stamp)>,
    ) -> JoinHandle<Result<Read, StoreError>> {
        blocking::spawn(move || {
            let (mut hasher, stamp) = match hashed {
                Some(hashed) => hashed,
                None => {
                    let metadata = file.metadata().map_err(StoreError::when("look at a blob"))?;
                    (Hasher::new(self.digest.algorithm()), Stamp::of(&metadata))
                }
            };
            let wanted = PIECE_BYTES.min(usize::try_from(size - at).unwrap_or(PIECE_BYTES));
            let piece = read_waiting(&file, at, wanted).map_err(StoreError::when("read a blob"))?;
            hasher.update(&piece);
            let is_last = at + wanted as u64 == size;
            if is_last && !self.store.judge(&self.digest, &file, stamp, hasher.clone().finish()) {
                return Err(StoreError::Rotten(self.digest));
            }
            Ok(Read { piece, hasher, stamp })
        })
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sound(_) => "Sound",
            Self::Checking(..) => "Checking",
            Self::Hashing(_) => "Hashing",
            Self::Failed => "Failed",
        })
    }
}

impl fmt::Debug for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doubt").field("digest", &self.digest).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
