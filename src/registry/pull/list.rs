//! Listings and referrers, answered from the index.

use std::{borrow::Borrow, time::Duration};

use outport_proto::{Digest, ManifestPut, Offset, Reference, RepoName, Tag};

use super::{
    Listing, Next, Page, PullError, PullOptions, Referrer, Referrers, Remote, Shared,
    rules::{Ask, Concerns, Found, Tried, View, note_cut, unavailable},
};
use crate::{
    auth::Caller,
    fetch::{FillError, UpstreamError},
    index::IndexError,
    registry::{
        decide::{Decision, Kind},
        metrics::PullResult,
    },
};

/// How long a listing waits until this site has applied what the primary had when it was asked.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);
/// A listing of the repositories belongs to none; the primary is asked for its head with this one.
const ANY_REPOSITORY: &str = "outport";

impl Shared {
    pub(super) async fn tags(
        &self,
        ask: &Ask<'_>,
        page: &Page,
    ) -> Result<(Listing<Tag>, PullResult), PullError> {
        ask.scope()?;
        let look = |last: Option<&str>, limit| {
            if !self.site.index.has_repository(ask.repo)? {
                return Ok(None);
            }
            self.site.index.tags(ask.repo, last, limit).map(Some)
        };
        self.listing(ask, page, ((true, ask.holds_push()), Concerns::Repository), look).await
    }

    pub(super) async fn catalog(
        &self,
        caller: &Caller,
        page: &Page,
        options: PullOptions,
    ) -> Result<(Listing<RepoName>, PullResult), PullError> {
        if !caller.access.allows_catalog() {
            return Err(PullError::Denied);
        }
        let repo = ANY_REPOSITORY.parse().map_err(|_| PullError::Internal)?;
        let ask = Ask { caller, repo: &repo, options };
        let look = |last: Option<&str>, limit: usize| {
            let mut names = self.site.index.repositories(last, limit.saturating_add(1))?;
            names.retain(|name| !name.is_canary());
            names.truncate(limit);
            Ok(Some(names))
        };
        self.listing(&ask, page, ((true, false), Concerns::Catalog), look).await
    }

    /// One page of what `look` finds. Where the rules say "ask the primary", its head is asked for
    /// and awaited here: then the index answers as the primary would have.
    async fn listing<T: Borrow<str>>(
        &self,
        ask: &Ask<'_>,
        page: &Page,
        (rights, concerns): ((bool, bool), Concerns<'_>),
        look: impl Fn(Option<&str>, usize) -> Result<Option<Vec<T>>, IndexError>,
    ) -> Result<(Listing<T>, PullResult), PullError> {
        let limit = page.n.unwrap_or(usize::MAX).min(self.site.rules.page_max);
        let look = || self.looked_up(look(page.last.as_deref(), limit.saturating_add(1)));
        let mut tried = Tried::default();
        loop {
            let view = self.view(ask.repo, concerns);
            let names = look()?;
            let found = Found { known: names.is_some(), local: true, remembered_no: false };
            let ruling = self.rule_for(ask, Kind::Listing, &view, found, &tried, rights);
            match (ruling.decision, names) {
                (Decision::Serve, Some(names)) => {
                    let staleness = ruling.staleness();
                    let listing = Listing { staleness, ..cut(names, limit, view.applied) };
                    return Ok((listing, ruling.result()));
                }
                (Decision::WaitThenServe { until }, _) => self.wait(until, &mut tried).await,
                (Decision::Revalidate | Decision::Fill, _) => match self.caught_up(self.remote()?, ask).await
                {
                    Ok(offset) => {
                        let names = look()?.ok_or(PullError::NameUnknown)?;
                        return Ok((cut(names, limit, offset), PullResult::Revalidated));
                    }
                    Err(error) => note_cut(ask, &mut tried, &error),
                },
                (Decision::Denied, _) => return Err(PullError::Denied),
                (Decision::NotFound, _) => return Err(PullError::NameUnknown),
                (Decision::Unavailable | Decision::Serve, _) => return Err(unavailable(&tried)),
            }
        }
    }

    /// Waits until this site has applied all that the primary had when this call began; returns
    /// what is applied then.
    async fn caught_up(&self, remote: &Remote, ask: &Ask<'_>) -> Result<Offset, FillError> {
        // What it names does not matter, the offset of the answer does.
        let reference = Reference::Digest(Digest::sha256(b""));
        let head = remote.word.manifest(ask.repo, &reference, self.site.index.applied()).await?.at;
        let mut applied = self.site.index.watch();
        let reached = tokio::time::timeout(CATCH_UP_MAX, applied.wait_for(|applied| *applied >= head)).await;
        match reached {
            Ok(Ok(applied)) => Ok(*applied),
            Ok(Err(_)) => Err(FillError::Stopping),
            Err(_) => Err(UpstreamError::Timeout(CATCH_UP_MAX).into()),
        }
    }

    pub(super) async fn referrers(
        &self,
        ask: &Ask<'_>,
        subject: &Digest,
    ) -> Result<(Referrers, PullResult), PullError> {
        ask.scope()?;
        let mut tried = Tried::default();
        loop {
            let view: View = self.view(ask.repo, Concerns::Repository);
            let found = self.looked_up(self.site.index.referrers(ask.repo, subject).map(Some))?;
            let manifests = found.unwrap_or_default();
            // An empty list is a "no": only the primary may say it.
            let known = !manifests.is_empty() || self.remote.is_none();
            let found = Found { known, local: true, remembered_no: false };
            let ruling = self.rule(ask, Kind::Referrers, &view, found, &tried);
            match ruling.decision {
                Decision::Serve => {
                    let staleness = ruling.staleness();
                    let answer = Referrers { staleness, ..described(&manifests, view.applied) };
                    return Ok((answer, ruling.result()));
                }
                Decision::WaitThenServe { until } => self.wait(until, &mut tried).await,
                Decision::Revalidate | Decision::Fill => {
                    match self.remote()?.word.referrers(ask.repo, subject, view.applied).await {
                        Ok(said) => return Ok((described(&said.value, said.at), PullResult::Revalidated)),
                        Err(error) => note_cut(ask, &mut tried, &error.into()),
                    }
                }
                Decision::Denied => return Err(PullError::Denied),
                Decision::NotFound | Decision::Unavailable => return Err(unavailable(&tried)),
            }
        }
    }
}

/// `names` were looked up with one more than `limit`, which shows whether there is a next page.
fn cut<T: Borrow<str>>(mut names: Vec<T>, limit: usize, offset: Offset) -> Listing<T> {
    let more = names.len() > limit;
    names.truncate(limit);
    let next = names.last().filter(|_| more);
    let next = next.map(|last| Next { n: limit, last: last.borrow().to_owned() });
    Listing { names, next, offset, staleness: None }
}

fn described(manifests: &[ManifestPut], offset: Offset) -> Referrers {
    let referrers = manifests.iter().map(|manifest| Referrer {
        digest: manifest.digest,
        media_type: manifest.media_type.clone(),
        size: manifest.size,
        artifact_type: manifest.artifact_type.clone(),
        annotations: manifest.annotations.clone(),
    });
    Referrers { referrers: referrers.collect(), offset, staleness: None }
}
