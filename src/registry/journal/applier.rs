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
/// Pause before a database that refused is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until told to stop, then applies the rest; returns how it ended.
pub(super) async fn run(shared: &Arc<Shared>, stop: &CancellationToken) -> JournalError {
    let mut head = shared.log.watch();
    loop {
        let pause = match apply_all(shared, &mut head).await {
            Ok(is_settled) => {
                shared.set_applying();
                (!is_settled).then_some(Duration::ZERO)
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

/// Applies all that is durable. Returns whether the index's database holds it all as well: it is
/// brought nearer while nothing else is to be done.
async fn apply_all(shared: &Shared, head: &mut watch::Receiver<Offset>) -> Result<bool, JournalError> {
    head.mark_unchanged();
    loop {
        let _applying = shared.applying.lock().await;
        if !apply_some(&shared.log, &shared.index, BATCH_BYTES)? {
            let is_behind = shared.index.is_deferring() && settle_some(&shared.log, &shared.index)?;
            return Ok(!is_behind);
        }
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
