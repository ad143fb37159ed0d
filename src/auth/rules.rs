//! Access rules: who may do what in which repositories.
//!
//! ```toml
//! [[access]]
//! repository = "public/**"     # * stays within one path component, ** does not
//! pull = ["anonymous"]         # everybody, logged in or not
//!
//! [[access]]
//! repository = "team/**"
//! pull = ["authenticated"]     # everybody who is logged in
//! push = ["ana", "ci"]         # users by name
//! delete = ["ana"]
//!
//! [[access]]
//! repository = "home/${user}/**"
//! pull = ["authenticated"]
//! push = ["authenticated"]
//! ```
//!
//! A caller may do what **any** matching rule allows; order does not matter and no rule takes
//! anything away. Without any rule, logged-in users may do everything and others nothing.

use outport_proto::RepoName;
use serde::{Deserialize, Serialize};

use super::{Access, Action, Actions, Scope};
use crate::glob::{Glob, InvalidGlob, escape};

/// Everybody, in a rule's list of users.
pub(super) const ANONYMOUS: &str = "anonymous";
/// Everybody who is logged in.
pub(super) const AUTHENTICATED: &str = "authenticated";
/// Stands for the caller's name in a repository glob.
const USER_PLACEHOLDER: &str = "${user}";

/// One `[[access]]` table of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRule {
    /// Glob of repository names; `${user}` stands for the caller's name.
    pub repository: String,
    /// Who may pull: user names, `authenticated`, `anonymous`.
    #[serde(default)]
    pub pull: Vec<String>,
    /// Who may push. A push needs pull as well: clients ask for both.
    #[serde(default)]
    pub push: Vec<String>,
    /// Who may delete.
    #[serde(default)]
    pub delete: Vec<String>,
}

/// Rules ready to be asked.
#[derive(Clone, Debug)]
pub struct AccessRules {
    rules: Vec<Rule>,
    catalog: Vec<Who>,
}

#[derive(Clone, Debug)]
struct Rule {
    repository: Pattern,
    who: [(Action, Vec<Who>); 3],
}

#[derive(Clone, Debug)]
enum Pattern {
    Any,
    Fixed(Glob),
    /// Holds [`USER_PLACEHOLDER`]; compiled for each caller.
    OfUser(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    Anonymous,
    Authenticated,
    User(String),
}

impl AccessRules {
    /// Compiles rules. `catalog` says who may list all repositories.
    pub fn new(rules: &[AccessRule], catalog: &[String]) -> Result<Self, RuleError> {
        Ok(Self { rules: rules.iter().map(Rule::new).collect::<Result<_, _>>()?, catalog: people(catalog) })
    }

    /// What holds without configuration: logged-in users may do everything, others nothing.
    pub fn authenticated_only() -> Self {
        Self { rules: vec![Rule::everything(&[Who::Authenticated])], catalog: vec![Who::Authenticated] }
    }

    /// The same, with other people who may list all repositories.
    #[must_use]
    pub fn with_catalog(self, catalog: &[String]) -> Self {
        Self { catalog: people(catalog), ..self }
    }

    /// Anyone may pull and list, `user` may push and delete as well.
    pub fn public_with_owner(user: &str) -> Self {
        let owner = Rule::everything(&[Who::User(user.to_owned())]);
        let mut everyone = owner.clone();
        everyone.who =
            [(Action::Pull, vec![Who::Anonymous]), (Action::Push, vec![]), (Action::Delete, vec![])];
        Self { rules: vec![owner, everyone], catalog: vec![Who::Anonymous] }
    }

    /// Globs of the repositories that anybody may pull from.
    pub fn public_pull(&self) -> Vec<String> {
        let public = |rule: &&Rule| rule.allowed(None).contains(Action::Pull);
        self.rules.iter().filter(public).filter_map(|rule| rule.repository.text()).collect()
    }

    /// Anybody may pull from repositories that match one of `globs`; that is all.
    ///
    /// # Errors
    /// When one is malformed.
    pub fn only_public_pull(globs: &[String]) -> Result<Self, RuleError> {
        let rule = |glob: &String| {
            Rule::new(&AccessRule {
                repository: glob.clone(),
                pull: vec![ANONYMOUS.to_owned()],
                ..AccessRule::default()
            })
        };
        Ok(Self { rules: globs.iter().map(rule).collect::<Result<_, _>>()?, catalog: Vec::new() })
    }

