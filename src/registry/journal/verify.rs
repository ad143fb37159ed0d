//! Knowing that the index holds what the log led to: a slow walk over all its rows, again and
//! again; and what two sites need to find where they differ, and to become equal.
//!
//! A followed journal can be repaired from the one it follows, so rows that do not add up become
//! its state, which then shows to be wrong. A journal of its own events has nobody to ask but its
//! log: it fails, and the next start rebuilds the index.

use std::{sync::Arc, time::Duration};

use outport_proto::Offset;

use super::{Condition, Journal, JournalError, Origin, Shared, joined};
use crate::{
    blocking,
    index::{Bucket, BucketSums, Correction, IndexError, RowsDiffer, Verified, WalkReport, Walked},
    shutdown::Shutdown,
};

/// How often a walk goes on.
const STEP_INTERVAL: Duration = Duration::from_millis(100);
/// Rows of one step when somebody waits for the end of the walk.
const HURRIED_ROWS: usize = 16 * 1024;
/// Events that may still have to be applied while rows are walked: beyond that they come first.
const BEHIND_MAX: u64 = 1000;

/// How an index is walked in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Rows a second; 0 for never.
    pub rows_per_second: u32,
    /// Rest between two walks.
    pub interval: Duration,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { rows_per_second: 10_000, interval: Duration::from_secs(600) }
    }
}

impl Journal {
    /// What walks over the index came to.
    pub fn verified(&self) -> Verified {
        self.shared.index.verified()
    }

    /// Walks the whole index now, as fast as it goes.
    ///
    /// # Errors
    /// When a row is damaged, or when the rows do not add up and these are the journal's own
    /// events: then the journal fails.
    pub async fn verify(&self) -> Result<WalkReport, JournalError> {
        let shared = Arc::clone(&self.shared);
        let begin = move || Ok(shared.index.begin_walk()?);
        joined(blocking::spawn(begin)).await?;
        loop {
            match step(&self.shared, HURRIED_ROWS).await? {
                Walked::On(_) if self.shared.index.is_deferring() => tokio::time::sleep(STEP_INTERVAL).await,
                Walked::On(_) => {}
                Walked::Done(report) => return Ok(report),
                // Somebody else took the last step.
                Walked::Idle => match self.verified().last {
                    Some(report) => return Ok(report),
                    None => return Err(JournalError::Closed),
                },
            }
        }
    }

    /// [`crate::index::Index::bucket_sums`]. Blocks.
    ///
    /// # Errors
    /// As [`Journal::verify`].
    pub fn bucket_sums(&self) -> Result<BucketSums, JournalError> {
        self.shared.failing(self.shared.index.bucket_sums(self.shared.rows_differ()))
    }

    /// [`crate::index::Index::buckets`]. Blocks.
    ///
    /// # Errors
    /// As [`Journal::verify`].
    pub fn buckets(&self, wanted: &[u16]) -> Result<Vec<Bucket>, JournalError> {
        self.shared.failing(self.shared.index.buckets(wanted, self.shared.rows_differ()))
    }

    /// [`crate::index::Index::mend`], never while events are applied or a snapshot replaces them
    /// all.
    ///
    /// # Errors
    /// When the index fails.
    pub async fn mend(
        &self,
        own: Bucket,
        theirs: (Offset, Offset),
        corrections: Vec<Correction>,
    ) -> Result<bool, JournalError> {
        let shared = Arc::clone(&self.shared);
        let mending = blocking::drive(async move {
            let _applying = shared.applying.lock().await;
            shared.failing(shared.index.mend(&own, theirs, &corrections))
        });
        joined(mending).await
    }
}

/// Walks the index again and again until told to stop.
pub(super) async fn run(shared: &Arc<Shared>, stop: &Shutdown) {
    let VerifyOptions { rows_per_second, interval } = shared.options.verify;
    if rows_per_second == 0 {
        return;
    }
    let rows = (u128::from(rows_per_second) * STEP_INTERVAL.as_millis() / 1000).max(1) as usize;
    loop {
        if let Err(error) = walk(shared, rows, stop).await {
            tracing::warn!(%error, "the index cannot be verified now");
        }
        tokio::select! {
            biased;
            () = stop.requested() => return,
            () = tokio::time::sleep(interval) => {}
        }
    }
}

/// One walk, slowly.
async fn walk(shared: &Arc<Shared>, rows: usize, stop: &Shutdown) -> Result<(), JournalError> {
    shared.index.begin_walk()?;
    loop {
        tokio::select! {
            biased;
            () = stop.requested() => return Ok(()),
            () = tokio::time::sleep(STEP_INTERVAL) => {}
        }
        let behind = shared.log.head().seq.saturating_sub(shared.index.applied().seq);
        if behind <= BEHIND_MAX && !matches!(step(shared, rows).await?, Walked::On(_)) {
            return Ok(());
        }
    }
}

async fn step(shared: &Arc<Shared>, rows: usize) -> Result<Walked, JournalError> {
    let of = Arc::clone(shared);
    let stepping = blocking::spawn(move || of.failing(of.index.walk_on(rows, of.rows_differ())));
    joined(stepping).await
}

impl Shared {
    const fn rows_differ(&self) -> RowsDiffer {
        match self.options.origin {
            Origin::Own => RowsDiffer::Refuse,
            Origin::Followed => RowsDiffer::Believe,
        }
    }

    /// A damaged index ends the journal.
    fn failing<T>(&self, result: Result<T, IndexError>) -> Result<T, JournalError> {
        result.map_err(|error| {
            let is_damaged = matches!(error, IndexError::Damaged(_));
            let error = JournalError::Index(error);
            if is_damaged {
                self.condition.send_if_modified(|condition| {
                    let is_news = !matches!(condition, Condition::Ended(_));
                    if is_news {
                        tracing::error!(%error, "the journal fails");
                        *condition = Condition::Ended(error.clone());
                    }
                    is_news
                });
            }
            error
        })
    }
}
