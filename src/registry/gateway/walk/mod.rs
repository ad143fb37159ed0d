//! Reconciling: walking everything the registry has and recording what the log does not tell.
//!
//! A walk compares what each tag names, not names alone, and looks at what the log has and the registry
//! does not list any more. It runs after the start (which backfills a registry that was here before), on a
//! timer, after any doubt, and on demand. Where it stopped it goes on, also after a restart.
//!
//! What an error hides is not gone: a refusal, a failure or an answer of something in front of the registry
//! stops the walk and raises an alarm. So does a registry that suddenly lacks much of what it had:
//! its storage may not be mounted.

mod memory;
mod pace;
mod repositories;
mod repository;

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use outport_proto::{Reference, RepoName};
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
    repository::Walked,
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
/// Names in a report, of each kind.
const NAMED_MAX: usize = 10;
/// Changes found by walks of which a notification may still tell, at most.
const UNNOTICED_MAX: usize = 100_000;

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
    /// Changes of tags that walks found and no notification has told of, since the start; always 0 without
    /// notifications, and in the walk that backfills.
    pub missed: u64,
    /// Of those, how many were found since the last walk over everything began.
    pub unnoticed: u64,
    /// Which walk that is.
    #[serde(skip)]
    unnoticed_since: u64,
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
    /// What walks found and no notification has told of yet, with the walk.
    unnoticed: Mutex<HashMap<(RepoName, Reference), u64>>,
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

/// How much a walk may still remove.
#[derive(Debug)]
struct Removals(AtomicU64);

impl Removals {
    /// Takes the right to remove one more.
    fn take(&self) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

impl Reconciler {
    /// Walks the registry of `gateway`; `file` holds how far it came.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn new(gateway: Gateway, options: ReconcileOptions, file: PathBuf) -> std::io::Result<Self> {
        let memory = Memory::open(file)?;
        let last = memory.last();
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
            unnoticed: Mutex::default(),
            doubt: Notify::new(),
            doubt_of_some: Notify::new(),
            now: Notify::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Walks until shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        let mut rest = STOPPED_REST_MIN;
        let mut next = Instant::now();
        let mut whole_at = None::<Instant>;
        loop {
            tokio::select! {
                biased;
                () = shutdown.requested() => return,
                () = self.shared.now.notified() => {}
                () = self.shared.doubt.notified() => {
                    let soon = Instant::now() + DOUBT_REST;
                    next = next.min(whole_at.map_or(soon, |at| soon.max(at + DOUBT_BETWEEN)));
                    continue;
                }
                () = self.doubted_repositories() => {}
                () = sleep_until(next) => {}
            }
            let wanted = self.next_wanted(next);
            let is_whole = wanted.repositories.is_empty();
            let ended = self.walk(wanted, &shutdown).await;
            let now = Instant::now();
            match ended {
                Ok(()) if is_whole => {
                    rest = STOPPED_REST_MIN;
                    next = now + self.shared.options.interval;
                    whole_at = Some(now);
                }
                Ok(()) => {}
                Err(Stopped::Shutdown) => return,
                Err(error) => {
                    tracing::error!(%error, "reconciling stopped");
                    next = now + rest;
                    rest = (rest * 2).min(self.shared.options.interval.max(STOPPED_REST_MIN));
                }
            }
        }
    }

    async fn doubted_repositories(&self) {
        self.shared.doubt_of_some.notified().await;
        tokio::time::sleep(DOUBT_REST).await;
    }

    /// What was asked for, else what is in doubt, else everything.
    fn next_wanted(&self, next: Instant) -> ReconcileWanted {
        if let Some(wanted) = self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return wanted;
        }
        let mut doubtful = std::mem::take(&mut *self.doubtful());
        if Instant::now() >= next {
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
        self.note().clone()
    }

    /// Something may have been missed: everything is walked soon, but not all the time.
    pub fn doubt(&self) {
        self.shared.doubt.notify_one();
    }

