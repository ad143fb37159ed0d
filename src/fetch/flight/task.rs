//! The task that fills.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use outport_proto::{Digest, digest::Hasher};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    FillError, Linked, Node, Purpose,
    pace::Paced,
    progress::{Shared, Stage, Unkept},
    resuming::{Claim, Resuming},
};
use crate::{
    blocking,
    store::{Blob, Ingest, PumpError, Sink, StoreError, pump},
    telemetry::trace,
};

/// Starts the task of a flight that is on the list.
pub(super) fn start(node: &Arc<Node>, shared: &Arc<Shared>, linked: Linked, purpose: Purpose) {
    let flying = Flying { node: Arc::clone(node), shared: Arc::clone(shared) };
    node.metrics.started.inc();
    node.metrics.in_progress.inc();
    let span = trace::span("fill");
    node.shutdown.spawn(async move {
        span.set("outport.digest", flying.shared.digest.to_string());
        let filled = span.within(flying.fill(linked, purpose)).await;
        span.set("outport.bytes", i64::try_from(flying.shared.received()).unwrap_or(i64::MAX));
        let stage = filled.unwrap_or_else(|error| {
            span.failed(&error);
            flying.node.metrics.failed.inc();
            let (digest, bytes) = (flying.shared.digest, flying.shared.received());
            match error {
                FillError::NotLinked | FillError::Upstream(_) | FillError::Stopping => {
                    tracing::info!(%digest, bytes, %error, "fill failed");
                }
                _ => tracing::warn!(%digest, bytes, %error, "fill failed"),
            }
            Stage::Failed(error)
        });
        flying.land(stage);
    });
}

/// A flight on the list; takes itself off however its task ends.
struct Flying {
    node: Arc<Node>,
    shared: Arc<Shared>,
}

impl Flying {
    async fn fill(&self, linked: Linked, purpose: Purpose) -> Result<Stage, FillError> {
        let (node, shared) = (&self.node, &self.shared);
        let _turn = self.turn(purpose).await?;
        let digest = shared.digest;
        let store = node.store.clone();
        // Who boarded late may have missed the fill before this one.
        let stored = blocking(move || store.get_sound(&digest)).await?.unwrap_or_else(|error| {
            tracing::warn!(%digest, %error, "store failed; filling as if the blob were absent");
            None
        });
        if let Some(Blob { file, size, .. }) = stored {
            linked.check(size)?;
            shared.update(|progress| progress.size = Some(size));
            return Ok(Stage::Kept(file));
        }
        let began = Instant::now();
        let mut source = Resuming::new(node, digest, Claim::Flight(Arc::clone(shared)), linked.size, 0);
        let mut source = Paced::begin(&mut source, &node.pace, shared).await;
        let size = source.size().await?;
        let store = node.store.clone();
        let ingest = match blocking(move || store.ingest_of(digest.algorithm(), size)).await? {
            Ok(ingest) => ingest,
            Err(error) => {
                shared.update(|progress| progress.size = Some(size));
                return Ok(self.unkept(None, error));
            }
        };
        shared.update(|progress| {
            progress.size = Some(size);
            progress.stage = Stage::Filling(ingest.file());
        });
        let sink = Filling { ingest, shared: Arc::clone(shared) };
        let pumped = pump(sink, &mut source, node.options.pump).await;
        let ingest = pumped.sink.ok_or(FillError::Lost)?.ingest;
        match pumped.end {
            Ok(()) => {
                let stage = self.keep(ingest).await?;
                let kept = matches!(stage, Stage::Kept(_));
                tracing::info!(%digest, bytes = size, kept, ms = began.elapsed().as_millis() as u64, "fill finished");
                Ok(stage)
            }
            Err(PumpError::Source(error)) => Err(error),
            Err(PumpError::Store(error)) => Ok(self.unkept(Some(&ingest), error)),
        }
    }

    async fn turn(&self, purpose: Purpose) -> Result<OwnedSemaphorePermit, FillError> {
        let client_turns = Arc::clone(&self.node.client_turns);
        let background = async {
            match purpose {
                Purpose::Client | Purpose::Passing => std::future::pending().await,
                Purpose::Background => Arc::clone(&self.node.background_turns).acquire_owned().await,
            }
        };
        let turn = tokio::select! {
            biased;
            () = self.node.shutdown.requested() => return Err(FillError::Stopping),
            turn = background => turn,
            turn = async { self.shared.hurried().await; client_turns.acquire_owned().await } => turn,
        };
        turn.map_err(|_| FillError::Stopping)
    }

    /// Releases the tail when the digest matches, then makes the blob durable.
    async fn keep(&self, ingest: Ingest) -> Result<Stage, FillError> {
        let file = ingest.file();
        let verified = ingest.verify(&self.shared.digest).map_err(|error| match error {
            StoreError::DigestMismatch { actual, .. } => FillError::WrongContent { actual },
            error => error.into(),
        })?;
        self.shared.update(|progress| progress.stage = Stage::Verified(Arc::clone(&file)));
        if self.passes() {
            return Ok(Stage::Passed(file));
        }
        match blocking(move || verified.publish()).await? {
            Ok(_) => Ok(Stage::Kept(file)),
            // After a failed fsync not even the file's content is to be believed.
            Err(error) => Ok(self.unkept(None, error)),
        }
    }

    fn unkept(&self, ingest: Option<&Ingest>, why: StoreError) -> Stage {
        self.node.metrics.unkept.inc();
        tracing::warn!(digest = %self.shared.digest, error = %why, "fill cannot be kept; streaming it through");
        let hasher = Hasher::new(self.shared.digest.algorithm());
        Stage::Unkept(Arc::new(Unkept {
            file: ingest.map(Ingest::file),
            received: ingest.map_or(0, Ingest::len),
            hasher: ingest.map_or(hasher, |ingest| ingest.hasher().clone()),
            why: Arc::new(why),
        }))
    }

    /// Takes the flight off the list unless somebody on board wants the blob in the store.
    fn passes(&self) -> bool {
        let mut flying = self.node.flying();
        let passes = !self.shared.is_to_be_kept();
        if passes {
            self.remove_from(&mut flying);
        }
        passes
    }

    /// Takes the flight off the list before its readers hear how it ended, so that whoever tries
    /// again then starts another.
    fn land(self, stage: Stage) {
        self.unlist();
        self.shared.update(|progress| progress.stage = stage);
    }

    fn unlist(&self) {
        self.remove_from(&mut self.node.flying());
    }

    fn remove_from(&self, flying: &mut HashMap<Digest, Arc<Shared>>) {
        if flying.get(&self.shared.digest).is_some_and(|listed| Arc::ptr_eq(listed, &self.shared)) {
            flying.remove(&self.shared.digest);
        }
    }
}

impl Drop for Flying {
    fn drop(&mut self) {
        self.unlist();
        self.node.metrics.in_progress.dec();
        self.shared.update(|progress| {
            if matches!(progress.stage, Stage::Waiting | Stage::Filling(_) | Stage::Verified(_)) {
                progress.stage = Stage::Failed(FillError::Lost);
            }
        });
    }
}

/// Tells the readers of what is in the file.
struct Filling {
    ingest: Ingest,
    shared: Arc<Shared>,
}

impl Sink for Filling {
    fn write(&mut self, batch: &[Bytes]) -> Result<(), StoreError> {
        Sink::write(&mut self.ingest, batch)?;
        self.shared.update(|progress| progress.received = self.ingest.len());
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, FillError> {
    blocking::spawn(work).await.map_err(|_| FillError::Lost)
}
