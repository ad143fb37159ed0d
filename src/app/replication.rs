//! The listener of whoever publishes a log.

use std::{net::SocketAddr, sync::Arc};

use outport_proto::{Offset, SiteName, Timestamp, frame::ALPN};

use super::StartError;
use crate::{
    auth::{NodeTls, site_of},
    fetch::quic::{Congestion, Listener, TransportOptions},
    http::Tunnels,
    log::Log,
    primary::{log_stream::Tunnelled, publisher::Admit},
};

/// Connections of sites at once, two a node.
pub(super) const CONNECTIONS_MAX: usize = 4096;

/// Binds a QUIC listener that nodes of the cluster can connect to; `keys` are what configured it.
pub(super) fn listen(
    address: SocketAddr,
    tls: &Arc<NodeTls>,
    keys: &str,
    congestion: Congestion,
) -> Result<Listener, StartError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        StartError::new(format!("set up replication ({keys})"), error)
    };
    let tls = tls.server(&[ALPN]).map_err(|error| failed(error.into()))?;
    let options = TransportOptions { congestion, ..TransportOptions::upstream() };
    Listener::bind(address, &tls, &options).map_err(|error| failed(error.into()))
}

/// Lets in the sites that `key` lists.
pub(super) fn admit(sites: Vec<SiteName>, key: &'static str) -> Admit {
    Arc::new(move |certificate| match site_of(certificate) {
        Some(site) if sites.contains(&site) => Ok(site),
        Some(site) => Err(format!("site {site} is not in {key}")),
        None => Err("the certificate is not a site's".to_owned()),
    })
}

/// Tells whose packets come through one of `tunnels`.
pub(super) fn tunnelled(tunnels: Tunnels) -> Tunnelled {
    Arc::new(move |peer| tunnels.carry(peer))
}

/// When the first event after `offset` happened, if `log` still has it. A site that is nearly caught
/// up is answered from memory; one that is far behind costs a read.
pub(super) fn time_after(log: &Log, offset: Offset) -> Option<Timestamp> {
    log.read(offset, 1).ok()?.first().map(|record| record.event.time)
}
