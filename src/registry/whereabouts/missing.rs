//! Which of an image's blobs a store lacks.

use std::collections::BTreeSet;

use outport_proto::{Digest, RepoName, oci::ChildKind};

use super::AskError;
use crate::{index::Index, store::Store};

/// Manifests of one image that are looked at; an image with more is not looked at to its end.
const MANIFESTS_MAX: usize = 10_000;

/// What of an image is not here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Its blobs, in the order in which the image names them.
    pub blobs: Vec<Digest>,
    /// Their bytes together.
    pub bytes: u64,
}

impl Missing {
    /// Whether all of it is here.
    pub const fn is_none(&self) -> bool {
        self.blobs.is_empty()
    }
}

/// What of `digest` and everything below it (child manifests, config, layers) is not here. Asks
/// the disk for every blob, so it blocks.
///
/// # Errors
/// When index or store fail.
pub fn missing(index: &Index, store: &Store, repo: &RepoName, digest: &Digest) -> Result<Missing, AskError> {
    let mut found = Missing::default();
    let mut seen = BTreeSet::from([*digest]);
    let mut manifests = vec![(*digest, 0)];
    let mut looked_at = 0;
    while let Some((digest, size)) = manifests.pop()
        && looked_at < MANIFESTS_MAX
    {
        looked_at += 1;
        let Some(put) = index.manifest_record(repo, &digest)? else {
            found.add(digest, size);
            continue;
        };
        if put.bytes.is_none() && store.size(&digest)?.is_none() {
            found.add(digest, put.size);
        }
        for child in put.children.iter().filter(|child| seen.insert(child.digest)) {
            match child.kind {
                ChildKind::Manifest => manifests.push((child.digest, child.size)),
                ChildKind::Blob if store.size(&child.digest)?.is_none() => {
                    found.add(child.digest, child.size);
                }
                ChildKind::Blob | ChildKind::Foreign => {}
            }
        }
    }
    Ok(found)
}

impl Missing {
    fn add(&mut self, digest: Digest, size: u64) {
        self.blobs.push(digest);
        self.bytes = self.bytes.saturating_add(size);
    }
}

#[cfg(test)]
mod tests {
    use outport_proto::oci::media_type;

    use super::*;
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
        let here = |digest| missing(primary.journal.index(), &primary.store, &app, digest).unwrap().is_none();
        assert!(here(&whole.digest) && here(&child.digest));

        let site = Secondary::of(&primary);
        let lacks = || missing(&site.index, &site.store, &app, &whole.digest).unwrap().blobs;
        assert_eq!(lacks(), [whole.digest], "nothing of it is known yet");
        site.catch_up(&primary);
        assert_eq!(lacks(), [Digest::sha256(b"config")]);
    }
}
