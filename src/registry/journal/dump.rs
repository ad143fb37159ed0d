//! The whole state as a bounded stream, for a site that takes a snapshot.

use std::{io, sync::Arc};

use outport_proto::{Offset, snapshot::Entry};
use tokio::sync::mpsc;

use super::{JournalError, Shared};
use crate::blocking;

/// Size of a part, about.
pub(super) const PART_BYTES: usize = 1024 * 1024;
/// Parts read ahead of a slow consumer.
const PIECES_MAX: usize = 4;

/// Part of a snapshot, in the order of the answers to a `Snapshot` request.
#[derive(Clone, Debug, PartialEq)]
pub enum SnapshotPiece {
    /// It begins.
    Begin {
        /// Events after this one must be applied on top.
        from: Offset,
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

pub(super) fn start(shared: &Arc<Shared>) -> SnapshotPieces {
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    let shared = Arc::clone(shared);
    blocking::spawn(move || {
        if let Err(error) = dump(&shared, &sender) {
            // Nobody is there to hear it when the consumer is gone.
            let _ = blocking::send(&sender, Err(error));
        }
    });
    SnapshotPieces { pieces }
}

fn dump(
    shared: &Shared,
    sender: &mpsc::Sender<Result<SnapshotPiece, JournalError>>,
) -> Result<(), JournalError> {
    let send =
        |piece| blocking::send(sender, Ok(piece)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe));
    // Earlier than where the walk itself begins at most, which is as right.
    send(SnapshotPiece::Begin { from: shared.index.applied() })?;
    let mut entries = 0;
    let (_, until) = shared.index.dump(PART_BYTES, &mut |part| {
        entries += part.len() as u64;
        send(SnapshotPiece::Part(part))
    })?;
    Ok(send(SnapshotPiece::End { until, entries })?)
}
