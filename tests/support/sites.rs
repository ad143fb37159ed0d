//! Many sites in this process: real QUIC connections, one each as a site has that needs no blob now, and the real session machine of `proto`, on a
//! driver that keeps nothing. Some of them can be told to take no bytes.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use outport::{
    auth::{
        authority::{Authority, NodeIdentity, PRIMARY_NAME},
        tls,
    },
    clock::{Clock as _, SystemClock},
    fetch::{
        framed::{FrameSink, FrameStream, Incoming},
        quic::{self, StreamKind, TransportOptions, Udp},
    },
};
use outport_proto::{
    SiteName,
    frame::{ALPN, FromPrimary, FromSecondary},
    session::{Progress, Subscriber, SubscriberConfig, SubscriberNotice, SubscriberState},
};

use super::{Cluster, PATIENCE};

/// Sites that share a UDP socket here. Each has its own in reality; here that would cost the client
/// more than it shows about the primary.
const SITES_PER_SOCKET: usize = 50;

/// What a site that takes no bytes lets the primary send before the primary has to wait.
const STALLED_WINDOW_BYTES: u32 = 4 * 1024;

/// The name of a site of the crowd.
pub fn name(number: usize) -> String {
    format!("crowd-{number:04}")
}

/// Sites that follow one primary. Dropping it ends them.
pub struct Sites {
    runtime: tokio::runtime::Runtime,
    authority: Authority,
    primary: SocketAddr,
    sockets: Vec<quinn::Endpoint>,
    begun: Instant,
    following: Vec<Site>,
    stalled: Vec<Site>,
    arrivals: Arc<AtomicU64>,
    appends: Arc<AtomicU64>,
}

struct Site {
    log: quinn::Connection,
    /// As a site has while it fetches blobs.
    bulk: Option<quinn::Connection>,
    config: quinn::ClientConfig,
    /// Of every event: its seq, and microseconds of the primary's clock from its time until it was here.
    seen: Arc<Mutex<Vec<(u64, u64)>>>,
}

/// Packets and bytes of UDP payload that all connections received and sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    pub received_bytes: u64,
    pub received_packets: u64,
    pub sent_bytes: u64,
    pub sent_packets: u64,
}

impl Sites {
    /// No site yet. The cluster must list them ([`name`]).
    pub fn of(cluster: &Cluster) -> Self {
        let pki = cluster.dir.path().join("pki");
        let authority = Authority::load(&pki.join("authority.crt"), &pki.join("authority.key")).unwrap();
        Self {
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap(),
            authority,
            primary: cluster.primary.replication(),
            sockets: Vec::new(),
            begun: Instant::now(),
            following: Vec::new(),
            stalled: Vec::new(),
            arrivals: Arc::default(),
            appends: Arc::default(),
        }
    }

    /// How many follow.
    pub fn following(&self) -> usize {
        self.following.len()
    }

