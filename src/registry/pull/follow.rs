//! Tells a secondary's pulls what was applied.

use outport_proto::Offset;

use super::PullService;
use crate::{blocking, log::LogError, registry::Journal, shutdown::Shutdown};

/// Log read at once.
const READ_BYTES: usize = 1024 * 1024;

impl PullService {
    /// Follows what `journal` applies from now on, in a task of `shutdown`: write intents and
    /// remembered answers end with the events that end them, a moment after the index shows them.
    /// Until then a pull asks the primary once more than it would have to.
    pub fn follow(&self, journal: &Journal, shutdown: &Shutdown) {
        let (service, journal, stop) = (self.clone(), journal.clone(), shutdown.clone());
        let mut applied = journal.watch_applied();
        let mut noted = *applied.borrow_and_update();
        shutdown.spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    changed = applied.changed() => if changed.is_err() { return },
                    () = stop.requested() => return,
                }
                let until = *applied.borrow_and_update();
                noted = service.note_until(&journal, noted, until).await;
            }
        });
    }

    /// Notes the events after `noted` up to `until`; returns how far it came.
    async fn note_until(&self, journal: &Journal, mut noted: Offset, until: Offset) -> Offset {
        while noted < until {
            let (log, after) = (journal.log().clone(), noted);
            let read = blocking::spawn(move || log.read(after, READ_BYTES)).await;
            match read {
                Ok(Ok(records)) => {
                    let records = records.iter().take_while(|record| record.event.offset <= until);
                    let mut last = None;
                    for record in records {
                        self.note_applied(&record.event);
                        last = Some(record.event.offset);
                    }
                    match last {
                        Some(last) => noted = last,
                        None => return self.skip_to(until),
                    }
                }
                Ok(Err(LogError::BelowFloor { .. })) => return self.skip_to(until),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "log not read, write intents end by their tickets");
                    return self.skip_to(until);
                }
                Err(error) => {
                    tracing::error!(%error, "reading the log broke off");
                    return self.skip_to(until);
                }
            }
        }
        noted
    }

    fn skip_to(&self, until: Offset) -> Offset {
        self.note_loaded();
        until
    }
}
