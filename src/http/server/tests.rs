use std::{net::SocketAddr, sync::atomic::AtomicUsize, sync::atomic::Ordering::SeqCst};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Notify,
};
use tokio_rustls::rustls::{self, RootCertStore, pki_types::PrivateKeyDer};

use super::*;

/// A listener with a toy behind it: `/slow` waits for `release`, `/big` never ends, `/echo` reads its body.
struct World {
    address: SocketAddr,
    shutdown: Shutdown,
    release: Arc<Notify>,
    entered: Arc<Notify>,
    served: Arc<AtomicUsize>,
    /// Told whenever a connection is over.
    closed: Arc<Notify>,
    server: tokio::task::JoinHandle<()>,
}

/// A connection's copy of the toy goes when the connection does.
#[derive(Clone)]
struct Alive(Arc<Notify>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

async fn start(tls: Option<TlsConfig>, options: ServerOptions) -> World {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let (release, entered) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let served = Arc::new(AtomicUsize::new(0));
    let closed = Arc::new(Notify::new());
    let toy = {
        let alive = Alive(closed.clone());
        let (release, entered, served) = (release.clone(), entered.clone(), served.clone());
        move |request: Request<Incoming>, connection: Arc<Connection>| {
            let _ = &alive;
            let (release, entered, served) = (release.clone(), entered.clone(), served.clone());
            async move {
                let _in_flight = connection.begin_request();
                served.fetch_add(1, SeqCst);
                match request.uri().path() {
                    "/slow" => {
                        entered.notify_one();
                        release.notified().await;
                        Response::new(Full::new(Bytes::from_static(b"at last")))
                    }
                    "/big" => Response::new(Full::new(Bytes::from(vec![0; 64 * 1024 * 1024]))),
                    _ => {
                        let body = request.into_body().collect().await.map(|body| body.to_bytes());
                        Response::new(Full::new(body.unwrap_or_default()))
                    }
                }
            }
        }
    };
    let server = tokio::spawn(serve(listener, tls, options, toy, shutdown.clone()));
    World { address, shutdown, release, entered, served, closed, server }
}

fn impatient() -> ServerOptions {
    let mut options = ServerOptions::default();
    let moment = Duration::from_millis(200);
    options.patience.header_read = moment;
    options.patience.idle = 2 * moment;
    options.patience.write_stall = moment;
    options.handshake_timeout = moment;
    options
}

impl World {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes and reads until the server closes.
    async fn say(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        read_to_close(&mut stream).await
    }
}

async fn read_to_close(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
    // A reset after the answer is a close too.
    let _ = read.expect("the server closes in time");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn requests_follow_each_other_on_one_connection() {
    let world = start(None, ServerOptions::default()).await;
    let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\nPOST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi";
    let answer = world.say(request).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
    assert!(answer.ends_with("\r\n\r\nhi"), "{answer}");
}

#[tokio::test]
async fn a_request_with_two_lengths_is_one_request_or_none() {
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    for framing in [
        "content-length: 4\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 4\r\n",
        "content-length: 4\r\ncontent-length: 5\r\n",
        "content-length: 4, 5\r\n",
        "content-length: +4\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding : chunked\r\n",
        "content-length: 4\r\n transfer-encoding: chunked\r\n",
    ] {
        let world = start(None, impatient()).await;
        let answer = world
            .say(format!("POST /first HTTP/1.1\r\nhost: x\r\n{framing}\r\n0\r\n\r\n{smuggled}").as_bytes())
            .await;
        assert!(world.served.load(SeqCst) <= 1, "{framing:?} led to two requests: {answer}");
    }
}

#[tokio::test]
async fn control_characters_never_become_a_request() {
    let world = start(None, impatient()).await;
    for line in ["GET /\0 HTTP/1.1", "GET /a\nb HTTP/1.1", "GET /\u{7f} HTTP/1.1", "G\0T / HTTP/1.1"] {
        let answer = world.say(format!("{line}\r\nhost: x\r\n\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400") || answer.is_empty(), "{line:?}: {answer}");
    }
    assert_eq!(world.served.load(SeqCst), 0);
}

#[tokio::test]
async fn slow_headers_and_idle_connections_are_closed() {
    let world = start(None, impatient()).await;
    assert_eq!(world.say(b"").await, "");
    assert_eq!(world.say(b"GET / HTTP/1.1\r\nhost:").await, "");
    assert_eq!(world.say(b"PRI * HTTP/2.0\r\n").await, "");
    let answer = world.say(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "idle after its answer, then closed: {answer}");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed() {
    let world = start(None, impatient()).await;
    let mut stream = world.connect().await;
    stream.write_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), world.closed.notified()).await.unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < 64 * 1024 * 1024);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_their_turn() {
    let world = start(None, ServerOptions { connections_max: 1, ..ServerOptions::default() }).await;
    let mut first = world.connect().await;
    first.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    world.entered.notified().await;
    let mut second = world.connect().await;
    second.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    assert_eq!(world.served.load(SeqCst), 1);
    world.release.notify_one();
    assert!(read_to_close(&mut first).await.ends_with("at last"));
    assert!(read_to_close(&mut second).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn shutdown_lets_requests_end_and_takes_no_new_ones() {
    let world = start(None, ServerOptions::default()).await;
    let mut stream = world.connect().await;
    stream.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut idle = world.connect().await;
    idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    world.entered.notified().await;
    world.shutdown.request();
    assert!(read_to_close(&mut idle).await.len() < 200);
    assert!(TcpStream::connect(world.address).await.is_err());
    world.release.notify_one();
    assert!(read_to_close(&mut stream).await.ends_with("at last"));
    tokio::time::timeout(Duration::from_secs(2), world.server).await.unwrap().unwrap();
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever() {
    let world =
        start(None, ServerOptions { drain_grace: Duration::from_millis(50), ..ServerOptions::default() })
            .await;
    let mut stream = world.connect().await;
    stream.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    world.entered.notified().await;
    world.shutdown.request();
    assert_eq!(read_to_close(&mut stream).await, "");
    tokio::time::timeout(Duration::from_secs(2), world.server).await.unwrap().unwrap();
}

fn certificate() -> (ServerConfig, RootCertStore) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(pair.cert.der().clone()).unwrap();
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![pair.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (config, roots)
}

/// A request over TLS; the protocol that was spoken, or an error.
async fn tls_request(address: SocketAddr, roots: RootCertStore) -> Result<http::Version, String> {
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let mut tcp = hyper_util::client::legacy::connect::HttpConnector::new();
    tcp.enforce_http(false);
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_only()
        .with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(
            "localhost".try_into().unwrap(),
        ))
        .enable_all_versions()
        .wrap_connector(tcp);
    let client: hyper_util::client::legacy::Client<_, Empty<Bytes>> =
        hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let answer = client.get(format!("https://{address}/").parse().unwrap()).await;
    answer.map(|answer| answer.version()).map_err(|error| format!("{error:?}"))
}

#[tokio::test]
async fn tls_speaks_http2_and_takes_a_new_certificate() {
    let (config, roots) = certificate();
    let tls: TlsConfig = Arc::new(ArcSwap::from_pointee(config));
    let world = start(Some(tls.clone()), ServerOptions::default()).await;
    assert_eq!(tls_request(world.address, roots.clone()).await, Ok(http::Version::HTTP_2));
    let (renewed, renewed_roots) = certificate();
    tls.store(Arc::new(renewed));
    assert!(tls_request(world.address, roots).await.is_err());
    assert_eq!(tls_request(world.address, renewed_roots).await, Ok(http::Version::HTTP_2));
}

#[tokio::test]
async fn a_stalled_handshake_is_closed() {
    let (config, _) = certificate();
    let world = start(Some(Arc::new(ArcSwap::from_pointee(config))), impatient()).await;
    assert_eq!(world.say(b"\x16\x03\x01").await, "");
    assert!(!world.say(b"GET / HTTP/1.1\r\n\r\n").await.contains("200"));
}
