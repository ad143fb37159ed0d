//! What a site that relays does not know or have itself: it asks its upstream, and fills.

use std::sync::Arc;

use outport_proto::{
    Digest, Offset, Reference, RepoName,
    frame::{Request, Response},
};

use super::requests::{Answer, AnswerError};
use crate::{
    fetch::{FillError, Flights, Linked, Upstream, UpstreamError},
    registry::Exclusion,
};

/// The way up of a site that relays. Cloning gives another handle.
#[derive(Clone)]
pub struct Above {
    /// Who is asked.
    pub upstream: Arc<dyn Upstream>,
    /// Brings blobs here, each once however many sites want it.
    pub flights: Flights,
    /// What is not kept here, and streamed through.
    pub exclusion: Arc<Exclusion>,
}

impl Above {
    /// What the primary answers; `None` when the request is not about what is there now.
    pub(super) async fn said(&self, request: &Request) -> Result<Option<Response>, UpstreamError> {
        Ok(Some(match request {
            Request::Resolve { repo, reference } => {
                let said = self.upstream.resolve(repo, reference).await?;
                match said.value {
                    Some(manifest) => Response::Manifest { manifest: Box::new(manifest), at: said.at },
                    None => Response::NotFound { at: said.at },
                }
            }
            Request::Link { repo, digest } => {
                let said = self.upstream.link(repo, digest).await?;
                match said.value {
                    Some(size) => Response::Linked { size, at: said.at },
                    None => Response::NotFound { at: said.at },
                }
            }
            Request::Referrers { repo, digest } => {
                let said = self.upstream.referrers(repo, digest).await?;
                Response::Manifests { manifests: said.value, at: said.at }
            }
            _ => return Ok(None),
        }))
    }

    /// The bytes of `digest` from `offset` on, which this site does not have. `size` is what its
    /// index says of them, if it knows them; `at` is what it had applied then.
    pub(super) async fn fetched(
        &self,
        repo: &RepoName,
        digest: &Digest,
        offset: u64,
        size: Option<u64>,
        at: Offset,
    ) -> Result<Answer, AnswerError> {
        // Without the primary's word one repository's flight would show another one what exists.
        let size = match size {
            Some(size) => size,
            None => match self.upstream.link(repo, digest).await?.value {
                Some(size) => size,
                None => return self.manifest(repo, digest, offset).await,
            },
        };
        let linked = Linked { size: Some(size) };
        let flight = if self.exclusion.excludes(repo, digest).await {
            self.flights.pass(repo, digest, linked)
        } else {
            self.flights.join(repo, digest, linked)
        };
        match flight.size().await {
            Ok(size) => Ok(Answer::Filling { flight, size, offset }),
            Err(FillError::NotLinked) => Ok(Answer::Frame(Response::NotFound { at })),
            Err(error) => Err(AnswerError::Fill(error)),
        }
    }

    async fn manifest(&self, repo: &RepoName, digest: &Digest, offset: u64) -> Result<Answer, AnswerError> {
        let said = self.upstream.resolve(repo, &Reference::Digest(*digest)).await?;
        Ok(match said.value.map(|put| put.bytes) {
            Some(Some(bytes)) => Answer::Manifest { bytes, offset },
            Some(None) => return Err(AnswerError::Missing(*digest)),
            None => Answer::Frame(Response::NotFound { at: said.at }),
        })
    }
}
