//! Who the gateway is at the registry, and the tokens it gets there.

use std::{
    fmt,
    num::NonZeroUsize,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Full;
use lru::LruCache;
use outport_proto::RepoName;
use serde::Deserialize;
use tokio::time::Instant;

use super::{Backend, BackendError, Challenge};
use crate::blocking;

/// A token that names no life has this one, by the token specification.
const LIFE_DEFAULT: Duration = Duration::from_secs(60);
/// Tokens are renewed this long before they end.
const LIFE_MARGIN: Duration = Duration::from_secs(15);
/// And asked for again after this at the latest.
const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);
const TOKENS_MAX: NonZeroUsize = NonZeroUsize::new(1000).unwrap();
const TOKEN_ANSWER_BYTES_MAX: usize = 32 * 1024;
/// A password or token in a file, at most.
const SECRET_BYTES_MAX: usize = 64 * 1024;

/// Who the gateway is at the registry.
#[derive(Clone, Debug, Default)]
pub enum Credentials {
    /// Nobody.
    #[default]
    None,
    /// A user, who gets tokens where the registry wants them.
    User {
        /// Its name.
        name: String,
        /// Its password.
        password: Password,
    },
    /// The bearer of one token that somebody else renews.
    Token(Password),
}

/// Where a secret is read from, each time it is needed: it may be renewed meanwhile.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// A file; blanks and line ends around the secret do not count.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
}

