//! The paths of the OCI distribution API, spelled once for those who serve and those who ask.
//!
//! A path is read as it came on the request line. Of its percent-encodings only those of
//! characters that names, tags and digests are made of are decoded, and only once; any other
//! (`%2f`, `%00`, `%25`) stays as it is and is then refused by the grammar of the part it stands
//! in, because no part may hold a `%`.
//!
//! Source: OCI distribution specification v1.1, "Endpoints".

use std::{borrow::Cow, fmt, str::FromStr};

use crate::{Digest, Reference, RepoName, digest::InvalidDigest, name::InvalidName};

/// What a path of the API stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v2/`: is this a registry, and am I let in?
    Base,
    /// `/v2/_catalog`: the repositories.
    Catalog,
    /// `/v2/<name>/manifests/<reference>`.
    Manifest {
        /// The repository.
        repo: RepoName,
        /// Tag or digest.
        reference: Reference,
    },
    /// `/v2/<name>/blobs/<digest>`.
    Blob {
        /// The repository.
        repo: RepoName,
        /// The blob.
        digest: Digest,
    },
    /// `/v2/<name>/blobs/uploads/`: where uploads begin.
    UploadStart {
        /// The repository.
        repo: RepoName,
    },
    /// `/v2/<name>/blobs/uploads/<id>`: an upload in progress.
    Upload {
        /// The repository.
        repo: RepoName,
        /// The upload.
        id: UploadId,
    },
    /// `/v2/<name>/tags/list`.
    Tags {
        /// The repository.
        repo: RepoName,
    },
    /// `/v2/<name>/referrers/<digest>`.
    Referrers {
        /// The repository.
        repo: RepoName,
        /// The subject.
        digest: Digest,
    },
}

impl Endpoint {
    /// Its path, without a query.
    pub fn path(&self) -> String {
        match self {
            Self::Base => "/v2/".to_owned(),
            Self::Catalog => "/v2/_catalog".to_owned(),
            Self::Manifest { repo, reference } => format!("/v2/{repo}/manifests/{reference}"),
            Self::Blob { repo, digest } => format!("/v2/{repo}/blobs/{digest}"),
            Self::UploadStart { repo } => format!("/v2/{repo}/blobs/uploads/"),
            Self::Upload { repo, id } => format!("/v2/{repo}/blobs/uploads/{id}"),
            Self::Tags { repo } => format!("/v2/{repo}/tags/list"),
            Self::Referrers { repo, digest } => format!("/v2/{repo}/referrers/{digest}"),
        }
    }

    /// The repository it is about; `None` for [`Endpoint::Base`] and [`Endpoint::Catalog`].
    pub fn repo(&self) -> Option<&RepoName> {
        match self {
            Self::Base | Self::Catalog => None,
            Self::Manifest { repo, .. }
            | Self::Blob { repo, .. }
            | Self::UploadStart { repo }
            | Self::Upload { repo, .. }
            | Self::Tags { repo }
            | Self::Referrers { repo, .. } => Some(repo),
        }
    }
}

/// The endpoint of a raw path: still percent-encoded, without scheme, host and query.
///
/// A repository may be named like a part of the API (`blobs/uploads`), so paths are read from
/// their end. The trailing slash of `/v2/` and of `/blobs/uploads/` may be missing.
///
/// # Errors
/// See [`RouteError`].
pub fn parse_path(path: &str) -> Result<Endpoint, RouteError> {
    let path = decode_once(path);
    let rest = match path.strip_prefix("/v2") {
        Some("" | "/") => return Ok(Endpoint::Base),
        Some("/_catalog") => return Ok(Endpoint::Catalog),
        Some(rest) => rest.strip_prefix('/').ok_or(RouteError::NotFound)?,
        None => return Err(RouteError::NotFound),
    };
    let (rest, last) = rest.rsplit_once('/').ok_or(RouteError::NotFound)?;
    let (name, collection) = rest.rsplit_once('/').ok_or(RouteError::NotFound)?;
    match (collection, last) {
        ("manifests", reference) => {
            Ok(Endpoint::Manifest { repo: parse_repo(name)?, reference: parse_reference(reference)? })
        }
        ("tags", "list") => Ok(Endpoint::Tags { repo: parse_repo(name)? }),
        ("referrers", digest) => Ok(Endpoint::Referrers { repo: parse_repo(name)?, digest: digest.parse()? }),
        ("blobs", "uploads") => Ok(Endpoint::UploadStart { repo: parse_repo(name)? }),
        ("blobs", digest) => Ok(Endpoint::Blob { repo: parse_repo(name)?, digest: digest.parse()? }),
        ("uploads", id) => {
            let name = name.strip_suffix("/blobs").ok_or(RouteError::NotFound)?;
            let repo = parse_repo(name)?;
            if id.is_empty() {
                return Ok(Endpoint::UploadStart { repo });
            }
            Ok(Endpoint::Upload { repo, id: id.parse()? })
        }
        _ => Err(RouteError::NotFound),
    }
}

