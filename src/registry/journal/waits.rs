//! Waiting until the index shows what the log has.

use std::time::Duration;

use outport_proto::Offset;

use super::{Condition, Journal, JournalError};

/// How long a question waits for the index to show what the log has. A site waits longer than that.
const LEVEL_WAIT_MAX: Duration = Duration::from_secs(1);

impl Journal {
    /// Waits until `offset` is applied, at most `timeout`; returns whether it is.
    pub async fn wait_applied(&self, offset: Offset, timeout: Duration) -> bool {
        let mut applied = self.watch_applied();
        matches!(
            tokio::time::timeout(timeout, applied.wait_for(|applied| *applied >= offset)).await,
            Ok(Ok(_))
        )
    }

    /// Waits until the index shows all that the log has now, at most [`LEVEL_WAIT_MAX`]: sites are sent what
    /// is durable, and must not be answered as of before what they were sent.
    ///
    /// # Errors
    /// [`Behind`], at once when nothing is applied any more.
    pub async fn level(&self) -> Result<(), Behind> {
        let head = self.log().head();
        if self.applied() >= head {
            return Ok(());
        }
        let level = tokio::time::timeout(LEVEL_WAIT_MAX, self.applied_or_stuck(head)).await;
        let behind = |reason: String| Behind { head, reason };
        match level {
            Ok(level) => level.map_err(|error| behind(error.to_string())),
            Err(_) => Err(behind(format!("for {LEVEL_WAIT_MAX:?}"))),
        }
    }

    /// Waits until `offset` is applied.
    ///
    /// # Errors
    /// As soon as it is known that events are not applied now, and why: that may last.
    pub async fn applied_or_stuck(&self, offset: Offset) -> Result<(), JournalError> {
        let mut applied = self.watch_applied();
        let mut condition = self.shared.condition.subscribe();
        let stuck = |condition: &Condition| !matches!(condition, Condition::Applying);
        tokio::select! {
            biased;
            reached = applied.wait_for(|applied| *applied >= offset) => {
                reached.map(|_| ()).map_err(|_| JournalError::Closed)
            }
            condition = condition.wait_for(stuck) => Err(match condition.as_deref() {
                Ok(Condition::Stalled(error)) => JournalError::Index(error.clone()),
                Ok(Condition::Ended(error)) => error.clone(),
                Ok(Condition::Applying) | Err(_) => JournalError::Closed,
            }),
        }
    }
}

/// The index does not show what the log has.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the index is behind the log's head {head}: {reason}")]
pub struct Behind {
    /// What it should show.
    head: Offset,
    /// Why it does not; for people.
    reason: String,
}
