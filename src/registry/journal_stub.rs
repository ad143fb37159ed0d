//! Stands in until `journal` comes.

use std::sync::{Arc, Mutex};

use outport_proto::{Change, Event, Offset, Timestamp};

use crate::index::Index;

/// Log and index as one.
#[derive(Clone, Debug)]
pub struct Journal {
    index: Index,
    head: Arc<Mutex<Offset>>,
    events: Arc<Mutex<Vec<Arc<Event>>>>,
}

/// Why not.
#[derive(Clone, Debug, thiserror::Error)]
#[error("journal")]
pub struct JournalError;

impl Journal {
    /// Over an index.
    pub fn new(index: Index) -> Self {
        Self { index, head: Arc::new(Mutex::new(Offset::new(1, 0))), events: Arc::default() }
    }

    /// Durable and applied.
    pub async fn commit(&self, actor: &str, changes: Vec<Change>) -> Result<Offset, JournalError> {
        let mut head = self.head.lock().map_err(|_| JournalError)?;
        let events: Vec<_> = changes
            .into_iter()
            .map(|change| {
                *head = head.next();
                Arc::new(Event {
                    offset: *head,
                    time: Timestamp::from_secs(1),
                    actor: actor.to_owned(),
                    change,
                })
            })
            .collect();
        self.events.lock().map_err(|_| JournalError)?.extend(events.iter().cloned());
        self.index.apply(&events).map_err(|_| JournalError)?;
        Ok(*head)
    }

    /// Newest.
    pub fn applied(&self) -> Offset {
        self.index.applied()
    }

    /// Events after.
    #[cfg(test)]
    pub fn events(&self, after: Offset) -> Vec<Arc<Event>> {
        self.events.lock().unwrap().iter().filter(|event| event.offset > after).cloned().collect()
    }

    /// The index.
    pub fn index(&self) -> &Index {
        &self.index
    }
}
