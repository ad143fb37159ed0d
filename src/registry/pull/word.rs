//! What the primary says. Concurrent identical questions share one.

use std::sync::Arc;

use outport_proto::{Digest, ManifestPut, Reference, RepoName};

use crate::{
    fetch::{At, Upstream, UpstreamError},
    registry::lines::Lines,
    shutdown::Shutdown,
};

/// Different questions of one kind under way at once before further ones are asked alone.
const QUESTIONS_MAX: usize = 10_000;

/// Asks the primary.
pub(super) struct Word {
    upstream: Arc<dyn Upstream>,
    manifests: Lines<(RepoName, Reference), Said<Option<Arc<ManifestPut>>>>,
    links: Lines<(RepoName, Digest), Said<Option<u64>>>,
    referrers: Lines<(RepoName, Digest), Said<Arc<[ManifestPut]>>>,
}

type Said<T> = Result<At<T>, UpstreamError>;

impl Word {
    pub(super) fn new(upstream: Arc<dyn Upstream>, shutdown: &Shutdown) -> Self {
        Self {
            upstream,
            manifests: Lines::new(QUESTIONS_MAX, shutdown.clone()),
            links: Lines::new(QUESTIONS_MAX, shutdown.clone()),
            referrers: Lines::new(QUESTIONS_MAX, shutdown.clone()),
        }
    }

    /// What `reference` names in `repo` now. Bytes that hash to something else, or another digest
    /// than the one asked for, are no answer.
    pub(super) async fn manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Said<Option<Arc<ManifestPut>>> {
        let key = (repo.clone(), reference.clone());
        let question = {
            let (upstream, (repo, reference)) = (Arc::clone(&self.upstream), key.clone());
            async move {
                let said = upstream.resolve(&repo, &reference).await?;
                if let Some(put) = &said.value {
                    check(put, &reference)?;
                }
                Ok(At { value: said.value.map(Arc::new), at: said.at })
            }
        };
        self.manifests.ask(&key, question).await.unwrap_or_else(shutting_down)
    }

    /// The size in bytes of blob `digest` if `repo` links it.
    pub(super) async fn link(&self, repo: &RepoName, digest: &Digest) -> Said<Option<u64>> {
        let key = (repo.clone(), *digest);
        let question = {
            let (upstream, (repo, digest)) = (Arc::clone(&self.upstream), key.clone());
            async move { upstream.link(&repo, &digest).await }
        };
        self.links.ask(&key, question).await.unwrap_or_else(shutting_down)
    }

    /// The manifests of `repo` that refer to `subject`.
    pub(super) async fn referrers(&self, repo: &RepoName, subject: &Digest) -> Said<Arc<[ManifestPut]>> {
        let key = (repo.clone(), *subject);
        let question = {
            let (upstream, (repo, subject)) = (Arc::clone(&self.upstream), key.clone());
            async move {
                let said = upstream.referrers(&repo, &subject).await?;
                Ok(At { value: said.value.into(), at: said.at })
            }
        };
        self.referrers.ask(&key, question).await.unwrap_or_else(shutting_down)
    }
}

fn check(put: &ManifestPut, reference: &Reference) -> Result<(), UpstreamError> {
    let other = matches!(reference, Reference::Digest(asked) if *asked != put.digest);
    let wrong = put.bytes.as_ref().is_some_and(|bytes| {
        bytes.len() as u64 != put.size || Digest::of(put.digest.algorithm(), bytes) != put.digest
    });
    if other || wrong {
        return Err(UpstreamError::Protocol(format!("the manifest it sent is not {}", put.digest)));
    }
    Ok(())
}

fn shutting_down<T>() -> Said<T> {
    Err(UpstreamError::Unavailable("this site is shutting down".to_owned()))
}
