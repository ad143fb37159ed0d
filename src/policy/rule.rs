//! One rule of a policy.

use std::time::Duration;

use outport_proto::{RepoName, Tag, oci::Platform};
use regex::{Regex, RegexBuilder};
use semver::{Version, VersionReq};
use serde::Deserialize;

use super::{Keep, Subject};
use crate::glob::Glob;

/// Below this no answer could come from a site: heartbeats come every 250 ms.
pub const STALENESS_BOUND_MS_MIN: u64 = 500;
/// Compiled size of a regular expression over tags.
const REGEX_BYTES_MAX: usize = 256 * 1024;

/// One `[[policy]]` table of the configuration. It matches what fits everything it names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRule {
    /// Glob of repository names; without it every repository.
    pub repository: Option<String>,
    /// Glob of tags.
    pub tag: Option<String>,
    /// Regular expression that a whole tag must match.
    pub tag_regex: Option<String>,
    /// Range of semantic versions that a tag must be in. A leading `v` counts, and so do missing
    /// parts: `v1.2` is 1.2.0.
    pub semver: Option<String>,
    /// Platforms as `os/architecture[/variant]`, with `*` for any part.
    pub platforms: Option<Vec<String>>,
    /// Globs of artifact types.
    pub artifact_types: Option<Vec<String>>,
    /// What to do with what matches.
    pub keep: Option<Keep>,
    /// Higher is copied first.
    pub priority: Option<i32>,
    /// How old a tag may be when it is answered while connected, in milliseconds.
    pub staleness_bound_ms: Option<u64>,
}

/// A rule ready to be asked.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    repository: Option<Glob>,
    tags: Option<Tags>,
    platforms: Option<Vec<PlatformPattern>>,
    artifact_types: Option<Vec<Glob>>,
    pub(super) keep: Option<Keep>,
    pub(super) priority: i32,
    pub(super) staleness_bound: Option<Duration>,
    /// Its conditions, for people.
    pub(super) text: String,
}

/// Whether a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Match {
    No,
    /// It depends on what is not known yet.
    Open,
    Yes,
}

#[derive(Clone, Debug)]
enum Tags {
    Glob(Glob),
    Regex(Regex),
    Versions(VersionReq),
}

/// Operating system, architecture, variant; `None` for any.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PlatformPattern([Option<String>; 3]);

impl Rule {
    pub(super) fn new(number: usize, rule: &PolicyRule) -> Result<Self, RuleError> {
        let fault = |key, reason: String| RuleError { number, key, reason };
        let glob = |key, text: &str| Glob::new(text).map_err(|error| fault(key, error.to_string()));
        let tags = match (&rule.tag, &rule.tag_regex, &rule.semver) {
            (None, None, None) => None,
            (Some(text), None, None) => Some(Tags::Glob(glob("tag", text)?)),
            (None, Some(text), None) => Some(Tags::Regex(
                RegexBuilder::new(&format!("^(?:{text})$"))
                    .size_limit(REGEX_BYTES_MAX)
                    .build()
                    .map_err(|error| fault("tag_regex", last_line(&error.to_string())))?,
            )),
            (None, None, Some(text)) => {
                let range =
                    text.parse().map_err(|error: semver::Error| fault("semver", error.to_string()))?;
                Some(Tags::Versions(range))
            }
            (_, Some(_), _) => return Err(fault("tag_regex", ONE_OF_TAGS.to_owned())),
            (Some(_), None, Some(_)) => return Err(fault("semver", ONE_OF_TAGS.to_owned())),
        };
        let platforms = some_list(rule.platforms.as_deref(), |text| {
            PlatformPattern::new(text).ok_or_else(|| fault("platforms", not_a_platform(text)))
        });
        let compiled = Self {
            repository: rule.repository.as_deref().map(|text| glob("repository", text)).transpose()?,
            tags,
            platforms: platforms?,
            artifact_types: some_list(rule.artifact_types.as_deref(), |text| glob("artifact_types", text))?,
            keep: rule.keep,
            priority: rule.priority.unwrap_or_default(),
            staleness_bound: rule.staleness_bound_ms.map(Duration::from_millis),
            text: rule.text(),
        };
        let empty = |list: &Option<Vec<String>>| list.as_ref().is_some_and(Vec::is_empty);
        if empty(&rule.platforms) || empty(&rule.artifact_types) {
            let key = if empty(&rule.platforms) { "platforms" } else { "artifact_types" };
            return Err(fault(key, "an empty list matches nothing".to_owned()));
        }
        if rule.keep.is_none() && rule.staleness_bound_ms.is_none() {
            return Err(fault("", "a rule says keep, or staleness_bound_ms".to_owned()));
        }
        if rule.priority.is_some() && rule.keep != Some(Keep::Eager) {
            return Err(fault("priority", "only what is kept eagerly has a priority".to_owned()));
        }
        if rule.staleness_bound_ms.is_some() && !compiled.is_of_repositories() {
            let reason = "is by repository alone: no tags, platforms or artifact types beside it";
            return Err(fault("staleness_bound_ms", reason.to_owned()));
        }
        if rule.staleness_bound_ms.is_some_and(|bound| bound < STALENESS_BOUND_MS_MIN) {
            let reason = format!("must be at least {STALENESS_BOUND_MS_MIN}, two heartbeats");
            return Err(fault("staleness_bound_ms", reason));
        }
        Ok(compiled)
    }

