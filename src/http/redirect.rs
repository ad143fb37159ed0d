//! Leading what only the primary may do to the primary: by a 307 with a ticket where a client can
//! follow it, by streaming it through where not.

use http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header};
use outport_proto::{Reference, route::Endpoint};

use super::{
    action::{Action, UploadStart},
    addresses::Addresses,
    body::Body,
    error::ApiError,
    headers::response,
    metrics::{HttpMetrics, RedirectKind},
    proxy::Proxy,
    request::{Asked, RequestBody, TRACEPARENT},
};
use crate::{
    auth::{
        random_number,
        ticket::{MethodClass, TICKET_PARAMETER, TicketError, TicketSealer, TicketUse, fits_redirect},
    },
    blocking,
    clock::SharedClock,
    registry::{Intent, Intents, SessionView},
    telemetry::trace,
};

/// How a site leads pushes to the primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PushMode {
    /// By a redirect where the client can follow it.
    #[default]
    Redirect,
    /// Always through this site, for clients that cannot reach the primary.
    Proxy,
}

/// What a secondary needs to lead requests to the primary.
#[derive(Clone, Debug)]
pub struct Redirects {
    /// How pushes go.
    pub mode: PushMode,
    /// Seals `Authorization` into tickets.
    pub sealer: std::sync::Arc<TicketSealer>,
    /// Notes what is about to move.
    pub intents: Intents,
    /// Estimates the primary's clock, by which tickets expire.
    pub session: SessionView,
    /// Streams through what cannot be redirected.
    pub proxy: Proxy,
    /// The token endpoint that challenges name, if it is this site's own and not the primary's. By
    /// configuration: a request cannot say where passwords are sent.
    pub own_realm: Option<String>,
}

impl Redirects {
    /// Leads a push or delete to the primary. The caller's scopes were checked.
    pub(super) async fn lead<B: RequestBody>(
        &self,
        action: &Action,
        asked: &mut Asked<B>,
        addresses: &Addresses,
        (clock, metrics): (&SharedClock, &HttpMetrics),
    ) -> Result<Response<Body>, ApiError> {
        let intent = intent_of(action)?;
        let usage = action.ticket_use().map(|usage| (usage, intent.as_ref().map(|intent| intent.number)));
        if let Some(kind) = self.redirectable(action, asked)
            && let Some(usage) = &usage
            && let Some(url) = self.url(action, asked, addresses, usage, clock)?
        {
            self.open(intent, clock).await?;
            metrics.led_to_primary(kind);
            return Ok(temporary_redirect(url));
        }
        // Without credentials: those travel in their header.
        let announced = match &usage {
            Some((usage, Some(number))) => Some(self.sealed(None, (usage, Some(*number)), clock)?),
            _ => None,
        };
        self.open(intent.clone(), clock).await?;
        metrics.led_to_primary(RedirectKind::Proxied);
        let target = Target { base: &addresses.public_url, path: path_of(action)?, query: asked.uri.query() };
        let target = target.uri()?;
        let mut response = self.proxy.forward(asked, target, announced, &metrics.proxied_bytes).await?;
        if let Some(intent) = intent.filter(|_| is_refusal(response.status())) {
            self.intents.end(&intent.repo, intent.number);
        }
        if self.mode == PushMode::Proxy {
            stay_here(response.headers_mut(), &addresses.public_url);
            if let Some(own) = &self.own_realm {
                ask_here(response.headers_mut(), &addresses.token_realm, own);
            }
        }
        Ok(response)
    }

    /// Whether everything goes through this site.
    pub(super) fn streams_all(&self) -> bool {
        self.mode == PushMode::Proxy
    }

    /// Leads a token request to the primary. In a redirect the password, if any, travels in the ticket.
    pub(super) async fn lead_token_request<B: RequestBody>(
        &self,
        asked: &mut Asked<B>,
        addresses: &Addresses,
        (clock, metrics): (&SharedClock, &HttpMetrics),
    ) -> Result<Response<Body>, ApiError> {
        if self.mode == PushMode::Proxy {
            metrics.led_to_primary(RedirectKind::Proxied);
            let target =
                Target { base: &addresses.token_realm, path: String::new(), query: asked.uri.query() };
            let target = target.uri()?;
            return self.proxy.forward(asked, target, None, &metrics.proxied_bytes).await;
        }
        let usage = TicketUse { class: MethodClass::Token, repository: None, mount_from: None };
        let url = self.ticketed(&addresses.token_realm, (&usage, None), asked, clock)?;
        metrics.led_to_primary(RedirectKind::Token);
        Ok(temporary_redirect(url))
    }

