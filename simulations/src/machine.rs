//! The machines: what of them outlives a crash, and how a process starts on one. What runs is the
//! real thing, wired as `outport::app` wires it, but for listeners, tokens and the command line.

use outport::watch;
use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use outport::{
    auth::{authority::site_of, tls},
    clock::{Clock as _, SharedClock},
    fetch::{
        FlightMetrics, FlightOptions, Flights, Upstream,
        primary::{QuicUpstream, QuicUpstreamOptions},
        quic::{self, Network as _, TransportOptions},
    },
    index::{Index, IndexOptions, Opened},
    log::{Log, LogOptions, Retention, Stepper, faulty::FaultyDisk},
    policy::{Keep, Policy, PolicyRule},
    primary::{
        fleet::Fleet,
        log_stream::LogPublisher,
        publisher::{Admit, Publisher},
        requests::Answerer,
        source::{OwnSource, PrimaryIdentity, Relays, Source},
    },
    process::{self, Simulated},
    registry::{
        Edge, Intents, Journal, Past, PullMetrics, PullRules, PullService, PushLimits, PushService,
        SessionView, Site,
        collect::Collector,
        journal::{History, JournalOptions, Origin},
    },
    secondary::{
        dial::Dialer,
        downstream::Downstream,
        memory::Memory,
        prefetch::{Prefetch, PrefetchOptions, Progress},
        subscriber::{Subscription, SubscriptionOptions, SubscriptionParts},
    },
    shutdown::Shutdown,
    store::{Store, StoreOptions},
    telemetry::Metrics,
};
use outport_proto::frame::{ALPN, Keys};
use tokio_util::sync::CancellationToken;

use crate::{
    Broken,
    blobs::BlobDisk,
    clock::MachineClock,
    identities::{identities, site_name},
    world::World,
};

const CLUSTER: &str = "world";
const REPLICATION_PORT: u16 = 7000;
/// How long a blob stays that no repository names any more.
const GRACE: Duration = Duration::from_secs(3);
/// A node that cannot start is tried again.
const START_RETRY: Duration = Duration::from_millis(700);

/// A machine.
pub(crate) struct Machine {
    /// 0 is the primary's; the others are sites.
    pub(crate) number: usize,
    pub(crate) host: IpAddr,
    pub(crate) clock: Arc<MachineClock>,
    root: PathBuf,
    state: Mutex<State>,
}

/// What of a machine changes.
pub(crate) struct State {
    pub(crate) log: FaultyDisk,
    pub(crate) snapshots: FaultyDisk,
    pub(crate) intents: FaultyDisk,
    /// Counts power cuts.
    boots: u64,
    pub(crate) blobs: Arc<BlobDisk>,
    /// Counts its starts.
    pub(crate) life: u64,
    /// What its log held for sure when it last ran, and in which history.
    pub(crate) durable: crate::oracle::Mark,
    process: Option<Simulated>,
    running: Option<Arc<Running>>,
    pub(crate) history: History,
}

/// What runs on a machine between a start and a crash.
pub(crate) struct Running {
    pub(crate) life: u64,
    pub(crate) process: Simulated,
    /// Cancelled when it is killed: whoever waits for an answer gets none.
    pub(crate) dead: CancellationToken,
    pub(crate) journal: Journal,
    pub(crate) pull: PullService,
    pub(crate) role: Role,
    collector: Collector,
    shutdown: Shutdown,
}

impl Running {
    /// Collects garbage now.
    pub(crate) fn collect(&self) {
        let (collector, shutdown) = (self.collector.clone(), self.shutdown.clone());
        drop(tokio::spawn(self.process.run(async move { drop(collector.start(false, &shutdown)) })));
    }
}

pub(crate) enum Role {
    Primary { push: PushService },
    Site { session: SessionView, intents: Intents, progress: watch::Receiver<Progress> },
}

