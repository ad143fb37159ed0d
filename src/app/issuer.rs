//! Looks after the keys of another issuer: reads its files again when they change, and fetches its key
//! set again on a timer and when a token names a key that nobody knows. A key set that was fetched is
//! remembered on disk: a primary that starts while the issuer is away must not take keys from its sites.
//! It is believed for a while: whoever keeps the issuer from us must not keep a key in use that it withdrew.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use outport_proto::{Timestamp, frame::AuthMode};
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex, time::Instant};

use super::{StartError, callers::Told, durable_write};
use crate::{
    auth::{
        Authenticator, FindKey, IssuerKeys, authority::load_certificates, issuer_keys::ISSUER_KEYS_BYTES_MAX,
        tls,
    },
    blocking,
    clock::SharedClock,
    config::{JwksPlace, TokenAuth},
    fetch::{BoxFuture, document::Documents},
    shutdown::Shutdown,
};

/// How often files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The keys of another issuer, where they come from.
pub(super) struct IssuerSource {
    issuer: String,
    service: String,
    certificates: Option<PathBuf>,
    jwks: Option<Jwks>,
    /// Where the key set is remembered that was fetched last.
    memory: PathBuf,
    clock: SharedClock,
    read: Mutex<Read>,
    alarm: KeysAlarm,
}

/// What a person should know of the keys of tokens. Cloning gives another handle.
#[derive(Clone, Default)]
pub(super) struct KeysAlarm(Arc<ArcSwapOption<String>>);

impl KeysAlarm {
    /// What is wrong; `None` while nothing is.
    pub(super) fn reason(&self) -> Option<String> {
        self.0.load().as_deref().cloned()
    }

    fn set(&self, reason: Option<String>) {
        self.0.store(reason.map(Arc::new));
    }
}

/// In the directory of the primary's own keys.
const MEMORY_FILE: &str = "issuer-keys.json";

/// A key set that was fetched.
#[derive(Serialize, Deserialize)]
struct Remembered {
    url: String,
    jwks: String,
    /// When, in seconds since the Unix epoch.
    fetched_at: Option<u64>,
}

enum Jwks {
    File(PathBuf),
    Url {
        url: String,
        documents: Box<Documents>,
        refresh: Duration,
        /// How long a set is believed after it was fetched.
        stale: Duration,
    },
}

/// What was there when it was last looked.
#[derive(Default)]
struct Read {
    bundle: Option<String>,
    jwks: Option<String>,
    /// When the key set was last asked for at its URL.
    asked: Option<Instant>,
    /// When it was last had from there.
    fetched_at: Option<Timestamp>,
    /// What is wrong since then, so that it is said once.
    wrong: Option<String>,
    /// The same for the URL.
    silent: Option<String>,
}

impl IssuerSource {
    /// The source, and what it holds now. A URL that does not answer holds what it held last, which is
    /// remembered in `keys_dir`.
    ///
    /// # Errors
    /// When a file cannot be read or holds something else.
    pub(super) async fn open(
        config: &TokenAuth,
        keys_dir: &Path,
        clock: &SharedClock,
    ) -> Result<(Self, AuthMode), StartError> {
        let jwks = match &config.jwks {
            None => None,
            Some(JwksPlace::File(path)) => Some(Jwks::File(path.clone())),
            Some(JwksPlace::Url(url)) => Some(Jwks::Url {
                url: url.clone(),
                documents: Box::new(documents(config)?),
                refresh: Duration::from_secs(config.jwks_refresh_seconds.into()),
                stale: Duration::from_secs(u64::from(config.jwks_stale_hours) * 3600),
            }),
        };
        let source = Self {
            issuer: config.issuer.clone(),
            service: config.service.clone(),
            certificates: config.certificates.clone(),
            jwks,
            memory: keys_dir.join(MEMORY_FILE),
            clock: Arc::clone(clock),
            read: Mutex::default(),
            alarm: KeysAlarm::default(),
        };
        let mut read = source.read.lock().await;
        read.bundle =
            source.bundle().await.map_err(|error| StartError::new("read auth.token.certificates", error))?;
        (read.jwks, read.fetched_at) = source.remembered().await.unzip();
        let jwks = source.key_set(&mut read, true).await;
        read.jwks = jwks.map_err(|error| StartError::new("read auth.token.jwks", error))?;
        let mode =
            source.mode_of(&read).map_err(|error| StartError::new("read the keys of auth.token", error))?;
        source.alarm.set(read.trouble());
        drop(read);
        Ok((source, mode))
    }

