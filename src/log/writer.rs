//! The one writer: takes all waiting appends, writes them with one write and one fsync, then
//! shows and acknowledges them.

use crate::watch;
use std::{
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use outport_proto::{Change, Event, Offset, Timestamp, Traceparent, codec};
use tokio::sync::{mpsc, oneshot};

use super::{
    Cause, LogError, LogOptions, Record, TornTail,
    disk::{File, SharedDisk},
    format::{self, Chain, HEADER_BYTES, Header},
    joints,
    recent::Recent,
    reset,
    segment::{Mark, Segment},
    state::State,
};
use crate::{
    bounds,
    clock::SharedClock,
    planted::{Bug, is_planted},
};

/// Requests that share one fsync at most.
const GROUP_REQUESTS_MAX: usize = 256;
/// Bytes after which a group is written before more is taken in.
const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A record says in 32 bits how much of its segment was durable.
const SEGMENT_BYTES_LIMIT: u64 = 1 << 30;

/// What the writer shares with the handles.
pub(super) struct Shared {
    pub(super) disk: SharedDisk,
    state: Mutex<State>,
    pub(super) head: watch::Sender<Offset>,
    /// Why the log takes nothing more.
    pub(super) stopped: watch::Sender<Option<LogError>>,
    pub(super) clock: SharedClock,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("disk", &self.disk).field("state", &self.state).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) type Done = oneshot::Sender<Result<Offset, LogError>>;

/// What the writer is asked.
#[derive(Debug)]
pub(super) enum Request {
    Append { cause: Cause, changes: Vec<Change>, trace: Option<Traceparent>, done: Done },
    Replicated { records: Vec<Record>, done: Done },
    BeginEpoch { cause: Cause, done: Done },
    Cut { to: Offset, done: Done },
    Reset { to: Offset, log_bytes: u64, done: Done },
}

impl Request {
    fn done(self) -> Done {
        match self {
            Self::Append { done, .. }
            | Self::Replicated { done, .. }
            | Self::BeginEpoch { done, .. }
            | Self::Cut { done, .. }
            | Self::Reset { done, .. } => done,
        }
    }
}

/// The end of the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tip {
    pub(super) head: Offset,
    pub(super) chain: Chain,
    pub(super) log_bytes: u64,
    pub(super) time: Timestamp,
}

impl Tip {
    pub(super) fn beginning_after(offset: Offset, log_bytes: u64) -> Self {
        Self {
            head: offset,
            chain: Chain::beginning_after(offset),
            log_bytes,
            time: Timestamp::from_micros(0),
        }
    }
}

/// The segment that is appended to.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    pub(super) file: Box<dyn File>,
}

/// Records that go to the disk together.
#[derive(Debug)]
struct Group {
    /// The end of the log once they are written.
    tip: Tip,
    buffer: Vec<u8>,
    records: Vec<Record>,
    marks: Vec<Mark>,
    /// Who waits, each with the offset of the last of its events.
    waiting: Vec<(Offset, Done)>,
}

impl Group {
    fn after(tip: Tip) -> Self {
        Self { tip, buffer: Vec::new(), records: Vec::new(), marks: Vec::new(), waiting: Vec::new() }
    }
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    options: LogOptions,
    clock: SharedClock,
    tip: Tip,
    active: Option<Active>,
}

impl Writer {
    /// Reads what is on the disk, finishes what a crash interrupted and stands at the end.
    pub(super) fn open(
        disk: SharedDisk,
        options: LogOptions,
        clock: SharedClock,
    ) -> Result<(Self, Option<TornTail>), LogError> {
        reset::finish(&disk, &clock)?;
        joints::settle_newest(&disk)?;
        let (mut segments, mut torn) = joints::open_segments(&disk)?;
        let floor = segments.first().map_or(Offset::ZERO, |segment| segment.header.before);
        let mut tip = Tip::beginning_after(Offset::ZERO, 0);
        let mut active = None;
        while let Some(newest) = segments.last() {
            joints::settle(&disk, &newest.name)?;
            let whole = newest.recover(&*disk)?;
            if is_unbegun(newest) {
                remove_segment(&disk, newest).map_err(LogError::io("remove segment without events"))?;
                let bytes = whole.torn_bytes + torn.map_or(0, |torn| torn.bytes);
                torn = (bytes > 0).then_some(TornTail { after: whole.head, bytes });
                segments.pop();
                continue;
            }
            let mut file = disk.open(&newest.name).map_err(LogError::io("open segment"))?;
            if whole.torn_bytes > 0 {
                file.truncate(whole.end).map_err(LogError::io("cut torn record"))?;
                file.sync().map_err(LogError::io("sync segment"))?;
            }
            disk.sync_dir().map_err(LogError::io("sync log directory"))?;
            tip = Tip { head: whole.head, chain: whole.chain, log_bytes: whole.log_bytes, time: whole.time };
            let bytes = whole.torn_bytes + torn.map_or(0, |torn| torn.bytes);
            torn = (bytes > 0).then_some(TornTail { after: tip.head, bytes });
            active = Some(Active { segment: Arc::clone(newest), file });
            break;
        }
        let state = State {
            segments,
            recent: Recent::new(options.recent_bytes_max),
            floor,
            head: tip.head,
            bytes: tip.log_bytes,
        };
        let shared = Arc::new(Shared {
            disk,
            state: Mutex::new(state),
            head: watch::Sender::new(tip.head),
            stopped: watch::Sender::new(None),
            clock: Arc::clone(&clock),
        });
        Ok((Self { shared, options, clock, tip, active }, torn))
    }

