//! Manifests, by tag and by digest.

use std::sync::Arc;

use bytes::Bytes;
use outport_proto::{Digest, ManifestPut, Offset, Reference};

use super::{
    ManifestAnswer, PullError, Remote, Shared, Want,
    rules::{Ask, Concerns, Found, Tried, note_cut, unavailable},
};
use crate::{
    fetch::FillError,
    index::Manifest,
    registry::{
        decide::{Decision, Kind},
        metrics::PullResult,
        remembered::Asked,
    },
    telemetry::trace,
};

type Pulled = Result<(ManifestAnswer, PullResult), PullError>;

impl Shared {
    pub(super) async fn manifest(&self, ask: &Ask<'_>, reference: &Reference) -> Pulled {
        ask.scope()?;
        let kind = match (reference, ask.options.want) {
            (Reference::Tag(_), _) => Kind::Tag,
            (Reference::Digest(_), Want::Content) => Kind::Digest,
            (Reference::Digest(_), Want::Headers) => Kind::Existence,
        };
        let mut tried = Tried::default();
        loop {
            let view = self.view(ask.repo, Concerns::Reference(reference));
            let manifest = {
                let _part = trace::span("index");
                self.looked_up(self.site.index.manifest(ask.repo, reference))?
            };
            let bytes = match &manifest {
                Some(manifest) => self.bytes_here(manifest).await,
                None => None,
            };
            let found = Found {
                known: manifest.is_some(),
                local: bytes.is_some(),
                remembered_no: manifest.is_none()
                    && self.remembers(ask.repo, &Asked::Manifest(reference.clone())),
            };
            let ruling = self.rule(ask, kind, &view, found, &tried);
            match (ruling.decision, manifest, bytes) {
                (Decision::Serve, Some(manifest), Some(bytes)) => {
                    let staleness = ruling.staleness();
                    let answer = ManifestAnswer { staleness, ..answer(&manifest, bytes, view.applied) };
                    return Ok((answer, ruling.result()));
                }
                (Decision::WaitThenServe { until }, ..) => Box::pin(self.wait(until, &mut tried)).await,
                (Decision::Fill, Some(manifest), _) => match Box::pin(self.filled(ask, &manifest)).await {
                    Ok((bytes, result)) => return Ok((answer(&manifest, bytes, view.applied), result)),
                    Err(error) => note_cut(ask, &mut tried, &error),
                },
                (Decision::Revalidate | Decision::Fill, ..) => {
                    let remote = self.remote()?;
                    match Box::pin(self.said(remote, ask, reference, view.applied)).await {
                        Ok(Some(pulled)) => return Ok(pulled),
                        Ok(None) => return Err(PullError::ManifestUnknown),
                        Err(error) => note_cut(ask, &mut tried, &error),
                    }
                }
                (Decision::Denied, ..) => return Err(PullError::Denied),
                (Decision::NotFound, ..) => {
                    let exists = self.site.index.has_repository(ask.repo).unwrap_or(true);
                    return Err(if exists { PullError::ManifestUnknown } else { PullError::NameUnknown });
                }
                (Decision::Unavailable | Decision::Serve, ..) => return Err(unavailable(&tried)),
            }
        }
    }

    /// What the primary says `reference` names; `None` when it says that there is no such thing.
    async fn said(
        &self,
        remote: &Remote,
        ask: &Ask<'_>,
        reference: &Reference,
        seen: Offset,
    ) -> Result<Option<(ManifestAnswer, PullResult)>, FillError> {
        let said = remote.word.manifest(ask.repo, reference, seen).await?;
        let Some(put) = said.value else {
            let asked = Asked::Manifest(reference.clone());
            remote.remembered.keep(ask.repo, asked, said.at, || self.site.index.applied());
            return Ok(None);
        };
        let manifest = of(&put);
        let (bytes, result) = match self.bytes_here(&manifest).await {
            Some(bytes) => (bytes, PullResult::Revalidated),
            None => self.filled(ask, &manifest).await?,
        };
        Ok(Some((answer(&manifest, bytes, said.at), result)))
    }

    /// The bytes of a manifest, from its event or from the blob store.
    async fn bytes_here(&self, manifest: &Manifest) -> Option<Bytes> {
        match &manifest.bytes {
            Some(bytes) => Some(bytes.clone()),
            None => self.stored_bytes(&manifest.digest, manifest.size).await,
        }
    }

    /// The bytes of a manifest that was too large for its event, fetched from the primary.
    async fn filled(&self, ask: &Ask<'_>, manifest: &Manifest) -> Result<(Bytes, PullResult), FillError> {
        self.fill_whole(ask.repo, &manifest.digest, manifest.size).await
    }
}

fn answer(manifest: &Manifest, bytes: Bytes, offset: Offset) -> ManifestAnswer {
    ManifestAnswer {
        digest: manifest.digest,
        media_type: Arc::clone(&manifest.media_type),
        bytes,
        offset,
        staleness: None,
    }
}

fn of(put: &ManifestPut) -> Manifest {
    let ManifestPut { digest, size, .. } = *put;
    Manifest { digest, media_type: put.media_type.as_str().into(), size, bytes: put.bytes.clone() }
}

/// Whether `bytes` are the content of `digest`.
pub(super) fn is_content(digest: &Digest, bytes: &[u8]) -> bool {
    Digest::of(digest.algorithm(), bytes) == *digest
}
