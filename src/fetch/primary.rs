//! The upstream over QUIC: requests to the primary on connections that the subscriber keeps warm.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use outport_proto::{
    Digest, ManifestPut, Reference, RepoName,
    frame::{Request, Response},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{
    At, Body, BoxFuture, Upstream, UpstreamError,
    framed::{FrameSink, FrameStream, FramedError, RawStream},
    quic::StreamKind,
};

/// Whether the primary can be asked, and how.
#[derive(Clone, Debug)]
pub enum Link {
    /// Two connections are open.
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
    /// Carries blobs and snapshots.
    pub bulk: quinn::Connection,
}

/// How the primary is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicUpstreamOptions {
    /// A one-round-trip request is given up after this.
    pub answer_timeout_ms: u64,
    /// A body is given up when no byte comes for this long.
    pub stall_timeout_ms: u64,
    /// A request waits this long for a connection that was lost a moment ago.
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
            answer_timeout_ms: 3000,
            stall_timeout_ms: 10_000,
            reconnect_wait_ms: 500,
            reconnect_window_ms: 5000,
            requests_max: 128,
            bodies_max: 64,
        }
    }
}

/// Asks the primary over QUIC. Cloning gives another handle with the same bounds.
#[derive(Clone, Debug)]
pub struct QuicUpstream {
    link: watch::Receiver<Link>,
    answer_timeout: Duration,
    stall_timeout: Duration,
    reconnect_wait: Duration,
    reconnect_window: Duration,
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
            requests: Arc::new(Semaphore::new(options.requests_max)),
            bodies: Arc::new(Semaphore::new(options.bodies_max)),
        };
        (sender, upstream)
    }

    /// The open connections; waits a little when they were lost just now.
    async fn connections(&self) -> Result<Connections, UpstreamError> {
        let mut link = self.link.clone();
        let wait = match &*link.borrow() {
            Link::Up(connections) => return Ok(connections.clone()),
            Link::Down { since } if since.elapsed() < self.reconnect_window => self.reconnect_wait,
            Link::Down { .. } => Duration::ZERO,
        };
        let up = tokio::time::timeout(wait, link.wait_for(|link| matches!(link, Link::Up(_)))).await;
        match up.ok().and_then(Result::ok).as_deref() {
            Some(Link::Up(connections)) => Ok(connections.clone()),
            _ => Err(UpstreamError::Unreachable("no session with the primary".to_owned())),
        }
    }

    async fn answer(&self, request: Request) -> Result<Response, UpstreamError> {
        let work = async {
            let _permit = permit(&self.requests).await?;
            let connections = self.connections().await?;
            let mut answer = ask(&connections.log, &request, self.answer_timeout).await?;
            Ok(answer.expect(self.answer_timeout).await?)
        };
        tokio::time::timeout(self.answer_timeout, work)
            .await
            .unwrap_or(Err(UpstreamError::Timeout(self.answer_timeout)))
    }

    async fn body(&self, request: Request) -> Result<Option<Box<dyn Body>>, UpstreamError> {
        let permit = permit(&self.bodies).await?;
        let connections = self.connections().await?;
        let mut answer = ask(&connections.bulk, &request, self.stall_timeout).await?;
        match answer.expect(self.stall_timeout).await? {
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

/// Sends `request` on a stream of its own; its answers are to be read from what this returns.
///
/// # Errors
/// At once when the connection is closed, and when no stream can be opened within `limit`.
pub async fn ask(
    connection: &quinn::Connection,
    request: &Request,
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
