//! Takes the primary's whole state, when its log no longer reaches back to where this site is.

use std::time::Duration;

use outport_proto::{
    Offset,
    frame::{Request, Response},
};

use crate::{
    fetch::{UpstreamError, bulk::Bulk, framed::FramedError, primary::ask},
    process,
    registry::journal::{Installation, Journal, JournalError},
};

/// A primary that sends no part for this long is given up.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Replaces everything in `journal` by the state of the primary at the other end of `bulk`.
/// Returns where the journal's log begins now. `log_bytes` is the length of the primary's log
/// about there, 0 if unknown. Until it returns, everything stays as it was.
///
/// # Errors
/// [`SnapshotError`]; the snapshot has to be taken again then.
pub(super) async fn take(journal: Journal, bulk: Bulk, log_bytes: u64) -> Result<Offset, SnapshotError> {
    let unfinished = journal.resume_snapshot().await?;
    let resume = unfinished.as_ref().and_then(Installation::place);
    let mut answers = ask(&bulk.connection().await?, &Request::Snapshot { resume }, STALL_TIMEOUT).await?;
    let Response::SnapshotBegin { from, resumed } = answers.expect(STALL_TIMEOUT).await? else {
        return Err(SnapshotError::OutOfPlace);
    };
    let mut installation = match unfinished {
        Some(unfinished) if resumed => {
            tracing::info!(%from, entries = unfinished.entries(), "the snapshot goes on where it was cut off");
            unfinished
        }
        None if resumed => return Err(SnapshotError::OutOfPlace),
        unfinished => {
            drop(unfinished);
            journal.install_snapshot(from, log_bytes).await?
        }
    };
    loop {
        match answers.expect(STALL_TIMEOUT).await? {
            Response::SnapshotPart(entries) => installation = installation.part(entries).await?,
            Response::SnapshotEnd { until, entries } => {
                return Ok(installation.finish(until, entries).await?);
            }
            Response::Unavailable { reason } => return Err(SnapshotError::Unavailable(reason)),
            _ => return Err(SnapshotError::OutOfPlace),
        }
    }
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotError {
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error(transparent)]
    Framed(#[from] FramedError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the primary gave up: {0}")]
    Unavailable(String),
    #[error("the primary answered something else")]
    OutOfPlace,
    #[error("taking it crashed: {0}")]
    Crashed(String),
}

/// A snapshot being taken; dropping it gives it up.
#[derive(Default)]
pub(super) struct Taking(tokio::task::JoinSet<Result<Offset, SnapshotError>>);

impl Taking {
    /// Begins to take one, unless one is being taken.
    pub(super) fn begin(
        &mut self,
        taken: impl Future<Output = Result<Offset, SnapshotError>> + Send + 'static,
    ) {
        if self.0.is_empty() {
            self.0.spawn(process::inherit(taken));
        }
    }

    /// The end of it; pends while none is being taken. May be dropped and called again.
    pub(super) async fn taken(&mut self) -> Result<Offset, SnapshotError> {
        match self.0.join_next().await {
            Some(taken) => taken.unwrap_or_else(|error| Err(SnapshotError::Crashed(error.to_string()))),
            None => std::future::pending().await,
        }
    }
}
