//! QUIC as Outport uses it: endpoints from rustls configurations and transport settings.
//!
//! A secondary holds up to two connections to its upstream, each on a UDP socket of its own so that
//! bulk bytes never queue in front of an event: one for the log stream and requests that answer in
//! one round trip, and while it is of use ([`super::bulk`]) one for [`Request::Fetch`](outport_proto::frame::Request::Fetch) and
//! [`Request::Snapshot`](outport_proto::frame::Request::Snapshot). The first byte of every
//! bidirectional stream says what it is ([`StreamKind`]).

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use outport_proto::frame::{ALPN, JOIN_ALPN};
use quinn::{
    IdleTimeout, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use serde::Deserialize;

use crate::random;

/// How often an otherwise silent connection is kept alive, by the secondary: well under its idle
/// timeout, and under the 30 s after which common NATs forget a UDP flow.
const KEEP_ALIVE: Duration = Duration::from_millis(1000);

/// Asked of the kernel for each UDP socket, in bytes; it grants up to `net.core.rmem_max` and
/// `wmem_max`.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// The largest UDP payload in bytes that Ethernet carries over IPv4.
const ETHERNET_DATAGRAM_BYTES: u16 = 1472;

/// The largest UDP payload in bytes that is looked for on a path for blobs: fewer, larger packets
/// halve the primary's work where jumbo frames or loopback carry them. quinn hands ten to the kernel at
/// once, which takes at most 64 KiB.
const JUMBO_DATAGRAM_BYTES: u16 = 6400;

/// Packets a peer may receive before it acknowledges them; it waits no longer than a round trip or
/// 25 ms. With every second one acknowledged, a fast link spends much of its time on that.
const PACKETS_PER_ACK: u32 = 10;

/// Length of the first connection ID of a connection that carries the log, by which a server knows
/// before the handshake what it is for: the shortest that QUIC allows, where usual ones are longest.
const LOG_CONNECTION_ID_BYTES: usize = 8;

/// The same of a connection on which a machine asks to become a site.
const JOIN_CONNECTION_ID_BYTES: usize = 9;

/// Why a peer closed a connection: the application error codes of `outport/1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// Nothing is wrong: the peer stops or starts over.
    Bye,
    /// A frame or stream was not the protocol.
    Protocol,
    /// The certificate names no listed site, or not the site it claimed to be.
    Refused,
    /// The answer cannot be given now (used to reset a stream midway).
    Unavailable,
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> Self {
        Self::from_u32(match code {
            CloseCode::Bye => 0,
            CloseCode::Protocol => 1,
            CloseCode::Refused => 2,
            CloseCode::Unavailable => 3,
        })
    }
}

/// The first byte on a bidirectional stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// `L`: the log stream, one a connection; `FromSecondary` and `FromPrimary` frames follow.
    Log,
    /// `R`: one `Request` follows, and its answer in the other direction.
    Request,
}

impl StreamKind {
    /// As it stands on the wire.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Log => b'L',
            Self::Request => b'R',
        }
    }

    /// The kind a first byte stands for.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'L' => Some(Self::Log),
            b'R' => Some(Self::Request),
            _ => None,
        }
    }
}

/// How a sender decides how fast to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// Fair beside TCP; slows down at every loss.
    #[default]
    Cubic,
    /// Follows measured bandwidth and round trips: far better on long lossy paths (24 MiB/s
    /// against 1 at 100 ms and 0.1 % loss), less fair, and quinn calls its own experimental.
    Bbr,
}

