//! Wires who lets callers in where that is the registry behind a primary: it is asked, its challenge is
//! learnt by the way, and what was remembered of it can be revoked. Both are kept on disk: a primary that
//! starts while the registry is away must not take from its sites what they know.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::Duration,
};

use http::HeaderValue;
use outport_proto::{
    Timestamp,
    frame::{AuthMode, Question, RegistryChallenge, Verdict},
};
use serde::{Deserialize, Serialize};

use super::{StartError, callers::Told, durable_write};
use crate::{
    auth::{Authenticator, Judge, JudgeError, Leeway, Secret, Verdicts, Verifier},
    clock::SharedClock,
    config::DelegatedAuth,
    fetch::{BoxFuture, backend::Backend},
    shutdown::Shutdown,
};

/// How often the registry is asked for its challenge, which may become another one.
const CHALLENGE_INTERVAL: Duration = Duration::from_secs(60);
/// The same until it has answered once: sites do not know yet what to ask clients for.
const FIRST_CHALLENGE_INTERVAL: Duration = Duration::from_secs(2);

/// Where what changes is kept, in the data directory.
const MEMORY_FILE: &str = "delegated.json";

/// The registry that says who may. Share it in an `Arc`.
pub(super) struct Delegation {
    backend: Backend,
    /// Its URL.
    registry: String,
    config: DelegatedAuth,
    clock: SharedClock,
    now: Mutex<Now>,
    /// Where that is kept.
    memory: PathBuf,
    listeners: OnceLock<(Weak<Authenticator>, Told)>,
}

/// What changes.
struct Now {
    challenge: Option<RegistryChallenge>,
    revoked: Timestamp,
}

/// The same as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// For which registry.
    registry: String,
    challenge: Option<KeptChallenge>,
    /// In microseconds since the Unix epoch.
    revoked: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "scheme", rename_all = "lowercase")]
enum KeptChallenge {
    Basic { realm: String },
    Bearer { realm: String, service: String },
}

