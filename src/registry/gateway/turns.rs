//! Who may ask the registry and record its answer: what two requests do there in one order must not
//! be recorded in the other.
//!
//! Whoever moves a tag, or looks where it is, holds that tag; whoever deletes what tags may name holds
//! the repository alone. Turns are held while the registry is asked, which its time limits bound, and
//! waited for no longer than a client waits.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use outport_proto::{RepoName, Tag};
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// Two repositories may share one: then they wait for each other's deletes, nothing more.
const REPOSITORY_TURNS: usize = 1024;
/// Two tags may share one: then they wait for each other, nothing more.
const TAG_TURNS: usize = 4096;

/// The turns of all repositories and tags.
#[derive(Debug)]
pub(super) struct Turns {
    repositories: Vec<Arc<RwLock<()>>>,
    tags: Vec<Arc<Mutex<()>>>,
    hasher: RandomState,
}

/// The right to move some tags, or to look at them.
#[derive(Debug)]
pub(super) struct Moving {
    _repository: OwnedRwLockReadGuard<()>,
    _tags: Vec<OwnedMutexGuard<()>>,
}

/// The right to delete in a repository.
#[derive(Debug)]
pub(super) struct Alone {
    _repository: OwnedRwLockWriteGuard<()>,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            repositories: (0..REPOSITORY_TURNS).map(|_| Arc::default()).collect(),
            tags: (0..TAG_TURNS).map(|_| Arc::default()).collect(),
            hasher: RandomState::new(),
        }
    }
}

impl Turns {
    /// The turn of some tags of a repository; of none for a manifest by its digest, or a blob.
    pub(super) async fn moving(&self, repo: &RepoName, tags: &[Tag]) -> Moving {
        let repository = Arc::clone(self.repository(repo)).read_owned().await;
        let turn = |tag| self.hasher.hash_one((repo, tag)) as usize % TAG_TURNS;
        // In one order, so that nobody waits for somebody who waits for them.
        let mut turns: Vec<usize> = tags.iter().map(turn).collect();
        turns.sort_unstable();
        turns.dedup();
        let mut held = Vec::with_capacity(turns.len());
        for turn in turns {
            held.push(Arc::clone(&self.tags[turn]).lock_owned().await);
        }
        Moving { _repository: repository, _tags: held }
    }

    /// The repository's own turn, alone.
    pub(super) async fn alone(&self, repo: &RepoName) -> Alone {
        Alone { _repository: Arc::clone(self.repository(repo)).write_owned().await }
    }

    fn repository(&self, repo: &RepoName) -> &Arc<RwLock<()>> {
        &self.repositories[self.hasher.hash_one(repo) as usize % REPOSITORY_TURNS]
    }
}
