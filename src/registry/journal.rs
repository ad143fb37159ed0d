//! Where the log and its view meet: what is durable is applied, in order and once.
//!
//! ```text
//! commit ──► log (fsync) ──watch──► applier ──► index ──watch──► commit returns
//! replicate ─┘                                    │
//!                                    keeper: checkpoints, snapshots; verify: walks
//! ```
//!
//! The log is the truth. An index that cannot be placed in it is emptied and rebuilt from the
//! newest whole snapshot file and the events behind it. An index found damaged while running is
//! not repaired under its readers: the journal fails ([`Journal::failure`]), the process is
//! expected to end, and the next start sets the index aside and rebuilds it. A log that could not
//! be made durable fails it too: nothing more is taken in, and all that is shown was durable before.

mod applier;
mod dump;
mod holds;
mod install;
mod keeper;
mod metrics;
mod recover;
mod snapshots;
#[cfg(test)]
mod tests;
mod verify;
mod waits;

use crate::watch;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use outport_proto::{Change, Offset, snapshot::SnapshotPlace};
use tokio::sync::Semaphore;

use self::{
    dump::SNAPSHOTS_MAX,
    holds::Holds,
    snapshots::{SnapshotError, Snapshots},
};
pub use self::{
    dump::{SnapshotPiece, SnapshotPieces},
    install::Installation,
    metrics::JournalCollector,
    verify::VerifyOptions,
    waits::Behind,
};
use crate::{
    blocking,
    clock::SharedClock,
    index::{Index, IndexError, IndexOptions, Opened},
    log::{
        Cause, Log, LogError, LogOptions, Record, Retention,
        disk::{OsDisk, SharedDisk},
        set_aside,
    },
    shutdown::Shutdown,
};

/// Log and index as one. Cloning gives another handle to the same journal.
#[derive(Clone, Debug)]
pub struct Journal {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    log: Log,
    index: Index,
    snapshots: Snapshots,
    /// What somebody should look into.
    alarm: Option<String>,
    options: JournalOptions,
    condition: watch::Sender<Condition>,
    /// Held while events are applied, and while a snapshot replaces them all.
    applying: tokio::sync::Mutex<()>,
    /// Held while the file of a snapshot that is taken in is written to.
    installing: Arc<tokio::sync::Mutex<()>>,
    /// What the log keeps for sites that take a snapshot.
    holds: Arc<Holds>,
    snapshots_under_way: Arc<Semaphore>,
    /// Entries that the newest snapshot had.
    snapshot_entries: AtomicU64,
    /// Snapshots that began to be taken in; only the last of them may replace anything.
    installations: AtomicU64,
}

/// How a journal is kept.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// How its log is kept.
    pub log: LogOptions,
    /// How its index is kept.
    pub index: IndexOptions,
    /// Whose events these are.
    pub origin: Origin,
    /// Whether they are all that were ever acknowledged.
    pub history: History,
    /// Events applied after which the index is made durable.
    pub checkpoint_events: u64,
    /// Time after which it is, if anything was applied.
    pub checkpoint_interval: Duration,
    /// How much of the log is kept.
    pub retention: Retention,
    /// Whoever follows from further behind than this many events is better off with a snapshot,
    /// unless that has more entries.
    pub tail_events_max: u64,
    /// How long tombstones are kept at least.
    pub tombstone_age: Duration,
    /// Bytes of log after which a new snapshot file is written.
    pub snapshot_log_bytes: u64,
    /// How the index is walked in the background.
    pub verify: VerifyOptions,
}

/// Whether a journal that makes its own events has all that it ever acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum History {
    /// It goes on where it was.
    #[default]
    Continues,
    /// It comes out of a backup, and went on behind it in a way that nobody has to believe any
    /// more: a new epoch begins, and the index is built anew from the log.
    Restored,
}

