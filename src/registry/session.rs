//! What a secondary knows of its session with the primary, as the read rules need it.

use crate::watch;
use std::time::Duration;

use outport_proto::{Offset, Timestamp};

/// One reading of the session. The subscriber replaces it with every heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// Whether heartbeats arrive in time.
    pub live: bool,
    /// Whether the index is known not to be in the state that the primary's was in at the same
    /// place of the log: until that is repaired, tags are revalidated as if nothing were fresh.
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
    /// Newest event the primary has told of.
    pub head: Offset,
    /// Add this to the local clock, in microseconds, to get the primary's clock. It must err
    /// towards the future (by half a round trip), so that an answer never looks younger than it is.
    pub primary_ahead_micros: i64,
}

impl Session {
    /// The primary's clock when the local one reads `local`.
    pub fn primary_now(&self, local: Timestamp) -> Timestamp {
        Timestamp::from_micros(local.as_micros().saturating_add_signed(self.primary_ahead_micros))
    }

    /// How old an answer from the index may be at worst, when the local clock reads `local`.
    pub fn age(&self, local: Timestamp) -> Duration {
        self.primary_now(local).since(self.closed_time)
    }
}

/// Follows the session. Cloning gives another handle to the same view.
#[derive(Clone, Debug)]
pub struct SessionView {
    receiver: watch::Receiver<Session>,
}

impl SessionView {
    /// A view and the end that feeds it. It begins disconnected.
    pub fn new() -> (watch::Sender<Session>, Self) {
        let (sender, receiver) = watch::channel(Session::default());
        (sender, Self { receiver })
    }

    /// The newest reading.
    pub fn now(&self) -> Session {
        *self.receiver.borrow()
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
