//! Blobs out of the registry's own storage, so that their bytes do not pass its process.
//!
//! The layout is that of CNCF Distribution's `filesystem` driver, which GitLab, Harbor and others use:
//! `docker/registry/v2/blobs/<algorithm>/<first two hex digits>/<hex digits>/data`. A file there is whole:
//! the registry moves it in place. What it holds is hashed like anything that comes from outside.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path, sync::Arc};

use bytes::{Bytes, BytesMut};
use outport_proto::Digest;

use super::BackendError;
use crate::{
    blocking,
    fetch::{Body, BoxFuture, UpstreamError},
};

const PIECE_BYTES: usize = 256 * 1024;

/// The file of a blob, from an offset on; `None` when there is none.
///
/// # Errors
/// When the storage cannot be read.
pub(super) async fn open(
    root: &Path,
    digest: &Digest,
    offset: u64,
) -> Result<Option<StoredBody>, BackendError> {
    let text = digest.to_string();
    let (algorithm, hex) = text.split_once(':').unwrap_or_default();
    let path = root
        .join("docker/registry/v2/blobs")
        .join(algorithm)
        .join(hex.get(..2).unwrap_or_default())
        .join(hex)
        .join("data");
    let opened = blocking::spawn(move || match File::open(&path) {
        Ok(file) => file.metadata().map(|metadata| Some((file, metadata.len()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    });
    let opened = opened.await.map_err(io::Error::other).flatten();
    let opened = opened.map_err(|error| BackendError::Unreachable(format!("its storage: {error}")))?;
    Ok(opened.map(|(file, size)| StoredBody { file: Arc::new(file), size, at: offset }))
}

/// A blob that is read from the registry's storage.
pub(super) struct StoredBody {
    file: Arc<File>,
    size: u64,
    at: u64,
}

impl Body for StoredBody {
    fn size(&self) -> u64 {
        self.size
    }

    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, UpstreamError>> {
        Box::pin(async {
            let left = usize::try_from(self.size.saturating_sub(self.at)).unwrap_or(usize::MAX);
            if left == 0 {
                return Ok(None);
            }
            let (file, at) = (Arc::clone(&self.file), self.at);
            let read = blocking::spawn(move || {
                let mut piece = BytesMut::zeroed(left.min(PIECE_BYTES));
                file.read_exact_at(&mut piece, at).map(|()| piece.freeze())
            });
            let piece = read.await.map_err(io::Error::other).flatten();
            let piece = piece
                .map_err(|error| UpstreamError::Unreachable(format!("the registry's storage: {error}")))?;
            self.at += piece.len() as u64;
            Ok(Some(piece))
        })
    }
}
