//! What a gateway is asked about its registry: by pulls here, and by sites.

use bytes::Bytes;
use outport_proto::{Digest, ManifestPut, Offset, Reference, RepoName};

use super::{Gateway, GatewayError, observe::Observed};
use crate::{
    fetch::{At, Body, BoxFuture, Upstream, UpstreamError},
    index::IndexError,
    registry::lines::Lines,
};

/// Different questions of one kind under way at once before further ones are asked alone.
const QUESTIONS_MAX: usize = 10_000;

/// Answers with what the registry says, recorded first. Questions that are the same share one.
pub struct GatewayUpstream {
    gateway: Gateway,
    manifests: Lines<(RepoName, Reference), Result<Observed, GatewayError>>,
    blobs: Lines<(RepoName, Digest), Result<Observed, GatewayError>>,
    repositories: Lines<RepoName, Result<(), GatewayError>>,
}

impl GatewayUpstream {
    /// The registry of `gateway`.
    pub fn new(gateway: Gateway) -> Self {
        let lines = gateway.shared.shutdown.clone();
        let manifests = Lines::new(QUESTIONS_MAX, lines.clone());
        let blobs = Lines::new(QUESTIONS_MAX, lines.clone());
        Self { gateway, manifests, blobs, repositories: Lines::new(QUESTIONS_MAX, lines) }
    }

    /// Where the log is, once the index shows all of it.
    async fn at(&self) -> Result<Offset, UpstreamError> {
        let journal = &self.gateway.shared.journal;
        journal.level().await.map_err(|behind| UpstreamError::Unavailable(behind.to_string()))?;
        Ok(journal.applied())
    }

    /// Whether the log may answer in place of a registry that is silent. What a digest names does not change.
    fn may_answer(&self, reference: &Reference) -> bool {
        matches!(reference, Reference::Digest(_)) || !*self.gateway.shared.unsure.borrow()
    }

    async fn look(&self, repo: &RepoName, reference: &Reference) -> Result<(), UpstreamError> {
        let key = (repo.clone(), reference.clone());
        let question = {
            let (gateway, (repo, reference)) = (self.gateway.clone(), key.clone());
            async move {
                let may_remove = || gateway.shared.budget.take();
                let observed = gateway.observe_if(&repo, &reference, &may_remove).await;
                if let (Ok(Observed::Found | Observed::Gone), Some(tell)) =
                    (&observed, gateway.shared.on_find.get())
                {
                    tell(&repo, &reference);
                }
                observed
            }
        };
        judged(self.manifests.ask(&key, question).await, || {
            let known = self.gateway.index().manifest(repo, reference)?;
            Ok(known.is_some() && self.may_answer(reference))
        })
    }

    async fn look_at_blob(&self, repo: &RepoName, digest: &Digest) -> Result<(), UpstreamError> {
        let key = (repo.clone(), *digest);
        let question = {
            let (gateway, (repo, digest)) = (self.gateway.clone(), key.clone());
            async move {
                let may_remove = || gateway.shared.budget.take();
                gateway.observe_blob_if(&repo, &digest, &may_remove).await
            }
        };
        judged(self.blobs.ask(&key, question).await, || {
            Ok(self.gateway.index().link(repo, digest)?.is_some())
        })
    }

