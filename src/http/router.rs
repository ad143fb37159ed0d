//! From a request to its answer: parse, authenticate, call, account.

use std::{
    future::Future,
    net::IpAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use outport_proto::{RepoName, Timestamp, frame::RegistryChallenge, route::RouteError};

use super::{
    action::Action,
    addresses::{Addresses, SharedAddresses},
    audited::{self, Answered},
    authenticate::{Announced, Proof, Proven, explain_denial, grants_all, insufficient},
    body::{Audited, Body},
    client_address::Proxies,
    connection::Connection,
    error::ApiError,
    gateway::{Behind, Forwards},
    headers::{API_VERSION, API_VERSION_2, response},
    list,
    metrics::HttpMetrics,
    pull,
    push::Pushes,
    redirect::Redirects,
    request::{Asked, RequestBody},
    token,
    tunnel::Tunnels,
};
use crate::{
    auth::{
        Authenticator, Caller, Demand, Scope, TicketOpener, TokenService, UploadStates,
        upload_state::UPLOAD_STATE_PARAMETER,
    },
    clock::SharedClock,
    registry::{
        Drain, PullService, PushError, PushService, Want,
        gateway::{Shown, Writer},
    },
    status::Readiness,
    telemetry::{
        audit::{self, Audit},
        trace::{self, Span, Tracing},
    },
};

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
    pub writes: Writes,
    /// Issues tokens, if that is done here.
    pub tokens: Option<Arc<TokenService>>,
    /// Whether it takes pushes.
    pub drain: Drain,
    /// Opens the tickets of the sites.
    pub tickets: Arc<TicketOpener>,
    /// Signs uploads' states.
    pub upload_states: UploadStates,
    /// How long after its ticket's expiry a request that a site led here is acknowledged.
    pub write_time_max: Duration,
}

/// Where a primary's pushes go.
#[derive(Debug)]
pub enum Writes {
    /// Into its own store.
    Own(PushService),
    /// To the registry behind it.
    Behind(Box<Behind>),
}

/// Where geo DNS and load balancers ask whether clients may be sent here. It is answered on the admin listener as
/// well; those that ask are elsewhere, and see the site as clients do.
const READY_PATH: &str = "/readyz";

