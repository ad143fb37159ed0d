//! Replacing everything by a snapshot of another site.
//!
//! The parts are collected in a file first. Cut off, by the network or by the end of the process,
//! it stays: the next installation may go on behind the last part that is whole. Once the file is
//! whole and durable the log begins anew behind it, and only then is the index emptied and loaded.
//! A crash before the log was reset leaves the old state; after it, the index does not belong to
//! the log any more and is rebuilt from the file at the next start.

use std::sync::{Arc, atomic::Ordering};

use outport_proto::{
    Offset,
    snapshot::{Entry, SnapshotPlace},
};

use super::{JournalError, Shared, joined, recover, snapshots::SnapshotWriter};
use crate::{
    blocking,
    planted::{Bug, is_planted},
};

/// A snapshot being taken in. Dropped unfinished, everything stays as it was, and another one
/// may go on where it was.
#[derive(Debug)]
pub struct Installation {
    shared: Arc<Shared>,
    writer: SnapshotWriter,
    /// Entries it had when it began or went on.
    had: u64,
    /// Which of the journal's installations this is.
    number: u64,
}

impl Installation {
    /// Begins one, whatever is left of others.
    pub(super) async fn begin(
        shared: Arc<Shared>,
        from: Offset,
        log_bytes: u64,
    ) -> Result<Self, JournalError> {
        let files = Arc::clone(&shared.installing).lock_owned().await;
        let beginning = blocking::spawn(move || {
            let _files = files;
            let number = shared.installations.fetch_add(1, Ordering::Relaxed) + 1;
            let writer = shared.snapshots.receive(from, log_bytes)?;
            Ok(Self { shared, writer, had: 0, number })
        });
        joined(beginning).await
    }

    /// Goes on with what is left of one that was cut off.
    pub(super) async fn resume(shared: Arc<Shared>) -> Result<Option<Self>, JournalError> {
        let files = Arc::clone(&shared.installing).lock_owned().await;
        let resuming = blocking::spawn(move || {
            let _files = files;
            let number = shared.installations.fetch_add(1, Ordering::Relaxed) + 1;
            let writer = shared.snapshots.resume()?;
            Ok(writer.map(|writer| Self { had: writer.entries(), shared, writer, number }))
        });
        joined(resuming).await
    }

    /// Forgets what is left of one: the log alone leads on.
    pub(super) async fn forget(shared: Arc<Shared>) -> Result<(), JournalError> {
        let files = Arc::clone(&shared.installing).lock_owned().await;
        let forgetting = blocking::spawn(move || {
            let _files = files;
            shared.installations.fetch_add(1, Ordering::Relaxed);
            Ok(shared.snapshots.forget_received()?)
        });
        joined(forgetting).await
    }

    /// Where the rest of it is to be asked for; `None` while there is nothing to go on from.
    pub fn place(&self) -> Option<SnapshotPlace> {
        let after = self.writer.last().cloned()?;
        Some(SnapshotPlace { from: self.writer.from(), after })
    }

    /// Entries that are here.
    pub fn entries(&self) -> u64 {
        self.writer.entries()
    }

    /// Takes in some entries.
    ///
    /// # Errors
    /// When they cannot be written, or another one began since; the installation is over then.
    pub async fn part(mut self, entries: Vec<Entry>) -> Result<Self, JournalError> {
        let files = Arc::clone(&self.shared.installing).lock_owned().await;
        let writing = blocking::spawn(move || {
            let _files = files;
            self.is_newest()?;
            self.writer.part(&entries)?;
            Ok(self)
        });
        joined(writing).await
    }

    /// The snapshot is whole: replaces log and index. `entries` came since it began or went on.
    /// Returns where the log begins now, after which events are to be asked for.
    ///
    /// # Errors
    /// [`JournalError::Incomplete`] when `entries` did not all come, [`JournalError::Superseded`]
    /// when another one began since; otherwise when the disk fails: then the snapshot has to be
    /// taken again.
    pub async fn finish(self, until: Offset, entries: u64) -> Result<Offset, JournalError> {
        let found = self.writer.entries() - self.had;
        if found != entries {
            // Nothing says which ones are missing.
            Self::forget(self.shared).await?;
            return Err(JournalError::Incomplete { found, expected: entries });
        }
        joined(blocking::drive(self.replace(until))).await
    }

    fn is_newest(&self) -> Result<(), JournalError> {
        // Whoever began this one may be gone, and the log may have moved on from a newer one.
        let newest = self.shared.installations.load(Ordering::Relaxed) == self.number;
        if newest { Ok(()) } else { Err(JournalError::Superseded) }
    }

    async fn replace(self, until: Offset) -> Result<Offset, JournalError> {
        let _files = Arc::clone(&self.shared.installing).lock_owned().await;
        self.is_newest()?;
        let Self { shared, writer, .. } = self;
        let (name, taken) = writer.finish(until)?;
        let from = taken.from;
        let _applying = shared.applying.lock().await;
        shared.log.reset(from, taken.log_bytes).await?;
        let applied = shared.index.applied();
        if applied.epoch == from.epoch || !is_planted(Bug::ForgetEpochAtReconnect) {
            shared.index.clear()?;
        }
        recover::load(&shared.index, &shared.snapshots, &name)?;
        shared.index.whole_from(until.max(from));
        shared.index.checkpoint()?;
        shared.snapshots.prune(|from| shared.log.contains(from))?;
        tracing::info!(%from, %until, entries = taken.entries, "snapshot installed");
        Ok(from)
    }
}