    pub(super) fn of_repository(&self, repo: &RepoName) -> bool {
        self.repository.as_ref().is_none_or(|glob| glob.matches(repo.as_str()))
    }

    pub(super) fn matches(&self, subject: &Subject<'_>) -> Match {
        let repository = if self.of_repository(subject.repo) { Match::Yes } else { Match::No };
        let tags =
            fits(self.tags.as_ref(), subject.tags, |wanted, tags| tags.iter().any(|tag| wanted.matches(tag)));
        let platform = fits(self.platforms.as_ref(), subject.platform, |wanted, platform| {
            platform.is_some_and(|platform| wanted.iter().any(|wanted| wanted.matches(platform)))
        });
        let artifact_type = fits(self.artifact_types.as_ref(), subject.artifact_type, |wanted, actual| {
            actual.is_some_and(|actual| wanted.iter().any(|wanted| wanted.matches(actual)))
        });
        repository.min(tags).min(platform).min(artifact_type)
    }

    /// Whether nothing that `later` matches comes to it.
    pub(super) fn covers(&self, later: &Self) -> bool {
        let text = |rule: &Self| rule.repository.as_ref().map(|glob| glob.as_str().to_owned());
        let is_wider = match (text(self).as_deref(), text(later).as_deref()) {
            (None | Some("**"), _) => true,
            (Some(wide), Some(narrow)) => wide == narrow || within(narrow, wide),
            (Some(_), None) => false,
        };
        let says_as_much = (self.keep.is_some() || later.keep.is_none())
            && (self.staleness_bound.is_some() || later.staleness_bound.is_none());
        is_wider && says_as_much && self.is_of_repositories()
    }

    fn is_of_repositories(&self) -> bool {
        self.tags.is_none() && self.platforms.is_none() && self.artifact_types.is_none()
    }
}

const ONE_OF_TAGS: &str = "give one of tag, tag_regex and semver";

/// Whether every name that `narrow` matches lies below `wide`, a `prefix/**`.
fn within(narrow: &str, wide: &str) -> bool {
    let Some(prefix) = wide.strip_suffix("**") else { return false };
    let is_plain = |text: &str| !text.contains(['*', '?', '[', '{', '\\']);
    prefix.ends_with('/')
        && is_plain(prefix)
        && narrow.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && !rest.starts_with("**"))
}

fn fits<W: Copy, A: Copy>(wanted: Option<W>, actual: Option<A>, fits: impl Fn(W, A) -> bool) -> Match {
    match (wanted, actual) {
        (None, _) => Match::Yes,
        (Some(_), None) => Match::Open,
        (Some(wanted), Some(actual)) if fits(wanted, actual) => Match::Yes,
        (Some(_), Some(_)) => Match::No,
    }
}

impl Tags {
    fn matches(&self, tag: &Tag) -> bool {
        match self {
            Self::Glob(glob) => glob.matches(tag.as_str()),
            Self::Regex(regex) => regex.is_match(tag.as_str()),
            Self::Versions(range) => version(tag.as_str()).is_some_and(|version| range.matches(&version)),
        }
    }
}

