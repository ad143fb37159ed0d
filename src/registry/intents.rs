//! Write intents: this site just redirected a push or delete, so what it would move is about to move.

use outport_proto::{Event, Reference, RepoName, Timestamp};

/// The open write intents of a site. Cloning gives another handle to the same set.
#[derive(Clone, Debug)]
pub struct Intents {}

impl Intents {
    /// No intent; at most `intents_max` are kept.
    pub fn new(intents_max: usize) -> Self {
        todo!("{intents_max}")
    }

    /// A push or delete of `reference` in `repo` was redirected with a ticket that ends at `expires` (local clock).
    pub fn open(&self, repo: &RepoName, reference: &Reference, now: Timestamp, expires: Timestamp) {
        todo!("{repo} {reference} {now:?} {expires:?}")
    }

    /// Whether an intent on `reference` in `repo` is open.
    pub fn is_open(&self, repo: &RepoName, reference: &Reference, now: Timestamp) -> bool {
        todo!("{repo} {reference} {now:?}")
    }

    /// An event was applied: the intents it fulfils end.
    pub fn note_applied(&self, event: &Event) {
        todo!("{}", event.offset)
    }
}
