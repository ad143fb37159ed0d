//! From a request line to what is asked for, before anybody is authenticated and anything is read.

use std::borrow::Cow;

use http::{Method, Uri};
use outport_proto::{
    Algorithm, Digest, Reference, RepoName, Tag,
    route::{Endpoint, RouteError, UploadId, parse_path},
};

use crate::{
    auth::{Action as Doing, Actions, Scope},
    registry::Page,
};

/// Where a site answers, or redirects, token requests.
pub const TOKEN_PATH: &str = "/token";
/// Tags of one manifest push; the specification asks for at least ten.
const TAG_PARAMETERS_MAX: usize = 64;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Is this a registry, and am I let in?
    Ping,
    /// The repositories.
    Catalog(Page),
    /// The tags of a repository.
    Tags { repo: RepoName, page: Page },
    /// A manifest, or with HEAD its headers.
    GetManifest { repo: RepoName, reference: Reference },
    /// Put a manifest.
    PutManifest { repo: RepoName, reference: Reference, tags: Vec<Tag> },
    /// Delete a manifest or tag.
    DeleteManifest { repo: RepoName, reference: Reference },
    /// A blob, or with HEAD its headers.
    GetBlob { repo: RepoName, digest: Digest },
    /// Delete a blob.
    DeleteBlob { repo: RepoName, digest: Digest },
    /// What refers to a manifest.
    Referrers { repo: RepoName, digest: Digest, artifact_type: Option<String> },
    /// Begin an upload.
    StartUpload { repo: RepoName, start: UploadStart },
    /// Go on with an upload.
    Upload { repo: RepoName, id: UploadId, step: UploadStep },
    /// A token.
    Token(TokenMethod),
}

/// How an upload begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum UploadStart {
    /// With nothing; the algorithm may be announced.
    Session(Option<Algorithm>),
    /// With everything: the body is the blob.
    Whole(Digest),
    /// With a blob that another repository may hold.
    Mount { digest: Digest, from: Option<RepoName> },
}

/// What is done to an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UploadStep {
    /// How far is it?
    Status,
    /// Append the body.
    Append,
    /// Append the body, if any, and end.
    Finish(Digest),
    /// Give it up.
    Cancel,
}

/// The two ways to ask for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenMethod {
    /// Parameters in the query, the password in `Authorization`.
    Get,
    /// OAuth2: everything in a form.
    Post,
}

