//! Names, page by page: the tags of a repository, and the repositories.

use http::{HeaderMap, StatusCode, header};
use outport_proto::{RepoName, route::Endpoint};
use serde::Deserialize;

use super::{
    Backend, BackendError,
    client::{Asker, Question},
    credentials::Needs,
};

/// A page, at most: 10,000 tags of 128 bytes and their punctuation.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Names that a page is asked for.
const PAGE_NAMES: usize = 1000;

/// Some names, and where the next ones are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamePage {
    /// As the registry spells them.
    pub names: Vec<String>,
    /// The path of the next page, if there is one.
    pub next: Option<String>,
}

#[derive(Deserialize)]
struct Tags {
    /// `null` where a repository has none.
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Repositories {
    repositories: Option<Vec<String>>,
}

impl Backend {
    /// A page of the tags of `repo`, the first unless `next` is that of another page; `None` when the
    /// registry says that there is no such repository.
    ///
    /// # Errors
    /// [`BackendError`].
    pub async fn tags(&self, repo: &RepoName, next: Option<&str>) -> Result<Option<NamePage>, BackendError> {
        let first = || format!("{}?n={PAGE_NAMES}", Endpoint::Tags { repo: repo.clone() }.path());
        let path = next.map_or_else(first, str::to_owned);
        let page = self.page::<Tags>(&path, Needs::Pull(repo)).await?;
        Ok(page.map(|(Tags { tags }, next)| NamePage { names: tags.unwrap_or_default(), next }))
    }

    /// A page of the repositories, the first unless `next` is that of another page.
    ///
    /// # Errors
    /// [`BackendError`]; where there is no catalog [`BackendError::Status`] with 404.
    pub async fn catalog(&self, next: Option<&str>) -> Result<NamePage, BackendError> {
        let path = next.map_or_else(|| format!("/v2/_catalog?n={PAGE_NAMES}"), str::to_owned);
        match self.page::<Repositories>(&path, Needs::Catalog).await? {
            Some((Repositories { repositories }, next)) => {
                Ok(NamePage { names: repositories.unwrap_or_default(), next })
            }
            None => Err(BackendError::Status { status: 404 }),
        }
    }

    async fn page<T: for<'de> Deserialize<'de>>(
        &self,
        path: &str,
        needs: Needs<'_>,
    ) -> Result<Option<(T, Option<String>)>, BackendError> {
        let response = self.ask(&Question::get(path), Asker::Gateway(needs)).await?;
        if response.status() != StatusCode::OK {
            return self.no(response).await.map(|()| None);
        }
        let next = next_of(response.headers())?;
        if next.as_deref() == Some(path) {
            return Err(BackendError::Protocol("a page leads to itself".to_owned()));
        }
        let body = self.whole(response.into_body(), PAGE_BYTES_MAX).await?;
        let names = serde_json::from_slice(&body);
        let names = names.map_err(|_| BackendError::Protocol(format!("{path} is no list of names")))?;
        Ok(Some((names, next)))
    }
}

/// The path that `Link: <..>; rel="next"` leads to. Source: RFC 8288; OCI distribution specification,
/// "Listing tags".
fn next_of(headers: &HeaderMap) -> Result<Option<String>, BackendError> {
    let links = headers.get_all(header::LINK).iter().filter_map(|value| value.to_str().ok());
    for link in links {
        let Some((target, parameters)) =
            link.trim_start().strip_prefix('<').and_then(|link| link.split_once('>'))
        else {
            continue;
        };
        if !parameters.split(';').any(|parameter| matches!(parameter.trim(), "rel=next" | "rel=\"next\"")) {
            continue;
        }
        let path = Backend::own_path(target);
        return path.map(Some).ok_or_else(|| BackendError::Protocol(format!("the next page is {target}")));
    }
    Ok(None)
}
