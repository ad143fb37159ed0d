//! The clocks of the machine, injected so that tests and simulations can turn them.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use outport_proto::Timestamp;

/// Reads the clocks of the machine.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock. It may be set, back as well.
    fn now(&self) -> Timestamp;

    /// Time since a moment that stays the same for the life of the process. Nobody sets it, and it
    /// goes on while the machine sleeps; while whoever runs a virtual machine holds that, it stands still.
    fn steady(&self) -> Duration;

    /// The same, and later by all that the wall clock was set forward: a virtual machine that was held
    /// learns in that way for how long. So an age by this clock may be overstated and is never
    /// understated, whoever sets the wall clock.
    fn latest(&self) -> Duration;

    /// The steady clock's reading as a time, for what ends when so much has passed for sure.
    fn steady_time(&self) -> Timestamp {
        Timestamp::default().plus(self.steady())
    }

    /// How long ago [`Clock::latest`] read so many microseconds, which are below zero before its beginning.
    fn latest_since(&self, micros: i64) -> Duration {
        let latest = i64::try_from(self.latest().as_micros()).unwrap_or(i64::MAX);
        Duration::from_micros(u64::try_from(latest.saturating_sub(micros)).unwrap_or_default())
    }

    /// The time now on another clock, so many microseconds ahead of [`Clock::latest`].
    fn ahead_of_latest(&self, micros: i64) -> Timestamp {
        let latest = u64::try_from(self.latest().as_micros()).unwrap_or(u64::MAX);
        Timestamp::from_micros(latest.saturating_add_signed(micros))
    }
}

/// A clock that parts share.
pub type SharedClock = Arc<dyn Clock>;

/// By how much a wall clock was set forward, in all. What it is set back takes nothing off.
#[derive(Debug)]
pub struct Forward {
    /// The wall clock ahead of the steady one, in microseconds, when it was last set.
    ahead: AtomicI64,
    /// Microseconds.
    forward: AtomicU64,
    changing: Mutex<()>,
}

/// Less than this is the time it takes to read two clocks, until it adds up.
const STEP_MIN_MICROS: i64 = 50_000;
/// Before the first reading.
const UNKNOWN: i64 = i64::MIN;

impl Default for Forward {
    fn default() -> Self {
        Self::new()
    }
}

impl Forward {
    /// Of a clock that was not read yet.
    pub const fn new() -> Self {
        Self { ahead: AtomicI64::new(UNKNOWN), forward: AtomicU64::new(0), changing: Mutex::new(()) }
    }

    /// Takes in one reading of both clocks; returns by how much the wall clock was set forward so far.
    pub fn by(&self, wall: Timestamp, steady: Duration) -> Duration {
        let ahead = i128::from(wall.as_micros()) - i128::try_from(steady.as_micros()).unwrap_or(i128::MAX);
        let ahead = i64::try_from(ahead).unwrap_or(i64::MAX);
        let step = |last: i64| ahead.saturating_sub(last);
        if step(self.ahead.load(Ordering::Acquire)).abs() >= STEP_MIN_MICROS {
            let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            let last = self.ahead.load(Ordering::Acquire);
            if last != UNKNOWN && step(last) >= STEP_MIN_MICROS {
                self.forward.fetch_add(step(last).unsigned_abs(), Ordering::Release);
            }
            if last == UNKNOWN || step(last).abs() >= STEP_MIN_MICROS {
                // Last, so that whoever sees it sees what it added.
                self.ahead.store(ahead, Ordering::Release);
            }
        }
        self.so_far()
    }

    /// What the last reading said.
    fn so_far(&self) -> Duration {
        Duration::from_micros(self.forward.load(Ordering::Acquire))
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

/// The machine has one wall clock.
static FORWARD: Forward = Forward::new();
/// Readings of two clocks that are further apart were interrupted.
const READING_MAX: Duration = Duration::from_millis(1);
const READINGS_MAX: usize = 10;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_micros(u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX))
    }

    fn steady(&self) -> Duration {
        let since_boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::try_from(since_boot).unwrap_or_default()
    }

    fn latest(&self) -> Duration {
        for _ in 0..READINGS_MAX {
            let (before, wall, after) = (self.steady(), self.now(), self.steady());
            if after.saturating_sub(before) < READING_MAX {
                return after + FORWARD.by(wall, after);
            }
        }
        self.steady() + FORWARD.so_far()
    }
}

/// A clock that a test sets.
#[derive(Debug, Default)]
pub struct ManualClock {
    /// The wall clock and the steady one.
    reads: Mutex<(Timestamp, Duration)>,
    forward: Forward,
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
        *self.reads() = (now, now.since(Timestamp::default()));
        self.latest();
    }

    /// Somebody sets the wall clock to `now`, and no time passes.
    pub fn turn(&self, now: Timestamp) {
        self.reads().0 = now;
        self.latest();
    }

    fn reads(&self) -> MutexGuard<'_, (Timestamp, Duration)> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.reads().0
    }

    fn steady(&self) -> Duration {
        self.reads().1
    }

    fn latest(&self) -> Duration {
        let (wall, steady) = *self.reads();
        steady + self.forward.by(wall, steady)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_clocks_go_on_together() {
        let first = (SystemClock.steady(), SystemClock.latest());
        assert!(first.0 > Duration::ZERO && first.1 >= first.0);
        assert!(SystemClock.steady() >= first.0 && SystemClock.latest() >= first.1);
    }

    #[test]
    fn a_step_forward_counts_once_and_a_step_back_never() {
        let (at, millis) = (|millis: u64| Timestamp::from_micros(millis * 1000), Duration::from_millis);
        let forward = Forward::new();
        for (wall, steady, so_far) in [
            (1_000_000, 5_000, 0),
            (1_001_000, 6_000, 0),
            // Read at not quite the same moment.
            (1_002_010, 7_000, 0),
            (1_003_000, 8_000, 0),
            // Held for ten seconds, and told so.
            (1_014_000, 9_000, 10_000),
            (1_015_000, 10_000, 10_000),
            // Set back, and forward to where it was.
            (515_000, 10_000, 10_000),
            (1_016_000, 11_000, 510_000),
            // Short ones add up.
            (1_017_030, 12_000, 510_000),
            (1_018_060, 13_000, 510_060),
            (1_019_060, 14_000, 510_060),
        ] {
            assert_eq!(forward.by(at(wall), millis(steady)), millis(so_far), "{wall} at {steady}");
        }
    }

    #[test]
    fn many_that_read_at_once_count_a_step_once() {
        let forward = Forward::new();
        forward.by(Timestamp::from_secs(100), Duration::ZERO);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let so_far = forward.by(Timestamp::from_secs(160), Duration::ZERO);
                    assert_eq!(so_far, Duration::from_secs(60));
                });
            }
        });
        assert_eq!(forward.by(Timestamp::from_secs(160), Duration::ZERO), Duration::from_secs(60));
    }
}
