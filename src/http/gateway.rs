//! Pushes and deletes at a primary that stands in front of a registry: they go through to it, and are
//! in the log before they are acknowledged.
//!
//! Uploads are streamed through, byte for byte and as slowly as the registry takes them. Where an upload
//! is at the registry stands in the state that its `Location` carries, so that any request of it can be
//! answered after a restart, and clients see this primary alone.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderName, HeaderValue, Response, StatusCode, Uri, header};
use outport_proto::{
    Digest, RepoName, Timestamp,
    route::{Endpoint, UploadId},
};

use super::{
    action::{Action, UploadStart, UploadStep},
    body::Body,
    error::ApiError,
    headers::{API_VERSION, DOCKER_CONTENT_DIGEST, DOCKER_UPLOAD_UUID, header_value, response},
    proxy::Proxy,
    push::new_manifest,
    pushed,
    request::{Asked, RequestBody},
};
use crate::{
    auth::{
        self, Caller,
        upload_state::{UPLOAD_LIFE, UPLOAD_STATE_PARAMETER, UploadState, UploadStateError, UploadStates},
    },
    clock::SharedClock,
    fetch::backend::{Backend, BackendError, Needs},
    random,
    registry::gateway::{Gateway, Refusal, Shown, Taken, Writer, Written},
};

const ELSEWHERE: &str = "the registry behind this site leads uploads elsewhere";
/// Headers of the registry's answers to uploads that clients can use.
const PASSED_ON: [HeaderName; 9] = [
    header::LOCATION,
    header::RANGE,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::RETRY_AFTER,
    header::WWW_AUTHENTICATE,
    API_VERSION,
    DOCKER_CONTENT_DIGEST,
    HeaderName::from_static("oci-chunk-min-length"),
];

/// The registry behind a primary.
#[derive(Clone, Debug)]
pub struct Behind {
    /// Records what is in it.
    pub gateway: Gateway,
    /// Streams uploads through.
    pub proxy: Proxy,
    /// Whether the registry sees its callers' own credentials instead of the gateway's.
    pub shows_callers: bool,
    /// Whether an upload goes on with the gateway's credentials when the token that it was begun with ends.
    pub finishes_expired: bool,
}

/// The pushing half of a gateway's API, for one request.
pub(super) struct Forwards<'a> {
    pub(super) behind: &'a Behind,
    pub(super) upload_states: &'a UploadStates,
    pub(super) clock: &'a SharedClock,
    /// Where clients reach this primary: `https://host[:port]`.
    pub(super) public_url: &'a str,
    /// Bytes of bodies that go through.
    pub(super) sent_bytes: &'a prometheus_client::metrics::counter::Counter,
}

/// An upload in progress.
struct Upload<'a> {
    repo: &'a RepoName,
    id: UploadId,
    actor: &'a str,
    shown: &'a Shown,
    /// The `Authorization` that it was begun with, when it was not begun just now.
    begun_by: Option<&'a str>,
    /// From then on its state authorises nothing, however far it is.
    expires: Timestamp,
}