    /// The newest event.
    pub(super) fn head(&self) -> Offset {
        self.tip.head
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Serves requests until every handle is gone.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut waiting = Vec::with_capacity(GROUP_REQUESTS_MAX);
        while requests.blocking_recv_many(&mut waiting, GROUP_REQUESTS_MAX) > 0 {
            self.serve(waiting.drain(..));
        }
    }

    /// Serves requests in order, with as few fsyncs as their sizes allow.
    pub(super) fn serve(&mut self, requests: impl Iterator<Item = Request>) {
        let mut group = Group::after(self.tip);
        for request in requests {
            if let Some(stopped) = self.stopped() {
                let _ = request.done().send(Err(stopped));
                continue;
            }
            match request {
                Request::Append { cause, changes, trace, done } => {
                    let head = group.tip.head;
                    let first = Offset::new(head.epoch.max(1), head.seq + 1);
                    let staged = self.stage_own(&mut group, (&cause, trace), first, changes);
                    self.await_group(&mut group, staged, done);
                }
                Request::Replicated { records, done } => {
                    let staged = self.stage_replicated(&mut group, records);
                    self.await_group(&mut group, staged, done);
                }
                Request::BeginEpoch { cause, done } => {
                    let fork = group.tip.head;
                    let first = Offset::new(self.next_epoch(fork.epoch), fork.seq + 1);
                    let staged =
                        self.stage_own(&mut group, (&cause, None), first, vec![Change::EpochBegan { fork }]);
                    self.await_group(&mut group, staged, done);
                }
                Request::Cut { to, done } => {
                    let _ = done.send(self.cut(to));
                }
                Request::Reset { to, log_bytes, done } => {
                    let _ = self.flush(&mut group);
                    let _ = done.send(self.reset(to, log_bytes));
                    group = Group::after(self.tip);
                }
            }
            bounds::note("requests for one fsync", group.waiting.len(), GROUP_REQUESTS_MAX);
            if group.buffer.len() >= GROUP_BYTES_MAX {
                let _ = self.flush(&mut group);
            }
        }
        let _ = self.flush(&mut group);
    }

    /// Copies of one log that do not know of each other must not begin epochs of one number: what is
    /// at one offset would differ. So it says when it began, where the clock allows that.
    fn next_epoch(&self, before: u64) -> u64 {
        self.clock.now().as_secs().max(before.max(1) + 1)
    }

    fn await_group(&self, group: &mut Group, staged: Result<(), LogError>, done: Done) {
        match staged {
            Ok(()) if group.records.is_empty() => {
                let _ = done.send(Ok(self.tip.head));
            }
            Ok(()) => group.waiting.push((group.tip.head, done)),
            Err(error) => {
                let _ = done.send(Err(error));
            }
        }
    }

    fn stage_own(
        &mut self,
        group: &mut Group,
        (cause, trace): (&Cause, Option<Traceparent>),
        first: Offset,
        changes: Vec<Change>,
    ) -> Result<(), LogError> {
        let time = self.clock.now().max(group.tip.time);
        let mut records = Vec::with_capacity(changes.len());
        for (seq, change) in (first.seq..).zip(changes) {
            let offset = Offset::new(first.epoch, seq);
            let Cause { actor, intent } = cause.clone();
            let event = Event { offset, time, actor, intent, change };
            let encoded =
                codec::encode_event(&event).map_err(|error| LogError::Unfit { reason: error.to_string() })?;
            records.push(Record { event: Arc::new(event), encoded, trace });
        }
        self.stage(group, records)
    }

    fn stage_replicated(&mut self, group: &mut Group, records: Vec<Record>) -> Result<(), LogError> {
        let mut expected = group.tip.head;
        let mut new = Vec::with_capacity(records.len());
        for record in records {
            let found = record.event.offset;
            if found.seq == expected.seq + 1 && found.epoch >= expected.epoch.max(1) {
                expected = found;
                new.push(record);
            } else if !self.holds(group, &new, found) {
                return Err(LogError::Gap { head: expected, found });
            }
        }
        self.stage(group, new)
    }

