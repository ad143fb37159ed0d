//! How the log stands to the registry, from one walk to the next: what went wrong, and what was found that no
//! notification told of.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lru::LruCache;
use outport_proto::{Digest, RepoName, Tag};
use tokio::time::Instant;

use super::ReconcileReport;

/// Findings of which a notification may still tell, at most.
const FINDINGS_MAX: usize = 100_000;
/// Notifications remembered: one may come while what it tells of is being found.
const NOTICED_MAX: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();
const NOTICED_LIFE: Duration = Duration::from_secs(60);
/// What a question finds, a notification may tell of for this long before it counts as missed for good.
const NOTICE_WAIT: Duration = Duration::from_secs(60);

/// A tag and what it names; nothing when it was deleted.
pub(super) type Finding = (RepoName, Tag, Option<Digest>);

/// Who found something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Walk,
    Question,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Standing(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Why the last walk over everything stopped, or what it could not look at.
    trouble: Option<String>,
    findings: HashMap<Finding, Found>,
    /// Findings for which there was no room.
    beyond: u64,
    noticed: LruCache<Finding, Instant>,
    /// Walks over everything that ended.
    walks: u64,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    by: By,
    at: Instant,
    /// How many walks had ended then.
    walks: u64,
}

impl Default for Standing {
    fn default() -> Self {
        Self(Mutex::new(State {
            trouble: None,
            findings: HashMap::new(),
            beyond: 0,
            noticed: LruCache::new(NOTICED_MAX),
            walks: 0,
        }))
    }
}

impl Standing {
    /// Something was found, unless a notification told of it a moment ago.
    pub(super) fn found(&self, finding: Finding, by: By) {
        let mut state = self.lock();
        if state.noticed.peek(&finding).is_some_and(|at| at.elapsed() < NOTICED_LIFE) {
            return;
        }
        if state.findings.len() >= FINDINGS_MAX {
            state.beyond += 1;
            return;
        }
        let found = Found { by, at: Instant::now(), walks: state.walks };
        state.findings.insert(finding, found);
    }

    /// A notification told of this.
    pub(super) fn noticed(&self, finding: Finding) {
        let mut state = self.lock();
        state.findings.remove(&finding);
        state.noticed.put(finding, Instant::now());
    }

    /// How many findings no notification has told of, since the start.
    pub(super) fn missed(&self) -> u64 {
        let state = self.lock();
        state.findings.len() as u64 + state.beyond
    }

    /// A walk ended; `is_whole` when it was over everything.
    pub(super) fn ended(&self, report: &ReconcileReport, is_whole: bool) {
        let mut state = self.lock();
        if let Some(error) = &report.error {
            state.trouble = Some(format!("reconciling with the registry stopped: {error}"));
        } else if is_whole {
            let failed = report.failed_names.first().map(|first| {
                format!(
                    "of {} things the registry gives no answer that makes sense, as {first}",
                    report.failed
                )
            });
            let stuck = report.stuck_names.first().map(|first| {
                format!(
                    "{} tags are served as they were before: no site can serve what they name at the \
                     registry, as {first}",
                    report.stuck
                )
            });
            state.trouble = failed.or(stuck);
            state.walks += 1;
        }
    }

    /// What a person should look at: trouble stays until a walk over everything ends without.
    pub(super) fn alarm(&self) -> Option<String> {
        let state = self.lock();
        if state.trouble.is_some() {
            return state.trouble.clone();
        }
        // Of the last walk over everything, and of the time since.
        let is_late = |found: &Found| found.by == By::Walk || found.at.elapsed() >= NOTICE_WAIT;
        let recent = |found: &&Found| found.walks + 1 >= state.walks && is_late(found);
        let count = state.findings.values().filter(recent).count();
        (count > 0).then(|| {
            format!(
                "the registry's notifications do not all come: {count} changes were found that none told of"
            )
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(tag: &str, content: &str) -> Finding {
        ("team/app".parse().unwrap(), tag.parse().unwrap(), Some(Digest::sha256(content.as_bytes())))
    }

    fn ended(standing: &Standing, error: Option<&str>) {
        let error = error.map(str::to_owned);
        standing.ended(&ReconcileReport { error, ..ReconcileReport::default() }, true);
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_notification_tells_of_is_counted_and_raises_an_alarm() {
        let standing = Standing::default();
        standing.found(finding("1", "a"), By::Walk);
        ended(&standing, None);
        assert_eq!(standing.missed(), 1);
        assert!(standing.alarm().unwrap().contains("1 changes"));
        standing.noticed(finding("1", "b"));
        assert_eq!(standing.missed(), 1, "of another push");
        standing.noticed(finding("1", "a"));
        assert_eq!((standing.missed(), standing.alarm()), (0, None), "it was late");
        standing.found(finding("1", "a"), By::Walk);
        assert_eq!(standing.missed(), 0, "it was told of a moment ago");

        standing.found(finding("2", "a"), By::Question);
        assert_eq!((standing.missed(), standing.alarm()), (1, None), "it may be on its way");
        tokio::time::advance(NOTICE_WAIT).await;
        assert!(standing.alarm().is_some());
        ended(&standing, None);
        assert!(standing.alarm().is_some(), "found since the walk before");
        ended(&standing, None);
        assert_eq!((standing.missed(), standing.alarm()), (1, None), "a walk found nothing more");
    }

    #[test]
    fn trouble_stays_until_everything_was_walked_without() {
        let standing = Standing::default();
        ended(&standing, Some("no answer"));
        assert!(standing.alarm().unwrap().contains("no answer"));
        standing.ended(&ReconcileReport::default(), false);
        assert!(standing.alarm().is_some(), "some repositories say nothing of the others");
        ended(&standing, None);
        assert_eq!(standing.alarm(), None);
    }
}
