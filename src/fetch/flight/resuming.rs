//! A blob's bytes from upstream, in order, over as many connections as it takes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use outport_proto::{Digest, RepoName};
use tokio_util::sync::CancellationToken;

use super::{FillError, Node, progress::Shared};
use crate::{
    fetch::{Body, UpstreamError},
    random,
    store::ByteSource,
};

/// An upstream has this long to say that there is nothing behind the last announced byte.
const END_WAIT_MAX: Duration = Duration::from_secs(1);

/// The bytes of one blob from some byte on.
pub(super) struct Resuming {
    node: Arc<Node>,
    digest: Digest,
    claim: Claim,
    /// Size in bytes of the whole blob, once known.
    size: Option<u64>,
    /// The next byte to ask for.
    at: u64,
    body: Option<Box<dyn Body>>,
    /// Attempts in a row that brought no byte.
    vain_attempts: u32,
}

/// In whose name bytes are asked for.
pub(super) enum Claim {
    /// Any repository with a reader on board.
    Flight(Arc<Shared>),
    /// One reader's.
    Repo(RepoName),
}

impl Resuming {
    /// The bytes of `digest` from `at` on; `size` is checked where known.
    pub(super) fn new(node: &Arc<Node>, digest: Digest, claim: Claim, size: Option<u64>, at: u64) -> Self {
        Self { node: Arc::clone(node), digest, claim, size, at, body: None, vain_attempts: 0 }
    }

    /// The blob's size in bytes, from the upstream.
    pub(super) async fn size(&mut self) -> Result<u64, FillError> {
        let stopping = self.stopping();
        tokio::select! {
            biased;
            () = stopping.cancelled() => Err(FillError::Stopping),
            connected = self.connect() => connected,
        }
    }

    /// Ends the fill.
    pub(super) fn stopping(&self) -> CancellationToken {
        self.node.shutdown.token().clone()
    }

    async fn connect(&mut self) -> Result<u64, FillError> {
        while self.body.is_none() {
            let repo = self.claimant()?;
            let node = Arc::clone(&self.node);
            let fetch = node.upstream.fetch(&repo, &self.digest, self.at);
            match within(node.options.silence_max, fetch).await {
                Ok(Some(body)) => self.accept(body)?,
                Ok(None) => self.refused(&repo)?,
                Err(error) => self.broke(error).await?,
            }
        }
        self.size.ok_or(FillError::Lost)
    }

    fn accept(&mut self, body: Box<dyn Body>) -> Result<(), FillError> {
        let actual = body.size();
        match self.size {
            Some(expected) if expected != actual => return Err(FillError::WrongSize { expected, actual }),
            _ => self.size = Some(actual),
        }
        self.body = Some(body);
        Ok(())
    }

    fn claimant(&self) -> Result<RepoName, FillError> {
        match &self.claim {
            Claim::Flight(shared) => shared.claimant().ok_or(FillError::NotLinked),
            Claim::Repo(repo) => Ok(repo.clone()),
        }
    }

    fn refused(&self, repo: &RepoName) -> Result<(), FillError> {
        let Claim::Flight(shared) = &self.claim else {
            return Err(FillError::NotLinked);
        };
        // Under this lock nobody boards: whoever comes after finds the flight gone.
        let mut flying = self.node.flying();
        shared.refuse(repo);
        if shared.claimant().is_none() {
            flying.remove(&self.digest);
            return Err(FillError::NotLinked);
        }
        Ok(())
    }

    async fn broke(&mut self, error: UpstreamError) -> Result<(), FillError> {
        let options = &self.node.options;
        self.body = None;
        self.vain_attempts += 1;
        if self.vain_attempts >= options.attempts_max {
            return Err(error.into());
        }
        tracing::info!(digest = %self.digest, at = self.at, %error, "upstream broke, resuming");
        self.node.metrics.resumed.inc();
        let pause = options.backoff_min.saturating_mul(1 << (self.vain_attempts - 1).min(16));
        tokio::time::sleep(jittered(pause.min(options.backoff_max))).await;
        Ok(())
    }

    async fn advance(&mut self) -> Result<Option<Bytes>, FillError> {
        loop {
            let size = self.connect().await?;
            let Some(body) = &mut self.body else {
                continue;
            };
            if self.at == size {
                // The digest decides about what came; a connection that breaks here costs nothing.
                let more = within(END_WAIT_MAX, body.chunk()).await;
                let is_more = matches!(&more, Ok(Some(bytes)) if !bytes.is_empty());
                return if is_more { Err(FillError::TooLong { size }) } else { Ok(None) };
            }
            match within(self.node.options.silence_max, body.chunk()).await {
                Ok(Some(bytes)) if bytes.is_empty() => {}
                Ok(Some(bytes)) => {
                    let count = bytes.len() as u64;
                    if count > size - self.at {
                        return Err(FillError::TooLong { size });
                    }
                    self.at += count;
                    self.vain_attempts = 0;
                    self.node.metrics.upstream_bytes.inc_by(count);
                    return Ok(Some(bytes));
                }
                Ok(None) => return Err(FillError::TooShort { received: self.at, size }),
                Err(error) => self.broke(error).await?,
            }
        }
    }
}

impl ByteSource for Resuming {
    type Error = FillError;

    async fn next(&mut self) -> Result<Option<Bytes>, FillError> {
        let stopping = self.stopping();
        tokio::select! {
            biased;
            () = stopping.cancelled() => Err(FillError::Stopping),
            bytes = self.advance() => bytes,
        }
    }
}

/// `answer`, or a timeout.
async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, UpstreamError>>,
) -> Result<T, UpstreamError> {
    tokio::time::timeout(limit, answer).await.unwrap_or(Err(UpstreamError::Timeout(limit)))
}

/// Between half of `pause` and all of it, so that many who broke together do not return together.
fn jittered(pause: Duration) -> Duration {
    let share = (random::number() >> 11) as f64 / (1_u64 << 53) as f64;
    pause.mul_f64(0.5 + share / 2.0)
}