    /// The redirect's kind, or `None` when the client cannot follow one.
    fn redirectable<B: RequestBody>(&self, action: &Action, asked: &Asked<B>) -> Option<RedirectKind> {
        if self.mode == PushMode::Proxy {
            return None;
        }
        match action {
            // A body cannot be sent twice by every client: regclient's is used up.
            Action::PutManifest { .. } => (!is_regclient(&asked.headers)).then_some(RedirectKind::Manifest),
            Action::StartUpload { start, .. } if !asked.has_body() => Some(match start {
                UploadStart::Mount { .. } => RedirectKind::Mount,
                UploadStart::Session(_) | UploadStart::Whole(_) => RedirectKind::Upload,
            }),
            Action::DeleteManifest { .. } | Action::DeleteBlob { .. } => Some(RedirectKind::Delete),
            _ => None,
        }
    }

    /// Where to redirect to; `None` when it would be too long.
    fn url<B: RequestBody>(
        &self,
        action: &Action,
        asked: &Asked<B>,
        addresses: &Addresses,
        (usage, intent): &(TicketUse, Option<u64>),
        clock: &SharedClock,
    ) -> Result<Option<String>, ApiError> {
        let base = format!("{}{}", addresses.public_url, path_of(action)?);
        let url = self.ticketed(&base, (usage, *intent), asked, clock)?;
        Ok(fits_redirect(&url).then_some(url))
    }

    fn ticketed<B: RequestBody>(
        &self,
        base: &str,
        usage: (&TicketUse, Option<u64>),
        asked: &Asked<B>,
        clock: &SharedClock,
    ) -> Result<String, ApiError> {
        let authorization = asked.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let ticket = self.sealed(authorization, usage, clock)?;
        let mut query = form_urlencoded::Serializer::new(String::new());
        let own = [TICKET_PARAMETER, TRACEPARENT];
        for (name, value) in asked.query().pairs().filter(|(name, _)| !own.contains(&&**name)) {
            query.append_pair(&name, &value);
        }
        if let Some(parent) = trace::recorded() {
            query.append_pair(TRACEPARENT, &parent.to_string());
        }
        Ok(format!("{base}?{}", query.append_pair(TICKET_PARAMETER, &ticket).finish()))
    }

    /// A ticket for a request, with the number of the intent that announces it.
    fn sealed(
        &self,
        authorization: Option<&str>,
        (usage, intent): (&TicketUse, Option<u64>),
        clock: &SharedClock,
    ) -> Result<String, ApiError> {
        let now = self.session.now().primary_now(&**clock);
        self.sealer.seal_announced(authorization, usage, intent, now).map_err(|error| match error {
            TicketError::NoKey => {
                ApiError::Unavailable("this site has no connection to the primary yet; pushes need it".into())
            }
            error => {
                tracing::error!(%error, "cannot seal a ticket");
                ApiError::Internal
            }
        })
    }

    /// Opens the intent before the request goes anywhere.
    async fn open(&self, intent: Option<Intent>, clock: &SharedClock) -> Result<(), ApiError> {
        let Some(intent) = intent else { return Ok(()) };
        let (intents, now) = (self.intents.clone(), clock.steady_time());
        blocking::spawn(move || intents.open(intent, now)).await.map_err(|error| {
            tracing::error!(%error, "noting a write intent broke off");
            ApiError::Internal
        })
    }
}