/// Whose events a journal holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Its own: nobody else has them for sure.
    Own,
    /// Another site's: a journal that cannot be rebuilt begins empty and follows anew.
    Followed,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            log: LogOptions::default(),
            index: IndexOptions { hot_bytes_max: 8 * 1024 * 1024, cache_bytes_max: 16 * 1024 * 1024 },
            origin: Origin::Own,
            history: History::Continues,
            checkpoint_events: 10_000,
            checkpoint_interval: Duration::from_secs(30),
            retention: Retention::UNLIMITED,
            tail_events_max: 1_000_000,
            tombstone_age: Duration::from_secs(30 * 24 * 3600),
            snapshot_log_bytes: 64 * 1024 * 1024,
            verify: VerifyOptions::default(),
        }
    }
}

/// Whether what is durable gets applied.
#[derive(Clone, Debug)]
enum Condition {
    Applying,
    /// The database refuses; it is tried again.
    Stalled(IndexError),
    /// Nothing is applied any more.
    Ended(JournalError),
}

impl Condition {
    /// Why nothing is applied any more, unless that is what was asked for.
    const fn failure(&self) -> Option<&JournalError> {
        match self {
            Self::Ended(JournalError::Closed) | Self::Applying | Self::Stalled(_) => None,
            Self::Ended(error) => Some(error),
        }
    }
}

impl Journal {
    /// Opens or creates the journal below `dir` (`log/`, `index/`, `snapshots/`), brings its
    /// index up to the log's head and starts its tasks in `shutdown`: told to stop, they apply
    /// what is durable and close the index.
    ///
    /// # Errors
    /// When the log is damaged, or nothing leads to its state any more.
    pub async fn open(
        dir: &Path,
        options: JournalOptions,
        clock: SharedClock,
        shutdown: &Shutdown,
    ) -> Result<Self, JournalError> {
        let dir = dir.to_owned();
        let opening = blocking::drive(async move {
            let damage = match Self::open_in(&dir, &options, &clock, None).await {
                Err(JournalError::Log(damage @ LogError::Corrupt { .. })) => damage,
                opened => return opened,
            };
            if options.origin == Origin::Own {
                return Err(JournalError::Damaged(damage));
            }
            let kept = set_aside(&dir.join("log")).map_err(SnapshotError::from)?;
            tracing::error!(%damage, kept = %kept.display(), "the log is damaged: it was set aside and is fetched again");
            Self::open_in(&dir, &options, &clock, Some(damage)).await
        });
        Ok(joined(opening).await?.start(shutdown))
    }

    /// Opens what is in `dir`; `damage` is why the log that was there is not any more.
    async fn open_in(
        dir: &Path,
        options: &JournalOptions,
        clock: &SharedClock,
        damage: Option<LogError>,
    ) -> Result<Self, JournalError> {
        let (log, _) = Log::open(&dir.join("log"), options.log.clone(), Arc::clone(clock))?;
        let snapshots = OsDisk::open(&dir.join("snapshots")).map_err(SnapshotError::from)?;
        let (index, opened) = Index::open(&dir.join("index"), options.index.clone())?;
        Self::recover(log, index, opened, snapshots, options.clone(), damage).await
    }

    /// [`Journal::open`] over parts that are open already; for tests and simulations.
    ///
    /// # Errors
    /// Those of [`Journal::open`].
    pub async fn over(
        log: Log,
        (index, opened): (Index, Opened),
        snapshots: SharedDisk,
        options: JournalOptions,
        shutdown: &Shutdown,
    ) -> Result<Self, JournalError> {
        let opening = blocking::drive(Self::recover(log, index, opened, snapshots, options, None));
        Ok(joined(opening).await?.start(shutdown))
    }

