//! The one place that turns what went wrong into a status, an OCI error body and headers.
//!
//! Sources: OCI distribution specification v1.1, "Error codes"; CNCF Distribution, "Errors" for
//! the codes the specification leaves out; RFC 6750 and "Token authentication" for 401.

use std::{borrow::Cow, time::Duration};

use http::{HeaderValue, Response, StatusCode, header};
use outport_proto::{frame::RegistryChallenge, oci::media_type, route::RouteError};
use serde_json::json;

use super::{action::ActionError, body::Body};
use crate::{
    auth::{BasicChallenge, Challenge, ChallengeError, CheckError, Scope, TokenError, TokenServiceError},
    registry::{PullError, PushError},
};

/// How soon to ask again when nobody knows better, in seconds.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Why a request is not answered with what it asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// The request line asks for nothing that there is.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// A header cannot be read.
    #[error("the {0} header is not valid")]
    Header(&'static str),
    /// A token is needed that grants these scopes.
    #[error("authentication required")]
    Unauthorized {
        /// What the token must grant.
        scopes: Vec<Scope>,
        /// What is wrong with the one that was sent; `None` when none was.
        error: Option<ChallengeError>,
    },
    /// It is not allowed, and no token of this caller could change that.
    #[error("{0}")]
    Denied(&'static str),
    /// Nothing of the ranges asked for lies within the blob.
    #[error("the range lies outside the blob of {size} bytes")]
    RangeNotSatisfiable {
        /// The blob's size in bytes.
        size: u64,
    },
    /// A chunk does not start where the upload ends.
    #[error("the chunk does not start at byte {length}, where the upload ends")]
    ChunkOutOfOrder {
        /// Bytes taken in so far.
        length: u64,
        /// The upload.
        location: HeaderValue,
    },
    /// A body of more bytes than that.
    #[error("the body is larger than {0} bytes")]
    BodyTooLarge(usize),
    /// The client stopped sending its body.
    #[error("the request body broke off")]
    BodyBroken,
    /// A pull was not answered.
    #[error(transparent)]
    Pull(PullError),
    /// A push was not done.
    #[error(transparent)]
    Push(PushError),
    /// A parameter of a token request's form is missing or not supported.
    #[error("the {0} parameter of the form is missing or not supported")]
    TokenForm(&'static str),
    /// No token is issued.
    #[error(transparent)]
    Token(TokenServiceError),
    /// The site cannot answer yet or for the moment.
    #[error("{0}")]
    Unavailable(Cow<'static, str>),
    /// Nothing refers to what is not there, as far as this caller may know: an answer to clients, and no
    /// error. Source: OCI distribution specification, "Listing referrers".
    #[error("nothing refers to what is not there")]
    NoReferrers,
    /// Too many wrong credentials were tried to ask about others.
    #[error("too many callers come with credentials that the registry has not let in")]
    TooManyWrong {
        /// When to come again.
        retry_after: Duration,
    },
    /// The site itself failed.
    #[error("the registry failed")]
    Internal,
}

/// How long a user with too many wrong passwords has to wait.
const PASSWORD_RETRY_AFTER: Duration = Duration::from_secs(60);

/// What a client is told.
struct Reply {
    status: StatusCode,
    code: &'static str,
    headers: Vec<(header::HeaderName, HeaderValue)>,
}

impl Reply {
    fn new(status: StatusCode, code: &'static str) -> Self {
        Self { status, code, headers: Vec::new() }
    }

    fn with(mut self, name: header::HeaderName, value: impl TryInto<HeaderValue>) -> Self {
        if let Ok(value) = value.try_into() {
            self.headers.push((name, value));
        }
        self
    }

    fn retry_after(self, after: Duration) -> Self {
        let seconds = after.as_secs_f64().ceil().max(1.0) as u64;
        self.with(header::RETRY_AFTER, HeaderValue::from(seconds))
    }
}

impl ApiError {
    /// The answer to the client; `demand` goes into a challenge.
    pub(super) fn into_response(self, demand: Option<&RegistryChallenge>) -> Response<Body> {
        let message = self.to_string();
        let reply = self.reply(demand);
        if let Self::NoReferrers = self {
            let none = json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [] });
            let mut response = Response::new(Body::full(none.to_string()));
            let media_type = HeaderValue::from_static(media_type::OCI_INDEX);
            response.headers_mut().insert(header::CONTENT_TYPE, media_type);
            return response;
        }
        let body = json!({ "errors": [{ "code": reply.code, "message": message, "detail": null }] });
        let mut response = Response::new(Body::full(body.to_string()));
        *response.status_mut() = reply.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.extend(reply.headers);
        response
    }

    fn reply(&self, demand: Option<&RegistryChallenge>) -> Reply {
        match self {
            Self::Action(error) => action_reply(*error),
            Self::Header(_) => Reply::new(StatusCode::BAD_REQUEST, "UNSUPPORTED"),
            Self::Unauthorized { scopes, error } => {
                let challenge = match demand {
                    Some(RegistryChallenge::Bearer { realm, service }) => {
                        Challenge { realm, service, scopes, error: *error }.to_string()
                    }
                    Some(RegistryChallenge::Basic { realm }) => BasicChallenge { realm }.to_string(),
                    None => String::new(),
                };
                Reply::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED").with(header::WWW_AUTHENTICATE, challenge)
            }
            Self::Denied(_) => Reply::new(StatusCode::FORBIDDEN, "DENIED"),
            Self::RangeNotSatisfiable { size } => {
                Reply::new(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID")
                    .with(header::CONTENT_RANGE, format!("bytes */{size}"))
            }
            Self::ChunkOutOfOrder { length, location } => {
                Reply::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID")
                    .with(header::RANGE, upload_range(*length))
                    .with(header::LOCATION, location.clone())
            }
            Self::BodyTooLarge(_) => Reply::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            Self::BodyBroken => Reply::new(StatusCode::BAD_REQUEST, "SIZE_INVALID"),
            Self::Pull(error) => pull_reply(error),
            Self::Push(error) => push_reply(error),
            Self::TokenForm(_) => Reply::new(StatusCode::BAD_REQUEST, "UNSUPPORTED"),
            Self::Token(error) => token_reply(error),
            Self::Unavailable(_) => {
                Reply::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE").retry_after(RETRY_AFTER)
            }
            Self::NoReferrers => Reply::new(StatusCode::OK, ""),
            Self::TooManyWrong { retry_after } => {
                Reply::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS").retry_after(*retry_after)
            }
            Self::Internal => Reply::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        }
    }
}

/// `Range` of an upload's answers: what was taken in, `0-0` when nothing was, for the
/// specification has no form for nothing.
pub(super) fn upload_range(length: u64) -> String {
    format!("0-{}", length.saturating_sub(1))
}

fn action_reply(error: ActionError) -> Reply {
    let bad = |code| Reply::new(StatusCode::BAD_REQUEST, code);
    match error {
        ActionError::Route(error) => match error {
            RouteError::NotFound => Reply::new(StatusCode::NOT_FOUND, "NOT_FOUND"),
            RouteError::InvalidName => bad("NAME_INVALID"),
            RouteError::InvalidTag => bad("TAG_INVALID"),
            RouteError::InvalidDigest(_) => bad("DIGEST_INVALID"),
            RouteError::InvalidUpload(_) => Reply::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
        },
        ActionError::Method { allow } => Reply::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED")
            .with(header::ALLOW, HeaderValue::from_static(allow)),
        ActionError::Missing(_) | ActionError::Digest(_) => bad("DIGEST_INVALID"),
        ActionError::From => bad("NAME_INVALID"),
        ActionError::Tag => bad("TAG_INVALID"),
        ActionError::PageNumber => bad("PAGINATION_NUMBER_INVALID"),
    }
}

fn pull_reply(error: &PullError) -> Reply {
    let unknown = |code| Reply::new(StatusCode::NOT_FOUND, code);
    match error {
        PullError::Denied => Reply::new(StatusCode::FORBIDDEN, "DENIED"),
        PullError::NameUnknown => unknown("NAME_UNKNOWN"),
        PullError::ManifestUnknown => unknown("MANIFEST_UNKNOWN"),
        PullError::BlobUnknown => unknown("BLOB_UNKNOWN"),
        PullError::Unavailable { retry_after, .. } => {
            Reply::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE").retry_after(*retry_after)
        }
        PullError::Internal => Reply::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
    }
}

fn token_reply(error: &TokenServiceError) -> Reply {
    let bad = |code| Reply::new(StatusCode::BAD_REQUEST, code);
    // A challenge of another kind than the registry's: the client is to ask for a password.
    let wrong = Reply::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED")
        .with(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"token\""));
    let too_many = || Reply::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS");
    match error {
        TokenServiceError::Password(CheckError::Wrong) | TokenServiceError::Refresh => wrong,
        TokenServiceError::Password(CheckError::TooMany) => too_many().retry_after(PASSWORD_RETRY_AFTER),
        TokenServiceError::Password(CheckError::Busy) => too_many().retry_after(RETRY_AFTER),
        TokenServiceError::Service
        | TokenServiceError::TooManyScopes
        | TokenServiceError::Token(TokenError::TooLong) => bad("UNSUPPORTED"),
        TokenServiceError::Token(_) | TokenServiceError::Sealing => {
            Reply::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN")
        }
    }
}

fn push_reply(error: &PushError) -> Reply {
    let unknown = |code| Reply::new(StatusCode::NOT_FOUND, code);
    let bad = |code| Reply::new(StatusCode::BAD_REQUEST, code);
    match error {
        PushError::Denied | PushError::TicketUsed => Reply::new(StatusCode::FORBIDDEN, "DENIED"),
        PushError::NameUnknown => unknown("NAME_UNKNOWN"),
        PushError::BlobUnknown => unknown("BLOB_UNKNOWN"),
        PushError::ManifestUnknown => unknown("MANIFEST_UNKNOWN"),
        PushError::BlobUploadUnknown => unknown("BLOB_UPLOAD_UNKNOWN"),
        PushError::BlobUploadInvalid(_) => bad("BLOB_UPLOAD_INVALID"),
        PushError::RangeInvalid { length } => {
            Reply::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID")
                .with(header::RANGE, upload_range(*length))
        }
        PushError::DigestInvalid { .. } => bad("DIGEST_INVALID"),
        PushError::SizeInvalid => bad("SIZE_INVALID"),
        PushError::ManifestBlobUnknown(_) => unknown("MANIFEST_BLOB_UNKNOWN"),
        PushError::ManifestInvalid(_) => bad("MANIFEST_INVALID"),
        PushError::TooLarge { .. } => Reply::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
        PushError::Unsupported(_) => Reply::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
        PushError::Unavailable { retry_after, .. } => {
            Reply::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE").retry_after(*retry_after)
        }
        PushError::Internal => Reply::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
    }
}
