//! `/v1/verify`: what was verified (GET), and another pass (POST).

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::Full;

use super::{Admin, error, json};

impl Admin {
    /// `GET /v1/verify`: what the last pass found, or how far this one is.
    pub(super) fn verified(&self) -> Response<Full<Bytes>> {
        json(StatusCode::OK, &self.verification.report())
    }

    /// `POST /v1/verify`: 202 when a pass began, 409 with the one that is under way.
    pub(super) fn verify(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        // Browsers say where a page is from that sends something elsewhere; nobody else does.
        if headers.contains_key(header::ORIGIN) {
            return error(StatusCode::FORBIDDEN, "not for web pages");
        }
        match self.verification.start() {
            Some(begun) => json(StatusCode::ACCEPTED, &begun),
            None => json(StatusCode::CONFLICT, &self.verification.report()),
        }
    }
}
