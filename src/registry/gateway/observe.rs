//! Asking the registry about one thing and recording the answer.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use outport_proto::{Change, Digest, IntentId, Offset, Reference, RepoName, Tag};

use super::{Gateway, GatewayError};
use crate::{
    fetch::backend::{BackendError, ManifestHead},
    log::Cause,
    random,
};

/// Who is named as the actor of what was not asked for through here.
pub(super) const OBSERVER: &str = "";
/// Pause before the registry is asked again about something in doubt; doubled each time.
const DOUBT_PAUSE_MIN: Duration = Duration::from_millis(200);
const DOUBT_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Things in doubt at once; a walk finds the others.
const DOUBTS_MAX: usize = 10_000;

/// What came of a look at the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// It has what the log says, or lacks what the log lacks.
    Same,
    /// It had something that was missing in the log, or something else.
    Found(Offset),
    /// It lacks what the log had.
    Gone(Offset),
}

/// What has to be looked at again until the registry answers.
#[derive(Debug, Default)]
pub(super) struct Doubts(Mutex<HashSet<(RepoName, Reference)>>);

impl Gateway {
    /// Looks what a tag or digest names at the registry and records it.
    ///
    /// # Errors
    /// [`GatewayError`].
    pub async fn observe(&self, repo: &RepoName, reference: &Reference) -> Result<Observed, GatewayError> {
        match reference {
            Reference::Tag(tag) => self.observe_tag(repo, tag).await,
            Reference::Digest(digest) => self.observe_manifest(repo, digest).await,
        }
    }

    async fn observe_tag(&self, repo: &RepoName, tag: &Tag) -> Result<Observed, GatewayError> {
        let tags = std::slice::from_ref(tag);
        let _turn = self.shared.turns.moving(repo, tags).await;
        let known = self.index().tag(repo, tag)?.map(|entry| entry.digest);
        let reference = Reference::Tag(tag.clone());
        if let ManifestHead::Is(digest) = self.backend().manifest_head(repo, &reference).await?
            && let Some(record) = self.index().manifest_record(repo, &digest)?
        {
            if known == Some(digest) {
                return Ok(Observed::Same);
            }
            return self.commit_tags(record, tags).await.map(Observed::Found);
        }
        match self.backend().manifest(repo, &reference).await? {
            Some(manifest) => {
                let digest = manifest.digest;
                if known == Some(digest) && self.index().manifest_record(repo, &digest)?.is_some() {
                    return Ok(Observed::Same);
                }
                self.record(repo, manifest, tags, 0).await.map(Observed::Found)
            }
            None if known.is_none() => Ok(Observed::Same),
            None => {
                let change = Change::TagDeleted { repo: repo.clone(), tag: tag.clone() };
                self.commit(OBSERVER, None, vec![change]).await.map(Observed::Gone)
            }
        }
    }

    async fn observe_manifest(&self, repo: &RepoName, digest: &Digest) -> Result<Observed, GatewayError> {
        let reference = Reference::Digest(*digest);
        {
            let _turn = self.shared.turns.moving(repo, &[]).await;
            let known = self.index().manifest_record(repo, digest)?.is_some();
            if known && self.backend().manifest_head(repo, &reference).await? == ManifestHead::Is(*digest) {
                return Ok(Observed::Same);
            }
            match self.backend().manifest(repo, &reference).await? {
                Some(_) if known => return Ok(Observed::Same),
                Some(manifest) => return self.record(repo, manifest, &[], 0).await.map(Observed::Found),
                None if !known => return Ok(Observed::Same),
                None => {}
            }
        }
        let _turn = self.shared.turns.alone(repo).await;
        if self.index().manifest_record(repo, digest)?.is_none()
            || self.backend().manifest(repo, &reference).await?.is_some()
        {
            return Ok(Observed::Same);
        }
        let change = Change::ManifestDeleted { repo: repo.clone(), digest: *digest };
        self.commit(OBSERVER, None, vec![change]).await.map(Observed::Gone)
    }

    /// Looks whether the registry has a blob in `repo` and records it.
    ///
    /// # Errors
    /// [`GatewayError`].
    pub async fn observe_blob(&self, repo: &RepoName, digest: &Digest) -> Result<Observed, GatewayError> {
        {
            let _turn = self.shared.turns.moving(repo, &[]).await;
            let known = self.index().link(repo, digest)?;
            match (self.backend().blob_size(repo, digest).await?, known) {
                (Some(size), Some(known)) if size == known => return Ok(Observed::Same),
                (None, None) => return Ok(Observed::Same),
                (Some(size), _) => {
                    let change = Change::BlobCommitted { repo: repo.clone(), digest: *digest, size };
                    return self.commit(OBSERVER, None, vec![change]).await.map(Observed::Found);
                }
                (None, Some(_)) => {}
            }
        }
        let _turn = self.shared.turns.alone(repo).await;
        if self.index().link(repo, digest)?.is_none()
            || self.backend().blob_size(repo, digest).await?.is_some()
        {
            return Ok(Observed::Same);
        }
        let change = Change::BlobDeleted { repo: repo.clone(), digest: *digest };
        self.commit(OBSERVER, None, vec![change]).await.map(Observed::Gone)
    }

    /// Looks at something until the registry says how it is: what was sent there may have happened or
    /// not. Beyond a number of such things at once this is left to the next walk.
    pub(super) fn doubt(&self, repo: &RepoName, reference: &Reference) {
        let thing = (repo.clone(), reference.clone());
        {
            let mut doubts = self.shared.doubts.0.lock().unwrap_or_else(PoisonError::into_inner);
            if doubts.len() >= DOUBTS_MAX || !doubts.insert(thing.clone()) {
                return;
            }
        }
        let (gateway, shutdown) = (self.clone(), self.shared.shutdown.clone());
        drop(self.shared.shutdown.spawn(async move {
            let (repo, reference) = &thing;
            let mut pause = DOUBT_PAUSE_MIN;
            loop {
                let wait = pause + pause.mul_f64(random::number() as f64 / u64::MAX as f64);
                if tokio::time::timeout(wait, shutdown.requested()).await.is_ok() {
                    return;
                }
                match gateway.observe(repo, reference).await {
                    Ok(observed) => {
                        tracing::info!(%repo, %reference, ?observed, "what became of a request is known");
                        break;
                    }
                    Err(GatewayError::Backend(error)) => {
                        tracing::info!(%repo, %reference, %error, "what became of a request is not known yet");
                        pause = (pause * 2).min(DOUBT_PAUSE_MAX);
                    }
                    Err(error) => {
                        tracing::warn!(%repo, %reference, %error, "what became of a request stays open");
                        break;
                    }
                }
            }
            gateway.shared.doubts.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&thing);
        }));
    }

    /// Whether nothing is in doubt.
    pub fn is_certain(&self) -> bool {
        self.shared.doubts.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Appends what happened; when this returns it is durable and can be read.
    pub(super) async fn commit(
        &self,
        actor: &str,
        intent: Option<IntentId>,
        changes: Vec<Change>,
    ) -> Result<Offset, GatewayError> {
        let cause = Cause { actor: actor.to_owned(), intent };
        Ok(self.shared.journal.commit(cause, changes).await?)
    }
}

impl GatewayError {
    /// Whether asking again later may help, and nothing was said against it.
    pub fn is_silence(&self) -> bool {
        let Self::Backend(error) = self else { return false };
        match error {
            BackendError::Unreachable(_) | BackendError::Timeout(_) | BackendError::TooMany { .. } => true,
            BackendError::Status { status } => *status >= 500,
            _ => false,
        }
    }
}
