//! Applying more events than the database takes: see [`super::overlay`].
//!
//! While that goes on there are two places: [`Index::applied`], which readers see, and
//! [`Index::settled`], up to which the database holds it all. Only the database outlives the process.

use std::sync::{
    Arc, PoisonError, RwLockWriteGuard,
    atomic::{AtomicBool, Ordering},
};

use outport_proto::{Event, Offset};

use super::{
    Index, IndexError, Shared, lock,
    overlay::{MEMORY_BYTES_MAX, Overlay},
    row::State,
    sums::Tally,
    tx::Tx,
};

/// Events written to the database at once: readers wait for that long at most.
const SETTLE_EVENTS: usize = 128;

/// What the database holds, and whether it takes more.
pub(super) struct Below {
    pub(super) state: std::sync::Mutex<State>,
    pub(super) closed: AtomicBool,
}

impl Index {
    /// From here on what is applied is kept above the database, until [`Index::settle`] has brought
    /// that as far. An index in memory has nothing that is slow.
    ///
    /// # Errors
    /// When the index is closed.
    pub fn defer(&self) -> Result<(), IndexError> {
        self.defer_with(MEMORY_BYTES_MAX)
    }

    pub(super) fn defer_with(&self, memory_bytes_max: usize) -> Result<(), IndexError> {
        let Some(home) = &self.shared.home else { return Ok(()) };
        // Only who holds this begins to defer, or ends it.
        let _writer = self.shared.writer_if_open()?;
        if self.is_deferring() {
            return Ok(());
        }
        // It reads the database first, and readers do not wait for that.
        let overlay = Overlay::new(Arc::clone(&self.shared.base), home.dir(), memory_bytes_max)?;
        *self.shared.overlay_mut() = Some(Arc::new(overlay));
        Ok(())
    }

    /// Whether the database is behind what is applied.
    pub fn is_deferring(&self) -> bool {
        self.shared.overlay().is_some()
    }

    /// Whether nothing more should be applied before the database has come nearer.
    pub fn is_full(&self) -> bool {
        self.shared.overlay().is_some_and(|overlay| overlay.is_full())
    }

    /// Newest event that the database holds, with all before it.
    pub fn settled(&self) -> Offset {
        lock(&self.shared.below.state).applied
    }

    /// Brings the database up to the last of `events`, which were applied here before and follow
    /// [`Index::settled`]. Once it is as far as readers are, it is read alone again.
    ///
    /// # Errors
    /// When the database fails, or comes to another state than readers were shown.
    pub fn settle(&self, events: &[Arc<Event>]) -> Result<(), IndexError> {
        let Some(overlay) = self.shared.overlay() else { return Ok(()) };
        let applied = self.applied();
        for batch in events.chunks(SETTLE_EVENTS) {
            let mut below = lock(&self.shared.below.state);
            // It may have been emptied, or closed, since the events were read.
            if self.shared.below.closed.load(Ordering::SeqCst) || !self.shared.is_over(&overlay) {
                return Ok(());
            }
            // The sums are of what readers see.
            let mut no_tally = Tally::default();
            let mut tx = Tx::new(&*self.shared.base, &self.shared.hot, &mut below, &mut no_tally);
            for event in batch.iter().filter(|event| event.offset <= applied) {
                if event.offset > tx.applied {
                    tx.apply(event)?;
                }
            }
            self.shared.noting_damage(tx.store())?;
            overlay.settled(below.applied);
        }
        self.shared.end_deferral()
    }
}

impl Shared {
    pub(super) fn overlay(&self) -> Option<Arc<Overlay>> {
        self.overlay.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn overlay_mut(&self) -> RwLockWriteGuard<'_, Option<Arc<Overlay>>> {
        self.overlay.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self, overlay: &Arc<Overlay>) -> bool {
        self.overlay().is_some_and(|now| Arc::ptr_eq(&now, overlay))
    }

    fn end_deferral(&self) -> Result<(), IndexError> {
        let writer = self.writer_if_open()?;
        let below = lock(&self.below.state);
        if below.applied != writer.stored.applied || self.overlay().is_none() {
            return Ok(());
        }
        if *below != writer.stored {
            let reason = format!("the database is not in the state that was shown at {}", below.applied);
            return self.noting_damage(Err(IndexError::Damaged(reason)));
        }
        let ended = self.overlay_mut().take();
        drop((below, writer));
        // Its memory and its files go when nobody waits for it.
        drop(ended);
        Ok(())
    }
}
