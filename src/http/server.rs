//! The listener: plain TCP or TLS, HTTP/1.1 and HTTP/2, with every wait and every count bounded.

use std::{convert::Infallible, future::Future, io, pin::pin, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, MissedTickBehavior},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use super::{
    client_address::{Proxies, announced},
    connection::{Connection, Metered, Patience, Verdict, Watch},
};
use crate::shutdown::Shutdown;

/// Streams one HTTP/2 connection may have open: more than any client's parallel layers, and a
/// bound on what one connection can hold.
const H2_STREAMS_MAX: u32 = 128;
/// Streams a client may reset before the server has looked at them, before the connection is
/// closed: the "rapid reset" attack needs many.
const H2_PENDING_RESETS_MAX: usize = 32;
/// Bytes of headers of one request; tokens with many scopes are large.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Unread request body bytes a connection, and a stream, may have under way: enough for a layer
/// at 100 ms and 80 MiB/s.
const H2_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// Response bytes buffered for one stream; more would only be memory.
const H2_SEND_BYTES_MAX: usize = 512 * 1024;
/// Pause after the system refused a connection for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long connections take to end once their requests are given up.
const ABORT_GRACE: Duration = Duration::from_millis(500);

/// How a listener treats its clients.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Connections open at once; more wait in the system's queue.
    pub connections_max: usize,
    /// Whom to believe about where connections come from.
    pub proxies: Proxies,
    /// For a TLS handshake, and for a proxy to tell whose a connection is.
    pub handshake_timeout: Duration,
    /// How long connections may do nothing useful.
    pub patience: Patience,
    /// After a shutdown was requested, how long requests in flight may take to end.
    pub drain_grace: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            connections_max: 8192,
            proxies: Proxies::default(),
            handshake_timeout: Duration::from_secs(10),
            patience: Patience {
                header_read: Duration::from_secs(20),
                idle: Duration::from_secs(90),
                write_stall: Duration::from_secs(60),
                request_stall: Duration::from_secs(600),
                progress_bytes_min: 64 * 1024,
            },
            drain_grace: Duration::from_secs(3),
        }
    }
}

/// The certificate and key that new TLS connections use; storing another one reloads it.
pub type TlsConfig = Arc<ArcSwap<ServerConfig>>;

/// Accepts connections until `shutdown` is requested and answers requests with `answer`.
/// Returns when every connection has ended or the drain's grace is over.
pub async fn serve<F, Fut, B>(
    listener: TcpListener,
    tls: Option<TlsConfig>,
    options: ServerOptions,
    answer: F,
    shutdown: Shutdown,
) where
    F: Fn(Request<Incoming>, Arc<Connection>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let acceptor = Acceptor {
        permits: Arc::new(Semaphore::new(options.connections_max)),
        builder: Arc::new(builder()),
        connections: Shutdown::new(),
        tls,
        options,
        answer,
        shutdown,
    };
    acceptor.run(listener).await;
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Header and idle times are kept by `Watch`, with one timer a connection instead of one a
    // request, and for both protocols alike.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEADER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_pending_accept_reset_streams(H2_PENDING_RESETS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX as u32)
        .initial_stream_window_size(H2_WINDOW_BYTES)
        .initial_connection_window_size(H2_WINDOW_BYTES)
        .max_send_buf_size(H2_SEND_BYTES_MAX);
    builder
}

struct Acceptor<F> {
    permits: Arc<Semaphore>,
    builder: Arc<auto::Builder<TokioExecutor>>,
    /// Connections end by their own drain, so they are a group of their own.
    connections: Shutdown,
    tls: Option<TlsConfig>,
    options: ServerOptions,
    answer: F,
    shutdown: Shutdown,
}

