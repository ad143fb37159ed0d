//! Who asks: by token, by ticket, by an upload's state.

use http::{HeaderMap, HeaderValue, Method, header};
use outport_proto::{IntentId, Reference, RepoName, Timestamp, frame::Question, route::UploadId};

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
        Caller, ChallengeError, Refused, Scope, Secret, TicketContents, TicketUse, Wanted,
        ticket::TICKET_PARAMETER, upload_state::UPLOAD_STATE_PARAMETER,
    },
    registry::{PullError, PushError, PushService, UploadRight},
    telemetry::trace,
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
    /// Who reads, by the `Authorization` header; at a site on its own, anybody.
    pub(super) async fn caller(
        &self,
        headers: &HeaderMap,
        method: &Method,
        action: &Action,
    ) -> Result<Caller, ApiError> {
        let authorization = authorization_of(headers, action)?;
        let wanted = || wanted(action, *method == Method::HEAD);
        let by_header = trace::part("authorise", self.authenticator.caller(authorization, wanted)).await;
        by_header.map_err(|refused| explain(refused, action)).or_else(|refusal| match refusal {
            ApiError::Unauthorized { .. } | ApiError::Unavailable(_) => self.anybody(action).ok_or(refusal),
            other => Err(other),
        })
    }

    /// Who writes through this site, by the `Authorization` header. It holds all that the request needs,
    /// or the registry will say that it does not.
    pub(super) async fn writer(&self, headers: &HeaderMap, action: &Action) -> Result<Caller, ApiError> {
        let authorization = authorization_of(headers, action)?;
        let question = || wanted(action, false).question;
        let caller = trace::part("authorise", self.authenticator.writer(authorization, question)).await;
        let caller = caller.map_err(|refused| explain(refused, action))?;
        if !grants_all(&caller, &action.scopes()) {
            return Err(insufficient(action, Proof::Header));
        }
        Ok(caller)
    }

    /// Who writes at the primary, by a ticket if there is one, else by the header. A bad ticket is never
    /// answered with a challenge: several clients would quietly go on as nobody.
    pub(super) async fn proven<B: RequestBody>(
        &self,
        role: &PrimaryRole,
        action: &Action,
        asked: &mut Asked<B>,
    ) -> Result<Proven, ApiError> {
        let Some(opened) = self.opened_ticket(role, action, asked)? else {
            let announced = self.announced(role, action, asked)?;
            let authorization = authorization_of(&asked.headers, action)?;
            let question = || wanted(action, false).question;
            let caller = self.authorised_at_registry(authorization, question).await;
            let caller = caller.map_err(|refused| explain(refused, action))?;
            let authorization = asked.headers.get(header::AUTHORIZATION).cloned().map(secret);
            return Ok(Proven { caller, by: Proof::Header, announced, authorization });
        };
        let announced = Announced::of(&opened, role);
        let authorization = opened.authorization.as_ref().map(Secret::expose);
        if authorization.is_none() && !self.authenticator.leaves_writes_to_registry() {
            return Err(ApiError::Denied("the ticket holds no credentials"));
        }
        let question = || wanted(action, false).question;
        let caller = self.authorised_at_registry(authorization, question).await;
        let caller = caller.map_err(|refused| match refused {
            Refused::Unavailable(reason) => ApiError::Unavailable(reason),
            Refused::TooMany { retry_after } => ApiError::TooManyWrong { retry_after },
            _ => ApiError::Denied("the credentials in the ticket are not valid"),
        })?;
        let authorization = authorization.and_then(|value| HeaderValue::try_from(value).ok().map(secret));
        Ok(Proven { caller, by: Proof::Ticket, announced, authorization })
    }

    async fn authorised_at_registry(
        &self,
        authorization: Option<&str>,
        question: impl FnOnce() -> Question,
    ) -> Result<Caller, Refused> {
        trace::part("authorise", self.authenticator.writer_at_registry(authorization, question)).await
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
    pub(super) async fn upload_right<B: RequestBody>(
        &self,
        push: &PushService,
        pushes: &Pushes<'_>,
        (repo, id): (&RepoName, &UploadId),
        action: &Action,
        asked: &mut Asked<B>,
    ) -> Result<UploadRight, ApiError> {
        let by_state =
            asked.query().get(UPLOAD_STATE_PARAMETER).map(|state| pushes.right_by_state(&state, repo, id));
        match by_state {
            Some(Ok(right)) => Ok(right),
            Some(Err(refusal)) if !asked.headers.contains_key(header::AUTHORIZATION) => Err(refusal),
            Some(Err(_)) | None => {
                let caller = self.caller(&asked.headers, &asked.method, action).await?;
                push.upload_right(&caller, repo, *id)
                    .map_err(|error| explain_denial(ApiError::Push(error), action, Proof::Header))
            }
        }
    }
}

