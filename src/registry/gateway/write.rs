//! Pushes and deletes that go through: done at the registry, recorded, then acknowledged.
//!
//! When the registry gives no answer, it may have done it all the same: then it is looked at until that
//! is known, and the client is told to come again.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use outport_proto::{
    Change, Digest, IntentId, ManifestPut, Offset, Reference, RepoName, Tag, route::Endpoint,
};

use super::{Gateway, GatewayError, observe::Doubtful};
pub use crate::fetch::backend::Refusal;
use crate::{
    fetch::backend::{Answered, Asker, Needs},
    registry::{
        PushError,
        push::{BlobPut, Deleted, ManifestPushed, NewManifest, digest_of, parse, to_its_end},
    },
};

const RETRY_AFTER: Duration = Duration::from_secs(5);
/// For so long a registry may go on with what it gave no answer to.
const PENDING: Duration = Duration::from_secs(150);
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");

/// What became of a write.
#[derive(Clone, Debug)]
pub enum Written<T> {
    /// The registry did it, and it is in the log.
    Done(T),
    /// The registry did not, in its own words.
    Refused(Refusal),
}

/// How the registry came to a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was uploaded.
    Uploaded,
    /// It was mounted.
    Mounted {
        /// From there, when the client named it.
        from: Option<RepoName>,
    },
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
        // Before it is a task that goes on without its client.
        let turn_of_tags = self.moving(repo, &put.tags).await.map_err(|error| silent(&error))?;
        to_its_end(&self.shared.shutdown, async move {
            let NewManifest { reference, tags, content_type, bytes } = manifest;
            let (repo, _turn_of_tags) = (put.repo.clone(), turn_of_tags);
            let in_doubt = {
                let (gateway, repo, digest, tags) =
                    (gateway.clone(), repo.clone(), put.digest, put.tags.clone());
                move || {
                    let by_tag = tags.iter().cloned().map(Reference::Tag);
                    for reference in by_tag.chain([Reference::Digest(digest)]) {
                        gateway.doubt(Doubtful::Manifest(repo.clone(), reference), PENDING);
                    }
                }
            };
            // What the intent led to does not hang on what the registry says of tags.
            let announced = Change::ManifestPut(Box::new(put.clone()));
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
                Ok(Answered::Unclear(refusal)) => {
                    in_doubt();
                    return Ok(Written::Refused(refusal));
                }
                Err(error) => {
                    in_doubt();
                    return Err(silent(&error.into()));
                }
            };
            let tags = taken_tags(&reference, &tags, &headers);
            let (digest, subject) = (put.digest, put.subject);
            let put = ManifestPut { tags: tags.clone(), ..put };
            let put = gateway.with_platform(put, config).await;
            let recorded = gateway.recorded(&writer, put).await;
            let offset = recorded.map_err(|error| {
                in_doubt();
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
        let links = self.missing_links(&put).await?;
        if !links.is_empty() {
            self.commit(&writer.actor, None, links).await?;
        }
        self.look_at_children(&put)?;
        self.commit(&writer.actor, writer.intent.clone(), vec![Change::ManifestPut(Box::new(put))]).await
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
        let mut things = vec![Doubtful::Manifest(repo.clone(), reference.clone())];
        // There are registries that delete the manifest with its tag.
        if let Reference::Tag(tag) = &reference
            && let Some(entry) = self.index().tag(&repo, tag)?
        {
            things.push(Doubtful::Manifest(repo.clone(), Reference::Digest(entry.digest)));
        }
        self.delete(writer, repo, (endpoint, change), things).await
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
        let things = vec![Doubtful::Blob(repo.clone(), *digest)];
        self.delete(writer, repo.clone(), (endpoint, change), things).await
    }

    async fn delete(
        &self,
        writer: Writer,
        repo: RepoName,
        (endpoint, change): (Endpoint, Change),
        things: Vec<Doubtful>,
    ) -> Result<Written<Deleted>, PushError> {
        let gateway = self.clone();
        // Before it is a task that goes on without its client.
        let turn_of_repository = self.alone(&repo).await.map_err(|error| silent(&error))?;
        to_its_end(&self.shared.shutdown, async move {
            let _turn_of_repository = turn_of_repository;
            let in_doubt = |pending| {
                for thing in &things {
                    gateway.doubt(thing.clone(), pending);
                }
            };
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
                    if refusal.status == StatusCode::NOT_FOUND {
                        in_doubt(Duration::ZERO);
                    }
                    return Ok(Written::Refused(refusal));
                }
                Ok(Answered::Unclear(refusal)) => {
                    in_doubt(PENDING);
                    return Ok(Written::Refused(refusal));
                }
                Err(error) => {
                    in_doubt(PENDING);
                    return Err(silent(&error.into()));
                }
            }
            let committed = gateway.commit(&writer.actor, writer.intent.clone(), vec![change.clone()]).await;
            let offset = committed.map_err(|error| {
                in_doubt(Duration::ZERO);
                silent(&error)
            })?;
            if let [_, beside @ ..] = things.as_slice() {
                beside.iter().for_each(|thing| gateway.doubt(thing.clone(), Duration::ZERO));
            }
            if let Some(turn) = turn {
                turn.finish(digest_of(&change)?, offset);
            }
            Ok(Written::Done(Deleted { offset }))
        })
        .await
    }

    /// The registry took in a blob: recorded as it says that it has it.
    ///
    /// # Errors
    /// [`PushError::BlobUnknown`] when it says that it does not; [`PushError::Unavailable`] when that
    /// cannot be told or recorded: the client comes again.
    pub async fn blob_taken(
        &self,
        actor: &str,
        repo: &RepoName,
        digest: &Digest,
        how: Taken,
    ) -> Result<BlobPut, PushError> {
        let (gateway, actor, repo, digest) = (self.clone(), actor.to_owned(), repo.clone(), *digest);
        let turn = self.moving(&repo, &[]).await.map_err(|error| silent(&error))?;
        to_its_end(&self.shared.shutdown, async move {
            let _turn = turn;
            let size = gateway.backend().blob_size(&repo, &digest).await;
            let size = size.map_err(|error| silent(&error.into()))?.ok_or(PushError::BlobUnknown)?;
            let change = match how {
                Taken::Uploaded => Change::BlobCommitted { repo, digest, size },
                Taken::Mounted { from } => Change::BlobMounted { repo, digest, size, from },
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