impl<F, Fut, B> Acceptor<F>
where
    F: Fn(Request<Incoming>, Arc<Connection>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    async fn run(self, listener: TcpListener) {
        let mut exhausted = false;
        while let Some(permit) = self.permit().await {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.shutdown.requested() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    exhausted = false;
                    self.start(stream, Connection::new(peer), permit);
                }
                Err(error) if is_one_clients_fault(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut exhausted, true) {
                        tracing::warn!(%error, "cannot accept connections for the moment");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        self.connections.finish(self.options.drain_grace + ABORT_GRACE).await;
    }

    /// The right to one more connection; `None` when it is time to stop.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            permit = self.permits.clone().acquire_owned() => permit.ok(),
            () = self.shutdown.requested() => None,
        }
    }

    fn start(&self, stream: TcpStream, connection: Arc<Connection>, permit: OwnedSemaphorePermit) {
        // Answers are written whole; waiting to fill a packet would only delay them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let is_announced = self.options.proxies.announce(connection.peer().ip());
        let driver = Driver {
            builder: self.builder.clone(),
            answer: self.answer.clone(),
            shutdown: self.shutdown.clone(),
            patience: self.options.patience,
            drain_grace: self.options.drain_grace,
            connection,
        };
        let timeout = self.options.handshake_timeout;
        match &self.tls {
            None => drop(self.connections.spawn(async move {
                if let Some(stream) = opened(stream, is_announced, &driver.connection, timeout).await {
                    driver.run(stream).await;
                }
                drop(permit);
            })),
            Some(tls) => {
                let acceptor = TlsAcceptor::from(tls.load_full());
                drop(self.connections.spawn(async move {
                    let opened = opened(stream, is_announced, &driver.connection, timeout);
                    let Some(stream) = opened.await else { return };
                    let handshake = acceptor.accept(stream);
                    let peer = driver.connection.peer();
                    let shaken = tokio::select! {
                        shaken = tokio::time::timeout(timeout, handshake) => shaken,
                        () = driver.shutdown.requested() => return,
                    };
                    match shaken {
                        Ok(Ok(stream)) => driver.run(stream).await,
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                        Err(_) => tracing::debug!(%peer, "TLS handshake stalled"),
                    }
                    drop(permit);
                }));
            }
        }
    }
}

/// A connection whose next bytes are the client's; `None` when a proxy does not tell whose it is.
async fn opened(
    mut stream: TcpStream,
    is_announced: bool,
    connection: &Arc<Connection>,
    timeout: Duration,
) -> Option<Metered> {
    if is_announced {
        let announced = Box::pin(tokio::time::timeout(timeout, announced(&mut stream))).await;
        match announced.map_err(io::Error::from).flatten() {
            Ok(Some(client)) => connection.is_of(client),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(peer = %connection.peer(), %error, "connection of a proxy refused");
                return None;
            }
        }
    }
    Some(Metered::new(stream, Arc::clone(connection)))
}

/// The client went away between its knock and our opening: nothing is wrong here.
fn is_one_clients_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

struct Driver<F> {
    builder: Arc<auto::Builder<TokioExecutor>>,
    answer: F,
    shutdown: Shutdown,
    patience: Patience,
    drain_grace: Duration,
    connection: Arc<Connection>,
}

impl<F, Fut, B> Driver<F>
where
    F: Fn(Request<Incoming>, Arc<Connection>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    async fn run<IO: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: IO) {
        let service = service_fn(|request| {
            let answer = (self.answer)(request, self.connection.clone());
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let mut http = pin!(self.builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
        let mut watch = Watch::new(self.patience);
        let mut ticks = tokio::time::interval_at(Instant::now() + watch.step(), watch.step());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let verdict = loop {
            tokio::select! {
                biased;
                result = http.as_mut() => return self.ended(result),
                () = self.shutdown.requested() => break None,
                _ = ticks.tick() => if let Some(verdict) = watch.look(&self.connection) { break Some(verdict) },
            }
        };
        let grace = match verdict {
            None => self.drain_grace,
            Some(Verdict::Idle) => watch.step(),
            Some(Verdict::SlowHeaders | Verdict::Stalled) => {
                tracing::debug!(peer = %self.connection.peer(), ?verdict, "connection closed");
                return;
            }
        };
        http.as_mut().graceful_shutdown();
        if let Ok(result) = tokio::time::timeout(grace, http).await {
            self.ended(result);
        }
    }

    fn ended(&self, result: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
        if let Err(error) = result {
            tracing::debug!(peer = %self.connection.peer(), %error, "connection broke");
        }
    }
}

#[cfg(test)]
mod tests;
