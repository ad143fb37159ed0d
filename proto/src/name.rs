//! Names: repositories, tags, references and sites.
//!
//! Source: OCI distribution specification v1.1, "Pulling manifests", for repositories and tags.

use std::{fmt, str::FromStr, sync::Arc};

use crate::{
    codec::{Decode, Encode},
    digest::{Digest, InvalidDigest},
};

/// Longest repository name in bytes; clients with a hostname in front stay under 255 in all,
/// a registry has to bound it somewhere.
pub const REPO_NAME_BYTES_MAX: usize = 255;
/// Longest tag in bytes, fixed by the specification's grammar.
pub const TAG_BYTES_MAX: usize = 128;
/// Longest site name in bytes: it is a DNS label in certificates.
pub const SITE_NAME_BYTES_MAX: usize = 63;

macro_rules! text_newtype {
    ($name:ident) => {
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A repository name such as `team/app`: lower-case path components separated by `/`.
/// Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoName(Arc<str>);

/// The repository of the canary: a tiny image that the primary pushes again and again and every site pulls.
pub const CANARY_REPO: &str = "outport/canary";

impl RepoName {
    /// Whether this is [`CANARY_REPO`]: the primary's own, whatever policies, catalogs and registries say.
    pub fn is_canary(&self) -> bool {
        self.as_str() == CANARY_REPO
    }
}
text_newtype!(RepoName);

impl FromStr for RepoName {
    type Err = InvalidName;

    /// Grammar: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.len() > REPO_NAME_BYTES_MAX || !text.split('/').all(is_path_component) {
            return Err(InvalidName::Repository);
        }
        Ok(Self(text.into()))
    }
}

fn is_path_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    bytes.split(alphanumeric).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
    })
}

/// A tag such as `1.2`. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(Arc<str>);
text_newtype!(Tag);

impl FromStr for Tag {
    type Err = InvalidName;

    /// Grammar: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        match text.as_bytes() {
            [first, rest @ ..]
                if rest.len() < TAG_BYTES_MAX
                    && word(*first)
                    && rest.iter().all(|byte| word(*byte) || matches!(byte, b'.' | b'-')) =>
            {
                Ok(Self(text.into()))
            }
            _ => Err(InvalidName::Tag),
        }
    }
}

/// What a manifest is asked for by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Reference {
    /// A movable name.
    Tag(Tag),
    /// The content itself.
    Digest(Digest),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Reference {
    type Err = InvalidName;

    /// A colon makes it a digest: no tag may hold one.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.contains(':') { Ok(Self::Digest(text.parse()?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

/// A site name such as `mumbai`: one DNS label. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteName(Arc<str>);
text_newtype!(SiteName);

impl FromStr for SiteName {
    type Err = InvalidName;

    /// Grammar: `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        if bytes.len() <= SITE_NAME_BYTES_MAX
            && bytes.first().is_some_and(edge)
            && bytes.last().is_some_and(edge)
            && bytes.iter().all(|byte| edge(byte) || *byte == b'-')
        {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName::Site)
        }
    }
}

/// Why a text is not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not a repository name.
    #[error("the repository name is not valid")]
    Repository,
    /// Not a tag.
    #[error("the tag is not valid")]
    Tag,
    /// A reference with a colon that is not a digest.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    /// Not a site name.
    #[error("a site name is a DNS label: lower-case letters, digits and inner hyphens, at most 63")]
    Site,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names() {
        let longest = "a".repeat(255);
        for good in ["a", "team/app", "a.b_c__d---e/f0", "0", &longest] {
            assert_eq!(good.parse::<RepoName>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
        let too_long = "a".repeat(256);
        for bad in [
            "", "/", "a/", "/a", "a//b", "A", "a/../b", "..", "a..b", "a___b", "a._b", "-a", "a-", "a%2fb",
            "a\0b", "ä", "a b", "a:b", "a@b", &too_long,
        ] {
            assert_eq!(bad.parse::<RepoName>(), Err(InvalidName::Repository), "{bad:?}");
        }
    }

    #[test]
    fn tags_and_references() {
        let longest = "T".repeat(128);
        for good in ["latest", "1.2-rc_3", "_", &longest] {
            assert!(good.parse::<Tag>().is_ok(), "{good}");
        }
        let too_long = "T".repeat(129);
        for bad in ["", ".a", "-a", "a/b", "a:b", "a\n", "ü", &too_long] {
            assert!(bad.parse::<Tag>().is_err(), "{bad:?}");
        }
        assert!(matches!("latest".parse(), Ok(Reference::Tag(_))));
        assert!(matches!(Digest::sha256(b"").to_string().parse(), Ok(Reference::Digest(_))));
        assert!(matches!("sha256:00".parse::<Reference>(), Err(InvalidName::Digest(_))));
    }

    #[test]
    fn site_names() {
        for good in ["a", "mumbai", "eu-1"] {
            assert!(good.parse::<SiteName>().is_ok(), "{good}");
        }
        for bad in ["", "-", "a-", "Mumbai", "a.b", &"a".repeat(64)] {
            assert!(bad.parse::<SiteName>().is_err(), "{bad:?}");
        }
    }
}
