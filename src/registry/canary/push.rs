//! The primary's part.

use std::time::Duration;

use outport_proto::{Digest, Reference, oci::media_type};

use super::{
    caller,
    image::{IMAGES, Image, image},
    repo, tag,
};
use crate::{
    index::{Index, TagEntry},
    registry::{NewManifest, PushError, PushService},
    shutdown::Shutdown,
};

/// Pushes the canary.
pub struct Pusher {
    push: PushService,
    index: Index,
    interval: Option<Duration>,
}

impl Pusher {
    /// Pushes through `push`, which writes to what `index` shows. Without an interval there is no canary, and
    /// one from before goes.
    pub const fn new(push: PushService, index: Index, interval: Option<Duration>) -> Self {
        Self { push, index, interval }
    }

    /// Pushes until shutdown, the first time at once.
    pub async fn run(self, shutdown: Shutdown) {
        let Some(interval) = self.interval else {
            if let Err(error) = self.remove().await {
                tracing::warn!(%error, "the canary is off and its tag cannot be removed");
            }
            return;
        };
        let mut times = tokio::time::interval(interval);
        times.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.requested() => return,
                _ = times.tick() => {}
            }
            if let Err(error) = self.push_next(interval).await
                && !shutdown.is_requested()
            {
                tracing::warn!(%error, "the canary cannot be pushed");
            }
        }
    }

    async fn push_next(&self, interval: Duration) -> Result<(), PushError> {
        let images: Vec<Image> = (0..IMAGES).map(|number| image(number, interval)).collect();
        let shown = self.shown()?.map(|entry| entry.digest);
        let last = images.iter().position(|image| Some(Digest::sha256(&image.manifest)) == shown);
        let next = last.map_or(0, |last| (last + 1) % IMAGES);
        let Some(Image { blobs, manifest }) = images.into_iter().nth(next) else { return Ok(()) };
        let caller = caller();
        for blob in blobs {
            // Where the store is a cache it may have gone.
            if !self.push.holds_blob(repo(), &Digest::sha256(&blob)).await? {
                self.push.put_blob(&caller, repo(), blob).await?;
            }
        }
        let manifest = NewManifest {
            reference: Reference::Tag(tag().clone()),
            tags: Vec::new(),
            content_type: media_type::OCI_MANIFEST.to_owned(),
            bytes: manifest,
        };
        self.push.put_manifest(&caller, repo(), manifest).await.map(drop)
    }

    async fn remove(&self) -> Result<(), PushError> {
        if self.shown()?.is_none() {
            return Ok(());
        }
        self.push.delete_manifest(&caller(), repo(), &Reference::Tag(tag().clone())).await.map(drop)
    }

    fn shown(&self) -> Result<Option<TagEntry>, PushError> {
        Ok(self.index.tag(repo(), tag())?)
    }
}
