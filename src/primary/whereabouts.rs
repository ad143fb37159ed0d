//! Where images are, as the primary knows it: from its own log and what the sites acknowledged.

use crate::watch;
use std::time::Duration;

use outport_proto::{Digest, Offset, SiteName};
use tokio::time::{Instant, timeout_at};

use super::fleet::{Fleet, Head, Reached};
use crate::{
    auth::{AccessRules, Action},
    clock::SharedClock,
    fetch::BoxFuture,
    index::Placed,
    registry::{
        Journal,
        whereabouts::{
            AskError, Caller, Sites, Stage, Standing, WaitFor, Whereabouts, WhyNot,
            answer::{Waited, WaitedSite, Why},
            looked_up, standing,
            why::{CutOff, Facts, Word},
        },
    },
    status::SiteState,
};

/// A primary's view of its sites. Cloning gives another handle.
#[derive(Clone)]
pub struct FleetWhereabouts {
    /// The primary's log and index.
    pub journal: Journal,
    /// What the sites said.
    pub fleet: Fleet,
    /// Who may do what, if that is known here.
    pub rules: Option<AccessRules>,
    /// The primary's clock.
    pub clock: SharedClock,
}

impl Whereabouts for FleetWhereabouts {
    fn wait(&self, question: WaitFor) -> BoxFuture<'_, Result<Waited, AskError>> {
        Box::pin(self.waited(question))
    }

    fn why(&self, question: WhyNot) -> BoxFuture<'_, Result<Why, AskError>> {
        Box::pin(self.reason(question))
    }
}

impl FleetWhereabouts {
    async fn waited(&self, question: WaitFor) -> Result<Waited, AskError> {
        let (begun, stage) = (Instant::now(), question.stage);
        let deadline = begun + question.timeout;
        let mut followed = self.followed(&question.sites)?;
        let placed = match timeout_at(deadline, self.placed(&question)).await {
            Ok(placed) => Some(placed?),
            Err(_) => None,
        };
        if let Some(goal) = placed {
            for (_, reached) in &mut followed {
                let done = reached.wait_for(|reached| stage_of(reached, stage) >= goal.offset);
                // The table keeps every row it ever had, so none of them ends.
                let _ = timeout_at(deadline, done).await;
            }
        }
        let sites: Vec<_> = followed
            .iter()
            .map(|(site, reached)| {
                let reached = *reached.borrow();
                WaitedSite {
                    site: site.to_string(),
                    reached: placed.is_some_and(|goal| stage_of(&reached, stage) >= goal.offset),
                    applied: reached.applied.to_string(),
                    complete: reached.complete.to_string(),
                }
            })
            .collect();
        Ok(Waited {
            reference: question.image.to_string(),
            digest: placed.map(|goal| goal.digest).or(question.digest).map(|digest| digest.to_string()),
            offset: placed.map(|goal| goal.offset.to_string()),
            stage,
            reached: placed.is_some() && sites.iter().all(|site| site.reached),
            waited_seconds: begun.elapsed().as_secs_f64(),
            sites,
        })
    }

    fn followed(&self, sites: &Sites) -> Result<Vec<(SiteName, watch::Receiver<Reached>)>, AskError> {
        let names = match sites {
            Sites::Answered | Sites::All => self.fleet.sites(),
            Sites::Named(site) => vec![site.clone()],
        };
        let follow = |site: SiteName| match self.fleet.follow(&site) {
            Some(reached) => Ok((site, reached)),
            None => Err(AskError::UnknownSite(site)),
        };
        names.into_iter().map(follow).collect()
    }

    /// Resolves when the primary shows the image.
    async fn placed(&self, question: &WaitFor) -> Result<Placed, AskError> {
        let mut applied = self.journal.watch_applied();
        loop {
            applied.mark_unchanged();
            let (index, image) = (self.journal.index().clone(), question.image.clone());
            let placed = looked_up(move || Ok(index.placed(&image.repo, &image.reference)?)).await?;
            let is_it = |digest: Digest| question.digest.is_none_or(|asked| asked == digest);
            if let Some(placed) = placed.filter(|placed| is_it(placed.digest)) {
                return Ok(placed);
            }
            if applied.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn reason(&self, question: WhyNot) -> Result<Why, AskError> {
        let this = self.clone();
        looked_up(move || this.facts(question).map(|facts| facts.explain())).await
    }

    fn facts(&self, WhyNot { image, site, caller }: WhyNot) -> Result<Facts, AskError> {
        let site = site.ok_or(AskError::WhichSite)?;
        let reached = self.fleet.follow(&site).ok_or_else(|| AskError::UnknownSite(site.clone()))?;
        // What the site said is read before the log: then it is never ahead of what the log says.
        let reached = *reached.borrow();
        let (log, now) = (self.journal.log(), self.clock.now());
        let head = Head { cluster: String::new(), offset: log.head(), log_bytes: log.bytes(), now };
        let first_after = |after| log.read(after, 1).ok()?.first().map(|record| record.event.time);
        let status = self.fleet.status(&site, &head, first_after);
        let status = status.ok_or_else(|| AskError::UnknownSite(site.clone()))?;
        let primary = match standing(self.journal.index(), log, &image)? {
            Standing::Shown { digest, offset } => Word::Shown { digest, offset },
            Standing::Deleted(deletion) => Word::Deleted(deletion),
            Standing::Unknown => Word::NeverSeen,
        };
        let silence = status.heartbeat_age_seconds.map(Duration::from_secs_f64);
        let may_pull = |caller: &Caller| {
            let user = match caller {
                Caller::Anonymous => None,
                Caller::User(name) => Some(name.as_str()),
            };
            self.rules.as_ref().is_none_or(|rules| rules.allowed(user, &image.repo).contains(Action::Pull))
        };
        Ok(Facts {
            denied: caller.filter(|caller| !may_pull(caller)),
            image,
            site,
            primary,
            cut_off: (status.state == SiteState::Disconnected).then(|| CutOff::after(silence, now)),
            applied: reached.applied,
            complete: reached.complete,
            lag_events: status.lag_events,
            lag_seconds: status.lag_seconds.applied,
            missing_blobs: status.missing_blobs,
            own: None,
        })
    }
}

fn stage_of(reached: &Reached, stage: Stage) -> Offset {
    match stage {
        Stage::Visible => reached.applied,
        Stage::Complete => reached.complete,
    }
}
