//! Copies what an operator asks for, whatever the policy says.

use crate::watch;
use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use outport_proto::{Digest, RepoName, event::INLINE_MANIFEST_BYTES_MAX};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    blocking,
    fetch::{At, FillError, Flight, Flights, Linked, Upstream},
    index::Index,
    registry::{
        Journal,
        prefetch::{Prefetches, Step, Wanted},
        whereabouts::{AskError, ImageRef, missing_blobs},
    },
    shutdown::Shutdown,
    store::Store,
};

/// Copies at once.
const COPIES_MAX: usize = 4;
/// Blobs of one request. Who wants more asks again.
const BLOBS_MAX: usize = 100_000;
/// How long the log may take to bring what the primary shows.
const CATCH_UP_MAX: Duration = Duration::from_secs(30);
/// How often it is told how far copying is.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// Steps that wait for a slow reader.
const STEPS_MAX: usize = 16;
/// Rows of the index read at once.
const PAGE: usize = 1_000;

/// Copies on demand at a site. Cloning gives another handle.
#[derive(Clone)]
pub struct OnDemand {
    /// The site's log and index.
    pub journal: Journal,
    /// Its blobs.
    pub store: Store,
    /// The primary.
    pub upstream: Arc<dyn Upstream>,
    /// Brings blobs.
    pub flights: Flights,
    /// Ends what is under way.
    pub shutdown: Shutdown,
}

/// Blobs that are not here: in which repository, and how large.
type Lacking = BTreeMap<Digest, (RepoName, u64)>;

impl Prefetches for OnDemand {
    fn prefetch(&self, wanted: Vec<Wanted>) -> mpsc::Receiver<Step> {
        let (steps, receiver) = mpsc::channel(STEPS_MAX);
        let (this, shutdown) = (self.clone(), self.shutdown.clone());
        self.shutdown.spawn(async move {
            tokio::select! {
                biased;
                () = shutdown.requested() => {}
                () = steps.closed() => {}
                () = this.run(wanted, &steps) => {}
            }
        });
        receiver
    }
}

impl OnDemand {
    async fn run(&self, wanted: Vec<Wanted>, steps: &mpsc::Sender<Step>) {
        let mut lacking = Lacking::new();
        let mut failed = 0;
        for wanted in wanted {
            let reference = wanted.to_string();
            let step = match self.look_up(&wanted).await {
                Ok((repo, found)) => {
                    let (mut blobs, mut bytes) = (0, 0_u64);
                    for (digest, size) in found {
                        if let Entry::Vacant(place) = lacking.entry(digest) {
                            place.insert((repo.clone(), size));
                            (blobs, bytes) = (blobs + 1, bytes.saturating_add(size));
                        }
                    }
                    Step::Found { reference, blobs, bytes }
                }
                Err(reason) => {
                    failed += 1;
                    Step::Unknown { reference, reason }
                }
            };
            tell(steps, step).await;
        }
        let mut copying = Copying { failed, ..Copying::default() };
        copying.copy(&self.flights, lacking, steps).await;
        let Copying { blobs, bytes, failed, .. } = copying;
        tell(steps, Step::Done { blobs, bytes, failed }).await;
    }

    /// What is not here.
    async fn look_up(&self, wanted: &Wanted) -> Result<(RepoName, Vec<(Digest, u64)>), String> {
        let (index, store) = (self.journal.index().clone(), self.store.clone());
        let (repo, found) = match wanted {
            Wanted::Repository(repo) => {
                let repo = repo.clone();
                let name = repo.clone();
                (name, blocking::spawn(move || lacking_of(&index, &store, &repo)).await)
            }
            Wanted::Image(image) => {
                let digest = self.digest_of(image).await?;
                let repo = image.repo.clone();
                let name = repo.clone();
                (name, blocking::spawn(move || missing_blobs(&index, &store, &repo, &digest)).await)
            }
        };
        let found = found.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        if found.len() > BLOBS_MAX {
            return Err(format!("more than {BLOBS_MAX} blobs are missing: ask for less at once"));
        }
        Ok((repo, found))
    }

