//! Replacing everything by a snapshot of another site.
//!
//! The parts are collected in a snapshot file first. Once that is whole and durable the log
//! begins anew behind it, and only then is the index emptied and loaded. A crash before the log
//! was reset leaves the old state; after it, the index does not belong to the log any more and
//! is rebuilt from the file at the next start.

use std::sync::{Arc, atomic::Ordering};

use outport_proto::{Offset, snapshot::Entry};

use super::{JournalError, Shared, joined, lock, recover, snapshots::SnapshotWriter};
use crate::blocking;

/// A snapshot being taken in; dropped unfinished, everything stays as it was.
#[derive(Debug)]
pub struct Installation {
    shared: Arc<Shared>,
    from: Offset,
    writer: SnapshotWriter,
    /// Which of the journal's installations this is.
    number: u64,
}

impl Installation {
    pub(super) async fn begin(
        shared: Arc<Shared>,
        from: Offset,
        log_bytes: u64,
    ) -> Result<Self, JournalError> {
        let beginning = blocking::spawn(move || {
            let number = shared.installations.fetch_add(1, Ordering::Relaxed) + 1;
            let writer = shared.snapshots.create(from, log_bytes)?;
            Ok(Self { shared, from, writer, number })
        });
        joined(beginning).await
    }

    /// Takes in some entries.
    ///
    /// # Errors
    /// When they cannot be written; the installation is over then.
    pub async fn part(mut self, entries: Vec<Entry>) -> Result<Self, JournalError> {
        let writing = blocking::spawn(move || {
            self.writer.part(&entries)?;
            Ok(self)
        });
        joined(writing).await
    }

    /// The snapshot is whole: replaces log and index. Returns where the log begins now, after
    /// which events are to be asked for.
    ///
    /// # Errors
    /// [`JournalError::Incomplete`] when `entries` did not all come, [`JournalError::Superseded`]
    /// when another one began since; otherwise when the disk fails: then the snapshot has to be
    /// taken again.
    pub async fn finish(self, until: Offset, entries: u64) -> Result<Offset, JournalError> {
        let found = self.writer.entries();
        if found != entries {
            return Err(JournalError::Incomplete { found, expected: entries });
        }
        joined(blocking::drive(self.replace(until))).await
    }

    async fn replace(self, until: Offset) -> Result<Offset, JournalError> {
        let Self { shared, from, writer, number } = self;
        let (name, taken) = writer.finish(until)?;
        let _applying = shared.applying.lock().await;
        // Whoever began this one may be gone, and the log may have moved on from a newer one.
        if shared.installations.load(Ordering::Relaxed) != number {
            return Err(JournalError::Superseded);
        }
        *lock(&shared.whole_at) = until.max(from);
        shared.log.reset(from, taken.log_bytes).await?;
        shared.index.clear()?;
        recover::load(&shared.index, &shared.snapshots, &name)?;
        shared.index.checkpoint()?;
        shared.snapshots.prune(|from| shared.log.contains(from))?;
        tracing::info!(%from, %until, entries = taken.entries, "snapshot installed");
        Ok(from)
    }
}
