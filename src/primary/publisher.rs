//! Accepts sites: verifies who they are and hands each stream to the log or to the answers.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use outport_proto::SiteName;
use rustls_pki_types::CertificateDer;

use super::{joins::Joins, log_stream::LogPublisher, requests::Answerer};
use crate::{
    fetch::{
        framed::{FrameSink, FrameStream, FramedError, stream_kind},
        quic::{CloseCode, Listener, StreamKind, peer_certificates},
    },
    shutdown::Shutdown,
};

/// A stream must say what it is within this.
const OPENING_TIMEOUT: Duration = Duration::from_secs(5);

/// A site that takes no bytes for this long is given up, stream by stream.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Tells which listed site a verified certificate belongs to, or why none.
pub type Admit = Arc<dyn Fn(&CertificateDer<'_>) -> Result<SiteName, String> + Send + Sync>;

/// Streams of one connection that are allowed once more than a few are in use. A site has at most
/// 128 questions and 64 bodies on their way.
const STREAMS_MAX: u32 = 256;

/// Streams in use from which on [`STREAMS_MAX`] are allowed: half of what
/// [`TransportOptions::upstream`](crate::fetch::quic::TransportOptions::upstream) allows before.
const STREAMS_FEW: usize = 8;

/// Serves replication. Cloning gives another handle to the same service.
#[derive(Clone)]
pub struct Publisher(Arc<Service>);

struct Service {
    admit: Admit,
    log: LogPublisher,
    answerer: Answerer,
    sessions: AtomicU64,
    connections_max: usize,
    /// Of every site: those that were let in and have not ended.
    connections: Mutex<HashMap<SiteName, Vec<quinn::Connection>>>,
    joins: Option<Joins>,
}

impl Publisher {
    /// A service for at most `connections_max` connections; a site needs two.
    pub fn new(admit: Admit, log: LogPublisher, answerer: Answerer, connections_max: usize) -> Self {
        Self::joined_by(None, admit, log, answerer, connections_max)
    }

    /// The same, where machines become sites as well.
    pub fn joined_by(
        joins: Option<Joins>,
        admit: Admit,
        log: LogPublisher,
        answerer: Answerer,
        connections_max: usize,
    ) -> Self {
        let (sessions, connections) = (AtomicU64::new(0), Mutex::default());
        Self(Arc::new(Service { admit, log, answerer, sessions, connections_max, connections, joins }))
    }

    /// Closes all connections of a site, which is let in no more; `reason` is what it is told.
    pub fn close(&self, site: &SiteName, reason: &str) {
        let open = self.0.connections().remove(site).unwrap_or_default();
        open.iter().for_each(|connection| connection.close(CloseCode::Refused.into(), reason.as_bytes()));
    }

    /// Accepts connections until shutdown, then says goodbye to all of them.
    pub async fn serve(self, listener: impl Into<Listener>, shutdown: Shutdown) {
        let listener = listener.into();
        let endpoint = &listener.endpoint;
        loop {
            let incoming = tokio::select! {
                biased;
                incoming = endpoint.accept() => incoming,
                () = shutdown.requested() => break,
            };
            let Some(incoming) = incoming else { break };
            if endpoint.open_connections() >= self.0.connections_max {
                tracing::warn!(peer = %incoming.remote_address(), "replication connection refused: too many");
                incoming.refuse();
                continue;
            }
            let (this, listener, group) = (self.clone(), listener.clone(), shutdown.clone());
            shutdown.spawn(async move { this.greet(incoming, listener, group).await });
        }
        endpoint.close(CloseCode::Bye.into(), b"the primary stops");
        endpoint.wait_idle().await;
    }

    async fn greet(self, incoming: quinn::Incoming, listener: Listener, group: Shutdown) {
        let peer = incoming.remote_address();
        if let Some(joins) = self.0.joins.as_ref().filter(|_| listener.is_join(&incoming)) {
            return Box::pin(joins.serve(incoming, &listener)).await;
        }
        let connected = match listener.accept(incoming) {
            Ok(connecting) => connecting.await,
            Err(error) => Err(error),
        };
        let connection = match connected {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%peer, %error, "replication handshake failed");
                return;
            }
        };
        match self.0.admitted(&connection) {
            // A task of its own: this one holds all that a handshake needs, for as long as it lasts.
            Ok(site) => drop(group.clone().spawn(self.accept_streams(connection, site, group))),
            Err(reason) => {
                tracing::warn!(%peer, %reason, "site refused");
                connection.close(CloseCode::Refused.into(), reason.as_bytes());
            }
        }
    }

    /// Every stream is a task of its own; all of them fail when the connection ends.
    async fn accept_streams(self, connection: quinn::Connection, site: SiteName, group: Shutdown) {
        let log_taken = Arc::new(AtomicBool::new(false));
        let mut are_few = true;
        while let Ok((send, receive)) = connection.accept_bi().await {
            let stream = Stream {
                publisher: self.clone(),
                connection: connection.clone(),
                site: site.clone(),
                log_taken: Arc::clone(&log_taken),
            };
            let in_use = Arc::strong_count(&log_taken) - 1;
            if are_few && in_use >= STREAMS_FEW {
                connection.set_max_concurrent_bi_streams(STREAMS_MAX.into());
                are_few = false;
            }
            group.spawn(async move { stream.serve(send, receive).await });
        }
        self.0.ended(&site, &connection);
    }
}

