//! What a machine has to be to run an image.
//!
//! Source: OCI image specification v1.1, `image-index.md` (`platform`) and `config.md`.

use std::{fmt, str::FromStr};

use serde::Deserialize;

/// Longest platform in bytes, as text. Real ones stay under 20.
pub const PLATFORM_BYTES_MAX: usize = 96;

/// Operating system, architecture and perhaps variant, as in `linux/amd64` or `linux/arm/v7`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform(Box<str>);

impl Platform {
    /// The platform as text: `os/architecture` or `os/architecture/variant`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Operating system, architecture, and variant or "".
    pub fn parts(&self) -> (&str, &str, &str) {
        let mut parts = self.0.split('/');
        let mut next = || parts.next().unwrap_or_default();
        (next(), next(), next())
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    /// Two or three parts of letters, digits, `.`, `_` and `-`, separated by `/`.
    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let is_part = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let is_platform = text.len() <= PLATFORM_BYTES_MAX
            && matches!(text.split('/').count(), 2 | 3)
            && text.split('/').all(is_part);
        if is_platform { Ok(Self(text.into())) } else { Err(InvalidPlatform) }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is no platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a platform is os/architecture or os/architecture/variant, as in linux/arm64/v8")]
pub struct InvalidPlatform;

/// The platform fields of a descriptor or an image's config. What does not fit a platform is as
/// if it were not there: a registry refuses no image for it.
#[derive(Deserialize)]
pub(super) struct RawPlatform {
    #[serde(default)]
    os: serde_json::Value,
    #[serde(default)]
    architecture: serde_json::Value,
    #[serde(default)]
    variant: serde_json::Value,
}

impl RawPlatform {
    pub(super) fn platform(&self) -> Option<Platform> {
        let (os, architecture) = (self.os.as_str()?, self.architecture.as_str()?);
        let text = match self.variant.as_str() {
            None | Some("") => format!("{os}/{architecture}"),
            Some(variant) => format!("{os}/{architecture}/{variant}"),
        };
        text.parse().ok()
    }
}

/// The platform that an image's config names.
pub fn platform_of_config(config: &[u8]) -> Option<Platform> {
    serde_json::from_slice::<RawPlatform>(config).ok()?.platform()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms() {
        for (text, parts) in [
            ("linux/amd64", ("linux", "amd64", "")),
            ("linux/arm/v7", ("linux", "arm", "v7")),
            ("unknown/unknown", ("unknown", "unknown", "")),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().parts(), parts);
        }
        let long = format!("linux/{}", "a".repeat(PLATFORM_BYTES_MAX));
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/amd 64", &long] {
            assert_eq!(bad.parse::<Platform>(), Err(InvalidPlatform), "{bad}");
        }
    }

    #[test]
    fn configs() {
        let of = |text: &str| platform_of_config(text.as_bytes()).map(|platform| platform.to_string());
        assert_eq!(of(r#"{"os":"linux","architecture":"arm64","variant":"v8"}"#).unwrap(), "linux/arm64/v8");
        assert_eq!(of(r#"{"os":"linux","architecture":"amd64","rootfs":{}}"#).unwrap(), "linux/amd64");
        for none in ["", "{}", r#"{"os":"linux"}"#, r#"{"os":1,"architecture":[]}"#, "[]"] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
