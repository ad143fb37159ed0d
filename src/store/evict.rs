//! Making room: the blobs that give way when the store reaches its limit, or the disk its end.
//!
//! Blobs go by [`Rank`] first and then by when they were used last, which is the modification time
//! of their file: it survives restarts and costs no memory. It is written when a blob is published and, at
//! most every [`USE_NOTED_EVERY`], when it is opened; those kept open count as used now.
//!
//! Not all blobs are looked at: parts of the store, in turn, until they hold [`SAMPLE_BLOBS`]. Digests are
//! evenly spread, so the oldest quarter of a sample is about the oldest quarter of all; a store of
//! fewer blobs is in order exactly. Memory is bounded by one sample.
//!
//! What somebody reads, holds a lease on or is taking in stays. Room is *reserved* before content
//! is taken in, so the limit holds however many fills there are at once; what finds no room is not kept.
//!
//! Blobs of rank [`Rank::Eager`] that had to go are *displaced*: the site should hold them and does
//! not. They are counted until they are back or no longer wanted, across restarts.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use outport_proto::Digest;

use super::{Inner, Store, StoreError, Taken, digest_of, found, layout::ALGORITHMS, totals::SHARDS};

/// That a blob is used is noted once in this time.
pub(super) const USE_NOTED_EVERY: Duration = Duration::from_secs(600);
/// Blobs looked at before any goes, unless there are fewer.
const SAMPLE_BLOBS: usize = 16 * 1024;
/// The part of a sample that may go, unless it holds all there is.
const SAMPLE_SHARE: usize = 4;
/// More than what is asked for goes, this part of the limit, so that not every fill has to look.
const SLACK_SHARE: u64 = 64;
/// What goes when the disk is full, at least.
const RELIEF_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Displaced blobs remembered; a site with more shows no more.
const DISPLACED_MAX: usize = 100_000;

/// How much a blob is wanted; lower goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// No repository names it.
    Unlinked,
    /// It is here because somebody pulled it.
    Lazy,
    /// It is here before anybody asks.
    Eager,
}

/// Says how much a blob is wanted.
pub type Ranks = Arc<dyn Fn(&Digest) -> Rank + Send + Sync>;

/// What the limit, if there is one, and evictions need to know.
pub(super) struct Evictor {
    limit: Option<u64>,
    /// Bytes promised to content that is being taken in.
    reserved: AtomicU64,
    /// Set where blobs may go, because they can be had again.
    ranks: OnceLock<Ranks>,
    /// How often room was made.
    rounds: AtomicU64,
    turn: Mutex<Turn>,
    displaced: Mutex<BTreeSet<Digest>>,
}

/// Held by whoever makes room.
#[derive(Debug, Default)]
struct Turn {
    /// The part of the store to look at next.
    part: usize,
}

/// Room for content that is being taken in.
#[derive(Debug)]
pub(super) struct Reservation {
    store: Arc<Inner>,
    bytes: u64,
}

/// A blob that may have to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: Rank,
    is_hot: bool,
    used_at: SystemTime,
    digest: Digest,
    size: u64,
}

impl Store {
    /// Lets blobs be evicted, in the order that `ranks` says first. To be called once, where every
    /// blob can be had again from elsewhere.
    pub fn let_go_by(&self, ranks: Ranks) {
        if self.inner.evictor.ranks.set(ranks).is_err() {
            tracing::error!("the order in which blobs go was set before");
        }
        self.inner.read_displaced();
    }

    /// Most bytes it holds; `None` without a limit.
    pub fn limit(&self) -> Option<u64> {
        self.inner.evictor.limit
    }

    /// How many blobs that the site should hold had to go for want of room.
    pub fn displaced(&self) -> u64 {
        lock(&self.inner.evictor.displaced).len() as u64
    }

    /// Whether the blob is one that the site should hold and that had to go for want of room: to
    /// copy it ahead again would only displace another.
    pub fn is_displaced(&self, digest: &Digest) -> bool {
        lock(&self.inner.evictor.displaced).contains(digest)
    }

