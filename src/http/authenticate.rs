//! Who asks: by token, by ticket, by an upload's state.

use http::{HeaderMap, HeaderValue, header};
use outport_proto::{IntentId, RepoName, Timestamp, route::UploadId};

use super::{
    action::Action,
    error::ApiError,
    headers::ANNOUNCED,
    push::Pushes,
    request::{Asked, RequestBody},
    router::{Api, PrimaryRole},
};
use crate::{
    auth::{
        Authorization, Caller, ChallengeError, Scope, Secret, TicketContents, TicketUse, TokenError,
        ticket::TICKET_PARAMETER, upload_state::UPLOAD_STATE_PARAMETER,
    },
    registry::{PullError, PushError, PushService, UploadRight},
};

/// Who asks, and how that was proven.
pub(super) struct Proven {
    pub(super) caller: Caller,
    pub(super) by: Proof,
    /// What the site that led it here announced.
    pub(super) announced: Option<Announced>,
    /// The `Authorization` that it was proven with.
    pub(super) authorization: Option<HeaderValue>,
}

/// The write intent that a site opened for a request.
pub(super) struct Announced {
    pub(super) intent: IntentId,
    /// When the site stops to expect what the request does: it must not be acknowledged later.
    pub(super) until: Timestamp,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// The `Authorization` header: a client that may be asked for another token.
    Header,
    /// A ticket: the client cannot answer a challenge here.
    Ticket,
}

impl Api {
    /// Who asks, by the `Authorization` header; at a site on its own, anybody.
    pub(super) fn caller(&self, headers: &HeaderMap, action: &Action) -> Result<Caller, ApiError> {
        self.by_header(headers, action).or_else(|refusal| match refusal {
            ApiError::Unauthorized { .. } => self.anybody(action).ok_or(refusal),
            other => Err(other),
        })
    }

    fn by_header(&self, headers: &HeaderMap, action: &Action) -> Result<Caller, ApiError> {
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
    pub(super) fn proven<B: RequestBody>(
        &self,
        role: &PrimaryRole,
        action: &Action,
        asked: &Asked<B>,
    ) -> Result<Proven, ApiError> {
        let Some(opened) = self.opened_ticket(role, action, asked)? else {
            let caller = self.caller(&asked.headers, action)?;
            let announced = self.announced(role, action, asked)?;
            let authorization = asked.headers.get(header::AUTHORIZATION).cloned();
            return Ok(Proven { caller, by: Proof::Header, announced, authorization });
        };
        let refused = |_| ApiError::Denied("the credentials in the ticket are not valid");
        let announced = Announced::of(&opened, role);
        let authorization =
            opened.authorization.ok_or(ApiError::Denied("the ticket holds no credentials"))?;
        let caller = self.verify(authorization.expose(), refused)?;
        let authorization = HeaderValue::try_from(authorization.expose()).ok();
        Ok(Proven { caller, by: Proof::Ticket, announced, authorization })
    }

    /// The `Authorization` in a ticket, `Some(None)` for a ticket without one; `None` without a ticket.
    pub(super) fn sealed_authorization<B: RequestBody>(
        &self,
        role: &PrimaryRole,
        action: &Action,
        asked: &Asked<B>,
    ) -> Result<Option<Option<Secret>>, ApiError> {
        Ok(self.opened_ticket(role, action, asked)?.map(|opened| opened.authorization))
    }

    fn opened_ticket<B: RequestBody>(
        &self,
        role: &PrimaryRole,
        action: &Action,
        asked: &Asked<B>,
    ) -> Result<Option<TicketContents>, ApiError> {
        let (Some(ticket), Some(usage)) = (asked.query().get(TICKET_PARAMETER), action.ticket_use()) else {
            return Ok(None);
        };
        self.open(role, &ticket, &usage, action).map(Some)
    }

    /// What a site announced that streams the request through.
    fn announced<B: RequestBody>(
        &self,
        role: &PrimaryRole,
        action: &Action,
        asked: &Asked<B>,
    ) -> Result<Option<Announced>, ApiError> {
        let (Some(ticket), Some(usage)) = (asked.headers.get(ANNOUNCED), action.ticket_use()) else {
            return Ok(None);
        };
        let ticket = ticket.to_str().map_err(|_| ApiError::Header("Outport-Intent"))?;
        self.open(role, ticket, &usage, action).map(|opened| Announced::of(&opened, role))
    }

    fn open(
        &self,
        role: &PrimaryRole,
        ticket: &str,
        usage: &TicketUse,
        action: &Action,
    ) -> Result<TicketContents, ApiError> {
        role.tickets.open(ticket, usage, self.clock.now()).map_err(|error| {
            tracing::info!(action = action.name(), %error, "ticket refused");
            ApiError::Denied("the ticket is not valid for this request or has expired")
        })
    }

    /// The right to act on an upload: by its state in the query, else by a token that may push.
    pub(super) fn upload_right<B: RequestBody>(
        &self,
        push: &PushService,
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
                push.upload_right(&caller, repo, *id)
                    .map_err(|error| explain_denial(ApiError::Push(error), action, Proof::Header))
            }
        }
    }
}

impl Announced {
    fn of(opened: &TicketContents, role: &PrimaryRole) -> Option<Self> {
        let intent = IntentId { site: opened.site.clone(), number: opened.intent? };
        Some(Self { intent, until: opened.expires.plus(role.write_time_max) })
    }
}

/// Whether the caller's token holds all of `scopes`.
pub(super) fn grants_all(caller: &Caller, scopes: &[Scope]) -> bool {
    scopes.iter().all(|scope| match scope {
        Scope::Repository { name, actions } => {
            actions.iter().all(|action| caller.access.allows(name, action))
        }
        Scope::Catalog => caller.access.allows_catalog(),
    })
}

/// A token that grants too little: a challenge where the client can answer one.
pub(super) fn insufficient(action: &Action, by: Proof) -> ApiError {
    match by {
        Proof::Header => {
            ApiError::Unauthorized { scopes: action.scopes(), error: Some(ChallengeError::InsufficientScope) }
        }
        Proof::Ticket => ApiError::Denied("the token does not allow this"),
    }
}

/// A service's "denied" as a challenge, where the client can answer one: clients keep tokens of
/// earlier requests and expect to be asked for a broader one.
pub(super) fn explain_denial(error: ApiError, action: &Action, by: Proof) -> ApiError {
    match error {
        ApiError::Pull(PullError::Denied) | ApiError::Push(PushError::Denied) => insufficient(action, by),
        other => other,
    }
}
