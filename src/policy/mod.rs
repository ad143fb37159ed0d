//! What a site keeps: which images it copies ahead, which it copies on the first pull, which it
//! never keeps, in which order, and how fast.
//!
//! ```toml
//! [[policy]]                     # rules in order; the first that matches decides
//! repository = "base/**"
//! platforms = ["linux/amd64"]
//! keep = "eager"
//! priority = 10
//!
//! [[policy]]
//! repository = "team/**"
//! semver = ">=1.2, <2"
//! keep = "eager"
//!
//! [[policy]]
//! repository = "archive/**"
//! keep = "exclude"
//! ```
//!
//! Without a rule that matches everything is copied ahead.
//!
//! - [`rule`]: a rule, from the configuration to something that can be asked.
//! - [`Policy`]: all rules, one pure function from what is known of an image to a [`Verdict`].
//! - [`contents`]: the same for the blobs of a site's index.
//! - [`bandwidth`]: how fast blobs are copied ahead, by the hour.
//!
//! # What is not known yet
//!
//! A client pushes layers first, then the manifest that names them, then the index that names the
//! manifest, and only the last has a tag. So a rule can match, not match, or be *open*. While the
//! open rules could change the verdict there is none: nothing is copied and nothing waits for it,
//! until the event that closes them. An image's platform is known from its own event, because the
//! primary reads it from the config; tags of an index count for its children, those of a subject
//! for what refers to it. What never gets a tag stays open under rules about tags: it is kept
//! when it is pulled.

pub mod bandwidth;
pub mod contents;
pub mod rule;

use std::{fmt, time::Duration};

use outport_proto::{RepoName, Tag, oci::Platform};
use serde::{Deserialize, Serialize};

pub use bandwidth::{Bandwidth, BandwidthWindow};
pub use contents::{Blob, Contents};
use rule::{Match, Rule};
pub use rule::{PolicyRule, RuleError};

/// What a site does with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// Its bytes are streamed through to who pulls them, and not kept.
    Exclude,
    /// Its blobs are copied on the first pull.
    Lazy,
    /// Its blobs are copied before anybody asks.
    Eager,
}

/// What is known of an image. `None` is what may still turn out.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The repository.
    pub repo: &'a RepoName,
    /// Its tags.
    pub tags: Option<&'a [Tag]>,
    /// What it runs on; `Some(None)` for what has no platform.
    pub platform: Option<Option<&'a Platform>>,
    /// Its artifact type; `Some(None)` for what has none.
    pub artifact_type: Option<Option<&'a str>>,
}

impl<'a> Subject<'a> {
    /// Something in `repo`.
    pub const fn of(repo: &'a RepoName) -> Self {
        Self { repo, tags: None, platform: None, artifact_type: None }
    }
}

/// What the rules say. Of two about the same blob the greater one holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Verdict {
    /// What the site does.
    pub keep: Keep,
    /// Higher is copied first.
    pub priority: i32,
    /// The rule, counted from 1; `None` when none matched.
    pub rule: Option<usize>,
}

impl Verdict {
    /// When no rule matches.
    const UNRULED: Self = Self { keep: Keep::Eager, priority: 0, rule: None };
    /// About what every site has whatever its rules say: a manifest that is too large for its event and lies
    /// among the blobs, and the canary.
    pub const METADATA: Self = Self { keep: Keep::Eager, priority: i32::MAX, rule: None };
}

/// The rules of a site, in order.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
}

impl Policy {
    /// Compiles rules.
    ///
    /// # Errors
    /// Names the first rule and key that cannot be used.
    pub fn new(rules: &[PolicyRule]) -> Result<Self, RuleError> {
        let rules = rules.iter().enumerate().map(|(index, rule)| Rule::new(index + 1, rule));
        Ok(Self { rules: rules.collect::<Result<_, _>>()? })
    }

