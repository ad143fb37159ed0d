//! Callers that the registry behind the primary knows, and nobody else: it is asked whether they may, and
//! its answer is remembered for a while.
//!
//! What is remembered is found by a hash under a key random to this process of the credentials and what
//! they are for; the credentials themselves are not kept. Who asks what somebody asks already waits for
//! the same answer. An error is no answer: it goes to those who wait, and the next one asks again. How many
//! credentials may be tried that turn out to be none is bounded (`strangers`).

mod strangers;

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::hmac;
use lru::LruCache;
use outport_proto::{
    Timestamp, codec,
    frame::{Question, Verdict},
};
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use tokio::time::Instant;

use super::{NoRandomness, Secret, random};
use crate::clock::SharedClock;
use strangers::Strangers;

/// Different questions on their way at once; whoever comes beyond that asks alone.
const PENDING_MAX: usize = 4096;

/// Says what callers may do.
pub trait Judge: Send + Sync + 'static {
    /// Whether whoever sends this `Authorization` may do this.
    fn judge<'a>(
        &'a self,
        authorization: Option<&'a Secret>,
        question: &'a Question,
    ) -> Pin<Box<dyn Future<Output = Result<Verdict, JudgeError>> + Send + 'a>>;
}

/// Why there is neither a yes nor a no; for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JudgeError(pub String);

/// Why somebody was not judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unjudged {
    /// Neither yes nor no was said.
    #[error(transparent)]
    Unsaid(#[from] JudgeError),
    /// The registry is not asked: too many credentials were tried that it does not let in.
    #[error("too many callers come with credentials that the registry has not let in")]
    TooMany {
        /// When to come again.
        retry_after: Duration,
    },
}

/// How long what was said is remembered, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembering {
    /// A yes.
    pub allow: Duration,
    /// That the credentials are wrong, or do not reach that far. That there is no such thing is never
    /// remembered.
    pub deny: Duration,
    /// Answers at most.
    pub answers_max: usize,
}

/// Credentials that may be tried in a minute and are not let in, of those that the registry never said yes
/// to: beyond that it is not asked about others.
pub const WRONG_PER_MINUTE: u32 = 60;

impl Default for Remembering {
    fn default() -> Self {
        Self { allow: Duration::from_secs(60), deny: Duration::from_secs(10), answers_max: 100_000 }
    }
}

/// What a judge said, remembered.
pub struct Verdicts {
    judge: Arc<dyn Judge>,
    clock: SharedClock,
    key: hmac::Key,
    answers: Mutex<Answers>,
    pending: Mutex<HashMap<Hash, Arc<Slot>>>,
    strangers: Strangers,
    counted: Counted,
}

/// What is counted.
#[derive(Default)]
struct Counted {
    remembered: Counter,
    asked: Counter,
    unanswered: Counter,
    kept_off: Counter,
}

type Hash = [u8; 32];

/// A verdict, and when the question was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// What was said.
    pub verdict: Verdict,
    /// By this node's clock.
    pub asked: Timestamp,
}

struct Answers {
    by_hash: LruCache<Hash, Answer>,
    remembering: Remembering,
    /// Whatever was asked under another value is not remembered.
    revoked: Timestamp,
}

struct Answer {
    judged: Judged,
    until: Instant,
}

/// A question on its way: whoever holds the lock asks, the others find the answer.
#[derive(Default)]
struct Slot(tokio::sync::Mutex<Option<Result<Judged, Unjudged>>>);