impl Service {
    /// The site that a connection is of. It is among the connections before it is looked a second time, so
    /// that one whose site is removed meanwhile is refused here or closed there.
    fn admitted(&self, connection: &quinn::Connection) -> Result<SiteName, String> {
        let certificates = peer_certificates(connection).unwrap_or_default();
        let own = certificates.first().ok_or("no certificate")?;
        let site = (self.admit)(own)?;
        self.connections().entry(site.clone()).or_default().push(connection.clone());
        (self.admit)(own).inspect_err(|_| self.ended(&site, connection))
    }

    fn ended(&self, site: &SiteName, connection: &quinn::Connection) {
        let mut connections = self.connections();
        if let Some(open) = connections.get_mut(site) {
            open.retain(|other| other.stable_id() != connection.stable_id());
            if open.is_empty() {
                connections.remove(site);
            }
        }
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<SiteName, Vec<quinn::Connection>>> {
        // Nothing in here panics midway.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One stream of a site.
struct Stream {
    publisher: Publisher,
    connection: quinn::Connection,
    site: SiteName,
    log_taken: Arc<AtomicBool>,
}

impl Stream {
    async fn serve(self, send: quinn::SendStream, mut receive: quinn::RecvStream) {
        let served = match stream_kind(&mut receive, OPENING_TIMEOUT).await {
            Ok(StreamKind::Request) => {
                let (requests, sink) = (FrameStream::new(receive), FrameSink::new(send, STALL_TIMEOUT));
                // In a box each: a task is as large as the largest that it may become.
                Box::pin(self.publisher.0.answerer.serve(&self.site, requests, sink)).await
            }
            Ok(StreamKind::Log) => Box::pin(self.serve_log(send, receive)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            self.failed(&error);
        }
    }

    async fn serve_log(
        &self,
        send: quinn::SendStream,
        receive: quinn::RecvStream,
    ) -> Result<(), FramedError> {
        if self.log_taken.swap(true, Ordering::Relaxed) {
            return Err(FramedError::Kind(StreamKind::Log.byte()));
        }
        let id = self.publisher.0.sessions.fetch_add(1, Ordering::Relaxed);
        let sink = FrameSink::new(send, STALL_TIMEOUT);
        let log = &self.publisher.0.log;
        log.serve(id, &self.site, &self.connection, FrameStream::new(receive), sink).await
    }

    fn failed(&self, error: &FramedError) {
        let (site, peer) = (&self.site, self.connection.remote_address());
        if error.is_violation() {
            tracing::warn!(%site, %peer, %error, "site broke the protocol: connection closed");
            self.connection.close(CloseCode::Protocol.into(), error.to_string().as_bytes());
        } else {
            tracing::debug!(%site, %peer, %error, "stream ended");
        }
    }
}
