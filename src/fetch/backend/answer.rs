//! Manifests and blobs of the registry.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use outport_proto::{
    Digest, Reference, RepoName,
    oci::{MANIFEST_BYTES_MAX, media_type},
    route::Endpoint,
};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Backend, BackendError,
    body::RegistryBody,
    client::{Asker, Question},
    credentials::Needs,
    pages::next_of,
    storage,
};
use crate::fetch::Body;

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Storage redirects followed for one blob.
const REDIRECTS_MAX: usize = 3;
/// Referrers of one manifest, at most.
const REFERRERS_MAX: usize = 10_000;

/// A manifest whose bytes hash to its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Its digest.
    pub digest: Digest,
    /// Its media type, without parameters.
    pub media_type: String,
    /// All of it.
    pub bytes: Bytes,
}

/// What the registry says of a manifest without sending it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestHead {
    /// It has this digest, as the registry says.
    Is(Digest),
    /// It is not there, or cannot be told without its bytes.
    Unsure,
}

impl Backend {
    /// What `reference` names, without its bytes.
    ///
    /// # Errors
    /// [`BackendError`]; absence is not told here, because HEAD has no body that could prove it.
    pub async fn manifest_head(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<ManifestHead, BackendError> {
        let path = manifest_path(repo, reference);
        let question = Question::head(&path).with(header::ACCEPT, accepted());
        let response = self.ask(&question, Asker::Gateway(Needs::Pull(repo))).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(ManifestHead::Unsure),
            _ => return self.no(response).await.map(|()| ManifestHead::Unsure),
        }
        Ok(match digest_of(response.headers())? {
            Some(digest) => ManifestHead::Is(digest),
            None => ManifestHead::Unsure,
        })
    }

    /// What `reference` names; `None` when the registry says that there is no such thing.
    ///
    /// # Errors
    /// [`BackendError`].
    pub async fn manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Option<Manifest>, BackendError> {
        let path = manifest_path(repo, reference);
        let question = Question::get(&path).with(header::ACCEPT, accepted());
        let response = self.ask(&question, Asker::Gateway(Needs::Pull(repo))).await?;
        if response.status() != StatusCode::OK {
            return self.no(response).await.map(|()| None);
        }
        let headers = response.headers();
        let said = digest_of(headers)?;
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or(media_type::OCTET_STREAM);
        let media_type = content_type.split(';').next().unwrap_or_default().trim().to_owned();
        let bytes = self.whole(response.into_body(), MANIFEST_BYTES_MAX).await?;
        let digest = match (reference, said) {
            (Reference::Digest(asked), _) => *asked,
            (Reference::Tag(_), Some(said)) => said,
            // Anything in front of a registry can answer 200 with a page of its own.
            (Reference::Tag(_), None) if is_manifest(&media_type) => Digest::sha256(&bytes),
            (Reference::Tag(_), None) => {
                return Err(BackendError::Protocol(format!("{media_type} without a digest for a manifest")));
            }
        };
        let actual = Digest::of(digest.algorithm(), &bytes);
        if actual != digest {
            return Err(BackendError::Content { expected: digest, actual: Box::new(actual) });
        }
        Ok(Some(Manifest { digest, media_type, bytes }))
    }

    /// The size in bytes of a blob of `repo`; `None` when the registry says that there is none.
    ///
    /// # Errors
    /// [`BackendError`].
    pub async fn blob_size(&self, repo: &RepoName, digest: &Digest) -> Result<Option<u64>, BackendError> {
        let path = Endpoint::Blob { repo: repo.clone(), digest: *digest }.path();
        let asker = Asker::Gateway(Needs::Pull(repo));
        let response = self.ask(&Question::head(&path), asker).await?;
        if let Some(storage) = self.storage(&response, &self.shared.options.url)? {
            let response = self.at_storage(Method::HEAD, storage, 0).await?;
            return length_of(response.headers()).map(Some);
        }
        match response.status() {
            StatusCode::OK => return size_of(digest, response.headers()).map(Some),
            StatusCode::NOT_FOUND => {}
            _ => return self.no(response).await.map(|()| None),
        }
        // HEAD has no body that could say whose 404 it is. A registry that has the blob after all sends
        // it; nobody reads that.
        let response = self.ask(&Question::get(&path), asker).await?;
        match response.status() {
            StatusCode::OK => size_of(digest, response.headers()).map(Some),
            _ => self.no(response).await.map(|()| None),
        }
    }