    /// What `user` (`None` without login) may do in `repo`.
    pub fn allowed(&self, user: Option<&str>, repo: &RepoName) -> Actions {
        let matching = self.rules.iter().filter(|rule| rule.repository.matches(user, repo));
        matching.fold(Actions::NONE, |actions, rule| actions.union(rule.allowed(user)))
    }

    /// What of `scopes` `user` (`None` without login) is granted: asked for and allowed.
    pub fn grant(&self, user: Option<&str>, scopes: &[Scope]) -> Access {
        let mut access = Access::none();
        for scope in scopes {
            match scope {
                Scope::Repository { name, actions } => {
                    let granted = actions.intersection(self.allowed(user, name));
                    access.grant(&Scope::repository(name, granted));
                }
                Scope::Catalog => {
                    if self.catalog.iter().any(|who| who.includes(user)) {
                        access.grant(scope);
                    }
                }
            }
        }
        access
    }
}

impl Rule {
    fn new(rule: &AccessRule) -> Result<Self, RuleError> {
        Ok(Self {
            repository: Pattern::new(&rule.repository)?,
            who: [
                (Action::Pull, people(&rule.pull)),
                (Action::Push, people(&rule.push)),
                (Action::Delete, people(&rule.delete)),
            ],
        })
    }

    fn everything(who: &[Who]) -> Self {
        Self { repository: Pattern::Any, who: Action::ALL.map(|action| (action, who.to_vec())) }
    }

    fn allowed(&self, user: Option<&str>) -> Actions {
        let includes = |who: &[Who]| who.iter().any(|who| who.includes(user));
        self.who.iter().filter(|(_, who)| includes(who)).map(|(action, _)| *action).collect()
    }
}

impl Pattern {
    fn new(text: &str) -> Result<Self, RuleError> {
        let fault = |error: InvalidGlob| RuleError { glob: text.to_owned(), reason: error.reason };
        if text.contains(USER_PLACEHOLDER) {
            Glob::new(&text.replace(USER_PLACEHOLDER, "user")).map_err(fault)?;
            return Ok(Self::OfUser(text.to_owned()));
        }
        Ok(Self::Fixed(Glob::new(text).map_err(fault)?))
    }

    /// The glob; `None` when it is another one for every caller.
    fn text(&self) -> Option<String> {
        match self {
            Self::Any => Some("**".to_owned()),
            Self::Fixed(glob) => Some(glob.as_str().to_owned()),
            Self::OfUser(_) => None,
        }
    }

    fn matches(&self, user: Option<&str>, repo: &RepoName) -> bool {
        match (self, user) {
            (Self::Any, _) => true,
            (Self::Fixed(glob), _) => glob.matches(repo.as_str()),
            // A name with a slash would reach into another user's namespace.
            (Self::OfUser(text), Some(user)) if !user.contains('/') => {
                Glob::new(&text.replace(USER_PLACEHOLDER, &escape(user)))
                    .is_ok_and(|glob| glob.matches(repo.as_str()))
            }
            (Self::OfUser(_), _) => false,
        }
    }
}

impl Who {
    fn includes(&self, user: Option<&str>) -> bool {
        match self {
            Self::Anonymous => true,
            Self::Authenticated => user.is_some(),
            Self::User(name) => user == Some(name),
        }
    }
}

fn people(words: &[String]) -> Vec<Who> {
    let person = |word: &String| match word.as_str() {
        ANONYMOUS => Who::Anonymous,
        AUTHENTICATED => Who::Authenticated,
        user => Who::User(user.to_owned()),
    };
    words.iter().map(person).collect()
}

/// A rule whose repository glob is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("repository = {glob:?}: {reason}")]
pub struct RuleError {
    /// The glob.
    pub glob: String,
    /// What is wrong with it.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_public_can_be_told_to_a_site() {
        let rules = rules(
            r#"
            [[access]]
            repository = "public/*"
            pull = ["ana", "anonymous"]
            push = ["ana"]
            [[access]]
            repository = "team/**"
            pull = ["authenticated"]
            [[access]]
            repository = "home/${user}/**"
            pull = ["anonymous"]
            "#,
        );
        assert_eq!(rules.public_pull(), ["public/*"]);
        assert_eq!(AccessRules::public_with_owner("ana").public_pull(), ["**"]);
        let told = AccessRules::only_public_pull(&rules.public_pull()).unwrap();
        for (repo, actions) in
            [("public/app", Actions::PULL), ("public/deep/app", Actions::NONE), ("team/app", Actions::NONE)]
        {
            assert_eq!(told.allowed(None, &repo.parse().unwrap()), actions, "{repo}");
        }
        assert!(AccessRules::only_public_pull(&["[".to_owned()]).is_err());
    }

