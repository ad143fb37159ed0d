//! Leading what only the primary may do to the primary: by a 307 with a ticket where a client can
//! follow it, by streaming it through where not.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header};
use outport_proto::{Reference, RepoName, Tag, Timestamp, route::Endpoint};

use super::{
    action::{Action, UploadStart},
    addresses::Addresses,
    body::Body,
    error::ApiError,
    headers::response,
    metrics::{HttpMetrics, RedirectKind},
    proxy::Proxy,
    request::{Asked, RequestBody},
};
use crate::{
    auth::ticket::{
        MethodClass, TICKET_LIFE_MAX, TICKET_PARAMETER, TicketError, TicketSealer, TicketUse, fits_redirect,
    },
    clock::SharedClock,
    registry::{Intents, SessionView},
};

/// How long what is streamed through may take to happen at the primary: no ticket ends it.
const PROXIED_LIFE_MAX: Duration = Duration::from_secs(600);

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
        if let Some(kind) = self.redirectable(action, asked)
            && let Some(url) = self.url(action, asked, addresses, clock)?
        {
            self.note_intents(action, clock.now(), TICKET_LIFE_MAX);
            metrics.led_to_primary(kind);
            return Ok(temporary_redirect(url));
        }
        self.note_intents(action, clock.now(), PROXIED_LIFE_MAX);
        metrics.led_to_primary(RedirectKind::Proxied);
        let target = Target { base: &addresses.public_url, path: path_of(action)?, query: asked.uri.query() };
        let mut response = self.proxy.forward(asked, target.uri()?, &metrics.proxied_bytes).await?;
        if self.mode == PushMode::Proxy {
            stay_here(response.headers_mut(), &addresses.public_url);
        }
        Ok(response)
    }

    /// A redirect of a token request: the password, if any, travels in the ticket.
    pub(super) fn lead_token_request<B: RequestBody>(
        &self,
        asked: &Asked<B>,
        addresses: &Addresses,
        (clock, metrics): (&SharedClock, &HttpMetrics),
    ) -> Result<Response<Body>, ApiError> {
        let usage = TicketUse { class: MethodClass::Token, repository: None, mount_from: None };
        let url = self.ticketed(&addresses.token_realm, &usage, asked, clock)?;
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
        clock: &SharedClock,
    ) -> Result<Option<String>, ApiError> {
        let Some(usage) = action.ticket_use() else { return Ok(None) };
        let base = format!("{}{}", addresses.public_url, path_of(action)?);
        let url = self.ticketed(&base, &usage, asked, clock)?;
        Ok(fits_redirect(&url).then_some(url))
    }

    fn ticketed<B: RequestBody>(
        &self,
        base: &str,
        usage: &TicketUse,
        asked: &Asked<B>,
        clock: &SharedClock,
    ) -> Result<String, ApiError> {
        let authorization = asked.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let now = self.session.now().primary_now(clock.now());
        let ticket = self.sealer.seal(authorization, usage, now).map_err(|error| match error {
            TicketError::NoKey => {
                ApiError::Unavailable("this site has no connection to the primary yet; pushes need it".into())
            }
            error => {
                tracing::error!(%error, "cannot seal a ticket");
                ApiError::Internal
            }
        })?;
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, value) in asked.query().pairs().filter(|(name, _)| name != TICKET_PARAMETER) {
            query.append_pair(&name, &value);
        }
        Ok(format!("{base}?{}", query.append_pair(TICKET_PARAMETER, &ticket).finish()))
    }

    /// What the request would move is about to move: reads of it ask the primary until it has.
    fn note_intents(&self, action: &Action, now: Timestamp, life: Duration) {
        let open = |repo: &RepoName, reference: &Reference| {
            self.intents.open(repo, reference, now, now.plus(life));
        };
        match action {
            Action::PutManifest { repo, reference, tags } => {
                open(repo, reference);
                tags.iter().for_each(|tag: &Tag| open(repo, &Reference::Tag(tag.clone())));
            }
            Action::DeleteManifest { repo, reference } => open(repo, reference),
            Action::DeleteBlob { repo, digest } => open(repo, &Reference::Digest(*digest)),
            _ => {}
        }
    }
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
