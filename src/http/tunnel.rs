//! The primary's end of UDP in HTTP: sites whose network carries no UDP reach the replication listener through the
//! registry, and nothing else.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
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
/// Of one address, which sites behind a NAT share: who has no certificate must not take all of them.
const OF_ONE_ADDRESS_MAX: usize = 128;

/// The tunnels of a node. Cloning gives another handle.
#[derive(Clone)]
pub struct Tunnels(Arc<Shared>);

struct Shared {
    /// The replication listener, from this machine.
    target: SocketAddr,
    permits: Arc<Semaphore>,
    /// How many whose are open.
    by_address: Mutex<HashMap<IpAddr, usize>>,
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
        let (by_address, open) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Shared { target, permits, by_address, open, shutdown }))
    }

    /// Whether a connection that the listener sees from `peer` came through one of these.
    pub fn carry(&self, peer: SocketAddr) -> bool {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner).contains(&peer)
    }

    /// Whether a request asks for one.
    pub(super) fn is_asked<B>(request: &Request<B>) -> bool {
        request.uri().path() == PATH && *request.method() == Method::GET && asks(request.headers())
    }

    /// Upgrades the connection of such a request, which came from `client`.
    pub(super) async fn begun<B>(
        &self,
        request: &mut Request<B>,
        client: IpAddr,
    ) -> Result<Response<Body>, ApiError> {
        let place = self.place(client)?;
        let socket = self.socket().await.map_err(|error| ApiError::Unavailable(error.to_string().into()))?;
        let upgrading = hyper::upgrade::on(request);
        let (this, stop) = (self.clone(), self.0.shutdown.clone());
        self.0.shutdown.spawn(async move {
            tokio::select! {
                () = stop.requested() => {}
                () = this.carry_out(upgrading, socket, place) => {}
            }
        });
        let mut answer = response(StatusCode::SWITCHING_PROTOCOLS, Body::empty());
        let headers = answer.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
        headers.insert("capsule-protocol", HeaderValue::from_static("?1"));
        Ok(answer)
    }

    fn place(&self, client: IpAddr) -> Result<Place, ApiError> {
        let many = || ApiError::Unavailable("there are too many tunnels".into());
        let permit = Arc::clone(&self.0.permits).try_acquire_owned().map_err(|_| many())?;
        let network = network(client);
        let mut by_address = self.0.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(network).or_default();
        if *count >= OF_ONE_ADDRESS_MAX {
            return Err(many());
        }
        *count += 1;
        drop(by_address);
        Ok(Place { shared: Arc::clone(&self.0), network, _permit: permit })
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

    async fn carry_out(&self, upgrading: hyper::upgrade::OnUpgrade, socket: UdpSocket, _place: Place) {
        let Ok(stream) = upgrading.await else { return };
        let Ok(own) = socket.local_addr() else { return };
        let open = || self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open().insert(own);
        let Err(error) = carry(TokioIo::new(stream), &socket).await;
        open().remove(&own);
        tracing::debug!(%error, "a site's tunnel ended");
    }
}

/// One tunnel's. Dropping it makes room.
struct Place {
    shared: Arc<Shared>,
    network: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_address = self.shared.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = by_address.entry(self.network) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// What counts as one address: of IPv6 the /64 that a machine chooses its own in.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(client) => Ipv6Addr::from_bits(client.to_bits() & !u128::from(u64::MAX)).into(),
        client @ IpAddr::V4(_) => client,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_address_has_so_many_and_leaves_the_rest_to_others() {
        let tunnels = Tunnels::new(([127, 0, 0, 1], 5443).into(), Shutdown::new());
        let [one, other, mapped] =
            ["192.0.2.1", "192.0.2.2", "::ffff:192.0.2.1"].map(|ip| ip.parse().unwrap());
        let mut places: Vec<_> = (0..OF_ONE_ADDRESS_MAX).map(|_| tunnels.place(one).ok().unwrap()).collect();
        assert!(tunnels.place(one).is_err() && tunnels.place(mapped).is_err());
        assert!(tunnels.place(other).is_ok());
        places.pop();
        assert!(tunnels.place(mapped).is_ok());
        let prefix: Vec<_> = (0..OF_ONE_ADDRESS_MAX as u128)
            .map(|host| tunnels.place(Ipv6Addr::from_bits((0x2001_0db8 << 96) + host).into()).ok().unwrap())
            .collect();
        assert!(tunnels.place("2001:db8::ffff:0:0:1".parse().unwrap()).is_err());
        assert!(tunnels.place("2001:db8:0:1::1".parse().unwrap()).is_ok());
        drop((places, prefix));
        assert!(tunnels.0.by_address.lock().unwrap().is_empty());
        assert_eq!(tunnels.0.permits.available_permits(), TUNNELS_MAX);
    }
}
