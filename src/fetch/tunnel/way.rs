//! The connecting end of a tunnel.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;

use super::{PATH, PROTOCOL, carry};
use crate::fetch::race;

/// An answer of an HTTP proxy is no longer than this, in bytes.
const PROXY_ANSWER_BYTES_MAX: usize = 8 * 1024;

/// How the primary is reached over TCP. Cloning gives another handle to the same way.
#[derive(Clone)]
pub struct Way(Arc<Inner>);

struct Inner {
    /// Where the primary's registry is, once that is known.
    url: ArcSwapOption<Uri>,
    /// Whether it is not to be learnt.
    is_fixed: bool,
    tls: Arc<ClientConfig>,
    /// `host:port` of an HTTP proxy that has to be asked for every connection.
    proxy: Option<String>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// An open tunnel: packets to `address` come out at the primary. It is closed when this is dropped.
#[derive(Debug)]
pub struct Tunnel {
    /// On this machine.
    pub address: SocketAddr,
    carrying: JoinHandle<()>,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.carrying.abort();
    }
}

impl Way {
    /// A way to the registry at `url`, or to the one that is [learnt](Self::learn), through `proxy` if there is one.
    pub fn new(url: Option<Uri>, tls: Arc<ClientConfig>, proxy: Option<String>) -> Self {
        let is_fixed = url.is_some();
        let mut tls = (*tls).clone();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let url = ArcSwapOption::from_pointee(url);
        Self(Arc::new(Inner { url, is_fixed, tls: Arc::new(tls), proxy }))
    }

    /// The primary says where its registry is.
    pub fn learn(&self, url: &str) {
        if !self.0.is_fixed
            && let Ok(url) = url.parse()
        {
            self.0.url.store(Some(Arc::new(url)));
        }
    }

    /// Opens a tunnel.
    ///
    /// # Errors
    /// When nobody knows where to, the registry cannot be reached or has no tunnel.
    pub async fn open(&self) -> Result<Tunnel, WayError> {
        let url = self.0.url.load_full().ok_or(WayError::Unknown)?;
        let host = url.host().ok_or(WayError::Unknown)?;
        let is_https = url.scheme_str() == Some("https");
        let port = url.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let tcp = self.connect(&format!("{host}:{port}")).await?;
        let stream: Box<dyn Stream> = if is_https {
            let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
            let name = name.map_err(|_| WayError::Unknown)?;
            Box::new(TlsConnector::from(Arc::clone(&self.0.tls)).connect(name, tcp).await?)
        } else {
            Box::new(tcp)
        };
        let authority = url.authority().map_or(host, |authority| authority.as_str());
        let stream = upgraded(stream, authority).await?;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = socket.local_addr()?;
        let carrying = tokio::spawn(async move {
            let Err(error) = carry_first(stream, &socket).await;
            tracing::debug!(%error, "a tunnel to the primary ended");
        });
        Ok(Tunnel { address, carrying })
    }

    async fn connect(&self, to: &str) -> Result<TcpStream, WayError> {
        let Some(proxy) = &self.0.proxy else { return Ok(dialled(to).await?) };
        let mut tcp = dialled(proxy).await?;
        tcp.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        // Byte by byte: what comes behind the answer is not the proxy's.
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() >= PROXY_ANSWER_BYTES_MAX {
                return Err(WayError::Proxy("its answer has no end".to_owned()));
            }
            answer.push(tcp.read_u8().await?);
        }
        let status = String::from_utf8_lossy(&answer);
        let line = status.lines().next().unwrap_or_default();
        match line.split(' ').nth(1) {
            Some(code) if code.starts_with('2') => Ok(tcp),
            _ => Err(WayError::Proxy(line.to_owned())),
        }
    }
}

async fn dialled(to: &str) -> io::Result<TcpStream> {
    let addresses = race::addresses(&[to.to_owned()]).await?;
    let tcp = race::first(addresses, TcpStream::connect).await;
    let tcp = tcp.map_err(|error| error.unwrap_or_else(|| io::ErrorKind::NotFound.into()))?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

async fn upgraded(
    stream: Box<dyn Stream>,
    authority: &str,
) -> Result<TokioIo<hyper::upgrade::Upgraded>, WayError> {
    let handshake = hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| WayError::Http(error.to_string()))?;
    let driving = tokio::spawn(connection.with_upgrades());
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = Uri::from_static(PATH);
    let headers = request.headers_mut();
    let host = HeaderValue::from_str(authority).map_err(|_| WayError::Unknown)?;
    headers.insert(header::HOST, host);
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    headers.insert("capsule-protocol", HeaderValue::from_static("?1"));
    let answered = async {
        let answer = sender.send_request(request).await.map_err(|error| WayError::Http(error.to_string()))?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(WayError::Refused(answer.status()));
        }
        hyper::upgrade::on(answer).await.map(TokioIo::new).map_err(|error| WayError::Http(error.to_string()))
    };
    answered.await.inspect_err(|_| driving.abort())
}

/// Whoever sends first is whom the tunnel is for.
async fn carry_first(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    socket: &UdpSocket,
) -> io::Result<std::convert::Infallible> {
    let (_, from) = socket.peek_from(&mut [0; 1]).await?;
    socket.connect(from).await?;
    carry(stream, socket).await
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Way").field("url", &self.0.url.load()).finish_non_exhaustive()
    }
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum WayError {
    /// The primary has not said where its registry is.
    #[error("it is not known where the primary's registry is")]
    Unknown,
    /// The connection, or its TLS.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The proxy said no.
    #[error("the HTTP proxy refused: {0}")]
    Proxy(String),
    /// Something else than HTTP.
    #[error("the primary's registry does not answer: {0}")]
    Http(String),
    /// It answered, and is too old or something else.
    #[error("the primary's registry has no tunnel: {0}")]
    Refused(StatusCode),
}