    async fn resolved(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<At<Option<ManifestPut>>, UpstreamError> {
        let is_new = !self.gateway.index().has_repository(repo).map_err(unreadable)?;
        self.look(repo, reference).await?;
        if is_new {
            self.learn(repo).await?;
        }
        let at = self.at().await?;
        let Some(record) = self.gateway.index().named_record(repo, reference).map_err(unreadable)? else {
            return Ok(At { value: None, at });
        };
        let bytes = self.manifest_bytes(&record).await?;
        Ok(At { value: Some(ManifestPut { bytes: Some(bytes), tags: Vec::new(), ..record }), at })
    }

    /// Records all tags of a repository that the log does not have: nobody must take what is recorded of it
    /// so far for all of it, least of all nothing.
    async fn learn(&self, repo: &RepoName) -> Result<(), UpstreamError> {
        let question = {
            let (gateway, repo) = (self.gateway.clone(), repo.clone());
            async move { gateway.learn(&repo).await }
        };
        match self.repositories.ask(repo, question).await {
            None => Err(UpstreamError::Unavailable("this site is shutting down".to_owned())),
            Some(learnt) => Ok(learnt?),
        }
    }

    /// A manifest's bytes. One that is too large for its event stays at the registry.
    async fn manifest_bytes(&self, record: &ManifestPut) -> Result<Bytes, UpstreamError> {
        if let Some(bytes) = &record.bytes {
            return Ok(bytes.clone());
        }
        let reference = Reference::Digest(record.digest);
        match self.gateway.backend().manifest(&record.repo, &reference).await? {
            Some(manifest) => Ok(manifest.bytes),
            None => Err(UpstreamError::Unavailable(format!("the registry lost {}", record.digest))),
        }
    }

    async fn fetched(
        &self,
        repo: &RepoName,
        digest: &Digest,
        offset: u64,
    ) -> Result<Option<Box<dyn Body>>, UpstreamError> {
        let index = self.gateway.index();
        let mut link = index.link(repo, digest).map_err(unreadable)?;
        if link.is_none()
            && let Some(record) = index.manifest_record(repo, digest).map_err(unreadable)?
        {
            let bytes = self.manifest_bytes(&record).await?;
            return Ok(Some(Box::new(InMemory::from(bytes, offset))));
        }
        if link.is_none() {
            self.look_at_blob(repo, digest).await?;
            link = index.link(repo, digest).map_err(unreadable)?;
        }
        let Some(size) = link else { return Ok(None) };
        if repo.is_canary() {
            return Err(UpstreamError::Unavailable("the canary is here or nowhere".to_owned()));
        }
        match self.gateway.backend().blob(repo, digest, offset).await? {
            Some(body) if body.size() == size => Ok(Some(body)),
            // The log says something else: whoever asks next gets the registry's word.
            other => {
                drop(other);
                self.look_at_blob(repo, digest).await?;
                match index.link(repo, digest).map_err(unreadable)? {
                    None => Ok(None),
                    Some(_) => {
                        Err(UpstreamError::Unavailable(format!("{digest} has another size than was known")))
                    }
                }
            }
        }
    }
}

/// What is known stays known while the registry is silent: nothing newer can be had.
fn judged(
    observed: Option<Result<Observed, GatewayError>>,
    is_known: impl FnOnce() -> Result<bool, GatewayError>,
) -> Result<(), UpstreamError> {
    match observed {
        None => Err(UpstreamError::Unavailable("this site is shutting down".to_owned())),
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) if error.is_silence() && is_known()? => {
            tracing::info!(%error, "the registry is silent, the log answers");
            Ok(())
        }
        Some(Err(error)) => Err(error.into()),
    }
}

fn unreadable(error: IndexError) -> UpstreamError {
    UpstreamError::Unavailable(error.to_string())
}

impl Upstream for GatewayUpstream {
    fn resolve<'a>(
        &'a self,
        repo: &'a RepoName,
        reference: &'a Reference,
    ) -> BoxFuture<'a, Result<At<Option<ManifestPut>>, UpstreamError>> {
        Box::pin(self.resolved(repo, reference))
    }

    fn link<'a>(
        &'a self,
        repo: &'a RepoName,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<At<Option<u64>>, UpstreamError>> {
        Box::pin(async move {
            self.look_at_blob(repo, digest).await?;
            let at = self.at().await?;
            Ok(At { value: self.gateway.index().link(repo, digest).map_err(unreadable)?, at })
        })
    }

    /// From the log, which knows more than registries that have no referrers themselves; of those that
    /// have, what the log lacks is recorded first.
    fn referrers<'a>(
        &'a self,
        repo: &'a RepoName,
        subject: &'a Digest,
    ) -> BoxFuture<'a, Result<At<Vec<ManifestPut>>, UpstreamError>> {
        Box::pin(async move {
            match self.gateway.learn_referrers(repo, subject).await {
                Ok(()) => {}
                Err(error) if error.is_silence() => {
                    tracing::info!(%error, "the registry is silent, the log answers")
                }
                Err(error) => return Err(error.into()),
            }
            let at = self.at().await?;
            Ok(At { value: self.gateway.index().referrers(repo, subject).map_err(unreadable)?, at })
        })
    }

    fn fetch<'a>(
        &'a self,
        repo: &'a RepoName,
        digest: &'a Digest,
        offset: u64,
    ) -> BoxFuture<'a, Result<Option<Box<dyn Body>>, UpstreamError>> {
        Box::pin(self.fetched(repo, digest, offset))
    }
}

/// Bytes that are here.
struct InMemory {
    size: u64,
    rest: Option<Bytes>,
}

impl InMemory {
    fn from(bytes: Bytes, offset: u64) -> Self {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        Self { size: bytes.len() as u64, rest: Some(bytes.slice(start..)).filter(|rest| !rest.is_empty()) }
    }
}

impl Body for InMemory {
    fn size(&self) -> u64 {
        self.size
    }

    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, UpstreamError>> {
        Box::pin(std::future::ready(Ok(self.rest.take())))
    }
}
