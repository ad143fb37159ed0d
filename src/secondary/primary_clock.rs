//! How far the primary's clock is ahead of this machine's steady one, never understated.

use std::{collections::VecDeque, time::Duration};

use outport_proto::Timestamp;

/// Heartbeats looked back at: a minute of them, because a path may be slow for longer than some.
const SAMPLES: usize = 240;

/// A heartbeat that travelled slowly makes the primary's clock look earlier than it is, so the
/// largest of the last differences is the truest.
#[derive(Debug, Default)]
pub struct PrimaryClock(VecDeque<i64>);

impl PrimaryClock {
    /// A heartbeat that was sent at `primary` arrived when the local steady clock read `steady`, over a
    /// path with that round trip. All of it is added where half is expected, so that no answer
    /// looks younger than it is, also once the path is gone.
    /// Returns what [`PrimaryClock::ahead_micros`] is now.
    pub fn heard(&mut self, primary: Timestamp, steady: Duration, rtt: Duration) -> i64 {
        let arrived = i128::from(primary.plus(rtt).as_micros());
        let steady = i128::try_from(steady.as_micros()).unwrap_or(i128::MAX);
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        let ahead = i64::try_from(arrived.saturating_sub(steady)).unwrap_or(i64::MAX);
        self.0.push_back(ahead);
        self.ahead_micros().unwrap_or(ahead)
    }

    /// Microseconds to add to the local steady clock; `None` before the first heartbeat.
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
        let (at, steady) = (Timestamp::from_micros, Duration::from_micros);
        let rtt = Duration::from_micros(30);
        assert_eq!(clock.ahead_micros(), None);
        clock.heard(at(10_500), steady(10_000), rtt);
        clock.heard(at(10_600), steady(10_400), rtt);
        assert_eq!(clock.ahead_micros(), Some(530));
        (0..SAMPLES).for_each(|_| _ = clock.heard(at(500), steady(1000), rtt));
        assert_eq!(clock.ahead_micros(), Some(-470));
    }
}