/// Why a request asks for nothing that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ActionError {
    /// The path leads nowhere.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The path knows only these methods.
    #[error("the method is not allowed here, only {allow}")]
    Method { allow: &'static str },
    /// A parameter is missing.
    #[error("the query has no {0} parameter")]
    Missing(&'static str),
    /// A digest parameter is none.
    #[error("the {0} parameter is not a supported digest")]
    Digest(&'static str),
    /// The `from` parameter is no repository.
    #[error("the from parameter is not a repository name")]
    From,
    /// A `tag` parameter is no tag, stands beside a tag, or there are too many.
    #[error("the tag parameters are not valid")]
    Tag,
    /// The `n` parameter is no number.
    #[error("the n parameter is not a number")]
    PageNumber,
}

impl Action {
    /// Reads a request line.
    pub(super) fn parse(method: &Method, uri: &Uri) -> Result<Self, ActionError> {
        let query = Query(uri.query().unwrap_or_default());
        if uri.path() == TOKEN_PATH {
            return match *method {
                Method::GET => Ok(Self::Token(TokenMethod::Get)),
                Method::POST => Ok(Self::Token(TokenMethod::Post)),
                _ => Err(ActionError::Method { allow: "GET, POST" }),
            };
        }
        let only_read = |action| match *method {
            Method::GET | Method::HEAD => Ok(action),
            _ => Err(ActionError::Method { allow: "GET, HEAD" }),
        };
        match parse_path(uri.path())? {
            Endpoint::Base => only_read(Self::Ping),
            Endpoint::Catalog => only_read(Self::Catalog(query.page()?)),
            Endpoint::Tags { repo } => only_read(Self::Tags { repo, page: query.page()? }),
            Endpoint::Referrers { repo, digest } => {
                let artifact_type = query.get("artifactType").filter(|text| !text.is_empty());
                only_read(Self::Referrers { repo, digest, artifact_type: artifact_type.map(Cow::into_owned) })
            }
            Endpoint::Manifest { repo, reference } => match *method {
                Method::GET | Method::HEAD => Ok(Self::GetManifest { repo, reference }),
                Method::PUT => Ok(Self::PutManifest { tags: query.tags(&reference)?, repo, reference }),
                Method::DELETE => Ok(Self::DeleteManifest { repo, reference }),
                _ => Err(ActionError::Method { allow: "GET, HEAD, PUT, DELETE" }),
            },
            Endpoint::Blob { repo, digest } => match *method {
                Method::GET | Method::HEAD => Ok(Self::GetBlob { repo, digest }),
                Method::DELETE => Ok(Self::DeleteBlob { repo, digest }),
                _ => Err(ActionError::Method { allow: "GET, HEAD, DELETE" }),
            },
            Endpoint::UploadStart { repo } => match *method {
                Method::POST => Ok(Self::StartUpload { start: query.upload_start()?, repo }),
                _ => Err(ActionError::Method { allow: "POST" }),
            },
            Endpoint::Upload { repo, id } => {
                let step = match *method {
                    Method::GET | Method::HEAD => UploadStep::Status,
                    Method::PATCH => UploadStep::Append,
                    Method::PUT => UploadStep::Finish(query.required_digest("digest")?),
                    Method::DELETE => UploadStep::Cancel,
                    _ => return Err(ActionError::Method { allow: "GET, HEAD, PATCH, PUT, DELETE" }),
                };
                Ok(Self::Upload { repo, id, step })
            }
        }
    }

    /// The repository it is about.
    pub(super) fn repo(&self) -> Option<&RepoName> {
        match self {
            Self::Ping | Self::Catalog(_) | Self::Token(_) => None,
            Self::Tags { repo, .. }
            | Self::GetManifest { repo, .. }
            | Self::PutManifest { repo, .. }
            | Self::DeleteManifest { repo, .. }
            | Self::GetBlob { repo, .. }
            | Self::DeleteBlob { repo, .. }
            | Self::Referrers { repo, .. }
            | Self::StartUpload { repo, .. }
            | Self::Upload { repo, .. } => Some(repo),
        }
    }

    /// What a token must grant for it.
    pub(super) fn scopes(&self) -> Vec<Scope> {
        match self {
            Self::Ping | Self::Token(_) => Vec::new(),
            Self::Catalog(_) => vec![Scope::Catalog],
            Self::Tags { repo, .. }
            | Self::GetManifest { repo, .. }
            | Self::GetBlob { repo, .. }
            | Self::Referrers { repo, .. } => vec![Scope::repository(repo, Doing::Pull)],
            Self::PutManifest { repo, .. } | Self::Upload { repo, .. } => {
                vec![Scope::repository(repo, Actions::PULL_PUSH)]
            }
            Self::StartUpload { repo, start } => {
                let push = Scope::repository(repo, Actions::PULL_PUSH);
                match start {
                    UploadStart::Mount { from: Some(from), .. } if from != repo => {
                        vec![push, Scope::repository(from, Doing::Pull)]
                    }
                    UploadStart::Session(_) | UploadStart::Whole(_) | UploadStart::Mount { .. } => vec![push],
                }
            }
            Self::DeleteManifest { repo, .. } | Self::DeleteBlob { repo, .. } => {
                vec![Scope::repository(repo, Doing::Delete)]
            }
        }
    }

    /// A word for logs.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Catalog(_) => "catalog",
            Self::Tags { .. } => "tags",
            Self::GetManifest { .. } => "manifest",
            Self::PutManifest { .. } => "manifest-put",
            Self::DeleteManifest { .. } => "manifest-delete",
            Self::GetBlob { .. } => "blob",
            Self::DeleteBlob { .. } => "blob-delete",
            Self::Referrers { .. } => "referrers",
            Self::StartUpload { start: UploadStart::Mount { .. }, .. } => "mount",
            Self::StartUpload { .. } => "upload-start",
            Self::Upload { step, .. } => match step {
                UploadStep::Status => "upload-status",
                UploadStep::Append => "upload-append",
                UploadStep::Finish(_) => "upload-finish",
                UploadStep::Cancel => "upload-cancel",
            },
            Self::Token(_) => "token",
        }
    }
}

