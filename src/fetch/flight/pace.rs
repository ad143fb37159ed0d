//! How fast fills may go that nobody waits for: a token bucket over all of them.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};

use super::{FillError, progress::Shared, resuming::Resuming};
use crate::store::ByteSource;

/// Bytes a second that fills may take now; `None` for no limit.
type Limit = Box<dyn Fn() -> Option<u64> + Send + Sync>;

/// How much may come at once after a while without any, as a share of a second's bytes.
const BURST: f64 = 0.25;

/// The limit is looked at again at least so often: a window may have ended.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The pace of fills without haste.
pub struct Pace {
    limit: Limit,
    bucket: Mutex<Bucket>,
    /// Under a limit such fills go one at a time: one that is held back holds what it was sent in
    /// the connection's window, and fills for clients share that window.
    turn: Arc<Semaphore>,
}

/// What may be taken. Below zero is what was taken in advance.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    bytes: f64,
    at: Instant,
}

impl Bucket {
    /// Time has passed.
    fn refill(&mut self, now: Instant, limit: u64) {
        let limit = limit as f64;
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.bytes = (self.bytes + seconds * limit).min(limit * BURST);
        self.at = now;
    }

    /// How long it takes to pay what was taken in advance.
    fn debt(&self, limit: u64) -> Option<Duration> {
        let seconds = -self.bytes / limit.max(1) as f64;
        (seconds > 0.0).then(|| Duration::try_from_secs_f64(seconds).unwrap_or(LOOK_EVERY))
    }
}

impl Pace {
    /// A pace that asks `limit` what holds now.
    pub fn new(limit: impl Fn() -> Option<u64> + Send + Sync + 'static) -> Self {
        Self {
            limit: Box::new(limit),
            bucket: Mutex::new(Bucket { bytes: 0.0, at: Instant::now() }),
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// No limit, ever.
    pub fn unlimited() -> Self {
        Self::new(|| None)
    }

    /// Waits for the one turn there is under a limit; `None` while there is no limit.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        while (self.limit)().is_some() {
            let turn = Arc::clone(&self.turn).acquire_owned();
            if let Ok(turn) = tokio::time::timeout(LOOK_EVERY, turn).await {
                return turn.ok();
            }
        }
        None
    }

    /// Takes `bytes`, and waits until they are paid.
    async fn take(&self, bytes: usize) {
        let Some(limit) = (self.limit)() else { return };
        self.with_bucket(|bucket| {
            bucket.refill(Instant::now(), limit);
            bucket.bytes -= bytes as f64;
        });
        while let Some(limit) = (self.limit)() {
            let debt = self.with_bucket(|bucket| {
                bucket.refill(Instant::now(), limit);
                bucket.debt(limit)
            });
            match debt {
                Some(debt) => sleep(debt.min(LOOK_EVERY)).await,
                None => return,
            }
        }
    }

    fn with_bucket<T>(&self, change: impl FnOnce(&mut Bucket) -> T) -> T {
        change(&mut self.bucket.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pace").field("limit", &(self.limit)()).finish_non_exhaustive()
    }
}

/// A fill's bytes, at the pace while nobody waits for them.
pub(super) struct Paced<'a> {
    source: &'a mut Resuming,
    pace: &'a Pace,
    shared: &'a Shared,
    _turn: Option<OwnedSemaphorePermit>,
}

impl<'a> Paced<'a> {
    /// Waits for its turn, unless somebody waits for the bytes.
    pub(super) async fn begin(source: &'a mut Resuming, pace: &'a Pace, shared: &'a Shared) -> Self {
        let turn = tokio::select! {
            biased;
            () = shared.hurried() => None,
            turn = pace.turn() => turn,
        };
        Self { source, pace, shared, _turn: turn }
    }

    /// The blob's size in bytes, from the upstream.
    pub(super) async fn size(&mut self) -> Result<u64, FillError> {
        self.source.size().await
    }
}

impl ByteSource for Paced<'_> {
    type Error = FillError;

    async fn next(&mut self) -> Result<Option<Bytes>, FillError> {
        let bytes = self.source.next().await?;
        let stopping = self.source.stopping();
        tokio::select! {
            biased;
            () = self.shared.hurried() => {}
            () = stopping.cancelled() => return Err(FillError::Stopping),
            () = self.pace.take(bytes.as_ref().map_or(0, Bytes::len)) => {}
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn limited(limit: u64) -> (Arc<Pace>, Arc<AtomicU64>) {
        let limit = Arc::new(AtomicU64::new(limit));
        let now = Arc::clone(&limit);
        let pace = Pace::new(move || Some(now.load(Ordering::SeqCst)).filter(|limit| *limit > 0));
        (Arc::new(pace), limit)
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_come_at_the_limit_however_many_take_them() {
        let (pace, _) = limited(1000);
        let began = Instant::now();
        let takers: Vec<_> = (0..4)
            .map(|_| {
                let pace = Arc::clone(&pace);
                tokio::spawn(async move {
                    for _ in 0..10 {
                        pace.take(250).await;
                    }
                })
            })
            .collect();
        for taker in takers {
            taker.await.unwrap();
        }
        let seconds = began.elapsed().as_secs_f64();
        assert!((9.9..10.1).contains(&seconds), "10,000 bytes took {seconds} s");
        // What was not used is not saved up.
        sleep(Duration::from_secs(100)).await;
        let began = Instant::now();
        pace.take(1250).await;
        let seconds = began.elapsed().as_secs_f64();
        assert!((0.99..1.01).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_changes_holds_within_a_second() {
        let (pace, limit) = limited(10);
        let began = Instant::now();
        let taking = tokio::spawn({
            let pace = Arc::clone(&pace);
            async move { pace.take(1_000_000).await }
        });
        sleep(Duration::from_millis(100)).await;
        limit.store(0, Ordering::SeqCst);
        taking.await.unwrap();
        assert!(began.elapsed() <= Duration::from_secs(2), "{:?}", began.elapsed());
        pace.take(1_000_000).await;
        assert!(pace.turn().await.is_none());
        limit.store(10, Ordering::SeqCst);
        let turn = pace.turn().await;
        assert!(turn.is_some());
        let next = tokio::spawn(async move { pace.turn().await.is_some() });
        sleep(Duration::from_secs(5)).await;
        assert!(!next.is_finished(), "one at a time");
        drop(turn);
        assert!(next.await.unwrap());
    }
}
