//! Answers to GET and HEAD of manifests and blobs.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use outport_proto::{Digest, Reference, RepoName};

use super::{
    body::{Body, Part},
    error::ApiError,
    headers::{
        DOCKER_CONTENT_DIGEST, digest_and_etag, header_value, insert_freshness, none_match, pull_options,
        response,
    },
    range::{Selection, select},
};
use crate::{
    auth::Caller,
    registry::{BlobAnswer, BlobContent, PullService, Want},
    telemetry::audit,
};

const BYTES: HeaderValue = HeaderValue::from_static("bytes");
const OCTET_STREAM: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// A manifest as it was pushed; `Accept` is never a reason to send another.
pub(super) async fn manifest(
    pull: &PullService,
    caller: &Caller,
    (repo, reference): (&RepoName, &Reference),
    headers: &HeaderMap,
    want: Want,
) -> Result<Response<Body>, ApiError> {
    let options = pull_options(headers, want)?;
    let answer = pull.manifest(caller, repo, reference, options).await.map_err(ApiError::Pull)?;
    audit::note(|notes| notes.digest = Some(answer.digest));
    let (digest, etag) = digest_and_etag(&answer.digest);
    let mut response = if none_match(headers, &etag) {
        response(StatusCode::NOT_MODIFIED, Body::empty())
    } else {
        let length = HeaderValue::from(answer.bytes.len());
        let mut response = response(StatusCode::OK, Body::full(answer.bytes));
        let media_type = HeaderValue::try_from(&*answer.media_type).map_err(|_| ApiError::Internal)?;
        response.headers_mut().insert(header::CONTENT_TYPE, media_type);
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
        response
    };
    let headers = response.headers_mut();
    headers.insert(DOCKER_CONTENT_DIGEST, digest);
    headers.insert(header::ETAG, etag);
    insert_freshness(headers, answer.offset, answer.staleness);
    Ok(response)
}

/// A blob, or the ranges of it that were asked for. HEAD knows no ranges.
pub(super) async fn blob(
    pull: &PullService,
    caller: &Caller,
    (repo, digest): (&RepoName, &Digest),
    headers: &HeaderMap,
    want: Want,
) -> Result<Response<Body>, ApiError> {
    let options = pull_options(headers, want)?;
    let answer = pull.blob(caller, repo, digest, options).await.map_err(ApiError::Pull)?;
    let (digest_value, etag) = digest_and_etag(digest);
    let (offset, staleness) = (answer.offset, answer.staleness);
    let mut response = if none_match(headers, &etag) {
        response(StatusCode::NOT_MODIFIED, Body::empty())
    } else {
        content(answer, selection_of(headers, &etag))?
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, BYTES);
    headers.insert(DOCKER_CONTENT_DIGEST, digest_value);
    headers.insert(header::ETAG, etag);
    insert_freshness(headers, offset, staleness);
    Ok(response)
}

/// The `Range` header, unless `If-Range` names another content.
fn selection_of<'a>(headers: &'a HeaderMap, etag: &HeaderValue) -> Option<&'a str> {
    let range = headers.get(header::RANGE)?.to_str().ok()?;
    let applies = headers.get(header::IF_RANGE).is_none_or(|value| value == etag);
    applies.then_some(range)
}

fn content(answer: BlobAnswer, range: Option<&str>) -> Result<Response<Body>, ApiError> {
    let size = answer.size;
    let Some(content) = answer.content else {
        return Ok(whole(size, Body::empty()));
    };
    match range.map_or(Selection::Whole, |range| select(range, size)) {
        Selection::Whole => Ok(whole(size, Body::content(content, [Part::Range(0..size)]))),
        Selection::One(range) => {
            let value = header_value(format_args!("bytes {}-{}/{size}", range.start, range.end - 1));
            let body = Body::content(content, [Part::Range(range)]);
            let mut response = partial(body, OCTET_STREAM);
            response.headers_mut().extend(value.map(|value| (header::CONTENT_RANGE, value)));
            Ok(response)
        }
        Selection::Several(ranges) => several(&answer.digest, size, content, ranges),
        Selection::Unsatisfiable => Err(ApiError::RangeNotSatisfiable { size }),
    }
}

fn whole(size: u64, body: Body) -> Response<Body> {
    let mut response = response(StatusCode::OK, body);
    response.headers_mut().insert(header::CONTENT_TYPE, OCTET_STREAM);
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    response
}

fn partial(body: Body, content_type: HeaderValue) -> Response<Body> {
    let length = body.length();
    let mut response = response(StatusCode::PARTIAL_CONTENT, body);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response.headers_mut().extend(length.map(|length| (header::CONTENT_LENGTH, HeaderValue::from(length))));
    response
}

/// `multipart/byteranges`. The boundary is taken from the blob's own digest: no content can be
/// made to hold it on purpose.
fn several(
    digest: &Digest,
    size: u64,
    content: BlobContent,
    ranges: Vec<std::ops::Range<u64>>,
) -> Result<Response<Body>, ApiError> {
    let hex = digest.hex();
    let boundary = &hex[..48];
    let mut parts = Vec::with_capacity(ranges.len() * 2 + 1);
    for (index, range) in ranges.into_iter().enumerate() {
        let break_before = if index == 0 { "" } else { "\r\n" };
        let (first, last) = (range.start, range.end - 1);
        let head = format!(
            "{break_before}--{boundary}\r\nContent-Type: application/octet-stream\r\n\
             Content-Range: bytes {first}-{last}/{size}\r\n\r\n"
        );
        parts.push(Part::Bytes(head.into()));
        parts.push(Part::Range(range));
    }
    parts.push(Part::Bytes(format!("\r\n--{boundary}--\r\n").into()));
    let content_type = header_value(format_args!("multipart/byteranges; boundary={boundary}"));
    Ok(partial(Body::content(content, parts), content_type.ok_or(ApiError::Internal)?))
}
