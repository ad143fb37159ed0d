//! From a request to its answer: parse, authenticate, call, account.

use std::{sync::Arc, time::Instant};

use arc_swap::ArcSwapOption;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use outport_proto::{RepoName, route::UploadId};

use super::{
    action::Action,
    body::Body,
    connection::Connection,
    error::ApiError,
    headers::{API_VERSION, API_VERSION_2, response},
    list,
    metrics::HttpMetrics,
    pull,
    push::Pushes,
    redirect::Redirects,
    request::{Asked, RequestBody},
    token,
};
use crate::{
    auth::{
        Authorization, Caller, ChallengeError, Scope, Secret, TokenError, TokenService, Verifier,
        ticket::{TICKET_PARAMETER, TicketOpener},
        upload_state::{UPLOAD_STATE_PARAMETER, UploadStates},
    },
    clock::SharedClock,
    registry::{PullError, PullService, PushError, PushService, UploadRight, Want},
};

/// Where clients find the primary. From configuration or from the primary itself, never from a
/// request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The primary's registry: `https://host[:port]`, without a slash at its end.
    pub public_url: String,
    /// The token endpoint, absolute.
    pub token_realm: String,
    /// The audience of tokens.
    pub service: String,
}

impl Addresses {
    /// Addresses that can stand in a header.
    ///
    /// # Errors
    /// [`InvalidAddress`] when one is not an absolute `http` or `https` URL without query.
    pub fn new(public_url: &str, token_realm: &str, service: &str) -> Result<Self, InvalidAddress> {
        for url in [public_url, token_realm] {
            let parsed: Uri = url.parse().map_err(|_| InvalidAddress(url.to_owned()))?;
            let absolute = matches!(parsed.scheme_str(), Some("http" | "https")) && parsed.host().is_some();
            if !absolute || parsed.query().is_some() || url.contains('@') {
                return Err(InvalidAddress(url.to_owned()));
            }
        }
        Ok(Self {
            public_url: public_url.trim_end_matches('/').to_owned(),
            token_realm: token_realm.to_owned(),
            service: service.to_owned(),
        })
    }
}

/// A URL that clients cannot be sent to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not an absolute http or https URL without user and query")]
pub struct InvalidAddress(String);

/// The primary's addresses; empty at a secondary that has never heard of them. Replaced when the
/// primary says others.
pub type SharedAddresses = Arc<ArcSwapOption<Addresses>>;

/// What a site is to its clients.
#[derive(Debug)]
pub enum Role {
    /// Takes everything.
    Primary(Box<PrimaryRole>),
    /// Answers reads and leads the rest to the primary.
    Secondary(Box<Redirects>),
}

/// What only a primary has.
#[derive(Debug)]
pub struct PrimaryRole {
    /// Takes pushes.
    pub push: PushService,
    /// Issues tokens.
    pub tokens: Arc<TokenService>,
    /// Opens the tickets of the sites.
    pub tickets: Arc<TicketOpener>,
    /// Signs uploads' states.
    pub upload_states: UploadStates,
}

/// The OCI distribution API of one site.
pub struct Api {
    /// Answers reads.
    pub pull: PullService,
    /// Believes tokens.
    pub verifier: Arc<Verifier>,
    /// Where the primary is.
    pub addresses: SharedAddresses,
    /// The wall clock.
    pub clock: SharedClock,
    /// What is counted.
    pub metrics: HttpMetrics,
    /// What else the site does.
    pub role: Role,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("role", &self.role).finish_non_exhaustive()
    }
}

/// Who asks, and how that was proven.
struct Proven {
    caller: Caller,
    by: Proof,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// The `Authorization` header: a client that may be asked for another token.
    Header,
    /// A ticket: the client cannot answer a challenge here.
    Ticket,
}

