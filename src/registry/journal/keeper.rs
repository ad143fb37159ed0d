//! Owns the applier, makes the index durable now and then, writes snapshot files, and closes
//! everything in order.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use outport_proto::{Offset, snapshot::Entry};
use tokio::time::{Instant, MissedTickBehavior};

use super::{Condition, JournalError, Shared, applier, dump::PART_BYTES, joined, verify};
use crate::{blocking, shutdown::Shutdown};

/// How often it looks whether anything is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long it rests after the log could not be cut.
const CUT_RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// How often old tombstones are looked for.
const FORGET_INTERVAL: Duration = Duration::from_secs(3600);

/// Starts the journal's tasks in `shutdown`.
pub(super) fn start(shared: Arc<Shared>, shutdown: &Shutdown) {
    let stop = shutdown.clone();
    // A runtime that is dropped waits for its blocking threads: they must end with this task too.
    let applying = shutdown.token().child_token();
    let end_applier = applying.clone().drop_guard();
    // The group waits for it; nobody else has to.
    drop(shutdown.spawn(async move {
        let applier = {
            let shared = Arc::clone(&shared);
            blocking::drive(async move { applier::run(&shared, &applying).await })
        };
        let applier = async {
            let ended = applier.await.unwrap_or_else(|error| JournalError::Panicked(error.to_string()));
            shared.condition.send_replace(Condition::Ended(ended));
        };
        tokio::join!(applier, verify::run(&shared, &stop), async {
            Keeper::new(&shared).run(&stop).await;
            drop(end_applier);
        });
        let closing = {
            let shared = Arc::clone(&shared);
            blocking::spawn(move || Ok(shared.index.close()?))
        };
        match joined(closing).await {
            Ok(applied) => tracing::info!(%applied, "journal closed"),
            Err(error) => tracing::warn!(%error, "the index was not closed cleanly"),
        }
    }));
}

struct Keeper {
    shared: Arc<Shared>,
    checkpoint: (Offset, Instant),
    checkpoint_failed: bool,
    /// Length of the log at the newest snapshot file.
    snapshot_log_bytes: u64,
    /// When the log is looked at for what it need not keep.
    cut_at: Instant,
    /// When old tombstones are looked for.
    forget_at: Instant,
}

impl Keeper {
    fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            checkpoint: (Offset::ZERO, Instant::now()),
            checkpoint_failed: false,
            snapshot_log_bytes: newest_snapshot_log_bytes(shared),
            cut_at: Instant::now(),
            forget_at: Instant::now(),
        }
    }

    async fn run(mut self, stop: &Shutdown) {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.requested() => return,
                _ = look.tick() => self.look().await,
            }
        }
    }

    async fn look(&mut self) {
        let (last, at) = self.checkpoint;
        let settled = self.shared.index.settled();
        let shared = Arc::clone(&self.shared);
        let options = &shared.options;
        let due = settled.seq.abs_diff(last.seq) >= options.checkpoint_events
            || (settled != last && at.elapsed() >= options.checkpoint_interval);
        if due && !self.checkpoint_failed {
            self.checkpoint().await;
        }
        // The log began anew, with a snapshot file of its own.
        self.snapshot_log_bytes = self.snapshot_log_bytes.min(self.shared.log.bytes());
        let has_grown =
            shared.log.bytes() >= self.snapshot_log_bytes.saturating_add(options.snapshot_log_bytes);
        // A walk through what is kept above the database would slow the catching up down.
        if has_grown && !shared.index.is_deferring() {
            self.snapshot().await;
        }
        if self.cut_at <= Instant::now() && shared.log.expired(&options.retention).is_some() {
            self.cut().await;
        }
        if self.forget_at <= Instant::now() {
            self.forget_at = Instant::now() + FORGET_INTERVAL;
            match joined(blocking::spawn(move || forget_tombstones(&shared))).await {
                Ok(0) => {}
                Ok(forgotten) => tracing::info!(forgotten, "old tombstones removed"),
                Err(error) => tracing::warn!(%error, "old tombstones are not removed"),
            }
        }
    }

    async fn cut(&mut self) {
        let shared = Arc::clone(&self.shared);
        match joined(blocking::drive(async move { cut_expired(&shared).await })).await {
            Ok(Some(floor)) => tracing::info!(%floor, "old segments of the log removed"),
            Ok(None) => self.cut_at = Instant::now() + CUT_RETRY_INTERVAL,
            Err(error) => {
                self.cut_at = Instant::now() + CUT_RETRY_INTERVAL;
                tracing::warn!(%error, "old segments of the log are not removed");
            }
        }
    }

    async fn checkpoint(&mut self) {
        let shared = Arc::clone(&self.shared);
        let outcome = blocking::spawn(move || Ok(shared.index.checkpoint()?));
        match joined(outcome).await {
            Ok(applied) => self.checkpoint = (applied, Instant::now()),
            Err(error) => {
                // The index refuses from here on; the log has everything all the same.
                self.checkpoint_failed = true;
                tracing::warn!(%error, "checkpoint of the index failed: the next start rebuilds it");
            }
        }
    }

    async fn snapshot(&mut self) {
        // Also after a failure: the next try comes when the log has grown again.
        self.snapshot_log_bytes = self.shared.log.bytes();
        let shared = Arc::clone(&self.shared);
        match joined(blocking::spawn(move || write_snapshot(&shared))).await {
            Ok((from, entries)) => tracing::info!(%from, entries, "snapshot file written"),
            Err(error) => tracing::warn!(%error, "snapshot file not written"),
        }
    }
}

