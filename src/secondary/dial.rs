//! Opens the connections of a session.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use outport_proto::SiteName;
use quinn::ConnectionError;

use crate::{
    auth::authority::NodeIdentity,
    fetch::{
        BoxFuture,
        bulk::Bulk,
        primary::{Connections, Transport},
        quic::{self, CloseCode, Network, QuicError, TransportOptions, Udp},
        race,
        tunnel::{Way, WayError},
    },
};

/// A handshake must end within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// QUIC over UDP is tried alone for this long. Where it works it is there before the way over TCP, which takes more
/// than three times as many round trips.
pub(super) const UDP_AHEAD: Duration = Duration::from_millis(300);

/// While a session goes over TCP, it is looked this often whether UDP works again.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// A tunnel stays open for this long behind its connection, whose goodbye is under way.
const GOODBYE: Duration = Duration::from_millis(200);

/// Connects to the primary, or to a site that relays it. The log and the bulk connection have a
/// socket each.
#[derive(Clone, Debug)]
pub struct Dialer {
    network: Arc<dyn Network>,
    log: (quinn::ClientConfig, TransportOptions),
    bulk: (quinn::ClientConfig, TransportOptions),
    /// Whom the certificate at the other end must name.
    upstream: NodeIdentity,
    /// How packets travel where the network carries no UDP.
    way: Option<Way>,
}

impl Dialer {
    /// A dialer to the primary that shows this site's certificate.
    ///
    /// # Errors
    /// When the TLS configuration cannot carry QUIC.
    pub fn new(
        tls: &rustls::ClientConfig,
        log: &TransportOptions,
        bulk: &TransportOptions,
    ) -> Result<Self, QuicError> {
        let with_config = |options: &TransportOptions| {
            Ok::<_, QuicError>((quic::client_config(tls, options)?, options.clone()))
        };
        let network = Arc::new(Udp);
        let upstream = NodeIdentity::Primary;
        Ok(Self { network, log: with_config(log)?, bulk: with_config(bulk)?, upstream, way: None })
    }

    /// The same, which goes over TCP while UDP does not work.
    #[must_use]
    pub fn or_over_tcp(self, way: Way) -> Self {
        Self { way: Some(way), ..self }
    }

    /// The same dialer on another network than this machine's.
    #[must_use]
    pub fn over(self, network: Arc<dyn Network>) -> Self {
        Self { network, ..self }
    }

    /// The same to `relay`, and to nobody else: not to the primary either.
    #[must_use]
    pub fn to_relay(self, relay: SiteName) -> Self {
        Self { upstream: NodeIdentity::Site(relay), ..self }
    }

    /// Opens the log connection to the upstream at the first that works of these `host:port` (UDP), with a bulk
    /// connection that is opened when it is asked for. Names are looked up anew every time.
    ///
    /// # Errors
    /// When no name has an address, no socket opens, or a handshake fails or takes too long.
    pub async fn connect(&self, primaries: &[String]) -> Result<Connections, DialError> {
        tokio::time::timeout(CONNECT_TIMEOUT, self.connect_first(primaries))
            .await
            .map_err(|_| DialError::Timeout(CONNECT_TIMEOUT))?
    }

    async fn connect_first(&self, primaries: &[String]) -> Result<Connections, DialError> {
        let Some(way) = &self.way else { return self.connect_directly(primaries).await };
        race::with_spare(self.connect_directly(primaries), UDP_AHEAD, self.connect_through(way)).await
    }

    /// The same over UDP alone, which was seen to work.
    ///
    /// # Errors
    /// As [`Dialer::connect`].
    pub async fn connect_over_udp(&self, primaries: &[String]) -> Result<Connections, DialError> {
        tokio::time::timeout(CONNECT_TIMEOUT, self.connect_directly(primaries))
            .await
            .map_err(|_| DialError::Timeout(CONNECT_TIMEOUT))?
    }

