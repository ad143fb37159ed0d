//! The replication log: append-only, checksummed, chained segments on disk.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use outport_proto::{Change, Event, Offset};
use tokio::sync::watch;

use crate::clock::SharedClock;

/// The log. Cloning gives another handle to the same log.
#[derive(Clone, Debug)]
pub struct Log {}

/// One durable event, decoded and as it stands on disk and on the wire.
#[derive(Clone, Debug)]
pub struct Record {
    /// The event.
    pub event: Arc<Event>,
    /// `codec::encode_event` of it.
    pub encoded: Bytes,
}

/// How a log is kept.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// A segment is closed at this size in bytes.
    pub segment_bytes_max: u64,
    /// Newest records kept in memory for readers that keep up, in bytes.
    pub recent_bytes_max: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { segment_bytes_max: 64 * 1024 * 1024, recent_bytes_max: 8 * 1024 * 1024 }
    }
}

/// A record that was cut off by a crash while it was written: it was never acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The last whole event.
    pub after: Offset,
    /// Bytes removed behind it.
    pub bytes: u64,
}

impl Log {
    /// Opens or creates the log in `dir`, verifies its newest segment and cuts a torn tail.
    /// A new log begins in epoch 1.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] when anything but the tail is damaged.
    pub fn open(
        dir: &Path,
        options: LogOptions,
        clock: SharedClock,
    ) -> Result<(Self, Option<TornTail>), LogError> {
        todo!("{dir:?} {options:?} {}", clock.now().as_secs())
    }

    /// Appends what happened; resolves once it is durable, with the offset of the last of
    /// `changes`. Many concurrent appends share one fsync. All of `changes` are consecutive.
    ///
    /// # Errors
    /// When it is not durable. After a failed fsync the log takes nothing more.
    pub async fn append(&self, actor: &str, changes: Vec<Change>) -> Result<Offset, LogError> {
        todo!("{actor} {}", changes.len())
    }

    /// Appends events another log already numbered; resolves once they are durable. Events at or
    /// below the head are skipped, a gap is refused.
    ///
    /// # Errors
    /// [`LogError::Gap`] when the first new event does not follow the head.
    pub async fn append_replicated(&self, events: Vec<Record>) -> Result<Offset, LogError> {
        todo!("{}", events.len())
    }

    /// Newest durable event.
    pub fn head(&self) -> Offset {
        todo!()
    }

    /// Follows [`Log::head`].
    pub fn watch(&self) -> watch::Receiver<Offset> {
        todo!()
    }

    /// Events up to here can no longer be read.
    pub fn floor(&self) -> Offset {
        todo!()
    }

    /// Bytes of log up to the head since the log began.
    pub fn bytes(&self) -> u64 {
        todo!()
    }

    /// Durable records after `after`, in order, at most about `bytes_max` bytes and at least one
    /// if there is any. From memory when recent; otherwise it reads the disk and may block.
    ///
    /// # Errors
    /// [`LogError::BelowFloor`] when they are gone.
    pub fn read(&self, after: Offset, bytes_max: usize) -> Result<Vec<Record>, LogError> {
        todo!("{after} {bytes_max}")
    }
}

/// Why the log did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// A record before the tail is damaged.
    #[error("segment {segment}: record at byte {position} is damaged: {reason}")]
    Corrupt {
        /// File name of the segment.
        segment: String,
        /// Where in it.
        position: u64,
        /// What was seen.
        reason: String,
    },
    /// Events are missing between the head and what was to be appended.
    #[error("event {found} does not follow {head}")]
    Gap {
        /// Newest event here.
        head: Offset,
        /// First event given.
        found: Offset,
    },
    /// The events asked for are older than the log.
    #[error("events after {after} are gone, the log begins after {floor}")]
    BelowFloor {
        /// Asked for.
        after: Offset,
        /// Oldest place that can be read after.
        floor: Offset,
    },
    /// The log stopped because an earlier write or fsync failed.
    #[error("the log is stopped: {0}")]
    Stopped(String),
    /// The disk failed.
    #[error("{action}: {reason}")]
    Io {
        /// What was being done, verb first.
        action: &'static str,
        /// The operating system's error.
        reason: String,
    },
}
