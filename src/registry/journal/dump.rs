//! The whole state as a bounded stream, for a site that takes a snapshot.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use outport_proto::{
    Offset,
    snapshot::{Entry, EntryKey, SnapshotPlace},
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{JournalError, Shared};
use crate::blocking;

/// Size of a part, about.
pub(super) const PART_BYTES: usize = 1024 * 1024;
/// Parts read ahead of a slow consumer.
const PIECES_MAX: usize = 4;
/// Snapshots that are handed out at once at most.
pub(super) const SNAPSHOTS_MAX: usize = 16;

/// Part of a snapshot, in the order of the answers to a `Snapshot` request.
#[derive(Clone, Debug, PartialEq)]
pub enum SnapshotPiece {
    /// It begins.
    Begin {
        /// Events after this one must be applied on top.
        from: Offset,
        /// It goes on where one that began there was cut off.
        resumed: bool,
    },
    /// Some entries.
    Part(Vec<Entry>),
    /// It is whole.
    End {
        /// The state is consistent once events up to here are applied.
        until: Offset,
        /// How many entries there were.
        entries: u64,
    },
}

/// The pieces of a snapshot. Without an [`SnapshotPiece::End`] it is not one.
#[derive(Debug)]
pub struct SnapshotPieces {
    pieces: mpsc::Receiver<Result<SnapshotPiece, JournalError>>,
}

impl SnapshotPieces {
    /// The next piece; `None` after the end or an error.
    pub async fn next(&mut self) -> Option<Result<SnapshotPiece, JournalError>> {
        self.pieces.recv().await
    }
}

pub(super) fn start(shared: &Arc<Shared>, resume: Option<SnapshotPlace>) -> SnapshotPieces {
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    match Arc::clone(&shared.snapshots_under_way).try_acquire_owned() {
        Ok(permit) => {
            let shared = Arc::clone(shared);
            blocking::spawn(move || {
                if let Err(error) = dump(&shared, resume, &sender, &permit) {
                    // Nobody is there to hear it when the consumer is gone.
                    let _ = blocking::send(&sender, Err(error));
                }
            });
        }
        // The channel is empty and its other end is here.
        Err(_) => _ = sender.try_send(Err(JournalError::Busy)),
    }
    SnapshotPieces { pieces }
}

fn dump(
    shared: &Arc<Shared>,
    resume: Option<SnapshotPlace>,
    sender: &mpsc::Sender<Result<SnapshotPiece, JournalError>>,
    _permit: &OwnedSemaphorePermit,
) -> Result<(), JournalError> {
    let whole = shared.index.whole().ok_or(JournalError::NotWhole)?;
    // A site that relays may take a snapshot itself: what was walked before is of another state.
    let is_whole = || shared.index.whole() == Some(whole);
    let send =
        |piece| blocking::send(sender, Ok(piece)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe));
    // What the site has was walked then, and every event since must still be there for it.
    let is_good = |place: &SnapshotPlace| {
        place.from.epoch == shared.log.head().epoch && shared.log.contains(place.from)
    };
    // Earlier than where the walk itself begins at most, which is as right.
    let beginning = resume.as_ref().map_or_else(|| shared.index.applied(), |place| place.from);
    let mut hold = shared.holds.hold(beginning);
    let (from, after): (Offset, Option<EntryKey>) = match resume {
        Some(place) if is_good(&place) => (place.from, Some(place.after)),
        Some(_) => {
            let from = shared.index.applied();
            hold = shared.holds.hold(from);
            (from, None)
        }
        None => (beginning, None),
    };
    send(SnapshotPiece::Begin { from, resumed: after.is_some() })?;
    let mut entries = 0;
    let dumped = shared.index.dump_after(after.as_ref(), PART_BYTES, &mut |part| {
        if !is_whole() {
            return Err(io::Error::other("the index was replaced"));
        }
        entries += part.len() as u64;
        send(SnapshotPiece::Part(part))
    });
    if !is_whole() {
        return Err(JournalError::NotWhole);
    }
    let (_, until) = dumped?;
    if after.is_none() {
        shared.snapshot_entries.store(entries, Ordering::Relaxed);
    }
    send(SnapshotPiece::End { until, entries })?;
    drop(hold);
    Ok(())
}
