//! Blobs, by digest, within the repositories that link them.

use std::time::Duration;

use outport_proto::{Digest, Offset, Reference};
use tokio::time::Instant;

use super::{
    BlobAnswer, BlobContent, PullError, Remote, Shared, Want,
    rules::{Ask, Concerns, Found, Tried, note_cut, unavailable},
};
use crate::{
    auth::Action,
    blocking,
    fetch::{FillError, UpstreamError},
    registry::{
        decide::{Decision, Kind},
        metrics::PullResult,
        remembered::Asked,
    },
    store::Blob,
    telemetry::trace,
};

/// How long a push session may take from asking for a blob to naming it.
const TOLD_FOR: Duration = Duration::from_secs(3600);

type Pulled = Result<(BlobAnswer, PullResult), PullError>;

impl Shared {
    pub(super) async fn blob(&self, ask: &Ask<'_>, digest: &Digest) -> Pulled {
        ask.scope()?;
        let kind = match ask.options.want {
            Want::Content => Kind::Digest,
            Want::Headers => Kind::Existence,
        };
        if self.remote.is_none() && ask.caller.access.allows(ask.repo, Action::Push) {
            self.tell(digest).await;
        }
        let mut tried = Tried::default();
        loop {
            let view = self.view(ask.repo, Concerns::Reference(&Reference::Digest(*digest)));
            let link = {
                let _part = trace::span("index");
                self.looked_up(self.site.index.link(ask.repo, digest))?
            };
            // Without a link the store is not even looked at: what it holds for others must not show.
            let blob = match (link, kind) {
                (Some(size), Kind::Digest) => self.stored(digest, size).await,
                _ => None,
            };
            let found = Found {
                known: link.is_some(),
                local: blob.is_some() || kind == Kind::Existence,
                remembered_no: link.is_none() && self.remembers(ask.repo, &Asked::Blob(*digest)),
            };
            let ruling = self.rule(ask, kind, &view, found, &tried);
            match (ruling.decision, link) {
                (Decision::Serve, Some(size)) => {
                    let staleness = ruling.staleness();
                    let answer = BlobAnswer { staleness, ..here(digest, size, blob, view.applied) };
                    return Ok((answer, ruling.result()));
                }
                (Decision::WaitThenServe { until }, _) => Box::pin(self.wait(until, &mut tried)).await,
                (Decision::Fill, Some(link)) => {
                    match Box::pin(self.filling(ask, digest, link, view.applied)).await {
                        Ok(pulled) => return pulled.ok_or(PullError::BlobUnknown),
                        Err(error) => note_cut(ask, &mut tried, &error),
                    }
                }
                (Decision::Revalidate | Decision::Fill, _) => {
                    match Box::pin(self.said_of_blob(self.remote()?, ask, digest, view.applied)).await {
                        Ok(pulled) => return pulled.ok_or(PullError::BlobUnknown),
                        Err(error) => note_cut(ask, &mut tried, &error),
                    }
                }
                (Decision::Denied, _) => return Err(PullError::Denied),
                (Decision::NotFound, _) => return Err(PullError::BlobUnknown),
                (Decision::Unavailable | Decision::Serve, _) => return Err(unavailable(&tried)),
            }
        }
    }

    /// A push session asks whether it has to send the blob, and relies on the answer until it puts its manifest.
    async fn tell(&self, digest: &Digest) {
        let (store, digest) = (self.site.store.clone(), *digest);
        let told = blocking::spawn(move || store.lease_until(&digest, Instant::now() + TOLD_FOR)).await;
        if let Err(error) = told {
            tracing::error!(%error, "noting who was told of a blob crashed");
        }
    }

    /// The blob, once the primary said that the repository links it; `None` when it does not.
    async fn said_of_blob(
        &self,
        remote: &Remote,
        ask: &Ask<'_>,
        digest: &Digest,
        seen: Offset,
    ) -> Result<Option<(BlobAnswer, PullResult)>, FillError> {
        let said = remote.word.link(ask.repo, digest, seen).await?;
        let Some(size) = said.value else {
            remote.remembered.keep(ask.repo, Asked::Blob(*digest), said.at, || self.site.index.applied());
            return Ok(None);
        };
        if ask.options.want == Want::Headers {
            return Ok(Some((here(digest, size, None, said.at), PullResult::Revalidated)));
        }
        match self.stored(digest, size).await {
            Some(blob) => Ok(Some((here(digest, size, Some(blob), said.at), PullResult::Revalidated))),
            None => self.filling(ask, digest, size, said.at).await,
        }
    }

    /// The blob on its way here; `None` when the primary says that the repository does not link it.
    async fn filling(
        &self,
        ask: &Ask<'_>,
        digest: &Digest,
        link: u64,
        offset: Offset,
    ) -> Result<Option<(BlobAnswer, PullResult)>, FillError> {
        match self.fill(ask.repo, digest, link).await {
            Ok((filling, size, result)) => {
                let content = Some(BlobContent::Filling(filling));
                let answer = BlobAnswer { digest: *digest, size, offset, staleness: None, content };
                Ok(Some((answer, result)))
            }
            Err(FillError::NotLinked) => {
                // That does not say where in the log it holds.
                let said = self.upstream()?.word.link(ask.repo, digest, offset).await?;
                match said.value {
                    None => Ok(None),
                    Some(_) => {
                        let reason = "it gives no bytes of a blob that it says is linked";
                        Err(UpstreamError::Protocol(reason.to_owned()).into())
                    }
                }
            }
            Err(error) => Err(error),
        }
    }
}

fn here(digest: &Digest, size: u64, blob: Option<Blob>, offset: Offset) -> BlobAnswer {
    let size = blob.as_ref().map_or(size, |blob| blob.size);
    let content = blob.map(BlobContent::Local);
    BlobAnswer { digest: *digest, size, offset, staleness: None, content }
}
