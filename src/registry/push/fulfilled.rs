//! What was done for each write intent: a request that a site led here changes something once,
//! also when its ticket comes twice. A client whose connection broke before it was answered sends
//! its request again, and is told what it led to.
//!
//! The site ends the intent with the first event that carries it: a second one would move
//! something that nobody at the site expects to move any longer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use outport_proto::{Change, Digest, IntentId, ManifestPut, Offset, Timestamp, codec::encode_value};
use tokio::sync::{OnceCell, OwnedMutexGuard};

use super::PushError;
use crate::{
    auth::ticket::{TICKET_LIFE_MAX, WRITE_TIME_MAX},
    blocking, bounds,
    log::{Log, LogError, Retention},
};

/// Longer than a ticket can be used.
const KEPT: std::time::Duration = TICKET_LIFE_MAX.saturating_add(WRITE_TIME_MAX);
/// Intents known at once; beyond that, requests that were led here have to come back.
const INTENTS_MAX: usize = 200_000;
/// Log read at once.
const READ_BYTES: usize = 1024 * 1024;

/// The intents that were acted on of late.
#[derive(Debug, Default)]
pub(in crate::registry) struct Fulfilled {
    turns: Mutex<BTreeMap<IntentId, Turns>>,
    /// Whether those of before the start are known.
    recalled: OnceCell<()>,
}

/// Those who come with one intent, one after the other.
#[derive(Debug)]
struct Turns {
    since: Timestamp,
    done: Arc<tokio::sync::Mutex<Option<Done>>>,
}

/// What an intent led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::registry) struct Done {
    change: Digest,
    offset: Offset,
}

/// The right to act on an intent, alone.
#[derive(Debug)]
pub(in crate::registry) struct Turn {
    done: OwnedMutexGuard<Option<Done>>,
}

impl Fulfilled {
    /// Waits for whoever else acts on `intent`. The first of all reads what the log tells of the
    /// time before the start.
    ///
    /// # Errors
    /// When the log cannot be read; [`PushError::Unavailable`] when too many are known.
    pub(in crate::registry) async fn turn(
        &self,
        intent: &IntentId,
        log: &Log,
        now: Timestamp,
    ) -> Result<Turn, PushError> {
        self.recalled.get_or_try_init(|| self.recall(log, now)).await?;
        let done = {
            let mut turns = self.lock();
            if turns.len() >= INTENTS_MAX {
                turns.retain(|_, turn| now.since(turn.since) < KEPT);
            }
            if turns.len() >= INTENTS_MAX && !turns.contains_key(intent) {
                return Err(PushError::Unavailable {
                    reason: "too many pushes are led here from sites".to_owned(),
                    retry_after: super::RETRY_AFTER,
                });
            }
            let turn =
                turns.entry(intent.clone()).or_insert_with(|| Turns { since: now, done: Arc::default() });
            let done = Arc::clone(&turn.done);
            bounds::note("intents acted on", turns.len(), INTENTS_MAX);
            done
        };
        Ok(Turn { done: done.lock_owned().await })
    }

    async fn recall(&self, log: &Log, now: Timestamp) -> Result<(), PushError> {
        let log = log.clone();
        let read = blocking::spawn(move || fulfilled_since(&log, now)).await;
        let known = match read {
            Ok(Ok(known)) => known,
            Ok(Err(error)) => {
                tracing::error!(%error, "cannot read which requests of sites were acted on");
                return Err(PushError::Internal);
            }
            Err(error) => {
                tracing::error!(%error, "reading which requests of sites were acted on broke off");
                return Err(PushError::Internal);
            }
        };
        let known = known.into_iter().map(|(intent, done)| {
            (intent, Turns { since: now, done: Arc::new(tokio::sync::Mutex::new(Some(done))) })
        });
        self.lock().extend(known.take(INTENTS_MAX));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<IntentId, Turns>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// What the intent led to, if it was acted on before; only the same change is the same request.
    pub(in crate::registry) fn done(&self, change: &Change) -> Result<Option<Offset>, PushError> {
        match *self.done {
            None => Ok(None),
            Some(done) if done.change == digest_of(change)? => Ok(Some(done.offset)),
            Some(_) => Err(PushError::TicketUsed),
        }
    }

    /// The intent led to `change`.
    pub(in crate::registry) fn finish(mut self, change: Digest, offset: Offset) {
        *self.done = Some(Done { change, offset });
    }
}

/// What tells one change from another. What an image runs on does not: that is found out last.
pub(in crate::registry) fn digest_of(change: &Change) -> Result<Digest, PushError> {
    let mut without = None;
    if let Change::ManifestPut(put) = change
        && put.platform.is_some()
    {
        without = Some(Change::ManifestPut(Box::new(ManifestPut { platform: None, ..(**put).clone() })));
    }
    encode_value(without.as_ref().unwrap_or(change)).map(|encoded| Digest::sha256(&encoded)).map_err(
        |error| {
            tracing::error!(%error, "cannot encode a change");
            PushError::Internal
        },
    )
}

/// The intents of all events young enough, and what they led to.
fn fulfilled_since(log: &Log, now: Timestamp) -> Result<Vec<(IntentId, Done)>, LogError> {
    let old = log.expired(&Retention { bytes: u64::MAX, age: KEPT });
    let mut after = old.unwrap_or_else(|| log.floor());
    let mut known = Vec::new();
    loop {
        let records = match log.read(after, READ_BYTES) {
            Err(LogError::BelowFloor { floor, .. }) => {
                after = floor;
                continue;
            }
            read => read?,
        };
        let Some(last) = records.last() else { return Ok(known) };
        after = last.event.offset;
        for event in records.iter().map(|record| &record.event) {
            if let Some(intent) = &event.intent
                && now.since(event.time) < KEPT
                && let Ok(change) = digest_of(&event.change)
            {
                known.push((intent.clone(), Done { change, offset: event.offset }));
            }
        }
    }
}
