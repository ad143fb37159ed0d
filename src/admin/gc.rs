//! `/v1/gc`: how garbage collection goes (GET), and another pass (POST).

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::{Admin, error, json};

impl Admin {
    /// `GET /v1/gc`: what the last pass found and did, or does.
    pub(super) fn collection(&self) -> Response<Full<Bytes>> {
        json(StatusCode::OK, &self.collector.report())
    }

    /// `POST /v1/gc[?dry_run=true]`: 202 when a pass began, 409 with the one that is under way.
    pub(super) fn collect(&self, query: &str) -> Response<Full<Bytes>> {
        let mut dry_run = false;
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match (&*key, value.parse()) {
                ("dry_run", Ok(value)) => dry_run = value,
                ("dry_run", Err(_)) => {
                    return error(StatusCode::BAD_REQUEST, "dry_run: expected true or false");
                }
                _ => return error(StatusCode::BAD_REQUEST, &format!("no such parameter: {key}")),
            }
        }
        match self.collector.start(dry_run, &self.shutdown) {
            Some(begun) => json(StatusCode::ACCEPTED, &begun),
            None => json(StatusCode::CONFLICT, &self.collector.report()),
        }
    }
}
