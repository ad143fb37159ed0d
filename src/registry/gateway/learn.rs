//! Recording what somebody asks for and the log does not have yet: all tags of a repository, all that
//! refers to a manifest.

use std::collections::BTreeSet;

use outport_proto::{Digest, Reference, RepoName, Tag};

use super::{Gateway, GatewayError};
use crate::fetch::backend::{BackendError, NamePage};

/// Tags of a repository, at most.
pub(super) const TAGS_MAX: usize = 1_000_000;
/// Pages of a list, at most; a list of GitLab's projects has empty ones.
const PAGES_MAX: usize = 100_000;
/// How many of them a question waits for. A walk records the others.
const LEARNT_MAX: usize = 1000;

/// The names of a list that grows page by page, as long as each brings something new.
#[derive(Debug)]
pub(super) struct Names<T> {
    pub(super) names: BTreeSet<T>,
    /// Names that are none here.
    pub(super) unfit: Vec<String>,
    pub(super) next: Option<String>,
    pages: usize,
}

impl<T: Ord + std::str::FromStr> Names<T> {
    pub(super) const fn new() -> Self {
        Self { names: BTreeSet::new(), unfit: Vec::new(), next: None, pages: 0 }
    }

    /// Takes in a page; says whether there is another.
    ///
    /// # Errors
    /// When there are more than `names_max`, or pages that bring nothing: a list without an end.
    pub(super) fn take(&mut self, page: NamePage, names_max: usize) -> Result<bool, BackendError> {
        let (before, is_empty) = (self.names.len() + self.unfit.len(), page.names.is_empty());
        for name in page.names {
            match name.parse() {
                Ok(name) => _ = self.names.insert(name),
                Err(_) => self.unfit.push(name),
            }
        }
        if self.names.len() > names_max || self.unfit.len() > names_max {
            return Err(BackendError::Protocol(format!("a list of more than {names_max} names")));
        }
        self.pages += 1;
        let brought_nothing = !is_empty && self.names.len() + self.unfit.len() == before;
        if page.next.is_some() && (brought_nothing || self.pages >= PAGES_MAX) {
            return Err(BackendError::Protocol("a list without an end".to_owned()));
        }
        self.next = page.next;
        Ok(self.next.is_some())
    }
}

impl Gateway {
    /// Records the tags of a repository of which the log has nothing.
    ///
    /// # Errors
    /// [`GatewayError`], also of single tags but those that no site could serve.
    pub(super) async fn learn(&self, repo: &RepoName) -> Result<(), GatewayError> {
        if repo.is_canary() {
            return Ok(());
        }
        let mut tags = Names::<Tag>::new();
        loop {
            let Some(page) = self.backend().tags(repo, tags.next.as_deref()).await? else { return Ok(()) };
            if !tags.take(page, TAGS_MAX)? || tags.names.len() >= LEARNT_MAX {
                break;
            }
        }
        for tag in tags.names.into_iter().take(LEARNT_MAX) {
            self.fit(self.observe(repo, &Reference::Tag(tag)).await)?;
        }
        Ok(())
    }

    /// Records what the registry says refers to `subject`, where it says that.
    ///
    /// # Errors
    /// [`GatewayError`], also of single manifests but those that no site could serve.
    pub(super) async fn learn_referrers(
        &self,
        repo: &RepoName,
        subject: &Digest,
    ) -> Result<(), GatewayError> {
        if repo.is_canary() {
            return Ok(());
        }
        let referrers = self.backend().referrers(repo, subject).await?;
        for referrer in referrers.unwrap_or_default() {
            if self.index().manifest_record(repo, &referrer)?.is_none() {
                self.fit(self.observe(repo, &Reference::Digest(referrer)).await)?;
            }
        }
        Ok(())
    }

    fn fit<T>(&self, observed: Result<T, GatewayError>) -> Result<(), GatewayError> {
        match observed {
            Ok(_) => Ok(()),
            Err(error @ GatewayError::Unfit { .. }) => {
                tracing::warn!(%error, "left out");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
