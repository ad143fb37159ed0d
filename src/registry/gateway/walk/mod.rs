//! Reconciling: walking everything the registry has and recording what the log does not tell.
//!
//! A walk compares what each tag names, not names alone, and looks at what the log has and the registry
//! does not list any more. It runs after the start (which backfills a registry that was here before), on a
//! timer, after doubts, and on demand. Where it stopped it goes on, also after a restart.
//!
//! What an error hides is not gone: a refusal, a failure or an answer of something in front of the registry
//! stops the walk and raises an alarm. So does a registry that suddenly lacks much of what it had:
//! its storage may not be mounted.

mod memory;
mod pace;
mod repositories;
mod repository;
mod standing;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use outport_proto::{Digest, Offset, Reference, RepoName, Tag};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep_until},
};

pub use self::repositories::Listed;
use self::{
    memory::{Cursor, Memory},
    pace::Pace,
    standing::{By, Standing},
};
use super::{Gateway, GatewayError};
use crate::shutdown::Shutdown;

/// Repositories between two notes of how far a walk is.
const BATCH: usize = 64;
/// After a doubt a walk waits this long for others, so that many make one.
const DOUBT_REST: Duration = Duration::from_secs(10);
/// Walks over everything that doubts lead to are this far apart: anybody can raise doubts.
const DOUBT_BETWEEN: Duration = Duration::from_secs(300);
/// A walk that was stopped by an error is tried again after this at the earliest, and then more seldom.
const STOPPED_REST_MIN: Duration = Duration::from_secs(30);
/// Repositories in doubt at once; more are everything.
const DOUBTFUL_MAX: usize = 10_000;
/// Names in a report, of each kind.
const NAMED_MAX: usize = 10;
/// So many things in a row that the registry gives no answer about are not single ones.
const FAILED_IN_A_ROW_MAX: u64 = 20;

/// How walks go.
#[derive(Clone, Debug)]
pub struct ReconcileOptions {
    /// Time between the end of a walk and the next.
    pub interval: Duration,
    /// Looks at the registry a second, in all.
    pub requests_per_second: u32,
    /// Repositories at once.
    pub concurrency: usize,
    /// Where the names of repositories come from.
    pub listed: Listed,
    /// Whether the registry is expected to tell of everything by notifications.
    pub notified: bool,
    /// Tags and manifests that a walk removes at most without being told to: a registry that lacks more
    /// may have lost its storage.
    pub removals_max: u64,
}

/// What is to be walked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReconcileWanted {
    /// These repositories; all without any.
    pub repositories: Vec<RepoName>,
    /// Whether all that the registry lacks is to be removed, however much it is.
    pub accept_removals: bool,
}

/// How far a walk is, or what it came to: `/v1/reconcile`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReconcileReport {
    /// Which walk since the node started; 0 before the first.
    pub pass: u64,
    /// Whether it goes on.
    pub running: bool,
    /// Whether no walk over everything has ever come to its end.
    pub is_backfill: bool,
    /// Repositories walked.
    pub repositories: u64,
    /// How many there are; `null` until they are listed.
    pub repositories_expected: Option<u64>,
    /// Tags and untagged manifests looked at.
    pub looked_at: u64,
    /// Of those, what the log did not have, or had otherwise.
    pub found: u64,
    /// What the log had and the registry does not have any more.
    pub gone: u64,
    /// What no site could serve, the first as `repository:tag: why`.
    pub unfit: u64,
    /// The first of those.
    pub unfit_names: Vec<String>,
    /// Of those, tags that named something else before, which sites go on to serve.
    #[serde(default)]
    pub stuck: u64,
    /// The first of those.
    #[serde(default)]
    pub stuck_names: Vec<String>,
    /// What the registry gave no answer about that makes sense.
    pub failed: u64,
    /// The first of those, as `repository:tag: why`.
    pub failed_names: Vec<String>,
    /// Changes of tags that were found and no notification has told of, since the start; always 0 without
    /// notifications, and before the walk that backfills has ended.
    pub missed: u64,
    /// When the last walk over everything ended, in seconds since the Unix epoch; `null` before.
    pub last_reconciled_at: Option<u64>,
    /// Changes that it had found: how far the log was from the registry.
    pub last_drift: Option<u64>,
    /// Why the last walk stopped; `null` when it came to its end.
    pub error: Option<String>,
}