impl Delegation {
    /// The registry at `url` as it was left, by what `data_dir` has of it. Where that is nothing, or of
    /// another registry, nothing that was remembered before is worth anything now.
    ///
    /// # Errors
    /// When what is there cannot be read, or nothing be kept there: nobody could say what was revoked.
    pub(super) fn open(
        backend: Backend,
        url: &str,
        config: &DelegatedAuth,
        data_dir: &Path,
        clock: &SharedClock,
    ) -> Result<Self, StartError> {
        let memory = data_dir.join(MEMORY_FILE);
        let kept = kept(&memory)?.filter(|kept| kept.registry == url);
        let now = match kept {
            Some(Kept { challenge, revoked, .. }) => Now {
                challenge: challenge.map(RegistryChallenge::from),
                revoked: Timestamp::from_micros(revoked),
            },
            None => Now { challenge: None, revoked: clock.now() },
        };
        let delegation = Self {
            backend,
            registry: url.to_owned(),
            config: config.clone(),
            clock: Arc::clone(clock),
            now: Mutex::new(now),
            memory,
            listeners: OnceLock::new(),
        };
        delegation.keep(&delegation.now.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(delegation)
    }

    fn keep(&self, now: &Now) -> Result<(), StartError> {
        let kept = Kept {
            registry: self.registry.clone(),
            challenge: now.challenge.clone().map(KeptChallenge::from),
            revoked: now.revoked.as_micros(),
        };
        let text = serde_json::to_string(&kept);
        let text = text.map_err(|error| StartError::new(format!("write {MEMORY_FILE}"), error))?;
        durable_write(&self.memory, &text)
    }

    /// What sites are told.
    pub(super) fn mode(&self) -> AuthMode {
        self.mode_of(&self.now.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn mode_of(&self, now: &Now) -> AuthMode {
        AuthMode::Delegated {
            challenge: now.challenge.clone(),
            allow_seconds: self.config.allow_seconds,
            deny_seconds: self.config.deny_seconds,
            cached_max: self.config.cached_max,
            revoked: now.revoked,
        }
    }

    /// Lets callers in by what the registry says; `told` hears of what changes.
    pub(super) fn authenticator(
        self: &Arc<Self>,
        told: &Told,
        clock: &SharedClock,
    ) -> Result<Arc<Authenticator>, StartError> {
        let verdicts = Verdicts::new(Arc::clone(self) as Arc<dyn Judge>, Arc::clone(clock))
            .map_err(|error| StartError::new("make a key for what is remembered of callers", error))?;
        let verifier = Verifier::new(Arc::clone(clock), Leeway::default());
        let authenticator = Arc::new(Authenticator::new(verifier, Some(verdicts)));
        let _ = self.listeners.set((Arc::downgrade(&authenticator), told.clone()));
        Ok(authenticator)
    }

    /// Makes everything that was remembered void, here and at all sites. Returns when that was.
    pub(super) fn revoke(&self) -> Timestamp {
        let revoked = self.change(|now| {
            // Another value each time, whatever the clock does.
            now.revoked = self.clock.now().max(Timestamp::from_micros(now.revoked.as_micros() + 1));
            Some(now.revoked)
        });
        tracing::info!("what the registry said of callers was revoked");
        revoked.unwrap_or_default()
    }

    /// What the registry demands; it says so with every refusal.
    fn learn(&self, challenge: RegistryChallenge) {
        self.change(|now| {
            let is_news = now.challenge.as_ref() != Some(&challenge);
            is_news.then(|| {
                tracing::info!(?challenge, "the registry's challenge");
                now.challenge = Some(challenge);
            })
        });
    }

    /// Tells everybody, unless there is nothing to be told.
    fn change<T>(&self, change: impl FnOnce(&mut Now) -> Option<T>) -> Option<T> {
        // Held until all have heard: nobody is told of an older state last.
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut now)?;
        // Before anybody hears of it: no start may take it back. It is small and rare, and goes on all the
        // same where it cannot be kept.
        if let Err(error) = self.keep(&now) {
            tracing::error!(%error, "what sites are told of the registry will be another thing after a restart");
        }
        let mode = self.mode_of(&now);
        if let Some((authenticator, told)) = self.listeners.get() {
            if let Some(authenticator) = authenticator.upgrade()
                && let Err(error) = authenticator.learn(&mode, "")
            {
                tracing::error!(%error, "callers are let in as before");
            }
            told.tell(mode);
        }
        Some(changed)
    }

    async fn said(&self, authorization: Option<&Secret>, question: &Question) -> Result<Verdict, JudgeError> {
        let authorization = authorization.map(|secret| HeaderValue::try_from(secret.expose())).transpose();
        let authorization =
            authorization.map_err(|_| JudgeError("the credentials are no header".to_owned()))?;
        let said = self.backend.judge(authorization.as_ref(), question).await;
        let said = said.map_err(|error| JudgeError(error.to_string()))?;
        if let Some(challenge) = said.challenge {
            self.learn(challenge);
        }
        Ok(said.verdict)
    }
}

impl Judge for Delegation {
    fn judge<'a>(
        &'a self,
        authorization: Option<&'a Secret>,
        question: &'a Question,
    ) -> BoxFuture<'a, Result<Verdict, JudgeError>> {
        Box::pin(self.said(authorization, question))
    }
}

fn kept(file: &Path) -> Result<Option<Kept>, StartError> {
    let failed = |error: std::io::Error| StartError::new(format!("read {}", file.display()), error);
    match std::fs::read_to_string(file) {
        Ok(text) => serde_json::from_str(&text).map(Some).map_err(|error| failed(error.into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

impl From<RegistryChallenge> for KeptChallenge {
    fn from(challenge: RegistryChallenge) -> Self {
        match challenge {
            RegistryChallenge::Basic { realm } => Self::Basic { realm },
            RegistryChallenge::Bearer { realm, service } => Self::Bearer { realm, service },
        }
    }
}

impl From<KeptChallenge> for RegistryChallenge {
    fn from(kept: KeptChallenge) -> Self {
        match kept {
            KeptChallenge::Basic { realm } => Self::Basic { realm },
            KeptChallenge::Bearer { realm, service } => Self::Bearer { realm, service },
        }
    }
}

/// Asks for the challenge again and again: the registry says it to whoever comes without credentials.
pub(super) async fn learn_challenge(authenticator: Arc<Authenticator>, shutdown: Shutdown) {
    loop {
        let pause = match authenticator.said_now(None, &Question::Ping).await {
            Ok(_) => CHALLENGE_INTERVAL,
            Err(error) => {
                tracing::debug!(%error, "the registry does not say what it demands");
                FIRST_CHALLENGE_INTERVAL
            }
        };
        if !super::pause(&shutdown, pause).await {
            return;
        }
    }
}
