//! Where images are, as a site knows it: from its own log, index and store, and the primary's word.

use crate::watch;
use std::{sync::Arc, time::Duration};

use outport_proto::{Digest, Offset, SiteName};
use tokio::time::{Instant, timeout_at};

use super::{prefetch::Progress, view::SiteView};
use crate::{
    clock::SharedClock,
    fetch::{At, BoxFuture, Upstream},
    policy::{Policy, Verdict},
    registry::{
        Journal, SessionView,
        whereabouts::{
            AskError, ImageRef, Missing, Sites, Stage, Standing, WaitFor, Whereabouts, WhyNot,
            answer::{Waited, WaitedSite, Why},
            looked_up, missing, standing,
            why::{CutOff, Facts, NotKeptBy, Own, Word},
        },
    },
    status::{SiteState, StoreStatus},
    store::Store,
};

/// A site's view of itself. Cloning gives another handle.
#[derive(Clone)]
pub struct OwnWhereabouts {
    /// The site.
    pub site: SiteName,
    /// Its log and index.
    pub journal: Journal,
    /// Its blobs.
    pub store: Store,
    /// What it keeps.
    pub policy: Arc<Policy>,
    /// How far copying ahead is.
    pub progress: watch::Receiver<Progress>,
    /// The primary.
    pub upstream: Arc<dyn Upstream>,
    /// The session with the primary.
    pub session: SessionView,
    /// The site's status.
    pub view: SiteView,
    /// The local clock.
    pub clock: SharedClock,
}

/// What a wait at a site is for.
#[derive(Clone, Copy, Debug)]
struct Goal {
    digest: Digest,
    offset: Offset,
}

impl Whereabouts for OwnWhereabouts {
    fn wait(&self, question: WaitFor) -> BoxFuture<'_, Result<Waited, AskError>> {
        Box::pin(self.waited(question))
    }

    fn why(&self, question: WhyNot) -> BoxFuture<'_, Result<Why, AskError>> {
        Box::pin(self.reason(question))
    }
}

impl OwnWhereabouts {
    async fn waited(&self, question: WaitFor) -> Result<Waited, AskError> {
        let (begun, stage) = (Instant::now(), question.stage);
        match &question.sites {
            Sites::All => return Err(AskError::OtherSite(self.site.clone())),
            Sites::Named(site) => self.is_this(site)?,
            Sites::Answered => {}
        }
        let deadline = begun + question.timeout;
        let goal = match timeout_at(deadline, self.shown(&question)).await {
            Ok(goal) => Some(goal?),
            Err(_) => None,
        };
        let mut progress = self.progress.clone();
        let reached = match (goal, stage) {
            (None, _) => false,
            (Some(_), Stage::Visible) => true,
            (Some(goal), Stage::Complete) => {
                let complete = progress.wait_for(|progress| progress.complete >= goal.offset);
                matches!(timeout_at(deadline, complete).await, Ok(Ok(_)))
            }
        };
        let complete = progress.borrow().complete;
        Ok(Waited {
            reference: question.image.to_string(),
            digest: goal.map(|goal| goal.digest).or(question.digest).map(|digest| digest.to_string()),
            offset: goal.map(|goal| goal.offset.to_string()),
            stage,
            reached,
            waited_seconds: begun.elapsed().as_secs_f64(),
            sites: vec![WaitedSite {
                site: self.site.to_string(),
                reached,
                applied: self.journal.applied().to_string(),
                complete: complete.to_string(),
            }],
        })
    }

    fn is_this(&self, site: &SiteName) -> Result<(), AskError> {
        if *site == self.site { Ok(()) } else { Err(AskError::OtherSite(self.site.clone())) }
    }

