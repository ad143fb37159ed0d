//! Pulls through a site: facts, the real read rules, and the checks of every answer. The loop
//! around the rules does what `outport::registry::PullService` does for manifests.

use std::time::Duration;

use outport::registry::{
    PullRules,
    decide::{Decision, Facts, Kind, Role, Rule, Until, decide},
};
use outport_proto::{Digest, Offset, Reference, RepoName, Timestamp};

use crate::{
    Broken, Bug,
    clients::Token,
    oracle::Run,
    primary::Answer,
    world::{Happening, World},
};

/// What the real client of the primary gives a question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// A pull under way.
#[derive(Clone, Debug)]
pub(crate) struct Pull {
    pub(crate) client: usize,
    pub(crate) run: Run,
    pub(crate) repo: RepoName,
    pub(crate) reference: Reference,
    pub(crate) kind: Kind,
    pub(crate) token: Token,
    pub(crate) min_offset: Option<Offset>,
    /// The newest event acknowledged when it began.
    pub(crate) acknowledged: u64,
    /// The newest acknowledged write of the same thing through the same site when it began.
    pub(crate) written_here: u64,
    /// Counts its steps, so that what belongs to an earlier one is not taken for the present one's.
    pub(crate) stage: u64,
    pub(crate) waited: bool,
    pub(crate) cut: bool,
    pub(crate) until: Option<Until>,
    /// The session its question went over.
    pub(crate) asked: Option<u64>,
}

impl Pull {
    pub(crate) fn has_come(&self, applied: Offset, closed_time: Timestamp) -> bool {
        self.until.is_some_and(|until| until.applied <= applied && until.closed_time <= closed_time)
    }
}

/// Where an answer comes from, and at which event it says to hold.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// The site's index; nothing is said about its age.
    Here { age: Duration },
    /// The site's index, marked with its age.
    Stale { age: Duration },
    /// The site's index, about what cannot change.
    Immutable,
    /// The primary.
    Word,
}

impl World {
    pub(crate) fn begin_pull(&mut self, pull: Pull) -> Result<(), Broken> {
        let number = self.number();
        self.pulls.insert(number, pull);
        self.decide_pull(number)
    }

    /// Applies the rules and does what they say.
    pub(crate) fn decide_pull(&mut self, number: u64) -> Result<(), Broken> {
        let (now, bug) = (self.now, self.bug);
        let Some(pull) = self.pulls.get_mut(&number) else { return Ok(()) };
        let site = &mut self.sites[pull.run.0];
        let Some(process) = site.running.as_mut().filter(|_| site.life == pull.run.1) else {
            return self.pull_ends(number, "connection lost");
        };
        pull.stage += 1;
        (pull.until, pull.asked) = (None, None);
        process.waiters.remove(&number);
        let stage = pull.stage;

        let local = site.clock.now();
        let session = process.session(now);
        let applied = process.index.applied();
        let manifest = process.index.manifest(&pull.repo, &pull.reference);
        let manifest = manifest.map_err(|error| Broken(format!("a site's index: {error}")))?;
        let rules = PullRules::default();
        let mut facts = Facts {
            role: Role::Secondary,
            kind: pull.kind,
            may_pull: true,
            holds_push: pull.token.holds_push,
            known: manifest.is_some(),
            local: manifest.as_ref().is_some_and(|manifest| manifest.bytes.is_some()),
            remembered_no: false,
            session_live: session.live,
            reachable: session.reachable && !pull.cut,
            age: session.age(local),
            staleness_bound: rules.staleness_bound,
            stale_max: rules.stale_max,
            applied,
            closed_time: session.closed_time,
            token_offset: pull.token.offset,
            token_issued_at: pull.token.issued_at,
            min_offset: pull.min_offset,
            intent_open: process.intents.is_open(&pull.repo, &pull.reference, local),
            waited: pull.waited,
            wait_max: rules.wait_max,
        };
        match bug {
            Some(Bug::SkipStaleSession) => (facts.session_live, facts.age) = (true, Duration::ZERO),
            Some(Bug::SkipNewerToken) => (facts.token_offset, facts.token_issued_at) = (None, None),
            Some(Bug::SkipWriteIntent) => facts.intent_open = false,
            Some(Bug::SkipPushSession) => facts.holds_push = false,
            Some(Bug::SkipMinOffset) => facts.min_offset = None,
            Some(Bug::TrustLocalNo) => facts.remembered_no = true,
            Some(Bug::AppliedBeforeData) => facts.applied = process.subscriber.progress().received,
            Some(Bug::ClosedTimeTooEarly) => {
                if let Some(heartbeat) = process.subscriber.heartbeat() {
                    facts.closed_time = heartbeat.closed_time;
                    facts.age = session.primary_now(local).since(heartbeat.closed_time);
                }
            }
            _ => {}
        }
        let (decision, rule) = decide(&facts);
        let decided = name(decision);
        *self.report.rules.entry((rule.as_str(), decided)).or_default() += 1;
        self.trace_decision(number, decided.len() as u64, applied);

        let Some(pull) = self.pulls.get_mut(&number) else { return Ok(()) };
        match (decision, manifest) {
            (Decision::Serve, Some(manifest)) => {
                let source = match rule {
                    Rule::Unreachable => Source::Stale { age: facts.age },
                    Rule::Digest => Source::Immutable,
                    _ => Source::Here { age: facts.age },
                };
                self.check_answer(number, Some(manifest.digest), applied, source)?;
                self.pull_ends(number, if rule == Rule::Unreachable { "stale" } else { "local" })
            }
            (Decision::WaitThenServe { until }, _) => {
                (pull.waited, pull.until) = (true, Some(until));
                if let Some(process) = &mut self.sites[pull.run.0].running {
                    process.waiters.insert(number);
                }
                self.at(now + rules.wait_max, Happening::PullTimeout { pull: number, stage });
                Ok(())
            }
            (Decision::Revalidate | Decision::Fill, _) => {
                let process = self.sites[pull.run.0].running.as_ref();
                let Some(session) = process.and_then(|process| process.connection()) else {
                    return self.pull_is_answered(number, stage, &Answer::Lost);
                };
                pull.asked = Some(session);
                let site = pull.run.0;
                let arrival = self.network.links[site].up.arrival(now, &mut self.random);
                if !self.network.is_cut(session) {
                    self.at(arrival, Happening::Question { pull: number, stage, session });
                }
                self.at(now + ANSWER_TIMEOUT, Happening::PullTimeout { pull: number, stage });
                Ok(())
            }
            (Decision::NotFound, _) => Err(Broken(format!(
                "site {} says that there is no {:?} without asking the primary (the rule: {})",
                pull.run.0,
                pull.reference,
                rule.as_str()
            ))),
            (Decision::Unavailable | Decision::Serve, _) => self.pull_ends(number, "unavailable"),
            (Decision::Denied, _) => Err(Broken("a pull was denied".to_owned())),
        }
    }

