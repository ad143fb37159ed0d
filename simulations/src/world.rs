//! One world: what there is, and how it passes.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use outport::{
    bounds,
    log::Retention,
    process,
    registry::{Want, journal::JournalError},
};
use outport_proto::{Digest, Reference};
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    Broken, Options, Outcome, Report,
    clients::{Client, REPOS, TAGS, Token},
    clock::MachineClock,
    content::images,
    decisions::{Decisions, Listener},
    identities::SITES_MAX,
    machine::{Machine, Role, Running, retention},
    network::Network,
    oracle::{Oracle, What},
    random::Random,
};

/// After the last fault everything must be well within this: an idle connection is noticed after
/// 3 s, the longest backoff is 15 s and the longest pause before a copy is tried again 30 s.
const RECOVERY_MAX: Duration = Duration::from_secs(120);
/// How often a disk that failed is asked again.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// The world is busy for so long at the beginning of each of its cycles.
const BUSY: Duration = Duration::from_secs(60);
const CYCLE: Duration = Duration::from_secs(1200);
/// In half of the worlds; in the others what no repository names goes at once.
const GRACE: Duration = Duration::from_secs(3);

/// Everything there is.
pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) begun: Instant,
    pub(crate) random: Random,
    pub(crate) network: Network,
    /// The primary's, then those of the sites.
    pub(crate) machines: Vec<Machine>,
    /// Which machine each of them follows; all end at the primary, which follows none.
    pub(crate) upstreams: Vec<usize>,
    pub(crate) retention: Retention,
    /// How long a blob stays that no repository names any more.
    pub(crate) grace: Duration,
    /// Whether sites that copy nothing ahead have room for some of the blobs only.
    pub(crate) is_tight: bool,
    pub(crate) remembered_max: usize,
    /// Of how many write intents a site knows what they announce.
    pub(crate) intents_max: usize,
    pub(crate) tail_events_max: u64,
    /// Nothing goes wrong and nobody acts any more.
    pub(crate) calm: CancellationToken,
    /// Blobs of the primary whose bits are flipped, until a good copy is there again.
    rotten: Mutex<BTreeSet<Digest>>,
    report: Arc<Mutex<Report>>,
    oracle: Mutex<Oracle>,
    broken: Mutex<Option<(Duration, Broken)>>,
    is_broken: AtomicBool,
    broke: CancellationToken,
    _files: TempDir,
}

/// Runs a world on this thread.
pub(crate) fn run(options: &Options) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.context("make a runtime")?;
    bounds::forget();
    let outcome = runtime.block_on(async {
        let begun = Instant::now();
        let decisions = Decisions::default();
        let listener = Listener::new(Arc::clone(&decisions), begun, options.prints);
        let _listening = tracing::subscriber::set_default(listener);
        let world = Arc::new(World::new(options, begun)?);
        world.pass().await;
        Ok(world.outcome(&decisions))
    });
    // Whatever still waits goes without another word.
    runtime.shutdown_background();
    outcome
}

impl World {
    fn new(options: &Options, begun: Instant) -> anyhow::Result<Self> {
        let random = Random::new(options.seed, 0);
        let report = Arc::new(Mutex::new(Report { worlds: 1, ..Report::default() }));
        let network = Network::new(options.seed, begun, Arc::clone(&report));
        let memory = std::path::Path::new("/dev/shm");
        let files = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let files = files.context("make a directory")?;
        let sites = options.sites.unwrap_or_else(|| match random.below(10) {
            0..6 => 2,
            6..8 => 3,
            8 => 4,
            _ => 5 + random.index(SITES_MAX - 4),
        });
        let machines = (0..=sites.clamp(1, SITES_MAX)).map(|number| {
            let day = 24 * 3600 * 1_000_000;
            let ahead = i64::try_from(random.below(2 * day)).unwrap_or_default() - day as i64;
            let drift = i64::try_from(random.below(400)).unwrap_or_default() - 200;
            let ahead = if number == 0 { 0 } else { ahead };
            Machine::new(number, files.path().to_owned(), MachineClock::new(begun, ahead, drift))
        });
        let machines: Vec<_> = machines.collect();
        let upstreams = upstreams(machines.len(), &random);
        Ok(Self {
            machines,
            upstreams,
            retention: retention(random.percent(50)),
            grace: if random.percent(50) { Duration::ZERO } else { GRACE },
            is_tight: random.percent(50),
            remembered_max: if random.percent(50) { 0 } else { [5, 50][random.index(2)] },
            intents_max: if random.percent(50) { 3 } else { 1000 },
            tail_events_max: if random.percent(50) { 25 } else { u64::MAX },
            options: options.clone(),
            begun,
            random,
            network,
            calm: CancellationToken::new(),
            rotten: Mutex::default(),
            report,
            oracle: Mutex::default(),
            broken: Mutex::default(),
            is_broken: AtomicBool::new(false),
            broke: CancellationToken::new(),
            _files: files,
        })
    }

