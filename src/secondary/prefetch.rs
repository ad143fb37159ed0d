//! Copies the blobs that a site's policy keeps eagerly ahead of the first pull, and knows up to
//! which offset none of them is missing.
//!
//! It is a second reader of the site's own log: it looks at applied events at its own pace, so
//! nothing is queued for it and what waits is bounded. Where the log no longer reaches back, or the
//! policy is another than the one it last worked by, it walks the index instead.

use crate::watch;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use outport_proto::{Digest, Offset, RepoName, snapshot::Entry};
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
    time::Instant,
};

use super::{
    complete::{Lacking, Want, Window},
    excluded,
    rate::Rate,
};
use crate::{
    blocking,
    fetch::{FillError, Flights, Linked},
    index::IndexError,
    log::LogError,
    policy::{Blob, Contents, Policy},
    process,
    registry::journal::Journal,
    shutdown::Shutdown,
    store::{Store, StoreError},
};

/// Bytes of log looked at in one go.
const SCAN_BYTES: usize = 1024 * 1024;

/// Parts of the index looked at ahead of the copier.
const FOUND_MAX: usize = 4;

/// Bytes of index entries looked at in one go.
const PART_BYTES: usize = 256 * 1024;

/// A copy that failed is tried again after this; it doubles with every failure up to the maximum.
const RETRY: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// How often the complete offset is written down. Losing it costs a look at the same events again.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);

/// File name inside the site's data directory.
const FILE: &str = "complete";

/// How much is copied at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefetchOptions {
    /// Copies at once.
    pub copies_max: usize,
    /// Missing blobs known at once; behind them the log is not looked at yet.
    pub missing_max: usize,
}

impl Default for PrefetchOptions {
    fn default() -> Self {
        Self { copies_max: 4, missing_max: 10_000 }
    }
}

/// How far copying is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Every event up to here has all the blobs that the site keeps.
    pub complete: Offset,
    /// Blobs known to be missing.
    pub missing_blobs: u64,
    /// How fast blobs were copied lately, in bytes a second; `None` when none were.
    pub fill_rate: Option<u64>,
}

/// The copier of a site.
pub struct Prefetch {
    source: Source,
    flights: Flights,
    options: PrefetchOptions,
    path: PathBuf,
    /// Stands for the policy in the file.
    fingerprint: Digest,
    /// What is here came by another policy.
    policy_changed: bool,
    progress: watch::Sender<Progress>,
    window: Window,
}

/// An event that was looked at, and what it needs that is not here.
type Looked = (Offset, Vec<Want>);

/// Where wants are found.
#[derive(Clone)]
struct Source {
    journal: Journal,
    store: Store,
    policy: Arc<Policy>,
}

impl Prefetch {
    /// A copier that goes on where the file in `dir` says, and the end that follows it. With
    /// another policy than then it begins anew.
    pub fn new(
        dir: &Path,
        journal: Journal,
        store: Store,
        policy: Arc<Policy>,
        flights: Flights,
        options: PrefetchOptions,
    ) -> (Self, watch::Receiver<Progress>) {
        let path = dir.join(FILE);
        let fingerprint = Digest::sha256(policy.to_string().as_bytes());
        let saved = fs::read_to_string(&path).ok().and_then(|text| {
            let (complete, fingerprint) = text.trim().split_once(' ')?;
            Some((complete.parse::<Offset>().ok()?, fingerprint.parse::<Digest>().ok()?))
        });
        let policy_changed = saved.is_some_and(|(_, by)| by != fingerprint);
        let complete = saved.map(|(complete, _)| complete).filter(|complete| *complete <= journal.applied());
        let complete = complete.filter(|_| !policy_changed).unwrap_or_default();
        let (progress, receiver) = watch::channel(Progress { complete, ..Progress::default() });
        let source = Source { journal, store, policy };
        let window = Window::after(complete);
        let copier = Self { source, flights, options, path, fingerprint, policy_changed, progress, window };
        (copier, receiver)
    }

