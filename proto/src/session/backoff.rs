//! How long to wait before trying again.

use std::time::Duration;

/// Delays that double from a first to a longest one, each shortened at random by up to half so
/// that peers which were cut off together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Delays from `first` to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// The delay after one more failure; `random` is any random number.
    pub fn next_delay(&mut self, random: u64) -> Duration {
        let doublings = self.failures.min(31);
        self.failures = self.failures.saturating_add(1);
        let delay = self.first.saturating_mul(1 << doublings).min(self.longest);
        let shortened_by = u64::try_from(delay.as_micros() / 2).unwrap_or(u64::MAX);
        delay - Duration::from_micros(random % shortened_by.saturating_add(1))
    }

    /// It worked: the next failure waits the first delay again. Only a session that got a
    /// heartbeat has worked; one that was refused has not.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

impl Default for Backoff {
    /// From 100 ms to 15 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(15))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let delays: Vec<_> = (0..6).map(|_| backoff.next_delay(0).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next_delay(0).as_millis(), 100);
    }

    proptest! {
        #[test]
        fn a_delay_is_never_under_half_nor_over_whole(random in any::<u64>(), failures in 0_u32..100) {
            let mut backoff = Backoff { failures, ..Backoff::default() };
            let whole = backoff.clone().next_delay(0);
            let delay = backoff.next_delay(random);
            prop_assert!(whole / 2 <= delay && delay <= whole && whole <= Duration::from_secs(15));
        }
    }
}
