//! What is answered when a push or a delete was done.

use http::{HeaderValue, Response, StatusCode, header};
use outport_proto::{Reference, RepoName, route::Endpoint};

use super::{
    body::Body,
    error::ApiError,
    headers::{
        DOCKER_CONTENT_DIGEST, OCI_SUBJECT, OCI_TAG, digest_value, header_value, insert_freshness, response,
    },
};
use crate::registry::{BlobPut, Deleted, ManifestPushed};

/// A manifest was put.
pub(super) fn manifest(
    public_url: &str,
    repo: &RepoName,
    pushed: &ManifestPushed,
) -> Result<Response<Body>, ApiError> {
    let mut response = response(StatusCode::CREATED, Body::empty());
    let headers = response.headers_mut();
    let endpoint = Endpoint::Manifest { repo: repo.clone(), reference: Reference::Digest(pushed.digest) };
    headers.insert(header::LOCATION, location(public_url, &endpoint)?);
    headers.insert(DOCKER_CONTENT_DIGEST, digest_value(&pushed.digest));
    if let Some(subject) = pushed.subject {
        headers.insert(OCI_SUBJECT, digest_value(&subject));
    }
    for tag in &pushed.tags {
        headers.append(OCI_TAG, header_value(tag).ok_or(ApiError::Internal)?);
    }
    insert_freshness(headers, pushed.offset, None);
    Ok(response)
}

/// A blob was put or mounted.
pub(super) fn blob(public_url: &str, repo: &RepoName, put: &BlobPut) -> Result<Response<Body>, ApiError> {
    let mut response = response(StatusCode::CREATED, Body::empty());
    let headers = response.headers_mut();
    let endpoint = Endpoint::Blob { repo: repo.clone(), digest: put.digest };
    headers.insert(header::LOCATION, location(public_url, &endpoint)?);
    headers.insert(DOCKER_CONTENT_DIGEST, digest_value(&put.digest));
    insert_freshness(headers, put.offset, None);
    Ok(response)
}

/// Something was deleted.
pub(super) fn deleted(deleted: &Deleted) -> Response<Body> {
    let mut response = response(StatusCode::ACCEPTED, Body::empty());
    insert_freshness(response.headers_mut(), deleted.offset, None);
    response
}

fn location(public_url: &str, endpoint: &Endpoint) -> Result<HeaderValue, ApiError> {
    header_value(format_args!("{public_url}{}", endpoint.path())).ok_or(ApiError::Internal)
}
