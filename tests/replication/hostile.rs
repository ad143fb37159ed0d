//! Peers with a valid certificate that do not speak the protocol: their connection ends, and
//! nobody else notices.

use bytes::Bytes;
use outport::{
    auth::{authority::PRIMARY_NAME, tls},
    fetch::quic::{self, TransportOptions},
    status::SiteState,
};
use outport_proto::{
    Offset,
    codec::encode_frame,
    frame::{ALPN, Ack, FRAME_BYTES_MAX, FromPrimary, FromSecondary, Hello, SiteReport, VERSION},
};
use quinn::{ApplicationClose, Connection, ConnectionError};

use crate::world::{LIMIT, Primary, World, committed, site};

async fn connected(world: &World, primary: &Primary) -> Connection {
    let authority = [world.authority.certificate().clone()];
    let tls = tls::node_client(&world.issue("frankfurt"), &authority, &[ALPN]).unwrap();
    let config = quic::client_config(&tls, &TransportOptions::log()).unwrap();
    let endpoint = quic::dialer(&quic::Udp, primary.address, &TransportOptions::bulk()).unwrap();
    endpoint.connect_with(config, primary.address, PRIMARY_NAME).unwrap().await.unwrap()
}

fn hello() -> Bytes {
    let hello = Hello {
        versions: vec![VERSION],
        site: site("frankfurt"),
        node: String::new(),
        program: String::new(),
        have: None,
        have_digest: None,
        epoch: 0,
        cluster: None,
    };
    encode_frame(&FromSecondary::Hello(hello)).unwrap()
}

fn ack() -> Bytes {
    let at = Offset::new(1, 1_000_000);
    let report = SiteReport::default();
    encode_frame(&FromSecondary::Ack(Ack {
        received: at,
        durable: at,
        applied: at,
        complete: at,
        report,
        behind: Vec::new(),
    }))
    .unwrap()
}