/// What the request will move, by a new number. An upload or a mount moves nothing that a site
/// answers by itself: that a blob is missing is the primary's word alone.
fn intent_of(action: &Action) -> Result<Option<Intent>, ApiError> {
    let (repo, names, takes_tags) = match action {
        Action::PutManifest { repo, reference, tags } => {
            let tags = tags.iter().cloned().map(Reference::Tag);
            (repo, std::iter::once(reference.clone()).chain(tags).collect(), false)
        }
        Action::DeleteManifest { repo, reference } => {
            (repo, vec![reference.clone()], matches!(reference, Reference::Digest(_)))
        }
        Action::DeleteBlob { repo, digest } => (repo, vec![Reference::Digest(*digest)], false),
        _ => return Ok(None),
    };
    let number = random_number().map_err(|error| {
        tracing::error!(%error, "cannot draw the number of a write intent");
        ApiError::Internal
    })?;
    Ok(Some(Intent { number, repo: repo.clone(), names, takes_tags }))
}

/// Whether the primary said that it did nothing. Somebody between may say other things.
fn is_refusal(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::PAYLOAD_TOO_LARGE
    )
}

/// The request's path, spelled anew from what was understood of it.
fn path_of(action: &Action) -> Result<String, ApiError> {
    let endpoint = match action {
        Action::PutManifest { repo, reference, .. } | Action::DeleteManifest { repo, reference } => {
            Endpoint::Manifest { repo: repo.clone(), reference: reference.clone() }
        }
        Action::DeleteBlob { repo, digest } => Endpoint::Blob { repo: repo.clone(), digest: *digest },
        Action::StartUpload { repo, .. } => Endpoint::UploadStart { repo: repo.clone() },
        Action::Upload { repo, id, .. } => Endpoint::Upload { repo: repo.clone(), id: *id },
        _ => return Err(ApiError::Internal),
    };
    Ok(endpoint.path())
}

/// An upload that was begun through this site goes on through it: its clients cannot reach the
/// primary. They resolve a path against the host they asked, which is this site.
fn stay_here(headers: &mut HeaderMap, primary: &str) {
    let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
    let path =
        location.and_then(|location| location.strip_prefix(primary)).filter(|path| path.starts_with('/'));
    if let Some(path) = path.and_then(|path| HeaderValue::from_str(path).ok()) {
        headers.insert(header::LOCATION, path);
    }
}

/// A challenge of the primary's names a realm where those who come through this site cannot go.
fn ask_here(headers: &mut HeaderMap, primary: &str, own: &str) {
    let challenge = headers.get(header::WWW_AUTHENTICATE).and_then(|challenge| challenge.to_str().ok());
    let (theirs, ours) = (format!("realm=\"{primary}\""), format!("realm=\"{own}\""));
    let challenge = challenge.map(|challenge| challenge.replace(&theirs, &ours));
    if let Some(challenge) = challenge.and_then(|challenge| HeaderValue::from_str(&challenge).ok()) {
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
}

struct Target<'a> {
    base: &'a str,
    path: String,
    query: Option<&'a str>,
}

impl Target<'_> {
    fn uri(&self) -> Result<Uri, ApiError> {
        let mark = if self.query.is_some() { "?" } else { "" };
        let text = format!("{}{}{mark}{}", self.base, self.path, self.query.unwrap_or_default());
        text.parse().map_err(|_| ApiError::Internal)
    }
}

fn temporary_redirect(url: String) -> Response<Body> {
    let mut response = response(StatusCode::TEMPORARY_REDIRECT, Body::empty());
    if let Ok(location) = HeaderValue::try_from(url) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    // The ticket is good for this client and this minute alone.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn is_regclient(headers: &HeaderMap) -> bool {
    headers
        .get(header::USER_AGENT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|agent| agent.starts_with("regclient/"))
}

impl Action {
    /// What a ticket for this request must be good for; `None` when tickets have no part in it.
    pub(super) fn ticket_use(&self) -> Option<TicketUse> {
        let (class, mount_from) = match self {
            Self::StartUpload { start: UploadStart::Mount { from, .. }, .. } => {
                (MethodClass::StartUpload, from.clone())
            }
            Self::StartUpload { .. } => (MethodClass::StartUpload, None),
            Self::PutManifest { .. } => (MethodClass::PutManifest, None),
            Self::DeleteManifest { .. } | Self::DeleteBlob { .. } => (MethodClass::Delete, None),
            Self::Token(_) => (MethodClass::Token, None),
            _ => return None,
        };
        Some(TicketUse { class, repository: self.repo().cloned(), mount_from })
    }
}