    /// Lets the world pass until its time is over and everything is well again, or a promise is broken.
    async fn pass(self: &Arc<Self>) {
        drop(tokio::spawn(self.network.clone().deliver()));
        for number in 0..self.machines.len() {
            self.start(number);
        }
        drop(tokio::spawn(Arc::clone(self).watch_bounds()));
        let clients = self.options.clients.unwrap_or_else(|| 3 + self.random.index(5));
        let mut living = tokio::task::JoinSet::new();
        for number in 0..clients {
            living.spawn(Client::new(Arc::clone(self), number).live());
        }
        drop(tokio::spawn(Arc::clone(self).fail()));
        let life = async {
            let end = tokio::time::sleep(self.options.duration);
            tokio::pin!(end);
            loop {
                tokio::select! {
                    biased;
                    Some(ended) = living.join_next() => self.note_end(ended),
                    () = &mut end => break,
                }
            }
            self.calm.cancel();
            self.heal();
            while let Some(ended) = living.join_next().await {
                self.note_end(ended);
            }
            // Restores and starts that were under way have come to pass by now.
            tokio::time::sleep(Duration::from_secs(5)).await;
            self.heal();
            if let Err(broken) = self.recover().await {
                self.broken(broken);
            }
        };
        tokio::select! {
            biased;
            () = self.broke.cancelled() => {}
            () = life => {}
        }
    }

