//! Whether a blob that is about to be filled is one that the site does not keep.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use outport_proto::{Digest, RepoName};
use tokio::time::Instant;

use crate::{
    blocking,
    index::Index,
    policy::{Contents, Keep, Policy, Verdict},
};

/// The layers of an image are pulled one after the other: what was found for one holds for the
/// others. What a tag that moves meanwhile changes is which blobs are kept, never what is served.
const HOLDS: Duration = Duration::from_secs(5);

type Verdicts = Arc<BTreeMap<Digest, Verdict>>;

/// A site's policy, asked blob by blob.
pub struct Exclusion {
    policy: Arc<Policy>,
    index: Index,
    last: Mutex<Option<Known>>,
}

/// What was found for a repository.
struct Known {
    repo: RepoName,
    at: Instant,
    verdicts: Verdicts,
}

impl Exclusion {
    /// `policy` over `index`.
    pub fn new(policy: Arc<Policy>, index: Index) -> Self {
        Self { policy, index, last: Mutex::default() }
    }

    /// Whether the site does not keep the blob. In doubt it does.
    pub async fn excludes(&self, repo: &RepoName, digest: &Digest) -> bool {
        if !self.policy.may_exclude(repo) {
            return false;
        }
        if let Some(verdict) = self.policy.of_repository(repo) {
            return verdict.keep == Keep::Exclude;
        }
        let is_excluded = |verdicts: &Verdicts| Some(verdicts.get(digest)?.keep == Keep::Exclude);
        if let Some(excluded) = self.known(repo).as_ref().and_then(is_excluded) {
            return excluded;
        }
        let Some(verdicts) = self.look_up(repo).await else { return false };
        let excluded = is_excluded(&verdicts).unwrap_or(false);
        let known = Known { repo: repo.clone(), at: Instant::now(), verdicts };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        excluded
    }

    fn known(&self, repo: &RepoName) -> Option<Verdicts> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let known = last.as_ref().filter(|known| known.repo == *repo && known.at.elapsed() < HOLDS)?;
        Some(Arc::clone(&known.verdicts))
    }

    async fn look_up(&self, repo: &RepoName) -> Option<Verdicts> {
        let (policy, index, repo) = (Arc::clone(&self.policy), self.index.clone(), repo.clone());
        let looked = blocking::spawn(move || Contents::new(&policy, &index).verdicts(&repo)).await;
        match looked {
            Ok(Ok(verdicts)) => Some(Arc::new(verdicts)),
            Ok(Err(error)) => {
                tracing::warn!(%error, "index failed; the blob is kept");
                None
            }
            Err(error) => {
                tracing::error!(%error, "the policy crashed; the blob is kept");
                None
            }
        }
    }
}