    /// Whether an event is here already: in the log, in this group or among `new`.
    fn holds(&self, group: &Group, new: &[Record], offset: Offset) -> bool {
        let state = self.shared.state();
        state.contains(offset)
            || (offset.seq <= state.floor.seq && offset.epoch <= state.floor.epoch)
            || group.records.iter().chain(new).any(|record| record.event.offset == offset)
    }

    fn stage(&mut self, group: &mut Group, records: Vec<Record>) -> Result<(), LogError> {
        for record in records {
            let epoch = record.event.offset.epoch;
            if group.records.is_empty() || group.tip.head.epoch != epoch {
                self.flush(group)?;
                self.prepare_segment(epoch)?;
            }
            let Some(active) = &self.active else {
                return Err(LogError::Stopped("no segment is open".to_owned()));
            };
            let end = active.segment.end();
            group.marks.push(Mark {
                seq: record.event.offset.seq,
                position: end + group.buffer.len() as u64,
                chain: group.tip.chain,
            });
            let before = group.buffer.len();
            group.tip.chain = format::encode_record(
                &mut group.buffer,
                active.segment.header.salt,
                group.tip.chain,
                u32::try_from(end).unwrap_or(u32::MAX),
                &record.encoded,
            );
            group.tip.log_bytes += (group.buffer.len() - before) as u64;
            group.tip.head = record.event.offset;
            group.tip.time = group.tip.time.max(record.event.time);
            group.records.push(record);
        }
        Ok(())
    }

    /// Makes sure that the open segment takes events of `epoch` and is not full.
    fn prepare_segment(&mut self, epoch: u64) -> Result<(), LogError> {
        let bytes_max = self.options.segment_bytes_max.min(SEGMENT_BYTES_LIMIT);
        if let Some(active) = &self.active
            && active.segment.header.epoch == epoch
            && (active.segment.end() < bytes_max || active.segment.end() == HEADER_BYTES as u64)
        {
            return Ok(());
        }
        if let Some(active) = self.active.take_if(|active| is_unbegun(&active.segment)) {
            // An epoch that was to begin there did not.
            self.shared.state().segments.pop();
            remove_segment(&self.shared.disk, &active.segment)
                .map_err(|error| self.failed(Failure::Final("remove segment", error)))?;
        }
        let header = new_header(epoch, &self.tip, &self.clock);
        let active = create_segment(&self.shared.disk, header).map_err(|error| self.failed(error))?;
        self.shared.state().segments.push(Arc::clone(&active.segment));
        self.active = Some(active);
        Ok(())
    }

    /// Makes the group durable, shows it and tells those who wait; the group is empty then.
    fn flush(&mut self, group: &mut Group) -> Result<(), LogError> {
        let mut written = std::mem::replace(group, Group::after(self.tip));
        let outcome = if written.records.is_empty() { Ok(()) } else { self.write(&mut written) };
        for (last, done) in written.waiting {
            let _ = done.send(outcome.clone().map(|()| last));
        }
        group.tip = self.tip;
        outcome
    }

    fn write(&mut self, group: &mut Group) -> Result<(), LogError> {
        let Some(active) = &mut self.active else {
            return Err(LogError::Stopped("no segment is open".to_owned()));
        };
        let end = active.segment.end();
        let written = match active.file.append(&group.buffer) {
            Ok(()) if is_planted(Bug::AcknowledgeBeforeFsync) => Ok(()),
            Ok(()) => synced(&mut *active.file).map_err(|error| Failure::Final("sync segment", error)),
            Err(error) if is_full(&error) => active
                .file
                .truncate(end)
                .and_then(|()| active.file.sync())
                .map_err(|error| Failure::Final("take back a partial write", error))
                .and(Err(Failure::Full)),
            Err(error) => Err(Failure::Final("write segment", error)),
        };
        if matches!(written, Err(Failure::Final(..))) {
            // Nobody was told of what is in doubt, so the next start is not to find it.
            if let Err(error) = active.file.truncate(end) {
                tracing::error!(%error, "what is in doubt stays in the log: the next start may find it on the disk");
            }
        }
        let segment = Arc::clone(&active.segment);
        written.map_err(|failure| self.failed(failure))?;
        for mark in group.marks.drain(..) {
            segment.mark(mark);
        }
        self.tip = group.tip;
        let mut state = self.shared.state();
        segment.extend(end + group.buffer.len() as u64);
        for record in group.records.drain(..) {
            state.recent.push(record);
        }
        state.head = self.tip.head;
        state.bytes = self.tip.log_bytes;
        self.shared.head.send_replace(self.tip.head);
        Ok(())
    }