/// Walks. Cloning gives another handle to the same.
#[derive(Clone)]
pub struct Reconciler {
    shared: Arc<Shared>,
}

struct Shared {
    gateway: Gateway,
    options: ReconcileOptions,
    memory: Memory,
    pace: Pace,
    report: Mutex<ReconcileReport>,
    wanted: Mutex<Option<ReconcileWanted>>,
    doubtful: Mutex<BTreeSet<RepoName>>,
    standing: Standing,
    /// Things in a row that there was no answer about.
    failed_in_a_row: AtomicU64,
    /// A walk over everything is wanted soon.
    doubt: Notify,
    /// A walk over some repositories is wanted soon.
    doubt_of_some: Notify,
    /// A walk is wanted now.
    now: Notify,
}

/// Why a walk stopped.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    #[error("the list of repositories: {0}")]
    List(String),
    #[error(
        "the registry lacks more than {0} tags and manifests that it had (gateway.reconcile.removals_max): if that \
         is right, say outport reconcile --accept-removals"
    )]
    Removals(u64),
    #[error("the node shuts down")]
    Shutdown,
    #[error("{0}")]
    Memory(std::io::Error),
    #[error("a walk broke off")]
    Crashed,
}

impl Reconciler {
    /// Walks the registry of `gateway`; `file` holds how far it came, which is of no use when the log is an
    /// older copy (`is_restored`).
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn new(
        gateway: Gateway,
        options: ReconcileOptions,
        file: PathBuf,
        is_restored: bool,
    ) -> std::io::Result<Self> {
        let memory = if is_restored { Memory::anew(file)? } else { Memory::open(file)? };
        let last = memory.last();
        if last.removals_refused {
            gateway.shared.budget.close();
        }
        // What the log has was true once; whether it is, only a walk can say.
        let has_past = gateway.shared.journal.log().head() > Offset::ZERO;
        gateway.shared.unsure.send_replace(last.reconciled_at.is_none() && has_past);
        let report = ReconcileReport {
            is_backfill: last.reconciled_at.is_none(),
            last_reconciled_at: last.reconciled_at,
            last_drift: last.drift,
            ..ReconcileReport::default()
        };
        let shared = Shared {
            pace: Pace::new(options.requests_per_second),
            gateway,
            options,
            memory,
            report: Mutex::new(report),
            wanted: Mutex::default(),
            doubtful: Mutex::default(),
            standing: Standing::default(),
            failed_in_a_row: AtomicU64::new(0),
            doubt: Notify::new(),
            doubt_of_some: Notify::new(),
            now: Notify::new(),
        };
        let this = Self { shared: Arc::new(shared) };
        let finds = this.clone();
        let doubts = this.clone();
        this.shared.gateway.on_give_up(move || doubts.doubt());
        this.shared
            .gateway
            .on_find(move |repo, reference| finds.found_unnoticed(repo, reference, By::Question));
        Ok(this)
    }

