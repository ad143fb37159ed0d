//! `/v1/events`: the log, as people and scripts read it.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{Either, Full};
use outport_proto::{Change, Event};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{
    Admin, Body, answer,
    ask::flag,
    error, json,
    live::{Live, busy},
};
use crate::{
    blocking,
    log::{Log, LogError},
    registry::whereabouts::answer::rfc3339,
    shutdown::Shutdown,
};

/// Events in one answer, at most.
pub const EVENTS_MAX: u64 = 1000;
const EVENTS_DEFAULT: u64 = 100;
/// Log that is read at once, in bytes.
const READ_BYTES: usize = 256 * 1024;
/// A follower that takes nothing is waited for with so many lines on their way.
const WAITING_MAX: usize = 64;

/// An event of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLine {
    /// Its place, `epoch.seq`.
    pub offset: String,
    /// Its number in the log.
    pub seq: u64,
    /// When the primary took it, RFC 3339 by the primary's clock.
    pub time: String,
    /// Who asked for it; empty for nobody in particular.
    pub actor: String,
    /// The site that led the request to the primary; `null` when none did.
    pub site: Option<String>,
    /// `blob-committed`, `blob-mounted`, `manifest-put`, `tag-deleted`, `manifest-deleted`, `blob-deleted`,
    /// `repository-deleted` or `epoch-began`.
    pub kind: String,
    /// Where it happened; `null` when it happened to the log.
    pub repository: Option<String>,
    /// Tags that moved, or went.
    pub tags: Vec<String>,
    /// The blob or manifest.
    pub digest: Option<String>,
    /// Its size in bytes, where the event says so.
    pub size: Option<u64>,
}

impl From<&Event> for EventLine {
    fn from(event: &Event) -> Self {
        let line = Self {
            offset: event.offset.to_string(),
            seq: event.offset.seq,
            time: rfc3339(event.time).unwrap_or_default(),
            actor: event.actor.clone(),
            site: event.intent.as_ref().map(|intent| intent.site.to_string()),
            repository: event.change.repo().map(ToString::to_string),
            ..Self::default()
        };
        let of = |kind: &str, digest: Option<String>, size| Self {
            kind: kind.to_owned(),
            digest,
            size,
            ..line.clone()
        };
        match &event.change {
            Change::BlobCommitted { digest, size, .. } => {
                of("blob-committed", Some(digest.to_string()), Some(*size))
            }
            Change::BlobMounted { digest, size, .. } => {
                of("blob-mounted", Some(digest.to_string()), Some(*size))
            }
            Change::ManifestPut(put) => {
                let tags = put.tags.iter().map(ToString::to_string).collect();
                Self { tags, ..of("manifest-put", Some(put.digest.to_string()), Some(put.size)) }
            }
            Change::TagDeleted { tag, .. } => {
                Self { tags: vec![tag.to_string()], ..of("tag-deleted", None, None) }
            }
            Change::ManifestDeleted { digest, .. } => of("manifest-deleted", Some(digest.to_string()), None),
            Change::BlobDeleted { digest, .. } => of("blob-deleted", Some(digest.to_string()), None),
            Change::RepositoryDeleted { .. } => of("repository-deleted", None, None),
            Change::EpochBegan { .. } => of("epoch-began", None, None),
        }
    }
}

/// What of the log is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    /// The first event by number; without it the newest.
    from: Option<u64>,
    limit: u64,
    follow: bool,
}

impl Admin {
    /// `GET /v1/events?from=SEQ&limit=N`: an array of [`EventLine`]; the newest without `from`. With
    /// `follow` a line of JSON each, and further ones as they happen.
    pub(super) async fn events(&self, query: &str) -> Response<Body> {
        let wanted = match wanted(query) {
            Ok(wanted) => wanted,
            Err(reason) => return error(StatusCode::BAD_REQUEST, &reason).map(Either::Left),
        };
        if wanted.follow { self.followed(wanted) } else { self.page_of(wanted).await.map(Either::Left) }
    }

