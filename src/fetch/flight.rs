//! Flights: one fill per blob, shared by everybody who wants it.
//!
//! ```text
//! upstream --> Resuming --> pump --> temp file, hash --> verified --> fsync, rename
//!                                        |                   |
//!                          readers, all but the tail     the tail
//! ```
//!
//! A flight is a task of its own: it goes on when its clients leave and ends early only at
//! shutdown. The last [`HOLD_BACK_BYTES`] are withheld from every reader until the digest matches,
//! so no reader ever gets a complete wrong blob. They are released then, while the fsync goes on:
//! what a client got needs no durability here, what the store shows does.
//!
//! What the site's policy excludes is shared and verified just so, and then not given its place in
//! the store: the file is gone with its last reader.
//!
//! When the disk is full a flight ends *unkept*: each of its readers goes on from the upstream
//! itself, under the same rule.

mod metrics;
mod pace;
mod passthrough;
mod progress;
mod reader;
mod resuming;
mod task;

use std::{
    cmp::Reverse,
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use outport_proto::{Digest, RepoName, frame::Fill};
use tokio::sync::Semaphore;

use super::{Upstream, UpstreamError};
use crate::{
    shutdown::Shutdown,
    store::{PumpOptions, Store, StoreError},
};
pub use metrics::FlightMetrics;
pub use pace::Pace;
use progress::{Shared, Stage};
pub use reader::FlightReader;

/// The last bytes of a blob that no reader sees before the digest matches.
pub const HOLD_BACK_BYTES: u64 = 64 * 1024;

/// How flights are bounded and how long they try.
#[derive(Clone, Copy, Debug)]
pub struct FlightOptions {
    /// Fills for clients at the same time; more wait their turn.
    pub flights_max: usize,
    /// Fills nobody waits for at the same time.
    pub background_flights_max: usize,
    /// Readers that stream past a full disk at the same time; more wait their turn.
    pub unkept_readers_max: usize,
    /// Attempts in a row that bring no byte before a fill fails.
    pub attempts_max: u32,
    /// Pause after the first such attempt; doubled after each, and jittered.
    pub backoff_min: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// An upstream that is silent for this long is taken for broken.
    pub silence_max: Duration,
    /// How bytes get to the disk.
    pub pump: PumpOptions,
}

impl Default for FlightOptions {
    fn default() -> Self {
        Self {
            flights_max: 64,
            background_flights_max: 4,
            unkept_readers_max: 64,
            attempts_max: 6,
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            silence_max: Duration::from_secs(20),
            pump: PumpOptions { in_flight_bytes_max: 2 * 1024 * 1024, ..PumpOptions::default() },
        }
    }
}

/// Proof that a repository may serve a digest: the caller has the link from its index, or from
/// [`Upstream::link`]. Without it a flight started for one repository would show another
/// repository's readers that the blob exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linked {
    /// Size in bytes that came with the link; an upstream that names another one is not believed.
    pub size: Option<u64>,
}

/// All flights of a node. Cloning gives another handle.
#[derive(Clone)]
pub struct Flights {
    node: Arc<Node>,
}

/// What every flight of a node uses.
struct Node {
    store: Store,
    upstream: Arc<dyn Upstream>,
    shutdown: Shutdown,
    options: FlightOptions,
    metrics: FlightMetrics,
    pace: Pace,
    flying: Mutex<HashMap<Digest, Arc<Shared>>>,
    client_turns: Arc<Semaphore>,
    background_turns: Arc<Semaphore>,
    unkept_turns: Arc<Semaphore>,
}

/// One reader's place on a flight. Dropping it does not end the flight.
#[derive(Clone)]
pub struct Flight {
    node: Arc<Node>,
    shared: Arc<Shared>,
    repo: RepoName,
    linked: Linked,
    is_joined: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Client,
    /// For a client of a site that does not keep it.
    Passing,
    Background,
}

