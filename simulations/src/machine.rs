//! The machines: what of them outlives a crash, and how a process starts on one. What runs is the
//! real thing, but for listeners, tokens and the command line.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use outport::{
    clock::{Clock as _, SharedClock},
    index::{Index, IndexOptions, Opened},
    log::{Log, LogOptions, Retention, Stepper, faulty::FaultyDisk},
    process::{self, Simulated},
    registry::{
        Intents, Journal, PullMetrics, PullRules, PullService, PushService, SessionView, Site,
        collect::Collector,
        journal::{History, JournalOptions, Origin},
    },
    secondary::prefetch::Progress,
    shutdown::Shutdown,
    store::{Store, StoreOptions},
    telemetry::Metrics,
    watch,
};
use outport_proto::{Digest, RepoName};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{Broken, blobs::BlobDisk, clock::MachineClock, world::World};

/// Bytes of blobs in a store that has too little room for all of them.
const ROOM: u64 = 250_000;
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
    pub(crate) boots: u64,
    pub(crate) blobs: Arc<BlobDisk>,
    /// Until then every sync of its log takes long.
    pub(crate) slow_until: Option<Instant>,
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
    pub(crate) store: Store,
    collector: Collector,
    shutdown: Shutdown,
}

impl Running {
    /// Whether a blob that a repository of it links is nowhere.
    pub(crate) fn has_lost(&self, repo: &RepoName, digest: &Digest) -> bool {
        let is_linked = self.journal.index().link(repo, digest).is_ok_and(|link| link.is_some());
        is_linked && self.store.size(digest).is_ok_and(|size| size.is_none())
    }

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
            slow_until: None,
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

    pub(crate) fn shared_clock(&self) -> SharedClock {
        Arc::clone(&self.clock) as SharedClock
    }

    /// Directories move with every life: what a killed process still does to its own leads nowhere.
    pub(crate) fn dir(&self, life: u64) -> PathBuf {
        self.root.join(format!("machine-{}-{life}", self.number))
    }

    /// Every other site does.
    pub(crate) fn copies_ahead(&self) -> bool {
        self.number % 2 == 1
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
                        tracing::warn!(number, error = format!("{error:#}"), "a node does not start");
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
        if history == History::Restored {
            self.pass_the_newest_epoch(machine).await;
        }
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
                    oracle.rewind(Instant::now(), &log);
                }
                oracle.observe(&log)?;
            }
        }
        self.write_log(number, log.clone(), stepper);
        let index = (Index::in_memory(options.index.clone()), Opened::Empty("in memory".to_owned()));
        let journal = Journal::over(log, index, Arc::new(snapshots), options, &shutdown).await;
        let journal = journal.context("open the journal")?;
        machine.state().history = History::Continues;
        // Sites that copy ahead need room for everything.
        let limit_bytes = (self.is_tight && !machine.is_primary() && !machine.copies_ahead()).then_some(ROOM);
        let store = StoreOptions { limit_bytes, clock: machine.shared_clock(), witness: Some(blobs) };
        let store = Store::open_with(&dir.join("store"), store).context("open the store")?.0;
        let rules = PullRules { remembered_max: self.remembered_max, ..PullRules::default() };
        let site = Site {
            index: journal.index().clone(),
            store: store.clone(),
            clock: machine.shared_clock(),
            rules,
            metrics: Metrics::default().register(PullMetrics::new),
        };
        let collector = Collector::new(journal.index().clone(), store.clone(), self.grace);
        shutdown.spawn(collector.clone().run(shutdown.clone()));
        let dead = CancellationToken::new();
        let (pull, role) = if machine.is_primary() {
            let push = self.serve_primary(machine, &journal, &store, &shutdown)?;
            (PullService::primary(site), Role::Primary { push })
        } else {
            self.follow(machine, life, site, &journal, &shutdown)?
        };
        Ok(Running { life, process: process.clone(), dead, journal, pull, role, store, collector, shutdown })
    }

    /// Two copies that are restored in one second begin epochs of one number: sites tell them apart and
    /// wait for the operator, who does not live here.
    async fn pass_the_newest_epoch(&self, machine: &Machine) {
        while machine.clock.now().as_secs() <= self.oracle().newest_epoch() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The log's writer, with a disk that takes its time.
    fn write_log(self: &Arc<Self>, number: usize, log: Log, mut stepper: Stepper) {
        let world = Arc::clone(self);
        let log = if number == 0 { Some(log) } else { None };
        drop(process::spawn(async move {
            while stepper.asked().await {
                let is_slow =
                    world.machines[number].state().slow_until.is_some_and(|until| Instant::now() < until);
                let longest = if is_slow { 3_000_000 } else { 30_000 };
                tokio::time::sleep(world.random.micros(100, longest)).await;
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

    /// Ends what runs on a machine as SIGKILL does, or as a power cut: then what was not synced
    /// is perhaps lost.
    pub(crate) fn kill(&self, number: usize, loses_power: bool) {
        let machine = &self.machines[number];
        let mut state = machine.state();
        let process = state.process.take();
        // The power may have gone by itself, in the midst of a write.
        let loses_power = loses_power || state.log.is_off();
        if process.is_none() && !loses_power {
            return;
        }
        if let Some(running) = state.running.take() {
            running.dead.cancel();
            state.durable = self.oracle().mark_at(running.journal.log().head());
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
        if let Some(process) = process {
            process.kill();
        }
    }
}

/// The log is cut down to little, or kept.
pub(crate) fn retention(is_short: bool) -> Retention {
    if is_short { Retention { bytes: 32 * 1024, age: Duration::from_secs(60) } } else { Retention::UNLIMITED }
}