    /// Readers know of the new floor before the files go. The oldest goes first, durably: after a
    /// crash there is no hole.
    fn cut(&self, to: Offset) -> Result<Offset, LogError> {
        let (gone, floor) = {
            let mut state = self.shared.state();
            let kept = state.segments.iter().rposition(|segment| segment.header.before == to).unwrap_or(0);
            let gone: Vec<_> = state.segments.drain(..kept).collect();
            if !gone.is_empty() {
                state.floor = to;
            }
            (gone, state.floor)
        };
        for segment in gone {
            remove_segment(&self.shared.disk, &segment).map_err(LogError::io("remove segment"))?;
        }
        Ok(floor)
    }

    fn reset(&mut self, to: Offset, log_bytes: u64) -> Result<Offset, LogError> {
        reset::decide(&self.shared.disk, to, log_bytes).map_err(|failure| self.failed(failure))?;
        let begun = reset::carry_out(&self.shared.disk, &self.clock, to, log_bytes)
            .map_err(|error| self.failed(Failure::Final("reset the log", error)))?;
        self.tip = Tip::beginning_after(to, log_bytes);
        let mut state = self.shared.state();
        state.segments = begun.iter().map(|active| Arc::clone(&active.segment)).collect();
        state.recent.clear();
        (state.floor, state.head, state.bytes) = (to, to, log_bytes);
        self.active = begun;
        self.shared.head.send_replace(to);
        Ok(to)
    }

    fn stopped(&self) -> Option<LogError> {
        self.shared.stopped.borrow().clone()
    }

    /// A full disk may get room again. Of anything else nothing is known any more: no further
    /// byte may go behind what is in doubt.
    fn failed(&self, failure: Failure) -> LogError {
        match failure {
            Failure::Full => LogError::DiskFull,
            Failure::Final(action, error) => {
                let stopped = LogError::Stopped(format!("{action}: {error}"));
                tracing::error!(action, %error, "the log stops: it cannot be made durable");
                self.shared.stopped.send_replace(Some(stopped.clone()));
                stopped
            }
        }
    }
}

/// Once. What a first fsync failed to write a second one does not, and says that it did.
fn synced(file: &mut dyn File) -> io::Result<()> {
    match file.sync() {
        Err(_) if is_planted(Bug::BelieveSecondFsync) => file.sync(),
        once => once,
    }
}

/// Why something is not durable.
#[derive(Debug)]
pub(super) enum Failure {
    /// No room; everything is as it was.
    Full,
    /// Nothing is known of what is on the disk.
    Final(&'static str, io::Error),
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether a segment was made for an epoch that has no event yet. Nobody was told of that epoch.
fn is_unbegun(segment: &Segment) -> bool {
    segment.end() == HEADER_BYTES as u64 && segment.header.epoch != segment.header.before.epoch
}

fn remove_segment(disk: &SharedDisk, segment: &Segment) -> io::Result<()> {
    disk.remove(&segment.name)?;
    disk.sync_dir()
}

pub(super) fn new_header(epoch: u64, tip: &Tip, clock: &SharedClock) -> Header {
    let seed = [tip.log_bytes.to_le_bytes(), clock.now().as_micros().to_le_bytes()].concat();
    Header {
        epoch,
        before: tip.head,
        chain: tip.chain,
        log_bytes: tip.log_bytes,
        time: tip.time,
        salt: tip.chain.after(&seed).low_bits(),
    }
}

/// Creates a segment that is on disk, name and header, before any record is.
pub(super) fn create_segment(disk: &SharedDisk, header: Header) -> Result<Active, Failure> {
    let name = header.file_name();
    let written = disk.create(&name).and_then(|mut file| {
        file.append(&header.encode())?;
        Ok(file)
    });
    let mut file = match written {
        Ok(file) => file,
        Err(error) if is_full(&error) => {
            disk.remove(&name).map_err(|error| Failure::Final("remove segment", error))?;
            return Err(Failure::Full);
        }
        Err(error) => return Err(Failure::Final("create segment", error)),
    };
    let synced = file.sync().map_err(|error| Failure::Final("sync segment", error));
    let synced =
        synced.and_then(|()| disk.sync_dir().map_err(|error| Failure::Final("sync log directory", error)));
    if let Err(failure) = synced {
        // As with records: what is in doubt is not left to be found.
        if let Err(error) = disk.remove(&name) {
            tracing::error!(%error, "a segment in doubt stays: the next start may find it whole");
        }
        return Err(failure);
    }
    Ok(Active { segment: Segment::new(header, HEADER_BYTES as u64), file })
}