impl Flights {
    /// Flights that fill `store` from `upstream`, as tasks of `shutdown`.
    pub fn new(
        store: Store,
        upstream: Arc<dyn Upstream>,
        shutdown: Shutdown,
        options: FlightOptions,
        metrics: FlightMetrics,
    ) -> Self {
        Self::paced(store, upstream, shutdown, options, metrics, Pace::unlimited())
    }

    /// The same, where fills that nobody waits for go at a pace.
    pub fn paced(
        store: Store,
        upstream: Arc<dyn Upstream>,
        shutdown: Shutdown,
        options: FlightOptions,
        metrics: FlightMetrics,
        pace: Pace,
    ) -> Self {
        let node = Node {
            store,
            upstream,
            shutdown,
            options,
            metrics,
            pace,
            flying: Mutex::default(),
            client_turns: Arc::new(Semaphore::new(options.flights_max)),
            background_turns: Arc::new(Semaphore::new(options.background_flights_max)),
            unkept_turns: Arc::new(Semaphore::new(options.unkept_readers_max)),
        };
        Self { node: Arc::new(node) }
    }

    /// Gets on the flight that brings `digest`, or starts one, for a client of `repo`. Returns at once; to be
    /// called on a runtime. A blob that came in between is found in the store.
    pub fn join(&self, repo: &RepoName, digest: &Digest, linked: Linked) -> Flight {
        self.board(repo, digest, linked, Purpose::Client)
    }

    /// As [`Flights::join`], for a blob that this site does not keep: it does not come into the store,
    /// unless somebody else on board wants it there.
    pub fn pass(&self, repo: &RepoName, digest: &Digest, linked: Linked) -> Flight {
        self.board(repo, digest, linked, Purpose::Passing)
    }

    /// Brings `digest` into the store without haste, unless it is there, and waits until it is durable;
    /// returns its size in bytes. The fill goes on when this future is dropped.
    ///
    /// # Errors
    /// As [`Flight::size`]; [`FillError::Disk`] when it could not be kept.
    pub async fn ensure(&self, repo: &RepoName, digest: &Digest, linked: Linked) -> Result<u64, FillError> {
        self.bring(repo, digest, linked).kept().await
    }

    /// The same, without waiting.
    pub fn bring(&self, repo: &RepoName, digest: &Digest, linked: Linked) -> Flight {
        self.board(repo, digest, linked, Purpose::Background)
    }

    /// Flights in the air or waiting for their turn.
    pub fn in_progress(&self) -> usize {
        self.node.flying().len()
    }

    /// Those of them in the air, the furthest first; at most `fills_max`.
    pub fn fills(&self, fills_max: usize) -> Vec<Fill> {
        let flying: Vec<_> = self.node.flying().values().cloned().collect();
        let mut fills: Vec<_> = flying.iter().filter_map(|shared| shared.fill()).collect();
        fills.sort_unstable_by_key(|fill| (Reverse(fill.received_bytes), fill.digest));
        fills.truncate(fills_max);
        fills
    }

    fn board(&self, repo: &RepoName, digest: &Digest, linked: Linked, purpose: Purpose) -> Flight {
        let mut flying = self.node.flying();
        let (shared, is_joined) = match flying.get(digest) {
            Some(shared) => (Arc::clone(shared), true),
            None => (Arc::new(Shared::new(*digest)), false),
        };
        shared.admit(repo);
        if purpose != Purpose::Passing {
            shared.keep();
        }
        if is_joined {
            self.node.metrics.joined.inc();
        } else {
            flying.insert(*digest, Arc::clone(&shared));
            task::start(&self.node, &shared, linked, purpose);
        }
        if purpose != Purpose::Background {
            shared.hurry();
        }
        drop(flying);
        Flight { node: Arc::clone(&self.node), shared, repo: repo.clone(), linked, is_joined }
    }
}

impl Flight {
    /// Whether somebody else had started it.
    pub fn is_joined(&self) -> bool {
        self.is_joined
    }

