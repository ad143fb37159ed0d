//! What heartbeats and the times of events tell about how fresh a site's state is.

use std::{collections::VecDeque, time::Duration};

use super::LIVE_MAX;
use crate::{Offset, Timestamp, frame::Heartbeat};

/// Most marks held, however far the site is behind.
const MARKS_MAX: usize = 512;

/// Age in primary time of the oldest event that has not passed a stage; zero when caught up,
/// `None` when unknown because heartbeats have stopped or the first events are still to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Until the index shows it.
    pub applied: Option<Duration>,
    /// Until its blobs are local.
    pub complete: Option<Duration>,
}

#[derive(Debug, Default)]
pub(super) struct Freshness {
    /// The newest heartbeat and when it came.
    last: Option<(Heartbeat, Duration)>,
    /// Heartbeats whose head is not applied yet, with their closed times.
    closing: VecDeque<(Offset, Timestamp)>,
    /// The closed time of the newest heartbeat whose head is applied.
    closed_time: Option<Timestamp>,
    /// The closed time of the newest heartbeat that found nothing still to be received.
    level_at: Option<Timestamp>,
    /// Events received, with their times, as far as they have not passed every stage.
    events: VecDeque<(Offset, Timestamp)>,
    last_event: Option<Timestamp>,
}

impl Freshness {
    pub(super) fn handle_heartbeat(
        &mut self,
        now: Duration,
        heartbeat: Heartbeat,
        received: Offset,
        applied: Offset,
    ) {
        self.last = Some((heartbeat, now));
        if heartbeat.head <= received {
            self.level_at = Some(heartbeat.closed_time);
        }
        if self.closing.len() >= MARKS_MAX {
            // A closed time left out only makes the site look staler for a moment.
            let mut keep = false;
            self.closing.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.closing.push_back((heartbeat.head, heartbeat.closed_time));
        self.handle_applied(applied);
    }

    pub(super) fn handle_event(&mut self, offset: Offset, time: Timestamp) {
        self.last_event = Some(time);
        self.events.push_back((offset, time));
        if self.events.len() > MARKS_MAX {
            self.halve_events();
        }
    }

    pub(super) fn handle_applied(&mut self, applied: Offset) {
        while let Some((_, closed_time)) = self.closing.pop_front_if(|(head, _)| *head <= applied) {
            self.closed_time = Some(closed_time);
        }
    }

    /// Everything up to `offset` has passed every stage.
    pub(super) fn handle_passed(&mut self, offset: Offset) {
        while self.events.pop_front_if(|(event, _)| *event <= offset).is_some() {}
    }

    /// The state was replaced: no event received before says anything about it.
    pub(super) fn forget_events(&mut self) {
        self.events.clear();
        self.last_event = None;
        self.level_at = None;
    }

    pub(super) fn heartbeat(&self) -> Option<&Heartbeat> {
        self.last.as_ref().map(|(heartbeat, _)| heartbeat)
    }

    pub(super) fn heartbeat_age(&self, now: Duration) -> Option<Duration> {
        self.last.as_ref().map(|(_, at)| now.saturating_sub(*at))
    }

    pub(super) fn live_until(&self) -> Option<Duration> {
        self.last.as_ref().map(|(_, at)| *at + LIVE_MAX)
    }

    pub(super) const fn closed_time(&self) -> Option<Timestamp> {
        self.closed_time
    }

    pub(super) fn primary_now(&self, now: Duration) -> Option<Timestamp> {
        self.last.as_ref().map(|(heartbeat, at)| heartbeat.now.plus(now.saturating_sub(*at)))
    }

    /// The lag of a stage that has `reached` an offset, while live.
    pub(super) fn lag(&self, now: Duration, received: Offset, reached: Offset) -> Option<Duration> {
        let head = self.heartbeat()?.head.max(received);
        if reached >= head {
            return Some(Duration::ZERO);
        }
        let behind = self.events.partition_point(|(event, _)| *event <= reached);
        let oldest = match self.events.get(behind) {
            Some((_, time)) => Some(*time),
            // The next event is still on its way: it is younger than all that was closed before it.
            None => self.level_at.max(self.last_event),
        };
        Some(self.primary_now(now)?.since(oldest?))
    }

    /// Joins events in pairs under the later offset and the earlier time: a lag is never understated.
    fn halve_events(&mut self) {
        let whole = std::mem::take(&mut self.events);
        let mut whole = whole.into_iter();
        while let Some((first, time)) = whole.next() {
            let (offset, other) = whole.next().unwrap_or((first, time));
            self.events.push_back((offset, time.min(other)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seq: u64) -> Offset {
        Offset::new(1, seq)
    }

    fn heartbeat(head: u64, secs: u64) -> Heartbeat {
        let now = Timestamp::from_secs(secs);
        Heartbeat {
            head: at(head),
            closed_time: now,
            now,
            log_bytes: 0,
            state_hash: [0; 32],
            state_at: at(head),
        }
    }

    #[test]
    fn a_lag_is_the_age_of_the_oldest_event_still_to_pass() {
        let mut fresh = Freshness::default();
        assert_eq!(fresh.lag(Duration::ZERO, at(0), at(0)), None);
        fresh.handle_heartbeat(Duration::ZERO, heartbeat(0, 100), at(0), at(0));
        assert_eq!(fresh.lag(Duration::from_secs(9), at(0), at(0)), Some(Duration::ZERO));
        // Two events behind, none of them here yet: both are younger than the last level moment.
        fresh.handle_heartbeat(Duration::from_secs(3), heartbeat(2, 103), at(0), at(0));
        assert_eq!(fresh.lag(Duration::from_secs(4), at(0), at(0)), Some(Duration::from_secs(4)));
        fresh.handle_event(at(1), Timestamp::from_secs(101));
        fresh.handle_event(at(2), Timestamp::from_secs(102));
        assert_eq!(fresh.lag(Duration::from_secs(4), at(2), at(0)), Some(Duration::from_secs(3)));
        assert_eq!(fresh.lag(Duration::from_secs(4), at(2), at(1)), Some(Duration::from_secs(2)));
        assert_eq!(fresh.lag(Duration::from_secs(4), at(2), at(2)), Some(Duration::ZERO));
    }

    #[test]
    fn a_closed_time_counts_once_its_head_is_applied() {
        let mut fresh = Freshness::default();
        fresh.handle_heartbeat(Duration::ZERO, heartbeat(1, 100), at(2), at(0));
        fresh.handle_heartbeat(Duration::ZERO, heartbeat(2, 101), at(2), at(0));
        assert_eq!(fresh.closed_time(), None);
        fresh.handle_applied(at(1));
        assert_eq!(fresh.closed_time(), Some(Timestamp::from_secs(100)));
        fresh.handle_applied(at(2));
        assert_eq!(fresh.closed_time(), Some(Timestamp::from_secs(101)));
    }

    #[test]
    fn marks_stay_bounded_and_never_understate() {
        let mut fresh = Freshness::default();
        let now = Timestamp::from_secs(1_000_000);
        for seq in 1..=100_000 {
            fresh.handle_event(at(seq), Timestamp::from_secs(seq));
            fresh.handle_heartbeat(Duration::ZERO, Heartbeat { now, ..heartbeat(seq, seq) }, at(seq), at(0));
        }
        assert!(fresh.events.len() <= MARKS_MAX && fresh.closing.len() <= MARKS_MAX);
        for reached in (0..100_000).step_by(997) {
            let lag = fresh.lag(Duration::ZERO, at(100_000), at(reached)).unwrap().as_secs();
            let truth = 1_000_000 - (reached + 1);
            assert!(lag >= truth && lag <= truth + 1_000 + truth / 10, "{reached}: {lag} for {truth}");
        }
        fresh.handle_applied(at(100_000));
        assert_eq!(fresh.closed_time(), Some(Timestamp::from_secs(100_000)));
    }
}