impl Api {
    /// Answers one request.
    pub async fn answer<B: RequestBody>(
        &self,
        request: Request<B>,
        connection: Arc<Connection>,
    ) -> Response<Body> {
        let started = Instant::now();
        let in_flight = connection.begin_request();
        let mut asked = Asked::new(request);
        let (action, result) = match Action::parse(&asked.method, &asked.uri) {
            Err(error) => (None, Err(error.into())),
            Ok(action) => {
                let result = self.act(&action, &mut asked).await;
                (Some(action), result)
            }
        };
        let mut response = result.unwrap_or_else(|error| self.refusal(error));
        if asked.is_head() {
            without_body(&mut response);
        }
        log(&asked, action.as_ref(), &response, &connection, started);
        self.metrics.answered_after(started.elapsed());
        asked.drain();
        response.map(|body| body.accounted(&self.metrics.served_bytes, in_flight))
    }

    async fn act<B: RequestBody>(
        &self,
        action: &Action,
        asked: &mut Asked<B>,
    ) -> Result<Response<Body>, ApiError> {
        match action {
            Action::Ping => {
                self.caller(&asked.headers, action)?;
                Ok(ping())
            }
            Action::GetManifest { .. }
            | Action::GetBlob { .. }
            | Action::Tags { .. }
            | Action::Catalog(_)
            | Action::Referrers { .. } => {
                let caller = self.caller(&asked.headers, action)?;
                let want = if asked.is_head() { Want::Headers } else { Want::Content };
                self.read(action, &caller, &asked.headers, want)
                    .await
                    .map_err(|error| explain_denial(error, action, Proof::Header))
            }
            _ => match &self.role {
                Role::Primary(role) => self.write(role, action, asked).await,
                Role::Secondary(redirects) => self.lead(redirects, action, asked).await,
            },
        }
    }

    async fn read(
        &self,
        action: &Action,
        caller: &Caller,
        headers: &HeaderMap,
        want: Want,
    ) -> Result<Response<Body>, ApiError> {
        let service = &self.pull;
        match action {
            Action::GetManifest { repo, reference } => {
                pull::manifest(service, caller, (repo, reference), headers, want).await
            }
            Action::GetBlob { repo, digest } => {
                pull::blob(service, caller, (repo, digest), headers, want).await
            }
            Action::Tags { repo, page } => list::tags(service, caller, repo, page, headers).await,
            Action::Catalog(page) => list::catalog(service, caller, page, headers).await,
            Action::Referrers { repo, digest, artifact_type } => {
                list::referrers(service, caller, (repo, digest), artifact_type.as_deref(), headers).await
            }
            _ => Err(ApiError::Internal),
        }
    }

    /// A request that changes something, at the primary.
    async fn write<B: RequestBody>(
        &self,
        role: &PrimaryRole,
        action: &Action,
        asked: &mut Asked<B>,
    ) -> Result<Response<Body>, ApiError> {
        let addresses = self.addresses()?;
        let pushes = Pushes {
            service: &role.push,
            upload_states: &role.upload_states,
            clock: &self.clock,
            public_url: &addresses.public_url,
        };
        if let Action::Upload { repo, id, step } = action {
            let right = self.upload_right(role, &pushes, (repo, id), action, asked)?;
            return pushes.upload(&right, *step, asked).await;
        }
        if let Action::Token(method) = action {
            let sealed = self.sealed_authorization(role, action, asked)?;
            return token::answer(&role.tokens, *method, sealed, asked).await;
        }
        let proven = self.proven(role, action, asked)?;
        // Refused before its body is read. A mount from where the caller may not read is no
        // refusal with a ticket: it begins an upload.
        let sufficient = match proven.by {
            Proof::Header => grants_all(&proven.caller, &action.scopes()),
            Proof::Ticket => true,
        };
        if !sufficient {
            return Err(insufficient(action, proven.by));
        }
        let caller = &proven.caller;
        let result = match action {
            Action::StartUpload { repo, start } => pushes.start_upload(caller, repo, start, asked).await,
            Action::PutManifest { repo, reference, tags } => {
                pushes.put_manifest(caller, (repo, reference, tags), asked).await
            }
            Action::DeleteManifest { repo, reference } => {
                pushes.delete_manifest(caller, repo, reference).await
            }
            Action::DeleteBlob { repo, digest } => pushes.delete_blob(caller, repo, digest).await,
            _ => Err(ApiError::Internal),
        };
        result.map_err(|error| explain_denial(error, action, proven.by))
    }

