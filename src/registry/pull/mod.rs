//! Pulls: what a client may read, answered by the read rules on both roles.
//!
//! - `rules`: gathers the facts, waits; `word`: what the primary says;
//!   `fill`: bytes on their way here; `exclusion`: whether they are kept.
//! - `manifest`, `blob`, `list`: one kind of pull each, from the rules' decision to an answer.

mod answer;
mod blob;
mod exclusion;
mod fill;
mod follow;
mod list;
mod manifest;
mod rules;
mod word;

use std::{sync::Arc, time::Duration};

pub use answer::{
    BlobAnswer, BlobContent, Listing, ManifestAnswer, Next, Page, PullError, PullOptions, Referrer,
    Referrers, Staleness, Want,
};
pub use fill::{FillReader, Filling};
use outport_proto::{Digest, Event, Offset, Reference, RepoName, Tag};

pub use self::exclusion::Exclusion;
use self::{rules::Ask, word::Word};
use super::{Intents, PullMetrics, SessionView, metrics::PullResult, remembered::Remembered};
use crate::{
    auth::Caller,
    clock::SharedClock,
    fetch::{Flights, Upstream},
    index::Index,
    policy::Policy,
    shutdown::Shutdown,
    store::Store,
    telemetry::{audit, trace},
};

/// Answers pulls. Cloning gives another handle to the same service.
#[derive(Clone)]
pub struct PullService {
    shared: Arc<Shared>,
}

/// How pulls are answered.
#[derive(Clone, Debug)]
pub struct PullRules {
    /// A tag answered while connected is never older than this, unless the policy says so.
    pub staleness_bound: Duration,
    /// Cut off, an answer older than this is not given; `None` gives any, with its age.
    pub stale_max: Option<Duration>,
    /// Longest wait for an event or a heartbeat before the primary is asked instead.
    pub wait_max: Duration,
    /// Whether a token newer than what is applied here makes the pull wait; without, the
    /// staleness bound alone is relied on.
    pub token_freshness: bool,
    /// Remembered answers "no" of the primary. A remembered "no" may be `staleness_bound` old, so
    /// that for this long a pull without a newer token misses what was just pushed elsewhere; 0
    /// asks the primary each time, and a "no" is never too old.
    pub remembered_max: usize,
    /// Most names in one page of a listing.
    pub page_max: usize,
    /// What the site keeps, and how old the tags of a repository may be.
    pub policy: Arc<Policy>,
}

impl Default for PullRules {
    fn default() -> Self {
        Self {
            staleness_bound: Duration::from_secs(1),
            stale_max: None,
            wait_max: Duration::from_millis(150),
            token_freshness: true,
            remembered_max: 0,
            page_max: 10_000,
            policy: Arc::default(),
        }
    }
}

/// What every site answers from.
pub struct Site {
    /// Tags, manifests, links and referrers.
    pub index: Index,
    /// Blobs.
    pub store: Store,
    /// The local clock.
    pub clock: SharedClock,
    /// How pulls are answered.
    pub rules: PullRules,
    /// Where they are counted.
    pub metrics: PullMetrics,
}

/// What a secondary has beside it.
pub struct Edge {
    /// The primary.
    pub upstream: Arc<dyn Upstream>,
    /// Fills under way.
    pub flights: Flights,
    /// The session with the primary.
    pub session: SessionView,
    /// Pushes and deletes redirected from here.
    pub intents: Intents,
    /// Owns the questions under way.
    pub shutdown: Shutdown,
}

struct Shared {
    site: Site,
    remote: Option<Remote>,
}

/// A secondary's ways to the primary.
struct Remote {
    word: Word,
    flights: Flights,
    exclusion: Exclusion,
    session: SessionView,
    intents: Intents,
    remembered: Remembered,
}

impl PullService {
    /// A primary's service: its index is the truth.
    pub fn primary(site: Site) -> Self {
        Self { shared: Arc::new(Shared { site, remote: None }) }
    }

    /// A secondary's service. Whoever applies events must tell [`PullService::note_applied`].
    pub fn secondary(site: Site, edge: Edge) -> Self {
        let remote = Remote {
            word: Word::new(edge.upstream, &edge.shutdown),
            flights: edge.flights,
            exclusion: Exclusion::new(Arc::clone(&site.rules.policy), site.index.clone()),
            session: edge.session,
            intents: edge.intents,
            remembered: Remembered::new(site.rules.remembered_max),
        };
        Self { shared: Arc::new(Shared { site, remote: Some(remote) }) }
    }