/// Transport settings of one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportOptions {
    /// Bytes a peer may send on one stream before they are read. One stream's speed is at most
    /// this per round trip: 8 MiB at 100 ms is 80 MiB/s.
    pub stream_receive_window_bytes: u32,
    /// The same for all streams of a connection together; bounds memory.
    pub receive_window_bytes: u32,
    /// Bytes sent and not yet acknowledged that a connection keeps; bounds memory.
    pub send_window_bytes: u32,
    /// A silent connection is dead after this. Heartbeats tell earlier; this ends the rest.
    pub idle_timeout_ms: u32,
    /// Whether silence is broken before it ends the connection.
    pub keep_alive: bool,
    /// Streams the peer may have open at once. quinn keeps 40 bytes and more for each, whether it is
    /// open or not, in tables whose size is a power of two.
    pub streams_max: u32,
    /// How fast to send.
    pub congestion: Congestion,
    /// Largest UDP payload in bytes to look for on the path, and to receive.
    pub datagram_bytes_max: u16,
    /// Whether packets are handed to the kernel ten at once. quinn keeps a buffer of that size then, for
    /// each connection; one that mostly carries single packets does better without.
    pub in_bulk: bool,
}

impl TransportOptions {
    /// For a secondary's connection that carries the log and short requests.
    pub fn log() -> Self {
        Self {
            stream_receive_window_bytes: 4 << 20,
            receive_window_bytes: 8 << 20,
            datagram_bytes_max: ETHERNET_DATAGRAM_BYTES,
            in_bulk: false,
            ..Self::bulk()
        }
    }

    /// For a secondary's connection that carries blobs.
    pub fn bulk() -> Self {
        Self {
            stream_receive_window_bytes: 8 << 20,
            receive_window_bytes: 16 << 20,
            send_window_bytes: 1 << 20,
            idle_timeout_ms: 3000,
            keep_alive: true,
            streams_max: 0,
            congestion: Congestion::Cubic,
            datagram_bytes_max: JUMBO_DATAGRAM_BYTES,
            in_bulk: true,
        }
    }

    /// For a primary: it receives only small frames and sends everything else. Silence is the
    /// secondary's to break; more streams are allowed once some are in use.
    pub fn upstream() -> Self {
        Self {
            stream_receive_window_bytes: 256 << 10,
            receive_window_bytes: 2 << 20,
            send_window_bytes: 8 << 20,
            keep_alive: false,
            streams_max: 16,
            ..Self::bulk()
        }
    }

    /// For a machine that becomes a site: a few KiB each way.
    pub fn joining() -> Self {
        Self {
            stream_receive_window_bytes: 64 << 10,
            receive_window_bytes: 64 << 10,
            send_window_bytes: 64 << 10,
            datagram_bytes_max: ETHERNET_DATAGRAM_BYTES,
            in_bulk: false,
            ..Self::bulk()
        }
    }

    fn transport(&self) -> Arc<quinn::TransportConfig> {
        let mut transport = quinn::TransportConfig::default();
        transport
            .stream_receive_window(VarInt::from_u32(self.stream_receive_window_bytes))
            .receive_window(VarInt::from_u32(self.receive_window_bytes))
            .send_window(u64::from(self.send_window_bytes))
            .max_concurrent_bidi_streams(VarInt::from_u32(self.streams_max))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .datagram_receive_buffer_size(None)
            .enable_segmentation_offload(self.in_bulk)
            .keep_alive_interval(self.keep_alive.then_some(KEEP_ALIVE))
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(self.idle_timeout_ms))));
        let mut mtu = quinn::MtuDiscoveryConfig::default();
        mtu.upper_bound(self.datagram_bytes_max);
        let mut acknowledgements = quinn::AckFrequencyConfig::default();
        acknowledgements.ack_eliciting_threshold(VarInt::from_u32(PACKETS_PER_ACK));
        transport.mtu_discovery_config(Some(mtu)).ack_frequency_config(Some(acknowledgements));
        if self.congestion == Congestion::Bbr {
            transport.congestion_controller_factory(Arc::new(quinn::congestion::BbrConfig::default()));
        }
        Arc::new(transport)
    }
}

/// quinn's server configuration over a mutual-TLS one. Resumption is off at this end: every
/// connection shows its certificate and has it checked anew.
///
/// # Errors
/// When the TLS configuration cannot carry QUIC (no TLS 1.3 with AES-128-GCM).
pub fn server_config(
    tls: &rustls::ServerConfig,
    options: &TransportOptions,
) -> Result<quinn::ServerConfig, QuicError> {
    server_config_of(tls, ALPN, options)
}

