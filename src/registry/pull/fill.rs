//! Bytes: those that are here, and those on their way here.

use std::{fmt, ops::Range, os::unix::fs::FileExt as _};

use bytes::{Bytes, BytesMut};
use outport_proto::{Digest, RepoName, oci::MANIFEST_BYTES_MAX};

use super::{PullError, Remote, Shared, manifest::is_content, rules::unavailable_because};
use crate::{
    blocking,
    fetch::{FillError, Flight, FlightReader, Linked, UpstreamError},
    registry::metrics::PullResult,
    store::{Blob, StoreError},
};

/// A blob on its way here. It arrives whether or not anybody reads it.
pub struct Filling {
    flight: Flight,
}

impl Filling {
    /// Reads the bytes of `range` as they arrive; it must lie within the blob.
    pub fn reader(&self, range: Range<u64>) -> FillReader {
        FillReader { reader: self.flight.reader(range) }
    }
}

/// A cursor on a blob that is on its way.
pub struct FillReader {
    reader: FlightReader,
}

impl FillReader {
    /// The next bytes, in order; `None` after the last byte of the range.
    ///
    /// # Errors
    /// When the blob cannot be had whole: the response must be cut off, never ended properly.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, PullError> {
        self.reader.chunk().await.map_err(|error| {
            tracing::info!(%error, "fill broke off");
            unavailable_because("the fill broke off")
        })
    }
}

impl fmt::Debug for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filling").finish_non_exhaustive()
    }
}

impl fmt::Debug for FillReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FillReader").finish_non_exhaustive()
    }
}

impl Shared {
    /// The blob of `size` bytes, if it is here. A store that fails is as one that does not have
    /// it, and a copy of another size has rotted: it is set aside, so that it can be filled anew.
    pub(super) async fn stored(&self, digest: &Digest, size: u64) -> Option<Blob> {
        if let Some(blob) = self.site.store.get_hot(digest).filter(|blob| blob.size == size) {
            return Some(blob);
        }
        let (store, wanted) = (self.site.store.clone(), *digest);
        let got = blocking::spawn(move || match store.get(&wanted)? {
            Some(blob) if blob.size != size => {
                tracing::error!(digest = %wanted, actual = blob.size, size, "blob has rotted; set aside");
                store.quarantine(&wanted)?;
                Ok(None)
            }
            blob => Ok::<_, StoreError>(blob),
        })
        .await;
        match got {
            Ok(Ok(blob)) => blob,
            Ok(Err(error)) => {
                tracing::warn!(%digest, %error, "store failed");
                None
            }
            Err(error) => {
                tracing::error!(%digest, %error, "store failed");
                None
            }
        }
    }

    /// All bytes of a manifest that is kept as a blob, if they are here and right.
    pub(super) async fn stored_bytes(&self, digest: &Digest, size: u64) -> Option<Bytes> {
        let length = usize::try_from(size).ok().filter(|length| *length <= MANIFEST_BYTES_MAX)?;
        let (store, wanted) = (self.site.store.clone(), *digest);
        let read = blocking::spawn(move || {
            let Some(blob) = store.get(&wanted)?.filter(|blob| blob.size == size) else {
                return Ok(None);
            };
            let mut bytes = vec![0; length];
            let read = blob.file.read_exact_at(&mut bytes, 0);
            read.map_err(|source| StoreError::Io { action: "read a manifest", source })?;
            Ok::<_, StoreError>(is_content(&wanted, &bytes).then(|| Bytes::from(bytes)))
        });
        match read.await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => {
                tracing::warn!(%digest, %error, "store failed");
                None
            }
            Err(error) => {
                tracing::error!(%digest, %error, "store failed");
                None
            }
        }
    }

    /// The blob on its way here and its size in bytes, for a repository that links it with `size`.
    pub(super) async fn fill(
        &self,
        repo: &RepoName,
        digest: &Digest,
        size: u64,
    ) -> Result<(Filling, u64, PullResult), FillError> {
        let remote = self.upstream()?;
        let linked = Linked { size: Some(size) };
        let flight = if remote.exclusion.excludes(repo, digest).await {
            remote.flights.pass(repo, digest, linked)
        } else {
            remote.flights.join(repo, digest, linked)
        };
        filling(flight).await
    }

    pub(super) fn upstream(&self) -> Result<&Remote, FillError> {
        let upstream = self.remote.as_ref();
        upstream.ok_or_else(|| UpstreamError::Unavailable("a primary has no upstream".to_owned()).into())
    }

    /// All bytes of a manifest of `size` that is kept as a blob, once they are here. It is metadata:
    /// whatever the policy says, it is kept.
    pub(super) async fn fill_whole(
        &self,
        repo: &RepoName,
        digest: &Digest,
        size: u64,
    ) -> Result<(Bytes, PullResult), FillError> {
        if size > MANIFEST_BYTES_MAX as u64 {
            return Err(UpstreamError::Protocol(format!("manifest {digest} of {size} bytes")).into());
        }
        let flight = self.upstream()?.flights.join(repo, digest, Linked { size: Some(size) });
        let (filling, size, result) = filling(flight).await?;
        let mut reader = filling.flight.reader(0..size);
        let mut bytes = BytesMut::new();
        while let Some(chunk) = reader.chunk().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok((bytes.freeze(), result))
    }
}

/// What a flight brings, and its size in bytes, once that is known.
async fn filling(flight: Flight) -> Result<(Filling, u64, PullResult), FillError> {
    let result = if flight.is_joined() { PullResult::Joined } else { PullResult::Filled };
    let size = flight.size().await?;
    Ok((Filling { flight }, size, result))
}
