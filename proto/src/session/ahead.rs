//! How far the upstream's time on a stream is ahead of the time here, never understated.

use std::{collections::VecDeque, time::Duration};

/// Round trips looked back at: a minute of them, because a path may be slow for longer than some.
const SAMPLES_MAX: usize = 60;

/// Parts of a million by which two clocks may part that nobody sets.
const DRIFT_PPM: u64 = 500;

/// What left here at a time and was there at another: the latter less the former is the difference of the two
/// clocks and what it took to get there. So the least of the last differences is the truest, none of them is too
/// small, and it does not matter how long the answer took.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    samples: VecDeque<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    left: Duration,
    ahead_micros: i64,
}

impl Ahead {
    /// Another stream: the first word on it leaves now, and the upstream's time begins when it comes there.
    pub(super) fn begin(&mut self, now: Duration) {
        self.samples.clear();
        self.came(now, 0);
    }

    /// What left here at `left` was there at `came_micros` of the upstream's time.
    pub(super) fn came(&mut self, left: Duration, came_micros: u64) {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        let came = i64::try_from(came_micros).unwrap_or(i64::MAX);
        self.samples.push_back(Sample { left, ahead_micros: came.saturating_sub(signed_micros(left)) });
    }

    /// Microseconds to take off the upstream's time for the time here, which `now` it is; `None` before
    /// the first stream.
    pub(super) fn micros(&self, now: Duration) -> Option<i64> {
        let least = self.samples.iter().map(|sample| {
            let drift = now.saturating_sub(sample.left).as_micros() * u128::from(DRIFT_PPM) / 1_000_000;
            sample.ahead_micros.saturating_add(i64::try_from(drift).unwrap_or(i64::MAX))
        });
        least.min()
    }
}

/// `time` in microseconds, with room below zero.
pub(super) fn signed_micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_way_there_counts_until_clocks_may_have_parted() {
        let (second, millis) = (Duration::from_secs, Duration::from_millis);
        let mut ahead = Ahead::default();
        assert_eq!(ahead.micros(second(1)), None);
        // The stream was opened at 100 s; the first word took two seconds, as its first packet was lost.
        ahead.begin(second(100));
        assert_eq!(ahead.micros(second(100)), Some(-100_000_000), "it may have been there at once");
        // So the clock there is 102 s behind. A probe takes 20 ms.
        ahead.came(second(103), 1_020_000);
        assert_eq!(ahead.micros(second(103)), Some(-101_980_000));
        ahead.came(second(104), 2_900_000);
        assert_eq!(ahead.micros(second(104)), Some(-101_980_000 + 500), "one that is slow tells nothing new");
        for probe in 0..SAMPLES_MAX as u64 {
            ahead.came(second(105 + probe), 3_030_000 + probe * 1_000_000);
        }
        let now = second(104 + SAMPLES_MAX as u64) + millis(500);
        assert!((-101_970_000..-101_969_000).contains(&ahead.micros(now).unwrap()), "the path became longer");
        ahead.begin(second(300));
        assert_eq!(ahead.micros(second(300)), Some(-300_000_000));
    }
}
