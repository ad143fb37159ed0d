//! From a manifest of the registry to the events that tell of it.

use std::time::Duration;

use outport_proto::{
    Change, Digest, ManifestPut, Offset, Reference, RepoName, Tag,
    oci::{ChildKind, Platform, platform_of_config},
};

use super::{
    Gateway, GatewayError,
    observe::{Doubtful, OBSERVER},
};
use crate::{
    fetch::backend::Manifest,
    registry::push::{CONFIG_BYTES_MAX, NewManifest, parse},
};

/// How long it may take to find out what an image runs on.
const PLATFORM_TIMEOUT: Duration = Duration::from_secs(5);

impl Gateway {
    /// Records a manifest of the registry with what it names, and that `tags` name it.
    pub(super) async fn record(
        &self,
        repo: &RepoName,
        manifest: Manifest,
        tags: &[Tag],
    ) -> Result<Offset, GatewayError> {
        let reference = Reference::Digest(manifest.digest);
        let Manifest { media_type, bytes, .. } = manifest;
        let new = NewManifest {
            reference: reference.clone(),
            tags: tags.to_vec(),
            content_type: media_type,
            bytes,
        };
        let unfit = |error: crate::registry::PushError| {
            let (repo, reason) = (repo.clone(), error.to_string());
            GatewayError::Unfit { repo, reference: reference.clone(), reason }
        };
        let (put, config) = parse(repo, &new).map_err(unfit)?;
        let put = self.with_platform(put, config).await;
        let mut changes = self.missing_links(&put).await?;
        self.look_at_children(&put)?;
        changes.push(Change::ManifestPut(Box::new(put)));
        self.commit(OBSERVER, None, changes).await
    }

    /// That `tags` name a manifest which is known.
    pub(super) async fn commit_tags(
        &self,
        record: ManifestPut,
        tags: &[Tag],
    ) -> Result<Offset, GatewayError> {
        let put = ManifestPut { tags: tags.to_vec(), ..record };
        self.commit(OBSERVER, None, vec![Change::ManifestPut(Box::new(put))]).await
    }

    /// What an image runs on stands in its config. A config that cannot be had makes an image without.
    pub(super) async fn with_platform(&self, put: ManifestPut, config: Option<Digest>) -> ManifestPut {
        let Some(config) = config else { return put };
        if let Ok(Some(ManifestPut { platform: platform @ Some(_), .. })) =
            self.index().manifest_record(&put.repo, &put.digest)
        {
            return ManifestPut { platform, ..put };
        }
        let platform = tokio::time::timeout(PLATFORM_TIMEOUT, self.platform(&put.repo, &config)).await;
        let platform = platform.unwrap_or(Ok(None)).unwrap_or_else(|error| {
            tracing::info!(repo = %put.repo, %config, %error, "cannot tell the platform of an image");
            None
        });
        ManifestPut { platform, ..put }
    }

    async fn platform(&self, repo: &RepoName, config: &Digest) -> Result<Option<Platform>, GatewayError> {
        let bytes = self.backend().small_blob(repo, config, CONFIG_BYTES_MAX as usize).await?;
        Ok(bytes.and_then(|bytes| platform_of_config(&bytes)))
    }

    /// The links to the blobs of a manifest that the log does not have, as the registry says: that it took
    /// the manifest does not say that the repository has them.
    pub(super) async fn missing_links(&self, put: &ManifestPut) -> Result<Vec<Change>, GatewayError> {
        let mut changes = Vec::new();
        for child in put.children.iter().filter(|child| child.kind == ChildKind::Blob) {
            let digest = child.digest;
            if self.index().link(&put.repo, &digest)?.is_none()
                && let Some(size) = self.backend().blob_size(&put.repo, &digest).await?
            {
                changes.push(Change::BlobCommitted { repo: put.repo.clone(), digest, size });
            }
        }
        Ok(changes)
    }

    /// Looks at the manifests that an index lists and the log does not have, in the background: there may
    /// be thousands, and the index is served without them.
    pub(super) fn look_at_children(&self, put: &ManifestPut) -> Result<(), GatewayError> {
        for child in self.unknown_children(put)? {
            self.doubt(Doubtful::Manifest(put.repo.clone(), Reference::Digest(child)), Duration::ZERO);
        }
        Ok(())
    }

    /// The manifests that an index lists and the log does not have.
    pub(super) fn unknown_children(&self, put: &ManifestPut) -> Result<Vec<Digest>, GatewayError> {
        let mut unknown = Vec::new();
        for child in put.children.iter().filter(|child| child.kind == ChildKind::Manifest) {
            if !self.index().is_named_in(&put.repo, &child.digest)? {
                unknown.push(child.digest);
            }
        }
        Ok(unknown)
    }
}
