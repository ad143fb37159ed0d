//! What the registry lets a caller do: asked with their own credentials.
//!
//! A login or maintenance page comes with status 200 as well, from whatever stands in front of a registry:
//! a yes is an answer that nothing but a registry gives to what was asked.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use outport_proto::{
    frame::{Question as Wanted, RegistryChallenge, Verdict},
    route::Endpoint,
};
use serde::{Deserialize, de::IgnoredAny};

use super::{
    Asker, Backend, BackendError, Challenge,
    answer::{accepted, digest_of, is_manifest},
    client::{ERROR_BYTES_MAX, Question, is_absence},
};

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// A registry may send all names where one was asked for, each at most 128 bytes long.
const YES_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What the registry said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Whether they may.
    pub verdict: Verdict,
    /// What it demands of whoever is not let in, if it said so by the way.
    pub challenge: Option<RegistryChallenge>,
}

impl Backend {
    /// Whether whoever sends this `Authorization` may do what is `wanted`.
    ///
    /// # Errors
    /// When the registry says neither yes nor no, or something else answers in its place.
    pub async fn judge(
        &self,
        authorization: Option<&HeaderValue>,
        wanted: &Wanted,
    ) -> Result<Judgement, BackendError> {
        let (method, path) = put(wanted);
        let question = Question { method: method.clone(), ..Question::get(&path) };
        let question = question.with(header::ACCEPT, accepted());
        let answer = self.ask(&question, Asker::Caller(authorization)).await?;
        let challenge = challenge_of(&answer);
        let verdict = match answer.status() {
            StatusCode::OK => {
                let headers = answer.headers().clone();
                let body = match method {
                    Method::HEAD => Bytes::new(),
                    _ => self.whole(answer.into_body(), YES_BYTES_MAX).await?,
                };
                check_yes(wanted, &headers, &body)?;
                Verdict::Yes
            }
            // To its storage, where nobody asks any more who somebody is; to a login page it leads as well.
            status if status.is_redirection() && matches!(wanted, Wanted::Blob { .. }) => {
                self.storage(&answer, &self.shared.options.url)?;
                Verdict::Yes
            }
            StatusCode::UNAUTHORIZED => Verdict::Unauthorized,
            StatusCode::FORBIDDEN => Verdict::Denied,
            // Only asked once the registry itself said that there is no such repository.
            StatusCode::NOT_FOUND if method == Method::HEAD => Verdict::Unknown,
            StatusCode::NOT_FOUND => {
                let body = self.whole(answer.into_body(), ERROR_BYTES_MAX).await?;
                if !is_absence(&body) {
                    return Err(BackendError::Status { status: 404 });
                }
                Verdict::Unknown
            }
            _ => {
                self.no(answer).await?;
                return Err(BackendError::Protocol("a refusal that is none".to_owned()));
            }
        };
        Ok(Judgement { verdict, challenge })
    }
}

/// How a question is put to a registry.
fn put(wanted: &Wanted) -> (Method, String) {
    match wanted {
        Wanted::Ping => (Method::GET, Endpoint::Base.path()),
        Wanted::Catalog => (Method::GET, format!("{}?n=1", Endpoint::Catalog.path())),
        Wanted::Repository(repo) => {
            (Method::GET, format!("{}?n=1", Endpoint::Tags { repo: repo.clone() }.path()))
        }
        Wanted::Manifest { repo, reference } => {
            (Method::HEAD, Endpoint::Manifest { repo: repo.clone(), reference: reference.clone() }.path())
        }
        Wanted::Blob { repo, digest } => {
            (Method::HEAD, Endpoint::Blob { repo: repo.clone(), digest: *digest }.path())
        }
    }
}

/// Whether status 200 with these `headers` and this `body` is a registry's yes to what was `wanted`.
fn check_yes(wanted: &Wanted, headers: &HeaderMap, body: &[u8]) -> Result<(), BackendError> {
    #[derive(Deserialize)]
    struct Tags {
        name: Option<String>,
        #[serde(rename = "tags", deserialize_with = "Option::deserialize")]
        _tags: Option<Vec<IgnoredAny>>,
    }
    #[derive(Deserialize)]
    struct Repositories {
        #[serde(rename = "repositories", deserialize_with = "Option::deserialize")]
        _repositories: Option<Vec<IgnoredAny>>,
    }
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = media_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    let (is_yes, expected) = match wanted {
        Wanted::Ping => {
            let is_json = || serde_json::from_slice::<IgnoredAny>(body).is_ok();
            (body.is_empty() || headers.contains_key(API_VERSION) || is_json(), "of a registry's API")
        }
        Wanted::Catalog => (serde_json::from_slice::<Repositories>(body).is_ok(), "a list of repositories"),
        Wanted::Repository(repo) => {
            let tags = serde_json::from_slice::<Tags>(body);
            let is_of = |tags: Tags| tags.name.is_none_or(|name| name == repo.as_str());
            (tags.is_ok_and(is_of), "a list of that repository's tags")
        }
        Wanted::Manifest { .. } => (digest_of(headers)?.is_some() || is_manifest(media_type), "a manifest"),
        Wanted::Blob { .. } => (!media_type.eq_ignore_ascii_case("text/html"), "a blob"),
    };
    match is_yes {
        true => Ok(()),
        false => Err(BackendError::Protocol(format!("status 200 with what is not {expected}"))),
    }
}

