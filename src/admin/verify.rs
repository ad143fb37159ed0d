//! `/v1/verify`: what was verified (GET), and another pass (POST).

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::{
    Admin,
    ask::{flag, seconds},
    error, json,
};
use crate::registry::verification::VerifyWanted;

impl Admin {
    /// `GET /v1/verify`: what the last pass found, or how far this one is.
    pub(super) fn verified(&self) -> Response<Full<Bytes>> {
        json(StatusCode::OK, &self.verification.report())
    }

    /// `POST /v1/verify[?blobs][&timeout=SECONDS]`: 202 when a pass began, 409 with the one that is under way.
    pub(super) fn verify(&self, query: &str) -> Response<Full<Bytes>> {
        let wanted = match wanted(query) {
            Ok(wanted) => wanted,
            Err(reason) => return error(StatusCode::BAD_REQUEST, &reason),
        };
        match self.verification.start(wanted) {
            Some(begun) => json(StatusCode::ACCEPTED, &begun),
            None => json(StatusCode::CONFLICT, &self.verification.report()),
        }
    }
}

fn wanted(query: &str) -> Result<VerifyWanted, String> {
    let mut wanted = VerifyWanted::default();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "blobs" => wanted.blobs = flag(&key, &value)?,
            "timeout" => wanted.compare_timeout = seconds(&value)?,
            _ => return Err(format!("no such parameter: {key}")),
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_wanted() {
        assert_eq!(wanted(""), Ok(VerifyWanted::default()));
        let all = VerifyWanted { blobs: true, compare_timeout: Duration::from_millis(1500) };
        assert_eq!(wanted("blobs&timeout=1.5"), Ok(all));
        for wrong in ["blobs=perhaps", "timeout=soon", "bolbs"] {
            assert!(wanted(wrong).is_err(), "{wrong}");
        }
    }
}
