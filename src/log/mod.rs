//! The replication log: append-only, checksummed, chained segments on disk.
//!
//! ```text
//! append ─┐                       ┌─ recent ring ─┐
//! append ─┼─► writer: one write, ─┼─ head (watch) ├─► read
//! append ─┘   one fsync           └─ segments ────┘
//! ```
//!
//! [`Writer`](writer::Writer) is a synchronous machine on a thread of its own; everything it does
//! to the disk goes through [`disk::Disk`], so that tests can cut the power at every step.
//! `format.rs` draws the bytes. What a crash may leave behind is a record that was never
//! acknowledged: it is cut at the next open and reported. Anything else that does not verify is
//! damage, and the log refuses to go on over it.

mod aside;
pub mod disk;
pub mod faulty;
mod format;
mod joints;
mod probe;
mod recent;
mod reset;
mod segment;
mod state;
mod stepped;
#[cfg(test)]
mod tests;
mod writer;

use crate::watch;
use std::{io, path::Path, sync::Arc, thread, time::Duration};

use bytes::Bytes;
use outport_proto::{Change, Digest, Event, IntentId, Offset, Timestamp, Traceparent, session::Place};
use tokio::sync::{mpsc, oneshot};

pub use self::{aside::set_aside, stepped::Stepper};
use self::{
    disk::{OsDisk, SharedDisk},
    writer::{Done, Request, Shared, Writer},
};
use crate::{clock::SharedClock, telemetry::trace};

/// Appends that wait for the writer at most; more wait for room.
const REQUESTS_MAX: usize = 256;

/// The log. Cloning gives another handle to the same log; when the last one goes, the writer
/// finishes what it was given and the directory is free.
#[derive(Clone, Debug)]
pub struct Log {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    /// `None` only while dropping.
    requests: Option<mpsc::Sender<Request>>,
    /// `None` while dropping, and when the writer is stepped.
    writer: Option<thread::JoinHandle<()>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// One durable event, decoded and as it stands on disk and on the wire.
#[derive(Clone, Debug)]
pub struct Record {
    /// The event.
    pub event: Arc<Event>,
    /// `codec::encode_event` of it.
    pub encoded: Bytes,
    /// The span that it was made in, if anybody records that. Not on disk.
    pub trace: Option<Traceparent>,
}

/// Who caused a change, as its event says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// The token's subject, or empty for an anonymous or internal actor.
    pub actor: String,
    /// The write intent of a site that it fulfils.
    pub intent: Option<IntentId>,
}

impl From<&str> for Cause {
    fn from(actor: &str) -> Self {
        Self { actor: actor.to_owned(), intent: None }
    }
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
        Self { segment_bytes_max: 64 * 1024 * 1024, recent_bytes_max: 16 * 1024 * 1024 }
    }
}

/// How much of a log is kept: a segment goes once it is past either limit, whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// A segment goes once the newer ones hold this many bytes of records.
    pub bytes: u64,
    /// A segment goes once its newest event is older than this.
    pub age: Duration,
}

impl Retention {
    /// Everything is kept for ever.
    pub const UNLIMITED: Self = Self { bytes: u64::MAX, age: Duration::MAX };
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
    /// Older segments are checked at their joints now and record by record when they are read.
    /// The first event this log mints has epoch 1.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] when anything but the tail is damaged, [`LogError::NewerFormat`]
    /// when a newer program wrote it.
    pub fn open(
        dir: &Path,
        options: LogOptions,
        clock: SharedClock,
    ) -> Result<(Self, Option<TornTail>), LogError> {
        let disk = OsDisk::open(dir).map_err(LogError::io("open log directory"))?;
        Self::open_on(disk, options, clock)
    }