    /// What repositories lack, as long as it runs.
    pub fn lacking(&self) -> Lacking {
        self.window.lacking()
    }

    /// Copies until shutdown.
    pub async fn run(mut self, shutdown: Shutdown) {
        let mut run = Run {
            window: std::mem::take(&mut self.window),
            copies: JoinSet::new(),
            rate: Rate::default(),
            walk: None,
            failures: BTreeMap::new(),
            retries: BTreeMap::new(),
            look_at: Instant::now(),
        };
        if self.policy_changed && !self.follow_policy(&mut run, &shutdown).await {
            return;
        }
        let mut applied = self.source.journal.watch_applied();
        let mut save = tokio::time::interval(SAVE_INTERVAL);
        loop {
            applied.mark_unchanged();
            if let Err(error) = self.look_ahead(&mut run).await {
                tracing::warn!(%error, "cannot look for blobs to copy");
                run.look_at = Instant::now() + RETRY_MAX;
            }
            self.start_copies(&mut run);
            self.publish(&run);
            let room = run.window.missing() < self.options.missing_max;
            let wake_at = run.wake_at();
            let Run { copies, walk, .. } = &mut run;
            let happened = tokio::select! {
                biased;
                () = shutdown.requested() => break,
                changed = applied.changed(), if room => if changed.is_err() { break } else { Happened::Time },
                Some(copied) = copies.join_next() => Happened::Copied(copied),
                found = next(walk), if room => Happened::Found(found),
                () = tokio::time::sleep_until(wake_at) => Happened::Time,
                _ = save.tick() => Happened::SaveDue,
            };
            match happened {
                Happened::Time => {}
                Happened::SaveDue => self.save().await,
                Happened::Copied(copied) => run.copied(copied),
                Happened::Found(found) => run.walked(found),
            }
        }
        run.copies.abort_all();
        self.save().await;
    }

    /// The policy changed: removes what it excludes, then looks for what it keeps. False when the
    /// site stops meanwhile; then the next start does it again.
    async fn follow_policy(&self, run: &mut Run, shutdown: &Shutdown) -> bool {
        let (source, stopping) = (self.source.clone(), shutdown.clone());
        let removed = blocking::spawn(move || {
            excluded::remove(&source.policy, source.journal.index(), &source.store, &stopping)
        });
        match removed.await {
            _ if shutdown.is_requested() => return false,
            Ok(Ok(removed)) => {
                tracing::info!(blobs = removed.blobs, bytes = removed.bytes, "the policy changed");
            }
            Ok(Err(error)) => tracing::warn!(%error, "cannot remove what the policy excludes"),
            Err(error) => tracing::error!(%error, "removing what the policy excludes crashed"),
        }
        self.begin_walk(run);
        true
    }

    /// Takes in applied events until the window is full or the log is at its end.
    async fn look_ahead(&self, run: &mut Run) -> Result<(), PrefetchError> {
        while run.walk.is_none()
            && run.look_at <= Instant::now()
            && run.window.missing() < self.options.missing_max
        {
            let (source, after) = (self.source.clone(), run.window.scanned());
            if after >= source.journal.applied() {
                break;
            }
            let scan = blocking::spawn(move || source.scan(after)).await;
            match scan.map_err(|error| PrefetchError::Crashed(error.to_string())).flatten()? {
                Some(events) => {
                    events.into_iter().for_each(|(offset, wants)| run.window.enter(offset, wants))
                }
                None => self.begin_walk(run),
            }
        }
        Ok(())
    }

    fn begin_walk(&self, run: &mut Run) {
        let (source, from) = (self.source.clone(), self.source.journal.applied());
        let (found, receiver) = mpsc::channel(FOUND_MAX);
        run.window.begin_walk(from);
        run.walk = Some(receiver);
        blocking::spawn(move || {
            let end =
                source.walk(&found).map_or_else(|error| Found::Failed(error.to_string()), |()| Found::All);
            // Nobody hears it when the copier stopped meanwhile.
            let _ = blocking::send(&found, end);
        });
    }

