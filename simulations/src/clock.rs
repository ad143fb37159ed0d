//! What the clocks of the world's machines show: each is off, and drifts.

use outport::clock::Clock;
use outport_proto::Timestamp;
use tokio::time::Instant;

/// The true time when a world begins.
const BEGINNING: Timestamp = Timestamp::from_secs(1_000_000_000);

/// The clock of one machine.
#[derive(Debug)]
pub(crate) struct MachineClock {
    begun: Instant,
    ahead_micros: i64,
    /// How much it gains, in parts of a million.
    drift: i64,
}

impl MachineClock {
    pub(crate) fn new(begun: Instant, ahead_micros: i64, drift: i64) -> Self {
        Self { begun, ahead_micros, drift }
    }
}

impl Clock for MachineClock {
    fn now(&self) -> Timestamp {
        let elapsed = i64::try_from(self.begun.elapsed().as_micros()).unwrap_or(i64::MAX);
        let gained = elapsed / 1_000_000 * self.drift + elapsed % 1_000_000 * self.drift / 1_000_000;
        Timestamp::from_micros(
            BEGINNING.as_micros().saturating_add_signed(elapsed + gained + self.ahead_micros),
        )
    }
}
