//! The primary's end of UDP in HTTP: sites whose network carries no UDP reach the replication listener through the
//! registry, and nothing else.

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::{
    net::UdpSocket,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use super::{body::Body, error::ApiError, headers::response};
use crate::{
    fetch::tunnel::{PATH, PROTOCOL, carry},
    shutdown::Shutdown,
};

/// Tunnels at once: a site has one, and another while it fetches blobs.
const TUNNELS_MAX: usize = 1024;

/// The tunnels of a node. Cloning gives another handle.
#[derive(Clone)]
pub struct Tunnels(Arc<Shared>);

struct Shared {
    /// The replication listener, from this machine.
    target: SocketAddr,
    permits: Arc<Semaphore>,
    /// Where the listener sees those come from that are open.
    open: Mutex<HashSet<SocketAddr>>,
    shutdown: Shutdown,
}

impl Tunnels {
    /// Leads to the listener at `listening`, until shutdown.
    pub fn new(listening: SocketAddr, shutdown: Shutdown) -> Self {
        let ip = match listening.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let target = SocketAddr::new(ip, listening.port());
        let permits = Arc::new(Semaphore::new(TUNNELS_MAX));
        Self(Arc::new(Shared { target, permits, open: Mutex::default(), shutdown }))
    }

    /// Whether a connection that the listener sees from `peer` came through one of these.
    pub fn carry(&self, peer: SocketAddr) -> bool {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner).contains(&peer)
    }

    /// Whether a request asks for one.
    pub(super) fn is_asked<B>(request: &Request<B>) -> bool {
        request.uri().path() == PATH && *request.method() == Method::GET && asks(request.headers())
    }

    /// Upgrades the connection of such a request.
    pub(super) async fn begun<B>(&self, request: &mut Request<B>) -> Result<Response<Body>, ApiError> {
        let permit = Arc::clone(&self.0.permits).try_acquire_owned();
        let permit = permit.map_err(|_| ApiError::Unavailable("there are too many tunnels".into()))?;
        let socket = self.socket().await.map_err(|error| ApiError::Unavailable(error.to_string().into()))?;
        let upgrading = hyper::upgrade::on(request);
        let (this, stop) = (self.clone(), self.0.shutdown.clone());
        self.0.shutdown.spawn(async move {
            tokio::select! {
                () = stop.requested() => {}
                () = this.carry_out(upgrading, socket, permit) => {}
            }
        });
        let mut answer = response(StatusCode::SWITCHING_PROTOCOLS, Body::empty());
        let headers = answer.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
        headers.insert("capsule-protocol", HeaderValue::from_static("?1"));
        Ok(answer)
    }

    async fn socket(&self) -> std::io::Result<UdpSocket> {
        let any: IpAddr = match self.0.target.ip() {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(self.0.target).await?;
        Ok(socket)
    }

    async fn carry_out(
        &self,
        upgrading: hyper::upgrade::OnUpgrade,
        socket: UdpSocket,
        _permit: OwnedSemaphorePermit,
    ) {
        let Ok(stream) = upgrading.await else { return };
        let Ok(own) = socket.local_addr() else { return };
        let open = || self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open().insert(own);
        let Err(error) = carry(TokioIo::new(stream), &socket).await;
        open().remove(&own);
        tracing::debug!(%error, "a site's tunnel ended");
    }
}

fn asks(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|upgrade| upgrade.eq_ignore_ascii_case(PROTOCOL))
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnels").field("target", &self.0.target).finish_non_exhaustive()
    }
}
