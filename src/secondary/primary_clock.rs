//! How far the primary's clock is ahead of this machine's latest reading, never understated.

use std::{collections::VecDeque, time::Duration};

use outport_proto::Timestamp;

#[cfg(doc)]
use crate::clock::Clock;

/// Heartbeats looked back at: a minute of them, because a path may be slow for longer than some.
const SAMPLES: usize = 240;

/// A heartbeat that travelled slowly makes the primary's clock look earlier than it is, so the
/// largest of the last differences is the truest.
#[derive(Debug, Default)]
pub struct PrimaryClock(VecDeque<i64>);

impl PrimaryClock {
    /// A heartbeat that was sent at `primary` arrived when the local clock's [`Clock::latest`] read `latest`, over a
    /// path with that round trip. After a wall clock was set forward it looks too late for as long as
    /// heartbeats from before are looked back at: the machine may have been held, and heartbeats that waited
    /// for it are no proof of the contrary. All of the round trip is added where half is expected, so that no answer
    /// looks younger than it is, also once the path is gone.
    /// Returns what [`PrimaryClock::ahead_micros`] is now.
    pub fn heard(&mut self, primary: Timestamp, latest: Duration, rtt: Duration) -> i64 {
        let arrived = i128::from(primary.plus(rtt).as_micros());
        let latest = i128::try_from(latest.as_micros()).unwrap_or(i128::MAX);
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        let ahead = i64::try_from(arrived.saturating_sub(latest)).unwrap_or(i64::MAX);
        self.0.push_back(ahead);
        self.ahead_micros().unwrap_or(ahead)
    }

    /// Microseconds to add to the local [`Clock::latest`]; `None` before the first heartbeat.
    pub fn ahead_micros(&self) -> Option<i64> {
        self.0.iter().max().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_heartbeat_counts_and_is_forgotten_in_time() {
        let mut clock = PrimaryClock::default();
        let (at, here) = (Timestamp::from_micros, Duration::from_micros);
        let rtt = Duration::from_micros(30);
        assert_eq!(clock.ahead_micros(), None);
        clock.heard(at(10_500), here(10_000), rtt);
        clock.heard(at(10_600), here(10_400), rtt);
        assert_eq!(clock.ahead_micros(), Some(530));
        (0..SAMPLES).for_each(|_| _ = clock.heard(at(500), here(1000), rtt));
        assert_eq!(clock.ahead_micros(), Some(-470));
    }
}