    /// However full anything gets, it has its bound.
    async fn watch_bounds(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            for (what, fill) in bounds::fills() {
                if fill.is_over() {
                    let (most, bound) = (fill.most, fill.bound);
                    self.broken(Broken(format!("not bounded: {most} {what}, and {bound} may be")));
                }
            }
        }
    }

    fn note_end(&self, ended: Result<Result<(), Broken>, tokio::task::JoinError>) {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(broken)) => self.broken(broken),
            Err(error) => self.broken(Broken(format!("a client crashed: {error}"))),
        }
    }

    /// All is healed: every site gets to the primary's state, with all blobs it keeps, and shows it.
    async fn recover(self: &Arc<Self>) -> Result<(), Broken> {
        let by = Instant::now() + RECOVERY_MAX;
        while let Some(reason) = self.unwell() {
            if Instant::now() >= by {
                return Err(Broken(format!("it does not recover: {reason}")));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let now = self.oracle().acknowledged_at(Instant::now());
        let token = Token { acknowledged: now, ..Token::default() };
        for number in 1..self.machines.len() {
            for (repo, tag) in (0..REPOS).flat_map(|repo| (0..TAGS).map(move |tag| (repo, tag))) {
                let repo = format!("team/app-{repo}").parse().map_err(|_| Broken("a name".to_owned()))?;
                let tag = format!("v{tag}").parse().map_err(|_| Broken("a tag".to_owned()))?;
                let what = What::Manifest(Reference::Tag(tag));
                self.pull(number, repo, what, Want::Content, token, None, None).await?;
            }
            let image = &images()[self.random.index(images().len())];
            for blob in image.blobs {
                let what = What::Blob(crate::content::blobs()[blob].digest);
                let repo = "team/app-0".parse().map_err(|_| Broken("a name".to_owned()))?;
                self.pull(number, repo, what, Want::Content, token, None, None).await?;
            }
        }
        Ok(())
    }

    /// What is not as it should be once all is healed.
    fn unwell(&self) -> Option<String> {
        let Some(primary) = self.machines[0].running() else { return Some("the primary is down".to_owned()) };
        let head = primary.journal.log().head();
        let state = primary.journal.index().state_hash();
        for machine in &self.machines[1..] {
            let name = machine.name();
            let Some(running) = machine.running() else { return Some(format!("{name} is down")) };
            let Role::Site { session, progress, .. } = &running.role else { continue };
            if !session.now().live {
                return Some(format!("{name} has no live session"));
            }
            if running.journal.index().state_hash() != state {
                let (at, of) = (running.journal.applied(), state.1);
                return Some(format!("{name} is at {at} and not in the primary's state at {of}"));
            }
            let complete = progress.borrow().complete;
            if complete < head {
                return Some(format!("{name} is complete up to {complete} only of {head}"));
            }
        }
        None
    }

    /// Compares what a node's index shows with the truth, whenever it changes.
    pub(crate) fn watch_states(self: &Arc<Self>, number: usize, running: &Arc<Running>) {
        let (world, journal) = (Arc::clone(self), running.journal.clone());
        let mut applied = journal.watch_applied();
        drop(process::spawn(async move {
            loop {
                if journal.is_whole() {
                    world.compare(number, journal.index().state_hash());
                }
                if applied.changed().await.is_err() {
                    return;
                }
            }
        }));
        let (world, journal, running) = (Arc::clone(self), running.journal.clone(), Arc::clone(running));
        drop(process::spawn(async move {
            let error = journal.failure().await;
            tracing::warn!(number, %error, "a journal failed");
            drop(tokio::spawn(world.start_again(number, running, error)));
        }));
    }

    /// Whoever watches over processes starts a failed one again, once it ends: that is when it helps.
    async fn start_again(self: Arc<Self>, number: usize, failed: Arc<Running>, error: JournalError) {
        let runs = || self.machines[number].running().is_some_and(|now| now.life == failed.life);
        while runs()
            && matches!(error, JournalError::Log(_))
            && let Err(reason) = failed.journal.log().probe()
        {
            tracing::warn!(number, %reason, "the disk does not make the log durable");
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
        if runs() {
            self.kill(number, false);
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.start(number);
        }
    }

    fn compare(&self, number: usize, (hash, at): ([u8; 32], outport_proto::Offset)) {
        let truth = self.oracle().hash_at(at);
        self.report().states_compared += 1;
        let name = self.machines[number].name();
        match truth {
            Some(truth) if truth == hash => {}
            Some(_) => self.broken(Broken(format!("at {at} {name} is not in the state the log leads to"))),
            None => self.broken(Broken(format!("{name} shows event {at}, which the primary never had"))),
        }
    }

    /// Whether much happens now.
    pub(crate) fn is_busy(&self) -> bool {
        self.begun.elapsed().as_secs() % CYCLE.as_secs() < BUSY.as_secs()
    }

    /// How long a client does nothing.
    pub(crate) fn rest(&self, random: &Random) -> Duration {
        if self.is_busy() { random.millis(1, 500) } else { random.millis(500, 120_000) }
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.calm.is_cancelled()
    }

    /// A promise was not kept. The first one counts.
    pub(crate) fn broken(&self, broken: Broken) {
        if !self.is_broken.swap(true, Ordering::Relaxed) {
            tracing::warn!(%broken, "BROKEN");
            *lock(&self.broken) = Some((self.begun.elapsed(), broken));
            self.broke.cancel();
        }
    }

    pub(crate) fn oracle(&self) -> MutexGuard<'_, Oracle> {
        lock(&self.oracle)
    }

    pub(crate) fn rotten(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        lock(&self.rotten)
    }

    pub(crate) fn report(&self) -> MutexGuard<'_, Report> {
        lock(&self.report)
    }

    pub(crate) fn count_pull(&self, kind: &'static str, how: &'static str) {
        *self.report().pulls.entry((kind, how)).or_default() += 1;
    }

    pub(crate) fn count_write(&self, kind: &'static str, how: &'static str) {
        *self.report().writes.entry((kind, how)).or_default() += 1;
    }

    fn outcome(&self, decisions: &Decisions) -> Outcome {
        let mut report = self.report().clone();
        report.time = self.begun.elapsed();
        report.events = self.oracle().head();
        report.fills = bounds::fills();
        report.rules = std::mem::take(&mut *lock(decisions));
        self.network.note(&[report.pulls(), report.events]);
        for count in report.rules.values() {
            self.network.note(&[*count]);
        }
        Outcome { report, trace: self.network.trace(), broken: lock(&self.broken).clone() }
    }
}

/// In half of the worlds some sites follow others, at most two in between them and the primary.
fn upstreams(machines: usize, random: &Random) -> Vec<usize> {
    let relayed = if random.percent(50) { 40 } else { 0 };
    let mut upstreams = vec![0; machines];
    for site in 2..machines {
        let upstream = 1 + random.index(site - 1);
        let is_near = upstreams[upstream] == 0 || upstreams[upstreams[upstream]] == 0;
        if random.percent(relayed) && is_near {
            upstreams[site] = upstream;
        }
    }
    upstreams
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