impl Forwards<'_> {
    /// A request that changes something and belongs to no upload.
    pub(super) async fn change<B: RequestBody>(
        &self,
        caller: &Caller,
        writer: Writer,
        action: &Action,
        asked: &mut Asked<B>,
    ) -> Result<Response<Body>, ApiError> {
        let gateway = &self.behind.gateway;
        match action {
            Action::StartUpload { repo, start } => {
                let start = self.allowed(caller, start);
                self.start_upload(&writer, repo, &start, asked).await
            }
            Action::PutManifest { repo, reference, tags } => {
                let manifest = new_manifest(reference, tags, asked).await?;
                match gateway.put_manifest(writer, repo, manifest).await.map_err(ApiError::Push)? {
                    Written::Done(pushed) => pushed::manifest(self.public_url, repo, &pushed),
                    Written::Refused(refusal) => self.refused(refusal),
                }
            }
            Action::DeleteManifest { repo, reference } => {
                match gateway.delete_manifest(writer, repo, reference).await.map_err(ApiError::Push)? {
                    Written::Done(deleted) => Ok(pushed::deleted(&deleted)),
                    Written::Refused(refusal) => self.refused(refusal),
                }
            }
            Action::DeleteBlob { repo, digest } => {
                match gateway.delete_blob(writer, repo, digest).await.map_err(ApiError::Push)? {
                    Written::Done(deleted) => Ok(pushed::deleted(&deleted)),
                    Written::Refused(refusal) => self.refused(refusal),
                }
            }
            _ => Err(ApiError::Internal),
        }
    }

    /// The registry sees the gateway, which may read everything: a caller who may not read the source
    /// of a mount begins an upload instead. The same goes for a mount from anywhere.
    fn allowed(&self, caller: &Caller, start: &UploadStart) -> UploadStart {
        match start {
            UploadStart::Mount { from, .. } if !self.behind.shows_callers => {
                let may = |from: &RepoName| caller.access.allows(from, auth::Action::Pull);
                if from.as_ref().is_some_and(may) { start.clone() } else { UploadStart::Session(None) }
            }
            _ => start.clone(),
        }
    }

    async fn start_upload<B: RequestBody>(
        &self,
        writer: &Writer,
        repo: &RepoName,
        start: &UploadStart,
        asked: &mut Asked<B>,
    ) -> Result<Response<Body>, ApiError> {
        let from = match start {
            UploadStart::Mount { from, .. } => from.as_ref(),
            UploadStart::Session(_) | UploadStart::Whole(_) => None,
        };
        let path = Endpoint::UploadStart { repo: repo.clone() }.path();
        let target = self.target(&with_query(&path, &start_query(start)))?;
        let answer = self.forward(asked, target, &writer.shown, Needs::Push(repo, from)).await?;
        let mut id = [0; 16];
        random::fill(&mut id).map_err(|_| ApiError::Internal)?;
        let upload = Upload {
            repo,
            id: UploadId::from_bytes(id),
            actor: &writer.actor,
            shown: &writer.shown,
            begun_by: None,
            expires: self.clock.now().plus(UPLOAD_LIFE),
        };
        match (answer.status(), start) {
            (StatusCode::CREATED, UploadStart::Whole(digest)) => {
                self.taken(&upload, digest, Taken::Uploaded).await
            }
            (StatusCode::CREATED, UploadStart::Mount { digest, from }) => {
                self.taken(&upload, digest, Taken::Mounted { from: from.clone() }).await
            }
            _ => self.goes_on(&upload, answer),
        }
    }

    /// A request to `/v2/<name>/blobs/uploads/<id>`, whose state proves that it may be made.
    pub(super) async fn upload<B: RequestBody>(
        &self,
        (repo, id): (&RepoName, &UploadId),
        step: UploadStep,
        asked: &mut Asked<B>,
    ) -> Result<Response<Body>, ApiError> {
        let state = self.state(repo, id, asked)?;
        let (Some(behind), shown) = (&state.behind, self.shown(&state, asked)?) else {
            return Err(ApiError::Denied("the upload is not one of the registry behind this site"));
        };
        let path = match step {
            UploadStep::Finish(digest) => with_query(behind, &pair("digest", &digest.to_string())),
            UploadStep::Status | UploadStep::Append | UploadStep::Cancel => behind.clone(),
        };
        let target = self.target(&path)?;
        let answer = self.forward(asked, target, &shown, Needs::Push(repo, None)).await?;
        let upload = Upload {
            repo,
            id: *id,
            actor: &state.actor,
            shown: &shown,
            begun_by: state.authorization.as_deref(),
            expires: state.expires,
        };
        match (answer.status(), step) {
            (StatusCode::CREATED | StatusCode::NO_CONTENT, UploadStep::Finish(digest)) => {
                self.taken(&upload, &digest, Taken::Uploaded).await
            }
            // It was finished, and the client did not hear of it.
            (StatusCode::NOT_FOUND, UploadStep::Finish(digest)) => {
                match self.taken(&upload, &digest, Taken::Uploaded).await {
                    Ok(taken) => Ok(taken),
                    Err(_) => self.goes_on(&upload, answer),
                }
            }
            _ => self.goes_on(&upload, answer),
        }
    }

    /// What the state in the query says of an upload.
    fn state<B: RequestBody>(
        &self,
        repo: &RepoName,
        id: &UploadId,
        asked: &Asked<B>,
    ) -> Result<UploadState, ApiError> {
        let query = asked.query();
        let state = query.get(UPLOAD_STATE_PARAMETER);
        let state = state.ok_or(ApiError::Denied("the upload state is missing in the query"))?;
        self.upload_states.open(&state, repo, &id.to_string(), self.clock.now()).map_err(|error| {
            tracing::debug!(%repo, %error, "upload state refused");
            ApiError::Denied("the upload state in the query is not valid or has expired")
        })
    }

    /// Who the registry sees: who sends a request of this upload, else who began it.
    fn shown<B: RequestBody>(&self, state: &UploadState, asked: &Asked<B>) -> Result<Shown, ApiError> {
        if !self.behind.shows_callers {
            return Ok(Shown::Gateway);
        }
        let begun_by = state.authorization.as_deref();
        let sent = asked.headers.get(header::AUTHORIZATION);
        let authorization = match sent {
            Some(value) => Some(value.clone()),
            None => begun_by.map(HeaderValue::try_from).transpose().map_err(|_| ApiError::Internal)?,
        };
        // Its begin was let in by the registry itself, and the state is good for this upload alone.
        let is_begun_by = sent.is_none_or(|sent| begun_by.is_some_and(|begun_by| sent == begun_by));
        let has_ended = || begun_by.and_then(end_of_token).is_some_and(|end| end <= self.clock.now());
        if self.behind.finishes_expired && is_begun_by && has_ended() {
            tracing::info!(repo = %state.repository, actor = state.actor, "an upload outlives its token");
            return Ok(Shown::Gateway);
        }
        Ok(Shown::Caller(authorization))
    }

    fn target(&self, path: &str) -> Result<Uri, ApiError> {
        self.behind.gateway.backend().uri(path).map_err(|error| {
            tracing::warn!(%error, "the registry's upload cannot be reached");
            ApiError::Internal
        })
    }

    async fn forward<B: RequestBody>(
        &self,
        asked: &mut Asked<B>,
        target: Uri,
        shown: &Shown,
        needs: Needs<'_>,
    ) -> Result<Response<Body>, ApiError> {
        let backend = self.behind.gateway.backend();
        // What has a body cannot be sent twice.
        let mut attempts = if asked.has_body() { 1 } else { 2 };
        asked.headers.remove(header::COOKIE);
        loop {
            attempts -= 1;
            let authorization = match shown {
                Shown::Caller(authorization) => authorization.clone(),
                Shown::Gateway => backend.authorization(needs).await.map_err(silent)?,
            };
            asked.headers.remove(header::AUTHORIZATION);
            if let Some(authorization) = authorization {
                asked.headers.insert(header::AUTHORIZATION, authorization);
            }
            let answer = self.behind.proxy.forward(asked, target.clone(), None, self.sent_bytes).await?;
            if answer.status().is_redirection() {
                tracing::warn!(status = answer.status().as_u16(), "the registry leads an upload elsewhere");
                return Err(ApiError::Unavailable(ELSEWHERE.into()));
            }
            if answer.status() != StatusCode::UNAUTHORIZED || matches!(shown, Shown::Caller(_)) {
                return Ok(answer);
            }
            backend.rejected(needs, answer.headers());
            if attempts == 0 {
                return Err(unwelcome());
            }
        }
    }

    /// The registry took in a blob.
    async fn taken(
        &self,
        upload: &Upload<'_>,
        digest: &Digest,
        how: Taken,
    ) -> Result<Response<Body>, ApiError> {
        let gateway = &self.behind.gateway;
        let put = gateway.blob_taken(upload.actor, upload.repo, digest, how).await.map_err(ApiError::Push)?;
        pushed::blob(self.public_url, upload.repo, &put)
    }

    /// The registry's own answer, of its headers those that are of use, with its `Location` in terms of this
    /// primary.
    fn goes_on(&self, upload: &Upload<'_>, mut answer: Response<Body>) -> Result<Response<Body>, ApiError> {
        let theirs = std::mem::take(answer.headers_mut());
        let headers = answer.headers_mut();
        for name in PASSED_ON {
            if let Some(value) = theirs.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        if let Some(location) = headers.remove(header::LOCATION) {
            let behind = location.to_str().ok().and_then(Backend::own_path);
            let behind = behind.ok_or_else(|| {
                tracing::warn!(repo = %upload.repo, "the registry's upload is somewhere else");
                ApiError::Unavailable(ELSEWHERE.into())
            })?;
            headers.insert(header::LOCATION, self.location(upload, behind)?);
            headers.insert(DOCKER_UPLOAD_UUID, header_value(upload.id).ok_or(ApiError::Internal)?);
        }
        Ok(answer)
    }

    /// Absolute, because some clients resolve a relative one against the host they asked first.
    fn location(&self, upload: &Upload<'_>, behind: String) -> Result<HeaderValue, ApiError> {
        let authorization = match upload.shown {
            Shown::Caller(Some(value)) => value.to_str().ok().map(str::to_owned),
            Shown::Caller(None) | Shown::Gateway => upload.begun_by.map(str::to_owned),
        };
        let mut state = UploadState {
            upload: upload.id.to_string(),
            repository: upload.repo.clone(),
            actor: upload.actor.to_owned(),
            expires: upload.expires,
            site: None,
            behind: Some(behind),
            authorization,
        };
        let sealed = match self.upload_states.seal(&state) {
            // Clients that were not led here send their credentials themselves.
            Err(UploadStateError::TooLong) if state.authorization.take().is_some() => {
                self.upload_states.seal(&state)
            }
            sealed => sealed,
        };
        let sealed = sealed.map_err(|error| {
            tracing::error!(repo = %upload.repo, %error, "cannot seal an upload's state");
            ApiError::Internal
        })?;
        let path = Endpoint::Upload { repo: upload.repo.clone(), id: upload.id }.path();
        let base = self.public_url;
        header_value(format_args!("{base}{path}?{UPLOAD_STATE_PARAMETER}={sealed}")).ok_or(ApiError::Internal)
    }

    /// Why the registry did not do something, in its own words.
    fn refused(&self, refusal: Refusal) -> Result<Response<Body>, ApiError> {
        if refusal.status == StatusCode::UNAUTHORIZED && !self.behind.shows_callers {
            return Err(unwelcome());
        }
        let mut answer = response(refusal.status, Body::full(refusal.body));
        answer.headers_mut().extend(refusal.headers);
        Ok(answer)
    }
}

