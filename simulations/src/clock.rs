//! What the clocks of the world's machines show: each is off, and drifts.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

use outport::clock::{Clock, Forward};
use outport_proto::Timestamp;
use tokio::time::Instant;

/// The true time when a world begins.
const BEGINNING: Timestamp = Timestamp::from_secs(1_000_000_000);

/// The clock of one machine.
#[derive(Debug)]
pub(crate) struct MachineClock {
    begun: Instant,
    ahead_micros: AtomicI64,
    /// The latest time it ever showed.
    newest: AtomicU64,
    forward: Forward,
    /// How much it gains, in parts of a million.
    drift: i64,
}

impl MachineClock {
    pub(crate) fn new(begun: Instant, ahead_micros: i64, drift: i64) -> Self {
        Self {
            begun,
            ahead_micros: AtomicI64::new(ahead_micros),
            newest: AtomicU64::new(0),
            forward: Forward::new(),
            drift,
        }
    }
}

impl MachineClock {
    /// Somebody sets it by so much.
    pub(crate) fn turn(&self, by_micros: i64) {
        self.now();
        self.ahead_micros.fetch_add(by_micros, Ordering::Relaxed);
    }

    /// Whether it shows a time that it showed before.
    pub(crate) fn is_set_back(&self) -> bool {
        self.now().as_micros() < self.newest.load(Ordering::Relaxed)
    }

    /// What passed by the machine's own measure.
    fn passed_micros(&self) -> i64 {
        let elapsed = i64::try_from(self.begun.elapsed().as_micros()).unwrap_or(i64::MAX);
        elapsed + elapsed / 1_000_000 * self.drift + elapsed % 1_000_000 * self.drift / 1_000_000
    }
}

impl Clock for MachineClock {
    fn now(&self) -> Timestamp {
        let ahead = self.passed_micros() + self.ahead_micros.load(Ordering::Relaxed);
        let now = BEGINNING.as_micros().saturating_add_signed(ahead);
        self.newest.fetch_max(now, Ordering::Relaxed);
        Timestamp::from_micros(now)
    }

    fn steady(&self) -> Duration {
        Duration::from_micros(u64::try_from(self.passed_micros()).unwrap_or_default())
    }

    fn latest(&self) -> Duration {
        let steady = self.steady();
        steady + self.forward.by(self.now(), steady)
    }
}
