//! When a site will have caught up.

use std::{collections::VecDeque, time::Duration};

/// The pace is that of so long a time.
const SPAN: Duration = Duration::from_secs(30);
/// How often it is looked at.
const STEP: Duration = Duration::from_secs(1);

/// Looks at what is left, from time to time.
#[derive(Debug, Default)]
pub(super) struct Eta {
    /// When so much was left; the newest last.
    seen: VecDeque<(Duration, u64)>,
}

impl Eta {
    /// So many events are left.
    pub(super) fn see(&mut self, now: Duration, left: u64) {
        if left == 0 {
            self.seen.clear();
        }
        if self.seen.back().is_none_or(|(at, _)| now >= *at + STEP) {
            self.seen.push_back((now, left));
            while self.seen.front().is_some_and(|(at, _)| now > *at + SPAN) {
                self.seen.pop_front();
            }
        }
    }

    /// A pause says nothing of the pace.
    pub(super) fn forget(&mut self) {
        self.seen.clear();
    }

    /// When none of `left` events will be; `None` when that does not come nearer.
    pub(super) fn eta(&self, now: Duration, left: u64) -> Option<Duration> {
        if left == 0 {
            return Some(Duration::ZERO);
        }
        let (since, from) = *self.seen.front()?;
        let (took, done) = (now.checked_sub(since)?, from.checked_sub(left)?);
        (done > 0 && took >= STEP)
            .then(|| Duration::try_from_secs_f64(took.as_secs_f64() * left as f64 / done as f64).ok())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_at_the_pace_of_late() {
        let at = Duration::from_secs;
        let mut eta = Eta::default();
        assert_eq!(eta.eta(at(0), 0), Some(Duration::ZERO));
        assert_eq!(eta.eta(at(0), 9), None);
        eta.see(at(0), 1000);
        eta.see(at(10), 900);
        assert_eq!(eta.eta(at(10), 900), Some(at(90)));
        eta.see(at(20), 1000);
        assert_eq!(eta.eta(at(20), 1000), None, "it does not come nearer");
        eta.see(at(45), 950);
        assert_eq!(eta.eta(at(45), 950), Some(at(475)), "what was longer ago does not count");
    }
}
