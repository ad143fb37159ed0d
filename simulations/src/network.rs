//! A network of datagrams: every packet of real QUIC travels through it, with its own delay, or
//! is lost, doubled or overtaken.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use outport::{
    fetch::quic::{self, QuicError},
    process,
};
use quinn::{
    AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::{sync::Notify, time::Instant};

use crate::{random::Random, report::Report};

/// Datagrams a socket keeps that nobody reads; more are lost, as in any kernel.
const INBOX_MAX: usize = 8192;

/// The wires between machines. Cloning gives another handle.
#[derive(Clone)]
pub(crate) struct Network {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    random: Random,
    begun: Instant,
    /// Something is on its way that arrives earlier than what was.
    earlier: Notify,
    report: Arc<Mutex<Report>>,
}

struct State {
    sockets: BTreeMap<SocketAddr, Arc<Mutex<Inbox>>>,
    paths: BTreeMap<(IpAddr, IpAddr), Path>,
    under_way: BTreeMap<(Instant, u64), Datagram>,
    numbers: u64,
    next_port: u16,
    trace: u64,
}

struct Datagram {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Inbox {
    waiting: VecDeque<(SocketAddr, Vec<u8>)>,
    waker: Option<Waker>,
}

/// One direction between two machines.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    /// What every packet takes, and what some take on top.
    pub(crate) delay_micros: (u64, u64),
    /// Packets of a thousand that are lost.
    pub(crate) loss: u64,
    /// Packets of a thousand that come twice.
    pub(crate) doubled: u64,
    /// Packets of a thousand that are held up and overtaken.
    pub(crate) held_up: u64,
    /// Nothing passes until then.
    pub(crate) blocked_until: Option<Instant>,
    /// Everything takes long until then.
    pub(crate) slow_until: Option<Instant>,
}

impl Path {
    /// A path somewhere between a data centre's and a bad intercontinental one.
    pub(crate) fn new(random: &Random) -> Self {
        let base = random.micros(200, 80_000).as_micros() as u64;
        Self {
            delay_micros: (base, random.below(base / 4 + 1000)),
            loss: if random.percent(50) { 0 } else { random.below(30) },
            doubled: if random.percent(70) { 0 } else { random.below(20) },
            held_up: if random.percent(60) { 0 } else { random.below(30) },
            blocked_until: None,
            slow_until: None,
        }
    }

    /// Without faults, as fast as it is.
    pub(crate) fn heal(&mut self) {
        (self.loss, self.doubled, self.held_up) = (0, 0, 0);
        (self.blocked_until, self.slow_until) = (None, None);
    }
}

impl Network {
    pub(crate) fn new(seed: u64, begun: Instant, report: Arc<Mutex<Report>>) -> Self {
        let state = State {
            sockets: BTreeMap::new(),
            paths: BTreeMap::new(),
            under_way: BTreeMap::new(),
            numbers: 0,
            next_port: 10_000,
            trace: 0xcbf2_9ce4_8422_2325,
        };
        let random = Random::new(seed, 0x6e65_7477);
        let earlier = Notify::new();
        Self { shared: Arc::new(Shared { state: Mutex::new(state), random, begun, earlier, report }) }
    }

    /// Takes a path into use, or changes it.
    pub(crate) fn path(&self, from: IpAddr, to: IpAddr, change: impl FnOnce(&mut Path)) {
        let mut state = self.shared.state();
        let path = state.paths.entry((from, to)).or_insert_with(|| Path::new(&self.shared.random));
        change(path);
    }

    /// All paths.
    pub(crate) fn paths(&self, change: impl FnMut(&mut Path)) {
        self.shared.state().paths.values_mut().for_each(change);
    }

    /// The machine is gone, with all its sockets.
    pub(crate) fn remove(&self, host: IpAddr) {
        self.shared.state().sockets.retain(|address, _| address.ip() != host);
    }

    /// As one machine sees it.
    pub(crate) fn of(&self, host: IpAddr) -> MachineNetwork {
        MachineNetwork { network: self.clone(), host }
    }

    /// Adds what was decided to what makes this world's history one of its kind.
    pub(crate) fn note(&self, numbers: &[u64]) {
        self.shared.state().note(numbers);
    }

    pub(crate) fn trace(&self) -> u64 {
        self.shared.state().trace
    }

    /// Delivers for ever.
    pub(crate) async fn deliver(self) {
        loop {
            let next = self.shared.state().under_way.first_key_value().map(|((at, _), _)| *at);
            let arrival = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.shared.earlier.notified() => {}
                () = arrival => self.shared.arrive(Instant::now()),
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrive(&self, now: Instant) {
        let mut woken = Vec::new();
        {
            let mut state = self.state();
            while let Some(entry) = state.under_way.first_entry()
                && entry.key().0 <= now
            {
                let datagram = entry.remove();
                let Some(socket) = state.sockets.get(&datagram.to) else { continue };
                let mut inbox = socket.lock().unwrap_or_else(PoisonError::into_inner);
                if inbox.waiting.len() < INBOX_MAX {
                    inbox.waiting.push_back((datagram.from, datagram.bytes));
                }
                woken.extend(inbox.waker.take());
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }

    fn send(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let now = Instant::now();
        let mut state = self.state();
        let random = &self.random;
        let path = state.paths.entry((from.ip(), to.ip())).or_insert_with(|| Path::new(random)).clone();
        let is_lost = path.blocked_until.is_some_and(|until| until > now) || random.below(1000) < path.loss;
        let copies = if is_lost { 0 } else { 1 + u64::from(random.below(1000) < path.doubled) };
        let micros = now.duration_since(self.begun).as_micros() as u64;
        let hosts = [from, to].map(|address| match address.ip() {
            IpAddr::V4(ip) => u64::from(u32::from(ip)) << 16 | u64::from(address.port()),
            IpAddr::V6(_) => 0,
        });
        tracing::trace!(target: "outport::network", %from, %to, bytes = bytes.len(), copies, "datagram");
        state.note(&[micros, hosts[0], hosts[1], bytes.len() as u64, copies]);
        let mut held_up = 0;
        for _ in 0..copies {
            let (base, more) = path.delay_micros;
            let mut delay = Duration::from_micros(base) + random.micros(0, more);
            if random.below(1000) < path.held_up {
                held_up += 1;
                delay += random.millis(5, 120);
            }
            if path.slow_until.is_some_and(|until| until > now) {
                delay += random.millis(200, 1500);
            }
            let key = (now + delay, state.numbers);
            state.numbers += 1;
            if state.under_way.first_key_value().is_none_or(|(first, _)| key < *first) {
                self.earlier.notify_one();
            }
            state.under_way.insert(key, Datagram { from, to, bytes: bytes.to_vec() });
        }
        drop(state);
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.packets += 1;
        report.packets_lost += u64::from(is_lost);
        report.packets_doubled += u64::from(copies > 1);
        report.packets_held_up += held_up;
    }
}

impl State {
    fn note(&mut self, numbers: &[u64]) {
        // FNV-1a, a word at a time.
        for number in numbers {
            self.trace = (self.trace ^ number).wrapping_mul(0x0000_0100_0000_01b3);
            self.trace ^= self.trace >> 29;
        }
    }
}

/// The network as one machine sees it.
#[derive(Clone)]
pub(crate) struct MachineNetwork {
    network: Network,
    host: IpAddr,
}

impl fmt::Debug for MachineNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MachineNetwork").field("host", &self.host).finish_non_exhaustive()
    }
}

impl quic::Network for MachineNetwork {
    fn endpoint(
        &self,
        address: SocketAddr,
        server: Option<quinn::ServerConfig>,
        _datagram_bytes_max: u16,
    ) -> Result<quinn::Endpoint, QuicError> {
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let address = {
            let mut state = self.network.shared.state();
            let port = if address.port() == 0 { state.next_port } else { address.port() };
            if address.port() == 0 {
                state.next_port = state.next_port.checked_add(1).unwrap_or(10_000);
            }
            let address = SocketAddr::new(self.host, port);
            state.sockets.insert(address, Arc::clone(&inbox));
            address
        };
        let socket = Socket { network: self.network.clone(), address, inbox };
        let mut config = quinn::EndpointConfig::default();
        let mut seed = [0; 32];
        // In a simulated process it never fails.
        let _ = outport::random::fill(&mut seed);
        config.rng_seed(Some(seed));
        quinn::Endpoint::new_with_abstract_socket(
            config,
            server,
            Arc::new(socket),
            Arc::new(SimulatedRuntime),
        )
        .map_err(|source| QuicError::Bind { address, source })
    }
}

/// tokio with the clock of the simulation; tasks belong to the process that spawns them.
#[derive(Debug)]
struct SimulatedRuntime;

impl Runtime for SimulatedRuntime {
    fn new_timer(&self, at: std::time::Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        drop(process::spawn(future));
    }

    fn wrap_udp_socket(&self, _socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into_std()
    }
}

struct Socket {
    network: Network,
    address: SocketAddr,
    inbox: Arc<Mutex<Inbox>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut state = self.network.shared.state();
        // Another process may have the address by now.
        if state.sockets.get(&self.address).is_some_and(|inbox| Arc::ptr_eq(inbox, &self.inbox)) {
            state.sockets.remove(&self.address);
        }
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.network.shared.send(self.address, transmit.destination, transmit.contents);
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let mut received = 0;
        while received < buffers.len().min(metas.len())
            && let Some((from, bytes)) = inbox.waiting.pop_front()
        {
            let len = bytes.len().min(buffers[received].len());
            buffers[received][..len].copy_from_slice(&bytes[..len]);
            metas[received] = RecvMeta { addr: from, len, stride: len, ecn: None, dst_ip: None };
            received += 1;
        }
        if received > 0 {
            return Poll::Ready(Ok(received));
        }
        inbox.waker = Some(context.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
