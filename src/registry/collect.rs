//! Garbage collection: takes away blobs that no repository names any more.
//!
//! A pass looks at every blob of the store. One that no repository links and that is no manifest's
//! bytes is noted with the time it was first seen so; once it was so for the whole *grace period* it
//! goes. The period is why who began to read an image can end it although the image was deleted
//! meanwhile; what keeps a push from losing what it relies on are leases, and the last look at
//! the index under the lock they are made under ([`Store::take_unneeded`]). The notes are in memory: after a
//! restart the period begins again.
//!
//! A site that is wrong about a link loses nothing but time, because it fills the blob again; a
//! primary is never wrong about one: its index is brought up to its log before it starts.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use outport_proto::{Digest, Offset};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};

use crate::{
    blocking, bounds,
    index::{Index, IndexError},
    shutdown::Shutdown,
    store::{SHARDS, Store, StoreError, Taken},
};

/// Unlinked blobs noted at once; more wait until those are gone.
const NOTED_MAX: usize = 200_000;
/// A pass that nobody waits for rests for this many times as long as it works.
const REST: u32 = 3;
/// Passes begin by themselves this often in a grace period, within the bounds below.
const PASSES_PER_GRACE: u32 = 2;
const INTERVAL_MIN: Duration = Duration::from_secs(60);
const INTERVAL_MAX: Duration = Duration::from_secs(6 * 3600);

/// The garbage collector of a node. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Collector {
    shared: Arc<Shared>,
}

struct Shared {
    index: Index,
    store: Store,
    grace: Duration,
    /// One pass at a time.
    turn: Arc<Semaphore>,
    noted: Mutex<BTreeMap<Digest, Noted>>,
    report: Mutex<Collection>,
}

/// A blob that no repository names.
#[derive(Clone, Copy, Debug)]
struct Noted {
    since: Instant,
    /// The last pass that saw it.
    pass: u64,
}

/// What a pass found and did: `/v1/gc`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collection {
    /// Which pass since the node started; 0 before the first.
    pub pass: u64,
    /// Whether it goes on.
    pub running: bool,
    /// Whether it only looks.
    pub dry_run: bool,
    /// Parts of the store looked at.
    pub parts_done: u64,
    /// Parts of the store.
    pub parts: u64,
    /// Blobs looked at.
    pub blobs: u64,
    /// What it found that no repository names.
    #[serde(flatten)]
    pub found: Found,
    /// How long a blob stays that no repository names any more, in seconds.
    pub grace_seconds: u64,
    /// Why the pass broke off.
    pub error: Option<String>,
}

/// Blobs that no repository names, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// All of them.
    pub unlinked: Count,
    /// Those that went or, when the pass only looked, that would go.
    pub removed: Count,
    /// Those whose grace period is not over.
    pub in_grace: Count,
    /// Those that somebody counts on.
    pub leased: Count,
}

impl Found {
    fn merge(&mut self, other: Self) {
        let Self { unlinked, removed, in_grace, leased } = other;
        self.unlinked.merge(unlinked);
        self.removed.merge(removed);
        self.in_grace.merge(in_grace);
        self.leased.merge(leased);
    }
}

/// Some blobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// How many.
    pub blobs: u64,
    /// Their size.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.blobs += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn merge(&mut self, other: Self) {
        self.blobs += other.blobs;
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// How fast a pass goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Somebody waits for it.
    Fast,
    /// It leaves the machine to others.
    Gentle,
}

impl Collector {
    /// A collector that leaves unlinked blobs of `store` alone for `grace`.
    pub fn new(index: Index, store: Store, grace: Duration) -> Self {
        let report =
            Collection { grace_seconds: grace.as_secs(), parts: SHARDS as u64, ..Collection::default() };
        let shared = Shared {
            index,
            store,
            grace,
            turn: Arc::new(Semaphore::new(1)),
            noted: Mutex::default(),
            report: Mutex::new(report),
        };
        Self { shared: Arc::new(shared) }
    }

    /// What the last pass found and did, or does.
    pub fn report(&self) -> Collection {
        lock(&self.shared.report).clone()
    }

    /// Begins a pass as a task of `shutdown`; `None` when one is under way.
    pub fn start(&self, dry_run: bool, shutdown: &Shutdown) -> Option<Collection> {
        let (pass, stop) = (self.begin(dry_run)?, shutdown.clone());
        let begun = self.report();
        shutdown.spawn(async move {
            tokio::select! {
                biased;
                () = stop.requested() => {}
                // The report says how it went.
                _ = pass.run(Pace::Fast) => {}
            }
        });
        Some(begun)
    }

    /// Makes a pass.
    ///
    /// # Errors
    /// When store or index fail, or another pass is under way.
    pub async fn collect(&self, dry_run: bool, pace: Pace) -> Result<Collection, CollectError> {
        self.begin(dry_run).ok_or(CollectError::UnderWay)?.run(pace).await
    }

