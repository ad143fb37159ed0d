//! Makes received events durable, one batch at a time and in order. The journal applies them.

use std::sync::Arc;

use outport_proto::{
    Offset,
    session::{APPEND_BYTES_MAX, Received, WINDOW_BYTES},
};
use tokio::task::JoinHandle;

use crate::{
    bounds,
    log::Record,
    process,
    registry::journal::{Journal, JournalError},
};

/// The one batch on its way to the disk, and what waits behind it. The publisher's window bounds both.
pub(super) struct Intake {
    journal: Journal,
    waiting: Vec<Record>,
    /// Of events that wait or are on their way.
    waiting_bytes: usize,
    running_bytes: usize,
    running: Option<JoinHandle<Result<Offset, JournalError>>>,
}

impl Intake {
    pub(super) fn new(journal: Journal) -> Self {
        Self { journal, waiting: Vec::new(), waiting_bytes: 0, running_bytes: 0, running: None }
    }

    /// Takes in events that follow those taken in before.
    pub(super) fn take(&mut self, events: Vec<Received>) {
        self.waiting_bytes += events.iter().map(|received| received.encoded.len()).sum::<usize>();
        let records = events.into_iter().map(|Received { event, encoded, trace, .. }| Record {
            event: Arc::new(event),
            encoded,
            trace,
        });
        self.waiting.extend(records);
        let bytes = self.waiting_bytes + self.running_bytes;
        bounds::note("bytes of received events", bytes, WINDOW_BYTES + APPEND_BYTES_MAX);
        self.start();
    }

    /// The end of the running batch: everything up to here is durable. Pends while none runs. May
    /// be dropped and called again.
    pub(super) async fn durable(&mut self) -> Result<Offset, JournalError> {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let durable = running.await.unwrap_or_else(|error| Err(JournalError::Panicked(error.to_string())));
        (self.running, self.running_bytes) = (None, 0);
        self.start();
        durable
    }

    /// Ends the running batch and forgets what waits: the primary sends again what is not durable.
    pub(super) async fn settle(&mut self) -> Option<Result<Offset, JournalError>> {
        self.waiting.clear();
        self.waiting_bytes = 0;
        if self.running.is_some() { Some(self.durable().await) } else { None }
    }

    fn start(&mut self) {
        if self.running.is_none() && !self.waiting.is_empty() {
            let (journal, records) = (self.journal.clone(), std::mem::take(&mut self.waiting));
            self.running_bytes = std::mem::take(&mut self.waiting_bytes);
            self.running = Some(process::spawn(async move { journal.replicate(records).await }));
        }
    }
}
