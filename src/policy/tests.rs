use super::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    policy: Vec<PolicyRule>,
}

pub(super) fn policy(text: &str) -> Policy {
    let file: File = toml::from_str(text).unwrap();
    Policy::new(&file.policy).unwrap()
}

fn refused(rule: &str) -> RuleError {
    let file: File = toml::from_str(&format!("[[policy]]\nkeep = 'lazy'\n[[policy]]\n{rule}")).unwrap();
    Policy::new(&file.policy).unwrap_err()
}

/// `eager 3 #1`: what is kept, its priority, by which rule; `open` while that is not known.
fn said(verdict: Option<Verdict>) -> String {
    match verdict {
        None => "open".to_owned(),
        Some(Verdict { keep, priority, rule }) => {
            format!("{keep:?} {priority} #{}", rule.unwrap_or_default()).to_lowercase()
        }
    }
}

const RULES: &str = r#"
    [[policy]]
    repository = "base/**"
    keep = "eager"
    priority = 3
    [[policy]]
    repository = "archive/*"
    keep = "exclude"
    [[policy]]
    repository = "team/**"
    semver = ">=1.2, <2"
    platforms = ["linux/amd64", "linux/arm64/v8"]
    keep = "eager"
    priority = 1
    [[policy]]
    repository = "team/**"
    tag_regex = "release-[0-9]+"
    keep = "lazy"
    [[policy]]
    repository = "team/**"
    keep = "exclude"
    [[policy]]
    repository = "charts/**"
    artifact_types = ["application/vnd.cncf.helm.*"]
    keep = "eager"
    [[policy]]
    repository = "charts/**"
    tag = "dev-*"
    keep = "exclude"
"#;

#[test]
fn the_first_rule_that_matches_decides() {
    let policy = policy(RULES);
    let helm = "application/vnd.cncf.helm.config.v1+json";
    #[rustfmt::skip]
    let table: &[(&str, &[&str], &str, &str, &str)] = &[
        ("base/os",     &[],            "",                "", "eager 3 #1"),
        ("base",        &[],            "",                "", "eager 0 #0"),
        ("archive/a",   &["1"],         "linux/amd64",     "", "exclude 0 #2"),
        ("archive/a/b", &["1"],         "linux/amd64",     "", "eager 0 #0"),
        ("team/app",    &["1.2.3"],     "linux/amd64",     "", "eager 1 #3"),
        ("team/app",    &["v1.9"],      "linux/arm64",     "", "eager 1 #3"),
        ("team/app",    &["x", "1.4"],  "linux/amd64",     "", "eager 1 #3"),
        ("team/app",    &["1.2.3"],     "windows/amd64",   "", "exclude 0 #5"),
        ("team/app",    &["1.2.3"],     "",                "", "exclude 0 #5"),
        ("team/app",    &["2.0.0"],     "linux/amd64",     "", "exclude 0 #5"),
        ("team/app",    &["release-9"], "linux/amd64",     "", "lazy 0 #4"),
        ("team/app",    &["release-9x"], "linux/amd64",    "", "exclude 0 #5"),
        ("team/app",    &["pre-release-9"], "linux/amd64", "", "exclude 0 #5"),
        ("charts/c",    &["dev-1"],     "",                helm, "eager 0 #6"),
        ("charts/c",    &["dev-1"],     "",                "x/y", "exclude 0 #7"),
        ("charts/c",    &["1"],         "",                "", "eager 0 #0"),
    ];
    for (repo, tags, platform, artifact_type, expected) in table {
        let repo = repo.parse().unwrap();
        let tags: Vec<Tag> = tags.iter().map(|tag| tag.parse().unwrap()).collect();
        let platform: Option<Platform> = (!platform.is_empty()).then(|| platform.parse().unwrap());
        let subject = Subject {
            repo: &repo,
            tags: Some(&tags),
            platform: Some(platform.as_ref()),
            artifact_type: Some((!artifact_type.is_empty()).then_some(*artifact_type)),
        };
        let decided = policy.decide(&subject);
        assert_eq!(&said(decided), expected, "{repo} {tags:?} {platform:?} {artifact_type}");
        assert_eq!(decided, Some(policy.settle(&subject)));
    }
}

