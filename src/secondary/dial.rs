//! Opens the two connections of a session.

use std::{net::SocketAddr, time::Duration};

use crate::fetch::{
    primary::Connections,
    quic::{self, QuicError, TransportOptions},
};

/// Both handshakes must end within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a primary is and which name its certificate must carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrimaryAddress {
    /// `host:port` of its replication listener (UDP); the name is looked up at every attempt.
    pub address: String,
    /// The name in its certificate.
    pub server_name: String,
}

/// Connects to a primary. The log and the bulk connection have a socket each.
#[derive(Debug)]
pub struct Dialer {
    log: quinn::ClientConfig,
    bulk: quinn::ClientConfig,
}

impl Dialer {
    /// A dialer that shows this site's certificate.
    ///
    /// # Errors
    /// When the TLS configuration cannot carry QUIC.
    pub fn new(
        tls: &rustls::ClientConfig,
        log: &TransportOptions,
        bulk: &TransportOptions,
    ) -> Result<Self, QuicError> {
        Ok(Self { log: quic::client_config(tls, log)?, bulk: quic::client_config(tls, bulk)? })
    }

    /// Opens both connections at once.
    ///
    /// # Errors
    /// When the name has no address, no socket opens, or a handshake fails or takes too long.
    pub async fn connect(&self, primary: &PrimaryAddress) -> Result<Connections, DialError> {
        tokio::time::timeout(CONNECT_TIMEOUT, self.connect_both(primary))
            .await
            .map_err(|_| DialError::Timeout(CONNECT_TIMEOUT))?
    }

    async fn connect_both(&self, primary: &PrimaryAddress) -> Result<Connections, DialError> {
        let lookup = |source| DialError::Lookup { address: primary.address.clone(), source };
        let mut last = lookup(std::io::ErrorKind::NotFound.into());
        for address in tokio::net::lookup_host(&primary.address).await.map_err(lookup)? {
            let both = tokio::try_join!(
                connect(self.log.clone(), address, &primary.server_name),
                connect(self.bulk.clone(), address, &primary.server_name),
            );
            match both {
                Ok((log, bulk)) => return Ok(Connections { log, bulk }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

async fn connect(
    config: quinn::ClientConfig,
    address: SocketAddr,
    server_name: &str,
) -> Result<quinn::Connection, DialError> {
    let failed = |reason: String| DialError::Handshake { address, reason };
    // The connection keeps the endpoint and its socket alive for as long as it lives.
    let endpoint = quic::dialer(address)?;
    let connecting =
        endpoint.connect_with(config, address, server_name).map_err(|error| failed(error.to_string()))?;
    connecting.await.map_err(|error| failed(error.to_string()))
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
    /// No endpoint.
    #[error(transparent)]
    Quic(#[from] QuicError),
}