    async fn connect_directly(&self, primaries: &[String]) -> Result<Connections, DialError> {
        let lookup = |source| DialError::Lookup { address: primaries.join(", "), source };
        let name = self.upstream.dns_name();
        let addresses = race::addresses(primaries).await.map_err(lookup)?;
        let connected = race::first(addresses, |address| connect(&*self.network, &self.log, address, &name));
        match connected.await {
            Ok(log) => {
                let address = log.remote_address();
                let bulk = self.bulk(move |dialer| {
                    Box::pin(async move {
                        let name = dialer.upstream.dns_name();
                        connect(&*dialer.network, &dialer.bulk, address, &name).await
                    })
                });
                Ok(Connections { log, bulk, version: 1, transport: Transport::Quic })
            }
            Err(error) => Err(error.unwrap_or_else(|| lookup(std::io::ErrorKind::NotFound.into()))),
        }
    }

    async fn connect_through(&self, way: &Way) -> Result<Connections, DialError> {
        let log = self.through(way, &self.log).await?;
        let way = way.clone();
        let bulk = self.bulk(move |dialer| {
            let way = way.clone();
            Box::pin(async move { dialer.through(&way, &dialer.bulk).await })
        });
        Ok(Connections { log, bulk, version: 1, transport: Transport::Tcp })
    }

    async fn through(
        &self,
        way: &Way,
        options: &(quinn::ClientConfig, TransportOptions),
    ) -> Result<quinn::Connection, DialError> {
        let tunnel = way.open().await?;
        let name = self.upstream.dns_name();
        let connection = connect(&Udp, options, tunnel.address, &name).await?;
        let closed = connection.clone();
        tokio::spawn(async move {
            closed.closed().await;
            tokio::time::sleep(GOODBYE).await;
            drop(tunnel);
        });
        Ok(connection)
    }

    /// Returns once a session over `transport` could be had in a better way.
    pub async fn better(&self, transport: Transport, primaries: &[String]) {
        if transport == Transport::Quic {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if let Ok(connections) = self.connect_over_udp(primaries).await {
                connections.log.close(CloseCode::Bye.into(), b"");
                return;
            }
        }
    }

    fn bulk(
        &self,
        open: impl Fn(Self) -> BoxFuture<'static, Result<quinn::Connection, DialError>> + Send + Sync + 'static,
    ) -> Bulk {
        let dialer = self.clone();
        Bulk::new(Box::new(move || {
            let opening = open(dialer.clone());
            Box::pin(async move {
                let opened = tokio::time::timeout(CONNECT_TIMEOUT, opening).await;
                opened.unwrap_or(Err(DialError::Timeout(CONNECT_TIMEOUT))).map_err(|error| error.to_string())
            })
        }))
    }
}

async fn connect(
    network: &dyn Network,
    (config, options): &(quinn::ClientConfig, TransportOptions),
    address: SocketAddr,
    name: &str,
) -> Result<quinn::Connection, DialError> {
    let failed = |reason: String| DialError::Handshake { address, reason };
    // The connection keeps the endpoint and its socket alive for as long as it lives.
    let endpoint = quic::dialer(network, address, options)?;
    let connecting =
        endpoint.connect_with(config.clone(), address, name).map_err(|error| failed(error.to_string()))?;
    connecting.await.map_err(|error| failed(error.to_string()))
}

/// Why the primary closed the connection, when it is no passing trouble: it does not accept the
/// certificate, or does not list the site.
pub(super) fn refusal(closed: Option<ConnectionError>) -> Option<String> {
    const CRYPTO_ERRORS: std::ops::RangeInclusive<u64> = 0x100..=0x1ff;
    match closed? {
        ConnectionError::ApplicationClosed(close) if close.error_code == CloseCode::Refused.into() => {
            Some(String::from_utf8_lossy(&close.reason).into_owned())
        }
        ConnectionError::ConnectionClosed(close) if CRYPTO_ERRORS.contains(&u64::from(close.error_code)) => {
            Some(close.to_string())
        }
        _ => None,
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("look up {address}: {source}")]
    Lookup {
        /// What was looked up.
        address: String,
        /// The resolver's error.
        source: std::io::Error,
    },
    /// The peer is not there, or one of the two does not accept the other's certificate.
    #[error("{address}: {reason}")]
    Handshake {
        /// Where.
        address: SocketAddr,
        /// QUIC's or TLS's reason.
        reason: String,
    },
    /// It took too long.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// No tunnel.
    #[error("over TCP: {0}")]
    Tunnel(#[from] WayError),
    /// No endpoint.
    #[error(transparent)]
    Quic(#[from] QuicError),
}