    /// What a person should know of it.
    pub(super) fn alarm(&self) -> KeysAlarm {
        self.alarm.clone()
    }

    /// Looks again and again until shutdown, and whenever `authenticator` meets a key it does not know.
    pub(super) fn watch(self, authenticator: &Arc<Authenticator>, told: &Told, shutdown: &Shutdown) {
        let watched = Arc::new(Watched {
            source: self,
            authenticator: Arc::downgrade(authenticator),
            told: told.clone(),
        });
        authenticator.find_keys_by(Arc::clone(&watched) as Arc<dyn FindKey>);
        let stop = shutdown.clone();
        shutdown.spawn(async move {
            while super::pause(&stop, LOOK_INTERVAL).await {
                // Said in the log; the next look is soon.
                let _ = watched.look(false).await;
            }
        });
    }

    async fn bundle(&self) -> Result<Option<String>, String> {
        match &self.certificates {
            Some(path) => read_file(path).await.map(Some),
            None => Ok(None),
        }
    }

    /// The key set as it is now; `read` has it as it was. A URL is asked when it is time, or `at_once`, and
    /// when it does not answer the key set is as it was, until that is too old to be believed.
    async fn key_set(&self, read: &mut Read, at_once: bool) -> Result<Option<String>, String> {
        match &self.jwks {
            None => Ok(None),
            Some(Jwks::File(path)) => read_file(path).await.map(Some),
            Some(Jwks::Url { url, documents, refresh, stale }) => {
                // Without any keys nobody gets in: that is not left for long.
                let refresh = if read.jwks.is_some() { *refresh } else { LOOK_INTERVAL.min(*refresh) };
                let is_due = at_once || read.asked.is_none_or(|asked| asked.elapsed() >= refresh);
                if !is_due {
                    return Ok(self.believed(read, *stale));
                }
                read.asked = Some(Instant::now());
                let fetched = documents.get(url, ISSUER_KEYS_BYTES_MAX).await.and_then(|jwks| {
                    let keys = IssuerKeys::read(None, Some(&jwks));
                    keys.map(|_| jwks).map_err(|error| error.to_string())
                });
                match fetched {
                    Ok(jwks) => {
                        let now = self.clock.now();
                        (read.silent, read.fetched_at) = (None, Some(now));
                        self.remember(url, &jwks, now).await;
                        Ok(Some(jwks))
                    }
                    Err(error) => {
                        if read.silent.as_ref() != Some(&error) {
                            tracing::error!(url, %error, "the keys of tokens cannot be had; the old ones stay for now");
                            read.silent = Some(error);
                        }
                        Ok(self.believed(read, *stale))
                    }
                }
            }
        }
    }

    /// The key set that was fetched last, unless that is longer ago than `stale`.
    fn believed(&self, read: &Read, stale: Duration) -> Option<String> {
        let is_stale = read.fetched_at.is_some_and(|at| self.clock.now().since(at) >= stale);
        if is_stale && read.jwks.is_some() {
            tracing::error!(
                "the keys of tokens are too old to be believed: tokens are refused until there are new ones"
            );
        }
        read.jwks.clone().filter(|_| !is_stale)
    }

    /// The key set that was fetched last from the same URL, and when.
    async fn remembered(&self) -> Option<(String, Timestamp)> {
        let Some(Jwks::Url { url, .. }) = &self.jwks else { return None };
        let text = read_file(&self.memory).await.ok()?;
        let remembered: Remembered = serde_json::from_str(&text).ok()?;
        let at = remembered.fetched_at.map_or_else(|| self.clock.now(), Timestamp::from_secs);
        (remembered.url == *url).then_some((remembered.jwks, at))
    }

    async fn remember(&self, url: &str, jwks: &str, at: Timestamp) {
        let fetched_at = Some(at.as_secs());
        let remembered = Remembered { url: url.to_owned(), jwks: jwks.to_owned(), fetched_at };
        let memory = self.memory.clone();
        let written = blocking::spawn(move || {
            let text = serde_json::to_string(&remembered).map_err(|error| error.to_string())?;
            durable_write(&memory, &text).map_err(|error| error.to_string())
        });
        if let Err(error) = written.await.map_err(|error| error.to_string()).flatten() {
            tracing::warn!(%error, "the keys of tokens cannot be remembered for the next start");
        }
    }