    /// The bytes of a blob of `repo` from `offset` on; `None` when the registry says that there is
    /// none. Where the registry leads to its storage, they come from there, without credentials. With
    /// [`super::BackendOptions::storage`] it is not asked: the caller knows that `repo` links the blob.
    ///
    /// # Errors
    /// [`BackendError`].
    pub async fn blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        offset: u64,
    ) -> Result<Option<Box<dyn Body>>, BackendError> {
        if let Some(root) = &self.shared.options.storage {
            match storage::open(root, digest, offset).await {
                Ok(Some(body)) => return Ok(Some(Box::new(body))),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "the registry's storage cannot be read, it is asked itself")
                }
            }
        }
        let body = self.blob_of_registry(repo, digest, offset).await?;
        Ok(body.map(|body| Box::new(body) as Box<dyn Body>))
    }

    /// All of a blob of `repo`, if it has at most `bytes_max` and is what it should be.
    ///
    /// # Errors
    /// [`BackendError`].
    pub async fn small_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        bytes_max: usize,
    ) -> Result<Option<Bytes>, BackendError> {
        let response = self.blob_answer(repo, digest, 0).await?;
        if response.status() != StatusCode::OK {
            return self.no(response).await.map(|()| None);
        }
        let bytes = self.whole(response.into_body(), bytes_max).await?;
        Ok((Digest::of(digest.algorithm(), &bytes) == *digest).then_some(bytes))
    }

    /// The manifests of `repo` that refer to `subject`, by digest; `None` where the registry has no
    /// referrers. Source: OCI distribution specification, "Listing referrers".
    ///
    /// # Errors
    /// [`BackendError`].
    pub async fn referrers(
        &self,
        repo: &RepoName,
        subject: &Digest,
    ) -> Result<Option<Vec<Digest>>, BackendError> {
        #[derive(serde::Deserialize)]
        struct Index {
            manifests: Vec<Descriptor>,
        }
        #[derive(serde::Deserialize)]
        struct Descriptor {
            digest: Digest,
        }
        let (mut all, mut next) = (Vec::new(), None::<String>);
        loop {
            let first = || Endpoint::Referrers { repo: repo.clone(), digest: *subject }.path();
            let path = next.unwrap_or_else(first);
            let response = self.ask(&Question::get(&path), Asker::Gateway(Needs::Pull(repo))).await?;
            match response.status() {
                StatusCode::OK => {}
                // A registry without answers any 404, that of its router.
                StatusCode::NOT_FOUND => return Ok(None),
                _ => return self.no(response).await.map(|()| None),
            }
            let following = next_of(response.headers())?;
            let body = self.whole(response.into_body(), MANIFEST_BYTES_MAX).await?;
            let index: Index = serde_json::from_slice(&body)
                .map_err(|_| BackendError::Protocol("a list of referrers that is none".to_owned()))?;
            let before = all.len();
            all.extend(index.manifests.into_iter().map(|descriptor| descriptor.digest));
            next = match following {
                None => return Ok(Some(all)),
                Some(_) if all.len() == before || all.len() > REFERRERS_MAX => {
                    return Err(BackendError::Protocol("referrers without an end".to_owned()));
                }
                following => following,
            };
        }
    }

    async fn blob_of_registry(
        &self,
        repo: &RepoName,
        digest: &Digest,
        offset: u64,
    ) -> Result<Option<RegistryBody>, BackendError> {
        let limit = self.shared.options.stall_timeout;
        let turn = tokio::time::timeout(limit, Arc::clone(&self.shared.bodies).acquire_owned()).await;
        let turn = turn.map_err(|_| BackendError::Timeout(limit))?;
        let turn = turn.map_err(|_| BackendError::Unreachable("shutting down".to_owned()))?;
        let response = self.blob_answer(repo, digest, offset).await?;
        let headers = response.headers();
        let (size, skip) = match response.status() {
            StatusCode::OK => (length_of(headers)?, offset),
            StatusCode::PARTIAL_CONTENT => (whole_of_range(headers, offset)?, 0),
            // Nothing lies behind the end.
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return self.nothing_behind(repo, digest, offset, turn).await;
            }
            _ => return self.no(response).await.map(|()| None),
        };
        let stall = self.shared.options.stall_timeout;
        Ok(Some(RegistryBody { size, skip, body: Some(response.into_body()), stall, _turn: turn }))
    }

    /// What is answered to a question for a blob from `offset` on, by the registry or where it leads.
    async fn blob_answer(
        &self,
        repo: &RepoName,
        digest: &Digest,
        offset: u64,
    ) -> Result<Response<Incoming>, BackendError> {
        let path = Endpoint::Blob { repo: repo.clone(), digest: *digest }.path();
        let mut question = Question::get(&path);
        if let Some(range) = from(offset) {
            question = question.with(header::RANGE, range);
        }
        let response = self.ask(&question, Asker::Gateway(Needs::Pull(repo))).await?;
        match self.storage(&response, &self.shared.options.url)? {
            Some(storage) => self.at_storage(Method::GET, storage, offset).await,
            None => Ok(response),
        }
    }

    async fn nothing_behind(
        &self,
        repo: &RepoName,
        digest: &Digest,
        offset: u64,
        turn: OwnedSemaphorePermit,
    ) -> Result<Option<RegistryBody>, BackendError> {
        let Some(size) = self.blob_size(repo, digest).await? else { return Ok(None) };
        if size != offset {
            return Err(BackendError::Protocol(format!("no bytes at {offset} of {size}")));
        }
        let stall = self.shared.options.stall_timeout;
        Ok(Some(RegistryBody { size, skip: 0, body: None, stall, _turn: turn }))
    }

    /// Where an answer leads for a blob's bytes; `None` when it is not a redirect.
    pub(super) fn storage(
        &self,
        response: &Response<Incoming>,
        from: &Uri,
    ) -> Result<Option<Uri>, BackendError> {
        if !response.status().is_redirection() {
            return Ok(None);
        }
        let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| BackendError::Protocol("a redirect to nowhere".to_owned()))?;
        let uri = if location.starts_with('/') { at_same_host(from, location)? } else { parsed(location)? };
        if !self.leads_there(&uri) {
            let host = uri.host().unwrap_or_default();
            let reason = format!("a redirect to {host}, which gateway.redirect_hosts does not name");
            return Err(BackendError::Protocol(reason));
        }
        Ok(Some(uri))
    }

    fn leads_there(&self, uri: &Uri) -> bool {
        let Some(host) = uri.host().filter(|_| matches!(uri.scheme_str(), Some("http" | "https"))) else {
            return false;
        };
        let options = &self.shared.options;
        uri.authority() == options.url.authority()
            || options.redirect_hosts.iter().any(|allowed| match allowed.strip_prefix("*.") {
                None => allowed.eq_ignore_ascii_case(host),
                Some(domain) => {
                    let host = host.to_ascii_lowercase();
                    host.strip_suffix(&domain.to_ascii_lowercase()).is_some_and(|rest| rest.ends_with('.'))
                }
            })
    }

    /// Bytes from the registry's storage; a presigned URL is all the right it takes.
    async fn at_storage(
        &self,
        method: Method,
        mut uri: Uri,
        offset: u64,
    ) -> Result<Response<Incoming>, BackendError> {
        for _ in 0..REDIRECTS_MAX {
            let mut request = http::Request::new(http_body_util::Full::default());
            *request.method_mut() = method.clone();
            *request.uri_mut() = uri.clone();
            if let Some(range) = from(offset) {
                request.headers_mut().insert(header::RANGE, range);
            }
            let response = self.shared.client.send(request, self.shared.options.answer_timeout).await?;
            match self.storage(&response, &uri)? {
                Some(next) => uri = next,
                None => match response.status() {
                    StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                        return Ok(response);
                    }
                    // A storage's 404 says nothing about the registry.
                    status => return Err(BackendError::Status { status: status.as_u16() }),
                },
            }
        }
        Err(BackendError::Protocol(format!("more than {REDIRECTS_MAX} redirects")))
    }
}