    /// The manifest `reference` names in `repo`.
    ///
    /// # Errors
    /// [`PullError`]; a "no" is [`PullError::ManifestUnknown`] or [`PullError::NameUnknown`].
    pub async fn manifest(
        &self,
        caller: &Caller,
        repo: &RepoName,
        reference: &Reference,
        options: PullOptions,
    ) -> Result<ManifestAnswer, PullError> {
        let ask = Ask { caller, repo, options };
        self.counted(self.shared.manifest(&ask, reference).await)
    }

    /// Blob `digest` of `repo`. With [`Want::Headers`] nothing is fetched for it.
    ///
    /// # Errors
    /// [`PullError`]; a "no" is [`PullError::BlobUnknown`], and the same whether the blob is absent
    /// or merely not linked in `repo`.
    pub async fn blob(
        &self,
        caller: &Caller,
        repo: &RepoName,
        digest: &Digest,
        options: PullOptions,
    ) -> Result<BlobAnswer, PullError> {
        let ask = Ask { caller, repo, options };
        self.counted(self.shared.blob(&ask, digest).await)
    }

    /// A page of the tags of `repo`, in lexical order.
    ///
    /// # Errors
    /// [`PullError`]; [`PullError::NameUnknown`] when there is no such repository.
    pub async fn tags(
        &self,
        caller: &Caller,
        repo: &RepoName,
        page: &Page,
        options: PullOptions,
    ) -> Result<Listing<Tag>, PullError> {
        let ask = Ask { caller, repo, options };
        self.counted(self.shared.tags(&ask, page).await)
    }

    /// A page of all repositories, in lexical order.
    ///
    /// # Errors
    /// [`PullError`]; [`PullError::Denied`] when the caller may not list the catalog.
    pub async fn catalog(
        &self,
        caller: &Caller,
        page: &Page,
        options: PullOptions,
    ) -> Result<Listing<RepoName>, PullError> {
        self.counted(self.shared.catalog(caller, page, options).await)
    }

    /// The manifests of `repo` that refer to `subject`, of one artifact type or of all. Never a
    /// "no": without any the list is empty.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn referrers(
        &self,
        caller: &Caller,
        repo: &RepoName,
        subject: &Digest,
        artifact_type: Option<&str>,
        options: PullOptions,
    ) -> Result<Referrers, PullError> {
        let ask = Ask { caller, repo, options };
        let mut answer = self.counted(self.shared.referrers(&ask, subject).await)?;
        if let Some(wanted) = artifact_type {
            answer.referrers.retain(|referrer| referrer.artifact_type.as_deref() == Some(wanted));
        }
        Ok(answer)
    }

    /// Newest event applied here.
    pub fn applied(&self) -> Offset {
        self.shared.site.index.applied()
    }

    /// An event was applied to the index: write intents and remembered answers it ends are ended.
    /// To be called after the index shows it, for every event.
    pub fn note_applied(&self, event: &Event) {
        if let Some(remote) = &self.shared.remote {
            remote.intents.note_applied(event);
            remote.remembered.note_applied(event);
        }
    }

    /// A snapshot was loaded instead of single events.
    pub fn note_loaded(&self) {
        if let Some(remote) = &self.shared.remote {
            remote.remembered.forget_all();
        }
    }

    fn counted<T>(&self, pulled: Result<(T, PullResult), PullError>) -> Result<T, PullError> {
        let result = match &pulled {
            Ok((_, result)) => *result,
            Err(PullError::Denied) => PullResult::Denied,
            Err(PullError::NameUnknown | PullError::ManifestUnknown | PullError::BlobUnknown) => {
                PullResult::NotFound
            }
            Err(PullError::Unavailable { .. } | PullError::Internal) => PullResult::Unavailable,
        };
        self.shared.site.metrics.count(result);
        trace::set("outport.result", result.as_str());
        audit::note(|notes| notes.result = Some(result.as_str()));
        pulled.map(|(answer, _)| answer)
    }
}

impl std::fmt::Debug for PullService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullService")
            .field("secondary", &self.shared.remote.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
