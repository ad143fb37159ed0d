//! `/v1/prefetch`: copies what is named, and tells how it goes line by line.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::Either;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{Admin, Body, answer, error};
use crate::registry::prefetch::{Step, Wanted};

/// Requests of this kind at once; more are refused.
pub const PREFETCHES_MAX: usize = 4;
/// Names in one request.
const WANTED_MAX: usize = 1_000;

impl Admin {
    /// `POST /v1/prefetch?ref=..[&ref=..]`: 200 and a [`Step`] as JSON a line, the last one `done`.
    /// It ends when the client leaves.
    pub(super) fn prefetch(&self, query: &str) -> Response<Body> {
        self.prefetching(query).unwrap_or_else(|refused| refused.map(Either::Left))
    }

    #[expect(clippy::result_large_err, reason = "a response is returned either way")]
    fn prefetching(&self, query: &str) -> Result<Response<Body>, Response<http_body_util::Full<Bytes>>> {
        let Some(prefetches) = &self.prefetches else {
            return Err(error(StatusCode::BAD_REQUEST, "a primary has everything; ask a site"));
        };
        let wanted = wanted(query).map_err(|reason| error(StatusCode::BAD_REQUEST, &reason))?;
        let turn = self.prefetch_turns.clone().try_acquire_owned().map_err(|_| {
            let mut response = error(StatusCode::SERVICE_UNAVAILABLE, "too many are copying here already");
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
            response
        })?;
        let lines = Lines { steps: prefetches.prefetch(wanted), _turn: turn };
        Ok(answer(StatusCode::OK, "application/x-ndjson", String::new())
            .map(|_| Either::Right(Either::Left(lines))))
    }
}

fn wanted(query: &str) -> Result<Vec<Wanted>, String> {
    let mut wanted = Vec::new();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "ref" => wanted.push(value.parse().map_err(|reason| format!("ref {value:?}: {reason}"))?),
            _ => return Err(format!("{key:?} is not known here")),
        }
    }
    match wanted.len() {
        0 => Err("ref is missing: repository, repository:tag or repository@digest".to_owned()),
        1..=WANTED_MAX => Ok(wanted),
        _ => Err(format!("at most {WANTED_MAX} names in one request")),
    }
}

/// Steps as lines of JSON.
#[derive(Debug)]
pub struct Lines {
    steps: mpsc::Receiver<Step>,
    _turn: OwnedSemaphorePermit,
}

impl http_body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let line = ready!(self.steps.poll_recv(cx)).map(|step| {
            let mut line = serde_json::to_string(&step).unwrap_or_default();
            line.push('\n');
            Ok(Frame::data(Bytes::from(line)))
        });
        Poll::Ready(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let names = |query: &str| -> Result<Vec<String>, String> {
            Ok(wanted(query)?.iter().map(ToString::to_string).collect())
        };
        assert_eq!(names("ref=team%2Fapp&ref=a:1").unwrap(), ["team/app", "a:1"]);
        for bad in ["", "ref=", "ref=Team", "ref=a&site=mumbai", &"ref=a&".repeat(WANTED_MAX + 1)] {
            assert!(names(bad).is_err(), "{bad}");
        }
    }
}
