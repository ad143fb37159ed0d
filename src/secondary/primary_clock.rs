//! How far the primary's clock is ahead of this machine's, never understated.

use std::{collections::VecDeque, time::Duration};

use outport_proto::Timestamp;

/// Heartbeats looked back at: 4 s of them.
const SAMPLES: usize = 16;

/// A heartbeat that travelled slowly makes the primary's clock look earlier than it is, so the
/// largest of the last differences is the truest.
#[derive(Debug, Default)]
pub(super) struct PrimaryClock(VecDeque<i64>);

impl PrimaryClock {
    /// A heartbeat that was sent at `primary` arrived when the local clock read `local`.
    pub(super) fn heard(&mut self, primary: Timestamp, local: Timestamp) {
        let ahead = i64::try_from(i128::from(primary.as_micros()) - i128::from(local.as_micros()));
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(ahead.unwrap_or(0));
    }

    /// Microseconds to add to the local clock. A whole round trip is added where half of one is
    /// expected, so that no answer looks younger than it is.
    pub(super) fn ahead_micros(&self, rtt: Duration) -> i64 {
        let newest = self.0.iter().max().copied().unwrap_or(0);
        newest.saturating_add(i64::try_from(rtt.as_micros()).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_heartbeat_counts_and_is_forgotten_in_time() {
        let mut clock = PrimaryClock::default();
        let at = Timestamp::from_micros;
        clock.heard(at(10_500), at(10_000));
        clock.heard(at(10_600), at(10_400));
        assert_eq!(clock.ahead_micros(Duration::from_micros(30)), 530);
        (0..SAMPLES).for_each(|_| clock.heard(at(500), at(1000)));
        assert_eq!(clock.ahead_micros(Duration::ZERO), -500);
    }
}