    /// A request that only the primary may answer, at a secondary.
    async fn lead<B: RequestBody>(
        &self,
        redirects: &Redirects,
        action: &Action,
        asked: &mut Asked<B>,
    ) -> Result<Response<Body>, ApiError> {
        let addresses = self.addresses()?;
        let shared = (&self.clock, &self.metrics);
        match action {
            Action::Token(_) => return redirects.lead_token_request(asked, &addresses, shared),
            // Its state in the query authorises it, and only the primary can tell.
            Action::Upload { .. } => {}
            _ => {
                let caller = self.caller(&asked.headers, action)?;
                if !grants_all(&caller, &action.scopes()) {
                    return Err(insufficient(action, Proof::Header));
                }
            }
        }
        redirects.lead(action, asked, &addresses, shared).await
    }

    fn addresses(&self) -> Result<Arc<Addresses>, ApiError> {
        self.addresses.load_full().ok_or_else(|| {
            ApiError::Unavailable("this site has not heard from the primary yet; pushes need it".into())
        })
    }

    /// Who asks, by the `Authorization` header.
    fn caller(&self, headers: &HeaderMap, action: &Action) -> Result<Caller, ApiError> {
        let unauthorized =
            |error: Option<ChallengeError>| ApiError::Unauthorized { scopes: action.scopes(), error };
        let value = headers.get(header::AUTHORIZATION).ok_or_else(|| unauthorized(None))?;
        let value = value.to_str().map_err(|_| unauthorized(Some(ChallengeError::InvalidToken)))?;
        self.verify(value, unauthorized)
    }

    fn verify(
        &self,
        authorization: &str,
        unauthorized: impl Fn(Option<ChallengeError>) -> ApiError,
    ) -> Result<Caller, ApiError> {
        match Authorization::parse(authorization) {
            Ok(Authorization::Bearer(token)) => self.verifier.verify(token).map_err(|error| match error {
                TokenError::NoKeys => {
                    ApiError::Unavailable("this site has not received the keys of tokens yet".into())
                }
                error => {
                    tracing::debug!(%error, "token refused");
                    unauthorized(Some(ChallengeError::InvalidToken))
                }
            }),
            // Passwords go to the token endpoint.
            Ok(Authorization::Basic { .. }) => Err(unauthorized(None)),
            Err(_) => Err(unauthorized(Some(ChallengeError::InvalidToken))),
        }
    }

    /// Who asks, by a ticket if there is one, else by the header. A bad ticket is never answered
    /// with a challenge: several clients would quietly go on as nobody.
    fn proven<B: RequestBody>(
        &self,
        role: &PrimaryRole,
        action: &Action,
        asked: &Asked<B>,
    ) -> Result<Proven, ApiError> {
        let Some(sealed) = self.sealed_authorization(role, action, asked)? else {
            return Ok(Proven { caller: self.caller(&asked.headers, action)?, by: Proof::Header });
        };
        let refused = |_| ApiError::Denied("the credentials in the ticket are not valid");
        let authorization = sealed.ok_or(ApiError::Denied("the ticket holds no credentials"))?;
        Ok(Proven { caller: self.verify(authorization.expose(), refused)?, by: Proof::Ticket })
    }

    /// The `Authorization` in a ticket, `Some(None)` for a ticket without one; `None` without a ticket.
    fn sealed_authorization<B: RequestBody>(
        &self,
        role: &PrimaryRole,
        action: &Action,
        asked: &Asked<B>,
    ) -> Result<Option<Option<Secret>>, ApiError> {
        let (Some(ticket), Some(usage)) = (asked.query().get(TICKET_PARAMETER), action.ticket_use()) else {
            return Ok(None);
        };
        let opened = role.tickets.open(&ticket, &usage, self.clock.now()).map_err(|error| {
            tracing::info!(action = action.name(), %error, "ticket refused");
            ApiError::Denied("the ticket in the query is not valid for this request or has expired")
        })?;
        Ok(Some(opened.authorization))
    }