impl Password {
    pub(super) async fn read(&self) -> Result<String, BackendError> {
        let this = self.clone();
        let read = blocking::spawn(move || match &this {
            Self::File(path) => {
                std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
            }
            Self::Environment(name) => std::env::var(name).map_err(|error| format!("{name}: {error}")),
        });
        let text = read.await.map_err(|error| error.to_string()).flatten();
        let text = text.map_err(BackendError::Credentials)?;
        match text.trim() {
            "" => Err(BackendError::Credentials(format!("{self:?} is empty"))),
            secret if secret.len() > SECRET_BYTES_MAX => {
                Err(BackendError::Credentials(format!("{self:?} is too long")))
            }
            secret => Ok(secret.to_owned()),
        }
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// The right that a request needs at the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs<'a> {
    /// None in particular.
    Nothing,
    /// To list repositories.
    Catalog,
    /// To read a repository.
    Pull(&'a RepoName),
    /// To write a repository, and to read another that a blob is mounted from.
    Push(&'a RepoName, Option<&'a RepoName>),
    /// To delete in a repository.
    Delete(&'a RepoName),
}

impl Needs<'_> {
    /// As scopes of a token, separated by blanks.
    fn scopes(self) -> String {
        match self {
            Self::Nothing => String::new(),
            Self::Catalog => "registry:catalog:*".to_owned(),
            Self::Pull(repo) => format!("repository:{repo}:pull"),
            Self::Push(repo, None) => format!("repository:{repo}:pull,push"),
            Self::Push(repo, Some(from)) => format!("repository:{repo}:pull,push repository:{from}:pull"),
            // Some registries delete by the right to push.
            Self::Delete(repo) => format!("repository:{repo}:pull,push,delete"),
        }
    }
}

/// Tokens in use, by their scopes, and what the registry asks for.
pub(super) struct Tokens {
    credentials: Credentials,
    challenge: ArcSwapOption<Challenge>,
    tokens: Mutex<LruCache<String, Token>>,
}

#[derive(Clone)]
struct Token {
    value: HeaderValue,
    until: Instant,
}

impl Tokens {
    pub(super) fn new(credentials: Credentials) -> Self {
        let tokens = Mutex::new(LruCache::new(TOKENS_MAX));
        Self { credentials, challenge: ArcSwapOption::empty(), tokens }
    }

    fn kept(&self, scopes: &str) -> Option<HeaderValue> {
        let mut tokens = self.lock();
        tokens.get(scopes).filter(|token| Instant::now() < token.until).map(|token| token.value.clone())
    }

    fn keep(&self, scopes: String, token: Token) {
        self.lock().put(scopes, token);
    }

    fn forget(&self, scopes: &str) {
        self.lock().pop(scopes);
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<String, Token>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend {
    /// The `Authorization` that the gateway sends for a request that needs this; `None` when nothing
    /// is known to be wanted.
    ///
    /// # Errors
    /// When a token is wanted and cannot be had, or credentials cannot be read.
    pub async fn authorization(&self, needs: Needs<'_>) -> Result<Option<HeaderValue>, BackendError> {
        let tokens = &self.shared.tokens;
        if let Credentials::Token(token) = &tokens.credentials {
            return secret_header("Bearer", &token.read().await?).map(Some);
        }
        if tokens.challenge.load().is_none() && !self.shared.introduced.load(Relaxed) {
            self.introduce().await?;
        }
        let Some(challenge) = tokens.challenge.load_full() else { return Ok(None) };
        match &*challenge {
            Challenge::Basic { .. } => self.basic().await,
            Challenge::Bearer { realm, service } => {
                let scopes = needs.scopes();
                match tokens.kept(&scopes) {
                    Some(token) => Ok(Some(token)),
                    None => self.token(realm, service, scopes).await.map(Some),
                }
            }
        }
    }

    /// Learns what the registry wants to be told, before anything is sent to it that cannot be sent twice.
    async fn introduce(&self) -> Result<(), BackendError> {
        if let Some(challenge) = self.challenge().await? {
            self.shared.tokens.challenge.store(Some(challenge.into()));
        }
        self.shared.introduced.store(true, Relaxed);
        Ok(())
    }

    /// What the registry wants to be told by somebody of whom it knows nothing; `None` when nothing.
    ///
    /// # Errors
    /// When there was no answer, or none that makes sense.
    pub async fn challenge(&self) -> Result<Option<Challenge>, BackendError> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = self.uri("/v2/")?;
        let response = self.shared.client.send(request, self.shared.options.answer_timeout).await?;
        match response.status() {
            StatusCode::OK => Ok(None),
            StatusCode::UNAUTHORIZED => match Challenge::of(response.headers()) {
                Some(challenge) => Ok(Some(challenge)),
                None => Err(BackendError::Refused { status: 401 }),
            },
            status => Err(BackendError::Status { status: status.as_u16() }),
        }
    }

    /// The `Authorization` that `challenge` asks for; `None` when there is nothing more to say.
    pub(super) async fn answer_challenge(
        &self,
        challenge: Challenge,
        needs: Needs<'_>,
    ) -> Result<Option<HeaderValue>, BackendError> {
        let tokens = &self.shared.tokens;
        if matches!(tokens.credentials, Credentials::Token(_)) {
            return Ok(None);
        }
        let is_new = tokens.challenge.load().as_deref() != Some(&challenge);
        if is_new {
            tokens.challenge.store(Some(challenge.clone().into()));
        }
        match &challenge {
            // The password was not taken.
            Challenge::Basic { .. } if !is_new => Ok(None),
            Challenge::Basic { .. } => self.basic().await,
            Challenge::Bearer { realm, service } => {
                self.token(realm, service, needs.scopes()).await.map(Some)
            }
        }
    }

    async fn basic(&self) -> Result<Option<HeaderValue>, BackendError> {
        let Credentials::User { name, password } = &self.shared.tokens.credentials else { return Ok(None) };
        let pair = STANDARD.encode(format!("{name}:{}", password.read().await?));
        secret_header("Basic", &pair).map(Some)
    }

    /// A request with what needs this was answered 401: what was sent is not sent again.
    pub fn rejected(&self, needs: Needs<'_>, headers: &HeaderMap) {
        let tokens = &self.shared.tokens;
        tokens.forget(&needs.scopes());
        if let Some(challenge) = Challenge::of(headers) {
            tokens.challenge.store(Some(challenge.into()));
        }
    }

    /// Whether the gateway's credentials may be sent to a token endpoint: the registry's own, or the one
    /// that is configured.
    fn is_trusted(&self, realm: &str) -> bool {
        let options = &self.shared.options;
        if let Some(configured) = &options.token_realm {
            return configured == realm;
        }
        let Ok(uri) = realm.parse::<Uri>() else { return false };
        uri.authority() == options.url.authority()
            && (uri.scheme() == options.url.scheme() || uri.scheme_str() == Some("https"))
    }

    /// Asks for a token; without credentials for an anonymous one.
    async fn token(&self, realm: &str, service: &str, scopes: String) -> Result<HeaderValue, BackendError> {
        if !self.is_trusted(realm) {
            return Err(BackendError::Realm(realm.to_owned()));
        }
        let uri = token_uri(realm, service, &scopes);
        let uri: Uri = uri.parse().map_err(|_| BackendError::Protocol(format!("token realm {realm}")))?;
        let mut request = Request::new(Full::default());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = uri;
        if let Some(basic) = self.basic().await? {
            request.headers_mut().insert(header::AUTHORIZATION, basic);
        }
        let asked = Instant::now();
        let response = self.shared.client.send(request, self.shared.options.answer_timeout).await?;
        if response.status() != StatusCode::OK {
            return Err(match self.no(response).await {
                Ok(()) => BackendError::Status { status: 404 },
                Err(error) => error,
            });
        }
        let body = self.whole(response.into_body(), TOKEN_ANSWER_BYTES_MAX).await?;
        let issued: Issued =
            serde_json::from_slice(&body).map_err(|_| BackendError::Protocol("no token".to_owned()))?;
        let token = issued.token.or(issued.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| BackendError::Protocol("an answer without a token".to_owned()))?;
        let value = secret_header("Bearer", &token)?;
        let life = issued.expires_in.map_or(LIFE_DEFAULT, Duration::from_secs).min(LIFE_MAX);
        let until = asked + life.saturating_sub(LIFE_MARGIN.min(life / 2));
        self.shared.tokens.keep(scopes, Token { value: value.clone(), until });
        Ok(value)
    }
}

fn token_uri(realm: &str, service: &str, scopes: &str) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    if !service.is_empty() {
        query.append_pair("service", service);
    }
    for scope in scopes.split(' ').filter(|scope| !scope.is_empty()) {
        query.append_pair("scope", scope);
    }
    let joint = if realm.contains('?') { '&' } else { '?' };
    format!("{realm}{joint}{}", query.finish())
}

/// What a token endpoint answers.
#[derive(Deserialize)]
struct Issued {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

fn secret_header(scheme: &str, secret: &str) -> Result<HeaderValue, BackendError> {
    let value = HeaderValue::try_from(format!("{scheme} {secret}"));
    let mut value =
        value.map_err(|_| BackendError::Credentials("they cannot stand in a header".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}
