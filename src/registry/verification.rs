//! Verifying a node on demand: its index is walked, and at a site compared with the primary's; its
//! blobs are looked for, and those that are here hashed again.

mod lost;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use self::lost::IsFault;
use self::lost::{Look, Lost};
use super::{Journal, SessionView, journal::JournalError};
use crate::{
    blocking,
    shutdown::Shutdown,
    store::{Scrubbed, Store, StoreError},
};

/// How often the report says how far the walk is.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Verifies a node.
pub trait Verify: Send + Sync {
    /// Begins a pass; `None` when one is under way.
    fn start(&self, wanted: VerifyWanted) -> Option<VerifyReport>;

    /// What the last pass found, or how far this one is.
    fn report(&self) -> VerifyReport;
}

/// What a pass is to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyWanted {
    /// Whether all blobs are hashed as well, after the index.
    pub blobs: bool,
    /// How long a site waits to be compared with its primary, and to be repaired if it has to be.
    pub compare_timeout: Duration,
}

impl Default for VerifyWanted {
    fn default() -> Self {
        Self { blobs: false, compare_timeout: Duration::from_secs(60) }
    }
}

/// What a pass found: `/v1/verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Which pass since the node started; 0 before the first.
    pub pass: u64,
    /// Whether the node is a secondary, which is compared with its primary.
    pub is_site: bool,
    /// Whether it goes on.
    pub running: bool,
    /// Tags, manifests and links looked at.
    pub rows: u64,
    /// How many there were the last time, if there was one.
    pub rows_expected: Option<u64>,
    /// Whether the rows are those that the log led to; `null` until that is known.
    pub adds_up: Option<bool>,
    /// At a site, whether the index ended in the primary's state; `null` when it could not be compared.
    pub equals_primary: Option<bool>,
    /// Tags, manifests and links that were repaired meanwhile.
    pub repaired: u64,
    /// What hashing all blobs came to, as far as it is; `null` where that was not asked for.
    pub blobs: Option<BlobsVerified>,
    /// The first blobs that should be here and are not, as `repository@digest`.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Why the pass broke off.
    pub error: Option<String>,
}

/// What hashing all blobs came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobsVerified {
    /// Blobs hashed.
    pub blobs: u64,
    /// Bytes hashed.
    pub bytes: u64,
    /// How many there were at the beginning, about.
    pub bytes_expected: u64,
    /// Blobs whose copy was bad, and was set aside.
    pub rotten: u64,
    /// Blobs that a repository links, that should be here and are not.
    #[serde(default)]
    pub missing: u64,
}

/// Verifies this node. Cloning gives another handle to the same.
#[derive(Clone)]
pub struct Verification {
    journal: Journal,
    store: Store,
    /// `None` at a primary.
    session: Option<SessionView>,
    is_fault: IsFault,
    report: Arc<Mutex<VerifyReport>>,
    shutdown: Shutdown,
}

impl Verification {
    /// Verifies what `journal` and `store` hold, at a site with its `session`. `is_fault` says which
    /// blobs have to be here.
    pub fn new(
        journal: Journal,
        store: Store,
        session: Option<SessionView>,
        is_fault: IsFault,
        shutdown: Shutdown,
    ) -> Self {
        Self { journal, store, session, is_fault, report: Arc::default(), shutdown }
    }

    async fn run(self, wanted: VerifyWanted) {
        if let Err(reason) = self.look(wanted).await {
            self.note().error = Some(reason);
        }
        self.note().running = false;
    }

    /// Looks at all that is wanted; an error is why it cannot be said how that is.
    async fn look(&self, wanted: VerifyWanted) -> Result<(), String> {
        self.look_at_index(wanted.compare_timeout).await.map_err(|error| error.to_string())?;
        if wanted.blobs {
            // First: a bad copy is not here once it was found.
            let missing = self.look_for_blobs().await?;
            self.look_at_blobs(missing).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    async fn look_at_index(&self, compare_timeout: Duration) -> Result<(), JournalError> {
        let before = self.session.as_ref().map(|session| session.now().entries_repaired);
        let walked = {
            let walk = self.journal.verify();
            tokio::pin!(walk);
            loop {
                tokio::select! {
                    biased;
                    walked = &mut walk => break walked,
                    () = tokio::time::sleep(LOOK_INTERVAL) => {
                        self.note().rows = self.journal.verified().under_way.unwrap_or_default();
                    }
                }
            }
        };
        let walk = walked?;
        {
            let mut report = self.note();
            (report.rows, report.adds_up) = (walk.rows, Some(walk.adds_up));
        }
        let equals = self.compare(compare_timeout).await;
        let after = self.session.as_ref().map(|session| session.now().entries_repaired);
        let mut report = self.note();
        report.equals_primary = equals;
        report.repaired = after.unwrap_or_default().saturating_sub(before.unwrap_or_default());
        Ok(())
    }

    /// How many blobs should be here and are not.
    async fn look_for_blobs(&self) -> Result<u64, String> {
        let this = self.clone();
        let looking = blocking::spawn(move || {
            let Self { journal, store, is_fault, shutdown, .. } = &this;
            Look { index: journal.index(), store, is_fault, shutdown }.through_all()
        });
        let looked = looking.await.map_err(|error| error.to_string())?;
        let Lost { blobs, named } = looked.map_err(|error| error.to_string())?;
        self.note().missing = named;
        Ok(blobs)
    }

    async fn look_at_blobs(&self, missing: u64) -> Result<(), StoreError> {
        let bytes_expected = self.store.stats().bytes;
        let note = |Scrubbed { blobs, bytes, rotten }| {
            self.note().blobs = Some(BlobsVerified { blobs, bytes, bytes_expected, rotten, missing });
        };
        note(Scrubbed::default());
        self.store.scrub_now(note).await?;
        Ok(())
    }

    /// Waits until the index was compared with the primary's, and is equal.
    async fn compare(&self, timeout: Duration) -> Option<bool> {
        let session = self.session.as_ref()?;
        // The first one from here on may have been made before the end of the walk.
        let before = session.now().comparisons + 1;
        let mut session = session.watch();
        let equal = session.wait_for(|session| session.comparisons > before && !session.differs);
        let is_equal = matches!(tokio::time::timeout(timeout, equal).await, Ok(Ok(_)));
        let was_compared = session.borrow().comparisons > before;
        was_compared.then_some(is_equal)
    }

    fn note(&self) -> MutexGuard<'_, VerifyReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Verify for Verification {
    fn start(&self, wanted: VerifyWanted) -> Option<VerifyReport> {
        let begun = {
            let mut report = self.note();
            if report.running {
                return None;
            }
            let rows_expected = self.journal.verified().last.map(|last| last.rows);
            let (pass, is_site) = (report.pass + 1, self.session.is_some());
            *report = VerifyReport { pass, is_site, running: true, rows_expected, ..VerifyReport::default() };
            report.clone()
        };
        let (running, shutdown) = (self.clone(), self.shutdown.clone());
        // The group waits for it; nobody else has to.
        drop(self.shutdown.spawn(async move {
            tokio::select! {
                biased;
                () = shutdown.requested() => {}
                () = running.run(wanted) => {}
            }
        }));
        Some(begun)
    }

    fn report(&self) -> VerifyReport {
        self.note().clone()
    }
}
