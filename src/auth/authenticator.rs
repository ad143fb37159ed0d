//! Who a caller is and what they may do, in whatever way the primary is configured to tell.

use std::{
    borrow::Cow,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use outport_proto::{
    Timestamp,
    frame::{AuthMode, Question, RegistryChallenge, Verdict},
};
use prometheus_client::registry::Registry;
use tokio::{sync::Mutex, time::Instant};

use super::{
    Access, AccessRules, Action, Actions, Authorization, Caller, ChallengeError, Scope, Secret, TokenError,
    Verifier,
    delegated::{JudgeError, Judged, Remembering, Unjudged, Verdicts},
    verifier::KeySetError,
};

/// How long it takes at least from one look for unknown keys to the next.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Characters of a key's name that are passed on.
const KEY_NAME_MAX: usize = 128;

/// Looks for a key that a token names and nobody knows, where keys come from.
pub trait FindKey: Send + Sync + 'static {
    /// Returns once the verifier trusts what there is now.
    ///
    /// # Errors
    /// When that could not be seen; for people.
    fn find<'a>(&'a self, unknown: &'a str) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;
}

/// Tells who callers are. Share it in an `Arc`.
pub struct Authenticator {
    mode: ArcSwap<Mode>,
    verifier: Verifier,
    verdicts: Option<Verdicts>,
    find_key: OnceLock<Arc<dyn FindKey>>,
    /// When keys were last looked for, and what came in between.
    looked: Mutex<Option<(Instant, Result<(), String>)>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Mode {
    /// By tokens.
    Tokens { foreign: bool },
    /// By the registry.
    Delegated { challenge: Option<RegistryChallenge> },
    /// Not at all.
    Anonymous,
}

/// What somebody wants, as it is put to a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The question.
    pub question: Question,
    /// Another one, if to the first the answer is that there is no such thing, or that the credentials do
    /// not reach that far.
    pub instead: Option<Question>,
    /// Whether the answer may be for somebody who pushes: nothing but tokens says so.
    pub perhaps_push: bool,
}

/// What a client must be told to come with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Demand {
    /// A token of the service that the site's addresses name.
    Token,
    /// What the registry demands.
    Registry(RegistryChallenge),
    /// Nothing that anybody knows of.
    Unknown,
}

impl Authenticator {
    /// Knows nothing yet: tokens are refused with [`Refused::Unavailable`]. `verdicts` are of the registry,
    /// if there is one.
    pub fn new(verifier: Verifier, verdicts: Option<Verdicts>) -> Self {
        let mode = ArcSwap::from_pointee(Mode::Tokens { foreign: false });
        Self { mode, verifier, verdicts, find_key: OnceLock::new(), looked: Mutex::default() }
    }

    /// Registers what is counted in `registry`, which adds the prefix.
    pub fn register(&self, registry: &mut Registry) {
        if let Some(verdicts) = &self.verdicts {
            verdicts.register(registry);
        }
    }

    /// Looks so for keys that tokens of other issuers name and nobody knows. The first to be set stays.
    pub fn find_keys_by(&self, find_key: Arc<dyn FindKey>) {
        let _ = self.find_key.set(find_key);
    }

    /// Lets callers in so from now on. `service` is the audience of tokens.
    ///
    /// # Errors
    /// When the keys cannot be used: nothing changes then.
    pub fn learn(&self, auth: &AuthMode, service: &str) -> Result<(), KeySetError> {
        let mode = match auth {
            AuthMode::Outport { jwks, issuer } => {
                self.verifier.set_keys(jwks, issuer, service)?;
                Mode::Tokens { foreign: false }
            }
            AuthMode::Token { jwks, issuer, roots } => {
                self.verifier.set_foreign_keys(jwks, roots, issuer, service)?;
                Mode::Tokens { foreign: true }
            }
            AuthMode::Delegated { challenge, allow_seconds, deny_seconds, cached_max, revoked } => {
                if let Some(verdicts) = &self.verdicts {
                    let remembering = Remembering {
                        allow: Duration::from_secs((*allow_seconds).into()),
                        deny: Duration::from_secs((*deny_seconds).into()),
                        answers_max: usize::try_from(*cached_max).unwrap_or(usize::MAX),
                    };
                    verdicts.remember(remembering, *revoked);
                }
                Mode::Delegated { challenge: challenge.clone() }
            }
            AuthMode::Anonymous => Mode::Anonymous,
        };
        if !matches!(mode, Mode::Tokens { .. }) {
            self.verifier.forget_keys();
        }
        self.mode.store(Arc::new(mode));
        Ok(())
    }

