//! A stretch of network between a site and its primary that a test can cut.

use outport::watch;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::net::UdpSocket;

/// Carries packets both ways while it is whole.
pub(crate) struct Stretch {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

struct State {
    front: UdpSocket,
    primary: SocketAddr,
    is_cut: AtomicBool,
    /// Bytes that reached the site.
    carried: watch::Sender<u64>,
    /// Bytes that reached the primary.
    carried_up: AtomicU64,
    /// It is cut once so many did.
    cut_at: AtomicU64,
    /// A socket towards the primary for every socket of the site.
    backs: Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>,
}

impl Stretch {
    pub(crate) async fn to(primary: SocketAddr) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = front.local_addr().unwrap();
        let state = Arc::new(State {
            front,
            primary,
            is_cut: AtomicBool::new(false),
            carried: watch::Sender::new(0),
            carried_up: AtomicU64::new(0),
            cut_at: AtomicU64::new(u64::MAX),
            backs: Mutex::default(),
        });
        tokio::spawn(Arc::clone(&state).carry_out());
        Self { address, state }
    }

    /// From here on every packet is lost.
    pub(crate) fn cut(&self) {
        self.state.is_cut.store(true, Ordering::SeqCst);
    }

    /// It is cut as soon as `bytes` more have reached the site.
    pub(crate) fn cut_after(&self, bytes: u64) {
        self.state.cut_at.store(self.carried() + bytes, Ordering::SeqCst);
    }

    /// Bytes that reached the site.
    pub(crate) fn carried(&self) -> u64 {
        *self.state.carried.borrow()
    }

    /// Bytes that reached site or primary.
    pub(crate) fn exchanged(&self) -> u64 {
        self.carried() + self.state.carried_up.load(Ordering::SeqCst)
    }

    /// Resolves once so many bytes reached the site.
    pub(crate) async fn carries(&self, bytes: u64) {
        crate::world::until("carrying", &mut self.state.carried.subscribe(), |carried| *carried >= bytes)
            .await;
    }

    pub(crate) fn heal(&self) {
        self.state.cut_at.store(u64::MAX, Ordering::SeqCst);
        self.state.is_cut.store(false, Ordering::SeqCst);
    }

    /// The site's packets come from other addresses from here on, as behind a NAT that forgot.
    pub(crate) fn rebind(&self) {
        self.state.backs.lock().unwrap().clear();
    }
}

impl State {
    async fn carry_out(self: Arc<Self>) {
        let mut packet = vec![0; 65_536];
        while let Ok((len, from)) = self.front.recv_from(&mut packet).await {
            if self.is_cut.load(Ordering::SeqCst) {
                continue;
            }
            let known = self.backs.lock().unwrap().get(&from).cloned();
            let back = match known {
                Some(back) => back,
                None => {
                    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                    back.connect(self.primary).await.unwrap();
                    self.backs.lock().unwrap().insert(from, Arc::clone(&back));
                    tokio::spawn(Arc::clone(&self).carry_back(Arc::clone(&back), from));
                    back
                }
            };
            let _ = back.send(&packet[..len]).await;
            self.carried_up.fetch_add(len as u64, Ordering::SeqCst);
        }
    }

    async fn carry_back(self: Arc<Self>, back: Arc<UdpSocket>, to: SocketAddr) {
        let mut packet = vec![0; 65_536];
        loop {
            // An error tells that nobody listens at the primary now; that may change.
            let Ok(len) = back.recv(&mut packet).await else { continue };
            if !self.is_cut.load(Ordering::SeqCst) {
                let _ = self.front.send_to(&packet[..len], to).await;
                self.carried.send_modify(|carried| *carried += len as u64);
                if *self.carried.borrow() >= self.cut_at.load(Ordering::SeqCst) {
                    self.is_cut.store(true, Ordering::SeqCst);
                }
            }
        }
    }
}
