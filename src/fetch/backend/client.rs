//! One request to the registry and its answer.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use rustls::ClientConfig;
use tokio::time::Instant;

use super::{Backend, BackendError, Challenge, credentials::Needs};
use crate::{
    fetch::client::{HttpClient, http_client},
    telemetry::{causes, trace},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const IDLE_CONNECTIONS_MAX: usize = 64;
/// An error's body is read up to this, for its code.
pub(super) const ERROR_BYTES_MAX: usize = 64 * 1024;

/// In whose name the registry is asked.
#[derive(Clone, Copy, Debug)]
pub enum Asker<'a> {
    /// The gateway's own, with what it needs the right to.
    Gateway(Needs<'a>),
    /// A caller's: with the `Authorization` they sent.
    Caller(Option<&'a HeaderValue>),
}

/// Warm connections. The certificate that the gateway has for the registry is for its eyes alone: where
/// it sends the gateway on to, for a token or a blob, that comes as nobody.
pub(super) struct Connections {
    registry: Uri,
    to_registry: HttpClient<Full<Bytes>>,
    to_others: HttpClient<Full<Bytes>>,
}

impl Connections {
    pub(super) fn new(registry: Uri, tls: &ClientConfig, tls_as_nobody: &ClientConfig) -> Self {
        let client = |tls| http_client(tls, CONNECT_TIMEOUT, IDLE_CONNECTIONS_MAX);
        Self { registry, to_registry: client(tls), to_others: client(tls_as_nobody) }
    }

    fn to(&self, uri: &Uri) -> &HttpClient<Full<Bytes>> {
        let is_registry =
            uri.scheme() == self.registry.scheme() && uri.authority() == self.registry.authority();
        if is_registry { &self.to_registry } else { &self.to_others }
    }

    /// Sends a request and waits until its answer begins.
    pub(super) async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        limit: Duration,
    ) -> Result<Response<Incoming>, BackendError> {
        let part = trace::span("registry");
        part.set("http.request.method", request.method().to_string());
        let sent = part.within(async {
            trace::tell(request.headers_mut());
            match tokio::time::timeout(limit, self.to(request.uri()).request(request)).await {
                Err(_) => Err(BackendError::Timeout(limit)),
                Ok(Ok(response)) => Ok(response),
                Ok(Err(error)) => Err(BackendError::Unreachable(causes(&error))),
            }
        });
        let sent = sent.await;
        match &sent {
            Ok(response) => part.set("http.response.status_code", i64::from(response.status().as_u16())),
            Err(error) => part.failed(error),
        }
        sent
    }
}

/// What is asked of the registry.
pub(super) struct Question<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Its answer must begin within this; `None` for what reads may take.
    pub(super) limit: Option<Duration>,
}

impl<'a> Question<'a> {
    pub(super) fn get(path: &'a str) -> Self {
        Self { method: Method::GET, path, headers: HeaderMap::new(), body: Bytes::new(), limit: None }
    }

    pub(super) fn head(path: &'a str) -> Self {
        Self { method: Method::HEAD, ..Self::get(path) }
    }

    pub(super) fn with(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    fn request(&self, uri: Uri) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        let identity = HeaderValue::from_static("identity");
        request.headers_mut().entry(header::ACCEPT_ENCODING).or_insert(identity);
        request
    }
}

impl Backend {
    /// Sends one request and answers whatever the registry does, a refusal as well. The gateway's
    /// credentials are renewed once when they are not taken.
    pub(super) async fn ask(
        &self,
        question: &Question<'_>,
        asker: Asker<'_>,
    ) -> Result<Response<Incoming>, BackendError> {
        // Readers that wait for a registry that does not answer must not keep writers from it.
        let turns = if question.limit.is_some() { &self.shared.writes } else { &self.shared.requests };
        let patience = self.shared.options.answer_timeout;
        let permit = tokio::time::timeout(patience, turns.acquire()).await;
        let permit = permit.map_err(|_| BackendError::Timeout(patience))?;
        let _permit = permit.map_err(|_| BackendError::Unreachable("shutting down".to_owned()))?;
        let uri = self.uri(question.path)?;
        let limit = question.limit.unwrap_or(self.shared.options.answer_timeout);
        let mut request = question.request(uri.clone());
        let needs = match asker {
            Asker::Caller(authorization) => {
                if let Some(authorization) = authorization {
                    request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
                }
                return self.shared.client.send(request, limit).await;
            }
            Asker::Gateway(needs) => needs,
        };
        if let Some(authorization) = self.authorization(needs).await? {
            request.headers_mut().insert(header::AUTHORIZATION, authorization);
        }
        let response = self.shared.client.send(request, limit).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let Some(challenge) = Challenge::of(response.headers()) else { return Ok(response) };
        let Some(authorization) = self.answer_challenge(challenge, needs).await? else { return Ok(response) };
        let mut request = question.request(uri);
        request.headers_mut().insert(header::AUTHORIZATION, authorization);
        self.shared.client.send(request, limit).await
    }

    /// All of an answer's body, which must be here within one stall timeout: it is small.
    pub(super) async fn whole(&self, body: Incoming, bytes_max: usize) -> Result<Bytes, BackendError> {
        let mut body = Limited::new(body, bytes_max);
        let mut whole = BytesMut::new();
        let limit = self.shared.options.stall_timeout;
        let end = Instant::now() + limit;
        loop {
            match tokio::time::timeout_at(end, body.frame()).await {
                Err(_) => return Err(BackendError::Timeout(limit)),
                Ok(None) => return Ok(whole.freeze()),
                Ok(Some(Ok(frame))) => {
                    if let Ok(bytes) = frame.into_data() {
                        whole.extend_from_slice(&bytes);
                    }
                }
                Ok(Some(Err(error))) if error.is::<LengthLimitError>() => {
                    return Err(BackendError::Protocol(format!("an answer of more than {bytes_max} bytes")));
                }
                Ok(Some(Err(error))) => return Err(BackendError::Unreachable(error.to_string())),
            }
        }
    }

    /// What an answer that is none says: `Ok` for the registry's own word that something is not there.
    pub(super) async fn no(&self, response: Response<Incoming>) -> Result<(), BackendError> {
        let status = response.status();
        let error = match status {
            StatusCode::NOT_FOUND => BackendError::Status { status: 404 },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(BackendError::Refused { status: status.as_u16() });
            }
            StatusCode::TOO_MANY_REQUESTS => {
                return Err(BackendError::TooMany { retry_after: retry_after(response.headers()) });
            }
            _ => return Err(BackendError::Status { status: status.as_u16() }),
        };
        let body = self.whole(response.into_body(), ERROR_BYTES_MAX).await?;
        if is_absence(&body) { Ok(()) } else { Err(error) }
    }
}

/// Whether a 404 is the registry's word, and not that of something in front of it.
pub(super) fn is_absence(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Error>,
    }
    #[derive(serde::Deserialize)]
    struct Error {
        code: String,
    }
    let Ok(Errors { errors }) = serde_json::from_slice(body) else { return false };
    let absent =
        ["MANIFEST_UNKNOWN", "NAME_UNKNOWN", "BLOB_UNKNOWN", "TAG_UNKNOWN", "TAG_EXPIRED", "NOT_FOUND"];
    !errors.is_empty() && errors.iter().all(|error| absent.contains(&error.code.as_str()))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
