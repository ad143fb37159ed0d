//! How fast blobs are copied, measured while any is.

use std::time::Duration;

use tokio::time::Instant;

/// What was copied longer ago counts for less: the sums are halved when they span more than this.
const MEMORY: Duration = Duration::from_secs(60);

/// Bytes copied over the time spent copying.
#[derive(Debug, Default)]
pub(super) struct Rate {
    bytes: u64,
    busy: Duration,
    /// Copies are under way, and counted up to here.
    since: Option<Instant>,
}

impl Rate {
    /// A copy begins.
    pub(super) fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// A copy of `bytes` ended; `was_last` when no other is under way.
    pub(super) fn copied(&mut self, bytes: u64, was_last: bool, now: Instant) {
        if let Some(since) = self.since {
            self.busy += now.saturating_duration_since(since);
        }
        self.since = (!was_last).then_some(now);
        self.bytes = self.bytes.saturating_add(bytes);
        if self.busy > MEMORY {
            self.bytes /= 2;
            self.busy /= 2;
        }
    }

    /// `None` before anything was copied.
    pub(super) fn bytes_per_second(&self) -> Option<u64> {
        let seconds = self.busy.as_secs_f64();
        (seconds > 0.0 && self.bytes > 0).then(|| (self.bytes as f64 / seconds) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_does_not_count_and_copies_side_by_side_count_once() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rate = Rate::default();
        assert_eq!(rate.bytes_per_second(), None);
        rate.begin(at(0));
        rate.begin(at(1));
        rate.copied(300, false, at(2));
        rate.copied(100, true, at(4));
        assert_eq!(rate.bytes_per_second(), Some(100));
        rate.begin(at(1000));
        rate.copied(400, true, at(1004));
        assert_eq!(rate.bytes_per_second(), Some(100));
    }

    #[test]
    fn a_new_pace_outweighs_an_old_one() {
        let start = Instant::now();
        let mut rate = Rate::default();
        for minute in 0..20 {
            rate.begin(start + Duration::from_secs(minute * 60));
            let bytes = if minute < 10 { 6000 } else { 60_000 };
            rate.copied(bytes, true, start + Duration::from_secs(minute * 60 + 60));
        }
        let rate = rate.bytes_per_second().unwrap();
        assert!((900..=1000).contains(&rate), "{rate}");
    }
}