    /// Lets more sites follow, until there are `count`.
    pub fn follow(&mut self, count: usize) {
        for number in self.following.len()..count {
            let site = self.connect(number, &TransportOptions::log());
            let (arrivals, appends) = (Arc::clone(&self.arrivals), Arc::clone(&self.appends));
            let begun = self.begun;
            let (log, seen) = (site.log.clone(), Arc::clone(&site.seen));
            let (streaming, is_streaming) = tokio::sync::oneshot::channel();
            self.runtime.spawn(async move {
                Follower { site: name(number).parse().unwrap(), begun, seen, arrivals, appends }
                    .run(&log, streaming)
                    .await;
            });
            let streams = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, is_streaming).await });
            streams.expect("the primary welcomes a site in time").expect("the session lives");
            self.following.push(site);
        }
    }

    /// Connects sites `first..first + count` that say `Hello` and then take no more bytes.
    pub fn stall(&mut self, first: usize, count: usize) {
        let options =
            TransportOptions { stream_receive_window_bytes: STALLED_WINDOW_BYTES, ..TransportOptions::log() };
        for number in first..first + count {
            let site = self.connect(number, &options);
            let (log, begun) = (site.log.clone(), self.begun);
            self.runtime.block_on(async {
                let (sink, mut frames, mut subscriber) =
                    greet(&log, name(number).parse().unwrap(), begun).await;
                while subscriber.state() != SubscriberState::Streaming {
                    let Incoming::Frame(frame) = frames.incoming().await.unwrap() else { continue };
                    subscriber.handle_frame(begun.elapsed(), frame);
                }
                // Dropping either end of the stream would tell the primary.
                std::mem::forget((sink, frames));
            });
            self.stalled.push(site);
        }
    }

    /// Closes the connections of sites that took no bytes; returns how many were still open.
    pub fn drop_stalled(&mut self) -> usize {
        let open = self.stalled.iter().filter(|site| site.log.close_reason().is_none()).count();
        for site in self.stalled.drain(..) {
            site.log.close(0_u32.into(), b"");
        }
        open
    }

    /// Waits until `count` more arrivals than `before` were counted.
    pub fn wait_arrivals(&self, before: u64, count: u64) {
        let began = Instant::now();
        while self.arrivals() < before + count {
            assert!(began.elapsed() < PATIENCE, "{} of {count} came", self.arrivals() - before);
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    /// Events that arrived at sites, all together.
    pub fn arrivals(&self) -> u64 {
        self.arrivals.load(Ordering::Relaxed)
    }

    /// Frames that events arrived in.
    pub fn appends(&self) -> u64 {
        self.appends.load(Ordering::Relaxed)
    }

    /// Takes what every site saw since the last time: (seq, microseconds) of each event.
    pub fn take_seen(&self) -> Vec<Vec<(u64, u64)>> {
        self.following.iter().map(|site| std::mem::take(&mut *site.seen.lock().unwrap())).collect()
    }

    /// What all connections of the sites that follow carried.
    pub fn traffic(&self) -> Traffic {
        let connections = self.following.iter().flat_map(|site| std::iter::once(&site.log).chain(&site.bulk));
        connections.map(|connection| connection.stats()).fold(Traffic::default(), |sum, stats| Traffic {
            received_bytes: sum.received_bytes + stats.udp_rx.bytes,
            received_packets: sum.received_packets + stats.udp_rx.datagrams,
            sent_bytes: sum.sent_bytes + stats.udp_tx.bytes,
            sent_packets: sum.sent_packets + stats.udp_tx.datagrams,
        })
    }

    /// Opens the bulk connection of every site that follows. Nobody keeps it alive.
    pub fn open_bulk(&mut self) {
        let _runtime = self.runtime.enter();
        for (number, site) in self.following.iter_mut().enumerate() {
            let connecting = self.sockets[number / SITES_PER_SOCKET].connect_with(
                site.config.clone(),
                self.primary,
                PRIMARY_NAME,
            );
            site.bulk =
                Some(self.runtime.block_on(connecting.unwrap()).expect("the primary accepts the site"));
        }
    }

    fn connect(&mut self, number: usize, log: &TransportOptions) -> Site {
        let identity = NodeIdentity::Site(name(number).parse().unwrap());
        let identity = self.authority.issue_node(&identity, SystemClock.now()).unwrap();
        let tls = tls::node_client(&identity, &[self.authority.certificate().clone()], &[ALPN]).unwrap();
        let _runtime = self.runtime.enter();
        if number / SITES_PER_SOCKET >= self.sockets.len() {
            self.sockets.push(quic::dialer(&Udp, self.primary, &TransportOptions::log()).unwrap());
        }
        let config = quic::client_config(&tls, log).unwrap();
        let socket = &self.sockets[number / SITES_PER_SOCKET];
        let connecting = socket.connect_with(config, self.primary, PRIMARY_NAME).unwrap();
        let log = self.runtime.block_on(connecting).expect("the primary accepts the site");
        let bulk = TransportOptions { datagram_bytes_max: 1472, ..TransportOptions::bulk() };
        Site { log, bulk: None, config: quic::client_config(&tls, &bulk).unwrap(), seen: Arc::default() }
    }
}

impl Drop for Sites {
    fn drop(&mut self) {
        self.drop_stalled();
        for site in &self.following {
            site.log.close(0_u32.into(), b"");
        }
    }
}

/// Opens the log stream and says `Hello`.
async fn greet(
    connection: &quinn::Connection,
    site: SiteName,
    begun: Instant,
) -> (FrameSink, FrameStream<FromPrimary>, Subscriber) {
    let config =
        SubscriberConfig { site, node: "1".into(), program: "crowd".into(), cluster: None, epoch: 0 };
    let mut subscriber = Subscriber::new(config, Progress::default());
    subscriber.handle_connected(begun.elapsed());
    let (send, receive) = connection.open_bi().await.unwrap();
    let mut sink = FrameSink::new(send, PATIENCE);
    let hello = subscriber.poll_transmit(begun.elapsed()).unwrap();
    sink.open::<FromSecondary>(StreamKind::Log, &hello).await.unwrap();
    (sink, FrameStream::new(receive), subscriber)
}

/// One site that follows, and forgets what it gets.
struct Follower {
    site: SiteName,
    begun: Instant,
    seen: Arc<Mutex<Vec<(u64, u64)>>>,
    arrivals: Arc<AtomicU64>,
    appends: Arc<AtomicU64>,
}

impl Follower {
    async fn run(self, connection: &quinn::Connection, streaming: tokio::sync::oneshot::Sender<()>) {
        let (mut sink, mut frames, mut subscriber) = greet(connection, self.site.clone(), self.begun).await;
        let mut streaming = Some(streaming);
        let begun = tokio::time::Instant::from_std(self.begun);
        let mut alarm = std::pin::pin!(tokio::time::sleep_until(begun));
        loop {
            while let Some(notice) = subscriber.poll_notice() {
                match notice {
                    SubscriberNotice::Events(events) => {
                        let now = SystemClock.now();
                        let mut seen = self.seen.lock().unwrap();
                        for received in &events {
                            let late = now.since(received.event.time).as_micros();
                            seen.push((received.offset.seq, late.try_into().unwrap()));
                        }
                        self.appends.fetch_add(1, Ordering::Relaxed);
                        self.arrivals.fetch_add(events.len() as u64, Ordering::Relaxed);
                        let last = events.last().unwrap().offset;
                        subscriber.handle_durable(last);
                        subscriber.handle_applied(last);
                        subscriber.handle_complete(last);
                    }
                    SubscriberNotice::Ended(why) => panic!("{}: {why}", self.site),
                    _ => {}
                }
            }
            if subscriber.state() == SubscriberState::Streaming
                && let Some(streaming) = streaming.take()
            {
                let _ = streaming.send(());
            }
            while let Some(frame) = subscriber.poll_transmit(self.begun.elapsed()) {
                if sink.send(&frame).await.is_err() {
                    return;
                }
            }
            let wake_at = subscriber.poll_timeout(self.begun.elapsed()).map(|at| begun + at);
            if let Some(at) = wake_at.filter(|at| *at != alarm.deadline()) {
                alarm.as_mut().reset(at);
            }
            let incoming = tokio::select! {
                biased;
                incoming = frames.incoming() => Some(incoming),
                () = alarm.as_mut(), if wake_at.is_some() => None,
            };
            let now = self.begun.elapsed();
            match incoming {
                Some(Ok(Incoming::Frame(frame))) => subscriber.handle_frame(now, frame),
                Some(Ok(Incoming::Bytes)) => subscriber.handle_activity(now),
                Some(Ok(Incoming::End) | Err(_)) => return,
                None => subscriber.handle_timeout(now),
            }
        }
    }
}