fn newest_snapshot_log_bytes(shared: &Shared) -> u64 {
    let Ok(found) = shared.snapshots.list() else { return 0 };
    let newest = found.into_iter().find(|(from, _)| shared.log.contains(*from));
    newest.and_then(|(_, name)| shared.snapshots.peek(&name).ok()).map_or(0, |taken| taken.log_bytes)
}

/// Removes the segments that are past the retention, once a snapshot file that is whole leads to
/// where the log begins then; writes one if there is none. Returns the new floor.
pub(super) async fn cut_expired(shared: &Shared) -> Result<Option<Offset>, JournalError> {
    let Some(expired) = shared.log.expired(&shared.options.retention) else { return Ok(None) };
    if shared.holds.lowest(Instant::now()).is_some_and(|held| held < expired) {
        return Ok(None);
    }
    if !is_covered(shared, expired)? {
        // What the index's database does not hold yet is read from the log once more.
        if shared.index.whole().is_none() || shared.index.settled() < expired {
            return Ok(None);
        }
        write_snapshot(shared)?;
        if !is_covered(shared, expired)? {
            return Ok(None);
        }
    }
    let floor = shared.log.cut(expired).await?;
    shared.snapshots.prune(|from| shared.log.contains(from))?;
    Ok(Some(floor))
}

/// Forgets what was deleted so long ago that nothing older can come any more: below the log's floor,
/// and longer ago than tombstones are kept. Returns how many tombstones went.
pub(super) fn forget_tombstones(shared: &Shared) -> Result<u64, JournalError> {
    let old = shared.index.place_before(shared.log.now(), shared.options.tombstone_age)?;
    let through = old.unwrap_or_default().min(shared.log.floor());
    if through == Offset::ZERO || shared.index.whole().is_none() || shared.index.applied() < through {
        return Ok(0);
    }
    Ok(shared.index.forget_tombstones(through)?)
}

/// Whether a snapshot file that is good to its last byte leads to `floor` or a later place.
fn is_covered(shared: &Shared, floor: Offset) -> Result<bool, JournalError> {
    let found = shared.snapshots.list()?;
    let mut usable = found.iter().filter(|(from, _)| *from >= floor && shared.log.contains(*from));
    Ok(usable.any(|(_, name)| shared.snapshots.verify(name).is_ok()))
}

/// Writes a snapshot file of what the index shows now, and removes those it replaces.
pub(super) fn write_snapshot(shared: &Shared) -> Result<(Offset, u64), JournalError> {
    let emptied = shared.index.emptied();
    let from = shared.index.applied();
    let mut writer = shared.snapshots.create(from, shared.log.bytes())?;
    let mut failed = None;
    let mut sink = |part: Vec<Entry>| {
        writer.part(&part).map_err(|error| {
            let told = std::io::Error::other(error.to_string());
            failed = Some(error);
            told
        })
    };
    let dumped = shared.index.dump(PART_BYTES, &mut sink);
    if let Some(error) = failed {
        return Err(error.into());
    }
    let (_, until) = dumped?;
    // While the index still catches up with a snapshot it was loaded from, so does its copy.
    let whole_at = shared.index.whole_at().filter(|_| shared.index.emptied() == emptied);
    let Some(whole_at) = whole_at.filter(|_| shared.log.contains(from)) else {
        return Err(JournalError::Snapshot("the log began anew meanwhile".to_owned()));
    };
    let until = until.max(whole_at);
    let (_, taken) = writer.finish(until)?;
    shared.snapshot_entries.store(taken.entries, Ordering::Relaxed);
    shared.snapshots.prune(|from| shared.log.contains(from))?;
    Ok((taken.from, taken.entries))
}
