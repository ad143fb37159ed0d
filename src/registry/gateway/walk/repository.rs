//! Walking one repository.

use std::{collections::BTreeSet, future::Future, sync::atomic::Ordering::Relaxed, time::Duration};

use outport_proto::{Digest, Reference, RepoName, Tag};
use tokio::{task::JoinSet, time::Instant};

use super::{By, FAILED_IN_A_ROW_MAX, NAMED_MAX, Reconciler, Stopped};
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
/// And while it answers that it failed.
const FAILURES_MAX: u32 = 2;
/// And while it wants to be asked less often.
const RESTS_MAX: u32 = 30;
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(60);

impl Reconciler {
    /// Walks a repository; returns how many changes were found in it.
    pub(super) async fn walk_repository(
        &self,
        repo: &RepoName,
        accept_removals: bool,
    ) -> Result<u64, Stopped> {
        let tags = self.tags(repo).await?.into_iter().map(Reference::Tag);
        let mut changes = self.look_at_all(repo, tags, accept_removals).await?;
        let mut last = None::<Digest>;
        loop {
            let page = self.shared.gateway.index().manifests(repo, last.as_ref(), PAGE);
            let page = page.map_err(GatewayError::from)?;
            let Some(end) = page.last() else { return Ok(changes) };
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
            let open = open.into_iter().map(Reference::Digest);
            changes += self.look_at_all(repo, open, accept_removals).await?;
        }
    }

    /// Looks at many things of a repository, several at once; returns how many of them had changed.
    async fn look_at_all(
        &self,
        repo: &RepoName,
        mut references: impl Iterator<Item = Reference>,
        accept_removals: bool,
    ) -> Result<u64, Stopped> {
        let (mut looks, mut changes) = (JoinSet::new(), 0);
        loop {
            while looks.len() < self.shared.options.concurrency
                && let Some(reference) = references.next()
            {
                let (this, repo) = (self.clone(), repo.clone());
                looks.spawn(async move { this.look(&repo, &reference, accept_removals).await });
            }
            let Some(looked) = looks.join_next().await else { return Ok(changes) };
            changes += u64::from(looked.map_err(|_| Stopped::Crashed)?? != Observed::Same);
        }
    }

    /// All tags of a repository: those that the registry lists, and those of the log.
    async fn tags(&self, repo: &RepoName) -> Result<BTreeSet<Tag>, Stopped> {
        let mut listed = Names::<Tag>::new();
        loop {
            let next = listed.next.clone();
            let ask = || async { Ok(self.shared.gateway.backend().tags(repo, next.as_deref()).await?) };
            let page = match self.patiently(ask).await {
                Ok(Some(page)) => page,
                // That there is no such repository is for each of its tags to say.
                Ok(None) => break,
                Err(stopped) => {
                    self.failed(format!("the tags of {repo}"), stopped)?;
                    break;
                }
            };
            match listed.take(page, TAGS_MAX) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    let error = Stopped::Gateway(error.into());
                    self.failed(format!("the tags of {repo}"), error)?;
                    break;
                }
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
        accept_removals: bool,
    ) -> Result<Observed, Stopped> {
        let gateway = &self.shared.gateway;
        let may_remove = || accept_removals || gateway.shared.budget.take();
        let ask = || gateway.observe_if(repo, reference, &may_remove);
        let observed = match self.patiently(ask).await {
            Ok(observed) => observed,
            Err(Stopped::Gateway(GatewayError::Unfit { reason, .. })) => {
                let name = format!("{repo}: {reference}: {reason}");
                if gateway.index().placed(repo, reference).map_err(GatewayError::from)?.is_some() {
                    self.stuck(name.clone());
                }
                self.unfit(name);
                Observed::Same
            }
            Err(Stopped::Gateway(GatewayError::NotRemoved)) => {
                gateway.shared.budget.close();
                self.shared.memory.removals_refused().await.map_err(Stopped::Memory)?;
                return Err(Stopped::Removals(self.shared.options.removals_max));
            }
            Err(stopped) => self.failed(format!("{repo}: {reference}"), stopped)?,
        };
        let mut report = self.note();
        report.looked_at += 1;
        match observed {
            Observed::Same => {}
            Observed::Found => report.found += 1,
            Observed::Gone => report.gone += 1,
        }
        drop(report);
        if observed != Observed::Same {
            self.found_unnoticed(repo, reference, By::Walk);
        }
        Ok(observed)
    }

    /// What the registry gives no sensible answer about does not keep the rest from being walked, unless that
    /// goes for everything.
    fn failed(&self, what: String, stopped: Stopped) -> Result<Observed, Stopped> {
        let error = match stopped {
            // It is down: that goes for everything.
            Stopped::Gateway(GatewayError::Backend(
                BackendError::Unreachable(_) | BackendError::Timeout(_),
            )) => {
                return Err(stopped);
            }
            Stopped::Gateway(error @ (GatewayError::Backend(_) | GatewayError::Busy)) => error,
            stopped => return Err(stopped),
        };
        let in_a_row = self.shared.failed_in_a_row.fetch_add(1, Relaxed) + 1;
        if in_a_row >= FAILED_IN_A_ROW_MAX {
            return Err(Stopped::Gateway(error));
        }
        let mut report = self.note();
        report.failed += 1;
        if report.failed_names.len() < NAMED_MAX {
            report.failed_names.push(format!("{what}: {error}"));
        }
        Ok(Observed::Same)
    }

    pub(super) fn unfit(&self, name: String) {
        let mut report = self.note();
        report.unfit += 1;
        if report.unfit_names.len() < NAMED_MAX {
            report.unfit_names.push(name);
        }
    }

    fn stuck(&self, name: String) {
        let mut report = self.note();
        report.stuck += 1;
        if report.stuck_names.len() < NAMED_MAX {
            report.stuck_names.push(name);
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
                Ok(answer) => {
                    self.shared.failed_in_a_row.store(0, Relaxed);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let wait = match &error {
                GatewayError::Backend(BackendError::TooMany { retry_after }) if rests < RESTS_MAX => {
                    rests += 1;
                    retry_after.unwrap_or(pause).clamp(PAUSE_MIN, PAUSE_MAX)
                }
                // What it fails at may be this one thing.
                GatewayError::Backend(BackendError::Status { .. }) if attempts >= FAILURES_MAX => {
                    return Err(error.into());
                }
                error if error.may_pass() && attempts < ATTEMPTS_MAX => {
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
