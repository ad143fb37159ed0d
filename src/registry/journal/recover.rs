//! Bringing the index up to the log's head before anybody reads it.

use std::{io, sync::Arc};

use outport_proto::Offset;
use tokio::time::Instant;

use super::{
    JournalError, Origin,
    snapshots::{SnapshotError, Snapshots, Taken},
};
use crate::{
    index::{Index, Opened},
    log::Log,
};

/// Log read and applied at once while catching up.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Log that the database is brought nearer by in one step: what comes meanwhile waits as long.
const SETTLE_BYTES: usize = 128 * 1024;
/// From further behind than this, events are applied faster than the database takes them.
const DEFER_EVENTS: u64 = 1024;

/// Places the index in the log, rebuilding it if need be, and applies every event behind it.
/// Returns from where on what it shows is a state the log led to. Blocks.
pub(super) async fn bring_up(
    log: &Log,
    index: &Index,
    opened: Opened,
    snapshots: &Snapshots,
    origin: Origin,
) -> Result<Offset, JournalError> {
    let whole_at = match opened {
        Opened::Ready(at) if log.contains(at) => newest_until(snapshots, log, at),
        Opened::Ready(at) => {
            tracing::warn!(applied = %at, head = %log.head(), floor = %log.floor(), "the index does not belong to the log: rebuilding it");
            index.clear()?;
            rebuild(log, index, snapshots, origin).await?
        }
        Opened::Empty(reason) => {
            if log.head() != Offset::ZERO {
                tracing::info!(%reason, head = %log.head(), "building the index from the log");
            }
            rebuild(log, index, snapshots, origin).await?
        }
    };
    replay(log, index)?;
    Ok(whole_at)
}

/// Lets a log that is new begin where the index is: the one that led there is lost, and what follows
/// is to be had from elsewhere. Returns from where on the index shows a state that log led to.
pub(super) async fn begin_log_at(
    log: &Log,
    at: Offset,
    snapshots: &Snapshots,
) -> Result<Offset, JournalError> {
    if at == Offset::ZERO {
        return Ok(at);
    }
    // It may not have caught up yet with a snapshot it was loaded from.
    let mut whole_at = at;
    for (from, name) in snapshots.list().map_err(SnapshotError::from)? {
        if from <= at
            && let Ok(taken) = snapshots.peek(&name)
        {
            whole_at = whole_at.max(taken.until);
        }
    }
    log.reset(at, 0).await?;
    Ok(whole_at)
}

/// Begins a new epoch in a log that comes out of a backup. Its index was perhaps copied while it
/// was written to, so it is not used if there is another way.
pub(super) async fn begin_epoch(
    log: &Log,
    index: &Index,
    opened: Opened,
    snapshots: &Snapshots,
) -> Result<Opened, JournalError> {
    let fork = log.head();
    let first = log.begin_epoch("").await?;
    tracing::warn!(%fork, epoch = first.epoch, "a new epoch begins: sites drop what they have behind the fork");
    match opened {
        Opened::Ready(_) if can_rebuild(log, snapshots)? => {
            index.clear()?;
            Ok(Opened::Empty("the log was restored".to_owned()))
        }
        opened => Ok(opened),
    }
}

fn can_rebuild(log: &Log, snapshots: &Snapshots) -> Result<bool, JournalError> {
    if log.floor() == Offset::ZERO {
        return Ok(true);
    }
    let found = snapshots.list().map_err(SnapshotError::from)?;
    Ok(found.iter().any(|(from, name)| log.contains(*from) && snapshots.verify(name).is_ok()))
}

/// A site that was killed soon after it took a snapshot may not have caught up with it yet.
fn newest_until(snapshots: &Snapshots, log: &Log, applied: Offset) -> Offset {
    let Ok(found) = snapshots.list() else { return applied };
    let base = found.into_iter().find(|(from, _)| *from == log.floor() && *from != Offset::ZERO);
    base.and_then(|(_, name)| snapshots.peek(&name).ok()).map_or(applied, |taken| taken.until)
}

async fn rebuild(
    log: &Log,
    index: &Index,
    snapshots: &Snapshots,
    origin: Origin,
) -> Result<Offset, JournalError> {
    for (from, name) in snapshots.list().map_err(SnapshotError::from)? {
        if !log.contains(from) {
            continue;
        }
        match load(index, snapshots, &name) {
            Ok(taken) => {
                tracing::info!(from = %taken.from, entries = taken.entries, "snapshot loaded");
                return Ok(taken.until);
            }
            Err(JournalError::Snapshot(reason)) => {
                tracing::warn!(%reason, "snapshot not used");
            }
            Err(error) => return Err(error),
        }
    }
    let floor = log.floor();
    if floor == Offset::ZERO {
        return Ok(Offset::ZERO);
    }
    match origin {
        Origin::Own => Err(JournalError::Unreachable { floor }),
        Origin::Followed => {
            tracing::warn!(%floor, "the index is lost and no snapshot leads to the log: following anew");
            log.reset(Offset::ZERO, 0).await?;
            Ok(Offset::ZERO)
        }
    }
}

/// Loads a snapshot file into an empty index, if the whole file is good.
pub(super) fn load(index: &Index, snapshots: &Snapshots, name: &str) -> Result<Taken, JournalError> {
    let taken = snapshots.verify(name)?;
    snapshots.parts(name, |part| index.load(&part).map_err(JournalError::from))?;
    index.loaded(taken.from)?;
    Ok(taken)
}

fn replay(log: &Log, index: &Index) -> Result<(), JournalError> {
    let (start, from, head) = (Instant::now(), index.applied(), log.head());
    while apply_some(log, index, BATCH_BYTES)? {}
    if from.seq < head.seq {
        let seconds = start.elapsed().as_secs_f64();
        tracing::info!(%from, %head, events = head.seq - from.seq, seconds, "events replayed from the log");
    }
    Ok(())
}

/// Brings the index's database a step nearer to what is applied; returns whether it is still behind.
pub(super) fn settle_some(log: &Log, index: &Index) -> Result<bool, JournalError> {
    let records = log.read(index.settled(), SETTLE_BYTES)?;
    let events: Vec<_> = records.into_iter().map(|record| record.event).collect();
    index.settle(&events)?;
    Ok(index.is_deferring())
}

/// Applies the next events, about `bytes_max` bytes of them; returns whether there were any.
pub(super) fn apply_some(log: &Log, index: &Index, bytes_max: usize) -> Result<bool, JournalError> {
    if log.head().seq.saturating_sub(index.applied().seq) > DEFER_EVENTS {
        index.defer()?;
    }
    while index.is_full() {
        settle_some(log, index)?;
    }
    let records = log.read(index.applied(), bytes_max)?;
    if records.is_empty() {
        return Ok(false);
    }
    let events: Vec<_> = records.iter().map(|record| Arc::clone(&record.event)).collect();
    index.apply(&events)?;
    Ok(true)
}

impl From<io::Error> for JournalError {
    fn from(error: io::Error) -> Self {
        SnapshotError::from(error).into()
    }
}
