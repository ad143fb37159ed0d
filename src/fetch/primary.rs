//! The upstream over QUIC: requests to the primary on connections that the subscriber keeps warm.

use crate::watch;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use outport_proto::{
    Digest, ManifestPut, Reference, RepoName, SiteName,
    codec::WireFrame,
    frame::{
        Asked, CERTIFY_SINCE, CertificateRequests, Certificates, Credentials, Keys, Question, Request,
        Response, TRACES_SINCE, Verdict,
    },
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{
    At, Body, BoxFuture, Upstream, UpstreamError,
    bulk::Bulk,
    framed::{FrameSink, FrameStream, FramedError, RawStream},
    quic::{CloseCode, StreamKind},
};
use crate::telemetry::trace::{self, Span};

/// Whether the primary can be asked, and how.
#[derive(Clone, Debug)]
pub enum Link {
    /// A session is open.
    Up(Connections),
    /// None is.
    Down {
        /// Since when.
        since: Instant,
    },
}

/// The connections of a session.
#[derive(Clone, Debug)]
pub struct Connections {
    /// Carries the log, and requests that answer in one round trip.
    pub log: quinn::Connection,
    /// Carries blobs and snapshots, when there are any.
    pub bulk: Bulk,
    /// The protocol version that both ends speak, once that is agreed; 1 before.
    pub version: u16,
    /// How its packets travel.
    pub transport: Transport,
}

/// How the packets of a session travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// As they are, over UDP.
    Quic,
    /// In a tunnel ([`super::tunnel`]).
    Tcp,
}

impl Transport {
    /// As the status names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

/// How the primary is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicUpstreamOptions {
    /// A one-round-trip request is given up after this. A session that died ends sooner and takes its
    /// requests with it: this is for one that lives, over a wire that carries little.
    pub answer_timeout_ms: u64,
    /// A body is given up when no byte comes for this long.
    pub stall_timeout_ms: u64,
    /// A request waits this long for a connection that was lost a moment ago, and longer if the primary
    /// is far away.
    pub reconnect_wait_ms: u64,
    /// What "a moment ago" is: after this a request fails at once.
    pub reconnect_window_ms: u64,
    /// One-round-trip requests on their way at once.
    pub requests_max: usize,
    /// Bodies on their way at once.
    pub bodies_max: usize,
}

impl Default for QuicUpstreamOptions {
    fn default() -> Self {
        Self {
            answer_timeout_ms: 10_000,
            stall_timeout_ms: 10_000,
            reconnect_wait_ms: 500,
            reconnect_window_ms: 5000,
            requests_max: 128,
            bodies_max: 64,
        }
    }
}

/// Round trips that a new session may take: two without loss.
const RECONNECT_ROUND_TRIPS: u32 = 6;

/// Asks the primary over QUIC. Cloning gives another handle with the same bounds.
#[derive(Clone, Debug)]
pub struct QuicUpstream {
    link: watch::Receiver<Link>,
    answer_timeout: Duration,
    stall_timeout: Duration,
    reconnect_wait: Duration,
    reconnect_window: Duration,
    /// Of the connection last asked on, in microseconds.
    round_trip: Arc<AtomicU64>,
    requests: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
}

impl QuicUpstream {
    /// An upstream, and the end that tells it of connections. It begins without any.
    pub fn new(options: &QuicUpstreamOptions) -> (watch::Sender<Link>, Self) {
        let (sender, link) = watch::channel(Link::Down { since: Instant::now() });
        let upstream = Self {
            link,
            answer_timeout: Duration::from_millis(options.answer_timeout_ms),
            stall_timeout: Duration::from_millis(options.stall_timeout_ms),
            reconnect_wait: Duration::from_millis(options.reconnect_wait_ms),
            reconnect_window: Duration::from_millis(options.reconnect_window_ms),
            round_trip: Arc::default(),
            requests: Arc::new(Semaphore::new(options.requests_max)),
            bodies: Arc::new(Semaphore::new(options.bodies_max)),
        };
        (sender, upstream)
    }

    /// The open connections; waits a little when they were lost just now.
    async fn connections(&self) -> Result<Connections, UpstreamError> {
        let mut link = self.link.clone();
        let wait = match &*link.borrow() {
            Link::Up(connections) if is_open(connections) => return Ok(connections.clone()),
            Link::Up(_) => self.reconnect_wait(),
            Link::Down { since } if since.elapsed() < self.reconnect_window => self.reconnect_wait(),
            Link::Down { .. } => Duration::ZERO,
        };
        let is_up = |link: &Link| matches!(link, Link::Up(connections) if is_open(connections));
        let up = tokio::time::timeout(wait, link.wait_for(is_up)).await;
        match up.ok().and_then(Result::ok).as_deref() {
            Some(Link::Up(connections)) => Ok(connections.clone()),
            _ => Err(UpstreamError::Unreachable("no session with the primary".to_owned())),
        }
    }

    fn reconnect_wait(&self) -> Duration {
        let round_trip = Duration::from_micros(self.round_trip.load(Ordering::Relaxed));
        self.reconnect_wait.max(round_trip * RECONNECT_ROUND_TRIPS)
    }

