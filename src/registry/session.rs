//! What a secondary knows of its session with the primary, as the read rules need it.

use crate::{
    clock::Clock,
    planted::{Bug, is_planted},
    watch,
};
use std::time::Duration;

use outport_proto::{Offset, Timestamp};

/// Long ago: as closed time it says that anything may have happened since.
pub const NEVER: Timestamp = Timestamp::from_micros(1);

/// One reading of the session. The subscriber replaces it with every heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// Whether heartbeats arrive in time.
    pub live: bool,
    /// Whether the index is known not to be in the state that the primary's was in at the same
    /// place of the log, or the primary itself is unsure: until that is repaired, tags are revalidated as
    /// if nothing were fresh.
    pub differs: bool,
    /// How often the two were compared, since the start.
    pub comparisons: u64,
    /// Tags, manifests and links that were repaired, since the start.
    pub entries_repaired: u64,
    /// Whether a request to the primary is worth sending. It may be wrong: a request that fails
    /// is treated as "unreachable" for that pull.
    pub reachable: bool,
    /// Every change acknowledged before this reading of the primary's clock is at or below `head`.
    /// The newest one whose `head` this site has applied.
    pub closed_time: Timestamp,
    /// Everything acknowledged before this reading of the local clock's [`Clock::latest`] is applied here, whoever set
    /// which wall clock: microseconds, below zero before its beginning. `None` while that is not known.
    pub as_of_micros: Option<i64>,
    /// Newest event the primary has told of.
    pub head: Offset,
    /// Add this to the local clock's [`Clock::latest`], in microseconds, to get the primary's wall clock; `None`
    /// before anything was heard of it. It errs towards the future, by half a round trip.
    pub primary_ahead_micros: Option<i64>,
    /// By how much that may be too much, in microseconds.
    pub primary_ahead_error_micros: u64,
}

impl Session {
    /// The primary's clock now, or later: see [`Clock::latest`]. The local wall clock alone is asked while
    /// nothing else is known.
    pub fn primary_now(&self, local: &dyn Clock) -> Timestamp {
        match self.primary_ahead_micros {
            Some(ahead) if is_planted(Bug::AgeByWallClock) => {
                Timestamp::from_micros(local.now().as_micros().saturating_add_signed(ahead))
            }
            Some(ahead) => local.ahead_of_latest(ahead),
            None => local.now(),
        }
    }

    /// What the primary's clock most likely reads now; `None` before anything was heard of it.
    pub fn primary_now_expected(&self, local: &dyn Clock) -> Option<Timestamp> {
        let ahead = self.primary_ahead_micros?.saturating_sub_unsigned(self.primary_ahead_error_micros);
        Some(local.ahead_of_latest(ahead))
    }

    /// How old an answer from the index may be at worst. It never looks younger than it is.
    pub fn age(&self, local: &dyn Clock) -> Duration {
        match self.as_of_micros.filter(|_| !is_planted(Bug::AgeByWallClock)) {
            Some(as_of) => local.latest_since(as_of),
            None => self.primary_now(local).since(self.closed_time),
        }
    }
}

/// Follows the session. Cloning gives another handle to the same view.
#[derive(Clone, Debug)]
pub struct SessionView {
    receiver: watch::Receiver<Session>,
    /// While it says so, nothing here is fresh.
    unsure: Option<watch::Receiver<bool>>,
}

impl SessionView {
    /// A view and the end that feeds it. It begins disconnected.
    pub fn new() -> (watch::Sender<Session>, Self) {
        let (sender, receiver) = watch::channel(Session::default());
        (sender, Self { receiver, unsure: None })
    }

    /// The view of a primary that asks the registry behind it: its own log is never behind itself, unless
    /// it is `unsure` what happened at the registry.
    pub fn of_gateway(unsure: watch::Receiver<bool>) -> Self {
        let session = Session {
            live: true,
            reachable: true,
            closed_time: Timestamp::from_micros(u64::MAX),
            as_of_micros: Some(i64::MAX),
            ..Session::default()
        };
        Self { receiver: watch::channel(session).1, unsure: Some(unsure) }
    }

    /// The newest reading.
    pub fn now(&self) -> Session {
        let session = *self.receiver.borrow();
        match &self.unsure {
            Some(unsure) if *unsure.borrow() => {
                Session { differs: true, closed_time: NEVER, as_of_micros: None, ..session }
            }
            _ => session,
        }
    }

    /// Follows the readings.
    pub fn watch(&self) -> watch::Receiver<Session> {
        self.receiver.clone()
    }

    /// Resolves once closed time has reached `target`; pends for ever when the feeder is gone.
    pub async fn closed_time_reaches(&self, target: Timestamp) {
        let mut receiver = self.receiver.clone();
        if receiver.wait_for(|session| session.closed_time >= target).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn an_age_never_looks_younger_whoever_sets_the_clock() {
        let at = Timestamp::from_secs;
        let clock = ManualClock::at(at(1_000));
        // Heard now, from a primary whose clock is 70 s ahead.
        let session = Session {
            closed_time: at(1_070),
            as_of_micros: Some(1_000_000_000),
            primary_ahead_micros: Some(70_000_000),
            ..Session::default()
        };
        assert_eq!(session.age(&*clock), Duration::ZERO);
        clock.set(at(1_005));
        for wall in [at(1_005), at(5), at(3)] {
            clock.turn(wall);
            assert_eq!(session.age(&*clock), Duration::from_secs(5), "{wall:?}");
            assert_eq!(session.primary_now(&*clock), at(1_075));
        }
        assert_eq!(Session::default().primary_now(&*clock), at(3), "nothing was heard");
        // Perhaps the machine was held for so long.
        clock.turn(at(63));
        assert_eq!(session.age(&*clock), Duration::from_secs(65));
        clock.turn(at(3));
        assert_eq!(session.age(&*clock), Duration::from_secs(65));
    }
}
