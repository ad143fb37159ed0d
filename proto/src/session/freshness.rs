//! What heartbeats and the times of events tell about how fresh a site's state is.

use std::time::Duration;

use super::{LIVE_MAX, marks::Marks};
use crate::{Offset, Timestamp, frame::Heartbeat};

/// Age in primary time of the oldest event that has not passed a stage; zero when caught up,
/// `None` when unknown because heartbeats have stopped, the first events are still to come, or the
/// stage is behind a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Until the index shows it.
    pub applied: Option<Duration>,
    /// Until its blobs are local.
    pub complete: Option<Duration>,
}

/// A heartbeat, and how old it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// What it says.
    pub heartbeat: Heartbeat,
    /// How long before it was sent the primary said it: a site that relays says it again and again.
    pub age: Duration,
    /// When the primary said it, or earlier: microseconds of the session's time here, however long it travelled and
    /// whoever sets a clock; `None` from an upstream that gives no readings of its clock.
    pub as_of_micros: Option<i64>,
}

/// A word and when it came.
#[derive(Clone, Copy, Debug)]
struct Heard {
    word: Word,
    at: Duration,
}

/// What is known of the changes that a heartbeat stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Closed {
    time: Timestamp,
    as_of_micros: Option<i64>,
}

impl Heard {
    /// How long ago the primary said it, but for the time it travelled.
    const fn age(&self, now: Duration) -> Duration {
        self.word.age.saturating_add(now.saturating_sub(self.at))
    }
}

#[derive(Debug)]
pub(super) struct Freshness {
    /// The heartbeat with the newest word of the primary.
    last: Option<Heard>,
    /// Heartbeats whose head is not applied yet.
    closing: Marks<Closed>,
    /// The newest heartbeat whose head is applied.
    closed: Option<Closed>,
    /// The closed time of the newest heartbeat that found nothing still to be received.
    level_at: Option<Timestamp>,
    /// Events received, with their times, as far as they have not passed every stage.
    events: Marks<Timestamp>,
    last_event: Option<Timestamp>,
    /// The times of events received up to here are not known.
    unknown_until: Offset,
}

impl Freshness {
    /// Knows the times of no event up to `received`.
    pub(super) const fn new(received: Offset) -> Self {
        Self {
            last: None,
            // A closed time left out makes the site look staler for a moment; the other way a lag
            // is overstated a little. Neither makes it look better than it is.
            closing: Marks::of_latest(),
            closed: None,
            level_at: None,
            events: Marks::of_earliest(),
            last_event: None,
            unknown_until: received,
        }
    }

    pub(super) fn handle_heartbeat(&mut self, now: Duration, word: Word, received: Offset, applied: Offset) {
        let (heard, heartbeat) = (Heard { word, at: now }, word.heartbeat);
        // A relay that lost its upstream says again what it heard last, and after a restart less.
        // Closed times cannot be compared: the primary's clock may have been set back.
        if self.last.is_some_and(|last| last.age(now) < heard.age(now)) {
            return;
        }
        self.last = Some(heard);
        if heartbeat.head <= received {
            self.level_at = Some(heartbeat.closed_time);
        }
        let closed = Closed { time: heartbeat.closed_time, as_of_micros: word.as_of_micros };
        self.closing.push(heartbeat.head, closed);
        self.handle_applied(applied);
    }

    pub(super) fn handle_event(&mut self, offset: Offset, time: Timestamp) {
        self.last_event = Some(time);
        self.events.push(offset, time);
    }

    /// Events after `offset` that were received before are told of by [`Freshness::handle_event`].
    pub(super) const fn handle_replay_from(&mut self, offset: Offset) {
        self.unknown_until = offset;
    }

    pub(super) fn handle_applied(&mut self, applied: Offset) {
        if let Some(closed) = self.closing.pop_through(applied) {
            self.closed = Some(closed);
        }
    }

    /// Everything up to `offset` has passed every stage.
    pub(super) fn handle_passed(&mut self, offset: Offset) {
        self.events.pop_through(offset);
    }

    /// The state was replaced by that at `offset`: no event received before says anything about it.
    pub(super) fn begin_after(&mut self, offset: Offset) {
        self.unknown_until = offset;
        self.events.clear();
        self.last_event = None;
        self.level_at = None;
    }

    /// The events after `offset` will be received again: until then their age is not known.
    pub(super) fn forget_events_after(&mut self, offset: Offset) {
        self.events.pop_after(offset);
        self.last_event = None;
        self.level_at = None;
    }

    /// What earlier heartbeats closed was closed in a history that may have ended.
    pub(super) fn forget_closed_time(&mut self) {
        self.closing.clear();
        self.closed = None;
    }

    pub(super) fn heartbeat(&self) -> Option<&Heartbeat> {
        self.last.as_ref().map(|heard| &heard.word.heartbeat)
    }