    async fn page_of(&self, wanted: Wanted) -> Response<Full<Bytes>> {
        let log = self.log.clone();
        let read = blocking::spawn(move || {
            let mut next = first(&log, wanted);
            let mut lines = Vec::new();
            while (lines.len() as u64) < wanted.limit {
                let some = some_of(&log, next)?;
                let Some(last) = some.last() else { break };
                next = last.seq + 1;
                lines.extend(some);
            }
            lines.truncate(usize::try_from(wanted.limit).unwrap_or(usize::MAX));
            Ok::<_, LogError>(lines)
        });
        match read.await {
            Ok(Ok(lines)) => json(StatusCode::OK, &lines),
            Ok(Err(reason)) => error(StatusCode::INTERNAL_SERVER_ERROR, &reason.to_string()),
            Err(reason) => error(StatusCode::INTERNAL_SERVER_ERROR, &reason.to_string()),
        }
    }

    fn followed(&self, wanted: Wanted) -> Response<Body> {
        let Ok(turn) = self.followers.clone().try_acquire_owned() else { return busy() };
        let (sender, lines) = mpsc::channel(WAITING_MAX);
        self.shutdown.spawn(tell(self.log.clone(), wanted, sender, self.shutdown.clone()));
        let live = Live::new(lines, turn);
        answer(StatusCode::OK, "application/x-ndjson", String::new())
            .map(|_| Either::Right(Either::Right(live)))
    }
}

async fn tell(log: Log, wanted: Wanted, lines: mpsc::Sender<Bytes>, shutdown: Shutdown) {
    let mut head = log.watch();
    let mut next = first(&log, wanted);
    loop {
        head.mark_unchanged();
        let of = log.clone();
        let some = match blocking::spawn(move || some_of(&of, next)).await {
            Ok(Ok(some)) => some,
            Ok(Err(error)) => {
                tracing::warn!(%error, "a reader of the log is given up");
                return;
            }
            Err(error) => {
                tracing::error!(%error, "reading the log crashed");
                return;
            }
        };
        let is_all = some.is_empty();
        for line in some {
            next = line.seq + 1;
            let mut text = serde_json::to_string(&line).unwrap_or_default();
            text.push('\n');
            tokio::select! {
                biased;
                () = shutdown.requested() => return,
                sent = lines.send(text.into()) => if sent.is_err() { return },
            }
        }
        if is_all {
            tokio::select! {
                biased;
                () = shutdown.requested() => return,
                () = lines.closed() => return,
                moved = head.changed() => if moved.is_err() { return },
            }
        }
    }
}

/// Where to begin; what is gone from the log is left out.
fn first(log: &Log, wanted: Wanted) -> u64 {
    let newest = (log.head().seq + 1).saturating_sub(wanted.limit);
    wanted.from.unwrap_or(newest).max(1)
}

/// Some events from number `seq` on; none when it has no such yet.
fn some_of(log: &Log, seq: u64) -> Result<Vec<EventLine>, LogError> {
    let records = log.read(log.place_before(seq), READ_BYTES)?;
    Ok(records.iter().map(|record| EventLine::from(&*record.event)).collect())
}

fn wanted(query: &str) -> Result<Wanted, String> {
    let mut wanted = Wanted { from: None, limit: EVENTS_DEFAULT, follow: false };
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "from" => {
                wanted.from = Some(value.parse().map_err(|_| "from: the number of an event".to_owned())?);
            }
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=EVENTS_MAX).contains(limit));
                wanted.limit = limit.ok_or_else(|| format!("limit: a number from 1 to {EVENTS_MAX}"))?;
            }
            "follow" => wanted.follow = flag(&key, &value)?,
            _ => return Err(format!("{key:?} is not known here")),
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        assert_eq!(wanted("").unwrap(), Wanted { from: None, limit: 100, follow: false });
        let all = wanted("from=7&limit=1000&follow").unwrap();
        assert_eq!(all, Wanted { from: Some(7), limit: 1000, follow: true });
        for bad in ["limit=0", "limit=1001", "limit=99999999999999999999", "from=-1", "from=1.2", "since=1"] {
            assert!(wanted(bad).is_err(), "{bad}");
        }
    }
}
