//! Getting what is not here: the upstream a site reads from, and the flights that many readers share.

pub mod backend;
pub mod bulk;
pub mod client;
pub mod document;
mod flight;
pub mod framed;
pub mod primary;
pub mod quic;
pub mod race;
#[cfg(test)]
pub(crate) mod testing;
pub mod tunnel;

use std::{future::Future, pin::Pin};

use bytes::Bytes;
use outport_proto::{Digest, ManifestPut, Offset, Reference, RepoName};

pub use flight::{
    FillError, Flight, FlightMetrics, FlightOptions, FlightReader, Flights, HOLD_BACK_BYTES, Linked, Pace,
};

/// A boxed future, as trait objects need them.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The site a secondary reads from when it does not know or have something itself.
pub trait Upstream: Send + Sync + 'static {
    /// What `reference` names now; `None` when the primary's log says there is no such thing.
    fn resolve<'a>(
        &'a self,
        repo: &'a RepoName,
        reference: &'a Reference,
    ) -> BoxFuture<'a, Result<At<Option<ManifestPut>>, UpstreamError>>;

    /// Size in bytes of blob `digest` if `repo` links it.
    fn link<'a>(
        &'a self,
        repo: &'a RepoName,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<At<Option<u64>>, UpstreamError>>;

    /// Manifests of `repo` that refer to `subject`, without their bytes.
    fn referrers<'a>(
        &'a self,
        repo: &'a RepoName,
        subject: &'a Digest,
    ) -> BoxFuture<'a, Result<At<Vec<ManifestPut>>, UpstreamError>>;

    /// The bytes of `digest` from `offset` on; `None` when `repo` does not link it.
    fn fetch<'a>(
        &'a self,
        repo: &'a RepoName,
        digest: &'a Digest,
        offset: u64,
    ) -> BoxFuture<'a, Result<Option<Box<dyn Body>>, UpstreamError>>;
}

/// An answer and the primary's applied offset it holds at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    /// The answer.
    pub value: T,
    /// Where in the log it holds.
    pub at: Offset,
}

/// Bytes on their way.
pub trait Body: Send {
    /// Size in bytes of the whole content, not of what is left.
    fn size(&self) -> u64;

    /// The next bytes, in order; `None` when the upstream says it is the end (the reader checks
    /// length and digest).
    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, UpstreamError>>;
}

/// Why the upstream gave no answer. Never a "no": that is `None`.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection, or it broke.
    #[error("upstream unreachable: {0}")]
    Unreachable(String),
    /// It did not answer in time.
    #[error("upstream did not answer within {0:?}")]
    Timeout(std::time::Duration),
    /// It answered that it cannot answer now.
    #[error("upstream unavailable: {0}")]
    Unavailable(String),
    /// It said something that is not the protocol.
    #[error("upstream broke the protocol: {0}")]
    Protocol(String),
}