/// The semantic version that a tag stands for.
fn version(tag: &str) -> Option<Version> {
    let text = tag.strip_prefix('v').unwrap_or(tag);
    let (core, pre) = text.find('-').map_or((text, ""), |at| text.split_at(at));
    let zeros = match core.split('.').count() {
        1 => ".0.0",
        2 => ".0",
        _ => "",
    };
    Version::parse(&format!("{core}{zeros}{pre}")).ok()
}

impl PlatformPattern {
    fn new(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let part = |part: Option<&str>| part.filter(|part| *part != "*").map(str::to_owned);
        let (os, architecture, variant) = (parts.next()?, parts.next()?, parts.next());
        let concrete = text.replace('*', "x");
        concrete.parse::<Platform>().ok()?;
        Some(Self([part(Some(os)), part(Some(architecture)), part(variant)]))
    }

    fn matches(&self, platform: &Platform) -> bool {
        let (os, architecture, variant) = platform.parts();
        // As container runtimes read them.
        let variant = match (architecture, variant) {
            ("arm64", "") => "v8",
            ("arm", "") => "v7",
            (_, variant) => variant,
        };
        let Self(wanted) = self;
        wanted
            .iter()
            .zip([os, architecture, variant])
            .all(|(wanted, actual)| wanted.as_deref().is_none_or(|wanted| wanted == actual))
    }
}

fn not_a_platform(text: &str) -> String {
    format!("{text:?} is not os/architecture[/variant], as in linux/arm64/v8")
}

fn some_list<T>(
    texts: Option<&[String]>,
    parse: impl Fn(&str) -> Result<T, RuleError>,
) -> Result<Option<Vec<T>>, RuleError> {
    texts.map(|texts| texts.iter().map(|text| parse(text)).collect()).transpose()
}

/// A regular expression's error draws a picture before it says what is wrong.
fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim().to_owned()
}

impl PolicyRule {
    fn text(&self) -> String {
        let texts = [
            ("repository", &self.repository),
            ("tag", &self.tag),
            ("tag_regex", &self.tag_regex),
            ("semver", &self.semver),
        ];
        let lists = [("platforms", &self.platforms), ("artifact_types", &self.artifact_types)];
        let texts = texts.iter().filter_map(|(key, text)| Some(format!("{key} = {:?}", text.as_ref()?)));
        let lists = lists.iter().filter_map(|(key, list)| Some(format!("{key} = {:?}", list.as_ref()?)));
        let conditions: Vec<String> = texts.chain(lists).collect();
        if conditions.is_empty() { "everything".to_owned() } else { conditions.join(", ") }
    }
}

/// A rule that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct RuleError {
    /// Which, counted from 1.
    pub number: usize,
    /// The key in it; empty for the rule as a whole.
    pub key: &'static str,
    /// What is wrong.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (tag, expected) in [
            ("1.2.3", Some("1.2.3")),
            ("v1.2.3", Some("1.2.3")),
            ("v1.2", Some("1.2.0")),
            ("3", Some("3.0.0")),
            ("1.2-rc.1", Some("1.2.0-rc.1")),
            ("latest", None),
            ("1.2.3.4", None),
            ("vv1", None),
            ("01.2.3", None),
        ] {
            assert_eq!(version(tag).map(|version| version.to_string()).as_deref(), expected, "{tag}");
        }
    }

    #[test]
    fn platforms() {
        for (pattern, platform, matched) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "linux/amd64/v3", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm/v7", "linux/arm/v6", false),
            ("linux/*", "linux/riscv64", true),
            ("*/amd64", "windows/amd64", true),
            ("linux/amd64", "windows/amd64", false),
        ] {
            let pattern = PlatformPattern::new(pattern).unwrap();
            assert_eq!(pattern.matches(&platform.parse().unwrap()), matched, "{pattern:?} {platform}");
        }
        for bad in ["linux", "", "a/b/c/d", "linux/", "linux amd64/x"] {
            assert_eq!(PlatformPattern::new(bad), None, "{bad}");
        }
    }
}
