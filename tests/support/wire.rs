//! A stretch of network between a site and its primary that delays packets and loses some.
//!
//! Packets of one direction stay in order and are lost independently of each other, as a seed
//! says. Threads and plain sleeps, because a runtime's timer would round every delay up.

#![expect(unreachable_pub, reason = "each test binary takes this in as a module of its own")]

use std::{
    collections::HashMap,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

/// Packets on their way in one direction at most; more are lost, as in a router's full queue.
const PACKETS_MAX: usize = 65_536;
/// How often threads look whether they are still wanted.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What a wire does to packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quality {
    /// One way, in each direction.
    pub delay: Duration,
    /// Packets lost of a thousand, in each direction.
    pub lost_per_mille: u64,
    /// Which packets are lost follows from it.
    pub seed: u64,
}

/// Carries packets both ways.
#[derive(Debug)]
pub struct Wire {
    /// Where the site connects.
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    front: UdpSocket,
    primary: SocketAddr,
    quality: Quality,
    is_over: AtomicBool,
    is_cut: AtomicBool,
    /// Larger packets are lost, in bytes of UDP payload.
    bytes_max: AtomicUsize,
    /// The state of the dice.
    dice: AtomicU64,
    lost: AtomicU64,
    carried: AtomicU64,
    /// A socket towards the primary for every socket of the site.
    backs: Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>,
}

struct Packet {
    due: Instant,
    bytes: Vec<u8>,
    by: Arc<UdpSocket>,
    /// `None` on a connected socket.
    to: Option<SocketAddr>,
}

impl Wire {
    /// A wire to the primary's replication listener.
    pub fn to(primary: SocketAddr, quality: Quality) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        front.set_read_timeout(Some(LOOK_INTERVAL)).unwrap();
        let address = front.local_addr().unwrap();
        let state = Arc::new(State {
            front,
            primary,
            quality,
            is_over: AtomicBool::new(false),
            is_cut: AtomicBool::new(false),
            bytes_max: AtomicUsize::new(usize::MAX),
            dice: AtomicU64::new(quality.seed),
            lost: AtomicU64::new(0),
            carried: AtomicU64::new(0),
            backs: Mutex::default(),
        });
        let carrying = Arc::clone(&state);
        thread::spawn(move || carrying.carry_out());
        Self { address, state }
    }

    /// From now on it carries nothing, or everything again.
    pub fn cut(&self, is_cut: bool) {
        self.state.is_cut.store(is_cut, Ordering::SeqCst);
    }

    /// From now on packets of more bytes of UDP payload are lost, and nobody is told.
    pub fn narrow(&self, bytes_max: usize) {
        self.state.bytes_max.store(bytes_max, Ordering::SeqCst);
    }

    /// From now on the primary sees packets come from other ports, as behind a NAT that forgot.
    pub fn rebind(&self) {
        self.state.backs.lock().unwrap().clear();
    }

    /// Packets carried, and those lost.
    pub fn counts(&self) -> (u64, u64) {
        (self.state.carried.load(Ordering::Relaxed), self.state.lost.load(Ordering::Relaxed))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
    }
}

impl State {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn carry_out(self: Arc<Self>) {
        let line = self.line();
        let mut buffer = vec![0; 65_536];
        while !self.is_over() {
            let Some((length, from)) = received(self.front.recv_from(&mut buffer)) else { continue };
            let known = self.backs.lock().unwrap().get(&from).cloned();
            let back = known.unwrap_or_else(|| self.new_back(from));
            self.send(&line, buffer[..length].to_vec(), back, None);
        }
    }

    fn new_back(self: &Arc<Self>, from: SocketAddr) -> Arc<UdpSocket> {
        let back = UdpSocket::bind("127.0.0.1:0").unwrap();
        back.connect(self.primary).unwrap();
        back.set_read_timeout(Some(LOOK_INTERVAL)).unwrap();
        let back = Arc::new(back);
        self.backs.lock().unwrap().insert(from, Arc::clone(&back));
        let (carrying, by) = (Arc::clone(self), Arc::clone(&back));
        thread::spawn(move || carrying.carry_back(&by, from));
        back
    }

    fn carry_back(self: Arc<Self>, back: &UdpSocket, to: SocketAddr) {
        let line = self.line();
        let front = Arc::new(self.front.try_clone().unwrap());
        let mut buffer = vec![0; 65_536];
        while !self.is_over() {
            // An error tells that nobody listens at the primary now; that may change.
            let Some(length) = received(back.recv(&mut buffer)) else { continue };
            self.send(&line, buffer[..length].to_vec(), Arc::clone(&front), Some(to));
        }
    }

    fn send(&self, line: &SyncSender<Packet>, bytes: Vec<u8>, by: Arc<UdpSocket>, to: Option<SocketAddr>) {
        let packet = Packet { due: Instant::now() + self.quality.delay, bytes, by, to };
        let is_cut = self.is_cut.load(Ordering::SeqCst);
        let is_large = packet.bytes.len() > self.bytes_max.load(Ordering::SeqCst);
        if is_cut || is_large || self.is_lost() || line.try_send(packet).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        } else {
            self.carried.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A throw of the dice: splitmix64.
    fn is_lost(&self) -> bool {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let state = self.dice.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % 1000 < self.quality.lost_per_mille
    }

    /// One direction of one socket: what is put in comes out when it is due.
    fn line(&self) -> SyncSender<Packet> {
        let (line, packets): (SyncSender<Packet>, Receiver<Packet>) = sync_channel(PACKETS_MAX);
        thread::spawn(move || {
            for Packet { due, bytes, by, to } in packets {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                let _ = match to {
                    Some(to) => by.send_to(&bytes, to),
                    None => by.send(&bytes),
                };
            }
        });
        line
    }
}

/// What came; errors are those of a moment, or that nothing came.
fn received<T>(result: std::io::Result<T>) -> Option<T> {
    match result {
        Ok(received) => Some(received),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(_) => {
            thread::sleep(Duration::from_millis(1));
            None
        }
    }
}