    /// Bytes that have come.
    pub fn received(&self) -> u64 {
        self.shared.received()
    }

    /// Size in bytes of the blob, as soon as it is known. Of a blob so small that it is held back whole, it is
    /// known when the digest matched, so that a wrong one can still be answered with an error.
    ///
    /// # Errors
    /// Why there is nothing to read: [`FillError::NotLinked`] is the upstream's "no" to this
    /// repository, everything else is not an answer.
    pub async fn size(&self) -> Result<u64, FillError> {
        let mut progress = self.shared.watch();
        loop {
            {
                let now = progress.borrow_and_update();
                now.check(&self.repo)?;
                let is_settled = !matches!(now.stage, Stage::Waiting | Stage::Filling(_));
                match now.size {
                    Some(size) if is_settled || size > HOLD_BACK_BYTES => return self.linked.check(size),
                    _ => {}
                }
            }
            progress.changed().await.map_err(|_| FillError::Lost)?;
        }
    }

    /// Reads `range` of the blob: each byte as soon as it is there, the held-back tail when the
    /// digest matched. What lies beyond the end of the blob is left out; ask for [`Flight::size`] first.
    pub fn reader(&self, range: Range<u64>) -> FlightReader {
        FlightReader::new(&self.node, &self.shared, &self.repo, range)
    }

    /// Waits until the blob is durable in the store; returns its size in bytes.
    ///
    /// # Errors
    /// As [`Flight::size`]; [`FillError::Disk`] when it could not be kept.
    pub async fn kept(&self) -> Result<u64, FillError> {
        let mut progress = self.shared.watch();
        loop {
            {
                let now = progress.borrow_and_update();
                now.check(&self.repo)?;
                match (&now.stage, now.size) {
                    (Stage::Kept(_), Some(size)) => return self.linked.check(size),
                    (Stage::Unkept(unkept), _) => return Err(FillError::Disk(Arc::clone(&unkept.why))),
                    (Stage::Passed(_), _) => return Err(FillError::Lost),
                    _ => {}
                }
            }
            progress.changed().await.map_err(|_| FillError::Lost)?;
        }
    }
}

impl Linked {
    fn check(self, actual: u64) -> Result<u64, FillError> {
        match self.size {
            Some(expected) if expected != actual => Err(FillError::WrongSize { expected, actual }),
            _ => Ok(actual),
        }
    }
}

impl Node {
    fn flying(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Shared>>> {
        self.flying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a fill brought nothing, or not all.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FillError {
    /// The upstream says that this repository does not link the digest.
    #[error("the repository does not link the digest")]
    NotLinked,
    /// The upstream did not answer, again and again.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The upstream names another size than the link, or than before.
    #[error("upstream has {actual} bytes, not {expected}")]
    WrongSize {
        /// What the link says.
        expected: u64,
        /// What the upstream says.
        actual: u64,
    },
    /// The upstream sent its end too early.
    #[error("upstream ended after {received} of {size} bytes")]
    TooShort {
        /// What came.
        received: u64,
        /// What was announced.
        size: u64,
    },
    /// The upstream sent more than it announced.
    #[error("upstream sent more than {size} bytes")]
    TooLong {
        /// What was announced.
        size: u64,
    },
    /// What the upstream sent is something else.
    #[error("upstream sent content that hashes to {actual}")]
    WrongContent {
        /// What it hashes to.
        actual: Box<Digest>,
    },
    /// This site's disk failed.
    #[error(transparent)]
    Disk(Arc<StoreError>),
    /// This site is stopping.
    #[error("the site is stopping")]
    Stopping,
    /// The fill's task ended without a word.
    #[error("the fill was lost")]
    Lost,
}

impl From<StoreError> for FillError {
    fn from(error: StoreError) -> Self {
        Self::Disk(Arc::new(error))
    }
}

#[cfg(test)]
mod tests;
