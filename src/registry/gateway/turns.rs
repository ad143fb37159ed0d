//! Who may ask the registry and record its answer: what two requests do there in one order must not
//! be recorded in the other.
//!
//! Whoever moves a tag, or looks where it is, holds that tag; whoever deletes what tags may name holds
//! the repository alone. Both are held while the registry is asked, which its time limits bound.

use std::hash::{BuildHasher as _, RandomState};

use outport_proto::{RepoName, Tag};
use tokio::sync::{Mutex, MutexGuard, RwLockReadGuard, RwLockWriteGuard};

use crate::registry::push::Locks;

/// Two tags may share one: then they wait for each other, nothing more.
const TAG_TURNS: usize = 1024;

/// The turns of all repositories and tags.
#[derive(Debug)]
pub(super) struct Turns {
    repositories: Locks,
    tags: Vec<Mutex<()>>,
    hasher: RandomState,
}

/// The right to move some tags, or to look at them.
pub(super) struct Moving<'a> {
    _repository: RwLockReadGuard<'a, ()>,
    _tags: Vec<MutexGuard<'a, ()>>,
}

/// The right to delete in a repository.
pub(super) struct Alone<'a>(#[expect(dead_code, reason = "held, not read")] RwLockWriteGuard<'a, ()>);

impl Default for Turns {
    fn default() -> Self {
        let tags = (0..TAG_TURNS).map(|_| Mutex::default()).collect();
        Self { repositories: Locks::default(), tags, hasher: RandomState::new() }
    }
}

impl Turns {
    /// The turn of some tags of a repository; of none for a manifest by its digest, or a blob.
    pub(super) async fn moving(&self, repo: &RepoName, tags: &[Tag]) -> Moving<'_> {
        let repository = self.repositories.keep(repo).await;
        let turn = |tag| self.hasher.hash_one((repo, tag)) as usize % TAG_TURNS;
        // In one order, so that nobody waits for somebody who waits for them.
        let mut turns: Vec<usize> = tags.iter().map(turn).collect();
        turns.sort_unstable();
        turns.dedup();
        let mut held = Vec::with_capacity(turns.len());
        for turn in turns {
            held.push(self.tags[turn].lock().await);
        }
        Moving { _repository: repository, _tags: held }
    }

    /// The repository's own turn, alone.
    pub(super) async fn alone(&self, repo: &RepoName) -> Alone<'_> {
        Alone(self.repositories.remove(repo).await)
    }
}
