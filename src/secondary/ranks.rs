//! In which order a site's blobs make room: those that its policy copies ahead go last.

use std::{
    collections::BTreeSet,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lru::LruCache;
use outport_proto::{Digest, RepoName};
use tokio::time::Instant;

use crate::{
    index::{Index, IndexError},
    policy::{Contents, Keep, Policy},
    store::{Rank, Ranks},
};

/// Repositories looked at to tell how much a blob that many link is wanted.
const REPOSITORIES_MAX: usize = 64;
/// Repositories with rules about tags whose wanted blobs are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(15);
/// For so long.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);

/// The wanted blobs of a repository, and since when they are known.
type Wanted = (Instant, Arc<BTreeSet<Digest>>);

struct Ranking {
    policy: Arc<Policy>,
    index: Index,
    /// Where the repository alone does not tell.
    wanted: Mutex<LruCache<RepoName, Wanted>>,
}

/// Ranks by `policy` over `index`.
pub fn ranks(policy: Arc<Policy>, index: Index) -> Ranks {
    let ranking = Ranking { policy, index, wanted: Mutex::new(LruCache::new(REMEMBERED)) };
    // What cannot be told goes last.
    Arc::new(move |digest| ranking.rank(digest).unwrap_or(Rank::Eager))
}

impl Ranking {
    fn rank(&self, digest: &Digest) -> Result<Rank, IndexError> {
        let repos = self.index.naming(digest, REPOSITORIES_MAX)?;
        let mut rank = if repos.is_empty() { Rank::Unlinked } else { Rank::Lazy };
        for repo in &repos {
            let is_wanted = match self.policy.of_repository(repo) {
                Some(verdict) => verdict.keep == Keep::Eager,
                None => self.wanted_of(repo)?.contains(digest),
            };
            if is_wanted {
                rank = Rank::Eager;
                break;
            }
        }
        Ok(rank)
    }

    fn wanted_of(&self, repo: &RepoName) -> Result<Arc<BTreeSet<Digest>>, IndexError> {
        let now = Instant::now();
        let known = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).get(repo).cloned();
        if let Some((_, wanted)) = known.filter(|(at, _)| now - *at < REMEMBERED_FOR) {
            return Ok(wanted);
        }
        let verdicts = Contents::new(&self.policy, &self.index).verdicts(repo)?;
        let wanted = verdicts.into_iter().filter(|(_, verdict)| verdict.keep == Keep::Eager);
        let wanted = Arc::new(wanted.map(|(digest, _)| digest).collect::<BTreeSet<_>>());
        let remembered = (now, Arc::clone(&wanted));
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).put(repo.clone(), remembered);
        Ok(wanted)
    }
}
