//! Makes received events durable, one batch at a time and in order, and tells of those that show.

use std::{collections::VecDeque, sync::Arc};

use outport_proto::{Event, Offset, session::Received};
use tokio::task::JoinHandle;

use crate::{
    log::Record,
    registry::journal::{Journal, JournalError},
};

/// Told of events once the index shows them.
pub type OnApplied = Arc<dyn Fn(&[Arc<Event>]) + Send + Sync>;

/// The one batch on its way to the disk, what waits behind it, and what is not shown yet. The
/// publisher's window bounds them all.
pub(super) struct Intake {
    journal: Journal,
    on_applied: OnApplied,
    waiting: Vec<Record>,
    running: Option<JoinHandle<Result<Offset, JournalError>>>,
    hidden: VecDeque<Arc<Event>>,
}

impl Intake {
    pub(super) fn new(journal: Journal, on_applied: OnApplied) -> Self {
        Self { journal, on_applied, waiting: Vec::new(), running: None, hidden: VecDeque::new() }
    }

    /// Takes in events that follow those taken in before.
    pub(super) fn take(&mut self, events: Vec<Received>) {
        for Received { event, encoded, .. } in events {
            let event = Arc::new(event);
            self.hidden.push_back(Arc::clone(&event));
            self.waiting.push(Record { event, encoded });
        }
        self.start();
    }

    /// The end of the running batch: everything up to here is durable. Pends while none runs. May
    /// be dropped and called again.
    pub(super) async fn durable(&mut self) -> Result<Offset, JournalError> {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let durable = running.await.unwrap_or_else(|error| Err(JournalError::Panicked(error.to_string())));
        self.running = None;
        self.start();
        durable
    }

    /// The index shows events up to `offset`.
    pub(super) fn applied(&mut self, offset: Offset) {
        let shown = self.hidden.partition_point(|event| event.offset <= offset);
        if shown > 0 {
            let shown: Vec<_> = self.hidden.drain(..shown).collect();
            (self.on_applied)(&shown);
        }
    }

    /// Ends the running batch and forgets what waits: the primary sends again what is not durable.
    pub(super) async fn settle(&mut self) -> Option<Result<Offset, JournalError>> {
        self.waiting.clear();
        let durable = if self.running.is_some() { Some(self.durable().await) } else { None };
        let head = self.journal.log().head();
        self.hidden.truncate(self.hidden.partition_point(|event| event.offset <= head));
        durable
    }

    fn start(&mut self) {
        if self.running.is_none() && !self.waiting.is_empty() {
            let (journal, records) = (self.journal.clone(), std::mem::take(&mut self.waiting));
            self.running = Some(tokio::spawn(async move { journal.replicate(records).await }));
        }
    }
}