    /// Resolves when this site's index shows the image.
    async fn shown(&self, question: &WaitFor) -> Result<Goal, AskError> {
        let image = &question.image;
        if let Some(digest) = question.digest {
            return self.shown_here(image, |goal| goal.digest == digest).await;
        }
        let At { value, at } = self.said(image).await;
        match value {
            // What the primary did not have comes after what it had.
            None => self.shown_here(image, |goal| goal.offset > at).await,
            Some(digest) => {
                let mut applied = self.journal.watch_applied();
                if applied.wait_for(|applied| *applied >= at).await.is_err() {
                    std::future::pending::<()>().await;
                }
                let here = self.here(image).await?.filter(|goal| goal.digest == digest);
                Ok(Goal { digest, offset: here.map_or(at, |goal| goal.offset.min(at)) })
            }
        }
    }

    async fn shown_here(&self, image: &ImageRef, is_it: impl Fn(&Goal) -> bool) -> Result<Goal, AskError> {
        let mut applied = self.journal.watch_applied();
        loop {
            applied.mark_unchanged();
            if let Some(goal) = self.here(image).await?.filter(&is_it) {
                return Ok(goal);
            }
            if applied.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn here(&self, image: &ImageRef) -> Result<Option<Goal>, AskError> {
        let (index, image) = (self.journal.index().clone(), image.clone());
        let placed = looked_up(move || Ok(index.placed(&image.repo, &image.reference)?)).await?;
        Ok(placed.map(|placed| Goal { digest: placed.digest, offset: placed.offset }))
    }

    /// What the primary says, as soon as it says something: asked again with the next heartbeat.
    async fn said(&self, image: &ImageRef) -> At<Option<Digest>> {
        let mut session = self.session.watch();
        loop {
            session.mark_unchanged();
            match self.upstream.resolve(&image.repo, &image.reference).await {
                Ok(At { value, at }) => return At { value: value.map(|put| put.digest), at },
                Err(error) => tracing::debug!(%image, %error, "a wait asks the primary again"),
            }
            if session.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn reason(&self, WhyNot { image, site, caller }: WhyNot) -> Result<Why, AskError> {
        if caller.is_some() {
            return Err(AskError::WhoseRights);
        }
        site.as_ref().map_or(Ok(()), |site| self.is_this(site))?;
        let primary = match self.upstream.resolve(&image.repo, &image.reference).await {
            Ok(At { value: Some(put), at }) => Word::Shown { digest: put.digest, offset: at },
            Ok(At { value: None, at }) => Word::Absent { at },
            Err(error) => {
                tracing::debug!(%image, %error, "the primary did not say why");
                Word::Silent
            }
        };
        let this = self.clone();
        looked_up(move || this.facts(image, primary).map(|facts| facts.explain())).await
    }

    fn facts(&self, image: ImageRef, primary: Word) -> Result<Facts, AskError> {
        // Read before the index, so that what is found there is never older than this says.
        let (applied, progress) = (self.journal.applied(), *self.progress.borrow());
        let index = self.journal.index();
        let standing = standing(index, self.journal.log(), &image)?;
        let missing = match &standing {
            Standing::Shown { digest, .. } => missing(index, &self.store, &self.policy, &image.repo, digest)?,
            Standing::Deleted(_) | Standing::Unknown => Missing::default(),
        };
        let status = self.view.status(StoreStatus::default());
        let silence = status.heartbeat_age_seconds.map(Duration::from_secs_f64);
        let cut_off = status.state == SiteState::Disconnected;
        let by = |verdict: Verdict| NotKeptBy { keep: verdict.keep, text: self.policy.describe(&verdict) };
        let rule = missing.verdict.map(by);
        Ok(Facts {
            denied: None,
            image,
            site: self.site.clone(),
            primary,
            cut_off: cut_off.then(|| CutOff::after(silence, self.clock.now())),
            applied,
            complete: progress.complete,
            lag_events: status.lag_events,
            lag_seconds: status.lag_seconds.applied,
            missing_blobs: status.missing_blobs,
            own: Some(Own { standing, missing, rule, fill_rate: progress.fill_rate }),
        })
    }
}