fn challenge_of(answer: &Response<Incoming>) -> Option<RegistryChallenge> {
    if answer.status() != StatusCode::UNAUTHORIZED {
        return None;
    }
    Some(match Challenge::of(answer.headers())? {
        Challenge::Basic { realm } => RegistryChallenge::Basic { realm },
        Challenge::Bearer { realm, service } => RegistryChallenge::Bearer { realm, service },
    })
}

#[cfg(test)]
mod tests {
    use outport_proto::Digest;

    use super::*;

    fn is_yes(wanted: &Wanted, headers: &[(&'static str, &'static str)], body: &str) -> bool {
        let pair = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let headers = headers.iter().copied().map(pair).collect();
        check_yes(wanted, &headers, body.as_bytes()).is_ok()
    }

    const PAGE: &str = "<!DOCTYPE html><title>Log in</title>";
    const HTML: (&str, &str) = ("content-type", "text/html; charset=utf-8");

    #[test]
    fn a_page_of_something_else_is_no_yes() {
        let (repo, digest) = ("team/app".parse().unwrap(), Digest::sha256(b"1"));
        let manifest = Wanted::Manifest { repo, reference: "1".parse().unwrap() };
        let repo = Wanted::Repository("team/app".parse().unwrap());
        let blob = Wanted::Blob { repo: "team/app".parse().unwrap(), digest };
        for wanted in [&Wanted::Ping, &Wanted::Catalog, &repo] {
            assert!(!is_yes(wanted, &[HTML], PAGE), "{wanted:?}");
        }
        for wanted in [&manifest, &blob] {
            assert!(!is_yes(wanted, &[HTML], ""), "{wanted:?}");
        }
        for body in ["", "{}", "[]", "{\"tags\": 1}", "{\"name\": \"team/other\", \"tags\": [\"1\"]}"] {
            assert!(!is_yes(&repo, &[], body), "{body}");
        }
        for body in ["", "{}", "{\"repositories\": \"all\"}", "{\"tags\": []}"] {
            assert!(!is_yes(&Wanted::Catalog, &[], body), "{body}");
        }
        assert!(!is_yes(&manifest, &[("content-type", "application/json")], ""));
        assert!(!is_yes(&manifest, &[("docker-content-digest", "soon")], ""));
    }

    #[test]
    fn what_registries_say_is_one() {
        let name = || "team/app".parse().unwrap();
        let repo = Wanted::Repository(name());
        for body in [
            "{\"name\": \"team/app\", \"tags\": [\"1\"]}",
            "{\"name\": \"team/app\", \"tags\": null}",
            "{\"tags\": [], \"child\": []}",
        ] {
            assert!(is_yes(&repo, &[], body), "{body}");
        }
        assert!(is_yes(&Wanted::Catalog, &[], "{\"repositories\": []}"));
        assert!(is_yes(&Wanted::Catalog, &[], "{\"repositories\": null}"));
        for body in ["", "{}", "true"] {
            assert!(is_yes(&Wanted::Ping, &[], body), "{body}");
        }
        assert!(is_yes(&Wanted::Ping, &[("docker-distribution-api-version", "registry/2.0")], "OK"));
        let manifest = Wanted::Manifest { repo: name(), reference: "1".parse().unwrap() };
        let types = "application/vnd.oci.image.index.v1+json; charset=utf-8";
        assert!(is_yes(&manifest, &[("content-type", types)], ""));
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert!(is_yes(&manifest, &[("docker-content-digest", digest)], ""));
        let blob = Wanted::Blob { repo: name(), digest: Digest::sha256(b"1") };
        assert!(is_yes(&blob, &[("content-type", "application/octet-stream")], ""));
        assert!(is_yes(&blob, &[], ""));
    }
}
