//! What the primary says. Concurrent identical questions share one.

use std::sync::Arc;

use outport_proto::{Digest, ManifestPut, Offset, Reference, RepoName};

use crate::{
    fetch::{At, Upstream, UpstreamError},
    registry::lines::Lines,
    shutdown::Shutdown,
};

/// Different questions of one kind under way at once before further ones are asked alone.
const QUESTIONS_MAX: usize = 10_000;

/// Asks the primary. Who asks says what he has `seen` of the log: an answer that holds at an older
/// place than that is nobody's word, least of all a "no".
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
        seen: Offset,
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
        not_before(seen, self.manifests.ask(&key, question).await)
    }

    /// The size in bytes of blob `digest` if `repo` links it.
    pub(super) async fn link(&self, repo: &RepoName, digest: &Digest, seen: Offset) -> Said<Option<u64>> {
        let key = (repo.clone(), *digest);
        let question = {
            let (upstream, (repo, digest)) = (Arc::clone(&self.upstream), key.clone());
            async move { upstream.link(&repo, &digest).await }
        };
        not_before(seen, self.links.ask(&key, question).await)
    }

    /// The manifests of `repo` that refer to `subject`.
    pub(super) async fn referrers(
        &self,
        repo: &RepoName,
        subject: &Digest,
        seen: Offset,
    ) -> Said<Arc<[ManifestPut]>> {
        let key = (repo.clone(), *subject);
        let question = {
            let (upstream, (repo, subject)) = (Arc::clone(&self.upstream), key.clone());
            async move {
                let said = upstream.referrers(&repo, &subject).await?;
                Ok(At { value: said.value.into(), at: said.at })
            }
        };
        not_before(seen, self.referrers.ask(&key, question).await)
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

/// What was said, unless it holds at a place of the log before `seen`.
fn not_before<T>(seen: Offset, said: Option<Said<T>>) -> Said<T> {
    match said {
        None => Err(UpstreamError::Unavailable("this site is shutting down".to_owned())),
        Some(Ok(At { at, .. })) if at < seen => {
            Err(UpstreamError::Unavailable(format!("it answers as of {at}, and {seen} is here")))
        }
        Some(said) => said,
    }
}
