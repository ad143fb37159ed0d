//! Wires who lets callers in at a primary, and what its sites are told of it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use outport_proto::frame::{AuthMode, Keys};

use super::{
    StartError,
    delegation::{self, Delegation},
    issuer::{IssuerSource, KeysAlarm},
};
use crate::{
    admin::Revoke,
    auth::{AccessRules, Authenticator, Leeway, PrimaryKeys, TokenLives, TokenService, Users, Verifier},
    clock::SharedClock,
    config,
    fetch::backend::Backend,
    http::TOKEN_PATH,
    log::Log,
    primary::source::KeysOf,
    shutdown::Shutdown,
    watch,
};

/// Who lets callers in at a primary.
pub(super) struct Callers {
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) told: Told,
    /// Absolute URL of the token endpoint; the primary's own address where there is none.
    pub(super) realm: String,
    /// The audience of tokens; empty where there are none.
    pub(super) service: String,
    /// Issues tokens, if that is done here.
    pub(super) tokens: Option<Arc<TokenService>>,
    /// Who may do what, if that is known here.
    pub(super) rules: Option<AccessRules>,
    /// What a person should know of the keys of tokens, where they are fetched from elsewhere.
    pub(super) alarm: KeysAlarm,
    /// Makes void what is remembered of callers, if anything is.
    pub(super) revoke: Option<Revoke>,
}

impl Callers {
    /// As configured; `registry` is the one behind the primary, if there is one. Whatever has to be looked
    /// after is, until shutdown.
    pub(super) async fn new(
        config: &config::Primary,
        registry: Option<Backend>,
        keys: &Arc<PrimaryKeys>,
        clock: &SharedClock,
        log: &Log,
        shutdown: &Shutdown,
    ) -> Result<Self, StartError> {
        let public_url = config.registry.public_url.as_str();
        let told = |mode, public_pull| Told::new(Arc::clone(keys), mode, public_pull, Arc::clone(clock));
        let by = |told, realm: String, service: String| {
            let verifier = Verifier::new(Arc::clone(clock), Leeway::default());
            let authenticator = Arc::new(Authenticator::new(verifier, None));
            Self {
                authenticator,
                told,
                realm,
                service,
                tokens: None,
                rules: None,
                alarm: KeysAlarm::default(),
                revoke: None,
            }
        };
        let callers = match &config.auth {
            config::Auth::Outport(own) => {
                let rules = own.rules().map_err(|error| StartError::new("read auth.access", error))?;
                let tokens = token_service(own, keys, rules.clone(), clock, log)?;
                let told = told(keys.own_mode(&own.issuer), rules.public_pull());
                let callers = by(told, format!("{public_url}{TOKEN_PATH}"), own.service.clone());
                Self { tokens: Some(Arc::new(tokens)), rules: Some(rules), ..callers }
            }
            config::Auth::Token(token) => {
                let (issuer, mode) = IssuerSource::open(token, &config.data_dir.join("keys"), clock).await?;
                let told = told(mode, token.public_pull.clone());
                let callers = by(told, token.realm.as_str().to_owned(), token.service.clone());
                let callers = Self { alarm: issuer.alarm(), ..callers };
                issuer.watch(&callers.authenticator, &callers.told, shutdown);
                callers
            }
            config::Auth::Delegated(delegated) => {
                let registry = registry.ok_or_else(|| {
                    StartError::new("use auth.mode", "there is no registry behind this primary to ask")
                })?;
                let url = config.registry.upstream.as_ref().map(|url| url.as_str()).unwrap_or_default();
                let delegation = Delegation::open(registry, url, delegated, &config.data_dir, clock)?;
                let delegation = Arc::new(delegation);
                let told = told(delegation.mode(), delegated.public_pull.clone());
                let authenticator = delegation.authenticator(&told, clock)?;
                shutdown.spawn(delegation::learn_challenge(Arc::clone(&authenticator), shutdown.clone()));
                let revoke: Revoke = Arc::new(move || delegation.revoke());
                let callers = by(told, public_url.to_owned(), String::new());
                Self { authenticator, revoke: Some(revoke), ..callers }
            }
            config::Auth::Anonymous => {
                by(told(AuthMode::Anonymous, Vec::new()), public_url.to_owned(), String::new())
            }
        };
        let learnt = callers.authenticator.learn(&callers.told.mode(), &callers.service);
        learnt.map_err(|error| StartError::new("use the keys of tokens", error))?;
        Ok(callers)
    }
}

/// What sites are told of how callers prove what they may do. Cloning gives another handle.
#[derive(Clone)]
pub(super) struct Told(Arc<TellingState>);

struct TellingState {
    keys: Arc<PrimaryKeys>,
    now: ArcSwap<Telling>,
    public_pull: Vec<String>,
    clock: SharedClock,
    changed: watch::Sender<u64>,
}

struct Telling {
    mode: AuthMode,
    /// Counts up with every change.
    version: u64,
}

impl Told {
    fn new(keys: Arc<PrimaryKeys>, mode: AuthMode, public_pull: Vec<String>, clock: SharedClock) -> Self {
        let changed = watch::Sender::new(keys.generation());
        let now = ArcSwap::from_pointee(Telling { mode, version: 0 });
        Self(Arc::new(TellingState { keys, now, public_pull, clock, changed }))
    }

    /// What they are told now.
    pub(super) fn mode(&self) -> AuthMode {
        self.0.now.load().mode.clone()
    }

    /// Tells them something else from now on.
    pub(super) fn tell(&self, mode: AuthMode) {
        self.0.now.rcu(|now| Telling { mode: mode.clone(), version: now.version + 1 });
        self.moved();
    }

    /// The primary's own keys changed, or what sites are told.
    pub(super) fn moved(&self) {
        self.0.changed.send_replace(self.0.keys.generation() + self.0.now.load().version);
    }

    /// Moves when sites must be told again.
    pub(super) fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// What a site is told.
    pub(super) fn keys_of(&self) -> KeysOf {
        let told = Arc::clone(&self.0);
        Arc::new(move |site| {
            let telling = told.now.load();
            let keys = told.keys.keys_of(site, telling.mode.clone(), told.clock.now());
            let keys = keys.map_err(|error| error.to_string())?;
            let generation = keys.generation + telling.version;
            Ok(Keys { public_pull: told.public_pull.clone(), generation, ..keys })
        })
    }
}

fn token_service(
    config: &config::OutportAuth,
    keys: &PrimaryKeys,
    rules: AccessRules,
    clock: &SharedClock,
    log: &Log,
) -> Result<TokenService, StartError> {
    let users = Users::open(&config.users_file, Arc::clone(clock))
        .map_err(|error| StartError::new("read auth.users_file", error))?;
    let lives = TokenLives {
        access: std::time::Duration::from_secs(config.token_lifetime_seconds.into()),
        ..TokenLives::default()
    };
    let log = log.clone();
    TokenService::new(
        keys,
        &config.issuer,
        &config.service,
        lives,
        rules,
        Some(Arc::new(users)),
        Arc::clone(clock),
        Arc::new(move || log.head()),
    )
    .map_err(|error| StartError::new("start the token service", error))
}