/// A query, decoded when asked: `+` and `%20` are blanks. The first of equal names counts.
#[derive(Clone, Copy)]
pub(super) struct Query<'a>(pub(super) &'a str);

impl<'a> Query<'a> {
    /// Every parameter.
    pub(super) fn pairs(self) -> form_urlencoded::Parse<'a> {
        form_urlencoded::parse(self.0.as_bytes())
    }

    /// The value of a parameter.
    pub(super) fn get(self, name: &str) -> Option<Cow<'a, str>> {
        if self.0.is_empty() {
            return None;
        }
        self.pairs().find_map(|(key, value)| (key == name).then_some(value))
    }

    fn digest(self, name: &'static str) -> Result<Option<Digest>, ActionError> {
        self.get(name).map(|text| text.parse().map_err(|_| ActionError::Digest(name))).transpose()
    }

    fn required_digest(self, name: &'static str) -> Result<Digest, ActionError> {
        self.digest(name)?.ok_or(ActionError::Missing(name))
    }

    fn upload_start(self) -> Result<UploadStart, ActionError> {
        if let Some(digest) = self.digest("mount")? {
            let from = self.get("from").filter(|text| !text.is_empty());
            let from = from.map(|text| text.parse().map_err(|_| ActionError::From)).transpose()?;
            return Ok(UploadStart::Mount { digest, from });
        }
        if let Some(digest) = self.digest("digest")? {
            return Ok(UploadStart::Whole(digest));
        }
        let algorithm = self.get("digest-algorithm");
        let algorithm =
            algorithm.map(|text| text.parse().map_err(|_| ActionError::Digest("digest-algorithm")));
        Ok(UploadStart::Session(algorithm.transpose()?))
    }

    fn tags(self, reference: &Reference) -> Result<Vec<Tag>, ActionError> {
        let mut tags: Vec<Tag> = Vec::new();
        for (_, value) in self.pairs().filter(|(key, _)| key == "tag") {
            let tag = value.parse().map_err(|_| ActionError::Tag)?;
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        let beside_a_tag = !tags.is_empty() && matches!(reference, Reference::Tag(_));
        if beside_a_tag || tags.len() > TAG_PARAMETERS_MAX { Err(ActionError::Tag) } else { Ok(tags) }
    }

    fn page(self) -> Result<Page, ActionError> {
        let n = match self.get("n") {
            None => None,
            Some(text) if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) => {
                return Err(ActionError::PageNumber);
            }
            // A number beyond all numbers is capped like any other large one.
            Some(text) => Some(text.parse().unwrap_or(usize::MAX)),
        };
        Ok(Page { n, last: self.get("last").map(Cow::into_owned).filter(|last| !last.is_empty()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(line: &str) -> Result<Action, ActionError> {
        let (method, uri) = line.split_once(' ').unwrap();
        Action::parse(&method.parse().unwrap(), &uri.replace("{d}", DIGEST).parse().unwrap())
    }

    fn repo() -> RepoName {
        "team/app".parse().unwrap()
    }

    fn digest() -> Digest {
        DIGEST.parse().unwrap()
    }

    #[test]
    fn uploads_begin_in_three_ways() {
        let start = |query: &str| match parse(&format!("POST /v2/team/app/blobs/uploads/{query}")) {
            Ok(Action::StartUpload { start, .. }) => Ok(start),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        };
        let escaped = DIGEST.replace(':', "%3A");
        assert_eq!(start(""), Ok(UploadStart::Session(None)));
        assert_eq!(start("?digest-algorithm=sha512"), Ok(UploadStart::Session(Some(Algorithm::Sha512))));
        assert_eq!(start(&format!("?ns=x&digest={escaped}")), Ok(UploadStart::Whole(digest())));
        let from = Some("base/os".parse().unwrap());
        let mount = UploadStart::Mount { digest: digest(), from };
        assert_eq!(start(&format!("?from=base%2Fos&mount={escaped}")), Ok(mount));
        assert_eq!(start("?mount={d}"), Ok(UploadStart::Mount { digest: digest(), from: None }));
        assert_eq!(start("?mount=x"), Err(ActionError::Digest("mount")));
        assert_eq!(start("?mount={d}&from=../x"), Err(ActionError::From));
        assert_eq!(start("?digest-algorithm=md5"), Err(ActionError::Digest("digest-algorithm")));
    }

    #[test]
    fn the_steps_of_an_upload() {
        let path = "/v2/team/app/blobs/uploads/0123456789abcdef0123456789abcdef";
        for (line, expected) in [
            (format!("GET {path}?x=1"), UploadStep::Status),
            (format!("PATCH {path}"), UploadStep::Append),
            (format!("PUT {path}?a=b&digest={DIGEST}"), UploadStep::Finish(digest())),
            (format!("DELETE {path}"), UploadStep::Cancel),
        ] {
            let Ok(Action::Upload { step, .. }) = parse(&line) else { panic!("{line}") };
            assert_eq!(step, expected, "{line}");
        }
        assert_eq!(parse(&format!("PUT {path}")), Err(ActionError::Missing("digest")));
    }

    #[test]
    fn pages_are_bounded_numbers() {
        let page = |query: &str| match parse(&format!("GET /v2/_catalog{query}")) {
            Ok(Action::Catalog(page)) => Ok(page),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        };
        assert_eq!(page(""), Ok(Page { n: None, last: None }));
        assert_eq!(page("?n=0&last=a%2Fb"), Ok(Page { n: Some(0), last: Some("a/b".to_owned()) }));
        assert_eq!(page("?n=1000000000"), Ok(Page { n: Some(1_000_000_000), last: None }));
        assert_eq!(page(&format!("?n={}", "9".repeat(40))), Ok(Page { n: Some(usize::MAX), last: None }));
        for bad in ["-1", "", "x", "1.5", "%2B1", "+1"] {
            assert_eq!(page(&format!("?n={bad}")), Err(ActionError::PageNumber), "{bad}");
        }
    }

    #[test]
    fn tags_beside_a_digest() {
        let Ok(Action::PutManifest { tags, .. }) = parse("PUT /v2/team/app/manifests/{d}?tag=a&tag=b&tag=a")
        else {
            panic!()
        };
        assert_eq!(tags.iter().map(Tag::as_str).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(parse("PUT /v2/team/app/manifests/c?tag=a"), Err(ActionError::Tag));
        assert_eq!(parse("PUT /v2/team/app/manifests/{d}?tag=%2e%2e"), Err(ActionError::Tag));
    }

    #[test]
    fn wrong_methods_name_the_right_ones() {
        for (line, allow) in [
            ("POST /v2/", "GET, HEAD"),
            ("DELETE /v2/team/app/tags/list", "GET, HEAD"),
            ("PUT /v2/team/app/referrers/{d}", "GET, HEAD"),
            ("POST /v2/team/app/manifests/a", "GET, HEAD, PUT, DELETE"),
            ("PUT /v2/team/app/blobs/{d}", "GET, HEAD, DELETE"),
            ("GET /v2/team/app/blobs/uploads/", "POST"),
            ("PUT /token", "GET, POST"),
        ] {
            assert_eq!(parse(line), Err(ActionError::Method { allow }), "{line}");
        }
    }

    #[test]
    fn a_mount_needs_two_scopes() {
        let mount = parse("POST /v2/team/app/blobs/uploads/?mount={d}&from=base").unwrap();
        let scopes: Vec<String> = mount.scopes().iter().map(Scope::to_string).collect();
        assert_eq!(scopes, ["repository:team/app:pull,push", "repository:base:pull"]);
        assert_eq!(mount.repo(), Some(&repo()));
    }
}
