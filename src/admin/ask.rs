//! `/v1/wait` and `/v1/why`: from a query to a question, from an answer to a status code.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use outport_proto::Digest;

use super::{Admin, error, json};
use crate::registry::whereabouts::{AskError, Caller, ImageRef, Sites, Stage, WaitFor, WhyNot};

/// How long a wait lasts that does not say.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// How long a wait may last.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// Waits at once; more are refused.
pub const WAITS_MAX: usize = 64;

impl Admin {
    /// `GET /v1/wait?ref=..[&digest=..][&site=..|&all_sites][&complete][&timeout=SECONDS]`: 200 when
    /// reached, 504 with the same body when not.
    pub(super) async fn wait(&self, query: &str) -> Response<Full<Bytes>> {
        let question = match wait_for(query) {
            Ok(question) => question,
            Err(reason) => return error(StatusCode::BAD_REQUEST, &reason),
        };
        let Ok(_turn) = self.waits.try_acquire() else {
            let mut response = error(StatusCode::SERVICE_UNAVAILABLE, "too many are waiting here already");
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
            return response;
        };
        let waited = tokio::select! {
            waited = self.whereabouts.wait(question) => waited,
            () = self.shutdown.requested() => {
                return error(StatusCode::SERVICE_UNAVAILABLE, "this node is shutting down");
            }
        };
        match waited {
            Ok(waited) if waited.reached => json(StatusCode::OK, &waited),
            Ok(waited) => json(StatusCode::GATEWAY_TIMEOUT, &waited),
            Err(reason) => refused(&reason),
        }
    }

    /// `GET /v1/why?ref=..[&site=..][&user=..|&anonymous]`.
    pub(super) async fn why(&self, query: &str) -> Response<Full<Bytes>> {
        let question = match why_not(query) {
            Ok(question) => question,
            Err(reason) => return error(StatusCode::BAD_REQUEST, &reason),
        };
        match self.whereabouts.why(question).await {
            Ok(why) => json(StatusCode::OK, &why),
            Err(reason) => refused(&reason),
        }
    }
}

const NO_REF: &str = "ref is missing: repository:tag or repository@digest";

fn why_not(query: &str) -> Result<WhyNot, String> {
    let (mut image, mut site, mut caller) = (None, None, None);
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "ref" => image = Some(parse(&key, &value)?),
            "site" => site = Some(parse(&key, &value)?),
            "user" | "anonymous" if caller.is_some() => return Err("give one user, or anonymous".to_owned()),
            "user" => caller = Some(Caller::User(value.into_owned())),
            "anonymous" => caller = flag(&key, &value)?.then_some(Caller::Anonymous),
            _ => return Err(unknown(&key)),
        }
    }
    Ok(WhyNot { image: image.ok_or(NO_REF)?, site, caller })
}

fn wait_for(query: &str) -> Result<WaitFor, String> {
    let (mut image, mut digest): (Option<ImageRef>, Option<Digest>) = (None, None);
    let (mut sites, mut stage, mut timeout) = (Sites::default(), Stage::default(), TIMEOUT_DEFAULT);
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        let again = sites != Sites::Answered;
        match &*key {
            "ref" => image = Some(parse(&key, &value)?),
            "digest" => digest = Some(parse(&key, &value)?),
            "site" | "all_sites" if again => return Err("give one site, or all_sites".to_owned()),
            "site" => sites = Sites::Named(parse(&key, &value)?),
            "all_sites" => sites = if flag(&key, &value)? { Sites::All } else { sites },
            "complete" => stage = if flag(&key, &value)? { Stage::Complete } else { Stage::Visible },
            "timeout" => timeout = seconds(&value)?,
            _ => return Err(unknown(&key)),
        }
    }
    let image = image.ok_or(NO_REF)?;
    if let (outport_proto::Reference::Digest(named), Some(digest)) = (&image.reference, digest)
        && *named != digest
    {
        return Err("ref and digest name different digests".to_owned());
    }
    Ok(WaitFor { image, digest, sites, stage, timeout })
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(key: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|reason| format!("{key}: {reason}"))
}

pub(super) fn flag(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("{key}: true or false")),
    }
}

pub(super) fn seconds(value: &str) -> Result<Duration, String> {
    let seconds = value.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let within = seconds.filter(|timeout| *timeout <= TIMEOUT_MAX);
    within.ok_or_else(|| format!("timeout: seconds, at most {}", TIMEOUT_MAX.as_secs()))
}

fn unknown(key: &str) -> String {
    format!("{key:?} is not known here")
}

fn refused(reason: &AskError) -> Response<Full<Bytes>> {
    let status = match reason {
        AskError::UnknownSite(_) | AskError::UnknownRepository(_) => StatusCode::NOT_FOUND,
        AskError::OtherSite(_) | AskError::WhichSite | AskError::WhoseRights => StatusCode::BAD_REQUEST,
        AskError::Index(_) | AskError::Store(_) | AskError::Crashed(_) => {
            tracing::error!(error = %reason, "cannot say where an image is");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    error(status, &reason.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let question = wait_for("ref=team%2Fapp%3A1&site=mumbai&complete&timeout=0.5").unwrap();
        assert_eq!(question.image.to_string(), "team/app:1");
        assert_eq!((question.stage, question.timeout), (Stage::Complete, Duration::from_millis(500)));
        assert_eq!(question.sites, Sites::Named("mumbai".parse().unwrap()));
        let plain = wait_for("ref=app:1").unwrap();
        assert_eq!(
            (plain.sites, plain.timeout, plain.stage),
            (Sites::Answered, TIMEOUT_DEFAULT, Stage::Visible)
        );
        assert_eq!(wait_for("ref=app:1&all_sites=true").unwrap().sites, Sites::All);
        let why = why_not("ref=app:1&site=mumbai&user=bob").unwrap();
        assert_eq!(why.caller, Some(Caller::User("bob".to_owned())));
        assert_eq!(why_not("ref=app:1&anonymous").unwrap().caller, Some(Caller::Anonymous));
        assert!(why_not("ref=app:1&anonymous&user=bob").is_err() && why_not("user=bob").is_err());
        let (one, other) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        assert!(wait_for(&format!("ref=app@{one}&digest={one}")).is_ok());
        for bad in [
            "",
            "ref=app",
            "ref=app:1&timeout=601",
            "ref=app:1&timeout=-1",
            "ref=app:1&timeout=NaN",
            "ref=app:1&timeout=soon",
            "ref=app:1&site=Not+A+Site",
            "ref=app:1&site=a&all_sites",
            "ref=app:1&complete=perhaps",
            "ref=app:1&digest=sha256:1",
            "ref=app:1&when=now",
            &format!("ref=app@{one}&digest={other}"),
        ] {
            assert!(wait_for(bad).is_err(), "{bad}");
        }
    }
}
