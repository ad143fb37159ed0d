//! Makes received events durable and visible, one batch at a time and in order.

use std::sync::Arc;

use outport_proto::{Event, Offset, session::Received};
use tokio::task::JoinHandle;

use crate::{
    index::Index,
    log::{Log, Record},
};

/// Told of events once the index shows them.
pub type OnApplied = Arc<dyn Fn(&[Arc<Event>]) + Send + Sync>;

/// What a batch led to: everything up to here is durable and visible, or why not.
pub(super) type Applied = Result<Offset, String>;

/// The one batch on its way to the disk, and what waits behind it. The publisher's window bounds
/// what waits.
pub(super) struct Applier {
    log: Log,
    index: Index,
    on_applied: OnApplied,
    waiting: Vec<Record>,
    running: Option<JoinHandle<Applied>>,
}

impl Applier {
    pub(super) fn new(log: Log, index: Index, on_applied: OnApplied) -> Self {
        Self { log, index, on_applied, waiting: Vec::new(), running: None }
    }

    /// Takes in events that follow those taken in before.
    pub(super) fn take(&mut self, events: Vec<Received>) {
        let records = events
            .into_iter()
            .map(|received| Record { event: Arc::new(received.event), encoded: received.encoded });
        self.waiting.extend(records);
        self.start();
    }

    /// The end of the running batch; pends while none runs. May be dropped and called again.
    pub(super) async fn applied(&mut self) -> Applied {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let applied = running.await.unwrap_or_else(|error| Err(format!("applying crashed: {error}")));
        self.running = None;
        self.start();
        applied
    }

    /// Forgets what waits and ends the running batch: the primary sends again what is not durable.
    pub(super) async fn settle(&mut self) -> Option<Applied> {
        self.waiting.clear();
        if self.running.is_some() { Some(self.applied().await) } else { None }
    }

    fn start(&mut self) {
        if self.running.is_some() || self.waiting.is_empty() {
            return;
        }
        let records = std::mem::take(&mut self.waiting);
        let (log, index, on_applied) = (self.log.clone(), self.index.clone(), Arc::clone(&self.on_applied));
        self.running = Some(tokio::spawn(async move {
            let events: Vec<_> = records.iter().map(|record| Arc::clone(&record.event)).collect();
            log.append_replicated(records).await.map_err(|error| error.to_string())?;
            let index_too = index.clone();
            let shown = events.clone();
            let applied = tokio::task::spawn_blocking(move || index_too.apply(&shown)).await;
            applied.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            on_applied(&events);
            Ok(index.applied())
        }));
    }
}