    /// [`Log::open`] on any disk.
    ///
    /// # Errors
    /// Those of [`Log::open`].
    pub fn open_on(
        disk: SharedDisk,
        options: LogOptions,
        clock: SharedClock,
    ) -> Result<(Self, Option<TornTail>), LogError> {
        let (writer, torn) = Writer::open(disk, options, clock)?;
        if let Some(torn) = &torn {
            tracing::warn!(after = %torn.after, bytes = torn.bytes, "cut a torn record off the log");
        }
        let shared = writer.shared();
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let writer = thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || writer.run(receiver))
            .map_err(LogError::io("start log writer"))?;
        let handle = Handle { shared, requests: Some(requests), writer: Some(writer) };
        Ok((Self { handle: Arc::new(handle) }, torn))
    }

    /// Appends what happened; resolves once it is durable, with the offset of the last of
    /// `changes`. Many concurrent appends share one fsync. All of `changes` are consecutive.
    /// Once polled, it happens or fails whether or not the caller waits for it.
    ///
    /// # Errors
    /// When it is not durable. After a failed fsync the log takes nothing more; after
    /// [`LogError::DiskFull`] it may.
    pub async fn append(&self, cause: impl Into<Cause>, changes: Vec<Change>) -> Result<Offset, LogError> {
        let (cause, trace) = (cause.into(), trace::recorded());
        self.ask(|done| Request::Append { cause, changes, trace, done }).await
    }

    /// Appends events another log already numbered; resolves once they are durable, with the
    /// head. Events that are here already are skipped, a gap is refused. The epoch may grow from
    /// one event to the next; the seq goes on.
    ///
    /// # Errors
    /// [`LogError::Gap`] when the first new event does not follow the head.
    pub async fn append_replicated(&self, events: Vec<Record>) -> Result<Offset, LogError> {
        self.ask(|done| Request::Replicated { records: events, done }).await
    }

    /// Begins a new epoch at the head, because the log's history may have gone on elsewhere;
    /// resolves once its first event is durable, with that event's offset. Its number is the Unix time
    /// in seconds, or one above the epoch before if that is more. A crash before leaves the epoch that was.
    ///
    /// # Errors
    /// Those of [`Log::append`].
    pub async fn begin_epoch(&self, actor: &str) -> Result<Offset, LogError> {
        self.ask(|done| Request::BeginEpoch { cause: actor.into(), done }).await
    }

    /// The newest place that could become the floor: everything up to it is past `retention`, and a
    /// segment ends there.
    pub fn expired(&self, retention: &Retention) -> Option<Offset> {
        let shared = &self.handle.shared;
        shared.state().expired(retention, shared.clock.now())
    }

    /// Removes the segments up to `to`, where one must end: it becomes the floor. Resolves with the
    /// floor once the removal is durable. A crash leaves a floor between the old one and `to`.
    ///
    /// # Errors
    /// When files cannot be removed; the log goes on all the same.
    pub async fn cut(&self, to: Offset) -> Result<Offset, LogError> {
        self.ask(|done| Request::Cut { to, done }).await
    }

    /// Forgets everything and begins anew after `to`, as a site does that took a snapshot there.
    /// `log_bytes` is what [`Log::bytes`] of the log it follows was there; 0 if unknown. A crash
    /// leaves the old log or the new one.
    ///
    /// # Errors
    /// When it is not durable.
    pub async fn reset(&self, to: Offset, log_bytes: u64) -> Result<(), LogError> {
        self.ask(|done| Request::Reset { to, log_bytes, done }).await.map(|_| ())
    }

    async fn ask(&self, request: impl FnOnce(Done) -> Request) -> Result<Offset, LogError> {
        let gone = || self.stopped().unwrap_or_else(|| LogError::Stopped("the writer is gone".to_owned()));
        let Some(requests) = &self.handle.requests else { return Err(gone()) };
        let (done, answer) = oneshot::channel();
        requests.send(request(done)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Newest durable event; [`Offset::ZERO`] in a new log.
    pub fn head(&self) -> Offset {
        self.handle.shared.state().head
    }

    /// Follows [`Log::head`].
    pub fn watch(&self) -> watch::Receiver<Offset> {
        self.handle.shared.head.subscribe()
    }

    /// Events up to here can no longer be read.
    pub fn floor(&self) -> Offset {
        self.handle.shared.state().floor
    }

    /// The place to read after for event `seq` and those behind it; the log's floor when that is gone, its
    /// head when it did not happen yet.
    pub fn place_before(&self, seq: u64) -> Offset {
        let state = self.handle.shared.state();
        let before = seq.saturating_sub(1);
        if before <= state.floor.seq {
            return state.floor;
        }
        match state.segment_of(before).filter(|_| before <= state.head.seq) {
            Some(segment) => Offset::new(segment.header.epoch, before),
            None => state.head,
        }
    }

    /// Bytes of log up to the head since the log began.
    pub fn bytes(&self) -> u64 {
        self.handle.shared.state().bytes
    }

    /// Bytes of the segments that are kept.
    pub fn retained_bytes(&self) -> u64 {
        self.handle.shared.state().retained_bytes()
    }

    /// The time by the clock that dates the events appended here.
    pub fn now(&self) -> Timestamp {
        self.handle.shared.clock.now()
    }

    /// Whether `offset` is a place of this log that can be read after: not below the floor, not
    /// ahead of the head, and in the epoch this log has there.
    pub fn contains(&self, offset: Offset) -> bool {
        self.handle.shared.state().contains(offset)
    }

    /// SHA-256 of the encoded event at `offset`; `None` when there is none, because the log begins
    /// there. May block on the disk.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn digest_at(&self, offset: Offset) -> Result<Option<Digest>, LogError> {
        let shared = &self.handle.shared;
        let (segment, recent) = {
            let state = shared.state();
            if offset.seq <= state.floor.seq || !state.contains(offset) {
                return Ok(None);
            }
            (state.segment_of(offset.seq).cloned(), state.recent.read(offset.seq, 1))
        };
        let records = match (recent, segment) {
            (Some(records), _) => records,
            (None, Some(segment)) => match segment.read(&*shared.disk, offset.seq, 1) {
                // It may have been removed meanwhile.
                Err(_) if !self.contains(offset) => return Ok(None),
                read => read?,
            },
            (None, None) => return Ok(None),
        };
        Ok(records.first().map(|record| Digest::sha256(&record.encoded)))
    }

    /// Where `have`, the newest event of a log that follows this one, lies in it; `digest` is that
    /// event's [`Log::digest_at`] over there. May block on the disk.
    ///
    /// # Errors
    /// When the record to compare with cannot be read.
    pub fn place(&self, have: Offset, digest: Option<Digest>) -> Result<Place, LogError> {
        let (place, head) = {
            let state = self.handle.shared.state();
            (state.place(have), state.head)
        };
        if place != Place::Within || digest.is_none() {
            return Ok(place);
        }
        let own = self.digest_at(have)?;
        Ok(match own {
            Some(_) if own != digest && have.epoch < head.epoch => Place::Behind,
            Some(_) if own != digest => Place::Foreign,
            _ => place,
        })
    }

    /// Why the log takes nothing more, if it stopped.
    pub fn stopped(&self) -> Option<LogError> {
        self.handle.shared.stopped.borrow().clone()
    }

    /// Resolves when the log takes nothing more, with the reason.
    pub async fn failure(&self) -> LogError {
        let mut stopped = self.handle.shared.stopped.subscribe();
        let stopped = stopped.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        match stopped {
            Some(error) => error,
            // This handle holds the sender.
            None => std::future::pending().await,
        }
    }

    /// Whether the disk has what this log acknowledged and makes durable what is written behind it: a log
    /// that stopped asks before a new start is worth trying. Only such a log may: its writer is at rest.
    ///
    /// # Errors
    /// Those of the disk, and those of [`Log::open`]: what a start would end with.
    pub fn probe(&self) -> Result<(), LogError> {
        probe::probe(&self.handle.shared)
    }

    /// `records` in parts that are kept in memory together with as much that came before.
    pub fn in_parts(&self, records: Vec<Record>) -> Vec<Vec<Record>> {
        let bytes_max = self.handle.shared.state().recent.bytes_max() / 4;
        let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
        for record in records {
            bytes += recent::cost(&record);
            if bytes > bytes_max && !part.is_empty() {
                parts.push(std::mem::take(&mut part));
                bytes = recent::cost(&record);
            }
            part.push(record);
        }
        parts.push(part);
        parts
    }

    /// Whether what is behind `after` stays in memory when `records` are appended, about; also when
    /// nothing is there to stay.
    pub fn has_room(&self, after: Offset, records: &[Record]) -> bool {
        let state = self.handle.shared.state();
        let bytes = records.iter().map(recent::cost).sum();
        state.check(after).is_err()
            || after.seq == state.head.seq
            || state.recent.has_room(after.seq + 1, bytes)
    }

    /// What [`Log::read`] gives, when it is all in memory: never blocks. `None` when it is not.
    ///
    /// # Errors
    /// Those of [`Log::read`].
    pub fn read_recent(&self, after: Offset, bytes_max: usize) -> Result<Option<Vec<Record>>, LogError> {
        let state = self.handle.shared.state();
        state.check(after)?;
        if after.seq == state.head.seq {
            return Ok(Some(Vec::new()));
        }
        Ok(state.recent.read(after.seq + 1, bytes_max))
    }

    /// Durable records after `after`, in order, at most about `bytes_max` bytes and at least one
    /// if there is any. From memory when recent; otherwise it reads the disk and may block.
    ///
    /// # Errors
    /// [`LogError::BelowFloor`] when they are gone, [`LogError::NotInLog`] when `after` is ahead
    /// of the head or of another history.
    pub fn read(&self, after: Offset, bytes_max: usize) -> Result<Vec<Record>, LogError> {
        let shared = &self.handle.shared;
        let segment = {
            let state = shared.state();
            state.check(after)?;
            if after.seq == state.head.seq {
                return Ok(Vec::new());
            }
            if let Some(recent) = state.recent.read(after.seq + 1, bytes_max) {
                return Ok(recent);
            }
            state.segment_of(after.seq + 1).cloned()
        };
        let Some(segment) = segment else { return Ok(Vec::new()) };
        segment.read(&*shared.disk, after.seq + 1, bytes_max).or_else(|error| {
            // It may have been removed meanwhile.
            shared.state().check(after)?;
            Err(error)
        })
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
    /// The place is ahead of the log or of another history.
    #[error("{offset} is not in this log, its head is {head}")]
    NotInLog {
        /// Asked for.
        offset: Offset,
        /// Newest event here.
        head: Offset,
    },
    /// A newer program wrote the log.
    #[error("segment {segment} has format version {version}, this program reads up to 1")]
    NewerFormat {
        /// File name of the segment.
        segment: String,
        /// Its format version.
        version: u16,
    },
    /// An event that no log may hold.
    #[error("the event cannot be logged: {reason}")]
    Unfit {
        /// What the codec says.
        reason: String,
    },
    /// There is no room. Nothing was appended; the log takes more once there is.
    #[error("the disk is full")]
    DiskFull,
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

impl LogError {
    fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { action, reason: error.to_string() }
    }
}