    fn start_copies(&self, run: &mut Run) {
        run.requeue_due();
        while run.copies.len() < self.options.copies_max
            && let Some(want) = run.window.take()
        {
            let (flights, index) = (self.flights.clone(), self.source.journal.index().clone());
            run.rate.begin(Instant::now());
            run.copies.spawn(process::inherit(async move {
                let linked = Linked { size: Some(want.size) };
                match flights.ensure(&want.repo, &want.digest, linked).await {
                    Ok(_) => (want, Ok(())),
                    // Deleted since: nothing is missing any more. But that "no" does not say as of when it
                    // holds, so it counts once the deletion is here.
                    Err(FillError::NotLinked)
                        if matches!(index.is_named_in(&want.repo, &want.digest), Ok(false)) =>
                    {
                        (want, Ok(()))
                    }
                    Err(error) => (want, Err(error)),
                }
            }));
        }
    }

    fn publish(&self, run: &Run) {
        let now = Progress {
            complete: run.window.complete(),
            // What the limit pushed out again is missing as well, though nobody waits for it.
            missing_blobs: run.window.missing() as u64 + self.source.store.displaced(),
            fill_rate: run.rate.bytes_per_second(),
        };
        self.progress.send_if_modified(|last| std::mem::replace(last, now) != now);
    }

    async fn save(&self) {
        let (path, complete) = (self.path.clone(), self.progress.borrow().complete);
        let text = format!("{complete} {}", self.fingerprint);
        let saved = blocking::spawn(move || {
            let temporary = path.with_extension("new");
            fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &path))
        });
        if let Ok(Err(error)) = saved.await {
            tracing::warn!(%error, path = %self.path.display(), "cannot write down what is complete");
        }
    }
}

/// What changes while it runs.
struct Run {
    window: Window,
    copies: JoinSet<(Want, Result<(), FillError>)>,
    rate: Rate,
    walk: Option<mpsc::Receiver<Found>>,
    /// How often the copy of a missing blob failed.
    failures: BTreeMap<Digest, u32>,
    /// When it is tried again.
    retries: BTreeMap<(Instant, Digest), Want>,
    /// Not before then is the log looked at again.
    look_at: Instant,
}

/// What ended a wait.
enum Happened {
    Time,
    SaveDue,
    Copied(Result<(Want, Result<(), FillError>), JoinError>),
    Found(Found),
}

/// What a walk over the index found.
enum Found {
    Some(Vec<Want>),
    All,
    Failed(String),
}

/// Pends for ever without a walk.
async fn next(walk: &mut Option<mpsc::Receiver<Found>>) -> Found {
    match walk {
        Some(walk) => walk.recv().await.unwrap_or_else(|| Found::Failed("the walk crashed".to_owned())),
        None => std::future::pending().await,
    }
}

impl Run {
    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let look = (self.look_at > now).then_some(self.look_at);
        let retry = self.retries.first_key_value().map(|((at, _), _)| *at);
        look.into_iter().chain(retry).min().unwrap_or(now + RETRY_MAX)
    }

    fn requeue_due(&mut self) {
        while let Some(entry) = self.retries.first_entry()
            && entry.key().0 <= Instant::now()
        {
            self.window.postponed(entry.remove());
        }
    }

    fn copied(&mut self, copied: Result<(Want, Result<(), FillError>), JoinError>) {
        match copied {
            Ok((want, Ok(()))) => {
                self.rate.copied(want.size, self.copies.is_empty(), Instant::now());
                self.failures.remove(&want.digest);
                self.window.settled(&want.digest);
            }
            Ok((want, Err(error))) => {
                let failures = self.failures.entry(want.digest).or_default();
                if *failures == 0 {
                    tracing::info!(repo = %want.repo, digest = %want.digest, %error, "blob not copied ahead yet");
                }
                let wait = (RETRY * 2_u32.saturating_pow(*failures).min(1 << 10)).min(RETRY_MAX);
                *failures = failures.saturating_add(1);
                self.retries.insert((Instant::now() + wait, want.digest), want);
            }
            Err(error) if error.is_cancelled() => {}
            Err(error) => tracing::error!(%error, "a copy crashed"),
        }
    }

    fn walked(&mut self, found: Found) {
        match found {
            Found::Some(wants) => self.window.walked(wants),
            Found::All => {
                self.walk = None;
                self.window.end_walk();
            }
            Found::Failed(error) => {
                tracing::warn!(%error, "cannot walk the index for blobs to copy");
                self.walk = None;
                self.copies.abort_all();
                self.retries.clear();
                self.window = Window::after(self.window.complete());
                self.look_at = Instant::now() + RETRY_MAX;
            }
        }
    }
}

