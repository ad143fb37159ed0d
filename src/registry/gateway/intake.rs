//! Taking in notifications: who sends them, and what becomes of each.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use aws_lc_rs::constant_time;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    Gateway, GatewayError,
    notice::{Format, Heeded, Hint, read},
    walk::Reconciler,
};

/// Requests worked on at once; the others are asked to come again.
const REQUESTS_MAX: usize = 16;

/// Somebody who tells of what happens at the registry.
pub struct NoticeSource {
    /// Its name, in metrics.
    pub name: String,
    /// How it spells its notifications.
    pub format: Format,
    /// What it proves itself with.
    pub secret: String,
}

/// What was counted of a source, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoticeCounts {
    /// Hints that led to something new in the log.
    pub new: u64,
    /// Hints of what was known.
    pub known: u64,
    /// Events that change nothing.
    pub idle: u64,
    /// Events of unknown kinds.
    pub unknown: u64,
    /// Requests that could not be read, or not be acted on.
    pub failed: u64,
}

/// Takes in the notifications of all sources.
pub struct Intake {
    gateway: Gateway,
    reconciler: Reconciler,
    sources: Vec<(NoticeSource, Counters)>,
    refused: AtomicU64,
    turns: Semaphore,
}

#[derive(Debug, Default)]
struct Counters {
    new: AtomicU64,
    known: AtomicU64,
    idle: AtomicU64,
    unknown: AtomicU64,
    failed: AtomicU64,
    /// How many requests had been refused when it was last heard of.
    heard_at: AtomicU64,
}

/// Why a notification was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// It carries no secret of any source.
    #[error("the secret is missing or wrong")]
    Stranger,
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// It could not be acted on now; the source should send it again.
    #[error("{0}")]
    Later(String),
}

impl Intake {
    /// Takes in what `sources` tell.
    pub fn new(gateway: Gateway, reconciler: Reconciler, sources: Vec<NoticeSource>) -> Self {
        let sources = sources.into_iter().map(|source| (source, Counters::default())).collect();
        let (refused, turns) = (AtomicU64::new(0), Semaphore::new(REQUESTS_MAX));
        Self { gateway, reconciler, sources, refused, turns }
    }

    /// Whether `authorization` is that of a source; before its body is read.
    ///
    /// # Errors
    /// [`NotTaken::Stranger`]; [`NotTaken::Later`] when too many are worked on.
    pub fn admit(&self, authorization: Option<&str>) -> Result<Admitted<'_>, NotTaken> {
        let given = authorization.unwrap_or_default();
        let admitted = self.sources.iter().find(|(source, _)| proves(given, &source.secret));
        let Some((source, counters)) = admitted else {
            self.refused.fetch_add(1, Relaxed);
            tracing::warn!("a notification was refused: its secret is missing or wrong");
            // It may be the registry with another secret: what it told of is found by a walk.
            self.reconciler.doubt();
            return Err(NotTaken::Stranger);
        };
        counters.heard_at.store(self.refused.load(Relaxed), Relaxed);
        let turn = self.turns.try_acquire();
        let turn = turn.map_err(|_| NotTaken::Later("too many notifications at once".to_owned()))?;
        Ok(Admitted { intake: self, source, counters, _turn: turn })
    }

    /// What a person should look at: a source that may have lost its secret.
    pub fn alarm(&self) -> Option<String> {
        let refused = self.refused.load(Relaxed);
        let is_silent = |counters: &Counters| counters.heard_at.load(Relaxed) < refused;
        let silent = self.sources.iter().filter(|(_, counters)| is_silent(counters));
        let silent: Vec<&str> = silent.map(|(source, _)| source.name.as_str()).collect();
        (!silent.is_empty()).then(|| {
            format!(
                "{refused} notifications were refused, because their secret is missing or wrong; nothing was \
                 heard since of {} (gateway.notifications.secret_file)",
                silent.join(", ")
            )
        })
    }

    /// What was counted, by source; and requests of strangers.
    pub fn counts(&self) -> (Vec<(String, NoticeCounts)>, u64) {
        let counts = self.sources.iter().map(|(source, counters)| {
            let counts = NoticeCounts {
                new: counters.new.load(Relaxed),
                known: counters.known.load(Relaxed),
                idle: counters.idle.load(Relaxed),
                unknown: counters.unknown.load(Relaxed),
                failed: counters.failed.load(Relaxed),
            };
            (source.name.clone(), counts)
        });
        (counts.collect(), self.refused.load(Relaxed))
    }
}