impl Verdicts {
    /// Nothing is remembered yet.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn new(judge: Arc<dyn Judge>, clock: SharedClock) -> Result<Self, NoRandomness> {
        let answers = Answers {
            by_hash: LruCache::unbounded(),
            remembering: Remembering::default(),
            revoked: Timestamp::default(),
        };
        Ok(Self {
            judge,
            clock,
            key: hmac::Key::new(hmac::HMAC_SHA256, &random::bytes::<32>()?),
            answers: Mutex::new(answers),
            pending: Mutex::default(),
            strangers: Strangers::new(Remembering::default().answers_max),
            counted: Counted::default(),
        })
    }

    /// Registers what is counted in `registry`, which adds the prefix.
    pub fn register(&self, registry: &mut Registry) {
        let Counted { remembered, asked, unanswered, kept_off } = &self.counted;
        for (name, help, counter) in [
            ("verdicts_remembered", "Callers let in, or not, by what the registry had said", remembered),
            ("verdicts_asked", "Questions to the registry whether a caller may", asked),
            ("verdicts_unanswered", "Those of them that were not answered", unanswered),
            ("verdicts_kept_off", "Callers turned away unasked: too many wrong credentials", kept_off),
        ] {
            registry.register(name, help, counter.clone());
        }
    }

    /// Remembers so from now on, and nothing of what was said under another `revoked`.
    pub fn remember(&self, remembering: Remembering, revoked: Timestamp) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.revoked != revoked || answers.remembering != remembering {
            answers.by_hash.clear();
        }
        answers.revoked = revoked;
        answers.remembering = remembering;
        self.strangers.limit(remembering.answers_max);
    }

    /// Whether the registry has said yes to these credentials, whatever was wanted, and did not refuse them
    /// since. Who comes without any is known.
    pub fn knows(&self, authorization: Option<&Secret>) -> bool {
        authorization.is_none_or(|secret| self.strangers.knows(&self.hash(Some(secret), &[])))
    }

    /// What was said about this a short while ago, or is said now.
    ///
    /// # Errors
    /// When neither yes nor no is said.
    pub async fn of(&self, authorization: Option<&Secret>, question: &Question) -> Result<Judged, Unjudged> {
        let hash = self.hash_of(authorization, question);
        match self.remembered(&hash) {
            Some(judged) => {
                self.counted.remembered.inc();
                Ok(judged)
            }
            None => self.asked(&hash, authorization, question).await,
        }
    }

    /// What is said now: for somebody who remembers it in their turn.
    ///
    /// # Errors
    /// When neither yes nor no is said.
    pub async fn now(&self, authorization: Option<&Secret>, question: &Question) -> Result<Judged, Unjudged> {
        self.asked(&self.hash_of(authorization, question), authorization, question).await
    }

    fn hash_of(&self, authorization: Option<&Secret>, question: &Question) -> Hash {
        // Nothing in a question is too large to be written down.
        self.hash(authorization, &codec::encode_value(question).unwrap_or_default())
    }

    fn hash(&self, authorization: Option<&Secret>, of: &[u8]) -> Hash {
        let mut context = hmac::Context::with_key(&self.key);
        match authorization {
            // With its length, so that no credentials run into what they are for.
            Some(secret) => {
                context.update(&(secret.expose().len() as u64).to_le_bytes());
                context.update(secret.expose().as_bytes());
            }
            None => context.update(&u64::MAX.to_le_bytes()),
        }
        context.update(of);
        let mut hash = [0; 32];
        hash.copy_from_slice(context.sign().as_ref());
        hash
    }

    fn remembered(&self, hash: &Hash) -> Option<Judged> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = answers.by_hash.get(hash)?;
        if Instant::now() < answer.until {
            return Some(answer.judged);
        }
        answers.by_hash.pop(hash);
        None
    }

    async fn asked(
        &self,
        hash: &Hash,
        authorization: Option<&Secret>,
        question: &Question,
    ) -> Result<Judged, Unjudged> {
        let Some(turn) = self.join(hash) else {
            return self.ask(authorization, question).await.map(|(judged, _)| judged);
        };
        let mut said = turn.slot.0.lock().await;
        if let Some(said) = &*said {
            return said.clone();
        }
        let asked = self.ask(authorization, question).await;
        if let Ok((judged, revoked)) = asked {
            self.keep(*hash, judged, revoked);
        }
        let answer = asked.map(|(judged, _)| judged);
        *said = Some(answer.clone());
        turn.end();
        answer
    }

    /// The answer, and the `revoked` it was asked under.
    async fn ask(
        &self,
        authorization: Option<&Secret>,
        question: &Question,
    ) -> Result<(Judged, Timestamp), Unjudged> {
        let credentials = authorization.map(|secret| self.hash(Some(secret), &[]));
        let admitted = match credentials {
            Some(credentials) if !self.strangers.knows(&credentials) => {
                let admitted = self.strangers.admit().await;
                Some(admitted.inspect_err(|_| _ = self.counted.kept_off.inc())?)
            }
            _ => None,
        };
        let revoked = self.answers.lock().unwrap_or_else(PoisonError::into_inner).revoked;
        let asked = self.clock.now();
        self.counted.asked.inc();
        let said = self.judge.judge(authorization, question).await.inspect_err(|_| {
            self.counted.unanswered.inc();
        });
        if let (Ok(Verdict::Yes) | Err(_), Some(admitted)) = (&said, admitted) {
            admitted.forgive();
        }
        let verdict = said?;
        match (verdict, credentials) {
            (Verdict::Yes, Some(credentials)) => self.strangers.know(credentials),
            (Verdict::Unauthorized, Some(credentials)) => self.strangers.forget(&credentials),
            _ => {}
        }
        Ok((Judged { verdict, asked }, revoked))
    }

    fn keep(&self, hash: Hash, judged: Judged, revoked: Timestamp) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.revoked != revoked {
            return;
        }
        let Remembering { allow, deny, answers_max } = answers.remembering;
        let life = match judged.verdict {
            Verdict::Yes => allow,
            Verdict::Unauthorized | Verdict::Denied => deny,
            // The next push may make it, and must be seen at once.
            Verdict::Unknown => return,
        };
        answers.by_hash.push(hash, Answer { judged, until: Instant::now() + life });
        while answers.by_hash.len() > answers_max {
            answers.by_hash.pop_lru();
        }
    }

    /// A part in the question on its way; `None` when there are too many.
    fn join(&self, hash: &Hash) -> Option<Turn<'_>> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.len() >= PENDING_MAX && !pending.contains_key(hash) {
            return None;
        }
        let slot = Arc::clone(pending.entry(*hash).or_default());
        Some(Turn { pending: &self.pending, hash: *hash, slot })
    }

    #[cfg(test)]
    fn len(&self) -> (usize, usize) {
        (self.answers.lock().unwrap().by_hash.len(), self.pending.lock().unwrap().len())
    }
}

impl std::fmt::Debug for Verdicts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verdicts(..)")
    }
}

/// Somebody's part in a question on its way.
struct Turn<'a> {
    pending: &'a Mutex<HashMap<Hash, Arc<Slot>>>,
    hash: Hash,
    slot: Arc<Slot>,
}

impl Turn<'_> {
    /// The question is answered: whoever comes from now on asks a new one.
    fn end(&self) {
        self.forget(|_| true);
    }

    fn forget(&self, when: impl FnOnce(&Arc<Slot>) -> bool) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.get(&self.hash).is_some_and(|slot| Arc::ptr_eq(slot, &self.slot) && when(slot)) {
            pending.remove(&self.hash);
        }
    }
}

impl Drop for Turn<'_> {
    /// Whoever asked may leave; the next in line asks. The last one takes the question along.
    fn drop(&mut self) {
        self.forget(|slot| Arc::strong_count(slot) == 2);
    }
}

#[cfg(test)]
mod tests;
