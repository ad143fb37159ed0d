//! What changes something at the registry, uploads apart: those are streamed through.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use outport_proto::{Digest, Reference, RepoName, Tag, route::Endpoint};

use super::{
    Asker, Backend, BackendError,
    answer::digest_of,
    client::{ERROR_BYTES_MAX, Question},
};

/// Headers of a refusal that a client can use.
const PASSED_ON: [HeaderName; 5] = [
    header::CONTENT_TYPE,
    header::ALLOW,
    header::RETRY_AFTER,
    header::WWW_AUTHENTICATE,
    HeaderName::from_static("docker-distribution-api-version"),
];

/// What the registry answers to a write.
#[derive(Clone, Debug)]
pub enum Answered {
    /// It did it; with these headers.
    Done(HeaderMap),
    /// It did not.
    Refused(Refusal),
    /// It failed, or something in front of it did: it may be done all the same.
    Unclear(Refusal),
}

/// A registry's own words for why it did not do something.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Never one of success.
    pub status: StatusCode,
    /// Those that say something to the client.
    pub headers: HeaderMap,
    /// An OCI error, mostly.
    pub body: Bytes,
}

impl Backend {
    /// Puts a manifest, and asks for `tags` to name it as well.
    ///
    /// # Errors
    /// When there was no answer: it may have been put all the same.
    pub async fn put_manifest(
        &self,
        (repo, reference, tags): (&RepoName, &Reference, &[Tag]),
        media_type: &str,
        bytes: Bytes,
        asker: Asker<'_>,
    ) -> Result<Answered, BackendError> {
        let path = path_with_tags(repo, reference, tags);
        let content_type = HeaderValue::try_from(media_type)
            .map_err(|_| BackendError::Protocol("a media type that is none".to_owned()))?;
        let question = Question { method: Method::PUT, body: bytes, ..Question::get(&path) };
        let digest = match reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(_) => Digest::sha256(&question.body),
        };
        let question = question.with(header::CONTENT_TYPE, content_type);
        let answered = self.change(question, asker, &[StatusCode::CREATED]).await?;
        if let Answered::Done(headers) = &answered
            && let Some(actual) = digest_of(headers)?
            && actual.algorithm() == digest.algorithm()
            && actual != digest
        {
            // It keeps something else than what it was given.
            return Err(BackendError::Content { expected: digest, actual: Box::new(actual) });
        }
        Ok(answered)
    }

    /// Deletes a manifest, a tag or a blob.
    ///
    /// # Errors
    /// When there was no answer: it may have been deleted all the same.
    pub async fn delete(&self, endpoint: &Endpoint, asker: Asker<'_>) -> Result<Answered, BackendError> {
        let path = endpoint.path();
        let done = [StatusCode::ACCEPTED, StatusCode::OK, StatusCode::NO_CONTENT];
        self.change(Question { method: Method::DELETE, ..Question::get(&path) }, asker, &done).await
    }

    async fn change(
        &self,
        question: Question<'_>,
        asker: Asker<'_>,
        done: &[StatusCode],
    ) -> Result<Answered, BackendError> {
        let limit = Some(self.shared.options.write_timeout);
        let response = self.ask(&Question { limit, ..question }, asker).await?;
        let (parts, body) = response.into_parts();
        if done.contains(&parts.status) {
            return Ok(Answered::Done(parts.headers));
        }
        if parts.status.is_redirection() || parts.status.is_success() {
            return Err(BackendError::Status { status: parts.status.as_u16() });
        }
        // What is too long for an error still is one.
        let body = self.whole(body, ERROR_BYTES_MAX).await.unwrap_or_default();
        let mut headers = HeaderMap::new();
        for name in PASSED_ON {
            if let Some(value) = parts.headers.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let refusal = Refusal { status: parts.status, headers, body };
        let is_clear = parts.status.is_client_error() && parts.status != StatusCode::REQUEST_TIMEOUT;
        Ok(if is_clear { Answered::Refused(refusal) } else { Answered::Unclear(refusal) })
    }
}

fn path_with_tags(repo: &RepoName, reference: &Reference, tags: &[Tag]) -> String {
    let path = Endpoint::Manifest { repo: repo.clone(), reference: reference.clone() }.path();
    if tags.is_empty() {
        return path;
    }
    let mut query = form_urlencoded::Serializer::new(String::new());
    for tag in tags {
        query.append_pair("tag", tag.as_str());
    }
    format!("{path}?{}", query.finish())
}