    async fn recover(
        log: Log,
        index: Index,
        opened: Opened,
        snapshots: SharedDisk,
        options: JournalOptions,
        damage: Option<LogError>,
    ) -> Result<Self, JournalError> {
        let snapshots = Snapshots::open(snapshots).map_err(SnapshotError::from)?;
        let opened = match options.history {
            History::Continues => opened,
            History::Restored => recover::begin_epoch(&log, &index, opened, &snapshots).await?,
        };
        let missed = match (&damage, &opened) {
            (Some(_), Opened::Ready(at)) => recover::begin_log_at(&log, *at, &snapshots).await?,
            _ => Offset::ZERO,
        };
        let whole_at = recover::bring_up(&log, &index, opened, &snapshots, options.origin).await?.max(missed);
        index.whole_from(whole_at);
        let snapshot_entries = snapshots.newest().map_or(0, |taken| taken.entries);
        let shared = Shared {
            log,
            index,
            snapshots,
            alarm: damage.map(|damage| format!("the log was set aside and is fetched again: {damage}")),
            options,
            condition: watch::Sender::new(Condition::Applying),
            applying: tokio::sync::Mutex::new(()),
            installing: Arc::default(),
            holds: Arc::default(),
            snapshots_under_way: Arc::new(Semaphore::new(SNAPSHOTS_MAX)),
            snapshot_entries: AtomicU64::new(snapshot_entries),
            installations: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    fn start(self, shutdown: &Shutdown) -> Self {
        keeper::start(Arc::clone(&self.shared), shutdown);
        self
    }

    /// Appends what happened; resolves once it is durable and every read through
    /// [`Journal::index`] sees it, with the offset of the last of `changes`.
    ///
    /// # Errors
    /// When it is not durable, or not applied: then it may become visible later.
    pub async fn commit(
        &self,
        cause: impl Into<Cause>,
        changes: Vec<Change>,
    ) -> Result<Offset, JournalError> {
        if let Condition::Ended(error) = &*self.shared.condition.borrow() {
            return Err(error.clone());
        }
        let offset = self.shared.log.append(cause, changes).await?;
        self.applied_or_stuck(offset).await?;
        Ok(offset)
    }

    /// Takes in events another log numbered; resolves once they are durable, with the log's head.
    /// They are applied soon after. Events that are here already are skipped.
    ///
    /// # Errors
    /// [`LogError::Gap`] inside when they do not follow the head.
    pub async fn replicate(&self, records: Vec<Record>) -> Result<Offset, JournalError> {
        let mut head = self.shared.log.head();
        for part in self.shared.log.in_parts(records) {
            self.room_for(&part).await;
            head = self.shared.log.append_replicated(part).await?;
        }
        Ok(head)
    }

    /// Resolves once `records` leave in memory what is to be applied before them: whoever sends events
    /// faster than they are applied waits, instead of having them read from the disk again.
    async fn room_for(&self, records: &[Record]) {
        let mut applied = self.watch_applied();
        let mut condition = self.shared.condition.subscribe();
        loop {
            let at = *applied.borrow_and_update();
            if self.shared.log.has_room(at, records) {
                return;
            }
            tokio::select! {
                biased;
                moved = applied.changed() => if moved.is_err() { return },
                _ = condition.wait_for(|condition| !matches!(condition, Condition::Applying)) => return,
            }
        }
    }

    /// The log.
    pub fn log(&self) -> &Log {
        &self.shared.log
    }

    /// The index. The handle stays good for as long as the journal is open.
    pub fn index(&self) -> &Index {
        &self.shared.index
    }

    /// Newest event the index shows.
    pub fn applied(&self) -> Offset {
        self.shared.index.applied()
    }

    /// Follows [`Journal::applied`].
    pub fn watch_applied(&self) -> watch::Receiver<Offset> {
        self.shared.index.watch()
    }

    /// Whether the index shows a state that the log led to. It does not while a snapshot is
    /// being loaded and until the events it was overtaken by are applied.
    pub fn is_whole(&self) -> bool {
        self.shared.index.whole().is_some()
    }

    /// How much of the log is kept.
    pub fn retention(&self) -> Retention {
        self.shared.options.retention
    }

    /// What was found at the start that somebody should look into.
    pub fn alarm(&self) -> Option<&str> {
        self.shared.alarm.as_deref()
    }

    /// Events that whoever follows may be behind: from further behind a snapshot costs less.
    pub fn tail_events_max(&self) -> u64 {
        let entries = self.shared.snapshot_entries.load(Ordering::Relaxed);
        self.shared.options.tail_events_max.max(entries)
    }

    /// Resolves when the journal can no longer do its work, and only a new start helps: a damaged
    /// index, which that rebuilds; or a log of which it is not known what is on the disk
    /// ([`JournalError::Log`]), which that reads again. Never resolves otherwise.
    pub async fn failure(&self) -> JournalError {
        let mut condition = self.shared.condition.subscribe();
        let ended = async {
            match condition.wait_for(|condition| condition.failure().is_some()).await {
                Ok(condition) => condition.failure().cloned(),
                Err(_) => None,
            }
        };
        tokio::select! {
            biased;
            Some(error) = ended => error,
            stopped = self.shared.log.failure() => stopped.into(),
        }
    }

    /// What [`Journal::failure`] resolves with, if it does.
    pub fn failed(&self) -> Option<JournalError> {
        let ended = self.shared.condition.borrow().failure().cloned();
        ended.or_else(|| self.shared.log.stopped().map(JournalError::from))
    }

    /// Walks the whole state for a site that cannot follow the log from where it is, or the rest of
    /// it behind the place where that was cut off, if the log still has every event since. A
    /// consumer that stops taking pieces ends it; the log is held for it meanwhile.
    pub fn snapshot(&self, resume: Option<SnapshotPlace>) -> SnapshotPieces {
        dump::start(&self.shared, resume)
    }

    /// Begins to replace everything here by a snapshot that was taken after event `from`;
    /// `log_bytes` is the length of the log it was taken from up to there, 0 if unknown.
    ///
    /// # Errors
    /// When the file it is collected in cannot be written.
    pub async fn install_snapshot(&self, from: Offset, log_bytes: u64) -> Result<Installation, JournalError> {
        Installation::begin(Arc::clone(&self.shared), from, log_bytes).await
    }

    /// Goes on with a snapshot whose taking was cut off, if there is one: see [`Installation::place`].
    ///
    /// # Errors
    /// When the file it is collected in cannot be read.
    pub async fn resume_snapshot(&self) -> Result<Option<Installation>, JournalError> {
        Installation::resume(Arc::clone(&self.shared)).await
    }

    /// Forgets a snapshot whose taking was cut off.
    ///
    /// # Errors
    /// When the file it was collected in cannot be removed.
    pub async fn forget_snapshot(&self) -> Result<(), JournalError> {
        Installation::forget(Arc::clone(&self.shared)).await
    }
}

/// The outcome of work on a blocking thread.
async fn joined<T>(work: tokio::task::JoinHandle<Result<T, JournalError>>) -> Result<T, JournalError> {
    work.await.unwrap_or_else(|error| Err(JournalError::Panicked(error.to_string())))
}

/// Why the journal did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JournalError {
    /// The log refused.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log of a site that makes its own events is damaged: nobody else has them for sure.
    #[error(
        "the log is damaged, and no other site's copy of it counts ({0}): put back the data directory of \
         a backup and start once with --restored"
    )]
    Damaged(LogError),
    /// The index refused.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A snapshot file could not be written or read.
    #[error("{0}")]
    Snapshot(String),
    /// A snapshot ended with another number of entries than it had.
    #[error("the snapshot has {found} entries and should have {expected}")]
    Incomplete {
        /// Entries taken in.
        found: u64,
        /// Entries announced.
        expected: u64,
    },
    /// As many snapshots are handed out as may be at once.
    #[error("too many snapshots are being handed out")]
    Busy,
    /// The index is being replaced by a snapshot, or was while it was read.
    #[error("the index is being replaced by a snapshot")]
    NotWhole,
    /// A snapshot that began later replaces everything instead.
    #[error("a newer snapshot is being taken")]
    Superseded,
    /// The index is lost, and no snapshot file leads to where the log begins.
    #[error("the log begins after {floor} and no snapshot leads there")]
    Unreachable {
        /// Where the log begins.
        floor: Offset,
    },
    /// The journal was shut down.
    #[error("the journal is closed")]
    Closed,
    /// A bug in Outport.
    #[error("internal error: {0}")]
    Panicked(String),
}

impl From<SnapshotError> for JournalError {
    fn from(error: SnapshotError) -> Self {
        Self::Snapshot(error.to_string())
    }
}