fn oversized() -> Bytes {
    let mut frame = hello().to_vec();
    frame[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    frame.into()
}

fn damaged() -> Bytes {
    let mut frame = hello().to_vec();
    let last = frame.len() - 1;
    frame[last] ^= 1;
    frame.into()
}

/// Whether the primary ended a connection for breaking the protocol.
fn is_refused(closed: &ConnectionError) -> bool {
    match closed {
        ConnectionError::ApplicationClosed(ApplicationClose { error_code, .. }) => {
            *error_code == 1_u32.into()
        }
        // The packet that says why was lost, and the primary has forgotten the connection since.
        ConnectionError::Reset => true,
        _ => false,
    }
}

#[tokio::test]
async fn garbage_ends_its_own_connection_and_no_other() {
    let world = World::new();
    let primary = world.primary().await;
    let honest = world.site(&primary).await;
    honest.session("going live", |session| session.live).await;

    let primary_frame = encode_frame(&FromPrimary::Append(Vec::new())).unwrap();
    let violations: Vec<(&str, Vec<Bytes>)> = vec![
        ("an unknown kind of stream", vec![Bytes::from_static(b"X")]),
        ("a log stream of noise", vec![Bytes::from_static(b"L"), Bytes::from(vec![0xa5; 4096])]),
        ("a request of noise", vec![Bytes::from_static(b"R"), Bytes::from(vec![0; 4096])]),
        ("a frame of 4 GiB", vec![Bytes::from_static(b"L"), oversized()]),
        ("a request of 4 GiB", vec![Bytes::from_static(b"R"), oversized()]),
        ("a damaged frame", vec![Bytes::from_static(b"L"), damaged()]),
        ("a frame of the other direction", vec![Bytes::from_static(b"L"), primary_frame]),
        ("a Hello as a request", vec![Bytes::from_static(b"R"), hello()]),
    ];
    for (what, mut chunks) in violations {
        let connection = connected(&world, &primary).await;
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        let _ = send.write_all_chunks(&mut chunks).await;
        let closed = tokio::time::timeout(LIMIT, connection.closed()).await;
        let closed = closed.unwrap_or_else(|_| panic!("{what}: still open"));
        assert!(is_refused(&closed), "{what}: {closed:?}");
    }
    let head = primary.commit(vec![committed("lazy/app", b"layer")]).await;
    honest.applied(head).await;
    assert!(honest.session.now().live);
    let rows = primary.statuses();
    let mumbai = rows.iter().find(|row| row.site == "mumbai").unwrap();
    assert_ne!(mumbai.state, SiteState::Disconnected, "its session goes on");
}

#[tokio::test]
async fn frames_out_of_place_are_refused() {
    let world = World::new();
    let primary = world.primary().await;
    let misplaced: Vec<(&str, Vec<Bytes>)> = vec![
        ("an Ack first", vec![Bytes::from_static(b"L"), ack()]),
        ("two Hellos", vec![Bytes::from_static(b"L"), hello(), hello()]),
        ("an Ack of what was never sent", vec![Bytes::from_static(b"L"), hello(), ack()]),
    ];
    for (what, mut chunks) in misplaced {
        let connection = connected(&world, &primary).await;
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all_chunks(&mut chunks).await.unwrap();
        let answer = tokio::time::timeout(LIMIT, receive.read_to_end(FRAME_BYTES_MAX)).await;
        let answer = answer.unwrap_or_else(|_| panic!("{what}: still open")).unwrap();
        let has_refusal = String::from_utf8_lossy(&answer).contains("Hello")
            || String::from_utf8_lossy(&answer).contains("never sent");
        assert!(has_refusal, "{what}");
    }
}

#[tokio::test]
async fn a_second_log_stream_and_streams_that_say_nothing_are_bounded() {
    let world = World::new();
    let primary = world.primary().await;
    let connection = connected(&world, &primary).await;
    let (mut first, mut answers) = connection.open_bi().await.unwrap();
    first.write_all_chunks(&mut [Bytes::from_static(b"L"), hello()]).await.unwrap();
    assert!(answers.read_chunk(1, true).await.unwrap().is_some());
    let (mut second, _answers) = connection.open_bi().await.unwrap();
    second.write_all(b"L").await.unwrap();
    let closed = tokio::time::timeout(LIMIT, connection.closed()).await.unwrap();
    assert!(is_refused(&closed), "{closed:?}");

    let silent = connected(&world, &primary).await;
    let mut open = Vec::new();
    let streams_max = TransportOptions::upstream().streams_max;
    for _ in 0..streams_max {
        open.push(silent.open_bi().await.unwrap());
    }
    let one_more = tokio::time::timeout(std::time::Duration::from_millis(200), silent.open_bi()).await;
    assert!(one_more.is_err(), "the primary lets a connection open {streams_max} streams at once");
    let uni = tokio::time::timeout(std::time::Duration::from_millis(50), silent.open_uni()).await;
    assert!(uni.is_err(), "nobody opens unidirectional streams");
}

#[tokio::test]
async fn a_primary_that_talks_nonsense_is_left_and_tried_again() {
    let world = World::new();
    let authority = [world.authority.certificate().clone()];
    let tls = tls::node_server(&world.primary_identity, &authority, &[ALPN]).unwrap();
    let config = quic::server_config(&tls, &TransportOptions::upstream()).unwrap();
    let endpoint = quic::listen("127.0.0.1:0".parse().unwrap(), config).unwrap();
    let site = world.site_at(endpoint.local_addr().unwrap()).await;
    for nonsense in [oversized(), Bytes::from(vec![0xa5; 4096]), damaged()] {
        let accept = async { endpoint.accept().await.unwrap().await.unwrap() };
        let connection = tokio::time::timeout(LIMIT, accept).await.unwrap();
        let (mut send, _receive) = connection.accept_bi().await.unwrap();
        send.write_all(&nonsense).await.unwrap();
        let closed = tokio::time::timeout(LIMIT, connection.closed()).await.unwrap();
        let is_violation = matches!(
            closed,
            ConnectionError::ApplicationClosed(ApplicationClose { error_code, .. }) if error_code == 1_u32.into()
        );
        assert!(is_violation, "{closed:?}");
    }
    assert!(!site.session.now().live);
    site.stop().await;
}
