//! Pushes and deletes at the primary.
//!
//! What a manifest names must stay while the manifest is put: puts share their repository's lock and
//! deletes hold it alone, from the look at the index until the event is durable and applied. So
//! concurrent puts still share one fsync. A change under way goes on when its client leaves: it
//! runs in a task of its own.

mod answer;
mod delete;
mod fulfilled;
mod locks;
mod manifest;
mod upload;

use std::{future::Future, sync::Arc, time::Duration};

pub use answer::{
    BlobPut, ContentRange, Deleted, ManifestPushed, Mounted, NewManifest, PushError, PushLimits, UploadRight,
    UploadStatus,
};
pub(super) use fulfilled::{Fulfilled, Turn, digest_of};
use locks::Locks;
pub(super) use manifest::{CONFIG_BYTES_MAX, parse};
use outport_proto::{Change, Digest, IntentId, Offset, RepoName};
pub use upload::UploadAppend;

use super::{Journal, JournalError};
use crate::{
    auth::{Action, Caller},
    blocking,
    clock::SharedClock,
    index::{Index, IndexError},
    log::Cause,
    shutdown::Shutdown,
    store::{Lease, Store, StoreError},
    telemetry::trace,
};

/// When to try again what cannot be done now.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Takes pushes and deletes. Cloning gives another handle to the same service.
#[derive(Clone)]
pub struct PushService {
    journal: Journal,
    store: Store,
    clock: SharedClock,
    limits: PushLimits,
    locks: Arc<Locks>,
    fulfilled: Arc<Fulfilled>,
    /// The write intent that this handle's changes fulfil.
    intent: Option<IntentId>,
    shutdown: Shutdown,
}

impl PushService {
    /// A service that stores bytes in `store` and what happened in `journal`; its changes under way
    /// end before `shutdown` does.
    pub fn new(
        journal: Journal,
        store: Store,
        clock: SharedClock,
        limits: PushLimits,
        shutdown: Shutdown,
    ) -> Self {
        let (locks, fulfilled) = (Arc::default(), Arc::default());
        Self { journal, store, clock, limits, locks, fulfilled, intent: None, shutdown }
    }

    /// A handle for one request that a site led here: what it changes fulfils the site's write
    /// intent `intent`, and changes once, also when the request comes again.
    #[must_use]
    pub fn led(&self, intent: IntentId) -> Self {
        Self { intent: Some(intent), ..self.clone() }
    }

    fn index(&self) -> &Index {
        self.journal.index()
    }

    /// Appends what happened; when this returns it is durable and can be read. It fulfils no
    /// intent: what a blob is committed or mounted for may still be to come.
    async fn commit(&self, actor: &str, change: Change) -> Result<Offset, PushError> {
        self.commit_for(None, actor, change).await
    }

    async fn commit_for(
        &self,
        intent: Option<IntentId>,
        actor: &str,
        change: Change,
    ) -> Result<Offset, PushError> {
        let cause = Cause { actor: actor.to_owned(), intent };
        self.journal.commit(cause, vec![change]).await.map_err(not_durable)
    }

    /// Commits `change` when `allowed` lets it; a request of a site that comes again is told what
    /// it led to, without a second look.
    async fn commit_once(
        &self,
        actor: &str,
        change: Change,
        allowed: impl FnOnce() -> Result<(), PushError>,
    ) -> Result<Offset, PushError> {
        let Some(intent) = &self.intent else {
            allowed()?;
            return self.commit(actor, change).await;
        };
        let turn = self.fulfilled.turn(intent, self.journal.log(), self.clock.now()).await?;
        if let Some(offset) = turn.done(&change)? {
            return Ok(offset);
        }
        allowed()?;
        let digest = digest_of(&change)?;
        let offset = self.commit_for(Some(intent.clone()), actor, change).await?;
        turn.finish(digest, offset);
        Ok(offset)
    }

    /// Does `work` to its end, also when the caller of this leaves.
    async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, PushError>> + Send + 'static,
    ) -> Result<T, PushError> {
        to_its_end(&self.shutdown, work).await
    }

    /// Does disk work on a thread that may block.
    async fn blocking<T: Send + 'static>(
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, PushError> {
        match blocking::spawn(work).await {
            Ok(done) => done.map_err(PushError::from),
            Err(error) => {
                tracing::error!(%error, "disk work broke off");
                Err(PushError::Internal)
            }
        }
    }

    /// Keeps a blob from being collected.
    async fn lease(&self, digest: &Digest) -> Result<Lease, PushError> {
        let (store, digest) = (self.store.clone(), *digest);
        Self::blocking(move || Ok(store.lease(&digest))).await
    }

    /// The size of a blob if the repository links it.
    fn link(&self, repo: &RepoName, digest: &Digest) -> Result<Option<u64>, PushError> {
        Ok(self.index().link(repo, digest)?)
    }
}

fn allowed(caller: &Caller, repo: &RepoName, action: Action) -> Result<(), PushError> {
    if caller.access.allows(repo, action) { Ok(()) } else { Err(PushError::Denied) }
}

/// Does `work` to its end, also when the caller of this leaves: it ends before `shutdown` does.
pub(super) async fn to_its_end<T: Send + 'static>(
    shutdown: &Shutdown,
    work: impl Future<Output = Result<T, PushError>> + Send + 'static,
) -> Result<T, PushError> {
    shutdown.spawn(trace::carried(work)).await.unwrap_or_else(|error| {
        tracing::error!(%error, "a change broke off");
        Err(PushError::Internal)
    })
}

fn not_durable(error: JournalError) -> PushError {
    match error {
        // It came while the node stops.
        JournalError::Closed => tracing::debug!(%error, "a change was not made durable"),
        error => tracing::error!(%error, "a change was not made durable"),
    }
    PushError::Unavailable {
        reason: "the registry cannot make changes durable now".to_owned(),
        retry_after: RETRY_AFTER,
    }
}

impl From<IndexError> for PushError {
    fn from(error: IndexError) -> Self {
        tracing::error!(%error, "index failed");
        Self::Internal
    }
}

impl From<StoreError> for PushError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::DigestMismatch { expected, actual } => Self::DigestInvalid { expected, actual },
            StoreError::UploadUnknown => Self::BlobUploadUnknown,
            StoreError::UploadBusy => Self::BlobUploadInvalid("another request is writing to it"),
            StoreError::Full { action } => {
                tracing::error!(action, "disk full");
                Self::Unavailable {
                    reason: "the registry's disk is full".to_owned(),
                    retry_after: RETRY_AFTER,
                }
            }
            StoreError::Rotten(_) | StoreError::InUse(_) | StoreError::Io { .. } => {
                tracing::error!(%error, "store failed");
                Self::Internal
            }
        }
    }
}

impl std::fmt::Debug for PushService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PushService").field("limits", &self.limits).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
