//! From a pull to the facts the rules decide by.

use std::time::Duration;

use outport_proto::{Offset, Reference, RepoName};

use super::{PullError, PullOptions, Remote, Shared, Staleness};
use crate::{
    auth::{Action, Caller},
    fetch::FillError,
    index::Whole,
    planted::{Bug, is_planted},
    registry::{
        Session,
        decide::{Decision, Facts, Kind, Role, Rule, Until, decide},
        metrics::PullResult,
        remembered::Asked,
    },
    telemetry::{audit, trace},
};

/// When to ask again for what cannot be had now.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Who asks, where and how.
pub(super) struct Ask<'a> {
    pub(super) caller: &'a Caller,
    pub(super) repo: &'a RepoName,
    pub(super) options: PullOptions,
}

impl Ask<'_> {
    /// Rule 1, before anything is looked at: the time a denial takes says nothing.
    pub(super) fn scope(&self) -> Result<(), PullError> {
        if self.may_pull() { Ok(()) } else { Err(PullError::Denied) }
    }

    pub(super) fn may_pull(&self) -> bool {
        self.caller.access.allows(self.repo, Action::Pull)
    }

    pub(super) fn holds_push(&self) -> bool {
        self.caller.access.allows(self.repo, Action::Push)
    }
}

/// What was tried for a pull already. Each is tried once, so a pull ends.
#[derive(Debug, Default)]
pub(super) struct Tried {
    /// It waited.
    pub(super) waited: bool,
    /// The primary was asked and gave no answer.
    pub(super) cut: bool,
}

/// How far this site is. Taken before the index is looked at, so that what is found there is
/// never older than this says.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) applied: Offset,
    whole: Option<Whole>,
    session: Session,
    age: Duration,
    intent_open: bool,
}

/// What an answer is about, as far as write intents tell.
#[derive(Clone, Copy, Debug)]
pub(super) enum Concerns<'a> {
    /// A tag, or a manifest or blob by its digest.
    Reference(&'a Reference),
    /// All of a repository: its tags, its referrers.
    Repository,
    /// All repositories.
    Catalog,
}

/// What was found here.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    /// The index has it.
    pub(super) known: bool,
    /// Its bytes are here, or none are wanted.
    pub(super) local: bool,
    /// The primary said "no" and nothing happened to the repository since.
    pub(super) remembered_no: bool,
}

/// A decision and what goes with an answer from here.
#[derive(Debug)]
pub(super) struct Ruling {
    pub(super) decision: Decision,
    rule: Rule,
    age: Duration,
    waited: bool,
}

impl Ruling {
    /// How old an answer from here may be; `None` when it is fresh.
    pub(super) fn staleness(&self) -> Option<Staleness> {
        (self.rule == Rule::Unreachable).then_some(Staleness { age: self.age })
    }

    /// How an answer from here counts.
    pub(super) fn result(&self) -> PullResult {
        match self.rule {
            Rule::Unreachable => PullResult::Stale,
            _ if self.waited => PullResult::Waited,
            _ => PullResult::Local,
        }
    }
}

impl Shared {
    /// How far this site is now. Write intents on what the pull `concerns` concern it.
    pub(super) fn view(&self, repo: &RepoName, concerns: Concerns<'_>) -> View {
        let now = self.site.clock.steady_time();
        let session = self.remote.as_ref().map(|remote| remote.session.now()).unwrap_or_default();
        let intent_open = self.remote.as_ref().is_some_and(|remote| match concerns {
            Concerns::Reference(reference) => remote.intents.is_open(repo, reference, now),
            Concerns::Repository => remote.intents.is_open_in(repo, now),
            Concerns::Catalog => remote.intents.is_any_open(now),
        });
        let age = session.age(&*self.site.clock);
        View { applied: self.site.index.applied(), whole: self.site.index.whole(), session, age, intent_open }
    }

    /// Whether all that was found in the index since `view` was of a state that the log led to.
    fn was_whole(&self, view: &View) -> bool {
        view.whole.is_some() && view.whole == self.site.index.whole()
    }

    /// Whether the primary's "no" is remembered. While something of the repository is announced to
    /// move it is not believed: a push by tag brings a digest that the announcement does not name.
    pub(super) fn remembers(&self, repo: &RepoName, asked: &Asked) -> bool {
        let Some(remote) = &self.remote else { return false };
        remote.remembered.get(repo, asked).is_some()
            && !remote.intents.is_open_in(repo, self.site.clock.steady_time())
    }

    /// Applies the rules.
    pub(super) fn rule(&self, ask: &Ask<'_>, kind: Kind, view: &View, found: Found, tried: &Tried) -> Ruling {
        self.rule_for(ask, kind, view, found, tried, (ask.may_pull(), ask.holds_push()))
    }