    /// What to do with `subject`; `None` while that depends on what is not known of it.
    pub fn decide(&self, subject: &Subject<'_>) -> Option<Verdict> {
        if subject.repo.is_canary() {
            return Some(Verdict::METADATA);
        }
        let mut open: Option<Verdict> = None;
        for (verdict, rule) in self.keeping() {
            match rule.matches(subject) {
                Match::No => continue,
                Match::Open if open.is_none_or(|open| open.is_as(verdict)) => open = Some(verdict),
                Match::Yes if open.is_none_or(|open| open.is_as(verdict)) => return Some(verdict),
                Match::Open | Match::Yes => return None,
            }
        }
        let unruled = Verdict::UNRULED;
        open.is_none_or(|open| open.is_as(unruled)).then_some(unruled)
    }

    /// As [`Policy::decide`]; what is still open is kept when it is pulled.
    pub fn settle(&self, subject: &Subject<'_>) -> Verdict {
        self.decide(subject).unwrap_or_else(|| {
            let mut open = self.keeping().filter(|(_, rule)| rule.matches(subject) == Match::Open);
            let rule = open.next().and_then(|(verdict, _)| verdict.rule);
            Verdict { keep: Keep::Lazy, priority: 0, rule }
        })
    }

    /// What to do with everything in `repo`; `None` when that differs.
    pub fn of_repository(&self, repo: &RepoName) -> Option<Verdict> {
        self.decide(&Subject::of(repo))
    }

    /// Whether anything in `repo` may be excluded.
    pub fn may_exclude(&self, repo: &RepoName) -> bool {
        if repo.is_canary() {
            return false;
        }
        let mut reached = self.keeping().map(|(verdict, rule)| (verdict, rule.matches(&Subject::of(repo))));
        let mut decided = false;
        reached.any(|(verdict, matched)| {
            let excludes = !decided && verdict.keep == Keep::Exclude && matched != Match::No;
            decided |= matched == Match::Yes;
            excludes
        })
    }

    /// How old a tag of `repo` may be when it is answered while connected: by the first rule that
    /// names a bound and whose repository matches.
    pub fn staleness_bound(&self, repo: &RepoName) -> Option<Duration> {
        let mut bounds = self.rules.iter().filter_map(|rule| Some((rule, rule.staleness_bound?)));
        bounds.find(|(rule, _)| rule.of_repository(repo)).map(|(_, bound)| bound)
    }

    /// A rule as people read it: `rule 2: repository = "base/**"`.
    pub fn describe(&self, verdict: &Verdict) -> String {
        let rule = verdict.rule.and_then(|number| Some((number, self.rules.get(number.checked_sub(1)?)?)));
        match rule {
            Some((number, rule)) => format!("rule {number}: {}", rule.text),
            None => "no rule matches".to_owned(),
        }
    }

    /// Rules that can never decide, with the one before that decides everything they match.
    pub fn shadowed(&self) -> Vec<(usize, usize)> {
        let shadow = |later: &Rule, before: &[Rule]| {
            before.iter().position(|earlier| earlier.covers(later)).map(|earlier| earlier + 1)
        };
        let rules = self.rules.iter().enumerate();
        rules.filter_map(|(index, rule)| Some((index + 1, shadow(rule, &self.rules[..index])?))).collect()
    }

    /// The rules that say what to keep.
    fn keeping(&self) -> impl Iterator<Item = (Verdict, &Rule)> {
        self.rules.iter().enumerate().filter_map(|(index, rule)| {
            let verdict = Verdict { keep: rule.keep?, priority: rule.priority, rule: Some(index + 1) };
            Some((verdict, rule))
        })
    }
}

impl Verdict {
    /// Whether both mean the same, by whichever rule.
    fn is_as(self, other: Self) -> bool {
        (self.keep, self.priority) == (other.keep, other.priority)
    }
}

/// The same text for the same rules: it tells when they have changed.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rules.iter().try_for_each(|rule| match rule.keep {
            Some(keep) => writeln!(f, "{keep:?} {} {}", rule.priority, rule.text),
            None => Ok(()),
        })
    }
}

#[cfg(test)]
mod tests;
