//! The process that code runs in: the real one, or one of many that a simulation runs on one
//! thread. Only what cannot be handed over as an argument everywhere is asked of it: where tasks
//! belong, where blocking work runs ([`crate::blocking`]) and what is random ([`crate::random`]).

use std::{
    cell::RefCell,
    fmt,
    future::{Future, pending, poll_fn},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

thread_local! {
    static CURRENT: RefCell<Option<Simulated>> = const { RefCell::new(None) };
}

/// A process of a simulation. What it runs, and whatever that spawns through [`spawn`], belongs
/// to it. Cloning gives another handle to the same process.
#[derive(Clone)]
pub struct Simulated {
    inner: Arc<Inner>,
}

struct Inner {
    life: CancellationToken,
    random: AtomicU64,
    #[cfg(feature = "planted-bugs")]
    bug: Option<crate::planted::Bug>,
}

impl Simulated {
    /// A process to which everything random follows from `seed`.
    pub fn new(seed: u64) -> Self {
        let inner = Inner {
            life: CancellationToken::new(),
            random: AtomicU64::new(seed),
            #[cfg(feature = "planted-bugs")]
            bug: None,
        };
        Self { inner: Arc::new(inner) }
    }

    /// [`Simulated::new`], with a mistake to make.
    #[cfg(feature = "planted-bugs")]
    pub fn with_bug(seed: u64, bug: Option<crate::planted::Bug>) -> Self {
        let (life, random) = (CancellationToken::new(), AtomicU64::new(seed));
        Self { inner: Arc::new(Inner { life, random, bug }) }
    }

    /// The mistake it is to make.
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn bug(&self) -> Option<crate::planted::Bug> {
        self.inner.bug
    }

    /// Runs `work` in this process: to its end, or until the process is killed. Then it stops at
    /// whatever it was waiting for, is dropped, and this pends for ever.
    pub fn run<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        let process = self.clone();
        let mut work = Box::pin(work);
        async move {
            let mut killed = Box::pin(process.inner.life.cancelled());
            let ended = poll_fn(|context| {
                if killed.as_mut().poll(context).is_ready() {
                    return Poll::Ready(None);
                }
                let _inside = process.enter();
                work.as_mut().poll(context).map(Some)
            });
            if let Some(output) = ended.await {
                return output;
            }
            {
                let _inside = process.enter();
                drop(work);
            }
            pending().await
        }
    }

    /// Ends it as SIGKILL would: nothing of it runs any more, at whatever it was waiting.
    pub fn kill(&self) {
        self.inner.life.cancel();
    }

    /// The next number of its generator: SplitMix64 (Steele, Lea, Flood 2014).
    pub(crate) fn number(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut mixed = self.inner.random.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Blocking work begins when a thread and the disk have time for it: sometimes not at once.
    pub(crate) async fn dawdle(&self) {
        let chance = self.number();
        if chance.is_multiple_of(8) {
            tokio::time::sleep(Duration::from_micros(chance >> 8 & 0x3fff)).await;
        }
    }

    fn enter(&self) -> Entered {
        Entered { before: CURRENT.replace(Some(self.clone())) }
    }
}

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulated").field("killed", &self.inner.life.is_cancelled()).finish_non_exhaustive()
    }
}

/// Code of a simulated process runs while this lives.
struct Entered {
    before: Option<Simulated>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.before.take());
    }
}

/// The simulated process that the caller belongs to; `None` in a real one.
pub fn simulated() -> Option<Simulated> {
    CURRENT.with_borrow(Clone::clone)
}

/// Whether the caller belongs to a simulated process.
pub(crate) fn is_simulated() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

/// A task of the process.
pub fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(inherit(task))
}

/// `task` as one of the process, for whatever spawns it.
pub fn inherit<F: Future>(task: F) -> impl Future<Output = F::Output> + use<F> {
    let process = simulated();
    async move {
        match process {
            None => task.await,
            Some(process) => process.run(task).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    #[tokio::test]
    async fn a_killed_process_does_nothing_more_and_lets_go_of_what_it_had() {
        let process = Simulated::new(1);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let running = tokio::spawn(process.run(async move {
            let inner = Arc::clone(&noted);
            let nested = spawn(async move {
                assert!(is_simulated());
                inner.lock().unwrap_or_else(PoisonError::into_inner).push("begun");
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
                inner.lock().unwrap_or_else(PoisonError::into_inner).push("ended");
            });
            nested.await.unwrap();
            drop(noted);
        }));
        while seen.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        process.kill();
        while Arc::strong_count(&seen) > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*seen.lock().unwrap(), ["begun"]);
        assert!(!running.is_finished() && !is_simulated());
    }
}
