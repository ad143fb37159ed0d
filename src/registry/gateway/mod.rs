//! The gateway: a registry that is here already stays the truth of what is in it, and the log tells
//! sites of it.
//!
//! What is recorded is what the registry says when it is asked: [`Gateway::observe`] asks about one tag,
//! manifest or blob and appends the event that makes the log agree. A push that goes through here is
//! sent to the registry, recorded, and only then acknowledged ([`Gateway::put_manifest`]). Whatever
//! tells of a push that went around it (a notification, a walk, a site's question) is a reason to
//! look and nothing more. An error is never an absence.
//!
//! - `observe`: asking and recording; `record`: from a manifest to its events; `learn`: from a list to them;
//! - [`notice`]: what the registry tells by itself, [`intake`]: who may tell; [`walk`]: looking at everything;
//! - `write`: pushes and deletes; `upstream`: what sites and pulls ask; `turns`: who may when.

pub mod intake;
mod learn;
pub mod notice;
mod observe;
mod record;
mod turns;
mod upstream;
pub mod walk;
mod write;

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use outport_proto::{Offset, Reference, RepoName};

pub use observe::Observed;
pub use upstream::GatewayUpstream;
pub use write::{Refusal, Shown, Taken, Writer, Written};

use self::{
    observe::{Budget, Doubts},
    turns::Turns,
};
use super::{Journal, JournalError, push::Fulfilled};
use crate::{
    clock::SharedClock,
    fetch::{
        UpstreamError,
        backend::{Backend, BackendError},
    },
    index::{Index, IndexError},
    shutdown::Shutdown,
    watch,
};

/// Follows a registry and records what is in it. Cloning gives another handle.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
}

struct Shared {
    backend: Backend,
    journal: Journal,
    clock: SharedClock,
    turns: Turns,
    fulfilled: Fulfilled,
    doubts: Doubts,
    budget: Budget,
    on_find: OnceLock<OnFind>,
    on_give_up: OnceLock<Box<dyn Fn() + Send + Sync>>,
    unsure: watch::Sender<bool>,
    shutdown: Shutdown,
}

/// Is told of what a question found: a tag that nobody had told of.
type OnFind = Box<dyn Fn(&RepoName, &Reference) + Send + Sync>;

/// Why something was not looked at, or not recorded. Nothing is recorded then.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GatewayError {
    /// The registry gave no answer.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// It has something that no site could serve.
    #[error("{reference} of {repo} cannot be replicated: {reason}")]
    Unfit {
        /// The repository.
        repo: RepoName,
        /// Which manifest.
        reference: Reference,
        /// Why not; for people.
        reason: String,
    },
    /// The registry lacks what the log has, and that is not to be removed.
    #[error("the registry lacks it now, and much else that it had")]
    NotRemoved,
    /// Too much else is done in the repository now.
    #[error("too much is done in the repository at once")]
    Busy,
    /// It could not be made durable.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What is known already cannot be read.
    #[error(transparent)]
    Index(#[from] IndexError),
}

impl From<GatewayError> for UpstreamError {
    fn from(error: GatewayError) -> Self {
        match error {
            GatewayError::Backend(error) => error.into(),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

impl Gateway {
    /// A gateway in front of `backend` that records in `journal`; questions remove at most `removals_max`
    /// tags, manifests and links an hour. Its work under way ends before `shutdown` does.
    pub fn new(
        backend: Backend,
        journal: Journal,
        clock: SharedClock,
        removals_max: u64,
        shutdown: Shutdown,
    ) -> Self {
        let shared = Shared {
            backend,
            journal,
            clock,
            turns: Turns::default(),
            fulfilled: Fulfilled::default(),
            doubts: Doubts::default(),
            budget: Budget::new(removals_max),
            on_find: OnceLock::new(),
            on_give_up: OnceLock::new(),
            unsure: watch::Sender::new(false),
            shutdown,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The registry.
    pub fn backend(&self) -> &Backend {
        &self.shared.backend
    }

    /// Whether the log may be of an older state than the registry, all of it: a walk was never through, or
    /// not since a backup was restored.
    pub fn unsure(&self) -> watch::Receiver<bool> {
        self.shared.unsure.subscribe()
    }

    /// Newest event that everything here is answered at or behind.
    pub fn applied(&self) -> Offset {
        self.shared.journal.applied()
    }

    /// Who keeps account of what questions find. The first one is told.
    fn on_find(&self, tell: impl Fn(&RepoName, &Reference) + Send + Sync + 'static) {
        let _ = self.shared.on_find.set(Box::new(tell));
    }

    /// Who looks again where a doubt was given up. The first one is told.
    fn on_give_up(&self, tell: impl Fn() + Send + Sync + 'static) {
        let _ = self.shared.on_give_up.set(Box::new(tell));
    }

    fn index(&self) -> &Index {
        self.shared.journal.index()
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("backend", &self.shared.backend).finish_non_exhaustive()
    }
}