/// quinn's server configuration for machines that become sites, over one that asks for no certificate.
///
/// # Errors
/// As [`server_config`].
pub fn join_server_config(tls: &rustls::ServerConfig) -> Result<quinn::ServerConfig, QuicError> {
    server_config_of(tls, JOIN_ALPN, &TransportOptions { streams_max: 1, ..TransportOptions::joining() })
}

fn server_config_of(
    tls: &rustls::ServerConfig,
    alpn: &[u8],
    options: &TransportOptions,
) -> Result<quinn::ServerConfig, QuicError> {
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.max_early_data_size = 0;
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    let crypto = QuicServerConfig::try_from(tls).map_err(|_| QuicError::Cipher)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(options.transport());
    Ok(config)
}

/// quinn's client configuration over a mutual-TLS one; no resumption, no 0-RTT.
///
/// # Errors
/// When the TLS configuration cannot carry QUIC (no TLS 1.3 with AES-128-GCM).
pub fn client_config(
    tls: &rustls::ClientConfig,
    options: &TransportOptions,
) -> Result<quinn::ClientConfig, QuicError> {
    let id_bytes = (!options.in_bulk).then_some(LOG_CONNECTION_ID_BYTES);
    client_config_of(tls, ALPN, options, id_bytes)
}

/// quinn's client configuration of a machine that becomes a site.
///
/// # Errors
/// As [`client_config`].
pub fn join_client_config(tls: &rustls::ClientConfig) -> Result<quinn::ClientConfig, QuicError> {
    client_config_of(tls, JOIN_ALPN, &TransportOptions::joining(), Some(JOIN_CONNECTION_ID_BYTES))
}

fn client_config_of(
    tls: &rustls::ClientConfig,
    alpn: &[u8],
    options: &TransportOptions,
    id_bytes: Option<usize>,
) -> Result<quinn::ClientConfig, QuicError> {
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.enable_early_data = false;
    tls.resumption = rustls::client::Resumption::disabled();
    let crypto = QuicClientConfig::try_from(tls).map_err(|_| QuicError::Cipher)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(options.transport());
    if let Some(bytes) = id_bytes {
        config.initial_dst_cid_provider(Arc::new(move || {
            let mut id = [0; JOIN_CONNECTION_ID_BYTES];
            // Without randomness it is easier to guess, and the handshake fails for want of it.
            let _ = random::fill(&mut id);
            quinn::ConnectionId::new(&id[..bytes])
        }));
    }
    Ok(config)
}

/// Where connections of sites are accepted.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Where they come in.
    pub endpoint: quinn::Endpoint,
    /// How those that carry the log are accepted, if not like others.
    log: Option<Arc<quinn::ServerConfig>>,
    /// How machines are that become sites, if any can.
    join: Option<Arc<quinn::ServerConfig>>,
}

impl Listener {
    /// Listens at `address`, over a mutual-TLS configuration. All connections are as `options` say, but
    /// those that carry the log are not in bulk.
    ///
    /// # Errors
    /// When the TLS configuration cannot carry QUIC, or the address cannot be bound.
    pub fn bind(
        address: SocketAddr,
        tls: &rustls::ServerConfig,
        options: &TransportOptions,
    ) -> Result<Self, QuicError> {
        let log = server_config(tls, &TransportOptions { in_bulk: false, ..options.clone() })?;
        let endpoint = listen(address, server_config(tls, options)?)?;
        Ok(Self { endpoint, log: Some(Arc::new(log)), join: None })
    }

    /// The same, where machines become sites as well: [`join_server_config`].
    #[must_use]
    pub fn joining(self, config: quinn::ServerConfig) -> Self {
        Self { join: Some(Arc::new(config)), ..self }
    }

