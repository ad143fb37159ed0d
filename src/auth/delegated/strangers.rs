//! How often the registry is asked about credentials that it has not said yes to.
//!
//! Whoever makes credentials up could otherwise have the gateway ask about each of them, until the registry
//! locks out the address that so many wrong ones come from. Only what was no yes counts: many who come at
//! once with good ones wait for their turn and use up nothing.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use lru::LruCache;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use super::{Hash, Unjudged, WRONG_PER_MINUTE};

/// Questions on their way at once.
const UNDER_WAY_MAX: usize = 32;
/// How long one waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_secs(60);

/// Credentials that are known, and what is left for others.
pub(super) struct Strangers {
    state: Mutex<State>,
    turns: Semaphore,
}

struct State {
    /// Whom the registry has said yes to, by a hash of the credentials.
    known: LruCache<Hash, ()>,
    known_max: usize,
    /// Wrong ones that may come: a bucket that is full after a minute. Those under way at its end may bring
    /// it below zero.
    tokens: f64,
    filled: Instant,
}

/// A question about credentials that are not known. It counts, also where nobody waits for its answer any
/// more, unless it was answered otherwise.
pub(super) struct Admitted<'a> {
    strangers: &'a Strangers,
    counts: bool,
    _turn: SemaphorePermit<'a>,
}

impl Strangers {
    pub(super) fn new(known_max: usize) -> Self {
        let state = State {
            known: LruCache::unbounded(),
            known_max,
            tokens: WRONG_PER_MINUTE.into(),
            filled: Instant::now(),
        };
        Self { state: Mutex::new(state), turns: Semaphore::new(UNDER_WAY_MAX) }
    }

    /// Knows so many from now on.
    pub(super) fn limit(&self, known_max: usize) {
        self.state().known_max = known_max;
    }

    /// Whether the registry has said yes to these credentials, and no since.
    pub(super) fn knows(&self, credentials: &Hash) -> bool {
        self.state().known.get(credentials).is_some()
    }

    /// The registry said yes to them.
    pub(super) fn know(&self, credentials: Hash) {
        let mut state = self.state();
        state.known.push(credentials, ());
        while state.known.len() > state.known_max {
            state.known.pop_lru();
        }
    }

    /// The registry does not take them any more.
    pub(super) fn forget(&self, credentials: &Hash) {
        self.state().known.pop(credentials);
    }

    /// A turn to ask about credentials that are not known.
    ///
    /// # Errors
    /// [`Unjudged::TooMany`] when too many were asked about.
    pub(super) async fn admit(&self) -> Result<Admitted<'_>, Unjudged> {
        let turn = tokio::time::timeout(TURN_TIMEOUT, self.turns.acquire()).await;
        let Ok(Ok(turn)) = turn else { return Err(Unjudged::TooMany { retry_after: TURN_TIMEOUT }) };
        self.state().check().map_err(|retry_after| Unjudged::TooMany { retry_after })?;
        Ok(Admitted { strangers: self, counts: true, _turn: turn })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&mut self) -> Result<(), Duration> {
        let now = Instant::now();
        let (most, passed) = (f64::from(WRONG_PER_MINUTE), now.duration_since(self.filled));
        self.filled = now;
        self.tokens = most.min(self.tokens + most * passed.as_secs_f64() / MINUTE.as_secs_f64());
        match 1.0 - self.tokens {
            missing if missing > 0.0 => Err(MINUTE.mul_f64(missing / most)),
            _ => Ok(()),
        }
    }
}

impl Admitted<'_> {
    /// It was no wrong guess.
    pub(super) fn forgive(mut self) {
        self.counts = false;
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if self.counts {
            self.strangers.state().tokens -= 1.0;
        }
    }
}
