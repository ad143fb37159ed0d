//! How far the primary's clock is ahead of this machine's latest reading, never understated.

use std::{collections::VecDeque, time::Duration};

use outport_proto::{Timestamp, frame::ClockOffset};

#[cfg(doc)]
use crate::clock::Clock;

/// Heartbeats looked back at: a minute of them, because a path may be slow for longer than some.
const SAMPLES: usize = 240;

/// Less is the time it takes to read two clocks.
const STEP_MIN: Duration = Duration::from_millis(10);
/// More heartbeats than can have waited for a machine that was held: after three seconds without a word
/// from it a connection is given up.
const SAMPLES_AFTER_STEP: usize = 40;

/// A heartbeat that travelled slowly makes the primary's clock look earlier than it is, so the
/// largest of the last differences is the truest.
#[derive(Debug, Default)]
pub struct PrimaryClock {
    samples: VecDeque<Sample>,
    /// By how much the local wall clock was set forward so far.
    forward: Duration,
    /// Heartbeats since it was last set forward, while that matters.
    since_step: Option<usize>,
}

/// What one heartbeat said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sample {
    ahead_micros: i64,
    rtt_micros: i64,
}

impl Sample {
    fn error_micros(&self) -> u64 {
        self.rtt_micros.unsigned_abs().div_ceil(2)
    }
}

impl PrimaryClock {
    /// A heartbeat that was sent at `primary` arrived when the local clock's [`Clock::latest`] read `latest`, over a
    /// path with that round trip; `forward` is by how much the local wall clock was set forward so far. All
    /// of the round trip is added where half is expected, so that no answer
    /// looks younger than it is, also once the path is gone.
    /// Returns what [`PrimaryClock::ahead_micros`] is now.
    pub fn heard(&mut self, primary: Timestamp, latest: Duration, forward: Duration, rtt: Duration) -> i64 {
        let arrived = i128::from(primary.plus(rtt).as_micros());
        let latest = i128::try_from(latest.as_micros()).unwrap_or(i128::MAX);
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        let ahead = i64::try_from(arrived.saturating_sub(latest)).unwrap_or(i64::MAX);
        let rtt_micros = i64::try_from(rtt.as_micros()).unwrap_or(i64::MAX);
        self.samples.push_back(Sample { ahead_micros: ahead, rtt_micros });
        self.forget_before_step(forward);
        self.ahead_micros().unwrap_or(ahead)
    }

    /// Microseconds to add to the local [`Clock::latest`]; `None` before the first heartbeat.
    pub fn ahead_micros(&self) -> Option<i64> {
        self.samples.iter().max().map(|sample| sample.ahead_micros)
    }

    /// By how much [`PrimaryClock::ahead_micros`] is expected to be too much: half a round trip.
    pub fn error_micros(&self) -> u64 {
        self.samples.iter().max().map_or(0, Sample::error_micros)
    }

    /// How far the local wall clock is ahead of the primary's, now that it reads `now` and the clock's latest
    /// reading is `latest`. The heartbeat travelled for between none and all of the round trip.
    pub fn offset(&self, now: Timestamp, latest: Duration) -> Option<ClockOffset> {
        let best = self.samples.iter().max()?;
        let Sample { ahead_micros, rtt_micros } = *best;
        let primary = i128::try_from(latest.as_micros()).ok()? + i128::from(ahead_micros - rtt_micros / 2);
        let ahead_micros = i64::try_from(i128::from(now.as_micros()) - primary).ok()?;
        Some(ClockOffset { ahead_micros, error_micros: best.error_micros() })
    }

    /// Who held this machine set its wall clock forward, and then heartbeats from before are right as ever; or
    /// somebody set it who did not hold it, and then they make the primary's clock look too late.
    /// Heartbeats that waited for the machine say the latter in any case, those after them do not.
    fn forget_before_step(&mut self, forward: Duration) {
        if forward > self.forward + STEP_MIN {
            (self.forward, self.since_step) = (forward, Some(0));
        }
        if let Some(since) = &mut self.since_step {
            *since += 1;
            if *since > SAMPLES_AFTER_STEP {
                self.samples.drain(..self.samples.len() - *since);
                self.since_step = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_heartbeat_counts_and_is_forgotten_in_time() {
        let mut clock = PrimaryClock::default();
        let (at, here) = (Timestamp::from_micros, Duration::from_micros);
        let (rtt, none) = (Duration::from_micros(30), Duration::ZERO);
        assert_eq!(clock.ahead_micros(), None);
        clock.heard(at(10_500), here(10_000), none, rtt);
        clock.heard(at(10_600), here(10_400), none, rtt);
        assert_eq!(clock.ahead_micros(), Some(530));
        (0..SAMPLES).for_each(|_| _ = clock.heard(at(500), here(1000), none, rtt));
        assert_eq!(clock.ahead_micros(), Some(-470));
    }

    #[test]
    fn the_offset_is_known_to_half_a_round_trip() {
        let mut clock = PrimaryClock::default();
        let (at, here) = (Timestamp::from_micros, Duration::from_micros);
        assert_eq!(clock.offset(at(0), here(0)), None);
        // Sent when the primary read 10,000, and 40 to 60 later here, where the wall clock reads 12,000.
        clock.heard(at(10_000), here(500), Duration::ZERO, here(100));
        let offset = clock.offset(at(12_000), here(500));
        assert_eq!(offset, Some(ClockOffset { ahead_micros: 1950, error_micros: 50 }));
        assert_eq!(clock.offset(at(13_000), here(1500)), offset, "time goes on");
    }

    #[test]
    fn a_step_forward_is_believed_to_be_one_once_enough_was_heard_since() {
        let second = Duration::from_secs(1);
        let mut clock = PrimaryClock::default();
        let at = |secs: u64| Timestamp::from_secs(100 + secs);
        for secs in 0..50 {
            clock.heard(at(secs), second * secs as u32, Duration::ZERO, Duration::ZERO);
        }
        assert_eq!(clock.ahead_micros(), Some(100_000_000));
        // The local clock is ten seconds further: was it held, or was its wall clock set?
        let forward = second * 10;
        for secs in 50..=50 + SAMPLES_AFTER_STEP as u64 {
            assert_eq!(clock.ahead_micros(), Some(100_000_000), "perhaps it was held");
            clock.heard(at(secs), second * secs as u32 + forward, forward, Duration::ZERO);
        }
        assert_eq!(clock.ahead_micros(), Some(90_000_000), "it was set");
    }
}
