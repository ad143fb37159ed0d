//! A stretch of network between a site and its primary that a test can cut.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::net::UdpSocket;

/// Carries packets both ways while it is whole.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

struct State {
    front: UdpSocket,
    primary: SocketAddr,
    is_cut: AtomicBool,
    /// A socket towards the primary for every socket of the site.
    backs: Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>,
}

impl Relay {
    pub(crate) async fn to(primary: SocketAddr) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = front.local_addr().unwrap();
        let state =
            Arc::new(State { front, primary, is_cut: AtomicBool::new(false), backs: Mutex::default() });
        tokio::spawn(Arc::clone(&state).carry_out());
        Self { address, state }
    }

    /// From here on every packet is lost.
    pub(crate) fn cut(&self) {
        self.state.is_cut.store(true, Ordering::SeqCst);
    }

    pub(crate) fn heal(&self) {
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
        }
    }

    async fn carry_back(self: Arc<Self>, back: Arc<UdpSocket>, to: SocketAddr) {
        let mut packet = vec![0; 65_536];
        loop {
            // An error tells that nobody listens at the primary now; that may change.
            let Ok(len) = back.recv(&mut packet).await else { continue };
            if !self.is_cut.load(Ordering::SeqCst) {
                let _ = self.front.send_to(&packet[..len], to).await;
            }
        }
    }
}
