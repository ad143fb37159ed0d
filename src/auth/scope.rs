//! Scopes that clients ask for and the access that tokens grant.
//!
//! Source: CNCF Distribution, "Token scope documentation" and "Token authentication implementation".

use std::{collections::BTreeMap, fmt};

use outport_proto::RepoName;
use serde::{Deserialize, Serialize};

/// What can be done to a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Read manifests, blobs, tags and referrers.
    Pull,
    /// Write them.
    Push,
    /// Delete them.
    Delete,
}

impl Action {
    /// Every action, in the order scopes are written in.
    pub const ALL: [Self; 3] = [Self::Pull, Self::Push, Self::Delete];

    /// The word used in scopes.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Pull => 1,
            Self::Push => 2,
            Self::Delete => 4,
        }
    }
}

/// A set of actions.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Actions(u8);

impl Actions {
    /// No action.
    pub const NONE: Self = Self(0);
    /// Pull alone.
    pub const PULL: Self = Self(Action::Pull.bit());
    /// What a push needs: clients ask for both at once.
    pub const PULL_PUSH: Self = Self(Action::Pull.bit() | Action::Push.bit());
    /// Every action; `*` in a scope.
    pub const ALL: Self = Self(Action::Pull.bit() | Action::Push.bit() | Action::Delete.bit());

    /// Whether `action` is in the set.
    pub const fn contains(self, action: Action) -> bool {
        self.0 & action.bit() != 0
    }

    /// Whether nothing is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Actions in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Actions in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The actions in the set.
    pub fn iter(self) -> impl Iterator<Item = Action> {
        Action::ALL.into_iter().filter(move |action| self.contains(*action))
    }

    /// Words that name no action are left out: a token may carry more than this registry knows.
    fn from_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        words.into_iter().fold(Self::NONE, |actions, word| {
            actions.union(match word {
                "pull" => Self::PULL,
                "push" => Self(Action::Push.bit()),
                "delete" => Self(Action::Delete.bit()),
                "*" => Self::ALL,
                _ => Self::NONE,
            })
        })
    }
}

impl From<Action> for Actions {
    fn from(action: Action) -> Self {
        Self(action.bit())
    }
}

impl FromIterator<Action> for Actions {
    fn from_iter<I: IntoIterator<Item = Action>>(actions: I) -> Self {
        actions.into_iter().fold(Self::NONE, |set, action| set.union(action.into()))
    }
}

impl fmt::Display for Actions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, action) in self.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(action.as_str())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Actions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Actions({self})")
    }
}

/// One thing a client asks to be allowed, such as `repository:team/app:pull,push`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Actions on one repository.
    Repository {
        /// Which.
        name: RepoName,
        /// What to do there.
        actions: Actions,
    },
    /// Listing all repositories: `registry:catalog:*`.
    Catalog,
}

impl Scope {
    /// A scope on one repository.
    pub fn repository(name: &RepoName, actions: impl Into<Actions>) -> Self {
        Self::Repository { name: name.clone(), actions: actions.into() }
    }

    /// Reads `type:name:actions`, split at the first and the last colon because a name may hold a
    /// host's port. `None` for anything this registry cannot grant: another type, a name that is
    /// no repository here, no known action.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        Self::of_parts(kind, name, actions.split(','))
    }

    /// Reads scopes separated by spaces; what cannot be granted is left out.
    pub fn parse_list(text: &str) -> impl Iterator<Item = Self> {
        text.split(' ').filter_map(Self::parse)
    }

    fn of_parts<'a>(kind: &str, name: &str, actions: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        match (kind, name) {
            ("repository", name) => {
                let actions = Actions::from_words(actions);
                (!actions.is_empty()).then_some(())?;
                Some(Self::Repository { name: name.parse().ok()?, actions })
            }
            ("registry", "catalog") => actions.into_iter().any(|word| word == "*").then_some(Self::Catalog),
            _ => None,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repository { name, actions } => write!(f, "repository:{name}:{actions}"),
            Self::Catalog => f.write_str("registry:catalog:*"),
        }
    }
}

/// What a caller was granted. A repository is covered by its exact name and nothing else: `a/b`
/// says nothing about `a`, `a/bb` or `a/b/c`, and there is no wildcard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    repositories: BTreeMap<RepoName, Actions>,
    catalog: bool,
    unlimited: bool,
}

impl Access {
    /// Nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// Everything, for callers that need no token; no token can carry it.
    pub fn unlimited() -> Self {
        Self { unlimited: true, ..Self::default() }
    }

    /// Whether `action` on `repo` is granted.
    pub fn allows(&self, repo: &RepoName, action: Action) -> bool {
        self.unlimited || self.repositories.get(repo).is_some_and(|actions| actions.contains(action))
    }

    /// Whether listing all repositories is granted.
    pub fn allows_catalog(&self) -> bool {
        self.unlimited || self.catalog
    }

    /// Whether nothing is granted.
    pub fn is_empty(&self) -> bool {
        !self.unlimited && !self.catalog && self.repositories.is_empty()
    }

    /// Adds what `scope` names to what is granted; scopes on one repository join.
    pub fn grant(&mut self, scope: &Scope) {
        match scope {
            Scope::Repository { actions, .. } if actions.is_empty() => {}
            Scope::Repository { name, actions } => {
                let granted = self.repositories.entry(name.clone()).or_default();
                *granted = granted.union(*actions);
            }
            Scope::Catalog => self.catalog = true,
        }
    }

