//! Asking the registry about one thing and recording the answer.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use outport_proto::{Change, Digest, IntentId, Offset, Reference, RepoName, Tag};
use tokio::time::Instant;

use super::{
    Gateway, GatewayError,
    turns::{Alone, Moving},
};
use crate::{
    fetch::backend::{BackendError, ManifestHead},
    log::Cause,
    random,
};

/// Who is named as the actor of what was not asked for through here.
pub(super) const OBSERVER: &str = "";
/// A "no" to what the log has is believed when it is said twice: nodes of a registry may lag behind each
/// other.
const SECOND_LOOK: Duration = Duration::from_millis(300);
const HOUR: Duration = Duration::from_secs(3600);
/// How long somebody waits for their turn, before the registry is asked for them.
const TURN_WAIT_MAX: Duration = Duration::from_secs(10);
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
    Found,
    /// It lacks what the log had.
    Gone,
}

/// Whether something may be removed from the log; asked once for each.
pub(super) type MayRemove<'a> = dyn Fn() -> bool + Send + Sync + 'a;

/// How much may be removed in an hour without anybody saying so. A registry that lost its storage says "no" to
/// whatever is asked, and sites and walks ask for much: beyond this the log stays as it is.
#[derive(Debug)]
pub(super) struct Budget {
    an_hour: u64,
    state: Mutex<Left>,
}

#[derive(Debug)]
struct Left {
    since: Instant,
    removals: u64,
    /// More was gone than that: nothing is removed any more until a walk found all in order.
    is_closed: bool,
}

impl Budget {
    pub(super) fn new(an_hour: u64) -> Self {
        let left = Left { since: Instant::now(), removals: an_hour, is_closed: false };
        Self { an_hour, state: Mutex::new(left) }
    }

    /// Takes the right to remove one more.
    pub(super) fn take(&self) -> bool {
        let mut left = self.lock();
        if left.since.elapsed() >= HOUR {
            *left = Left { since: Instant::now(), removals: self.an_hour, ..*left };
        }
        let taken = !left.is_closed && left.removals > 0;
        left.removals = left.removals.saturating_sub(1);
        taken
    }