    /// Applies the rules to a caller who (may pull, holds push).
    pub(super) fn rule_for(
        &self,
        ask: &Ask<'_>,
        kind: Kind,
        view: &View,
        found: Found,
        tried: &Tried,
        (may_pull, holds_push): (bool, bool),
    ) -> Ruling {
        let rules = &self.site.rules;
        let by_token = rules.token_freshness;
        let mut facts = Facts {
            role: if self.remote.is_some() { Role::Secondary } else { Role::Primary },
            kind,
            may_pull,
            holds_push,
            known: found.known,
            local: found.local,
            remembered_no: found.remembered_no,
            // What was found while a snapshot replaced everything is no state of the primary's.
            session_live: view.session.live && !view.session.differs && self.was_whole(view),
            reachable: view.session.reachable && !tried.cut,
            age: view.age,
            staleness_bound: rules.policy.staleness_bound(ask.repo).unwrap_or(rules.staleness_bound),
            stale_max: rules.stale_max,
            applied: view.applied,
            closed_time: view.session.closed_time,
            token_offset: ask.caller.offset.filter(|_| by_token),
            token_issued_at: ask.caller.issued_at.filter(|_| by_token),
            min_offset: ask.options.min_offset,
            intent_open: view.intent_open,
            waited: tried.waited,
            wait_max: rules.wait_max,
        };
        spoil(&mut facts, view);
        let (decision, rule) = decide(&facts);
        audit::note(|notes| notes.rule = Some(rule.as_str()));
        let part = trace::span("decide");
        if part.is_recorded() {
            part.set("outport.rule", rule.as_str());
            part.set("outport.decision", format!("{decision:?}"));
        }
        tracing::trace!(repo = %ask.repo, ?kind, ?decision, rule = rule.as_str(), "pull decided");
        Ruling { decision, rule, age: facts.age, waited: tried.waited }
    }

    /// Waits until this site is that far, at most as long as the rules allow.
    pub(super) async fn wait(&self, until: Until, tried: &mut Tried) {
        tried.waited = true;
        if let Some(remote) = &self.remote {
            let reached = async {
                let mut applied = self.site.index.watch();
                // The index is never gone while this service holds it.
                let _ = applied.wait_for(|applied| *applied >= until.applied).await;
                remote.session.closed_time_reaches(until.closed_time).await;
            };
            // What was not reached in time shows when the rules are applied again.
            let waited = tokio::time::timeout(self.site.rules.wait_max, reached);
            let _ = trace::part("wait", waited).await;
        }
    }

    /// The way to the primary, for decisions that need one.
    pub(super) fn remote(&self) -> Result<&Remote, PullError> {
        self.remote.as_ref().ok_or_else(|| {
            tracing::error!("a primary was told to ask a primary");
            PullError::Internal
        })
    }

    /// What the index answers. A secondary can do without: it asks the primary.
    pub(super) fn looked_up<T>(
        &self,
        answer: Result<Option<T>, crate::index::IndexError>,
    ) -> Result<Option<T>, PullError> {
        answer.or_else(|error| {
            if self.remote.is_some() {
                tracing::warn!(%error, "index failed, the primary is asked instead");
                return Ok(None);
            }
            tracing::error!(%error, "index failed");
            Err(PullError::Internal)
        })
    }
}

/// Makes the mistakes that a simulation asks for.
fn spoil(facts: &mut Facts, view: &View) {
    if is_planted(Bug::SkipNewerToken) {
        (facts.token_offset, facts.token_issued_at) = (None, None);
    }
    facts.intent_open &= !is_planted(Bug::SkipWriteIntent);
    facts.holds_push &= !is_planted(Bug::SkipPushSession);
    facts.remembered_no |= !facts.known && is_planted(Bug::TrustLocalNo);
    if is_planted(Bug::AppliedBeforeData) {
        facts.applied = facts.applied.max(view.session.head);
    }
}

/// The primary gave no answer.
pub(super) fn note_cut(ask: &Ask<'_>, tried: &mut Tried, error: &FillError) {
    tracing::info!(repo = %ask.repo, %error, "primary gave no answer");
    tried.cut = true;
}

/// It may exist, and cannot be had now.
pub(super) fn unavailable(tried: &Tried) -> PullError {
    unavailable_because(if tried.cut {
        "this site does not have it and its primary gave no answer"
    } else {
        "this site does not have it and cannot reach its primary"
    })
}

/// It may exist, and cannot be had now.
pub(super) fn unavailable_because(reason: &str) -> PullError {
    PullError::Unavailable { reason: reason.to_owned(), retry_after: RETRY_AFTER }
}