    fn rules(text: &str) -> AccessRules {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            #[serde(default)]
            catalog: Vec<String>,
            access: Vec<AccessRule>,
        }
        let file: File = toml::from_str(text).unwrap();
        AccessRules::new(&file.access, &file.catalog).unwrap()
    }

    fn allowed(rules: &AccessRules, user: &str, repo: &str) -> String {
        let user = (!user.is_empty()).then_some(user);
        rules.allowed(user, &repo.parse().unwrap()).to_string()
    }

    #[test]
    fn a_caller_may_do_what_any_matching_rule_allows() {
        let rules = rules(
            r#"
            catalog = ["authenticated"]
            [[access]]
            repository = "public/**"
            pull = ["anonymous"]
            [[access]]
            repository = "team/*"
            pull = ["authenticated"]
            push = ["ana", "ci"]
            delete = ["ana"]
            [[access]]
            repository = "home/${user}/**"
            pull = ["authenticated"]
            push = ["authenticated"]
            [[access]]
            repository = "{team,public}/shared"
            push = ["bob"]
            "#,
        );
        for (user, repo, expected) in [
            ("", "public/a", "pull"),
            ("", "public/a/b/c", "pull"),
            ("bob", "public/a", "pull"),
            ("", "public", ""),
            ("", "publicity/a", ""),
            ("", "x/public/a", ""),
            ("", "team/app", ""),
            ("bob", "team/app", "pull"),
            ("ci", "team/app", "pull,push"),
            ("ana", "team/app", "pull,push,delete"),
            ("ana", "team/app/sub", ""),
            ("ana", "team", ""),
            ("bob", "team/shared", "pull,push"),
            ("bob", "public/shared", "pull,push"),
            ("ana", "home/ana/x", "pull,push"),
            ("ana", "home/bob/x", ""),
            ("ana", "home/ana", ""),
            ("", "home/ana/x", ""),
            ("*", "home/ana/x", ""),
            ("{ana,bob}", "home/ana/x", ""),
            ("ana/x", "home/ana/x/y", ""),
            ("anonymous2", "team/app", "pull"),
        ] {
            assert_eq!(allowed(&rules, user, repo), expected, "{user} in {repo}");
        }
        assert!(rules.grant(Some("bob"), &[Scope::Catalog]).allows_catalog());
        assert!(!rules.grant(None, &[Scope::Catalog]).allows_catalog());
    }

    #[test]
    fn grants_are_what_was_asked_and_is_allowed() {
        let rules = AccessRules::public_with_owner("demo");
        let scopes: Vec<Scope> =
            Scope::parse_list("repository:a:pull,push repository:b/c:pull registry:catalog:*").collect();
        let (a, b): (RepoName, RepoName) = ("a".parse().unwrap(), "b/c".parse().unwrap());
        let anonymous = rules.grant(None, &scopes);
        assert!(anonymous.allows(&a, Action::Pull) && anonymous.allows(&b, Action::Pull));
        assert!(!anonymous.allows(&a, Action::Push) && anonymous.allows_catalog());
        let demo = rules.grant(Some("demo"), &scopes);
        assert!(demo.allows(&a, Action::Push));
        assert!(!demo.allows(&a, Action::Delete), "not asked for");
        assert!(!demo.allows(&b, Action::Push), "not asked for");
        assert_eq!(allowed(&rules, "demo", "a"), "pull,push,delete");
        assert_eq!(allowed(&rules, "other", "a"), "pull");

        let closed = AccessRules::authenticated_only();
        assert_eq!(allowed(&closed, "", "a"), "");
        assert_eq!(allowed(&closed, "ana", "a/b/c"), "pull,push,delete");
        assert!(closed.grant(None, &scopes).is_empty());
    }

    #[test]
    fn mistakes_in_rules_are_named() {
        let rule = |glob: &str| AccessRule { repository: glob.to_owned(), ..AccessRule::default() };
        let error = AccessRules::new(&[rule("team/[a")], &[]).unwrap_err().to_string();
        assert!(error.starts_with("repository = \"team/[a\": "), "{error}");
        assert!(AccessRules::new(&[rule("${user}/[a")], &[]).is_err());
        assert!(toml::from_str::<AccessRule>("repository = \"a\"\npulls = []").is_err());
        assert!(toml::from_str::<AccessRule>("pull = []").is_err());
    }
}