#[test]
fn what_is_not_known_yet_is_open_only_where_it_matters() {
    let policy = policy(RULES);
    let linux: Platform = "linux/amd64".parse().unwrap();
    let windows: Platform = "windows/amd64".parse().unwrap();
    let unversioned: [Tag; 1] = ["2.0".parse().unwrap()];
    let versioned: [Tag; 1] = ["1.2".parse().unwrap()];
    let (team, charts, base): (RepoName, RepoName, RepoName) =
        ("team/app".parse().unwrap(), "charts/c".parse().unwrap(), "base/os".parse().unwrap());
    let of = Subject::of;
    for (subject, expected) in [
        (of(&base), "eager 3 #1"),
        (of(&team), "open"),
        (Subject { platform: Some(Some(&linux)), ..of(&team) }, "open"),
        (Subject { platform: Some(Some(&windows)), ..of(&team) }, "open"),
        (Subject { tags: Some(&unversioned), ..of(&team) }, "exclude 0 #5"),
        (Subject { tags: Some(&versioned), ..of(&team) }, "open"),
        (Subject { tags: Some(&versioned), platform: Some(Some(&linux)), ..of(&team) }, "eager 1 #3"),
        (of(&charts), "open"),
        (Subject { artifact_type: Some(None), ..of(&charts) }, "open"),
        (Subject { tags: Some(&versioned), ..of(&charts) }, "eager 0 #0"),
    ] {
        assert_eq!(said(policy.decide(&subject)), expected, "{subject:?}");
    }
    // What stays open is kept when it is pulled, and says which rule leaves it so.
    assert_eq!(said(Some(policy.settle(&of(&team)))), "lazy 0 #3");
    for (repo, may) in [("base/os", false), ("archive/a", true), ("team/app", true), ("charts/c", true)] {
        assert_eq!(policy.may_exclude(&repo.parse().unwrap()), may, "{repo}");
    }
    assert!(!Policy::default().may_exclude(&team));
    assert_eq!(said(Policy::default().of_repository(&team)), "eager 0 #0");
}

#[test]
fn rules_are_told_as_people_wrote_them() {
    let policy = policy(RULES);
    let verdict = |rule| Verdict { rule, ..Verdict::UNRULED };
    let text = "rule 3: repository = \"team/**\", semver = \">=1.2, <2\", \
                platforms = [\"linux/amd64\", \"linux/arm64/v8\"]";
    assert_eq!(policy.describe(&verdict(Some(3))), text);
    assert_eq!(policy.describe(&verdict(None)), "no rule matches");
    let everything = super::tests::policy("[[policy]]\nkeep = 'lazy'");
    assert_eq!(everything.describe(&verdict(Some(1))), "rule 1: everything");
    assert_ne!(policy.to_string(), everything.to_string());
    assert_eq!(policy.to_string(), super::tests::policy(RULES).to_string());
}

#[test]
fn a_staleness_bound_goes_by_repository() {
    let policy = policy(
        r#"
        [[policy]]
        repository = "team/**"
        tag = "v*"
        keep = "lazy"
        [[policy]]
        repository = "team/prod/*"
        staleness_bound_ms = 500
        [[policy]]
        repository = "team/**"
        staleness_bound_ms = 10000
        keep = "eager"
        "#,
    );
    for (repo, bound) in [("team/prod/a", Some(500)), ("team/a", Some(10_000)), ("other", None)] {
        let bound = bound.map(Duration::from_millis);
        assert_eq!(policy.staleness_bound(&repo.parse().unwrap()), bound, "{repo}");
    }
    assert_eq!(said(policy.of_repository(&"team/prod/a".parse().unwrap())), "open");
}

#[test]
fn what_is_wrong_with_a_rule_is_named() {
    for (rule, key, reason) in [
        ("keep = 'lazy'\nrepository = '['", "repository", "not a glob"),
        ("keep = 'lazy'\ntag = 'v['", "tag", "not a glob"),
        ("keep = 'lazy'\ntag_regex = '('", "tag_regex", "unclosed group"),
        ("keep = 'lazy'\ntag_regex = '(a{1000}){1000}'", "tag_regex", "size limit"),
        ("keep = 'lazy'\nsemver = 'new'", "semver", "unexpected character"),
        ("keep = 'lazy'\nsemver = '1'\ntag = 'a'", "semver", "one of"),
        ("keep = 'lazy'\ntag_regex = '1'\ntag = 'a'", "tag_regex", "one of"),
        ("keep = 'lazy'\nplatforms = ['amd64']", "platforms", "os/architecture"),
        ("keep = 'lazy'\nplatforms = []", "platforms", "matches nothing"),
        ("keep = 'lazy'\nartifact_types = []", "artifact_types", "matches nothing"),
        ("keep = 'lazy'\npriority = 1", "priority", "eagerly"),
        ("repository = 'a'", "", "says keep"),
        ("staleness_bound_ms = 5", "staleness_bound_ms", "at least 500"),
        ("staleness_bound_ms = 1000\ntag = 'a'", "staleness_bound_ms", "by repository alone"),
    ] {
        let error = refused(rule);
        assert_eq!((error.number, error.key), (2, key), "{rule}: {error}");
        assert!(error.reason.contains(reason), "{rule}: {error}");
    }
}