    /// The site should hold the blob, and there is no room for it.
    pub fn give_up(&self, digest: &Digest) {
        self.inner.displace(digest);
    }

    /// Whether `bytes` more fit without anything having to go that the site should hold.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.inner.evictor.limit.is_none_or(|limit| self.inner.used().saturating_add(bytes) <= limit)
    }

    /// Forgets displaced blobs that the site should no longer hold. To be called from time to time.
    pub fn review_displaced(&self) {
        if let Some(ranks) = self.inner.evictor.ranks.get() {
            let displaced: Vec<Digest> = lock(&self.inner.evictor.displaced).iter().copied().collect();
            for digest in displaced {
                if ranks(&digest) != Rank::Eager {
                    lock(&self.inner.evictor.displaced).remove(&digest);
                }
            }
        }
    }
}

impl Evictor {
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self {
            limit,
            reserved: AtomicU64::new(0),
            ranks: OnceLock::new(),
            rounds: AtomicU64::new(0),
            turn: Mutex::default(),
            displaced: Mutex::default(),
        }
    }

    /// A blob is here (again).
    pub(super) fn published(&self, digest: &Digest) {
        lock(&self.displaced).remove(digest);
    }
}

impl Inner {
    /// Promises room for `bytes`, for which others may have to go.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, StoreError> {
        self.evictor.reserved.fetch_add(bytes, Ordering::SeqCst);
        let reservation = Reservation { store: Arc::clone(self), bytes };
        match self.evictor.limit {
            Some(limit) if bytes > limit => {
                Err(StoreError::Full { action: "keep more than the store's limit" })
            }
            Some(limit) if !self.shrink_to(limit) => {
                Err(StoreError::Full { action: "make room below the store's limit" })
            }
            _ => Ok(reservation),
        }
    }

    /// What is held and promised.
    fn used(&self) -> u64 {
        self.totals.stats().bytes.saturating_add(self.evictor.reserved.load(Ordering::SeqCst))
    }

    /// Lets blobs go until no more than `limit` is used; says whether that is so.
    fn shrink_to(&self, limit: u64) -> bool {
        if self.used() <= limit {
            return true;
        }
        let Some(ranks) = self.evictor.ranks.get() else { return false };
        let mut turn = lock(&self.evictor.turn);
        let over = self.used().saturating_sub(limit);
        if over > 0 {
            self.let_go(&mut turn, ranks, over, limit / SLACK_SHARE);
        }
        self.used() <= limit
    }

    /// The disk is full: lets blobs go for `bytes`; says whether it is worth another try. `rounds`
    /// is how often room had been made before the disk was found to be full.
    fn relieve(&self, bytes: u64, rounds: u64) -> bool {
        let Some(ranks) = self.evictor.ranks.get() else { return false };
        let mut turn = lock(&self.evictor.turn);
        if self.evictor.rounds.load(Ordering::SeqCst) != rounds {
            return true;
        }
        let freed = self.let_go(&mut turn, ranks, bytes.max(RELIEF_BYTES_MIN), 0);
        tracing::warn!(bytes = freed, "the disk was full; blobs were evicted");
        freed > 0
    }

    /// Tries `write`, and once more when the disk was full and room could be made for `bytes`.
    pub(super) fn relieved<T>(
        &self,
        bytes: u64,
        write: impl Fn() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let rounds = self.evictor.rounds.load(Ordering::SeqCst);
        match write() {
            Err(StoreError::Full { .. }) if self.relieve(bytes, rounds) => write(),
            written => written,
        }
    }

    /// Lets blobs of `wanted` bytes go, and of `slack` more; returns the bytes that went.
    fn let_go(&self, turn: &mut Turn, ranks: &Ranks, wanted: u64, slack: u64) -> u64 {
        let (mut freed, mut blobs, mut parts) = (0, 0_u64, 0);
        let mut displaced = false;
        while freed < wanted && parts < SHARDS {
            let first = parts;
            let mut sample = self.sample(turn, &mut parts, ranks);
            sample.sort_unstable();
            let is_all = first == 0 && parts == SHARDS;
            let may_go = if is_all { sample.len() } else { sample.len().div_ceil(SAMPLE_SHARE) };
            for candidate in &sample[..may_go] {
                if freed >= wanted && freed + candidate.size > wanted.saturating_add(slack) {
                    break;
                }
                if let Some(bytes) = self.evict(&candidate.digest) {
                    freed += bytes;
                    blobs += 1;
                    displaced |= candidate.rank == Rank::Eager && self.displace(&candidate.digest);
                }
            }
        }
        self.evictor.rounds.fetch_add(1, Ordering::SeqCst);
        self.metrics.evicted_blobs.inc_by(blobs);
        self.metrics.evicted_bytes.inc_by(freed);
        if blobs > 0 {
            tracing::info!(blobs, bytes = freed, "blobs evicted");
        }
        if displaced {
            self.write_displaced();
        }
        freed
    }

    /// Blobs of the next parts of the store.
    fn sample(&self, turn: &mut Turn, parts: &mut usize, ranks: &Ranks) -> Vec<Candidate> {
        let mut sample = Vec::new();
        while sample.len() < SAMPLE_BLOBS && *parts < SHARDS {
            if let Err(error) = self.list(turn.part, ranks, &mut sample) {
                tracing::warn!(%error, "cannot look for blobs to evict");
            }
            turn.part = (turn.part + 1) % SHARDS;
            *parts += 1;
        }
        sample
    }

    fn list(&self, part: usize, ranks: &Ranks, sample: &mut Vec<Candidate>) -> io::Result<()> {
        let (algorithm, first_byte) = (ALGORITHMS[part / 256 % ALGORITHMS.len()], (part % 256) as u8);
        let entries = match fs::read_dir(self.layout.shard(algorithm, first_byte)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let Some(digest) = digest_of(algorithm, &entry.file_name()) else { continue };
            // It may be gone meanwhile.
            let Ok(metadata) = entry.metadata() else { continue };
            let used_at = metadata.modified()?;
            let is_hot = self.hot.contains(&digest);
            let (rank, size) = (ranks(&digest), metadata.len());
            sample.push(Candidate { rank, is_hot, used_at, digest, size });
        }
        Ok(())
    }

    fn evict(&self, digest: &Digest) -> Option<u64> {
        let taken = self.take_unneeded(digest, || Ok::<_, StoreError>(self.hot.is_read(digest)));
        match taken {
            Ok(Taken::Away { bytes }) => Some(bytes),
            Ok(Taken::Absent | Taken::Leased | Taken::Needed) => None,
            Err(error) => {
                tracing::warn!(%digest, %error, "blob not evicted");
                None
            }
        }
    }

    fn displace(&self, digest: &Digest) -> bool {
        let mut displaced = lock(&self.evictor.displaced);
        displaced.len() < DISPLACED_MAX && displaced.insert(*digest)
    }

    /// Losing it makes the count too low until the blobs are looked for again.
    fn write_displaced(&self) {
        let displaced: Vec<String> =
            lock(&self.evictor.displaced).iter().map(|digest| format!("{digest}\n")).collect();
        let (path, temporary) = (self.layout.displaced(), self.temp_path());
        let written = fs::write(&temporary, displaced.concat()).and_then(|()| fs::rename(&temporary, path));
        if let Err(error) = written {
            tracing::warn!(%error, "cannot note which blobs were displaced");
        }
    }

    fn read_displaced(&self) {
        let text = match found(fs::read_to_string(self.layout.displaced()), "read what was displaced") {
            Ok(text) => text.unwrap_or_default(),
            Err(error) => return tracing::warn!(%error, "which blobs were displaced is not known"),
        };
        let digests = text.lines().filter_map(|line| line.parse::<Digest>().ok());
        let absent = digests.filter(|digest| matches!(self.size_on_disk(digest), Ok(None)));
        lock(&self.evictor.displaced).extend(absent.take(DISPLACED_MAX));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.store.evictor.reserved.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

impl fmt::Debug for Evictor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Evictor").field("limit", &self.limit).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