    /// The `access` claim.
    pub(super) fn to_claim(&self) -> Vec<AccessClaim> {
        let repositories = self.repositories.iter().map(|(name, actions)| AccessClaim {
            kind: "repository".to_owned(),
            name: name.to_string(),
            actions: actions.iter().map(|action| action.as_str().to_owned()).collect(),
        });
        let catalog = self.catalog.then(|| AccessClaim {
            kind: "registry".to_owned(),
            name: "catalog".to_owned(),
            actions: vec!["*".to_owned()],
        });
        repositories.chain(catalog).collect()
    }

    /// From the `access` claim; entries that mean nothing here grant nothing.
    pub(super) fn from_claim(entries: &[AccessClaim]) -> Self {
        entries
            .iter()
            .filter_map(|entry| {
                Scope::of_parts(&entry.kind, &entry.name, entry.actions.iter().map(String::as_str))
            })
            .collect()
    }
}

impl FromIterator<Scope> for Access {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        let mut access = Self::none();
        for scope in scopes {
            access.grant(&scope);
        }
        access
    }
}

/// One entry of a token's `access` claim.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct AccessClaim {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    #[serde(default, deserialize_with = "super::token::or_default")]
    actions: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo(name: &str) -> RepoName {
        name.parse().unwrap()
    }

    #[test]
    fn scopes_are_read_as_the_token_specification_writes_them() {
        let read = |text: &str| Scope::parse(text).map(|scope| scope.to_string());
        for (text, scope) in [
            ("repository:team/app:pull", Some("repository:team/app:pull")),
            ("repository:team/app:push,pull", Some("repository:team/app:pull,push")),
            ("repository:team/app:*", Some("repository:team/app:pull,push,delete")),
            ("repository:team/app:pull,fly", Some("repository:team/app:pull")),
            ("registry:catalog:*", Some("registry:catalog:*")),
            ("registry:catalog:pull", None),
            ("registry:other:*", None),
            ("repository:team/app:", None),
            ("repository:team/app", None),
            ("repository:team/app:fly", None),
            ("repository:host:5000/team/app:pull", None),
            ("repository:*:pull", None),
            ("repository(plugin):team/app:pull", None),
            ("Repository:team/app:pull", None),
            ("", None),
            ("::", None),
        ] {
            assert_eq!(read(text).as_deref(), scope, "{text}");
        }
        let list = "repository:a:pull other:b:c  repository:c:push";
        assert_eq!(Scope::parse_list(list).count(), 2);
    }

    #[test]
    fn access_is_exact() {
        let granted = |kind: &str, name: &str, actions: &[&str]| {
            Access::from_claim(&[AccessClaim {
                kind: kind.to_owned(),
                name: name.to_owned(),
                actions: actions.iter().map(ToString::to_string).collect(),
            }])
        };
        let access = granted("repository", "a/b", &["pull"]);
        assert!(access.allows(&repo("a/b"), Action::Pull));
        assert!(!access.allows(&repo("a/b"), Action::Push));
        assert!(!access.allows(&repo("a/b"), Action::Delete));
        assert!(!access.allows_catalog());
        for other in ["a/bb", "a", "a/b/c", "b", "aa/b", "a/b-c"] {
            assert!(!access.allows(&repo(other), Action::Pull), "{other}");
        }
        for (kind, name) in [
            ("repository", "*"),
            ("repository", "a/*"),
            ("repository", "a/b/"),
            ("repository", " a/b"),
            ("repository", "A/B"),
            ("registry", "a/b"),
            ("repository(plugin)", "a/b"),
            ("REPOSITORY", "a/b"),
            ("", "a/b"),
        ] {
            let access = granted(kind, name, &["*", "pull", "push", "delete"]);
            assert!(access.is_empty(), "{kind} {name}");
            assert!(!access.allows(&repo("a/b"), Action::Pull), "{kind} {name}");
        }
        assert!(!granted("repository", "catalog", &["*"]).allows_catalog());
        assert!(granted("registry", "catalog", &["*"]).allows_catalog());
    }

    #[test]
    fn grants_on_one_repository_join_and_survive_the_claim() {
        let access: Access =
            Scope::parse_list("repository:a:pull repository:a:push repository:b:delete registry:catalog:*")
                .collect();
        let back = Access::from_claim(&access.to_claim());
        assert_eq!(back, access);
        assert!(back.allows(&repo("a"), Action::Pull) && back.allows(&repo("a"), Action::Push));
        assert!(back.allows(&repo("b"), Action::Delete) && !back.allows(&repo("b"), Action::Pull));
        assert!(Access::from_claim(&Access::unlimited().to_claim()).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn what_was_read_reads_back_the_same(text in "(repository|registry|[a-z]{0,3}):[a-z/:*]{0,8}:[a-z,*]{0,12}") {
            if let Some(scope) = Scope::parse(&text) {
                proptest::prop_assert_eq!(Scope::parse(&scope.to_string()), Some(scope));
            }
        }

        #[test]
        fn access_never_reaches_another_name(granted in "[a-c]{1,2}(/[a-c]{1,2}){0,2}", asked in "[a-c]{1,2}(/[a-c]{1,2}){0,2}") {
            let access: Access = Scope::parse(&format!("repository:{granted}:*")).into_iter().collect();
            proptest::prop_assert_eq!(access.allows(&repo(&asked), Action::Pull), granted == asked);
        }
    }
}
