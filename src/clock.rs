//! The clocks of the machine, injected so that tests and simulations can turn them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use outport_proto::Timestamp;

/// Reads the clocks of the machine.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock. It may be set, back as well.
    fn now(&self) -> Timestamp;

    /// Time since a moment that stays the same for the life of the process. Nobody sets it, and it
    /// goes on while the machine sleeps.
    fn steady(&self) -> Duration;

    /// The time now on another clock, so many microseconds ahead of the steady one.
    fn ahead_of_steady(&self, micros: i64) -> Timestamp {
        let steady = u64::try_from(self.steady().as_micros()).unwrap_or(u64::MAX);
        Timestamp::from_micros(steady.saturating_add_signed(micros))
    }
}

/// A clock that parts share.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_micros(u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX))
    }

    fn steady(&self) -> Duration {
        let since_boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::try_from(since_boot).unwrap_or_default()
    }
}

/// A clock that a test sets.
#[derive(Debug, Default)]
pub struct ManualClock {
    wall_micros: AtomicU64,
    steady_micros: AtomicU64,
}

impl ManualClock {
    /// A clock that stands at `now`.
    pub fn at(now: Timestamp) -> Arc<Self> {
        let clock = Self::default();
        clock.set(now);
        Arc::new(clock)
    }

    /// Time passes until it is `now`.
    pub fn set(&self, now: Timestamp) {
        self.wall_micros.store(now.as_micros(), Ordering::SeqCst);
        self.steady_micros.store(now.as_micros(), Ordering::SeqCst);
    }

    /// Somebody sets the wall clock to `now`, and no time passes.
    pub fn turn(&self, now: Timestamp) {
        self.wall_micros.store(now.as_micros(), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.wall_micros.load(Ordering::SeqCst))
    }

    fn steady(&self) -> Duration {
        Duration::from_micros(self.steady_micros.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steady_clock_goes_on() {
        let first = SystemClock.steady();
        assert!(first > Duration::ZERO && SystemClock.steady() >= first);
    }
}