    /// Lets callers without credentials do from now on what `rules` let anybody do, and no more, while
    /// the primary cannot be reached.
    pub fn set_public(&self, rules: AccessRules) {
        self.verifier.set_public(rules);
    }

    /// Someone without credentials, with what of `scopes` is for anybody; `None` while that is not known.
    pub fn anybody(&self, scopes: &[Scope]) -> Option<Caller> {
        self.verifier.anybody(scopes)
    }

    /// What clients without credentials are to come with.
    pub fn demand(&self) -> Demand {
        match &**self.mode.load() {
            Mode::Delegated { challenge } => challenge.clone().map_or(Demand::Unknown, Demand::Registry),
            Mode::Tokens { .. } | Mode::Anonymous => Demand::Token,
        }
    }

    /// Whether tokens come from somewhere else, if there are any.
    pub fn is_issued_elsewhere(&self) -> bool {
        !matches!(**self.mode.load(), Mode::Tokens { foreign: false })
    }

    /// Whether it is the registry that says what callers may write.
    pub fn leaves_writes_to_registry(&self) -> bool {
        matches!(**self.mode.load(), Mode::Delegated { .. } | Mode::Anonymous)
    }

    /// Who sends this `Authorization`, and what of `wanted` they may do. Tokens say it themselves.
    pub async fn caller(
        &self,
        authorization: Option<&str>,
        wanted: impl FnOnce() -> Wanted,
    ) -> Result<Caller, Refused> {
        let foreign = match &**self.mode.load() {
            Mode::Tokens { foreign } => Some(*foreign),
            Mode::Delegated { .. } => None,
            Mode::Anonymous => {
                let wanted = wanted();
                return Ok(Caller::anonymous(Arc::new(access(&wanted, &wanted.question))));
            }
        };
        match foreign.map(|foreign| (foreign, self.by_token(authorization))) {
            None => Box::pin(self.by_verdict(authorization, wanted())).await,
            Some((true, Err(Refusal::Key(unknown)))) => {
                Box::pin(self.by_key_found(authorization, &unknown)).await
            }
            Some((_, by_token)) => Ok(by_token?),
        }
    }

    /// Who sends this `Authorization` to write to the repository of `question`. Where the registry says
    /// who may, only those are refused here that it does not know.
    pub async fn writer(
        &self,
        authorization: Option<&str>,
        question: impl FnOnce() -> Question,
    ) -> Result<Caller, Refused> {
        if !self.leaves_writes_to_registry() {
            let wanted = || Wanted { question: question(), instead: None, perhaps_push: true };
            return self.caller(authorization, wanted).await;
        }
        if matches!(**self.mode.load(), Mode::Delegated { .. }) {
            let judged = self.judged(authorization, &question()).await?;
            if judged.verdict == Verdict::Unauthorized {
                return Err(refused(Verdict::Unauthorized, authorization.is_some()));
            }
        }
        Ok(unlimited(authorization))
    }

    /// Who sends this `Authorization` to write where the registry will see it. Their token says what they
    /// may; where none does, the registry says it itself, and is asked with the `question` before it gets to
    /// see a request with credentials that it never said yes to.
    pub async fn writer_at_registry(
        &self,
        authorization: Option<&str>,
        question: impl FnOnce() -> Question,
    ) -> Result<Caller, Refused> {
        if self.leaves_writes_to_registry() {
            let credentials = authorization.map(Secret::from);
            let is_known = |verdicts: &Verdicts| verdicts.knows(credentials.as_ref());
            let is_stranger = matches!(**self.mode.load(), Mode::Delegated { .. })
                && !self.verdicts.as_ref().is_none_or(is_known);
            if is_stranger && self.judged(authorization, &question()).await?.verdict == Verdict::Unauthorized
            {
                return Err(refused(Verdict::Unauthorized, true));
            }
            return Ok(unlimited(authorization));
        }
        let wanted = || Wanted { question: Question::Ping, instead: None, perhaps_push: true };
        self.caller(authorization, wanted).await
    }