    pub(super) fn heartbeat_age(&self, now: Duration) -> Option<Duration> {
        self.last.as_ref().map(|heard| heard.age(now))
    }

    pub(super) fn live_until(&self) -> Option<Duration> {
        self.last.as_ref().map(|heard| heard.at + LIVE_MAX.saturating_sub(heard.age(heard.at)))
    }

    pub(super) fn closed_time(&self) -> Option<Timestamp> {
        self.closed.map(|closed| closed.time)
    }

    pub(super) fn as_of_micros(&self) -> Option<i64> {
        self.closed?.as_of_micros
    }

    pub(super) fn primary_now(&self, now: Duration) -> Option<Timestamp> {
        self.last.as_ref().map(|heard| heard.word.heartbeat.now.plus(now.saturating_sub(heard.at)))
    }

    /// The lag of a stage that has `reached` an offset, while live.
    pub(super) fn lag(&self, now: Duration, received: Offset, reached: Offset) -> Option<Duration> {
        let head = self.heartbeat()?.head.max(received);
        if reached >= head {
            return Some(Duration::ZERO);
        }
        if reached < self.unknown_until {
            return None;
        }
        let oldest = self
            .events
            .first_after(reached)
            // The next event is still on its way: it is younger than all that was closed before it.
            .or_else(|| self.level_at.max(self.last_event));
        Some(self.primary_now(now)?.since(oldest?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seq: u64) -> Offset {
        Offset::new(1, seq)
    }

    fn word(head: u64, secs: u64) -> Word {
        let now = Timestamp::from_secs(secs);
        let heartbeat = Heartbeat {
            head: at(head),
            closed_time: now,
            now,
            log_bytes: 0,
            state_hash: [0; 32],
            state_at: at(head),
            unsure: false,
        };
        Word { heartbeat, age: Duration::ZERO, as_of_micros: None }
    }

    #[test]
    fn a_lag_is_the_age_of_the_oldest_event_still_to_pass() {
        let mut fresh = Freshness::new(at(0));
        assert_eq!(fresh.lag(Duration::ZERO, at(0), at(0)), None);
        fresh.handle_heartbeat(Duration::ZERO, word(0, 100), at(0), at(0));
        assert_eq!(fresh.lag(Duration::from_secs(9), at(0), at(0)), Some(Duration::ZERO));
        // Two events behind, none of them here yet: both are younger than the last level moment.
        fresh.handle_heartbeat(Duration::from_secs(3), word(2, 103), at(0), at(0));
        assert_eq!(fresh.lag(Duration::from_secs(4), at(0), at(0)), Some(Duration::from_secs(4)));
        fresh.handle_event(at(1), Timestamp::from_secs(101));
        fresh.handle_event(at(2), Timestamp::from_secs(102));
        assert_eq!(fresh.lag(Duration::from_secs(4), at(2), at(0)), Some(Duration::from_secs(3)));
        assert_eq!(fresh.lag(Duration::from_secs(4), at(2), at(1)), Some(Duration::from_secs(2)));
        assert_eq!(fresh.lag(Duration::from_secs(4), at(2), at(2)), Some(Duration::ZERO));
    }

    #[test]
    fn a_lag_behind_events_whose_times_are_not_known_is_unknown() {
        let lag = |fresh: &Freshness, reached| fresh.lag(Duration::ZERO, at(6), at(reached));
        let mut fresh = Freshness::new(at(5));
        fresh.handle_heartbeat(Duration::ZERO, word(6, 100), at(5), at(5));
        fresh.handle_event(at(6), Timestamp::from_secs(99));
        assert_eq!((lag(&fresh, 4), lag(&fresh, 5)), (None, Some(Duration::from_secs(1))));

        let mut fresh = Freshness::new(at(5));
        fresh.handle_replay_from(at(4));
        fresh.handle_event(at(5), Timestamp::from_secs(40));
        fresh.handle_heartbeat(Duration::ZERO, word(6, 100), at(5), at(5));
        assert_eq!((lag(&fresh, 3), lag(&fresh, 4)), (None, Some(Duration::from_secs(60))));
    }

    #[test]
    fn a_closed_time_counts_once_its_head_is_applied() {
        let mut fresh = Freshness::new(at(0));
        fresh.handle_heartbeat(Duration::ZERO, word(1, 100), at(2), at(0));
        fresh.handle_heartbeat(Duration::ZERO, word(2, 101), at(2), at(0));
        assert_eq!(fresh.closed_time(), None);
        fresh.handle_applied(at(1));
        assert_eq!(fresh.closed_time(), Some(Timestamp::from_secs(100)));
        fresh.handle_applied(at(2));
        assert_eq!(fresh.closed_time(), Some(Timestamp::from_secs(101)));
    }
}