    /// Asks until there is an answer, or no connection to ask on: a question changes nothing, and one
    /// that was lost with its connection is asked again on the next.
    async fn answer(&self, request: Request) -> Result<Response, UpstreamError> {
        let part = trace::span("ask the primary");
        let answered = part.within(self.answer_to(traced(request, &part))).await;
        answered.inspect_err(|error| part.failed(error))
    }

    async fn answer_to(&self, request: Asked) -> Result<Response, UpstreamError> {
        let work = async {
            let _permit = permit(&self.requests).await?;
            loop {
                let Connections { log, version, .. } = self.connections().await?;
                let request = understood(request.clone(), version);
                match self.asked(&log, &request).await {
                    Err(UpstreamError::Unreachable(reason)) if log.close_reason().is_some() => {
                        tracing::debug!(reason, "a question was lost with its connection");
                    }
                    answered => return answered,
                }
            }
        };
        tokio::time::timeout(self.answer_timeout, work)
            .await
            .unwrap_or(Err(UpstreamError::Timeout(self.answer_timeout)))
    }

    async fn asked(&self, log: &quinn::Connection, request: &Asked) -> Result<Response, UpstreamError> {
        let round_trip = u64::try_from(log.rtt().as_micros()).unwrap_or(u64::MAX);
        self.round_trip.store(round_trip, Ordering::Relaxed);
        let mut answer = ask(log, request, self.answer_timeout).await?;
        judged(log, answer.expect(self.answer_timeout).await)
    }

    /// The keys of `site`, for the last of `via` ([`Request::SiteKeys`]), which is this site; `None`
    /// when they are not for it.
    ///
    /// # Errors
    /// When there was no answer.
    pub async fn site_keys(&self, site: SiteName, via: Vec<SiteName>) -> Result<Option<Keys>, UpstreamError> {
        match self.answer(Request::SiteKeys { site, via }).await? {
            Response::SiteKeys(keys) => Ok(Some(keys)),
            Response::NotFound { .. } => Ok(None),
            other => Err(unexpected(other)),
        }
    }

    /// The keys of this site, once the primary has looked for the key that a token calls `unknown`.
    ///
    /// # Errors
    /// When there was no answer.
    pub async fn own_keys(&self, unknown: String) -> Result<Keys, UpstreamError> {
        match self.answer(Request::OwnKeys { unknown }).await? {
            Response::SiteKeys(keys) => Ok(keys),
            other => Err(unexpected(other)),
        }
    }

    /// New certificates of `site` for the last of `via`, or for this site ([`Request::Certify`]); `None` when they
    /// are not for it.
    ///
    /// # Errors
    /// When there was no answer, or the primary does not know the question.
    pub async fn certify(
        &self,
        site: SiteName,
        via: Vec<SiteName>,
        requests: CertificateRequests,
    ) -> Result<Option<Certificates>, UpstreamError> {
        if self.connections().await?.version < CERTIFY_SINCE {
            return Err(UpstreamError::Unavailable("the primary is too old to certify anything".to_owned()));
        }
        match self.answer(Request::Certify { site, via, requests }).await? {
            Response::Certified(certificates) => Ok(Some(certificates)),
            Response::NotFound { .. } => Ok(None),
            other => Err(unexpected(other)),
        }
    }

    /// What the registry behind the primary says to `question` by whoever sends this `Authorization`.
    ///
    /// # Errors
    /// When it said nothing, or could not be asked.
    pub async fn authorize(
        &self,
        authorization: Option<Credentials>,
        question: Question,
    ) -> Result<Verdict, UpstreamError> {
        match self.answer(Request::Authorize { authorization, question }).await? {
            Response::Authorized(verdict) => Ok(verdict),
            other => Err(unexpected(other)),
        }
    }

    async fn body(&self, request: Request) -> Result<Option<Box<dyn Body>>, UpstreamError> {
        let part = trace::span("ask the primary");
        let request = traced(request, &part);
        let permit = permit(&self.bodies).await?;
        let connections = self.connections().await?;
        let bulk = connections.bulk.connection().await?;
        let request = understood(request, connections.version);
        let mut answer = ask(&bulk, &request, self.stall_timeout).await?;
        match judged(&bulk, answer.expect(self.stall_timeout).await)? {
            Response::Body { size } => Ok(Some(Box::new(QuicBody {
                size,
                stream: answer.into_raw(),
                stall_timeout: self.stall_timeout,
                _permit: permit,
            }))),
            Response::NotFound { .. } => Ok(None),
            other => Err(unexpected(other)),
        }
    }
}

/// `request` as a part of whatever is under way, if anything is.
fn traced(request: Request, part: &Span) -> Asked {
    Asked { parent: part.traceparent().or_else(trace::current), request }
}

/// Without what a primary of that version does not know.
fn understood(asked: Asked, version: u16) -> Asked {
    if version >= TRACES_SINCE { asked } else { asked.request.into() }
}

fn is_open(connections: &Connections) -> bool {
    connections.log.close_reason().is_none()
}

