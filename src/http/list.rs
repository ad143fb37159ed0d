//! Answers that list: tags, repositories, referrers.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use outport_proto::{Digest, RepoName, oci::media_type};
use serde::Serialize;

use super::{
    body::Body,
    error::ApiError,
    headers::{OCI_FILTERS_APPLIED, header_value, insert_freshness, pull_options, response},
};
use crate::{
    auth::Caller,
    registry::{Next, Page, PullService, Referrer, Want},
};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const INDEX: HeaderValue = HeaderValue::from_static(media_type::OCI_INDEX);
const ARTIFACT_TYPE: HeaderValue = HeaderValue::from_static("artifactType");

/// `GET /v2/<name>/tags/list`.
pub(super) async fn tags(
    pull: &PullService,
    caller: &Caller,
    repo: &RepoName,
    page: &Page,
    headers: &HeaderMap,
) -> Result<Response<Body>, ApiError> {
    #[derive(Serialize)]
    struct Tags<'a> {
        name: &'a str,
        tags: Vec<&'a str>,
    }
    let options = pull_options(headers, Want::Content)?;
    let listing = pull.tags(caller, repo, page, options).await.map_err(ApiError::Pull)?;
    let tags = listing.names.iter().map(|tag| tag.as_str()).collect();
    let mut response = json(&Tags { name: repo.as_str(), tags }, JSON)?;
    insert_link(response.headers_mut(), &format!("/v2/{repo}/tags/list"), listing.next.as_ref());
    insert_freshness(response.headers_mut(), listing.offset, listing.staleness);
    Ok(response)
}

/// `GET /v2/_catalog`.
pub(super) async fn catalog(
    pull: &PullService,
    caller: &Caller,
    page: &Page,
    headers: &HeaderMap,
) -> Result<Response<Body>, ApiError> {
    #[derive(Serialize)]
    struct Catalog<'a> {
        repositories: Vec<&'a str>,
    }
    let options = pull_options(headers, Want::Content)?;
    let listing = pull.catalog(caller, page, options).await.map_err(ApiError::Pull)?;
    let repositories = listing.names.iter().map(|repo| repo.as_str()).collect();
    let mut response = json(&Catalog { repositories }, JSON)?;
    insert_link(response.headers_mut(), "/v2/_catalog", listing.next.as_ref());
    insert_freshness(response.headers_mut(), listing.offset, listing.staleness);
    Ok(response)
}

/// `GET /v2/<name>/referrers/<digest>`: an image index, made when asked.
pub(super) async fn referrers(
    pull: &PullService,
    caller: &Caller,
    (repo, subject): (&RepoName, &Digest),
    artifact_type: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response<Body>, ApiError> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Index<'a> {
        schema_version: u8,
        media_type: &'a str,
        manifests: Vec<Descriptor<'a>>,
    }
    let options = pull_options(headers, Want::Content)?;
    let answer =
        pull.referrers(caller, repo, subject, artifact_type, options).await.map_err(ApiError::Pull)?;
    let manifests = answer.referrers.iter().map(Descriptor::of).collect();
    let index = Index { schema_version: 2, media_type: media_type::OCI_INDEX, manifests };
    let mut response = json(&index, INDEX)?;
    if artifact_type.is_some() {
        response.headers_mut().insert(OCI_FILTERS_APPLIED, ARTIFACT_TYPE);
    }
    insert_freshness(response.headers_mut(), answer.offset, answer.staleness);
    Ok(response)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor<'a> {
    media_type: &'a str,
    digest: Digest,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<&'a str>,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: std::collections::BTreeMap<&'a str, &'a str>,
}

impl<'a> Descriptor<'a> {
    fn of(referrer: &'a Referrer) -> Self {
        Self {
            media_type: &referrer.media_type,
            digest: referrer.digest,
            size: referrer.size,
            artifact_type: referrer.artifact_type.as_deref(),
            annotations: referrer.annotations.iter().map(|(key, value)| (&**key, &**value)).collect(),
        }
    }
}

fn json(document: &impl Serialize, content_type: HeaderValue) -> Result<Response<Body>, ApiError> {
    let bytes = serde_json::to_vec(document).map_err(|_| ApiError::Internal)?;
    let mut response = response(StatusCode::OK, Body::full(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}

/// RFC 8288, as the specification's pagination asks.
fn insert_link(headers: &mut HeaderMap, path: &str, next: Option<&Next>) {
    let Some(Next { n, last }) = next else { return };
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("n", &n.to_string())
        .append_pair("last", last)
        .finish();
    headers.extend(
        header_value(format_args!("<{path}?{query}>; rel=\"next\"")).map(|value| (header::LINK, value)),
    );
}