    fn trace_decision(&mut self, number: u64, decided: u64, applied: Offset) {
        self.note(&[number, decided, applied.seq]);
    }

    pub(crate) fn pull_times_out(&mut self, number: u64, stage: u64) -> Result<(), Broken> {
        let Some(pull) = self.pulls.get_mut(&number).filter(|pull| pull.stage == stage) else {
            return Ok(());
        };
        pull.cut |= pull.asked.is_some();
        self.decide_pull(number)
    }

    pub(crate) fn pull_is_answered(
        &mut self,
        number: u64,
        stage: u64,
        answer: &Answer,
    ) -> Result<(), Broken> {
        let Some(pull) = self.pulls.get_mut(&number).filter(|pull| pull.stage == stage) else {
            return Ok(());
        };
        match answer {
            Answer::Said(digest, at) => {
                self.check_answer(number, *digest, *at, Source::Word)?;
                self.pull_ends(number, if digest.is_some() { "revalidated" } else { "not found" })
            }
            Answer::Lost => {
                pull.cut = true;
                self.decide_pull(number)
            }
        }
    }

    /// Every promise about one answer.
    fn check_answer(
        &mut self,
        number: u64,
        digest: Option<Digest>,
        at: Offset,
        source: Source,
    ) -> Result<(), Broken> {
        let Some(pull) = self.pulls.get(&number) else { return Ok(()) };
        let oracle = &self.oracle;
        let (repo, reference) = (&pull.repo, &pull.reference);
        let broken = |promise: &str, needed: u64| {
            Err(Broken(format!(
                "{promise}: site {} answers {digest:?} for {repo} {reference:?} at {at}, and event {needed} \
                 had to show ({source:?}); {pull:?}",
                pull.run.0
            )))
        };
        if oracle.named(repo, reference, at.seq) != digest {
            return broken("an index is not what the log leads to (a delete undone, an event lost)", at.seq);
        }
        let age = match source {
            Source::Here { age } | Source::Stale { age } => Some(age),
            Source::Immutable | Source::Word => None,
        };
        let mut needed = Vec::new();
        if let Some(age) = age {
            let shown = oracle.acknowledged_at(self.now.saturating_sub(age));
            needed.push(("an answer is older than it says", shown));
        }
        if let Source::Here { .. } = source {
            let bound = PullRules::default().staleness_bound;
            needed.push(("staleness bound", oracle.acknowledged_at(self.now.saturating_sub(bound))));
        }
        if let Source::Here { .. } | Source::Word = source {
            needed.push(("newer token", pull.token.acknowledged));
            needed.push(("read your writes at one site", pull.written_here));
            needed.push(("Outport-Min-Offset", pull.min_offset.map_or(0, |offset| offset.seq)));
            if pull.token.holds_push {
                needed.push(("push session", pull.acknowledged));
            }
        }
        if let Source::Word = source {
            let promise = if digest.is_none() { "false 404" } else { "the primary's word is old" };
            needed.push((promise, pull.acknowledged));
        }
        match needed.into_iter().find(|(_, needed)| !oracle.named_since(repo, reference, *needed, digest)) {
            Some((promise, needed)) => broken(promise, needed),
            None => Ok(()),
        }
    }

    /// The client got an answer, or none.
    fn pull_ends(&mut self, number: u64, how: &'static str) -> Result<(), Broken> {
        *self.report.pulls.entry(how).or_default() += 1;
        if let Some(pull) = self.pulls.remove(&number) {
            if let Some(process) = &mut self.sites[pull.run.0].running {
                process.waiters.remove(&number);
            }
            self.note(&[number, how.len() as u64]);
            self.client_rests(pull.client);
        }
        Ok(())
    }
}

const fn name(decision: Decision) -> &'static str {
    match decision {
        Decision::Serve => "serve",
        Decision::WaitThenServe { .. } => "wait",
        Decision::Revalidate => "revalidate",
        Decision::Fill => "fill",
        Decision::Unavailable => "unavailable",
        Decision::NotFound => "not-found",
        Decision::Denied => "denied",
    }
}