    /// What the primary shows, once this site knows it too; what the site shows while it is cut off.
    async fn digest_of(&self, image: &ImageRef) -> Result<Digest, String> {
        match self.upstream.resolve(&image.repo, &image.reference).await {
            Ok(At { value: Some(put), at }) => {
                let mut applied: watch::Receiver<_> = self.journal.watch_applied();
                let caught_up = applied.wait_for(|applied| *applied >= at);
                match timeout(CATCH_UP_MAX, caught_up).await {
                    Ok(Ok(_)) => Ok(put.digest),
                    Ok(Err(_)) | Err(_) => Err("this site is too far behind to know it".to_owned()),
                }
            }
            Ok(At { value: None, .. }) => Err("the registry has no such image".to_owned()),
            Err(error) => {
                tracing::info!(%image, %error, "the primary gave no answer; the site's own is taken");
                let (index, image) = (self.journal.index().clone(), image.clone());
                let placed = blocking::spawn(move || index.placed(&image.repo, &image.reference)).await;
                let placed = placed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
                placed.map(|placed| placed.digest).ok_or_else(|| "the primary gave no answer".to_owned())
            }
        }
    }
}

/// The blobs of a repository that are not here.
fn lacking_of(index: &Index, store: &Store, repo: &RepoName) -> Result<Vec<(Digest, u64)>, AskError> {
    let mut lacking = Vec::new();
    let mut add = |digest, size| -> Result<(), AskError> {
        if lacking.len() <= BLOBS_MAX && store.size(&digest)?.is_none() {
            lacking.push((digest, size));
        }
        Ok(())
    };
    let mut known = false;
    let mut last = None;
    loop {
        let page = index.links(repo, last.as_ref(), PAGE)?;
        let Some((digest, _)) = page.last() else { break };
        (last, known) = (Some(*digest), true);
        for (digest, size) in page {
            add(digest, size)?;
        }
    }
    let mut last = None;
    loop {
        let page = index.manifests(repo, last.as_ref(), PAGE)?;
        let Some(put) = page.last() else { break };
        (last, known) = (Some(put.digest), true);
        for put in page.iter().filter(|put| put.size > INLINE_MANIFEST_BYTES_MAX as u64) {
            add(put.digest, put.size)?;
        }
    }
    if known { Ok(lacking) } else { Err(AskError::UnknownRepository(repo.clone())) }
}

/// What is under way.
#[derive(Default)]
struct Copying {
    flights: BTreeMap<Digest, Flight>,
    blobs: u64,
    bytes: u64,
    failed: u64,
}

impl Copying {
    async fn copy(&mut self, flights: &Flights, lacking: Lacking, steps: &mpsc::Sender<Step>) {
        let mut queue = lacking.into_iter();
        let mut copies: JoinSet<(Digest, Result<u64, FillError>)> = JoinSet::new();
        let mut ticks = interval(TELL_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while copies.len() < COPIES_MAX
                && let Some((digest, (repo, size))) = queue.next()
            {
                let flight = flights.bring(&repo, &digest, Linked { size: Some(size) });
                self.flights.insert(digest, flight.clone());
                copies.spawn(async move { (digest, flight.kept().await) });
            }
            tokio::select! {
                biased;
                copied = copies.join_next() => match copied {
                    Some(Ok((digest, copied))) => self.ended(digest, copied, steps).await,
                    Some(Err(error)) => {
                        tracing::error!(%error, "a copy crashed");
                        self.failed += 1;
                    }
                    None => return,
                },
                _ = ticks.tick() => {}
            }
            let under_way: u64 = self.flights.values().map(Flight::received).sum();
            // A reader that is behind needs no more of these.
            let _ = steps.try_send(Step::Progress { blobs: self.blobs, bytes: self.bytes + under_way });
        }
    }

    async fn ended(&mut self, digest: Digest, copied: Result<u64, FillError>, steps: &mpsc::Sender<Step>) {
        self.flights.remove(&digest);
        match copied {
            Ok(size) => {
                self.blobs += 1;
                self.bytes = self.bytes.saturating_add(size);
            }
            Err(error) => {
                self.failed += 1;
                tell(steps, Step::Failed { digest: digest.to_string(), reason: error.to_string() }).await;
            }
        }
    }
}

/// Nobody hears it when the request has ended: then all of this is about to be dropped.
async fn tell(steps: &mpsc::Sender<Step>, step: Step) {
    let _ = steps.send(step).await;
}
