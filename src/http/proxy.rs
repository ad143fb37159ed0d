//! Streaming a request through: to the primary, for those that must not meet a redirect; from there to
//! the registry behind it.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, Uri, header};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Semaphore;
use tokio_rustls::rustls::ClientConfig;

use super::{
    alone::Reachability,
    body::Body,
    error::ApiError,
    headers::ANNOUNCED,
    request::{Asked, BoxError, RequestBody},
};
use crate::{
    fetch::client::{HttpClient, http_client},
    telemetry::trace,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections kept warm, so that a push does not begin with a handshake across the world.
const IDLE_CONNECTIONS_MAX: usize = 32;
/// Requests under way at once, a connection of the primary's each: it takes ten times as many in all.
const REQUESTS_MAX: usize = 1000;
/// For the primary's answer once no byte of the body goes out any longer: it hashes and syncs a
/// layer meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// Headers that belong to one connection and not to the request: RFC 9110 section 7.6.1. `Expect`
/// is answered here: the body is asked for when the primary is ready for it.
const HOP_BY_HOP: [HeaderName; 11] = [
    header::CONNECTION,
    header::EXPECT,
    header::HOST,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// A client of another registry. Cloning gives another handle to the same connections.
#[derive(Clone, Debug)]
pub struct Proxy {
    client: HttpClient<UnsyncBoxBody<Bytes, BoxError>>,
    reachability: Reachability,
    /// Requests that may wait for an answer: each takes a connection at the primary.
    turns: Arc<Semaphore>,
    peer: &'static str,
    pub(super) answer_timeout: Duration,
}

impl Proxy {
    /// A client that believes certificates as `tls` says; for `http` URLs it has no say. `peer` is where
    /// requests go, for people.
    pub fn new(tls: Arc<ClientConfig>, peer: &'static str) -> Self {
        let client = http_client(&tls, CONNECT_TIMEOUT, IDLE_CONNECTIONS_MAX);
        let turns = Arc::new(Semaphore::new(REQUESTS_MAX));
        let reachability = Reachability::default();
        Self { client, reachability, turns, peer, answer_timeout: ANSWER_TIMEOUT }
    }

    /// Whether the primary answers at `url`; a gateway's word for it does not count.
    pub(super) async fn reaches(&self, url: &str) -> bool {
        let probe = async {
            let mut request =
                Request::new(http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync());
            *request.uri_mut() = url.parse().ok()?;
            let answer = self.client.request(request).await.ok()?;
            Some(!answer.status().is_server_error())
        };
        self.reachability.or_probe(async { probe.await.unwrap_or(false) }).await
    }

    /// Sends a request with its body to `target` and answers what comes back. `announced` is the
    /// ticket with the request's write intent; what a client sent in its place goes no further.
    pub(super) async fn forward<B: RequestBody>(
        &self,
        asked: &mut Asked<B>,
        target: Uri,
        announced: Option<String>,
        sent_bytes: &Counter,
    ) -> Result<Response<Body>, ApiError> {
        let part = trace::span("forward");
        part.set("outport.peer", self.peer);
        let forwarded = part.within(self.exchange(asked, target, announced, sent_bytes)).await;
        match &forwarded {
            Ok(response) => part.set("http.response.status_code", i64::from(response.status().as_u16())),
            Err(_) => part.failed("no answer"),
        }
        forwarded
    }

    async fn exchange<B: RequestBody>(
        &self,
        asked: &mut Asked<B>,
        target: Uri,
        announced: Option<String>,
        sent_bytes: &Counter,
    ) -> Result<Response<Body>, ApiError> {
        let Ok(_turn) = self.turns.try_acquire() else {
            let reason = format!("too many requests are on their way from this site to {}", self.peer);
            return Err(ApiError::Unavailable(reason.into()));
        };
        let sent = Arc::new(AtomicU64::new(0));
        let body = match asked.take_body() {
            None => http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync(),
            Some(body) => {
                let counted = Counted { body, sent: Arc::clone(&sent), bytes: sent_bytes.clone() };
                counted.map_err(Into::into).boxed_unsync()
            }
        };
        let mut request = Request::new(body);
        *request.method_mut() = asked.method.clone();
        *request.uri_mut() = target;
        *request.headers_mut() = end_to_end(&asked.headers);
        request.headers_mut().remove(ANNOUNCED);
        trace::tell(request.headers_mut());
        if let Some(announced) = announced {
            request.headers_mut().insert(ANNOUNCED, announced.try_into().map_err(|_| ApiError::Internal)?);
        }
        let mut answer = pin!(self.client.request(request));
        // A layer may take hours on its way; only silence is a reason to give up.
        let answer = loop {
            let before = sent.load(Relaxed);
            match tokio::time::timeout(self.answer_timeout, answer.as_mut()).await {
                Ok(answer) => break answer,
                Err(_) if sent.load(Relaxed) == before => {
                    let reason = format!("{} did not answer in time", self.peer);
                    return Err(ApiError::Unavailable(reason.into()));
                }
                Err(_) => {}
            }
        };
        match answer {
            Ok(answer) => {
                let (parts, body) = answer.into_parts();
                let mut response = Response::new(Body::proxied(body));
                *response.status_mut() = parts.status;
                *response.headers_mut() = end_to_end(&parts.headers);
                Ok(response)
            }
            Err(error) => {
                tracing::info!(%error, peer = self.peer, "request not streamed through");
                let reason = format!("{} cannot be reached; pushes need it", self.peer);
                Err(ApiError::Unavailable(reason.into()))
            }
        }
    }
}

fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let named_by_connection: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    headers
        .iter()
        .filter(|(name, _)| !HOP_BY_HOP.contains(name) && !named_by_connection.contains(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// A body whose bytes are counted as they pass.
struct Counted<B> {
    body: B,
    /// Of this body.
    sent: Arc<AtomicU64>,
    /// Of all.
    bytes: Counter,
}

impl<B: RequestBody> http_body::Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.sent.fetch_add(data.len() as u64, Relaxed);
            self.bytes.inc_by(data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_belongs_to_one_connection_stays_there() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, x-private"),
            ("x-private", "1"),
            ("te", "trailers"),
            ("host", "site.example.com"),
            ("expect", "100-continue"),
            ("authorization", "Bearer x"),
            ("content-range", "0-1"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let kept = end_to_end(&headers);
        let mut names: Vec<&str> = kept.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "content-range"]);
    }
}