    /// Whether this is a machine that wants to become a site, and here it can.
    pub fn is_join(&self, incoming: &quinn::Incoming) -> bool {
        self.join.is_some() && incoming.orig_dst_cid().len() == JOIN_CONNECTION_ID_BYTES
    }

    /// Begins the handshake of a connection.
    ///
    /// # Errors
    /// When its first packet is not one.
    pub fn accept(&self, incoming: quinn::Incoming) -> Result<quinn::Connecting, quinn::ConnectionError> {
        let config = match incoming.orig_dst_cid().len() {
            LOG_CONNECTION_ID_BYTES => self.log.as_ref(),
            JOIN_CONNECTION_ID_BYTES => self.join.as_ref(),
            _ => None,
        };
        match config {
            Some(config) => incoming.accept_with(Arc::clone(config)),
            None => incoming.accept(),
        }
    }
}

impl From<quinn::Endpoint> for Listener {
    /// One that accepts all alike.
    fn from(endpoint: quinn::Endpoint) -> Self {
        Self { endpoint, log: None, join: None }
    }
}

/// Where endpoints come from: this machine's sockets ([`Udp`]), or a simulated network.
pub trait Network: fmt::Debug + Send + Sync {
    /// An endpoint at `address` that accepts connections as `server` says, if at all, and receives
    /// UDP payloads of up to `datagram_bytes_max` bytes.
    ///
    /// # Errors
    /// When the address cannot be bound.
    fn endpoint(
        &self,
        address: SocketAddr,
        server: Option<quinn::ServerConfig>,
        datagram_bytes_max: u16,
    ) -> Result<quinn::Endpoint, QuicError>;
}

/// This machine's UDP sockets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Udp;

/// An endpoint that accepts connections at `address`.
///
/// # Errors
/// When the address cannot be bound.
pub fn listen(address: SocketAddr, config: quinn::ServerConfig) -> Result<quinn::Endpoint, QuicError> {
    Udp.endpoint(address, Some(config), ETHERNET_DATAGRAM_BYTES)
}

/// An endpoint that only connects, to peers of the same address family as `peer`, and receives
/// what `options` allow.
///
/// # Errors
/// When no socket can be opened.
pub fn dialer(
    network: &dyn Network,
    peer: SocketAddr,
    options: &TransportOptions,
) -> Result<quinn::Endpoint, QuicError> {
    let any: IpAddr =
        if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    network.endpoint(SocketAddr::new(any, 0), None, options.datagram_bytes_max)
}

impl Network for Udp {
    fn endpoint(
        &self,
        address: SocketAddr,
        server: Option<quinn::ServerConfig>,
        datagram_bytes_max: u16,
    ) -> Result<quinn::Endpoint, QuicError> {
        let bind = |source| QuicError::Bind { address, source };
        let socket = UdpSocket::bind(address).map_err(bind)?;
        for set in [
            rustix::net::sockopt::set_socket_recv_buffer_size,
            rustix::net::sockopt::set_socket_send_buffer_size,
        ] {
            set(&socket, SOCKET_BUFFER_BYTES).map_err(|error| bind(error.into()))?;
        }
        let runtime = Arc::new(quinn::TokioRuntime);
        let mut config = quinn::EndpointConfig::default();
        // Refused only below 1200, which every path carries.
        let _ = config.max_udp_payload_size(datagram_bytes_max);
        quinn::Endpoint::new(config, server, socket, runtime).map_err(bind)
    }
}

/// Reads a connection's verified client or server certificates, the peer's own first.
pub fn peer_certificates(
    connection: &quinn::Connection,
) -> Option<Vec<rustls_pki_types::CertificateDer<'static>>> {
    connection.peer_identity()?.downcast().ok().map(|certificates| *certificates)
}

/// Why no endpoint could be made.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The TLS configuration lacks what QUIC's first packets need.
    #[error("the TLS configuration cannot carry QUIC: it needs TLS 1.3 with AES-128-GCM")]
    Cipher,
    /// The UDP socket.
    #[error("open UDP socket {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// The operating system's error.
        source: io::Error,
    },
}
