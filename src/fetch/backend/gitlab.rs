//! The repositories of a GitLab instance, by its API: the catalog of its registry is closed.
//!
//! Sources: GitLab REST API, "Projects" (keyset pagination) and "Container registry". It takes a token
//! that may read the API and the registry of all projects (scope `read_api`, an administrator's or
//! an auditor's).

use http::{HeaderName, HeaderValue, Request, StatusCode, Uri, header, uri::PathAndQuery};
use http_body_util::Full;
use serde::{Deserialize, de::DeserializeOwned};

use super::{Backend, BackendError, NamePage, Password, pages::next_uri};

const PRIVATE_TOKEN: HeaderName = HeaderName::from_static("private-token");
const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Pages of repositories of one project, at most: 100,000 repositories.
const PROJECT_PAGES_MAX: usize = 1000;

/// A GitLab instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitLab {
    /// Its URL: scheme and host, without a path.
    pub url: Uri,
    /// The token for its API.
    pub token: Password,
}

#[derive(Deserialize)]
struct Project {
    id: u64,
    /// `disabled`, `private` or `enabled`.
    container_registry_access_level: Option<String>,
}

#[derive(Deserialize)]
struct Repository {
    path: String,
}

impl Backend {
    /// The repositories of a page of GitLab's projects, the first unless `next` is that of another page.
    ///
    /// # Errors
    /// [`BackendError`].
    pub async fn gitlab(&self, gitlab: &GitLab, next: Option<&str>) -> Result<NamePage, BackendError> {
        let first = "/api/v4/projects?pagination=keyset&per_page=100&order_by=id&sort=asc";
        let (projects, next): (Vec<Project>, _) = self.api(gitlab, next.unwrap_or(first)).await?;
        let mut names = Vec::new();
        for Project { id, container_registry_access_level } in projects {
            if container_registry_access_level.as_deref() == Some("disabled") {
                continue;
            }
            let mut page = Some(format!("/api/v4/projects/{id}/registry/repositories?per_page=100"));
            for _ in 0..PROJECT_PAGES_MAX {
                let Some(path) = page.take() else { break };
                let (repositories, next): (Vec<Repository>, _) = self.api(gitlab, &path).await?;
                names.extend(repositories.into_iter().map(|repository| repository.path));
                page = next;
            }
            if page.is_some() {
                return Err(BackendError::Protocol(format!("the pages of project {id} do not end")));
            }
        }
        Ok(NamePage { names, next })
    }

    async fn api<T: DeserializeOwned>(
        &self,
        gitlab: &GitLab,
        path: &str,
    ) -> Result<(T, Option<String>), BackendError> {
        let wrong = |what: &str| BackendError::Protocol(format!("GitLab's API: {what}"));
        let mut parts = gitlab.url.clone().into_parts();
        parts.path_and_query = Some(path.parse::<PathAndQuery>().map_err(|_| wrong("no path"))?);
        let mut request = Request::new(Full::default());
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| wrong("no URL"))?;
        let token = gitlab.token.read().await?;
        let mut token = HeaderValue::try_from(token)
            .map_err(|_| BackendError::Credentials("they cannot stand in a header".to_owned()))?;
        token.set_sensitive(true);
        request.headers_mut().insert(PRIVATE_TOKEN, token);
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let response = self.shared.client.send(request, self.shared.options.answer_timeout).await?;
        if response.status() != StatusCode::OK {
            return Err(match self.no(response).await {
                Ok(()) => BackendError::Status { status: 404 },
                Err(error) => error,
            });
        }
        let next = next_uri(response.headers());
        let next = next.map(|next| own_path(gitlab, &next).ok_or_else(|| wrong("a page elsewhere")));
        let next = next.transpose()?;
        let body = self.whole(response.into_body(), PAGE_BYTES_MAX).await?;
        Ok((serde_json::from_slice(&body).map_err(|error| wrong(&error.to_string()))?, next))
    }
}

/// The path of a page, if it is one of the same instance: the token goes nowhere else.
fn own_path(gitlab: &GitLab, next: &str) -> Option<String> {
    let uri: Uri = next.parse().ok()?;
    let is_own = uri.authority().is_none() || uri.authority() == gitlab.url.authority();
    let path = uri.path_and_query()?.as_str();
    (is_own && path.starts_with("/api/v4/")).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_the_same_instance_alone() {
        let token = Password::Environment("TOKEN".to_owned());
        let gitlab = GitLab { url: "https://gitlab.example.com".parse().unwrap(), token };
        let path = |next: &str| own_path(&gitlab, next);
        let next = "/api/v4/projects?id_after=7&pagination=keyset";
        assert_eq!(path(&format!("https://gitlab.example.com{next}")).as_deref(), Some(next));
        assert_eq!(path(next).as_deref(), Some(next));
        for elsewhere in ["https://evil.example.com/api/v4/projects", "https://gitlab.example.com/evil", ""] {
            assert_eq!(path(elsewhere), None, "{elsewhere}");
        }
    }
}
