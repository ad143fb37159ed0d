//! Removes the blobs that a new policy excludes.

use std::collections::{BTreeMap, BTreeSet};

use outport_proto::{Digest, RepoName, snapshot::Entry};

use crate::{
    index::{Index, IndexError},
    policy::{Contents, Keep, Policy, Verdict},
    shutdown::Shutdown,
    store::{Store, StoreError, Taken},
};

/// Bytes of index entries looked at in one go.
const PART_BYTES: usize = 256 * 1024;

/// Blobs that are weighed at once. What is left over is found by the next round.
const CANDIDATES_MAX: usize = 1_000_000;

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Removed {
    pub(super) blobs: u64,
    pub(super) bytes: u64,
}

/// Why not all was removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoveError {
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Removes every blob of `store` that is excluded in each repository that links it. Who reads one
/// reads on. Blocks for as long as that takes, or until shutdown.
pub(super) fn remove(
    policy: &Policy,
    index: &Index,
    store: &Store,
    shutdown: &Shutdown,
) -> Result<Removed, RemoveError> {
    let mut removed = Removed::default();
    loop {
        let excluded = excluded(policy, index, store, shutdown)?;
        for digest in &excluded {
            if shutdown.is_requested() {
                return Ok(removed);
            }
            if let Taken::Away { bytes } = store.take_unneeded(digest, || Ok::<_, StoreError>(false))? {
                removed.blobs += 1;
                removed.bytes += bytes;
            }
        }
        if excluded.len() < CANDIDATES_MAX {
            return Ok(removed);
        }
    }
}

/// At most [`CANDIDATES_MAX`] blobs that are here and excluded wherever they are linked.
fn excluded(
    policy: &Policy,
    index: &Index,
    store: &Store,
    shutdown: &Shutdown,
) -> Result<BTreeSet<Digest>, RemoveError> {
    let mut candidates = BTreeSet::new();
    let mut failed = None;
    each_blob(policy, index, shutdown, &mut |digest, verdict| {
        if verdict.keep == Keep::Exclude && candidates.len() < CANDIDATES_MAX && failed.is_none() {
            match store.size(digest) {
                Ok(Some(_)) => {
                    candidates.insert(*digest);
                }
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    if !candidates.is_empty() {
        each_blob(policy, index, shutdown, &mut |digest, verdict| {
            if verdict.keep != Keep::Exclude {
                candidates.remove(digest);
            }
        })?;
    }
    // Half a look at who keeps them is none.
    Ok(if shutdown.is_requested() { BTreeSet::new() } else { candidates })
}

/// What the policy says of every link, and of every manifest that is kept as a blob.
fn each_blob(
    policy: &Policy,
    index: &Index,
    shutdown: &Shutdown,
    look: &mut dyn FnMut(&Digest, Verdict),
) -> Result<(), IndexError> {
    let contents = Contents::new(policy, index);
    // Entries come by repository, so one at a time is enough.
    let mut of_repo: Option<(RepoName, BTreeMap<Digest, Verdict>)> = None;
    index.dump(PART_BYTES, &mut |entries| {
        if shutdown.is_requested() {
            return Ok(());
        }
        for entry in &entries {
            let (repo, digest) = match entry {
                Entry::Link { repo, digest, .. } => (repo, digest),
                Entry::Manifest { manifest, .. } if manifest.bytes.is_none() => {
                    look(&manifest.digest, Verdict::METADATA);
                    continue;
                }
                Entry::Manifest { .. } | Entry::Tag { .. } | Entry::Tombstone { .. } => continue,
            };
            if let Some(verdict) = policy.of_repository(repo) {
                look(digest, verdict);
                continue;
            }
            if of_repo.as_ref().is_none_or(|(known, _)| known != repo) {
                let verdicts = contents.verdicts(repo).map_err(std::io::Error::other)?;
                of_repo = Some((repo.clone(), verdicts));
            }
            let known = of_repo.as_ref().and_then(|(_, verdicts)| verdicts.get(digest));
            look(digest, known.copied().unwrap_or_else(|| contents.unnamed(repo)));
        }
        Ok(())
    })?;
    Ok(())
}
