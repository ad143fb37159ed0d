//! Applies what is durable, in order, on one blocking thread.

use crate::watch;
use std::{sync::Arc, time::Duration};

use outport_proto::Offset;
use tokio_util::sync::CancellationToken;

use super::{
    Condition, JournalError, Shared,
    recover::{apply_some, settle_some},
};
use crate::index::IndexError;

/// Log applied before the lock is given up for a moment.
const BATCH_BYTES: usize = 1024 * 1024;
/// Events applied in one go after which more are expected at once.
const BULK_EVENTS: u64 = 512;
/// How long they are waited for, before the database is brought nearer instead.
const BULK_REST: Duration = Duration::from_millis(20);
/// Pause before a database that refused is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until told to stop, then applies the rest; returns how it ended.
pub(super) async fn run(shared: &Arc<Shared>, stop: &CancellationToken) -> JournalError {
    let mut head = shared.log.watch();
    loop {
        let pause = match apply_all(shared, &mut head).await {
            Ok(Done::Settled) => {
                shared.set_applying();
                None
            }
            Ok(Done::Bulk) => {
                shared.set_applying();
                // Whether more came or not, the next round knows what to do.
                drop(tokio::time::timeout(BULK_REST, head.changed()).await);
                Some(Duration::ZERO)
            }
            Ok(Done::Step) => {
                shared.set_applying();
                Some(Duration::ZERO)
            }
            Err(JournalError::Index(error @ IndexError::Database { .. })) => {
                if !shared.is_stalled() {
                    tracing::error!(%error, "events cannot be applied, trying again");
                }
                shared.condition.send_replace(Condition::Stalled(error));
                Some(RETRY_INTERVAL)
            }
            Err(error) => {
                tracing::error!(%error, "the journal fails");
                return error;
            }
        };
        if stop.is_cancelled() {
            return JournalError::Closed;
        }
        let woken = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                // The log, and with it the sender, lives as long as `shared`.
                None => drop(head.changed().await),
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = woken => {}
        }
    }
}

/// What there is to do once all that is durable is applied.
enum Done {
    /// Nothing: the index's database holds it all as well.
    Settled,
    /// That was much, and the database is behind: more may come at once.
    Bulk,
    /// The database was brought nearer, and is behind still.
    Step,
}

/// Applies all that is durable. The database is brought nearer while nothing else is to be done.
async fn apply_all(shared: &Shared, head: &mut watch::Receiver<Offset>) -> Result<Done, JournalError> {
    head.mark_unchanged();
    let before = shared.index.applied();
    loop {
        let _applying = shared.applying.lock().await;
        if apply_some(&shared.log, &shared.index, BATCH_BYTES)? {
            continue;
        }
        if !shared.index.is_deferring() {
            return Ok(Done::Settled);
        }
        if shared.index.applied().seq.saturating_sub(before.seq) >= BULK_EVENTS {
            return Ok(Done::Bulk);
        }
        let is_behind = settle_some(&shared.log, &shared.index)?;
        return Ok(if is_behind { Done::Step } else { Done::Settled });
    }
}

impl Shared {
    fn is_stalled(&self) -> bool {
        matches!(*self.condition.borrow(), Condition::Stalled(_))
    }

    fn set_applying(&self) {
        self.condition.send_if_modified(|condition| {
            let stalled = matches!(condition, Condition::Stalled(_));
            if stalled {
                tracing::info!("events are applied again");
                *condition = Condition::Applying;
            }
            stalled
        });
    }
}