impl Source {
    /// The applied events after `after` and what each needs that is not here; `None` when the
    /// log does not reach back that far.
    fn scan(&self, after: Offset) -> Result<Option<Vec<Looked>>, PrefetchError> {
        let applied = self.journal.applied();
        let records = match self.journal.log().read(after, SCAN_BYTES) {
            Ok(records) => records,
            Err(LogError::BelowFloor { .. } | LogError::NotInLog { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut events = Vec::with_capacity(records.len());
        for record in records.iter().take_while(|record| record.event.offset <= applied) {
            let wanted = match record.event.change.repo() {
                Some(repo) => self.absent(repo, self.contents().wanted_by(&record.event.change)?)?,
                None => Vec::new(),
            };
            events.push((record.event.offset, wanted));
        }
        Ok(Some(events))
    }

    fn walk(&self, found: &mpsc::Sender<Found>) -> Result<(), PrefetchError> {
        let mut room = Room { store: &self.store, planned: 0 };
        self.journal.index().dump(PART_BYTES, &mut |entries| {
            let mut wants = Vec::new();
            for entry in &entries {
                let found = match entry {
                    Entry::Link { repo, digest, size, .. } => {
                        let blob = self.contents().wanted_link(repo, *digest, *size);
                        self.absent(repo, blob.into_iter().collect())
                    }
                    Entry::Manifest { manifest, .. } => {
                        let wanted = self.contents().wanted_beyond_links(manifest);
                        wanted
                            .map_err(PrefetchError::from)
                            .and_then(|blobs| self.absent(&manifest.repo, blobs))
                    }
                    Entry::Tag { .. } | Entry::Tombstone { .. } => continue,
                };
                wants
                    .extend(found.map_err(std::io::Error::other)?.into_iter().filter(|want| room.fits(want)));
            }
            blocking::send(found, Found::Some(wants)).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
        })?;
        Ok(())
    }

    fn contents(&self) -> Contents<'_> {
        Contents::new(&self.policy, self.journal.index())
    }

    /// Those of `blobs` that are not here.
    fn absent(&self, repo: &RepoName, blobs: Vec<Blob>) -> Result<Vec<Want>, PrefetchError> {
        let mut wants = Vec::new();
        for Blob { digest, size, priority } in blobs {
            // What had to go for want of room would only displace others.
            if self.store.size(&digest)?.is_none() && !self.store.is_displaced(&digest) {
                wants.push(Want { repo: repo.clone(), digest, size, priority });
            }
        }
        Ok(wants)
    }
}

/// The room that a walk fills. What is pushed now may displace what is old; what is old displaces
/// nothing, or a site that should hold more than it can would copy for ever.
struct Room<'a> {
    store: &'a Store,
    planned: u64,
}

impl Room<'_> {
    fn fits(&mut self, want: &Want) -> bool {
        let planned = self.planned.saturating_add(want.size);
        let fits = self.store.has_room(planned);
        if fits {
            self.planned = planned;
        } else {
            self.store.give_up(&want.digest);
        }
        fits
    }
}

/// Why it cannot be told what is missing.
#[derive(Debug, thiserror::Error)]
enum PrefetchError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("looking for blobs crashed: {0}")]
    Crashed(String),
}
