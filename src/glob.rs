//! Globs of names with path components: `*` stays within one component, `**` crosses them.

use std::fmt;

use globset::{GlobBuilder, GlobMatcher};

/// A glob. Cloning is cheap enough.
#[derive(Clone, Debug)]
pub struct Glob(GlobMatcher);

impl Glob {
    /// A glob from its text.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, InvalidGlob> {
        let glob = GlobBuilder::new(text).literal_separator(true).build();
        let glob =
            glob.map_err(|error| InvalidGlob { glob: text.to_owned(), reason: error.kind().to_string() })?;
        Ok(Self(glob.compile_matcher()))
    }

    /// Whether all of `name` matches.
    pub fn matches(&self, name: &str) -> bool {
        self.0.is_match(name)
    }

    /// The glob.
    pub fn as_str(&self) -> &str {
        self.0.glob().glob()
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `text` as a glob that matches it alone.
pub fn escape(text: &str) -> String {
    globset::escape(text)
}

/// A text that is no glob.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{glob:?} is not a glob: {reason}")]
pub struct InvalidGlob {
    /// The text.
    pub glob: String,
    /// What is wrong with it.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_know_path_components() {
        for (glob, name, matched) in [
            ("team/*", "team/app", true),
            ("team/*", "team/app/x", false),
            ("base/**", "base/a/b", true),
            ("base/**", "base", false),
            ("**", "any/thing", true),
            ("{a,b}/c", "b/c", true),
            ("v*", "v1.2", true),
        ] {
            assert_eq!(Glob::new(glob).unwrap().matches(name), matched, "{glob} {name}");
        }
        let error = Glob::new("a[").unwrap_err().to_string();
        assert!(error.starts_with("\"a[\" is not a glob: "), "{error}");
        assert!(Glob::new(&escape("*")).unwrap().matches("*"));
    }
}
