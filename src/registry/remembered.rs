//! What the primary said does not exist, remembered until the repository changes.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use outport_proto::{Digest, Event, Offset, Reference, RepoName};

use crate::{
    bounds,
    planted::{Bug, is_planted},
};

/// What the primary was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Asked {
    /// A manifest.
    Manifest(Reference),
    /// A blob.
    Blob(Digest),
}

/// The remembered answers "no", at most so many.
#[derive(Debug)]
pub(super) struct Remembered {
    answers_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    repos: HashMap<RepoName, HashMap<Asked, Offset>>,
    count: usize,
}

impl Remembered {
    /// Nothing; at most `answers_max` answers are kept, 0 remembers none.
    pub(super) fn new(answers_max: usize) -> Self {
        Self { answers_max, state: Mutex::default() }
    }

    /// The offset at which the primary said "no", if the repository did not change since.
    pub(super) fn get(&self, repo: &RepoName, asked: &Asked) -> Option<Offset> {
        if self.answers_max == 0 {
            return None;
        }
        self.lock().repos.get(repo)?.get(asked).copied()
    }

    /// The primary said "no" at `at`. `applied` reads the applied offset: an answer older than
    /// that is not kept, because an event that ends it may have been applied already.
    pub(super) fn keep(&self, repo: &RepoName, asked: Asked, at: Offset, applied: impl FnOnce() -> Offset) {
        if self.answers_max == 0 {
            return;
        }
        let mut state = self.lock();
        if applied() > at {
            return;
        }
        if state.count >= self.answers_max && !is_planted(Bug::RememberWithoutBound) {
            *state = State::default();
        }
        if state.repos.entry(repo.clone()).or_default().insert(asked, at).is_none() {
            state.count += 1;
        }
        bounds::note("remembered answers", state.count, self.answers_max);
    }

    /// An event was applied: what was said of its repository holds no longer.
    pub(super) fn note_applied(&self, event: &Event) {
        if self.answers_max == 0 {
            return;
        }
        let Some(repo) = event.change.repo() else { return self.forget_all() };
        let mut state = self.lock();
        if let Some(answers) = state.repos.remove(repo) {
            state.count -= answers.len();
        }
    }

    /// Much was applied at once: nothing holds any longer.
    pub(super) fn forget_all(&self) {
        *self.lock() = State::default();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use outport_proto::{Change, Timestamp};

    use super::*;

    fn blob(text: &str) -> Asked {
        Asked::Blob(Digest::sha256(text.as_bytes()))
    }

    #[test]
    fn until_the_repository_changes() {
        let (app, other): (RepoName, RepoName) = ("app".parse().unwrap(), "other".parse().unwrap());
        let remembered = Remembered::new(10);
        let at = Offset::new(1, 5);
        remembered.keep(&app, blob("a"), at, || at);
        remembered.keep(&other, blob("a"), at, || at);
        assert_eq!(remembered.get(&app, &blob("a")), Some(at));
        assert_eq!(remembered.get(&app, &blob("b")), None);
        let change = Change::RepositoryDeleted { repo: app.clone() };
        let (offset, time) = (at.next(), Timestamp::default());
        let event = Event { offset, time, actor: String::new(), intent: None, change };
        remembered.note_applied(&event);
        assert_eq!(remembered.get(&app, &blob("a")), None);
        assert_eq!(remembered.get(&other, &blob("a")), Some(at));
        remembered.keep(&app, blob("a"), at, || at.next());
        assert_eq!(remembered.get(&app, &blob("a")), None, "the answer is older than the index");
        remembered.forget_all();
        assert_eq!(remembered.get(&other, &blob("a")), None);
    }

    #[test]
    fn bounded() {
        let app: RepoName = "app".parse().unwrap();
        let remembered = Remembered::new(2);
        for text in ["a", "b", "b", "c"] {
            remembered.keep(&app, blob(text), Offset::ZERO, || Offset::ZERO);
        }
        assert!(remembered.lock().count <= 2);
        assert!(remembered.get(&app, &blob("c")).is_some());
    }
}
