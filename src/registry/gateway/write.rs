//! Pushes and deletes that go through: done at the registry, recorded, then acknowledged.
//!
//! When the registry gives no answer, it may have done it all the same: then it is looked at until that
//! is known, and the client is told to come again.

use std::{future::Future, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use outport_proto::{
    Change, Digest, IntentId, ManifestPut, Offset, Reference, RepoName, Tag, route::Endpoint,
};

use super::{Gateway, GatewayError};
pub use crate::fetch::backend::Refusal;
use crate::{
    fetch::backend::{Answered, Asker, Needs},
    registry::{
        PushError,
        push::{BlobPut, Deleted, ManifestPushed, NewManifest, digest_of, parse},
    },
};

const RETRY_AFTER: Duration = Duration::from_secs(5);
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");

/// What became of a write.
#[derive(Clone, Debug)]
pub enum Written<T> {
    /// The registry did it, and it is in the log.
    Done(T),
    /// The registry did not, in its own words.
    Refused(Refusal),
}

/// In whose name a write is done, and what announced it.
#[derive(Clone, Debug)]
pub struct Writer {
    /// The actor of the event.
    pub actor: String,
    /// Who the registry sees.
    pub shown: Shown,
    /// The write intent that it fulfils.
    pub intent: Option<IntentId>,
}

/// Who the registry sees.
#[derive(Clone, Debug)]
pub enum Shown {
    /// The gateway.
    Gateway,
    /// The caller, with the `Authorization` they sent.
    Caller(Option<HeaderValue>),
}

impl Shown {
    fn asker<'a>(&'a self, needs: Needs<'a>) -> Asker<'a> {
        match self {
            Self::Gateway => Asker::Gateway(needs),
            Self::Caller(authorization) => Asker::Caller(authorization.as_ref()),
        }
    }
}

impl Gateway {
    /// Puts a manifest. What the registry does not know of (`?tag=` of a newer specification) is not
    /// recorded either.
    ///
    /// # Errors
    /// [`PushError`]: `ManifestInvalid`, `DigestInvalid`, `TooLarge` and `Unsupported` before the
    /// registry is asked; `Unavailable` when it gave no answer.
    pub async fn put_manifest(
        &self,
        writer: Writer,
        repo: &RepoName,
        manifest: NewManifest,
    ) -> Result<Written<ManifestPushed>, PushError> {
        let (put, config) = parse(repo, &manifest)?;
        let gateway = self.clone();
        self.to_its_end(async move {
            let NewManifest { reference, tags, content_type, bytes } = manifest;
            let repo = put.repo.clone();
            let _turn = gateway.shared.turns.moving(&repo, &put.tags).await;
            // What the intent led to does not hang on what the registry says of tags.
            let announced = Change::ManifestPut(Box::new(ManifestPut { platform: None, ..put.clone() }));
            let turn = gateway.intent_turn(&writer).await?;
            if let Some(turn) = &turn
                && let Some(offset) = turn.done(&announced)?
            {
                let (digest, subject, tags) = (put.digest, put.subject, put.tags.clone());
                return Ok(Written::Done(ManifestPushed { digest, subject, tags, offset }));
            }
            let asker = writer.shown.asker(Needs::Push(&repo, None));
            let sent =
                gateway.backend().put_manifest((&repo, &reference, &tags), &content_type, bytes, asker);
            let headers = match sent.await {
                Ok(Answered::Done(headers)) => headers,
                Ok(Answered::Refused(refusal)) => return Ok(Written::Refused(refusal)),
                Err(error) => {
                    put.tags.iter().for_each(|tag| gateway.doubt(&repo, &Reference::Tag(tag.clone())));
                    gateway.doubt(&repo, &Reference::Digest(put.digest));
                    return Err(silent(&error.into()));
                }
            };
            let tags = taken_tags(&reference, &tags, &headers);
            let (digest, subject) = (put.digest, put.subject);
            let put = ManifestPut { tags: tags.clone(), ..put };
            let put = gateway.with_platform(put, config).await;
            let recorded = gateway.recorded(&writer, put).await;
            let offset = recorded.map_err(|error| {
                gateway.doubt(&repo, &reference);
                silent(&error)
            })?;
            if let Some(turn) = turn {
                turn.finish(digest_of(&announced)?, offset);
            }
            Ok(Written::Done(ManifestPushed { digest, subject, tags, offset }))
        })
        .await
    }

    /// An intent ends with the first event that carries it: what comes before goes without.
    async fn recorded(&self, writer: &Writer, put: ManifestPut) -> Result<Offset, GatewayError> {
        let mut changes = self.with_children(put, 0).await?;
        let last = changes.split_off(changes.len().saturating_sub(1));
        if !changes.is_empty() {
            self.commit(&writer.actor, None, changes).await?;
        }
        self.commit(&writer.actor, writer.intent.clone(), last).await
    }

    /// Deletes a tag, or a manifest with every tag that names it.
    ///
    /// # Errors
    /// [`PushError::Unavailable`] when the registry gave no answer.
    pub async fn delete_manifest(
        &self,
        writer: Writer,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Written<Deleted>, PushError> {
        let (repo, reference) = (repo.clone(), reference.clone());
        let change = match reference.clone() {
            Reference::Tag(tag) => Change::TagDeleted { repo: repo.clone(), tag },
            Reference::Digest(digest) => Change::ManifestDeleted { repo: repo.clone(), digest },
        };
        let endpoint = Endpoint::Manifest { repo: repo.clone(), reference: reference.clone() };
        self.delete(writer, repo, (endpoint, change), move |gateway, repo| {
            gateway.doubt(repo, &reference);
        })
        .await
    }

    /// Deletes a repository's link to a blob.
    ///
    /// # Errors
    /// [`PushError::Unavailable`] when the registry gave no answer.
    pub async fn delete_blob(
        &self,
        writer: Writer,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Written<Deleted>, PushError> {
        let change = Change::BlobDeleted { repo: repo.clone(), digest: *digest };
        let endpoint = Endpoint::Blob { repo: repo.clone(), digest: *digest };
        // A link too many is found by who fetches the blob.
        self.delete(writer, repo.clone(), (endpoint, change), |_, _| {}).await
    }

    async fn delete(
        &self,
        writer: Writer,
        repo: RepoName,
        (endpoint, change): (Endpoint, Change),
        doubt: impl Fn(&Self, &RepoName) + Send + 'static,
    ) -> Result<Written<Deleted>, PushError> {
        let gateway = self.clone();
        self.to_its_end(async move {
            let _turn = gateway.shared.turns.alone(&repo).await;
            let turn = gateway.intent_turn(&writer).await?;
            if let Some(turn) = &turn
                && let Some(offset) = turn.done(&change)?
            {
                return Ok(Written::Done(Deleted { offset }));
            }
            match gateway.backend().delete(&endpoint, writer.shown.asker(Needs::Delete(&repo))).await {
                Ok(Answered::Done(_)) => {}
                Ok(Answered::Refused(refusal)) => {
                    // It may be gone already, and not by way of here.
                    if refusal.status == http::StatusCode::NOT_FOUND {
                        doubt(&gateway, &repo);
                    }
                    return Ok(Written::Refused(refusal));
                }
                Err(error) => {
                    doubt(&gateway, &repo);
                    return Err(silent(&error.into()));
                }
            }
            let committed = gateway.commit(&writer.actor, writer.intent.clone(), vec![change.clone()]).await;
            let offset = committed.map_err(|error| {
                doubt(&gateway, &repo);
                silent(&error)
            })?;
            if let Some(turn) = turn {
                turn.finish(digest_of(&change)?, offset);
            }
            Ok(Written::Done(Deleted { offset }))
        })
        .await
    }

    /// The registry took in a blob, or mounted it from `from`: recorded as it says that it has it.
    ///
    /// # Errors
    /// [`PushError::Unavailable`] when that cannot be told or recorded: the client comes again.
    pub async fn blob_taken(
        &self,
        actor: &str,
        repo: &RepoName,
        digest: &Digest,
        from: Option<Option<&RepoName>>,
    ) -> Result<BlobPut, PushError> {
        let (gateway, actor, repo, digest) = (self.clone(), actor.to_owned(), repo.clone(), *digest);
        let from = from.map(|from| from.cloned());
        self.to_its_end(async move {
            let _turn = gateway.shared.turns.moving(&repo, &[]).await;
            let size = gateway.backend().blob_size(&repo, &digest).await;
            let size = size.map_err(|error| silent(&error.into()))?.ok_or_else(|| {
                tracing::warn!(%repo, %digest, "the registry does not have a blob that it took a moment ago");
                unavailable("the registry does not have the blob that it took")
            })?;
            let change = match from {
                None => Change::BlobCommitted { repo, digest, size },
                Some(from) => Change::BlobMounted { repo, digest, size, from },
            };
            let committed = gateway.commit(&actor, None, vec![change]).await;
            Ok(BlobPut { digest, size, offset: committed.map_err(|error| silent(&error))? })
        })
        .await
    }

    async fn intent_turn(&self, writer: &Writer) -> Result<Option<crate::registry::push::Turn>, PushError> {
        let Some(intent) = &writer.intent else { return Ok(None) };
        let shared = &self.shared;
        shared.fulfilled.turn(intent, shared.journal.log(), shared.clock.now()).await.map(Some)
    }

    /// Does `work` to its end, also when the caller of this leaves.
    async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, PushError>> + Send + 'static,
    ) -> Result<T, PushError> {
        self.shared.shutdown.spawn(work).await.unwrap_or_else(|error| {
            tracing::error!(%error, "a change broke off");
            Err(PushError::Internal)
        })
    }
}

/// The tags that the registry says name the manifest now: the one in the path, and of those in the query
/// the ones it confirms.
fn taken_tags(reference: &Reference, asked: &[Tag], headers: &HeaderMap) -> Vec<Tag> {
    let confirmed: Vec<&str> =
        headers.get_all(OCI_TAG).iter().filter_map(|value| value.to_str().ok()).collect();
    let in_path = match reference {
        Reference::Tag(tag) => Some(tag),
        Reference::Digest(_) => None,
    };
    in_path.into_iter().chain(asked.iter().filter(|tag| confirmed.contains(&tag.as_str()))).cloned().collect()
}

fn silent(error: &GatewayError) -> PushError {
    tracing::warn!(%error, "a write is not acknowledged");
    unavailable("the registry behind this site gave no answer that could be recorded")
}

fn unavailable(reason: &str) -> PushError {
    PushError::Unavailable { reason: reason.to_owned(), retry_after: RETRY_AFTER }
}