    /// Makes passes until shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        let interval = (self.shared.grace / PASSES_PER_GRACE).clamp(INTERVAL_MIN, INTERVAL_MAX);
        loop {
            tokio::select! {
                biased;
                () = shutdown.requested() => return,
                () = sleep(interval) => {}
            }
            let collected = tokio::select! {
                biased;
                () = shutdown.requested() => return,
                collected = self.collect(false, Pace::Gentle) => collected,
            };
            match collected {
                Ok(Collection { found: Found { removed, .. }, .. }) if removed.blobs > 0 => {
                    tracing::info!(blobs = removed.blobs, bytes = removed.bytes, "unlinked blobs removed");
                }
                Ok(_) | Err(CollectError::UnderWay) => {}
                Err(error) => tracing::warn!(%error, "unlinked blobs cannot be removed"),
            }
        }
    }

    fn begin(&self, dry_run: bool) -> Option<Pass> {
        let turn = Arc::clone(&self.shared.turn).try_acquire_owned().ok()?;
        let mut report = lock(&self.shared.report);
        let number = report.pass + 1;
        *report = Collection {
            pass: number,
            running: true,
            dry_run,
            parts: SHARDS as u64,
            grace_seconds: self.shared.grace.as_secs(),
            ..Collection::default()
        };
        drop(report);
        Some(Pass { shared: Arc::clone(&self.shared), number, dry_run, _turn: turn })
    }
}

/// A pass under way.
struct Pass {
    shared: Arc<Shared>,
    number: u64,
    dry_run: bool,
    _turn: OwnedSemaphorePermit,
}

impl Pass {
    async fn run(self, pace: Pace) -> Result<Collection, CollectError> {
        let gone = self.look_at_all(pace).await;
        let mut report = lock(&self.shared.report);
        report.running = false;
        report.error = gone.as_ref().err().map(ToString::to_string);
        gone.map(|()| report.clone())
    }

    async fn look_at_all(&self, pace: Pace) -> Result<(), CollectError> {
        for part in 0..SHARDS {
            let (shared, began) = (Arc::clone(&self.shared), Instant::now());
            let (number, dry_run) = (self.number, self.dry_run);
            let looked = blocking::spawn(move || shared.look_at(part, number, dry_run)).await;
            looked.map_err(|error| CollectError::Crashed(error.to_string())).flatten()?;
            if pace == Pace::Gentle {
                sleep(began.elapsed() * REST).await;
            }
        }
        // What was linked again, or went otherwise, begins anew when it is seen again.
        lock(&self.shared.noted).retain(|_, noted| noted.pass == self.number);
        Ok(())
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut report = lock(&self.shared.report);
        if std::mem::take(&mut report.running) {
            report.error = Some("the node is stopping".to_owned());
        }
    }
}

impl Shared {
    fn look_at(&self, part: usize, pass: u64, dry_run: bool) -> Result<(), CollectError> {
        let digests = self.store.shard(part)?;
        let mut found = Found::default();
        for digest in &digests {
            if self.is_needed(digest)? {
                continue;
            }
            let Some(bytes) = self.store.size(digest)? else { continue };
            found.unlinked.add(bytes);
            let now = Instant::now();
            let since = self.note(digest, pass, now);
            if since.is_none_or(|since| now - since < self.grace) {
                found.in_grace.add(bytes);
            } else if dry_run {
                found.removed.add(bytes);
            } else {
                self.remove(digest, bytes, &mut found)?;
            }
        }
        let mut report = lock(&self.report);
        report.parts_done += 1;
        report.blobs += digests.len() as u64;
        report.found.merge(found);
        Ok(())
    }

    fn remove(&self, digest: &Digest, bytes: u64, found: &mut Found) -> Result<(), CollectError> {
        match self.store.take_unneeded(digest, || self.is_needed(digest))? {
            Taken::Away { bytes } => {
                tracing::debug!(%digest, bytes, "unlinked blob removed");
                lock(&self.noted).remove(digest);
                found.removed.add(bytes);
            }
            Taken::Leased => found.leased.add(bytes),
            Taken::Needed | Taken::Absent => {}
        }
        Ok(())
    }

    /// Since when the blob is known to be unlinked; `None` when no more can be noted.
    fn note(&self, digest: &Digest, pass: u64, now: Instant) -> Option<Instant> {
        let mut noted = lock(&self.noted);
        if let Some(known) = noted.get_mut(digest) {
            known.pass = pass;
            return Some(known.since);
        }
        if noted.len() >= NOTED_MAX {
            return None;
        }
        noted.insert(*digest, Noted { since: now, pass });
        bounds::note("unlinked blobs", noted.len(), NOTED_MAX);
        Some(now)
    }

    /// Whether the bytes of the blob are needed: any repository names it, or nobody can tell.
    fn is_needed(&self, digest: &Digest) -> Result<bool, CollectError> {
        let before = self.index.whole();
        let is_named = self.index.is_named(digest)?;
        let was_whole = before.is_some() && before == self.index.whole();
        // An index that was lost is whole before anything is applied to it.
        Ok(is_named || !was_whole || self.index.applied() == Offset::ZERO)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("grace", &self.shared.grace).finish_non_exhaustive()
    }
}

/// Why a pass did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// Another one is under way.
    #[error("a pass is under way already")]
    UnderWay,
    /// The index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its thread was lost.
    #[error("the pass crashed: {0}")]
    Crashed(String),
}

#[cfg(test)]
mod tests;
