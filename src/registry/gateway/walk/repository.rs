//! Walking one repository.

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

use outport_proto::{Digest, Reference, RepoName, Tag};
use tokio::{task::JoinSet, time::Instant};

use super::{NAMED_MAX, Reconciler, Removals, Stopped};
use crate::{
    fetch::backend::BackendError,
    registry::gateway::{
        GatewayError, Observed,
        learn::{Names, TAGS_MAX},
    },
};

/// Rows of the index read at once.
const PAGE: usize = 1000;
/// How often a question is asked while the registry is silent, before the walk stops.
const ATTEMPTS_MAX: u32 = 5;
/// And while it wants to be asked less often.
const RESTS_MAX: u32 = 30;
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What a walk found in a repository.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Walked {
    pub(super) found: u64,
    pub(super) gone: u64,
}

impl Reconciler {
    pub(super) async fn walk_repository(
        &self,
        repo: &RepoName,
        removals: &Arc<Removals>,
    ) -> Result<Walked, Stopped> {
        let mut walked = Walked::default();
        let tags = self.tags(repo).await?.into_iter().map(Reference::Tag);
        self.look_at_all(repo, tags, removals, &mut walked).await?;
        let mut last = None::<Digest>;
        loop {
            let page = self.shared.gateway.index().manifests(repo, last.as_ref(), PAGE);
            let page = page.map_err(GatewayError::from)?;
            let Some(end) = page.last() else { return Ok(walked) };
            last = Some(end.digest);
            let mut open = Vec::new();
            for manifest in page {
                open.extend(self.shared.gateway.unknown_children(&manifest)?);
                let naming = self.shared.gateway.index().tags_naming(repo, &manifest.digest, 1);
                // A tag that was looked at a moment ago names it.
                if naming.map_err(GatewayError::from)?.is_empty() {
                    open.push(manifest.digest);
                }
            }
            self.look_at_all(repo, open.into_iter().map(Reference::Digest), removals, &mut walked).await?;
        }
    }

    /// Looks at many things of a repository, several at once.
    async fn look_at_all(
        &self,
        repo: &RepoName,
        mut references: impl Iterator<Item = Reference>,
        removals: &Arc<Removals>,
        walked: &mut Walked,
    ) -> Result<(), Stopped> {
        let mut looks = JoinSet::new();
        loop {
            while looks.len() < self.shared.options.concurrency
                && let Some(reference) = references.next()
            {
                let (this, repo, removals) = (self.clone(), repo.clone(), Arc::clone(removals));
                looks.spawn(async move { this.look(&repo, &reference, &removals).await });
            }
            let Some(looked) = looks.join_next().await else { return Ok(()) };
            match looked.map_err(|_| Stopped::Crashed)?? {
                Observed::Same => {}
                Observed::Found(_) => walked.found += 1,
                Observed::Gone(_) => walked.gone += 1,
            }
        }
    }

    /// All tags of a repository: those that the registry lists, and those of the log.
    async fn tags(&self, repo: &RepoName) -> Result<BTreeSet<Tag>, Stopped> {
        let mut listed = Names::<Tag>::new();
        loop {
            let next = listed.next.clone();
            let ask = || async { Ok(self.shared.gateway.backend().tags(repo, next.as_deref()).await?) };
            // That there is no such repository is for each of its tags to say.
            let Some(page) = self.patiently(ask).await? else { break };
            let more = listed.take(page, TAGS_MAX);
            if !more.map_err(|error| Stopped::List(format!("{repo}: {error}")))? {
                break;
            }
        }
        listed.unfit.into_iter().for_each(|name| self.unfit(format!("{repo}:{name}: not a tag")));
        let mut tags = listed.names;
        let mut last: Option<Tag> = None;
        loop {
            let page = self.shared.gateway.index().tags(repo, last.as_ref().map(Tag::as_str), PAGE);
            let page = page.map_err(GatewayError::from)?;
            let Some(end) = page.last() else { return Ok(tags) };
            last = Some(end.clone());
            tags.extend(page);
        }
    }

    async fn look(
        &self,
        repo: &RepoName,
        reference: &Reference,
        removals: &Removals,
    ) -> Result<Observed, Stopped> {
        let may_remove = || removals.take();
        let ask = || self.shared.gateway.observe_if(repo, reference, &may_remove);
        let observed = match self.patiently(ask).await {
            Ok(observed) => observed,
            Err(Stopped::Gateway(GatewayError::Unfit { reason, .. })) => {
                self.unfit(format!("{repo}: {reference}: {reason}"));
                Observed::Same
            }
            Err(Stopped::Gateway(GatewayError::NotRemoved)) => {
                return Err(Stopped::Removals(self.shared.options.removals_max));
            }
            Err(stopped) => return Err(stopped),
        };
        self.note().looked_at += 1;
        match observed {
            Observed::Same => {}
            Observed::Found(_) => self.found_unnoticed(repo, reference, (1, 0)),
            Observed::Gone(_) => self.found_unnoticed(repo, reference, (0, 1)),
        }
        Ok(observed)
    }

    pub(super) fn unfit(&self, name: String) {
        let mut report = self.note();
        report.unfit += 1;
        if report.unfit_names.len() < NAMED_MAX {
            report.unfit_names.push(name);
        }
    }

    /// Asks until there is an answer, at the pace that the registry is asked with. Errors that say
    /// something are answers.
    pub(super) async fn patiently<T, F>(&self, ask: impl Fn() -> F) -> Result<T, Stopped>
    where
        F: Future<Output = Result<T, GatewayError>>,
    {
        let (mut attempts, mut rests, mut pause) = (0, 0, PAUSE_MIN);
        loop {
            self.shared.pace.turn().await;
            let error = match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let wait = match &error {
                GatewayError::Backend(BackendError::TooMany { retry_after }) if rests < RESTS_MAX => {
                    rests += 1;
                    retry_after.unwrap_or(pause).clamp(PAUSE_MIN, PAUSE_MAX)
                }
                error if error.is_silence() && attempts < ATTEMPTS_MAX => {
                    attempts += 1;
                    pause
                }
                _ => return Err(error.into()),
            };
            tracing::debug!(%error, ?wait, "the walk rests");
            self.shared.pace.rest(Instant::now() + wait);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}