impl Machine {
    pub(crate) fn new(number: usize, root: PathBuf, clock: MachineClock) -> Self {
        let state = State {
            log: FaultyDisk::new(),
            snapshots: FaultyDisk::new(),
            intents: FaultyDisk::new(),
            boots: 0,
            blobs: Arc::default(),
            life: 0,
            durable: crate::oracle::Mark::default(),
            process: None,
            running: None,
            history: History::Continues,
        };
        let host = IpAddr::V4(Ipv4Addr::new(10, 0, 0, u8::try_from(number + 1).unwrap_or(u8::MAX)));
        Self { number, host, clock: Arc::new(clock), root, state: Mutex::new(state) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What runs on it, if it is up.
    pub(crate) fn running(&self) -> Option<Arc<Running>> {
        self.state().running.clone()
    }

    fn shared_clock(&self) -> SharedClock {
        Arc::clone(&self.clock) as SharedClock
    }

    /// Directories move with every life: what a killed process still does to its own leads nowhere.
    pub(crate) fn dir(&self, life: u64) -> PathBuf {
        self.root.join(format!("machine-{}-{life}", self.number))
    }

    fn is_primary(&self) -> bool {
        self.number == 0
    }

    pub(crate) fn name(&self) -> String {
        if self.is_primary() { "the primary".to_owned() } else { format!("site {}", self.number - 1) }
    }
}

impl World {
    /// Starts what runs on a machine, unless it is on. Tries again until it is up.
    pub(crate) fn start(self: &Arc<Self>, number: usize) {
        let machine = &self.machines[number];
        let (process, life) = {
            let mut state = machine.state();
            if state.process.is_some() {
                return;
            }
            state.life += 1;
            let process = self.options.process(self.random.number());
            state.process = Some(process.clone());
            (process, state.life)
        };
        if life > 1 {
            self.report().restarts += 1;
        }
        let (world, inside) = (Arc::clone(self), process.clone());
        let up = process.run(async move {
            loop {
                match world.bring_up(number, life, &inside).await {
                    Ok(running) => {
                        let running = Arc::new(running);
                        world.watch_states(number, &running);
                        world.machines[number].state().running = Some(running);
                        break;
                    }
                    Err(error) => {
                        tracing::warn!(number, %error, "a node does not start");
                        if let Ok(broken) = error.downcast::<Broken>() {
                            world.broken(broken);
                        }
                        tokio::time::sleep(START_RETRY).await;
                    }
                }
            }
        });
        drop(tokio::spawn(up));
    }

    async fn bring_up(
        self: &Arc<Self>,
        number: usize,
        life: u64,
        process: &Simulated,
    ) -> anyhow::Result<Running> {
        let machine = &self.machines[number];
        let dir = machine.dir(life);
        fs::create_dir_all(&dir).context("make a directory")?;
        let (log_disk, snapshots, blobs, durable, history) = {
            let state = machine.state();
            let history = state.history;
            (state.log.clone(), state.snapshots.clone(), Arc::clone(&state.blobs), state.durable, history)
        };
        let shutdown = Shutdown::new();
        let options = JournalOptions {
            log: LogOptions { segment_bytes_max: 16 * 1024, recent_bytes_max: 8 * 1024 },
            index: IndexOptions { hot_bytes_max: 64 * 1024, cache_bytes_max: 0 },
            origin: if machine.is_primary() { Origin::Own } else { Origin::Followed },
            history,
            retention: self.retention,
            snapshot_log_bytes: 24 * 1024,
            tail_events_max: self.tail_events_max,
            ..JournalOptions::default()
        };
        let opened = Log::open_stepped(Arc::new(log_disk), options.log.clone(), machine.shared_clock());
        let (log, stepper, _) = opened.context("open the log")?;
        {
            let mut oracle = self.oracle();
            let needed = if machine.is_primary() {
                if history == History::Continues { oracle.head() } else { 0 }
            } else if oracle.is_dead(durable) {
                0
            } else {
                oracle.seq(durable)
            };
            oracle.check_log(&log, &machine.name(), needed)?;
            if machine.is_primary() {
                if history == History::Restored {
                    oracle.rewind(log.head().seq);
                }
                oracle.observe(&log)?;
            }
        }
        self.write_log(number, log.clone(), stepper);
        let index = (Index::in_memory(options.index.clone()), Opened::Empty("in memory".to_owned()));
        let journal = Journal::over(log, index, Arc::new(snapshots), options, &shutdown).await;
        let journal = journal.context("open the journal")?;
        machine.state().history = History::Continues;
        let store = StoreOptions { limit_bytes: None, clock: machine.shared_clock(), witness: Some(blobs) };
        let store = Store::open_with(&dir.join("store"), store).context("open the store")?.0;
        let rules = PullRules { remembered_max: self.remembered_max, ..PullRules::default() };
        let site = Site {
            index: journal.index().clone(),
            store: store.clone(),
            clock: machine.shared_clock(),
            rules,
            metrics: Metrics::default().register(PullMetrics::new),
        };
        let collector = Collector::new(journal.index().clone(), store.clone(), GRACE);
        shutdown.spawn(collector.clone().run(shutdown.clone()));
        let dead = CancellationToken::new();
        let (pull, role) = if machine.is_primary() {
            let push = self.serve_primary(machine, &journal, &store, &shutdown)?;
            (PullService::primary(site), Role::Primary { push })
        } else {
            self.follow_primary(machine, life, site, &journal, &store, &shutdown)?
        };
        Ok(Running { life, process: process.clone(), dead, journal, pull, role, collector, shutdown })
    }

    /// The log's writer, with a disk that takes its time.
    fn write_log(self: &Arc<Self>, number: usize, log: Log, mut stepper: Stepper) {
        let world = Arc::clone(self);
        let log = if number == 0 { Some(log) } else { None };
        drop(process::spawn(async move {
            while stepper.asked().await {
                tokio::time::sleep(world.random.micros(100, 30_000)).await;
                stepper.step();
                if let Some(log) = &log {
                    let observed = world.oracle().observe(log);
                    if let Err(broken) = observed {
                        world.broken(broken);
                    }
                }
            }
        }));
    }

    fn serve_primary(
        &self,
        machine: &Machine,
        journal: &Journal,
        store: &Store,
        shutdown: &Shutdown,
    ) -> anyhow::Result<PushService> {
        let clock = machine.shared_clock();
        let limits = PushLimits::default();
        let push =
            PushService::new(journal.clone(), store.clone(), Arc::clone(&clock), limits, shutdown.clone());
        let names: Vec<_> = (0..self.machines.len() - 1).map(site_name).collect::<anyhow::Result<_>>()?;
        let (_, keys_changed) = watch::channel(1);
        let relays = Relays::new(BTreeMap::new());
        let source: Arc<dyn Source> = Arc::new(OwnSource {
            identity: PrimaryIdentity {
                cluster: CLUSTER.to_owned(),
                token_realm: String::new(),
                token_service: String::new(),
                public_url: String::new(),
                path: Vec::new(),
            },
            journal: journal.clone(),
            clock,
            keys_of: Arc::new(|_| {
                Ok(Keys {
                    token_jwks: String::new(),
                    token_issuer: String::new(),
                    public_pull: Vec::new(),
                    seal: Vec::new(),
                    generation: 1,
                })
            }),
            keys_changed,
            relays: relays.clone(),
        });
        let publisher = LogPublisher {
            source: Arc::clone(&source),
            journal: journal.clone(),
            fleet: Fleet::new(names.iter().cloned(), relays),
        };
        let admit: Admit = Arc::new(move |certificate| {
            site_of(certificate).filter(|site| names.contains(site)).ok_or_else(|| "not a site".to_owned())
        });
        let identities = identities()?;
        let authorities = [identities.authority.clone()];
        let tls = tls::node_server(&identities.primary, &authorities, &[ALPN]).context("set up TLS")?;
        let server = quic::server_config(&tls, &transport(TransportOptions::upstream()))?;
        let address = SocketAddr::new(machine.host, REPLICATION_PORT);
        let endpoint = self.network.of(machine.host).endpoint(address, Some(server), DATAGRAM_BYTES)?;
        let answerer = Answerer::new(journal.clone(), store.clone(), source);
        shutdown.spawn(Publisher::new(admit, publisher, answerer, 64).serve(endpoint, shutdown.clone()));
        Ok(push)
    }

    fn follow_primary(
        &self,
        machine: &Machine,
        life: u64,
        site: Site,
        journal: &Journal,
        store: &Store,
        shutdown: &Shutdown,
    ) -> anyhow::Result<(PullService, Role)> {
        let dir = machine.dir(life);
        let (link, upstream) = QuicUpstream::new(&QuicUpstreamOptions::default());
        let flights = Flights::new(
            store.clone(),
            Arc::new(upstream.clone()),
            shutdown.clone(),
            FlightOptions::default(),
            FlightMetrics::default(),
        );
        let (session_feed, session) = SessionView::new();
        let memory = Memory::open(&dir)?;
        let past = if memory.last().is_none() { Past::None } else { Past::Perhaps };
        let (disk, boot) = {
            let state = machine.state();
            (state.intents.clone(), state.boots.to_string())
        };
        let owner = (site_name(machine.number - 1)?, 1000);
        let intents = Intents::open_on(Arc::new(disk), Some(&boot), past, owner, machine.clock.now());
        let edge = Edge {
            upstream: Arc::new(upstream) as Arc<dyn Upstream>,
            flights: flights.clone(),
            session: session.clone(),
            intents: intents.clone(),
            shutdown: shutdown.clone(),
        };
        let pull = PullService::secondary(site, edge);
        pull.follow(journal, shutdown);
        // Every other site copies ahead.
        let keep = if machine.number % 2 == 1 { Keep::Eager } else { Keep::Lazy };
        let rule = PolicyRule { keep: Some(keep), ..PolicyRule::default() };
        let policy = Arc::new(Policy::new(&[rule]).context("make a policy")?);
        let (prefetch, progress) =
            Prefetch::new(&dir, journal.clone(), store.clone(), policy, flights, PrefetchOptions::default());
        let name = site_name(machine.number - 1)?;
        let identities = identities()?;
        let authorities = [identities.authority.clone()];
        let identity = identities.sites.get(machine.number - 1).context("find a site's identity")?;
        let tls = tls::node_client(identity, &authorities, &[ALPN]).context("set up TLS")?;
        let (log, bulk) = (transport(TransportOptions::log()), transport(TransportOptions::bulk()));
        let dialer = Dialer::new(&tls, &log, &bulk)?.over(Arc::new(self.network.of(machine.host)));
        let parts = SubscriptionParts {
            dialer,
            journal: journal.clone(),
            store: store.clone(),
            memory,
            clock: machine.shared_clock(),
            progress: progress.clone(),
            link,
            session: session_feed,
            on_identity: Arc::new(|_| {}),
            downstream: Downstream::default(),
            reports: None,
        };
        let primary = SocketAddr::new(self.machines[0].host, REPLICATION_PORT);
        let options = SubscriptionOptions {
            site: name,
            node: String::new(),
            primaries: vec![primary.to_string()],
            staleness_bound_ms: 1000,
        };
        let (subscription, _) = Subscription::new(options, parts);
        shutdown.spawn(subscription.run(shutdown.clone()));
        shutdown.spawn(prefetch.run(shutdown.clone()));
        Ok((pull, Role::Site { session, intents, progress }))
    }

    /// Ends what runs on a machine as SIGKILL does, or as a power cut: then what was not synced
    /// is perhaps lost.
    pub(crate) fn kill(&self, number: usize, loses_power: bool) {
        let machine = &self.machines[number];
        let mut state = machine.state();
        let Some(process) = state.process.take() else { return };
        if let Some(running) = state.running.take() {
            running.dead.cancel();
            state.durable = self.oracle().mark(running.journal.log().head().seq);
        }
        let seed = self.random.number();
        let after = |disk: &FaultyDisk| if loses_power { disk.power_on(seed) } else { disk.after_kill() };
        (state.log, state.snapshots) = (after(&state.log), after(&state.snapshots));
        state.intents = after(&state.intents);
        state.boots += u64::from(loses_power);
        self.network.remove(machine.host);
        let (was, now) = (machine.dir(state.life), machine.dir(state.life + 1));
        if fs::rename(&was, &now).is_ok() && loses_power {
            state.blobs.cut_power(&was, &now, &self.random);
        }
        state.blobs = Arc::default();
        process.kill();
    }
}

/// Largest datagram of the world: what every path carries, so that nobody looks for more.
const DATAGRAM_BYTES: u16 = 1200;

fn transport(options: TransportOptions) -> TransportOptions {
    TransportOptions { datagram_bytes_max: DATAGRAM_BYTES, ..options }
}

/// The log is cut down to little, or kept.
pub(crate) fn retention(is_short: bool) -> Retention {
    if is_short { Retention { bytes: 32 * 1024, age: Duration::from_secs(60) } } else { Retention::UNLIMITED }
}
