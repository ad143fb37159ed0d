//! The policy over a site's index: which blobs an event makes wanted, and what is to be done with
//! the blobs of a repository. Everything here reads the index, and may block.

use std::collections::{BTreeMap, BTreeSet};

use outport_proto::{
    Change, Digest, ManifestPut, RepoName, Tag,
    event::INLINE_MANIFEST_BYTES_MAX,
    oci::{ChildKind, Descriptor, Platform},
};

use super::{Keep, Policy, Subject, Verdict};
use crate::index::{Index, IndexError};

/// Manifests that are looked at for one answer. What lies behind them is kept when it is pulled.
const MANIFESTS_MAX: usize = 10_000;
/// Blobs that are looked at for one answer, likewise.
const BLOBS_MAX: usize = 1_000_000;
/// Tags of one manifest that count.
const TAGS_MAX: usize = 1_000;
/// Manifests read from the index at once.
const PAGE: usize = 256;

/// A blob that a site wants before anybody asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Higher is copied first.
    pub priority: i32,
}

/// A policy and the index it is asked about.
#[derive(Clone, Copy)]
pub struct Contents<'a> {
    policy: &'a Policy,
    index: &'a Index,
}

/// A manifest to look at, and what the manifest that led there says of it.
struct Node {
    put: ManifestPut,
    platform: Option<Platform>,
}

impl<'a> Contents<'a> {
    /// `policy` over `index`.
    pub const fn new(policy: &'a Policy, index: &'a Index) -> Self {
        Self { policy, index }
    }

    /// The blobs that a change, which the index shows already, makes wanted.
    ///
    /// # Errors
    /// When the index fails.
    pub fn wanted_by(&self, change: &Change) -> Result<Vec<Blob>, IndexError> {
        match change {
            Change::BlobCommitted { repo, digest, size } | Change::BlobMounted { repo, digest, size, .. } => {
                Ok(self.wanted_link(repo, *digest, *size).into_iter().collect())
            }
            Change::ManifestPut(put) => self.wanted_of(put),
            Change::TagDeleted { .. }
            | Change::ManifestDeleted { .. }
            | Change::BlobDeleted { .. }
            | Change::RepositoryDeleted { .. }
            | Change::EpochBegan { .. } => Ok(Vec::new()),
        }
    }

    /// A blob that a repository links, when that alone makes it wanted.
    pub fn wanted_link(&self, repo: &RepoName, digest: Digest, size: u64) -> Option<Blob> {
        let verdict = self.policy.of_repository(repo).filter(|verdict| verdict.keep == Keep::Eager)?;
        Some(Blob { digest, size, priority: verdict.priority })
    }

    /// The blobs that a manifest makes wanted: its own, and where it closes what was open about
    /// its children and what refers to it, theirs.
    ///
    /// # Errors
    /// When the index fails.
    pub fn wanted_of(&self, put: &ManifestPut) -> Result<Vec<Blob>, IndexError> {
        let mut wanted = Vec::new();
        match self.policy.of_repository(&put.repo) {
            Some(verdict) => {
                wanted.extend(large_manifest(put));
                // Children come with events of their own.
                if verdict.keep == Keep::Eager {
                    wanted.extend(blobs_of(put).map(|(digest, size)| blob(digest, size, verdict)));
                }
            }
            None => {
                let tags = self.tags_of(put)?;
                self.look_through(put, tags.as_deref(), |digest, size, verdict| {
                    if let Some(verdict) = verdict.filter(|verdict| verdict.keep == Keep::Eager) {
                        wanted.push(blob(digest, size, verdict));
                    }
                })?;
            }
        }
        Ok(wanted)
    }

    /// What is to be done with a blob of a repository.
    ///
    /// # Errors
    /// When the index fails.
    pub fn verdict(&self, repo: &RepoName, digest: &Digest) -> Result<Verdict, IndexError> {
        match self.policy.of_repository(repo) {
            Some(verdict) => Ok(verdict),
            None => Ok(self.verdicts(repo)?.get(digest).copied().unwrap_or_else(|| self.unnamed(repo))),
        }
    }

    /// What is to be done with a blob that no manifest of the repository names.
    pub fn unnamed(&self, repo: &RepoName) -> Verdict {
        self.policy.settle(&Subject::of(repo))
    }

    /// What is to be done with every blob that a manifest of the repository names.
    ///
    /// # Errors
    /// When the index fails.
    pub fn verdicts(&self, repo: &RepoName) -> Result<BTreeMap<Digest, Verdict>, IndexError> {
        let mut verdicts: BTreeMap<Digest, Verdict> = BTreeMap::new();
        let (mut seen, mut untagged) = (BTreeSet::new(), Vec::new());
        let mut last = None;
        let mut looked_at = 0;
        while looked_at < MANIFESTS_MAX {
            let page = self.index.manifests(repo, last.as_ref(), PAGE)?;
            let Some(put) = page.last() else { break };
            last = Some(put.digest);
            looked_at += page.len();
            for put in page {
                match self.tags_of(&put)? {
                    Some(tags) => seen.extend(self.settle(&put, Some(&tags), &mut verdicts)?),
                    None => untagged.push(put),
                }
            }
        }
        // What no tag leads to has none, as far as can be told.
        for put in untagged.iter().filter(|put| !seen.contains(&put.digest)) {
            self.settle(put, None, &mut verdicts)?;
        }
        Ok(verdicts)
    }

