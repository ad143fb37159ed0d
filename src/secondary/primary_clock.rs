//! How far the primary's clock is ahead of this machine's, never understated.

use std::{collections::VecDeque, time::Duration};

use outport_proto::Timestamp;

/// Heartbeats looked back at: a minute of them, because a path may be slow for longer than some.
const SAMPLES: usize = 240;

/// A heartbeat that travelled slowly makes the primary's clock look earlier than it is, so the
/// largest of the last differences is the truest.
#[derive(Debug, Default)]
pub struct PrimaryClock(VecDeque<i64>);

impl PrimaryClock {
    /// A heartbeat that was sent at `primary` arrived when the local clock read `local`, over a
    /// path with that round trip. All of it is added where half is expected, so that no answer
    /// looks younger than it is, also once the path is gone.
    pub fn heard(&mut self, primary: Timestamp, local: Timestamp, rtt: Duration) {
        let arrived = primary.plus(rtt);
        let ahead = i64::try_from(i128::from(arrived.as_micros()) - i128::from(local.as_micros()));
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(ahead.unwrap_or(0));
    }

    /// Microseconds to add to the local clock.
    pub fn ahead_micros(&self) -> i64 {
        self.0.iter().max().copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_heartbeat_counts_and_is_forgotten_in_time() {
        let mut clock = PrimaryClock::default();
        let at = Timestamp::from_micros;
        let rtt = Duration::from_micros(30);
        clock.heard(at(10_500), at(10_000), rtt);
        clock.heard(at(10_600), at(10_400), rtt);
        assert_eq!(clock.ahead_micros(), 530);
        (0..SAMPLES).for_each(|_| clock.heard(at(500), at(1000), rtt));
        assert_eq!(clock.ahead_micros(), -470);
    }
}