fn parse_repo(text: &str) -> Result<RepoName, RouteError> {
    text.parse().map_err(|_| RouteError::InvalidName)
}

fn parse_reference(text: &str) -> Result<Reference, RouteError> {
    text.parse().map_err(|error| match error {
        InvalidName::Digest(error) => RouteError::InvalidDigest(error),
        InvalidName::Repository | InvalidName::Tag | InvalidName::Site => RouteError::InvalidTag,
    })
}

fn decode_once(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        decoded.push_str(before);
        match after.as_bytes() {
            [high, low, ..] if let Some(character) = escaped_name_character(*high, *low) => {
                decoded.push(character);
                rest = &after[2..];
            }
            _ => {
                decoded.push('%');
                rest = after;
            }
        }
    }
    decoded.push_str(rest);
    Cow::Owned(decoded)
}

fn escaped_name_character(high: u8, low: u8) -> Option<char> {
    let high = char::from(high).to_digit(16)?;
    let low = char::from(low).to_digit(16)?;
    let character = char::from_u32(high << 4 | low)?;
    (character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-' | ':')).then_some(character)
}

/// Why a path leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No endpoint has this form.
    #[error("no such endpoint")]
    NotFound,
    /// The repository name is not valid.
    #[error("the repository name is not valid")]
    InvalidName,
    /// The tag is not valid.
    #[error("the tag is not valid")]
    InvalidTag,
    /// The digest is not valid.
    #[error(transparent)]
    InvalidDigest(#[from] InvalidDigest),
    /// No upload can have this identifier.
    #[error(transparent)]
    InvalidUpload(#[from] InvalidUploadId),
}

/// Names an upload in progress: 16 random bytes, as text 32 lower-case hex characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId([u8; 16]);

impl UploadId {
    /// From 16 bytes, which should be random: whoever knows the identifier can name the upload.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for UploadId {
    type Err = InvalidUploadId;

    fn from_str(text: &str) -> Result<Self, InvalidUploadId> {
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 32 || !text.bytes().all(is_hex) {
            return Err(InvalidUploadId);
        }
        u128::from_str_radix(text, 16).map(|id| Self(id.to_be_bytes())).map_err(|_| InvalidUploadId)
    }
}

impl serde::Serialize for UploadId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for UploadId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is not 32 lower-case hex characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an upload identifier is 32 lower-case hex characters")]
pub struct InvalidUploadId;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn every_endpoint_and_back() {
        let id = UploadId::from_bytes([0x0f; 16]);
        let digest: Digest = DIGEST.parse().unwrap();
        for name in ["app", "team/app", "blobs/uploads", "v2/tags/list", "manifests"] {
            let repo: RepoName = name.parse().unwrap();
            for endpoint in [
                Endpoint::Base,
                Endpoint::Catalog,
                Endpoint::Manifest { repo: repo.clone(), reference: "list".parse().unwrap() },
                Endpoint::Manifest { repo: repo.clone(), reference: "uploads".parse().unwrap() },
                Endpoint::Manifest { repo: repo.clone(), reference: DIGEST.parse().unwrap() },
                Endpoint::Blob { repo: repo.clone(), digest },
                Endpoint::UploadStart { repo: repo.clone() },
                Endpoint::Upload { repo: repo.clone(), id },
                Endpoint::Tags { repo: repo.clone() },
                Endpoint::Referrers { repo: repo.clone(), digest },
            ] {
                assert_eq!(parse_path(&endpoint.path()), Ok(endpoint.clone()), "{}", endpoint.path());
            }
        }
        let repo: RepoName = "app".parse().unwrap();
        assert_eq!(parse_path("/v2"), Ok(Endpoint::Base));
        assert_eq!(parse_path("/v2/app/blobs/uploads"), Ok(Endpoint::UploadStart { repo: repo.clone() }));
        let escaped = format!("/v2/%61pp/blobs/{}", DIGEST.replace(':', "%3A"));
        assert_eq!(parse_path(&escaped), Ok(Endpoint::Blob { repo, digest }));
    }

    #[test]
    fn what_leads_nowhere_and_why() {
        let digest_error = |path| matches!(parse_path(path), Err(RouteError::InvalidDigest(_)));
        for path in [
            "",
            "/",
            "v2/",
            "/v1/",
            "/v22/",
            "/v2//",
            "/v2/app",
            "/v2/app/",
            "/v2/tags/list",
            "//v2/",
            "/v2/app/tags",
            "/v2/app/tags/",
            "/v2/app/tags/list/",
            "/v2/_catalog/",
            "/v2/app/uploads/",
            "/v2%2f",
        ] {
            assert_eq!(parse_path(path), Err(RouteError::NotFound), "{path}");
        }
        for name in [
            "",
            "..",
            "a/..",
            "a/../b",
            "%2e%2e",
            "%2e%2e%2fa",
            "a%2fb",
            "a%2Fb",
            "a%00",
            "a\0",
            "A",
            "%41",
            "a%252fb",
            "%25",
            "%",
            "%6",
            "a//b",
            "a/",
            "ä",
            "%C3%A4",
            "a%20b",
            "a b",
            "a\\b",
            "a%5cb",
            "_catalog",
        ] {
            let path = format!("/v2/{name}/tags/list");
            assert_eq!(parse_path(&path), Err(RouteError::InvalidName), "{path}");
        }
        for tag in ["", "..", "%2e%2e", "a%2fb", ".hidden", "-a", "a%00", "a@b", "a%3fb", "a%2562"] {
            let path = format!("/v2/app/manifests/{tag}");
            assert_eq!(parse_path(&path), Err(RouteError::InvalidTag), "{path}");
        }
        assert!(digest_error("/v2/app/blobs/"));
        assert_eq!(parse_path("/v2/app/blobs/sha256:../../../etc/passwd"), Err(RouteError::NotFound));
        assert!(digest_error("/v2/app/blobs/sha256:..%2f..%2fetc%2fpasswd"));
        assert!(digest_error("/v2/app/manifests/sha256:00"));
        assert!(digest_error("/v2/app/referrers/latest"));
        assert!(digest_error(&format!("/v2/app/blobs/{}", DIGEST.to_uppercase())));
        for id in ["x", "..", "0123456789ABCDEF0123456789ABCDEF", "+123456789abcdef0123456789abcdef"] {
            let path = format!("/v2/app/blobs/uploads/{id}");
            assert_eq!(parse_path(&path), Err(RouteError::InvalidUpload(InvalidUploadId)), "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_path_is_answered_and_what_is_accepted_is_canonical(path in "(/v2)?(/[a-z%.0-9A-F_:]{0,12}){0,5}(/(blobs|uploads|manifests|tags|list|referrers|\\PC{0,8})){0,3}") {
            if let Ok(endpoint) = parse_path(&path) {
                prop_assert!(!endpoint.path().contains(['%', '\0']) && !endpoint.path().contains(".."));
                prop_assert_eq!(parse_path(&endpoint.path()), Ok(endpoint));
            }
        }
    }
}