/// The OCI distribution API of one site.
pub struct Api {
    /// Whether clients may be sent here.
    pub readiness: Readiness,
    /// Answers reads.
    pub pull: PullService,
    /// Lets callers in.
    pub authenticator: Arc<Authenticator>,
    /// Where the primary is.
    pub addresses: SharedAddresses,
    /// The wall clock.
    pub clock: SharedClock,
    /// What is counted.
    pub metrics: HttpMetrics,
    /// Where traces begin.
    pub tracing: Tracing,
    /// Who is told what was asked for, and by whom.
    pub audit: Audit,
    /// Whom to believe about whose requests are.
    pub proxies: Proxies,
    /// For sites whose network carries no UDP; `None` at a site that nobody follows.
    pub tunnels: Option<Tunnels>,
    /// What else the site does.
    pub role: Role,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("role", &self.role).finish_non_exhaustive()
    }
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
        if request.uri().path() == READY_PATH && matches!(*request.method(), Method::GET | Method::HEAD) {
            return ready(&self.readiness);
        }
        let mut request = request;
        if let Some(tunnels) = self.tunnels.as_ref().filter(|_| Tunnels::is_asked(&request)) {
            let client = self.proxies.client(connection.peer().ip(), request.headers());
            let begun = Box::pin(tunnels.begun(&mut request, client)).await;
            return begun.unwrap_or_else(|error| self.refusal(error));
        }
        let mut asked = Asked::new(request);
        let parsed = Action::parse(&asked.method, &asked.uri);
        let name = parsed.as_ref().map_or("none", Action::name);
        let span = self.tracing.asked(name, trace::Asked::ByClient, asked.traceparent());
        let ((response, action, denied, client), notes) = {
            let mut work = pin!(self.audit.noting(span.within(async {
                let (action, result) = match parsed {
                    Err(error) => (None, Err(error.into())),
                    Ok(action) => {
                        let result = match self.act(&action, &mut asked).await {
                            Err(error) => Box::pin(self.instead_of_challenge(&action, error)).await,
                            answered => answered,
                        };
                        (Some(action), result)
                    }
                };
                let mut denied = None;
                let mut response = result.unwrap_or_else(|error| {
                    denied = self.audit.is_kept().then(|| error.to_string());
                    self.refusal(error)
                });
                if asked.is_head() {
                    without_body(&mut response);
                }
                let client = self.proxies.client(connection.peer().ip(), &asked.headers);
                if span.is_recorded() {
                    describe(&span, &asked, action.as_ref(), &response, client);
                }
                log(&asked, action.as_ref(), &response, (&connection, client), started);
                (response, action, denied, client)
            })));
            (work.as_mut().await, audit::noted(work))
        };
        let answered = Answered {
            action: action.as_ref(),
            response: &response,
            why: denied.as_deref(),
            client,
            notes,
            trace_id: span.traceparent().map(|traceparent| traceparent.trace_id),
        };
        let telling = audited::begin(&self.audit, &asked, &answered);
        let audited = telling.map(|telling| Audited { telling, bytes: 0, started });
        self.metrics.answered_after(started.elapsed());
        asked.drain();
        let traced = span.is_recorded().then_some(span);
        response.map(|body| body.accounted(&self.metrics.served_bytes, in_flight, traced).audited(audited))
    }

    async fn act<B: RequestBody>(
        &self,
        action: &Action,
        asked: &mut Asked<B>,
    ) -> Result<Response<Body>, ApiError> {
        match action {
            Action::Ping => {
                self.caller(&asked.headers, &asked.method, action).await?;
                Ok(ping())
            }
            Action::GetManifest { .. }
            | Action::GetBlob { .. }
            | Action::Tags { .. }
            | Action::Catalog(_)
            | Action::Referrers { .. } => {
                let caller = self.caller(&asked.headers, &asked.method, action).await?;
                note_subject(&caller);
                let want = if asked.is_head() { Want::Headers } else { Want::Content };
                self.read(action, &caller, &asked.headers, want)
                    .await
                    .map_err(|error| explain_denial(error, action, Proof::Header))
            }
            _ if action.repo().is_some_and(RepoName::is_canary) => {
                Err(ApiError::Denied("this repository is the primary's own"))
            }
            _ => match &self.role {
                // Of a pull nothing is moved about but what a pull needs.
                Role::Primary(role) => Box::pin(self.write(role, action, asked)).await,
                Role::Secondary(redirects) => Box::pin(self.lead(redirects, action, asked)).await,
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
            Action::Tags { repo, page } => Box::pin(list::tags(service, caller, repo, page, headers)).await,
            Action::Catalog(page) => Box::pin(list::catalog(service, caller, page, headers)).await,
            Action::Referrers { repo, digest, artifact_type } => {
                let wanted = (repo, digest);
                Box::pin(list::referrers(service, caller, wanted, artifact_type.as_deref(), headers)).await
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
        if let Action::Token(method) = action {
            let tokens = role.tokens.as_ref().ok_or_else(no_tokens_here)?;
            let sealed = self.sealed_authorization(role, action, asked)?;
            return token::answer(tokens, *method, sealed, asked).await;
        }
        let under_way = role.drain.enter();
        let _under_way = under_way.ok_or_else(|| {
            ApiError::Unavailable("this primary is being handed over and takes no pushes now".into())
        })?;
        let addresses = self.addresses()?;
        let public_url = addresses.public_url.as_str();
        match &role.writes {
            Writes::Own(push) => self.push(role, push, public_url, (action, asked)).await,
            Writes::Behind(behind) => self.forward(role, behind, public_url, (action, asked)).await,
        }
    }

    /// A push or delete that is done here.
    async fn push<B: RequestBody>(
        &self,
        role: &PrimaryRole,
        push: &PushService,
        public_url: &str,
        (action, asked): (&Action, &mut Asked<B>),
    ) -> Result<Response<Body>, ApiError> {
        let pushes =
            Pushes { service: push, upload_states: &role.upload_states, clock: &self.clock, public_url };
        if let Action::Upload { repo, id, step } = action {
            let right = self.upload_right(push, &pushes, (repo, id), action, asked).await?;
            audit::note(|notes| notes.subject = Some(right.actor.as_str().into()));
            return pushes.upload(&right, *step, asked).await;
        }
        let proven = self.sufficient(role, action, asked).await?;
        let result = match proven.announced {
            None => pushes.change(&proven.caller, action, asked).await,
            Some(Announced { intent, until }) => {
                let led = push.led(intent);
                let pushes = Pushes { service: &led, ..pushes };
                self.in_time(until, pushes.change(&proven.caller, action, asked)).await
            }
        };
        result.map_err(|error| explain_denial(error, action, proven.by))
    }

    /// A push or delete that is done at the registry behind this primary.
    async fn forward<B: RequestBody>(
        &self,
        role: &PrimaryRole,
        behind: &Behind,
        public_url: &str,
        (action, asked): (&Action, &mut Asked<B>),
    ) -> Result<Response<Body>, ApiError> {
        let forwards = Forwards {
            behind,
            upload_states: &role.upload_states,
            clock: &self.clock,
            public_url,
            sent_bytes: &self.metrics.proxied_bytes,
        };
        if let Action::Upload { repo, id, step } = action {
            if asked.query().get(UPLOAD_STATE_PARAMETER).is_none() {
                self.sufficient(role, action, asked).await?;
                return Err(ApiError::Push(PushError::BlobUploadUnknown));
            }
            return forwards.upload((repo, id), *step, asked).await;
        }
        let Proven { caller, by, announced, authorization } = self.sufficient(role, action, asked).await?;
        let shown = if behind.shows_callers { Shown::Caller(authorization) } else { Shown::Gateway };
        let (intent, until) = announced.map(|announced| (announced.intent, announced.until)).unzip();
        let writer = Writer { actor: caller.subject.to_string(), shown, intent };
        let change = forwards.change(&caller, writer, action, asked);
        let result = match until {
            None => change.await,
            Some(until) => self.in_time(until, change).await,
        };
        match result {
            // A challenge of the registry's: nobody can answer it here.
            Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED && by == Proof::Ticket => {
                Err(ApiError::Denied("the registry does not take the credentials in the ticket"))
            }
            result => result.map_err(|error| explain_denial(error, action, by)),
        }
    }

    /// Who asks, when they may: refused before the body is read. A mount from where the caller may not
    /// read is no refusal with a ticket: it begins an upload.
    async fn sufficient<B: RequestBody>(
        &self,
        role: &PrimaryRole,
        action: &Action,
        asked: &mut Asked<B>,
    ) -> Result<Proven, ApiError> {
        let proven = self.proven(role, action, asked).await?;
        note_subject(&proven.caller);
        let sufficient = match proven.by {
            Proof::Header => grants_all(&proven.caller, &action.scopes()),
            // A ticket grants nothing by itself: what it leads to is done with the caller's own rights.
            Proof::Ticket => grants_all(&proven.caller, &own_scopes(action)),
        };
        if sufficient { Ok(proven) } else { Err(insufficient(action, proven.by)) }
    }

    /// What a site announced must not be acknowledged once the site does not expect it any longer.
    async fn in_time(
        &self,
        until: Timestamp,
        change: impl Future<Output = Result<Response<Body>, ApiError>>,
    ) -> Result<Response<Body>, ApiError> {
        let left = until.since(self.clock.now());
        tokio::time::timeout(left, change).await.unwrap_or_else(|_| Err(too_slow()))
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
            Action::Token(_) if self.authenticator.is_issued_elsewhere() && !redirects.streams_all() => {
                return Err(no_tokens_here());
            }
            Action::Token(_) => return redirects.lead_token_request(asked, &addresses, shared).await,
            // Its state in the query authorises it, and only the primary can tell.
            Action::Upload { .. } => {}
            _ => note_subject(&self.writer(&asked.headers, action).await?),
        }
        redirects.lead(action, asked, &addresses, shared).await
    }

    fn addresses(&self) -> Result<Arc<Addresses>, ApiError> {
        self.addresses.load_full().ok_or_else(|| {
            ApiError::Unavailable("this site has not heard from the primary yet; pushes need it".into())
        })
    }

    fn refusal(&self, error: ApiError) -> Response<Body> {
        if !matches!(error, ApiError::Unauthorized { .. }) {
            return error.into_response(None);
        }
        match self.demand() {
            None => ApiError::Unavailable("this site does not know yet where tokens are issued".into())
                .into_response(None),
            demand => error.into_response(demand.as_ref()),
        }
    }

    /// What clients are to come with, if it is known.
    fn demand(&self) -> Option<RegistryChallenge> {
        match self.authenticator.demand() {
            Demand::Token => {
                let addresses = self.addresses.load();
                let addresses = addresses.as_deref()?;
                let (realm, service) = (self.realm(addresses).to_owned(), addresses.service.clone());
                Some(RegistryChallenge::Bearer { realm, service })
            }
            Demand::Registry(challenge) => Some(challenge),
            Demand::Unknown => None,
        }
    }

    /// The token endpoint that clients are sent to.
    fn realm<'a>(&'a self, addresses: &'a Addresses) -> &'a str {
        match &self.role {
            Role::Secondary(redirects) => redirects.own_realm.as_ref().unwrap_or(&addresses.token_realm),
            Role::Primary(_) => &addresses.token_realm,
        }
    }
}

/// Clients are sent there by the challenge. A redirect would not do: most would leave their password
/// behind on the way and go on as nobody, without a word.
fn no_tokens_here() -> ApiError {
    ApiError::Action(RouteError::NotFound.into())
}

fn note_subject(caller: &Caller) {
    audit::note(|notes| notes.subject = Some(Arc::clone(&caller.subject)));
}

/// What a request needs in the repository that it changes.
fn own_scopes(action: &Action) -> Vec<Scope> {
    let is_own = |scope: &Scope| match (scope, action.repo()) {
        (Scope::Repository { name, .. }, Some(repo)) => name == repo,
        _ => true,
    };
    action.scopes().into_iter().filter(is_own).collect()
}

/// It may have happened all the same; what is not acknowledged nobody has to see.
fn too_slow() -> ApiError {
    ApiError::Unavailable("the request took too long on its way from the site that led it here".into())
}

/// Says no more to strangers than that.
fn ready(readiness: &Readiness) -> Response<Body> {
    let (status, text) = match readiness() {
        Ok(()) => (StatusCode::OK, "ready\n"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    };
    let mut response = response(status, Body::full(text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(super) fn ping() -> Response<Body> {
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

/// A request as OpenTelemetry's conventions name its parts; never its query.
fn describe<B: RequestBody>(
    span: &Span,
    asked: &Asked<B>,
    action: Option<&Action>,
    response: &Response<Body>,
    client: IpAddr,
) {
    span.set("http.request.method", asked.method.to_string());
    span.set("url.path", asked.uri.path().to_owned());
    span.set("client.address", client.to_string());
    if let Some(agent) = asked.headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()) {
        span.set("user_agent.original", agent.to_owned());
    }
    if let Some(repo) = action.and_then(Action::repo) {
        span.set("outport.repository", repo.to_string());
    }
    let status = response.status();
    span.set("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.failed(status);
    }
}

/// One line a request; never its query, which may hold a ticket or an upload's state.
fn log<B: RequestBody>(
    asked: &Asked<B>,
    action: Option<&Action>,
    response: &Response<Body>,
    (connection, client): (&Connection, IpAddr),
    started: Instant,
) {
    let status = response.status();
    let peer = connection.peer();
    let behind = (client != peer.ip()).then(|| tracing::field::display(client));
    let reading = matches!(asked.method, Method::GET | Method::HEAD);
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                %peer,
                client = behind,
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