#[test]
fn rules_that_never_decide() {
    let shadowed = |text: &str| policy(text).shadowed();
    assert_eq!(shadowed(RULES), []);
    let rule = |conditions: &str| format!("[[policy]]\n{conditions}\n");
    let all = rule("keep = 'eager'");
    let team = rule("repository = 'team/**'\nkeep = 'lazy'");
    let app = rule("repository = 'team/app'\ntag = 'v*'\nkeep = 'exclude'");
    let bound = rule("repository = 'team/app'\nstaleness_bound_ms = 600");
    assert_eq!(shadowed(&format!("{all}{team}")), [(2, 1)]);
    assert_eq!(shadowed(&format!("{team}{app}{all}")), [(2, 1)]);
    assert_eq!(shadowed(&format!("{app}{team}{all}")), []);
    assert_eq!(shadowed(&format!("{team}{bound}")), [], "a bound is another matter");
    assert_eq!(shadowed(&format!("{team}{team}")), [(2, 1)]);
}

mod properties {
    use proptest::{collection::vec, option, prelude::*, sample::select};

    use super::*;

    fn rule() -> impl Strategy<Value = PolicyRule> {
        let text = |choices: &'static [&'static str]| option::of(select(choices).prop_map(str::to_owned));
        let list = |choices: &'static [&'static str]| {
            option::weighted(0.3, select(choices).prop_map(|choice| vec![choice.to_owned()]))
        };
        let conditions = (
            text(&["team/*", "team/**", "base/*", "**"]),
            option::weighted(0.4, select(&["v*", "1.*", "latest"][..]).prop_map(str::to_owned)),
            list(&["linux/amd64", "linux/*", "windows/amd64"]),
            list(&["a/*", "a/b"]),
        );
        let keep = select(&[Keep::Eager, Keep::Lazy, Keep::Exclude][..]);
        (conditions, keep, 0..3).prop_map(|((repository, tag, platforms, artifact_types), keep, priority)| {
            PolicyRule {
                repository,
                tag,
                platforms,
                artifact_types,
                keep: Some(keep),
                priority: (keep == Keep::Eager).then_some(priority),
                ..PolicyRule::default()
            }
        })
    }

    proptest! {
        /// What is decided early stays right whatever turns out later, and with all known something
        /// is always decided.
        #[test]
        fn nothing_that_turns_out_later_changes_a_verdict(
            rules in vec(rule(), 0..6),
            repo in select(&["team/app", "team/a/b", "base/os", "other"][..]),
            tags in vec(select(&["v1", "1.2", "latest", "x"][..]), 0..3),
            platform in option::of(select(&["linux/amd64", "linux/arm64", "windows/amd64"][..])),
            artifact_type in option::of(select(&["a/b", "a/c", "x/y"][..])),
            known in any::<[bool; 3]>(),
        ) {
            let policy = Policy::new(&rules).unwrap();
            let repo: RepoName = repo.parse().unwrap();
            let tags: Vec<Tag> = tags.iter().map(|tag| tag.parse().unwrap()).collect();
            let platform: Option<Platform> = platform.map(|platform| platform.parse().unwrap());
            let all = Subject {
                repo: &repo,
                tags: Some(&tags),
                platform: Some(platform.as_ref()),
                artifact_type: Some(artifact_type),
            };
            let part = Subject {
                repo: &repo,
                tags: all.tags.filter(|_| known[0]),
                platform: all.platform.filter(|_| known[1]),
                artifact_type: all.artifact_type.filter(|_| known[2]),
            };
            let last = policy.decide(&all).unwrap();
            if let Some(early) = policy.decide(&part) {
                prop_assert_eq!((early.keep, early.priority), (last.keep, last.priority));
            }
            prop_assert!(last.keep != Keep::Exclude || policy.may_exclude(&repo));
            // Leaving out a rule that never decides changes nothing.
            if let Some((number, _)) = policy.shadowed().first() {
                let mut fewer = rules.clone();
                fewer.remove(number - 1);
                let without = Policy::new(&fewer).unwrap().decide(&all).unwrap();
                prop_assert_eq!((without.keep, without.priority), (last.keep, last.priority));
            }
        }
    }
}

#[test]
fn every_site_keeps_the_canary() {
    let policy = policy("[[policy]]\nrepository = '**'\nkeep = 'exclude'\n");
    let canary: RepoName = outport_proto::CANARY_REPO.parse().unwrap();
    assert_eq!(policy.of_repository(&canary).map(|verdict| verdict.keep), Some(Keep::Eager));
    assert!(!policy.may_exclude(&canary));
    assert!(policy.may_exclude(&"team/app".parse().unwrap()));
}
