//! Blobs that the index says a node has and its disk does not.

use std::{collections::BTreeSet, sync::Arc};

use outport_proto::{Digest, RepoName, event::INLINE_MANIFEST_BYTES_MAX};

use crate::{
    index::{Index, IndexError},
    shutdown::Shutdown,
    store::{Store, StoreError},
};

/// Rows read at once.
const PAGE: usize = 256;
/// Lost blobs told apart; of more than that, those that several repositories link count as often.
const TOLD_APART_MAX: usize = 100_000;
/// Lost blobs that are named.
const NAMED_MAX: usize = 20;

/// Whether it is a fault that a blob is not here which a repository links. At a site it depends on
/// what that keeps, and on how far copying is.
pub type IsFault = Arc<dyn Fn(&Digest) -> bool + Send + Sync>;

/// What is not here and should be.
#[derive(Clone, Debug, Default)]
pub(super) struct Lost {
    /// How many blobs.
    pub(super) blobs: u64,
    /// The first of them, as `repository@digest`.
    pub(super) named: Vec<String>,
}

/// Why it cannot be said what is lost.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookError {
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Looks for what is lost. Asks the disk for every link, so it blocks.
pub(super) struct Look<'a> {
    pub(super) index: &'a Index,
    pub(super) store: &'a Store,
    pub(super) is_fault: &'a IsFault,
    pub(super) shutdown: &'a Shutdown,
}

impl Look<'_> {
    /// Goes through all repositories.
    ///
    /// # Errors
    /// When index or disk fail.
    pub(super) fn through_all(&self) -> Result<Lost, LookError> {
        let (mut lost, mut seen) = (Lost::default(), BTreeSet::new());
        let mut last: Option<RepoName> = None;
        loop {
            let repos = self.index.repositories(last.as_ref().map(RepoName::as_str), PAGE)?;
            for repo in &repos {
                self.through(repo, &mut lost, &mut seen)?;
            }
            last = repos.last().cloned();
            if last.is_none() || self.shutdown.is_requested() {
                return Ok(lost);
            }
        }
    }

    fn through(
        &self,
        repo: &RepoName,
        lost: &mut Lost,
        seen: &mut BTreeSet<Digest>,
    ) -> Result<(), LookError> {
        let mut last = None;
        loop {
            let links = self.index.links(repo, last.as_ref(), PAGE)?;
            for (digest, _) in &links {
                self.at(repo, digest, lost, seen)?;
            }
            last = links.last().map(|(digest, _)| *digest);
            if last.is_none() || self.shutdown.is_requested() {
                break;
            }
        }
        let mut last = None;
        loop {
            let manifests = self.index.manifests(repo, last.as_ref(), PAGE)?;
            // Those that were too large for their events lie among the blobs.
            for put in manifests.iter().filter(|put| put.size > INLINE_MANIFEST_BYTES_MAX as u64) {
                self.at(repo, &put.digest, lost, seen)?;
            }
            last = manifests.last().map(|put| put.digest);
            if last.is_none() || self.shutdown.is_requested() {
                return Ok(());
            }
        }
    }

    fn at(
        &self,
        repo: &RepoName,
        digest: &Digest,
        lost: &mut Lost,
        seen: &mut BTreeSet<Digest>,
    ) -> Result<(), LookError> {
        if self.store.is_on_disk(digest)? || seen.contains(digest) {
            return Ok(());
        }
        // It may have been deleted since the page was read, and collected.
        let is_named = self.index.is_named_in(repo, digest)?;
        // It may also have come since, so the disk is asked last.
        if !is_named || !(self.is_fault)(digest) || self.store.is_on_disk(digest)? {
            return Ok(());
        }
        if seen.len() < TOLD_APART_MAX {
            seen.insert(*digest);
        }
        lost.blobs += 1;
        if lost.named.len() < NAMED_MAX {
            tracing::error!(%repo, %digest, "a blob is linked and not here");
            lost.named.push(format!("{repo}@{digest}"));
        }
        self.store.note_lost(digest);
        Ok(())
    }
}
