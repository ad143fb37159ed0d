//! The bytes of a blob as they come from the registry.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;

use super::BackendError;
use crate::fetch::{Body, BoxFuture, UpstreamError};

/// A blob on its way from the registry; dropping it ends that.
pub(super) struct RegistryBody {
    pub(super) size: u64,
    /// Bytes before those that were asked for.
    pub(super) skip: u64,
    pub(super) body: Option<Incoming>,
    pub(super) stall: Duration,
    pub(super) _turn: OwnedSemaphorePermit,
}

impl Body for RegistryBody {
    fn size(&self) -> u64 {
        self.size
    }

    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, UpstreamError>> {
        Box::pin(async {
            while let Some(body) = &mut self.body {
                let frame = tokio::time::timeout(self.stall, body.frame()).await;
                match frame.map_err(|_| BackendError::Timeout(self.stall))? {
                    None => self.body = None,
                    Some(Err(error)) => return Err(BackendError::Unreachable(error.to_string()).into()),
                    Some(Ok(frame)) => {
                        let Ok(mut bytes) = frame.into_data() else { continue };
                        let skipped = self.skip.min(bytes.len() as u64);
                        self.skip -= skipped;
                        drop(bytes.split_to(skipped as usize));
                        if !bytes.is_empty() {
                            return Ok(Some(bytes));
                        }
                    }
                }
            }
            Ok(None)
        })
    }
}
