//! From a manifest of the registry to the events that tell of it.

use std::{future::Future, pin::Pin};

use bytes::BytesMut;
use outport_proto::{
    Change, Digest, ManifestPut, Offset, Reference, RepoName, Tag,
    oci::{ChildKind, Platform, platform_of_config},
};

use super::{Gateway, GatewayError, observe::OBSERVER};
use crate::{
    fetch::backend::Manifest,
    registry::push::{CONFIG_BYTES_MAX, NewManifest, parse},
};

/// Indexes may list indexes, so deep.
const DEPTH_MAX: usize = 4;

impl Gateway {
    /// Records a manifest of the registry with what it names, and that `tags` name it.
    pub(super) fn record<'a>(
        &'a self,
        repo: &'a RepoName,
        manifest: Manifest,
        tags: &'a [Tag],
        depth: usize,
    ) -> Pin<Box<dyn Future<Output = Result<Offset, GatewayError>> + Send + 'a>> {
        Box::pin(async move {
            let reference = Reference::Digest(manifest.digest);
            let unfit = |reason: String| GatewayError::Unfit {
                repo: repo.clone(),
                reference: reference.clone(),
                reason,
            };
            let Manifest { media_type, bytes, .. } = manifest;
            let new = NewManifest {
                reference: reference.clone(),
                tags: tags.to_vec(),
                content_type: media_type,
                bytes,
            };
            let (put, config) = parse(repo, &new).map_err(|error| unfit(error.to_string()))?;
            let put = self.with_platform(put, config).await;
            let changes = self.with_children(put, depth).await?;
            self.commit(OBSERVER, None, changes).await
        })
    }

    /// That `tags` name a manifest which is known.
    pub(super) async fn commit_tags(
        &self,
        record: ManifestPut,
        tags: &[Tag],
    ) -> Result<Offset, GatewayError> {
        let put = ManifestPut { tags: tags.to_vec(), ..record };
        let changes = self.with_children(put, 0).await?;
        self.commit(OBSERVER, None, changes).await
    }

    /// What an image runs on stands in its config. A config that cannot be had makes an image without.
    pub(super) async fn with_platform(&self, put: ManifestPut, config: Option<Digest>) -> ManifestPut {
        let Some(config) = config else { return put };
        if let Ok(Some(ManifestPut { platform: platform @ Some(_), .. })) =
            self.index().manifest_record(&put.repo, &put.digest)
        {
            return ManifestPut { platform, ..put };
        }
        let platform = self.platform(&put.repo, &config).await.unwrap_or_else(|error| {
            tracing::info!(repo = %put.repo, %config, %error, "cannot tell the platform of an image");
            None
        });
        ManifestPut { platform, ..put }
    }

    async fn platform(&self, repo: &RepoName, config: &Digest) -> Result<Option<Platform>, GatewayError> {
        let Some(mut blob) = self.backend().blob(repo, config, 0).await? else { return Ok(None) };
        if blob.size() > CONFIG_BYTES_MAX {
            return Ok(None);
        }
        let mut bytes = BytesMut::new();
        while let Ok(Some(piece)) = blob.chunk().await {
            if (bytes.len() + piece.len()) as u64 > CONFIG_BYTES_MAX {
                return Ok(None);
            }
            bytes.extend_from_slice(&piece);
        }
        let is_it = Digest::of(config.algorithm(), &bytes) == *config;
        Ok(is_it.then(|| platform_of_config(&bytes)).flatten())
    }

    /// A manifest behind the links to the blobs it names, which the registry has: it took the manifest.
    /// Manifests that an index lists are recorded first, those that the registry has.
    pub(super) async fn with_children(
        &self,
        put: ManifestPut,
        depth: usize,
    ) -> Result<Vec<Change>, GatewayError> {
        let repo = put.repo.clone();
        let mut changes = Vec::new();
        for child in &put.children {
            match child.kind {
                ChildKind::Foreign => {}
                ChildKind::Blob => {
                    if self.index().link(&repo, &child.digest)?.is_none() {
                        let (digest, size) = (child.digest, child.size);
                        changes.push(Change::BlobCommitted { repo: repo.clone(), digest, size });
                    }
                }
                ChildKind::Manifest => self.record_child(&repo, &child.digest, depth).await?,
            }
        }
        changes.push(Change::ManifestPut(Box::new(put)));
        Ok(changes)
    }

    async fn record_child(&self, repo: &RepoName, digest: &Digest, depth: usize) -> Result<(), GatewayError> {
        if depth >= DEPTH_MAX || self.index().is_named_in(repo, digest)? {
            return Ok(());
        }
        let child = Reference::Digest(*digest);
        if let Some(manifest) = self.backend().manifest(repo, &child).await? {
            return self.record(repo, manifest, &[], depth + 1).await.map(|_| ());
        }
        // Build caches are indexes that list blobs.
        if let Some(size) = self.backend().blob_size(repo, digest).await? {
            let change = Change::BlobCommitted { repo: repo.clone(), digest: *digest, size };
            self.commit(OBSERVER, None, vec![change]).await?;
        }
        Ok(())
    }
}
