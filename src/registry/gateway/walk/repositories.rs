//! The names of all repositories: those of the registry, and those of the log.

use std::{collections::BTreeSet, fs, path::PathBuf};

use outport_proto::RepoName;

use super::{Reconciler, Stopped};
use crate::{
    blocking,
    fetch::backend::{BackendError, GitLab},
    registry::gateway::{GatewayError, learn::Names},
};

/// Repositories of a registry, at most.
const REPOSITORIES_MAX: usize = 1_000_000;
/// Repositories of the log read at once.
const PAGE: usize = 1000;

/// Where the names of a registry's repositories come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// Its catalog.
    Catalog,
    /// Here.
    Names(Vec<RepoName>),
    /// A file with a name a line, read for every walk.
    File(PathBuf),
    /// GitLab's API.
    GitLab(GitLab),
}

impl Reconciler {
    /// All repositories, those of the log as well, in order.
    pub(super) async fn repositories(&self) -> Result<Vec<RepoName>, Stopped> {
        let mut names = match &self.shared.options.listed {
            Listed::Catalog => self.pages(None).await?,
            Listed::GitLab(gitlab) => self.pages(Some(gitlab)).await?,
            Listed::Names(names) => names.iter().cloned().collect(),
            Listed::File(path) => of_file(path.clone()).await?,
        };
        let mut last: Option<RepoName> = None;
        loop {
            let page = self.shared.gateway.index().repositories(last.as_ref().map(RepoName::as_str), PAGE);
            let page = page.map_err(GatewayError::from)?;
            let Some(end) = page.last() else {
                names.retain(|name| !name.is_canary());
                return Ok(names.into_iter().collect());
            };
            last = Some(end.clone());
            names.extend(page);
        }
    }

    /// The names of the registry's catalog, or of GitLab's projects.
    async fn pages(&self, gitlab: Option<&GitLab>) -> Result<BTreeSet<RepoName>, Stopped> {
        let mut names = Names::<RepoName>::new();
        loop {
            let (backend, next) = (self.shared.gateway.backend(), names.next.clone());
            let ask = || async {
                Ok(match gitlab {
                    None => backend.catalog(next.as_deref()).await?,
                    Some(gitlab) => backend.gitlab(gitlab, next.as_deref()).await?,
                })
            };
            let page = self.patiently(ask).await.map_err(explained)?;
            let more =
                names.take(page, REPOSITORIES_MAX).map_err(|error| Stopped::List(error.to_string()))?;
            if !more {
                names
                    .unfit
                    .into_iter()
                    .for_each(|name| self.unfit(format!("{name:?}: not a repository name")));
                return Ok(names.names);
            }
        }
    }
}

fn explained(stopped: Stopped) -> Stopped {
    match stopped {
        Stopped::Gateway(GatewayError::Backend(
            error @ (BackendError::Refused { .. } | BackendError::Status { .. }),
        )) => Stopped::List(format!(
            "{error} (where the catalog is closed: gateway.reconcile.source = \"file\" or \"gitlab\")"
        )),
        other => other,
    }
}

async fn of_file(path: PathBuf) -> Result<BTreeSet<RepoName>, Stopped> {
    let shown = path.display().to_string();
    let read = blocking::spawn(move || fs::read_to_string(&path));
    let text = read
        .await
        .map_err(|error| error.to_string())
        .and_then(|read| read.map_err(|error| error.to_string()));
    let text = text.map_err(|error| Stopped::List(format!("{shown}: {error}")))?;
    let lines = text.lines().map(str::trim).enumerate();
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| {
            let wrong =
                |_| Stopped::List(format!("{shown}, line {}: not a repository name: {line}", number + 1));
            line.parse().map_err(wrong)
        })
        .collect()
}
