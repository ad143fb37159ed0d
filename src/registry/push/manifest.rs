//! Manifests: verified, parsed, checked against what the repository holds, then put in the log.

use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use outport_proto::{
    Change, Digest, ManifestPut, Reference, RepoName, Tag,
    event::INLINE_MANIFEST_BYTES_MAX,
    oci::{ChildKind, Descriptor, MANIFEST_BYTES_MAX, Platform, parse_manifest, platform_of_config},
};

use super::{ManifestPushed, NewManifest, PushError, PushService, allowed};
use crate::{
    auth::{Action, Caller},
    store::StoreError,
};

/// Most tags of one put. The specification asks for at least 10.
const TAGS_MAX: usize = 100;
/// Longest media type in bytes: two names of 127 and a slash (RFC 6838 section 4.2).
const MEDIA_TYPE_BYTES_MAX: usize = 255;
/// A config is read up to this size for the platform in it; real ones are a few KiB.
pub(in crate::registry) const CONFIG_BYTES_MAX: u64 = 4 * 1024 * 1024;

impl PushService {
    /// Puts a manifest and moves tags to it (`PUT /manifests/<reference>[?tag=]`). Putting what is
    /// there already succeeds and is an event all the same: sites wait for it.
    ///
    /// # Errors
    /// [`PushError`]: `Denied`, `TooLarge`, `ManifestInvalid`, `DigestInvalid`, `ManifestBlobUnknown`.
    pub async fn put_manifest(
        &self,
        caller: &Caller,
        repo: &RepoName,
        manifest: NewManifest,
    ) -> Result<ManifestPushed, PushError> {
        allowed(caller, repo, Action::Push)?;
        let (mut put, config) = parse(repo, &manifest)?;
        let (service, actor) = (self.clone(), caller.subject.clone());
        let (digest, subject) = (put.digest, put.subject);
        let offset = self
            .to_its_end(async move {
                let mut lease = None;
                if put.bytes.is_none() {
                    // From before it is kept until a repository holds it.
                    lease = Some(service.lease(&digest).await?);
                    service.keep_as_blob(digest, manifest.bytes).await?;
                }
                let _kept = service.locks.keep(&put.repo).await;
                if let Some(config) = config {
                    put.platform = service.platform(config).await;
                }
                let change = Change::ManifestPut(Box::new(put.clone()));
                let committed = service.commit_once(&actor, change, || service.check_children(&put)).await;
                drop(lease);
                committed
            })
            .await?;
        Ok(ManifestPushed { digest, subject, tags: manifest.tags, offset })
    }

    /// A manifest that is too large for its event is kept as a blob is. No repository links it,
    /// so it is served as a manifest alone.
    async fn keep_as_blob(&self, digest: Digest, bytes: Bytes) -> Result<(), PushError> {
        let store = self.store.clone();
        Self::blocking(move || {
            if store.size(&digest)? == Some(bytes.len() as u64) {
                return Ok(());
            }
            let mut ingest = store.ingest(digest.algorithm())?;
            ingest.write(&bytes)?;
            ingest.commit(&digest).map(|_| ())
        })
        .await
    }

    /// What an image runs on, so that sites can tell before any index names it. An image whose config
    /// is not here or makes no sense is one without.
    async fn platform(&self, config: Digest) -> Option<Platform> {
        let store = self.store.clone();
        let read = Self::blocking(move || {
            let Some(blob) = store.get(&config)?.filter(|blob| blob.size <= CONFIG_BYTES_MAX) else {
                return Ok(None);
            };
            let mut bytes = vec![0; usize::try_from(blob.size).unwrap_or_default()];
            let read = blob.file.read_exact_at(&mut bytes, 0);
            read.map_err(|source| StoreError::Io { action: "read an image's config", source })?;
            Ok(platform_of_config(&bytes))
        });
        read.await.unwrap_or_else(|error| {
            tracing::warn!(%config, ?error, "cannot tell the platform of an image");
            None
        })
    }

    fn check_children(&self, put: &ManifestPut) -> Result<(), PushError> {
        for child in &put.children {
            if !self.holds(&put.repo, child)? {
                return Err(PushError::ManifestBlobUnknown(child.digest));
            }
        }
        Ok(())
    }

    fn holds(&self, repo: &RepoName, child: &Descriptor) -> Result<bool, PushError> {
        Ok(match child.kind {
            ChildKind::Foreign => true,
            ChildKind::Blob => self.limits.sparse_manifests || self.link(repo, &child.digest)?.is_some(),
            // Build caches are pushed as indexes that list blobs.
            ChildKind::Manifest => {
                self.limits.sparse_indexes || self.index().is_named_in(repo, &child.digest)?
            }
        })
    }
}

/// What the event holds but for the platform, which stands in the config returned beside it.
pub(in crate::registry) fn parse(
    repo: &RepoName,
    manifest: &NewManifest,
) -> Result<(ManifestPut, Option<Digest>), PushError> {
    let NewManifest { reference, tags, content_type, bytes } = manifest;
    if bytes.len() > MANIFEST_BYTES_MAX {
        return Err(PushError::TooLarge { bytes_max: MANIFEST_BYTES_MAX as u64 });
    }
    if tags.len() > TAGS_MAX {
        return Err(PushError::Unsupported("more than 100 tags for one manifest"));
    }
    if content_type.len() > MEDIA_TYPE_BYTES_MAX {
        return Err(PushError::Unsupported("a media type of more than 255 bytes"));
    }
    let digest = match reference {
        Reference::Tag(_) => Digest::sha256(bytes),
        Reference::Digest(expected) => {
            let actual = Digest::of(expected.algorithm(), bytes);
            if actual != *expected {
                return Err(PushError::DigestInvalid { expected: *expected, actual: Box::new(actual) });
            }
            actual
        }
    };
    let info = parse_manifest(content_type, bytes)?;
    let annotations = info.subject.map(|_| info.annotations.into_iter().collect());
    let put = ManifestPut {
        repo: repo.clone(),
        digest,
        media_type: content_type.clone(),
        size: bytes.len() as u64,
        bytes: (bytes.len() <= INLINE_MANIFEST_BYTES_MAX).then(|| bytes.clone()),
        tags: all_tags(reference, tags),
        subject: info.subject,
        artifact_type: info.artifact_type,
        platform: None,
        annotations: annotations.unwrap_or_default(),
        children: info.children,
    };
    Ok((put, info.config))
}

/// Every tag that is to name the manifest, once.
fn all_tags(reference: &Reference, tags: &[Tag]) -> Vec<Tag> {
    let mut all: Vec<Tag> = match reference {
        Reference::Tag(tag) => vec![tag.clone()],
        Reference::Digest(_) => Vec::new(),
    };
    for tag in tags {
        if !all.contains(tag) {
            all.push(tag.clone());
        }
    }
    all
}
