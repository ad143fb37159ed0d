//! Header names and values that the registry's answers are made of.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use outport_proto::{Digest, Offset};

use super::{body::Body, error::ApiError};
use crate::registry::{PullOptions, Staleness, Want};

pub(super) const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
pub(super) const DOCKER_UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
pub(super) const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
pub(super) const API_VERSION_2: HeaderValue = HeaderValue::from_static("registry/2.0");
pub(super) const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
pub(super) const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
pub(super) const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// The ticket with the write intent of a request that a site streams through to its primary. Only a
/// site can seal one, so it may come from anybody.
pub(super) const ANNOUNCED: HeaderName = HeaderName::from_static("outport-intent");
const OFFSET: HeaderName = HeaderName::from_static("outport-offset");
const MIN_OFFSET: HeaderName = HeaderName::from_static("outport-min-offset");
const STALENESS: HeaderName = HeaderName::from_static("outport-staleness");
/// RFC 7234 section 5.5.1; still what caches and clients look for.
const WARNING_STALE: HeaderValue = HeaderValue::from_static("110 - \"Response is Stale\"");

/// Room for the headers of any answer, so that the map is allocated once.
const HEADERS: usize = 12;
/// The longest digest in quotes: `"sha512:` and 128 hex characters.
const ETAG_BYTES_MAX: usize = 7 + 128 + 2;

/// An answer that has no headers yet.
pub(super) fn response(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = HeaderMap::with_capacity(HEADERS);
    response
}

/// A digest as a header's value, and in quotes as an entity tag.
pub(super) fn digest_and_etag(digest: &Digest) -> (HeaderValue, HeaderValue) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = [b'"'; ETAG_BYTES_MAX];
    let mut length = 1;
    let mut push = |byte| {
        text[length] = byte;
        length += 1;
    };
    digest.algorithm().as_str().bytes().for_each(&mut push);
    push(b':');
    for byte in digest.as_bytes() {
        push(HEX[usize::from(byte >> 4)]);
        push(HEX[usize::from(byte & 15)]);
    }
    // ASCII alone, so neither can fail.
    let value = |bytes| HeaderValue::from_bytes(bytes).unwrap_or(HeaderValue::from_static(""));
    (value(&text[1..length]), value(&text[..=length]))
}

/// A digest as a header's value.
pub(super) fn digest_value(digest: &Digest) -> HeaderValue {
    digest_and_etag(digest).0
}

/// Says where in the log an answer holds and how old it may be.
pub(super) fn insert_freshness(headers: &mut HeaderMap, offset: Offset, staleness: Option<Staleness>) {
    if let Some(value) = header_value(offset) {
        headers.insert(OFFSET, value);
    }
    if let Some(Staleness { age }) = staleness {
        headers.insert(header::AGE, HeaderValue::from(age.as_secs()));
        headers.insert(header::WARNING, WARNING_STALE);
        if let Some(value) = header_value(format_args!("{:.3}", age.as_secs_f64())) {
            headers.insert(STALENESS, value);
        }
    }
}

/// Text that came from our own types as a header's value.
pub(super) fn header_value(text: impl std::fmt::Display) -> Option<HeaderValue> {
    HeaderValue::try_from(text.to_string()).ok()
}

/// How a read was asked.
pub(super) fn pull_options(headers: &HeaderMap, want: Want) -> Result<PullOptions, ApiError> {
    let min_offset = match headers.get(MIN_OFFSET) {
        None => None,
        Some(value) => {
            let offset = value.to_str().ok().and_then(|text| text.trim().parse().ok());
            Some(offset.ok_or(ApiError::Header("Outport-Min-Offset"))?)
        }
    };
    Ok(PullOptions { min_offset, want })
}

/// Whether `If-None-Match` names `etag`, or anything: then 304.
pub(super) fn none_match(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    headers.get_all(header::IF_NONE_MATCH).iter().any(|value| {
        let candidates = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        candidates.into_iter().any(|candidate| {
            candidate == b"*" || candidate.strip_prefix(b"W/").unwrap_or(candidate) == etag.as_bytes()
        })
    })
}

/// The length a request announces for its body.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use outport_proto::Algorithm;

    use super::*;

    #[test]
    fn digests_as_headers() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, b"x");
            let (plain, quoted) = digest_and_etag(&digest);
            assert_eq!(plain.to_str().unwrap(), digest.to_string());
            assert_eq!(quoted.to_str().unwrap(), format!("\"{digest}\""));
        }
    }

    #[test]
    fn entity_tags_match_weakly() {
        let etag = HeaderValue::from_static("\"sha256:aa\"");
        let matches = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static(value));
            none_match(&headers, &etag)
        };
        assert!(matches("*") && matches("\"sha256:aa\"") && matches("\"x\", W/\"sha256:aa\""));
        assert!(!matches("") && !matches("sha256:aa") && !matches("\"sha256:ab\""));
        assert!(!none_match(&HeaderMap::new(), &etag));
    }
}
