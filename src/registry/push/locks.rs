//! One lock a repository, from a fixed number of locks.

use std::hash::{BuildHasher as _, RandomState};

use outport_proto::RepoName;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Two repositories may share a lock; then they wait for each other's deletes, nothing more.
const LOCKS: usize = 64;

/// The locks.
#[derive(Debug)]
pub(super) struct Locks {
    locks: [RwLock<()>; LOCKS],
    hasher: RandomState,
}

impl Default for Locks {
    fn default() -> Self {
        Self { locks: std::array::from_fn(|_| RwLock::new(())), hasher: RandomState::new() }
    }
}

impl Locks {
    /// What the repository holds stays while this is held; more may come.
    pub(super) async fn keep(&self, repo: &RepoName) -> RwLockReadGuard<'_, ()> {
        self.of(repo).read().await
    }

    /// Nobody else relies on what the repository holds while this is held.
    pub(super) async fn remove(&self, repo: &RepoName) -> RwLockWriteGuard<'_, ()> {
        self.of(repo).write().await
    }

    fn of(&self, repo: &RepoName) -> &RwLock<()> {
        &self.locks[self.hasher.hash_one(repo) as usize % LOCKS]
    }
}
