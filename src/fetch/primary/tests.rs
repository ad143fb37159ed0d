//! What the upstream makes of answers, and of their absence.

use outport_proto::{Offset, codec, frame::VERSION};

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
        Box::pin(
            async move { connected(&authority, address, "mumbai").await.map_err(|error| error.to_string()) },
        )
    }));
    let (link, upstream) = QuicUpstream::new(&QuicUpstreamOptions::default());
    link.send_replace(Link::Up(Connections { log, bulk, version: VERSION, transport: Transport::Quic }));
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
async fn a_question_lost_with_its_connection_is_asked_again_on_the_next() {
    let (up, upstream) = upstream(|_| vec![frame(&Response::NotFound { at: Offset::new(1, 9) })]).await;
    let Link::Up(next) = up.borrow().clone() else { panic!("no connections") };
    let authority = TestAuthority::new();
    let (endpoint, address) = listening(&authority);
    let silent = tokio::spawn(async move {
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        let question = connection.accept_bi().await.unwrap();
        connection.close(CloseCode::Bye.into(), b"");
        drop(question);
        endpoint.wait_idle().await;
    });
    let log = connected(&authority, address, "mumbai").await.unwrap();
    up.send_replace(Link::Up(Connections { log: log.clone(), ..next.clone() }));
    let asked = tokio::spawn(async move { upstream.link(&repo(), &Digest::sha256(b"")).await });
    log.closed().await;
    up.send_replace(Link::Down { since: Instant::now() });
    tokio::task::yield_now().await;
    up.send_replace(Link::Up(next));
    assert_eq!(asked.await.unwrap().unwrap(), At { value: None, at: Offset::new(1, 9) });
    silent.await.unwrap();
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_by_either_end() {
    let (ours, theirs) = (TestAuthority::new(), TestAuthority::new());
    let (endpoint, address) = listening(&ours);
    let server = tokio::spawn(async move { endpoint.accept().await.unwrap().await.map(|_| ()) });
    assert!(connected(&theirs, address, "mumbai").await.is_err());
    assert!(server.await.unwrap().is_err());
}