    fn mode_of(&self, read: &Read) -> Result<AuthMode, String> {
        let keys = IssuerKeys::read(read.bundle.as_deref(), read.jwks.as_deref());
        let IssuerKeys { jwks, roots } = keys.map_err(|error| error.to_string())?;
        Ok(AuthMode::Token { jwks, issuer: self.issuer.clone(), roots })
    }
}

impl Read {
    /// What is wrong now.
    fn trouble(&self) -> Option<String> {
        let why = self.wrong.as_ref().or(self.silent.as_ref())?;
        Some(match self.jwks {
            None if self.fetched_at.is_some() => {
                format!("the keys of tokens are too old to be believed, and cannot be had again: {why}")
            }
            _ => format!("the keys of tokens cannot be had again: {why}"),
        })
    }
}

/// A source, and those who must know of what changes there.
struct Watched {
    source: IssuerSource,
    authenticator: Weak<Authenticator>,
    told: Told,
}

impl Watched {
    /// Looks whether anything changed, and tells everybody.
    ///
    /// # Errors
    /// What could not be seen, or used; it was said in the log when that began.
    async fn look(&self, at_once: bool) -> Result<(), String> {
        let mut read = self.source.read.lock().await;
        let changed = self.changed(&mut read, at_once).await;
        if let Err(error) = &changed
            && read.wrong.as_ref() != Some(error)
        {
            tracing::error!(%error, "the keys of tokens cannot be read again; the old ones stay");
            read.wrong = Some(error.clone());
        }
        self.source.alarm.set(read.trouble());
        match changed {
            Ok(None) | Err(_) => {}
            Ok(Some(mode)) => {
                let Some(authenticator) = self.authenticator.upgrade() else { return Ok(()) };
                if let Err(error) = authenticator.learn(&mode, &self.source.service) {
                    tracing::error!(%error, "new keys of tokens cannot be used; the old ones stay");
                    return Err(error.to_string());
                }
                tracing::info!("the keys of tokens changed");
                self.told.tell(mode);
            }
        }
        match read.wrong.as_ref().or(read.silent.as_ref()) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// What is to be told, if it is not what was.
    async fn changed(&self, read: &mut Read, at_once: bool) -> Result<Option<AuthMode>, String> {
        let bundle = self.source.bundle().await?;
        let jwks = self.source.key_set(read, at_once).await?;
        if (&bundle, &jwks) == (&read.bundle, &read.jwks) {
            read.wrong = None;
            return Ok(None);
        }
        let Read { asked, fetched_at, .. } = *read;
        let now = Read { bundle, jwks, asked, fetched_at, wrong: None, silent: read.silent.clone() };
        let mode = self.source.mode_of(&now)?;
        *read = now;
        Ok(Some(mode))
    }
}

impl FindKey for Watched {
    fn find<'a>(&'a self, unknown: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            tracing::info!(kid = unknown, "a token names a key that is not known: looking for it");
            self.look(true).await
        })
    }
}

async fn read_file(path: &Path) -> Result<String, String> {
    let of = path.to_owned();
    let read = blocking::spawn(move || {
        let bytes = std::fs::metadata(&of)?.len();
        if bytes > ISSUER_KEYS_BYTES_MAX as u64 {
            return Err(std::io::Error::other(format!("larger than {ISSUER_KEYS_BYTES_MAX} bytes")));
        }
        std::fs::read_to_string(&of)
    });
    let read = read.await.map_err(|error| error.to_string())?;
    read.map_err(|error| format!("{}: {error}", path.display()))
}

fn documents(config: &TokenAuth) -> Result<Documents, StartError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        StartError::new("load auth.token.https_authorities", error)
    };
    let mut authorities = super::system_authorities();
    if let Some(file) = &config.https_authorities {
        authorities.extend(load_certificates(file).map_err(|error| failed(error.into()))?);
    }
    let tls = tls::https_client(&authorities).map_err(|error| failed(error.into()))?;
    Ok(Documents::new(&Arc::new(tls)))
}