/// No debug print shows it.
fn secret(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

impl Announced {
    fn of(opened: &TicketContents, role: &PrimaryRole) -> Option<Self> {
        let intent = IntentId { site: opened.site.clone(), number: opened.intent? };
        Some(Self { intent, until: opened.expires.plus(role.write_time_max) })
    }
}

fn authorization_of<'a>(headers: &'a HeaderMap, action: &Action) -> Result<Option<&'a str>, ApiError> {
    let value = headers.get(header::AUTHORIZATION).map(|value| value.to_str()).transpose();
    value.map_err(|_| ApiError::Unauthorized {
        scopes: action.scopes(),
        error: Some(ChallengeError::InvalidToken),
    })
}

/// What a registry is asked when it says who may. A repository in which nothing has a tag looks to some
/// as if it did not exist, and to list tags takes another right than to read at others: then it is asked for
/// the very thing.
fn wanted(action: &Action, is_head: bool) -> Wanted {
    let repository = |repo: &RepoName| Question::Repository(repo.clone());
    let (question, instead) = match action {
        Action::Ping | Action::Token(_) => (Question::Ping, None),
        Action::Catalog(_) => (Question::Catalog, None),
        Action::GetManifest { repo, reference } => {
            let manifest = Question::Manifest { repo: repo.clone(), reference: reference.clone() };
            (repository(repo), Some(manifest))
        }
        Action::GetBlob { repo, digest } => {
            (repository(repo), Some(Question::Blob { repo: repo.clone(), digest: *digest }))
        }
        Action::Referrers { repo, digest, .. } => {
            let reference = Reference::Digest(*digest);
            (repository(repo), Some(Question::Manifest { repo: repo.clone(), reference }))
        }
        Action::Tags { repo, .. }
        | Action::PutManifest { repo, .. }
        | Action::DeleteManifest { repo, .. }
        | Action::DeleteBlob { repo, .. }
        | Action::StartUpload { repo, .. }
        | Action::Upload { repo, .. } => (repository(repo), None),
    };
    // Clients look with HEAD whether there is anything left to push, and who pulls gets away with it.
    Wanted { question, instead, perhaps_push: is_head }
}

fn explain(refused: Refused, action: &Action) -> ApiError {
    match refused {
        Refused::Unauthorized(error) => ApiError::Unauthorized { scopes: action.scopes(), error },
        Refused::Denied => ApiError::Denied("the registry denies this to these credentials"),
        Refused::Unknown if matches!(action, Action::Referrers { .. }) => ApiError::NoReferrers,
        Refused::Unknown => ApiError::Pull(match action {
            Action::GetManifest { .. } => PullError::ManifestUnknown,
            Action::GetBlob { .. } => PullError::BlobUnknown,
            _ => PullError::NameUnknown,
        }),
        Refused::Unavailable(reason) => ApiError::Unavailable(reason),
        Refused::TooMany { retry_after } => ApiError::TooManyWrong { retry_after },
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