    /// What is to be done with every blob of an image and of what refers to it.
    ///
    /// # Errors
    /// When the index fails.
    pub fn verdicts_of(&self, put: &ManifestPut) -> Result<BTreeMap<Digest, Verdict>, IndexError> {
        let mut verdicts = BTreeMap::new();
        self.settle(put, self.tags_of(put)?.as_deref(), &mut verdicts)?;
        Ok(verdicts)
    }

    /// What of a repository's state a walk over its links does not meet: a manifest that is kept as
    /// a blob, and what is wanted because of the images it belongs to.
    ///
    /// # Errors
    /// When the index fails.
    pub fn wanted_beyond_links(&self, put: &ManifestPut) -> Result<Vec<Blob>, IndexError> {
        let is_by_repository = self.policy.of_repository(&put.repo).is_some();
        let mut wanted = self.wanted_of(put)?;
        wanted.retain(|blob| !is_by_repository || blob.digest == put.digest);
        Ok(wanted)
    }

    /// Takes what follows from `put` into `verdicts`; returns the manifests it led to.
    fn settle(
        &self,
        put: &ManifestPut,
        tags: Option<&[Tag]>,
        verdicts: &mut BTreeMap<Digest, Verdict>,
    ) -> Result<BTreeSet<Digest>, IndexError> {
        let open = self.policy.settle(&Subject { tags, ..Subject::of(&put.repo) });
        self.look_through(put, tags, |digest, _, verdict| {
            let verdict = verdict.unwrap_or(open);
            if let Some(known) = verdicts.get_mut(&digest) {
                *known = verdict.max(*known);
            } else if verdicts.len() < BLOBS_MAX {
                verdicts.insert(digest, verdict);
            }
        })
    }

    /// Hands every blob of an image to `found`, with what is to be done with it; `None` while that
    /// is open. Returns the manifests it looked at.
    fn look_through(
        &self,
        put: &ManifestPut,
        tags: Option<&[Tag]>,
        mut found: impl FnMut(Digest, u64, Option<Verdict>),
    ) -> Result<BTreeSet<Digest>, IndexError> {
        let repo = &put.repo;
        let mut seen = BTreeSet::from([put.digest]);
        let mut nodes = vec![Node { put: put.clone(), platform: None }];
        let mut blobs = 0;
        while let Some(Node { put, platform }) = nodes.pop()
            && blobs < BLOBS_MAX
        {
            blobs += put.children.len();
            let platform = platform.or_else(|| put.platform.clone());
            // A child whose index is not here yet may get its platform from there.
            let is_platform_known = platform.is_some() || tags.is_some();
            let verdict = self.policy.decide(&Subject {
                repo,
                tags,
                platform: is_platform_known.then_some(platform.as_ref()),
                artifact_type: Some(put.artifact_type.as_deref()),
            });
            if let Some(Blob { digest, size, .. }) = large_manifest(&put) {
                found(digest, size, Some(Verdict::METADATA));
            }
            blobs_of(&put).for_each(|(digest, size)| found(digest, size, verdict));
            for child in put.children.iter().filter(|child| child.kind == ChildKind::Manifest) {
                if seen.len() >= MANIFESTS_MAX || !seen.insert(child.digest) {
                    continue;
                }
                match self.index.manifest_record(repo, &child.digest)? {
                    Some(put) => nodes.push(Node { put, platform: child.platform.clone() }),
                    // Build caches are pushed as indexes that list blobs.
                    None if self.index.link(repo, &child.digest)?.is_some() => {
                        found(child.digest, child.size, verdict);
                    }
                    None => {}
                }
            }
            for referrer in self.index.referrers(repo, &put.digest)? {
                if seen.len() < MANIFESTS_MAX && seen.insert(referrer.digest) {
                    nodes.push(Node { put: referrer, platform: None });
                }
            }
        }
        Ok(seen)
    }

    /// The tags that count for a manifest: those that name it, else those that name its subject.
    /// `None` without any: it may yet turn out to be part of something that has one.
    fn tags_of(&self, put: &ManifestPut) -> Result<Option<Vec<Tag>>, IndexError> {
        let mut tags = self.index.tags_naming(&put.repo, &put.digest, TAGS_MAX)?;
        tags.extend(put.tags.iter().cloned());
        if let (true, Some(subject)) = (tags.is_empty(), &put.subject) {
            tags = self.index.tags_naming(&put.repo, subject, TAGS_MAX)?;
        }
        Ok((!tags.is_empty()).then_some(tags))
    }
}

fn blob(digest: Digest, size: u64, verdict: Verdict) -> Blob {
    Blob { digest, size, priority: verdict.priority }
}

/// The manifest itself where it is kept as a blob: a site that lacks it could not serve it.
fn large_manifest(put: &ManifestPut) -> Option<Blob> {
    let is_large = put.size > INLINE_MANIFEST_BYTES_MAX as u64;
    is_large.then(|| blob(put.digest, put.size, Verdict::METADATA))
}

/// Config and layers.
fn blobs_of(put: &ManifestPut) -> impl Iterator<Item = (Digest, u64)> {
    let blobs = put.children.iter().filter(|child| child.kind == ChildKind::Blob);
    blobs.map(|Descriptor { digest, size, .. }| (*digest, *size))
}

#[cfg(test)]
mod tests;