    /// Walks until shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        let mut rest = STOPPED_REST_MIN;
        // When everything is walked next, and what is in doubt of some repositories.
        let mut next = Instant::now();
        let mut next_of_some = None::<Instant>;
        let mut whole_at = None::<Instant>;
        loop {
            let first = next_of_some.map_or(next, |of_some| of_some.min(next));
            tokio::select! {
                biased;
                () = shutdown.requested() => return,
                () = self.shared.now.notified() => {}
                () = self.shared.doubt.notified() => {
                    let soon = Instant::now() + DOUBT_REST;
                    next = next.min(whole_at.map_or(soon, |at| soon.max(at + DOUBT_BETWEEN)));
                    continue;
                }
                () = self.shared.doubt_of_some.notified() => {
                    next_of_some = next_of_some.or(Some(Instant::now() + DOUBT_REST));
                    continue;
                }
                () = sleep_until(first) => {}
            }
            let is_due = Instant::now() >= next;
            let wanted = self.next_wanted(is_due);
            let is_whole = wanted.repositories.is_empty();
            if is_whole || !is_due {
                next_of_some = None;
            }
            let ended = self.walk(wanted, &shutdown).await;
            let now = Instant::now();
            whole_at = if is_whole { Some(now) } else { whole_at };
            match ended {
                Ok(()) if is_whole => {
                    rest = STOPPED_REST_MIN;
                    next = now + self.shared.options.interval;
                }
                Ok(()) => {}
                Err(Stopped::Shutdown) => return,
                Err(error) => {
                    tracing::error!(%error, "reconciling stopped");
                    next = if is_whole { now + rest } else { next.min(now + rest) };
                    rest = (rest * 2).min(self.shared.options.interval.max(STOPPED_REST_MIN));
                }
            }
        }
    }

    /// What was asked for, else what is in doubt, else everything.
    fn next_wanted(&self, is_due: bool) -> ReconcileWanted {
        if let Some(wanted) = self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return wanted;
        }
        let mut doubtful = std::mem::take(&mut *self.doubtful());
        if is_due {
            doubtful.clear();
        }
        ReconcileWanted { repositories: doubtful.into_iter().collect(), accept_removals: false }
    }

    /// Begins a walk; `None` when one is under way or about to begin.
    pub fn start(&self, wanted: ReconcileWanted) -> Option<ReconcileReport> {
        let mut report = self.note();
        let mut next = self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if report.running || next.is_some() {
            return None;
        }
        *next = Some(wanted);
        report.running = true;
        report.pass += 1;
        let begun = report.clone();
        drop(report);
        self.shared.now.notify_one();
        Some(begun)
    }

    /// What the last walk found, or how far this one is.
    pub fn report(&self) -> ReconcileReport {
        ReconcileReport { missed: self.shared.standing.missed(), ..self.note().clone() }
    }

    /// Something may have been missed: everything is walked soon, but not all the time.
    pub fn doubt(&self) {
        self.shared.doubt.notify_one();
    }

    /// Something of `repo` may have been missed: it is walked soon.
    pub fn doubt_repository(&self, repo: RepoName) {
        let mut doubtful = self.doubtful();
        if doubtful.len() >= DOUBTFUL_MAX {
            doubtful.clear();
            self.shared.doubt.notify_one();
            return;
        }
        doubtful.insert(repo);
        self.shared.doubt_of_some.notify_one();
    }

    /// What a person should look at.
    pub fn alarm(&self) -> Option<String> {
        self.shared.standing.alarm()
    }

    fn note(&self) -> MutexGuard<'_, ReconcileReport> {
        self.shared.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn doubtful(&self) -> MutexGuard<'_, BTreeSet<RepoName>> {
        self.shared.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn walk(&self, wanted: ReconcileWanted, shutdown: &Shutdown) -> Result<(), Stopped> {
        {
            let mut report = self.note();
            let pass = if report.running { report.pass } else { report.pass + 1 };
            *report = ReconcileReport {
                pass,
                running: true,
                is_backfill: report.is_backfill,
                last_reconciled_at: report.last_reconciled_at,
                last_drift: report.last_drift,
                ..ReconcileReport::default()
            };
        }
        self.shared.failed_in_a_row.store(0, Relaxed);
        let is_whole = wanted.repositories.is_empty();
        let ended = tokio::select! {
            biased;
            () = shutdown.requested() => Err(Stopped::Shutdown),
            ended = self.walked(&wanted) => ended,
        };
        let mut report = self.note();
        report.running = false;
        match &ended {
            Ok(()) => tracing::info!(
                repositories = report.repositories,
                looked_at = report.looked_at,
                found = report.found,
                gone = report.gone,
                unfit = report.unfit,
                "the log agrees with the registry"
            ),
            Err(error) => report.error = Some(error.to_string()),
        }
        if !matches!(ended, Err(Stopped::Shutdown)) {
            self.shared.standing.ended(&report, is_whole);
        }
        ended
    }

    async fn walked(&self, wanted: &ReconcileWanted) -> Result<(), Stopped> {
        let is_whole = wanted.repositories.is_empty();
        let cursor = if is_whole { self.shared.memory.last().cursor } else { None };
        let repositories = if is_whole { self.repositories().await? } else { wanted.repositories.clone() };
        let begin = match &cursor {
            Some(cursor) => repositories.partition_point(|repo| *repo <= cursor.after),
            None => 0,
        };
        let mut drift = cursor.map_or(0, |cursor| cursor.drift);
        self.note().repositories_expected = Some(repositories.len() as u64);
        // Those before where it stopped were walked a while ago, and before whatever stopped it.
        let (before, behind) = repositories.split_at(begin);
        for batch in behind.chunks(BATCH).chain(before.chunks(BATCH)) {
            drift += self.walk_batch(batch, wanted.accept_removals).await?;
            if let Some(after) = batch.last().filter(|_| is_whole) {
                let cursor = Cursor { after: after.clone(), drift };
                self.shared.memory.reached(cursor).await.map_err(Stopped::Memory)?;
            }
        }
        if is_whole {
            self.ended(drift).await?;
        }
        Ok(())
    }

    async fn ended(&self, drift: u64) -> Result<(), Stopped> {
        let now = self.shared.gateway.shared.clock.now().as_secs();
        let drift = if self.note().is_backfill { 0 } else { drift };
        self.shared.memory.ended(now, drift).await.map_err(Stopped::Memory)?;
        self.shared.gateway.shared.budget.open();
        self.shared.gateway.shared.unsure.send_replace(false);
        let mut report = self.note();
        report.is_backfill = false;
        report.last_reconciled_at = Some(now);
        report.last_drift = Some(drift);
        Ok(())
    }

    /// Walks some repositories, several at once; returns what was found in them.
    async fn walk_batch(&self, batch: &[RepoName], accept_removals: bool) -> Result<u64, Stopped> {
        let (mut walks, mut drift) = (JoinSet::new(), 0);
        let mut waiting = batch.iter();
        loop {
            while walks.len() < self.shared.options.concurrency
                && let Some(repo) = waiting.next()
            {
                let (this, repo) = (self.clone(), repo.clone());
                walks.spawn(async move { this.walk_repository(&repo, accept_removals).await });
            }
            let Some(ended) = walks.join_next().await else { return Ok(drift) };
            drift += ended.map_err(|_| Stopped::Crashed)??;
            self.note().repositories += 1;
        }
    }

    /// Something was found that a notification should have told of; it may still.
    fn found_unnoticed(&self, repo: &RepoName, reference: &Reference, by: By) {
        // Registries remove untagged manifests themselves (GitLab's garbage collection) and tell nobody.
        let Reference::Tag(tag) = reference else { return };
        let named = self.shared.gateway.index().tag(repo, tag).ok().flatten().map(|entry| entry.digest);
        if self.shared.options.notified && !self.note().is_backfill {
            self.shared.standing.found((repo.clone(), tag.clone(), named), by);
        }
    }

    /// A notification told of a tag, and what it names; late if it was found before.
    pub fn noticed(&self, repo: &RepoName, tag: &Tag, named: Option<Digest>) {
        self.shared.standing.noticed((repo.clone(), tag.clone(), named));
    }
}

impl std::fmt::Debug for Reconciler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reconciler").field("options", &self.shared.options).finish_non_exhaustive()
    }
}
