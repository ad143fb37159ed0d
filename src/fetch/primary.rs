//! The upstream over QUIC: requests to the primary on connections that the subscriber keeps warm.

use crate::watch;
use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use outport_proto::{
    Digest, ManifestPut, Reference, RepoName, SiteName,
    frame::{Keys, Request, Response},
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
            judged(&connections.log, answer.expect(self.answer_timeout).await)
        };
        tokio::time::timeout(self.answer_timeout, work)
            .await
            .unwrap_or(Err(UpstreamError::Timeout(self.answer_timeout)))
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

    async fn body(&self, request: Request) -> Result<Option<Box<dyn Body>>, UpstreamError> {
        let permit = permit(&self.bodies).await?;
        let connections = self.connections().await?;
        let bulk = connections.bulk.connection().await?;
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
mod tests {
    use outport_proto::{Offset, codec};

    use super::*;
    use crate::fetch::{
        framed::stream_kind,
        testing::{TestAuthority, connected, listening},
    };

    const LIMIT: Duration = Duration::from_secs(5);

    /// Answers every request on every connection with the frames and bytes that `script` gives.
    fn scripted(endpoint: quinn::Endpoint, script: fn(Request) -> Vec<Bytes>) {
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let connection = incoming.await.unwrap();
                tokio::spawn(async move {
                    while let Ok((send, mut receive)) = connection.accept_bi().await {
                        assert_eq!(stream_kind(&mut receive, LIMIT).await.unwrap(), StreamKind::Request);
                        let request = FrameStream::<Request>::new(receive).expect(LIMIT).await.unwrap();
                        let mut sink = FrameSink::new(send, LIMIT);
                        let _ = sink.write(&mut script(request)).await;
                        sink.finish();
                    }
                });
            }
        });
    }

    async fn upstream(script: fn(Request) -> Vec<Bytes>) -> (watch::Sender<Link>, QuicUpstream) {
        let authority = TestAuthority::new();
        let (endpoint, address) = listening(&authority);
        scripted(endpoint, script);
        let log = connected(&authority, address, "mumbai").await.unwrap();
        let authority = Arc::new(authority);
        let bulk = Bulk::new(Box::new(move || {
            let authority = Arc::clone(&authority);
            Box::pin(async move {
                connected(&authority, address, "mumbai").await.map_err(|error| error.to_string())
            })
        }));
        let (link, upstream) = QuicUpstream::new(&QuicUpstreamOptions::default());
        link.send_replace(Link::Up(Connections { log, bulk }));
        (link, upstream)
    }

    fn frame(response: &Response) -> Bytes {
        codec::encode_frame(response).unwrap()
    }

    fn repo() -> RepoName {
        "team/app".parse().unwrap()
    }

    #[tokio::test]
    async fn a_body_arrives_whole_from_the_offset_asked_for() {
        let content = || Bytes::from((0..3_000_000_u32).map(|n| n as u8).collect::<Vec<_>>());
        let (_link, upstream) = upstream(|request| {
            let Request::Fetch { offset, .. } = request else { panic!("{request:?}") };
            let content = Bytes::from((0..3_000_000_u32).map(|n| n as u8).collect::<Vec<_>>());
            vec![frame(&Response::Body { size: 3_000_000 }), content.slice(offset as usize..)]
        })
        .await;
        let mut body = upstream.fetch(&repo(), &Digest::sha256(b""), 1_234_567).await.unwrap().unwrap();
        assert_eq!(body.size(), 3_000_000);
        let mut got = Vec::new();
        while let Some(chunk) = body.chunk().await.unwrap() {
            got.extend_from_slice(&chunk);
        }
        assert!(got == content()[1_234_567..]);
    }

    #[tokio::test]
    async fn a_no_is_an_answer_and_unavailable_is_not_a_no() {
        let at = Offset::new(1, 9);
        let (_link, upstream) = upstream(|request| {
            vec![match request {
                Request::Link { .. } => frame(&Response::NotFound { at: Offset::new(1, 9) }),
                Request::Resolve { .. } => frame(&Response::Unavailable { reason: "starting".to_owned() }),
                Request::Referrers { .. } => Bytes::from_static(b"this is not a frame"),
                _ => Bytes::new(),
            }]
        })
        .await;
        let digest = Digest::sha256(b"");
        let no = upstream.link(&repo(), &digest).await.unwrap();
        assert_eq!(no, At { value: None, at });
        let reference = Reference::Digest(digest);
        let resolved = upstream.resolve(&repo(), &reference).await;
        assert!(matches!(resolved, Err(UpstreamError::Unavailable(_))), "{resolved:?}");
        let cut = upstream.fetch(&repo(), &digest, 0).await.map(|_| ());
        assert!(matches!(cut, Err(UpstreamError::Unreachable(_))), "{cut:?}");
        let referrers = upstream.referrers(&repo(), &digest).await;
        assert!(matches!(referrers, Err(UpstreamError::Protocol(_))), "{referrers:?}");
        let distrusted = upstream.link(&repo(), &digest).await;
        assert!(matches!(distrusted, Err(UpstreamError::Unreachable(_))), "{distrusted:?}");
    }

    #[tokio::test]
    async fn an_answer_to_another_question_is_no_answer() {
        let wrong: [fn() -> Response; 8] = [
            || Response::Linked { size: 7, at: Offset::new(1, 9) },
            || Response::Body { size: 7 },
            || Response::Manifests { manifests: Vec::new(), at: Offset::new(1, 9) },
            || Response::SnapshotBegin { from: Offset::new(1, 9), resumed: false },
            || Response::SnapshotPart(Vec::new()),
            || Response::SnapshotEnd { until: Offset::new(1, 9), entries: 0 },
            || Response::DiffPart(Vec::new()),
            || Response::NotFound { at: Offset::new(1, 9) },
        ];
        static WRONG: std::sync::Mutex<Vec<Bytes>> = std::sync::Mutex::new(Vec::new());
        let (_link, upstream) = upstream(|_| WRONG.lock().unwrap().clone()).await;
        let digest = Digest::sha256(b"");
        let reference = Reference::Digest(digest);
        let is_wrong = |error: &UpstreamError| matches!(error, UpstreamError::Protocol(_));
        for response in wrong.map(|response| response()) {
            *WRONG.lock().unwrap() = vec![frame(&response)];
            let what = name(&response);
            let is_no = matches!(response, Response::NotFound { .. });
            let resolved = upstream.resolve(&repo(), &reference).await;
            assert!(is_no || resolved.as_ref().is_err_and(is_wrong), "resolve: {what}: {resolved:?}");
            let linked = upstream.link(&repo(), &digest).await;
            let fits = is_no || matches!(response, Response::Linked { .. });
            assert!(fits || linked.as_ref().is_err_and(is_wrong), "link: {what}: {linked:?}");
            let referrers = upstream.referrers(&repo(), &digest).await;
            let fits = matches!(response, Response::Manifests { .. });
            assert!(fits || referrers.as_ref().is_err_and(is_wrong), "referrers: {what}: {referrers:?}");
            let fetched = upstream.fetch(&repo(), &digest, 0).await.map(|_| ());
            let fits = is_no || matches!(response, Response::Body { .. });
            assert!(fits || fetched.as_ref().is_err_and(is_wrong), "fetch: {what}: {fetched:?}");
        }
    }

    #[tokio::test]
    async fn without_a_session_requests_fail_fast_and_wait_only_for_one_lost_just_now() {
        let (link, quick) =
            QuicUpstream::new(&QuicUpstreamOptions { reconnect_window_ms: 0, ..Default::default() });
        let started = Instant::now();
        let failed = quick.link(&repo(), &Digest::sha256(b"")).await;
        assert!(matches!(failed, Err(UpstreamError::Unreachable(_))), "{failed:?}");
        assert!(started.elapsed() < Duration::from_millis(300));
        drop(link);

        let (up, connected) = upstream(|_| vec![frame(&Response::NotFound { at: Offset::ZERO })]).await;
        let Link::Up(connections) = up.borrow().clone() else { panic!("no connections") };
        up.send_replace(Link::Down { since: Instant::now() });
        let asked = {
            let connected = connected.clone();
            tokio::spawn(async move { connected.link(&repo(), &Digest::sha256(b"")).await })
        };
        tokio::task::yield_now().await;
        up.send_replace(Link::Up(connections.clone()));
        assert!(asked.await.unwrap().is_ok());

        connections.log.close(0_u32.into(), b"");
        let dead = connected.link(&repo(), &Digest::sha256(b"")).await;
        assert!(matches!(dead, Err(UpstreamError::Unreachable(_))), "{dead:?}");
    }

    #[tokio::test]
    async fn a_certificate_of_another_authority_is_refused_by_either_end() {
        let (ours, theirs) = (TestAuthority::new(), TestAuthority::new());
        let (endpoint, address) = listening(&ours);
        let server = tokio::spawn(async move { endpoint.accept().await.unwrap().await.map(|_| ()) });
        assert!(connected(&theirs, address, "mumbai").await.is_err());
        assert!(server.await.unwrap().is_err());
    }
}