/// Sends `request` on a stream of its own; its answers are to be read from what this returns.
///
/// # Errors
/// At once when the connection is closed, and when no stream can be opened within `limit`.
pub async fn ask<F: WireFrame>(
    connection: &quinn::Connection,
    request: &F,
    limit: Duration,
) -> Result<FrameStream<Response>, UpstreamError> {
    let (send, receive) = tokio::time::timeout(limit, connection.open_bi())
        .await
        .map_err(|_| UpstreamError::Timeout(limit))?
        .map_err(|error| UpstreamError::Unreachable(error.to_string()))?;
    let mut sink = FrameSink::new(send, limit);
    sink.open(StreamKind::Request, request).await?;
    sink.finish();
    Ok(FrameStream::new(receive))
}

/// A primary that breaks the protocol is not asked on this connection again.
fn judged(
    connection: &quinn::Connection,
    answer: Result<Response, FramedError>,
) -> Result<Response, UpstreamError> {
    answer.map_err(|error| {
        if error.is_violation() {
            connection.close(CloseCode::Protocol.into(), error.to_string().as_bytes());
        }
        error.into()
    })
}

impl Upstream for QuicUpstream {
    fn resolve<'a>(
        &'a self,
        repo: &'a RepoName,
        reference: &'a Reference,
    ) -> BoxFuture<'a, Result<At<Option<ManifestPut>>, UpstreamError>> {
        let request = Request::Resolve { repo: repo.clone(), reference: reference.clone() };
        Box::pin(async move {
            match self.answer(request).await? {
                Response::Manifest { manifest, at } => Ok(At { value: Some(*manifest), at }),
                Response::NotFound { at } => Ok(At { value: None, at }),
                other => Err(unexpected(other)),
            }
        })
    }

    fn link<'a>(
        &'a self,
        repo: &'a RepoName,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<At<Option<u64>>, UpstreamError>> {
        let request = Request::Link { repo: repo.clone(), digest: *digest };
        Box::pin(async move {
            match self.answer(request).await? {
                Response::Linked { size, at } => Ok(At { value: Some(size), at }),
                Response::NotFound { at } => Ok(At { value: None, at }),
                other => Err(unexpected(other)),
            }
        })
    }

    fn referrers<'a>(
        &'a self,
        repo: &'a RepoName,
        subject: &'a Digest,
    ) -> BoxFuture<'a, Result<At<Vec<ManifestPut>>, UpstreamError>> {
        let request = Request::Referrers { repo: repo.clone(), digest: *subject };
        Box::pin(async move {
            match self.answer(request).await? {
                Response::Manifests { manifests, at } => Ok(At { value: manifests, at }),
                other => Err(unexpected(other)),
            }
        })
    }

    fn fetch<'a>(
        &'a self,
        repo: &'a RepoName,
        digest: &'a Digest,
        offset: u64,
    ) -> BoxFuture<'a, Result<Option<Box<dyn Body>>, UpstreamError>> {
        Box::pin(self.body(Request::Fetch { repo: repo.clone(), digest: *digest, offset }))
    }
}

/// A blob on its way; dropping it tells the primary to stop.
struct QuicBody {
    size: u64,
    stream: RawStream,
    stall_timeout: Duration,
    _permit: OwnedSemaphorePermit,
}

impl Body for QuicBody {
    fn size(&self) -> u64 {
        self.size
    }

    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, UpstreamError>> {
        Box::pin(async { Ok(self.stream.chunk(self.stall_timeout).await?) })
    }
}

async fn permit(semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, UpstreamError> {
    let closed = |_| UpstreamError::Unreachable("shutting down".to_owned());
    Arc::clone(semaphore).acquire_owned().await.map_err(closed)
}

fn unexpected(response: Response) -> UpstreamError {
    match response {
        Response::Unavailable { reason } => UpstreamError::Unavailable(reason),
        other => UpstreamError::Protocol(format!("unexpected answer {}", name(&other))),
    }
}

/// Never the content: a manifest in a log line helps nobody.
const fn name(response: &Response) -> &'static str {
    match response {
        Response::Manifest { .. } => "manifest",
        Response::Linked { .. } => "linked",
        Response::NotFound { .. } => "not found",
        Response::Body { .. } => "body",
        Response::Manifests { .. } => "manifests",
        Response::SnapshotBegin { .. } | Response::SnapshotPart(_) | Response::SnapshotEnd { .. } => {
            "snapshot"
        }
        Response::Unavailable { .. } => "unavailable",
        Response::SiteKeys(_) => "keys",
        Response::Authorized(_) => "verdict",
        Response::Certified(_) => "certificates",
        Response::DiffSums { .. } | Response::DiffPart(_) | Response::DiffBucket { .. } => "diff",
    }
}

impl From<FramedError> for UpstreamError {
    fn from(error: FramedError) -> Self {
        match error {
            FramedError::Stalled(limit) => Self::Timeout(limit),
            error if error.is_violation() => Self::Protocol(error.to_string()),
            error => Self::Unreachable(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
