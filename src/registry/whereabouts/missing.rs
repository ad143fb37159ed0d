//! Which of an image's blobs a store lacks.

use std::collections::{BTreeMap, BTreeSet};

use outport_proto::{Digest, RepoName, oci::ChildKind};

use super::AskError;
use crate::{
    index::Index,
    policy::{Contents, Keep, Policy, Subject, Verdict},
    store::Store,
};

/// Manifests of one image that are looked at; an image with more is not looked at to its end.
const MANIFESTS_MAX: usize = 10_000;

/// What of an image is not here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Its blobs that the site copies before anybody asks, in the order in which the image names them.
    pub blobs: Vec<Digest>,
    /// Their bytes together.
    pub bytes: u64,
    /// Its blobs that it does not.
    pub not_kept: Vec<Digest>,
    /// Their bytes together.
    pub not_kept_bytes: u64,
    /// What the policy says of the first of these.
    pub verdict: Option<Verdict>,
}

impl Missing {
    /// Whether all of it is here.
    pub const fn is_none(&self) -> bool {
        self.blobs.is_empty() && self.not_kept.is_empty()
    }
}

/// What of `digest` and everything below it (child manifests, config, layers) is not here. Asks
/// the disk for every blob, so it blocks.
///
/// # Errors
/// When index or store fail.
pub fn missing(
    index: &Index,
    store: &Store,
    policy: &Policy,
    repo: &RepoName,
    digest: &Digest,
) -> Result<Missing, AskError> {
    let verdicts = match index.manifest_record(repo, digest)? {
        Some(put) => Contents::new(policy, index).verdicts_of(&put)?,
        None => BTreeMap::new(),
    };
    let mut found = Missing::default();
    for (digest, size) in missing_blobs(index, store, repo, digest)? {
        let verdict = verdicts.get(&digest).copied();
        found.add(digest, size, verdict.unwrap_or_else(|| policy.settle(&Subject::of(repo))));
    }
    Ok(found)
}

/// The blobs of `digest` and everything below it that are not here, with their sizes, in the order
/// in which they are named. Asks the disk for every blob, so it blocks.
///
/// # Errors
/// When index or store fail.
pub fn missing_blobs(
    index: &Index,
    store: &Store,
    repo: &RepoName,
    digest: &Digest,
) -> Result<Vec<(Digest, u64)>, AskError> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::from([*digest]);
    let mut manifests = vec![(*digest, 0)];
    let mut looked_at = 0;
    while let Some((digest, size)) = manifests.pop()
        && looked_at < MANIFESTS_MAX
    {
        looked_at += 1;
        let Some(put) = index.manifest_record(repo, &digest)? else {
            // Build caches are pushed as indexes that list blobs.
            if store.size(&digest)?.is_none() {
                found.push((digest, size));
            }
            continue;
        };
        if put.bytes.is_none() && store.size(&digest)?.is_none() {
            found.push((digest, put.size));
        }
        for child in put.children.iter().filter(|child| seen.insert(child.digest)) {
            match child.kind {
                ChildKind::Manifest => manifests.push((child.digest, child.size)),
                ChildKind::Blob if store.size(&child.digest)?.is_none() => {
                    found.push((child.digest, child.size));
                }
                ChildKind::Blob | ChildKind::Foreign => {}
            }
        }
    }
    Ok(found)
}

impl Missing {
    fn add(&mut self, digest: Digest, size: u64, verdict: Verdict) {
        if verdict.keep == Keep::Eager {
            self.blobs.push(digest);
            self.bytes = self.bytes.saturating_add(size);
        } else {
            self.not_kept.push(digest);
            self.not_kept_bytes = self.not_kept_bytes.saturating_add(size);
            self.verdict.get_or_insert(verdict);
        }
    }
}

#[cfg(test)]
mod tests {
    use outport_proto::oci::media_type;

    use super::*;
    use crate::policy::PolicyRule;
    use crate::registry::testing::{Primary, Secondary, repo};

    #[tokio::test]
    async fn an_index_is_looked_through_to_its_layers() {
        let (primary, app) = (Primary::new().await, repo("team/app"));
        let child = primary.image(&app, "child", "config").await;
        let bytes = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":9}}]}}"#,
            media_type::OCI_MANIFEST,
            child.digest
        );
        let whole = primary.put(&app, "all", media_type::OCI_INDEX, bytes).await.unwrap();
        let all = Policy::default();
        let here = |digest| {
            let index = primary.journal.index();
            missing(index, &primary.store, &all, &app, digest).unwrap().is_none()
        };
        assert!(here(&whole.digest) && here(&child.digest));

        let site = Secondary::of(&primary);
        let lacks = || missing(&site.index, &site.store, &all, &app, &whole.digest).unwrap().blobs;
        assert_eq!(lacks(), [whole.digest], "nothing of it is known yet");
        site.catch_up(&primary);
        assert_eq!(lacks(), [Digest::sha256(b"config")]);
        let rule = PolicyRule { keep: Some(Keep::Lazy), ..PolicyRule::default() };
        let lazy = Policy::new(&[rule]).unwrap();
        let found = missing(&site.index, &site.store, &lazy, &app, &whole.digest).unwrap();
        assert_eq!((found.blobs, found.not_kept), (vec![], vec![Digest::sha256(b"config")]));
        assert_eq!(found.verdict.unwrap().rule, Some(1));
    }
}
