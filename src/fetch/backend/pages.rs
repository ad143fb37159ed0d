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
    #[serde(deserialize_with = "Option::deserialize")]
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Repositories {
    /// What holds none at all is no catalog.
    #[serde(deserialize_with = "Option::deserialize")]
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

/// The path of this registry that `Link: <..>; rel="next"` leads to.
pub(super) fn next_of(headers: &HeaderMap) -> Result<Option<String>, BackendError> {
    let Some(target) = next_uri(headers) else { return Ok(None) };
    let path = Backend::own_path(&target);
    path.map(Some).ok_or_else(|| BackendError::Protocol(format!("the next page is {target}")))
}

/// What `Link: <..>; rel="next"` leads to. Source: RFC 8288; OCI distribution specification, "Listing
/// tags".
pub(super) fn next_uri(headers: &HeaderMap) -> Option<String> {
    let links = headers.get_all(header::LINK).iter().filter_map(|value| value.to_str().ok());
    let mut links =
        links.flat_map(|value| value.split(", <")).map(|link| link.trim_start_matches([' ', '<']));
    links.find_map(|link| {
        let (target, parameters) = link.split_once('>')?;
        let is_next = |parameter: &str| matches!(parameter.trim(), "rel=next" | "rel=\"next\"");
        parameters.split(';').any(is_next).then(|| target.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn where_the_next_page_is() {
        let next = |link: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::LINK, HeaderValue::from_static(link));
            next_of(&headers)
        };
        let page = || Ok(Some("/v2/_catalog?last=b&n=2".to_owned()));
        assert_eq!(next("</v2/_catalog?last=b&n=2>; rel=\"next\""), page());
        assert_eq!(next("<https://registry.example.com/v2/_catalog?last=b&n=2>; rel=next"), page());
        assert_eq!(next("</v2/_catalog>; rel=\"prev\", </v2/_catalog?last=b&n=2>; rel=\"next\""), page());
        assert_eq!(next("</v2/_catalog>; rel=\"prev\""), Ok(None));
        assert!(next("<https://registry.example.com/evil>; rel=next").is_err());
        assert_eq!(next_of(&HeaderMap::new()), Ok(None));
    }
}
