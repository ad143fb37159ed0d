//! What waits to be written, and the thread that writes it.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc::SyncSender},
    time::{Duration, SystemTime},
};

use prometheus_client::metrics::counter::Counter;

use super::record::Kind;

/// Lines that wait to be written, at most: half a second of pulls.
pub(super) const QUEUE_MAX: usize = 65_536;
/// Their bytes, at most.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Lines written at once, at most.
const BATCH_MAX: usize = 4096;
/// After a batch others may gather: to be woken and to wait again costs as much as a few hundred lines.
const GATHER: Duration = Duration::from_millis(20);

/// Where lines go.
pub trait Sink: Send {
    /// Takes `text`, which is a line for each of `lines`; all of it or nothing.
    ///
    /// # Errors
    /// When they cannot be kept. The next ones are tried all the same.
    fn take(&mut self, lines: &[Line], text: &[u8]) -> io::Result<()>;

    /// Keeps for good what it took.
    fn sync(&mut self) {}
}

/// What is known of a line without reading it.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// When it happened.
    pub time: SystemTime,
    /// What kind of thing it is.
    pub kind: Kind,
    /// Its length in bytes.
    bytes: usize,
}

/// Lines that wait. Whoever has something to tell writes its line itself, and the thread has nothing to do but to hand
/// the lines on.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    is_wanted: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    text: Vec<u8>,
    lines: Vec<Line>,
    flushes: Vec<SyncSender<()>>,
    has_ended: bool,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.flushes.is_empty() && !self.has_ended
    }
}

impl Queue {
    /// Adds a line; false when too much waits already.
    pub(super) fn push(&self, line: &[u8], time: SystemTime, kind: Kind) -> bool {
        let mut waiting = self.lock();
        if waiting.lines.len() >= QUEUE_MAX || waiting.text.len() + line.len() > QUEUE_BYTES_MAX {
            return false;
        }
        let is_first = waiting.is_empty();
        waiting.text.extend_from_slice(line);
        waiting.lines.push(Line { time, kind, bytes: line.len() });
        drop(waiting);
        if is_first {
            self.is_wanted.notify_one();
        }
        true
    }

    /// Has `done` told when all that waits now is written and kept for good.
    pub(super) fn flush(&self, done: SyncSender<()>) {
        self.lock().flushes.push(done);
        self.is_wanted.notify_one();
    }

    /// Nobody tells anything any more.
    pub(super) fn end(&self) {
        self.lock().has_ended = true;
        self.is_wanted.notify_one();
    }

    /// Takes what waits, once something does. `spent` is what was taken before, whose room is used again.
    fn take(&self, spent: &mut Waiting) {
        spent.text.clear();
        spent.lines.clear();
        spent.flushes.clear();
        let waiting = self.lock();
        let mut waiting = self
            .is_wanted
            .wait_while(waiting, |waiting| waiting.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        spent.has_ended = waiting.has_ended;
        std::mem::swap(&mut *waiting, spent);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // No line is left half written by a panic: there is nothing between that can panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Writer {
    sinks: Vec<Box<dyn Sink>>,
    dropped: Counter,
}

impl Writer {
    pub(super) fn new(sinks: Vec<Box<dyn Sink>>, dropped: Counter) -> Self {
        Self { sinks, dropped }
    }

    /// Writes until everybody who could tell anything is gone.
    pub(super) fn run(mut self, queue: &Arc<Queue>) {
        let mut taken = Waiting::default();
        loop {
            queue.take(&mut taken);
            self.write(&taken);
            if taken.has_ended || !taken.flushes.is_empty() {
                self.sinks.iter_mut().for_each(|sink| sink.sync());
                taken.flushes.drain(..).for_each(|done| _ = done.send(()));
            }
            if taken.has_ended {
                return;
            }
            if taken.lines.len() < BATCH_MAX {
                std::thread::sleep(GATHER);
            }
        }
    }

    fn write(&mut self, taken: &Waiting) {
        let mut rest = &taken.text[..];
        for lines in taken.lines.chunks(BATCH_MAX) {
            let (text, behind) = rest.split_at(lines.iter().map(|line| line.bytes).sum());
            rest = behind;
            for sink in &mut self.sinks {
                if let Err(error) = sink.take(lines, text) {
                    self.dropped.inc_by(lines.len() as u64);
                    tracing::error!(%error, "the audit log cannot be written: records are lost, pulls go on");
                }
            }
        }
    }
}
