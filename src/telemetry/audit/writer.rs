//! The thread that writes.

use std::{
    io,
    sync::mpsc::{Receiver, SyncSender},
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;

use super::record::Record;

/// Records written at once, at most.
const BATCH_MAX: usize = 4096;
/// After a batch others may gather, so that not every request wakes the thread.
const GATHER: Duration = Duration::from_millis(20);

/// Where lines go.
pub trait Sink: Send {
    /// Takes the lines of `records`, all of them or none.
    ///
    /// # Errors
    /// When they cannot be kept. The next ones are tried all the same.
    fn take(&mut self, records: &[Record], lines: &[u8]) -> io::Result<()>;

    /// Keeps for good what it took.
    fn sync(&mut self) {}
}

pub(super) enum Message {
    Record(Box<Record>),
    Flush(SyncSender<()>),
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
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        let (mut records, mut lines, mut flushed) = (Vec::new(), Vec::new(), Vec::new());
        while let Ok(first) = messages.recv() {
            for message in std::iter::once(first).chain(messages.try_iter()).take(BATCH_MAX) {
                match message {
                    Message::Record(record) => records.push(*record),
                    Message::Flush(done) => flushed.push(done),
                }
            }
            records.iter().for_each(|record| record.write_to(&mut lines));
            self.write(&records, &lines);
            if flushed.is_empty() {
                if records.len() < BATCH_MAX {
                    std::thread::sleep(GATHER);
                }
            } else {
                self.sinks.iter_mut().for_each(|sink| sink.sync());
                flushed.drain(..).for_each(|done| _ = done.send(()));
            }
            records.clear();
            lines.clear();
        }
        self.sinks.iter_mut().for_each(|sink| sink.sync());
    }

    fn write(&mut self, records: &[Record], lines: &[u8]) {
        if records.is_empty() {
            return;
        }
        for sink in &mut self.sinks {
            if let Err(error) = sink.take(records, lines) {
                self.dropped.inc_by(records.len() as u64);
                tracing::error!(%error, "the audit log cannot be written: records are lost, pulls go on");
            }
        }
    }
}
