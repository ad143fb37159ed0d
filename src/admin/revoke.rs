//! `/v1/revoke`: what the registry said of callers is asked again from now on.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use outport_proto::Timestamp;

use super::{Admin, error, json};

/// Makes void, here and at all sites, what is remembered of callers; returns when that was.
pub type Revoke = Arc<dyn Fn() -> Timestamp + Send + Sync>;

impl Admin {
    /// `POST /v1/revoke`: 200 with the time; 409 where nothing is remembered, or the primary is to be
    /// asked.
    pub(super) fn revoked(&self) -> Response<Full<Bytes>> {
        match &self.revoke {
            Some(revoke) => {
                let seconds = revoke().as_micros() as f64 / 1e6;
                json(StatusCode::OK, &serde_json::json!({ "revoked_seconds": seconds }))
            }
            None => error(
                StatusCode::CONFLICT,
                "nothing can be revoked here: ask the primary, and it must have auth.mode = \"delegated\"",
            ),
        }
    }
}