    /// What the registry says now: for a site, which remembers it in its turn.
    ///
    /// # Errors
    /// When it says neither yes nor no, or there is none.
    pub async fn said_now(
        &self,
        authorization: Option<&Secret>,
        question: &Question,
    ) -> Result<Verdict, Unjudged> {
        let verdicts = self.verdicts.as_ref();
        let verdicts = verdicts.ok_or_else(|| JudgeError("there is no registry to ask".to_owned()))?;
        verdicts.now(authorization, question).await.map(|judged| judged.verdict)
    }

    fn by_token(&self, authorization: Option<&str>) -> Result<Caller, Refusal> {
        let unauthorized = |error| Refusal::Other(Refused::Unauthorized(error));
        let invalid = Some(ChallengeError::InvalidToken);
        match authorization.map(Authorization::parse) {
            Some(Ok(Authorization::Bearer(token))) => {
                self.verifier.verify(token).map_err(|error| match error {
                    TokenError::NoKeys => Refusal::Other(Refused::Unavailable(
                        "the keys of tokens are not known here yet, or were fetched too long ago to be believed"
                            .into(),
                    )),
                    TokenError::UnknownKey => Refusal::Key(name_of_key(token)),
                    error => {
                        tracing::debug!(%error, "token refused");
                        unauthorized(invalid)
                    }
                })
            }
            // Passwords go to the token endpoint.
            None | Some(Ok(Authorization::Basic { .. })) => Err(unauthorized(None)),
            Some(Err(_)) => Err(unauthorized(invalid)),
        }
    }

    /// Looks for a key that a token names, unless that was done a moment ago.
    ///
    /// # Errors
    /// When where keys come from could not be seen; for people.
    pub async fn find_key(&self, unknown: &str) -> Result<(), String> {
        let Some(find_key) = self.find_key.get() else { return Ok(()) };
        let mut looked = self.looked.lock().await;
        if let Some((when, found)) = &*looked
            && when.elapsed() < LOOK_INTERVAL
        {
            return found.clone();
        }
        let found = find_key.find(unknown).await;
        *looked = Some((Instant::now(), found.clone()));
        found
    }

    async fn by_key_found(&self, authorization: Option<&str>, unknown: &str) -> Result<Caller, Refused> {
        let found = self.find_key(unknown).await;
        match (self.by_token(authorization), found) {
            // It may be a new one: that is not for us to deny.
            (Err(Refusal::Key(_)), Err(error)) => {
                let reason =
                    format!("the token's key is not known here, and was looked for in vain: {error}");
                Err(Refused::Unavailable(reason.into()))
            }
            (by_token, _) => Ok(by_token?),
        }
    }

    async fn by_verdict(&self, authorization: Option<&str>, wanted: Wanted) -> Result<Caller, Refused> {
        let mut question = &wanted.question;
        let mut judged = match self.judged(authorization, question).await {
            // Whoever only wants to hear how to come gets to hear it. What was said of them is remembered,
            // or not, when they come back.
            Err(Refused::Unavailable(_))
                if authorization.is_none()
                    && *question == Question::Ping
                    && matches!(self.demand(), Demand::Registry(_)) =>
            {
                return Err(Refused::Unauthorized(None));
            }
            judged => judged?,
        };
        if let (Verdict::Unknown | Verdict::Denied, Some(instead)) = (judged.verdict, &wanted.instead) {
            let of_instead = self.judged(authorization, instead).await?;
            // That it is not there either does not make a denial less of one.
            if (judged.verdict, of_instead.verdict) != (Verdict::Denied, Verdict::Unknown) {
                (question, judged) = (instead, of_instead);
            }
        }
        if judged.verdict != Verdict::Yes {
            return Err(refused(judged.verdict, authorization.is_some()));
        }
        let access = Arc::new(access(&wanted, question));
        Ok(match authorization.map(Authorization::parse) {
            None => Caller::anonymous(access),
            Some(Ok(Authorization::Basic { user, .. })) => {
                Caller { subject: user.into(), anonymous: false, ..Caller::anonymous(access) }
            }
            // A token was issued before it was first seen, which is all that freshness needs to know.
            Some(_) => Caller {
                issued_at: Some(Timestamp::from_secs(judged.asked.as_secs())),
                anonymous: false,
                ..Caller::anonymous(access)
            },
        })
    }