pub(super) fn is_manifest(media_type: &str) -> bool {
    [
        media_type::OCI_MANIFEST,
        media_type::OCI_INDEX,
        media_type::OCI_ARTIFACT,
        media_type::DOCKER_MANIFEST,
        media_type::DOCKER_LIST,
    ]
    .contains(&media_type)
}

fn manifest_path(repo: &RepoName, reference: &Reference) -> String {
    Endpoint::Manifest { repo: repo.clone(), reference: reference.clone() }.path()
}

/// Every kind of manifest: a registry that may choose must not convert.
pub(super) fn accepted() -> HeaderValue {
    const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
         application/vnd.docker.distribution.manifest.v2+json, \
         application/vnd.docker.distribution.manifest.list.v2+json, \
         application/vnd.oci.artifact.manifest.v1+json, */*;q=0.1";
    HeaderValue::from_static(ACCEPTED)
}

pub(super) fn digest_of(headers: &HeaderMap) -> Result<Option<Digest>, BackendError> {
    let Some(value) = headers.get(DOCKER_CONTENT_DIGEST) else { return Ok(None) };
    let digest = value.to_str().ok().and_then(|text| text.parse().ok());
    digest.map(Some).ok_or_else(|| BackendError::Protocol("Docker-Content-Digest is no digest".to_owned()))
}

/// The size of a blob, from the head of what says that it is that one: anything in front of a registry can
/// answer 200 with a page of its own.
fn size_of(digest: &Digest, headers: &HeaderMap) -> Result<u64, BackendError> {
    // A registry may name it by its own algorithm.
    if let Some(said) = digest_of(headers)?.filter(|said| said.algorithm() == digest.algorithm())
        && said != *digest
    {
        return Err(BackendError::Content { expected: *digest, actual: Box::new(said) });
    }
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if content_type.starts_with(b"text/html") && !headers.contains_key(DOCKER_CONTENT_DIGEST) {
        return Err(BackendError::Protocol("a page instead of a blob".to_owned()));
    }
    length_of(headers)
}

fn length_of(headers: &HeaderMap) -> Result<u64, BackendError> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    length.ok_or_else(|| BackendError::Protocol("a blob without Content-Length".to_owned()))
}

/// The whole blob's size, from the range that was sent of it.
fn whole_of_range(headers: &HeaderMap, offset: u64) -> Result<u64, BackendError> {
    let range = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let parts = range.and_then(|range| range.strip_prefix("bytes ")?.split_once('/'));
    let begins = parts.and_then(|(range, _)| range.split_once('-')?.0.parse::<u64>().ok());
    match parts.and_then(|(_, size)| size.parse().ok()) {
        Some(size) if begins == Some(offset) => Ok(size),
        _ => Err(BackendError::Protocol(format!("another range than from {offset} on"))),
    }
}

fn from(offset: u64) -> Option<HeaderValue> {
    (offset > 0).then(|| HeaderValue::try_from(format!("bytes={offset}-")).ok()).flatten()
}

fn at_same_host(from: &Uri, path: &str) -> Result<Uri, BackendError> {
    let mut parts = from.clone().into_parts();
    let wrong = || BackendError::Protocol("a redirect to what is no URL".to_owned());
    parts.path_and_query = Some(path.parse().map_err(|_| wrong())?);
    Uri::from_parts(parts).map_err(|_| wrong())
}

fn parsed(location: &str) -> Result<Uri, BackendError> {
    location.parse().map_err(|_| BackendError::Protocol("a redirect to what is no URL".to_owned()))
}
