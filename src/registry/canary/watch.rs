//! A site's part.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::BytesMut;
use outport_proto::{
    Digest, Offset, Reference, Timestamp,
    frame::Canary,
    oci::{Descriptor, parse_manifest},
};

use super::{caller, image, repo, tag};
use crate::{
    clock::SharedClock,
    index::{Index, TagEntry},
    registry::{BlobContent, PullError, PullOptions, PullService, SessionView},
    shutdown::Shutdown,
};

/// When a pull that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// A canary's blobs are a few bytes.
const BLOB_BYTES_MAX: u64 = 4096;

/// Pulls the canary. Cloning gives another handle to the same watcher.
#[derive(Clone)]
pub struct Watcher {
    pull: PullService,
    index: Index,
    session: SessionView,
    clock: SharedClock,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    seen: Option<Seen>,
    error: Option<String>,
}

/// The newest one that was pulled.
#[derive(Clone, Copy)]
struct Seen {
    offset: Offset,
    /// By the primary's clock.
    pushed: Timestamp,
    interval: Duration,
    took: Option<Duration>,
}

impl Watcher {
    /// Watches what `index` shows, and pulls through `pull`: one of its own, as these are nobody's pulls to
    /// be counted.
    pub fn new(pull: PullService, index: Index, session: SessionView, clock: SharedClock) -> Self {
        Self { pull, index, session, clock, state: Arc::default() }
    }

    /// What is known of the canary; `None` without one.
    pub fn reading(&self) -> Option<Canary> {
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let state = self.state();
        let error = state.error.clone();
        let Some(Seen { pushed, interval, took, .. }) = state.seen else {
            return error.map(|error| Canary { interval_micros: 0, lag_micros: None, error: Some(error) });
        };
        let overdue = self.primary_now().and_then(|now| now.since(pushed).checked_sub(interval));
        let lag_micros = took.max(overdue).map(micros);
        Some(Canary { interval_micros: micros(interval), lag_micros, error })
    }

    /// Watches until shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        let mut applied = self.index.watch();
        // How long that took that is here already nobody saw.
        let mut saw_it_come = false;
        loop {
            applied.borrow_and_update();
            let failed = self.look(saw_it_come).await.err();
            saw_it_come = true;
            let is_failing = failed.is_some();
            self.state().error = failed;
            let retry = async {
                if is_failing {
                    tokio::time::sleep(RETRY).await;
                } else {
                    std::future::pending().await
                }
            };
            tokio::select! {
                biased;
                () = shutdown.requested() => return,
                changed = applied.changed() => if changed.is_err() { return },
                () = retry => {}
            }
        }
    }

    async fn look(&self, saw_it_come: bool) -> Result<(), String> {
        let entry = self.index.tag(repo(), tag()).map_err(|error| error.to_string())?;
        let Some(TagEntry { offset, time, .. }) = entry else {
            self.state().seen = None;
            return Ok(());
        };
        if self.state().seen.is_some_and(|seen| seen.offset == offset) {
            return Ok(());
        }
        let interval = self.pulled().await?;
        let took = self.primary_now().filter(|_| saw_it_come).map(|now| now.since(time));
        self.state().seen = Some(Seen { offset, pushed: time, interval, took });
        Ok(())
    }

    /// Pulls it whole; returns how often one is pushed.
    async fn pulled(&self) -> Result<Duration, String> {
        let text = |error: PullError| error.to_string();
        let reference = Reference::Tag(tag().clone());
        let options = PullOptions::default();
        let manifest = self.pull.manifest(&caller(), repo(), &reference, options).await.map_err(text)?;
        let info =
            parse_manifest(&manifest.media_type, &manifest.bytes).map_err(|error| error.to_string())?;
        for Descriptor { digest, size, .. } in info.children {
            self.pull_blob(&digest, size).await?;
        }
        image::interval(&manifest.bytes).ok_or_else(|| "it does not say how often one is pushed".to_owned())
    }

    async fn pull_blob(&self, digest: &Digest, size: u64) -> Result<(), String> {
        let text = |error: PullError| error.to_string();
        let blob = self.pull.blob(&caller(), repo(), digest, PullOptions::default()).await.map_err(text)?;
        if blob.size != size || size > BLOB_BYTES_MAX {
            return Err(format!("{digest} has {} bytes", blob.size));
        }
        let mut bytes = BytesMut::new();
        match blob.content {
            None => return Err(format!("{digest} came without its content")),
            Some(BlobContent::Local(blob)) => {
                let mut reader = blob.reader(0..size);
                while let Some(chunk) = reader.chunk().await.map_err(|error| error.to_string())? {
                    bytes.extend_from_slice(&chunk);
                }
            }
            Some(BlobContent::Filling(filling)) => {
                let mut reader = filling.reader(0..size);
                while let Some(chunk) = reader.chunk().await.map_err(text)? {
                    bytes.extend_from_slice(&chunk);
                }
            }
        }
        if Digest::of(digest.algorithm(), &bytes) == *digest {
            Ok(())
        } else {
            Err(format!("{digest} came with other content"))
        }
    }

    fn primary_now(&self) -> Option<Timestamp> {
        self.session.now().primary_now_expected(&*self.clock)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What it holds is whole whenever the lock is free.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
