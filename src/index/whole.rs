//! Whether what the index shows is a state that the log led to. While a snapshot replaces
//! everything it is not: rows are missing then, and others are older than what was there before.

use std::sync::{Mutex, PoisonError};

use outport_proto::Offset;

use super::Index;

/// A time during which the index was never emptied. Rows found between two looks at one and the
/// same are rows of a state that the log led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole(u64);

/// Since when the index is whole.
#[derive(Debug, Default)]
pub(super) struct Wholeness(Mutex<Since>);

#[derive(Clone, Copy, Debug, Default)]
struct Since {
    /// How often it was emptied.
    emptied: u64,
    /// It is whole once this is applied; `None` while nobody can say.
    at: Option<Offset>,
}

impl Wholeness {
    /// Whole from the beginning on.
    pub(super) fn new() -> Self {
        Self(Mutex::new(Since { emptied: 0, at: Some(Offset::ZERO) }))
    }

    /// To be called before the first row goes.
    pub(super) fn emptied(&self) {
        self.change(|since| *since = Since { emptied: since.emptied + 1, at: None });
    }

    fn change<T>(&self, change: impl FnOnce(&mut Since) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Index {
    /// Names the present, if what the index shows is a state that the log led to. A reader that
    /// finds the same before and after its reads was not lied to.
    pub fn whole(&self) -> Option<Whole> {
        self.shared.whole.change(|since| {
            let is_whole = since.at.is_some_and(|at| self.applied() >= at);
            is_whole.then_some(Whole(since.emptied))
        })
    }

    /// What it is whole from; `None` between [`Index::clear`] and [`Index::whole_from`].
    pub fn whole_at(&self) -> Option<Offset> {
        self.shared.whole.change(|since| since.at)
    }

    /// All that replaces what was there is loaded: once `at` is applied the index is whole.
    pub fn whole_from(&self, at: Offset) {
        self.shared.whole.change(|since| since.at = Some(at));
    }

    /// How often the index was emptied.
    pub fn emptied(&self) -> u64 {
        self.shared.whole.change(|since| since.emptied)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{apply, in_memory, put};
    use super::*;

    #[test]
    fn an_emptied_index_is_whole_again_once_what_it_missed_is_applied() {
        let index = in_memory();
        let before = index.whole().unwrap();
        apply(&index, 1, put("app", "a", &["1"]));
        assert_eq!(index.whole(), Some(before), "events take nothing away");
        index.clear().unwrap();
        assert_eq!((index.whole(), index.whole_at()), (None, None));
        index.whole_from(Offset::new(1, 2));
        apply(&index, 1, put("app", "a", &["1"]));
        assert_eq!(index.whole(), None);
        apply(&index, 2, put("app", "b", &["1"]));
        assert!(index.whole().is_some_and(|whole| whole != before), "another one than before");
    }
}