/// A source that has proven itself.
pub struct Admitted<'a> {
    intake: &'a Intake,
    source: &'a NoticeSource,
    counters: &'a Counters,
    _turn: SemaphorePermit<'a>,
}

impl Admitted<'_> {
    /// Takes in one notification. When this returns, whatever the registry says of what it is about is
    /// durable.
    ///
    /// # Errors
    /// [`NotTaken`]; a walk will look in any case.
    pub async fn take(&self, event_type: Option<&str>, body: &[u8]) -> Result<(), NotTaken> {
        let taken = self.try_take(event_type, body).await;
        if let Err(reason) = &taken {
            self.counters.failed.fetch_add(1, Relaxed);
            tracing::warn!(source = self.source.name, %reason, "a notification was not taken");
            self.intake.reconciler.doubt();
        }
        taken
    }

    async fn try_take(&self, event_type: Option<&str>, body: &[u8]) -> Result<(), NotTaken> {
        let notices = read(self.source.format, event_type, body);
        let notices = notices.map_err(|error| NotTaken::Unreadable(error.to_string()))?;
        self.counters.idle.fetch_add(notices.idle, Relaxed);
        self.counters.unknown.fetch_add(notices.unknown, Relaxed);
        for hint in &notices.hints {
            let heeded = self.intake.gateway.heed(hint).await;
            match heeded {
                Ok(Heeded::New) => _ = self.counters.new.fetch_add(1, Relaxed),
                Ok(Heeded::Known) => _ = self.counters.known.fetch_add(1, Relaxed),
                Ok(Heeded::Walk) => {}
                Err(error @ (GatewayError::Journal(_) | GatewayError::Index(_))) => {
                    return Err(NotTaken::Later(error.to_string()));
                }
                Err(error) if error.is_silence() => return Err(NotTaken::Later(error.to_string())),
                // Sent again it would be no better, and hold up what comes behind it: a walk says what is wrong.
                Err(error) => {
                    self.counters.failed.fetch_add(1, Relaxed);
                    tracing::warn!(source = self.source.name, %error, ?hint, "nothing came of a notification");
                    self.intake.reconciler.doubt();
                    continue;
                }
            }
            self.note(hint);
        }
        Ok(())
    }

    fn note(&self, hint: &Hint) {
        let reconciler = &self.intake.reconciler;
        match hint {
            Hint::Tag { repo, tag, digest } => reconciler.noticed(repo, tag, *digest),
            Hint::Manifest { .. } | Hint::Deleted { .. } | Hint::Blob { .. } => {}
            Hint::Everything => reconciler.doubt(),
            Hint::Repository { repo } => reconciler.doubt_repository(repo.clone()),
        }
    }
}

/// Whether an `Authorization` holds the secret: as it is, as a bearer token, or as any user's password.
fn proves(authorization: &str, secret: &str) -> bool {
    let equal = |given: &[u8]| constant_time::verify_slices_are_equal(given, secret.as_bytes()).is_ok();
    let (scheme, rest) = authorization.split_once(' ').unwrap_or_default();
    let password = || {
        let pair = STANDARD.decode(rest.trim()).ok()?;
        pair.iter().position(|byte| *byte == b':').map(|colon| pair[colon + 1..].to_vec())
    };
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => equal(rest.trim().as_bytes()),
        "basic" => password().is_some_and(|password| equal(&password)),
        _ => equal(authorization.trim().as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_comes_as_sources_can_send_it() {
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        for good in [
            "s3cret".to_owned(),
            "Bearer s3cret".to_owned(),
            "bearer  s3cret".to_owned(),
            basic("zot:s3cret"),
        ] {
            assert!(proves(&good, "s3cret"), "{good}");
        }
        for bad in ["", "Bearer", "Bearer ", "Bearer s3cre", "s3cret2", "Basic s3cret"]
            .map(str::to_owned)
            .into_iter()
            .chain([basic("s3cret"), basic("s3cret:x")])
        {
            assert!(!proves(&bad, "s3cret"), "{bad}");
        }
    }
}