    /// The right to act on an upload: by its state in the query, else by a token that may push.
    fn upload_right<B: RequestBody>(
        &self,
        role: &PrimaryRole,
        pushes: &Pushes<'_>,
        (repo, id): (&RepoName, &UploadId),
        action: &Action,
        asked: &Asked<B>,
    ) -> Result<UploadRight, ApiError> {
        let by_state =
            asked.query().get(UPLOAD_STATE_PARAMETER).map(|state| pushes.right_by_state(&state, repo, id));
        match by_state {
            Some(Ok(right)) => Ok(right),
            Some(Err(refusal)) if !asked.headers.contains_key(header::AUTHORIZATION) => Err(refusal),
            Some(Err(_)) | None => {
                let caller = self.caller(&asked.headers, action)?;
                role.push
                    .upload_right(&caller, repo, *id)
                    .map_err(|error| explain_denial(ApiError::Push(error), action, Proof::Header))
            }
        }
    }

    fn refusal(&self, error: ApiError) -> Response<Body> {
        let addresses = self.addresses.load();
        match (error, addresses.as_deref()) {
            (ApiError::Unauthorized { .. }, None) => {
                ApiError::Unavailable("this site does not know yet where tokens are issued".into())
                    .into_response("", "")
            }
            (error, None) => error.into_response("", ""),
            (error, Some(addresses)) => error.into_response(&addresses.token_realm, &addresses.service),
        }
    }
}

fn grants_all(caller: &Caller, scopes: &[Scope]) -> bool {
    scopes.iter().all(|scope| match scope {
        Scope::Repository { name, actions } => {
            actions.iter().all(|action| caller.access.allows(name, action))
        }
        Scope::Catalog => caller.access.allows_catalog(),
    })
}

fn insufficient(action: &Action, by: Proof) -> ApiError {
    match by {
        Proof::Header => {
            ApiError::Unauthorized { scopes: action.scopes(), error: Some(ChallengeError::InsufficientScope) }
        }
        Proof::Ticket => ApiError::Denied("the token does not allow this"),
    }
}

/// A service's "denied" as a challenge, where the client can answer one: clients keep tokens of
/// earlier requests and expect to be asked for a broader one.
fn explain_denial(error: ApiError, action: &Action, by: Proof) -> ApiError {
    match error {
        ApiError::Pull(PullError::Denied) | ApiError::Push(PushError::Denied) => insufficient(action, by),
        other => other,
    }
}

fn ping() -> Response<Body> {
    let mut response = response(StatusCode::OK, Body::full("{}"));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(API_VERSION, API_VERSION_2);
    response
}

/// HEAD is answered like GET, with the length the body would have had.
fn without_body(response: &mut Response<Body>) {
    if let Some(length) = response.body().length()
        && !response.headers().contains_key(header::CONTENT_LENGTH)
        && !matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    *response.body_mut() = Body::empty();
}

/// One line a request; never its query, which may hold a ticket or an upload's state.
fn log<B: RequestBody>(
    asked: &Asked<B>,
    action: Option<&Action>,
    response: &Response<Body>,
    connection: &Connection,
    started: Instant,
) {
    let status = response.status();
    let reading = matches!(asked.method, Method::GET | Method::HEAD);
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                peer = %connection.peer(),
                method = %asked.method,
                action = action.map_or("none", Action::name),
                path = asked.uri.path(),
                status = status.as_u16(),
                bytes = response.body().length(),
                micros = started.elapsed().as_micros() as u64,
                "request"
            )
        };
    }
    if status.is_server_error() || (!reading && status != StatusCode::UNAUTHORIZED) {
        line!(info);
    } else {
        line!(debug);
    }
}