    /// Something of `repo` may have been missed: it is walked soon.
    pub fn doubt_repository(&self, repo: RepoName) {
        self.doubtful().insert(repo);
        self.shared.doubt_of_some.notify_one();
    }

    /// What a person should look at.
    pub fn alarm(&self) -> Option<String> {
        let report = self.note();
        if let Some(error) = &report.error {
            return Some(format!("reconciling with the registry stopped: {error}"));
        }
        (report.unnoticed > 0).then(|| {
            let count = report.unnoticed;
            format!("the registry's notifications do not all come: the last walk found {count} changes that none told of")
        })
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
            let is_whole = wanted.repositories.is_empty();
            *report = ReconcileReport {
                pass,
                running: true,
                // A walk over some repositories says nothing of the others.
                unnoticed: if is_whole { 0 } else { report.unnoticed },
                unnoticed_since: if is_whole { pass } else { report.unnoticed_since },
                is_backfill: report.is_backfill,
                missed: report.missed,
                last_reconciled_at: report.last_reconciled_at,
                last_drift: report.last_drift,
                ..ReconcileReport::default()
            };
        }
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
        {
            let mut report = self.note();
            report.repositories_expected = Some(repositories.len() as u64);
            report.repositories = begin as u64;
        }
        let removals = if wanted.accept_removals { u64::MAX } else { self.shared.options.removals_max };
        let removals = Arc::new(Removals(AtomicU64::new(removals)));
        for batch in repositories[begin..].chunks(BATCH) {
            drift += self.walk_batch(batch, &removals).await?;
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
        let mut report = self.note();
        report.is_backfill = false;
        report.last_reconciled_at = Some(now);
        report.last_drift = Some(drift);
        Ok(())
    }

    /// Walks some repositories, several at once; returns what was found in them.
    async fn walk_batch(&self, batch: &[RepoName], removals: &Arc<Removals>) -> Result<u64, Stopped> {
        let (mut walks, mut drift) = (JoinSet::new(), 0);
        let mut waiting = batch.iter();
        loop {
            while walks.len() < self.shared.options.concurrency
                && let Some(repo) = waiting.next()
            {
                let (this, repo, removals) = (self.clone(), repo.clone(), Arc::clone(removals));
                walks.spawn(async move { this.walk_repository(&repo, &removals).await });
            }
            let Some(ended) = walks.join_next().await else { return Ok(drift) };
            let Walked { found, gone } = ended.map_err(|_| Stopped::Crashed)??;
            drift += found + gone;
            self.note().repositories += 1;
        }
    }

    /// Counts something that a walk found and a notification should have told of; it may still.
    fn found_unnoticed(&self, repo: &RepoName, reference: &Reference, (found, gone): (u64, u64)) {
        let mut report = self.note();
        report.found += found;
        report.gone += gone;
        // Registries remove untagged manifests themselves (GitLab's garbage collection) and tell nobody.
        let is_told_of = matches!(reference, Reference::Tag(_));
        if !self.shared.options.notified || report.is_backfill || !is_told_of {
            return;
        }
        report.missed += 1;
        report.unnoticed += 1;
        let mut unnoticed = self.unnoticed();
        if unnoticed.len() < UNNOTICED_MAX {
            unnoticed.insert((repo.clone(), reference.clone()), report.pass);
        }
    }

    /// A notification told of this, late if a walk was there before it.
    pub fn noticed(&self, repo: &RepoName, reference: &Reference) {
        let found_by = self.unnoticed().remove(&(repo.clone(), reference.clone()));
        let Some(pass) = found_by else { return };
        let mut report = self.note();
        report.missed = report.missed.saturating_sub(1);
        if pass >= report.unnoticed_since {
            report.unnoticed = report.unnoticed.saturating_sub(1);
        }
    }

    fn unnoticed(&self) -> MutexGuard<'_, HashMap<(RepoName, Reference), u64>> {
        self.shared.unnoticed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Reconciler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reconciler").field("options", &self.shared.options).finish_non_exhaustive()
    }
}