/// The client has nothing to do with that, and no token would help.
fn unwelcome() -> ApiError {
    tracing::error!(
        "the registry does not take the gateway's credentials (gateway.username, gateway.token_file)"
    );
    ApiError::Unavailable("the registry behind this site does not let it in".into())
}

fn silent(error: BackendError) -> ApiError {
    tracing::warn!(%error, "an upload does not go through");
    ApiError::Unavailable("the registry behind this site gave no answer".into())
}

/// When the bearer token in an `Authorization` says that it ends. Nobody is let in by that.
fn end_of_token(authorization: &str) -> Option<Timestamp> {
    #[derive(serde::Deserialize)]
    struct Claims {
        exp: u64,
    }
    let token = authorization.strip_prefix("Bearer ")?;
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice(&claims).ok().map(|Claims { exp }| Timestamp::from_secs(exp))
}

fn start_query(start: &UploadStart) -> String {
    match start {
        UploadStart::Session(None) => String::new(),
        UploadStart::Session(Some(algorithm)) => pair("digest-algorithm", algorithm.as_str()),
        UploadStart::Whole(digest) => pair("digest", &digest.to_string()),
        UploadStart::Mount { digest, from: None } => pair("mount", &digest.to_string()),
        UploadStart::Mount { digest, from: Some(from) } => {
            format!("{}&{}", pair("mount", &digest.to_string()), pair("from", from.as_str()))
        }
    }
}

fn pair(name: &str, value: &str) -> String {
    form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish()
}

fn with_query(path: &str, query: &str) -> String {
    match query {
        "" => path.to_owned(),
        query if path.contains('?') => format!("{path}&{query}"),
        query => format!("{path}?{query}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_token_ends() {
        let token = |claims: &str| format!("Bearer e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        assert_eq!(end_of_token(&token(r#"{"exp":7,"sub":"ana"}"#)), Some(Timestamp::from_secs(7)));
        for other in [&token("{}"), &token(r#"{"exp":"7"}"#), "Bearer opaque", "Basic YTpi", ""] {
            assert_eq!(end_of_token(other), None, "{other}");
        }
    }

    #[test]
    fn queries_are_added_to_what_is_there() {
        assert_eq!(with_query("/a", ""), "/a");
        assert_eq!(with_query("/a", "b=c"), "/a?b=c");
        assert_eq!(with_query("/a?_state=x%3D", "digest=sha256%3A00"), "/a?_state=x%3D&digest=sha256%3A00");
        assert_eq!(pair("digest", "sha256:00"), "digest=sha256%3A00");
    }
}