    async fn judged(&self, authorization: Option<&str>, question: &Question) -> Result<Judged, Refused> {
        let Some(verdicts) = &self.verdicts else {
            return Err(Refused::Unavailable("there is no registry to ask who may do this".into()));
        };
        let authorization = authorization.map(Secret::from);
        verdicts.of(authorization.as_ref(), question).await.map_err(|error| match error {
            Unjudged::TooMany { retry_after } => {
                tracing::debug!("a caller is not asked about: too many wrong credentials");
                Refused::TooMany { retry_after }
            }
            Unjudged::Unsaid(error) => {
                tracing::info!(%error, "the registry does not say whether a caller may");
                Refused::Unavailable(
                    format!("the registry was asked whether you may, without an answer: {error}").into(),
                )
            }
        })
    }
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticator").field("mode", &self.mode.load()).finish_non_exhaustive()
    }
}

/// A caller whom nothing here limits.
fn unlimited(authorization: Option<&str>) -> Caller {
    let caller = Caller::anonymous(Arc::new(Access::unlimited()));
    match authorization.map(Authorization::parse) {
        Some(Ok(Authorization::Basic { user, .. })) => {
            Caller { subject: user.into(), anonymous: false, ..caller }
        }
        Some(_) => Caller { anonymous: false, ..caller },
        None => caller,
    }
}

/// What a yes to `question` lets somebody do.
fn access(wanted: &Wanted, question: &Question) -> Access {
    let actions = if wanted.perhaps_push { Actions::PULL_PUSH } else { Action::Pull.into() };
    let scope = match question {
        Question::Ping => return Access::none(),
        Question::Catalog => Scope::Catalog,
        Question::Repository(repo) | Question::Manifest { repo, .. } | Question::Blob { repo, .. } => {
            Scope::repository(repo, actions)
        }
    };
    std::iter::once(scope).collect()
}

fn refused(verdict: Verdict, had_credentials: bool) -> Refused {
    match verdict {
        Verdict::Denied => Refused::Denied,
        Verdict::Unknown => Refused::Unknown,
        Verdict::Unauthorized | Verdict::Yes => {
            Refused::Unauthorized(had_credentials.then_some(ChallengeError::InvalidToken))
        }
    }
}

/// What a token calls its key; for people, and no longer than they care to read.
fn name_of_key(token: &str) -> String {
    let name = jsonwebtoken::decode_header(token).ok().and_then(|header| header.kid);
    name.unwrap_or_default().chars().take(KEY_NAME_MAX).collect()
}

enum Refusal {
    Key(String),
    Other(Refused),
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Key(name) => {
                tracing::debug!(kid = name, "token refused: its key is not known");
                Self::Unauthorized(Some(ChallengeError::InvalidToken))
            }
            Refusal::Other(refused) => refused,
        }
    }
}

/// Why somebody is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Credentials are missing, or wrong in the way that is given.
    #[error("authentication required")]
    Unauthorized(Option<ChallengeError>),
    /// The credentials are good and do not reach that far.
    #[error("the registry denies this to these credentials")]
    Denied,
    /// There is no such thing, as far as the registry tells these credentials.
    #[error("the registry knows no such thing")]
    Unknown,
    /// Nobody is asked about these credentials now: too many wrong ones were tried.
    #[error("too many callers come with credentials that the registry has not let in")]
    TooMany {
        /// When to come again.
        retry_after: Duration,
    },
    /// It cannot be told now; for people.
    #[error("{0}")]
    Unavailable(Cow<'static, str>),
}

#[cfg(test)]
mod tests;