    /// Nothing is removed until [`Budget::open`].
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
    }

    /// All that was gone is back, or was removed because somebody said so.
    pub(super) fn open(&self) {
        let mut left = self.lock();
        if left.is_closed {
            *left = Left { since: Instant::now(), removals: self.an_hour, is_closed: false };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Left> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What has to be looked at again until the registry answers, and for how long at least.
#[derive(Debug, Default)]
pub(super) struct Doubts(Mutex<HashMap<Doubtful, Instant>>);

/// Something at the registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Doubtful {
    Manifest(RepoName, Reference),
    Blob(RepoName, Digest),
}

/// A place among the doubts, while it is held.
struct InDoubt {
    gateway: Gateway,
    thing: Doubtful,
}

impl Drop for InDoubt {
    fn drop(&mut self) {
        self.gateway.doubts().remove(&self.thing);
    }
}

impl Gateway {
    /// Looks what a tag or digest names at the registry and records it.
    ///
    /// # Errors
    /// [`GatewayError`].
    pub async fn observe(&self, repo: &RepoName, reference: &Reference) -> Result<Observed, GatewayError> {
        self.observe_if(repo, reference, &|| true).await
    }

    /// [`Gateway::observe`], but what the registry lacks is removed only if `may_remove` says so.
    ///
    /// # Errors
    /// [`GatewayError::NotRemoved`] when it does not.
    pub(super) async fn observe_if(
        &self,
        repo: &RepoName,
        reference: &Reference,
        may_remove: &MayRemove<'_>,
    ) -> Result<Observed, GatewayError> {
        if repo.is_canary() {
            return Ok(Observed::Same);
        }
        match reference {
            Reference::Tag(tag) => self.observe_tag(repo, tag, may_remove).await,
            Reference::Digest(digest) => self.observe_manifest(repo, digest, may_remove).await,
        }
    }

    async fn observe_tag(
        &self,
        repo: &RepoName,
        tag: &Tag,
        may_remove: &MayRemove<'_>,
    ) -> Result<Observed, GatewayError> {
        let tags = std::slice::from_ref(tag);
        let _turn = self.moving(repo, tags).await?;
        let known = self.index().tag(repo, tag)?.map(|entry| entry.digest);
        let reference = Reference::Tag(tag.clone());
        if let ManifestHead::Is(digest) = self.backend().manifest_head(repo, &reference).await?
            && let Some(record) = self.index().manifest_record(repo, &digest)?
        {
            if known == Some(digest) {
                return Ok(Observed::Same);
            }
            return self.commit_tags(record, tags).await.map(|_| Observed::Found);
        }
        let mut found = self.backend().manifest(repo, &reference).await?;
        if found.is_none() && known.is_some() {
            tokio::time::sleep(SECOND_LOOK).await;
            found = self.backend().manifest(repo, &reference).await?;
        }
        match found {
            Some(manifest) => {
                let digest = manifest.digest;
                if known == Some(digest) && self.index().manifest_record(repo, &digest)?.is_some() {
                    return Ok(Observed::Same);
                }
                self.record(repo, manifest, tags).await.map(|_| Observed::Found)
            }
            None if known.is_none() => Ok(Observed::Same),
            None => {
                let change = Change::TagDeleted { repo: repo.clone(), tag: tag.clone() };
                self.remove(change, may_remove).await
            }
        }
    }

    async fn observe_manifest(
        &self,
        repo: &RepoName,
        digest: &Digest,
        may_remove: &MayRemove<'_>,
    ) -> Result<Observed, GatewayError> {
        let reference = Reference::Digest(*digest);
        {
            let _turn = self.moving(repo, &[]).await?;
            let known = self.index().manifest_record(repo, digest)?.is_some();
            if known && self.backend().manifest_head(repo, &reference).await? == ManifestHead::Is(*digest) {
                return Ok(Observed::Same);
            }
            match self.backend().manifest(repo, &reference).await? {
                Some(_) if known => return Ok(Observed::Same),
                Some(manifest) => return self.record(repo, manifest, &[]).await.map(|_| Observed::Found),
                None if !known => return Ok(Observed::Same),
                None => {}
            }
        }
        tokio::time::sleep(SECOND_LOOK).await;
        let _turn = self.alone(repo).await?;
        if self.index().manifest_record(repo, digest)?.is_none()
            || self.backend().manifest(repo, &reference).await?.is_some()
        {
            return Ok(Observed::Same);
        }
        let change = Change::ManifestDeleted { repo: repo.clone(), digest: *digest };
        self.remove(change, may_remove).await
    }

    /// Looks whether the registry has a blob in `repo` and records it.
    ///
    /// # Errors
    /// [`GatewayError`].
    pub async fn observe_blob(&self, repo: &RepoName, digest: &Digest) -> Result<Observed, GatewayError> {
        self.observe_blob_if(repo, digest, &|| true).await
    }

    /// [`Gateway::observe_blob`], but a link that the registry lacks is removed only if `may_remove` says so.
    ///
    /// # Errors
    /// [`GatewayError::NotRemoved`] when it does not.
    pub(super) async fn observe_blob_if(
        &self,
        repo: &RepoName,
        digest: &Digest,
        may_remove: &MayRemove<'_>,
    ) -> Result<Observed, GatewayError> {
        if repo.is_canary() {
            return Ok(Observed::Same);
        }
        {
            let _turn = self.moving(repo, &[]).await?;
            let known = self.index().link(repo, digest)?;
            match (self.backend().blob_size(repo, digest).await?, known) {
                (Some(size), Some(known)) if size == known => return Ok(Observed::Same),
                (None, None) => return Ok(Observed::Same),
                (Some(size), _) => {
                    let change = Change::BlobCommitted { repo: repo.clone(), digest: *digest, size };
                    return self.commit(OBSERVER, None, vec![change]).await.map(|_| Observed::Found);
                }
                (None, Some(_)) => {}
            }
        }
        tokio::time::sleep(SECOND_LOOK).await;
        let _turn = self.alone(repo).await?;
        if self.index().link(repo, digest)?.is_none()
            || self.backend().blob_size(repo, digest).await?.is_some()
        {
            return Ok(Observed::Same);
        }
        let change = Change::BlobDeleted { repo: repo.clone(), digest: *digest };
        self.remove(change, may_remove).await
    }

    /// Records that something is gone, if it may be.
    async fn remove(&self, change: Change, may_remove: &MayRemove<'_>) -> Result<Observed, GatewayError> {
        if !may_remove() {
            return Err(GatewayError::NotRemoved);
        }
        self.commit(OBSERVER, None, vec![change]).await.map(|_| Observed::Gone)
    }

    /// Looks at something until the registry says how it has it: what was sent there may have happened,
    /// or may happen yet, as long as the registry may work on it (`pending`). Beyond a number of such things at
    /// once, and after a restart, this is left to the next walk.
    pub(super) fn doubt(&self, thing: Doubtful, pending: Duration) {
        let until = Instant::now() + pending;
        {
            let mut doubts = self.doubts();
            let is_full = doubts.len() >= DOUBTS_MAX;
            match doubts.entry(thing.clone()) {
                Entry::Occupied(mut known) => {
                    let longer = until.max(*known.get());
                    known.insert(longer);
                    return;
                }
                Entry::Vacant(_) if is_full => {
                    self.give_up();
                    return;
                }
                Entry::Vacant(place) => _ = place.insert(until),
            }
        }
        let (place, shutdown) = (InDoubt { gateway: self.clone(), thing }, self.shared.shutdown.clone());
        drop(self.shared.shutdown.spawn(async move {
            let InDoubt { gateway, thing } = &place;
            let mut pause = DOUBT_PAUSE_MIN;
            loop {
                let until = gateway.doubts().get(thing).copied();
                let is_last = until.is_none_or(|until| Instant::now() >= until);
                let looked = match thing {
                    Doubtful::Manifest(repo, reference) => gateway.observe(repo, reference).await,
                    Doubtful::Blob(repo, digest) => gateway.observe_blob(repo, digest).await,
                };
                match &looked {
                    Ok(observed) if is_last => {
                        tracing::info!(?thing, ?observed, "what became of a request is known");
                        return;
                    }
                    Ok(_) => {}
                    Err(error) if error.may_pass() => {
                        tracing::info!(?thing, %error, "what became of a request is not known yet");
                    }
                    Err(error) => {
                        tracing::warn!(?thing, %error, "what became of a request stays open");
                        gateway.give_up();
                        return;
                    }
                }
                let asked_to_wait = match looked {
                    Err(GatewayError::Backend(BackendError::TooMany { retry_after })) => retry_after,
                    _ => None,
                };
                let wait = pause + pause.mul_f64(random::number() as f64 / u64::MAX as f64);
                let wait = wait.max(asked_to_wait.unwrap_or_default()).min(DOUBT_PAUSE_MAX * 4);
                if tokio::time::timeout(wait, shutdown.requested()).await.is_ok() {
                    return;
                }
                pause = (pause * 2).min(DOUBT_PAUSE_MAX);
            }
        }));
    }

    /// A doubt is left to a walk.
    fn give_up(&self) {
        if let Some(tell) = self.shared.on_give_up.get() {
            tell();
        }
    }

    fn doubts(&self) -> MutexGuard<'_, HashMap<Doubtful, Instant>> {
        self.shared.doubts.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn of some tags of a repository, if it comes in time.
    pub(super) async fn moving(&self, repo: &RepoName, tags: &[Tag]) -> Result<Moving, GatewayError> {
        let turn = tokio::time::timeout(TURN_WAIT_MAX, self.shared.turns.moving(repo, tags)).await;
        turn.map_err(|_| GatewayError::Busy)
    }

    /// A repository's own turn, if it comes in time.
    pub(super) async fn alone(&self, repo: &RepoName) -> Result<Alone, GatewayError> {
        let turn = tokio::time::timeout(TURN_WAIT_MAX, self.shared.turns.alone(repo)).await;
        turn.map_err(|_| GatewayError::Busy)
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
    /// Whether the registry said nothing: it is down, or as good as.
    pub fn is_silence(&self) -> bool {
        match self {
            Self::Backend(BackendError::Unreachable(_) | BackendError::Timeout(_)) => true,
            Self::Backend(BackendError::Status { status }) => *status >= 500,
            _ => false,
        }
    }

    /// Whether asking again later may help.
    pub fn may_pass(&self) -> bool {
        let is_transient = matches!(
            self,
            Self::Busy | Self::Journal(_) | Self::Index(_) | Self::Backend(BackendError::TooMany { .. })
        );
        self.is_silence() || is_transient
    }
}
