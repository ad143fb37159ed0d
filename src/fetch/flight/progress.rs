//! What a flight and its readers share.

use crate::watch;
use std::{
    fs::File,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use outport_proto::{Digest, RepoName, digest::Hasher, frame::Fill};
use tokio_util::sync::CancellationToken;

use super::{FillError, HOLD_BACK_BYTES};
use crate::{
    planted::{Bug, is_planted},
    store::StoreError,
};

/// A flight, seen from its readers.
pub(super) struct Shared {
    pub(super) digest: Digest,
    progress: watch::Sender<Progress>,
    /// Repositories with a reader on board; the fetch is made in the name of one of them.
    repos: Mutex<Vec<RepoName>>,
    /// Cancelled when a client is on board of what began as a background fill.
    hurried: CancellationToken,
    /// Somebody on board wants it in the store.
    keep: AtomicBool,
}

/// How far a flight is.
#[derive(Default)]
pub(super) struct Progress {
    /// Size in bytes of the blob, once known.
    pub(super) size: Option<u64>,
    /// Bytes in the file.
    pub(super) received: u64,
    /// Repositories the upstream said "no" to.
    pub(super) refused: Vec<RepoName>,
    pub(super) stage: Stage,
}

#[derive(Default)]
pub(super) enum Stage {
    /// For its turn, or for the upstream's first answer.
    #[default]
    Waiting,
    /// The file grows.
    Filling(Arc<File>),
    /// The digest matches.
    Verified(Arc<File>),
    /// The store has it.
    Kept(Arc<File>),
    /// The digest matched, and nobody wanted it in the store.
    Passed(Arc<File>),
    /// The disk does not take it; everybody goes on alone.
    Unkept(Arc<Unkept>),
    /// It is over.
    Failed(FillError),
}

/// Where a flight left off when the disk failed.
pub(super) struct Unkept {
    /// Good for its first `received` bytes.
    pub(super) file: Option<Arc<File>>,
    pub(super) received: u64,
    /// The hash of these bytes.
    pub(super) hasher: Hasher,
    pub(super) why: Arc<StoreError>,
}

impl Shared {
    pub(super) fn new(digest: Digest) -> Self {
        Self {
            digest,
            progress: watch::Sender::new(Progress::default()),
            repos: Mutex::default(),
            hurried: CancellationToken::new(),
            keep: AtomicBool::new(false),
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
    }

    pub(super) fn received(&self) -> u64 {
        self.progress.borrow().received
    }

    /// How far it is; `None` while it waits and once it is over.
    pub(super) fn fill(&self) -> Option<Fill> {
        let repo = self.claimant()?;
        let progress = self.progress.borrow();
        matches!(progress.stage, Stage::Filling(_)).then(|| Fill {
            repo,
            digest: self.digest,
            received_bytes: progress.received,
            size_bytes: progress.size,
        })
    }

    /// Lets a repository's reader on board. Its proof is newer than a refusal before.
    pub(super) fn admit(&self, repo: &RepoName) {
        let mut repos = self.repos.lock().unwrap_or_else(PoisonError::into_inner);
        if !repos.contains(repo) {
            repos.push(repo.clone());
        }
        self.progress.send_if_modified(|progress| {
            progress.refused.retain(|refused| refused != repo);
            false
        });
    }

    /// A repository to fetch in the name of.
    pub(super) fn claimant(&self) -> Option<RepoName> {
        self.repos.lock().unwrap_or_else(PoisonError::into_inner).first().cloned()
    }

    /// Tells the readers of `repo` that the upstream said "no".
    pub(super) fn refuse(&self, repo: &RepoName) {
        self.repos.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| other != repo);
        self.update(|progress| progress.refused.push(repo.clone()));
    }

    /// To be called while the list of flights is locked: a flight that is off the list has decided.
    pub(super) fn keep(&self) {
        self.keep.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_to_be_kept(&self) -> bool {
        self.keep.load(Ordering::SeqCst)
    }

    pub(super) fn hurry(&self) {
        self.hurried.cancel();
    }

    pub(super) async fn hurried(&self) {
        self.hurried.cancelled().await;
    }
}

impl Progress {
    /// Whether a reader of `repo` may go on.
    pub(super) fn check(&self, repo: &RepoName) -> Result<(), FillError> {
        match &self.stage {
            _ if self.refused.contains(repo) => Err(FillError::NotLinked),
            Stage::Failed(error) => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

/// What a reader may have of the first `received` bytes of an unverified blob of `size`.
pub(super) fn readable(received: u64, size: u64) -> u64 {
    if is_planted(Bug::HeldBackTailEarly) {
        return received;
    }
    received.min(size.saturating_sub(HOLD_BACK_BYTES))
}
